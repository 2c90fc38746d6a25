//! One job of a primary: what a replica lacks of one database, onto that database's stream.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use litefs_store::{Database, DbName, Error, ErrorKind, LogCursor, LogRecord, Pos};
use quinn::{Connection, SendStream, VarInt, WriteError};
use tokio::sync::Semaphore;

use super::pipe::{self, CHUNK, PipeWriter};
use super::primary::{Outcome, Task, is_far_behind};
use super::wire::{self, RecordKind, StreamFrame, StreamReset};

/// Records sent before other tasks get their turn.
const TURN: usize = 32;
const BULK_PRIORITY: i32 = -1;

/// A database's stream and place in the log, kept between jobs.
#[derive(Default)]
pub struct Line {
    stream: Option<SendStream>,
    cursor: Option<LogCursor>,
}

impl Line {
    /// Ends the stream in order.
    pub fn finish(mut self) {
        if let Some(mut stream) = self.stream.take() {
            // Fails only if the stream is closed already.
            let _ = stream.finish();
        }
    }

    /// Ends the stream whatever is still on its way.
    pub fn reset(mut self, why: StreamReset) {
        if let Some(mut stream) = self.stream.take() {
            let _ = stream.reset(VarInt::from_u32(why.code()));
        }
    }
}

/// What a job needs.
pub struct Sender {
    /// The replica's connection.
    pub connection: Connection,
    /// The database to send.
    pub db: Database,
    /// Blocking readers that may run at once on this node.
    pub bulk: Arc<Semaphore>,
}

impl Sender {
    /// Does the job. The line is of use again unless the outcome is [`Outcome::Broken`].
    pub async fn run(self, mut line: Line, task: Task) -> (DbName, Line, Outcome) {
        let name = self.db.name().clone();
        let result = match task {
            Task::Records(after) => self.records(&mut line, after).await,
            Task::Compacted(after) => self.compacted(&mut line, after).await,
            Task::Snapshot(known) => self.snapshot(&mut line, known).await,
        };
        let outcome = result.unwrap_or_else(|stop| self.outcome_of(stop));
        if outcome == Outcome::Broken {
            std::mem::take(&mut line).reset(StreamReset::Failed);
        }
        (name, line, outcome)
    }

    fn outcome_of(&self, stop: Stop) -> Outcome {
        let (error, at) = match stop {
            Stop::Stream => return Outcome::Broken,
            Stop::Store(error, at) => (error, at),
        };
        let db = self.db.name();
        match (error.kind(), at) {
            (ErrorKind::Gone, At::After(pos)) => return Outcome::Gone(pos),
            (ErrorKind::Mismatch, At::After(pos)) => return Outcome::Mismatch(pos),
            _ => tracing::warn!(%db, "cannot read this database for a replica: {error}"),
        }
        match at {
            At::After(pos) => Outcome::Failed(Some(pos)),
            At::Start => Outcome::Failed(None),
            At::WithinFrame => Outcome::Broken,
        }
    }

    async fn records(&self, line: &mut Line, after: Pos) -> Result<Outcome, Stop> {
        if line.cursor.as_ref().is_none_or(|c| c.pos() != after) {
            let cursor = self.db.log_cursor(after).map_err(|e| Stop::Store(e, At::After(after)))?;
            line.cursor = Some(cursor);
        }
        self.open(line).await?;
        let Line { stream: Some(stream), cursor: Some(cursor) } = line else {
            return Err(Stop::Stream);
        };
        loop {
            for _ in 0..TURN {
                let pos = cursor.pos();
                if is_far_behind(pos.txid, self.db.pos().txid, || cursor.backlog()) {
                    line.cursor = None;
                    return Ok(Outcome::FarBehind(pos));
                }
                match cursor.next().map_err(|e| Stop::Store(e, At::After(pos)))? {
                    Some(record) => {
                        send_record(stream, pos, &record).await?;
                        self.db.counters().records_sent.fetch_add(1, Ordering::Relaxed);
                    }
                    None => return Ok(Outcome::Sent(pos)),
                }
            }
            tokio::task::yield_now().await;
        }
    }

    async fn compacted(&self, line: &mut Line, after: Pos) -> Result<Outcome, Stop> {
        line.cursor = None;
        let permit = self.bulk.clone().acquire_owned().await.map_err(|_| Stop::Stream)?;
        let db = self.db.clone();
        let planned = blocking(move || {
            let failed = |e| Stop::Store(e, At::After(after));
            let snapshot = db.snapshot().map_err(failed)?;
            db.compacted(snapshot, after).map_err(failed)
        });
        let record = planned.await?;
        let pos = record.pos();
        let frame = StreamFrame { kind: RecordKind::Record, len: record.len(), base: after, pos };
        self.open(line).await?;
        self.pump(line, frame, move |out| record.write_to(out)).await?;
        self.db.counters().records_sent.fetch_add(1, Ordering::Relaxed);
        drop(permit);
        Ok(Outcome::Sent(pos))
    }

