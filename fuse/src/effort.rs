//! Which thread answers a request.

use std::sync::Arc;

use crate::db::MountedDb;
use crate::pool::Lane;

/// What answering a request takes.
pub(crate) enum Effort {
    /// No disk.
    Little,
    /// The disk, or somebody who waits for it.
    MayWait(Option<Wait>),
}

/// What may be waited for.
pub(crate) struct Wait {
    pub lane: Arc<Lane>,
    /// No longer than a sync takes.
    pub short: bool,
}

impl Effort {
    /// What a request on a file of `db` takes; `waits`: it may have to wait by itself.
    pub(crate) fn of(db: &MountedDb, waits: bool) -> Self {
        let busy = db.lane.is_busy();
        if !waits && !busy {
            return Self::Little;
        }
        let short = !busy && db.commits_little() && !db.is_remote();
        Self::MayWait(Some(Wait { lane: db.lane.clone(), short }))
    }
}
