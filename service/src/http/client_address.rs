//! The address of a client, for the audit trail.
//!
//! Must never take an address from a header that a client can write: only the proxies that the manifest trusts can.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use poem::{
    Addr, Request,
    http::{HeaderMap, HeaderName},
};

/// The header to which each proxy adds the address that it got the request from.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address of the client that sent a request; `None`: its connection has none. `trusted` are networks of proxies.
pub(super) fn client_address(request: &Request, trusted: &[String]) -> Option<IpAddr> {
    let Addr::SocketAddr(peer) = &request.remote_addr().0 else { return None };
    // The manifest was checked.
    let trusted: Vec<IpNet> = trusted.iter().filter_map(|network| network.parse().ok()).collect();
    Some(behind_proxies(peer.ip().to_canonical(), request.headers(), &trusted))
}

/// The last address that is no trusted proxy: that of the peer, or else the last one of `X-Forwarded-For`. An address that
/// cannot be read ends the search at the proxy that wrote it.
fn behind_proxies(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(&address));
    let forwarded: Vec<&str> = headers
        .get_all(FORWARDED_FOR)
        .iter()
        .flat_map(|header| header.to_str().unwrap_or_default().split(','))
        .collect();
    let mut address = peer;
    for text in forwarded.into_iter().rev() {
        if !is_trusted(address) {
            break;
        }
        let Some(before) = read(text.trim()) else { break };
        address = before;
    }
    address
}

/// An address, with or without a port.
fn read(text: &str) -> Option<IpAddr> {
    let address = text.parse::<IpAddr>().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    address.ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(peer: &str, forwarded: &[&'static str]) -> String {
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append(FORWARDED_FOR, value.parse().unwrap());
        }
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().unwrap());
        behind_proxies(peer.parse().unwrap(), &headers, &trusted).to_string()
    }

    #[test]
    fn the_last_address_that_is_no_trusted_proxy_is_the_client() {
        for (peer, forwarded, client) in [
            ("10.0.0.1", &[][..], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["198.51.100.1, 203.0.113.9, 10.0.0.2"], "203.0.113.9"),
            ("10.0.0.1", &["198.51.100.1", "203.0.113.9", "10.0.0.2"], "203.0.113.9"),
            ("fd00::1", &["2001:db8::7"], "2001:db8::7"),
            ("10.0.0.1", &["10.0.0.3"], "10.0.0.3"),
            ("10.0.0.1", &["203.0.113.9:5000"], "203.0.113.9"),
            ("10.0.0.1", &["[2001:db8::7]:5000"], "2001:db8::7"),
            ("10.0.0.1", &["::ffff:203.0.113.9"], "203.0.113.9"),
        ] {
            assert_eq!(found(peer, forwarded), client, "{peer} {forwarded:?}");
        }
    }

    #[test]
    fn a_client_cannot_choose_its_address() {
        for (peer, forwarded, client) in [
            ("203.0.113.9", &["198.51.100.1"][..], "203.0.113.9"),
            ("203.0.113.9", &["10.0.0.2"], "203.0.113.9"),
            ("10.0.0.1", &["198.51.100.1, 203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["198.51.100.1, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1, unknown, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["198.51.100.1, "], "10.0.0.1"),
        ] {
            assert_eq!(found(peer, forwarded), client, "{peer} {forwarded:?}");
        }
    }
}
