//! Ten thousand databases in one store: a bounded number of files, threads and bytes.

use litefs_store::{Database, DbName, Durability, ErrorKind, MAX_DATABASES, Options, Pgno, Store};

const DATABASES: usize = 10_000;

fn name(number: usize) -> DbName {
    DbName::new(&format!("tenant-{number:05}.db")).unwrap()
}

fn commit(db: &Database, fill: u8) {
    let snapshot = db.snapshot().unwrap();
    let mut writer = db.begin_write(&snapshot).unwrap();
    writer.write_page(Pgno::FIRST, &[fill; 512]).unwrap();
    writer.prepare(1, Durability::Normal, false).unwrap();
    writer.sync().unwrap();
    writer.publish();
}

fn read(db: &Database) -> u8 {
    let mut page = [0; 512];
    db.snapshot().unwrap().read_page(Pgno::FIRST, &mut page).unwrap();
    page[0]
}

/// A number from `/proc/self/status`.
fn status(key: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn check_bounds(store: &Store) {
    assert!(open_files() <= 1000, "{} files open", open_files());
    assert!(store.open_files() <= 400, "{} files of the store open", store.open_files());
    assert!(status("Threads:") <= 64, "{} threads", status("Threads:"));
    assert!(status("VmRSS:") <= 256 << 10, "{} kB in memory", status("VmRSS:"));
}

#[test]
fn ten_thousand_databases_take_a_bounded_number_of_files_threads_and_bytes() {
    // Memory-backed where there is such a place: the risk is not the disk's.
    let shm = std::path::Path::new("/dev/shm");
    let dir = match shm.is_dir() {
        true => tempfile::tempdir_in(shm).unwrap(),
        false => tempfile::tempdir().unwrap(),
    };
    let store = Store::open(dir.path()).unwrap();
    for number in 0..DATABASES {
        commit(&store.create(&name(number)).unwrap(), 1);
    }
    check_bounds(&store);
    for number in (0..DATABASES).step_by(3) {
        let db = store.database(&name(number)).unwrap();
        commit(&db, 2);
        assert_eq!(read(&db), 2);
    }
    check_bounds(&store);
    // Without a clean stop: nothing is folded, the logs have it all.
    let copy = dir.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    std::fs::rename(dir.path().join("dbs"), copy.join("dbs")).unwrap();
    drop(store);

    let store = Store::open_with(&copy, Options::default()).unwrap();
    assert_eq!(store.databases().len(), DATABASES);
    check_bounds(&store);
    for number in 0..DATABASES {
        let expected = if number % 3 == 0 { 2 } else { 1 };
        let db = store.database(&name(number)).unwrap();
        assert_eq!(read(&db), expected, "database {number}");
        if number % 2 == 0 {
            db.drop_database().unwrap();
        }
    }
    check_bounds(&store);
}

#[test]
fn names_that_were_never_written_are_not_taken_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for number in 0..MAX_DATABASES {
        store.create(&name(number)).unwrap();
    }
    let one_more = store.create(&DbName::new("one-more.db").unwrap());
    assert_eq!(one_more.unwrap_err().kind(), ErrorKind::Invalid);
    assert!(store.create(&DbName::new("tenant-00007.db").unwrap()).is_ok(), "it is known");
}
