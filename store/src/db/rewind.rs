//! Divergence: keeping what the cluster did not keep, and going back to a common position.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use litefs_ltx::{Pos, Txid};

use super::cursor::{LogCursor, Relation};
use super::published::Published;
use super::{Content, Db};
use crate::error::IoContext;
use crate::{Error, Event, OpenMode, Result, Snapshot};

/// Bytes written at once.
const WRITE_LEN: usize = 1 << 20;

impl Db {
    /// Positions to which this database could rewind, newest first, ever further apart.
    pub(crate) fn rewind_points(&self, max: usize) -> Vec<Pos> {
        let content = self.content();
        let published = content.published.read();
        let floor = published.floor();
        let mut points = Vec::new();
        let (mut back, mut step) = (0, 1);
        let records = &published.records;
        while points.len() < max && back < records.len() {
            let record = &records[records.len() - 1 - back];
            if record.pos.txid < floor {
                break;
            }
            points.push(record.pos);
            back += step;
            if points.len() % 8 == 0 {
                step *= 2;
            }
        }
        if floor == published.mark.pos.txid && !floor.is_zero() && points.len() < max {
            points.push(published.mark.pos);
        }
        points
    }

    /// Writes this node's transactions after `common` under `diverged/`, durably: into a directory
    /// that gets its name, which tells the range, when it is whole. Doing it again does nothing.
    pub(crate) fn preserve_diverged(self: &Arc<Self>, common: Option<Pos>) -> Result<PathBuf> {
        let snapshot = Snapshot::newest(self)?;
        let to = snapshot.pos();
        let cursor = match common {
            Some(pos) if self.relation(pos)? == Relation::Behind => {
                LogCursor::after(self, pos).ok()
            }
            _ => None,
        };
        let from = cursor.as_ref().map_or(Pos::ZERO, LogCursor::pos);
        let storage = &self.shared.storage;
        let parent = self.dir.join("diverged");
        let kept = parent.join(format!("{}-{}-{}", from.txid.next(), to.txid, to.checksum));
        if storage.list(&kept).is_ok() {
            // A process that was killed may have left the name in the kernel's cache only.
            self.sync_diverged(&parent)?;
            return Ok(kept);
        }
        let unfinished = parent.join("unfinished");
        match storage.remove_dir_all(&unfinished) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed.at("remove", &unfinished)?,
        }
        self.write_diverged(&snapshot, cursor, &unfinished).inspect_err(|_| {
            let _ = storage.remove_dir_all(&unfinished); // space may be what is missing
        })?;
        storage.rename(&unfinished, &kept).at("rename", &unfinished)?;
        self.sync_diverged(&parent)?;
        tracing::warn!(db = %self.name, %from, %to, path = %kept.display(), "kept diverged transactions");
        let (db, path) = (self.name.clone(), kept.clone());
        self.shared.emit(&Event::Diverged { db, from, to, path });
        Ok(kept)
    }

    fn write_diverged(
        &self,
        snapshot: &Snapshot,
        cursor: Option<LogCursor>,
        dir: &Path,
    ) -> Result<()> {
        let storage = &self.shared.storage;
        storage.create_dir_all(dir).at("create", dir)?;
        match cursor {
            Some(cursor) => self.preserve_records(cursor, dir)?,
            None => {
                let path = dir.join(format!("{}-{}.ltx", Txid::new(1), snapshot.pos().txid));
                self.preserve_file(&path, |out| snapshot.write_snapshot_record(out))?;
            }
        }
        storage.sync_dir(dir).at("sync", dir)
    }

    fn sync_diverged(&self, parent: &Path) -> Result<()> {
        let storage = &self.shared.storage;
        storage.sync_dir(parent).at("sync", parent)?;
        storage.sync_dir(&self.dir).at("sync", &self.dir)
    }

    /// The directories that [`Db::preserve_diverged`] has made.
    pub(crate) fn diverged(&self) -> Result<Vec<PathBuf>> {
        let parent = self.dir.join("diverged");
        let names = match self.shared.storage.list(&parent) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            names => names.at("read", &parent)?,
        };
        let whole = names.into_iter().filter(|name| name != "unfinished");
        Ok(whole.map(|name| parent.join(name)).collect())
    }

    fn preserve_records(&self, mut cursor: LogCursor, dir: &Path) -> Result<()> {
        while let Some(record) = cursor.next()? {
            let path = dir.join(format!("{}-{}.ltx", record.min_txid(), record.pos().txid));
            self.preserve_file(&path, |out| {
                std::io::copy(&mut record.reader(), out).map(|_| ()).at("copy a record to", &path)
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
        let mut out =
            std::io::BufWriter::with_capacity(WRITE_LEN, FileWriter { file: &*file, at: 0 });
        fill(&mut out)?;
        out.flush().at("write", path)?;
        file.sync_data().at("sync", path)
    }

    /// Drops the records after `to`.
    pub(crate) fn rewind(self: &Arc<Self>, to: Pos) -> Result<()> {
        self.check_well()?;
        // In this order, as installations do.
        let _seized = self.seize();
        let _alone = self.folding.lock();
        self.settle()?;
        let content = self.content();
        let rewound = {
            let published = content.published.read();
            if published.newest.pos == to {
                return Ok(());
            }
            if published.state_at(to.txid).map(|state| state.pos) != Some(to) {
                return Err(Error::Gone { db: self.name.clone(), after: to });
            }
            rewound(&published, to.txid)
        };
        content.keep_base()?; // until its last reader is done, whatever is installed later
        self.cut_log(&content, to.txid)?;
        let newest = rewound.newest;
        let timestamp_ms = rewound.timestamp_ms;
        let rewound = Content::rewound(&self.shared, &self.dir, &content, rewound);
        *self.content.write() = Arc::new(rewound);
        self.announce_move();
        self.shared.emit(&Event::Position {
            db: self.name.clone(),
            pos: newest.pos,
            page_size: newest.page_size.map_or(0, |size| size.get()),
            commit: newest.pages,
            timestamp_ms,
        });
        Ok(())
    }

    fn cut_log(&self, content: &Content, to: Txid) -> Result<()> {
        let published = content.published.read();
        let (segment, end) = match published.record_at(to) {
            Some(record) => (record.segment.clone(), record.end),
            None => {
                let first = published.records.front().expect("BUG: a record follows the mark");
                (first.segment.clone(), first.end - first.len)
            }
        };
        drop(published);
        let mut log = self.log.lock();
        log.prepare_cut(&segment, end)?;
        let cut = log.cut(&segment, end, to);
        drop(log);
        // In the middle, disk and memory may differ.
        cut.inspect_err(|error| self.poison(error))
    }
}

/// The published state as it was after `to`.
fn rewound(published: &Published, to: Txid) -> Published {
    let mut rewound = Published::of_base(published.mark, published.sums.clone());
    for record in published.records.iter().filter(|record| record.pos.txid <= to) {
        rewound.push(record.clone(), std::iter::empty());
    }
    for (&pgno, versions) in &published.versions {
        let kept: Vec<_> = versions.iter().filter(|version| version.txid <= to).cloned().collect();
        if !kept.is_empty() {
            rewound.versions.insert(pgno, kept);
        }
    }
    rewound
}

/// Writes to a file from its beginning.
struct FileWriter<'a> {
    file: &'a dyn crate::File,
    at: u64,
}

impl Write for FileWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node_file::NodeFile;
    use crate::shared::Shared;
    use crate::{DbName, Options, OsStorage};
    use std::thread;
    use std::time::Duration;

    #[test]
    fn a_rewind_that_waits_for_the_writer_does_not_block_the_writers_installation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_path_buf();
        let node = NodeFile::open(&OsStorage, &path, None).unwrap();
        let options = Options { background: false, ..Options::default() };
        let shared = Arc::new(Shared::new(path.clone(), options, node));
        let name = DbName::new("db").unwrap();
        let db = Arc::new(Db::open(&shared, name, path.join("dbs/db")));
        let installing = db.seize();
        let rewinder = thread::spawn({
            let db = db.clone();
            move || db.rewind(Pos::ZERO)
        });
        thread::sleep(Duration::from_millis(200)); // until it waits; too short proves less only
        assert!(db.folding.try_lock_for(Duration::from_secs(10)).is_some());
        drop(installing);
        rewinder.join().unwrap().unwrap();
    }
}
