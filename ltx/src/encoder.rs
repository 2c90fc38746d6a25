//! Writing LTX files.

use std::io::Write;

use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};

use crate::pages::PageSequence;
use crate::trailer::check_post_apply;
use crate::{
    Checksum, Crc64, Error, FRAME_HEADER_LEN, Header, Misuse, PageSize, Pgno, Result, Trailer,
    page_checksum,
};

/// Writes one LTX file: the pages in ascending order, then [`finish`](Self::finish).
///
/// What it finishes, the decoder accepts: calls that would break a rule of the format fail before
/// they write anything. A file whose encoder was not finished has no trailer, and no reader takes
/// it. Each page is two writes; a writer for which that is slow should be buffered.
#[derive(Debug)]
pub struct Encoder<W: Write> {
    header: Header,
    out: Output<W>,
    pages: PageSequence,
    file: Crc64,
    /// The checksum of the pages so far; kept for snapshots only.
    content: Checksum,
    failed: bool,
}

impl<W: Write> Encoder<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// If the header breaks a rule, or cannot be written.
    pub fn new(mut writer: W, header: Header) -> Result<Self> {
        header.validate()?;
        let bytes = header.encode();
        writer.write_all(&bytes)?;
        let mut file = Crc64::new();
        file.update(&bytes);
        Ok(Self {
            header,
            out: Output::new(writer, header.compressed),
            pages: PageSequence::new(&header),
            file,
            content: Checksum::EMPTY,
            failed: false,
        })
    }

    /// Writes a page.
    ///
    /// # Errors
    /// [`Error::Misuse`] if it must not come here or has the wrong size: nothing is written, and
    /// another page may be tried. [`Error::Io`] if it cannot be written: later calls fail.
    pub fn encode_page(&mut self, pgno: Pgno, page: &[u8]) -> Result<()> {
        let page_size = self.header.page_size;
        self.check_usable()?;
        if page.len() != page_size.len() {
            return Err(Misuse::PageBuffer { len: page.len(), page_size }.into());
        }
        self.pages.push(pgno).map_err(Misuse::from)?;
        if self.header.is_snapshot() {
            self.content = self.content.toggle(page_checksum(pgno, page));
        }
        self.write(&pgno.get().to_be_bytes())?;
        self.write(page)
    }

    /// Writes what follows the pages, and returns the writer, unflushed. `post_apply` is the
    /// checksum of the database after this file.
    ///
    /// # Errors
    /// [`Error::Misuse`] if pages of a snapshot are missing or `post_apply` cannot be right;
    /// [`Error::Io`] if the end cannot be written.
    pub fn finish(mut self, post_apply: Checksum) -> Result<(W, Trailer)> {
        self.check_usable()?;
        self.check_end(post_apply)?;
        self.write(&[0; FRAME_HEADER_LEN])?;
        self.file.update(&post_apply.get().to_be_bytes());
        let trailer = Trailer { post_apply, file: self.file.checksum() };
        let mut writer = self.out.finish()?;
        writer.write_all(&trailer.encode())?;
        Ok((writer, trailer))
    }

    fn check_end(&self, post_apply: Checksum) -> std::result::Result<(), Misuse> {
        self.pages.finish()?;
        check_post_apply(&self.header, post_apply)?;
        if self.header.is_snapshot() && post_apply != self.content {
            let computed = self.content;
            return Err(Misuse::PostApplyOfSnapshot { given: post_apply, computed });
        }
        Ok(())
    }

    fn check_usable(&self) -> std::result::Result<(), Misuse> {
        if self.failed { Err(Misuse::AfterError) } else { Ok(()) }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.update(bytes);
        let result = self.out.write(bytes);
        self.failed |= result.is_err();
        result
    }
}

/// The size in bytes of an uncompressed file with this many pages.
pub const fn record_len(page_size: PageSize, pages: u64) -> u64 {
    let frame = FRAME_HEADER_LEN as u64 + page_size.get() as u64;
    (Header::LEN + FRAME_HEADER_LEN + Trailer::LEN) as u64 + pages * frame
}

/// Where the page block goes.
#[derive(Debug)]
enum Output<W: Write> {
    Raw(W),
    Lz4(Box<FrameEncoder<W>>),
}

