//! Risk: an app that sets a mode gets an error, another mode, or loses data by it.

mod common;

use common::*;
use rusqlite::ErrorCode;

#[test]
fn every_journal_mode_is_answered_and_works() {
    for mode in ["delete", "truncate", "persist", "memory", "off", "wal"] {
        let home = Home::new();
        let conn = home.open("app.db");
        for _ in 0..2 {
            assert_eq!(text(&conn, &format!("PRAGMA journal_mode = {mode}")), mode);
            assert_eq!(text(&conn, "PRAGMA journal_mode"), mode);
            assert_eq!(text(&conn, &format!("PRAGMA main.journal_mode = '{mode}'")), mode);
            run(&conn, "CREATE TABLE IF NOT EXISTS t (x UNIQUE); INSERT INTO t VALUES (random())");
        }
        run(&conn, "BEGIN; INSERT INTO t VALUES (1)");
        // A failing statement must be undone also under "off".
        let twice = "INSERT INTO t SELECT value FROM json_each('[2, 3, 1]')";
        assert_eq!(code(conn.execute(twice, [])), ErrorCode::ConstraintViolation);
        run(&conn, "COMMIT; BEGIN; DELETE FROM t; ROLLBACK");
        assert_eq!(number(&conn, "SELECT count(*) FROM t"), 3, "{mode}");
        check_integrity(&conn);
        let expected = dump(&conn);
        drop(conn);
        home.close_and_check("app.db", &expected);
    }
}

#[test]
fn a_mode_set_for_all_databases_of_a_connection_does_no_harm() {
    // With another main database SQLite asks that one's VFS, and sets ours without asking it.
    for mode in ["delete", "truncate", "persist", "off", "wal"] {
        let home = Home::new();
        drop(home.open("app.db"));
        litefs_vfs::register(&home.store).unwrap();
        let conn = rusqlite::Connection::open_in_memory().unwrap();
        attach_in(&home, &conn, "app");
        let _ = text(&conn, &format!("PRAGMA journal_mode = {mode}"));
        run(&conn, "PRAGMA app.cache_size = 3; CREATE TABLE app.t (x)");
        for _ in 0..3 {
            run(
                &conn,
                "BEGIN; INSERT INTO app.t SELECT randomblob(3000) FROM pragma_function_list",
            );
            run(&conn, "ROLLBACK");
            run(&conn, "INSERT INTO app.t VALUES (1)");
        }
        assert_eq!(number(&conn, "SELECT count(*) FROM app.t"), 3, "{mode}");
        check_integrity(&conn);
        check_integrity(&home.open("app.db"));
        assert_eq!(stray_files(&home), Vec::<String>::new(), "{mode}");
    }
}

/// Attaches `app.db` of the store to a connection with another VFS.
fn attach_in(home: &Home, conn: &rusqlite::Connection, schema: &str) {
    // The store's own VFS, as others may be registered by tests beside this one.
    let name = vfs_name(&home.open("app.db"));
    run(conn, &format!("ATTACH 'file:app.db?vfs={name}' AS {schema}"));
}

fn vfs_name(conn: &rusqlite::Connection) -> String {
    let mut name: *mut std::ffi::c_char = std::ptr::null_mut();
    // SAFETY: the connection is open; `FCNTL_VFSNAME` writes a text that the caller frees.
    unsafe {
        let code = rusqlite::ffi::sqlite3_file_control(
            conn.handle(),
            c"main".as_ptr(),
            rusqlite::ffi::SQLITE_FCNTL_VFSNAME,
            (&raw mut name).cast(),
        );
        assert_eq!(code, 0);
        let text = std::ffi::CStr::from_ptr(name).to_str().unwrap().to_owned();
        rusqlite::ffi::sqlite3_free(name.cast());
        text
    }
}

/// Files that a journal would have left where the test runs.
fn stray_files(home: &Home) -> Vec<String> {
    let here = std::fs::read_dir(".").unwrap();
    let there = std::fs::read_dir(home.dir.path()).unwrap();
    here.chain(there)
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains("app.db"))
        .collect()
}

