//! TLS of connections to Postgres.
//!
//! It must never let the driver read a file or a variable of its own: `sslmode` alone comes from the URL.

use millrace_crds::status_api::Problem;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::{Error, Store};
use crate::tls::{Endpoint, Failure};

/// Gives a connection the files of its endpoint.
pub(super) fn options(mut options: PgConnectOptions, endpoint: &Endpoint) -> PgConnectOptions {
    if matches!(options.get_ssl_mode(), PgSslMode::VerifyCa | PgSslMode::VerifyFull) {
        options = options.ssl_root_cert_from_pem(endpoint.trusted());
    }
    if let Some(identity) = &endpoint.files.identity {
        options = options.ssl_client_cert_from_pem(&identity.certificates).ssl_client_key_from_pem(&identity.key);
    }
    options
}

impl Store {
    /// The problem of an error whose cause is TLS; `None` for another cause. It names the Secret to change.
    #[must_use]
    pub fn tls_problem(&self, error: &Error) -> Option<Problem> {
        problem(error, &self.shared.endpoint())
    }

    /// Probes an endpoint that is not used yet, such as one with new certificates.
    ///
    /// # Errors
    /// Why Postgres cannot be used by it, as a problem if the cause is TLS.
    pub async fn try_endpoint(&self, endpoint: &Endpoint) -> Result<(), Option<Problem>> {
        self.probe_endpoint(endpoint).await.map_err(|error| problem(&error, endpoint))
    }

    /// Ends the connections that were opened before, each before its next use.
    pub fn renew_connections(&self) {
        self.shared.newest.renew();
    }
}

fn problem(error: &Error, endpoint: &Endpoint) -> Option<Problem> {
    let Error::Sql(error) = error else { return None };
    let failure = match (Failure::of(error), error) {
        (Some(failure), _) => failure,
        // The driver's own error, when the server answers that it has no TLS.
        (None, sqlx::Error::Tls(_)) => Failure::NotOffered,
        (None, _) => return None,
    };
    Some(failure.problem("Postgres", endpoint))
}
