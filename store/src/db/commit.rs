//! The commit path: plan a record, append it, sync it (see [`Db::sync_log`]), publish it.
//!
//! A record that is to be synced at once, with nothing else unsynced before it, is appended and
//! synced in one call ([`File::write_durably_at`]) where its frame begins with a sector: where the
//! frame before it was padded up to that. Else it is written, and synced in the next step.
//!
//! A transaction is committed when its record is in the log. Until it is published nobody sees it,
//! and it can be taken back. Publishing only touches memory and cannot fail.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use litefs_ltx::{Checksum, Encoder, Header, PageSize, Pgno, Pos, Txid, page_checksum};

use super::frame::{FrameHeader, FrameSize};
use super::log::{Place, erase_frame};
use super::overlay::Overlay;
use super::published::{RecordMeta, Version};
use super::recovery::{may_hold_record, page_offsets};
use super::{Content, Db};
use crate::error::{IoContext, is_lack_of_space};
use crate::{Durability, Error, Event, File, Result};

/// Bytes written to the log at once.
const WRITE_LEN: usize = 1 << 20;
/// By how many pages, at most, a transaction may make a database longer without writing them.
const UNWRITTEN_PAGES: u64 = 1 << 22;
/// A transaction of more pages than this leaves the shared cache alone.
const CACHED_PAGES: usize = 1024;

/// A record that is planned: what it will hold, but for the pages' bytes.
#[derive(Debug)]
pub(crate) struct Draft {
    pub header: Header,
    /// The pages it will hold, ascending.
    pub pages: Vec<(Pgno, Checksum)>,
    /// The database checksum after it.
    pub post: Checksum,
}

/// A record at the end of the log that nobody has seen yet.
#[derive(Debug)]
pub(crate) struct Appended {
    place: Place,
    record: RecordMeta,
    pages: Vec<(Pgno, Checksum)>,
}

/// What of page 1 changes with every transaction, even if nothing else does: the change counter,
/// the transaction for which it is valid, and the version of SQLite that wrote it.
const COUNTERS: [std::ops::Range<usize>; 2] = [24..28, 92..100];

impl Db {
    /// Works out what of `overlay` a record for a database of `commit` pages has to hold; `None`
    /// if nothing changed. The caller holds the writer token.
    pub(crate) fn plan(
        &self,
        content: &Content,
        overlay: &Overlay,
        commit: u32,
        elide_counters: bool,
    ) -> Result<Option<Draft>> {
        let newest = content.published.read().newest;
        let mut pages = self.changed_pages(content, overlay, commit, elide_counters)?;
        self.check_growth(overlay, newest.pages, commit)?;
        add_growth(overlay, newest.pages, commit, &mut pages);
        if pages.is_empty() && commit == newest.pages {
            return Ok(None);
        }
        let txid = newest.pos.txid.next();
        let header = Header {
            min_txid: txid,
            pre_apply: newest.pos.checksum,
            timestamp_ms: self.shared.clock.wall_ms(),
            node_id: self.shared.node_id(),
            ..Header::snapshot(overlay.page_size(), commit, txid)
        };
        let post = self.checksum_after(content, commit, &pages);
        Ok(Some(Draft { header, pages, post }))
    }

    /// What a client leaves unwritten it has had in memory; more is no size but damage, for which
    /// no record of zeros can be made.
    fn check_growth(&self, overlay: &Overlay, before: u32, commit: u32) -> Result<()> {
        let grown = u64::from(commit.saturating_sub(before));
        let written = overlay.pgnos().filter(|pgno| pgno.get() > before && pgno.get() <= commit);
        if grown - (written.count() as u64).min(grown) <= UNWRITTEN_PAGES {
            return Ok(());
        }
        let reason = format!(
            "a transaction that makes it {commit} pages long, from {before}, without writing them"
        );
        Err(Error::Invalid { db: self.name.clone(), reason })
    }

