//! Three nodes and Consul in a lab, with a writer on each node that never rests.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use litefs_node::http::Info;
use litefs_vfs::rusqlite::Connection;
use tempfile::TempDir;

use crate::lab::{Consul, Host, Lab, Process};
use crate::ledger::{Ledger, Moment, Row};

/// How many nodes there are.
pub const NODES: usize = 3;
/// Consul's host.
pub const CONSUL: usize = NODES;
/// How long a primary may commit after it asked for its last renewal, with fast failover.
pub const RIGHT: Duration = Duration::from_millis(3500);
/// The same without fast failover: TTL - 1 s.
pub const SLOW_RIGHT: Duration = Duration::from_secs(9);
/// From the loss of a primary to the first commit elsewhere, with fast failover.
pub const FAILOVER: Duration = Duration::from_secs(8);
/// The same if all wait for Consul: it ends a session after at most two TTLs of 10 s, and then
/// keeps the key free for its lock-delay of 1 s.
pub const WORST_FAILOVER: Duration = Duration::from_secs(2 * 10 + 1 + 1);
/// Generous: the machine may be busy.
const LONG: Duration = Duration::from_secs(60);

/// How the writers reach their database.
#[derive(Debug, Clone, Copy)]
pub enum Face {
    /// Each is its node, and commits through the VFS.
    Vfs,
    /// Each is a plain client of the daemon's mount, in this journal mode.
    Mount(&'static str),
}

/// A node with its writer.
#[derive(Debug)]
pub struct Node {
    number: usize,
    config: PathBuf,
    data: PathBuf,
    mount: PathBuf,
    url: String,
    lives: i64,
    daemon: Option<Process>,
    writer: Option<Writer>,
}

/// The program that tries to commit, and its reader.
#[derive(Debug)]
struct Writer {
    process: Process,
    reader: Option<JoinHandle<()>>,
    paused: Arc<AtomicBool>,
}

/// The whole.
pub struct Cluster {
    /// Everything that was ever tried.
    pub ledger: Ledger,
    /// Node 0 is the first primary.
    pub nodes: Vec<Node>,
    /// On host [`CONSUL`].
    pub consul: Consul,
    /// The nodes' hosts, numbered like them, and Consul's.
    pub lab: Lab,
    face: Face,
    name: String,
    /// What the nodes had and the cluster did not keep, as rows.
    kept: Vec<(usize, Vec<Row>)>,
    dir: TempDir,
}

impl Cluster {
    /// Starts all, and waits until node 0 commits and the others follow it. `settings` are added to
    /// the nodes' configurations, behind those of Consul.
    pub fn start(name: &str, face: Face, settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let lab = Lab::new(NODES + 1);
        let consul = Consul::start(lab.host(CONSUL), dir.path());
        let node = |number| Node::new(number, dir.path(), &lab, face, settings);
        let nodes = (0..NODES).map(node).collect();
        let name = format!("{name}, {face:?}");
        let (ledger, kept) = (Ledger::default(), Vec::new());
        let mut cluster = Self { ledger, nodes, consul, lab, face, name, kept, dir };
        cluster.start_node(0);
        cluster.eventually("node 0 is primary", |cluster| {
            cluster.info(0).is_some_and(|info| info.is_primary)
        });
        cluster.start_node(1);
        cluster.start_node(2);
        cluster.eventually("the others follow node 0", |cluster| {
            cluster.info(0).is_some_and(|info| info.is_primary && info.replicas.len() == NODES - 1)
        });
        cluster.eventually("node 0 commits", |cluster| cluster.ledger.last_ack(0).is_some());
        cluster.run(Duration::from_millis(500));
        cluster
    }

    /// Starts a node that does not run, and a new writer.
    pub fn start_node(&mut self, node: usize) {
        self.nodes[node].start(self.lab.host(node), self.face, &self.ledger);
    }

    /// Kills a node like a power switch. A client of its mount goes on until the node is started.
    pub fn kill(&mut self, node: usize) {
        self.ledger.note_kill(node);
        let node = &mut self.nodes[node];
        match node.daemon.take() {
            Some(mut daemon) => daemon.kill(),
            None => node.writer.take().expect("it runs").kill(),
        }
    }

