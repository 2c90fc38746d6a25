//! Every endpoint, asked with every kind of credentials: who is refused changes nothing.

use std::path::PathBuf;

use axum::body::Body;
use axum::http::Request;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::tests::{Fixture, sqlite_file};
use super::*;
use crate::config::{Config, ProxyConfig, Token};
use crate::proxy::Link;
use crate::tls::{TlsMode, https, tests as certificates};

const LIMIT: Duration = Duration::from_secs(60);
const TOKEN: &str = "the-right-token-0123456789";

/// Each endpoint, and whether it is open to everybody. `POST` brings a database.
const ENDPOINTS: [(&str, &str, bool); 16] = [
    ("GET", "/", false),
    ("GET", "/ui", false),
    ("GET", "/info", false),
    ("GET", "/export?name=a.db", false),
    ("POST", "/import?name=new.db", false),
    ("POST", "/promote", false),
    ("POST", "/handoff?nodeID=7", false),
    ("POST", "/halt?name=a.db&id=1", false),
    ("POST", "/tx?name=a.db&lockID=1", false),
    ("DELETE", "/halt?name=a.db&id=1", false),
    ("GET", "/events", false),
    ("GET", "/events/recent", false),
    ("GET", "/metrics", false),
    ("GET", "/health", true),
    ("GET", "/health/live", true),
    ("GET", "/health/ready", true),
];

/// What leads nowhere, and must not lead past the door on its way there.
const NOWHERE: [(&str, &str); 6] = [
    ("GET", "/nothing"),
    ("GET", "//health"),
    ("GET", "/healthy"),
    ("POST", "/x/../import?name=new.db"),
    ("GET", "/%69nfo"),
    ("OPTIONS", "/info"),
];

/// What only programs on this host may see, should it be there.
const DEBUG_PATHS: [&str; 3] = ["/debug", "/debug/vars", "/debug/pprof/heap"];

const TRAVERSALS: [&str; 6] = ["..%2F..%2Fx", "../x", "%2Fetc%2Fx", "..", ".hidden", "a%00b"];

/// What a client shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    Nothing,
    WrongToken,
    WrongPassword,
    /// As the client of the application would have one.
    TokenForTheApplication,
    OtherAuthority,
    OtherCluster,
    RightToken,
    RightPassword,
    RightCertificate,
    /// The right token, but not over TLS.
    PlainToken,
}

const ALL: [Shown; 10] = [
    Shown::Nothing,
    Shown::WrongToken,
    Shown::WrongPassword,
    Shown::TokenForTheApplication,
    Shown::OtherAuthority,
    Shown::OtherCluster,
    Shown::RightToken,
    Shown::RightPassword,
    Shown::RightCertificate,
    Shown::PlainToken,
];

impl Shown {
    fn header(self) -> String {
        match self {
            Self::WrongToken => "Authorization: Bearer the-wrong-token-0123456789\r\n".to_owned(),
            // user:the-wrong-token-0123456789
            Self::WrongPassword => {
                "Authorization: Basic dXNlcjp0aGUtd3JvbmctdG9rZW4tMDEyMzQ1Njc4OQ==\r\n".to_owned()
            }
            Self::TokenForTheApplication => format!("Litefs-Token: {TOKEN}\r\n"),
            Self::RightToken | Self::PlainToken => format!("Authorization: Bearer {TOKEN}\r\n"),
            // user:the-right-token-0123456789
            Self::RightPassword => {
                "Authorization: Basic dXNlcjp0aGUtcmlnaHQtdG9rZW4tMDEyMzQ1Njc4OQ==\r\n".to_owned()
            }
            _ => String::new(),
        }
    }
}

/// The certificates of this test.
struct Certificates {
    server: Arc<TlsMode>,
    right: Arc<ClientConfig>,
    other_authority: Arc<ClientConfig>,
    other_cluster: Arc<ClientConfig>,
    none: Arc<ClientConfig>,
}

impl Certificates {
    fn new() -> Self {
        let [server, right, neighbour] =
            certificates::nodes_of_one_authority(["ours", "ours", "theirs"]);
        let [foreign] = certificates::nodes_of_one_authority(["ours"]);
        Self {
            right: right.https_client().unwrap().unwrap(),
            other_authority: certificates::client_with_certificate_of(&foreign, &server),
            other_cluster: neighbour.https_client().unwrap().unwrap(),
            none: certificates::client_without_certificate(&server),
            server: Arc::new(server),
        }
    }

    fn client(&self, shown: Shown) -> Arc<ClientConfig> {
        match shown {
            Shown::RightCertificate => self.right.clone(),
            Shown::OtherAuthority => self.other_authority.clone(),
            Shown::OtherCluster => self.other_cluster.clone(),
            _ => self.none.clone(),
        }
    }
}

/// An API that treats this host as any other.
struct Place {
    fixture: Fixture,
    certificates: Certificates,
    encrypted: bool,
}

