//! Each metric of LiteFS's, and each of the times, moves when what it counts happens.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use crate::daemon::{done, eventually};
use crate::place::{Node, Place, is_plain, read_text};
use crate::shell::sql;

/// All values by their series, as a node serves them.
fn metrics(node: &Node) -> BTreeMap<String, f64> {
    let addr = node.url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(addr).unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let series = answer.lines().filter(|line| line.starts_with("litefs_"));
    let parse = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    };
    series.map(parse).collect()
}

/// Waits until each of these is larger than before.
fn assert_grown(node: &Node, before: &BTreeMap<String, f64>, series: &[&str]) {
    for name in series {
        eventually(&format!("{name} grows"), || {
            metrics(node)[*name] > before.get(*name).copied().unwrap_or(0.0)
        });
    }
}

#[test]
fn what_happens_is_counted() {
    if is_plain() {
        return;
    }
    let mut place = Place::prepare(2);
    let config = place.nodes[0].config.clone();
    // Segments go as soon as they are folded.
    let text = read_text(&config).replacen("data:\n", "data:\n  retention: 1ms\n", 1);
    fs::write(config, text).unwrap();
    place.nodes[0].start();
    let empty = metrics(&place.nodes[0]);
    assert_eq!(empty["litefs_db_count"], 0.0);
    for mode in ["delete", "wal"] {
        let setup =
            format!("PRAGMA journal_mode={mode}; CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
        sql(&place.db(&format!("{mode}.db")), &setup);
    }
    let alone = metrics(&place.nodes[0]);
    assert_eq!((alone["litefs_db_count"], alone["litefs_is_primary"]), (2.0, 1.0));
    assert_eq!((alone["litefs_http_stream_count"], alone["litefs_subscriber_count"]), (0.0, 0.0));
    place.nodes[1].start();
    place.wait_for_replica("wal.db");
    place.wait_for_replica("delete.db");
    let joined = metrics(&place.nodes[0]);
    for mode in ["delete", "wal"] {
        for _ in 0..3 {
            sql(&place.db(&format!("{mode}.db")), "INSERT INTO t(x) VALUES (randomblob(3000))");
        }
        place.wait_for_replica(&format!("{mode}.db"));
    }
    let primary = &place.nodes[0];
    let file = place.dir().join("plain.db");
    sql(&file, "CREATE TABLE t(x)");
    done(&["import", "--url", &primary.url, "--name", "imported.db", file.to_str().unwrap()]);
    assert_grown(primary, &alone, &["litefs_http_stream_count", "litefs_subscriber_count"]);
    let snapshots = "litefs_http_frame_send_count{db=\"imported.db\",type=\"ltx:snapshot\"}";
    assert_grown(primary, &alone, &[snapshots]);
    assert_grown(
        primary,
        &joined,
        &[
            "litefs_http_frame_send_count{db=\"delete.db\",type=\"ltx\"}",
            "litefs_db_txid{db=\"wal.db\"}",
            "litefs_db_commit_count{db=\"delete.db\"}",
            "litefs_db_database_write_count{db=\"delete.db\"}",
            "litefs_db_journal_write_count{db=\"delete.db\"}",
            "litefs_db_wal_write_count{db=\"wal.db\"}",
            "litefs_db_ltx_count{db=\"wal.db\"}",
            "litefs_db_synced_txid{db=\"delete.db\"}",
            "litefs_commit_seconds_count",
            "litefs_commit_seconds_sum",
            "litefs_sync_seconds_count",
            "litefs_replica_ack_seconds_count",
            "litefs_fold_seconds_count",
            "litefs_db_fold_count{db=\"wal.db\"}",
            "litefs_db_mark_txid{db=\"wal.db\"}",
        ],
    );
    let replica = metrics(&place.nodes[1]);
    assert_eq!(replica["litefs_is_primary"], 0.0);
    assert!(replica["litefs_lag_seconds"] >= 0.0 && replica["litefs_lag_seconds"] < 60.0);
    assert!(replica["litefs_db_lag_seconds{db=\"wal.db\"}"] < 60.0);
    let applied = replica["litefs_db_commit_count{db=\"wal.db\"}"];
    assert_eq!(applied, replica["litefs_db_txid{db=\"wal.db\"}"], "one record a transaction");
    // More than one segment, so that one can go.
    let name = "litefs_db_ltx_reap_count{db=\"wal.db\"}";
    eventually("the log is cut", || {
        sql(&place.db("wal.db"), "INSERT INTO t(x) VALUES (randomblob(100000))");
        metrics(&place.nodes[0])[name] > 0.0
    });
}
