//! Databases driven without a kernel: what no client can be made to do at the right moment.

use std::fs::File;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use litefs_store::{RemoteError, Store};
use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::committing::commit;
use crate::handles::Handles;
use crate::locks::{LockKind, bytes};
use crate::requests::Mounted;
use crate::tree::Tree;
use crate::{Cluster, Lag};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A database with one table, and the mover.
struct Place {
    shared: Arc<Shared>,
    database: Database,
    db: Arc<MountedDb>,
    _watcher: Watcher,
    dir: TempDir,
}

impl Place {
    fn new(setup: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("data")).unwrap();
        let name = DbName::new("a.db").unwrap();
        let database = store.create(&name).unwrap();
        let shared = Arc::new(Shared::new(store));
        import(&dir, &database, setup);
        let watcher = Watcher::start(&shared).unwrap();
        let inodes = Inodes { main: 8, journal: 9, wal: 10, shm: 11 };
        let db = MountedDb::new(shared.clone(), database.clone(), inodes).unwrap();
        shared.mounted.write().insert(name, db.clone());
        Self { shared, database, db, _watcher: watcher, dir }
    }

    /// The store moves without the mount.
    fn import(&self, sql: &str) {
        import(&self.dir, &self.database, sql);
    }

    #[track_caller]
    fn until(&self, condition: impl Fn(&MountedDb) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(&self.db) {
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn ask(
        &self,
        owner: u64,
        part: Part,
        range: Range,
        kind: LockKind,
    ) -> mpsc::Receiver<Result<()>> {
        let (sender, answer) = mpsc::channel();
        let lock = Lock { owner: Owner(owner), range, kind, pid: 1, handle: owner };
        self.db.lock(part, lock, Box::new(move |result| _ = sender.send(result)));
        answer
    }

    #[track_caller]
    fn lock(&self, owner: u64, part: Part, range: Range, kind: LockKind) -> Result<()> {
        self.ask(owner, part, range, kind).recv_timeout(PATIENCE).expect("an answer")
    }
}

fn import(dir: &TempDir, database: &Database, sql: &str) {
    let path = dir.path().join("source.db");
    Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    database.import(&mut File::open(path).unwrap()).unwrap();
}

/// A client whose lock request is never answered cannot even be killed.
#[test]
fn requests_that_are_parked_when_the_database_is_removed_are_answered() {
    let place = Place::new("CREATE TABLE t (x)");
    place.lock(1, Part::Main, bytes::SHARED, LockKind::Read).unwrap();
    place.import("INSERT INTO t VALUES (1)");
    let parked = loop {
        let answer = place.ask(2, Part::Main, bytes::SHARED, LockKind::Read);
        if answer.recv_timeout(Duration::from_millis(5)).is_err() {
            break answer;
        }
        place.db.unlock(Part::Main, Owner(2), bytes::SHARED);
    };
    place.shared.mounted.write().clear();
    place.db.unlink(Part::Main).unwrap();
    parked.recv_timeout(PATIENCE).expect("an answer").unwrap();
    place.lock(3, Part::Main, bytes::SHARED, LockKind::Read).unwrap();
}

#[test]
fn a_database_removed_in_its_first_transaction_parks_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let place = {
        let mut place = Place::new("CREATE TABLE t (x)");
        let empty = place.shared.store.create(&DbName::new("b.db").unwrap()).unwrap();
        place.db = MountedDb::new(place.shared.clone(), empty, place.db.inodes).unwrap();
        place
    };
    let path = dir.path().join("b.db");
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    let content = std::fs::read(path).unwrap();
    place.lock(1, Part::Main, Range::byte(bytes::RESERVED), LockKind::Write).unwrap();
    place.db.create(Part::Journal).unwrap();
    place.db.write(Part::Journal, 1, 0, &crate::journal::MAGIC).unwrap();
    place.db.write(Part::Main, 2, 0, &content[..4096]).unwrap();
    place.db.unlink(Part::Main).unwrap();
    place.db.unlock(Part::Main, Owner(1), Range::byte(bytes::RESERVED));
    place.lock(1, Part::Main, bytes::SHARED, LockKind::Read).unwrap();
}

