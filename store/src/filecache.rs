//! A bound on how many files are open, so that ten thousand databases fit in one process.
//!
//! A [`CachedFile`] is opened when it is asked for and closed by the cache when others need its
//! place (second chance: a file used since the hand last passed is spared). Three kinds of files
//! are never closed:
//!
//! * one in use, that is, whose handle somebody still holds;
//! * one marked by [`CachedFile::keep_open`], because its path no longer leads to it;
//! * one with writes that no sync has covered. The kernel reports a failed write-back to the
//!   handles that are open at the time; after close and reopen a sync could succeed although the
//!   bytes are lost. When only such files are left, the cache syncs one and closes it; a failure
//!   then is what the next sync of the file's owner returns.
//!
//! When all open files are of these kinds, the bound is exceeded rather than a caller refused.
//!
//! What was written past the kernel's cache is read back from memory while it is recent; see
//! `recent.rs`.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::error::is_lack_of_space;
use crate::recent::RecentWrites;
use crate::storage::{File, OpenMode, Storage};

/// Bounds the number of open files among the [`CachedFile`]s it made.
pub struct FileCache {
    storage: Arc<dyn Storage>,
    cap: usize,
    ring: Mutex<Ring>,
    recent: Arc<RecentWrites>,
}

/// Lock order: the ring before an entry's state; the state is never held while the ring's lock is
/// taken.
#[derive(Default)]
struct Ring {
    /// The open files that may be closed, in no particular order.
    entries: Vec<Arc<Entry>>,
    /// Where the search for a file to close goes on.
    hand: usize,
    /// How many files are open or about to be opened.
    open: usize,
}

/// A file that is opened on demand.
pub struct CachedFile {
    cache: Arc<FileCache>,
    entry: Arc<Entry>,
}

struct Entry {
    state: Mutex<State>,
    /// Used since the hand last passed.
    used: AtomicBool,
    /// Index in `Ring::entries`, or `NOT_IN_RING`. Changed only under the ring's lock.
    slot: AtomicUsize,
}

struct State {
    path: PathBuf,
    file: Option<Arc<TrackedFile>>,
    keep_open: bool,
}

const NOT_IN_RING: usize = usize::MAX;

impl FileCache {
    /// How many files a store keeps open unless told otherwise.
    pub const DEFAULT_CAP: usize = 400;

    /// A cache that keeps at most `cap` files open (at least one).
    pub fn new(storage: Arc<dyn Storage>, cap: usize) -> Arc<Self> {
        let (ring, recent) = (Mutex::default(), Arc::default());
        Arc::new(FileCache { storage, cap: cap.max(1), ring, recent })
    }

    /// The existing file at `path`, to be opened for reading and writing when first used.
    pub fn file(self: &Arc<Self>, path: PathBuf) -> CachedFile {
        self.cached(path, None)
    }

    /// An open file as a cached one; `path` is where it will be opened again. Its writes count as
    /// not yet synced.
    pub fn adopt(self: &Arc<Self>, path: PathBuf, file: Arc<dyn File>) -> CachedFile {
        self.reserve();
        let cached = self.cached(path, Some(Arc::new(TrackedFile::new(file, true, &self.recent))));
        self.enter(&cached.entry);
        cached
    }

    /// How many files the cache has open.
    pub fn open_count(&self) -> usize {
        self.ring.lock().open
    }

    fn cached(self: &Arc<Self>, path: PathBuf, file: Option<Arc<TrackedFile>>) -> CachedFile {
        let entry = Entry {
            state: Mutex::new(State { path, file, keep_open: false }),
            // Not used yet: a file that is used once and never again must not push out the others.
            used: AtomicBool::new(false),
            slot: AtomicUsize::new(NOT_IN_RING),
        };
        CachedFile { cache: self.clone(), entry: Arc::new(entry) }
    }

    /// Counts one more open file, after closing another if there are too many.
    fn reserve(&self) {
        if self.try_reserve() {
            return;
        }
        let unsynced = self.ring.lock().find_unsynced();
        if let Some(file) = unsynced {
            // A failure is not lost: the file remembers it, stays open, and fails its owner's next
            // sync.
            let synced = file.sync_data();
            drop(file);
            if synced.is_ok() && self.try_reserve() {
                return;
            }
        }
        self.ring.lock().open += 1;
    }

