//! The lease's thread: drives the role machine ([`Election`]). Tells it what Consul answers, what
//! becomes of the link to the primary and what operators want, and does what it asks for.
//!
//! It has a thread and a runtime of its own, so that a node that is busy with anything else still
//! extends its right in time. Nothing here waits: requests to Consul are tasks, each with its
//! deadline; what changes the node's part is an order to the conductor; the gate is moved on the
//! spot.

mod driver;
mod requests;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::{broadcast, mpsc, oneshot};

use self::driver::Driver;
use super::shared::Shared;
use crate::config::Endpoint;
use crate::http::{LeaseStatus, Wish};
use crate::lease::action::{Acquisition, Renewal, Replacement, Role, Transition};
use crate::lease::consul::{ConsulLease, LeaseError};
use crate::lease::view::{SessionId, View};
use crate::replication::confirm::{Published, Publisher};

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
    /// The query that waits for changes failed.
    WatchFailed(LeaseError),
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
    Destroyed,
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
    /// These replicas have all that is acknowledged, once that is known in Consul.
    SyncSet {
        set: BTreeSet<u64>,
        published: Published,
    },
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
    trouble: Option<String>,
}

/// What the thread begins with, once everything else is there.
pub(super) struct Inbox {
    events: mpsc::UnboundedReceiver<Event>,
    orders: mpsc::UnboundedSender<Order>,
    consul: ConsulLease,
}

impl Lease {
    /// The lease, what its thread begins with, and its orders to come.
    pub fn new(consul: ConsulLease) -> (Self, Inbox, mpsc::UnboundedReceiver<Order>) {
        let (events, inbox) = mpsc::unbounded_channel();
        let (orders, ordered) = mpsc::unbounded_channel();
        let state = State {
            role: Role::Starting,
            reason: String::new(),
            epoch: 0,
            right_until: Duration::ZERO,
            transitions: 0,
            trouble: None,
        };
        let status = Status { beats: Histogram::new(BEAT_CLASSES), state: Mutex::new(state) };
        let lease = Self {
            events,
            status: Arc::new(status),
            transitions: broadcast::Sender::new(TRANSITIONS_BACKLOG),
            thread: Mutex::new(None),
        };
        (lease, Inbox { events: inbox, orders, consul }, ordered)
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
            trouble: state.trouble.clone(),
            beats: Some(self.status.beats.clone()),
        }
    }

    /// Its transitions, from now on.
    pub fn transitions(&self) -> broadcast::Receiver<Transition> {
        self.transitions.subscribe()
    }

    /// Makes a sync set known in Consul.
    pub fn publisher(&self) -> Publisher {
        let events = self.events.clone();
        Arc::new(move |set, published| {
            let unsent = events.send(Event::SyncSet { set, published });
            if let Err(mpsc::error::SendError(Event::SyncSet { published, .. })) = unsent {
                published(Err("this node is shutting down".to_owned()));
            }
        })
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
