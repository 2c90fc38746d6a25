//! Section `replication`: what a commit needs from the replicas.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::yaml::{ValueError, filled, value};
use super::{ConfigError, parse_duration};

/// How long commits wait for replicas before something is done about it.
const SYNC_TIMEOUT: Duration = Duration::from_secs(5);

/// The most replicas that commits can be made to wait for.
pub const SYNC_REPLICAS_MAX: usize = 16;

/// When a commit is acknowledged. It should be the same on all nodes of a cluster: each of them may
/// become the primary, and a replica syncs at once only if it knows that somebody waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReplicationMode {
    /// Whatever the replicas have.
    #[default]
    Async,
    /// Only while a replica is near.
    Bounded(Bounds),
    /// When replicas have it on disk.
    Sync(SyncSettings),
}

/// How far the nearest replica may be behind; at least one bound is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// How long ago it may last have had everything.
    pub max_lag: Option<Duration>,
    /// How many transactions of the database it may lack.
    pub max_transactions: Option<u64>,
}

/// Whom a commit waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncSettings {
    /// So many replicas, 1 to [`SYNC_REPLICAS_MAX`]. Default in YAML: 1.
    pub replicas: usize,
    /// For so long, at least 1 ms. Default in YAML: 5 s.
    pub timeout: Duration,
    /// And then?
    pub on_timeout: OnTimeout,
}

/// What happens to a commit that replicas did not confirm in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnTimeout {
    /// It waits on; the log says so.
    Wait,
    /// It is acknowledged, as are others, until the replicas are back.
    Async,
}

impl ReplicationMode {
    /// Its name in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Async => "async",
            Self::Bounded(_) => "bounded",
            Self::Sync(_) => "sync",
        }
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        match self {
            Self::Bounded(Bounds { max_lag: None, max_transactions: None }) => {
                Err(ConfigError::new(
                    "replication.mode: bounded needs replication.max-lag (such as 500ms) or \
                     replication.max-transactions, or both",
                ))
            }
            Self::Sync(sync) if !(1..=SYNC_REPLICAS_MAX).contains(&sync.replicas) => {
                Err(ConfigError::new(format!(
                    "replication.replicas: {} is not between 1 and {SYNC_REPLICAS_MAX}",
                    sync.replicas
                )))
            }
            Self::Sync(sync) if sync.timeout < Duration::from_millis(1) => {
                Err(ConfigError::new("replication.timeout must be at least 1ms"))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.max_lag, self.max_transactions) {
            (Some(lag), Some(n)) => write!(f, "{} ms and {n} transactions", lag.as_millis()),
            (Some(lag), None) => write!(f, "{} ms", lag.as_millis()),
            (None, Some(n)) => write!(f, "{n} transactions"),
            (None, None) => write!(f, "any distance"),
        }
    }
}

impl fmt::Display for ReplicationMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Async => write!(f, "async"),
            Self::Bounded(bounds) => write!(f, "bounded, a replica within {bounds}"),
            Self::Sync(sync) => write!(f, "sync, {} replicas", sync.replicas),
        }
    }
}

/// As the file has it.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct RawReplication {
    pub(super) forward_writes: Option<bool>,
    mode: Option<Spanned<String>>,
    replicas: Option<Spanned<usize>>,
    timeout: Option<Spanned<String>>,
    on_timeout: Option<Spanned<String>>,
    max_lag: Option<Spanned<String>>,
    max_transactions: Option<Spanned<u64>>,
}

impl RawReplication {
    pub(super) fn mode(&self) -> Result<ReplicationMode, ValueError> {
        let mode = self.mode.as_ref().map_or("async", |mode| &mode.value);
        match mode {
            "async" | "bounded" | "sync" => self.check_keys(mode)?,
            other => {
                let line = self.mode.as_ref().map_or(1, |mode| mode.referenced.line());
                return Err((
                    line,
                    format!("replication.mode: {other:?} is not async, bounded or sync"),
                ));
            }
        }
        let duration = |text: &Option<Spanned<String>>| {
            filled(text).map(|text| value(text, parse_duration)).transpose()
        };
        Ok(match mode {
            "bounded" => ReplicationMode::Bounded(Bounds {
                max_lag: duration(&self.max_lag)?,
                max_transactions: self
                    .max_transactions
                    .as_ref()
                    .map(|most| most.value)
                    .filter(|n| *n > 0),
            }),
            "sync" => ReplicationMode::Sync(SyncSettings {
                replicas: self.replicas.as_ref().map_or(1, |count| count.value),
                timeout: duration(&self.timeout)?.unwrap_or(SYNC_TIMEOUT),
                on_timeout: match &self.on_timeout {
                    Some(text) => value(text, parse_on_timeout)?,
                    None => OnTimeout::Wait,
                },
            }),
            _ => ReplicationMode::Async,
        })
    }

