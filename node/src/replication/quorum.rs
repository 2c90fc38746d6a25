//! Which replicas have which transactions on disk, and which commits that confirms. Pure: no
//! sockets, no clock, no store.
//!
//! [`Quorum`] is fed through `handle_*` and drained through [`Quorum::poll_action`] after each;
//! at the latest every [`TICK`], [`Quorum::handle_timeout`]. All times are monotonic.
//!
//! In mode `bounded` it answers [`Quorum::admit`]. In mode `sync` there is a *sync set* of so many
//! replicas as are asked for. A transaction is confirmed when all of its members have it on disk;
//! so each of them has everything that was ever acknowledged. Only those are members that may
//! become primary: else nobody could take over. Another set takes its place in this order, so that
//! whoever reads the published set finds only replicas of which that is true:
//! ```text
//! catching up  transactions are confirmed by the members of both sets; until those of the next
//!              one have all that was acknowledged before
//! publishing   still by both; until it is known to be published. An attempt that fails may have
//!              been published all the same: its members count until another one succeeds
//! in force     by the members of the next set alone
//! ```
//! The empty set is `async`: the fallback that is chosen by configuration when transactions were
//! not confirmed in time. It ends as any other set does.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use litefs_store::{DbName, Pos, Txid};

use super::lag::Lag;
use super::wire::Ack;
use crate::config::{Bounds, OnTimeout, SyncSettings};

/// How often time must be looked at.
pub const TICK: Duration = Duration::from_millis(50);
/// A set that could not be published is tried again after this time.
const RETRY: Duration = Duration::from_millis(200);
/// A replica that is further behind does not become a member: commits would have to wait for it.
const NEAR: Duration = Duration::from_secs(1);
/// More replicas than these are not remembered when they are not connected.
const REPLICAS_MAX: usize = 300;

/// Names a published transaction until it is answered.
pub type Ticket = u64;

/// What the driver does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// The transaction may be acknowledged.
    Confirm(Ticket),
    /// Nobody can tell whether the transaction is kept.
    Fail(Ticket, String),
    /// Publish that this set holds everything that is acknowledged from now on; then
    /// [`Quorum::handle_published`] with the same number.
    Publish(u64, BTreeSet<u64>),
    /// Tell the operator.
    Report(Report),
}

/// What an operator must know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// Commits are confirmed by these replicas from now on.
    Synced(BTreeSet<u64>),
    /// Commits are acknowledged without replicas from now on.
    FellBack,
    /// Commits that were are confirmed by these replicas again.
    Returned(BTreeSet<u64>),
    /// Commits have waited for longer than the timeout, and wait on.
    Stalled,
}

/// A replica that has joined: its databases are known and it had all of them.
#[derive(Debug)]
pub struct Joined<'a> {
    /// Its node id.
    pub node: u64,
    /// Its connection; a later one has a higher number.
    pub session: u64,
    /// The databases that it keeps; empty: all.
    pub filter: &'a HashSet<DbName>,
    /// True if it may become primary.
    pub may_lead: bool,
    /// How far it acknowledged each database.
    pub acks: &'a [Ack],
}

/// What is asked of the replicas.
#[derive(Debug, Clone, Copy)]
enum Mode {
    Bounded(Bounds),
    Sync(SyncSettings),
}

/// See the module's text.
#[derive(Debug)]
pub struct Quorum {
    mode: Mode,
    replicas: BTreeMap<u64, Replica>,
    newest: HashMap<DbName, Txid>,
    waiting: BTreeMap<DbName, VecDeque<Waiting>>,
    /// Published; empty before the first and after a fallback.
    set: BTreeSet<u64>,
    /// The empty set is in force: nothing is waited for.
    fallen_back: bool,
    next: Option<Next>,
    /// Members of sets that may have been published since.
    unsure: BTreeSet<u64>,
    stalled: bool,
    last_number: u64,
    actions: VecDeque<Action>,
}

#[derive(Debug)]
struct Replica {
    session: u64,
    online: bool,
    may_lead: bool,
    filter: HashSet<DbName>,
    /// Until when it had everything: on disk in mode `sync`.
    lag: Lag,
    on_disk: bool,
    applied: HashMap<DbName, Txid>,
    synced: HashMap<DbName, Txid>,
    /// What it does not have on disk yet: each database's newest transaction.
    lacking: HashMap<DbName, Txid>,
}

#[derive(Debug)]
struct Waiting {
    txid: Txid,
    since: Duration,
    ticket: Ticket,
}

#[derive(Debug)]
struct Next {
    set: BTreeSet<u64>,
    /// It is empty, and commits are then acknowledged without replicas.
    fallback: bool,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    CatchingUp,
    Publishing(u64),
    /// It failed; again at this time.
    Failed(Duration),
}