impl<W: Write> Output<W> {
    fn new(writer: W, compressed: bool) -> Self {
        if !compressed {
            return Self::Raw(writer);
        }
        // As LiteFS writes it.
        let info = FrameInfo::new()
            .block_size(BlockSize::Max64KB)
            .block_mode(BlockMode::Independent)
            .content_checksum(true);
        Self::Lz4(Box::new(FrameEncoder::with_frame_info(info, writer)))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Raw(writer) => writer.write_all(bytes)?,
            Self::Lz4(encoder) => encoder.write_all(bytes)?,
        }
        Ok(())
    }

    fn finish(self) -> Result<W> {
        match self {
            Self::Raw(writer) => Ok(writer),
            Self::Lz4(encoder) => encoder.finish().map_err(|e| Error::Io(e.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::{Txid, Violation};

    fn header(min_txid: u64, commit: u32) -> Header {
        let snapshot = min_txid == 1;
        Header {
            compressed: false,
            page_size: PageSize::new(65536).unwrap(), // lock page 16385
            commit,
            min_txid: Txid::new(min_txid),
            max_txid: Txid::new(min_txid),
            timestamp_ms: 0,
            pre_apply: if snapshot { Checksum::NONE } else { Checksum::EMPTY },
            wal_offset: 0,
            wal_size: 0,
            wal_salt1: 0,
            wal_salt2: 0,
            node_id: 0,
        }
    }

    fn page(n: u32) -> Pgno {
        Pgno::new(n).unwrap()
    }

    fn misuse<T>(result: Result<T>) -> Misuse {
        match result.map(|_| ()).unwrap_err() {
            Error::Misuse(misuse) => misuse,
            error => panic!("{error}"),
        }
    }

    #[test]
    fn refused_page_leaves_no_trace() {
        let mut encoder = Encoder::new(Vec::new(), header(2, 20000)).unwrap();
        let data = vec![1; 65536];
        let beyond = Violation::PageBeyondCommit { pgno: 20001, commit: 20000 };
        assert_eq!(misuse(encoder.encode_page(page(20001), &data)), beyond.into());
        let lock = Violation::LockPage(page(16385));
        assert_eq!(misuse(encoder.encode_page(page(16385), &data)), lock.into());
        let size = Misuse::PageBuffer { len: 512, page_size: PageSize::LARGEST };
        assert_eq!(misuse(encoder.encode_page(page(1), &data[..512])), size);
        encoder.encode_page(page(7), &data).unwrap();
        let order = Violation::PageOrder { pgno: 7, last: 7 };
        assert_eq!(misuse(encoder.encode_page(page(7), &data)), order.into());
        let (bytes, _) = encoder.finish(Checksum::EMPTY).unwrap();
        assert_eq!(crate::verify(&bytes[..]).unwrap().pages, 1);
    }

    #[test]
    fn invalid_header_is_refused_before_anything_is_written() {
        let mut out = Vec::new();
        let bad = Header { max_txid: Txid::ZERO, ..header(2, 1) };
        assert_eq!(misuse(Encoder::new(&mut out, bad)), Violation::MaxTxidZero.into());
        assert!(out.is_empty());
    }

    #[test]
    fn short_snapshot_is_not_finished() {
        let mut out = Vec::new();
        let mut encoder = Encoder::new(&mut out, header(1, 2)).unwrap();
        encoder.encode_page(page(1), &[1; 65536]).unwrap();
        let sum = page_checksum(page(1), &[1; 65536]);
        let short = Violation::SnapshotShort { last: 1, commit: 2 };
        assert_eq!(misuse(encoder.finish(sum)), short.into());
        assert_eq!(out.len(), 100 + 65540, "no terminator");
    }

    #[test]
    fn post_apply_checksum_that_cannot_be_right_is_refused() {
        let finish = |header, post| {
            misuse(Encoder::new(Vec::new(), header).unwrap().finish(Checksum::from_raw(post)))
        };
        let none = Checksum::NONE;
        assert_eq!(finish(header(2, 1), 0), Violation::PostApplyFormat(none).into());
        let some = Checksum::from_raw(1 << 63 | 1);
        assert_eq!(finish(header(2, 0), some.get()), Violation::PostApplyOfDeletion(some).into());

        let mut encoder = Encoder::new(Vec::new(), header(1, 1)).unwrap();
        encoder.encode_page(page(1), &[1; 65536]).unwrap();
        let computed = page_checksum(page(1), &[1; 65536]);
        let expected = Misuse::PostApplyOfSnapshot { given: some, computed };
        assert_eq!(misuse(encoder.finish(some)), expected);
    }

    /// Fails after some bytes, once, as a disk that was full for a moment.
    struct Hiccup {
        left: usize,
    }

    impl Write for Hiccup {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            match self.left.checked_sub(buf.len()) {
                Some(left) => self.left = left,
                None => {
                    self.left = usize::MAX;
                    return Err(io::Error::other("full"));
                }
            }
            Ok(buf.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn file_with_a_hole_is_not_finished() {
        for compressed in [false, true] {
            let header = Header { compressed, ..header(2, 9) };
            let mut encoder = Encoder::new(Hiccup { left: 150 }, header).unwrap();
            let mut failures = 0;
            for n in 1..=5u64 {
                // The compressor may write later than the page that it is given.
                let noise: Vec<u8> = (0..65536u64).map(|i| ((i * i * n) >> 7) as u8).collect();
                match encoder.encode_page(page(n as u32), &noise) {
                    Ok(()) => assert_eq!(failures, 0, "page {n} after a failure"),
                    Err(Error::Io(e)) => {
                        assert_eq!(e.to_string(), "full");
                        failures += 1;
                    }
                    Err(Error::Misuse(Misuse::AfterError)) => assert_eq!(failures, 1),
                    Err(error) => panic!("{error}"),
                }
            }
            assert_eq!(failures, 1);
            assert_eq!(misuse(encoder.finish(Checksum::EMPTY)), Misuse::AfterError);
        }
    }
}
