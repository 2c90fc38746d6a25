//! The trailer: the last 16 bytes of every LTX file, never compressed.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | post-apply checksum: of the database after this file; just the flag bit if deleted |
//! | 8 | 8 | file checksum: header, page frames, terminator (all uncompressed) and post-apply |

use crate::{Checksum, Header, Violation};

/// The trailer of an LTX file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// The checksum of the database after this file.
    pub post_apply: Checksum,
    /// The checksum of everything in the file before this field, uncompressed.
    pub file: Checksum,
}

impl Trailer {
    /// The size of an encoded trailer in bytes.
    pub const LEN: usize = 16;

    /// The trailer's bytes.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let both = u128::from(self.post_apply.get()) << 64 | u128::from(self.file.get());
        both.to_be_bytes()
    }

    /// Reads a trailer. Nothing is checked: the decoder does that.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let both = u128::from_be_bytes(*bytes);
        Self {
            post_apply: Checksum::from_raw((both >> 64) as u64),
            file: Checksum::from_raw(both as u64),
        }
    }
}

/// Checks the rules for a post-apply checksum that need no look at the pages.
pub(crate) fn check_post_apply(header: &Header, post: Checksum) -> Result<(), Violation> {
    if !post.is_valid() {
        return Err(Violation::PostApplyFormat(post));
    }
    if header.commit == 0 && post != Checksum::EMPTY {
        return Err(Violation::PostApplyOfDeletion(post));
    }
    Ok(())
}
