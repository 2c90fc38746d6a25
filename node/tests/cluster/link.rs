//! Connections and roles: who is followed, who is refused, and what becomes of both.

use std::time::Duration;

use litefs_node::{Node, Primary};
use litefs_store::Pos;

use crate::support::{
    TestNode, assert_same, copy_dir, count, eventually, fill, insert_each, pos, sql,
};

fn refusal(replica: &Node) -> String {
    eventually("the replica knows why", || replica.disconnected_because().is_some());
    replica.disconnected_because().unwrap()
}

#[test]
fn a_replica_finds_its_primary_again_after_a_restart() {
    let mut primary = TestNode::primary();
    let replica = TestNode::replica_of(&primary);
    fill(&primary, "app.db", 3, 100);
    assert_same(&primary, &replica, "app.db");
    let addr = primary.addr();
    primary.stop();
    eventually("the replica noticed", || replica.role().borrow().primary_hostname.is_none());
    assert_eq!(count(&replica, "app.db"), 3, "reads go on");
    primary.restart(|config| config.listen(addr));
    fill(&primary, "app.db", 4, 100);
    assert_same(&primary, &replica, "app.db");
    assert_eq!(count(&replica, "app.db"), 7);
    assert_eq!(replica.disconnected_because(), None);
    assert!(replica.role().borrow().primary_hostname.is_some());
}

#[test]
fn the_role_is_handed_over_and_back_without_a_loss() {
    let first = TestNode::primary();
    let second = TestNode::replica_of(&first);
    insert_each(&first, "app.db", 10);
    let nodes = [&first, &second];
    for round in 0..4 {
        let (old, new) = (nodes[round % 2], nodes[(round + 1) % 2]);
        old.store().gate().close("handing over");
        assert_same(old, new, "app.db");
        new.assign_primary(Primary::ThisNode).unwrap();
        old.assign_primary(Primary::At(new.addr().into())).unwrap();
        assert!(new.is_primary() && !old.is_primary());
        assert!(old.open("app.db").unwrap().execute("DELETE FROM t", []).is_err());
        insert_each(new, "app.db", 5);
        assert_same(new, old, "app.db");
        assert_eq!(count(old, "app.db"), 10 + 5 * (round as i64 + 1));
        assert!(new.db("app.db").diverged().unwrap().is_empty());
    }
    assert_eq!(first.store().epoch(), 5);
    assert_eq!(second.store().epoch(), 5);
}

#[test]
fn another_cluster_is_refused_and_nothing_changes() {
    let primary = TestNode::primary();
    let other = TestNode::primary();
    let mut replica = TestNode::replica_of(&primary);
    fill(&primary, "app.db", 3, 100);
    assert_same(&primary, &replica, "app.db");
    let before = pos(&replica, "app.db");
    fill(&other, "app.db", 9, 100);
    fill(&other, "more.db", 9, 100);
    replica.stop();
    let url = format!("http://{}", other.addr());
    replica.restart(|config| config.replica_of(&url).unwrap());
    let text = refusal(&replica);
    assert!(text.contains("cluster"), "{text}");
    let ids = [&primary, &other].map(|node| node.store().cluster_id().unwrap());
    assert!(ids.iter().all(|id| text.contains(id)), "{text}");
    assert_eq!(pos(&replica, "app.db"), before);
    assert_eq!(replica.position("more.db"), None);
    assert!(other.replicas().is_empty());
}

#[test]
fn a_primary_of_an_older_epoch_is_refused() {
    let mut first = TestNode::primary();
    let mut second = TestNode::replica_of(&first);
    fill(&first, "app.db", 3, 100);
    assert_same(&first, &second, "app.db");
    let addr = first.addr();
    first.stop();
    second.assign_primary(Primary::ThisNode).unwrap();
    assert_eq!(second.store().epoch(), 2);
    insert_each(&second, "app.db", 1);
    second.stop();
    // The first one never heard of epoch 2.
    first.restart(|config| config.listen(addr));
    second.restart(|config| config);
    let text = refusal(&second);
    assert!(text.contains("epoch 1") && text.contains("epoch 2"), "{text}");
    assert_eq!(count(&second, "app.db"), 4, "what the later primary committed is still there");
}

#[test]
fn a_replica_is_no_primary_and_says_who_is() {
    let primary = TestNode::primary();
    let replica = TestNode::replica_of(&primary);
    let lost = TestNode::replica_of(&replica);
    let text = refusal(&lost);
    assert!(text.contains("not the primary"), "{text}");
    assert!(text.contains(&primary.addr().to_string()), "{text}");
    assert_eq!(lost.lag(), None);
}

#[test]
fn a_node_that_dials_a_copy_of_itself_is_refused() {
    let mut primary = TestNode::primary();
    fill(&primary, "app.db", 3, 100);
    let addr = primary.addr();
    primary.stop();
    let copy = tempfile::tempdir().unwrap();
    copy_dir(primary.dir.path(), copy.path());
    primary.restart(|config| config.listen(addr));
    let url = format!("http://{addr}");
    let twin = TestNode::start(|mut config| {
        config.data.dir = copy.path().to_owned();
        config.replica_of(&url).unwrap()
    });
    let text = refusal(&twin);
    assert!(text.contains("node id"), "{text}");
}

#[test]
fn nobody_answers_and_the_replica_says_so() {
    let mut primary = TestNode::primary();
    let replica = TestNode::replica_of(&primary);
    fill(&primary, "app.db", 1, 1);
    assert_same(&primary, &replica, "app.db");
    eventually("the replica knows that it is in sync", || replica.lag().is_some());
    primary.stop();
    assert!(!refusal(&replica).is_empty());
    let lag = replica.lag().expect("it was in sync once");
    eventually("the lag grows", || replica.lag().unwrap() > lag + Duration::from_millis(50));
}

#[test]
fn waiting_ends_with_an_error_when_nothing_comes() {
    let primary = TestNode::primary();
    let replica = TestNode::replica_of(&primary);
    fill(&primary, "app.db", 1, 1);
    let here = pos(&primary, "app.db");
    let soon = Duration::from_millis(30);
    let beyond = Pos::new(here.txid.next(), here.checksum);
    assert!(primary.wait_for("app.db", beyond, soon).is_err());
    assert!(replica.wait_for("none.db", here, soon).is_err());
    assert_same(&primary, &replica, "app.db");
    let forged = Pos::new(here.txid, litefs_store::Checksum::EMPTY);
    let error = replica.wait_for("app.db", forged, soon).unwrap_err();
    assert!(error.to_string().contains("history"), "{error}");
}

#[test]
fn a_node_may_be_started_and_dropped_within_another_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let primary = TestNode::primary();
        let replica = TestNode::replica_of(&primary);
        sql(&primary, "app.db", "CREATE TABLE t (x)");
        assert_same(&primary, &replica, "app.db");
        replica.shutdown().unwrap();
        replica.shutdown().unwrap();
        assert!(replica.assign_primary(Primary::ThisNode).is_err());
    });
}
