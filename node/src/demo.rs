//! `litefs-node demo`: a primary and a replica in one process, and what they do, in figures.
//!
//! Everything is as in a real cluster: data directories (temporary ones), sockets on loopback,
//! mutual TLS with a certificate authority made for the occasion. Any difference from what is
//! promised is an error.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use litefs_store::Pos;
use litefs_vfs::rusqlite::{self, Connection};

use crate::config::{Config, ConfigError};
use crate::lease::Primary;
use crate::node::{Node, NodeError};
use crate::tls::{self, TlsError, TlsFiles};

const DB: &str = "demo.db";
const SINGLE_COMMITS: u32 = 5000;
const DELAY_SAMPLES: usize = 1000;
const BULK_ROWS: u32 = 100_000;
/// Nothing here takes a tenth of it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the demo did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The temporary directory or the report.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The settings of a node.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// SQLite.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// A promise that was not kept.
    #[error("{0}")]
    Broken(String),
}

/// Runs the demo and writes its report to `out`, line by line as it happens.
///
/// # Errors
/// Whatever is not as it should be.
pub fn run(out: &mut dyn Write) -> Result<(), DemoError> {
    let dir = tempfile::tempdir()?;
    let began = Instant::now();
    let (first, second) = start_cluster(dir.path(), out)?;
    commit_singly(&first, &second, out)?;
    commit_in_bulk(&first, &second, out)?;
    measure_delay(&first, &second, out)?;
    compare(&first, &second, out)?;
    hand_over(&first, &second, out)?;
    second.shutdown()?;
    first.shutdown()?;
    writeln!(out, "\nAll as it should be, in {:.1} s.", began.elapsed().as_secs_f64())?;
    Ok(())
}

fn start_cluster(dir: &Path, out: &mut dyn Write) -> Result<(Node, Node), DemoError> {
    let certs = dir.join("certs");
    std::fs::create_dir(&certs)?;
    let (ca, _) = tls::init_cluster(&certs, "demo")?;
    let config = |name: &str| -> Result<Config, DemoError> {
        let (cert, key) = tls::issue_node(&certs, name, &certs)?;
        let files = TlsFiles { ca: ca.clone(), cert, key };
        let config = Config::new(dir.join(name)).listen(([127, 0, 0, 1], 0).into());
        Ok(config.with_tls(files))
    };
    let first = Node::start(config("node-1")?)?;
    let url = format!("http://{}", first.addr());
    let second = Node::start(config("node-2")?.replica_of(&url)?)?;
    writeln!(out, "node-1, the primary, listens on {}", first.addr())?;
    writeln!(out, "node-2, a replica, listens on {} (QUIC, mutual TLS)", second.addr())?;
    Ok((first, second))
}

fn commit_singly(first: &Node, second: &Node, out: &mut dyn Write) -> Result<(), DemoError> {
    let conn = first.open(DB)?;
    conn.execute_batch(
        "PRAGMA synchronous = NORMAL; CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT)",
    )?;
    let mut insert = conn.prepare("INSERT INTO t (text) VALUES ('row')")?;
    let began = Instant::now();
    for _ in 0..SINGLE_COMMITS {
        insert.execute([])?;
    }
    let rate = f64::from(SINGLE_COMMITS) / began.elapsed().as_secs_f64();
    let pos = catch_up(first, second)?;
    expect_rows(second, u64::from(SINGLE_COMMITS))?;
    writeln!(out, "\n{SINGLE_COMMITS} single-row commits (NORMAL)  {rate:>9.0} commits/s")?;
    writeln!(out, "  both nodes are at          {pos}")?;
    Ok(())
}

fn commit_in_bulk(first: &Node, second: &Node, out: &mut dyn Write) -> Result<(), DemoError> {
    let mut conn = first.open(DB)?;
    let began = Instant::now();
    let tx = conn.transaction()?;
    {
        let mut insert = tx.prepare("INSERT INTO t (text) VALUES (hex(randomblob(40)))")?;
        for _ in 0..BULK_ROWS {
            insert.execute([])?;
        }
    }
    tx.commit()?;
    let committed = began.elapsed();
    let pos = catch_up(first, second)?;
    let arrived = began.elapsed() - committed;
    expect_rows(second, u64::from(SINGLE_COMMITS + BULK_ROWS))?;
    let (committed, arrived) = (millis(committed), millis(arrived));
    writeln!(out, "{BULK_ROWS} rows in one transaction  {committed:>9.1} ms")?;
    writeln!(out, "  readable on the replica after a further {arrived:.1} ms")?;
    writeln!(out, "  both nodes are at          {pos}")?;
    Ok(())
}

