//! A data directory and the databases in it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use litefs_ltx::Pos;
use parking_lot::{Mutex, RwLock};

use crate::db::Db;
use crate::error::IoContext;
use crate::gate::WriteGate;
use crate::node_file::{NODE_FILE, NodeFile};
use crate::remote::Remote;
use crate::shared::{Shared, Subscription};
use crate::{
    Database, DbName, DirLock, Diverged, Durability, Error, Options, Result, Storage, Timings,
};

/// How long closing waits for a commit that is under way.
const PATIENCE: Duration = Duration::from_secs(5);

/// What happened in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A commit, an applied record, an import, a snapshot, a drop or a rewind moved the position.
    Position {
        /// The database.
        db: DbName,
        /// Its newest position.
        pos: Pos,
        /// Its page size in bytes.
        page_size: u32,
        /// Its size in pages; 0 if it was dropped.
        commit: u32,
        /// When the transaction was committed, ms since the Unix epoch.
        timestamp_ms: i64,
    },
    /// A database failed a check and is served to nobody.
    Quarantined {
        /// The database.
        db: DbName,
        /// Which check failed, and where.
        reason: String,
    },
    /// Transactions of this node that the cluster did not keep were written to files.
    Diverged(Diverged),
}

/// One data directory, owned by this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

/// A [`Store`] that does not keep the data directory from being let go.
#[derive(Debug, Clone)]
pub struct WeakStore(Weak<Inner>);

impl WeakStore {
    /// The store, if anyone still has it.
    pub fn upgrade(&self) -> Option<Store> {
        self.0.upgrade().map(Store)
    }
}

/// The same data directory, opened once.
impl PartialEq for Store {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Store {}

/// Most databases of a store: peers name them, and each costs memory.
pub const MAX_DATABASES: usize = 100_000;

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    databases: RwLock<BTreeMap<DbName, Arc<Db>>>,
    /// Held while the store is closed: who closes it, too, then finds the directory let go.
    lock: Mutex<Option<Box<dyn DirLock>>>,
}

