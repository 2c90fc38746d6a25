//! The mount beside a plain directory: SQLite's own code on both, so that the difference is the
//! mount. The mount is served by another process, as in life: this program, started again.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use litefs_node::{Config, Node};
use litefs_vfs::rusqlite::Connection;

use crate::report::{Report, percentile, rate};

/// The argument by which this program serves mounts.
pub const SERVE: &str = "serve-mounts";

/// Serves a primary and `replicas` replicas (one at most) below `dir`, each mounted at its `mnt`,
/// until the input ends.
pub fn serve(dir: &Path, replicas: usize) {
    let any = "127.0.0.1:0".parse().expect("an address");
    let settings = |name: &str| {
        Config::new(dir.join(name).join("data")).listen(any).mounted_at(dir.join(name).join("mnt"))
    };
    let primary = Node::start(settings("primary")).expect("a primary");
    let mounted = primary.mount().expect("a mount");
    let url = format!("http://{}", primary.addr());
    let replica = (replicas > 0).then(|| {
        let config = settings("replica").replica_of(&url).expect("a replica's settings");
        let replica = Node::start(config).expect("a replica");
        let mounted = replica.mount().expect("a mount");
        (mounted, replica)
    });
    println!("ready");
    let _ = std::io::stdin().read(&mut [0]);
    drop(mounted);
    if let Some((mounted, replica)) = replica {
        drop(mounted);
        replica.shutdown().expect("a clean stop");
    }
    primary.shutdown().expect("a clean stop");
}

/// The process that serves.
struct Server {
    child: Child,
    input: Option<ChildStdin>,
    dir: PathBuf,
}

impl Server {
    fn start(dir: &Path, replicas: usize) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        command
            .arg(SERVE)
            .arg(dir)
            .arg(replicas.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("a server");
        let input = child.stdin.take();
        let mut ready = [0; 6];
        let output = child.stdout.as_mut().expect("its output");
        output.read_exact(&mut ready).expect("a mount: run as root, with /dev/fuse");
        Self { child, input, dir: dir.to_path_buf() }
    }

    fn mount(&self) -> PathBuf {
        self.dir.join("primary/mnt")
    }

    fn replica(&self) -> PathBuf {
        self.dir.join("replica/mnt")
    }

