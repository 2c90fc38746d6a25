//! Open files of the mount that need more than their inode.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fuser::BackingId;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

/// What an open file keeps.
#[derive(Debug, Clone)]
pub(crate) enum Handle {
    /// Nothing.
    Plain,
    /// The kernel's passthrough to its backing file.
    Backed {
        /// Kept until the file is closed.
        _id: Arc<BackingId>,
    },
    /// A special file's content at the time of the open.
    Content(Arc<Vec<u8>>),
}

/// All open files; numbers are never used again.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    last: AtomicU64,
    kept: Mutex<FxHashMap<u64, Handle>>,
}

impl Handles {
    /// Opens a file; returns its number.
    pub(crate) fn open(&self, handle: Handle) -> u64 {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        if !matches!(handle, Handle::Plain) {
            self.kept.lock().insert(number, handle);
        }
        number
    }

    /// What an open file keeps.
    pub(crate) fn get(&self, number: u64) -> Handle {
        self.kept.lock().get(&number).cloned().unwrap_or(Handle::Plain)
    }

    /// Closes a file.
    pub(crate) fn close(&self, number: u64) {
        // Dropped without the lock: it may call the kernel.
        let _closed = self.kept.lock().remove(&number);
    }
}
