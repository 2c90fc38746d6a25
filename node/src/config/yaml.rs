//! `litefs.yml`: LiteFS's keys and ours, strictly.
//!
//! Every key of LiteFS is known. A key whose part this build does not serve is an error where
//! ignoring it would break a promise (a backup), and a notice where nothing is promised. Any
//! other key is an error with its line and the closest known key. Ours are `tls.*`,
//! `replication.*`, `http.token`, `http.token-file`, `data.durability`, `data.log-size`,
//! `proxy.primary-redirect`, `lease.consul.fast-failover` and `lease.consul.ca`.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use litefs_store::{DbName, Durability};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_saphyr::{Error, Spanned};

use super::exec::{self, RawExec};
use super::proxy::RawProxy;
use super::replication::RawReplication;
use super::{
    Config, ConfigError, ConsulConfig, LogFormat, Token, TraceConfig, expand, parse_duration,
    parse_listen_addr, parse_size,
};
use crate::tls::TlsFiles;

/// Answers with an environment variable's value; `None` leaves `$` alone.
pub(super) type Env<'a> = Option<&'a dyn Fn(&str) -> Option<String>>;

/// Reads and validates a configuration; errors begin with `origin` and the line.
pub(super) fn parse(text: &str, origin: &str, env: Env<'_>) -> Result<Config, ConfigError> {
    let at =
        |line: u64, message: &dyn Display| ConfigError::new(format!("{origin}:{line}: {message}"));
    let expanded = match env {
        Some(lookup) => expand::expand(text, lookup).map_err(|(l, m)| at(l as u64, &m))?,
        None => text.to_owned(),
    };
    // A file with nothing but comments is a configuration with every default.
    let raw: Option<Raw> = serde_saphyr::from_str(&expanded).map_err(|e| {
        let line = e.location().map_or(1, |l| l.line());
        at(line, &explain(e.without_snippet()))
    })?;
    let raw = raw.unwrap_or_default();
    let mut refusals = Refusals(Vec::new());
    refusals.collect(&raw);
    if !refusals.0.is_empty() {
        refusals.0.sort();
        let lines: Vec<String> =
            refusals.0.iter().map(|(line, text)| at(*line, text).to_string()).collect();
        return Err(ConfigError::new(lines.join("\n")));
    }
    let mut config = raw.into_config(env).map_err(|(line, message)| at(line, &message))?;
    if env.and_then(|lookup| lookup("LITEFS_CLOUD_TOKEN")).is_some_and(|token| !token.is_empty()) {
        config.notices.push("LITEFS_CLOUD_TOKEN: this node writes no backups".to_owned());
    }
    config.validate().map_err(|e| ConfigError::new(format!("{origin}: {e}")))?;
    Ok(config)
}

