//! Which pages a file may hold, in which order: the rules that encoder and decoder share.
//!
//! Pages ascend strictly, none is beyond the database's size, and the lock page is never there. A
//! snapshot holds all others from 1 to the database's size.

use crate::{Header, PageSize, Pgno, Violation};

/// Follows the page numbers of one file.
#[derive(Debug)]
pub(crate) struct PageSequence {
    page_size: PageSize,
    commit: u32,
    snapshot: bool,
    /// The last page so far; 0 before the first.
    last: u32,
}

impl PageSequence {
    pub(crate) fn new(header: &Header) -> Self {
        Self {
            page_size: header.page_size,
            commit: header.commit,
            snapshot: header.is_snapshot(),
            last: 0,
        }
    }

    /// Takes the next page, or says why it must not come here (and stays as it was).
    pub(crate) fn push(&mut self, pgno: Pgno) -> Result<(), Violation> {
        let (n, last, commit) = (pgno.get(), self.last, self.commit);
        if n > commit {
            return Err(Violation::PageBeyondCommit { pgno: n, commit });
        }
        if pgno == self.page_size.lock_page() {
            return Err(Violation::LockPage(pgno));
        }
        let expected = next_stored(last, self.page_size);
        if self.snapshot && u64::from(n) != expected {
            return Err(Violation::SnapshotGap { pgno: n, expected });
        }
        if n <= last {
            return Err(Violation::PageOrder { pgno: n, last });
        }
        self.last = n;
        Ok(())
    }

    /// Checks that the pages may end here.
    pub(crate) fn finish(&self) -> Result<(), Violation> {
        let (last, commit) = (self.last, self.commit);
        if self.snapshot && next_stored(last, self.page_size) <= u64::from(commit) {
            return Err(Violation::SnapshotShort { last, commit });
        }
        Ok(())
    }
}

/// The page after `last` in a file that leaves out none but the lock page.
pub(crate) fn next_stored(last: u32, page_size: PageSize) -> u64 {
    let next = u64::from(last) + 1;
    if next == u64::from(page_size.lock_page().get()) { next + 1 } else { next }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Txid;

    fn sequence(min_txid: u64, commit: u32) -> PageSequence {
        let page_size = PageSize::new(65536).unwrap(); // lock page 16385
        PageSequence::new(&Header {
            min_txid: Txid::new(min_txid),
            ..Header::snapshot(page_size, commit, Txid::new(min_txid))
        })
    }

    fn push(seq: &mut PageSequence, n: u32) -> Result<(), Violation> {
        seq.push(Pgno::new(n).unwrap())
    }

    #[test]
    fn snapshot_skips_the_lock_page_and_may_end_on_it() {
        for commit in 16384..=16386 {
            let mut seq = sequence(1, commit);
            let mut last = 0;
            for n in (1..=commit).filter(|&n| n != 16385) {
                assert_eq!(seq.finish(), Err(Violation::SnapshotShort { last, commit }));
                push(&mut seq, n).unwrap();
                last = n;
            }
            assert_eq!(seq.finish(), Ok(()), "commit {commit}");
        }
    }

    #[test]
    fn snapshot_with_a_gap_is_refused() {
        let mut seq = sequence(1, 9);
        assert_eq!(push(&mut seq, 2), Err(Violation::SnapshotGap { pgno: 2, expected: 1 }));
        push(&mut seq, 1).unwrap();
        assert_eq!(push(&mut seq, 3), Err(Violation::SnapshotGap { pgno: 3, expected: 2 }));
        assert_eq!(push(&mut seq, 1), Err(Violation::SnapshotGap { pgno: 1, expected: 2 }));
    }

    #[test]
    fn increment_must_ascend_within_commit_without_the_lock_page() {
        let mut seq = sequence(2, 20000);
        push(&mut seq, 7).unwrap();
        assert_eq!(push(&mut seq, 7), Err(Violation::PageOrder { pgno: 7, last: 7 }));
        assert_eq!(push(&mut seq, 6), Err(Violation::PageOrder { pgno: 6, last: 7 }));
        let lock = Pgno::new(16385).unwrap();
        assert_eq!(seq.push(lock), Err(Violation::LockPage(lock)));
        assert_eq!(
            push(&mut seq, 20001),
            Err(Violation::PageBeyondCommit { pgno: 20001, commit: 20000 })
        );
        push(&mut seq, 20000).unwrap();
        assert_eq!(seq.finish(), Ok(()));
    }

    #[test]
    fn largest_page_number_does_not_overflow() {
        let mut seq = sequence(2, u32::MAX);
        push(&mut seq, u32::MAX).unwrap();
        assert!(push(&mut seq, u32::MAX).is_err());
        assert_eq!(seq.finish(), Ok(()));
    }
}
