//! The URL of the standby that queries may read from.

use std::path::PathBuf;

use millrace_crds::RecordPipelineSpec;

use super::{Secret, SecretError, TlsArgs, given, place::url, postgres_url, tls::fits_postgres};
use crate::tls::Endpoint;

/// The standby for queries. Its connections use the TLS files of Postgres.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct StandbyArgs {
    /// A standby of Postgres for the queries that ask for it, as --postgres-url
    #[arg(long, value_name = "URL", env = "MILLRACE_POSTGRES_READ_URL", hide_env_values = true)]
    pub postgres_read_url: Option<Secret>,
    /// A file that holds the URL of that standby; it is followed
    #[arg(long, value_name = "FILE", env = "MILLRACE_POSTGRES_READ_URL_FILE", conflicts_with = "postgres_read_url")]
    pub postgres_read_url_file: Option<PathBuf>,
}

/// Where the standby is.
#[derive(Debug, Clone, Default)]
pub struct StandbyPlace {
    /// Its URL.
    pub args: StandbyArgs,
    /// The files of its connections.
    pub tls: TlsArgs,
}

impl StandbyPlace {
    /// Whether a URL or its file is named.
    #[must_use]
    pub fn is_given(&self) -> bool {
        let StandbyArgs { postgres_read_url: text, postgres_read_url_file: file } = &self.args;
        text.as_ref().is_some_and(|Secret(url)| !url.trim().is_empty()) || given(file).is_some()
    }

    /// The URL of the standby and the files of its connections, `None` where none is given; `spec` names the Secrets that they
    /// come from.
    ///
    /// # Errors
    /// When a file is not there or cannot be used.
    pub fn endpoint(&self, spec: &RecordPipelineSpec) -> Result<Option<Endpoint>, SecretError> {
        if !self.is_given() {
            return Ok(None);
        }
        let Self { args: StandbyArgs { postgres_read_url: text, postgres_read_url_file }, tls } = self;
        let files = tls.postgres(Some(spec))?;
        let named = spec.postgres.as_ref().and_then(|postgres| postgres.read_url_secret_ref.as_ref());
        let checked = |text: &str| {
            let url = postgres_url::checked(text)?;
            fits_postgres(&postgres_url::mode(&url), &files).map(|()| url)
        };
        let (url, url_name) = url("postgres-read", text.as_ref(), postgres_read_url_file.as_ref(), named, checked)?;
        Ok(Some(Endpoint { url_name, files, ..Endpoint::new(url) }))
    }
}
