//! Reading the log in order, as replication does: a cursor is a place and a position, so that a
//! slow reader costs no memory.

use std::sync::Arc;

use litefs_ltx::{Checksum, Pos, Txid};

use super::Db;
use super::frame::{FRAME_HEADER_LEN, SEGMENT_HEADER_LEN};
use super::log::Segment;
use super::recovery::{FrameAt, SegmentReader, read_headers};
use crate::{Error, Result};

/// Bytes of a record's trailer.
const TRAILER_LEN: u64 = 16;

/// How a peer's position relates to this database's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// It is the newest position.
    Current,
    /// It is on this history, and every record after it is in the log.
    Behind,
    /// It is older than the log, or zero where the log does not begin at the beginning: whether it
    /// is on this history is unknown.
    TooOld,
    /// It is not on this history: another checksum after that transaction, or ahead of the newest.
    Diverged,
}

/// A place in a database's log.
#[derive(Debug)]
pub struct LogCursor {
    db: Arc<Db>,
    content: u64,
    pos: Pos,
    /// Where the record after `pos` begins, unless that is in another segment.
    place: Option<(Arc<Segment>, u64)>,
}

/// One record in the log: LTX v1 raw bytes. Its file stays readable for as long as this lives.
#[derive(Debug)]
pub struct LogRecord {
    segment: Arc<Segment>,
    offset: u64,
    len: u64,
    min_txid: Txid,
    pos: Pos,
    timestamp_ms: i64,
}

impl LogRecord {
    /// The first transaction in it.
    pub fn min_txid(&self) -> Txid {
        self.min_txid
    }

    /// The position after it.
    pub fn pos(&self) -> Pos {
        self.pos
    }

    /// When it was committed, in milliseconds since the Unix epoch.
    pub fn timestamp_ms(&self) -> i64 {
        self.timestamp_ms
    }

    /// Its length in bytes.
    #[allow(clippy::len_without_is_empty)] // no record is empty
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Reads exactly `buf.len()` bytes at `offset` within the record.
    ///
    /// # Errors
    /// `Io`, also if the range leaves the log's file.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.segment.read_at(buf, self.offset + offset)
    }

    /// Reads the record from its beginning.
    pub fn reader(&self) -> impl std::io::Read + '_ {
        SegmentReader::new(&self.segment, self.offset, self.len)
    }
}

impl LogCursor {
    pub(crate) fn after(db: &Arc<Db>, pos: Pos) -> Result<Self> {
        match db.relation(pos)? {
            Relation::Current | Relation::Behind => {}
            Relation::TooOld => return Err(Error::Gone { db: db.name.clone(), after: pos }),
            Relation::Diverged => {
                return Err(db.mismatch(format!("{pos} is not on its history")));
            }
        }
        let content = db.content().id;
        Ok(Self { db: db.clone(), content, pos, place: None })
    }

    /// The position after the last record returned.
    pub fn pos(&self) -> Pos {
        self.pos
    }

    /// The next published record; `None` if there is none yet.
    ///
    /// # Errors
    /// `Gone` if the log was cut off or replaced meanwhile; `Io`; `Corrupt`.
    #[allow(clippy::should_implement_trait)] // `None` is not the end
    pub fn next(&mut self) -> Result<Option<LogRecord>> {
        self.db.check_readable()?;
        let content = self.db.content();
        if content.id != self.content {
            return Err(self.gone());
        }
        let newest = content.published.read().newest.pos;
        if newest.txid <= self.pos.txid {
            return Ok(None);
        }
        let (segment, offset, frame) = self.find()?;
        let record = self.record(&segment, offset, &frame)?;
        self.place = Some((segment, offset + frame.total_len()));
        self.pos = record.pos;
        Ok(Some(record))
    }

    /// Finds the record after `pos`, in this segment or another.
    fn find(&self) -> Result<(Arc<Segment>, u64, FrameAt)> {
        let wanted = self.pos.txid.next();
        // Beyond a segment's end may lie what recovery dropped.
        if let Some((segment, offset)) = &self.place
            && wanted <= segment.last()
            && let Some(frame) = read_headers(segment, *offset)?
            && frame.header.min_txid == wanted
        {
            return Ok((segment.clone(), *offset, frame));
        }
        self.db.find_record(wanted)?.ok_or_else(|| self.gone())
    }

    fn record(&self, segment: &Arc<Segment>, frame_at: u64, frame: &FrameAt) -> Result<LogRecord> {
        if frame.header.pre_apply != self.pos.checksum {
            let reason =
                format!("record {} of its log does not follow {}", frame.header.min_txid, self.pos);
            return Err(self.db.mismatch(reason));
        }
        record_at_frame(segment, frame_at, frame)
    }

