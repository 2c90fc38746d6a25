//! Follows the primary: dials it, stays connected, and drives [`Upstream`].

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use litefs_store::{Database, DbName, ErrorKind, Event, Pos, Store};
use parking_lot::Mutex;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::control::{Control, ControlError};
use super::following::{Following, received_now};
use super::receive::{Limits, Receiver};
use super::replica::{Action, DIAL_TIMEOUT, Local, UNKNOWN, Upstream};
use super::serve::close_connection;
use super::wire::{Close, FromPrimary, FromReplica, MAX_POINTS, Offer, Reason, Welcome};
use super::{dial, diverged, printable, wall_ms};
use crate::config;
use crate::forward::replica::Forwarding;
use crate::tls::TlsMode;

/// Offers in one message when joining.
const OFFER_BATCH: usize = 200;

/// What becomes of the connection to the primary.
#[derive(Debug)]
pub enum LinkEvent<'a> {
    /// It welcomed us.
    Up(&'a Welcome),
    /// Everything of it has arrived.
    InSync(&'a Welcome),
    /// It does not hand its role over, for this reason.
    NoTakeOver(&'a str),
    /// The connection on which it had welcomed us, or was about to, is over; not by our own wish.
    Down,
}

/// Told what becomes of the connection.
pub type Listener = Box<dyn Fn(LinkEvent<'_>) + Send + Sync>;

/// What a follower needs to know.
pub struct Follow {
    /// This node's store.
    pub store: Store,
    /// The endpoint to dial from, if the primary can be reached from its address.
    pub endpoint: Endpoint,
    /// How the nodes prove who they are.
    pub tls: Arc<TlsMode>,
    /// The primary.
    pub target: config::Endpoint,
    /// The databases to keep; empty: all.
    pub filter: Vec<DbName>,
    /// True if this node may become primary.
    pub may_lead: bool,
    /// Told what becomes of the connection.
    pub listener: Listener,
    /// Told the connection over which clients can write.
    pub forwarding: Arc<Forwarding>,
}

/// A running follower.
pub struct Follower {
    upstream: Arc<Mutex<Upstream>>,
    epoch_start: Instant,
    failure: Arc<Mutex<Option<String>>>,
    wake: Arc<Notify>,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Follower {
    /// Starts following. Needs a tokio runtime with several threads.
    pub fn start(follow: Follow, hostname: String, reconnect_delay: Duration, seed: u64) -> Self {
        let upstream = Upstream::new(hostname, follow.may_lead, reconnect_delay, seed);
        let upstream = Arc::new(Mutex::new(upstream));
        let (stop, stopped) = watch::channel(false);
        let epoch_start = Instant::now();
        let failure: Arc<Mutex<Option<String>>> = Arc::default();
        let wake = Arc::new(Notify::new());
        let driver = Driver {
            follow,
            upstream: upstream.clone(),
            wake: wake.clone(),
            limits: Limits::default(),
            epoch_start,
            stopped,
            failure: failure.clone(),
        };
        let task = tokio::spawn(driver.run());
        Self { upstream, epoch_start, failure, wake, stop, task }
    }

    /// How long ago this node last had everything; `None` if it never had.
    pub fn lag(&self) -> Option<Duration> {
        self.upstream.lock().lag(self.epoch_start.elapsed())
    }

    /// The primary's wall clock at its last heartbeat, ms since 1970.
    pub fn primary_wall_ms(&self) -> Option<i64> {
        self.upstream.lock().primary_wall_ms()
    }

    /// Why databases are not being followed.
    pub fn reasons(&self) -> BTreeMap<DbName, String> {
        self.upstream.lock().reasons()
    }

    /// Why there is no connection to the primary; `None` while there is one, or was not tried yet.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }

    /// Asks the primary to hand its role over to this node; false if there is no connection to it.
    pub fn ask_take_over(&self) -> bool {
        let is_asked = self.upstream.lock().handle_take_over();
        self.wake.notify_one();
        is_asked
    }

    /// Disconnects. When it returns, nothing of the primary is being applied any more.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        // A panic in the task was reported when it happened.
        let _ = self.task.await;
    }
}

struct Driver {
    follow: Follow,
    upstream: Arc<Mutex<Upstream>>,
    wake: Arc<Notify>,
    limits: Limits,
    epoch_start: Instant,
    stopped: watch::Receiver<bool>,
    /// Why there is no connection, since the last one.
    failure: Arc<Mutex<Option<String>>>,
}

/// How a connection ended.
enum End {
    /// By us; the peer is told.
    Close(Close),
    /// By the peer or the network.
    Lost(ConnectionError),
}

impl From<ControlError> for End {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Wire(error) => Self::Close(error.into()),
            ControlError::Ended => Self::Close(Close::new(Reason::BadProtocol, error.to_string())),
            ControlError::Lost(error) => Self::Lost(error),
        }
    }
}

impl Driver {
    async fn run(mut self) {
        while !*self.stopped.borrow() {
            let is_time = self.upstream.lock().poll_dial(self.epoch_start.elapsed());
            if is_time {
                self.connect().await;
                continue;
            }
            let until = self.epoch_start + self.upstream.lock().poll_timeout();
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => (),
                () = stop(&mut self.stopped) => (),
            }
        }
        self.limits.drained().await;
    }

    /// Dials, and follows for as long as the connection lasts.
    async fn connect(&mut self) {
        let mut stopped = self.stopped.clone();
        let dialled = tokio::select! {
            dialled = tokio::time::timeout(DIAL_TIMEOUT, dial::open_control(&self.follow)) => dialled,
            () = stop(&mut stopped) => return,
        };
        let (connection, streams) = match dialled.unwrap_or_else(|_| Err("no answer".to_owned())) {
            Ok(connection) => connection,
            Err(text) => {
                self.note_failure(text);
                return self.upstream.lock().handle_closed(self.epoch_start.elapsed(), None);
            }
        };
        let end = self.follow_connection(&connection, streams).await;
        self.follow.forwarding.set_primary(None);
        if !*self.stopped.borrow() {
            (self.follow.listener)(LinkEvent::Down);
        }
        let (reason, text) = match end {
            End::Close(close) => (Some(close.reason), close.text),
            End::Lost(error) => explain(&error),
        };
        if !*self.stopped.borrow() {
            self.note_failure(text);
        }
        self.upstream.lock().handle_closed(self.epoch_start.elapsed(), reason);
    }

    async fn follow_connection(
        &mut self,
        connection: &Connection,
        (send, recv): (SendStream, RecvStream),
    ) -> End {
        self.upstream.lock().handle_connected(self.epoch_start.elapsed());
        let filter: HashSet<DbName> = self.follow.filter.iter().cloned().collect();
        let receiver = Arc::new(Receiver::new(
            self.follow.store.clone(),
            self.upstream.clone(),
            self.wake.clone(),
            (filter, self.limits.clone()),
            self.epoch_start,
        ));
        let damaged: Arc<Mutex<Vec<DbName>>> = Arc::default();
        let (note, wake) = (damaged.clone(), self.wake.clone());
        let _watch = self.follow.store.subscribe(move |event| {
            if let Event::Quarantined { db, .. } = event {
                note.lock().push(db.clone());
                wake.notify_one();
            }
        });
        let mut link = Link {
            driver: self,
            connection,
            control: Control::new(send, recv),
            receiver,
            tasks: JoinSet::new(),
            damaged,
        };
        let end = link.run().await;
        // Before the streams go, so that the primary sees this first.
        if let End::Close(close) = &end {
            close_connection(connection, close);
        }
        link.tasks.shutdown().await;
        end
    }

    /// Says why there is no connection, but not again and again.
    fn note_failure(&self, text: String) {
        let target = &self.follow.target;
        let mut last = self.failure.lock();
        if last.as_ref() == Some(&text) {
            tracing::debug!("no connection to the primary {target}: {text}");
        } else {
            tracing::warn!("no connection to the primary {target}: {text}; will keep trying");
            *last = Some(text);
        }
    }
}

