//! Ports that take IPv4 and IPv6.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use anyhow::Context as _;
use tokio::net::TcpListener;

/// Listens on an address. `[::]` takes IPv4, too, unless the system's `net.ipv6.bindv6only` is set; where the kernel has no
/// IPv6, it is `0.0.0.0`.
///
/// # Errors
/// When it cannot be listened on.
pub(crate) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = match TcpListener::bind(address).await {
        Err(error) if address.is_ipv6() && address.ip().is_unspecified() && lacks_ipv6(&error) => {
            let instead = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            tracing::warn!(event = "http.listen.no_ipv6", %address, %instead, "the kernel has no IPv6; the process listens on IPv4 alone");
            TcpListener::bind(instead).await
        }
        bound => bound,
    };
    bound.with_context(|| format!("cannot listen on {address}"))
}

fn lacks_ipv6(error: &io::Error) -> bool {
    use nix::errno::Errno;
    [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL].iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn a_port_on_all_addresses_takes_ipv4_and_ipv6() {
        let listener = bind("[::]:0".parse().expect("an address")).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        TcpStream::connect(("127.0.0.1", port)).await.expect("IPv4");
        if std::net::TcpListener::bind("[::1]:0").is_ok() {
            TcpStream::connect(("::1", port)).await.expect("IPv6");
        }
    }

    #[test]
    fn only_a_kernel_without_ipv6_is_a_reason_for_ipv4_alone() {
        for (errno, lacks) in [(97, true), (99, true), (98, false), (13, false)] {
            assert_eq!(lacks_ipv6(&io::Error::from_raw_os_error(errno)), lacks, "{errno}");
        }
    }
}
