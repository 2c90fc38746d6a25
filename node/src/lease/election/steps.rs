//! What the machine does by itself: as time passes, and when the lease comes and goes.

use std::time::Duration;

use super::super::action::{
    Action, HOLD_TIMEOUT, Promotion, REQUEST_TIMEOUT, Replacement, Role, Transition,
};
use super::super::view::{Holder, Link, NodeRecord, Released, SessionId};
use super::candidacy::{Facts, Verdict};
use super::own_term::{Ending, Outcome, OwnTerm, Passing};
use super::{Election, Wish};

/// What others have is looked at so long before the lease is taken, at most. It is no less than a
/// request may take, so that any answer is new enough.
pub(super) const VIEW_AGE: Duration = REQUEST_TIMEOUT;
/// A node that shuts down tries for this long to give the lease back.
const STOP_RELEASE: Duration = Duration::from_secs(2);

impl Election {
    pub(super) fn facts(&self, now: Duration) -> Option<Facts<'_>> {
        Some(Facts {
            now,
            settings: &self.settings,
            standing: self.standing.as_ref()?,
            view: self.view.as_ref()?,
            sight: &self.sight,
            resting: self.resting.as_ref(),
            link: self.link,
            is_forced: self.is_forced,
        })
    }

    /// A transaction of this node is known to have been executed at this index.
    pub(super) fn learn(&mut self, now: Duration, index: u64) {
        self.known = (self.known.0.max(index), now);
    }

    pub(super) fn set_role(&mut self, role: Role, reason: impl Into<String>) {
        let reason = reason.into();
        if (role, &reason) == (self.role, &self.reason) {
            return;
        }
        let from = std::mem::replace(&mut self.role, role);
        self.reason.clone_from(&reason);
        self.transitions.push_back(Transition { from, to: role, epoch: self.epoch, reason });
    }

    /// Something to be said that changes neither the role nor its reason.
    pub(super) fn note(&mut self, reason: String) {
        let (from, to, epoch) = (self.role, self.role, self.epoch);
        self.transitions.push_back(Transition { from, to, epoch, reason });
    }

    // ---- the own term ----

    /// The lease is this node's.
    pub(super) fn begin(&mut self, now: Duration, own: OwnTerm, new_cluster: Option<String>) {
        let facts = self.facts(now);
        let (warning, unable) = facts.map_or((None, None), |f| (f.warning(), f.unable()));
        let epoch = own.epoch;
        let newer = (self.epoch > epoch).then(|| format!("epoch {} is known by now", self.epoch));
        let stop = self.stop_at.map(|_| "this node is shutting down".to_owned());
        let unwanted = stop.or(unable).or(newer);
        let cluster = new_cluster.or_else(|| self.view.as_ref()?.cluster.clone());
        self.epoch = self.epoch.max(epoch);
        self.own = Some(own);
        self.link = Link::None;
        self.refusal = None;
        self.is_forced = false;
        self.wish = None;
        self.promote_due = None;
        let (Some(cluster), None) = (cluster, &unwanted) else {
            return self.step_down(
                now,
                None,
                &unwanted.unwrap_or("there is no cluster's id".into()),
            );
        };
        if let Some(own) = &mut self.own {
            own.is_announced = true;
        }
        self.followed = None;
        self.queue.push_back(Action::BeginTerm { epoch, cluster });
        let warning = warning.map_or(String::new(), |warning| format!(", {warning}"));
        self.set_role(Role::Primary, format!("took the lease, epoch {epoch}{warning}"));
    }

    /// Opens the gate up to the end of the right, unless writers are held.
    pub(super) fn open_gate(&mut self, now: Duration) {
        let Some(own) = &mut self.own else { return };
        if !own.is_within_right(now) || own.passing.is_some() {
            return;
        }
        self.queue.push_back(Action::OpenGate { until: own.right_until });
        if std::mem::take(&mut own.is_paused) {
            let epoch = own.epoch;
            self.set_role(Role::Primary, format!("the lease is renewed again, epoch {epoch}"));
        }
    }

    /// The answer to [`Action::Beat`] or [`Action::Release`].
    pub fn handle_replaced(&mut self, now: Duration, replacement: Replacement) {
        self.wake = Duration::ZERO;
        let Some(own) = &mut self.own else { return };
        let outcome = own.handle_replaced(now, replacement, &self.settings);
        if let Replacement::Done { index } = replacement {
            self.learn(now, index);
        }
        match outcome {
            Outcome::Extended(published) => {
                self.queue.extend(published.map(Action::NoteSyncSet));
                self.open_gate(now);
            }
            Outcome::Released => self.finish_term(now),
            Outcome::Lost => self.lose(now, "the lease was taken from this node"),
            Outcome::Open => (),
        }
    }

    /// Ends the term in good order: no commit is possible from here on, and the key is given back.
    pub(super) fn step_down(&mut self, now: Duration, to: Option<u64>, why: &str) {
        let Some(own) = &mut self.own else { return };
        let done = match to {
            Some(to) => format!("the lease was handed over to node {to:016X}"),
            None => format!("the lease was given back: {why}"),
        };
        own.end(Ending { released: Released { to }, since: now, done });
        self.close(why);
        self.set_role(Role::SteppingDown, why);
    }

    /// The key is released, or does not matter any more.
    fn finish_term(&mut self, now: Duration) {
        let ending = self.own.take().and_then(|own| own.ending);
        self.view_needed = now;
        if let Some(ending) = ending {
            self.set_role(Role::Replica, ending.done);
        }
    }

    /// The key is not this node's (any more).
    pub(super) fn lose(&mut self, now: Duration, why: &str) {
        let Some(own) = &self.own else { return };
        if own.ending.is_some() {
            return self.finish_term(now);
        }
        self.close(why);
        self.own = None;
        self.view_needed = now;
        self.set_role(Role::Replica, why);
    }

    fn close(&mut self, why: &str) {
        self.queue.push_back(Action::CloseGate { reason: why.into() });
        if self.own.as_ref().is_some_and(|own| own.is_announced) {
            self.queue.push_back(Action::EndTerm { reason: why.into() });
        }
        self.holding.void();
        self.awaiting.void();
    }

    /// Time passes for the own term.
    pub(super) fn advance_own(&mut self, now: Duration) {
        let Some(own) = &mut self.own else { return };
        if own.ending.is_some() {
            return;
        }
        let is_over = own.is_over(now);
        if now >= own.give_up_at {
            self.step_down(now, None, "the lease could not be renewed for too long");
        } else if own.passing.is_some_and(|passing| now >= passing.until) {
            self.fail_passing(now, "it took too long");
        } else if is_over && own.passing.is_some() {
            self.fail_passing(now, "the lease could not be renewed");
        } else if is_over && !std::mem::replace(&mut own.is_paused, true) {
            let why = "the lease could not be renewed: no commits until it is";
            self.set_role(Role::Primary, why);
        }
    }

    // ---- handing over ----

    pub(super) fn pass_on(
        &mut self,
        now: Duration,
        target: u64,
        is_final: bool,
        why: &str,
    ) -> Result<(), String> {
        self.wake = Duration::ZERO;
        self.check_target(now, target)?;
        let Some(own) = &mut self.own else { return Ok(()) };
        let until = now + HOLD_TIMEOUT;
        own.passing = Some(Passing { target, until, is_held: false, is_final });
        self.holding.hurry();
        self.holding.start(now);
        self.queue.push_back(Action::HoldWriters);
        self.set_role(Role::HandingOver, why);
        Ok(())
    }

    /// Can the lease be handed over to this node now?
    fn check_target(&self, now: Duration, target: u64) -> Result<(), String> {
        let Some(own) = self.own.as_ref().filter(|own| own.ending.is_none()) else {
            return Err("this node is not the primary".into());
        };
        if target == self.settings.node {
            return Err("this node is the primary already".into());
        }
        if own.passing.is_some() || self.holding.is_under_way() || self.awaiting.is_under_way() {
            return Err("the lease is being handed over already".into());
        }
        if !own.is_within_right(now) {
            return Err(format!("the primary cannot hand over now: {}", self.reason));
        }
        let nodes = self.view.iter().flat_map(|view| &view.nodes);
        let records = nodes.map(|entry| &entry.record).filter(|record| record.node == target);
        match records.map(|record| record.candidate).max() {
            Some(true) => Ok(()),
            Some(false) => Err(format!("node {target:016X} cannot be primary now")),
            None => Err(format!("node {target:016X} is not known to Consul")),
        }
    }

    pub(super) fn fail_passing(&mut self, now: Duration, why: &str) {
        let Some(own) = &mut self.own else { return };
        let Some(passing) = own.passing.take() else { return };
        self.holding.void();
        self.awaiting.void();
        let why = format!("the hand-over to node {:016X} failed: {why}", passing.target);
        if passing.is_final {
            return self.step_down(now, None, &why);
        }
        // Ends the hold, even if the right is over.
        self.queue.push_back(Action::OpenGate { until: own.right_until });
        self.resting = None;
        self.set_role(Role::Primary, why);
    }

    // ---- without an own term ----

    /// Decides what to do with the lease as it is seen. Returns when to decide anew.
    pub(super) fn decide(&mut self, now: Duration) -> Duration {
        if self.own.is_some() || self.stop_at.is_some() {
            return Duration::MAX;
        }
        let Some(facts) = self.facts(now) else { return Duration::MAX };
        let rest = self.resting.as_ref().map_or(Duration::MAX, |(until, _)| *until);
        let rest = if rest > now { rest } else { Duration::MAX };
        if let Some(why) = facts.foreign() {
            self.set_role(Role::Replica, why);
            return rest;
        }
        match facts.view.holding_session() {
            Some(session) if Some(session) == self.presence.session() => self.find_held(now),
            Some(_) => {
                self.follow();
                let lost_at = self.facts(now).and_then(|facts| facts.lost_at());
                return rest.min(lost_at.filter(|at| *at > now).unwrap_or(Duration::MAX));
            }
            None => return rest.min(self.stand(now)),
        }
        rest
    }

    /// Nobody holds the lease.
    fn stand(&mut self, now: Duration) -> Duration {
        let Some(facts) = self.facts(now) else { return Duration::MAX };
        match facts.verdict() {
            Verdict::Never(why) => {
                self.set_role(Role::Replica, format!("there is no primary; {why}"));
                Duration::MAX
            }
            Verdict::Wait(until, why) => {
                self.set_role(Role::Candidate, why);
                until
            }
            Verdict::Take => {
                self.set_role(Role::Candidate, self.refusal.unwrap_or("taking the lease"));
                Duration::MAX
            }
        }
    }

    /// The key is held by this node's session though no answer said so.
    fn find_held(&mut self, now: Duration) {
        let (Some(view), Some(session)) = (&self.view, self.presence.session()) else { return };
        if self.acquiring.is_under_way() || self.viewed < self.view_needed {
            return;
        }
        let Some((key, (term_index, record))) = view.key.as_ref().zip(view.term.as_ref()) else {
            return;
        };
        if record.node == self.settings.node && record.released.is_none() {
            let indices = (key.index, *term_index);
            let own = OwnTerm::new(now, session.clone(), indices, record.clone(), None);
            self.begin(now, own, None);
        }
    }

    /// True if the view shows that this node's session holds the key.
    fn holds_unknowingly(&self) -> bool {
        let holding = self.view.as_ref().and_then(|view| view.holding_session());
        self.own.is_none() && holding.is_some() && holding == self.presence.session()
    }

    /// Another node holds the lease.
    fn follow(&mut self) {
        self.refusal = None;
        self.is_forced = false;
        let Some((holder, epoch)) = self.holder() else {
            return self.set_role(Role::Replica, "the lease's value at Consul cannot be read");
        };
        if holder.node == self.settings.node {
            let why = "this node held the lease before it was started anew";
            return self.set_role(Role::Replica, why);
        }
        let Holder { hostname, advertise_url: url, .. } = holder.clone();
        if self.followed.as_ref() != Some(&(epoch, url.clone())) {
            self.followed = Some((epoch, url.clone()));
            self.queue.push_back(Action::Follow { url, hostname: hostname.clone(), epoch });
        }
        self.set_role(Role::Replica, format!("{hostname} is the primary, epoch {epoch}"));
    }

    /// An operator wants this node to be primary, whatever it rested for.
    pub(super) fn begin_promotion(&mut self, now: Duration) -> Result<Promotion, String> {
        let Some(facts) = self.facts(now) else { return Err(self.reason.clone()) };
        if let Some(why) = facts.unable() {
            return Err(why);
        }
        if facts.view.holding_session().is_none() {
            self.is_forced = true;
        } else if self.is_linked() {
            self.wish = Some(Wish::new(now));
        } else {
            return Err("this node is not connected to the primary".into());
        }
        Ok(Promotion::Wanted)
    }

    /// True while this node is connected to who holds the lease.
    fn is_linked(&self) -> bool {
        let epoch = self.view.as_ref().and_then(|view| view.epoch());
        epoch.is_some_and(|epoch| self.link == Link::Up(epoch))
    }

    /// Asks the primary to hand over, if this node is to be promoted. Returns when to look again.
    pub(super) fn advance_wish(&mut self, now: Duration) -> Duration {
        if self.own.is_some() || self.stop_at.is_some() {
            return Duration::MAX;
        }
        if self.wish.is_some_and(|wish| now >= wish.until) {
            self.handle_take_over_refused(now, "the primary did not hand over in time");
        }
        let is_linked = self.is_linked();
        let is_in_sync = self.standing.as_ref().is_some_and(|standing| standing.in_sync);
        let due = self.promote_due.filter(|_| self.wish.is_none() && is_linked && is_in_sync);
        if due.is_some_and(|due| due <= now) {
            self.wish = Some(Wish::new(now));
        }
        // The primary hands over only to a node whose record says that it would take the lease.
        let is_published = self.presence.written().is_some_and(|record| record.candidate);
        match &mut self.wish {
            Some(wish) => {
                if is_linked && is_published && !std::mem::replace(&mut wish.is_asked, true) {
                    self.queue.push_back(Action::AskTakeOver);
                }
                wish.until
            }
            None => due.unwrap_or(Duration::MAX),
        }
    }

    // ---- shutting down ----

    pub(super) fn advance_stop(&mut self, now: Duration) {
        let Some(stop_at) = self.stop_at else { return };
        let ending = self.own.as_ref().and_then(|own| own.ending.as_ref());
        if ending.is_some_and(|ending| now >= ending.since + STOP_RELEASE) {
            self.finish_term(now);
        }
        if now >= stop_at {
            self.lose(now, "this node is shutting down");
            self.stop("shut down; Consul did not answer in time");
        } else if self.own.is_none() && self.presence.session().is_none() {
            self.stop("shut down");
        }
    }

    pub(super) fn stop(&mut self, why: &str) {
        self.set_role(Role::Stopped, why);
    }

    // ---- requests ----

    pub(super) fn poll_request(&mut self, now: Duration) -> Option<Action> {
        if self.role == Role::Stopped {
            return None;
        }
        let transactions = self.standing.as_ref().map_or(0, |standing| standing.transactions);
        let own = self.own.as_mut().and_then(|own| own.poll(now, transactions));
        let action = own.or_else(|| self.poll_acquire(now)).or_else(|| self.poll_destroy(now));
        let record = self.record(now);
        let is_present = self.is_present();
        let action =
            action.or_else(|| if is_present { self.presence.poll(now, record) } else { None });
        action.or_else(|| {
            let is_needed = self.look_needed(now).is_some_and(|moment| self.viewed < moment);
            (is_needed && self.looking.start(now)).then_some(Action::Look)
        })
    }

    /// False once the session is to end.
    fn is_present(&self) -> bool {
        self.stop_at.is_none() || self.own.is_some()
    }

    /// What this node publishes of itself.
    fn record(&self, now: Duration) -> Option<NodeRecord> {
        let facts = self.facts(now).filter(|facts| facts.foreign().is_none())?;
        let own = self.own.as_ref().filter(|own| own.has_begun);
        Some(NodeRecord {
            node: self.settings.node,
            candidate: facts.unable().is_none() && self.stop_at.is_none(),
            epoch: facts.standing.epoch,
            term: facts.standing.term.max(own.map_or(0, |own| own.epoch)),
            transactions: facts.standing.transactions,
            link: self.link,
        })
    }

    /// True if this node is to take the lease now.
    fn is_taking(&self, now: Duration) -> bool {
        let is_free = self.view.as_ref().is_some_and(|view| view.holding_session().is_none());
        self.role == Role::Candidate
            && self.stop_at.is_none()
            && is_free
            && self.facts(now).is_some_and(|facts| facts.verdict() == Verdict::Take)
    }

    /// An acquisition takes a view that was asked for at this moment or later: who has newer data
    /// is decided by it, and a query that waits for changes may hang.
    fn view_for_acquisition(&self, now: Duration) -> Duration {
        self.view_needed.max(now.saturating_sub(VIEW_AGE))
    }

    fn poll_acquire(&mut self, now: Duration) -> Option<Action> {
        let session = self.presence.session()?.clone();
        let is_fresh = self.viewed >= self.view_for_acquisition(now);
        if !self.is_taking(now) || !is_fresh || !self.acquiring.start(now) {
            return None;
        }
        let facts = self.facts(now)?;
        let acquire = facts.acquire(session, self.epoch);
        self.acquisition = Some(acquire.clone());
        Some(Action::Acquire(acquire))
    }

    fn poll_destroy(&mut self, now: Duration) -> Option<Action> {
        let (session, why) = self.doomed(now)?;
        if !self.destroying.start(now) {
            return None;
        }
        self.doomed = Some(session.clone());
        self.note(why);
        Some(Action::DestroySession(session))
    }

    /// A session that is to be destroyed, and why.
    fn doomed(&self, now: Duration) -> Option<(SessionId, String)> {
        let own = self.presence.session()?;
        if self.own.is_some() {
            return None;
        }
        if self.stop_at.is_some() {
            return Some((own.clone(), "leaving the cluster".into()));
        }
        let facts = self.facts(now)?;
        if let Some(former) = facts.own_former(own) {
            let why = "ending the session that this node had before it was started anew";
            return Some((former, why.into()));
        }
        let holding = facts.view.holding_session()?;
        if holding == own {
            let is_odd = !self.acquiring.is_under_way() && self.viewed >= self.view_needed;
            let why = "the term record at Consul is not this node's, though it holds the lease";
            return is_odd.then(|| (holding.clone(), why.into()));
        }
        let is_lost = facts.lost_at()? <= self.sight.fresh;
        let hostname = self.holder().map_or("?", |(holder, _)| &holder.hostname);
        is_lost.then(|| (holding.clone(), format!("the primary {hostname} is lost")))
    }

    /// A view is needed that was asked for at this moment or later.
    fn look_needed(&self, now: Duration) -> Option<Duration> {
        if let Some(own) = &self.own {
            return own.doubt();
        }
        if self.stop_at.is_some() {
            return None;
        }
        if let Some(moment) = self.sight.needed() {
            return self.view.as_ref().map(|_| moment);
        }
        if self.is_taking(now) {
            let may_ask = self.presence.session().is_some() && !self.acquiring.is_under_way();
            return may_ask.then(|| self.view_for_acquisition(now));
        }
        if self.holds_unknowingly() {
            return Some(self.view_needed);
        }
        let facts = self.facts(now)?;
        facts.view.holding_session()?;
        facts.lost_at().filter(|at| *at <= now)
    }

    pub(super) fn next_wake(&self, now: Duration) -> Duration {
        let mut wake = self.stop_at.unwrap_or(Duration::MAX);
        if self.role == Role::Stopped {
            return Duration::MAX;
        }
        if let Some(own) = &self.own {
            wake = wake.min(own.wake());
            wake = wake.min(match &own.ending {
                Some(ending) if self.stop_at.is_some() => ending.since + STOP_RELEASE,
                Some(_) => Duration::MAX,
                None => own.next_moment(),
            });
        }
        if self.is_present() {
            wake = wake.min(self.presence.wake(self.record(now).as_ref()));
        }
        let is_fresh = self.viewed >= self.view_for_acquisition(now);
        if self.presence.session().is_some() && is_fresh && self.is_taking(now) {
            wake = wake.min(self.acquiring.wake());
        }
        if self.doomed(now).is_some() {
            wake = wake.min(self.destroying.wake());
        }
        if self.look_needed(now).is_some_and(|moment| self.viewed < moment) {
            wake = wake.min(self.looking.wake());
        }
        wake
    }
}
