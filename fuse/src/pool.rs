//! Threads for requests that may have to wait for the disk.
//!
//! One thread takes the kernel's requests and answers those that need no disk itself: a second
//! thread that took turns with it would cost each request a wake-up on another processor, several
//! times what most requests cost. What may wait, and whatever concerns a database that somebody
//! waits for, is answered here, so that no database waits for another's disk.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Requests that wait for the disk at the same time; more of them wait in a queue.
const THREADS: usize = 16;

type Job = Box<dyn FnOnce() + Send>;

/// See the module's text. The threads end when it and its clones are dropped and their work is
/// done.
#[derive(Debug, Clone)]
pub(crate) struct Pool(Sender<Job>);

impl Pool {
    /// Starts the threads.
    pub(crate) fn start() -> std::io::Result<Self> {
        let (sender, jobs) = channel::<Job>();
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..THREADS {
            let jobs = jobs.clone();
            thread::Builder::new().name("fuse worker".to_owned()).spawn(move || work(&jobs))?;
        }
        Ok(Self(sender))
    }

    /// Has a thread do the job.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        // The threads end after this, so that the job is done.
        let _ = self.0.send(Box::new(job));
    }
}

fn work(jobs: &Mutex<Receiver<Job>>) {
    loop {
        let job = jobs.lock().recv();
        match job {
            Ok(job) => run_safely(job),
            Err(_) => return,
        }
    }
}

/// The requests on one database that are with the threads. They may hold it for as long as the disk
/// takes, and one that holds it for long must not keep all threads waiting for it.
#[derive(Default)]
pub(crate) struct Lane(Mutex<Jobs>);

#[derive(Default)]
struct Jobs {
    running: usize,
    queued: VecDeque<Job>,
}

/// Of one database, so many run at once.
const AT_ONCE: usize = 4;

impl Lane {
    /// True if there are any.
    pub(crate) fn is_busy(&self) -> bool {
        self.0.lock().running > 0
    }

    /// Has a thread do the job, after those before it if there are many.
    pub(crate) fn run(self: &Arc<Self>, pool: &Pool, job: impl FnOnce() + Send + 'static) {
        let mut jobs = self.0.lock();
        if jobs.running == AT_ONCE {
            jobs.queued.push_back(Box::new(job));
            return;
        }
        jobs.running += 1;
        drop(jobs);
        let lane = self.clone();
        pool.run(move || {
            run_safely(job);
            while let Some(next) = lane.next() {
                run_safely(next);
            }
        });
    }

    fn next(&self) -> Option<Job> {
        let mut jobs = self.0.lock();
        let next = jobs.queued.pop_front();
        jobs.running -= usize::from(next.is_none());
        next
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("running", &self.0.lock().running).finish_non_exhaustive()
    }
}

/// A request that panics is answered with EIO as it is dropped; the thread goes on.
fn run_safely(job: impl FnOnce()) {
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
}

/// Whether all requests of the last second were one client's.
#[derive(Debug)]
pub(crate) struct OnlyClient {
    started: Instant,
    thread: AtomicU32,
    /// Nanoseconds after `started`.
    since: AtomicU64,
}

impl Default for OnlyClient {
    fn default() -> Self {
        Self { started: Instant::now(), thread: AtomicU32::new(0), since: AtomicU64::new(0) }
    }
}

impl OnlyClient {
    /// A thread sends a request; 0 is the kernel itself.
    pub(crate) fn asks(&self, thread: u32) {
        if thread != 0 && thread != self.thread.load(Ordering::Relaxed) {
            self.thread.store(thread, Ordering::Relaxed);
            self.since.store(self.started.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
    }

    /// True if no other has sent one for a second.
    pub(crate) fn is_alone(&self) -> bool {
        let since = Duration::from_nanos(self.since.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(since) >= Duration::from_secs(1)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{RecvTimeoutError, channel};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn a_database_that_is_held_for_long_leaves_threads_to_the_others_and_all_is_done() {
        let pool = Pool::start().unwrap();
        let (slow, fast) = (Arc::new(Lane::default()), Arc::new(Lane::default()));
        let (release, held) = channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let (done, finished) = channel();
        for number in 0..3 * THREADS {
            let (held, done) = (held.clone(), done.clone());
            slow.run(&pool, move || {
                let _ = held.lock().recv();
                let _ = done.send(number);
            });
        }
        let (answer, answered) = channel();
        fast.run(&pool, move || answer.send(()).unwrap());
        assert_eq!(answered.recv_timeout(PATIENCE), Ok(()));
        assert_eq!(finished.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Timeout));
        assert!(slow.is_busy());
        drop(release);
        let all: Vec<_> =
            (0..3 * THREADS).map(|_| finished.recv_timeout(PATIENCE).unwrap()).collect();
        assert_eq!(all.len(), 3 * THREADS);
    }

    #[test]
    fn a_client_is_alone_only_after_a_second_without_another() {
        let client = OnlyClient::default();
        client.asks(7);
        assert!(!client.is_alone(), "it has only come");
        std::thread::sleep(Duration::from_millis(1100));
        client.asks(7);
        client.asks(0); // the kernel
        assert!(client.is_alone());
        client.asks(8);
        client.asks(7);
        assert!(!client.is_alone());
    }

    #[test]
    fn a_request_that_panics_costs_no_thread() {
        let pool = Pool::start().unwrap();
        let lane = Arc::new(Lane::default());
        for _ in 0..2 * THREADS {
            lane.run(&pool, || std::panic::resume_unwind(Box::new("for the test")));
        }
        let (answer, answered) = channel();
        lane.run(&pool, move || answer.send(()).unwrap());
        assert_eq!(answered.recv_timeout(PATIENCE), Ok(()));
    }
}
