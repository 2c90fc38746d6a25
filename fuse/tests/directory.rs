//! The mounted directory as programs see it: names, special files, what is refused, unmounting.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use litefs_fuse::{Cluster, Lag, Mount, MountOptions};
use litefs_store::{DbName, RemoteError, Store};
use rusqlite::Connection;
use tempfile::TempDir;

/// A node without a network.
struct Alone {
    primary: Option<String>,
    lag: Lag,
}

impl Cluster for Alone {
    fn primary(&self) -> Option<String> {
        self.primary.clone()
    }

    fn lag(&self) -> Lag {
        self.lag
    }

    fn halt(&self, _: &DbName) -> Result<(), RemoteError> {
        Err(RemoteError::Refused("there is no primary".to_owned()))
    }

    fn resume(&self, _: &DbName) {}
}

/// A store and its mount.
struct Place {
    mount: Option<Mount>,
    store: Store,
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let lag = Lag { behind: Some(Duration::ZERO), primary_time: None };
        Self::with(Alone { primary: None, lag })
    }

    fn with(cluster: Alone) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("data")).unwrap();
        let mut place = Self { mount: None, store, dir };
        place.mount = Some(place.start(cluster).unwrap());
        place
    }

    fn start(&self, cluster: Alone) -> Result<Mount, litefs_fuse::MountError> {
        let options = MountOptions {
            dir: self.path(""),
            allow_other: false,
            debug: false,
            cluster: Arc::new(cluster),
            passthrough: true,
        };
        Mount::start(&self.store, options)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("mnt").join(name)
    }

    fn sql(&self, name: &str, sql: &str) {
        Connection::open(self.path(name)).unwrap().execute_batch(sql).unwrap();
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Before the directory goes.
        self.mount = None;
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).open(path)
}

fn kind<T>(result: io::Result<T>) -> Option<io::ErrorKind> {
    result.err().map(|error| error.kind())
}

#[track_caller]
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// LiteFS answered the first of these so that afterwards no file could be created any more.
#[test]
fn nothing_that_is_refused_keeps_databases_from_being_created() {
    let place = Place::new();
    let denied = Some(io::ErrorKind::PermissionDenied);
    for name in ["x-pos", "x-lock", "x-wal", "x-shm", "x-journal", ".primary", ".lag", ".x"] {
        assert_eq!(kind(create(&place.path(name))), denied, "{name}");
    }
    assert_eq!(kind(fs::create_dir(place.path("sub"))), denied);
    assert_eq!(kind(std::os::unix::fs::symlink("a", place.path("link"))), denied);
    assert_eq!(kind(fs::rename(place.path(".lag"), place.path("lag"))), denied);
    assert_eq!(kind(fs::hard_link(place.path(".lag"), place.path("lag"))), denied);
    assert_eq!(kind(fs::remove_file(place.path(".lag"))), denied);
    assert_eq!(kind(fs::remove_file(place.path("none"))), Some(io::ErrorKind::NotFound));
    let long = "x".repeat(220);
    assert!(create(&place.path(&long)).is_err());
    for mode in ["DELETE", "TRUNCATE", "PERSIST", "WAL"] {
        let setup =
            format!("PRAGMA journal_mode={mode}; CREATE TABLE t (x); INSERT INTO t VALUES (1)");
        place.sql(&format!("{mode}.db"), &setup);
    }
    assert_eq!(place.store.databases().len(), 4);
}

#[test]
fn the_directory_lists_what_litefs_lists() {
    let place = Place::new();
    assert_eq!(place.names(), [".lag"]);
    place.sql("b.db", "CREATE TABLE t (x)");
    place.sql("a.db", "PRAGMA journal_mode=PERSIST; CREATE TABLE t (x)");
    assert_eq!(place.names(), [".lag", "a.db", "a.db-journal", "a.db-pos", "b.db", "b.db-pos"]);
    let wal = Connection::open(place.path("c.db")).unwrap();
    wal.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t (x)").unwrap();
    assert_eq!(place.names()[6..], ["c.db", "c.db-pos", "c.db-shm", "c.db-wal"]);
    let root = fs::metadata(place.path("")).unwrap();
    assert_eq!((root.permissions().mode() & 0o7777, root.is_dir()), (0o777, true));
    let mode = |name: &str| fs::metadata(place.path(name)).unwrap().permissions().mode() & 0o7777;
    for (name, wanted) in
        [("a.db", 0o666), ("a.db-pos", 0o666), ("a.db-lock", 0o444), (".lag", 0o444)]
    {
        assert_eq!(mode(name), wanted, "{name}");
    }
    place.store.gate().close("a test's replica");
    assert_eq!(mode(""), 0o555);
    eventually("the mode says that nobody may write", || mode("b.db") == 0o444);
}

