//! One database: its state in memory and the parts that work on it.

pub(crate) mod apply;
pub(crate) mod commit;
pub(crate) mod compacted;
pub(crate) mod cursor;
pub(crate) mod diverged;
pub(crate) mod fold;
pub(crate) mod frame;
pub(crate) mod hold;
pub(crate) mod import;
pub(crate) mod install;
pub(crate) mod log;
pub(crate) mod mark;
pub(crate) mod overlay;
pub(crate) mod points;
pub(crate) mod published;
pub(crate) mod recovery;
pub(crate) mod rewind;
pub(crate) mod snapshot;
pub(crate) mod sums;
pub(crate) mod token;
pub(crate) mod writer;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering, fence};
use std::sync::{Arc, Weak};
use std::time::Duration;

use litefs_ltx::{Pos, Txid};
use parking_lot::{Condvar, Mutex, RwLock};

use self::log::Log;
use self::mark::Mark;
use self::published::Published;
use self::recovery::Recovered;
use self::token::Token;
use crate::error::IoContext;
use crate::filecache::CachedFile;
use crate::shared::Shared;
use crate::timing::Counters;
use crate::{DbName, Error, Event, Result};

/// One line of content: positions that follow each other. An import, a snapshot from a peer or a
/// rewind begins another; readers of the old one keep it until they are done.
#[derive(Debug)]
pub(crate) struct Content {
    /// Differs for each content of this process.
    pub id: u64,
    pub base: CachedFile,
    pub published: RwLock<Published>,
    /// How many snapshots pin each transaction.
    pub pins: Mutex<BTreeMap<Txid, usize>>,
    /// Contents before a rewind, whose readers use the same base, each with the last transaction
    /// that it has in common with this one.
    older: Vec<(Weak<Content>, Txid)>,
}

impl Content {
    pub(crate) fn new(shared: &Shared, dir: &Path, published: Published) -> Self {
        let base = shared.files.file(dir.join("base"));
        let published = RwLock::new(published);
        let pins = Mutex::new(BTreeMap::new());
        Self { id: shared.next_id(), base, published, pins, older: Vec::new() }
    }

    /// What a rewind makes of `old`: they share the base.
    pub(crate) fn rewound(shared: &Shared, dir: &Path, old: &Arc<Self>, to: Published) -> Self {
        let common = to.newest.pos.txid;
        let mut content = Self::new(shared, dir, to);
        let inherited = old.older.iter().filter(|(content, _)| content.strong_count() > 0);
        let capped = inherited.map(|(content, txid)| (content.clone(), common.min(*txid)));
        content.older = capped.chain([(Arc::downgrade(old), common)]).collect();
        content
    }

    /// The transaction that no fold may pass: a reader needs the base without what comes after it.
    pub(crate) fn oldest_pin(&self) -> Option<Txid> {
        let first = |content: &Self| content.pins.lock().keys().next().copied();
        let older = self.older.iter().filter_map(|(content, common)| {
            first(content.upgrade()?.as_ref()).map(|pin| pin.min(*common))
        });
        older.chain(first(self)).min()
    }

    /// Keeps the base's file open for readers, before its name leads to another.
    pub(crate) fn keep_base(&self) -> Result<()> {
        match self.base.keep_open() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            kept => kept.at("open", &self.base.path()),
        }
    }
}

/// Whether a database is well.
#[derive(Debug, Default)]
struct Health {
    quarantined: Option<String>,
    poisoned: Option<String>,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Db {
    pub id: u64,
    pub name: DbName,
    pub dir: PathBuf,
    pub shared: Arc<Shared>,
    pub content: RwLock<Arc<Content>>,
    pub log: Mutex<Log>,
    pub token: Token,
    /// Held by the one fold, installation or rewind that is under way.
    pub folding: Mutex<()>,
    /// Held by the one import or snapshot that is being written aside.
    pub installing: Mutex<()>,
    /// True once the files that recovery found are durable; see [`Db::settle`].
    pub settled: Mutex<bool>,
    health: Mutex<Health>,
    /// False once quarantined or poisoned, so that the usual case needs no lock.
    well: AtomicBool,
    moved: Mutex<()>,
    moved_signal: Condvar,
    waiters: AtomicU64,
    pub commits: AtomicU64,
    pub folds: AtomicU64,
    /// Transactions that retention took off the log.
    pub retired: AtomicU64,
    /// How late the newest transaction was here, in ms by the wall clocks; 0 if it is our own.
    pub lag_ms: AtomicI64,
    pub counters: Counters,
    pub fold_queued: AtomicBool,
    pub fold_urgent: AtomicBool,
    pub spare_queued: AtomicBool,
    pub retention_queued: AtomicBool,
    /// True while a pinned snapshot holds back the fold.
    pub fold_blocked: AtomicBool,
    pub sync_queued: AtomicBool,
    /// True once a commit asked to be synced: the next segment is then filled with zeros ahead,
    /// since syncing into reserved but unwritten space costs twice as much.
    pub syncs_commits: AtomicBool,
}

impl Db {
    /// Opens the database in `dir`; one that fails a check comes back quarantined.
    pub(crate) fn open(shared: &Arc<Shared>, name: DbName, dir: PathBuf) -> Self {
        match recovery::recover(shared, &dir) {
            Ok(recovered) => Self::of(shared, name, dir, recovered),
            Err(failure) => {
                let segments = VecDeque::new();
                // The last known position, for those who look; nothing of it is served.
                let mark = Mark::read(shared.storage.as_ref(), &dir).ok().flatten();
                let published = Published::of_base(mark.unwrap_or(Mark::NEW), Vec::new());
                let db = Self::of(
                    shared,
                    name,
                    dir,
                    Recovered { published, segments, tail_clean: true },
                );
                db.quarantine(&db.content(), &failure.to_string());
                db
            }
        }
    }

