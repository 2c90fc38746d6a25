//! One database as the mount shows it.
//!
//! | what a client does | here |
//! |---|---|
//! | takes `RESERVED`, or byte 120 of the shm | [`access`]: the store's writer is taken |
//! | writes pages, then ends its journal | [`rollback`]: one record |
//! | writes a commit frame to the WAL | [`wal_file`]: one record |
//! | copies pages from the WAL (checkpoint) | [`main_file`]: noted, as the log has them |
//! | dies | [`access`]: its locks go, and what it had not committed |
//!
//! What the store learns from elsewhere (a replica's records, an import) becomes visible in
//! [`advance`]. Locks, in the order in which they may be taken: `access`, `journal`, `wal`, `main`,
//! `shm`.

mod access;
mod advance;
mod main_file;
mod rollback;
mod shm_file;
mod wal_file;

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use fuser::Errno;
use litefs_store::{Database, DbName, Durability, Pos, Store, Writer, random};
use parking_lot::{Mutex, RwLock};

use self::access::Access;
pub(crate) use self::advance::{Removal, Watcher};
use self::main_file::MainFile;
use self::rollback::Journal;
pub(crate) use self::rollback::commit_together;
use self::shm_file::Shm;
use self::wal_file::Wal;
use crate::committing::note_commit;
use crate::errno;
use crate::kernel::Kernel;
use crate::locks::{Lock, Owner, Range};
use crate::pool::Lane;
use crate::special;

/// Results whose error goes to the client as it is.
pub(crate) type Result<T> = std::result::Result<T, Errno>;

/// Answers a lock request, at once or later, on any thread.
pub(crate) type LockReply = Box<dyn FnOnce(Result<()>) + Send>;

/// One of a database's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    /// The database file itself.
    Main,
    /// `-journal`.
    Journal,
    /// `-wal`.
    Wal,
    /// `-shm`.
    Shm,
}

/// Inode numbers of a database's files.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inodes {
    pub main: u64,
    pub journal: u64,
    pub wal: u64,
    pub shm: u64,
}

/// What `stat` says of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes {
    pub size: u64,
    pub mtime: SystemTime,
}

/// What all databases of a mount share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub store: Store,
    pub kernel: Kernel,
    /// The kernel lets `-shm` files be mapped past the daemon; else it never writes to them while
    /// a client may.
    pub passthrough: AtomicBool,
    /// The databases that were looked at, by name; not those that were removed.
    pub mounted: RwLock<HashMap<DbName, Arc<MountedDb>>>,
    /// Hears of databases that show what they learned elsewhere.
    pub on_shown: OnceLock<OnShown>,
    nudges: advance::Nudges,
}

/// Called on the mover's thread: it must be quick.
pub(crate) struct OnShown(pub Box<dyn Fn(&DbName) + Send + Sync>);

impl std::fmt::Debug for OnShown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnShown")
    }
}

impl Shared {
    /// For the mount of a store. Nothing moves before a [`Watcher`] was started.
    pub(crate) fn new(store: Store) -> Self {
        Self {
            store,
            kernel: Kernel::default(),
            passthrough: AtomicBool::new(false),
            mounted: RwLock::default(),
            on_shown: OnceLock::new(),
            nudges: advance::Nudges::default(),
        }
    }
}

/// One database as the mount shows it, from its creation or the mount's start to its removal.
#[derive(Debug)]
pub(crate) struct MountedDb {
    shared: Arc<Shared>,
    database: Database,
    inodes: Inodes,
    access: Mutex<Access>,
    journal: Mutex<Journal>,
    wal: Mutex<Wal>,
    main: RwLock<MainFile>,
    shm: Mutex<Shm>,
    removed: AtomicBool,
    /// Requests that may hold locks of this for as long as the disk takes.
    pub lane: Arc<Lane>,
    /// What the wal-index was last told to be the change.
    change: AtomicU32,
}