    /// The written pages within the new size whose content is new.
    fn changed_pages(
        &self,
        content: &Content,
        overlay: &Overlay,
        commit: u32,
        elide_counters: bool,
    ) -> Result<Vec<(Pgno, Checksum)>> {
        let lock_page = overlay.page_size().lock_page();
        let mut changed = Vec::new();
        for pgno in overlay.pgnos().filter(|&pgno| pgno.get() <= commit && pgno != lock_page) {
            let sum = overlay.with_page(pgno, |page| page_checksum(pgno, page))?;
            let sum = sum.expect("BUG: the overlay names its pages");
            let old = content.published.read().newest_sum(pgno);
            let skip = match old {
                Some(old) if old == sum => self.same_but(content, overlay, pgno, &[])?,
                Some(_) if elide_counters && pgno == Pgno::FIRST => {
                    self.same_but(content, overlay, pgno, &COUNTERS)?
                }
                _ => false,
            };
            if !skip {
                changed.push((pgno, sum));
            }
        }
        Ok(changed)
    }

    /// True if the written page equals the newest one outside the ranges.
    fn same_but(
        &self,
        content: &Content,
        overlay: &Overlay,
        pgno: Pgno,
        ranges: &[std::ops::Range<usize>],
    ) -> Result<bool> {
        let newest = content.published.read().newest;
        if newest.page_size != Some(overlay.page_size()) {
            return Ok(false);
        }
        let mut old = vec![0; overlay.page_size().len()];
        self.read_page(content, &newest, pgno, &mut old)?;
        let same = overlay.with_page(pgno, |page| {
            for range in ranges {
                old[range.clone()].copy_from_slice(&page[range.clone()]);
            }
            old == page
        })?;
        Ok(same == Some(true))
    }

    /// The database checksum after a record with these pages: O(pages changed or cut off).
    pub(crate) fn checksum_after(
        &self,
        content: &Content,
        commit: u32,
        pages: &[(Pgno, Checksum)],
    ) -> Checksum {
        let published = content.published.read();
        let old = |pgno| published.newest_sum(pgno).unwrap_or(Checksum::NONE);
        let before = published.newest.pos.checksum.toggle(Checksum::EMPTY);
        let changed =
            pages.iter().fold(before, |sum, &(pgno, new)| sum.toggle(old(pgno)).toggle(new));
        let cut_off = (commit.saturating_add(1)..=published.newest.pages).filter_map(Pgno::new);
        cut_off.fold(changed, |sum, pgno| sum.toggle(old(pgno)))
    }

    /// Appends a record with the pages of `overlay` (zeros for those that were never written). If
    /// it is to be synced at once, it may be on disk already afterwards; [`Db::sync_log`] knows. On
    /// error the log is as before, or the database read-only.
    pub(crate) fn append(
        &self,
        draft: Draft,
        overlay: &Overlay,
        durability: Durability,
    ) -> Result<Appended> {
        let header = &draft.header;
        let record_len = litefs_ltx::record_len(header.page_size, draft.pages.len() as u64);
        let synced = durability == Durability::Full;
        if synced {
            self.syncs_commits.store(true, Ordering::Relaxed);
        }
        let size = FrameSize::new(record_len, synced);
        self.settle()?;
        if self.log.lock().is_full(size) {
            self.sync_log()?;
        }
        let place = self.log.lock().reserve(size, header.min_txid)?;
        let begun = self.shared.clock.now();
        let mut sink = FrameSink::new(&place, size, synced && place.after_synced)?;
        if let Err(error) = self.write_frame(&mut sink, &draft, overlay) {
            self.clear_failed(&place, &sink, &error);
            return Err(error);
        }
        if sink.outcome == Outcome::Durable {
            self.shared.timings.sync.add(self.shared.clock.now().saturating_sub(begun));
        }
        let pos = Pos::new(header.max_txid, draft.post);
        self.log.lock().appended(&place, pos.txid, sink.outcome == Outcome::Durable);
        let record = RecordMeta {
            pos,
            min_txid: header.min_txid,
            commit: header.commit,
            page_size: header.page_size,
            timestamp_ms: header.timestamp_ms,
            segment: place.segment.clone(),
            end: place.end(),
            len: place.len,
        };
        Ok(Appended { place, record, pages: draft.pages })
    }

