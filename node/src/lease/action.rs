//! What goes into and comes out of the role machine ([`super::election::Election`]).

use std::fmt;
use std::time::Duration;

use super::view::{NodeRecord, SessionId, TermRecord};

/// The right to commit lasts this long after a beat's request, with fast failover.
pub const FAST_RIGHT: Duration = Duration::from_millis(3500);
/// A primary beats this often, with fast failover.
pub const FAST_BEAT: Duration = Duration::from_secs(1);
/// A request to the lease service that takes longer has failed. (It may be executed later.)
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// Writers are held at most so long during a hand-over.
pub const HOLD_TIMEOUT: Duration = Duration::from_secs(5);
/// The target of a hand-over must have everything within this time.
pub const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(3);
/// A node that shuts down waits at most so long for the lease service and for a hand-over.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// How a node takes part.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This node's id; not 0.
    pub node: u64,
    /// True if it may become primary (`lease.candidate`).
    pub candidate: bool,
    /// True if it asks for the lease once it is in sync (`lease.promote`).
    pub promote: bool,
    /// True if others may destroy this node's session when it is lost, and it theirs.
    pub fast: bool,
    /// True if `replication.mode` is `sync`: the sync set of the term before stays valid until
    /// this node publishes its own.
    pub sync: bool,
    /// How long its right to commit lasts after a beat's request, on its own clock.
    pub right: Duration,
    /// How often it beats as primary; a third of `right` or less.
    pub beat_interval: Duration,
    /// How often its session is renewed; a third of the TTL or less.
    pub session_interval: Duration,
    /// Pause before a failed session is opened again (`lease.reconnect-delay`).
    pub reconnect_delay: Duration,
    /// How long it does not try after an operator's demotion (`lease.demote-delay`).
    pub demote_delay: Duration,
    /// The id of the cluster that this node begins if there is none yet.
    pub new_cluster: String,
}

/// What this node's store holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// The cluster's id, once this node has been in one.
    pub cluster: Option<String>,
    /// The highest epoch seen.
    pub epoch: u64,
    /// The epoch in which the data was last known to be all that the primary had, or in which this
    /// node was primary itself; 0 if never.
    pub term: u64,
    /// The sum of the transactions of all databases.
    pub transactions: u64,
    /// True if everything of the primary that is followed now has arrived at least once.
    pub in_sync: bool,
}

/// A node's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Nothing is known yet of the lease or of the own data.
    Starting,
    /// Another node holds the lease, or nobody does and this node may not take it.
    Replica,
    /// Nobody holds the lease; this node takes it as soon as that is safe and nobody is better.
    Candidate,
    /// This node holds the lease. Its gate is open while the right lasts.
    Primary,
    /// Writers are held; the lease passes to another node once that has everything.
    HandingOver,
    /// The term is over here; the lease is being given back.
    SteppingDown,
    /// Shut down.
    Stopped,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Starting,
        Self::Replica,
        Self::Candidate,
        Self::Primary,
        Self::HandingOver,
        Self::SteppingDown,
        Self::Stopped,
    ];

    /// One word, for metrics, events and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Replica => "replica",
            Self::Candidate => "candidate",
            Self::Primary => "primary",
            Self::HandingOver => "handing-over",
            Self::SteppingDown => "stepping-down",
            Self::Stopped => "stopped",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A change of role, or of its reason (a pause of the right, say: `from` and `to` are the same).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// The role before.
    pub from: Role,
    /// The role from now on.
    pub to: Role,
    /// The newest epoch that is known here; this node's own, if it is or was primary.
    pub epoch: u64,
    /// One line for people.
    pub reason: String,
}

/// An acquisition: one transaction at the lease service, all or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acquire {
    /// Locks the key with this session (the value names this node).
    pub session: SessionId,
    /// The term record's index must still be this one; `None`: it must not exist.
    pub expected: Option<u64>,
    /// Replaces the term record.
    pub term: TermRecord,
    /// Writes the cluster's id, which must not exist; `None`: there is one.
    pub cluster: Option<String>,
}

