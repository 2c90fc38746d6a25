//! The `-wal` file, and commits through it.
//!
//! A transaction is committed when its commit frame is there and the checksums up to it are right:
//! in the answer to the write that completes it, whose error SQLite reports. With
//! `synchronous=FULL` the client then syncs the WAL; that call syncs the log.
//!
//! The file has no name on disk. When clients begin the WAL anew, everything in it is in the log,
//! and the database file shows what it led to.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use fuser::Errno;
use litefs_store::{Durability, Pgno};

use super::main_file::MainFile;
use super::{MountedDb, Result};
use crate::errno;
use crate::wal::{Chain, Commit, FRAME_HEAD_LEN, WalHeader};

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Wal {
    file: Option<Arc<File>>,
    generation: u64,
    len: u64,
    chain: Option<Chain>,
    /// How many transactions were committed.
    commits: u64,
    /// How many of them are known to be on disk.
    synced: u64,
    /// The writer of the last of them has not given its lock back: it may yet sync the WAL, and
    /// take that for the end of its commit.
    unanswered: bool,
    /// That writer was told that its commit failed, so it is not in the wal-index.
    unindexed: bool,
    /// Why the last transaction was refused. The kernel may hide that from the client: it cuts
    /// writes into pieces, and if the second one fails, the client only learns how much was
    /// written, and tries the rest again. That must not succeed.
    refused: Option<Errno>,
}

impl Wal {
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// `None` if there is no such file.
    pub(crate) fn len(&self) -> Option<u64> {
        self.file.as_ref().map(|_| self.len)
    }

    pub(super) fn has_frames(&self) -> bool {
        self.chain.as_ref().is_some_and(|chain| chain.committed_frames() > 0)
    }

    /// False if SQLite, rebuilding the wal-index, would not find all that is committed: the WAL
    /// must be emptied as soon as nobody is in a transaction.
    pub(super) fn is_recoverable(&self) -> bool {
        self.chain.as_ref().is_none_or(Chain::is_recoverable)
    }

    pub(super) fn committed_frames(&self) -> u32 {
        self.chain.as_ref().map_or(0, Chain::committed_frames)
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let inside = self.len.saturating_sub(offset).min(len as u64) as usize;
        let mut buf = vec![0; inside];
        let file = self.file.as_ref().ok_or(Errno::ESTALE)?;
        file.read_exact_at(&mut buf, offset).map_err(|e| errno::of_io(&e))?;
        Ok(buf)
    }

    /// The committed frame that has this very page, newest first, and where its page begins.
    pub(super) fn find(&self, pgno: Pgno, page: &[u8]) -> Option<(Arc<File>, u64)> {
        let (chain, file) = (self.chain.as_ref()?, self.file.as_ref()?);
        let mut buf = vec![0; page.len()];
        let same = |offset: &u64| file.read_exact_at(&mut buf, *offset).is_ok() && buf == page;
        let offset = chain.frames_of(pgno).map(|frame| chain.page_offset(frame)).find(same)?;
        Some((file.clone(), offset))
    }

    fn cut(&mut self, len: u64) -> Result<()> {
        if let Some(file) = &self.file {
            file.set_len(len).map_err(|e| errno::of_io(&e))?;
        }
        self.len = len;
        Ok(())
    }

    /// Verifies what follows the last committed frame as far as it goes.
    fn advance(&mut self) -> Result<Option<Commit>> {
        let (Some(chain), Some(file)) = (&mut self.chain, &self.file) else { return Ok(None) };
        let mut read = |offset: u64, buf: &mut [u8]| file.read_exact_at(buf, offset);
        chain.advance(self.len, &mut read).map_err(|e| errno::of_io(&e))
    }

    /// No writer is left: nothing of the last transaction follows.
    /// True if the wal-index may lack what is committed.
    pub(super) fn end_transaction(&mut self) -> bool {
        self.refused = None;
        self.unanswered = false;
        std::mem::take(&mut self.unindexed)
    }

