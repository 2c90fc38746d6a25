//! What commits need from other nodes.
//!
//! Whoever replicates a store says, before a commit, whether it may be made
//! ([`Replication::admit`]) and, when it is published, when it may be acknowledged
//! ([`Replication::confirm`]). A published transaction is streamed, and can be read; it cannot be
//! taken back any more. So if it is not confirmed, its outcome is unknown: that is
//! [`Error::Unconfirmed`].

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc;

use litefs_ltx::Pos;

use crate::db::Db;
use crate::db::writer::Passed;
use crate::{DbName, Error, Result};

/// Takes the word on one published transaction: `Err` says why nobody can tell whether it is kept.
pub type Answer = Box<dyn FnOnce(Result<(), String>) + Send>;

/// What commits need from other nodes.
pub trait Replication: Send + Sync + fmt::Debug {
    /// Whether a transaction may be committed now. Answers at once; asked before each commit.
    ///
    /// # Errors
    /// Why not, for the user whose write is refused.
    fn admit(&self, db: &DbName) -> Result<(), String>;

    /// Whether [`Replication::confirm`] may take long; always the same answer.
    fn waits(&self) -> bool;

    /// A transaction was published. Calls `answer` once it is as safe as asked for, or nobody can
    /// tell any more whether it will be: on any thread, at any time, also within this call.
    fn confirm(&self, db: &DbName, pos: Pos, answer: Answer);
}

/// A published transaction that may not be acknowledged before it is confirmed. It counts as past
/// the write gate. Dropping it asks nobody.
#[derive(Debug)]
#[must_use = "the transaction may not be acknowledged before it is confirmed"]
pub struct Unconfirmed {
    db: Arc<Db>,
    pos: Pos,
    _passed: Passed,
}

impl Unconfirmed {
    /// For a transaction that was just published; `None` if it may be acknowledged at once.
    pub(crate) fn new(db: &Arc<Db>, pos: Pos, passed: Passed) -> Option<Self> {
        db.shared.options.replication.as_ref()?;
        Some(Self { db: db.clone(), pos, _passed: passed.detach() })
    }

    /// The database.
    pub fn db(&self) -> &DbName {
        &self.db.name
    }

    /// Blocks until it may be acknowledged.
    ///
    /// # Errors
    /// `Unconfirmed`: it is committed here, and maybe lost to the cluster.
    pub fn wait(self) -> Result<Pos> {
        let (tell, told) = mpsc::sync_channel(1);
        // Fails only if nobody waits.
        self.then(move |outcome| drop(tell.send(outcome)));
        told.recv().expect("BUG: every transaction is answered for")
    }

    /// Calls `answer` when it may be acknowledged, on any thread, maybe at once; errors as
    /// [`Unconfirmed::wait`].
    pub fn then(self, answer: impl FnOnce(Result<Pos>) + Send + 'static) {
        let Some(replication) = self.db.shared.options.replication.clone() else {
            return answer(Ok(self.pos));
        };
        // If it is dropped without an answer, nobody can tell either.
        let mut waiting = Waiting { unconfirmed: self, answer: Some(Box::new(answer)) };
        let (name, pos) = (waiting.unconfirmed.db.name.clone(), waiting.unconfirmed.pos);
        replication.confirm(&name, pos, Box::new(move |confirmed| waiting.end(confirmed)));
    }

    fn outcome(&self, confirmed: Result<(), String>) -> Result<Pos> {
        let gate = &self.db.shared.gate;
        // Once more: waiting may have taken longer than the right to commit lasted.
        let (db, pos) = (self.db.name.clone(), self.pos);
        confirmed.map_err(|reason| Error::Unconfirmed { db, pos, reason })?;
        gate.check(&self.db.name).map_err(|error| unconfirmed(self.pos, error))?;
        Ok(self.pos)
    }
}

/// The right to commit has ended after the transaction was published.
pub(crate) fn unconfirmed(pos: Pos, refusal: Error) -> Error {
    match refusal {
        Error::ReadOnly { db, reason } => {
            let reason = format!("the right to commit has ended meanwhile ({reason})");
            Error::Unconfirmed { db, pos, reason }
        }
        other => other,
    }
}

/// Answers in any case.
struct Waiting {
    unconfirmed: Unconfirmed,
    answer: Option<Box<dyn FnOnce(Result<Pos>) + Send>>,
}

impl Waiting {
    fn end(&mut self, confirmed: Result<(), String>) {
        if let Some(answer) = self.answer.take() {
            answer(self.unconfirmed.outcome(confirmed));
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.end(Err("this node is shutting down".to_owned()));
    }
}
