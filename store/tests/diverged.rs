//! Two nodes that both wrote: what the loser had is kept, wholly and readable, before anything of
//! it is replaced; whatever had been folded, however often, and on a full disk too.

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use litefs_store::sim::{CallKind, Fault, FaultError, ImageKind, SimDisk};
use litefs_store::{
    Database, DbName, Diverged, Durability, Error, ErrorKind, Options, Pgno, Pos, Relation, Store,
};

const PAGE: usize = 512;
/// Divergences of the long test; `LITEFS_DIVERGENCES` asks for more.
const DIVERGENCES: u64 = 200;

/// A page's content that tells which page and which writing it is.
fn page(number: u32, version: u32) -> Vec<u8> {
    let word = (u64::from(number) << 32 | u64::from(version)).to_be_bytes();
    word.iter().copied().cycle().take(PAGE).collect()
}

struct Node {
    store: Store,
    disk: SimDisk,
    versions: u32,
}

impl Node {
    fn new() -> Self {
        let disk = SimDisk::new();
        Self { store: open(&disk), disk, versions: 0 }
    }

    fn db(&self) -> Database {
        self.store.create(&DbName::new("db").unwrap()).unwrap()
    }

    fn commit(&mut self, pages: &[u32], size: u32) -> Pos {
        let db = self.db();
        let mut writer = db.begin_write(&db.snapshot().unwrap()).unwrap();
        for &number in pages {
            self.versions += 1;
            let data = page(number, self.versions);
            writer.write_page(Pgno::new(number).unwrap(), &data).unwrap();
        }
        writer.prepare(size, Durability::Full, false).unwrap();
        writer.sync().unwrap();
        writer.publish()
    }

    fn export(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.db().export(&mut out).unwrap();
        out
    }

    fn kept(&self) -> Vec<Diverged> {
        let kept = self.db().diverged().unwrap();
        assert_eq!(Diverged::list(&self.disk, Path::new("/data")).unwrap(), kept);
        kept
    }

    fn read(&self, path: &Path) -> Vec<u8> {
        use litefs_store::{OpenMode, Storage};
        let file = self.disk.open(path, OpenMode::Read).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// The database that is kept, as SQLite would read it.
    fn whole(&self, kept: &Diverged) -> Vec<u8> {
        let record = self.read(&kept.whole_file().unwrap());
        let mut decoder = litefs_store::ltx::Decoder::new(&record[..]).unwrap();
        let (mut page, mut all) = (vec![0; PAGE], Vec::new());
        while decoder.next_page(&mut page).unwrap().is_some() {
            all.extend_from_slice(&page);
        }
        decoder.finish().unwrap();
        all
    }

    /// The positions after the records that are kept.
    fn ends(&self, kept: &Diverged) -> Vec<Pos> {
        let end = |path: std::path::PathBuf| {
            let summary = litefs_store::ltx::verify(&self.read(&path)[..]).unwrap();
            Pos::new(summary.header.max_txid, summary.trailer.post_apply)
        };
        kept.records(&self.disk).unwrap().into_iter().map(end).collect()
    }
}

fn open(disk: &SimDisk) -> Store {
    let storage = Arc::new(disk.clone());
    let options = Options { background: false, storage, ..Options::default() };
    Store::open_with("/data", options).unwrap()
}

/// What a replica does whose primary does not have its newest position.
fn follow(loser: &Node, winner: &Node) -> Option<Diverged> {
    let (ours, theirs) = (loser.db(), winner.db());
    let behind = |pos: &Pos| theirs.relation(*pos).unwrap() != Relation::Diverged;
    let common = ours
        .history_points(64)
        .into_iter()
        .find(|pos| matches!(theirs.relation(*pos).unwrap(), Relation::Behind | Relation::Current));
    assert!(!behind(&ours.pos()), "nothing has diverged");
    let kept = ours.preserve_diverged(common).unwrap();
    match common.map(|common| ours.rewind(common)) {
        Some(Ok(())) => {}
        Some(Err(error)) if error.kind() != ErrorKind::Gone => panic!("{error}"),
        _ => {
            // The snapshot that comes instead is asked for the same way.
            assert_eq!(ours.preserve_diverged(common).unwrap(), None);
            let mut record = Vec::new();
            theirs.snapshot().unwrap().write_snapshot_record(&mut record).unwrap();
            ours.install_snapshot(&mut Cursor::new(record)).unwrap();
        }
    }
    ship(winner, loser);
    kept
}

fn ship(from: &Node, to: &Node) {
    let mut cursor = from.db().log_cursor(to.db().pos()).unwrap();
    while let Some(record) = cursor.next().unwrap() {
        to.db().apply(&mut record.reader(), Durability::Full).unwrap();
    }
    assert_eq!(to.db().pos(), from.db().pos());
    assert!(to.export() == from.export(), "the nodes differ");
}

/// A primary and a replica with the same, from where both go on alone.
fn together() -> (Node, Node) {
    let (mut winner, mut loser) = (Node::new(), Node::new());
    winner.commit(&[1, 2, 3], 3);
    ship(&winner, &loser);
    (winner.versions, loser.versions) = (1000, 1_000_000);
    (winner, loser)
}

#[test]
fn every_lost_transaction_is_kept_and_the_database_is_readable_however_it_was_folded() {
    let wanted = std::env::var("LITEFS_DIVERGENCES").map_or(DIVERGENCES, |n| n.parse().unwrap());
    let (mut winner, mut loser) = together();
    let mut random = 1u64;
    let mut below = |n: u64| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 33) % n
    };
    let mut folded_and_exact = 0;
    for number in 0..wanted {
        let (common, mut lost) = (loser.db().pos(), Vec::new());
        for _ in 0..=below(6) {
            let size = 1 + below(6) as u32;
            lost.push(loser.commit(&[1, size, 1 + below(u64::from(size)) as u32], size));
            if below(4) == 0 {
                loser.db().fold().unwrap();
            }
        }
        for _ in 0..below(5) {
            let size = 2 + below(5) as u32;
            winner.commit(&[2, size], size);
        }
        if below(3) == 0 {
            winner.db().fold().unwrap();
        }
        if below(4) == 0 {
            loser.disk = loser.disk.image(loser.disk.op_count(), ImageKind::DropUnsynced);
            loser.store = open(&loser.disk);
        }
        let before = loser.export();
        let is_folded = loser.db().snapshot_at(common.txid).is_err();
        let kept = follow(&loser, &winner).unwrap_or_else(|| panic!("{number}: nothing kept"));
        assert!(loser.whole(&kept) == before, "{number}: the kept database is another");
        assert_eq!((kept.newest, lost.last()), (*lost.last().unwrap(), Some(&kept.newest)));
        if kept.common == Some(common) {
            assert_eq!(loser.ends(&kept), lost, "{number}");
            assert_eq!(kept.transactions(), Some(lost.len() as u64));
            folded_and_exact += u64::from(is_folded);
        }
        kept.forget(&loser.disk).unwrap();
        assert!(loser.kept().is_empty());
        // The winner is not always the same.
        if below(2) == 0 {
            std::mem::swap(&mut winner, &mut loser);
        }
    }
    assert!(folded_and_exact > wanted / 10, "{folded_and_exact}");
}

