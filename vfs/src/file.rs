//! One open database file, as SQLite sees it: a safe state machine over the store.
//!
//! | SQLite calls | here |
//! |---|---|
//! | `xLock(SHARED)` | pins a snapshot; every read comes from it |
//! | `xLock(RESERVED)` | takes the writer if the snapshot is the newest; `EXCLUSIVE` adds nothing |
//! | `xWrite`, `xTruncate` | kept in the writer |
//! | `FCNTL_SYNC` | commit steps 1 and 2: append the record, sync it. An error rolls back cleanly |
//! | `FCNTL_COMMIT_PHASETWO` | commit step 3: publish, which cannot fail; wait for what confirms it |
//! | `xUnlock` below `RESERVED` | gives the writer back; without step 3 that is a rollback |
//!
//! SQLite also sends `FCNTL_SYNC` at the end of a rollback after a cache spill, and it may truncate
//! the file after `FCNTL_SYNC`. Therefore only `FCNTL_COMMIT_PHASETWO` commits, and the size of the
//! database is taken from its header, not from the file's length.

use std::any::Any;
use std::ffi::c_int;

use litefs_store::{Database, Durability, ErrorKind, PageSize, Pgno, Snapshot, Txid};

use crate::change::Change;
use crate::errors::Failure;
use crate::ffi::{
    SQLITE_IOERR, SQLITE_LOCK_NONE, SQLITE_LOCK_RESERVED, SQLITE_LOCK_SHARED, SQLITE_READONLY,
};
use crate::header::{self, TAG};

/// Whether a read found all its bytes. What it did not find is zero, as SQLite asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// All bytes lie inside the file.
    Whole,
    /// The read went beyond the end of the file.
    Short,
}

/// What a connection set by `PRAGMA` for this file.
#[derive(Debug)]
pub(crate) struct Settings {
    /// `PRAGMA synchronous`.
    pub durability: Durability,
    /// What `PRAGMA journal_mode` answers.
    pub journal_mode: &'static str,
    /// `PRAGMA locking_mode=EXCLUSIVE`.
    pub exclusive: bool,
}

/// An open database file.
pub(crate) struct MainFile {
    db: Database,
    read_only: bool,
    lock: c_int,
    snapshot: Option<Snapshot>,
    change: Option<Change>,
    cache: CacheTag,
    cookie: CookieShift,
    pub(crate) settings: Settings,
    /// Keeps the store open where the VFS itself opened it. Dropped last.
    _home: Box<dyn Any + Send>,
}

/// Decides whether SQLite may keep its page cache.
///
/// SQLite compares the 16 bytes at offset 24 (change counter, size, freelist) with those it saw
/// last. That is not good enough here: a commit need not record the counter, and a replica may get
/// other content under the same one. So that read is answered by position: with the bytes that
/// SQLite saw last if its cache is at the pinned position, and with different ones if not.
#[derive(Default)]
struct CacheTag {
    /// What the cache holds: line of history and transaction.
    at: Option<(u64, Txid)>,
    /// The 16 bytes as SQLite last read or wrote them.
    bytes: [u8; 16],
    /// SQLite wrote a page 1 in WAL mode (a copy of another database's) and has it in its cache.
    spoilt: bool,
}

/// Makes SQLite parse the schema again after the content was replaced.
///
/// SQLite keeps its parsed schema as long as the schema cookie in page 1 is the same. Content that
/// replaced another (a database removed and made anew, a replica's rewind) may have the same cookie
/// and another schema. So this connection is shown a cookie that is higher by a large step for each
/// such replacement that it lived through, and what it writes is lowered again.
#[derive(Default)]
struct CookieShift {
    lineage: Option<(u64, Txid)>,
    by: u32,
}

impl CookieShift {
    /// Far more changes of a schema than a connection will see between two replacements.
    const STEP: u32 = 1 << 24;

    fn pinned(&mut self, snapshot: &Snapshot) {
        let lineage = Some(snapshot.lineage());
        if self.lineage != lineage {
            if self.lineage.is_some() {
                self.by = self.by.wrapping_add(Self::STEP);
            }
            self.lineage = lineage;
        }
    }
}

/// How often a snapshot is taken anew when a commit comes between it and the writer, for a
/// connection that takes both at once.
const EXCLUSIVE_ATTEMPTS: usize = 100;

