//! The proxy over real connections, between clients and applications that behave and that do not.

use std::net::{Ipv4Addr, SocketAddr};

use axum::body::Bytes;
use axum::routing::any;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use litefs_store::{DbName, Store};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::http;
use crate::http::tests::{TestNode, change_page, local_access, replica, sqlite_file};

/// Longest wait for anything in these tests.
const LIMIT: Duration = Duration::from_secs(60);

/// What an application has seen: request line, headers and body as one text each.
type Seen = Arc<Mutex<Vec<String>>>;

/// An application.
struct App {
    addr: SocketAddr,
    seen: Seen,
}

impl App {
    async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        Self::start_on(name, listener)
    }

    fn start_on(name: &'static str, listener: TcpListener) -> Self {
        let addr = listener.local_addr().unwrap();
        let seen = Seen::default();
        let noted = seen.clone();
        let serve = move |request| answer(name, request, noted.clone());
        let router = axum::Router::new()
            .route("/socket", any(upgrade))
            .route("/stream", any(async |request: Request<Body>| request.into_body()))
            .fallback(serve);
        let router = router.layer(axum::extract::DefaultBodyLimit::disable());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { addr, seen }
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().clone()
    }
}

async fn answer(name: &'static str, request: Request<Body>, seen: Seen) -> String {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap_or_default();
    let mut text = format!("{} {}\n", parts.method, parts.uri);
    for (name, value) in &parts.headers {
        text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
    }
    text.push_str(&String::from_utf8_lossy(&body));
    seen.lock().push(text);
    format!("{name} got {} bytes", body.len())
}

/// Echoes after `101 Switching Protocols`.
async fn upgrade(mut request: Request<Body>) -> Response {
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream: TokioIo<Upgraded> = TokioIo::new(upgraded.await.unwrap());
        let mut bytes = [0; 64];
        while let Ok(n @ 1..) = stream.read(&mut bytes).await {
            stream.write_all(&bytes[..n]).await.unwrap();
        }
    });
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, "echo")];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

/// A node with its API, its proxy and its application.
struct Place {
    _dir: tempfile::TempDir,
    node: Arc<TestNode>,
    app: App,
    api: http::Server,
    proxy: http::Server,
    _stop: watch::Sender<bool>,
}

impl Place {
    async fn start(role: Role, change: impl FnOnce(&mut ProxyConfig)) -> Self {
        Self::start_before(App::start("app").await, role, change)
    }

    fn start_before(app: App, role: Role, change: impl FnOnce(&mut ProxyConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("data")).unwrap();
        let node = Arc::new(TestNode::new(store, role));
        let mut config =
            ProxyConfig::new(([127, 0, 0, 1], 0).into(), &app.addr.to_string(), "a.db").unwrap();
        config.primary_redirect_timeout = Duration::from_millis(500);
        change(&mut config);
        let (stop, stopped) = watch::channel(false);
        let decider = Proxy::new(config, node.clone(), Link::default(), stopped);
        let api =
            http::start(node.clone(), listen(), local_access(), Some(decider.clone())).unwrap();
        let proxy = start(decider, listen()).unwrap();
        Self { _dir: dir, node, app, api, proxy, _stop: stop }
    }

    /// A role in which this node is the primary.
    fn as_primary(&self) -> Role {
        let url = format!("http://{}", self.api.local_addr());
        Role { is_primary: false, primary_hostname: Some("n1".into()), primary_url: Some(url) }
    }

    fn database(&self) -> litefs_store::Database {
        self.node.store.create(&DbName::new("a.db").unwrap()).unwrap()
    }

    /// Creates the database: transaction 1.
    fn import(&self) {
        self.database().import(&mut &sqlite_file(1)[..]).unwrap();
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.proxy.local_addr()).await.unwrap()
    }

    /// Sends a request and returns the whole response.
    async fn ask(&self, head: &str, body: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(text_of(head, body).as_bytes()).await.unwrap();
        read_all(stream).await
    }
}

