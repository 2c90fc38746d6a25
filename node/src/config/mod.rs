//! What a node is told: where its data lies, where it listens, who is primary.
//!
//! [`Config::new`] is enough for a program that embeds a node: a static primary on loopback.
//! [`Config::from_file`] reads LiteFS's `litefs.yml` (see `yaml.rs` for the keys).

mod consul;
mod endpoint;
mod exec;
mod expand;
mod find;
mod proxy;
#[cfg(test)]
mod reference_tests;
mod replication;
mod token;
mod units;
mod yaml;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use litefs_store::{DbName, Durability};

pub(crate) use consul::percent_encode;
pub use consul::{ConsulConfig, ConsulUrl};
pub use endpoint::{Endpoint, parse_listen_addr};
pub use exec::{ExecCommand, ExecConfig};
pub use proxy::{PathPattern, PrimaryRedirect, ProxyConfig};
pub use replication::{Bounds, OnTimeout, ReplicationMode, SYNC_REPLICAS_MAX, SyncSettings};
pub use token::Token;
pub use units::{parse_duration, parse_size};

use crate::tls::{TlsConfig, TlsFiles};

/// The port that LiteFS and this project use when none is given, on TCP (HTTP) and UDP (QUIC).
pub const DEFAULT_PORT: u16 = 20202;

/// Why a configuration is refused: says what is wrong, in which line, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// Settings of a node. Build it with [`Config::new`], [`Config::from_yaml`] or
/// [`Config::from_file`] and change fields as needed; [`Config::validate`] has the last word.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The data directory and how commits and the log are kept.
    pub data: DataConfig,
    /// The programs that run beside the node; for the daemon only.
    pub exec: ExecConfig,
    /// The mount for other programs.
    pub fuse: FuseConfig,
    /// Where the node listens.
    pub http: HttpConfig,
    /// The HTTP proxy before the application; `None`: there is none.
    pub proxy: Option<ProxyConfig>,
    /// How connections between nodes are protected.
    pub tls: TlsConfig,
    /// Who is primary.
    pub lease: LeaseConfig,
    /// When a commit is acknowledged; the same on all nodes.
    pub replication: ReplicationMode,
    /// On a replica, writes are made through the primary. Default: false, they are refused.
    pub forward_writes: bool,
    /// What is logged, and how.
    pub log: LogConfig,
    /// Keys that were accepted for LiteFS's sake but change nothing here; logged at start.
    pub notices: Vec<String>,
}

/// Section `data`.
#[derive(Debug, Clone, PartialEq)]
pub struct DataConfig {
    /// The directory, owned by this process. Default in YAML: `/var/lib/litefs`.
    pub dir: PathBuf,
    /// Least durability of every commit; `Off` (the default) leaves it to each client's
    /// `PRAGMA synchronous`.
    pub durability: Durability,
    /// How long records stay in the log after they are folded. Default: 10 minutes.
    pub retention: Duration,
    /// Bound on each database's log, in bytes; `None`: max(64 MiB, the database's size).
    pub log_size: Option<u64>,
}

/// Section `fuse`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FuseConfig {
    /// Where [`Node::mount`](crate::Node::mount) shows the databases as files; `None`: nowhere.
    pub dir: Option<PathBuf>,
    /// Other users than the node's may use the mount.
    pub allow_other: bool,
    /// Log each request of the kernel.
    pub debug: bool,
}

/// Section `http`.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpConfig {
    /// Address of the HTTP API (TCP) and of replication (QUIC, UDP). Default `127.0.0.1:20202`.
    /// Port 0 lets the system choose.
    pub addr: SocketAddr,
    /// The secret with which other hosts may use the API. `None`: a certificate of the cluster
    /// is needed, or with `tls.insecure` nothing.
    pub token: Option<Token>,
}

/// Section `lease`.
#[derive(Debug, Clone, PartialEq)]
pub struct LeaseConfig {
    /// Consul, if that decides who is primary; `None`: the lease is static.
    pub consul: Option<ConsulConfig>,
    /// True: this node may become the primary; with a static lease it is. False: it is a replica,
    /// with a static lease of `advertise_url`.
    pub candidate: bool,
    /// This node's name, as clients see it while it is the primary. With a static lease it is the
    /// primary's name, on replicas too. `None`: the host's name, on a replica with a static lease
    /// the host of `advertise_url`.
    pub hostname: Option<String>,
    /// The URL at which other nodes reach this one; `None`: its hostname and its port. With a
    /// static lease it is the primary's, and required on replicas.
    pub advertise_url: Option<Endpoint>,
    /// The databases that this replica keeps; empty: all.
    pub databases: Vec<DbName>,
    /// This node takes the role of the primary over once it has everything; never with a static
    /// lease. Default: false.
    pub promote: bool,
    /// First wait before a replica connects again, to its primary or to Consul, at least 1 ms.
    /// Default: 1 s.
    pub reconnect_delay: Duration,
    /// How long a node that an operator demoted does not become primary again. Default: 10 s.
    pub demote_delay: Duration,
}

