//! The proxy before applications that use the mount.

use std::fs::File;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::daemon::{free_ports, proxy_addr};
use crate::npm::express_example;
use crate::place::{Place, is_plain};
use crate::shell::{Session, printed, sql};

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A primary and a replica, each with a proxy before an express app that uses litefs-js.
struct WebPlace {
    place: Place,
    proxies: Vec<String>,
    _apps: Vec<Running>,
}

impl WebPlace {
    fn start() -> Self {
        let example = express_example();
        let mut place = Place::prepare(2);
        let mut apps = Vec::new();
        for (node, port) in place.nodes.iter_mut().zip(free_ports()) {
            let mut config = File::options().append(true).open(&node.config).unwrap();
            let target = format!("  target: 127.0.0.1:{port}\n  db: app.db\n");
            writeln!(config, "proxy:\n  addr: 127.0.0.1:0\n{target}  debug: true").unwrap();
            node.start();
            let mut app = Command::new("node");
            app.arg("app.js").current_dir(&example).stdin(Stdio::null()).stdout(Stdio::null());
            app.env("LITEFS_DIR", &node.mount).env("DATABASE_FILENAME", "app.db");
            apps.push(Running(app.env("PORT", port.to_string()).spawn().unwrap()));
        }
        let proxies = place.nodes.iter().map(|node| proxy_addr(node.daemon())).collect();
        let setup =
            "CREATE TABLE visit(n INTEGER PRIMARY KEY, at); INSERT INTO visit DEFAULT VALUES";
        sql(&place.db("app.db"), &format!("PRAGMA journal_mode=wal; {setup}"));
        place.wait_for_replica("app.db");
        Self { place, proxies, _apps: apps }
    }

    fn curl(&self, node: usize, args: &[&str]) -> String {
        let url = format!("http://{}/visits", self.proxies[node]);
        printed(Command::new("curl").args(["-sS", "--max-time", "60"]).args(args).arg(url))
    }

    /// How many visits a node knows of.
    fn visits(&self, node: usize, cookies: &str) -> u64 {
        let answer = self.curl(node, &["-b", cookies]);
        let number = answer.split_once(" visits").and_then(|(number, _)| number.parse().ok());
        number.unwrap_or_else(|| panic!("{answer}"))
    }

    /// Posts to a node; returns the cookies of proxy and litefs-js.
    fn post(&self, node: usize) -> String {
        let answer = self.curl(node, &["-i", "-X", "POST"]);
        assert!(answer.contains("\r\n\r\nvisit "), "{answer}");
        let cookies = answer.lines().filter_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("set-cookie").then(|| value.split(';').next())?
        });
        let cookies: Vec<&str> = cookies.collect();
        assert_eq!(cookies.len(), 2, "{answer}");
        cookies.join("; ")
    }
}

/// Unmodified, off Fly.io: litefs-js alone would answer 409 to a write on the replica.
#[test]
fn an_express_app_with_litefs_js_may_be_asked_on_any_node() {
    if is_plain() {
        return;
    }
    let web = WebPlace::start();
    let mut rows = 1;
    for _ in 0..10 {
        for node in [1, 0] {
            let cookies = web.post(node);
            rows += 1;
            for reader in [1, 0] {
                assert_eq!(web.visits(reader, &cookies), rows);
            }
        }
    }
    web.place.check_replica("app.db");
}

/// The record is in the replica's log at once, but the mount does not show it while somebody reads
/// the older state.
#[test]
fn a_read_waits_until_the_mount_shows_its_clients_write() {
    if is_plain() {
        return;
    }
    let web = WebPlace::start();
    let mut reader = Session::open(&web.place.copy("app.db"));
    assert_eq!(reader.say("BEGIN; SELECT count(*) FROM visit"), "1");
    let cookies = web.post(1);
    let read = std::thread::scope(|scope| {
        let read = scope.spawn(|| web.visits(1, &cookies));
        std::thread::sleep(Duration::from_millis(500));
        assert!(!read.is_finished(), "the read did not wait");
        reader.say("COMMIT");
        read.join().unwrap()
    });
    assert_eq!(read, 2);
}
