//! Processes that stand still: a primary that wakes up long after its time, and a Consul that
//! accepts connections and never answers.

use std::time::Duration;

use crate::cluster::{Cluster, FAILOVER, Face, RIGHT, together};
use crate::ledger::Moment;

/// Three times the time after which Consul may forget a session.
const THREE_TTLS: Duration = Duration::from_secs(30);

/// What a frozen primary was about to acknowledge it may say when it thaws: the commit had passed
/// its check, and what was begun later is refused.
fn thaws(face: Face) {
    let mut cluster = Cluster::start("SIGSTOP for 3 TTLs", face, "");
    cluster.nodes[0].process().signal("STOP");
    let since = Moment::now();
    let (_, took) = cluster.first_ack(&[1, 2], since, FAILOVER);
    cluster.run(THREE_TTLS.saturating_sub(took));
    cluster.nodes[0].process().signal("CONT");
    cluster.run(Duration::from_secs(3));
    cluster.assert_replaced(0, since, Duration::from_millis(100), took);
    cluster.settle();
}

#[test]
fn a_primary_that_thaws_after_its_time_acknowledges_nothing() {
    together(&[&|| thaws(Face::Vfs), &|| thaws(Face::Mount("delete")), &|| {
        thaws(Face::Mount("wal"))
    }]);
}

/// Longer than the right to commit: the primary stops, and somebody goes on afterwards.
fn consul_hangs(face: Face, time: Duration) {
    let mut cluster = Cluster::start(&format!("Consul hangs for {time:?}"), face, "");
    cluster.consul.process().signal("STOP");
    let since = Moment::now();
    cluster.run(time);
    let thawed = Moment::now();
    cluster.consul.process().signal("CONT");
    for node in 0..3 {
        cluster.ledger.assert_fenced(node, since, RIGHT, thawed);
    }
    let last = cluster.ledger.last_ack(0).unwrap() - since;
    let (node, took) = cluster.first_ack(&[0, 1, 2], thawed, Duration::from_secs(60));
    cluster.report(&format!("last commit after {last:?}, the next on node {node}, {took:?} later"));
    cluster.settle();
}

/// Shorter than the right: nobody notices.
fn consul_hesitates() {
    let mut cluster = Cluster::start("Consul hesitates", Face::Vfs, "");
    let since = Moment::now();
    for _ in 0..3 {
        cluster.consul.process().signal("STOP");
        cluster.run(Duration::from_millis(1200));
        cluster.consul.process().signal("CONT");
        cluster.run(Duration::from_millis(2500));
    }
    let gap = cluster.ledger.gap(since, Moment::now());
    cluster.report(&format!("longest time without a commit {gap:?}"));
    assert!(gap < Duration::from_secs(1), "{gap:?} without a commit");
    assert_eq!(cluster.ledger.first_after(&[1, 2], since).map(|attempt| attempt.node), None);
    assert_eq!(cluster.settle(), 0);
}

#[test]
fn a_consul_that_never_answers_stops_the_primary_in_time_and_it_returns() {
    together(&[
        &|| consul_hangs(Face::Vfs, Duration::from_secs(6)),
        &|| consul_hangs(Face::Mount("truncate"), Duration::from_secs(15)),
        &consul_hesitates,
    ]);
}
