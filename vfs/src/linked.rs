//! The VFS in a program that links SQLite through `rusqlite`.

use std::ffi::{c_char, c_int};

use litefs_store::{DbName, Store};
use rusqlite::{Connection, OpenFlags, ffi};

use crate::ffi::{Api, sqlite3, sqlite3_vfs};
use crate::install::Refused;
use crate::registry;

/// The first SQLite in which a WAL that is reset at the wrong moment no longer corrupts a database.
const OLDEST_SQLITE: i32 = 3_051_003;

/// Why a database was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store refused: the name, the disk, or the database itself.
    #[error(transparent)]
    Store(#[from] litefs_store::Error),
    /// SQLite refused.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// The database failed a check, and is served to nobody until it is repaired.
    #[error("database {name} is quarantined: {reason}")]
    Quarantined {
        /// The database.
        name: DbName,
        /// What was found.
        reason: String,
    },
    /// `:memory:` was asked for.
    #[error("\":memory:\" is SQLite's name for a database in memory, not one of the store")]
    InMemory,
    /// The linked SQLite has a bug that can corrupt databases in WAL mode.
    #[error(
        "SQLite {version} can corrupt a database in WAL mode (the bug is fixed in 3.51.3): \
         build with rusqlite's `bundled` feature, or link a newer SQLite"
    )]
    OldSqlite {
        /// The linked SQLite's version.
        version: String,
    },
    /// SQLite did not take the VFS.
    #[error("SQLite did not register the VFS (code {0})")]
    Register(i32),
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Self::Register(refused.0)
    }
}

/// Makes the store's databases reachable through SQLite's VFS `litefs`:
/// `Connection::open_with_flags_and_vfs("app.db", flags, "litefs")`.
///
/// With several stores in one process, `litefs` is the one registered last; [`open`] always reaches
/// the store it is given. Registering a store again changes nothing but that. The registration does
/// not keep the store open; it ends with the store, or by [`unregister`].
///
/// # Errors
/// [`Error::OldSqlite`] if the linked SQLite is older than 3.51.3.
pub fn register(store: &Store) -> Result<(), Error> {
    Ok(registry::take_plain_name(linked_api()?, store)?)
}

/// Takes the store's VFS away again; open connections go on. Does nothing if it has none.
pub fn unregister(store: &Store) {
    registry::forget(&LINKED, store);
}

/// Opens a database of the store, creating it (empty) if it does not exist.
///
/// The connection is read-write also on a node that may not write now: there, writes fail with
/// "attempt to write a readonly database", until the node becomes the primary.
///
/// # Errors
/// [`Error::Store`] for a bad name, [`Error::Quarantined`] for a database that failed a check,
/// [`Error::OldSqlite`], or what SQLite says.
pub fn open(store: &Store, name: &str) -> Result<Connection, Error> {
    let name = DbName::new(name)?;
    if let Some(reason) = store.database(&name).and_then(|db| db.quarantined()) {
        return Err(Error::Quarantined { name, reason });
    }
    let vfs = registry::own_name(linked_api()?, store)?;
    let path = path_of(&name)?;
    Ok(Connection::open_with_flags_and_vfs(path, OpenFlags::default(), vfs.as_str())?)
}

/// The text by which SQLite finds this very name.
fn path_of(name: &DbName) -> Result<String, Error> {
    let text = name.as_str();
    if text == ":memory:" {
        return Err(Error::InMemory);
    }
    if !text.starts_with("file:") {
        return Ok(text.to_owned());
    }
    // SQLite would take it for a URI; so make it one.
    Ok(format!("file:{}", text.replace('%', "%25").replace('?', "%3f").replace('#', "%23")))
}

fn linked_api() -> Result<&'static Api, Error> {
    if LINKED.version() < OLDEST_SQLITE {
        return Err(Error::OldSqlite { version: rusqlite::version().to_owned() });
    }
    Ok(&LINKED)
}

/// SQLite's functions, as linked.
static LINKED: Api = Api {
    vfs_find,
    vfs_register,
    vfs_unregister,
    malloc64: ffi::sqlite3_malloc64,
    uri_parameter: ffi::sqlite3_uri_parameter,
    get_autocommit,
    libversion_number: ffi::sqlite3_libversion_number,
    log: ffi::sqlite3_log,
};

// Both crates describe the same C structures; these three only change the pointer's type.

unsafe extern "C" fn vfs_find(name: *const c_char) -> *mut sqlite3_vfs {
    // SAFETY: the caller's arguments.
    unsafe { ffi::sqlite3_vfs_find(name).cast() }
}

unsafe extern "C" fn vfs_register(vfs: *mut sqlite3_vfs, default: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { ffi::sqlite3_vfs_register(vfs.cast(), default) }
}

unsafe extern "C" fn vfs_unregister(vfs: *mut sqlite3_vfs) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { ffi::sqlite3_vfs_unregister(vfs.cast()) }
}

unsafe extern "C" fn get_autocommit(connection: *mut sqlite3) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { ffi::sqlite3_get_autocommit(connection.cast()) }
}
