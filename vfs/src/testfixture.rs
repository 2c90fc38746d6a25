//! The VFS as the default one of SQLite's own test program, `testfixture`.
//!
//! Its tests name databases by paths, delete them, copy them, and look into them with the file
//! system's means. So here a path in the current directory is a database of the store, whose data
//! directory is the current directory's `litefs-data`, and a plain file of that name mirrors it:
//! the content is written to it after every commit (of a database that is not large) and after the
//! last connection closed, and is taken from it when the first connection opens the database and
//! the file is not the one that was written.

use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_void};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use litefs_store::{Database, DbName, Event, Pos, Store, Subscription};
use parking_lot::Mutex;

use crate::errors::Failure;
use crate::ffi::{Api, SQLITE_CANTOPEN, SQLITE_OK, sqlite3, sqlite3_vfs};
use crate::home::{Found, Home};
use crate::install::{self, PLAIN_NAME, Registered};

const SQLITE_ERROR: c_int = 1;
const SQLITE_NOTADB: c_int = 26;

unsafe extern "C" {
    fn sqlite3_vfs_find(name: *const c_char) -> *mut sqlite3_vfs;
    fn sqlite3_vfs_register(vfs: *mut sqlite3_vfs, default: c_int) -> c_int;
    fn sqlite3_malloc64(len: u64) -> *mut c_void;
    fn sqlite3_uri_parameter(name: *const c_char, key: *const c_char) -> *const c_char;
    fn sqlite3_get_autocommit(connection: *mut sqlite3) -> c_int;
    fn sqlite3_libversion_number() -> c_int;
    fn sqlite3_log(code: c_int, format: *const c_char, ...);
}

static API: Api = Api {
    vfs_find: sqlite3_vfs_find,
    vfs_register: sqlite3_vfs_register,
    malloc64: sqlite3_malloc64,
    uri_parameter: sqlite3_uri_parameter,
    get_autocommit: sqlite3_get_autocommit,
    libversion_number: sqlite3_libversion_number,
    log: sqlite3_log,
};

/// For `SQLITE_EXTRA_INIT`: SQLite calls it at the end of each `sqlite3_initialize`. Does nothing
/// unless the environment has `LITEFS_TESTFIXTURE`.
#[unsafe(no_mangle)]
pub extern "C" fn litefs_vfs_extra_init(_unused: *const c_char) -> c_int {
    static VFS: Mutex<Option<Registered>> = Mutex::new(None);
    if std::env::var_os("LITEFS_TESTFIXTURE").is_none() {
        return SQLITE_OK;
    }
    let mut vfs = VFS.lock();
    let made = match vfs.take() {
        Some(made) => Ok(made),
        None => install::make(&API, PLAIN_NAME, Box::new(Mirrors)),
    };
    match made.and_then(|made| vfs.insert(made).offer(&API, true)) {
        Ok(()) => SQLITE_OK,
        Err(refused) => {
            let (version, code) = (API.version(), refused.0);
            API.log(SQLITE_ERROR, &format!("SQLite {version} refused the VFS (code {code})"));
            SQLITE_ERROR
        }
    }
}

static HERE: LazyLock<PathBuf> = LazyLock::new(|| {
    std::env::current_dir().and_then(fs::canonicalize).unwrap_or_else(|_| PathBuf::from("/"))
});

/// The last part of a path in the current directory.
pub(crate) fn within_store(name: &[u8]) -> Option<&[u8]> {
    let rest = name.strip_prefix(HERE.as_os_str().as_bytes())?.strip_prefix(b"/")?;
    (!rest.is_empty() && !rest.contains(&b'/')).then_some(rest)
}

/// The store of the current directory while a database is open.
#[derive(Default)]
struct State {
    store: Option<(Store, Subscription)>,
    /// Open files by database.
    files: HashMap<DbName, usize>,
    /// The mirrors as they were written last, and the positions that they show.
    written: HashMap<DbName, (Stamp, Pos)>,
}

