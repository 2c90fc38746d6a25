//! Several processes at once, on the primary and on the replica.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::place::Place;
use crate::shell::{python, sql, sqlite3};

const SECONDS: u64 = 5;

/// A client of `concurrency.py`; killed when dropped.
struct Client(Option<Child>);

impl Client {
    fn start(role: &str, path: &Path) -> Self {
        let args = [role, path.to_str().unwrap(), &SECONDS.to_string()];
        let mut command = python(include_str!("concurrency.py"), &args);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Self(Some(child))
    }

    /// Waits for its end without an error; returns how many transactions it made.
    fn transactions(mut self) -> u32 {
        let output = self.0.take().unwrap().wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {error}", output.status);
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn readers_and_writers_do_not_disturb_each_other(mode: &str) {
    let place = Place::pair();
    let (db, copy) = (place.db("bank.db"), place.copy("bank.db"));
    sql(
        &db,
        &format!(
            "PRAGMA journal_mode={mode}; CREATE TABLE account(id INTEGER PRIMARY KEY, money INT);
             CREATE TABLE transfer(id INTEGER PRIMARY KEY, a INT, b INT);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 100)
             INSERT INTO account SELECT i, 1000 FROM n"
        ),
    );
    place.wait_for_replica("bank.db");
    let clients = [("write", &db), ("write", &db), ("read", &db), ("read", &copy)];
    let clients: Vec<Client> =
        clients.iter().map(|(role, path)| Client::start(role, path)).collect();
    // Shells that come and go, among them the last one that has the database open.
    let until = Instant::now() + Duration::from_secs(SECONDS);
    let mut rounds = 0;
    while Instant::now() < until {
        sql(
            &db,
            "UPDATE account SET money = money + 0 WHERE id = 1; SELECT sum(money) FROM account",
        );
        let there = sqlite3(&copy, "SELECT sum(money) FROM account");
        assert_eq!(String::from_utf8_lossy(&there.stdout).trim(), "100000", "{there:?}");
        rounds += 1;
    }
    assert!(rounds > 0);
    for client in clients {
        assert!(client.transactions() > 0, "a client starved");
    }
    place.check_replica("bank.db");
    let sum = sql(&copy, "SELECT sum(money) FROM account");
    assert_eq!(sum, "100000");
}

#[test]
fn in_delete_mode_readers_and_writers_wait_for_each_other_without_errors() {
    readers_and_writers_do_not_disturb_each_other("delete");
}

#[test]
fn in_wal_mode_readers_and_writers_do_not_wait_and_see_no_errors() {
    readers_and_writers_do_not_disturb_each_other("wal");
}
