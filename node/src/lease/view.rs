//! What the lease service shows: who holds the lease, what is known of the newest term, and which
//! nodes live. One [`View`] is one consistent reading of everything below the lease's key.
//!
//! ```text
//! <key>               who is primary; held by a session, gone with it (LiteFS's key and value)
//! <key>/clusterid     the cluster's id, written once, never changed (LiteFS's)
//! <key>/term          the term record: outlives sessions; each change of the lease changes it
//! <key>/nodes/<id>/<session>
//!                     a node's record; held by that node's session, gone with it
//! ```
//! A session's lock-delay is for the keys that it held. So that a node that is started anew can be
//! seen at once, each of its sessions has a key of its own.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

/// A session's name at the lease service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub String);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One consistent reading.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// The state's number; grows with each change, and begins anew if the service lost its data.
    pub index: u64,
    /// The lease's key, if it exists.
    pub key: Option<Key>,
    /// The term record with the index of its last change, if it exists.
    pub term: Option<(u64, TermRecord)>,
    /// The cluster's id, if one has been written.
    pub cluster: Option<String>,
    /// The nodes that live. A record that cannot be read is left out. One that was just started
    /// anew may be here twice.
    pub nodes: Vec<NodeEntry>,
}

/// The lease's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The index of its last change. Nobody writes a key that is held: it is the acquisition's.
    pub index: u64,
    /// The session that holds it; `None` if it was released.
    pub session: Option<SessionId>,
    /// Who wrote it; `None` if the value cannot be read.
    pub holder: Option<Holder>,
}

/// The value of the lease's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The node's id; 0 if the value names none (LiteFS's does not).
    pub node: u64,
    /// The node's name.
    pub hostname: String,
    /// Where others reach it.
    pub advertise_url: String,
}

/// The term record: what must be known of a term even when its primary and its session are gone.
/// Each acquisition, beat and release replaces it, if it is still as the writer knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TermRecord {
    /// The term's primary.
    pub node: u64,
    /// How long its right to commit lasts after the request of an acquisition or a beat.
    pub right: Duration,
    /// True if its session may be destroyed by nodes that lost it.
    pub fast: bool,
    /// Counts the beats of this term.
    pub beat: u64,
    /// The sum of the transactions of all the primary's databases, at the time of the beat.
    pub transactions: u64,
    /// The highest epoch known before this term; see [`epoch`].
    pub floor: u64,
    /// The replicas that hold every acknowledged commit, as the primary does; empty: not promised.
    pub sync: BTreeSet<u64>,
    /// Set by the primary itself, which commits no more in this term.
    pub released: Option<Released>,
}

/// How a term ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Released {
    /// The node to which the lease is handed over, if to any.
    pub to: Option<u64>,
}

/// A living node's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeEntry {
    /// The session that holds the record.
    pub session: SessionId,
    /// What the node wrote.
    pub record: NodeRecord,
}

/// What a node publishes of itself. Name and address are added by the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    /// The node's id.
    pub node: u64,
    /// True if the node would take the lease, were it free and nobody better.
    pub candidate: bool,
    /// The highest epoch seen: it refuses older ones.
    pub epoch: u64,
    /// The epoch in which its data was last known to be all that the primary had.
    pub term: u64,
    /// The sum of the transactions of all its databases.
    pub transactions: u64,
    /// Its connection to the primary.
    pub link: Link,
}

/// A node's connection to the primary of the newest epoch that it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Never connected in that epoch.
    None,
    /// Connected to the primary of this epoch.
    Up(u64),
    /// It was connected to the primary of this epoch, and is no more.
    Lost(u64),
}

/// The epoch of the term whose key was acquired at `index`. It is the index, unless the service
/// lost its data and counts from the beginning.
pub fn epoch(index: u64, term: Option<&TermRecord>) -> u64 {
    index.max(term.map_or(0, |term| term.floor.saturating_add(1)))
}

impl View {
    /// The session that holds the lease.
    pub fn holding_session(&self) -> Option<&SessionId> {
        self.key.as_ref()?.session.as_ref()
    }

    /// The present term's epoch, if the lease is held.
    pub fn epoch(&self) -> Option<u64> {
        let key = self.key.as_ref().filter(|key| key.session.is_some())?;
        Some(epoch(key.index, self.term_record()))
    }

    /// The term record.
    pub fn term_record(&self) -> Option<&TermRecord> {
        self.term.as_ref().map(|(_, record)| record)
    }

    /// The index of the term record's last change; `None` if it does not exist.
    pub fn term_index(&self) -> Option<u64> {
        self.term.as_ref().map(|(index, _)| *index)
    }
}
