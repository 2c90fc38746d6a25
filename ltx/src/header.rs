//! The header: the first 100 bytes of every LTX file, never compressed. Integers are big-endian.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `LTX1` |
//! | 4 | 4 | flags: 1 = the page block is one LZ4 frame; all others are 0 |
//! | 8 | 4 | page size in bytes, 512 to 65536 |
//! | 12 | 4 | commit: pages of the database after this file; 0 = the database is deleted |
//! | 16 | 8 | first transaction, at least 1 |
//! | 24 | 8 | last transaction, at least the first |
//! | 32 | 8 | time in milliseconds since 1970 UTC, signed, 0 = unknown |
//! | 40 | 8 | pre-apply checksum: of the database before this file; 0 in snapshots |
//! | 48 | 8 | offset in the source WAL of the first frame, or 0 |
//! | 56 | 8 | bytes of the source WAL, or 0 |
//! | 64 | 4+4 | salts of the source WAL, or 0 |
//! | 72 | 8 | node id of the writer, or 0 |
//! | 80 | 20 | reserved: written as 0, ignored when read (the file checksum covers them) |

use crate::{Checksum, Error, Misuse, PageSize, Pos, Result, Txid, Version, Violation};

const MAGIC: [u8; 4] = *b"LTX1";
const MAGIC_V4: [u8; 4] = *b"LTX4";
const FLAG_LZ4: u32 = 1;
const FLAG_NO_CHECKSUM: u32 = 2;

/// The header of an LTX file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The pages are compressed, as one LZ4 frame.
    pub compressed: bool,
    /// The size of the database's pages.
    pub page_size: PageSize,
    /// Pages of the database after this file; 0 if this file deletes it.
    pub commit: u32,
    /// The first transaction in this file, at least 1. A file that begins with 1 is a snapshot.
    pub min_txid: Txid,
    /// The last transaction in this file, at least `min_txid`.
    pub max_txid: Txid,
    /// Milliseconds since 1970 UTC; 0 if unknown. Any value is legal.
    pub timestamp_ms: i64,
    /// The checksum of the database before this file; [`Checksum::NONE`] for a snapshot.
    pub pre_apply: Checksum,
    /// Where the transaction began in the WAL it came from, in bytes; 0 if it came from none.
    pub wal_offset: u64,
    /// The bytes of that WAL that it took up, at most 2^63 − 1; not 0 if `wal_offset` is not.
    pub wal_size: u64,
    /// The first salt of that WAL; 0 without a WAL.
    pub wal_salt1: u32,
    /// The second salt of that WAL; 0 without a WAL.
    pub wal_salt2: u32,
    /// The node that wrote the file; 0 if unknown.
    pub node_id: u64,
}

impl Header {
    /// The size of an encoded header in bytes.
    pub const LEN: usize = 100;

    /// Of a snapshot of `commit` pages that ends with the transaction `last`: uncompressed, from no
    /// WAL, of unknown time and writer. Others differ from it in what they state beyond that.
    pub const fn snapshot(page_size: PageSize, commit: u32, last: Txid) -> Self {
        Self {
            compressed: false,
            page_size,
            commit,
            min_txid: Txid::new(1),
            max_txid: last,
            timestamp_ms: 0,
            pre_apply: Checksum::NONE,
            wal_offset: 0,
            wal_size: 0,
            wal_salt1: 0,
            wal_salt2: 0,
            node_id: 0,
        }
    }

    /// The header's bytes. What they say is not checked: see [`Header::validate`].
    pub fn encode(&self) -> [u8; Self::LEN] {
        let flags = if self.compressed { FLAG_LZ4 } else { 0 };
        let mut out = [0; Self::LEN];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(4, &flags.to_be_bytes());
        put(8, &self.page_size.get().to_be_bytes());
        put(12, &self.commit.to_be_bytes());
        put(16, &self.min_txid.get().to_be_bytes());
        put(24, &self.max_txid.get().to_be_bytes());
        put(32, &self.timestamp_ms.to_be_bytes());
        put(40, &self.pre_apply.get().to_be_bytes());
        put(48, &self.wal_offset.to_be_bytes());
        put(56, &self.wal_size.to_be_bytes());
        put(64, &self.wal_salt1.to_be_bytes());
        put(68, &self.wal_salt2.to_be_bytes());
        put(72, &self.node_id.to_be_bytes());
        out
    }

