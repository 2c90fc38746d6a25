//! The fields of SQLite's database header that say how large a database is.

/// Bytes of the header, at the beginning of page 1.
pub const HEADER_LEN: usize = 100;

/// The page size that the header names, in bytes (not checked: it may be no valid one).
pub fn page_size(header: &[u8; HEADER_LEN]) -> u32 {
    match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65536,
        size => u32::from(size),
    }
}

/// The size in pages that the header names. `None` if it does not count: it does only if the change
/// counter is the one for which it was written, which SQLite keeps since 3.7.0.
pub fn page_count(header: &[u8; HEADER_LEN]) -> Option<u32> {
    let kept = header[24..28] == header[92..96];
    let count = u32::from_be_bytes([header[28], header[29], header[30], header[31]]);
    Some(count).filter(|&count| kept && count > 0)
}
