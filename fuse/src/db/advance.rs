//! The store moved without the mount: a peer's record, an import, a commit through the VFS, a
//! rewind. The record is in the log already; here it becomes visible.
//!
//! Files have one content for all who read them, so that can only happen while nobody is in a
//! transaction. New transactions are parked meanwhile: for 20 ms at first, so that readers that
//! overlap cannot put it off for ever; if that was not enough they are let in, and it is tried
//! again later, with up to a second. When nobody is left: the database file shows the newest
//! state, the kernel forgets the pages that are different in it, the WAL is empty, and the
//! wal-index says so, under a number that tells clients to drop their caches.
//!
//! All of this is done by one thread, the *mover*: the kernel may have to wait for answers to
//! requests before it can forget a page, so that no thread that serves them may tell it to.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use litefs_store::{DbName, Event, Pos, Subscription};

use super::access::FIRST_PATIENCE;
use super::main_file::Extent;
use super::{LockReply, MountedDb, OnShown, Shared};
use crate::shm;

/// The longest time that requests are parked.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

/// Between attempts, clients are left alone for this many times as long as they were parked.
const REST: u32 = 4;

thread_local! {
    /// This thread publishes a commit of the mount's own.
    static OWN_COMMIT: Cell<bool> = const { Cell::new(false) };
}

/// Publishes a commit that the mount's clients see already.
pub(super) fn announcing_own_commit<T>(publish: impl FnOnce() -> T) -> T {
    let _announcing = OwnCommit::begin();
    publish()
}

/// While it exists, this thread publishes a commit of the mount's own. Also a panic ends it: the
/// thread goes on to serve other requests.
struct OwnCommit;

impl OwnCommit {
    fn begin() -> Self {
        OWN_COMMIT.set(true);
        Self
    }
}

impl Drop for OwnCommit {
    fn drop(&mut self) {
        OWN_COMMIT.set(false);
    }
}

#[derive(Debug)]
enum Nudge {
    /// Look at this database.
    Look(DbName),
    /// The kernel must forget bytes of a file.
    Forget {
        inode: u64,
        extents: Vec<Extent>,
    },
    /// The kernel must forget what it knows of a name; then a lock is granted.
    ForgetName(String, Option<Answer>),
    Stop,
}

/// The answer to a lock request that is granted.
struct Answer(LockReply);

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Answer")
    }
}

/// The way to the mover's thread.
#[derive(Debug, Default)]
pub(super) struct Nudges(OnceLock<Sender<Nudge>>);

impl Nudges {
    fn send(&self, nudge: Nudge) {
        if let Some(sender) = self.0.get() {
            let _ = sender.send(nudge); // the mover is gone when the mount is
        }
    }
}

/// The removal of a file that the kernel waits for; see [`crate::kernel::Kernel`].
#[derive(Debug)]
pub(crate) struct Removal(Arc<Shared>);

impl Removal {
    pub(crate) fn begin(shared: &Arc<Shared>) -> Self {
        shared.kernel.begin_removal();
        Self(shared.clone())
    }
}

impl Drop for Removal {
    fn drop(&mut self) {
        for name in self.0.kernel.end_removal() {
            self.0.nudges.send(Nudge::ForgetName(name, None));
        }
    }
}