/// Changes with a file's content.
#[derive(PartialEq, Eq)]
struct Stamp {
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);

/// Databases of this many pages are mirrored after every commit.
const SMALL: u32 = 2_000;

struct Mirrors;

impl Home for Mirrors {
    fn open(
        &self,
        name: &DbName,
        _dir: Option<&str>,
        create: bool,
    ) -> Result<Option<Found>, Failure> {
        let mut state = STATE.lock();
        let mirror = HERE.join(name.as_str());
        if !create && !mirror.exists() {
            return Ok(None);
        }
        let db = state.store()?.create(name)?;
        if state.files.get(name).is_none_or(|&files| files == 0) {
            state.load(&db, &mirror)?;
        }
        *state.files.entry(name.clone()).or_default() += 1;
        Ok(Some(Found { db, keep: Box::new(OpenFile(name.clone())) }))
    }

    fn peek(&self, name: &DbName) -> Option<Database> {
        STATE.lock().store.as_ref().and_then(|(store, _)| store.database(name))
    }
}

impl State {
    fn store(&mut self) -> Result<Store, Failure> {
        if self.store.is_none() {
            let store = Store::open(HERE.join("litefs-data"))?;
            let subscription = store.subscribe(mirror_commit);
            self.store = Some((store, subscription));
        }
        let (store, _) = self.store.as_ref().expect("BUG: just opened");
        Ok(store.clone())
    }

    /// Makes the database what its mirror is.
    fn load(&mut self, db: &Database, mirror: &Path) -> Result<(), Failure> {
        let found = stamp(mirror);
        let written = self.written.get(db.name()).map(|(stamp, _)| stamp);
        if found.is_some() && found.as_ref() == written {
            return Ok(());
        }
        self.written.remove(db.name());
        if found.is_some_and(|stamp| stamp.len > 0) {
            let failure = |e: String| Failure::new(SQLITE_NOTADB, e);
            let mut file = File::open(mirror).map_err(|e| failure(e.to_string()))?;
            db.import(&mut file).map_err(|e| failure(e.to_string()))?;
        } else {
            if db.page_count() > 0 {
                db.drop_database()?;
            }
            File::create(mirror).map_err(|e| Failure::new(SQLITE_CANTOPEN, e.to_string()))?;
        }
        Ok(())
    }

    /// Writes the mirror unless it shows this position; a change that a test made to it stays.
    fn save(&mut self, db: &Database) {
        if self.written.get(db.name()).is_some_and(|(_, shown)| *shown == db.pos()) {
            return;
        }
        let mirror = HERE.join(db.name().as_str());
        let saved = File::options()
            .write(true)
            .truncate(true)
            .open(&mirror)
            .map(|mut file| db.export(&mut file));
        if let (Ok(Ok(pos)), Some(stamp)) = (saved, stamp(&mirror)) {
            self.written.insert(db.name().clone(), (stamp, pos));
        }
    }
}

fn mirror_commit(event: &Event) {
    if let Event::Position { db, commit, .. } = event
        && *commit < SMALL
        && let Some(mut state) = STATE.try_lock()
        && let Some(db) = state.store.as_ref().and_then(|(store, _)| store.database(db))
    {
        state.save(&db);
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    let modified = (meta.mtime(), meta.mtime_nsec());
    Some(Stamp { inode: meta.ino(), len: meta.len(), modified })
}

/// Counts as one open file of a database.
struct OpenFile(DbName);

impl Drop for OpenFile {
    fn drop(&mut self) {
        let mut state = STATE.lock();
        let Some(files) = state.files.get_mut(&self.0) else { return };
        *files -= 1;
        if *files > 0 {
            return;
        }
        if let Some(db) = state.store.as_ref().and_then(|(store, _)| store.database(&self.0)) {
            state.save(&db);
        }
        state.files.remove(&self.0);
    }
}
