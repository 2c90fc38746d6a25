//! `GET /export` and `POST /import`: whole databases as plain SQLite files.
//!
//! A slow client holds no lock. An export reads from a pinned snapshot. An import is first spooled
//! to an unnamed file in the data directory, and only then touches the database.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use litefs_store::{Database, DbName, ErrorKind, Snapshot, Store};
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::{Api, Failure};

/// Exports and imports that run at once; each needs a thread, an import also disk space.
pub(super) const EXPORTS_MAX: usize = 16;
pub(super) const IMPORTS_MAX: usize = 4;

/// An upload that sends nothing for this long is given up.
const UPLOAD_STALL: Duration = Duration::from_secs(30);

/// Bytes that are read ahead for a client: 4 chunks.
const CHUNK: usize = 256 << 10;
const CHUNKS_AHEAD: usize = 4;

const SQLITE_MAGIC: &[u8; 16] = b"SQLite format 3\0";

#[derive(Deserialize)]
pub(super) struct NameQuery {
    #[serde(default)]
    name: String,
}

/// The database that a query names.
pub(super) fn db_name(name: &str) -> Result<DbName, Failure> {
    if name.is_empty() {
        return Err(Failure::new(StatusCode::BAD_REQUEST, "name required"));
    }
    DbName::new(name).map_err(|e| Failure::new(StatusCode::BAD_REQUEST, e))
}

