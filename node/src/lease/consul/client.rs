//! Consul's HTTP API, as much of it as the lease needs: sessions and keys.
//!
//! Every request has a deadline, after which its connection is dropped: a Consul that accepts and
//! never answers costs no more than that. Of an answer no more than [`ANSWER_MAX`] bytes are read.
//! Nothing is repeated here: who asks knows what a lost answer may mean.

use std::fs;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, ConsulConfig, percent_encode};
use crate::replication::printable;
use crate::tls;

/// Longest answer. A cluster's keys take a few kilobytes.
const ANSWER_MAX: usize = 4 << 20;
/// Connections that are kept for the next request; Consul closes idle ones later.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Within a transaction, a refusal by the token's rules is told from others by Consul's words.
const DENIED: &str = "Permission denied";

/// Why Consul did not do what it was asked to; the text says where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConsulError {
    /// No connection, or it broke.
    #[error("cannot reach Consul at {url}: {why}; is it running, and is lease.consul.url right?")]
    Unreachable {
        /// Where.
        url: String,
        /// What the system or TLS says.
        why: String,
    },
    /// No answer in time.
    #[error("Consul at {url} did not answer within {timeout:?}")]
    Timeout {
        /// Where.
        url: String,
        /// How long was waited.
        timeout: Duration,
    },
    /// The token does not allow it.
    #[error(
        "Consul at {url} does not allow this node to {what}: {text}; give it a token with \
         key_prefix:write, session_prefix:write and, with a path in the URL, node_prefix:write \
         (the password in lease.consul.url, or CONSUL_HTTP_TOKEN)"
    )]
    Denied {
        /// Where.
        url: String,
        /// What was asked.
        what: &'static str,
        /// Consul's words.
        text: String,
    },
    /// Consul refused or failed.
    #[error("Consul at {url} failed to {what}: {status}: {text}")]
    Failed {
        /// Where.
        url: String,
        /// What was asked.
        what: &'static str,
        /// The HTTP status.
        status: u16,
        /// Consul's words.
        text: String,
    },
    /// What came is no answer of Consul's.
    #[error("{url} does not answer as Consul does when asked to {what}: {why}")]
    Garbled {
        /// Where.
        url: String,
        /// What was asked.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

type Result<T> = std::result::Result<T, ConsulError>;

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The whole key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// The session that holds it.
    pub session: Option<String>,
    /// Consul's index at the last change of it.
    pub modify_index: u64,
}

/// A key and all below it, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// To wait for a change after this; at least 1.
    pub index: u64,
    /// In Consul's order.
    pub pairs: Vec<Pair>,
}

/// A session to be created.
#[derive(Debug, Clone)]
pub struct NewSession {
    /// See [`ConsulConfig::ttl`].
    pub ttl: Duration,
    /// How long keys that the session held are given to nobody once it is lost.
    pub lock_delay: Duration,
}

/// A session in Consul.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Session {
    /// Its id.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its name.
    #[serde(rename = "Name", default)]
    pub name: String,
    /// The node that it belongs to.
    #[serde(rename = "Node", default)]
    pub node: String,
    /// Its time to live, as Go writes it.
    #[serde(rename = "TTL", default)]
    pub ttl: String,
    /// What becomes of its keys when it is lost.
    #[serde(rename = "Behavior", default)]
    pub behavior: String,
    /// In nanoseconds.
    #[serde(rename = "LockDelay", default)]
    pub lock_delay: u64,
}

/// A step of a transaction.
#[derive(Debug, Clone)]
pub enum Step<'a> {
    /// Writes a key and ties it to a session; refused while another session holds it, or the
    /// lock-delay of one that was lost is not over.
    Lock(&'a str, &'a str, Vec<u8>),
    /// Writes a key and frees it from a session, which must hold it.
    Unlock(&'a str, &'a str, Vec<u8>),
    /// Writes a key whose index of its last change must be this one; 0: it must not exist.
    Replace(&'a str, u64, Vec<u8>),
    /// A session must hold the key.
    CheckHeld(&'a str, &'a str),
}

/// What came of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All of it was done, at this index.
    Done(u64),
    /// Nothing was done: the numbers of the steps that were refused, with Consul's words.
    Refused(Vec<(usize, String)>),
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RawStep<'a> {
    #[serde(rename = "KV")]
    kv: RawKv<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RawKv<'a> {
    verb: &'a str,
    key: &'a str,
    /// Base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawOutcome {
    #[serde(default)]
    results: Option<Vec<RawResult>>,
    #[serde(default)]
    errors: Option<Vec<RawRefusal>>,
}

