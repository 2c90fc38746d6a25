//! The real store on the simulated disk.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use litefs_store::ltx::{Decoder, Header};
use litefs_store::sim::{ImageKind, SimDisk};
use litefs_store::{
    Checksum, Clock, Database, DbName, Durability, ErrorKind, Options, Pgno, Pos, Relation,
    Storage, Store, Txid, Writer,
};

use super::chance::{DriftClock, Random};
use super::data::{Crash, Disk, Missing, Payload, Record};
use crate::replication::following::{Received, came_from_primary};
use crate::replication::wire::{MAX_POINTS, RecordKind};

const PAGE: usize = 512;

/// A store without background work, and the writers of its databases.
pub struct Real {
    // Before the store: a writer that is dropped takes its record back.
    writers: BTreeMap<DbName, Writer>,
    store: Store,
    disk: SimDisk,
    clock: Arc<DriftClock>,
    node: u64,
}

impl Real {
    pub fn new(node: u64, clock: Arc<DriftClock>) -> Self {
        Self::open(SimDisk::new(), node, clock)
    }

    fn open(disk: SimDisk, node: u64, clock: Arc<DriftClock>) -> Self {
        let options = Options {
            background: false,
            retention: Duration::ZERO,
            cache_size: 64 << 10,
            node_id: Some(node),
            storage: Arc::new(disk.clone()),
            clock: clock.clone(),
            ..Options::default()
        };
        let store = Store::open_with("/data", options).expect("the data directory opens");
        store.gate().close("the node has just started");
        Self { writers: BTreeMap::new(), store, disk, clock, node }
    }

    fn database(&self, db: &DbName) -> Option<Database> {
        self.store.database(db)
    }

    fn existing(&self, db: &DbName) -> Database {
        self.database(db).expect("the database exists")
    }
}

impl Disk for Real {
    fn databases(&self) -> Vec<DbName> {
        let all = self.store.databases().into_iter();
        all.filter(|db| !db.pos().is_zero()).map(|db| db.name().clone()).collect()
    }

    fn pos(&self, db: &DbName) -> Pos {
        self.database(db).map(|db| db.pos()).unwrap_or_default()
    }

    fn synced(&self, db: &DbName) -> Pos {
        self.database(db).map(|db| db.synced_pos()).unwrap_or_default()
    }

    fn relation(&self, db: &DbName, pos: Pos) -> Result<Relation, String> {
        let known = self.database(db).ok_or("no such database")?;
        known.relation(pos).map_err(|error| error.to_string())
    }

    fn cluster(&self) -> Option<String> {
        self.store.cluster_id()
    }

    fn set_cluster(&mut self, cluster: &str) {
        self.store.set_cluster_id(cluster).expect("a node never changes its cluster");
    }

    fn epoch(&self) -> u64 {
        self.store.epoch()
    }

    fn set_epoch(&mut self, epoch: u64) {
        self.store.set_epoch(epoch).expect("the disk works");
    }

    fn open_until(&mut self, deadline: Duration) {
        match deadline {
            Duration::ZERO => self.store.gate().close("closed by the lease"),
            deadline => self.store.gate().open_until(deadline),
        }
    }

    fn is_open(&self) -> bool {
        self.store.gate().is_open()
    }

    fn prepare(&mut self, db: &DbName, random: &mut Random, is_full: bool) -> bool {
        let database = self.store.create(db).expect("the store is open");
        let snapshot = database.snapshot().expect("the database is well");
        let Ok(mut writer) = database.begin_write(&snapshot) else {
            assert!(!self.is_open(), "{db} cannot be written though the gate is open");
            return false;
        };
        let pages = snapshot.page_count().max(3);
        let mut pgnos = vec![1, 1 + random.below(u64::from(pages)) as u32];
        if snapshot.page_count() == 0 {
            pgnos = (1..=pages).collect();
        }
        for pgno in pgnos {
            // Not the same on both pages: the checksum would be, whatever it is.
            let mut page = [0; PAGE];
            page.chunks_mut(8).for_each(|part| part.copy_from_slice(&random.next().to_be_bytes()));
            let pgno = Pgno::new(pgno).expect("not 0");
            writer.write_page(pgno, &page).expect("a whole page");
        }
        let durability = if is_full { Durability::Full } else { Durability::Normal };
        let prepared = writer.prepare(pages, durability, false).is_ok();
        if prepared {
            self.writers.insert(db.clone(), writer);
        }
        prepared
    }

