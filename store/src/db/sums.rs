//! The checksum table: file `checksums`, 8 bytes a page of the base, big-endian, page 1 first.
//!
//! It is written after the base and before the mark. A fold that was interrupted may leave newer
//! entries, or a table cut to a smaller size: only for pages whose newest versions are in the log.

use std::path::Path;

use litefs_ltx::{Checksum, Pgno};

use super::mark::Mark;
use super::recovery::Failure;
use crate::error::IoContext;
use crate::{File, OpenMode, Result, Storage};

const ENTRY: usize = 8;

/// Reads the table for the base that `mark` describes; what an interrupted fold cut off is `NONE`.
pub(crate) fn load(
    storage: &dyn Storage,
    dir: &Path,
    mark: &Mark,
) -> Result<Vec<Checksum>, Failure> {
    let mut sums = vec![Checksum::NONE; mark.pages as usize];
    if sums.is_empty() {
        return Ok(sums);
    }
    let path = dir.join("checksums");
    let file = storage.open(&path, OpenMode::Read).at("open", &path)?;
    let mut bytes = vec![0; (1 << 20).min(sums.len() * ENTRY)];
    let mut offset = 0;
    for part in sums.chunks_mut(bytes.len() / ENTRY) {
        let wanted = &mut bytes[..part.len() * ENTRY];
        let read = file.read_at(wanted, offset).at("read", &path)?;
        for (sum, entry) in part.iter_mut().zip(wanted[..read].chunks_exact(ENTRY)) {
            *sum = Checksum::from_raw(super::frame::u64_at(entry, 0));
        }
        offset += wanted.len() as u64;
    }
    Ok(sums)
}

/// Writes a whole table to an empty file. Not synced.
pub(crate) fn write_all(file: &dyn File, sums: &[Checksum]) -> std::io::Result<()> {
    let mut offset = 0;
    for part in sums.chunks(1 << 17) {
        let bytes: Vec<u8> = part.iter().flat_map(|sum| sum.get().to_be_bytes()).collect();
        file.write_all_at(&bytes, offset)?;
        offset += bytes.len() as u64;
    }
    Ok(())
}

/// Writes the entries of `pages` (ascending) and makes the table `len` pages long. Not synced.
pub(crate) fn update(file: &dyn File, pages: &[(Pgno, Checksum)], len: u32) -> std::io::Result<()> {
    for run in pages.chunk_by(|a, b| a.0.get() + 1 == b.0.get()) {
        let bytes: Vec<u8> = run.iter().flat_map(|(_, sum)| sum.get().to_be_bytes()).collect();
        file.write_all_at(&bytes, (run[0].0.get() as usize - 1) as u64 * ENTRY as u64)?;
    }
    file.set_len(u64::from(len) * ENTRY as u64)
}
