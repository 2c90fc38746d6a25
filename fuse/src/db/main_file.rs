//! The database file as clients see it: a pinned state of the store, pages that a checkpoint
//! brought up to date since, and those of a running transaction in a rollback mode.
//!
//! With a WAL, the file must stay behind it: readers take from it what their part of the WAL does
//! not have. So it shows the state in which the WAL began, and `tip` is what the WAL leads to.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use fuser::Errno;
use litefs_store::{Database, PageSize, Pgno, Pos, Snapshot, Writer};
use rustc_hash::FxHashMap;

use super::{MountedDb, Result};
use crate::errno;

/// Where SQLite's header has the change counter, and the counter for which its size is valid.
const COUNTER: usize = 24;
const VALID_FOR: usize = 92;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct MainFile {
    view: Arc<Snapshot>,
    tip: Arc<Snapshot>,
    /// The file's length in pages, without a running transaction.
    pages: u32,
    /// The change counter to show in place of page 1's.
    counter: Option<u32>,
    /// The change counter that clients may have seen last, of a database that is empty now.
    last_counter: Option<u32>,
    backfilled: FxHashMap<Pgno, u64>,
    /// Where backfilled pages are.
    wal: Option<Arc<File>>,
    pub(super) writer: Option<Writer>,
    pub(super) change: Option<Change>,
    /// Transactions that ended since the writer was taken: above 0 in `locking_mode=EXCLUSIVE`.
    pub(super) ended: u32,
}

/// A running transaction in a rollback mode that has written pages.
#[derive(Debug)]
pub(crate) struct Change {
    pub page_size: PageSize,
    /// The file's length in bytes.
    pub len: u64,
    pub written: BTreeSet<Pgno>,
    /// The log has space for so many pages.
    pub room: usize,
}

/// Bytes of a file: from, and how many (0: up to its end).
pub(crate) type Extent = (u64, u64);

impl MainFile {
    pub(crate) fn new(snapshot: Snapshot) -> Self {
        let view = Arc::new(snapshot);
        Self {
            tip: view.clone(),
            pages: view.page_count(),
            view,
            counter: None,
            last_counter: None,
            backfilled: FxHashMap::default(),
            wal: None,
            writer: None,
            change: None,
            ended: 0,
        }
    }

    /// The newest state that clients can see.
    pub(crate) fn tip(&self) -> &Snapshot {
        &self.tip
    }

    /// `None` as long as nothing was written.
    pub(super) fn page_size(&self) -> Option<PageSize> {
        match &self.change {
            Some(change) => Some(change.page_size),
            None => self.view.page_size().filter(|_| self.pages > 0),
        }
    }

    pub(crate) fn len(&self) -> u64 {
        match &self.change {
            Some(change) => change.len,
            None => u64::from(self.pages) * self.page_size().map_or(0, |size| size.len() as u64),
        }
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let inside = self.len().saturating_sub(offset).min(len as u64) as usize;
        let mut buf = vec![0; inside];
        let Some(page_size) = self.page_size() else { return Ok(buf) };
        let mut done = 0;
        while done < inside {
            let at = offset + done as u64;
            let Some(pgno) = Pgno::at_offset(at, page_size) else { break };
            let run = self.run_in_view(pgno, at, page_size, inside - done);
            if run > 0 {
                let read = self.view.read_pages(pgno, &mut buf[done..done + run]);
                read.map_err(|e| errno::of(&e))?;
                done += run;
                continue;
            }
            let within = (at - pgno.offset(page_size)) as usize;
            let part = (page_size.len() - within).min(inside - done);
            self.read_within_page(pgno, within, &mut buf[done..done + part])?;
            done += part;
        }
        Ok(buf)
    }

    /// Bytes from the beginning of a page that are whole pages of the view, of the next `len`.
    fn run_in_view(&self, first: Pgno, at: u64, page_size: PageSize, len: usize) -> usize {
        if at != first.offset(page_size) || self.change.is_some() || !self.backfilled.is_empty() {
            return 0;
        }
        if first == Pgno::FIRST && self.counter.is_some() {
            return 0;
        }
        let there = (self.view.page_count() + 1).saturating_sub(first.get()) as usize;
        match (len / page_size.len()).min(there) {
            1 => 0, // by way of the cache
            pages => pages * page_size.len(),
        }
    }

