//! The primary's side of one connection: which databases to stream to this replica, from where,
//! and in which order. Pure: no sockets, no clock, no store.
//!
//! [`Peer`] is fed through `handle_*` (messages, commits, what the senders did) and drained
//! through `poll_*`, in any order and as often as wanted: [`Peer::poll_close`] first (after it the
//! connection is over), then [`Peer::poll_message`], [`Peer::poll_work`], and at the latest at
//! [`Peer::poll_timeout`] [`Peer::handle_timeout`]. All times are monotonic, since any fixed
//! moment.
//!
//! How a database gets its plan, from the position that the replica offers:
//! ```text
//! we have no such database      Unknown; kept by the replica, streamed once we commit to it
//! position is the newest        nothing
//! on our history                records after it (one compacted record if they are many)
//! older than our log, or zero   snapshot record
//! not on our history            AskPoints -> newest point on our history -> Rewind -> new offer
//!                               no such point -> snapshot record; the replica preserves its own
//! the replica wants a snapshot  snapshot record
//! ```
//! Nothing is queued for a replica but the names of databases with something to send; a job names
//! a place in the log, and what is there is read when it can be sent.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use litefs_store::{DbName, Pos, Relation, Txid};

use super::lag::Lag;
use super::wire::{Ack, Close, FromPrimary, FromReplica, Hello, Offer, Reason, Welcome};
use super::{GREETING_TIMEOUT, HEARTBEAT_INTERVAL, HEARTBEAT_TIMEOUT, MAX_DATABASES};

/// Jobs that run at once for one replica. Each holds one chunk of bytes.
pub const MAX_ACTIVE: usize = 64;
/// Of those, jobs that read much: snapshot records and compacted records.
pub const MAX_BULK: usize = 2;
/// Streams that are open at once; idle ones are closed to make room.
pub const MAX_STREAMS: usize = 1000;
/// A database that could not be read is tried again after this time.
pub const RETRY: Duration = Duration::from_secs(1);
/// A replica that lacks more transactions *and* more bytes than these gets one compacted record.
const FAR_TRANSACTIONS: u64 = 128;
const FAR_BYTES: u64 = 1 << 20;

/// True if the records that a replica lacks should be compacted into one. `backlog` is their
/// length in bytes.
pub fn is_far_behind(after: Txid, newest: Txid, backlog: impl FnOnce() -> u64) -> bool {
    newest.get().saturating_sub(after.get()) > FAR_TRANSACTIONS && backlog() > FAR_BYTES
}

/// What the machine asks of the primary's databases.
pub trait History {
    /// All databases.
    fn databases(&self) -> Vec<DbName>;
    /// The newest position; `None` if there is no such database, or nothing was ever committed.
    fn newest(&self, db: &DbName) -> Option<Pos>;
    /// How a position relates to a database's history; the error says why that is not known.
    fn relation(&self, db: &DbName, pos: Pos) -> Result<Relation, String>;
}

/// Who the primary is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Node id.
    pub node: u64,
    /// The epoch in which it is primary.
    pub epoch: u64,
    /// Its cluster's id.
    pub cluster: String,
    /// Its name for clients.
    pub hostname: String,
}

/// What to send on a database's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// The records after this position.
    Records(Pos),
    /// One record from this position to the newest.
    Compacted(Pos),
    /// A snapshot record. With the replica's position if it is known to be on our history, else
    /// zero: the replica preserves what it has first.
    Snapshot(Pos),
}

impl Task {
    fn is_bulk(self) -> bool {
        !matches!(self, Self::Records(_))
    }
}

/// What the driver does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Send this, opening the database's stream if it is not open; then [`Peer::handle_outcome`].
    Send(DbName, Task),
    /// End the database's stream in order: everything on it has been acknowledged.
    Finish(DbName),
    /// Reset the database's stream: the replica has stopped reading it.
    Reset(DbName),
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Everything that was published is sent, up to here.
    Sent(Pos),
    /// Sent up to here; the rest is so much that it should be compacted.
    FarBehind(Pos),
    /// Sent up to here; the log after it is gone.
    Gone(Pos),
    /// Sent up to here, which is not on our history any more.
    Mismatch(Pos),
    /// The database could not be read; nothing (more) was sent since this position, or since the
    /// offered one.
    Failed(Option<Pos>),
    /// The stream ended within a frame, by the replica or by a failure; the replica will offer.
    Broken,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// Nothing to send.
    Idle,
    /// Waits for its turn.
    Queued(Task),
    /// A sender works on it.
    Active(Task),
    /// A sender works on it, on a stream that the replica has left; then this offer counts.
    Leaving(Task, Offer),
    /// Waits for the replica's points or offer.
    Asked,
    /// Not among our databases.
    Unknown(Offer),
    /// Could not be read; planned again at this time.
    Stalled(Offer, Duration),
}

