//! A node: a store, its part in the cluster, and the sockets.
//!
//! One task, the *conductor*, changes the node's role, one change at a time: a node that becomes a
//! replica closes its write gate first and then follows; a node that becomes primary has stopped
//! following before it opens the gate. With Consul, the *elector* decides and moves the gate.

mod conductor;
mod elector;
mod shared;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use litefs_fuse::MountOptions;
use litefs_store::{Database, DbName, Durability, Options, Pos, Replication, Store, after};
use litefs_vfs::rusqlite::Connection;
use parking_lot::Mutex;
use quinn::Endpoint;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Notify, watch};

use self::conductor::{Commands, Conductor, replica_reason};
use self::elector::{Inbox, Lease, Order};
use self::shared::{Part, Shared};
use crate::config::{Config, ConfigError, ReplicationMode};
use crate::faces::Faces;
use crate::forward::replica::Forwarding;
use crate::http::{NodeView, Role, Wish};
use crate::lease::consul::{ConsulLease, Face};
use crate::lease::{Primary, StaticLease};
use crate::replication::confirm::Confirmer;
use crate::replication::serve::ConnectedReplica;
use crate::sockets::Sockets;
use crate::tls::{self, TlsError, TlsMode};
use crate::web::WebDatabase;

/// Connections from other nodes at once.
const CONNECTIONS_MAX: usize = 256;
/// From so many on, a dialler must prove its address before it costs memory.
const CONNECTIONS_EASY: usize = 32;
/// Threads for blocking calls; replication uses at most 28 of them, exports and imports 20, and the
/// rest is for what nobody may hold up.
const BLOCKING_THREADS: usize = 64;
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
    /// The role is not changed, for this reason.
    #[error("the role of the primary stays where it is: {0}")]
    Refused(String),
    /// The node has been shut down.
    #[error("the node has been shut down")]
    Stopped,
}

