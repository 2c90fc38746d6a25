//! One database's stream from the primary, into the store.
//!
//! **Nobody who waits for bytes holds what others wait for.** All streams share the connection's
//! flow-control window. A stream that waits for its turn keeps its unread bytes in that window; if
//! the one whose turn it is needed bytes that no longer fit, neither would ever go on. So a record
//! gets its turn to be applied when it is here as a whole: in memory, or, if it is large or memory
//! is short, in an unnamed file. Only a few records are applied while they arrive, and nobody waits
//! for one of those places.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, Seek, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use litefs_store::{Database, DbName, Durability, Error, ErrorKind, Pos, Store};
use parking_lot::Mutex;
use quinn::{ReadExactError, RecvStream};
use tokio::sync::{Notify, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

use super::MAX_DATABASES;
use super::diverged;
use super::following::{Following, Received, came_from_primary};
use super::pipe::{self, Batch, BatchSender, CHUNK};
use super::replica::{Upstream, must_preserve};
use super::wire::{self, Close, Reason, RecordKind, STREAM_FRAME_LEN, StreamFrame, StreamReset};

/// Records up to this length are read into memory before they are applied.
const SMALL: u64 = 1 << 20;
/// Bytes of small records that are in memory at once, over all databases.
const SMALL_TOTAL: usize = 16 << 20;
/// Threads that apply at once what is here as a whole.
const APPLIERS: usize = 4;
/// Threads that apply records while they arrive, besides.
const DIRECT: usize = 8;

/// Bounds what all streams of a node use, over its connections.
#[derive(Clone)]
pub struct Limits {
    appliers: Arc<Semaphore>,
    direct: Arc<Semaphore>,
    memory: Arc<Semaphore>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            appliers: Arc::new(Semaphore::new(APPLIERS)),
            direct: Arc::new(Semaphore::new(DIRECT)),
            memory: Arc::new(Semaphore::new(SMALL_TOTAL)),
        }
    }
}

impl Limits {
    /// Waits for the right to change a database in a blocking call.
    pub async fn applier(&self) -> Option<OwnedSemaphorePermit> {
        self.appliers.clone().acquire_owned().await.ok()
    }

    /// Waits until nothing is being applied any more. The streams must have been ended.
    pub async fn drained(&self) {
        // Never closed, so it cannot fail.
        let _ = self.appliers.acquire_many(APPLIERS as u32).await;
        let _ = self.direct.acquire_many(DIRECT as u32).await;
    }
}

/// What the streams of one connection share.
pub struct Receiver {
    store: Store,
    upstream: Arc<Mutex<Upstream>>,
    wake: Arc<Notify>,
    filter: HashSet<DbName>,
    limits: Limits,
    lanes: Mutex<HashMap<DbName, Arc<Lane>>>,
    /// What came from this primary; `None` if this node never had everything of it.
    received: Mutex<Option<Received>>,
    epoch_start: Instant,
}

/// A database's place in line: one stream at a time is read, and none while it is halted.
#[derive(Default)]
struct Lane {
    halts: AtomicU64,
    halted: Notify,
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// Why a stream is left.
enum Leave {
    /// It ended in order, or was halted, or the connection is gone.
    Quietly,
    /// The primary reset it.
    Reset(StreamReset),
    /// The primary is at fault.
    Blame(Close),
    /// This node cannot apply now; true if only a snapshot can help.
    Trouble(Error, bool),
    /// This node cannot keep a record until it is its turn.
    NoSpool(io::Error),
}

impl From<wire::WireError> for Leave {
    fn from(error: wire::WireError) -> Self {
        Self::Blame(error.into())
    }
}

impl Receiver {
    /// For one connection. `filter` is empty if all databases are wanted.
    pub fn new(
        store: Store,
        upstream: Arc<Mutex<Upstream>>,
        wake: Arc<Notify>,
        (filter, limits): (HashSet<DbName>, Limits),
        epoch_start: Instant,
    ) -> Self {
        let (lanes, received) = (Mutex::default(), Mutex::default());
        Self { store, upstream, wake, filter, limits, lanes, received, epoch_start }
    }

    /// Says what came from this primary; `None` if this node never had everything of it, or was
    /// primary since.
    pub fn set_received(&self, received: Option<Received>) {
        *self.received.lock() = received;
    }

    /// Stops reading a database's stream, if there is one, and waits until nothing of it is being
    /// applied. Nothing will be until the guard is dropped.
    pub async fn halt(&self, db: &DbName) -> Option<OwnedMutexGuard<()>> {
        let lane = self.lane(db)?;
        lane.halts.fetch_add(1, Ordering::AcqRel);
        lane.halted.notify_waiters();
        Some(lane.turn.clone().lock_owned().await)
    }

