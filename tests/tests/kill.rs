//! kill -9 at any moment loses no acknowledged commit and leaves nothing half done.
//!
//! `LITEFS_KILLS=10000 cargo nextest run -p litefs-tests kill` for more than the usual number.

#[path = "support/app.rs"]
mod app;
#[path = "support/ledger.rs"]
mod ledger;

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use app::App;
use ledger::{Ledger, rounds};
use litefs_store::{Options, Store};

fn rows(store: &Store) -> BTreeSet<i64> {
    let connection = litefs_vfs::open(store, "app.db").unwrap();
    let check: String =
        connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    let exists = "SELECT count(*) FROM sqlite_schema WHERE name = 't'";
    if connection.query_row(exists, [], |row| row.get::<_, i64>(0)).unwrap() == 0 {
        return BTreeSet::new();
    }
    let mut ids = connection.prepare("SELECT id FROM t").unwrap();
    ids.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// Large rows are deleted again later on; they count as present for the ledger.
fn with_deleted(mut present: BTreeSet<i64>) -> BTreeSet<i64> {
    let newest_sweep = present.iter().rev().find(|&&id| id % 60 == 0).copied().unwrap_or(0);
    present.extend((1..newest_sweep).filter(|id| id % 50 == 0 && id % 7 != 0));
    present
}

/// Times to live that are different in each round and the same in each run.
fn life(round: u32) -> Duration {
    Duration::from_micros(u64::from(round.wrapping_mul(2_654_435_761) >> 8) % 300_000)
}

fn kill_writers(synchronous: &str, kills: u32) {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut ledger = Ledger::default();
    for round in 0..kills {
        let first = ledger.next().to_string();
        let mut app = App::start(&["write", data.to_str().unwrap(), synchronous, &first]);
        if round % 3 > 0 {
            // At least one commit; every third round may be killed while it opens.
            ledger.note(&app.line().unwrap());
        }
        thread::sleep(life(round));
        app.kill().iter().for_each(|line| ledger.note(line));
        // Looking without folding, and every fourth time with.
        let background = round % 4 == 0;
        let store = Store::open_with(&data, Options { background, ..Options::default() }).unwrap();
        ledger.check(&with_deleted(rows(&store)));
        store.close().unwrap();
    }
    assert!(ledger.acked() > kills as usize, "only {} commits in {kills} lives", ledger.acked());
}

#[test]
fn killing_a_writer_that_syncs_loses_no_acknowledged_commit() {
    kill_writers("FULL", rounds("LITEFS_KILLS", 50));
}

#[test]
fn killing_a_writer_that_does_not_sync_loses_no_acknowledged_commit() {
    kill_writers("NORMAL", rounds("LITEFS_KILLS", 50));
}

/// A port that nobody uses now; far from those that the system hands out.
fn free_port(near: u16) -> u16 {
    (near..near + 200).find(|&port| UdpSocket::bind(("127.0.0.1", port)).is_ok()).unwrap()
}

fn export(data: &Path) -> (String, Vec<u8>) {
    let store = Store::open(data).unwrap();
    let db = store.databases().pop().unwrap();
    let mut bytes = Vec::new();
    let pos = db.export(&mut bytes).unwrap();
    (pos.to_string(), bytes)
}

#[test]
fn killing_primary_and_replica_in_turns_leaves_both_equal_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let [primary, replica] = ["primary", "replica"].map(|name| dir.path().join(name));
    let [first, second] = [free_port(21_300), free_port(21_600)].map(|p| format!("127.0.0.1:{p}"));
    let start_primary = || App::start(&["node", primary.to_str().unwrap(), &first]);
    let url = format!("http://{first}");
    let start_replica = || App::start(&["node", replica.to_str().unwrap(), &second, &url]);
    let mut ledger = Ledger::default();
    let (mut writer, mut follower) = (Some(start_primary()), Some(start_replica()));
    for round in 0..rounds("LITEFS_KILLS", 20) {
        thread::sleep(Duration::from_millis(100) + life(round));
        if round % 3 != 1 {
            writer.take().unwrap().kill().iter().for_each(|line| ledger.note(line));
            let options = Options { background: false, ..Options::default() };
            let store = Store::open_with(&primary, options).unwrap();
            ledger.check(&with_deleted(rows(&store)));
            drop(store);
            writer = Some(start_primary());
        }
        if round % 3 != 0 {
            follower.take().unwrap().kill();
            follower = Some(start_replica());
        }
    }
    writer.take().unwrap().kill().iter().for_each(|line| ledger.note(line));
    assert!(ledger.acked() > 0);

    // A primary that does not write any more, until the replica has caught up.
    let mut config = litefs_node::Config::new(&primary);
    config.http.addr = first.parse().unwrap();
    let node = litefs_node::Node::start(config).unwrap();
    let wanted = node.position("app.db").unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while node.replicas().iter().all(|peer| {
        !peer.acks.iter().any(|ack| ack.db.as_str() == "app.db" && ack.applied == wanted)
    }) {
        assert!(Instant::now() < deadline, "the replica does not catch up: {:?}", node.replicas());
        thread::sleep(Duration::from_millis(20));
    }
    node.shutdown().unwrap();
    follower.take().unwrap().kill();
    assert_eq!(export(&primary), export(&replica));
}

/// The replica with the newest position, killed too; it is the one that would be elected.
fn best_of(replicas: &[std::path::PathBuf]) -> Store {
    let open = |data: &std::path::PathBuf| {
        Store::open_with(data, Options { background: false, ..Options::default() }).unwrap()
    };
    let newest = |store: &Store| store.databases().first().map_or(0, |db| db.pos().txid.get());
    replicas.iter().map(open).max_by_key(newest).unwrap()
}

/// With `replication.mode: sync`, what was acknowledged is on a replica whatever becomes of the
/// primary, and of one replica at a time.
#[test]
fn killing_a_primary_that_waits_for_replicas_loses_nothing_even_with_its_disk() {
    let dir = tempfile::tempdir().unwrap();
    let primary = dir.path().join("primary");
    let replicas = ["a", "b"].map(|name| dir.path().join(name));
    let ports = [21_900, 22_100, 22_300].map(free_port);
    let addrs = ports.map(|port| format!("127.0.0.1:{port}"));
    let url = format!("http://{}", addrs[0]);
    let start_primary = || App::start(&["sync", primary.to_str().unwrap(), &addrs[0]]);
    let start_replica = |index: usize| {
        App::start(&["sync", replicas[index].to_str().unwrap(), &addrs[index + 1], &url])
    };
    let mut ledger = Ledger::default();
    for round in 0..rounds("LITEFS_KILLS", 8) {
        let mut writer = start_primary();
        let mut followers = [0, 1].map(|index| Some(start_replica(index)));
        // At least one commit in this life.
        let before = ledger.acked();
        while ledger.acked() == before {
            ledger.note(&writer.line().unwrap());
        }
        thread::sleep(life(round));
        if round % 2 == 1 {
            // One of them is the member that is waited for.
            let index = (round / 2 % 2) as usize;
            followers[index].take().unwrap().kill();
            followers[index] = Some(start_replica(index));
            thread::sleep(life(round + 1));
        }
        writer.kill().iter().for_each(|line| ledger.note(line));
        followers.into_iter().flatten().for_each(|follower| drop(follower.kill()));
        let best = best_of(&replicas);
        ledger.check_kept(&with_deleted(rows(&best)));
        drop(best);
        let options = Options { background: false, ..Options::default() };
        ledger.check(&with_deleted(rows(&Store::open_with(&primary, options).unwrap())));
    }
}
