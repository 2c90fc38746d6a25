//! Every journal mode with every durability and page size, from two clients.

use crate::place::Place;
use crate::shell::{printed, python};

const PAGE_SIZES: [u32; 3] = [512, 4096, 65536];

/// Commits; rollbacks without and with spill; savepoints; a failing statement; indexes; VACUUM.
const SCRIPT: &str = "
CREATE TABLE t(id INTEGER PRIMARY KEY, x TEXT, y TEXT);
CREATE TABLE log(n);
BEGIN;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 400)
INSERT INTO t SELECT i, printf('%0300d', i), i FROM n;
COMMIT;
INSERT INTO log VALUES (1);
INSERT INTO log VALUES (2);
INSERT INTO log VALUES (3);

BEGIN; UPDATE t SET x = 'gone' WHERE id < 10; DELETE FROM log; ROLLBACK;
SELECT count(*), sum(length(x)) FROM t; SELECT count(*) FROM log;

PRAGMA cache_size = 2;
BEGIN;
UPDATE t SET x = x || printf('%0600d', id);
INSERT INTO t(x) SELECT printf('%0900d', id) FROM t;
CREATE INDEX tx ON t(x);
SELECT count(*), sum(length(x)) FROM t;
ROLLBACK;
SELECT count(*), sum(length(x)) FROM t;

BEGIN;
UPDATE t SET x = x || printf('%0600d', id) WHERE id % 2;
UPDATE t SET y = 'written twice' WHERE id % 3 = 0;
INSERT INTO t(x) SELECT printf('%0500d', id) FROM t WHERE id % 4 = 0;
COMMIT;
SELECT count(*), sum(length(x)) FROM t;

BEGIN;
INSERT INTO log VALUES (4);
SAVEPOINT one;
UPDATE t SET x = printf('%0700d', id);
SAVEPOINT two;
DELETE FROM t WHERE id % 2;
ROLLBACK TO two;
INSERT INTO log VALUES (5);
ROLLBACK TO one;
UPDATE t SET y = 'after' WHERE id < 30;
RELEASE one;
COMMIT;
SAVEPOINT outer;
INSERT INTO log VALUES (6);
RELEASE outer;
SAVEPOINT outer;
UPDATE t SET x = printf('%0800d', id);
ROLLBACK TO outer;
RELEASE outer;
SELECT count(*), sum(length(x)), group_concat(DISTINCT y = 'after') FROM t;
SELECT group_concat(n) FROM log;

CREATE INDEX tx ON t(x);
INSERT OR IGNORE INTO t(id) SELECT id FROM t;
DELETE FROM t WHERE id > 40;
DROP TABLE log;
VACUUM;
INSERT INTO t(x) VALUES ('last');
PRAGMA integrity_check;
SELECT count(*), sum(length(x)) FROM t;
";

fn every_combination_of(mode: &str) {
    let place = Place::pair();
    let mut databases = Vec::new();
    for synchronous in ["FULL", "NORMAL"] {
        for page_size in PAGE_SIZES {
            let shell = format!("shell-{synchronous}-{page_size}.db");
            let setup = format!(
                "PRAGMA page_size={page_size}; PRAGMA journal_mode={mode}; PRAGMA \
                 synchronous={synchronous};"
            );
            place.sql(&shell, &format!("{setup}\n{SCRIPT}"));
            let py = format!("python-{synchronous}-{page_size}.db");
            let run = |path: &std::path::Path| {
                let path = path.to_str().unwrap();
                let args = [path, mode, synchronous, &page_size.to_string()];
                printed(&mut python(include_str!("matrix.py"), &args))
            };
            assert_eq!(run(&place.db(&py)), run(&place.control(&py)), "{py}");
            databases.extend([shell, py]);
        }
    }
    for name in &databases {
        place.check(name);
        let page_size = name.trim_end_matches(".db").rsplit_once('-').unwrap().1;
        assert_eq!(place.sql(name, "PRAGMA page_size"), page_size);
    }
    place.check_export(&databases[0]);
}

#[test]
fn delete_mode_does_what_plain_sqlite_does() {
    every_combination_of("delete");
}

#[test]
fn truncate_mode_does_what_plain_sqlite_does() {
    every_combination_of("truncate");
}

#[test]
fn persist_mode_does_what_plain_sqlite_does() {
    every_combination_of("persist");
}

#[test]
fn wal_mode_does_what_plain_sqlite_does() {
    every_combination_of("wal");
}
