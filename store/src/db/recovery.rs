//! Recovery: from the files of a database to its published state. Writes nothing, but to finish an
//! interrupted installation; so opening twice is the same as opening once.
//!
//! The log is scanned from the mark; the first record that does not verify and chain ends it. That
//! is a lost tail (a crash before the tail was synced), unless something later states that the
//! record was known to be on disk: a frame or segment header's `synced txid`, or the mark's
//! ceiling. Then it is damage, and the database is quarantined rather than cut silently.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use litefs_ltx::{Checksum, Decoder, Header, PageSize, Pgno, Pos, Txid};

use super::frame::{self, FRAME_HEADER_LEN, FrameHeader, SEGMENT_HEADER_LEN, SegmentHeader};
use super::install;
use super::log::Segment;
use super::mark::Mark;
use super::published::{Published, RecordMeta, Version};
use super::sums;
use crate::error::IoContext;
use crate::shared::Shared;
use crate::{Error, File, OpenMode};

/// Why a database cannot be served.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A check failed.
    Damage(String),
    /// The operating system refused a request.
    Io(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Io(error)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Damage(reason) => f.write_str(reason),
            Self::Io(error) => write!(f, "it could not be opened: {error}"),
        }
    }
}

/// What the files of a database say.
pub(crate) struct Recovered {
    pub published: Published,
    pub segments: VecDeque<Arc<Segment>>,
    /// True if the last segment has nothing but zeros behind its last record.
    pub tail_clean: bool,
}

/// Reads the state of the database in `dir`.
pub(crate) fn recover(shared: &Arc<Shared>, dir: &Path) -> Result<Recovered, Failure> {
    let storage = shared.storage.as_ref();
    let mark = match Mark::read(storage, dir)? {
        Some(mut mark) if mark.installing => {
            mark.replace(storage, dir)?;
            install::finish(storage, dir, mark)?
        }
        Some(mark) => mark,
        None => unmarked(shared, dir)?,
    };
    install::discard_unfinished(storage, dir);
    let sums = sums::load(storage, dir, &mark)?;
    let segments = find_segments(shared, dir, &mark)?;
    let mut scan = Scan::new(Published::of_base(mark, sums), segments);
    scan.run()?;
    check_against_mark(shared, dir, &scan.published)?;
    let Scan { published, segments, tail_clean } = scan;
    Ok(Recovered { published, segments, tail_clean })
}

/// A database without a valid mark is a new one, unless it has content.
fn unmarked(shared: &Shared, dir: &Path) -> Result<Mark, Failure> {
    let storage = shared.storage.as_ref();
    let has_log = segment_names(shared, dir)?.into_iter().next().is_some();
    let base = dir.join("base");
    let has_base = storage.file_len(&base).at("read", &base)?.unwrap_or(0) > 0;
    if has_log || has_base {
        let path = dir.join("mark");
        let reason = format!("both slots of {} are damaged or missing", path.display());
        return Err(Failure::Damage(reason));
    }
    Ok(Mark::NEW)
}

fn check_against_mark(shared: &Shared, dir: &Path, published: &Published) -> Result<(), Failure> {
    let mark = &published.mark;
    let newest = &published.newest;
    if newest.pos.txid < mark.ceiling {
        let reason = format!(
            "its log in {} ends at {}, but records up to {} were on disk",
            dir.join("log").display(),
            newest.pos,
            mark.ceiling
        );
        return Err(Failure::Damage(reason));
    }
    let undisturbed = mark.ceiling <= mark.pos.txid;
    if let (true, Some(page_size)) = (undisturbed, mark.page_size) {
        let base = dir.join("base");
        let len = shared.storage.file_len(&base).at("read", &base)?.unwrap_or(0);
        let expected = u64::from(mark.pages) * u64::from(page_size.get());
        // Longer is no damage: nobody reads what a lost truncation brings back.
        if len < expected {
            let base = base.display();
            let reason = format!("{base} ends at byte {len} instead of {expected}");
            return Err(Failure::Damage(reason));
        }
    }
    let computed = published.computed_checksum();
    if !newest.pos.is_zero() && computed != newest.pos.checksum {
        let reason = format!(
            "the page checksums in {} and in the log add up to {computed}, not to {} as its \
             position says",
            dir.join("checksums").display(),
            newest.pos.checksum
        );
        return Err(Failure::Damage(reason));
    }
    Ok(())
}

