//! The VFS as a loadable extension of SQLite (`.load ./liblitefs_vfs`), for any language.
//!
//! A database is then `file:app.db?vfs=litefs`; its data directory is the URI parameter `data` or,
//! without it, the environment's `LITEFS_DATA_DIR`. A store is opened by the first connection to
//! it and closed by the last, so that its databases are plain SQLite files afterwards. One process
//! at a time can hold a data directory.
//!
//! The host may be older than the SQLite that programs must link: the bug for which that one is
//! refused is in the code that resets a WAL, and no database of a store has one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, OnceLock};

use litefs_store::{Database, DbName, Store};
use parking_lot::Mutex;

use crate::errors::Failure;
use crate::ffi::{Api, SQLITE_CANTOPEN, sqlite3, sqlite3_vfs};
use crate::home::{Found, Home};
use crate::install::{self, PLAIN_NAME, Refused, Registered};

/// The oldest host that was tested: Debian 12's.
const OLDEST_SQLITE: i32 = 3_040_000;
const SQLITE_ERROR: c_int = 1;
/// Keeps the library loaded when the connection that loaded it is closed.
const SQLITE_OK_LOAD_PERMANENTLY: c_int = 256;

/// SQLite's entry point, found by the library's file name: registers the VFS `litefs`.
///
/// # Safety
/// Only SQLite may call it, as its interface for extensions says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_litefsvfs_init(
    _connection: *mut c_void,
    message: *mut *mut c_char,
    routines: *const c_void,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { init(message, routines, false) }
}

/// The entry point for hosts that open no URIs (`better-sqlite3`): also makes `litefs` the VFS of
/// connections that name none, so that the name `app.db` is enough.
///
/// # Safety
/// As [`sqlite3_litefsvfs_init`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn litefs_default_init(
    _connection: *mut c_void,
    message: *mut *mut c_char,
    routines: *const c_void,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { init(message, routines, true) }
}

/// # Safety
/// `message` is null or a place for a text, `routines` is SQLite's table of functions.
unsafe fn init(message: *mut *mut c_char, routines: *const c_void, default: bool) -> c_int {
    static API: OnceLock<Api> = OnceLock::new();
    // SAFETY: the caller's promise; SQLite has had all functions that are used since 3.8.7.
    let api = API.get_or_init(|| unsafe { &*routines.cast::<Routines>() }.api());
    match std::panic::catch_unwind(|| load(api, default)) {
        Ok(Ok(())) => SQLITE_OK_LOAD_PERMANENTLY,
        Ok(Err(text)) => {
            if !message.is_null() {
                // SAFETY: the caller's promise; SQLite frees the text.
                unsafe { *message = api.string(&text) };
            }
            SQLITE_ERROR
        }
        Err(_) => SQLITE_ERROR,
    }
}

fn load(api: &'static Api, default: bool) -> Result<(), String> {
    static VFS: Mutex<Option<Registered>> = Mutex::new(None);
    let version = api.version();
    if version < OLDEST_SQLITE {
        return Err(format!("litefs needs SQLite 3.40.0 or newer, and this is {version}"));
    }
    let refused =
        |refused: Refused| format!("SQLite did not register {PLAIN_NAME} (code {})", refused.0);
    let mut vfs = VFS.lock();
    let made = match vfs.take() {
        Some(made) => made,
        None => install::make(api, PLAIN_NAME, Box::new(Directories)).map_err(refused)?,
    };
    vfs.insert(made).offer(api, default).map_err(refused)
}

/// The host's table of functions, as far as it is used here (`sqlite3_api_routines` of
/// `sqlite3ext.h`, to which SQLite only ever appends).
#[repr(C)]
struct Routines {
    _0: [*const c_void; 60],
    get_autocommit: unsafe extern "C" fn(*mut sqlite3) -> c_int,
    _61: [*const c_void; 6],
    libversion_number: unsafe extern "C" fn() -> c_int,
    _68: [*const c_void; 73],
    vfs_find: unsafe extern "C" fn(*const c_char) -> *mut sqlite3_vfs,
    vfs_register: unsafe extern "C" fn(*mut sqlite3_vfs, c_int) -> c_int,
    _143: [*const c_void; 24],
    log: unsafe extern "C" fn(c_int, *const c_char, ...),
    _168: [*const c_void; 21],
    uri_parameter: unsafe extern "C" fn(*const c_char, *const c_char) -> *const c_char,
    _190: [*const c_void; 7],
    malloc64: unsafe extern "C" fn(u64) -> *mut c_void,
}

impl Routines {
    fn api(&self) -> Api {
        Api {
            vfs_find: self.vfs_find,
            vfs_register: self.vfs_register,
            malloc64: self.malloc64,
            uri_parameter: self.uri_parameter,
            get_autocommit: self.get_autocommit,
            libversion_number: self.libversion_number,
            log: self.log,
        }
    }
}

/// The stores that connections of this process use, by data directory.
static OPEN: LazyLock<Mutex<HashMap<PathBuf, Shared>>> = LazyLock::new(Mutex::default);

/// A store and the number of files open in it.
struct Shared {
    store: Store,
    files: usize,
}

/// Counts as one open file of the store in this directory.
struct Share(PathBuf);

/// Opens the store, or shares it if it is open.
fn share(dir: &Path, create: bool) -> Result<(Store, Share), Failure> {
    let cannot_open = |text| Failure::new(SQLITE_CANTOPEN, text);
    let made = if create { std::fs::create_dir_all(dir) } else { Ok(()) };
    let dir = made
        .and_then(|()| dir.canonicalize())
        .map_err(|e| cannot_open(format!("data directory {}: {e}", dir.display())))?;
    let mut open = OPEN.lock();
    let shared = match open.entry(dir.clone()) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => {
            let store = Store::open(&dir).map_err(|e| cannot_open(e.to_string()))?;
            entry.insert(Shared { store, files: 0 })
        }
    };
    shared.files += 1;
    Ok((shared.store.clone(), Share(dir)))
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut open = OPEN.lock();
        let Some(shared) = open.get_mut(&self.0) else { return };
        shared.files -= 1;
        if shared.files == 0
            && let Some(last) = open.remove(&self.0)
            && let Err(e) = last.store.close()
        {
            // The log has everything; the next one to open the store folds it.
            tracing::warn!("closing {}: {e}", self.0.display());
        }
    }
}

/// All data directories.
struct Directories;

impl Home for Directories {
    fn open(
        &self,
        name: &DbName,
        dir: Option<&str>,
        create: bool,
    ) -> Result<Option<Found>, Failure> {
        let dir = dir.map(PathBuf::from).or_else(default_dir).ok_or_else(|| {
            Failure::new(
                SQLITE_CANTOPEN,
                format!(
                    "{name}: no data directory: open it as file:{name}?vfs=litefs&data=/a/directory \
                     or set LITEFS_DATA_DIR"
                ),
            )
        })?;
        let (store, share) = share(&dir, create)?;
        let db = if create { Some(store.create(name)?) } else { store.database(name) };
        Ok(db.map(|db| Found { db, keep: Box::new(share) }))
    }

    fn peek(&self, name: &DbName) -> Option<Database> {
        OPEN.lock().values().find_map(|shared| shared.store.database(name))
    }
}

fn default_dir() -> Option<PathBuf> {
    std::env::var_os("LITEFS_DATA_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from)
}
