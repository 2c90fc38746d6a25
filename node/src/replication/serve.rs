//! Serves the replicas of a primary: drives one [`Peer`] for each connection.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use litefs_store::{DbName, Event, Pos, Relation, Store, Subscription, Timing};
use parking_lot::{Mutex, RwLock};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use super::ack_times::AckTimes;
use super::confirm::Confirmer;
use super::control::{Control, ControlError};
use super::primary::{History, Identity, Outcome, Peer, Task, Work};
use super::quorum::Joined;
use super::send::{Line, Sender};
use super::wire::{Ack, Close, FromPrimary, FromReplica, Reason, StreamReset};
use super::{GREETING_TIMEOUT, printable, wall_ms};
use crate::forward;

/// Threads that read snapshots and compacted records for all replicas.
const BULK_READERS: usize = 16;

/// A replica that has not closed the connection after this time is left alone.
pub const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);

/// Called when a replica, by its node id, asks for the role; the closure tells it why it does not
/// get it, now or later.
pub type TakeOver = Box<dyn Fn(u64, Box<dyn FnOnce(&str) + Send>) + Send + Sync>;

/// The time in which this node is the primary.
pub struct Term {
    store: Store,
    identity: Identity,
    bulk: Arc<Semaphore>,
    forward: forward::primary::Server,
    /// Commits that wait for replicas, if they have to.
    confirmer: Option<Arc<Confirmer>>,
    sessions: Arc<RwLock<Vec<Arc<Session>>>>,
    sessions_begun: AtomicU64,
    /// Why the term is over, once it is.
    ended: Mutex<Option<Close>>,
    take_over: TakeOver,
    /// Replicas have acknowledged something, or have come or gone.
    moved: Notify,
    epoch_start: Instant,
    ack_times: Arc<Timing>,
    _commits: Subscription,
}

/// A connected replica, as status and metrics show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectedReplica {
    /// Its node id.
    pub node: u64,
    /// Its certificate's node name, if it has one.
    pub certified: Option<String>,
    /// Its host's name, as it says.
    pub hostname: String,
    /// Where it connects from.
    pub addr: SocketAddr,
    /// How long ago it last had everything; `None` if it never had.
    pub lag: Option<Duration>,
    /// How far it acknowledged each database.
    pub acks: Vec<Ack>,
    /// Transactions that it has not acknowledged yet, over all databases.
    pub unacknowledged: u64,
}

struct Session {
    connection: Connection,
    certified: Option<String>,
    peer: Mutex<Peer>,
    /// Newest positions since the session's last turn.
    commits: Mutex<HashMap<DbName, Pos>>,
    wake: Notify,
    /// What others want the replica to be told.
    word: Mutex<Option<FromPrimary>>,
}

type JobEnd = (DbName, Line, Outcome);

impl Term {
    /// Begins a term. The write gate opens afterwards.
    pub fn begin(
        store: Store,
        identity: Identity,
        confirmer: Option<Arc<Confirmer>>,
        take_over: TakeOver,
    ) -> Self {
        if let Some(confirmer) = &confirmer {
            confirmer.begin();
        }
        let sessions: Arc<RwLock<Vec<Arc<Session>>>> = Arc::default();
        let listeners = sessions.clone();
        let commits = store.subscribe(move |event| {
            if let Event::Position { db, pos, .. } = event {
                listeners.read().iter().for_each(|session| session.note_commit(db, *pos));
            }
        });
        Self {
            forward: forward::primary::Server::new(store.clone()),
            store,
            identity,
            bulk: Arc::new(Semaphore::new(BULK_READERS)),
            confirmer,
            sessions,
            sessions_begun: AtomicU64::new(0),
            ended: Mutex::new(None),
            take_over,
            moved: Notify::new(),
            epoch_start: Instant::now(),
            ack_times: Arc::default(),
            _commits: commits,
        }
    }

    /// The epoch of this term.
    pub fn epoch(&self) -> u64 {
        self.identity.epoch
    }

    /// How long commits of this term took to be acknowledged by a replica.
    pub fn ack_times(&self) -> &Timing {
        &self.ack_times
    }

    /// The replicas that are connected and welcomed.
    pub fn replicas(&self) -> Vec<ConnectedReplica> {
        let now = self.epoch_start.elapsed();
        self.sessions().iter().filter_map(|session| session.state(now)).collect()
    }

