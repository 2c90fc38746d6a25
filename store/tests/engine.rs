//! The engine against a model: whatever is committed is read back, by whoever may read it, however
//! it lies on disk.

mod common;

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use litefs_store::sim::{CallKind, SimDisk};
use litefs_store::{
    Checksum, Database, DbName, Durability, ErrorKind, Options, OsStorage, Pgno, Pos, Relation,
    Snapshot, Storage, Store, Txid,
};

use common::{copy_dir, page};

const PAGE: usize = 512;

fn pgno(n: u32) -> Pgno {
    Pgno::new(n).unwrap()
}

fn manual() -> Options {
    Options { background: false, ..Options::default() }
}

fn open(dir: &Path) -> (Store, Database) {
    let store = Store::open_with(dir, manual()).unwrap();
    let db = store.create(&DbName::new("db").unwrap()).unwrap();
    (store, db)
}

fn commit(db: &Database, pages: &[(u32, u32)], size: u32) -> Pos {
    commit_sized(db, pages, size, PAGE)
}

fn commit_sized(db: &Database, pages: &[(u32, u32)], size: u32, page_size: usize) -> Pos {
    let snapshot = db.snapshot().unwrap();
    let mut writer = db.begin_write(&snapshot).unwrap();
    for &(number, version) in pages {
        writer.write_page(pgno(number), &page(number, version, page_size)).unwrap();
    }
    writer.prepare(size, Durability::Full, false).unwrap();
    writer.sync().unwrap();
    writer.publish()
}

fn read(snapshot: &Snapshot, number: u32) -> Vec<u8> {
    let mut buf = vec![0; snapshot.page_size().unwrap().len()];
    snapshot.read_page(pgno(number), &mut buf).unwrap();
    buf
}

fn export(db: &Database) -> Vec<u8> {
    let mut out = Vec::new();
    db.export(&mut out).unwrap();
    out
}

/// The database checksum by its definition, from the bytes alone.
fn checksum_of(bytes: &[u8], page_size: usize) -> Checksum {
    let pages = bytes.chunks(page_size).zip(1..);
    pages.fold(Checksum::EMPTY, |sum, (data, number)| {
        sum.toggle(litefs_store::ltx::page_checksum(pgno(number), data))
    })
}

#[test]
fn a_reader_keeps_its_state_while_commits_and_folds_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, db) = open(dir.path());
    commit(&db, &[(1, 1), (2, 1)], 2);
    let old = db.snapshot().unwrap();
    commit(&db, &[(2, 2), (3, 2)], 3);
    db.fold().unwrap();
    commit(&db, &[(1, 3)], 1);
    db.fold().unwrap();

    assert_eq!(old.page_count(), 2);
    assert_eq!(read(&old, 2), page(2, 1, PAGE));
    let new = db.snapshot().unwrap();
    assert_eq!(new.page_count(), 1);
    assert_eq!(read(&new, 1), page(1, 3, PAGE));
    drop((old, new));
    db.fold().unwrap();
    assert_eq!(db.stats().mark, Txid::new(3));
    assert_eq!(export(&db), page(1, 3, PAGE));
}

#[test]
fn only_one_writer_and_only_from_the_newest_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let (store, db) = open(dir.path());
    commit(&db, &[(1, 1)], 1);
    let stale = db.snapshot().unwrap();
    let writer = db.begin_write(&stale).unwrap();
    let busy = db.begin_write(&stale).unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::Busy);
    drop(writer);
    commit(&db, &[(1, 2)], 1);
    assert_eq!(db.begin_write(&stale).unwrap_err().kind(), ErrorKind::StaleSnapshot);

    store.gate().close("this node is a replica of http://a:1");
    let error = db.begin_write(&db.snapshot().unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly);
    assert!(error.to_string().contains("http://a:1"), "{error}");
}

