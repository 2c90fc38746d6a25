//! Reads: random points with a small cache, and a reader beside a writer.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use litefs_vfs::rusqlite::Connection;

use crate::database::Side;
use crate::report::{Report, rate};

const ROWS: u32 = 200_000;

fn fill(connection: &Connection) {
    let rows = format!(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
         INSERT INTO t SELECT i, hex(randomblob(100)) FROM n"
    );
    connection.execute_batch(&rows).expect("rows");
}

/// The same pseudo-random keys for both sides.
fn read_points(connection: &Connection, count: u32, seed: &mut u64) {
    let mut point = connection.prepare_cached("SELECT v FROM t WHERE id = ?1").expect("a query");
    for _ in 0..count {
        *seed =
            seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let id = (*seed >> 33) as u32 % ROWS + 1;
        point.query_row([id], |row| row.get::<_, String>(0)).expect("a row");
    }
}

/// Random points, each its own transaction and in one, with a cache of 20 pages.
pub fn points(dir: &Path, report: &mut Report) {
    let sides = Side::both(dir);
    for side in &sides {
        fill(&side.connect("NORMAL"));
        settle(side);
    }
    let connections = sides.each_ref().map(|side| {
        let connection = side.connect("NORMAL");
        connection.execute_batch("PRAGMA cache_size=20").expect("a small cache");
        connection
    });
    for (what, in_one) in [("each its own transaction", false), ("in one transaction", true)] {
        let mut rates = [Vec::new(), Vec::new()];
        let mut seeds = [1, 1];
        for _ in 0..100 {
            for side in 0..2 {
                let connection = &connections[side];
                let start = Instant::now();
                if in_one {
                    connection.execute_batch("BEGIN").expect("a transaction");
                }
                read_points(connection, 1000, &mut seeds[side]);
                if in_one {
                    connection.execute_batch("COMMIT").expect("its end");
                }
                rates[side].push(rate(1000, start.elapsed()));
            }
        }
        report.rates(&format!("random point reads, 20-page cache, {what}"), &rates[0], &rates[1]);
    }
}

/// Everything in the base file, on both sides.
fn settle(side: &Side) {
    match side {
        Side::Plain(_) => side
            .connect("NORMAL")
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .expect("a checkpoint"),
        Side::Litefs(store) => {
            for db in store.databases() {
                db.fold().expect("a fold");
            }
        }
    }
}

/// A reader of points, while another connection commits single rows.
pub fn beside_a_writer(dir: &Path, report: &mut Report) {
    for synchronous in ["NORMAL", "FULL"] {
        let sides = Side::both(&dir.join(synchronous));
        for side in &sides {
            fill(&side.connect("NORMAL"));
            settle(side);
        }
        let (mut reads, mut writes) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        for _ in 0..15 {
            for (index, side) in sides.iter().enumerate() {
                let (read, written) = race(side, synchronous);
                reads[index].push(read);
                writes[index].push(written);
            }
        }
        report.rates(&format!("reads beside a writer, {synchronous}"), &reads[0], &reads[1]);
        report.rates(&format!("  that writer's commits, {synchronous}"), &writes[0], &writes[1]);
    }
}

/// Reads and commits a second of two threads over a short time.
fn race(side: &Side, synchronous: &str) -> (f64, f64) {
    const SLICE: Duration = Duration::from_millis(300);
    let (reader, writer) = (side.connect(synchronous), side.connect(synchronous));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stop = &stop;
        let written = scope.spawn(move || {
            let mut update = writer
                .prepare(
                    "UPDATE t SET v = hex(randomblob(100)) WHERE id = abs(random()) % 200000 + 1",
                )
                .expect("an update");
            let (start, mut commits) = (Instant::now(), 0);
            while !stop.load(Ordering::Relaxed) {
                update.execute([]).expect("a commit");
                commits += 1;
            }
            rate(commits, start.elapsed())
        });
        let (start, mut reads, mut seed) = (Instant::now(), 0, 7);
        while start.elapsed() < SLICE {
            read_points(&reader, 50, &mut seed);
            reads += 50;
        }
        let read = rate(reads, start.elapsed());
        stop.store(true, Ordering::Relaxed);
        (read, written.join().expect("the writer"))
    })
}
