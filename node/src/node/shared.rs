//! What a node's tasks share, and how others see it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use litefs_ltx::Txid;
use litefs_store::{DbName, Histogram, RemoteError, Store, Timing};
use parking_lot::Mutex;
use quinn::{Endpoint, Incoming};
use tokio::sync::{broadcast, watch};

use super::elector::Lease;
use crate::config::Config;
use crate::forward::replica::Forwarding;
use crate::http::{LeaseStatus, NodeView, ReplicaStatus, Role, Wish};
use crate::lease::action::Transition;
use crate::replication::confirm::{ConfirmStatus, Confirmer, SyncChange};
use crate::replication::follow::Follower;
use crate::replication::serve::{ConnectedReplica, Term, close_connection};
use crate::replication::wire::{Close, Reason};
use crate::replication::{GREETING_TIMEOUT, printable};
use crate::tls::{PeerIdentity, TlsMode};

/// How long a client waits for the primary to halt, as LiteFS's.
const HALT_TIMEOUT: Duration = Duration::from_secs(10);

/// What the node's tasks share.
pub(super) struct Shared {
    pub store: Store,
    pub config: Config,
    /// Commits that wait for replicas, if they have to.
    pub confirmer: Option<Arc<Confirmer>>,
    pub tls: Arc<TlsMode>,
    pub endpoint: Endpoint,
    pub addr: SocketAddr,
    pub proxy_addr: Option<SocketAddr>,
    pub role: watch::Sender<Role>,
    /// What the mount shows, if there is one, and word of its changes.
    pub mount: Mutex<Option<litefs_fuse::View>>,
    pub shown: watch::Sender<()>,
    pub forwarding: Arc<Forwarding>,
    pub part: Mutex<Part>,
    /// How many changes of role are done, and how the last one went.
    pub changes: watch::Sender<(u64, Result<(), String>)>,
    /// The lease, unless it is static.
    pub lease: Option<Lease>,
}

/// The node's present part, with what it needs for it.
pub(super) enum Part {
    None,
    Primary(Arc<Term>),
    Replica(Follower),
}

impl Shared {
    /// Shows who is primary, if that is news.
    pub fn show(&self, role: Role) {
        self.role.send_if_modified(|shown| std::mem::replace(shown, role.clone()) != role);
    }

    /// Shows that this node is the primary.
    pub fn show_as_primary(&self) {
        self.show(Role {
            is_primary: true,
            primary_hostname: Some(self.config.primary_hostname()),
            primary_url: Some(self.config.own_url(self.addr).to_string()),
        });
    }

    /// What the follower says, if this node follows a primary.
    pub fn of_follower<T: Default>(&self, ask: impl FnOnce(&Follower) -> T) -> T {
        match &*self.part.lock() {
            Part::Replica(follower) => ask(follower),
            _ => T::default(),
        }
    }

    /// The present term, if this node serves replicas.
    pub fn term(&self) -> Option<Arc<Term>> {
        match &*self.part.lock() {
            Part::Primary(term) => Some(term.clone()),
            _ => None,
        }
    }

    pub fn connected(&self) -> Vec<ConnectedReplica> {
        self.term().map(|term| term.replicas()).unwrap_or_default()
    }

    pub fn primary_wall_ms(&self) -> Option<i64> {
        self.of_follower(Follower::primary_wall_ms)
    }

    /// Serves a connection from another node, if this node is the primary.
    pub async fn serve(self: Arc<Self>, incoming: Incoming) {
        let addr = incoming.remote_address();
        let handshake = async { incoming.accept()?.await };
        let connection = match tokio::time::timeout(GREETING_TIMEOUT, handshake).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                let text = printable(&error.to_string());
                return tracing::warn!("refused a connection from {addr}: {text}");
            }
            Err(_) => return tracing::warn!("{addr} did not finish its handshake"),
        };
        let certified = match self.tls.check_peer(&connection) {
            Ok(PeerIdentity::Certified(name)) => Some(name.node),
            Ok(PeerIdentity::Anonymous) => None,
            Err(error) => {
                let close = Close::new(Reason::Identity, error.to_string());
                return close_connection(&connection, &close);
            }
        };
        match self.term() {
            Some(term) => term.serve(connection, certified).await,
            None => close_connection(&connection, &self.not_primary()),
        }
    }

    fn not_primary(&self) -> Close {
        let role = self.role.borrow();
        let text = match &role.primary_url {
            Some(url) => format!("{} is not the primary; the primary is {url}", self.addr),
            None => format!("{} is not the primary", self.addr),
        };
        Close::new(Reason::NotPrimary, text)
    }
}

