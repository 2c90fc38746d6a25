//! Transactions in the rollback modes (DELETE, TRUNCATE, PERSIST), and the `-journal` file.
//!
//! SQLite commits by ending the journal: it removes it, cuts it to nothing, or writes zeros over
//! its header. That call is answered after the transaction's record is in the log (and synced,
//! unless the client never syncs), so that its error makes SQLite roll back.
//!
//! A rollback ends the journal too, after writing the old pages back. It has read the journal's
//! header before, and leaves page 1 as it was, whereas a commit counts the change there; only in
//! `locking_mode=EXCLUSIVE` commits may not, so there an unchanged page 1 says nothing. Pages that
//! were free before the transaction are not written back: a rollback is thus not simply what
//! changes nothing.
//!
//! Only the client whose transaction it is may end it: who removes a journal as a file (`rm`), or
//! by a path that meanwhile is another database's, would commit half of a transaction. SQLite
//! writes, cuts and zeroes a journal through one open file, and closes that before it removes the
//! name. So while the open file through which a live journal was written is there, nobody else may
//! touch it.
//!
//! Databases changed together name a super-journal at the end of their journals. Removing it is
//! then the commit of all of them, and what follows only cleans up.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use fuser::Errno;
use litefs_store::header::{self, HEADER_LEN};
use litefs_store::{Durability, PageSize, Pgno, Pos};

use super::advance::announcing_own_commit;
use super::main_file::{Change, Extent, MainFile, merge};
use super::{MountedDb, Part, Result};
use crate::committing::note_commit;
use crate::errno;
use crate::journal;

/// The `-journal` file.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    /// Made once and used for every journal.
    file: Option<File>,
    exists: bool,
    len: u64,
    /// It begins with a journal's magic number: there is a transaction that it can undo.
    live: bool,
    /// The open file through which it was last written, while it is live and that is not closed.
    writer: Option<u64>,
    /// Its header was read since it was written.
    header_read: bool,
    /// The client syncs.
    synced: bool,
}

impl Journal {
    /// `None` if there is no such file.
    pub(crate) fn len(&self) -> Option<u64> {
        self.exists.then_some(self.len)
    }

    pub(crate) fn is_live(&self) -> bool {
        self.live
    }

    pub(crate) fn note_sync(&mut self) {
        self.synced = true;
    }

    pub(crate) fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let inside = self.len.saturating_sub(offset).min(len as u64) as usize;
        let mut buf = vec![0; inside];
        if let Some(file) = &self.file {
            file.read_exact_at(&mut buf, offset).map_err(|e| errno::of_io(&e))?;
        }
        self.header_read |= offset < journal::HEADER_LEN as u64;
        Ok(buf)
    }

    /// `handle`: the open file through which it would be changed; `None` if by its name.
    fn check_changeable(&self, handle: Option<u64>) -> Result<()> {
        if self.writer.is_some() && self.writer != handle { Err(Errno::EBUSY) } else { Ok(()) }
    }

    fn write(&mut self, handle: u64, offset: u64, data: &[u8]) -> Result<()> {
        let file = self.file.as_ref().ok_or(Errno::ESTALE)?;
        file.write_all_at(data, offset).map_err(|e| errno::of_io(&e))?;
        self.len = self.len.max(offset + data.len() as u64);
        if offset == 0 {
            self.live = journal::is_live(data);
            self.header_read = false;
        }
        self.writer = self.live.then_some(handle);
        Ok(())
    }

    fn cut(&mut self, len: u64) -> Result<()> {
        if let Some(file) = &self.file {
            file.set_len(len).map_err(|e| errno::of_io(&e))?;
        }
        self.len = len;
        if len == 0 {
            self.live = false;
            self.writer = None;
            self.header_read = false;
            self.synced = false;
        }
        Ok(())
    }

    /// Removes the file; the kernel has to be told unless it asked for it.
    pub(super) fn remove(&mut self) {
        self.exists = false;
        let _ = self.cut(0); // made empty again before it is used
    }

    /// Removes what no transaction needs; false if there was nothing.
    pub(super) fn drop_leftover(&mut self) -> bool {
        let there = self.exists && !self.live;
        if there {
            self.remove();
        }
        there
    }

    /// True if the transaction is part of the one that the super-journal stands for.
    fn names(&self, super_journal: &str) -> bool {
        let Some(file) = &self.file else { return false };
        let mut read = |offset: u64, buf: &mut [u8]| file.read_exact_at(buf, offset);
        let named = journal::super_journal_name(self.len, &mut read).ok().flatten();
        named.is_some_and(|path| path.rsplit('/').next() == Some(super_journal))
    }

    fn durability(&self) -> Durability {
        if self.synced { Durability::Full } else { Durability::Off }
    }
}