fn segment_names(shared: &Shared, dir: &Path) -> Result<Vec<(Txid, String)>, Failure> {
    let log = dir.join("log");
    let names = match shared.storage.list(&log) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        names => names.at("read", &log)?,
    };
    let parse = |name: String| {
        let first = name.strip_suffix(".seg")?.parse::<Txid>().ok()?;
        Some((first, name))
    };
    Ok(names.into_iter().filter_map(parse).filter(|(first, _)| !first.is_zero()).collect())
}

/// The segments of this generation with a valid header, oldest first. Damage if one that counts for
/// `mark` has records, but no valid header: a header is on disk before the first record is written.
fn find_segments(
    shared: &Arc<Shared>,
    dir: &Path,
    mark: &Mark,
) -> Result<VecDeque<Arc<Segment>>, Failure> {
    let mut segments: VecDeque<Arc<Segment>> = VecDeque::new();
    let mut headless = None;
    for (first, name) in segment_names(shared, dir)? {
        let path = dir.join("log").join(name);
        let file = shared.storage.open(&path, OpenMode::ReadWrite).at("open", &path)?;
        match SegmentHeader::read(file.as_ref()).at("read", &path)? {
            Some(header) if header.first == first && header.generation == mark.generation => {
                let capacity = file.len().at("read", &path)?;
                if first <= mark.pos.txid.next() {
                    headless = None; // all that counts is in this one and later ones
                }
                let cached = shared.files.file(path);
                segments.push_back(Arc::new(Segment::new(header, cached, capacity)));
            }
            Some(_) => {}
            None if holds_records(file.as_ref(), first).at("read", &path)? => {
                headless = Some(path);
            }
            None => {}
        }
    }
    match headless {
        Some(path) => Err(Failure::Damage(format!(
            "the header at byte 0 of {} is damaged, and there are records behind it",
            path.display()
        ))),
        None => Ok(segments),
    }
}

/// Whether a segment without a valid header holds a record of its transactions. (A file that was
/// another segment before has older ones.)
fn holds_records(file: &dyn File, first: Txid) -> io::Result<bool> {
    let mut chunk = vec![0; 1 << 20];
    let mut at = SEGMENT_HEADER_LEN;
    loop {
        let read = file.read_at(&mut chunk, at)?;
        if frame::find_records(&chunk[..read]).any(|record| record.min_txid >= first) {
            return Ok(true);
        }
        // The next chunk overlaps, for a header that lies across the border.
        match read.checked_sub(frame::HEADERS_LEN) {
            Some(done) if read == chunk.len() => at += done as u64 / frame::ALIGN * frame::ALIGN,
            _ => return Ok(false),
        }
    }
}

/// Walks the log from the mark.
struct Scan {
    published: Published,
    segments: VecDeque<Arc<Segment>>,
    tail_clean: bool,
}

impl Scan {
    fn new(published: Published, segments: VecDeque<Arc<Segment>>) -> Self {
        Self { published, segments, tail_clean: true }
    }

    fn run(&mut self) -> Result<(), Failure> {
        let expected = self.published.mark.pos.txid.next();
        let below = self.segments.partition_point(|s| s.header.first <= expected);
        let Some(mut index) = below.checked_sub(1) else {
            self.refuse_if_known(0, SEGMENT_HEADER_LEN, "the log's beginning is missing")?;
            self.segments.clear();
            return Ok(());
        };
        for old in 0..index {
            let next = self.segments[old + 1].header.first;
            let segment = &self.segments[old];
            segment.set_end(segment.capacity(), Txid::new(next.get() - 1));
        }
        loop {
            let (offset, reason) = self.scan_segment(index)?;
            // All up to the mark was on disk before it was folded.
            if self.segments[index].last() < self.published.mark.pos.txid {
                return Err(self.damage(index, offset, &reason));
            }
            let expected = self.published.newest.pos.txid.next();
            let next = self.segments.get(index + 1);
            if next.is_some_and(|next| next.header.first == expected) {
                index += 1;
                continue;
            }
            self.refuse_if_known(index, offset, &reason)?;
            self.segments.truncate(index + 1);
            return Ok(());
        }
    }

