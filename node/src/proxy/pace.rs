//! The time limits of a client's connection, as Go's HTTP server has them: for a request's head,
//! for idling between requests, and for the response.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::config::ProxyConfig;

/// When the last byte of a request must be there; an extension of the request.
#[derive(Clone, Copy)]
pub(super) struct ReadUntil(pub(super) Option<Instant>);

/// What a connection is doing, and until when it may.
pub(super) struct Pace {
    limits: Limits,
    state: Mutex<State>,
    changed: Notify,
}

struct Limits {
    head: Option<std::time::Duration>,
    request: Option<std::time::Duration>,
    response: Option<std::time::Duration>,
    idle: Option<std::time::Duration>,
}

struct State {
    phase: Phase,
    /// When the phase began.
    since: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A request's head is being read.
    Head,
    /// A request is being served.
    Serving,
    /// The next request is awaited.
    Idle,
}

impl Pace {
    pub(super) fn new(config: &ProxyConfig) -> Arc<Self> {
        let limits = Limits {
            head: config.read_header_timeout,
            request: config.read_timeout,
            response: config.write_timeout,
            idle: config.idle_timeout,
        };
        let state = Mutex::new(State { phase: Phase::Head, since: Instant::now() });
        Arc::new(Self { limits, state, changed: Notify::new() })
    }

    /// Returns when the connection has taken too long.
    pub(super) async fn expired(&self) {
        loop {
            let changed = self.changed.notified();
            match self.deadline() {
                Some(deadline) if Instant::now() >= deadline => return,
                Some(deadline) => {
                    tokio::select! { () = sleep_until(deadline) => {}, () = changed => {} }
                }
                None => changed.await,
            }
        }
    }

    /// A request's head is there. Returns when its last byte must be.
    pub(super) fn head_is_there(&self) -> ReadUntil {
        let mut state = self.state.lock();
        let until = self.limits.request.map(|limit| state.since + limit);
        *state = State { phase: Phase::Serving, since: Instant::now() };
        self.changed.notify_one();
        ReadUntil(until)
    }

    /// The body of a response; when it has been handed out, the connection is idle.
    pub(super) fn track(self: &Arc<Self>, body: Body) -> Body {
        Body::new(Tracked { body, pace: self.clone() })
    }

    fn deadline(&self) -> Option<Instant> {
        let state = self.state.lock();
        let limit = match state.phase {
            Phase::Head => self.limits.head,
            Phase::Serving => self.limits.response,
            Phase::Idle => self.limits.idle,
        };
        limit.map(|limit| state.since + limit)
    }

    fn change(&self, from: Phase, to: Phase) {
        let mut state = self.state.lock();
        if state.phase == from {
            *state = State { phase: to, since: Instant::now() };
            self.changed.notify_one();
        }
    }
}

/// A response's body that notes its end.
struct Tracked {
    body: Body,
    pace: Arc<Pace>,
}

impl hyper::body::Body for Tracked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.pace.change(Phase::Serving, Phase::Idle);
    }
}

/// A client's connection that notes when bytes come and go.
pub(super) struct Paced<S> {
    stream: S,
    pace: Arc<Pace>,
}

impl<S> Paced<S> {
    pub(super) fn new(stream: S, pace: Arc<Pace>) -> Self {
        Self { stream, pace }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.pace.change(Phase::Idle, Phase::Head);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        if matches!(result, Poll::Ready(Ok(1..))) {
            // The end of a response that the client takes slowly.
            self.pace.change(Phase::Idle, Phase::Idle);
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
