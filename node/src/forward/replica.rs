//! Takes rights to write from the primary, for this node's clients.
//!
//! Clients call from threads of their own, which block; the streams live in the node's runtime. A
//! database's right is in one of these states:
//!
//! ```text
//! None --reach--> Taking --> Kept --claim--> Claimed --dropped--> None, or Kept again
//!                    |          |
//!                    v          +--nobody came--> None
//!                   None
//! ```
//!
//! A right that a client halted the primary for (LiteFS's HALT lock) stays *kept* until it lets go.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use litefs_store::{DbName, Pos, RecordToSend, Remote, RemoteError, RemoteWriter, after};
use parking_lot::{Condvar, Mutex};
use quinn::{Connection, RecvStream, SendStream};
use tokio::runtime::Handle;

use super::wire::{self, Answer, Request, StreamError};
use crate::replication::pipe::CHUNK;
use crate::replication::wire::encode_stream_name;

/// How long a right is kept for a client that must begin anew with what the primary has.
const KEPT_FOR: Duration = Duration::from_millis(500);
/// The primary may take longer to answer than it was asked to, by this.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Both directions of a stream on which the primary holds a right to write.
struct Right {
    to: SendStream,
    from: RecvStream,
    pos: Pos,
    /// Of the connection.
    generation: u64,
}

enum Slot {
    Taking,
    Kept { right: Right, until: Instant },
    Claimed,
}

#[derive(Default)]
struct State {
    primary: Option<Connection>,
    /// Counts the connections.
    generation: u64,
    slots: HashMap<DbName, Slot>,
    /// Databases that clients have halted, and how many have.
    halts: HashMap<DbName, u32>,
}

/// The way from this node's clients to the primary's right to write.
pub struct Forwarding {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: Handle,
    /// Every write is forwarded; else only what a client has halted.
    every: bool,
    state: Mutex<State>,
    changed: Condvar,
}

impl fmt::Debug for Forwarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwarding").field("every", &self.inner.every).finish_non_exhaustive()
    }
}

impl Forwarding {
    /// Without a primary. With `every`, all writes are forwarded, else those of databases that
    /// were halted.
    pub fn new(runtime: Handle, every: bool) -> Self {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Self { inner: Arc::new(Inner { runtime, every, state, changed }) }
    }

    /// From now on this is the connection to the primary, or there is none: then all rights have
    /// ended, but those that a commit is under way with.
    pub fn set_primary(&self, connection: Option<Connection>) {
        let mut state = self.inner.state.lock();
        state.primary = connection;
        state.generation += 1;
        state.slots.retain(|_, slot| !matches!(slot, Slot::Kept { .. }));
        state.halts.clear();
        self.inner.changed.notify_all();
    }

    /// Takes the right to write, and keeps it until [`Forwarding::resume`]; all clients of this
    /// node can write then. Returns the primary's position.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub fn halt(&self, db: &DbName, timeout: Duration) -> Result<Pos, RemoteError> {
        let (pos, generation) = self.inner.reach(db, timeout)?;
        let mut state = self.inner.state.lock();
        if state.generation != generation {
            return Err(changed());
        }
        *state.halts.entry(db.clone()).or_default() += 1;
        Ok(pos)
    }

    /// Lets the primary go on. Without a halt, nothing happens.
    pub fn resume(&self, db: &DbName) {
        let mut state = self.inner.state.lock();
        let Some(count) = state.halts.get_mut(db) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        state.halts.remove(db);
        if matches!(state.slots.get(db), Some(Slot::Kept { .. })) {
            state.slots.remove(db);
        }
        self.inner.changed.notify_all();
    }
}

impl Remote for Forwarding {
    fn offers_all(&self) -> bool {
        self.inner.every && self.inner.state.lock().primary.is_some()
    }

    fn offers(&self, db: &DbName) -> bool {
        let state = self.inner.state.lock();
        state.primary.is_some() && (self.inner.every || state.halts.contains_key(db))
    }

    fn reach(&self, db: &DbName, timeout: Duration) -> Result<Pos, RemoteError> {
        self.inner.reach(db, timeout).map(|(pos, _)| pos)
    }

