//! Fault sweep: a workload that does everything at least once runs again and again; each time
//! another call to the disk fails, until no fault fires. Whatever fails: nobody is told that
//! something is durable when it is not, nothing panics, readers go on, and once the disk works
//! again so does the store, if need be after it was reopened.

mod support;

use std::sync::Arc;
use std::time::Duration;

use litefs_store::sim::{CallKind, Fault, FaultError, ImageKind, SimClock, SimDisk};
use litefs_store::{Durability, Error, ErrorKind, Result};
use support::driver::{Tracked, check_kept};
use support::workload::Workload;
use support::{Driver, Ending, Rng};

const PAGE_SIZE: usize = 512;
/// Workloads; `LITEFS_FAULT_SEEDS` asks for more.
const SEEDS: u64 = 3;
/// Steps with a fault that lasts, before the disk works again.
const STEPS_WITHOUT: usize = 4;

/// One run of the workload with a fault.
struct Run {
    workload: Workload,
    disk: SimDisk,
    fault: Fault,
    works_again: bool,
}

impl Run {
    /// Runs the workload; false if the fault did not fire.
    fn sweep(seed: u64, fault: &Fault) -> bool {
        let disk = SimDisk::new();
        disk.set_writes_durably(seed % 3 != 2);
        let workload = Workload::small(disk.clone(), PAGE_SIZE, seed);
        disk.inject(fault.clone());
        let mut run = Self { workload, disk, fault: fault.clone(), works_again: false };
        run.steps();
        run.recover();
        run.power_loss(false);
        run.disk.faults_fired() > 0
    }

    fn steps(&mut self) {
        let mut failures = 0;
        for number in 0..self.workload.len() {
            let fired = self.disk.faults_fired();
            let outcome = self.workload.step(number);
            self.check_reads();
            let failed = self.disk.faults_fired() > fired || outcome.is_err();
            if let Err(error) = outcome {
                self.check_error(&error);
            }
            if failed {
                failures += 1;
                let first_or_lasting = failures == 1 || self.fault.forever && !self.works_again;
                self.power_loss(first_or_lasting);
            }
            if failures == STEPS_WITHOUT || !self.is_open() {
                self.recover();
            }
        }
    }

    /// False if reopening the store, or a database in it, failed.
    fn is_open(&self) -> bool {
        let driver = &self.workload.driver;
        let quarantined = |tracked: &Tracked| tracked.db.quarantined().is_some();
        !driver.store.is_closed() && !driver.dbs.iter().any(quarantined)
    }

    /// Readers see what they should, unless it is the reads that fail.
    fn check_reads(&self) {
        let reads = [CallKind::Open, CallKind::Read, CallKind::Len, CallKind::List];
        if self.is_open() && !self.fault.kind.is_some_and(|kind| reads.contains(&kind)) {
            self.workload.driver.check().unwrap();
        }
    }

    fn check_error(&self, error: &Error) {
        let poisoned = matches!(error, Error::Poisoned { .. });
        let text = error.to_string();
        match self.fault.error {
            _ if poisoned => {
                assert!(text.contains("read-only until it is reopened: cannot "), "{text}");
            }
            // A database that cannot be read when the store is opened is served to nobody.
            _ if error.kind() == ErrorKind::Corrupt => {
                assert!(text.contains("it could not be opened: cannot "), "{text}");
            }
            FaultError::Enospc | FaultError::ShortWrite(_) => {
                assert_eq!(error.kind(), ErrorKind::Full, "{text}");
            }
            _ => assert_eq!(error.kind(), ErrorKind::Io, "{text}"),
        }
    }

