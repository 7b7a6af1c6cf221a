//! Connections to endpoints: the name is resolved, its addresses are checked, and the connection goes to a checked one.
//!
//! There is no second look at the name between the check and the connection. A proxy resolves names itself: then the check
//! covers addresses in the URL only.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper::Uri;
use hyper_util::{
    client::legacy::connect::{HttpConnector, proxy::Tunnel},
    rt::TokioIo,
};
use tokio::net::{TcpStream, lookup_host};
use tower_service::Service;

use super::{Allowed, Failure};

/// The addresses of names.
pub(super) trait Resolve: Send + Sync + 'static {
    /// The addresses of a name.
    fn resolve(&self, name: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;
}

/// The resolver of the system.
#[derive(Debug)]
pub(super) struct System;

impl Resolve for System {
    fn resolve(&self, name: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
        Box::pin(async move { Ok(lookup_host((name, 0)).await?.map(|address| address.ip()).collect()) })
    }
}

/// Connects to allowed addresses only.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) allowed: Allowed,
    pub(super) resolver: Arc<dyn Resolve>,
    /// Through which it connects; `None`: directly.
    pub(super) proxy: Option<Uri>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect(&url).await })
    }
}

impl Connector {
    async fn connect(&self, url: &Uri) -> Result<TokioIo<TcpStream>, Failure> {
        let host = url.host().unwrap_or_default();
        let literal = host.trim_start_matches('[').trim_end_matches(']');
        let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 });
        let literal = literal.parse::<IpAddr>();
        if let Some(proxy) = &self.proxy {
            return match literal {
                Ok(address) if !self.allowed.admits(address) => Err(Failure::Denied(address.to_string())),
                // The resolver of the proxy may take it for an address in an old form, such as 2130706433 or 127.1.
                Err(_) if ends_in_number(host) => Err(Failure::Unresolved),
                _ => tunnel(proxy, host, port).await,
            };
        }
        let addresses = match literal {
            Ok(address) => vec![address],
            Err(_) => self.resolver.resolve(host.to_owned()).await.map_err(|_| Failure::Unresolved)?,
        };
        let mut failure = Failure::Unresolved;
        for address in addresses {
            if !self.allowed.admits(address) {
                failure = Failure::Denied(address.to_string());
                continue;
            }
            match TcpStream::connect(SocketAddr::new(address, port)).await {
                Ok(stream) => {
                    // A delivery is small, and nothing follows it that could fill its packet.
                    let _ = stream.set_nodelay(true);
                    return Ok(TokioIo::new(stream));
                }
                Err(error) => failure = Failure::Connect(error.to_string()),
            }
        }
        Err(failure)
    }
}

/// A connection through a proxy. It has no TLS of its own: the endpoint's is inside.
async fn tunnel(proxy: &Uri, host: &str, port: u16) -> Result<TokioIo<TcpStream>, Failure> {
    let target = Uri::builder().scheme("http").authority(format!("{host}:{port}")).path_and_query("/").build();
    let target = target.map_err(|error| Failure::Connect(error.to_string()))?;
    let mut direct = HttpConnector::new();
    direct.set_nodelay(true);
    let connected = Tunnel::new(proxy.clone(), direct).call(target).await;
    connected.map_err(|error| Failure::Connect(format!("by webhook.proxy: {error}")))
}

/// Whether the last label of a name is a number, decimal or hexadecimal: no domain ends in one.
fn ends_in_number(host: &str) -> bool {
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    let digits = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    match digits {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()),
    }
}
