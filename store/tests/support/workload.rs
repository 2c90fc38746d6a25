//! Workloads: everything that changes a data directory, in an order that depends on a seed alone.

use std::rc::Rc;

use litefs_store::ltx::{Decoder, Encoder, Header};
use litefs_store::sim::SimDisk;
use litefs_store::{Durability, Result};

use super::driver::{Driver, Ending};
use super::model::{Pages, Rng, State};

/// Written to by local transactions.
const APP: usize = 0;
/// Follows a primary.
const REPLICA: usize = 1;
/// Imported into, and written to without ever being synced.
const OTHER: usize = 2;

/// One thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Commit,
    /// One record that needs a segment of its own.
    CommitLarge,
    RollBack,
    Drop,
    Ship,
    ShipLz4,
    ShipCompacted,
    Install,
    Diverge,
    CommitOther,
    Import,
    Fold(usize),
    Sync(usize),
    Spare(usize),
    Pin,
    Unpin,
    Epoch,
    Reopen,
}

/// What a run of [`run`] is made of; the sum of the commits is that of the steps that commit.
const FULL: &[(Step, usize)] = &[
    (Step::Commit, 80),
    (Step::CommitLarge, 5),
    (Step::RollBack, 10),
    (Step::Drop, 4),
    (Step::Ship, 40),
    (Step::ShipLz4, 10),
    (Step::ShipCompacted, 8),
    (Step::Install, 4),
    (Step::Diverge, 5),
    (Step::CommitOther, 40),
    (Step::Import, 5),
    (Step::Fold(APP), 10),
    (Step::Fold(REPLICA), 7),
    (Step::Fold(OTHER), 5),
    (Step::Sync(APP), 3),
    (Step::Sync(REPLICA), 3),
    (Step::Sync(OTHER), 3),
    (Step::Spare(APP), 6),
    (Step::Spare(REPLICA), 4),
    (Step::Pin, 6),
    (Step::Unpin, 6),
    (Step::Epoch, 3),
    (Step::Reopen, 6),
];

/// Each step at least once, and little more.
const SMALL: &[(Step, usize)] = &[
    (Step::Commit, 5),
    (Step::CommitLarge, 1),
    (Step::RollBack, 2),
    (Step::Drop, 1),
    (Step::Ship, 2),
    (Step::ShipLz4, 1),
    (Step::ShipCompacted, 1),
    (Step::Install, 1),
    (Step::Diverge, 1),
    (Step::CommitOther, 2),
    (Step::Import, 1),
    (Step::Fold(APP), 2),
    (Step::Fold(REPLICA), 1),
    (Step::Fold(OTHER), 1),
    (Step::Sync(OTHER), 1),
    (Step::Spare(APP), 1),
    (Step::Pin, 1),
    (Step::Unpin, 1),
    (Step::Epoch, 1),
    (Step::Reopen, 1),
];

/// A store with three databases, and the primary of one of them.
pub struct Workload {
    pub driver: Driver,
    source: Driver,
    rng: Rng,
    page_size: usize,
    steps: Vec<Step>,
}

impl Workload {
    /// 200 commits and more; with larger pages fewer.
    pub fn full(disk: SimDisk, page_size: usize, seed: u64) -> Self {
        let share = if page_size <= 4096 { 1 } else { 4 };
        let steps = FULL.iter().map(|&(step, count)| (step, count.div_ceil(share)));
        Self::new(disk, page_size, seed, steps)
    }

    /// A few commits.
    pub fn small(disk: SimDisk, page_size: usize, seed: u64) -> Self {
        Self::new(disk, page_size, seed, SMALL.iter().copied())
    }

    fn new(
        disk: SimDisk,
        page_size: usize,
        seed: u64,
        mix: impl Iterator<Item = (Step, usize)>,
    ) -> Self {
        let mut rng = Rng::new(seed ^ (page_size as u64) << 32);
        let mut steps: Vec<Step> =
            mix.flat_map(|(step, count)| std::iter::repeat_n(step, count)).collect();
        rng.shuffle(&mut steps);
        let log_size = 40 * page_size as u64;
        let driver = Driver::new(disk, &["app", "replica", "other"], log_size);
        let source = Driver::new(SimDisk::new(), &["source"], u64::MAX);
        Self { driver, source, rng, page_size, steps }
    }

