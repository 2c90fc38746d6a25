//! `import --litefs-data`: takes over the databases of a LiteFS data directory, at their positions.
//!
//! ```text
//! <dir>/clusterid                                  "LFSC", 16 hex digits, and a line feed
//! <dir>/dbs/<name>/{database,journal,wal,shm}      as SQLite's, under other names
//! <dir>/dbs/<name>/ltx/<first>-<last>.ltx          transactions; the newest is always kept
//! ```
//!
//! Nothing in there is changed: the files are copied, and SQLite recovers the copy. If the content
//! is then what the newest transaction file describes, it keeps that position. Else nobody can say
//! which transactions are in it: it becomes a new transaction after the newest one, so that no
//! position names two contents.

use std::fmt;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use litefs_ltx::{Checksum, Encoder, FileName, Header, PageSize, Pgno, Pos, Txid, page_checksum};
use litefs_store::{DbName, Store};
use rusqlite::Connection;
use tempfile::TempDir;

use super::{CliError, CliResult};

const DATABASES: &str = "dbs";

/// A LiteFS data directory.
struct LiteFsData {
    dir: PathBuf,
    cluster: Option<String>,
    names: Vec<DbName>,
}

/// What became of one database.
enum Outcome {
    /// It is at this position now.
    Taken { pos: Pos, origin: Origin },
    /// It was already, from an earlier run.
    There(Pos),
    /// It has no content.
    Empty,
}

/// Where a position comes from.
enum Origin {
    /// The newest transaction file describes this content.
    Known,
    /// It describes another content, or none at all.
    New { why: String },
}

/// Takes over all databases, or the one called `only`, into the data directory `to`, which no node
/// may use, and which is made if it is missing.
pub(super) fn run(from: &Path, to: &Path, only: Option<&DbName>) -> CliResult {
    let mut data = LiteFsData::open(from)?;
    if let Some(only) = only {
        data.names.retain(|name| name == only);
    }
    if data.names.is_empty() {
        return Err(CliError::new(format!("there is no such database in {}", from.display())));
    }
    check_target(from, to)?;
    let store = Store::open(to)?;
    adopt_cluster(&store, data.cluster.as_deref())?;
    say!("cluster   {}", data.cluster.as_deref().unwrap_or("none: a new id at the first start"));
    for name in &data.names {
        let outcome = data.take_over(&store, name).map_err(|error| {
            CliError::new(format!("{name}: {}; what is above is done, run this again", error.0))
        })?;
        say!("{name:9} {outcome}");
    }
    store.close()?;
    say!("{} is as it was", from.display());
    Ok(())
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Taken { pos, origin: Origin::Known } => write!(f, "at {pos}, as in LiteFS"),
            Self::Taken { pos, origin: Origin::New { why } } => {
                write!(f, "at {pos}, a new transaction: {why}")
            }
            Self::There(pos) => write!(f, "at {pos}, already there"),
            Self::Empty => f.write_str("left out: it has no content"),
        }
    }
}

impl LiteFsData {
    fn open(dir: &Path) -> Result<Self, CliError> {
        let root = dir.join(DATABASES);
        let entries = fs::read_dir(&root).map_err(|e| {
            let shown = root.display();
            CliError::new(format!("{} is no LiteFS data directory: {shown}: {e}", dir.display()))
        })?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                names.push(DbName::new(&entry.file_name().to_string_lossy())?);
            }
        }
        names.sort();
        Ok(Self { dir: dir.to_owned(), cluster: cluster_id(&dir.join("clusterid"))?, names })
    }

    fn take_over(&self, store: &Store, name: &DbName) -> Result<Outcome, CliError> {
        let dir = self.dir.join(DATABASES).join(name.as_str());
        let Some(copy) = RecoveredCopy::of(&dir, store.dir())? else { return Ok(Outcome::Empty) };
        let (txid, origin) = match newest_record(&dir.join("ltx"))? {
            Newest::Is(pos) if pos.checksum == copy.checksum => (pos.txid, Origin::Known),
            Newest::Is(pos) => {
                let why = format!("LiteFS's newest transaction file says {pos}");
                (pos.txid.next(), Origin::New { why })
            }
            Newest::Damaged { txid, why } => (txid.next(), Origin::New { why }),
            Newest::None => {
                let why = "there is no transaction file".to_owned();
                (Txid::new(1), Origin::New { why })
            }
        };
        let pos = Pos::new(txid, copy.checksum);
        if let Some(there) = store.database(name).filter(|db| !db.pos().is_zero()) {
            return match there.pos() == pos {
                true => Ok(Outcome::There(pos)),
                false => Err(CliError::new(format!(
                    "{} has this database already, at {}: choose an empty directory",
                    store.dir().display(),
                    there.pos()
                ))),
            };
        }
        copy.install(store, name, txid)?;
        Ok(Outcome::Taken { pos, origin })
    }
}

