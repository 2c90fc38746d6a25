//! The status page in a real browser: what the nodes say is what it shows, on a wide screen and on
//! a phone, in light and in dark, and nothing of it comes from elsewhere.

#[path = "support/daemon.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod daemon;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use daemon::{Daemon, done, eventually, free_ports, info};
use litefs_vfs::rusqlite::Connection;
use tempfile::TempDir;

const PAGE: &str = include_str!("../../node/src/http/ui/page.html");
/// A name that would run a program if the page took it for markup.
const HOSTILE: &str = "<img src=x onerror=document.title='taken'>.db";

struct Place {
    dir: TempDir,
    ports: [u16; 2],
    _nodes: Vec<Daemon>,
}

impl Place {
    /// A primary with two databases, and a replica that has them too.
    fn new() -> Self {
        let mut place =
            Self { dir: tempfile::tempdir().unwrap(), ports: free_ports(), _nodes: vec![] };
        for node in 0..2 {
            let mut daemon = Daemon::spawn(&place.config(node));
            daemon.wait(|| info(&place.url(node)).is_some());
            place._nodes.push(daemon);
        }
        let file = place.dir.path().join("plain.db");
        Connection::open(&file).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
        for name in ["app.db", HOSTILE] {
            let (url, file) = (place.url(0), file.to_str().unwrap());
            done(&["import", "--url", &url, "--name", name, file]);
        }
        eventually("the replica has both", || {
            let info = info(&place.url(1)).unwrap();
            info.databases.len() == 2 && info.lag_ms.is_some()
        });
        place
    }

    fn url(&self, node: usize) -> String {
        format!("http://127.0.0.1:{}", self.ports[node])
    }

    fn config(&self, node: usize) -> PathBuf {
        let path = self.dir.path().join(format!("node{node}.yml"));
        let text = format!(
            "data:\n  dir: {}\nhttp:\n  addr: 127.0.0.1:{}\nlease:\n  type: static\n  hostname: \
             first.host\n  candidate: {}\n  advertise-url: {}\n  reconnect-delay: 100ms\n",
            self.dir.path().join(format!("data{node}")).display(),
            self.ports[node],
            node == 0,
            self.url(0),
        );
        fs::write(&path, text).unwrap();
        path
    }

    /// What the browser prints.
    fn browse(&self, size: &str, arguments: &[&str], url: &str) -> Vec<u8> {
        let profile = tempfile::tempdir().unwrap();
        let output = Command::new("chromium")
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"])
            .args(["--disable-dev-shm-usage", "--virtual-time-budget=4000"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(format!("--window-size={size}"))
            .args(arguments)
            .arg(url)
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .output()
            .expect("chromium is missing: type scripts/setup");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        output.stdout
    }

    /// The page of a node after a while, as HTML.
    fn shown(&self, node: usize) -> String {
        let dom = self.browse("1200,900", &["--dump-dom"], &self.url(node));
        String::from_utf8(dom).unwrap()
    }

    fn screenshot(&self, node: usize, name: &str, size: &str, arguments: &[&str]) -> Vec<u8> {
        let path = self.dir.path().join(name);
        let to = format!("--screenshot={}", path.display());
        self.browse(size, &[&[to.as_str()], arguments].concat(), &self.url(node));
        fs::read(&path).unwrap()
    }
}

/// Width and height of a PNG.
fn size(png: &[u8]) -> (u32, u32) {
    assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    (number(16), number(20))
}

#[test]
fn the_page_shows_what_the_nodes_say() {
    let place = Place::new();
    let (primary, replica) = (info(&place.url(0)).unwrap(), info(&place.url(1)).unwrap());
    let dom = place.shown(0);
    for needed in [
        "<title>first.host · primary</title>",
        &primary.node_id,
        primary.cluster_id.as_deref().unwrap(),
        &format!("127.0.0.1:{}", place.ports[1]),
        "<b>app.db</b>",
        // Shown, not taken for markup.
        "<b>&lt;img src=x onerror=document.title='taken'&gt;.db</b>",
        "<polyline class=\"stroke\"",
        "class=\"chip good\">ok</span>",
        "class=\"chip accent\">primary</span> this node",
    ] {
        assert!(dom.contains(needed), "{needed} is missing in\n{dom}");
    }
    for unwanted in ["<body class=\"is-lost\">", "<title>taken", ">To look at</h2>"] {
        assert!(!dom.contains(unwanted), "{unwanted} is in\n{dom}");
    }
    let dom = place.shown(1);
    for needed in ["· replica</title>", &replica.node_id, "first.host", ">connected</span>"] {
        assert!(dom.contains(needed), "{needed} is missing in\n{dom}");
    }
}

#[test]
fn the_page_is_drawn_on_any_screen_and_in_both_schemes() {
    let place = Place::new();
    let dark = ["--blink-settings=preferredColorScheme=0"];
    let light = place.screenshot(0, "light.png", "1200,900", &[]);
    let phone = place.screenshot(1, "phone.png", "500,1400", &[]);
    let night = place.screenshot(0, "dark.png", "1200,900", &dark);
    assert_eq!((size(&light), size(&phone), size(&night)), ((1200, 900), (500, 1400), (1200, 900)));
    assert!(light != night, "dark is as light");
    // An empty page is a few kilobytes of one colour.
    for (name, png) in [("light", &light), ("phone", &phone), ("dark", &night)] {
        assert!(png.len() > 20_000, "{name}: {} bytes", png.len());
    }
    if let Some(dir) = std::env::var_os("LITEFS_SCREENSHOTS") {
        for (name, png) in [("light.png", &light), ("phone.png", &phone), ("dark.png", &night)] {
            fs::write(Path::new(&dir).join(name), png).unwrap();
        }
    }
}

#[test]
fn the_page_has_nothing_from_elsewhere_and_takes_nothing_for_markup() {
    for foreign in ["http://", "https://", "//cdn", "@import", "url(", "innerHTML", "eval("] {
        let allowed = if foreign == "http://" { 1 } else { 0 };
        let found = PAGE.matches(foreign).count();
        assert!(found <= allowed, "{foreign} is {found} times in the page");
    }
    assert!(PAGE.contains("http://www.w3.org/2000/svg"), "the one that is a name, not a place");
}
