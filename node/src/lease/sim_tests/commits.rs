//! Clients that commit, and what they were told: the ledger.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use litefs_store::{DbName, Pos, Txid};

use super::chance::{Random, ms, secs};
use super::net::Place;
use super::world::{Event, World};

/// A transaction on its way to the disk.
#[derive(Debug, Clone)]
pub struct Commit {
    pub db: DbName,
    /// The gate was asked for the last time, and let it pass.
    passed: bool,
}

/// A transaction that a client was told about.
#[derive(Debug, Clone)]
pub struct Acked {
    pub db: DbName,
    pub pos: Pos,
    pub node: Place,
    pub epoch: u64,
    pub at: Duration,
    /// The committing machine lost power, or its disk, while nobody else had it: not promised.
    pub is_excused: bool,
}

/// What happened to transactions, as somebody sees it who sees everything.
#[derive(Default)]
pub struct Ledger {
    parents: HashMap<Pos, Pos>,
    pub acked: Vec<Acked>,
    /// The newest epoch in which a commit passed the gate.
    epoch: u64,
    pub refused: u64,
    /// Consul has lost its data: nobody may know the newest epoch.
    pub is_epoch_lost: bool,
}

impl Ledger {
    /// A transaction came into being.
    pub fn born(&mut self, parent: Pos, pos: Pos) {
        self.parents.insert(pos, parent);
    }

    pub fn knows(&self, pos: Pos) -> bool {
        pos.is_zero() || self.parents.contains_key(&pos)
    }

    /// Where the line that ends with `newest` was at a transaction, if it got so far.
    pub fn at(&self, newest: Pos, txid: Txid) -> Option<Pos> {
        let before = |pos: &Pos| self.parents.get(pos).copied();
        std::iter::successors(Some(newest), before).find(|pos| pos.txid == txid)
    }

    /// Adds the transactions from after `after` to `newest`.
    fn collect(&self, after: Pos, newest: Pos, into: &mut HashSet<Pos>) {
        let mut at = newest;
        while at.txid > after.txid && into.insert(at) {
            match self.parents.get(&at) {
                Some(parent) => at = *parent,
                None => panic!("nobody committed {at}"),
            }
        }
    }

    /// A commit passes the gate: no later epoch can have begun to commit.
    fn pass(&mut self, epoch: u64) -> bool {
        let is_newest = epoch >= self.epoch || self.is_epoch_lost;
        self.epoch = self.epoch.max(epoch);
        is_newest
    }
}

impl World {
    /// Some client tries to commit somewhere.
    pub fn try_commit(&mut self) {
        let i = self.random.index(self.nodes.len());
        let db = self.random.index(self.databases.len());
        let db = self.databases[db].clone();
        let next = self.random.time(ms(1), self.swarm.commit_interval * 2);
        self.plan(self.now + next, Event::Client);
        // Most clients have learned where the primary is.
        let primary = (0..self.nodes.len()).find(|i| self.is_open(*i));
        let i = if self.random.one_in(4) { i } else { primary.unwrap_or(i) };
        self.begin_commit(i, db);
    }

    pub fn begin_commit(&mut self, i: Place, db: DbName) {
        let now = self.own(i);
        let is_full = self.swarm.is_full;
        let number = self.next_number();
        let node = &mut self.nodes[i];
        let Some(process) = node.process.as_mut().filter(|_| node.stopped.is_none()) else {
            return;
        };
        if process.held.is_some() {
            process.waiting.push((now + secs(5), db));
            return;
        }
        if node.data.disk.is_prepared(&db) {
            return;
        }
        let is_admitted = process.confirmer.as_ref().is_none_or(|c| c.admits(now, &db));
        if !is_admitted || !node.data.disk.prepare(&db, &mut self.random, is_full) {
            self.ledger.refused += 1;
            return;
        }
        process.commits.insert(number, Commit { db: db.clone(), passed: false });
        let boot = node.boot;
        let slow = if self.random.one_in(60) { secs(4) } else { ms(3) };
        let at = self.now + self.random.time(Duration::from_micros(50), slow);
        self.plan(at, Event::Commit { node: i, boot, number });
        self.check_admitted(i, &db);
    }

