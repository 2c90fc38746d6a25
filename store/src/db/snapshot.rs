//! Reading at a pinned position.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use litefs_ltx::{Checksum, Encoder, Header, PageSize, Pgno, Pos, Txid, page_checksum};

use super::published::{Location, Published, StateAt, Version};
use super::{Content, Db};
use crate::error::IoContext;
use crate::filecache::CachedFile;
use crate::{Error, Result};

/// A pinned position: one consistent state for as long as it lives. It blocks nobody; it only
/// holds back the fold.
#[derive(Debug)]
pub struct Snapshot {
    db: Arc<Db>,
    content: Arc<Content>,
    state: StateAt,
    replaced: Txid,
    timestamp_ms: i64,
}

impl Snapshot {
    /// Pins the newest position.
    pub(crate) fn newest(db: &Arc<Db>) -> Result<Self> {
        db.check_readable()?;
        let content = db.content.read();
        let published = content.published.read();
        Ok(Self::pin(db, &content, &published, published.newest))
    }

    /// Pins an older position.
    pub(crate) fn at(db: &Arc<Db>, txid: Txid) -> Result<Self> {
        db.check_readable()?;
        let content = db.content.read();
        let published = content.published.read();
        let gone = || Error::Gone { db: db.name.clone(), after: Pos::new(txid, Checksum::NONE) };
        let state = published.state_at(txid).ok_or_else(gone)?;
        Ok(Self::pin(db, &content, &published, state))
    }

    /// The caller holds the published state, so that no fold passes the position meanwhile.
    fn pin(db: &Arc<Db>, content: &Arc<Content>, published: &Published, state: StateAt) -> Self {
        *content.pins.lock().entry(state.pos.txid).or_insert(0) += 1;
        Self {
            db: db.clone(),
            content: content.clone(),
            state,
            replaced: published.replaced,
            timestamp_ms: published.timestamp_at(state.pos.txid),
        }
    }

    /// The position that is pinned.
    pub fn pos(&self) -> Pos {
        self.state.pos
    }

    /// When the transaction that led there was committed, ms since the Unix epoch; 0 if that is not
    /// known (it is not kept over a restart once folded).
    pub fn timestamp_ms(&self) -> i64 {
        self.timestamp_ms
    }

    /// The page size; `None` before the first transaction.
    pub fn page_size(&self) -> Option<PageSize> {
        self.state.page_size
    }

    /// The size in pages.
    pub fn page_count(&self) -> u32 {
        self.state.pages
    }

    /// Names the line of content: another number after an import, a snapshot from a peer or a
    /// rewind, which may bring other content without a higher transaction.
    pub fn generation(&self) -> u64 {
        self.content.id
    }

    /// Names what the schema cookie (bytes 40..44 of page 1) counts: as long as this is the same,
    /// an equal cookie means an equal schema. Another value after a change of
    /// [`generation`](Self::generation), and after a transaction that removed all content (or may
    /// have: a compacted one).
    pub fn lineage(&self) -> (u64, Txid) {
        (self.content.id, self.replaced)
    }

    /// The pages that may differ from what `older` pins of the same database, in no order; those
    /// beyond the end of either are not all among them. `None` if everything may, because another
    /// content was installed or the page size is another.
    pub fn changed_since(&self, older: &Snapshot) -> Option<Vec<Pgno>> {
        if self.content.id != older.content.id || self.state.page_size != older.state.page_size {
            return None;
        }
        // What `older` pins was not folded away: every version after it is there still.
        let between = older.state.pos.txid.next()..=self.state.pos.txid;
        let published = self.content.published.read();
        let changed = published.versions.iter().filter(|(_, versions)| {
            versions.iter().rev().any(|version| between.contains(&version.txid))
        });
        Some(changed.map(|(&pgno, _)| pgno).collect())
    }

    /// Reads a whole page, verified; the lock page reads as zeros.
    ///
    /// # Errors
    /// `Invalid` for a page that is not there or a wrong length; `Io`; `Corrupt` if the page does
    /// not match its checksum: the database is then quarantined.
    pub fn read_page(&self, pgno: Pgno, buf: &mut [u8]) -> Result<()> {
        self.check_range(pgno, 0, buf.len())?;
        self.db.read_page(&self.content, &self.state, pgno, buf)
    }

