//! Where a scenario runs: the mount of a primary, its replica, and a plain directory as control.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::daemon::{Daemon, done, eventually, free_ports};
use crate::shell::{Session, Twin, sql};

/// A node with its mount. Unmounted when dropped, whatever state it is in.
pub struct Node {
    daemon: Option<Daemon>,
    pub config: PathBuf,
    pub data: PathBuf,
    pub mount: PathBuf,
    pub url: String,
}

impl Node {
    /// Starts the daemon, and waits until it has mounted.
    pub fn start(&mut self) {
        assert!(self.daemon.is_none(), "it runs");
        let mut daemon = Daemon::spawn(&self.config);
        let lag = self.mount.join(".lag");
        daemon.wait(|| lag.exists());
        self.daemon = Some(daemon);
    }

    pub fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("it runs")
    }

    /// Takes the running daemon, to end it.
    pub fn take(&mut self) -> Daemon {
        self.daemon.take().expect("it runs")
    }

    /// Kills the daemon and starts it again, over the mount that it left.
    pub fn kill_and_restart(&mut self) {
        self.take().kill();
        self.start();
    }

    fn export(&self, name: &str) -> Vec<u8> {
        let out = self.config.with_extension("export");
        done(&["export", "--url", &self.url, "--name", name, out.to_str().unwrap()]);
        fs::read(out).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.config.with_extension("log")).unwrap_or_default();
            eprintln!("log of {}:\n{log}", self.mount.display());
        }
        drop(self.daemon.take());
        // The mount of a daemon that was killed; there is none after a clean end.
        let mut umount = Command::new("umount");
        let _ = umount.arg("-l").arg(&self.mount).stderr(Stdio::null()).status();
    }
}

/// One or two nodes, or a plain directory; and a plain directory as control.
pub struct Place {
    /// The primary, then its replica. None: everything is plain.
    pub nodes: Vec<Node>,
    /// The mounts may show another change counter than each other: a client in exclusive mode does
    /// not count its commits, and one that makes a removed database anew counts from 1, and others
    /// must see that there was a change.
    pub own_counters: bool,
    dir: TempDir,
    control: TempDir,
}

/// True if the scenarios are to run on a plain directory.
pub fn is_plain() -> bool {
    std::env::var_os("LITEFS_TESTS_PLAIN").is_some()
}

impl Place {
    /// A primary.
    pub fn alone() -> Self {
        Self::start(1)
    }

    /// A primary and a replica.
    pub fn pair() -> Self {
        Self::start(2)
    }

    fn start(nodes: usize) -> Self {
        let mut place = Self::prepare(nodes);
        place.nodes.iter_mut().for_each(Node::start);
        place
    }

    /// A primary and a replica with lines added to its configuration.
    pub fn pair_with(replica: &str) -> Self {
        let mut place = Self::prepare(2);
        if let Some(node) = place.nodes.get(1) {
            let text = fs::read_to_string(&node.config).unwrap() + replica;
            fs::write(&node.config, text).unwrap();
        }
        place.nodes.iter_mut().for_each(Node::start);
        place
    }

