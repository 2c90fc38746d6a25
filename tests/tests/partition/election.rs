//! Who takes over: never a node that lacks what another one has.

use std::time::Duration;

use crate::cluster::{Cluster, Face, WORST_FAILOVER, together};
use crate::ledger::Moment;

/// Commits that a killed primary may have acknowledged in its last milliseconds, before they left
/// it: in `async` mode they are kept aside when it returns.
const LAST_MOMENTS: usize = 20;

/// Node 2 does not hear the primary, but could acquire the lease as well as node 1.
fn one_is_behind() {
    let mut cluster = Cluster::start("one is behind", Face::Vfs, "");
    cluster.lab.part(&[2], &[0, 1]);
    cluster.run(Duration::from_secs(4));
    cluster.kill(0);
    let since = Moment::now();
    let (primary, took) = cluster.first_ack(&[1, 2], since, WORST_FAILOVER);
    cluster.report(&format!("first commit of node {primary} after {took:?}"));
    assert_eq!(primary, 1, "node 2 was behind");
    cluster.start_node(0);
    let aside = cluster.settle();
    assert!(aside < LAST_MOMENTS, "node 1 had everything, and {aside} commits were kept aside");
}

/// A node without data finds a cluster id without a primary: it waits for those that have data,
/// however long that takes.
fn one_is_empty() {
    let mut cluster = Cluster::start("one is empty", Face::Vfs, "");
    cluster.kill(2);
    std::fs::remove_dir_all(cluster.nodes[2].data()).unwrap();
    cluster.run(Duration::from_millis(500));
    cluster.kill(0);
    cluster.kill(1);
    let since = Moment::now();
    cluster.start_node(2);
    cluster.run(WORST_FAILOVER);
    assert!(cluster.ledger.first_after(&[2], since).is_none(), "an empty node took the lease");
    cluster.start_node(1);
    let (primary, _) = cluster.first_ack(&[1, 2], Moment::now(), WORST_FAILOVER);
    assert_eq!(primary, 1);
    cluster.start_node(0);
    let aside = cluster.settle();
    assert!(aside < LAST_MOMENTS, "{aside} commits were kept aside");
}

#[test]
fn a_node_that_lacks_something_does_not_take_over() {
    together(&[&one_is_behind, &one_is_empty]);
}
