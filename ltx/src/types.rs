//! The small types that name things in LTX: transactions, pages, checksums, positions.
//!
//! Text forms follow LTX: a transaction id and a checksum are 16 hex digits, written in lower
//! case and read in either; a position is `<txid>/<checksum>`.

use std::fmt;
use std::num::NonZeroU32;
use std::ops::BitXor;
use std::str::FromStr;

/// Why a text is not a [`Txid`], [`Checksum`] or [`Pos`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {what} {text:?}: expected {expected}")]
pub struct ParseError {
    what: &'static str,
    expected: &'static str,
    text: String,
}

impl ParseError {
    pub(crate) fn new(what: &'static str, expected: &'static str, text: &str) -> Self {
        Self { what, expected, text: text.chars().take(80).collect() }
    }
}

/// Counts the committed transactions of one database from 1, without gaps. 0 means "none yet".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Txid(u64);

impl Txid {
    /// Before the first transaction.
    pub const ZERO: Self = Self(0);

    /// Wraps a transaction number; 0 means "none yet".
    pub const fn new(n: u64) -> Self {
        Self(n)
    }

    /// The number itself.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The transaction after this one.
    ///
    /// # Panics
    /// After 2^64 − 1 transactions, which no database reaches (584 years at one each nanosecond).
    pub const fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("BUG: transaction ids exhausted"))
    }

    /// True for "no transaction yet".
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Txid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Txid {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        parse_hex16(s).map(Self).ok_or_else(|| ParseError::new("transaction id", HEX16, s))
    }
}

/// A checksum of a page, of a file or of a whole database: CRC-64/GO-ISO with the top bit set.
///
/// The top bit makes every real checksum differ from 0, which means "none".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Checksum(u64);

impl Checksum {
    /// No checksum: before the first transaction, or not tracked.
    pub const NONE: Self = Self(0);
    /// The checksum of an empty database (after a drop): just the flag bit.
    pub const EMPTY: Self = Self(Self::FLAG);
    /// Set in every real checksum.
    pub const FLAG: u64 = 1 << 63;

    /// Wraps a value as it is; use [`Checksum::is_valid`] to check what came from outside.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The value itself, flag bit included.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// True if the flag bit is set, as in every real checksum.
    pub const fn is_valid(self) -> bool {
        self.0 & Self::FLAG != 0
    }

    /// True for "no checksum".
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Adds a page to a database checksum, or takes it out again (the two are the same).
    #[must_use]
    pub const fn toggle(self, page: Checksum) -> Self {
        Self((self.0 ^ page.0) | Self::FLAG)
    }
}

impl BitXor for Checksum {
    type Output = Self;

    fn bitxor(self, other: Self) -> Self {
        self.toggle(other)
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Checksum {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        parse_hex16(s).map(Self).ok_or_else(|| ParseError::new("checksum", HEX16, s))
    }
}

/// A position: names one exact content of a database. Zero before the first transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Pos {
    /// The last transaction that the content includes.
    pub txid: Txid,
    /// The database checksum after it.
    pub checksum: Checksum,
}

impl Pos {
    /// Before the first transaction.
    pub const ZERO: Self = Self { txid: Txid::ZERO, checksum: Checksum::NONE };

    /// Joins a transaction id and the database checksum after it.
    pub const fn new(txid: Txid, checksum: Checksum) -> Self {
        Self { txid, checksum }
    }

    /// True before the first transaction.
    pub const fn is_zero(self) -> bool {
        self.txid.is_zero()
    }

    /// The binary form: transaction id, then checksum, both big-endian.
    pub const fn to_bytes(self) -> [u8; 16] {
        ((self.txid.get() as u128) << 64 | self.checksum.get() as u128).to_be_bytes()
    }

    /// Reads the binary form.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        let both = u128::from_be_bytes(bytes);
        Self::new(Txid::new((both >> 64) as u64), Checksum::from_raw(both as u64))
    }
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.txid, self.checksum)
    }
}