/// An error in a value: its line and what is wrong.
pub(super) type ValueError = (u64, String);

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct Raw {
    exit_on_error: Option<bool>,
    skip_sync: Option<bool>,
    strict_verify: Option<bool>,
    exec: Option<Spanned<RawExec>>,
    data: Option<RawData>,
    fuse: Option<RawFuse>,
    http: Option<RawHttp>,
    proxy: Option<RawProxy>,
    lease: Option<RawLease>,
    replication: Option<RawReplication>,
    backup: Option<RawBackup>,
    log: Option<RawLog>,
    tracing: Option<RawTracing>,
    tls: Option<RawTls>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawData {
    dir: Option<PathBuf>,
    compress: Option<bool>,
    retention: Option<Spanned<String>>,
    retention_monitor_interval: Option<Spanned<String>>,
    durability: Option<Spanned<String>>,
    log_size: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawFuse {
    dir: Option<PathBuf>,
    allow_other: Option<bool>,
    debug: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawHttp {
    addr: Option<Spanned<String>>,
    token: Option<Spanned<String>>,
    token_file: Option<Spanned<String>>,
    snapshot_timeout: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawLease {
    #[serde(rename = "type")]
    kind: Option<Spanned<String>>,
    hostname: Option<String>,
    advertise_url: Option<Spanned<String>>,
    candidate: Option<bool>,
    promote: Option<Spanned<bool>>,
    reconnect_delay: Option<Spanned<String>>,
    demote_delay: Option<Spanned<String>>,
    databases: Vec<Spanned<String>>,
    consul: Option<RawConsul>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawConsul {
    url: Option<Spanned<String>>,
    key: Option<Spanned<String>>,
    ttl: Option<Spanned<String>>,
    lock_delay: Option<Spanned<String>>,
    fast_failover: Option<bool>,
    ca: Option<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawBackup {
    #[serde(rename = "type")]
    kind: Option<Spanned<String>>,
    #[serde(rename = "path")]
    _path: Option<IgnoredAny>,
    #[serde(rename = "url")]
    _url: Option<IgnoredAny>,
    #[serde(rename = "cluster")]
    _cluster: Option<IgnoredAny>,
    #[serde(rename = "auth-token")]
    _auth_token: Option<IgnoredAny>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawLog {
    format: Option<Spanned<String>>,
    timestamp: Option<bool>,
    debug: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawTracing {
    enabled: Option<bool>,
    path: Option<PathBuf>,
    max_size: Option<Spanned<u64>>,
    max_count: Option<usize>,
    compress: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawTls {
    ca: Option<Spanned<String>>,
    cert: Option<Spanned<String>>,
    key: Option<Spanned<String>>,
    insecure: Option<bool>,
}

/// What the file asks for and this build cannot do: (line, what to change).
struct Refusals(Vec<(u64, String)>);

impl Refusals {
    fn collect(&mut self, raw: &Raw) {
        let backup = raw.backup.as_ref().and_then(|b| filled(&b.kind));
        self.refuse(
            backup,
            "backup.type: this node writes no backups, and must not let you believe so: remove \
             backup.type, and run `litefs-node export` at the times you choose",
        );
        let Some(lease) = raw.lease.as_ref().filter(|lease| lease.is_static()) else { return };
        let promote = lease.promote.as_ref().filter(|promote| promote.value);
        self.refuse(promote, "lease.promote: a static lease never moves: remove lease.promote");
    }

    fn refuse<T>(&mut self, found: Option<&Spanned<T>>, message: &str) {
        if let Some(found) = found {
            self.0.push((found.referenced.line(), message.to_owned()));
        }
    }
}

/// The value, unless it is absent or empty (which LiteFS takes for absent).
pub(super) fn filled(text: &Option<Spanned<String>>) -> Option<&Spanned<String>> {
    text.as_ref().filter(|text| !text.value.is_empty())
}

fn filled_path(path: &Option<PathBuf>) -> Option<&PathBuf> {
    path.as_ref().filter(|path| !path.as_os_str().is_empty())
}

impl Raw {
    fn into_config(self, env: Env<'_>) -> Result<Config, ValueError> {
        let mut config = Config::new("/var/lib/litefs");
        config.notices = self.notices();
        config.exec.skip_sync = self.skip_sync.unwrap_or(false);
        config.exec.exit_on_error = self.exit_on_error.unwrap_or(true);
        if let Some(exec) = self.exec {
            config.exec.commands = exec::commands(exec)?;
        }
        let data = self.data.unwrap_or_default();
        data.apply(&mut config)?;
        if let Some(http) = self.http {
            http.apply(&mut config)?;
        }
        if let Some(fuse) = self.fuse {
            fuse.apply(&mut config);
        }
        if let Some(proxy) = self.proxy {
            config.proxy = proxy.read(env)?;
        }
        if let Some(lease) = self.lease {
            lease.apply(&mut config)?;
        }
        if let Some(replication) = &self.replication {
            config.replication = replication.mode()?;
            config.forward_writes = replication.forward_writes.unwrap_or(false);
        }
        if let Some(log) = self.log {
            log.apply(&mut config)?;
        }
        if let Some(tracing) = self.tracing {
            tracing.apply(&mut config)?;
        }
        if let Some(tls) = self.tls {
            tls.apply(&mut config)?;
        }
        Ok(config)
    }

    /// The keys of LiteFS that are set and have no meaning here, each with the reason.
    fn notices(&self) -> Vec<String> {
        let data = self.data.as_ref();
        let fuse = self.fuse.as_ref().filter(|f| filled_path(&f.dir).is_none());
        let lease = self.lease.as_ref().filter(|lease| lease.is_static());
        let notes = [
            (self.strict_verify.is_some(), "strict-verify: every page read is verified already"),
            (
                data.is_some_and(|d| d.compress.is_some()),
                "data.compress: the log on disk is never compressed",
            ),
            (
                data.is_some_and(|d| d.retention_monitor_interval.is_some()),
                "data.retention-monitor-interval: retention is applied with each fold",
            ),
            (
                fuse.is_some_and(|f| f.allow_other == Some(true) || f.debug == Some(true)),
                "fuse: without fuse.dir there is no mount",
            ),
            (
                self.tracing.as_ref().is_some_and(|t| t.compress == Some(true)),
                "tracing.compress: full trace logs are not compressed",
            ),
            (
                self.proxy.as_ref().is_some_and(|proxy| !proxy.is_on()),
                "proxy: without proxy.target there is no proxy",
            ),
            (
                self.http.as_ref().is_some_and(|h| h.snapshot_timeout.is_some()),
                "http.snapshot-timeout: a slow peer holds no lock, and is dropped when it stalls",
            ),
            (
                lease.is_some_and(|l| l.consul.is_some() || l.demote_delay.is_some()),
                "lease.consul, lease.demote-delay: the lease is static",
            ),
        ];
        notes.iter().filter(|(set, _)| *set).map(|(_, note)| (*note).to_owned()).collect()
    }
}

impl RawData {
    fn apply(self, config: &mut Config) -> Result<(), ValueError> {
        if let Some(dir) = filled_path(&self.dir) {
            config.data.dir = dir.clone();
        }
        if let Some(retention) = &self.retention {
            config.data.retention = value(retention, parse_duration)?;
        }
        check(&self.retention_monitor_interval, parse_duration)?;
        if let Some(durability) = &self.durability {
            config.data.durability = value(durability, parse_durability)?;
        }
        if let Some(size) = filled(&self.log_size) {
            config.data.log_size = Some(value(size, parse_size)?);
        }
        Ok(())
    }
}

impl RawHttp {
    fn apply(&self, config: &mut Config) -> Result<(), ValueError> {
        if let Some(addr) = filled(&self.addr) {
            config.http.addr = value(addr, parse_listen_addr)?;
        }
        check(&self.snapshot_timeout, parse_duration)?;
        // An empty one is an error: it would open the API that it was meant to protect.
        config.http.token = match (&self.token, &self.token_file) {
            (Some(token), Some(_)) => {
                let message = "http: token and token-file exclude each other".to_owned();
                return Err((token.referenced.line(), message));
            }
            (Some(token), None) => Some(value(token, Token::new)?),
            (None, Some(file)) => Some(value(file, |path| Token::from_file(Path::new(path)))?),
            (None, None) => None,
        };
        Ok(())
    }
}

impl RawFuse {
    fn apply(&self, config: &mut Config) {
        config.fuse.dir = filled_path(&self.dir).cloned();
        config.fuse.allow_other = self.allow_other.unwrap_or(false);
        config.fuse.debug = self.debug.unwrap_or(false);
    }
}

impl RawLease {
    fn is_static(&self) -> bool {
        self.kind.as_ref().is_some_and(|kind| kind.value == "static")
    }

    fn apply(self, config: &mut Config) -> Result<(), ValueError> {
        let lease = &mut config.lease;
        match &self.kind {
            Some(kind) if kind.value == "static" => {}
            Some(kind) if kind.value == "consul" => {
                let consul = self.consul.unwrap_or_default();
                lease.consul = Some(consul.into_config(kind.referenced.line())?);
            }
            Some(kind) => {
                let message = format!("lease.type: {:?} is neither static nor consul", kind.value);
                return Err((kind.referenced.line(), message));
            }
            None => {
                let message = "lease.type is missing: write lease.type: static, or consul";
                return Err((1, message.to_owned()));
            }
        }
        lease.candidate = self.candidate.unwrap_or(true);
        lease.promote = self.promote.is_some_and(|promote| promote.value);
        lease.hostname = self.hostname.filter(|name| !name.is_empty());
        if let Some(url) = filled(&self.advertise_url) {
            lease.advertise_url = Some(value(url, |text| text.parse())?);
        }
        if let Some(delay) = &self.reconnect_delay {
            lease.reconnect_delay = value(delay, parse_duration)?;
        }
        if let Some(delay) = &self.demote_delay {
            lease.demote_delay = value(delay, parse_duration)?;
        }
        for name in &self.databases {
            lease.databases.push(value(name, DbName::new)?);
        }
        Ok(())
    }
}

impl RawConsul {
    /// `line` is that of `lease.type`.
    fn into_config(self, line: u64) -> Result<ConsulConfig, ValueError> {
        let missing = |key: &str| (line, format!("lease.type is consul, so {key} is needed"));
        let url = filled(&self.url).ok_or_else(|| missing("lease.consul.url"))?;
        let key = filled(&self.key).ok_or_else(|| missing("lease.consul.key"))?;
        let mut config = ConsulConfig::new(value(url, |text| text.parse())?, &key.value);
        if let Some(ttl) = &self.ttl {
            config.ttl = value(ttl, parse_duration)?;
        }
        if let Some(delay) = &self.lock_delay {
            config.lock_delay = value(delay, parse_duration)?;
        }
        config.fast_failover = self.fast_failover.unwrap_or(true);
        config.ca = filled_path(&self.ca).cloned();
        Ok(config)
    }
}

impl RawLog {
    fn apply(self, config: &mut Config) -> Result<(), ValueError> {
        if let Some(format) = &self.format {
            config.log.format = value(format, |text| match text {
                "text" | "" => Ok(LogFormat::Text),
                "json" => Ok(LogFormat::Json),
                other => Err(format!("log.format: {other:?} is neither text nor json")),
            })?;
        }
        config.log.timestamp = self.timestamp.unwrap_or(false);
        config.log.debug = self.debug.unwrap_or(false);
        Ok(())
    }
}

impl RawTracing {
    fn apply(self, config: &mut Config) -> Result<(), ValueError> {
        let megabytes = self.max_size.as_ref().map_or(64, |size| size.value);
        let Some(max_size) = megabytes.checked_mul(1_000_000).filter(|size| *size > 0) else {
            let line = self.max_size.map_or(1, |size| size.referenced.line());
            return Err((line, format!("tracing.max-size: {megabytes} MB cannot be")));
        };
        let path = filled_path(&self.path).filter(|_| self.enabled.unwrap_or(true));
        config.log.trace = path.map(|path| TraceConfig {
            path: path.clone(),
            max_size,
            max_count: self.max_count.unwrap_or(8),
        });
        Ok(())
    }
}

impl RawTls {
    fn apply(self, config: &mut Config) -> Result<(), ValueError> {
        config.tls.insecure = self.insecure.unwrap_or(false);
        let given = [&self.ca, &self.cert, &self.key].map(filled);
        let Some(line) = given.into_iter().flatten().next().map(|path| path.referenced.line())
        else {
            return Ok(());
        };
        match given.map(|path| path.map(|path| PathBuf::from(&path.value))) {
            [Some(ca), Some(cert), Some(key)] => {
                config.tls.files = Some(TlsFiles { ca, cert, key });
                Ok(())
            }
            _ => Err((line, "tls: ca, cert and key are needed together".to_owned())),
        }
    }
}

fn parse_durability(text: &str) -> Result<Durability, String> {
    match text {
        "off" => Ok(Durability::Off),
        "normal" => Ok(Durability::Normal),
        "full" => Ok(Durability::Full),
        other => Err(format!("data.durability: {other:?} is not off, normal or full")),
    }
}

/// Reads a value, with its line in the error.
pub(super) fn value<T, E: Display>(
    text: &Spanned<String>,
    read: impl Fn(&str) -> Result<T, E>,
) -> Result<T, ValueError> {
    read(&text.value).map_err(|e| (text.referenced.line(), e.to_string()))
}

/// Refuses a value that has no effect but could not have been meant.
fn check<T>(
    text: &Option<Spanned<String>>,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<(), ValueError> {
    text.as_ref().map_or(Ok(()), |text| value(text, read).map(|_| ()))
}

/// A YAML error in words; an unknown key is answered with the closest known one.
fn explain(error: &Error) -> String {
    match error {
        Error::SerdeUnknownField { field, expected, .. } => unknown_key(field, expected),
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("the key {key:?} is there twice")
        }
        Error::InvalidScalar { ty: "boolean", .. } => "neither true nor false".to_owned(),
        Error::InvalidScalar { ty, .. } if ty.starts_with(['u', 'i']) => {
            "not a whole number".to_owned()
        }
        Error::Unexpected { expected, .. } if expected.contains("sequence") => {
            "a list is needed here, such as [a, b]".to_owned()
        }
        _ => {
            // The location is given by the caller already.
            let text = error.to_string();
            text.split(" at line ").next().unwrap_or(&text).to_owned()
        }
    }
}

fn unknown_key(field: &str, expected: &[&str]) -> String {
    let closest = expected
        .iter()
        .map(|known| (distance(field, known), known))
        .min()
        .filter(|(distance, known)| *distance <= 1 + known.len() / 3);
    match closest {
        Some((_, known)) => format!("unknown key {field:?}: did you mean {known:?}?"),
        None => format!("unknown key {field:?}: known here are {}", expected.join(", ")),
    }
}

/// Levenshtein distance: the fewest insertions, deletions and replacements from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    // A key may be as long as the file; no known one is.
    let a: Vec<char> = a.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=a.len()).collect();
    for (i, cb) in b.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, ca) in a.iter().enumerate() {
            let replace = diagonal + usize::from(*ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[a.len()]
}

#[cfg(test)]
#[path = "yaml_tests.rs"]
mod tests;
