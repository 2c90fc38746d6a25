//! Who is primary.
//!
//! With the *static* lease the configuration says it, and [`StaticLease::assign`] may say it
//! anew while the node runs. It fences nobody by itself: whoever assigns the role must take it
//! from one node before giving it to another. With *Consul*, the nodes elect one:
//!
//! | module     | what |
//! |------------|------|
//! | `election` | pure: one node's role, from what it sees of Consul and of its own data |
//! | `view`     | what Consul shows |
//! | `action`   | what the election wants done |
//! | `consul`   | the requests to Consul, and the records that lie there |
//!
//! Each term of a primary has an *epoch*. Replicas remember the highest one that they have seen
//! and refuse a primary with an older one. A node that is configured as primary takes up the
//! highest epoch that it has seen, so that it may restart at will; an assignment at run time
//! begins a new epoch.

pub mod action;
pub mod consul;
pub mod election;
pub mod view;

#[cfg(test)]
mod sim_tests;

use tokio::sync::watch;

use crate::config::Endpoint;

/// A node's part in its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assignment {
    /// It is the primary, in this epoch.
    Primary {
        /// At least 1.
        epoch: u64,
    },
    /// It follows the primary at this address.
    Replica {
        /// Where the primary is.
        of: Endpoint,
    },
}

/// Whom a node is told to take for the primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Primary {
    /// The node itself.
    ThisNode,
    /// Another one.
    At(Endpoint),
}

/// The right to be primary, as the configuration and the operator say.
#[derive(Debug)]
pub struct StaticLease {
    assignment: watch::Sender<Assignment>,
}

impl StaticLease {
    /// The configured assignment; `seen` is the highest epoch that this node has seen.
    pub fn new(primary: Primary, seen: u64) -> Self {
        let assignment = match primary {
            Primary::ThisNode => Assignment::Primary { epoch: seen.max(1) },
            Primary::At(of) => Assignment::Replica { of },
        };
        Self { assignment: watch::Sender::new(assignment) }
    }

    /// Assigns the role anew; false if that changes nothing. A node that becomes primary begins
    /// an epoch after `seen`.
    pub fn assign(&self, primary: Primary, seen: u64) -> bool {
        self.assignment.send_if_modified(|current| {
            let next = match (primary, &*current) {
                (Primary::ThisNode, Assignment::Primary { .. }) => return false,
                (Primary::ThisNode, _) => Assignment::Primary { epoch: seen + 1 },
                (Primary::At(of), _) => Assignment::Replica { of },
            };
            std::mem::replace(current, next.clone()) != next
        })
    }

    /// The assignment now, and whenever it changes.
    pub fn watch(&self) -> watch::Receiver<Assignment> {
        self.assignment.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other() -> Primary {
        Primary::At(Endpoint::new("10.0.0.1", 20202))
    }

    #[test]
    fn a_restarted_primary_keeps_its_epoch_and_an_assigned_one_begins_a_new_one() {
        let epoch = |lease: &StaticLease| match &*lease.watch().borrow() {
            Assignment::Primary { epoch } => Some(*epoch),
            Assignment::Replica { .. } => None,
        };
        assert_eq!(epoch(&StaticLease::new(Primary::ThisNode, 0)), Some(1));
        let lease = StaticLease::new(Primary::ThisNode, 7);
        assert_eq!(epoch(&lease), Some(7));
        assert!(!lease.assign(Primary::ThisNode, 7));
        assert_eq!(epoch(&lease), Some(7), "it is primary already");
        assert!(lease.assign(other(), 7));
        assert_eq!(epoch(&lease), None);
        assert!(lease.assign(Primary::ThisNode, 9));
        assert_eq!(epoch(&lease), Some(10));
    }

    #[test]
    fn watchers_hear_of_changes_only() {
        let lease = StaticLease::new(other(), 0);
        let mut watch = lease.watch();
        watch.borrow_and_update();
        assert!(!lease.assign(other(), 0));
        assert!(!watch.has_changed().unwrap());
        assert!(lease.assign(Primary::ThisNode, 0));
        assert!(watch.has_changed().unwrap());
    }
}