#[test]
fn special_files_say_what_litefss_clients_read() {
    let behind = Duration::from_millis(2345);
    let heard = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let place = Place::with(Alone {
        primary: Some("node-1".to_owned()),
        lag: Lag { behind: Some(behind), primary_time: Some(heard) },
    });
    place.sql("a.db", "CREATE TABLE t (x)");
    let db = place.store.database(&DbName::new("a.db").unwrap()).unwrap();
    assert_eq!(place.read(".primary"), "node-1\n");
    assert_eq!(place.read(".lag"), "+000002345\n");
    assert_eq!(place.read("a.db-pos"), format!("{}\n", db.pos()));
    assert_eq!(place.read("a.db-lock"), "");
    assert!(place.names().contains(&".primary".to_owned()));
    for name in [".primary", ".lag", "a.db-pos", "a.db-lock"] {
        let size = fs::metadata(place.path(name)).unwrap().len();
        assert_eq!(size, place.read(name).len() as u64, "{name}");
    }
    let modified = |name: &str| fs::metadata(place.path(name)).unwrap().modified().unwrap();
    assert_eq!(modified(".lag"), heard);
    let committed = UNIX_EPOCH + Duration::from_millis(db.timestamp_ms() as u64);
    assert_eq!(modified("a.db-pos"), committed);
    assert!(committed > SystemTime::now() - Duration::from_secs(600));
    let before = place.read("a.db-pos");
    place.sql("a.db", "INSERT INTO t VALUES (1)");
    assert_ne!(place.read("a.db-pos"), before, "the position is never cached");
}

/// LiteFS's `.lag` was one byte longer than it said.
#[test]
fn an_unknown_lag_is_as_long_as_its_size_says() {
    let place = Place::with(Alone { primary: None, lag: Lag { behind: None, primary_time: None } });
    let mut file = File::open(place.path(".lag")).unwrap();
    let mut content = String::new();
    file.read_to_string(&mut content).unwrap();
    assert_eq!(content, "+2147483647\n");
    let metadata = file.metadata().unwrap();
    assert_eq!((metadata.len(), metadata.mtime()), (content.len() as u64, 0));
    assert_eq!(kind(File::open(place.path(".primary"))), Some(io::ErrorKind::NotFound));
}

#[test]
fn special_files_cannot_be_changed() {
    let place = Place::new();
    place.sql("a.db", "CREATE TABLE t (x)");
    let denied = Some(io::ErrorKind::PermissionDenied);
    for name in [".lag", "a.db-pos"] {
        assert_eq!(kind(create(&place.path(name))), denied, "{name}");
        assert_eq!(kind(fs::remove_file(place.path(name))), denied, "{name}");
    }
    let mut lock = OpenOptions::new().read(true).write(true).open(place.path("a.db-lock")).unwrap();
    assert!(lock.write(b"x").is_err());
    assert_eq!(kind(lock.set_len(5)), denied);
    assert_eq!(kind(lock.set_modified(SystemTime::now())), denied);
}

