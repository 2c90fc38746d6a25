//! Recognising files of LTX v2 and v3, which share v1's magic and header.
//!
//! Nothing in the file says its version. But their page blocks begin differently, in a way that
//! is looked at only after a file has failed as v1, in order to tell the user what it is.
//! v1 has `pgno u32 ‖ page`; v2 has `pgno ‖ LZ4 frame`; v3 has `pgno ‖ flags u16 ‖ …` with flags 1
//! and the size of an LZ4 block, or flags 0 and an LZ4 frame. Without pages, v2 and v3 have their
//! terminator (4 or 6 zero bytes) and then a page index of size 1: a zero byte and `1u64`.

use crate::{PageSize, Version};

const LZ4_MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];
const EMPTY_INDEX: [u8; 9] = [0, 0, 0, 0, 0, 0, 0, 0, 1];

/// Which other version the bytes after the header look like.
pub(crate) fn recognise(prefix: &[u8; 16], page_size: PageSize) -> Option<Version> {
    let has = |at: usize, bytes: &[u8]| prefix[at..at + bytes.len()] == *bytes;
    if has(0, &[0; 4]) {
        return if has(6, &EMPTY_INDEX) && has(4, &[0; 2]) {
            Some(Version::V3)
        } else if has(4, &EMPTY_INDEX) {
            Some(Version::V2)
        } else {
            None
        };
    }
    if has(4, &LZ4_MAGIC) {
        return Some(Version::V2);
    }
    let frame = has(4, &[0, 0]) && has(6, &LZ4_MAGIC);
    let block_size = u32::from_be_bytes([prefix[6], prefix[7], prefix[8], prefix[9]]);
    let largest = page_size.get() + page_size.get() / 255 + 16;
    let block = has(4, &[0, 1]) && (1..=largest).contains(&block_size);
    (frame || block).then_some(Version::V3)
}