impl Place {
    fn start(encrypted: bool, token: bool) -> Self {
        let certificates = Certificates::new();
        let mut config = Config::new("/none");
        config.http.token = token.then(|| Token::new(TOKEN).unwrap());
        config.tls.insecure = !encrypted;
        let open = || Arc::new(TlsMode::load(&config).unwrap());
        let tls = if encrypted { certificates.server.clone() } else { open() };
        let access = Access::with(&config, &tls, false).unwrap();
        let fixture = Fixture::start_with(|node, listener| {
            let proxy =
                ProxyConfig::new(([127, 0, 0, 1], 0).into(), "127.0.0.1:9", "a.db").unwrap();
            let stop = watch::channel(false).1;
            let proxy = Proxy::new(proxy, node.clone(), Link::default(), stop);
            start(node.clone(), listener, access, Some(proxy)).unwrap()
        });
        Self { fixture, certificates, encrypted }
    }

    /// The status of the answer; 0 if the connection was refused.
    async fn ask(&self, shown: Shown, method: &str, path: &str, more: &str) -> u16 {
        let stream = TcpStream::connect(self.fixture.server.local_addr()).await.unwrap();
        let work = async {
            if !self.encrypted || shown == Shown::PlainToken {
                return ask_on(stream, shown, method, path, more).await;
            }
            let connector = TlsConnector::from(self.certificates.client(shown));
            match connector.connect(https::server_name(), stream).await {
                Ok(stream) => ask_on(stream, shown, method, path, more).await,
                Err(_) => 0,
            }
        };
        tokio::time::timeout(LIMIT, work).await.expect("an answer")
    }

    fn state(&self) -> (Vec<PathBuf>, u64) {
        (self.fixture.files(), self.fixture.txid("a.db"))
    }
}

async fn ask_on(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    shown: Shown,
    method: &str,
    path: &str,
    more: &str,
) -> u16 {
    let body = if method == "POST" { sqlite_file(1) } else { Vec::new() };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: db1.example\r\nContent-Length: {}\r\n{}{more}\r\n",
        body.len(),
        shown.header()
    );
    // A refusal may come before everything is sent.
    let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
    let mut start = [0; 12];
    match stream.read_exact(&mut start).await {
        Ok(_) => String::from_utf8_lossy(&start[9..]).parse().unwrap(),
        Err(_) => 0,
    }
}

/// A route without a line in the table above would not be tried.
#[test]
fn every_route_is_in_the_table() {
    let source = include_str!("mod.rs");
    let routes = source.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next());
    for route in routes {
        let known = ENDPOINTS.iter().any(|(_, path, _)| path.split('?').next() == Some(route));
        assert!(known || DEBUG_PATHS.contains(&route), "{route} is not in ENDPOINTS");
    }
}

async fn try_everything(place: &Place, may: impl Fn(Shown) -> bool) {
    for shown in ALL {
        let before = place.state();
        for (method, path, open) in ENDPOINTS {
            // What may be done is tried last.
            if may(shown) && method == "POST" {
                continue;
            }
            let status = place.ask(shown, method, path, "").await;
            let expected: &[u16] = match (may(shown), open) {
                (true, _) => &[200],
                (false, true) => &[200, 0],
                (false, false) => &[401, 403, 0],
            };
            assert!(expected.contains(&status), "{shown:?} {method} {path}: {status}");
        }
        for (method, path) in NOWHERE {
            let status = place.ask(shown, method, path, "").await;
            let expected: &[u16] = if may(shown) { &[404, 405] } else { &[401, 403, 0] };
            assert!(expected.contains(&status), "{shown:?} {method} {path}: {status}");
        }
        for path in DEBUG_PATHS {
            let status = place.ask(shown, "GET", path, "").await;
            assert!([403, 0].contains(&status), "{shown:?} {path}: {status}");
        }
        for name in TRAVERSALS {
            for (method, verb) in [("POST", "import"), ("GET", "export"), ("POST", "halt")] {
                let status =
                    place.ask(shown, method, &format!("/{verb}?id=1&name={name}"), "").await;
                let expected: &[u16] = if may(shown) { &[400] } else { &[401, 403, 0] };
                assert!(expected.contains(&status), "{shown:?} {method} {name}: {status}");
            }
        }
        assert_eq!(place.state(), before, "{shown:?} changed something");
        if may(shown) {
            assert_eq!(place.ask(shown, "POST", "/import?name=a.db", "").await, 200);
            assert_eq!(place.state().1, before.1 + 1);
        }
    }
}

#[tokio::test]
async fn with_certificates_and_a_token_only_these_open_the_api() {
    let place = Place::start(true, true);
    place.fixture.import_here("a.db", 1);
    let right = [Shown::RightToken, Shown::RightPassword, Shown::RightCertificate];
    try_everything(&place, |shown| right.contains(&shown)).await;
}