impl Quorum {
    /// For mode `bounded`.
    pub fn bounded(bounds: Bounds) -> Self {
        Self::new(Mode::Bounded(bounds))
    }

    /// For mode `sync`.
    pub fn sync(settings: SyncSettings) -> Self {
        Self::new(Mode::Sync(settings))
    }

    fn new(mode: Mode) -> Self {
        Self {
            mode,
            replicas: BTreeMap::new(),
            newest: HashMap::new(),
            waiting: BTreeMap::new(),
            set: BTreeSet::new(),
            fallen_back: false,
            next: None,
            unsure: BTreeSet::new(),
            stalled: false,
            last_number: 0,
            actions: VecDeque::new(),
        }
    }

    /// The members of the sync set that is in force.
    pub fn sync_set(&self) -> &BTreeSet<u64> {
        &self.set
    }

    /// True if commits are acknowledged without replicas, as they did not answer in time.
    pub fn has_fallen_back(&self) -> bool {
        self.fallen_back
    }

    /// Transactions that are not answered yet.
    pub fn waiting(&self) -> usize {
        self.waiting.values().map(VecDeque::len).sum()
    }

    /// This node is the primary from now on. Nothing is known of replicas. What is published is of
    /// an earlier term and stays: it tells who has what was acknowledged then, and nothing more is
    /// before a set of this term takes its place.
    pub fn handle_term_began(&mut self) {
        let (mode, last_number) = (self.mode, self.last_number);
        let actions = std::mem::take(&mut self.actions);
        *self = Self { last_number, actions, ..Self::new(mode) };
    }

    /// This node is not the primary any more.
    pub fn handle_term_ended(&mut self, why: &str) {
        let waiting = std::mem::take(&mut self.waiting);
        let tickets = waiting.into_values().flatten().map(|waiting| waiting.ticket);
        self.actions.extend(tickets.map(|ticket| Action::Fail(ticket, why.to_owned())));
        self.replicas.clear();
        self.next = None;
    }

    /// A replica is connected and has, or had a moment ago, everything. `newest` are all databases
    /// with their newest positions.
    pub fn handle_joined(&mut self, now: Duration, joined: &Joined<'_>, newest: &[(DbName, Pos)]) {
        let mut replica = Replica {
            session: joined.session,
            online: true,
            may_lead: joined.may_lead,
            filter: joined.filter.clone(),
            lag: Lag::default(),
            on_disk: matches!(self.mode, Mode::Sync(_)),
            applied: HashMap::new(),
            synced: HashMap::new(),
            lacking: HashMap::new(),
        };
        // Of a database without a transaction there is nothing to have.
        for (db, pos) in newest.iter().filter(|(_, pos)| !pos.is_zero()) {
            self.newest.insert(db.clone(), pos.txid);
            replica.expect(now, db, pos.txid);
        }
        joined.acks.iter().for_each(|ack| replica.acknowledge(now, ack));
        replica.lag.start(now);
        self.replicas.insert(joined.node, replica);
        self.confirm_all();
        self.choose(now);
    }

    /// A replica acknowledged databases.
    pub fn handle_acks(&mut self, now: Duration, node: u64, session: u64, acks: &[Ack]) {
        let Some(replica) = self.replicas.get_mut(&node).filter(|r| r.session == session) else {
            return;
        };
        acks.iter().for_each(|ack| replica.acknowledge(now, ack));
        for ack in acks {
            self.confirm(&ack.db);
        }
        self.choose(now);
    }

    /// A replica's connection has ended.
    pub fn handle_lost(&mut self, now: Duration, node: u64, session: u64) {
        let Some(replica) = self.replicas.get_mut(&node).filter(|r| r.session == session) else {
            return;
        };
        replica.online = false;
        self.forget_offline();
        if let Some(next) = &self.next
            && next.stage == Stage::CatchingUp
            && next.set.contains(&node)
        {
            self.next = None;
            self.confirm_all();
        }
        self.choose(now);
    }

    /// A transaction was published on this node. In mode `sync` its ticket is answered, maybe at
    /// once; in mode `bounded` it is not waited for.
    pub fn handle_commit(&mut self, now: Duration, db: &DbName, pos: Pos) -> Ticket {
        self.newest.insert(db.clone(), pos.txid);
        for replica in self.replicas.values_mut() {
            replica.expect(now, db, pos.txid);
        }
        self.last_number += 1;
        let ticket = self.last_number;
        if let Mode::Sync(_) = self.mode {
            let waiting = Waiting { txid: pos.txid, since: now, ticket };
            self.waiting.entry(db.clone()).or_default().push_back(waiting);
            self.confirm(db);
        }
        ticket
    }

