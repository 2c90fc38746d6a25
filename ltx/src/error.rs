//! What can go wrong with an LTX file, and who is at fault: the input ([`Error::Truncated`],
//! [`Error::Invalid`], …), the disk or network ([`Error::Io`]), or the caller
//! ([`Error::Misuse`], [`Error::Compact`]).

use std::io;

use crate::{Checksum, PageSize, Pgno, Txid};

/// Why an LTX file could not be read, written or compacted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The underlying reader or writer failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The input ends before the file does.
    #[error("truncated LTX file: it ends at byte {offset}, in the {part}")]
    Truncated {
        /// How many bytes there were.
        offset: u64,
        /// The part of the file that is incomplete.
        part: &'static str,
    },
    /// The input does not begin with `LTX1`.
    #[error("not an LTX file: it begins with {magic:02x?} instead of \"LTX1\"")]
    NotLtx {
        /// The first four bytes.
        magic: [u8; 4],
    },
    /// The input is LTX of another version than v1.
    #[error("this looks like {version}; only LTX v1, as LiteFS writes, is supported")]
    UnsupportedVersion {
        /// The version that the input looks like.
        version: Version,
        /// Why it cannot be v1; `None` if magic or flags say so.
        #[source]
        as_v1: Option<Box<Error>>,
    },
    /// The header breaks a rule of the format.
    #[error("invalid LTX header: {0}")]
    InvalidHeader(Violation),
    /// The part after the header breaks a rule of the format.
    #[error("invalid LTX file at byte {offset}: {violation}")]
    Invalid {
        /// Where the offending page or trailer begins, counted as if nothing were compressed.
        offset: u64,
        /// The broken rule.
        violation: Violation,
    },
    /// The compressed page block is not one sound LZ4 frame.
    #[error("damaged LZ4 frame in LTX file near byte {offset}: {reason}")]
    Lz4 {
        /// How far the compressed file was read.
        offset: u64,
        /// What the decompressor says.
        reason: String,
    },
    /// The content is not what was written.
    #[error("{what} checksum mismatch in LTX file: it says {stored}, its content has {computed}")]
    ChecksumMismatch {
        /// `"file"` for the checksum of all bytes, `"database"` for that of a snapshot's pages.
        what: &'static str,
        /// The checksum in the trailer.
        stored: Checksum,
        /// The checksum of what was read.
        computed: Checksum,
    },
    /// Something follows the trailer.
    #[error("trailing bytes in LTX file: it should end at byte {offset}")]
    TrailingBytes {
        /// Where the file should end.
        offset: u64,
    },
    /// The caller of the encoder or decoder made a mistake; the input is not at fault.
    #[error("cannot proceed with LTX file: {0}")]
    Misuse(#[from] Misuse),
    /// The inputs of a compaction do not fit together.
    #[error("cannot compact LTX files: {0}")]
    Compact(#[from] CompactError),
    /// One input of a compaction is bad.
    #[error("input {index}: {source}")]
    Input {
        /// The index of the input, from 0.
        index: usize,
        /// What is wrong with it.
        source: Box<Error>,
    },
}

/// A version of LTX that is recognised in order to name it, but not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The NoChecksum flag is set: v2, v3 or a v1 of a Litestream beta.
    NoChecksum,
    /// One LZ4 frame per page and a page index.
    V2,
    /// Page headers of six bytes and a page index.
    V3,
    /// The proposal for encrypted files.
    V4,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NoChecksum => "LTX v2 or v3 without database checksums, as Litestream writes",
            Self::V2 => "LTX v2, as test versions of Litestream 0.5 wrote",
            Self::V3 => "LTX v3, as Litestream writes",
            Self::V4 => "LTX v4 (magic LTX4, encrypted)",
        })
    }
}

