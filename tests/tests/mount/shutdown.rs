//! The mount's end: asked for, or found dead by the next daemon.

use std::path::Path;

use litefs_vfs::rusqlite::Connection;

use crate::daemon::litefs;
use crate::kills::{Writer, rows};
use crate::ledger::Ledger;
use crate::place::{Place, is_plain, read_text};
use crate::shell::{Session, sql};

const SETUP: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";

fn is_mounted(dir: &Path) -> bool {
    let dir = dir.to_str().unwrap();
    read_text(Path::new("/proc/self/mountinfo")).lines().any(|line| line.contains(dir))
}

#[test]
fn sigterm_unmounts_while_clients_hold_files_open() {
    if is_plain() {
        return;
    }
    let mut place = Place::alone();
    let mut clients = Vec::new();
    for mode in ["delete", "wal"] {
        let name = format!("{mode}.db");
        place.sql(
            &name,
            &format!("PRAGMA journal_mode={mode}; {SETUP}; INSERT INTO t VALUES (1, 1)"),
        );
        let mut client = Session::open(&place.db(&name));
        client.say("BEGIN IMMEDIATE; INSERT INTO t VALUES (2, 2); SELECT * FROM t");
        clients.push(client);
    }
    let mount = place.nodes[0].mount.clone();
    assert!(is_mounted(&mount));
    assert_eq!(place.nodes[0].take().terminate().code(), Some(0));
    assert!(!is_mounted(&mount), "the mount is left behind");
    // Only the one in DELETE mode: in WAL mode SQLite tries for ten seconds.
    let answer = clients[0].say("COMMIT");
    assert!(!answer.is_empty(), "a commit was acknowledged after the end");
    drop(clients);
    for name in ["delete.db", "wal.db"] {
        let base = place.nodes[0].data.join("dbs").join(name).join("base");
        let base = Connection::open(base).unwrap();
        let check: String = base.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
    }
    place.nodes[0].start();
    place.check("delete.db");
    place.check("wal.db");
}

/// The predecessor lost acknowledged commits of WAL databases when it was told to end.
#[test]
fn sigterm_under_a_writer_loses_no_acknowledged_commit() {
    if is_plain() {
        return;
    }
    let mut place = Place::alone();
    for mode in ["delete", "wal"] {
        let db = place.db(&format!("{mode}.db"));
        sql(&db, &format!("PRAGMA journal_mode={mode}; {SETUP}"));
        let mut ledger = Ledger::default();
        for synchronous in ["FULL", "NORMAL"] {
            let pragmas = format!("PRAGMA synchronous={synchronous};");
            let mut writer = Writer::start(&place, &db, &pragmas, ledger.next());
            std::thread::sleep(std::time::Duration::from_millis(100));
            assert_eq!(place.nodes[0].take().terminate().code(), Some(0));
            writer.end(&mut ledger);
            place.nodes[0].start();
            ledger.check(&rows(&db));
        }
    }
}

#[test]
fn the_mount_of_a_killed_daemon_is_cleaned_up_at_the_next_start() {
    if is_plain() {
        return;
    }
    let mut place = Place::alone();
    place.sql("a.db", &format!("{SETUP}; INSERT INTO t VALUES (1, 1)"));
    let mut old = Session::open(&place.db("a.db"));
    old.say("SELECT * FROM t");
    place.nodes[0].take().kill();
    let dead = std::fs::metadata(place.nodes[0].mount.join("b.db")).unwrap_err();
    assert_eq!(dead.kind(), std::io::ErrorKind::NotConnected, "{dead}");
    place.nodes[0].start();
    let log = place.nodes[0].daemon().log();
    let mount = place.nodes[0].mount.to_str().unwrap();
    let told = |line: &str| line.contains("unmounted") && line.contains(mount);
    assert!(log.lines().any(told), "{log}");
    place.sql("a.db", "INSERT INTO t VALUES (2, 2)");
    let refused = old.say("INSERT INTO t VALUES (3, 3)");
    assert!(!refused.is_empty(), "a client of the dead mount wrote");
    drop(old);
    place.check("a.db");
}

#[test]
fn a_second_daemon_neither_starts_nor_disturbs_the_mount_of_the_first() {
    if is_plain() {
        return;
    }
    let place = Place::alone();
    place.sql("a.db", SETUP);
    let mut client = Session::open(&place.db("a.db"));
    client.say("BEGIN IMMEDIATE; INSERT INTO t VALUES (1, 1)");
    let config = place.nodes[0].config.to_str().unwrap();
    let second = litefs(&["mount", "--config", config]);
    let error = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1));
    let pid = place.nodes[0].daemon().pid();
    assert!(error.contains(&format!("in use by process {pid}")), "{error}");
    assert_eq!(client.say("COMMIT"), "");
    drop(client);
    assert_eq!(sql(&place.db("a.db"), "SELECT count(*) FROM t"), "1");
}
