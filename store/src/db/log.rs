//! The log: segments of frames on disk, appended to at the end, cut off at the front.
//!
//! Invariants:
//! - only the last segment is appended to, and only while `tail_open`: after a start, or after the
//!   end was cut, the next record begins a new segment, so that what may lie behind the old end
//!   never comes to follow a valid record;
//! - all segments but the last are on disk: a segment is synced before the next is begun. The last
//!   one that a start finds is copied instead: what was read may be in the kernel's cache only,
//!   where a failed sync, of which only the process before knew, has marked it clean;
//! - a segment's header and name are on disk before its first record is written.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use litefs_ltx::{Crc64, Txid};

use super::frame::{FRAME_HEADER_LEN, FrameSize, SEGMENT_HEADER_LEN, SegmentHeader};
use crate::error::{IoContext, is_lack_of_space};
use crate::filecache::CachedFile;
use crate::shared::Shared;
use crate::{File, OpenMode, Result};

/// The first segment's size in bytes: thousands of quiet databases must cost little.
const FIRST_CAPACITY: u64 = 16 << 10;
/// Each further segment is this many times as large as the one before…
const GROWTH: u64 = 4;
/// …up to this size.
pub(crate) const MAX_CAPACITY: u64 = 16 << 20;
/// A segment prepared ahead of its use, so that a commit need not wait for one.
const SPARE: &str = "spare";

/// A segment's first records, on the way to replace it.
const COPY: &str = "copy";

/// One file of the log.
#[derive(Debug)]
pub(crate) struct Segment {
    pub header: SegmentHeader,
    pub file: CachedFile,
    /// Bytes that the file has.
    capacity: AtomicU64,
    /// Where its last frame ends.
    end: AtomicU64,
    /// The last transaction in it; before the first one while empty.
    last: AtomicU64,
    /// When retention first saw it full; its age counts from there.
    sealed_at: OnceLock<Duration>,
}

impl Segment {
    pub(crate) fn new(header: SegmentHeader, file: CachedFile, capacity: u64) -> Self {
        let before_first = header.first.get() - 1;
        let end = AtomicU64::new(SEGMENT_HEADER_LEN);
        let last = AtomicU64::new(before_first);
        let capacity = AtomicU64::new(capacity);
        Self { header, file, capacity, end, last, sealed_at: OnceLock::new() }
    }

    /// Bytes that the file has.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Acquire)
    }

    /// Where its last frame ends.
    pub(crate) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// The last transaction in it.
    pub(crate) fn last(&self) -> Txid {
        Txid::new(self.last.load(Ordering::Acquire))
    }

    pub(crate) fn set_end(&self, end: u64, last: Txid) {
        self.last.store(last.get(), Ordering::Release);
        self.end.store(end, Ordering::Release);
    }

    /// How long ago it was first asked for its age, after it had been sealed.
    pub(crate) fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(*self.sealed_at.get_or_init(|| now))
    }

    /// Reads exactly `buf.len()` bytes at `offset`.
    pub(crate) fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let read = self.file.get().and_then(|file| file.read_exact_at(buf, offset));
        read.at("read", &self.file.path())
    }
}

/// Where the next frame goes.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub segment: Arc<Segment>,
    /// Where its header begins.
    pub offset: u64,
    /// Bytes of it.
    pub len: u64,
    /// What to state in the frame's header.
    pub synced: Txid,
    /// True if all records before it are on disk.
    pub after_synced: bool,
}

impl Place {
    /// Where the record's bytes begin.
    pub(crate) fn record_offset(&self) -> u64 {
        self.offset + FRAME_HEADER_LEN
    }

