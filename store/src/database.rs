//! The handle of one database: what front ends, replication and tools call.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use litefs_ltx::{PageSize, Pos, Txid};

use crate::db::Db;
use crate::db::compacted::CompactedRecord;
use crate::db::cursor::{LogCursor, Relation};
use crate::db::diverged::Diverged;
use crate::db::hold::Hold;
use crate::db::snapshot::Snapshot;
use crate::db::writer::Writer;
use crate::{Counters, DbName, Durability, Error, Result, Unconfirmed};

/// One database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Database(Arc<Db>);

/// Numbers of one database.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of its log's files.
    pub log_bytes: u64,
    /// Bytes of the log that are not folded yet.
    pub unfolded_bytes: u64,
    /// Records committed or applied since the store was opened.
    pub commits: u64,
    /// Folds since the store was opened.
    pub folds: u64,
    /// The mark's transaction.
    pub mark: Txid,
    /// Snapshots that are pinned.
    pub snapshots: usize,
    /// Transactions in the log.
    pub log_transactions: u64,
    /// Transactions that retention has taken off the log since the store was opened.
    pub retired: u64,
    /// How long after its commit on the primary the newest transaction was here, in ms by both
    /// wall clocks; 0 if it was committed here, or before the store was opened.
    pub lag_ms: i64,
}

impl Database {
    pub(crate) fn new(db: Arc<Db>) -> Self {
        Self(db)
    }

    /// Its name.
    pub fn name(&self) -> &DbName {
        &self.0.name
    }

    /// The directory with its files.
    pub fn dir(&self) -> &std::path::Path {
        &self.0.dir
    }

    /// The newest position; zero before the first transaction.
    pub fn pos(&self) -> Pos {
        self.0.pos()
    }

    /// The newest position that is known to be on disk.
    pub fn synced_pos(&self) -> Pos {
        let synced = self.0.log.lock().synced();
        let content = self.0.content();
        let published = content.published.read();
        if synced >= published.newest.pos.txid {
            return published.newest.pos;
        }
        let record = published.records.iter().rev().find(|record| record.pos.txid <= synced);
        record.map_or(published.mark.pos, |record| record.pos)
    }

    /// The page size; `None` before the first transaction.
    pub fn page_size(&self) -> Option<PageSize> {
        self.0.content().published.read().newest.page_size
    }

    /// The size in pages; 0 if it was never written, or dropped.
    pub fn page_count(&self) -> u32 {
        self.0.content().published.read().newest.pages
    }

    /// When the newest transaction was committed, ms since the Unix epoch; 0 if that is not known
    /// (it is not kept over a restart once folded).
    pub fn timestamp_ms(&self) -> i64 {
        self.0.content().published.read().timestamp_ms
    }

    /// Why it is quarantined, if it is.
    pub fn quarantined(&self) -> Option<String> {
        self.0.quarantined()
    }

    /// Which failed sync made it read-only until it is reopened, if one did.
    pub fn poisoned(&self) -> Option<String> {
        self.0.poisoned()
    }

    /// What is kept of transactions of this node that the cluster did not keep, oldest first.
    ///
    /// # Errors
    /// `Io`.
    pub fn diverged(&self) -> Result<Vec<Diverged>> {
        self.0.diverged()
    }

    /// Numbers for status and metrics.
    pub fn stats(&self) -> Stats {
        let (log_bytes, log_transactions) = {
            let log = self.0.log.lock();
            (log.bytes(), log.transactions())
        };
        let content = self.0.content();
        let published = content.published.read();
        Stats {
            log_bytes,
            unfolded_bytes: published.unfolded,
            commits: self.0.commits.load(Ordering::Relaxed),
            folds: self.0.folds.load(Ordering::Relaxed),
            mark: published.mark.pos.txid,
            snapshots: content.pins.lock().values().sum(),
            log_transactions,
            retired: self.0.retired.load(Ordering::Relaxed),
            lag_ms: self.0.lag_ms.load(Ordering::Relaxed),
        }
    }

