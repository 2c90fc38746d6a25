//! A Consul of a test's own.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use super::daemon::eventually;

const HTTP_PORT: u16 = 8500;
const HTTPS_PORT: u16 = 8501;

/// A running agent, its own server, with nothing on disk; killed when dropped.
pub struct Consul {
    child: Child,
    ip: String,
    scheme: &'static str,
    port: u16,
    dir: PathBuf,
    /// Keeps the files that the agent reads.
    _files: tempfile::TempDir,
}

impl Consul {
    /// Starts one, and waits until it answers.
    pub fn start() -> Self {
        let consul = Self::spawn("http", HTTP_PORT, "{}", |_| ());
        // It has a leader then, and a node for sessions.
        eventually("Consul is up", || consul.get("/v1/catalog/nodes").contains("\"test\""));
        consul
    }

    /// Starts one that is reached by TLS only and refuses whom it has no token for. Waiting until
    /// it answers is left to those who know the token. `files` writes `ca.pem`, `cert.pem` and
    /// `key.pem` for the address that it is told, into the directory that it is told.
    pub fn start_guarded(master_token: &str, files: impl FnOnce(&str, &Path)) -> Self {
        let config = format!(
            r#"{{"ports": {{"http": -1, "https": {HTTPS_PORT}}},
                "ca_file": "ca.pem", "cert_file": "cert.pem", "key_file": "key.pem",
                "acl": {{"enabled": true, "default_policy": "deny",
                         "tokens": {{"master": "{master_token}"}}}}}}"#
        );
        Self::spawn("https", HTTPS_PORT, &config, |(ip, dir)| files(ip, dir))
    }

    fn spawn(
        scheme: &'static str,
        port: u16,
        config: &str,
        prepare: impl FnOnce((&str, &Path)),
    ) -> Self {
        let files = tempfile::tempdir().unwrap();
        let (ip, dir) = (loopback_ip(), files.path().to_owned());
        prepare((&ip, &dir));
        fs::write(dir.join("agent.json"), config).unwrap();
        let log = fs::File::create(dir.join("consul.log")).unwrap();
        let child = Command::new(binary())
            .args(["agent", "-dev", "-node", "test", "-bind", &ip, "-client", &ip])
            .args(["-dns-port", "-1", "-grpc-port", "-1", "-serf-wan-port", "-1"])
            .args(["-config-file", "agent.json"])
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, ip, scheme, port, dir, _files: files }
    }

    /// Its URL, without a token and a prefix.
    pub fn url(&self) -> String {
        self.url_with("")
    }

    /// Its URL with a token.
    pub fn url_with(&self, token: &str) -> String {
        let user = if token.is_empty() { String::new() } else { format!(":{token}@") };
        format!("{}://{user}{}:{}", self.scheme, self.ip, self.port)
    }

    /// A file that was made for it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("consul.log")).unwrap()
    }

    /// Stops it, as if it hung: it accepts connections and never answers.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    /// The body of an answer over plain HTTP; empty if there is none.
    pub fn get(&self, path: &str) -> String {
        let exchange = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect((self.ip.as_str(), self.port))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = exchange().unwrap_or_default();
        answer.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned())
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for Consul {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("what Consul said:\n{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program, got by `scripts/consul` if it is not here yet.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/consul");
        let output = Command::new(&script).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {errors}", script.display());
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
    })
}

/// An address of this host that no other test uses: all of 127/8 is loopback. So everybody can
/// have the usual ports.
pub fn loopback_ip() -> String {
    static COUNT: AtomicU8 = AtomicU8::new(1);
    let pid = std::process::id();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("127.{}.{}.{count}", 1 + pid / 250 % 250, 1 + pid % 250)
}
