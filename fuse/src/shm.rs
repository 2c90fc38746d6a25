//! The head of a `-shm` file (the wal-index), in the byte order of the machine:
//! ```text
//!   0  header                                96  u32 nBackfill: frames copied into the database
//!   0    u32 version 3007000                100  u32 aReadMark[5]: last frame that readers of
//!   4    u32 unused                              READ0..READ4 see; 0xffffffff: not in use
//!   8    u32 iChange, another with each     120  8 bytes that are locked, never read
//!        transaction                        128  u32 nBackfillAttempted
//!  12    u8  isInit, 1                      132  u32 unused
//!  13    u8  bigEndCksum of the WAL         136  (page numbers and hash table follow)
//!  14    u16 page size, 1 is 65536
//!  16    u32 mxFrame: last valid frame of the WAL
//!  20    u32 nPage: database size in pages
//!  24    u32 aFrameCksum[2] of that frame
//!  32    u32 aSalt[2], as the bytes of the WAL's header
//!  40    u32 aCksum[2] over the 40 bytes before
//!  48  the header again
//! ```
//! Who changes the header writes the second copy first; who reads it takes it if both agree and
//! its checksum is right, else rebuilds the wal-index from the WAL.

use litefs_store::PageSize;

use crate::wal;

/// The length of the head, in bytes.
pub(crate) const HEAD_LEN: usize = 136;

const HEADER_LEN: usize = 48;
const VERSION: u32 = 3_007_000;
const UNUSED_MARK: u32 = u32::MAX;

/// The head for a WAL without frames over a database of `pages` pages. `change` must differ from
/// the one that was there, so that clients drop their page caches; `salts` from those of any
/// earlier WAL.
pub(crate) fn empty_header(
    change: u32,
    page_size: PageSize,
    pages: u32,
    salts: [u32; 2],
) -> [u8; HEAD_LEN] {
    let mut header = [0; HEADER_LEN];
    header[0..4].copy_from_slice(&VERSION.to_ne_bytes());
    header[8..12].copy_from_slice(&change.to_ne_bytes());
    header[12] = 1;
    header[13] = cfg!(target_endian = "big").into();
    header[14..16].copy_from_slice(&short_page_size(page_size).to_ne_bytes());
    header[20..24].copy_from_slice(&pages.to_ne_bytes());
    header[32..36].copy_from_slice(&salts[0].to_be_bytes());
    header[36..40].copy_from_slice(&salts[1].to_be_bytes());
    let sums = header_checksum(&header);
    header[40..48].copy_from_slice(&sums);

    let mut head = [0; HEAD_LEN];
    head[..48].copy_from_slice(&header);
    head[48..96].copy_from_slice(&header);
    for mark in head[104..120].chunks_exact_mut(4) {
        mark.copy_from_slice(&UNUSED_MARK.to_ne_bytes());
    }
    head
}

/// The last frame that is published (0: none); `None` if the header is not valid, so that the
/// next client rebuilds the wal-index from the WAL.
pub(crate) fn max_frame(head: &[u8]) -> Option<u32> {
    let (header, copy) = (head.get(..48)?, head.get(48..96)?);
    let valid = header == copy && header[12] != 0 && header[40..48] == header_checksum(header);
    let frame = u32::from_ne_bytes(header[16..20].try_into().ok()?);
    valid.then_some(frame)
}

fn header_checksum(header: &[u8]) -> [u8; 8] {
    let [a, b] = wal::checksum(wal::NATIVE, [0, 0], &header[..40]);
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&a.to_ne_bytes());
    bytes[4..].copy_from_slice(&b.to_ne_bytes());
    bytes
}

fn short_page_size(page_size: PageSize) -> u16 {
    u16::try_from(page_size.get()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn salts_of(shm: &[u8]) -> [u32; 2] {
        [32, 36].map(|at| u32::from_be_bytes(shm[at..at + 4].try_into().unwrap()))
    }

    /// A WAL database's shm while a connection is open.
    fn shm_after(page_size: u32, sql: &str, check: impl FnOnce(&[u8])) {
        let dir = tempfile::tempdir().unwrap();
        let db = Connection::open(dir.path().join("db")).unwrap();
        let setup = format!("PRAGMA page_size={page_size}; PRAGMA journal_mode=WAL");
        db.execute_batch(&setup).unwrap();
        db.execute_batch(sql).unwrap();
        check(&std::fs::read(dir.path().join("db-shm")).unwrap());
    }

    #[test]
    fn sqlites_own_empty_wal_has_the_same_head() {
        for page_size in [512, 4096, 65536] {
            let sql = "CREATE TABLE t(x); INSERT INTO t VALUES(1); PRAGMA wal_checkpoint(TRUNCATE)";
            shm_after(page_size, sql, |shm| {
                let size = PageSize::new(page_size).unwrap();
                let ours = empty_header(u32_at(shm, 8), size, u32_at(shm, 20), salts_of(shm));
                assert_eq!(u32_at(shm, 16), 0, "SQLite reset the WAL");
                assert_eq!(ours[..24], shm[..24], "up to the frame's checksum");
                assert_eq!(ours[32..40], shm[32..40], "salts");
                assert_eq!(ours[96..100], shm[96..100], "nBackfill");
                assert_eq!(ours[100..104], shm[100..104], "read mark 0");
                assert_eq!(ours[108..136], shm[108..136], "read marks 2 to 4, locks, attempted");
                // Of a frame that is not in the WAL any more: ignored, the next is frame 1.
                let mut theirs = shm[..48].to_vec();
                theirs[24..32].fill(0);
                assert_eq!(ours[40..48], header_checksum(&theirs));
                assert_eq!(max_frame(shm), Some(0));
                assert_eq!(max_frame(&ours), Some(0));
            });
        }
    }

    #[test]
    fn sqlite_uses_our_head_for_its_next_transactions() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let sql = "PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES(1);
                   PRAGMA wal_checkpoint(TRUNCATE)";
        let db = Connection::open(&path).unwrap();
        db.execute_batch(sql).unwrap();
        let shm_path = dir.path().join("db-shm");
        let shm = std::fs::read(&shm_path).unwrap();
        let size = PageSize::new(4096).unwrap();
        let ours = empty_header(u32_at(&shm, 8) + 7, size, u32_at(&shm, 20), [0x0102_0304, 5]);
        let file = std::fs::OpenOptions::new().write(true).open(&shm_path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &ours, 0).unwrap();

        db.execute_batch("INSERT INTO t VALUES(2)").unwrap();
        let other = Connection::open(&path).unwrap();
        let rows: i64 = other.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 2);
        let wal = std::fs::read(dir.path().join("db-wal")).unwrap();
        assert_eq!(wal[16..24], [1, 2, 3, 4, 0, 0, 0, 5], "our salts, not ones of a recovery");
        assert_eq!(max_frame(&std::fs::read(&shm_path).unwrap()), Some(1));
    }

    #[test]
    fn a_torn_or_empty_header_has_no_last_frame() {
        shm_after(4096, "CREATE TABLE t(x); INSERT INTO t VALUES(1)", |shm| {
            assert_eq!(max_frame(shm), Some(u32_at(shm, 16)));
            assert!(max_frame(shm) > Some(0));
            for at in 0..96 {
                let mut torn = shm[..HEAD_LEN].to_vec();
                torn[at] ^= 1;
                assert_eq!(max_frame(&torn), None, "byte {at}");
            }
            assert_eq!(max_frame(&shm[..95]), None);
        });
        assert_eq!(max_frame(&[0; HEAD_LEN]), None);
    }
}