/// Section `log`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// Text or JSON lines. Default: text.
    pub format: LogFormat,
    /// Begin each text line with the time. JSON lines always have it.
    pub timestamp: bool,
    /// Log debug messages too.
    pub debug: bool,
    /// A file for debug messages, whatever goes to stderr.
    pub trace: Option<TraceConfig>,
}

/// Section `tracing`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceConfig {
    /// The file. What is full is kept beside it, with `.1`, `.2` and so on at its end.
    pub path: PathBuf,
    /// A file is full from so many bytes on. Default: 64 MB.
    pub max_size: u64,
    /// So many full files are kept. Default: 8.
    pub max_count: usize,
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// A static primary on `data_dir`, on loopback at the default port.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data: DataConfig {
                dir: data_dir.into(),
                durability: Durability::Off,
                retention: Duration::from_secs(600),
                log_size: None,
            },
            exec: ExecConfig::default(),
            fuse: FuseConfig::default(),
            http: HttpConfig { addr: (Ipv4Addr::LOCALHOST, DEFAULT_PORT).into(), token: None },
            proxy: None,
            tls: TlsConfig { files: None, insecure: false },
            lease: LeaseConfig {
                consul: None,
                candidate: true,
                hostname: None,
                advertise_url: None,
                databases: Vec::new(),
                promote: false,
                reconnect_delay: Duration::from_secs(1),
                demote_delay: Duration::from_secs(10),
            },
            replication: ReplicationMode::Async,
            forward_writes: false,
            log: LogConfig { format: LogFormat::Text, timestamp: false, debug: false, trace: None },
            notices: Vec::new(),
        }
    }

    /// Reads LiteFS's YAML, with the environment's variables expanded, and validates it.
    pub fn from_yaml(text: &str) -> Result<Self, ConfigError> {
        yaml::parse(text, "config", Some(&expand::process_env))
    }

    /// Like [`Config::from_yaml`], from a file; errors name it.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::from_file_with(path.as_ref(), true)
    }

    /// Like [`Config::from_file`]; `expand_env` false leaves `$` alone.
    pub fn from_file_with(path: &Path, expand_env: bool) -> Result<Self, ConfigError> {
        let origin = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|e| ConfigError::new(format!("cannot read the config file {origin}: {e}")))?;
        let env: yaml::Env<'_> = if expand_env { Some(&expand::process_env) } else { None };
        yaml::parse(&text, &origin, env)
    }

    /// The configuration that LiteFS would take: `./litefs.yml`, `~/litefs.yml` or
    /// `/etc/litefs.yml`.
    pub fn find_file() -> Result<PathBuf, ConfigError> {
        find::find(std::env::var_os("HOME").map(PathBuf::from).as_deref(), &|path| path.exists())
    }

    /// A commented file with every key and its default.
    pub const EXAMPLE: &str = include_str!("example.yml");

    /// Makes this node a replica of the primary at `url`, such as `http://10.0.0.1:20202`.
    pub fn replica_of(mut self, url: &str) -> Result<Self, ConfigError> {
        self.lease.candidate = false;
        self.lease.advertise_url = Some(url.parse()?);
        Ok(self)
    }

    /// Leaves it to Consul who is primary.
    pub fn with_consul(mut self, consul: ConsulConfig) -> Self {
        self.lease.consul = Some(consul);
        self
    }

    /// Lets other hosts that know this secret use the HTTP API.
    pub fn with_token(mut self, token: Token) -> Self {
        self.http.token = Some(token);
        self
    }

    /// Changes the address, such as `127.0.0.1:0`.
    pub fn listen(mut self, addr: SocketAddr) -> Self {
        self.http.addr = addr;
        self
    }

    /// Shows the databases as files at `dir` once [`Node::mount`](crate::Node::mount) is called.
    pub fn mounted_at(mut self, dir: impl Into<PathBuf>) -> Self {
        self.fuse.dir = Some(dir.into());
        self
    }

    /// Changes when a commit is acknowledged.
    pub fn replicating(mut self, mode: ReplicationMode) -> Self {
        self.replication = mode;
        self
    }

    /// Puts the HTTP proxy before an application.
    pub fn with_proxy(mut self, proxy: ProxyConfig) -> Self {
        self.proxy = Some(proxy);
        self
    }

    /// Uses the certificates that `litefs-node certs` wrote.
    pub fn with_tls(mut self, files: TlsFiles) -> Self {
        self.tls.files = Some(files);
        self
    }

    /// Checks what no single field shows: a replica needs a primary, the mount must not hide the
    /// data, and an address that other hosts reach needs certificates.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_lease()?;
        self.validate_mount()?;
        self.replication.validate()?;
        self.validate_proxy()?;
        if self.tls.insecure && self.tls.files.is_some() {
            return Err(ConfigError::new(
                "tls.insecure: true contradicts tls.ca, tls.cert and tls.key: remove the one or \
                 the others",
            ));
        }
        match self.exposed_address() {
            Some(exposed) if self.tls.files.is_none() && !self.tls.insecure => {
                Err(ConfigError::new(how_to_get_certificates(&exposed, &self.own_name())))
            }
            _ => Ok(()),
        }
    }

    /// The name under which clients know the primary (`lease.hostname` or its default); with
    /// Consul, while that is this node.
    pub fn primary_hostname(&self) -> String {
        match (&self.lease.hostname, &self.lease.advertise_url) {
            (Some(name), _) => name.clone(),
            (None, Some(url)) if self.is_static_replica() => url.host().to_owned(),
            _ => self.own_name(),
        }
    }

    /// The URL at which other nodes reach this one, which listens on `addr`.
    pub fn own_url(&self, addr: SocketAddr) -> Endpoint {
        let configured = self.lease.advertise_url.clone().filter(|_| !self.is_static_replica());
        configured.unwrap_or_else(|| match &self.lease.consul {
            None => addr.into(),
            Some(_) => Endpoint::new(self.primary_hostname(), addr.port()),
        })
    }

    fn is_static_replica(&self) -> bool {
        self.lease.consul.is_none() && !self.lease.candidate
    }

    fn own_name(&self) -> String {
        os_hostname().unwrap_or_else(|| "localhost".to_owned())
    }

    fn validate_lease(&self) -> Result<(), ConfigError> {
        let lease = &self.lease;
        if self.is_static_replica() && lease.advertise_url.is_none() {
            return Err(ConfigError::new(
                "lease.candidate is false, so lease.advertise-url must be the primary's URL, \
                 such as http://10.0.0.1:20202",
            ));
        }
        if lease.candidate && !lease.databases.is_empty() {
            return Err(ConfigError::new(
                "lease.databases limits what a replica keeps, but lease.candidate is true: \
                 set lease.candidate to false or remove lease.databases",
            ));
        }
        if lease.reconnect_delay < Duration::from_millis(1) {
            return Err(ConfigError::new("lease.reconnect-delay must be at least 1ms"));
        }
        if lease.promote && !lease.candidate {
            return Err(ConfigError::new(
                "lease.promote is true, but lease.candidate is false: this node can never be the \
                 primary; change one of them",
            ));
        }
        match &lease.consul {
            Some(consul) => consul.validate().and_then(|()| self.validate_reachable()),
            None if lease.promote => Err(ConfigError::new(
                "lease.promote: a static lease never moves: remove lease.promote",
            )),
            None => Ok(()),
        }
    }

    /// A candidate that tells others an address at which it does not listen would be a primary
    /// without replicas.
    fn validate_reachable(&self) -> Result<(), ConfigError> {
        let addr = self.http.addr;
        let url = self.own_url(addr);
        // Port 0 becomes a real one later.
        Endpoint::new(url.host(), url.port().max(1)).to_string().parse::<Endpoint>()?;
        if !self.lease.candidate || url.is_loopback() || !is_loopback(addr.ip()) {
            return Ok(());
        }
        Err(ConfigError::new(format!(
            "this node may become the primary, and others would look for it at {url} \
             (lease.advertise-url), but it listens on {addr} (http.addr), which only this host \
             reaches: set http.addr to \":{}\"; or, if all nodes are on this host, set \
             lease.advertise-url to http://{addr}",
            addr.port(),
        )))
    }

    fn validate_mount(&self) -> Result<(), ConfigError> {
        let Some(mount) = &self.fuse.dir else { return Ok(()) };
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        if absolute(&self.data.dir).starts_with(absolute(mount)) {
            return Err(ConfigError::new(format!(
                "data.dir {} is, or lies inside, fuse.dir {}, which would hide it: choose another \
                 directory for one of them",
                self.data.dir.display(),
                mount.display()
            )));
        }
        Ok(())
    }

    /// A proxy that asks itself would do so for ever.
    fn validate_proxy(&self) -> Result<(), ConfigError> {
        let Some(proxy) = &self.proxy else { return Ok(()) };
        let own = [("proxy.addr", proxy.addr), ("http.addr", self.http.addr)];
        let target = &proxy.target;
        let mut own = own.iter().filter(|(_, addr)| addr.port() == target.port());
        match own.find(|(_, addr)| target.is_loopback() || target.host() == addr.ip().to_string()) {
            Some((key, addr)) => Err(ConfigError::new(format!(
                "proxy.target {target} is {key} {addr}, this node itself: name the application \
                 there"
            ))),
            None => Ok(()),
        }
    }

    /// The setting through which other hosts reach this node, or it them.
    fn exposed_address(&self) -> Option<String> {
        if !is_loopback(self.http.addr.ip()) {
            return Some(format!("http.addr {}", self.http.addr));
        }
        let primary = self.lease.advertise_url.as_ref().filter(|_| self.is_static_replica())?;
        (!primary.is_loopback()).then(|| format!("the primary {primary}"))
    }
}

