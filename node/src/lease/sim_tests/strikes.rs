//! Faults: what they do to the world, and how it recovers.

use std::collections::BTreeMap;
use std::time::Duration;

use super::chance::{Random, ms, secs};
use super::data::Crash;
use super::driver::{Client, KEY, TERM, Value};
use super::net::{Delays, Place};
use super::swarm::Strike;
use super::sync::Confirmer;
use super::world::{Event, Process, World, new_node};
use crate::lease::action::Role;
use crate::lease::election::Election;

/// The end of a fault.
#[derive(Debug)]
pub enum Undo {
    Start(Place),
    GoOn(Place),
    Open(Vec<(Place, Place)>),
    /// Nodes that hold all that was acknowledged are killed.
    KillSet(Vec<Place>),
    /// Late answers end in no answers.
    NotLate(Place),
    Usual(Delays),
    /// A node that was to shut down has taken too long.
    EndShutdown(Place, u64),
}

impl World {
    /// Something goes wrong, and later the next thing.
    pub fn strike(&mut self) {
        if self.now >= self.swarm.calm {
            return;
        }
        let next = self.random.time(ms(200), self.swarm.strike_interval * 2);
        self.plan(self.now + next, Event::Strike);
        let strike = self.swarm.strikes[self.random.index(self.swarm.strikes.len())];
        let any = self.random.index(self.nodes.len());
        // The primary is the most interesting victim.
        let primary = (0..self.nodes.len()).find(|i| self.is_open(*i));
        let i = if self.random.one_in(3) { any } else { primary.unwrap_or(any) };
        self.note(|| format!("strike: {strike:?} n{i}"));
        match strike {
            Strike::Kill => self.crash(i, Crash::Kill),
            Strike::KillSet => self.cut_from_set(),
            Strike::PowerLoss => self.crash(i, Crash::PowerLoss),
            Strike::Wipe => self.wipe(i),
            Strike::Stop => self.stop(i),
            Strike::Isolate | Strike::LoseConsul | Strike::LosePeers | Strike::CutPair => {
                self.cut(i, strike, false);
            }
            Strike::LateAnswers => {
                self.late = Some(i);
                let after = self.random.time(secs(1), secs(4));
                self.plan(self.now + after, Event::Undo(Undo::NotLate(i)));
            }
            Strike::OneWay => {
                let kinds =
                    [Strike::Isolate, Strike::LoseConsul, Strike::LosePeers, Strike::CutPair];
                let kind = self.random.pick(&kinds);
                self.cut(i, kind, true);
            }
            Strike::ConsulAway => {
                let consul = self.consul_place();
                let ways = (0..consul).flat_map(|i| [(i, consul), (consul, i)]).collect();
                self.cut_ways(ways);
            }
            Strike::NewLeader => self.new_leader(),
            Strike::ConsulForgets => self.consul_forgets(),
            Strike::DeleteKey => {
                self.consul.delete(KEY);
                self.pump_consul();
            }
            Strike::DestroySession => self.destroy_session(),
            Strike::Slow => self.slow_down(),
            Strike::Promote => self.promote(any),
            Strike::Demote => self.demote(i),
            Strike::Restart => self.shut_down(i),
        }
    }

