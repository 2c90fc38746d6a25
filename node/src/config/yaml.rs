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
    let Error::SerdeUnknownField { field, expected, .. } = error else {
        // The location is given by the caller already.
        let text = error.to_string();
        return text.split(" at line ").next().unwrap_or(&text).to_owned();
    };
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
mod tests {
    use std::time::Duration;

    use super::super::ExecCommand;
    use super::*;
    use crate::config::{PrimaryRedirect, ProxyConfig};

    fn config(text: &str) -> Result<Config, String> {
        parse(text, "litefs.yml", None).map_err(|e| e.to_string())
    }

    /// A node's file with every key that is served, and LiteFS's that are harmless.
    const FULL: &str = r#"
exit-on-error: false
skip-sync: true
strict-verify: true
exec:
  - cmd: "app migrate 'two words'"
    if-candidate: true
  - cmd: app serve
data:
  dir: "/data"
  compress: true
  retention: "1h30m"
  retention-monitor-interval: "1m"
  durability: full
  log-size: 64MB
fuse:
  dir: "/litefs"
  allow-other: yes
  debug: true
http:
  addr: "127.0.0.1:7000"
  token: 0123456789abcdef
  snapshot-timeout: 10s
proxy:
  addr: ":8080"
  db: my.db
  passthrough: ["/debug/*"]
lease:
  type: "static"
  hostname: "primary-1"
  advertise-url: "http://127.0.0.1:20202"
  candidate: false
  promote: false
  reconnect-delay: 250ms
  demote-delay: 10s
  consul:
    ttl: 10s
backup:
  type: ""
log:
  format: json
  timestamp: true
  debug: true
tracing:
  enabled: true
  path: "/var/log/trace.log"
  max-size: 5
  max-count: 3
  compress: true
"#;

    #[test]
    fn every_served_key_arrives() {
        let config = config(FULL).unwrap();
        assert_eq!(config.data.dir, PathBuf::from("/data"));
        assert_eq!(config.data.retention, Duration::from_secs(5400));
        assert_eq!(config.data.durability, Durability::Full);
        assert_eq!(config.data.log_size, Some(64_000_000));
        assert_eq!(config.fuse.dir, Some(PathBuf::from("/litefs")));
        assert!(config.fuse.allow_other && config.fuse.debug);
        assert_eq!(config.http.addr, "127.0.0.1:7000".parse().unwrap());
        assert!(config.http.token.as_ref().unwrap().is(b"0123456789abcdef"));
        assert!(!config.lease.candidate);
        assert_eq!(config.primary_hostname(), "primary-1");
        assert_eq!(config.lease.advertise_url.unwrap().port(), 20202);
        assert_eq!(config.lease.reconnect_delay, Duration::from_millis(250));
        assert_eq!(config.log.format, LogFormat::Json);
        assert!(config.log.timestamp && config.log.debug);
        let trace = config.log.trace.unwrap();
        assert_eq!((trace.max_size, trace.max_count), (5_000_000, 3));
        assert_eq!(trace.path, PathBuf::from("/var/log/trace.log"));
        assert!(config.exec.skip_sync && !config.exec.exit_on_error);
        let command = |words: &[&str], if_candidate| ExecCommand {
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            if_candidate,
        };
        let migrate = command(&["app", "migrate", "two words"], true);
        assert_eq!(config.exec.commands, [migrate, command(&["app", "serve"], false)]);
        assert_eq!(config.notices.len(), 7, "{:?}", config.notices);
    }

    #[test]
    fn a_trace_log_needs_a_path_and_can_be_switched_off() {
        let trace = |text: &str| config(text).unwrap().log.trace;
        assert_eq!(trace("tracing:\n  max-size: 1\n"), None);
        assert_eq!(trace("tracing:\n  enabled: false\n  path: /t\n"), None);
        let default = trace("tracing:\n  path: /t\n").unwrap();
        assert_eq!((default.max_size, default.max_count), (64_000_000, 8));
        assert!(config("tracing:\n  max-size: 0\n").unwrap_err().contains(":2: tracing.max-size"));
    }

    /// LiteFS backs up to its cloud when this variable is set, whatever the file says.
    #[test]
    fn a_token_for_backups_is_noticed() {
        let env = |name: &str| (name == "LITEFS_CLOUD_TOKEN").then(|| "secret".to_owned());
        let config = parse("", "x", Some(&env)).unwrap();
        assert!(config.notices[0].contains("LITEFS_CLOUD_TOKEN"), "{:?}", config.notices);
        assert!(!config.notices[0].contains("secret"));
    }