impl MountedDb {
    // ---- the journal ----

    /// Refused where the node may not write: that is the error of which SQLite says "attempt to
    /// write a readonly database", at once, and forgets it.
    pub(super) fn create_journal(&self) -> Result<()> {
        if !self.access.lock().may_write_main() {
            return Err(Errno::EACCES);
        }
        let mut journal = self.journal.lock();
        self.ensure_writer(&mut self.main.write())?;
        if journal.file.is_none() {
            let file = tempfile::tempfile_in(self.shared.store.dir());
            journal.file = Some(file.map_err(|e| errno::of_io(&e))?);
        }
        if !journal.exists {
            journal.cut(0)?;
            journal.exists = true;
        }
        Ok(())
    }

    pub(super) fn write_journal(&self, handle: u64, offset: u64, data: &[u8]) -> Result<()> {
        let mut journal = self.journal.lock();
        if !journal.exists {
            return Err(Errno::ESTALE);
        }
        journal.check_changeable(Some(handle))?;
        if offset == 0 && journal.live && !journal::is_live(data) {
            self.end_transaction(&mut journal)?; // PERSIST, or EXCLUSIVE
        }
        let begins = offset == 0 && !journal.live;
        if begins {
            self.ensure_writer(&mut self.main.write())?;
        }
        journal.write(handle, offset, data)
    }

    pub(super) fn truncate_journal(&self, handle: Option<u64>, len: u64) -> Result<()> {
        let mut journal = self.journal.lock();
        if !journal.exists {
            return Err(Errno::ESTALE);
        }
        journal.check_changeable(handle)?;
        if len == 0 {
            self.end_transaction(&mut journal)?;
        }
        journal.cut(len)
    }

    pub(super) fn unlink_journal(&self) -> Result<()> {
        let mut journal = self.journal.lock();
        if !journal.exists {
            return Err(Errno::ENOENT);
        }
        journal.check_changeable(None)?;
        self.end_transaction(&mut journal)?;
        journal.remove();
        Ok(())
    }

    /// A client closed an open file of the database, maybe of its journal.
    pub(super) fn note_journal_closed(&self, part: Part, handle: u64) {
        if part == Part::Journal {
            let mut journal = self.journal.lock();
            journal.writer = journal.writer.filter(|writer| *writer != handle);
        }
    }

    // ---- the transaction ----

    /// Takes the store's writer if it was not taken with the lock.
    pub(super) fn ensure_writer(&self, main: &mut MainFile) -> Result<()> {
        if main.writer.is_none() {
            let begun = self.database.begin_write(main.tip());
            main.writer = Some(begun.map_err(|error| {
                tracing::debug!(db = %self.name(), %error, "refused a write");
                Errno::EACCES
            })?);
        }
        Ok(())
    }

    pub(super) fn write_change(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut main = self.main.write();
        let settled = main.page_size();
        let given = u32::try_from(data.len()).ok().and_then(PageSize::new);
        let Some(page_size) = settled.or(given) else { return Err(Errno::EIO) };
        let whole = offset.is_multiple_of(page_size.len() as u64)
            && data.len().is_multiple_of(page_size.len());
        if !whole || main.writer.is_none() {
            return Err(Errno::EIO);
        }
        let before = main.len();
        let mut change = main.change.take().unwrap_or(Change {
            page_size,
            len: before,
            written: BTreeSet::new(),
            room: 0,
        });
        let kept = write_pages(&mut main, &mut change, offset, data);
        let (written, room) = (change.written.len(), change.room);
        change.room = room.max(written);
        main.change = Some(change);
        kept?;
        if written > room {
            self.make_room(&mut main, written)?;
        }
        Ok(())
    }

    /// A full disk must fail a write: SQLite has no words for it when the journal cannot be ended.
    /// Asks for twice of what is written, so that it need not be asked often.
    fn make_room(&self, main: &mut MainFile, written: usize) -> Result<()> {
        let (Some(writer), Some(change)) = (&main.writer, &mut main.change) else { return Ok(()) };
        if writer.make_room(written as u64).is_ok() {
            change.room = 2 * written;
            return Ok(());
        }
        writer.make_room(0).map_err(|e| errno::of(&e))
    }

