//! Catching up in one step: a record that holds each page changed since a position once.
//!
//! It is read from a pinned snapshot, so it is as consistent as any reader's view, and needs one
//! bit of memory per page of the database.

use std::io::Write;

use litefs_ltx::{Header, PageSize, Pgno, Pos};

use super::cursor::{LogCursor, LogRecord};
use crate::{Error, Result, Snapshot};

/// Bytes read at once.
const READ_LEN: usize = 1 << 20;

/// A compacted record that is planned, not yet read.
#[derive(Debug)]
pub struct CompactedRecord {
    snapshot: Snapshot,
    header: Header,
    changed: Bitmap,
}

impl CompactedRecord {
    /// Plans a record from `after` to what `snapshot` pins.
    pub(crate) fn plan(snapshot: Snapshot, after: Pos) -> Result<Self> {
        let header = snapshot.record_header(after)?;
        let mut changed = Bitmap::new(header.commit);
        let mut cursor = LogCursor::after(snapshot.db(), after)?;
        while cursor.pos().txid < snapshot.pos().txid {
            let gone = || Error::Gone { db: snapshot.db().name.clone(), after };
            let record = cursor.next()?.ok_or_else(gone)?;
            add_pages(&record, header.page_size, &mut changed)?.then_some(()).ok_or_else(gone)?;
        }
        if cursor.pos() != snapshot.pos() {
            return Err(Error::Gone { db: snapshot.db().name.clone(), after });
        }
        Ok(Self { snapshot, header, changed })
    }

    /// The position after it.
    pub fn pos(&self) -> Pos {
        self.snapshot.pos()
    }

    /// How many pages it holds.
    pub fn pages(&self) -> u64 {
        self.changed.ones()
    }

    /// Its exact length in bytes.
    #[allow(clippy::len_without_is_empty)] // no record is empty
    pub fn len(&self) -> u64 {
        litefs_ltx::record_len(self.header.page_size, self.pages())
    }

    /// Writes it, as raw LTX v1.
    ///
    /// # Errors
    /// Those of [`Snapshot::read_page`], and `Io` if `out` cannot be written.
    pub fn write_to(&self, out: &mut dyn Write) -> Result<()> {
        self.snapshot.write_record(self.header, self.changed.pages(), out)
    }
}

/// Adds the pages of a raw record; false if it has another page size, which a drop in between made
/// possible.
fn add_pages(record: &LogRecord, page_size: PageSize, changed: &mut Bitmap) -> Result<bool> {
    let mut header = [0; Header::LEN];
    record.read_at(0, &mut header)?;
    let sized = Header::decode(&header).is_ok_and(|header| header.page_size == page_size);
    if !sized {
        return Ok(false);
    }
    let stride = litefs_ltx::FRAME_HEADER_LEN + page_size.len();
    let frames_end = record.len() - litefs_ltx::record_len(page_size, 0) + Header::LEN as u64;
    let per_read = (READ_LEN / stride).max(1) * stride;
    let mut chunk = vec![0; per_read];
    let mut offset = Header::LEN as u64;
    while offset < frames_end {
        let len = (frames_end - offset).min(per_read as u64) as usize;
        record.read_at(offset, &mut chunk[..len])?;
        for frame in chunk[..len].chunks_exact(stride) {
            changed.set(u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]));
        }
        offset += len as u64;
    }
    Ok(true)
}

/// A set of page numbers up to a bound.
#[derive(Debug)]
struct Bitmap {
    words: Vec<u64>,
    max: u32,
}

impl Bitmap {
    fn new(max: u32) -> Self {
        Self { words: vec![0; (max as usize + 1).div_ceil(64)], max }
    }

    /// Adds a number; one beyond the bound (a page that was cut off later) is ignored.
    fn set(&mut self, number: u32) {
        if number <= self.max {
            self.words[number as usize / 64] |= 1 << (number % 64);
        }
    }

    fn ones(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    fn pages(&self) -> impl Iterator<Item = Pgno> + '_ {
        (1..=self.max)
            .filter(|&number| self.words[number as usize / 64] >> (number % 64) & 1 == 1)
            .filter_map(Pgno::new)
    }
}
