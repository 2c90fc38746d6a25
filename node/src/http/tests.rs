//! The API over real connections to a real store: what LiteFS's clients see, and what hostile or
//! slow ones cannot do.

use std::collections::BTreeMap;
use std::path::PathBuf;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use litefs_store::{Database, DbName, Durability, Histogram, Pgno, Store, Timing};
use rusqlite::Connection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::lease::action::Transition;
use crate::replication::confirm::{ConfirmStatus, Confirmer};

/// Longest wait for anything in these tests.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct TestNode {
    pub(crate) store: Store,
    pub(crate) role: watch::Sender<Role>,
    pub(crate) transitions: tokio::sync::broadcast::Sender<Transition>,
    /// None of them: mode `async`.
    pub(crate) confirmer: parking_lot::Mutex<Option<Arc<Confirmer>>>,
}

impl NodeView for TestNode {
    fn store(&self) -> &Store {
        &self.store
    }

    fn role(&self) -> watch::Receiver<Role> {
        self.role.subscribe()
    }

    fn candidate(&self) -> bool {
        true
    }

    fn lag(&self) -> Option<Duration> {
        Some(Duration::from_millis(1500))
    }

    fn replicas(&self) -> Vec<ReplicaStatus> {
        let addr = "127.0.0.1:9".parse().unwrap();
        vec![ReplicaStatus {
            node: "00000000000000AB".into(),
            hostname: "n3".into(),
            lag: Some(Duration::from_millis(30)),
            addr,
            unacknowledged_transactions: 7,
        }]
    }

    fn lease(&self) -> LeaseStatus {
        let beats = Some(prometheus_client::metrics::histogram::Histogram::new([0.1]));
        let right_left = Some(Duration::from_secs(2));
        LeaseStatus { kind: "consul", right_left, beats, ..self.fixed() }
    }

    fn disconnected_because(&self) -> Option<String> {
        (!self.role.borrow().is_primary).then(|| "no answer".to_owned())
    }

    fn reasons(&self) -> BTreeMap<DbName, String> {
        BTreeMap::from([(DbName::new("stopped.db").unwrap(), "the disk is full".to_owned())])
    }

    fn ack_times(&self) -> Histogram {
        let timing = Timing::default();
        timing.add(Duration::from_millis(3));
        timing.read()
    }

    fn transitions(&self) -> Option<tokio::sync::broadcast::Receiver<Transition>> {
        Some(self.transitions.subscribe())
    }

    fn confirm(&self) -> Option<ConfirmStatus> {
        self.confirmer.lock().as_ref().map(|confirmer| confirmer.status())
    }

    fn promote(&self) -> Wish {
        self.answer(0)
    }

    fn hand_over(&self, node: u64) -> Wish {
        self.answer(node)
    }
}

impl TestNode {
    pub(crate) fn new(store: Store, role: Role) -> Self {
        let transitions = tokio::sync::broadcast::Sender::new(4);
        let role = watch::Sender::new(role);
        Self { store, role, transitions, confirmer: parking_lot::Mutex::default() }
    }

    fn fixed(&self) -> LeaseStatus {
        LeaseStatus::fixed(self.role.borrow().is_primary, 3)
    }

    /// Says what was wanted, or grants it to node 7.
    fn answer(&self, node: u64) -> Wish {
        let (answer, wish) = Wish::new();
        let result = if node == 7 { Ok(()) } else { Err(format!("not to {node:x}")) };
        answer.send(result).unwrap();
        wish
    }
}

pub(crate) struct Fixture {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) node: Arc<TestNode>,
    pub(crate) server: Server,
}

impl Fixture {
    /// A primary in a directory of its own, so that an escape from it shows.
    pub(crate) fn start() -> Self {
        Self::start_with(|node, listener| {
            start(node.clone(), listener, local_access(), None).unwrap()
        })
    }

