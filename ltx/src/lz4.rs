//! The compressed page block: exactly one LZ4 frame.
//!
//! A frame is: magic `04 22 4D 18`, a descriptor of 3 to 15 bytes, blocks (size u32
//! little-endian with the top bit for "stored", data, checksum if the descriptor says so), size 0
//! as the end mark, and a checksum of the content if the descriptor says so.
//!
//! [`FrameDecoder`] decompresses and verifies the frame, but it does not tell the end of a frame
//! from the end of its input, and would go on to a following frame. So [`FrameBytes`] walks along
//! the block sizes and hands it the bytes of one frame only.

use std::io::{self, Read};

use lz4_flex::frame::FrameDecoder;

use crate::source::Source;
use crate::{Error, Result};

const MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];
const FLAG_BLOCK_CHECKSUM: u8 = 0x10;
const FLAG_CONTENT_SIZE: u8 = 0x08;
const FLAG_CONTENT_CHECKSUM: u8 = 0x04;
const FLAG_DICTIONARY: u8 = 0x01;
/// Magic and the longest descriptor.
const LONGEST_HEADER: usize = 19;
const PART: &str = "compressed pages";

/// Decompresses one LZ4 frame.
#[derive(Debug)]
pub(crate) struct Lz4Body<R: Read> {
    decoder: FrameDecoder<FrameBytes<R>>,
}

impl<R: Read> Lz4Body<R> {
    /// Reads the frame's header. The memory used depends on the block size that it states: 128 KiB
    /// as LiteFS writes, 12 MiB at most.
    pub(crate) fn new(source: Source<R>) -> Result<Self> {
        Ok(Self { decoder: FrameDecoder::new(FrameBytes::new(source)?) })
    }

    /// Fills `buf` with decompressed bytes.
    pub(crate) fn read_part(&mut self, buf: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.read(&mut buf[filled..])? {
                0 => return Err(self.damaged("the frame ends within the pages")),
                n => filled += n,
            }
        }
        Ok(())
    }

    /// Checks that the frame holds nothing more and is complete.
    pub(crate) fn expect_end(&mut self) -> Result<()> {
        if self.read(&mut [0])? != 0 {
            return Err(self.damaged("the frame goes on after the last page"));
        }
        if !self.decoder.get_ref().finished() {
            return Err(self.damaged("the frame has an empty block"));
        }
        Ok(())
    }

    pub(crate) fn source(&mut self) -> &mut Source<R> {
        &mut self.decoder.get_mut().source
    }

    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        let result = self.decoder.read(buf);
        let source = &self.decoder.get_ref().source;
        match result {
            Ok(n) if n > 0 || !source.ended() => Ok(n),
            Err(e) if e.get_ref().is_some_and(|e| e.is::<lz4_flex::frame::Error>()) => {
                Err(self.damaged(&e.to_string()))
            }
            Err(e) if !source.ended() => Err(Error::Io(e)),
            _ => Err(Error::Truncated { offset: source.offset(), part: PART }),
        }
    }

    fn damaged(&self, reason: &str) -> Error {
        damaged(&self.decoder.get_ref().source, reason)
    }
}

fn damaged<R: Read>(source: &Source<R>, reason: &str) -> Error {
    Error::Lz4 { offset: source.offset(), reason: reason.to_owned() }
}

/// The bytes of one LZ4 frame: a reader that ends where the frame does.
#[derive(Debug)]
struct FrameBytes<R> {
    source: Source<R>,
    block_checksums: bool,
    content_checksum: bool,
    /// Framing that was read from the source but not handed out yet.
    pending: [u8; LONGEST_HEADER],
    pending_start: usize,
    pending_end: usize,
    /// Bytes left of the current block.
    block_left: u64,
    end_seen: bool,
}

impl<R: Read> FrameBytes<R> {
    fn new(mut source: Source<R>) -> Result<Self> {
        let mut pending = [0; LONGEST_HEADER];
        source.read_part(&mut pending[..7], PART)?;
        if pending[..4] != MAGIC {
            return Err(damaged(&source, "the frame's magic number is missing"));
        }
        let flags = pending[4];
        let has = |flag: u8| flags & flag != 0;
        let len = 7
            + if has(FLAG_CONTENT_SIZE) { 8 } else { 0 }
            + if has(FLAG_DICTIONARY) { 4 } else { 0 };
        source.read_part(&mut pending[7..len], PART)?;
        Ok(Self {
            source,
            block_checksums: has(FLAG_BLOCK_CHECKSUM),
            content_checksum: has(FLAG_CONTENT_CHECKSUM),
            pending,
            pending_start: 0,
            pending_end: len,
            block_left: 0,
            end_seen: false,
        })
    }

    /// True if the whole frame was handed out.
    fn finished(&self) -> bool {
        self.end_seen && self.pending_start == self.pending_end
    }

    /// Reads the next block's size, or the end mark and what belongs to it.
    fn read_framing(&mut self) -> io::Result<()> {
        let mut size = [0; 4];
        self.source.read_exact(&mut size)?;
        self.pending[..4].copy_from_slice(&size);
        let mut len = 4;
        match u32::from_le_bytes(size) & 0x7fff_ffff {
            0 if size == [0; 4] => {
                self.end_seen = true;
                if self.content_checksum {
                    self.source.read_exact(&mut self.pending[4..8])?;
                    len = 8;
                }
            }
            size => self.block_left = u64::from(size) + if self.block_checksums { 4 } else { 0 },
        }
        (self.pending_start, self.pending_end) = (0, len);
        Ok(())
    }