    pub(super) fn truncate_change(&self, main: &mut MainFile, len: u64) -> Result<()> {
        if let Some(change) = &mut main.change {
            change.len = len;
            return Ok(());
        }
        let page_size = main.page_size().ok_or(Errno::EPERM)?;
        main.change = Some(Change { page_size, len, written: BTreeSet::new(), room: 0 });
        Ok(())
    }

    /// Commits what was written, or recognises a rollback. On an error nothing has changed, and
    /// SQLite rolls back.
    fn end_transaction(&self, journal: &mut Journal) -> Result<()> {
        let mut main = self.main.write();
        if main.change.is_none() {
            return Ok(());
        }
        if journal.header_read && main.ended == 0 && !self.first_page_changed(&main)? {
            let extents = roll_back(&mut main);
            self.invalidate_later(extents);
            return Ok(());
        }
        if let Some(page_size) = new_page_size(&main)? {
            return self.replace(&mut main, page_size);
        }
        self.prepare(&mut main, journal.durability())?;
        self.publish(&mut main);
        Ok(())
    }

    /// `VACUUM` has written the whole database with another page size.
    fn replace(&self, main: &mut MainFile, page_size: PageSize) -> Result<()> {
        let pages = commit_size(main)?;
        let mut content = self.copy_out(main, u64::from(pages) * page_size.len() as u64)?;
        let at = main.tip().pos();
        main.writer = None; // and with it the pages, which were copied
        let replaced = announcing_own_commit(|| self.database.replace(at, &mut content));
        match replaced {
            Ok((pos, unconfirmed)) => {
                note_commit(self.name(), unconfirmed);
                let cut_later = main.change.take().is_some_and(|change| change.len > main.len());
                main.forget_counter();
                main.ended += 1;
                self.show(main, pos);
                if cut_later {
                    self.invalidate_later(vec![(main.len(), 0)]);
                }
                Ok(())
            }
            Err(error) => {
                tracing::warn!(db = %self.name(), %error, "a change of the page size was not committed");
                self.ensure_writer(main)?; // SQLite writes the old pages back
                Err(errno::of(&error))
            }
        }
    }

    /// The first `len` bytes of the file, as a file.
    fn copy_out(&self, main: &MainFile, len: u64) -> Result<File> {
        let mut copy =
            tempfile::tempfile_in(self.shared.store.dir()).map_err(|e| errno::of_io(&e))?;
        let mut offset = 0;
        while offset < len {
            let part = main.read(offset, (len - offset).min(1 << 20) as usize)?;
            if part.is_empty() {
                return Err(Errno::EIO); // the header names more than was written
            }
            copy.write_all(&part).map_err(|e| errno::of_io(&e))?;
            offset += part.len() as u64;
        }
        copy.rewind().map_err(|e| errno::of_io(&e))?;
        Ok(copy)
    }

    fn first_page_changed(&self, main: &MainFile) -> Result<bool> {
        let Some(change) = &main.change else { return Ok(false) };
        if !change.written.contains(&Pgno::FIRST) {
            return Ok(false);
        }
        let (Some(writer), true) = (&main.writer, main.tip().page_count() > 0) else {
            return Ok(true);
        };
        let mut new = vec![0; change.page_size.len()];
        let mut old = new.clone();
        writer.read_within_page(Pgno::FIRST, 0, &mut new).map_err(|e| errno::of(&e))?;
        main.tip().read_page(Pgno::FIRST, &mut old).map_err(|e| errno::of(&e))?;
        main.patch_counter(&mut old);
        Ok(new != old)
    }

    /// Steps 1 to 3 of a commit: the record is in the log, as durable as asked for.
    fn prepare(&self, main: &mut MainFile, durability: Durability) -> Result<()> {
        let pages = commit_size(main)?;
        let writer = main.writer.as_mut().ok_or(Errno::EACCES)?;
        let prepared = writer.prepare(pages, durability, false).and_then(|()| writer.sync());
        prepared.map_err(|error| {
            writer.take_back();
            tracing::warn!(db = %self.name(), %error, "a transaction was not committed");
            errno::of(&error)
        })
    }

    /// Step 4. The kernel has the new pages already: the client wrote them.
    fn publish(&self, main: &mut MainFile) {
        let (Some(writer), Some(change)) = (main.writer.as_mut(), main.change.take()) else {
            return;
        };
        let pos = self.publish_writer(writer);
        main.ended += 1;
        if change.written.contains(&Pgno::FIRST) {
            main.forget_counter();
        }
        self.show(main, pos);
        if change.len > main.len() {
            // The client cuts the file now; if it dies before, the kernel must learn it from here.
            self.invalidate_later(vec![(main.len(), 0)]);
        }
    }