    async fn snapshot(&self, line: &mut Line, known: Pos) -> Result<Outcome, Stop> {
        line.cursor = None;
        let permit = self.bulk.clone().acquire_owned().await.map_err(|_| Stop::Stream)?;
        let snapshot = self.db.snapshot().map_err(|e| Stop::Store(e, At::Start))?;
        let pos = snapshot.pos();
        let len = snapshot.snapshot_record_len();
        let frame = StreamFrame { kind: RecordKind::Snapshot, len, base: known, pos };
        self.open(line).await?;
        self.pump(line, frame, move |out| snapshot.write_snapshot_record(out)).await?;
        self.db.counters().snapshots_sent.fetch_add(1, Ordering::Relaxed);
        drop(permit);
        Ok(Outcome::Sent(pos))
    }

    async fn open(&self, line: &mut Line) -> Result<(), Stop> {
        if line.stream.is_none() {
            let mut stream = self.connection.open_uni().await.map_err(|_| Stop::Stream)?;
            let name = Bytes::from(wire::encode_stream_name(self.db.name()));
            stream.write_chunk(name).await?;
            line.stream = Some(stream);
        }
        Ok(())
    }

    /// Sends a frame whose bytes a blocking thread writes.
    async fn pump<F>(&self, line: &mut Line, frame: StreamFrame, write: F) -> Result<(), Stop>
    where
        F: FnOnce(&mut PipeWriter) -> Result<(), Error> + Send + 'static,
    {
        let stream = line.stream.as_mut().ok_or(Stop::Stream)?;
        // Other databases' records go first. Fails only on a closed stream; writing reports that.
        let _ = stream.set_priority(BULK_PRIORITY);
        stream.write_chunk(Bytes::copy_from_slice(&frame.encode())).await?;
        let (mut writer, mut chunks) = pipe::out_of_writer();
        let writing = tokio::task::spawn_blocking(move || {
            let result = write(&mut writer);
            // If the receiver is gone, it knows why.
            let _ = writer.finish();
            result
        });
        let mut left = frame.len;
        while let Some(chunk) = chunks.recv().await {
            left = left.checked_sub(chunk.len() as u64).ok_or(Stop::Stream)?;
            stream.write_chunk(chunk).await?;
        }
        writing.await.map_err(|_| Stop::Stream)?.map_err(|e| Stop::Store(e, At::WithinFrame))?;
        if left > 0 {
            tracing::error!(db = %self.db.name(), "BUG: a record is {left} bytes short");
            return Err(Stop::Stream);
        }
        let _ = stream.set_priority(0);
        Ok(())
    }
}

/// Why a job ends before its end.
enum Stop {
    /// The stream or the connection is gone.
    Stream,
    /// The store failed.
    Store(Error, At),
}

/// Where a job was when the store failed.
#[derive(Clone, Copy)]
enum At {
    /// Nothing was sent.
    Start,
    /// Whole frames were sent, up to this position.
    After(Pos),
    /// The stream ends within a frame.
    WithinFrame,
}

impl From<WriteError> for Stop {
    fn from(_: WriteError) -> Self {
        Self::Stream
    }
}

/// Runs a blocking call of the store that may take long.
async fn blocking<T, F>(call: F) -> Result<T, Stop>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Stop> + Send + 'static,
{
    // It fails if the call panicked, which has been reported, or if the runtime stops.
    tokio::task::spawn_blocking(call).await.unwrap_or(Err(Stop::Stream))
}

/// Sends a record from the log, which follows `base`. A short one goes out in one piece.
async fn send_record(stream: &mut SendStream, base: Pos, record: &LogRecord) -> Result<(), Stop> {
    let (len, pos) = (record.len(), record.pos());
    let header = StreamFrame { kind: RecordKind::Record, len, base, pos }.encode();
    let mut offset = 0;
    while offset < len {
        let head = if offset == 0 { &header[..] } else { &[] };
        let part = (len - offset).min(CHUNK as u64);
        let mut chunk = vec![0; head.len() + part as usize];
        chunk[..head.len()].copy_from_slice(head);
        record.read_at(offset, &mut chunk[head.len()..]).map_err(|e| {
            Stop::Store(e, if offset == 0 { At::After(base) } else { At::WithinFrame })
        })?;
        stream.write_chunk(Bytes::from(chunk)).await?;
        offset += part;
    }
    Ok(())
}
