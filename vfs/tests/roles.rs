//! Risk: a replica accepts a write, shows a mix of states, or stays read-only after a promotion.

mod common;

use common::*;
use rusqlite::ErrorCode;

fn pair() -> (Home, Home) {
    let (primary, replica) = (Home::new(), Home::new());
    replica.store.gate().close("this node is a replica of the test");
    (primary, replica)
}

#[test]
fn an_open_connection_on_a_replica_sees_each_applied_transaction() {
    let (primary, replica) = pair();
    let writer = primary.open("app.db");
    let reader = replica.open("app.db");
    assert_eq!(number(&reader, "SELECT count(*) FROM sqlite_schema"), 0);
    run(&writer, "CREATE TABLE t (id INTEGER PRIMARY KEY, x); INSERT INTO t VALUES (1, 0)");
    for i in 0..30 {
        // Most of these change no byte of page 1 but its counter, which is not recorded.
        run(&writer, &format!("UPDATE t SET x = {i}"));
        if i % 7 == 0 {
            run(&writer, &format!("CREATE TABLE t{i} (y)"));
        }
        replicate(&primary, &replica, "app.db");
        assert_eq!(dump(&reader), dump(&writer), "after {i}");
    }
    check_integrity(&reader);
}

#[test]
fn a_read_transaction_on_a_replica_keeps_its_state_while_records_are_applied() {
    let (primary, replica) = pair();
    let writer = primary.open("app.db");
    run(&writer, "CREATE TABLE t (x); INSERT INTO t VALUES (1)");
    replicate(&primary, &replica, "app.db");
    let reader = replica.open("app.db");
    run(&reader, "PRAGMA cache_size = 1; BEGIN");
    let seen = dump(&reader);
    for _ in 0..10 {
        run(&writer, "INSERT INTO t SELECT randomblob(900) FROM t LIMIT 40; VACUUM");
        replicate(&primary, &replica, "app.db");
        assert_eq!(dump(&reader), seen);
    }
    run(&reader, "COMMIT");
    assert_eq!(dump(&reader), dump(&writer));
}

#[test]
fn a_write_on_a_replica_is_refused_at_once_and_reading_goes_on() {
    let (primary, replica) = pair();
    run(&primary.open("app.db"), "CREATE TABLE t (x); INSERT INTO t VALUES (1)");
    replicate(&primary, &replica, "app.db");
    let conn = replica.open("app.db");
    for sql in ["INSERT INTO t VALUES (2)", "BEGIN IMMEDIATE", "CREATE TABLE u (y)", "VACUUM"] {
        assert_eq!(code(conn.execute_batch(sql)), ErrorCode::ReadOnly, "{sql}");
        assert_eq!(number(&conn, "SELECT x FROM t"), 1);
    }
    let fresh = replica.open("fresh.db");
    assert_eq!(code(fresh.execute_batch("CREATE TABLE t (x)")), ErrorCode::ReadOnly);
}

#[test]
fn a_connection_opened_on_a_replica_writes_after_the_promotion() {
    let (primary, replica) = pair();
    run(&primary.open("app.db"), "CREATE TABLE t (x); INSERT INTO t VALUES (1)");
    replicate(&primary, &replica, "app.db");
    let conn = replica.open("app.db");
    assert_eq!(code(conn.execute("INSERT INTO t VALUES (2)", [])), ErrorCode::ReadOnly);
    replica.store.gate().open();
    run(&conn, "INSERT INTO t VALUES (2)");
    assert_eq!(number(&conn, "SELECT sum(x) FROM t"), 3);
    // And back: the former primary follows.
    primary.store.gate().close("this node is a replica now");
    let old = primary.open("app.db");
    replicate(&replica, &primary, "app.db");
    assert_eq!(number(&old, "SELECT sum(x) FROM t"), 3);
    assert_eq!(code(old.execute("INSERT INTO t VALUES (3)", [])), ErrorCode::ReadOnly);
}

#[test]
fn losing_the_write_right_inside_a_transaction_fails_its_commit_and_nothing_else() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, "CREATE TABLE t (x); INSERT INTO t VALUES (1)");
    let before = home.db("app.db").pos();
    for spill in [false, true] {
        run(&conn, if spill { "PRAGMA cache_size = 3" } else { "PRAGMA cache_size = 2000" });
        run(&conn, "BEGIN");
        run(&conn, "INSERT INTO t SELECT randomblob(3000) FROM pragma_function_list");
        home.store.gate().close("the lease was lost");
        assert_eq!(code(conn.execute_batch("COMMIT")), ErrorCode::ReadOnly, "spill {spill}");
        let _ = conn.execute_batch("ROLLBACK");
        assert_eq!(home.db("app.db").pos(), before);
        assert_eq!(number(&conn, "SELECT count(*) FROM t"), 1);
        home.store.gate().open();
    }
    run(&conn, "INSERT INTO t VALUES (2)");
    check_integrity(&conn);
}