impl MountedDb {
    /// Shows a database of the store, which may have no content yet.
    pub(crate) fn new(
        shared: Arc<Shared>,
        database: Database,
        inodes: Inodes,
    ) -> Result<Arc<Self>> {
        let snapshot = database.snapshot().map_err(|e| errno::of(&e))?;
        Ok(Arc::new(Self {
            inodes,
            access: Mutex::default(),
            journal: Mutex::default(),
            wal: Mutex::default(),
            main: RwLock::new(MainFile::new(snapshot)),
            shm: Mutex::default(),
            removed: AtomicBool::new(false),
            lane: Arc::default(),
            change: AtomicU32::new(random() as u32),
            shared,
            database,
        }))
    }

    pub(crate) fn name(&self) -> &DbName {
        self.database.name()
    }

    /// See [`Access::states`].
    pub(crate) fn lock_states(&self) -> Vec<(&'static str, &'static str)> {
        self.access.lock().states()
    }

    pub(crate) fn inode(&self, part: Part) -> u64 {
        match part {
            Part::Main => self.inodes.main,
            Part::Journal => self.inodes.journal,
            Part::Wal => self.inodes.wal,
            Part::Shm => self.inodes.shm,
        }
    }

    /// Another number for a WAL or shm that was made anew, so that nothing the kernel still has of
    /// the old one is taken for the new one's.
    pub(crate) fn generation(&self, part: Part) -> u64 {
        match part {
            Part::Main | Part::Journal => 0,
            Part::Wal => self.wal.lock().generation(),
            Part::Shm => self.shm.lock().generation(),
        }
    }

    /// True if it has pages that clients see: it is then listed.
    pub(crate) fn has_content(&self) -> bool {
        !self.is_removed() && self.main.read().tip().page_count() > 0
    }

    /// The position that clients see, and when it was committed (ms since the Unix epoch; 0 if
    /// that is not known).
    pub(crate) fn pos(&self) -> (Pos, i64) {
        let main = self.main.read();
        (main.tip().pos(), main.tip().timestamp_ms())
    }

    /// `None` if there is no such file now. The main file is always there.
    pub(crate) fn attributes(&self, part: Part) -> Option<Attributes> {
        let size = match part {
            Part::Main => Some(self.main.read().len()),
            Part::Journal => self.journal.lock().len(),
            Part::Wal => self.wal.lock().len(),
            Part::Shm => self.shm.lock().len(),
        };
        size.map(|size| Attributes { size, mtime: special::time(self.pos().1) })
    }

    /// Makes a file that is not there (`O_CREAT`); fine if it is.
    pub(crate) fn create(&self, part: Part) -> Result<()> {
        if self.is_removed() {
            return Err(Errno::ENOENT);
        }
        match part {
            Part::Main => Ok(()),
            Part::Journal => self.create_journal(),
            Part::Wal => self.create_wal(),
            Part::Shm => self.create_shm(),
        }
    }

    /// Reads up to `len` bytes; fewer at the end of the file.
    pub(crate) fn read(&self, part: Part, offset: u64, len: usize) -> Result<Vec<u8>> {
        match part {
            Part::Main => self.main.read().read(offset, len),
            Part::Journal => self.journal.lock().read(offset, len),
            Part::Wal => self.wal.lock().read(offset, len),
            Part::Shm => self.shm.lock().read(offset, len),
        }
    }

    /// Writes all of `data`, through the open file `handle`.
    pub(crate) fn write(&self, part: Part, handle: u64, offset: u64, data: &[u8]) -> Result<()> {
        if self.is_removed() {
            return Err(Errno::EIO);
        }
        let counters = self.database.counters();
        let writes = match part {
            Part::Main => &counters.database_writes,
            Part::Journal => &counters.journal_writes,
            Part::Wal => &counters.wal_writes,
            Part::Shm => &counters.shm_writes,
        };
        writes.fetch_add(1, Ordering::Relaxed);
        match part {
            Part::Main => self.write_main(offset, data),
            Part::Journal => self.write_journal(handle, offset, data),
            Part::Wal => self.write_wal(offset, data),
            Part::Shm => self.shm.lock().write(offset, data),
        }
    }

    /// Sets a file's length; `handle` is the open file through which, if any.
    pub(crate) fn truncate(&self, part: Part, handle: Option<u64>, len: u64) -> Result<()> {
        match part {
            Part::Main => self.truncate_main(len),
            Part::Journal => self.truncate_journal(handle, len),
            Part::Wal => self.truncate_wal(len),
            Part::Shm => self.shm.lock().truncate(len),
        }
    }

