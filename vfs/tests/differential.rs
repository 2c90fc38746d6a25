//! Risk: SQL gives another result than on plain SQLite.
//!
//! The same random statements run on several connections to a plain database in WAL mode and to one
//! of the store. Each statement must give the same rows or the same error code, and at the end both
//! databases must have the same content and size. `LITEFS_SEED` repeats a run, `LITEFS_ROUNDS`
//! makes more of them.

mod common;

use common::*;
use litefs_store::sim::Rng;
use rusqlite::Connection;

const CONNECTIONS: usize = 3;
const STATEMENTS: usize = 250;
const BUSY_SNAPSHOT: i32 = 517;
/// Tables are named `t0` to `t4`.
const TABLES: u64 = 5;

#[test]
fn random_sql_does_the_same_as_on_plain_sqlite() {
    let rounds = env("LITEFS_ROUNDS").unwrap_or(20);
    let first = env("LITEFS_SEED").unwrap_or(1);
    for seed in first..first + rounds {
        println!("LITEFS_SEED={seed} LITEFS_ROUNDS=1");
        round(seed);
    }
}

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

/// One connection to each side.
struct Pair {
    plain: Connection,
    ours: Connection,
}

fn round(seed: u64) {
    let mut random = Rng::new(seed);
    let home = Home::new();
    let path = home.plain_path("plain.db");
    let pairs: Vec<Pair> = (0..CONNECTIONS)
        .map(|_| Pair { plain: open_plain(&path), ours: home.open("app.db") })
        .collect();
    let page_size = 512 << random.below(8);
    let vacuum = random.below(3);
    for (conn, mode) in [(&pairs[0].plain, "WAL"), (&pairs[0].ours, "DELETE")] {
        run(conn, &format!("PRAGMA page_size = {page_size}; PRAGMA auto_vacuum = {vacuum}"));
        run(conn, "CREATE TABLE start (x)");
        text(conn, &format!("PRAGMA journal_mode = {mode}"));
    }
    for pair in &pairs {
        let cache = 2 + random.below(30);
        pair.both(&format!("PRAGMA cache_size = {cache}"));
    }
    for _ in 0..STATEMENTS {
        let pair = &pairs[random.below(CONNECTIONS as u64) as usize];
        pair.both(&statement(&mut random));
        if random.below(40) == 0 {
            home.db("app.db").fold().unwrap();
        }
    }
    for pair in &pairs {
        pair.both("ROLLBACK");
    }
    let expected = dump(&pairs[0].plain);
    for pair in &pairs {
        assert_eq!(dump(&pair.ours), expected);
        pair.both("PRAGMA integrity_check");
        pair.both("PRAGMA page_count");
        pair.both("PRAGMA freelist_count");
        pair.both("PRAGMA schema_version");
    }
    drop(pairs);
    check_export(&home);
    home.close_and_check("app.db", &expected);
}

impl Pair {
    /// Runs a statement on both sides; the results must be equal.
    fn both(&self, sql: &str) {
        let (plain, ours) = (rows(&self.plain, sql), rows(&self.ours, sql));
        if extended_code(&plain) == BUSY_SNAPSHOT && extended_code(&ours) != BUSY_SNAPSHOT {
            // Another connection committed without changing anything (it rolled back to a
            // savepoint first). Plain SQLite counts that as a change, the store does not.
            run(&self.plain, "ROLLBACK");
            run(&self.ours, "ROLLBACK");
            return;
        }
        assert_eq!(extended_code(&ours), extended_code(&plain), "{sql}\n{plain:?}\n{ours:?}");
        if let (Ok(plain), Ok(ours)) = (plain, ours) {
            assert_eq!(ours, plain, "{sql}");
        }
        assert_eq!(self.ours.is_autocommit(), self.plain.is_autocommit(), "{sql}");
    }
}

/// The base must hold what the log says: an export before the last fold equals one after reopening.
fn check_export(home: &Home) {
    let export = |home: &Home| {
        let mut bytes = Vec::new();
        home.db("app.db").snapshot().unwrap().export(&mut bytes).unwrap();
        bytes
    };
    let before = export(home);
    home.db("app.db").fold().unwrap();
    assert_eq!(export(home), before, "folding changed the content");
}

fn statement(random: &mut Rng) -> String {
    let table = format!("t{}", random.below(TABLES));
    let n = random.below(60) + 1;
    let size = random.below(1500);
    match random.below(34) {
        0 | 1 => "BEGIN".into(),
        2 => "BEGIN IMMEDIATE".into(),
        3..=5 => "COMMIT".into(),
        6 => "ROLLBACK".into(),
        7 => format!("SAVEPOINT s{}", random.below(3)),
        8 => format!("RELEASE s{}", random.below(3)),
        9 => format!("ROLLBACK TO s{}", random.below(3)),
        10 | 11 => format!("CREATE TABLE {table} (id INTEGER PRIMARY KEY, x, y)"),
        12 => format!("CREATE TABLE {table} (id PRIMARY KEY, x, y) WITHOUT ROWID"),
        13 => format!("DROP TABLE {table}"),
        14 => format!("CREATE INDEX i{table} ON {table} (y, x)"),
        15 => format!("DROP INDEX i{table}"),
        16 => format!("ALTER TABLE {table} ADD COLUMN z DEFAULT {n}"),
        17 => "VACUUM".into(),
        18 => format!("PRAGMA incremental_vacuum({n})"),
        19..=22 => insert(&table, n, size),
        23 => insert(&table, n * 20, size),
        24 => format!("UPDATE {table} SET x = zeroblob({size}), y = y + 1 WHERE id % {n} = 0"),
        25 => format!("UPDATE OR REPLACE {table} SET id = id + {n} WHERE id % 2 = 0"),
        26 => format!("DELETE FROM {table} WHERE id % {n} = 0"),
        27 => format!("DELETE FROM {table}"),
        28 => format!("INSERT INTO {table} (id, x, y) SELECT id, x, y FROM t0"),
        29 => format!("PRAGMA user_version = {n}"),
        30 => "SELECT count(*) FROM sqlite_schema".into(),
        _ => format!("SELECT count(*), sum(length(x)), sum(y), max(id) FROM {table}"),
    }
}

/// New rows whose content depends on nothing but the statement.
fn insert(table: &str, rows: u64, size: u64) -> String {
    format!(
        "INSERT INTO {table} (id, x, y)
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
         SELECT (SELECT coalesce(max(id), 0) FROM {table}) + i,
                substr(replace(hex(zeroblob({size} / 2)), '0', char(97 + i % 26)), 1, {size} - i % 7),
                i * {size} % 1000
         FROM n"
    )
}