/// A rule of the format that a file breaks, or would break if the encoder allowed it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Violation {
    #[error("unknown flags {0:#010x}")]
    Flags(u32),
    #[error("page size {0} is not a power of two from 512 to 65536")]
    PageSize(u32),
    #[error("minimum transaction id is 0")]
    MinTxidZero,
    #[error("maximum transaction id is 0")]
    MaxTxidZero,
    #[error("transaction ids out of order: {min} to {max}")]
    TxidOrder { min: Txid, max: Txid },
    #[error("negative WAL offset {0:#x}")]
    WalOffsetNegative(u64),
    #[error("negative WAL size {0:#x}")]
    WalSizeNegative(u64),
    #[error("WAL salts without a WAL range")]
    WalSaltWithoutRange,
    #[error("WAL offset without a WAL size")]
    WalOffsetWithoutSize,
    #[error("WAL size without a WAL offset")]
    WalSizeWithoutOffset,
    #[error("snapshot with pre-apply checksum {0}, which must be 0")]
    PreApplyOnSnapshot(Checksum),
    #[error("pre-apply checksum {0} lacks the flag bit")]
    PreApplyFormat(Checksum),
    #[error("post-apply checksum {0} lacks the flag bit")]
    PostApplyFormat(Checksum),
    #[error("deletion with post-apply checksum {0}, which must be 8000000000000000")]
    PostApplyOfDeletion(Checksum),
    #[error("page {pgno} is beyond the database's {commit} pages")]
    PageBeyondCommit { pgno: u32, commit: u32 },
    #[error("page {0} is the lock page, which is never stored")]
    LockPage(Pgno),
    #[error("page {pgno} after page {last}: pages must ascend")]
    PageOrder { pgno: u32, last: u32 },
    #[error("page {pgno} where a snapshot needs page {expected}")]
    SnapshotGap { pgno: u32, expected: u64 },
    #[error("snapshot ends after page {last} of {commit}")]
    SnapshotShort { last: u32, commit: u32 },
}

/// A mistake of the program that uses the encoder or decoder.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// What it asked to write is not valid LTX.
    #[error("{0}")]
    Violation(#[from] Violation),
    /// A page or page buffer has the wrong size.
    #[error("page buffer of {len} bytes for pages of {page_size}")]
    PageBuffer {
        /// The size given, in bytes.
        len: usize,
        /// The size needed, in bytes.
        page_size: PageSize,
    },
    /// The post-apply checksum given for a snapshot is not that of the pages written.
    #[error("post-apply checksum {given} given for a snapshot whose pages have {computed}")]
    PostApplyOfSnapshot {
        /// The checksum given.
        given: Checksum,
        /// The checksum of the pages.
        computed: Checksum,
    },
    /// An earlier call failed, and the file is not worth continuing.
    #[error("an earlier call failed")]
    AfterError,
}

/// Why the inputs of a compaction do not fit together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompactError {
    /// There is nothing to compact.
    #[error("no input")]
    NoInput,
    /// An input has other pages than the first.
    #[error("input {index} has pages of {found} bytes, the first has {first}")]
    PageSize {
        /// The index of the input, from 0.
        index: usize,
        /// The page size of the first input.
        first: PageSize,
        /// The page size of this input.
        found: PageSize,
    },
    /// An input does not begin with the transaction after the previous input's last.
    #[error("input {index} begins with transaction {min}, the one before it ends with {prev_max}")]
    NotContiguous {
        /// The index of the input, from 0.
        index: usize,
        /// The last transaction of the input before it.
        prev_max: Txid,
        /// The first transaction of this input.
        min: Txid,
    },
    /// An input does not begin with the database that the previous input leaves.
    #[error("input {index} applies to a database with {pre}, the one before it leaves {prev_post}")]
    BrokenChain {
        /// The index of the input, from 0.
        index: usize,
        /// The post-apply checksum of the input before it.
        prev_post: Checksum,
        /// The pre-apply checksum of this input.
        pre: Checksum,
    },
    /// The database grew over a page and no input since then has its content.
    #[error("page {pgno} is missing: the database grew over it, but no later input holds it")]
    MissingPage {
        /// The first such page.
        pgno: u64,
    },
}

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