impl MainFile {
    pub(crate) fn new(db: Database, read_only: bool, home: Box<dyn Any + Send>) -> Self {
        let settings = Settings {
            durability: Durability::Full, // SQLite's default
            journal_mode: "wal",
            exclusive: false,
        };
        Self {
            db,
            read_only,
            lock: SQLITE_LOCK_NONE,
            snapshot: None,
            change: None,
            cache: CacheTag::default(),
            cookie: CookieShift::default(),
            settings,
            _home: home,
        }
    }

    /// Pins the newest state for as long as the file is open (`immutable=1`): SQLite then reads
    /// without any lock.
    pub(crate) fn freeze(&mut self) -> Result<(), Failure> {
        self.lock(SQLITE_LOCK_SHARED)
    }

    pub(crate) fn database(&self) -> &Database {
        &self.db
    }

    pub(crate) fn lock_state(&self) -> c_int {
        self.lock
    }

    /// True if this connection holds the writer.
    pub(crate) fn is_writing(&self) -> bool {
        self.change.is_some()
    }

    // ---- locks ----

    /// Raises the lock.
    pub(crate) fn lock(&mut self, level: c_int) -> Result<(), Failure> {
        if level <= self.lock {
            return Ok(());
        }
        if self.lock == SQLITE_LOCK_NONE {
            self.pin()?;
            self.lock = SQLITE_LOCK_SHARED;
        }
        if level >= SQLITE_LOCK_RESERVED && self.change.is_none() {
            self.begin()?;
        }
        self.lock = level;
        Ok(())
    }

