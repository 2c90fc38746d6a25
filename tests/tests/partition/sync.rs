//! `replication.mode: sync`: what is acknowledged is on another node's disk too, so nothing of it
//! is lost with the primary, and nothing is kept aside.

use std::time::Duration;

use crate::cluster::{Cluster, FAILOVER, Face, RIGHT, rounds, summary, together};
use crate::ledger::Moment;

const SYNC: &str = "replication:\n  mode: sync\n";

/// Any of the two replicas may be the one that confirmed last.
fn kill_primaries(face: Face) {
    let mut cluster = Cluster::start("sync, kill -9 of the primary", face, SYNC);
    let mut gaps = Vec::new();
    let mut primary = 0;
    for _ in 0..rounds("LITEFS_FAILOVERS", 4) {
        let (next, took) = cluster.kill_primary(primary);
        gaps.push(took);
        primary = next;
        assert_eq!(cluster.settle(), 0, "acknowledged, and not kept by the cluster");
        cluster.resume();
    }
    cluster.report(&format!("first commit elsewhere: {}", summary(gaps)));
}

/// Nobody confirms what the primary still commits.
fn cut_off(face: Face) {
    let mut cluster = Cluster::start("sync, silence", face, SYNC);
    cluster.lab.isolate(0);
    let since = Moment::now();
    let (_, took) = cluster.first_ack(&[1, 2], since, FAILOVER);
    cluster.run(Duration::from_secs(2));
    cluster.assert_replaced(0, since, Duration::ZERO, took);
    assert_eq!(cluster.settle(), 0, "acknowledged without another node");
}

/// One replica after the other goes; the one that is left confirms.
fn replicas_come_and_go(face: Face) {
    let mut cluster = Cluster::start("sync, replicas come and go", face, SYNC);
    let mut gaps = Vec::new();
    for replica in [1, 2, 1, 2] {
        let since = Moment::now();
        cluster.lab.isolate(replica);
        cluster.run(RIGHT + Duration::from_secs(1));
        cluster.lab.heal();
        cluster.primary();
        gaps.push(cluster.ledger.gap(since, Moment::now()));
    }
    cluster.report(&format!("longest time without a commit: {}", summary(gaps.clone())));
    assert!(gaps.iter().all(|gap| *gap < FAILOVER), "{gaps:?}");
    assert_eq!(cluster.settle(), 0);
}

#[test]
fn a_primary_that_dies_takes_nothing_with_it_that_was_acknowledged() {
    together(&[&|| kill_primaries(Face::Vfs), &|| kill_primaries(Face::Mount("wal")), &|| {
        kill_primaries(Face::Mount("delete"))
    }]);
}

#[test]
fn nothing_is_acknowledged_that_no_other_node_has() {
    together(&[
        &|| cut_off(Face::Vfs),
        &|| cut_off(Face::Mount("wal")),
        &|| replicas_come_and_go(Face::Vfs),
        &|| replicas_come_and_go(Face::Mount("truncate")),
    ]);
}
