//! The HTTP API: LiteFS's `/info`, `/export`, `/import`, `/promote`, `/handoff`, `/events` and
//! `/metrics`. Beside them `/events/recent`, and a status page at `/`.
//!
//! Every response carries `Litefs-Id` and, once known, `Litefs-Cluster-Id`. The API has no
//! authentication yet; so it is bound to loopback (see [`crate::Config::api_addr`]) unless
//! `tls.insecure` opens it. On loopback, requests that a browser makes for a foreign page are
//! refused: the `Host` must name this machine and no `Origin` may be given.
//!
//! Bounds: `CONNECTIONS_MAX` connections, header and stall timeouts, a fixed number of exports
//! and imports at once (`transfer.rs`).

mod events;
mod info;
mod lease;
mod recent;
mod stall;
mod transfer;
mod ui;
mod view;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

pub use info::{DatabaseInfo, DivergedInfo, Info, LeaseInfo, PrimaryName, ReplicaInfo};
pub use view::{LeaseStatus, NodeView, ReplicaStatus, Role, Wish};

use self::events::EventHub;
use self::stall::StallGuard;
use crate::config::{is_loopback, os_hostname};
use crate::metrics;

/// Connections served at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 1024;
/// A request's head must arrive within this time, also the next one's on an idle connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// A client that takes nothing of a response for this long is dropped.
const WRITE_STALL: Duration = Duration::from_secs(30);
const HEAD_BYTES_MAX: usize = 64 << 10;
/// What requests that run at shutdown may still take.
const GRACE: Duration = Duration::from_secs(2);
/// Wait after a failed accept (no descriptors left), so as not to spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A running HTTP server.
pub struct Server {
    addr: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Server {
    /// Serves `view` on `listener` (non-blocking) until [`Server::shutdown`]. Call it within a
    /// tokio runtime.
    pub fn start(view: Arc<dyn NodeView>, listener: std::net::TcpListener) -> io::Result<Self> {
        let listener = TcpListener::from_std(listener)?;
        let addr = listener.local_addr()?;
        let (stop, stopped) = watch::channel(false);
        let router = router(Api::new(view, is_loopback(addr.ip()), stopped.clone()));
        let task = tokio::spawn(accept_loop(listener, router, stopped));
        Ok(Self { addr, stop, task })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Takes no more requests and waits for the running ones, but at most two seconds.
    pub async fn shutdown(self) {
        let _ = self.stop.send(true);
        // A panic in the task was reported when it happened; there is nothing left to stop then.
        let _ = self.task.await;
    }
}

/// What the handlers share.
#[derive(Clone)]
struct Api {
    view: Arc<dyn NodeView>,
    events: Arc<EventHub>,
    exports: Arc<Semaphore>,
    imports: Arc<Semaphore>,
    /// True if only this machine can connect.
    local: bool,
    stop: watch::Receiver<bool>,
}

impl Api {
    fn new(view: Arc<dyn NodeView>, local: bool, stop: watch::Receiver<bool>) -> Self {
        let events = Arc::new(EventHub::new(view.store()));
        events.remember_roles(view.role(), view.transitions(), stop.clone());
        Self {
            events,
            exports: Arc::new(Semaphore::new(transfer::EXPORTS_MAX)),
            imports: Arc::new(Semaphore::new(transfer::IMPORTS_MAX)),
            view,
            local,
            stop,
        }
    }

    fn require_primary(&self) -> Result<(), Failure> {
        let role = self.view.role().borrow().clone();
        if role.is_primary {
            return Ok(());
        }
        let primary = match (role.primary_hostname, role.primary_url) {
            (Some(name), Some(url)) => format!("the primary is {name} at {url}"),
            (Some(name), None) => format!("the primary is {name}"),
            (None, _) => "no primary is known".to_owned(),
        };
        let text = format!("this node is not the primary; {primary}");
        Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, text))
    }
}

/// A refused request: the status and a line that says why.
struct Failure {
    status: StatusCode,
    text: String,
}

impl Failure {
    fn new(status: StatusCode, text: impl ToString) -> Self {
        Self { status, text: text.to_string() }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, format!("{}\n", self.text)).into_response()
    }
}

