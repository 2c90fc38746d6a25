//! The page cache that all readers of a store share.
//!
//! A page is found by database, number and checksum: a version never changes, wherever it lies, so
//! nothing is ever invalidated, and what is found needs no further check.

use std::sync::Arc;

use litefs_ltx::{Checksum, Pgno};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

type Key = (u64, Pgno, Checksum);

/// Bounded by the bytes of its pages.
#[derive(Debug)]
pub(crate) struct PageCache(Cache<Key, Arc<[u8]>, ByLength>);

#[derive(Debug, Clone)]
struct ByLength;

impl Weighter<Key, Arc<[u8]>> for ByLength {
    fn weight(&self, _: &Key, page: &Arc<[u8]>) -> u64 {
        page.len() as u64
    }
}

impl PageCache {
    /// A cache of at most `bytes` bytes of pages.
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Cache::with_weighter(bytes / 4096, bytes as u64, ByLength))
    }

    /// The page, if it is there.
    pub(crate) fn get(&self, db: u64, pgno: Pgno, sum: Checksum) -> Option<Arc<[u8]>> {
        self.0.get(&(db, pgno, sum))
    }

    /// Keeps a page, in place of others.
    pub(crate) fn insert(&self, db: u64, pgno: Pgno, sum: Checksum, page: Arc<[u8]>) {
        self.0.insert((db, pgno, sum), page);
    }
}
