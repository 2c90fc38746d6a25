//! Two primaries by mistake, then one again: real daemons, real mounts. What the loser had is told,
//! kept, readable, and removed only when the operator says so.

use std::fs;
use std::path::{Path, PathBuf};

use litefs_node::http::Info;
use litefs_vfs::rusqlite::Connection;

use crate::daemon::{done, eventually, info, litefs};
use crate::place::{Node, Place, is_plain, read_text};
use crate::shell::sql;

/// Heals; `LITEFS_HEALS` asks for more.
const HEALS: usize = 3;
const NAME: &str = "app.db";

/// How a node stops before it is given its other role.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stop {
    /// What it did last is in its log only.
    Kill,
    /// It folds everything.
    Terminate,
}

/// Starts a node anew, as the primary or as a replica of the one at this URL.
fn become_(node: &mut Node, primary: Option<&str>, stop: Stop) {
    match stop {
        Stop::Kill => node.take().kill(),
        Stop::Terminate => assert!(node.take().terminate().success()),
    }
    let text = read_text(&node.config);
    let (candidate, url) = (primary.is_none(), primary.unwrap_or(&node.url).to_owned());
    let line = |line: &str| match line.trim_start() {
        l if l.starts_with("candidate:") => format!("  candidate: {candidate}\n"),
        l if l.starts_with("advertise-url:") => format!("  advertise-url: {url}\n"),
        _ => format!("{line}\n"),
    };
    fs::write(&node.config, text.lines().map(line).collect::<String>()).unwrap();
    node.start();
}

fn answer(node: &Node) -> Info {
    info(&node.url).expect("the node answers")
}

fn position(node: &Node) -> Option<String> {
    answer(node).databases.get(NAME).map(|db| db.position.clone())
}

fn export(node: &Node, out: &Path) -> Vec<u8> {
    done(&["export", "--url", &node.url, "--name", NAME, out.to_str().unwrap()]);
    fs::read(out).unwrap()
}

fn rows(path: &Path, who: &str) -> i64 {
    let conn = Connection::open(path).unwrap();
    let check: String = conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok", "{}", path.display());
    let count = "SELECT count(*) FROM t WHERE who = ?1";
    conn.query_row(count, [who], |row| row.get(0)).unwrap()
}

fn insert(node: &Node, who: &str, count: usize) {
    for n in 0..count {
        sql(&node.mount.join(NAME), &format!("INSERT INTO t(who, n) VALUES ('{who}', {n})"));
    }
}

fn wait_until_same(place: &Place) {
    let [a, b] = [&place.nodes[0], &place.nodes[1]];
    eventually("both are at the same position", || {
        let at = position(a);
        at.is_some() && at == position(b)
    });
    let out = place.dir().join("same.db");
    assert!(export(a, &out) == export(b, &out), "the nodes differ");
}

/// Lets both write, makes `loser` follow the other one, and looks for what it had.
fn heal(place: &mut Place, round: usize, loser: usize, stop: Stop) {
    let (lost, won) = (format!("lost{round}"), format!("won{round}"));
    insert(&place.nodes[loser], &lost, 4 + round);
    insert(&place.nodes[1 - loser], &won, 3);
    let before = position(&place.nodes[loser]).unwrap();
    let winner = place.nodes[1 - loser].url.clone();
    become_(&mut place.nodes[loser], Some(&winner), stop);
    insert(&place.nodes[1 - loser], &won, 2);
    wait_until_same(place);

    let node = &place.nodes[loser];
    let kept = answer(node).databases[NAME].diverged.clone();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(kept[0].transactions, Some(4 + round as u64), "{stop:?}");
    assert_eq!((&kept[0].newest, kept[0].whole), (&before, true));
    let status = done(&["status", "--url", &node.url]);
    assert!(status.contains(&kept[0].name), "{status}");
    let log = node.daemon().log();
    let hint = format!("--diverged {} --out FILE", kept[0].name);
    assert!(log.contains(&hint), "the log does not say what to type: {log}");
    read_what_is_kept(place, loser, &kept[0].name, (&lost, 4 + round));
    // Gone only now.
    done(&["ltx", "forget", "--url", &place.nodes[loser].url, "--diverged", &kept[0].name]);
    assert!(answer(&place.nodes[loser]).databases[NAME].diverged.is_empty());
    let current = place.dir().join("current.db");
    export(&place.nodes[loser], &current);
    assert_eq!((rows(&current, &lost), rows(&current, &won)), (0, 5));
}

fn read_what_is_kept(place: &Place, loser: usize, name: &str, (who, count): (&str, usize)) {
    let data = place.nodes[loser].data.to_str().unwrap();
    let url = &place.nodes[loser].url;
    let list = done(&["ltx", "list", "--diverged", "--data-dir", data]);
    assert!(list.contains(name), "{list}");
    done(&["ltx", "verify", "--diverged", "--url", url]);
    let out: PathBuf = place.dir().join(format!("{who}.db"));
    let out_text = out.to_str().unwrap();
    // The node runs, and the beginning of the name is enough.
    done(&["ltx", "extract", "--url", url, "--diverged", NAME, "--out", out_text]);
    assert_eq!(rows(&out, who), count as i64);
    let again = litefs(&["ltx", "extract", "--url", url, "--diverged", name, "--out", out_text]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("exists already"));
}

#[test]
fn what_a_second_primary_wrote_is_kept_and_readable_after_each_heal() {
    if is_plain() {
        return;
    }
    let heals = std::env::var("LITEFS_HEALS").map_or(HEALS, |n| n.parse().unwrap());
    let mut place = Place::pair();
    let create = "CREATE TABLE t(id INTEGER PRIMARY KEY, who TEXT, n INTEGER)";
    sql(&place.db(NAME), create);
    insert(&place.nodes[0], "both", 5);
    wait_until_same(&place);
    for round in 0..heals {
        // The one that is a replica now becomes a second primary; each loses in turn.
        let replica = usize::from(answer(&place.nodes[0]).is_primary);
        become_(&mut place.nodes[replica], None, Stop::Terminate);
        let stop = if round % 2 == 0 { Stop::Kill } else { Stop::Terminate };
        heal(&mut place, round, round % 2, stop);
    }
}

#[test]
fn an_empty_node_that_is_made_primary_replaces_nothing() {
    if is_plain() {
        return;
    }
    let mut place = Place::pair();
    sql(&place.db(NAME), "CREATE TABLE t(id INTEGER PRIMARY KEY, who TEXT, n INTEGER)");
    insert(&place.nodes[0], "both", 5);
    wait_until_same(&place);
    let before = position(&place.nodes[1]).unwrap();
    place.nodes[0].take().kill();
    fs::remove_dir_all(&place.nodes[0].data).unwrap();
    place.nodes[0].start();
    sql(&place.db(NAME), "CREATE TABLE t(x)");
    eventually("the replica says why it does not follow", || {
        place.nodes[1].daemon().log().contains("belongs to cluster")
    });
    assert_eq!(position(&place.nodes[1]), Some(before));
    let out = place.dir().join("kept.db");
    export(&place.nodes[1], &out);
    assert_eq!(rows(&out, "both"), 5);
}
