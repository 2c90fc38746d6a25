//! How records lie in a log segment.
//!
//! A segment file is a header and then frames, one a record, back to back:
//!
//! ```text
//! header, 64 bytes: "LTFSSEG1" | generation u64 | first txid u64 | synced txid u64 | salt u64
//!                   | 0 (16) | crc u64
//! frame:            "LTXF" | padding u32 | record length u64 | synced txid u64 | crc u64
//!                   | record | 0 (padding)
//! ```
//!
//! Integers are big-endian, as in LTX. The padding makes a frame end at a multiple of 8 in the
//! file, or of 512 (a sector) if it is to be synced at once: the next one can then be written past
//! the kernel's cache, which takes whole sectors. `synced txid` is the newest transaction known to
//! be on disk when the header or frame was written: recovery tells a lost tail from damage by it.
//! The crc of a frame is CRC-64/GO-ISO over the segment's salt and the frame's first 24 bytes, so
//! that frames of a file's earlier use, and frame look-alikes inside page data, do not verify.
//! Space after the last frame reads as zeros or as an earlier use's bytes.

use std::io;

use litefs_ltx::{Crc64, Header, Txid};

use crate::{File, SECTOR};

const SEGMENT_MAGIC: &[u8; 8] = b"LTFSSEG1";
const FRAME_MAGIC: &[u8; 4] = b"LTXF";

/// Bytes of a segment's header.
pub(crate) const SEGMENT_HEADER_LEN: u64 = 64;
/// Bytes of a frame's header.
pub(crate) const FRAME_HEADER_LEN: u64 = 32;
/// Bytes of a frame's header and its record's header.
pub(crate) const HEADERS_LEN: usize = FRAME_HEADER_LEN as usize + Header::LEN;
/// Frames begin and end at multiples of this.
pub(crate) const ALIGN: u64 = 8;

/// What a frame will take, wherever it comes to lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FrameSize {
    /// Bytes of the record.
    pub record_len: u64,
    /// Where the frame's end may be: at multiples of this.
    align: u64,
}

impl FrameSize {
    /// Of a frame for a record of `record_len` bytes that is to be synced at once, or not.
    pub(crate) fn new(record_len: u64, synced: bool) -> Self {
        Self { record_len, align: if synced { SECTOR } else { ALIGN } }
    }

    /// Bytes of the frame if it begins at `offset`.
    pub(crate) fn len_at(&self, offset: u64) -> u64 {
        self.unpadded_end(offset).next_multiple_of(self.align) - offset
    }

    /// Bytes of the padding if the frame begins at `offset`.
    pub(crate) fn padding_at(&self, offset: u64) -> u32 {
        let end = self.unpadded_end(offset);
        (end.next_multiple_of(self.align) - end) as u32 // less than a sector
    }

    fn unpadded_end(&self, offset: u64) -> u64 {
        offset + FRAME_HEADER_LEN + self.record_len
    }
}

/// What a segment says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// Which installed content the records continue; see `mark.rs`.
    pub generation: u64,
    /// The first transaction in the segment.
    pub first: Txid,
    /// The newest transaction known to be on disk when the segment was begun.
    pub synced: Txid,
    /// Makes this use's frames differ from those of any other.
    pub salt: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER_LEN as usize] {
        let mut out = [0; SEGMENT_HEADER_LEN as usize];
        out[..8].copy_from_slice(SEGMENT_MAGIC);
        out[8..16].copy_from_slice(&self.generation.to_be_bytes());
        out[16..24].copy_from_slice(&self.first.get().to_be_bytes());
        out[24..32].copy_from_slice(&self.synced.get().to_be_bytes());
        out[32..40].copy_from_slice(&self.salt.to_be_bytes());
        let crc = Crc64::of(&out[..56]).get();
        out[56..].copy_from_slice(&crc.to_be_bytes());
        out
    }

    /// Reads the header of a segment; `None` if there is no whole one.
    pub(crate) fn read(file: &dyn File) -> io::Result<Option<Self>> {
        let mut bytes = [0; SEGMENT_HEADER_LEN as usize];
        let whole = file.read_at(&mut bytes, 0)? == bytes.len();
        Ok(if whole { Self::decode(&bytes) } else { None })
    }

    /// `None` if the bytes are not a whole header.
    pub(crate) fn decode(bytes: &[u8; SEGMENT_HEADER_LEN as usize]) -> Option<Self> {
        let sound =
            &bytes[..8] == SEGMENT_MAGIC && Crc64::of(&bytes[..56]).get() == u64_at(bytes, 56);
        sound.then(|| Self {
            generation: u64_at(bytes, 8),
            first: Txid::new(u64_at(bytes, 16)),
            synced: Txid::new(u64_at(bytes, 24)),
            salt: u64_at(bytes, 32),
        })
    }
}

/// What precedes a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    /// Bytes of the record.
    pub record_len: u64,
    /// Bytes of the padding.
    pub padding: u32,
    /// The newest transaction known to be on disk when the record was appended.
    pub synced: Txid,
}