    /// Reads and checks a header.
    ///
    /// # Errors
    /// [`Error::NotLtx`], [`Error::UnsupportedVersion`] or [`Error::InvalidHeader`].
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self> {
        check_magic(array(bytes, 0))?;
        let flags = u32_at(bytes, 4);
        if flags & FLAG_NO_CHECKSUM != 0 && flags & !(FLAG_NO_CHECKSUM | FLAG_LZ4) == 0 {
            return Err(Error::UnsupportedVersion { version: Version::NoChecksum, as_v1: None });
        }
        if flags & !FLAG_LZ4 != 0 {
            return Err(Error::InvalidHeader(Violation::Flags(flags)));
        }
        let page_size = u32_at(bytes, 8);
        let page_size =
            PageSize::new(page_size).ok_or(Error::InvalidHeader(Violation::PageSize(page_size)))?;
        let header = Self {
            compressed: flags & FLAG_LZ4 != 0,
            page_size,
            commit: u32_at(bytes, 12),
            min_txid: Txid::new(u64_at(bytes, 16)),
            max_txid: Txid::new(u64_at(bytes, 24)),
            timestamp_ms: i64::from_be_bytes(array(bytes, 32)),
            pre_apply: Checksum::from_raw(u64_at(bytes, 40)),
            wal_offset: u64_at(bytes, 48),
            wal_size: u64_at(bytes, 56),
            wal_salt1: u32_at(bytes, 64),
            wal_salt2: u32_at(bytes, 68),
            node_id: u64_at(bytes, 72),
        };
        header.check().map_err(Error::InvalidHeader)?;
        Ok(header)
    }

    /// Checks that a header to be written keeps the rules of the format.
    ///
    /// # Errors
    /// [`Error::Misuse`] with the first rule that it breaks.
    pub fn validate(&self) -> Result<()> {
        Ok(self.check().map_err(Misuse::from)?)
    }

    /// True if the file needs no database to apply to: it holds every page.
    pub const fn is_snapshot(&self) -> bool {
        self.min_txid.get() == 1
    }

    /// The position that the database must have before this file; zero for a snapshot.
    pub const fn pre_pos(&self) -> Pos {
        Pos::new(Txid::new(self.min_txid.get().saturating_sub(1)), self.pre_apply)
    }

    fn check(&self) -> std::result::Result<(), Violation> {
        let (min, max) = (self.min_txid, self.max_txid);
        if min.is_zero() {
            return Err(Violation::MinTxidZero);
        }
        if max.is_zero() {
            return Err(Violation::MaxTxidZero);
        }
        if min > max {
            return Err(Violation::TxidOrder { min, max });
        }
        self.check_wal_range()?;
        match self.pre_apply {
            pre if self.is_snapshot() && !pre.is_none() => Err(Violation::PreApplyOnSnapshot(pre)),
            pre if !self.is_snapshot() && !pre.is_valid() => Err(Violation::PreApplyFormat(pre)),
            _ => Ok(()),
        }
    }

    fn check_wal_range(&self) -> std::result::Result<(), Violation> {
        let (offset, size) = (self.wal_offset, self.wal_size);
        let salted = self.wal_salt1 != 0 || self.wal_salt2 != 0;
        if offset > i64::MAX as u64 {
            return Err(Violation::WalOffsetNegative(offset));
        }
        if size > i64::MAX as u64 {
            return Err(Violation::WalSizeNegative(size));
        }
        if salted && (offset == 0 || size == 0) {
            return Err(Violation::WalSaltWithoutRange);
        }
        match (offset, size) {
            (0, 0) => Ok(()),
            (0, _) => Err(Violation::WalSizeWithoutOffset),
            (_, 0) => Err(Violation::WalOffsetWithoutSize),
            _ => Ok(()),
        }
    }
}

/// Checks the first four bytes of a file.
pub(crate) fn check_magic(magic: [u8; 4]) -> Result<()> {
    match magic {
        MAGIC => Ok(()),
        MAGIC_V4 => Err(Error::UnsupportedVersion { version: Version::V4, as_v1: None }),
        _ => Err(Error::NotLtx { magic }),
    }
}