    fn pin(&mut self) -> Result<(), Failure> {
        self.snapshot = Some(self.db.snapshot()?);
        if self.settings.exclusive && !self.read_only {
            self.begin_exclusively().inspect_err(|_| self.snapshot = None)?;
        }
        if let Some(snapshot) = &self.snapshot {
            if self.cookie.lineage.is_none() {
                // The first lock: SQLite's cache is empty, so it holds nothing else.
                self.cache.at = Some((snapshot.generation(), snapshot.pos().txid));
            }
            self.cookie.pinned(snapshot);
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), Failure> {
        if self.read_only {
            return Err(Failure::new(SQLITE_READONLY, "the database was opened read-only"));
        }
        let snapshot = self.snapshot.as_ref().ok_or_else(lost_view)?;
        self.change = Some(Change::begin(&self.db, snapshot)?);
        Ok(())
    }

    /// In `locking_mode=EXCLUSIVE` SQLite never gives its first lock back. The writer is taken with
    /// it, as else another commit would make the snapshot stale for ever. On a node that may not
    /// write, the connection just reads.
    fn begin_exclusively(&mut self) -> Result<(), Failure> {
        for attempt in 1.. {
            let snapshot = self.snapshot.as_ref().ok_or_else(lost_view)?;
            match Change::begin(&self.db, snapshot) {
                Ok(change) => self.change = Some(change),
                Err(e) if e.kind() == ErrorKind::ReadOnly => {}
                Err(e) if e.kind() == ErrorKind::StaleSnapshot && attempt < EXCLUSIVE_ATTEMPTS => {
                    self.snapshot = Some(self.db.snapshot()?);
                    continue;
                }
                Err(e) => return Err(e.into()),
            }
            break;
        }
        Ok(())
    }

    /// True if the lock held now may be kept for ever: there is none, or it has the writer.
    pub(crate) fn can_stay_locked(&mut self) -> bool {
        self.lock == SQLITE_LOCK_NONE || self.change.is_some() || self.begin().is_ok()
    }

    /// Lowers the lock. A write transaction that was not published ends here, rolled back.
    pub(crate) fn unlock(&mut self, level: c_int) {
        if level < SQLITE_LOCK_RESERVED {
            self.roll_back();
            if level == SQLITE_LOCK_NONE || !self.settings.exclusive {
                self.change = None;
            }
        }
        if level == SQLITE_LOCK_NONE {
            self.snapshot = None;
        }
        self.lock = self.lock.min(level);
    }

    fn roll_back(&mut self) {
        if let Some(change) = self.change.as_mut().filter(|change| change.touched()) {
            change.roll_back(self.snapshot.as_ref());
            self.cache.at = None;
            self.cache.spoilt = false;
        }
    }

    // ---- reading ----

    /// The file's length in bytes.
    pub(crate) fn size(&self) -> Result<u64, Failure> {
        if self.lock == SQLITE_LOCK_NONE {
            let snapshot = self.db.snapshot()?;
            return Ok(length(snapshot.page_size(), snapshot.page_count()));
        }
        let snapshot = self.snapshot.as_ref().ok_or_else(lost_view)?;
        Ok(match self.change.as_ref().filter(|change| change.touched()) {
            Some(change) => length(change.page_size(), change.pages()),
            None => length(snapshot.page_size(), snapshot.page_count()),
        })
    }

    /// Reads bytes of the file.
    pub(crate) fn read(&mut self, buf: &mut [u8], offset: u64) -> Result<Reach, Failure> {
        if self.lock == SQLITE_LOCK_NONE {
            return self.read_unlocked(buf, offset);
        }
        if offset == TAG.start as u64 && buf.len() == TAG.len() {
            return self.read_cache_tag(buf);
        }
        let snapshot = self.snapshot.as_ref().ok_or_else(lost_view)?;
        let change = self.change.as_mut().filter(|change| change.touched());
        let reach = View::new(snapshot, change).read(buf, offset)?;
        header::hide_wal(buf, offset);
        header::shift_cookie(buf, offset, self.cookie.by);
        if offset == 0 && buf.len() > header::HEADER_LEN {
            self.cache.bytes.copy_from_slice(&buf[TAG]);
            self.cache.at = self.pinned();
        }
        Ok(reach)
    }

    /// SQLite reads the header once before it locks, to learn the page size.
    fn read_unlocked(&self, buf: &mut [u8], offset: u64) -> Result<Reach, Failure> {
        let snapshot = self.db.snapshot()?;
        let reach = View::new(&snapshot, None).read(buf, offset)?;
        header::hide_wal(buf, offset);
        Ok(reach)
    }

    fn read_cache_tag(&mut self, buf: &mut [u8]) -> Result<Reach, Failure> {
        let pinned = Some(self.pinned().ok_or_else(lost_view)?);
        buf.copy_from_slice(&self.cache.bytes);
        if self.cache.at != pinned {
            buf.iter_mut().for_each(|byte| *byte = !*byte);
            // SQLite drops its cache now; what it reads from here on is at the pinned position.
            self.cache.at = pinned;
        }
        Ok(Reach::Whole)
    }

    fn pinned(&self) -> Option<(u64, Txid)> {
        self.snapshot.as_ref().map(|s| (s.generation(), s.pos().txid))
    }

    // ---- writing ----

    /// Keeps a page for the commit.
    pub(crate) fn write(&mut self, data: &[u8], offset: u64) -> Result<(), Failure> {
        if offset == 0 {
            return self.write_first_page(data);
        }
        self.change.as_mut().ok_or_else(no_writer)?.write(data, offset)
    }

    fn write_first_page(&mut self, data: &[u8]) -> Result<(), Failure> {
        let has_wal = self.is_stored_with_wal()? && data.len() > header::HEADER_LEN;
        let change = self.change.as_mut().ok_or_else(no_writer)?;
        let wal = data.len() > header::HEADER_LEN && header::says_wal(data);
        if wal || has_wal || self.cookie.by != 0 {
            let mut page = data.to_vec();
            header::hide_wal(&mut page, 0);
            if has_wal {
                header::restore_wal(&mut page);
            }
            header::shift_cookie(&mut page, 0, 0u32.wrapping_sub(self.cookie.by));
            change.write(&page, 0)?;
        } else {
            change.write(data, 0)?;
        }
        self.cache.spoilt |= wal;
        self.cache.bytes.copy_from_slice(&data[TAG]);
        Ok(())
    }

    /// True if other programs use this database with a WAL (on a mount). It stays so: connections
    /// that they have open cannot leave that mode.
    fn is_stored_with_wal(&self) -> Result<bool, Failure> {
        let Some(snapshot) = self.snapshot.as_ref().filter(|s| s.page_count() > 0) else {
            return Ok(false);
        };
        let mut head = [0; header::HEADER_LEN];
        snapshot.read_within_page(Pgno::FIRST, 0, &mut head)?;
        Ok(header::says_wal(&head))
    }

    /// Sets the file's length in bytes.
    pub(crate) fn truncate(&mut self, len: u64) -> Result<(), Failure> {
        let durability = self.settings.durability;
        self.change.as_mut().ok_or_else(no_writer)?.truncate(len, durability)
    }

    /// `FCNTL_SYNC`: appends the record and makes it as durable as the connection asks for.
    pub(crate) fn prepare(&mut self) -> Result<(), Failure> {
        match &mut self.change {
            Some(change) => change.prepare(self.settings.durability),
            None => Ok(()),
        }
    }

    /// `FCNTL_COMMIT_PHASETWO`: publishes. The connection goes on reading the new state. Then
    /// waits until that may be acknowledged, which is all that can fail.
    pub(crate) fn publish(&mut self) -> Result<(), Failure> {
        let Some(change) = &mut self.change else { return Ok(()) };
        let Some(pos) = change.publish() else { return Ok(()) };
        // The writer is still ours, so nobody can have committed since; but a peer's record may
        // have been applied. Then the view is lost until the lock is given back.
        self.snapshot = self.db.snapshot().ok().filter(|snapshot| snapshot.pos() == pos);
        if let Some(snapshot) = &self.snapshot {
            change.published(snapshot);
        }
        self.cache.at = self.pinned().filter(|_| !self.cache.spoilt);
        self.cache.spoilt = false;
        self.change.as_mut().map_or(Ok(()), Change::acknowledge)
    }
}

/// The file's content: a snapshot under the pages of a running transaction.
struct View<'a> {
    snapshot: &'a Snapshot,
    change: Option<&'a mut Change>,
    page_size: Option<PageSize>,
    pages: u32,
}

