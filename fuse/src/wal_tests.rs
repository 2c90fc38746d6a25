//! The chain against WALs that SQLite wrote, and against writes in SQLite's order.

use super::*;
use rusqlite::Connection;
use std::path::Path;

/// A WAL file in memory with its chain, and a count of the bytes that the chain read.
struct Replay {
    file: Vec<u8>,
    chain: Option<Chain>,
    read: u64,
}

impl Replay {
    fn new() -> Self {
        Self { file: Vec::new(), chain: None, read: 0 }
    }

    fn chain(&self) -> &Chain {
        self.chain.as_ref().expect("the header was written")
    }

    /// Writes as a client would, cut into pieces as the kernel does; returns the transactions that
    /// the last piece committed.
    fn write(&mut self, at: usize, data: &[u8]) -> Vec<Commit> {
        let cut = (at / 4096 + 1) * 4096 - at;
        if cut < data.len() {
            assert_eq!(self.write_piece(at, &data[..cut]), []);
            return self.write(at + cut, &data[cut..]);
        }
        self.write_piece(at, data)
    }

    fn write_piece(&mut self, at: usize, data: &[u8]) -> Vec<Commit> {
        let end = at + data.len();
        self.file.resize(self.file.len().max(end), 0);
        self.file[at..end].copy_from_slice(data);
        if at == 0 {
            let header = self.file[..HEADER_LEN].try_into().unwrap();
            self.chain = Some(Chain::new(WalHeader::parse(header).unwrap()));
        }
        self.chain.as_mut().unwrap().written(at as u64, data);
        self.advance()
    }

    fn advance(&mut self) -> Vec<Commit> {
        let Self { file, chain: Some(chain), read } = self else { return Vec::new() };
        let mut source = |at: u64, buf: &mut [u8]| {
            *read += buf.len() as u64;
            buf.copy_from_slice(&file[at as usize..at as usize + buf.len()]);
            Ok(())
        };
        iter::from_fn(|| chain.advance(file.len() as u64, &mut source).unwrap()).collect()
    }

    /// Makes the file what SQLite left on disk: what differs is written, in pieces as SQLite's.
    fn follow(&mut self, target: &[u8]) -> Vec<Commit> {
        let mut commits = Vec::new();
        if self.file.get(..HEADER_LEN) != Some(&target[..HEADER_LEN]) {
            commits.extend(self.write(0, &target[..HEADER_LEN]));
        }
        let page = self.chain().header().page_size.len();
        let mut at = HEADER_LEN;
        while at < target.len() {
            for len in [FRAME_HEAD_LEN, page] {
                if self.file.get(at..at + len) != Some(&target[at..at + len]) {
                    commits.extend(self.write(at, &target[at..at + len]));
                }
                at += len;
            }
        }
        commits
    }
}

/// Applies commits to a database file's content.
fn apply(database: &mut Vec<u8>, wal: &Replay, commits: &[Commit]) {
    let page = wal.chain().header().page_size;
    for commit in commits {
        database.resize(commit.pages as usize * page.len(), 0);
        for (pgno, offset) in &commit.frames {
            let (to, from) = (pgno.offset(page) as usize, *offset as usize);
            database[to..to + page.len()].copy_from_slice(&wal.file[from..from + page.len()]);
        }
    }
}

/// What SQLite itself makes of a database file and a WAL: recovery, then a checkpoint.
fn recovered(database: &[u8], wal: &[u8]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    std::fs::write(&path, database).unwrap();
    std::fs::write(dir.path().join("db-wal"), wal).unwrap();
    let db = Connection::open(&path).unwrap();
    let busy: i64 = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).unwrap();
    assert_eq!(busy, 0);
    drop(db);
    std::fs::read(path).unwrap()
}

fn wal_of(path: &Path) -> Vec<u8> {
    std::fs::read(path.with_extension("db-wal")).unwrap()
}

