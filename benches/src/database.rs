//! The two sides: a plain SQLite file in WAL mode, and a database in a litefs store.

use std::path::{Path, PathBuf};

use litefs_store::Store;
use litefs_vfs::rusqlite::Connection;

/// One side.
pub enum Side {
    /// A plain file.
    Plain(PathBuf),
    /// A store.
    Litefs(Store),
}

impl Side {
    /// Both sides, empty, below `dir`.
    pub fn both(dir: &Path) -> [Self; 2] {
        let store = Store::open(dir.join("litefs")).expect("a store");
        [Self::Plain(dir.join("plain.db")), Self::Litefs(store)]
    }

    /// Opens the database.
    pub fn connect(&self, synchronous: &str) -> Connection {
        let connection = match self {
            Self::Plain(path) => Connection::open(path).expect("a plain database"),
            Self::Litefs(store) => litefs_vfs::open(store, "plain.db").expect("a database"),
        };
        let mode = "PRAGMA journal_mode=WAL";
        connection.query_row(mode, [], |_| Ok(())).expect("WAL mode");
        let level = format!("PRAGMA synchronous={synchronous}");
        connection.execute_batch(&level).expect("a synchronous level");
        connection
    }
}