/// A beat or a release: one transaction, all or nothing. It checks first that the session holds
/// the key, then that the term record is the expected one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replace {
    /// Must hold the key.
    pub session: SessionId,
    /// The term record's index must still be this one.
    pub expected: u64,
    /// Replaces the term record.
    pub term: TermRecord,
}

/// What the driver does next. A request to the lease service is made once, never repeated by
/// itself (the machine asks again), and answered exactly once, as `Failed` after
/// [`REQUEST_TIMEOUT`] at the latest. Requests are independent of each other: one that hangs must
/// not delay another. All other actions are done in the order in which they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Open a session; answered by `handle_session`.
    OpenSession,
    /// Renew this node's session; answered by `handle_session_renewed`.
    RenewSession(SessionId),
    /// Read a view now, consistently, beside the watch; answered by `handle_view` or
    /// `handle_look_failed`.
    Look,
    /// Write this node's record, acquired with the session; answered by `handle_published`.
    Publish(SessionId, NodeRecord),
    /// Try to take the lease; answered by `handle_acquired`.
    Acquire(Acquire),
    /// Extend the right; answered by `handle_replaced`.
    Beat(Replace),
    /// Unlock the key (it stays, without a session), and replace the term record; answered by
    /// `handle_replaced`.
    Release(Replace),
    /// Destroy a session, this node's or another's; answered by `handle_destroyed`.
    DestroySession(SessionId),

    /// Leave the present part, keep epoch and cluster id durably, begin to serve replicas; the
    /// gate stays closed. Answered by `handle_term_began`.
    BeginTerm {
        /// The new term's. The same as before if it was given up by mistake, on word that Consul
        /// took back, and nobody else was primary since.
        epoch: u64,
        /// The cluster's id.
        cluster: String,
    },
    /// Open the gate, or keep it open, until this moment of the machine's clock.
    OpenGate {
        /// When it closes by itself.
        until: Duration,
    },
    /// Close the gate, before anything else is done.
    CloseGate {
        /// For the user whose write is refused.
        reason: String,
    },
    /// Let commits wait, at most [`HOLD_TIMEOUT`]; answered by `handle_held` when those under way
    /// are in the log. [`Action::OpenGate`] or [`Action::CloseGate`] ends the wait.
    HoldWriters,
    /// Wait until this replica has acknowledged everything, on disk; answered by
    /// `handle_caught_up` after [`CATCH_UP_TIMEOUT`] at the latest.
    AwaitTarget(u64),
    /// Stop serving replicas. The gate is closed already.
    EndTerm {
        /// For the replicas.
        reason: String,
    },
    /// Follow this primary. It stands until the next `Follow` or `BeginTerm`: a primary that lost
    /// the lease may still have something to send.
    Follow {
        /// Where it is.
        url: String,
        /// Its name.
        hostname: String,
        /// Its epoch.
        epoch: u64,
    },
    /// Ask the primary that is followed to hand over to this node. A refusal comes back by
    /// `handle_take_over_refused`; success shows in the views.
    AskTakeOver,
    /// This sync set is published: acknowledgements may rely on it.
    NoteSyncSet(std::collections::BTreeSet<u64>),
}

/// The answer to a renewal of the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// It lives on.
    Renewed,
    /// There is no such session any more.
    Gone,
    /// Nothing is known.
    Failed,
}

/// The answer to an acquisition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acquisition {
    /// Done, at this index: the key's and the term record's.
    Acquired {
        /// The transaction's index.
        index: u64,
    },
    /// The lock-delay runs, the key is held, the term record or the cluster's id changed, or the
    /// session is gone. Nothing was written.
    Refused,
    /// Nothing is known: it may have been executed, or may be later.
    Failed,
}

/// The answer to a beat or a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replacement {
    /// Done, at this index: the term record's.
    Done {
        /// The transaction's index.
        index: u64,
    },
    /// The session holds the key, but the term record is another. Nothing was written.
    Conflict,
    /// The session does not hold the key (any more).
    Gone,
    /// Nothing is known: it may have been executed, or may be later.
    Failed,
}

/// What came of a wish to be promoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promotion {
    /// This node is the primary.
    Already,
    /// The primary is being asked, or the lease is taken as soon as it is free.
    Wanted,
}
