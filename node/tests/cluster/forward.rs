//! Clients of replicas write, and the primary commits.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Instant;

use litefs_node::Node;
use litefs_vfs::rusqlite::TransactionBehavior;

use crate::support::{LONG, TestNode, assert_same, count, eventually, fill, pos, sql};

fn forwarding_replica(primary: &Node) -> TestNode {
    let url = format!("http://{}", primary.addr());
    let replica = TestNode::start(|config| {
        let mut config = config.replica_of(&url).unwrap();
        config.forward_writes = true;
        config
    });
    eventually("the replica is connected", || replica.lag().is_some());
    replica
}

#[test]
fn a_replicas_client_writes_and_reads_its_own_write_everywhere() {
    let primary = TestNode::primary();
    fill(&primary, "app.db", 3, 100);
    let replica = forwarding_replica(&primary);
    let bystander = TestNode::replica_of(&primary);
    fill(&replica, "app.db", 4, 100);
    assert_eq!(count(&replica, "app.db"), 7, "at once, on the replica");
    assert_eq!(count(&primary, "app.db"), 7);
    assert_same(&primary, &replica, "app.db");
    assert_same(&primary, &bystander, "app.db");
    // And the primary goes on by itself.
    fill(&primary, "app.db", 1, 100);
    assert_same(&primary, &replica, "app.db");
}

#[test]
fn a_replicas_client_creates_a_database_and_rolls_back() {
    let primary = TestNode::primary();
    let replica = forwarding_replica(&primary);
    sql(&replica, "new.db", "CREATE TABLE t (x); INSERT INTO t VALUES (1)");
    assert_eq!(count(&primary, "new.db"), 1);
    let at = pos(&primary, "new.db");
    sql(&replica, "new.db", "BEGIN; INSERT INTO t VALUES (2); ROLLBACK");
    assert_eq!(pos(&primary, "new.db"), at, "a rollback leaves no record");
    sql(&primary, "new.db", "INSERT INTO t VALUES (3)");
    assert_same(&primary, &replica, "new.db");
}

#[test]
fn a_transaction_larger_than_a_batch_is_forwarded() {
    let primary = TestNode::primary();
    let replica = forwarding_replica(&primary);
    fill(&replica, "big.db", 2000, 4000);
    assert_same(&primary, &replica, "big.db");
}

/// Each adds to a counter what it read there: a lost update would show.
#[test]
fn writers_on_all_nodes_take_turns_and_lose_no_update() {
    let primary = TestNode::primary();
    sql(&primary, "app.db", "CREATE TABLE t (n); INSERT INTO t VALUES (0)");
    let replicas = [forwarding_replica(&primary), forwarding_replica(&primary)];
    let nodes: [&Node; 3] = [&primary, &replicas[0], &replicas[1]];
    const ROUNDS: usize = 40;
    std::thread::scope(|scope| {
        for node in nodes {
            scope.spawn(move || {
                let mut conn = node.open("app.db").unwrap();
                conn.busy_timeout(LONG).unwrap();
                for _ in 0..ROUNDS {
                    let begun = conn.transaction_with_behavior(TransactionBehavior::Immediate);
                    let tx = begun.unwrap();
                    let n: i64 = tx.query_row("SELECT n FROM t", [], |row| row.get(0)).unwrap();
                    tx.execute("UPDATE t SET n = ?1", [n + 1]).unwrap();
                    tx.commit().unwrap();
                }
            });
        }
    });
    let n: i64 =
        primary.open("app.db").unwrap().query_row("SELECT n FROM t", [], |r| r.get(0)).unwrap();
    assert_eq!(n, 3 * ROUNDS as i64);
    for replica in &replicas {
        assert_same(&primary, replica, "app.db");
    }
}

/// The primary goes away in the middle: what the replica's client was told is there.
#[test]
fn no_forwarded_commit_that_was_acknowledged_is_lost_when_the_primary_crashes() {
    let mut primary = TestNode::primary();
    sql(&primary, "app.db", "CREATE TABLE t (id INTEGER PRIMARY KEY)");
    let replica = forwarding_replica(&primary);
    let stop = AtomicBool::new(false);
    let acknowledged = AtomicI64::new(0);
    let mut told = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let conn = replica.open("app.db").unwrap();
            let deadline = Instant::now() + LONG;
            while !stop.load(Ordering::Relaxed) && Instant::now() < deadline {
                let next = acknowledged.load(Ordering::Relaxed) + 1;
                match conn.execute("INSERT INTO t VALUES (?1)", [next]) {
                    Ok(_) => acknowledged.store(next, Ordering::Relaxed),
                    Err(_) => break,
                }
            }
        });
        eventually("commits are acknowledged", || acknowledged.load(Ordering::Relaxed) > 0);
        // Until the node has really stopped, there are more: they are not in what the crash leaves.
        told = acknowledged.load(Ordering::Relaxed);
        primary.crash();
        stop.store(true, Ordering::Relaxed);
    });
    primary.restart(|config| config);
    assert!(count(&primary, "app.db") >= told);
}

#[test]
fn without_a_primary_a_write_is_refused_with_the_reason_and_works_again_later() {
    let mut primary = TestNode::primary();
    sql(&primary, "app.db", "CREATE TABLE t (x)");
    let addr = primary.addr();
    let replica = forwarding_replica(&primary);
    let conn = replica.open("app.db").unwrap();
    conn.execute("INSERT INTO t VALUES (1)", []).unwrap();
    primary.stop();
    eventually("the replica notices", || replica.disconnected_because().is_some());
    let error = conn.execute("INSERT INTO t VALUES (2)", []).unwrap_err();
    assert!(error.to_string().contains("readonly"), "{error}");
    primary.restart(|config| config.listen(addr));
    eventually("it works again", || conn.execute("INSERT INTO t VALUES (3)", []).is_ok());
    assert_same(&primary, &replica, "app.db");
}
