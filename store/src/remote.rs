//! Writing while another node is the primary.
//!
//! A store whose gate is closed can still write a database if somebody gives it a [`Remote`]: the
//! way to the primary's right to write. [`Database::reach`](crate::Database::reach) takes that
//! right, and waits until this node has everything up to there; a writer that begins then has it
//! until it ends, and its commits are made by the primary. They come back as records of a peer, as
//! all others do, and a commit is acknowledged when its own has come: there is one way into the
//! log of a replica.

use std::fmt::Debug;
use std::io::{self, Write};
use std::time::Duration;

use litefs_ltx::Pos;

use crate::db::Db;
use crate::db::commit::Draft;
use crate::db::overlay::Overlay;
use crate::{DbName, Error, Result};

/// How long a commit that the primary has made may take to come back.
pub(crate) const RETURN_TIMEOUT: Duration = Duration::from_secs(10);

/// The way to the primary's right to write.
pub trait Remote: Debug + Send + Sync {
    /// True if this node's clients may write any database through the primary. Never waits.
    fn offers_all(&self) -> bool;

    /// True if they may write this one. Never waits.
    fn offers(&self, db: &DbName) -> bool;

    /// Takes the primary's right to write, and keeps it for a moment for a writer to begin. Returns
    /// the primary's position, which stays the newest.
    ///
    /// # Errors
    /// See [`RemoteError`].
    fn reach(&self, db: &DbName, timeout: Duration) -> Result<Pos, RemoteError>;

    /// The right that was taken, for one writer; `None` if it was not, or somebody has it. Never
    /// waits.
    fn claim(&self, db: &DbName) -> Option<Box<dyn RemoteWriter>>;
}

/// The primary's right to write one database; dropping it gives it back.
pub trait RemoteWriter: Debug + Send + Sync {
    /// Has the primary commit a record that follows its newest position, durably.
    ///
    /// # Errors
    /// See [`RemoteError`].
    fn commit(&mut self, record: &RecordToSend<'_>) -> Result<(), RemoteError>;
}

/// Why something could not be done by the primary.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// Somebody else writes; try again.
    #[error("another node writes")]
    Busy,
    /// It cannot be done: nothing has changed.
    #[error("{0}")]
    Refused(String),
    /// The answer was lost: a commit may have been made or not.
    #[error("{0}")]
    Unconfirmed(String),
}

impl RemoteError {
    pub(crate) fn on(self, db: &DbName) -> Error {
        let db = db.clone();
        match self {
            Self::Busy => Error::Busy { db },
            Self::Refused(reason) => Error::ReadOnly { db, reason },
            Self::Unconfirmed(reason) => Error::UnknownOutcome { db, reason },
        }
    }
}

/// A record that the primary is to commit.
pub struct RecordToSend<'a> {
    pub(crate) db: &'a Db,
    pub(crate) draft: &'a Draft,
    pub(crate) overlay: &'a Overlay,
}

impl RecordToSend<'_> {
    /// The position to which it leads.
    pub fn pos(&self) -> Pos {
        Pos::new(self.draft.header.max_txid, self.draft.post)
    }

    /// Its length in bytes.
    pub fn encoded_len(&self) -> u64 {
        litefs_ltx::record_len(self.draft.header.page_size, self.draft.pages.len() as u64)
    }

    /// Writes it as LTX.
    ///
    /// # Errors
    /// Those of `out`; the temporary file's, in which a large transaction's pages are.
    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        self.db.encode(out, self.draft, self.overlay).map_err(io::Error::other)
    }
}