/// Keeps the mount up to date with its store, until it is dropped.
#[derive(Debug)]
pub(crate) struct Watcher {
    shared: Arc<Shared>,
    _subscription: Subscription,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts the mover; once for each `shared`.
    pub(crate) fn start(shared: &Arc<Shared>) -> std::io::Result<Self> {
        let (sender, nudges) = channel();
        let _ = shared.nudges.0.set(sender.clone());
        let subscription = shared.store.subscribe(move |event| {
            let (Event::Position { db, .. } | Event::Quarantined { db, .. }) = event else {
                return;
            };
            if !OWN_COMMIT.get() {
                let _ = sender.send(Nudge::Look(db.clone()));
            }
        });
        // What the store learned since they were mounted, nobody was told.
        shared.mounted.read().values().for_each(|db| db.nudge());
        let mover = Mover { shared: shared.clone(), due: BTreeMap::new() };
        let thread =
            std::thread::Builder::new().name("fuse mover".into()).spawn(|| mover.run(nudges))?;
        let shared = shared.clone();
        Ok(Self { shared, _subscription: subscription, thread: Some(thread) })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.nudges.send(Nudge::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // They know the mount, and the mount knows them.
        self.shared.mounted.write().clear();
    }
}

struct Mover {
    shared: Arc<Shared>,
    /// When to look at a database again.
    due: BTreeMap<DbName, Instant>,
}

impl Mover {
    fn run(mut self, nudges: Receiver<Nudge>) {
        loop {
            let next = self.due.values().min();
            let wait = next.map_or(Duration::from_secs(3600), |at| {
                at.saturating_duration_since(Instant::now())
            });
            match nudges.recv_timeout(wait) {
                Ok(Nudge::Look(name)) => self.look(name),
                Ok(Nudge::Forget { inode, extents }) => self.forget(inode, &extents),
                Ok(Nudge::ForgetName(name, then)) => {
                    self.shared.kernel.forget_name(&name);
                    if let Some(Answer(reply)) = then {
                        reply(Ok(()));
                    }
                }
                Ok(Nudge::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = Instant::now();
            let due: Vec<_> = self
                .due
                .iter()
                .filter(|(_, at)| **at <= now)
                .map(|(name, _)| name.clone())
                .collect();
            due.into_iter().for_each(|name| self.look(name));
        }
    }

    fn look(&mut self, name: DbName) {
        self.due.remove(&name);
        let mounted = self.shared.mounted.read().get(&name).cloned();
        let Some(db) = mounted else { return };
        if let Some(at) = db.attend(Instant::now()) {
            self.due.insert(name, at);
        }
    }

    fn forget(&self, inode: u64, extents: &[Extent]) {
        for &(offset, len) in extents {
            self.shared.kernel.invalidate(inode, offset, len);
        }
    }
}

impl MountedDb {
    /// Has the mover look at this database.
    pub(crate) fn nudge(&self) {
        self.shared.nudges.send(Nudge::Look(self.name().clone()));
    }

    /// Has the mover tell the kernel to forget bytes of the database file.
    pub(super) fn invalidate_later(&self, extents: Vec<Extent>) {
        self.shared.nudges.send(Nudge::Forget { inode: self.inodes.main, extents });
    }

    /// Has the mover tell the kernel to forget what it knows of one of the files' names.
    pub(super) fn forget_name_later(&self, suffix: &str) {
        self.shared.nudges.send(Nudge::ForgetName(format!("{}{suffix}", self.name()), None));
    }

    /// The same, and then answers a lock request.
    pub(super) fn forget_name_first(&self, suffix: &str, reply: LockReply) {
        let name = format!("{}{suffix}", self.name());
        self.shared.nudges.send(Nudge::ForgetName(name, Some(Answer(reply))));
    }

    /// Does what is due; says when to look again. On the mover's thread only.
    fn attend(&self, now: Instant) -> Option<Instant> {
        self.clean();
        if !self.is_behind() {
            self.unpark();
            return None;
        }
        let quiet = {
            let mut access = self.access.lock();
            let quiet = access.is_quiet();
            if quiet {
                access.park();
            }
            quiet
        };
        if quiet {
            self.show_newest();
            let mut access = self.access.lock();
            access.patience = FIRST_PATIENCE;
            access.not_before = None;
            drop(access);
            self.unpark();
            if let Some(OnShown(on_shown)) = self.shared.on_shown.get() {
                on_shown(self.name());
            }
            // The store may have moved again, without another nudge if that came before.
            return self.is_behind().then_some(now);
        }
        self.wait_for_quiet(now)
    }

    /// Parks requests for a while, or lets them in for a while.
    fn wait_for_quiet(&self, now: Instant) -> Option<Instant> {
        let mut access = self.access.lock();
        if let Some(until) = access.parked_until {
            if now < until {
                return Some(until);
            }
            let rest = now + access.patience * REST;
            access.patience = (access.patience * 2).min(LAST_PATIENCE);
            access.not_before = Some(rest);
            drop(access);
            self.unpark();
            return Some(rest);
        }
        if let Some(at) = access.not_before.filter(|at| now < *at) {
            drop(access);
            self.unpark(); // they were parked for something else, which is done
            return Some(at);
        }
        let until = now + access.patience;
        access.park();
        access.parked_until = Some(until);
        Some(until)
    }

    /// Removes what a client that went away has left in the kernel's cache.
    fn clean(&self) {
        let (stale, stale_index) = {
            let mut access = self.access.lock();
            (std::mem::take(&mut access.stale), std::mem::take(&mut access.stale_index))
        };
        for (offset, len) in stale {
            self.shared.kernel.invalidate(self.inodes.main, offset, len);
        }
        if stale_index {
            tracing::info!(db = %self.name(), "a client went away in a commit; the next one rebuilds the wal-index");
            self.write_shm_header(&[0; shm::HEAD_LEN]);
        }
    }

    /// The position that clients see.
    pub(crate) fn shown_position(&self) -> Pos {
        self.main.read().tip().pos()
    }

    fn is_behind(&self) -> bool {
        if self.is_removed() {
            return false;
        }
        let Ok(newest) = self.database.snapshot() else { return false };
        if !self.wal.lock().is_recoverable() {
            return true;
        }
        let main = self.main.read();
        let tip = main.tip();
        newest.pos() != tip.pos() || newest.generation() != tip.generation()
    }

    /// The mount's clients see the store's newest state. Nobody is in a transaction, and nobody
    /// begins one.
    fn show_newest(&self) {
        // A journal left by PERSIST or TRUNCATE would keep a replica's refusal from being clear.
        let had_journal = self.journal.lock().drop_leftover();
        let mut wal = self.wal.lock();
        let mut main = self.main.write();
        let had_pages = main.tip().page_count() > 0;
        let had_len = main.len();
        let extents = match main.advance(&self.database) {
            Ok(extents) => extents,
            Err(error) => {
                tracing::error!(db = %self.name(), %error, "cannot show the newest state");
                return;
            }
        };
        let had_wal = wal.len().is_some_and(|len| len > 0);
        wal.reset();
        let header = main.page_size().map(|page_size| {
            let change = self.change.fetch_add(1, Ordering::Relaxed);
            let random = litefs_store::random();
            let salts = [random as u32, (random >> 32) as u32];
            shm::empty_header(change, page_size, main.tip().page_count(), salts)
        });
        let has_pages = main.tip().page_count() > 0;
        let len = main.len();
        // SQLite calls a database corrupt that is shorter than its header says.
        let last = main.read(len.saturating_sub(1), 1).unwrap_or_default();
        drop(main);
        drop(wal);
        if len > had_len {
            self.shared.kernel.grow(self.inodes.main, len, &last);
        }
        for (offset, len) in extents {
            self.shared.kernel.invalidate(self.inodes.main, offset, len);
        }
        if had_wal {
            self.shared.kernel.invalidate(self.inodes.wal, 0, 0);
        }
        self.write_shm_header(&header.unwrap_or([0; shm::HEAD_LEN]));
        if had_journal {
            self.shared.kernel.forget_name(&format!("{}-journal", self.name()));
        }
        if had_pages != has_pages {
            for suffix in ["", "-pos", "-lock", "-journal", "-wal", "-shm"] {
                self.shared.kernel.forget_name(&format!("{}{suffix}", self.name()));
            }
        }
    }
}