    /// An attempt to publish a set has ended; false if it failed, or may have.
    pub fn handle_published(&mut self, now: Duration, number: u64, published: bool) {
        let Some(next) = self.next.take_if(|next| next.stage == Stage::Publishing(number)) else {
            return;
        };
        if !published {
            self.unsure.extend(&next.set);
            self.next = Some(Next { stage: Stage::Failed(now + RETRY), ..next });
            return;
        }
        self.unsure.clear();
        let was = std::mem::replace(&mut self.set, next.set);
        let had_fallen_back = std::mem::replace(&mut self.fallen_back, next.fallback);
        let report = match (had_fallen_back, self.fallen_back) {
            (false, true) => Some(Report::FellBack),
            (true, false) => Some(Report::Returned(self.set.clone())),
            _ => (self.set != was).then(|| Report::Synced(self.set.clone())),
        };
        self.actions.extend(report.map(Action::Report));
        self.stalled = false;
        self.forget_offline();
        self.confirm_all();
        self.choose(now);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Duration) {
        let Mode::Sync(settings) = self.mode else { return };
        if self.has_overdue(now) {
            self.handle_overdue(settings.on_timeout);
        }
        match &mut self.next {
            Some(Next { stage: Stage::Failed(at), .. }) if *at <= now => {
                self.next = None;
                self.choose(now);
                if self.next.is_none() && (self.fallen_back || !self.set.is_empty()) {
                    // What is in force is published again, so that nothing is unsure.
                    self.publish(self.set.clone(), self.fallen_back);
                }
            }
            Some(_) => (),
            None => self.choose(now),
        }
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Whether a transaction may be committed.
    ///
    /// # Errors
    /// Why not: no replica is near enough.
    pub fn admit(&self, now: Duration, db: &DbName) -> Result<(), String> {
        let Mode::Bounded(bounds) = self.mode else { return Ok(()) };
        let keeps = self.replicas.values().filter(|replica| replica.keeps(db));
        let distances = keeps.filter_map(|replica| {
            let have = replica.applied.get(db).map_or(0, |txid| txid.get());
            let newest = self.newest.get(db).map_or(0, |txid| txid.get());
            Some((replica.lag.lag(now)?, newest.saturating_sub(have)))
        });
        let near = |&(lag, behind): &(Duration, u64)| {
            bounds.max_lag.is_none_or(|max| lag <= max)
                && bounds.max_transactions.is_none_or(|max| behind <= max)
        };
        let distances: Vec<_> = distances.collect();
        if distances.iter().any(near) {
            return Ok(());
        }
        let nearest = distances.iter().min().map_or("none is connected".to_owned(), |(lag, n)| {
            format!("the nearest is {} ms and {n} transactions behind", lag.as_millis())
        });
        Err(format!("no replica is within {bounds} (replication.mode: bounded); {nearest}"))
    }

    fn handle_overdue(&mut self, on_timeout: OnTimeout) {
        let publishing = |next: &Next| matches!(next.stage, Stage::Publishing(_));
        match on_timeout {
            OnTimeout::Wait if !std::mem::replace(&mut self.stalled, true) => {
                self.actions.push_back(Action::Report(Report::Stalled));
            }
            OnTimeout::Wait => (),
            // What is on its way ends first.
            OnTimeout::Async if self.next.as_ref().is_some_and(publishing) => (),
            OnTimeout::Async => self.publish(BTreeSet::new(), true),
        }
    }

    fn has_overdue(&self, now: Duration) -> bool {
        let Mode::Sync(settings) = self.mode else { return false };
        let oldest = self.waiting.values().filter_map(VecDeque::front).map(|first| first.since);
        oldest.min().is_some_and(|since| now >= since + settings.timeout)
    }

    /// Goes on towards the set that should be in force.
    fn choose(&mut self, now: Duration) {
        let Mode::Sync(settings) = self.mode else { return };
        if self.next.is_none() {
            let is_member = |node: &&u64| self.is_online(**node);
            let mut wanted: BTreeSet<u64> = self.set.iter().filter(is_member).copied().collect();
            if wanted.len() == settings.replicas {
                return;
            }
            let missing = settings.replicas - wanted.len();
            wanted.extend(self.candidates(now, settings).into_iter().take(missing));
            if wanted.len() < settings.replicas {
                return;
            }
            self.next = Some(Next { set: wanted, fallback: false, stage: Stage::CatchingUp });
        }
        let Some(Next { set, stage: Stage::CatchingUp, .. }) = &self.next else { return };
        if set.iter().all(|node| self.has_all_acknowledged(*node)) {
            self.publish(set.clone(), false);
        }
    }

    fn is_online(&self, node: u64) -> bool {
        self.replicas.get(&node).is_some_and(|replica| replica.online)
    }

    /// Replicas that could become members, the best first.
    fn candidates(&self, now: Duration, settings: SyncSettings) -> Vec<u64> {
        let near = NEAR.max(settings.timeout / 2);
        let may = |node: &u64, replica: &Replica| {
            replica.online
                && replica.may_lead
                && !self.set.contains(node)
                && replica.filter.is_empty()
                && replica.lag.lag(now).is_some_and(|lag| lag <= near)
        };
        let all = self.replicas.iter().filter(|(node, replica)| may(node, replica));
        let mut all: Vec<_> = all.map(|(node, replica)| (replica.lacking.len(), *node)).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, node)| node).collect()
    }

    /// True if the replica has everything on disk but what waits to be acknowledged.
    fn has_all_acknowledged(&self, node: u64) -> bool {
        let Some(replica) = self.replicas.get(&node).filter(|replica| replica.online) else {
            return false;
        };
        replica.lacking.len() <= self.waiting.len()
            && replica.lacking.keys().all(|db| {
                let first = self.waiting.get(db).and_then(VecDeque::front);
                first.is_some_and(|first| replica.synced(db).next() >= first.txid)
            })
    }

    fn publish(&mut self, set: BTreeSet<u64>, fallback: bool) {
        self.last_number += 1;
        let stage = Stage::Publishing(self.last_number);
        self.actions.push_back(Action::Publish(self.last_number, set.clone()));
        self.next = Some(Next { set, fallback, stage });
    }

    fn confirm_all(&mut self) {
        let databases: Vec<DbName> = self.waiting.keys().cloned().collect();
        databases.iter().for_each(|db| self.confirm(db));
    }

    /// Confirms what all those who have to have of a database.
    fn confirm(&mut self, db: &DbName) {
        let Mode::Sync(settings) = self.mode else { return };
        if !self.fallen_back && self.set.len() < settings.replicas {
            return;
        }
        let next = self.next.iter().flat_map(|next| &next.set);
        let members = self.set.iter().chain(next).chain(&self.unsure);
        let has = |node| self.replicas.get(node).map_or(Txid::ZERO, |r| r.synced(db));
        let everywhere = members.map(has).min();
        let Some(waiting) = self.waiting.get_mut(db) else { return };
        while waiting.front().is_some_and(|first| everywhere.is_none_or(|has| has >= first.txid)) {
            let confirmed = waiting.pop_front().map(|first| Action::Confirm(first.ticket));
            self.actions.extend(confirmed);
        }
        if waiting.is_empty() {
            self.waiting.remove(db);
        }
    }

    /// Forgets replicas that are not connected: none but a member of a sync set is of use then.
    /// In mode `bounded`, one that comes back soon was never far away.
    fn forget_offline(&mut self) {
        let Self { replicas, set, next, unsure, .. } = self;
        let is_member = |node: &u64| {
            set.contains(node)
                || unsure.contains(node)
                || next.as_ref().is_some_and(|next| next.set.contains(node))
        };
        match self.mode {
            Mode::Sync(_) => replicas.retain(|node, replica| replica.online || is_member(node)),
            Mode::Bounded(_) if replicas.len() > REPLICAS_MAX => {
                replicas.retain(|_, replica| replica.online);
            }
            Mode::Bounded(_) => (),
        }
    }
}