    /// Reads consecutive pages, verified, from `first` on; `buf` is a whole number of them. Does
    /// not fill the cache that readers share: for those who have one of their own.
    ///
    /// # Errors
    /// As [`Snapshot::read_page`].
    pub fn read_pages(&self, first: Pgno, buf: &mut [u8]) -> Result<()> {
        let page_size = self.state.page_size.map_or(1, PageSize::len);
        let end = u64::from(first.get() - 1) + (buf.len() / page_size) as u64;
        if !buf.len().is_multiple_of(page_size) || end > u64::from(self.state.pages) {
            let reason = format!("{} bytes from page {first} on", buf.len());
            return Err(Error::Invalid { db: self.db.name.clone(), reason });
        }
        let mut scan = Scan::new(self, buf.len().min(RUN_LEN));
        let numbers = (first.get()..).filter_map(Pgno::new);
        for (pgno, page) in numbers.zip(buf.chunks_exact_mut(page_size)) {
            page.copy_from_slice(scan.page(pgno)?);
        }
        Ok(())
    }

    /// Reads bytes of one page, verified; errors as [`Snapshot::read_page`].
    pub fn read_within_page(&self, pgno: Pgno, offset: usize, buf: &mut [u8]) -> Result<()> {
        self.check_range(pgno, offset, buf.len())?;
        if Some(buf.len()) == self.state.page_size.map(PageSize::len) {
            return self.db.read_page(&self.content, &self.state, pgno, buf);
        }
        self.db.read_part(&self.content, &self.state, pgno, offset, buf)
    }

    fn check_range(&self, pgno: Pgno, offset: usize, len: usize) -> Result<()> {
        let page_size = self.state.page_size.map_or(0, PageSize::len);
        if pgno.get() <= self.state.pages && offset + len <= page_size {
            return Ok(());
        }
        let reason = format!(
            "{len} bytes at {offset} of page {pgno}, of {} pages of {page_size} bytes",
            self.state.pages
        );
        Err(Error::Invalid { db: self.db.name.clone(), reason })
    }

    /// Writes the database as a plain SQLite file.
    ///
    /// # Errors
    /// Those of [`Snapshot::read_page`], and `Io` if `out` cannot be written.
    pub fn export(&self, out: &mut dyn Write) -> Result<()> {
        let mut scan = Scan::new(self, RUN_LEN);
        for pgno in (1..=self.state.pages).filter_map(Pgno::new) {
            let page = scan.page(pgno)?;
            out.write_all(page).map_err(|source| self.output_error(source))?;
        }
        Ok(())
    }

    /// Writes one raw LTX record that holds the whole content (minTXID 1).
    ///
    /// # Errors
    /// `Invalid` before the first transaction; else as [`Snapshot::export`].
    pub fn write_snapshot_record(&self, out: &mut dyn Write) -> Result<()> {
        let pages = (1..=self.state.pages).filter_map(Pgno::new);
        self.write_record(self.record_header(Pos::ZERO)?, pages, out)
    }

    /// Length in bytes of what [`Snapshot::write_snapshot_record`] writes.
    pub fn snapshot_record_len(&self) -> u64 {
        let Some(page_size) = self.state.page_size else { return 0 };
        let skipped = u32::from(self.state.pages >= page_size.lock_page().get());
        litefs_ltx::record_len(page_size, u64::from(self.state.pages - skipped))
    }

    /// The header of a record that leads from `after` to this position.
    pub(crate) fn record_header(&self, after: Pos) -> Result<Header> {
        let Some(page_size) = self.state.page_size else {
            let reason = "a record of a database without any transaction".to_owned();
            return Err(Error::Invalid { db: self.db.name.clone(), reason });
        };
        Ok(Header {
            min_txid: after.txid.next(),
            pre_apply: after.checksum,
            timestamp_ms: self.timestamp_ms,
            ..Header::snapshot(page_size, self.state.pages, self.state.pos.txid)
        })
    }

