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
//!    gate is closed by then (1), and stays so.
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

use std::collections::BTreeSet;
use std::time::Duration;

use super::action::{
    Acquisition, Action, Promotion, Renewal, Replacement, Role, Settings, Standing, Transition,
};
use super::view::{Holder, SessionId, View};

/// A node's part in the lease.
#[derive(Debug)]
pub struct Election {
    settings: Settings,
}

#[expect(unused_variables, reason = "the API; what is behind it follows")]
impl Election {
    /// A node that knows nothing yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }

    // ---- what the driver tells ----

    /// What the store holds; at the start, and whenever it has changed.
    pub fn handle_standing(&mut self, now: Duration, standing: Standing) {}

    /// The answer to a query, of the watch or of [`Action::Look`], that was sent at `requested`.
    pub fn handle_view(&mut self, now: Duration, requested: Duration, view: View) {}

    /// [`Action::Look`] got no answer.
    pub fn handle_look_failed(&mut self, now: Duration) {}

    /// A session was opened, or (`None`) could not be.
    pub fn handle_session(&mut self, now: Duration, session: Option<SessionId>) {}

    /// The answer to [`Action::RenewSession`].
    pub fn handle_session_renewed(&mut self, now: Duration, renewal: Renewal) {}

    /// The record was written, or (false) perhaps not.
    pub fn handle_published(&mut self, now: Duration, is_written: bool) {}

    /// The answer to [`Action::Acquire`].
    pub fn handle_acquired(&mut self, now: Duration, acquisition: Acquisition) {}

    /// The answer to [`Action::Beat`].
    pub fn handle_beat(&mut self, now: Duration, replacement: Replacement) {}

    /// The answer to [`Action::Release`].
    pub fn handle_released(&mut self, now: Duration, replacement: Replacement) {}

    /// The answer to [`Action::DestroySession`]: it is gone, or (false) perhaps not.
    pub fn handle_destroyed(&mut self, now: Duration, is_gone: bool) {}

    /// The answer to [`Action::BeginTerm`]; an error says why this node cannot be primary.
    pub fn handle_term_began(&mut self, now: Duration, epoch: u64, result: Result<(), String>) {}

    /// The answer to [`Action::HoldWriters`].
    pub fn handle_held(&mut self, now: Duration, result: Result<(), String>) {}

    /// The answer to [`Action::AwaitTarget`].
    pub fn handle_caught_up(&mut self, now: Duration, result: Result<(), String>) {}

    /// The primary of this epoch has welcomed this node.
    pub fn handle_linked(&mut self, now: Duration, epoch: u64) {}

    /// The connection to the primary has ended, or nothing was heard on it for too long.
    pub fn handle_unlinked(&mut self, now: Duration) {}

    /// The primary refused [`Action::AskTakeOver`], or could not be asked.
    pub fn handle_take_over_refused(&mut self, now: Duration, reason: &str) {}

    // ---- what others want ----

    /// An operator wants this node to be primary.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn handle_promote(&mut self, now: Duration) -> Result<Promotion, String> {
        Err(String::new())
    }

    /// A replica, or an operator for it, asks this primary for the lease.
    ///
    /// # Errors
    /// Why it does not get it.
    pub fn handle_take_over(&mut self, now: Duration, target: u64) -> Result<(), String> {
        Err(String::new())
    }

    /// An operator wants this node to be primary no more, and `target` to be it, if any is named.
    ///
    /// # Errors
    /// It is not primary.
    pub fn handle_demote(&mut self, now: Duration, target: Option<u64>) -> Result<(), String> {
        Err(String::new())
    }

    /// This primary's replicas that hold every acknowledged commit, from now on; empty: not
    /// promised. [`Action::NoteSyncSet`] tells when that is published.
    pub fn handle_sync_set(&mut self, now: Duration, set: BTreeSet<u64>) {}

    /// The node shuts down. A primary hands over to `target`, the best connected candidate.
    /// It is done when the role is [`Role::Stopped`], after at most
    /// [`super::action::SHUTDOWN_TIMEOUT`].
    pub fn handle_shutdown(&mut self, now: Duration, target: Option<u64>) {}

    // ---- what comes of it ----

    /// The next thing to do.
    pub fn poll_action(&mut self, now: Duration) -> Option<Action> {
        None
    }

    /// The next transition, for the log, the events and the metrics.
    pub fn poll_transition(&mut self) -> Option<Transition> {
        None
    }

    /// When to poll again at the latest.
    pub fn poll_timeout(&self) -> Duration {
        Duration::MAX
    }

    /// This node's role.
    pub fn role(&self) -> Role {
        Role::Starting
    }

    /// Why it is in this role, or does not get further; one line for people.
    pub fn reason(&self) -> &str {
        ""
    }

    /// Until when this node may commit; zero if it may not.
    pub fn right_until(&self) -> Duration {
        Duration::ZERO
    }

    /// This node's session, while it has one.
    pub fn session(&self) -> Option<&SessionId> {
        None
    }

    /// Who holds the lease, as far as is known, and in which epoch.
    pub fn holder(&self) -> Option<(&Holder, u64)> {
        None
    }

    /// The newest view.
    pub fn view(&self) -> Option<&View> {
        None
    }
}
