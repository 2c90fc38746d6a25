//! Sends requests on: to the application beside this node, or to the primary's node.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::uri::{Authority, PathAndQuery, Scheme, Uri};
use axum::http::{HeaderMap, HeaderValue, Method, Request};
use axum::response::Response;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::upgrade::OnUpgrade;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::body::HeldBody;
use super::headers::{self, FORWARDED};
use super::pace::ReadUntil;
use crate::config::{ProxyConfig, Token};
use crate::http::NODE_TOKEN;
use crate::tls::https;

/// How long an application that refuses connections, because it is starting, is asked again.
const TARGET_PATIENCE: Duration = Duration::from_secs(30);
/// Between two such attempts.
const RETRY: Duration = Duration::from_millis(100);
/// Longest wait for the answer to one attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Idle connections are closed before the other side closes them: a request that is sent into
/// a closing connection fails. Node's servers wait 5 s, most others longer.
const IDLE: Duration = Duration::from_secs(4);
const IDLE_CONNECTIONS: usize = 64;
/// Longest head of a response.
const HEAD_BYTES_MAX: usize = 256 << 10;

/// A request on its way, with the headers that go further.
pub(super) struct Outgoing {
    pub(super) method: Method,
    pub(super) path: PathAndQuery,
    headers: HeaderMap,
    body: HeldBody,
    /// The client's connection, if it wants to change its protocol.
    pub(super) upgrade: Option<OnUpgrade>,
}

impl Outgoing {
    /// `None` if the request does not ask for a path (`CONNECT`, `OPTIONS *`).
    pub(super) fn of(mut request: Request<Body>) -> Option<Self> {
        let path = request.uri().path_and_query()?.clone();
        if !path.as_str().starts_with('/') {
            return None;
        }
        let protocol = headers::wanted_protocol(request.headers());
        let upgrade = protocol.as_ref().map(|_| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        headers::strip_hop_by_hop(&mut parts.headers);
        if let Some(protocol) = protocol {
            headers::ask_upgrade(&mut parts.headers, protocol);
        }
        let end = parts.extensions.get().and_then(|ReadUntil(end)| *end);
        let body = HeldBody::new(body, end);
        Some(Self { method: parts.method, path, headers: parts.headers, body, upgrade })
    }

    fn to(&self, scheme: Scheme, authority: Authority) -> Request<HeldBody> {
        let mut uri = axum::http::uri::Parts::default();
        uri.scheme = Some(scheme);
        uri.authority = Some(authority);
        uri.path_and_query = Some(self.path.clone());
        let mut request = Request::new(self.body.clone());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = Uri::from_parts(uri).expect("BUG: all parts of a URL are there");
        *request.headers_mut() = self.headers.clone();
        request
    }
}

/// Why there is no response.
#[derive(Debug)]
pub(super) struct SendError {
    text: String,
    connect: bool,
}

impl SendError {
    /// True if nothing of the request was sent.
    pub(super) fn is_connect(&self) -> bool {
        self.connect
    }

    fn of(error: legacy::Error) -> Self {
        // The innermost error says what happened.
        let mut inner: &dyn Error = &error;
        while let Some(source) = inner.source() {
            inner = source;
        }
        Self { text: inner.to_string(), connect: error.is_connect() }
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy error: {}", self.text)
    }
}

/// How this node proves to the primary's node who it is.
#[derive(Clone, Default)]
pub(crate) struct Link {
    /// With the cluster's certificates.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    /// With the token, which is sent without protection where there are no certificates.
    pub(crate) token: Option<Token>,
}

/// The connections to where requests are sent; kept alive between requests.
pub(super) struct Upstreams {
    target: Authority,
    to_target: Client<Dialer, HeldBody>,
    to_primary: Client<Dialer, HeldBody>,
    /// TLS or not, whatever the primary's URL says.
    scheme: Scheme,
    token: Option<HeaderValue>,
}

impl Upstreams {
    pub(super) fn new(config: &ProxyConfig, link: Link) -> Self {
        let url = config.target.to_string();
        let authority = url.trim_start_matches("http://");
        Self {
            target: authority.parse().expect("BUG: the configuration was checked"),
            to_target: client(Dialer { patience: TARGET_PATIENCE, tls: None }),
            scheme: if link.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP },
            token: link.token.filter(|_| link.tls.is_none()).map(|token| {
                HeaderValue::try_from(token.reveal()).expect("BUG: a token is visible ASCII")
            }),
            to_primary: client(Dialer { patience: Duration::ZERO, tls: link.tls }),
        }
    }

