//! A whole cluster in virtual time: the real role machine, the real replication machines, and the
//! real store on the simulated disk (or, for speed, lists in its place), over a network and a
//! Consul that fail, by clocks that are up to five percent wrong.
//!
//! Each seed is one run, with its own mixture of faults; the same seed gives the same run. First
//! things go wrong, and all the time it is checked that
//! * no two nodes' gates are open at the same moment, and no commit of an older epoch passes after
//!   one of a newer;
//! * no node goes back to an older epoch, and none without data begins a term over nodes with data;
//! * with `sync`, whatever is confirmed is on the disks of all whom Consul names, and it names
//!   nobody only in the fallback; with `bounded`, a commit begins only while another node is as
//!   near as that.
//!
//! Then all faults end, and in bounded time there must be a primary that acknowledges, and every
//! node at its positions. Then no acknowledged transaction may be missing: with `sync`, or if nodes
//! only changed their roles in order, each is in the databases; with `async` each is there or
//! preserved under `diverged`. Not covered is what only lost disks had.
//!
//! `LITEFS_SIM_SEEDS` sets the number of seeds, `LITEFS_SIM_SEED` runs one of them alone, and with
//! `LITEFS_SIM_TRACE` it tells what happens.
//!
//! | module    | what                                                                      |
//! |-----------|---------------------------------------------------------------------------|
//! | `chance`  | choices by seed; clocks that go wrong                                     |
//! | `swarm`   | a seed's world and mixture of faults                                      |
//! | `world`   | virtual time, nodes, events                                               |
//! | `strikes` | faults and their ends                                                     |
//! | `net`     | who reaches whom, connections                                             |
//! | `consul`  | a model of Consul                                                         |
//! | `data`    | what a node has on disk: lists                                            |
//! | `real`    | the same with the real store                                              |
//! | `driver`  | drives the role machine                                                   |
//! | `links`   | drives the replication machines                                           |
//! | `commits` | clients, and the ledger of what they were told                            |
//! | `sync`    | acknowledgements that wait for replicas                                   |
//! | `checks`  | whole runs, and what must hold at their end                               |

mod chance;
mod checks;
mod commits;
mod consul;
mod data;
mod driver;
mod links;
mod net;
mod real;
mod strikes;
mod swarm;
mod sync;
mod world;

use std::time::Duration;

use chance::{ms, secs};
use commits::Acked;
use data::Crash;
use net::Delays;
use swarm::Swarm;
use world::{Reached, World};

use crate::config::{Bounds, ReplicationMode};

/// Seeds of a run of all tests, with lists in place of the store.
const SEEDS: u64 = 2000;
/// Of those, seeds that run once more with the real store.
const REAL_SEEDS: u64 = 200;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// The seeds to run.
fn seeds(usual: u64) -> std::ops::Range<u64> {
    match number("LITEFS_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("LITEFS_SIM_SEEDS").map_or(usual, |seeds| seeds * usual / SEEDS),
    }
}

fn live(seed: u64, is_real: bool) -> World {
    let _told = SeedTold(seed);
    let mut world = World::new(seed, Swarm::of(seed, is_real));
    world.live();
    world
}

/// Tells the seed if the code under test panics.
struct SeedTold(u64);

impl Drop for SeedTold {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {} panicked: run it alone with LITEFS_SIM_SEED={0}", self.0);
        }
    }
}

/// What came of some seeds.
#[derive(Default)]
struct Tally {
    reached: Reached,
    failed: Vec<(u64, String)>,
}

impl Tally {
    fn of(seeds: impl Iterator<Item = u64>, is_real: bool) -> Self {
        let mut tally = Self::default();
        for seed in seeds {
            let world = live(seed, is_real);
            tally.reached.add(&world.reached);
            tally.failed.extend(world.violations.first().map(|text| (seed, text.clone())));
        }
        tally
    }
}

