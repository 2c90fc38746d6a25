//! The one writer of a database.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use litefs_ltx::{PageSize, Pgno, Pos};

use super::commit::{Appended, Draft};
use super::overlay::{LOCAL_LIMIT, Overlay};
use super::{Content, Db};
use crate::remote::{RETURN_TIMEOUT, RecordToSend, RemoteWriter};
use crate::replication::unconfirmed;
use crate::{Durability, Error, Result, Snapshot, Unconfirmed};

/// The one writer of a database, and its uncommitted pages. Dropping it rolls back.
///
/// A commit is [`prepare`](Self::prepare), [`sync`](Self::sync), and
/// [`publish`](Self::publish); anything else is a rollback. The writer can then go on with the
/// next transaction.
#[derive(Debug)]
pub struct Writer {
    db: Arc<Db>,
    content: Arc<Content>,
    token: u64,
    /// The position that the transaction continues.
    began: Pos,
    overlay: Option<Overlay>,
    prepared: Option<Prepared>,
    unconfirmed: Option<Unconfirmed>,
    /// The primary's right to write, if this node may not commit itself.
    remote: Option<RemoteCommits>,
}

/// Commits that the primary makes.
#[derive(Debug)]
struct RemoteCommits {
    writer: Box<dyn RemoteWriter>,
    /// What it is to commit.
    draft: Option<Draft>,
    /// Where its last commit led to.
    committed: Option<Pos>,
}

/// A record at the end of the log that nobody has seen yet.
#[derive(Debug)]
struct Prepared {
    appended: Appended,
    durability: Durability,
    passed: Passed,
    /// When the commit began.
    begun: Duration,
}

/// A commit that is past the write gate, until this is dropped.
#[derive(Debug)]
pub(crate) struct Passed {
    db: Arc<Db>,
    /// It may be dropped on another thread than the one that passed.
    detached: bool,
}

impl Passed {
    /// Waits while the gate is held.
    ///
    /// # Errors
    /// `ReadOnly` unless a commit is allowed now, here and by the replicas.
    pub(crate) fn enter(db: &Arc<Db>) -> Result<Self> {
        db.shared.gate.enter(&db.name)?;
        let passed = Self { db: db.clone(), detached: false };
        db.check_admitted()?;
        Ok(passed)
    }

    /// Lets any thread drop it.
    pub(crate) fn detach(mut self) -> Self {
        if !std::mem::replace(&mut self.detached, true) {
            self.db.shared.gate.detach();
        }
        self
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        match self.detached {
            true => self.db.shared.gate.step_back(),
            false => self.db.shared.gate.leave(),
        }
    }
}

impl Writer {
    pub(crate) fn begin(db: &Arc<Db>, snapshot: &Snapshot) -> Result<Self> {
        db.check_well()?;
        let busy = || Error::Busy { db: db.name.clone() };
        let remote = match db.shared.remote_for(&db.name) {
            Some(remote) => Some(remote.claim(&db.name).ok_or_else(busy)?),
            None => {
                db.shared.gate.check(&db.name)?;
                db.check_admitted()?;
                None
            }
        };
        let token = db.token.try_acquire().ok_or_else(busy)?;
        let content = db.content();
        let newest = content.published.read().newest.pos;
        if content.id != snapshot.generation() || newest != snapshot.pos() {
            db.token.release(token);
            return Err(Error::StaleSnapshot { db: db.name.clone() });
        }
        let db = db.clone();
        let remote = remote.map(|writer| RemoteCommits { writer, draft: None, committed: None });
        let (overlay, prepared, unconfirmed) = (None, None, None);
        Ok(Self { db, content, token, began: newest, overlay, prepared, unconfirmed, remote })
    }

    /// The page size: the database's, or for an empty one that of the first written page.
    pub fn page_size(&self) -> Option<PageSize> {
        match &self.overlay {
            Some(overlay) => Some(overlay.page_size()),
            None => self.settled_page_size(),
        }
    }

    /// The page size that the database has; an empty one can still take any.
    fn settled_page_size(&self) -> Option<PageSize> {
        let newest = self.content.published.read().newest;
        newest.page_size.filter(|_| newest.pages > 0)
    }

