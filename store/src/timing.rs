//! How long things take, and how often clients and replication do them: what metrics show.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets, in microseconds; longer ones are in the last, unbounded bucket.
const BOUNDS: [u64; 17] = [
    10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000,
    500_000, 1_000_000, 5_000_000,
];
const BUCKETS: usize = BOUNDS.len() + 1;

/// A histogram of durations, from 10 µs to 5 s. Adding one costs three atomic additions.
#[derive(Debug, Default)]
pub struct Timing {
    buckets: [AtomicU64; BUCKETS],
    count: AtomicU64,
    nanos: AtomicU64,
}

/// What a [`Timing`] holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// Upper bounds in seconds, ascending, and how many were at most that and above the one
    /// before; the last bound is infinity.
    pub buckets: Vec<(f64, u64)>,
    /// How many there were.
    pub count: u64,
    /// Their sum in seconds.
    pub sum: f64,
}

impl Timing {
    /// Adds one.
    pub fn add(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|&bound| bound < micros);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// What was added so far.
    pub fn read(&self) -> Histogram {
        let bounds = BOUNDS.iter().map(|&micros| micros as f64 / 1e6).chain([f64::INFINITY]);
        let counts = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed));
        Histogram {
            buckets: bounds.zip(counts).collect(),
            count: self.count.load(Ordering::Relaxed),
            sum: self.nanos.load(Ordering::Relaxed) as f64 / 1e9,
        }
    }
}

/// What a store's databases take time for.
#[derive(Debug, Default)]
pub struct Timings {
    /// A local commit, from the last page written until readers see it.
    pub commit: Timing,
    /// Making the log durable: a sync, or a durable write.
    pub sync: Timing,
    /// A fold.
    pub fold: Timing,
}

/// What others count about a database; the store itself does not.
#[derive(Debug, Default)]
pub struct Counters {
    /// Writes of a mount's clients to the database file.
    pub database_writes: AtomicU64,
    /// Writes of a mount's clients to the journal.
    pub journal_writes: AtomicU64,
    /// Writes of a mount's clients to the WAL.
    pub wal_writes: AtomicU64,
    /// Writes of a mount's clients to the shm; those to mapped memory are seen by nobody.
    pub shm_writes: AtomicU64,
    /// Records sent to replicas.
    pub records_sent: AtomicU64,
    /// Snapshot records sent to replicas.
    pub snapshots_sent: AtomicU64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_is_in_its_bucket() {
        let timing = Timing::default();
        for micros in [0, 10, 11, 5_000_000, 5_000_001, u64::MAX] {
            timing.add(Duration::from_micros(micros));
        }
        let read = timing.read();
        assert_eq!((read.count, read.buckets.len()), (6, BUCKETS));
        assert_eq!(read.buckets[..2], [(0.00001, 2), (0.00002, 1)]);
        assert_eq!(read.buckets[BUCKETS - 2..], [(5.0, 1), (f64::INFINITY, 2)]);
        assert_eq!(read.buckets.iter().map(|(_, count)| count).sum::<u64>(), 6);
    }
}
