//! A replica's side of its one connection: when to dial, what to answer, what to acknowledge,
//! and how far behind it is. Pure: no sockets, no clock, no store.
//!
//! [`Upstream`] is fed through `handle_*` and drained through `poll_*`, in any order and as often
//! as wanted. Without a connection: [`Upstream::poll_dial`]. With one: [`Upstream::poll_close`]
//! first (after it the connection is over: [`Upstream::handle_closed`]), then
//! [`Upstream::poll_action`] and [`Upstream::poll_message`]; at the latest at
//! [`Upstream::poll_timeout`] everything is polled again. All times are monotonic.
//!
//! A connection's life:
//! ```text
//! Waiting --time--> Dialing --> Greeting --Welcome--> Live
//!    ^----- closed, refused, silent: longer and longer waits -----|
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use litefs_store::{DbName, Pos};

use super::primary::{old_epoch, same_node, wrong_cluster};
use super::wire::{
    Ack, Close, FromPrimary, FromReplica, Hello, Offer, Reason, StreamReset, Welcome,
};
use super::{GREETING_TIMEOUT, HEARTBEAT_INTERVAL, HEARTBEAT_TIMEOUT, MAX_DATABASES};

/// A dial that takes longer has failed.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait between two dials, unless the configured first wait is longer.
pub const MAX_RECONNECT: Duration = Duration::from_secs(5);
/// First wait before a database that could not be applied is offered again.
pub const TROUBLE_DELAY: Duration = Duration::from_millis(500);
const MAX_TROUBLE_DELAY: Duration = Duration::from_secs(30);
/// Why a database is not followed that only this node has.
pub const UNKNOWN: &str = "the primary has no database of this name: it is kept here as it is and \
                           not replicated; drop it here, or import it on the primary";
const MAX_DOUBLINGS: u32 = 10;
/// Most acknowledgements or offers in one message.
const BATCH: usize = 256;

/// What the machine asks of the replica's store.
pub trait Local {
    /// This node's id.
    fn node(&self) -> u64;
    /// The cluster's id; empty if none is known yet.
    fn cluster(&self) -> String;
    /// The highest epoch seen.
    fn epoch(&self) -> u64;
    /// All databases.
    fn databases(&self) -> Vec<DbName>;
    /// A database's position and the part of it that is on disk; zero if it does not exist.
    fn positions(&self, db: &DbName) -> (Pos, Pos);
    /// True if the database is of no use until a snapshot replaces it.
    fn is_damaged(&self, db: &DbName) -> bool;
}

/// What the driver does next on a live connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Remember the cluster and the epoch, then send filter, offers and Ready.
    Join(Welcome),
    /// Answer with the positions to which the database could rewind.
    OfferPoints(DbName),
    /// Preserve what follows this position, rewind to it, then [`Upstream::handle_reoffer`].
    Rewind(DbName, Pos),
    /// Tell the user that the primary does not have this database.
    WarnUnknown(DbName),
    /// Remember that everything of this primary has arrived.
    NoteInSync(Welcome),
    /// Put everything on disk, then [`Upstream::handle_synced`].
    Sync,
    /// The primary does not hand its role over, for this reason.
    NoTakeOver(String),
}

