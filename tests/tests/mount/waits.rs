//! Commits on the mount that have to wait: while they are held, and for replicas. They must not
//! fail, not be acknowledged too early, and keep nobody waiting.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use litefs_store::sim::LeapingClock;
use litefs_store::{Answer, DbName, Options, Pos, Replication};

use crate::daemon::LONG;
use crate::in_process::Place;
use crate::place::is_plain;
use crate::shell::{Session, sql};

const MODES: [&str; 4] = ["delete", "truncate", "persist", "wal"];
const SETUP: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, x); INSERT INTO t(x) VALUES (1)";

/// Of the journal modes, only WAL is one of the database.
fn session_in(mode: &str, db: &Path) -> Session {
    let mut session = Session::open(db);
    assert_eq!(session.say(&format!("PRAGMA journal_mode={mode}")), mode);
    session
}

#[test]
fn writers_wait_while_commits_are_held_and_readers_go_on() {
    if is_plain() {
        return;
    }
    let place = Place::with(true, Options::default());
    // With a WAL, as it looks up no names: in DELETE mode the kernel keeps the directory locked
    // while a journal is removed.
    sql(&place.db("other.db"), &format!("PRAGMA journal_mode=wal; {SETUP}"));
    for mode in MODES {
        let db = place.db(&format!("{mode}.db"));
        sql(&db, &format!("PRAGMA journal_mode={mode}; {SETUP}"));
        let mut reader = Session::open(&place.db("other.db"));
        assert_eq!(reader.say("SELECT count(*) FROM t"), "1");
        let stop = Arc::new(AtomicBool::new(false));
        let acked = Arc::new(AtomicU64::new(1));
        let writer = thread::spawn({
            let (stop, acked, db) = (stop.clone(), acked.clone(), db.clone());
            move || {
                let mut session = session_in(mode, &db);
                while !stop.load(Ordering::SeqCst) {
                    assert_eq!(session.say("INSERT INTO t(x) VALUES (2)"), "", "{mode}");
                    acked.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        let name = DbName::new(&format!("{mode}.db")).unwrap();
        let store_pos = || place.store.database(&name).unwrap().pos();
        for _ in 0..2 {
            let before = acked.load(Ordering::SeqCst);
            while acked.load(Ordering::SeqCst) < before + 5 && !writer.is_finished() {
                thread::yield_now();
            }
            assert!(place.store.gate().hold(LONG));
            let held = store_pos();
            let until = Instant::now() + Duration::from_millis(300);
            while Instant::now() < until {
                assert_eq!(reader.say("SELECT count(*) FROM t"), "1");
            }
            assert_eq!(store_pos(), held, "{mode}: a commit passed");
            place.store.gate().open();
        }
        stop.store(true, Ordering::SeqCst);
        writer.join().unwrap();
        let rows = sql(&db, "SELECT count(*) FROM t");
        assert_eq!(rows, acked.load(Ordering::SeqCst).to_string(), "{mode}");
    }
}

#[test]
fn what_waited_and_finds_the_gate_closed_is_refused() {
    if is_plain() {
        return;
    }
    let place = Place::with(true, Options::default());
    for mode in MODES {
        let db = place.db(&format!("{mode}.db"));
        sql(&db, &format!("PRAGMA journal_mode={mode}; {SETUP}"));
        let mut session = session_in(mode, &db);
        assert_eq!(session.say("SELECT count(*) FROM t"), "1");
        assert!(place.store.gate().hold(LONG));
        session.start("INSERT INTO t(x) VALUES (2)");
        thread::sleep(Duration::from_millis(100));
        place.store.gate().close("n2 is the primary");
        assert_ne!(session.answer(), "", "{mode}: acknowledged");
        assert_eq!(session.say("SELECT count(*) FROM t"), "1", "{mode}");
        place.store.gate().open();
        assert_eq!(session.say("INSERT INTO t(x) VALUES (3)"), "", "{mode}");
        assert_eq!(session.say("PRAGMA integrity_check"), "ok");
    }
}

#[test]
fn no_commit_is_acknowledged_if_the_deadline_passes_at_any_moment_of_it() {
    if is_plain() {
        return;
    }
    for (passthrough, synchronous) in [(true, "FULL"), (false, "FULL"), (true, "NORMAL")] {
        let clock = Arc::new(LeapingClock::default());
        let options = Options { clock: clock.clone(), background: false, ..Options::default() };
        let place = Place::with(passthrough, options);
        for mode in MODES {
            let db = place.db(&format!("{mode}.db"));
            sql(&db, &format!("PRAGMA journal_mode={mode}; {SETUP}"));
            let mut session = session_in(mode, &db);
            session.say(&format!("PRAGMA synchronous={synchronous}"));
            place.store.gate().open_until(LeapingClock::LATE);
            let mut refused = 0;
            for look in 1.. {
                clock.leap_at(look);
                let answer = session.say("INSERT INTO t(x) VALUES (2)");
                let has_leapt = clock.has_leapt();
                clock.leap_at(0);
                if answer.is_empty() {
                    assert!(!has_leapt, "{mode} {synchronous}: acknowledged past the deadline");
                    break;
                }
                refused += 1;
                assert_eq!(session.say("PRAGMA integrity_check"), "ok", "{mode}");
            }
            assert!(refused >= 2, "{mode}: before the append and before the answer: {refused}");
            place.store.gate().open();
        }
    }
}

/// Replicas that answer when a test wants it.
#[derive(Debug, Default)]
struct Replicas {
    waiting: std::sync::Mutex<Vec<Waiting>>,
    /// They answer at once.
    willing: AtomicBool,
}

struct Waiting(DbName, Answer);

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Waiting").field(&self.0).finish()
    }
}

impl Replication for Replicas {
    fn admit(&self, _db: &DbName) -> Result<(), String> {
        Ok(())
    }

    fn waits(&self) -> bool {
        true
    }

    fn confirm(&self, db: &DbName, _pos: Pos, answer: Answer) {
        if self.willing.load(Ordering::SeqCst) {
            return answer(Ok(()));
        }
        self.waiting.lock().unwrap().push(Waiting(db.clone(), answer));
    }
}

impl Replicas {
    fn place(passthrough: bool) -> (Arc<Self>, Place) {
        let replicas = Arc::new(Self::default());
        let options = Options { replication: Some(replicas.clone()), ..Options::default() };
        (replicas, Place::with(passthrough, options))
    }

    fn set_up(&self, place: &Place, name: &str, mode: &str) {
        self.willing.store(true, Ordering::SeqCst);
        sql(&place.db(name), &format!("PRAGMA journal_mode={mode}; {SETUP}"));
        self.willing.store(false, Ordering::SeqCst);
    }

    /// The transaction of a database that waits.
    fn next(&self, name: &str) -> Answer {
        let deadline = Instant::now() + LONG;
        loop {
            let mut waiting = self.waiting.lock().unwrap();
            if let Some(index) = waiting.iter().position(|waiting| waiting.0.as_str() == name) {
                return waiting.swap_remove(index).1;
            }
            drop(waiting);
            assert!(Instant::now() < deadline, "nothing waits");
            thread::yield_now();
        }
    }

    fn is_waiting(&self) -> bool {
        !self.waiting.lock().unwrap().is_empty()
    }
}

#[test]
fn a_commit_is_acknowledged_when_it_is_confirmed_and_keeps_nobody_waiting() {
    if is_plain() {
        return;
    }
    let (replicas, place) = Replicas::place(true);
    replicas.set_up(&place, "other.db", "wal");
    let mut other = Session::open(&place.db("other.db"));
    for mode in MODES {
        let name = format!("{mode}.db");
        replicas.set_up(&place, &name, mode);
        let mut session = session_in(mode, &place.db(&name));
        let mut reader = Session::open(&place.db(&name));
        assert_eq!(reader.say("SELECT count(*) FROM t"), "1");
        assert_eq!(other.say("SELECT count(*) >= 1 FROM t"), "1");
        replicas.willing.store(true, Ordering::SeqCst);
        assert_eq!(session.say("INSERT INTO t(x) VALUES (5)"), "");
        replicas.willing.store(false, Ordering::SeqCst);
        session.start("INSERT INTO t(x) VALUES (2)");
        let confirm = replicas.next(&name);
        if mode == "wal" {
            // In the other modes SQLite itself keeps readers out of a commit. Here, it has to read
            // what was committed before, and what is waited for is not in the wal-index yet.
            assert_eq!(reader.say("SELECT count(*), sum(x) FROM t"), "2|6");
        }
        assert_eq!(other.say("SELECT count(*) >= 1 FROM t"), "1");
        other.start("INSERT INTO t(x) VALUES (2)");
        replicas.next("other.db")(Ok(()));
        assert_eq!(other.answer(), "");
        assert!(!replicas.is_waiting());
        confirm(Ok(()));
        assert_eq!(session.answer(), "", "{mode}");
        assert_eq!(reader.say("SELECT count(*) FROM t"), "3", "{mode}");
    }
}

#[test]
fn a_commit_that_is_not_confirmed_is_an_error_and_the_database_goes_on_with_it() {
    if is_plain() {
        return;
    }
    for passthrough in [true, false] {
        let (replicas, place) = Replicas::place(passthrough);
        for mode in MODES {
            let name = format!("{mode}.db");
            replicas.set_up(&place, &name, mode);
            let db = place.db(&name);
            let mut session = session_in(mode, &db);
            session.start("INSERT INTO t(x) VALUES (2)");
            replicas.next(&name)(Err("the primary role was lost".to_owned()));
            let answer = session.answer();
            assert!(answer.contains("disk I/O error"), "{mode}: {answer}");
            replicas.willing.store(true, Ordering::SeqCst);
            let mut another = Session::open(&db);
            assert_eq!(another.say("SELECT count(*) FROM t"), "2", "{mode}: it is committed here");
            assert_eq!(another.say("INSERT INTO t(x) VALUES (3)"), "", "{mode}");
            assert_eq!(session.say("INSERT INTO t(x) VALUES (4)"), "", "{mode}");
            assert_eq!(session.say("SELECT count(*) FROM t"), "4", "{mode}");
            assert_eq!(session.say("PRAGMA integrity_check"), "ok", "{mode}");
        }
    }
}