/// Streams a database at its newest position.
pub(super) async fn export(
    State(api): State<Api>,
    Query(query): Query<NameQuery>,
) -> Result<Response, Failure> {
    let name = db_name(&query.name)?;
    let permit = take(&api.exports, "exports")?;
    let database = existing(api.view.store(), &name)?;
    let snapshot = run_blocking(move || database.snapshot()).await?.map_err(Failure::from_store)?;
    let page_size = snapshot.page_size().map_or(0, |size| u64::from(size.get()));
    let length = u64::from(snapshot.page_count()) * page_size;
    if length == 0 {
        return Err(not_found());
    }
    let position = snapshot.pos().to_string();
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    tokio::task::spawn_blocking(move || send_snapshot(&name, &snapshot, sender, permit));
    let body = Body::from_stream(ReceiverStream::new(receiver));
    let headers = [
        (header::CONTENT_TYPE, "application/vnd.sqlite3".to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
        (header::HeaderName::from_static("litefs-position"), position),
    ];
    Ok((headers, body).into_response())
}

/// Replaces or creates a database by the uploaded file.
pub(super) async fn import(
    State(api): State<Api>,
    Query(query): Query<NameQuery>,
    body: Body,
) -> Result<Response, Failure> {
    let name = db_name(&query.name)?;
    api.require_primary()?;
    let permit = take(&api.imports, "imports")?;
    let store = api.view.store().clone();
    let mut spool = spool_body(&api, body, SQLITE_MAGIC, not_sqlite).await?;
    // The role may have changed during a long upload.
    api.require_primary()?;
    let started_with = name.clone();
    let importing = run_blocking(move || {
        // It goes on when its client goes away, and keeps its thread.
        let _permit = permit;
        store.create(&name)?.import(&mut spool)
    });
    let pos = importing.await?.map_err(Failure::from_store)?;
    tracing::info!(db = started_with.as_str(), pos = %pos, "imported");
    Ok(StatusCode::OK.into_response())
}

/// Writes the body to an unnamed file in the data directory. Refuses early what does not begin with
/// `magic`.
pub(super) async fn spool_body(
    api: &Api,
    mut body: Body,
    magic: &[u8],
    refuse: impl Fn() -> Failure,
) -> Result<File, Failure> {
    let dir = api.view.store().dir().to_owned();
    let spool = run_blocking(move || tempfile::tempfile_in(dir)).await?.map_err(spool_failed)?;
    let mut spool = tokio::fs::File::from_std(spool);
    let mut head = Vec::with_capacity(magic.len());
    while let Some(frame) = next_frame(&mut body).await? {
        if head.len() < magic.len() {
            head.extend(frame.iter().take(magic.len() - head.len()));
            if !magic.starts_with(&head) {
                return Err(refuse());
            }
        }
        spool.write_all(&frame).await.map_err(spool_failed)?;
    }
    if head.len() < magic.len() {
        return Err(refuse());
    }
    spool.flush().await.map_err(spool_failed)?;
    let mut spool = spool.into_std().await;
    spool.rewind().map_err(spool_failed)?;
    Ok(spool)
}

async fn next_frame(body: &mut Body) -> Result<Option<Bytes>, Failure> {
    let bad = |e: &dyn std::fmt::Display| {
        Failure::new(StatusCode::BAD_REQUEST, format!("the upload broke off: {e}"))
    };
    loop {
        let frame = tokio::time::timeout(UPLOAD_STALL, body.frame()).await.map_err(|_| {
            Failure::new(
                StatusCode::REQUEST_TIMEOUT,
                format!("the upload sent nothing for {} s", UPLOAD_STALL.as_secs()),
            )
        })?;
        match frame {
            None => return Ok(None),
            Some(Err(e)) => return Err(bad(&e)),
            // Trailers mean nothing here.
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// Runs on a thread of its own until the client has everything or is gone.
fn send_snapshot(
    name: &DbName,
    snapshot: &Snapshot,
    sender: mpsc::Sender<io::Result<Bytes>>,
    _permit: OwnedSemaphorePermit,
) {
    let mut out = ChunkWriter { sender, chunk: Vec::with_capacity(CHUNK) };
    let exported = snapshot.export(&mut out).map_err(|e| e.to_string());
    let Err(error) = exported.and_then(|()| out.send().map_err(|e| e.to_string())) else { return };
    if !out.sender.is_closed() {
        tracing::error!(db = name.as_str(), pos = %snapshot.pos(), "export failed: {error}");
        // Breaks the connection, so that the client does not take a part for the whole.
        let _ = out.sender.blocking_send(Err(io::Error::other(error)));
    }
}

/// Hands written bytes to the response in chunks; waits while the client is slow.
struct ChunkWriter {
    sender: mpsc::Sender<io::Result<Bytes>>,
    chunk: Vec<u8>,
}

impl ChunkWriter {
    fn send(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK));
        self.sender
            .blocking_send(Ok(chunk.into()))
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the client is gone"))
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let take = buf.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&buf[..take]);
        if self.chunk.len() == CHUNK {
            self.send()?;
        }
        Ok(take)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The database, if it has content that may be served.
fn existing(store: &Store, name: &DbName) -> Result<Database, Failure> {
    let database = store.database(name).ok_or_else(not_found)?;
    if let Some(reason) = database.quarantined() {
        return Err(Failure::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("database {name} is quarantined: {reason}"),
        ));
    }
    if database.page_count() == 0 { Err(not_found()) } else { Ok(database) }
}

fn not_found() -> Failure {
    Failure::new(StatusCode::NOT_FOUND, "database not found")
}

fn not_sqlite() -> Failure {
    Failure::new(
        StatusCode::BAD_REQUEST,
        "the upload is no SQLite database: it does not begin with \"SQLite format 3\"",
    )
}

fn spool_failed(error: io::Error) -> Failure {
    let status = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StatusCode::INSUFFICIENT_STORAGE
        }
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Failure::new(status, format!("cannot keep the upload in the data directory: {error}"))
}

fn take(
    semaphore: &std::sync::Arc<Semaphore>,
    what: &str,
) -> Result<OwnedSemaphorePermit, Failure> {
    semaphore.clone().try_acquire_owned().map_err(|_| {
        Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("too many {what} are running: try again later"),
        )
    })
}

/// Runs file work off the async threads.
pub(super) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, e))
}

impl Failure {
    pub(super) fn from_store(error: litefs_store::Error) -> Self {
        let status = match error.kind() {
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Invalid => StatusCode::BAD_REQUEST,
            ErrorKind::Full => StatusCode::INSUFFICIENT_STORAGE,
            ErrorKind::Busy
            | ErrorKind::StaleSnapshot
            | ErrorKind::ReadOnly
            | ErrorKind::Timeout
            | ErrorKind::Closed => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Io
            | ErrorKind::Corrupt
            | ErrorKind::Mismatch
            | ErrorKind::Gone
            | ErrorKind::Unconfirmed => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error)
    }
}