    /// The same, with the server that is started by `serve`.
    pub(crate) fn start_with(
        serve: impl FnOnce(&Arc<TestNode>, std::net::TcpListener) -> Server,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("data")).unwrap();
        let node = Arc::new(TestNode::new(store, primary()));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let server = serve(&node, listener);
        Self { dir, node, server }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.server.local_addr()).await.unwrap()
    }

    async fn send(&self, request: hyper::Request<Full<Bytes>>) -> hyper::Response<Incoming> {
        let io = TokioIo::new(self.connect().await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        tokio::time::timeout(LIMIT, sender.send_request(request)).await.unwrap().unwrap()
    }

    pub(crate) async fn call(&self, method: &str, path: &str, body: &[u8]) -> (StatusCode, Bytes) {
        let response = self.send(request(method, path, body)).await;
        let status = response.status();
        (status, response.into_body().collect().await.unwrap().to_bytes())
    }

    pub(crate) async fn text(&self, method: &str, path: &str) -> (u16, String) {
        let (status, body) = self.call(method, path, b"").await;
        (status.as_u16(), String::from_utf8(body.to_vec()).unwrap())
    }

    pub(crate) async fn import(&self, name: &str, rows: u32) {
        let (status, body) =
            self.call("POST", &format!("/import?name={name}"), &sqlite_file(rows)).await;
        assert_eq!(status, 200, "{body:?}");
    }

    /// Without the API.
    pub(crate) fn import_here(&self, name: &str, rows: u32) {
        let database = self.node.store.create(&DbName::new(name).unwrap()).unwrap();
        database.import(&mut &sqlite_file(rows)[..]).unwrap();
    }

    pub(crate) fn txid(&self, name: &str) -> u64 {
        let name = DbName::new(name).unwrap();
        self.node.store.database(&name).map_or(0, |db| db.pos().txid.get())
    }

    /// Everything below the fixture's directory but the log and base of the databases.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut pending = vec![self.dir.path().to_owned()];
        while let Some(dir) = pending.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    pending.push(path.clone());
                }
                found.push(path);
            }
        }
        found.sort();
        found
    }
}

/// No certificates and no token.
pub(crate) fn local_access() -> Arc<Access> {
    let config = crate::Config::new("/none");
    let tls = Arc::new(crate::tls::TlsMode::load(&config).unwrap());
    Access::new(&config, &tls).unwrap()
}

fn primary() -> Role {
    Role { is_primary: true, primary_hostname: Some("n1".into()), primary_url: None }
}

pub(crate) fn replica() -> Role {
    Role {
        is_primary: false,
        primary_hostname: Some("n2".into()),
        primary_url: Some("http://n2:20202".into()),
    }
}

fn request(method: &str, path: &str, body: &[u8]) -> hyper::Request<Full<Bytes>> {
    hyper::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost:20202")
        .body(Full::new(Bytes::copy_from_slice(body)))
        .unwrap()
}

/// A database with `rows` rows of a kilobyte, made by SQLite itself.
pub(crate) fn sqlite_file(rows: u32) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let db = Connection::open(file.path()).unwrap();
    db.execute_batch(&format!(
        "PRAGMA journal_mode=OFF; CREATE TABLE t(id INTEGER PRIMARY KEY, x); \
         WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<{rows}) \
         INSERT INTO t SELECT n, randomblob(1000) FROM c;"
    ))
    .unwrap();
    drop(db);
    std::fs::read(file.path()).unwrap()
}

/// Commits a transaction that fills the last page with `fill`.
pub(crate) fn change_page(db: &Database, fill: u8) {
    let snapshot = db.snapshot().unwrap();
    let mut writer = db.begin_write(&snapshot).unwrap();
    let page = vec![fill; snapshot.page_size().unwrap().len()];
    let last = Pgno::new(snapshot.page_count()).unwrap();
    writer.write_page(last, &page).unwrap();
    writer.prepare(snapshot.page_count(), Durability::Full, false).unwrap();
    writer.sync().unwrap();
    writer.publish();
}

pub(crate) fn count_rows(bytes: &[u8]) -> u32 {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let db = Connection::open(file.path()).unwrap();
    let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn an_imported_database_comes_back_and_a_second_import_replaces_it() {
    let f = Fixture::start();
    for (rows, txid) in [(10, 1), (3000, 2), (2, 3)] {
        f.import("a.db", rows).await;
        let response = f.send(request("GET", "/export?name=a.db", b"")).await;
        assert_eq!(response.status(), 200);
        let pos = f.node.store.databases()[0].pos();
        assert_eq!(pos.txid.get(), txid);
        assert_eq!(response.headers()["litefs-position"], pos.to_string());
        let length: usize = response.headers()["content-length"].to_str().unwrap().parse().unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body.len(), length);
        assert_eq!(count_rows(&body), rows);
    }
    f.server.shutdown().await;
}

