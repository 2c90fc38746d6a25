//! Bodies of requests on their way through.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use hyper::body::{Body as _, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// A client that sends nothing of a body for this long is given up.
const STALL: Duration = Duration::from_secs(60);

type Error = Box<dyn std::error::Error + Send + Sync>;

/// A client's body with its time limits.
struct Upload {
    body: Body,
    /// When the next bytes must be there; it runs while they are waited for.
    stall: Pin<Box<Sleep>>,
    waiting: bool,
    /// When the last ones must be.
    end: Option<Pin<Box<Sleep>>>,
}

impl Upload {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.waiting = false;
            return Poll::Ready(frame.map(|frame| frame.map_err(Error::from)));
        }
        if !self.waiting {
            self.waiting = true;
            self.stall.as_mut().reset(Instant::now() + STALL);
        }
        let stalled = self.stall.as_mut().poll(cx).is_ready();
        let over = self.end.as_mut().is_some_and(|end| end.as_mut().poll(cx).is_ready());
        if stalled || over {
            return Poll::Ready(Some(Err("the client did not send its request in time".into())));
        }
        Poll::Pending
    }
}

/// A body that can be offered again while nobody has taken anything of it: a failed attempt to
/// connect does not cost the request. Only one clone may be read.
#[derive(Clone)]
pub(super) struct HeldBody {
    upload: Arc<Mutex<Upload>>,
    hint: SizeHint,
    empty: bool,
}

impl HeldBody {
    /// `end` is when the last byte must be there.
    pub(super) fn new(body: Body, end: Option<Instant>) -> Self {
        let (hint, empty) = (body.size_hint(), body.is_end_stream());
        let end = end.map(|end| Box::pin(sleep_until(end)));
        let upload = Upload { body, stall: Box::pin(sleep(STALL)), waiting: false, end };
        Self { upload: Arc::new(Mutex::new(upload)), hint, empty }
    }
}

impl hyper::body::Body for HeldBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.upload.lock().poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.empty
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn upload(
        end: Option<Duration>,
    ) -> (tokio::sync::mpsc::Sender<Result<Bytes, Error>>, HeldBody) {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        (sender, HeldBody::new(Body::from_stream(stream), end.map(|end| Instant::now() + end)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_may_take_hours_and_a_silent_one_a_minute() {
        let (sender, mut body) = upload(None);
        tokio::spawn(async move {
            for _ in 0..200 {
                tokio::time::sleep(Duration::from_secs(50)).await;
                sender.send(Ok(Bytes::from_static(b"x"))).await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        for _ in 0..200 {
            body.frame().await.unwrap().unwrap();
        }
        let started = Instant::now();
        assert!(body.frame().await.unwrap().is_err());
        assert_eq!(started.elapsed().as_secs(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn read_timeout_bounds_the_whole_request() {
        let (sender, mut body) = upload(Some(Duration::from_secs(3)));
        let started = Instant::now();
        let sending = async {
            while sender.send(Ok(Bytes::from_static(b"x"))).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let reading = async { while body.frame().await.is_some_and(|frame| frame.is_ok()) {} };
        tokio::select! { () = sending => {}, () = reading => {} }
        assert_eq!(started.elapsed().as_secs(), 3);
    }
}