fn measure_delay(first: &Node, second: &Node, out: &mut dyn Write) -> Result<(), DemoError> {
    let conn = first.open(DB)?;
    conn.execute_batch("PRAGMA synchronous = NORMAL")?;
    let mut insert = conn.prepare("INSERT INTO t (text) VALUES ('row')")?;
    let mut delays = Vec::with_capacity(DELAY_SAMPLES);
    for _ in 0..DELAY_SAMPLES {
        insert.execute([])?;
        let committed = Instant::now();
        catch_up(first, second)?;
        delays.push(committed.elapsed());
    }
    delays.sort();
    let at = |percent: usize| millis(delays[DELAY_SAMPLES * percent / 100]);
    writeln!(out, "commit to visible on the replica  p50 {:.3} ms, p99 {:.3} ms", at(50), at(99))?;
    Ok(())
}

fn compare(first: &Node, second: &Node, out: &mut dyn Write) -> Result<(), DemoError> {
    let sum = "SELECT count(*) || ' rows, sum of lengths ' || sum(length(text)) FROM t";
    let ask = |node: &Node, sql: &str| -> Result<String, DemoError> {
        Ok(node.open(DB)?.query_row(sql, [], |row| row.get(0))?)
    };
    let (ours, theirs) = (ask(first, sum)?, ask(second, sum)?);
    if ours != theirs {
        return Err(broken(format!("node-1 has {ours}, node-2 has {theirs}")));
    }
    let check = ask(second, "PRAGMA integrity_check")?;
    if check != "ok" {
        return Err(broken(format!("integrity_check on node-2: {check}")));
    }
    writeln!(out, "both nodes read {ours}; integrity_check {check}")?;
    Ok(())
}

fn hand_over(first: &Node, second: &Node, out: &mut dyn Write) -> Result<(), DemoError> {
    let began = Instant::now();
    // No writer, then no difference, then the new primary, then the old one follows.
    first.store().gate().close("the primary role is being handed over");
    let before = catch_up(first, second)?;
    second.assign_primary(Primary::ThisNode)?;
    first.assign_primary(Primary::At(second.addr().into()))?;
    let took = millis(began.elapsed());
    if first.is_primary() || !second.is_primary() {
        return Err(broken("the primary role was not handed over".to_owned()));
    }
    writeln!(out, "\nprimary role handed from node-1 to node-2 in {took:.1} ms, at {before}")?;
    expect_read_only(&first.open(DB)?)?;
    second.open(DB)?.execute("INSERT INTO t (text) VALUES ('by the new primary')", [])?;
    let after = catch_up(second, first)?;
    if after.txid != before.txid.next() {
        return Err(broken(format!("the new primary went from {before} to {after}")));
    }
    let newest: String =
        first.open(DB)?.query_row("SELECT text FROM t ORDER BY id DESC", [], |row| row.get(0))?;
    if newest != "by the new primary" {
        return Err(broken(format!("node-1 reads {newest:?} as the newest row")));
    }
    writeln!(out, "  node-2 commits, node-1 reads it and refuses writes, both at {after}")?;
    Ok(())
}

/// Waits until `replica` is where `primary` is.
fn catch_up(primary: &Node, replica: &Node) -> Result<Pos, DemoError> {
    let wanted = primary.position(DB).ok_or_else(|| broken(format!("{DB} has no position")))?;
    let reached = replica.wait_for(DB, wanted, PATIENCE)?;
    if reached != wanted {
        return Err(broken(format!("the replica is at {reached}, the primary at {wanted}")));
    }
    Ok(wanted)
}

fn expect_rows(node: &Node, wanted: u64) -> Result<(), DemoError> {
    let rows: i64 = node.open(DB)?.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
    if u64::try_from(rows) != Ok(wanted) {
        return Err(broken(format!("the replica has {rows} rows instead of {wanted}")));
    }
    Ok(())
}

fn expect_read_only(conn: &Connection) -> Result<(), DemoError> {
    match conn.execute("INSERT INTO t (text) VALUES ('refused')", []) {
        Err(rusqlite::Error::SqliteFailure(error, _))
            if error.code == rusqlite::ErrorCode::ReadOnly =>
        {
            Ok(())
        }
        other => Err(broken(format!("a write on the replica gave {other:?}"))),
    }
}

fn broken(text: String) -> DemoError {
    DemoError::Broken(text)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_demo_succeeds_and_reports() {
        let mut report = Vec::new();
        super::run(&mut report).unwrap();
        let report = String::from_utf8(report).unwrap();
        for part in ["commits/s", "p50", "p99", "handed", "All as it should be"] {
            assert!(report.contains(part), "{part} is missing in:\n{report}");
        }
    }
}
