//! Settings of a store.

use std::sync::Arc;
use std::time::Duration;

use crate::filecache::FileCache;
use crate::{Clock, OsStorage, Replication, Storage, SystemClock};

/// When a commit reaches the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// Never synced for its own sake: a power loss may take any number of the newest commits.
    Off,
    /// Synced in the background within [`Options::sync_interval`]: a power loss may take the
    /// commits of that time, but never tears one.
    Normal,
    /// Synced before the commit returns.
    Full,
}

/// Settings of a store; [`Options::default`] is right for most.
#[derive(Debug, Clone)]
pub struct Options {
    /// The least durability of every commit. Default [`Durability::Off`]: each client's own
    /// `PRAGMA synchronous` decides.
    pub durability: Durability,
    /// The longest time that a commit of [`Durability::Normal`] stays unsynced. Default 100 ms.
    pub sync_interval: Duration,
    /// How long records stay in the log after they are folded. Default 10 minutes.
    pub retention: Duration,
    /// Bytes that a database's log may take on disk. Default `None`: the size of its base, but at
    /// least 64 MiB. What is not folded yet stays in any case.
    pub log_size: Option<u64>,
    /// Bytes of pages that all databases' readers share in memory. Default 32 MiB.
    pub cache_size: usize,
    /// How many files may be open at once. Default 400.
    pub open_files: usize,
    /// Whether syncing and folding happen by themselves: in the background, and when the store is
    /// closed. Default true; a simulation, and a tool that only looks, turn it off and call
    /// [`Database::sync`](crate::Database::sync) and [`Database::fold`](crate::Database::fold)
    /// themselves.
    pub background: bool,
    /// The node's id in a new data directory. Default `None`: a random one.
    pub node_id: Option<u64>,
    /// What commits need from other nodes. Default `None`: nothing.
    pub replication: Option<Arc<dyn Replication>>,
    /// The file system. Default [`OsStorage`].
    pub storage: Arc<dyn Storage>,
    /// The time. Default [`SystemClock`].
    pub clock: Arc<dyn Clock>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            durability: Durability::Off,
            sync_interval: Duration::from_millis(100),
            retention: Duration::from_secs(600),
            log_size: None,
            cache_size: 32 << 20,
            open_files: FileCache::DEFAULT_CAP,
            background: true,
            node_id: None,
            replication: None,
            storage: Arc::new(OsStorage),
            clock: Arc::new(SystemClock::new()),
        }
    }
}
