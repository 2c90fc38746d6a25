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