    /// Reads records of one segment until there are no more; says where that is, and why.
    fn scan_segment(&mut self, index: usize) -> Result<(u64, String), Failure> {
        let segment = self.segments[index].clone();
        let next = self.segments.get(index + 1).map(|next| next.header.first);
        let mut offset = SEGMENT_HEADER_LEN;
        loop {
            let Some(frame) = read_headers(&segment, offset)? else {
                return Ok((offset, "no record".to_owned()));
            };
            if next.is_some_and(|next| frame.header.max_txid >= next) {
                // It was taken back, or never finished, when the next segment was begun.
                return Ok((offset, "no record that counts".to_owned()));
            }
            let end = offset + frame.total_len();
            if end > segment.capacity() {
                return Ok((offset, format!("a record of {} bytes", frame.record_len())));
            }
            if frame.header.max_txid > self.published.mark.pos.txid
                && let Err(reason) = self.read_record(&segment, offset, &frame)?
            {
                return Ok((offset, reason));
            }
            segment.set_end(end, frame.header.max_txid);
            offset = end;
        }
    }

    /// Verifies the record at `offset` wholly and publishes it if it follows the newest position.
    fn read_record(
        &mut self,
        segment: &Arc<Segment>,
        offset: u64,
        frame: &FrameAt,
    ) -> Result<Result<(), String>, Failure> {
        let record_offset = offset + FRAME_HEADER_LEN;
        let source = SegmentReader::new(segment, record_offset, frame.record_len());
        let (header, pages, post) = match decode(source) {
            Ok(decoded) => decoded,
            Err(litefs_ltx::Error::Io(source)) => {
                let path = segment.file.path();
                return Err(Failure::Io(Error::Io { op: "read", path, source }));
            }
            Err(format) => return Ok(Err(format.to_string())),
        };
        let before = self.published.newest.pos;
        if header.min_txid != before.txid.next() || header.pre_apply != before.checksum {
            return Ok(Err(format!(
                "a record from {} that does not follow {before}",
                header.min_txid
            )));
        }
        let txid = header.max_txid;
        let record = RecordMeta {
            pos: Pos::new(txid, post),
            min_txid: header.min_txid,
            commit: header.commit,
            page_size: header.page_size,
            timestamp_ms: header.timestamp_ms,
            segment: segment.clone(),
            end: offset + frame.total_len(),
            len: frame.total_len(),
        };
        let at = page_offsets(record_offset, header.page_size);
        let versions = pages.into_iter().zip(at).map(|((pgno, sum), offset)| {
            (pgno, Version { txid, segment: segment.clone(), offset, sum })
        });
        self.published.push(record, versions);
        Ok(Ok(()))
    }

    /// Damage if anything states that the transaction after the newest was on disk.
    fn refuse_if_known(&mut self, index: usize, offset: u64, reason: &str) -> Result<(), Failure> {
        let mut known = self.published.mark.ceiling;
        for segment in self.segments.iter().skip(index + 1) {
            known = known.max(segment.header.synced);
        }
        if let Some(segment) = self.segments.get(index) {
            let (stated, clean) = look_behind(segment, offset)?;
            known = known.max(stated);
            self.tail_clean = clean;
        }
        match known <= self.published.newest.pos.txid {
            true => Ok(()),
            false => Err(self.damage(index, offset, reason)),
        }
    }

    fn damage(&self, index: usize, offset: u64, reason: &str) -> Failure {
        let place = self.segments.get(index).map_or_else(String::new, |segment| {
            format!(" at byte {offset} of {}", segment.file.path().display())
        });
        let last = self.segments.get(index).map_or(Txid::ZERO, |segment| segment.last());
        let missing = last.min(self.published.newest.pos.txid).next();
        Failure::Damage(format!(
            "record {missing} of its log was on disk, but there is {reason}{place}"
        ))
    }
}

/// The newest transaction that frames behind `offset` state to be on disk, and whether there is
/// nothing at all.
fn look_behind(segment: &Segment, offset: u64) -> Result<(Txid, bool), Failure> {
    let (mut known, mut clean) = (Txid::ZERO, true);
    let mut chunk = vec![0; segment.capacity().saturating_sub(offset).min(1 << 20) as usize];
    let mut at = offset;
    while at + FRAME_HEADER_LEN <= segment.capacity() {
        let len = (segment.capacity() - at).min(chunk.len() as u64) as usize;
        segment.read_at(&mut chunk[..len], at)?;
        let frames = frame::find_frames(&chunk[..len], segment.header.salt);
        known = frames.map(|frame| frame.synced).fold(known, Txid::max);
        clean &= chunk[..len].iter().all(|&byte| byte == 0);
        // The next chunk overlaps, for a header that lies across the border.
        at += (len as u64 - FRAME_HEADER_LEN + frame::ALIGN) / frame::ALIGN * frame::ALIGN;
    }
    Ok((known, clean))
}