    /// The disk works again: so does everything that is not poisoned, and the rest once reopened.
    fn recover(&mut self) {
        self.disk.clear_faults();
        self.works_again = true;
        let poisoned = |driver: &Driver| driver.dbs.iter().any(|db| db.poisoned().is_some());
        if !self.is_open() || poisoned(&self.workload.driver) {
            self.workload.driver.reopen().unwrap();
        }
        let driver = &mut self.workload.driver;
        assert!(!poisoned(driver));
        driver.check().unwrap();
        let mut rng = Rng::new(driver.disk.op_count() as u64);
        for i in 0..driver.dbs.len() {
            commit(driver, i, &mut rng).unwrap();
        }
        self.power_loss(false); // before a fold makes it not matter what the log has
        let driver = &mut self.workload.driver;
        for i in 0..driver.dbs.len() {
            driver.fold(i).unwrap();
        }
        driver.check().unwrap();
    }

    /// Nothing that was acknowledged goes with the power, nor with the process.
    ///
    /// After a failed sync of a directory, a good one still says nothing to the simulated disk.
    /// Real file systems keep a journal of names, and stop when it fails; so only what was
    /// acknowledged until then, or while it goes on failing, is held against it.
    fn power_loss(&self, names_count: bool) {
        let at = self.disk.op_count();
        let seed = at as u64;
        let kinds = match self.fault.kind {
            Some(CallKind::SyncDir) if !names_count => &[ImageKind::ProcessCrash][..],
            _ => &[ImageKind::ProcessCrash, ImageKind::DropUnsynced, ImageKind::Subset { seed }],
        };
        for &kind in kinds {
            let (expected, low, _) = self.workload.driver.expected_at(at);
            let image = self.disk.image(at, kind);
            expected.iter().flat_map(|db| &db.kept).for_each(|kept| check_kept(&image, kept));
            let clock = Arc::new(SimClock::new());
            clock.advance(Duration::from_secs(3600));
            let mut driver = Driver::open(image, clock, 20_000, expected, low).unwrap();
            let mut rng = Rng::new(2);
            for i in 0..driver.dbs.len() {
                commit(&mut driver, i, &mut rng).unwrap();
            }
        }
    }
}

fn commit(driver: &mut Driver, i: usize, rng: &mut Rng) -> Result<()> {
    let state = driver.dbs[i].newest.clone();
    let page_size = if state.pages.is_empty() { PAGE_SIZE } else { state.page_size };
    let size = state.pages.len().max(3);
    let pages = vec![(1, rng.page(page_size)), (size as u32, rng.page(page_size))];
    driver.commit(i, page_size, &pages, size, Durability::Full, Ending::Publish)
}