#[derive(Debug)]
struct Db {
    phase: Phase,
    newest: Pos,
    sent: Pos,
    acked: Pos,
    synced: Pos,
    stream_open: bool,
    /// Its place among the idle streams.
    idle_since: Option<u64>,
    in_ready: bool,
    in_bulk: bool,
    not_before: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Greeting,
    Offering,
    Live,
}

/// The primary's view of one replica.
#[derive(Debug)]
pub struct Peer {
    local: Identity,
    stage: Stage,
    hello: Option<Hello>,
    filter: HashSet<DbName>,
    dbs: HashMap<DbName, Db>,
    ready: VecDeque<DbName>,
    bulk: VecDeque<DbName>,
    active: usize,
    active_bulk: usize,
    streams: usize,
    /// Streams with nothing to send, the one that rests longest first.
    idle_streams: BTreeMap<u64, DbName>,
    ticks: u64,
    resets: VecDeque<DbName>,
    welcome: Option<Welcome>,
    /// At most one open question for a database.
    questions: BTreeMap<DbName, FromPrimary>,
    stalled: BTreeSet<DbName>,
    wants_role: bool,
    lag: Lag,
    heard: Duration,
    heartbeat_due: Duration,
    close: Option<Close>,
}

impl Peer {
    /// A connection that was just accepted.
    pub fn new(local: Identity, now: Duration) -> Self {
        Self {
            local,
            stage: Stage::Greeting,
            hello: None,
            filter: HashSet::new(),
            dbs: HashMap::new(),
            ready: VecDeque::new(),
            bulk: VecDeque::new(),
            active: 0,
            active_bulk: 0,
            streams: 0,
            idle_streams: BTreeMap::new(),
            ticks: 0,
            resets: VecDeque::new(),
            welcome: None,
            questions: BTreeMap::new(),
            stalled: BTreeSet::new(),
            wants_role: false,
            lag: Lag::default(),
            heard: now,
            heartbeat_due: now,
            close: None,
        }
    }

    /// What the replica said first; `None` before that.
    pub fn hello(&self) -> Option<&Hello> {
        self.hello.as_ref()
    }

    /// How long ago the replica last had everything; `None` if it never had.
    pub fn lag(&self, now: Duration) -> Option<Duration> {
        self.lag.lag(now)
    }

    /// The databases that the replica keeps; empty: all.
    pub fn filter(&self) -> &HashSet<DbName> {
        &self.filter
    }

    /// True if what the replica has of this database is part of our history, or soon will be: then
    /// its acknowledgements mean something.
    pub fn streams(&self, db: &DbName) -> bool {
        self.dbs.get(db).is_some_and(|d| !matches!(d.phase, Phase::Unknown(_) | Phase::Asked))
    }

