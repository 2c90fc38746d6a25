//! What all databases of a store share.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use crate::cache::PageCache;
use crate::filecache::FileCache;
use crate::gate::WriteGate;
use crate::node_file::NodeFile;
use crate::remote::Remote;
use crate::tasks::Tasks;
use crate::timing::Timings;
use crate::{Clock, DbName, Error, Event, Options, Result, Storage};

type Listener = Arc<dyn Fn(&Event) + Send + Sync>;

/// See the module's text.
pub(crate) struct Shared {
    pub dir: PathBuf,
    pub storage: Arc<dyn Storage>,
    pub clock: Arc<dyn Clock>,
    pub options: Options,
    pub files: Arc<FileCache>,
    pub cache: PageCache,
    pub gate: WriteGate,
    /// The way to write where the gate is closed, if there is one.
    pub remote: RwLock<Option<Arc<dyn Remote>>>,
    pub tasks: Tasks,
    pub timings: Timings,
    pub node: Mutex<NodeFile>,
    node_id: u64,
    listeners: RwLock<Vec<(u64, Listener)>>,
    closed: AtomicBool,
    last_id: AtomicU64,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn new(dir: PathBuf, options: Options, node: NodeFile) -> Self {
        Self {
            dir,
            storage: options.storage.clone(),
            clock: options.clock.clone(),
            files: FileCache::new(options.storage.clone(), options.open_files),
            cache: PageCache::new(options.cache_size),
            gate: WriteGate::new(options.clock.clone()),
            remote: RwLock::default(),
            tasks: Tasks::new(options.background),
            timings: Timings::default(),
            node_id: node.node_id,
            node: Mutex::new(node),
            options,
            listeners: RwLock::new(Vec::new()),
            closed: AtomicBool::new(false),
            last_id: AtomicU64::new(0),
        }
    }

    /// The directory of the databases' directories.
    pub(crate) fn databases_dir(&self) -> PathBuf {
        self.dir.join("dbs")
    }

    pub(crate) fn node_id(&self) -> u64 {
        self.node_id
    }

    /// A number that nothing else of this store has.
    pub(crate) fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The way to write a database through the primary, if this node may not commit itself.
    pub(crate) fn remote_for(&self, db: &DbName) -> Option<Arc<dyn Remote>> {
        if self.gate.is_open() {
            return None;
        }
        self.remote.read().clone().filter(|remote| remote.offers(db))
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Tells all listeners.
    pub(crate) fn emit(&self, event: &Event) {
        for (_, listener) in self.listeners.read().iter() {
            listener(event);
        }
    }

    pub(crate) fn subscribe(self: &Arc<Self>, listener: Listener) -> Subscription {
        let id = self.next_id();
        self.listeners.write().push((id, listener));
        Subscription { shared: Arc::downgrade(self), id }
    }
}

/// Ends a subscription when dropped.
#[derive(Debug)]
#[must_use = "the subscription ends when this is dropped"]
pub struct Subscription {
    shared: Weak<Shared>,
    id: u64,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.listeners.write().retain(|(id, _)| *id != self.id);
        }
    }
}
