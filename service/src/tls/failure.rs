//! Why a TLS handshake failed, as a problem that names the Secret to change.

use std::{error::Error, io, sync::Arc};

use millrace_crds::{Reason, status_api::Problem};
use rustls::{AlertDescription, CertificateError};

use super::Endpoint;

/// Why a handshake failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No trusted authority signed the server's certificate, or the certificate cannot be used; the cause.
    Untrusted(String),
    /// The server's certificate expired.
    Expired,
    /// The server's certificate is of another name; the cause, with both names.
    NameMismatch(String),
    /// The server refused the client; its alert.
    ClientRefused(AlertDescription),
    /// The server has no TLS at this port.
    NotOffered,
}

impl Failure {
    /// The failure in the chain of an error of a driver; `None` when TLS is not the cause.
    pub(crate) fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        Self::classify(rustls_error(error)?)
    }

    fn classify(error: &rustls::Error) -> Option<Self> {
        use AlertDescription::{
            AccessDenied, BadCertificate, CertificateExpired, CertificateRequired, CertificateRevoked,
            CertificateUnknown, DecryptError, HandshakeFailure, UnknownCA, UnsupportedCertificate,
        };
        match error {
            rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
                Some(Self::Expired)
            }
            rustls::Error::InvalidCertificate(
                cause @ (CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }),
            ) => Some(Self::NameMismatch(cause.to_string())),
            rustls::Error::InvalidCertificate(cause) => Some(Self::Untrusted(cause.to_string())),
            rustls::Error::AlertReceived(
                alert @ (AccessDenied
                | BadCertificate
                | CertificateExpired
                | CertificateRequired
                | CertificateRevoked
                | CertificateUnknown
                | DecryptError
                | HandshakeFailure
                | UnknownCA
                | UnsupportedCertificate),
            ) => Some(Self::ClientRefused(*alert)),
            rustls::Error::InvalidMessage(_) => Some(Self::NotOffered),
            _ => None,
        }
    }

    /// The problem of a server, `Redis` or `Postgres`.
    pub(crate) fn problem(&self, server: &str, endpoint: &Endpoint) -> Problem {
        let of = server.to_lowercase();
        let Endpoint { url: _, url_name, files } = endpoint;
        let url = url_name.as_ref().map_or_else(|| "the URL".to_owned(), |name| format!("the URL in {name}"));
        let trusted = files.ca.as_ref().map(|ca| ca.name.as_str());
        match self {
            Self::Untrusted(cause) => {
                let why = match trusted {
                    _ if cause.contains("CaUsedAsEndEntity") => "it presents the certificate of an authority (CA:TRUE): \
                                                                 give it one of its own, which that authority has signed"
                        .to_owned(),
                    Some(name) => format!(
                        "its certificate is not signed by an authority in {name} ({cause}): put the certificate of its \
                         authority there"
                    ),
                    None => format!(
                        "its certificate is not signed by an authority of the system ({cause}): name its own authority \
                         in spec.{of}.tls.caSecretRef, or by --{of}-tls-ca-file"
                    ),
                };
                Problem::new(Reason::TlsUntrusted, format!("{server}, {url}: {why}"))
            }
            Self::Expired => {
                let checked = trusted.map(|name| format!(", checked with {name}")).unwrap_or_default();
                let why = format!("{server}, {url}: its certificate expired{checked}: renew it on the server");
                Problem::new(Reason::TlsExpired, why)
            }
            Self::NameMismatch(cause) => Problem::new(
                Reason::TlsNameMismatch,
                format!("{server}, {url}: {cause}: use a name that the certificate has, or renew the certificate"),
            ),
            Self::ClientRefused(alert) => {
                let why = match &files.identity {
                    Some(identity) => format!(
                        "it does not accept the certificate in {} ({alert:?}): add its authority to those that the \
                         server trusts for clients, or use another certificate",
                        identity.name
                    ),
                    None => format!(
                        "it refuses a client without a certificate ({alert:?}): name one in \
                         spec.{of}.tls.clientCertSecretRef, or by --{of}-tls-cert-file and --{of}-tls-key-file"
                    ),
                };
                Problem::new(Reason::TlsClientRefused, format!("{server}, {url}: {why}"))
            }
            Self::NotOffered => Problem::new(
                Reason::TlsNotOffered,
                format!("{server}, {url}: it answers without TLS: turn TLS on there, or name its TLS port in the URL"),
            ),
        }
    }
}

/// The error of rustls in the chain of another. An error of I/O holds it, and does not name it as its source.
fn rustls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        if let Some(shared) = error.downcast_ref::<Arc<dyn Error + Send + Sync>>() {
            return rustls_error(&**shared);
        }
        if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            return rustls_error(inner);
        }
        next = error.source();
    }
    None
}
