//! Transactions that the primary does not have are kept, told, and gone back on.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use litefs_node::{Node, Primary};
use litefs_store::OsStorage;

use crate::support::{TestNode, assert_same, count, eventually, fill, insert_each, pos, sql};

/// A primary, and its replica that has been primary by itself for a while and is stopped.
fn apart(own: impl Fn(&Node)) -> (TestNode, TestNode) {
    let primary = TestNode::primary();
    let mut replica = TestNode::replica_of(&primary);
    insert_each(&primary, "app.db", 10);
    assert_same(&primary, &replica, "app.db");
    replica.stop();
    let addr = primary.addr();
    replica.restart(|mut config| {
        config.lease.candidate = true;
        config.lease.advertise_url = None;
        config
    });
    own(&replica);
    replica.crash();
    replica.config = replica.config.clone().replica_of(&format!("http://{addr}")).unwrap();
    (primary, replica)
}

/// The kept records, as (first, last) transaction by their names.
fn kept(node: &TestNode, name: &str) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    for kept in node.db(name).diverged().unwrap() {
        litefs_ltx_verify(&kept.whole_file().expect("there is room for the whole database"));
        for path in kept.records(&OsStorage).unwrap() {
            litefs_ltx_verify(&path);
            let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let (first, last) = stem.split_once('-').unwrap();
            let hex = |text| u64::from_str_radix(text, 16).unwrap();
            ranges.push((hex(first), hex(last)));
        }
    }
    ranges.sort_unstable();
    ranges
}

fn litefs_ltx_verify(path: &Path) {
    let file = std::io::BufReader::new(File::open(path).unwrap());
    let mut decoder = litefs_store::ltx::Decoder::new(file).unwrap();
    let mut page = vec![0; decoder.header().page_size.len()];
    while decoder.next_page(&mut page).unwrap().is_some() {}
    decoder.finish().unwrap();
}

#[test]
fn transactions_that_the_primary_does_not_have_are_kept_and_gone_back_on() {
    let (primary, mut replica) = apart(|own| insert_each(own, "app.db", 3));
    insert_each(&primary, "app.db", 7);
    let common = 11; // CREATE TABLE and ten rows
    replica.restart(|config| config);
    assert_same(&primary, &replica, "app.db");
    assert_eq!(count(&replica, "app.db"), 17);
    let own: Vec<(u64, u64)> = (1..=3).map(|n| (common + n, common + n)).collect();
    assert_eq!(kept(&replica, "app.db"), own, "exactly its own three transactions");
    // Once, not again with each connection.
    replica.stop();
    replica.restart(|config| config);
    insert_each(&primary, "app.db", 1);
    assert_same(&primary, &replica, "app.db");
    assert_eq!(replica.db("app.db").diverged().unwrap().len(), 1);
}

#[test]
fn a_replica_that_is_only_ahead_goes_back_too() {
    let (primary, mut replica) = apart(|own| insert_each(own, "app.db", 3));
    replica.restart(|config| config);
    eventually("the replica went back", || {
        replica.position("app.db") == primary.position("app.db")
    });
    assert_eq!(kept(&replica, "app.db").len(), 3);
    insert_each(&primary, "app.db", 2);
    assert_same(&primary, &replica, "app.db");
}

#[test]
fn past_the_mark_everything_is_kept_and_a_snapshot_taken() {
    let (primary, mut replica) = apart(|own| {
        insert_each(own, "app.db", 3);
        let name = litefs_store::DbName::new("app.db").unwrap();
        own.store().database(&name).unwrap().fold().unwrap();
    });
    insert_each(&primary, "app.db", 7);
    replica.restart(|config| config);
    assert_same(&primary, &replica, "app.db");
    assert_eq!(count(&replica, "app.db"), 17);
    assert_eq!(kept(&replica, "app.db"), vec![(12, 12), (13, 13), (14, 14)]);
}

#[test]
fn readers_of_the_replica_keep_their_state_while_it_goes_back() {
    let (primary, mut replica) = apart(|own| insert_each(own, "app.db", 3));
    insert_each(&primary, "app.db", 7);
    // Not yet connected: nobody listens at the address that it is given.
    let url = replica.config.lease.advertise_url.clone().unwrap();
    replica.restart(|config| config.replica_of("http://127.0.0.1:9").unwrap());
    let conn = replica.open("app.db").unwrap();
    conn.execute_batch("BEGIN").unwrap();
    let rows = |conn: &litefs_vfs::rusqlite::Connection| -> i64 {
        conn.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
    };
    assert_eq!(rows(&conn), 13);
    replica.assign_primary(Primary::At(url)).unwrap();
    assert_same(&primary, &replica, "app.db");
    assert_eq!(rows(&conn), 13, "the open transaction reads on");
    conn.execute_batch("COMMIT").unwrap();
    assert_eq!(rows(&conn), 17);
}

#[test]
fn a_database_that_the_primary_does_not_have_is_kept_until_it_makes_one() {
    let (primary, mut replica) = apart(|own| fill(own, "own.db", 5, 100));
    replica.restart(|config| config);
    insert_each(&primary, "app.db", 1);
    assert_same(&primary, &replica, "app.db");
    assert_eq!(count(&replica, "own.db"), 5);
    assert_eq!(primary.position("own.db"), None);
    eventually("it holds back no lag", || replica.lag().is_some());
    sql(&primary, "own.db", "CREATE TABLE t (x); INSERT INTO t VALUES (1)");
    eventually("the primary's arrives", || {
        replica.position("own.db") == primary.position("own.db")
    });
    assert_same(&primary, &replica, "own.db");
    assert_eq!(count(&replica, "own.db"), 1);
    let own = replica.db("own.db").diverged().unwrap();
    assert_eq!((own.len(), own[0].whole), (1, true), "what it had is kept");
}

#[test]
fn a_damaged_database_is_repaired_from_the_primary_and_the_others_flow() {
    let primary = TestNode::primary();
    let mut replica = TestNode::replica_of(&primary);
    fill(&primary, "app.db", 2000, 1000);
    fill(&primary, "other.db", 10, 100);
    assert_same(&primary, &replica, "app.db");
    assert_same(&primary, &replica, "other.db");
    replica.stop();
    let base = replica.dir.path().join("dbs/app.db/base");
    let file = File::options().write(true).open(&base).unwrap();
    file.write_all_at(&[0x5a; 64], 100 * 4096 + 1000).unwrap();
    drop(file);
    replica.restart(|config| config);
    let conn = replica.open("app.db").unwrap();
    let scan = || conn.query_row("SELECT sum(length(x)) FROM t", [], |row| row.get::<_, i64>(0));
    let (mut refused, mut seen) = (0, None);
    eventually("the scan works again", || match scan() {
        Ok(sum) => {
            assert_eq!(sum, 2_000_000, "wrong content was served");
            true
        }
        Err(error) => {
            refused += 1;
            let reason = replica.db("app.db").quarantined();
            if seen != Some((error.to_string(), reason.clone())) {
                eprintln!("refused: {error}; quarantined: {reason:?}");
                seen = Some((error.to_string(), reason));
            }
            false
        }
    });
    assert!(refused > 0, "the damage was not noticed");
    insert_each(&primary, "app.db", 1);
    insert_each(&primary, "other.db", 1);
    assert_same(&primary, &replica, "app.db");
    assert_same(&primary, &replica, "other.db");
    let wanted = pos(&primary, "app.db");
    assert_eq!(replica.db("app.db").quarantined(), None, "at {wanted}");
}
