//! A Consul that hangs, is another one, or does not know this node; clusters that do not fit.

use std::time::{Duration, Instant};

use litefs_node::config::ConsulConfig;

use super::client::certificates;
use super::consul::Consul;
use super::daemon::eventually;
use super::nodes::{TestNode, cluster, wait_in_sync};

/// What the API says of the lease.
fn lease(node: &TestNode) -> litefs_node::http::LeaseInfo {
    super::daemon::info(&format!("http://{}", node.addr())).unwrap().lease
}

#[test]
fn while_consul_hangs_nobody_writes_and_all_read_and_then_it_goes_on() {
    let (consul, nodes) = cluster(2);
    let (primary, replica) = (&nodes[0], &nodes[1]);
    primary.execute("INSERT INTO t (x) VALUES (1)").unwrap();
    wait_in_sync(primary, [replica]);
    consul.freeze();
    let frozen = Instant::now();
    eventually("the right ends", || primary.execute("INSERT INTO t (x) VALUES (2)").is_err());
    // The right lasts 3.5 s from the last beat's request.
    assert!(frozen.elapsed() < Duration::from_secs(5), "{:?}", frozen.elapsed());
    let refused = primary.execute("INSERT INTO t (x) VALUES (2)").unwrap_err();
    assert!(refused.contains("readonly"), "{refused}");
    let rows = primary.count();
    assert!(rows >= 2);
    eventually("the replica reads all", || replica.count() == rows);
    assert!(!replica.is_primary());
    consul.thaw();
    eventually("somebody writes again", || {
        nodes.iter().any(|node| node.execute("INSERT INTO t (x) VALUES (3)").is_ok())
    });
    let primaries: Vec<_> = nodes.iter().filter(|node| node.is_primary()).collect();
    assert_eq!(primaries.len(), 1);
    let others = nodes.iter().filter(|node| !node.is_primary());
    wait_in_sync(primaries[0], others);
}

#[test]
fn a_node_without_data_never_takes_the_lease_of_a_cluster() {
    let (consul, mut nodes) = cluster(1);
    nodes[0].stop();
    let empty = TestNode::start(&consul);
    eventually("it says why", || lease(&empty).reason.contains("this node is new"));
    assert!(!empty.is_primary());
    assert_eq!(empty.store().cluster_id(), None);
    // The one with the data comes back and serves it.
    nodes[0].run();
    wait_in_sync(&nodes[0], [&empty]);
    assert_eq!(empty.store().cluster_id(), nodes[0].store().cluster_id());
}

#[test]
fn a_node_of_another_cluster_neither_follows_nor_leads() {
    let (_other, mut strangers) = cluster(1);
    let (consul, nodes) = cluster(1);
    let mut stranger = strangers.remove(0);
    stranger.stop();
    stranger.config.lease.consul = nodes[0].config.lease.consul.clone();
    stranger.run();
    let ours = nodes[0].store().cluster_id().unwrap();
    eventually("it says why", || {
        let reason = lease(&stranger).reason;
        reason.contains("cluster") && reason.contains(&ours)
    });
    assert!(!stranger.is_primary() && nodes[0].is_primary());
    assert_eq!(stranger.primary(), None);
    assert_ne!(stranger.store().cluster_id(), Some(ours));
    drop(consul);
}

#[test]
fn a_consul_that_is_not_there_is_waited_for_with_reads_going_on() {
    let mut node = {
        let (_consul, mut nodes) = cluster(1);
        nodes.remove(0)
    };
    eventually("it stops writing", || node.execute("INSERT INTO t (x) VALUES (1)").is_err());
    let rows = node.count();
    node.stop();
    node.run();
    assert_eq!(node.count(), rows);
    assert!(node.execute("INSERT INTO t (x) VALUES (1)").is_err());
    eventually("it says what is wrong", || lease(&node).trouble.is_some());
    let (role, trouble) = (lease(&node).role, lease(&node).trouble.unwrap());
    assert_eq!(role, "starting");
    assert!(trouble.contains("lease.consul.url"), "{trouble}");
}

#[test]
fn a_token_opens_a_guarded_consul_and_a_wrong_one_is_explained() {
    const TOKEN: &str = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee";
    let consul = Consul::start_guarded(TOKEN, certificates);
    let node = |token: &str| {
        let mut node = TestNode::new(&consul, |config| {
            let url = format!("{}/a/prefix", consul.url_with(token));
            let mut settings = ConsulConfig::new(url.parse().unwrap(), "k");
            settings.ca = Some(consul.file("ca.pem"));
            config.lease.consul = Some(settings);
        });
        node.run();
        node
    };
    let (known, unknown) = (node(TOKEN), node("wrong"));
    eventually("the one with the token is primary", || known.is_primary());
    eventually("the other is told what to do", || {
        lease(&unknown).trouble.is_some_and(|text| text.contains("CONSUL_HTTP_TOKEN"))
    });
    assert!(!unknown.is_primary());
}

#[test]
fn a_demoted_primary_leaves_the_role_to_another_and_stays_away_for_a_while() {
    let (_consul, nodes) = cluster(2);
    nodes[0].demote().unwrap();
    assert!(!nodes[0].is_primary());
    eventually("the other is primary", || nodes[1].is_primary());
    nodes[1].execute("INSERT INTO t (x) VALUES (1)").unwrap();
    let text = nodes[0].demote().unwrap_err().to_string();
    assert!(text.contains("not the primary"), "{text}");
    wait_in_sync(&nodes[1], &nodes[..1]);
    // An operator's word goes before the delay.
    nodes[0].promote().unwrap();
    assert!(nodes[0].is_primary());
}

#[test]
fn a_node_with_lease_promote_takes_the_role_over_once_it_is_in_sync() {
    let (consul, nodes) = cluster(1);
    nodes[0].execute("INSERT INTO t (x) VALUES (1)").unwrap();
    let mut eager = TestNode::new(&consul, |config| config.lease.promote = true);
    eager.run();
    eventually("it is primary", || eager.is_primary());
    assert_eq!(eager.count(), 1);
    wait_in_sync(&eager, &nodes);
}

#[test]
fn a_node_that_is_no_candidate_never_leads_and_says_so() {
    let (consul, mut nodes) = cluster(1);
    let mut reader = TestNode::new(&consul, |config| config.lease.candidate = false);
    reader.run();
    wait_in_sync(&nodes[0], [&reader]);
    let url = format!("http://{}", reader.addr());
    let output = super::daemon::litefs(&["promote", "--url", &url]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("not a candidate"), "{text}");
    nodes[0].stop();
    eventually("it says why", || lease(&reader).reason.contains("no candidate"));
    assert!(!reader.is_primary());
    assert_eq!(reader.count(), 0);
}
