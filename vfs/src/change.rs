//! A write transaction: the store's writer, and the file as SQLite believes to have written it.

use std::time::Duration;

use litefs_store::{Database, Durability, PageSize, Pgno, Pos, Snapshot, Writer};

use crate::errors::Failure;
use crate::ffi::{SQLITE_CORRUPT, SQLITE_IOERR};
use crate::header::{self, HEADER_LEN};

/// How long a write transaction waits at once for the primary to let this node write; then SQLite's
/// busy handler decides.
const REACH_TIMEOUT: Duration = Duration::from_secs(1);

/// The changes of one write transaction (or of several, one after the other, in
/// `locking_mode=EXCLUSIVE`).
pub(crate) struct Change {
    writer: Writer,
    /// The database's; for an empty one that of the first page written.
    page_size: Option<PageSize>,
    /// Length of the file in pages.
    pages: u32,
    /// Something was written or truncated since begin, publish or rollback.
    touched: bool,
    /// The size in pages for which a record was prepared.
    prepared: Option<u32>,
}

impl Change {
    /// Takes the database's writer; `snapshot` must be the newest.
    pub(crate) fn begin(db: &Database, snapshot: &Snapshot) -> litefs_store::Result<Self> {
        db.reach(REACH_TIMEOUT)?;
        let writer = db.begin_write(snapshot)?;
        let mut change = Self { writer, page_size: None, pages: 0, touched: false, prepared: None };
        change.rebase(snapshot);
        Ok(change)
    }

    /// Starts again, unchanged, from `snapshot`.
    fn rebase(&mut self, snapshot: &Snapshot) {
        self.pages = snapshot.page_count();
        self.page_size = snapshot.page_size().filter(|_| self.pages > 0);
        self.touched = false;
        self.prepared = None;
    }

    pub(crate) fn touched(&self) -> bool {
        self.touched
    }

    pub(crate) fn page_size(&self) -> Option<PageSize> {
        self.page_size
    }

    pub(crate) fn pages(&self) -> u32 {
        self.pages
    }

    /// Reads bytes of a page that this transaction wrote; false if it did not.
    pub(crate) fn read_within_page(
        &mut self,
        pgno: Pgno,
        offset: usize,
        buf: &mut [u8],
    ) -> Result<bool, Failure> {
        Ok(self.writer.read_within_page(pgno, offset, buf)?)
    }

    /// Keeps a page. SQLite writes whole pages only.
    pub(crate) fn write(&mut self, data: &[u8], offset: u64) -> Result<(), Failure> {
        let (page_size, pgno) = self.whole_page(data.len(), offset).ok_or_else(|| {
            Failure::new(
                SQLITE_IOERR,
                format!(
                    "a write of {} bytes at offset {offset} is not one page of {} bytes",
                    data.len(),
                    self.page_size.map_or(0, PageSize::get)
                ),
            )
        })?;
        self.page_size = Some(page_size);
        self.touched = true;
        self.pages = self.pages.max(pgno.get());
        Ok(self.writer.write_page(pgno, data)?)
    }

    fn whole_page(&self, len: usize, offset: u64) -> Option<(PageSize, Pgno)> {
        let size = PageSize::new(u32::try_from(len).ok()?)?;
        let pgno = Pgno::at_offset(offset, size)?;
        let whole = self.page_size.is_none_or(|own| own == size) && pgno.offset(size) == offset;
        whole.then_some((size, pgno))
    }

    /// Sets the file's length. SQLite sends this in rollbacks, and after `FCNTL_SYNC` when the
    /// database shrinks.
    pub(crate) fn truncate(&mut self, len: u64, durability: Durability) -> Result<(), Failure> {
        let pages = self
            .page_size
            .filter(|size| len.is_multiple_of(u64::from(size.get())))
            .and_then(|size| u32::try_from(len / u64::from(size.get())).ok());
        let Some(pages) = pages else {
            return Err(Failure::new(
                SQLITE_IOERR,
                format!("a truncation to {len} bytes is not a whole number of pages"),
            ));
        };
        self.touched = true;
        self.pages = pages;
        match self.prepared {
            Some(commit) if commit != pages => self.prepare_size(pages, durability),
            _ => Ok(()),
        }
    }

    /// Commit steps 1 and 2: appends the record and makes it as durable as asked for.
    pub(crate) fn prepare(&mut self, durability: Durability) -> Result<(), Failure> {
        if !self.touched {
            return Ok(());
        }
        let commit = self.commit_size()?;
        self.prepare_size(commit, durability)
    }

    fn prepare_size(&mut self, commit: u32, durability: Durability) -> Result<(), Failure> {
        self.prepared = None;
        self.writer.prepare(commit, durability, true)?;
        self.writer.sync()?;
        self.prepared = Some(commit);
        Ok(())
    }

    /// The size of the database: as page 1 says, because the file is truncated only later.
    fn commit_size(&mut self) -> Result<u32, Failure> {
        let mut head = [0; HEADER_LEN];
        if !self.writer.read_within_page(Pgno::FIRST, 0, &mut head)? {
            return Ok(self.pages);
        }
        let named = header::page_size(&head);
        if self.page_size.is_some_and(|own| own.get() != named) {
            return Err(Failure::new(
                SQLITE_CORRUPT,
                format!(
                    "the new page 1 names a page size of {named} bytes, but the pages written \
                     have {} bytes: not committed",
                    self.page_size.map_or(0, PageSize::get)
                ),
            ));
        }
        match header::page_count(&head) {
            Some(count) if count > self.pages => Err(Failure::new(
                SQLITE_CORRUPT,
                format!(
                    "the new page 1 names {count} pages, but the file has {}: not committed",
                    self.pages
                ),
            )),
            Some(count) => Ok(count),
            None => Ok(self.pages),
        }
    }

    /// Commit step 3. `None` if nothing was prepared: there is nothing to publish.
    pub(crate) fn publish(&mut self) -> Option<Pos> {
        self.prepared.take()?;
        self.touched = false;
        Some(self.writer.publish())
    }

    /// Waits until what was published may be acknowledged.
    pub(crate) fn acknowledge(&mut self) -> Result<(), Failure> {
        Ok(self.writer.acknowledge()?)
    }

    /// After a publish: the state to which the next transaction is a change.
    pub(crate) fn published(&mut self, snapshot: &Snapshot) {
        self.rebase(snapshot);
    }

    /// Drops what was written and takes a prepared record back.
    pub(crate) fn roll_back(&mut self, snapshot: Option<&Snapshot>) {
        self.writer.rollback();
        self.touched = false;
        self.prepared = None;
        if let Some(snapshot) = snapshot {
            self.rebase(snapshot);
        }
    }
}
