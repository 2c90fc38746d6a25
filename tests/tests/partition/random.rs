//! Random faults, one after the other and some at once. After each of them the cluster must agree.
//!
//! `LITEFS_PARTITIONS=500` for that many instead of a few; `LITEFS_SEED` repeats a run's choices
//! (not its timing).

use std::time::Duration;

use litefs_store::sim::Rng;

use crate::cluster::{CONSUL, Cluster, Face, NODES, rounds, together};

/// Labs at once.
const LABS: u32 = 2;
/// A lab is given up after so many faults: its ledger only grows.
const FAULTS_A_LAB: u32 = 25;

/// Choices by seed.
struct Random(Rng);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0.below(bound)
    }

    fn host(&mut self, hosts: usize) -> usize {
        self.below(hosts as u64) as usize
    }

    /// Two hosts; every second time the primary is the first of them.
    fn pair(&mut self, primary: usize) -> (usize, usize) {
        let one = if self.below(2) == 0 { primary } else { self.host(NODES + 1) };
        (one, (one + 1 + self.host(NODES)) % (NODES + 1))
    }

    /// Long and short ones around all of the cluster's time limits.
    fn time(&mut self) -> Duration {
        let most = [500, 3_000, 6_000, 13_000][self.host(4)];
        Duration::from_millis(100 + self.below(most))
    }
}

/// What must be undone when the fault is over.
enum Undo {
    Nothing,
    ThawNode(usize),
    ThawConsul,
    StartNode(usize),
    StartConsul,
}

fn cause(cluster: &mut Cluster, random: &mut Random) -> (String, Undo) {
    let primary = cluster.primary();
    let (one, other) = random.pair(primary);
    let node = if one == CONSUL { other } else { one };
    let all: Vec<usize> = (0..=NODES).collect();
    let peers = Cluster::others(node);
    let lab = &cluster.lab;
    let mut undo = Undo::Nothing;
    let what = match random.below(12) {
        0 => (lab.isolate(one), format!("host {one} isolated")).1,
        1 => (lab.unplug(one), format!("host {one} unplugged")).1,
        2 => (lab.cut(&[one], &all), format!("host {one} not heard")).1,
        3 => (lab.cut(&all, &[one]), format!("host {one} does not hear")).1,
        4 => (lab.cut(&[one], &[other]), format!("from {one} to {other}")).1,
        5 => (lab.part(&[one], &[other]), format!("between {one} and {other}")).1,
        6 => (lab.part(&[node], &peers), format!("node {node} without peers")).1,
        7 => (lab.part(&[node, CONSUL], &peers), format!("node {node} alone with Consul")).1,
        8 => {
            cluster.nodes[node].process().signal("STOP");
            undo = Undo::ThawNode(node);
            format!("node {node} frozen")
        }
        9 => {
            cluster.consul.process().signal("STOP");
            undo = Undo::ThawConsul;
            "Consul frozen".to_owned()
        }
        10 => {
            cluster.kill(node);
            undo = Undo::StartNode(node);
            format!("node {node} killed")
        }
        _ => {
            cluster.consul.kill();
            undo = Undo::StartConsul;
            "Consul killed".to_owned()
        }
    };
    (what, undo)
}

fn undo(cluster: &mut Cluster, undo: Undo) {
    match undo {
        Undo::Nothing => {}
        Undo::ThawNode(node) => cluster.nodes[node].process().signal("CONT"),
        Undo::ThawConsul => cluster.consul.process().signal("CONT"),
        Undo::StartNode(node) => cluster.start_node(node),
        Undo::StartConsul => cluster.consul.start_again(cluster.lab.host(CONSUL)),
    }
}

fn faults(seed: u64, face: Face, count: u32) {
    let mut random = Random(Rng::new(seed));
    let mut cluster = Cluster::start(&format!("random, LITEFS_SEED={seed}"), face, "");
    for round in 0..count {
        let (mut what, first) = cause(&mut cluster, &mut random);
        cluster.run(random.time());
        // Every third time a second fault comes before the first one is over. Faults of the
        // network add up; of one process, they do not.
        if random.below(3) == 0 {
            let node = random.host(NODES);
            let (one, other) = random.pair(node);
            cluster.lab.part(&[one], &[other]);
            what = format!("{what}, then between {one} and {other}");
            cluster.run(random.time());
        }
        cluster.report(&format!("fault {round}: {what}"));
        cluster.lab.heal();
        undo(&mut cluster, first);
        cluster.settle();
        cluster.resume();
    }
}

#[test]
fn random_faults_lose_nothing_silently() {
    let total = rounds("LITEFS_PARTITIONS", 4);
    let faces = [Face::Vfs, Face::Mount("wal"), Face::Mount("delete")];
    let seed = std::env::var("LITEFS_SEED").map_or(u64::from(std::process::id()), |text| {
        text.parse().expect("LITEFS_SEED is a number")
    });
    let lab = |number: u32| {
        let mut left = total / LABS;
        let mut life = 0;
        while left > 0 {
            let count = left.min(FAULTS_A_LAB);
            let seed = seed + u64::from(life * LABS + number);
            faults(seed, faces[(life * LABS + number) as usize % faces.len()], count);
            left -= count;
            life += 1;
        }
    };
    together(&[&|| lab(0), &|| lab(1)]);
}
