//! A SQLite VFS over the litefs store: open a replicated database with `rusqlite`.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = litefs_store::Store::open("/var/lib/app")?;
//! let conn = litefs_vfs::open(&store, "app.db")?;
//! conn.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)")?;
//! # Ok(()) }
//! ```
//!
//! # What is different from a plain file
//!
//! * A name without a slash is a database of the store, also in `ATTACH` and `VACUUM INTO`; a path
//!   with one (`/tmp/x.db`, `./x.db`) is a plain file.
//! * The log takes the place of journal and WAL: readers and the writer never block each other.
//!   `PRAGMA journal_mode` accepts and answers every mode, and changes nothing (the column of its
//!   answer is named after the mode: take it by its place); `PRAGMA synchronous` means what it
//!   means in WAL mode.
//! * A transaction needs memory for the former content of the pages that it changes (SQLite keeps
//!   its rollback journal in memory).
//! * The page size is fixed with the first transaction, as in WAL mode.
//! * One process holds a data directory; its connections share the databases.
//!
//! # Two ways to build
//!
//! With feature `rusqlite` (the default) for Rust programs. With `--no-default-features --features
//! extension` and crate type `cdylib` as a loadable extension for any program that uses SQLite.

mod change;
mod errors;
#[cfg(feature = "extension")]
mod extension;
mod ffi;
mod file;
mod header;
mod home;
mod install;
#[cfg(feature = "rusqlite")]
mod linked;
mod names;
mod pragma;
#[cfg(feature = "rusqlite")]
mod registry;
mod shim;
#[cfg(feature = "testfixture")]
mod testfixture;
mod vfs;
mod wait;

#[cfg(feature = "extension")]
pub use extension::{litefs_default_init, sqlite3_litefsvfs_init};
#[cfg(feature = "rusqlite")]
pub use linked::{Error, open, register, unregister};
#[cfg(feature = "rusqlite")]
pub use rusqlite;
#[cfg(feature = "testfixture")]
pub use testfixture::litefs_vfs_extra_init;

#[cfg(any(
    all(feature = "rusqlite", feature = "extension"),
    all(feature = "rusqlite", feature = "testfixture"),
    all(feature = "extension", feature = "testfixture"),
    not(any(feature = "rusqlite", feature = "extension", feature = "testfixture")),
))]
compile_error!(
    "choose one feature: `rusqlite` for Rust programs; `extension` or `testfixture`, which use the \
     SQLite of the program that loads them, with --no-default-features"
);
