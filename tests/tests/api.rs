//! Risk: a client of LiteFS's HTTP API gets another answer than LiteFS gives it, or a bad request
//! leaves something behind. Real daemons, asked with curl.

#[path = "support/daemon.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod daemon;
#[path = "support/pair.rs"]
mod pair;

use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use daemon::{Daemon, done, eventually, info};
use litefs_vfs::rusqlite::Connection;
use serde_json::{Value, json};

/// A primary and, once it is started, its replica.
struct Place {
    files: pair::Place,
    urls: [String; 2],
    daemons: Vec<Daemon>,
}

impl Place {
    /// Starts the primary, with more lines in the configurations of both.
    fn start(more: &str) -> Self {
        let files = pair::Place::new();
        for node in [0, 1] {
            files.config(node, &format!("  hostname: primary.host\n{more}"));
        }
        let urls = [0, 1].map(|node| files.url(node));
        let mut place = Self { files, urls, daemons: Vec::new() };
        place.run();
        place
    }

    /// Starts the next node.
    fn run(&mut self) {
        let node = self.daemons.len();
        let mut daemon = Daemon::spawn(&self.path(&format!("node{node}.yml")));
        daemon.wait(|| info(&self.urls[node]).is_some());
        self.daemons.push(daemon);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path(name)
    }

