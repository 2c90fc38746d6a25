//! Files and ports of a primary and a replica with a static lease.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::daemon::free_ports;

/// A directory with the nodes' files; one port for each node.
pub struct Place {
    /// Removed at the end.
    pub dir: TempDir,
    /// Of the nodes' APIs.
    pub ports: [u16; 2],
}

impl Place {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), ports: free_ports() }
    }

    /// A file of that name in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The API of that node.
    pub fn url(&self, node: usize) -> String {
        format!("http://127.0.0.1:{}", self.ports[node])
    }

    /// The configuration of node 0, the primary, or of node 1, its replica.
    pub fn config(&self, node: usize, more: &str) -> PathBuf {
        let path = self.path(&format!("node{node}.yml"));
        let text = format!(
            "data:\n  dir: {}\nhttp:\n  addr: 127.0.0.1:{}\nlease:\n  type: static\n  \
             candidate: {}\n  advertise-url: {}\n  reconnect-delay: 50ms\n{more}",
            self.path(&format!("data{node}")).display(),
            self.ports[node],
            node == 0,
            self.url(0),
        );
        fs::write(&path, text).unwrap();
        path
    }
}