fn cluster_id(path: &Path) -> Result<Option<String>, CliError> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(CliError::during(path.display()))?,
    };
    let id = text.trim_end();
    let digits = id.strip_prefix("LFSC").unwrap_or_default();
    if digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase()) {
        return Ok(Some(id.to_owned()));
    }
    Err(CliError::new(format!("{} holds no cluster id of LiteFS", path.display())))
}

/// Refuses what can only be a mistake: LiteFS's own directory, or somebody else's files.
fn check_target(from: &Path, to: &Path) -> CliResult {
    let absolute = |path: &Path| fs::canonicalize(path).or_else(|_| std::path::absolute(path));
    let (from, to) = (absolute(from)?, absolute(to)?);
    if to.starts_with(&from) || from.starts_with(&to) {
        return Err(CliError::new(
            "--data-dir must lie outside the LiteFS data directory, which stays as it is",
        ));
    }
    let is_new = match fs::read_dir(&to) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    if is_new || to.join("node.json").is_file() {
        return Ok(());
    }
    Err(CliError::new(format!("{} is neither empty nor a node's data directory", to.display())))
}

fn adopt_cluster(store: &Store, theirs: Option<&str>) -> CliResult {
    match (store.cluster_id(), theirs) {
        (Some(ours), Some(theirs)) if ours != theirs => Err(CliError::new(format!(
            "{} belongs to the cluster {ours}, the LiteFS data to {theirs}",
            store.dir().display()
        ))),
        (None, Some(theirs)) => Ok(store.set_cluster_id(theirs)?),
        _ => Ok(()),
    }
}

/// What the newest transaction file says.
enum Newest {
    Is(Pos),
    Damaged { txid: Txid, why: String },
    None,
}

fn newest_record(dir: &Path) -> Result<Newest, CliError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Newest::None),
        entries => entries.map_err(CliError::during(dir.display()))?,
    };
    let mut newest: Option<FileName> = None;
    for entry in entries {
        // Unfinished ones have another name.
        if let Ok(name) = entry?.file_name().to_string_lossy().parse::<FileName>() {
            newest = newest.filter(|newest| newest.max > name.max).or(Some(name));
        }
    }
    let Some(name) = newest else { return Ok(Newest::None) };
    let path = dir.join(name.to_string());
    let file = File::open(&path).map_err(CliError::during(path.display()))?;
    match litefs_ltx::verify(BufReader::new(file)) {
        Ok(summary) => Ok(Newest::Is(Pos::new(name.max, summary.trailer.post_apply))),
        Err(error) => {
            let why = format!("LiteFS's newest transaction file {name} is damaged: {error}");
            Ok(Newest::Damaged { txid: name.max, why })
        }
    }
}

/// A copy of a database, as SQLite leaves it after rolling back its journal or copying its WAL.
struct RecoveredCopy {
    path: PathBuf,
    page_size: PageSize,
    pages: u32,
    checksum: Checksum,
    modified: SystemTime,
    _dir: TempDir,
}

impl RecoveredCopy {
    /// `None` if there is no content.
    fn of(dir: &Path, scratch: &Path) -> Result<Option<Self>, CliError> {
        if fs::metadata(dir.join("database")).map_or(0, |database| database.len()) == 0 {
            return Ok(None);
        }
        let place = tempfile::Builder::new().prefix("litefs-import-").tempdir_in(scratch)?;
        let path = place.path().join("db");
        let modified = copy_files(dir, &path)?;
        let (page_size, pages) = recover(&path)
            .map_err(|e| CliError::new(format!("SQLite cannot recover its copy: {e}")))?;
        let page_size = PageSize::new(page_size)
            .ok_or_else(|| CliError::new(format!("pages of {page_size} bytes cannot be")))?;
        let checksum = Checksum::EMPTY;
        let mut copy = Self { path, page_size, pages, checksum, modified, _dir: place };
        let mut sum = Checksum::EMPTY;
        copy.each_page(|pgno, page| {
            sum = sum.toggle(page_checksum(pgno, page));
            Ok(())
        })?;
        copy.checksum = sum;
        Ok(Some(copy))
    }