#[test]
fn every_synchronous_setting_works() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, "CREATE TABLE t (x)");
    for level in ["OFF", "NORMAL", "FULL", "EXTRA", "0", "1", "2", "3"] {
        run(&conn, &format!("PRAGMA synchronous = {level}"));
        run(&conn, "INSERT INTO t VALUES (1)");
        run(&conn, "BEGIN; INSERT INTO t VALUES (2); ROLLBACK");
    }
    assert_eq!(number(&conn, "SELECT count(*) FROM t"), 8);
}

#[test]
fn full_is_on_disk_when_the_commit_returns_and_normal_need_not_be() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, "CREATE TABLE t (x)");
    let db = home.db("app.db");
    assert_eq!(db.synced_pos(), db.pos(), "FULL is the default");
    run(&conn, "PRAGMA synchronous = OFF");
    run(&conn, "INSERT INTO t VALUES (1)");
    assert_ne!(db.synced_pos(), db.pos(), "OFF does not sync");
    // SQLite refuses to change it inside a transaction; then it must not change here either.
    run(&conn, "BEGIN");
    assert!(conn.execute_batch("PRAGMA synchronous = FULL").is_err());
    run(&conn, "INSERT INTO t VALUES (2); COMMIT");
    assert_ne!(db.synced_pos(), db.pos(), "still OFF");
    run(&conn, "PRAGMA synchronous = FULL");
    run(&conn, "INSERT INTO t VALUES (3)");
    assert_eq!(db.synced_pos(), db.pos());
}

#[test]
fn exclusive_locking_mode_keeps_other_writers_out_and_lets_readers_in() {
    let home = Home::new();
    let conn = home.open("app.db");
    let other = home.open("app.db");
    run(&conn, "CREATE TABLE t (x)");
    assert_eq!(text(&conn, "PRAGMA locking_mode = EXCLUSIVE"), "exclusive");
    for i in 1..=5 {
        run(&conn, "INSERT INTO t VALUES (1)");
        run(&conn, "BEGIN; INSERT INTO t VALUES (2); DELETE FROM t; ROLLBACK");
        assert_eq!(number(&conn, "SELECT count(*) FROM t"), i);
        assert_eq!(number(&other, "SELECT count(*) FROM t"), i, "readers see each commit");
        let busy = other.execute("INSERT INTO t VALUES (3)", []);
        assert_eq!(code(busy), ErrorCode::DatabaseBusy);
    }
    run(&conn, "PRAGMA cache_size = 3; BEGIN");
    run(&conn, "INSERT INTO t SELECT randomblob(3000) FROM pragma_function_list; ROLLBACK");
    run(&conn, "INSERT INTO t VALUES (6)");
    assert_eq!(number(&other, "SELECT count(*) FROM t"), 6);
    assert_eq!(text(&conn, "PRAGMA locking_mode = NORMAL"), "normal");
    assert_eq!(number(&conn, "SELECT count(*) FROM t"), 6);
    run(&other, "INSERT INTO t VALUES (7)");
    assert_eq!(number(&conn, "SELECT count(*) FROM t"), 7);
    check_integrity(&conn);
}

#[test]
fn exclusive_locking_mode_that_began_with_a_read_can_still_write() {
    let home = Home::new();
    let conn = home.open("app.db");
    let other = home.open("app.db");
    run(&conn, "CREATE TABLE t (x)");
    run(&conn, "PRAGMA locking_mode = EXCLUSIVE");
    assert_eq!(number(&conn, "SELECT count(*) FROM t"), 0);
    assert_eq!(code(other.execute("INSERT INTO t VALUES (3)", [])), ErrorCode::DatabaseBusy);
    run(&conn, "INSERT INTO t VALUES (1)");
    assert_eq!(number(&other, "SELECT count(*) FROM t"), 1);
}

#[test]
fn a_wal_checkpoint_is_answered_as_by_sqlite_without_a_wal_and_folds() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, "CREATE TABLE t (x); INSERT INTO t VALUES (1)");
    let db = home.db("app.db");
    assert_ne!(db.stats().mark, db.pos().txid);
    let answer = rows(&conn, "PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    use rusqlite::types::Value::Integer;
    assert_eq!(answer, [[Integer(0), Integer(-1), Integer(-1)]]);
    assert_eq!(db.stats().mark, db.pos().txid, "everything is folded");
}
