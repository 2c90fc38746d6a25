//! Section `lease.consul`: where Consul is, and how the lease behaves in it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::{ConfigError, Endpoint};

/// The shortest time to live that Consul accepts for a session.
const TTL_MIN: Duration = Duration::from_secs(10);
/// The longest.
const TTL_MAX: Duration = Duration::from_secs(86_400);
/// The longest lock-delay that Consul accepts.
const LOCK_DELAY_MAX: Duration = Duration::from_secs(60);

/// Section `lease.consul`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsulConfig {
    /// Where Consul's HTTP API is.
    pub url: ConsulUrl,
    /// The key that the primary holds; below it lie the cluster's id and the nodes' records.
    pub key: String,
    /// How long Consul keeps the session of a node that does not renew it; it may take up to
    /// twice that time. 10 s (the default) to 24 h.
    pub ttl: Duration,
    /// How long Consul gives the key to nobody after its holder's session was lost, at most 60 s.
    /// Nothing depends on it: candidates wait by themselves. Default: 1 s.
    pub lock_delay: Duration,
    /// Replicas that have lost the primary take the lease before Consul's time is over. Default:
    /// true.
    pub fast_failover: bool,
    /// The authority of Consul's certificate (PEM); `None`: those that the system trusts.
    pub ca: Option<PathBuf>,
}

impl ConsulConfig {
    /// LiteFS's defaults.
    pub fn new(url: ConsulUrl, key: impl Into<String>) -> Self {
        Self {
            url,
            key: key.into(),
            ttl: Duration::from_secs(10),
            lock_delay: Duration::from_secs(1),
            fast_failover: true,
            ca: None,
        }
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let error = |text: String| Err(ConfigError::new(text));
        if self.key.trim_matches('/').is_empty() || self.key.chars().any(char::is_control) {
            return error(format!(
                "lease.consul.key {:?} names no key: write a name for this cluster, such as \
                 litefs/primary",
                self.key
            ));
        }
        if !(TTL_MIN..=TTL_MAX).contains(&self.ttl) {
            return error(format!(
                "lease.consul.ttl is {:?}, but Consul accepts {TTL_MIN:?} to 24h",
                self.ttl
            ));
        }
        if self.lock_delay > LOCK_DELAY_MAX {
            return error(format!(
                "lease.consul.lock-delay is {:?}, but Consul accepts at most {LOCK_DELAY_MAX:?}",
                self.lock_delay
            ));
        }
        if self.ca.is_some() && !self.url.https {
            return error(format!(
                "lease.consul.ca is of use with https only, but lease.consul.url is {}",
                self.url
            ));
        }
        Ok(())
    }
}

/// `http[s]://[:TOKEN@]HOST[:PORT][/PREFIX]`, as LiteFS reads it: the password is the token, and
/// the path goes before every key. It is shown without the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsulUrl {
    https: bool,
    endpoint: Endpoint,
    prefix: String,
    token: Option<Token>,
}

/// A secret, which no log line shows.
#[derive(Clone, PartialEq, Eq)]
struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl ConsulUrl {
    /// True for TLS.
    pub fn is_https(&self) -> bool {
        self.https
    }

    /// The host's name or address, and the port.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What goes before every key, without slashes around it; may be empty.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The token in the URL, else `CONSUL_HTTP_TOKEN` of the environment.
    pub fn token(&self) -> Option<String> {
        let own = self.token.as_ref().map(|token| token.0.clone());
        own.or_else(|| std::env::var("CONSUL_HTTP_TOKEN").ok()).filter(|token| !token.is_empty())
    }

    /// True if a token would go to another host unencrypted.
    pub fn exposes_token(&self) -> bool {
        !self.https && !self.endpoint.is_loopback() && self.token().is_some()
    }

    /// `http[s]://HOST:PORT`.
    pub fn base(&self) -> String {
        let base = self.endpoint.to_string();
        if self.https { base.replacen("http", "https", 1) } else { base }
    }
}

impl fmt::Display for ConsulUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        write!(f, "{}{slash}{}", self.base(), self.prefix)
    }
}

impl FromStr for ConsulUrl {
    type Err = ConfigError;