#[test]
fn a_peer_that_makes_a_node_diverge_again_and_again_does_not_fill_its_disk() {
    let (mut winner, mut loser) = together();
    for number in 0..Diverged::MAX {
        loser.commit(&[2], 3);
        winner.commit(&[3], 3);
        let kept = follow(&loser, &winner).unwrap();
        assert_eq!(kept.whole, number < Diverged::WHOLE_MAX, "{number}");
        assert_eq!(loser.ends(&kept), [kept.newest], "{number}");
    }
    loser.commit(&[2], 3);
    winner.commit(&[3], 3);
    let (pos, bytes) = (loser.db().pos(), loser.export());
    let common = loser.db().history_points(2)[1];
    let error = loser.db().preserve_diverged(Some(common)).unwrap_err();
    assert!(matches!(error, Error::TooManyDiverged { kept: 64, .. }), "{error}");
    assert!(error.to_string().contains("litefs-node ltx forget --diverged"), "{error}");
    assert_eq!(loser.db().pos(), pos);
    assert!(loser.export() == bytes);
    // Content of which nothing but the whole could be kept needs a place for it.
    let oldest = loser.kept();
    oldest[20].forget(&loser.disk).unwrap();
    let error = loser.db().preserve_diverged(None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    oldest[0].forget(&loser.disk).unwrap();
    assert!(loser.db().preserve_diverged(None).unwrap().unwrap().whole);
    assert_eq!(loser.kept().len(), Diverged::MAX - 1);
}

#[test]
fn on_a_full_disk_nothing_is_replaced_that_is_not_kept() {
    let (mut winner, mut loser) = together();
    let common = loser.db().pos();
    loser.commit(&[1, 2, 3], 3);
    winner.commit(&[3], 3);
    let (pos, bytes) = (loser.db().pos(), loser.export());
    let mut refused = 0;
    for nth in 1.. {
        let before = loser.disk.faults_fired();
        let full = Fault::forever(nth, FaultError::Enospc);
        loser.disk.inject(full.on(CallKind::Write).at("diverged"));
        let result = loser.db().preserve_diverged(Some(common));
        let fired = loser.disk.faults_fired() - before;
        loser.disk.clear_faults();
        assert_eq!(loser.db().pos(), pos);
        assert!(loser.export() == bytes);
        match result {
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Full, "{error}");
                assert!(loser.kept().is_empty(), "half of it counts as kept");
                refused += 1;
            }
            Ok(kept) => {
                assert!(fired == 0, "the disk was full, and {kept:?} is there");
                break;
            }
        }
    }
    assert!(refused >= 2, "{refused}");
    assert!(loser.whole(&loser.kept()[0]) == bytes);
    loser.db().rewind(common).unwrap();
    ship(&winner, &loser);
}

#[test]
fn without_space_for_the_whole_database_the_records_are_kept() {
    let (mut winner, mut loser) = together();
    loser.commit(&[2], 3);
    winner.commit(&[3], 3);
    let full = Fault::forever(1, FaultError::Enospc);
    loser.disk.inject(full.on(CallKind::Write).at("database.ltx"));
    let kept = follow(&loser, &winner).unwrap();
    loser.disk.clear_faults();
    assert!(!kept.whole && kept.whole_file().is_none());
    assert_eq!(loser.ends(&kept), [kept.newest]);
    assert_eq!(loser.kept(), [kept]);
}