    /// Kills the primary, waits for a commit elsewhere and starts it again: the new primary, and
    /// the time until that commit.
    pub fn kill_primary(&mut self, primary: usize) -> (usize, Duration) {
        self.kill(primary);
        let (next, took) = self.first_ack(&Self::others(primary), Moment::now(), FAILOVER);
        self.run(Duration::from_millis(300));
        self.start_node(primary);
        assert_eq!(self.primary(), next, "the killed node took the lease back");
        (next, took)
    }

    /// Ends a node as an operator does, and waits for that. As for its clients, as in a kill.
    pub fn terminate(&mut self, node: usize) {
        self.ledger.note_kill(node);
        let node = &mut self.nodes[node];
        let status = match node.daemon.take() {
            Some(mut daemon) => {
                daemon.signal("TERM");
                daemon.wait(LONG)
            }
            None => {
                node.say("end");
                node.writer.take().expect("it runs").end()
            }
        };
        assert_eq!(status.code(), Some(0), "{}: how node {} ended", self.name, node.number);
    }

    /// Lets the writers do their work.
    pub fn run(&self, time: Duration) {
        thread::sleep(time);
    }

    /// The other nodes.
    pub fn others(node: usize) -> Vec<usize> {
        (0..NODES).filter(|&other| other != node).collect()
    }

    /// Prints a figure of this test.
    pub fn report(&self, text: &str) {
        println!("{}: {text}", self.name);
    }