    /// Reads a stream to its end.
    pub async fn run(self: Arc<Self>, mut stream: RecvStream) {
        let name = match self.read_name(&mut stream).await {
            Ok(name) => name,
            Err(leave) => return self.leave(None, leave),
        };
        let Some(lane) = self.lane(&name) else {
            let close = Close::new(Reason::BadProtocol, "too many databases");
            return self.leave(None, Leave::Blame(close));
        };
        let halts = lane.halts.load(Ordering::Acquire);
        let _turn = lane.turn.lock().await;
        let db = match self.store.create(&name) {
            Ok(db) => db,
            Err(error) => return self.leave(Some(&name), Leave::Trouble(error, false)),
        };
        let leave = self.read_frames(&mut stream, &db, &lane, halts).await;
        self.leave(Some(&name), leave);
    }

    fn lane(&self, db: &DbName) -> Option<Arc<Lane>> {
        let mut lanes = self.lanes.lock();
        if lanes.len() >= MAX_DATABASES && !lanes.contains_key(db) {
            return None;
        }
        Some(lanes.entry(db.clone()).or_default().clone())
    }

    async fn read_name(&self, stream: &mut RecvStream) -> Result<DbName, Leave> {
        let mut len = [0; 2];
        read_exact(stream, &mut len).await?;
        let mut name = vec![0; wire::decode_stream_name_len(len)?];
        read_exact(stream, &mut name).await?;
        let name = wire::decode_name(&name)?;
        if !self.filter.is_empty() && !self.filter.contains(&name) {
            let text = format!("a stream of database {name}, which was not asked for");
            return Err(Leave::Blame(Close::new(Reason::BadProtocol, text)));
        }
        Ok(name)
    }

    async fn read_frames(
        &self,
        stream: &mut RecvStream,
        db: &Database,
        lane: &Lane,
        halts: u64,
    ) -> Leave {
        loop {
            let halted = lane.halted.notified();
            tokio::pin!(halted);
            halted.as_mut().enable();
            if lane.halts.load(Ordering::Acquire) != halts {
                return Leave::Quietly;
            }
            let mut header = [0; STREAM_FRAME_LEN];
            let read = tokio::select! {
                read = stream.read_exact(&mut header) => read,
                () = &mut halted => return Leave::Quietly,
            };
            if let Err(ReadExactError::FinishedEarly(0)) = read {
                return Leave::Quietly;
            }
            if let Err(leave) = read.map_err(broken) {
                return leave;
            }
            if let Err(leave) = self.take_frame(stream, db, &header).await {
                return leave;
            }
        }
    }

    async fn take_frame(
        &self,
        stream: &mut RecvStream,
        db: &Database,
        header: &[u8; STREAM_FRAME_LEN],
    ) -> Result<(), Leave> {
        let frame = StreamFrame::decode(header)?;
        self.note_alive();
        if frame.kind == RecordKind::Record && frame.base != db.pos() {
            let text = format!("a record after {} for {}, at {}", frame.base, db.name(), db.pos());
            return Err(Leave::Blame(Close::new(Reason::BadRecord, text)));
        }
        let is_ours = || tokio::task::block_in_place(|| self.may_hold_own(db));
        if frame.kind == RecordKind::Snapshot && must_preserve(frame.base, db.pos(), is_ours) {
            self.preserve(db).await?;
        }
        let applied = self.take_record(stream, db, frame).await?;
        let pos = applied.map_err(|error| blame(db, error))?;
        if pos != frame.pos {
            let text = format!("a record for {} leads to {pos}, not to {}", db.name(), frame.pos);
            return Err(Leave::Blame(Close::new(Reason::BadRecord, text)));
        }
        if frame.kind == RecordKind::Snapshot {
            tokio::task::block_in_place(|| self.note_received(db, pos));
        }
        self.upstream.lock().handle_applied(db.name());
        self.wake.notify_one();
        Ok(())
    }

    /// Remembers that a snapshot came from the primary, since it does not say so itself.
    fn note_received(&self, db: &Database, pos: Pos) {
        let mut received = self.received.lock();
        let Some(received) = received.as_mut() else { return };
        if let Err(error) = Following::of(self.store.dir()).note_received(db.name(), pos) {
            tracing::warn!(db = %db.name(), "cannot remember where it came from: {error}");
        }
        received.insert(db.name().clone(), pos);
    }