impl<'a> View<'a> {
    fn new(snapshot: &'a Snapshot, change: Option<&'a mut Change>) -> Self {
        let (page_size, pages) = match &change {
            Some(change) => (change.page_size(), change.pages()),
            None => (snapshot.page_size(), snapshot.page_count()),
        };
        Self { snapshot, change, page_size, pages }
    }

    /// Fills `buf` page by page; SQLite reads whole pages or parts of one, and more than one only
    /// while it does not know the page size yet.
    fn read(mut self, buf: &mut [u8], offset: u64) -> Result<Reach, Failure> {
        let end = length(self.page_size, self.pages);
        let inside = end.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (buf, beyond) = buf.split_at_mut(inside);
        beyond.fill(0);
        if let Some(page_size) = self.page_size {
            self.read_pages(buf, offset, page_size)?;
        }
        Ok(if beyond.is_empty() { Reach::Whole } else { Reach::Short })
    }

    fn read_pages(
        &mut self,
        mut buf: &mut [u8],
        mut offset: u64,
        page_size: PageSize,
    ) -> Result<(), Failure> {
        while !buf.is_empty() {
            let pgno = Pgno::at_offset(offset, page_size).ok_or_else(lost_view)?;
            let within = (offset - pgno.offset(page_size)) as usize;
            let (piece, rest) = buf.split_at_mut(buf.len().min(page_size.len() - within));
            self.read_page(pgno, within, piece)?;
            offset += piece.len() as u64;
            buf = rest;
        }
        Ok(())
    }

    fn read_page(&mut self, pgno: Pgno, within: usize, buf: &mut [u8]) -> Result<(), Failure> {
        if let Some(change) = &mut self.change
            && change.read_within_page(pgno, within, buf)?
        {
            return Ok(());
        }
        if pgno.get() > self.snapshot.page_count() {
            buf.fill(0); // a page that the transaction added without writing it
            return Ok(());
        }
        Ok(self.snapshot.read_within_page(pgno, within, buf)?)
    }
}

fn length(page_size: Option<PageSize>, pages: u32) -> u64 {
    page_size.map_or(0, |size| u64::from(size.get()) * u64::from(pages))
}

fn lost_view() -> Failure {
    Failure::new(
        SQLITE_IOERR,
        "the content was replaced under this connection's lock; end the transaction and go on",
    )
}

fn no_writer() -> Failure {
    Failure::new(SQLITE_IOERR, "a write without a write lock (is the connection using nolock=1?)")
}
