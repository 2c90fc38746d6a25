//! Nodes with their directories, and what tests do with them.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use litefs_node::{Config, Node};
use litefs_store::{Database, DbName, Pos};
use tempfile::TempDir;

/// Generous: the machine may be busy.
pub const LONG: Duration = Duration::from_secs(60);

/// A node and its data directory, which outlives it.
pub struct TestNode {
    node: Option<Node>,
    pub dir: TempDir,
    pub config: Config,
}

impl std::ops::Deref for TestNode {
    type Target = Node;

    fn deref(&self) -> &Node {
        self.node.as_ref().expect("the node is stopped")
    }
}

impl TestNode {
    pub fn start(adapt: impl FnOnce(Config) -> Config) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(dir.path()).listen(loopback());
        config.lease.reconnect_delay = Duration::from_millis(20);
        let config = adapt(config);
        let node = Some(Node::start(config.clone()).unwrap());
        Self { node, dir, config }
    }

    pub fn primary() -> Self {
        Self::start(|config| config)
    }

    pub fn replica_of(primary: &Node) -> Self {
        let url = format!("http://{}", primary.addr());
        Self::start(|config| config.replica_of(&url).unwrap())
    }

    /// Stops the node in order; the directory stays.
    pub fn stop(&mut self) {
        self.node.take().expect("the node is stopped").shutdown().unwrap();
    }

    /// Stops the node as a crash does: what was not folded stays in the log.
    pub fn crash(&mut self) {
        let image = tempfile::tempdir().unwrap();
        copy_dir(self.dir.path(), image.path());
        self.stop();
        self.config.data.dir = image.path().to_owned();
        self.dir = image;
    }

    /// Starts the node again, with changes to its configuration.
    pub fn restart(&mut self, adapt: impl FnOnce(Config) -> Config) {
        assert!(self.node.is_none(), "stop it first");
        self.config = adapt(self.config.clone());
        self.node = Some(Node::start(self.config.clone()).unwrap());
    }

    pub fn db(&self, name: &str) -> Database {
        self.store().database(&DbName::new(name).unwrap()).expect("no such database")
    }
}

pub fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub fn pos(node: &Node, name: &str) -> Pos {
    node.position(name).expect("no such database")
}

/// Runs statements on a database of this node.
pub fn sql(node: &Node, name: &str, text: &str) {
    node.open(name).unwrap().execute_batch(text).unwrap();
}

/// A table with rows of about `bytes` bytes each.
pub fn fill(node: &Node, name: &str, rows: usize, bytes: usize) {
    let mut conn = node.open(name).unwrap();
    conn.execute_batch("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, x BLOB)").unwrap();
    let tx = conn.transaction().unwrap();
    for _ in 0..rows {
        tx.execute("INSERT INTO t (x) VALUES (randomblob(?1))", [bytes as i64]).unwrap();
    }
    tx.commit().unwrap();
}

/// One transaction for each row.
pub fn insert_each(node: &Node, name: &str, rows: usize) {
    let conn = node.open(name).unwrap();
    conn.execute_batch("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, x BLOB)").unwrap();
    for _ in 0..rows {
        conn.execute("INSERT INTO t (x) VALUES (randomblob(100))", []).unwrap();
    }
}

pub fn count(node: &Node, name: &str) -> i64 {
    node.open(name).unwrap().query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
}

/// Waits until the replica is where the primary is, and compares every byte.
pub fn assert_same(primary: &Node, replica: &Node, name: &str) {
    let wanted = pos(primary, name);
    let reached = replica.wait_for(name, wanted, LONG).unwrap();
    assert_eq!(reached, wanted);
    let bytes = |node: &Node| {
        let mut out = Vec::new();
        let db = node.store().database(&DbName::new(name).unwrap()).unwrap();
        let at = db.export(&mut out).unwrap();
        (at, out)
    };
    let (ours, theirs) = (bytes(primary), bytes(replica));
    assert_eq!(ours.0, theirs.0);
    assert!(ours.1 == theirs.1, "{name} differs at {wanted}");
}

/// Polls until `done`, for conditions that nothing announces.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < deadline, "did not happen: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Copies a directory with all in it.
pub fn copy_dir(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
