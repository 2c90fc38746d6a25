//! LiteFS data directories made by hand, after the documented layout.

use std::collections::BTreeMap;

use super::*;

const CLUSTER: &str = "LFSC0123456789ABCDEF";

/// A LiteFS data directory, and one to take it over into.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir_all(place.from().join("dbs")).unwrap();
        fs::write(place.from().join("clusterid"), format!("{CLUSTER}\n")).unwrap();
        place
    }

    fn from(&self) -> PathBuf {
        self.dir.path().join("litefs")
    }

    fn to(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn db(&self, name: &str) -> PathBuf {
        self.from().join("dbs").join(name)
    }

    /// Puts a database there: SQLite's files under LiteFS's names.
    fn add(&self, name: &str, sqlite: &Path) {
        fs::create_dir_all(self.db(name).join("ltx")).unwrap();
        for (suffix, file) in [("", "database"), ("-journal", "journal"), ("-wal", "wal")] {
            let source = PathBuf::from(format!("{}{suffix}", sqlite.display()));
            if source.exists() {
                fs::copy(source, self.db(name).join(file)).unwrap();
            }
        }
    }

    /// Writes the transaction file of a content: a snapshot from 1 to `txid`, or that transaction
    /// alone, which then holds only page 1.
    fn add_record(&self, name: &str, range: (u64, u64), content: &[u8], compressed: bool) {
        let page_size = page_size(content);
        let (min_txid, max_txid) = (Txid::new(range.0), Txid::new(range.1));
        let is_snapshot = range.0 == 1;
        let commit = (content.len() / page_size) as u32;
        let header = Header {
            compressed,
            min_txid,
            timestamp_ms: 1_700_000_000_000,
            pre_apply: if is_snapshot { Checksum::NONE } else { Checksum::EMPTY },
            node_id: 7,
            ..Header::snapshot(PageSize::new(page_size as u32).unwrap(), commit, max_txid)
        };
        let path = self.db(name).join("ltx").join(format!("{min_txid}-{max_txid}.ltx"));
        let mut encoder = Encoder::new(File::create(path).unwrap(), header).unwrap();
        let pages = content.chunks(page_size).take(if is_snapshot { usize::MAX } else { 1 });
        for (at, page) in pages.enumerate() {
            encoder.encode_page(Pgno::new(at as u32 + 1).unwrap(), page).unwrap();
        }
        encoder.finish(checksum(content)).unwrap();
    }

    fn take_over(&self) -> Result<(), String> {
        run(&self.from(), &self.to(), None).map_err(|error| error.0)
    }

    /// A database's position and content after the import.
    fn taken(&self, name: &str) -> (Pos, Vec<u8>) {
        let store = Store::open(self.to()).unwrap();
        let db = store.database(&DbName::new(name).unwrap()).unwrap();
        let mut bytes = Vec::new();
        let pos = db.export(&mut bytes).unwrap();
        (pos, bytes)
    }

    /// Every file in the LiteFS directory with its content.
    fn files(&self) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
        let mut files = BTreeMap::new();
        let mut directories = vec![self.from()];
        while let Some(directory) = directories.pop() {
            for path in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
                if path.is_dir() {
                    directories.push(path);
                } else {
                    let modified = fs::metadata(&path).unwrap().modified().unwrap();
                    files.insert(path.clone(), (fs::read(&path).unwrap(), modified));
                }
            }
        }
        files
    }
}

fn page_size(content: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([content[16], content[17]]))
}

/// A database's checksum after the format's text (XOR over CRC-64/GO-ISO of number and page, top
/// bit set), by another implementation of the CRC.
fn checksum(content: &[u8]) -> Checksum {
    let crc = crc::Crc::<u64>::new(&crc::CRC_64_GO_ISO);
    let pages = content.chunks(page_size(content)).enumerate();
    let sum = pages.fold(0, |sum, (at, page)| {
        let mut digest = crc.digest();
        digest.update(&(at as u32 + 1).to_be_bytes());
        digest.update(page);
        sum ^ digest.finalize()
    });
    Checksum::from_raw(sum | 1 << 63)
}

fn sum_of(content: &[u8]) -> i64 {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), content).unwrap();
    let db = Connection::open(file.path()).unwrap();
    let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    db.query_row("SELECT sum(x) FROM t", [], |row| row.get(0)).unwrap()
}

/// A SQLite file beside the directories, in that journal mode, with the rows 1, 2 and 3.
fn sqlite(place: &Place, name: &str, mode: &str) -> (PathBuf, Connection) {
    let path = place.dir.path().join(name);
    let db = Connection::open(&path).unwrap();
    db.execute_batch(&format!(
        "PRAGMA page_size=1024; PRAGMA journal_mode={mode}; PRAGMA wal_autocheckpoint=0; \
         CREATE TABLE t(x); INSERT INTO t VALUES (1),(2),(3);"
    ))
    .unwrap();
    (path, db)
}

#[test]
fn a_database_keeps_its_position_and_every_byte() {
    let place = Place::new();
    for (name, compressed) in [("a.db", false), ("b.db", true)] {
        let (path, _db) = sqlite(&place, name, "delete");
        place.add(name, &path);
        let content = fs::read(&path).unwrap();
        place.add_record(name, (1, 0x1f), &content, compressed);
        place.add_record(name, (0x20, 0x20), &content, compressed);
        fs::write(place.db(name).join("ltx/0000000000000021-0000000000000021.ltx.tmp"), "x")
            .unwrap();
    }
    let before = place.files();
    place.take_over().unwrap();
    assert!(place.files() == before, "the LiteFS directory changed");
    for name in ["a.db", "b.db"] {
        let content = fs::read(place.db(name).join("database")).unwrap();
        let (pos, taken) = place.taken(name);
        assert_eq!(pos, Pos::new(Txid::new(0x20), checksum(&content)));
        assert!(taken == content, "other bytes");
        assert_eq!(sum_of(&taken), 6);
    }
    assert_eq!(Store::open(place.to()).unwrap().cluster_id().as_deref(), Some(CLUSTER));
    // A second run finds everything done, and leaves nothing of its own behind.
    place.take_over().unwrap();
    let left: Vec<_> = fs::read_dir(place.to()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("import")), "{left:?}");
}

