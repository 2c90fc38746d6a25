//! What the HTTP API needs to know about the node that it speaks for.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use litefs_ltx::Txid;
use litefs_store::{DbName, Histogram, Store};
use prometheus_client::metrics::histogram::Histogram as PrometheusHistogram;
use tokio::sync::{broadcast, oneshot, watch};

use crate::lease::action::Transition;
use crate::replication::confirm::{ConfirmStatus, SyncChange};

/// A node, as the HTTP API and the metrics see it. Every method answers at once.
pub trait NodeView: Send + Sync + 'static {
    /// Its databases.
    fn store(&self) -> &Store;
    /// Who is primary, now and whenever it changes.
    fn role(&self) -> watch::Receiver<Role>;
    /// True if this node may become the primary.
    fn candidate(&self) -> bool;
    /// How far this node is behind the primary: zero on the primary, `None` on a replica that
    /// never was at the primary's positions since it started.
    fn lag(&self) -> Option<Duration>;
    /// The newest transaction of a database that the application on this replica sees; `None` if it
    /// does not exist. With a mount, that may be a moment behind the store.
    fn visible(&self, db: &DbName) -> Option<Txid> {
        Some(self.store().database(db)?.pos().txid)
    }
    /// Changes when [`NodeView::visible`] may have changed without an event of the store.
    fn shown(&self) -> watch::Receiver<()> {
        watch::Sender::new(()).subscribe()
    }
    /// True if the mount that the configuration asks for is there, or none is asked for.
    fn is_mounted(&self) -> bool {
        true
    }
    /// SQLite's locks of a database on the mount, by name; `None` if nobody uses it there. May wait
    /// for the disk, unlike the others.
    fn locks(&self, _db: &DbName) -> Option<Vec<(&'static str, &'static str)>> {
        None
    }
    /// The replicas connected to this node, in any order.
    fn replicas(&self) -> Vec<ReplicaStatus>;
    /// What the lease says of its part.
    fn lease(&self) -> LeaseStatus;
    /// Why it is not connected to its primary; `None` while it is, or is the primary.
    fn disconnected_because(&self) -> Option<String>;
    /// Why databases are not being followed, by name.
    fn reasons(&self) -> BTreeMap<DbName, String>;
    /// How long commits took to be acknowledged by a replica, since it became primary.
    fn ack_times(&self) -> Histogram;
    /// Changes of its role from now on; `None` if there will be none.
    fn transitions(&self) -> Option<broadcast::Receiver<Transition>>;
    /// Asks that it become the primary.
    fn promote(&self) -> Wish;
    /// Asks that it hand the role of the primary over to another node.
    fn hand_over(&self, node: u64) -> Wish;
    /// What commits wait for; `None` in mode `async`.
    fn confirm(&self) -> Option<ConfirmStatus> {
        None
    }
    /// When commits began to do without replicas, or to wait for them again, from now on; `None` if
    /// that does not happen.
    fn sync_changes(&self) -> Option<broadcast::Receiver<SyncChange>> {
        None
    }
}

/// What the lease says of this node's part.
#[derive(Debug, Clone)]
pub struct LeaseStatus {
    /// `static` or `consul`.
    pub kind: &'static str,
    /// The role, one word.
    pub role: &'static str,
    /// Why it has that role, or does not get further; may be empty.
    pub reason: String,
    /// The newest epoch known to this node.
    pub epoch: u64,
    /// Changes of role, or of its reason, since the start.
    pub transitions: u64,
    /// How long this node may still commit if it hears nothing more; `None`: without end.
    pub right_left: Option<Duration>,
    /// Why Consul does not do what it is asked to, if so.
    pub trouble: Option<String>,
    /// How long it took to extend that right, in seconds.
    pub beats: Option<PrometheusHistogram>,
}

impl LeaseStatus {
    /// A static lease.
    pub fn fixed(is_primary: bool, epoch: u64) -> Self {
        Self {
            kind: "static",
            role: if is_primary { "primary" } else { "replica" },
            reason: String::new(),
            epoch,
            transitions: 0,
            right_left: None,
            trouble: None,
            beats: None,
        }
    }
}

/// A wish that is not granted in this time is not granted at all, or later.
const PATIENCE: Duration = Duration::from_secs(20);

/// What came of a wish that the role of the primary should move; known later.
#[derive(Debug)]
pub struct Wish(oneshot::Receiver<Result<(), String>>);

impl Wish {
    /// A wish, and where its answer goes.
    pub fn new() -> (oneshot::Sender<Result<(), String>>, Self) {
        let (answer, answered) = oneshot::channel();
        (answer, Self(answered))
    }

    /// One that cannot be granted.
    pub fn of_static_lease() -> Self {
        let (answer, wish) = Self::new();
        // The receiver is here.
        let _ = answer.send(Err("the lease is static: it never moves (lease.type)".to_owned()));
        wish
    }

    /// Waits for the answer.
    ///
    /// # Errors
    /// Why the role does not move.
    pub async fn answer(self) -> Result<(), String> {
        match tokio::time::timeout(PATIENCE, self.0).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err("the node is shutting down".to_owned()),
            Err(_) => Err(format!("it has not moved after {PATIENCE:?}")),
        }
    }
}

/// Who is primary.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Role {
    /// True if this node is the primary.
    pub is_primary: bool,
    /// The primary's name (this node's, if it is the primary); `None` if none is known.
    pub primary_hostname: Option<String>,
    /// The primary's URL, if known.
    pub primary_url: Option<String>,
}

/// A replica that is connected to this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Its node id, 16 hex digits, or its certificate's node name.
    pub node: String,
    /// Its host's name, as it says.
    pub hostname: String,
    /// How long ago it last had everything; `None` if it never had.
    pub lag: Option<Duration>,
    /// Where it connects from.
    pub addr: SocketAddr,
    /// Transactions that it has not acknowledged yet, over all databases.
    pub unacknowledged_transactions: u64,
}
