//! The application that the tests kill: commits rows on a node and reports each one on standard
//! output, which survives it.
//!
//! `litefs-test-app write DATA SYNCHRONOUS FIRST_ID` commits through the VFS on a store of its own;
//! `litefs-test-app node DATA ADDR [PRIMARY_URL]` runs a node, and commits if it is the primary;
//! `litefs-test-app sync DATA ADDR [PRIMARY_URL]` does, in `replication.mode: sync`.
//!
//! Lines: `begin ID`, then `acked ID` or `undone ID`; a node prints `ready` when it runs.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::Write;
use std::thread;
use std::time::Duration;

use litefs_node::config::{OnTimeout, ReplicationMode, SyncSettings};
use litefs_node::{Config, Node};
use litefs_store::Store;
use litefs_vfs::rusqlite::{Connection, params};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["write", data, synchronous, first] => {
            let store = Store::open(data)?;
            let connection = litefs_vfs::open(&store, "app.db")?;
            connection.execute_batch(&format!("PRAGMA synchronous={synchronous}"))?;
            commit_for_ever(&connection, first.parse()?)
        }
        [kind @ ("node" | "sync"), data, addr] => {
            let node = Node::start(config(kind, data, addr)?)?;
            let connection = node.open("app.db")?;
            say("ready", 0);
            let first = highest(&connection)? + 1;
            commit_for_ever(&connection, first)
        }
        [kind @ ("node" | "sync"), data, addr, primary] => {
            let mut config = config(kind, data, addr)?.replica_of(primary)?;
            config.lease.reconnect_delay = Duration::from_millis(50);
            let _node = Node::start(config)?;
            say("ready", 0);
            loop {
                thread::sleep(Duration::from_secs(60));
            }
        }
        _ => Err("see the source for the arguments".into()),
    }
}

fn config(kind: &str, data: &str, addr: &str) -> Result<Config, Box<dyn Error>> {
    let config = Config::new(data).listen(addr.parse()?);
    if kind == "node" {
        return Ok(config);
    }
    let timeout = Duration::from_secs(60);
    let settings = SyncSettings { replicas: 1, timeout, on_timeout: OnTimeout::Wait };
    Ok(config.replicating(ReplicationMode::Sync(settings)))
}

/// One line in one write, so that a kill never leaves half of one.
fn say(what: &str, id: i64) {
    let line = format!("{what} {id}\n");
    std::io::stdout().write_all(line.as_bytes()).expect("the test reads");
}

fn highest(connection: &Connection) -> Result<i64, Box<dyn Error>> {
    create(connection)?;
    Ok(connection.query_row("SELECT coalesce(max(id), 0) FROM t", [], |row| row.get(0))?)
}

fn create(connection: &Connection) -> Result<(), Box<dyn Error>> {
    let sql = "CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v BLOB)";
    Ok(connection.execute_batch(sql)?)
}

/// Single rows, large rows that grow the database, transactions that spill, and rollbacks.
fn commit_for_ever(connection: &Connection, first: i64) -> Result<(), Box<dyn Error>> {
    create(connection)?;
    connection.execute_batch("PRAGMA cache_size=10")?;
    for id in first.. {
        say("begin", id);
        let large = if id % 50 == 0 { 200_000 } else { 100 };
        let undo = id % 7 == 0;
        connection.execute_batch("BEGIN IMMEDIATE")?;
        connection.execute("INSERT INTO t VALUES (?1, randomblob(?2))", params![id, large])?;
        if id % 60 == 0 {
            connection.execute("DELETE FROM t WHERE length(v) > 1000 AND id < ?1", [id])?;
        }
        connection.execute_batch(if undo { "ROLLBACK" } else { "COMMIT" })?;
        say(if undo { "undone" } else { "acked" }, id);
    }
    Ok(())
}
