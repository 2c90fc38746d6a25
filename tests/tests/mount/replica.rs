//! What a replica's clients see: refused writes, and reads that never hold the cluster up.

use std::fs;
use std::time::{Duration, Instant};

use crate::place::{Place, is_plain, read_text};
use crate::shell::{Session, python, sql, sql_error};

const SETUP: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, x); INSERT INTO t(x) VALUES (1)";

fn database(place: &Place, mode: &str) -> String {
    let name = format!("{mode}.db");
    place.sql(&name, &format!("PRAGMA journal_mode={mode}; {SETUP}"));
    place.wait_for_replica(&name);
    name
}

#[test]
fn a_write_on_a_replica_is_refused_at_once_and_reads_go_on() {
    if is_plain() {
        return;
    }
    let place = Place::pair();
    for mode in ["delete", "truncate", "persist", "wal"] {
        let name = database(&place, mode);
        let mut shell = Session::open(&place.copy(&name));
        let expected = match mode {
            "wal" => "disk I/O error",
            _ => "attempt to write a readonly database",
        };
        for _ in 0..2 {
            let begun = Instant::now();
            let refused = shell.say("INSERT INTO t(x) VALUES (2)");
            let took = begun.elapsed();
            assert!(refused.contains(expected), "{mode}: {refused}");
            assert!(took < Duration::from_secs(5), "{mode}: waited {took:?} for a lock");
            assert_eq!(shell.say("SELECT count(*) FROM t"), "1");
        }
        let other = sql_error(&place.copy(&name), "DELETE FROM t");
        assert!(other.contains(expected), "{mode}: {other}");
        drop(shell);
        // The refusals have not left anything behind that keeps records from being shown.
        place.sql(&name, "INSERT INTO t(x) VALUES (2)");
        place.check(&name);
    }
    let error = sql_error(&place.copy("new.db"), SETUP);
    assert!(error.contains("readonly") || error.contains("unable to open"), "{error}");
    let removed = fs::remove_file(place.copy("delete.db")).unwrap_err();
    assert_eq!(removed.kind(), std::io::ErrorKind::PermissionDenied);
    place.check("delete.db");
}

/// B3: one open transaction on a replica stopped all databases' records.
#[test]
fn b3_an_open_reader_delays_its_own_database_only_and_sees_one_state() {
    if is_plain() {
        return;
    }
    let place = Place::pair();
    for mode in ["delete", "wal"] {
        let name = database(&place, mode);
        place.sql("other.db", "CREATE TABLE IF NOT EXISTS t(x)");
        let mut reader = Session::open(&place.copy(&name));
        assert_eq!(reader.say("BEGIN; SELECT count(*) FROM t"), "1");
        for _ in 0..50 {
            place.sql(&name, "INSERT INTO t(x) VALUES (2)");
        }
        place.sql("other.db", "INSERT INTO t VALUES (3)");
        place.wait_for_replica("other.db");
        // In the log at once: ready to take over.
        let exported = exported_rows(&place, &name);
        assert_eq!(exported, "51", "{mode}: the replica has not got what its reader does not see");
        assert_eq!(reader.say("SELECT count(*) FROM t"), "1", "{mode}: the reader's state moved");
        reader.say("COMMIT");
        place.wait_for_replica(&name);
        assert_eq!(reader.say("SELECT count(*) FROM t"), "51");
        drop(reader);
        place.check(&name);
    }
    place.check("other.db");
}

/// What the replica exports over HTTP: the newest state of its log.
fn exported_rows(place: &Place, name: &str) -> String {
    let out = place.dir().join("exported.db");
    let wanted = place.pos(name);
    let txid = wanted.split('/').next().unwrap();
    crate::daemon::eventually("the replica has the record in its log", || {
        let info = crate::daemon::info(&place.nodes[1].url).expect("the replica answers");
        info.databases.get(name).is_some_and(|found| found.position.starts_with(txid))
    });
    let url = &place.nodes[1].url;
    crate::daemon::done(&["export", "--url", url, "--name", name, out.to_str().unwrap()]);
    let rows = sql(&out, "SELECT count(*) FROM t");
    fs::remove_file(out).unwrap();
    rows
}

/// B3: short readers that overlap kept the predecessor's replica from ever showing a record.
#[test]
fn b3_overlapping_short_readers_do_not_keep_records_from_being_shown() {
    if is_plain() {
        return;
    }
    let place = Place::pair();
    let overlap = "
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
until = time.monotonic() + 60
last = 0
while time.monotonic() < until and last < 30:
    db.execute('BEGIN')
    n, = db.execute('SELECT count(*) FROM t').fetchone()
    time.sleep(0.02)
    m, = db.execute('SELECT count(*) FROM t').fetchone()
    db.execute('COMMIT')
    assert n == m and n >= last, (last, n, m)
    last = n
assert last == 30, last
";
    for mode in ["delete", "wal"] {
        let name = database(&place, mode);
        let copy = place.copy(&name);
        let mut readers: Vec<_> = (0..8)
            .map(|_| Killed(python(overlap, &[copy.to_str().unwrap()]).spawn().unwrap()))
            .collect();
        for _ in 1..30 {
            place.sql(&name, "INSERT INTO t(x) VALUES (2)");
        }
        for reader in &mut readers {
            assert!(reader.0.wait().unwrap().success(), "{mode}: a reader failed");
        }
        drop(readers);
        place.check(&name);
    }
}

