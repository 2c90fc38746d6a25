//! Byte-range locks of one file, with the rules of POSIX: per owner, ranges of bytes, shared or
//! exclusive; an owner's new lock replaces what it held of those bytes.

/// Who holds a lock: the kernel's lock owner (a process, or an open file for OFD locks).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Owner(pub u64);

/// Whether a lock shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LockKind {
    /// Shared, `F_RDLCK`.
    Read,
    /// Exclusive, `F_WRLCK`.
    Write,
}

/// Bytes, the last one included, as in FUSE's requests (`u64::MAX`: to the end of any file).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub start: u64,
    pub end: u64,
}

/// A lock that is held or asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lock {
    pub owner: Owner,
    pub range: Range,
    pub kind: LockKind,
    /// The process, for `F_GETLK`.
    pub pid: u32,
    /// The open file through which it was taken.
    pub handle: u64,
}

/// The bytes that SQLite locks.
#[rustfmt::skip]
pub(crate) mod bytes {
    use super::Range;

    /// Main file: a writer waits for readers to leave; new ones stay out.
    pub(crate) const PENDING: u64 = 0x4000_0000;
    /// Main file: the one writer of a rollback mode.
    pub(crate) const RESERVED: u64 = PENDING + 1;
    /// Main file: readers share these bytes, a committing writer holds all of them.
    pub(crate) const SHARED: Range = Range { start: PENDING + 2, end: PENDING + 511 };
    /// Shm: the one writer of the WAL.
    pub(crate) const WRITE: u64 = 120;
    /// Shm: the one checkpointer.
    pub(crate) const CKPT: u64 = 121;
    /// Shm: what is held for a transaction's time, or a checkpoint's: `WRITE`, `CKPT`, the byte of
    /// whoever rebuilds the wal-index, and five of the readers, by their read marks.
    pub(crate) const TRANSACTION: Range = Range { start: WRITE, end: 127 };
    /// Shm: the dead man's switch, shared by all that have the shm open.
    pub(crate) const DMS: u64 = 128;
    /// `-lock`: whoever holds it on a replica has stopped the primary's writes.
    pub(crate) const HALT: u64 = 72;
}

/// SQLite's locks by LiteFS's names: in the main file, then in the shm.
pub(crate) const MAIN_LOCKS: [(&str, u64); 3] =
    [("pending", bytes::PENDING), ("shared", bytes::SHARED.start), ("reserved", bytes::RESERVED)];
pub(crate) const SHM_LOCKS: [(&str, u64); 9] = [
    ("write", bytes::WRITE),
    ("ckpt", bytes::CKPT),
    ("recover", 122),
    ("read0", 123),
    ("read1", 124),
    ("read2", 125),
    ("read3", 126),
    ("read4", 127),
    ("dms", bytes::DMS),
];

impl Range {
    /// One byte.
    pub(crate) const fn byte(byte: u64) -> Self {
        Self { start: byte, end: byte }
    }

    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    pub(crate) fn contains(self, byte: u64) -> bool {
        self.start <= byte && byte <= self.end
    }

    /// What is left of these bytes before and behind `other`, which overlaps them.
    fn without(self, other: Self) -> impl Iterator<Item = Self> {
        let before =
            (self.start < other.start).then(|| Self { start: self.start, end: other.start - 1 });
        let behind = (self.end > other.end).then(|| Self { start: other.end + 1, end: self.end });
        before.into_iter().chain(behind)
    }
}

/// The locks of one file.
///
/// Invariant: sorted by start; no byte twice for one owner; what could be one lock is one.
#[derive(Debug, Default)]
pub(crate) struct LockTable {
    locks: Vec<Lock>,
}

impl LockTable {
    /// The first lock that keeps `wanted` from being granted: another owner's, of a common byte,
    /// where one of both is exclusive.
    pub(crate) fn conflict(&self, wanted: &Lock) -> Option<Lock> {
        let exclusive =
            |lock: &Lock| lock.kind == LockKind::Write || wanted.kind == LockKind::Write;
        self.overlapping(wanted.range)
            .find(|lock| lock.owner != wanted.owner && exclusive(lock))
            .copied()
    }

    /// Takes a lock that nothing conflicts with, in place of what its owner held of those bytes.
    pub(crate) fn set(&mut self, lock: Lock) {
        debug_assert!(self.conflict(&lock).is_none(), "BUG: the caller checks for conflicts");
        self.clear(lock.owner, lock.range);
        let merged = self.absorb_neighbours(lock);
        let at = self.locks.partition_point(|held| held.range.start <= merged.range.start);
        self.locks.insert(at, merged);
    }

    /// Gives back what an owner holds of these bytes.
    pub(crate) fn clear(&mut self, owner: Owner, range: Range) {
        let overlaps = |held: &Lock| held.owner == owner && held.range.overlaps(range);
        if !self.locks.iter().any(overlaps) {
            return;
        }
        let mut rest = Vec::new();
        self.locks.retain(|held| {
            if overlaps(held) {
                rest.extend(held.range.without(range).map(|range| Lock { range, ..*held }));
            }
            !overlaps(held)
        });
        self.locks.append(&mut rest);
        self.locks.sort_by_key(|lock| lock.range.start);
    }

