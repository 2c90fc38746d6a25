//! Risk: a feature of SQLite that opens files, copies pages or keeps state of its own breaks.

mod common;

use common::*;
use rusqlite::backup::Backup;
use rusqlite::{Connection, ErrorCode};

const SAMPLE: &str = "CREATE TABLE t (id INTEGER PRIMARY KEY, x);
     INSERT INTO t (x) SELECT randomblob(500) FROM pragma_function_list";

#[test]
fn attach_joins_databases_of_the_store_and_plain_files_in_one_transaction() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, SAMPLE);
    let plain = home.plain_path("plain.db");
    run(&conn, "ATTACH 'other.db' AS other");
    run(&conn, &format!("ATTACH '{}' AS plain", plain.display()));
    run(&conn, "CREATE TABLE other.o (y); CREATE TABLE plain.p (z)");
    run(
        &conn,
        "BEGIN; INSERT INTO t (x) VALUES (1); INSERT INTO o VALUES (2); INSERT INTO p VALUES (3);
         COMMIT",
    );
    run(
        &conn,
        "BEGIN; DELETE FROM t; INSERT INTO o VALUES (20); INSERT INTO p VALUES (30); ROLLBACK",
    );
    assert!(number(&conn, "SELECT count(*) FROM t") > 1);
    assert_eq!(number(&home.open("other.db"), "SELECT y FROM o"), 2);
    assert_eq!(number(&open_plain(&plain), "SELECT z FROM p"), 3);
    run(&conn, "DETACH other; DETACH plain");
    assert_eq!(home.store.databases().len(), 2);
}

#[test]
fn a_commit_that_fails_in_the_second_database_undoes_the_first() {
    // The first database's record is in the log already when the second one's commit fails,
    // because a peer's record took the second one's writer away.
    let (home, peer) = (Home::new(), Home::new());
    let peers = peer.open("other.db");
    run(&peers, "CREATE TABLE o (y); INSERT INTO o VALUES (1)");
    replicate(&peer, &home, "other.db");
    let conn = home.open("app.db");
    run(&conn, "CREATE TABLE t (x); ATTACH 'other.db' AS other");
    let before = home.db("app.db").pos();

    run(&conn, "BEGIN; INSERT INTO t VALUES (1); INSERT INTO o VALUES ('lost')");
    run(&peers, "INSERT INTO o VALUES (2)");
    replicate(&peer, &home, "other.db");
    assert_eq!(code(conn.execute_batch("COMMIT")), ErrorCode::ReadOnly);
    let _ = conn.execute_batch("ROLLBACK");

    assert_eq!(home.db("app.db").pos(), before);
    assert_eq!(home.db("other.db").pos(), peer.db("other.db").pos());
    assert_eq!(number(&conn, "SELECT count(*) FROM t"), 0);
    assert_eq!(number(&conn, "SELECT sum(y) FROM o"), 3);
    run(&conn, "BEGIN; INSERT INTO t VALUES (1); INSERT INTO o VALUES (3); COMMIT");
    assert_eq!(home.txid("app.db"), before.txid.get() + 1);
    check_integrity(&conn);
    let expected = dump(&conn);
    drop(conn);
    home.close_and_check("app.db", &expected);
}

#[test]
fn two_plain_databases_beside_one_of_the_store_are_refused_together_without_damage() {
    let home = Home::new();
    let conn = home.open("app.db");
    for name in ["a", "b"] {
        let path = home.plain_path(&format!("{name}.db"));
        run(&conn, &format!("ATTACH '{}' AS {name}; CREATE TABLE {name}.t (x)", path.display()));
    }
    run(&conn, "BEGIN; INSERT INTO a.t VALUES (1); INSERT INTO b.t VALUES (1)");
    assert_eq!(code(conn.execute_batch("COMMIT")), ErrorCode::CannotOpen);
    let _ = conn.execute_batch("ROLLBACK");
    for name in ["a", "b"] {
        assert_eq!(number(&conn, &format!("SELECT count(*) FROM {name}.t")), 0);
        assert_eq!(text(&conn, &format!("PRAGMA {name}.journal_mode = WAL")), "wal");
    }
    run(&conn, "BEGIN; INSERT INTO a.t VALUES (1); INSERT INTO b.t VALUES (1); COMMIT");
}

#[test]
fn vacuum_into_makes_a_plain_file_or_a_database_of_the_store() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, SAMPLE);
    let plain = home.plain_path("copy.db");
    run(&conn, &format!("VACUUM INTO '{}'", plain.display()));
    run(&conn, "VACUUM INTO 'copy.db'");
    let copy = open_plain(&plain);
    check_integrity(&copy);
    assert_eq!(dump(&copy), dump(&conn));
    assert_eq!(dump(&home.open("copy.db")), dump(&conn));
    let again = conn.execute_batch("VACUUM INTO 'copy.db'");
    assert!(again.unwrap_err().to_string().contains("already exists"));
}

