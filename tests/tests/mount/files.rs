//! The directory itself: special files, listing, and what clients do to files beside SQLite.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use crate::daemon::eventually;
use crate::place::{Place, assert_same_bytes, is_plain, read_text};
use crate::shell::{Session, sql, sqlite3};

const SETUP: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, x); INSERT INTO t(x) VALUES (1)";

fn listing(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn special_files_have_the_contents_that_litefs_gives_them() {
    if is_plain() {
        return;
    }
    let place = Place::pair();
    place.sql("a.db", &format!("PRAGMA journal_mode=wal; {SETUP}"));
    place.wait_for_replica("a.db");
    let position = place.pos("a.db");
    assert_eq!(position.len(), 34);
    let (txid, checksum) = position.trim_end().split_once('/').unwrap();
    let is_hex = |text: &str| text.len() == 16 && u64::from_str_radix(text, 16).is_ok();
    assert!(is_hex(txid) && is_hex(checksum) && position.ends_with('\n'), "{position:?}");
    assert_eq!(u64::from_str_radix(txid, 16).unwrap(), 3, "one for each transaction");
    assert!(u64::from_str_radix(checksum, 16).unwrap() >> 63 == 1, "{position}");
    let changed = fs::metadata(place.db("a.db-pos")).unwrap().modified().unwrap();
    assert!(SystemTime::now().duration_since(changed).unwrap() < Duration::from_secs(600));

    assert!(!place.db(".primary").exists(), "the primary names nobody");
    eventually("the replica names the primary", || place.copy(".primary").exists());
    assert_eq!(read_text(&place.copy(".primary")), "primary.host\n");

    // B23: a size of 11 whatever is in it.
    assert_eq!(read_text(&place.db(".lag")), "+000000000\n");
    eventually("the replica is in sync", || read_text(&place.copy(".lag")) != "+2147483647\n");
    let lag = read_text(&place.copy(".lag"));
    assert!(lag.len() == 11 && lag.starts_with('+') && lag.ends_with('\n'), "{lag:?}");
    assert!(lag.trim_end().parse::<i64>().unwrap() < 60_000, "{lag:?}");
    assert_eq!(fs::metadata(place.copy(".lag")).unwrap().len(), 11);

    assert_eq!(read_text(&place.db("a.db-lock")), "");
    assert_eq!(listing(&place.primary_dir()), [".lag", "a.db", "a.db-pos"]);
    assert_eq!(listing(&place.nodes[1].mount), [".lag", ".primary", "a.db", "a.db-pos"]);
    let modes = |name: &str| (mode(&place.db(name)), mode(&place.copy(name)));
    assert_eq!(modes("."), (0o777, 0o555));
    assert_eq!(modes("a.db"), (0o666, 0o444));
    assert_eq!(modes("a.db-pos"), (0o666, 0o666));
    assert_eq!(modes("a.db-lock"), (0o444, 0o444));
    assert_eq!(modes(".lag"), (0o444, 0o444));
    assert_eq!(mode(&place.copy(".primary")), 0o444);
}

/// B23: a replica that never was in sync says so, in as many bytes as the file has.
#[test]
fn b23_a_replica_without_a_primary_has_the_largest_lag_and_no_primary() {
    if is_plain() {
        return;
    }
    let mut place = Place::prepare(2);
    place.nodes[1].start();
    let lag = place.copy(".lag");
    assert_eq!(read_text(&lag), "+2147483647\n");
    assert_eq!(fs::metadata(&lag).unwrap().len(), "+2147483647\n".len() as u64);
    assert!(!place.copy(".primary").exists());
    place.nodes[0].start();
    eventually("the replica names the primary", || place.copy(".primary").exists());
    place.nodes[0].take().kill();
    eventually("the replica knows no primary", || !place.copy(".primary").exists());
    place.nodes[0].start();
    eventually("the replica names the primary again", || place.copy(".primary").exists());
}

/// B6: after `touch x-pos`, nothing could be created on the predecessor's mount any more.
#[test]
fn b6_touching_special_files_breaks_nothing() {
    if is_plain() {
        return;
    }
    let place = Place::alone();
    place.sql("a.db", SETUP);
    let names = ["new-pos", "new-lock", "a.db-pos", "a.db-lock", ".primary", ".lag", ".hidden"];
    for name in names {
        let _ = Command::new("touch").arg(place.db(name)).output().unwrap();
        let _ = OpenOptions::new().create_new(true).write(true).open(place.db(name));
        let _ = fs::remove_file(place.db(name));
        let made = format!("after{}.db", name.replace('.', "-"));
        place.sql(&made, SETUP);
        place.sql(&made, "PRAGMA journal_mode=wal; INSERT INTO t(x) VALUES (2)");
        place.check(&made);
    }
    place.check("a.db");
    assert_eq!(place.pos("a.db").len(), 34);
}

#[test]
fn what_is_not_supported_is_refused_and_changes_nothing() {
    if is_plain() {
        return;
    }
    let place = Place::alone();
    place.sql("a.db", &format!("PRAGMA journal_mode=wal; {SETUP}"));
    let before = (listing(&place.primary_dir()), fs::read(place.db("a.db")).unwrap());
    fs::create_dir(place.db("directory")).unwrap_err();
    fs::rename(place.db("a.db"), place.db("b.db")).unwrap_err();
    fs::hard_link(place.db("a.db"), place.db("b.db")).unwrap_err();
    std::os::unix::fs::symlink(place.db("a.db"), place.db("b.db")).unwrap_err();
    fs::remove_file(place.db("a.db-pos")).unwrap_err();
    fs::remove_file(place.db(".lag")).unwrap_err();
    fs::remove_dir(place.db("a.db")).unwrap_err();
    for name in ["a.db-pos", "a.db-lock", ".lag"] {
        let opened = OpenOptions::new().write(true).open(place.db(name));
        let written = opened.and_then(|mut file| file.write_all(b"x"));
        assert!(written.is_err(), "{name} was written");
    }
    // Accepted and ignored, as by LiteFS.
    fs::set_permissions(place.db("a.db"), fs::Permissions::from_mode(0o600)).unwrap();
    let file = File::open(place.db("a.db")).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    drop(file);
    let long = "x".repeat(250);
    let named = OpenOptions::new().create_new(true).write(true).open(place.db(&long));
    assert!(named.is_err(), "a name that no database may have");
    assert_eq!((listing(&place.primary_dir()), fs::read(place.db("a.db")).unwrap()), before);
    place.check("a.db");
    let free = Command::new("df").arg(place.primary_dir()).output().unwrap();
    assert!(free.status.success(), "statfs: {free:?}");
}

/// Whatever `cp` and a shell's redirection do to a database, it stays one that SQLite wrote.
#[test]
fn overwriting_a_database_with_cp_or_truncating_it_is_refused_or_a_commit() {
    if is_plain() {
        return;
    }
    let place = Place::pair();
    let other = place.dir().join("other.sqlite");
    sql(&other, &format!("PRAGMA page_size=1024; {SETUP}; INSERT INTO t(x) VALUES (2)"));
    for journal in ["delete", "wal"] {
        let name = format!("{journal}.db");
        place.sql(&name, &format!("PRAGMA journal_mode={journal}; {SETUP}"));
        let before = place.pos(&name);
        for program in
            [format!("cp {} $0", other.display()), ": > $0".into(), "echo x >> $0".into()]
        {
            let mut command = Command::new("sh");
            let done = command.args(["-c", &program]).arg(place.db(&name)).output().unwrap();
            if place.pos(&name) == before {
                assert!(!done.status.success(), "{program}: no error, and nothing happened");
                place.check(&name);
            } else {
                place.check_replica(&name);
            }
            assert_eq!(sqlite3(&place.db(&name), "SELECT * FROM t").status.code(), Some(0));
        }
    }
    // A copy under a new name may be refused, but is then no database either.
    let target = place.db("copied.db");
    let copied = Command::new("cp").args([&other, &target]).output().unwrap();
    if copied.status.success() {
        assert_same_bytes(&other, &target);
        place.check_replica("copied.db");
    }
    place.sql("another.db", SETUP);
    place.check("another.db");
    drop(place);
}

/// B17: `rm x-wal` ended the predecessor's primary, and it could not start again.
#[test]
fn b17_removing_the_files_beside_a_database_loses_no_commit() {
    if is_plain() {
        return;
    }
    let mut place = Place::pair();
    for journal in ["persist", "wal"] {
        let name = format!("{journal}.db");
        place.sql(&name, &format!("PRAGMA journal_mode={journal}; {SETUP}"));
        let mut acknowledged = 1;
        for part in ["-wal", "-shm", "-journal"] {
            let mut shell = Session::open(&place.db(&name));
            for step in 0..3 {
                if shell.say("INSERT INTO t(x) VALUES (2)").is_empty() {
                    acknowledged += 1;
                }
                if step == 1 {
                    let _ = fs::remove_file(place.db(&format!("{name}{part}")));
                    let _ = fs::remove_file(place.copy(&format!("{name}{part}")));
                }
            }
            drop(shell);
            let rows: u32 = sql(&place.db(&name), "SELECT count(*) FROM t").parse().unwrap();
            assert_eq!(rows, acknowledged, "{name}, after rm {part}");
            sql(&place.db(&name), "INSERT INTO t(x) VALUES (3)");
            acknowledged += 1;
            place.check_replica(&name);
        }
    }
    place.nodes[0].kill_and_restart();
    for name in ["persist.db", "wal.db"] {
        place.check_replica(name);
    }
}

#[test]
fn a_database_is_removed_and_made_again_under_the_eyes_of_its_clients() {
    let mut place = Place::pair();
    place.own_counters = true;
    for (round, journal) in ["delete", "wal", "wal", "delete"].into_iter().enumerate() {
        let setup = format!("PRAGMA journal_mode={journal}; {SETUP}");
        place.sql("a.db", &setup);
        place.wait_for_replica("a.db");
        let mut near = Session::open(&place.db("a.db"));
        let mut far = Session::open(&place.copy("a.db"));
        assert_eq!(near.say("SELECT count(*) FROM t"), "1");
        assert_eq!(far.say("SELECT count(*) FROM t"), "1");
        for path in [place.db("a.db"), place.control("a.db")] {
            for part in ["", "-wal", "-shm", "-journal"] {
                let gone = fs::remove_file(format!("{}{part}", path.display()));
                let absent = |error: &std::io::Error| error.kind() == ErrorKind::NotFound;
                assert!(gone.is_ok() || (!part.is_empty() && gone.as_ref().is_err_and(absent)));
            }
        }
        assert!(!place.db("a.db").exists());
        // What is left of the old one answers or fails, but does not come back.
        near.say("SELECT count(*) FROM t");
        place.sql("a.db", &format!("{setup}; INSERT INTO t(x) VALUES ({round})"));
        let begun = Instant::now();
        let answer = near.say("INSERT INTO t(x) VALUES ('old')");
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?} until: {answer}");
        far.say("SELECT count(*) FROM t");
        drop((near, far));
        place.check("a.db");
        for path in [place.db("a.db"), place.control("a.db")] {
            fs::remove_file(path).unwrap();
        }
    }
}