    /// A plain SQLite file.
    fn sqlite_file(&self) -> PathBuf {
        let path = self.path("plain.db");
        let conn = Connection::open(&path).unwrap();
        conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x); INSERT INTO t VALUES (1)").unwrap();
        path
    }

    fn import(&self) {
        let file = self.sqlite_file();
        done(&["import", "--url", &self.urls[0], "--name", "app.db", file.to_str().unwrap()]);
    }

    fn ask(&self, node: usize, method: &str, path: &str, body: &[u8]) -> Answer {
        let url = format!("{}{path}", self.urls[node]);
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-i", "--path-as-is", "--max-time", "30", "-X", method]);
        curl.args(["-H", "Litefs-Id: 00000000000000AB", "--data-binary", "@-", &url]);
        let mut child = curl.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // It may be refused before it is taken.
        let _ = child.stdin.take().unwrap().write_all(body);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{method} {path}: {}", output.status);
        Answer::parse(&output.stdout)
    }

    fn databases(&self) -> Vec<String> {
        let names = fs::read_dir(self.path("data0/dbs")).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn parse(answer: &[u8]) -> Self {
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(answer[..end].to_vec()).unwrap().to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head, body: answer[end + 4..].to_vec() }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Node, method, path, body; then the status, and what the answer's text must contain.
type Request = (usize, &'static str, &'static str, &'static [u8], u16, &'static str);

/// What http/server.go of LiteFS answers, but where a text may say more.
const REFUSED: [Request; 36] = [
    (0, "GET", "/nothing", b"", 404, "not found"),
    (0, "GET", "/info/", b"", 404, "not found"),
    (0, "POST", "/info", b"", 405, ""),
    (0, "POST", "/export", b"", 405, ""),
    (0, "GET", "/import", b"", 405, ""),
    (0, "GET", "/promote", b"", 405, ""),
    (0, "GET", "/handoff", b"", 405, ""),
    (0, "GET", "/halt", b"", 405, ""),
    (0, "GET", "/tx", b"", 405, ""),
    (0, "POST", "/events", b"", 405, ""),
    (0, "POST", "/metrics", b"", 405, ""),
    (0, "POST", "/health", b"", 405, ""),
    (0, "POST", "/debug/vars", b"", 405, ""),
    (0, "GET", "/debug/pprof/heap", b"", 404, "not found"),
    (0, "POST", "/stream", b"", 404, "not found"),
    (0, "GET", "/export", b"", 400, "name required"),
    (0, "GET", "/export?name=none.db", b"", 404, "database not found"),
    (0, "GET", "/export?name=../node.json", b"", 400, "invalid database name"),
    (0, "GET", "/export/../../node.json", b"", 404, "not found"),
    (0, "POST", "/import", b"", 400, "name required"),
    (0, "POST", "/import?name=..%2Fevil", b"", 400, "invalid database name"),
    (0, "POST", "/import?name=a.db-wal", b"", 400, "invalid database name"),
    (0, "POST", "/import?name=bad.db", b"no database", 400, "no SQLite database"),
    (1, "POST", "/import?name=app.db", b"", 503, "primary.host"),
    (1, "POST", "/promote", b"", 409, "not a candidate"),
    (0, "POST", "/handoff", b"", 400, "node id"),
    (0, "POST", "/handoff?nodeID=zz", b"", 400, "node id"),
    (0, "POST", "/handoff?nodeID=00000000000000AB", b"", 500, "static"),
    (0, "POST", "/halt?id=1", b"", 400, "name required"),
    (0, "POST", "/halt?name=app.db", b"", 400, "id required"),
    (0, "POST", "/halt?name=app.db&id=x", b"", 400, "id"),
    (0, "POST", "/halt?name=..%2Fevil&id=1", b"", 400, "invalid database name"),
    (1, "POST", "/halt?name=app.db&id=1", b"", 503, "primary.host"),
    (0, "POST", "/tx?name=app.db", b"", 400, "lockID required"),
    (0, "POST", "/tx?name=app.db&lockID=1", b"no transaction", 409, "not halted"),
    (1, "POST", "/tx?name=app.db&lockID=1", b"", 503, "primary.host"),
];

#[test]
fn bad_requests_are_refused_as_litefs_refuses_them_and_leave_nothing() {
    let mut place = Place::start("");
    place.run();
    place.import();
    let before = info(&place.urls[0]).unwrap().databases["app.db"].position.clone();
    for (node, method, path, body, status, text) in REFUSED {
        let answer = place.ask(node, method, path, body);
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        assert!(answer.text().contains(text), "{method} {path}: {}", answer.text());
        for header in ["litefs-id: ", "litefs-cluster-id: lfsc"] {
            assert!(answer.head.contains(header), "{method} {path}: {}", answer.head);
        }
    }
    assert_eq!(place.databases(), ["app.db"]);
    assert_eq!(info(&place.urls[0]).unwrap().databases["app.db"].position, before);
}

#[test]
fn good_requests_are_answered_as_litefs_answers_them() {
    let place = Place::start("");
    let file = fs::read(place.sqlite_file()).unwrap();
    let imported = place.ask(0, "POST", "/import?name=app.db", &file);
    assert_eq!((imported.status, imported.text().as_str()), (200, ""));
    let exported = place.ask(0, "GET", "/export?name=app.db", b"");
    assert!(exported.body.starts_with(b"SQLite format 3\0"));
    assert_eq!(exported.body.len(), file.len());

    let answer = place.ask(0, "GET", "/info", b"");
    assert!(answer.head.contains("content-type: text/plain") && answer.body.ends_with(b"}\n"));
    let info = answer.json();
    let primary = json!({"hostname": "primary.host"});
    let path = place.path("data0");
    assert_eq!((&info["isPrimary"], &info["candidate"]), (&json!(true), &json!(true)));
    assert_eq!((&info["primary"], &info["path"]), (&primary, &json!(path)));
    let id = info["clusterID"].as_str().unwrap();
    assert!(answer.head.contains(&format!("litefs-cluster-id: {}", id.to_lowercase())));

    assert_eq!(place.ask(0, "POST", "/promote", b"").status, 200, "it is the primary");
    let halted = place.ask(0, "POST", "/halt?name=app.db&id=-7", b"").json();
    assert_eq!((&halted["id"], &halted["pos"]["TXID"]), (&json!(-7), &json!("0000000000000001")));
    assert!(halted["pos"]["PostApplyChecksum"].is_string() && halted["expires"].is_string());
    let again = place.ask(0, "POST", "/halt?name=app.db&id=-7", b"");
    assert_eq!((again.status, again.json()["pos"].clone()), (200, halted["pos"].clone()));
    let junk = place.ask(0, "POST", "/tx?name=app.db&lockID=-7", b"no transaction");
    assert!(junk.status >= 400, "{junk:?}");
    // Another lock is not released; what is written meanwhile waits for the one that is.
    assert_eq!(place.ask(0, "DELETE", "/halt?name=app.db&id=8", b"").status, 200);
    assert_eq!(place.ask(0, "DELETE", "/halt?name=app.db&id=-7", b"").status, 200);
    assert_eq!(place.ask(0, "POST", "/import?name=app.db", &file).status, 200);
}

/// The names of all fields, but those of databases.
fn fields(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                if !name.ends_with(".db") {
                    found.push(name.clone());
                }
                fields(value, found);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| fields(value, found)),
        _ => (),
    }
}