    /// Waits until a replica has acknowledged everything that is here now, on its disk. Nothing may
    /// be committed meanwhile.
    ///
    /// # Errors
    /// The replica is not connected, or takes longer: which database is missing.
    pub async fn caught_up(&self, node: u64, timeout: Duration) -> Result<(), String> {
        let missing = Mutex::new("the replica is not connected".to_owned());
        let mut is_asked = false;
        let waiting = async {
            loop {
                let moved = self.moved.notified();
                tokio::pin!(moved);
                moved.as_mut().enable();
                let Some(session) = self.session_of(node) else {
                    return Err(missing.lock().clone());
                };
                let (applied, synced) = session.missing(&self.store);
                // Its background would sync too, and tell with the next heartbeat.
                if applied.is_none() && synced.is_some() && !is_asked {
                    session.tell(FromPrimary::Sync);
                    is_asked = true;
                }
                let Some(first) = applied.or(synced) else { return Ok(()) };
                *missing.lock() = first;
                moved.await;
            }
        };
        let waited = tokio::time::timeout(timeout, waiting).await;
        waited.unwrap_or_else(|_| Err(missing.lock().clone()))
    }

    fn session_of(&self, node: u64) -> Option<Arc<Session>> {
        let is_of = |session: &&Arc<Session>| {
            session.peer.lock().hello().is_some_and(|hello| hello.node == node)
        };
        self.sessions().iter().rev().find(is_of).cloned()
    }

    /// A copy: whoever waits for a session's peer must not hold the list, which commits need.
    fn sessions(&self) -> Vec<Arc<Session>> {
        self.sessions.read().clone()
    }

    /// Ends all connections, also those that are still greeting.
    pub fn end(&self, close: &Close) {
        *self.ended.lock() = Some(close.clone());
        if let Some(confirmer) = &self.confirmer {
            confirmer.end(&close.text);
        }
        self.sessions.read().iter().for_each(|session| session.wake.notify_one());
    }

    /// Serves one connection until it ends. `certified` is the node name in its certificate.
    pub async fn serve(&self, connection: Connection, certified: Option<String>) {
        let greeting = tokio::time::timeout(GREETING_TIMEOUT, connection.accept_bi()).await;
        let (send, recv) = match greeting {
            Ok(Ok(streams)) => streams,
            Ok(Err(error)) => return log_end(&connection, &error.to_string()),
            Err(_) => {
                let close = Close::new(Reason::Timeout, "no greeting arrived");
                return close_connection(&connection, &close);
            }
        };
        let session = Arc::new(Session {
            connection: connection.clone(),
            certified,
            peer: Mutex::new(Peer::new(self.identity.clone(), self.epoch_start.elapsed())),
            commits: Mutex::default(),
            wake: Notify::new(),
            word: Mutex::new(None),
        });
        self.sessions.write().push(session.clone());
        let mut drive = Drive {
            term: self,
            session: session.clone(),
            control: Control::new(send, recv),
            ack_times: AckTimes::new(self.ack_times.clone()),
            lines: HashMap::new(),
            jobs: JoinSet::new(),
            forwarded: JoinSet::new(),
            number: self.sessions_begun.fetch_add(1, Ordering::Relaxed),
            joined: None,
        };
        let mut end = drive.run().await;
        if let End::Goodbye(close) = end {
            end = drive.say_goodbye(close).await;
        }
        self.sessions.write().retain(|other| !Arc::ptr_eq(other, &session));
        self.moved.notify_waiters();
        drive.leave_quorum();
        match end {
            End::Close(close) | End::Goodbye(close) => close_connection(&connection, &close),
            End::Lost(text) => log_end(&connection, &text),
        }
    }

    /// The same node connected again: its former connection is dead, even if it does not know.
    fn supersede(&self, newest: &Arc<Session>, node: u64) {
        let close = Close::new(Reason::Superseded, "this node has connected again");
        for session in &self.sessions() {
            let is_same = session.peer.lock().hello().is_some_and(|h| h.node == node);
            if is_same && !Arc::ptr_eq(session, newest) {
                close_connection(&session.connection, &close);
            }
        }
    }
}

