//! The role changes on purpose, under a writer: no acknowledged commit is lost, and the time
//! without a writer is short.

use std::time::Duration;

use crate::cluster::{Cluster, Face, NODES, summary, together};
use crate::ledger::Moment;

/// For one hand-over; on a machine that is not busy with other tests it takes some milliseconds.
const LIMIT: Duration = Duration::from_secs(5);
/// For most of them.
const USUALLY: Duration = Duration::from_millis(500);

fn assert_short(cluster: &Cluster, gaps: Vec<Duration>) {
    let mut sorted = gaps.clone();
    sorted.sort();
    cluster.report(&format!("write gap at hand-over: {}", summary(gaps)));
    assert!(sorted[sorted.len() / 2] <= USUALLY, "{sorted:?}");
}

fn promote_in_turns(face: Face) {
    let mut cluster = Cluster::start("promote", face, "");
    let mut gaps = Vec::new();
    for round in 1..=20 {
        let target = round % NODES;
        let since = Moment::now();
        cluster.promote(target);
        cluster.first_ack(&[target], since, LIMIT);
        cluster.run(Duration::from_millis(100));
        gaps.push(cluster.ledger.gap(since, Moment::now()));
        assert_eq!(cluster.primary(), target);
    }
    assert_short(&cluster, gaps);
    assert_eq!(cluster.settle(), 0, "acknowledged commits were not handed over");
}

#[test]
fn promote_loses_nothing_on_the_vfs_and_in_wal_mode() {
    together(&[&|| promote_in_turns(Face::Vfs), &|| promote_in_turns(Face::Mount("wal"))]);
}

#[test]
fn promote_loses_nothing_in_rollback_modes() {
    together(&[
        &|| promote_in_turns(Face::Mount("delete")),
        &|| promote_in_turns(Face::Mount("truncate")),
        &|| promote_in_turns(Face::Mount("persist")),
    ]);
}

fn end_in_turns(face: Face) {
    let mut cluster = Cluster::start("clean end of the primary", face, "");
    let mut gaps = Vec::new();
    let mut primary = 0;
    for _ in 0..5 {
        let since = Moment::now();
        cluster.terminate(primary);
        let (next, _) = cluster.first_ack(&Cluster::others(primary), since, LIMIT);
        cluster.run(Duration::from_millis(100));
        gaps.push(cluster.ledger.gap(since, Moment::now()));
        cluster.start_node(primary);
        assert_eq!(cluster.primary(), next);
        primary = next;
    }
    assert_short(&cluster, gaps);
    assert_eq!(cluster.settle(), 0, "acknowledged commits were not handed over");
}

#[test]
fn a_primary_that_is_shut_down_hands_over() {
    together(&[&|| end_in_turns(Face::Vfs), &|| end_in_turns(Face::Mount("wal"))]);
}