#[derive(Deserialize)]
struct RawResult {
    #[serde(rename = "KV")]
    kv: RawWritten,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawWritten {
    modify_index: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawRefusal {
    op_index: usize,
    what: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawPair {
    key: String,
    /// Base64; Consul sends `null` for an empty value.
    value: Option<String>,
    session: Option<String>,
    modify_index: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Created {
    #[serde(rename = "ID")]
    id: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct SessionBody<'a> {
    name: &'a str,
    /// The catalog's node; absent: the agent's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    behavior: &'a str,
    #[serde(rename = "TTL")]
    ttl: String,
    lock_delay: String,
    /// Without checks: a node's health in Consul must not take its lease.
    node_checks: [&'a str; 0],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Registration<'a> {
    node: &'a str,
    address: &'a str,
}

/// A client of one Consul agent or server. Clones share their connections.
#[derive(Clone)]
pub struct Client {
    http: HttpClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: String,
    token: Option<HeaderValue>,
    /// The catalog's node for our sessions, if the URL has a path.
    node: Option<String>,
    timeout: Duration,
}

/// A request to come.
struct Ask<'a> {
    /// For errors, after "to".
    what: &'static str,
    method: Method,
    /// Below `/v1/`, encoded.
    path: &'a str,
    body: Vec<u8>,
    timeout: Duration,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Client {
    /// `timeout` is each request's.
    ///
    /// # Errors
    /// The token or the certificates cannot be used.
    pub fn new(config: &ConsulConfig, timeout: Duration) -> std::result::Result<Self, ConfigError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls_config(config)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let http = HttpClient::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_timer(TokioTimer::new())
            .build(connector);
        let token = config.url.token().map(|token| {
            let mut value = HeaderValue::try_from(token).map_err(|_| {
                ConfigError::new("the token for Consul has characters that no HTTP header takes")
            })?;
            value.set_sensitive(true);
            Ok(value)
        });
        let prefix = config.url.prefix();
        Ok(Self {
            http,
            base: config.url.base(),
            token: token.transpose()?,
            node: (!prefix.is_empty()).then(|| format!("{prefix}/litefs")),
            timeout,
        })
    }

    /// Makes sure that the catalog has the node of our sessions, if the URL has a path: as LiteFS
    /// does, so that a token that may write only below a prefix is enough.
    pub async fn register_node(&self) -> Result<()> {
        let Some(node) = &self.node else { return Ok(()) };
        let what = "register a node in the catalog";
        let body = to_json(&Registration { node, address: "localhost" });
        self.call(what, Method::PUT, "catalog/register", body).await?.expect_ok(self, what)?;
        Ok(())
    }

    /// Creates a session and returns its id.
    pub async fn create_session(&self, new: &NewSession) -> Result<String> {
        let what = "create a session";
        let body = to_json(&SessionBody {
            name: "litefs",
            node: self.node.as_deref(),
            behavior: "delete",
            ttl: milliseconds(new.ttl),
            lock_delay: milliseconds(new.lock_delay),
            node_checks: [],
        });
        let answer = self.call(what, Method::PUT, "session/create", body).await?;
        let created: Created = answer.expect_ok(self, what)?.json(self, what)?;
        Ok(created.id)
    }

    /// Renews a session; false if Consul does not have it any more.
    pub async fn renew_session(&self, id: &str) -> Result<bool> {
        let what = "renew the session";
        let path = format!("session/renew/{}", encode(id));
        let answer = self.call(what, Method::PUT, &path, Vec::new()).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(false);
        }
        let found: Vec<Session> = answer.expect_ok(self, what)?.json(self, what)?;
        Ok(found.iter().any(|session| session.id == id))
    }

    /// Destroys a session, with every key that it holds. One that is gone already is no error.
    pub async fn destroy_session(&self, id: &str) -> Result<()> {
        let what = "destroy a session";
        let path = format!("session/destroy/{}", encode(id));
        self.call(what, Method::PUT, &path, Vec::new()).await?.expect_ok(self, what)?;
        Ok(())
    }

    /// What Consul knows of a session.
    pub async fn session(&self, id: &str) -> Result<Option<Session>> {
        let what = "look up a session";
        let path = format!("session/info/{}?consistent", encode(id));
        let answer = self.call(what, Method::GET, &path, Vec::new()).await?;
        // Older releases of Consul answer null.
        let found: Option<Vec<Session>> = answer.expect_ok(self, what)?.json(self, what)?;
        Ok(found.into_iter().flatten().next())
    }

    /// Writes a key and ties it to a session; false if another session holds it, or if the
    /// lock-delay of one that was lost is not over.
    pub async fn acquire(&self, key: &str, session: &str, value: Vec<u8>) -> Result<bool> {
        let path = format!("kv/{}?acquire={}", encode(key), encode(session));
        self.put("acquire a key", &path, value).await
    }

    /// Does all steps at one moment, or none.
    pub async fn transact(&self, what: &'static str, steps: &[Step<'_>]) -> Result<Outcome> {
        let steps: Vec<RawStep<'_>> = steps.iter().map(|step| RawStep { kv: step.raw() }).collect();
        let answer = self.call(what, Method::PUT, "txn", to_json(&steps)).await?;
        let answer = match answer.status {
            StatusCode::CONFLICT => answer,
            _ => answer.expect_ok(self, what)?,
        };
        let outcome: RawOutcome = answer.json(self, what)?;
        let refusals = outcome.errors.unwrap_or_default();
        if let Some(denied) = refusals.iter().find(|refusal| refusal.what.contains(DENIED)) {
            let (url, text) = (self.base.clone(), printable(&denied.what));
            return Err(ConsulError::Denied { url, what, text });
        }
        if !refusals.is_empty() {
            let refused = refusals.into_iter().map(|refusal| (refusal.op_index, refusal.what));
            return Ok(Outcome::Refused(refused.collect()));
        }
        let results = outcome.results.unwrap_or_default();
        let newest = results.iter().map(|result| result.kv.modify_index).max();
        newest.map(Outcome::Done).ok_or_else(|| self.garbled(what, "there are no results"))
    }

    /// One key, as Consul's leader knows it at this moment.
    pub async fn get(&self, key: &str) -> Result<Option<Pair>> {
        let path = format!("kv/{}?consistent", encode(key));
        let tree = self.read("read a key", &path, self.timeout).await?;
        Ok(tree.pairs.into_iter().next())
    }

    /// A key and what is below it, as Consul's leader knows it; `after` waits until something has
    /// changed since that index, or for that time. Consul may return early.
    pub async fn tree(&self, key: &str, after: Option<(u64, Duration)>) -> Result<Tree> {
        let mut path = format!("kv/{}?recurse&consistent", encode(key));
        let mut timeout = self.timeout;
        if let Some((index, wait)) = after {
            path.push_str(&format!("&index={index}&wait={}", milliseconds(wait)));
            // Consul adds up to a sixteenth, so that not all wake at once.
            timeout += wait + wait / 16;
        }
        let mut tree = self.read("read the lease", &path, timeout).await?;
        // The query finds every key that begins so.
        let below = format!("{key}/");
        tree.pairs.retain(|pair| pair.key == key || pair.key.starts_with(&below));
        Ok(tree)
    }

    async fn put(&self, what: &'static str, path: &str, value: Vec<u8>) -> Result<bool> {
        let answer = self.call(what, Method::PUT, path, value).await?;
        answer.expect_ok(self, what)?.json(self, what)
    }

    async fn read(&self, what: &'static str, path: &str, timeout: Duration) -> Result<Tree> {
        let ask = Ask { what, method: Method::GET, path, body: Vec::new(), timeout };
        let answer = self.send(ask).await?;
        let answer = match answer.status {
            StatusCode::NOT_FOUND => answer,
            _ => answer.expect_ok(self, what)?,
        };
        let index = answer.headers.get("x-consul-index");
        let index = index.and_then(|value| value.to_str().ok()?.parse().ok());
        let index: u64 = index.ok_or_else(|| self.garbled(what, "there is no X-Consul-Index"))?;
        let raw: Vec<RawPair> = match answer.status {
            StatusCode::NOT_FOUND => Vec::new(),
            _ => answer.json(self, what)?,
        };
        let pairs = raw.into_iter().map(|raw| {
            let value = BASE64.decode(raw.value.unwrap_or_default());
            Ok(Pair {
                value: value.map_err(|error| self.garbled(what, error))?,
                key: raw.key,
                session: raw.session,
                modify_index: raw.modify_index,
            })
        });
        Ok(Tree { index: index.max(1), pairs: pairs.collect::<Result<_>>()? })
    }

    async fn call(
        &self,
        what: &'static str,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Answer> {
        self.send(Ask { what, method, path, body, timeout: self.timeout }).await
    }

    async fn send(&self, ask: Ask<'_>) -> Result<Answer> {
        let (what, timeout) = (ask.what, ask.timeout);
        let mut request =
            Request::builder().method(ask.method).uri(format!("{}/v1/{}", self.base, ask.path));
        if let Some(token) = &self.token {
            request = request.header("x-consul-token", token);
        }
        let request = request.body(Full::new(ask.body.into()));
        let request = request.map_err(|error| self.garbled(what, error))?;
        let exchange = async {
            let response = self.http.request(request).await.map_err(|e| self.unreachable(&e))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_MAX).collect().await;
            let body = body.map_err(|error| self.garbled(what, error))?.to_bytes();
            Ok(Answer { status: head.status, headers: head.headers, body })
        };
        let late = || ConsulError::Timeout { url: self.base.clone(), timeout };
        tokio::time::timeout(timeout, exchange).await.unwrap_or_else(|_| Err(late()))
    }

    /// The innermost cause says most: "connection refused", "invalid peer certificate".
    fn unreachable(&self, error: &dyn std::error::Error) -> ConsulError {
        let mut innermost = error;
        while let Some(source) = innermost.source() {
            innermost = source;
        }
        ConsulError::Unreachable { url: self.base.clone(), why: printable(&innermost.to_string()) }
    }

    fn garbled(&self, what: &'static str, why: impl std::fmt::Display) -> ConsulError {
        ConsulError::Garbled { url: self.base.clone(), what, why: printable(&why.to_string()) }
    }
}

impl<'a> Step<'a> {
    fn raw(&self) -> RawKv<'a> {
        let kv = |verb, key| RawKv { verb, key, value: None, session: None, index: None };
        let value = |value: &[u8]| Some(BASE64.encode(value));
        match self {
            Self::Lock(key, session, new) => {
                RawKv { session: Some(session), value: value(new), ..kv("lock", key) }
            }
            Self::Unlock(key, session, new) => {
                RawKv { session: Some(session), value: value(new), ..kv("unlock", key) }
            }
            Self::Replace(key, index, new) => {
                RawKv { index: Some(*index), value: value(new), ..kv("cas", key) }
            }
            Self::CheckHeld(key, session) => {
                RawKv { session: Some(session), ..kv("check-session", key) }
            }
        }
    }
}

impl Answer {
    /// The answer, unless its status says that nothing was done.
    fn expect_ok(self, client: &Client, what: &'static str) -> Result<Self> {
        if self.status == StatusCode::OK {
            return Ok(self);
        }
        let url = client.base.clone();
        let text = printable(String::from_utf8_lossy(&self.body).trim());
        Err(match self.status {
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => {
                ConsulError::Denied { url, what, text }
            }
            status => ConsulError::Failed { url, what, status: status.as_u16(), text },
        })
    }

