//! File names of LTX files: `<first txid>-<last txid>.ltx`, 16 hex digits each, lower case only.

use std::fmt;
use std::str::FromStr;

use crate::{Header, ParseError, Txid};

/// The name of an LTX file, which says what transactions it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName {
    /// The first transaction in the file.
    pub min: Txid,
    /// The last transaction in the file.
    pub max: Txid,
}

impl FileName {
    /// The name for the file with this header.
    pub const fn of(header: &Header) -> Self {
        Self { min: header.min_txid, max: header.max_txid }
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}.ltx", self.min, self.max)
    }
}

impl FromStr for FileName {
    type Err = ParseError;

    /// Reads a name. No file has a first transaction of 0, nor one after the last.
    fn from_str(s: &str) -> Result<Self, ParseError> {
        let parse = || {
            let (min, max) = s.strip_suffix(".ltx")?.split_once('-')?;
            let name = Self { min: min.parse().ok()?, max: max.parse().ok()? };
            let lower = !s.bytes().any(|b| b.is_ascii_uppercase());
            (lower && !name.min.is_zero() && name.min <= name.max).then_some(name)
        };
        parse().ok_or_else(|| ParseError::new("LTX file name", "<first txid>-<last txid>.ltx", s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        let text = "00000000000000fe-0123456789abcdef.ltx";
        let name: FileName = text.parse().unwrap();
        assert_eq!((name.min.get(), name.max.get()), (254, 0x0123_4567_89ab_cdef));
        assert_eq!(name.to_string(), text);
    }

    #[test]
    fn near_misses_are_no_names() {
        for bad in [
            "",
            ".ltx",
            "-.ltx",
            "1-2.ltx",
            "0000000000000001-0000000000000002",
            "0000000000000001-0000000000000002.ltx.tmp",
            "0000000000000001-0000000000000002.LTX",
            "000000000000000A-000000000000000b.ltx",
            "0000000000000001_0000000000000002.ltx",
            "0000000000000002-0000000000000001.ltx",
            "0000000000000000-0000000000000001.ltx",
            "+000000000000001-0000000000000002.ltx",
            " 0000000000000001-0000000000000002.ltx",
            "0000000000000001-0000000000000002-0000000000000003.ltx",
        ] {
            assert!(bad.parse::<FileName>().is_err(), "{bad:?}");
        }
    }
}