    /// Makes sure that the log has space for a record of `pages` pages, so that a full disk is
    /// noticed before there is one.
    pub(crate) fn make_room(&self, page_size: PageSize, pages: u64) -> Result<()> {
        let size = FrameSize::new(litefs_ltx::record_len(page_size, pages), true);
        self.settle()?;
        if !self.log.lock().is_full(size) {
            return Ok(());
        }
        self.sync_log()?;
        let mut log = self.log.lock();
        let next = log.last().next();
        log.reserve(size, next).map(drop)
    }

    /// After a frame could not be written wholly. Part of one does no harm, as the next one
    /// overwrites it, but all of the record may be there, with only padding missing.
    fn clear_failed(&self, place: &Place, sink: &FrameSink, error: &Error) {
        // Before it is erased: half an erasure may be lost with the power.
        let may_hold_record = may_hold_record(&place.segment, place.offset);
        let erased = erase_frame(place);
        if sink.outcome == Outcome::Unknown {
            self.poison(error);
        } else if let (Err(erase), true) = (erased, may_hold_record) {
            // A file system that cannot reserve space may be too full to erase it.
            self.poison(&erase);
        }
    }

    fn write_frame(&self, sink: &mut FrameSink, draft: &Draft, overlay: &Overlay) -> Result<()> {
        self.encode(sink, draft, overlay)?;
        sink.finish()
    }

    /// Writes the record as LTX.
    pub(crate) fn encode(
        &self,
        out: &mut dyn Write,
        draft: &Draft,
        overlay: &Overlay,
    ) -> Result<()> {
        let failed = |e| self.encode_error(draft.header.max_txid, e);
        let mut encoder = Encoder::new(out, draft.header).map_err(failed)?;
        let zeros = vec![0; if draft.pages.is_empty() { 0 } else { overlay.page_size().len() }];
        for &(pgno, _) in &draft.pages {
            let encoded = overlay.with_page(pgno, |page| encoder.encode_page(pgno, page))?;
            encoded.unwrap_or_else(|| encoder.encode_page(pgno, &zeros)).map_err(failed)?;
        }
        encoder.finish(draft.post).map_err(failed)?;
        Ok(())
    }

    fn encode_error(&self, record: Txid, error: litefs_ltx::Error) -> Error {
        match error {
            litefs_ltx::Error::Io(source) => {
                Error::Io { op: "append to the log", path: self.dir.join("log"), source }
            }
            other => Error::Invalid {
                db: self.name.clone(),
                reason: format!("record {record} cannot be encoded: {other}"),
            },
        }
    }

    /// Takes an appended record that nobody has seen off the log again. If that fails, nobody can
    /// tell whether it comes back at the next start: the database becomes read-only.
    pub(crate) fn take_back(&self, appended: &Appended) {
        let before = appended.record.min_txid.get() - 1;
        let taken = self.log.lock().take_back(&appended.place, Txid::new(before));
        if let Err(error) = taken {
            self.poison(&error);
        }
    }

    /// Makes an appended record the newest state.
    pub(crate) fn publish(
        self: &Arc<Self>,
        content: &Content,
        appended: Appended,
        overlay: Overlay,
        durability: Durability,
    ) -> Pos {
        let Appended { place, record, pages } = appended;
        self.cache_pages(&pages, overlay);
        let event = Event::Position {
            db: self.name.clone(),
            pos: record.pos,
            page_size: record.page_size.get(),
            commit: record.commit,
            timestamp_ms: record.timestamp_ms,
        };
        let (pos, txid) = (record.pos, record.pos.txid);
        let offsets = page_offsets(place.record_offset(), record.page_size);
        let versions = pages.into_iter().zip(offsets).map(|((pgno, sum), offset)| {
            (pgno, Version { txid, segment: place.segment.clone(), offset, sum })
        });
        let unfolded = {
            let mut published = content.published.write();
            published.push(record, versions);
            published.unfolded
        };
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.announce_move();
        self.queue_work(unfolded, durability);
        self.shared.emit(&event);
        pos
    }

