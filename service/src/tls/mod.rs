//! TLS towards Redis and Postgres, and of the API's port: whom a client trusts, what client and server present, and why a
//! handshake failed.
//!
//! The clients trust only the authorities that they are given here: those of a bundle or, without one, the system's. A
//! bundle must never be added to the system's authorities: with `sslmode=verify-ca`, any holder of a public certificate
//! could then answer as Postgres. This module must never show a key, and connects to no server.

mod connector;
mod failure;
mod files;
#[cfg(test)]
pub(crate) mod testing;

use std::{path::Path, sync::Once};

use anyhow::Context as _;
use base64::Engine as _;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, pem::PemObject as _},
};

pub(crate) use connector::{https_connector, https_over};
pub(crate) use failure::Failure;
pub(crate) use files::{CaBundle, ClientFiles, FileError, Identity};

/// A server's URL with the files of its TLS connections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// The URL; it may hold a password.
    pub(crate) url: HiddenUrl,
    /// The Secret and key, or the file, that the URL comes from; `None`: a flag or a variable.
    pub(crate) url_name: Option<String>,
    /// The files.
    pub(crate) files: ClientFiles,
}

/// A URL that is not shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct HiddenUrl(pub(crate) String);

impl std::fmt::Debug for HiddenUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(hidden)")
    }
}

impl Endpoint {
    /// A URL without files.
    pub(crate) fn new(url: impl Into<String>) -> Self {
        Self { url: HiddenUrl(url.into()), ..Self::default() }
    }

    /// The URL.
    pub(crate) fn url(&self) -> &str {
        &self.url.0
    }

    /// The authorities that the client trusts, as PEM: those of the bundle, else the system's.
    pub(crate) fn trusted(&self) -> Vec<u8> {
        self.files.ca.as_ref().map_or_else(system_roots, |ca| ca.pem.clone())
    }
}

impl From<&str> for Endpoint {
    fn from(url: &str) -> Self {
        Self::new(url)
    }
}

impl From<&String> for Endpoint {
    fn from(url: &String) -> Self {
        Self::new(url)
    }
}

impl From<&Self> for Endpoint {
    fn from(endpoint: &Self) -> Self {
        endpoint.clone()
    }
}

/// The system's authorities as PEM, or those of the variables `SSL_CERT_FILE` and `SSL_CERT_DIR`. A certificate that
/// cannot be used is left out.
fn system_roots() -> Vec<u8> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(event = "tls.system_roots.unreadable", %error, "a file of the system's authorities cannot be read");
    }
    let usable = found.certs.into_iter().filter(|certificate| RootCertStore::empty().add(certificate.clone()).is_ok());
    usable.flat_map(|certificate| pem(&certificate).into_bytes()).collect()
}

/// The settings of a client of HTTPS, which trusts the authorities of a file; `None`: the system's.
///
/// # Errors
/// When the file cannot be read or used.
pub(crate) fn client_config(ca_file: Option<&Path>) -> anyhow::Result<ClientConfig> {
    install_provider();
    let pem = match ca_file {
        Some(file) => {
            let name = file.display().to_string();
            CaBundle::parse(&name, std::fs::read(file).with_context(|| format!("cannot read {name}"))?)?.pem
        }
        None => system_roots(),
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok));
    Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

fn pem(der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

/// Makes ring the implementation of cryptography of clients that choose none themselves.
pub(crate) fn install_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if CryptoProvider::get_default().is_none() {
            // An error means that another thread was first.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_trust_no_authority_unasked() {
        assert_eq!(webpki_roots::TLS_SERVER_ROOTS.len(), 0, "the patch of webpki-roots in Cargo.toml is gone");
    }

    #[test]
    fn the_systems_authorities_can_all_be_used() {
        let count = RootCertStore::empty().add_parsable_certificates(rustls_native_certs::load_native_certs().certs).0;
        let endpoint = Endpoint::new("rediss://h");
        let bundle = CaBundle::parse("system", endpoint.trusted());
        // A machine may have none.
        assert_eq!(count > 0, bundle.is_ok(), "{bundle:?}");
    }

    #[test]
    fn an_endpoint_hides_its_url_and_its_key() {
        let authority = testing::Authority::new("a");
        let issued = authority.issue(&["client"]);
        let identity = Identity::parse("secret", issued.certificate.into(), issued.key.into()).unwrap();
        let endpoint = Endpoint {
            files: ClientFiles { ca: None, identity: Some(identity) },
            ..Endpoint::new("redis://:s3cret@h")
        };
        let shown = format!("{endpoint:?}");
        assert!(!shown.contains("s3cret") && !shown.contains("PRIVATE KEY") && shown.contains("secret"), "{shown}");
    }
}
