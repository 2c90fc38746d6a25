//! The functions that SQLite calls: each turns C into Rust and back, and does nothing more.
//!
//! What makes the `unsafe` here sound are promises of SQLite to every VFS, called "the contract"
//! below:
//! * it passes the `sqlite3_vfs` that was registered (never freed, see `registry`), and the
//!   `sqlite3_file` that `xOpen` filled, up to `xClose`; it uses a file from one thread at a time;
//! * buffers have the length that comes with them, and result pointers are valid for one write;
//! * names end with a zero byte and live across the call.
//!
//! A panic ends at [`guard`]: SQLite gets an I/O error, and the process lives on.

use std::ffi::{CStr, c_char, c_double, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;

use crate::errors::{Failure, report};
use crate::ffi::*;
use crate::file::{MainFile, Reach};
use crate::names::{database_name, within_store};
use crate::pragma::{self, Reply};
use crate::vfs::{Params, Vfs};
use crate::wait;

/// An open file of ours, in the memory that SQLite provides.
#[repr(C)]
struct Slot {
    base: sqlite3_file,
    open: *mut Open,
}

/// What lies behind a [`Slot`].
struct Open {
    file: MainFile,
    vfs: &'static Vfs,
    /// Where SQLite keeps the connection that uses the file.
    connection: *mut *mut sqlite3,
}

/// Makes the structure to register. Everything reachable from it lives for ever.
pub(crate) fn describe(vfs: &'static Vfs) -> sqlite3_vfs {
    // SAFETY: the default VFS is registered, and SQLite never frees a registered VFS.
    let default = unsafe { &*vfs.default.0 };
    let slot = c_int::try_from(size_of::<Slot>()).expect("BUG: a slot is a few bytes");
    sqlite3_vfs {
        iVersion: 2,
        szOsFile: default.szOsFile.max(slot),
        mxPathname: default.mxPathname,
        pNext: null_mut(),
        zName: vfs.name.as_ptr(),
        pAppData: std::ptr::from_ref(vfs).cast_mut().cast(),
        xOpen: open,
        xDelete: delete,
        xAccess: access,
        xFullPathname: full_pathname,
        xDlOpen: default.xDlOpen.is_some().then_some(dl_open),
        xDlError: default.xDlError.is_some().then_some(dl_error),
        xDlSym: default.xDlSym.is_some().then_some(dl_sym),
        xDlClose: default.xDlClose.is_some().then_some(dl_close),
        xRandomness: default.xRandomness.is_some().then_some(randomness),
        xSleep: sleep,
        xCurrentTime: default.xCurrentTime.is_some().then_some(current_time),
        xGetLastError: default.xGetLastError.is_some().then_some(get_last_error),
        xCurrentTimeInt64: default
            .xCurrentTimeInt64
            .filter(|_| default.iVersion >= 2)
            .map(|_| current_time_int64 as _),
    }
}

/// Runs a callback; a panic becomes `code`.
fn guard(code: c_int, callback: impl FnOnce() -> c_int) -> c_int {
    catch_unwind(AssertUnwindSafe(callback)).unwrap_or(code)
}

fn result(vfs: &Vfs, result: Result<(), Failure>) -> c_int {
    match result {
        Ok(()) => SQLITE_OK,
        Err(failure) => report(vfs.api, &failure),
    }
}

// ---- the VFS ----

/// # Safety
/// `vfs` is one that [`describe`] made.
unsafe fn vfs_of(vfs: *mut sqlite3_vfs) -> &'static Vfs {
    // SAFETY: `describe` put a `&'static Vfs` there.
    unsafe { &*(*vfs).pAppData.cast::<Vfs>() }
}