    /// Where the frame ends.
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Log {
    shared: Arc<Shared>,
    dir: PathBuf,
    generation: u64,
    segments: VecDeque<Arc<Segment>>,
    tail_open: bool,
    /// True while the last segment is as a start has found it, unless that is surely what is on
    /// disk: records in it, or what is behind them, may change with a power loss.
    tail_in_doubt: bool,
    /// The last transaction appended.
    last: Txid,
    /// The last transaction known to be on disk.
    synced: Txid,
    spare: Option<u64>,
    /// How often records were taken off the end.
    cuts: u64,
}

/// What a sync of the log has to reach.
#[derive(Debug)]
pub(crate) struct Unsynced {
    segment: Arc<Segment>,
    last: Txid,
    cuts: u64,
}

impl Unsynced {
    /// Syncs it.
    pub(crate) fn sync(&self) -> Result<()> {
        let synced = self.segment.file.get().and_then(|file| file.sync_data());
        synced.at("sync", &self.segment.file.path())
    }
}

impl Log {
    /// Over the segments that recovery found, which end with `last`; whether nothing lies behind
    /// it.
    pub(crate) fn new(
        shared: Arc<Shared>,
        db_dir: &Path,
        generation: u64,
        (segments, tail_clean): (VecDeque<Arc<Segment>>, bool),
        last: Txid,
        synced: Txid,
    ) -> Self {
        let dir = db_dir.join("log");
        let tail_in_doubt = !tail_clean || synced < last;
        Self {
            shared,
            dir,
            generation,
            segments,
            tail_open: false,
            tail_in_doubt,
            last,
            synced,
            spare: None,
            cuts: 0,
        }
    }

    /// The last transaction in it.
    pub(crate) fn last(&self) -> Txid {
        self.last
    }

    /// The last transaction known to be on disk.
    pub(crate) fn synced(&self) -> Txid {
        self.synced
    }

    /// The segments, oldest first.
    pub(crate) fn segments(&self) -> impl DoubleEndedIterator<Item = &Arc<Segment>> {
        self.segments.iter()
    }

    /// The segment in which `txid` lies if the log holds it.
    pub(crate) fn segment_of(&self, txid: Txid) -> Option<Arc<Segment>> {
        let after = self.segments.partition_point(|segment| segment.header.first <= txid);
        let segment = self.segments.get(after.checked_sub(1)?)?;
        (txid <= segment.last()).then(|| segment.clone())
    }

    /// Transactions that the segments hold.
    pub(crate) fn transactions(&self) -> u64 {
        let first = self.segments.front().map(|segment| segment.header.first);
        first.map_or(0, |first| self.last.next().get().saturating_sub(first.get()))
    }

    /// Bytes of all segment files.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.capacity()).sum::<u64>()
            + self.spare.unwrap_or(0)
    }

    /// Finds a place for a frame that begins with transaction `first`; begins a new segment if need
    /// be, for which all before it must be on disk. On error the log is as before.
    pub(crate) fn reserve(&mut self, size: FrameSize, first: Txid) -> Result<Place> {
        debug_assert_eq!(first, self.last.next(), "transactions follow each other");
        if let (Some(tail), false) = (self.segments.back(), self.is_full(size)) {
            return Ok(self.place(tail.clone(), size));
        }
        debug_assert_eq!(self.synced, self.last, "a segment is synced before the next is begun");
        if let Some(empty) = self.segments.back().filter(|tail| tail.header.first == first) {
            // Begun and left empty, by a record that was taken back or a crash. Its file may come
            // back, so the record must not go to the segment before it; and it may have old bytes,
            // so it is not begun again.
            let _ = self.shared.storage.remove_file(&empty.file.path());
            self.segments.pop_back();
            self.tail_open = false;
        }
        let least = SEGMENT_HEADER_LEN + size.len_at(SEGMENT_HEADER_LEN);
        let segment = Arc::new(self.begin_segment(least, first)?);
        self.segments.push_back(segment.clone());
        self.tail_open = true;
        Ok(self.place(segment, size))
    }

    fn place(&self, segment: Arc<Segment>, size: FrameSize) -> Place {
        let offset = segment.end();
        let after_synced = self.synced == self.last;
        Place { segment, offset, len: size.len_at(offset), synced: self.synced, after_synced }
    }

    /// Takes note of a frame that has been written at `place`, and is on disk if `durable`.
    pub(crate) fn appended(&mut self, place: &Place, last: Txid, durable: bool) {
        place.segment.set_end(place.end(), last);
        self.last = last;
        if durable {
            self.synced = last;
        }
    }

