//! Commits that wait for replicas, or are refused without them, between real nodes.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use litefs_node::config::{Bounds, OnTimeout, ReplicationMode, SyncSettings};
use litefs_node::{Config, Node, Primary};
use litefs_store::DbName;

use crate::support::{LONG, TestNode, assert_same, count, eventually, fill, pos, sql};

fn sync(replicas: usize, on_timeout: OnTimeout) -> ReplicationMode {
    let timeout = Duration::from_millis(500);
    ReplicationMode::Sync(SyncSettings { replicas, timeout, on_timeout })
}

fn node(mode: ReplicationMode) -> TestNode {
    TestNode::start(|config| config.replicating(mode))
}

fn replica(mode: ReplicationMode, primary: &Node) -> TestNode {
    let url = format!("http://{}", primary.addr());
    TestNode::start(|config: Config| config.replicating(mode).replica_of(&url).unwrap())
}

/// Runs a statement on another thread.
fn start(node: &Node, text: &'static str) -> mpsc::Receiver<litefs_vfs::rusqlite::Result<()>> {
    let (conn, (tell, told)) = (node.open("app.db").unwrap(), mpsc::channel());
    thread::spawn(move || tell.send(conn.execute_batch(text)));
    told
}

#[test]
fn an_acknowledged_commit_is_on_the_replicas_disk() {
    let mode = sync(2, OnTimeout::Wait);
    let primary = node(mode);
    let replicas = [replica(mode, &primary), replica(mode, &primary)];
    let conn = primary.open("app.db").unwrap();
    // Durable on each disk, whatever the client asks for.
    conn.execute_batch("PRAGMA synchronous=OFF; CREATE TABLE t (x)").unwrap();
    for _ in 0..50 {
        conn.execute("INSERT INTO t VALUES (randomblob(100))", []).unwrap();
        let acknowledged = pos(&primary, "app.db");
        assert_eq!(primary.db("app.db").synced_pos(), acknowledged);
        for replica in &replicas {
            assert_eq!(replica.db("app.db").synced_pos(), acknowledged);
        }
    }
}

#[test]
fn an_import_waits_too() {
    let mode = sync(1, OnTimeout::Wait);
    let primary = node(mode);
    let plain = tempfile::tempdir().unwrap();
    let file = plain.path().join("plain.db");
    let conn = litefs_vfs::rusqlite::Connection::open(&file).unwrap();
    conn.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)").unwrap();
    drop(conn);
    let db = primary.store().create(&DbName::new("app.db").unwrap()).unwrap();
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(db.import(&mut std::fs::File::open(file).unwrap())));
    assert!(told.recv_timeout(Duration::from_millis(300)).is_err(), "acknowledged by nobody");
    let replica = replica(mode, &primary);
    let imported = told.recv_timeout(LONG).unwrap().unwrap();
    assert_eq!(replica.db("app.db").synced_pos(), imported);
}

#[test]
fn without_a_replica_a_commit_waits_and_readers_go_on() {
    let mode = sync(1, OnTimeout::Wait);
    let primary = node(mode);
    let told = start(&primary, "CREATE TABLE t (x)");
    // Beyond the timeout, which only warns.
    assert!(told.recv_timeout(Duration::from_millis(1500)).is_err());
    assert_eq!(count(&primary, "app.db"), 0);
    let replica = replica(mode, &primary);
    told.recv_timeout(LONG).unwrap().unwrap();
    assert_same(&primary, &replica, "app.db");
}

