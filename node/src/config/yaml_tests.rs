//! `litefs.yml`: what is taken, what is refused, and with which words.

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
        ("lease:\n  type: static\n  candidate: maybe\n", 3, "true nor false"),
        ("tracing:\n  max-count: many\n", 2, "whole number"),
        ("proxy:\n  passthrough: \"*.css\"\n", 2, "list"),
        ("log:\n  debug: true\nlog:\n  debug: false\n", 3, "\"log\" is there twice"),
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
    let least = "proxy:\n  addr: \"127.0.0.1:8080\"\n  target: \"localhost:8081\"\n  db: my.db\n";
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
