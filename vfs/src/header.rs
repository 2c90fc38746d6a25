//! The fields of SQLite's database header (page 1) that the VFS reads or hides.

use std::ops::Range;

// SQLite reads at most so much of page 1 before it knows the page size.
pub(crate) use litefs_store::header::{HEADER_LEN, page_count, page_size};

/// Change counter, size in pages and freelist: the bytes by which SQLite validates its page cache.
pub(crate) const TAG: Range<usize> = 24..40;

/// The schema cookie: SQLite parses the schema again when it finds another one.
const COOKIE: Range<usize> = 40..44;

/// The two file format versions (write, read).
const VERSIONS: Range<usize> = 18..20;
/// The version that makes SQLite open a WAL, and the one that does not.
const WAL: u8 = 2;
const ROLLBACK: u8 = 1;

/// True if page 1 says that the database is in WAL mode.
pub(crate) fn says_wal(page: &[u8]) -> bool {
    page[VERSIONS].contains(&WAL)
}

/// Presents a database in WAL mode as one that needs no WAL. `bytes` lie at `offset` in the file.
pub(crate) fn hide_wal(bytes: &mut [u8], offset: u64) {
    if offset >= VERSIONS.end as u64 {
        return;
    }
    let skip = offset as usize;
    for (at, byte) in bytes.iter_mut().enumerate().take(VERSIONS.end - skip) {
        if VERSIONS.contains(&(at + skip)) && *byte == WAL {
            *byte = ROLLBACK;
        }
    }
}

/// Makes page 1 say that the database is in WAL mode, as it did before [`hide_wal`].
pub(crate) fn restore_wal(page: &mut [u8]) {
    page[VERSIONS].fill(WAL);
}

/// Adds to the schema cookie, if the bytes (at `offset` in the file) have it.
pub(crate) fn shift_cookie(bytes: &mut [u8], offset: u64, by: u32) {
    let Some(skip) = usize::try_from(offset).ok().filter(|&skip| skip <= COOKIE.start) else {
        return;
    };
    let Some(field) = bytes.get_mut(COOKIE.start - skip..COOKIE.end - skip) else { return };
    let cookie = u32::from_be_bytes([field[0], field[1], field[2], field[3]]);
    field.copy_from_slice(&cookie.wrapping_add(by).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wal_versions_are_hidden_wherever_the_read_begins() {
        let mut page = [0u8; 512];
        page[18] = 2;
        page[19] = 2;
        page[20] = 2;
        for offset in 0..25u64 {
            let mut bytes = page[offset as usize..].to_vec();
            hide_wal(&mut bytes, offset);
            let mut expected = page;
            expected[18] = 1;
            expected[19] = 1;
            assert_eq!(bytes, expected[offset as usize..], "offset {offset}");
        }
        let mut short = [2u8; 1];
        hide_wal(&mut short, 18);
        assert_eq!(short, [1]);
    }

    #[test]
    fn the_cookie_is_shifted_only_where_it_lies() {
        let mut page = [0u8; 100];
        page[43] = 0xff;
        shift_cookie(&mut page, 0, 1);
        assert_eq!(page[40..44], [0, 0, 1, 0]);
        shift_cookie(&mut page, 0, 0u32.wrapping_sub(1));
        assert_eq!(page[40..44], [0, 0, 0, 0xff]);
        let before = page;
        shift_cookie(&mut page, 41, 1);
        shift_cookie(&mut page[..43], 0, 1);
        shift_cookie(&mut page, 4096, 1);
        assert_eq!(page, before);
        shift_cookie(&mut page[24..], 24, 1);
        assert_eq!(page[40..44], [0, 0, 1, 0]);
    }

    #[test]
    fn size_is_taken_only_from_a_header_that_keeps_it() {
        let mut header = [0u8; HEADER_LEN];
        header[28..32].copy_from_slice(&7u32.to_be_bytes());
        assert_eq!(page_count(&header), Some(7));
        header[27] = 1;
        assert_eq!(page_count(&header), None, "counter and version-valid-for differ");
        header[95] = 1;
        assert_eq!(page_count(&header), Some(7));
    }
}