    fn sync_prepared(&mut self, db: &DbName) -> bool {
        self.writers.get_mut(db).is_some_and(|writer| writer.sync().is_ok())
    }

    fn publish(&mut self, db: &DbName) -> Pos {
        self.writers.remove(db).expect("prepared").publish()
    }

    fn take_back(&mut self, db: &DbName) {
        self.writers.remove(db);
    }

    fn is_prepared(&self, db: &DbName) -> bool {
        self.writers.contains_key(db)
    }

    fn sync(&mut self, db: &DbName) {
        if let Some(known) = self.database(db) {
            known.sync().expect("the disk works");
        }
    }

    fn cut_log(&mut self, db: &DbName) {
        if let Some(known) = self.database(db).filter(|db| !db.pos().is_zero()) {
            known.fold().expect("the disk works");
        }
    }

    fn records(&self, db: &DbName, after: Pos) -> Result<Vec<Record>, Missing> {
        let mut cursor = self.existing(db).log_cursor(after).map_err(missing)?;
        let mut records = Vec::new();
        let mut base = after;
        while let Some(record) = cursor.next().map_err(missing)? {
            let mut bytes = Vec::new();
            record.reader().read_to_end(&mut bytes).expect("the disk works");
            let base = std::mem::replace(&mut base, record.pos());
            records.push(Record { base, pos: record.pos(), payload: Payload::Bytes(bytes.into()) });
        }
        Ok(records)
    }

    fn compacted(&self, db: &DbName, after: Pos) -> Result<Record, Missing> {
        let database = self.existing(db);
        let snapshot = database.snapshot().expect("the database is well");
        let record = database.compacted(snapshot, after).map_err(missing)?;
        let pos = record.pos();
        let mut bytes = Vec::new();
        record.write_to(&mut bytes).expect("the disk works");
        Ok(Record { base: after, pos, payload: Payload::Bytes(bytes.into()) })
    }

    fn snapshot(&self, db: &DbName) -> Record {
        let snapshot = self.existing(db).snapshot().expect("the database is well");
        let mut bytes = Vec::new();
        snapshot.write_snapshot_record(&mut bytes).expect("the disk works");
        let payload = Payload::Bytes(bytes.into());
        Record { base: Pos::ZERO, pos: snapshot.pos(), payload }
    }

    fn apply(&mut self, db: &DbName, kind: RecordKind, record: &Record) -> Result<Pos, String> {
        let Payload::Bytes(bytes) = &record.payload else { return Err("not a record".into()) };
        let database = self.store.create(db).map_err(|error| error.to_string())?;
        let mut bytes: &[u8] = bytes;
        let applied = match kind {
            RecordKind::Record => database.apply(&mut bytes, Durability::Normal),
            RecordKind::Snapshot => database.install_snapshot(&mut bytes),
        };
        applied.map_err(|error| error.to_string())
    }

    fn preserve(&mut self, db: &DbName, common: Option<Pos>) {
        self.existing(db).preserve_diverged(common).expect("the disk works");
    }

    fn rewind(&mut self, db: &DbName, to: Pos) -> Result<(), Missing> {
        self.existing(db).rewind(to).map_err(missing)
    }

    fn points(&self, db: &DbName) -> Vec<Pos> {
        self.database(db).map(|db| db.history_points(MAX_POINTS)).unwrap_or_default()
    }