    fn claim(&self, db: &DbName) -> Option<Box<dyn RemoteWriter>> {
        let mut state = self.inner.state.lock();
        if !matches!(state.slots.get(db), Some(Slot::Kept { .. })) {
            return None;
        }
        let Some(Slot::Kept { right, until }) = state.slots.insert(db.clone(), Slot::Claimed)
        else {
            return None;
        };
        let inner = self.inner.clone();
        Some(Box::new(Writer { inner, db: db.clone(), right: Some(right), until, used: false }))
    }
}

impl Inner {
    /// Waits for another client of this node first. Returns the primary's position, and the
    /// generation of the right.
    fn reach(self: &Arc<Self>, db: &DbName, timeout: Duration) -> Result<(Pos, u64), RemoteError> {
        let deadline = after(timeout);
        let (connection, generation) = {
            let mut state = self.state.lock();
            loop {
                match state.slots.get_mut(db) {
                    None => break,
                    Some(Slot::Kept { right, until }) => {
                        *until = (*until).max(Instant::now() + KEPT_FOR);
                        return Ok((right.pos, right.generation));
                    }
                    Some(Slot::Taking | Slot::Claimed) => (),
                }
                if self.changed.wait_until(&mut state, deadline).timed_out() {
                    return Err(RemoteError::Busy);
                }
            }
            let connection = state.primary.clone();
            let connection = connection
                .ok_or_else(|| RemoteError::Refused("there is no primary now".to_owned()))?;
            state.slots.insert(db.clone(), Slot::Taking);
            (connection, state.generation)
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let taken = self.wait(take(connection, generation, db.clone(), left));
        let taken = taken.unwrap_or_else(|| Err(stopped()));
        let mut state = self.state.lock();
        state.slots.remove(db);
        self.changed.notify_all();
        let right = taken?;
        if state.generation != generation {
            return Err(changed());
        }
        let pos = right.pos;
        let until = Instant::now() + KEPT_FOR;
        state.slots.insert(db.clone(), Slot::Kept { right, until });
        drop(state);
        self.drop_later(db.clone());
        Ok((pos, generation))
    }

    /// Gives a kept right back when nobody came for it.
    fn drop_later(self: &Arc<Self>, db: DbName) {
        let inner = Arc::downgrade(self);
        self.runtime.spawn(async move {
            loop {
                let until = {
                    let Some(inner) = inner.upgrade() else { return };
                    let mut state = inner.state.lock();
                    let is_halted = state.halts.contains_key(&db);
                    match state.slots.get(&db) {
                        Some(Slot::Kept { until, .. }) if !is_halted && *until > Instant::now() => {
                            *until
                        }
                        Some(Slot::Kept { .. }) if !is_halted => {
                            state.slots.remove(&db);
                            inner.changed.notify_all();
                            return;
                        }
                        _ => return,
                    }
                };
                tokio::time::sleep_until(until.into()).await;
            }
        });
    }

    /// Blocks this thread until the runtime has done it; `None` if the runtime has ended.
    fn wait<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.runtime.spawn(async move {
            let _ = sender.send(work.await); // fails only if nobody waits
        });
        receiver.recv().ok()
    }
}

fn stopped() -> RemoteError {
    RemoteError::Refused("this node is shutting down".to_owned())
}

fn changed() -> RemoteError {
    RemoteError::Refused("the primary has changed".to_owned())
}

async fn take(
    connection: Connection,
    generation: u64,
    db: DbName,
    timeout: Duration,
) -> Result<Right, RemoteError> {
    let take = async {
        let opened = connection.open_bi().await;
        let (mut to, mut from) = opened.map_err(|e| StreamError::Ended(e.to_string()))?;
        to.write_all(&encode_stream_name(&db)).await?;
        to.write_all(&Request::Lock(timeout).encode()).await?;
        let answer = wire::read_answer(&mut from).await?;
        Ok::<_, StreamError>(answer.map(|pos| Right { to, from, pos, generation }))
    };
    match tokio::time::timeout(timeout.saturating_add(ANSWER_TIMEOUT), take).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            Err(RemoteError::Refused(format!("the primary cannot be reached: {error}")))
        }
        Err(_) => Err(RemoteError::Refused("the primary does not answer".to_owned())),
    }
}

