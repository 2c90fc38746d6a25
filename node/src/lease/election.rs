//! Who is primary: a node's part in it, as a pure state machine. No sockets, no clock, no store.
//!
//! [`Election`] is fed through `handle_*` and drained through [`Election::poll_action`] and
//! [`Election::poll_transition`], in any order and as often as wanted; at the latest at
//! [`Election::poll_timeout`] everything is polled again. All times are monotonic, of one clock:
//! the one by which the store's gate closes. A request counts as made at the `now` of the
//! [`Election::poll_action`] that returned it; the driver sends it after that.
//!
//! ```text
//! Starting --> Replica <--> Candidate --acquired--> Primary --target--> HandingOver
//!                 ^                                  |   ^------resumed-----|  |
//!                 +----------- SteppingDown <--------+-------------------------+
//! ```
//!
//! # Why at most one gate is open
//!
//! The lease service is believed in one thing only: its transactions are executed one after the
//! other. Neither sessions' lives, nor lock-delays, nor the freshness of what is read matters.
//!
//! 1. A node opens its gate only up to `request + right` of an acquisition or a beat of its own
//!    that was answered as done. The request is before its execution, so the gate is closed
//!    `right` after the execution, by the node's own clock, which may be slow by a twentieth.
//! 2. An acquisition and each beat change the index of the *term record*, and are executed only
//!    if that index is still the one that the writer names. A beat is executed only while the
//!    session holds the key, and each node has its own session.
//! 3. A node asks for the lease only if `right * 1.15` have passed, by its own clock, which may be
//!    fast by a twentieth (1.05 / 0.95 < 1.11), since it first saw the term record at some index,
//!    and names that index in the acquisition, with the right that the record states. If it is
//!    executed, the record has not changed since it was seen: every acquisition and beat before it
//!    was executed before it was seen, and no other node's beat will be after it. So every other
//!    gate is closed by then (1), and stays so. (If the service loses its data, indices repeat;
//!    but sessions are gone with it. So only what was asked for since the session of the
//!    acquisition was opened counts as seen. A service that is set back to a backup, with its
//!    sessions, while a primary is at work, is beyond this.)
//! 4. It need not wait if the record says *released*: the primary writes that itself, in the
//!    transaction that unlocks the key, after it has closed its gate for the rest of the term. If
//!    its answer is lost the primary repeats it; it never goes back. Nor if there is neither a term
//!    record nor a cluster's id here or there: it begins a new cluster, and the acquisition fails
//!    if somebody else has begun one.
//!
//! A request that is executed late names an index or a session that is gone: nothing happens. One
//! whose answer was lost shows in the next view, or as a conflict. A node that is stopped for any
//! time wakes up with a clock that went on, so its gate is closed. (The clock must go on while the
//! machine sleeps: `CLOCK_BOOTTIME` does.)

mod candidacy;
mod own_term;
mod presence;
mod request;
mod steps;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use self::candidacy::Sight;
use self::own_term::OwnTerm;

use self::presence::Presence;
use self::request::{RETRY, Request};
use super::action::{
    Acquire, Acquisition, Action, CATCH_UP_TIMEOUT, Promotion, REQUEST_TIMEOUT, Renewal, Role,
    SHUTDOWN_TIMEOUT, Settings, Standing, Transition,
};
use super::view::{Holder, Link, SessionId, View};

/// Pause before the primary is asked again (`lease.promote`).
const WISH_DELAY: Duration = Duration::from_secs(5);

/// A node's part in the lease.
#[derive(Debug)]
pub struct Election {
    settings: Settings,
    role: Role,
    reason: String,
    transitions: VecDeque<Transition>,
    /// What is to be done beside requests, in this order.
    queue: VecDeque<Action>,
    wake: Duration,
    standing: Option<Standing>,
    view: Option<View>,
    /// When the newest query was made that was answered by `view` or what came before.
    viewed: Duration,
    /// The highest index that is known to have been reached, and when that was learned.
    known: (u64, Duration),
    sight: Sight,
    /// The newest epoch.
    epoch: u64,
    link: Link,
    /// The epoch and the address that are followed.
    followed: Option<(u64, String)>,
    presence: Presence,
    own: Option<OwnTerm>,
    acquiring: Request,
    acquisition: Option<Acquire>,
    /// The next acquisition takes a view that was asked for after this moment.
    view_needed: Duration,
    /// Why the last acquisition was not executed.
    refusal: Option<&'static str>,
    looking: Request,
    destroying: Request,
    /// The session that is being destroyed.
    doomed: Option<SessionId>,
    holding: Request,
    awaiting: Request,
    /// It does not try before, and why.
    resting: Option<(Duration, String)>,
    is_forced: bool,
    wish: Option<Wish>,
    /// `lease.promote` is still to be fulfilled; the primary is not asked before.
    promote_due: Option<Duration>,
    /// When the node stops at the latest, if it is to stop.
    stop_at: Option<Duration>,
}