    /// Takes the newest frame, which nobody has seen yet, off the end again, durably.
    pub(crate) fn take_back(&mut self, place: &Place, last: Txid) -> Result<()> {
        self.cuts += 1;
        erase_frame(place)?;
        place.segment.set_end(place.offset, last);
        self.last = last;
        self.synced = self.synced.min(last);
        Ok(())
    }

    /// What to sync, without holding the log meanwhile; `None` if all is on disk. What a start
    /// found is made durable here.
    pub(crate) fn unsynced(&mut self) -> Result<Option<Unsynced>> {
        let Some(tail) = self.segments.back().cloned() else { return Ok(None) };
        if self.tail_in_doubt {
            self.prepare_cut(&tail, tail.end())?;
            self.replace_tail(tail.end())?;
        }
        let unsynced = Unsynced { segment: tail, last: self.last, cuts: self.cuts };
        Ok((self.synced < self.last).then_some(unsynced))
    }

    /// Takes note that what was to be synced has been.
    pub(crate) fn note_synced(&mut self, synced: &Unsynced) {
        // Another record may have taken the place of one that was taken back meanwhile.
        if synced.cuts == self.cuts {
            self.synced = self.synced.max(synced.last);
        }
    }

    /// True if a frame needs a new segment.
    pub(crate) fn is_full(&self, size: FrameSize) -> bool {
        let fits = |tail: &Arc<Segment>| {
            self.tail_open && tail.end() + size.len_at(tail.end()) <= tail.capacity()
        };
        !self.segments.back().is_some_and(fits)
    }

    fn begin_segment(&mut self, least: u64, first: Txid) -> Result<Segment> {
        let least = least.next_multiple_of(4096);
        let path = self.dir.join(format!("{first}.seg"));
        let storage = &self.shared.storage;
        let spare = self.spare.filter(|&spare| spare >= least);
        let file = match spare {
            Some(_) => {
                let from = self.dir.join(SPARE);
                storage.rename(&from, &path).at("rename", &from)?;
                self.spare = None;
                storage.open(&path, OpenMode::ReadWrite).at("open", &path)?
            }
            None => storage.open(&path, OpenMode::CreateNew).at("create", &path)?,
        };
        let wished = spare.unwrap_or_else(|| self.next_capacity().max(least));
        let header = SegmentHeader {
            generation: self.generation,
            first,
            synced: self.synced,
            salt: self.salt(first),
        };
        let capacity = match allocate(file.as_ref(), wished, least) {
            Ok(capacity) => capacity,
            Err(e) => {
                // Without its header the file counts for nothing; space is what is missing.
                let _ = storage.remove_file(&path);
                return Err(e).at("create", &path);
            }
        };
        let begun = file
            .write_all_at(&header.encode(), 0)
            .and_then(|()| file.sync_data())
            .and_then(|()| storage.sync_dir(&self.dir));
        if let Err(e) = begun {
            // It may come back, empty: no other segment may then hold its first record.
            self.tail_open = false;
            let _ = storage.remove_file(&path);
            return Err(e).at("create", &path);
        }
        let cached = self.shared.files.adopt(path, file);
        Ok(Segment::new(header, cached, capacity))
    }

    fn next_capacity(&self) -> u64 {
        match self.segments.back() {
            None => FIRST_CAPACITY,
            Some(tail) if !self.tail_open => tail.capacity().clamp(FIRST_CAPACITY, MAX_CAPACITY),
            Some(tail) => (tail.capacity() * GROWTH).clamp(FIRST_CAPACITY, MAX_CAPACITY),
        }
    }

    /// A number that no earlier use of a file is likely to have had.
    fn salt(&self, first: Txid) -> u64 {
        let clock = &self.shared.clock;
        let mut crc = Crc64::new();
        crc.update(&self.shared.node_id().to_be_bytes());
        crc.update(&first.get().to_be_bytes());
        crc.update(&clock.wall_ms().to_be_bytes());
        crc.update(&clock.now().as_nanos().to_be_bytes());
        crc.update(self.dir.as_os_str().as_encoded_bytes());
        crc.checksum().get()
    }