unsafe extern "C" fn open(
    vfs: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    guard(SQLITE_CANTOPEN, || {
        // SAFETY: the contract; without methods SQLite does not call `xClose` after an error.
        let vfs = unsafe {
            (*file).pMethods = std::ptr::null();
            vfs_of(vfs)
        };
        // SAFETY: the contract.
        let text = (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) }.to_bytes());
        match text.and_then(within_store) {
            // SAFETY: the arguments of this very call.
            None => unsafe { open_plain(vfs, name, file, flags, out_flags) },
            Some(text) if flags & SQLITE_OPEN_MAIN_DB != 0 => {
                // SAFETY: SQLite lets `xOpen` ask for URI parameters of a main database's name.
                let params = unsafe { params_of(vfs.api, name) };
                let opened = vfs.open_database(text, &params, flags).map(|main| {
                    // SAFETY: the arguments of this very call.
                    unsafe { install(vfs, main, file, flags, out_flags) }
                });
                result(vfs, opened)
            }
            Some(_) if flags & SQLITE_OPEN_MAIN_JOURNAL != 0 => {
                // SQLite journals in memory. Only a PRAGMA that reached it past the VFS (one for
                // all databases, with another main database) can make it want a file.
                let flags = SQLITE_OPEN_READWRITE
                    | SQLITE_OPEN_CREATE
                    | SQLITE_OPEN_EXCLUSIVE
                    | SQLITE_OPEN_DELETEONCLOSE
                    | SQLITE_OPEN_TEMP_JOURNAL;
                // SAFETY: the arguments of this very call; no name means a temporary file.
                unsafe { open_plain(vfs, std::ptr::null(), file, flags, out_flags) }
            }
            Some(text) => result(vfs, Err(no_sidecar(text))),
        }
    })
}

fn no_sidecar(name: &[u8]) -> Failure {
    Failure::new(
        SQLITE_CANTOPEN,
        format!(
            "{}: a database of the store has no such file. (One transaction over two plain \
             databases attached beside it would need a super-journal: put them in WAL mode, or \
             change one at a time.)",
            String::from_utf8_lossy(name)
        ),
    )
}

/// # Safety
/// The arguments of an `xOpen` call; `name` may be null.
unsafe fn open_plain(
    vfs: &Vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let default = vfs.default.0;
    // SAFETY: the caller's promise; `szOsFile` is large enough for the default VFS's files.
    unsafe { ((*default).xOpen)(default, name, file, flags, out_flags) }
}

/// # Safety
/// `name` is a main database's name as given to `xOpen`.
unsafe fn params_of(api: &Api, name: *const c_char) -> Params {
    let param = |key: &CStr| {
        // SAFETY: the caller's promise; the result is null or a string that lives with the name.
        unsafe {
            let value = (api.uri_parameter)(name, key.as_ptr());
            (!value.is_null()).then(|| CStr::from_ptr(value).to_string_lossy().into_owned())
        }
    };
    let flag = |key| param(key).is_some_and(|value| pragma::is_true(&value));
    Params { data: param(c"data"), immutable: flag(c"immutable"), nolock: flag(c"nolock") }
}

/// # Safety
/// The arguments of an `xOpen` call.
unsafe fn install(
    vfs: &'static Vfs,
    main: MainFile,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) {
    let open = Box::new(Open { file: main, vfs, connection: null_mut() });
    // SAFETY: `szOsFile` is large enough for a slot, and `out_flags` is null or valid.
    unsafe {
        file.cast::<Slot>().write(Slot {
            base: sqlite3_file { pMethods: &raw const METHODS },
            open: Box::into_raw(open),
        });
        if !out_flags.is_null() {
            // "In memory": SQLite then keeps its rollback journal in memory by itself, makes no
            // super-journal for this database, and does not change its page size.
            *out_flags = flags | SQLITE_OPEN_MEMORY;
        }
    }
}

unsafe extern "C" fn delete(vfs: *mut sqlite3_vfs, name: *const c_char, sync_dir: c_int) -> c_int {
    guard(SQLITE_IOERR, || {
        // SAFETY: the contract.
        let (vfs, text) = unsafe { (vfs_of(vfs), CStr::from_ptr(name).to_bytes()) };
        let Some(text) = within_store(text) else {
            let default = vfs.default.0;
            // SAFETY: the arguments of this very call.
            return unsafe { ((*default).xDelete)(default, name, sync_dir) };
        };
        result(vfs, vfs.delete(text))
    })
}

unsafe extern "C" fn access(
    vfs: *mut sqlite3_vfs,
    name: *const c_char,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    guard(SQLITE_IOERR, || {
        // SAFETY: the contract.
        let (vfs, text) = unsafe { (vfs_of(vfs), CStr::from_ptr(name).to_bytes()) };
        let Some(text) = within_store(text) else {
            let default = vfs.default.0;
            // SAFETY: the arguments of this very call.
            return unsafe { ((*default).xAccess)(default, name, flags, out) };
        };
        // SAFETY: the contract.
        unsafe { *out = c_int::from(vfs.exists(text)) };
        SQLITE_OK
    })
}