#[test]
fn a_rollback_leaves_no_record_whether_prepared_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, db) = open(dir.path());
    let before = commit(&db, &[(1, 1)], 1);
    for prepared in [false, true] {
        let snapshot = db.snapshot().unwrap();
        let mut writer = db.begin_write(&snapshot).unwrap();
        writer.write_page(pgno(1), &page(1, 9, PAGE)).unwrap();
        if prepared {
            writer.prepare(1, Durability::Full, false).unwrap();
            writer.sync().unwrap();
        }
        drop(writer);
        assert_eq!(db.pos(), before);
    }
    // Nor does one in which nothing changed, even where nothing may be written.
    let snapshot = db.snapshot().unwrap();
    let mut writer = db.begin_write(&snapshot).unwrap();
    writer.write_page(pgno(1), &page(1, 1, PAGE)).unwrap();
    writer.prepare(1, Durability::Full, false).unwrap();
    assert_eq!(writer.publish(), before);
    drop(writer);

    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), copy.path());
    let (_store, reopened) = open(copy.path());
    assert_eq!(reopened.pos(), before);
    assert_eq!(commit(&reopened, &[(1, 3)], 1).txid, before.txid.next());
}

#[test]
fn a_change_of_the_counters_alone_is_no_transaction_if_asked_so() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, db) = open(dir.path());
    let before = commit(&db, &[(1, 1), (2, 1)], 2);
    let mut changed = page(1, 1, PAGE);
    changed[24..28].copy_from_slice(b"abcd");
    changed[92..100].copy_from_slice(b"efghijkl");
    for (elide, commits) in [(true, 0), (false, 1)] {
        let snapshot = db.snapshot().unwrap();
        let mut writer = db.begin_write(&snapshot).unwrap();
        writer.write_page(pgno(1), &changed).unwrap();
        writer.prepare(2, Durability::Off, elide).unwrap();
        assert_eq!(writer.publish().txid.get(), before.txid.get() + commits);
    }
}

#[test]
fn a_dropped_database_can_come_back_with_another_page_size() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, db) = open(dir.path());
    commit(&db, &[(1, 1), (2, 1), (3, 1)], 3);
    let old = db.snapshot().unwrap();
    let dropped = db.drop_database().unwrap();
    assert_eq!(dropped, Pos::new(Txid::new(2), Checksum::EMPTY));
    assert_eq!((db.page_count(), export(&db)), (0, vec![]));
    assert_eq!(db.drop_database().unwrap_err().kind(), ErrorKind::NotFound);

    let pos = commit_sized(&db, &[(1, 7), (2, 7)], 2, 4096);
    let content = [page(1, 7, 4096), page(2, 7, 4096)].concat();
    assert_eq!(export(&db), content);
    assert_eq!(pos, Pos::new(Txid::new(3), checksum_of(&content, 4096)));
    assert_eq!(read(&old, 3), page(3, 1, PAGE));
    drop(old);
    db.fold().unwrap();
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), copy.path());
    assert_eq!(export(&open(copy.path()).1), content);
}

#[test]
fn a_page_that_rotted_on_disk_is_never_served() {
    let dir = tempfile::tempdir().unwrap();
    let (store, db) = open(dir.path());
    commit(&db, &[(1, 1), (2, 1)], 2);
    db.fold().unwrap();
    let base = dir.path().join("dbs/db/base");
    store.close().unwrap();
    let mut bytes = std::fs::read(&base).unwrap();
    bytes[PAGE + 100] ^= 1;
    std::fs::write(&base, bytes).unwrap();

    let (store, db) = open(dir.path());
    let snapshot = db.snapshot().unwrap();
    assert_eq!(read(&snapshot, 1), page(1, 1, PAGE));
    let mut buf = vec![0; PAGE];
    let error = snapshot.read_page(pgno(2), &mut buf).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("page 2"), "{error}");
    assert!(db.snapshot().is_err() && db.quarantined().is_some());

    let other = store.create(&DbName::new("other").unwrap()).unwrap();
    commit(&other, &[(1, 1)], 1);

    // A snapshot from a peer repairs it.
    let peer_dir = tempfile::tempdir().unwrap();
    let (_peer_store, peer) = open(peer_dir.path());
    let pos = commit(&peer, &[(1, 5)], 1);
    let mut record = Vec::new();
    peer.snapshot().unwrap().write_snapshot_record(&mut record).unwrap();
    assert_eq!(db.install_snapshot(&mut Cursor::new(&record)).unwrap(), pos);
    assert_eq!(export(&db), page(1, 5, PAGE));
    // Readers of the old content find its damage; the new one does not take the blame.
    assert_eq!(snapshot.read_page(pgno(2), &mut buf).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(db.quarantined(), None);
}

