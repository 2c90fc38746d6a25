//! Installing content whole: an import, or a snapshot from a peer.
//!
//! 1. `base.new` and `checksums.new` are written and synced, their names too.
//! 2. The mark gets the new position, the next generation and the state "installing": committed.
//! 3. Both files are renamed into place, the old log is removed, the mark's state is cleared.
//!
//! A crash before 2 leaves the old content, and files that are thrown away; a crash after it leaves
//! the new content, and step 3 is done again: each part of it can be repeated.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use litefs_ltx::{Checksum, PageSize, Pgno, Pos, page_checksum};

use super::frame::SegmentHeader;
use super::mark::Mark;
use super::published::Published;
use super::{Content, Db, sums};
use crate::error::IoContext;
use crate::{Error, Event, File, OpenMode, Result, Storage};

/// Bytes written at once.
const WRITE_LEN: usize = 1 << 20;
/// After so many bytes the disk is set to work, while the rest arrives.
const SYNC_AFTER: u64 = 64 << 20;

/// Content that is being written aside, page after page.
pub(crate) struct Installation<'a> {
    db: &'a Arc<Db>,
    file: Arc<dyn File>,
    page_size: PageSize,
    sums: Vec<Checksum>,
    checksum: Checksum,
    buffer: Vec<u8>,
    written: u64,
    /// An early sync, and the bytes that were written when it began.
    early_sync: Option<JoinHandle<io::Result<()>>>,
    synced: u64,
    /// True once the files may be what the mark says is to be installed.
    committing: bool,
}

impl Drop for Installation<'_> {
    fn drop(&mut self) {
        // Why it failed does not matter any more.
        let _ = self.end_early_sync();
        if !self.committing {
            discard_unfinished(self.db.shared.storage.as_ref(), &self.db.dir);
        }
    }
}

impl<'a> Installation<'a> {
    /// Step 1 begins. The caller holds `db.installing`.
    pub(crate) fn begin(db: &'a Arc<Db>, page_size: PageSize) -> Result<Self> {
        db.settle()?;
        let path = db.dir.join(RENAMES[0].0);
        let file = db.shared.storage.open(&path, OpenMode::CreateNew).at("create", &path)?;
        let buffer = Vec::with_capacity(WRITE_LEN);
        let checksum = Checksum::EMPTY;
        Ok(Self {
            db,
            file,
            page_size,
            sums: Vec::new(),
            checksum,
            buffer,
            written: 0,
            early_sync: None,
            synced: 0,
            committing: false,
        })
    }

    /// Pages so far.
    pub(crate) fn pages(&self) -> u32 {
        self.sums.len() as u32
    }

    /// The database checksum of the pages so far.
    pub(crate) fn checksum(&self) -> Checksum {
        self.checksum
    }

    /// Adds the next page; the lock page is added as whatever `data` is, unchecked.
    pub(crate) fn push(&mut self, data: &[u8]) -> Result<()> {
        let pgno = self.next();
        match pgno == self.page_size.lock_page() {
            true => self.push_summed(data, Checksum::NONE),
            false => self.push_summed(data, page_checksum(pgno, data)),
        }
    }

    /// The number of the page that is added next.
    pub(crate) fn next(&self) -> Pgno {
        let number = self.pages().checked_add(1).and_then(Pgno::new);
        number.expect("BUG: callers count pages in 32 bits")
    }

    /// Adds the next page, whose checksum is known; `Checksum::NONE` for the lock page.
    pub(crate) fn push_summed(&mut self, data: &[u8], sum: Checksum) -> Result<()> {
        self.checksum = self.checksum.toggle(sum);
        self.sums.push(sum);
        if self.buffer.len() + data.len() > WRITE_LEN {
            self.write_out()?;
        }
        self.buffer.extend_from_slice(data);
        Ok(())
    }

    fn write_out(&mut self) -> Result<()> {
        let path = self.db.dir.join(RENAMES[0].0);
        self.file.write_all_at(&self.buffer, self.written).at("write", &path)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        if self.written - self.synced >= SYNC_AFTER {
            self.begin_early_sync()?;
        }
        Ok(())
    }

    /// Syncs what is written on another thread, unless that is still busy with what was before.
    fn begin_early_sync(&mut self) -> Result<()> {
        if self.early_sync.as_ref().is_some_and(|sync| !sync.is_finished()) {
            return Ok(());
        }
        self.end_early_sync()?;
        self.synced = self.written;
        let file = self.file.clone();
        let sync = thread::Builder::new().name("litefs-store".into());
        // Without a thread, the sync at the end does it all.
        self.early_sync = sync.spawn(move || file.sync_data()).ok();
        Ok(())
    }

