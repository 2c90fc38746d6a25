//! Bounded pipes between the async streams and the store's blocking readers and writers.
//!
//! A pipe holds at most [`DEPTH`] batches of about [`CHUNK`] bytes, so a slow network holds back
//! the store's writer, and a slow disk the network, without memory growing.

use std::io::{self, Read, Write};

use bytes::Bytes;
use tokio::sync::mpsc;

/// Bytes in a chunk, or in a batch of pieces. Each wakes a thread: packet by packet, that takes
/// longer than all the rest.
pub const CHUNK: usize = 256 * 1024;
/// Chunks or batches in a pipe.
const DEPTH: usize = 2;

/// Bytes in the pieces in which they came; at most [`CHUNK`] of them.
pub type Batch = Vec<Bytes>;
/// The async end that gives batches to a [`PipeReader`]; dropping it is the end of the bytes.
pub type BatchSender = mpsc::Sender<Batch>;
/// The async end that takes chunks from a [`PipeWriter`].
pub type ChunkReceiver = mpsc::Receiver<Bytes>;

/// A pipe into a blocking reader.
pub fn into_reader() -> (BatchSender, PipeReader) {
    let (sender, receiver) = mpsc::channel(DEPTH);
    (
        sender,
        PipeReader { receiver, rest: Batch::new().into_iter(), current: Bytes::new(), taken: 0 },
    )
}

/// A pipe out of a blocking writer.
pub fn out_of_writer() -> (PipeWriter, ChunkReceiver) {
    let (sender, receiver) = mpsc::channel(DEPTH);
    (PipeWriter { sender, current: Vec::new() }, receiver)
}

/// Reads batches in a blocking thread.
pub struct PipeReader {
    receiver: mpsc::Receiver<Batch>,
    rest: std::vec::IntoIter<Bytes>,
    current: Bytes,
    taken: u64,
}

impl PipeReader {
    /// Bytes read so far.
    pub fn taken(&self) -> u64 {
        self.taken
    }
}

impl Read for PipeReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.rest.next() {
                Some(piece) => self.current = piece,
                None => match self.receiver.blocking_recv() {
                    Some(batch) => self.rest = batch.into_iter(),
                    None => return Ok(0),
                },
            }
        }
        let n = buf.len().min(self.current.len());
        buf[..n].copy_from_slice(&self.current.split_to(n));
        self.taken += n as u64;
        Ok(n)
    }
}

/// Collects chunks in a blocking thread. Call [`PipeWriter::finish`] at the end.
pub struct PipeWriter {
    sender: mpsc::Sender<Bytes>,
    current: Vec<u8>,
}

impl PipeWriter {
    /// Passes on what is left.
    pub fn finish(mut self) -> io::Result<()> {
        self.pass_on()
    }

    fn pass_on(&mut self) -> io::Result<()> {
        if self.current.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::take(&mut self.current));
        self.sender
            .blocking_send(chunk)
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the receiver is gone"))
    }
}

impl Write for PipeWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.current.capacity() == 0 {
            self.current.reserve_exact(CHUNK);
        }
        let n = buf.len().min(CHUNK - self.current.len());
        self.current.extend_from_slice(&buf[..n]);
        if self.current.len() == CHUNK {
            self.pass_on()?;
        }
        Ok(n)
    }

    /// Chunks are passed on when they are full: a flush in between would only make them small.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn bytes_pass_in_order_and_in_bounded_chunks() {
        let sent: Vec<u8> = (0..3 * CHUNK + 77).map(|i| (i % 251) as u8).collect();
        let (mut writer, mut receiver) = out_of_writer();
        let copy = sent.clone();
        let writing = tokio::task::spawn_blocking(move || {
            copy.chunks(1000).try_for_each(|part| writer.write_all(part))?;
            writer.finish()
        });
        let (sender, mut reader) = into_reader();
        let reading = tokio::task::spawn_blocking(move || {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).map(|_| (got, reader.taken()))
        });
        while let Some(chunk) = receiver.recv().await {
            assert!(!chunk.is_empty() && chunk.len() <= CHUNK);
            let (head, tail) = (chunk.slice(..chunk.len() / 3), chunk.slice(chunk.len() / 3..));
            sender.send(vec![head, Bytes::new(), tail]).await.unwrap();
        }
        drop(sender);
        writing.await.unwrap().unwrap();
        let (got, taken) = reading.await.unwrap().unwrap();
        assert!(got == sent && taken == sent.len() as u64);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_writer_without_its_receiver_fails_instead_of_waiting() {
        let (mut writer, receiver) = out_of_writer();
        drop(receiver);
        let result = tokio::task::spawn_blocking(move || writer.write_all(&vec![0; CHUNK])).await;
        assert_eq!(result.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
