//! Risk: pages go to the wrong place, get lost at a size change, or keep content they should not.

mod common;

use common::*;
use rusqlite::ErrorCode;

fn fill(conn: &rusqlite::Connection, rows: u32, size: u32) {
    run(
        conn,
        &format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
             INSERT INTO t (x) SELECT randomblob({size}) FROM n"
        ),
    );
}

#[test]
fn every_page_size_works() {
    for bits in 9..=16 {
        let size = 1 << bits;
        let home = Home::new();
        let conn = home.open("app.db");
        run(
            &conn,
            &format!("PRAGMA page_size = {size}; CREATE TABLE t (id INTEGER PRIMARY KEY, x)"),
        );
        assert_eq!(number(&conn, "PRAGMA page_size"), size);
        fill(&conn, 300, 700);
        run(&conn, "PRAGMA cache_size = 5; UPDATE t SET x = randomblob(900) WHERE id % 2");
        let other = home.open("app.db");
        assert_eq!(dump(&other), dump(&conn), "page size {size}");
        check_integrity(&other);
        assert_eq!(
            u64::from(home.db("app.db").page_count()),
            number(&conn, "PRAGMA page_count").unsigned_abs()
        );
        let expected = dump(&conn);
        drop((conn, other));
        home.close_and_check("app.db", &expected);
    }
}

#[test]
fn vacuum_shrinks_the_database_while_a_reader_goes_on() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, "CREATE TABLE t (id INTEGER PRIMARY KEY, x)");
    fill(&conn, 1000, 1000);
    let reader = home.open("app.db");
    run(&reader, "BEGIN");
    assert_eq!(number(&reader, "SELECT count(*) FROM t"), 1000);
    let before = number(&conn, "PRAGMA page_count");
    run(&conn, "DELETE FROM t WHERE id > 10");
    run(&conn, "VACUUM");
    let after = number(&conn, "PRAGMA page_count");
    assert!(after < before / 10, "{before} pages became {after}");
    assert_eq!(i64::from(home.db("app.db").page_count()), after);
    check_integrity(&conn);
    assert_eq!(number(&reader, "PRAGMA page_count"), before);
    assert_eq!(number(&reader, "SELECT sum(length(x)) FROM t"), 1_000_000);
    run(&reader, "COMMIT");
    assert_eq!(number(&reader, "SELECT count(*) FROM t"), 10);
    fill(&reader, 500, 1000);
    check_integrity(&reader);
    let expected = dump(&conn);
    drop((conn, reader));
    home.close_and_check("app.db", &expected);
}

#[test]
fn vacuum_does_not_change_the_page_size_as_in_wal_mode() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, "CREATE TABLE t (id INTEGER PRIMARY KEY, x)");
    fill(&conn, 50, 1000);
    run(&conn, "PRAGMA page_size = 8192; VACUUM");
    assert_eq!(number(&conn, "PRAGMA page_size"), 4096);
    check_integrity(&conn);
}

#[test]
fn auto_vacuum_full_and_incremental_shrink_the_database() {
    for mode in ["FULL", "INCREMENTAL"] {
        let home = Home::new();
        let conn = home.open("app.db");
        run(&conn, &format!("PRAGMA auto_vacuum = {mode}"));
        run(&conn, "CREATE TABLE t (id INTEGER PRIMARY KEY, x)");
        fill(&conn, 500, 2000);
        let before = home.db("app.db").page_count();
        run(&conn, "DELETE FROM t WHERE id > 20");
        if mode == "INCREMENTAL" {
            assert_eq!(home.db("app.db").page_count(), before);
            rows(&conn, "PRAGMA incremental_vacuum(50)").unwrap();
            assert_eq!(home.db("app.db").page_count(), before - 50);
            rows(&conn, "PRAGMA incremental_vacuum").unwrap();
        }
        assert!(home.db("app.db").page_count() < before / 5, "{mode}");
        check_integrity(&home.open("app.db"));
        run(&conn, "PRAGMA cache_size = 4; BEGIN");
        fill(&conn, 300, 2000);
        run(&conn, "DELETE FROM t; COMMIT");
        check_integrity(&home.open("app.db"));
        let expected = dump(&conn);
        drop(conn);
        home.close_and_check("app.db", &expected);
    }
}