fn ship(from: &Database, to: &Database) {
    let mut cursor = from.log_cursor(to.pos()).unwrap();
    while let Some(record) = cursor.next().unwrap() {
        let pos = to.apply(&mut record.reader(), Durability::Normal).unwrap();
        assert_eq!(pos, record.pos());
    }
    assert_eq!(cursor.backlog(), 0);
}

#[test]
fn a_replica_follows_by_records_by_a_compacted_record_and_by_a_snapshot() {
    let dirs = [(); 4].map(|()| tempfile::tempdir().unwrap());
    let (_s0, primary) = open(dirs[0].path());
    let (_s1, follower) = open(dirs[1].path());
    let (_s2, late) = open(dirs[2].path());
    let (_s3, empty) = open(dirs[3].path());
    commit(&primary, &[(1, 1), (2, 1), (3, 1)], 3);
    ship(&primary, &late);
    commit(&primary, &[(3, 2), (4, 2)], 4);
    commit(&primary, &[(1, 3)], 2);
    primary.fold().unwrap();
    commit(&primary, &[(2, 4), (3, 4)], 3);
    ship(&primary, &follower);

    let compacted = primary.compacted(primary.snapshot().unwrap(), late.pos()).unwrap();
    assert_eq!(compacted.pages(), 3);
    let mut record = Vec::new();
    compacted.write_to(&mut record).unwrap();
    assert_eq!(record.len() as u64, compacted.len());
    late.apply(&mut Cursor::new(&record), Durability::Normal).unwrap();

    let snapshot = primary.snapshot().unwrap();
    let mut record = Vec::new();
    snapshot.write_snapshot_record(&mut record).unwrap();
    assert_eq!(record.len() as u64, snapshot.snapshot_record_len());
    empty.install_snapshot(&mut Cursor::new(&record)).unwrap();

    for replica in [&follower, &late, &empty] {
        assert_eq!(replica.pos(), primary.pos());
        assert_eq!(export(replica), export(&primary));
    }
    commit(&primary, &[(2, 5)], 3);
    for replica in [&follower, &late, &empty] {
        ship(&primary, replica);
        assert_eq!(export(replica), export(&primary));
    }
}

#[test]
fn a_record_that_lies_changes_nothing() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (_s0, primary) = open(dirs[0].path());
    let (_s1, replica) = open(dirs[1].path());
    commit(&primary, &[(1, 1), (2, 1)], 2);
    ship(&primary, &replica);
    let before = replica.pos();
    commit(&primary, &[(1, 2)], 2);
    let record = primary.log_cursor(before).unwrap().next().unwrap().unwrap();
    let mut bytes = vec![0; record.len() as usize];
    record.read_at(0, &mut bytes).unwrap();

    for at in [4, 30, 42, 104, 300, bytes.len() - 10, bytes.len() - 1] {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        let error = replica.apply(&mut Cursor::new(&bad), Durability::Full).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Mismatch, "byte {at}: {error}");
        assert_eq!(replica.pos(), before);
    }
    // Sound in itself, but not what the pages lead to.
    let header = litefs_store::ltx::Header::decode(bytes[..100].try_into().unwrap()).unwrap();
    let mut encoder = litefs_store::ltx::Encoder::new(Vec::new(), header).unwrap();
    encoder.encode_page(pgno(1), &page(1, 99, PAGE)).unwrap();
    let (lie, _) = encoder.finish(primary.pos().checksum).unwrap();
    let error = replica.apply(&mut Cursor::new(&lie), Durability::Full).unwrap_err();
    assert!(error.to_string().contains("leads to checksum"), "{error}");
    assert_eq!(export(&replica), [page(1, 1, PAGE), page(2, 1, PAGE)].concat());
    ship(&primary, &replica);
    assert_eq!(replica.pos(), primary.pos());
}

