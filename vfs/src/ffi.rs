//! The part of SQLite's C interface that a VFS needs: types, constants, and a table of functions.
//!
//! Hand-written, because the crate must build in two ways: against the SQLite that `rusqlite`
//! links, and as a loadable extension that gets SQLite's functions from its host at run time. The
//! layouts below are frozen by SQLite: fields are only ever added behind them, under a higher
//! `iVersion`.

#![allow(non_camel_case_types, non_snake_case)]

use std::ffi::{CString, c_char, c_double, c_int, c_void};

/// A database connection, opaque.
#[repr(C)]
pub(crate) struct sqlite3 {
    _opaque: [u8; 0],
}

/// The head of every open file: the rest of its memory belongs to the VFS that opened it.
#[repr(C)]
pub(crate) struct sqlite3_file {
    pub pMethods: *const sqlite3_io_methods,
}

/// The methods of an open file.
#[repr(C)]
pub(crate) struct sqlite3_io_methods {
    pub iVersion: c_int,
    pub xClose: unsafe extern "C" fn(*mut sqlite3_file) -> c_int,
    pub xRead: unsafe extern "C" fn(*mut sqlite3_file, *mut c_void, c_int, i64) -> c_int,
    pub xWrite: unsafe extern "C" fn(*mut sqlite3_file, *const c_void, c_int, i64) -> c_int,
    pub xTruncate: unsafe extern "C" fn(*mut sqlite3_file, i64) -> c_int,
    pub xSync: unsafe extern "C" fn(*mut sqlite3_file, c_int) -> c_int,
    pub xFileSize: unsafe extern "C" fn(*mut sqlite3_file, *mut i64) -> c_int,
    pub xLock: unsafe extern "C" fn(*mut sqlite3_file, c_int) -> c_int,
    pub xUnlock: unsafe extern "C" fn(*mut sqlite3_file, c_int) -> c_int,
    pub xCheckReservedLock: unsafe extern "C" fn(*mut sqlite3_file, *mut c_int) -> c_int,
    pub xFileControl: unsafe extern "C" fn(*mut sqlite3_file, c_int, *mut c_void) -> c_int,
    pub xSectorSize: unsafe extern "C" fn(*mut sqlite3_file) -> c_int,
    pub xDeviceCharacteristics: unsafe extern "C" fn(*mut sqlite3_file) -> c_int,
    // From here on of versions 2 and 3, which this VFS does not offer (`iVersion` is 1). They are
    // filled nevertheless, because shims stacked above a VFS call them without looking.
    pub xShmMap: unsafe extern "C" fn(
        *mut sqlite3_file,
        c_int,
        c_int,
        c_int,
        *mut *mut c_void, // volatile in C
    ) -> c_int,
    pub xShmLock: unsafe extern "C" fn(*mut sqlite3_file, c_int, c_int, c_int) -> c_int,
    pub xShmBarrier: unsafe extern "C" fn(*mut sqlite3_file),
    pub xShmUnmap: unsafe extern "C" fn(*mut sqlite3_file, c_int) -> c_int,
    pub xFetch: unsafe extern "C" fn(*mut sqlite3_file, i64, c_int, *mut *mut c_void) -> c_int,
    pub xUnfetch: unsafe extern "C" fn(*mut sqlite3_file, i64, *mut c_void) -> c_int,
}

/// What `xDlSym` returns: a function of a type that only the caller knows.
pub(crate) type Symbol = Option<unsafe extern "C" fn()>;

/// A virtual file system, version 2.
#[repr(C)]
pub(crate) struct sqlite3_vfs {
    pub iVersion: c_int,
    pub szOsFile: c_int,
    pub mxPathname: c_int,
    pub pNext: *mut sqlite3_vfs,
    pub zName: *const c_char,
    pub pAppData: *mut c_void,
    pub xOpen: unsafe extern "C" fn(
        *mut sqlite3_vfs,
        *const c_char,
        *mut sqlite3_file,
        c_int,
        *mut c_int,
    ) -> c_int,
    pub xDelete: unsafe extern "C" fn(*mut sqlite3_vfs, *const c_char, c_int) -> c_int,
    pub xAccess: unsafe extern "C" fn(*mut sqlite3_vfs, *const c_char, c_int, *mut c_int) -> c_int,
    pub xFullPathname:
        unsafe extern "C" fn(*mut sqlite3_vfs, *const c_char, c_int, *mut c_char) -> c_int,
    pub xDlOpen: Option<unsafe extern "C" fn(*mut sqlite3_vfs, *const c_char) -> *mut c_void>,
    pub xDlError: Option<unsafe extern "C" fn(*mut sqlite3_vfs, c_int, *mut c_char)>,
    pub xDlSym:
        Option<unsafe extern "C" fn(*mut sqlite3_vfs, *mut c_void, *const c_char) -> Symbol>,
    pub xDlClose: Option<unsafe extern "C" fn(*mut sqlite3_vfs, *mut c_void)>,
    pub xRandomness: Option<unsafe extern "C" fn(*mut sqlite3_vfs, c_int, *mut c_char) -> c_int>,
    pub xSleep: unsafe extern "C" fn(*mut sqlite3_vfs, c_int) -> c_int,
    pub xCurrentTime: Option<unsafe extern "C" fn(*mut sqlite3_vfs, *mut c_double) -> c_int>,
    pub xGetLastError: Option<unsafe extern "C" fn(*mut sqlite3_vfs, c_int, *mut c_char) -> c_int>,
    pub xCurrentTimeInt64: Option<unsafe extern "C" fn(*mut sqlite3_vfs, *mut i64) -> c_int>,
}