    /// Bytes of the log behind this place.
    pub fn backlog(&self) -> u64 {
        let log = self.db.log.lock();
        let here = self.place.as_ref().map(|(segment, offset)| (segment.header.first, *offset));
        let first = self.pos.txid.next();
        log.segments()
            .map(|segment| match here {
                Some((at, offset)) if at == segment.header.first => {
                    segment.end().saturating_sub(offset)
                }
                _ if segment.last() < first => 0,
                _ => segment.end() - SEGMENT_HEADER_LEN,
            })
            .sum()
    }

    fn gone(&self) -> Error {
        Error::Gone { db: self.db.name.clone(), after: self.pos }
    }
}

/// The record in the frame at `frame_at`.
pub(crate) fn record_at_frame(
    segment: &Arc<Segment>,
    frame_at: u64,
    frame: &FrameAt,
) -> Result<LogRecord> {
    let offset = frame_at + FRAME_HEADER_LEN;
    let header = &frame.header;
    let mut trailer = [0; TRAILER_LEN as usize];
    segment.read_at(&mut trailer, offset + frame.record_len() - TRAILER_LEN)?;
    let post = Checksum::from_raw(super::frame::u64_at(&trailer, 0));
    Ok(LogRecord {
        segment: segment.clone(),
        offset,
        len: frame.record_len(),
        min_txid: header.min_txid,
        pos: Pos::new(header.max_txid, post),
        timestamp_ms: header.timestamp_ms,
    })
}

impl Db {
    /// Finds the record that begins with transaction `min`; `None` if the log does not hold it.
    fn find_record(&self, min: Txid) -> Result<Option<(Arc<Segment>, u64, FrameAt)>> {
        let Some(segment) = self.log.lock().segment_of(min) else { return Ok(None) };
        let mut offset = SEGMENT_HEADER_LEN;
        if let Some(hint) = self.record_end_before(min, &segment) {
            offset = hint;
        }
        while let Some(frame) = read_headers(&segment, offset)? {
            if frame.header.min_txid == min {
                return Ok(Some((segment, offset, frame)));
            }
            if frame.header.min_txid > min {
                break;
            }
            offset += frame.total_len();
        }
        Ok(None)
    }

    /// The node that committed the newest transaction, 0 if its record names none; `None` if the
    /// log has no record of it alone.
    pub(crate) fn newest_author(&self) -> Result<Option<u64>> {
        self.check_readable()?;
        let newest = self.pos();
        if newest.is_zero() {
            return Ok(None);
        }
        Ok(self.find_record(newest.txid)?.map(|(_, _, frame)| frame.header.node_id))
    }

    /// Where the record before `min` ends, if that is in memory.
    fn record_end_before(&self, min: Txid, segment: &Arc<Segment>) -> Option<u64> {
        let content = self.content();
        let published = content.published.read();
        let record = published.record_at(Txid::new(min.get() - 1))?;
        (record.segment.header.first == segment.header.first).then_some(record.end)
    }

    /// The oldest position from which the log can be read.
    pub(crate) fn log_start(&self) -> Result<Pos> {
        let oldest = self.log.lock().segments().next().cloned();
        let frame = oldest.map(|segment| read_headers(&segment, SEGMENT_HEADER_LEN)).transpose()?;
        match frame.flatten() {
            Some(frame) => {
                let before = Txid::new(frame.header.min_txid.get() - 1);
                Ok(Pos::new(before, frame.header.pre_apply))
            }
            None => Ok(self.pos()),
        }
    }

    pub(crate) fn relation(&self, pos: Pos) -> Result<Relation> {
        self.check_readable()?;
        let content = self.content();
        let (newest, known) = {
            let published = content.published.read();
            let at_mark = pos.txid == published.mark.pos.txid;
            let mark = at_mark.then_some(published.mark.pos);
            let record = published.record_at(pos.txid).map(|record| record.pos);
            (published.newest.pos, mark.or(record))
        };
        let by_checksum = |same| if same { Relation::Behind } else { Relation::Diverged };
        if pos == newest {
            return Ok(Relation::Current);
        }
        if pos.txid >= newest.txid {
            return Ok(Relation::Diverged);
        }
        if let Some(known) = known {
            return Ok(by_checksum(known == pos));
        }
        // Below the mark: the record that follows states what it follows.
        Ok(match self.find_record(pos.txid.next())? {
            Some((_, _, frame)) => by_checksum(frame.header.pre_apply == pos.checksum),
            None => Relation::TooOld,
        })
    }
}