fn text_of(head: &str, body: &str) -> String {
    let (line, headers) = head.split_once('\n').unwrap_or((head, ""));
    let headers: String = headers.lines().map(|header| format!("{header}\r\n")).collect();
    format!(
        "{line} HTTP/1.1\r\nHost: app.example\r\nConnection: close\r\nContent-Length: {}\r\n\
         {headers}\r\n{body}",
        body.len()
    )
}

async fn read_all(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    tokio::time::timeout(LIMIT, stream.read_to_end(&mut text)).await.unwrap().unwrap();
    String::from_utf8(text).unwrap()
}

fn listen() -> std::net::TcpListener {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

fn primary() -> Role {
    Role { is_primary: true, primary_hostname: Some("n1".into()), primary_url: None }
}

fn status(response: &str) -> u16 {
    response.split(' ').nth(1).unwrap_or_default().parse().unwrap_or(0)
}

fn cookie(response: &str) -> Option<&str> {
    let line = response.lines().find(|line| line.to_ascii_lowercase().starts_with("set-cookie:"));
    line?.split_once(": ").map(|(_, value)| value)
}

#[tokio::test]
async fn a_read_waits_until_its_clients_write_has_arrived() {
    let place = Place::start(replica(), |_| {}).await;
    let at = |txid: &str| format!("GET /x\nCookie: __txid={txid}");
    // A new replica does not even have the database yet.
    let head = at("0000000000000001");
    let arriving = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(place.app.seen().is_empty(), "the application was asked too early");
        place.import();
    };
    let (response, ()) = tokio::join!(place.ask(&head, ""), arriving);
    assert_eq!(status(&response), 200);
    for cookie in ["0000000000000001", "nonsense", "0000000000000000"] {
        assert_eq!(status(&place.ask(&at(cookie), "").await), 200, "{cookie}");
    }
    let before = place.app.seen().len();
    let head = at("0000000000000003");
    let waiting = place.ask(&head, "");
    let arriving = async {
        for fill in [7, 8] {
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(place.app.seen().len(), before, "the application was asked too early");
            change_page(&place.database(), fill);
        }
    };
    let (response, ()) = tokio::join!(waiting, arriving);
    assert_eq!(status(&response), 200);
    assert_eq!(place.app.seen().len(), before + 1);
    assert_eq!(cookie(&response), None);
}

#[tokio::test]
async fn a_read_that_waits_too_long_fails_as_in_litefs_but_on_the_primary_nothing_waits() {
    let place = Place::start(replica(), |_| {}).await;
    place.import();
    let head = "HEAD /x\nCookie: __txid=0000000000000002";
    let response = place.ask(&head.replace("HEAD", "GET"), "").await;
    assert_eq!(status(&response), 504);
    assert!(response.ends_with("\r\n\r\nProxy timeout\n"), "{response}");
    assert!(place.app.seen().is_empty());
    // Also one that waits when its node becomes the primary.
    let promoted = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        place.node.role.send_replace(primary());
    };
    let (response, ()) = tokio::join!(place.ask(head, ""), promoted);
    assert_eq!(status(&response), 200);
}

#[tokio::test]
async fn only_what_may_write_sets_the_cookie() {
    let place = Place::start(primary(), |config| {
        config.passthrough = vec![PathPattern::new("/p/*")];
        config.always_forward = vec![PathPattern::new("/login")];
    })
    .await;
    // There is no database yet.
    assert_eq!(cookie(&place.ask("POST /x", "").await), None);
    place.import();
    for (head, sets) in [
        ("GET /x", false),
        ("HEAD /x", false),
        ("POST /x", true),
        ("PUT /x", true),
        ("DELETE /x", true),
        ("OPTIONS /x", true),
        ("GET /login", true),
        ("GET /login/", false),
        ("POST /p/x", false),
        ("POST /%70/x", false),
    ] {
        let response = place.ask(head, "").await;
        assert_eq!(status(&response), 200, "{head}");
        let value = cookie(&response).map(|value| value.split("; ").collect::<Vec<_>>());
        assert_eq!(value.is_some(), sets, "{head}");
        if let Some(value) = value {
            assert_eq!(
                (value[0], value[1], value[3]),
                ("__txid=0000000000000001", "Path=/", "HttpOnly")
            );
            assert!(value[2].starts_with("Expires="), "{value:?}");
        }
    }
}

