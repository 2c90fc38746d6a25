//! Choices that depend on the seed alone, and clocks that go wrong.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use litefs_store::Clock;
use litefs_store::sim::Rng;

/// Choices of many kinds.
#[derive(Debug, Clone)]
pub struct Random(Rng);

impl Random {
    pub fn new(seed: u64) -> Self {
        // Neighbouring seeds must not give neighbouring sequences.
        let mixed = Rng::new(seed ^ 0x5851_f42d_4c95_7f2d).number() ^ seed.rotate_left(32);
        Self(Rng::new(mixed))
    }

    pub fn next(&mut self) -> u64 {
        self.0.number()
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0.below(n)
    }

    pub fn index(&mut self, n: usize) -> usize {
        self.below(n as u64) as usize
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.0.one_in(n)
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }

    /// A time from `least` to below `most`, in microseconds.
    pub fn time(&mut self, least: Duration, most: Duration) -> Duration {
        let span = most.saturating_sub(least).as_micros() as u64;
        least + Duration::from_micros(self.below(span.max(1)))
    }
}

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A monotonic clock that is too fast or too slow. It starts at an arbitrary time, as a machine's
/// does when it boots, and shows what the world last told it.
#[derive(Debug)]
pub struct DriftClock {
    /// Own nanoseconds for each million real ones.
    rate: u64,
    start: Duration,
    shown: AtomicU64,
}

impl DriftClock {
    /// `drift` in parts per million: 50,000 is five percent too fast.
    pub fn new(drift: i64, start: Duration) -> Self {
        let rate = u64::try_from(1_000_000 + drift).expect("a clock does not run backwards");
        Self { rate, start, shown: AtomicU64::new(0) }
    }

    /// What it shows at a real time.
    pub fn at(&self, real: Duration) -> Duration {
        let own = real.as_nanos() * u128::from(self.rate) / 1_000_000;
        self.start + Duration::from_nanos(own as u64)
    }

    /// The first real time at which it shows at least `own`.
    pub fn real(&self, own: Duration) -> Duration {
        let since = own.saturating_sub(self.start).as_nanos();
        let real = (since * 1_000_000).div_ceil(u128::from(self.rate));
        Duration::from_nanos(u64::try_from(real).unwrap_or(u64::MAX))
    }

    /// Makes it show the time.
    pub fn show(&self, real: Duration) {
        let own = self.at(real).as_nanos() as u64;
        self.shown.fetch_max(own, Ordering::Relaxed);
    }
}

impl Clock for DriftClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.shown.load(Ordering::Relaxed))
    }

    /// Wildly wrong: nothing may be decided by it.
    fn wall_ms(&self) -> i64 {
        let now = self.shown.load(Ordering::Relaxed);
        (now as i64 / 1_000_000).wrapping_mul(7) % 100_000_000 - 86_400_000
    }
}

#[test]
fn a_clock_shows_a_time_at_the_real_time_that_it_names_and_not_before() {
    let mut random = Random::new(1);
    for _ in 0..1000 {
        let clock = DriftClock::new(random.below(100_001) as i64 - 50_000, secs(random.below(99)));
        let own = clock.at(Duration::ZERO) + random.time(ms(1), secs(500));
        let real = clock.real(own);
        assert!(clock.at(real) >= own);
        assert!(clock.at(real - Duration::from_nanos(2)) < own);
    }
}
