//! A replica gets to the primary's positions from wherever it is.

use std::time::{Duration, Instant};

use litefs_node::Node;
use litefs_store::DbName;

use crate::support::{LONG, TestNode, assert_same, count, eventually, fill, insert_each, pos, sql};

#[test]
fn a_commit_is_readable_on_the_replica_and_the_replica_is_read_only() {
    let primary = TestNode::primary();
    let replica = TestNode::replica_of(&primary);
    assert!(primary.is_primary() && !replica.is_primary());
    fill(&primary, "app.db", 3, 100);
    assert_same(&primary, &replica, "app.db");
    assert_eq!(count(&replica, "app.db"), 3);
    let error = replica.open("app.db").unwrap().execute("DELETE FROM t", []).unwrap_err();
    assert!(error.to_string().contains("readonly"), "{error}");
    let conn = replica.open("app.db").unwrap();
    fill(&primary, "app.db", 2, 100);
    replica.wait_for("app.db", pos(&primary, "app.db"), LONG).unwrap();
    let rows: i64 = conn.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 5, "an open connection sees the new rows");
}

#[test]
fn a_late_replica_gets_what_was_there_before() {
    let primary = TestNode::primary();
    fill(&primary, "small.db", 10, 100);
    fill(&primary, "large.db", 3000, 4000);
    for db in ["small.db", "large.db"] {
        // Folded, and the log cut: records alone cannot help.
        primary.db(db).fold().unwrap();
    }
    let replica = TestNode::replica_of(&primary);
    assert_same(&primary, &replica, "small.db");
    assert_same(&primary, &replica, "large.db");
    eventually("the replica is in sync", || replica.lag().is_some());
    let connected = primary.replicas();
    assert_eq!(connected.len(), 1);
    eventually("all is acknowledged", || primary.replicas()[0].unacknowledged == 0);
}

#[test]
fn a_replica_that_was_away_gets_the_records_it_missed() {
    let primary = TestNode::primary();
    let mut replica = TestNode::replica_of(&primary);
    insert_each(&primary, "app.db", 5);
    assert_same(&primary, &replica, "app.db");
    replica.stop();
    insert_each(&primary, "app.db", 20);
    replica.restart(|config| config);
    assert_same(&primary, &replica, "app.db");
    // One record for each transaction: it was not far behind.
    assert_eq!(replica.db("app.db").stats().commits, 20);
}

#[test]
fn a_replica_that_was_away_for_long_gets_one_compacted_record() {
    let primary = TestNode::primary();
    let mut replica = TestNode::replica_of(&primary);
    insert_each(&primary, "app.db", 5);
    assert_same(&primary, &replica, "app.db");
    replica.stop();
    insert_each(&primary, "app.db", 1000);
    replica.restart(|config| config);
    assert_same(&primary, &replica, "app.db");
    let applied = replica.db("app.db").stats().commits;
    assert!(applied < 100, "{applied} records were applied");
    assert!(replica.db("app.db").diverged().unwrap().is_empty());
}

#[test]
fn a_replica_that_was_switched_off_beyond_the_primarys_log_keeps_no_copy() {
    let primary = TestNode::start(|mut config| {
        config.data.retention = Duration::ZERO;
        config
    });
    let mut replica = TestNode::replica_of(&primary);
    insert_each(&primary, "app.db", 5);
    assert_same(&primary, &replica, "app.db");
    insert_each(&primary, "app.db", 5);
    assert_same(&primary, &replica, "app.db");
    eventually("the replica knows that it is in sync", || replica.lag().is_some());
    replica.stop();
    insert_each(&primary, "app.db", 50);
    let missing = pos(&primary, "app.db");
    eventually("the log is cut", || {
        insert_each(&primary, "app.db", 1);
        primary.db("app.db").fold().unwrap();
        primary.db("app.db").log_start().unwrap().txid > missing.txid
    });
    replica.restart(|config| config);
    assert_same(&primary, &replica, "app.db");
    assert!(replica.db("app.db").diverged().unwrap().is_empty());
}

/// An import is a snapshot on the replica, which names no author.
#[test]
fn a_replica_whose_newest_content_was_imported_keeps_no_copy_either() {
    let primary = TestNode::start(|mut config| {
        config.data.retention = Duration::ZERO;
        config
    });
    let mut replica = TestNode::replica_of(&primary);
    insert_each(&primary, "app.db", 1);
    assert_same(&primary, &replica, "app.db");
    eventually("the replica knows that it is in sync", || replica.lag().is_some());
    let mut file = Vec::new();
    primary.db("app.db").export(&mut file).unwrap();
    // Before and after the word that all has arrived.
    for name in ["app.db", "new.db"] {
        primary.store().create(&DbName::new(name).unwrap()).unwrap();
        primary.db(name).import(&mut &file[..]).unwrap();
        assert_same(&primary, &replica, name);
    }
    let away = ["app.db", "new.db"].map(|name| (name, pos(&replica, name)));
    replica.stop();
    for (name, at) in away {
        eventually("the log is cut", || {
            insert_each(&primary, name, 1);
            primary.db(name).fold().unwrap();
            primary.db(name).log_start().unwrap().txid > at.txid
        });
    }
    replica.restart(|config| config);
    for name in ["app.db", "new.db"] {
        assert_same(&primary, &replica, name);
        assert!(replica.db(name).diverged().unwrap().is_empty(), "{name}");
    }
}

