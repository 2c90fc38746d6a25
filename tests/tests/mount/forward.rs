//! A replica's clients write: under LiteFS's HALT lock, or always, if the replica is told to
//! forward writes.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::place::{Place, is_plain};
use crate::shell::{Session, printed, python, sql, sql_error};

const FORWARD: &str = "replication:\n  forward-writes: true\n";
const SETUP: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, x); INSERT INTO t(x) VALUES (1)";
const COUNT: &str = "SELECT count(*) FROM t";

/// The primary's newest state is shown on both mounts, and both are the same.
fn check(place: &Place, name: &str) {
    // A client that was killed has left its WAL.
    sql(&place.copy(name), "PRAGMA wal_checkpoint(TRUNCATE)");
    place.wait_for_replica(name);
    place.check_replica(name);
}

#[test]
fn a_replicas_clients_write_in_every_journal_mode() {
    if is_plain() {
        return;
    }
    let place = Place::pair_with(FORWARD);
    for mode in ["delete", "truncate", "persist", "wal"] {
        let name = format!("{mode}.db");
        sql(&place.db(&name), &format!("PRAGMA journal_mode={mode}; {SETUP}"));
        place.wait_for_replica(&name);
        let mut shell = Session::open(&place.copy(&name));
        shell.say(&format!("PRAGMA journal_mode={mode}; PRAGMA busy_timeout=20000"));
        for rows in 2..12 {
            assert_eq!(shell.say("INSERT INTO t(x) VALUES (2)"), "", "{mode}");
            assert_eq!(shell.say(COUNT), rows.to_string(), "{mode}: its own write, at once");
        }
        assert_eq!(sql(&place.db(&name), COUNT), "11", "{mode}");
        // A rollback, one that spilled, and the primary's own writes in between.
        shell.say("BEGIN; DELETE FROM t; ROLLBACK");
        shell.say("PRAGMA cache_size=5; BEGIN");
        shell.say(
            "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i < 500) \
             INSERT INTO t(x) SELECT randomblob(900) FROM c",
        );
        shell.say("ROLLBACK");
        sql(&place.db(&name), "INSERT INTO t(x) VALUES (3)");
        assert_eq!(shell.say("INSERT INTO t(x) VALUES (4)"), "", "{mode}");
        assert_eq!(shell.say(COUNT), "13", "{mode}");
        drop(shell);
        check(&place, &name);
    }
}

#[test]
fn writers_on_both_mounts_take_turns_and_lose_no_update() {
    if is_plain() {
        return;
    }
    let place = Place::pair_with(FORWARD);
    for mode in ["delete", "wal"] {
        let name = format!("{mode}.db");
        let setup = "CREATE TABLE t(n); INSERT INTO t VALUES (0)";
        sql(&place.db(&name), &format!("PRAGMA journal_mode={mode}; {setup}"));
        place.wait_for_replica(&name);
        let mut writers: Vec<_> = [place.db(&name), place.copy(&name)]
            .iter()
            .map(|path| {
                let mut writer =
                    python(include_str!("counter.py"), &[path.to_str().unwrap(), "30"]);
                writer.stdout(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        for writer in &mut writers {
            assert!(writer.wait().unwrap().success(), "{mode}");
        }
        assert_eq!(sql(&place.db(&name), "SELECT n FROM t"), "60", "{mode}");
        check(&place, &name);
    }
}

#[test]
fn a_database_is_created_through_a_replica() {
    if is_plain() {
        return;
    }
    let place = Place::pair_with(FORWARD);
    let deadline = Instant::now() + Duration::from_secs(20);
    while place.nodes[1].mount.join(".primary").metadata().is_err() {
        assert!(Instant::now() < deadline, "not connected");
    }
    sql(&place.copy("new.db"), SETUP);
    assert_eq!(sql(&place.db("new.db"), COUNT), "1");
    check(&place, "new.db");
}

/// LiteFS's way: while a client holds byte 72 of `-lock`, this node writes, and nobody else.
#[test]
fn under_the_halt_lock_a_replica_writes_and_the_primary_waits() {
    if is_plain() {
        return;
    }
    let place = Place::pair();
    for mode in ["delete", "wal"] {
        let name = format!("{mode}.db");
        sql(&place.db(&name), &format!("PRAGMA journal_mode={mode}; {SETUP}"));
        place.wait_for_replica(&name);
        sql_error(&place.copy(&name), "INSERT INTO t(x) VALUES (2)");
        let mut halted = python(
            include_str!("halted_writer.py"),
            &[place.copy(&name).to_str().unwrap(), place.db(&name).to_str().unwrap()],
        );
        assert_eq!(printed(&mut halted), "ok", "{mode}");
        sql_error(&place.copy(&name), "INSERT INTO t(x) VALUES (2)");
        let ids = "SELECT group_concat(x) FROM (SELECT x FROM t ORDER BY id)";
        assert_eq!(sql(&place.db(&name), ids), "1,halted,halted,primary", "{mode}");
        check(&place, &name);
    }
}

/// A client that is killed while it holds the lock frees the primary.
#[test]
fn a_killed_halt_holder_frees_the_primary() {
    if is_plain() {
        return;
    }
    let place = Place::pair();
    sql(&place.db("a.db"), SETUP);
    place.wait_for_replica("a.db");
    let mut holder: Command = python(
        "import fcntl, os, struct, sys, time\n\
         fd = os.open(sys.argv[1], os.O_RDWR)\n\
         fcntl.fcntl(fd, 38, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 72, 1, 0))\n\
         print('held', flush=True)\n\
         time.sleep(100)\n",
        &[place.copy("a.db-lock").to_str().unwrap()],
    );
    let mut holder = holder.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 5];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut line).unwrap();
    let insert = "INSERT INTO t(x) VALUES (2)";
    let held = sql_error(&place.db("a.db"), &format!("PRAGMA busy_timeout=100; {insert}"));
    assert!(held.contains("locked"), "{held}");
    holder.kill().unwrap();
    holder.wait().unwrap();
    sql(&place.db("a.db"), &format!("PRAGMA busy_timeout=20000; {insert}"));
    check(&place, "a.db");
}
