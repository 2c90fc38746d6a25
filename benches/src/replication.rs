//! Two nodes on loopback, with mutual TLS: delay, snapshot and catch-up.

use std::path::Path;
use std::time::{Duration, Instant};

use litefs_node::config::{OnTimeout, ReplicationMode, SyncSettings};
use litefs_node::{Config, Node};
use litefs_vfs::rusqlite::Connection;

use crate::report::{Report, percentile};

const PATIENCE: Duration = Duration::from_secs(120);

fn primary(dir: &Path) -> Node {
    primary_with(dir, ReplicationMode::Async)
}

fn primary_with(dir: &Path, mode: ReplicationMode) -> Node {
    let any = "127.0.0.1:0".parse().expect("an address");
    Node::start(Config::new(dir).listen(any).replicating(mode)).expect("a primary")
}

fn replica(dir: &Path, of: &Node) -> Node {
    replica_with(dir, of, ReplicationMode::Async)
}

fn replica_with(dir: &Path, of: &Node, mode: ReplicationMode) -> Node {
    let any = "127.0.0.1:0".parse().expect("an address");
    let url = format!("http://{}", of.addr());
    let config = Config::new(dir).listen(any).replicating(mode);
    Node::start(config.replica_of(&url).expect("a replica's settings")).expect("a replica")
}

fn wait(primary: &Node, replica: &Node) {
    let pos = primary.position("app.db").expect("a position");
    replica.wait_for("app.db", pos, PATIENCE).expect("the replica follows");
}

/// Time from before a commit to its visibility on the replica, on disk and in memory.
pub fn delay(dir: &Path, report: &mut Report) {
    let memory = tempfile::tempdir_in("/dev/shm").ok();
    let places = [Some(("disk", dir)), memory.as_ref().map(|dir| ("tmpfs", dir.path()))];
    for (place, dir) in places.into_iter().flatten() {
        for synchronous in ["NORMAL", "FULL"] {
            let dir = dir.join(synchronous);
            let primary = primary(&dir.join("primary"));
            let connection = primary.open("app.db").expect("a connection");
            connection
                .execute_batch(&format!("PRAGMA synchronous={synchronous}; CREATE TABLE t(v)"))
                .expect("a table");
            let replica = replica(&dir.join("replica"), &primary);
            wait(&primary, &replica);
            let delays = delays(&connection, &primary, &replica);
            let [p50, p99] = [0.5, 0.99].map(|share| percentile(&delays, share));
            let what = format!("commit to visible on a replica, {synchronous}, {place}");
            report.row(&what, "-".into(), format!("p50 {p50:.2} ms"), format!("p99 {p99:.2} ms"));
        }
    }
}

fn delays(connection: &Connection, primary: &Node, replica: &Node) -> Vec<f64> {
    let mut insert = connection.prepare("INSERT INTO t VALUES (randomblob(100))").expect("SQL");
    let mut delays = Vec::new();
    for _ in 0..2000 {
        let start = Instant::now();
        insert.execute([]).expect("a commit");
        wait(primary, replica);
        delays.push(start.elapsed().as_secs_f64() * 1e3);
        // A little idle time, as between the requests of an app.
        std::thread::sleep(Duration::from_micros(500));
    }
    delays
}

/// What a commit takes that a replica must have on disk, beside one for which its own disk is
/// enough: in turns, each on a primary with its replica.
pub fn confirmed(dir: &Path, report: &mut Report) {
    let settings =
        SyncSettings { replicas: 1, timeout: Duration::from_secs(5), on_timeout: OnTimeout::Wait };
    let memory = tempfile::tempdir_in("/dev/shm").ok();
    let places = [Some(("disk", dir)), memory.as_ref().map(|dir| ("tmpfs", dir.path()))];
    for (place, dir) in places.into_iter().flatten() {
        let pairs = [ReplicationMode::Async, ReplicationMode::Sync(settings)].map(|mode| {
            let dir = dir.join(mode.name());
            let primary = primary_with(&dir.join("primary"), mode);
            let replica = replica_with(&dir.join("replica"), &primary, mode);
            let connection = primary.open("app.db").expect("a connection");
            connection
                .execute_batch("PRAGMA synchronous=FULL; CREATE TABLE t(v)")
                .expect("a table");
            wait(&primary, &replica);
            (connection, primary, replica)
        });
        let mut times = [Vec::new(), Vec::new()];
        for slice in 0..40 {
            for turn in 0..2 {
                let side = (slice + turn) % 2;
                times[side].extend(commit_times(&pairs[side].0));
            }
        }
        for (what, share) in [("p50", 0.5), ("p99", 0.99)] {
            let [without, with] = times.each_ref().map(|times| percentile(times, share));
            report.row(
                &format!("commit, FULL, replication.mode async | sync, {place}, {what}"),
                format!("async {without:.3} ms"),
                format!("sync {with:.3} ms"),
                format!("{:.2} x", with / without),
            );
        }
    }
}

fn commit_times(connection: &Connection) -> Vec<f64> {
    let mut insert = connection.prepare("INSERT INTO t VALUES (randomblob(100))").expect("SQL");
    let time = |_| {
        let start = Instant::now();
        insert.execute([]).expect("a commit");
        start.elapsed().as_secs_f64() * 1e3
    };
    (0..50).map(time).collect()
}

/// A new replica of 1 GB; then one that was away while much was committed.
pub fn catching_up(dir: &Path, report: &mut Report) {
    const ROWS: u32 = 250_000;
    let primary = primary(&dir.join("primary"));
    let connection = primary.open("app.db").expect("a connection");
    let fill = format!(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
         INSERT INTO t SELECT i, randomblob(3900) FROM n"
    );
    connection.execute_batch(&fill).expect("rows");
    for db in primary.store().databases() {
        db.fold().expect("a fold");
    }
    let size = std::fs::metadata(dir.join("primary/dbs/app.db/base")).expect("the base").len();
    let start = Instant::now();
    let first = replica(&dir.join("replica"), &primary);
    wait(&primary, &first);
    rate(report, "empty replica to 1 GB", size, start.elapsed());
    first.shutdown().expect("a clean stop");

    // Records: fewer than would be compacted into one.
    let before = primary.store().databases()[0].stats();
    for _ in 0..100 {
        connection
            .execute("UPDATE t SET v = randomblob(3900) WHERE id % 100 = abs(random()) % 100", [])
            .expect("a commit");
    }
    let commits = primary.store().databases()[0].stats().commits - before.commits;
    let bytes = commits * u64::from(ROWS) / 100 * 4100;
    let start = Instant::now();
    let again = replica(&dir.join("replica"), &primary);
    wait(&primary, &again);
    rate(report, "catch-up with 100 commits of 10 MB", bytes, start.elapsed());
    let memory = resident_of("self") / 1e6;
    report.row(
        "memory (RSS) with both nodes in one process",
        "-".into(),
        format!("{memory:.0} MB"),
        "-".into(),
    );
}

fn rate(report: &mut Report, what: &str, bytes: u64, elapsed: Duration) {
    let seconds = elapsed.as_secs_f64();
    let speed = format!("{:.0} MB/s", bytes as f64 / 1e6 / seconds);
    report.row(what, "-".into(), format!("{seconds:.2} s"), speed);
}

/// Bytes of memory that a process has now.
pub fn resident_of(process: &str) -> f64 {
    let path = format!("/proc/{process}/status");
    let text = std::fs::read_to_string(path).expect("a process's status");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kilobytes * 1024.0
}