/// Statements, and how many transactions they commit.
const STEPS: &[(&str, usize)] = &[
    ("CREATE TABLE t(id INTEGER PRIMARY KEY, x)", 1),
    ("INSERT INTO t(x) VALUES('a'); INSERT INTO t(x) VALUES('b')", 2),
    // Spills, with pages written more than once: heads are written again.
    (
        "BEGIN; WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 300)
      INSERT INTO t(x) SELECT randomblob(300) FROM n; UPDATE t SET x = x || 'y';
      CREATE INDEX tx ON t(x); UPDATE t SET x = x || 'z' WHERE id % 7 = 0; COMMIT",
        1,
    ),
    // Frames that are in the WAL but belong to nothing.
    ("BEGIN; UPDATE t SET x = randomblob(500); ROLLBACK", 0),
    ("INSERT INTO t(x) VALUES('c')", 1),
    (
        "BEGIN; INSERT INTO t(x) VALUES('d'); SAVEPOINT s; UPDATE t SET x = randomblob(500);
      ROLLBACK TO s; UPDATE t SET x = 'e' WHERE id < 50; RELEASE s; COMMIT",
        1,
    ),
    // The WAL starts again, over frames of the old one.
    ("PRAGMA wal_checkpoint(RESTART)", 0),
    ("UPDATE t SET x = randomblob(10) WHERE id = 3", 1),
    // Shrinks: frames of pages beyond the new end.
    ("BEGIN; UPDATE t SET x = randomblob(900); DELETE FROM t WHERE id > 5; COMMIT", 1),
    ("VACUUM", 1),
    ("PRAGMA wal_checkpoint(TRUNCATE)", 0),
    ("INSERT INTO t(x) VALUES('f')", 1),
];

#[test]
fn commits_are_what_sqlites_recovery_finds() {
    for page_size in [512, 4096, 65536] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        let db = Connection::open(&path).unwrap();
        let setup = format!(
            "PRAGMA page_size={page_size}; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;
             PRAGMA cache_size=2"
        );
        db.execute_batch(&setup).unwrap();
        let mut ours = std::fs::read(&path).unwrap();
        let mut replay = Replay::new();
        for (sql, transactions) in STEPS {
            db.execute_batch(sql).unwrap();
            let wal = wal_of(&path);
            if !wal.is_empty() {
                let commits = replay.follow(&wal);
                assert_eq!(commits.len(), *transactions, "{sql}");
                apply(&mut ours, &replay, &commits);
            }
            let theirs = recovered(&std::fs::read(&path).unwrap(), &wal);
            assert!(ours == theirs, "page size {page_size}, after {sql}");
        }
    }
}

#[test]
fn the_newest_and_the_older_frames_of_a_page_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.db");
    let db = Connection::open(&path).unwrap();
    db.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES(1)")
        .unwrap();
    db.execute_batch("UPDATE t SET x=2; UPDATE t SET x=3").unwrap();
    let wal = wal_of(&path);
    let mut replay = Replay::new();
    replay.follow(&wal);
    let chain = replay.chain();
    let frames: Vec<_> = (1..=chain.committed_frames())
        .filter(|frame| u32_at(&wal, chain.page_offset(*frame) as usize - FRAME_HEAD_LEN) == 2)
        .rev()
        .collect();
    assert_eq!(frames.len(), 4, "page 2 in four transactions");
    let page2 = Pgno::new(2).unwrap();
    assert_eq!(chain.frames_of(page2).collect::<Vec<_>>(), frames);
    assert_eq!(chain.frame_of(page2), Some(frames[0]));
    assert_eq!(chain.frames_of(Pgno::new(3).unwrap()).next(), None);
}

#[test]
fn a_header_with_any_byte_changed_is_refused() {
    let header = Writer::new(ByteOrder::Big, 1024).header();
    let parsed = WalHeader::parse(&header).unwrap();
    assert_eq!((parsed.order, parsed.page_size.get()), (ByteOrder::Big, 1024));
    assert_eq!(parsed.salts, [7, 8]);
    for at in 0..HEADER_LEN {
        let mut bad = header;
        bad[at] ^= 0x10;
        assert!(WalHeader::parse(&bad).is_err(), "byte {at}");
    }
}

/// Writes a WAL as SQLite does, with the format's description as the only source.
struct Writer {
    order: ByteOrder,
    page: usize,
    sums: [u32; 2],
}

impl Writer {
    fn new(order: ByteOrder, page: usize) -> Self {
        Self { order, page, sums: [0, 0] }
    }

    fn header(&mut self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        let magic = 0x377f_0682 + u32::from(self.order == ByteOrder::Big);
        for (at, field) in [magic, 3_007_000, self.page as u32, 0, 7, 8].into_iter().enumerate() {
            header[4 * at..4 * at + 4].copy_from_slice(&field.to_be_bytes());
        }
        self.sums = naive_checksum(self.order, [0, 0], &header[..24]);
        header[24..28].copy_from_slice(&self.sums[0].to_be_bytes());
        header[28..32].copy_from_slice(&self.sums[1].to_be_bytes());
        header
    }