    /// Does everything, and checks after each step that readers see what they should.
    pub fn run(&mut self) -> Result<()> {
        for step in 0..self.steps.len() {
            self.step(step)?;
            self.driver.check()?;
        }
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Does the step of this number.
    pub fn step(&mut self, number: usize) -> Result<()> {
        let driver = &mut self.driver;
        match self.steps[number] {
            Step::Commit => self.commit(APP, 6, Ending::Publish),
            Step::CommitLarge => self.commit(APP, 40, Ending::Publish),
            Step::RollBack => {
                let ending = self.rng.pick(&[Ending::RollBackPrepared, Ending::RollBackSynced]);
                self.commit(APP, 6, ending)
            }
            Step::Drop if driver.dbs[APP].newest.pages.is_empty() => Ok(()),
            Step::Drop => driver.drop_database(APP),
            Step::Ship => self.ship(false),
            Step::ShipLz4 => self.ship(true),
            Step::ShipCompacted => self.ship_compacted(),
            Step::Install => self.install(),
            Step::Diverge => self.diverge(),
            Step::CommitOther => self.commit(OTHER, 3, Ending::Publish),
            Step::Import => {
                let size = 1 + self.rng.below(12);
                let file = State::sqlite_file(&mut self.rng, self.page_size, size);
                driver.import(OTHER, &file, self.page_size)
            }
            Step::Fold(i) => driver.fold(i),
            Step::Sync(i) => driver.sync(i),
            Step::Spare(i) => driver.prepare_spare(i),
            Step::Pin => driver.pin(APP),
            Step::Unpin => {
                driver.dbs[APP].pins.clear();
                Ok(())
            }
            Step::Epoch => driver.set_epoch(number as u64 + 1),
            Step::Reopen => driver.reopen(),
        }
    }

    fn durability(&mut self) -> Durability {
        self.rng.pick(&[Durability::Off, Durability::Normal, Durability::Full])
    }

    fn commit(&mut self, i: usize, most: usize, ending: Ending) -> Result<()> {
        let durability = if i == OTHER { Durability::Off } else { self.durability() };
        let state = self.driver.dbs[i].newest.clone();
        let (page_size, pages, size) = transaction(&mut self.rng, &state, self.page_size, most);
        self.driver.commit(i, page_size, &pages, size, durability, ending)
    }

    /// The next record of the primary for the replica.
    fn next_record(&mut self) -> Result<(Vec<u8>, Rc<State>)> {
        let at = self.source_commits(1)?;
        let source = &self.source.dbs[0];
        let mut cursor = source.db.log_cursor(source.line[at].pos)?;
        let record = cursor.next()?.expect("the primary has committed it");
        let mut bytes = vec![0; record.len() as usize];
        record.read_at(0, &mut bytes)?;
        Ok((bytes, source.line[at + 1].clone()))
    }

    /// Brings the replica back on the primary's history, which it left when undoing what had
    /// diverged was interrupted.
    fn rejoin(&mut self) -> Result<()> {
        let replica = self.driver.dbs[REPLICA].newest.pos;
        if self.source.dbs[0].line.iter().any(|state| state.pos == replica) {
            return Ok(());
        }
        if self.source.dbs[0].newest.pages.is_empty() {
            self.source_commit()?;
        }
        let whole = self.source.dbs[0].newest.clone();
        self.driver.install(REPLICA, &whole, false)
    }

    /// Has the primary be at least `ahead` transactions ahead of the replica; says where in the
    /// primary's line the replica is.
    fn source_commits(&mut self, ahead: usize) -> Result<usize> {
        self.rejoin()?;
        let replica = self.driver.dbs[REPLICA].newest.pos;
        let here = |line: &[Rc<State>]| line.iter().position(|state| state.pos == replica);
        let at = here(&self.source.dbs[0].line).expect("the replica follows the primary");
        while self.source.dbs[0].line.len() <= at + ahead {
            if !self.source.dbs[0].newest.pages.is_empty() && self.rng.chance(5) {
                self.source.drop_database(0)?;
                continue;
            }
            self.source_commit()?;
        }
        Ok(at)
    }

    fn source_commit(&mut self) -> Result<()> {
        let state = self.source.dbs[0].newest.clone();
        let (page_size, pages, size) = transaction(&mut self.rng, &state, self.page_size, 8);
        self.source.commit(0, page_size, &pages, size, Durability::Off, Ending::Publish)
    }

    fn ship(&mut self, compressed: bool) -> Result<()> {
        let (record, state) = self.next_record()?;
        let record = if compressed { lz4(&record) } else { record };
        let durability = self.durability();
        self.driver.apply(REPLICA, &record, &state, durability)
    }

    fn ship_compacted(&mut self) -> Result<()> {
        let at = self.source_commits(3)?;
        let source = &self.source.dbs[0];
        let Ok(compacted) = source.db.compacted(source.db.snapshot()?, source.line[at].pos) else {
            return self.ship(false); // the page size changed in between
        };
        let mut record = Vec::new();
        compacted.write_to(&mut record)?;
        let state = source.newest.clone();
        let durability = self.durability();
        self.driver.apply(REPLICA, &record, &state, durability)
    }

    fn install(&mut self) -> Result<()> {
        self.source_commits(1)?;
        let state = self.source.dbs[0].newest.clone();
        if state.pages.is_empty() {
            return self.ship(false);
        }
        let compressed = self.rng.chance(50);
        self.driver.install(REPLICA, &state, compressed)
    }

    /// The replica commits by itself; this is kept aside and undone, by a rewind or a snapshot.
    fn diverge(&mut self) -> Result<()> {
        if self.source_commits(0)? == 0 {
            self.ship(false)?;
        }
        let common = self.driver.dbs[REPLICA].line.len() - 1;
        let restarts = self.rng.chance(40);
        for _ in 0..1 + self.rng.below(4) {
            self.commit(REPLICA, 6, Ending::Publish)?;
            if restarts {
                self.driver.reopen()?; // the next record begins a segment
            }
        }
        let folds = self.rng.chance(30);
        if folds {
            self.driver.fold(REPLICA)?;
        }
        self.driver.preserve(REPLICA, common)?;
        let replica = &self.driver.dbs[REPLICA];
        let wanted = replica.line[common].pos;
        assert!(replica.db.history_points(64).contains(&wanted) || folds, "{wanted} is close");
        if replica.db.snapshot_at(wanted.txid).is_ok() {
            return self.driver.rewind(REPLICA, common);
        }
        assert!(folds, "nothing keeps it from rewinding");
        self.rejoin()
    }
}

/// A transaction on `state` that writes up to `most` pages: page size, pages, size after it.
pub fn transaction(
    rng: &mut Rng,
    state: &State,
    page_size: usize,
    most: usize,
) -> (usize, Pages, usize) {
    let old = state.pages.len();
    // A database that was dropped comes back with another page size.
    let other = if page_size == 512 { 1024 } else { page_size / 2 };
    let page_size = match (old, state.page_size) {
        (0, last) if last == page_size => other,
        (0, _) => page_size,
        (_, settled) => settled,
    };
    let size = match rng.below(10) {
        _ if most > 20 => most,
        0..2 => old + 1 + rng.below(6),
        2..4 => (old / 2).max(1),
        _ => old.max(1),
    };
    let size = size.min(most.max(24));
    let mut numbers: Vec<u32> = (1..=size as u32).collect();
    rng.shuffle(&mut numbers);
    numbers.truncate(if most > 20 { most } else { 1 + rng.below(most) });
    // Pages by which it grows may stay unwritten, and read as zeros.
    let pages = numbers.iter().map(|&number| (number, rng.page(page_size))).collect();
    (page_size, pages, size)
}

fn lz4(record: &[u8]) -> Vec<u8> {
    let mut decoder = Decoder::new(record).unwrap();
    let header = Header { compressed: true, ..*decoder.header() };
    let mut page = vec![0; header.page_size.len()];
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
        encoder.encode_page(pgno, &page).unwrap();
    }
    encoder.finish(decoder.finish().unwrap().post_apply).unwrap().0
}