#[tokio::test]
async fn info_has_litefss_fields_and_the_state_of_databases() {
    let f = Fixture::start();
    f.import("a.db", 10).await;
    let (status, text) = f.text("GET", "/info").await;
    assert_eq!(status, 200);
    assert!(text.ends_with("}\n"));
    let info: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(info["isPrimary"], true);
    assert_eq!(info["candidate"], true);
    assert_eq!(info["primary"]["hostname"], "n1");
    assert_eq!(info["path"], f.dir.path().join("data").to_str().unwrap());
    assert_eq!(info["role"], "primary");
    assert_eq!(info["lagMs"], 1500);
    assert_eq!(info["replicas"][0]["node"], "00000000000000AB");
    let db = &info["databases"]["a.db"];
    assert_eq!(db["position"], f.node.store.databases()[0].pos().to_string());
    assert_eq!(db["pageSize"], 4096);
    assert!(db["pageCount"].as_u64().unwrap() > 1);
    assert!(db.get("quarantined").is_none());
}

#[tokio::test]
async fn every_response_names_the_node_and_wrong_requests_are_told_apart() {
    let f = Fixture::start();
    for (method, path, status) in [
        ("GET", "/info", 200),
        ("POST", "/info", 405),
        ("GET", "/import?name=a.db", 405),
        ("DELETE", "/export?name=a.db", 405),
        ("GET", "/nothing", 404),
        ("GET", "/export", 400),
        ("GET", "/export?name=", 400),
        ("GET", "/export?name=a.db", 404),
        ("POST", "/import", 400),
    ] {
        let response = f.send(request(method, path, b"")).await;
        assert_eq!(response.status().as_u16(), status, "{method} {path}");
        let id = response.headers()["litefs-id"].to_str().unwrap();
        assert_eq!(id, format!("{:016X}", f.node.store.node_id()));
    }
}

#[tokio::test]
async fn a_replica_takes_no_import_and_says_who_does() {
    let f = Fixture::start();
    f.node.role.send_replace(replica());
    let (status, body) = f.call("POST", "/import?name=a.db", &sqlite_file(1)).await;
    let text = String::from_utf8(body.to_vec()).unwrap();
    assert_eq!(status, 503);
    assert!(text.contains("n2") && text.contains("http://n2:20202"), "{text}");
    assert_eq!(f.txid("a.db"), 0);
}

/// LiteFS created directories outside its own for such names.
#[tokio::test]
async fn a_name_cannot_leave_the_data_directory() {
    let f = Fixture::start();
    let before = f.files();
    let long = "x".repeat(201);
    for name in [
        "..%2F..%2Fx",
        "../x",
        "%2Fetc%2Fx",
        "..",
        ".",
        ".hidden",
        "a%2Fb",
        "a%00b",
        "a-wal",
        "a-journal",
        "a-shm",
        "a-pos",
        "a-lock",
        &long,
    ] {
        let (status, _) = f.call("POST", &format!("/import?name={name}"), &sqlite_file(1)).await;
        assert_eq!(status, 400, "{name}");
        let (status, _) = f.text("GET", &format!("/export?name={name}")).await;
        assert_eq!(status, 400, "{name}");
    }
    assert_eq!(f.files(), before);
}

#[tokio::test]
async fn what_is_no_database_is_refused_and_creates_none() {
    let f = Fixture::start();
    f.import("kept.db", 5).await;
    let mut half = sqlite_file(100);
    half.truncate(5000);
    for (body, what) in [
        (&b""[..], "nothing"),
        (b"hello", "text"),
        (b"SQLite format", "a part of the magic"),
        (&half, "a part of a file"),
    ] {
        for name in ["new.db", "kept.db"] {
            let (status, text) = f.call("POST", &format!("/import?name={name}"), body).await;
            assert_eq!(status, 400, "{what}: {text:?}");
        }
    }
    assert_eq!(f.text("GET", "/export?name=new.db").await.0, 404);
    let (_, body) = f.call("GET", "/export?name=kept.db", b"").await;
    assert_eq!((count_rows(&body), f.txid("kept.db")), (5, 1));
}

