//! Connections of clients of HTTP: to URLs with `http` and with `https`.

use std::{path::Path, time::Duration};

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::ClientConfig;

use super::client_config;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections that trust the authorities of a file; `None`: the system's.
///
/// # Errors
/// When the file cannot be read or used.
pub(crate) fn https_connector(ca_file: Option<&Path>) -> anyhow::Result<HttpsConnector<HttpConnector>> {
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    Ok(https_over(tcp, client_config(ca_file)?))
}

/// Connections with these settings.
pub(crate) fn https_over(mut tcp: HttpConnector, config: ClientConfig) -> HttpsConnector<HttpConnector> {
    tcp.enforce_http(false);
    HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().wrap_connector(tcp)
}