impl NodeView for Shared {
    fn store(&self) -> &Store {
        &self.store
    }

    fn role(&self) -> watch::Receiver<Role> {
        self.role.subscribe()
    }

    fn candidate(&self) -> bool {
        self.config.lease.candidate
    }

    fn lag(&self) -> Option<Duration> {
        match &*self.part.lock() {
            Part::None => None,
            Part::Primary(_) => Some(Duration::ZERO),
            Part::Replica(follower) => follower.lag(),
        }
    }

    fn visible(&self, db: &DbName) -> Option<Txid> {
        let newest = self.store.database(db)?.pos().txid;
        let mount = self.mount.lock().clone();
        Some(mount.and_then(|mount| mount.position(db)).map_or(newest, |pos| pos.txid))
    }

    fn is_mounted(&self) -> bool {
        self.config.fuse.dir.is_none() || self.mount.lock().is_some()
    }

    fn locks(&self, db: &DbName) -> Option<Vec<(&'static str, &'static str)>> {
        let mount = self.mount.lock().clone();
        mount.and_then(|mount| mount.locks(db))
    }

    fn shown(&self) -> watch::Receiver<()> {
        self.shown.subscribe()
    }

    fn replicas(&self) -> Vec<ReplicaStatus> {
        let status = |replica: ConnectedReplica| ReplicaStatus {
            node: replica.certified.unwrap_or_else(|| format!("{:016X}", replica.node)),
            hostname: printable(&replica.hostname),
            lag: replica.lag,
            addr: replica.addr,
            unacknowledged_transactions: replica.unacknowledged,
        };
        self.connected().into_iter().map(status).collect()
    }

    fn confirm(&self) -> Option<ConfirmStatus> {
        self.confirmer.as_ref().map(|confirmer| confirmer.status())
    }

    fn sync_changes(&self) -> Option<broadcast::Receiver<SyncChange>> {
        self.confirmer.as_ref().map(|confirmer| confirmer.changes())
    }

    fn lease(&self) -> LeaseStatus {
        match &self.lease {
            Some(lease) => lease.status(self.store.now()),
            None => LeaseStatus::fixed(self.role.borrow().is_primary, self.store.epoch()),
        }
    }

    fn disconnected_because(&self) -> Option<String> {
        self.of_follower(Follower::failure)
    }

    fn reasons(&self) -> BTreeMap<DbName, String> {
        self.of_follower(Follower::reasons)
    }

    fn ack_times(&self) -> Histogram {
        self.term().map_or_else(|| Timing::default().read(), |term| term.ack_times().read())
    }

    fn transitions(&self) -> Option<broadcast::Receiver<Transition>> {
        self.lease.as_ref().map(Lease::transitions)
    }

    fn promote(&self) -> Wish {
        match &self.lease {
            Some(lease) => lease.promote(),
            None => Wish::of_static_lease(),
        }
    }

    fn hand_over(&self, node: u64) -> Wish {
        match &self.lease {
            Some(lease) => lease.hand_over(node),
            None => Wish::of_static_lease(),
        }
    }
}

impl litefs_fuse::Cluster for Shared {
    fn shown(&self, _: &DbName) {
        self.shown.send_replace(());
    }

    fn primary(&self) -> Option<String> {
        let role = self.role.borrow();
        role.primary_hostname.clone().filter(|_| !role.is_primary)
    }

    fn lag(&self) -> litefs_fuse::Lag {
        let since = |ms| UNIX_EPOCH + Duration::from_millis(ms);
        let heard = self.primary_wall_ms().and_then(|ms| u64::try_from(ms).ok());
        litefs_fuse::Lag { behind: NodeView::lag(self), primary_time: heard.map(since) }
    }

    fn halt(&self, db: &DbName) -> Result<(), RemoteError> {
        let pos = self.forwarding.halt(db, HALT_TIMEOUT)?;
        let arrived = match self.store.database(db) {
            Some(database) => database.wait_for(pos.txid, HALT_TIMEOUT).map(drop),
            None => Ok(()),
        };
        arrived.map_err(|error| {
            self.forwarding.resume(db);
            RemoteError::Refused(error.to_string())
        })
    }

    fn resume(&self, db: &DbName) {
        self.forwarding.resume(db);
    }
}
