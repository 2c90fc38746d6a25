//! What can go wrong in the store, said so that a user knows what, where and what to do.

use std::io;
use std::path::PathBuf;

use litefs_ltx::Pos;

use crate::DbName;

/// Short for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a failed call means to the caller; the text of [`Error`] says the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Another writer holds the database.
    Busy,
    /// The snapshot is not the newest any more, so nothing can be written from it.
    StaleSnapshot,
    /// Not writable here and now: a replica, the lease is lost, or a failed sync poisoned it.
    ReadOnly,
    /// The disk is full, or a bound of ours on what it may hold is reached.
    Full,
    /// The operating system refused an I/O request.
    Io,
    /// The database is damaged; it is quarantined and served to nobody.
    Corrupt,
    /// There is no such database.
    NotFound,
    /// The caller's input is wrong: a name, a SQLite file, an argument.
    Invalid,
    /// A record or a position does not fit this database's history.
    Mismatch,
    /// The wanted part of the log is gone; only a snapshot helps.
    Gone,
    /// A transaction is committed here, but nobody can tell whether the cluster keeps it.
    Unconfirmed,
    /// Waited too long.
    Timeout,
    /// The store is closed.
    Closed,
}

/// Every error of the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an I/O request.
    #[error("cannot {op} {}: {source}", path.display())]
    Io {
        /// What was attempted, as a verb.
        op: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A name that no database can have.
    #[error("invalid database name {name:?}: {reason}")]
    InvalidName {
        /// The name, cut to 80 characters.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Another process owns the data directory.
    #[error("data directory {reason}")]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// Which process has it, and what to do.
        reason: String,
    },
    /// The directory is not one of ours, or is from a newer version.
    #[error("data directory {}: {reason}", dir.display())]
    BadDirectory {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A database failed a check and is served to nobody.
    #[error(
        "database {db} is quarantined: {reason}; it is repaired by a snapshot from a peer or by importing a copy"
    )]
    Quarantined {
        /// The database.
        db: DbName,
        /// Which check failed, and where.
        reason: String,
    },
    /// A failed sync made the database read-only.
    #[error("database {db} is read-only until it is reopened: {reason}")]
    Poisoned {
        /// The database.
        db: DbName,
        /// The sync that failed.
        reason: String,
    },
    /// Commits are not allowed on this node now.
    #[error("attempt to write database {db}, which is read-only here: {reason}")]
    ReadOnly {
        /// The database.
        db: DbName,
        /// Why, and who the primary is if known.
        reason: String,
    },
    /// Another writer holds the database.
    #[error("database {db} is locked by another writer")]
    Busy {
        /// The database.
        db: DbName,
    },
    /// The snapshot is not the newest any more.
    #[error("database {db} has changed since this transaction began to read it")]
    StaleSnapshot {
        /// The database.
        db: DbName,
    },
    /// There is no such database.
    #[error("no database named {name}")]
    NotFound {
        /// The name.
        name: String,
    },
    /// Bytes offered for import are not a SQLite database that can be taken.
    #[error("cannot import into {db}: {reason}")]
    NotSqlite {
        /// The database that was to be replaced.
        db: DbName,
        /// What is wrong with the bytes.
        reason: String,
    },
    /// A call that the contract does not allow.
    #[error("invalid call on database {db}: {reason}")]
    Invalid {
        /// The database.
        db: DbName,
        /// What is wrong with it.
        reason: String,
    },
    /// A record from a peer that does not decode.
    #[error("record for database {db} is damaged: {source}")]
    BadRecord {
        /// The database.
        db: DbName,
        /// What the codec says.
        source: litefs_ltx::Error,
    },
    /// A record or position that does not follow this database's history.
    #[error("database {db} is at {ours}: {reason}")]
    Mismatch {
        /// The database.
        db: DbName,
        /// Its position.
        ours: Pos,
        /// What does not fit.
        reason: String,
    },
    /// The log does not reach back that far.
    #[error("the log of database {db} does not hold what follows {after}: take a snapshot")]
    Gone {
        /// The database.
        db: DbName,
        /// The position from which records were wanted.
        after: Pos,
    },
    /// A position was not reached in time.
    #[error("database {db} is at {ours} and did not reach {wanted} in time")]
    Timeout {
        /// The database.
        db: DbName,
        /// Its position.
        ours: Pos,
        /// The transaction waited for.
        wanted: litefs_ltx::Txid,
    },
    /// The primary was asked for a commit, but whether it was made is not known.
    #[error("whether the commit to database {db} was made is not known: {reason}")]
    UnknownOutcome {
        /// The database.
        db: DbName,
        /// Whose answer is missing, and why.
        reason: String,
    },
    /// A transaction is in the log and published, and was not confirmed by replicas.
    #[error(
        "transaction {} of database {db} is committed on this node, but it is not known whether \
         the cluster keeps it: {reason}",
        pos.txid
    )]
    Unconfirmed {
        /// The database.
        db: DbName,
        /// The position that the transaction led to.
        pos: Pos,
        /// Why it is not known.
        reason: String,
    },
    /// So much of a database that the cluster did not keep is kept already that no more is.
    #[error(
        "database {db} has diverged from the cluster {kept} times, and all of it is still kept: \
         look at it (litefs-node ltx list --diverged), then remove what nobody needs \
         (litefs-node ltx forget --diverged NAME); until then the database stays as it is"
    )]
    TooManyDiverged {
        /// The database.
        db: DbName,
        /// How many divergences are kept.
        kept: usize,
    },
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

impl Error {
    /// What the error means to the caller.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } => io_kind(source),
            Self::InvalidName { .. }
            | Self::BadDirectory { .. }
            | Self::NotSqlite { .. }
            | Self::Invalid { .. } => ErrorKind::Invalid,
            Self::Locked { .. } | Self::Busy { .. } => ErrorKind::Busy,
            Self::Quarantined { .. } => ErrorKind::Corrupt,
            Self::Poisoned { .. } | Self::ReadOnly { .. } => ErrorKind::ReadOnly,
            Self::StaleSnapshot { .. } => ErrorKind::StaleSnapshot,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::BadRecord { .. } | Self::Mismatch { .. } => ErrorKind::Mismatch,
            Self::Gone { .. } => ErrorKind::Gone,
            Self::Unconfirmed { .. } | Self::UnknownOutcome { .. } => ErrorKind::Unconfirmed,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::TooManyDiverged { .. } => ErrorKind::Full,
            Self::Closed => ErrorKind::Closed,
        }
    }
}

fn io_kind(source: &io::Error) -> ErrorKind {
    if is_lack_of_space(source) { ErrorKind::Full } else { ErrorKind::Io }
}

/// True if space is all that was missing.
pub(crate) fn is_lack_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Gives an I/O result the verb and the path that make it an [`Error`].
pub(crate) trait IoContext<T> {
    /// `op` is a verb: "cannot {op} {path}".
    fn at(self, op: &'static str, path: &std::path::Path) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, op: &'static str, path: &std::path::Path) -> Result<T> {
        self.map_err(|source| Error::Io { op, path: path.to_path_buf(), source })
    }
}
