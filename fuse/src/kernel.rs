//! What the mount tells the kernel: which cached bytes and names are not valid any more.
//!
//! Never called on a thread that serves requests: the kernel may wait for a request's answer
//! before it drops a page.

use std::ffi::OsStr;
use std::sync::OnceLock;

use fuser::{INodeNo, Notifier};
use parking_lot::Mutex;

/// The way to the kernel, once the file system is mounted.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    notifier: OnceLock<Notifier>,
    directory: Mutex<Directory>,
}

/// The kernel locks the directory from before it asks for the removal of a file until it has the
/// answer, which may take long: it is a commit. Who tells it to forget a name meanwhile waits with
/// it, and could not even be killed.
#[derive(Debug, Default)]
struct Directory {
    removals: usize,
    /// Names to forget when there is none any more.
    postponed: Vec<String>,
}

impl Kernel {
    /// From now on, notifications reach the kernel.
    pub(crate) fn connect(&self, notifier: Notifier) {
        let _ = self.notifier.set(notifier);
    }

    /// Drops cached bytes and attributes of a file; `len` 0 is up to its end. What the kernel does
    /// not know needs no dropping, so that errors are of no interest.
    pub(crate) fn invalidate(&self, ino: u64, offset: u64, len: u64) {
        if let Some(notifier) = self.notifier.get() {
            let _ = notifier.inval_inode(INodeNo(ino), offset as i64, len as i64);
        }
    }

    /// Tells the kernel that a file is longer, by its last byte. [`Kernel::invalidate`] alone has
    /// it ask; and while it takes the answer to one `fstat`, another one at the same time may get
    /// the old size as if it were valid.
    pub(crate) fn grow(&self, ino: u64, len: u64, last: &[u8]) {
        if let Some(notifier) = self.notifier.get() {
            let _ = notifier.store(INodeNo(ino), len - last.len() as u64, last);
        }
    }

    /// Drops what is known of a name in the root directory, that it does not exist included; if
    /// the kernel waits for the removal of a file, after that.
    pub(crate) fn forget_name(&self, name: &str) {
        let mut directory = self.directory.lock();
        if directory.removals > 0 {
            return directory.postponed.push(name.to_owned());
        }
        drop(directory);
        if let Some(notifier) = self.notifier.get() {
            let _ = notifier.inval_entry(INodeNo::ROOT, OsStr::new(name));
        }
    }

    /// The removal of a file is asked for.
    pub(crate) fn begin_removal(&self) {
        self.directory.lock().removals += 1;
    }

    /// It is answered; returns names that are to be forgotten now.
    #[must_use]
    pub(crate) fn end_removal(&self) -> Vec<String> {
        let mut directory = self.directory.lock();
        directory.removals -= 1;
        if directory.removals > 0 { Vec::new() } else { std::mem::take(&mut directory.postponed) }
    }
}