    /// A key of another mode would have no effect, and could not have been meant, unless it says
    /// what is so anyway.
    fn check_keys(&self, mode: &str) -> Result<(), ValueError> {
        let line = |text: &Option<Spanned<String>>, default: &str| {
            text.as_ref().filter(|t| t.value != default).map(|t| t.referenced.line())
        };
        let replicas = self.replicas.as_ref().filter(|count| count.value != 1);
        let most = self.max_transactions.as_ref().filter(|most| most.value != 0);
        let keys = [
            ("replicas", "sync", replicas.map(|count| count.referenced.line())),
            ("timeout", "sync", line(&self.timeout, "5s")),
            ("on-timeout", "sync", line(&self.on_timeout, "wait")),
            ("max-lag", "bounded", line(&self.max_lag, "")),
            ("max-transactions", "bounded", most.map(|most| most.referenced.line())),
        ];
        for (key, of, line) in keys {
            if let Some(line) = line.filter(|_| of != mode) {
                return Err((
                    line,
                    format!(
                        "replication.{key} is of replication.mode: {of}, and the mode is {mode}"
                    ),
                ));
            }
        }
        Ok(())
    }
}

fn parse_on_timeout(text: &str) -> Result<OnTimeout, String> {
    match text {
        "wait" => Ok(OnTimeout::Wait),
        "async" => Ok(OnTimeout::Async),
        other => Err(format!("replication.on-timeout: {other:?} is neither wait nor async")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, yaml};
    use super::*;

    #[test]
    fn each_replication_mode_takes_its_own_keys_only() {
        let mode = |text: &str| {
            let parsed = yaml::parse(&format!("replication:\n{text}"), "x", None);
            parsed.map(|config: Config| config.replication).map_err(|error| error.to_string())
        };
        assert_eq!(mode("  mode: async\n"), Ok(ReplicationMode::Async));
        let sync = SyncSettings {
            replicas: 1,
            timeout: Duration::from_secs(5),
            on_timeout: OnTimeout::Wait,
        };
        assert_eq!(mode("  mode: sync\n"), Ok(ReplicationMode::Sync(sync)));
        let keys = "  mode: sync\n  replicas: 2\n  timeout: 1s\n  on-timeout: async\n";
        let all = SyncSettings {
            replicas: 2,
            timeout: Duration::from_secs(1),
            on_timeout: OnTimeout::Async,
        };
        assert_eq!(mode(keys), Ok(ReplicationMode::Sync(all)));
        let bounds =
            Bounds { max_lag: Some(Duration::from_millis(300)), max_transactions: Some(7) };
        let keys = "  mode: bounded\n  max-lag: 300ms\n  max-transactions: 7\n";
        assert_eq!(mode(keys), Ok(ReplicationMode::Bounded(bounds)));
        for (text, needed) in [
            ("  mode: semi\n", "not async, bounded or sync"),
            ("  mode: bounded\n", "max-lag"),
            ("  mode: sync\n  replicas: 0\n", "between 1 and 16"),
            ("  mode: sync\n  timeout: 0s\n", "at least 1ms"),
            ("  mode: sync\n  on-timeout: fail\n", "neither wait nor async"),
            ("  mode: sync\n  max-lag: 1s\n", "of replication.mode: bounded"),
            ("  replicas: 2\n", "of replication.mode: sync"),
            ("  mode: bounded\n  max-lag: 1s\n  timeout: 1s\n", "of replication.mode: sync"),
        ] {
            let error = mode(text).unwrap_err();
            assert!(error.contains(needed), "{text:?}: {error}");
        }
    }
}