    /// True if a commit would soon have to wait for a new segment to be created.
    pub(crate) fn wants_spare(&self) -> bool {
        let half_full = |tail: &Arc<Segment>| tail.end() > tail.capacity() / 2;
        self.spare.is_none_or(|spare| spare < self.spare_capacity())
            && self.segments.back().is_some_and(half_full)
    }

    fn spare_capacity(&self) -> u64 {
        let tail = self.segments.back().map_or(FIRST_CAPACITY, |tail| tail.capacity());
        (tail * GROWTH).clamp(FIRST_CAPACITY, MAX_CAPACITY)
    }

    /// The path and size of the spare to prepare, if one is wanted. There is none until
    /// [`Log::note_spare`], so that nobody uses what is being written.
    pub(crate) fn begin_spare(&mut self) -> Option<(PathBuf, u64)> {
        let wanted = self.wants_spare();
        wanted.then(|| {
            self.spare = None;
            (self.dir.join(SPARE), self.spare_capacity())
        })
    }

    /// Takes note that the spare is there.
    pub(crate) fn note_spare(&mut self, capacity: u64) {
        self.spare = Some(capacity);
    }

    /// Removes the oldest segments for as long as `expendable` says so of them and of the bytes of
    /// the log, with a spare of at least `spare` bytes, which the first one to go may become; never
    /// the last one, and none that holds a transaction after `keep_from`. Returns how many went.
    pub(crate) fn retire(
        &mut self,
        keep_from: Txid,
        spare: u64,
        mut expendable: impl FnMut(&Segment, u64) -> bool,
    ) -> Result<usize> {
        let mut retired = 0;
        while self.segments.len() > 1 {
            let total = self.bytes() + spare.saturating_sub(self.spare.unwrap_or(0));
            let oldest = &self.segments[0];
            if oldest.last() > keep_from || !expendable(oldest, total) {
                break;
            }
            let oldest = self.segments.pop_front().expect("BUG: more than one segment");
            if let Err(error) = self.remove(&oldest) {
                self.segments.push_front(oldest);
                return Err(error);
            }
            // One at a time, so that what comes back after a power loss joins the rest.
            self.shared.storage.sync_dir(&self.dir).at("sync", &self.dir)?;
            retired += 1;
        }
        Ok(retired)
    }

    /// Keeps the file as the spare if nobody reads it and it is of the full size, else removes it.
    fn remove(&mut self, segment: &Arc<Segment>) -> Result<()> {
        let storage = &self.shared.storage;
        let path = segment.file.path();
        let unread = Arc::strong_count(segment) == 1;
        if unread && self.spare.is_none() && segment.capacity() == MAX_CAPACITY {
            storage.rename(&path, &self.dir.join(SPARE)).at("rename", &path)?;
            self.spare = Some(segment.capacity());
            return Ok(());
        }
        keep_open(segment)?;
        storage.remove_file(&path).at("remove", &path)
    }

    /// Keeps the files for those who read them: their names will go.
    pub(crate) fn keep_open(&self) -> Result<()> {
        self.segments.iter().try_for_each(keep_open)
    }

    /// Forgets every segment, for content that the log does not lead to.
    pub(crate) fn restart(&mut self, generation: u64, last: Txid) {
        self.segments.clear();
        self.tail_in_doubt = false;
        self.spare = None; // it may hold records of transactions that come again
        self.generation = generation;
        self.cuts += 1;
        self.tail_open = false;
        self.last = last;
        self.synced = last;
    }

    /// First step of [`Log::cut`], which needs space; changes nothing that counts.
    pub(crate) fn prepare_cut(&self, segment: &Segment, end: u64) -> Result<()> {
        if end <= SEGMENT_HEADER_LEN {
            return Ok(());
        }
        let copy = self.dir.join(COPY);
        let storage = self.shared.storage.as_ref();
        copy_prefix(storage, segment, end, &copy).inspect_err(|_| {
            let _ = storage.remove_file(&copy); // space may be what is missing
        })
    }

