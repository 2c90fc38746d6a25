//! A node: a store, its part in the cluster, and the sockets.
//!
//! One task, the *conductor*, changes the node's role, one change at a time: a node that becomes a
//! replica closes its write gate first and then follows; a node that becomes primary has stopped
//! following before it opens the gate.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use litefs_fuse::MountOptions;
use litefs_store::{Database, DbName, Options, Pos, Store};
use litefs_vfs::rusqlite::Connection;
use parking_lot::Mutex;
use quinn::{Endpoint, Incoming, VarInt};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::config::{self, Config, ConfigError};
use crate::http::{self, NodeView, ReplicaStatus, Role};
use crate::lease::{Assignment, Primary, StaticLease};
use crate::replication::follow::{Follow, Follower};
use crate::replication::primary::Identity;
use crate::replication::serve::{ConnectedReplica, GOODBYE_TIMEOUT, Term, close_connection};
use crate::replication::standing::Standing;
use crate::replication::wire::{Close, Reason};
use crate::replication::{GREETING_TIMEOUT, printable};
use crate::sockets::Sockets;
use crate::tls::{self, PeerIdentity, TlsError, TlsMode};

/// Connections from other nodes at once.
const CONNECTIONS_MAX: usize = 256;
/// From so many on, a dialler must prove its address before it costs memory.
const CONNECTIONS_EASY: usize = 32;
/// Threads for blocking calls; replication uses at most 28 of them, the HTTP API the rest.
const BLOCKING_THREADS: usize = 40;
/// What the last packets may take to leave. Waiting until no connection is left could take
/// seconds: a failed dial lingers, as QUIC wants it.
const LINGER: Duration = Duration::from_millis(200);