    /// A refusal holds until the next transaction, which begins with a header or where the
    /// committed frames end; in exclusive mode, nothing else tells.
    fn check_refused(&mut self, offset: u64) -> Result<()> {
        let begins =
            offset == 0 || self.chain.as_ref().is_some_and(|chain| offset == chain.committed_end());
        if begins {
            self.refused = None;
        }
        self.refused.map_or(Ok(()), Err)
    }

    /// Makes a commit frame that was not committed one that no recovery takes for committed. Its
    /// head may be in the kernel's cache; what was written last is not, as that write failed.
    fn refuse_commit(&mut self, error: Errno, offset: u64, data: &[u8]) {
        self.refused = Some(error);
        let (Some(chain), Some(file)) = (&mut self.chain, &self.file) else { return };
        let page = chain.page_offset(chain.committed_frames());
        chain.undo_commit();
        let other: Vec<u8> = data.iter().map(|byte| !byte).collect();
        let destroyed = file
            .write_all_at(&other, offset)
            .and_then(|()| file.write_all_at(&[0; FRAME_HEAD_LEN], page - FRAME_HEAD_LEN as u64));
        if let Err(error) = destroyed {
            tracing::error!(%error, "a file behind the mount cannot be used");
        }
    }

    /// Empties it; the kernel has to be told.
    pub(super) fn reset(&mut self) {
        self.chain = None;
        let _ = self.cut(0);
    }
}

impl MountedDb {
    pub(super) fn create_wal(&self) -> Result<()> {
        self.check_in_use()?;
        let mut wal = self.wal.lock();
        if wal.file.is_none() {
            let file = tempfile::tempfile_in(self.shared.store.dir());
            let file = Some(Arc::new(file.map_err(|e| errno::of_io(&e))?));
            let (commits, synced) = (wal.commits, wal.synced);
            let generation = wal.generation + 1;
            *wal = Wal { file, generation, commits, synced, ..Wal::default() };
        }
        Ok(())
    }

    pub(super) fn write_wal(&self, offset: u64, data: &[u8]) -> Result<()> {
        if !self.access.lock().may_write_wal() {
            return Err(Errno::EACCES);
        }
        let mut wal = self.wal.lock();
        wal.check_refused(offset)?;
        self.check_wal_write(&mut wal, offset, data)?;
        let file = wal.file.as_ref().ok_or(Errno::ESTALE)?;
        file.write_all_at(data, offset).map_err(|e| errno::of_io(&e))?;
        wal.len = wal.len.max(offset + data.len() as u64);
        if let Some(chain) = &mut wal.chain {
            chain.written(offset, data);
        }
        while let Some(commit) = wal.advance()? {
            if let Err(error) = self.capture(&mut wal, &commit) {
                wal.refuse_commit(error, offset, data);
                return Err(error);
            }
            if !wal.is_recoverable() {
                self.nudge();
            }
        }
        Ok(())
    }

    /// What comes before the write: the WAL begins anew, or frames follow the committed ones.
    fn check_wal_write(&self, wal: &mut Wal, offset: u64, data: &[u8]) -> Result<()> {
        self.ensure_writer(&mut self.main.write())?;
        let header = data.first_chunk().filter(|_| offset == 0);
        if let Some(header) = header {
            if !self.main.read().says_wal() {
                tracing::warn!(db = %self.name(), "refused a WAL of a database that is in a rollback mode now");
                return Err(Errno::EIO);
            }
            let header = WalHeader::parse(header).map_err(|reason| {
                tracing::error!(db = %self.name(), reason, "refused a WAL header");
                Errno::EIO
            })?;
            self.begin_wal_anew(wal);
            wal.chain = Some(Chain::new(header));
            return Ok(());
        }
        let Some(chain) = &wal.chain else { return Err(Errno::EIO) };
        // A frame whose page was there already is committed by the write of its head.
        let same = || wal.read(offset, data.len()).is_ok_and(|there| there == data);
        if chain.overlaps_committed(offset, data.len() as u64) && !same() {
            tracing::error!(db = %self.name(), offset, "refused a write over committed frames of the WAL");
            return Err(Errno::EIO);
        }
        Ok(())
    }

