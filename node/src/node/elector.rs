//! The lease's thread: drives the role machine ([`Election`]). Tells it what Consul answers, what
//! becomes of the link to the primary and what operators want, and does what it asks for.
//!
//! It has a thread and a runtime of its own, so that a node that is busy with anything else still
//! extends its right in time. Nothing here waits: requests to Consul are tasks, each with its
//! deadline; what changes the node's part is an order to the conductor; the gate is moved on the
//! spot.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use litefs_store::Store;
use parking_lot::Mutex;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinSet;

use super::shared::Shared;
use crate::config::{Config, Endpoint};
use crate::http::{LeaseStatus, Role as Shown, Wish};
use crate::lease::action::{
    Acquisition, Action, CATCH_UP_TIMEOUT, FAST_BEAT, FAST_RIGHT, HOLD_TIMEOUT, Promotion,
    REQUEST_TIMEOUT, Renewal, Replacement, Role, SHUTDOWN_TIMEOUT, Settings, Standing, Transition,
};
use crate::lease::consul::{ConsulLease, LeaseError};
use crate::lease::election::Election;
use crate::lease::view::{SessionId, View};
use crate::replication::standing;

/// A query that waits for a change asks again after this time.
const WATCH_WAIT: Duration = Duration::from_secs(5);
/// What the store holds is looked at this often, if it has changed.
const STANDING_INTERVAL: Duration = Duration::from_millis(250);
/// Transitions that a client of `/events` may be behind.
const TRANSITIONS_BACKLOG: usize = 64;
/// Upper bounds of the classes of beats, in seconds.
const BEAT_CLASSES: [f64; 10] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0];

/// What changes the node's part; done by the conductor, in this order.
#[derive(Debug)]
pub(super) enum Order {
    /// See [`Action::BeginTerm`]; answered by [`Event::TermBegan`].
    BeginTerm { epoch: u64, cluster: String },
    /// See [`Action::EndTerm`].
    EndTerm { reason: String },
    /// See [`Action::Follow`].
    Follow(Endpoint),
    /// See [`Action::AskTakeOver`]; answered by [`Event::NoTakeOver`], if it is refused.
    AskTakeOver,
}

type Reply = oneshot::Sender<Result<(), String>>;

/// What the thread is told.
pub(super) enum Event {
    /// A query was answered.
    View {
        requested: Duration,
        view: View,
    },
    LookFailed,
    Session(Option<SessionId>),
    SessionRenewed(Renewal),
    Published(bool),
    Acquired(Acquisition),
    Beat {
        replacement: Replacement,
        took: Duration,
    },
    Released(Replacement),
    Destroyed(bool),
    TermBegan {
        epoch: u64,
        result: Result<(), String>,
    },
    Held(Result<(), String>),
    CaughtUp(Result<(), String>),
    Linked {
        epoch: u64,
    },
    InSync {
        epoch: u64,
    },
    Unlinked,
    NoTakeOver(String),
    /// A replica asks for the role.
    TakeOver {
        node: u64,
        refuse: Box<dyn FnOnce(&str) + Send>,
    },
    /// An operator wants this node to be the primary.
    Promote(Reply),
    /// An operator wants another one to be.
    HandOver {
        node: u64,
        reply: Reply,
    },
    /// An operator wants this node not to be it.
    Demote(Reply),
    Shutdown,
}

/// The lease, as the rest of the node knows it.
pub(super) struct Lease {
    events: mpsc::UnboundedSender<Event>,
    status: Arc<Status>,
    transitions: broadcast::Sender<Transition>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What others may read of the machine's state.
struct Status {
    beats: Histogram,
    state: Mutex<State>,
}

struct State {
    role: Role,
    reason: String,
    epoch: u64,
    right_until: Duration,
    transitions: u64,
}

/// What the thread begins with, once everything else is there.
pub(super) struct Inbox {
    events: mpsc::UnboundedReceiver<Event>,
    orders: mpsc::UnboundedSender<Order>,
    consul: ConsulLease,
    new_cluster: String,
}

impl Lease {
    /// The lease, what its thread begins with, and its orders to come.
    pub fn new(
        consul: ConsulLease,
        new_cluster: String,
    ) -> (Self, Inbox, mpsc::UnboundedReceiver<Order>) {
        let (events, inbox) = mpsc::unbounded_channel();
        let (orders, ordered) = mpsc::unbounded_channel();
        let state = State {
            role: Role::Starting,
            reason: String::new(),
            epoch: 0,
            right_until: Duration::ZERO,
            transitions: 0,
        };
        let status = Status { beats: Histogram::new(BEAT_CLASSES), state: Mutex::new(state) };
        let lease = Self {
            events,
            status: Arc::new(status),
            transitions: broadcast::Sender::new(TRANSITIONS_BACKLOG),
            thread: Mutex::new(None),
        };
        (lease, Inbox { events: inbox, orders, consul, new_cluster }, ordered)
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// The system has none left.
    pub fn start(&self, shared: Arc<Shared>, inbox: Inbox) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(4)
            .thread_name("litefs-lease")
            .enable_all()
            .build()?;
        let (status, transitions) = (self.status.clone(), self.transitions.clone());
        let events = self.events.clone();
        let thread = thread::Builder::new().name("litefs-lease".to_owned()).spawn(move || {
            runtime.block_on(Driver::new(shared, inbox, status, transitions).run(events));
            // A look-up of a name may still hang.
            runtime.shutdown_background();
        })?;
        *self.thread.lock() = Some(thread);
        Ok(())
    }