#[test]
fn every_field_and_metric_is_documented() {
    let document = include_str!("../../docs/monitoring.md");
    let mut names = Vec::new();
    for mode in ["replication:\n  mode: bounded\n  max-lag: 10m\n", "replication:\n  mode: sync\n"]
    {
        let mut place = Place::start(mode);
        place.run();
        eventually("a replica has everything", || {
            info(&place.urls[0]).unwrap().replicas.iter().any(|replica| replica.lag_ms.is_some())
        });
        place.import();
        for node in [0, 1] {
            fields(&place.ask(node, "GET", "/info", b"").json(), &mut names);
            let metrics = place.ask(node, "GET", "/metrics", b"").text();
            let types = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE "));
            names.extend(types.map(|line| line.split(' ').next().unwrap().to_owned()));
        }
    }
    assert!(names.len() > 100, "{names:?}");
    let is_there = |name: &String| {
        [format!("`{name}"), format!(".{name}`")].iter().any(|name| document.contains(name))
    };
    names.retain(|name| !is_there(name));
    assert!(names.is_empty(), "not in docs/monitoring.md: {names:?}");
}

/// The lines of `/events`.
struct Events {
    curl: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Events {
    fn of(url: &str) -> Self {
        let mut curl = Command::new("curl");
        curl.args(["-sSN", "--max-time", "120", "--http1.1", &format!("{url}/events")]);
        let mut curl = curl.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(curl.stdout.take().unwrap()).lines();
        Self { curl, lines }
    }

    /// The next event of a type.
    fn next(&mut self, kind: &str) -> Value {
        let events = self.lines.by_ref().map(|line| serde_json::from_str(&line.unwrap()).unwrap());
        let mut events = events.filter(|event: &Value| event["type"] == kind);
        events.next().unwrap_or_else(|| panic!("the stream ended without {kind}"))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.curl.kill();
        let _ = self.curl.wait();
    }
}

#[test]
fn events_are_litefss() {
    let mut place = Place::start("");
    place.run();
    let [mut primary, mut replica] = [0, 1].map(|node| Events::of(&place.urls[node]));
    let init = primary.next("init");
    let role = json!({"isPrimary": true, "hostname": "primary.host"});
    assert_eq!(init, json!({"type": "init", "data": role}));
    let init = replica.next("init");
    assert_eq!(init["data"]["isPrimary"], false);
    place.import();
    let position = info(&place.urls[0]).unwrap().databases["app.db"].position.clone();
    let (txid, checksum) = position.split_once('/').unwrap();
    let event = primary.next("tx");
    assert_eq!((&event["db"], &event["data"]["txID"]), (&json!("app.db"), &json!(txid)));
    assert_eq!(event["data"]["postApplyChecksum"], checksum);
    assert_eq!((&event["data"]["pageSize"], &event["data"]["commit"]), (&json!(4096), &json!(2)));
    assert!(event["data"]["timestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!(replica.next("tx"), event, "the replica tells the same");
    place.daemons.remove(0).kill();
    let event = replica.next("primaryChange");
    assert_eq!(event, json!({"type": "primaryChange", "data": {"isPrimary": false}}));
}

#[test]
fn events_tell_when_commits_do_without_replicas_and_when_they_wait_again() {
    let mode = "replication:\n  mode: sync\n  timeout: 300ms\n  on-timeout: async\n";
    let mut place = Place::start(mode);
    let mut events = Events::of(&place.urls[0]);
    events.next("init");
    place.import();
    let fell_back = json!({"fallenBack": true, "syncSet": []});
    assert_eq!(events.next("syncChange"), json!({"type": "syncChange", "data": fell_back}));
    assert!(info(&place.urls[0]).unwrap().replication.unwrap().fallen_back);
    place.run();
    let replica = info(&place.urls[1]).unwrap().node_id;
    let returned = json!({"fallenBack": false, "syncSet": [replica]});
    assert_eq!(events.next("syncChange"), json!({"type": "syncChange", "data": returned}));
    eventually("the page's list has both", || {
        let recent = place.ask(0, "GET", "/events/recent", b"").json();
        let events = recent.as_array().unwrap().iter().map(|entry| &entry["event"]);
        let data: Vec<_> =
            events.filter(|e| e["type"] == "syncChange").map(|e| &e["data"]).collect();
        data == [&fell_back, &returned]
    });
}
