//! Looks out for the next request for a moment, instead of sleeping at once.
//!
//! A client waits for the answer to each of its requests, so that it and the thread that serves it
//! wake each other in turn, often on two processors. Waking an idle one takes 20 µs in a virtual
//! machine, many times what the request takes. So while requests come one after the other, the
//! serving thread does not sleep in between: its device answers "nothing yet" at once, and the loop
//! that reads it asks again. After a millisecond or two without a request it sleeps.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// Requests that follow each other so closely are one client's, or many clients'.
const CLOSE: Duration = Duration::from_millis(1);
/// So many of them in a row begin the lookout.
const BURST: u32 = 8;
/// How often the other thread looks whether there were any.
const PAUSE: Duration = Duration::from_millis(1);

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Spin {
    shared: Arc<Shared>,
    watchdog: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// The device from which requests are read.
    device: OwnedFd,
    started: Instant,
    /// Nanoseconds after `started`.
    last_request: AtomicU64,
    in_a_row: AtomicU32,
    spinning: AtomicBool,
    ended: AtomicBool,
}

impl Spin {
    /// For the device of a session; `None` where there is but one processor.
    pub(crate) fn start(device: impl AsFd) -> std::io::Result<Option<Self>> {
        if thread::available_parallelism()?.get() == 1 {
            return Ok(None);
        }
        let shared = Arc::new(Shared {
            device: device.as_fd().try_clone_to_owned()?,
            started: Instant::now(),
            last_request: AtomicU64::new(0),
            in_a_row: AtomicU32::new(0),
            spinning: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let watched = shared.clone();
        let thread = thread::Builder::new().name("fuse spin".to_owned());
        let watchdog = thread.spawn(move || watch(&watched))?;
        Ok(Some(Self { shared, watchdog: Some(watchdog) }))
    }

    /// A request has come. Called by the thread that reads them.
    pub(crate) fn request(&self) {
        let shared = &self.shared;
        let now = shared.started.elapsed().as_nanos() as u64;
        let before = shared.last_request.swap(now, Ordering::Relaxed);
        if shared.spinning.load(Ordering::Relaxed) {
            return;
        }
        if now - before > CLOSE.as_nanos() as u64 {
            shared.in_a_row.store(0, Ordering::Relaxed);
        } else if shared.in_a_row.fetch_add(1, Ordering::Relaxed) + 1 >= BURST {
            shared.in_a_row.store(0, Ordering::Relaxed);
            shared.set_blocking(false);
            if let Some(watchdog) = &self.watchdog {
                watchdog.thread().unpark();
            }
        }
    }
}

impl Shared {
    fn set_blocking(&self, blocking: bool) {
        // Cannot fail for an open file; without it, it is only slower.
        if let Ok(flags) = fcntl_getfl(&self.device) {
            let flags = if blocking { flags - OFlags::NONBLOCK } else { flags | OFlags::NONBLOCK };
            let _ = fcntl_setfl(&self.device, flags);
        }
        self.spinning.store(!blocking, Ordering::Release);
    }
}

/// Ends the lookout when no request came for a while.
fn watch(shared: &Shared) {
    while !shared.ended.load(Ordering::Acquire) {
        if !shared.spinning.load(Ordering::Acquire) {
            thread::park();
            continue;
        }
        let before = shared.last_request.load(Ordering::Relaxed);
        thread::sleep(PAUSE);
        if shared.last_request.load(Ordering::Relaxed) == before {
            shared.set_blocking(true);
        }
    }
    shared.set_blocking(true);
}

impl Drop for Spin {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.thread().unpark();
            let _ = watchdog.join();
        }
    }
}
