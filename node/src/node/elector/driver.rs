//! The loop of the lease's thread: feeds the role machine and does what it wants.

use std::cmp::Ordering::{Equal, Greater, Less};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinSet;

use super::requests::{self, Answer, Index, WATCH, Watch};
use super::{Event, Inbox, Order, Reply, Status};
use crate::config::{Config, Endpoint, ReplicationMode};
use crate::http::Role as Shown;
use crate::lease::action::{
    Action, CATCH_UP_TIMEOUT, FAST_BEAT, FAST_RIGHT, HOLD_TIMEOUT, Promotion, REQUEST_TIMEOUT,
    Role, SHUTDOWN_TIMEOUT, Settings, Standing, Transition,
};
use crate::lease::consul::{ConsulLease, LeaseError};
use crate::lease::election::Election;
use crate::node::shared::Shared;
use crate::replication::confirm::Published;
use crate::replication::following::Following;

/// What the store holds is looked at this often, if it has changed.
const STANDING_INTERVAL: Duration = Duration::from_millis(250);
/// An operator who wants the role here and cannot have it is told so after this time.
const PROMOTE_PATIENCE: Duration = Duration::from_secs(2);
/// A replica that asks for the role and does not get it is told so after this time.
const TAKE_OVER_PATIENCE: Duration = Duration::from_millis(500);
/// A primary that shuts down and has replicas waits this long for one that may take over.
const SUCCESSOR_TIMEOUT: Duration = Duration::from_secs(1);

/// The machine, and what it works with.
pub(super) struct Driver {
    shared: Arc<Shared>,
    machine: Election,
    consul: ConsulLease,
    events: mpsc::UnboundedReceiver<Event>,
    orders: mpsc::UnboundedSender<Order>,
    requests: JoinSet<Answer>,
    status: Arc<Status>,
    transitions: broadcast::Sender<Transition>,
    /// What the machine was told last of the store.
    standing: Option<Standing>,
    /// The epoch in the data directory; see [`Following::term`].
    term: u64,
    in_sync: bool,
    index: Index,
    /// What Consul did not do when it was last asked to, and why.
    troubles: BTreeMap<&'static str, String>,
    /// Wishes for the role that cannot be granted yet, and until when they may.
    wished: Vec<(Duration, Reply)>,
    /// Wishes that the primary is being asked about.
    promotions: Vec<Reply>,
    hand_overs: Vec<Reply>,
    /// Replicas that ask for the role.
    take_overs: BTreeMap<u64, TakeOver>,
    /// Sync sets that are not known in Consul yet; only the last one will be.
    sync_sets: Vec<(BTreeSet<u64>, Published)>,
    leaving: Option<Leaving>,
}

/// A replica's wish for the role.
struct TakeOver {
    /// When it is refused at the latest.
    until: Duration,
    refuse: Box<dyn FnOnce(&str) + Send>,
}

/// How the node shuts down.
struct Leaving {
    /// When it does not wait for a successor any more.
    hand_over_by: Duration,
    /// When it ends in any case.
    give_up_at: Duration,
    is_told: bool,
}

impl Driver {
    pub fn new(
        shared: Arc<Shared>,
        inbox: Inbox,
        status: Arc<Status>,
        transitions: broadcast::Sender<Transition>,
    ) -> Self {
        let settings = settings(&shared.config, shared.store.node_id());
        Self {
            machine: Election::new(settings),
            consul: inbox.consul,
            events: inbox.events,
            orders: inbox.orders,
            requests: JoinSet::new(),
            status,
            transitions,
            standing: None,
            term: Following::of(shared.store.dir()).term(),
            in_sync: false,
            index: Index::default(),
            troubles: BTreeMap::new(),
            wished: Vec::new(),
            promotions: Vec::new(),
            hand_overs: Vec::new(),
            take_overs: BTreeMap::new(),
            sync_sets: Vec::new(),
            leaving: None,
            shared,
        }
    }

