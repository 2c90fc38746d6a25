//! Drives [`Quorum`]: commits wait here for their replicas.
//!
//! A commit's answer is given on the thread that brings the last acknowledgement that it needs, so
//! that nothing but that lies in between.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use litefs_store::{Answer, DbName, Histogram, Pos, Replication, Timing};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::broadcast;

use super::quorum::{Action, Joined, Quorum, Report, TICK, Ticket};
use super::wire::Ack;
use crate::config::ReplicationMode;

/// Told how an attempt to publish a set ended.
pub type Published = Box<dyn FnOnce(Result<(), String>) + Send>;

/// Makes a sync set known to whoever decides who is primary next; see [`Confirmer::set_publisher`].
pub type Publisher = Arc<dyn Fn(BTreeSet<u64>, Published) + Send + Sync>;

/// Changes that a slow listener may be behind.
const CHANGES: usize = 64;

/// Mode `sync` does without replicas from now on, or waits for them again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncChange {
    /// Commits are acknowledged without replicas.
    pub fallen_back: bool,
    /// Those that confirm commits now, by node id.
    pub sync_set: Vec<u64>,
}

/// Commits of this node that wait for replicas.
pub struct Confirmer {
    mode: ReplicationMode,
    started: Instant,
    inner: Mutex<Inner>,
    publisher: Mutex<Option<Publisher>>,
    waits: Timing,
    fallbacks: AtomicU64,
    refusals: AtomicU64,
    changes: broadcast::Sender<SyncChange>,
    own: Weak<Self>,
}

struct Inner {
    quorum: Quorum,
    /// This node is the primary.
    active: bool,
    answers: HashMap<Ticket, (Answer, Instant)>,
}

/// The state of a primary's commits, for status and metrics.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfirmStatus {
    /// `async`, `bounded` or `sync`.
    pub mode: &'static str,
    /// The replicas that have everything that was acknowledged, by node id.
    pub sync_set: Vec<u64>,
    /// Mode `sync` waits for nobody, as replicas did not confirm in time.
    pub fallen_back: bool,
    /// Commits that wait now.
    pub waiting: usize,
    /// How often it fell back to `async` since the start.
    pub fallbacks: u64,
    /// Commits that mode `bounded` refused since the start.
    pub refusals: u64,
    /// How long commits waited.
    pub waits: Histogram,
}

