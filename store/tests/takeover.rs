//! Risk: what replication does to a database (rewind, apply, the end of the right to write) meets
//! what this node's own users do to it at the same moment.

use std::io::Cursor;
use std::path::Path;
use std::thread;
use std::time::Duration;

use litefs_store::{Database, DbName, Durability, ErrorKind, Options, Pgno, Pos, Snapshot, Store};

const PAGE: usize = 512;

fn open(dir: &Path) -> (Store, Database) {
    // Without a cache, so that every page comes from where it lies now.
    let options = Options { background: false, cache_size: 0, ..Options::default() };
    let store = Store::open_with(dir, options).unwrap();
    let db = store.create(&DbName::new("db").unwrap()).unwrap();
    (store, db)
}

fn pgno(n: u32) -> Pgno {
    Pgno::new(n).unwrap()
}

/// Commits pages filled with a byte.
fn commit(db: &Database, pages: &[(u32, u8)], size: u32) -> Pos {
    let snapshot = db.snapshot().unwrap();
    let mut writer = db.begin_write(&snapshot).unwrap();
    for &(number, byte) in pages {
        writer.write_page(pgno(number), &[byte; PAGE]).unwrap();
    }
    writer.prepare(size, Durability::Full, false).unwrap();
    writer.sync().unwrap();
    writer.publish()
}

fn read(snapshot: &Snapshot, number: u32) -> litefs_store::Result<Vec<u8>> {
    let mut page = vec![0; PAGE];
    snapshot.read_page(pgno(number), &mut page).map(|()| page)
}

/// An empty database of one page, as SQLite writes it.
fn plain_database() -> Vec<u8> {
    let mut page = vec![0; PAGE];
    page[..16].copy_from_slice(b"SQLite format 3\0");
    page[16..18].copy_from_slice(&(PAGE as u16).to_be_bytes());
    page
}

/// Runs `change` while a local writer is at work, ends the right to write, and lets the writer go.
fn change_after_the_gate_closed(change: fn(&Database) -> litefs_store::Result<Pos>) {
    let dir = tempfile::tempdir().unwrap();
    let (store, db) = open(dir.path());
    let before = commit(&db, &[(1, 1)], 1);
    let snapshot = db.snapshot().unwrap();
    let writer = db.begin_write(&snapshot).unwrap();
    let changer = thread::spawn({
        let db = db.clone();
        move || change(&db)
    });
    // Until it has passed the gate and waits for the writer; too short a wait proves less only.
    thread::sleep(Duration::from_millis(300));
    store.gate().close("another node is the primary now");
    drop(writer);
    let outcome = changer.join().unwrap();
    assert_eq!(outcome.expect_err("changed without the right to").kind(), ErrorKind::ReadOnly);
    assert_eq!(db.pos(), before);
    assert_eq!(read(&db.snapshot().unwrap(), 1).unwrap(), [1; PAGE]);
}

#[test]
fn a_drop_that_waited_for_a_writer_past_the_end_of_the_lease_is_refused() {
    change_after_the_gate_closed(Database::drop_database);
}

#[test]
fn an_import_that_waited_for_a_writer_past_the_end_of_the_lease_is_refused() {
    change_after_the_gate_closed(|db| db.import(&mut Cursor::new(plain_database())));
}

#[test]
fn a_commit_of_any_durability_is_refused_if_the_gate_closes_before_its_acknowledgement() {
    let dir = tempfile::tempdir().unwrap();
    let (store, db) = open(dir.path());
    let before = commit(&db, &[(1, 1)], 1);
    for durability in [Durability::Off, Durability::Normal, Durability::Full] {
        let snapshot = db.snapshot().unwrap();
        let mut writer = db.begin_write(&snapshot).unwrap();
        writer.write_page(pgno(1), &[2; PAGE]).unwrap();
        writer.prepare(1, durability, false).unwrap();
        store.gate().close("the lease has expired");
        let refused = writer.sync().expect_err("acknowledged after the gate closed");
        assert_eq!(refused.kind(), ErrorKind::ReadOnly, "{durability:?}");
        writer.rollback();
        assert_eq!(db.pos(), before);
        store.gate().open();
    }
}

#[test]
fn readers_pinned_before_a_rewind_keep_their_pages_after_later_folds() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, db) = open(dir.path());
    commit(&db, &[(1, 1), (2, 1), (3, 1)], 3);
    let common = commit(&db, &[(3, 2)], 3);
    let at_common = db.snapshot().unwrap();
    db.fold().unwrap();
    commit(&db, &[(2, 9)], 3);
    let ahead = db.snapshot().unwrap();
    db.rewind(common).unwrap();
    commit(&db, &[(1, 7), (3, 7)], 3);
    db.fold().unwrap();
    for number in [1, 3] {
        let expected = if number == 1 { 1 } else { 2 };
        assert_eq!(read(&ahead, number).unwrap(), [expected; PAGE], "page {number}");
        assert_eq!(read(&at_common, number).unwrap(), [expected; PAGE], "page {number}");
    }
    assert_eq!(read(&ahead, 2).unwrap(), [9; PAGE]);
    drop((ahead, at_common));
    db.fold().unwrap();
    assert_eq!(db.stats().mark, db.pos().txid);
    assert_eq!(read(&db.snapshot().unwrap(), 1).unwrap(), [7; PAGE]);
}

#[test]
fn readers_pinned_before_a_rewind_keep_their_pages_after_an_installation() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, db) = open(dir.path());
    let common = commit(&db, &[(1, 1), (2, 1)], 2);
    db.fold().unwrap();
    commit(&db, &[(2, 9)], 2);
    let ahead = db.snapshot().unwrap();
    db.rewind(common).unwrap();
    db.import(&mut Cursor::new(plain_database())).unwrap();
    assert_eq!(read(&ahead, 1).unwrap(), [1; PAGE]);
    assert_eq!(read(&ahead, 2).unwrap(), [9; PAGE]);
}
