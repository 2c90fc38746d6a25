//! The real binary, as an operator runs it: configuration files, signals, certificates, several
//! processes.

#[path = "support/access.rs"]
mod access;
#[path = "support/application.rs"]
mod application;
#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/pair.rs"]
mod pair;

use std::fs;
use std::path::{Path, PathBuf};

use daemon::{Daemon, done, eventually, litefs};
use litefs_node::http::Info;
use litefs_vfs::rusqlite::Connection;
use pair::Place;

impl Place {
    /// A plain SQLite file with that many rows.
    fn sqlite_file(&self, rows: usize) -> PathBuf {
        let path = self.path(&format!("rows{rows}.db"));
        let conn = Connection::open(&path).unwrap();
        conn.execute_batch(&format!(
            "CREATE TABLE t (x); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n \
             WHERE i < {rows}) INSERT INTO t SELECT i FROM n"
        ))
        .unwrap();
        path
    }

    fn import(&self, node: usize, file: &Path) {
        let url = self.url(node);
        done(&["import", "--url", &url, "--name", "app.db", file.to_str().unwrap()]);
    }

    fn export(&self, node: usize) -> Vec<u8> {
        let (url, out) = (self.url(node), self.path(&format!("export{node}.db")));
        done(&["export", "--url", &url, "--name", "app.db", out.to_str().unwrap()]);
        fs::read(out).unwrap()
    }

    /// Waits until the replica is where the primary is, and compares every byte.
    fn assert_replicated(&self) {
        let position = |node| self.info(node)?.databases.get("app.db").map(|d| d.position.clone());
        let wanted = position(0).expect("the primary has the database");
        eventually("the replica has everything", || position(1).as_ref() == Some(&wanted));
        assert!(self.export(0) == self.export(1), "the nodes differ at {wanted}");
    }

    /// What the node answers; `None` while it does not.
    fn info(&self, node: usize) -> Option<Info> {
        daemon::info(&self.url(node))
    }
}

fn start(place: &Place, node: usize, config: &Path) -> Daemon {
    let mut daemon = Daemon::spawn(config);
    daemon.wait(|| place.info(node).is_some());
    daemon
}

#[test]
fn what_is_imported_on_the_primary_is_exported_by_the_replica_and_status_shows_both() {
    let place = Place::new();
    let _primary = start(&place, 0, &place.config(0, ""));
    let _replica = start(&place, 1, &place.config(1, ""));
    let file = place.sqlite_file(1000);
    place.import(0, &file);
    place.assert_replicated();
    let count = "SELECT count(*) FROM t";
    let copy = Connection::open(place.path("export1.db")).unwrap();
    assert_eq!(copy.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap(), 1000);

    let replica_id = place.info(1).unwrap().node_id;
    eventually("the primary's status names the replica", || {
        let text = done(&["status", "--url", &place.url(0)]);
        text.contains("role      primary") && text.contains(&format!("replica   {replica_id}"))
    });
    let text = done(&["status", "--url", &place.url(1)]);
    assert!(text.contains("role      replica") && text.contains("app.db"), "{text}");

    let url = place.url(1);
    let refused = litefs(&["import", "--url", &url, "--name", "app.db", file.to_str().unwrap()]);
    let error = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    assert!(error.contains("not the primary"), "{error}");
}

#[test]
fn a_killed_primary_comes_back_with_what_it_had_and_its_replica_finds_it() {
    let place = Place::new();
    let config = place.config(0, "");
    let primary = start(&place, 0, &config);
    let _replica = start(&place, 1, &place.config(1, ""));
    place.import(0, &place.sqlite_file(100));
    place.assert_replicated();
    let before = place.export(0);
    primary.kill();
    eventually("the replica notices", || place.info(1).unwrap().role == "disconnected");
    let _primary = start(&place, 0, &config);
    assert!(place.export(0) == before, "the primary lost what it had");
    place.import(0, &place.sqlite_file(200));
    place.assert_replicated();
}

#[test]
fn sigterm_exits_with_0_and_leaves_a_plain_sqlite_file() {
    let place = Place::new();
    let daemon = start(&place, 0, &place.config(0, ""));
    place.import(0, &place.sqlite_file(500));
    let second = litefs(&["mount", "--config", place.path("node0.yml").to_str().unwrap()]);
    let error = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1));
    assert!(error.contains(&format!("in use by process {}", daemon.pid())), "{error}");
    assert_eq!(daemon.terminate().code(), Some(0));
    let base = Connection::open(place.path("data0/dbs/app.db/base")).unwrap();
    let check: String = base.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    let count = "SELECT count(*) FROM t";
    assert_eq!(base.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap(), 500);
}

#[test]
fn an_address_that_others_reach_is_refused_without_certificates() {
    let place = Place::new();
    let path = place.config(0, "");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("addr: 127.0.0.1:", "addr: 0.0.0.0:")).unwrap();
    let output = litefs(&["mount", "--config", path.to_str().unwrap()]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    for needed in ["certs init", "certs issue", "ca:", "cert:", "key:", "tls.insecure"] {
        assert!(error.contains(needed), "{needed} is missing in {error}");
    }
    assert!(!place.path("data0").exists(), "a refused start leaves nothing behind");
}

/// The lines for a node's configuration that `certs issue` prints.
fn issue(place: &Place, authority: &str, node: &str) -> String {
    let dir = place.path(authority);
    let printed = done(&["certs", "issue", "--dir", dir.to_str().unwrap(), node]);
    let (_, lines) = printed.split_once("tls:\n").expect("the lines for the config");
    format!("tls:\n{lines}")
}

#[test]
fn nodes_with_certificates_follow_each_other_and_a_foreign_authority_is_refused() {
    let place = Place::new();
    for authority in ["certs", "foreign"] {
        let dir = place.path(authority);
        done(&["certs", "init", "--dir", dir.to_str().unwrap()]);
    }
    let primary = start(&place, 0, &place.config(0, &issue(&place, "certs", "n0")));
    let replica = start(&place, 1, &place.config(1, &issue(&place, "certs", "n1")));
    place.import(0, &place.sqlite_file(100));
    place.assert_replicated();
    eventually("the primary names the replica by its certificate", || {
        place.info(0).unwrap().replicas.iter().any(|replica| replica.node == "n1")
    });
    assert_eq!(replica.terminate().code(), Some(0));

    let foreign = start(&place, 1, &place.config(1, &issue(&place, "foreign", "n1")));
    eventually("the foreign node says why", || {
        let log = foreign.log();
        log.contains("no connection to the primary") && log.contains("certificate")
    });
    eventually("the primary says why", || primary.log().contains("refused a connection"));
    let before = place.export(1);
    place.import(0, &place.sqlite_file(200));
    assert!(place.info(0).unwrap().replicas.is_empty());
    assert!(place.export(1) == before, "a refused node got something");
}