/// A claimed right.
struct Writer {
    inner: Arc<Inner>,
    db: DbName,
    right: Option<Right>,
    /// Until when it is kept if nothing is committed.
    until: Instant,
    used: bool,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("db", &self.db).finish_non_exhaustive()
    }
}

impl RemoteWriter for Writer {
    fn commit(&mut self, record: &RecordToSend<'_>) -> Result<(), RemoteError> {
        self.used = true;
        let lost = || RemoteError::Refused("the primary has ended the right to write".to_owned());
        let right = self.right.take().ok_or_else(lost)?;
        let mut send = RecordSink {
            inner: &self.inner,
            right: Some(right),
            buffer: Vec::new(),
            is_unsure: false,
        };
        send.buffer = Request::Commit(record.encoded_len()).encode();
        let sent = record.write_to(&mut send).and_then(|()| send.pass_on());
        let right = match (sent, send.right) {
            (Ok(()), Some(right)) => right,
            (Err(error), _) if send.is_unsure => {
                return Err(RemoteError::Unconfirmed(error.to_string()));
            }
            // It is not whole there, so it cannot be committed.
            (Err(error), _) => return Err(RemoteError::Refused(error.to_string())),
            (Ok(()), None) => return Err(lost()),
        };
        let lost = || RemoteError::Unconfirmed("this node is shutting down".to_owned());
        let (right, answer) = self.inner.wait(answer(right)).ok_or_else(lost)?;
        self.right = right;
        let pos = answer?;
        if pos != record.pos() {
            let text = format!("the primary answers with {pos}, not {}", record.pos());
            return Err(RemoteError::Unconfirmed(text));
        }
        if let Some(right) = &mut self.right {
            right.pos = pos;
        }
        Ok(())
    }
}

/// Waits for the answer to a commit.
async fn answer(mut right: Right) -> (Option<Right>, Answer) {
    let answer = wire::read_answer(&mut right.from);
    match tokio::time::timeout(ANSWER_TIMEOUT + ANSWER_TIMEOUT, answer).await {
        Ok(Ok(answer)) => (Some(right), answer),
        Ok(Err(error)) => {
            let text = format!("the primary's answer was lost: {error}");
            (None, Err(RemoteError::Unconfirmed(text)))
        }
        Err(_) => (None, Err(RemoteError::Unconfirmed("the primary does not answer".to_owned()))),
    }
}

/// Sends a record from a thread that may belong to any runtime, or none.
struct RecordSink<'a> {
    inner: &'a Inner,
    right: Option<Right>,
    buffer: Vec<u8>,
    /// The runtime ended meanwhile: nobody knows what was sent.
    is_unsure: bool,
}

impl RecordSink<'_> {
    fn pass_on(&mut self) -> std::io::Result<()> {
        let lost = || std::io::Error::other("the connection to the primary was lost");
        let mut right = self.right.take().ok_or_else(lost)?;
        let buffer = std::mem::take(&mut self.buffer);
        let sent = self.inner.wait(async move {
            let sent = right.to.write_all(&buffer).await;
            sent.map(|()| right)
        });
        match sent {
            Some(Ok(right)) => self.right = Some(right),
            Some(Err(error)) => return Err(std::io::Error::other(error)),
            None => {
                self.is_unsure = true;
                return Err(lost());
            }
        }
        Ok(())
    }
}

impl std::io::Write for RecordSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK {
            self.pass_on()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut state = self.inner.state.lock();
        state.slots.remove(&self.db);
        let is_halted = state.halts.contains_key(&self.db);
        let is_wanted = !self.used && self.until > Instant::now();
        let generation = state.generation;
        let is_usable = |right: &Right| right.generation == generation && (is_halted || is_wanted);
        if let Some(right) = self.right.take().filter(is_usable) {
            let until = self.until;
            state.slots.insert(self.db.clone(), Slot::Kept { right, until });
        }
        let kept = state.slots.contains_key(&self.db);
        self.inner.changed.notify_all();
        drop(state);
        if kept && !is_halted {
            self.inner.drop_later(self.db.clone());
        }
    }
}
