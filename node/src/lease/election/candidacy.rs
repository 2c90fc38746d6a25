//! May this node take the lease, and may it end the session of a primary that is lost?

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::action::{Acquire, Settings, Standing};
use super::super::view::{Link, NodeRecord, Released, SessionId, TermRecord, View};

/// A candidate waits so much longer than a primary's right lasts: clocks may differ by a twentieth
/// each (1.05 / 0.95 < 1.11).
const GUARD_FACTOR: f64 = 1.15;
/// A released lease is left to the node that it was handed to for this long.
const HANDED_WAIT: Duration = Duration::from_secs(2);
/// A node that begins a new cluster looks around for this long, whether others have data.
const NEW_CLUSTER_WAIT: Duration = Duration::from_secs(1);
/// A node that was away leaves the lease for this long to those with newer data.
const RETURN_WAIT: Duration = Duration::from_secs(10);
/// A primary whose record did not change for this long is lost, if all others say so.
const SILENCE: Duration = Duration::from_millis(2800);

/// What is known of the term record's age.
#[derive(Debug, Clone, Default)]
pub(super) struct Sight {
    /// What was asked for before does not count.
    since: Duration,
    /// The record's index, once there is something that counts.
    index: Option<Option<u64>>,
    /// When the record was first seen as it is.
    pub(super) first: Duration,
    /// When the newest query was made that showed it so.
    pub(super) fresh: Duration,
    /// The longest right that was ever seen in it.
    longest: Duration,
}

impl Sight {
    /// A session was opened: what the service said before may be of a former life of its.
    pub(super) fn begin(&mut self, now: Duration) {
        (self.since, self.index, self.first) = (now, None, now);
    }

    /// The moment at which a view must be asked for that counts, if there is none yet.
    pub(super) fn needed(&self) -> Option<Duration> {
        self.index.is_none().then_some(self.since)
    }

    /// A view that was asked for at `requested` has come.
    pub(super) fn note(&mut self, now: Duration, requested: Duration, view: &View) {
        let index = Some(view.term_index());
        if requested < self.since || self.index != index {
            (self.first, self.fresh) = (now, requested);
            self.index = index.filter(|_| requested >= self.since);
        }
        self.fresh = self.fresh.max(requested);
        let right = view.term_record().map_or(Duration::ZERO, |record| record.right);
        self.longest = self.longest.max(right);
    }
}

/// What a node knows when it decides.
pub(super) struct Facts<'a> {
    pub(super) now: Duration,
    pub(super) settings: &'a Settings,
    pub(super) standing: &'a Standing,
    pub(super) view: &'a View,
    pub(super) sight: &'a Sight,
    /// It does not try before, as it was demoted or could not do what a primary does; with why.
    pub(super) resting: Option<&'a (Duration, String)>,
    pub(super) link: Link,
    /// An operator wants this node, whoever else is in sync.
    pub(super) is_forced: bool,
}

/// May the free lease be taken?
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Not by this node.
    Never(String),
    /// Not before this moment, or before the view changes.
    Wait(Duration, String),
    /// Now.
    Take,
}

/// How long after a record was first seen nobody can be within the right that it states.
pub(super) fn guard(right: Duration) -> Duration {
    right.mul_f64(GUARD_FACTOR)
}

