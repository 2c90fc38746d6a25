//! Risk: a name reaches the wrong store, the wrong file, or the file system at all.

mod common;

use common::*;
use rusqlite::{Connection, ErrorCode, OpenFlags};

fn by_vfs(name: &str, vfs: &str) -> rusqlite::Result<Connection> {
    Connection::open_with_flags_and_vfs(name, OpenFlags::default(), vfs)
}

#[test]
fn open_reaches_the_store_it_is_given_among_several() {
    let homes = [Home::new(), Home::new(), Home::new()];
    for (i, home) in homes.iter().enumerate() {
        run(&home.open("app.db"), &format!("CREATE TABLE t AS SELECT {i} AS x"));
    }
    for (i, home) in homes.iter().enumerate() {
        assert_eq!(number(&home.open("app.db"), "SELECT x FROM t"), i as i64);
    }
}

#[test]
fn the_plain_name_is_the_store_registered_last_and_a_closed_store_is_refused() {
    // The only test that uses the name `litefs`, which all tests of the process share.
    let (a, b) = (Home::new(), Home::new());
    for (home, x) in [(&a, 1), (&b, 2)] {
        run(&home.open("app.db"), &format!("CREATE TABLE t AS SELECT {x} AS x"));
    }
    for home in [&a, &b, &a, &a] {
        litefs_vfs::register(&home.store).unwrap();
        let conn = by_vfs("app.db", "litefs").unwrap();
        assert_eq!(dump(&conn), dump(&home.open("app.db")));
        let uri = by_vfs("file:app.db?vfs=litefs", "unix").unwrap();
        assert_eq!(dump(&uri), dump(&conn));
    }
    a.store.close().unwrap();
    assert_eq!(code(by_vfs("app.db", "litefs")), ErrorCode::CannotOpen);
    litefs_vfs::register(&b.store).unwrap();
    assert_eq!(number(&by_vfs("app.db", "litefs").unwrap(), "SELECT x FROM t"), 2);
    litefs_vfs::unregister(&b.store);
    let gone = by_vfs("app.db", "litefs").unwrap_err();
    assert!(gone.to_string().contains("no such vfs"), "{gone}");
    litefs_vfs::unregister(&b.store);
    assert_eq!(number(&b.open("app.db"), "SELECT x FROM t"), 2);
}

#[test]
fn a_registration_does_not_keep_the_store_open() {
    let home = Home::new();
    let dir = home.store.dir().to_owned();
    run(&home.open("app.db"), "CREATE TABLE t (x)");
    let Home { store, dir: keep } = home;
    drop(store);
    // The directory's lock is free again.
    let store = litefs_store::Store::open(&dir).unwrap();
    let conn = litefs_vfs::open(&store, "app.db").unwrap();
    assert_eq!(number(&conn, "SELECT count(*) FROM t"), 0);
    drop(keep);
}

#[test]
fn connections_to_a_closed_store_get_errors_and_can_be_dropped() {
    let home = Home::new();
    let conn = home.open("app.db");
    run(&conn, "CREATE TABLE t (x); BEGIN; INSERT INTO t VALUES (1)");
    home.store.close().unwrap();
    assert!(conn.execute_batch("COMMIT").is_err());
    let _ = conn.execute_batch("ROLLBACK");
    assert!(conn.execute_batch("INSERT INTO t VALUES (2)").is_err());
    assert!(
        conn.prepare("SELECT * FROM t").and_then(|mut s| s.query([])?.next().map(drop)).is_err()
    );
    drop(conn);
    let base = open_plain(&home.base("app.db"));
    assert_eq!(number(&base, "SELECT count(*) FROM t"), 0);
}

#[test]
fn connections_with_a_shared_cache_work() {
    let home = Home::new();
    let open = || {
        let conn = home.open("other.db");
        run(&conn, "ATTACH 'file:app.db?cache=shared' AS app; PRAGMA app.synchronous = OFF");
        conn
    };
    let (a, b) = (open(), open());
    run(&a, "CREATE TABLE app.t (x); INSERT INTO app.t VALUES (1)");
    run(&b, "INSERT INTO app.t VALUES (2)");
    run(&home.open("app.db"), "INSERT INTO t VALUES (3)");
    for conn in [a, b] {
        assert_eq!(number(&conn, "SELECT sum(x) FROM app.t"), 6);
        check_integrity(&conn);
    }
}