/// True for 127.0.0.0/8 and ::1, also when written as an IPv4-mapped IPv6 address.
pub fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// The host's name, if it has a readable one.
pub(crate) fn os_hostname() -> Option<String> {
    let name = rustix::system::uname().nodename().to_str().ok()?.to_owned();
    (!name.is_empty()).then_some(name)
}

fn how_to_get_certificates(exposed: &str, node: &str) -> String {
    format!(
        "{exposed} is reachable from other hosts, so replication needs certificates. Type, once \
         for the cluster and once for each node:\n\
         \x20   litefs-node certs init --dir certs\n\
         \x20   litefs-node certs issue --dir certs {node}\n\
         and put ca.crt and this node's two files on this host, with these lines in the config:\n\
         \x20   tls:\n\
         \x20     ca: certs/ca.crt\n\
         \x20     cert: certs/{node}.crt\n\
         \x20     key: certs/{node}.key\n\
         On a private network that you trust, `tls.insecure: true` does without."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_default_is_valid_and_stays_on_loopback() {
        let config = Config::new("/tmp/x");
        config.validate().unwrap();
        assert_eq!(config.http.addr, "127.0.0.1:20202".parse().unwrap());
        assert!(config.lease.candidate);
    }

    #[test]
    fn an_open_address_without_certificates_is_refused_with_what_to_type() {
        for addr in ["0.0.0.0:20202", "10.1.2.3:1", "[::]:20202", "[::ffff:10.0.0.1]:1"] {
            let config = Config::new("/tmp/x").listen(addr.parse().unwrap());
            let text = config.validate().unwrap_err().to_string();
            for needed in [addr, "certs init", "certs issue", "tls:", "ca.crt", "tls.insecure"] {
                assert!(text.contains(needed), "{needed} is missing in: {text}");
            }
        }
        for addr in ["127.0.0.1:0", "127.8.8.8:1", "[::1]:20202", "[::ffff:127.0.0.1]:1"] {
            Config::new("/tmp/x").listen(addr.parse().unwrap()).validate().unwrap();
        }
    }

    #[test]
    fn a_remote_primary_without_certificates_is_refused() {
        let replica = |url| Config::new("/tmp/x").replica_of(url).unwrap().validate();
        let text = replica("http://db1:20202").unwrap_err().to_string();
        assert!(text.contains("http://db1:20202") && text.contains("certs init"), "{text}");
        replica("http://localhost:20202").unwrap();
        replica("http://[::1]:20202").unwrap();
    }

    #[test]
    fn certificates_or_insecure_open_the_address() {
        let open = Config::new("/tmp/x").listen("0.0.0.0:7".parse().unwrap());
        let mut insecure = open.clone();
        insecure.tls.insecure = true;
        insecure.validate().unwrap();

        let files = TlsFiles { ca: "a".into(), cert: "b".into(), key: "c".into() };
        let secure = open.with_tls(files);
        secure.validate().unwrap();

        let mut both = secure;
        both.tls.insecure = true;
        assert!(both.validate().is_err());
    }

    #[test]
    fn a_mount_that_hides_the_data_is_refused() {
        let config = |data: &str, mount: &str| Config::new(data).mounted_at(mount).validate();
        for (data, mount) in [("/d", "/d"), ("/m/d", "/m"), ("/m/d", "/"), ("d", "./d/")] {
            let text = config(data, mount).unwrap_err().to_string();
            assert!(text.contains("data.dir") && text.contains("fuse.dir"), "{text}");
        }
        for (data, mount) in [("/d", "/m"), ("/d", "/d/m"), ("/data", "/dat"), ("/d", "/d2")] {
            config(data, mount).unwrap();
        }
    }

    fn with_consul(listen: &str, advertise: Option<&str>) -> Config {
        let consul = ConsulConfig::new("http://127.0.0.1:8500".parse().unwrap(), "k");
        let mut config = Config::new("/d").listen(listen.parse().unwrap()).with_consul(consul);
        config.lease.hostname = Some("db1".to_owned());
        config.lease.advertise_url = advertise.map(|url| url.parse().unwrap());
        config
    }

    #[test]
    fn with_consul_a_node_advertises_itself_whether_candidate_or_not() {
        let mut config = with_consul("0.0.0.0:7", None);
        config.tls.insecure = true;
        for candidate in [true, false] {
            config.lease.candidate = candidate;
            config.validate().unwrap();
            assert_eq!(config.own_url("10.0.0.1:9".parse().unwrap()).to_string(), "http://db1:9");
            assert_eq!(config.primary_hostname(), "db1");
        }
        config.lease.advertise_url = Some("http://10.0.0.1:5".parse().unwrap());
        assert_eq!(config.own_url("0.0.0.0:9".parse().unwrap()).port(), 5);
    }

    #[test]
    fn a_candidate_that_nobody_would_reach_is_refused() {
        let text = with_consul("127.0.0.1:7", None).validate().unwrap_err().to_string();
        assert!(text.contains("http://db1:7") && text.contains("http.addr"), "{text}");
        assert!(with_consul("127.0.0.1:7", Some("http://10.0.0.1:7")).validate().is_err());
        with_consul("127.0.0.1:7", Some("http://127.0.0.1:7")).validate().unwrap();
        let mut replica = with_consul("127.0.0.1:7", None);
        replica.lease.candidate = false;
        replica.validate().unwrap();
        let mut odd = with_consul("127.0.0.1:7", None);
        odd.lease.hostname = Some("a/b".to_owned());
        assert!(odd.validate().is_err());
    }

    #[test]
    fn open_to_others_a_cluster_with_consul_needs_certificates() {
        let text = with_consul("0.0.0.0:7", None).validate().unwrap_err().to_string();
        assert!(text.contains("certs init"), "{text}");
    }

    #[test]
    fn promote_is_refused_where_it_can_never_happen() {
        let mut config = Config::new("/d");
        config.lease.promote = true;
        assert!(config.validate().unwrap_err().to_string().contains("static"));
        let mut config = with_consul("127.0.0.1:7", None);
        config.lease.promote = true;
        config.lease.candidate = false;
        assert!(config.validate().unwrap_err().to_string().contains("lease.candidate"));
    }

    #[test]
    fn a_proxy_that_asks_itself_is_refused() {
        let config = |addr: &str, target: &str| {
            let proxy = ProxyConfig::new(addr.parse().unwrap(), target, "a.db").unwrap();
            Config::new("/tmp/x").with_proxy(proxy).validate()
        };
        for (addr, target, key) in [
            ("[::]:8080", "localhost:8080", "proxy.addr"),
            ("10.0.0.1:80", "10.0.0.1:80", "proxy.addr"),
            ("[::]:8080", "127.0.0.1:20202", "http.addr"),
        ] {
            let text = config(addr, target).unwrap_err().to_string();
            assert!(text.contains(key) && text.contains("proxy.target"), "{text}");
        }
        config("[::]:8080", "localhost:8081").unwrap();
        config("127.0.0.1:8080", "app:8080").unwrap();
    }

    #[test]
    fn a_replica_needs_a_primary() {
        let mut config = Config::new("/tmp/x");
        config.lease.candidate = false;
        assert!(config.validate().unwrap_err().to_string().contains("lease.advertise-url"));
    }
}