    /// Bytes of memory that it has now.
    fn resident(&self) -> f64 {
        crate::replication::resident_of(&self.child.id().to_string())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

/// Everything, on the disk and in memory.
pub fn all(dir: &Path, report: &mut Report) {
    let memory = tempfile::tempdir_in("/dev/shm").ok();
    let places = [Some(("disk", dir)), memory.as_ref().map(|dir| ("tmpfs", dir.path()))];
    for (place, dir) in places.into_iter().flatten() {
        let plain = dir.join("plain");
        std::fs::create_dir_all(&plain).expect("a directory");
        let server = Server::start(dir, 0);
        let sides = [plain, server.mount()];
        commits(&sides, place, report);
        bulk(&sides, place, report);
        reads(&sides, place, report);
        scans(&sides, place, report);
        let memory = format!("{:.0} MB", server.resident() / 1e6);
        let what = format!("mount, {place}: memory (RSS) of the node after all this");
        report.row(&what, "-".into(), memory, "-".into());
        drop(server);
        delay(&Server::start(&dir.join("both"), 1), place, report);
    }
}

fn connect(path: &Path, mode: &str, synchronous: &str) -> Connection {
    let connection = Connection::open(path).expect("a database");
    connection.busy_timeout(Duration::from_secs(30)).expect("a timeout");
    let mode = format!("PRAGMA journal_mode={mode}");
    connection.query_row(&mode, [], |_| Ok(())).expect("a journal mode");
    let level = format!("PRAGMA synchronous={synchronous}");
    connection.execute_batch(&level).expect("a synchronous level");
    connection
}

fn insert(connection: &Connection, rows: usize) {
    let sql = "INSERT INTO t(v) VALUES (hex(randomblob(50)))";
    let mut insert = connection.prepare_cached(sql).expect("an insert");
    for _ in 0..rows {
        insert.execute([]).expect("a row");
    }
}

const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)";

fn commits(sides: &[PathBuf; 2], place: &str, report: &mut Report) {
    for mode in ["delete", "truncate", "persist", "wal"] {
        for synchronous in ["FULL", "NORMAL"] {
            let name = format!("{mode}-{synchronous}.db");
            let connections =
                sides.each_ref().map(|side| connect(&side.join(&name), mode, synchronous));
            for connection in &connections {
                connection.execute_batch(SCHEMA).expect("a schema");
                insert(connection, 500);
            }
            let rows = if mode == "wal" { 400 } else { 100 };
            let rates = in_turns(&connections, 30, |connection| {
                insert(connection, rows);
                rows
            });
            let what = format!("mount, {place}: INSERT, {mode}, {synchronous}");
            report.rates(&what, &rates[0], &rates[1]);
        }
    }
}

fn bulk(sides: &[PathBuf; 2], place: &str, report: &mut Report) {
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..3 {
        for (side, rates) in sides.iter().zip(&mut rates) {
            let connection = connect(&side.join(format!("bulk{round}.db")), "wal", "NORMAL");
            connection.execute_batch(SCHEMA).expect("a schema");
            let start = Instant::now();
            connection.execute_batch("BEGIN").expect("a transaction");
            insert(&connection, 100_000);
            connection.execute_batch("COMMIT").expect("a commit");
            rates.push(rate(100_000, start.elapsed()));
        }
    }
    let what = format!("mount, {place}: rows of a 100,000-row transaction, wal");
    report.rates(&what, &rates[0], &rates[1]);
}

fn reads(sides: &[PathBuf; 2], place: &str, report: &mut Report) {
    for mode in ["wal", "delete"] {
        let connections = sides
            .each_ref()
            .map(|side| connect(&side.join(format!("{mode}-NORMAL.db")), mode, "NORMAL"));
        let rates = in_turns(&connections, 30, |connection| {
            let sql = "SELECT v FROM t WHERE id = abs(random()) % 500 + 1";
            let mut select = connection.prepare_cached(sql).expect("a query");
            for _ in 0..1000 {
                select.query_row([], |_| Ok(())).expect("a row");
            }
            1000
        });
        let what = format!("mount, {place}: point reads, each its own transaction, {mode}");
        report.rates(&what, &rates[0], &rates[1]);
    }
}

/// Reads all of 200 MB: with nothing in the kernel's caches, and again.
fn scans(sides: &[PathBuf; 2], place: &str, report: &mut Report) {
    for side in sides {
        let connection = connect(&side.join("scan.db"), "wal", "NORMAL");
        let fill = "CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)
             INSERT INTO t SELECT i, randomblob(3900) FROM n;
             PRAGMA wal_checkpoint(TRUNCATE)";
        connection.execute_batch(fill).expect("rows");
    }
    let mut rates = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
    for _ in 0..5 {
        for (index, side) in sides.iter().enumerate() {
            drop_caches();
            for rates in &mut rates {
                let connection = connect(&side.join("scan.db"), "wal", "NORMAL");
                let start = Instant::now();
                let sum = "SELECT sum(length(v)) FROM t";
                connection.query_row(sum, [], |_| Ok(())).expect("a sum");
                rates[index].push(rate(50_000, start.elapsed()));
            }
        }
    }
    for (how, [plain, ours]) in ["cold", "warm"].into_iter().zip(&rates) {
        report.rates(&format!("mount, {place}: full scan, {how}, rows"), plain, ours);
    }
}

/// Has the kernel forget what it need not remember. What is in memory only stays.
fn drop_caches() {
    let _ = Command::new("sync").status();
    let dropped = std::fs::File::options().write(true).open("/proc/sys/vm/drop_caches");
    dropped.and_then(|mut file| file.write_all(b"3")).expect("root's right to drop caches");
}

fn in_turns(
    connections: &[Connection; 2],
    slices: usize,
    work: impl Fn(&Connection) -> usize,
) -> [Vec<f64>; 2] {
    let mut rates = [Vec::new(), Vec::new()];
    for slice in 0..slices {
        for turn in 0..2 {
            let side = (slice + turn) % 2;
            let start = Instant::now();
            let done = work(&connections[side]);
            rates[side].push(rate(done, start.elapsed()));
        }
    }
    rates
}

/// From before a commit on the primary's mount until a query on the replica's mount finds it.
fn delay(server: &Server, place: &str, report: &mut Report) {
    for mode in ["wal", "delete"] {
        let name = format!("delay-{mode}.db");
        let writer = connect(&server.mount().join(&name), mode, "NORMAL");
        writer.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY)").expect("a table");
        let path = server.replica().join(&name);
        let patience = Instant::now() + Duration::from_secs(60);
        while !path.exists() {
            assert!(Instant::now() < patience, "the replica does not follow");
            std::thread::sleep(Duration::from_millis(10));
        }
        let reader = Connection::open(&path).expect("the replica's database");
        reader.busy_timeout(Duration::from_secs(30)).expect("a timeout");
        let mut newest = reader.prepare("SELECT coalesce(max(id), 0) FROM t").expect("a query");
        let mut delays = Vec::new();
        for id in 1..=500_i64 {
            let start = Instant::now();
            writer.execute("INSERT INTO t VALUES (?)", [id]).expect("a commit");
            while newest.query_row([], |row| row.get::<_, i64>(0)).expect("a row") < id {
                assert!(Instant::now() < patience, "the replica does not show it");
            }
            delays.push(start.elapsed().as_secs_f64() * 1e3);
            std::thread::sleep(Duration::from_millis(2));
        }
        let [p50, p99] = [0.5, 0.99].map(|share| percentile(&delays, share));
        let what = format!("mount, {place}: commit to visible on the replica's mount, {mode}");
        report.row(&what, "-".into(), format!("p50 {p50:.2} ms"), format!("p99 {p99:.2} ms"));
    }
}