    fn head(&mut self, pgno: u32, pages: u32, page: &[u8]) -> Vec<u8> {
        let mut head = [pgno.to_be_bytes(), pages.to_be_bytes()].concat();
        self.sums = naive_checksum(self.order, self.sums, &head);
        self.sums = naive_checksum(self.order, self.sums, page);
        for field in [7, 8, self.sums[0], self.sums[1]] {
            head.extend_from_slice(&u32::to_be_bytes(field));
        }
        head
    }

    fn at(&self, frame: usize) -> usize {
        HEADER_LEN + (frame - 1) * (FRAME_HEAD_LEN + self.page)
    }

    fn fill(&self, byte: u8) -> Vec<u8> {
        vec![byte; self.page]
    }
}

/// As the file format's description has it, word by word.
fn naive_checksum(order: ByteOrder, sums: [u32; 2], data: &[u8]) -> [u32; 2] {
    let words: Vec<u32> = data
        .chunks(4)
        .map(|bytes| match order {
            ByteOrder::Big => u32::from_be_bytes(bytes.try_into().unwrap()),
            ByteOrder::Little => u32::from_le_bytes(bytes.try_into().unwrap()),
        })
        .collect();
    let [mut s0, mut s1] = sums;
    for i in (0..words.len()).step_by(2) {
        s0 = s0.wrapping_add(words[i]).wrapping_add(s1);
        s1 = s1.wrapping_add(words[i + 1]).wrapping_add(s0);
    }
    [s0, s1]
}

#[test]
fn heads_written_again_after_a_spill_commit_once_and_cost_no_second_look_at_old_frames() {
    const FRAMES: usize = 400;
    let mut wal = Writer::new(ByteOrder::Little, 512);
    let mut replay = Replay::new();
    replay.write(0, &wal.header());
    let page = |frame: usize| vec![frame as u8; 512];
    // The first frames as they are when spilled, before one of them is written again in place.
    for frame in 1..=FRAMES / 2 {
        let head = wal.head(frame as u32, 0, &page(frame));
        assert!(replay.write(wal.at(frame), &head).is_empty());
        assert!(replay.write(wal.at(frame) + FRAME_HEAD_LEN, &page(frame)).is_empty());
    }
    assert!(replay.write(wal.at(1) + FRAME_HEAD_LEN, &page(77)).is_empty());
    // From then on SQLite leaves salts and checksums of new frames empty.
    for frame in FRAMES / 2 + 1..=FRAMES {
        let pages = if frame == FRAMES { FRAMES as u32 } else { 0 };
        let mut head = wal.head(frame as u32, pages, &page(frame));
        head[8..].fill(0);
        assert!(replay.write(wal.at(frame), &head).is_empty());
        assert!(replay.write(wal.at(frame) + FRAME_HEAD_LEN, &page(frame)).is_empty());
    }
    assert_eq!(replay.chain().committed_frames(), 0);
    wal.header();
    let mut commits = Vec::new();
    for frame in 1..=FRAMES {
        assert!(commits.is_empty(), "before frame {frame} is whole");
        let pages = if frame == FRAMES { FRAMES as u32 } else { 0 };
        let content = if frame == 1 { page(77) } else { page(frame) };
        let head = wal.head(frame as u32, pages, &content);
        commits = replay.write(wal.at(frame), &head);
    }
    assert_eq!(commits.len(), 1);
    assert_eq!(commits[0].frames.len(), FRAMES);
    assert_eq!(replay.chain().committed_frames(), FRAMES as u32);
    let frame_len = (FRAME_HEAD_LEN + 512) as u64;
    assert!(replay.read < 3 * FRAMES as u64 * frame_len, "read {} bytes", replay.read);
}

#[test]
fn a_commit_of_one_frame_costs_one_look_at_it() {
    let mut wal = Writer::new(NATIVE, 4096);
    let mut replay = Replay::new();
    replay.write(0, &wal.header());
    for frame in 1..=50 {
        let page = wal.fill(frame as u8);
        let head = wal.head(2, 2, &page);
        let before = replay.read;
        assert!(replay.write(wal.at(frame), &head).is_empty());
        assert_eq!(replay.write(wal.at(frame) + FRAME_HEAD_LEN, &page).len(), 1);
        assert_eq!(replay.read - before, 4096 + FRAME_HEAD_LEN as u64);
    }
}