/// Fails each call of the kind in turn, until no fault fires.
fn sweep(seed: u64, kind: CallKind, error: FaultError, forever: bool) -> u64 {
    let mut runs = 0;
    for nth in 1.. {
        let fault = Fault { kind: Some(kind), path: None, nth, error, forever };
        let outcome = std::panic::catch_unwind(|| Run::sweep(seed, &fault));
        match outcome {
            Ok(true) => runs += 1,
            Ok(false) => return runs,
            Err(panic) => {
                eprintln!("in the workload of seed {seed}, the fault was {fault:?}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    unreachable!("a workload ends")
}

fn sweep_all(error: FaultError) {
    let start = std::time::Instant::now();
    let mut runs = 0;
    for kind in CallKind::ALL.into_iter().filter(|&kind| error.applies_to(kind)) {
        let seeds = std::env::var("LITEFS_FAULT_SEEDS").map_or(SEEDS, |n| n.parse().unwrap());
        let all = (0..seeds).flat_map(|seed| [(seed, false), (seed, true)]);
        let fired: u64 = all.map(|(seed, forever)| sweep(seed, kind, error, forever)).sum();
        assert!(fired > 0, "{error:?} never came from {kind:?}");
        runs += fired;
    }
    println!("{runs} runs with {error:?}, {:?}", start.elapsed());
}

#[test]
fn an_io_error_anywhere_loses_nothing_that_was_acknowledged() {
    sweep_all(FaultError::Eio);
}

#[test]
fn a_refusal_for_lack_of_space_anywhere_loses_nothing_that_was_acknowledged() {
    sweep_all(FaultError::Enospc);
}

#[test]
fn a_short_write_anywhere_loses_nothing_that_was_acknowledged() {
    sweep_all(FaultError::ShortWrite(100));
}

#[test]
fn a_failed_sync_anywhere_loses_nothing_that_was_acknowledged() {
    sweep_all(FaultError::FailedSync);
}

/// Runs a workload on a disk of some blocks, then gives it more; says how many calls were refused.
fn fill_disk(blocks: u64, reserves: bool, seed: u64) -> usize {
    let disk = SimDisk::new();
    disk.set_reserves(reserves);
    let mut workload = Workload::small(disk.clone(), PAGE_SIZE, seed);
    disk.set_capacity(Some(blocks * 4096));
    let mut refused = 0;
    for number in 0..workload.len() {
        if let Err(error) = workload.step(number) {
            assert_eq!(error.kind(), ErrorKind::Full, "{error}");
            refused += 1;
            let at = disk.op_count();
            let (expected, low, _) = workload.driver.expected_at(at);
            let image = disk.image(at, ImageKind::DropUnsynced);
            Driver::open(image, Arc::new(SimClock::new()), 20_000, expected, low).unwrap();
        }
        workload.driver.check().unwrap();
    }
    // In the same process, once there is space again:
    disk.set_capacity(None);
    let driver = &mut workload.driver;
    let mut rng = Rng::new(seed);
    for i in 0..driver.dbs.len() {
        commit(driver, i, &mut rng).unwrap();
        driver.fold(i).unwrap();
    }
    for number in 0..workload.len() {
        workload.step(number).unwrap();
    }
    workload.driver.check().unwrap();
    refused
}

#[test]
fn a_full_disk_refuses_writes_only_and_only_until_there_is_space() {
    let mut refused = Vec::new();
    for blocks in 1..60 {
        for (reserves, seed) in [(true, 0), (true, 1), (true, 2), (false, 0), (false, 1)] {
            refused.push(fill_disk(blocks, reserves, seed));
        }
    }
    let full = refused.iter().filter(|&&refused| refused > 0).count();
    println!("{full} fills, {} calls refused", refused.iter().sum::<usize>());
    assert!(full > 200, "{refused:?}");
}

/// A frame that begins with a sector, after a synced one, goes to the disk in one call.
#[test]
fn a_durable_write_that_fails_makes_the_database_read_only_unless_space_is_missing() {
    for (kind, error, poisons) in [
        (CallKind::Write, FaultError::Eio, true),
        (CallKind::SyncData, FaultError::FailedSync, true),
        (CallKind::Write, FaultError::Enospc, false),
        (CallKind::Write, FaultError::ShortWrite(600), false),
    ] {
        let disk = SimDisk::new();
        let mut driver = Driver::new(disk.clone(), &["a"], 1 << 20);
        let mut rng = Rng::new(5);
        commit(&mut driver, 0, &mut rng).unwrap();
        commit(&mut driver, 0, &mut rng).unwrap();
        assert_eq!(disk.durable_writes(), 1, "the second one ends with a sector");
        disk.inject(Fault::once(1, error).on(kind).at("dbs/a/log"));
        commit(&mut driver, 0, &mut rng).unwrap_err();
        assert_eq!(disk.faults_fired(), 1);
        assert_eq!(driver.dbs[0].poisoned().is_some(), poisons, "{error:?} of {kind:?}");
        driver.check().unwrap();
        if poisons {
            driver.reopen().unwrap();
        }
        commit(&mut driver, 0, &mut rng).unwrap();
        driver.check().unwrap();
    }
}

/// A large installation is synced while it is written; what that loses, the sync at the end does
/// not know of.
#[test]
fn an_installation_whose_early_sync_failed_is_not_installed() {
    let disk = SimDisk::new();
    let mut driver = Driver::new(disk.clone(), &["a"], 1 << 20);
    commit(&mut driver, 0, &mut Rng::new(5)).unwrap();
    let a = driver.dbs[0].db.clone();
    let before = a.pos();
    // As long as 72 MiB, with pages of 64 KiB.
    let mut file = vec![0; 72 << 20];
    file[..16].copy_from_slice(b"SQLite format 3\0");
    file[16..18].copy_from_slice(&1u16.to_be_bytes());
    disk.inject(Fault::once(1, FaultError::FailedSync).on(CallKind::SyncData).at("a/base.new"));
    let error = a.import(&mut file.as_slice()).unwrap_err();
    assert_eq!((disk.faults_fired(), error.kind()), (1, ErrorKind::Io), "{error}");
    assert!(error.to_string().contains("cannot sync /data/dbs/a/base.new"), "{error}");
    assert_eq!((a.pos(), a.quarantined()), (before, None));
    driver.check().unwrap();
    a.import(&mut file.as_slice()).unwrap();
    assert_eq!(a.pos().txid, before.txid.next());
}

#[test]
fn a_failed_sync_of_the_log_makes_one_database_read_only_until_it_is_reopened() {
    let disk = SimDisk::new();
    let mut driver = Driver::new(disk.clone(), &["a", "b"], 1 << 20);
    let mut rng = Rng::new(5);
    for i in [0, 1, 0] {
        commit(&mut driver, i, &mut rng).unwrap();
    }
    driver.pin(0).unwrap();
    // Seen by readers, and in doubt after the sync that fails.
    let page = vec![(2, rng.page(PAGE_SIZE))];
    driver.commit(0, PAGE_SIZE, &page, 3, Durability::Off, Ending::Publish).unwrap();
    disk.inject(Fault::once(1, FaultError::FailedSync).on(CallKind::SyncData).at("dbs/a/log"));
    let error = commit(&mut driver, 0, &mut rng).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");

    let a = driver.dbs[0].db.clone();
    let refused =
        [commit(&mut driver, 0, &mut rng), driver.sync(0), driver.fold(0), driver.drop_database(0)];
    for error in refused.map(Result::unwrap_err) {
        assert_eq!(error.kind(), ErrorKind::ReadOnly);
        let text = error.to_string();
        assert!(text.contains("cannot sync /data/dbs/a/log/"), "{text}");
    }
    assert_eq!(a.quarantined(), None);
    driver.check().unwrap();
    commit(&mut driver, 1, &mut rng).unwrap();

    driver.reopen().unwrap();
    commit(&mut driver, 0, &mut rng).unwrap();
    // What the failed sync left in doubt was written again.
    for seed in 0..50 {
        let at = disk.op_count();
        let (expected, ..) = driver.expected_at(at);
        let image = disk.image(at, ImageKind::Subset { seed });
        Driver::open(image, Arc::new(SimClock::new()), 1 << 20, expected, 0).unwrap();
    }
}

/// A new data directory: whatever fails when it is created, the next start creates it.
#[test]
fn a_failure_while_a_data_directory_is_created_leaves_nothing_that_hinders_the_next_start() {
    for error in [FaultError::Eio, FaultError::Enospc] {
        for nth in 1.. {
            let disk = SimDisk::new();
            disk.inject(Fault::once(nth, error));
            let names = ["a"];
            let first = Driver::try_new(disk.clone(), &names, 1 << 20)
                .and_then(|mut driver| commit(&mut driver, 0, &mut Rng::new(1)).map(|()| driver));
            let fired = disk.faults_fired() > 0;
            disk.clear_faults();
            if let (true, Ok(driver)) = (fired, &first) {
                // It could do without that call.
                let (expected, ..) = driver.expected_at(disk.op_count());
                let image = disk.image(disk.op_count(), ImageKind::DropUnsynced);
                Driver::open(image, Arc::new(SimClock::new()), 1 << 20, expected, 0).unwrap();
            } else if fired {
                let mut driver = Driver::try_new(disk.clone(), &names, 1 << 20).unwrap();
                commit(&mut driver, 0, &mut Rng::new(2)).unwrap();
                driver.reopen().unwrap();
            } else {
                first.unwrap();
                assert!(nth > 20, "only {nth} calls");
                break;
            }
        }
    }
}