/// A frame's header and its record's header.
pub(crate) struct FrameAt {
    frame: FrameHeader,
    pub header: Header,
}

impl FrameAt {
    /// Bytes of the record.
    pub(crate) fn record_len(&self) -> u64 {
        self.frame.record_len
    }

    /// Bytes of the frame.
    pub(crate) fn total_len(&self) -> u64 {
        self.frame.total_len()
    }
}

/// Reads the headers of the frame at `offset`; `None` if there is no sound frame.
pub(crate) fn read_headers(segment: &Segment, offset: u64) -> Result<Option<FrameAt>, Error> {
    if offset + frame::HEADERS_LEN as u64 > segment.capacity() {
        return Ok(None);
    }
    let mut bytes = [0; frame::HEADERS_LEN];
    segment.read_at(&mut bytes, offset)?;
    let (frame, header) = bytes.split_at(FRAME_HEADER_LEN as usize);
    let frame: &[u8; FRAME_HEADER_LEN as usize] = frame.try_into().expect("BUG: split there");
    let header: &[u8; Header::LEN] = header.try_into().expect("BUG: split there");
    let Some(frame) = FrameHeader::decode(frame, segment.header.salt) else { return Ok(None) };
    let Ok(header) = Header::decode(header) else { return Ok(None) };
    // A length that no file has would overflow what is computed from it.
    let sane = frame.record_len <= segment.capacity();
    Ok(sane.then_some(FrameAt { frame, header }))
}

/// False if no scan could take what lies at `offset` for a record.
pub(crate) fn may_hold_record(segment: &Segment, offset: u64) -> bool {
    match read_headers(segment, offset) {
        Ok(Some(frame)) => {
            let record = SegmentReader::new(segment, offset + FRAME_HEADER_LEN, frame.record_len());
            matches!(decode(record), Ok(_) | Err(litefs_ltx::Error::Io(_)))
        }
        Ok(None) => false,
        Err(_) => true,
    }
}

/// Where the pages of a raw record that begins at `record_offset` lie, in order.
pub(crate) fn page_offsets(record_offset: u64, page_size: PageSize) -> impl Iterator<Item = u64> {
    let frame_header = litefs_ltx::FRAME_HEADER_LEN as u64;
    let stride = frame_header + u64::from(page_size.get());
    let first = record_offset + Header::LEN as u64 + frame_header;
    (0..).map(move |index| first + index * stride)
}

type Decoded = (Header, Vec<(Pgno, Checksum)>, Checksum);

fn decode(source: impl Read) -> Result<Decoded, litefs_ltx::Error> {
    let mut decoder = Decoder::new(source)?;
    let header = *decoder.header();
    let mut page = vec![0; header.page_size.len()];
    let mut pages = Vec::new();
    while let Some(pgno) = decoder.next_page(&mut page)? {
        pages.push((pgno, litefs_ltx::page_checksum(pgno, &page)));
    }
    let trailer = decoder.finish()?;
    Ok((header, pages, trailer.post_apply))
}

/// Reads a stretch of a segment in large pieces.
pub(crate) struct SegmentReader<'a> {
    segment: &'a Segment,
    /// Where the bytes after the buffered ones lie.
    offset: u64,
    left: u64,
    buffer: Vec<u8>,
    used: usize,
}

impl<'a> SegmentReader<'a> {
    pub(crate) fn new(segment: &'a Segment, offset: u64, len: u64) -> Self {
        Self { segment, offset, left: len, buffer: Vec::new(), used: 0 }
    }

    fn refill(&mut self) -> io::Result<()> {
        let len = self.left.min(256 << 10) as usize;
        self.buffer.resize(len, 0);
        self.used = 0;
        self.segment.file.get()?.read_exact_at(&mut self.buffer, self.offset)?;
        self.offset += len as u64;
        self.left -= len as u64;
        Ok(())
    }
}

impl Read for SegmentReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.used == self.buffer.len() {
            self.refill()?;
        }
        let len = out.len().min(self.buffer.len() - self.used);
        out[..len].copy_from_slice(&self.buffer[self.used..self.used + len]);
        self.used += len;
        Ok(len)
    }
}