fn router(api: Api) -> Router {
    Router::new()
        .route("/", get(ui::page))
        .route("/ui", get(ui::page))
        .route("/info", get(get_info))
        .route("/export", get(transfer::export))
        .route("/import", post(transfer::import))
        .route("/promote", post(lease::promote))
        .route("/handoff", post(lease::hand_over))
        .route("/events", get(get_events))
        .route("/events/recent", get(get_recent_events))
        .route("/metrics", get(get_metrics))
        .fallback(async || Failure::new(StatusCode::NOT_FOUND, "404 page not found"))
        // A database may be larger than any limit here; it is spooled to disk, not to memory.
        .layer(axum::extract::DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(api.clone(), guard))
        .with_state(api)
}

/// Refuses what a web page of somebody else could send, and marks each response as ours.
async fn guard(State(api): State<Api>, request: Request, next: Next) -> Response {
    let mut response = match refuse_foreign_page(&api, &request) {
        Some(failure) => failure.into_response(),
        None => next.run(request).await,
    };
    let store = api.view.store();
    let headers = response.headers_mut();
    let id = format!("{:016X}", store.node_id());
    for (name, value) in [("litefs-id", Some(id)), ("litefs-cluster-id", store.cluster_id())] {
        let value = value.and_then(|value| HeaderValue::try_from(value).ok());
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
    response
}

/// Loopback protects from other hosts, but not from the browser on this one: a page can post
/// anywhere (it then sends `Origin`), and can read if its own name resolves to loopback (it then
/// sends that name as `Host`).
fn refuse_foreign_page(api: &Api, request: &Request) -> Option<Failure> {
    if request.headers().contains_key(header::ORIGIN) {
        return Some(Failure::new(StatusCode::FORBIDDEN, "requests from web pages are refused"));
    }
    let host = request.headers().get(header::HOST)?.to_str().ok().unwrap_or("");
    if !api.local || names_this_machine(host) {
        return None;
    }
    let text = format!("Host {host:?} does not name this machine: use localhost or 127.0.0.1");
    Some(Failure::new(StatusCode::FORBIDDEN, text))
}

fn names_this_machine(host: &str) -> bool {
    let bare = match host.rsplit_once(':') {
        Some((bare, port)) if port.bytes().all(|b| b.is_ascii_digit()) => bare,
        _ => host,
    };
    let bare = bare.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().is_ok()
        || bare.eq_ignore_ascii_case("localhost")
        || os_hostname().is_some_and(|own| bare.eq_ignore_ascii_case(&own))
}

async fn get_info(State(api): State<Api>) -> Result<Response, Failure> {
    let view = api.view.clone();
    let info = transfer::run_blocking(move || Info::of(view.as_ref())).await?;
    let text = serde_json::to_string_pretty(&info)
        .map_err(|e| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, e))?;
    Ok(format!("{text}\n").into_response())
}

async fn get_events(State(api): State<Api>) -> Response {
    let body = api.events.stream(api.view.role(), api.view.transitions(), api.stop.clone());
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

async fn get_recent_events(State(api): State<Api>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], api.events.recent()).into_response()
}

async fn get_metrics(State(api): State<Api>) -> Result<Response, Failure> {
    let view = api.view.clone();
    let clients = api.events.clients();
    let text = transfer::run_blocking(move || metrics::render(view, clients)).await?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

async fn accept_loop(listener: TcpListener, router: Router, mut stop: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accept = async {
            let slot = slots.clone().acquire_owned().await;
            (listener.accept().await, slot)
        };
        tokio::select! {
            (accepted, slot) = accept => match accepted {
                Ok((stream, _)) => {
                    let serving = serve(stream, router.clone(), stop.clone());
                    connections.spawn(async move {
                        let _slot = slot;
                        serving.await
                    });
                }
                Err(e) => {
                    tracing::warn!("cannot accept HTTP connections: {e}");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
            // Finished connections give back their memory.
            Some(_) = connections.join_next() => {}
            () = stopped(&mut stop) => break,
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    // What is left after the grace is ended with the set.
    let _ = tokio::time::timeout(GRACE, drained).await;
}

/// Waits for the shutdown.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the server itself is gone, which is a shutdown too.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn serve(stream: TcpStream, router: Router, mut stop: watch::Receiver<bool>) {
    // Events are small and must not wait for more.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(StallGuard::new(stream, WRITE_STALL));
    let service = TowerToHyperService::new(router.into_service::<hyper::body::Incoming>());
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    let result: Result<(), hyper::Error> = tokio::select! {
        result = connection.as_mut() => result,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = result {
        tracing::debug!("HTTP connection ended: {e}");
    }
}

#[cfg(test)]
mod metrics_tests;
#[cfg(test)]
pub(crate) mod tests;
