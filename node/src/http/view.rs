//! What the HTTP API needs to know about the node that it speaks for.

use std::net::SocketAddr;
use std::time::Duration;

use litefs_store::Store;
use tokio::sync::watch;

use crate::replication::confirm::ConfirmStatus;

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
    /// The replicas connected to this node, in any order.
    fn replicas(&self) -> Vec<ReplicaStatus>;
    /// What commits wait for; `None` in mode `async`.
    fn confirm(&self) -> Option<ConfirmStatus> {
        None
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
    /// Where it connects from.
    pub addr: SocketAddr,
    /// Transactions that it has not acknowledged yet, over all databases.
    pub unacknowledged_transactions: u64,
}
