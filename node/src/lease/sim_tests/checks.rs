//! What must hold at the end of a run.

use std::collections::HashSet;
use std::time::Duration;

use litefs_store::Pos;

use super::chance::{ms, secs};
use super::net::Place;
use super::world::{Event, World};

/// Once the faults have ended there is a primary that acknowledges within this time. A session
/// lives for twice its TTL at most, by a slow clock; then the lock-delay and the guard, a
/// demotion's delay, and some attempts.
const RECOVERY: Duration = Duration::from_secs(70);
/// All nodes are at the primary's positions so long after the last commit: the longest wait for a
/// database in trouble, and some attempts.
const CONVERGENCE: Duration = Duration::from_secs(60);

impl World {
    /// A whole run: faults, then calm, then the checks. What was violated is in `violations`.
    pub fn live(&mut self) {
        self.plan(secs(3), Event::Strike);
        let calm = self.swarm.calm;
        self.run(calm);
        if !self.violations.is_empty() {
            return;
        }
        self.recover();
        let before = self.ledger.acked.len();
        let acknowledges = |world: &Self| world.ledger.acked.len() > before + 5;
        if !self.run_until(calm + RECOVERY, |world| acknowledges(world) && world.leader().is_some())
        {
            let acked = self.ledger.acked.len() - before;
            let text = format!("{RECOVERY:?} after the last fault: {acked} commits acknowledged");
            return self.report_stuck(text);
        }
        self.silence_clients();
        let end = self.now + CONVERGENCE;
        if !self.run_until(end, Self::is_converged) {
            return self
                .report_stuck(format!("not converged {CONVERGENCE:?} after the last commit"));
        }
        self.check_acknowledged();
    }

    /// Runs until something holds; false if it never does, or something is violated.
    pub fn run_until(&mut self, end: Duration, holds: impl Fn(&Self) -> bool) -> bool {
        while self.violations.is_empty() && self.now < end {
            let next = (self.now + ms(100)).min(end);
            while self.violations.is_empty() && self.step(next) {}
            if self.violations.is_empty() && holds(self) {
                return true;
            }
        }
        false
    }

    fn report_stuck(&mut self, text: String) {
        if !self.violations.is_empty() {
            return;
        }
        let mut lines = vec![text];
        for i in 0..self.nodes.len() {
            let node = &self.nodes[i];
            let positions: Vec<String> =
                self.databases.iter().map(|db| node.data.disk.pos(db).txid.to_string()).collect();
            let part = node.process.as_ref().map(|process| {
                format!("{} ({})", process.election.role(), process.election.reason())
            });
            lines.push(format!("n{i} {:x}: {part:?}, at {positions:?}", node.id));
            lines.extend(self.sync_state(i));
        }
        self.violation(lines.join("\n  "));
    }

    /// The one node whose gate is open.
    pub fn leader(&self) -> Option<Place> {
        let open: Vec<Place> = (0..self.nodes.len()).filter(|i| self.is_open(*i)).collect();
        (open.len() == 1).then(|| open[0])
    }

    fn is_converged(&self) -> bool {
        let Some(leader) = self.leader() else { return false };
        let epoch = self.nodes[leader].process.as_ref().map(|process| process.epoch);
        let primary = &self.nodes[leader].data.disk;
        (0..self.nodes.len()).filter(|i| *i != leader).all(|i| {
            let node = &self.nodes[i];
            let following = node.process.as_ref().and_then(|process| process.following.as_ref());
            following.is_some_and(|f| f.epoch.is_some() && f.epoch == epoch)
                && self.databases.iter().all(|db| {
                    let newest = primary.pos(db);
                    newest.is_zero() || node.data.disk.pos(db) == newest
                })
        })
    }

    /// A term begins: never on a node that never had everything, where somebody has something.
    pub fn check_beginning(&mut self, i: Place) {
        let is_empty = |i: Place| self.nodes[i].data.disk.databases().is_empty();
        let never_had_all = self.nodes[i].term == 0;
        if never_had_all && (0..self.nodes.len()).any(|other| other != i && !is_empty(other)) {
            self.violation(format!(
                "n{i} never had everything and becomes primary over nodes with data"
            ));
        }
    }

    /// Everything that was acknowledged is there, or was preserved.
    fn check_acknowledged(&mut self) {
        let leader = self.leader().expect("checked");
        let line = self.line_of(leader);
        let kept = |i| self.kept_by(i).into_iter().chain(self.unknown_to(leader, i));
        let kept: HashSet<Pos> = (0..self.nodes.len()).flat_map(kept).collect();
        // Who was in sync is kept at Consul only.
        let is_sync = self.swarm.always_waits() && !self.ledger.is_epoch_lost;
        let is_lossless = is_sync || (self.swarm.is_gentle() && !self.is_lossy);
        let is_lost = |pos: &Pos| !line.contains(pos) && (is_lossless || !kept.contains(pos));
        let lost: Vec<String> = self
            .ledger
            .acked
            .iter()
            .filter(|acked| !acked.is_excused && is_lost(&acked.pos))
            .map(|a| {
                let fate = if kept.contains(&a.pos) { "preserved only" } else { "gone" };
                format!("{} {} of epoch {}, n{}, {:?}: {fate}", a.db, a.pos, a.epoch, a.node, a.at)
            })
            .collect();
        if let Some(first) = lost.first() {
            self.violation(format!("{} acknowledged commits lost, first {first}", lost.len()));
        }
    }
}
