//! What SQLite can do beyond single transactions on one file.

use std::fs;
use std::os::unix::fs::FileExt;

use crate::daemon::done;
use crate::place::{Place, assert_same_bytes, is_plain};
use crate::shell::{Session, sql};

/// Rows of that many pages at 4096 bytes, the same on any disk.
fn rows(count: u32) -> String {
    format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {count}) INSERT INTO \
         t(x) SELECT printf('%03900d', i) FROM n;"
    )
}

/// B1: a shrink over the boundary of a block of checksums broke the predecessor's WAL databases.
#[test]
fn b1_vacuum_shrinks_by_more_than_a_thousand_pages_in_every_mode() {
    let place = Place::pair();
    for mode in ["wal", "delete", "persist"] {
        let name = format!("{mode}.db");
        let setup =
            format!("PRAGMA journal_mode={mode}; CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
        place.sql(&name, &format!("{setup}; {}", rows(2000)));
        let mut twin = place.twin(&name);
        twin.say("PRAGMA page_count");
        twin.say("DELETE FROM t WHERE id > 100; VACUUM; INSERT INTO t(x) VALUES ('after')");
        let pages: u32 = twin.say("PRAGMA page_count").parse().unwrap();
        assert!(pages < 200, "{pages} pages are left");
        assert_eq!(twin.say("SELECT count(*) FROM t"), "101");
        twin.say(&rows(1500));
        drop(twin);
        place.sql(&name, "DELETE FROM t WHERE id % 50; VACUUM; INSERT INTO t(x) VALUES ('last')");
        place.check(&name);
    }
}

/// B8: the predecessor's page size was sticky.
#[test]
fn b8_the_page_size_changes_by_vacuum_and_by_creating_the_database_again() {
    let mut place = Place::pair();
    place.sql("a.db", &format!("CREATE TABLE t(id INTEGER PRIMARY KEY, x); {}", rows(50)));
    for size in [8192, 512, 65536, 1024, 4096] {
        let printed = place.sql(
            "a.db",
            &format!(
                "PRAGMA page_size={size}; VACUUM; PRAGMA page_size; INSERT INTO t(x) VALUES \
                 ({size}); PRAGMA journal_mode=wal; INSERT INTO t(x) VALUES (-{size}); PRAGMA \
                 journal_mode=delete"
            ),
        );
        assert_eq!(printed, format!("{size}\nwal\ndelete"));
        place.check("a.db");
    }
    for path in [place.db("a.db"), place.control("a.db")] {
        fs::remove_file(path).unwrap();
    }
    let again = "PRAGMA page_size=16384; CREATE TABLE u(x); INSERT INTO u VALUES (1)";
    place.sql("a.db", again);
    place.own_counters = true;
    place.check("a.db");
    assert_eq!(sql(&place.copy("a.db"), "PRAGMA page_size; SELECT * FROM u"), "16384\n1");
}

#[test]
fn auto_vacuum_gives_pages_back_at_once_or_in_steps() {
    let place = Place::pair();
    for (mode, journal) in [("full", "delete"), ("incremental", "wal"), ("full", "wal")] {
        let name = format!("{mode}-{journal}.db");
        let script = format!(
            "PRAGMA auto_vacuum={mode}; PRAGMA journal_mode={journal}; CREATE TABLE t(id INTEGER \
             PRIMARY KEY, x); {} DELETE FROM t WHERE id % 2; PRAGMA page_count; PRAGMA \
             incremental_vacuum(100); PRAGMA page_count; DELETE FROM t WHERE id > 20; PRAGMA \
             incremental_vacuum; PRAGMA page_count; BEGIN; DELETE FROM t; PRAGMA \
             incremental_vacuum; ROLLBACK; INSERT INTO t(x) VALUES ('last')",
            rows(800)
        );
        place.sql(&name, &script);
        place.check(&name);
    }
}

/// B2: the switch of the journal mode killed every replica of the predecessor for ever.
/// B19: the empty journal of TRUNCATE is removed by the switch to DELETE.
#[test]
fn b2_b19_the_journal_mode_changes_in_all_directions_while_a_replica_reads() {
    let place = Place::pair();
    place.sql("a.db", "CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
    place.wait_for_replica("a.db");
    // On a plain directory it would be the writer's own file, whose mode cannot change under it.
    let mut reader = (!is_plain()).then(|| Session::open(&place.copy("a.db")));
    let mut writer = place.twin("a.db");
    let all = ["delete", "truncate", "persist", "wal"];
    let switches = all.iter().flat_map(|from| all.map(|to| [*from, to])).flatten();
    let mut written = 0;
    for mode in switches {
        assert_eq!(writer.say(&format!("PRAGMA journal_mode={mode}")), mode);
        writer.say(&format!("INSERT INTO t(x) VALUES ('{mode}')"));
        written += 1;
        place.wait_for_replica("a.db");
        if let Some(reader) = &mut reader {
            assert_eq!(reader.say("SELECT count(*) FROM t"), written.to_string(), "after {mode}");
        }
    }
    drop((reader, writer));
    place.check("a.db");
}

/// B9: every transaction over attached databases failed on the predecessor.
#[test]
fn b9_transactions_over_attached_databases_commit_and_roll_back_together() {
    let place = Place::pair();
    for mode in ["delete", "truncate", "persist", "wal"] {
        let names = ["a", "b", "c"].map(|name| format!("{mode}-{name}.db"));
        let setup =
            format!("PRAGMA journal_mode={mode}; CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
        names.iter().for_each(|name| _ = place.sql(name, &setup));
        let script = |dir: &std::path::Path| {
            let attach = |at: usize| dir.join(&names[at]).display().to_string();
            format!(
                "PRAGMA journal_mode; ATTACH '{}' AS b; ATTACH '{}' AS c;
                 PRAGMA main.journal_mode={mode}; PRAGMA b.journal_mode={mode};
                 PRAGMA c.journal_mode={mode};
                 BEGIN; INSERT INTO main.t(x) VALUES (1); INSERT INTO b.t(x) VALUES (1); COMMIT;
                 BEGIN; INSERT INTO main.t(x) VALUES (2); INSERT INTO b.t(x) VALUES (2);
                 INSERT INTO c.t(x) VALUES (2); ROLLBACK;
                 PRAGMA main.cache_size=2; PRAGMA b.cache_size=2;
                 BEGIN; INSERT INTO main.t(x) VALUES (3); {main} INSERT INTO b.t(x) SELECT x FROM
                 main.t; INSERT INTO c.t(x) VALUES (3); COMMIT;
                 BEGIN; DELETE FROM main.t WHERE id > 10; DELETE FROM b.t WHERE id > 10; ROLLBACK;
                 SELECT (SELECT count(*) FROM main.t), (SELECT count(*) FROM b.t), (SELECT count(*)
                 FROM c.t)",
                attach(1),
                attach(2),
                main = rows(100).replace("INTO t", "INTO main.t"),
            )
        };
        let control = place.control(&names[0]);
        let expected = sql(&control, &script(control.parent().unwrap()));
        let printed = sql(&place.db(&names[0]), &script(&place.primary_dir()));
        assert_eq!(printed, expected);
        assert!(printed.ends_with("102|103|1"), "{printed}");
        names.iter().for_each(|name| place.check(name));
    }
    let listed: Vec<_> = fs::read_dir(place.primary_dir()).unwrap().map(Result::unwrap).collect();
    let left = listed.iter().filter(|entry| entry.file_name().to_string_lossy().contains("-mj"));
    assert_eq!(left.count(), 0, "super-journals are left: {listed:?}");
}

/// A writer that never lets go of its locks is replicated all the same.
#[test]
fn what_an_exclusive_client_commits_is_on_the_replica_at_once() {
    let mut place = Place::pair();
    place.own_counters = true;
    for mode in ["delete", "truncate", "persist", "wal"] {
        let name = format!("{mode}.db");
        let mut writer = place.twin(&name);
        writer.say("PRAGMA locking_mode=EXCLUSIVE");
        writer.say(&format!("PRAGMA journal_mode={mode}"));
        writer.say("CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
        writer.say(&rows(20));
        writer.say("BEGIN; DELETE FROM t; ROLLBACK");
        writer.say("PRAGMA cache_size=2; BEGIN; UPDATE t SET x = x || 'y'; ROLLBACK");
        for row in 21..25 {
            writer.say("INSERT INTO t(x) VALUES ('exclusive')");
            place.wait_for_replica(&name);
            if !is_plain() {
                assert_eq!(sql(&place.copy(&name), "SELECT count(*) FROM t"), row.to_string());
            }
        }
        writer.say("PRAGMA locking_mode=NORMAL; SELECT count(*) FROM t");
        drop(writer);
        place.check(&name);
    }
}

#[test]
fn checkpoints_of_every_kind_answer_as_usual_beside_an_open_reader() {
    let place = Place::pair();
    place.sql("a.db", "PRAGMA journal_mode=wal; CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
    let (mut reader, mut writer) = (place.twin("a.db"), place.twin("a.db"));
    writer.say(".timeout 100");
    for kind in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
        let checkpoint = format!("PRAGMA wal_checkpoint({kind})");
        writer.say(&rows(30));
        let seen = reader.say("BEGIN; SELECT count(*) FROM t");
        writer.say(&rows(30));
        writer.say("UPDATE t SET x = 'changed' WHERE id % 3 = 0");
        // Held up by the reader, as far as its kind goes.
        writer.say(&checkpoint);
        assert_eq!(reader.say("SELECT count(*) FROM t"), seen, "the reader's snapshot moved");
        writer.say("INSERT INTO t(x) VALUES ('more')");
        reader.say("COMMIT; SELECT count(*) FROM t");
        writer.say(&checkpoint);
        reader.say("SELECT count(*), sum(length(x)) FROM t");
        writer.say("INSERT INTO t(x) VALUES ('after')");
        place.wait_for_replica("a.db");
    }
    drop((reader, writer));
    place.check("a.db");
}

#[test]
fn memory_mapped_readers_see_what_others_commit() {
    let place = Place::pair();
    for mode in ["delete", "wal"] {
        let name = format!("{mode}.db");
        place.sql(
            &name,
            &format!(
                "PRAGMA journal_mode={mode}; CREATE TABLE t(id INTEGER PRIMARY KEY, x); {}",
                rows(100)
            ),
        );
        place.wait_for_replica(&name);
        let mut near = place.twin(&name);
        let mut far = Session::open(&place.copy(&name));
        let read = "SELECT count(*), sum(length(x)), max(x = 'round') FROM t";
        near.say("PRAGMA mmap_size=268435456");
        far.say("PRAGMA mmap_size=268435456");
        for round in 1..20 {
            let change = match round % 4 {
                0 => rows(200),
                1 => format!("UPDATE t SET x = 'round' WHERE id % 20 = {round}"),
                2 => format!("DELETE FROM t WHERE id % 10 = {round} % 10"),
                _ => "PRAGMA wal_checkpoint; VACUUM".to_owned(),
            };
            place.sql(&name, &change);
            let here = near.say(read);
            place.wait_for_replica(&name);
            assert_eq!(far.say(read), here, "{mode}, round {round}");
        }
        drop((near, far));
        place.check(&name);
    }
}

#[test]
fn vacuum_into_makes_another_database_of_the_mount_or_says_why_not() {
    let place = Place::pair();
    for mode in ["delete", "wal"] {
        let name = format!("{mode}.db");
        let setup =
            format!("PRAGMA journal_mode={mode}; CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
        place.sql(&name, &format!("{setup}; {}", rows(300)));
        let into = format!("{mode}-copy.db");
        let made = |path: std::path::PathBuf| format!("VACUUM INTO '{}'", path.display());
        sql(&place.control(&name), &made(place.control(&into)));
        sql(&place.db(&name), &made(place.db(&into)));
        place.check(&into);
        place.sql(&into, "INSERT INTO t(x) VALUES ('more')");
        place.check(&into);
        place.check(&name);
    }
}

/// B10: what the journal modes without a journal committed was lost later on.
#[test]
fn b10_without_a_journal_nothing_is_acknowledged_and_lost() {
    let mut place = Place::pair();
    for mode in ["memory", "off"] {
        let name = format!("{mode}.db");
        place.sql(&name, "CREATE TABLE t(id INTEGER PRIMARY KEY, x); INSERT INTO t(x) VALUES (1)");
        let set = format!("PRAGMA journal_mode={mode};");
        let wrote = crate::shell::sqlite3(&place.db(&name), &format!("{set} {}", rows(50)));
        let expected = if wrote.status.success() { "51" } else { "1" };
        assert_eq!(sql(&place.db(&name), "SELECT count(*) FROM t"), expected);
        place.check_replica(&name);
        if wrote.status.success() {
            sql(&place.control(&name), &format!("{set} {}", rows(50)));
        }
        place.check(&name);
    }
    if !is_plain() {
        place.nodes[0].kill_and_restart();
        ["memory.db", "off.db"].iter().for_each(|name| place.check(name));
    }
}

/// B20: rollbacks used up a transaction number and sent an empty record.
#[test]
fn b20_a_rollback_leaves_no_record() {
    let place = Place::alone();
    for mode in ["delete", "truncate", "persist", "wal"] {
        for synchronous in ["FULL", "OFF"] {
            let name = format!("{mode}-{synchronous}.db");
            let setup = format!(
                "PRAGMA journal_mode={mode}; PRAGMA synchronous={synchronous}; CREATE TABLE t(id \
                 INTEGER PRIMARY KEY, x); {}",
                rows(20)
            );
            let mut twin = place.twin(&name);
            setup.split("; ").for_each(|line| _ = twin.say(line));
            let before = place.pos(&name);
            twin.say("BEGIN; INSERT INTO t(x) VALUES (1); ROLLBACK");
            twin.say(
                "BEGIN; UPDATE t SET x = 0; SAVEPOINT s; DELETE FROM t; ROLLBACK TO s; ROLLBACK",
            );
            twin.say("PRAGMA cache_size=2");
            let spill = rows(60);
            twin.say(&format!("BEGIN; {spill} UPDATE t SET x = 'spilled' || x; ROLLBACK"));
            assert_eq!(place.pos(&name), before, "{name}");
            twin.say("SELECT count(*), sum(length(x)) FROM t");
            twin.say("PRAGMA integrity_check");
            drop(twin);
            place.check(&name);
        }
    }
}

/// A database of that many pages of 65536 bytes, as quickly as can be: most of it is a hole, and
/// belongs to no table.
fn holed_database(path: &std::path::Path, pages: u32) {
    sql(path, "PRAGMA page_size=65536; CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(u64::from(pages) << 16).unwrap();
    file.write_all_at(&pages.to_be_bytes(), 28).unwrap();
}

/// Over the page at byte 2^30, which SQLite never uses.
#[test]
fn databases_grow_over_the_lock_page_and_shrink_again() {
    const LOCK_PAGE: u32 = (1 << 30) / 65536 + 1;
    if is_plain() {
        return;
    }
    let place = Place::pair();
    let (db, copy) = (place.db("large.db"), place.copy("large.db"));
    let source = place.dir().join("source.db");
    holed_database(&source, LOCK_PAGE - 9);
    let url = &place.nodes[0].url;
    done(&["import", "--url", url, "--name", "large.db", source.to_str().unwrap()]);
    let mut shell = Session::open(&db);
    let mut pages = LOCK_PAGE - 9;
    for (row, mode) in ["truncate", "wal", "delete", "wal"].into_iter().enumerate() {
        assert_eq!(shell.say(&format!("PRAGMA journal_mode={mode}")), mode);
        assert_eq!(shell.say("INSERT INTO t(x) VALUES (zeroblob(330000))"), "");
        let grown: u32 = shell.say("PRAGMA page_count").parse().unwrap();
        assert!(grown >= pages + 5, "{grown} pages");
        pages = grown;
        place.wait_for_replica("large.db");
        let there = sql(&copy, "PRAGMA page_count; SELECT sum(length(x)) FROM t");
        assert_eq!(there, format!("{pages}\n{}", 330_000 * (row + 1)));
    }
    assert!(pages > LOCK_PAGE + 5);
    assert_eq!(shell.say("UPDATE t SET x = zeroblob(400000) WHERE id = 2"), "");
    assert_eq!(shell.say("PRAGMA wal_checkpoint(TRUNCATE)"), "0|0|0");
    place.wait_for_replica("large.db");
    assert_same_bytes(&db, &copy);
    // Drops what belongs to no table.
    assert_eq!(shell.say("VACUUM"), "");
    drop(shell);
    let dump = place.check_replica("large.db");
    assert_eq!(dump.matches("INSERT INTO t").count(), 4);
}