/// What the peer, or the network, says about the end of a connection.
pub(super) fn explain(error: &ConnectionError) -> (Option<Reason>, String) {
    match error {
        ConnectionError::ApplicationClosed(close) => (
            Reason::from_code(close.error_code.into_inner()),
            printable(&String::from_utf8_lossy(&close.reason)),
        ),
        other => (None, other.to_string()),
    }
}

/// One connection's loop.
struct Link<'a> {
    driver: &'a mut Driver,
    connection: &'a Connection,
    control: Control,
    receiver: Arc<Receiver>,
    tasks: JoinSet<()>,
    damaged: Arc<Mutex<Vec<DbName>>>,
}

impl Link<'_> {
    async fn run(&mut self) -> End {
        let mut stopped = self.driver.stopped.clone();
        loop {
            if let Err(end) = self.turn() {
                return end;
            }
            let timeout = self.driver.epoch_start + self.driver.upstream.lock().poll_timeout();
            tokio::select! {
                () = self.driver.wake.notified() => (),
                progress = self.control.progress() => if let Err(error) = progress {
                    return self.why(error).await;
                },
                stream = self.connection.accept_uni() => match stream {
                    Ok(stream) => { self.tasks.spawn(self.receiver.clone().run(stream)); }
                    Err(error) => return End::Lost(error),
                },
                Some(ended) = self.tasks.join_next() => if let Err(error) = ended {
                    let text = format!("a task of this node failed: {error}");
                    return End::Close(Close::new(Reason::Shutdown, text));
                },
                () = tokio::time::sleep_until(timeout.into()) => (),
                () = stop(&mut stopped) => {
                    let text = "this node stops following";
                    return End::Close(Close::new(Reason::Shutdown, text));
                }
            }
        }
    }

    /// A refusal ends the control stream before the connection says why.
    async fn why(&self, error: ControlError) -> End {
        if let ControlError::Ended = error {
            let closed = tokio::time::timeout(Duration::from_millis(200), self.connection.closed());
            if let Ok(error) = closed.await {
                return End::Lost(error);
            }
        }
        error.into()
    }

    /// Feeds the machine with what has come and does what it wants.
    fn turn(&mut self) -> Result<(), End> {
        self.take_messages()?;
        let damaged = std::mem::take(&mut *self.damaged.lock());
        damaged.into_iter().for_each(|db| self.halt_damaged(db));
        loop {
            let now = self.driver.epoch_start.elapsed();
            let action = {
                let mut upstream = self.driver.upstream.lock();
                if let Some(close) = upstream.poll_close(now) {
                    return Err(End::Close(close.clone()));
                }
                upstream.poll_action()
            };
            match action {
                Some(action) => self.act(action)?,
                None => break,
            }
        }
        let now = self.driver.epoch_start.elapsed();
        let mut upstream = self.driver.upstream.lock();
        while !self.control.is_clogged() {
            let Some(message) = upstream.poll_message(now, wall_ms(), &self.driver.follow.store)
            else {
                break;
            };
            self.control.push_to_primary(&message);
        }
        Ok(())
    }

    fn take_messages(&mut self) -> Result<(), End> {
        while let Some(frame) = self.control.next_frame().map_err(ControlError::from)? {
            let message = FromPrimary::decode(&frame).map_err(ControlError::from)?;
            let now = self.driver.epoch_start.elapsed();
            let store = &self.driver.follow.store;
            self.driver.upstream.lock().handle_message(now, message, store);
        }
        Ok(())
    }

    fn act(&mut self, action: Action) -> Result<(), End> {
        match action {
            Action::Join(welcome) => return self.join(&welcome),
            Action::OfferPoints(db) => {
                let known = self.driver.follow.store.database(&db);
                let points = || known.map(|db| db.history_points(MAX_POINTS)).unwrap_or_default();
                let points = tokio::task::block_in_place(points);
                self.control.push_to_primary(&FromReplica::Points(db, points));
            }
            Action::Rewind(db, to) => {
                let rewind = Rewind {
                    store: self.driver.follow.store.clone(),
                    receiver: self.receiver.clone(),
                    upstream: self.driver.upstream.clone(),
                    wake: self.driver.wake.clone(),
                    epoch_start: self.driver.epoch_start,
                };
                self.tasks.spawn(rewind.run(db, to));
            }
            Action::NoteInSync(primary) => self.note_in_sync(&primary),
            Action::Sync => self.sync(),
            Action::NoTakeOver(why) => {
                (self.driver.follow.listener)(LinkEvent::NoTakeOver(&why));
            }
            Action::WarnUnknown(db) => tracing::warn!(%db, "{UNKNOWN}"),
        }
        Ok(())
    }

    fn note_in_sync(&self, primary: &Welcome) {
        tracing::info!("in sync with primary {}", primary.hostname);
        let store = &self.driver.follow.store;
        let filter = &self.driver.follow.filter;
        let upstream = self.driver.upstream.lock();
        let theirs = Store::databases(store)
            .into_iter()
            .filter(|db| filter.is_empty() || filter.contains(db.name()))
            .filter(|db| !upstream.is_unknown(db.name()));
        let theirs: Vec<Database> = theirs.collect();
        drop(upstream);
        let noted = tokio::task::block_in_place(|| {
            let received = received_now(store, &theirs);
            Following::of(store.dir()).note_in_sync(primary, &received).map(|()| received)
        });
        let noted = noted.map(|received| self.receiver.set_received(Some(received)));
        if let Err(error) = noted {
            tracing::warn!("cannot remember that this node is in sync: {error}");
        }
        (self.driver.follow.listener)(LinkEvent::InSync(primary));
    }

    /// Puts all databases on disk, at once rather than in the background.
    fn sync(&mut self) {
        let (store, upstream) = (self.driver.follow.store.clone(), self.driver.upstream.clone());
        let wake = self.driver.wake.clone();
        self.tasks.spawn(async move {
            let syncing = tokio::task::spawn_blocking(move || {
                let all = Store::databases(&store).into_iter();
                // A failure poisons the database, and shows in its position on disk.
                all.inspect(|db| drop(db.sync())).map(|db| db.name().clone()).collect::<Vec<_>>()
            });
            if let Ok(synced) = syncing.await {
                upstream.lock().handle_synced(synced);
                wake.notify_one();
            }
        });
    }

    fn join(&mut self, welcome: &Welcome) -> Result<(), End> {
        let store = &self.driver.follow.store;
        let following = Following::of(store.dir());
        let received = tokio::task::block_in_place(|| following.received_of(welcome));
        self.receiver.set_received(received);
        let adopt = || -> litefs_store::Result<()> {
            store.set_cluster_id(&welcome.cluster)?;
            store.set_epoch(welcome.epoch)
        };
        if let Err(error) = tokio::task::block_in_place(adopt) {
            let text = format!("cannot remember the cluster and its epoch: {error}");
            return Err(End::Close(Close::new(Reason::Shutdown, text)));
        }
        let (hostname, node, epoch) = (&welcome.hostname, welcome.node, welcome.epoch);
        tracing::info!("following primary {hostname} (node {node:016x}), epoch {epoch}");
        *self.driver.failure.lock() = None;
        (self.driver.follow.listener)(LinkEvent::Up(welcome));
        self.driver.follow.forwarding.set_primary(Some(self.connection.clone()));
        let filter = &self.driver.follow.filter;
        if !filter.is_empty() {
            self.control.push_to_primary(&FromReplica::Filter(filter.clone()));
        }
        let store = &self.driver.follow.store;
        let kept: Vec<Offer> = Store::databases(store)
            .into_iter()
            .filter(|db| filter.is_empty() || filter.contains(db.name()))
            .map(|db| Offer {
                db: db.name().clone(),
                pos: db.pos(),
                snapshot: store.is_damaged(db.name()),
            })
            .collect();
        self.driver.upstream.lock().handle_offered(&kept);
        for offers in kept.chunks(OFFER_BATCH) {
            self.control.push_to_primary(&FromReplica::Offers(offers.to_vec()));
        }
        self.control.push_to_primary(&FromReplica::Ready);
        Ok(())
    }

    /// A damaged database needs a snapshot.
    fn halt_damaged(&mut self, db: DbName) {
        if self.driver.upstream.lock().awaits_snapshot(&db) {
            return;
        }
        let (receiver, upstream) = (self.receiver.clone(), self.driver.upstream.clone());
        let (wake, epoch_start) = (self.driver.wake.clone(), self.driver.epoch_start);
        self.tasks.spawn(async move {
            let _halted = receiver.halt(&db).await;
            upstream.lock().handle_trouble(epoch_start.elapsed(), &db, false);
            wake.notify_one();
        });
    }
}