    fn read_within_page(&self, pgno: Pgno, within: usize, buf: &mut [u8]) -> Result<()> {
        if let (Some(_), Some(writer)) = (&self.change, &self.writer) {
            let found = writer.read_within_page(pgno, within, buf);
            if found.map_err(|e| errno::of(&e))? {
                return Ok(());
            }
        }
        if let (Some(offset), Some(wal)) = (self.backfilled.get(&pgno), &self.wal) {
            let read = wal.read_exact_at(buf, offset + within as u64);
            return read.map_err(|e| errno::of_io(&e));
        }
        if pgno.get() > self.view.page_count() {
            return Ok(()); // the file was made longer, and the page not written
        }
        self.view.read_within_page(pgno, within, buf).map_err(|e| errno::of(&e))?;
        if let Some(counter) = self.counter.filter(|_| pgno == Pgno::FIRST) {
            show_counter(counter, within, buf);
        }
        Ok(())
    }

    /// True if the file says that its clients use a WAL.
    pub(super) fn says_wal(&self) -> bool {
        let mut version = [0; 2];
        let read = self.tip.page_count() > 0
            && self.tip.read_within_page(Pgno::FIRST, 18, &mut version).is_ok();
        read && version == [2, 2]
    }

    /// After a commit: clients see `pos`. False if that is replaced already, or cannot be read any
    /// more; the tip is then behind until the mover shows the newest state, and nobody writes.
    pub(super) fn move_tip(&mut self, database: &Database, pos: Pos) -> bool {
        let newest = database.snapshot().ok().filter(|newest| newest.pos() == pos);
        let at = || database.snapshot_at(pos.txid).ok().filter(|snapshot| snapshot.pos() == pos);
        match newest.or_else(at) {
            Some(snapshot) => {
                self.tip = Arc::new(snapshot);
                true
            }
            None => false,
        }
    }

    /// The file shows the tip: a transaction in a rollback mode ended, or the WAL begins anew.
    pub(super) fn show_tip(&mut self) {
        self.view = self.tip.clone();
        self.pages = self.view.page_count();
        self.backfilled.clear();
        self.wal = None;
    }

    /// True if the file's pages and those of the WAL, together, are in the file: the checkpoint
    /// was complete. `latest` are the WAL's newest frames.
    pub(super) fn is_backfilled(&self, latest: impl Iterator<Item = (Pgno, u64)>) -> bool {
        let pages = self.tip.page_count();
        let missing = |(pgno, offset): (Pgno, u64)| {
            pgno.get() <= pages && self.backfilled.get(&pgno) != Some(&offset)
        };
        !latest.into_iter().any(missing)
    }

    /// A checkpoint wrote the page that the WAL has at `offset`.
    pub(super) fn backfill(&mut self, pgno: Pgno, wal: &Arc<File>, offset: u64) {
        self.wal = Some(wal.clone());
        self.backfilled.insert(pgno, offset);
        self.pages = self.pages.max(pgno.get());
    }

    /// A checkpoint gives the file the length that the WAL led to when it began: more may have
    /// been committed since. False if that cannot be.
    fn resize(&mut self, len: u64) -> bool {
        let size = self.page_size().filter(|size| len.is_multiple_of(size.len() as u64));
        let pages = size.and_then(|size| u32::try_from(len / size.len() as u64).ok());
        let longest = self.pages.max(self.tip.page_count());
        let pages = pages.filter(|pages| (1..=longest).contains(pages));
        self.pages = pages.unwrap_or(self.pages);
        pages.is_some()
    }

    /// Goes to the store's newest state; returns what of the file is then different.
    pub(super) fn advance(&mut self, database: &Database) -> litefs_store::Result<Vec<Extent>> {
        let shown = self.shown_counter().or(self.last_counter);
        self.last_counter = shown;
        let before = self.len();
        let newest = Arc::new(database.snapshot()?);
        let changed = newest.changed_since(&self.view);
        // A snapshot of the very state that is shown already changes no byte of it.
        let is_same = newest.pos() == self.view.pos();
        self.tip = newest;
        self.show_tip();
        if !is_same {
            self.counter = self.counter_above(shown);
        }
        let (Some(changed), Some(page_size)) = (changed, self.page_size()) else {
            return Ok(vec![(0, 0)]);
        };
        let mut extents = merge(changed, page_size);
        if self.counter.is_some() {
            extents.push((0, page_size.len() as u64));
        }
        if before != self.len() {
            extents.push((before.min(self.len()), 0));
        }
        Ok(extents)
    }