#[test]
fn pages_that_were_freed_before_they_were_written_are_sound() {
    // SQLite does not write a page that it frees again in the same transaction; the file gets a
    // hole there, which must read the same everywhere.
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, "CREATE TABLE t (id INTEGER PRIMARY KEY, x)");
    run(&conn, "BEGIN");
    fill(&conn, 200, 3000);
    run(&conn, "CREATE TABLE u (y); INSERT INTO u VALUES (1)");
    run(&conn, "DROP TABLE t; COMMIT");
    check_integrity(&conn);
    let other = home.open("app.db");
    run(&other, "CREATE TABLE t (id INTEGER PRIMARY KEY, x)");
    fill(&other, 100, 3000);
    check_integrity(&other);
    let expected = dump(&conn);
    drop((conn, other));
    home.close_and_check("app.db", &expected);
}

#[test]
fn an_imported_database_in_wal_mode_needs_no_wal() {
    let home = Home::new();
    let path = home.plain_path("plain.db");
    let plain = open_plain(&path);
    assert_eq!(text(&plain, "PRAGMA journal_mode = WAL"), "wal");
    run(&plain, "CREATE TABLE t (id INTEGER PRIMARY KEY, x)");
    fill(&plain, 100, 500);
    run(&plain, "PRAGMA wal_checkpoint(TRUNCATE)");
    let expected = dump(&plain);
    drop(plain);
    let header = std::fs::read(&path).unwrap();
    assert_eq!(header[18..20], [2, 2]);

    let name = litefs_store::DbName::new("app.db").unwrap();
    let db = home.store.create(&name).unwrap();
    db.import(&mut std::fs::File::open(&path).unwrap()).unwrap();
    let conn = home.open("app.db");
    assert_eq!(dump(&conn), expected);
    run(&conn, "PRAGMA cache_size = 3; BEGIN; UPDATE t SET x = 1; ROLLBACK");
    assert_eq!(dump(&conn), expected);
    run(&conn, "INSERT INTO t VALUES (1000, 1)");
    check_integrity(&home.open("app.db"));
    let expected = dump(&conn);
    drop(conn);
    home.close_and_check("app.db", &expected);
}

#[test]
fn a_page_one_that_would_make_the_database_unreadable_is_not_committed() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, "CREATE TABLE t (x); INSERT INTO t VALUES (1)");
    let before = home.db("app.db").pos();
    for (at, bytes) in [(17, "X'2000'"), (29, "X'7fffffff'")] {
        let rest = at + if at == 17 { 2 } else { 4 };
        let sql = format!(
            "UPDATE sqlite_dbpage SET data = CAST(substr(data, 1, {}) || {bytes} || \
             substr(data, {rest}) AS BLOB) WHERE pgno = 1",
            at - 1
        );
        match conn.execute(&sql, []) {
            // Not compiled into this SQLite: nothing to test.
            Err(e) if e.to_string().contains("no such table") => return,
            result => assert_eq!(code(result), ErrorCode::DatabaseCorrupt),
        }
        assert_eq!(home.db("app.db").pos(), before);
        assert_eq!(number(&home.open("app.db"), "SELECT x FROM t"), 1);
    }
}

#[test]
fn a_dropped_database_reads_as_empty_and_can_be_made_anew_with_another_page_size() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, "CREATE TABLE t (x); INSERT INTO t VALUES (1)");
    home.db("app.db").drop_database().unwrap();
    assert_eq!(number(&conn, "SELECT count(*) FROM sqlite_schema"), 0);
    assert_eq!(number(&home.open("app.db"), "SELECT count(*) FROM sqlite_schema"), 0);
    let other = home.open("app.db");
    run(&other, "PRAGMA page_size = 512; CREATE TABLE u (y); INSERT INTO u VALUES (2)");
    assert_eq!(number(&other, "PRAGMA page_size"), 512);
    // The first connection has pages of the old size in its cache.
    assert_eq!(number(&conn, "SELECT y FROM u"), 2);
    run(&conn, "INSERT INTO u VALUES (3)");
    check_integrity(&conn);
    check_integrity(&other);
}

#[test]
fn a_reset_database_is_empty_and_usable() {
    use rusqlite::config::DbConfig::SQLITE_DBCONFIG_RESET_DATABASE;
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, "CREATE TABLE t (id INTEGER PRIMARY KEY, x)");
    fill(&conn, 500, 1000);
    conn.set_db_config(SQLITE_DBCONFIG_RESET_DATABASE, true).unwrap();
    run(&conn, "VACUUM");
    conn.set_db_config(SQLITE_DBCONFIG_RESET_DATABASE, false).unwrap();
    assert_eq!(home.db("app.db").page_count(), 1);
    for conn in [&conn, &home.open("app.db")] {
        assert_eq!(number(conn, "SELECT count(*) FROM sqlite_schema"), 0);
        check_integrity(conn);
    }
    run(&conn, "CREATE TABLE u (y); INSERT INTO u VALUES (1)");
    assert_eq!(number(&home.open("app.db"), "SELECT y FROM u"), 1);
}
