//! Risk: a commit that has to wait, for the gate or for replicas, fails or is acknowledged too
//! early.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use litefs_store::sim::LeapingClock;
use litefs_store::{Answer, DbName, Options, Pos, Replication, Store};
use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode};

const LONG: Duration = Duration::from_secs(60);

fn home_with(options: Options) -> Home {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path().join("data"), options).unwrap();
    Home { store, dir }
}

fn count(conn: &Connection) -> i64 {
    number(conn, "SELECT count(*) FROM t")
}

#[test]
fn writers_wait_while_commits_are_held_and_none_fails() {
    let home = Home::new();
    run(&home.open("app.db"), "CREATE TABLE t (x)");
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            let (conn, stop) = (home.open("app.db"), stop.clone());
            conn.busy_timeout(LONG).unwrap();
            thread::spawn(move || {
                let mut acked = 0;
                while !stop.load(Ordering::SeqCst) {
                    let begin = if writer == 0 { "" } else { "BEGIN IMMEDIATE; " };
                    let end = if writer == 0 { "" } else { "; COMMIT" };
                    run(&conn, &format!("{begin}INSERT INTO t VALUES (1){end}"));
                    acked += 1;
                }
                acked
            })
        })
        .collect();
    let reader = home.open("app.db");
    for _ in 0..3 {
        let before = count(&reader);
        while count(&reader) < before + 10 {
            thread::yield_now();
        }
        assert!(home.store.gate().hold(LONG));
        let held = (home.db("app.db").pos(), count(&reader));
        thread::sleep(Duration::from_millis(300));
        assert_eq!((home.db("app.db").pos(), count(&reader)), held, "a commit passed");
        home.store.gate().open();
    }
    stop.store(true, Ordering::SeqCst);
    let acked: i64 = writers.into_iter().map(|writer| writer.join().unwrap()).sum();
    assert_eq!(count(&reader), acked);
}

#[test]
fn a_commit_that_waited_for_the_gate_and_finds_it_closed_is_rolled_back() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, "CREATE TABLE t (x)");
    assert!(home.store.gate().hold(LONG));
    let waiting = thread::spawn(move || {
        let refused = conn.execute("INSERT INTO t VALUES (1)", []);
        (conn, refused)
    });
    thread::sleep(Duration::from_millis(50));
    home.store.gate().close("n2 is the primary");
    let (conn, refused) = waiting.join().unwrap();
    assert_eq!(code(refused), ErrorCode::ReadOnly);
    assert_eq!(count(&conn), 0);
    home.store.gate().open();
    run(&conn, "INSERT INTO t VALUES (2)");
    assert_eq!(count(&conn), 1);
}

/// A transaction over two databases holds up the drain with the first one: the second must join.
#[test]
fn a_hold_does_not_wait_for_a_transaction_that_waits_for_the_hold() {
    let home = Home::new();
    let conn = home.open("a.db");
    run(&conn, "CREATE TABLE t (x); ATTACH 'b.db' AS b; CREATE TABLE b.u (x)");
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let writer = thread::spawn(move || {
        while !stopped.load(Ordering::SeqCst) {
            run(&conn, "BEGIN; INSERT INTO t VALUES (1); INSERT INTO u VALUES (1); COMMIT");
        }
        conn
    });
    for _ in 0..50 {
        assert!(home.store.gate().hold(LONG));
        home.store.gate().open();
        thread::yield_now();
    }
    stop.store(true, Ordering::SeqCst);
    let conn = writer.join().unwrap();
    assert_eq!(count(&conn), number(&conn, "SELECT count(*) FROM u"));
}

#[test]
fn no_commit_is_acknowledged_if_the_deadline_passes_at_any_moment_of_it() {
    for synchronous in ["OFF", "NORMAL", "FULL"] {
        let clock = Arc::new(LeapingClock::default());
        let options = Options { clock: clock.clone(), background: false, ..Options::default() };
        let home = home_with(options);
        let conn = home.open("app.db");
        run(&conn, &format!("PRAGMA synchronous={synchronous}; CREATE TABLE t (x)"));
        home.store.gate().open_until(LeapingClock::LATE);
        let mut refused = 0;
        for look in 1.. {
            let rows = count(&conn);
            clock.leap_at(look);
            let outcome = conn.execute("INSERT INTO t VALUES (1)", []);
            let has_leapt = clock.has_leapt();
            clock.leap_at(0);
            if outcome.is_ok() {
                assert!(!has_leapt, "{synchronous}: acknowledged past the deadline");
                break;
            }
            let now = count(&conn);
            match code(outcome) {
                ErrorCode::ReadOnly => assert_eq!(now, rows, "{synchronous}: refused, and there"),
                // After it was published.
                code => assert_eq!((code, now), (ErrorCode::SystemIoFailure, rows + 1)),
            }
            refused += 1;
        }
        assert!(refused >= 4, "at begin, before the append, after it, and before the answer");
    }
}

/// Replicas that answer when a test wants it.
#[derive(Debug, Default)]
struct Replicas {
    waiting: Mutex<Vec<Waiting>>,
    refusal: Mutex<Option<String>>,
}

struct Waiting(Pos, Answer);

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Waiting").field(&self.0).finish()
    }
}