    /// Gives back all of an owner's locks; false if it held none.
    pub(crate) fn clear_owner(&mut self, owner: Owner) -> bool {
        self.remove(|lock| lock.owner == owner)
    }

    /// Gives back the locks that were taken through an open file; false if there were none.
    pub(crate) fn clear_handle(&mut self, handle: u64) -> bool {
        self.remove(|lock| lock.handle == handle)
    }

    /// Who holds a byte: exclusively for `Write`, in any way for `Read` (the first of them).
    pub(crate) fn holder(&self, byte: u64, kind: LockKind) -> Option<Owner> {
        self.overlapping(Range::byte(byte)).find(|lock| lock.gives(kind)).map(|lock| lock.owner)
    }

    /// How a byte is held by anybody, in LiteFS's words.
    pub(crate) fn state(&self, byte: u64) -> &'static str {
        match (self.holder(byte, LockKind::Write), self.holder(byte, LockKind::Read)) {
            (Some(_), _) => "exclusive",
            (None, Some(_)) => "shared",
            (None, None) => "unlocked",
        }
    }

    /// True if this owner holds a byte: exclusively for `Write`, in any way for `Read`.
    pub(crate) fn holds(&self, owner: Owner, byte: u64, kind: LockKind) -> bool {
        self.overlapping(Range::byte(byte)).any(|lock| lock.owner == owner && lock.gives(kind))
    }

    /// True if nobody holds any of these bytes.
    pub(crate) fn is_free(&self, range: Range) -> bool {
        self.overlapping(range).next().is_none()
    }

    /// Who holds any of these bytes; an owner may come more than once.
    pub(crate) fn owners_of(&self, range: Range) -> impl Iterator<Item = Owner> {
        self.overlapping(range).map(|lock| lock.owner)
    }

    fn overlapping(&self, range: Range) -> impl Iterator<Item = &Lock> {
        let until = self.locks.partition_point(|lock| lock.range.start <= range.end);
        self.locks[..until].iter().filter(move |lock| lock.range.end >= range.start)
    }

    /// Removes the owner's locks that touch `lock` and are alike, and makes `lock` cover them.
    fn absorb_neighbours(&mut self, mut lock: Lock) -> Lock {
        let own = lock.range;
        self.locks.retain(|held| {
            let touches = held.range.end.checked_add(1) == Some(own.start)
                || own.end.checked_add(1) == Some(held.range.start);
            let same = touches && Lock { range: own, ..*held } == Lock { range: own, ..lock };
            if same {
                lock.range.start = lock.range.start.min(held.range.start);
                lock.range.end = lock.range.end.max(held.range.end);
            }
            !same
        });
        lock
    }

    fn remove(&mut self, is_removed: impl Fn(&Lock) -> bool) -> bool {
        let before = self.locks.len();
        self.locks.retain(|lock| !is_removed(lock));
        self.locks.len() < before
    }
}

