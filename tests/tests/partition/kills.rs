//! Nodes and Consul that are killed and started again.
//!
//! `LITEFS_FAILOVERS=10` for more kills of the primary than the usual number.

use std::time::Duration;

use crate::cluster::{CONSUL, Cluster, Face, RIGHT, rounds, summary, together};
use crate::lab::Consul;
use crate::ledger::Moment;

/// Longer than anybody may commit without Consul.
const LONG_AWAY: Duration = Duration::from_secs(8);

/// Kills one primary after the other.
fn primaries(face: Face) {
    let mut cluster = Cluster::start("kill -9 of the primary", face, "");
    let mut gaps = Vec::new();
    let mut primary = 0;
    for _ in 0..rounds("LITEFS_FAILOVERS", 5) {
        let (next, took) = cluster.kill_primary(primary);
        gaps.push(took);
        primary = next;
    }
    cluster.report(&format!("first commit elsewhere: {}", summary(gaps)));
    cluster.settle();
}

#[test]
fn another_node_takes_over_from_a_killed_primary() {
    together(&[&|| primaries(Face::Vfs), &|| primaries(Face::Mount("wal"))]);
}

/// Consul comes back, with what it knew or without; the cluster goes on, whatever time that takes
/// its primary.
fn consul_returns(name: &str, face: Face, away: Duration, gone: impl Fn(&mut Consul)) {
    let mut cluster = Cluster::start(name, face, "");
    let since = Moment::now();
    gone(&mut cluster.consul);
    cluster.run(away);
    cluster.consul.start_again(cluster.lab.host(CONSUL));
    let back = Moment::now();
    // Beyond the right that the primary may have left.
    cluster.run(RIGHT + Duration::from_secs(1));
    let (node, _) = cluster.first_ack(&[0, 1, 2], Moment::now(), Duration::from_secs(60));
    let gap = cluster.ledger.gap(since, Moment::now());
    cluster.report(&format!("served again after {:?}; node {node} commits", back - since));
    cluster.report(&format!("longest time without a commit {gap:?}"));
    assert_eq!(cluster.settle(), 0, "{name}: nobody was cut off from anybody");
}

#[test]
fn the_cluster_survives_a_restart_of_consul_and_a_new_consul() {
    together(&[
        &|| consul_returns("Consul restarts", Face::Vfs, Duration::ZERO, Consul::kill),
        &|| consul_returns("Consul is away", Face::Mount("wal"), LONG_AWAY, Consul::kill),
        &|| consul_returns("a new Consul", Face::Vfs, Duration::ZERO, Consul::lose),
        &|| consul_returns("a new Consul, later", Face::Vfs, LONG_AWAY, Consul::lose),
    ]);
}