impl FrameHeader {
    /// Bytes of the frame. The record's length must have been checked: any stands in a header.
    pub(crate) fn total_len(&self) -> u64 {
        FRAME_HEADER_LEN + self.record_len + u64::from(self.padding)
    }

    pub(crate) fn encode(&self, salt: u64) -> [u8; FRAME_HEADER_LEN as usize] {
        let mut out = [0; FRAME_HEADER_LEN as usize];
        out[..4].copy_from_slice(FRAME_MAGIC);
        out[4..8].copy_from_slice(&self.padding.to_be_bytes());
        out[8..16].copy_from_slice(&self.record_len.to_be_bytes());
        out[16..24].copy_from_slice(&self.synced.get().to_be_bytes());
        let crc = crc(salt, &out);
        out[24..].copy_from_slice(&crc.to_be_bytes());
        out
    }

    /// `None` if the bytes are not a frame header of the segment with this salt.
    pub(crate) fn decode(bytes: &[u8; FRAME_HEADER_LEN as usize], salt: u64) -> Option<Self> {
        let sound = &bytes[..4] == FRAME_MAGIC && crc(salt, bytes) == u64_at(bytes, 24);
        let padding = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let (record_len, synced) = (u64_at(bytes, 8), Txid::new(u64_at(bytes, 16)));
        sound.then_some(Self { record_len, padding, synced })
    }
}

/// Looks for frame headers in `bytes`, which begin at a multiple of [`ALIGN`] in a segment.
pub(crate) fn find_frames(bytes: &[u8], salt: u64) -> impl Iterator<Item = FrameHeader> + '_ {
    bytes
        .windows(FRAME_HEADER_LEN as usize)
        .step_by(ALIGN as usize)
        .filter(|window| &window[..4] == FRAME_MAGIC)
        .filter_map(move |window| FrameHeader::decode(window.try_into().ok()?, salt))
}

/// Looks for the headers of records in `bytes`, which begin at a multiple of [`ALIGN`] in a segment
/// of which no salt is known.
pub(crate) fn find_records(bytes: &[u8]) -> impl Iterator<Item = Header> + '_ {
    bytes
        .windows(HEADERS_LEN)
        .step_by(ALIGN as usize)
        .filter(|window| &window[..4] == FRAME_MAGIC)
        .filter_map(|window| {
            Header::decode(window[FRAME_HEADER_LEN as usize..].try_into().ok()?).ok()
        })
}

fn crc(salt: u64, frame: &[u8; FRAME_HEADER_LEN as usize]) -> u64 {
    let mut input = [0; 32];
    input[..8].copy_from_slice(&salt.to_be_bytes());
    input[8..].copy_from_slice(&frame[..24]);
    Crc64::of(&input).get()
}

/// The big-endian integer at `offset`, which must lie within `bytes`.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_be_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_of_another_use_of_the_file_does_not_verify() {
        let frame = FrameHeader { record_len: 120, padding: 8, synced: Txid::new(7) };
        let bytes = frame.encode(1);
        assert_eq!(FrameHeader::decode(&bytes, 1), Some(frame));
        assert_eq!(FrameHeader::decode(&bytes, 2), None);
    }

    #[test]
    fn any_flipped_bit_of_a_header_is_noticed() {
        let frame = FrameHeader { record_len: 120, padding: 8, synced: Txid::new(7) }.encode(1);
        let segment =
            SegmentHeader { generation: 1, first: Txid::new(8), synced: Txid::new(7), salt: 1 };
        for bit in 0..24 * 8 {
            let mut bad = frame;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FrameHeader::decode(&bad, 1), None, "frame bit {bit}");
        }
        for bit in 0..64 * 8 {
            let mut bad = segment.encode();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&bad), None, "segment bit {bit}");
        }
    }

    #[test]
    fn a_frame_that_is_synced_ends_with_a_sector_wherever_it_begins() {
        for record_len in [116, 4222, 4223, 8318] {
            for offset in (SEGMENT_HEADER_LEN..3 * SECTOR).step_by(ALIGN as usize) {
                for (synced, align) in [(false, ALIGN), (true, SECTOR)] {
                    let size = FrameSize::new(record_len, synced);
                    let padding = size.padding_at(offset);
                    let header = FrameHeader { record_len, padding, synced: Txid::ZERO };
                    assert_eq!(header.total_len(), size.len_at(offset));
                    assert_eq!((offset + size.len_at(offset)) % align, 0);
                    assert!(u64::from(padding) < align);
                }
            }
        }
    }

    #[test]
    fn frames_are_found_wherever_they_are_aligned() {
        let mut bytes = vec![0xaa; 1024];
        let frame = FrameHeader { record_len: 120, padding: 8, synced: Txid::new(7) };
        bytes[512..544].copy_from_slice(&frame.encode(9));
        assert_eq!(find_frames(&bytes, 9).collect::<Vec<_>>(), [frame]);
        assert_eq!(find_frames(&bytes, 8).count(), 0);
    }
}