    /// True if this database may hold transactions that did not come from the primary.
    fn may_hold_own(&self, db: &Database) -> bool {
        let came = |received: &Received| came_from_primary(&self.store, db, received);
        let has_diverged = self.upstream.lock().has_diverged(db.name());
        has_diverged || !self.received.lock().as_ref().is_some_and(came)
    }

    /// Keeps what a snapshot is about to replace and the primary may not have.
    async fn preserve(&self, db: &Database) -> Result<(), Leave> {
        let (db, permit) = (db.clone(), self.applier().await?);
        let common = self.upstream.lock().common(db.name());
        let preserving = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            match diverged::keep(&db, common) {
                Ok(()) => Ok(()),
                // What cannot be read cannot be kept; its files are damaged anyway.
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    tracing::warn!(db = %db.name(), "replacing a damaged database: {error}");
                    Ok(())
                }
                Err(error) => Err(Leave::Trouble(error, true)),
            }
        });
        preserving.await.unwrap_or(Err(Leave::Quietly))
    }

    /// Takes the record the quickest way for which there is room now.
    async fn take_record(
        &self,
        stream: &mut RecvStream,
        db: &Database,
        frame: StreamFrame,
    ) -> Result<Result<Pos, Error>, Leave> {
        if frame.len <= SMALL {
            if let Ok(_memory) = self.limits.memory.try_acquire_many(frame.len as u32) {
                return self.take_small(stream, db, frame).await;
            }
        } else if let Ok(permit) = self.limits.direct.clone().try_acquire_owned() {
            return self.take_direct(stream, db, frame, permit).await;
        }
        self.take_spooled(stream, db, frame).await
    }

    /// Reads the record into memory, then applies it at once on this thread.
    async fn take_small(
        &self,
        stream: &mut RecvStream,
        db: &Database,
        frame: StreamFrame,
    ) -> Result<Result<Pos, Error>, Leave> {
        let mut record = vec![0; frame.len as usize];
        read_exact(stream, &mut record).await?;
        let _permit = self.applier().await?;
        let mut rest = record.as_slice();
        let applied = tokio::task::block_in_place(|| apply(db, frame.kind, &mut rest));
        if applied.is_ok() && !rest.is_empty() {
            return Err(trailing(db, rest.len() as u64));
        }
        Ok(applied)
    }

    /// Applies the record while it arrives, with little memory.
    async fn take_direct(
        &self,
        stream: &mut RecvStream,
        db: &Database,
        frame: StreamFrame,
        permit: OwnedSemaphorePermit,
    ) -> Result<Result<Pos, Error>, Leave> {
        let (batches, mut reader) = pipe::into_reader();
        let target = db.clone();
        let applying = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let applied = apply(&target, frame.kind, &mut reader);
            (applied, reader.taken())
        });
        // If the stream breaks off, so does the record for its reader, which then refuses it.
        let passed = self.pass_on(stream, frame.len, batches).await;
        let (applied, taken) = applying.await.map_err(|_| Leave::Quietly)?;
        passed?;
        if applied.is_ok() && taken != frame.len {
            return Err(trailing(db, frame.len - taken));
        }
        Ok(applied)
    }

    /// Reads the record into an unnamed file, then applies it when it is its turn.
    async fn take_spooled(
        &self,
        stream: &mut RecvStream,
        db: &Database,
        frame: StreamFrame,
    ) -> Result<Result<Pos, Error>, Leave> {
        let dir = self.store.dir();
        let spool = tokio::task::block_in_place(|| tempfile::tempfile_in(dir));
        let mut spool = spool.map_err(Leave::NoSpool)?;
        let mut left = frame.len;
        while left > 0 {
            let batch = self.next_batch(stream, &mut left).await?;
            let write = || batch.iter().try_for_each(|piece| spool.write_all(piece));
            tokio::task::block_in_place(write).map_err(Leave::NoSpool)?;
        }
        let (permit, target) = (self.applier().await?, db.clone());
        let applying = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            apply_file(&target, frame, spool)
        });
        applying.await.map_err(|_| Leave::Quietly)?
    }

    /// Passes on `len` bytes of the stream, or as many as are wanted.
    async fn pass_on(
        &self,
        stream: &mut RecvStream,
        len: u64,
        batches: BatchSender,
    ) -> Result<(), Leave> {
        let mut left = len;
        while left > 0 {
            let batch = self.next_batch(stream, &mut left).await?;
            if batches.send(batch).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// The next bytes of a record of which `left` are missing. A full batch, unless it is the last:
    /// what comes from the network is a packet at a time.
    async fn next_batch(&self, stream: &mut RecvStream, left: &mut u64) -> Result<Batch, Leave> {
        let mut batch = Batch::new();
        let mut wanted = (*left).min(CHUNK as u64) as usize;
        *left -= wanted as u64;
        while wanted > 0 {
            let read = stream.read_chunk(wanted, true).await;
            let read = read.map_err(|error| broken(ReadExactError::ReadError(error)))?;
            let piece = read.ok_or_else(|| broken(ReadExactError::FinishedEarly(0)))?.bytes;
            self.note_alive();
            wanted -= piece.len();
            batch.push(piece);
        }
        Ok(batch)
    }

    async fn applier(&self) -> Result<OwnedSemaphorePermit, Leave> {
        self.limits.applier().await.ok_or(Leave::Quietly)
    }

    /// What all streams of the node share.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    fn note_alive(&self) {
        self.upstream.lock().handle_alive(self.epoch_start.elapsed());
    }

    fn leave(&self, db: Option<&DbName>, leave: Leave) {
        let now = self.epoch_start.elapsed();
        let mut upstream = self.upstream.lock();
        match (leave, db) {
            (Leave::Quietly, _)
            | (Leave::Reset(_) | Leave::Trouble(..) | Leave::NoSpool(_), None) => {
                return;
            }
            (Leave::Reset(reset), Some(db)) => upstream.handle_reset(now, db, reset),
            (Leave::Blame(close), _) => upstream.handle_end(close),
            (Leave::Trouble(error, snapshot), Some(db)) => {
                if error.kind() == ErrorKind::Closed {
                    return;
                }
                tracing::warn!(%db, "cannot apply the primary's transactions: {error}");
                upstream.note_reason(db, error.to_string());
                upstream.handle_trouble(now, db, snapshot);
            }
            (Leave::NoSpool(error), Some(db)) => {
                tracing::warn!(%db, "cannot keep a record in the data directory: {error}");
                upstream.note_reason(db, format!("cannot write to the data directory: {error}"));
                upstream.handle_trouble(now, db, false);
            }
        }
        drop(upstream);
        self.wake.notify_one();
    }
}

