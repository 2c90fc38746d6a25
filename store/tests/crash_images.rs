//! Crash images: a workload of more than 200 commits runs on a simulated disk; for every operation
//! of that disk, images are built of what a crash just then may leave; the store is opened on each,
//! must show exactly one committed content that includes all that was acknowledged, goes on with
//! its work, and crashes again, in its recovery or later.
//!
//! `LITEFS_CRASH_IMAGES=1000000` asks for more images than the usual 20,000 (first crashes; each
//! is followed by two second ones). A failure prints `LITEFS_CRASH_ONE=…` for that one image.

mod support;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use litefs_store::Durability;
use litefs_store::sim::{ImageBuilder, ImageKind, SimClock, SimDisk};
use support::driver::{Expected, check_kept};
use support::workload::{Workload, transaction};
use support::{Driver, Ending, Rng};

const IMAGES: usize = 20_000;
/// Images of each operation.
const KINDS: usize = 10;
/// Second crashes after each first one.
const SECONDS: u64 = 2;

/// One crash, and the one after it.
#[derive(Clone, Copy, Debug)]
struct Shot {
    page_size: usize,
    round: u64,
    at: usize,
    kind: usize,
}

impl fmt::Display for Shot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.page_size, self.round, self.at, self.kind)
    }
}

impl FromStr for Shot {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Result<Vec<u64>, _> = text.split('/').map(str::parse).collect();
        match numbers.as_deref() {
            Ok(&[page_size, round, at, kind]) => Ok(Self {
                page_size: page_size as usize,
                round,
                at: at as usize,
                kind: kind as usize,
            }),
            _ => Err(format!("{text:?} is not page size/round/operation/kind")),
        }
    }
}

impl Shot {
    fn rng(&self) -> Rng {
        Rng::new(self.round << 40 ^ (self.at as u64) << 8 ^ self.kind as u64)
    }
}

fn image_kind(number: usize, seed: u64) -> ImageKind {
    match number {
        0 => ImageKind::ProcessCrash,
        1 => ImageKind::Prefix,
        2 => ImageKind::DropUnsynced,
        3 => ImageKind::RenameWithoutDirSync,
        4 => ImageKind::LengthLost { seed },
        5 => ImageKind::GarbageSector { seed },
        6 | 7 => ImageKind::Torn { seed },
        _ => ImageKind::Subset { seed },
    }
}

/// The workload of a round, run to its end, and its disk.
fn run_workload(page_size: usize, round: u64) -> (Workload, SimDisk) {
    let disk = SimDisk::new();
    let durably = round % 3 != 2;
    disk.set_writes_durably(durably);
    let mut workload = Workload::full(disk.clone(), page_size, round);
    workload.run().unwrap();
    assert_eq!(disk.durable_writes() > 5, durably, "{} durable writes", disk.durable_writes());
    (workload, disk)
}

/// Opens the store on an image, and checks what it finds.
fn open(image: &SimDisk, (expected, low, high): (Vec<Expected>, u64, u64)) -> Driver {
    expected.iter().flat_map(|db| &db.kept).for_each(|kept| check_kept(image, kept));
    let clock = Arc::new(SimClock::new());
    clock.advance(Duration::from_secs(3600));
    let driver = Driver::open(image.clone(), clock, 20_000, expected, low).unwrap();
    let epoch = driver.store.epoch();
    assert!((low..=high).contains(&epoch), "epoch {epoch}, not {low} to {high}");
    driver
}

/// What a user does after a crash: a bit of everything.
fn go_on(driver: &mut Driver, rng: &mut Rng, page_size: usize) {
    for i in 0..driver.dbs.len() {
        for _ in 0..1 + rng.below(2) {
            match rng.below(6) {
                0 | 1 => driver.fold(i).unwrap(),
                2 => driver.sync(i).unwrap(),
                3 => driver.prepare_spare(i).unwrap(),
                _ => {}
            }
            let durability = rng.pick(&[Durability::Full, Durability::Full, Durability::Off]);
            let state = driver.dbs[i].newest.clone();
            let (page_size, pages, size) = transaction(rng, &state, page_size, 4);
            let ending = if rng.chance(10) { Ending::RollBackSynced } else { Ending::Publish };
            driver.commit(i, page_size, &pages, size, durability, ending).unwrap();
        }
        if rng.chance(30) {
            driver.fold(i).unwrap();
        }
    }
    driver.check().unwrap();
}

/// Crashes what ran where the builder stands, goes on, and crashes again.
fn shoot(ran: &Driver, images: &ImageBuilder, shot: Shot) {
    let mut rng = shot.rng();
    let kind = image_kind(shot.kind, rng.next());
    let image = images.image(kind);
    let mut driver = open(&image, ran.expected_at(shot.at));
    let opened = image.op_count();
    driver.reopen().unwrap();
    if kind != ImageKind::ProcessCrash {
        driver.dbs.iter_mut().for_each(|tracked| tracked.settle());
    }
    go_on(&mut driver, &mut rng, shot.page_size);
    for number in 0..SECONDS {
        let second_kind = image_kind(rng.below(KINDS), rng.next());
        let mut again = image.images();
        let at = if number == 0 { rng.below(opened + 1) } else { rng.below(again.op_count() + 1) };
        again.advance_to(at);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let image = again.image(second_kind);
            let mut driver = open(&image, driver.expected_at(at));
            driver.reopen().unwrap();
            go_on(&mut driver, &mut rng.clone(), shot.page_size);
        }));
        if let Err(panic) = outcome {
            eprintln!(
                "in the second crash, {second_kind:?} before operation {at} of {} after the first: {}",
                again.op_count(),
                again.describe()
            );
            resume_unwind(panic);
        }
    }
}

