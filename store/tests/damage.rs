//! Damage: bits that flip and sectors that are lost in what was on the disk. A database is then
//! either whole or quarantined, by a message that names the file and the place; it is never cut
//! silently, never shows anything else, and no other database is affected.

mod support;

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use litefs_store::sim::{ImageKind, SimClock, SimDisk};
use litefs_store::{
    Database, DbName, Durability, ErrorKind, OpenMode, Options, Pgno, Storage, Store,
};
use support::driver::DIR;
use support::model::State;
use support::{Driver, Ending, Rng};

const PAGE_SIZE: usize = 512;

/// A disk with database `a`, of which a part is folded and the rest lies in several segments, and
/// database `b`; what they hold, and which states of `a` may be left when its last record is lost.
struct Sound {
    disk: SimDisk,
    /// The states of `a`, oldest first.
    a: Vec<Rc<State>>,
    /// The state of `a` that its last record says is on the disk, and the same for the record
    /// before that: one sector can hold the end of a record and the head of the next.
    known: [usize; 2],
    b: Rc<State>,
}

fn commit(driver: &mut Driver, i: usize, rng: &mut Rng, durability: Durability) {
    let state = driver.dbs[i].newest.clone();
    let size = (state.pages.len() + 1).min(12);
    let numbers = [1 + rng.below(size), 1 + rng.below(size), size];
    let pages = numbers.map(|number| (number as u32, rng.page(PAGE_SIZE))).to_vec();
    driver.commit(i, PAGE_SIZE, &pages, size, durability, Ending::Publish).unwrap();
}

/// After these commits, which follow a fold.
fn sound(after_fold: &[Durability]) -> Sound {
    let disk = SimDisk::new();
    let mut driver = Driver::new(disk.clone(), &["a", "b"], 1 << 20);
    let mut rng = Rng::new(11);
    for number in 0..12 {
        commit(&mut driver, 0, &mut rng, Durability::Full);
        commit(&mut driver, 1, &mut rng, Durability::Full);
        if number % 4 == 3 {
            driver.reopen().unwrap(); // the next record begins a segment
        }
    }
    commit(&mut driver, 0, &mut rng, Durability::Full);
    driver.fold(0).unwrap();
    Sound::after(driver, rng, after_fold)
}

fn files(disk: &SimDisk, dir: &Path) -> Vec<PathBuf> {
    let names = disk.list(dir).unwrap().into_iter().map(|name| dir.join(name));
    let each = names.flat_map(|path| match disk.list(&path) {
        Ok(_) => files(disk, &path),
        Err(_) => vec![path],
    });
    each.collect()
}

fn read(disk: &SimDisk, path: &Path) -> Vec<u8> {
    let file = disk.open(path, OpenMode::Read).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// What became of `a`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Outcome {
    Whole,
    /// Without its last record, of which nobody could know that it was on the disk.
    Shorter,
    Quarantined,
}

impl Sound {
    fn after(mut driver: Driver, mut rng: Rng, commits: &[Durability]) -> Self {
        let mut a = vec![driver.dbs[0].newest.clone()];
        let mut known = [0; 2];
        for (number, &durability) in commits.iter().enumerate() {
            let synced = &driver.dbs[0].allowed[0];
            known = [a.iter().position(|state| Rc::ptr_eq(state, synced)).unwrap(), known[0]];
            commit(&mut driver, 0, &mut rng, durability);
            a.push(driver.dbs[0].newest.clone());
            if number % 3 == 2 {
                driver.reopen().unwrap();
            }
        }
        let disk = driver.disk.image(driver.disk.op_count(), ImageKind::Prefix);
        Self { disk, a, known, b: driver.dbs[1].newest.clone() }
    }

    fn open(&self, disk: &SimDisk) -> Store {
        let clock = SimClock::new();
        clock.advance(Duration::from_secs(3600));
        let storage = Arc::new(disk.clone());
        let clock = Arc::new(clock);
        Store::open_with(DIR, Options { background: false, storage, clock, ..Options::default() })
            .unwrap()
    }

    /// Changes a file of `a`, and says what became of it.
    fn with(&self, path: &Path, at: usize, bytes: &[u8]) -> Outcome {
        let disk = self.disk.image(0, ImageKind::Prefix);
        disk.open(path, OpenMode::ReadWrite).unwrap().write_all_at(bytes, at as u64).unwrap();
        let store = self.open(&disk);
        let [a, b] = ["a", "b"].map(|name| store.database(&DbName::new(name).unwrap()).unwrap());
        let known = self.known[usize::from(bytes.len() > 1)];
        let outcome = self.outcome(&a, path, known);
        let mut content = Vec::new();
        b.export(&mut content).unwrap();
        assert!(content == self.b.bytes() && b.quarantined().is_none(), "b is affected");
        if outcome == Outcome::Quarantined {
            self.repair(&a);
        }
        outcome
    }

    fn outcome(&self, a: &Database, path: &Path, known: usize) -> Outcome {
        let mut content = Vec::new();
        match a.export(&mut content) {
            Ok(pos) => {
                let found = self.a[known..].iter().find(|state| state.pos == pos);
                let found = found.unwrap_or_else(|| panic!("cut silently to {pos}"));
                assert!(content == found.bytes(), "wrong content at {pos}");
                assert_eq!(a.quarantined(), None);
                let newest = self.a.last().unwrap();
                if pos == newest.pos { Outcome::Whole } else { Outcome::Shorter }
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
                let reason = a.quarantined().expect("a failed check quarantines");
                assert!(error.to_string().contains(&reason));
                self.check_message(&reason, path);
                let snapshot = a.snapshot().map(|_| ()).unwrap_err();
                assert_eq!(snapshot.kind(), ErrorKind::Corrupt, "served all the same");
                Outcome::Quarantined
            }
        }
    }

