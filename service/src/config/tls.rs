//! The files of TLS connections: flags that name them, and the rules that a URL has to keep beside them.
//!
//! The operator mounts Secrets as these files and never reads them. A message names the Secret as the manifest does, and
//! never shows a content.

use std::{
    fs,
    path::{Path, PathBuf},
};

use millrace_crds::{ClientTls, Reason, RecordPipelineSpec, SecretKeyRef, TlsSecretRef};

use super::secret::{self, SecretError};
use crate::tls::{CaBundle, ClientFiles, FileError, Identity};

/// Files of TLS connections. Each is followed.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TlsArgs {
    /// A PEM file of the authorities that sign Redis's certificate, in place of the system's
    #[arg(long, value_name = "FILE", env = "MILLRACE_REDIS_TLS_CA_FILE")]
    pub redis_tls_ca_file: Option<PathBuf>,
    /// A PEM file of the certificate that Redis asks a client for
    #[arg(long, value_name = "FILE", env = "MILLRACE_REDIS_TLS_CERT_FILE", requires = "redis_tls_key_file")]
    pub redis_tls_cert_file: Option<PathBuf>,
    /// A PEM file of that certificate's private key
    #[arg(long, value_name = "FILE", env = "MILLRACE_REDIS_TLS_KEY_FILE", requires = "redis_tls_cert_file")]
    pub redis_tls_key_file: Option<PathBuf>,
    /// A PEM file of the authorities that sign Postgres's certificate, in place of the system's
    #[arg(long, value_name = "FILE", env = "MILLRACE_POSTGRES_TLS_CA_FILE")]
    pub postgres_tls_ca_file: Option<PathBuf>,
    /// A PEM file of the certificate that Postgres asks a client for
    #[arg(long, value_name = "FILE", env = "MILLRACE_POSTGRES_TLS_CERT_FILE", requires = "postgres_tls_key_file")]
    pub postgres_tls_cert_file: Option<PathBuf>,
    /// A PEM file of that certificate's private key
    #[arg(long, value_name = "FILE", env = "MILLRACE_POSTGRES_TLS_KEY_FILE", requires = "postgres_tls_cert_file")]
    pub postgres_tls_key_file: Option<PathBuf>,
}

impl TlsArgs {
    /// Each with the name of its flag and of its variable.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static str, &'static str, Option<&Path>)> {
        let all = [
            ("redis-tls-ca-file", "MILLRACE_REDIS_TLS_CA_FILE", &self.redis_tls_ca_file),
            ("redis-tls-cert-file", "MILLRACE_REDIS_TLS_CERT_FILE", &self.redis_tls_cert_file),
            ("redis-tls-key-file", "MILLRACE_REDIS_TLS_KEY_FILE", &self.redis_tls_key_file),
            ("postgres-tls-ca-file", "MILLRACE_POSTGRES_TLS_CA_FILE", &self.postgres_tls_ca_file),
            ("postgres-tls-cert-file", "MILLRACE_POSTGRES_TLS_CERT_FILE", &self.postgres_tls_cert_file),
            ("postgres-tls-key-file", "MILLRACE_POSTGRES_TLS_KEY_FILE", &self.postgres_tls_key_file),
        ];
        all.into_iter().map(|(name, variable, file)| (name, variable, given(file)))
    }

    /// The files for Redis; `spec` names the Secrets that they come from.
    ///
    /// # Errors
    /// When one is not there, or cannot be used.
    pub(super) fn redis(&self, spec: Option<&RecordPipelineSpec>) -> Result<ClientFiles, SecretError> {
        let named = spec.and_then(|spec| spec.redis.as_ref()).and_then(|redis| redis.tls.as_ref());
        read(named, &self.redis_tls_ca_file, &self.redis_tls_cert_file, &self.redis_tls_key_file)
    }

    /// The files for Postgres; `spec` names the Secrets that they come from.
    ///
    /// # Errors
    /// As of [`Self::redis`].
    pub(super) fn postgres(&self, spec: Option<&RecordPipelineSpec>) -> Result<ClientFiles, SecretError> {
        let named = spec.and_then(|spec| spec.postgres.as_ref()).and_then(|postgres| postgres.tls.as_ref());
        read(named, &self.postgres_tls_ca_file, &self.postgres_tls_cert_file, &self.postgres_tls_key_file)
    }
}