    /// Hands over every page in order, but the one that is never stored.
    fn each_page(
        &self,
        mut take: impl FnMut(Pgno, &[u8]) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        let mut file = BufReader::with_capacity(1 << 20, File::open(&self.path)?);
        let mut page = vec![0; self.page_size.len()];
        for pgno in (1..=self.pages).filter_map(Pgno::new) {
            file.read_exact(&mut page).map_err(CliError::during("the database is cut short"))?;
            if pgno != self.page_size.lock_page() {
                take(pgno, &page)?;
            }
        }
        Ok(())
    }

    /// Makes it the content of a new database, as a snapshot with this last transaction.
    fn install(&self, store: &Store, name: &DbName, txid: Txid) -> CliResult {
        let db = store.create(name)?;
        let (mut reader, writer) = std::io::pipe()?;
        std::thread::scope(|scope| {
            let writing = scope.spawn(move || self.write_snapshot(txid, writer));
            let installed = db.install_snapshot(&mut reader);
            // The writer ends when nobody reads any more.
            drop(reader);
            let written = writing.join().expect("BUG: writing a snapshot does not panic");
            installed?;
            written
        })
    }

    fn write_snapshot(&self, txid: Txid, out: impl Write) -> CliResult {
        let since = self.modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let header = Header {
            timestamp_ms: i64::try_from(since.as_millis()).unwrap_or(0),
            ..Header::snapshot(self.page_size, self.pages, txid)
        };
        let failed = |e: litefs_ltx::Error| CliError::new(e.to_string());
        let out = BufWriter::with_capacity(1 << 20, out);
        let mut encoder = Encoder::new(out, header).map_err(failed)?;
        self.each_page(|pgno, page| encoder.encode_page(pgno, page).map_err(failed))?;
        let (mut out, _) = encoder.finish(self.checksum).map_err(failed)?;
        Ok(out.flush()?)
    }
}

/// Copies what holds content, under SQLite's names; returns when the database was last written.
fn copy_files(dir: &Path, to: &Path) -> Result<SystemTime, CliError> {
    let state = || -> std::io::Result<Vec<Option<(u64, SystemTime)>>> {
        ["database", "journal", "wal"]
            .iter()
            .map(|file| match fs::metadata(dir.join(file)) {
                Ok(metadata) => Ok(Some((metadata.len(), metadata.modified()?))),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            })
            .collect()
    };
    let before = state()?;
    for (file, suffix) in [("database", ""), ("journal", "-journal"), ("wal", "-wal")] {
        let mut copy = to.as_os_str().to_owned();
        copy.push(suffix);
        match fs::copy(dir.join(file), &copy) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (),
            copied => {
                copied.map_err(CliError::during(format!("copying {file}")))?;
            }
        }
    }
    if state()? != before {
        return Err(CliError::new("it changed while it was read: stop LiteFS first"));
    }
    Ok(before
        .into_iter()
        .flatten()
        .map(|(_, modified)| modified)
        .max()
        .unwrap_or(SystemTime::UNIX_EPOCH))
}

/// Brings the copy's pages into its one file, unchanged: unlike a backup, neither a rollback nor a
/// checkpoint touches a page that it does not have to. Returns the page size and count.
fn recover(path: &Path) -> rusqlite::Result<(u32, u32)> {
    let connection = Connection::open(path)?;
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, u32>(0));
    // Reading rolls back a journal.
    number("SELECT count(*) FROM sqlite_schema")?;
    let (page_size, pages) = (number("PRAGMA page_size")?, number("PRAGMA page_count")?);
    // Never busy: nobody else has the copy open.
    number("PRAGMA wal_checkpoint(TRUNCATE)")?;
    connection.close().map_err(|(_, error)| error)?;
    Ok((page_size, pages))
}

#[cfg(test)]
#[path = "litefs_data_tests.rs"]
mod tests;
