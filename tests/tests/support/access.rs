//! Real nodes that other hosts reach: who gets in, by the command line, and how a replica's proxy
//! reaches the primary's application over TLS. Uses this host's own address in its network, as
//! everything on loopback is trusted.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;

use litefs_vfs::rusqlite::Connection;
use tempfile::TempDir;

use crate::application::application;
use crate::daemon::{self, Daemon, done, eventually, free_ports, litefs, proxy_addr};

const TOKEN: &str = "a-token-of-the-test-0123456789";

/// This host's address in its network; `None` if it has none but loopback.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Sends nothing.
    socket.connect("198.51.100.1:9").ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}

/// A primary and a replica with certificates, on all addresses, each with a proxy.
struct Place {
    dir: TempDir,
    ip: IpAddr,
    ports: [u16; 2],
    daemons: Vec<Daemon>,
}

impl Place {
    fn start(ip: IpAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut place = Self { dir, ip, ports: free_ports(), daemons: Vec::new() };
        for authority in ["certs", "foreign"] {
            let dir = place.path(authority);
            done(&["certs", "init", "--dir", dir.to_str().unwrap()]);
        }
        fs::write(place.path("token"), format!("{TOKEN}\n")).unwrap();
        for (node, app) in ["primary's app", "replica's app"].into_iter().enumerate() {
            let config = place.config(node, "certs", application(move |_| app.to_owned()));
            let mut daemon = Daemon::spawn(&config);
            let local = format!("http://localhost:{}", place.ports[node]);
            daemon.wait(|| daemon::info(&local).is_some());
            place.daemons.push(daemon);
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self, node: usize, authority: &str, app: u16) -> PathBuf {
        let dir = self.path(authority);
        let name = format!("n{node}");
        let printed = done(&["certs", "issue", "--dir", dir.to_str().unwrap(), &name]);
        let (_, tls) = printed.split_once("tls:\n").expect("the lines for the config");
        let path = self.path(&format!("{authority}{node}.yml"));
        let text = format!(
            "data:\n  dir: {}\nhttp:\n  addr: \":{}\"\n  token-file: {}\nlease:\n  type: static\n  \
             candidate: {}\n  advertise-url: {}\n  reconnect-delay: 100ms\nproxy:\n  addr: \
             127.0.0.1:0\n  target: localhost:{app}\n  db: app.db\ntls:\n{tls}",
            self.path(&format!("data{node}")).display(),
            self.ports[node],
            self.path("token").display(),
            node == 0,
            self.url("https", 0),
        );
        fs::write(&path, text).unwrap();
        path
    }

    fn url(&self, scheme: &str, node: usize) -> String {
        format!("{scheme}://{}", SocketAddr::new(self.ip, self.ports[node]))
    }

    fn authority(&self) -> String {
        self.path("certs").join("ca.crt").to_str().unwrap().to_owned()
    }

    fn sqlite_file(&self) -> String {
        let path = self.path("rows.db");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// Runs a command that must be refused; returns why.
fn refused(args: &[&str]) -> String {
    let output = litefs(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn ask(addr: &str, method: &str) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    let head = format!("{method} /x HTTP/1.1\r\nHost: app.example\r\nContent-Length: 0\r\n");
    write!(stream, "{head}Connection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn database_exists(place: &Place, name: &str) -> bool {
    Path::new(&place.path("data0")).join("dbs").join(name).exists()
}

#[test]
fn other_hosts_need_a_certificate_or_the_token_and_proxies_use_the_nodes_certificates() {
    let Some(ip) = own_address() else {
        return eprintln!("NOTE: this host has no address but loopback: nothing was tried");
    };
    let place = Place::start(ip);
    let (https, ca, file) = (place.url("https", 0), place.authority(), place.sqlite_file());
    let import = ["import", "--url", &https, "--ca", &ca, "--name", "app.db"];

    let error = refused(&[&import[..], &[&file]].concat());
    assert!(error.contains("token"), "{error}");
    let wrong = [&import[..], &["--token", "a-wrong-token-0123456789", &file]].concat();
    assert!(refused(&wrong).contains("token"), "the wrong token");
    let error = refused(&["status", "--url", &place.url("http", 0), "--token", TOKEN]);
    assert!(error.contains("HTTPS"), "{error}");
    let foreign = place.config(1, "foreign", 1);
    let foreign = ["status", "--url", &https, "--config", foreign.to_str().unwrap()];
    assert!(refused(&foreign).contains("certificate"), "a foreign authority");
    assert!(!database_exists(&place, "app.db"), "a refused import left something");

    done(&[&import[..], &["--token", TOKEN, &file]].concat());
    let by_environment = Command::new(env!("CARGO_BIN_EXE_litefs-daemon"))
        .args(["status", "--url", &https, "--ca", &ca])
        .env("LITEFS_TOKEN", TOKEN)
        .output()
        .unwrap();
    assert!(by_environment.status.success(), "{by_environment:?}");
    let config = place.path("certs1.yml");
    let by_certificate =
        ["status", "--json", "--url", &https, "--config", config.to_str().unwrap()];
    assert!(done(&by_certificate).contains("app.db"));
    // On its own host a node needs nothing.
    assert!(done(&["status", "--url", &format!("http://localhost:{}", place.ports[0])]).len() > 1);

    let replica = proxy_addr(&place.daemons[1]);
    eventually("the replica knows the primary", || ask(&replica, "POST").contains(" 200 OK"));
    let answer = ask(&replica, "POST");
    assert!(answer.ends_with("primary's app") && answer.contains("__txid="), "{answer}");
    assert!(ask(&replica, "GET").ends_with("replica's app"));
}