#[test]
fn diverged_transactions_are_kept_and_then_rewound() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (_s0, winner) = open(dirs[0].path());
    let (_s1, loser) = open(dirs[1].path());
    commit(&winner, &[(1, 1), (2, 1)], 2);
    ship(&winner, &loser);
    let common = winner.pos();
    commit(&winner, &[(2, 2)], 2);
    commit(&loser, &[(2, 30)], 2);
    commit(&loser, &[(1, 31), (3, 31)], 3);
    let lost = loser.pos();
    let reader = loser.snapshot().unwrap();

    assert_eq!(winner.relation(lost).unwrap(), Relation::Diverged);
    let points = loser.history_points(64);
    assert_eq!(points[0], lost);
    let found =
        points.into_iter().find(|&point| winner.relation(point).unwrap() == Relation::Behind);
    assert_eq!(found, Some(common));
    let kept = loser.preserve_diverged(Some(common)).unwrap().unwrap();
    assert_eq!((kept.common, kept.newest, kept.transactions()), (Some(common), lost, Some(2)));
    assert_eq!(loser.preserve_diverged(Some(common)).unwrap(), None, "once is enough");
    assert_eq!(loser.diverged().unwrap(), std::slice::from_ref(&kept));
    let records = kept.records(&OsStorage).unwrap();
    assert_eq!(records.len(), 2);
    for path in records.into_iter().chain(kept.whole_file()) {
        litefs_store::ltx::verify(std::fs::File::open(path).unwrap()).unwrap();
    }
    loser.rewind(common).unwrap();
    assert_eq!(loser.pos(), common);
    assert_eq!(export(&loser), [page(1, 1, PAGE), page(2, 1, PAGE)].concat());
    ship(&winner, &loser);
    assert_eq!(export(&loser), export(&winner));
    assert_eq!(read(&reader, 3), page(3, 31, PAGE), "a reader keeps what it saw");
    assert_ne!(reader.generation(), loser.snapshot().unwrap().generation());

    let copy = tempfile::tempdir().unwrap();
    copy_dir(dirs[1].path(), copy.path());
    let (_s, reopened) = open(copy.path());
    assert_eq!(reopened.pos(), winner.pos());
    drop(reader); // else the fold stops at the common position
    loser.fold().unwrap();
    assert_eq!(loser.rewind(common).unwrap_err().kind(), ErrorKind::Gone);
}

#[test]
fn the_log_is_bounded_by_size_and_its_readers_learn_what_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { log_size: Some(200_000), ..manual() };
    let store = Store::open_with(dir.path(), options).unwrap();
    let db = store.create(&DbName::new("db").unwrap()).unwrap();
    let first = commit(&db, &[(1, 1), (2, 1)], 2);
    let mut cursor = db.log_cursor(first).unwrap();
    // Segments grow: 16 KiB, 64, 256, 1 MiB, 4 MiB.
    let mut written = 0;
    for version in 2..2000 {
        let before = db.stats().unfolded_bytes;
        commit(&db, &[(1, version)], 2);
        written += db.stats().unfolded_bytes - before;
        if version % 100 == 0 {
            db.fold().unwrap();
        }
    }
    assert!(written > 1_800_000, "{written} bytes");
    assert_eq!(db.stats().log_bytes, 4 << 20, "the last segment alone: {:?}", db.stats());
    let error = loop {
        match cursor.next() {
            Ok(record) => assert!(record.is_some()),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Gone);
    assert_eq!(db.relation(first).unwrap(), Relation::TooOld);
    assert!(db.log_start().unwrap().txid > first.txid);
}

#[test]
fn importing_checks_the_file_and_continues_the_position() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, db) = open(&dir.path().join("data"));
    let source = dir.path().join("plain.db");
    let plain = rusqlite::Connection::open(&source).unwrap();
    plain.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1), (2)").unwrap();
    drop(plain);
    let bytes = std::fs::read(&source).unwrap();

    for (bad, says) in [
        (&bytes[..50], "begin like"),
        (&bytes[..5000], "multiple of its page size"),
        (&bytes[..4096], "states 2 pages"),
        (&b"garbage garbage garbage garbage garbage garbage garbage garbage garbage garbage garbage garbage garbage"[..], "begin like"),
    ] {
        let error = db.import(&mut Cursor::new(bad)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(says), "{error}");
        assert!(db.pos().is_zero());
    }
    let pos = db.import(&mut Cursor::new(&bytes)).unwrap();
    assert_eq!(pos, Pos::new(Txid::new(1), checksum_of(&bytes, 4096)));
    assert_eq!(export(&db), bytes);
    let base = dir.path().join("data/dbs/db/base");
    assert_eq!(std::fs::read(base).unwrap(), bytes);

    // Again, over an older reader: the schema cookie moves on, nothing else does.
    let reader = db.snapshot().unwrap();
    let again = db.import(&mut Cursor::new(&bytes)).unwrap();
    assert_eq!(again.txid, Txid::new(2));
    let mut expected = bytes.clone();
    expected[43] += 1;
    assert_eq!(export(&db), expected);
    assert_eq!(read(&reader, 1), bytes[..4096]);
}