    /// Writes a record with these pages (the lock page is skipped) as they are here.
    pub(crate) fn write_record(
        &self,
        header: Header,
        pages: impl Iterator<Item = Pgno>,
        out: &mut dyn Write,
    ) -> Result<()> {
        let lock_page = header.page_size.lock_page();
        let mut scan = Scan::new(self, RUN_LEN);
        let mut encoder = Encoder::new(out, header).map_err(|e| self.encode_error(e))?;
        for pgno in pages.filter(|&pgno| pgno != lock_page) {
            encoder.encode_page(pgno, scan.page(pgno)?).map_err(|e| self.encode_error(e))?;
        }
        encoder.finish(self.state.pos.checksum).map_err(|e| self.encode_error(e))?;
        Ok(())
    }

    fn encode_error(&self, error: litefs_ltx::Error) -> Error {
        match error {
            litefs_ltx::Error::Io(source) => self.output_error(source),
            other => Error::Invalid { db: self.db.name.clone(), reason: other.to_string() },
        }
    }

    fn output_error(&self, source: std::io::Error) -> Error {
        let path = std::path::PathBuf::from(self.db.name.as_str());
        Error::Io { op: "write out database", path, source }
    }

    pub(crate) fn db(&self) -> &Arc<Db> {
        &self.db
    }
}

/// Reads pages in ascending order: many of the base at once, and past the shared cache, which a
/// scan would only empty.
struct Scan<'a> {
    snapshot: &'a Snapshot,
    page: Vec<u8>,
    /// Consecutive pages of the base, from `first` on; the end of the base may cut them short.
    run: Vec<u8>,
    run_len: usize,
    first: u32,
}

/// Bytes of the base read at once by those who read all of it.
const RUN_LEN: usize = 256 << 10;

impl<'a> Scan<'a> {
    /// Reads `run_len` bytes of the base at once.
    fn new(snapshot: &'a Snapshot, run_len: usize) -> Self {
        let page = vec![0; snapshot.state.page_size.map_or(0, PageSize::len)];
        Self { snapshot, page, run: Vec::new(), run_len, first: 1 }
    }

    fn page(&mut self, pgno: Pgno) -> Result<&[u8]> {
        let Snapshot { db, content, state, .. } = self.snapshot;
        let Some(location) = db.find_page(content, state, pgno, &mut self.page)? else {
            return Ok(&self.page);
        };
        if let Location::Base(sum) = location
            && let Some(at) = self.find_in_run(pgno)?
            && page_checksum(pgno, &self.run[at..at + self.page.len()]) == sum
        {
            return Ok(&self.run[at..at + self.page.len()]);
        }
        // In the log; or folded since the run was read, so that only a new reading counts.
        db.read_from_disk(content, &location, pgno, &mut self.page)?;
        Ok(&self.page)
    }

    /// Where the page begins in the run, which is read anew if need be.
    fn find_in_run(&mut self, pgno: Pgno) -> Result<Option<usize>> {
        let len = self.page.len();
        let position = |first: u32| pgno.get().checked_sub(first).map(|index| index as usize * len);
        let within = |at: &usize, run: &[u8]| at + len <= run.len();
        if let Some(at) = position(self.first).filter(|at| within(at, &self.run)) {
            return Ok(Some(at));
        }
        let base = &self.snapshot.content.base;
        self.first = pgno.get();
        self.run.resize(self.run_len, 0);
        let offset = u64::from(pgno.get() - 1) * len as u64;
        let read = base.get().and_then(|file| file.read_at(&mut self.run, offset));
        self.run.truncate(read.at("read", &base.path())?);
        Ok(Some(0).filter(|at| within(at, &self.run)))
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        let txid = self.state.pos.txid;
        let mut pins = self.content.pins.lock();
        let count = pins.get_mut(&txid).expect("BUG: a snapshot is pinned");
        *count -= 1;
        let was_last = *count == 0;
        if was_last {
            pins.remove(&txid);
        }
        let was_oldest = was_last && pins.keys().next().is_none_or(|&oldest| oldest > txid);
        drop(pins);
        if was_oldest && self.db.fold_blocked.swap(false, Ordering::AcqRel) {
            self.db.unblock_fold();
        }
    }
}

