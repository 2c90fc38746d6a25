//! Who may use the API.
//!
//! | a connection from | may do |
//! |---|---|
//! | this host (loopback) | everything |
//! | another host, with a certificate of the cluster | everything but `/debug` |
//! | another host, over TLS, with the token | the same |
//! | another host, with `tls.insecure`: with the token, or without if none is set | the same |
//! | anybody else | [`HEALTH`] |
//!
//! With certificates, one port serves TLS to all and plain HTTP to this host: the first byte tells
//! them apart. A token is a bearer token (`Authorization: Bearer …`), or the password of `Basic`
//! for browsers.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use super::stall::StallGuard;
use super::{Failure, HEAD_TIMEOUT, WRITE_STALL};
use crate::config::{Config, Token, is_loopback, os_hostname};
use crate::tls::{TlsError, TlsMode};

/// The path, with all below it, that tells nothing but whether the node is well.
pub(super) const HEALTH: &str = "/health";
/// What shows the process's insides.
const DEBUG: &str = "/debug";

/// The token of a node that forwards a client's request, whose `Authorization` is the client's.
pub(crate) const NODE_TOKEN: HeaderName = HeaderName::from_static("litefs-token");

/// What a TLS connection begins with.
const TLS_HANDSHAKE: u8 = 0x16;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections of other hosts without a certificate, at once. They cannot take the places of this
/// host's programs.
pub(super) const STRANGERS_MAX: usize = 512;

/// The rules of one API.
pub struct Access {
    tls: Option<(TlsAcceptor, Arc<TlsMode>)>,
    token: Option<Token>,
    trusts_loopback: bool,
    strangers: Arc<Semaphore>,
}

/// Who is at the other end of a connection; an extension of its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// A program on this host.
    Local,
    /// A node of the cluster, or whoever has its key.
    Node,
    /// Another host.
    Stranger { encrypted: bool },
}

/// A connection that was let in.
pub(super) struct Greeted {
    pub(super) stream: Box<dyn Stream>,
    pub(super) peer: Peer,
    pub(super) _slot: Option<OwnedSemaphorePermit>,
}

/// Plain or encrypted bytes.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Access {
    /// The rules that `config` and its certificates give.
    pub(crate) fn new(config: &Config, tls: &Arc<TlsMode>) -> Result<Arc<Self>, TlsError> {
        Self::with(config, tls, true)
    }

    /// `trusts_loopback` false takes this host for any other: for tests, which have no other.
    pub(super) fn with(
        config: &Config,
        tls: &Arc<TlsMode>,
        trusts_loopback: bool,
    ) -> Result<Arc<Self>, TlsError> {
        let server = tls.https_server()?;
        Ok(Arc::new(Self {
            tls: server.map(|server| (TlsAcceptor::from(server), tls.clone())),
            token: config.http.token.clone(),
            trusts_loopback,
            strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
        }))
    }

    /// Finds out who connects; `None` if they do not say it properly or are too many.
    pub(super) async fn greet(&self, stream: TcpStream, addr: SocketAddr) -> Option<Greeted> {
        let local = self.trusts_loopback && is_loopback(addr.ip());
        let slot =
            if local { None } else { Some(self.strangers.clone().try_acquire_owned().ok()?) };
        let plain = if local { Peer::Local } else { Peer::Stranger { encrypted: false } };
        let Some((acceptor, mode)) = &self.tls else {
            let stream = Box::new(StallGuard::new(stream, WRITE_STALL));
            return Some(Greeted { stream, peer: plain, _slot: slot });
        };
        let mut first = [0];
        let peeked = tokio::time::timeout(HEAD_TIMEOUT, stream.peek(&mut first)).await;
        if peeked.ok()?.ok()? == 0 {
            return None;
        }
        let stream = StallGuard::new(stream, WRITE_STALL);
        if first[0] != TLS_HANDSHAKE {
            return Some(Greeted { stream: Box::new(stream), peer: plain, _slot: slot });
        }
        let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await.ok()?;
        let stream =
            stream.inspect_err(|e| tracing::debug!("{addr}: no TLS connection: {e}")).ok()?;
        let node = stream.get_ref().1.peer_certificates().and_then(|c| mode.https_peer(c));
        let (peer, slot) = match node {
            _ if local => (Peer::Local, None),
            // It no longer counts as a stranger.
            Some(_) => (Peer::Node, None),
            None => (Peer::Stranger { encrypted: true }, slot),
        };
        Some(Greeted { stream: Box::new(stream), peer, _slot: slot })
    }

    /// Refuses a request to this API that its sender may not make.
    pub(super) fn check(&self, peer: Peer, path: &str, headers: &HeaderMap) -> Result<(), Failure> {
        if is_below(path, HEALTH) {
            return Ok(());
        }
        if is_below(path, DEBUG) && peer != Peer::Local {
            return Err(forbidden("/debug is for programs on this host only"));
        }
        refuse_foreign_page(peer, headers)?;
        self.admit(peer, || credentials(headers))
    }

    /// Refuses a request that another node claims to forward.
    pub(super) fn check_forwarded(&self, peer: Peer, headers: &HeaderMap) -> Result<(), Failure> {
        self.admit(peer, || headers.get(NODE_TOKEN).map(|token| token.as_bytes().to_vec()))
    }

    fn admit(&self, peer: Peer, given: impl FnOnce() -> Option<Vec<u8>>) -> Result<(), Failure> {
        let Peer::Stranger { encrypted } = peer else { return Ok(()) };
        if self.tls.is_some() && !encrypted {
            return Err(forbidden("other hosts reach this port over HTTPS only"));
        }
        match &self.token {
            Some(token) if given().is_some_and(|given| token.is(&given)) => Ok(()),
            Some(_) => Err(unauthorized()),
            None if self.tls.is_some() => Err(forbidden(
                "a certificate of the cluster is needed here (http.token is not set)",
            )),
            // `tls.insecure` without a token.
            None => Ok(()),
        }
    }
}

