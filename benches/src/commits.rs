//! Commits: single rows, a large transaction, bytes written.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use litefs_vfs::rusqlite::Connection;

use crate::database::Side;
use crate::report::{Report, rate};

/// How many syncs a second the disk does for writes of 4 KiB in place: what bounds FULL.
pub fn disk(dir: &Path, report: &mut Report) {
    use std::os::unix::fs::FileExt;
    let mut file = std::fs::File::create(dir.join("probe")).expect("a file");
    file.write_all(&vec![0; 4 << 20]).and_then(|()| file.sync_all()).expect("space");
    let start = Instant::now();
    for block in 0..500 {
        file.write_all_at(&[1; 4096], block * 4096).expect("a write");
        file.sync_data().expect("a sync");
    }
    let syncs = format!("{:.0}/s", rate(500, start.elapsed()));
    report.row("disk: fdatasync after 4 KiB", syncs, "-".into(), "-".into());
}

const SCHEMA: &str =
    "CREATE TABLE t(id INTEGER PRIMARY KEY, k INTEGER, v TEXT); CREATE INDEX t_k ON t(k)";

fn insert_rows(connection: &Connection, rows: usize) {
    let sql = "INSERT INTO t(k, v) VALUES (abs(random()) % 100000, hex(randomblob(50)))";
    let mut insert = connection.prepare_cached(sql).expect("an insert");
    for _ in 0..rows {
        insert.execute([]).expect("a row");
    }
}

fn update_rows(connection: &Connection, rows: usize) {
    let sql = "UPDATE t SET v = hex(randomblob(50)) WHERE id = abs(random()) % 2000 + 1";
    let mut update = connection.prepare_cached(sql).expect("an update");
    for _ in 0..rows {
        update.execute([]).expect("a row");
    }
}

/// Commits before measuring: both logs have then reached their size and reuse their space.
const WARM_UP: usize = 25_000;

/// Single-row commits a second, and the bytes that each writes to the disk.
pub fn single_rows(dir: &Path, report: &mut Report) {
    for synchronous in ["NORMAL", "FULL"] {
        for (what, work) in
            [("INSERT", insert_rows as fn(&Connection, usize)), ("UPDATE", update_rows)]
        {
            let sides = Side::both(&dir.join(format!("{synchronous}{what}")));
            let connections = sides.each_ref().map(|side| side.connect(synchronous));
            for connection in &connections {
                connection.execute_batch(SCHEMA).expect("a schema");
                connection.execute_batch("BEGIN").expect("a transaction");
                insert_rows(connection, 2000);
                connection.execute_batch("COMMIT").expect("a commit");
                work(connection, WARM_UP);
            }
            let mut rates = [Vec::new(), Vec::new()];
            let mut bytes = [0, 0];
            let (slices, rows) = if synchronous == "FULL" { (60, 100) } else { (100, 400) };
            for slice in 0..slices {
                for turn in 0..2 {
                    let side = (slice + turn) % 2;
                    let before = written();
                    let start = Instant::now();
                    work(&connections[side], rows);
                    rates[side].push(rate(rows, start.elapsed()));
                    bytes[side] += written() - before;
                }
            }
            let what = format!("single-row {what}, {synchronous}");
            report.rates(&what, &rates[0], &rates[1]);
            let each = bytes.map(|bytes| bytes as f64 / (slices * rows) as f64);
            let kilobytes = each.map(|bytes| format!("{:.1} kB", bytes / 1000.0));
            let [plain, ours] = kilobytes;
            report.row(
                "  bytes to the file system a commit",
                plain,
                ours,
                format!("{:.2} x", each[1] / each[0]),
            );
        }
    }
}

/// Bytes that this process has caused to be written.
fn written() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").expect("/proc/self/io");
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|number| number.parse().ok()).expect("write_bytes")
}

/// One transaction of 100,000 rows.
pub fn bulk(dir: &Path, report: &mut Report) {
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..7 {
        let sides = Side::both(&dir.join(round.to_string()));
        for (side, rates) in sides.iter().zip(&mut rates) {
            let connection = side.connect("NORMAL");
            connection.execute_batch(SCHEMA).expect("a schema");
            let start = Instant::now();
            connection.execute_batch("BEGIN").expect("a transaction");
            insert_rows(&connection, 100_000);
            connection.execute_batch("COMMIT").expect("a commit");
            rates.push(rate(100_000, start.elapsed()));
        }
    }
    report.rates("rows of a 100,000-row transaction", &rates[0], &rates[1]);
}