impl Store {
    /// Opens a data directory, or creates it, with default options. The write gate is open.
    ///
    /// # Errors
    /// `Busy` if another process owns the directory, `Invalid` if it is not one of ours, `Io`. A
    /// database that is damaged is quarantined and does not keep the others from opening.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(dir, Options::default())
    }

    /// Opens a data directory, or creates it; errors as [`Store::open`].
    pub fn open_with(dir: impl AsRef<Path>, options: Options) -> Result<Self> {
        let dir = dir.as_ref().to_path_buf();
        let storage = options.storage.clone();
        let dbs = dir.join("dbs");
        create_dir_durably(storage.as_ref(), &dir)?;
        let lock = match storage.lock_dir(&dir) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Err(Error::Locked { dir, reason: e.to_string() });
            }
            lock => lock.at("lock", &dir)?,
        };
        let node = NodeFile::open(storage.as_ref(), &dir, options.node_id)?;
        let shared = Arc::new(Shared::new(dir, options, node));
        let mut databases = BTreeMap::new();
        for name in storage.list(&dbs).at("read", &dbs)? {
            match DbName::new(&name) {
                Ok(name) => {
                    let db = Db::open(&shared, name.clone(), dbs.join(name.as_str()));
                    let db = Arc::new(db);
                    db.queue_leftovers();
                    databases.insert(name, db);
                }
                Err(error) => tracing::warn!(%error, "ignored an entry of the data directory"),
            }
        }
        let lock = Mutex::new(Some(lock));
        Ok(Self(Arc::new(Inner { shared, databases: RwLock::new(databases), lock })))
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        &self.0.shared.dir
    }

    /// The database of this name; `None` if it never was here. A dropped database is still there,
    /// with its position and no pages.
    pub fn database(&self, name: &DbName) -> Option<Database> {
        self.0.databases.read().get(name).cloned().map(Database::new)
    }

    /// The database of this name; an empty one, which leaves no trace on disk before its first
    /// transaction, if it never was here.
    ///
    /// # Errors
    /// `Closed`; `Invalid` beyond [`MAX_DATABASES`].
    pub fn create(&self, name: &DbName) -> Result<Database> {
        let shared = &self.0.shared;
        shared.check_open()?;
        if let Some(database) = self.database(name) {
            return Ok(database);
        }
        let mut databases = self.0.databases.write();
        if databases.len() >= MAX_DATABASES && !databases.contains_key(name) {
            let reason = format!("there are {MAX_DATABASES} databases already");
            return Err(Error::Invalid { db: name.clone(), reason });
        }
        let new = || {
            let dir = shared.databases_dir().join(name.as_str());
            Arc::new(Db::open(shared, name.clone(), dir))
        };
        Ok(Database::new(databases.entry(name.clone()).or_insert_with(new).clone()))
    }

    /// All databases, sorted by name, dropped ones included.
    pub fn databases(&self) -> Vec<Database> {
        self.0.databases.read().values().cloned().map(Database::new).collect()
    }

    /// Decides whether commits are allowed.
    pub fn gate(&self) -> &WriteGate {
        &self.0.shared.gate
    }

    /// True if clients may write any database here: this node may commit, or the primary does it
    /// for them.
    pub fn is_writable(&self) -> bool {
        let shared = &self.0.shared;
        shared.gate.is_open() || shared.remote.read().as_ref().is_some_and(|r| r.offers_all())
    }

    /// Lets this node's clients write through the primary, while the gate is closed.
    pub fn set_remote(&self, remote: Option<Arc<dyn Remote>>) {
        *self.0.shared.remote.write() = remote;
    }

    /// The store's monotonic clock, by which the gate measures deadlines.
    pub fn now(&self) -> Duration {
        self.0.shared.clock.now()
    }

    /// How long commits, syncs and folds took, over all databases.
    pub fn timings(&self) -> &Timings {
        &self.0.shared.timings
    }

    /// The least durability of every commit.
    pub fn durability(&self) -> Durability {
        self.0.shared.options.durability
    }

    /// True if commits may have to wait for replicas.
    pub fn waits_for_replicas(&self) -> bool {
        self.0.shared.options.replication.as_ref().is_some_and(|replication| replication.waits())
    }

    /// This node's id, random when the data directory was made. Texts show it as 16 hex digits.
    pub fn node_id(&self) -> u64 {
        self.0.shared.node_id()
    }

    /// The cluster's id, once known.
    pub fn cluster_id(&self) -> Option<String> {
        self.0.shared.node.lock().cluster_id.clone()
    }

    /// Remembers the cluster's id, durably.
    ///
    /// # Errors
    /// `Invalid` if this directory belongs to another cluster; `Io`.
    pub fn set_cluster_id(&self, id: &str) -> Result<()> {
        match self.cluster_id() {
            Some(ours) if ours == id => Ok(()),
            Some(ours) => Err(Error::BadDirectory {
                dir: self.dir().to_path_buf(),
                reason: format!("it belongs to cluster {ours}, not to {id}"),
            }),
            None => self.update_node(|node| node.cluster_id = Some(id.to_owned())),
        }
    }

    /// The highest epoch seen; 0 at first.
    pub fn epoch(&self) -> u64 {
        self.0.shared.node.lock().epoch
    }

    /// Remembers an epoch, durably, if it is higher than the one known.
    ///
    /// # Errors
    /// `Io`.
    pub fn set_epoch(&self, epoch: u64) -> Result<()> {
        if epoch <= self.epoch() {
            return Ok(());
        }
        self.update_node(|node| node.epoch = node.epoch.max(epoch))
    }

    fn update_node(&self, change: impl FnOnce(&mut NodeFile)) -> Result<()> {
        let shared = &self.0.shared;
        let mut node = shared.node.lock();
        let mut changed = node.clone();
        change(&mut changed);
        changed.write(shared.storage.as_ref(), &shared.dir)?;
        *node = changed;
        Ok(())
    }

    /// Calls `listener` after every event, on the thread that caused it: it must be quick, and
    /// must not write to the store. It ends when the result is dropped.
    pub fn subscribe(&self, listener: impl Fn(&Event) + Send + Sync + 'static) -> Subscription {
        self.0.shared.subscribe(Arc::new(listener))
    }

    /// The same, without keeping the directory.
    pub fn downgrade(&self) -> WeakStore {
        WeakStore(Arc::downgrade(&self.0))
    }

    /// True after [`Store::close`].
    pub fn is_closed(&self) -> bool {
        self.0.shared.check_open().is_err()
    }

    /// How many files are open.
    pub fn open_files(&self) -> usize {
        self.0.shared.files.open_count()
    }

    /// Folds everything and lets the directory go; later calls fail with `Closed`. What no pinned
    /// snapshot holds back is then in the bases, which are plain SQLite files. The last handle of
    /// a store with background work does the same when dropped.
    ///
    /// # Errors
    /// `Io`, `Full`: the first database that could not be folded; nothing is lost, its log has it.
    pub fn close(&self) -> Result<()> {
        self.0.close()
    }
}

impl Inner {
    fn close(&self) -> Result<()> {
        let mut lock = self.lock.lock();
        if self.shared.check_open().is_err() {
            return Ok(());
        }
        self.shared.gate.close("the store is closed");
        self.shared.tasks.stop();
        let databases = self.databases.read();
        // Who is between append and publication may end; nobody appends after that.
        let held: Vec<_> = databases.values().map(|db| db.token.hold_within(PATIENCE)).collect();
        let mut outcome = Ok(());
        if self.shared.options.background {
            for db in databases.values().filter(|db| db.check_well().is_ok()) {
                outcome = outcome.and(db.fold());
            }
        }
        self.shared.close();
        databases.values().for_each(|db| db.announce_move());
        drop(held);
        *lock = None;
        outcome
    }
}

/// Creates a data directory and its missing parents, and makes their names and those in it durable.
fn create_dir_durably(storage: &dyn Storage, dir: &Path) -> Result<()> {
    let dbs = dir.join("dbs");
    let missing = dbs.ancestors().take_while(|dir| storage.list(dir).is_err()).count();
    let finished = storage.list(dir).is_ok_and(|names| names.iter().any(|name| name == NODE_FILE));
    storage.create_dir_all(&dbs).at("create", &dbs)?;
    for (depth, parent) in dbs.ancestors().skip(1).enumerate() {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let synced = storage.sync_dir(parent).at("sync", parent);
        if depth < missing.max(1) {
            synced?;
        } else if finished {
            break;
        }
        // Else a process that was killed may have made it. A parent that was there long before
        // may not allow it.
    }
    Ok(())
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(%error, "could not fold all databases when closing; their logs have the rest");
        }
    }
}