    /// Tells the thread; nothing happens once it has ended.
    pub fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// What it does now; `now` is the store's clock.
    pub fn status(&self, now: Duration) -> LeaseStatus {
        let state = self.status.state.lock();
        LeaseStatus {
            kind: "consul",
            role: state.role.name(),
            reason: state.reason.clone(),
            epoch: state.epoch,
            transitions: state.transitions,
            right_left: Some(state.right_until.saturating_sub(now)),
            beats: Some(self.status.beats.clone()),
        }
    }

    /// Its transitions, from now on.
    pub fn transitions(&self) -> broadcast::Receiver<Transition> {
        self.transitions.subscribe()
    }

    /// Wants this node to be the primary.
    pub fn promote(&self) -> Wish {
        self.wish(Event::Promote)
    }

    /// Wants this primary to hand its role over.
    pub fn hand_over(&self, node: u64) -> Wish {
        self.wish(|reply| Event::HandOver { node, reply })
    }

    /// Wants this node not to be the primary.
    pub fn demote(&self) -> Wish {
        self.wish(Event::Demote)
    }

    /// Gives the lease back, to the best replica if there is one, and ends the thread.
    pub fn stop(&self) {
        let Some(thread) = self.thread.lock().take() else { return };
        self.tell(Event::Shutdown);
        // A panic in it was reported when it happened.
        let _ = thread.join();
    }

    fn wish(&self, event: impl FnOnce(Reply) -> Event) -> Wish {
        let (reply, wish) = Wish::new();
        self.tell(event(reply));
        wish
    }
}

/// What an answer to a request says, and what went wrong with it, for the log.
type Answer = (Event, Option<LeaseError>);

struct Driver {
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
    /// The epoch in the data directory; see [`Standing::term`].
    term: u64,
    in_sync: bool,
    /// Why Consul did not answer last; `None` once it did.
    trouble: Option<String>,
    promotions: Vec<Reply>,
    hand_overs: Vec<Reply>,
}

impl Driver {
    fn new(
        shared: Arc<Shared>,
        inbox: Inbox,
        status: Arc<Status>,
        transitions: broadcast::Sender<Transition>,
    ) -> Self {
        let settings = settings(&shared.config, shared.store.node_id(), inbox.new_cluster);
        Self {
            machine: Election::new(settings),
            consul: inbox.consul,
            events: inbox.events,
            orders: inbox.orders,
            requests: JoinSet::new(),
            status,
            transitions,
            standing: None,
            term: standing::Standing::of(shared.store.dir()).term(),
            in_sync: false,
            trouble: None,
            promotions: Vec::new(),
            hand_overs: Vec::new(),
            shared,
        }
    }