    fn take_pending(&mut self, buf: &mut [u8]) -> usize {
        let n = buf.len().min(self.pending_end - self.pending_start);
        let start = self.pending_start;
        buf[..n].copy_from_slice(&self.pending[start..start + n]);
        self.pending_start += n;
        n
    }
}

impl<R: Read> Read for FrameBytes<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.pending_start == self.pending_end && self.block_left == 0 && !self.end_seen {
            self.read_framing()?;
        }
        if self.pending_start < self.pending_end {
            return Ok(self.take_pending(buf));
        }
        let n = buf.len().min(usize::try_from(self.block_left).unwrap_or(usize::MAX));
        let n = self.source.read(&mut buf[..n])?;
        self.block_left -= n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};

    use crate::{Encoder, Header, Pgno, verify};

    /// Splits a compressed file into header, content of its LZ4 frame, and trailer.
    fn parts(pages: u8) -> ([u8; 100], Vec<u8>, [u8; 16]) {
        let mut raw = [0; 100];
        raw[..4].copy_from_slice(b"LTX1");
        raw[7] = 1; // compressed
        (raw[10], raw[15], raw[23], raw[31], raw[40]) = (2, 200, 2, 2, 0x80);
        let header = Header::decode(&raw).unwrap();
        let mut encoder = Encoder::new(Vec::new(), Header { compressed: false, ..header }).unwrap();
        for n in 1..=pages {
            encoder.encode_page(Pgno::new(n.into()).unwrap(), &[n; 512]).unwrap();
        }
        let (bytes, _) = encoder.finish(crate::Checksum::EMPTY).unwrap();
        let content = bytes[100..bytes.len() - 16].to_vec();
        // The file checksum covers the flag, so take the trailer from a compressed file.
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        for n in 1..=pages {
            encoder.encode_page(Pgno::new(n.into()).unwrap(), &[n; 512]).unwrap();
        }
        let (bytes, trailer) = encoder.finish(crate::Checksum::EMPTY).unwrap();
        assert!(bytes.ends_with(&trailer.encode()));
        (raw, content, trailer.encode())
    }

    fn frame(info: FrameInfo, content: &[u8]) -> Vec<u8> {
        let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
        // In odd pieces, so that blocks do not end with pages.
        for piece in content.chunks(777) {
            encoder.write_all(piece).unwrap();
        }
        encoder.finish().unwrap()
    }

    #[test]
    fn any_legal_frame_options_are_read() {
        let (header, content, trailer) = parts(199);
        let sizes = [BlockSize::Max64KB, BlockSize::Max256KB, BlockSize::Max4MB];
        for (bits, block_size) in (0..16u8).flat_map(|bits| sizes.map(|size| (bits, size))) {
            let linked = if bits & 1 != 0 { BlockMode::Linked } else { BlockMode::Independent };
            let info = FrameInfo::new()
                .block_size(block_size)
                .block_mode(linked)
                .block_checksums(bits & 2 != 0)
                .content_checksum(bits & 4 != 0)
                .content_size((bits & 8 != 0).then_some(content.len() as u64));
            let file = [&header[..], &frame(info, &content), &trailer].concat();
            let summary = verify(&file[..]).unwrap_or_else(|e| panic!("{bits:b}: {e}"));
            assert_eq!(summary.pages, 199);
        }
    }

    fn refusal(frames: &[u8]) -> String {
        let (header, _, trailer) = parts(3);
        let file = [&header[..], frames, &trailer].concat();
        verify(&file[..]).unwrap_err().to_string()
    }

    #[test]
    fn only_one_whole_frame_is_read() {
        let info = || FrameInfo::new().block_size(BlockSize::Max64KB).content_checksum(true);
        let (_, content, _) = parts(3);
        let whole = frame(info(), &content);
        assert!(refusal(&frame(info(), &content[..1000])).contains("within the pages"));
        assert!(refusal(&frame(info(), &[&content[..], b"x"].concat())).contains("goes on"));
        // A second frame is what follows the first: not a trailer.
        assert!(refusal(&[&whole[..], &whole].concat()).contains("trailing bytes"));
        let (a, b) = content.split_at(700);
        let halves = [frame(info(), a), frame(info(), b)].concat();
        assert!(refusal(&halves).contains("within the pages"));
    }

    #[test]
    fn frame_without_its_end_mark_is_refused() {
        // Blocks without content must not pass for the end.
        let (_, content, _) = parts(3);
        let info = FrameInfo::new().block_size(BlockSize::Max64KB);
        let whole = frame(info, &content);
        let open = &whole[..whole.len() - 4];
        for empty_block in [&[0, 0, 0, 0x80][..], &[1, 0, 0, 0, 0]] {
            let error = refusal(&[open, empty_block].concat());
            assert!(error.contains("empty block"), "{error}");
        }
    }

    #[test]
    fn other_frame_kinds_are_refused() {
        // The legacy frame, a skippable frame, a frame with a dictionary.
        assert!(refusal(&[0x02, 0x21, 0x4c, 0x18, 0, 0, 0]).contains("magic number"));
        assert!(refusal(&[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]).contains("magic number"));
        let dictionary = [0x04, 0x22, 0x4d, 0x18, 0x61, 0x40, 1, 2, 3, 4];
        assert!(refusal(&dictionary).contains("LZ4 frame"));
    }
}
