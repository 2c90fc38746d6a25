//! The HTTP API: LiteFS's `/info`, `/export`, `/import`, `/promote`, `/handoff`, `/halt`, `/tx`,
//! `/events` and `/metrics`. Beside them `/events/recent`, and a status page at `/`.
//! LiteFS's `/debug/vars` is for this host alone.
//!
//! Every response carries `Litefs-Id` and, once known, `Litefs-Cluster-Id`. Who may ask what is in
//! `access.rs`. Requests that a browser makes for a foreign page are refused: no `Origin` may be
//! given, and from this host the `Host` must name this machine.
//!
//! Bounds: `CONNECTIONS_MAX` connections, fewer of them from strangers, header and stall timeouts,
//! a fixed number of exports and imports at once (`transfer.rs`).

mod access;
mod debug;
mod events;
mod halt;
mod health;
mod info;
mod lease;
mod listen;
mod recent;
mod stall;
mod transfer;
mod ui;
mod view;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};

pub use info::{
    DatabaseInfo, DivergedInfo, Info, LeaseInfo, PrimaryName, ReplicaInfo, ReplicationInfo,
};
pub use view::{LeaseStatus, NodeView, ReplicaStatus, Role, Wish};

pub use self::access::Access;
pub(crate) use self::access::NODE_TOKEN;
pub use self::listen::Server;
pub(crate) use self::listen::stopped;
pub(crate) use self::stall::StallGuard;

use self::access::{Greeted, Peer};
use self::events::EventHub;
use crate::forward::Rights;
use crate::metrics;
use crate::proxy::{self, Proxy};

/// Connections served at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;
/// A request's head must arrive within this time, also the next one's on an idle connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// A client that takes nothing of a response for this long is dropped.
const WRITE_STALL: Duration = Duration::from_secs(30);
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Serves `view` on `listener` (non-blocking) to whom `access` lets in, until
/// [`Server::shutdown`]. What other nodes forward goes to `proxy`. Call it within a tokio runtime.
pub fn start(
    view: Arc<dyn NodeView>,
    listener: std::net::TcpListener,
    access: Arc<Access>,
    proxy: Option<Arc<Proxy>>,
) -> io::Result<Server> {
    Server::start(listener, CONNECTIONS_MAX, |stop| {
        let router = router(Api::new(view, access.clone(), proxy, stop.clone()));
        move |stream, addr| serve(stream, addr, access.clone(), router.clone(), stop.clone())
    })
}

/// What the handlers share.
#[derive(Clone)]
struct Api {
    view: Arc<dyn NodeView>,
    events: Arc<EventHub>,
    exports: Arc<Semaphore>,
    imports: Arc<Semaphore>,
    halts: halt::Halts,
    rights: Rights,
    access: Arc<Access>,
    proxy: Option<Arc<Proxy>>,
    stop: watch::Receiver<bool>,
}

impl Api {
    fn new(
        view: Arc<dyn NodeView>,
        access: Arc<Access>,
        proxy: Option<Arc<Proxy>>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let events = Arc::new(EventHub::new(view.store()));
        events.follow(view.as_ref(), stop.clone());
        Self {
            events,
            exports: Arc::new(Semaphore::new(transfer::EXPORTS_MAX)),
            imports: Arc::new(Semaphore::new(transfer::IMPORTS_MAX)),
            halts: halt::Halts::default(),
            rights: Rights::new(view.store().clone()),
            view,
            access,
            proxy,
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
        let mut response = (self.status, format!("{}\n", self.text)).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            access::ask_for_credentials(response.headers_mut());
        }
        response
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
        .route("/halt", post(halt::halt).delete(halt::release))
        .route("/tx", post(halt::tx))
        .route("/handoff", post(lease::hand_over))
        .route("/events", get(get_events))
        .route("/events/recent", get(get_recent_events))
        .route("/metrics", get(get_metrics))
        .route("/debug/vars", get(debug::vars))
        .route("/health", get(health::all))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .fallback(async || Failure::new(StatusCode::NOT_FOUND, "404 page not found"))
        // A database may be larger than any limit here; it is spooled to disk, not to memory.
        .layer(axum::extract::DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(api.clone(), guard))
        .with_state(api)
}

/// Refuses who may not ask, passes on what other nodes forward, and marks each other response as
/// ours.
async fn guard(
    State(api): State<Api>,
    Extension(peer): Extension<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    if request.headers().contains_key(proxy::FORWARDED) {
        // Never to the API: it comes with a node's credentials, but from anybody.
        let allowed = api.access.check_forwarded(peer, request.headers());
        return match (allowed, &api.proxy) {
            (Err(refused), _) => refused.into_response(),
            (Ok(()), None) => no_proxy().into_response(),
            (Ok(()), Some(proxy)) => {
                request.headers_mut().remove(NODE_TOKEN);
                proxy.serve_forwarded(request).await
            }
        };
    }
    let mut response = match api.access.check(peer, request.uri().path(), request.headers()) {
        Err(refused) => refused.into_response(),
        Ok(()) => next.run(request).await,
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

fn no_proxy() -> Failure {
    Failure::new(StatusCode::NOT_FOUND, "this node has no proxy to forward to: proxy.target")
}

async fn get_info(State(api): State<Api>) -> Result<Response, Failure> {
    let view = api.view.clone();
    let info = transfer::run_blocking(move || Info::of(view.as_ref())).await?;
    let text = serde_json::to_string_pretty(&info)
        .map_err(|e| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, e))?;
    Ok(format!("{text}\n").into_response())
}

async fn get_events(State(api): State<Api>) -> Response {
    let body = api.events.stream(api.view.role(), api.stop.clone());
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

async fn serve(
    stream: TcpStream,
    addr: SocketAddr,
    access: Arc<Access>,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    let greeted = tokio::select! {
        greeted = access.greet(stream, addr) => greeted,
        () = stopped(&mut stop) => None,
    };
    let Some(Greeted { stream, peer, _slot }) = greeted else { return };
    let io = TokioIo::new(stream);
    let router = router.layer(Extension(peer));
    let service = TowerToHyperService::new(router.into_service::<hyper::body::Incoming>());
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(io, service)
        .with_upgrades();
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
mod access_tests;
#[cfg(test)]
mod metrics_tests;
#[cfg(test)]
pub(crate) mod tests;
