//! Risk: behind the proxy of a real daemon a client's request goes elsewhere than LiteFS sends it,
//! or the cookie comes or counts where it does not with LiteFS.

#[path = "support/application.rs"]
mod application;
#[path = "support/daemon.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod daemon;
#[path = "support/pair.rs"]
mod pair;

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use application::application;
use daemon::{Daemon, done, eventually, info, proxy_addr};
use litefs_node::http::Info;
use litefs_vfs::rusqlite::Connection;

/// A primary and its replica, each with a proxy before an application: `app0`, `app1`.
struct Place {
    files: pair::Place,
    proxies: Vec<String>,
    daemons: Vec<Daemon>,
}

impl Place {
    fn start() -> Self {
        let files = pair::Place::new();
        for (node, name) in ["app0", "app1"].into_iter().enumerate() {
            let proxy = format!(
                "  hostname: primary.host\nproxy:\n  addr: 127.0.0.1:0\n  target: \
                 127.0.0.1:{}\n  db: app.db\n  passthrough: [\"*.css\"]\n  always-forward: \
                 [\"/admin/*\"]\n  max-lag: 1s\n  primary-redirect-timeout: 300ms\n",
                application(move |head| format!("{name}\n{head}")),
            );
            files.config(node, &proxy);
        }
        let mut place = Self { files, proxies: Vec::new(), daemons: Vec::new() };
        place.run(0);
        place.run(1);
        place
    }

    fn config(&self, node: usize) -> PathBuf {
        self.files.path(&format!("node{node}.yml"))
    }

    fn info(&self, node: usize) -> Option<Info> {
        info(&self.files.url(node))
    }

    fn run(&mut self, node: usize) {
        let mut daemon = Daemon::spawn(&self.config(node));
        daemon.wait(|| self.info(node).is_some_and(|info| info.role != "disconnected"));
        self.proxies.insert(node, proxy_addr(&daemon));
        self.daemons.insert(node, daemon);
    }

    /// Commits a transaction; returns its cookie, once the replica has it.
    fn commit(&self) -> String {
        let (path, url) = (self.files.path("rows.db"), self.files.url(0));
        let sql = "CREATE TABLE IF NOT EXISTS t (x); INSERT INTO t VALUES (1)";
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        done(&["import", "--url", &url, "--name", "app.db", path.to_str().unwrap()]);
        let position = |node: usize| self.info(node)?.databases.get("app.db").cloned();
        let wanted = position(0).unwrap().position;
        eventually("the replica has it", || position(1).is_some_and(|db| db.position == wanted));
        format!("__txid={}", wanted.split('/').next().unwrap())
    }

    fn ask(&self, node: usize, method: &str, path: &str, cookie: &str) -> String {
        let mut stream = TcpStream::connect(&self.proxies[node]).unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: app.example\r\nCookie: {cookie}");
        write!(stream, "{head}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Asks, and checks which application answered, and whether it came with this cookie.
    fn expect(&self, request: (usize, &str, &str, &str), app: &str, set: Option<&str>) {
        let (node, method, path, cookie) = request;
        let answer = self.ask(node, method, path, cookie);
        assert!(answer.contains(&format!("\r\n\r\n{app}\n")), "{request:?}: {answer}");
        let header = answer.lines().find(|line| line.to_lowercase().starts_with("set-cookie:"));
        match (set, header) {
            (Some(set), Some(header)) => {
                let (name, rest) = header[11..].trim().split_once("; ").unwrap();
                assert_eq!(name, set, "{request:?}");
                let (path, rest) = rest.split_once("; Expires=").unwrap();
                assert!(path == "Path=/" && rest.ends_with(" GMT; HttpOnly"), "{header}");
            }
            (set, header) => assert_eq!(header, set, "{request:?}"),
        }
    }
}

#[test]
fn requests_go_where_litefs_sends_them() {
    let place = Place::start();
    let old = place.commit();
    let new = place.commit();
    let at = Some(new.as_str());
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        place.expect((0, method, "/", ""), "app0", at);
        place.expect((1, method, "/", ""), "app0", at);
    }
    for cookie in ["", "__txid=nonsense", &old, &new] {
        place.expect((0, "GET", "/", cookie), "app0", None);
        place.expect((1, "GET", "/", cookie), "app1", None);
    }
    let future = "__txid=00000000000000ff";
    place.expect((1, "GET", "/style.css", future), "app1", None);
    place.expect((1, "POST", "/style.css", ""), "app1", None);
    place.expect((1, "GET", "/style.css/x", ""), "app1", None);
    assert!(place.ask(1, "GET", "/admin/x", "").contains("\r\n\r\napp0\n"), "always forwarded");
    place.expect((1, "GET", "/admin", ""), "app1", None);
    place.expect((0, "GET", "/", future), "app0", None);
    let head = place.ask(1, "HEAD", "/", "");
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
    let health = place.ask(1, "GET", "/litefs/health", "");
    assert!(health.starts_with("HTTP/1.1 200") && health.ends_with("\r\n\r\nOK\n"), "{health}");
    let seen = place.ask(1, "POST", "/seen?a=b", "c=d").to_lowercase();
    for part in ["post /seen?a=b http/1.1", "x-forwarded-for: 127.0.0.1", "cookie: c=d"] {
        assert!(seen.contains(part), "{part} is missing in {seen}");
    }
    assert!(seen.contains("x-forwarded-host: app.example"), "{seen}");

    let began = Instant::now();
    let late = place.ask(1, "GET", "/", future);
    assert!(late.starts_with("HTTP/1.1 504") && late.contains("Proxy timeout"), "{late}");
    assert!(began.elapsed() >= Duration::from_secs(5));
}

#[test]
fn without_a_primary_writes_are_refused_and_reads_go_on() {
    let mut place = Place::start();
    let cookie = place.commit();
    place.proxies.remove(1);
    assert!(place.daemons.remove(1).terminate().success());
    let mut config = File::options().append(true).open(place.config(1)).unwrap();
    config.write_all(b"  primary-redirect: fly-replay\n").unwrap();
    place.run(1);
    let answer = place.ask(1, "POST", "/", "").to_lowercase();
    assert!(answer.contains("fly-replay: instance=primary.host\r\n"), "{answer}");
    assert!(answer.starts_with("http/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");

    place.daemons.remove(0).kill();
    eventually("the replica notices", || place.info(1).unwrap().role == "disconnected");
    let began = Instant::now();
    let answer = place.ask(1, "POST", "/", "");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("no primary available"), "{answer}");
    assert!(began.elapsed() >= Duration::from_millis(300));
    place.expect((1, "GET", "/", &cookie), "app1", None);
    eventually("the health page tells of the lag", || {
        let health = place.ask(1, "GET", "/litefs/health", "");
        health.starts_with("HTTP/1.1 503") && health.contains("Replication lag exceeded")
    });
}
