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
use std::ffi::{c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use litefs_store::{Database, DbName, Store};
use parking_lot::Mutex;

use crate::errors::Failure;
use crate::ffi::{Api, SQLITE_CANTOPEN, sqlite3, sqlite3_vfs};
use crate::home::{Found, Home};
use crate::install::{self, PLAIN_NAME, Refused};

/// The oldest host that was tested: Debian 12's.
const OLDEST_SQLITE: i32 = 3_040_000;
const SQLITE_ERROR: c_int = 1;
/// Keeps the library loaded when the connection that loaded it is closed.
const SQLITE_OK_LOAD_PERMANENTLY: c_int = 256;

/// SQLite's entry point, found by the library's file name.
///
/// # Safety
/// Only SQLite may call it, as its interface for extensions says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_litefsvfs_init(
    _connection: *mut c_void,
    message: *mut *mut c_char,
    routines: *const c_void,
) -> c_int {
    static API: OnceLock<Api> = OnceLock::new();
    // SAFETY: the caller is SQLite, which gives its table of functions; it has had all of those
    // used here since 3.8.7.
    let api = API.get_or_init(|| unsafe { &*routines.cast::<Routines>() }.api());
    match std::panic::catch_unwind(|| load(api)) {
        Ok(Ok(())) => SQLITE_OK_LOAD_PERMANENTLY,
        Ok(Err(text)) => {
            if !message.is_null() {
                // SAFETY: SQLite gave a place for a text, and frees it.
                unsafe { *message = api.string(&text) };
            }
            SQLITE_ERROR
        }
        Err(_) => SQLITE_ERROR,
    }
}

fn load(api: &'static Api) -> Result<(), String> {
    static LOADED: Mutex<bool> = Mutex::new(false);
    let mut loaded = LOADED.lock();
    if *loaded {
        return Ok(());
    }
    let version = api.version();
    if version < OLDEST_SQLITE {
        return Err(format!("litefs needs SQLite 3.40.0 or newer, and this is {version}"));
    }
    let refused = |refused: Refused| {
        format!("SQLite did not register the VFS {PLAIN_NAME} (code {})", refused.0)
    };
    let vfs = install::make(api, PLAIN_NAME, Box::new(Directories::new())).map_err(refused)?;
    vfs.offer(api, false).map_err(refused)?;
    *loaded = true;
    Ok(())
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
struct Directories {
    open: &'static Mutex<HashMap<PathBuf, Shared>>,
}

/// A store and the number of files open in it.
struct Shared {
    store: Store,
    files: usize,
}

/// Counts as one open file.
struct Share {
    open: &'static Mutex<HashMap<PathBuf, Shared>>,
    dir: PathBuf,
}

impl Directories {
    fn new() -> Self {
        Self { open: Box::leak(Box::default()) }
    }

    fn share(&self, dir: &Path) -> Result<(Store, Share), Failure> {
        std::fs::create_dir_all(dir).and_then(|()| dir.canonicalize()).map_or_else(
            |e| Err(Failure::new(SQLITE_CANTOPEN, format!("data directory {dir:?}: {e}"))),
            |dir| {
                let mut open = self.open.lock();
                if !open.contains_key(&dir) {
                    let store = Store::open(&dir)
                        .map_err(|e| Failure::new(SQLITE_CANTOPEN, e.to_string()))?;
                    open.insert(dir.clone(), Shared { store, files: 0 });
                }
                let shared = open.get_mut(&dir).expect("BUG: just inserted");
                shared.files += 1;
                Ok((shared.store.clone(), Share { open: self.open, dir }))
            },
        )
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut open = self.open.lock();
        let Some(shared) = open.get_mut(&self.dir) else { return };
        shared.files -= 1;
        if shared.files == 0
            && let Some(last) = open.remove(&self.dir)
            && let Err(e) = last.store.close()
        {
            // The log has everything; the next one to open the store folds it.
            tracing::warn!("closing {:?}: {e}", self.dir);
        }
    }
}

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
        let (store, share) = self.share(&dir)?;
        let db = if create { Some(store.create(name)?) } else { store.database(name) };
        Ok(db.map(|db| Found { db, keep: Box::new(share) }))
    }

    fn peek(&self, name: &DbName) -> Option<Database> {
        self.open.lock().values().find_map(|shared| shared.store.database(name))
    }
}

fn default_dir() -> Option<PathBuf> {
    std::env::var_os("LITEFS_DATA_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from)
}