fn shoot_and_tell(ran: &Driver, images: &ImageBuilder, shot: Shot) {
    let outcome = catch_unwind(AssertUnwindSafe(|| shoot(ran, images, shot)));
    if let Err(panic) = outcome {
        let kind = image_kind(shot.kind, shot.rng().next());
        eprintln!("the crash was {kind:?} before operation {}: {}", shot.at, images.describe());
        resume_unwind(panic);
    }
}

/// The same for a workload of [`run_workload`]; a failure says how to see it again.
fn shoot_workload(workload: &Workload, images: &ImageBuilder, shot: Shot) {
    let outcome = catch_unwind(AssertUnwindSafe(|| shoot_and_tell(&workload.driver, images, shot)));
    if let Err(panic) = outcome {
        eprintln!(
            "to see it again: LITEFS_CRASH_ONE={shot} cargo test -p litefs-store --test crash_images"
        );
        resume_unwind(panic);
    }
}

/// Builds `percent` of the images on databases with pages of this size.
fn crash(page_size: usize, percent: usize) {
    if let Ok(one) = std::env::var("LITEFS_CRASH_ONE") {
        let shot: Shot = one.parse().unwrap();
        if shot.page_size == page_size {
            let (workload, disk) = run_workload(page_size, shot.round);
            let mut images = disk.images();
            images.advance_to(shot.at);
            shoot_workload(&workload, &images, shot);
        }
        return;
    }
    let all = std::env::var("LITEFS_CRASH_IMAGES").map(|n| n.parse().unwrap()).unwrap_or(IMAGES);
    let wanted = (all * percent).div_ceil(100);
    let (start, mut done) = (Instant::now(), 0);
    for round in 0.. {
        let (workload, disk) = run_workload(page_size, round);
        let mut images = disk.images();
        let per_round = (images.op_count() + 1) * KINDS;
        // A share that does not suffice for a whole round visits all operations, with some kinds.
        let kinds = ((wanted - done) * KINDS).div_ceil(per_round).min(KINDS);
        for at in 0..=images.op_count() {
            images.advance_to(at);
            // A spare is filled by thousands of writes that nobody reads yet.
            if at % 256 != 0 && images.describe().ends_with("log/spare") {
                continue;
            }
            for kind in 0..kinds {
                let kind = if kinds < KINDS { (kind + at) % KINDS } else { kind };
                shoot_workload(&workload, &images, Shot { page_size, round, at, kind });
                done += 1;
            }
        }
        if done >= wanted {
            let rounds = round + 1;
            println!(
                "{done} images of {page_size}-byte pages in {rounds} rounds, {:?}",
                start.elapsed()
            );
            return;
        }
    }
}

#[test]
fn no_crash_loses_or_tears_anything_with_small_pages() {
    crash(512, 80);
}

#[test]
fn no_crash_loses_or_tears_anything_with_usual_pages() {
    crash(4096, 15);
}

#[test]
fn no_crash_loses_or_tears_anything_with_the_largest_pages() {
    crash(65536, 5);
}

/// Segments of the full size are used again, with their old records in them. Here only the
/// operations around that are of interest: these segments are large.
#[test]
fn a_segment_that_is_used_again_never_brings_back_its_old_records() {
    let (page_size, disk) = (65536, SimDisk::new());
    let mut driver = Driver::new(disk.clone(), &["a"], 20 << 20);
    let mut rng = Rng::new(9);
    for number in 0..32 {
        let pages = (1..=36).map(|pgno| (pgno, rng.page(page_size))).collect();
        driver.commit(0, page_size, &pages, 36, Durability::Off, Ending::Publish).unwrap();
        if number % 3 == 2 {
            driver.fold(0).unwrap();
        }
    }
    let mut images = disk.images();
    let (mut near, mut shots, mut uses) = (0, 0, 0);
    for at in 0..=images.op_count() {
        images.advance_to(at);
        let next = images.describe();
        uses += usize::from(next.starts_with("rename /data/dbs/a/log/spare"));
        near = if next.contains("spare") { 6 } else { near };
        if near > 0 {
            near -= 1;
            for kind in [shots % KINDS, (shots + 5) % KINDS] {
                shoot_and_tell(&driver, &images, Shot { page_size, round: 0, at, kind });
            }
            shots += 2;
        }
    }
    println!("{shots} images around {uses} uses");
    assert!(uses > 1 && shots > KINDS);
}

#[test]
fn the_same_seed_gives_the_same_operations() {
    let operations = |_| {
        let (workload, disk) = run_workload(512, 1);
        let mut images = disk.images();
        let all: Vec<String> = (0..=images.op_count())
            .map(|at| {
                images.advance_to(at);
                images.describe()
            })
            .collect();
        let states: Vec<_> = workload.driver.dbs.iter().map(|db| db.newest.pos).collect();
        (all, states)
    };
    assert_eq!(operations(0), operations(1));
}
