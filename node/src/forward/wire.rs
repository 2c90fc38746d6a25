//! The frames of write forwarding. Numbers are big-endian.
//!
//! ```text
//! replica:  u16 length, name of the database; then one frame after the other:
//!             1 Lock    u32 milliseconds that it may take
//!             2 Commit  u64 length, a record (LTX)
//! primary:  the answer to each frame:
//!             0 Done         u64 Txid, u64 checksum: the newest position
//!             1 Busy
//!             2 Refused      u16 length, text: nothing has changed
//!             3 Unconfirmed  u16 length, text
//! ```

use std::time::Duration;

use litefs_store::{DbName, Pos, RemoteError};
use quinn::{ReadExactError, RecvStream, SendStream, WriteError};

use crate::replication::printable;
use crate::replication::wire::{
    MAX_RECORD, POS_LEN, decode_name, decode_pos, decode_stream_name_len, put_pos, truncated,
};

const MAX_TEXT: usize = 1024;

/// What a replica asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// The right to write, within this time.
    Lock(Duration),
    /// To commit the record of so many bytes that follows.
    Commit(u64),
}

/// What the primary answers.
pub(super) type Answer = Result<Pos, RemoteError>;

/// Why a stream is of no use any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    /// The peer broke the rules.
    #[error("the peer broke the protocol of write forwarding: {0}")]
    Protocol(&'static str),
    /// The stream was ended by the peer, or the connection was.
    #[error("{0}")]
    Ended(String),
}

impl From<ReadExactError> for StreamError {
    fn from(error: ReadExactError) -> Self {
        Self::Ended(error.to_string())
    }
}

impl From<WriteError> for StreamError {
    fn from(error: WriteError) -> Self {
        Self::Ended(error.to_string())
    }
}

impl Request {
    pub(super) fn encode(self) -> Vec<u8> {
        match self {
            Self::Lock(timeout) => {
                let ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
                [&[1][..], &ms.to_be_bytes()].concat()
            }
            Self::Commit(len) => [&[2][..], &len.to_be_bytes()].concat(),
        }
    }

    /// Reads the next one; `None` at the stream's end.
    pub(super) async fn read(from: &mut RecvStream) -> Result<Option<Self>, StreamError> {
        let mut kind = [0];
        match from.read_exact(&mut kind).await {
            Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
            other => other?,
        }
        match kind[0] {
            1 => {
                let mut ms = [0; 4];
                from.read_exact(&mut ms).await?;
                Ok(Some(Self::Lock(Duration::from_millis(u32::from_be_bytes(ms).into()))))
            }
            2 => {
                let mut len = [0; 8];
                from.read_exact(&mut len).await?;
                match u64::from_be_bytes(len) {
                    len @ 1..=MAX_RECORD => Ok(Some(Self::Commit(len))),
                    _ => Err(StreamError::Protocol("the length of a record")),
                }
            }
            _ => Err(StreamError::Protocol("the kind of a request")),
        }
    }
}

/// Reads the name that begins a stream.
pub(super) async fn read_name(from: &mut RecvStream) -> Result<DbName, StreamError> {
    let mut len = [0; 2];
    from.read_exact(&mut len).await?;
    let len =
        decode_stream_name_len(len).map_err(|_| StreamError::Protocol("the length of a name"))?;
    let mut name = vec![0; len];
    from.read_exact(&mut name).await?;
    decode_name(&name).map_err(|_| StreamError::Protocol("a name"))
}

/// Sends an answer.
pub(super) async fn write_answer(to: &mut SendStream, answer: &Answer) -> Result<(), StreamError> {
    let mut bytes = Vec::new();
    let mut put = |kind: u8, text: &str| {
        let text = truncated(text, MAX_TEXT);
        bytes.push(kind);
        bytes.extend_from_slice(&(text.len() as u16).to_be_bytes());
        bytes.extend_from_slice(text.as_bytes());
    };
    match answer {
        Ok(pos) => {
            bytes.push(0);
            put_pos(&mut bytes, *pos);
        }
        Err(RemoteError::Busy) => bytes.push(1),
        Err(RemoteError::Refused(text)) => put(2, text),
        Err(RemoteError::Unconfirmed(text)) => put(3, text),
    }
    Ok(to.write_all(&bytes).await?)
}

/// Reads an answer.
pub(super) async fn read_answer(from: &mut RecvStream) -> Result<Answer, StreamError> {
    let mut kind = [0];
    from.read_exact(&mut kind).await?;
    match kind[0] {
        0 => {
            let mut pos = [0; POS_LEN];
            from.read_exact(&mut pos).await?;
            decode_pos(&pos).map(Ok).map_err(|_| StreamError::Protocol("a position"))
        }
        1 => Ok(Err(RemoteError::Busy)),
        2 => Ok(Err(RemoteError::Refused(read_text(from).await?))),
        3 => Ok(Err(RemoteError::Unconfirmed(read_text(from).await?))),
        _ => Err(StreamError::Protocol("the kind of an answer")),
    }
}

async fn read_text(from: &mut RecvStream) -> Result<String, StreamError> {
    let mut len = [0; 2];
    from.read_exact(&mut len).await?;
    let len = usize::from(u16::from_be_bytes(len));
    if len > MAX_TEXT {
        return Err(StreamError::Protocol("the length of a text"));
    }
    let mut text = vec![0; len];
    from.read_exact(&mut text).await?;
    Ok(printable(&String::from_utf8_lossy(&text)))
}
