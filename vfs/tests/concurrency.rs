//! Risk: connections and threads block each other, or see what they should not.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use rusqlite::{Connection, ErrorCode};

#[test]
fn a_second_writer_is_told_busy_and_succeeds_after_waiting() {
    let home = Home::new();
    let first = home.open("app.db");
    run(&first, "CREATE TABLE t (x); BEGIN IMMEDIATE; INSERT INTO t VALUES (1)");
    let second = home.open("app.db");
    assert_eq!(code(second.execute_batch("BEGIN IMMEDIATE")), ErrorCode::DatabaseBusy);
    assert_eq!(number(&second, "SELECT count(*) FROM t"), 0, "reading goes on");
    second.busy_timeout(Duration::from_secs(60)).unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(move || second.execute("INSERT INTO t VALUES (2)", []));
        thread::sleep(Duration::from_millis(50));
        run(&first, "COMMIT");
        waiting.join().unwrap().unwrap();
    });
    assert_eq!(number(&first, "SELECT count(*) FROM t"), 2);
}

#[test]
fn a_busy_timeout_ends_after_its_time_and_not_before() {
    let home = Home::new();
    let first = home.open("app.db");
    run(&first, "CREATE TABLE t (x); BEGIN IMMEDIATE");
    let second = home.open("app.db");
    second.busy_timeout(Duration::from_millis(400)).unwrap();
    let start = Instant::now();
    assert_eq!(code(second.execute_batch("BEGIN IMMEDIATE")), ErrorCode::DatabaseBusy);
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(350), "gave up after {waited:?}");
    assert!(waited < Duration::from_secs(20), "gave up only after {waited:?}");
}

#[test]
fn a_transaction_that_read_an_old_state_cannot_write() {
    const BUSY_SNAPSHOT: i32 = 517;
    let home = Home::new();
    let old = home.open("app.db");
    let new = home.open("app.db");
    run(&old, "CREATE TABLE t (x)");
    run(&old, "BEGIN");
    assert_eq!(number(&old, "SELECT count(*) FROM t"), 0);
    run(&new, "INSERT INTO t VALUES (1)");
    let stale = old.execute("INSERT INTO t VALUES (2)", []);
    assert_eq!(extended_code(&stale), BUSY_SNAPSHOT);
    assert_eq!(number(&old, "SELECT count(*) FROM t"), 0, "still its own state");
    run(&old, "ROLLBACK; INSERT INTO t VALUES (2)");
    assert_eq!(number(&new, "SELECT count(*) FROM t"), 2);
}

#[test]
fn a_long_reader_sees_one_state_through_commits_and_folds() {
    let home = Home::new();
    let writer = home.open("app.db");
    run(
        &writer,
        "CREATE TABLE t (id INTEGER PRIMARY KEY, x); INSERT INTO t VALUES (0, zeroblob(9000))",
    );
    let reader = home.open("app.db");
    run(&reader, "PRAGMA cache_size = 2; BEGIN");
    let seen = dump(&reader);
    for i in 1..=50 {
        run(
            &writer,
            &format!(
                "INSERT INTO t VALUES ({i}, randomblob(2000)); UPDATE t SET x = 'new' WHERE id = 0"
            ),
        );
        if i % 10 == 0 {
            home.db("app.db").fold().unwrap();
            run(&writer, "VACUUM");
        }
        assert_eq!(dump(&reader), seen);
    }
    run(&reader, "COMMIT");
    assert_eq!(dump(&reader), dump(&writer));
}

#[test]
fn the_connection_that_made_a_database_keeps_its_data_version() {
    let home = Home::new();
    let path = home.plain_path("plain.db");
    for conn in [open_plain(&path), home.open("app.db")] {
        let version = number(&conn, "PRAGMA data_version");
        run(&conn, "CREATE TABLE t (x)");
        assert_eq!(number(&conn, "PRAGMA data_version"), version);
        run(&conn, "BEGIN; INSERT INTO t VALUES (1); ROLLBACK; INSERT INTO t VALUES (2)");
        assert_eq!(number(&conn, "PRAGMA data_version"), version);
    }
}

#[test]
fn a_connection_with_a_full_cache_notices_every_foreign_commit() {
    let home = Home::new();
    let a = home.open("app.db");
    let b = home.open("app.db");
    run(&a, "CREATE TABLE t (id INTEGER PRIMARY KEY, x); INSERT INTO t VALUES (1, 0)");
    let version = number(&b, "PRAGMA data_version");
    let mut last = version;
    for i in 1..=50 {
        run(&a, &format!("UPDATE t SET x = {i}"));
        assert_eq!(number(&b, "SELECT x FROM t"), i);
        let now = number(&b, "PRAGMA data_version");
        assert_ne!(now, last, "data_version moves with a foreign commit");
        last = now;
        run(&b, &format!("UPDATE t SET x = -{i}"));
        assert_eq!(number(&b, "PRAGMA data_version"), last, "but not with one's own");
        assert_eq!(number(&a, "SELECT x FROM t"), -i);
    }
}