    fn from_str(url: &str) -> Result<Self, ConfigError> {
        // Not with the URL itself: it may hold a token.
        let bad = |why: &str| {
            ConfigError::new(format!(
                "lease.consul.url {why}: write it like http://127.0.0.1:8500 or \
                 https://:TOKEN@consul.internal:8501/prefix"
            ))
        };
        let (https, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return Err(bad("begins with neither http:// nor https://")),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if path.contains(['?', '#']) || path.chars().any(char::is_control) {
            return Err(bad("has more than a path after the host"));
        }
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (user, host),
            None => ("", authority),
        };
        let token = match user.split_once(':') {
            Some((_, "")) | None => None,
            Some((_, password)) => {
                let text = percent_decode(password).filter(|text| text.bytes().all(is_visible));
                Some(Token(text.ok_or_else(|| bad("has a token that cannot be read"))?))
            }
        };
        // A port is what follows the last colon that is not part of an IPv6 address.
        let has_port = host.rfind(':').is_some_and(|colon| !host[colon..].contains(']'));
        let default = if https { ":443" } else { ":80" };
        let host = format!("http://{host}{}", if has_port { "" } else { default });
        let endpoint = host.parse().map_err(|_| bad("names no host"))?;
        Ok(Self { https, endpoint, prefix: path.trim_matches('/').to_owned(), token })
    }
}

/// What may stand in an HTTP header.
fn is_visible(byte: u8) -> bool {
    (0x21..0x7f).contains(&byte)
}

/// Writes all bytes but unreserved ones (RFC 3986) and those of `keep` as `%XX`.
pub(crate) fn percent_encode(text: &str, keep: &[u8]) -> String {
    let encode = |byte: u8| match byte {
        b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        _ if byte.is_ascii_alphanumeric() || keep.contains(&byte) => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
        out.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> ConsulUrl {
        text.parse().unwrap()
    }

    #[test]
    fn a_url_is_read_as_litefs_reads_it() {
        let plain = url("http://localhost:8500");
        assert_eq!((plain.base().as_str(), plain.prefix()), ("http://localhost:8500", ""));
        assert!(!plain.is_https());
        let full = url("https://:s%2Fe@consul.example/my/app/");
        assert_eq!(full.base(), "https://consul.example:443");
        assert_eq!(full.prefix(), "my/app");
        assert_eq!(full.token().unwrap(), "s/e");
        let v6 = url("http://user:t@[::1]:8500/x");
        assert_eq!((v6.endpoint().host(), v6.endpoint().port()), ("::1", 8500));
        assert_eq!(url("http://[::1]").endpoint().port(), 80);
    }

    #[test]
    fn no_text_of_a_url_shows_its_token() {
        let secret = url("http://:hunter2@10.0.0.1:8500/p");
        for text in [format!("{secret}"), format!("{secret:?}")] {
            assert!(!text.contains("hunter2"), "{text}");
        }
        for broken in ["http://:hunter2@", "http://:hunter2@h:x", "http://:hunter2%@h:1"] {
            let text = broken.parse::<ConsulUrl>().unwrap_err().to_string();
            assert!(!text.contains("hunter2"), "{text}");
        }
        assert!(secret.exposes_token());
        assert!(!url("https://:hunter2@10.0.0.1:8500").exposes_token());
        assert!(!url("http://:hunter2@127.0.0.1:8500").exposes_token());
    }

    #[test]
    fn near_misses_are_refused() {
        for bad in ["", "localhost:8500", "ftp://h", "http://", "http://:8500", "http://h/a?b"] {
            assert!(bad.parse::<ConsulUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_consul_would_refuse_is_refused_at_the_start() {
        let config = || ConsulConfig::new(url("http://localhost:8500"), "k");
        config().validate().unwrap();
        let refused = |adapt: fn(&mut ConsulConfig), needed: &str| {
            let mut config = config();
            adapt(&mut config);
            let text = config.validate().unwrap_err().to_string();
            assert!(text.contains(needed), "{text}");
        };
        refused(|c| c.ttl = Duration::from_millis(9999), "lease.consul.ttl");
        refused(|c| c.ttl = Duration::from_secs(86_401), "lease.consul.ttl");
        refused(|c| c.lock_delay = Duration::from_secs(61), "lock-delay");
        refused(|c| c.key = "/".to_owned(), "lease.consul.key");
        refused(|c| c.ca = Some("ca.pem".into()), "https");
    }
}