    async fn run(mut self, tell: mpsc::UnboundedSender<Event>) {
        let watching = Watch {
            consul: self.consul.clone(),
            store: self.shared.store.clone(),
            tell,
            pause: self.shared.config.lease.reconnect_delay,
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
        let mut give_up = None;
        while self.machine.role() != Role::Stopped {
            self.drain();
            let now = self.now();
            let wait = self.machine.poll_timeout().saturating_sub(now);
            if give_up.is_some_and(|at| now >= at) {
                tracing::warn!("the lease could not be given back in time: it will expire");
                break;
            }
            tokio::select! {
                Some(event) = self.events.recv() => {
                    if let Event::Shutdown = event {
                        give_up = Some(self.now() + SHUTDOWN_TIMEOUT + REQUEST_TIMEOUT);
                    }
                    self.take(event);
                }
                Some(answer) = self.requests.join_next() => self.take_answer(answer),
                _ = look.tick() => if moved.swap(false, Ordering::AcqRel) {
                    self.tell_standing();
                },
                () = tokio::time::sleep(wait.min(SHUTDOWN_TIMEOUT)) => (),
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
            while let Some(transition) = self.machine.poll_transition() {
                self.show_transition(transition);
            }
            let now = self.now();
            let Some(action) = self.machine.poll_action(now) else { break };
            self.act(now, action);
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
        let Ok((event, failure)) = answer else { return };
        self.note_trouble(failure);
        self.take(event);
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::View { requested, view } => {
                self.note_trouble(None);
                self.tell_standing();
                self.machine.handle_view(self.now(), requested, view);
            }
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
                self.machine.handle_beat(self.now(), replacement);
            }
            Event::Released(replacement) => self.machine.handle_released(self.now(), replacement),
            Event::Destroyed(is_gone) => self.machine.handle_destroyed(self.now(), is_gone),
            Event::Held(result) => self.machine.handle_held(self.now(), result),
            Event::CaughtUp(result) => self.machine.handle_caught_up(self.now(), result),
            Event::TermBegan { .. }
            | Event::Linked { .. }
            | Event::InSync { .. }
            | Event::Unlinked
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
                self.machine.handle_linked(now, epoch);
            }
            Event::InSync { epoch } => {
                (self.term, self.in_sync) = (epoch, true);
                self.tell_standing();
            }
            Event::Unlinked => {
                self.tell_standing();
                self.machine.handle_unlinked(now);
            }
            Event::NoTakeOver(reason) => {
                self.machine.handle_take_over_refused(now, &reason);
                answer_all(&mut self.promotions, &Err(reason));
            }
            _ => (),
        }
    }

    fn take_wish(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::TakeOver { node, refuse } => {
                if let Err(reason) = self.machine.handle_take_over(now, node) {
                    refuse(&reason);
                }
            }
            Event::Promote(reply) => match self.machine.handle_promote(now) {
                Ok(Promotion::Wanted) => self.promotions.push(reply),
                Ok(Promotion::Already) => answer(reply, Ok(())),
                Err(reason) => answer(reply, Err(reason)),
            },
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
                let target = self.best_replica();
                self.machine.handle_shutdown(now, target);
            }
            _ => (),
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
            self.machine.handle_standing(self.now(), standing);
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
        let (was, is) = (has_role(*from), has_role(*to));
        if was != is {
            self.shared.show(if is { self.own_role() } else { Shown::default() });
        }
        if *to == Role::Primary && from != to {
            answer_all(&mut self.promotions, &Ok(()));
        }
        match (from, to) {
            (Role::HandingOver, Role::Primary) => {
                answer_all(&mut self.hand_overs, &Err(reason.clone()));
            }
            _ if was && !is => answer_all(&mut self.hand_overs, &Ok(())),
            _ => (),
        }
        // Fails if nobody listens.
        let _ = self.transitions.send(transition);
    }

    fn own_role(&self) -> Shown {
        let shared = &self.shared;
        Shown {
            is_primary: true,
            primary_hostname: Some(shared.config.primary_hostname()),
            primary_url: Some(shared.config.own_url(shared.addr).to_string()),
        }
    }

    /// Says why Consul does not answer, but not again and again.
    fn note_trouble(&mut self, trouble: Option<LeaseError>) {
        let text = trouble.map(|error| error.to_string());
        match (&self.trouble, &text) {
            (None, Some(text)) => tracing::warn!("the lease: {text}; will keep trying"),
            (Some(last), Some(text)) if last != text => tracing::warn!("the lease: {text}"),
            (Some(_), None) => tracing::info!("the lease: Consul answers again"),
            _ => (),
        }
        self.trouble = text;
    }