unsafe extern "C" fn full_pathname(
    vfs: *mut sqlite3_vfs,
    name: *const c_char,
    len: c_int,
    out: *mut c_char,
) -> c_int {
    guard(SQLITE_CANTOPEN, || {
        // SAFETY: the contract.
        let (vfs, text) = unsafe { (vfs_of(vfs), CStr::from_ptr(name).to_bytes_with_nul()) };
        let bare = &text[..text.len() - 1];
        if within_store(bare).is_none() || cfg!(feature = "testfixture") {
            let default = vfs.default.0;
            // SAFETY: the arguments of this very call.
            return unsafe { ((*default).xFullPathname)(default, name, len, out) };
        }
        if let Err(failure) = database_name(bare) {
            return report(vfs.api, &failure);
        }
        if usize::try_from(len).is_ok_and(|len| len >= text.len()) {
            // SAFETY: `out` has `len` bytes, which is enough, and is no part of `name`.
            unsafe { std::ptr::copy_nonoverlapping(text.as_ptr().cast(), out, text.len()) };
            return SQLITE_OK;
        }
        SQLITE_CANTOPEN
    })
}

unsafe extern "C" fn sleep(vfs: *mut sqlite3_vfs, microseconds: c_int) -> c_int {
    guard(0, || {
        // SAFETY: the contract.
        let vfs = unsafe { vfs_of(vfs) };
        match wait::take_busy(vfs.id()) {
            Some(db) => wait::for_writer(&db, microseconds),
            None => {
                let default = vfs.default.0;
                // SAFETY: the default VFS is registered for ever.
                unsafe { ((*default).xSleep)(default, microseconds) }
            }
        }
    })
}

/// Makes a callback that calls the same one of the default VFS.
macro_rules! pass_on {
    ($name:ident => $method:ident($($arg:ident: $type:ty),*) -> $result:ty, else $none:expr) => {
        unsafe extern "C" fn $name(vfs: *mut sqlite3_vfs, $($arg: $type),*) -> $result {
            // SAFETY: the contract; the default VFS is registered for ever.
            let (default, method) = unsafe {
                let default = vfs_of(vfs).default.0;
                (default, (*default).$method)
            };
            match method {
                // SAFETY: the arguments of this very call.
                Some(method) => unsafe { method(default, $($arg),*) },
                None => $none,
            }
        }
    };
}

pass_on!(dl_open => xDlOpen(name: *const c_char) -> *mut c_void, else null_mut());
pass_on!(dl_error => xDlError(len: c_int, out: *mut c_char) -> (), else ());
pass_on!(dl_sym => xDlSym(library: *mut c_void, name: *const c_char) -> Symbol, else None);
pass_on!(dl_close => xDlClose(library: *mut c_void) -> (), else ());
pass_on!(randomness => xRandomness(len: c_int, out: *mut c_char) -> c_int, else 0);
pass_on!(current_time => xCurrentTime(out: *mut c_double) -> c_int, else SQLITE_IOERR);
pass_on!(get_last_error => xGetLastError(len: c_int, out: *mut c_char) -> c_int, else 0);
pass_on!(current_time_int64 => xCurrentTimeInt64(out: *mut i64) -> c_int, else SQLITE_IOERR);

// ---- an open file ----

static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    iVersion: 1,
    xClose: close,
    xRead: read,
    xWrite: write,
    xTruncate: truncate,
    xSync: sync,
    xFileSize: file_size,
    xLock: lock,
    xUnlock: unlock,
    xCheckReservedLock: check_reserved_lock,
    xFileControl: file_control,
    xSectorSize: sector_size,
    xDeviceCharacteristics: device_characteristics,
    xShmMap: shm_map,
    xShmLock: shm_lock,
    xShmBarrier: shm_barrier,
    xShmUnmap: shm_unmap,
    xFetch: fetch,
    xUnfetch: unfetch,
};

/// # Safety
/// `file` was opened by [`install`] and not closed; no other reference to it is in use.
unsafe fn open_of<'a>(file: *mut sqlite3_file) -> &'a mut Open {
    // SAFETY: `install` put a boxed `Open` there.
    unsafe { &mut *(*file.cast::<Slot>()).open }
}

