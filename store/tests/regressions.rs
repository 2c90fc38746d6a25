//! Scenarios in which the engine once lost, hid or blocked something; each test tells its story.

mod common;

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use litefs_store::*;

const PAGE: usize = 512;
fn pgno(n: u32) -> Pgno {
    Pgno::new(n).unwrap()
}
fn page(number: u32, version: u32) -> Vec<u8> {
    common::page(number, version, PAGE)
}
fn open(dir: &Path) -> (Store, Database) {
    let store =
        Store::open_with(dir, Options { background: false, cache_size: 0, ..Options::default() })
            .unwrap();
    let db = store.create(&DbName::new("db").unwrap()).unwrap();
    (store, db)
}
fn commit(db: &Database, pages: &[(u32, u32)], size: u32) -> Pos {
    commit_as(db, pages, size, Durability::Full)
}
fn commit_as(db: &Database, pages: &[(u32, u32)], size: u32, durability: Durability) -> Pos {
    let snapshot = db.snapshot().unwrap();
    let mut writer = db.begin_write(&snapshot).unwrap();
    for &(number, version) in pages {
        writer.write_page(pgno(number), &page(number, version)).unwrap();
    }
    writer.prepare(size, durability, false).unwrap();
    writer.sync().unwrap();
    writer.publish()
}
fn crash(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    common::copy_dir(dir, copy.path());
    copy
}

/// Waits for what happens in the background.
#[track_caller]
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Tears the record that holds `page`: one of the page's sectors did not reach the disk.
fn tear(data: &Path, page: &[u8]) {
    let path = data.join("dbs/db/log/0000000000000001.seg");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(PAGE).position(|w| w == page).unwrap();
    bytes[at..at + 8].fill(0);
    std::fs::write(&path, bytes).unwrap();
}

/// Killed between `open(mark)` and its first write; the next process never writes a mark.
#[test]
fn an_empty_mark_file_does_not_cost_the_database() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    std::fs::create_dir_all(dir.path().join("dbs/db/log")).unwrap();
    std::fs::write(dir.path().join("dbs/db/mark"), b"").unwrap();
    let (_store, db) = open(dir.path());
    assert_eq!(db.quarantined(), None);
    let pos = commit(&db, &[(1, 1)], 1);
    let copy = crash(dir.path());
    let (_s, again) = open(copy.path());
    assert_eq!(again.quarantined(), None);
    assert_eq!(again.pos(), pos);
}

/// Two rewinds into the same segment without a fold in between.
#[test]
fn a_second_rewind_into_one_segment_keeps_the_older_segments() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, db) = open(dir.path());
    let mut points = vec![];
    for version in 1..60 {
        points.push(commit(&db, &[(1, version)], 1));
    }
    let segs = || std::fs::read_dir(dir.path().join("dbs/db/log")).unwrap().count();
    assert!(segs() >= 2, "{}", segs());
    let n = points.len();
    db.rewind(points[n - 3]).unwrap();
    commit(&db, &[(1, 100)], 1);
    let to = points[n - 5];
    db.rewind(to).unwrap();
    let copy = crash(dir.path());
    let (_s, again) = open(copy.path());
    assert_eq!(again.quarantined(), None);
    assert_eq!(again.pos(), to);
}

/// A reader pinned before a rewind, then a fold of the new history.
#[test]
fn a_reader_from_before_a_rewind_keeps_its_pages_over_a_fold() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, db) = open(dir.path());
    commit(&db, &[(1, 1), (2, 1), (3, 1)], 3);
    db.fold().unwrap();
    let common = commit(&db, &[(1, 2)], 3);
    commit(&db, &[(1, 3)], 3);
    let reader = db.snapshot().unwrap();
    db.rewind(common).unwrap();
    commit(&db, &[(3, 9)], 3);
    db.fold().unwrap();
    let mut buf = vec![0; PAGE];
    reader.read_page(pgno(3), &mut buf).unwrap();
    assert_eq!(buf, page(3, 1));
}