pub(crate) const SQLITE_OK: c_int = 0;
pub(crate) const SQLITE_BUSY: c_int = 5;
pub(crate) const SQLITE_READONLY: c_int = 8;
pub(crate) const SQLITE_IOERR: c_int = 10;
pub(crate) const SQLITE_CORRUPT: c_int = 11;
pub(crate) const SQLITE_NOTFOUND: c_int = 12;
pub(crate) const SQLITE_FULL: c_int = 13;
pub(crate) const SQLITE_CANTOPEN: c_int = 14;
pub(crate) const SQLITE_IOERR_SHORT_READ: c_int = SQLITE_IOERR | (2 << 8);
pub(crate) const SQLITE_BUSY_SNAPSHOT: c_int = SQLITE_BUSY | (2 << 8);

pub(crate) const SQLITE_OPEN_READONLY: c_int = 0x1;
pub(crate) const SQLITE_OPEN_READWRITE: c_int = 0x2;
pub(crate) const SQLITE_OPEN_CREATE: c_int = 0x4;
pub(crate) const SQLITE_OPEN_DELETEONCLOSE: c_int = 0x8;
pub(crate) const SQLITE_OPEN_EXCLUSIVE: c_int = 0x10;
pub(crate) const SQLITE_OPEN_MEMORY: c_int = 0x80;
pub(crate) const SQLITE_OPEN_MAIN_DB: c_int = 0x100;
pub(crate) const SQLITE_OPEN_MAIN_JOURNAL: c_int = 0x800;
pub(crate) const SQLITE_OPEN_TEMP_JOURNAL: c_int = 0x1000;

pub(crate) const SQLITE_LOCK_NONE: c_int = 0;
pub(crate) const SQLITE_LOCK_SHARED: c_int = 1;
pub(crate) const SQLITE_LOCK_RESERVED: c_int = 2;

pub(crate) const SQLITE_FCNTL_LOCKSTATE: c_int = 1;
pub(crate) const SQLITE_FCNTL_SIZE_HINT: c_int = 5;
pub(crate) const SQLITE_FCNTL_CHUNK_SIZE: c_int = 6;
pub(crate) const SQLITE_FCNTL_OVERWRITE: c_int = 11;
pub(crate) const SQLITE_FCNTL_VFSNAME: c_int = 12;
pub(crate) const SQLITE_FCNTL_PRAGMA: c_int = 14;
pub(crate) const SQLITE_FCNTL_HAS_MOVED: c_int = 20;
pub(crate) const SQLITE_FCNTL_SYNC: c_int = 21;
pub(crate) const SQLITE_FCNTL_COMMIT_PHASETWO: c_int = 22;
pub(crate) const SQLITE_FCNTL_PDB: c_int = 30;

pub(crate) const SQLITE_IOCAP_SAFE_APPEND: c_int = 0x200;
pub(crate) const SQLITE_IOCAP_SEQUENTIAL: c_int = 0x400;
pub(crate) const SQLITE_IOCAP_POWERSAFE_OVERWRITE: c_int = 0x1000;
pub(crate) const SQLITE_IOCAP_SUBPAGE_READ: c_int = 0x8000;

/// The functions of SQLite that the VFS calls.
pub(crate) struct Api {
    pub vfs_find: unsafe extern "C" fn(*const c_char) -> *mut sqlite3_vfs,
    pub vfs_register: unsafe extern "C" fn(*mut sqlite3_vfs, c_int) -> c_int,
    #[cfg(feature = "rusqlite")]
    pub vfs_unregister: unsafe extern "C" fn(*mut sqlite3_vfs) -> c_int,
    pub malloc64: unsafe extern "C" fn(u64) -> *mut c_void,
    pub uri_parameter: unsafe extern "C" fn(*const c_char, *const c_char) -> *const c_char,
    pub get_autocommit: unsafe extern "C" fn(*mut sqlite3) -> c_int,
    pub libversion_number: unsafe extern "C" fn() -> c_int,
    pub log: unsafe extern "C" fn(c_int, *const c_char, ...),
}

impl Api {
    /// SQLite's version: 3054001 for 3.54.1.
    pub(crate) fn version(&self) -> i32 {
        // SAFETY: takes nothing and only returns a constant.
        unsafe { (self.libversion_number)() }
    }

    /// Writes to SQLite's error log (`SQLITE_CONFIG_LOG`, `.log on` in the shell).
    pub(crate) fn log(&self, code: c_int, text: &str) {
        let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
        // SAFETY: the format takes exactly one string, and `text` lives across the call.
        unsafe { (self.log)(code, c"litefs: %s".as_ptr(), text.as_ptr()) }
    }

    /// A copy of `text` that SQLite may free; null if there is no memory.
    pub(crate) fn string(&self, text: &str) -> *mut c_char {
        // SAFETY: the allocation is one byte longer than `text`, for the terminator, and is new,
        // so that the copy cannot overlap.
        unsafe {
            let copy = (self.malloc64)(text.len() as u64 + 1).cast::<c_char>();
            if !copy.is_null() {
                std::ptr::copy_nonoverlapping(text.as_ptr().cast(), copy, text.len());
                *copy.add(text.len()) = 0;
            }
            copy
        }
    }
}

/// A VFS that was registered before ours, to which everything outside the store is passed on.
#[derive(Clone, Copy)]
pub(crate) struct DefaultVfs(pub *mut sqlite3_vfs);

// SAFETY: SQLite lets any thread call any registered VFS at any time, and never frees them.
unsafe impl Send for DefaultVfs {}
// SAFETY: as above.
unsafe impl Sync for DefaultVfs {}