#[test]
fn a_database_that_was_never_written_leaves_no_trace() {
    let place = Place::new();
    {
        let file = create(&place.path("empty.db")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
        assert!(place.path("empty.db").exists());
        assert_eq!(place.names(), [".lag"]);
    }
    // The kernel tells of the close a little later.
    eventually("the empty database is gone", || !place.path("empty.db").exists());
    place.sql("empty.db", "CREATE TABLE t (x)");
    assert_eq!(place.names(), [".lag", "empty.db", "empty.db-pos"]);
}

#[test]
fn a_database_appears_and_goes_as_the_store_says() {
    let place = Place::new();
    let other = tempfile::tempdir().unwrap();
    let source = other.path().join("source.db");
    Connection::open(&source).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    // The kernel keeps that it is not there.
    assert!(!place.path("new.db").exists() && !place.path("new.db-pos").exists());
    let db = place.store.create(&DbName::new("new.db").unwrap()).unwrap();
    db.import(&mut File::open(&source).unwrap()).unwrap();
    eventually("it appears", || place.path("new.db").exists() && place.path("new.db-pos").exists());
    assert_eq!(place.names(), [".lag", "new.db", "new.db-pos"]);
    db.drop_database().unwrap();
    eventually("it goes", || !place.path("new.db").exists() && !place.path("new.db-pos").exists());
    assert_eq!(place.names(), [".lag"]);
    place.sql("new.db", "CREATE TABLE again (x)");
    fs::remove_file(place.path("new.db")).unwrap();
    assert!(!place.path("new.db").exists());
    assert_eq!(db.page_count(), 0);
}

#[test]
fn a_node_that_may_not_write_creates_and_removes_nothing() {
    let place = Place::new();
    place.sql("a.db", "CREATE TABLE t (x)");
    place.store.gate().close("a test's replica");
    let denied = Some(io::ErrorKind::PermissionDenied);
    assert_eq!(kind(create(&place.path("b.db"))), denied);
    assert_eq!(kind(fs::remove_file(place.path("a.db"))), denied);
    assert_eq!(place.names(), [".lag", "a.db", "a.db-pos"]);
}

#[test]
fn unmounting_does_not_wait_for_clients_that_keep_files_open() {
    let mut place = Place::new();
    place.sql("a.db", "CREATE TABLE t (x); INSERT INTO t VALUES (1)");
    let reader = Connection::open(place.path("a.db")).unwrap();
    reader.execute_batch("BEGIN; SELECT * FROM t").unwrap();
    let begun = Instant::now();
    place.mount.take().unwrap().unmount();
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert!(reader.execute("INSERT INTO t VALUES (2)", []).is_err());
    assert_eq!(fs::read_dir(place.path("")).unwrap().count(), 0);
    drop(reader);
    place.store.close().unwrap();
}

#[test]
fn a_directory_in_use_is_refused_with_what_is_there() {
    let place = Place::new();
    let lag = Lag { behind: None, primary_time: None };
    let text = place.start(Alone { primary: None, lag }).unwrap_err().to_string();
    assert!(text.contains("mounted already") && text.contains("litefs"), "{text}");
}

#[test]
fn statfs_is_the_data_directorys() {
    let place = Place::new();
    let (mount, data) = (place.path(""), place.dir.path().join("data"));
    let total = |path: &Path| {
        let output = Command::new("stat").args(["-f", "-c", "%b %S %l"]).arg(path).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    assert_eq!(total(&mount), total(&data));
}

/// Ending a journal commits. Somebody else's `rm` or `: >` would commit half of a transaction.
#[test]
fn nobody_but_its_writer_ends_a_transaction() {
    let place = Place::new();
    for mode in ["DELETE", "TRUNCATE", "PERSIST"] {
        let name = format!("{mode}.db");
        let writer = Connection::open(place.path(&name)).unwrap();
        let setup = format!(
            "PRAGMA journal_mode={mode}; PRAGMA cache_size=2; CREATE TABLE t (x);
             INSERT INTO t VALUES (1)"
        );
        writer.execute_batch(&setup).unwrap();
        let db = place.store.database(&DbName::new(&name).unwrap()).unwrap();
        let before = db.pos();
        let spill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<200)
                     INSERT INTO t SELECT zeroblob(2000) FROM n";
        for end in ["COMMIT", "ROLLBACK"] {
            writer.execute_batch(&format!("BEGIN; {spill}")).unwrap();
            let pos = db.pos();
            let journal = place.path(&format!("{name}-journal"));
            assert!(fs::remove_file(&journal).is_err());
            assert!(OpenOptions::new().write(true).truncate(true).open(&journal).is_err());
            let mut other = OpenOptions::new().write(true).open(&journal).unwrap();
            assert!(other.write(&[0; 28]).is_err());
            drop(other);
            assert_eq!(db.pos(), pos, "{mode}: nothing is committed");
            writer.execute_batch(end).unwrap();
        }
        assert_eq!(db.pos().txid, before.txid.next(), "{mode}: one commit, and one rollback");
        let rows = |sql| writer.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
        assert_eq!(rows("SELECT count(*) || '' FROM t"), "201");
        assert_eq!(rows("PRAGMA integrity_check"), "ok");
        drop(writer);
        fs::remove_file(place.path(&name)).unwrap();
    }
}