    fn json<T: for<'a> Deserialize<'a>>(&self, client: &Client, what: &'static str) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|error| client.garbled(what, error))
    }
}

fn tls_config(config: &ConsulConfig) -> std::result::Result<ClientConfig, ConfigError> {
    let roots = match &config.ca {
        Some(ca) => read_roots(ca)?,
        None if config.url.is_https() => system_roots()?,
        None => RootCertStore::empty(),
    };
    let builder = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| ConfigError::new(format!("cannot set up TLS: {error}")))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn read_roots(ca: &Path) -> std::result::Result<RootCertStore, ConfigError> {
    let failed = |why: &dyn std::fmt::Display| {
        ConfigError::new(format!("lease.consul.ca: {}: {why}", ca.display()))
    };
    let pem = fs::read(ca).map_err(|error| failed(&error))?;
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(&pem) {
        roots.add(cert.map_err(|error| failed(&error))?).map_err(|error| failed(&error))?;
    }
    if roots.is_empty() {
        return Err(failed(&"there is no certificate in it"));
    }
    Ok(roots)
}

/// Those that cannot be read are left out, as everybody does.
fn system_roots() -> std::result::Result<RootCertStore, ConfigError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(ConfigError::new(
            "this system trusts no certificate authority: name Consul's own in lease.consul.ca",
        ));
    }
    Ok(roots)
}

/// Of a request, or of a record that lies in Consul.
pub(super) fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("BUG: plain fields always have a JSON form")
}

/// As Go reads a duration.
fn milliseconds(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

/// Percent-encodes a path or a query's value, but for slashes.
fn encode(text: &str) -> String {
    percent_encode(text, b"/")
}