#[tokio::test]
async fn the_health_page_goes_by_the_lag() {
    // The test's nodes are 1.5 s behind.
    for (max_lag, code, text) in [
        (Some(Duration::from_secs(1)), 503, "Replication lag exceeded\n"),
        (Some(Duration::from_secs(2)), 200, "OK\n"),
        (None, 200, "OK\n"),
    ] {
        let place = Place::start(replica(), |config| config.max_lag = max_lag).await;
        let response = place.ask("GET /litefs/health", "").await;
        assert_eq!(status(&response), code);
        assert!(response.ends_with(&format!("\r\n\r\n{text}")), "{response}");
        assert!(place.app.seen().is_empty());
    }
}

#[tokio::test]
async fn a_replica_forwards_writes_to_the_primary_and_brings_its_cookie_back() {
    let there = Place::start(primary(), |_| {}).await;
    there.import();
    let here = Place::start(there.as_primary(), |config| {
        config.always_forward = vec![PathPattern::new("/login")];
    })
    .await;
    let head = "POST /rows?x=%2F1\nAuthorization: Bearer mine\nX-Forwarded-For: 1.2.3.4\n\
                Litefs-Forwarded: forged";
    let response = here.ask(head, "hello").await;
    assert_eq!(status(&response), 200, "{response}");
    assert!(response.ends_with("app got 5 bytes"), "{response}");
    assert!(cookie(&response).unwrap().starts_with("__txid=0000000000000001; "));
    assert!(!response.to_lowercase().contains("litefs-"), "{response}");
    assert_eq!(status(&here.ask("GET /login", "").await), 200);
    let seen = there.app.seen();
    assert_eq!((seen.len(), here.app.seen().len()), (2, 0));
    assert!(
        seen[0].starts_with("POST /rows?x=%2F1\n") && seen[0].ends_with("\nhello"),
        "{}",
        seen[0]
    );
    for line in [
        "host: app.example",
        "authorization: Bearer mine",
        "x-forwarded-for: 1.2.3.4, 127.0.0.1",
        "x-forwarded-host: app.example",
        "x-forwarded-proto: http",
    ] {
        assert!(seen[0].lines().any(|seen| seen == line), "{line} is missing in {}", seen[0]);
    }
    assert!(!seen[0].contains("litefs-"), "{}", seen[0]);
    // A read stays here.
    assert_eq!(status(&here.ask("GET /x", "").await), 200);
    assert_eq!(here.app.seen().len(), 1);
}

/// Each takes the other for the primary.
#[tokio::test]
async fn a_request_passes_between_nodes_at_most_once() {
    let one = Place::start(replica(), |_| {}).await;
    let two = Place::start(one.as_primary(), |_| {}).await;
    one.node.role.send_replace(two.as_primary());
    let response = one.ask("POST /x", "hello").await;
    assert_eq!(status(&response), 503);
    assert!(response.ends_with("Proxy error: no primary available\n"), "{response}");
    assert!(one.app.seen().is_empty() && two.app.seen().is_empty());
    // The other one is promoted a moment later than was heard here.
    let promoted = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        two.node.role.send_replace(primary());
    };
    let (response, ()) = tokio::join!(one.ask("POST /x", "hello"), promoted);
    assert_eq!(status(&response), 200, "{response}");
}

#[tokio::test]
async fn a_write_waits_for_a_primary_and_fails_as_in_litefs_without_one() {
    let place = Place::start(Role::default(), |_| {}).await;
    let response = place.ask("POST /x", "").await;
    assert_eq!(status(&response), 503);
    assert!(response.ends_with("\r\n\r\nProxy error: no primary available\n"), "{response}");
    let promoted = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        place.node.role.send_replace(primary());
    };
    let (response, ()) = tokio::join!(place.ask("POST /x", "hello"), promoted);
    assert!(response.ends_with("app got 5 bytes"), "{response}");
}