impl Lock {
    fn gives(&self, kind: LockKind) -> bool {
        kind == LockKind::Read || self.kind == LockKind::Write
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use LockKind::{Read, Write};
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn lock(owner: u64, start: u64, end: u64, kind: LockKind) -> Lock {
        let owner = Owner(owner);
        Lock { owner, range: Range { start, end }, kind, pid: owner.0 as u32, handle: owner.0 }
    }

    #[test]
    fn a_conflict_names_the_real_lock_and_not_what_was_asked_for() {
        let mut table = LockTable::default();
        table.set(lock(1, bytes::DMS, bytes::DMS, Read));
        table.set(lock(2, 123, 127, Read));
        let found = table.conflict(&lock(3, bytes::DMS, bytes::DMS, Write));
        assert_eq!(found, Some(lock(1, 128, 128, Read)));
        let found = table.conflict(&lock(3, 0, u64::MAX, Write));
        assert_eq!(found, Some(lock(2, 123, 127, Read)), "the first by start");
        assert_eq!(table.conflict(&lock(3, 0, u64::MAX, Read)), None);
        assert_eq!(table.conflict(&lock(1, bytes::DMS, bytes::DMS, Write)), None, "its own");
    }

    #[test]
    fn a_lock_to_the_end_of_any_file_is_cut_without_overflow() {
        let mut table = LockTable::default();
        table.set(lock(1, 10, u64::MAX, Write));
        table.set(lock(1, u64::MAX, u64::MAX, Read));
        assert!(table.holds(Owner(1), u64::MAX - 1, Write));
        assert!(!table.holds(Owner(1), u64::MAX, Write));
        table.clear(Owner(1), Range { start: 0, end: u64::MAX });
        assert!(table.is_free(Range { start: 0, end: u64::MAX }));
    }

    #[test]
    fn equal_neighbours_become_one_lock() {
        let mut table = LockTable::default();
        table.set(lock(1, 124, 124, Read));
        table.set(lock(1, 126, 126, Read));
        table.set(lock(1, 125, 125, Read));
        assert_eq!(table.locks, [lock(1, 124, 126, Read)]);
        table.set(Lock { handle: 9, ..lock(1, 127, 127, Read) });
        assert_eq!(table.locks.len(), 2, "another open file's lock goes when that file goes");
        assert!(table.clear_handle(9));
        assert!(!table.clear_handle(9));
        assert_eq!(table.locks, [lock(1, 124, 126, Read)]);
    }

    const SPAN: u64 = 12;

    #[derive(Debug, Clone)]
    enum Op {
        Set(Lock),
        Clear(Owner, Range),
        ClearOwner(Owner),
        ClearHandle(u64),
    }

    fn any_range() -> impl Strategy<Value = Range> {
        (0..SPAN, 0..SPAN).prop_map(|(a, b)| Range { start: a.min(b), end: a.max(b) })
    }

    fn any_lock() -> impl Strategy<Value = Lock> {
        (0..3u64, any_range(), any::<bool>(), 0..2u64).prop_map(|(owner, range, write, handle)| {
            let kind = if write { Write } else { Read };
            Lock { owner: Owner(owner), range, kind, pid: owner as u32, handle }
        })
    }

    fn any_op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => any_lock().prop_map(Op::Set),
            3 => (0..3u64, any_range()).prop_map(|(o, r)| Op::Clear(Owner(o), r)),
            1 => (0..3u64).prop_map(|o| Op::ClearOwner(Owner(o))),
            1 => (0..2u64).prop_map(Op::ClearHandle),
        ]
    }

    /// One lock per byte and owner: what POSIX says, without ranges.
    #[derive(Debug, Default)]
    struct Model {
        held: std::collections::BTreeMap<(u64, Owner), (LockKind, u64)>,
    }

    impl Model {
        fn conflicts(&self, wanted: &Lock) -> bool {
            self.held.iter().any(|((byte, owner), (kind, _))| {
                wanted.range.contains(*byte)
                    && *owner != wanted.owner
                    && (*kind == Write || wanted.kind == Write)
            })
        }

        fn apply(&mut self, op: &Op) {
            match op {
                Op::Set(lock) => {
                    for byte in lock.range.start..=lock.range.end {
                        self.held.insert((byte, lock.owner), (lock.kind, lock.handle));
                    }
                }
                Op::Clear(owner, range) => {
                    self.held
                        .retain(|(byte, held_by), _| held_by != owner || !range.contains(*byte));
                }
                Op::ClearOwner(owner) => self.held.retain(|(_, held_by), _| held_by != owner),
                Op::ClearHandle(handle) => self.held.retain(|_, (_, through)| through != handle),
            }
        }
    }

    fn apply(table: &mut LockTable, op: &Op) {
        match op {
            Op::Set(lock) => table.set(*lock),
            Op::Clear(owner, range) => table.clear(*owner, *range),
            Op::ClearOwner(owner) => {
                table.clear_owner(*owner);
            }
            Op::ClearHandle(handle) => {
                table.clear_handle(*handle);
            }
        }
    }

    fn compare(table: &LockTable, model: &Model) {
        assert!(table.locks.is_sorted_by_key(|lock| lock.range.start));
        for byte in 0..SPAN {
            for owner in (0..3).map(Owner) {
                let held = model.held.get(&(byte, owner)).map(|(kind, _)| *kind);
                assert_eq!(table.holds(owner, byte, Read), held.is_some());
                assert_eq!(table.holds(owner, byte, Write), held == Some(Write));
            }
            let owners: Vec<_> =
                (0..3).map(Owner).filter(|o| model.held.contains_key(&(byte, *o))).collect();
            let mut found: Vec<_> = table.owners_of(Range::byte(byte)).collect();
            found.sort();
            assert_eq!(found, owners);
            assert_eq!(table.is_free(Range::byte(byte)), owners.is_empty());
            assert_eq!(table.holder(byte, Read).is_some(), !owners.is_empty());
            let writer = owners.into_iter().find(|o| model.held[&(byte, *o)].0 == Write);
            assert_eq!(table.holder(byte, Write), writer);
        }
    }

    proptest! {
        #[test]
        fn ranges_mean_what_single_bytes_would(ops in vec(any_op(), 0..40)) {
            let (mut table, mut model) = (LockTable::default(), Model::default());
            for op in ops {
                if let Op::Set(wanted) = &op {
                    prop_assert_eq!(table.conflict(wanted).is_some(), model.conflicts(wanted));
                    if model.conflicts(wanted) {
                        continue;
                    }
                }
                apply(&mut table, &op);
                model.apply(&op);
                compare(&table, &model);
            }
        }
    }
}