    /// Makes a record of a transaction in the WAL.
    fn capture(&self, wal: &mut Wal, commit: &Commit) -> Result<()> {
        let mut main = self.main.write();
        let committed = self.commit_frames(wal, commit, &mut main);
        if let Err(error) = committed {
            if let Some(writer) = &mut main.writer {
                writer.rollback();
            }
            return Err(error);
        }
        Ok(())
    }

    fn commit_frames(&self, wal: &mut Wal, commit: &Commit, main: &mut MainFile) -> Result<()> {
        let (Some(file), Some(chain)) = (wal.file.clone(), &wal.chain) else {
            return Err(Errno::ESTALE);
        };
        let writer = main.writer.as_mut().ok_or(Errno::EACCES)?;
        let mut page = vec![0; chain.header().page_size.len()];
        for &(pgno, offset) in &commit.frames {
            file.read_exact_at(&mut page, offset).map_err(|e| errno::of_io(&e))?;
            writer.write_page(pgno, &page).map_err(|e| errno::of(&e))?;
        }
        let prepared = writer.prepare(commit.pages, Durability::Normal, false);
        prepared.and_then(|()| writer.sync()).map_err(|error| {
            tracing::warn!(db = %self.name(), %error, "a transaction was not committed");
            errno::of(&error)
        })?;
        // What the primary has made is durable, whatever becomes of this node.
        wal.unanswered = !writer.is_remote();
        let pos = self.publish_writer(writer);
        wal.commits += 1;
        if !main.move_tip(&self.database, pos) {
            self.nudge();
        }
        Ok(())
    }

    /// The log has all of it: the database file shows what it led to.
    fn begin_wal_anew(&self, wal: &mut Wal) {
        let mut main = self.main.write();
        let latest = wal.chain.as_ref().into_iter().flat_map(Chain::latest);
        if !main.is_backfilled(latest) {
            tracing::warn!(db = %self.name(), "a WAL was dropped that was not copied to the database; its log has it");
            self.invalidate_later(vec![(0, 0)]);
        }
        main.show_tip();
        wal.chain = None;
    }

    pub(super) fn truncate_wal(&self, len: u64) -> Result<()> {
        let allowed = self.access.lock().may_write_wal();
        let mut wal = self.wal.lock();
        let cuts =
            wal.chain.as_ref().is_some_and(|chain| chain.overlaps_committed(len, u64::MAX - len));
        if cuts && len > 0 {
            return Err(Errno::EPERM);
        }
        if len == 0 {
            if wal.has_frames() && !allowed {
                return Err(Errno::EPERM);
            }
            self.begin_wal_anew(&mut wal);
        }
        wal.cut(len)
    }

    pub(super) fn unlink_wal(&self) -> Result<()> {
        self.check_removable()?;
        let mut wal = self.wal.lock();
        if wal.file.is_none() {
            return Err(Errno::ENOENT);
        }
        self.begin_wal_anew(&mut wal);
        wal.file = None;
        Ok(())
    }

    /// With `synchronous=FULL`, a commit is acknowledged by this, even if somebody else (a
    /// checkpoint) has synced it. What somebody else is about to sync is not synced yet.
    pub(super) fn sync_wal(&self) -> Result<()> {
        let (commits, synced, unanswered) = {
            let wal = self.wal.lock();
            if let Some(error) = wal.refused {
                return Err(error);
            }
            (wal.commits, wal.synced, wal.unanswered)
        };
        if synced != commits {
            self.database.sync().map_err(|e| errno::of(&e))?;
            let mut wal = self.wal.lock();
            wal.synced = wal.synced.max(commits);
        }
        if unanswered && !self.shared.store.gate().is_open() {
            tracing::warn!(db = %self.name(), "the right to write ended while a commit was synced");
            self.commit_not_answered();
            return Err(Errno::EIO);
        }
        Ok(())
    }

    /// A transaction is committed and published, and its client learns that it failed.
    pub(crate) fn commit_not_answered(&self) {
        let mut wal = self.wal.lock();
        if wal.unanswered {
            // The rest of a write that the kernel cut into pieces must not succeed.
            wal.refused = Some(Errno::EIO);
            wal.unindexed = true;
        } else {
            drop(wal);
            self.forget_name_later("-journal");
        }
    }
}
