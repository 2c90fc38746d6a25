//! Reading LTX files, strictly: what breaks any rule of the format is refused.
//!
//! After the header come the page frames, `pgno u32 ‖ page`, in ascending order; then a page
//! number of 0; then the trailer. In a compressed file, the frames and the 0 are the content of one
//! LZ4 frame.

use std::io::Read;

use crate::header::check_magic;
use crate::lz4::Lz4Body;
use crate::pages::PageSequence;
use crate::source::Source;
use crate::trailer::check_post_apply;
use crate::version::recognise;
use crate::{
    Checksum, Crc64, Error, FRAME_HEADER_LEN, Header, Misuse, PageSize, Pgno, Result, Trailer,
    page_checksum,
};

/// Read from the underlying reader at a time. Below the allocator's limit for giving memory back
/// to the system, so that decoding a small file costs no system call for it.
pub(crate) const BUFFER: usize = 64 << 10;

/// Reads one LTX file page by page, in constant memory.
///
/// Call [`next_page`](Self::next_page) until it returns `None`, then
/// [`finish`](Self::finish). **What the pages hold is not verified before `finish` has returned
/// `Ok`.**
#[derive(Debug)]
pub struct Decoder<R: Read> {
    header: Header,
    body: Body<R>,
    pages: PageSequence,
    file: Crc64,
    /// The checksum of the pages so far.
    content: Checksum,
    last_page_checksum: Checksum,
    /// Where the next frame begins, counted as if nothing were compressed.
    position: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Pages,
    Trailer,
    Failed,
}

/// What [`verify`] learned about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Its header.
    pub header: Header,
    /// Its trailer.
    pub trailer: Trailer,
    /// How many pages it holds.
    pub pages: u64,
}

impl<R: Read> Decoder<R> {
    /// Reads the header. Small reads are buffered here; the reader needs no buffer of its own.
    ///
    /// # Errors
    /// If the input has no valid header of LTX v1, or cannot be read.
    pub fn new(reader: R) -> Result<Self> {
        Self::with_buffer(reader, BUFFER)
    }

    pub(crate) fn with_buffer(reader: R, buffer: usize) -> Result<Self> {
        let mut source = Source::new(reader, buffer);
        let mut bytes = [0; Header::LEN];
        let (magic, rest) = bytes.split_at_mut(4);
        source.read_part(magic, "header")?;
        check_magic([magic[0], magic[1], magic[2], magic[3]])?;
        source.read_part(rest, "header")?;
        let header =
            Header::decode(&bytes).map_err(|e| name_version(e, &mut source, PageSize::LARGEST))?;
        let mut file = Crc64::new();
        file.update(&bytes);
        Ok(Self {
            header,
            body: if header.compressed {
                Body::Lz4(Box::new(Lz4Body::new(source)?))
            } else {
                Body::Raw(source)
            },
            pages: PageSequence::new(&header),
            file,
            content: Checksum::EMPTY,
            last_page_checksum: Checksum::NONE,
            position: Header::LEN as u64,
            state: State::Pages,
        })
    }

    /// The file's header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The checksum of the page that [`next_page`](Self::next_page) returned last;
    /// [`Checksum::NONE`] before the first.
    pub fn last_page_checksum(&self) -> Checksum {
        self.last_page_checksum
    }

    /// Reads the next page into `buf`, which must be as long as a page, and returns its number;
    /// `None` after the last.
    ///
    /// # Errors
    /// If the input is not valid or cannot be read; then every later call fails too.
    pub fn next_page(&mut self, buf: &mut [u8]) -> Result<Option<Pgno>> {
        let page_size = self.header.page_size;
        if buf.len() != page_size.len() {
            return Err(Misuse::PageBuffer { len: buf.len(), page_size }.into());
        }
        match self.state {
            State::Failed => Err(Misuse::AfterError.into()),
            State::Trailer => Ok(None),
            State::Pages => self.read_frame(buf).map_err(|e| self.fail(e)),
        }
    }

    /// Reads what is left, and checks the file as a whole: checksums, trailer, and that the input
    /// ends here.
    ///
    /// # Errors
    /// If the input is not valid or cannot be read, or an earlier call failed.
    pub fn finish(self) -> Result<Trailer> {
        Ok(self.summarise()?.trailer)
    }