    pub(super) async fn to_target(&self, request: &Outgoing) -> Result<Response, SendError> {
        let request = request.to(Scheme::HTTP, self.target.clone());
        let response = self.to_target.request(request).await.map_err(SendError::of)?;
        Ok(response.map(Body::new))
    }

    /// Sends the request to the node at `url`, as forwarded by the node `mark`.
    pub(super) async fn to_primary(
        &self,
        request: &Outgoing,
        url: &str,
        mark: &HeaderValue,
    ) -> Result<Response, SendError> {
        let failed = |text| SendError { text, connect: false };
        let parts = url.parse::<Uri>().map(Uri::into_parts);
        let Ok(Some(authority)) = parts.map(|parts| parts.authority) else {
            return Err(failed(format!("the primary's URL {url:?} is none")));
        };
        let mut request = request.to(self.scheme.clone(), authority);
        request.headers_mut().insert(FORWARDED, mark.clone());
        if let Some(token) = &self.token {
            request.headers_mut().insert(NODE_TOKEN, token.clone());
        }
        let response = self.to_primary.request(request).await.map_err(SendError::of)?;
        let mut response = response.map(Body::new);
        if response.headers_mut().remove(FORWARDED).is_none() {
            return Err(failed(format!(
                "the primary at {url} has no proxy to forward to, or does not trust this node: it \
                 answered {}",
                response.status()
            )));
        }
        Ok(response)
    }
}

fn client(dialer: Dialer) -> Client<Dialer, HeldBody> {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .http1_max_buf_size(HEAD_BYTES_MAX)
        .build(dialer)
}

/// Passes bytes in both directions until both sides have ended.
pub(super) async fn tunnel(client: OnUpgrade, upstream: OnUpgrade) {
    // Errors are those of either side's connection: the other side is closed then.
    if let Ok((client, upstream)) = tokio::try_join!(client, upstream) {
        let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
        let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
    }
}

/// Opens connections.
#[derive(Clone)]
struct Dialer {
    /// How long a refusal is taken for "not yet".
    patience: Duration,
    tls: Option<Arc<ClientConfig>>,
}

impl tower_service::Service<Uri> for Dialer {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (patience, tls) = (self.patience, self.tls.clone());
        Box::pin(async move {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let port = uri.port_u16().unwrap_or(80);
            let connecting = async {
                let stream = dial(&host, port, patience).await?;
                match tls {
                    Some(tls) => Ok(Stream::new(encrypt(stream, tls).await?)),
                    None => io::Result::Ok(Stream::new(stream)),
                }
            };
            connecting.await.map_err(|e| {
                io::Error::new(e.kind(), format!("cannot connect to {host}:{port}: {e}"))
            })
        })
    }
}

async fn dial(host: &str, port: u16, patience: Duration) -> io::Result<TcpStream> {
    let until = Instant::now() + patience;
    loop {
        let attempt = tokio::time::timeout(CONNECT_TIMEOUT, connect(host, port)).await;
        match attempt.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused && Instant::now() < until => {
                tokio::time::sleep(RETRY).await;
            }
            Err(e) => return Err(e),
            Ok(stream) => {
                // What is sent is often small and must not wait for more.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
        }
    }
}

/// `localhost` is not looked up: that takes a thread, and always gives the same.
async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    if !host.eq_ignore_ascii_case("localhost") {
        return TcpStream::connect((host, port)).await;
    }
    match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        Ok(stream) => Ok(stream),
        Err(first) => TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.map_err(|_| first),
    }
}

async fn encrypt(stream: TcpStream, tls: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let connecting = TlsConnector::from(tls).connect(https::server_name(), stream);
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
    connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// A connection to where a request is sent, plain or encrypted.
struct Stream(TokioIo<Box<dyn Bytes>>);

trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Bytes for S {}

impl Stream {
    fn new(stream: impl Bytes + 'static) -> Self {
        Self(TokioIo::new(Box::new(stream)))
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