    pub async fn run(mut self, tell: mpsc::UnboundedSender<Event>) {
        let watching = Watch {
            consul: self.consul.clone(),
            store: self.shared.store.clone(),
            tell,
            pause: self.shared.config.lease.reconnect_delay,
            anew: self.index.anew(),
        };
        let watching = tokio::spawn(watching.run());
        let moved = Arc::new(AtomicBool::new(true));
        let note = moved.clone();
        let _positions = self.shared.store.subscribe(move |event| {
            if let litefs_store::Event::Position { .. } = event {
                note.store(true, Ordering::Release);
            }
        });
        let mut look = tokio::time::interval(STANDING_INTERVAL);
        while self.machine.role() != Role::Stopped {
            self.advance_leaving();
            self.grant_promotions();
            self.grant_take_overs();
            self.drain();
            let wait = self.machine.poll_timeout().saturating_sub(self.now());
            if self.leaving.as_ref().is_some_and(|leaving| self.now() >= leaving.give_up_at) {
                tracing::warn!("the lease could not be given back in time: it will expire");
                break;
            }
            tokio::select! {
                Some(event) = self.events.recv() => self.take(event),
                Some(answer) = self.requests.join_next() => self.take_answer(answer),
                _ = look.tick() => if moved.swap(false, Ordering::AcqRel) {
                    self.tell_standing();
                },
                () = tokio::time::sleep(wait.min(STANDING_INTERVAL)) => (),
            }
        }
        self.drain();
        watching.abort();
    }

    /// The clock by which the gate closes.
    fn now(&self) -> Duration {
        self.shared.store.now()
    }

    /// Shows what has changed and does what is wanted.
    fn drain(&mut self) {
        loop {
            let now = self.now();
            let action = self.machine.poll_action(now);
            while let Some(transition) = self.machine.poll_transition() {
                self.show_transition(transition);
            }
            let Some(action) = action else { break };
            self.act(now, action);
        }
        if !self.machine.is_promoting() {
            let why = "the primary did not hand over in time, or another node is primary by now";
            answer_all(&mut self.promotions, &Err(why.to_owned()));
        }
        let mut state = self.status.state.lock();
        state.role = self.machine.role();
        state.right_until = self.machine.right_until();
        if state.reason != self.machine.reason() {
            state.reason = self.machine.reason().to_owned();
        }
        if let Some((_, epoch)) = self.machine.holder() {
            state.epoch = epoch;
        }
    }