    fn cache_pages(&self, pages: &[(Pgno, Checksum)], overlay: Overlay) {
        if pages.len() > CACHED_PAGES {
            return;
        }
        let mut sums = pages.iter().peekable();
        for (pgno, page) in overlay.into_memory_pages() {
            while sums.next_if(|(other, _)| *other < pgno).is_some() {}
            if let Some((_, sum)) = sums.next_if(|(other, _)| *other == pgno) {
                self.shared.cache.insert(self.id, pgno, *sum, page);
            }
        }
    }
}

/// Pages by which the database grows must all be in the record; SQLite does not write those that
/// it allocates and frees in one transaction, and they read as zeros.
fn add_growth(overlay: &Overlay, before: u32, commit: u32, pages: &mut Vec<(Pgno, Checksum)>) {
    let lock_page = overlay.page_size().lock_page();
    let grown = before.saturating_add(1)..=commit;
    let zeros = vec![0; overlay.page_size().len()];
    let missing = grown
        .filter_map(Pgno::new)
        .filter(|&pgno| pgno != lock_page && !overlay.contains(pgno))
        .map(|pgno| (pgno, page_checksum(pgno, &zeros)));
    let known = pages.len();
    pages.extend(missing);
    if pages.len() > known {
        pages.sort_unstable_by_key(|&(pgno, _)| pgno);
    }
}

/// What is known of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It is written, or not; a sync decides.
    Written,
    /// It is on disk.
    Durable,
    /// It may be on disk or not, whatever later syncs say.
    Unknown,
}

/// Collects a frame and writes it with as few calls as a bound on memory allows.
struct FrameSink<'a> {
    file: Arc<dyn File>,
    place: &'a Place,
    padding: u32,
    /// Whether to write it durably, if that can be done in one call.
    durably: bool,
    outcome: Outcome,
    buffer: Vec<u8>,
    written: u64,
}

impl<'a> FrameSink<'a> {
    fn new(place: &'a Place, size: FrameSize, durably: bool) -> Result<Self> {
        let file = place.segment.file.get().at("open", &place.segment.file.path())?;
        let mut buffer = Vec::with_capacity(place.len.min(WRITE_LEN as u64 * 2) as usize);
        let padding = size.padding_at(place.offset);
        let header = FrameHeader { record_len: size.record_len, padding, synced: place.synced };
        buffer.extend_from_slice(&header.encode(place.segment.header.salt));
        let outcome = Outcome::Written;
        Ok(Self { file, place, padding, durably, outcome, buffer, written: 0 })
    }

    fn finish(&mut self) -> Result<()> {
        self.buffer.resize(self.buffer.len() + self.padding as usize, 0);
        let path = self.place.segment.file.path();
        let whole = self.written == 0;
        if whole && self.durably && self.write_durably().at("append durably to", &path)? {
            return Ok(());
        }
        self.write_out().at("append to", &path)
    }

    fn write_durably(&mut self) -> io::Result<bool> {
        let result = self.file.write_durably_at(&self.buffer, self.place.offset);
        match &result {
            Ok(true) => self.outcome = Outcome::Durable,
            Err(error) if !is_lack_of_space(error) => self.outcome = Outcome::Unknown,
            _ => {}
        }
        result
    }

    fn write_out(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.place.offset + self.written)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

impl Write for FrameSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() + bytes.len() > WRITE_LEN {
            self.write_out()?;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
