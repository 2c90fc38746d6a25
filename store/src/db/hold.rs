//! The right to write, held for a client of another node.

use std::fmt;
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use litefs_ltx::Pos;

use super::Db;
use super::writer::Passed;
use crate::{Durability, Error, Result, Unconfirmed, clock};

/// The right to write a database, held for somebody who writes elsewhere; dropping it gives it
/// back. Only on a node that may commit.
pub struct Hold {
    db: Arc<Db>,
    token: u64,
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("db", &self.db.name).finish_non_exhaustive()
    }
}

impl Hold {
    /// Waits for other writers, at most `timeout`.
    pub(crate) fn take(db: &Arc<Db>, timeout: Duration) -> Result<Self> {
        let deadline = clock::after(timeout);
        loop {
            db.check_well()?;
            db.shared.gate.check(&db.name)?;
            db.check_admitted()?;
            if let Some(token) = db.token.try_acquire() {
                return Ok(Self { db: db.clone(), token });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Busy { db: db.name.clone() });
            }
            db.token.wait(left);
        }
    }

    /// The newest position: nobody else moves it on.
    pub fn pos(&self) -> Pos {
        self.db.pos()
    }

    /// Commits a record that follows the newest position, durably, as this node's own commit.
    ///
    /// # Errors
    /// `Mismatch` if it is damaged or does not follow; `ReadOnly` if this node may not commit any
    /// more; `Full`, `Io`. Nothing has changed then, unless it is `Unconfirmed`.
    pub fn commit(&mut self, record: &mut dyn Read) -> Result<Pos> {
        let (draft, overlay) = self.db.read_record(record)?;
        let passed = Passed::enter(&self.db)?;
        self.db.begin_commit(self.token)?;
        let committed = self.db.append_foreign(draft, overlay, Durability::Full, || {
            // Once more: it may have taken longer than the right to commit lasted.
            self.db.shared.gate.check(&self.db.name)
        });
        self.db.token.end_commit(self.token);
        let pos = committed?;
        Unconfirmed::new(&self.db, pos, passed).map_or(Ok(pos), Unconfirmed::wait)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.db.token.release(self.token);
    }
}
