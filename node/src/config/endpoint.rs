//! Addresses in a configuration: where a node listens, and where its primary is.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use super::{ConfigError, is_loopback};

/// A node's URL: `http://HOST:PORT`. The port counts for HTTP (TCP) and replication (UDP).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
}

impl Endpoint {
    /// A host name or address (IPv6 without brackets) and a port.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    /// The host name or address; IPv6 without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, from 1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// True for a loopback address and for `localhost`. Other names are not looked up.
    pub fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(ip) => is_loopback(ip),
            Err(_) => self.host.eq_ignore_ascii_case("localhost"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "http://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "http://{}:{}", self.host, self.port)
        }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(addr: SocketAddr) -> Self {
        Self::new(addr.ip().to_string(), addr.port())
    }
}

impl FromStr for Endpoint {
    type Err = ConfigError;

    fn from_str(url: &str) -> Result<Self, ConfigError> {
        let bad = |why: &str| ConfigError::new(format!("{url:?} {why}"));
        let rest = url
            .strip_prefix("http://")
            .or_else(|| url.strip_prefix("https://"))
            .ok_or_else(|| bad("is not a URL such as http://10.0.0.1:20202"))?;
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#', '@']) {
            return Err(bad("must end after the port, as in http://10.0.0.1:20202"));
        }
        let (host, port) = split_host_port(authority)
            .ok_or_else(|| bad("needs a host and a port, as in http://10.0.0.1:20202"))?;
        if host.is_empty() || port == 0 {
            return Err(bad("needs a host and a port, as in http://10.0.0.1:20202"));
        }
        Ok(Self::new(host, port))
    }
}

/// Reads a listen address: `HOST:PORT`, or `:PORT` for all of the host's addresses (IPv4 and
/// IPv6), as LiteFS means it. A host name is looked up; a loopback address of it is preferred.
pub fn parse_listen_addr(text: &str) -> Result<SocketAddr, ConfigError> {
    let bad = |why: String| ConfigError::new(format!("{text:?} is no address to listen on: {why}"));
    let (host, port) = split_host_port(text)
        .ok_or_else(|| bad("write it like 127.0.0.1:20202, or :20202 for all addresses".into()))?;
    if host.is_empty() {
        return Ok((Ipv6Addr::UNSPECIFIED, port).into());
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok((ip, port).into());
    }
    let found: Vec<SocketAddr> =
        (host, port).to_socket_addrs().map_err(|e| bad(format!("{host}: {e}")))?.collect();
    let chosen = found.iter().find(|addr| is_loopback(addr.ip())).or(found.first());
    chosen.copied().ok_or_else(|| bad(format!("{host} has no address")))
}

/// Reads where an application listens: `HOST:PORT`, or `:PORT` on this host.
pub(super) fn parse_target(text: &str) -> Result<Endpoint, ConfigError> {
    match split_host_port(text) {
        Some(("", port)) if port > 0 => Ok(Endpoint::new("localhost", port)),
        Some((host, port)) if port > 0 && is_host(host) => Ok(Endpoint::new(host, port)),
        _ => Err(ConfigError::new(format!(
            "{text:?} is not where an application listens: write it like localhost:8081"
        ))),
    }
}

/// True for an IPv6 address and for what may stand between `//` and `:` in a URL.
fn is_host(host: &str) -> bool {
    let in_name = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    host.parse::<Ipv6Addr>().is_ok() || host.chars().all(in_name)
}

/// Splits `host:port` or `[v6]:port`; `None` if there is no port or it is no number.
fn split_host_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.bytes().all(|b| b.is_ascii_digit()).then(|| port.parse().ok())??;
    let bare = match host.strip_prefix('[') {
        Some(v6) => v6.strip_suffix(']').filter(|v6| v6.parse::<Ipv6Addr>().is_ok())?,
        None if host.contains(':') => return None,
        None => host,
    };
    Some((bare, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_round_trip_and_near_misses_are_refused() {
        for url in ["http://10.0.0.1:20202", "http://db1.internal:80", "http://[fdaa::3]:20202"] {
            assert_eq!(url.parse::<Endpoint>().unwrap().to_string(), url);
        }
        let v6: Endpoint = "https://[::1]:1/".parse().unwrap();
        assert_eq!((v6.host(), v6.port(), v6.is_loopback()), ("::1", 1, true));
        for bad in [
            "10.0.0.1:20202",
            "http://db1",
            "http://:20202",
            "http://db1:0",
            "http://db1:99999",
            "http://db1:+1",
            "http://::1:20202",
            "http://[db1]:1",
            "http://db1:1/path",
            "http://user@db1:1",
            "ftp://db1:1",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_target_is_a_host_and_a_port() {
        let parse = |text| parse_target(text).map(|target| target.to_string());
        assert_eq!(parse("localhost:8081").unwrap(), "http://localhost:8081");
        assert_eq!(parse(":8081").unwrap(), "http://localhost:8081");
        assert_eq!(parse("[::1]:80").unwrap(), "http://[::1]:80");
        for bad in ["", "8081", "app", "app:0", "http://app:80", "a/b:80", "u@app:80", "a b:1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bare_port_means_all_addresses() {
        let parse = |text| parse_listen_addr(text).unwrap().to_string();
        assert_eq!(parse(":20202"), "[::]:20202");
        assert_eq!(parse("10.0.0.1:5"), "10.0.0.1:5");
        assert_eq!(parse("[::1]:0"), "[::1]:0");
        assert!(is_loopback(parse_listen_addr("localhost:1").unwrap().ip()));
        for bad in ["20202", "localhost", "host:port", "", "::1:20202"] {
            assert!(parse_listen_addr(bad).is_err(), "{bad}");
        }
    }
}