    /// The message names the file and the place in it.
    fn check_message(&self, reason: &str, path: &Path) {
        let name = path.to_str().unwrap();
        let says = match path.file_name().unwrap().to_str().unwrap() {
            // A whole table has one sum; an older slot of the mark needs older records.
            "checksums" => reason.contains(name) || reason.contains("/base"),
            "mark" => reason.contains(name) || reason.contains("/data/dbs/a/"),
            // Where a segment is not recognized, the log ends in the one before it.
            file if file.ends_with(".seg") => {
                reason.contains("/data/dbs/a/log/") && reason.contains(" byte ")
            }
            _ => reason.contains(name) && reason.contains(" byte "),
        };
        assert!(says, "damage in {name} reported as: {reason}");
    }

    /// A snapshot from a peer repairs it, and it goes on.
    fn repair(&self, a: &Database) {
        let state = self.a.last().unwrap();
        let record = state.snapshot_record(false);
        assert_eq!(a.install_snapshot(&mut Cursor::new(&record)).unwrap(), state.pos);
        let mut content = Vec::new();
        a.export(&mut content).unwrap();
        assert!(content == state.bytes());
        let mut writer = a.begin_write(&a.snapshot().unwrap()).unwrap();
        writer.write_page(Pgno::FIRST, &[1; PAGE_SIZE]).unwrap();
        writer.prepare(state.pages.len() as u32, Durability::Full, false).unwrap();
        writer.sync().unwrap();
        assert_eq!(writer.publish().txid, state.pos.txid.next());
    }

    /// Flips bits and zeroes sectors all over the files of `a`; counts the outcomes by file name.
    fn damage(&self, flips: usize) -> Vec<(String, [usize; 3])> {
        let mut rng = Rng::new(12);
        let mut counts = Vec::new();
        for path in files(&self.disk, Path::new("/data/dbs/a")) {
            let bytes = read(&self.disk, &path);
            let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            let mut count = [0; 3];
            let mut hit = |at: usize, bytes: &[u8]| {
                count[self.with(&path, at, bytes) as usize] += 1;
            };
            for _ in 0..flips {
                let at = rng.below(used);
                hit(at, &[bytes[at] ^ 1 << rng.below(8)]);
            }
            for sector in 0..used.div_ceil(512) {
                let at = sector * 512;
                hit(at, &vec![0; 512.min(bytes.len() - at)]);
            }
            println!("whole, shorter, quarantined: {count:?} for {}", path.display());
            counts.push((path.display().to_string(), count));
        }
        counts
    }
}

#[test]
fn damage_where_the_log_is_needed_quarantines_or_does_no_harm() {
    use Durability::{Full, Off};
    let sound = sound(&[Full, Off, Full, Full, Full, Off, Off, Full, Full]);
    let counts = sound.damage(150);
    let quarantined = |part: &str| -> usize {
        counts.iter().filter(|(path, _)| path.contains(part)).map(|(_, count)| count[2]).sum()
    };
    for part in ["base", "checksums", ".seg"] {
        assert!(quarantined(part) > 20, "damage in {part} is not noticed: {counts:?}");
    }
}

#[test]
fn damage_below_the_mark_is_noticed_where_the_content_is_concerned() {
    let sound = sound(&[]);
    let counts = sound.damage(150);
    for (path, [_, shorter, quarantined]) in counts {
        assert_eq!(shorter, 0, "{path}");
        if path.contains("base") || path.contains("checksums") {
            assert!(quarantined > 100, "damage in {path} is not noticed");
        }
    }
}

/// The first records of a log that was never folded have nothing below them that helps.
#[test]
fn damage_in_a_log_that_begins_with_a_snapshot_never_brings_back_what_it_replaced() {
    let disk = SimDisk::new();
    let mut driver = Driver::new(disk.clone(), &["a", "b"], 1 << 20);
    let mut rng = Rng::new(13);
    commit(&mut driver, 1, &mut rng, Durability::Full);
    for _ in 0..4 {
        commit(&mut driver, 0, &mut rng, Durability::Full);
    }
    let pages = (0..6).map(|_| rng.page(PAGE_SIZE)).collect();
    let peer = State::of(litefs_store::Txid::new(9), PAGE_SIZE, pages);
    driver.install(0, &peer, false).unwrap();
    let sound = Sound::after(driver, rng, &[Durability::Full; 5]);
    sound.damage(300);
}

#[test]
fn an_unsynced_tail_that_is_torn_is_no_damage() {
    use Durability::{Full, Off};
    let sound = sound(&[Full, Off, Off]);
    let tail = files(&sound.disk, Path::new("/data/dbs/a/log")).pop().unwrap();
    let bytes = read(&sound.disk, &tail);
    let used = bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    // From the second record on, nothing says that it was on the disk.
    let second = (96..used).filter(|&at| &bytes[at..at + 4] == b"LTXF").nth(1).unwrap();
    for at in (second..used).step_by(7) {
        let torn = sound.with(&tail, at, &vec![0; used - at]);
        assert_ne!(torn, Outcome::Quarantined, "torn at byte {at}");
    }
}