/// A running node. Dropping it shuts it down.
pub struct Node {
    shared: Arc<Shared>,
    /// `None` if Consul decides.
    assignments: Option<StaticLease>,
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
        let confirmer = Confirmer::new(config.replication);
        let store = Store::open_with(&config.data.dir, store_options(&config, &confirmer))?;
        if let Some(reason) = closed_at_first(&config) {
            store.gate().close(&reason);
        }
        let sockets = Sockets::bind(&config)?;
        let (who, lease) = Decider::of(&config, &store, sockets.addr)?;
        let runtime = runtime()?;
        let endpoint = {
            let _inside = runtime.enter();
            let quinn_runtime = Arc::new(quinn::TokioRuntime);
            let settings = tls::quic_endpoint_config();
            let mut endpoint = Endpoint::new(settings, Some(server), sockets.quic, quinn_runtime)?;
            endpoint.set_default_client_config(client);
            endpoint
        };
        let every = config.forward_writes;
        let forwarding = Arc::new(Forwarding::new(runtime.handle().clone(), every));
        store.set_remote(Some(forwarding.clone()));
        let shared = Arc::new(Shared {
            store,
            config,
            confirmer,
            tls,
            endpoint,
            addr: sockets.addr,
            proxy_addr: sockets.proxy.as_ref().and_then(|proxy| proxy.local_addr().ok()),
            role: watch::Sender::default(),
            forwarding,
            mount: Mutex::new(None),
            shown: watch::Sender::new(()),
            part: Mutex::new(Part::None),
            changes: watch::Sender::new((0, Ok(()))),
            lease,
        });
        Self::run(shared, who, runtime, (sockets.api, sockets.proxy))
    }

    fn run(
        shared: Arc<Shared>,
        who: Decider,
        runtime: Runtime,
        (api, proxy): (TcpListener, Option<TcpListener>),
    ) -> Result<Self, NodeError> {
        let faces = {
            let _inside = runtime.enter();
            Faces::start(&shared, &shared.config, &shared.tls, api, proxy)?
        };
        let stop = Arc::new(Notify::new());
        if let Some(confirmer) = &shared.confirmer {
            runtime.spawn(Confirmer::run(Arc::downgrade(confirmer)));
        }
        let (end, ended) = mpsc::channel();
        if let (Some(confirmer), Some(lease)) = (&shared.confirmer, &shared.lease) {
            confirmer.set_publisher(lease.publisher());
        }
        let (commands, assignments) = match who {
            Decider::Config(lease) => (Commands::Static(lease.watch()), Some(lease)),
            Decider::Consul { inbox, orders } => {
                if let Some(lease) = &shared.lease {
                    lease.start(shared.clone(), *inbox)?;
                }
                (Commands::Elected(orders), None)
            }
        };
        let conductor = Conductor { shared: shared.clone(), commands, stop: stop.clone(), faces };
        runtime.spawn(async move {
            conductor.run().await;
            // Fails only if nobody waits for it.
            let _ = end.send(());
        });
        let running = Running { runtime, stop, ended };
        let runtime = Mutex::new(Some(running));
        let node = Self { shared, assignments, assigning: Mutex::new(()), runtime };
        if node.assignments.is_some() {
            node.wait_for_change(1)?;
        }
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
        let mount = litefs_fuse::Mount::start(&self.shared.store, options)?;
        *self.shared.mount.lock() = Some(mount.view());
        Ok(Some(mount))
    }

    /// A database, for the layer [`litefs_web::ReadYourWrites`] of a web application.
    ///
    /// # Errors
    /// A name that no database can have.
    pub fn web(&self, name: &str) -> Result<WebDatabase, NodeError> {
        Ok(WebDatabase::new(self.shared.clone(), DbName::new(name)?))
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
        let deadline = after(timeout);
        let db = self.wait_for_database(&name, deadline, pos)?;
        let left = deadline.saturating_duration_since(Instant::now());
        let ours = db.wait_for(pos.txid, left)?;
        if ours.txid == pos.txid && ours != pos {
            return Err(NodeError::Diverged { db: name, ours, wanted: pos });
        }
        Ok(ours)
    }

    /// True if this node may become the primary.
    pub fn is_candidate(&self) -> bool {
        self.shared.config.lease.candidate
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

    /// Where the proxy listens, if there is one.
    pub fn proxy_addr(&self) -> Option<SocketAddr> {
        self.shared.proxy_addr
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
        NodeView::disconnected_because(&*self.shared)
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
    /// The new epoch could not be written: the node then is neither. `Refused` if Consul decides.
    pub fn assign_primary(&self, primary: Primary) -> Result<(), NodeError> {
        let Some(lease) = &self.assignments else {
            let text = "Consul decides who is primary: use promote".to_owned();
            return Err(NodeError::Refused(text));
        };
        // One assignment at a time, so that each waits for its own change.
        let _alone = self.assigning.lock();
        let before = self.shared.changes.borrow().0;
        if lease.assign(primary, self.shared.store.epoch()) {
            self.wait_for_change(before + 1)?;
        }
        Ok(())
    }

    /// Makes this node the primary: asks the present one to hand the role over, and blocks until
    /// it has. No commit is lost; writers wait meanwhile.
    ///
    /// # Errors
    /// `Refused`: why not, or what is in the way. With a static lease, always, unless this node is
    /// the primary.
    pub fn promote(&self) -> Result<(), NodeError> {
        if self.is_primary() {
            return Ok(());
        }
        self.wait_for_wish(self.shared.promote())
    }

    /// Gives the role of the primary to the best replica, or to nobody; this node does not take it
    /// again for `lease.demote-delay`. Blocks until that is done.
    ///
    /// # Errors
    /// `Refused`: it is not the primary, or the lease is static.
    pub fn demote(&self) -> Result<(), NodeError> {
        let lease = self.shared.lease.as_ref();
        self.wait_for_wish(lease.map_or_else(Wish::of_static_lease, Lease::demote))
    }

    /// Gives the lease back for good, to the best replica if there is one; before a node that shows
    /// a mount is shut down, so that nobody writes in between. Does nothing with a static lease.
    pub fn resign(&self) {
        if let Some(lease) = &self.shared.lease {
            lease.stop();
        }
    }

    /// Disconnects, folds the databases and lets go of the data directory. Doing it again does
    /// nothing.
    ///
    /// # Errors
    /// The store's, from folding: the data directory is whole in any case.
    pub fn shutdown(&self) -> Result<(), NodeError> {
        let Some(running) = self.runtime.lock().take() else { return Ok(()) };
        self.resign();
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
        let change = self.block_on(async move {
            let done = changes.wait_for(|(done, _)| *done >= count).await;
            done.map(|done| done.1.clone())
        })?;
        match change {
            Ok(result) => result.map_err(|text| io::Error::other(text).into()),
            Err(_) => Err(NodeError::Stopped),
        }
    }

    fn wait_for_wish(&self, wish: Wish) -> Result<(), NodeError> {
        self.block_on(wish.answer())?.map_err(NodeError::Refused)
    }

    /// Blocks, also within another runtime, until something on the node's runtime is done.
    fn block_on<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, NodeError> {
        let (sender, receiver) = mpsc::channel();
        let spawned = self.runtime.lock().as_ref().map(|running| {
            running.runtime.spawn(async move {
                // Fails only if nobody waits any more.
                let _ = sender.send(work.await);
            })
        });
        spawned.ok_or(NodeError::Stopped)?;
        receiver.recv().map_err(|_| NodeError::Stopped)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.shutdown() {
            tracing::error!("shutting down: {error}");
        }
    }
}

/// Who decides which node is primary.
enum Decider {
    Config(StaticLease),
    Consul { inbox: Box<Inbox>, orders: UnboundedReceiver<Order> },
}

impl Decider {
    /// As configured, with the lease's handle if it is Consul.
    fn of(
        config: &Config,
        store: &Store,
        addr: SocketAddr,
    ) -> Result<(Self, Option<Lease>), NodeError> {
        let Some(consul) = &config.lease.consul else {
            let lease = StaticLease::new(configured_primary(config), store.epoch());
            return Ok((Self::Config(lease), None));
        };
        if consul.url.exposes_token() {
            tracing::warn!(
                "lease.consul.url: the token for Consul crosses the network unencrypted; use https"
            );
        }
        let face = Face {
            node: store.node_id(),
            hostname: config.primary_hostname(),
            advertise_url: config.own_url(addr).to_string(),
        };
        let consul = ConsulLease::new(consul, face)?;
        let (lease, inbox, orders) = Lease::new(consul);
        Ok((Self::Consul { inbox: Box::new(inbox), orders }, Some(lease)))
    }
}

/// Why nothing may be committed before the node has a role; `None` for a static primary.
fn closed_at_first(config: &Config) -> Option<String> {
    if config.lease.consul.is_some() {
        return Some("this node has not found its part in the cluster yet".to_owned());
    }
    match configured_primary(config) {
        Primary::At(url) => Some(replica_reason(&url)),
        Primary::ThisNode => None,
    }
}

fn configured_primary(config: &Config) -> Primary {
    match &config.lease.advertise_url {
        Some(url) if !config.lease.candidate => Primary::At(url.clone()),
        _ => Primary::ThisNode,
    }
}

fn store_options(config: &Config, confirmer: &Option<Arc<Confirmer>>) -> Options {
    let durability = match config.replication {
        // On the primary and its replicas: what is acknowledged is on all their disks.
        ReplicationMode::Sync(_) => Durability::Full,
        _ => config.data.durability,
    };
    Options {
        durability,
        replication: confirmer.clone().map(|confirmer| confirmer as Arc<dyn Replication>),
        retention: config.data.retention,
        log_size: config.data.log_size,
        ..Options::default()
    }
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
    format!("LFSC{:016X}", litefs_store::random())
}