    /// How far the replica acknowledged each database.
    pub fn acks(&self) -> impl Iterator<Item = Ack> + '_ {
        self.dbs.iter().filter(|(_, d)| !d.acked.is_zero()).map(|(db, d)| Ack {
            db: db.clone(),
            applied: d.acked,
            synced: d.synced,
        })
    }

    /// Transactions that the replica has not acknowledged yet, over all databases.
    pub fn unacknowledged(&self) -> u64 {
        let missing = |d: &Db| d.newest.txid.get().saturating_sub(d.acked.txid.get());
        self.dbs.values().map(missing).sum()
    }

    /// A message came on the control stream.
    pub fn handle_message(&mut self, now: Duration, message: FromReplica, history: &impl History) {
        self.heard = now;
        if self.close.is_some() {
            return;
        }
        match (self.stage, message) {
            (Stage::Greeting, FromReplica::Hello(hello)) => self.handle_hello(hello),
            (Stage::Offering, FromReplica::Filter(names)) => self.filter.extend(names),
            (Stage::Offering, FromReplica::Ready) => self.handle_ready(now, history),
            (Stage::Offering | Stage::Live, FromReplica::Offers(offers)) => {
                offers.into_iter().for_each(|o| self.handle_offer(now, o, history));
            }
            (Stage::Offering | Stage::Live, FromReplica::Points(db, points)) => {
                self.handle_points(now, &db, &points, history);
            }
            (Stage::Offering | Stage::Live, FromReplica::Acks(acks)) => {
                acks.iter().for_each(|ack| self.handle_ack(now, ack));
            }
            (Stage::Offering | Stage::Live, FromReplica::Heartbeat { .. }) => (),
            (Stage::Live, FromReplica::TakeOver) => self.wants_role = true,
            _ => self.refuse(Reason::BadProtocol, "a message out of order"),
        }
        if self.dbs.len() + self.filter.len() > MAX_DATABASES {
            self.refuse(Reason::BadProtocol, "too many databases");
        }
    }

    /// A transaction was committed.
    pub fn handle_commit(&mut self, now: Duration, db: &DbName, pos: Pos, history: &impl History) {
        if !self.wants(db) {
            return;
        }
        let Some(known) = self.dbs.get_mut(db) else {
            if self.stage == Stage::Live {
                self.plan(now, zero_offer(db), history);
            }
            return;
        };
        if pos.txid > known.newest.txid {
            known.newest = pos;
        }
        match &known.phase {
            Phase::Unknown(offer) => {
                let offer = offer.clone();
                return self.plan(now, offer, history);
            }
            Phase::Idle if known.sent.is_zero() => return self.plan(now, zero_offer(db), history),
            Phase::Idle if known.newest.txid > known.sent.txid => {
                let after = known.sent;
                self.queue(db, Task::Records(after));
            }
            _ => (),
        }
        self.update_lag(now, db);
    }

    /// A job that [`Work::Send`] started has ended.
    pub fn handle_outcome(
        &mut self,
        now: Duration,
        db: &DbName,
        outcome: Outcome,
        history: &impl History,
    ) {
        let Some(known) = self.dbs.get_mut(db) else { return };
        let (task, left) = match std::mem::replace(&mut known.phase, Phase::Idle) {
            Phase::Active(task) => (task, None),
            Phase::Leaving(task, offer) => (task, Some(offer)),
            other => {
                known.phase = other;
                return;
            }
        };
        self.active -= 1;
        self.active_bulk -= usize::from(task.is_bulk());
        if let Some(offer) = left {
            self.drop_stream(db, outcome != Outcome::Broken);
            return self.plan(now, offer, history);
        }
        self.follow_up(now, db, (task, outcome), history);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Duration, history: &impl History) {
        let patience = match self.stage {
            Stage::Greeting => GREETING_TIMEOUT,
            _ => HEARTBEAT_TIMEOUT,
        };
        if now >= self.heard + patience {
            let text = format!("nothing heard from the replica for {patience:?}");
            self.refuse(Reason::Timeout, &text);
        }
        let due: Vec<DbName> = self.stalled.iter().cloned().collect();
        for db in due {
            match self.dbs.get(&db).map(|d| d.phase.clone()) {
                Some(Phase::Stalled(offer, at)) if at <= now => self.plan(now, offer, history),
                Some(Phase::Stalled(..)) => continue,
                _ => (),
            }
            if !matches!(self.dbs.get(&db).map(|d| &d.phase), Some(Phase::Stalled(..))) {
                self.stalled.remove(&db);
            }
        }
    }

    /// Bytes arrived: the replica lives.
    pub fn handle_alive(&mut self, now: Duration) {
        self.heard = now;
    }

    /// Why the connection must be closed, if it must.
    pub fn poll_close(&self) -> Option<&Close> {
        self.close.as_ref()
    }

    /// The next control message. `wall_ms` is the wall clock, ms since 1970.
    pub fn poll_message(&mut self, now: Duration, wall_ms: i64) -> Option<FromPrimary> {
        if let Some(welcome) = self.welcome.take() {
            return Some(FromPrimary::Welcome(welcome));
        }
        if let Some((_, question)) = self.questions.pop_first() {
            return Some(question);
        }
        if self.stage < Stage::Offering || now < self.heartbeat_due {
            return None;
        }
        self.heartbeat_due = now + HEARTBEAT_INTERVAL;
        let lag_ms = self.lag.lag(now).map(|lag| lag.as_millis() as u64);
        Some(FromPrimary::Heartbeat { wall_ms, lag_ms })
    }

    /// The next thing to do, if there is a place for it.
    pub fn poll_work(&mut self) -> Option<Work> {
        if let Some(db) = self.resets.pop_front() {
            return Some(Work::Reset(db));
        }
        if self.active >= MAX_ACTIVE {
            return None;
        }
        let bulk = if self.active_bulk < MAX_BULK { self.peek(true) } else { None };
        let db = bulk.or_else(|| self.peek(false))?;
        if !self.dbs.get(&db)?.stream_open && self.streams >= MAX_STREAMS {
            return self.recycle_stream().map(Work::Finish);
        }
        self.begin(&db)
    }

    /// True, once, if the replica has asked for the role.
    pub fn poll_take_over(&mut self) -> bool {
        std::mem::take(&mut self.wants_role)
    }

    /// When to call [`Peer::handle_timeout`] and [`Peer::poll_message`] at the latest.
    pub fn poll_timeout(&self) -> Duration {
        let silence = match self.stage {
            Stage::Greeting => return self.heard + GREETING_TIMEOUT,
            _ => self.heard + HEARTBEAT_TIMEOUT,
        };
        let stalled = self.stalled.iter().filter_map(|db| match self.dbs.get(db)?.phase {
            Phase::Stalled(_, at) => Some(at),
            _ => None,
        });
        stalled.fold(silence.min(self.heartbeat_due), Duration::min)
    }

    fn refuse(&mut self, reason: Reason, text: &str) {
        self.close.get_or_insert_with(|| Close::new(reason, text));
    }

    fn handle_hello(&mut self, hello: Hello) {
        let local = &self.local;
        let refusal = if hello.node == local.node {
            Some((Reason::SameNode, same_node(hello.node)))
        } else if !hello.cluster.is_empty() && hello.cluster != local.cluster {
            Some((Reason::WrongCluster, wrong_cluster(&hello.cluster, &local.cluster)))
        } else if hello.epoch > local.epoch {
            Some((Reason::OldEpoch, old_epoch(local.epoch, hello.epoch)))
        } else {
            None
        };
        if let Some((reason, text)) = refusal {
            return self.refuse(reason, &text);
        }
        self.welcome = Some(Welcome {
            node: local.node,
            epoch: local.epoch,
            cluster: local.cluster.clone(),
            hostname: local.hostname.clone(),
        });
        self.hello = Some(hello);
        self.stage = Stage::Offering;
    }

    fn handle_ready(&mut self, now: Duration, history: &impl History) {
        self.stage = Stage::Live;
        for db in history.databases() {
            if self.wants(&db) && !self.dbs.contains_key(&db) {
                self.plan(now, zero_offer(&db), history);
            }
        }
        self.lag.start(now);
        self.heartbeat_due = now;
    }

    fn handle_offer(&mut self, now: Duration, offer: Offer, history: &impl History) {
        let db = offer.db.clone();
        if !self.wants(&db) {
            return self.refuse(Reason::BadProtocol, "an offer of a database outside its filter");
        }
        if let Some(known) = self.dbs.get_mut(&db) {
            if let Phase::Active(task) | Phase::Leaving(task, _) = known.phase {
                known.phase = Phase::Leaving(task, offer);
                return;
            }
            self.drop_stream(&db, true);
        }
        self.plan(now, offer, history);
    }

    fn handle_points(
        &mut self,
        now: Duration,
        db: &DbName,
        points: &[Pos],
        history: &impl History,
    ) {
        if self.dbs.get(db).is_none_or(|d| d.phase != Phase::Asked) {
            return;
        }
        let is_ours = |pos: &&Pos| {
            !pos.is_zero()
                && matches!(history.relation(db, **pos), Ok(Relation::Behind | Relation::Current))
        };
        match points.iter().find(is_ours) {
            Some(common) => {
                self.questions.insert(db.clone(), FromPrimary::Rewind(db.clone(), *common));
            }
            None => {
                self.queue(db, Task::Snapshot(Pos::ZERO));
                self.update_lag(now, db);
            }
        }
    }

    fn handle_ack(&mut self, now: Duration, ack: &Ack) {
        let Some(known) = self.dbs.get_mut(&ack.db) else { return };
        known.acked = ack.applied;
        known.synced = ack.synced;
        let had_lag = self.lag.lag(now).is_some();
        self.lag.reached(now, &ack.db, ack.applied.txid);
        if !had_lag && self.lag.lag(now).is_some() {
            // In sync for the first time: the replica waits for this word.
            self.heartbeat_due = now;
        }
        self.note_idle_stream(&ack.db);
    }

    fn wants(&self, db: &DbName) -> bool {
        self.filter.is_empty() || self.filter.contains(db)
    }

    /// Decides what the replica needs, from the position that it offers.
    fn plan(&mut self, now: Duration, offer: Offer, history: &impl History) {
        let db = offer.db.clone();
        let newest = history.newest(&db);
        let known = self.dbs.entry(db.clone()).or_insert_with(Db::new);
        // Not before it is known to be on our history: acknowledgements are relied on.
        (known.acked, known.synced) = (Pos::ZERO, Pos::ZERO);
        known.sent = offer.pos;
        if now < known.not_before {
            let at = known.not_before;
            return self.stall(now, &db, offer, at);
        }
        let Some(newest) = newest else {
            return self.plan_unknown(now, offer);
        };
        known.newest = newest;
        let relation = match history.relation(&db, offer.pos) {
            Ok(relation) => relation,
            Err(why) => {
                tracing::warn!(%db, "cannot stream this database: {why}; will try again");
                return self.stall(now, &db, offer, now + RETRY);
            }
        };
        if matches!(relation, Relation::Current | Relation::Behind)
            && let Some(known) = self.dbs.get_mut(&db)
        {
            known.acked = offer.pos;
        }
        match relation {
            Relation::Current | Relation::Behind if offer.snapshot => {
                self.queue(&db, Task::Snapshot(offer.pos));
            }
            _ if offer.snapshot => self.queue(&db, Task::Snapshot(Pos::ZERO)),
            Relation::Current => self.rest(&db),
            Relation::Behind => self.queue(&db, Task::Records(offer.pos)),
            Relation::TooOld => self.queue(&db, Task::Snapshot(Pos::ZERO)),
            Relation::Diverged => self.ask(&db, FromPrimary::AskPoints(db.clone())),
        }
        self.update_lag(now, &db);
    }

    fn plan_unknown(&mut self, now: Duration, offer: Offer) {
        let db = offer.db.clone();
        self.lag.forget(now, &db);
        if offer.pos.is_zero() {
            return self.rest(&db);
        }
        self.ask(&db, FromPrimary::Unknown(db.clone()));
        self.set_phase(&db, Phase::Unknown(offer));
    }

    fn follow_up(
        &mut self,
        now: Duration,
        db: &DbName,
        (task, outcome): (Task, Outcome),
        history: &impl History,
    ) {
        let Some(known) = self.dbs.get_mut(db) else { return };
        let offer = |pos, snapshot| Offer { db: db.clone(), pos, snapshot };
        match outcome {
            Outcome::Sent(pos) => {
                known.sent = pos;
                if known.newest.txid > pos.txid {
                    self.queue(db, Task::Records(pos));
                } else {
                    self.rest(db);
                }
            }
            Outcome::FarBehind(pos) => {
                known.sent = pos;
                self.queue(db, Task::Compacted(pos));
            }
            Outcome::Gone(pos) => {
                known.sent = pos;
                self.queue(db, Task::Snapshot(pos));
            }
            Outcome::Mismatch(pos) => self.plan(now, offer(pos, false), history),
            Outcome::Failed(pos) => {
                known.not_before = now + RETRY;
                let again = offer(pos.unwrap_or(known.sent), matches!(task, Task::Snapshot(_)));
                self.stall(now, db, again, now + RETRY);
            }
            Outcome::Broken => {
                known.not_before = now + RETRY;
                self.drop_stream(db, false);
                self.set_phase(db, Phase::Asked);
            }
        }
    }

    fn ask(&mut self, db: &DbName, question: FromPrimary) {
        self.questions.insert(db.clone(), question);
        self.set_phase(db, Phase::Asked);
    }

    fn stall(&mut self, now: Duration, db: &DbName, offer: Offer, until: Duration) {
        debug_assert!(until > now);
        self.set_phase(db, Phase::Stalled(offer, until));
        self.stalled.insert(db.clone());
    }

    fn rest(&mut self, db: &DbName) {
        self.set_phase(db, Phase::Idle);
        self.note_idle_stream(db);
    }

    fn queue(&mut self, db: &DbName, task: Task) {
        self.set_phase(db, Phase::Queued(task));
        let Some(known) = self.dbs.get_mut(db) else { return };
        let (queue, flag) = match task.is_bulk() {
            true => (&mut self.bulk, &mut known.in_bulk),
            false => (&mut self.ready, &mut known.in_ready),
        };
        if !std::mem::replace(flag, true) {
            queue.push_back(db.clone());
        }
    }

    fn set_phase(&mut self, db: &DbName, phase: Phase) {
        let Some(known) = self.dbs.get_mut(db) else { return };
        known.phase = phase;
        if let Some(tick) = known.idle_since.take() {
            self.idle_streams.remove(&tick);
        }
    }

    /// The next database in a queue; names that changed their mind meanwhile are taken off it.
    fn peek(&mut self, bulk: bool) -> Option<DbName> {
        let queue = if bulk { &mut self.bulk } else { &mut self.ready };
        while let Some(db) = queue.front() {
            let known = self.dbs.get_mut(db);
            if known
                .as_ref()
                .is_some_and(|d| matches!(d.phase, Phase::Queued(task) if task.is_bulk() == bulk))
            {
                return Some(db.clone());
            }
            if let Some(known) = known {
                *if bulk { &mut known.in_bulk } else { &mut known.in_ready } = false;
            }
            queue.pop_front();
        }
        None
    }

    /// Starts the job at the front of its queue.
    fn begin(&mut self, db: &DbName) -> Option<Work> {
        let known = self.dbs.get_mut(db)?;
        let Phase::Queued(task) = known.phase else { return None };
        known.phase = Phase::Active(task);
        if !std::mem::replace(&mut known.stream_open, true) {
            self.streams += 1;
        }
        if task.is_bulk() {
            known.in_bulk = false;
            self.bulk.pop_front();
            self.active_bulk += 1;
        } else {
            known.in_ready = false;
            self.ready.pop_front();
        }
        self.active += 1;
        Some(Work::Send(db.clone(), task))
    }

    /// Forgets the stream; `reset` tells the driver to do so too.
    fn drop_stream(&mut self, db: &DbName, reset: bool) {
        let Some(known) = self.dbs.get_mut(db) else { return };
        if let Some(tick) = known.idle_since.take() {
            self.idle_streams.remove(&tick);
        }
        if std::mem::replace(&mut known.stream_open, false) {
            self.streams -= 1;
            if reset {
                self.resets.push_back(db.clone());
            }
        }
    }

    /// Remembers a stream that could be closed: nothing to send, everything acknowledged.
    fn note_idle_stream(&mut self, db: &DbName) {
        let Some(known) = self.dbs.get_mut(db) else { return };
        let idle = known.phase == Phase::Idle && known.acked == known.sent;
        if idle && known.stream_open && known.idle_since.is_none() {
            self.ticks += 1;
            known.idle_since = Some(self.ticks);
            self.idle_streams.insert(self.ticks, db.clone());
        }
    }

    fn recycle_stream(&mut self) -> Option<DbName> {
        let (_, db) = self.idle_streams.pop_first()?;
        self.drop_stream(&db, false);
        Some(db)
    }

    fn update_lag(&mut self, now: Duration, db: &DbName) {
        let Some(known) = self.dbs.get(db) else { return };
        if matches!(known.phase, Phase::Unknown(_)) {
            return;
        }
        if known.acked.txid < known.newest.txid || known.phase != Phase::Idle {
            self.lag.expect(now, db, known.newest.txid);
        }
        if known.phase == Phase::Idle {
            let acked = known.acked.txid;
            self.lag.reached(now, db, acked);
        }
    }
}