/// The cursor's place is at the end of an old tail behind which a torn record lies.
#[test]
fn a_cursor_does_not_read_what_recovery_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, db) = open(dir.path());
    commit(&db, &[(1, 1)], 1);
    let kept = commit(&db, &[(1, 2)], 1);
    let lost = commit(&db, &[(1, 3)], 1);
    assert_eq!(lost.txid, kept.txid.next());
    let copy = crash(dir.path());
    tear(copy.path(), &page(1, 3));

    let (_s, again) = open(copy.path());
    assert_eq!(again.pos(), kept);
    let new = commit(&again, &[(1, 33)], 1);
    let mut cursor = again.log_cursor(Pos::ZERO).unwrap();
    assert_eq!(cursor.next().unwrap().unwrap().pos().txid, Txid::new(1));
    assert_eq!(cursor.next().unwrap().unwrap().pos(), kept);
    let record = cursor.next().unwrap().unwrap();
    assert_eq!(record.pos(), new, "the record streamed is the one committed");
    let mut bytes = vec![];
    std::io::Read::read_to_end(&mut record.reader(), &mut bytes).unwrap();
    litefs_store::ltx::verify(Cursor::new(bytes)).unwrap();
}

/// Nor does such a tail spoil what is kept of diverged transactions.
#[test]
fn diverged_transactions_are_kept_whole_after_a_lost_tail() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, db) = open(dir.path());
    let common = commit(&db, &[(1, 1)], 1);
    commit(&db, &[(1, 2)], 1);
    commit(&db, &[(1, 3)], 1);
    let copy = crash(dir.path());
    tear(copy.path(), &page(1, 3));
    let (_s, again) = open(copy.path());
    commit(&again, &[(1, 33)], 1);
    commit(&again, &[(1, 34)], 1);
    let kept = again.preserve_diverged(Some(common)).unwrap().unwrap();
    let records = kept.records(&OsStorage).unwrap();
    assert_eq!(records.len(), 3);
    for path in records.into_iter().chain(kept.whole_file()) {
        litefs_store::ltx::verify(std::fs::File::open(path).unwrap()).unwrap();
    }
}

/// A flipped bit in the frame header of a folded record must not hide the acknowledged ones behind
/// it.
#[test]
fn damage_below_the_mark_is_not_a_lost_tail() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, db) = open(dir.path());
    for version in 1..6 {
        commit(&db, &[(1, version)], 1);
    }
    db.fold().unwrap();
    let acked = commit(&db, &[(1, 6)], 1);
    let copy = crash(dir.path());
    let path = copy.path().join("dbs/db/log/0000000000000001.seg");
    let mut bytes = std::fs::read(&path).unwrap();
    let second = bytes.windows(4).enumerate().filter(|(_, w)| w == b"LTXF").nth(1).unwrap().0;
    bytes[second + 9] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let (_s, again) = open(copy.path());
    assert!(again.quarantined().is_some() || again.pos() == acked, "{}", again.pos());
}

/// Nor may one in the header of the last segment.
#[test]
fn damage_of_a_segment_header_is_not_a_lost_tail() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, db) = open(dir.path());
    for version in 1..60 {
        commit(&db, &[(1, version)], 1);
    }
    let acked = db.pos();
    let copy = crash(dir.path());
    let log = copy.path().join("dbs/db/log");
    let last = std::fs::read_dir(&log)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "seg"))
        .max()
        .unwrap();
    let mut bytes = std::fs::read(&last).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&last, bytes).unwrap();
    let (_s, again) = open(copy.path());
    assert!(again.quarantined().is_some() || again.pos() == acked, "{} {acked}", again.pos());
}

/// Also one with more than one segment, of which the retention time keeps the older ones.
#[test]
fn a_quiet_database_is_folded_after_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let db = store.create(&DbName::new("db").unwrap()).unwrap();
    for version in 1..100 {
        commit_as(&db, &[(1, version)], 1, Durability::Off);
    }
    eventually("the first fold", || db.stats().mark == Txid::new(99));
    commit_as(&db, &[(1, 1000)], 1, Durability::Off);
    eventually("the fold of one more", || db.stats().mark == Txid::new(100));
}

