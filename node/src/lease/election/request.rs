//! One kind of request to the lease service: at most one at a time.

use std::time::Duration;

/// Pause before a request that failed is made again.
pub(super) const RETRY: Duration = Duration::from_millis(200);

/// When the next request of its kind is due, and since when one is under way.
#[derive(Debug, Default)]
pub(super) struct Request {
    since: Option<Duration>,
    is_void: bool,
    due: Duration,
}

impl Request {
    /// True if the request is to be made now; then it is under way.
    pub(super) fn start(&mut self, now: Duration) -> bool {
        let is_time = self.since.is_none() && self.due <= now;
        if is_time {
            self.since = Some(now);
        }
        is_time
    }

    /// It was answered; the next one is due then. Returns when it was made; `None` if nobody cares
    /// any more.
    pub(super) fn finish(&mut self, due: Duration) -> Option<Duration> {
        self.due = due;
        let is_void = std::mem::take(&mut self.is_void);
        self.since.take().filter(|_| !is_void)
    }

    /// What the answer to the present one will say is of no interest any more; the next one is due
    /// once it has come.
    pub(super) fn void(&mut self) {
        self.is_void = self.is_under_way();
        self.hurry();
    }

    /// The next one is due at once.
    pub(super) fn hurry(&mut self) {
        self.defer(Duration::ZERO);
    }

    /// The next one is due then.
    pub(super) fn defer(&mut self, due: Duration) {
        self.due = due;
    }

    /// When the one that is under way was made.
    pub(super) fn since(&self) -> Option<Duration> {
        self.since
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.since.is_some()
    }

    /// When [`Request::start`] may say yes; never while one is under way.
    pub(super) fn wake(&self) -> Duration {
        if self.is_under_way() { Duration::MAX } else { self.due }
    }
}
