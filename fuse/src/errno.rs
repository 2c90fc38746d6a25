//! The error numbers that clients get, and the log lines that say why.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use fuser::Errno;
use litefs_store::{Error, ErrorKind};
use parking_lot::Mutex;

/// The same failure is logged again after this time at the earliest.
const REPEAT: Duration = Duration::from_secs(60);
/// So many failures are remembered.
const REMEMBERED: usize = 256;

static LOGGED: Mutex<Recent> = Mutex::new(Recent(BTreeMap::new()));

/// What a client gets for a store's error. What an operator must know of is logged.
pub(crate) fn of(error: &Error) -> Errno {
    match error.kind() {
        ErrorKind::Busy | ErrorKind::StaleSnapshot | ErrorKind::Timeout => Errno::EAGAIN,
        ErrorKind::ReadOnly => {
            // Of a replica, this is no failure.
            if matches!(error, Error::Poisoned { .. }) {
                log_once(&error.to_string());
            }
            Errno::EACCES
        }
        ErrorKind::NotFound => Errno::ENOENT,
        ErrorKind::Full => {
            log_once(&error.to_string());
            Errno::ENOSPC
        }
        _ => {
            log_once(&error.to_string());
            Errno::EIO
        }
    }
}

/// The same, when a file behind the mount could not be read or written.
pub(crate) fn of_io(error: &io::Error) -> Errno {
    of_io_at("a file behind the mount cannot be used", error)
}

/// The same; `what` begins the log line.
pub(crate) fn of_io_at(what: &str, error: &io::Error) -> Errno {
    log_once(&format!("{what}: {error}"));
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Errno::ENOSPC,
        io::ErrorKind::FileTooLarge => Errno::EFBIG,
        _ => Errno::EIO,
    }
}

/// Warns, unless the same was said within the last minute.
pub(crate) fn log_once(text: &str) {
    if LOGGED.lock().is_news(text, Instant::now()) {
        tracing::warn!("{text}");
    }
}

/// What was logged, and when.
struct Recent(BTreeMap<String, Instant>);

impl Recent {
    fn is_news(&mut self, text: &str, now: Instant) -> bool {
        let old = |at: &Instant| now.saturating_duration_since(*at) >= REPEAT;
        if self.0.get(text).is_some_and(|at| !old(at)) {
            return false;
        }
        if self.0.len() >= REMEMBERED {
            self.0.retain(|_, at| !old(at));
        }
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        self.0.insert(text.to_owned(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use litefs_store::DbName;

    use super::*;

    fn io(kind: io::ErrorKind) -> Error {
        Error::Io { op: "write", path: "/x".into(), source: kind.into() }
    }

    #[test]
    fn sqlite_gets_the_number_that_it_has_a_text_for() {
        let db = DbName::new("a").unwrap();
        let text = String::from("x");
        for (error, wanted) in [
            (io(io::ErrorKind::StorageFull), Errno::ENOSPC),
            (io(io::ErrorKind::QuotaExceeded), Errno::ENOSPC),
            (io(io::ErrorKind::PermissionDenied), Errno::EIO),
            (Error::Busy { db: db.clone() }, Errno::EAGAIN),
            (Error::StaleSnapshot { db: db.clone() }, Errno::EAGAIN),
            (Error::ReadOnly { db: db.clone(), reason: text.clone() }, Errno::EACCES),
            (Error::Poisoned { db: db.clone(), reason: text.clone() }, Errno::EACCES),
            (Error::Quarantined { db, reason: text.clone() }, Errno::EIO),
            (Error::NotFound { name: text }, Errno::ENOENT),
            (Error::Closed, Errno::EIO),
        ] {
            assert_eq!(of(&error), wanted, "{error}");
        }
    }

    #[test]
    fn a_failure_is_logged_once_a_minute_and_memory_is_bounded() {
        let mut recent = Recent(BTreeMap::new());
        let start = Instant::now();
        assert!(recent.is_news("disk full", start));
        assert!(!recent.is_news("disk full", start + Duration::from_secs(59)));
        assert!(recent.is_news("other", start));
        assert!(recent.is_news("disk full", start + REPEAT));
        for n in 0..10 * REMEMBERED {
            assert!(recent.is_news(&n.to_string(), start));
        }
        assert!(recent.0.len() <= REMEMBERED);
    }
}