fn apply(db: &Database, kind: RecordKind, record: &mut dyn std::io::Read) -> Result<Pos, Error> {
    match kind {
        // The store's own setting may ask for more.
        RecordKind::Record => db.apply(record, Durability::Normal),
        RecordKind::Snapshot => db.install_snapshot(record),
    }
}

/// Applies a record that is in a file as a whole.
fn apply_file(
    db: &Database,
    frame: StreamFrame,
    mut file: File,
) -> Result<Result<Pos, Error>, Leave> {
    file.rewind().map_err(Leave::NoSpool)?;
    let mut reader = BufReader::with_capacity(CHUNK, file);
    let applied = apply(db, frame.kind, &mut reader);
    let taken = reader.stream_position().map_err(Leave::NoSpool)?;
    if applied.is_ok() && taken != frame.len {
        return Err(trailing(db, frame.len - taken));
    }
    Ok(applied)
}

/// Whose fault an error is.
fn blame(db: &Database, error: Error) -> Leave {
    match error.kind() {
        _ if db.quarantined().is_some() => Leave::Trouble(error, true),
        ErrorKind::Mismatch | ErrorKind::Invalid => {
            let text = format!("refused a record for {}: {error}", db.name());
            Leave::Blame(Close::new(Reason::BadRecord, text))
        }
        ErrorKind::Corrupt => Leave::Trouble(error, true),
        _ => Leave::Trouble(error, false),
    }
}

async fn read_exact(stream: &mut RecvStream, buf: &mut [u8]) -> Result<(), Leave> {
    stream.read_exact(buf).await.map_err(broken)
}

fn broken(error: ReadExactError) -> Leave {
    match error {
        ReadExactError::FinishedEarly(_) => {
            Leave::Blame(Close::new(Reason::BadProtocol, "a stream ended within a frame"))
        }
        ReadExactError::ReadError(quinn::ReadError::Reset(code)) => {
            Leave::Reset(StreamReset::from_code(code.into_inner()))
        }
        ReadExactError::ReadError(_) => Leave::Quietly,
    }
}

fn trailing(db: &Database, bytes: u64) -> Leave {
    let text = format!("{bytes} bytes after the end of a record for {}", db.name());
    Leave::Blame(Close::new(Reason::BadRecord, text))
}
