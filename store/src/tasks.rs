//! Background work: syncing, folding and preparing segments, on a few threads for all databases.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::Durability;
use crate::db::Db;

/// Threads for all databases of a store.
const THREADS: usize = 4;
/// Log bytes above the mark that make a fold urgent.
const FOLD_BYTES: u64 = 16 << 20;
/// A quiet database is folded after this time, so that it holds no index in memory.
const FOLD_IDLE: Duration = Duration::from_secs(5);
/// Time before work that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What is to be done with a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Sync,
    Fold,
    Spare,
    /// Looks again at segments that may have become too old.
    Retain,
}

#[derive(Debug)]
struct Task {
    due: Instant,
    number: u64,
    kind: Kind,
    db: Weak<Db>,
}

impl PartialEq for Task {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Task {}
impl PartialOrd for Task {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Task {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

/// The queue, and the threads that work it off.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    inner: Arc<Inner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    enabled: bool,
}

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: BinaryHeap<Reverse<Task>>,
    last_number: u64,
    stopped: bool,
}

impl Tasks {
    /// Without `enabled`, nothing is ever done: a simulation calls for each piece of work itself.
    pub(crate) fn new(enabled: bool) -> Self {
        Self { enabled, ..Self::default() }
    }

    /// Has `kind` done for `db` after `delay`.
    pub(crate) fn queue(&self, db: &Arc<Db>, kind: Kind, delay: Duration) {
        if !self.enabled {
            return;
        }
        self.start_threads();
        let mut state = self.inner.state.lock();
        state.last_number += 1;
        let number = state.last_number;
        let task = Task { due: crate::clock::after(delay), number, kind, db: Arc::downgrade(db) };
        state.queue.push(Reverse(task));
        self.inner.changed.notify_one();
    }

    fn start_threads(&self) {
        let mut threads = self.threads.lock();
        if !threads.is_empty() || self.inner.state.lock().stopped {
            return;
        }
        for _ in 0..THREADS {
            let inner = self.inner.clone();
            let thread = thread::Builder::new().name("litefs-store".into());
            match thread.spawn(move || inner.work()) {
                Ok(thread) => threads.push(thread),
                Err(error) => tracing::error!(%error, "cannot start a background thread"),
            }
        }
    }

    /// Lets the threads finish what they do, and ends them.
    pub(crate) fn stop(&self) {
        self.inner.state.lock().stopped = true;
        self.inner.changed.notify_all();
        // Not joined under the lock: a thread may be queuing its next task, which takes it.
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            // The last owner of a store may be a callback on one of these threads.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl Inner {
    fn work(&self) {
        while let Some(task) = self.next() {
            if let Some(db) = task.db.upgrade() {
                db.do_work(task.kind);
            }
        }
    }

    /// Waits for the next task that is due; `None` once stopped.
    fn next(&self) -> Option<Task> {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return None;
            }
            match state.queue.peek().map(|Reverse(task)| task.due) {
                None => self.changed.wait(&mut state),
                Some(due) if due <= Instant::now() => {
                    return state.queue.pop().map(|Reverse(task)| task);
                }
                Some(due) => {
                    self.changed.wait_until(&mut state, due);
                }
            }
        }
    }
}

impl Db {
    /// After a commit: has done what it makes necessary.
    pub(crate) fn queue_work(self: &Arc<Self>, unfolded: u64, durability: Durability) {
        let tasks = &self.shared.tasks;
        if durability == Durability::Normal && !self.sync_queued.swap(true, Ordering::AcqRel) {
            tasks.queue(self, Kind::Sync, self.shared.options.sync_interval);
        }
        if unfolded < FOLD_BYTES {
            self.queue_fold(FOLD_IDLE);
        } else if !self.fold_urgent.swap(true, Ordering::AcqRel) {
            tasks.queue(self, Kind::Fold, Duration::ZERO);
        }
        if self.log.lock().wants_spare() && !self.spare_queued.swap(true, Ordering::AcqRel) {
            tasks.queue(self, Kind::Spare, Duration::ZERO);
        }
    }

    /// After a start: has done what the process before did not get to.
    pub(crate) fn queue_leftovers(self: &Arc<Self>) {
        let unfolded = self.unfolded();
        if unfolded > 0 {
            self.queue_work(unfolded, Durability::Normal);
        }
    }

    fn do_work(self: &Arc<Self>, kind: Kind) {
        let queued = match kind {
            Kind::Sync => &self.sync_queued,
            Kind::Fold => &self.fold_queued,
            Kind::Spare => &self.spare_queued,
            Kind::Retain => &self.retention_queued,
        };
        queued.store(false, Ordering::Release);
        let done = match kind {
            Kind::Sync => self.sync_log(),
            Kind::Spare => self.prepare_spare(),
            Kind::Fold | Kind::Retain => {
                let done = self.fold();
                // Only now: what is unfolded goes down at the end, and each commit until then would
                // ask for one more fold.
                self.fold_urgent.store(false, Ordering::Release);
                done
            }
        };
        match done {
            Ok(()) => self.queue_rest(kind),
            // A poisoned or quarantined database waits for its repair.
            Err(_) if self.check_well().is_err() => {}
            Err(error) => {
                tracing::warn!(db = %self.name, %error, ?kind, "background work failed; will retry");
                self.queue_fold(RETRY);
            }
        }
    }

    /// After a fold: what it left, because of a pinned snapshot or because it is too young to go.
    fn queue_rest(self: &Arc<Self>, kind: Kind) {
        if !matches!(kind, Kind::Fold | Kind::Retain) {
            return;
        }
        if self.unfolded() > 0 {
            self.queue_fold(FOLD_IDLE);
        }
        let more_than_one = self.log.lock().segments().nth(1).is_some();
        if more_than_one && !self.retention_queued.swap(true, Ordering::AcqRel) {
            let wait = self.shared.options.retention.max(FOLD_IDLE);
            self.shared.tasks.queue(self, Kind::Retain, wait);
        }
    }

    fn queue_fold(self: &Arc<Self>, delay: Duration) {
        if !self.fold_queued.swap(true, Ordering::AcqRel) {
            self.shared.tasks.queue(self, Kind::Fold, delay);
        }
    }

    fn unfolded(&self) -> u64 {
        self.content().published.read().unfolded
    }

    /// The oldest snapshot is gone, and a fold has been waiting for it.
    pub(crate) fn unblock_fold(self: &Arc<Self>) {
        let urgent = self.unfolded() >= FOLD_BYTES;
        if urgent && !self.fold_urgent.swap(true, Ordering::AcqRel) {
            self.shared.tasks.queue(self, Kind::Fold, Duration::ZERO);
        }
    }
}
