//! Targets that are to be reached elsewhere (RFC 7143 11.13.5, status class 1).

use super::ServerError;

/// Where a login to a target is sent instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    address: String,
    permanent: bool,
}

impl Redirect {
    /// To `address`, as in the key TargetAddress: a name, an IPv4 address or an IPv6 address in brackets, and a port unless it is
    /// 3260. `permanent`: for good, so that discovery names that address too.
    ///
    /// Errors: [`ServerError::BadAddress`] for anything else.
    pub fn new(address: &str, permanent: bool) -> Result<Redirect, ServerError> {
        if is_target_address(address) {
            Ok(Redirect { address: address.to_owned(), permanent })
        } else {
            Err(ServerError::BadAddress { address: address.to_owned() })
        }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn is_permanent(&self) -> bool {
        self.permanent
    }
}

/// Whether `address` is `host[:port]` (RFC 7143 13.8; the portal group tag has no place in a redirection).
fn is_target_address(address: &str) -> bool {
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, rest)) if host.parse::<std::net::Ipv6Addr>().is_ok() => (host, rest),
            _ => return false,
        },
        None => address.split_at(address.find(':').unwrap_or(address.len())),
    };
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    let port_is_right = port.is_empty()
        || port.strip_prefix(':').is_some_and(|port| {
            port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse().is_ok_and(|port: u16| port > 0)
        });
    (1..=253).contains(&host.len()) && host.bytes().all(is_host) && port_is_right
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hosts_with_ports() {
        for good in ["10.0.0.1", "10.0.0.1:3260", "array.example.org:860", "[fd00::1]:3260", "[::1]"] {
            assert!(Redirect::new(good, false).is_ok(), "{good}");
        }
        for bad in [
            "", ":3260", "a:", "a:0", "a:65536", "a:+1", "a,1", "a:1,1", "fd00::1", "[fd00::1", "[::1]:",
            "[::1]x", "[x]:1", "a b", "a\0b",
        ] {
            assert!(Redirect::new(bad, false).is_err(), "{bad}");
        }
    }
}
