//! LTX, the transaction file format of LiteFS: encode, decode strictly, compact, verify.
//!
//! Bytes in, bytes out: this crate does no file or network access of its own.
#![forbid(unsafe_code)]

mod checksum;
mod types;

pub use checksum::{Crc64, page_checksum};
pub use types::{Checksum, PageSize, ParseError, Pgno, Pos, Txid};
