//! TLS of connections to Redis.
//!
//! A certificate is always verified, and its name too: there is no form of the URL without it.

use millrace_crds::status_api::Problem;
use redis::{Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, RedisError, RedisResult, TlsCertificates};

use super::{
    Error, Streams,
    servers::{Servers, slot},
};
use crate::tls::{Endpoint, Failure, install_provider};

/// Gives a connection the files of its endpoint, if it is one of TLS.
pub(super) fn with_files(info: ConnectionInfo, endpoint: &Endpoint) -> RedisResult<ConnectionInfo> {
    if !matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
        return Ok(info);
    }
    install_provider();
    let client_tls = endpoint.files.identity.as_ref().map(|identity| ClientTlsConfig {
        client_cert: identity.certificates.clone(),
        client_key: identity.key.clone(),
    });
    let certificates = TlsCertificates { client_tls, root_cert: Some(endpoint.trusted()) };
    Ok(Client::build_with_tls(info, certificates)?.get_connection_info().clone())
}

impl Streams {
    /// The problem of an error whose cause is TLS; `None` for another cause. It names the Secret to change.
    #[must_use]
    pub fn tls_problem(&self, error: &Error) -> Option<Problem> {
        problem(error, &self.servers().endpoint)
    }

    /// What else may be the cause of an error: a server that expects TLS ends a connection without it, and one that does not
    /// expect TLS waits for the end of a command.
    #[must_use]
    pub fn scheme_hint(&self, error: &Error) -> Option<&'static str> {
        let Error::Redis(error) = error else { return None };
        let is_tls = self.servers().endpoint.url().starts_with("rediss");
        if !is_tls && error.is_connection_dropped() {
            Some("if this port expects TLS, its URL is rediss://")
        } else if is_tls && error.is_timeout() {
            Some("if this port has no TLS, its URL is redis://")
        } else {
            None
        }
    }

    /// Probes an endpoint that is not used yet, such as one with new certificates.
    ///
    /// # Errors
    /// Why Redis cannot be used by it, as a problem if the cause is TLS.
    pub async fn try_endpoint(&self, endpoint: &Endpoint) -> Result<(), Option<Problem>> {
        probe(endpoint).await.map_err(|error| problem(&error, endpoint))
    }
}

/// Connects once.
async fn probe(endpoint: &Endpoint) -> Result<(), Error> {
    let servers = Servers::open(endpoint)?;
    let topology = servers.topology().await?;
    topology.of(slot(""))?.query().await.map(drop)
}

/// Whether TLS is the cause of an error.
pub(super) fn is_cause(error: &RedisError) -> bool {
    Failure::of(error).is_some()
}

fn problem(error: &Error, endpoint: &Endpoint) -> Option<Problem> {
    let Error::Redis(error) = error else { return None };
    let failure = Failure::of(error)?;
    Some(failure.problem("Redis", endpoint))
}