    pub fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Start(i) => self.start(i),
            Undo::GoOn(i) => self.go_on(i),
            Undo::Open(ways) => ways.into_iter().for_each(|(from, to)| self.net.open(from, to)),
            Undo::KillSet(set) => {
                if self.faults_on() {
                    set.into_iter().for_each(|i| self.crash(i, Crash::Kill));
                }
            }
            Undo::NotLate(i) => {
                self.late = None;
                if self.faults_on() {
                    self.cut(i, Strike::Isolate, false);
                }
            }
            Undo::Usual(delays) => self.net.delays = delays,
            Undo::EndShutdown(i, boot) => {
                if self.nodes[i].boot == boot && self.nodes[i].process.is_some() {
                    self.crash(i, Crash::Kill);
                }
            }
        }
    }

    /// All faults end: every node runs, and everyone reaches everyone.
    pub fn recover(&mut self) {
        self.note(|| "all faults end".to_owned());
        self.calm_down();
        self.net.heal();
        self.net.delays = self.swarm.delays;
        self.late = None;
        for i in 0..self.nodes.len() {
            self.go_on(i);
            self.start(i);
        }
    }

    fn outage(random: &mut Random) -> Duration {
        match random.below(4) {
            0 => random.time(ms(20), ms(1500)),
            1 => random.time(ms(1500), secs(6)),
            2 => random.time(secs(2), secs(15)),
            _ => random.time(secs(6), secs(40)),
        }
    }

    pub fn start(&mut self, i: Place) {
        if self.nodes[i].process.is_some() {
            return;
        }
        let now = self.own(i);
        let settings = self.swarm.settings(self.nodes[i].id, i);
        let node = &mut self.nodes[i];
        node.boot += 1;
        node.process = Some(Process {
            election: Election::new(settings),
            client: Client::default(),
            following: None,
            term: None,
            epoch: 0,
            commits: BTreeMap::new(),
            held: None,
            waiting: Vec::new(),
            confirmer: Confirmer::new(self.swarm.mode),
            wake: Duration::MAX,
        });
        self.note(|| format!("n{i} starts at its {now:?}"));
        self.pump(i);
    }

    /// Ends a process; it is started again later.
    pub fn crash(&mut self, i: Place, crash: Crash) {
        self.fell(i, crash);
        let after = Self::outage(&mut self.random);
        self.plan(self.now + after, Event::Undo(Undo::Start(i)));
    }

    /// Ends a process.
    pub fn fell(&mut self, i: Place, crash: Crash) {
        self.own(i);
        let before = self.held_by(i);
        let newest: Vec<_> =
            self.databases.iter().map(|db| self.nodes[i].data.disk.pos(db)).collect();
        let node = &mut self.nodes[i];
        node.process = None;
        node.stopped = None;
        if crash == Crash::PowerLoss {
            node.following.lose_power(&mut self.random);
        }
        let spare = Box::new(super::data::Lists::new(0, node.clock.clone()));
        let disk = std::mem::replace(&mut node.data.disk, spare);
        self.nodes[i].data.disk = disk.restart(crash, &mut self.random);
        // A transaction that was being committed may have reached the log.
        for (db, parent) in self.databases.clone().into_iter().zip(newest) {
            let pos = self.nodes[i].data.disk.pos(&db);
            if !self.ledger.knows(pos) {
                self.ledger.born(parent, pos);
            }
        }
        let left = self.held_by(i);
        self.excuse_losses(i, &before, &left);
        self.check_epoch(i);
    }

    /// A machine is replaced by a new one, if the cluster can go on without it at all.
    fn wipe(&mut self, i: Place) {
        let others: Vec<Place> = (0..self.nodes.len()).filter(|other| *other != i).collect();
        // A node that never had everything never leads.
        let may_lead =
            |other: &Place| *other < self.swarm.candidates && self.nodes[*other].term > 0;
        let chosen: Vec<u64> = match self.consul.get(TERM).map(|entry| &entry.value) {
            Some(Value::Term(term)) if !term.sync.is_empty() => {
                term.sync.iter().copied().chain([term.node]).collect()
            }
            _ => self.nodes.iter().map(|node| node.id).collect(),
        };
        let survives = |other: &Place| may_lead(other) && chosen.contains(&self.nodes[*other].id);
        if !others.iter().any(survives) {
            return;
        }
        let before = self.held_by(i);
        self.wipes += 1;
        let boot = self.nodes[i].boot;
        self.nodes[i] = new_node(i, self.wipes, &self.swarm, &mut self.random);
        self.nodes[i].boot = boot;
        self.excuse_losses(i, &before, &Default::default());
        let after = Self::outage(&mut self.random);
        self.plan(self.now + after, Event::Undo(Undo::Start(i)));
    }

    fn stop(&mut self, i: Place) {
        let node = &mut self.nodes[i];
        if node.process.is_none() || node.stopped.is_some() {
            return;
        }
        node.stopped = Some(Default::default());
        let after = Self::outage(&mut self.random);
        self.plan(self.now + after, Event::Undo(Undo::GoOn(i)));
    }

    fn cut(&mut self, i: Place, strike: Strike, one_way: bool) {
        let consul = self.consul_place();
        let peers = (0..consul).filter(|peer| *peer != i);
        let others: Vec<Place> = match strike {
            Strike::LoseConsul => vec![consul],
            Strike::LosePeers => peers.collect(),
            Strike::CutPair => {
                let peers: Vec<Place> = peers.collect();
                vec![self.random.pick(&peers)]
            }
            _ => peers.chain([consul]).collect(),
        };
        let (out, back) = match (one_way, self.random.one_in(2)) {
            (false, _) => (true, true),
            (true, out) => (out, !out),
        };
        let mut ways = Vec::new();
        for other in others {
            ways.extend(out.then_some((i, other)));
            ways.extend(back.then_some((other, i)));
        }
        self.cut_ways(ways);
    }

    fn cut_ways(&mut self, ways: Vec<(Place, Place)>) {
        ways.iter().for_each(|(from, to)| self.net.block(*from, *to));
        let after = Self::outage(&mut self.random);
        self.plan(self.now + after, Event::Undo(Undo::Open(ways)));
    }

    /// Nodes that are not in the sync set hear nothing of the primary; soon they are all there is.
    fn cut_from_set(&mut self) {
        let Some(Value::Term(term)) = self.consul.get(TERM).map(|entry| &entry.value) else {
            return;
        };
        let is_whole = |i: &Place| {
            let id = self.nodes[*i].id;
            id == term.node || term.sync.contains(&id)
        };
        let (set, others): (Vec<Place>, _) = (0..self.nodes.len()).partition(is_whole);
        let pairs = others.iter().flat_map(|other: &Place| set.iter().map(|i| (*i, *other)));
        let ways = pairs.flat_map(|(i, other)| [(i, other), (other, i)]).collect();
        self.cut_ways(ways);
        let after = self.random.time(ms(300), secs(2));
        self.plan(self.now + after, Event::Undo(Undo::KillSet(set)));
    }

    fn new_leader(&mut self) {
        let pause = self.random.time(ms(0), secs(4));
        let now = self.consul_now();
        for id in self.consul.change_leader(now, pause) {
            self.answer(id, super::consul::Answer::Failed);
        }
    }

    /// Only while every node has a cluster: a new node could not know that there ever was one.
    fn consul_forgets(&mut self) {
        if self.nodes.iter().any(|node| node.data.disk.cluster().is_none()) {
            return;
        }
        self.ledger.is_epoch_lost = true;
        for id in self.consul.forget_everything() {
            self.answer(id, super::consul::Answer::Failed);
        }
    }

    fn destroy_session(&mut self) {
        let Some(session) = self.consul.get(KEY).and_then(|key| key.session.clone()) else {
            return;
        };
        let now = self.consul_now();
        self.consul.handle(now, 0, super::consul::Request::Destroy(session));
        self.pump_consul();
    }

    fn slow_down(&mut self) {
        let usual = ms(self.random.pick(&[100, 400, 900]));
        let slow = Delays { usual, spike: secs(2), spike_rate: 10 };
        self.net.delays = slow;
        let after = Self::outage(&mut self.random);
        self.plan(self.now + after, Event::Undo(Undo::Usual(self.swarm.delays)));
    }

    fn promote(&mut self, i: Place) {
        let now = self.own(i);
        let node = &mut self.nodes[i];
        let Some(process) = node.process.as_mut().filter(|_| node.stopped.is_none()) else {
            return;
        };
        if self.swarm.is_sync() && process.election.holder().is_none() {
            // That would be the operator's decision to do without what `sync` promises.
            return;
        }
        let outcome = process.election.handle_promote(now);
        self.note(|| format!("n{i}: promote: {outcome:?}"));
        self.pump(i);
    }

    fn demote(&mut self, i: Place) {
        let now = self.own(i);
        let target = self.random.index(self.nodes.len());
        let target = Some(self.nodes[target].id).filter(|_| self.random.one_in(2));
        let node = &mut self.nodes[i];
        let Some(process) = node.process.as_mut().filter(|_| node.stopped.is_none()) else {
            return;
        };
        let outcome = process.election.handle_demote(now, target);
        self.note(|| format!("n{i}: demote: {outcome:?}"));
        self.pump(i);
    }

    /// SIGTERM; the process ends once its role says so.
    pub fn shut_down(&mut self, i: Place) {
        let now = self.own(i);
        let target = self.connected_candidate(i);
        let node = &mut self.nodes[i];
        let boot = node.boot;
        let Some(process) = node.process.as_mut().filter(|_| node.stopped.is_none()) else {
            return;
        };
        process.election.handle_shutdown(now, target);
        self.plan(self.now + secs(30), Event::Undo(Undo::EndShutdown(i, boot)));
        self.pump(i);
    }

    /// The connected candidate that lacks least.
    fn connected_candidate(&self, i: Place) -> Option<u64> {
        let candidates: Vec<u64> =
            self.nodes[..self.swarm.candidates].iter().map(|node| node.id).collect();
        let term = self.nodes[i].process.as_ref()?.term.as_ref()?;
        let peers = term.sessions.values().map(|session| &session.peer);
        let known = peers.filter_map(|peer| Some((peer.unacknowledged(), peer.hello()?.node)));
        known.filter(|(_, node)| candidates.contains(node)).min().map(|(_, node)| node)
    }

    /// A process that has stopped in order ends.
    pub fn end_stopped(&mut self, i: Place) {
        let role = self.nodes[i].process.as_ref().map(|process| process.election.role());
        if role == Some(Role::Stopped) {
            self.note(|| format!("n{i} has shut down"));
            self.crash(i, Crash::Kill);
        }
    }
}
