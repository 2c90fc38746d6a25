//! Talks to a node's HTTP API: one connection for each request.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;

use super::CliError;
use crate::config::{Endpoint, Token, percent_encode};
use crate::tls::https;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest answer that is kept in memory: `/info` of 10,000 databases is about 3 MB.
const TEXT_MAX: usize = 64 << 20;

/// A node's API.
pub(super) struct Client {
    /// As it was given.
    url: String,
    endpoint: Endpoint,
    token: Option<Token>,
    tls: Option<Arc<ClientConfig>>,
    runtime: Runtime,
}

/// Plain or encrypted bytes.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Client {
    /// With the token, and over TLS if there is a configuration for it.
    pub(super) fn with(
        url: &str,
        token: Option<Token>,
        tls: Option<Arc<ClientConfig>>,
    ) -> Result<Self, CliError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { url: url.to_owned(), endpoint: url.parse()?, token, tls, runtime })
    }

    /// The node's address, for messages.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Runs requests to their end.
    pub(super) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Sends a request; any status but 200 is an error with the node's own words.
    pub(super) async fn send<B>(
        &self,
        method: &str,
        path_and_query: &str,
        length: Option<u64>,
        body: B,
    ) -> Result<Response<Incoming>, CliError>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.failed(&e))?;
        // Its errors reach the request.
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path_and_query)
            .header("host", format!("{}:{}", self.endpoint.host(), self.endpoint.port()));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {}", token.reveal()));
        }
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        let request = request.body(body).map_err(|e| CliError::new(e.to_string()))?;
        let response = sender.send_request(request).await.map_err(|e| self.failed(&e))?;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        let status = response.status();
        let text = read_text(response).await.unwrap_or_default();
        let text = if text.trim().is_empty() { status.to_string() } else { text };
        Err(CliError::new(format!("{}: {}", self.url, text.trim())))
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, CliError> {
        let (host, port) = (self.endpoint.host(), self.endpoint.port());
        let stream = in_time(TcpStream::connect((host, port))).await.map_err(|e| {
            CliError::new(format!(
                "no node answers at {}: {e}; is it running, and is --url its http.addr?",
                self.url
            ))
        })?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let connecting = TlsConnector::from(tls.clone()).connect(https::server_name(), stream);
        let stream = in_time(connecting).await.map_err(|e| {
            CliError::new(format!(
                "no TLS connection to {host}:{port}: {e}; is that a node with certificates, and of \
                 this cluster?"
            ))
        })?;
        Ok(Box::new(stream))
    }

    pub(super) fn failed(&self, error: &dyn std::fmt::Display) -> CliError {
        CliError::new(format!("the connection to {} broke: {error}", self.url))
    }
}

async fn in_time<T>(connecting: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
    connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The whole body as text.
pub(super) async fn read_text(response: Response<Incoming>) -> Result<String, CliError> {
    let body = Limited::new(response.into_body(), TEXT_MAX);
    let bytes = body.collect().await.map_err(|e| CliError::new(e.to_string()))?.to_bytes();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Percent-encodes a query value.
pub(super) fn query_value(text: &str) -> String {
    percent_encode(text, b"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_become_another_request() {
        assert_eq!(query_value("a b&x=1/ü.db"), "a%20b%26x%3D1%2F%C3%BC.db");
    }

    #[test]
    fn no_node_is_explained() {
        // A port that was free a moment ago, and that nobody is told of.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let client = Client::with(&format!("http://127.0.0.1:{port}"), None, None).unwrap();
        let error = client.block_on(client.connect()).err().unwrap();
        assert!(error.0.contains("no node answers") && error.0.contains("--url"), "{}", error.0);
    }
}
