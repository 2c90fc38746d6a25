//! Frames on the control stream. The owner's loop never blocks on a peer that does not read or
//! write: both directions make progress in [`Control::progress`], which may be dropped and called
//! again at any time.

use quinn::{ReadError, RecvStream, SendStream, WriteError};

use super::wire::{self, FromPrimary, FromReplica, WireError};

/// While more than this waits to be written, nothing more should be added.
const OUTBOX_FULL: usize = 256 * 1024;

/// Why the control stream is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The peer's bytes are not the protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The peer ended or left the stream.
    #[error("the peer ended the control stream")]
    Ended,
    /// The connection is gone.
    #[error(transparent)]
    Lost(#[from] quinn::ConnectionError),
}

/// Both directions of a control stream.
pub struct Control {
    send: SendStream,
    recv: RecvStream,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
}

impl Control {
    /// Wraps the stream; it goes before all database streams.
    pub fn new(send: SendStream, recv: RecvStream) -> Self {
        // Fails only on a closed stream, which the first use reports.
        let _ = send.set_priority(i32::MAX);
        Self { send, recv, inbox: Vec::new(), outbox: Vec::new() }
    }

    /// Queues a message to the replica.
    pub fn push_to_replica(&mut self, message: &FromPrimary) {
        message.encode(&mut self.outbox);
    }

    /// Queues a message to the primary.
    pub fn push_to_primary(&mut self, message: &FromReplica) {
        message.encode(&mut self.outbox);
    }

    /// True if the peer does not read and no more should be queued.
    pub fn is_clogged(&self) -> bool {
        self.outbox.len() > OUTBOX_FULL
    }

    /// Takes the next whole frame (without its length) that has arrived.
    pub fn next_frame(&mut self) -> Result<Option<Vec<u8>>, WireError> {
        let Some(len) = self.inbox.first_chunk::<4>() else { return Ok(None) };
        let end = 4 + wire::decode_frame_len(*len)?;
        if self.inbox.len() < end {
            return Ok(None);
        }
        let frame = self.inbox[4..end].to_vec();
        self.inbox.drain(..end);
        Ok(Some(frame))
    }

    /// Waits until some bytes could be read or written. Nothing is lost if it is dropped.
    pub async fn progress(&mut self) -> Result<(), ControlError> {
        let is_writing = !self.outbox.is_empty();
        tokio::select! {
            chunk = self.recv.read_chunk(wire::MAX_FRAME, true) => {
                let chunk = chunk.map_err(read_error)?.ok_or(ControlError::Ended)?;
                self.inbox.extend_from_slice(&chunk.bytes);
            }
            written = self.send.write(&self.outbox), if is_writing => {
                let written = written.map_err(write_error)?;
                self.outbox.drain(..written);
            }
        }
        Ok(())
    }
}

fn read_error(error: ReadError) -> ControlError {
    match error {
        ReadError::ConnectionLost(lost) => lost.into(),
        _ => ControlError::Ended,
    }
}

fn write_error(error: WriteError) -> ControlError {
    match error {
        WriteError::ConnectionLost(lost) => lost.into(),
        _ => ControlError::Ended,
    }
}
