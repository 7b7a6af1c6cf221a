//! Certificates and keys from files: checked before a client gets them, so that an error names its file.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

/// Why a file cannot be used. The text names the Secret or the file, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// It is no certificate or no key, or the key is another certificate's.
    #[error("{0}")]
    Invalid(String),
    /// The certificate, or every one of a bundle, expired.
    #[error("{0}")]
    Expired(String),
}

/// The files of one client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ClientFiles {
    /// The authorities to trust; `None`: the system's.
    pub(crate) ca: Option<CaBundle>,
    /// What the client presents; `None`: nothing.
    pub(crate) identity: Option<Identity>,
}

impl ClientFiles {
    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.ca.is_none() && self.identity.is_none()
    }
}

/// Certificates of authorities.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct CaBundle {
    /// The Secret and key, or the file.
    pub(crate) name: String,
    /// As PEM.
    pub(crate) pem: Vec<u8>,
}

impl fmt::Debug for CaBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaBundle").field("name", &self.name).finish_non_exhaustive()
    }
}

impl CaBundle {
    /// Checks a bundle. A certificate of it may have expired, as the old one does after a rotation, but not all.
    ///
    /// # Errors
    /// When it has no certificate, one that cannot be used, or only expired ones.
    pub(crate) fn parse(name: &str, pem: Vec<u8>) -> Result<Self, FileError> {
        let certificates = certificates(name, &pem)?;
        let mut store = RootCertStore::empty();
        for certificate in &certificates {
            store.add(certificate.clone()).map_err(|error| {
                FileError::Invalid(format!("{name}: holds a certificate that cannot be an authority's: {error}"))
            })?;
        }
        let ends = certificates.iter().map(|certificate| end(name, certificate)).collect::<Result<Vec<_>, _>>()?;
        match ends.into_iter().max() {
            Some(end) if end < now() => {
                Err(FileError::Expired(format!("{name}: every certificate in it expired: replace it")))
            }
            _ => Ok(Self { name: name.to_owned(), pem }),
        }
    }
}

/// A certificate and its key: of a client, or of the API's port.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The Secret, or the files.
    pub(crate) name: String,
    /// The certificate and those of intermediate authorities, as PEM.
    pub(crate) certificates: Vec<u8>,
    /// The private key, as PEM.
    pub(crate) key: Vec<u8>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Identity {
    /// Checks a certificate and its key.
    ///
    /// # Errors
    /// When one of them is none, they do not belong together, or the certificate expired.
    pub(crate) fn parse(name: &str, certificates_pem: Vec<u8>, key_pem: Vec<u8>) -> Result<Self, FileError> {
        super::install_provider();
        let chain = certificates(name, &certificates_pem)?;
        let key = private_key(name, &key_pem)?;
        let end = end(name, &chain[0])?;
        ClientConfig::builder()
            .with_root_certificates(RootCertStore::empty())
            .with_client_auth_cert(chain, key)
            .map_err(|error| misfit(name, &error))?;
        if end < now() {
            return Err(FileError::Expired(format!("{name}: the certificate expired: replace it")));
        }
        Ok(Self { name: name.to_owned(), certificates: certificates_pem, key: key_pem })
    }

    /// The settings of a server with this certificate: HTTP/1.1, and no certificates of clients.
    ///
    /// # Errors
    /// As [`Self::parse`], which has seen the same.
    pub(crate) fn server_config(&self) -> Result<ServerConfig, FileError> {
        let Self { name, certificates: pem, key } = self;
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(certificates(name, pem)?, private_key(name, key)?)
            .map_err(|error| misfit(name, &error))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// At least one certificate.
fn certificates(name: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(FileError::Invalid(format!("{name}: holds no certificate in PEM (-----BEGIN CERTIFICATE-----)"))),
    }
}

/// A private key. The error of the parser may show a part of the text, so it is left out.
fn private_key(name: &str, pem: &[u8]) -> Result<PrivateKeyDer<'static>, FileError> {
    PrivateKeyDer::from_pem_slice(pem)
        .map_err(|_| FileError::Invalid(format!("{name}: the key is no private key in PEM (-----BEGIN …)")))
}

fn misfit(name: &str, error: &rustls::Error) -> FileError {
    FileError::Invalid(format!("{name}: certificate and key do not fit: {error}"))
}

/// When a certificate expires, in seconds of Unix time.
fn end(name: &str, certificate: &CertificateDer<'_>) -> Result<i64, FileError> {
    match x509_parser::parse_x509_certificate(certificate) {
        Ok((_, parsed)) => Ok(parsed.validity().not_after.timestamp()),
        Err(_) => Err(FileError::Invalid(format!("{name}: holds a certificate that cannot be parsed"))),
    }
}

/// Certificates name points in time of the world's clock, which is this machine's.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{super::testing::Authority, *};

    #[test]
    fn a_bundle_without_certificates_is_refused_by_name() {
        for text in ["", "no certificate", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"] {
            let refused = CaBundle::parse("payments-ca, key ca.crt", text.into()).unwrap_err();
            assert!(matches!(refused, FileError::Invalid(_)), "{refused:?}");
            assert!(refused.to_string().contains("payments-ca, key ca.crt: holds no certificate in PEM"), "{refused}");
        }
        let key = Authority::new("a").issue(&["h"]).key;
        assert!(CaBundle::parse("a", key.into()).is_err());
    }

    #[test]
    fn a_bundle_is_expired_when_every_certificate_in_it_is() {
        let (expired, current) = (Authority::expired("old").pem, Authority::new("new").pem);
        let refused = CaBundle::parse("payments-ca", expired.clone().into()).unwrap_err();
        assert!(matches!(refused, FileError::Expired(_)) && refused.to_string().contains("payments-ca"), "{refused:?}");
        CaBundle::parse("payments-ca", format!("{expired}{current}").into()).unwrap();
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let authority = Authority::new("a");
        let (one, other) = (authority.issue(&["one"]), authority.issue(&["other"]));
        Identity::parse("c", one.certificate.clone().into(), one.key.clone().into()).unwrap();
        for (certificate, key, why) in [
            (&one.certificate, &other.key, "do not fit"),
            (&one.certificate, &"s3cret".to_owned(), "no private key in PEM"),
            (&one.key, &one.key, "no certificate in PEM"),
        ] {
            let refused = Identity::parse("payments-client", certificate.clone().into(), key.clone().into());
            let Err(FileError::Invalid(refused)) = refused else { panic!("{why}: {refused:?}") };
            assert!(refused.contains("payments-client") && refused.contains(why) && !refused.contains("s3cret"));
        }
        let expired = authority.issue_expired(&["one"]);
        let refused = Identity::parse("payments-client", expired.certificate.into(), expired.key.into());
        assert!(matches!(refused, Err(FileError::Expired(_))), "{refused:?}");
    }
}
