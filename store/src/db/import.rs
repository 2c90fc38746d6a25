//! Import of a plain SQLite file, and dropping a database.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use litefs_ltx::{PageSize, Pgno, Pos};

use super::Db;
use super::install::Installation;
use super::overlay::{LOCAL_LIMIT, Overlay};
use super::published::StateAt;
use super::token::HeldToken;
use super::writer::Passed;
use crate::header::{self, HEADER_LEN};
use crate::replication::unconfirmed;
use crate::{Durability, Error, Result, Unconfirmed};

const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Where SQLite keeps the number by which connections notice a changed schema.
const SCHEMA_COOKIE: std::ops::Range<usize> = 40..44;
/// How long an import or a drop waits for a writer to finish.
const PATIENCE: Duration = Duration::from_secs(5);

/// The position that a change led to, and whether it may not be acknowledged yet.
pub(crate) type Changed = (Pos, Option<Unconfirmed>);

impl Db {
    /// Takes the right to write, and passes the write gate.
    fn hold_token(self: &Arc<Self>) -> Result<(Passed, HeldToken<'_>)> {
        self.shared.gate.check(&self.name)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(held) = self.token.try_hold() {
                // Again: waiting may have taken longer than the right to write lasted.
                return Ok((Passed::enter(self)?, held));
            }
            if Instant::now() >= deadline {
                return Err(Error::Busy { db: self.name.clone() });
            }
            self.token.wait(deadline.saturating_duration_since(Instant::now()));
        }
    }

    /// Commits a record that leaves no pages.
    pub(crate) fn drop_content(self: &Arc<Self>) -> Result<Changed> {
        self.check_well()?;
        let (passed, _held) = self.hold_token()?;
        let content = self.content();
        let newest = content.published.read().newest;
        let (Some(page_size), true) = (newest.page_size, newest.pages > 0) else {
            return Err(Error::NotFound { name: self.name.to_string() });
        };
        let overlay = Overlay::new(page_size, LOCAL_LIMIT);
        let draft = self.plan(&content, &overlay, 0, false)?;
        let draft = draft.expect("BUG: dropping a database that has pages changes it");
        let appended = self.append(draft, &overlay, Durability::Full)?;
        let synced = self.sync_log().and_then(|()| self.shared.gate.check(&self.name));
        if let Err(error) = synced {
            self.take_back(&appended);
            return Err(error);
        }
        let pos = self.publish(&content, appended, overlay, Durability::Full);
        Ok((pos, Unconfirmed::new(self, pos, passed)))
    }

    /// Replaces the content by a plain SQLite file's bytes; if it was made from the content at a
    /// position, only over that one, and without another schema cookie: its clients know it.
    pub(crate) fn import(
        self: &Arc<Self>,
        source: &mut dyn Read,
        made_from: Option<Pos>,
    ) -> Result<Changed> {
        self.shared.check_open()?;
        self.shared.gate.check(&self.name)?;
        let _one = self.installing.lock();
        let (page_size, first) = self.read_first_page(source)?;
        let mut installation = Installation::begin(self, page_size)?;
        let mut page = first;
        let stated = page.first_chunk().and_then(header::page_count);
        let newest = self.content().published.read().newest;
        if made_from.is_none() {
            self.renew_schema_cookie(&newest, &mut page)?;
        }
        loop {
            if installation.pages() == u32::MAX - 1 {
                return Err(self.not_sqlite("it has more than 2^32 - 2 pages".into()));
            }
            installation.push(&page)?;
            match fill(source, &mut page).map_err(|e| self.source_error(e))? {
                0 => break,
                read if read < page.len() => {
                    let reason =
                        format!("its length is not a multiple of its page size {page_size}");
                    return Err(self.not_sqlite(reason));
                }
                _ => {}
            }
        }
        if let Some(stated) = stated.filter(|&stated| stated != installation.pages()) {
            let has = installation.pages();
            return Err(self.not_sqlite(format!("its header states {stated} pages, it has {has}")));
        }
        installation.finish_writing()?;
        let (passed, _held) = self.hold_token()?;
        let newest = self.content().published.read().newest.pos;
        if made_from.is_some_and(|pos| pos != newest) {
            return Err(Error::StaleSnapshot { db: self.name.clone() });
        }
        let txid = newest.txid.next();
        let pos = Pos::new(txid, installation.checksum());
        let allowed = || self.shared.gate.check(&self.name);
        installation.commit(pos, self.shared.clock.wall_ms(), allowed)?;
        // That may have taken longer than the right to write lasted, and is done.
        self.shared.gate.check(&self.name).map_err(|e| unconfirmed(pos, e))?;
        Ok((pos, Unconfirmed::new(self, pos, passed)))
    }

    fn read_first_page(&self, source: &mut dyn Read) -> Result<(PageSize, Vec<u8>)> {
        let mut head = [0; HEADER_LEN];
        let read = fill(source, &mut head).map_err(|e| self.source_error(e))?;
        if read < HEADER_LEN || &head[..16] != MAGIC {
            return Err(self.not_sqlite("it does not begin like a SQLite database".into()));
        }
        let stated = header::page_size(&head);
        let Some(page_size) = PageSize::new(stated) else {
            return Err(self.not_sqlite(format!("its header states a page size of {stated}")));
        };
        let mut page = head.to_vec();
        page.resize(page_size.len(), 0);
        let rest = fill(source, &mut page[HEADER_LEN..]).map_err(|e| self.source_error(e))?;
        if HEADER_LEN + rest < page_size.len() {
            return Err(self.not_sqlite("it ends within its first page".into()));
        }
        Ok((page_size, page))
    }

    /// Connections that have the replaced content's schema in memory must notice that it changed,
    /// so the new content's schema cookie is one that the old one never had.
    fn renew_schema_cookie(&self, newest: &StateAt, page: &mut [u8]) -> Result<()> {
        let (Some(page_size), true) = (newest.page_size, newest.pages > 0) else { return Ok(()) };
        if self.quarantined().is_some() {
            return Ok(());
        }
        let mut old = vec![0; page_size.len()];
        self.read_page(&self.content(), newest, Pgno::FIRST, &mut old)?;
        let highest = schema_cookie(&old).max(schema_cookie(page));
        page[SCHEMA_COOKIE].copy_from_slice(&highest.wrapping_add(1).to_be_bytes());
        Ok(())
    }

    fn not_sqlite(&self, reason: String) -> Error {
        Error::NotSqlite { db: self.name.clone(), reason }
    }

    fn source_error(&self, source: io::Error) -> Error {
        let path = std::path::PathBuf::from("the database to import");
        Error::Io { op: "read", path, source }
    }
}

fn schema_cookie(page: &[u8]) -> u32 {
    let [.., a, b, c, d] = page[..SCHEMA_COOKIE.end] else { return 0 };
    u32::from_be_bytes([a, b, c, d])
}

/// Reads until `buf` is full or the source ends.
fn fill(source: &mut dyn Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match source.read(&mut buf[done..]) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
