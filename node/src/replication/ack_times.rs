//! How long a commit takes to be acknowledged by a replica: one commit at a time of each database,
//! the oldest that has not been.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use litefs_store::{DbName, Timing, Txid};

/// One replica's.
pub struct AckTimes {
    waiting: HashMap<DbName, (Txid, Duration)>,
    timing: Arc<Timing>,
}

impl AckTimes {
    /// Adds to `timing`, which all replicas share.
    pub fn new(timing: Arc<Timing>) -> Self {
        Self { waiting: HashMap::new(), timing }
    }

    /// A commit was noticed.
    pub fn handle_commit(&mut self, now: Duration, db: &DbName, txid: Txid) {
        self.waiting.entry(db.clone()).or_insert((txid, now));
    }

    /// The replica has `db` up to `txid`.
    pub fn handle_ack(&mut self, now: Duration, db: &DbName, txid: Txid) {
        if let Some((_, since)) = self.waiting.get(db).filter(|(waiting, _)| *waiting <= txid) {
            self.timing.add(now.saturating_sub(*since));
            self.waiting.remove(db);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_unacknowledged_commit_counts() {
        let timing: Arc<Timing> = Arc::default();
        let mut times = AckTimes::new(timing.clone());
        let (db, ms) = (DbName::new("a").unwrap(), Duration::from_millis);
        times.handle_ack(ms(1), &db, Txid::new(9));
        times.handle_commit(ms(10), &db, Txid::new(10));
        times.handle_commit(ms(15), &db, Txid::new(11));
        times.handle_ack(ms(20), &db, Txid::new(9));
        assert_eq!(timing.read().count, 0);
        times.handle_ack(ms(40), &db, Txid::new(11));
        times.handle_ack(ms(50), &db, Txid::new(11));
        assert_eq!((timing.read().count, timing.read().sum), (1, 0.03));
    }
}
