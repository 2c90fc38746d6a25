//! What the mount tells the kernel: which cached bytes and names are not valid any more.
//!
//! Never called on a thread that serves requests: the kernel may wait for a request's answer
//! before it drops a page.

use std::ffi::OsStr;
use std::sync::OnceLock;

use fuser::{INodeNo, Notifier};

/// The way to the kernel, once the file system is mounted.
#[derive(Debug, Default)]
pub(crate) struct Kernel(OnceLock<Notifier>);

impl Kernel {
    /// From now on, notifications reach the kernel.
    pub(crate) fn connect(&self, notifier: Notifier) {
        let _ = self.0.set(notifier);
    }

    /// Drops cached bytes and attributes of a file; `len` 0 is up to its end. What the kernel does
    /// not know needs no dropping, so that errors are of no interest.
    pub(crate) fn invalidate(&self, ino: u64, offset: u64, len: u64) {
        if let Some(notifier) = self.0.get() {
            let _ = notifier.inval_inode(INodeNo(ino), offset as i64, len as i64);
        }
    }

    /// Tells the kernel that a file is longer, by its last byte. [`Kernel::invalidate`] alone has it
    /// ask; and while it takes the answer to one `fstat`, another one at the same time may get the
    /// old size as if it were valid.
    pub(crate) fn grow(&self, ino: u64, len: u64, last: &[u8]) {
        if let Some(notifier) = self.0.get() {
            let _ = notifier.store(INodeNo(ino), len - last.len() as u64, last);
        }
    }

    /// Drops what is known of a name in the root directory, that it does not exist included.
    pub(crate) fn forget_name(&self, name: &str) {
        if let Some(notifier) = self.0.get() {
            let _ = notifier.inval_entry(INodeNo::ROOT, OsStr::new(name));
        }
    }
}
