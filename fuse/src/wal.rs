//! The WAL file, and which of its frames are verified and committed.
//!
//! Integers are big-endian:
//! ```text
//! file    header (32 bytes), frames
//! header  u32 magic 0x377f0682 or 0x377f0683 | u32 version 3007000 | u32 page size
//!         u32 checkpoint number | u32 salt[2] | u32 checksum[2] of the 24 bytes before
//! frame   u32 page number | u32 database size in pages if it commits, else 0 | u32 salt[2]
//!         u32 checksum[2] | page
//! ```
//! The checksum runs on from the header's over the first 8 bytes and the page of each frame, as
//! 32-bit words that are big-endian if the magic is odd, else little-endian. A frame is valid if
//! its salts are the header's, its checksum is right and all frames before it are valid. The valid
//! frames up to the last one that commits are the content of the WAL.
//!
//! A writer appends each frame as two writes, head and page; the kernel cuts them further, where
//! pages of its cache begin. A transaction that outgrows its cache
//! ("spills") overwrites pages of its own frames in place, and writes their heads again, last and
//! in ascending order, when it commits; until then it leaves salts and checksums of new frames
//! empty. A new header with other salts makes all frames invalid.
//!
//! SQLite 3.40 and others forget, when a savepoint is rolled back behind the first frame that was
//! overwritten, that they need not write heads again: frames in between stay without checksum, and
//! so may the commit frame. Plain SQLite lives with that until a crash, and loses the transaction
//! then. Here it is committed with the write that is the last one of the transaction.

use std::io;
use std::iter;

use litefs_store::{PageSize, Pgno};
use rustc_hash::FxHashMap;

/// The length of the WAL's header, in bytes.
pub(crate) const HEADER_LEN: usize = 32;

/// The length of a frame's head, in bytes.
pub(crate) const FRAME_HEAD_LEN: usize = 24;
const MAGIC: u32 = 0x377f_0682;
const VERSION: u32 = 3_007_000;

/// How a checksum takes bytes as words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ByteOrder {
    Big,
    Little,
}

/// The byte order of this machine.
pub(crate) const NATIVE: ByteOrder =
    if cfg!(target_endian = "big") { ByteOrder::Big } else { ByteOrder::Little };

/// Continues a checksum over `data`, whose length is a multiple of 8.
pub(crate) fn checksum(order: ByteOrder, sums: [u32; 2], data: &[u8]) -> [u32; 2] {
    debug_assert!(data.len().is_multiple_of(8), "BUG: checksums are over pairs of words");
    match order {
        ByteOrder::Big => add_words(sums, data, u32::from_be_bytes),
        ByteOrder::Little => add_words(sums, data, u32::from_le_bytes),
    }
}

fn add_words([mut a, mut b]: [u32; 2], data: &[u8], word: impl Fn([u8; 4]) -> u32) -> [u32; 2] {
    for pair in data.as_chunks::<8>().0 {
        let [a1, a2, a3, a4, b1, b2, b3, b4] = *pair;
        a = a.wrapping_add(word([a1, a2, a3, a4])).wrapping_add(b);
        b = b.wrapping_add(word([b1, b2, b3, b4])).wrapping_add(a);
    }
    [a, b]
}

/// What a WAL's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WalHeader {
    pub order: ByteOrder,
    pub page_size: PageSize,
    pub salts: [u32; 2],
    /// With which the first frame's checksum begins.
    pub sums: [u32; 2],
}

impl WalHeader {
    /// Reads and verifies a header; the error says what is wrong with it.
    pub(crate) fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, &'static str> {
        let order = match u32_at(bytes, 0) ^ MAGIC {
            0 => ByteOrder::Little,
            1 => ByteOrder::Big,
            _ => return Err("it does not begin with a WAL's magic number"),
        };
        let sums = checksum(order, [0, 0], &bytes[..24]);
        if sums != pair_at(bytes, 24) {
            return Err("the checksum of its header is wrong");
        }
        if u32_at(bytes, 4) != VERSION {
            return Err("it has another version than 3007000");
        }
        let page_size =
            PageSize::new(u32_at(bytes, 8)).ok_or("its page size is none of SQLite's")?;
        Ok(Self { order, page_size, salts: pair_at(bytes, 16), sums })
    }

    fn frame_len(&self) -> u64 {
        FRAME_HEAD_LEN as u64 + u64::from(self.page_size.get())
    }
}

/// A transaction whose commit frame became valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Commit {
    /// The last frame of each page of the transaction that is within the database: its page, and
    /// where in the WAL that begins. Ascending by page.
    pub frames: Vec<(Pgno, u64)>,
    /// The database's size after the transaction, in pages.
    pub pages: u32,
}