impl Db {
    /// Reads a page that `state` has; `buf` is one page long.
    pub(crate) fn read_page(
        self: &Db,
        content: &Content,
        state: &StateAt,
        pgno: Pgno,
        buf: &mut [u8],
    ) -> Result<()> {
        let Some(location) = self.find_page(content, state, pgno, buf)? else { return Ok(()) };
        let sum = location.sum();
        if let Some(page) = self.shared.cache.get(self.id, pgno, sum) {
            buf.copy_from_slice(&page);
            return Ok(());
        }
        self.read_from_disk(content, &location, pgno, buf)?;
        self.shared.cache.insert(self.id, pgno, sum, (&*buf).into());
        Ok(())
    }

    fn read_part(
        &self,
        content: &Content,
        state: &StateAt,
        pgno: Pgno,
        offset: usize,
        buf: &mut [u8],
    ) -> Result<()> {
        let Some(location) = self.find_page(content, state, pgno, buf)? else { return Ok(()) };
        let sum = location.sum();
        let page = match self.shared.cache.get(self.id, pgno, sum) {
            Some(page) => page,
            None => {
                let mut page = vec![0; state.page_size.map_or(0, PageSize::len)];
                self.read_from_disk(content, &location, pgno, &mut page)?;
                let page: Arc<[u8]> = page.into();
                self.shared.cache.insert(self.id, pgno, sum, page.clone());
                page
            }
        };
        buf.copy_from_slice(&page[offset..offset + buf.len()]);
        Ok(())
    }

    /// Where the page is; `None` for the lock page, for which `buf` is zeroed.
    fn find_page(
        &self,
        content: &Content,
        state: &StateAt,
        pgno: Pgno,
        buf: &mut [u8],
    ) -> Result<Option<Location>> {
        self.check_readable()?;
        if state.page_size.is_some_and(|size| size.lock_page() == pgno) {
            buf.fill(0);
            return Ok(None);
        }
        let location = content.published.read().locate(pgno, state.pos.txid);
        match location {
            Some(location) => Ok(Some(location)),
            None => Err(self.damaged(content, format!("page {pgno} has no checksum"))),
        }
    }

    fn read_from_disk(
        &self,
        content: &Content,
        location: &Location,
        pgno: Pgno,
        buf: &mut [u8],
    ) -> Result<()> {
        match location {
            Location::Log(version) => self.read_log_page(content, version, pgno, buf),
            Location::Base(sum) => {
                let offset = u64::from(pgno.get() - 1) * buf.len() as u64;
                self.read_verified(content, &content.base, offset, pgno, *sum, buf)
            }
        }
    }

    /// Reads a version from its record in the log.
    pub(crate) fn read_log_page(
        &self,
        content: &Content,
        version: &Version,
        pgno: Pgno,
        buf: &mut [u8],
    ) -> Result<()> {
        let file = &version.segment.file;
        self.read_verified(content, file, version.offset, pgno, version.sum, buf)
    }

    fn read_verified(
        &self,
        content: &Content,
        file: &CachedFile,
        offset: u64,
        pgno: Pgno,
        sum: Checksum,
        buf: &mut [u8],
    ) -> Result<()> {
        let read = file.get().and_then(|file| file.read_exact_at(buf, offset));
        match read {
            Ok(()) if page_checksum(pgno, buf) == sum => Ok(()),
            Err(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => {
                Err(Error::Io { op: "read", path: file.path(), source: e })
            }
            _ => {
                let path = file.path();
                let reason = format!(
                    "page {pgno}, at byte {offset} of {}, does not match its checksum",
                    path.display()
                );
                Err(self.damaged(content, reason))
            }
        }
    }

    fn damaged(&self, content: &Content, reason: String) -> Error {
        self.quarantine(content, &reason);
        Error::Quarantined { db: self.name.clone(), reason }
    }
}
