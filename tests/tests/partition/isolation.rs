//! Nodes that are cut off: from all others, from Consul, from the other nodes, in one direction.

use std::time::Duration;

use crate::cluster::{
    CONSUL, Cluster, FAILOVER, Face, RIGHT, SLOW_RIGHT, WORST_FAILOVER, together,
};
use crate::ledger::Moment;

/// How long after a failover the two sides stay apart: time for a primary that does not stop.
const APART: Duration = Duration::from_secs(2);

/// Cuts off the primary. It stops in time, another node takes over within `limit`, and after the
/// heal nothing has been lost silently.
fn replaced(name: &str, face: Face, limit: Duration, cut: impl Fn(&Cluster)) -> usize {
    let mut cluster = Cluster::start(name, face, "");
    cut(&cluster);
    let since = Moment::now();
    let (_, took) = cluster.first_ack(&[1, 2], since, limit);
    cluster.run(APART);
    cluster.assert_replaced(0, since, RIGHT, took);
    cluster.settle()
}

/// The same, where the primary goes on for a while and nobody gets that.
fn cut_off(name: &str, face: Face, cut: impl Fn(&Cluster)) {
    assert!(replaced(name, face, FAILOVER, cut) > 0, "{name}: it was cut off without a difference");
}

/// Cuts something that a primary can do without.
fn stays(name: &str, face: Face, cut: impl Fn(&Cluster)) {
    let mut cluster = Cluster::start(name, face, "");
    cut(&cluster);
    let since = Moment::now();
    cluster.run(FAILOVER + APART);
    let gap = cluster.ledger.gap(since, Moment::now());
    cluster.report(&format!("longest time without a commit {gap:?}"));
    assert!(gap < Duration::from_secs(1), "{name}: {gap:?} without a commit");
    assert_eq!(cluster.ledger.first_after(&[1, 2], since).map(|attempt| attempt.node), None);
    cluster.lab.heal();
    let healed = Moment::now();
    assert_eq!(cluster.primary(), 0, "{name}: the heal changed the primary");
    assert_eq!(cluster.ledger.first_after(&[1, 2], healed).map(|attempt| attempt.node), None);
    assert_eq!(cluster.settle(), 0, "{name}: nothing had to be kept aside");
}

#[test]
fn a_primary_that_is_cut_off_stops_and_another_takes_over() {
    let silence = |cluster: &Cluster| cluster.lab.isolate(0);
    let unplug = |cluster: &Cluster| cluster.lab.unplug(0);
    let mute = |cluster: &Cluster| cluster.lab.cut(&[0], &[1, 2, CONSUL]);
    let deaf = |cluster: &Cluster| cluster.lab.cut(&[1, 2, CONSUL], &[0]);
    together(&[
        &|| cut_off("silence", Face::Vfs, silence),
        &|| cut_off("silence", Face::Mount("wal"), silence),
        &|| cut_off("cable out", Face::Mount("delete"), unplug),
        &|| cut_off("mute", Face::Vfs, mute),
        &|| _ = replaced("deaf", Face::Vfs, FAILOVER, deaf),
        &without_fast_failover,
    ]);
}

/// Consul's own time limits hold.
fn without_fast_failover() {
    let mut cluster = Cluster::start("slow", Face::Vfs, "    fast-failover: false\n");
    cluster.lab.isolate(0);
    let since = Moment::now();
    let (_, took) = cluster.first_ack(&[1, 2], since, WORST_FAILOVER);
    cluster.run(APART);
    cluster.assert_replaced(0, since, SLOW_RIGHT, took);
    cluster.settle();
}

/// Here the other nodes still hear the primary, until it steps down.
#[test]
fn a_primary_without_consul_stops_and_another_takes_over() {
    let both = |cluster: &Cluster| cluster.lab.part(&[0], &[CONSUL]);
    let answers = |cluster: &Cluster| cluster.lab.cut(&[CONSUL], &[0]);
    together(&[
        &|| _ = replaced("no Consul", Face::Vfs, WORST_FAILOVER, both),
        &|| _ = replaced("no Consul", Face::Mount("persist"), WORST_FAILOVER, both),
        &|| _ = replaced("no answers from Consul", Face::Vfs, WORST_FAILOVER, answers),
    ]);
}

#[test]
fn a_primary_that_consul_hears_is_left_alone() {
    let peers = |cluster: &Cluster| cluster.lab.part(&[0], &[1, 2]);
    let replica = |cluster: &Cluster| cluster.lab.isolate(2);
    let no_consul = |cluster: &Cluster| cluster.lab.part(&[1, 2], &[CONSUL]);
    together(&[
        &|| stays("no peers", Face::Vfs, peers),
        &|| stays("replica isolated", Face::Mount("wal"), replica),
        &|| stays("replicas without Consul", Face::Vfs, no_consul),
    ]);
}
