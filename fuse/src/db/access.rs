//! Who holds which locks of a database, and what that lets them do.
//!
//! | bytes | meaning |
//! |---|---|
//! | main, `RESERVED` or `SHARED` exclusively | may write in a rollback mode |
//! | main, `SHARED` | reads in a rollback mode; of a client with a WAL: has the database open |
//! | shm, `WRITE` | may write to the WAL |
//! | shm, `READ0` to `READ4`, `CKPT`, `RECOVER` | is in a transaction, checkpoint, recovery |
//! | shm, `DMS` | has the shm open, and so uses a WAL |
//!
//! While the mount changes under its clients ([`super::advance`]), requests that begin something
//! are *parked*: answered when it is done, or when it was put off.

use std::time::{Duration, Instant};

use fuser::Errno;
use litefs_store::ErrorKind;

use super::main_file::Extent;
use super::{LockReply, MountedDb, Part, Result};
use crate::errno;
use crate::locks::{Lock, LockKind, LockTable, MAIN_LOCKS, Owner, Range, SHM_LOCKS, bytes};

/// How long requests may be parked at first, until readers of the old state are done.
pub(super) const FIRST_PATIENCE: Duration = Duration::from_millis(20);

/// How long a lock request waits for the primary to let this node write; then the client's own
/// patience decides.
const REACH_TIMEOUT: Duration = Duration::from_secs(1);

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Access {
    main: LockTable,
    shm: LockTable,
    parked: Vec<Parked>,
    pub(super) parking: bool,
    /// What the kernel must forget before anybody gets a lock.
    pub(super) stale: Vec<Extent>,
    /// A commit in the WAL is not in the wal-index: SQLite has to rebuild that.
    pub(super) stale_index: bool,
    /// How long the next attempt to show the newest state parks requests.
    pub(super) patience: Duration,
    /// Until when requests are parked for it.
    pub(super) parked_until: Option<Instant>,
    /// Before this, requests are not parked again.
    pub(super) not_before: Option<Instant>,
}

impl Default for Access {
    fn default() -> Self {
        Self {
            main: LockTable::default(),
            shm: LockTable::default(),
            parked: Vec::new(),
            parking: false,
            stale: Vec::new(),
            stale_index: false,
            patience: FIRST_PATIENCE,
            parked_until: None,
            not_before: None,
        }
    }
}

/// A lock request that waits for its answer.
struct Parked {
    part: Part,
    lock: Lock,
    reply: LockReply,
}

impl std::fmt::Debug for Parked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parked").field("part", &self.part).field("lock", &self.lock).finish()
    }
}

/// The bytes of the database file that SQLite locks.
const MAIN: Range = Range { start: bytes::PENDING, end: bytes::SHARED.end };

impl Access {
    /// SQLite's locks by LiteFS's names: `unlocked`, `shared` or `exclusive`.
    pub(crate) fn states(&self) -> Vec<(&'static str, &'static str)> {
        let main = MAIN_LOCKS.iter().map(|&(name, byte)| (name, self.main.state(byte)));
        let shm = SHM_LOCKS.iter().map(|&(name, byte)| (name, self.shm.state(byte)));
        main.chain(shm).collect()
    }

    pub(crate) fn table(&self, part: Part) -> Option<&LockTable> {
        match part {
            Part::Main => Some(&self.main),
            Part::Shm => Some(&self.shm),
            Part::Journal | Part::Wal => None,
        }
    }

    fn table_mut(&mut self, part: Part) -> Option<&mut LockTable> {
        match part {
            Part::Main => Some(&mut self.main),
            Part::Shm => Some(&mut self.shm),
            Part::Journal | Part::Wal => None,
        }
    }

    /// Somebody may write to the database file in a rollback mode.
    pub(super) fn may_write_main(&self) -> bool {
        self.main.holder(bytes::RESERVED, LockKind::Write).is_some() || self.is_exclusive()
    }

    /// Somebody may write to the WAL; in `locking_mode=EXCLUSIVE` without a shm.
    pub(super) fn may_write_wal(&self) -> bool {
        self.shm.holder(bytes::WRITE, LockKind::Write).is_some() || self.is_exclusive()
    }

    /// Somebody may copy pages from the WAL to the database file.
    fn may_checkpoint(&self) -> bool {
        self.shm.holder(bytes::CKPT, LockKind::Write).is_some() || self.is_exclusive()
    }

    fn is_exclusive(&self) -> bool {
        self.main.holder(bytes::SHARED.start, LockKind::Write).is_some()
    }

    fn has_writer(&self) -> bool {
        self.may_write_main() || self.may_write_wal()
    }

