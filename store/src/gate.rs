//! The write gate: whether this node may commit, now.
//!
//! The lease logic opens and closes it; every commit passes it when it begins, before it is
//! appended and before it is acknowledged. It can be open up to a deadline on the store's
//! monotonic clock, so that a node that hangs loses the right by itself.
//!
//! A commit counts as *past* the gate from before it is appended until it is published (and
//! confirmed, where replicas have to) or taken back. The gate can be *held*: commits that have not
//! passed it wait, those past it are awaited. A commit adds itself to the count first and looks at
//! the gate then; who holds the gate does that first and looks at the count then: one of them
//! sees the other.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::clock::{self, Clock};
use crate::{DbName, Error, Result};

const EXPIRED: &str = "the lease has expired";
const HELD_TOO_LONG: &str =
    "commits are held while the primary role is handed over, which takes too long; try again";

thread_local! {
    /// How many passes this thread has. It only decides who may join those that are awaited.
    static PASSES: Cell<u32> = const { Cell::new(0) };
}

/// Decides whether commits are allowed.
#[derive(Debug)]
pub struct WriteGate {
    clock: Arc<dyn Clock>,
    /// Nanoseconds of the clock until which commits are allowed; 0 is closed, `u64::MAX` endless.
    until: AtomicU64,
    /// Commits that have not passed wait; the state says until when.
    held: AtomicBool,
    past: Past,
    state: Mutex<State>,
    /// The state, or the number of those past the gate while somebody waits for it.
    changed: Condvar,
}

/// How many commits are past the gate; all writers change it, so it is apart from what they read.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Past(AtomicU64);

#[derive(Debug, Default)]
struct State {
    /// Why the gate is closed, if it is.
    reason: String,
    held_until: Option<Instant>,
    /// Somebody waits until nothing is past the gate.
    draining: bool,
}

/// How a wait for the end of a hold ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waited {
    Released,
    Closed,
    TooLong,
}

impl WriteGate {
    /// An open gate.
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            until: AtomicU64::new(u64::MAX),
            held: AtomicBool::new(false),
            past: Past::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Allows commits, without end. Ends a hold.
    pub fn open(&self) {
        let mut state = self.state.lock();
        self.until.store(u64::MAX, Ordering::SeqCst);
        self.release(&mut state);
    }

    /// Allows no commits; `reason` reaches the user whose write is refused, or who waited for the
    /// end of a hold. Does not wait for commits that are past the gate: those that are not
    /// published by now are refused by the check before their acknowledgement.
    pub fn close(&self, reason: &str) {
        let mut state = self.state.lock();
        state.reason = reason.to_owned();
        self.until.store(0, Ordering::SeqCst);
        self.release(&mut state);
    }

    /// Allows commits until the store's monotonic clock reads `deadline`. Ends a hold.
    pub fn open_until(&self, deadline: Duration) {
        let mut state = self.state.lock();
        self.set_deadline(&mut state, deadline);
        self.release(&mut state);
    }

    /// Moves the deadline of an open gate, and does not end a hold: a lease goes on while the role
    /// is handed over.
    pub fn extend_until(&self, deadline: Duration) {
        self.set_deadline(&mut self.state.lock(), deadline);
    }

    /// Holds commits: from now on, and for at most `bound`, they wait before they are appended.
    /// Returns true as soon as nothing is past the gate any more; false if that took longer.
    ///
    /// Either way commits stay held until the gate is closed, opened, or opened until a deadline.
    /// Those that waited for `bound` in vain are refused, as are others from then on.
    #[must_use]
    pub fn hold(&self, bound: Duration) -> bool {
        let mut state = self.state.lock();
        state.held_until = Some(clock::after(bound));
        self.held.store(true, Ordering::SeqCst);
        self.drain(state, bound)
    }

