//! A full disk: commits fail with SQLite's own error, reads go on, and writes resume by themselves.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::place::{Place, is_plain};
use crate::shell::{Session, sql};

/// A small disk for a node's data; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(place: &Place, megabytes: u32) -> Self {
        let dir = place.nodes[0].data.clone();
        fs::create_dir(&dir).unwrap();
        let mut mount = Command::new("mount");
        let size = format!("size={megabytes}m");
        let mounted = mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&dir).status().unwrap();
        assert!(mounted.success(), "mount -t tmpfs: {mounted}");
        Self(dir)
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let mut umount = Command::new("umount");
        let _ = umount.arg("-l").arg(&self.0).stderr(Stdio::null()).status();
    }
}

fn fill_and_free(mode: &str) {
    if is_plain() {
        return;
    }
    let mut place = Place::prepare(2);
    let disk = SmallDisk::new(&place, 24);
    fs::write(disk.ballast(), vec![1; 8 << 20]).unwrap();
    place.nodes.iter_mut().for_each(crate::place::Node::start);
    let db = place.db("a.db");
    let mut client = Session::open(&db);
    client.say(&format!("PRAGMA journal_mode={mode}"));
    client.say("CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
    let mut rows: u32 = 0;
    let insert = "INSERT INTO t(x) VALUES (zeroblob(150000))";
    let error = loop {
        match client.say(insert) {
            done if done.is_empty() => rows += 1,
            error => break error,
        }
        assert!(rows < 1000, "the disk never gets full");
    };
    assert!(error.contains("database or disk is full"), "{error}");
    assert!(rows > 3, "full after {rows} rows");
    for _ in 0..3 {
        let count = client.say("SELECT count(*) FROM t");
        assert_eq!(count, rows.to_string(), "reads do not go on");
        assert_eq!(sql(&db, "SELECT count(*) FROM t"), count);
        match client.say(insert) {
            done if done.is_empty() => rows += 1,
            error => assert!(error.contains("database or disk is full"), "{error}"),
        }
    }
    fs::remove_file(disk.ballast()).unwrap();
    let freed = Instant::now();
    while !client.say(insert).is_empty() {
        assert!(freed.elapsed() < Duration::from_secs(30), "writes do not resume");
        std::thread::sleep(Duration::from_millis(10));
    }
    rows += 1;
    assert_eq!(client.say("INSERT INTO t(x) VALUES (1)"), "");
    rows += 1;
    drop(client);
    assert_eq!(sql(&db, "SELECT count(*) FROM t"), rows.to_string());
    place.check_replica("a.db");
    place.nodes[0].kill_and_restart();
    assert_eq!(sql(&db, "SELECT count(*) FROM t"), rows.to_string());
    place.check_replica("a.db");
    drop(place);
}

#[test]
fn a_full_disk_refuses_commits_and_nothing_else_in_delete_mode() {
    fill_and_free("delete");
}

#[test]
fn a_full_disk_refuses_commits_and_nothing_else_in_wal_mode() {
    fill_and_free("wal");
}