    /// Waits for the early sync. Its failure counts: a later sync may not report it again.
    fn end_early_sync(&mut self) -> Result<()> {
        let Some(sync) = self.early_sync.take() else { return Ok(()) };
        let result = sync.join().unwrap_or_else(|_| Err(io::Error::other("its thread panicked")));
        result.at("sync", &self.db.dir.join(RENAMES[0].0))
    }

    /// Ends step 1: what was written is on disk.
    pub(crate) fn finish_writing(&mut self) -> Result<()> {
        self.write_out()?;
        self.end_early_sync()?;
        let storage = &self.db.shared.storage;
        let path = self.db.dir.join(RENAMES[0].0);
        self.file.sync_data().at("sync", &path)?;
        let path = self.db.dir.join(RENAMES[1].0);
        let file = storage.open(&path, OpenMode::CreateNew).at("create", &path)?;
        sums::write_all(file.as_ref(), &self.sums).at("write", &path)?;
        file.sync_data().at("sync", &path)?;
        storage.sync_dir(&self.db.dir).at("sync", &self.db.dir)
    }

    /// Steps 2 and 3: the written pages become the content at `pos`. The caller holds the writer
    /// token. An error in the middle makes the database read-only: what the next start finds is
    /// one of the two contents, but not known here. `allowed` is asked last, when nothing that may
    /// take long is left to wait for.
    pub(crate) fn commit(
        mut self,
        pos: Pos,
        timestamp_ms: i64,
        allowed: impl FnOnce() -> Result<()>,
    ) -> Result<Pos> {
        let db = self.db;
        let _alone = db.folding.lock();
        allowed()?;
        let old = db.content();
        old.keep_base()?;
        db.log.lock().keep_open()?;
        let mut mark = old.published.read().mark;
        mark.generation += 1;
        mark.pos = pos;
        mark.ceiling = pos.txid;
        mark.page_size = Some(self.page_size);
        mark.pages = self.pages();
        mark.installing = true;
        let storage = db.shared.storage.as_ref();
        self.committing = true;
        let switched = mark.write(storage, &db.dir).and_then(|()| finish(storage, &db.dir, mark));
        let mark = switched.inspect_err(|error| self.interrupted(error, &mark))?;
        db.log.lock().restart(mark.generation, pos.txid);
        let mut published = Published::of_base(mark, std::mem::take(&mut self.sums));
        published.timestamp_ms = timestamp_ms;
        db.serve_installed(Content::new(&db.shared, &db.dir, published));
        db.announce_move();
        db.shared.emit(&Event::Position {
            db: db.name.clone(),
            pos,
            page_size: self.page_size.get(),
            commit: mark.pages,
            timestamp_ms,
        });
        Ok(pos)
    }

    /// Steps 2 and 3 failed somewhere.
    fn interrupted(&mut self, error: &Error, mark: &Mark) {
        let found = Mark::read(self.db.shared.storage.as_ref(), &self.db.dir);
        if matches!(found, Ok(Some(found)) if found.generation < mark.generation) {
            self.committing = false; // the mark was not written: nothing has changed
            return;
        }
        self.db.poison(error);
        // The mark may say "installing": nobody may write aside before that is finished.
        *self.db.settled.lock() = false;
    }
}

/// The files that are written aside, and what they become.
pub(crate) const RENAMES: [(&str, &str); 2] =
    [("base.new", "base"), ("checksums.new", "checksums")];

/// Step 3, at once or after a crash.
pub(crate) fn finish(storage: &dyn Storage, dir: &Path, mut mark: Mark) -> Result<Mark> {
    for (from, to) in RENAMES {
        let (from, to) = (dir.join(from), dir.join(to));
        match storage.rename(&from, &to) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed.at("rename", &from)?,
        }
    }
    storage.sync_dir(dir).at("sync", dir)?;
    remove_old_log(storage, dir, mark.generation)?;
    mark.installing = false;
    mark.write(storage, dir)?;
    Ok(mark)
}

/// Removes the segments of other generations. There are some of this one if damage brought back a
/// mark from before the installation was finished.
fn remove_old_log(storage: &dyn Storage, dir: &Path, generation: u64) -> Result<()> {
    let log = dir.join("log");
    let names = match storage.list(&log) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        names => names.at("read", &log)?,
    };
    for name in names.iter().filter(|name| name.ends_with(".seg")) {
        let path = log.join(name);
        let file = storage.open(&path, OpenMode::Read).at("open", &path)?;
        let header = SegmentHeader::read(file.as_ref()).at("read", &path)?;
        if header.is_none_or(|header| header.generation != generation) {
            storage.remove_file(&path).at("remove", &path)?;
        }
    }
    storage.sync_dir(&log).at("sync", &log)
}

/// Removes what an installation that was not committed left.
pub(crate) fn discard_unfinished(storage: &dyn Storage, dir: &Path) {
    for (from, _) in RENAMES {
        let _ = storage.remove_file(&dir.join(from));
    }
}