#[test]
fn three_replicas_follow_writers_on_several_databases() {
    let primary = TestNode::primary();
    let replicas: Vec<TestNode> = (0..3).map(|_| TestNode::replica_of(&primary)).collect();
    let names = ["a.db", "b.db", "c.db", "d.db"];
    std::thread::scope(|scope| {
        for name in names {
            let node: &Node = &primary;
            scope.spawn(move || insert_each(node, name, 150));
        }
    });
    for replica in &replicas {
        names.iter().for_each(|name| assert_same(&primary, replica, name));
    }
    assert_eq!(primary.replicas().len(), 3);
}

#[test]
fn a_dropped_database_goes_and_may_come_back_with_another_page_size() {
    let primary = TestNode::primary();
    let replica = TestNode::replica_of(&primary);
    fill(&primary, "app.db", 10, 1000);
    assert_same(&primary, &replica, "app.db");
    let dropped = primary.db("app.db").drop_database().unwrap();
    assert_eq!(replica.wait_for("app.db", dropped, LONG).unwrap(), dropped);
    assert_eq!(replica.db("app.db").page_count(), 0);
    let late = TestNode::replica_of(&primary);
    sql(
        &primary,
        "app.db",
        "PRAGMA page_size = 1024; CREATE TABLE t (x); INSERT INTO t VALUES (1)",
    );
    assert_same(&primary, &replica, "app.db");
    assert_same(&primary, &late, "app.db");
    assert_eq!(replica.db("app.db").page_size().unwrap().get(), 1024);
}

#[test]
fn a_replica_with_a_filter_keeps_only_its_databases() {
    let primary = TestNode::primary();
    let url = format!("http://{}", primary.addr());
    let replica = TestNode::start(|config| {
        let mut config = config.replica_of(&url).unwrap();
        config.lease.databases =
            vec![DbName::new("b.db").unwrap(), DbName::new("late.db").unwrap()];
        config
    });
    for name in ["a.db", "b.db", "late.db", "z.db"] {
        fill(&primary, name, 3, 100);
    }
    assert_same(&primary, &replica, "b.db");
    assert_same(&primary, &replica, "late.db");
    assert_eq!(replica.position("a.db"), None);
    assert_eq!(replica.position("z.db"), None);
}

#[test]
fn a_large_transaction_holds_up_no_other_database() {
    let primary = TestNode::primary();
    let replica = TestNode::replica_of(&primary);
    insert_each(&primary, "busy.db", 1);
    assert_same(&primary, &replica, "busy.db");
    fill(&primary, "large.db", 1000, 100_000);
    let large = pos(&primary, "large.db");
    let conn = primary.open("busy.db").unwrap();
    let mut passed = 0;
    let deadline = Instant::now() + LONG;
    while replica.position("large.db") != Some(large) {
        conn.execute("INSERT INTO t (x) VALUES (1)", []).unwrap();
        replica.wait_for("busy.db", pos(&primary, "busy.db"), LONG).unwrap();
        passed += 1;
        assert!(Instant::now() < deadline, "the large transaction does not arrive");
    }
    assert!(passed >= 3, "only {passed} small transactions passed the large one");
    assert_same(&primary, &replica, "large.db");
}

#[test]
fn hundreds_of_databases_arrive_and_follow() {
    let primary = TestNode::primary();
    let names: Vec<String> = (0..300).map(|i| format!("db{i}.db")).collect();
    for name in &names {
        sql(&primary, name, "CREATE TABLE t (x); INSERT INTO t VALUES (1)");
    }
    let replica = TestNode::replica_of(&primary);
    for name in &names {
        replica.wait_for(name, pos(&primary, name), LONG).unwrap();
    }
    for name in &names {
        sql(&primary, name, "INSERT INTO t VALUES (2)");
    }
    for name in &names {
        let wanted = pos(&primary, name);
        assert_eq!(replica.wait_for(name, wanted, LONG).unwrap(), wanted);
    }
}

/// More than the connection's window and the appliers take at once: what waits for its turn must
/// not keep what is being applied from arriving.
#[test]
fn large_transactions_in_many_databases_at_once_all_arrive() {
    let primary = TestNode::primary();
    let mut replica = TestNode::replica_of(&primary);
    let names: Vec<String> = (0..24).map(|i| format!("db{i}.db")).collect();
    for name in &names {
        insert_each(&primary, name, 1);
        replica.wait_for(name, pos(&primary, name), LONG).unwrap();
    }
    replica.stop();
    for name in &names {
        fill(&primary, name, 120, 100_000);
    }
    replica.restart(|config| config);
    let mut role = replica.role();
    eventually("the replica is welcomed", || role.borrow_and_update().primary_hostname.is_some());
    for name in &names {
        replica.wait_for(name, pos(&primary, name), LONG).unwrap();
    }
    assert!(
        !role.has_changed().unwrap(),
        "the connection broke: {:?}",
        replica.disconnected_because()
    );
}
