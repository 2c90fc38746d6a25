//! Nodes in this process, with a Consul.

use std::time::Duration;

use litefs_node::config::ConsulConfig;
use litefs_node::{Config, Node};

use super::consul::{Consul, loopback_ip};
use super::daemon::eventually;

/// The lease's key in these tests.
pub const KEY: &str = "test/primary";

/// A node, its directory and its configuration.
pub struct TestNode {
    node: Option<Node>,
    pub config: Config,
    _dir: tempfile::TempDir,
}

impl std::ops::Deref for TestNode {
    type Target = Node;

    fn deref(&self) -> &Node {
        self.node.as_ref().expect("the node is stopped")
    }
}

impl TestNode {
    /// A node that is not started yet, at an address of its own.
    pub fn new(consul: &Consul, adapt: impl FnOnce(&mut Config)) -> Self {
        log();
        let dir = tempfile::tempdir().unwrap();
        let ip = loopback_ip();
        let consul = ConsulConfig::new(consul.url().parse().unwrap(), KEY);
        let mut config =
            Config::new(dir.path()).listen(format!("{ip}:0").parse().unwrap()).with_consul(consul);
        config.lease.hostname = Some(ip);
        config.lease.reconnect_delay = Duration::from_millis(100);
        adapt(&mut config);
        Self { node: None, config, _dir: dir }
    }

    /// A node that runs.
    pub fn start(consul: &Consul) -> Self {
        let mut node = Self::new(consul, |_| ());
        node.run();
        node
    }

    /// Starts it.
    pub fn run(&mut self) {
        assert!(self.node.is_none(), "it runs already");
        self.node = Some(Node::start(self.config.clone()).unwrap());
    }

    /// Shuts it down.
    pub fn stop(&mut self) {
        self.node.take().expect("it does not run").shutdown().unwrap();
    }

    /// Its name, by which others know it as the primary.
    pub fn name(&self) -> String {
        self.config.primary_hostname()
    }

    /// Who is primary, as it says.
    pub fn primary(&self) -> Option<String> {
        self.role().borrow().primary_hostname.clone()
    }

    pub fn execute(&self, sql: &str) -> Result<(), String> {
        let conn = self.open("db").map_err(|error| error.to_string())?;
        conn.execute_batch(sql).map_err(|error| error.to_string())
    }

    pub fn count(&self) -> i64 {
        let conn = self.open("db").unwrap();
        conn.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap_or(-1)
    }
}

/// A failed test shows what the nodes said.
fn log() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| litefs_node::logging::init(&Config::new("/tmp").log).unwrap());
}

/// A Consul and a cluster of so many nodes, in sync, with a table `t`; the first is primary.
pub fn cluster(size: usize) -> (Consul, Vec<TestNode>) {
    let consul = Consul::start();
    let mut nodes = vec![TestNode::start(&consul)];
    eventually("the first node is primary", || nodes[0].is_primary());
    nodes[0].execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x)").unwrap();
    nodes.extend((1..size).map(|_| TestNode::start(&consul)));
    wait_in_sync(&nodes[0], &nodes[1..]);
    (consul, nodes)
}

/// Waits until these follow that primary and have everything.
pub fn wait_in_sync<'a>(primary: &TestNode, replicas: impl IntoIterator<Item = &'a TestNode>) {
    for replica in replicas {
        eventually("the replica follows", || replica.primary() == Some(primary.name()));
        eventually("the replica has everything", || {
            replica.position("db") == primary.position("db") && replica.lag().is_some()
        });
    }
}
