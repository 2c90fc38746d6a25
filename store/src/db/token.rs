//! The writer token: at most one writer of a database at a time.
//!
//! Front ends try and retry (SQLite's busy handler), waiting in between; the token is then kept for
//! whoever has waited longest, so that nobody starves. Applying a peer's record takes the token
//! away from a local writer, unless that one is between append and publication, which is short.

use std::collections::VecDeque;
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// How long a freed token is kept for the waiter that is next.
const KEPT_FOR: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
pub(crate) struct Token {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    holder: Option<Holder>,
    last_id: u64,
    waiting: VecDeque<ThreadId>,
    kept: Option<(ThreadId, Instant)>,
}

#[derive(Debug)]
struct Holder {
    id: u64,
    /// Between append and publication: cannot be taken away.
    committing: bool,
}

impl State {
    fn take(&mut self, committing: bool) -> u64 {
        self.last_id += 1;
        self.holder = Some(Holder { id: self.last_id, committing });
        self.kept = None;
        self.last_id
    }

    /// Keeps the free token for whoever has waited longest.
    fn next_turn(&mut self) {
        self.kept = self.waiting.pop_front().map(|thread| (thread, Instant::now()));
    }

    fn kept_for_another(&self) -> bool {
        let kept = self.kept.filter(|(_, since)| since.elapsed() < KEPT_FOR);
        kept.is_some_and(|(thread, _)| thread != thread::current().id())
    }
}

impl Token {
    /// Takes the token if it is free; the id proves it later.
    pub(crate) fn try_acquire(&self) -> Option<u64> {
        let mut state = self.state.lock();
        if state.holder.is_some() || state.kept_for_another() {
            return None;
        }
        Some(state.take(false))
    }

    /// Takes the token, from its holder if need be, so that it cannot be taken away again.
    pub(crate) fn seize(&self) -> u64 {
        let mut state = self.state.lock();
        while state.holder.as_ref().is_some_and(|holder| holder.committing) {
            self.changed.wait(&mut state);
        }
        state.take(true)
    }

    /// The same, but gives up after `timeout`.
    pub(crate) fn hold_within(&self, timeout: Duration) -> Option<HeldToken<'_>> {
        let deadline = crate::clock::after(timeout);
        let mut state = self.state.lock();
        while state.holder.as_ref().is_some_and(|holder| holder.committing) {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return None;
            }
        }
        let id = state.take(true);
        Some(HeldToken { token: self, id })
    }

    /// Takes the token if it is free, so that it cannot be taken away.
    pub(crate) fn try_hold(&self) -> Option<HeldToken<'_>> {
        let id = self.try_acquire()?;
        self.begin_commit(id).then_some(HeldToken { token: self, id })
    }

    /// Waits until the token is free and kept for this thread, or `timeout` has passed.
    pub(crate) fn wait(&self, timeout: Duration) {
        let deadline = crate::clock::after(timeout);
        let me = thread::current().id();
        let mut state = self.state.lock();
        let mut had_turn = false;
        while state.kept.is_none_or(|(thread, _)| thread != me) {
            if state.holder.is_none() && !state.kept_for_another() {
                state.kept = Some((me, Instant::now()));
                break;
            }
            if !state.waiting.contains(&me) {
                // Again if a peer took the turn before this thread woke: then it stays the first.
                if had_turn {
                    state.waiting.push_front(me)
                } else {
                    state.waiting.push_back(me)
                }
                had_turn = true;
            }
            // Whoever it is kept for may never come.
            let kept_until = state.kept.map_or(deadline, |(_, since)| since + KEPT_FOR);
            let until = deadline.min(kept_until);
            if self.changed.wait_until(&mut state, until).timed_out() && until == deadline {
                break;
            }
        }
        state.waiting.retain(|&thread| thread != me);
    }

    /// Begins the stretch in which the token cannot be taken away; false if it has been already.
    pub(crate) fn begin_commit(&self, id: u64) -> bool {
        self.set_committing(id, true)
    }

    /// Ends that stretch.
    pub(crate) fn end_commit(&self, id: u64) {
        self.set_committing(id, false);
        self.changed.notify_all();
    }

    fn set_committing(&self, id: u64, committing: bool) -> bool {
        let mut state = self.state.lock();
        match state.holder.as_mut().filter(|holder| holder.id == id) {
            Some(holder) => {
                holder.committing = committing;
                true
            }
            None => false,
        }
    }

    /// Gives the token back, if it is still held.
    pub(crate) fn release(&self, id: u64) {
        let mut state = self.state.lock();
        if state.holder.as_ref().is_some_and(|holder| holder.id == id) {
            state.holder = None;
            state.next_turn();
            self.changed.notify_all();
        }
    }
}

/// The token, held for a change of the whole database or a peer's record; dropping it releases it.
pub(crate) struct HeldToken<'a> {
    pub token: &'a Token,
    pub id: u64,
}

impl Drop for HeldToken<'_> {
    fn drop(&mut self) {
        self.token.end_commit(self.id);
        self.token.release(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_seized_token_is_lost_to_its_holder_but_not_while_it_commits() {
        let token = Arc::new(Token::default());
        let local = token.try_acquire().unwrap();
        assert!(token.try_acquire().is_none());
        assert!(token.begin_commit(local));
        let seizer = thread::spawn({
            let token = token.clone();
            move || token.seize()
        });
        thread::sleep(Duration::from_millis(20));
        assert!(!seizer.is_finished());
        token.end_commit(local);
        let peer = seizer.join().unwrap();
        token.release(local);
        assert!(!token.begin_commit(local));
        assert!(token.try_acquire().is_none(), "a stale release frees nothing");
        token.release(peer);
        assert!(token.try_acquire().is_some());
    }

    #[test]
    fn the_one_who_waited_gets_the_token_before_the_one_who_let_it_go() {
        let token = Arc::new(Token::default());
        let mine = token.try_acquire().unwrap();
        let (wake, woken) = std::sync::mpsc::channel();
        let waiter = thread::spawn({
            let token = token.clone();
            move || {
                woken.recv().unwrap();
                token.try_acquire()
            }
        });
        // In the queue, and slow to wake.
        token.state.lock().waiting.push_back(waiter.thread().id());
        token.release(mine);
        if let Some((_, since)) = &mut token.state.lock().kept {
            *since += Duration::from_secs(3600); // however slow this thread is
        }
        assert_eq!(token.try_acquire(), None);
        wake.send(()).unwrap();
        assert!(waiter.join().unwrap().is_some());
    }

    #[test]
    fn a_waiter_whose_turn_was_taken_by_a_peer_gets_another_turn() {
        let token = Arc::new(Token::default());
        let mine = token.try_acquire().unwrap();
        let waiter = thread::spawn({
            let token = token.clone();
            move || token.wait(Duration::from_secs(5))
        });
        while token.state.lock().waiting.is_empty() {
            thread::yield_now();
        }
        let started = Instant::now();
        // The peer comes between the waiter's turn and its waking.
        let peer = {
            let mut state = token.state.lock();
            state.holder = None;
            state.next_turn();
            state.take(true)
        };
        token.changed.notify_all();
        token.release(mine);
        thread::sleep(Duration::from_millis(100)); // the waiter wakes and finds its turn gone
        token.release(peer);
        waiter.join().unwrap();
        assert!(started.elapsed() < Duration::from_secs(4));
    }
}