/// A verified frame.
#[derive(Debug)]
struct Frame {
    pgno: Pgno,
    /// The committed frame of the same page before this one, 0 if there is none. Set when this
    /// one is committed.
    previous: u32,
}

/// Where a number of frames ends.
#[derive(Debug, Clone, Copy)]
struct End {
    frames: u32,
    /// The checksum that the next frame continues.
    sums: [u32; 2],
}

/// Writes that follow each other without a gap: a head alone, a page alone, or frames.
#[derive(Debug, Clone, Copy)]
struct Run {
    start: u64,
    end: u64,
    /// The head of the frame in which it ends, as far as it was written.
    head: [u8; FRAME_HEAD_LEN],
}

/// The valid frames of one WAL, from its header on. A new header is a new chain.
///
/// The caller announces each write to the file behind the header with [`Chain::written`], and then
/// calls [`Chain::advance`] until it returns `None`. Each frame is read and summed once, and once
/// more whenever it was written again.
#[derive(Debug)]
pub(crate) struct Chain {
    header: WalHeader,
    /// The verified frames; frame number `n` is at `n - 1`.
    frames: Vec<Frame>,
    /// The checksum after the last verified frame; `None`: to be read from that frame's head.
    sums: Option<[u32; 2]>,
    /// Where the committed frames end.
    committed: End,
    /// Where they ended before the last commit.
    committed_before: End,
    /// The next frame was found not to be valid, and was not written since.
    stuck: bool,
    /// The first frame that was overwritten in place: from it on, heads are written again.
    overwritten: Option<u32>,
    /// The last writes.
    run: Run,
    /// The last write may have committed although frames before it are not valid.
    suspect: Option<u32>,
    /// Frames without checksum are committed.
    bridged: bool,
    /// Of each page, the last committed frame.
    newest: FxHashMap<Pgno, u32>,
    /// One frame, to read into.
    buffer: Vec<u8>,
}

impl Chain {
    pub(crate) fn new(header: WalHeader) -> Self {
        let start = End { frames: 0, sums: header.sums };
        Self {
            header,
            frames: Vec::new(),
            sums: Some(header.sums),
            committed: start,
            committed_before: start,
            stuck: false,
            overwritten: None,
            run: Run { start: 0, end: 0, head: [0; FRAME_HEAD_LEN] },
            suspect: None,
            bridged: false,
            newest: FxHashMap::default(),
            buffer: vec![0; header.frame_len() as usize],
        }
    }

    pub(crate) fn header(&self) -> &WalHeader {
        &self.header
    }

    /// These bytes of the file were written: frames that are not committed count no more from the
    /// first of these bytes on. Committed ones stay what they are.
    pub(crate) fn written(&mut self, offset: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let untouched = self.frames_before(offset);
        if untouched <= self.frames.len() as u64 {
            self.stuck = false;
        }
        self.keep(untouched.max(self.committed.frames.into()));
        self.follow_writer(offset, data);
    }

    /// Keeps track of which heads the writer means to write again.
    fn follow_writer(&mut self, offset: u64, data: &[u8]) {
        self.suspect = None;
        if offset != self.run.end {
            self.run.start = offset;
        }
        self.run.end = offset + data.len() as u64;
        let frame_len = self.header.frame_len();
        let mut at = offset.max(HEADER_LEN as u64);
        while at < self.run.end {
            let before = self.frames_before(at);
            let start = HEADER_LEN as u64 + before * frame_len;
            let end = self.run.end.min(start + frame_len);
            let piece = &data[(at - offset) as usize..(end - offset) as usize];
            let Ok(frame) = u32::try_from(before + 1) else { return };
            self.follow_piece(frame, (at - start) as usize, piece, start);
            at = end;
        }
    }

    /// A piece of one frame, which begins at `start`, was written from its byte `within` on.
    fn follow_piece(&mut self, frame: u32, within: usize, piece: &[u8], start: u64) {
        let end = within + piece.len();
        if within < FRAME_HEAD_LEN {
            let len = piece.len().min(FRAME_HEAD_LEN - within);
            self.run.head[within..within + len].copy_from_slice(&piece[..len]);
        }
        let has_head = self.run.start <= start;
        let commits = u32_at(&self.run.head, 4) != 0;
        if has_head && (within < FRAME_HEAD_LEN && end >= FRAME_HEAD_LEN) {
            if pair_at(&self.run.head, 8) == self.header.salts {
                self.overwritten = None;
                self.suspect = commits.then_some(frame);
            }
        } else if !has_head && within == FRAME_HEAD_LEN {
            self.overwritten = Some(self.overwritten.map_or(frame, |first| first.min(frame)));
        }
        let is_empty = self.run.head[8..].iter().all(|byte| *byte == 0);
        if has_head && commits && is_empty && end as u64 == self.header.frame_len() {
            // If heads are written again from a frame on that is behind this one, none is.
            self.suspect = self.overwritten.filter(|first| *first > frame).map(|_| frame);
        }
    }