impl Session {
    /// Called on the thread that commits: quick, and wakes the session only once.
    fn note_commit(&self, db: &DbName, pos: Pos) {
        let mut commits = self.commits.lock();
        let was_empty = commits.is_empty();
        commits.insert(db.clone(), pos);
        drop(commits);
        if was_empty {
            self.wake.notify_one();
        }
    }

    /// Has the replica told this; what was not told yet and is older is dropped.
    fn tell(&self, word: FromPrimary) {
        *self.word.lock() = Some(word);
        self.wake.notify_one();
    }

    /// A database that the replica has not applied, and one that it has not on disk, up to what is
    /// here; in words.
    fn missing(&self, store: &Store) -> (Option<String>, Option<String>) {
        let acks: HashMap<DbName, Ack> =
            self.peer.lock().acks().map(|ack| (ack.db.clone(), ack)).collect();
        let (mut applied, mut synced) = (None, None);
        for db in store.databases().iter().filter(|db| !db.pos().is_zero()) {
            let (name, newest) = (db.name(), db.pos());
            let ack = acks.get(name);
            let at = |pos: Option<Pos>| pos.unwrap_or_default();
            let (there, on_disk) = (at(ack.map(|a| a.applied)), at(ack.map(|a| a.synced)));
            if there != newest {
                applied.get_or_insert(format!("it has {name} at {there}, the primary at {newest}"));
            }
            if on_disk != newest {
                synced.get_or_insert(format!("it has {name} on disk at {on_disk} of {newest}"));
            }
        }
        (applied, synced)
    }

    fn state(&self, now: Duration) -> Option<ConnectedReplica> {
        let peer = self.peer.lock();
        let hello = peer.hello()?;
        Some(ConnectedReplica {
            node: hello.node,
            certified: self.certified.clone(),
            hostname: hello.hostname.clone(),
            addr: self.connection.remote_address(),
            lag: peer.lag(now),
            acks: peer.acks().collect(),
            unacknowledged: peer.unacknowledged(),
        })
    }
}

/// One connection's loop.
struct Drive<'a> {
    term: &'a Term,
    session: Arc<Session>,
    control: Control,
    ack_times: AckTimes,
    lines: HashMap<DbName, Line>,
    jobs: JoinSet<JobEnd>,
    /// Streams of write forwarding.
    forwarded: JoinSet<()>,
    /// Which of the term's connections this is.
    number: u64,
    /// The replica's node id, once it has had everything.
    joined: Option<u64>,
}

/// How a connection ends.
enum End {
    /// By us, for this reason.
    Close(Close),
    /// By us, because the term is over.
    Goodbye(Close),
    /// By the peer or the network.
    Lost(String),
}

impl From<Close> for End {
    fn from(close: Close) -> Self {
        Self::Close(close)
    }
}

impl From<ControlError> for End {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Wire(error) => Self::Close(error.into()),
            ControlError::Ended => Self::Close(Close::new(Reason::BadProtocol, error.to_string())),
            ControlError::Lost(error) => Self::Lost(error.to_string()),
        }
    }
}