    fn summarise(mut self) -> Result<Summary> {
        if self.state == State::Pages {
            let mut page = vec![0; self.header.page_size.len()];
            while self.next_page(&mut page)?.is_some() {}
        }
        if self.state == State::Failed {
            return Err(Misuse::AfterError.into());
        }
        let trailer = self.read_trailer().map_err(|e| self.fail(e))?;
        Ok(Summary { header: self.header, trailer, pages: self.page_count() })
    }

    fn page_count(&self) -> u64 {
        let frame = FRAME_HEADER_LEN + self.header.page_size.len();
        (self.position - Header::LEN as u64) / frame as u64
    }

    fn read_frame(&mut self, buf: &mut [u8]) -> Result<Option<Pgno>> {
        let mut pgno = [0; FRAME_HEADER_LEN];
        self.body.read_part(&mut pgno, "page number")?;
        self.file.update(&pgno);
        let Some(pgno) = Pgno::new(u32::from_be_bytes(pgno)) else {
            self.pages.finish().map_err(|violation| self.invalid(violation))?;
            self.body.expect_end_of_pages()?;
            self.state = State::Trailer;
            return Ok(None);
        };
        self.pages.push(pgno).map_err(|violation| self.invalid(violation))?;
        self.body.read_part(buf, "page")?;
        self.file.update(buf);
        self.last_page_checksum = page_checksum(pgno, buf);
        self.content = self.content.toggle(self.last_page_checksum);
        self.position += (FRAME_HEADER_LEN + buf.len()) as u64;
        Ok(Some(pgno))
    }

    fn read_trailer(&mut self) -> Result<Trailer> {
        let mut bytes = [0; Trailer::LEN];
        let source = self.body.source();
        source.read_part(&mut bytes, "trailer")?;
        source.expect_end()?;
        self.file.update(&bytes[..8]);
        let trailer = Trailer::decode(&bytes);
        check_sum("file", trailer.file, self.file.checksum())?;
        self.position += FRAME_HEADER_LEN as u64;
        check_post_apply(&self.header, trailer.post_apply)
            .map_err(|violation| self.invalid(violation))?;
        if self.header.is_snapshot() {
            check_sum("database", trailer.post_apply, self.content)?;
        }
        Ok(trailer)
    }

    fn invalid(&self, violation: crate::Violation) -> Error {
        Error::Invalid { offset: self.position, violation }
    }

    fn fail(&mut self, error: Error) -> Error {
        self.state = State::Failed;
        match &mut self.body {
            Body::Raw(source) => name_version(error, source, self.header.page_size),
            Body::Lz4(_) => error, // Other versions do not have this flag.
        }
    }
}

/// Reads a whole file and checks everything about it.
///
/// # Errors
/// If the input is not a valid LTX v1 file, or cannot be read.
pub fn verify(reader: impl Read) -> Result<Summary> {
    Decoder::new(reader)?.summarise()
}

fn check_sum(what: &'static str, stored: Checksum, computed: Checksum) -> Result<()> {
    if stored == computed {
        Ok(())
    } else {
        Err(Error::ChecksumMismatch { what, stored, computed })
    }
}

/// Replaces an error by one that names the version, if the file looks like v2 or v3.
fn name_version<R: Read>(error: Error, source: &mut Source<R>, page_size: PageSize) -> Error {
    if matches!(error, Error::Io(_) | Error::Misuse(_)) {
        return error;
    }
    match (recognise(&source.take_prefix(), page_size), error) {
        (Some(version), Error::UnsupportedVersion { as_v1, .. }) => {
            Error::UnsupportedVersion { version, as_v1 }
        }
        (Some(version), error) => {
            Error::UnsupportedVersion { version, as_v1: Some(Box::new(error)) }
        }
        (None, error) => error,
    }
}

/// Header and trailer are never compressed; the page block between them may be.
#[derive(Debug)]
enum Body<R: Read> {
    Raw(Source<R>),
    Lz4(Box<Lz4Body<R>>),
}

impl<R: Read> Body<R> {
    fn read_part(&mut self, buf: &mut [u8], part: &'static str) -> Result<()> {
        match self {
            Self::Raw(source) => source.read_part(buf, part),
            Self::Lz4(body) => body.read_part(buf),
        }
    }

    fn expect_end_of_pages(&mut self) -> Result<()> {
        match self {
            Self::Raw(_) => Ok(()),
            Self::Lz4(body) => body.expect_end(),
        }
    }