    fn is_newest_foreign(&self, db: &DbName) -> bool {
        let received = Received::new();
        self.database(db).is_some_and(|db| came_from_primary(&self.store, &db, &received))
    }

    fn kept(&self) -> Vec<(DbName, Pos, Pos)> {
        let mut kept = Vec::new();
        for db in self.store.databases() {
            for diverged in db.diverged().expect("the disk works") {
                let records = diverged.records(&self.disk).expect("the disk works");
                let whole = diverged.whole_file().filter(|_| records.is_empty());
                let files = records.into_iter().chain(whole);
                kept.extend(files.map(|path| self.range_of(db.name(), &path)));
            }
        }
        kept
    }

    fn restart(self: Box<Self>, crash: Crash, random: &mut Random) -> Box<dyn Disk> {
        let seed = random.next();
        let kind = match (crash, random.below(4)) {
            (Crash::Kill, _) => ImageKind::ProcessCrash,
            (Crash::PowerLoss, 0) => ImageKind::DropUnsynced,
            (Crash::PowerLoss, 1) => ImageKind::Torn { seed },
            (Crash::PowerLoss, 2) => ImageKind::GarbageSector { seed },
            (Crash::PowerLoss, _) => ImageKind::Subset { seed },
        };
        let disk = self.disk.image(self.disk.op_count(), kind);
        let (node, clock) = (self.node, self.clock.clone());
        // What the dying process still does happens on the old disk.
        drop(self);
        let restarted = Self::open(disk, node, clock);
        for db in restarted.store.databases() {
            assert_eq!(db.quarantined(), None, "{} after {kind:?}", db.name());
        }
        Box::new(restarted)
    }
}

impl Real {
    /// The range of one file under `diverged`.
    fn range_of(&self, db: &DbName, path: &Path) -> (DbName, Pos, Pos) {
        let file = self.disk.open(path, litefs_store::OpenMode::Read).expect("it is there");
        let mut bytes = vec![0; file.len().expect("the disk works") as usize];
        file.read_at(&mut bytes, 0).expect("the disk works");
        let mut decoder = Decoder::new(&bytes[..]).expect("a record");
        let header: Header = *decoder.header();
        let mut page = vec![0; header.page_size.len()];
        while decoder.next_page(&mut page).expect("a whole record").is_some() {}
        let trailer = decoder.finish().expect("a record that verifies");
        let before = Txid::new(header.min_txid.get() - 1);
        let base = match header.min_txid.get() {
            1 => Pos::ZERO,
            _ => Pos::new(before, header.pre_apply),
        };
        (db.clone(), base, Pos::new(header.max_txid, trailer.post_apply))
    }
}

fn missing(error: litefs_store::Error) -> Missing {
    match error.kind() {
        ErrorKind::Gone => Missing::Gone,
        ErrorKind::Mismatch => Missing::Mismatch,
        _ => panic!("the disk works: {error}"),
    }
}

#[test]
fn a_commit_is_there_after_a_power_loss() {
    let clock = Arc::new(DriftClock::new(0, Duration::ZERO));
    let mut disk: Box<dyn Disk> = Box::new(Real::new(7, clock.clone()));
    let (mut random, db) = (Random::new(1), DbName::new("db").unwrap());
    assert!(!disk.prepare(&db, &mut random, true));
    disk.open_until(clock.now() + Duration::from_secs(1));
    assert!(disk.prepare(&db, &mut random, true) && disk.sync_prepared(&db));
    let pos = disk.publish(&db);
    disk.preserve(&db, None);
    assert_eq!(disk.kept(), [(db.clone(), Pos::ZERO, pos)]);
    let disk = disk.restart(Crash::PowerLoss, &mut random);
    assert_eq!((disk.pos(&db), disk.is_open()), (pos, false));
    assert_ne!(pos.checksum, Checksum::from_raw(0));
    let _: Rc<()> = Rc::default();
}