impl FromStr for Pos {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        let parse = || {
            let (txid, checksum) = s.split_once('/')?;
            Some(Self::new(txid.parse().ok()?, checksum.parse().ok()?))
        };
        parse()
            .ok_or_else(|| ParseError::new("position", "16 hex digits, a slash, 16 hex digits", s))
    }
}

/// The number of a page, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pgno(NonZeroU32);

impl Pgno {
    /// Page 1, which holds the SQLite header.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// Wraps a page number; `None` for 0, which no page has.
    pub const fn new(n: u32) -> Option<Self> {
        match NonZeroU32::new(n) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }

    /// The number itself, at least 1.
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// The page that holds byte `offset` of a database file; `None` beyond page 2^32 − 1.
    pub fn at_offset(offset: u64, page_size: PageSize) -> Option<Self> {
        let index = offset / u64::from(page_size.get());
        u32::try_from(index).ok()?.checked_add(1).and_then(Self::new)
    }

    /// Where the page begins in a database file, in bytes.
    pub fn offset(self, page_size: PageSize) -> u64 {
        u64::from(self.get() - 1) * u64::from(page_size.get())
    }
}

impl fmt::Display for Pgno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The size of a database's pages: a power of two from 512 to 65536 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageSize(u32);

impl PageSize {
    /// The largest pages that SQLite has.
    pub const LARGEST: Self = Self(65536);

    /// Wraps a size in bytes; `None` if SQLite has no such page size.
    pub const fn new(bytes: u32) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= 512 && bytes <= 65536 {
            Some(Self(bytes))
        } else {
            None
        }
    }

    /// The size in bytes.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The size in bytes, for indexing.
    pub const fn len(self) -> usize {
        self.0 as usize
    }

    /// Always false: there is no empty page.
    pub const fn is_empty(self) -> bool {
        false
    }

    /// The page at byte 2^30, where SQLite keeps its locks: never stored, sent or checksummed.
    pub const fn lock_page(self) -> Pgno {
        match Pgno::new(0x4000_0000 / self.0 + 1) {
            Some(pgno) => pgno,
            None => unreachable!(),
        }
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

const HEX16: &str = "16 hex digits";

fn parse_hex16(s: &str) -> Option<u64> {
    let hex = s.len() == 16 && s.bytes().all(|b| b.is_ascii_hexdigit());
    if hex { u64::from_str_radix(s, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_round_trip_and_reject_near_misses() {
        let pos: Pos = "0000000000000001/AAAFC7D8d8bf0ce8".parse().unwrap();
        assert_eq!(pos.to_string(), "0000000000000001/aaafc7d8d8bf0ce8");
        for bad in
            ["", "1/2", "0000000000000001-aaafc7d8d8bf0ce8", "+000000000000001/aaafc7d8d8bf0ce8"]
        {
            assert!(bad.parse::<Pos>().is_err(), "{bad:?}");
        }
        assert!("+00000000000000f".parse::<Txid>().is_err());
    }

    #[test]
    fn position_has_its_transaction_first_in_binary() {
        let pos = Pos::new(Txid::new(0x0102), Checksum::from_raw(0x8000_0000_0000_00ff));
        let bytes = [0, 0, 0, 0, 0, 0, 1, 2, 0x80, 0, 0, 0, 0, 0, 0, 0xff];
        assert_eq!(pos.to_bytes(), bytes);
        assert_eq!(Pos::from_bytes(bytes), pos);
    }

    #[test]
    fn lock_page_is_the_one_after_a_gibibyte() {
        // From the reference implementation.
        for (size, lock) in [(512, 2_097_153), (4096, 262_145), (65536, 16_385)] {
            assert_eq!(PageSize::new(size).unwrap().lock_page().get(), lock);
        }
    }

    #[test]
    fn page_sizes_are_those_of_sqlite() {
        assert!(PageSize::new(256).is_none());
        assert!(PageSize::new(1000).is_none());
        assert!(PageSize::new(131_072).is_none());
    }
}
