//! Giving a VFS to SQLite.
//!
//! A VFS is never freed, because a connection may hold it: a few hundred bytes for each.

use std::ffi::{CString, c_int};
use std::ptr::null;

use parking_lot::Mutex;

use crate::ffi::{Api, DefaultVfs, SQLITE_NOTFOUND, SQLITE_OK, sqlite3_vfs};
use crate::home::Home;
use crate::shim;
use crate::vfs::Vfs;

/// The name by which programs ask for the VFS.
pub(crate) const PLAIN_NAME: &str = "litefs";

/// SQLite refused to take a VFS, or has none of its own. The code says why.
#[derive(Debug)]
pub(crate) struct Refused(pub c_int);

/// A VFS in the form that SQLite takes.
pub(crate) struct Registered(*mut sqlite3_vfs);

// SAFETY: the structure is never freed, and only SQLite changes it, under its own lock.
unsafe impl Send for Registered {}

impl Registered {
    /// Makes it known to SQLite; `default` also for connections that name no VFS.
    pub(crate) fn offer(&self, api: &Api, default: bool) -> Result<(), Refused> {
        // SAFETY: the structure came from `make` and lives for ever.
        match unsafe { (api.vfs_register)(self.0, c_int::from(default)) } {
            SQLITE_OK => Ok(()),
            code => Err(Refused(code)),
        }
    }

    /// Takes it out of SQLite's list, if it is there. Open connections go on using it.
    #[cfg(feature = "rusqlite")]
    pub(crate) fn withdraw(&self, api: &Api) {
        // SAFETY: as above; SQLite ignores one that it does not know.
        unsafe { (api.vfs_unregister)(self.0) };
    }
}

/// Makes a VFS, for ever. It is not known to SQLite yet.
pub(crate) fn make(
    api: &'static Api,
    name: &str,
    home: Box<dyn Home>,
) -> Result<Registered, Refused> {
    let vfs: &'static Vfs = Box::leak(Box::new(Vfs {
        api,
        default: default_vfs(api)?,
        home,
        name: CString::new(name).expect("BUG: a VFS name has no zero byte"),
    }));
    Ok(Registered(Box::into_raw(Box::new(shim::describe(vfs)))))
}

/// The VFS that was the default before ours came.
fn default_vfs(api: &Api) -> Result<DefaultVfs, Refused> {
    static DEFAULT: Mutex<Option<DefaultVfs>> = Mutex::new(None);
    let mut default = DEFAULT.lock();
    if let Some(default) = *default {
        return Ok(default);
    }
    // SAFETY: null asks for the default VFS.
    let found = unsafe { (api.vfs_find)(null()) };
    if found.is_null() {
        return Err(Refused(SQLITE_NOTFOUND));
    }
    Ok(*default.insert(DefaultVfs(found)))
}
