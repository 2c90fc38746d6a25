//! Where a request is answered: on the thread that takes them all, or on another.

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
    /// `waits`: for the disk, or somebody who does.
    pub(crate) fn of(db: &MountedDb, waits: bool) -> Self {
        let busy = db.lane.is_busy();
        if !waits && !busy {
            return Self::Little;
        }
        let short = !busy && db.commits_little() && !db.is_remote();
        Self::MayWait(Some(Wait { lane: db.lane.clone(), short }))
    }
}