    /// LiteFS's own example, with our keys added.
    #[test]
    fn a_lease_in_consul_is_read_with_litefss_defaults() {
        let text = "lease:\n  type: \"consul\"\n  hostname: localhost\n  promote: true\n  \
                    demote-delay: 3s\n  consul:\n    url: \"http://:t@127.0.0.1:8500/p\"\n    \
                    key: \"litefs/primary\"\n";
        let lease = config(text).unwrap().lease;
        let consul = lease.consul.unwrap();
        assert!(lease.candidate && lease.promote);
        assert_eq!(lease.demote_delay, Duration::from_secs(3));
        assert_eq!((consul.key.as_str(), consul.url.prefix()), ("litefs/primary", "p"));
        assert_eq!((consul.ttl, consul.lock_delay.as_secs()), (Duration::from_secs(10), 1));
        assert!(consul.fast_failover && consul.ca.is_none());

        let more = "    ttl: 20s\n    lock-delay: 5s\n    fast-failover: false\n";
        let consul = config(&format!("{text}{more}")).unwrap().lease.consul.unwrap();
        assert_eq!((consul.ttl, consul.lock_delay.as_secs()), (Duration::from_secs(20), 5));
        assert!(!consul.fast_failover);

        let error = config(&format!("{text}    ttl: 5s\n")).unwrap_err();
        assert!(error.contains("lease.consul.ttl") && error.contains("10s"), "{error}");
    }

    #[test]
    fn without_a_directory_there_is_no_mount() {
        for text in ["", "fuse:\n  dir: \"\"\n  debug: true\n", "fuse:\n"] {
            assert_eq!(config(text).unwrap().fuse.dir, None, "{text:?}");
        }
        let notices = config("fuse:\n  allow-other: true\n").unwrap().notices;
        assert!(notices[0].contains("without fuse.dir"), "{notices:?}");
        let error = config("data:\n  dir: /m/data\nfuse:\n  dir: /m\n").unwrap_err();
        assert!(error.contains("fuse.dir /m"), "{error}");
    }

    #[test]
    fn an_empty_file_is_the_embedded_default() {
        for text in ["", "# nothing\n", "---\n", "data:\n"] {
            let config = config(text).unwrap();
            assert_eq!(config, Config::new("/var/lib/litefs"), "{text:?}");
        }
    }

    #[test]
    fn what_is_not_served_is_never_ignored() {
        for (text, line, key) in [
            ("lease:\n  type: static\n  promote: true\n", 3, "lease.promote"),
            ("backup:\n  type: file\n  path: /b\n", 2, "backup.type"),
        ] {
            let error = config(text).unwrap_err();
            assert!(error.starts_with(&format!("litefs.yml:{line}: {key}")), "{error}");
        }
    }

    /// All of them at once, so that a LiteFS user edits the file once.
    #[test]
    fn every_refused_key_is_named_in_one_go() {
        let error =
            config("backup:\n  type: file\nlease:\n  type: static\n  promote: true\n").unwrap_err();
        let lines: Vec<&str> = error.lines().collect();
        assert_eq!(lines.len(), 2, "{error}");
        assert!(lines[0].starts_with("litefs.yml:2: backup.type"));
        assert!(lines[1].starts_with("litefs.yml:5: lease.promote"));
    }

    #[test]
    fn an_unknown_key_is_refused_with_line_and_suggestion() {
        for (text, line, needed) in [
            ("data:\n  dirr: /x\n", 2, "did you mean \"dir\"?"),
            ("leese:\n  type: static\n", 1, "did you mean \"lease\"?"),
            ("\n\nhttp:\n  adr: x\n", 4, "did you mean \"addr\"?"),
            ("lease:\n  type: static\n  consul:\n    lockdelay: 1s\n", 4, "\"lock-delay\""),
            ("quux: 1\n", 1, "known here are"),
        ] {
            let error = config(text).unwrap_err();
            assert!(error.starts_with(&format!("litefs.yml:{line}: unknown key")), "{error}");
            assert!(error.contains(needed), "{error}");
        }
    }

    #[test]
    fn a_wrong_value_is_refused_with_its_line() {
        for (text, line, needed) in [
            ("data:\n  retention: 10\n", 2, "duration"),
            ("data:\n  log-size: 64M\n", 2, "size"),
            ("data:\n  durability: fsync\n", 2, "off, normal or full"),
            ("http:\n  addr: \"20202\"\n", 2, "20202"),
            ("http:\n  snapshot-timeout: soon\n", 2, "duration"),
            ("log:\n  format: xml\n", 2, "neither text nor json"),
            ("lease:\n  type: etcd\n", 2, "etcd"),
            ("lease:\n  type: consul\n", 2, "lease.consul.url"),
            ("lease:\n  type: consul\n  consul:\n    url: http://h\n", 2, "lease.consul.key"),
            ("lease:\n  type: consul\n  consul:\n    url: h:1\n    key: k\n", 4, "http://"),
            ("lease:\n  candidate: true\n", 1, "lease.type is missing"),
            ("lease:\n  type: static\n  advertise-url: db1:20202\n", 3, "URL"),
            ("lease:\n  type: static\n  candidate: maybe\n", 3, "bool"),
            ("tls:\n  ca: a\n  cert: b\n", 2, "together"),
            ("http:\n  token: \"\"\n", 2, "is empty"),
            ("http:\n  token: short\n", 2, "16 characters"),
            ("http:\n  token-file: /none/token\n", 2, "/none/token"),
            ("http:\n  token: 0123456789abcdef\n  token-file: /x\n", 2, "exclude"),
            ("proxy:\n  addr: \":1\"\n  target: x:1\n", 3, "proxy.db"),
            ("proxy:\n  db: a\n  target: x:1\n", 3, "proxy.addr"),
            ("proxy:\n  addr: \":1\"\n  db: a\n  target: http://x:1\n", 4, "localhost:8081"),
            ("proxy:\n  addr: \":1\"\n  db: a/b\n  target: x:1\n", 3, "slash"),
            ("proxy:\n  max-lag: long\n", 2, "duration"),
            ("proxy:\n  primary-redirect: no\n", 2, "fly-replay"),
            ("proxy:\n  primary-redirect-timeout: 5\n", 2, "duration"),
            ("data: [1]\n", 1, ""),
            ("data:\n\tdir: x\n", 2, ""),
            ("data:\n  dir: a\n  dir: b\n", 3, "dir"),
        ] {
            let error = config(text).unwrap_err();
            assert!(error.starts_with(&format!("litefs.yml:{line}: ")), "{text:?}: {error}");
            assert!(error.contains(needed), "{text:?}: {error}");
        }
    }