    /// What front ends and replication count.
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// Pins the newest position. Never waits for a writer.
    ///
    /// # Errors
    /// `Corrupt` if it is quarantined; `Closed`.
    pub fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::newest(&self.0)
    }

    /// Pins an older position that ends a record which is not folded yet.
    ///
    /// # Errors
    /// `Gone` if there is no such position any more; else as [`Database::snapshot`].
    pub fn snapshot_at(&self, txid: Txid) -> Result<Snapshot> {
        Snapshot::at(&self.0, txid)
    }

    /// Blocks until the position's transaction is at least `txid`.
    ///
    /// # Errors
    /// `Timeout`; `Corrupt`; `Closed`.
    pub fn wait_for(&self, txid: Txid, timeout: Duration) -> Result<Pos> {
        self.0.wait_for(txid, timeout)
    }

    /// True if its clients may write it here: this node may commit, or the primary does it for
    /// them.
    pub fn is_writable(&self) -> bool {
        self.0.shared.gate.is_open() || self.is_remote()
    }

    /// True if writers have to [`reach`](Database::reach) for the primary's right to write first.
    pub fn is_remote(&self) -> bool {
        self.0.shared.remote_for(&self.0.name).is_some()
    }

    /// Takes the primary's right to write if this node may not commit itself, and waits until
    /// everything is here. It is kept for a moment, for [`Database::begin_write`].
    ///
    /// # Errors
    /// `Busy` if another node writes, or `timeout` has passed; `ReadOnly` with the reason.
    pub fn reach(&self, timeout: Duration) -> Result<()> {
        let Some(remote) = self.0.shared.remote_for(&self.0.name) else { return Ok(()) };
        let deadline = crate::clock::after(timeout);
        let pos = remote.reach(&self.0.name, timeout).map_err(|e| e.on(&self.0.name))?;
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        match self.0.wait_for(pos.txid, left) {
            Err(Error::Timeout { db, .. }) => Err(Error::Busy { db }),
            other => other.map(drop),
        }
    }

    /// Holds the right to write for a client of another node; waits for local writers, at most
    /// `timeout`.
    ///
    /// # Errors
    /// `Busy`; `ReadOnly` if this node may not commit; `Corrupt`, `Closed`.
    pub fn hold(&self, timeout: Duration) -> Result<Hold> {
        Hold::take(&self.0, timeout)
    }

    /// Becomes the one writer, if `snapshot` is the newest position.
    ///
    /// # Errors
    /// `Busy`, `StaleSnapshot`, `ReadOnly`, `Corrupt`, `Closed`. Never waits.
    pub fn begin_write(&self, snapshot: &Snapshot) -> Result<Writer> {
        Writer::begin(&self.0, snapshot)
    }

    /// Waits until [`Database::begin_write`] may succeed, at most `timeout`. Who has waited
    /// longest is next.
    pub fn wait_for_writer(&self, timeout: Duration) {
        self.0.token.wait(timeout);
    }

    /// Removes the content: commits a record of a database without pages. The position goes on,
    /// and the database can be written anew, with any page size.
    ///
    /// # Errors
    /// `NotFound` if it has no content; as [`Database::begin_write`]; `Io`, `Full`; `Unconfirmed`.
    pub fn drop_database(&self) -> Result<Pos> {
        confirmed(self.drop_unconfirmed()?)
    }

    /// The same, and does not wait for replicas: if there is something to confirm, the caller has
    /// it confirmed before he acknowledges the change.
    ///
    /// # Errors
    /// As [`Database::drop_database`].
    pub fn drop_unconfirmed(&self) -> Result<(Pos, Option<Unconfirmed>)> {
        self.0.drop_content()
    }

    /// Replaces the content by a plain SQLite file, as one transaction. Over existing content, the
    /// schema cookie (bytes 40..44) is raised, so that open connections notice.
    ///
    /// # Errors
    /// `Invalid` if the bytes are not a whole SQLite database; `ReadOnly`, `Busy`, `Io`, `Full`;
    /// `Unconfirmed`.
    pub fn import(&self, source: &mut dyn Read) -> Result<Pos> {
        confirmed(self.0.import(source, None)?)
    }

    /// Replaces the content at position `at` by one that its own client made of it, as one
    /// transaction: a change of the page size. The bytes are kept as they are. Nobody may hold the
    /// [`Writer`](crate::Writer). Does not wait for replicas, as [`Database::drop_unconfirmed`].
    ///
    /// # Errors
    /// `StaleSnapshot` if the newest position is not `at`; else as [`Database::import`].
    pub fn replace(&self, at: Pos, source: &mut dyn Read) -> Result<(Pos, Option<Unconfirmed>)> {
        self.0.import(source, Some(at))
    }

    /// Writes the newest content as a plain SQLite file; returns its position. The bytes are
    /// exactly those that the position's checksum describes.
    ///
    /// # Errors
    /// As [`Snapshot::export`].
    pub fn export(&self, out: &mut dyn Write) -> Result<Pos> {
        let snapshot = self.snapshot()?;
        snapshot.export(out)?;
        Ok(snapshot.pos())
    }

    /// Folds up to the oldest pinned snapshot, and removes what the log need not keep.
    ///
    /// # Errors
    /// `Io`, `Full`: it can be repeated. `ReadOnly` after a failed sync.
    pub fn fold(&self) -> Result<()> {
        self.0.fold()
    }

    /// Syncs the log now; returns the position that is then on disk.
    ///
    /// # Errors
    /// `Io`: the database is read-only from now on.
    pub fn sync(&self) -> Result<Pos> {
        self.0.sync_log()?;
        Ok(self.synced_pos())
    }

    /// Prepares the log's next segment ahead of its use, if it will soon be needed: what the
    /// background does, for a simulation without it.
    ///
    /// # Errors
    /// `Io`, `Full`: it can be repeated.
    #[cfg(any(test, feature = "sim"))]
    pub fn prepare_spare(&self) -> Result<()> {
        self.0.prepare_spare()
    }

    /// How a peer's position relates to this database's history.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn relation(&self, pos: Pos) -> Result<Relation> {
        self.0.relation(pos)
    }

    /// At most `max` positions of this history, newest first, ever further apart: a replica offers
    /// them so that the primary can name the newest common one. [`Database::rewind`] reaches those
    /// that are not folded. Reads the log: not on an async thread.
    pub fn history_points(&self, max: usize) -> Vec<Pos> {
        self.0.history_points(max)
    }

    /// The node that committed the newest transaction, 0 if its record names none (as those of
    /// imports and snapshots); `None` if the log has no record of it alone. May read the log.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    pub fn newest_author(&self) -> Result<Option<u64>> {
        self.0.newest_author()
    }

    /// The oldest position from which [`Database::log_cursor`] can read.
    ///
    /// # Errors
    /// `Io`.
    pub fn log_start(&self) -> Result<Pos> {
        self.0.log_start()
    }

    /// Reads the published records after `after` in order.
    ///
    /// # Errors
    /// `Mismatch` if `after` is not on this history; `Gone` if the log does not reach back.
    pub fn log_cursor(&self, after: Pos) -> Result<LogCursor> {
        LogCursor::after(&self.0, after)
    }

    /// Plans one record from `after` to what `snapshot` pins, each changed page once.
    ///
    /// # Errors
    /// As [`Database::log_cursor`].
    pub fn compacted(&self, snapshot: Snapshot, after: Pos) -> Result<CompactedRecord> {
        CompactedRecord::plan(snapshot, after)
    }

    /// Verifies a record (LTX v1, raw or LZ4) wholly, and appends it if it follows the newest
    /// position. `record` ends where the record ends. Takes the right to write from any local
    /// writer.
    ///
    /// # Errors
    /// `Mismatch` if it is damaged or does not follow, `Io`, `Full`: nothing has changed.
    pub fn apply(&self, record: &mut dyn Read, durability: Durability) -> Result<Pos> {
        self.0.apply(record, durability)
    }

    /// Replaces the content by a snapshot record (minTXID 1), which may be larger than memory.
    /// Pinned readers keep what they see. Ends a quarantine.
    ///
    /// # Errors
    /// As [`Database::apply`].
    pub fn install_snapshot(&self, record: &mut dyn Read) -> Result<Pos> {
        self.0.install_snapshot(record)
    }

    /// Writes the transactions after `common`, if that is known and in the log, and the whole
    /// content, as LTX files under `diverged/`, durably, and tells listeners. `None` if there are
    /// none, or they are kept already.
    ///
    /// # Errors
    /// `Io`, `Full` (the disk, or too many are kept already), `Corrupt`.
    pub fn preserve_diverged(&self, common: Option<Pos>) -> Result<Option<Diverged>> {
        self.0.preserve_diverged(common)
    }

    /// Drops the records after `to`. Pinned readers keep what they see.
    ///
    /// # Errors
    /// `Gone` if the base may be newer already: then only a snapshot helps. `Io`: the database is
    /// read-only from now on.
    pub fn rewind(&self, to: Pos) -> Result<()> {
        self.0.rewind(to)
    }
}

/// Waits for replicas, if there is something to confirm.
fn confirmed((pos, unconfirmed): (Pos, Option<Unconfirmed>)) -> Result<Pos> {
    unconfirmed.map_or(Ok(pos), Unconfirmed::wait)
}
