//! What compaction must refuse, and that it otherwise does what its inputs do one after another.

mod common;

use common::{Database, File, decode, vectors_dir};
use litefs_ltx::{
    Checksum, CompactError, CompactOptions, Encoder, Error, Header, PageSize, Pgno, Result, Txid,
    compact, verify,
};
use proptest::prelude::*;
use serde::Deserialize;

const RAW: CompactOptions = CompactOptions { compressed: false };
const LZ4: CompactOptions = CompactOptions { compressed: true };

fn compact_all<T: AsRef<[u8]>>(inputs: &[T], options: CompactOptions) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let summary = compact(inputs.iter().map(AsRef::as_ref).collect(), &mut out, options)?;
    assert_eq!(verify(&out[..]).unwrap(), summary);
    Ok(out)
}

/// A database and the files that made it what it is.
struct History {
    database: Database,
    page_size: PageSize,
    next: Txid,
    checksum: Checksum,
}

impl History {
    fn new(page_size: u32) -> Self {
        Self {
            database: Database::default(),
            page_size: PageSize::new(page_size).unwrap(),
            next: Txid::new(1),
            checksum: Checksum::NONE,
        }
    }

    /// Commits pages, each filled with a byte, and a new size, and returns the file.
    fn commit(&mut self, commit: u32, pages: &[(u32, u8)], compressed: bool) -> Vec<u8> {
        let header = Header {
            compressed,
            page_size: self.page_size,
            commit,
            min_txid: self.next,
            max_txid: self.next,
            timestamp_ms: 1000 * self.next.get() as i64,
            pre_apply: self.checksum,
            wal_offset: 32,
            wal_size: 4,
            wal_salt1: 5,
            wal_salt2: 6,
            node_id: 7,
        };
        let page = |&(pgno, byte): &(u32, u8)| (pgno, vec![byte; self.page_size.len()]);
        self.database.pages.extend(pages.iter().map(page));
        self.database.pages.retain(|&pgno, _| pgno <= commit);
        self.checksum = self.database.checksum();
        self.next = self.next.next();
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        for (pgno, page) in pages.iter().map(page) {
            encoder.encode_page(Pgno::new(pgno).unwrap(), &page).unwrap();
        }
        encoder.finish(self.checksum).unwrap().0
    }
}

fn compact_error<T: AsRef<[u8]>>(inputs: &[T]) -> CompactError {
    match compact_all(inputs, RAW).unwrap_err() {
        Error::Compact(error) => error,
        error => panic!("{error}"),
    }
}

#[test]
fn nothing_to_compact_is_an_error() {
    assert_eq!(compact_error::<Vec<u8>>(&[]), CompactError::NoInput);
}

/// The reference lets page 3 of before the cut through, silently.
#[test]
fn stale_page_does_not_come_back_after_shrink_and_growth() {
    let mut history = History::new(512);
    history.commit(4, &[(1, 1), (2, 1), (3, 1), (4, 1)], false);
    let update = history.commit(4, &[(1, 2), (3, 2), (4, 2)], false);
    let shrink = history.commit(2, &[(1, 3)], false);
    let grow = history.commit(4, &[(1, 4), (4, 4)], false);
    assert_eq!(compact_error(&[update, shrink, grow]), CompactError::MissingPage { pgno: 3 });
}

#[test]
fn page_missing_where_the_database_grew_is_an_error() {
    for (present, missing) in [(6, 4), (4, 5)] {
        let mut history = History::new(512);
        let snapshot = history.commit(3, &[(1, 1), (2, 1), (3, 1)], false);
        let grow = history.commit(6, &[(present, 2)], false);
        let expected = CompactError::MissingPage { pgno: missing };
        assert_eq!(compact_error(&[&snapshot, &grow]), expected);
        let update = history.commit(6, &[(1, 3)], false);
        assert_eq!(compact_error(&[&snapshot, &grow, &update]), expected);
    }
}

#[test]
fn database_may_grow_over_the_lock_page() {
    // With pages of 64 KiB it is page 16385.
    let mut history = History::new(65536);
    history.commit(1, &[(1, 1)], false);
    let header = |commit: u32, txid: u64, pre: u64| Header {
        compressed: false,
        page_size: PageSize::new(65536).unwrap(),
        commit,
        min_txid: Txid::new(txid),
        max_txid: Txid::new(txid),
        timestamp_ms: 0,
        pre_apply: Checksum::from_raw(1 << 63 | pre),
        wal_offset: 0,
        wal_size: 0,
        wal_salt1: 0,
        wal_salt2: 0,
        node_id: 0,
    };
    let file = |header: Header, pages: &[u32]| {
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        for &pgno in pages {
            encoder.encode_page(Pgno::new(pgno).unwrap(), &[1; 65536]).unwrap();
        }
        let post = Checksum::from_raw(header.pre_apply.get() + 1);
        encoder.finish(post).unwrap().0
    };
    let before = file(header(16384, 2, 1), &[]);
    let grown = file(header(16386, 3, 2), &[16386]);
    let onto = file(header(16385, 3, 2), &[]);
    let short = file(header(16387, 3, 2), &[16386]);
    let out = decode(&compact_all(&[&before, &grown], RAW).unwrap()).unwrap();
    assert_eq!(out.sums.iter().map(|s| s.0).collect::<Vec<_>>(), [16386]);
    compact_all(&[&before, &onto], RAW).unwrap();
    assert_eq!(compact_error(&[&before, &short]), CompactError::MissingPage { pgno: 16387 });
}