    #[test]
    fn litefss_own_default_address_asks_for_certificates() {
        let error = config("http:\n  addr: \":20202\"\n").unwrap_err();
        assert!(error.contains("certs init"), "{error}");
        let opened = config("http:\n  addr: \":20202\"\ntls:\n  insecure: true\n").unwrap();
        assert!(opened.tls.insecure);
    }

    #[test]
    fn variables_are_expanded_before_the_yaml_is_read() {
        let env = |name: &str| (name == "REGION").then(|| "ams".to_owned());
        let text = "data:\n  dir: /d/${REGION}\n\
                    lease:\n  type: static\n  candidate: ${REGION == 'ams'}\n";
        let config = parse(text, "x", Some(&env)).unwrap();
        assert_eq!(config.data.dir, PathBuf::from("/d/ams"));
        assert!(config.lease.candidate);
    }

    /// Every key of LiteFS's section, and its defaults (http/proxy_server.go).
    #[test]
    fn a_proxy_has_litefss_keys_and_defaults() {
        let parse = |text: &str, on_fly: bool| {
            let env = |name: &str| (on_fly && name == "FLY_APP_NAME").then(|| "app".to_owned());
            parse(text, "x", Some(&env)).unwrap().proxy.unwrap()
        };
        let least =
            "proxy:\n  addr: \"127.0.0.1:8080\"\n  target: \"localhost:8081\"\n  db: my.db\n";
        let proxy = parse(least, false);
        let addr = "127.0.0.1:8080".parse().unwrap();
        assert_eq!(proxy, ProxyConfig::new(addr, "localhost:8081", "my.db").unwrap());
        assert_eq!(proxy.max_lag, Some(Duration::from_secs(10)));
        assert_eq!(proxy.primary_redirect_timeout, Duration::from_secs(5));
        assert_eq!((proxy.read_timeout, proxy.write_timeout), (None, None));
        assert_eq!(proxy.read_header_timeout, Some(Duration::from_secs(10)));
        assert_eq!(proxy.idle_timeout, Some(Duration::from_secs(30)));
        assert_eq!(proxy.primary_redirect, PrimaryRedirect::Forward);
        assert_eq!(parse(least, true).primary_redirect, PrimaryRedirect::FlyReplay);

        let all = "  max-lag: 0s\n  debug: true\n  passthrough: [\"/p/*\"]\n  \
                   always-forward: [\"/f\"]\n  primary-redirect: forward\n  \
                   primary-redirect-timeout: 1s\n  read-timeout: 2s\n  \
                   read-header-timeout: 0s\n  write-timeout: 4s\n  idle-timeout: 5s\n";
        let proxy = parse(&format!("{least}{all}"), true);
        assert_eq!(proxy.max_lag, None);
        assert!(proxy.debug && proxy.passthrough[0].matches(b"/p/x"));
        assert!(proxy.always_forward[0].matches(b"/f"));
        assert_eq!(proxy.primary_redirect, PrimaryRedirect::Forward);
        assert_eq!(proxy.primary_redirect_timeout, Duration::from_secs(1));
        // Zero for the head means the limit of the whole request.
        assert_eq!(proxy.read_timeout, Some(Duration::from_secs(2)));
        assert_eq!(proxy.read_header_timeout, Some(Duration::from_secs(2)));
        assert_eq!(proxy.write_timeout, Some(Duration::from_secs(4)));
        assert_eq!(proxy.idle_timeout, Some(Duration::from_secs(5)));
    }

    #[test]
    fn no_part_of_a_file_makes_the_parser_panic() {
        for end in (0..FULL.len()).filter(|&end| FULL.is_char_boundary(end)) {
            let _ = config(&FULL[..end]);
            let _ = config(&FULL[end..]);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[a-z:${}'\"=! \n\t\\[\\]&*#0-9-]{0,60}") {
            let env = |_: &str| Some("a: b\n".to_owned());
            let _ = parse(&text, "x", Some(&env));
        }
    }
}
