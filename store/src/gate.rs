//! The write gate: whether this node may commit, now.
//!
//! The lease logic opens and closes it; every commit passes it when it begins, before it is
//! appended and before it is acknowledged. It can be open up to a deadline on the store's
//! monotonic clock, so that a node that hangs loses the right by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::{DbName, Error, Result};

/// Decides whether commits are allowed.
#[derive(Debug)]
pub struct WriteGate {
    clock: Arc<dyn Clock>,
    /// Nanoseconds of the clock until which commits are allowed; 0 is closed, `u64::MAX` endless.
    until: AtomicU64,
    reason: Mutex<String>,
}

impl WriteGate {
    /// An open gate.
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, until: AtomicU64::new(u64::MAX), reason: Mutex::new(String::new()) }
    }

    /// Allows commits, without end.
    pub fn open(&self) {
        self.until.store(u64::MAX, Ordering::Release);
    }

    /// Allows no commits; `reason` reaches the user whose write is refused.
    pub fn close(&self, reason: &str) {
        *self.reason.lock() = reason.to_owned();
        self.until.store(0, Ordering::Release);
    }

    /// Allows commits until the store's monotonic clock reads `deadline`.
    pub fn open_until(&self, deadline: Duration) {
        let nanos = u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX - 1);
        *self.reason.lock() = "the lease has expired".to_owned();
        self.until.store(nanos, Ordering::Release);
    }

    /// True if a commit would be allowed now.
    pub fn is_open(&self) -> bool {
        match self.until.load(Ordering::Acquire) {
            0 => false,
            u64::MAX => true,
            until => self.clock.now().as_nanos() < u128::from(until),
        }
    }

    /// Fails with [`Error::ReadOnly`] unless a commit to `db` is allowed now.
    pub(crate) fn check(&self, db: &DbName) -> Result<()> {
        if self.is_open() {
            return Ok(());
        }
        Err(Error::ReadOnly { db: db.clone(), reason: self.reason.lock().clone() })
    }
}