    /// Nobody is in a transaction.
    pub(super) fn is_quiet(&self) -> bool {
        let has_wal = |owner: Owner| self.shm.holds(owner, bytes::DMS, LockKind::Read);
        self.shm.is_free(bytes::TRANSACTION)
            && !self.has_writer()
            && self.main.owners_of(MAIN).all(has_wal)
    }

    /// True if granting the lock begins something that a change of the state must not meet. A
    /// client with a WAL has the database file locked all the time; it begins something there when
    /// it wants it for itself, to leave the WAL.
    fn begins(&self, part: Part, lock: &Lock) -> bool {
        match part {
            Part::Main => {
                let leaves_wal = || {
                    lock.kind == LockKind::Write
                        && self.shm.holds(lock.owner, bytes::DMS, LockKind::Read)
                        && !self.main.holds(lock.owner, bytes::RESERVED, LockKind::Write)
                };
                lock.range.overlaps(MAIN)
                    && (!self.main.owners_of(MAIN).any(|o| o == lock.owner) || leaves_wal())
            }
            Part::Shm => {
                lock.range.overlaps(bytes::TRANSACTION)
                    && !self.shm.owners_of(bytes::TRANSACTION).any(|o| o == lock.owner)
            }
            Part::Journal | Part::Wal => false,
        }
    }

    /// A client that went away has left something that the mover has not cleaned up yet.
    fn is_unclean(&self) -> bool {
        !self.stale.is_empty() || self.stale_index
    }

    /// True if the request is to be answered later. Nobody becomes a writer before the mover has
    /// cleaned up; who is in a transaction already would else write on what is not cleaned.
    fn must_wait(&self, part: Part, lock: &Lock) -> bool {
        self.parking && (self.begins(part, lock) || self.is_unclean() && asks_to_write(part, lock))
    }

    pub(super) fn park(&mut self) {
        self.parking = true;
    }
}

/// True if the lock makes its owner one who may write.
fn asks_to_write(part: Part, lock: &Lock) -> bool {
    makes_writer(part, lock.range, lock.kind)
}

fn makes_writer(part: Part, range: Range, kind: LockKind) -> bool {
    let byte = match part {
        Part::Main => bytes::RESERVED,
        Part::Shm => bytes::WRITE,
        Part::Journal | Part::Wal => return false,
    };
    kind == LockKind::Write && range.contains(byte)
}

impl MountedDb {
    /// True if the lock is one with which a client begins to write.
    pub(crate) fn begins_to_write(&self, part: Part, lock: &Lock) -> bool {
        asks_to_write(part, lock)
    }

    /// True if the lock makes its owner a writer for whom the primary must be asked.
    pub(crate) fn must_reach(&self, part: Part, range: Range, kind: LockKind) -> bool {
        makes_writer(part, range, kind) && self.is_remote()
    }

