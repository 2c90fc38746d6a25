//! What needs the store at hand: changes of the role, commits beside the mount, and a kernel that
//! does not map shm files past the daemon. The clients are other processes all the same.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use litefs_fuse::{Cluster, Lag, Mount, MountOptions};
use litefs_node::{Config, Node};
use litefs_store::{DbName, Options, RemoteError, Store};
use litefs_vfs::rusqlite::Connection;
use tempfile::TempDir;

use crate::daemon::eventually;
use crate::place::is_plain;
use crate::shell::{Session, printed, sql, sql_error};

const SETUP: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, x); INSERT INTO t(x) VALUES (1)";
const MODES: [&str; 4] = ["delete", "truncate", "persist", "wal"];

struct Alone;

impl Cluster for Alone {
    fn primary(&self) -> Option<String> {
        None
    }

    fn lag(&self) -> Lag {
        Lag { behind: Some(Duration::ZERO), primary_time: None }
    }

    fn halt(&self, _: &DbName) -> Result<(), RemoteError> {
        Err(RemoteError::Refused("there is no primary".to_owned()))
    }

    fn resume(&self, _: &DbName) {}
}

/// A store with its mount.
pub struct Place {
    _mount: Mount,
    pub store: Store,
    dir: TempDir,
}

impl Place {
    fn new(passthrough: bool) -> Self {
        Self::with(passthrough, Options::default())
    }

    pub fn with(passthrough: bool, options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_with(dir.path().join("data"), options).unwrap();
        let options = MountOptions {
            dir: dir.path().join("mnt"),
            allow_other: false,
            debug: false,
            cluster: Arc::new(Alone),
            passthrough,
        };
        Self { _mount: Mount::start(&store, options).unwrap(), store, dir }
    }

    pub fn db(&self, name: &str) -> PathBuf {
        self.dir.path().join("mnt").join(name)
    }
}

/// Refused at once, with SQLite's own words.
fn assert_refused(mode: &str, session: &mut Session, write: &str) {
    let begun = Instant::now();
    let refused = session.say(write);
    let expected = match mode {
        "wal" => "disk I/O error",
        _ => "attempt to write a readonly database",
    };
    assert!(refused.contains(expected), "{mode}: {refused}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{mode}: after {:?}", begun.elapsed());
}

#[test]
fn connections_follow_every_change_of_the_role_without_reconnecting() {
    if is_plain() {
        return;
    }
    let place = Place::new(true);
    let gate = place.store.gate();
    for mode in MODES {
        let name = format!("{mode}.db");
        sql(&place.db(&name), &format!("PRAGMA journal_mode={mode}; {SETUP}"));
        gate.close("this node is a replica");
        let mut session = Session::open(&place.db(&name));
        let write = "INSERT INTO t(x) VALUES (2)";
        for round in 1..4 {
            assert_refused(mode, &mut session, write);
            assert_refused(mode, &mut session, write);
            assert_eq!(session.say("SELECT count(*) FROM t"), round.to_string());
            gate.open();
            assert_eq!(session.say(write), "", "{mode}: a refusal sticks to the connection");
            gate.close("this node is a replica");
        }
        gate.open();
        assert_eq!(session.say("DELETE FROM t WHERE id > 1"), "");
        // In the middle of a transaction.
        for spill in ["", "PRAGMA cache_size=2; UPDATE t SET x = zeroblob(100000)"] {
            session.say("BEGIN IMMEDIATE; INSERT INTO t(x) VALUES (3)");
            session.say(spill);
            gate.close("this node is a replica now");
            let refused = session.say("COMMIT");
            assert!(!refused.is_empty(), "{mode}: a replica acknowledged a commit");
            session.say("ROLLBACK");
            assert_eq!(session.say("SELECT count(*), max(x) FROM t"), "1|1", "{mode}");
            assert_eq!(sql(&place.db(&name), "SELECT count(*), max(x) FROM t"), "1|1", "{mode}");
            gate.open();
            assert_eq!(session.say("UPDATE t SET x = 1"), "", "{mode}");
        }
        assert_eq!(session.say("PRAGMA integrity_check"), "ok");
    }
}

