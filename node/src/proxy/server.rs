//! The proxy's port.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::Proxy;
use super::pace::{Pace, Paced};
use crate::http::{Server, StallGuard, stopped};

/// Clients served at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 8192;
/// A client that takes nothing of a response for this long is dropped.
const WRITE_STALL: Duration = Duration::from_secs(60);
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Serves clients on `listener` (non-blocking) until [`Server::shutdown`]. Call it within a tokio
/// runtime.
pub fn start(proxy: Arc<Proxy>, listener: std::net::TcpListener) -> io::Result<Server> {
    Server::start(listener, CONNECTIONS_MAX, |stop| {
        move |stream, peer: SocketAddr| serve(stream, peer.ip(), proxy.clone(), stop.clone())
    })
}

async fn serve(
    stream: TcpStream,
    peer: IpAddr,
    proxy: Arc<Proxy>,
    mut stop: watch::Receiver<bool>,
) {
    let pace = Pace::new(&proxy.config);
    let io = TokioIo::new(Paced::new(StallGuard::new(stream, WRITE_STALL), pace.clone()));
    let at = pace.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(at.head_is_there());
        let (proxy, pace) = (proxy.clone(), at.clone());
        async move {
            let response = proxy.serve(request.map(Body::new), peer).await;
            Ok::<_, Infallible>(response.map(|body| pace.track(body)))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(io, service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = pace.expired() => return tracing::debug!("dropped {peer}: it took too long"),
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = result {
        tracing::debug!("the connection of {peer} ended: {e}");
    }
}
