//! Running daemons and what is asked of them on the command line.

use std::fs::{self, File};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use litefs_node::http::Info;

/// Generous: the machine may be busy.
pub const LONG: Duration = Duration::from_secs(60);

/// A running `litefs-node mount`; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it. Its log lies beside its configuration.
    pub fn spawn(config: &Path) -> Self {
        let log = config.with_extension("log");
        let stderr = File::options().create(true).append(true).open(&log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_litefs-daemon"))
            .args(["mount", "--config", config.to_str().unwrap()])
            .stdin(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    /// Waits until it is `ready`; fails with its log if it ends.
    pub fn wait(&mut self, mut ready: impl FnMut() -> bool) {
        eventually("the daemon is ready", || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the daemon ended with {status}: {}", self.log());
            }
            ready()
        });
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far, over all its lives.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Kills it like a power switch.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM, and waits for the end.
    pub fn terminate(mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let mut ended = None;
        eventually("the daemon ends", || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        ended.unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the command line.
pub fn litefs(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_litefs-daemon"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Runs a command that must succeed.
pub fn done(args: &[&str]) -> String {
    let output = litefs(args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Two ports that nobody uses now, below those that the system hands out. Tests that run at once
/// begin at different places.
pub fn free_ports() -> [u16; 2] {
    let start = 20_300 + (std::process::id() % 97) as u16 * 100;
    let is_free = |port: &u16| {
        TcpListener::bind(("127.0.0.1", *port)).is_ok()
            && UdpSocket::bind(("127.0.0.1", *port)).is_ok()
    };
    static TAKEN: std::sync::Mutex<Vec<u16>> = std::sync::Mutex::new(Vec::new());
    let mut taken = TAKEN.lock().unwrap();
    let free: Vec<u16> =
        (start..start + 2000).filter(|p| !taken.contains(p)).filter(is_free).take(2).collect();
    taken.extend(&free);
    [free[0], free[1]]
}

/// Where the daemon's proxy listens, by its log.
pub fn proxy_addr(daemon: &Daemon) -> String {
    let log = daemon.log();
    let line = log.lines().rev().find_map(|line| line.split_once("the proxy listens on "));
    let (_, rest) = line.expect("the daemon has a proxy");
    rest.trim_matches(|c: char| !c.is_ascii_digit()).to_owned()
}

/// Polls until `done`.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < deadline, "did not happen: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// What the node at `url` says of itself; `None` while it does not answer.
pub fn info(url: &str) -> Option<Info> {
    let output = litefs(&["status", "--json", "--url", url]);
    let text = String::from_utf8(output.stdout).unwrap();
    output.status.success().then(|| serde_json::from_str(&text).unwrap())
}