/// The body is still there for the next primary.
#[tokio::test]
async fn a_primary_that_is_gone_is_asked_until_another_one_is_there() {
    let gone = format!("http://{}", listen().local_addr().unwrap());
    let role = Role { primary_url: Some(gone), ..replica() };
    let place = Place::start(role, |config| {
        config.primary_redirect_timeout = Duration::from_secs(1);
    })
    .await;
    let response = place.ask("POST /x", "hello").await;
    assert_eq!(status(&response), 503);
    assert!(response.contains("Proxy error: cannot connect to 127.0.0.1:"), "{response}");
    let there = Place::start(primary(), |_| {}).await;
    let found = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        place.node.role.send_replace(there.as_primary());
    };
    let (response, ()) = tokio::join!(place.ask("POST /x", "hello"), found);
    assert!(response.ends_with("app got 5 bytes"), "{response}");
}

/// What a client posts must not reach the primary's API with this node's credentials.
#[tokio::test]
async fn a_primary_without_a_proxy_is_named_and_its_api_is_not_asked() {
    let there = Place::start(primary(), |_| {}).await;
    let listener = listen();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let api = http::start(there.node.clone(), listener, local_access(), None).unwrap();
    let role = Role { primary_url: Some(url.clone()), ..replica() };
    let here = Place::start(role, |_| {}).await;
    let database = sqlite_file(1);
    let mut stream = here.connect().await;
    let head = text_of("POST /import?name=x", "");
    let length = format!("Content-Length: {}", database.len());
    let head = head.replace("Content-Length: 0", &length).replace("app.example", "localhost");
    stream.write_all(&[head.as_bytes(), &database].concat()).await.unwrap();
    let response = read_all(stream).await;
    assert_eq!(status(&response), 502);
    assert!(response.contains(&url) && response.contains("no proxy"), "{response}");
    assert!(there.node.store.databases().is_empty());
    api.shutdown().await;
}

#[tokio::test]
async fn fly_replay_names_the_primary_and_sends_nothing() {
    let there = Place::start(primary(), |_| {}).await;
    let place = Place::start(there.as_primary(), |config| {
        config.primary_redirect = PrimaryRedirect::FlyReplay;
    })
    .await;
    let response = place.ask("POST /x", "hello").await;
    assert_eq!(status(&response), 200);
    assert!(response.contains("\r\nfly-replay: instance=n1\r\n"), "{response}");
    assert!(there.app.seen().is_empty() && place.app.seen().is_empty());
}

#[tokio::test]
async fn an_application_that_is_starting_is_waited_for() {
    let address = listen().local_addr().unwrap();
    let app = App { addr: address, seen: Seen::default() };
    let place = Place::start_before(app, primary(), |_| {});
    let starting = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        App::start_on("late", TcpListener::bind(address).await.unwrap())
    };
    let (response, _app) = tokio::join!(place.ask("POST /x", "hello"), starting);
    assert!(response.ends_with("late got 5 bytes"), "{response}");
}

/// Sends an upgrade and talks; through the primary too.
#[tokio::test]
async fn upgraded_connections_carry_bytes_in_both_directions() {
    let there = Place::start(primary(), |_| {}).await;
    let here = Place::start(there.as_primary(), |config| {
        config.always_forward = vec![PathPattern::new("/sock*")];
    })
    .await;
    for place in [&there, &here] {
        let mut stream = place.connect().await;
        let head =
            "GET /socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(tokio::time::timeout(LIMIT, stream.read_u8()).await.unwrap().unwrap());
        }
        let answer = String::from_utf8(answer).unwrap().to_lowercase();
        assert!(
            answer.starts_with("http/1.1 101 ") && answer.contains("upgrade: echo"),
            "{answer}"
        );
        for word in ["ping", "pong"] {
            stream.write_all(word.as_bytes()).await.unwrap();
            let mut back = [0; 4];
            tokio::time::timeout(LIMIT, stream.read_exact(&mut back)).await.unwrap().unwrap();
            assert_eq!(back, word.as_bytes());
        }
        stream.shutdown().await.unwrap();
        assert_eq!(read_all(stream).await, "");
    }
    assert!(here.app.seen().is_empty());
}

/// The echo of the first part comes back before the second part is sent: nothing is collected.
#[tokio::test]
async fn bodies_are_streamed_in_both_directions() {
    let there = Place::start(primary(), |_| {}).await;
    let here = Place::start(there.as_primary(), |_| {}).await;
    let mut stream = here.connect().await;
    let head = "POST /stream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    for part in ["first", "other"] {
        stream.write_all(format!("5\r\n{part}\r\n").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !String::from_utf8_lossy(&answer).contains(part) {
            answer.push(tokio::time::timeout(LIMIT, stream.read_u8()).await.unwrap().unwrap());
        }
    }
}