/// A child that is killed when dropped.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Readers of the predecessor's replicas died with SIGBUS: the shm was cut under their mapping.
#[test]
fn readers_of_a_wal_database_survive_restarts_of_the_wal_and_shrinks() {
    if is_plain() {
        return;
    }
    let place = Place::pair();
    let name = "a.db";
    place.sql(name, &format!("PRAGMA journal_mode=wal; {SETUP}"));
    place.wait_for_replica(name);
    let mut readers: Vec<Session> = (0..3).map(|_| Session::open(&place.copy(name))).collect();
    readers.iter_mut().for_each(|reader| _ = reader.say("PRAGMA mmap_size=100000000"));
    for round in 0..15 {
        place.sql(
            name,
            "INSERT INTO t(x) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT
             300) SELECT printf('%02000d', i) FROM n; PRAGMA wal_checkpoint(TRUNCATE)",
        );
        let reader = &mut readers[round % 3];
        reader.say("BEGIN; SELECT count(*), sum(length(x)) FROM t");
        place.sql(name, "DELETE FROM t WHERE id % 7; VACUUM; PRAGMA wal_checkpoint(TRUNCATE)");
        let reader = &mut readers[round % 3];
        reader.say("SELECT count(*), sum(length(x)) FROM t; COMMIT");
        for reader in &mut readers {
            assert_eq!(reader.say("PRAGMA quick_check"), "ok");
        }
    }
    place.wait_for_replica(name);
    let expected = place.sql(name, "SELECT count(*), sum(length(x)) FROM t");
    for reader in &mut readers {
        assert_eq!(reader.say("SELECT count(*), sum(length(x)) FROM t"), expected);
    }
    drop(readers);
    place.check(name);
}

/// B18: a database that was removed while the replica was away stayed there for ever.
#[test]
fn b18_a_database_removed_while_the_replica_was_away_goes_there_too() {
    if is_plain() {
        return;
    }
    let mut place = Place::pair();
    let (gone, kept) = (database(&place, "delete"), database(&place, "wal"));
    place.nodes[1].take().kill();
    fs::remove_file(place.db(&gone)).unwrap();
    place.sql(&kept, "INSERT INTO t(x) VALUES (2)");
    place.nodes[1].start();
    place.check(&kept);
    crate::daemon::eventually("the removed database goes from the replica", || {
        !place.copy(&gone).exists()
    });
    // And under the eyes of a client, which must not bring it back.
    let mut reader = Session::open(&place.copy(&kept));
    reader.say("SELECT * FROM t");
    fs::remove_file(place.db(&kept)).unwrap();
    crate::daemon::eventually("the removed database goes from the replica", || {
        !is_listed(&place.nodes[1].mount, &kept)
    });
    reader.say("SELECT * FROM t");
    drop(reader);
    sql(&place.db(&kept), "PRAGMA page_size=1024; CREATE TABLE u(x); INSERT INTO u VALUES (8)");
    place.check_replica(&kept);
}

fn is_listed(dir: &std::path::Path, name: &str) -> bool {
    fs::read_dir(dir).unwrap().any(|entry| entry.unwrap().file_name() == name)
}

#[test]
fn a_replica_that_starts_later_shows_what_was_there_before_though_a_client_is_exclusive() {
    if is_plain() {
        return;
    }
    let mut place = Place::prepare(2);
    place.nodes[0].start();
    let mut writers = Vec::new();
    for mode in ["delete", "wal"] {
        let mut writer = Session::open(&place.db(&format!("{mode}.db")));
        writer.say("PRAGMA locking_mode=EXCLUSIVE");
        writer.say(&format!("PRAGMA journal_mode={mode}"));
        assert_eq!(writer.say(SETUP), "");
        writers.push(writer);
    }
    place.nodes[1].start();
    for (writer, name) in writers.iter_mut().zip(["delete.db", "wal.db"]) {
        assert_eq!(writer.say("INSERT INTO t(x) VALUES (2)"), "");
        place.wait_for_replica(name);
        assert_eq!(sql(&place.copy(name), "SELECT count(*) FROM t"), "2");
    }
}

#[test]
fn an_import_over_a_database_is_seen_by_clients_of_both_nodes() {
    if is_plain() {
        return;
    }
    let place = Place::pair();
    for mode in ["delete", "wal"] {
        let name = database(&place, mode);
        let mut near = Session::open(&place.db(&name));
        let mut far = Session::open(&place.copy(&name));
        near.say("SELECT * FROM t");
        far.say("SELECT * FROM t");
        let mut before = mode;
        for (kind, size) in [("delete", 4096), ("wal", 1024), ("wal", 2048), ("delete", 8192)] {
            let file = place.dir().join(format!("{mode}-{kind}.sqlite"));
            sql(
                &file,
                &format!(
                    "PRAGMA page_size={size}; PRAGMA journal_mode={kind}; {SETUP}; INSERT INTO t(x)
                     VALUES ({size})"
                ),
            );
            let file = file.to_str().unwrap();
            let url = &place.nodes[0].url;
            crate::daemon::done(&["import", "--url", url, "--name", &name, file]);
            let newest = format!("SELECT max(x) FROM t WHERE x = {size}");
            crate::daemon::eventually("clients see what was imported", || {
                near.say(&newest) == size.to_string() && far.say(&newest) == size.to_string()
            });
            let write = "INSERT INTO t(x) VALUES (9)";
            let written = near.say(write);
            if before != kind {
                // SQLite cannot leave the WAL of an open connection behind: it may have to open
                // the database again.
                assert!(written.is_empty() || written.contains("disk I/O error"), "{written}");
                near = Session::open(&place.db(&name));
            }
            if before == kind || !written.is_empty() {
                assert_eq!(near.say(write), "", "{before} to {kind}");
            }
            before = kind;
            fs::remove_file(file).unwrap();
        }
        drop((near, far));
        let dump = place.check_replica(&name);
        assert!(dump.contains("9"), "{dump}");
        assert_ne!(read_text(&place.db(&format!("{name}-pos"))), "");
    }
}