/// The VFS and the mount on one database of one node: what one commits, the other reads.
fn two_faces_of_one_database(passthrough: bool) {
    if is_plain() {
        return;
    }
    let place = Place::new(passthrough);
    for mode in MODES {
        let name = format!("{mode}.db");
        let db = place.db(&name);
        sql(&db, &format!("PRAGMA journal_mode={mode}; {SETUP}"));
        let vfs = litefs_vfs::open(&place.store, &name).unwrap();
        vfs.busy_timeout(Duration::from_secs(30)).unwrap();
        let mut session = Session::open(&db);
        assert_eq!(session.say("SELECT count(*) FROM t"), "1");
        for round in 0..20 {
            let rows = 1 + 2 * round;
            assert_eq!(count(&vfs), rows, "{mode}: the VFS does not see the mount's commit");
            vfs.execute("INSERT INTO t(x) VALUES (zeroblob(3000))", []).unwrap();
            let expected = (rows + 1).to_string();
            eventually("the mount shows the VFS's commit", || {
                session.say("SELECT count(*) FROM t") == expected
            });
            assert_eq!(session.say("INSERT INTO t(x) VALUES (2)"), "", "{mode}");
        }
        // Neither keeps a state that the other has left.
        assert_eq!(session.say("BEGIN; SELECT count(*) FROM t"), "41");
        vfs.execute("INSERT INTO t(x) VALUES (3)", []).unwrap();
        assert_eq!(session.say("SELECT count(*) FROM t; PRAGMA quick_check"), "41\nok", "{mode}");
        session.say("COMMIT");
        eventually("the mount shows the VFS's commit", || {
            session.say("SELECT count(*) FROM t") == "42"
        });
        assert_eq!(session.say("PRAGMA integrity_check"), "ok");
        assert_eq!(session.say("PRAGMA journal_mode") == "wal", mode == "wal");
        let error = sql_error(&db, "INSERT INTO t(id) VALUES (1)");
        assert!(error.contains("UNIQUE"), "{error}");
    }
}

fn count(vfs: &Connection) -> i64 {
    vfs.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
}

#[test]
fn what_the_vfs_commits_is_seen_on_the_mount_and_the_other_way_round() {
    two_faces_of_one_database(true);
}

#[test]
fn without_passthrough_what_the_vfs_commits_is_seen_on_the_mount_as_well() {
    two_faces_of_one_database(false);
}

/// The kernel caches the shm then, and the daemon does not see what clients write there.
#[test]
fn without_passthrough_clients_of_a_wal_share_it_and_die_without_harm() {
    if is_plain() {
        return;
    }
    let place = Place::new(false);
    let db = place.db("a.db");
    sql(&db, &format!("PRAGMA journal_mode=wal; {SETUP}"));
    let mut watcher = Session::open(&db);
    let mut rows: usize = watcher.say("SELECT count(*) FROM t").parse().unwrap();
    for round in 0..10 {
        let mut writer = Session::open(&db);
        writer.say("PRAGMA cache_size=2");
        assert_eq!(writer.say("INSERT INTO t(x) VALUES (2)"), "");
        rows += 1;
        assert_eq!(watcher.say("SELECT count(*) FROM t"), rows.to_string());
        writer.say("BEGIN; INSERT INTO t(x) VALUES (zeroblob(60000)), (zeroblob(60000))");
        if round % 2 == 0 {
            assert_eq!(writer.say("COMMIT"), "");
            rows += 2;
        }
        writer.kill();
        assert_eq!(watcher.say("SELECT count(*) FROM t"), rows.to_string(), "round {round}");
        assert_eq!(watcher.say("INSERT INTO t(x) VALUES (3)"), "");
        rows += 1;
        assert_eq!(
            sql(&db, "SELECT count(*) FROM t; PRAGMA integrity_check"),
            format!("{rows}\nok")
        );
        if round % 3 == 2 {
            watcher.say("PRAGMA wal_checkpoint(TRUNCATE)");
        }
    }
}

/// Programs that wait for the node would write into the directory below the mount.
#[test]
fn a_node_is_not_ready_before_its_mount_is_there() {
    if is_plain() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::new(dir.path().join("data")).listen("127.0.0.1:0".parse().unwrap());
    config.fuse.dir = Some(dir.path().join("mnt"));
    let node = Node::start(config).unwrap();
    let ready = || {
        let url = format!("http://{}/health/ready", node.addr());
        printed(std::process::Command::new("curl").args(["-sS", "-w", "%{http_code}", &url]))
    };
    eventually("the mount is all that is missing", || ready().contains("fuse.dir is not mounted"));
    assert!(ready().ends_with("503"));
    let mount = node.mount().unwrap();
    assert!(ready().ends_with("200"));
    drop(mount);
    node.shutdown().unwrap();
}