#[test]
fn a_rollback_after_losing_the_write_right_succeeds() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, "CREATE TABLE t (x); INSERT INTO t VALUES (1); PRAGMA cache_size = 3; BEGIN");
    run(&conn, "INSERT INTO t SELECT randomblob(3000) FROM pragma_function_list");
    home.store.gate().close("the lease was lost");
    run(&conn, "ROLLBACK");
    assert_eq!(number(&conn, "SELECT count(*) FROM t"), 1);
}

#[test]
fn a_record_applied_under_a_local_writer_fails_that_writer_only() {
    let (primary, replica) = pair();
    run(&primary.open("app.db"), "CREATE TABLE t (x); INSERT INTO t VALUES (1)");
    replicate(&primary, &replica, "app.db");
    replica.store.gate().open();
    let conn = replica.open("app.db");
    run(&conn, "BEGIN IMMEDIATE; INSERT INTO t VALUES ('lost')");
    replica.store.gate().close("this node is a replica again");
    run(&primary.open("app.db"), "INSERT INTO t VALUES (2)");
    replicate(&primary, &replica, "app.db");
    assert!(conn.execute_batch("COMMIT").is_err());
    let _ = conn.execute_batch("ROLLBACK");
    assert_eq!(number(&conn, "SELECT sum(x) FROM t"), 3);
    check_integrity(&conn);
}

#[test]
fn a_cached_connection_notices_content_replaced_under_the_same_transaction_number() {
    let (primary, replica) = pair();
    run(&primary.open("app.db"), "CREATE TABLE t (x); INSERT INTO t VALUES ('common')");
    replicate(&primary, &replica, "app.db");
    // The replica goes its own way, then is rewound and given the primary's history.
    let common = replica.db("app.db").pos();
    replica.store.gate().open();
    let conn = replica.open("app.db");
    run(&conn, "UPDATE t SET x = 'own'");
    assert_eq!(text(&conn, "SELECT x FROM t"), "own");
    replica.store.gate().close("this node is a replica again");
    run(&primary.open("app.db"), "UPDATE t SET x = 'kept'");
    assert_eq!(primary.txid("app.db"), replica.txid("app.db"));
    replica.db("app.db").rewind(common).unwrap();
    replicate(&primary, &replica, "app.db");
    assert_eq!(text(&conn, "SELECT x FROM t"), "kept");
}

/// Schemas that differ though they were made by the same number of statements.
const SCHEMA_A: &str = "CREATE TABLE a (x); CREATE TABLE t (x, y); INSERT INTO t VALUES (1, 2)";
const SCHEMA_B: &str = "CREATE TABLE b (x); CREATE TABLE t (y, x); INSERT INTO t VALUES (1, 2)";

#[test]
fn a_connection_notices_another_schema_with_the_same_cookie_after_a_rewind() {
    let (primary, replica) = pair();
    run(&primary.open("app.db"), "CREATE TABLE common (x)");
    replicate(&primary, &replica, "app.db");
    let common = replica.db("app.db").pos();
    replica.store.gate().open();
    let conn = replica.open("app.db");
    run(&conn, SCHEMA_A);
    assert_eq!(number(&conn, "SELECT x FROM t"), 1);
    let cookie = number(&conn, "PRAGMA schema_version");
    run(&primary.open("app.db"), SCHEMA_B);
    assert_eq!(number(&primary.open("app.db"), "PRAGMA schema_version"), cookie);

    replica.store.gate().close("this node is a replica again");
    replica.db("app.db").rewind(common).unwrap();
    replicate(&primary, &replica, "app.db");
    assert_eq!(number(&conn, "SELECT x FROM t"), 2);
    assert_eq!(number(&conn, "SELECT count(*) FROM b"), 0);
    assert!(conn.prepare("SELECT * FROM a").is_err());

    // The connection's own changes keep the real cookie for everyone else.
    replica.store.gate().open();
    let other = replica.open("app.db");
    assert_eq!(number(&other, "PRAGMA schema_version"), cookie);
    run(&conn, "PRAGMA cache_size = 2; BEGIN; CREATE TABLE c (x); ROLLBACK");
    run(&conn, "INSERT INTO t VALUES (3, 4); CREATE TABLE c (x)");
    assert_eq!(number(&other, "PRAGMA schema_version"), cookie + 1);
    assert_eq!(number(&other, "SELECT count(*) FROM c"), 0);
    check_integrity(&conn);
    let expected = dump(&other);
    drop((conn, other));
    replica.close_and_check("app.db", &expected);
}

#[test]
fn a_connection_notices_another_schema_with_the_same_cookie_in_a_database_made_anew() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, SCHEMA_A);
    assert_eq!(number(&conn, "SELECT x FROM t"), 1);
    home.db("app.db").drop_database().unwrap();
    run(&home.open("app.db"), SCHEMA_B);
    assert_eq!(number(&conn, "SELECT x FROM t"), 2);
    assert!(conn.prepare("SELECT * FROM a").is_err());
    check_integrity(&conn);
}