    fn of(shared: &Arc<Shared>, name: DbName, dir: PathBuf, recovered: Recovered) -> Self {
        let Recovered { published, segments, tail_clean } = recovered;
        let last = published.newest.pos.txid;
        // What a scan read may be in the page cache of the kernel only: its durability is unknown.
        let synced = published.floor();
        let generation = published.mark.generation;
        let found = (segments, tail_clean);
        let log = Log::new(shared.clone(), &dir, generation, found, last, synced);
        let content = Arc::new(Content::new(shared, &dir, published));
        Self {
            id: shared.next_id(),
            name,
            dir,
            shared: shared.clone(),
            content: RwLock::new(content),
            log: Mutex::new(log),
            token: Token::default(),
            folding: Mutex::new(()),
            installing: Mutex::new(()),
            settled: Mutex::new(false),
            health: Mutex::new(Health::default()),
            well: AtomicBool::new(true),
            moved: Mutex::new(()),
            moved_signal: Condvar::new(),
            waiters: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            folds: AtomicU64::new(0),
            retired: AtomicU64::new(0),
            lag_ms: AtomicI64::new(0),
            counters: Counters::default(),
            fold_queued: AtomicBool::new(false),
            fold_urgent: AtomicBool::new(false),
            spare_queued: AtomicBool::new(false),
            retention_queued: AtomicBool::new(false),
            fold_blocked: AtomicBool::new(false),
            sync_queued: AtomicBool::new(false),
            syncs_commits: AtomicBool::new(false),
        }
    }

    /// The content that new readers get.
    pub(crate) fn content(&self) -> Arc<Content> {
        self.content.read().clone()
    }

    pub(crate) fn pos(&self) -> Pos {
        self.content.read().published.read().newest.pos
    }

    /// Before the first change since the start: creates what is missing, and makes durable what
    /// recovery found. A process that was killed may have left that in the kernel's cache only,
    /// and all that follows builds on it.
    pub(crate) fn settle(&self) -> Result<()> {
        let mut settled = self.settled.lock();
        if *settled {
            return Ok(());
        }
        let storage = self.shared.storage.as_ref();
        let log = self.dir.join("log");
        storage.create_dir_all(&log).at("create", &log)?;
        let mut mark = match self.check_well() {
            Ok(()) => self.content().published.read().mark,
            // The content is about to be replaced; what counts until then is on the disk.
            Err(_) => Mark::read(storage, &self.dir)?.unwrap_or(Mark::NEW),
        };
        mark.replace(storage, &self.dir)?;
        if mark.installing {
            mark = install::finish(storage, &self.dir, mark)?;
        }
        for dir in [log, self.shared.databases_dir()] {
            storage.sync_dir(&dir).at("sync", &dir)?;
        }
        self.content().published.write().mark = mark;
        *settled = true;
        Ok(())
    }

    /// Fails if the database is quarantined.
    pub(crate) fn check_readable(&self) -> Result<()> {
        self.shared.check_open()?;
        if self.well.load(Ordering::Acquire) {
            return Ok(());
        }
        match &self.health.lock().quarantined {
            Some(reason) => {
                Err(Error::Quarantined { db: self.name.clone(), reason: reason.clone() })
            }
            None => Ok(()),
        }
    }

    /// Fails with `ReadOnly` if the replicas are too far behind for another commit.
    pub(crate) fn check_admitted(&self) -> Result<()> {
        let Some(replication) = &self.shared.options.replication else { return Ok(()) };
        let refused = |reason| Error::ReadOnly { db: self.name.clone(), reason };
        replication.admit(&self.name).map_err(refused)
    }