#[test]
fn inputs_must_follow_each_other() {
    let mut history = History::new(512);
    let mut fork = History::new(512);
    let first = history.commit(1, &[(1, 1)], false);
    let second = history.commit(1, &[(1, 2)], false);
    let third = history.commit(1, &[(1, 3)], false);
    fork.commit(1, &[(1, 9)], false);
    let forked = fork.commit(1, &[(1, 3)], false);
    let gap = |prev_max, min| CompactError::NotContiguous {
        index: 1,
        prev_max: Txid::new(prev_max),
        min: Txid::new(min),
    };
    assert_eq!(compact_error(&[&first, &third]), gap(1, 3));
    assert_eq!(compact_error(&[&second, &first]), gap(2, 1));
    assert_eq!(compact_error(&[&second, &second]), gap(2, 2));
    let both = compact_all(&[&first, &second], RAW).unwrap();
    assert_eq!(compact_error(&[&both, &second]), gap(2, 2));
    let error = compact_error(&[&first, &forked, &third]);
    assert!(matches!(error, CompactError::BrokenChain { index: 1, .. }), "{error}");

    let mut other = History::new(1024);
    other.commit(1, &[(1, 1)], false);
    let wide = other.commit(1, &[(1, 2)], false);
    let error = compact_error(&[&first, &wide]);
    assert!(matches!(error, CompactError::PageSize { index: 1, .. }), "{error}");
}

#[test]
fn bad_input_is_named_and_leaves_no_readable_output() {
    let mut history = History::new(512);
    let first = history.commit(2, &[(1, 1), (2, 1)], false);
    let second = history.commit(2, &[(1, 2)], true);
    let damaged = |file: &[u8], at: usize| {
        let mut file = file.to_vec();
        file[at] ^= 1;
        file
    };
    let last = second.len() - 1;
    let cases = [
        (0, vec![damaged(&first, 0), second.clone()]),
        (1, vec![first.clone(), damaged(&second, 3)]),
        (0, vec![damaged(&first, 300), second.clone()]),
        (1, vec![first.clone(), damaged(&second, last)]),
        (1, vec![first.clone(), second[..last].to_vec()]),
        (1, vec![first.clone(), [&second[..], b"x"].concat()]),
    ];
    for (case, (bad, inputs)) in cases.into_iter().enumerate() {
        let mut out = Vec::new();
        let error = compact(inputs.iter().map(|i| &i[..]).collect(), &mut out, RAW).unwrap_err();
        assert!(
            matches!(error, Error::Input { index, .. } if index == bad),
            "case {case}: {error}"
        );
        assert!(verify(&out[..]).is_err(), "case {case}");
    }
}

/// The last input's post-apply checksum is not that of the pages: its own file is sound.
#[test]
fn snapshot_with_a_wrong_promise_is_refused() {
    let mut history = History::new(512);
    let first = history.commit(1, &[(1, 1)], false);
    let header = decode(&history.commit(1, &[(1, 2)], false)).unwrap().header;
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    encoder.encode_page(Pgno::FIRST, &[3; 512]).unwrap();
    let (liar, _) = encoder.finish(history.checksum).unwrap();
    let error = compact_all(&[first, liar], RAW).unwrap_err();
    assert!(matches!(error, Error::ChecksumMismatch { what: "database", .. }), "{error}");
}

#[test]
fn life_that_ends_in_deletion_becomes_an_empty_snapshot() {
    let mut history = History::new(512);
    let first = history.commit(2, &[(1, 1), (2, 1)], false);
    let deletion = history.commit(0, &[], false);
    let out = decode(&compact_all(&[&first, &deletion], RAW).unwrap()).unwrap();
    assert!(out.header.is_snapshot() && out.pages.is_empty());
    assert_eq!((out.header.commit, out.trailer.post_apply), (0, Checksum::EMPTY));
    let again = history.commit(1, &[(1, 5)], false);
    let out = decode(&compact_all(&[&deletion, &again], LZ4).unwrap()).unwrap();
    assert_eq!(out.pages, [(Pgno::FIRST, vec![5; 512])]);
}

#[derive(Deserialize)]
struct Manifest {
    compactions: Vec<Compaction>,
}

#[derive(Deserialize)]
struct Compaction {
    inputs: Vec<String>,
    header_flags: u32,
    output: String,
    error: String,
}