/// Decides whether all content must be preserved before a snapshot record replaces it: `base` is
/// the position that the primary knows to be on its history, `local` the replica's, and `is_ours`
/// tells whether the content may hold transactions that did not come from the primary.
pub fn must_preserve(base: Pos, local: Pos, is_ours: impl FnOnce() -> bool) -> bool {
    !local.is_zero() && local != base && is_ours()
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Link {
    Waiting { until: Duration },
    Dialing { since: Duration },
    Greeting { since: Duration },
    Live { heard: Duration },
}

/// The primary's last word on how far behind this replica is.
#[derive(Debug, Clone, Copy)]
struct LagWord {
    lag: Duration,
    at: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Reoffer {
    due: Duration,
    snapshot: bool,
}

/// A replica's connection to its primary.
#[derive(Debug)]
pub struct Upstream {
    link: Link,
    hostname: String,
    may_lead: bool,
    reconnect_delay: Duration,
    failures: u32,
    random: u64,
    hello_due: bool,
    heartbeat_due: Duration,
    /// It is due, once the acknowledgements are sent.
    is_heartbeat_due: bool,
    join: Option<Welcome>,
    welcome: Option<Welcome>,
    questions: BTreeMap<DbName, Action>,
    warned: HashSet<DbName>,
    /// Databases whose position the primary found not to be on its history, with the newest common
    /// position once it has named one.
    diverged: HashMap<DbName, Option<Pos>>,
    /// Databases that the primary does not have, on the present connection.
    unknown: HashSet<DbName>,
    was_in_sync: bool,
    in_sync_due: bool,
    sync_due: bool,
    take_over_due: bool,
    no_take_over: Option<String>,
    /// All databases are to be acknowledged: of those that did not move, the primary only knows
    /// that they are here, not that they are on disk.
    all_due: bool,
    /// Databases whose position moved since the last acknowledgement.
    moved: BTreeSet<DbName>,
    /// Databases acknowledged as applied, but not yet as being on disk.
    unsynced: HashSet<DbName>,
    reoffers: BTreeMap<DbName, Reoffer>,
    /// Databases for which a snapshot was asked that has not come yet.
    awaited: HashSet<DbName>,
    troubles: HashMap<DbName, u32>,
    /// Why databases are not being followed; for people.
    reasons: BTreeMap<DbName, String>,
    lag: Option<LagWord>,
    primary_wall_ms: Option<i64>,
    close: Option<Close>,
}

impl Upstream {
    /// A replica that may dial at once. `hostname` is this node's name, `may_lead` tells whether it
    /// may become primary, `seed` spreads the waits.
    pub fn new(hostname: String, may_lead: bool, reconnect_delay: Duration, seed: u64) -> Self {
        Self {
            link: Link::Waiting { until: Duration::ZERO },
            hostname,
            may_lead,
            reconnect_delay,
            failures: 0,
            random: seed,
            hello_due: false,
            heartbeat_due: Duration::ZERO,
            is_heartbeat_due: false,
            join: None,
            welcome: None,
            questions: BTreeMap::new(),
            warned: HashSet::new(),
            diverged: HashMap::new(),
            unknown: HashSet::new(),
            was_in_sync: false,
            in_sync_due: false,
            sync_due: false,
            take_over_due: false,
            no_take_over: None,
            all_due: false,
            moved: BTreeSet::new(),
            unsynced: HashSet::new(),
            reoffers: BTreeMap::new(),
            awaited: HashSet::new(),
            troubles: HashMap::new(),
            reasons: BTreeMap::new(),
            lag: None,
            primary_wall_ms: None,
            close: None,
        }
    }

    /// The primary, once it has welcomed this replica on the present connection.
    pub fn primary(&self) -> Option<&Welcome> {
        self.welcome.as_ref()
    }

    /// How long ago this replica last knew that it had everything; `None` if it never had. In an
    /// idle cluster it swings between zero and the heartbeat interval, as LiteFS's does.
    pub fn lag(&self, now: Duration) -> Option<Duration> {
        self.lag.map(|word| word.lag + now.saturating_sub(word.at))
    }

    /// True if the primary found this database's position not to be on its history, on the present
    /// connection.
    pub fn has_diverged(&self, db: &DbName) -> bool {
        self.diverged.contains_key(db)
    }

    /// The newest position of a diverged database that the primary has too, as it named it on the
    /// present connection.
    pub fn common(&self, db: &DbName) -> Option<Pos> {
        self.diverged.get(db).copied().flatten()
    }

    /// True if the primary said on the present connection that it does not have this database.
    pub fn is_unknown(&self, db: &DbName) -> bool {
        self.unknown.contains(db)
    }

    /// The primary's wall clock at its last heartbeat, ms since 1970.
    pub fn primary_wall_ms(&self) -> Option<i64> {
        self.primary_wall_ms
    }

    /// The dial succeeded.
    pub fn handle_connected(&mut self, now: Duration) {
        self.link = Link::Greeting { since: now };
        self.hello_due = true;
        self.close = None;
    }

    /// The dial failed or the connection ended; `reason` as the peer gave it, if it did.
    pub fn handle_closed(&mut self, now: Duration, reason: Option<Reason>) {
        let is_lasting = reason.is_some_and(Reason::is_lasting);
        let wait = self.next_wait(is_lasting);
        self.link = Link::Waiting { until: now + wait };
        self.close = None;
        self.hello_due = false;
        self.is_heartbeat_due = false;
        self.join = None;
        self.welcome = None;
        self.questions.clear();
        self.diverged.clear();
        self.unknown.clear();
        self.reasons.clear();
        self.was_in_sync = false;
        self.in_sync_due = false;
        self.sync_due = false;
        self.take_over_due = false;
        self.no_take_over = None;
        self.all_due = false;
        self.moved.clear();
        self.unsynced.clear();
        self.reoffers.clear();
        self.awaited.clear();
    }

    /// A message came on the control stream.
    pub fn handle_message(&mut self, now: Duration, message: FromPrimary, local: &impl Local) {
        if self.close.is_some() {
            return;
        }
        match (&self.link, message) {
            (Link::Greeting { .. }, FromPrimary::Welcome(welcome)) => {
                self.handle_welcome(now, welcome, local);
            }
            (Link::Live { .. }, FromPrimary::AskPoints(db)) => {
                self.diverged.insert(db.clone(), None);
                self.note_question(db.clone(), Action::OfferPoints(db));
            }
            (Link::Live { .. }, FromPrimary::Rewind(db, to)) => {
                self.diverged.insert(db.clone(), Some(to));
                self.note_question(db.clone(), Action::Rewind(db, to));
            }
            (Link::Live { .. }, FromPrimary::Unknown(db)) => {
                self.unknown.insert(db.clone());
                if self.warned.insert(db.clone()) {
                    self.note_question(db.clone(), Action::WarnUnknown(db));
                }
            }
            (Link::Live { .. }, FromPrimary::Heartbeat { wall_ms, lag_ms }) => {
                self.primary_wall_ms = Some(wall_ms);
                if let Some(lag_ms) = lag_ms {
                    self.note_lag(now, Duration::from_millis(lag_ms));
                }
            }
            (Link::Live { .. }, FromPrimary::Sync) => self.sync_due = true,
            (Link::Live { .. }, FromPrimary::NoTakeOver(why)) => self.no_take_over = Some(why),
            (_, FromPrimary::Goodbye(close)) => self.handle_end(close),
            _ => self.refuse(Reason::BadProtocol, "a message out of order"),
        }
        self.handle_alive(now);
        let named =
            [self.diverged.len(), self.unknown.len(), self.warned.len(), self.questions.len()];
        if named.into_iter().any(|count| count > MAX_DATABASES) {
            self.refuse(Reason::BadProtocol, "too many databases");
        }
    }

    /// Bytes arrived: the primary lives.
    pub fn handle_alive(&mut self, now: Duration) {
        if let Link::Live { heard } = &mut self.link {
            *heard = now;
        }
    }

    /// These databases are being offered.
    pub fn handle_offered(&mut self, offers: &[Offer]) {
        for offer in offers {
            self.reoffers.remove(&offer.db);
            if offer.snapshot {
                self.awaited.insert(offer.db.clone());
            }
        }
    }

    /// A record or snapshot of this database was applied.
    pub fn handle_applied(&mut self, db: &DbName) {
        self.moved.insert(db.clone());
        self.troubles.remove(db);
        self.reasons.remove(db);
        self.awaited.remove(db);
        self.unknown.remove(db);
        // It was for a stream that was left; an older offer is being answered.
        self.reoffers.remove(db);
    }

    /// True if a snapshot of this database has been asked for and is still to come: it replaces
    /// whatever is here.
    pub fn awaits_snapshot(&self, db: &DbName) -> bool {
        self.awaited.contains(db)
    }

    /// This database's stream has been stopped on purpose; offer it again at once.
    pub fn handle_reoffer(&mut self, now: Duration, db: &DbName, snapshot: bool) {
        self.note_reoffer(db, now, snapshot);
    }

    /// The primary reset this database's stream, which was being read.
    pub fn handle_reset(&mut self, now: Duration, db: &DbName, reset: StreamReset) {
        match reset {
            StreamReset::Failed => self.handle_reoffer(now, db, false),
            // One more offer would cross the answer to the last one, and so on without end.
            StreamReset::Superseded => (),
        }
    }

    /// This database could not be applied here (disk full, damaged, …) and its stream has been
    /// stopped; offer it again later, each time after a longer wait.
    pub fn handle_trouble(&mut self, now: Duration, db: &DbName, snapshot: bool) {
        let count = self.troubles.entry(db.clone()).or_default();
        let wait = (TROUBLE_DELAY * (1 << (*count).min(MAX_DOUBLINGS))).min(MAX_TROUBLE_DELAY);
        *count += 1;
        // The first time may be over before anybody notices.
        let due = if *count == 1 { now } else { now + wait };
        self.note_reoffer(db, due, snapshot);
    }

    /// These databases are on disk, as far as they had been applied: acknowledge that.
    pub fn handle_synced(&mut self, dbs: impl IntoIterator<Item = DbName>) {
        self.moved.extend(dbs);
    }

    /// Asks the primary to hand its role over; [`Action::NoTakeOver`] if it does not. False if
    /// there is no primary to ask.
    pub fn handle_take_over(&mut self) -> bool {
        self.take_over_due = matches!(self.link, Link::Live { .. });
        self.take_over_due
    }

    /// Says why a database is not being followed, until it is.
    pub fn note_reason(&mut self, db: &DbName, why: String) {
        self.reasons.insert(db.clone(), why);
    }

    /// Why databases are not being followed.
    pub fn reasons(&self) -> BTreeMap<DbName, String> {
        let unknown = self.unknown.iter().map(|db| (db.clone(), UNKNOWN.to_owned()));
        self.reasons.clone().into_iter().chain(unknown).collect()
    }

    /// The connection must end: the primary says so, broke the protocol, or sent a record that
    /// failed its verification.
    pub fn handle_end(&mut self, close: Close) {
        self.close.get_or_insert(close);
    }

    /// True if the primary is to be dialled now. Then [`Upstream::handle_connected`] or
    /// [`Upstream::handle_closed`].
    pub fn poll_dial(&mut self, now: Duration) -> bool {
        let is_time = matches!(self.link, Link::Waiting { until } if until <= now);
        if is_time {
            self.link = Link::Dialing { since: now };
        }
        is_time
    }

    /// Why the connection must be closed, if it must.
    pub fn poll_close(&mut self, now: Duration) -> Option<&Close> {
        let silence = match self.link {
            Link::Greeting { since } if now >= since + GREETING_TIMEOUT => Some(GREETING_TIMEOUT),
            Link::Live { heard } if now >= heard + HEARTBEAT_TIMEOUT => Some(HEARTBEAT_TIMEOUT),
            _ => None,
        };
        if let Some(patience) = silence {
            let text = format!("nothing heard from the primary for {patience:?}");
            self.refuse(Reason::Timeout, &text);
        }
        self.close.as_ref()
    }

    /// The next thing to do for the primary.
    pub fn poll_action(&mut self) -> Option<Action> {
        if let Some(welcome) = self.join.take() {
            return Some(Action::Join(welcome));
        }
        if std::mem::take(&mut self.in_sync_due) {
            return self.welcome.clone().map(Action::NoteInSync);
        }
        if std::mem::take(&mut self.sync_due) {
            return Some(Action::Sync);
        }
        if let Some(why) = self.no_take_over.take() {
            return Some(Action::NoTakeOver(why));
        }
        self.questions.pop_first().map(|(_, action)| action)
    }

    /// The next control message. `wall_ms` is the wall clock, ms since 1970.
    pub fn poll_message(
        &mut self,
        now: Duration,
        wall_ms: i64,
        local: &impl Local,
    ) -> Option<FromReplica> {
        if std::mem::take(&mut self.hello_due) {
            return Some(FromReplica::Hello(Hello {
                node: local.node(),
                epoch: local.epoch(),
                cluster: local.cluster(),
                hostname: self.hostname.clone(),
                may_lead: self.may_lead,
            }));
        }
        if !matches!(self.link, Link::Live { .. }) {
            return None;
        }
        if std::mem::take(&mut self.take_over_due) {
            return Some(FromReplica::TakeOver);
        }
        let offers = self.due_offers(now, local);
        if !offers.is_empty() {
            return Some(FromReplica::Offers(offers));
        }
        if std::mem::take(&mut self.all_due) {
            self.moved.extend(local.databases());
        }
        if now >= self.heartbeat_due {
            self.heartbeat_due = now + HEARTBEAT_INTERVAL;
            self.is_heartbeat_due = true;
            // A background sync makes no noise; ask again once with each heartbeat.
            let unsynced = std::mem::take(&mut self.unsynced);
            self.moved.extend(unsynced);
        }
        let acks = self.due_acks(local);
        if !acks.is_empty() {
            return Some(FromReplica::Acks(acks));
        }
        let is_due = std::mem::take(&mut self.is_heartbeat_due);
        is_due.then_some(FromReplica::Heartbeat { wall_ms })
    }

    /// When to poll again at the latest.
    pub fn poll_timeout(&self) -> Duration {
        match self.link {
            Link::Waiting { until } => until,
            Link::Dialing { since } => since + DIAL_TIMEOUT,
            Link::Greeting { since } => since + GREETING_TIMEOUT,
            Link::Live { heard } => {
                let first = (heard + HEARTBEAT_TIMEOUT).min(self.heartbeat_due);
                self.reoffers.values().map(|r| r.due).fold(first, Duration::min)
            }
        }
    }

    fn refuse(&mut self, reason: Reason, text: &str) {
        self.close.get_or_insert_with(|| Close::new(reason, text));
    }

    fn handle_welcome(&mut self, now: Duration, welcome: Welcome, local: &impl Local) {
        let (cluster, epoch) = (local.cluster(), local.epoch());
        if welcome.node == local.node() {
            return self.refuse(Reason::SameNode, &same_node(welcome.node));
        }
        if welcome.cluster.is_empty() {
            return self.refuse(Reason::BadProtocol, "the primary names no cluster");
        }
        if !cluster.is_empty() && cluster != welcome.cluster {
            let text = wrong_cluster(&cluster, &welcome.cluster);
            return self.refuse(Reason::WrongCluster, &text);
        }
        if welcome.epoch < epoch {
            return self.refuse(Reason::OldEpoch, &old_epoch(welcome.epoch, epoch));
        }
        self.link = Link::Live { heard: now };
        self.heartbeat_due = now + HEARTBEAT_INTERVAL;
        self.welcome = Some(welcome.clone());
        self.join = Some(welcome);
    }

    /// The first word on a connection says that everything has arrived.
    fn note_lag(&mut self, now: Duration, lag: Duration) {
        let is_first = !std::mem::replace(&mut self.was_in_sync, true);
        self.in_sync_due |= is_first;
        self.all_due |= is_first;
        self.lag = Some(LagWord { lag, at: now });
        self.failures = 0;
    }

    /// The newest time counts; what was to be a snapshot stays one.
    fn note_reoffer(&mut self, db: &DbName, due: Duration, snapshot: bool) {
        self.awaited.remove(db);
        let reoffer = self.reoffers.entry(db.clone()).or_insert(Reoffer { due, snapshot });
        reoffer.due = due;
        reoffer.snapshot |= snapshot;
    }

    /// One question a database: the newest counts.
    fn note_question(&mut self, db: DbName, action: Action) {
        self.questions.insert(db, action);
    }

    fn due_offers(&mut self, now: Duration, local: &impl Local) -> Vec<Offer> {
        let due = self.reoffers.iter().filter(|(_, r)| r.due <= now).take(BATCH);
        let offers: Vec<Offer> = due
            .map(|(db, r)| Offer {
                db: db.clone(),
                pos: local.positions(db).0,
                // Whyever it is offered: records are of no use to a damaged one.
                snapshot: r.snapshot || local.is_damaged(db),
            })
            .collect();
        self.handle_offered(&offers);
        offers
    }

    fn due_acks(&mut self, local: &impl Local) -> Vec<Ack> {
        let mut acks = Vec::new();
        while acks.len() < BATCH {
            let Some(db) = self.moved.pop_first() else { break };
            let (applied, synced) = local.positions(&db);
            if synced.txid < applied.txid {
                self.unsynced.insert(db.clone());
            }
            acks.push(Ack { db, applied, synced });
        }
        acks
    }

    /// Doubling waits, each shortened by up to half so that replicas do not dial in step.
    fn next_wait(&mut self, is_lasting: bool) -> Duration {
        let longest = MAX_RECONNECT.max(self.reconnect_delay);
        let doubled = self.reconnect_delay * (1 << self.failures.min(MAX_DOUBLINGS));
        self.failures += 1;
        let wait = if is_lasting { longest } else { doubled.min(longest) };
        // splitmix64
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let fraction = ((z ^ (z >> 31)) >> 40) as f64 / (1u64 << 24) as f64;
        wait.mul_f64(1.0 - fraction / 2.0)
    }
}

#[cfg(test)]
#[path = "replica_tests.rs"]
mod tests;