    /// True if one of these bytes is part of a committed frame, or of the header that committed
    /// frames depend on. A write there is harmless if it changes nothing: a frame whose page is
    /// what the file held there already is committed by the write of its head, before the page's.
    pub(crate) fn overlaps_committed(&self, offset: u64, len: u64) -> bool {
        self.committed.frames > 0 && len > 0 && offset < self.committed_end()
    }

    /// Where the committed frames end in the file.
    pub(crate) fn committed_end(&self) -> u64 {
        HEADER_LEN as u64 + u64::from(self.committed.frames) * self.header.frame_len()
    }

    /// Verifies frames as far as they are whole and valid in a file of `file_len` bytes, up to and
    /// including the next that commits. `None`: no more commits. `read` fills a buffer from an
    /// offset in the file; after its error, the chain is as far as it came.
    pub(crate) fn advance(
        &mut self,
        file_len: u64,
        read: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<Option<Commit>> {
        while !self.stuck && self.end() + self.header.frame_len() <= file_len {
            let sums = self.sums_before(read)?;
            let at = self.end();
            read(at, &mut self.buffer)?;
            let Some((pgno, sums)) = self.verify(sums) else {
                self.stuck = true;
                break;
            };
            self.frames.push(Frame { pgno, previous: 0 });
            self.sums = Some(sums);
            let pages = u32_at(&self.buffer, 4);
            if pages != 0 {
                return Ok(Some(self.commit(pages, sums)));
            }
        }
        match self.suspect.take() {
            Some(frame) if u64::from(frame) > self.frames.len() as u64 => {
                self.bridge(frame, file_len, read)
            }
            _ => Ok(None),
        }
    }

    /// Commits up to a frame that may have been a transaction's last write, over frames that have
    /// no checksum. Everything else must be as usual.
    fn bridge(
        &mut self,
        last: u32,
        file_len: u64,
        read: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<Option<Commit>> {
        let verified = self.frames.len();
        let mut sums = self.sums_before(read)?;
        while self.end() + self.header.frame_len() <= file_len {
            let at = self.end();
            read(at, &mut self.buffer)?;
            let Some((pgno, next)) = self.verify(sums).or_else(|| self.verify_empty()) else {
                break;
            };
            sums = next;
            self.frames.push(Frame { pgno, previous: 0 });
            let pages = u32_at(&self.buffer, 4);
            let is_last = self.frames.len() as u32 == last;
            if is_last != (pages != 0) {
                break;
            }
            if is_last {
                self.bridged = true;
                let sums = self.sums_of_writer(last, sums, read)?;
                return Ok(Some(self.commit(pages, sums)));
            }
        }
        self.frames.truncate(verified);
        Ok(None)
    }

    /// The checksum with which the writer goes on: what is in the head before the first frame that
    /// it believed to write again.
    fn sums_of_writer(
        &self,
        last: u32,
        sums: [u32; 2],
        read: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<[u32; 2]> {
        let Some(first) = self.overwritten.filter(|first| *first > last) else { return Ok(sums) };
        let mut found = [0; 8];
        read(self.page_offset(first - 1) - 8, &mut found)?;
        Ok(pair_at(&found, 0))
    }

    /// Takes the last commit back, right after [`Chain::advance`] returned it: its frames are not
    /// valid until they are written again. The caller sees to it that the file's frame that
    /// commits is destroyed, else SQLite's recovery would find it.
    pub(crate) fn undo_commit(&mut self) {
        let undone = self.committed_before.frames + 1..=self.committed.frames;
        for frame in undone.rev() {
            let Frame { pgno, previous } = self.frames[frame as usize - 1];
            match previous {
                0 => self.newest.remove(&pgno),
                _ => self.newest.insert(pgno, previous),
            };
        }
        self.committed = self.committed_before;
        self.keep(self.committed.frames.into());
        self.stuck = true;
    }

    /// False if SQLite's recovery of the wal-index would not find all that is committed: the WAL
    /// has to be emptied before that.
    pub(crate) fn is_recoverable(&self) -> bool {
        !self.bridged
    }

    /// How many frames are committed: the number of the last one.
    pub(crate) fn committed_frames(&self) -> u32 {
        self.committed.frames
    }

    /// The newest committed frame of a page.
    pub(crate) fn frame_of(&self, pgno: Pgno) -> Option<u32> {
        self.newest.get(&pgno).copied()
    }

    /// The committed frames of a page, the newest first.
    pub(crate) fn frames_of(&self, pgno: Pgno) -> impl Iterator<Item = u32> {
        iter::successors(self.frame_of(pgno), |frame| {
            let previous = self.frames[*frame as usize - 1].previous;
            (previous != 0).then_some(previous)
        })
    }

    /// Where the page of a frame begins in the file.
    pub(crate) fn page_offset(&self, frame: u32) -> u64 {
        let before = u64::from(frame - 1) * self.header.frame_len();
        HEADER_LEN as u64 + before + FRAME_HEAD_LEN as u64
    }

    /// The pages that have a committed frame, and where the newest one's page begins in the file.
    pub(crate) fn latest(&self) -> impl Iterator<Item = (Pgno, u64)> {
        self.newest.iter().map(|(&pgno, &frame)| (pgno, self.page_offset(frame)))
    }

    /// Where the verified frames end in the file.
    fn end(&self) -> u64 {
        HEADER_LEN as u64 + self.frames.len() as u64 * self.header.frame_len()
    }

    /// How many whole frames are before an offset.
    fn frames_before(&self, offset: u64) -> u64 {
        offset.saturating_sub(HEADER_LEN as u64) / self.header.frame_len()
    }

    /// Forgets verified frames but the first `count`.
    fn keep(&mut self, count: u64) {
        if count >= self.frames.len() as u64 {
            return;
        }
        self.frames.truncate(count as usize);
        self.sums = (count == u64::from(self.committed.frames)).then_some(self.committed.sums);
    }

    /// The checksum that the next frame continues. The head of a verified frame holds the one
    /// after it.
    fn sums_before(
        &self,
        read: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<[u32; 2]> {
        if let Some(sums) = self.sums {
            return Ok(sums);
        }
        let mut sums = [0; 8];
        read(self.end() - self.header.frame_len() + 16, &mut sums)?;
        Ok(pair_at(&sums, 0))
    }

    /// The page number of the frame in the buffer and the checksum after it, if it is valid.
    fn verify(&self, sums: [u32; 2]) -> Option<(Pgno, [u32; 2])> {
        let (head, page) = self.buffer.split_at(FRAME_HEAD_LEN);
        let pgno = Pgno::new(u32_at(head, 0))?;
        if pair_at(head, 8) != self.header.salts {
            return None;
        }
        let sums = checksum(self.header.order, sums, &head[..8]);
        let sums = checksum(self.header.order, sums, page);
        (sums == pair_at(head, 16)).then_some((pgno, sums))
    }

    /// The page number of the frame in the buffer, if its head was left without salts and
    /// checksum; the next frame's begins with what is there.
    fn verify_empty(&self) -> Option<(Pgno, [u32; 2])> {
        let is_empty = self.buffer[8..FRAME_HEAD_LEN].iter().all(|byte| *byte == 0);
        Some((Pgno::new(u32_at(&self.buffer, 0)).filter(|_| is_empty)?, [0, 0]))
    }

    /// Counts all verified frames as committed.
    fn commit(&mut self, pages: u32, sums: [u32; 2]) -> Commit {
        self.committed_before = self.committed;
        self.committed = End { frames: self.frames.len() as u32, sums };
        self.sums = Some(sums);
        self.overwritten = None;
        let mut last = Vec::new();
        for frame in self.committed_before.frames + 1..=self.committed.frames {
            let entry = &mut self.frames[frame as usize - 1];
            entry.previous = self.newest.insert(entry.pgno, frame).unwrap_or(0);
            last.push((entry.pgno, frame));
        }
        last.retain(|(pgno, frame)| pgno.get() <= pages && self.newest[pgno] == *frame);
        last.sort_unstable();
        let frames = last.into_iter().map(|(pgno, frame)| (pgno, self.page_offset(frame)));
        Commit { frames: frames.collect(), pages }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let [a, b, c, d, ..] = bytes[at..] else { unreachable!("BUG: {at} is within the bytes") };
    u32::from_be_bytes([a, b, c, d])
}

fn pair_at(bytes: &[u8], at: usize) -> [u32; 2] {
    [u32_at(bytes, at), u32_at(bytes, at + 4)]
}

#[cfg(test)]
#[path = "wal_tests.rs"]
mod tests;