    /// The configured nodes, not started.
    pub fn prepare(nodes: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("plain")).unwrap();
        // In memory: it is synced for nothing.
        let control = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut place = Self { nodes: Vec::new(), own_counters: false, dir, control };
        if !is_plain() {
            let ports = free_ports();
            place.nodes = (0..nodes).map(|node| place.node(node, ports)).collect();
        }
        place
    }

    fn node(&self, node: usize, ports: [u16; 2]) -> Node {
        let path = |what: &str| self.dir.path().join(format!("{what}{node}"));
        let (data, mount) = (path("data"), path("mnt"));
        fs::create_dir(&mount).unwrap();
        let config = path("node").with_extension("yml");
        let text = format!(
            "data:\n  dir: {}\nfuse:\n  dir: {}\nhttp:\n  addr: 127.0.0.1:{}\nlease:\n  type: \
             static\n  hostname: primary.host\n  candidate: {}\n  advertise-url: \
             http://127.0.0.1:{}\n  reconnect-delay: 100ms\n",
            data.display(),
            mount.display(),
            ports[node],
            node == 0,
            ports[0],
        );
        fs::write(&config, text).unwrap();
        Node { daemon: None, config, data, mount, url: format!("http://127.0.0.1:{}", ports[node]) }
    }

    /// A directory of the test, beside everything else.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where the primary's databases are.
    pub fn primary_dir(&self) -> PathBuf {
        self.nodes.first().map_or_else(|| self.dir.path().join("plain"), |node| node.mount.clone())
    }

    /// A database on the primary.
    pub fn db(&self, name: &str) -> PathBuf {
        self.primary_dir().join(name)
    }

    /// The same database on the replica.
    pub fn copy(&self, name: &str) -> PathBuf {
        self.nodes.get(1).map_or_else(|| self.db(name), |node| node.mount.join(name))
    }

    /// The same database in the control's directory.
    pub fn control(&self, name: &str) -> PathBuf {
        self.control.path().join(name)
    }

    /// Runs statements on the primary and on the control, which must print the same.
    pub fn sql(&self, name: &str, statements: &str) -> String {
        let printed = sql(&self.db(name), statements);
        let expected = sql(&self.control(name), statements);
        assert_eq!(printed, expected, "{name}: another answer than plain SQLite's");
        printed
    }

    /// Opens a shell on the primary and one on the control.
    pub fn twin(&self, name: &str) -> Twin {
        Twin { real: Session::open(&self.db(name)), control: Session::open(&self.control(name)) }
    }

    /// The position that the primary shows.
    pub fn pos(&self, name: &str) -> String {
        match self.nodes.is_empty() {
            true => String::new(),
            false => read_text(&self.db(&format!("{name}-pos"))),
        }
    }

    /// Waits until the replica shows what the primary shows.
    pub fn wait_for_replica(&self, name: &str) {
        if self.nodes.len() < 2 {
            return;
        }
        let wanted = self.pos(name);
        let copy = self.copy(&format!("{name}-pos"));
        let mut shown = String::new();
        eventually(&format!("the replica shows {name} at {wanted}"), || {
            shown = fs::read_to_string(&copy).unwrap_or_default();
            shown == wanted
        });
    }

    /// The database has the control's content, is sound, and is on the replica byte for byte. No
    /// client may have it open.
    pub fn check(&self, name: &str) {
        let dump = self.check_replica(name);
        assert!(dump == sql(&self.control(name), ".dump"), "{name} differs from plain SQLite's");
    }

    /// The database is sound, and on the replica byte for byte; returns its content as SQL.
    pub fn check_replica(&self, name: &str) -> String {
        let (db, copy) = (self.db(name), self.copy(name));
        let check = "PRAGMA wal_checkpoint(TRUNCATE); PRAGMA integrity_check";
        let printed = sql(&db, check);
        assert!(printed.ends_with("\nok"), "{name}: {printed}");
        assert!(printed.starts_with("0|"), "{name}: not all of the WAL was copied: {printed}");
        let dump = sql(&db, ".dump");
        self.wait_for_replica(name);
        self.assert_same(&db, &copy);
        assert_eq!(sql(&copy, "PRAGMA integrity_check"), "ok", "{name} on the replica");
        assert!(dump == sql(&copy, ".dump"), "{name}: the replica reads something else");
        self.assert_same(&db, &copy);
        dump
    }

    fn assert_same(&self, db: &Path, copy: &Path) {
        if !self.own_counters {
            return assert_same_bytes(db, copy);
        }
        let [db, copy] = [db, copy].map(|path| {
            let mut bytes = fs::read(path).unwrap();
            bytes[24..28].fill(0);
            bytes[92..96].fill(0);
            bytes
        });
        assert!(db == copy, "primary and replica differ in more than the change counter");
    }

    /// What the nodes export over HTTP is what they show.
    pub fn check_export(&self, name: &str) {
        for node in &self.nodes {
            let shown = fs::read(node.mount.join(name)).unwrap();
            assert!(shown == node.export(name), "{name}: the mount shows other bytes than the log");
        }
    }
}

/// Compares two files without reading them whole.
pub fn assert_same_bytes(one: &Path, other: &Path) {
    let (mut a, mut b) = (File::open(one).unwrap(), File::open(other).unwrap());
    let (mut piece, mut other_piece) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    loop {
        let (n, m) = (read_full(&mut a, &mut piece), read_full(&mut b, &mut other_piece));
        let differs = piece[..n].iter().zip(&other_piece[..m]).position(|(x, y)| x != y);
        let names = (one.display(), other.display());
        assert_eq!(differs.map(|byte| at + byte), None, "byte that differs in {names:?}");
        assert_eq!(at + n, at + m, "lengths of {names:?}");
        if n == 0 {
            return;
        }
        at += n;
    }
}

fn read_full(file: &mut File, buf: &mut [u8]) -> usize {
    let mut filled = 0;
    while filled < buf.len() {
        match file.read(&mut buf[filled..]).unwrap() {
            0 => break,
            n => filled += n,
        }
    }
    filled
}

/// A small file's content.
pub fn read_text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