impl Facts<'_> {
    /// Why this node has no part in the cluster.
    pub(super) fn foreign(&self) -> Option<String> {
        let (ours, theirs) = (self.standing.cluster.as_ref()?, self.view.cluster.as_ref()?);
        (ours != theirs).then(|| {
            format!(
                "this node belongs to cluster {ours}, the lease to cluster {theirs}: \
                 use another lease.consul.key, or an empty data directory"
            )
        })
    }

    /// Why this node cannot be primary whoever else is there.
    pub(super) fn unable(&self) -> Option<String> {
        if !self.settings.candidate {
            return Some("this node is no candidate".into());
        }
        if self.is_new() {
            let why = "this node is new: it must have had everything of a primary once";
            return Some(why.into());
        }
        let resting = self.resting.filter(|(until, _)| self.now < *until);
        self.foreign().or_else(|| resting.map(|(_, why)| why.clone()))
    }

    /// True if there is a cluster, and this node never had everything that it has.
    fn is_new(&self) -> bool {
        let Standing { cluster, epoch, term, transactions, .. } = self.standing;
        let last = self.view.term_record();
        if last.is_some_and(|last| last.node == self.settings.node) {
            // It has whatever there is, even if it stopped before it kept the cluster's id.
            return false;
        }
        let is_there = self.view.cluster.is_some() || last.is_some();
        let was_whole = *term > 0;
        // Data from before there was a primary with an epoch, as LiteFS's.
        let brought_data = *epoch == 0 && *transactions > 0 && cluster.is_some() && last.is_none();
        let is_first = *epoch == 0 && !is_there;
        (is_there && cluster.is_none()) || !(was_whole || brought_data || is_first)
    }

    /// May this node take the lease, which nobody holds?
    pub(super) fn verdict(&self) -> Verdict {
        if let Some(why) = self.unable() {
            return Verdict::Never(why);
        }
        if self.sight.needed().is_some() {
            return Verdict::Wait(Duration::MAX, "waiting for Consul".into());
        }
        let me = self.settings.node;
        let handed = self.released().and_then(|released| released.to);
        match handed {
            Some(to) if to == me => return Verdict::Take,
            Some(to) if self.now < self.sight.first + HANDED_WAIT => {
                let why = format!("the lease is being handed to node {to:016X}");
                return Verdict::Wait(self.sight.first + HANDED_WAIT, why);
            }
            _ => (),
        }
        if !self.may_follow_term(me) && !self.is_forced {
            let why = "this node may lack acknowledged commits: waiting for a replica in sync \
                       with the last primary, or for an operator who promotes this one";
            return Verdict::Wait(Duration::MAX, why.into());
        }
        if let Some(better) = self.better() {
            let why = format!("node {:016X} has newer data", better.node);
            return Verdict::Wait(Duration::MAX, why);
        }
        let (until, why) = self.guard_end();
        let (until, why) = self.return_end().filter(|end| end.0 > until).unwrap_or((until, why));
        if self.now < until { Verdict::Wait(until, why) } else { Verdict::Take }
    }

    /// The longest that any primary may have thought it was allowed to commit, when nothing tells.
    fn longest_right(&self) -> Duration {
        self.sight.longest.max(self.settings.right)
    }

    fn released(&self) -> Option<Released> {
        self.view.term_record()?.released
    }

    /// Until when a primary may be within its right.
    fn guard_end(&self) -> (Duration, String) {
        let first = self.sight.first;
        match self.view.term_record() {
            Some(TermRecord { released: Some(_), .. }) => (Duration::ZERO, String::new()),
            Some(TermRecord { right, .. }) => {
                (first + guard(*right), "the last primary may still be within its right".into())
            }
            None if self.view.cluster.is_none() && self.standing.cluster.is_none() => {
                (first + NEW_CLUSTER_WAIT, "there is no cluster yet; this node begins one".into())
            }
            None => {
                let why = "Consul knows of no former primary, though there is a cluster";
                (first + guard(self.longest_right()), why.into())
            }
        }
    }

    /// Until when the last primary, or a node that followed it, may return with data that this
    /// node has never seen, as it was away.
    fn return_end(&self) -> Option<(Duration, String)> {
        let term = self.view.term_record()?;
        // Connected to this very primary (terms before it have lower epochs than its floor), which
        // died: then it has what there is. One that left in order comes back.
        let is_dead = term.released.is_none();
        let was_linked = is_dead && matches!(self.link, Link::Lost(epoch) if epoch > term.floor);
        let was_there = term.node == self.settings.node || was_linked;
        let lacks = term.transactions.saturating_sub(self.standing.transactions);
        (!was_there && lacks > 0 && !self.is_forced).then(|| {
            let why = format!(
                "this node was away and lacks {lacks} transactions: waiting for a node that has them"
            );
            (self.sight.first + RETURN_WAIT, why)
        })
    }

    /// True if the node holds all commits that were acknowledged in the last term, as far as that
    /// was promised.
    fn may_follow_term(&self, node: u64) -> bool {
        self.view.term_record().is_none_or(|term| {
            term.sync.is_empty() || term.node == node || term.sync.contains(&node)
        })
    }

    /// A living node with newer data that would take the lease.
    fn better(&self) -> Option<&NodeRecord> {
        let is_empty = self.place() == (0, 0);
        self.newer()
            .find(|record| (record.candidate && self.may_follow_term(record.node)) || is_empty)
    }

    /// What must be said when this node takes the lease.
    pub(super) fn warning(&self) -> Option<String> {
        if !self.may_follow_term(self.settings.node) {
            return Some("as an operator wants it, though acknowledged commits may be lost".into());
        }
        if self.return_end().is_some() {
            return Some("though the last primary had more transactions".into());
        }
        let newer = self.newer().next()?;
        Some(format!("though node {:016X} has newer data, which may not follow", newer.node))
    }

    fn newer(&self) -> impl Iterator<Item = &NodeRecord> {
        let others = self.view.nodes.iter().map(|entry| &entry.record);
        others.filter(|record| {
            record.node != self.settings.node && (record.term, record.transactions) > self.place()
        })
    }

    fn place(&self) -> (u64, u64) {
        (self.standing.term, self.standing.transactions)
    }

    /// The acquisition to try; `epoch` is the newest known.
    pub(super) fn acquire(&self, session: SessionId, epoch: u64) -> Acquire {
        let before = self.view.term_record();
        let floors = self.view.nodes.iter().map(|entry| entry.record.epoch.max(entry.record.term));
        let floor = before.map_or(0, |term| term.floor.saturating_add(1)).max(epoch);
        let known = self.standing.cluster.as_ref().unwrap_or(&self.settings.new_cluster);
        let term = TermRecord {
            node: self.settings.node,
            right: self.settings.right,
            fast: self.settings.fast,
            beat: 0,
            transactions: self.standing.transactions,
            floor: floors.fold(floor, u64::max),
            sync: before.map_or_else(BTreeSet::new, |term| self.kept_sync_set(term)),
            released: None,
        };
        let cluster = self.view.cluster.is_none().then(|| known.clone());
        Acquire { session, expected: self.view.term_index(), term, cluster }
    }

    /// Until this node acknowledges commits, the same nodes hold all that were acknowledged, and
    /// with `sync` it does not before it has published its own set.
    fn kept_sync_set(&self, term: &TermRecord) -> BTreeSet<u64> {
        if term.sync.is_empty() || !self.settings.sync {
            return BTreeSet::new();
        }
        term.sync.iter().copied().chain([term.node]).collect()
    }

    /// The session of a process that is gone: this node's own, before it was started anew. (Only
    /// one process has a data directory, and with it a node's id.)
    pub(super) fn own_former(&self, session: &SessionId) -> Option<SessionId> {
        let me = self.settings.node;
        let key = self.view.key.as_ref();
        let key = key.filter(|key| key.holder.as_ref().is_some_and(|holder| holder.node == me));
        let holding = key.and_then(|key| key.session.as_ref());
        let mine = self.view.nodes.iter().filter(|entry| entry.record.node == me);
        let mut sessions = holding.into_iter().chain(mine.map(|entry| &entry.session));
        sessions.find(|found| *found != session).cloned()
    }

    /// When the holder, another node, counts as lost; `None`: not as long as nothing changes.
    pub(super) fn lost_at(&self) -> Option<Duration> {
        let record = self.view.term_record()?;
        let epoch = self.view.epoch()?;
        let is_known = self.sight.needed().is_none() && record.released.is_none();
        let is_allowed = is_known && record.fast && self.settings.fast;
        if !is_allowed || self.link == Link::Up(epoch) || self.unable().is_some() {
            return None;
        }
        let is_linked = |record: &NodeRecord| record.link == Link::Up(epoch);
        let others = self.view.nodes.iter().map(|entry| &entry.record);
        let mut others = others.filter(|r| r.node != record.node && r.node != self.settings.node);
        let is_agreed = self.link == Link::Lost(epoch) && !others.any(is_linked);
        // Whoever is still connected to it: after that it cannot have committed for a while.
        let unagreed = guard(record.right) + 2 * self.settings.beat_interval;
        Some(self.sight.first + if is_agreed { SILENCE.min(unagreed) } else { unagreed })
    }
}