impl fmt::Debug for Confirmer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Confirmer").field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl Confirmer {
    /// `None` if commits need nothing of replicas.
    pub fn new(mode: ReplicationMode) -> Option<Arc<Self>> {
        let quorum = match mode {
            ReplicationMode::Async => return None,
            ReplicationMode::Bounded(bounds) => Quorum::bounded(bounds),
            ReplicationMode::Sync(settings) => Quorum::sync(settings),
        };
        Some(Arc::new_cyclic(|own| Self {
            mode,
            started: Instant::now(),
            inner: Mutex::new(Inner { quorum, active: false, answers: HashMap::new() }),
            publisher: Mutex::new(None),
            waits: Timing::default(),
            fallbacks: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            changes: broadcast::channel(CHANGES).0,
            own: own.clone(),
        }))
    }

    /// Who makes a sync set known, before anything is acknowledged because of it. It must not
    /// block, and must call back. Without one, nobody needs to know: whoever assigns the roles of a
    /// static lease sees to it that the next primary is a member.
    pub fn set_publisher(&self, publisher: Publisher) {
        *self.publisher.lock() = Some(publisher);
    }

    /// This node is the primary from now on; call it before the write gate opens.
    pub fn begin(&self) {
        self.change(|quorum, active| {
            *active = true;
            quorum.handle_term_began();
        });
    }

    /// This node is not the primary any more: nobody can tell what becomes of the commits that
    /// wait.
    pub fn end(&self, why: &str) {
        self.change(|quorum, active| {
            *active = false;
            quorum.handle_term_ended(why);
        });
    }

    /// A replica had everything for the first time on its connection.
    pub fn joined(&self, joined: &Joined<'_>, newest: impl FnOnce() -> Vec<(DbName, Pos)>) {
        let now = self.now();
        // The positions are read within: a commit is either among them, or still to be noted.
        self.change(|quorum, active| {
            if *active {
                quorum.handle_joined(now, joined, &newest());
            }
        });
    }

    /// A replica acknowledged databases.
    pub fn acknowledged(&self, node: u64, session: u64, acks: &[Ack]) {
        let now = self.now();
        self.change(|quorum, _| quorum.handle_acks(now, node, session, acks));
    }

    /// A replica's connection has ended.
    pub fn lost(&self, node: u64, session: u64) {
        let now = self.now();
        self.change(|quorum, _| quorum.handle_lost(now, node, session));
    }

    /// Each fall back from now on, and each return; not that of another primary's commits.
    pub fn changes(&self) -> broadcast::Receiver<SyncChange> {
        self.changes.subscribe()
    }

    /// For status and metrics.
    pub fn status(&self) -> ConfirmStatus {
        let inner = self.inner.lock();
        let set = inner.quorum.sync_set().iter().filter(|_| inner.active);
        ConfirmStatus {
            mode: self.mode.name(),
            sync_set: set.copied().collect(),
            fallen_back: inner.active && inner.quorum.has_fallen_back(),
            waiting: inner.quorum.waiting(),
            fallbacks: self.fallbacks.load(Ordering::Relaxed),
            refusals: self.refusals.load(Ordering::Relaxed),
            waits: self.waits.read(),
        }
    }

    /// Looks at the time, until nobody else knows this.
    pub async fn run(this: Weak<Self>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Some(this) = this.upgrade() else { return };
            let now = this.now();
            this.change(|quorum, active| {
                if *active {
                    quorum.handle_timeout(now);
                }
            });
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn change(&self, change: impl FnOnce(&mut Quorum, &mut bool)) {
        let mut inner = self.inner.lock();
        let Inner { quorum, active, .. } = &mut *inner;
        change(quorum, active);
        self.act(inner);
    }

    /// Does what the machine wants, without the lock where others are called.
    fn act(&self, mut inner: MutexGuard<'_, Inner>) {
        let mut answered = Vec::new();
        let mut publish = None;
        while let Some(action) = inner.quorum.poll_action() {
            match action {
                Action::Confirm(ticket) => {
                    answered.extend(inner.answers.remove(&ticket).map(|answer| (answer, Ok(()))));
                }
                Action::Fail(ticket, why) => {
                    answered.extend(inner.answers.remove(&ticket).map(|answer| (answer, Err(why))));
                }
                // Only the last one counts.
                Action::Publish(number, set) => publish = Some((number, set)),
                Action::Report(report) => self.report(&report),
            }
        }
        drop(inner);
        for ((answer, since), outcome) in answered {
            self.waits.add(since.elapsed());
            answer(outcome);
        }
        if let Some((number, set)) = publish {
            self.publish(number, set);
        }
    }

    fn publish(&self, number: u64, set: BTreeSet<u64>) {
        let (own, publisher) = (self.own.clone(), self.publisher.lock().clone());
        let published: Published = Box::new(move |result| {
            let Some(this) = own.upgrade() else { return };
            if let Err(error) = &result {
                tracing::warn!("cannot publish which replicas have all commits: {error}");
            }
            let now = this.now();
            this.change(|quorum, _| quorum.handle_published(now, number, result.is_ok()));
        });
        match publisher {
            Some(publisher) => publisher(set, published),
            None => published(Ok(())),
        }
    }

    fn tell(&self, fallen_back: bool, set: &BTreeSet<u64>) {
        // An error means that nobody listens.
        let _ =
            self.changes.send(SyncChange { fallen_back, sync_set: set.iter().copied().collect() });
    }

    fn report(&self, report: &Report) {
        match report {
            Report::Synced(set) if set.is_empty() => {}
            Report::Synced(set) => {
                tracing::info!("commits are confirmed by replica {} now", names(set));
            }
            Report::Returned(set) => {
                self.tell(false, set);
                tracing::info!("commits are confirmed by replica {} again", names(set));
            }
            Report::FellBack => {
                self.fallbacks.fetch_add(1, Ordering::Relaxed);
                self.tell(true, &BTreeSet::new());
                tracing::warn!(
                    "replicas do not confirm commits in time: they are acknowledged without from \
                     now on (replication.on-timeout: async), until enough replicas are back"
                );
            }
            Report::Stalled => tracing::warn!(
                "replicas do not confirm commits in time: they wait (replication.on-timeout: \
                 wait); connect enough replicas that are candidates, or set replication.on-timeout: async"
            ),
        }
    }
}

fn names(set: &BTreeSet<u64>) -> String {
    let names: Vec<_> = set.iter().map(|node| format!("{node:016X}")).collect();
    names.join(", ")
}

impl Replication for Confirmer {
    fn admit(&self, db: &DbName) -> Result<(), String> {
        let ReplicationMode::Bounded(_) = self.mode else { return Ok(()) };
        let now = self.now();
        let inner = self.inner.lock();
        if !inner.active {
            return Ok(()); // the write gate decides
        }
        let admitted = inner.quorum.admit(now, db);
        if admitted.is_err() {
            self.refusals.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }

    fn waits(&self) -> bool {
        matches!(self.mode, ReplicationMode::Sync(_))
    }

    fn confirm(&self, db: &DbName, pos: Pos, answer: Answer) {
        let now = self.now();
        let mut inner = self.inner.lock();
        if !inner.active {
            drop(inner);
            return answer(Err("this node is not the primary any more".to_owned()));
        }
        // A ticket is answered once the lock is let go, at the earliest.
        let ticket = inner.quorum.handle_commit(now, db, pos);
        if let ReplicationMode::Bounded(_) = self.mode {
            drop(inner);
            return answer(Ok(()));
        }
        inner.answers.insert(ticket, (answer, Instant::now()));
        self.act(inner);
    }
}
