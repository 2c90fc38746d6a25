//! Reads a SQLite file consistently, although others may be using it.
//!
//! A database in a rollback mode is streamed as it is, under SQLite's own shared lock, which keeps
//! writers from the file. A database in WAL mode is first copied with SQLite's backup, because
//! newer pages are in its `-wal`. A hot journal is rolled back by SQLite when it opens the file.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use tempfile::NamedTempFile;

use super::{CliError, progress};

const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const PAGES_PER_STEP: i32 = 4096;

/// The bytes of one consistent state of a database.
#[derive(Debug)]
pub(super) struct Source {
    // Dropped in this order: closing the file gives up the connection's locks (POSIX).
    file: File,
    len: u64,
    _copy: Option<NamedTempFile>,
    _lock: Option<Connection>,
}

impl Source {
    /// Opens the database at `path`; waits for its writer, but not for ever.
    pub(super) fn open(path: &Path) -> Result<Self, CliError> {
        check_magic(path)?;
        let connection = connect(path)
            .map_err(|e| CliError::new(format!("cannot read {}: {e}", path.display())))?;
        let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
        if mode == "wal" {
            return Self::copy_of(&connection);
        }
        // Opened after the connection took its lock, and closed before it is given up.
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { file, len, _copy: None, _lock: Some(connection) })
    }

    /// Size in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    fn copy_of(connection: &Connection) -> Result<Self, CliError> {
        let copy = NamedTempFile::with_prefix("litefs-import-")?;
        let mut target = Connection::open(copy.path())?;
        // The copy is thrown away if anything goes wrong.
        target.execute_batch("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;")?;
        back_up(connection, &mut target)?;
        target.close().map_err(|(_, e)| e)?;
        let file = copy.reopen()?;
        let len = file.metadata()?.len();
        Ok(Self { file, len, _copy: Some(copy), _lock: None })
    }
}

impl Read for Source {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read(buf)
    }
}

fn check_magic(path: &Path) -> Result<(), CliError> {
    let mut file =
        File::open(path).map_err(CliError::during(format!("cannot open {}", path.display())))?;
    let mut head = Vec::new();
    file.by_ref()
        .take(MAGIC.len() as u64)
        .read_to_end(&mut head)
        .map_err(CliError::during(format!("cannot read {}", path.display())))?;
    file.rewind()?;
    if head == MAGIC {
        return Ok(());
    }
    let what = if head.is_empty() { "is empty" } else { "is no SQLite database" };
    Err(CliError::new(format!("{} {what}", path.display())))
}

/// A connection that holds a read transaction and leaves the files as it found them.
fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema;")?;
    Ok(connection)
}

fn back_up(from: &Connection, to: &mut Connection) -> Result<(), CliError> {
    let backup = Backup::new(from, to)?;
    let mut bar = None;
    loop {
        let step = backup.step(PAGES_PER_STEP)?;
        let pages = backup.progress();
        let total = u64::try_from(pages.pagecount).unwrap_or(0);
        let bar = bar.get_or_insert_with(|| progress::pages(total, "copying"));
        bar.set_position(total.saturating_sub(u64::try_from(pages.remaining).unwrap_or(0)));
        match step {
            StepResult::Done => {
                bar.finish_and_clear();
                return Ok(());
            }
            StepResult::More => {}
            // Our own read transaction holds the source, and nobody else knows the copy.
            _ => return Err(CliError::new("the database is locked: try again later")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn database(dir: &tempfile::TempDir, mode: &str) -> (PathBuf, Connection) {
        let path = dir.path().join("s.db");
        let db = Connection::open(&path).unwrap();
        db.execute_batch(&format!(
            "PRAGMA journal_mode={mode}; PRAGMA wal_autocheckpoint=0; CREATE TABLE t(x); \
             INSERT INTO t VALUES (1),(2),(3);"
        ))
        .unwrap();
        (path, db)
    }

    fn rows(bytes: &[u8]) -> i64 {
        let file = NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let db = Connection::open(file.path()).unwrap();
        let check: String = db.query_row("PRAGMA integrity_check", [], |r| r.get(0)).unwrap();
        assert_eq!(check, "ok");
        db.query_row("SELECT count(*) FROM t", [], |r| r.get(0)).unwrap()
    }

    fn read_all(source: &mut Source) -> Vec<u8> {
        let mut bytes = Vec::new();
        source.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, source.len());
        bytes
    }

    #[test]
    fn rows_that_are_only_in_the_wal_are_read_and_the_wal_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (_path, _writer) = database(&dir, "wal");
        // What a writer leaves that was killed: nobody else has the copies open.
        let copy = tempfile::tempdir().unwrap();
        for name in ["s.db", "s.db-wal"] {
            std::fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
        }
        let (path, wal) = (copy.path().join("s.db"), copy.path().join("s.db-wal"));
        let before = (std::fs::read(&path).unwrap(), std::fs::read(&wal).unwrap());
        assert!(!before.1.is_empty());
        let bytes = read_all(&mut Source::open(&path).unwrap());
        assert_eq!(rows(&bytes), 3);
        assert_eq!((std::fs::read(&path).unwrap(), std::fs::read(&wal).unwrap()), before);
    }

    #[test]
    fn an_uncommitted_write_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let (path, writer) = database(&dir, "delete");
        writer.execute_batch("BEGIN; INSERT INTO t VALUES (4);").unwrap();
        let bytes = read_all(&mut Source::open(&path).unwrap());
        assert_eq!(rows(&bytes), 3);
    }

    #[test]
    fn writers_wait_while_the_file_is_streamed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, writer) = database(&dir, "delete");
        writer.busy_timeout(Duration::ZERO).unwrap();
        let mut source = Source::open(&path).unwrap();
        let busy = writer.execute("INSERT INTO t VALUES (4)", []).unwrap_err();
        assert_eq!(busy.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy));
        assert_eq!(rows(&read_all(&mut source)), 3);
        drop(source);
        writer.execute("INSERT INTO t VALUES (4)", []).unwrap();
    }

    /// A writer that died in the middle: pages in the file, the old ones in the journal.
    #[test]
    fn a_hot_journal_is_rolled_back() {
        let dir = tempfile::tempdir().unwrap();
        let (path, writer) = database(&dir, "delete");
        // A tiny cache spills uncommitted pages to the file.
        writer
            .execute_batch(
                "PRAGMA cache_size=1; PRAGMA cache_spill=1; BEGIN; \
                 WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<2000) \
                 INSERT INTO t SELECT randomblob(500) FROM c;",
            )
            .unwrap();
        let copy = tempfile::tempdir().unwrap();
        for name in ["s.db", "s.db-journal"] {
            std::fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
        }
        let torn = copy.path().join("s.db");
        assert!(std::fs::metadata(&torn).unwrap().len() > 100_000);
        let bytes = read_all(&mut Source::open(&torn).unwrap());
        assert_eq!(rows(&bytes), 3);
        drop((writer, path));
    }

    #[test]
    fn what_is_no_database_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (content, needed) in [(&b""[..], "is empty"), (b"hello", "is no SQLite database")] {
            let path = dir.path().join("x");
            std::fs::write(&path, content).unwrap();
            let error = Source::open(&path).unwrap_err().0;
            assert!(error.contains(needed), "{error}");
        }
        let missing = dir.path().join("missing");
        assert!(Source::open(&missing).unwrap_err().0.contains("cannot open"));
        assert!(!missing.exists());
    }
}
