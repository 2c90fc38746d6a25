//! Risk: a web application with LiteFS's own package for it, unmodified, stops or shows a client
//! an older state than it has seen when its primary dies. The example for express, on two nodes
//! with a Consul; each node is like a container: its own processes, mounts and host name.

#[path = "support/consul.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod consul;
#[path = "support/daemon.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod daemon;
#[path = "support/npm.rs"]
mod npm;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use consul::{Consul, loopback_ip};
use daemon::eventually;

/// A node with the application.
struct Node {
    name: &'static str,
    ip: String,
    dir: PathBuf,
    consul: String,
    process: Option<Child>,
}

impl Node {
    fn new(name: &'static str, consul: &Consul, dir: &Path) -> Self {
        let dir = dir.join(name);
        fs::create_dir(&dir).unwrap();
        Self { name, ip: loopback_ip(), dir, consul: consul.url(), process: None }
    }

    /// Starts the daemon, which starts the application.
    fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.log_path()).unwrap();
        let script = format!("hostname {} && exec \"$0\" mount", self.name);
        let child = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "--uts"])
            .args(["sh", "-c", &script, env!("CARGO_BIN_EXE_litefs-daemon")])
            .current_dir(npm::express_example())
            .env_remove("HOSTNAME")
            .env("HOST", &self.ip)
            .env("CONSUL_URL", &self.consul)
            .env("DATABASE_FILENAME", "app.db")
            .env("DATA_DIR", self.dir.join("data"))
            .env("LITEFS_DIR", self.dir.join("mount"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(child);
        eventually("the application answers", || self.get("").is_some());
    }

    /// Kills the daemon, and with it all that it started.
    fn kill(&mut self) {
        let mut child = self.process.take().expect("it runs");
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let daemon = fs::read_to_string(children).unwrap().trim().to_owned();
        assert!(Command::new("kill").args(["-9", &daemon]).status().unwrap().success());
        child.wait().unwrap();
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Asks the proxy; `None` unless the answer is a good one.
    fn ask(&self, method: &str, cookies: &str) -> Option<String> {
        let url = format!("http://{}:8080/visits", self.ip);
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-i", "--fail", "--max-time", "30", "-X", method, "-b", cookies, &url]);
        let output = curl.stdin(Stdio::null()).output().expect("curl is installed");
        let answer = String::from_utf8(output.stdout).unwrap().replace("\r\n", "\n");
        output.status.success().then_some(answer)
    }

    /// How many visits there are for a client with these cookies.
    fn get(&self, cookies: &str) -> Option<u64> {
        let answer = self.ask("GET", cookies)?;
        let (number, name) = answer.split_once("\n\n")?.1.trim().split_once(" visits, says ")?;
        assert_eq!(name, self.name, "reads are not forwarded");
        Some(number.parse().unwrap())
    }

    /// Writes as a client with these cookies.
    fn post(&self, cookies: &str) -> Option<Visit> {
        let answer = self.ask("POST", cookies)?;
        let (head, body) = answer.split_once("\n\n")?;
        let (number, on) = body.strip_prefix("visit ")?.trim().split_once(" on ")?;
        let cookie = |line: &str| {
            let (name, value) = line.split_once(": ")?;
            let value = value.split(';').next()?.to_owned();
            name.eq_ignore_ascii_case("set-cookie").then_some(value)
        };
        let cookies: Vec<String> = head.lines().filter_map(cookie).collect();
        let is_there = |name: &str| cookies.iter().any(|cookie| cookie.starts_with(name));
        assert!(is_there("__txid=") && is_there("txnum="), "{head}");
        let cookies = cookies.join("; ");
        Some(Visit { number: number.parse().unwrap(), on: on.to_owned(), cookies })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.log_path()).unwrap_or_default();
            eprintln!("log of {}:\n{log}", self.name);
        }
        if self.process.is_some() {
            self.kill();
        }
    }
}

/// A write that was acknowledged.
struct Visit {
    number: u64,
    /// The host whose application made it.
    on: String,
    cookies: String,
}

/// Writes through each node in turn; each client then reads its own write on both.
fn exchange(nodes: &[Node; 2], primary: &str, from: u64, rounds: u64) -> Visit {
    let mut last = None;
    for number in from..from + rounds {
        let cookies = last.as_ref().map_or("", |visit: &Visit| &visit.cookies);
        let visit = nodes[(number % 2) as usize].post(cookies).expect("writes are taken");
        assert_eq!((visit.number, visit.on.as_str()), (number, primary));
        for node in nodes {
            assert_eq!(node.get(&visit.cookies), Some(number), "{} shows it", node.name);
        }
        last = Some(visit);
    }
    last.expect("at least one round")
}

#[test]
fn an_express_app_with_litefs_js_survives_the_death_of_its_primary() {
    let (consul, dir) = (Consul::start(), tempfile::tempdir().unwrap());
    let mut nodes = ["node-1", "node-2"].map(|name| Node::new(name, &consul, dir.path()));
    nodes.iter_mut().for_each(Node::start);
    // From here on, an answer waits for the other node's disk.
    let synced = || {
        let log = fs::read_to_string(nodes[0].log_path()).unwrap();
        nodes[0].post("").is_some() && log.contains("commits are confirmed by replica")
    };
    eventually("the second node confirms", synced);
    let visits = nodes[0].get("").unwrap();
    let before = exchange(&nodes, "node-1", visits + 1, 10);

    nodes[0].kill();
    // The client asks the other node, which holds its writes and, until it is the primary, no more.
    assert_eq!(nodes[1].get(&before.cookies), Some(before.number));
    let mut after = None;
    eventually("the other node takes writes", || {
        after = nodes[1].post(&before.cookies);
        after.is_some()
    });
    let after = after.unwrap();
    assert_eq!(after.on, "node-2");
    // The attempt that met no primary did nothing.
    assert_eq!(after.number, before.number + 1);
    assert_eq!(nodes[1].get(&before.cookies), Some(after.number));

    nodes[0].start();
    assert_eq!(nodes[0].get(&after.cookies), Some(after.number));
    exchange(&nodes, "node-2", after.number + 1, 10);
}