    /// Keeps a page for the commit. Beyond 64 MiB, pages go to an unnamed temporary file.
    ///
    /// # Errors
    /// `Invalid` if `data` is not one page; `Full` or `Io` if the temporary file cannot be written.
    pub fn write_page(&mut self, pgno: Pgno, data: &[u8]) -> Result<()> {
        let page_size = u32::try_from(data.len()).ok().and_then(PageSize::new);
        let fits = |size| self.page_size().is_none_or(|settled| settled == size);
        let Some(page_size) = page_size.filter(|&size| fits(size)) else {
            return Err(self.invalid(format!("{} bytes written as page {pgno}", data.len())));
        };
        if self.overlay.is_none() {
            self.overlay = Some(Overlay::new(page_size, LOCAL_LIMIT));
        }
        let overlay = self.overlay.as_mut().expect("BUG: just made");
        overlay.write(&self.db.shared, pgno, data)
    }

    /// Makes sure that the log has space for a commit of as many pages as were written, and of
    /// `more`: for front ends that must report a full disk before they commit.
    ///
    /// # Errors
    /// `Full`, `Io`: nothing has changed. `ReadOnly` after a failed sync, or once a peer's record
    /// has arrived.
    pub fn make_room(&self, more: u64) -> Result<()> {
        let (Some(overlay), None) = (&self.overlay, &self.remote) else { return Ok(()) };
        self.db.begin_commit(self.token)?; // nobody else appends meanwhile
        let pages = overlay.pgnos().count() as u64 + more;
        let made = self.db.make_room(overlay.page_size(), pages);
        self.db.token.end_commit(self.token);
        made
    }

    /// Reads bytes of a page written in this transaction; false if it was not written.
    ///
    /// # Errors
    /// `Invalid` if the range leaves the page; `Io` if the temporary file cannot be read.
    pub fn read_within_page(&self, pgno: Pgno, offset: usize, buf: &mut [u8]) -> Result<bool> {
        let Some(overlay) = &self.overlay else { return Ok(false) };
        if offset + buf.len() > overlay.page_size().len() {
            return Err(self.invalid(format!("{} bytes at {offset} of a page", buf.len())));
        }
        overlay.read(pgno, offset, buf)
    }

    /// True if the primary makes its commits.
    pub fn is_remote(&self) -> bool {
        self.remote.is_some()
    }

    /// The highest page written in this transaction.
    pub fn max_written(&self) -> Option<Pgno> {
        self.overlay.as_ref().and_then(Overlay::max)
    }

    /// True if nothing has been written since the beginning, the last commit or rollback.
    pub fn is_clean(&self) -> bool {
        let is_prepared =
            self.prepared.is_some() || self.remote.as_ref().is_some_and(|r| r.draft.is_some());
        self.overlay.as_ref().is_none_or(Overlay::is_empty) && !is_prepared
    }

    /// First step of a commit: appends the record of a database of `commit` pages to the log, where
    /// one that [`sync`](Self::sync) is to sync may be on disk at once.
    /// Pages whose content did not change are left out; if nothing changed there is no record.
    /// With `elide_counters`, page 1 is left out too if only its bytes 24..28 and 92..100 differ.
    /// If it was prepared before, that record is taken back first. Waits while the write gate is
    /// held.
    ///
    /// # Errors
    /// `ReadOnly`, `Full`, `Io`: the log is as before, or the database is read-only from now on,
    /// and the caller rolls back.
    pub fn prepare(
        &mut self,
        commit: u32,
        durability: Durability,
        elide_counters: bool,
    ) -> Result<()> {
        self.take_back();
        let begun = self.db.shared.clock.now();
        let durability = durability.max(self.db.shared.options.durability);
        let Some(draft) = self.plan(commit, elide_counters)? else { return Ok(()) };
        self.db.check_well()?;
        if let Some(remote) = &mut self.remote {
            remote.draft = Some(draft);
            return Ok(());
        }
        let passed = Passed::enter(&self.db)?;
        self.db.begin_commit(self.token)?;
        let overlay = self.overlay.as_ref().expect("BUG: a plan is made of an overlay");
        let appended = self.db.append(draft, overlay, durability);
        let appended = appended.inspect_err(|_| self.db.token.end_commit(self.token))?;
        self.prepared = Some(Prepared { appended, durability, passed, begun });
        Ok(())
    }

    /// Works out the record; `None` if nothing changed, as after SQLite has undone a transaction
    /// by writing the old pages again, which works whether or not commits are allowed.
    fn plan(&mut self, commit: u32, elide_counters: bool) -> Result<Option<Draft>> {
        let page_size = match self.page_size() {
            Some(page_size) => page_size,
            None if commit == 0 => return Ok(None),
            None => return Err(self.invalid(format!("commit of {commit} pages, none written"))),
        };
        let new = || Overlay::new(page_size, LOCAL_LIMIT);
        let overlay = self.overlay.get_or_insert_with(new);
        self.db.plan(&self.content, overlay, commit, elide_counters)
    }