/// Not long: it is only waited for in vain.
const IN_VAIN: Duration = Duration::from_millis(50);

#[test]
fn a_client_that_leaves_the_wal_does_not_meet_a_change_of_the_state() {
    let place = Place::new("CREATE TABLE t (x)");
    place.lock(1, Part::Main, bytes::SHARED, LockKind::Read).unwrap();
    place.lock(1, Part::Shm, Range::byte(bytes::DMS), LockKind::Read).unwrap();
    place.db.access.lock().park();
    let pending = place.ask(1, Part::Main, Range::byte(bytes::PENDING), LockKind::Write);
    assert!(pending.recv_timeout(IN_VAIN).is_err(), "parked");
    place.db.unpark();
    pending.recv_timeout(PATIENCE).expect("an answer").unwrap();
}

#[test]
fn nobody_writes_before_the_wal_index_is_void() {
    let place = Place::new("CREATE TABLE t (x)");
    place.lock(1, Part::Shm, Range::byte(124), LockKind::Read).unwrap();
    {
        let mut access = place.db.access.lock();
        access.stale_index = true;
        access.park();
    }
    let write = place.ask(1, Part::Shm, Range::byte(bytes::WRITE), LockKind::Write);
    assert!(write.recv_timeout(IN_VAIN).is_err(), "parked, though its owner is in a transaction");
    place.db.nudge();
    write.recv_timeout(PATIENCE).expect("an answer").unwrap();
}

/// A reader that held up the newest state is gone while requests are let in again.
#[test]
fn the_newest_state_is_shown_as_soon_as_nobody_is_in_a_transaction() {
    let place = Place::new("CREATE TABLE t (x)");
    place.lock(1, Part::Main, bytes::SHARED, LockKind::Read).unwrap();
    place.db.access.lock().not_before = Some(Instant::now() + 10 * PATIENCE);
    place.import("INSERT INTO t VALUES (1)");
    let newest = place.database.pos();
    std::thread::sleep(IN_VAIN); // the mover has looked; if not yet, this shows less
    assert_ne!(place.db.pos().0, newest);
    place.db.unlock(Part::Main, Owner(1), bytes::SHARED);
    place.until(|db| db.pos().0 == newest);
}

#[test]
fn the_times_of_files_are_those_of_the_transaction_that_they_show() {
    let place = Place::new("CREATE TABLE t (x)");
    let (shown, at) = place.db.pos();
    place.lock(1, Part::Main, bytes::SHARED, LockKind::Read).unwrap();
    place.db.access.lock().not_before = Some(Instant::now() + 10 * PATIENCE);
    place.until(|_| SystemTime::now() > special::time(at + 1));
    place.import("INSERT INTO t VALUES (1)");
    let newest = (place.database.pos(), place.database.timestamp_ms());
    assert_ne!(newest.1, at);
    assert_eq!(place.db.pos(), (shown, at));
    assert_eq!(place.db.attributes(Part::Main).unwrap().mtime, special::time(at));
    place.db.unlock(Part::Main, Owner(1), bytes::SHARED);
    place.until(|db| db.pos() == newest);
}

/// A client that has not looked in between must drop its cache.
#[test]
fn a_database_that_was_removed_elsewhere_and_made_again_has_another_change_counter() {
    let place = Place::new("CREATE TABLE t (x)");
    let before = place.db.read(Part::Main, 24, 4).unwrap();
    place.database.drop_database().unwrap();
    place.until(|db| !db.has_content());
    place.import("");
    place.until(MountedDb::has_content);
    assert_ne!(place.db.read(Part::Main, 24, 4).unwrap(), before);
}