fn read(
    named: Option<&ClientTls>,
    ca: &Option<PathBuf>,
    certificate: &Option<PathBuf>,
    key: &Option<PathBuf>,
) -> Result<ClientFiles, SecretError> {
    let ca = given(ca).map(|file| trusted(named.and_then(|named| named.ca_secret_ref.as_ref()), file));
    let secret = named.and_then(|named| named.client_cert_secret_ref.as_ref());
    let identity = given(certificate).zip(given(key)).map(|(certificate, key)| identity(secret, certificate, key));
    Ok(ClientFiles { ca: ca.transpose()?, identity: identity.transpose()? })
}

/// The authorities to trust; `secret` is the Secret key that the file comes from.
///
/// # Errors
/// When it is not there, or cannot be used.
pub(crate) fn trusted(secret: Option<&SecretKeyRef>, file: &Path) -> Result<CaBundle, SecretError> {
    let name = secret::name(secret, file);
    Ok(CaBundle::parse(&name, content(file, &name)?)?)
}

/// A certificate and its key; `secret` is the Secret that the files come from.
///
/// # Errors
/// When one is not there, or cannot be used.
pub(crate) fn identity(secret: Option<&TlsSecretRef>, certificate: &Path, key: &Path) -> Result<Identity, SecretError> {
    let name_of = |file: &Path, key: &str| match secret {
        Some(TlsSecretRef { name }) => format!("{name}, key {key}"),
        None => file.display().to_string(),
    };
    let whole = secret.map_or_else(|| certificate.display().to_string(), |TlsSecretRef { name }| name.clone());
    let certificate = content(certificate, &name_of(certificate, TlsSecretRef::CERTIFICATE))?;
    let key = content(key, &name_of(key, TlsSecretRef::KEY))?;
    Ok(Identity::parse(&whole, certificate, key)?)
}

/// A variable that is set to nothing is as good as none.
pub(crate) fn given(file: &Option<PathBuf>) -> Option<&Path> {
    file.as_deref().filter(|file| !file.as_os_str().is_empty())
}

/// The content of a file.
///
/// # Errors
/// [`SecretError::NotFound`] when it is not there or empty.
fn content(file: &Path, name: &str) -> Result<Vec<u8>, SecretError> {
    match fs::read(file) {
        Ok(content) if !content.trim_ascii().is_empty() => Ok(content),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(SecretError::Tls(Reason::TlsFilesInvalid, format!("{name}: cannot be read: {error}")))
        }
        _ => Err(SecretError::NotFound(name.to_owned())),
    }
}

impl From<FileError> for SecretError {
    fn from(error: FileError) -> Self {
        let reason = match error {
            FileError::Invalid(_) => Reason::TlsFilesInvalid,
            FileError::Expired(_) => Reason::TlsExpired,
        };
        Self::Tls(reason, error.to_string())
    }
}

/// Refuses files that a URL of Redis would not use.
pub(super) fn fits_redis(url: &str, files: &ClientFiles) -> Result<(), String> {
    let scheme = url.split("://").next().unwrap_or_default();
    if files.is_empty() || ["rediss", "valkeys"].iter().any(|tls| scheme.split('+').next() == Some(tls)) {
        return Ok(());
    }
    Err(format!(
        "the URL is {scheme}://, without TLS, and spec.redis.tls or --redis-tls-… names files of TLS: use rediss://, \
         rediss+sentinel:// or rediss+cluster://, or leave the files out"
    ))
}

/// Refuses files that a URL of Postgres with this `sslmode` would not use.
pub(super) fn fits_postgres(mode: &str, files: &ClientFiles) -> Result<(), String> {
    let (is_encrypted, is_verified) = (!["disable", "prefer"].contains(&mode), mode.starts_with("verify-"));
    if (files.ca.is_none() || is_verified) && (files.identity.is_none() || is_encrypted) {
        return Ok(());
    }
    Err(format!(
        "the URL has sslmode={mode}, and spec.postgres.tls or --postgres-tls-… names files that it does not use: use \
         sslmode=verify-full, or leave the files out"
    ))
}