#[test]
fn without_a_replica_it_falls_back_and_returns_by_itself() {
    let mode = sync(1, OnTimeout::Async);
    let primary = node(mode);
    let begun = Instant::now();
    sql(&primary, "app.db", "CREATE TABLE t (x)");
    assert!(begun.elapsed() >= Duration::from_millis(500), "acknowledged without a wait");
    sql(&primary, "app.db", "INSERT INTO t VALUES (1)");
    let mut replica = replica(mode, &primary);
    let is_confirmed = |replica: &Node| {
        // Commits go on meanwhile, with or without.
        sql(&primary, "app.db", "INSERT INTO t VALUES (2)");
        let db = replica.store().database(&DbName::new("app.db").unwrap());
        db.is_some_and(|db| db.synced_pos() == pos(&primary, "app.db"))
    };
    eventually("commits wait for the replica again", || (0..20).all(|_| is_confirmed(&replica)));
    replica.stop();
    sql(&primary, "app.db", "INSERT INTO t VALUES (3)"); // falls back once more
    replica.restart(|config| config);
    assert_same(&primary, &replica, "app.db");
}

/// What a replica said before it reconnected is gone with the connection; of a database that does
/// not move, nothing reminds it.
#[test]
fn an_idle_database_is_acknowledged_as_synced_after_a_reconnect() {
    let primary = TestNode::primary();
    let mut replica = TestNode::replica_of(&primary);
    fill(&primary, "app.db", 3, 100);
    assert_same(&primary, &replica, "app.db");
    replica.stop();
    replica.restart(|config| config);
    let wanted = pos(&primary, "app.db");
    eventually("the acknowledgement", || {
        let acks: Vec<_> = primary.replicas().into_iter().flat_map(|peer| peer.acks).collect();
        acks.iter().any(|ack| ack.db.as_str() == "app.db" && ack.synced == wanted)
    });
}

#[test]
fn a_replica_that_has_everything_takes_a_lost_members_place() {
    let mode = sync(1, OnTimeout::Wait);
    let primary = node(mode);
    let mut replicas = [replica(mode, &primary), replica(mode, &primary)];
    sql(&primary, "app.db", "CREATE TABLE t (x)");
    for round in 0..4 {
        replicas[round % 2].stop();
        for _ in 0..5 {
            sql(&primary, "app.db", "INSERT INTO t VALUES (1)");
            let other = &replicas[(round + 1) % 2];
            assert_eq!(other.db("app.db").synced_pos(), pos(&primary, "app.db"));
        }
        replicas[round % 2].restart(|config| config);
        assert_same(&primary, &replicas[round % 2], "app.db");
    }
}

#[test]
fn the_end_of_the_role_ends_the_wait_with_an_error() {
    let mode = sync(1, OnTimeout::Wait);
    let (old, new) = (node(mode), node(mode));
    let told = start(&old, "CREATE TABLE t (x)");
    eventually("it is published", || old.position("app.db").is_some());
    old.assign_primary(Primary::At(new.addr().into())).unwrap();
    let error = told.recv_timeout(LONG).unwrap().unwrap_err();
    assert!(error.to_string().contains("disk I/O error"), "{error}");
}

#[test]
fn bounded_refuses_commits_without_a_near_replica_and_recovers() {
    let bounds = Bounds { max_lag: Some(Duration::from_millis(300)), max_transactions: None };
    let mode = ReplicationMode::Bounded(bounds);
    let primary = node(mode);
    let conn = primary.open("app.db").unwrap();
    let refused = conn.execute_batch("CREATE TABLE t (x)").unwrap_err();
    assert!(refused.to_string().contains("readonly"), "{refused}");
    let mut replica = replica(mode, &primary);
    eventually("commits are allowed", || conn.execute_batch("CREATE TABLE t (x)").is_ok());
    replica.stop();
    eventually("commits are refused", || conn.execute("INSERT INTO t VALUES (1)", []).is_err());
    let refused = pos(&primary, "app.db");
    assert!(conn.execute("INSERT INTO t VALUES (2)", []).is_err());
    assert_eq!(pos(&primary, "app.db"), refused);
    assert!(count(&primary, "app.db") > 0, "reads go on");
    replica.restart(|config| config);
    eventually("it recovers", || conn.execute("INSERT INTO t VALUES (3)", []).is_ok());
}