    fn take_answer(&mut self, answer: Result<Answer, tokio::task::JoinError>) {
        // A panic was reported when it happened; the machine takes the silence for a failure.
        let Ok(Answer { event, asked }) = answer else { return };
        if let Some((what, trouble)) = asked {
            self.note_trouble(what, trouble);
        }
        self.take(event);
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::View { requested, view } => {
                self.note_trouble(WATCH, None);
                self.index.note(view.index);
                self.tell_standing();
                self.machine.handle_view(self.now(), requested, view);
            }
            Event::WatchFailed(error) => self.note_trouble(WATCH, Some(error)),
            Event::LookFailed => self.machine.handle_look_failed(self.now()),
            Event::Session(session) => self.machine.handle_session(self.now(), session),
            Event::SessionRenewed(renewal) => {
                self.machine.handle_session_renewed(self.now(), renewal);
            }
            Event::Published(is_written) => {
                self.machine.handle_published(self.now(), is_written);
            }
            Event::Acquired(acquisition) => self.machine.handle_acquired(self.now(), acquisition),
            Event::Beat { replacement, took } => {
                self.status.beats.observe(took.as_secs_f64());
                self.machine.handle_replaced(self.now(), replacement);
            }
            Event::Released(replacement) => self.machine.handle_replaced(self.now(), replacement),
            Event::Destroyed => self.machine.handle_destroyed(self.now()),
            Event::Held(result) => self.machine.handle_held(self.now(), result),
            Event::CaughtUp(result) => self.machine.handle_caught_up(self.now(), result),
            Event::TermBegan { .. }
            | Event::Linked { .. }
            | Event::InSync { .. }
            | Event::Unlinked
            | Event::SyncSet { .. }
            | Event::NoTakeOver(_) => self.take_of_part(event),
            Event::TakeOver { .. }
            | Event::Promote(_)
            | Event::HandOver { .. }
            | Event::Demote(_)
            | Event::Shutdown => self.take_wish(event),
        }
    }

    /// What the node's part brings.
    fn take_of_part(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::TermBegan { epoch, result } => {
                if result.is_ok() {
                    self.term = epoch;
                    self.tell_standing();
                }
                self.machine.handle_term_began(now, epoch, result);
            }
            Event::Linked { epoch } => {
                self.tell_standing();
                self.machine.handle_linked(epoch);
            }
            Event::InSync { epoch } => {
                (self.term, self.in_sync) = (epoch, true);
                self.tell_standing();
            }
            Event::Unlinked => {
                self.tell_standing();
                self.machine.handle_unlinked();
            }
            Event::SyncSet { set, published } => {
                self.machine.handle_sync_set(set.clone());
                self.sync_sets.push((set, published));
                if !has_role(self.machine.role()) {
                    self.fail_sync_sets();
                }
            }
            Event::NoTakeOver(reason) => {
                self.machine.handle_take_over_refused(now, &reason);
                answer_all(&mut self.promotions, &Err(reason));
            }
            _ => (),
        }
    }

    fn note_sync_set(&mut self, set: &BTreeSet<u64>) {
        let wanted = std::mem::take(&mut self.sync_sets);
        let Some(newest) = wanted.iter().rposition(|(wanted, _)| wanted == set) else {
            self.sync_sets = wanted;
            return;
        };
        for (at, (set, published)) in wanted.into_iter().enumerate() {
            match at.cmp(&newest) {
                Less => published(Err("another one was wanted since".to_owned())),
                Equal => published(Ok(())),
                Greater => self.sync_sets.push((set, published)),
            }
        }
    }

    fn fail_sync_sets(&mut self) {
        for (_, published) in self.sync_sets.drain(..) {
            published(Err("this node is not the primary any more".to_owned()));
        }
    }

    fn take_wish(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::TakeOver { node, refuse } => {
                // One wish of a node is enough.
                let until = now + TAKE_OVER_PATIENCE;
                self.take_overs.insert(node, TakeOver { until, refuse });
                self.grant_take_overs();
            }
            Event::Promote(reply) => {
                self.wished.push((now + PROMOTE_PATIENCE, reply));
                self.grant_promotions();
            }
            Event::HandOver { node, reply } => match self.machine.handle_take_over(now, node) {
                Ok(()) => self.hand_overs.push(reply),
                Err(reason) => answer(reply, Err(reason)),
            },
            Event::Demote(reply) => {
                let target = self.best_replica();
                match self.machine.handle_demote(now, target) {
                    Ok(()) => self.hand_overs.push(reply),
                    Err(reason) => answer(reply, Err(reason)),
                }
            }
            Event::Shutdown => {
                self.leaving = Some(Leaving {
                    hand_over_by: now + SUCCESSOR_TIMEOUT,
                    give_up_at: now + SUCCESSOR_TIMEOUT + SHUTDOWN_TIMEOUT + REQUEST_TIMEOUT,
                    is_told: false,
                });
            }
            _ => (),
        }
    }

    /// A node that is still connecting to the primary is refused only after a while.
    fn grant_promotions(&mut self) {
        let now = self.now();
        for (until, reply) in std::mem::take(&mut self.wished) {
            match self.machine.handle_promote(now) {
                Ok(Promotion::Wanted) => self.promotions.push(reply),
                Ok(Promotion::Already) => answer(reply, Ok(())),
                Err(reason) if now >= until => answer(reply, Err(reason)),
                Err(_) => self.wished.push((until, reply)),
            }
        }
    }

    /// What a replica wrote into Consul just before it asked may not have come here yet: it is
    /// refused only after a while.
    fn grant_take_overs(&mut self) {
        let now = self.now();
        for (node, take_over) in std::mem::take(&mut self.take_overs) {
            match self.machine.handle_take_over(now, node) {
                Ok(()) => (),
                Err(reason) if now >= take_over.until => (take_over.refuse)(&reason),
                Err(_) => drop(self.take_overs.insert(node, take_over)),
            }
        }
    }

    /// The node shuts down. A replica that came just now may not be known as a candidate yet.
    fn advance_leaving(&mut self) {
        if self.leaving.as_ref().is_none_or(|leaving| leaving.is_told) {
            return;
        }
        let (now, target) = (self.now(), self.best_replica());
        let nobody = self.shared.connected().is_empty();
        let Some(leaving) = &mut self.leaving else { return };
        if target.is_some() || nobody || now >= leaving.hand_over_by {
            leaving.is_told = true;
            self.machine.handle_shutdown(now, target);
        }
    }

    /// The connected candidate that lacks the fewest transactions.
    fn best_replica(&self) -> Option<u64> {
        let view = self.machine.view()?;
        let candidates: BTreeSet<u64> = view
            .nodes
            .iter()
            .filter(|entry| entry.record.candidate)
            .map(|entry| entry.record.node)
            .collect();
        let mut connected = self.shared.connected();
        connected.retain(|replica| candidates.contains(&replica.node));
        connected
            .into_iter()
            .min_by_key(|replica| (replica.lag.is_none(), replica.unacknowledged))
            .map(|replica| replica.node)
    }

    /// Tells the machine what the store holds, if that is news.
    fn tell_standing(&mut self) {
        let store = &self.shared.store;
        let standing = Standing {
            cluster: store.cluster_id(),
            epoch: store.epoch(),
            term: self.term,
            transactions: store.databases().iter().map(|db| db.pos().txid.get()).sum(),
            in_sync: self.in_sync,
        };
        if self.standing.as_ref() != Some(&standing) {
            self.standing = Some(standing.clone());
            self.machine.handle_standing(standing);
        }
    }

    fn show_transition(&mut self, transition: Transition) {
        let Transition { from, to, epoch, reason } = &transition;
        match from == to {
            true => tracing::warn!("this node is {to}, epoch {epoch}: {reason}"),
            false => tracing::info!("this node is {to} now, was {from}, epoch {epoch}: {reason}"),
        }
        {
            let mut state = self.status.state.lock();
            state.transitions += 1;
            state.epoch = *epoch;
        }
        match (*from, *to) {
            // The key is given back, or another node has it.
            (Role::SteppingDown, to) if to != Role::SteppingDown => {
                answer_all(&mut self.hand_overs, &Ok(()))
            }
            (Role::HandingOver, Role::Primary) | (_, Role::Replica) => {
                answer_all(&mut self.hand_overs, &Err(reason.clone()));
            }
            _ => (),
        }
        if has_role(*from) && !has_role(*to) {
            self.shared.show(Shown::default());
            self.fail_sync_sets();
        }
        // Fails if nobody listens.
        let _ = self.transitions.send(transition);
    }

    /// From now on this node commits.
    fn open_gate(&mut self, until: Duration) {
        let shared = &self.shared;
        shared.store.gate().open_until(until);
        if !shared.role.borrow().is_primary {
            shared.show_as_primary();
        }
        answer_all(&mut self.promotions, &Ok(()));
    }

    /// Says what Consul does not do, but not again and again.
    fn note_trouble(&mut self, what: &'static str, trouble: Option<LeaseError>) {
        match trouble.map(|error| error.to_string()) {
            None if self.troubles.remove(what).is_none() => return,
            None if self.troubles.is_empty() => tracing::info!("Consul does what it is asked to"),
            None => (),
            Some(text) if self.troubles.get(what) == Some(&text) => return,
            Some(text) => {
                // When nothing is answered, once is enough.
                if !self.troubles.values().any(|known| *known == text) {
                    tracing::warn!("{text}; will keep trying");
                }
                self.troubles.insert(what, text);
            }
        }
        self.status.state.lock().trouble = self.troubles.values().next().cloned();
    }

    fn act(&mut self, now: Duration, action: Action) {
        match action {
            Action::OpenGate { until } => self.open_gate(until),
            Action::CloseGate { reason } => self.shared.store.gate().close(&reason),
            Action::HoldWriters => self.hold_writers(),
            Action::AwaitTarget(node) => self.await_target(node),
            Action::BeginTerm { epoch, cluster } => {
                self.in_sync = false;
                self.order(Order::BeginTerm { epoch, cluster });
            }
            Action::EndTerm { reason } => self.order(Order::EndTerm { reason }),
            Action::Follow { url, hostname, epoch } => self.follow(&url, &hostname, epoch),
            Action::AskTakeOver => self.order(Order::AskTakeOver),
            Action::NoteSyncSet(set) => self.note_sync_set(&set),
            request => {
                let (consul, store) = (self.consul.clone(), self.shared.store.clone());
                self.requests.spawn(requests::ask(consul, store, now, request));
            }
        }
    }

    fn order(&self, order: Order) {
        // Fails once the conductor has ended, and with it the node.
        let _ = self.orders.send(order);
    }

    fn follow(&mut self, url: &str, hostname: &str, epoch: u64) {
        self.in_sync = false;
        match url.parse::<Endpoint>() {
            Ok(of) => {
                self.shared.store.gate().close(&crate::node::conductor::replica_reason(&of));
                self.order(Order::Follow(of));
            }
            Err(error) => tracing::error!(
                "cannot follow {hostname}, the primary of epoch {epoch}: its lease.advertise-url: \
                 {error}"
            ),
        }
    }

    fn hold_writers(&mut self) {
        let store = self.shared.store.clone();
        self.requests.spawn_blocking(move || {
            let held = match store.gate().hold(HOLD_TIMEOUT) {
                true => Ok(()),
                false => Err(format!("commits are still under way after {HOLD_TIMEOUT:?}")),
            };
            Answer::ours(Event::Held(held))
        });
    }

    fn await_target(&mut self, node: u64) {
        let term = self.shared.term();
        self.requests.spawn(async move {
            let result = match term {
                Some(term) => term.caught_up(node, CATCH_UP_TIMEOUT).await,
                None => Err("this node serves no replicas".to_owned()),
            };
            Answer::ours(Event::CaughtUp(result))
        });
    }
}