/// A disk whose next sync of a file waits until told.
#[derive(Debug)]
struct Slow {
    inner: OsStorage,
    gate: Arc<Gate>,
}
#[derive(Debug, Default)]
struct Gate {
    armed: AtomicBool,
    waiting: AtomicBool,
    go: AtomicBool,
    syncs: std::sync::atomic::AtomicU64,
}
impl Gate {
    fn pass(&self) {
        if self.armed.swap(false, Ordering::SeqCst) {
            self.waiting.store(true, Ordering::SeqCst);
            while !self.go.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
        }
    }
}
#[derive(Debug)]
struct SlowFile(Arc<dyn File>, Arc<Gate>);
impl File for SlowFile {
    fn read_at(&self, b: &mut [u8], o: u64) -> std::io::Result<usize> {
        self.0.read_at(b, o)
    }
    fn write_all_at(&self, b: &[u8], o: u64) -> std::io::Result<()> {
        self.0.write_all_at(b, o)
    }
    fn set_len(&self, l: u64) -> std::io::Result<()> {
        self.0.set_len(l)
    }
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }
    fn sync_data(&self) -> std::io::Result<()> {
        self.0.sync_data()?;
        self.1.syncs.fetch_add(1, Ordering::SeqCst);
        self.1.pass();
        Ok(())
    }
    fn allocate(&self, l: u64) -> std::io::Result<()> {
        self.0.allocate(l)
    }
}
impl Storage for Slow {
    fn open(&self, p: &Path, m: OpenMode) -> std::io::Result<Arc<dyn File>> {
        Ok(Arc::new(SlowFile(self.inner.open(p, m)?, self.gate.clone())))
    }
    fn rename(&self, a: &Path, b: &Path) -> std::io::Result<()> {
        self.inner.rename(a, b)
    }
    fn remove_file(&self, p: &Path) -> std::io::Result<()> {
        self.inner.remove_file(p)
    }
    fn create_dir_all(&self, p: &Path) -> std::io::Result<()> {
        self.inner.create_dir_all(p)
    }
    fn remove_dir_all(&self, p: &Path) -> std::io::Result<()> {
        self.inner.remove_dir_all(p)
    }
    fn list(&self, p: &Path) -> std::io::Result<Vec<String>> {
        self.inner.list(p)
    }
    fn file_len(&self, p: &Path) -> std::io::Result<Option<u64>> {
        self.inner.file_len(p)
    }
    fn sync_dir(&self, p: &Path) -> std::io::Result<()> {
        self.inner.sync_dir(p)
    }
    fn lock_dir(&self, p: &Path) -> std::io::Result<Box<dyn DirLock>> {
        Ok(Box::new(SlowLock { _inner: self.inner.lock_dir(p)?, gate: self.gate.clone() }))
    }
}

/// A lock of which the release waits like a sync.
#[derive(Debug)]
struct SlowLock {
    _inner: Box<dyn DirLock>,
    gate: Arc<Gate>,
}
impl DirLock for SlowLock {}
impl Drop for SlowLock {
    fn drop(&mut self) {
        self.gate.pass();
    }
}

/// Who closes a store that is being closed may open it again then.
#[test]
fn a_store_that_two_close_at_once_is_closed_when_either_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Arc::new(Gate::default());
    let storage = Arc::new(Slow { inner: OsStorage, gate: gate.clone() });
    let options = Options { background: false, storage, ..Options::default() };
    let store = Store::open_with(dir.path(), options).unwrap();
    gate.armed.store(true, Ordering::SeqCst);
    let (told, closed) = std::sync::mpsc::channel();
    for _ in 0..2 {
        let (store, told) = (store.clone(), told.clone());
        std::thread::spawn(move || told.send(store.close().is_ok()));
        eventually("the first lets the directory go", || gate.waiting.load(Ordering::SeqCst));
    }
    assert!(closed.recv_timeout(Duration::from_millis(300)).is_err(), "the directory is held");
    gate.go.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        assert_eq!(closed.recv_timeout(Duration::from_secs(60)), Ok(true));
    }
    Store::open(dir.path()).unwrap();
}

/// A sync that began before a rewind ends after new records were appended.
#[test]
fn a_late_sync_does_not_vouch_for_records_appended_after_a_rewind() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Arc::new(Gate::default());
    let storage = Arc::new(Slow { inner: OsStorage, gate: gate.clone() });
    let options = Options { background: false, storage, ..Options::default() };
    let store = Store::open_with(dir.path(), options).unwrap();
    let db = store.create(&DbName::new("db").unwrap()).unwrap();
    let common = commit(&db, &[(1, 1)], 1);
    commit_as(&db, &[(1, 2)], 1, Durability::Normal);
    gate.armed.store(true, Ordering::SeqCst);
    let syncer = std::thread::spawn({
        let db = db.clone();
        move || db.sync().map(|_| ())
    });
    while !gate.waiting.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    db.rewind(common).unwrap();
    commit_as(&db, &[(1, 22)], 1, Durability::Normal);
    assert_eq!(db.synced_pos(), common);
    gate.go.store(true, Ordering::SeqCst);
    syncer.join().unwrap().unwrap();
    assert_eq!(db.synced_pos(), common, "nothing has synced the new record 2");
}

