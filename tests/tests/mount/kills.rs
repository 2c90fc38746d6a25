//! kill -9 of a daemon or of a client, at any moment: no acknowledged commit is lost, and nothing
//! half done is left. The ledger is what the client had printed into a file.
//!
//! `LITEFS_MOUNT_KILLS=2500` for more than the usual number, in each of the four tests.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::daemon::eventually;
use crate::ledger::{Ledger, rounds};
use crate::place::{Place, is_plain};
use crate::shell::{Session, sql};

/// A sqlite3 shell that commits row after row; killed when dropped.
pub struct Writer {
    child: Child,
    said: PathBuf,
}

impl Writer {
    /// Starts it, and waits for its first commit.
    pub fn start(place: &Place, db: &Path, pragmas: &str, first: i64) -> Self {
        let (script, said) = (place.dir().join("script"), place.dir().join("said"));
        fs::write(&script, statements(pragmas, first)).unwrap();
        let child = Command::new("sqlite3")
            .args(["-batch", "-bail"])
            .arg(db)
            .stdin(File::open(script).unwrap())
            .stdout(File::create(&said).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let writer = Self { child, said };
        eventually("the first commit", || writer.lines().contains("acked"));
        writer
    }

    fn lines(&self) -> String {
        let said = fs::read_to_string(&self.said).unwrap();
        said[..said.rfind('\n').map_or(0, |end| end + 1)].to_owned()
    }

    /// Kills it, if it has not failed by itself, and notes what it said.
    pub fn kill(mut self, ledger: &mut Ledger) {
        let _ = self.child.kill();
        self.end(ledger);
    }

    /// Its daemon is dead: waits until it fails, and notes what it said. In WAL mode SQLite may try
    /// for ten seconds; that long nobody waits, but long enough for an acknowledgement that must
    /// not come.
    pub fn end(&mut self, ledger: &mut Ledger) {
        let deadline = Instant::now() + Duration::from_millis(200);
        while self.child.try_wait().unwrap().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        self.child.wait().unwrap();
        let said = self.lines();
        said.lines().filter(|line| line.contains(' ')).for_each(|line| ledger.note(line));
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Single rows, rows that spill the cache, rollbacks; more than fit in a life.
fn statements(pragmas: &str, first: i64) -> String {
    let mut script = format!(".timeout 30000\n.output /dev/null\n{pragmas}\n.output\n");
    script.push_str("PRAGMA cache_size=5;\n");
    for id in first..first + 20_000 {
        let size = if id % 10 == 0 { 60_000 } else { 100 };
        let insert = format!("INSERT INTO t VALUES ({id}, zeroblob({size}));");
        let _ = match id % 7 {
            0 => write!(
                script,
                ".print begin {id}\nBEGIN;\n{insert}\nUPDATE t SET v = 1;\nROLLBACK;\n.print undone \
                 {id}\n"
            ),
            1 => write!(
                script,
                ".print begin {id}\nBEGIN;\n{insert}\nDELETE FROM t WHERE length(v) > 1000 AND id < \
                 0;\nUPDATE t SET v = v WHERE id > {id} - 20;\nCOMMIT;\n.print acked {id}\n"
            ),
            _ => write!(script, ".print begin {id}\n{insert}\n.print acked {id}\n"),
        };
    }
    script
}

/// The rows that are there, in a sound database.
pub fn rows(db: &Path) -> BTreeSet<i64> {
    let printed = sql(db, "PRAGMA integrity_check; SELECT id FROM t");
    let mut lines = printed.lines();
    assert_eq!(lines.next(), Some("ok"));
    lines.map(|id| id.parse().unwrap()).collect()
}

/// Times to live that are different in each round and the same in each run.
fn life(round: u32) -> Duration {
    Duration::from_micros(u64::from(round.wrapping_mul(2_654_435_761) >> 8) % 150_000)
}

fn pragmas(mode: &str, round: u32) -> String {
    let synchronous = if round.is_multiple_of(2) { "FULL" } else { "NORMAL" };
    format!("PRAGMA journal_mode={mode}; PRAGMA synchronous={synchronous};")
}

fn created(mode: &str) -> Place {
    let place = Place::pair();
    let table = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";
    sql(&place.db("a.db"), &format!("PRAGMA journal_mode={mode}; {table}"));
    place
}

fn kill_the_daemon(mode: &str) {
    if is_plain() {
        return;
    }
    let mut place = created(mode);
    let mut ledger = Ledger::default();
    let kills = rounds("LITEFS_MOUNT_KILLS", 25);
    for round in 0..kills {
        let db = place.db("a.db");
        let mut writer = Writer::start(&place, &db, &pragmas(mode, round), ledger.next());
        std::thread::sleep(life(round));
        if round % 5 == 4 {
            place.nodes[1].kill_and_restart();
        }
        place.nodes[0].take().kill();
        writer.end(&mut ledger);
        place.nodes[0].start();
        ledger.check(&rows(&db));
    }
    assert!(ledger.acked() > kills as usize, "only {} commits in {kills} lives", ledger.acked());
    place.check_replica("a.db");
}

fn kill_the_client(mode: &str) {
    let place = created(mode);
    let db = place.db("a.db");
    let mut ledger = Ledger::default();
    // Sees every state, and keeps the WAL and its index from being made anew.
    let mut watcher = Session::open(&db);
    let kills = rounds("LITEFS_MOUNT_KILLS", 25);
    for round in 0..kills {
        let writer = Writer::start(&place, &db, &pragmas(mode, round), ledger.next());
        std::thread::sleep(life(round));
        writer.kill(&mut ledger);
        let seen: usize = watcher.say("SELECT count(*) FROM t").parse().unwrap();
        let present = rows(&db);
        assert_eq!(seen, present.len(), "an open client sees another state than a new one");
        ledger.check(&present);
        if round % 5 == 4 {
            place.wait_for_replica("a.db");
            assert_eq!(rows(&place.copy("a.db")), present);
        }
    }
    assert!(ledger.acked() > kills as usize, "only {} commits in {kills} lives", ledger.acked());
    drop(watcher);
    place.check_replica("a.db");
}

#[test]
fn killing_the_daemon_loses_no_commit_in_delete_mode() {
    kill_the_daemon("delete");
}

#[test]
fn killing_the_daemon_loses_no_commit_in_wal_mode() {
    kill_the_daemon("wal");
}

#[test]
fn killing_the_client_loses_no_commit_in_delete_mode() {
    kill_the_client("delete");
}

#[test]
fn killing_the_client_loses_no_commit_in_wal_mode() {
    kill_the_client("wal");
}

/// B5: a kill in the very first transaction of a database kept the predecessor from starting.
#[test]
fn b5_a_daemon_killed_in_a_databases_first_transaction_starts_again() {
    if is_plain() {
        return;
    }
    let mut place = Place::alone();
    for (at, mode) in ["delete", "truncate", "persist", "wal"].into_iter().enumerate() {
        for spill in [false, true] {
            let name = format!("{at}-{spill}.db");
            let mut shell = Session::open(&place.db(&name));
            shell.say(&format!("PRAGMA journal_mode={mode}; PRAGMA cache_size=2"));
            shell.say("BEGIN IMMEDIATE; CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
            if spill {
                shell.say("INSERT INTO t(x) VALUES (zeroblob(100000)), (zeroblob(100000))");
            }
            place.nodes[0].kill_and_restart();
            drop(shell);
            let tables = sql(&place.db(&name), "SELECT count(*) FROM sqlite_schema");
            assert_eq!(tables, "0", "{name}");
            place.sql(&name, &format!("PRAGMA journal_mode={mode}; CREATE TABLE t(x)"));
            place.sql(&name, "INSERT INTO t VALUES (1)");
            place.check(&name);
        }
    }
}

/// A client that dies in a transaction is rolled back, and its locks are gone at once.
#[test]
fn a_killed_clients_transaction_is_rolled_back_at_once() {
    let place = Place::pair();
    for mode in ["delete", "truncate", "persist", "wal"] {
        for spill in [false, true] {
            let name = format!("{mode}-{spill}.db");
            place.sql(
                &name,
                &format!(
                    "PRAGMA journal_mode={mode}; CREATE TABLE t(id INTEGER PRIMARY KEY, x); INSERT \
                     INTO t(x) VALUES (1), (2), (3)"
                ),
            );
            let mut killed = Session::open(&place.db(&name));
            let mut other = Session::open(&place.db(&name));
            assert_eq!(other.say("SELECT count(*) FROM t"), "3");
            killed.say("PRAGMA cache_size=2; BEGIN IMMEDIATE; DELETE FROM t WHERE id = 2");
            if spill {
                killed.say("INSERT INTO t(x) VALUES (zeroblob(100000)), (zeroblob(100000))");
            }
            killed.kill();
            assert_eq!(other.say("SELECT count(*) FROM t"), "3", "{name}");
            assert_eq!(other.say("INSERT INTO t(x) VALUES (4)"), "", "{name}");
            drop(other);
            sql(&place.control(&name), "INSERT INTO t(x) VALUES (4)");
            place.check(&name);
        }
    }
}
