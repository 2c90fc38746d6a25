//! What commits need of replicas: nothing, that one is near, or that the sync set has them on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use litefs_store::{DbName, Pos, Txid};

use super::commits::Acked;
use super::driver::{TERM, Value};
use super::net::Place;
use super::swarm::Strike;
use super::world::{Node, World};
use crate::config::ReplicationMode;
use crate::replication::quorum::{Action, Joined, Quorum, Report, Ticket};
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
    /// `None` if commits need nothing of replicas.
    pub fn new(mode: ReplicationMode) -> Option<Self> {
        let quorum = match mode {
            ReplicationMode::Async => return None,
            ReplicationMode::Bounded(bounds) => Quorum::bounded(bounds),
            ReplicationMode::Sync(settings) => Quorum::sync(settings),
        };
        Some(Self { quorum, waiting: BTreeMap::new(), publishing: None })
    }

    /// In mode `bounded`: false if no replica is near.
    pub fn admits(&self, now: Duration, db: &DbName) -> bool {
        self.quorum.admit(now, db).is_ok()
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
        let is_bounded = matches!(self.swarm.mode, ReplicationMode::Bounded(_));
        match self.confirmer(i) {
            None => {
                self.reached.acks += 1;
                self.acknowledge(i, db.clone(), pos);
            }
            Some(confirmer) if is_primary => {
                let ticket = confirmer.quorum.handle_commit(now, db, pos);
                if is_bounded {
                    self.reached.bounded_acks += 1;
                    return self.acknowledge(i, db.clone(), pos);
                }
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
        let (node_id, may_lead) = (hello.node, hello.may_lead);
        let disk = &node.data.disk;
        let newest: Vec<(DbName, Pos)> =
            disk.databases().into_iter().map(|db| (db.clone(), disk.pos(&db))).collect();
        let filter = peer.filter();
        let joined = Joined { node: node_id, session: connection, filter, may_lead, acks: &acks };
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
                    self.check_confirmed(i, &db, pos);
                    self.acknowledge(i, db, pos);
                }
                Some(Action::Fail(ticket, _)) => {
                    confirmer.waiting.remove(&ticket);
                }
                Some(Action::Publish(number, set)) => self.publish_set(i, now, number, set),
                Some(Action::Report(report)) => {
                    self.reached.fallbacks += u64::from(report == Report::FellBack);
                }
                None => return,
            }
        }
    }

    fn publish_set(&mut self, i: Place, now: Duration, number: u64, set: BTreeSet<u64>) {
        let bystanders = &self.nodes[self.swarm.candidates..];
        if bystanders.iter().any(|node| set.contains(&node.id)) {
            self.violation(format!("n{i}: a node that may never lead is in the sync set"));
        }
        let gives_up = self.faults_on() && self.random.one_in(8);
        let process = self.nodes[i].process.as_mut().expect("it publishes");
        process.election.handle_sync_set(set.clone());
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

    /// Mode `bounded` lets a commit begin: then some other node is as near as that.
    pub fn check_admitted(&mut self, i: Place, db: &DbName) {
        let ReplicationMode::Bounded(bounds) = self.swarm.mode else { return };
        // Nearness is in memory.
        if self.swarm.strikes.iter().any(|s| [Strike::PowerLoss, Strike::Wipe].contains(s)) {
            return;
        }
        let newest = self.nodes[i].data.disk.pos(db);
        let most = bounds.max_transactions.unwrap_or(u64::MAX);
        let near = Txid::new(newest.txid.get().saturating_sub(most));
        // By a clock that is slow.
        let long_ago = bounds.max_lag.map(|lag| self.now.saturating_sub(lag.mul_f64(1.06)));
        let epoch = self.nodes[i].process.as_ref().map_or(0, |process| process.epoch);
        let is_owed = |acked: &&Acked| {
            let author = (acked.node, acked.epoch);
            Some(acked.at) <= long_ago && acked.db == *db && author == (i, epoch)
        };
        let owed = self.ledger.acked.iter().rev().find(is_owed).map(|acked| acked.pos);
        let owed = owed.or_else(|| self.ledger.at(newest, near)).unwrap_or_default();
        let others = self.nodes.iter().filter(|node| node.id != self.nodes[i].id);
        let places = others.map(|node| node.data.disk.pos(db)).collect::<Vec<Pos>>();
        if !places.iter().any(|pos| self.ledger.at(*pos, owed.txid) == Some(owed)) {
            let text = format!("n{i} goes on after {newest} of {db}: not within {bounds}");
            self.violation(format!("{text}, as nobody has {owed}: others are at {places:?}"));
        }
    }

    /// Mode `sync` confirms a commit: then all whom Consul names have it on disk. It names nobody
    /// only if that is the fallback.
    fn check_confirmed(&mut self, i: Place, db: &DbName, pos: Pos) {
        let Some(Value::Term(term)) = self.consul.get(TERM).map(|entry| &entry.value) else {
            return;
        };
        if term.node != self.nodes[i].id {
            return;
        }
        let lacks = |node: &&Node| {
            // The real store does not know any more, after a start, what was synced before.
            let (disk, is_real) = (&node.data.disk, self.swarm.is_real);
            let newest = if is_real { disk.pos(db) } else { disk.synced(db) };
            term.sync.contains(&node.id) && self.ledger.at(newest, pos.txid) != Some(pos)
        };
        let lacking = self.nodes.iter().find(lacks).map(|node| node.id);
        if term.sync.is_empty() && self.swarm.always_waits() {
            self.violation(format!("n{i} confirms {db} {pos} for nobody"));
        } else if let Some(lacking) = lacking {
            self.violation(format!("n{i} confirms {db} {pos}, but member {lacking:x} lacks it"));
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
