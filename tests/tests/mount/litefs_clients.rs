//! LiteFS's own clients, unmodified.

use std::path::PathBuf;
use std::process::Command;

use crate::npm::{express_example, put};
use crate::place::{Place, is_plain};
use crate::shell::{Session, printed, python, sql};

#[test]
fn the_npm_package_litefs_js_works_on_primary_and_replica() {
    if is_plain() {
        return;
    }
    let dir = express_example();
    put(&dir, "test.mjs", include_str!("litefs_js.mjs"));
    let place = Place::pair();
    let setup = "CREATE TABLE visit(n INTEGER PRIMARY KEY, at); INSERT INTO visit DEFAULT VALUES";
    sql(&place.db("app.db"), &format!("PRAGMA journal_mode=wal; {setup}"));
    place.wait_for_replica("app.db");
    crate::daemon::eventually("the replica names the primary", || place.copy(".primary").exists());
    let mut node = Command::new("node");
    node.arg("test.mjs").args(place.nodes.iter().map(|node| &node.mount));
    assert_eq!(printed(node.current_dir(&dir)), "ok");
    place.check_replica("app.db");
}

#[test]
fn the_halt_lock_is_granted_on_the_primary_and_on_a_replica() {
    if is_plain() {
        return;
    }
    let place = Place::pair();
    place.sql("a.db", "CREATE TABLE t(x); INSERT INTO t VALUES (1)");
    place.wait_for_replica("a.db");
    let ask =
        |path: PathBuf| printed(&mut python(include_str!("halt.py"), &[path.to_str().unwrap()]));
    let primary = ask(place.db("a.db-lock"));
    let refused = "read lock ENOSYS\nwithout waiting ENOSYS\nanother byte EINVAL\ntwo bytes EINVAL";
    let granted = "lock granted\nagain granted\nunlock granted\nafter unlock granted";
    assert_eq!(primary, format!("{refused}\n{granted}"));
    let replica = ask(place.copy("a.db-lock"));
    assert_eq!(replica, format!("{refused}\n{granted}"));
    place.sql("a.db", "INSERT INTO t VALUES (2)");
    place.check("a.db");
}

#[test]
fn run_keeps_the_halt_lock_open_for_its_program() {
    if is_plain() {
        return;
    }
    let place = Place::alone();
    place.sql("a.db", "CREATE TABLE t(x)");
    let (db, script) = (place.db("a.db"), "ls -l /proc/$$/fd; exit 3");
    let args = ["run", "-with-halt-lock-on", db.to_str().unwrap(), "--", "sh", "-c", script];
    let output = crate::daemon::litefs(&args);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.contains(&format!("-> {}-lock", db.display())), "{printed}");
    assert_eq!(output.status.code(), Some(3));
    let missing = place.db("b.db");
    let args = ["run", "-with-halt-lock-on", missing.to_str().unwrap(), "--", "true"];
    let output = crate::daemon::litefs(&args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("cannot open") && error.contains("b.db-lock"), "{error}");
}

/// LiteFS's `/debug/vars`.
#[test]
fn the_debug_variables_show_who_holds_which_lock() {
    if is_plain() {
        return;
    }
    let place = Place::alone();
    sql(&place.db("a.db"), "PRAGMA journal_mode=wal; CREATE TABLE t(x)");
    let mut writer = Session::open(&place.db("a.db"));
    let vars = || -> serde_json::Value {
        let url = format!("{}/debug/vars", place.nodes[0].url);
        serde_json::from_str(&printed(Command::new("curl").args(["-sS", &url]))).unwrap()
    };
    writer.say("BEGIN IMMEDIATE; INSERT INTO t VALUES (1)");
    let held = vars();
    let locks = &held["store"]["dbs"]["a.db"]["locks"];
    assert_eq!((&locks["write"], &locks["dms"]), (&"exclusive".into(), &"shared".into()));
    assert_eq!((&locks["shared"], &locks["recover"]), (&"shared".into(), &"unlocked".into()));
    assert_eq!(locks.as_object().unwrap().len(), 12);
    writer.say("COMMIT");
    let free = vars();
    let db = &free["store"]["dbs"]["a.db"];
    assert_eq!(db["locks"]["write"], "unlocked");
    let position =
        format!("{}/{}\n", db["txid"].as_str().unwrap(), db["checksum"].as_str().unwrap());
    assert_eq!(position, place.pos("a.db"));
    assert_eq!(free["store"]["isPrimary"], true);
    assert_eq!(free["cmdline"][1], "mount");
}
