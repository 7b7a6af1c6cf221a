//! Addresses that a delivery may go to. An endpoint's name may lead anywhere, and a name that was harmless may lead elsewhere
//! at the next look: so it is the address that is checked, right before the connection.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Ranges of IPv4 that are no public endpoints: the registry of special-purpose addresses, and multicast. The addresses of
/// cloud metadata (169.254.169.254, 100.100.100.200) are among them.
const SPECIAL_V4: [(Ipv4Addr, u8); 16] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
    // Azure's address for metadata and DNS, in a public range.
    (Ipv4Addr::new(168, 63, 129, 16), 32),
];
/// The range of IPv6 that public addresses are in.
const GLOBAL_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
/// Ranges within it that are no public endpoints, or that hold an IPv4 address that would not be checked.
const SPECIAL_V6: [(Ipv6Addr, u8); 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

/// The addresses that the deliveries of a sink may go to: public ones, and those of the manifest's ranges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed {
    ranges: Vec<IpNet>,
}

impl Allowed {
    /// Public addresses, and these.
    #[must_use]
    pub fn new(ranges: Vec<IpNet>) -> Self {
        Self { ranges }
    }

    /// Whether a delivery may go to an address.
    #[must_use]
    pub fn admits(&self, address: IpAddr) -> bool {
        // An IPv4 address in IPv6 is judged as what it is.
        let address = address.to_canonical();
        self.ranges.iter().any(|range| range.contains(&address)) || is_public(address)
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !SPECIAL_V4.iter().any(|&(base, bits)| v4(base, bits).contains(&address)),
        IpAddr::V6(address) => {
            v6(GLOBAL_V6.0, GLOBAL_V6.1).contains(&address)
                && !SPECIAL_V6.iter().any(|&(base, bits)| v6(base, bits).contains(&address))
        }
    }
}

fn v4(base: Ipv4Addr, bits: u8) -> Ipv4Net {
    Ipv4Net::new_assert(base, bits)
}

fn v6(base: Ipv6Addr, bits: u8) -> Ipv6Net {
    Ipv6Net::new_assert(base, bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(ranges: &[&str], address: &str) -> bool {
        let ranges = ranges.iter().map(|range| range.parse().expect("a range")).collect();
        Allowed::new(ranges).admits(address.parse().expect("an address"))
    }

    #[test]
    fn only_public_addresses_are_admitted_unless_a_range_allows_others() {
        for public in ["1.1.1.1", "172.15.255.255", "172.32.0.0", "168.63.129.17", "2606:4700::1", "2a00::1"] {
            assert!(admits(&[], public), "{public}");
        }
        let special = [
            "0.0.0.0",
            "10.255.0.1",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "127.8.8.8",
            "169.254.169.254",
            "168.63.129.16",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "192.0.0.192",
            "198.19.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
        ];
        for address in special {
            assert!(!admits(&[], address), "{address}");
        }
        assert!(admits(&["10.1.0.0/16"], "10.1.2.3") && !admits(&["10.1.0.0/16"], "10.2.0.1"));
        assert!(admits(&["127.0.0.1/32"], "::ffff:127.0.0.1") && admits(&["fd00::/8"], "fd00::1"));
    }
}