    fn act(&mut self, now: Duration, action: Action) {
        let gate = self.shared.store.gate();
        match action {
            Action::OpenGate { until } => gate.open_until(until),
            Action::CloseGate { reason } => gate.close(&reason),
            Action::HoldWriters => self.hold_writers(),
            Action::AwaitTarget(node) => self.await_target(node),
            Action::BeginTerm { epoch, cluster } => {
                self.in_sync = false;
                self.order(Order::BeginTerm { epoch, cluster });
            }
            Action::EndTerm { reason } => self.order(Order::EndTerm { reason }),
            Action::Follow { url, hostname, epoch } => self.follow(&url, &hostname, epoch),
            Action::AskTakeOver => self.order(Order::AskTakeOver),
            Action::NoteSyncSet(_) => (),
            request => self.ask_consul(now, request),
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
                self.shared.store.gate().close(&super::conductor::replica_reason(&of));
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
            (Event::Held(held), None)
        });
    }

    fn await_target(&mut self, node: u64) {
        let term = self.shared.term();
        self.requests.spawn(async move {
            let result = match term {
                Some(term) => term.caught_up(node, CATCH_UP_TIMEOUT).await,
                None => Err("this node serves no replicas".to_owned()),
            };
            (Event::CaughtUp(result), None)
        });
    }

    /// Sends a request; its answer comes back as an event.
    fn ask_consul(&mut self, now: Duration, action: Action) {
        let (consul, store) = (self.consul.clone(), self.shared.store.clone());
        self.requests.spawn(async move {
            match action {
                Action::OpenSession => {
                    let opened = in_time(consul.open_session()).await;
                    split(opened.map(Some), None, Event::Session)
                }
                Action::RenewSession(session) => {
                    let renewed = consul.renew_session(&session).await;
                    split(renewed, Renewal::Failed, Event::SessionRenewed)
                }
                Action::Publish(session, record) => {
                    let published = consul.publish(&session, &record).await;
                    split(published, false, Event::Published)
                }
                Action::Acquire(acquire) => {
                    let acquired = consul.acquire(&acquire).await;
                    split(acquired, Acquisition::Failed, Event::Acquired)
                }
                Action::Beat(replace) => {
                    let beat = consul.beat(&replace).await;
                    let took = store.now().saturating_sub(now);
                    let event = |replacement| Event::Beat { replacement, took };
                    split(beat, Replacement::Failed, event)
                }
                Action::Release(replace) => {
                    let released = consul.release(&replace).await;
                    split(released, Replacement::Failed, Event::Released)
                }
                Action::DestroySession(session) => {
                    let destroyed = consul.destroy_session(&session).await;
                    split(destroyed.map(|()| true), false, Event::Destroyed)
                }
                // What else there is does not concern Consul.
                _ => match consul.view(None).await {
                    Ok(view) => (Event::View { requested: now, view }, None),
                    Err(error) => (Event::LookFailed, Some(error)),
                },
            }
        });
    }
}

/// Queries that wait for changes.
struct Watch {
    consul: ConsulLease,
    store: Store,
    tell: mpsc::UnboundedSender<Event>,
    pause: Duration,
}

impl Watch {
    async fn run(self) {
        let mut after = None;
        let mut trouble: Option<String> = None;
        loop {
            let requested = self.store.now();
            match self.consul.view(after.map(|index| (index, WATCH_WAIT))).await {
                Ok(view) => {
                    // It counts from the beginning if it has lost its data: nothing is known then.
                    let has_gone_back = after.is_some_and(|index| view.index < index);
                    after = Some(view.index).filter(|_| !has_gone_back);
                    trouble = None;
                    // Fails once the node ends.
                    let _ = self.tell.send(Event::View { requested, view });
                }
                Err(error) => {
                    let text = error.to_string();
                    if trouble.as_ref() != Some(&text) {
                        tracing::warn!("cannot watch the lease: {text}; will keep trying");
                    }
                    (after, trouble) = (None, Some(text));
                    tokio::time::sleep(self.pause).await;
                }
            }
        }
    }
}

/// An answer, or what stands for none.
fn split<T>(answer: Result<T, LeaseError>, none: T, event: impl FnOnce(T) -> Event) -> Answer {
    match answer {
        Ok(answer) => (event(answer), None),
        Err(error) => (event(none), Some(error)),
    }
}

/// For what takes more than one request.
async fn in_time<T>(work: impl Future<Output = Result<T, LeaseError>>) -> Result<T, LeaseError> {
    tokio::time::timeout(REQUEST_TIMEOUT, work).await.unwrap_or_else(|_| {
        Err(LeaseError::Unreadable(format!("Consul did not answer within {REQUEST_TIMEOUT:?}")))
    })
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

fn settings(config: &Config, node: u64, new_cluster: String) -> Settings {
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
        sync: false,
        right,
        beat_interval: if fast { FAST_BEAT } else { right / 3 },
        session_interval: ttl / 3,
        reconnect_delay: lease.reconnect_delay,
        demote_delay: lease.demote_delay,
        new_cluster,
    }
}
