//! Clocks that stand still until a test moves them.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Clock;

/// A clock moved by [`SimClock::advance`]. It starts at 0, with the wall clock at 1970-01-01.
#[derive(Debug, Default)]
pub struct SimClock {
    now_ns: AtomicU64,
    wall_offset_ms: AtomicI64,
}

impl SimClock {
    /// A clock at 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).expect("BUG: a test advances the clock by centuries");
        self.now_ns.fetch_add(by, Ordering::SeqCst);
    }

    /// Makes the wall clock show `now` plus `offset_ms`; it may go back.
    pub fn set_wall_offset_ms(&self, offset_ms: i64) {
        self.wall_offset_ms.store(offset_ms, Ordering::SeqCst);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.now_ns.load(Ordering::SeqCst))
    }

    fn wall_ms(&self) -> i64 {
        let now_ms = i64::try_from(self.now().as_millis()).unwrap_or(i64::MAX);
        now_ms.saturating_add(self.wall_offset_ms.load(Ordering::SeqCst))
    }
}

/// A clock that stands still, and leaps to [`LeapingClock::LATE`] when it is looked at for the nth
/// time: for deadlines that pass at any moment of a call.
#[derive(Debug, Default)]
pub struct LeapingClock {
    /// Looks until it leaps; 0: it does not.
    looks: AtomicU64,
    has_leapt: AtomicBool,
}

impl LeapingClock {
    /// What it shows after the leap.
    pub const LATE: Duration = Duration::from_secs(1000);

    /// Goes back, and leaps at that look from now on, counted from 1; 0: never.
    pub fn leap_at(&self, look: u64) {
        self.has_leapt.store(false, Ordering::SeqCst);
        self.looks.store(look, Ordering::SeqCst);
    }

    /// True once it has leapt.
    pub fn has_leapt(&self) -> bool {
        self.has_leapt.load(Ordering::SeqCst)
    }
}

impl Clock for LeapingClock {
    fn now(&self) -> Duration {
        if self.looks.load(Ordering::SeqCst) > 0 && self.looks.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.has_leapt.store(true, Ordering::SeqCst);
        }
        if self.has_leapt() { Self::LATE } else { Duration::from_secs(1) }
    }

    fn wall_ms(&self) -> i64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_advance_moves_the_monotonic_clock() {
        let clock = SimClock::new();
        clock.advance(Duration::from_millis(1500));
        clock.set_wall_offset_ms(-10_000);
        assert_eq!(clock.now(), Duration::from_millis(1500));
        assert_eq!(clock.wall_ms(), -8500);
        clock.set_wall_offset_ms(1_700_000_000_000);
        assert_eq!(clock.now(), Duration::from_millis(1500));
        assert_eq!(clock.wall_ms(), 1_700_000_001_500);
    }
}