    /// Removes one of the files beside the database, or (`Main`) drops the database.
    pub(crate) fn unlink(&self, part: Part) -> Result<()> {
        match part {
            Part::Main => self.remove(),
            Part::Journal => self.unlink_journal(),
            Part::Wal => self.unlink_wal(),
            Part::Shm => self.unlink_shm(),
        }
    }

    /// `fsync` of a file: what makes a commit durable is the log's sync.
    pub(crate) fn sync(&self, part: Part) -> Result<()> {
        match part {
            Part::Main | Part::Journal => {
                self.journal.lock().note_sync();
                Ok(())
            }
            Part::Wal => self.sync_wal(),
            Part::Shm => Ok(()),
        }
    }

    /// Takes a lock, or answers `EAGAIN`; may answer a little later.
    pub(crate) fn lock(&self, part: Part, lock: Lock, reply: LockReply) {
        self.take_lock(part, lock, reply);
    }

    /// Gives locks back.
    pub(crate) fn unlock(&self, part: Part, owner: Owner, range: Range) {
        self.release(part, false, |table| {
            table.clear(owner, range);
        });
    }

    /// The lock that keeps `lock` from being granted (`F_GETLK`).
    pub(crate) fn conflict(&self, part: Part, lock: &Lock) -> Option<Lock> {
        self.access.lock().table(part)?.conflict(lock)
    }

    /// An owner closed a descriptor of the open file `handle` (`FLUSH`): its locks on the file go,
    /// as POSIX has it.
    pub(crate) fn owner_closed(&self, part: Part, owner: Owner, handle: u64) {
        self.note_journal_closed(part, handle);
        self.release(part, true, |table| {
            table.clear_owner(owner);
        });
    }

    /// The last descriptor of an open file is gone (`RELEASE`): OFD locks go.
    pub(crate) fn handle_closed(&self, part: Part, handle: u64) {
        self.note_journal_closed(part, handle);
        self.release(part, true, |table| {
            table.clear_handle(handle);
        });
    }

    /// The file behind `-shm`, for passthrough; `None` if there is no `-shm`.
    pub(crate) fn shm_file(&self) -> Option<Arc<File>> {
        self.shm.lock().file()
    }

    /// True if removing, cutting or beginning this file anew may be a commit.
    pub(crate) fn may_commit(&self, part: Part) -> bool {
        part == Part::Journal && self.main.try_read().is_none_or(|main| main.change.is_some())
    }

    /// True if what a running transaction has written is appended to the log in less time than a
    /// sync takes.
    pub(crate) fn commits_little(&self) -> bool {
        const PAGES: usize = 64;
        let little = |change: &main_file::Change| change.written.len() <= PAGES;
        self.main.try_read().is_some_and(|main| main.change.as_ref().is_none_or(little))
    }

    /// True if commits through the WAL are synced at once, whatever their clients ask for.
    pub(crate) fn syncs_each_commit(&self) -> bool {
        self.shared.store.durability() == Durability::Full
    }

    /// True if clients may write it here.
    pub(crate) fn is_writable(&self) -> bool {
        self.database.is_writable()
    }

    /// True if the primary has to be asked before and after each transaction that writes.
    pub(crate) fn is_remote(&self) -> bool {
        self.database.is_remote()
    }

    /// Publishes what a client has committed. Its request is answered once that may be: of what the
    /// primary has made, the primary has asked its own gate and its replicas.
    fn publish_writer(&self, writer: &mut Writer) -> Pos {
        let is_remote = writer.is_remote();
        let pos = advance::announcing_own_commit(|| writer.publish());
        if !is_remote {
            note_commit(self.name(), writer.take_unconfirmed());
        }
        pos
    }

    /// True once the database was removed by `rm`: its name may be another's.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    fn remove(&self) -> Result<()> {
        if self.main.read().tip().page_count() > 0 {
            let (_, unconfirmed) = self.database.drop_unconfirmed().map_err(|e| errno::of(&e))?;
            note_commit(self.name(), unconfirmed);
        } else if !self.is_writable() {
            return Err(Errno::EACCES);
        }
        self.removed.store(true, Ordering::Release);
        self.end_parking();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