/// SQLite's WAL with one more row than the database file, and both.
/// A peer may send a state once more, as a snapshot.
#[test]
fn a_snapshot_of_the_state_that_is_shown_changes_no_byte_of_the_file() {
    let place = Place::new("CREATE TABLE t(x)");
    let file = || place.db.main.read().read(0, 4096).unwrap();
    let (before, generation) = (file(), place.database.snapshot().unwrap().generation());
    let mut snapshot = Vec::new();
    let state = place.database.snapshot().unwrap();
    state.write_snapshot_record(&mut snapshot).unwrap();
    place.database.install_snapshot(&mut snapshot.as_slice()).unwrap();
    place.db.nudge();
    place.until(|db| db.main.read().tip().generation() != generation);
    assert_eq!(place.db.shown_position(), state.pos());
    assert!(file() == before);
}

fn files_of_a_wal(dir: &TempDir) -> (Vec<u8>, Vec<u8>) {
    let path = dir.path().join("wal.db");
    let client = Connection::open(&path).unwrap();
    client
        .execute_batch(
            "PRAGMA journal_mode=WAL; CREATE TABLE t (x); PRAGMA wal_checkpoint(TRUNCATE);
             INSERT INTO t VALUES (zeroblob(9000))",
        )
        .unwrap();
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    (read("wal.db"), read("wal.db-wal"))
}

#[test]
fn only_who_holds_its_lock_does_what_a_checkpoint_does() {
    let dir = tempfile::tempdir().unwrap();
    let (content, wal) = files_of_a_wal(&dir);
    let place = Place::new("PRAGMA journal_mode=WAL; CREATE TABLE other (x)");
    let db = &place.db;
    place.database.import(&mut content.as_slice()).unwrap();
    place.until(|db| db.pos().0 == place.database.pos());
    place.lock(1, Part::Main, bytes::SHARED, LockKind::Read).unwrap();
    place.lock(1, Part::Shm, Range::byte(bytes::WRITE), LockKind::Write).unwrap();
    db.create(Part::Wal).unwrap();
    let (header, frames) = wal.split_at(crate::wal::HEADER_LEN);
    db.write(Part::Wal, 1, 0, header).unwrap();
    db.write(Part::Wal, 1, header.len() as u64, frames).unwrap();
    assert_eq!(db.pos().0, place.database.pos());
    let page = &frames[crate::wal::FRAME_HEAD_LEN..][..4096];
    let pgno = u32::from_be_bytes(frames[..4].try_into().unwrap());
    let offset = u64::from(pgno - 1) * 4096;
    let len = db.attributes(Part::Main).unwrap().size;

    assert_eq!(db.write(Part::Main, 1, offset, page), Err(Errno::EIO));
    assert_eq!(db.truncate(Part::Main, Some(1), len + 4096), Err(Errno::EPERM));
    place.lock(1, Part::Shm, Range::byte(bytes::CKPT), LockKind::Write).unwrap();
    db.write(Part::Main, 1, offset, page).unwrap();
    assert_eq!(db.read(Part::Main, offset, 4096).unwrap(), page);
    // The newest size, and one of before.
    for pages in [1, 2] {
        db.truncate(Part::Main, Some(1), len + pages * 4096).unwrap();
        db.truncate(Part::Main, Some(1), len).unwrap();
    }
    for len in [0, len + 1, len + (1 << 30)] {
        assert_eq!(db.truncate(Part::Main, Some(1), len), Err(Errno::EPERM), "{len}");
    }
}

/// As the pool's threads do, which go on after a request that panics.
fn catch(request: impl FnOnce()) {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(request)).unwrap_err();
}

fn panic() -> ! {
    std::panic::resume_unwind(Box::new("for the test"))
}

#[test]
fn what_comes_after_a_commit_that_panicked_is_shown() {
    let place = Place::new("CREATE TABLE t (x)");
    catch(|| advance::announcing_own_commit(|| panic()));
    place.import("INSERT INTO t VALUES (1)");
    place.until(|db| db.pos().0 == place.database.pos());
}

