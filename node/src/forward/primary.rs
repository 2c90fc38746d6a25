//! Holds the right to write for replicas, and commits what they send.

use std::sync::Arc;
use std::time::Duration;

use litefs_store::{DbName, Error, ErrorKind, Hold, RemoteError, Store};
use quinn::{RecvStream, SendStream, VarInt};
use tokio::sync::Semaphore;

use super::IDLE_TIMEOUT;
use super::wire::{self, Answer, Request, StreamError};
use crate::replication::pipe;

/// Waits for a right at once; more wait for their turn to wait.
const WAITERS: usize = 4;
/// Commits that may be under way at once.
const COMMITTERS: usize = 4;
/// A waiter makes way for others after this time.
const SLICE: Duration = Duration::from_millis(250);
/// The longest that a replica may ask to wait.
const PATIENCE_MAX: Duration = Duration::from_secs(10);

/// Takes the right to write for others, who wait on few threads.
#[derive(Clone)]
pub(crate) struct Rights {
    store: Store,
    turns: Arc<Semaphore>,
}

impl Rights {
    /// To this node's databases.
    pub(crate) fn new(store: Store) -> Self {
        Self { store, turns: Arc::new(Semaphore::new(WAITERS)) }
    }

    /// Waits for local writers, at most `timeout`, in turns with others.
    pub(crate) async fn take(&self, name: &DbName, timeout: Duration) -> Result<Hold, Error> {
        let deadline = tokio::time::Instant::now() + timeout;
        loop {
            let turn = self.turns.clone().acquire_owned();
            let Ok(Ok(turn)) = tokio::time::timeout_at(deadline, turn).await else {
                return Err(Error::Busy { db: name.clone() });
            };
            let left = deadline.saturating_duration_since(tokio::time::Instant::now()).min(SLICE);
            let (store, name) = (self.store.clone(), name.clone());
            let held = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                store.create(&name)?.hold(left)
            });
            match held.await.unwrap_or(Err(Error::Closed)) {
                Err(Error::Busy { .. }) if tokio::time::Instant::now() < deadline => (),
                held => return held,
            }
        }
    }
}

/// Serves the streams of write forwarding of all replicas.
#[derive(Clone)]
pub struct Server {
    rights: Rights,
    committers: Arc<Semaphore>,
}

impl Server {
    /// Of this node's databases.
    pub fn new(store: Store) -> Self {
        Self { rights: Rights::new(store), committers: Arc::new(Semaphore::new(COMMITTERS)) }
    }

    /// Serves one stream; when it ends, or this is dropped, so does the right to write.
    /// `replica` is for the log.
    pub async fn serve(self, mut to: SendStream, mut from: RecvStream, replica: String) {
        match self.serve_stream(&mut to, &mut from, &replica).await {
            Ok(()) => (),
            Err(StreamError::Ended(text)) => {
                tracing::debug!("write forwarding for {replica} has ended: {text}");
            }
            Err(error) => {
                tracing::warn!("{replica}: {error}");
                let _ = to.reset(VarInt::from_u32(1));
                let _ = from.stop(VarInt::from_u32(1));
            }
        }
    }

    async fn serve_stream(
        &self,
        to: &mut SendStream,
        from: &mut RecvStream,
        replica: &str,
    ) -> Result<(), StreamError> {
        let name = wire::read_name(from).await?;
        let mut hold = None;
        loop {
            let request = tokio::time::timeout(IDLE_TIMEOUT, Request::read(from)).await;
            let Ok(request) = request else {
                let idle = IDLE_TIMEOUT.as_secs();
                tracing::warn!(db = %name, "{replica} has not used its right to write for {idle} s");
                return Ok(());
            };
            let answer = match request? {
                None => return Ok(()),
                Some(Request::Lock(timeout)) => {
                    let taken = self.rights.take(&name, timeout.min(PATIENCE_MAX)).await;
                    taken.map(|taken| hold.insert(taken).pos()).map_err(|e| answer_to(&e))
                }
                Some(Request::Commit(len)) => {
                    let held = hold.take().ok_or(StreamError::Protocol("a commit without a lock"));
                    let (answer, held) = self.commit(held?, from, len).await?;
                    hold = held;
                    answer
                }
            };
            wire::write_answer(to, &answer).await?;
        }
    }

    /// Commits the record that follows on the stream. The right to write goes on unless the answer
    /// is not known.
    async fn commit(
        &self,
        mut hold: Hold,
        from: &mut RecvStream,
        len: u64,
    ) -> Result<(Answer, Option<Hold>), StreamError> {
        let Ok(permit) = self.committers.clone().acquire_owned().await else {
            return Ok((Err(RemoteError::Refused("this node is shutting down".into())), None));
        };
        let (sender, mut reader) = pipe::into_reader();
        let committing = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let committed = hold.commit(&mut reader);
            (committed, hold)
        });
        let mut left = len;
        while left > 0 {
            let max = usize::try_from(left).unwrap_or(usize::MAX).min(pipe::CHUNK);
            // Whoever waits for the right to write must not wait for ever.
            let chunk = tokio::time::timeout(IDLE_TIMEOUT, from.read_chunk(max, true)).await;
            let chunk = chunk.map_err(|_| StreamError::Protocol("a record that does not come"))?;
            let chunk = chunk.map_err(|e| StreamError::Ended(e.to_string()))?;
            let chunk = chunk.ok_or(StreamError::Protocol("a record that ends early"))?;
            left -= chunk.bytes.len() as u64;
            // Who reads has refused the record already: the rest of it is passed over.
            let _ = sender.send(vec![chunk.bytes]).await;
        }
        drop(sender);
        match committing.await {
            Ok((committed, hold)) => Ok((committed.map_err(|e| answer_to(&e)), Some(hold))),
            Err(_) => Ok((Err(RemoteError::Unconfirmed("the commit failed".into())), None)),
        }
    }
}

fn answer_to(error: &Error) -> RemoteError {
    match error.kind() {
        ErrorKind::Busy => RemoteError::Busy,
        // After a failed sync, the record may be on disk.
        ErrorKind::Unconfirmed | ErrorKind::Io => RemoteError::Unconfirmed(error.to_string()),
        _ => RemoteError::Refused(format!("the primary refused it: {error}")),
    }
}