    /// Cuts the log, durably, after the frame that ends at `end` of `segment`, with transaction
    /// `last`. On error, disk and memory may differ.
    pub(crate) fn cut(&mut self, segment: &Segment, end: u64, last: Txid) -> Result<()> {
        self.cuts += 1;
        self.synced = self.synced.min(last);
        let storage = &self.shared.storage;
        // By name: a copy may have taken the segment's place.
        let first = segment.header.first;
        while let Some(tail) = self.segments.back().filter(|tail| tail.header.first > first) {
            keep_open(tail)?;
            let path = tail.file.path();
            storage.remove_file(&path).at("remove", &path)?;
            // One at a time, newest first, so that a power loss leaves no gap.
            storage.sync_dir(&self.dir).at("sync", &self.dir)?;
            self.segments.pop_back();
        }
        self.tail_open = false;
        self.last = last;
        self.replace_tail(end)
    }

    /// Replaces the last segment by the copy of its first `end` bytes, or removes it if no record
    /// is among them. Then everything is on disk.
    fn replace_tail(&mut self, end: u64) -> Result<()> {
        let Some(tail) = self.segments.back().cloned() else { return Ok(()) };
        let storage = &self.shared.storage;
        let path = tail.file.path();
        if end == tail.end() && end > SEGMENT_HEADER_LEN {
            // Whoever has the segment goes on with either file: they hold the same.
            storage.rename(&self.dir.join(COPY), &path).at("replace", &path)?;
            tail.capacity.store(end, Ordering::Release);
        } else {
            // Those who read what is cut off keep the old file.
            keep_open(&tail)?;
            let copied = self.replace_cut(&tail, end)?;
            self.segments.pop_back();
            self.segments.extend(copied);
        }
        storage.sync_dir(&self.dir).at("sync", &self.dir)?;
        self.synced = self.last;
        self.tail_in_doubt = false;
        Ok(())
    }

    fn replace_cut(&self, tail: &Segment, end: u64) -> Result<Option<Arc<Segment>>> {
        let storage = &self.shared.storage;
        let path = tail.file.path();
        if end <= SEGMENT_HEADER_LEN {
            storage.remove_file(&path).at("remove", &path)?;
            return Ok(None);
        }
        storage.rename(&self.dir.join(COPY), &path).at("replace", &path)?;
        let segment = Segment::new(tail.header, self.shared.files.file(path), end);
        segment.set_end(end, self.last);
        Ok(Some(Arc::new(segment)))
    }
}

/// Reserves space for a segment. On a disk that is almost full, what is needed now is better than
/// nothing.
fn allocate(file: &dyn File, wished: u64, least: u64) -> io::Result<u64> {
    match file.allocate(wished) {
        Err(e) if is_lack_of_space(&e) && least < wished => file.allocate(least).map(|()| least),
        result => result.map(|()| wished),
    }
}

fn keep_open(segment: &Arc<Segment>) -> Result<()> {
    segment.file.keep_open().at("open", &segment.file.path())
}

/// Writes zeros over a frame's header and syncs them.
pub(crate) fn erase_frame(place: &Place) -> Result<()> {
    let path = place.segment.file.path();
    let file = place.segment.file.get().at("open", &path)?;
    let erased = file
        .write_all_at(&[0; FRAME_HEADER_LEN as usize], place.offset)
        .and_then(|()| file.sync_data());
    erased.at("take back a record in", &path)
}

fn copy_prefix(storage: &dyn crate::Storage, from: &Segment, end: u64, to: &Path) -> Result<()> {
    let file = storage.open(to, OpenMode::CreateNew).at("create", to)?;
    let mut chunk = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < end {
        let len = (end - offset).min(chunk.len() as u64) as usize;
        from.read_at(&mut chunk[..len], offset)?;
        file.write_all_at(&chunk[..len], offset).at("write", to)?;
        offset += len as u64;
    }
    file.sync_data().at("sync", to)
}