#[tokio::test]
async fn one_connection_serves_many_requests() {
    let place = Place::start(primary(), |_| {}).await;
    let mut stream = place.connect().await;
    for n in 0..3 {
        let request = format!("POST /{n} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"app got 2 bytes") {
            answer.push(tokio::time::timeout(LIMIT, stream.read_u8()).await.unwrap().unwrap());
        }
    }
    assert_eq!(place.app.seen().len(), 3);
}

#[tokio::test]
async fn a_client_that_takes_too_long_is_dropped() {
    let short = Some(Duration::from_millis(200));
    let begun = |stream: &'static str| stream;
    for (limit, sent) in [
        ("head", begun("GET /x HT")),
        ("idle", begun("GET /x HTTP/1.1\r\nHost: x\r\n\r\n")),
        ("request", begun("POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab")),
        ("response", begun("POST /stream HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab")),
    ] {
        let place = Place::start(primary(), |config| match limit {
            "head" => config.read_header_timeout = short,
            "idle" => config.idle_timeout = short,
            "request" => config.read_timeout = short,
            _ => config.write_timeout = short,
        })
        .await;
        let mut stream = place.connect().await;
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A reset is as good an end as any.
        let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await.expect(limit);
        let answer = String::from_utf8(answer).unwrap();
        match limit {
            "idle" => assert_eq!(status(&answer), 200),
            "request" => assert!(answer.contains("did not send its request in time"), "{answer}"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn requests_that_are_no_requests_are_refused() {
    let place = Place::start(primary(), |_| {}).await;
    let huge = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    for (request, expected) in [
        ("CONNECT other:443 HTTP/1.1\r\nHost: other:443\r\n\r\n", 400),
        ("OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na", 400),
        ("nonsense\r\n\r\n", 400),
        (&huge, 431),
    ] {
        let mut stream = place.connect().await;
        // It may be refused before it is sent.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut start = [0; 12];
        tokio::time::timeout(LIMIT, stream.read_exact(&mut start)).await.unwrap().unwrap();
        let start = String::from_utf8_lossy(&start).into_owned();
        assert_eq!(status(&format!("{start} ")), expected, "{}", request.lines().next().unwrap());
    }
    assert!(place.app.seen().is_empty());
}

/// An application that answers with what HTTP does not have.
#[tokio::test]
async fn a_broken_application_gets_a_page_of_its_own() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let app = App { addr: listener.local_addr().unwrap(), seen: Seen::default() };
    let answers = ["what?\r\n\r\n", "", "HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n"];
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let place = Place::start_before(app, primary(), |_| {});
    for answer in answers {
        let response = place.ask("POST /x", "").await;
        assert_eq!(status(&response), 502, "{answer:?}: {response}");
        assert!(response.contains("Proxy error: "), "{response}");
    }
}

/// 64 MiB that nobody reads must not come to rest here.
#[tokio::test]
async fn a_client_that_reads_nothing_costs_little_memory() {
    let (sender, mut taken) = watch::channel(0_usize);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let app = App { addr: listener.local_addr().unwrap(), seen: Seen::default() };
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 64 << 20);
        stream.write_all(head.as_bytes()).await.unwrap();
        let chunk = Bytes::from(vec![7; 64 << 10]);
        while stream.write_all(&chunk).await.is_ok() {
            sender.send_modify(|sent| *sent += chunk.len());
        }
    });
    let place = Place::start_before(app, primary(), |_| {});
    let mut stream = place.connect().await;
    stream.write_all(text_of("GET /x", "").as_bytes()).await.unwrap();
    // Until the application gets rid of nothing for a while.
    while tokio::time::timeout(Duration::from_secs(1), taken.changed()).await.is_ok() {}
    let sent = *taken.borrow();
    assert!(sent < 32 << 20, "{sent} bytes were taken for a client that reads nothing");
    drop(stream);
}