impl Replication for Replicas {
    fn admit(&self, _db: &DbName) -> Result<(), String> {
        self.refusal.lock().clone().map_or(Ok(()), Err)
    }

    fn waits(&self) -> bool {
        true
    }

    fn confirm(&self, _db: &DbName, pos: Pos, answer: Answer) {
        self.waiting.lock().push(Waiting(pos, answer));
    }
}

impl Replicas {
    fn home() -> (Arc<Self>, Home) {
        let replicas = Arc::new(Self::default());
        let options = Options { replication: Some(replicas.clone()), ..Options::default() };
        (replicas, home_with(options))
    }

    /// The next transaction that waits.
    fn next(&self) -> Waiting {
        let deadline = Instant::now() + LONG;
        loop {
            if let Some(waiting) = self.waiting.lock().pop() {
                return waiting;
            }
            assert!(Instant::now() < deadline, "nothing waits");
            thread::yield_now();
        }
    }
}

/// Runs a statement on another thread.
fn start(
    conn: Connection,
    sql: &'static str,
) -> mpsc::Receiver<(Connection, rusqlite::Result<()>)> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let outcome = conn.execute_batch(sql);
        let _ = tell.send((conn, outcome));
    });
    told
}

#[test]
fn a_commit_is_published_and_acknowledged_only_when_it_is_confirmed() {
    let (replicas, home) = Replicas::home();
    let told = start(home.open("app.db"), "CREATE TABLE t (x)");
    let Waiting(pos, confirm) = replicas.next();
    assert_eq!(pos, home.db("app.db").pos(), "published, so that it is streamed");
    let reader = home.open("app.db");
    assert_eq!(count(&reader), 0, "readers go on");
    assert!(told.recv_timeout(Duration::from_millis(50)).is_err(), "acknowledged too early");
    confirm(Ok(()));
    told.recv_timeout(LONG).unwrap().1.unwrap();
}

#[test]
fn a_commit_that_is_not_confirmed_is_an_error_and_the_connection_goes_on_with_it() {
    let (replicas, home) = Replicas::home();
    let told = start(home.open("app.db"), "CREATE TABLE t (x); INSERT INTO t VALUES (7)");
    replicas.next().1(Ok(()));
    replicas.next().1(Err("the primary role was lost".to_owned()));
    let (conn, outcome) = told.recv_timeout(LONG).unwrap();
    assert_eq!(code(outcome), ErrorCode::SystemIoFailure);
    assert_eq!(number(&conn, "SELECT x FROM t"), 7, "it is committed here");
    check_integrity(&conn);
    let told = start(conn, "INSERT INTO t VALUES (8)");
    replicas.next().1(Ok(()));
    let (conn, outcome) = told.recv_timeout(LONG).unwrap();
    outcome.unwrap();
    assert_eq!(count(&conn), 2);
}

#[test]
fn a_confirmation_after_the_right_to_commit_ended_does_not_acknowledge() {
    let (replicas, home) = Replicas::home();
    let told = start(home.open("app.db"), "CREATE TABLE t (x)");
    let waiting = replicas.next();
    home.store.gate().close("the lease has expired");
    waiting.1(Ok(()));
    assert_eq!(code(told.recv_timeout(LONG).unwrap().1), ErrorCode::SystemIoFailure);
}

#[test]
fn a_hold_waits_for_commits_that_wait_for_replicas() {
    let (replicas, home) = Replicas::home();
    let told = start(home.open("app.db"), "CREATE TABLE t (x)");
    let waiting = replicas.next();
    assert!(!home.store.gate().hold(Duration::from_millis(50)));
    waiting.1(Ok(()));
    told.recv_timeout(LONG).unwrap().1.unwrap();
    assert!(home.store.gate().hold(LONG));
    home.store.gate().open();
}

/// As when the node shuts down.
#[test]
fn a_commit_that_nobody_answers_for_is_an_error_and_no_hang() {
    let (replicas, home) = Replicas::home();
    let told = start(home.open("app.db"), "CREATE TABLE t (x)");
    drop(replicas.next());
    assert_eq!(code(told.recv_timeout(LONG).unwrap().1), ErrorCode::SystemIoFailure);
}

#[test]
fn a_commit_for_which_replicas_are_too_far_behind_is_refused_until_they_are_not() {
    let (replicas, home) = Replicas::home();
    let told = start(home.open("app.db"), "CREATE TABLE t (x)");
    replicas.next().1(Ok(()));
    let (conn, _) = told.recv_timeout(LONG).unwrap();
    run(&conn, "BEGIN IMMEDIATE; INSERT INTO t VALUES (1)");
    *replicas.refusal.lock() = Some("the nearest replica is 900 ms behind".to_owned());
    assert_eq!(code(conn.execute_batch("COMMIT")), ErrorCode::ReadOnly);
    assert_eq!(code(conn.execute_batch("BEGIN IMMEDIATE")), ErrorCode::ReadOnly);
    assert_eq!(count(&conn), 0);
    *replicas.refusal.lock() = None;
    let told = start(conn, "INSERT INTO t VALUES (2)");
    replicas.next().1(Ok(()));
    told.recv_timeout(LONG).unwrap().1.unwrap();
}
