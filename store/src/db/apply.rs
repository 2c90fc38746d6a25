//! Taking records from a peer: one that follows, or a snapshot that replaces everything.
//!
//! Nothing changes before the whole record has verified: its own checksums, that it follows the
//! newest position, and that the content it leads to has the checksum that it states.

use std::io::Read;
use std::sync::Arc;

use litefs_ltx::{Checksum, Decoder, Header, Pgno, Pos, Txid};

use super::commit::Draft;
use super::install::Installation;
use super::overlay::{Overlay, PEER_LIMIT};
use super::published::StateAt;
use super::token::HeldToken;
use super::{Content, Db};
use crate::{Durability, Error, Result};

/// The highest transaction id taken from a peer: more than 10^10 a second for a decade.
const LAST_TXID: Txid = Txid::new(1 << 62);

impl Db {
    /// Takes the right to write from any local writer.
    pub(crate) fn seize(&self) -> HeldToken<'_> {
        HeldToken { token: &self.token, id: self.token.seize() }
    }

    pub(crate) fn apply(
        self: &Arc<Self>,
        record: &mut dyn Read,
        durability: Durability,
    ) -> Result<Pos> {
        let (draft, overlay) = self.read_record(record)?;
        let _seized = self.seize();
        let made_at = draft.header.timestamp_ms;
        self.append_foreign(draft, overlay, durability, || {
            self.note_lag(made_at);
            Ok(())
        })
    }

    /// Reads and verifies a record that follows the newest position, so far as it can be said
    /// without the right to write.
    pub(crate) fn read_record(&self, record: &mut dyn Read) -> Result<(Draft, Overlay)> {
        self.check_well()?;
        let mut decoder = Decoder::new(record).map_err(|e| self.bad_record(e))?;
        let header = Header { compressed: false, ..*decoder.header() };
        self.check_follows(&header, &self.content().published.read().newest)?;
        let mut overlay = Overlay::new(header.page_size, PEER_LIMIT);
        let mut pages = Vec::new();
        let mut page = vec![0; header.page_size.len()];
        while let Some(pgno) = decoder.next_page(&mut page).map_err(|e| self.bad_record(e))? {
            overlay.write(&self.shared, pgno, &page)?;
            pages.push((pgno, decoder.last_page_checksum()));
        }
        let post = decoder.finish().map_err(|e| self.bad_record(e))?.post_apply;
        Ok((Draft { header, pages, post }, overlay))
    }

    /// Appends a record that was made elsewhere, and publishes it, unless `check` fails when it is
    /// in the log. The caller has the right to write, and keeps it.
    pub(crate) fn append_foreign(
        self: &Arc<Self>,
        draft: Draft,
        overlay: Overlay,
        durability: Durability,
        check: impl FnOnce() -> Result<()>,
    ) -> Result<Pos> {
        self.check_well()?;
        let content = self.content();
        self.check_leads_to(&content, &draft)?;
        let durability = durability.max(self.shared.options.durability);
        let appended = self.append(draft, &overlay, durability)?;
        let synced = match durability {
            Durability::Full => self.sync_log(),
            _ => Ok(()),
        };
        if let Err(error) = synced.and_then(|()| check()) {
            self.take_back(&appended);
            return Err(error);
        }
        Ok(self.publish(&content, appended, overlay, durability))
    }

    fn check_follows(&self, header: &Header, newest: &StateAt) -> Result<()> {
        let after = Pos::new(header.min_txid, header.pre_apply);
        if header.min_txid != newest.pos.txid.next() || header.pre_apply != newest.pos.checksum {
            let reason = format!(
                "a record that begins with transaction {} on {} does not follow",
                after.txid, after.checksum
            );
            return Err(self.mismatch(reason));
        }
        self.check_last(header)?;
        if newest.pages > 0 && newest.page_size != Some(header.page_size) {
            let reason = format!("a record with pages of {} bytes does not fit", header.page_size);
            return Err(self.mismatch(reason));
        }
        Ok(())
    }

    /// No honest database comes near the last transaction id, behind which there is no next one.
    fn check_last(&self, header: &Header) -> Result<()> {
        if header.max_txid <= LAST_TXID {
            return Ok(());
        }
        Err(self.mismatch(format!("a record ends with transaction {}", header.max_txid)))
    }

    fn check_leads_to(&self, content: &Content, draft: &Draft) -> Result<()> {
        let newest = content.published.read().newest;
        self.check_follows(&draft.header, &newest)?;
        if let Some(missing) = missing_growth(&draft.header, newest.pages, &draft.pages) {
            let reason = format!(
                "a record that grows it to {} pages lacks page {missing}",
                draft.header.commit
            );
            return Err(self.mismatch(reason));
        }
        let computed = self.checksum_after(content, draft.header.commit, &draft.pages);
        if computed != draft.post {
            let reason = format!(
                "record {} leads to checksum {computed}, not to {} as it states",
                draft.header.max_txid, draft.post
            );
            return Err(self.mismatch(reason));
        }
        Ok(())
    }

    pub(crate) fn install_snapshot(self: &Arc<Self>, record: &mut dyn Read) -> Result<Pos> {
        self.shared.check_open()?;
        let _one = self.installing.lock();
        let mut decoder = Decoder::new(record).map_err(|e| self.bad_record(e))?;
        let header = *decoder.header();
        if !header.is_snapshot() {
            return Err(
                self.mismatch("a snapshot begins with transaction 1, this record does not".into())
            );
        }
        self.check_last(&header)?;
        let mut installation = Installation::begin(self, header.page_size)?;
        let mut page = vec![0; header.page_size.len()];
        while let Some(pgno) = decoder.next_page(&mut page).map_err(|e| self.bad_record(e))? {
            if pgno > installation.next() {
                installation.push(&vec![0; page.len()])?; // the lock page, the only one left out
            }
            installation.push_summed(&page, decoder.last_page_checksum())?;
        }
        if installation.pages() < header.commit {
            installation.push(&vec![0; page.len()])?; // the lock page at the end
        }
        let trailer = decoder.finish().map_err(|e| self.bad_record(e))?;
        let pos = Pos::new(header.max_txid, trailer.post_apply);
        if installation.checksum() != pos.checksum || installation.pages() != header.commit {
            return Err(self.mismatch(format!("a snapshot's pages do not add up to {pos}")));
        }
        installation.finish_writing()?;
        let _seized = self.seize();
        let pos = installation.commit(pos, header.timestamp_ms, || Ok(()))?;
        self.note_lag(header.timestamp_ms);
        Ok(pos)
    }

    pub(crate) fn bad_record(&self, source: litefs_ltx::Error) -> Error {
        Error::BadRecord { db: self.name.clone(), source }
    }
}

/// A page by which the database grows that is not in the record.
fn missing_growth(header: &Header, before: u32, pages: &[(Pgno, Checksum)]) -> Option<Pgno> {
    let lock_page = header.page_size.lock_page();
    let grown = (before.saturating_add(1)..=header.commit).filter_map(Pgno::new);
    let first_new = pages.partition_point(|(pgno, _)| pgno.get() <= before);
    let mut have = pages[first_new..].iter().map(|(pgno, _)| *pgno);
    grown.filter(|&pgno| pgno != lock_page).find(|&pgno| have.next() != Some(pgno))
}