impl Db {
    fn new() -> Self {
        Self {
            phase: Phase::Idle,
            newest: Pos::ZERO,
            sent: Pos::ZERO,
            acked: Pos::ZERO,
            synced: Pos::ZERO,
            stream_open: false,
            idle_since: None,
            in_ready: false,
            in_bulk: false,
            not_before: Duration::ZERO,
        }
    }
}

fn zero_offer(db: &DbName) -> Offer {
    Offer { db: db.clone(), pos: Pos::ZERO, snapshot: false }
}

/// The text of a refusal for [`Reason::SameNode`].
pub fn same_node(node: u64) -> String {
    format!(
        "both ends have node id {node:016x}: a node dialled itself (check lease.advertise-url), or \
         a data directory was copied (remove node.json from the copy)"
    )
}

/// The text of a refusal for [`Reason::WrongCluster`].
pub fn wrong_cluster(replica: &str, primary: &str) -> String {
    format!(
        "the replica belongs to cluster {replica}, the primary to cluster {primary}: check \
         lease.advertise-url, or give the replica an empty data directory"
    )
}

/// The text of a refusal for [`Reason::OldEpoch`].
pub fn old_epoch(primary: u64, seen: u64) -> String {
    format!(
        "the primary's epoch {primary} is older than epoch {seen}, which the replica has seen: \
         another node has been primary since; make that one the primary again"
    )
}

#[cfg(test)]
#[path = "primary_tests.rs"]
mod tests;