    fn show(&self, main: &mut MainFile, pos: Pos) {
        if main.move_tip(&self.database, pos) {
            main.show_tip();
        } else {
            // A peer's record came right behind; the mover shows it.
            self.nudge();
        }
    }

    /// A writer's locks are gone. If its transaction has not ended, it died; returns what the
    /// kernel has of that.
    pub(super) fn abandon_transaction(&self) -> Vec<Extent> {
        let mut journal = self.journal.lock();
        let mut main = self.main.write();
        let extents = roll_back(&mut main);
        if !extents.is_empty() {
            tracing::info!(db = %self.name(), "rolled back the transaction of a client that went away");
        }
        if journal.live {
            // Nothing of it is in the database file: nobody needs to undo it.
            journal.remove();
            self.forget_name_later("-journal");
        }
        main.writer = None;
        main.ended = 0;
        extents
    }
}

/// Gives whole pages to the writer.
fn write_pages(main: &mut MainFile, change: &mut Change, offset: u64, data: &[u8]) -> Result<()> {
    let page_size = change.page_size;
    let writer = main.writer.as_mut().ok_or(Errno::EIO)?;
    for (index, page) in data.chunks(page_size.len()).enumerate() {
        let at = offset + (index * page_size.len()) as u64;
        let pgno = Pgno::at_offset(at, page_size).ok_or(Errno::EFBIG)?;
        writer.write_page(pgno, page).map_err(|e| errno::of(&e))?;
        change.written.insert(pgno);
        change.len = change.len.max(at + page.len() as u64);
    }
    Ok(())
}

/// Drops what was written. Pages that the client did not write back are in the kernel still:
/// returns those.
fn roll_back(main: &mut MainFile) -> Vec<Extent> {
    if let Some(writer) = &mut main.writer {
        writer.rollback();
    }
    let Some(change) = main.change.take() else { return Vec::new() };
    let mut extents = merge(change.written.into_iter().collect(), change.page_size);
    extents.push((main.len().min(change.len), 0));
    extents
}

/// The database's size after the transaction: as page 1 says, since SQLite cuts the file only
/// after the commit; by the file's length where no SQLite of today wrote page 1.
fn commit_size(main: &MainFile) -> Result<u32> {
    let change = main.change.as_ref().ok_or(Errno::EIO)?;
    let by_length = u32::try_from(change.len / change.page_size.len() as u64).unwrap_or(u32::MAX);
    Ok(match written_header(main)? {
        Some(header) => header::page_count(&header).unwrap_or(by_length),
        None => main.tip().page_count().max(1).min(by_length),
    })
}

/// The header in the page 1 that the transaction wrote, if it did.
fn written_header(main: &MainFile) -> Result<Option<[u8; HEADER_LEN]>> {
    let mut header = [0; HEADER_LEN];
    let writer = main.writer.as_ref().ok_or(Errno::EIO)?;
    let written = writer.read_within_page(Pgno::FIRST, 0, &mut header);
    Ok(written.map_err(|e| errno::of(&e))?.then_some(header))
}

/// The page size in the written page 1, if it is not the one that the database has.
fn new_page_size(main: &MainFile) -> Result<Option<PageSize>> {
    let named = written_header(main)?.and_then(|header| PageSize::new(header::page_size(&header)));
    Ok(named.filter(|size| main.page_size() != Some(*size)))
}

/// Commits, as one, the transactions of those databases whose journals name the super-journal. If
/// one cannot be committed none is.
pub(crate) fn commit_together(databases: &[Arc<MountedDb>], super_journal: &str) -> Result<()> {
    let mut databases: Vec<_> = databases.iter().collect();
    databases.sort_by(|a, b| a.name().cmp(b.name()));
    databases.dedup_by(|a, b| a.name() == b.name());
    let mut taking_part: Vec<_> = databases
        .into_iter()
        .map(|db| (db, db.journal.lock(), db.main.write()))
        .filter(|(_, journal, main)| main.change.is_some() && journal.names(super_journal))
        .collect();
    for index in 0..taking_part.len() {
        let (db, journal, main) = &mut taking_part[index];
        if let Err(error) = db.prepare(main, journal.durability()) {
            let prepared = taking_part[..index].iter_mut();
            prepared.filter_map(|(_, _, main)| main.writer.as_mut()).for_each(|w| w.take_back());
            return Err(error);
        }
    }
    taking_part.iter_mut().for_each(|(db, _, main)| db.publish(main));
    Ok(())
}
