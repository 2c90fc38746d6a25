//! Risk: something is committed that was rolled back, or lost that was committed.

mod common;

use common::*;
use rusqlite::ErrorCode;

const TABLE: &str = "CREATE TABLE t (id INTEGER PRIMARY KEY, x)";
/// Enough rows to overflow a cache of a few pages many times.
const MANY: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
     INSERT INTO t (x) SELECT randomblob(300) FROM n";

#[test]
fn each_commit_is_one_transaction_and_survives_reopening() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, TABLE);
    run(&conn, "INSERT INTO t (x) VALUES (1)");
    run(&conn, "BEGIN; INSERT INTO t (x) VALUES (2); INSERT INTO t (x) VALUES (3); COMMIT");
    assert_eq!(home.txid("app.db"), 3);
    let expected = dump(&conn);
    drop(conn);
    home.store.close().unwrap();

    let store = litefs_store::Store::open(home.dir.path().join("data")).unwrap();
    let conn = litefs_vfs::open(&store, "app.db").unwrap();
    assert_eq!(dump(&conn), expected);
    check_integrity(&conn);
}

#[test]
fn a_rollback_leaves_no_record() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, TABLE);
    run(&conn, MANY);
    let before = (home.db("app.db").pos(), dump(&conn));
    for spill in [false, true] {
        run(&conn, if spill { "PRAGMA cache_size = 5" } else { "PRAGMA cache_size = 2000" });
        run(&conn, "BEGIN");
        run(&conn, MANY);
        run(
            &conn,
            "UPDATE t SET x = zeroblob(500) WHERE id % 3 = 0; DELETE FROM t WHERE id % 7 = 0",
        );
        run(&conn, "CREATE INDEX i ON t (x)");
        run(&conn, "ROLLBACK");
        let other = home.open("app.db");
        for conn in [&conn, &other] {
            assert_eq!((home.db("app.db").pos(), dump(conn)), before, "spill {spill}");
            check_integrity(conn);
        }
    }
    run(&conn, "INSERT INTO t (x) VALUES ('after')");
    assert_eq!(home.db("app.db").pos().txid, before.0.txid.next());
    let expected = dump(&conn);
    drop(conn);
    home.close_and_check("app.db", &expected);
}

#[test]
fn a_spilled_first_transaction_that_is_rolled_back_leaves_the_database_empty() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, "PRAGMA cache_size = 5; BEGIN");
    run(&conn, TABLE);
    run(&conn, MANY);
    run(&conn, "ROLLBACK");
    assert_eq!(home.db("app.db").page_count(), 0);
    assert!(home.db("app.db").pos().is_zero());
    // SQLite keeps the page size for this connection; the database is still free to take any.
    let other = home.open("app.db");
    run(&other, "PRAGMA page_size = 1024");
    run(&other, TABLE);
    for conn in [&conn, &other] {
        assert_eq!(number(conn, "SELECT count(*) FROM t"), 0);
        assert_eq!(number(conn, "PRAGMA page_size"), 1024);
        check_integrity(conn);
    }
}

#[test]
fn a_transaction_that_changes_nothing_leaves_no_record() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, TABLE);
    run(&conn, "INSERT INTO t VALUES (1, 'same')");
    let before = home.db("app.db").pos();
    run(&conn, "BEGIN IMMEDIATE; COMMIT");
    run(&conn, "BEGIN EXCLUSIVE; SELECT * FROM t; COMMIT");
    run(&conn, "UPDATE t SET x = 'same' WHERE id = 1");
    run(&conn, "BEGIN; DELETE FROM t WHERE id = 99; COMMIT");
    assert_eq!(home.db("app.db").pos(), before);
}

#[test]
fn savepoints_roll_back_to_where_they_were_set() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, TABLE);
    for cache in [3, 2000] {
        run(&conn, &format!("PRAGMA cache_size = {cache}; DELETE FROM t; BEGIN"));
        run(&conn, MANY);
        run(&conn, "SAVEPOINT a; UPDATE t SET x = 'a'");
        run(&conn, "SAVEPOINT b; DELETE FROM t; CREATE TABLE u (y)");
        run(&conn, MANY);
        run(&conn, "ROLLBACK TO b; INSERT INTO t (x) VALUES ('kept')");
        run(&conn, "RELEASE a; COMMIT");
        assert_eq!(number(&conn, "SELECT count(*) FROM t"), 2001);
        assert_eq!(number(&conn, "SELECT count(*) FROM t WHERE x = 'a'"), 2000);
        assert_eq!(number(&conn, "SELECT count(*) FROM sqlite_schema WHERE name = 'u'"), 0);
        check_integrity(&conn);
    }
    let expected = dump(&conn);
    drop(conn);
    home.close_and_check("app.db", &expected);
}

#[test]
fn a_statement_that_fails_midway_is_undone_alone() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, "PRAGMA cache_size = 3");
    run(&conn, "CREATE TABLE t (id INTEGER PRIMARY KEY, x CHECK (length(x) < 400))");
    run(&conn, "BEGIN");
    run(&conn, MANY);
    let failing = "UPDATE t SET x = CASE WHEN id < 1900 THEN 'changed' ELSE zeroblob(500) END";
    assert_eq!(code(conn.execute(failing, [])), ErrorCode::ConstraintViolation);
    run(&conn, "INSERT INTO t (x) VALUES ('last'); COMMIT");
    assert_eq!(number(&conn, "SELECT count(*) FROM t WHERE x = 'changed'"), 0);
    assert_eq!(number(&conn, "SELECT count(*) FROM t"), 2001);
    check_integrity(&conn);
}

#[test]
fn a_connection_dropped_in_a_transaction_leaves_nothing_and_no_lock() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, TABLE);
    let before = home.db("app.db").pos();
    let other = home.open("app.db");
    run(&other, "PRAGMA cache_size = 3; BEGIN");
    run(&other, MANY);
    drop(other);
    assert_eq!(home.db("app.db").pos(), before);
    run(&conn, "INSERT INTO t (x) VALUES (1)");
    assert_eq!(number(&conn, "SELECT count(*) FROM t"), 1);
}

#[test]
fn reading_after_a_commit_while_a_statement_is_open_sees_the_commit() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, TABLE);
    run(&conn, MANY);
    let mut statement = conn.prepare("SELECT id FROM t ORDER BY id").unwrap();
    let mut open = statement.query([]).unwrap();
    open.next().unwrap();
    // The lock goes from EXCLUSIVE to SHARED here, and reading goes on under it.
    run(&conn, "INSERT INTO t VALUES (5000, 'new')");
    run(&home.open("app.db"), "INSERT INTO t VALUES (5001, 'foreign')");
    let mut last = 0i64;
    while let Some(row) = open.next().unwrap() {
        last = row.get(0).unwrap();
    }
    assert_eq!(last, 5000, "one's own commit is seen, the other's not before the read ends");
    drop(open);
    drop(statement);
    assert_eq!(number(&conn, "SELECT max(id) FROM t"), 5001);
    check_integrity(&conn);
}
