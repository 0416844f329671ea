//! Portals: which of them discovery tells of.
//!
//! All portals are one portal group, and every target is reached by each of them. So a host that finds one of them finds them all, and can
//! have a session by each: several ways to the same LUNs.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The addresses to tell an initiator that came in by `here`, of a server that listens on `portals`: its own way first.
///
/// An address that it cannot mean is not among them: loopback is another machine for whoever comes from elsewhere, a link-local address
/// needs a zone that only its host knows, and of one that stands for all addresses of this machine only that is known by which it came.
pub(super) fn told(here: SocketAddr, portals: &[SocketAddr]) -> Vec<SocketAddr> {
    let here = plain(here);
    let mut told = vec![here];
    for portal in portals.iter().copied().map(plain) {
        let address = if portal.ip().is_unspecified() {
            // It listens for this family, or for both.
            SocketAddr::new(here.ip(), portal.port())
        } else {
            portal
        };
        let is_reachable = address.ip() == here.ip()
            || !is_local(address.ip())
            || here.ip().is_loopback() && address.ip().is_loopback();
        let is_heard = !portal.ip().is_unspecified() || portal.is_ipv6() || here.is_ipv4();
        if is_reachable && is_heard && !told.contains(&address) {
            told.push(address);
        }
    }
    told
}

/// Whether an address means nothing beyond this machine or its link.
fn is_local(address: IpAddr) -> bool {
    let is_link_local = |v6: Ipv6Addr| v6.segments()[0] & 0xffc0 == 0xfe80;
    address.is_loopback() || matches!(address, IpAddr::V6(v6) if is_link_local(v6))
}

/// An IPv4 address that came in by an IPv6 socket is an IPv4 address to the initiator.
fn plain(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(IpAddr::V4(v4), address.port()),
            None => address,
        },
        IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told_by(here: &str, portals: &[&str]) -> Vec<String> {
        let portals: Vec<SocketAddr> = portals.iter().map(|p| p.parse().unwrap()).collect();
        told(here.parse().unwrap(), &portals).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn all_portals_are_told_the_own_one_first() {
        let portals = ["10.0.0.1:3260", "10.1.0.1:3260", "[fd00::1]:860"];
        assert_eq!(told_by("10.1.0.1:3260", &portals), ["10.1.0.1:3260", "10.0.0.1:3260", "[fd00::1]:860"]);
        assert_eq!(told_by("[::ffff:10.0.0.1]:3260", &portals)[0], "10.0.0.1:3260");
        assert_eq!(told_by("127.0.0.1:1", &["127.0.0.1:1", "127.0.0.2:2"]), ["127.0.0.1:1", "127.0.0.2:2"]);
    }

    #[test]
    fn what_an_initiator_elsewhere_cannot_mean_is_not_told() {
        let portals = ["127.0.0.1:3260", "[::1]:3260", "10.0.0.1:3260", "[fe80::1]:3260"];
        assert_eq!(told_by("10.0.0.1:3260", &portals), ["10.0.0.1:3260"]);
        assert_eq!(told_by("[fe80::1]:3260", &portals), ["[fe80::1]:3260", "10.0.0.1:3260"]);
    }

    #[test]
    fn an_address_for_all_is_the_one_that_was_used() {
        assert_eq!(
            told_by("10.0.0.1:3260", &["0.0.0.0:3260", "0.0.0.0:860"]),
            ["10.0.0.1:3260", "10.0.0.1:860"]
        );
        assert_eq!(told_by("[::ffff:10.0.0.1]:3260", &["[::]:3260"]), ["10.0.0.1:3260"]);
        assert_eq!(told_by("[fd00::1]:3260", &["[::]:3260", "0.0.0.0:860"]), ["[fd00::1]:3260"]);
    }
}
