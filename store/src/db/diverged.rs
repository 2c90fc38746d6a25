//! Divergence: keeping what the cluster did not keep.
//!
//! ```text
//! diverged/<first>-<last>-<checksum>/about.json      the positions, and when it was kept
//!                                    <range>.ltx     this node's own transactions, a file a record
//!                                    database.ltx    the whole database after them (LZ4)
//! ```
//! `first` and `last` are transactions, `checksum` is the database's after the last one. Records
//! are there if the last common position is known and the log reaches back to it. The whole
//! database is what makes them readable with SQL at any later time, when nothing else has the pages
//! any more that they build on. It is left out when [`Diverged::WHOLE_MAX`] are kept already, or
//! the disk is full, if the records are there; what would then be kept nowhere is not given up.
//!
//! A directory has this name once it is whole and on disk. Until then it is called `unfinished`,
//! and while it is being removed `forgotten`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use litefs_ltx::{Header, Pgno, Pos, Txid};
use serde::{Deserialize, Serialize};

use super::Db;
use super::cursor::{LogCursor, Relation};
use crate::error::IoContext;
use crate::{DbName, Error, ErrorKind, Event, OpenMode, Result, Snapshot, Storage};

const PARENT: &str = "diverged";
const UNFINISHED: &str = "unfinished";
const FORGOTTEN: &str = "forgotten";
const ABOUT: &str = "about.json";
const WHOLE: &str = "database.ltx";
/// Longest `about.json` that is read.
const ABOUT_LEN: usize = 4096;
/// Bytes written at once.
const WRITE_LEN: usize = 1 << 20;

/// Transactions of this node that the cluster did not keep, in files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diverged {
    /// The database.
    pub db: DbName,
    /// The directory with the files.
    pub path: PathBuf,
    /// The last position that the cluster kept too, if it could be found.
    pub common: Option<Pos>,
    /// Where the database was.
    pub newest: Pos,
    /// When it was kept, ms since the Unix epoch; 0 if that is not known.
    pub kept_ms: i64,
    /// True if the whole database is among the files.
    pub whole: bool,
}

/// What `about.json` holds beyond the directory's name.
#[derive(Debug, Default, Serialize, Deserialize)]
struct About {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    common: Option<String>,
    newest: String,
    kept_ms: i64,
}

impl Diverged {
    /// So many are kept of one database. Beyond, nothing diverged is replaced: a peer that makes a
    /// node diverge again and again must not fill its disk.
    pub const MAX: usize = 64;
    /// Of those, so many with the whole database.
    pub const WHOLE_MAX: usize = 8;

    /// Names it among all of a node's: the database and the directory.
    pub fn id(&self) -> String {
        let dir = self.path.file_name().unwrap_or_default().to_string_lossy();
        format!("{}/{dir}", self.db)
    }

    /// How many transactions the cluster did not keep; `None` if that is not known.
    pub fn transactions(&self) -> Option<u64> {
        let common = self.common?;
        Some(self.newest.txid.get().saturating_sub(common.txid.get()))
    }

    /// The file with the whole database, a snapshot record, if it is among the files.
    pub fn whole_file(&self) -> Option<PathBuf> {
        self.whole.then(|| self.path.join(WHOLE))
    }

    /// The files with the single records, oldest first.
    ///
    /// # Errors
    /// `Io`.
    pub fn records(&self, storage: &dyn Storage) -> Result<Vec<PathBuf>> {
        let names = storage.list(&self.path).at("read", &self.path)?;
        let is_record = |name: &String| name.parse::<litefs_ltx::FileName>().is_ok();
        Ok(names.into_iter().filter(is_record).map(|name| self.path.join(name)).collect())
    }

    /// Removes the files. Nobody has these transactions then.
    ///
    /// # Errors
    /// `Io`: it is kept still, or a rest of it is that nobody lists.
    pub fn forget(&self, storage: &dyn Storage) -> Result<()> {
        let parent = self.path.parent().unwrap_or(Path::new("."));
        let forgotten = parent.join(FORGOTTEN);
        remove_dir(storage, &forgotten)?;
        storage.rename(&self.path, &forgotten).at("rename", &self.path)?;
        storage.sync_dir(parent).at("sync", parent)?;
        remove_dir(storage, &forgotten)
    }