impl Drive<'_> {
    async fn run(&mut self) -> End {
        loop {
            if let Err(end) = self.turn().await {
                return end;
            }
            let timeout = self.term.epoch_start + self.session.peer.lock().poll_timeout();
            tokio::select! {
                () = self.session.wake.notified() => (),
                progress = self.control.progress() => if let Err(error) = progress {
                    return error.into();
                },
                stream = self.session.connection.accept_bi() => match stream {
                    Ok((send, recv)) => if let Err(close) = self.serve_forwarding(send, recv) {
                        return End::Close(close);
                    },
                    Err(error) => return End::Lost(error.to_string()),
                },
                Some(_) = self.forwarded.join_next() => (),
                Some(end) = self.jobs.join_next() => match end {
                    Ok(end) => self.job_ended(end),
                    Err(error) => return End::Lost(format!("a sender failed: {error}")),
                },
                () = tokio::time::sleep_until(timeout.into()) => (),
            }
        }
    }

    /// A client of this replica wants to write here.
    fn serve_forwarding(&mut self, send: SendStream, recv: RecvStream) -> Result<(), Close> {
        let replica = self.session.peer.lock().hello().map(|hello| hello.hostname.clone());
        let early = || Close::new(Reason::BadProtocol, "a stream before the greeting");
        let replica = replica.ok_or_else(early)?;
        self.forwarded.spawn(self.term.forward.clone().serve(send, recv, replica));
        Ok(())
    }

    /// Lets the replica close the connection: our own close would wait behind what is being sent.
    async fn say_goodbye(&mut self, close: Close) -> End {
        self.forwarded.shutdown().await;
        self.jobs.shutdown().await;
        self.lines.drain().for_each(|(_, line)| line.reset(StreamReset::Superseded));
        self.control.push_to_replica(&FromPrimary::Goodbye(close.clone()));
        let answered = async {
            loop {
                if let Err(error) = self.control.progress().await {
                    return error;
                }
                while let Ok(Some(_)) = self.control.next_frame() {}
            }
        };
        match tokio::time::timeout(GOODBYE_TIMEOUT, answered).await {
            Ok(error) => End::Lost(format!("{}: {error}", close.text)),
            Err(_) => End::Close(close),
        }
    }

    /// Feeds the machine with what has come and does what it wants.
    async fn turn(&mut self) -> Result<(), End> {
        if let Some(close) = &*self.term.ended.lock() {
            return Err(End::Goodbye(close.clone()));
        }
        self.take_commits();
        self.take_messages()?;
        self.join_quorum();
        let now = self.now();
        {
            let mut peer = self.session.peer.lock();
            peer.handle_timeout(now, &self.term.store);
            if let Some(close) = peer.poll_close() {
                return Err(close.clone().into());
            }
            while !self.control.is_clogged() {
                let Some(message) = peer.poll_message(now, wall_ms()) else { break };
                self.control.push_to_replica(&message);
            }
        }
        self.pass_on_wish();
        if !self.control.is_clogged()
            && let Some(word) = self.session.word.lock().take()
        {
            self.control.push_to_replica(&word);
        }
        loop {
            let Some(work) = self.session.peer.lock().poll_work() else { return Ok(()) };
            match work {
                Work::Send(db, task) => self.start(db, task).await,
                Work::Finish(db) => self.lines.remove(&db).unwrap_or_default().finish(),
                Work::Reset(db) => {
                    let line = self.lines.remove(&db).unwrap_or_default();
                    line.reset(StreamReset::Superseded);
                }
            }
        }
    }

    fn now(&self) -> Duration {
        self.term.epoch_start.elapsed()
    }

    fn take_commits(&mut self) {
        let commits = std::mem::take(&mut *self.session.commits.lock());
        if commits.is_empty() {
            return;
        }
        let now = self.now();
        let mut peer = self.session.peer.lock();
        for (db, pos) in commits {
            self.ack_times.handle_commit(now, &db, pos.txid);
            peer.handle_commit(now, &db, pos, &self.term.store);
        }
    }

    fn take_messages(&mut self) -> Result<(), End> {
        while let Some(frame) = self.control.next_frame().map_err(ControlError::from)? {
            let message = FromReplica::decode(&frame).map_err(ControlError::from)?;
            let is_hello = matches!(message, FromReplica::Hello(_));
            let is_ack = matches!(message, FromReplica::Acks(_));
            let acks = match (&message, self.joined) {
                (FromReplica::Acks(acks), Some(_)) => acks.clone(),
                _ => Vec::new(),
            };
            let now = self.now();
            if let FromReplica::Acks(acks) = &message {
                for ack in acks {
                    self.ack_times.handle_ack(now, &ack.db, ack.applied.txid);
                }
            }
            self.session.peer.lock().handle_message(now, message, &self.term.store);
            self.pass_on(acks);
            if is_hello {
                self.welcome();
            }
            if is_ack {
                self.term.moved.notify_waiters();
            }
        }
        Ok(())
    }

    /// Whether the replica gets the role is decided elsewhere.
    fn pass_on_wish(&self) {
        let node = {
            let mut peer = self.session.peer.lock();
            peer.hello().map(|hello| hello.node).filter(|_| peer.poll_take_over())
        };
        let Some(node) = node else { return };
        let session = self.session.clone();
        let refuse = move |why: &str| session.tell(FromPrimary::NoTakeOver(printable(why)));
        (self.term.take_over)(node, Box::new(refuse));
    }

    /// Once the replica has had everything, commits may wait for it.
    fn join_quorum(&mut self) {
        let Some(confirmer) = self.term.confirmer.as_ref().filter(|_| self.joined.is_none()) else {
            return;
        };
        let (node, may_lead, filter, acks) = {
            let peer = self.session.peer.lock();
            let Some(hello) = peer.hello().filter(|_| peer.lag(self.now()).is_some()) else {
                return;
            };
            let acks: Vec<Ack> = peer.acks().filter(|ack| peer.streams(&ack.db)).collect();
            (hello.node, hello.may_lead, peer.filter().clone(), acks)
        };
        self.joined = Some(node);
        let joined = Joined { node, session: self.number, filter: &filter, may_lead, acks: &acks };
        confirmer.joined(&joined, || {
            let all = Store::databases(&self.term.store);
            all.iter().map(|db| (db.name().clone(), db.pos())).collect()
        });
    }

    fn leave_quorum(&self) {
        if let (Some(confirmer), Some(node)) = (&self.term.confirmer, self.joined) {
            confirmer.lost(node, self.number);
        }
    }

    /// Confirms commits.
    fn pass_on(&self, mut acks: Vec<Ack>) {
        if let (Some(confirmer), Some(node), false) =
            (&self.term.confirmer, self.joined, acks.is_empty())
        {
            let peer = self.session.peer.lock();
            acks.retain(|ack| peer.streams(&ack.db));
            drop(peer);
            confirmer.acknowledged(node, self.number, &acks);
        }
    }

    fn welcome(&self) {
        let hello = self.session.peer.lock().hello().cloned();
        if let Some(hello) = hello {
            let addr = self.session.connection.remote_address();
            let (node, hostname) = (hello.node, hello.hostname);
            tracing::info!("replica {hostname} (node {node:016x}) connected from {addr}");
            self.term.supersede(&self.session, node);
        }
    }

    /// Starts a job. Most have little to send and end before they have to wait: only the others
    /// become tasks.
    async fn start(&mut self, name: DbName, task: Task) {
        let Some(db) = self.term.store.database(&name) else {
            return self.job_ended((name, Line::default(), Outcome::Failed(None)));
        };
        let line = self.lines.remove(&name).unwrap_or_default();
        let (connection, bulk) = (self.session.connection.clone(), self.term.bulk.clone());
        let mut job = Box::pin(Sender { connection, db, bulk }.run(line, task));
        match poll_once(job.as_mut()).await {
            Poll::Ready(end) => self.job_ended(end),
            Poll::Pending => {
                self.jobs.spawn(job);
            }
        }
    }

    fn job_ended(&mut self, (db, line, outcome): JobEnd) {
        self.lines.insert(db.clone(), line);
        let now = self.now();
        self.session.peer.lock().handle_outcome(now, &db, outcome, &self.term.store);
    }
}