/// Runs a method of an open file.
///
/// # Safety
/// As for [`open_of`].
unsafe fn on_file(
    file: *mut sqlite3_file,
    method: impl FnOnce(&mut MainFile) -> Result<(), Failure>,
) -> c_int {
    guard(SQLITE_IOERR, || {
        // SAFETY: the caller's promise.
        let open = unsafe { open_of(file) };
        result(open.vfs, method(&mut open.file).map_err(|e| e.of(open.file.database().name())))
    })
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    guard(SQLITE_OK, || {
        // SAFETY: the contract: this is the last call for this file.
        drop(unsafe { Box::from_raw((*file.cast::<Slot>()).open) });
        SQLITE_OK
    })
}

unsafe extern "C" fn read(
    file: *mut sqlite3_file,
    buf: *mut c_void,
    len: c_int,
    offset: i64,
) -> c_int {
    // SAFETY: the contract.
    let buf = unsafe { bytes_mut(buf, len) };
    let mut reach = Reach::Whole;
    // SAFETY: the contract.
    let code = unsafe {
        on_file(file, |file| file.read(buf, offset.unsigned_abs()).map(|found| reach = found))
    };
    if code == SQLITE_OK && reach == Reach::Short { SQLITE_IOERR_SHORT_READ } else { code }
}

unsafe extern "C" fn write(
    file: *mut sqlite3_file,
    data: *const c_void,
    len: c_int,
    offset: i64,
) -> c_int {
    let len = usize::try_from(len).unwrap_or(0);
    // SAFETY: the contract.
    unsafe {
        let data = std::slice::from_raw_parts(data.cast::<u8>(), len);
        on_file(file, |file| file.write(data, offset.unsigned_abs()))
    }
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, len: i64) -> c_int {
    // SAFETY: the contract.
    unsafe { on_file(file, |file| file.truncate(len.unsigned_abs())) }
}

/// `FCNTL_SYNC` came just before and did it; this one does not come with `synchronous=OFF`.
unsafe extern "C" fn sync(_file: *mut sqlite3_file, _flags: c_int) -> c_int {
    SQLITE_OK
}

unsafe extern "C" fn file_size(file: *mut sqlite3_file, out: *mut i64) -> c_int {
    // SAFETY: the contract.
    unsafe {
        on_file(file, |file| {
            *out = i64::try_from(file.size()?).unwrap_or(i64::MAX);
            Ok(())
        })
    }
}

unsafe extern "C" fn lock(file: *mut sqlite3_file, level: c_int) -> c_int {
    // SAFETY: the contract.
    let code = unsafe { on_file(file, |file| file.lock(level)) };
    if code & 0xff == SQLITE_BUSY {
        // SAFETY: the contract.
        let open = unsafe { open_of(file) };
        wait::found_busy(open.vfs.id(), open.file.database());
    }
    code
}

unsafe extern "C" fn unlock(file: *mut sqlite3_file, level: c_int) -> c_int {
    // SAFETY: the contract.
    unsafe {
        on_file(file, |file| {
            file.unlock(level);
            Ok(())
        })
    }
}

unsafe extern "C" fn check_reserved_lock(file: *mut sqlite3_file, out: *mut c_int) -> c_int {
    // SAFETY: the contract.
    unsafe {
        on_file(file, |file| {
            *out = c_int::from(file.is_writing());
            Ok(())
        })
    }
}

unsafe extern "C" fn file_control(file: *mut sqlite3_file, op: c_int, arg: *mut c_void) -> c_int {
    match op {
        // SAFETY: the contract.
        SQLITE_FCNTL_SYNC => unsafe { on_file(file, MainFile::prepare) },
        // SAFETY: the contract.
        SQLITE_FCNTL_COMMIT_PHASETWO => unsafe { on_file(file, MainFile::publish) },
        // SAFETY: the contract: the argument is an array of three texts, the first for an answer.
        SQLITE_FCNTL_PRAGMA => guard(SQLITE_NOTFOUND, || unsafe { pragma(file, arg.cast()) }),
        // SAFETY: the contract: the argument points to a place for one int, text or pointer.
        _ => guard(SQLITE_NOTFOUND, || unsafe { small_control(open_of(file), op, arg) }),
    }
}