#[test]
fn both_byte_orders_are_understood() {
    for order in [ByteOrder::Big, ByteOrder::Little] {
        let mut wal = Writer::new(order, 512);
        let mut replay = Replay::new();
        replay.write(0, &wal.header());
        let page = wal.fill(0xa5);
        let frame = [wal.head(1, 1, &page), page].concat();
        assert_eq!(replay.write(wal.at(1), &frame).len(), 1);
    }
}

#[test]
fn a_frame_is_not_committed_before_its_last_byte_nor_with_a_wrong_one() {
    let mut wal = Writer::new(NATIVE, 512);
    let header = wal.header();
    let page: Vec<u8> = (0..512).map(|i| i as u8 | 1).collect();
    let frame = [wal.head(1, 1, &page), page].concat();
    let mut replay = Replay::new();
    replay.write(0, &header);
    for at in 0..frame.len() {
        let commits = replay.write(wal.at(1) + at, &frame[at..=at]);
        assert_eq!(commits.len(), usize::from(at == frame.len() - 1), "byte {at}");
    }
    for at in 0..frame.len() {
        let mut replay = Replay::new();
        replay.write(0, &header);
        let mut bad = frame.clone();
        bad[at] ^= 1;
        assert!(replay.write(wal.at(1), &bad).is_empty(), "byte {at}");
        assert_eq!(replay.write(wal.at(1), &frame).len(), 1, "repaired byte {at}");
    }
}

#[test]
fn frames_of_a_rolled_back_transaction_do_not_leak_into_the_next() {
    let mut wal = Writer::new(NATIVE, 512);
    let mut replay = Replay::new();
    replay.write(0, &wal.header());
    let start = wal.sums;
    for frame in 1..=5 {
        let page = wal.fill(frame as u8);
        let bytes = [wal.head(frame, 0, &page), page].concat();
        assert!(replay.write(wal.at(frame as usize), &bytes).is_empty());
    }
    wal.sums = start;
    let page = wal.fill(9);
    let bytes = [wal.head(3, 5, &page), page].concat();
    let commits = replay.write(wal.at(1), &bytes);
    let expected = (Pgno::new(3).unwrap(), (HEADER_LEN + FRAME_HEAD_LEN) as u64);
    assert_eq!(commits, [Commit { frames: vec![expected], pages: 5 }]);
    assert!(replay.chain().overlaps_committed(wal.at(2) as u64 - 1, 1));
    assert!(replay.chain().overlaps_committed(0, 32));
    assert!(!replay.chain().overlaps_committed(wal.at(2) as u64, 4096));
    assert_eq!(replay.chain().frame_of(Pgno::new(5).unwrap()), None);
}

#[test]
fn only_the_last_frame_of_a_page_within_the_database_is_committed() {
    let mut wal = Writer::new(NATIVE, 512);
    let mut replay = Replay::new();
    replay.write(0, &wal.header());
    let mut commits = Vec::new();
    for (frame, pgno) in [9, 2, 4, 2, 1].into_iter().enumerate() {
        let page = wal.fill(frame as u8);
        let bytes = [wal.head(pgno, if frame == 4 { 8 } else { 0 }, &page), page].concat();
        commits = replay.write(wal.at(frame + 1), &bytes);
    }
    let offsets = [(1, 5), (2, 4), (4, 3)]
        .map(|(pgno, frame)| (Pgno::new(pgno).unwrap(), (wal.at(frame) + FRAME_HEAD_LEN) as u64));
    assert_eq!(commits, [Commit { frames: offsets.to_vec(), pages: 8 }]);
}

#[test]
fn a_commit_that_was_taken_back_comes_again_only_when_it_is_written_again() {
    let mut wal = Writer::new(NATIVE, 512);
    let mut replay = Replay::new();
    replay.write(0, &wal.header());
    let page = wal.fill(1);
    let first = [wal.head(2, 2, &page), page].concat();
    replay.write(wal.at(1), &first);
    let before = wal.sums;
    let page = wal.fill(2);
    let second = [wal.head(2, 2, &page), page].concat();
    assert_eq!(replay.write(wal.at(2), &second).len(), 1);

    replay.chain.as_mut().unwrap().undo_commit();
    let page2 = Pgno::new(2).unwrap();
    assert_eq!(replay.chain().committed_frames(), 1);
    assert_eq!(replay.chain().frames_of(page2).collect::<Vec<_>>(), [1]);
    assert_eq!(replay.advance(), []);
    wal.sums = before;
    let page = wal.fill(3);
    let third = [wal.head(2, 2, &page), page].concat();
    assert_eq!(replay.write(wal.at(2), &third).len(), 1);
    assert_eq!(replay.chain().frames_of(page2).collect::<Vec<_>>(), [2, 1]);
}