/// A peer's record with the last transaction id there is.
#[test]
fn no_transaction_id_makes_the_store_panic() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, db) = open(dir.path());
    let before = commit(&db, &[(1, 1)], 1);
    let header = ltx::Header {
        compressed: false,
        page_size: PageSize::new(512).unwrap(),
        commit: 1,
        min_txid: Txid::new(2),
        max_txid: Txid::new(u64::MAX),
        timestamp_ms: 0,
        pre_apply: before.checksum,
        wal_offset: 0,
        wal_size: 0,
        wal_salt1: 0,
        wal_salt2: 0,
        node_id: 0,
    };
    let mut encoder = ltx::Encoder::new(Vec::new(), header).unwrap();
    encoder.encode_page(pgno(1), &page(1, 7)).unwrap();
    let post = before
        .checksum
        .toggle(ltx::page_checksum(pgno(1), &page(1, 1)))
        .toggle(ltx::page_checksum(pgno(1), &page(1, 7)));
    let (bytes, _) = encoder.finish(post).unwrap();
    let _ = db.apply(&mut Cursor::new(&bytes), Durability::Full);
    let snapshot = db.snapshot().unwrap();
    let mut writer = db.begin_write(&snapshot).unwrap();
    writer.write_page(pgno(1), &page(1, 8)).unwrap();
    let _ = writer.prepare(1, Durability::Full, false);
}

/// They go when the next preservation begins.
#[test]
fn leftovers_of_an_interrupted_preservation_are_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, db) = open(dir.path());
    let common = commit(&db, &[(1, 1)], 1);
    commit(&db, &[(1, 2)], 1);
    let unfinished = dir.path().join("dbs/db/diverged/unfinished");
    std::fs::create_dir_all(&unfinished).unwrap();
    std::fs::write(unfinished.join("0000000000000009-0000000000000009.ltx"), b"torn").unwrap();
    let kept = db.preserve_diverged(Some(common)).unwrap().unwrap();
    assert_eq!(kept.records(&OsStorage).unwrap().len(), 1);
    assert!(!unfinished.exists());
}

/// `apply` with a durability below the store's.
#[test]
fn applied_records_follow_the_stores_durability() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (_s0, primary) = open(dirs[0].path());
    let options = Options { durability: Durability::Normal, ..Options::default() };
    let store = Store::open_with(dirs[1].path(), options).unwrap();
    let replica = store.create(&DbName::new("db").unwrap()).unwrap();
    commit(&primary, &[(1, 1)], 1);
    let mut cursor = primary.log_cursor(Pos::ZERO).unwrap();
    let record = cursor.next().unwrap().unwrap();
    let _pinned = replica.snapshot().unwrap(); // a fold would sync the log, too
    replica.apply(&mut record.reader(), Durability::Off).unwrap();
    eventually("its sync", || replica.synced_pos() == replica.pos());
}

/// The next process does it in the background, soon.
#[test]
fn what_a_killed_process_left_is_synced_and_folded_without_a_commit() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, db) = open(dir.path());
    commit_as(&db, &[(1, 1)], 1, Durability::Normal);
    let copy = crash(dir.path());
    let store = Store::open(copy.path()).unwrap();
    let again = store.database(&DbName::new("db").unwrap()).unwrap();
    assert_eq!(again.pos().txid, Txid::new(1));
    eventually("its sync", || again.synced_pos() == again.pos());
    eventually("its fold", || again.stats().mark == again.pos().txid);
}

/// The gate is checked before a commit of less than full durability is acknowledged.
#[test]
fn no_commit_is_acknowledged_after_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let (store, db) = open(dir.path());
    let snapshot = db.snapshot().unwrap();
    let mut writer = db.begin_write(&snapshot).unwrap();
    writer.write_page(pgno(1), &page(1, 8)).unwrap();
    writer.prepare(1, Durability::Normal, false).unwrap();
    store.gate().close("lost");
    assert!(writer.sync().is_err());
}