/// Runs seeds on all cores; panics with those that failed.
fn run(test: &str, usual: u64, is_real: bool) -> Reached {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let tallies: Vec<Tally> = std::thread::scope(|scope| {
        let part = |core| move || Tally::of(seeds(usual).skip(core).step_by(cores), is_real);
        let threads: Vec<_> = (0..cores).map(|core| scope.spawn(part(core))).collect();
        threads.into_iter().map(|thread| thread.join().expect("its message says why")).collect()
    });
    let mut all = Tally::default();
    for tally in tallies {
        all.reached.add(&tally.reached);
        all.failed.extend(tally.failed);
    }
    all.failed.sort();
    let shown: Vec<String> =
        all.failed.iter().take(20).map(|(seed, text)| format!("seed {seed}: {text}")).collect();
    assert!(
        shown.is_empty(),
        "{} seeds failed; run one alone with: LITEFS_SIM_SEED=N LITEFS_SIM_TRACE=1 \
         cargo test -p litefs-node --lib {test} -- --nocapture\n{}",
        all.failed.len(),
        shown.join("\n")
    );
    all.reached
}

#[test]
fn no_two_primaries_and_nothing_acknowledged_is_lost_whatever_fails() {
    let reached = run("no_two_primaries_and_nothing", SEEDS, false);
    println!("{reached:?}");
    if number("LITEFS_SIM_SEED").is_none() {
        reached.assert_all();
    }
}

#[test]
fn the_real_store_on_a_failing_disk_keeps_the_same_promises() {
    let reached = run("the_real_store_on_a_failing", REAL_SEEDS, true);
    println!("{reached:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for (seed, is_real) in [(3, false), (4, false), (5, true)] {
        let trace = || {
            let world = live(seed, is_real);
            (world.trace, world.now, world.ledger.acked.len())
        };
        assert_eq!(trace(), trace(), "seed {seed}");
    }
}

/// Kills the primary of a quiet cluster after a time between these, and waits until another node
/// lets a commit through. Returns when it was killed, and how many commits were let through before.
fn kill_primary(world: &mut World, seed: u64, from: Duration, to: Duration) -> (Duration, usize) {
    let acks = |world: &World| world.ledger.acked.len();
    assert!(world.run_until(secs(60), |world| acks(world) > 20), "{:?}", world.violations);
    let at = world.now + world.random.time(from, to);
    world.run(at);
    let killed = world.leader().expect("a primary");
    let before = acks(world);
    world.fell(killed, Crash::Kill);
    let is_over = world.run_until(at + secs(90), |world| acks(world) > before);
    assert!(is_over, "seed {seed}: {:?}", world.violations);
    (at, before)
}

/// The time until another node lets a commit through.
fn failover(seed: u64, fast: bool) -> Duration {
    let mut world = World::new(seed, Swarm::plain(fast));
    // Any moment between two beats.
    let (at, before) = kill_primary(&mut world, seed, secs(3), secs(5));
    world.ledger.acked[before].at - at
}

/// At most the bound, and the one commit that was let through at it.
#[test]
fn bounded_loses_no_more_than_its_bound_with_the_primary() {
    let most = 4;
    let bounds = Bounds { max_lag: None, max_transactions: Some(most) };
    let mut lost = 0;
    for seed in 0..60 {
        let plain = Swarm::plain(true);
        // So slow that the bound is felt.
        let delays = Delays { usual: ms(60), ..plain.delays };
        let mode = ReplicationMode::Bounded(bounds);
        let mut world = World::new(seed, Swarm { databases: 1, mode, delays, ..plain });
        let (_, before) = kill_primary(&mut world, seed, secs(1), secs(3));
        let line = world.line_of(world.ledger.acked[before].node);
        let missing = |acked: &&Acked| !line.contains(&acked.pos);
        let missing = world.ledger.acked[..before].iter().filter(missing).count() as u64;
        assert!(missing <= most + 1, "seed {seed}: {missing} acknowledged commits are missing");
        lost += missing;
    }
    assert!(lost > 0, "nothing was at stake");
}

fn distribution(fast: bool, seeds: u64) -> Vec<Duration> {
    let mut times: Vec<Duration> = (0..seeds).map(|seed| failover(seed, fast)).collect();
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!(
        "fast {fast}: p50 {:?}, p90 {:?}, p99 {:?}, max {:?}",
        at(50),
        at(90),
        at(99),
        at(100)
    );
    times
}

#[test]
fn with_fast_failover_another_node_commits_within_eight_seconds() {
    let times = distribution(true, 100);
    assert!(times[times.len() - 1] < secs(8));
}

#[test]
fn without_it_another_node_commits_once_the_session_is_over() {
    let times = distribution(false, 30);
    // Twice the TTL and the lock-delay, by clocks that are five percent slow, and a second.
    assert!(times[times.len() - 1] < secs(23) + ms(500));
}