#[test]
fn compaction_gives_what_the_reference_gives() {
    let Some(dir) = vectors_dir() else { return };
    let read = |file: &str| std::fs::read(dir.join(file)).unwrap();
    let manifest: Manifest = serde_json::from_slice(&read("manifest.json")).unwrap();
    let mut compared = 0;
    for case in manifest.compactions.iter().filter(|case| case.output.starts_with("v1/")) {
        assert_eq!(case.error, "", "{}", case.output);
        let inputs: Vec<_> = case.inputs.iter().map(|file| read(file)).collect();
        let compressed = case.header_flags & 1 != 0;
        let ours = compact_all(&inputs, CompactOptions { compressed }).unwrap();
        let theirs = read(&case.output);
        if compressed {
            assert_eq!(decode(&ours).unwrap(), decode(&theirs).unwrap(), "{}", case.output);
        } else {
            assert!(ours == theirs, "{}", case.output);
        }
        compared += 1;
    }
    assert_eq!(compared, 38, "the vectors are not the known set");
}

/// One transaction: the new size, and for each page up to it whether and with what it is written.
type Step = (u32, Vec<Option<u8>>, bool);

fn step() -> impl Strategy<Value = Step> {
    // Deletion is likely enough to be met, and to be followed by a new life.
    let commit = prop_oneof![1 => Just(0u32), 7 => 1..12u32];
    (commit, prop::collection::vec(prop::option::of(any::<u8>()), 12), any::<bool>())
}

/// Commits the steps; returns each file, and the database before the first and after each.
fn play(steps: &[Step]) -> (Vec<Vec<u8>>, Vec<Database>) {
    let mut history = History::new(512);
    let (mut files, mut states) = (Vec::new(), vec![Database::default()]);
    for (commit, writes, compressed) in steps {
        let size = history.database.pages.len() as u32;
        let write = |n: u32| match writes[n as usize] {
            Some(byte) => Some((n, byte)),
            None if n > size => Some((n, 0)),
            None => None,
        };
        let pages: Vec<_> = (1..=*commit).filter_map(write).collect();
        files.push(history.commit(*commit, &pages, *compressed));
        states.push(history.database.clone());
    }
    (files, states)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn applying_the_result_is_applying_the_inputs(
        steps in prop::collection::vec(step(), 1..7),
        start in any::<prop::sample::Index>(),
        compressed in any::<bool>(),
    ) {
        let (files, states) = play(&steps);
        let start = start.index(files.len());
        let inputs = &files[start..];
        let out = compact_all(inputs, CompactOptions { compressed }).unwrap();
        let out: File = decode(&out).unwrap();

        let mut database = states[start].clone();
        database.apply(&out);
        let expected = states.last().unwrap();
        prop_assert_eq!(&database, expected);
        prop_assert_eq!(out.trailer.post_apply, expected.checksum());

        let (first, last) = (decode(&inputs[0]).unwrap(), decode(&inputs[inputs.len() - 1]).unwrap());
        prop_assert_eq!(out.header, Header {
            compressed,
            min_txid: first.header.min_txid,
            pre_apply: first.header.pre_apply,
            wal_offset: 0, wal_size: 0, wal_salt1: 0, wal_salt2: 0, node_id: 0,
            ..last.header
        });
    }

    #[test]
    fn compacting_in_two_rounds_gives_the_same_file(
        steps in prop::collection::vec(step(), 3..7),
        split in any::<prop::sample::Index>(),
    ) {
        let (files, _) = play(&steps);
        let split = 1 + split.index(files.len() - 1);
        let head = compact_all(&files[..split], LZ4).unwrap();
        let rest: Vec<_> = std::iter::once(&head).chain(&files[split..]).collect();
        let (once, twice) = (compact_all(&files, RAW).unwrap(), compact_all(&rest, RAW).unwrap());
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn decoding_gives_what_was_encoded(
        steps in prop::collection::vec(step(), 1..4),
        size in prop::sample::select(vec![512u32, 1024, 4096, 65536]),
        random in any::<bool>(),
        seed in any::<u64>(),
    ) {
        // Random pages do not compress, and with 64 KiB they span the LZ4 blocks.
        let mut rng = seed | 1;
        let mut history = History::new(size);
        for (commit, writes, compressed) in steps {
            let size_before = history.database.pages.len() as u32;
            let pages: Vec<_> = (1..=commit.min(5))
                .filter(|&n| n > size_before || writes[n as usize].is_some())
                .map(|n| (n, n as u8)).collect();
            let sample = decode(&history.commit(commit.min(5), &pages, compressed)).unwrap();
            if sample.header.is_snapshot() { continue; }
            let mut encoder = Encoder::new(Vec::new(), sample.header).unwrap();
            let mut written = Vec::new();
            for (pgno, mut page) in sample.pages {
                if random {
                    for byte in &mut page {
                        rng ^= rng << 13; rng ^= rng >> 7; rng ^= rng << 17;
                        *byte = rng as u8;
                    }
                }
                encoder.encode_page(pgno, &page).unwrap();
                written.push((pgno, page));
            }
            let (bytes, trailer) = encoder.finish(sample.trailer.post_apply).unwrap();
            let file = decode(&bytes).unwrap();
            prop_assert_eq!((file.header, file.trailer), (sample.header, trailer));
            prop_assert_eq!(file.pages, written);
        }
    }
}