/// Goes back to a position that the primary has, keeping what follows it.
struct Rewind {
    store: Store,
    receiver: Arc<Receiver>,
    upstream: Arc<Mutex<Upstream>>,
    wake: Arc<Notify>,
    epoch_start: Instant,
}

impl Rewind {
    async fn run(self, name: DbName, to: Pos) {
        let _halted = self.receiver.halt(&name).await;
        let Some(db) = self.store.database(&name) else { return };
        let Some(permit) = self.receiver.limits().applier().await else { return };
        let rewinding = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            diverged::keep(&db, Some(to))?;
            db.rewind(to)
        });
        // It fails if the call panicked, which has been reported.
        let Ok(result) = rewinding.await else { return };
        let now = self.epoch_start.elapsed();
        match result {
            Ok(()) => {
                tracing::warn!(db = %name, "went back to {to}, which the primary has");
                self.upstream.lock().handle_reoffer(now, &name, false);
            }
            Err(error) if error.kind() == ErrorKind::Gone => {
                self.upstream.lock().handle_reoffer(now, &name, true);
            }
            Err(error) => {
                tracing::warn!(db = %name, "cannot go back to {to}: {error}");
                let mut upstream = self.upstream.lock();
                upstream.note_reason(&name, error.to_string());
                upstream.handle_trouble(now, &name, false);
            }
        }
        self.wake.notify_one();
    }
}

impl Local for Store {
    fn node(&self) -> u64 {
        self.node_id()
    }

    fn cluster(&self) -> String {
        self.cluster_id().unwrap_or_default()
    }

    fn epoch(&self) -> u64 {
        Store::epoch(self)
    }

    fn databases(&self) -> Vec<DbName> {
        Store::databases(self).iter().map(|db| db.name().clone()).collect()
    }

    fn positions(&self, db: &DbName) -> (Pos, Pos) {
        self.database(db).map(|db| (db.pos(), db.synced_pos())).unwrap_or_default()
    }

    fn is_damaged(&self, db: &DbName) -> bool {
        self.database(db).is_some_and(|db| db.quarantined().is_some())
    }
}

/// Waits until the follower is to stop, or is gone itself.
async fn stop(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