    fn try_reserve(&self) -> bool {
        let mut closed = Vec::new();
        let mut ring = self.ring.lock();
        while ring.open >= self.cap {
            match ring.evict() {
                Some(file) => closed.push(file),
                None => break,
            }
        }
        let reserved = ring.open < self.cap;
        ring.open += usize::from(reserved);
        drop(ring);
        // Closing may take long: not under the lock, but before the caller opens another.
        drop(closed);
        reserved
    }

    fn unreserve(&self) {
        self.ring.lock().open -= 1;
    }

    /// Lists an opened file among those that may be closed.
    fn enter(&self, entry: &Arc<Entry>) {
        let mut ring = self.ring.lock();
        if entry.slot.load(Ordering::Relaxed) == NOT_IN_RING {
            entry.slot.store(ring.entries.len(), Ordering::Relaxed);
            ring.entries.push(entry.clone());
        }
    }
}

impl fmt::Debug for FileCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileCache")
            .field("cap", &self.cap)
            .field("open", &self.open_count())
            .finish()
    }
}

impl Ring {
    /// Closes the next file that is idle, unused since the last pass, and synced.
    fn evict(&mut self) -> Option<Arc<TrackedFile>> {
        // Two rounds: the first may do no more than clear the `used` marks.
        for _ in 0..2 * self.entries.len() {
            if self.hand >= self.entries.len() {
                self.hand = 0;
            }
            let entry = self.entries.get(self.hand)?.clone();
            let Some(mut state) = entry.state.try_lock() else {
                self.hand += 1; // Somebody is using it right now.
                continue;
            };
            if state.keep_open || state.file.is_none() {
                self.leave(&entry);
            } else if state.is_idle()
                && !state.is_unsynced()
                && !entry.used.swap(false, Ordering::Relaxed)
            {
                self.leave(&entry);
                self.open -= 1;
                return state.file.take();
            } else {
                self.hand += 1;
            }
        }
        None
    }

    /// A file that only its unsynced writes keep from being closed.
    fn find_unsynced(&self) -> Option<Arc<TrackedFile>> {
        self.entries.iter().find_map(|entry| {
            let state = entry.state.try_lock()?;
            let candidate = !state.keep_open && state.is_idle() && state.is_unsynced();
            state.file.clone().filter(|file| candidate && !*file.sync_failed.lock())
        })
    }

    fn leave(&mut self, entry: &Entry) {
        let slot = entry.slot.swap(NOT_IN_RING, Ordering::Relaxed);
        if slot == NOT_IN_RING {
            return;
        }
        self.entries.swap_remove(slot);
        if let Some(moved) = self.entries.get(slot) {
            moved.slot.store(slot, Ordering::Relaxed);
        }
    }
}

impl State {
    /// Nobody but the cache holds the open file. Stays true while the state is locked: handles are
    /// given out under it.
    fn is_idle(&self) -> bool {
        self.file.as_ref().is_some_and(|file| Arc::strong_count(file) == 1)
    }

    fn is_unsynced(&self) -> bool {
        self.file.as_ref().is_some_and(|file| file.unsynced.load(Ordering::SeqCst))
    }
}

impl CachedFile {
    /// The open file, opened now if need be. Hold it for one operation, not longer: it counts as in
    /// use.
    pub fn get(&self) -> io::Result<Arc<dyn File>> {
        if let Some(file) = &self.entry.state.lock().file {
            // Not stored again when set already: the cache line then stays shared between readers.
            if !self.entry.used.load(Ordering::Relaxed) {
                self.entry.used.store(true, Ordering::Relaxed);
            }
            return Ok(file.clone());
        }
        self.open()
    }

    /// Opens the file if need be and keeps it open from now on: to be called before its path is
    /// renamed over or removed while readers still need it.
    pub fn keep_open(&self) -> io::Result<()> {
        loop {
            // Held while marking, so that the file cannot be closed in between.
            let _file = self.get()?;
            let mut state = self.entry.state.lock();
            if state.file.is_some() {
                state.keep_open = true;
                return Ok(());
            }
        }
    }