/// True if a node in this role is the primary for others.
fn has_role(role: Role) -> bool {
    matches!(role, Role::Primary | Role::HandingOver)
}

fn answer(reply: Reply, answer: Result<(), String>) {
    // Fails if nobody waits any more.
    let _ = reply.send(answer);
}

fn answer_all(replies: &mut Vec<Reply>, with: &Result<(), String>) {
    replies.drain(..).for_each(|reply| answer(reply, with.clone()));
}

fn settings(config: &Config, node: u64) -> Settings {
    let lease = &config.lease;
    let ttl = lease.consul.as_ref().map_or(Duration::from_secs(10), |consul| consul.ttl);
    let fast = lease.consul.as_ref().is_some_and(|consul| consul.fast_failover);
    // Consul never ends a session before its time; a second covers what its clock may differ.
    let right = if fast { FAST_RIGHT } else { ttl - Duration::from_secs(1) };
    Settings {
        node,
        candidate: lease.candidate,
        promote: lease.promote,
        fast,
        sync: matches!(config.replication, ReplicationMode::Sync(_)),
        right,
        beat_interval: if fast { FAST_BEAT } else { right / 3 },
        session_interval: ttl / 3,
        reconnect_delay: lease.reconnect_delay,
        demote_delay: lease.demote_delay,
        new_cluster: crate::node::new_cluster_id(),
    }
}
