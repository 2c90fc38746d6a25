//! Read your own writes on every node: a [`tower`] layer for web applications over litefs.
//!
//! [`tower`]: https://docs.rs/tower
//!
//! It does what the middlewares of litefs-js do, and what LiteFS's proxy does for an application
//! in another process:
//!
//! - A write on a replica is not served: `409 Conflict` says where the primary is, in
//!   `fly-replay: instance=<host>` for Fly.io's proxy and in `litefs-primary: <url>` for others.
//!   Without a primary it is `503 Service Unavailable`.
//! - The response to a write on the primary sets a [`Cookie`] that names the newest transaction.
//! - A read with that cookie waits until this node has the transaction. After the time limit it is
//!   answered like a write.
//!
//! GET, HEAD, OPTIONS and TRACE are reads, all other methods are writes. The cookie stays when a
//! node has caught up, since the client's next read may reach another one.
#![forbid(unsafe_code)]

mod cookie;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use tower_layer::Layer;
use tower_service::Service;

pub use cookie::Cookie;

const FLY_REPLAY: HeaderName = HeaderName::from_static("fly-replay");
const PRIMARY: HeaderName = HeaderName::from_static("litefs-primary");

/// What the layer asks the node. `litefs_node::Node::web` has one that answers.
pub trait Cluster: Clone + Send + Sync + 'static {
    /// Who is primary now.
    fn primary(&self) -> Primary;

    /// The number of the newest transaction here; 0 if there is none.
    fn transaction(&self) -> u64;

    /// Waits until the newest transaction here is `transaction` or a later one. False if it is
    /// not after `timeout`.
    fn wait_for(
        &self,
        transaction: u64,
        timeout: Duration,
    ) -> impl Future<Output = bool> + Send + '_;
}

/// Who is primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Primary {
    /// This node.
    ThisNode,
    /// Another node, with what is known of it.
    Other {
        /// Its name.
        hostname: Option<String>,
        /// Its URL.
        url: Option<String>,
    },
    /// Nobody, or nobody that is known.
    Nobody,
}

/// The layer: writes on the primary only, and reads not before the client's own writes.
#[derive(Debug, Clone)]
pub struct ReadYourWrites<C> {
    cluster: C,
    cookie: Cookie,
    timeout: Duration,
}

impl<C: Cluster> ReadYourWrites<C> {
    /// With the cookie `__txid` of LiteFS's proxy, and its time limit of 5 s.
    pub fn new(cluster: C) -> Self {
        Self { cluster, cookie: Cookie::Txid, timeout: Duration::from_secs(5) }
    }

    /// Uses another cookie.
    pub fn cookie(mut self, cookie: Cookie) -> Self {
        self.cookie = cookie;
        self
    }

    /// Changes how long a read waits.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Serves a request here, or says where it must go.
    async fn serve<S, ReqBody, ResBody>(
        self,
        mut inner: S,
        request: Request<ReqBody>,
    ) -> Result<Response<ResBody>, S::Error>
    where
        S: Service<Request<ReqBody>, Response = Response<ResBody>>,
        ResBody: Default + 'static,
    {
        let primary = self.cluster.primary();
        let writes = !request.method().is_safe();
        let wanted = self.cookie.read(request.headers());
        if primary != Primary::ThisNode && (writes || !self.has_caught_up(wanted).await) {
            return Ok(elsewhere(primary));
        }
        let mut response = inner.call(request).await?;
        let transaction = self.cluster.transaction();
        if writes && transaction > 0 {
            response.headers_mut().append(header::SET_COOKIE, self.cookie.set(transaction));
        }
        Ok(response)
    }

    async fn has_caught_up(&self, wanted: Option<u64>) -> bool {
        let Some(wanted) = wanted else { return true };
        self.cluster.transaction() >= wanted || self.cluster.wait_for(wanted, self.timeout).await
    }
}

/// The answer of a node that cannot serve a request itself.
fn elsewhere<B: Default>(primary: Primary) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::CONFLICT;
    let headers = response.headers_mut();
    let Primary::Other { hostname, url } = primary else {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        return response;
    };
    let replay = hostname.map(|hostname| format!("instance={hostname}"));
    for (name, value) in [(FLY_REPLAY, replay), (PRIMARY, url)] {
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            headers.insert(name, value);
        }
    }
    response
}

impl<S, C: Clone> Layer<S> for ReadYourWrites<C> {
    type Service = ReadYourWritesService<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        ReadYourWritesService { inner, layer: self.clone() }
    }
}

/// What [`ReadYourWrites`] makes of a service.
#[derive(Debug, Clone)]
pub struct ReadYourWritesService<S, C> {
    inner: S,
    layer: ReadYourWrites<C>,
}

impl<S, C, ReqBody, ResBody> Service<Request<ReqBody>> for ReadYourWritesService<S, C>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone + Send + 'static,
    S::Future: Send,
    C: Cluster,
    ReqBody: Send + 'static,
    ResBody: Default + 'static,
{
    type Response = Response<ResBody>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        // The one that was asked whether it is ready goes with the request.
        let next = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, next);
        Box::pin(self.layer.clone().serve(inner, request))
    }
}

#[cfg(test)]
mod tests;