/// A waiter whose turn passed does not keep the others asleep while the token is free.
#[test]
fn a_waiter_that_gave_up_does_not_keep_the_next_asleep() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, db) = open(dir.path());
    commit(&db, &[(1, 1)], 1);
    let snapshot = db.snapshot().unwrap();
    let writer = db.begin_write(&snapshot).unwrap();
    let first = std::thread::spawn({
        let db = db.clone();
        move || db.wait_for_writer(Duration::from_secs(20)) // and then does not write
    });
    std::thread::sleep(Duration::from_millis(200));
    let second = std::thread::spawn({
        let db = db.clone();
        move || {
            let start = Instant::now();
            db.wait_for_writer(Duration::from_secs(20));
            start.elapsed()
        }
    });
    std::thread::sleep(Duration::from_millis(200));
    drop(writer);
    first.join().unwrap();
    let waited = second.join().unwrap();
    assert!(waited < Duration::from_secs(5), "{waited:?}");
}

/// Rewind takes `folding` and then the token, an installation the token and then `folding`.
#[test]
fn a_rewind_and_an_installation_at_once_both_end() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (_s, peer) = open(dirs[1].path());
    commit(&peer, &[(1, 1)], 1);
    let mut record = vec![];
    peer.snapshot().unwrap().write_snapshot_record(&mut record).unwrap();

    let gate = Arc::new(Gate::default());
    let storage = Arc::new(Slow { inner: OsStorage, gate: gate.clone() });
    let options = Options { background: false, storage, ..Options::default() };
    let store = Store::open_with(dirs[0].path(), options).unwrap();
    let db = store.create(&DbName::new("db").unwrap()).unwrap();
    let common = commit(&db, &[(1, 1)], 1);
    commit_as(&db, &[(1, 2)], 1, Durability::Normal);
    let pause = || std::thread::sleep(Duration::from_millis(300));
    let (done, ended) = std::sync::mpsc::channel();
    // A fold that takes long…
    gate.armed.store(true, Ordering::SeqCst);
    std::thread::spawn({
        let db = db.clone();
        move || db.fold()
    });
    while !gate.waiting.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    // …then a rewind, and the end of a snapshot that was being received.
    for job in 0..2 {
        let (db, done, record) = (db.clone(), done.clone(), record.clone());
        std::thread::spawn(move || {
            match job {
                0 => drop(db.rewind(common)),
                _ => drop(db.install_snapshot(&mut Cursor::new(&record))),
            }
            done.send(job)
        });
        pause();
    }
    gate.go.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        ended.recv_timeout(Duration::from_secs(10)).expect("neither waits for the other for ever");
    }
}

/// Since a start copies the tail, its records point to a segment that the log does not know.
#[test]
fn a_rewind_after_a_start_keeps_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, db) = open(dir.path());
    let mut points = vec![];
    for version in 1..60 {
        points.push(commit(&db, &[(1, version)], 1));
    }
    let copy = crash(dir.path());
    let (_s, again) = open(copy.path());
    again.sync().unwrap();
    let to = points[points.len() - 3];
    again.rewind(to).unwrap();
    assert_eq!(again.relation(points[50]).unwrap(), Relation::Behind);
    let copy = crash(copy.path());
    let (_s, again) = open(copy.path());
    assert_eq!((again.quarantined(), again.pos()), (None, to));
}

/// The cursor was at the old tail's end before the first commit after the start.
#[test]
fn a_cursor_that_waits_at_a_torn_tail_gets_the_next_commit() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, db) = open(dir.path());
    commit(&db, &[(1, 1)], 1);
    let kept = commit(&db, &[(1, 2)], 1);
    commit(&db, &[(1, 3)], 1);
    let copy = crash(dir.path());
    tear(copy.path(), &page(1, 3));

    let (_s, again) = open(copy.path());
    let mut cursor = again.log_cursor(Pos::ZERO).unwrap();
    cursor.next().unwrap().unwrap();
    assert_eq!(cursor.next().unwrap().unwrap().pos(), kept);
    assert!(cursor.next().unwrap().is_none());
    let new = commit(&again, &[(1, 33)], 1);
    assert_eq!(cursor.next().unwrap().unwrap().pos(), new);
}