/// # Safety
/// `arg` is the argument of `FCNTL_PRAGMA`: answer, name, value or null.
unsafe fn pragma(file: *mut sqlite3_file, arg: *mut *mut c_char) -> c_int {
    // SAFETY: the caller's promise; the connection's address was given by SQLite for as long as
    // the file is open.
    let (open, name, value, in_transaction) = unsafe {
        let open = open_of(file);
        let connection = if open.connection.is_null() { null_mut() } else { *open.connection };
        let in_transaction =
            !connection.is_null() && (open.vfs.api.get_autocommit)(connection) == 0;
        let value = *arg.add(2);
        (
            open,
            CStr::from_ptr(*arg.add(1)).to_string_lossy(),
            (!value.is_null()).then(|| CStr::from_ptr(value).to_string_lossy()),
            in_transaction,
        )
    };
    match pragma::handle(&mut open.file, &name, value.as_deref(), in_transaction) {
        Reply::Pass => SQLITE_NOTFOUND,
        Reply::Answer(text) => {
            // SAFETY: the caller's promise; SQLite frees the answer.
            unsafe { *arg = open.vfs.api.string(text) };
            SQLITE_OK
        }
    }
}

/// # Safety
/// `arg` is as SQLite documents for `op`.
unsafe fn small_control(open: &mut Open, op: c_int, arg: *mut c_void) -> c_int {
    match op {
        // SAFETY: an int to write.
        SQLITE_FCNTL_LOCKSTATE => unsafe { *arg.cast::<c_int>() = open.file.lock_state() },
        // SAFETY: an int to write. A database cannot be renamed while it is open.
        SQLITE_FCNTL_HAS_MOVED => unsafe { *arg.cast::<c_int>() = 0 },
        // SAFETY: a text to write, which SQLite frees.
        SQLITE_FCNTL_VFSNAME => unsafe {
            *arg.cast::<*mut c_char>() = open.vfs.api.string(&open.vfs.name.to_string_lossy());
        },
        SQLITE_FCNTL_PDB => open.connection = arg.cast(),
        SQLITE_FCNTL_SIZE_HINT | SQLITE_FCNTL_CHUNK_SIZE | SQLITE_FCNTL_OVERWRITE => {}
        _ => return SQLITE_NOTFOUND,
    }
    SQLITE_OK
}

/// SQLite's smallest; it only matters for journals, of which there are none on disk.
unsafe extern "C" fn sector_size(_file: *mut sqlite3_file) -> c_int {
    512
}

unsafe extern "C" fn device_characteristics(_file: *mut sqlite3_file) -> c_int {
    SQLITE_IOCAP_SAFE_APPEND
        | SQLITE_IOCAP_SEQUENTIAL
        | SQLITE_IOCAP_POWERSAFE_OVERWRITE
        | SQLITE_IOCAP_SUBPAGE_READ
}

unsafe extern "C" fn shm_map(
    _file: *mut sqlite3_file,
    _page: c_int,
    _size: c_int,
    _extend: c_int,
    _out: *mut *mut c_void,
) -> c_int {
    SQLITE_IOERR
}

unsafe extern "C" fn shm_lock(
    _file: *mut sqlite3_file,
    _offset: c_int,
    _n: c_int,
    _flags: c_int,
) -> c_int {
    SQLITE_IOERR
}

unsafe extern "C" fn shm_barrier(_file: *mut sqlite3_file) {}

unsafe extern "C" fn shm_unmap(_file: *mut sqlite3_file, _delete: c_int) -> c_int {
    SQLITE_OK
}

/// No memory map: SQLite then reads.
unsafe extern "C" fn fetch(
    _file: *mut sqlite3_file,
    _offset: i64,
    _len: c_int,
    out: *mut *mut c_void,
) -> c_int {
    // SAFETY: the contract.
    unsafe { *out = null_mut() };
    SQLITE_OK
}

unsafe extern "C" fn unfetch(_file: *mut sqlite3_file, _offset: i64, _page: *mut c_void) -> c_int {
    SQLITE_OK
}

/// # Safety
/// `buf` is valid for `len` bytes, and used by nobody else meanwhile.
unsafe fn bytes_mut<'a>(buf: *mut c_void, len: c_int) -> &'a mut [u8] {
    let len = usize::try_from(len).unwrap_or(0);
    // SAFETY: the caller's promise. The bytes may be uninitialized; they are only written.
    unsafe { std::slice::from_raw_parts_mut(buf.cast(), len) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_code() {
        assert_eq!(guard(SQLITE_IOERR, || panic!("the test panics here")), SQLITE_IOERR);
        assert_eq!(guard(SQLITE_IOERR, || SQLITE_OK), SQLITE_OK);
    }
}
