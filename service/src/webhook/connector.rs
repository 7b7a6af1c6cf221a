//! Connections to endpoints: the name is resolved, its addresses are checked, and the connection goes to a checked one.
//!
//! There is no second look at the name between the check and the connection.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper::Uri;
use hyper_util::rt::TokioIo;
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
        let addresses = match literal.parse() {
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