    /// What is kept in a data directory, whether or not a node uses it; by database, oldest first.
    ///
    /// # Errors
    /// `Io`.
    pub fn list(storage: &dyn Storage, data_dir: &Path) -> Result<Vec<Self>> {
        let dbs = data_dir.join("dbs");
        let mut all = Vec::new();
        for name in storage.list(&dbs).at("read", &dbs)? {
            if let Ok(db) = DbName::new(&name) {
                all.extend(Self::list_of(storage, &db, &dbs.join(name))?);
            }
        }
        Ok(all)
    }

    /// What is kept of the database with this directory, oldest first.
    fn list_of(storage: &dyn Storage, db: &DbName, dir: &Path) -> Result<Vec<Self>> {
        let parent = dir.join(PARENT);
        let names = match storage.list(&parent) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            names => names.at("read", &parent)?,
        };
        let mut kept = Vec::new();
        for name in &names {
            if let Some((_, newest)) = parse_name(name) {
                kept.push(Self::read(storage, db, parent.join(name), newest)?);
            }
        }
        kept.sort_by_key(|kept| kept.kept_ms);
        Ok(kept)
    }

    fn read(storage: &dyn Storage, db: &DbName, path: PathBuf, newest: Pos) -> Result<Self> {
        let whole = path.join(WHOLE);
        let whole = storage.file_len(&whole).at("look at", &whole)?.is_some();
        // Of use without it too: the name and the records say most.
        let about = read_about(storage, &path.join(ABOUT)).unwrap_or_default();
        let common = about.common.and_then(|text| text.parse().ok());
        Ok(Self { db: db.clone(), path, common, newest, kept_ms: about.kept_ms, whole })
    }

    /// True if what a database at `newest` has beyond `common` is among the files.
    fn covers(&self, common: Option<Pos>, newest: Pos) -> bool {
        let reaches = |ours: Pos| common.is_some_and(|common| ours.txid <= common.txid);
        self.newest == newest && (self.whole || self.common.is_some_and(reaches))
    }
}

/// The first and the newest transaction, as a directory's name says them.
fn parse_name(name: &str) -> Option<(Txid, Pos)> {
    let (first, newest) = name.split_once('-')?;
    let (txid, checksum) = newest.split_once('-')?;
    Some((first.parse().ok()?, Pos::new(txid.parse().ok()?, checksum.parse().ok()?)))
}

fn read_about(storage: &dyn Storage, path: &Path) -> Option<About> {
    let mut bytes = vec![0; ABOUT_LEN];
    let read = storage.open(path, OpenMode::Read).and_then(|file| file.read_at(&mut bytes, 0));
    serde_json::from_slice(&bytes[..read.ok()?]).ok()
}

fn remove_dir(storage: &dyn Storage, dir: &Path) -> Result<()> {
    match storage.remove_dir_all(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.at("remove", dir),
    }
}

impl Db {
    /// Writes this node's transactions after `common` under `diverged/`, durably. `None` if there
    /// are none, or they are kept already.
    pub(crate) fn preserve_diverged(
        self: &Arc<Self>,
        common: Option<Pos>,
    ) -> Result<Option<Diverged>> {
        let snapshot = Snapshot::newest(self)?;
        let newest = snapshot.pos();
        if newest.is_zero() || common == Some(newest) {
            return Ok(None);
        }
        let before = self.diverged()?;
        if before.iter().any(|kept| kept.covers(common, newest)) {
            // A process that was killed may have left the name in the kernel's cache only.
            self.sync_diverged()?;
            return Ok(None);
        }
        let cursor = match common {
            Some(pos) if self.relation(pos)? == Relation::Behind => {
                LogCursor::after(self, pos).ok()
            }
            _ => None,
        };
        let mut kept = self.plan_kept(cursor.as_ref().map(LogCursor::pos), newest, &before)?;
        let unfinished = self.dir.join(PARENT).join(UNFINISHED);
        remove_dir(self.shared.storage.as_ref(), &unfinished)?;
        self.write_diverged(&snapshot, cursor, &mut kept, &unfinished).inspect_err(|_| {
            // Space may be what is missing.
            let _ = self.shared.storage.remove_dir_all(&unfinished);
        })?;
        self.shared.storage.rename(&unfinished, &kept.path).at("rename", &unfinished)?;
        self.sync_diverged()?;
        self.shared.emit(&Event::Diverged(kept.clone()));
        Ok(Some(kept))
    }

