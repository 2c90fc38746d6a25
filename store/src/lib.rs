//! The litefs storage engine: databases as logs of LTX records over plain SQLite files.
//!
//! The one rule is that the log is the truth: a transaction is committed when its record is in the
//! log, and durable when the log is synced. Everything else (base, checksum table, index) is a
//! cache of it. The write path is [`Database::begin_write`] → [`Writer::prepare`] →
//! [`Writer::sync`] → [`Writer::publish`], in `db/writer.rs` and `db/commit.rs`.
#![forbid(unsafe_code)]

mod cache;
mod clock;
mod database;
mod db;
mod error;
mod filecache;
mod gate;
pub mod header;
mod name;
mod node_file;
mod options;
mod random;
mod recent;
mod remote;
mod replication;
mod shared;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod storage;
#[cfg(test)]
mod storage_tests;
mod store;
mod tasks;
mod timing;

pub use clock::{Clock, SystemClock, after};
pub use database::{Database, Stats};
pub use db::compacted::CompactedRecord;
pub use db::cursor::{LogCursor, LogRecord, Relation};
pub use db::diverged::Diverged;
pub use db::hold::Hold;
pub use db::snapshot::Snapshot;
pub use db::writer::Writer;
pub use error::{Error, ErrorKind, Result};
pub use gate::{Pass, WriteGate};
pub use litefs_ltx as ltx;
pub use litefs_ltx::{Checksum, PageSize, Pgno, Pos, Txid};
pub use name::DbName;
pub use options::{Durability, Options};
pub use random::random;
pub use remote::{RecordToSend, Remote, RemoteError, RemoteWriter};
pub use replication::{Answer, Replication, Unconfirmed};
pub use shared::Subscription;
pub use storage::{DirLock, File, OpenMode, OsStorage, SECTOR, Storage};
pub use store::{Event, MAX_DATABASES, Store, WeakStore};
pub use timing::{Counters, Histogram, Timing, Timings};