    /// Begins the stretch of a commit in which a peer's record cannot take the right to write.
    fn begin_commit(&self, token: u64) -> Result<()> {
        if self.token.begin_commit(token) {
            return Ok(());
        }
        let reason = "records of another primary arrived meanwhile".to_owned();
        Err(Error::ReadOnly { db: self.name.clone(), reason })
    }

    /// Fails if the database is quarantined or poisoned.
    pub(crate) fn check_well(&self) -> Result<()> {
        self.check_readable()?;
        if self.well.load(Ordering::Acquire) {
            return Ok(());
        }
        match &self.health.lock().poisoned {
            Some(reason) => Err(Error::Poisoned { db: self.name.clone(), reason: reason.clone() }),
            None => Ok(()),
        }
    }

    pub(crate) fn quarantined(&self) -> Option<String> {
        self.health.lock().quarantined.clone()
    }

    pub(crate) fn poisoned(&self) -> Option<String> {
        self.health.lock().poisoned.clone()
    }

    /// Takes note of when a transaction that a peer committed at `timestamp_ms` is here.
    pub(crate) fn note_lag(&self, timestamp_ms: i64) {
        let late = self.shared.clock.wall_ms().saturating_sub(timestamp_ms);
        self.lag_ms.store(late.max(0), Ordering::Relaxed);
    }

    /// Stops serving the database because of damage in `content`, and says why; unless only readers
    /// of an older content are concerned.
    pub(crate) fn quarantine(&self, content: &Content, reason: &str) {
        {
            // Held until it is noted, so that no other content takes the blame.
            let current = self.content.read();
            let mut health = self.health.lock();
            if current.id != content.id || health.quarantined.is_some() {
                return;
            }
            health.quarantined = Some(reason.to_owned());
            self.well.store(false, Ordering::Release);
        }
        tracing::error!(db = %self.name, reason, "database quarantined");
        let reason = reason.to_owned();
        self.shared.emit(&Event::Quarantined { db: self.name.clone(), reason });
        self.announce_move();
    }

    /// Makes the database read-only after a sync failed.
    pub(crate) fn poison(&self, cause: &Error) {
        let mut health = self.health.lock();
        if health.poisoned.is_none() {
            tracing::error!(db = %self.name, %cause, "database is read-only until it is reopened");
            health.poisoned = Some(cause.to_string());
        }
        self.well.store(false, Ordering::Release);
    }

    /// Serves content that was installed whole, which makes the database well again.
    pub(crate) fn serve_installed(&self, content: Content) {
        let mut current = self.content.write();
        *current = Arc::new(content);
        *self.health.lock() = Health::default();
        self.well.store(true, Ordering::Release);
    }

    /// Syncs the log without holding it meanwhile; a failure poisons the database.
    pub(crate) fn sync_log(&self) -> Result<()> {
        self.check_well()?;
        let Some(unsynced) = self.log.lock().unsynced()? else { return Ok(()) };
        let begun = self.shared.clock.now();
        unsynced.sync().inspect_err(|error| self.poison(error))?;
        self.shared.timings.sync.add(self.shared.clock.now().saturating_sub(begun));
        self.log.lock().note_synced(&unsynced);
        Ok(())
    }

    /// Wakes whoever waits for the position to change.
    pub(crate) fn announce_move(&self) {
        // Pairs with the waiter's increment: either it is seen here, or the waiter sees the move.
        fence(Ordering::SeqCst);
        if self.waiters.load(Ordering::SeqCst) > 0 {
            drop(self.moved.lock());
            self.moved_signal.notify_all();
        }
    }

    /// Blocks until the position is at least `txid`.
    pub(crate) fn wait_for(&self, txid: Txid, timeout: Duration) -> Result<Pos> {
        let deadline = crate::clock::after(timeout);
        self.waiters.fetch_add(1, Ordering::SeqCst);
        let mut guard = self.moved.lock();
        let mut late = false;
        let reached = loop {
            if let Err(error) = self.check_readable() {
                break Err(error);
            }
            let ours = self.pos();
            if ours.txid >= txid {
                break Ok(ours);
            }
            if late {
                break Err(Error::Timeout { db: self.name.clone(), ours, wanted: txid });
            }
            late = self.moved_signal.wait_until(&mut guard, deadline).timed_out();
        };
        drop(guard);
        self.waiters.fetch_sub(1, Ordering::SeqCst);
        reached
    }

    pub(crate) fn mismatch(&self, reason: String) -> Error {
        Error::Mismatch { db: self.name.clone(), ours: self.pos(), reason }
    }
}
