//! `GET /info`: LiteFS's fields, and the state of the node and its databases.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use litefs_ltx::format_timestamp;
use litefs_store::{Database, DbName, Diverged};
use serde::{Deserialize, Serialize};

use super::view::{LeaseStatus, NodeView, ReplicaStatus};
use crate::config::os_hostname;
use crate::replication::confirm::ConfirmStatus;

/// The answer of `GET /info`; `litefs-node status` reads it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Info {
    /// The cluster's id, once known.
    #[serde(rename = "clusterID", default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// True if this node is the primary.
    pub is_primary: bool,
    /// True if this node may become the primary.
    pub candidate: bool,
    /// The data directory.
    pub path: String,
    /// The primary as this node knows it.
    pub primary: PrimaryName,
    /// This node's id, 16 hex digits.
    #[serde(rename = "nodeID")]
    pub node_id: String,
    /// This node's name.
    #[serde(default)]
    pub hostname: String,
    /// `primary`, `replica` (knows a primary) or `disconnected`.
    pub role: String,
    /// What the lease says of this node's part.
    #[serde(default)]
    pub lease: LeaseInfo,
    /// Why this node is not connected to its primary, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disconnected: Option<String>,
    /// Milliseconds behind the primary; absent before the first sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_ms: Option<u64>,
    /// This build's version.
    pub version: String,
    /// The replicas connected to this node.
    pub replicas: Vec<ReplicaInfo>,
    /// What commits on this node wait for; absent in mode `async`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication: Option<ReplicationInfo>,
    /// The databases by name, dropped ones left out.
    pub databases: BTreeMap<String, DatabaseInfo>,
}

/// The primary's name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PrimaryName {
    /// Empty if no primary is known.
    pub hostname: String,
}

/// The lease.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaseInfo {
    /// `static` or `consul`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `primary` or `replica`; with Consul also `starting`, `candidate`, `handing-over`,
    /// `stepping-down` and `stopped`.
    pub role: String,
    /// Why it has that role, or does not get further.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Why Consul does not do what it is asked to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// The newest epoch known to this node.
    pub epoch: u64,
    /// How long a primary may still commit if Consul does not answer any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub right_left_ms: Option<u64>,
}

/// A connected replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaInfo {
    /// Its node id or name.
    pub node: String,
    /// Its host's name, as it says.
    #[serde(default)]
    pub hostname: String,
    /// Where it connects from.
    pub addr: String,
    /// Milliseconds since it last had everything; absent if it never had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_ms: Option<u64>,
    /// Transactions that it has not acknowledged yet.
    pub unacknowledged_transactions: u64,
}

/// What commits wait for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicationInfo {
    /// `bounded` or `sync`.
    pub mode: String,
    /// The replicas that have everything that was acknowledged, by node id; on the primary only.
    pub sync_set: Vec<String>,
    /// True while commits are acknowledged without replicas, as those did not confirm in time.
    pub fallen_back: bool,
    /// Commits that wait now.
    pub waiting: usize,
}

/// A database on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseInfo {
    /// `<txid>/<checksum>`, the newest position.
    pub position: String,
    /// Size in pages.
    pub page_count: u32,
    /// Bytes a page; 0 if it has none yet.
    pub page_size: u32,
    /// The mark's transaction id, 16 hex digits.
    pub mark: String,
    /// Bytes of log on disk.
    pub log_bytes: u64,
    /// Transactions in the log.
    #[serde(default)]
    pub log_transactions: u64,
    /// Milliseconds from the newest transaction's commit on the primary until it was here, by both
    /// nodes' clocks; 0 if it was committed here.
    #[serde(default)]
    pub lag_ms: u64,
    /// Why it is served to nobody, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantined: Option<String>,
    /// Which failed sync made it read-only until it is reopened, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poisoned: Option<String>,
    /// Why this replica does not follow the primary's, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// What is kept of transactions of this node that the cluster did not keep, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diverged: Vec<DivergedInfo>,
}

/// Transactions of this node that the cluster did not keep, in files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DivergedInfo {
    /// Names it to `litefs-node ltx extract --diverged` and `ltx forget --diverged`.
    pub name: String,
    /// The last position that the cluster kept too, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub common: Option<String>,
    /// Where the database was.
    pub newest: String,
    /// How many transactions the cluster did not keep, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transactions: Option<u64>,
    /// When it was kept, as RFC 3339; empty if unknown.
    pub kept_at: String,
    /// True if the whole database is among the files.
    pub whole: bool,
    /// The directory with the files, below the data directory.
    pub path: String,
}

