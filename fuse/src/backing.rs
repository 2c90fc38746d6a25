//! Kernel passthrough of `-shm`: reads, writes and mappings go to the backing file at once.
//!
//! All open files of an inode must use one registration of its backing file with the kernel; it
//! ends when the last of them is closed. A `-shm` that was removed and made anew has another
//! backing file and another registration.

use std::fs::File;
use std::io;
use std::sync::{Arc, Weak};

use fuser::BackingId;
use parking_lot::Mutex;

/// The registration that is in use, if any.
#[derive(Debug, Default)]
pub(crate) struct Backing(Mutex<Option<(Weak<File>, Weak<BackingId>)>>);

impl Backing {
    /// The registration of `file`; made by `register` if there is none. It ends when the last copy
    /// of it is dropped.
    pub(crate) fn get(
        &self,
        file: &Arc<File>,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> io::Result<Arc<BackingId>> {
        let mut current = self.0.lock();
        if let Some((of, id)) = &*current
            && std::ptr::eq(of.as_ptr(), Arc::as_ptr(file))
            && let Some(id) = id.upgrade()
        {
            return Ok(id);
        }
        let id = Arc::new(register(file)?);
        *current = Some((Arc::downgrade(file), Arc::downgrade(&id)));
        Ok(id)
    }
}