/// A node that asked for the lease hopes for it this long.
const WISH_TIMEOUT: Duration = Duration::from_secs(10);

/// The wish to get the lease from the primary.
#[derive(Debug, Clone, Copy)]
struct Wish {
    until: Duration,
    is_asked: bool,
}

impl Wish {
    fn new(now: Duration) -> Self {
        Self { until: now + WISH_TIMEOUT, is_asked: false }
    }
}

impl Election {
    /// A node that knows nothing yet.
    pub fn new(settings: Settings) -> Self {
        let promote_due = (settings.promote && settings.candidate).then_some(Duration::ZERO);
        Self {
            settings,
            role: Role::Starting,
            reason: "waiting for Consul and for the own data".into(),
            transitions: VecDeque::new(),
            queue: VecDeque::new(),
            wake: Duration::ZERO,
            standing: None,
            view: None,
            viewed: Duration::ZERO,
            known: (0, Duration::ZERO),
            sight: Sight::default(),
            epoch: 0,
            link: Link::None,
            followed: None,
            presence: Presence::default(),
            own: None,
            acquiring: Request::default(),
            acquisition: None,
            view_needed: Duration::ZERO,
            refusal: None,
            looking: Request::default(),
            destroying: Request::default(),
            doomed: None,
            holding: Request::default(),
            awaiting: Request::default(),
            resting: None,
            is_forced: false,
            wish: None,
            promote_due,
            stop_at: None,
        }
    }

    // ---- what the driver tells ----

    /// What the store holds; at the start, and whenever it has changed.
    pub fn handle_standing(&mut self, standing: Standing) {
        self.epoch = self.epoch.max(standing.epoch);
        self.standing = Some(standing);
        self.wake = Duration::ZERO;
    }

    /// The answer to a query, of the watch or of [`Action::Look`], that was sent at `requested`.
    pub fn handle_view(&mut self, now: Duration, requested: Duration, view: View) {
        self.wake = Duration::ZERO;
        if self.looking.since().is_some_and(|since| since <= requested) {
            self.looking.finish(now);
        }
        let (index, learned) = self.known;
        if view.index < index && requested < learned {
            return;
        }
        self.known = (view.index, now);
        self.viewed = self.viewed.max(requested);
        self.sight.note(now, requested, &view);
        self.epoch = self.epoch.max(view.epoch().unwrap_or(0));
        self.presence.check(self.settings.node, requested, &view);
        let is_ours = self.own.as_mut().is_none_or(|own| own.check(requested, &view));
        let newest = view.nodes.iter().map(|entry| entry.record.epoch).max().unwrap_or(0);
        self.epoch = self.epoch.max(newest);
        self.view = Some(view);
        if !is_ours {
            self.lose(now, "the lease was taken from this node");
        } else if self.own.as_ref().is_some_and(|own| own.ending.is_none() && own.epoch < newest) {
            // Consul has lost its data. Replicas that know the newer epoch would refuse this one.
            let why = format!("a node has seen epoch {newest}; taking the lease anew");
            self.step_down(now, None, &why);
        }
    }

    /// [`Action::Look`] got no answer.
    pub fn handle_look_failed(&mut self, now: Duration) {
        self.looking.finish(now + RETRY);
        self.wake = Duration::ZERO;
    }

    /// A session was opened, or (`None`) could not be.
    pub fn handle_session(&mut self, now: Duration, session: Option<SessionId>) {
        if session.is_some() {
            self.sight.begin(now);
        }
        self.presence.handle_session(now, session, &self.settings);
        self.wake = Duration::ZERO;
    }

    /// The answer to [`Action::RenewSession`].
    pub fn handle_session_renewed(&mut self, now: Duration, renewal: Renewal) {
        self.wake = Duration::ZERO;
        if self.presence.handle_renewed(now, renewal, &self.settings) {
            self.lose(now, "this node's session at Consul has ended");
        }
    }

    /// The record was written, or (false) perhaps not.
    pub fn handle_published(&mut self, now: Duration, is_written: bool) {
        self.presence.handle_published(now, is_written);
        self.wake = Duration::ZERO;
    }