impl DivergedInfo {
    /// `dir` is the data directory.
    pub(crate) fn new(dir: &Path, kept: &Diverged) -> Self {
        Self {
            name: kept.id(),
            common: kept.common.map(|pos| pos.to_string()),
            newest: kept.newest.to_string(),
            transactions: kept.transactions(),
            kept_at: match kept.kept_ms {
                0 => String::new(),
                ms => format_timestamp(ms),
            },
            whole: kept.whole,
            path: kept.path.strip_prefix(dir).unwrap_or(&kept.path).display().to_string(),
        }
    }
}

impl Info {
    /// Asks a node; reads directories, so not on an async thread.
    pub fn of(view: &dyn NodeView) -> Self {
        let store = view.store();
        let role = view.role().borrow().clone();
        let role_name = match (role.is_primary, &role.primary_hostname) {
            (true, _) => "primary",
            (false, Some(_)) => "replica",
            (false, None) => "disconnected",
        };
        let own_name = role.primary_hostname.clone().filter(|_| role.is_primary);
        Self {
            hostname: own_name.or_else(os_hostname).unwrap_or_default(),
            cluster_id: store.cluster_id(),
            is_primary: role.is_primary,
            candidate: view.candidate(),
            // Who asks is somewhere else.
            path: absolute(store.dir()).display().to_string(),
            primary: PrimaryName { hostname: role.primary_hostname.unwrap_or_default() },
            node_id: format!("{:016X}", store.node_id()),
            role: role_name.to_owned(),
            lease: view.lease().into(),
            disconnected: view.disconnected_because(),
            lag_ms: view.lag().map(millis),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            replicas: view.replicas().into_iter().map(ReplicaInfo::from).collect(),
            replication: view.confirm().map(ReplicationInfo::from),
            databases: databases(store.dir(), &store.databases(), &view.reasons()),
        }
    }
}

impl From<LeaseStatus> for LeaseInfo {
    fn from(lease: LeaseStatus) -> Self {
        Self {
            kind: lease.kind.to_owned(),
            role: lease.role.to_owned(),
            reason: lease.reason,
            trouble: lease.trouble,
            epoch: lease.epoch,
            right_left_ms: lease.right_left.map(millis),
        }
    }
}

impl From<ConfirmStatus> for ReplicationInfo {
    fn from(status: ConfirmStatus) -> Self {
        Self {
            mode: status.mode.to_owned(),
            sync_set: status.sync_set.iter().map(|node| format!("{node:016X}")).collect(),
            fallen_back: status.fallen_back,
            waiting: status.waiting,
        }
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl From<ReplicaStatus> for ReplicaInfo {
    fn from(replica: ReplicaStatus) -> Self {
        Self {
            node: replica.node,
            hostname: replica.hostname,
            lag_ms: replica.lag.map(millis),
            addr: replica.addr.to_string(),
            unacknowledged_transactions: replica.unacknowledged_transactions,
        }
    }
}

fn databases(
    dir: &Path,
    all: &[Database],
    reasons: &BTreeMap<DbName, String>,
) -> BTreeMap<String, DatabaseInfo> {
    let info = |db: &Database| {
        let stats = db.stats();
        DatabaseInfo {
            position: db.pos().to_string(),
            page_count: db.page_count(),
            page_size: db.page_size().map_or(0, |size| size.get()),
            mark: stats.mark.to_string(),
            log_bytes: stats.log_bytes,
            log_transactions: stats.log_transactions,
            lag_ms: u64::try_from(stats.lag_ms).unwrap_or(0),
            quarantined: db.quarantined(),
            poisoned: db.poisoned(),
            stopped: reasons.get(db.name()).cloned(),
            diverged: diverged(dir, db),
        }
    };
    all.iter()
        .map(|db| (db.name().as_str().to_owned(), info(db)))
        // A dropped database interests nobody, unless something of it is left to look at.
        .filter(|(_, info)| {
            info.page_count > 0 || info.quarantined.is_some() || !info.diverged.is_empty()
        })
        .collect()
}

fn diverged(dir: &Path, db: &Database) -> Vec<DivergedInfo> {
    let kept = db.diverged().unwrap_or_else(|e| {
        tracing::warn!(db = db.name().as_str(), "cannot look for diverged transactions: {e}");
        Vec::new()
    });
    kept.iter().map(|kept| DivergedInfo::new(dir, kept)).collect()
}