    /// Second step of a commit: waits until the prepared record is on disk, if its durability, or
    /// the store's, asks for that; then makes sure that this node may still commit.
    ///
    /// # Errors
    /// `Io`: the database is read-only from now on, and the caller rolls back. `ReadOnly` if the
    /// right to commit ended meanwhile.
    pub fn sync(&mut self) -> Result<()> {
        if self.remote.is_some() {
            return self.commit_remotely();
        }
        if matches!(self.prepared, Some(Prepared { durability: Durability::Full, .. })) {
            self.db.sync_log()?;
        }
        match self.prepared {
            // Once more: appending may have taken longer than the right to commit lasted.
            Some(_) => self.db.shared.gate.check(&self.db.name),
            None => Ok(()),
        }
    }

    /// Has the primary commit what is prepared, and waits until that is here.
    fn commit_remotely(&mut self) -> Result<()> {
        let (Some(remote), Some(overlay)) = (&mut self.remote, &self.overlay) else {
            return Ok(());
        };
        let Some(draft) = remote.draft.take() else { return Ok(()) };
        let db = &self.db;
        let record = RecordToSend { db, draft: &draft, overlay };
        let pos = record.pos();
        remote.writer.commit(&record).map_err(|error| error.on(&db.name))?;
        let arrived = db.wait_for(pos.txid, RETURN_TIMEOUT).map_err(|error| {
            let reason = format!("the primary has made it, but it did not arrive here: {error}");
            Error::UnknownOutcome { db: db.name.clone(), reason }
        })?;
        if arrived.txid == pos.txid && arrived != pos {
            let reason = format!("the primary has made it, but is at {arrived}, not at {pos}");
            return Err(Error::UnknownOutcome { db: db.name.clone(), reason });
        }
        remote.committed = Some(pos);
        Ok(())
    }

    /// Last step of a commit: everyone sees the prepared record. Without one, nothing changed.
    /// Cannot fail. Returns the position that the transaction led to, or continued.
    pub fn publish(&mut self) -> Pos {
        let overlay = self.overlay.take();
        if let Some(pos) = self.remote.as_mut().and_then(|remote| remote.committed.take()) {
            // It was published when it arrived, which took the token away.
            self.content = self.db.content();
            self.began = pos;
            return pos;
        }
        match (self.prepared.take(), overlay) {
            (Some(Prepared { appended, durability, passed, begun }), Some(overlay)) => {
                let pos = self.db.publish(&self.content, appended, overlay, durability);
                let shared = &self.db.shared;
                shared.timings.commit.add(shared.clock.now().saturating_sub(begun));
                self.db.lag_ms.store(0, Ordering::Relaxed);
                self.db.token.end_commit(self.token);
                self.began = pos;
                self.unconfirmed = Unconfirmed::new(&self.db, pos, passed);
                pos
            }
            _ => self.began,
        }
    }

    /// What was just published, if it may not be acknowledged before replicas have confirmed it.
    /// Whoever publishes must ask.
    pub fn take_unconfirmed(&mut self) -> Option<Unconfirmed> {
        self.unconfirmed.take()
    }

    /// Waits until what was just published may be acknowledged.
    ///
    /// # Errors
    /// `Unconfirmed`: replicas did not confirm it, or the right to commit has ended since.
    pub fn acknowledge(&mut self) -> Result<()> {
        match self.unconfirmed.take() {
            // The primary has asked its own gate, and its replicas.
            None if self.remote.is_some() => Ok(()),
            Some(unconfirmed) => unconfirmed.wait().map(drop),
            None => {
                let checked = self.db.shared.gate.check(&self.db.name);
                checked.map_err(|error| unconfirmed(self.began, error))
            }
        }
    }

    /// Forgets the written pages, and takes a prepared record off the log again.
    pub fn rollback(&mut self) {
        self.take_back();
        self.overlay = None;
    }

    /// Takes a prepared record off the log again; the written pages stay, for another attempt.
    pub fn take_back(&mut self) {
        if let Some(remote) = &mut self.remote {
            remote.draft = None;
        }
        if let Some(Prepared { appended, passed: _passed, .. }) = self.prepared.take() {
            self.db.take_back(&appended);
            self.db.token.end_commit(self.token);
        }
    }

    fn invalid(&self, reason: String) -> Error {
        Error::Invalid { db: self.db.name.clone(), reason }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.rollback();
        self.db.token.release(self.token);
    }
}