#[test]
fn a_failed_read_loses_no_frame() {
    let mut wal = Writer::new(NATIVE, 512);
    let header = WalHeader::parse(&wal.header()).unwrap();
    let page = wal.fill(1);
    let frame = [wal.head(1, 1, &page), page].concat();
    let mut chain = Chain::new(header);
    let len = (HEADER_LEN + frame.len()) as u64;
    chain.written(HEADER_LEN as u64, &frame);
    let failed = chain.advance(len, &mut |_, _| Err(io::Error::other("disk")));
    assert!(failed.is_err());
    let commit = chain.advance(len, &mut |at, buf| {
        buf.copy_from_slice(&frame[at as usize - HEADER_LEN..][..buf.len()]);
        Ok(())
    });
    assert!(commit.unwrap().is_some());
}

/// What SQLite 3.40 writes when a savepoint is rolled back behind a frame that was overwritten:
/// `frames` of a transaction that spills, the page of the frame `overwritten` once more, then a
/// savepoint's rollback to the start, and `after` frames without salts and checksums. Then it
/// writes heads again from the overwritten frame on, if that is one of them.
fn savepoint_behind_overwritten(frames: usize, overwritten: usize, after: usize) -> Vec<Commit> {
    let mut wal = Writer::new(NATIVE, 512);
    let mut replay = Replay::new();
    replay.write(0, &wal.header());
    let page = wal.fill(1);
    let head = wal.head(1, 1, &page);
    replay.write(wal.at(1), &head);
    assert_eq!(replay.write(wal.at(1) + FRAME_HEAD_LEN, &page).len(), 1);
    for frame in 2..=frames {
        let page = wal.fill(frame as u8);
        let head = wal.head(frame as u32, 0, &page);
        assert_eq!(replay.write(wal.at(frame), &head), []);
        assert_eq!(replay.write(wal.at(frame) + FRAME_HEAD_LEN, &page), []);
    }
    let again = wal.fill(99);
    assert_eq!(replay.write(wal.at(overwritten) + FRAME_HEAD_LEN, &again), []);
    let mut commits = Vec::new();
    for frame in 2..2 + after {
        assert_eq!(commits, []);
        let pages = if frame == 1 + after { frames as u32 } else { 0 };
        let mut head = wal.head(frame as u32, pages, &wal.fill(0));
        head[8..].fill(0);
        assert_eq!(replay.write(wal.at(frame), &head), []);
        commits = replay.write(wal.at(frame) + FRAME_HEAD_LEN, &wal.fill(50 + frame as u8));
    }
    if overwritten <= 1 + after {
        assert_eq!(commits, [], "heads are written again first");
        // It goes on from the checksum in the head before, which is empty.
        wal.sums = [0, 0];
        for frame in overwritten..=1 + after {
            assert_eq!(commits, []);
            let pages = if frame == 1 + after { frames as u32 } else { 0 };
            let head = wal.head(frame as u32, pages, &wal.fill(50 + frame as u8));
            commits = replay.write(wal.at(frame), &head);
        }
    } else {
        let sums = &replay.file[wal.at(overwritten - 1) + 16..][..8];
        wal.sums = pair_at(sums, 0);
    }
    assert!(!replay.chain().is_recoverable());
    // And the next transaction goes on from there.
    let page = wal.fill(200);
    let head = wal.head(2, frames as u32, &page);
    let at = wal.at(2 + after);
    assert_eq!(replay.write(at, &head), []);
    assert_eq!(replay.write(at + FRAME_HEAD_LEN, &page).len(), 1);
    commits
}

#[test]
fn a_transaction_whose_first_frames_stay_without_checksum_is_not_lost() {
    let commits = savepoint_behind_overwritten(10, 4, 5);
    let [commit] = &commits[..] else { panic!("{commits:?}") };
    let pages: Vec<u32> = commit.frames.iter().map(|(pgno, _)| pgno.get()).collect();
    assert_eq!((pages, commit.pages), (vec![2, 3, 4, 5, 6], 10));
}

#[test]
fn a_transaction_whose_commit_frame_stays_without_checksum_is_not_lost() {
    for after in [1, 3] {
        let commits = savepoint_behind_overwritten(10, 8, after);
        let [commit] = &commits[..] else { panic!("{commits:?}") };
        assert_eq!((commit.frames.len(), commit.pages), (after, 10));
    }
}