    /// Asks the primary for the right to write before a lock that makes its owner a writer: while
    /// that takes time, nothing of the database is locked. If the primary refuses, the lock is
    /// granted all the same, as on any node that may not write.
    pub(crate) fn reach_to_write(&self, part: Part, range: Range, kind: LockKind) -> Result<()> {
        if !self.must_reach(part, range, kind) || self.main.read().writer.is_some() {
            return Ok(());
        }
        match self.database.reach(REACH_TIMEOUT) {
            Err(error) if error.kind() == ErrorKind::Busy => Err(Errno::EAGAIN),
            Err(error) => {
                tracing::warn!(db = %self.name(), "cannot write through the primary: {error}");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    pub(super) fn take_lock(&self, part: Part, lock: Lock, reply: LockReply) {
        let mut access = self.access.lock();
        if !self.is_removed() && access.must_wait(part, &lock) {
            access.parked.push(Parked { part, lock, reply });
            return;
        }
        let granted = self.grant(&mut access, part, lock);
        drop(access);
        if granted.is_ok()
            && part == Part::Main
            && asks_to_write(part, &lock)
            && self.hide_leftover()
        {
            // Not before the kernel knows that the journal is gone: creating it is what is refused.
            return self.forget_name_first("-journal", reply);
        }
        reply(granted);
    }

    /// On a node that may not write, removes a journal that TRUNCATE or PERSIST left: SQLite would
    /// take the refusal of a write to it for a disk that fails. False if there is none.
    fn hide_leftover(&self) -> bool {
        let mut journal = self.journal.lock();
        self.main.read().writer.is_none() && journal.drop_leftover()
    }

    fn grant(&self, access: &mut Access, part: Part, lock: Lock) -> Result<()> {
        let table = access.table_mut(part).ok_or(Errno::EINVAL)?;
        if table.conflict(&lock).is_some() {
            return Err(Errno::EAGAIN);
        }
        if asks_to_write(part, &lock) {
            self.begin_writing(part)?;
        }
        let had_writer = access.has_writer();
        if let Some(table) = access.table_mut(part) {
            table.set(lock);
        }
        // SQLite gives exclusive locks back by taking shared ones.
        self.after_release(access, had_writer, false);
        Ok(())
    }

    /// Takes the store's writer. A node that may not write grants the lock all the same: SQLite
    /// also takes it to read (recovery of the wal-index), and reports a refusal of the write that
    /// follows far better than one of the lock.
    ///
    /// So does one whose writer is somebody else's, to who finds no valid wal-index: it wants to
    /// rebuild it, and would take a refusal for a broken lock ("locking protocol").
    fn begin_writing(&self, part: Part) -> Result<()> {
        if self.is_removed() {
            return Ok(()); // the write itself is refused
        }
        let mut main = self.main.write();
        if main.writer.is_some() {
            return Ok(());
        }
        match self.database.begin_write(main.tip()) {
            Ok(writer) => main.writer = Some(writer),
            Err(error) => match error.kind() {
                ErrorKind::Busy if part == Part::Shm && self.lacks_index() => {}
                ErrorKind::Busy => return Err(Errno::EAGAIN),
                ErrorKind::StaleSnapshot => {
                    self.nudge();
                    return Err(Errno::EAGAIN);
                }
                ErrorKind::ReadOnly => {}
                _ => return Err(errno::of(&error)),
            },
        }
        Ok(())
    }

    /// Gives locks back; `gone`: because a file was closed, not because somebody asked for it.
    pub(super) fn release(&self, part: Part, gone: bool, clear: impl FnOnce(&mut LockTable)) {
        let mut access = self.access.lock();
        let had_writer = access.has_writer();
        if let Some(table) = access.table_mut(part) {
            clear(table);
            self.after_release(&mut access, had_writer, gone);
        }
    }

    fn after_release(&self, access: &mut Access, had_writer: bool, gone: bool) {
        if had_writer && !access.has_writer() {
            self.end_writing(access, gone);
        }
        let awaited = access.parking && access.stale.is_empty() || access.not_before.is_some();
        if awaited && access.is_quiet() {
            self.nudge();
        }
    }

    /// The last lock that lets anybody write is gone. What is not committed is rolled back; what
    /// is committed in the WAL must be in the wal-index, or SQLite would write over it.
    fn end_writing(&self, access: &mut Access, gone: bool) {
        let (committed, unindexed) = {
            let mut wal = self.wal.lock();
            let unindexed = wal.end_transaction();
            (wal.committed_frames(), unindexed)
        };
        let stale = self.abandon_transaction();
        let indexed = self.shows_frames(committed, gone || unindexed);
        if stale.is_empty() && indexed {
            return;
        }
        access.stale.extend(stale);
        access.stale_index |= !indexed;
        access.park();
        self.nudge();
    }

    /// Answers the parked requests.
    pub(super) fn unpark(&self) {
        let parked = {
            let mut access = self.access.lock();
            if access.is_unclean() {
                return; // a nudge to clean up first is on its way
            }
            access.parking = false;
            access.parked_until = None;
            std::mem::take(&mut access.parked)
        };
        for Parked { part, lock, reply } in parked {
            self.take_lock(part, lock, reply);
        }
    }

    /// The database was removed: the mover, who would answer what is parked, knows it no more.
    pub(super) fn end_parking(&self) {
        {
            let mut access = self.access.lock();
            access.stale.clear();
            access.stale_index = false;
        }
        self.unpark();
    }

    /// The files beside the database belong to clients that have it open.
    pub(super) fn check_in_use(&self) -> Result<()> {
        let access = self.access.lock();
        if access.main.is_free(MAIN) { Err(Errno::EACCES) } else { Ok(()) }
    }

    /// True while a client may copy pages from the WAL to the database file.
    pub(super) fn is_checkpointing(&self) -> bool {
        self.access.lock().may_checkpoint()
    }

    /// Only the last client, which has the database to itself, removes them; or anybody when no
    /// client is there.
    pub(super) fn check_removable(&self) -> Result<()> {
        let access = self.access.lock();
        let unused =
            access.main.is_free(MAIN) && access.shm.is_free(Range { start: 0, end: u64::MAX });
        if unused || access.is_exclusive() { Ok(()) } else { Err(Errno::EBUSY) }
    }
}