#[test]
fn one_process_owns_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _db) = open(dir.path());
    let error = Store::open(dir.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    store.close().unwrap();
    Store::open(dir.path()).unwrap();
}

#[test]
fn waiting_for_a_position_ends_when_it_is_reached_or_time_is_up() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, db) = open(dir.path());
    let error = db.wait_for(Txid::new(1), Duration::from_millis(10)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    let waiter = std::thread::spawn({
        let db = db.clone();
        move || db.wait_for(Txid::new(2), Duration::from_secs(60))
    });
    commit(&db, &[(1, 1)], 1);
    let pos = commit(&db, &[(1, 2)], 1);
    assert_eq!(waiter.join().unwrap().unwrap(), pos);
}

#[test]
fn who_is_ready_to_wait_for_ever_waits_no_longer_than_needed() {
    let dir = tempfile::tempdir().unwrap();
    let (store, db) = open(dir.path());
    let pos = commit(&db, &[(1, 1)], 1);
    assert_eq!(db.wait_for(pos.txid, Duration::MAX).unwrap(), pos);
    db.wait_for_writer(Duration::MAX);
    assert_eq!(db.hold(Duration::MAX).unwrap().pos(), pos);
    assert!(store.gate().hold(Duration::MAX));
}

#[test]
fn a_transaction_larger_than_the_memory_for_it_commits_and_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, db) = open(dir.path());
    let size = 65536;
    let pages: Vec<(u32, u32)> = (1..=1100).map(|number| (number, 1)).collect();
    commit_sized(&db, &pages, 1100, size);
    let snapshot = db.snapshot().unwrap();
    for number in [1, 500, 1023, 1024, 1025, 1100] {
        assert_eq!(read(&snapshot, number), page(number, 1, size));
    }
    drop(snapshot);
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), copy.path());
    let (_s, reopened) = open(copy.path());
    assert_eq!(reopened.pos(), db.pos());
}

/// New files have to be filled with zeros first, which doubles what is written.
#[test]
fn a_log_that_has_reached_its_size_uses_its_files_again() {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new("/tmp")).unwrap();
    let options = Options { storage: Arc::new(disk.clone()), ..manual() };
    let store = Store::open_with("/tmp/data", options).unwrap();
    let db = store.create(&DbName::new("db").unwrap()).unwrap();
    let pages: Vec<(u32, u32)> = (1..=60).map(|number| (number, number)).collect();
    let mut made = Vec::new();
    for round in 0..40 {
        let pages: Vec<_> = pages.iter().map(|&(number, _)| (number, number + round)).collect();
        commit_sized(&db, &pages, 60, 65536);
        db.fold().unwrap();
        db.prepare_spare().unwrap();
        made.push(disk.calls(CallKind::Create));
        assert!(db.stats().log_bytes <= 64 << 20, "{:?}", db.stats());
    }
    assert!(made[25] > made[0], "it grows first");
    assert_eq!(made[25], made[39], "files were made: {made:?}");
}

#[test]
fn a_snapshot_names_every_page_that_differs_from_an_older_one_even_after_a_fold() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, db) = open(dir.path());
    commit(&db, &[(1, 1), (2, 1), (3, 1), (4, 1)], 4);
    db.fold().unwrap();
    let older = db.snapshot().unwrap();
    commit(&db, &[(1, 2), (3, 2)], 4);
    commit(&db, &[(3, 3)], 4);
    db.fold().unwrap();
    let newer = db.snapshot().unwrap();
    commit(&db, &[(2, 9)], 4);
    let mut changed = newer.changed_since(&older).unwrap();
    changed.sort_unstable();
    assert_eq!(changed, [pgno(1), pgno(3)]);
    assert_eq!(newer.changed_since(&newer), Some(Vec::new()));
}