#[test]
fn rows_that_are_only_in_the_wal_are_taken_at_the_same_position() {
    let place = Place::new();
    let (path, db) = sqlite(&place, "w.db", "wal");
    place.add("w.db", &path);
    assert!(fs::metadata(place.db("w.db").join("wal")).unwrap().len() > 0);
    // What the WAL leads to, as SQLite copies it.
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    let content = fs::read(&path).unwrap();
    place.add_record("w.db", (1, 9), &content, false);
    let before = place.files();
    place.take_over().unwrap();
    assert!(place.files() == before, "the LiteFS directory changed");
    let (pos, taken) = place.taken("w.db");
    assert_eq!(pos, Pos::new(Txid::new(9), checksum(&content)));
    assert!(taken == content, "other bytes");
}

/// LiteFS was killed within a transaction: pages of it are in the database already.
#[test]
fn a_transaction_that_was_under_way_is_rolled_back() {
    let place = Place::new();
    let (path, db) = sqlite(&place, "j.db", "delete");
    let content = fs::read(&path).unwrap();
    db.execute_batch(
        "PRAGMA cache_size=1; PRAGMA cache_spill=1; BEGIN; UPDATE t SET x = 100; \
         WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<500) \
         INSERT INTO t SELECT n FROM c;",
    )
    .unwrap();
    place.add("j.db", &path);
    place.add_record("j.db", (1, 4), &content, false);
    assert!(fs::read(place.db("j.db").join("database")).unwrap() != content, "nothing was torn");
    let before = place.files();
    place.take_over().unwrap();
    assert!(place.files() == before, "the LiteFS directory changed");
    let (pos, taken) = place.taken("j.db");
    assert_eq!(pos, Pos::new(Txid::new(4), checksum(&content)));
    assert!(taken == content, "other bytes");
}

#[test]
fn a_content_that_no_transaction_file_describes_gets_a_position_of_its_own() {
    let place = Place::new();
    let (path, db) = sqlite(&place, "x.db", "delete");
    let older = fs::read(&path).unwrap();
    db.execute_batch("INSERT INTO t VALUES (4)").unwrap();
    for name in ["other.db", "damaged.db", "none.db"] {
        place.add(name, &path);
    }
    place.add_record("other.db", (1, 7), &older, false);
    place.add_record("damaged.db", (1, 7), &older, false);
    let damaged = place.db("damaged.db").join("ltx/0000000000000001-0000000000000007.ltx");
    fs::write(&damaged, &fs::read(&damaged).unwrap()[..2000]).unwrap();
    fs::create_dir(place.db("empty.db")).unwrap();
    place.take_over().unwrap();
    for (name, txid) in [("other.db", 8), ("damaged.db", 8), ("none.db", 1)] {
        let (pos, taken) = place.taken(name);
        assert_eq!(pos.txid, Txid::new(txid), "{name}");
        assert_eq!(sum_of(&taken), 10);
    }
    let store = Store::open(place.to()).unwrap();
    assert!(store.database(&DbName::new("empty.db").unwrap()).is_none());
}

#[test]
fn what_can_only_be_a_mistake_is_refused_and_changes_nothing() {
    let place = Place::new();
    let (path, _db) = sqlite(&place, "a.db", "delete");
    assert!(place.take_over().unwrap_err().contains("no such database"));
    place.add("a.db", &path);
    let before = place.files();

    let into = |to: &Path| run(&place.from(), to, None).unwrap_err().0;
    for to in [place.from(), place.from().join("new"), place.dir.path().to_owned()] {
        assert!(into(&to).contains("must lie outside"), "{}", to.display());
    }
    let foreign = place.dir.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("file"), "").unwrap();
    assert!(into(&foreign).contains("neither empty"));
    let no_data = run(&foreign, &place.to(), None).unwrap_err().0;
    assert!(no_data.contains("no LiteFS data directory"), "{no_data}");
    assert!(place.files() == before && !place.to().exists());

    fs::create_dir(place.db("a.db-wal")).unwrap();
    assert!(place.take_over().unwrap_err().contains("a.db-wal"));
    fs::remove_dir(place.db("a.db-wal")).unwrap();
    fs::write(place.from().join("clusterid"), "LFSC12\n").unwrap();
    assert!(place.take_over().unwrap_err().contains("no cluster id"));
    assert!(!place.to().exists());

    Store::open(place.to()).unwrap().set_cluster_id("LFSCAAAAAAAAAAAAAAAA").unwrap();
    fs::write(place.from().join("clusterid"), format!("{CLUSTER}\n")).unwrap();
    assert!(place.take_over().unwrap_err().contains("belongs to the cluster"));
}

#[test]
fn a_database_that_is_there_is_not_replaced() {
    let place = Place::new();
    let (path, db) = sqlite(&place, "a.db", "delete");
    place.add("a.db", &path);
    place.take_over().unwrap();
    let first = place.taken("a.db");
    db.execute_batch("INSERT INTO t VALUES (4)").unwrap();
    place.add("a.db", &path);
    assert!(place.take_over().unwrap_err().contains("already, at 0000000000000001/"));
    assert!(place.taken("a.db") == first);
}
