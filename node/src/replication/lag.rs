//! How long ago a replica last had everything: the primary's side of the `lag` figure.
//!
//! Under constant commits a replica is behind at every single moment, and yet only by a round
//! trip. So the question is not "is anything unacknowledged?" but "as of when has everything been
//! acknowledged?". A *checkpoint* is the set of databases that were behind at some moment, with
//! their positions then; when all of them are acknowledged, the replica has been in sync as of
//! that moment, and the next checkpoint begins.

use std::collections::HashMap;
use std::time::Duration;

use litefs_store::{DbName, Txid};

/// Tracks one replica. All times are monotonic, since any fixed moment.
#[derive(Debug, Default)]
pub struct Lag {
    /// Every database with something unacknowledged, and its newest transaction.
    behind: HashMap<DbName, Txid>,
    /// What is left of the current checkpoint.
    checkpoint: HashMap<DbName, Txid>,
    checkpoint_at: Duration,
    in_sync_as_of: Option<Duration>,
    started: bool,
}

impl Lag {
    /// From here on all databases are known, and being in sync means something.
    pub fn start(&mut self, now: Duration) {
        self.started = true;
        self.begin_checkpoint(now);
    }

    /// The replica needs `db` up to `target`.
    pub fn expect(&mut self, now: Duration, db: &DbName, target: Txid) {
        let was_in_sync = self.behind.is_empty();
        self.behind.insert(db.clone(), target);
        if was_in_sync && self.started {
            self.begin_checkpoint(now);
            self.in_sync_as_of = Some(now);
        }
    }

    /// The replica has `db` up to `reached`.
    pub fn reached(&mut self, now: Duration, db: &DbName, reached: Txid) {
        let had_checkpoint = !self.checkpoint.is_empty();
        for set in [&mut self.behind, &mut self.checkpoint] {
            if set.get(db).is_some_and(|target| *target <= reached) {
                set.remove(db);
            }
        }
        if had_checkpoint && self.checkpoint.is_empty() {
            self.in_sync_as_of = Some(self.checkpoint_at);
            self.begin_checkpoint(now);
        }
    }

    /// Nothing more is expected of `db`.
    pub fn forget(&mut self, now: Duration, db: &DbName) {
        self.reached(now, db, Txid::new(u64::MAX));
    }

    /// How long ago the replica last had everything; `None` if it never had.
    pub fn lag(&self, now: Duration) -> Option<Duration> {
        let as_of = self.in_sync_as_of?;
        Some(if self.behind.is_empty() { Duration::ZERO } else { now.saturating_sub(as_of) })
    }

    fn begin_checkpoint(&mut self, now: Duration) {
        if !self.started {
            return;
        }
        self.checkpoint = self.behind.clone();
        self.checkpoint_at = now;
        if self.behind.is_empty() {
            self.in_sync_as_of = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn db(name: &str) -> DbName {
        DbName::new(name).unwrap()
    }

    #[test]
    fn unknown_until_everything_of_the_start_has_arrived() {
        let mut lag = Lag::default();
        lag.expect(ms(0), &db("a"), Txid::new(5));
        lag.expect(ms(0), &db("b"), Txid::new(7));
        lag.start(ms(10));
        lag.reached(ms(20), &db("a"), Txid::new(5));
        lag.reached(ms(30), &db("b"), Txid::new(6));
        assert_eq!(lag.lag(ms(40)), None);
        lag.reached(ms(50), &db("b"), Txid::new(7));
        assert_eq!(lag.lag(ms(60)), Some(ms(0)));
    }

    #[test]
    fn constant_commits_with_a_round_trip_of_5_ms_are_a_lag_of_at_most_10_ms() {
        let (mut lag, a) = (Lag::default(), db("a"));
        lag.start(ms(0));
        for t in 1..1000 {
            lag.expect(ms(t), &a, Txid::new(t));
            lag.reached(ms(t), &a, Txid::new(t.saturating_sub(5)));
            assert!(lag.lag(ms(t)).unwrap() <= ms(10), "at {t} ms: {:?}", lag.lag(ms(t)));
        }
    }

    #[test]
    fn a_stalled_database_makes_the_lag_grow_though_others_flow() {
        let (mut lag, a, b) = (Lag::default(), db("a"), db("b"));
        lag.start(ms(0));
        lag.expect(ms(100), &b, Txid::new(1));
        for t in 101..1000 {
            lag.expect(ms(t), &a, Txid::new(t));
            lag.reached(ms(t), &a, Txid::new(t));
            assert_eq!(lag.lag(ms(t)), Some(ms(t - 100)));
        }
        lag.reached(ms(1000), &b, Txid::new(1));
        assert_eq!(lag.lag(ms(2000)), Some(ms(0)));
    }

    #[test]
    fn a_forgotten_database_holds_nothing_back() {
        let mut lag = Lag::default();
        lag.start(ms(0));
        lag.expect(ms(1), &db("a"), Txid::new(1));
        lag.forget(ms(9), &db("a"));
        assert_eq!(lag.lag(ms(50)), Some(ms(0)));
    }
}
