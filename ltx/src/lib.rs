//! LTX, the transaction file format of LiteFS: encode, decode strictly, compact, verify.
//!
//! Bytes in, bytes out: this crate does no file or network access of its own.
//!
//! An LTX file holds one transaction, or several in a row, as the pages that it changed:
//!
//! ```text
//! header      100 bytes: which transactions, page size, size and checksum of the database
//! page block  (pgno u32 ‖ page)*, ascending, then 4 zero bytes; may be one compressed LZ4 frame
//! trailer     16 bytes: checksum of the database after it, checksum of the file
//! ```
//!
//! Integers are big-endian. This is v1, which LiteFS 0.5 writes; the version is not in the file, so
//! v2 and v3 (Litestream) begin alike. They are refused, by name as far as they can be told.
//!
//! Checksums are CRC-64/GO-ISO with the top bit set. A page's is over its number and content, the
//! database's is the XOR of its pages' (top bit set again), so that it can be kept up to date
//! page by page. A file applies to the database that has its pre-apply checksum and turns it into
//! the one with its post-apply checksum. A file that begins with transaction 1 is a snapshot: it
//! holds all pages, except the lock page, which is never stored.
#![forbid(unsafe_code)]

mod checksum;
mod compactor;
mod decoder;
mod encoder;
mod error;
mod header;
mod lz4;
mod name;
mod pages;
mod source;
mod time;
mod trailer;
mod types;
mod version;

pub use checksum::{Crc64, page_checksum};
pub use compactor::{CompactOptions, compact};
pub use decoder::{Decoder, Summary, verify};
pub use encoder::{Encoder, record_len};
pub use error::{CompactError, Error, Misuse, Result, Version, Violation};
pub use header::Header;
pub use name::FileName;
pub use time::format_timestamp;
pub use trailer::Trailer;
pub use types::{Checksum, PageSize, ParseError, Pgno, Pos, Txid};

/// The size in bytes of what precedes each page in an uncompressed file: its number.
pub const FRAME_HEADER_LEN: usize = 4;
