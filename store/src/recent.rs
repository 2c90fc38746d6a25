//! What was written past the kernel's cache most recently, for those who read it back at once: the
//! cursors of replication. Bounded for all files of a store together.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Bytes kept.
const CAPACITY: usize = 4 << 20;

/// A file's number, and where in it a write begins.
type Place = (u64, u64);

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct RecentWrites {
    inner: Mutex<Inner>,
    last_file: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    /// With its place in `order`. No two overlap.
    writes: BTreeMap<Place, (u64, Arc<[u8]>)>,
    /// Oldest first.
    order: BTreeMap<u64, Place>,
    last: u64,
    bytes: usize,
}

impl RecentWrites {
    /// A number for a file that no other has.
    pub(crate) fn new_file(&self) -> u64 {
        self.last_file.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Keeps what was written to a file, in place of what it overwrote.
    pub(crate) fn insert(&self, file: u64, offset: u64, bytes: &[u8]) {
        let bytes: Arc<[u8]> = bytes.into();
        let mut inner = self.inner.lock();
        inner.forget(file, offset..offset + bytes.len() as u64);
        inner.last += 1;
        let number = inner.last;
        inner.bytes += bytes.len();
        inner.order.insert(number, (file, offset));
        inner.writes.insert((file, offset), (number, bytes));
        while inner.bytes > CAPACITY {
            let (_, &oldest) = inner.order.first_key_value().expect("BUG: it holds bytes");
            inner.remove(oldest);
        }
    }

    /// Fills `buf` if one write that is kept covers it all.
    pub(crate) fn read(&self, file: u64, buf: &mut [u8], offset: u64) -> bool {
        let found = {
            let inner = self.inner.lock();
            let before = inner.writes.range((file, 0)..=(file, offset)).next_back();
            before.map(|(&(_, start), (_, bytes))| (start, bytes.clone()))
        };
        let Some((start, bytes)) = found else { return false };
        let from = (offset - start) as usize;
        match bytes.get(from..).and_then(|bytes| bytes.get(..buf.len())) {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                true
            }
            None => false,
        }
    }

    /// Drops what overlaps this range of a file.
    pub(crate) fn forget(&self, file: u64, range: Range<u64>) {
        self.inner.lock().forget(file, range);
    }
}

impl Inner {
    fn forget(&mut self, file: u64, range: Range<u64>) {
        let before_end = self.writes.range((file, 0)..(file, range.end)).rev();
        let overlaps = |(place, (_, bytes)): &(&Place, &(u64, Arc<[u8]>))| {
            place.1 + bytes.len() as u64 > range.start
        };
        let overlapping: Vec<Place> =
            before_end.take_while(overlaps).map(|(&place, _)| place).collect();
        overlapping.into_iter().for_each(|place| self.remove(place));
    }

    fn remove(&mut self, place: Place) {
        if let Some((number, bytes)) = self.writes.remove(&place) {
            self.order.remove(&number);
            self.bytes -= bytes.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The bytes at a place, if they are kept.
    fn read(recent: &RecentWrites, file: u64, range: Range<u64>) -> Option<Vec<u8>> {
        let mut buf = vec![0xee; (range.end - range.start) as usize];
        recent.read(file, &mut buf, range.start).then_some(buf)
    }

    #[test]
    fn only_what_one_write_covers_is_read() {
        let recent = RecentWrites::default();
        recent.insert(1, 100, b"abcd");
        recent.insert(1, 104, b"efgh");
        assert_eq!(read(&recent, 1, 101..103).unwrap(), b"bc");
        assert_eq!(read(&recent, 1, 100..104).unwrap(), b"abcd");
        for range in [99..101, 103..105, 108..109, 200..201] {
            assert_eq!(read(&recent, 1, range.clone()), None, "{range:?}");
        }
        assert_eq!(read(&recent, 2, 100..104), None, "another file");
    }

    #[test]
    fn the_oldest_go_first_and_memory_is_bounded() {
        let recent = RecentWrites::default();
        let len = CAPACITY / 4;
        for i in 0..10 {
            recent.insert(i % 3, i * len as u64, &vec![i as u8; len]);
        }
        for i in 0..10 {
            let kept = read(&recent, i % 3, i * len as u64..i * len as u64 + 1);
            assert_eq!(kept, (i >= 6).then(|| vec![i as u8]), "write {i}");
        }
        recent.insert(7, 0, &vec![1; CAPACITY + 1]);
        let inner = recent.inner.lock();
        assert_eq!((inner.bytes, inner.writes.len(), inner.order.len()), (0, 0, 0));
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written_last(
            steps in prop::collection::vec((any::<bool>(), 0u64..3, 0u64..40, 1usize..20), 1..60)
        ) {
            let recent = RecentWrites::default();
            let mut model = vec![vec![None; 64]; 3];
            for (number, (writes, file, offset, len)) in steps.into_iter().enumerate() {
                let range = offset..offset + len as u64;
                let bytes = vec![number as u8; len];
                let cells = &mut model[file as usize][range.start as usize..range.end as usize];
                match writes {
                    true => {
                        recent.insert(file, offset, &bytes);
                        prop_assert_eq!(read(&recent, file, range), Some(bytes));
                        cells.fill(Some(number as u8));
                    }
                    false => {
                        recent.forget(file, range);
                        cells.fill(None);
                    }
                }
                for (file, cells) in model.iter().enumerate() {
                    for (at, cell) in cells.iter().enumerate() {
                        if let Some(got) = read(&recent, file as u64, at as u64..at as u64 + 1) {
                            prop_assert_eq!(Some(got[0]), *cell);
                        }
                    }
                }
            }
        }
    }
}
