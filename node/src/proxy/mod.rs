//! The HTTP proxy before the application, as LiteFS's: a client reads its own writes on every
//! node, and writes reach the primary wherever they arrive.
//!
//! | request | what is done |
//! |---|---|
//! | its path matches `passthrough` | to the application, nothing else |
//! | `GET /litefs/health` | `OK`, or 503 if the lag exceeds `max-lag` |
//! | GET, HEAD | waits up to 5 s for the position in the cookie `__txid`; then to the application |
//! | others, or `always-forward` matches | to the primary's application; its answer sets `__txid` |
//!
//! A replica *forwards* a write: it sends it to the primary's API port, marked by the header
//! [`FORWARDED`], whose value is the replica's id. So there is no other address to configure or
//! to open, and between hosts the certificates of the cluster protect what is forwarded. The node
//! there gives a marked request to its own application or, unless it is the primary, refuses
//! it: a request passes from node to node at most once.
//!
//! Bodies are streamed, in both directions; nothing is kept but what is on the way.

mod body;
mod cookie;
mod headers;
mod pace;
mod position;
mod server;
mod upstream;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Method, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use litefs_ltx::Txid;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::config::{PathPattern, PrimaryRedirect, ProxyConfig};
use crate::http::{NodeView, Role, stopped};
use upstream::{Outgoing, Upstreams};

pub use headers::FORWARDED;
pub(crate) use position::Position;
pub use server::start;
pub(crate) use upstream::Link;

/// LiteFS's page for health checks.
const HEALTH_PATH: &str = "/litefs/health";
/// How long a read waits for its client's position, as in LiteFS.
const READ_WAIT: Duration = Duration::from_secs(5);
/// Between attempts to reach a primary that refuses connections.
const RETRY: Duration = Duration::from_millis(100);
/// Upgraded connections (WebSockets) at once.
const TUNNELS_MAX: usize = 8192;

/// Decides where each request goes.
pub struct Proxy {
    config: ProxyConfig,
    view: Arc<dyn NodeView>,
    /// This node's id, as the mark of what it forwards.
    mark: HeaderValue,
    position: Position,
    upstreams: Upstreams,
    tunnels: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
}

/// Where a request must go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Passthrough,
    Health,
    Read,
    Write,
}

impl Proxy {
    /// A proxy that speaks for `view` and reaches the primary over `link`; its tunnels end with
    /// `stop`.
    pub(crate) fn new(
        config: ProxyConfig,
        view: Arc<dyn NodeView>,
        link: Link,
        stop: watch::Receiver<bool>,
    ) -> Arc<Self> {
        let id = format!("{:016X}", view.store().node_id());
        let mark = HeaderValue::try_from(id).expect("BUG: hex digits are a header's value");
        Arc::new(Self {
            mark,
            position: Position::of(&view, config.db.clone()),
            upstreams: Upstreams::new(&config, link),
            tunnels: Arc::new(Semaphore::new(TUNNELS_MAX)),
            config,
            view,
            stop,
        })
    }

    /// Serves a client that connects from `peer`.
    async fn serve(&self, mut request: Request<Body>, peer: IpAddr) -> Response {
        let kind = self.kind(&request);
        let wanted = cookie::position(request.headers());
        headers::describe_client(request.headers_mut(), peer);
        let Some(request) = Outgoing::of(request) else {
            return failure(StatusCode::BAD_REQUEST, "Proxy error: this request has no path");
        };
        match kind {
            Kind::Passthrough => {
                self.log(&request, "matches passthrough, to the application");
                self.to_target(request, false).await
            }
            Kind::Health => self.health(),
            Kind::Read => self.read(request, wanted).await,
            Kind::Write => self.write(request).await,
        }
    }

    /// Serves what another node has forwarded, on the word of that node that this is the primary.
    pub async fn serve_forwarded(&self, mut request: Request<Body>) -> Response {
        request.headers_mut().remove(FORWARDED);
        let Some(request) = Outgoing::of(request) else {
            return failure(StatusCode::BAD_REQUEST, "Proxy error: this request has no path");
        };
        // The other node may know the new primary before it knows so itself.
        let mut role = self.view.role();
        let promoted = role.wait_for(|role| role.is_primary);
        let promoted = tokio::time::timeout(self.config.primary_redirect_timeout, promoted).await;
        let mut response = if promoted.is_ok_and(|promoted| promoted.is_ok()) {
            self.log(&request, "forwarded by another node, to the application");
            self.to_target(request, true).await
        } else {
            self.log(&request, "forwarded by another node, but this is not the primary");
            no_primary()
        };
        response.headers_mut().insert(FORWARDED, self.mark.clone());
        response
    }

    fn kind(&self, request: &Request<Body>) -> Kind {
        let path = headers::decoded_path(request.uri().path());
        let among = |patterns: &[PathPattern]| patterns.iter().any(|p| p.matches(&path));
        let method = request.method();
        if among(&self.config.passthrough) {
            Kind::Passthrough
        } else if method == Method::GET && path == HEALTH_PATH.as_bytes() {
            Kind::Health
        } else if [Method::GET, Method::HEAD].contains(method)
            && !among(&self.config.always_forward)
        {
            Kind::Read
        } else {
            Kind::Write
        }
    }

    fn health(&self) -> Response {
        match (self.view.lag(), self.config.max_lag) {
            (Some(lag), Some(most)) if lag > most => {
                failure(StatusCode::SERVICE_UNAVAILABLE, "Replication lag exceeded")
            }
            _ => text(StatusCode::OK, "OK\n".to_owned()),
        }
    }