struct NoCluster;

impl Cluster for NoCluster {
    fn primary(&self) -> Option<String> {
        None
    }

    fn lag(&self) -> Lag {
        Lag { behind: None, primary_time: None }
    }

    fn halt(&self, _db: &DbName) -> std::result::Result<(), RemoteError> {
        Ok(())
    }

    fn resume(&self, _db: &DbName) {}
}

#[test]
fn a_commit_of_a_request_that_panics_is_not_the_next_ones() {
    let mut place = Place::new("PRAGMA journal_mode=WAL; CREATE TABLE other (x)");
    let (content, wal) = files_of_a_wal(&place.dir);
    place.database.import(&mut content.as_slice()).unwrap();
    let mounted = Arc::new(Mounted {
        tree: Tree::new(place.shared.clone(), Arc::new(NoCluster)).unwrap(),
        handles: Handles::default(),
        data_dir: place.dir.path().to_owned(),
        passthrough: false,
        debug: false,
        halts: Mutex::default(),
    });
    place.db = mounted.database(place.database.name()).unwrap();
    let db = &place.db;
    place.lock(1, Part::Main, bytes::SHARED, LockKind::Read).unwrap();
    place.lock(1, Part::Shm, Range::byte(bytes::WRITE), LockKind::Write).unwrap();
    db.create(Part::Wal).unwrap();
    let (header, frames) = wal.split_at(crate::wal::HEADER_LEN);
    db.write(Part::Wal, 1, 0, header).unwrap();
    let before = place.database.pos();
    let act = |_: &Mounted| {
        db.write(Part::Wal, 1, header.len() as u64, frames).unwrap();
        panic()
    };
    catch(|| commit(&mounted, act, |_: Result<()>| ()));
    assert_ne!(place.database.pos(), before);
    assert_eq!(db.sync(Part::Wal), Err(Errno::EIO), "its client was told that it failed");

    place.shared.store.gate().close("for the test");
    let (sender, answer) = mpsc::channel();
    commit(&mounted, |_| Ok(()), move |result| sender.send(result).unwrap());
    assert_eq!(answer.recv_timeout(PATIENCE), Ok(Ok(())), "it has committed nothing");
}

/// The daemon would run out of memory over it, and with it all databases.
#[test]
fn a_size_that_nobody_wrote_is_refused() {
    let place = Place::new("CREATE TABLE t (x)");
    let mut page = place.db.read(Part::Main, 0, 4096).unwrap();
    let before = place.database.pos();
    page[28..32].copy_from_slice(&0xffff_fff0_u32.to_be_bytes());
    for at in [24, 92] {
        page[at..at + 4].copy_from_slice(&77_u32.to_be_bytes());
    }
    place.lock(1, Part::Main, Range::byte(bytes::RESERVED), LockKind::Write).unwrap();
    place.db.create(Part::Journal).unwrap();
    place.db.write(Part::Journal, 1, 0, &crate::journal::MAGIC).unwrap();
    place.db.write(Part::Main, 2, 0, &page).unwrap();
    assert_eq!(place.db.truncate(Part::Journal, Some(1), 0), Err(Errno::EIO));
    assert_eq!(place.database.pos(), before);
}

/// The kernel passes writes to a mapped shm by; what comes here is counted as its file's.
#[test]
fn each_write_is_counted_as_its_files() {
    use std::sync::atomic::Ordering::Relaxed;
    let place = Place::new("CREATE TABLE t (x)");
    place.lock(1, Part::Main, bytes::SHARED, LockKind::Read).unwrap();
    place.db.create(Part::Shm).unwrap();
    place.db.write(Part::Shm, 1, 0, &[0; 32]).unwrap();
    place.db.write(Part::Shm, 1, 32, &[0; 32]).unwrap();
    let counters = place.database.counters();
    assert_eq!(counters.shm_writes.load(Relaxed), 2);
    assert_eq!(counters.database_writes.load(Relaxed), 0);
}