    fn source(&mut self) -> &mut Source<R> {
        match self {
            Self::Raw(source) => source,
            Self::Lz4(body) => body.source(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::{Encoder, PageSize, Txid};

    /// Two pages of 512 bytes.
    fn file(compressed: bool) -> Vec<u8> {
        let header = Header {
            compressed,
            page_size: PageSize::new(512).unwrap(),
            commit: 4,
            min_txid: Txid::new(2),
            max_txid: Txid::new(2),
            timestamp_ms: 0,
            pre_apply: Checksum::EMPTY,
            wal_offset: 0,
            wal_size: 0,
            wal_salt1: 0,
            wal_salt2: 0,
            node_id: 0,
        };
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        encoder.encode_page(Pgno::new(2).unwrap(), &[2; 512]).unwrap();
        encoder.encode_page(Pgno::new(4).unwrap(), &[4; 512]).unwrap();
        encoder.finish(Checksum::EMPTY).unwrap().0
    }

    /// Gives one byte at a time, between interruptions.
    struct Trickle<'a> {
        bytes: &'a [u8],
        interrupted: bool,
    }

    impl Read for Trickle<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.interrupted = !self.interrupted;
            if self.interrupted {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let n = buf.len().min(1);
            self.bytes.read(&mut buf[..n])
        }
    }

    #[test]
    fn input_may_come_in_any_pieces() {
        for compressed in [false, true] {
            let bytes = file(compressed);
            let trickle = Trickle { bytes: &bytes, interrupted: false };
            assert_eq!(verify(trickle).unwrap(), verify(&bytes[..]).unwrap());
        }
    }

    /// Gives bytes, then an error.
    struct Broken<'a>(&'a [u8]);

    impl Read for Broken<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buf)? {
                0 => Err(io::Error::other("disk on fire")),
                n => Ok(n),
            }
        }
    }

    #[test]
    fn failing_reader_is_not_taken_for_a_bad_file() {
        for bytes in [file(false), file(true)] {
            for len in 0..=bytes.len() {
                let error = verify(Broken(&bytes[..len])).unwrap_err();
                assert!(matches!(&error, Error::Io(e) if e.to_string() == "disk on fire"), "{len}");
            }
        }
    }

    #[test]
    fn page_checksum_is_that_of_the_last_page() {
        let bytes = file(false);
        let mut decoder = Decoder::new(&bytes[..]).unwrap();
        assert!(decoder.last_page_checksum().is_none());
        let mut page = [0; 512];
        while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
            assert_eq!(page, [pgno.get() as u8; 512]);
            assert_eq!(decoder.last_page_checksum(), page_checksum(pgno, &page));
        }
        assert!(decoder.next_page(&mut page).unwrap().is_none());
        decoder.finish().unwrap();
    }

    #[test]
    fn finish_reads_what_is_left() {
        for bytes in [file(false), file(true)] {
            let mut decoder = Decoder::new(&bytes[..]).unwrap();
            decoder.next_page(&mut [0; 512]).unwrap();
            decoder.finish().unwrap();
            let mut damaged = bytes.clone();
            let last = damaged.len() - 1;
            damaged[last] ^= 1;
            let mut decoder = Decoder::new(&damaged[..]).unwrap();
            decoder.next_page(&mut [0; 512]).unwrap();
            assert!(decoder.finish().is_err());
        }
    }

    #[test]
    fn failed_decoder_does_not_recover() {
        let mut bytes = file(false);
        bytes[616 + 3] = 1; // Page 4 becomes page 1, after page 2.
        let mut decoder = Decoder::new(&bytes[..]).unwrap();
        let mut page = [0; 512];
        decoder.next_page(&mut page).unwrap();
        assert!(matches!(decoder.next_page(&mut page), Err(Error::Invalid { offset: 616, .. })));
        let again = decoder.next_page(&mut page);
        assert!(matches!(again, Err(Error::Misuse(Misuse::AfterError))));
        assert!(matches!(decoder.finish(), Err(Error::Misuse(Misuse::AfterError))));
    }

    #[test]
    fn wrong_page_buffer_is_the_callers_mistake() {
        let bytes = file(false);
        let mut decoder = Decoder::new(&bytes[..]).unwrap();
        for len in [0, 511, 1024] {
            let result = decoder.next_page(&mut vec![0; len]);
            assert!(matches!(result, Err(Error::Misuse(Misuse::PageBuffer { .. }))));
        }
        decoder.finish().unwrap();
    }
}
