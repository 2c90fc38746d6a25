//! Start: import of a large database, and opening it after a clean and an unclean stop.

use std::path::Path;
use std::time::Instant;

use litefs_store::{DbName, Options, Store};
use litefs_vfs::rusqlite::Connection;

use crate::report::Report;

/// A plain database of 1 GB at `path`.
fn gigabyte(path: &Path) {
    let plain = Connection::open(path).expect("a plain database");
    plain
        .execute_batch(
            "PRAGMA synchronous=OFF; PRAGMA journal_mode=OFF; CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 250000)
             INSERT INTO t SELECT i, randomblob(3900) FROM n",
        )
        .expect("rows");
}

/// Import beside `cp` and a sync; then the time from `Store::open` to the first row.
pub fn open_a_gigabyte(dir: &Path, report: &mut Report) {
    let plain = dir.join("plain.db");
    gigabyte(&plain);
    let start = Instant::now();
    std::fs::copy(&plain, dir.join("copy.db")).expect("a copy");
    let copy = std::fs::File::open(dir.join("copy.db")).expect("the copy");
    copy.sync_all().expect("a sync");
    let copied = start.elapsed();
    std::fs::remove_file(dir.join("copy.db")).expect("the copy");

    let data = dir.join("data");
    let name = DbName::new("app.db").expect("a name");
    let store = Store::open(&data).expect("a store");
    let db = store.create(&name).expect("a database");
    let start = Instant::now();
    db.import(&mut std::fs::File::open(&plain).expect("the file")).expect("an import");
    let imported = start.elapsed();
    let ratio = imported.as_secs_f64() / copied.as_secs_f64();
    let seconds = |time: std::time::Duration| format!("{:.2} s", time.as_secs_f64());
    report.row(
        "import of 1 GB; plain: cp and sync",
        seconds(copied),
        seconds(imported),
        format!("{ratio:.2} x"),
    );
    drop(db);
    store.close().expect("a clean stop");
    drop(store);
    open_once(&data, "after a clean stop", report);

    let options = Options { background: false, ..Options::default() };
    let store = Store::open_with(&data, options).expect("a store");
    let connection = litefs_vfs::open(&store, "app.db").expect("a connection");
    for _ in 0..2000 {
        connection
            .execute("UPDATE t SET v = randomblob(3900) WHERE id = abs(random()) % 250000 + 1", [])
            .expect("a commit");
    }
    drop(connection);
    drop(store); // without background work nothing is folded: as after kill -9
    open_once(&data, "with 2,000 commits in the log, not folded", report);
}

fn open_once(data: &Path, what: &str, report: &mut Report) {
    let start = Instant::now();
    let store = Store::open(data).expect("a store");
    let connection = litefs_vfs::open(&store, "app.db").expect("a connection");
    let count: u32 = connection
        .query_row("SELECT length(v) FROM t WHERE id = 125000", [], |row| row.get(0))
        .expect("a row");
    assert_eq!(count, 3900);
    let opened = format!("{:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    report.row(&format!("open 1 GB and read a row, {what}"), "-".into(), opened, "< 100 ms".into());
    drop(connection);
    store.close().expect("a clean stop");
}