#[tokio::test]
async fn with_certificates_alone_no_token_opens_the_api() {
    let place = Place::start(true, false);
    place.fixture.import_here("a.db", 1);
    try_everything(&place, |shown| shown == Shown::RightCertificate).await;
}

#[tokio::test]
async fn an_insecure_node_with_a_token_asks_for_it() {
    let place = Place::start(false, true);
    place.fixture.import_here("a.db", 1);
    let right = [Shown::RightToken, Shown::RightPassword, Shown::PlainToken];
    try_everything(&place, |shown| right.contains(&shown)).await;
}

#[tokio::test]
async fn an_insecure_node_without_a_token_is_open() {
    let place = Place::start(false, false);
    place.fixture.import_here("a.db", 1);
    try_everything(&place, |_| true).await;
}

/// The application there does not exist: 502 means that it would have been asked.
#[tokio::test]
async fn nobody_forwards_to_the_application_without_a_nodes_credentials() {
    let forwarded = "Litefs-Forwarded: 00000000000000AB\r\n";
    for (encrypted, token, right) in [
        (true, true, &[Shown::RightCertificate, Shown::TokenForTheApplication][..]),
        (true, false, &[Shown::RightCertificate]),
        (false, true, &[Shown::TokenForTheApplication]),
    ] {
        let place = Place::start(encrypted, token);
        for shown in ALL {
            // A passthrough of 30 s of retries is not waited for: the connection stays open.
            let asking = place.ask(shown, "POST", "/x", forwarded);
            let asked = tokio::time::timeout(Duration::from_millis(300), asking).await;
            let passed = asked.is_err();
            assert_eq!(passed, right.contains(&shown), "{encrypted} {token} {shown:?} {asked:?}");
        }
    }
}

#[tokio::test]
async fn a_browser_is_asked_for_a_password_and_a_page_of_others_is_refused() {
    let place = Place::start(false, true);
    let stream = TcpStream::connect(place.fixture.server.local_addr()).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("/info").header("host", "db1.example").body(Body::empty()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 401);
    let schemes: Vec<_> = response.headers().get_all("www-authenticate").iter().collect();
    assert_eq!(schemes, ["Bearer realm=\"litefs\"", "Basic realm=\"litefs\""]);
    let origin = "Origin: http://evil.example\r\n";
    assert_eq!(place.ask(Shown::RightPassword, "POST", "/import?name=x", origin).await, 403);
    assert!(place.fixture.node.store.databases().is_empty());
}

/// One port for TLS and, from this host, for plain HTTP: litefs-go speaks no TLS.
#[tokio::test]
async fn this_host_needs_no_credentials_with_or_without_tls() {
    let certificates = Certificates::new();
    let config = Config::new("/none").with_token(Token::new(TOKEN).unwrap());
    let access = Access::new(&config, &certificates.server).unwrap();
    let fixture =
        Fixture::start_with(|node, listener| start(node.clone(), listener, access, None).unwrap());
    let connect = || TcpStream::connect(fixture.server.local_addr());
    let host = |status, stream| async move {
        assert_eq!(ask_on_as(stream, "localhost").await, status);
    };
    host(200, Box::new(connect().await.unwrap()) as Box<dyn AnyStream>).await;
    let connector = TlsConnector::from(certificates.none.clone());
    let encrypted = connector.connect(https::server_name(), connect().await.unwrap());
    host(200, Box::new(encrypted.await.unwrap())).await;
    let mut rebound = connect().await.unwrap();
    rebound.write_all(b"GET /info HTTP/1.1\r\nHost: evil.example\r\n\r\n").await.unwrap();
    let mut start = [0; 12];
    rebound.read_exact(&mut start).await.unwrap();
    assert_eq!(&start[9..], b"403");
}

trait AnyStream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> AnyStream for S {}

async fn ask_on_as(mut stream: Box<dyn AnyStream>, host: &str) -> u16 {
    let head = format!("GET /info HTTP/1.1\r\nHost: {host}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.unwrap();
    String::from_utf8_lossy(&start[9..]).parse().unwrap()
}

/// Slow or silent strangers must not take the places of this host's programs.
#[tokio::test]
async fn strangers_are_counted_and_let_go_of_their_places() {
    let place = Place::start(false, true);
    let mut held = Vec::new();
    for _ in 0..access::STRANGERS_MAX {
        held.push(TcpStream::connect(place.fixture.server.local_addr()).await.unwrap());
    }
    // Wait until the last of them has its place.
    let mut refused = false;
    for _ in 0..100 {
        refused = place.ask(Shown::RightToken, "GET", "/health/live", "").await == 0;
        if refused {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(refused, "more strangers than allowed");
    held.clear();
    let mut served = false;
    for _ in 0..500 {
        served = place.ask(Shown::RightToken, "GET", "/health/live", "").await == 200;
        if served {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(served, "the places were not given back");
}