#[test]
fn writers_on_many_threads_never_lose_an_update_nor_give_up() {
    const THREADS: usize = 4;
    const EACH: usize = 150;
    let home = Home::new();
    run(
        &home.open("app.db"),
        "CREATE TABLE t (who, n); CREATE TABLE sum (n); INSERT INTO sum VALUES (0)",
    );
    thread::scope(|scope| {
        for who in 0..THREADS {
            let home = &home;
            scope.spawn(move || {
                let conn = home.open("app.db");
                conn.busy_timeout(Duration::from_secs(60)).unwrap();
                run(&conn, "PRAGMA synchronous = NORMAL");
                for n in 0..EACH {
                    run(
                        &conn,
                        &format!(
                            "BEGIN IMMEDIATE; INSERT INTO t VALUES ({who}, {n});
                             UPDATE sum SET n = n + 1; COMMIT"
                        ),
                    );
                }
            });
        }
        scope.spawn(|| watch(&home.open("app.db"), (THREADS * EACH) as i64));
    });
    let conn = home.open("app.db");
    assert_eq!(number(&conn, "SELECT n FROM sum"), (THREADS * EACH) as i64);
    assert_eq!(home.txid("app.db"), 3 + (THREADS * EACH) as u64);
    let expected = dump(&conn);
    drop(conn);
    home.close_and_check("app.db", &expected);
}

/// Reads until `end` commits were seen; each state must be whole.
fn watch(conn: &Connection, end: i64) {
    let mut last = 0;
    while last < end {
        let now = rows(conn, "SELECT n, (SELECT count(*) FROM t) FROM sum").unwrap();
        assert_eq!(now[0][0], now[0][1], "a half of a transaction was seen");
        let rusqlite::types::Value::Integer(n) = now[0][0] else { panic!("no number") };
        assert!(n >= last, "time went back from {last} to {n}");
        last = n;
    }
}

#[test]
fn a_waiting_writer_is_served_while_others_commit_without_a_pause() {
    let home = Home::new();
    run(&home.open("app.db"), "CREATE TABLE t (x)");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let conn = home.open("app.db");
                conn.busy_timeout(Duration::from_secs(60)).unwrap();
                run(&conn, "PRAGMA synchronous = NORMAL");
                while !stop.load(Ordering::Relaxed) {
                    run(&conn, "BEGIN IMMEDIATE; INSERT INTO t VALUES (0); COMMIT");
                }
            });
        }
        let late = home.open("app.db");
        // With a blind sleep and 5 s this fails often; with a queue each takes milliseconds.
        late.busy_timeout(Duration::from_secs(5)).unwrap();
        for _ in 0..50 {
            run(&late, "BEGIN IMMEDIATE; INSERT INTO t VALUES (1); COMMIT");
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(number(&home.open("app.db"), "SELECT count(*) FROM t WHERE x = 1"), 50);
}

/// A pool's way to make connections.
struct Manager<'a>(&'a Home);

impl r2d2::ManageConnection for Manager<'static> {
    type Connection = Connection;
    type Error = litefs_vfs::Error;

    fn connect(&self) -> Result<Connection, Self::Error> {
        litefs_vfs::open(&self.0.store, "app.db")
    }

    fn is_valid(&self, conn: &mut Connection) -> Result<(), Self::Error> {
        Ok(conn.execute_batch("SELECT 1")?)
    }

    fn has_broken(&self, _: &mut Connection) -> bool {
        false
    }
}

#[test]
fn a_connection_pool_works() {
    let home: &'static Home = Box::leak(Box::new(Home::new()));
    let pool = r2d2::Pool::builder().max_size(5).build(Manager(home)).unwrap();
    run(&pool.get().unwrap(), "CREATE TABLE t (x)");
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let conn = pool.get().unwrap();
                    run(&conn, "INSERT INTO t VALUES (1)");
                    number(&conn, "SELECT count(*) FROM t");
                }
            });
        }
    });
    assert_eq!(number(&pool.get().unwrap(), "SELECT count(*) FROM t"), 160);
    drop(pool);
    home.store.close().unwrap();
    std::fs::remove_dir_all(home.dir.path()).unwrap();
}