    /// The next step of a commit.
    pub fn go_on_with_commit(&mut self, i: Place, number: u64) {
        self.own(i);
        let node = &mut self.nodes[i];
        let boot = node.boot;
        let Some(process) = node.process.as_mut() else { return };
        let Some(commit) = process.commits.get_mut(&number) else { return };
        let db = commit.db.clone();
        if commit.passed {
            process.commits.remove(&number);
            return self.publish(i, &db);
        }
        if !node.data.disk.sync_prepared(&db) {
            process.commits.remove(&number);
            node.data.disk.take_back(&db);
            self.ledger.refused += 1;
            return;
        }
        commit.passed = true;
        let epoch = process.epoch;
        let at = self.now + publication_delay(&mut self.random);
        if !self.ledger.pass(epoch) {
            self.violation(format!("n{i} passes a commit of epoch {epoch} after a later one"));
        }
        self.plan(at, Event::Commit { node: i, boot, number });
    }

    fn publish(&mut self, i: Place, db: &DbName) {
        let disk = &mut self.nodes[i].data.disk;
        let parent = disk.pos(db);
        let pos = disk.publish(db);
        self.ledger.born(parent, pos);
        self.stream_commit(i, db, pos);
        self.commit_published(i, db, pos);
    }

    /// The client hears that its transaction is committed.
    pub fn acknowledge(&mut self, i: Place, db: DbName, pos: Pos) {
        let epoch = self.nodes[i].process.as_ref().map_or(0, |process| process.epoch);
        let (at, is_excused) = (self.now, false);
        let acked = Acked { db, pos, node: i, epoch, at, is_excused };
        self.ledger.acked.push(acked);
    }

    /// The transactions in a node's databases.
    pub fn line_of(&self, i: Place) -> HashSet<Pos> {
        let disk = &self.nodes[i].data.disk;
        let mut line = HashSet::new();
        for db in disk.databases() {
            self.ledger.collect(Pos::ZERO, disk.pos(&db), &mut line);
        }
        line
    }

    /// The transactions in a node's databases of which the primary does not even know: they stay
    /// as they are until it has one of that name.
    pub fn unknown_to(&self, leader: Place, i: Place) -> HashSet<Pos> {
        let primary = &self.nodes[leader].data.disk;
        let disk = &self.nodes[i].data.disk;
        let mut line = HashSet::new();
        for db in disk.databases().into_iter().filter(|db| primary.pos(db).is_zero()) {
            self.ledger.collect(Pos::ZERO, disk.pos(&db), &mut line);
        }
        line
    }

    /// The transactions that a node has preserved.
    pub fn kept_by(&self, i: Place) -> HashSet<Pos> {
        let mut kept = HashSet::new();
        for (_, after, newest) in self.nodes[i].data.disk.kept() {
            // Ranges may overlap: each is walked by itself.
            let mut range = HashSet::new();
            self.ledger.collect(after, newest, &mut range);
            kept.extend(range);
        }
        kept
    }

    /// Everything on a node's disk.
    pub fn held_by(&self, i: Place) -> HashSet<Pos> {
        let mut held = self.line_of(i);
        held.extend(self.kept_by(i));
        held
    }

    /// Node `i` has lost what is not in `left` any more: what nobody else has is not promised to
    /// survive.
    pub fn excuse_losses(&mut self, i: Place, before: &HashSet<Pos>, left: &HashSet<Pos>) {
        let others = (0..self.nodes.len()).filter(|other| *other != i);
        let elsewhere: HashSet<Pos> = others.flat_map(|other| self.held_by(other)).collect();
        let is_lost =
            |pos: &Pos| before.contains(pos) && !left.contains(pos) && !elsewhere.contains(pos);
        for acked in &mut self.ledger.acked {
            acked.is_excused |= is_lost(&acked.pos);
        }
    }
}

/// From the last look at the gate to the publication: next to nothing, unless the process is
/// stopped in between.
fn publication_delay(random: &mut Random) -> Duration {
    let most = if random.one_in(100) { ms(40) } else { Duration::from_micros(30) };
    random.time(Duration::from_micros(1), most)
}
