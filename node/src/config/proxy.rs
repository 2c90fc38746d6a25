//! Section `proxy`: the HTTP proxy before the application.

use std::net::SocketAddr;
use std::time::Duration;

use litefs_store::DbName;
use serde::Deserialize;
use serde_saphyr::Spanned;

use super::endpoint::parse_target;
use super::yaml::{Env, ValueError, filled, value};
use super::{Endpoint, parse_duration, parse_listen_addr};

/// Set on Fly.io's machines, where the platform's own proxy understands `fly-replay`.
const FLY_MARK: &str = "FLY_APP_NAME";

/// Section `proxy`.
#[derive(Debug, Clone, PartialEq)]
pub struct ProxyConfig {
    /// Where the proxy listens. Port 0 lets the system choose.
    pub addr: SocketAddr,
    /// The application.
    pub target: Endpoint,
    /// The database whose position a client's cookie names.
    pub db: DbName,
    /// The health page fails beyond this lag; `None`: never. Default: 10 s.
    pub max_lag: Option<Duration>,
    /// Log what is done with each request.
    pub debug: bool,
    /// Paths that go to the application as they are.
    pub passthrough: Vec<PathPattern>,
    /// Paths whose GET and HEAD requests go to the primary too.
    pub always_forward: Vec<PathPattern>,
    /// What a replica does with a write. Default: [`PrimaryRedirect::FlyReplay`] on Fly.io,
    /// [`PrimaryRedirect::Forward`] elsewhere.
    pub primary_redirect: PrimaryRedirect,
    /// How long a write waits for a primary. Default: 5 s.
    pub primary_redirect_timeout: Duration,
    /// Longest time from a request's first byte to its last. Default: `None`, unlimited.
    pub read_timeout: Option<Duration>,
    /// Longest time for a request's head. Default: 10 s.
    pub read_header_timeout: Option<Duration>,
    /// Longest time from a request's head to the end of its response. Default: `None`, unlimited.
    pub write_timeout: Option<Duration>,
    /// How long a connection may wait for its next request. Default: 30 s.
    pub idle_timeout: Option<Duration>,
}

/// What a replica's proxy does with a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrimaryRedirect {
    /// Sends it to the primary, and the response back.
    Forward,
    /// Answers with `fly-replay: instance=<primary>`: Fly.io's proxy then asks the primary.
    FlyReplay,
}

impl ProxyConfig {
    /// A proxy at `addr` before the application at `target` (`HOST:PORT`), with every default.
    ///
    /// # Errors
    /// `target` or `db` cannot be what they should name.
    pub fn new(addr: SocketAddr, target: &str, db: &str) -> Result<Self, super::ConfigError> {
        Ok(Self {
            addr,
            target: parse_target(target)?,
            db: DbName::new(db).map_err(|e| super::ConfigError::new(e.to_string()))?,
            max_lag: Some(Duration::from_secs(10)),
            debug: false,
            passthrough: Vec::new(),
            always_forward: Vec::new(),
            primary_redirect: PrimaryRedirect::Forward,
            primary_redirect_timeout: Duration::from_secs(5),
            read_timeout: None,
            read_header_timeout: Some(Duration::from_secs(10)),
            write_timeout: None,
            idle_timeout: Some(Duration::from_secs(30)),
        })
    }
}

/// A path, in which `*` stands for any text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPattern(String);

impl PathPattern {
    /// Every text is a pattern.
    pub fn new(pattern: impl Into<String>) -> Self {
        Self(pattern.into())
    }