/// Why a node cannot start or do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory or a database.
    #[error(transparent)]
    Store(#[from] litefs_store::Error),
    /// The mount.
    #[error(transparent)]
    Mount(#[from] litefs_fuse::MountError),
    /// SQLite.
    #[error(transparent)]
    Sqlite(#[from] litefs_vfs::Error),
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A port cannot be used, or a thread not be started.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The database has another content at that transaction than was waited for.
    #[error("database {db} is at {ours}, on another history than {wanted}")]
    Diverged {
        /// The database.
        db: DbName,
        /// Its position.
        ours: Pos,
        /// The position waited for.
        wanted: Pos,
    },
    /// The node has been shut down.
    #[error("the node has been shut down")]
    Stopped,
}

/// A running node. Dropping it shuts it down.
pub struct Node {
    shared: Arc<Shared>,
    lease: StaticLease,
    assigning: Mutex<()>,
    runtime: Mutex<Option<Running>>,
}

struct Running {
    runtime: Runtime,
    stop: Arc<Notify>,
    ended: mpsc::Receiver<()>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("addr", &self.shared.addr).finish_non_exhaustive()
    }
}

/// What the node's tasks share.
struct Shared {
    store: Store,
    config: Config,
    tls: Arc<TlsMode>,
    endpoint: Endpoint,
    addr: SocketAddr,
    role: watch::Sender<Role>,
    part: Mutex<Part>,
    /// How many changes of role are done, and how the last one went.
    changes: watch::Sender<(u64, Result<(), String>)>,
}

/// The node's present part, with what it needs for it.
enum Part {
    None,
    Primary(Arc<Term>),
    Replica(Follower),
}

impl Node {
    /// Opens the data directory, listens, and takes up the configured role. Blocks until that is
    /// done, but not until a primary was reached.
    ///
    /// # Errors
    /// Each part's own, with what to do; nothing runs then.
    pub fn start(config: Config) -> Result<Self, NodeError> {
        config.validate()?;
        let tls = Arc::new(TlsMode::load(&config)?);
        let (server, client) = (tls::quic_server_config(&tls)?, tls::quic_client_config(&tls)?);
        let store = Store::open_with(&config.data.dir, store_options(&config))?;
        let primary = configured_primary(&config);
        if let Primary::At(url) = &primary {
            store.gate().close(&replica_reason(url));
        }
        let sockets = Sockets::bind(&config)?;
        let runtime = runtime()?;
        let endpoint = {
            let _inside = runtime.enter();
            let quinn_runtime = Arc::new(quinn::TokioRuntime);
            let settings = tls::quic_endpoint_config();
            let mut endpoint = Endpoint::new(settings, Some(server), sockets.quic, quinn_runtime)?;
            endpoint.set_default_client_config(client);
            endpoint
        };
        let lease = StaticLease::new(primary, store.epoch());
        let shared = Arc::new(Shared {
            store,
            config,
            tls,
            endpoint,
            addr: sockets.addr,
            role: watch::Sender::default(),
            part: Mutex::new(Part::None),
            changes: watch::Sender::new((0, Ok(()))),
        });
        Self::run(shared, lease, runtime, sockets.api)
    }

    fn run(
        shared: Arc<Shared>,
        lease: StaticLease,
        runtime: Runtime,
        api: std::net::TcpListener,
    ) -> Result<Self, NodeError> {
        let server = {
            let _inside = runtime.enter();
            http::Server::start(shared.clone(), api)?
        };
        let stop = Arc::new(Notify::new());
        let (end, ended) = mpsc::channel();
        let conductor =
            Conductor { shared: shared.clone(), lease: lease.watch(), stop: stop.clone(), server };
        runtime.spawn(async move {
            conductor.run().await;
            // Fails only if nobody waits for it.
            let _ = end.send(());
        });
        let running = Running { runtime, stop, ended };
        let runtime = Mutex::new(Some(running));
        let node = Self { shared, lease, assigning: Mutex::new(()), runtime };
        node.wait_for_change(1)?;
        Ok(node)
    }

    /// Opens a connection to a database, creating it with the first transaction. On a replica it
    /// is read-only.
    ///
    /// # Errors
    /// A name that no database can have; SQLite's.
    pub fn open(&self, name: &str) -> Result<Connection, NodeError> {
        Ok(litefs_vfs::open(&self.shared.store, name)?)
    }

    /// Shows the databases as files at `fuse.dir`; `None` if the configuration has none. Unmount
    /// before the node is shut down.
    ///
    /// # Errors
    /// [`litefs_fuse::MountError`].
    pub fn mount(&self) -> Result<Option<litefs_fuse::Mount>, NodeError> {
        let fuse = &self.shared.config.fuse;
        let Some(dir) = fuse.dir.clone() else { return Ok(None) };
        let options = MountOptions {
            dir,
            allow_other: fuse.allow_other,
            debug: fuse.debug,
            cluster: self.shared.clone(),
            passthrough: true,
        };
        Ok(Some(litefs_fuse::Mount::start(&self.shared.store, options)?))
    }

    /// A database's newest position; `None` if it does not exist or was never written.
    pub fn position(&self, name: &str) -> Option<Pos> {
        let name = DbName::new(name).ok()?;
        self.shared.store.database(&name).map(|db| db.pos()).filter(|pos| !pos.is_zero())
    }

    /// Blocks until a database has reached a position, created by the primary if need be. Returns
    /// where it is then.
    ///
    /// # Errors
    /// `Timeout` of the store; [`NodeError::Diverged`] if the transaction is reached on another
    /// history.
    pub fn wait_for(&self, name: &str, pos: Pos, timeout: Duration) -> Result<Pos, NodeError> {
        let name = DbName::new(name)?;
        let deadline = Instant::now() + timeout;
        let db = self.wait_for_database(&name, deadline, pos)?;
        let left = deadline.saturating_duration_since(Instant::now());
        let ours = db.wait_for(pos.txid, left)?;
        if ours.txid == pos.txid && ours != pos {
            return Err(NodeError::Diverged { db: name, ours, wanted: pos });
        }
        Ok(ours)
    }

    /// True if this node may commit.
    pub fn is_primary(&self) -> bool {
        self.shared.role.borrow().is_primary
    }

    /// The node's store.
    pub fn store(&self) -> &Store {
        &self.shared.store
    }

    /// Where the node listens: QUIC (UDP), and HTTP (TCP) on the same port.
    pub fn addr(&self) -> SocketAddr {
        self.shared.addr
    }

    /// Who is primary, now and whenever it changes.
    pub fn role(&self) -> watch::Receiver<Role> {
        self.shared.role.subscribe()
    }

    /// How long ago this node last had everything: zero on the primary, `None` on a replica that
    /// never had since it started.
    pub fn lag(&self) -> Option<Duration> {
        NodeView::lag(&*self.shared)
    }

    /// The primary's wall clock at its last heartbeat, ms since 1970; `None` on the primary.
    pub fn primary_wall_ms(&self) -> Option<i64> {
        self.shared.primary_wall_ms()
    }

    /// Why this replica is not connected to its primary; `None` while it is, or is the primary.
    pub fn disconnected_because(&self) -> Option<String> {
        match &*self.shared.part.lock() {
            Part::Replica(follower) => follower.failure(),
            _ => None,
        }
    }

    /// The replicas that are connected to this node, if it is the primary.
    pub fn replicas(&self) -> Vec<ConnectedReplica> {
        self.shared.connected()
    }

    /// Tells this node who is primary from now on, and blocks until it has taken up its part. To
    /// hand the role over without a loss: close the old primary's gate, wait until the new one has
    /// everything, then tell the new one, then the old one.
    ///
    /// # Errors
    /// The new epoch could not be written: the node then is neither.
    pub fn assign_primary(&self, primary: Primary) -> Result<(), NodeError> {
        // One assignment at a time, so that each waits for its own change.
        let _alone = self.assigning.lock();
        let before = self.shared.changes.borrow().0;
        if self.lease.assign(primary, self.shared.store.epoch()) {
            self.wait_for_change(before + 1)?;
        }
        Ok(())
    }

    /// Disconnects, folds the databases and lets go of the data directory. Doing it again does
    /// nothing.
    ///
    /// # Errors
    /// The store's, from folding: the data directory is whole in any case.
    pub fn shutdown(&self) -> Result<(), NodeError> {
        let Some(running) = self.runtime.lock().take() else { return Ok(()) };
        self.shared.store.gate().close("this node is shutting down");
        running.stop.notify_one();
        // It fails if the conductor panicked; the rest is shut down all the same.
        let _ = running.ended.recv();
        let closed = self.shared.store.close();
        // Not waiting, so that a node may be dropped within another runtime.
        running.runtime.shutdown_background();
        Ok(closed?)
    }

    fn wait_for_database(
        &self,
        name: &DbName,
        deadline: Instant,
        wanted: Pos,
    ) -> Result<Database, NodeError> {
        let (sender, receiver) = mpsc::channel();
        let looked_for = name.clone();
        let _subscription = self.shared.store.subscribe(move |event| {
            if matches!(event, litefs_store::Event::Position { db, .. } if *db == looked_for) {
                // Fails only if the waiting has ended.
                let _ = sender.send(());
            }
        });
        loop {
            if let Some(db) = self.shared.store.database(name) {
                return Ok(db);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if receiver.recv_timeout(left).is_err() {
                let (db, wanted) = (name.clone(), wanted.txid);
                return Err(litefs_store::Error::Timeout { db, ours: Pos::ZERO, wanted }.into());
            }
        }
    }

    /// Blocks until the conductor has done that many changes of role.
    fn wait_for_change(&self, count: u64) -> Result<(), NodeError> {
        let mut changes = self.shared.changes.subscribe();
        let (sender, receiver) = mpsc::channel();
        let spawned = self.runtime.lock().as_ref().map(|running| {
            running.runtime.spawn(async move {
                let done = changes.wait_for(|(done, _)| *done >= count).await;
                // Fails only if nobody waits any more.
                let _ = sender.send(done.map(|done| done.1.clone()));
            })
        });
        spawned.ok_or(NodeError::Stopped)?;
        match receiver.recv() {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(text))) => Err(io::Error::other(text).into()),
            _ => Err(NodeError::Stopped),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.shutdown() {
            tracing::error!("shutting down: {error}");
        }
    }
}

impl Shared {
    fn connected(&self) -> Vec<ConnectedReplica> {
        let term = match &*self.part.lock() {
            Part::Primary(term) => term.clone(),
            _ => return Vec::new(),
        };
        term.replicas()
    }

    fn primary_wall_ms(&self) -> Option<i64> {
        match &*self.part.lock() {
            Part::Replica(follower) => follower.primary_wall_ms(),
            _ => None,
        }
    }

    /// Serves a connection from another node, if this node is the primary.
    async fn serve(self: Arc<Self>, incoming: Incoming) {
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
        let term = match &*self.part.lock() {
            Part::Primary(term) => Some(term.clone()),
            _ => None,
        };
        match term {
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

    fn replicas(&self) -> Vec<ReplicaStatus> {
        let status = |replica: ConnectedReplica| ReplicaStatus {
            node: replica.certified.unwrap_or_else(|| format!("{:016X}", replica.node)),
            addr: replica.addr,
            unacknowledged_transactions: replica.unacknowledged,
        };
        self.connected().into_iter().map(status).collect()
    }
}

impl litefs_fuse::Cluster for Shared {
    fn primary(&self) -> Option<String> {
        let role = self.role.borrow();
        role.primary_hostname.clone().filter(|_| !role.is_primary)
    }

    fn lag(&self) -> litefs_fuse::Lag {
        let since = |ms| UNIX_EPOCH + Duration::from_millis(ms);
        let heard = self.primary_wall_ms().and_then(|ms| u64::try_from(ms).ok());
        litefs_fuse::Lag { behind: NodeView::lag(self), primary_time: heard.map(since) }
    }
}

/// Takes up the roles that the lease assigns, and accepts connections.
struct Conductor {
    shared: Arc<Shared>,
    lease: watch::Receiver<Assignment>,
    stop: Arc<Notify>,
    server: http::Server,
}

impl Conductor {
    async fn run(mut self) {
        let mut connections = JoinSet::new();
        self.change_role().await;
        loop {
            tokio::select! {
                () = self.stop.notified() => break,
                changed = self.lease.changed() => match changed {
                    Ok(()) => self.change_role().await,
                    Err(_) => break,
                },
                Some(incoming) = self.shared.endpoint.accept() => {
                    admit(&self.shared, incoming, &mut connections);
                }
                // Finished connections give back their memory.
                Some(_) = connections.join_next() => (),
            }
        }
        self.leave(Close::new(Reason::Shutdown, "this node is shutting down")).await;
        let endpoint = &self.shared.endpoint;
        let drained = async { while connections.join_next().await.is_some() {} };
        // Peers that do not answer are left alone.
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT + GOODBYE_TIMEOUT / 2, drained).await;
        endpoint.close(VarInt::from_u32(Reason::Shutdown.code()), b"this node is shutting down");
        let _ = tokio::time::timeout(LINGER, endpoint.wait_idle()).await;
        self.server.shutdown().await;
    }

    async fn change_role(&mut self) {
        let assignment = self.lease.borrow_and_update().clone();
        let result = match assignment {
            Assignment::Primary { epoch } => self.become_primary(epoch).await,
            Assignment::Replica { of } => {
                self.become_replica(of).await;
                Ok(())
            }
        };
        if let Err(text) = &result {
            tracing::error!("cannot become primary: {text}");
        }
        self.shared.changes.send_modify(|(done, last)| {
            *done += 1;
            *last = result;
        });
    }

    async fn become_primary(&self, epoch: u64) -> Result<(), String> {
        self.leave(Close::new(Reason::Shutdown, "this node becomes the primary")).await;
        let shared = &self.shared;
        let store = &shared.store;
        let cluster = tokio::task::block_in_place(|| -> Result<String, NodeError> {
            Standing::of(store.dir()).note_own_commits()?;
            store.set_epoch(epoch)?;
            let cluster = store.cluster_id().unwrap_or_else(new_cluster_id);
            store.set_cluster_id(&cluster)?;
            Ok(cluster)
        });
        let cluster = cluster.map_err(|error| error.to_string())?;
        let hostname = shared.config.primary_hostname();
        let identity =
            Identity { node: store.node_id(), epoch, cluster, hostname: hostname.clone() };
        *shared.part.lock() = Part::Primary(Arc::new(Term::begin(store.clone(), identity)));
        store.gate().open();
        let url = shared.config.own_url(shared.addr).to_string();
        tracing::info!("this node is the primary, epoch {epoch}, at {url}");
        shared.role.send_replace(Role {
            is_primary: true,
            primary_hostname: Some(hostname),
            primary_url: Some(url),
        });
        Ok(())
    }

    async fn become_replica(&self, of: config::Endpoint) {
        let shared = &self.shared;
        shared.store.gate().close(&replica_reason(&of));
        let url = of.to_string();
        shared.role.send_replace(Role { primary_url: Some(url.clone()), ..Role::default() });
        let text = format!("this node is a replica now; the primary is {url}");
        self.leave(Close::new(Reason::NotPrimary, text)).await;
        let roles = shared.role.clone();
        let follow = Follow {
            store: shared.store.clone(),
            endpoint: shared.endpoint.clone(),
            tls: shared.tls.clone(),
            target: of,
            filter: shared.config.lease.databases.clone(),
            linked: Box::new(move |welcome| {
                let primary_hostname = welcome.map(|w| w.hostname.clone());
                let primary_url = Some(url.clone());
                roles.send_replace(Role { is_primary: false, primary_hostname, primary_url });
            }),
        };
        let hostname = config::os_hostname().unwrap_or_default();
        let delay = shared.config.lease.reconnect_delay;
        let seed = shared.store.node_id() ^ random();
        *shared.part.lock() = Part::Replica(Follower::start(follow, hostname, delay, seed));
    }

    /// Leaves the present part; when it returns, nothing of it goes on.
    async fn leave(&self, close: Close) {
        let part = std::mem::replace(&mut *self.shared.part.lock(), Part::None);
        match part {
            Part::None => (),
            Part::Primary(term) => term.end(&close),
            Part::Replica(follower) => follower.stop().await,
        }
    }
}

fn admit(shared: &Arc<Shared>, incoming: Incoming, connections: &mut JoinSet<()>) {
    if connections.len() >= CONNECTIONS_MAX {
        return incoming.refuse();
    }
    if connections.len() >= CONNECTIONS_EASY && !incoming.remote_address_validated() {
        // It fails only for an address that is validated.
        let _ = incoming.retry();
        return;
    }
    connections.spawn(shared.clone().serve(incoming));
}

fn configured_primary(config: &Config) -> Primary {
    match &config.lease.advertise_url {
        Some(url) if !config.lease.candidate => Primary::At(url.clone()),
        _ => Primary::ThisNode,
    }
}

fn store_options(config: &Config) -> Options {
    Options {
        durability: config.data.durability,
        retention: config.data.retention,
        log_size: config.data.log_size,
        ..Options::default()
    }
}

fn replica_reason(primary: &config::Endpoint) -> String {
    format!("this node is a replica; the primary is {primary}")
}

fn runtime() -> io::Result<Runtime> {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.clamp(2, 4))
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("litefs-node")
        .enable_all()
        .build()
}

/// LiteFS's form of a cluster id.
fn new_cluster_id() -> String {
    format!("LFSC{:016X}", random())
}

/// A random number, from the seeds that the standard library takes from the system.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}
