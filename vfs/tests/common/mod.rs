//! Helpers for the VFS's tests.
#![allow(dead_code)] // each test file uses its part

use std::path::{Path, PathBuf};

use litefs_store::{Database, DbName, Durability, Store};
use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode};
use tempfile::TempDir;

/// A store in a temporary directory, removed at the end.
pub struct Home {
    pub store: Store,
    pub dir: TempDir,
}

impl Home {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("data")).unwrap();
        Self { store, dir }
    }

    /// Opens a database. Waits for a busy one only where a test asks for it.
    pub fn open(&self, name: &str) -> Connection {
        let conn = litefs_vfs::open(&self.store, name).unwrap();
        conn.busy_timeout(std::time::Duration::ZERO).unwrap();
        conn
    }

    pub fn db(&self, name: &str) -> Database {
        self.store.database(&DbName::new(name).unwrap()).unwrap()
    }

    /// The number of committed transactions.
    pub fn txid(&self, name: &str) -> u64 {
        self.db(name).pos().txid.get()
    }

    /// A path outside the store.
    pub fn plain_path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The plain file under a database.
    pub fn base(&self, name: &str) -> PathBuf {
        self.store.dir().join("dbs").join(name).join("base")
    }

    /// Closes the store, and checks that the file it leaves is a sound SQLite database with what
    /// `expected` shows. No connection may be open.
    pub fn close_and_check(self, name: &str, expected: &[Row]) {
        let base = self.base(name);
        litefs_vfs::unregister(&self.store);
        self.store.close().unwrap();
        let plain = open_plain(&base);
        check_integrity(&plain);
        assert_eq!(dump(&plain), expected, "the base differs from what the VFS showed");
    }
}

pub type Row = Vec<Value>;

pub fn open_plain(path: &Path) -> Connection {
    let conn = Connection::open(path).unwrap();
    conn.busy_timeout(std::time::Duration::ZERO).unwrap();
    conn
}

/// All rows of a query.
pub fn rows(conn: &Connection, sql: &str) -> rusqlite::Result<Vec<Row>> {
    let mut statement = conn.prepare(sql)?;
    let width = statement.column_count();
    let rows = statement.query_map([], |row| (0..width).map(|i| row.get(i)).collect())?;
    rows.collect()
}

/// The one number that a query yields.
pub fn number(conn: &Connection, sql: &str) -> i64 {
    conn.query_row(sql, [], |row| row.get(0)).unwrap_or_else(|e| panic!("{sql}: {e}"))
}

/// The one text that a query yields.
pub fn text(conn: &Connection, sql: &str) -> String {
    conn.query_row(sql, [], |row| row.get(0)).unwrap_or_else(|e| panic!("{sql}: {e}"))
}

pub fn run(conn: &Connection, sql: &str) {
    conn.execute_batch(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
}

pub fn check_integrity(conn: &Connection) {
    assert_eq!(text(conn, "PRAGMA integrity_check"), "ok");
}

/// The schema and all rows of all tables.
pub fn dump(conn: &Connection) -> Vec<Row> {
    let schema = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name, type";
    let mut all = rows(conn, schema).unwrap();
    let tables = rows(
        conn,
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage > 0 ORDER BY name",
    )
    .unwrap();
    for table in tables {
        let Value::Text(name) = &table[0] else { panic!("a table without a name") };
        all.push(vec![Value::Text(format!("-- {name}"))]);
        all.extend(rows(conn, &format!("SELECT * FROM \"{name}\" ORDER BY 1, 2")).unwrap_or_else(
            |_| rows(conn, &format!("SELECT * FROM \"{name}\" ORDER BY 1")).unwrap(),
        ));
    }
    all
}

/// The error's code; panics if there was none.
pub fn code<T>(result: rusqlite::Result<T>) -> ErrorCode {
    match result {
        Ok(_) => panic!("this should have failed"),
        Err(e) => e.sqlite_error_code().unwrap_or_else(|| panic!("no SQLite error: {e}")),
    }
}

/// The error's extended code; 0 for none.
pub fn extended_code<T>(result: &rusqlite::Result<T>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(rusqlite::Error::SqliteFailure(e, _)) => e.extended_code,
        Err(rusqlite::Error::SqlInputError { error, .. }) => error.extended_code,
        Err(e) => panic!("no SQLite error: {e}"),
    }
}

/// Brings a database of `replica` to the state of `primary`, as replication does.
pub fn replicate(primary: &Home, replica: &Home, name: &str) {
    let from = primary.db(name);
    let to = replica.store.create(&DbName::new(name).unwrap()).unwrap();
    let mut cursor = from.log_cursor(to.pos()).unwrap();
    while let Some(record) = cursor.next().unwrap() {
        to.apply(&mut record.reader(), Durability::Off).unwrap();
    }
    assert_eq!(to.pos(), from.pos());
}
