//! The published state of a database: its position, and where each page's versions are.
//!
//! A page's newest version at or below a pinned position is in the log if `versions` says so, else
//! in the base. Every version, those of the base included, has its checksum here, so that no page
//! is believed without a check, and a commit's new database checksum costs O(pages written).

use std::collections::VecDeque;
use std::sync::Arc;

use litefs_ltx::{Checksum, PageSize, Pgno, Pos, Txid};
use rustc_hash::FxHashMap;

use super::log::Segment;
use super::mark::Mark;

/// A page's content as one transaction left it, in the log.
#[derive(Debug, Clone)]
pub(crate) struct Version {
    /// The transaction.
    pub txid: Txid,
    /// Where its record lies.
    pub segment: Arc<Segment>,
    /// Where in the segment the page's bytes begin.
    pub offset: u64,
    /// The page's checksum.
    pub sum: Checksum,
}

/// A record above the mark.
#[derive(Debug, Clone)]
pub(crate) struct RecordMeta {
    /// The position after it.
    pub pos: Pos,
    /// Its first transaction: `pos.txid` unless it is a compacted one.
    pub min_txid: Txid,
    /// The database's size after it, in pages.
    pub commit: u32,
    /// The database's page size after it.
    pub page_size: PageSize,
    /// When it was committed, ms since the Unix epoch.
    pub timestamp_ms: i64,
    /// Where it lies.
    pub segment: Arc<Segment>,
    /// Where in the segment its frame ends.
    pub end: u64,
    /// Bytes of its frame.
    pub len: u64,
}

/// The content at one position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StateAt {
    pub pos: Pos,
    pub page_size: Option<PageSize>,
    pub pages: u32,
}

/// Where to read a page.
#[derive(Debug)]
pub(crate) enum Location {
    /// From the log.
    Log(Version),
    /// From the base, expecting this checksum.
    Base(Checksum),
}

impl Location {
    pub(crate) fn sum(&self) -> Checksum {
        match self {
            Self::Log(version) => version.sum,
            Self::Base(sum) => *sum,
        }
    }
}

/// See the module's text.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    /// The newest state.
    pub newest: StateAt,
    /// When the newest transaction was committed, ms since the Unix epoch; 0 if unknown.
    pub timestamp_ms: i64,
    /// The transaction that last may have replaced the whole content since this line of content
    /// began (a removal, or a compacted record, which can hide one); zero if none did.
    pub replaced: Txid,
    /// What is known of the base.
    pub mark: Mark,
    /// Checksums of the base's pages; index 0 is page 1. The lock page has `Checksum::NONE`.
    pub sums: Vec<Checksum>,
    /// Versions above the mark, ascending.
    pub versions: FxHashMap<Pgno, Vec<Version>>,
    /// Records above the mark, ascending.
    pub records: VecDeque<RecordMeta>,
    /// Bytes of those records' frames.
    pub unfolded: u64,
}

impl Published {
    /// The state that the base alone holds.
    pub(crate) fn of_base(mark: Mark, sums: Vec<Checksum>) -> Self {
        let newest = StateAt { pos: mark.pos, page_size: mark.page_size, pages: mark.pages };
        Self {
            newest,
            timestamp_ms: 0,
            replaced: Txid::ZERO,
            mark,
            sums,
            versions: FxHashMap::default(),
            records: VecDeque::new(),
            unfolded: 0,
        }
    }

    /// Adds a record and the page versions in it.
    pub(crate) fn push(
        &mut self,
        record: RecordMeta,
        pages: impl Iterator<Item = (Pgno, Version)>,
    ) {
        assert!(record.pos.txid > self.newest.pos.txid, "BUG: published transactions ascend");
        for (pgno, version) in pages {
            self.versions.entry(pgno).or_default().push(version);
        }
        if record.commit == 0 || record.min_txid != record.pos.txid {
            self.replaced = record.pos.txid;
        }
        let page_size = Some(record.page_size);
        self.newest = StateAt { pos: record.pos, page_size, pages: record.commit };
        self.timestamp_ms = record.timestamp_ms;
        self.unfolded += record.len;
        self.records.push_back(record);
    }

    /// The newest version of a page at or below `at`, which must be at least the mark.
    pub(crate) fn locate(&self, pgno: Pgno, at: Txid) -> Option<Location> {
        if let Some(versions) = self.versions.get(&pgno) {
            let newest = versions.iter().rev().find(|version| version.txid <= at);
            if let Some(version) = newest {
                return Some(Location::Log(version.clone()));
            }
        }
        self.base_sum(pgno).map(Location::Base)
    }

    /// The checksum of a page's newest version; `None` if the database has no such page.
    pub(crate) fn newest_sum(&self, pgno: Pgno) -> Option<Checksum> {
        if pgno.get() > self.newest.pages {
            return None;
        }
        match self.versions.get(&pgno).and_then(|versions| versions.last()) {
            Some(version) => Some(version.sum),
            None => self.base_sum(pgno),
        }
    }

    fn base_sum(&self, pgno: Pgno) -> Option<Checksum> {
        self.sums.get(pgno.get() as usize - 1).copied().filter(|sum| !sum.is_none())
    }

    /// Drops a page's versions up to `target`: the base has the newest of them.
    pub(crate) fn forget_versions(&mut self, pgno: Pgno, target: Txid) {
        if let Some(versions) = self.versions.get_mut(&pgno) {
            versions.retain(|version| version.txid > target);
            if versions.is_empty() {
                self.versions.remove(&pgno);
            }
        }
    }

    /// The database checksum from the page checksums alone, in O(pages).
    pub(crate) fn computed_checksum(&self) -> Checksum {
        let in_base = (self.newest.pages as usize).min(self.sums.len());
        let mut sum =
            self.sums[..in_base].iter().fold(Checksum::EMPTY, |sum, &page| sum.toggle(page));
        for (&pgno, versions) in &self.versions {
            if pgno.get() > self.newest.pages {
                continue;
            }
            sum = sum.toggle(self.base_sum(pgno).unwrap_or(Checksum::NONE));
            sum = sum.toggle(versions.last().map_or(Checksum::NONE, |version| version.sum));
        }
        sum
    }

    /// The oldest transaction whose content can still be read: the base may be that new already.
    pub(crate) fn floor(&self) -> Txid {
        self.mark.ceiling.max(self.mark.pos.txid)
    }

    /// The content at a record's end at or above the floor; `None` if no record ends there.
    pub(crate) fn state_at(&self, txid: Txid) -> Option<StateAt> {
        if txid < self.floor() {
            return None;
        }
        if txid == self.mark.pos.txid {
            let mark = &self.mark;
            return Some(StateAt { pos: mark.pos, page_size: mark.page_size, pages: mark.pages });
        }
        let record = self.record_at(txid)?;
        let page_size = Some(record.page_size);
        Some(StateAt { pos: record.pos, page_size, pages: record.commit })
    }

    /// When the transaction at a record's end was committed; 0 if unknown.
    pub(crate) fn timestamp_at(&self, txid: Txid) -> i64 {
        if txid == self.newest.pos.txid {
            return self.timestamp_ms;
        }
        self.record_at(txid).map_or(0, |record| record.timestamp_ms)
    }

    /// The record above the mark that ends at `txid`.
    pub(crate) fn record_at(&self, txid: Txid) -> Option<&RecordMeta> {
        let found = self.records.binary_search_by_key(&txid, |record| record.pos.txid);
        found.ok().map(|index| &self.records[index])
    }
}