    /// Where the file is opened.
    pub fn path(&self) -> PathBuf {
        self.entry.state.lock().path.clone()
    }

    fn open(&self) -> io::Result<Arc<dyn File>> {
        self.cache.reserve();
        let mut state = self.entry.state.lock();
        if let Some(file) = state.file.clone() {
            drop(state); // Another thread was faster.
            self.cache.unreserve();
            return Ok(file);
        }
        let opened = self.cache.storage.open(&state.path, OpenMode::ReadWrite);
        let file = match opened {
            Ok(file) => Arc::new(TrackedFile::new(file, false, &self.cache.recent)),
            Err(e) => {
                drop(state);
                self.cache.unreserve();
                return Err(e);
            }
        };
        state.file = Some(file.clone());
        drop(state);
        self.cache.enter(&self.entry);
        Ok(file)
    }
}

impl fmt::Debug for CachedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedFile").field("path", &self.path()).finish()
    }
}

impl Drop for CachedFile {
    fn drop(&mut self) {
        let mut ring = self.cache.ring.lock();
        ring.leave(&self.entry);
        let file = self.entry.state.lock().file.take();
        ring.open -= usize::from(file.is_some());
        drop(ring);
        drop(file); // Closing may take long: not under the lock.
    }
}

/// An open file that knows whether a sync has covered its writes, and whether one failed.
#[derive(Debug)]
struct TrackedFile {
    file: Arc<dyn File>,
    unsynced: AtomicBool,
    /// Set by a failed sync, for ever. Locked during a sync: the kernel reports a failure to one of
    /// two simultaneous syncs of a handle only, and the other must not pass for a success.
    sync_failed: Mutex<bool>,
    recent: Arc<RecentWrites>,
    /// The file's number in `recent`.
    number: u64,
    /// False if nothing of it was ever put into `recent`.
    has_recent: AtomicBool,
}

impl TrackedFile {
    fn new(file: Arc<dyn File>, unsynced: bool, recent: &Arc<RecentWrites>) -> Self {
        TrackedFile {
            file,
            unsynced: AtomicBool::new(unsynced),
            sync_failed: Mutex::new(false),
            number: recent.new_file(),
            recent: recent.clone(),
            has_recent: AtomicBool::new(false),
        }
    }

    fn mark_unsynced(&self) {
        self.unsynced.store(true, Ordering::SeqCst);
    }

    fn forget_recent(&self, range: Range<u64>) {
        if self.has_recent.load(Ordering::Acquire) {
            self.recent.forget(self.number, range);
        }
    }
}

fn earlier_failure() -> io::Error {
    io::Error::other("an earlier sync of this file failed; what it wrote may be lost")
}

impl File for TrackedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let recent = self.has_recent.load(Ordering::Acquire);
        if recent && self.recent.read(self.number, buf, offset) {
            return Ok(buf.len());
        }
        self.file.read_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.mark_unsynced();
        self.forget_recent(offset..offset.saturating_add(buf.len() as u64));
        self.file.write_all_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.mark_unsynced();
        self.forget_recent(0..u64::MAX);
        self.file.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut failed = self.sync_failed.lock();
        if *failed {
            return Err(earlier_failure());
        }
        // Cleared before the sync: a write that comes during it sets the mark again.
        self.unsynced.store(false, Ordering::SeqCst);
        let result = self.file.sync_data();
        if result.is_err() {
            *failed = true;
            self.mark_unsynced();
        }
        result
    }

    fn write_durably_at(&self, buf: &[u8], offset: u64) -> io::Result<bool> {
        if *self.sync_failed.lock() {
            return Err(earlier_failure());
        }
        self.forget_recent(offset..offset.saturating_add(buf.len() as u64));
        let result = self.file.write_durably_at(buf, offset);
        match &result {
            Ok(true) => {
                self.has_recent.store(true, Ordering::Release);
                self.recent.insert(self.number, offset, buf);
            }
            Ok(false) => {}
            Err(error) => {
                *self.sync_failed.lock() |= !is_lack_of_space(error);
                self.mark_unsynced();
            }
        }
        result
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.mark_unsynced();
        self.file.allocate(len)
    }
}

impl Drop for TrackedFile {
    fn drop(&mut self) {
        self.forget_recent(0..u64::MAX);
    }
}