#[test]
fn pages_read_together_are_those_read_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, db) = open(dir.path());
    let all: Vec<_> = (1..=300).map(|number| (number, 1)).collect();
    commit(&db, &all, 300);
    db.fold().unwrap();
    commit(&db, &[(7, 2), (8, 2), (200, 2)], 300);
    let snapshot = db.snapshot().unwrap();
    for (first, count) in [(1, 300), (6, 4), (300, 1), (199, 3)] {
        let mut together = vec![0; count as usize * PAGE];
        snapshot.read_pages(pgno(first), &mut together).unwrap();
        let one_by_one: Vec<_> = (first..first + count).flat_map(|n| read(&snapshot, n)).collect();
        assert_eq!(together, one_by_one, "{count} from {first}");
    }
    snapshot.read_pages(pgno(300), &mut vec![0; 2 * PAGE]).unwrap_err();
    snapshot.read_pages(pgno(1), &mut vec![0; PAGE + 1]).unwrap_err();
}

/// A client that changes the page size writes the whole file; nobody's commit may be lost by it.
#[test]
fn content_is_replaced_only_over_the_one_that_it_was_made_from() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, db) = open(dir.path());
    let mut file = vec![0; 1024];
    file[..16].copy_from_slice(b"SQLite format 3\0");
    file[16..18].copy_from_slice(&1024u16.to_be_bytes());
    let before = commit(&db, &[(1, 1), (2, 1)], 2);
    let newer = commit(&db, &[(2, 2)], 2);
    let error = db.replace(before, &mut file.as_slice()).unwrap_err();
    assert_eq!((error.kind(), db.pos()), (ErrorKind::StaleSnapshot, newer));
    let (pos, _) = db.replace(newer, &mut file.as_slice()).unwrap();
    assert_eq!((pos.txid, db.page_size().unwrap().get()), (newer.txid.next(), 1024));
    assert_eq!(export(&db), file, "the bytes are kept as they are");
}

/// Asking for room begins a segment ahead of the record that needs it.
#[test]
fn room_that_was_made_is_used_by_the_commit_and_survives_a_rollback() {
    let dir = tempfile::tempdir().unwrap();
    let (store, db) = open(dir.path());
    commit(&db, &[(1, 1)], 1);
    let snapshot = db.snapshot().unwrap();
    let mut writer = db.begin_write(&snapshot).unwrap();
    for number in 1..=2000 {
        writer.write_page(pgno(number), &page(number, 2, PAGE)).unwrap();
    }
    writer.make_room(2000).unwrap();
    let segments = || std::fs::read_dir(dir.path().join("dbs/db/log")).unwrap().count();
    let made = segments();
    writer.rollback();
    drop(writer);
    let all: Vec<_> = (1..=2000).map(|number| (number, 3)).collect();
    let pos = commit(&db, &all, 2000);
    assert_eq!(segments(), made, "no further segment was begun");
    store.close().unwrap();
    drop((snapshot, db, store));
    let (_store, again) = open(dir.path());
    assert_eq!(again.pos(), pos);
}

#[test]
fn a_peers_record_is_as_late_as_the_clocks_say_and_an_own_one_is_not() {
    use litefs_store::sim::SimClock;
    let (primary_dir, clock) = (tempfile::tempdir().unwrap(), Arc::new(SimClock::new()));
    let options = Options { clock: clock.clone(), ..manual() };
    let store = Store::open_with(primary_dir.path(), options.clone()).unwrap();
    let primary = store.create(&DbName::new("db").unwrap()).unwrap();
    let replica_dir = tempfile::tempdir().unwrap();
    let replicas = Store::open_with(replica_dir.path(), options).unwrap();
    let replica = replicas.create(&DbName::new("db").unwrap()).unwrap();
    commit(&primary, &[(1, 1)], 1);
    clock.advance(Duration::from_millis(250));
    ship(&primary, &replica);
    assert_eq!((primary.stats().lag_ms, replica.stats().lag_ms), (0, 250));
    commit(&primary, &[(1, 2)], 1);
    clock.set_wall_offset_ms(-10_000);
    ship(&primary, &replica);
    assert_eq!(replica.stats().lag_ms, 0, "a clock that is behind is no lead");
    let mut file = vec![];
    primary.snapshot().unwrap().write_snapshot_record(&mut file).unwrap();
    clock.set_wall_offset_ms(700);
    replica.install_snapshot(&mut Cursor::new(file)).unwrap();
    assert_eq!(replica.stats().lag_ms, 700);
    commit(&replica, &[(1, 3)], 1);
    assert_eq!(replica.stats().lag_ms, 0);
}