fn array<const N: usize>(bytes: &[u8; Header::LEN], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn u32_at(bytes: &[u8; Header::LEN], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

fn u64_at(bytes: &[u8; Header::LEN], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            compressed: false,
            page_size: PageSize::new(4096).unwrap(),
            commit: 3,
            min_txid: Txid::new(5),
            max_txid: Txid::new(6),
            timestamp_ms: -1,
            pre_apply: Checksum::EMPTY,
            wal_offset: 32,
            wal_size: 4120,
            wal_salt1: 1,
            wal_salt2: 2,
            node_id: 7,
        }
    }

    #[test]
    fn fields_lie_where_the_format_says() {
        let bytes = header().encode();
        assert_eq!(&bytes[..16], b"LTX1\0\0\0\0\0\0\x10\0\0\0\0\x03");
        assert_eq!(&bytes[16..32], &[0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6]);
        assert_eq!(&bytes[32..40], &[0xff; 8]);
        assert_eq!(&bytes[40..48], &[0x80, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&bytes[48..64], &[0, 0, 0, 0, 0, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0x10, 0x18]);
        assert_eq!(&bytes[64..80], &[0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 7]);
        assert_eq!(&bytes[80..], &[0; 20]);
        assert_eq!(Header::decode(&bytes).unwrap(), header());
        let compressed = Header { compressed: true, ..header() };
        assert_eq!(compressed.encode()[4..8], [0, 0, 0, 1]);
        assert_eq!(Header::decode(&compressed.encode()).unwrap(), compressed);
    }

    #[test]
    fn each_broken_rule_is_named_on_both_sides() {
        let good = header();
        let zero = Txid::ZERO;
        let cases = [
            (Header { min_txid: zero, ..good }, Violation::MinTxidZero),
            (Header { max_txid: zero, ..good }, Violation::MaxTxidZero),
            (
                Header { max_txid: Txid::new(4), ..good },
                Violation::TxidOrder { min: Txid::new(5), max: Txid::new(4) },
            ),
            (Header { wal_offset: 1 << 63, ..good }, Violation::WalOffsetNegative(1 << 63)),
            (Header { wal_size: 1 << 63, ..good }, Violation::WalSizeNegative(1 << 63)),
            (Header { wal_offset: 0, ..good }, Violation::WalSaltWithoutRange),
            (
                Header { wal_size: 0, wal_salt1: 0, wal_salt2: 0, ..good },
                Violation::WalOffsetWithoutSize,
            ),
            (
                Header { wal_offset: 0, wal_salt1: 0, wal_salt2: 0, ..good },
                Violation::WalSizeWithoutOffset,
            ),
            (
                Header { min_txid: Txid::new(1), ..good },
                Violation::PreApplyOnSnapshot(Checksum::EMPTY),
            ),
            (
                Header { pre_apply: Checksum::NONE, ..good },
                Violation::PreApplyFormat(Checksum::NONE),
            ),
            (
                Header { pre_apply: Checksum::from_raw(1), ..good },
                Violation::PreApplyFormat(Checksum::from_raw(1)),
            ),
        ];
        good.validate().unwrap();
        for (header, violation) in cases {
            let read = Header::decode(&header.encode());
            assert!(matches!(read, Err(Error::InvalidHeader(v)) if v == violation), "{violation}");
            let write = header.validate();
            assert!(
                matches!(write, Err(Error::Misuse(Misuse::Violation(v))) if v == violation),
                "{violation}"
            );
        }
    }

    #[test]
    fn foreign_magic_and_flags_are_named() {
        let with = |at: usize, byte: u8| {
            let mut bytes = header().encode();
            bytes[at] = byte;
            Header::decode(&bytes).unwrap_err().to_string()
        };
        assert!(with(3, b'4').contains("LTX v4"), "{}", with(3, b'4'));
        assert!(with(0, b'X').contains("not an LTX file"));
        assert!(with(7, 2).contains("Litestream"));
        assert!(with(7, 4).contains("unknown flags 0x00000004"));
        assert!(with(10, 0x11).contains("page size 4352"));
    }

    #[test]
    fn position_before_a_snapshot_is_zero() {
        let snapshot = Header { min_txid: Txid::new(1), pre_apply: Checksum::NONE, ..header() };
        assert_eq!(snapshot.pre_pos(), Pos::ZERO);
        assert_eq!(header().pre_pos(), Pos::new(Txid::new(4), Checksum::EMPTY));
    }
}