impl Replica {
    fn keeps(&self, db: &DbName) -> bool {
        self.filter.is_empty() || self.filter.contains(db)
    }

    fn synced(&self, db: &DbName) -> Txid {
        self.synced.get(db).copied().unwrap_or(Txid::ZERO)
    }

    /// A database has this transaction.
    fn expect(&mut self, now: Duration, db: &DbName, txid: Txid) {
        if self.synced(db) < txid {
            self.lacking.insert(db.clone(), txid);
        }
        let have = if self.on_disk { &self.synced } else { &self.applied };
        if self.keeps(db) && have.get(db).is_none_or(|have| *have < txid) {
            self.lag.expect(now, db, txid);
        }
    }

    fn acknowledge(&mut self, now: Duration, ack: &Ack) {
        self.applied.insert(ack.db.clone(), ack.applied.txid);
        self.synced.insert(ack.db.clone(), ack.synced.txid);
        let reached = if self.on_disk { ack.synced } else { ack.applied };
        self.lag.reached(now, &ack.db, reached.txid);
        if self.lacking.get(&ack.db).is_some_and(|wanted| *wanted <= ack.synced.txid) {
            self.lacking.remove(&ack.db);
        }
    }
}

#[cfg(test)]
#[path = "quorum_tests.rs"]
mod tests;