    /// Polls until `done`.
    pub fn eventually(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + LONG;
        while !done(self) {
            for node in &mut self.nodes {
                let processes =
                    [node.writer.as_mut().map(|w| &mut w.process), node.daemon.as_mut()];
                for process in processes.into_iter().flatten() {
                    let ended = process.child.try_wait().unwrap();
                    assert!(ended.is_none(), "node {} ended: {ended:?}", node.number);
                }
            }
            assert!(Instant::now() < deadline, "{}: did not happen: {what}", self.name);
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until one of these nodes acknowledges a row; returns which one, and how long after
    /// `since`.
    pub fn first_ack(&self, nodes: &[usize], since: Moment, limit: Duration) -> (usize, Duration) {
        loop {
            if let Some(attempt) = self.ledger.first_after(nodes, since) {
                let took = attempt.acked().unwrap() - since;
                assert!(took <= limit, "{}: first commit after {took:?}", self.name);
                return (attempt.node, took);
            }
            assert!(Moment::now() - since < limit * 2, "{}: no commit at all", self.name);
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Reports how a primary was replaced that lost touch at `since`, and checks that it stopped
    /// when it had to.
    pub fn assert_replaced(&self, old: usize, since: Moment, right: Duration, took: Duration) {
        let last = self.ledger.last_ack(old).unwrap() - since;
        self.report(&format!("last commit after {last:?}, first one elsewhere after {took:?}"));
        self.ledger.assert_fenced(old, since, right, Moment::now());
    }

    /// The command line, on a node's host.
    pub fn litefs(&self, node: usize, args: &[&str]) -> Output {
        self.nodes[node].litefs(self.lab.host(node), args)
    }

    /// What a node says of itself; `None` while it does not answer.
    pub fn info(&self, node: usize) -> Option<Info> {
        let output = self.litefs(node, &["status", "--json", "--url", &self.nodes[node].url]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// The one primary, once all nodes agree on it.
    pub fn primary(&mut self) -> usize {
        let mut primary = None;
        self.eventually("one primary, and the others follow it", |cluster| {
            let infos: Vec<Info> = (0..NODES).filter_map(|node| cluster.info(node)).collect();
            let roles = |role: &str| infos.iter().filter(|info| info.role == role).count();
            primary = infos.iter().position(|info| info.is_primary);
            infos.len() == NODES && roles("primary") == 1 && roles("replica") == NODES - 1
        });
        primary.unwrap()
    }

    /// Asks a node to take over.
    pub fn promote(&self, node: usize) {
        let output = self.litefs(node, &["promote", "--url", &self.nodes[node].url]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: promote of node {node}: {error}", self.name);
    }

    /// Heals everything, and compares: all nodes are equal and sound, and everything that was
    /// acknowledged is there, or kept as what the cluster did not keep. Returns how many
    /// acknowledged rows are so. The writers pause then.
    pub fn settle(&mut self) -> usize {
        self.lab.heal();
        let healed = Moment::now();
        self.first_ack(&[0, 1, 2], healed, LONG);
        self.primary();
        self.run(Duration::from_millis(500));
        self.pause();
        self.eventually("all nodes are at one position", |cluster| {
            let positions: Vec<String> =
                (0..NODES).filter_map(|node| cluster.position(node)).collect();
            positions.len() == NODES && positions.iter().all(|position| *position == positions[0])
        });
        let exports: Vec<PathBuf> = (0..NODES).map(|node| self.export(node)).collect();
        let bytes = fs::read(&exports[0]).unwrap();
        for export in &exports[1..] {
            assert!(fs::read(export).unwrap() == bytes, "{}: the nodes differ", self.name);
        }
        let history = rows(&exports[0]);
        self.take_kept();
        let aside = self.ledger.check(&history, &self.kept);
        self.report(&format!("{} rows in the end, {aside} kept aside", history.len()));
        aside
    }

    /// Lets the writers go on after [`settle`](Self::settle).
    pub fn resume(&mut self) {
        for node in &mut self.nodes {
            node.writer.as_ref().expect("it runs").paused.store(false, Ordering::SeqCst);
            node.say("resume");
        }
    }

    fn pause(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.say("pause"));
        self.eventually("all writers pause", |cluster| {
            let paused = |node: &Node| node.writer.as_ref().is_some_and(Writer::is_paused);
            cluster.nodes.iter().all(paused)
        });
    }

    fn position(&self, node: usize) -> Option<String> {
        Some(self.info(node)?.databases.get("app.db")?.position.clone())
    }

    fn export(&self, node: usize) -> PathBuf {
        let out = self.dir.path().join(format!("export{node}.db"));
        let url = &self.nodes[node].url;
        let args = ["export", "--url", url, "--name", "app.db", out.to_str().unwrap()];
        let output = self.litefs(node, &args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        out
    }

    /// Takes what the nodes have kept aside: the rows of each database that the cluster did not
    /// keep.
    fn take_kept(&mut self) {
        for node in 0..NODES {
            let data = self.nodes[node].data.to_str().unwrap().to_owned();
            let ltx = |args: &[&str]| {
                let output = self.litefs(node, &[&["ltx"], args, &["--data-dir", &data]].concat());
                let error = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "node {node}, {args:?}: {error}");
                String::from_utf8(output.stdout).unwrap()
            };
            let listed = ltx(&["list", "--diverged", "--tsv"]);
            let mut taken = Vec::new();
            for name in listed.lines().skip(1).filter_map(|line| line.split('\t').next()) {
                let out = self.dir.path().join("kept.db");
                ltx(&["extract", "--diverged", name, "--out", out.to_str().unwrap()]);
                taken.push((node, rows(&out)));
                fs::remove_file(out).unwrap();
                ltx(&["forget", "--diverged", name]);
            }
            self.kept.extend(taken);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        eprintln!("---- {}", self.name);
        for node in &self.nodes {
            let log = fs::read_to_string(node.config.with_extension("log")).unwrap_or_default();
            eprintln!("log of node {}:\n{log}", node.number);
            let attempts = self.ledger.attempts(|attempt| attempt.node == node.number);
            eprintln!("its last attempt: {:?}", attempts.last());
        }
        let (_, keys) = self.consul.ask(self.lab.host(CONSUL), &["kv", "get", "-recurse"]);
        eprintln!("keys:\n{keys}");
    }
}

impl Node {
    fn new(number: usize, dir: &Path, lab: &Lab, face: Face, settings: &str) -> Self {
        let path = |what: &str| dir.join(format!("{what}{number}"));
        let (config, data, mount) =
            (path("node").with_extension("yml"), path("data"), path("mount"));
        let url = format!("http://{}:20202", lab.host(number).addr);
        let fuse = match face {
            Face::Vfs => String::new(),
            Face::Mount(_) => format!("fuse:\n  dir: {}\n", mount.display()),
        };
        fs::create_dir(&mount).unwrap();
        let text = format!(
            "data:\n  dir: {}\n{fuse}http:\n  addr: {}:20202\ntls:\n  insecure: true\nlog:\n  \
             timestamp: true\nlease:\n  type: consul\n  hostname: node{number}\n  advertise-url: \
             {url}\n  reconnect-delay: 200ms\n  consul:\n    url: http://{}:8500\n    key: \
             litefs/primary\n{settings}",
            data.display(),
            lab.host(number).addr,
            lab.host(CONSUL).addr,
        );
        fs::write(&config, text).unwrap();
        Self { number, config, data, mount, url, lives: 0, daemon: None, writer: None }
    }

    fn start(&mut self, host: &Host, face: Face, ledger: &Ledger) {
        let log = self.config.with_extension("log");
        let log = File::options().create(true).append(true).open(log).unwrap();
        let mut command = host.command(env!("CARGO_BIN_EXE_litefs-test-writer"));
        match face {
            Face::Vfs => command.arg("member").arg(&self.config),
            Face::Mount(mode) => {
                self.start_daemon(host, log.try_clone().unwrap());
                command.arg("client").arg(self.mount.join("app.db")).arg(mode)
            }
        };
        // A client of a mount that is gone may try for ten seconds before it notices.
        if let Some(left_behind) = self.writer.take() {
            left_behind.kill();
        }
        let first = (self.number as i64 + 1) * 1_000_000_000 + self.lives * 1_000_000 + 1;
        self.lives += 1;
        command.arg(first.to_string()).stderr(log);
        self.writer = Some(Writer::start(&mut command, self.number, ledger.clone()));
    }

    fn start_daemon(&mut self, host: &Host, log: File) {
        let mut command = host.command(env!("CARGO_BIN_EXE_litefs-daemon"));
        command.args(["mount", "--config"]).arg(&self.config);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.daemon = Some(Process::start(&mut command));
    }

    /// The process that is the node.
    pub fn process(&mut self) -> &mut Process {
        let writer = self.writer.as_mut().map(|writer| &mut writer.process);
        self.daemon.as_mut().or(writer).expect("it runs")
    }

    /// Where its data lies.
    pub fn data(&self) -> &Path {
        &self.data
    }

    fn say(&mut self, word: &str) {
        let writer = self.writer.as_mut().expect("it runs");
        let input = writer.process.child.stdin.as_mut().expect("it is piped");
        input.write_all(format!("{word}\n").as_bytes()).unwrap();
    }

    fn litefs(&self, host: &Host, args: &[&str]) -> Output {
        let mut command: Command = host.command(env!("CARGO_BIN_EXE_litefs-daemon"));
        command.args(args).stdin(Stdio::null()).output().unwrap()
    }
}

impl Writer {
    fn start(command: &mut Command, node: usize, ledger: Ledger) -> Self {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(command);
        let out = BufReader::new(process.child.stdout.take().unwrap());
        let paused = Arc::new(AtomicBool::new(false));
        let says_paused = paused.clone();
        let reader = thread::spawn(move || {
            for line in out.lines().map(Result::unwrap) {
                match line.starts_with("paused ") {
                    true => says_paused.store(true, Ordering::SeqCst),
                    false => ledger.note(node, &line),
                }
            }
        });
        Self { process, reader: Some(reader), paused }
    }

    fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Waits for its end; all that it has said is in the ledger then.
    fn end(mut self) -> ExitStatus {
        let status = self.process.wait(LONG);
        self.reader.take().unwrap().join().unwrap();
        status
    }

    /// Kills it; all that it has said is in the ledger then.
    fn kill(mut self) {
        self.process.kill();
        self.reader.take().unwrap().join().unwrap();
    }
}

/// The rows of a sound database, in the order of their commits.
fn rows(db: &Path) -> Vec<Row> {
    let connection = Connection::open(db).unwrap();
    let check: String =
        connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok", "{}", db.display());
    let mut select = connection.prepare("SELECT place, id FROM t ORDER BY place").unwrap();
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

/// Runs scenarios side by side; fails if one of them fails.
pub fn together(scenarios: &[&(dyn Fn() + Sync)]) {
    thread::scope(|scope| {
        let running: Vec<_> = scenarios.iter().map(|scenario| scope.spawn(scenario)).collect();
        let failed = running.into_iter().filter_map(|thread| thread.join().err()).count();
        assert_eq!(failed, 0, "of {} scenarios, see above", scenarios.len());
    });
}

/// A number of rounds: from the environment, or the one for every run.
pub fn rounds(variable: &str, usual: u32) -> u32 {
    std::env::var(variable).map_or(usual, |text| text.parse().unwrap())
}

/// What is asked of figures over many runs: the median and the largest.
pub fn summary(mut times: Vec<Duration>) -> String {
    times.sort();
    format!("p50 {:?}, max {:?} of {}", times[times.len() / 2], times[times.len() - 1], times.len())
}
