//! The mark: up to which position the base is known to be durable.
//!
//! File `mark`, two slots of 4096 bytes that are written in turn; the valid one with the higher
//! sequence number counts:
//!
//! ```text
//! "LTFSMARK" | sequence u64 | generation u64 | txid u64 | checksum u64 | ceiling u64
//! | page size u32 | pages u32 | state u32 | 0 u32 | crc u64          (big-endian)
//! ```
//!
//! Invariants:
//! - the base holds the content at `txid`, but for pages that a fold up to `ceiling` may have
//!   overwritten with newer versions; all of those are in the log, which reaches at least
//!   `ceiling`;
//! - segments of another generation than the mark's do not count;
//! - state 1 means that `base.new` and `checksums.new` are whole and durable, and that the step
//!   from "renamed or not" to "renamed" is to be finished (see `install.rs`).

use std::path::Path;

use litefs_ltx::{Checksum, Crc64, PageSize, Pos, Txid};

use super::frame::u64_at;
use crate::error::IoContext;
use crate::{OpenMode, Result, Storage};

const MAGIC: &[u8; 8] = b"LTFSMARK";
const SLOT_LEN: u64 = 4096;
const USED_LEN: usize = 72;

/// One slot's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Counts the slots written.
    pub sequence: u64,
    /// Counts the contents installed whole: by import or by a snapshot from a peer.
    pub generation: u64,
    /// The position that the base holds.
    pub pos: Pos,
    /// A fold may have written versions up to here to the base; at least `pos.txid`.
    pub ceiling: Txid,
    /// Page size of the base; `None` before the first transaction.
    pub page_size: Option<PageSize>,
    /// Size of the base in pages.
    pub pages: u32,
    /// True while an installation waits for its renames.
    pub installing: bool,
}

impl Mark {
    /// Of a database without any transaction.
    pub(crate) const NEW: Self = Self {
        sequence: 0,
        generation: 0,
        pos: Pos::ZERO,
        ceiling: Txid::ZERO,
        page_size: None,
        pages: 0,
        installing: false,
    };

    fn encode(&self) -> [u8; USED_LEN] {
        let mut out = [0; USED_LEN];
        out[..8].copy_from_slice(MAGIC);
        let words = [
            self.sequence,
            self.generation,
            self.pos.txid.get(),
            self.pos.checksum.get(),
            self.ceiling.get(),
        ];
        for (slot, word) in out[8..48].chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_be_bytes());
        }
        let page_size = self.page_size.map_or(0, PageSize::get);
        out[48..52].copy_from_slice(&page_size.to_be_bytes());
        out[52..56].copy_from_slice(&self.pages.to_be_bytes());
        out[56..60].copy_from_slice(&u32::from(self.installing).to_be_bytes());
        let crc = Crc64::of(&out[..64]).get();
        out[64..].copy_from_slice(&crc.to_be_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        if &bytes[..8] != MAGIC || Crc64::of(&bytes[..64]).get() != u64_at(bytes, 64) {
            return None;
        }
        let halves = (u64_at(bytes, 48), u64_at(bytes, 56));
        Some(Self {
            sequence: u64_at(bytes, 8),
            generation: u64_at(bytes, 16),
            pos: Pos::new(Txid::new(u64_at(bytes, 24)), Checksum::from_raw(u64_at(bytes, 32))),
            ceiling: Txid::new(u64_at(bytes, 40)),
            page_size: PageSize::new((halves.0 >> 32) as u32),
            pages: halves.0 as u32,
            installing: halves.1 >> 32 == 1,
        })
    }

    /// Reads the valid slot with the higher sequence number; `None` if the file is missing or no
    /// slot is valid.
    pub(crate) fn read(storage: &dyn Storage, dir: &Path) -> Result<Option<Self>> {
        let path = dir.join("mark");
        let file = match storage.open(&path, OpenMode::Read) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file.at("open", &path)?,
        };
        let mut newest: Option<Self> = None;
        for slot in 0..2 {
            let mut bytes = [0; USED_LEN];
            if file.read_at(&mut bytes, slot * SLOT_LEN).at("read", &path)? < USED_LEN {
                continue;
            }
            let mark = Self::decode(&bytes);
            newest = newest.into_iter().chain(mark).max_by_key(|mark| mark.sequence);
        }
        Ok(newest)
    }

    /// Makes this mark, in both slots with the next sequence numbers, the only one, whatever of the
    /// file is on disk: a slot that was read may be in the kernel's cache only, and then neither it
    /// nor the other one may be overwritten. Makes all names in `dir` durable.
    pub(crate) fn replace(&mut self, storage: &dyn Storage, dir: &Path) -> Result<()> {
        let (new, path) = (dir.join("mark.new"), dir.join("mark"));
        let first = Self { sequence: self.sequence + 1, ..*self };
        let second = Self { sequence: self.sequence + 2, ..*self };
        let mut bytes = vec![0; 2 * SLOT_LEN as usize];
        for mark in [first, second] {
            bytes[mark.slot() as usize..][..USED_LEN].copy_from_slice(&mark.encode());
        }
        let file = storage.open(&new, OpenMode::CreateNew).at("create", &new)?;
        file.write_all_at(&bytes, 0).at("write", &new)?;
        file.sync_data().at("sync", &new)?;
        storage.rename(&new, &path).at("rename", &new)?;
        storage.sync_dir(dir).at("sync", dir)?;
        *self = second;
        Ok(())
    }

    fn slot(&self) -> u64 {
        self.sequence % 2 * SLOT_LEN
    }

    /// Writes this mark with the next sequence number into the other slot and syncs it.
    pub(crate) fn write(&mut self, storage: &dyn Storage, dir: &Path) -> Result<()> {
        let path = dir.join("mark");
        let next = Self { sequence: self.sequence + 1, ..*self };
        let file = storage.open(&path, OpenMode::Create).at("open", &path)?;
        file.write_all_at(&next.encode(), next.slot()).at("write", &path)?;
        file.sync_data().at("sync", &path)?;
        *self = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Mark {
        Mark {
            sequence: 5,
            generation: 2,
            pos: Pos::new(Txid::new(9), Checksum::from_raw(1 << 63 | 7)),
            ceiling: Txid::new(12),
            page_size: PageSize::new(65536),
            pages: 3,
            installing: true,
        }
    }

    #[test]
    fn a_mark_survives_the_loss_of_the_slot_written_last() {
        let dir = tempfile::tempdir().unwrap();
        let storage = crate::OsStorage;
        let mut mark = sample();
        mark.write(&storage, dir.path()).unwrap();
        let before = mark;
        mark.ceiling = Txid::new(13);
        mark.write(&storage, dir.path()).unwrap();
        assert_eq!(Mark::read(&storage, dir.path()).unwrap(), Some(mark));

        let file = storage.open(&dir.path().join("mark"), OpenMode::ReadWrite).unwrap();
        file.write_all_at(&[0xff; 512], mark.sequence % 2 * SLOT_LEN).unwrap();
        assert_eq!(Mark::read(&storage, dir.path()).unwrap(), Some(before));
    }

    #[test]
    fn any_flipped_bit_of_a_slot_is_noticed() {
        for bit in 0..USED_LEN * 8 {
            let mut bytes = sample().encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Mark::decode(&bytes), None, "bit {bit}");
        }
    }
}