fn is_below(path: &str, root: &str) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The token that a request brings.
fn credentials(headers: &HeaderMap) -> Option<Vec<u8>> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.as_bytes().to_vec());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = STANDARD.decode(rest).ok()?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(pair[colon + 1..].to_vec())
}

/// Loopback protects from other hosts, but not from the browser on this one: a page can post
/// anywhere (it then sends `Origin`), and can read if its own name resolves to loopback (it then
/// sends that name as `Host`).
fn refuse_foreign_page(peer: Peer, headers: &HeaderMap) -> Result<(), Failure> {
    if headers.contains_key(header::ORIGIN) {
        return Err(forbidden("requests from web pages are refused"));
    }
    let Some(host) = headers.get(header::HOST) else { return Ok(()) };
    let host = host.to_str().unwrap_or("");
    if peer != Peer::Local || names_this_machine(host) {
        return Ok(());
    }
    let text = format!("Host {host:?} does not name this machine: use localhost or 127.0.0.1");
    Err(forbidden(&text))
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

fn forbidden(text: &str) -> Failure {
    Failure::new(StatusCode::FORBIDDEN, text)
}

fn unauthorized() -> Failure {
    let text = "a token or a certificate of the cluster is needed here";
    Failure::new(StatusCode::UNAUTHORIZED, text)
}

/// Tells a client how to come back; browsers ask for a password then.
pub(super) fn ask_for_credentials(headers: &mut HeaderMap) {
    for scheme in ["Bearer realm=\"litefs\"", "Basic realm=\"litefs\""] {
        headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_as_bearer_or_as_a_password() {
        let given = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            credentials(&headers).map(|token| String::from_utf8(token).unwrap())
        };
        assert_eq!(given("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(given("bearer  abc ").as_deref(), Some("abc"));
        // "x:a:c"
        assert_eq!(given("Basic eDphOmM=").as_deref(), Some("a:c"));
        for nothing in ["abc", "Bearer", "Digest abc", "Basic abc", "Basic eA=="] {
            assert_eq!(given(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn only_whole_path_components_are_open() {
        assert!(is_below("/health", HEALTH) && is_below("/health/live", HEALTH));
        for path in ["/healthy", "/", "/x/health", "//health", "/Health"] {
            assert!(!is_below(path, HEALTH), "{path}");
        }
    }
}