    /// True if commits would wait now.
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::SeqCst)
    }

    /// True if a commit would be allowed now, or once a hold ends.
    pub fn is_open(&self) -> bool {
        match self.until.load(Ordering::SeqCst) {
            0 => false,
            u64::MAX => true,
            until => self.clock.now().as_nanos() < u128::from(until),
        }
    }

    /// For front ends that must not wait within a request: a pass, which covers all commits of
    /// this thread as long as it lives; `None` if they would wait now, until
    /// [`WriteGate::wait_while_held`] returns. Whether they are allowed is checked as ever.
    pub fn try_pass(&self) -> Option<Pass<'_>> {
        self.past.0.fetch_add(1, Ordering::SeqCst);
        if self.is_held() && !self.may_join() && self.would_wait(&self.state.lock()).is_ok() {
            self.step_back();
            return None;
        }
        PASSES.set(PASSES.get() + 1);
        Some(Pass(self, PhantomData))
    }

    /// Blocks while commits would wait.
    pub fn wait_while_held(&self) {
        self.wait();
    }

    /// Lets a commit to `db` pass, when the gate is not held; [`WriteGate::leave`] ends that.
    ///
    /// # Errors
    /// `ReadOnly` unless a commit is allowed now; it has not passed then.
    pub(crate) fn enter(&self, db: &DbName) -> Result<()> {
        self.past.0.fetch_add(1, Ordering::SeqCst);
        while self.is_held() && !self.may_join() {
            self.step_back();
            if self.wait() == Waited::TooLong {
                return Err(read_only(db, HELD_TOO_LONG));
            }
            self.past.0.fetch_add(1, Ordering::SeqCst);
            if !self.is_open() {
                break;
            }
        }
        if let Err(error) = self.check(db) {
            self.step_back();
            return Err(error);
        }
        PASSES.set(PASSES.get() + 1);
        Ok(())
    }

    /// A commit that had passed on this thread is published or taken back.
    pub(crate) fn leave(&self) {
        self.detach();
        self.step_back();
    }

    /// A commit that had passed on this thread counts as past the gate until another one calls
    /// [`WriteGate::step_back`].
    pub(crate) fn detach(&self) {
        PASSES.set(PASSES.get().saturating_sub(1));
    }

    /// Fails with [`Error::ReadOnly`] unless a commit to `db` is allowed now, or once a hold ends.
    pub(crate) fn check(&self, db: &DbName) -> Result<()> {
        if self.is_open() {
            return Ok(());
        }
        Err(read_only(db, &self.state.lock().reason))
    }

    fn set_deadline(&self, state: &mut State, deadline: Duration) {
        let nanos = u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX - 1);
        state.reason = EXPIRED.to_owned();
        self.until.store(nanos, Ordering::SeqCst);
    }

    fn release(&self, state: &mut State) {
        state.held_until = None;
        self.held.store(false, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// One less is past the gate.
    pub(crate) fn step_back(&self) {
        self.past.0.fetch_sub(1, Ordering::SeqCst);
        if self.is_held() || self.until.load(Ordering::SeqCst) == 0 {
            let _state = self.state.lock(); // whoever waits has looked, or has not looked yet
            self.changed.notify_all();
        }
    }

    /// True if this thread has a pass, and those past the gate are still awaited: a transaction
    /// over several databases that waited for itself would never end.
    fn may_join(&self) -> bool {
        PASSES.get() > 0 && self.state.lock().draining
    }

    /// From the same moment on at which commits are held, those past the gate may be joined.
    fn drain(&self, mut state: MutexGuard<'_, State>, bound: Duration) -> bool {
        let deadline = clock::after(bound);
        state.draining = true;
        while self.past.0.load(Ordering::SeqCst) > 0 {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.draining = false;
        self.past.0.load(Ordering::SeqCst) == 0
    }

    /// Until when commits wait at the latest, or why they do not.
    fn would_wait(&self, state: &State) -> Result<Instant, Waited> {
        let until = state.held_until.ok_or(Waited::Released)?;
        if !self.is_open() {
            return Err(Waited::Closed);
        }
        if Instant::now() >= until {
            return Err(Waited::TooLong);
        }
        Ok(until.min(clock::after(self.remaining())))
    }

    /// For how long the gate stays open by itself; never so short that a wait for it would spin.
    fn remaining(&self) -> Duration {
        let until = Duration::from_nanos(self.until.load(Ordering::SeqCst));
        until.saturating_sub(self.clock.now()).max(Duration::from_millis(1))
    }

    fn wait(&self) -> Waited {
        let mut state: MutexGuard<'_, State> = self.state.lock();
        loop {
            match self.would_wait(&state) {
                Ok(until) => drop(self.changed.wait_until(&mut state, until)),
                Err(waited) => return waited,
            }
        }
    }
}

fn read_only(db: &DbName, reason: &str) -> Error {
    Error::ReadOnly { db: db.clone(), reason: reason.to_owned() }
}

/// Covers the commits of one thread; see [`WriteGate::try_pass`].
#[derive(Debug)]
#[must_use = "the commits are covered only as long as this lives"]
pub struct Pass<'a>(&'a WriteGate, PhantomData<*const ()>);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, SystemClock};
    use std::sync::mpsc;
    use std::thread;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(50);

    #[derive(Debug)]
    struct Still(AtomicU64);

    impl Clock for Still {
        fn now(&self) -> Duration {
            Duration::from_nanos(self.0.load(Ordering::SeqCst))
        }

        fn wall_ms(&self) -> i64 {
            0
        }
    }

    fn gate() -> Arc<WriteGate> {
        Arc::new(WriteGate::new(Arc::new(SystemClock::new())))
    }

    fn name() -> DbName {
        DbName::new("db").unwrap()
    }

    /// A thread that enters and says how that ended.
    fn enter_elsewhere(gate: &Arc<WriteGate>) -> mpsc::Receiver<Result<()>> {
        let (gate, (tell, told)) = (gate.clone(), mpsc::channel());
        thread::spawn(move || {
            let entered = gate.enter(&name());
            if entered.is_ok() {
                gate.leave();
            }
            let _ = tell.send(entered);
        });
        told
    }

    fn still_waits(told: &mpsc::Receiver<Result<()>>) -> bool {
        matches!(told.recv_timeout(SHORT), Err(mpsc::RecvTimeoutError::Timeout))
    }

    #[test]
    fn commits_wait_while_held_and_go_on_when_opened() {
        let gate = gate();
        let ends: [fn(&WriteGate); 2] = [WriteGate::open, |gate| gate.open_until(LONG)];
        for end in ends {
            assert!(gate.hold(LONG));
            let told = enter_elsewhere(&gate);
            assert!(still_waits(&told));
            gate.extend_until(LONG);
            assert!(still_waits(&told), "the lease went on, and the hold with it");
            assert!(gate.is_open(), "those past the gate may be acknowledged");
            end(&gate);
            assert!(told.recv_timeout(LONG).unwrap().is_ok());
        }
    }

    #[test]
    fn commits_that_waited_are_refused_with_the_reason_when_it_is_closed() {
        let gate = gate();
        assert!(gate.hold(LONG));
        let told = enter_elsewhere(&gate);
        assert!(still_waits(&told));
        gate.close("n2 is the primary");
        let refused = told.recv_timeout(LONG).unwrap().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ReadOnly);
        assert!(refused.to_string().contains("n2 is the primary"), "{refused}");
        gate.open();
        assert!(enter_elsewhere(&gate).recv_timeout(LONG).unwrap().is_ok());
    }

    #[test]
    fn a_hold_that_nobody_ends_refuses_after_its_bound() {
        let gate = gate();
        assert!(gate.hold(SHORT));
        let refused = enter_elsewhere(&gate).recv_timeout(LONG).unwrap().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ReadOnly);
        assert!(gate.is_held());
        assert!(gate.try_pass().is_some(), "nothing to wait for");
        gate.open();
        assert!(enter_elsewhere(&gate).recv_timeout(LONG).unwrap().is_ok());
    }

    #[test]
    fn a_commit_that_waits_past_the_deadline_is_refused() {
        let clock = Arc::new(Still(AtomicU64::new(1)));
        let gate = Arc::new(WriteGate::new(clock.clone()));
        gate.open_until(Duration::from_nanos(1000));
        assert!(gate.hold(LONG));
        let told = enter_elsewhere(&gate);
        assert!(still_waits(&told));
        clock.0.store(1000, Ordering::SeqCst);
        assert_eq!(told.recv_timeout(LONG).unwrap().unwrap_err().kind(), ErrorKind::ReadOnly);
    }

    #[test]
    fn a_hold_returns_only_when_nothing_is_past_the_gate_also_if_it_is_closed_meanwhile() {
        let meanwhile: [fn(&WriteGate); 2] = [|_| (), |gate| gate.close("closed")];
        for meanwhile in meanwhile {
            let gate = gate();
            gate.enter(&name()).unwrap();
            let (told, other) = (mpsc::channel(), gate.clone());
            thread::spawn(move || told.0.send(other.hold(LONG)));
            assert!(told.1.recv_timeout(SHORT).is_err(), "a commit is past the gate");
            meanwhile(&gate);
            assert!(told.1.recv_timeout(SHORT).is_err(), "it still is");
            gate.leave();
            assert_eq!(told.1.recv_timeout(LONG), Ok(true));
        }
    }

    #[test]
    fn a_commit_that_never_ends_makes_a_hold_fail_and_stays_held() {
        let gate = gate();
        gate.enter(&name()).unwrap();
        assert!(!gate.hold(SHORT));
        assert!(gate.is_held());
        gate.leave();
        assert!(gate.hold(SHORT));
    }

    #[test]
    fn a_transaction_over_two_databases_does_not_wait_for_itself() {
        let gate = gate();
        gate.enter(&name()).unwrap();
        let holder = thread::spawn({
            let gate = gate.clone();
            move || gate.hold(LONG)
        });
        while !gate.state.lock().draining {
            thread::yield_now();
        }
        gate.enter(&name()).unwrap();
        drop(gate.try_pass().expect("its own commit is awaited"));
        assert!(enter_elsewhere(&gate).try_recv().is_err(), "others wait");
        gate.leave();
        gate.leave();
        assert!(holder.join().unwrap());
        assert!(gate.try_pass().is_none(), "drained: now it waits like all others");
        gate.open();
    }

    #[test]
    fn no_commit_passes_a_drained_gate_whatever_the_threads_do() {
        let gate = gate();
        let stop = Arc::new(AtomicBool::new(false));
        let inside = Arc::new(AtomicU64::new(0));
        let writers: Vec<_> = (0..4)
            .map(|_| {
                let (gate, stop, inside) = (gate.clone(), stop.clone(), inside.clone());
                thread::spawn(move || {
                    let mut passed = 0_u64;
                    while !stop.load(Ordering::SeqCst) {
                        gate.enter(&name()).unwrap();
                        inside.fetch_add(1, Ordering::SeqCst);
                        passed += 1;
                        inside.fetch_sub(1, Ordering::SeqCst);
                        gate.leave();
                    }
                    passed
                })
            })
            .collect();
        for _ in 0..300 {
            assert!(gate.hold(LONG));
            for _ in 0..20 {
                assert_eq!(inside.load(Ordering::SeqCst), 0);
                thread::yield_now();
            }
            gate.open();
            thread::yield_now();
        }
        stop.store(true, Ordering::SeqCst);
        gate.open();
        assert!(writers.into_iter().map(|w| w.join().unwrap()).sum::<u64>() > 0);
    }
}
