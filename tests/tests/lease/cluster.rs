//! Nodes that find their primary through Consul.

use std::time::{Duration, Instant};

use litefs_node::config::{OnTimeout, ReplicationMode, SyncSettings};

use super::consul::Consul;
use super::daemon::{LONG, eventually};
use super::nodes::{KEY, TestNode, cluster, wait_in_sync};

fn primaries(nodes: &[TestNode]) -> usize {
    nodes.iter().filter(|node| node.is_primary()).count()
}

#[test]
fn three_nodes_that_start_together_have_one_primary() {
    let consul = Consul::start();
    let nodes: Vec<_> = (0..3).map(|_| TestNode::start(&consul)).collect();
    eventually("there is a primary", || primaries(&nodes) == 1);
    let primary = nodes.iter().find(|node| node.is_primary()).unwrap();
    primary.execute("CREATE TABLE t (x)").unwrap();
    let replicas: Vec<_> = nodes.iter().filter(|node| !node.is_primary()).collect();
    assert_eq!(replicas.len(), 2);
    wait_in_sync(primary, replicas.iter().copied());
    for replica in replicas {
        let refused = replica.execute("INSERT INTO t VALUES (1)").unwrap_err();
        assert!(refused.contains("readonly"), "{refused}");
        assert_eq!(replica.count(), 0);
    }
}

#[test]
fn a_primary_that_shuts_down_hands_over_at_once_and_loses_nothing() {
    let (_consul, mut nodes) = cluster(2);
    nodes[0].execute("INSERT INTO t (x) VALUES (1)").unwrap();
    let began = Instant::now();
    nodes[0].stop();
    eventually("the other is primary", || nodes[1].is_primary());
    nodes[1].execute("INSERT INTO t (x) VALUES (2)").unwrap();
    println!("handed over in {:?}", began.elapsed());
    assert_eq!(nodes[1].count(), 2);
    let epoch = nodes[1].store().epoch();
    nodes[0].run();
    wait_in_sync(&nodes[1], &nodes[..1]);
    assert_eq!(nodes[0].store().epoch(), epoch);
    assert_eq!(nodes[0].count(), 2);
}

#[test]
fn what_lies_in_consul_is_litefss() {
    let (consul, nodes) = cluster(1);
    let value = consul.get(&format!("/v1/kv/{KEY}?raw"));
    let json: serde_json::Value = serde_json::from_str(&value).unwrap();
    assert_eq!(json["hostname"], nodes[0].name());
    assert_eq!(json["advertise-url"], format!("http://{}", nodes[0].addr()));
    let cluster = consul.get(&format!("/v1/kv/{KEY}/clusterid?raw"));
    assert_eq!(Some(cluster), nodes[0].store().cluster_id());
}

#[test]
fn the_replicas_that_confirm_commits_are_known_in_consul_before_they_count() {
    let consul = Consul::start();
    let sync =
        SyncSettings { replicas: 1, timeout: Duration::from_secs(30), on_timeout: OnTimeout::Wait };
    let node = |candidate| {
        let mut node = TestNode::new(&consul, |config| {
            config.lease.candidate = candidate;
            config.replication = ReplicationMode::Sync(sync);
        });
        node.run();
        node
    };
    let primary = node(true);
    eventually("the first node is primary", || primary.is_primary());
    // It could not take over: what it confirmed would have to wait for the primary.
    let observer = node(false);
    wait_in_sync(&primary, [&observer]);
    let replica = node(true);
    primary.execute("CREATE TABLE t (x)").unwrap();
    let term = consul.get(&format!("/v1/kv/{KEY}/term?raw"));
    let term: serde_json::Value = serde_json::from_str(&term).unwrap();
    let id = format!("{:016x}", replica.store().node_id());
    assert_eq!(term["sync"], serde_json::json!([id]));
    // It was acknowledged, so the replica has it.
    assert_eq!(replica.count(), 0);
    drop(primary);
    eventually("the replica is primary", || replica.is_primary());
}

#[test]
fn promote_moves_the_role_twenty_times_under_a_writer_that_loses_nothing() {
    let (_consul, nodes) = cluster(2);
    let done = std::sync::atomic::AtomicBool::new(false);
    let mut longest = Duration::ZERO;
    let acked = std::thread::scope(|scope| {
        let _stop = StopWhenDropped(&done);
        let writer = scope.spawn(|| {
            let mut acked = Vec::new();
            let mut id = 0_i64;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                id += 1;
                let sql = format!("INSERT INTO t VALUES ({id}, 'x')");
                let began = Instant::now();
                while !nodes.iter().any(|node| node.execute(&sql).is_ok()) {
                    assert!(began.elapsed() < LONG, "nobody takes writes");
                }
                acked.push((id, began.elapsed()));
            }
            acked
        });
        for round in 0..20 {
            let (from, to) = (&nodes[round % 2], &nodes[1 - round % 2]);
            wait_in_sync_under_load(to);
            let began = Instant::now();
            to.promote().unwrap_or_else(|error| panic!("round {round}: {error}"));
            longest = longest.max(began.elapsed());
            assert!(to.is_primary());
            eventually("the old one is a replica", || !from.is_primary());
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        writer.join().unwrap()
    });
    wait_in_sync(&nodes[0], &nodes[1..]);
    let gap = acked.iter().map(|(_, took)| *took).max().unwrap();
    println!("{} commits, longest write gap {gap:?}, longest promote {longest:?}", acked.len());
    for node in &nodes {
        assert_eq!(node.count(), acked.len() as i64);
    }
}

/// So that a failed test ends.
struct StopWhenDropped<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Positions move all the time: it follows, and had everything at some moment.
fn wait_in_sync_under_load(replica: &TestNode) {
    eventually("the replica is in sync", || {
        replica.primary().is_some_and(|name| name != replica.name()) && replica.lag().is_some()
    });
}