/// LiteFS locked the database before it read the upload.
#[tokio::test]
async fn a_stalled_upload_blocks_nobody_and_changes_nothing_when_it_breaks() {
    let f = Fixture::start();
    f.import("a.db", 10).await;
    let file = sqlite_file(500);
    let mut slow = f.connect().await;
    let head = format!(
        "POST /import?name=a.db HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        file.len()
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    slow.write_all(&file[..file.len() / 2]).await.unwrap();
    f.import("a.db", 20).await;
    let (_, body) = f.call("GET", "/export?name=a.db", b"").await;
    assert_eq!(count_rows(&body), 20);
    drop(slow);
    f.import("a.db", 30).await;
    assert_eq!(f.txid("a.db"), 3);
    f.server.shutdown().await;
    assert_eq!(f.node.store.databases()[0].pos().txid.get(), 3);
}

/// LiteFS held a lock that kept writers out until the last byte was read.
#[tokio::test]
async fn a_stalled_export_blocks_nobody_and_gets_its_own_state() {
    let f = Fixture::start();
    // Larger than what sockets and channels keep on the way.
    f.import("a.db", 40_000).await;
    let mut slow = f.connect().await;
    slow.write_all(
        b"GET /export?name=a.db HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    )
    .await
    .unwrap();
    let mut first = [0; 1];
    slow.read_exact(&mut first).await.unwrap();
    f.import("a.db", 7).await;
    let (_, body) = f.call("GET", "/export?name=a.db", b"").await;
    assert_eq!(count_rows(&body), 7);

    let mut rest = Vec::new();
    tokio::time::timeout(LIMIT, slow.read_to_end(&mut rest)).await.unwrap().unwrap();
    let start = rest.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    assert_eq!(count_rows(&rest[start..]), 40_000);
}

#[tokio::test]
async fn events_begin_with_the_role_and_follow_commits_and_role_changes() {
    let f = Fixture::start();
    let response = f.send(request("GET", "/events", b"")).await;
    let mut body = response.into_body();
    let mut next = async || {
        let frame = tokio::time::timeout(LIMIT, body.frame()).await.unwrap().unwrap().unwrap();
        let line: serde_json::Value = serde_json::from_slice(frame.data_ref().unwrap()).unwrap();
        line
    };
    let init = next().await;
    assert_eq!((&init["type"], &init["data"]["hostname"]), (&"init".into(), &"n1".into()));
    f.import("a.db", 10).await;
    let tx = next().await;
    let pos = f.node.store.databases()[0].pos();
    assert_eq!((&tx["type"], &tx["db"]), (&"tx".into(), &"a.db".into()));
    assert_eq!(tx["data"]["txID"], pos.txid.to_string());
    assert_eq!(tx["data"]["postApplyChecksum"], pos.checksum.to_string());
    assert_eq!(tx["data"]["pageSize"], 4096);
    f.node.role.send_replace(replica());
    let change = next().await;
    assert_eq!(change["type"], "primaryChange");
    assert_eq!(change["data"], serde_json::json!({"isPrimary": false, "hostname": "n2"}));
    let reason = "shutting down".to_owned();
    let (from, to) = (crate::lease::action::Role::Primary, crate::lease::action::Role::HandingOver);
    f.node.transitions.send(Transition { from, to, epoch: 3, reason }).unwrap();
    let change = next().await;
    assert_eq!(
        (&change["type"], &change["data"]["to"]),
        (&"roleChange".into(), &"handing-over".into())
    );
    // A client that waits for events does not delay the end.
    tokio::time::timeout(LIMIT, f.server.shutdown()).await.unwrap();
}

/// LiteFS's status codes (http/server.go, handlePostPromote and handlePostHandoff).
#[tokio::test]
async fn the_role_is_moved_with_litefss_status_codes() {
    let f = Fixture::start();
    assert_eq!(f.text("POST", "/promote").await, (200, String::new()), "it is primary already");
    f.node.role.send_replace(Role::default());
    let (status, text) = f.text("POST", "/promote").await;
    assert_eq!((status, text.as_str()), (500, "not to 0\n"));
    assert_eq!(f.text("GET", "/promote").await.0, 405);
    for bad in ["", "?nodeID=", "?nodeID=xyz", "?nodeID=+7", "?nodeID=11112222333344445"] {
        let (status, text) = f.text("POST", &format!("/handoff{bad}")).await;
        assert!(status == 400 && text.contains("nodeID"), "{bad}: {status} {text}");
    }
    assert_eq!(f.text("POST", "/handoff?nodeID=0000000000000007").await.0, 200);
    let (status, text) = f.text("POST", "/handoff?nodeID=AB").await;
    assert_eq!((status, text.as_str()), (500, "not to ab\n"));
}

#[tokio::test]
async fn health_tells_live_from_ready_and_says_why() {
    let f = Fixture::start();
    let json = async |path: &str| {
        let (status, text) = f.text("GET", path).await;
        let health: serde_json::Value = serde_json::from_str(&text).unwrap();
        (status, health)
    };
    assert_eq!(json("/health/live").await, (200, serde_json::json!({ "live": true })));
    let (status, health) = json("/health/ready").await;
    assert_eq!((status, &health["ready"], &health["role"]), (200, &true.into(), &"primary".into()));
    // A primary that may not commit is alive.
    f.node.store.gate().close("a test");
    let (status, health) = json("/health/ready").await;
    assert_eq!((status, &health["ready"]), (503, &false.into()));
    assert!(health["reason"].as_str().unwrap().contains("commit"));
    assert_eq!(json("/health/live").await.0, 200);
    // The test's nodes are 1.5 s behind.
    f.node.role.send_replace(replica());
    assert_eq!(json("/health/ready").await.0, 200);
    let (status, health) = json("/health/ready?max-lag=1s").await;
    assert_eq!((status, &health["lagMs"]), (503, &1500.into()));
    assert_eq!(json("/health?max-lag=1s").await, (200, health));
    assert_eq!(f.text("GET", "/health/ready?max-lag=soon").await.0, 400);
}

#[tokio::test]
async fn metrics_have_litefss_names() {
    let f = Fixture::start();
    f.import("a.db", 10).await;
    change_page(&f.node.store.databases()[0], 7);
    let (status, text) = f.text("GET", "/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "litefs_db_count 1",
        "litefs_is_primary 1",
        "litefs_lag_seconds 1.5",
        "litefs_http_stream_count 1",
        "litefs_subscriber_count 1",
        "litefs_db_txid{db=\"a.db\"} 2",
        "litefs_db_commit_count{db=\"a.db\"} 1",
        "litefs_db_quarantined{db=\"a.db\"} 0",
        "litefs_db_diverged{db=\"a.db\"} 0",
        "litefs_lease_role{role=\"primary\"} 1",
        "litefs_lease_role{role=\"handing-over\"} 0",
        "litefs_lease_epoch 3",
        "litefs_lease_transition_count 0",
        "litefs_lease_right_seconds 2.0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
    }
}

/// A browser on this host can reach loopback for any page that it shows.
#[tokio::test]
async fn a_web_page_can_neither_post_nor_read() {
    let f = Fixture::start();
    let mut posted = request("POST", "/import?name=a.db", &sqlite_file(1));
    posted.headers_mut().insert("origin", "http://evil.example".parse().unwrap());
    assert_eq!(f.send(posted).await.status(), 403);
    let mut rebound = request("GET", "/info", b"");
    rebound.headers_mut().insert("host", "evil.example:20202".parse().unwrap());
    assert_eq!(f.send(rebound).await.status(), 403);
    assert_eq!(f.txid("a.db"), 0);
    for host in ["127.0.0.1:1", "[::1]:1", "localhost", "10.0.0.1:20202"] {
        let mut good = request("GET", "/info", b"");
        good.headers_mut().insert("host", host.parse().unwrap());
        assert_eq!(f.send(good).await.status(), 200, "{host}");
    }
}

#[tokio::test]
async fn an_oversized_head_is_refused() {
    let f = Fixture::start();
    let mut stream = f.connect().await;
    stream.write_all(b"GET /info HTTP/1.1\r\nHost: localhost\r\nX: ").await.unwrap();
    // The server may close before it has read everything.
    let _ = stream.write_all(&vec![b'x'; 2 * HEAD_BYTES_MAX]).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await.unwrap();
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    assert_eq!(f.text("GET", "/info").await.0, 200);
}