    /// The answer to [`Action::Acquire`].
    pub fn handle_acquired(&mut self, now: Duration, acquisition: Acquisition) {
        self.wake = Duration::ZERO;
        let requested = self.acquiring.finish(now);
        let (Some(requested), Some(acquire)) = (requested, self.acquisition.take()) else { return };
        self.view_needed = now;
        if !matches!(acquisition, Acquisition::Acquired { .. }) {
            self.acquiring.defer(requested + RETRY);
        }
        match acquisition {
            Acquisition::Acquired { index } => {
                self.learn(now, index);
                let session = acquire.session;
                if self.presence.session() == Some(&session) {
                    let term = acquire.term;
                    let own = OwnTerm::new(now, session, (index, index), term, Some(requested));
                    self.begin(now, own, acquire.cluster);
                }
            }
            Acquisition::Refused => {
                self.refusal = Some(
                    "Consul refuses the lease: its lock-delay runs, or another \
                                     node was faster; trying again",
                );
            }
            Acquisition::Failed => self.refusal = Some("Consul does not answer; trying again"),
        }
    }

    /// The answer to [`Action::DestroySession`], whether it is gone or perhaps not.
    pub fn handle_destroyed(&mut self, now: Duration) {
        self.wake = Duration::ZERO;
        let wait = if self.stop_at.is_some() { Duration::ZERO } else { REQUEST_TIMEOUT };
        self.destroying.finish(now + wait);
        let doomed = self.doomed.take();
        if doomed.is_some() && doomed.as_ref() == self.presence.session() {
            // It may live on if the request failed; then it is not renewed any more.
            self.presence.forget();
        }
    }

    /// The answer to [`Action::BeginTerm`]; an error says why this node cannot be primary.
    pub fn handle_term_began(&mut self, now: Duration, epoch: u64, result: Result<(), String>) {
        self.wake = Duration::ZERO;
        let own = self.own.as_mut().filter(|own| own.epoch == epoch && own.ending.is_none());
        let Some(own) = own else { return };
        match result {
            Ok(()) => {
                own.has_begun = true;
                self.open_gate(now);
            }
            Err(text) => {
                let why = format!("this node cannot be primary: {text}");
                self.resting = Some((now + self.settings.demote_delay, why.clone()));
                self.step_down(now, None, &why);
            }
        }
    }

    /// The answer to [`Action::HoldWriters`].
    pub fn handle_held(&mut self, now: Duration, result: Result<(), String>) {
        self.wake = Duration::ZERO;
        if self.holding.finish(now).is_none() {
            return;
        }
        let Some(passing) = self.own.as_mut().and_then(|own| own.passing.as_mut()) else { return };
        match result {
            Ok(()) => {
                passing.is_held = true;
                passing.until = passing.until.min(now + CATCH_UP_TIMEOUT);
                self.queue.push_back(Action::AwaitTarget(passing.target));
                self.awaiting.hurry();
                self.awaiting.start(now);
            }
            Err(text) => self.fail_passing(now, &format!("writers did not end: {text}")),
        }
    }

    /// The answer to [`Action::AwaitTarget`].
    pub fn handle_caught_up(&mut self, now: Duration, result: Result<(), String>) {
        self.wake = Duration::ZERO;
        if self.awaiting.finish(now).is_none() {
            return;
        }
        let passing = self.own.as_ref().and_then(|own| own.passing);
        let Some(passing) = passing.filter(|passing| passing.is_held) else { return };
        match result {
            Ok(()) => {
                let why = format!("handing over to node {:016X}", passing.target);
                self.step_down(now, Some(passing.target), &why);
            }
            Err(text) => self.fail_passing(now, &format!("the target is not ready: {text}")),
        }
    }

    /// The primary of this epoch has welcomed this node.
    pub fn handle_linked(&mut self, epoch: u64) {
        self.link = Link::Up(epoch);
        self.wake = Duration::ZERO;
    }

    /// The connection to the primary has ended, or nothing was heard on it for too long.
    pub fn handle_unlinked(&mut self) {
        if let Link::Up(epoch) = self.link {
            self.link = Link::Lost(epoch);
        }
        self.wake = Duration::ZERO;
    }

    /// The primary refused [`Action::AskTakeOver`], or could not be asked.
    pub fn handle_take_over_refused(&mut self, now: Duration, reason: &str) {
        self.wake = Duration::ZERO;
        if self.wish.take().is_some() {
            self.promote_due = self.promote_due.map(|_| now + WISH_DELAY);
            self.note(format!("not promoted: {reason}"));
        }
    }