    /// The counter to show so that it is above one that was shown; `None` if page 1's is.
    fn counter_above(&mut self, shown: Option<u32>) -> Option<u32> {
        self.counter = None;
        let shown = shown.filter(|_| !self.says_wal())?;
        let own = self.shown_counter().unwrap_or(shown);
        let passed = own.wrapping_sub(shown) as i32 > 0;
        (!passed).then(|| shown.wrapping_add(1))
    }

    /// The change counter in page 1 as clients see it.
    fn shown_counter(&self) -> Option<u32> {
        let mut counter = [0; 4];
        let there = self.pages > 0 && self.change.is_none();
        let read = there && self.read_within_page(Pgno::FIRST, COUNTER, &mut counter).is_ok();
        read.then(|| u32::from_be_bytes(counter))
    }

    /// Makes a page 1 of the store the one that clients see.
    pub(super) fn patch_counter(&self, page: &mut [u8]) {
        if let Some(counter) = self.counter {
            show_counter(counter, 0, page);
        }
    }

    /// A client wrote page 1: its counter counts.
    pub(super) fn forget_counter(&mut self) {
        self.counter = None;
    }
}

/// Clients in a rollback mode keep their cache as long as the change counter is the same. Commits
/// through the VFS need not raise it, so the mount does, where it shows another state under it.
fn show_counter(counter: u32, within: usize, buf: &mut [u8]) {
    let bytes = counter.to_be_bytes();
    for start in [COUNTER, VALID_FOR] {
        for (index, byte) in bytes.iter().enumerate() {
            let at = (start + index).checked_sub(within);
            if let Some(place) = at.and_then(|at| buf.get_mut(at)) {
                *place = *byte;
            }
        }
    }
}

/// The bytes of pages, neighbours joined.
pub(super) fn merge(mut pages: Vec<Pgno>, page_size: PageSize) -> Vec<Extent> {
    pages.sort_unstable();
    let mut extents: Vec<Extent> = Vec::new();
    for pgno in pages {
        let (offset, len) = (pgno.offset(page_size), page_size.len() as u64);
        match extents.last_mut() {
            Some(last) if last.0 + last.1 == offset => last.1 += len,
            _ => extents.push((offset, len)),
        }
    }
    extents
}

impl MountedDb {
    /// A client writes to the database file: in a transaction with a journal, or in a checkpoint.
    pub(super) fn write_main(&self, offset: u64, data: &[u8]) -> Result<()> {
        if self.journal.lock().is_live() {
            return self.write_change(offset, data);
        }
        self.write_checkpoint(offset, data)
    }

    fn write_checkpoint(&self, offset: u64, data: &[u8]) -> Result<()> {
        let checkpointing = self.is_checkpointing();
        let wal = self.wal.lock();
        let mut main = self.main.write();
        let page_size = main.page_size().filter(|size| checkpointing && size.len() == data.len());
        let begins_at = |size| Pgno::at_offset(offset, size).filter(|p| p.offset(size) == offset);
        let pgno = page_size.and_then(begins_at);
        let Some((pgno, (file, at))) = pgno.and_then(|pgno| Some((pgno, wal.find(pgno, data)?)))
        else {
            tracing::warn!(
                db = %self.name(),
                "refused a write to the database file that no journal covers and that is no \
                 checkpoint: journal_mode MEMORY and OFF, and programs that write to the file \
                 themselves, would lose data here. Use DELETE, TRUNCATE, PERSIST or WAL; to bring \
                 in a database file, use `litefs-node import`"
            );
            return Err(Errno::EIO);
        };
        main.backfill(pgno, &file, at);
        Ok(())
    }

    /// A client sets the database file's length: in a transaction, at the end of a checkpoint, or
    /// after a commit that has cut the database already.
    pub(super) fn truncate_main(&self, len: u64) -> Result<()> {
        let checkpointing = self.is_checkpointing();
        let live = self.journal.lock().is_live();
        let has_wal = self.wal.lock().has_frames();
        let mut main = self.main.write();
        if len == main.len() {
            return Ok(());
        }
        if live && main.writer.is_some() {
            return self.truncate_change(&mut main, len);
        }
        if has_wal && checkpointing && main.resize(len) { Ok(()) } else { Err(Errno::EPERM) }
    }
}