    async fn read(&self, request: Outgoing, wanted: Option<Txid>) -> Response {
        if let Some(txid) = wanted {
            let reached = self.position.reached(&self.view, txid);
            if tokio::time::timeout(READ_WAIT, reached).await.is_err() {
                self.log(&request, &format!("transaction {txid} has not arrived, proxy timeout"));
                return failure(StatusCode::GATEWAY_TIMEOUT, "Proxy timeout");
            }
        }
        self.log(&request, "a read, to the application");
        self.to_target(request, false).await
    }

    async fn write(&self, request: Outgoing) -> Response {
        let deadline = Instant::now() + self.config.primary_redirect_timeout;
        let mut role = self.view.role();
        loop {
            let error = match self.place_for_writes(&mut role, deadline).await {
                None => {
                    self.log(&request, "no primary available");
                    return no_primary();
                }
                Some(Place::Here) => {
                    self.log(&request, "this node is the primary, to the application");
                    return self.to_target(request, true).await;
                }
                Some(Place::Replay(hostname)) => {
                    self.log(&request, "fly-replay to the primary");
                    return fly_replay(&hostname);
                }
                Some(Place::At(url)) => {
                    self.log(&request, &format!("to the primary at {url}"));
                    match self.upstreams.to_primary(&request, &url, &self.mark).await {
                        Ok(response) => return self.answer(request, response),
                        Err(error) => error,
                    }
                }
            };
            if !error.is_connect() {
                return failure(StatusCode::BAD_GATEWAY, &error);
            }
            // Nothing was sent, and another node may become the primary.
            if Instant::now() >= deadline {
                return failure(StatusCode::SERVICE_UNAVAILABLE, &error);
            }
            let wait = tokio::time::sleep_until(deadline.min(Instant::now() + RETRY));
            tokio::select! {
                // An error means that the node shuts down, which the deadline ends too.
                Ok(()) = role.changed() => {}
                () = wait => {}
            }
        }
    }

    /// Waits until it is known where writes go; `None` after the deadline.
    async fn place_for_writes(
        &self,
        role: &mut watch::Receiver<Role>,
        deadline: Instant,
    ) -> Option<Place> {
        let redirect = self.config.primary_redirect;
        let known = role.wait_for(|role| Place::of(role, redirect).is_some());
        let role = tokio::time::timeout_at(deadline, known).await.ok()?.ok()?;
        Place::of(&role, redirect)
    }

    async fn to_target(&self, request: Outgoing, sets_cookie: bool) -> Response {
        let response = match self.upstreams.to_target(&request).await {
            Ok(response) => response,
            Err(error) => return failure(StatusCode::BAD_GATEWAY, &error),
        };
        let mut response = self.answer(request, response);
        if let (true, Some(txid)) = (sets_cookie, self.position.now(&self.view)) {
            response.headers_mut().append(header::SET_COOKIE, cookie::set(txid));
        }
        response
    }

    /// The response for the client. A connection that changes its protocol becomes a tunnel.
    fn answer(&self, mut request: Outgoing, mut response: Response) -> Response {
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            headers::strip_hop_by_hop(response.headers_mut());
            return response;
        }
        let upstream = hyper::upgrade::on(&mut response);
        let protocol = response.headers_mut().remove(header::UPGRADE);
        headers::strip_hop_by_hop(response.headers_mut());
        let (Some(client), Some(protocol)) = (request.upgrade.take(), protocol) else {
            let text = "Proxy error: the application changed a protocol that nobody asked for";
            return failure(StatusCode::BAD_GATEWAY, text);
        };
        let Ok(slot) = self.tunnels.clone().try_acquire_owned() else {
            let text = "Proxy error: too many upgraded connections";
            return failure(StatusCode::SERVICE_UNAVAILABLE, text);
        };
        headers::ask_upgrade(response.headers_mut(), protocol);
        let mut stop = self.stop.clone();
        tokio::spawn(async move {
            let _slot = slot;
            tokio::select! {
                () = upstream::tunnel(client, upstream) => {}
                () = stopped(&mut stop) => {}
            }
        });
        response
    }

    fn log(&self, request: &Outgoing, what: &str) {
        if self.config.debug {
            tracing::info!("proxy: {} {}: {what}", request.method, request.path.path());
        }
    }
}

/// Where writes go.
enum Place {
    Here,
    /// The primary's URL.
    At(String),
    /// The primary's name, for Fly.io's proxy.
    Replay(String),
}

impl Place {
    fn of(role: &Role, redirect: PrimaryRedirect) -> Option<Self> {
        match redirect {
            _ if role.is_primary => Some(Self::Here),
            PrimaryRedirect::Forward => role.primary_url.clone().map(Self::At),
            PrimaryRedirect::FlyReplay => role.primary_hostname.clone().map(Self::Replay),
        }
    }
}

fn fly_replay(hostname: &str) -> Response {
    match HeaderValue::try_from(format!("instance={hostname}")) {
        Ok(instance) => ([("fly-replay", instance)], Body::empty()).into_response(),
        Err(_) => failure(StatusCode::BAD_GATEWAY, "Proxy error: the primary's name is no header"),
    }
}

fn no_primary() -> Response {
    failure(StatusCode::SERVICE_UNAVAILABLE, "Proxy error: no primary available")
}

/// An error page as Go's HTTP server writes it.
fn failure(status: StatusCode, message: impl std::fmt::Display) -> Response {
    let mut page = text(status, format!("{message}\n"));
    let nosniff = HeaderValue::from_static("nosniff");
    page.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    page
}

fn text(status: StatusCode, text: String) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

#[cfg(test)]
mod tests;
