//! A program that tries to commit a row every few milliseconds, on a node that may be the primary
//! or not, and reports each attempt on standard output, which survives it.
//!
//! `litefs-test-writer member CONFIG FIRST_ID` is a node, and commits through the VFS;
//! `litefs-test-writer client DB JOURNAL_MODE FIRST_ID` is a plain client of SQLite on a mount.
//!
//! Lines: `begin ID TIME`, then `acked ID TIME` or `refused ID TIME WHY`; TIME is CLOCK_MONOTONIC
//! in nanoseconds, the same clock on every node of a machine. It reads `pause`, answered by
//! `paused` once nothing is being committed, `resume`, and `end`, which shuts the node down.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs;
use std::io::{BufRead, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use litefs_node::{Config, Node};
use litefs_vfs::rusqlite::Connection;
use rustix::time::{ClockId, clock_gettime};

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(10);
/// How long an attempt may wait for locks: longer than writers are held for a hand-over.
const BUSY_TIMEOUT: Duration = Duration::from_secs(8);

static PAUSED: AtomicBool = AtomicBool::new(false);

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["member", config, first] => {
            let config = Config::from_file(config)?;
            litefs_node::logging::init(&config.log).unwrap();
            let node = Node::start(config)?;
            let connection = node.open("app.db")?;
            Writer::new(None, "delete", Some(connection)).start(first.parse()?);
            obey()?;
            node.shutdown()?;
        }
        ["client", db, mode, first] => {
            let mode = mode.to_owned().leak();
            Writer::new(Some(db.into()), mode, None).start(first.parse()?);
            obey()?;
        }
        _ => return Err("see the source for the arguments".into()),
    }
    Ok(())
}

/// Does what standard input says, until it ends.
fn obey() -> std::io::Result<()> {
    for line in std::io::stdin().lock().lines() {
        match line?.as_str() {
            "pause" => PAUSED.store(true, Ordering::SeqCst),
            "resume" => PAUSED.store(false, Ordering::SeqCst),
            _ => break,
        }
    }
    Ok(())
}

/// One line in one write, so that a kill never leaves half of one.
fn say(what: &str, id: i64, why: &str) {
    let now = clock_gettime(ClockId::Monotonic);
    let now = now.tv_sec * 1_000_000_000 + now.tv_nsec;
    let line = format!("{what} {id} {now} {}\n", why.replace('\n', " "));
    std::io::stdout().write_all(line.as_bytes()).expect("the test reads");
}

struct Writer {
    /// The file on the mount; `None` with a connection that is never closed.
    db: Option<PathBuf>,
    mode: &'static str,
    connection: Option<Connection>,
    /// The device that it is on, if on a mount.
    mount: u64,
    set_up: bool,
}

impl Writer {
    fn new(db: Option<PathBuf>, mode: &'static str, connection: Option<Connection>) -> Self {
        Self { db, mode, connection, mount: 0, set_up: false }
    }

    fn start(mut self, first: i64) {
        thread::spawn(move || {
            for id in first.. {
                self.rest();
                say("begin", id, "");
                match self.commit(id) {
                    Ok(()) => say("acked", id, ""),
                    Err(error) => {
                        say("refused", id, &error.to_string());
                        self.let_go_of_what_is_gone();
                    }
                }
            }
        });
    }

    fn rest(&self) {
        thread::sleep(PAUSE);
        if PAUSED.load(Ordering::SeqCst) {
            say("paused", 0, "");
            while PAUSED.load(Ordering::SeqCst) {
                thread::sleep(PAUSE);
            }
        }
    }

    fn commit(&mut self, id: i64) -> Result<(), Box<dyn Error>> {
        if self.connection.is_none() {
            self.open()?;
        }
        let connection = self.connection.as_ref().ok_or("opened above")?;
        if !self.set_up {
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.pragma_update(None, "journal_mode", self.mode)?;
            connection.execute_batch(
                "PRAGMA synchronous=NORMAL; CREATE TABLE IF NOT EXISTS t(place INTEGER PRIMARY \
                 KEY, id INTEGER NOT NULL UNIQUE, fill BLOB)",
            )?;
            self.set_up = true;
        }
        let insert = "INSERT INTO t(id, fill) VALUES (?1, randomblob(200))";
        connection.execute(insert, [id])?;
        Ok(())
    }

    /// Opens the database on the mount, and not below it if there is no mount.
    fn open(&mut self) -> Result<(), Box<dyn Error>> {
        let db = self.db.as_ref().ok_or("closed for good")?;
        let mount = mounted(db)?;
        let connection = Connection::open(db)?;
        if fs::metadata(db)?.dev() != mount {
            return Err("the mount is gone".into());
        }
        (self.connection, self.mount, self.set_up) = (Some(connection), mount, false);
        Ok(())
    }

    /// Closes the database if the mount that it was on is gone. Never for another reason:
    /// connections must outlive changes of role.
    fn let_go_of_what_is_gone(&mut self) {
        if self.db.as_ref().is_some_and(|db| mounted(db).ok() != Some(self.mount)) {
            self.connection = None;
        }
    }
}

/// The device that is mounted where this database is to be.
fn mounted(db: &Path) -> std::io::Result<u64> {
    Ok(fs::metadata(db.with_file_name(".lag"))?.dev())
}
