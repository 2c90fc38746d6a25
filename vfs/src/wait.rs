//! Waiting for another writer without spinning and without starving.
//!
//! When a database is busy, SQLite's busy handler (`busy_timeout`) sleeps through the VFS and then
//! tries again. Sleeping blindly lets whoever is awake win every time. So the sleep of a thread
//! that was just told "busy" is a place in that database's queue of writers.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use litefs_store::Database;

thread_local! {
    /// The database for which this thread was last told "busy", and the VFS it belongs to. Not its
    /// name: stores in other directories may have one of that name.
    static BUSY: RefCell<Option<(usize, Database)>> = const { RefCell::new(None) };
}

/// Remembers that this thread found the database busy. `vfs` identifies the VFS.
pub(crate) fn found_busy(vfs: usize, db: &Database) {
    BUSY.with_borrow_mut(|busy| *busy = Some((vfs, db.clone())));
}

/// The database whose writer this thread waits for, if it is one of `vfs`.
pub(crate) fn take_busy(vfs: usize) -> Option<Database> {
    BUSY.with_borrow_mut(|busy| busy.take_if(|(owner, _)| *owner == vfs).map(|(_, db)| db))
}

/// Waits for a turn to write, at most as long as SQLite wants to sleep. Returns the microseconds.
pub(crate) fn for_writer(db: &Database, microseconds: i32) -> i32 {
    let start = Instant::now();
    db.wait_for_writer(Duration::from_micros(u64::try_from(microseconds).unwrap_or(0)));
    i32::try_from(start.elapsed().as_micros()).unwrap_or(i32::MAX)
}