impl History for Store {
    fn databases(&self) -> Vec<DbName> {
        let all = Store::databases(self);
        all.iter().filter(|db| !db.pos().is_zero()).map(|db| db.name().clone()).collect()
    }

    fn newest(&self, db: &DbName) -> Option<Pos> {
        self.database(db).map(|db| db.pos()).filter(|pos| !pos.is_zero())
    }

    fn relation(&self, db: &DbName, pos: Pos) -> Result<Relation, String> {
        let db = self.database(db).ok_or("there is no such database")?;
        // It may read the log.
        tokio::task::block_in_place(|| db.relation(pos)).map_err(|e| e.to_string())
    }
}

async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// Closes a connection; both sides log the reason.
pub fn close_connection(connection: &Connection, close: &Close) {
    let addr = connection.remote_address();
    match close.reason {
        Reason::Shutdown | Reason::Superseded => {
            tracing::info!("closed the connection with {addr}: {}", close.text);
        }
        _ => tracing::warn!("closed the connection with {addr}: {}", close.text),
    }
    connection.close(VarInt::from_u32(close.reason.code()), close.text.as_bytes());
}

fn log_end(connection: &Connection, text: &str) {
    let (addr, text) = (connection.remote_address(), printable(text));
    tracing::info!("the connection from {addr} has ended: {text}");
}
