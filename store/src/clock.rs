//! All time of the engine: the [`Clock`] trait and the system's clock.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The moment after `delay` from now; a far one where the system's clock does not reach.
pub fn after(delay: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 86_400);
    let now = Instant::now();
    now.checked_add(delay).unwrap_or(now + FAR)
}

/// Where the engine reads the time.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Time since an arbitrary start; never goes back. For everything that waits or expires.
    fn now(&self) -> Duration;

    /// Milliseconds since 1970-01-01 UTC; may jump in both directions. Only for timestamps that
    /// people read.
    fn wall_ms(&self) -> i64;
}

/// The system's clock; [`Clock::now`] counts from its creation, and goes on while the machine
/// sleeps: a right that expires must not outlive a suspension.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Duration,
}

impl SystemClock {
    /// A clock that starts now.
    pub fn new() -> Self {
        SystemClock { start: since_boot() }
    }
}

/// `CLOCK_MONOTONIC`, by which `Instant` goes, stands still while the machine sleeps.
fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0))
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        since_boot().saturating_sub(self.start)
    }

    fn wall_ms(&self) -> i64 {
        let since = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(after) => since(after),
            Err(before) => -since(before.duration()),
        }
    }
}