    /// True if the whole of `path` fits. `path` is what a URL means, without percent-encoding.
    pub fn matches(&self, path: &[u8]) -> bool {
        let pattern = self.0.as_bytes();
        let (mut p, mut t) = (0, 0);
        // The last `*` so far, and the end of the text that it stands for.
        let mut star: Option<(usize, usize)> = None;
        while t < path.len() {
            if pattern.get(p) == Some(&b'*') {
                star = Some((p, t));
                p += 1;
            } else if pattern.get(p) == Some(&path[t]) {
                p += 1;
                t += 1;
            } else if let Some((at, end)) = star {
                star = Some((at, end + 1));
                (p, t) = (at + 1, end + 1);
            } else {
                return false;
            }
        }
        pattern[p..].iter().all(|&byte| byte == b'*')
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct RawProxy {
    addr: Option<Spanned<String>>,
    target: Option<Spanned<String>>,
    db: Option<Spanned<String>>,
    max_lag: Option<Spanned<String>>,
    debug: Option<bool>,
    passthrough: Option<Vec<String>>,
    always_forward: Option<Vec<String>>,
    primary_redirect: Option<Spanned<String>>,
    primary_redirect_timeout: Option<Spanned<String>>,
    read_timeout: Option<Spanned<String>>,
    read_header_timeout: Option<Spanned<String>>,
    write_timeout: Option<Spanned<String>>,
    idle_timeout: Option<Spanned<String>>,
}

impl RawProxy {
    /// Only `target` switches the proxy on, as in LiteFS.
    pub(super) fn is_on(&self) -> bool {
        filled(&self.target).is_some()
    }

    /// The proxy, if there is one; the other keys' values are checked in any case.
    pub(super) fn read(&self, env: Env<'_>) -> Result<Option<ProxyConfig>, ValueError> {
        let times = self.times()?;
        let redirect = self.redirect(env)?;
        let Some(target) = filled(&self.target) else { return Ok(None) };
        let needs = |key: &str, example: &str| {
            let line = target.referenced.line();
            (line, format!("proxy.target needs proxy.{key} beside it, such as {example}"))
        };
        let addr = filled(&self.addr).ok_or_else(|| needs("addr", "\":8080\""))?;
        let addr = value(addr, parse_listen_addr)?;
        let db = filled(&self.db).ok_or_else(|| needs("db", "app.db"))?;
        value(target, parse_target)?;
        let mut proxy = value(db, |db| ProxyConfig::new(addr, &target.value, db))?;
        times.apply(&mut proxy);
        proxy.primary_redirect = redirect;
        proxy.debug = self.debug.unwrap_or(false);
        let patterns = |texts: &Option<Vec<String>>| {
            texts.iter().flatten().map(PathPattern::new).collect::<Vec<_>>()
        };
        proxy.passthrough = patterns(&self.passthrough);
        proxy.always_forward = patterns(&self.always_forward);
        Ok(Some(proxy))
    }

    fn redirect(&self, env: Env<'_>) -> Result<PrimaryRedirect, ValueError> {
        let Some(text) = filled(&self.primary_redirect) else {
            let name = match env {
                Some(lookup) => lookup(FLY_MARK),
                None => super::expand::process_env(FLY_MARK),
            };
            let on_fly = name.is_some_and(|name| !name.is_empty());
            return Ok(if on_fly { PrimaryRedirect::FlyReplay } else { PrimaryRedirect::Forward });
        };
        value(text, |text| match text {
            "forward" => Ok(PrimaryRedirect::Forward),
            "fly-replay" => Ok(PrimaryRedirect::FlyReplay),
            other => {
                Err(format!("proxy.primary-redirect: {other:?} is neither forward nor fly-replay"))
            }
        })
    }

    fn times(&self) -> Result<Times, ValueError> {
        let read = |text: &Option<Spanned<String>>| {
            filled(text).map(|text| value(text, parse_duration)).transpose()
        };
        Ok(Times {
            max_lag: read(&self.max_lag)?,
            primary_redirect: read(&self.primary_redirect_timeout)?,
            read: read(&self.read_timeout)?,
            read_header: read(&self.read_header_timeout)?,
            write: read(&self.write_timeout)?,
            idle: read(&self.idle_timeout)?,
        })
    }
}

/// The durations that are given.
struct Times {
    max_lag: Option<Duration>,
    primary_redirect: Option<Duration>,
    read: Option<Duration>,
    read_header: Option<Duration>,
    write: Option<Duration>,
    idle: Option<Duration>,
}

impl Times {
    /// Zero means no limit. As in Go's server, which LiteFS has: where the limit for the head or
    /// for idling is zero, the one for the whole request counts.
    fn apply(&self, proxy: &mut ProxyConfig) {
        let limit = |given: Option<Duration>, default: Option<Duration>| {
            given.map_or(default, |given| (!given.is_zero()).then_some(given))
        };
        proxy.max_lag = limit(self.max_lag, proxy.max_lag);
        proxy.primary_redirect_timeout =
            self.primary_redirect.unwrap_or(proxy.primary_redirect_timeout);
        proxy.read_timeout = limit(self.read, proxy.read_timeout);
        proxy.write_timeout = limit(self.write, proxy.write_timeout);
        let whole = proxy.read_timeout;
        proxy.read_header_timeout = limit(self.read_header, proxy.read_header_timeout).or(whole);
        proxy.idle_timeout = limit(self.idle, proxy.idle_timeout).or(whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What LiteFS makes of the pattern: quoted, `*` as `.*`, anchored (http/http.go).
    #[test]
    fn patterns_match_whole_paths_as_in_litefs() {
        let cases: [(&str, &[&str], &[&str]); 6] = [
            ("/a", &["/a"], &["/a/", "/ab", "x/a", "/A", ""]),
            ("/debug/*", &["/debug/", "/debug/x/y"], &["/debug", "/x/debug/"]),
            ("*.png", &[".png", "/a/b.png"], &["/a.pngx", "/apng"]),
            ("/a*b*c", &["/abc", "/a1b2c", "/abcbc", "/aXbYbZc"], &["/ab", "/abcd"]),
            ("*", &["", "/", "/x"], &[]),
            ("/(a|b).x?", &["/(a|b).x?"], &["/a.x", "/b.xy"]),
        ];
        for (pattern, hits, misses) in cases {
            let pattern = PathPattern::new(pattern);
            for path in hits {
                assert!(pattern.matches(path.as_bytes()), "{pattern:?} {path}");
            }
            for path in misses {
                assert!(!pattern.matches(path.as_bytes()), "{pattern:?} {path}");
            }
        }
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let pattern = PathPattern::new("*a".repeat(200) + "b");
        assert!(!pattern.matches("a".repeat(20_000).as_bytes()));
    }
}