    // ---- what others want ----

    /// An operator wants this node to be primary.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn handle_promote(&mut self, now: Duration) -> Result<Promotion, String> {
        self.wake = Duration::ZERO;
        if self.own.as_ref().is_some_and(|own| own.ending.is_none()) {
            return Ok(Promotion::Already);
        }
        let resting = self.resting.take();
        let promotion = self.begin_promotion(now);
        if promotion.is_err() {
            self.resting = resting;
        }
        promotion
    }

    /// True while this node may become primary because [`Election::handle_promote`] wanted it, or
    /// is about to be.
    pub fn is_promoting(&self) -> bool {
        self.wish.is_some() || self.is_forced || self.own.is_some()
    }

    /// A replica, or an operator for it, asks this primary for the lease.
    ///
    /// # Errors
    /// Why it does not get it.
    pub fn handle_take_over(&mut self, now: Duration, target: u64) -> Result<(), String> {
        let why = format!("node {target:016X} is to be the primary");
        self.pass_on(now, target, false, &why)
    }

    /// An operator wants this node to be primary no more, and `target` to be it. Without a target
    /// the lease is given back at once, and the newest commits may not have left this node.
    ///
    /// # Errors
    /// It is not primary, or the target cannot be.
    pub fn handle_demote(&mut self, now: Duration, target: Option<u64>) -> Result<(), String> {
        let why = "demoted by an operator";
        match target {
            Some(target) => self.pass_on(now, target, false, why)?,
            None if self.own.as_ref().is_some_and(|own| own.ending.is_none()) => {
                self.step_down(now, None, why);
            }
            None => return Err("this node is not the primary".into()),
        }
        self.resting = Some((now + self.settings.demote_delay, why.into()));
        Ok(())
    }

    /// This primary's replicas that hold every acknowledged commit, from now on; empty: not
    /// promised. [`Action::NoteSyncSet`] tells when that is published.
    pub fn handle_sync_set(&mut self, set: BTreeSet<u64>) {
        if let Some(own) = &mut self.own {
            own.want_sync_set(set);
        }
        self.wake = Duration::ZERO;
    }

    /// The node shuts down. A primary hands over to `target`, the best connected candidate.
    /// It is done when the role is [`Role::Stopped`], after at most
    /// [`super::action::SHUTDOWN_TIMEOUT`].
    pub fn handle_shutdown(&mut self, now: Duration, target: Option<u64>) {
        if self.stop_at.is_some() {
            return;
        }
        self.stop_at = Some(now + SHUTDOWN_TIMEOUT);
        let why = "this node is shutting down";
        let Some(own) = self.own.as_mut().filter(|own| own.ending.is_none()) else { return };
        if let Some(passing) = &mut own.passing {
            passing.is_final = true;
        } else if target.is_none_or(|target| self.pass_on(now, target, true, why).is_err()) {
            self.step_down(now, None, why);
        }
        self.wake = Duration::ZERO;
    }

    // ---- what comes of it ----

    /// The next thing to do.
    pub fn poll_action(&mut self, now: Duration) -> Option<Action> {
        let mut decide_at = Duration::MAX;
        if self.role != Role::Stopped {
            self.advance_own(now);
            self.advance_stop(now);
            decide_at = self.decide(now);
            decide_at = decide_at.min(self.advance_wish(now));
        }
        let action = self.queue.pop_front().or_else(|| self.poll_request(now));
        self.wake = if action.is_some() { now } else { decide_at.min(self.next_wake(now)) };
        action
    }

    /// The next transition, for the log, the events and the metrics.
    pub fn poll_transition(&mut self) -> Option<Transition> {
        self.transitions.pop_front()
    }

    /// When to poll again at the latest.
    pub fn poll_timeout(&self) -> Duration {
        self.wake
    }

    /// This node's role.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Why it is in this role, or does not get further; one line for people.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Until when this node may commit; zero if it may not.
    pub fn right_until(&self) -> Duration {
        let own = self.own.as_ref().filter(|own| own.has_begun && own.ending.is_none());
        own.map_or(Duration::ZERO, |own| own.right_until)
    }

    /// Who holds the lease, as far as is known, and in which epoch.
    pub fn holder(&self) -> Option<(&Holder, u64)> {
        let view = self.view.as_ref()?;
        Some((view.key.as_ref()?.holder.as_ref()?, view.epoch()?))
    }

    /// The newest view.
    pub fn view(&self) -> Option<&View> {
        self.view.as_ref()
    }
}

#[cfg(test)]
mod tests;