#[test]
fn bad_names_are_refused_with_a_reason() {
    let home = Home::new();
    for name in ["", ".hidden", "a/b", "..", "x-journal", "x-wal", "x-shm", "nul\0byte", ":memory:"]
    {
        let error = litefs_vfs::open(&home.store, name).err();
        let error = error.unwrap_or_else(|| panic!("{name:?} was opened"));
        assert!(!error.to_string().is_empty());
    }
    assert!(home.store.databases().is_empty());
}

#[test]
fn unusual_names_reach_the_database_of_that_name() {
    let home = Home::new();
    for name in ["file:x", "file:a?b=c#d%20", "with space", "ünïcode", "a?b", "100%"] {
        run(&home.open(name), "CREATE TABLE t (x)");
        assert_eq!(home.txid(name), 1, "{name}");
    }
    assert_eq!(home.store.databases().len(), 6);
}

#[test]
fn a_path_is_a_plain_file() {
    let home = Home::new();
    let conn = home.open("app.db");
    let path = home.plain_path("plain.db");
    run(&conn, &format!("ATTACH '{}' AS plain; CREATE TABLE plain.t (x)", path.display()));
    assert!(path.exists());
    assert_eq!(number(&open_plain(&path), "SELECT count(*) FROM t"), 0);
    assert!(conn.execute_batch("ATTACH '/nowhere/at/all.db' AS bad").is_err());
    assert_eq!(home.store.databases().len(), 1);
}

#[test]
fn a_database_is_not_created_unless_asked_for() {
    let home = Home::new();
    drop(home.open("app.db"));
    let conn = home.open("app.db");
    let missing = conn.execute_batch("ATTACH 'file:missing.db?mode=rw' AS m");
    assert_eq!(code(missing), ErrorCode::CannotOpen);
    assert_eq!(home.store.databases().len(), 1);
}

#[test]
fn a_read_only_connection_reads_and_does_not_write() {
    let home = Home::new();
    run(&home.open("app.db"), "CREATE TABLE t (x); INSERT INTO t VALUES (1)");
    let conn = home.open("other.db");
    run(&conn, "ATTACH 'file:app.db?mode=ro' AS ro");
    assert_eq!(number(&conn, "SELECT x FROM ro.t"), 1);
    assert_eq!(code(conn.execute("INSERT INTO ro.t VALUES (2)", [])), ErrorCode::ReadOnly);
}

#[test]
fn parameters_that_cannot_be_honoured_are_refused() {
    let home = Home::new();
    let conn = home.open("app.db");
    for uri in ["file:app.db?nolock=1", "file:app.db?data=/tmp/elsewhere"] {
        let refused = conn.execute_batch(&format!("ATTACH '{uri}' AS x"));
        assert_eq!(code(refused), ErrorCode::CannotOpen, "{uri}");
    }
    run(&conn, "ATTACH 'file:app.db?nolock=0' AS x");
}

#[test]
fn a_quarantined_database_says_why_and_the_others_go_on() {
    let home = Home::new();
    for name in ["good.db", "bad.db"] {
        run(&home.open(name), "CREATE TABLE t (x); INSERT INTO t VALUES (zeroblob(90000))");
    }
    let base = home.base("bad.db");
    let dir = home.store.dir().to_owned();
    home.store.close().unwrap();
    let mut bytes = std::fs::read(&base).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&base, bytes).unwrap();

    let store = litefs_store::Store::open(&dir).unwrap();
    let conn = litefs_vfs::open(&store, "bad.db").unwrap();
    let read = conn.query_row("SELECT sum(length(hex(x))) FROM t", [], |row| row.get::<_, i64>(0));
    assert_eq!(code(read), ErrorCode::DatabaseCorrupt);
    let again = litefs_vfs::open(&store, "bad.db").unwrap_err();
    assert!(again.to_string().contains("quarantine"), "{again}");
    let good = litefs_vfs::open(&store, "good.db").unwrap();
    check_integrity(&good);
}