#[test]
fn backup_works_from_and_to_the_store() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, SAMPLE);
    let mut plain = open_plain(&home.plain_path("copy.db"));
    copy_all(&conn, &mut plain);
    assert_eq!(dump(&plain), dump(&conn));
    check_integrity(&plain);

    let mut back = home.open("back.db");
    copy_all(&plain, &mut back);
    assert_eq!(dump(&back), dump(&conn));
    check_integrity(&home.open("back.db"));

    // Over existing content, from a source in WAL mode, larger and smaller than before.
    assert_eq!(text(&plain, "PRAGMA journal_mode = WAL"), "wal");
    for sql in ["INSERT INTO t (x) SELECT zeroblob(9000) FROM t", "DELETE FROM t; VACUUM"] {
        run(&plain, sql);
        copy_all(&plain, &mut back);
        assert_eq!(dump(&back), dump(&plain));
        check_integrity(&home.open("back.db"));
    }
    let expected = dump(&back);
    drop((conn, back));
    home.close_and_check("back.db", &expected);
}

fn copy_all(from: &Connection, to: &mut Connection) {
    let backup = Backup::new(from, to).unwrap();
    backup.run_to_completion(20, std::time::Duration::ZERO, None).unwrap();
}

#[test]
fn backup_in_steps_takes_up_a_commit_made_between_them() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, SAMPLE);
    let mut plain = open_plain(&home.plain_path("copy.db"));
    let writer = home.open("app.db");
    let backup = Backup::new(&conn, &mut plain).unwrap();
    backup.step(5).unwrap();
    run(&writer, "UPDATE t SET x = 'changed'");
    while backup.step(5).unwrap() != rusqlite::backup::StepResult::Done {}
    drop(backup);
    check_integrity(&plain);
    assert_eq!(dump(&plain), dump(&writer));
}

#[test]
fn full_text_search_works() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, "CREATE VIRTUAL TABLE docs USING fts5(title, body)");
    run(&conn, "CREATE VIRTUAL TABLE old USING fts3(body)");
    for i in 0..200 {
        run(&conn, &format!("INSERT INTO docs VALUES ('doc {i}', 'word{} and more text')", i % 10));
        run(&conn, &format!("INSERT INTO old VALUES ('word{} and more text')", i % 10));
    }
    run(&conn, "INSERT INTO docs (docs) VALUES ('optimize')");
    let other = home.open("app.db");
    for conn in [&conn, &other] {
        assert_eq!(number(conn, "SELECT count(*) FROM docs WHERE docs MATCH 'word3'"), 20);
        assert_eq!(number(conn, "SELECT count(*) FROM old WHERE old MATCH 'word3'"), 20);
    }
    run(&other, "INSERT INTO docs (docs) VALUES ('integrity-check')");
    check_integrity(&other);
}

#[test]
fn tables_without_rowid_generated_columns_and_triggers_work() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(
        &conn,
        "CREATE TABLE k (a TEXT, b INT, c AS (b * 2) STORED, PRIMARY KEY (a, b)) WITHOUT ROWID;
         CREATE TABLE log (n);
         CREATE TRIGGER tr AFTER INSERT ON k BEGIN INSERT INTO log VALUES (new.c); END;
         INSERT INTO k SELECT hex(randomblob(20)), value FROM json_each('[1,2,3,4,5]');
         DELETE FROM k WHERE b = 3",
    );
    let other = home.open("app.db");
    assert_eq!(number(&other, "SELECT sum(c) FROM k"), 24);
    assert_eq!(number(&other, "SELECT count(*) FROM log"), 5);
    check_integrity(&other);
}

#[test]
fn incremental_blobs_read_and_write() {
    use std::io::{Read, Seek, SeekFrom, Write};
    let home = Home::new();
    let conn = home.open("app.db");
    run(
        &conn,
        "CREATE TABLE t (id INTEGER PRIMARY KEY, x); INSERT INTO t VALUES (1, zeroblob(50000))",
    );
    let mut blob = conn.blob_open("main", "t", "x", 1, false).unwrap();
    blob.seek(SeekFrom::Start(30_000)).unwrap();
    blob.write_all(b"in the middle").unwrap();
    blob.close().unwrap();
    let other = home.open("app.db");
    let mut blob = other.blob_open("main", "t", "x", 1, true).unwrap();
    let mut all = Vec::new();
    blob.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 50_000);
    assert_eq!(&all[30_000..30_013], b"in the middle");
}

#[test]
fn temporary_tables_and_large_sorts_stay_outside_the_store() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, SAMPLE);
    let before = home.db("app.db").pos();
    run(&conn, "PRAGMA temp_store = FILE; PRAGMA temp.cache_size = 3; PRAGMA cache_size = 5");
    run(&conn, "CREATE TEMP TABLE x AS SELECT a.x FROM t a, t b ORDER BY b.x LIMIT 20000");
    assert_eq!(number(&conn, "SELECT count(*) FROM temp.x"), 20_000);
    assert_eq!(home.db("app.db").pos(), before);
}

#[test]
fn an_immutable_connection_keeps_seeing_the_state_it_was_opened_on() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, "CREATE TABLE t (x); INSERT INTO t VALUES (1)");
    run(&conn, "ATTACH 'file:app.db?immutable=1' AS frozen");
    run(&conn, "INSERT INTO main.t VALUES (2)");
    assert_eq!(number(&conn, "SELECT count(*) FROM frozen.t"), 1);
    assert_eq!(number(&conn, "SELECT count(*) FROM main.t"), 2);
    assert_eq!(code(conn.execute("INSERT INTO frozen.t VALUES (3)", [])), ErrorCode::ReadOnly);
}