    /// What is to be written, within the bounds.
    fn plan_kept(&self, common: Option<Pos>, newest: Pos, before: &[Diverged]) -> Result<Diverged> {
        let whole = before.iter().filter(|kept| kept.whole).count() < Diverged::WHOLE_MAX;
        if before.len() >= Diverged::MAX || (common.is_none() && !whole) {
            return Err(Error::TooManyDiverged { db: self.name.clone(), kept: before.len() });
        }
        let first = common.unwrap_or(Pos::ZERO).txid.next();
        let name = format!("{first}-{}-{}", newest.txid, newest.checksum);
        let path = self.dir.join(PARENT).join(name);
        let kept_ms = self.shared.clock.wall_ms();
        Ok(Diverged { db: self.name.clone(), path, common, newest, kept_ms, whole })
    }

    fn write_diverged(
        &self,
        snapshot: &Snapshot,
        cursor: Option<LogCursor>,
        kept: &mut Diverged,
        dir: &Path,
    ) -> Result<()> {
        let storage = &self.shared.storage;
        storage.create_dir_all(dir).at("create", dir)?;
        let has_records = cursor.is_some();
        if let Some(cursor) = cursor {
            self.preserve_records(cursor, dir)?;
        }
        if kept.whole {
            let path = dir.join(WHOLE);
            match self.preserve_file(&path, |out| write_whole(snapshot, out)) {
                // The records alone are little, and all that would be lost.
                Err(error) if error.kind() == ErrorKind::Full && has_records => {
                    kept.whole = false;
                    match storage.remove_file(&path) {
                        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                        removed => removed.at("remove", &path)?,
                    }
                    let db = &self.name;
                    tracing::warn!(%db, "kept no whole database of what diverged: {error}");
                }
                written => written?,
            }
        }
        let about = About {
            common: kept.common.map(|pos| pos.to_string()),
            newest: kept.newest.to_string(),
            kept_ms: kept.kept_ms,
        };
        let text = serde_json::to_vec_pretty(&about).expect("BUG: plain fields serialize");
        let path = dir.join(ABOUT);
        self.preserve_file(&path, |out| out.write_all(&text).at("write", &path))?;
        storage.sync_dir(dir).at("sync", dir)
    }

    fn sync_diverged(&self) -> Result<()> {
        let (storage, parent) = (&self.shared.storage, self.dir.join(PARENT));
        storage.sync_dir(&parent).at("sync", &parent)?;
        storage.sync_dir(&self.dir).at("sync", &self.dir)
    }

    /// What [`Db::preserve_diverged`] has kept, oldest first.
    pub(crate) fn diverged(&self) -> Result<Vec<Diverged>> {
        Diverged::list_of(self.shared.storage.as_ref(), &self.name, &self.dir)
    }

    fn preserve_records(&self, mut cursor: LogCursor, dir: &Path) -> Result<()> {
        while let Some(record) = cursor.next()? {
            let path = dir.join(format!("{}-{}.ltx", record.min_txid(), record.pos().txid));
            self.preserve_file(&path, |out| {
                io::copy(&mut record.reader(), out).map(|_| ()).at("copy a record to", &path)
            })?;
        }
        Ok(())
    }

    fn preserve_file(
        &self,
        path: &Path,
        fill: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<()> {
        let file = self.shared.storage.open(path, OpenMode::CreateNew).at("create", path)?;
        let mut out = io::BufWriter::with_capacity(WRITE_LEN, FileWriter { file: &*file, at: 0 });
        fill(&mut out)?;
        out.flush().at("write", path)?;
        file.sync_data().at("sync", path)
    }
}

/// One compressed record with the whole content.
fn write_whole(snapshot: &Snapshot, out: &mut dyn Write) -> Result<()> {
    let header = Header { compressed: true, ..snapshot.record_header(Pos::ZERO)? };
    let pages = (1..=snapshot.page_count()).filter_map(Pgno::new);
    snapshot.write_record(header, pages, out)
}

/// Writes to a file from its beginning.
struct FileWriter<'a> {
    file: &'a dyn crate::File,
    at: u64,
}

impl Write for FileWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
