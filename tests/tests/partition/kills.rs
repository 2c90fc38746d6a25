//! Nodes and Consul that are killed and started again.
//!
//! `LITEFS_FAILOVERS=10` for more kills of the primary than the usual number.

use std::time::Duration;

use crate::cluster::{
    CONSUL, Cluster, FAILOVER, Face, NODES, WORST_FAILOVER, rounds, summary, together,
};
use crate::ledger::Moment;

/// Kills one primary after the other.
fn primaries(face: Face) {
    let mut cluster = Cluster::start("kill -9 of the primary", face, "");
    let mut gaps = Vec::new();
    let mut primary = 0;
    for _ in 0..rounds("LITEFS_FAILOVERS", 5) {
        cluster.kill(primary);
        let since = Moment::now();
        let (next, took) = cluster.first_ack(&Cluster::others(primary), since, FAILOVER);
        gaps.push(took);
        cluster.run(Duration::from_millis(300));
        cluster.start_node(primary);
        assert_eq!(cluster.primary(), next, "the killed node took the lease back");
        primary = next;
    }
    cluster.report(&format!("first commit elsewhere: {}", summary(gaps)));
    cluster.settle();
}

#[test]
fn another_node_takes_over_from_a_killed_primary() {
    together(&[&|| primaries(Face::Vfs), &|| primaries(Face::Mount("wal"))]);
}

fn consul_is_away(face: Face, time: Duration) {
    let mut cluster = Cluster::start(&format!("Consul is away for {time:?}"), face, "");
    cluster.consul.kill();
    cluster.run(time);
    let back = Moment::now();
    cluster.consul.start_again(cluster.lab.host(CONSUL));
    let (node, took) = cluster.first_ack(&[0, 1, 2], back, Duration::from_secs(60));
    cluster.report(&format!("{took:?} after its start node {node} commits"));
    cluster.settle();
}

/// All that Consul knew is gone: sessions, the key, its modify index.
fn consul_is_made_anew() {
    let mut cluster = Cluster::start("Consul loses its data", Face::Vfs, "");
    cluster.consul.lose();
    cluster.run(Duration::from_secs(1));
    let back = Moment::now();
    cluster.consul.start_again(cluster.lab.host(CONSUL));
    let (node, took) = cluster.first_ack(&[0, 1, 2], back, Duration::from_secs(60));
    cluster.report(&format!("{took:?} after its start node {node} commits"));
    assert_eq!(cluster.settle(), 0, "nobody was cut off from anybody");
}

#[test]
fn the_cluster_survives_a_restart_of_consul_and_a_new_consul() {
    together(&[
        &|| consul_is_away(Face::Vfs, Duration::from_millis(100)),
        &|| consul_is_away(Face::Mount("wal"), Duration::from_secs(12)),
        &consul_is_made_anew,
    ]);
}

/// A node without data finds a cluster id without a primary: it waits for those that have data,
/// however long that takes.
#[test]
fn an_empty_node_never_wins() {
    let mut cluster = Cluster::start("empty node", Face::Vfs, "");
    cluster.kill(2);
    std::fs::remove_dir_all(cluster.nodes[2].data()).unwrap();
    cluster.run(Duration::from_millis(500));
    (0..2).for_each(|node| cluster.kill(node));
    let since = Moment::now();
    cluster.start_node(2);
    cluster.run(WORST_FAILOVER);
    assert!(cluster.ledger.first_after(&[2], since).is_none(), "an empty node took the lease");
    cluster.start_node(1);
    let started = Moment::now();
    let (primary, _) = cluster.first_ack(&[1, 2], started, WORST_FAILOVER);
    assert_eq!(primary, 1);
    cluster.start_node(0);
    assert_eq!(cluster.nodes.len(), NODES);
    assert_eq!(cluster.settle(), 0);
}
