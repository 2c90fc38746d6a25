//! Acknowledgements: at once, or once the sync set has the transaction on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use litefs_store::{DbName, Pos};

use super::chance::secs;
use super::net::Place;
use super::world::World;
use crate::config::{OnTimeout, SyncSettings};
use crate::replication::quorum::{Action, Joined, Quorum, Ticket};
use crate::replication::wire::Ack;

/// Commits that wait for replicas.
#[derive(Debug)]
pub struct Confirmer {
    quorum: Quorum,
    waiting: BTreeMap<Ticket, (DbName, Pos)>,
    /// The set that is being published, with its number.
    publishing: Option<(u64, BTreeSet<u64>)>,
}

impl Confirmer {
    /// For commits that wait for so many replicas; `None` if they wait for nobody.
    pub fn new(replicas: usize) -> Option<Self> {
        let settings = SyncSettings { replicas, timeout: secs(5), on_timeout: OnTimeout::Wait };
        let new =
            || Self { quorum: Quorum::sync(settings), waiting: BTreeMap::new(), publishing: None };
        (replicas > 0).then(new)
    }
}

impl World {
    fn confirmer(&mut self, i: Place) -> Option<&mut Confirmer> {
        self.nodes[i].process.as_mut()?.confirmer.as_mut()
    }

    pub fn quorum_begins(&mut self, i: Place) {
        if let Some(confirmer) = self.confirmer(i) {
            confirmer.quorum.handle_term_began();
            self.pump_quorum(i);
        }
    }

    pub fn quorum_ends(&mut self, i: Place) {
        if let Some(confirmer) = self.confirmer(i) {
            confirmer.quorum.handle_term_ended("the term is over");
            self.pump_quorum(i);
        }
    }

    /// A transaction is in the log and on its way to the replicas.
    pub fn commit_published(&mut self, i: Place, db: &DbName, pos: Pos) {
        let now = self.own(i);
        let is_primary = self.nodes[i].process.as_ref().is_some_and(|p| p.term.is_some());
        match self.confirmer(i) {
            None => {
                self.reached.acks += 1;
                self.acknowledge(i, db.clone(), pos);
            }
            Some(confirmer) if is_primary => {
                let ticket = confirmer.quorum.handle_commit(now, db, pos);
                confirmer.waiting.insert(ticket, (db.clone(), pos));
                self.pump_quorum(i);
            }
            Some(_) => (),
        }
    }

    /// A replica has had everything on this connection: commits may wait for it.
    pub fn join_quorum(&mut self, i: Place, connection: u64) {
        let now = self.own(i);
        let node = &mut self.nodes[i];
        let Some(process) = &mut node.process else { return };
        let (Some(confirmer), Some(term)) = (&mut process.confirmer, &mut process.term) else {
            return;
        };
        let Some(session) = term.sessions.get_mut(&connection) else { return };
        let peer = &session.peer;
        let has_joined = session.joined.is_some();
        let Some(hello) = peer.hello().filter(|_| !has_joined && peer.lag(now).is_some()) else {
            return;
        };
        let acks: Vec<Ack> = peer.acks().filter(|ack| peer.streams(&ack.db)).collect();
        let (node_id, session_number) = (hello.node, connection);
        let disk = &node.data.disk;
        let newest: Vec<(DbName, Pos)> =
            disk.databases().into_iter().map(|db| (db.clone(), disk.pos(&db))).collect();
        let filter = peer.filter();
        let joined = Joined { node: node_id, session: session_number, filter, acks: &acks };
        confirmer.quorum.handle_joined(now, &joined, &newest);
        session.joined = Some(node_id);
        self.pump_quorum(i);
    }

    /// A replica acknowledged databases.
    pub fn pass_on(&mut self, i: Place, connection: u64, mut acks: Vec<Ack>) {
        let now = self.own(i);
        let Some(process) = self.nodes[i].process.as_mut() else { return };
        let (Some(confirmer), Some(term)) = (&mut process.confirmer, &process.term) else { return };
        let Some(session) = term.sessions.get(&connection) else { return };
        let Some(node) = session.joined else { return };
        acks.retain(|ack| session.peer.streams(&ack.db));
        confirmer.quorum.handle_acks(now, node, connection, &acks);
        self.pump_quorum(i);
    }

    /// A replica's connection has ended.
    pub fn leave_quorum(&mut self, i: Place, connection: u64, joined: Option<u64>) {
        let now = self.own(i);
        if let (Some(confirmer), Some(node)) = (self.confirmer(i), joined) {
            confirmer.quorum.handle_lost(now, node, connection);
            self.pump_quorum(i);
        }
    }

    /// Lets time pass for the commits that wait.
    pub fn tick_quorum(&mut self, i: Place) {
        let now = self.own(i);
        let is_primary = self.nodes[i].process.as_ref().is_some_and(|p| p.term.is_some());
        if let Some(confirmer) = self.confirmer(i).filter(|_| is_primary) {
            confirmer.quorum.handle_timeout(now);
            self.pump_quorum(i);
        }
    }

    fn pump_quorum(&mut self, i: Place) {
        let now = self.own(i);
        loop {
            let Some(confirmer) = self.confirmer(i) else { return };
            match confirmer.quorum.poll_action() {
                Some(Action::Confirm(ticket)) => {
                    let (db, pos) = confirmer.waiting.remove(&ticket).expect("a ticket of ours");
                    self.reached.sync_acks += 1;
                    self.acknowledge(i, db, pos);
                }
                Some(Action::Fail(ticket, _)) => {
                    confirmer.waiting.remove(&ticket);
                }
                Some(Action::Publish(number, set)) => self.publish_set(i, now, number, set),
                Some(Action::Report(_)) => (),
                None => return,
            }
        }
    }

    fn publish_set(&mut self, i: Place, now: Duration, number: u64, set: BTreeSet<u64>) {
        let gives_up = self.faults_on() && self.random.one_in(8);
        let process = self.nodes[i].process.as_mut().expect("it publishes");
        process.election.handle_sync_set(now, set.clone());
        let confirmer = process.confirmer.as_mut().expect("it publishes");
        confirmer.publishing = Some((number, set));
        if gives_up {
            // It took too long; it may be published all the same.
            confirmer.publishing = None;
            confirmer.quorum.handle_published(now, number, false);
        }
    }

    /// The role machine has published a sync set.
    pub fn set_published(&mut self, i: Place, set: &BTreeSet<u64>) {
        let now = self.own(i);
        let Some(confirmer) = self.confirmer(i) else { return };
        let published = confirmer.publishing.take_if(|(_, publishing)| publishing == set);
        if let Some((number, _)) = published {
            confirmer.quorum.handle_published(now, number, true);
            self.pump_quorum(i);
        }
    }

    /// What commits wait for, for whoever looks into a run that is stuck.
    pub fn sync_state(&self, i: Place) -> Option<String> {
        let confirmer = self.nodes[i].process.as_ref()?.confirmer.as_ref()?;
        let first = confirmer.waiting.first_key_value()?;
        let count = confirmer.waiting.len();
        Some(format!("  {count} commits wait, first {first:?}: {:x?}", confirmer.quorum))
    }
}
