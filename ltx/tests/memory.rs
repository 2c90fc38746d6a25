//! Memory does not depend on the size of a file, nor on what it claims. Alone in its process,
//! because it looks at the peak of the whole process.
#![cfg(target_os = "linux")]

mod common;

use std::io::{self, Read, Write};

use common::{hex, vectors_dir};
use litefs_ltx::{
    Checksum, Decoder, Encoder, Header, PageSize, Pgno, Txid, page_checksum, record_len, verify,
};
use serde::Deserialize;

/// The largest address space that this process ever had, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

/// Runs `work` and checks that the process did not grow by more than `limit` bytes.
fn within(limit: u64, what: &str, work: impl FnOnce()) {
    let before = peak();
    work();
    let grown = peak() - before;
    assert!(grown <= limit, "{what}: {grown} bytes more");
}

fn header(page_size: u32, commit: u32, min_txid: u64) -> Header {
    let snapshot = min_txid == 1;
    Header {
        compressed: false,
        page_size: PageSize::new(page_size).unwrap(),
        commit,
        min_txid: Txid::new(min_txid),
        max_txid: Txid::new(min_txid),
        timestamp_ms: 1_700_000_000_000,
        pre_apply: if snapshot { Checksum::NONE } else { Checksum::EMPTY },
        wal_offset: 0,
        wal_size: 0,
        wal_salt1: 0,
        wal_salt2: 0,
        node_id: 0,
    }
}

#[test]
fn memory_is_bounded() {
    let _ = verify(&b"LTX1"[..]); // What the process needs anyway.
    claims_cost_nothing();
    large_snapshots_stream();
}

/// Headers that promise the largest database, with hardly anything behind them.
fn claims_cost_nothing() {
    for min_txid in [1, 2] {
        let claim = header(65536, u32::MAX, min_txid);
        within(1 << 20, "raw", || assert!(verify(&claim.encode()[..]).is_err()));
        let claim = Header { compressed: true, ..claim };
        // Linked blocks of 4 MiB, 2^64 - 1 bytes of content, and then a block of 2 GiB.
        let frame = hex("04224d18 48 70 ffffffffffffffff c2 ffffff7f");
        let bytes = [&claim.encode()[..], &frame].concat();
        within(16 << 20, "lz4", || {
            let error = verify(&bytes[..]).unwrap_err().to_string();
            assert!(error.contains("BlockTooBig"), "{error}");
        });
    }
}

#[derive(Deserialize)]
struct Manifest {
    virtual_lock_page_snapshots: Recipes,
}

#[derive(Deserialize)]
struct Recipes {
    vectors: Vec<Recipe>,
}

/// A snapshot of one page more than the lock page; page p is full of the byte 7p + 3.
#[derive(Deserialize)]
struct Recipe {
    page_size: u32,
    commit: u32,
    lock_pgno: u32,
    db_checksum: String,
    v1_raw: Output,
    v1_lz4: Output,
}

#[derive(Deserialize)]
struct Output {
    file_checksum: String,
    size: Option<u64>,
}

fn large_snapshots_stream() {
    let Some(dir) = vectors_dir() else { return };
    let manifest = std::fs::read(dir.join("manifest.json")).unwrap();
    let manifest: Manifest = serde_json::from_slice(&manifest).unwrap();
    let recipes = manifest.virtual_lock_page_snapshots.vectors;
    assert_eq!(recipes.len(), 2);
    for recipe in &recipes {
        let size = recipe.page_size;
        within(2 << 20, "raw snapshot", || check_raw(recipe));
        within(32 << 20, "compressed snapshot", || check_compressed(recipe));
        assert_eq!(PageSize::new(size).unwrap().lock_page().get(), recipe.lock_pgno);
    }
}

fn fill(pgno: u32, page: &mut [u8]) {
    page.fill((7 * pgno + 3) as u8);
}

/// Encodes the recipe; returns what the writer made of it and the file checksum.
fn encode<W: Write>(recipe: &Recipe, compressed: bool, out: W) -> (W, Checksum) {
    let header = Header { compressed, ..header(recipe.page_size, recipe.commit, 1) };
    let mut encoder = Encoder::new(out, header).unwrap();
    let mut page = vec![0; header.page_size.len()];
    for n in (1..=recipe.commit).filter(|&n| n != recipe.lock_pgno) {
        fill(n, &mut page);
        encoder.encode_page(Pgno::new(n).unwrap(), &page).unwrap();
    }
    let (out, trailer) = encoder.finish(recipe.db_checksum.parse().unwrap()).unwrap();
    (out, trailer.file)
}

#[derive(Default)]
struct Count(u64);

impl Write for Count {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0 += buf.len() as u64;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The uncompressed file of a recipe, made while it is read.
struct Generated<'a> {
    recipe: &'a Recipe,
    next: u32,
    buffer: Vec<u8>,
    start: usize,
}

impl Generated<'_> {
    fn refill(&mut self) {
        let recipe = self.recipe;
        self.buffer.clear();
        self.start = 0;
        if self.next == recipe.lock_pgno {
            self.next += 1;
        }
        if self.next <= recipe.commit {
            self.buffer.extend(self.next.to_be_bytes());
            self.buffer.resize(4 + recipe.page_size as usize, 0);
            fill(self.next, &mut self.buffer[4..]);
        } else if self.next == recipe.commit + 1 {
            let sums = [&recipe.db_checksum, &recipe.v1_raw.file_checksum];
            self.buffer.extend([0; 4]);
            for sum in sums {
                self.buffer.extend(sum.parse::<Checksum>().unwrap().get().to_be_bytes());
            }
        }
        self.next += 1;
    }
}

impl Read for Generated<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.start == self.buffer.len() {
            self.refill();
        }
        let n = (&self.buffer[self.start..]).read(buf)?;
        self.start += n;
        Ok(n)
    }
}

fn check_raw(recipe: &Recipe) {
    let (count, file) = encode(recipe, false, Count::default());
    assert_eq!(file.to_string(), recipe.v1_raw.file_checksum);
    assert_eq!(Some(count.0), recipe.v1_raw.size);
    let page_size = PageSize::new(recipe.page_size).unwrap();
    assert_eq!(count.0, record_len(page_size, u64::from(recipe.commit) - 1));

    let header = header(recipe.page_size, recipe.commit, 1).encode().to_vec();
    let file = Generated { recipe, next: 1, buffer: header, start: 0 };
    let mut decoder = Decoder::new(file).unwrap();
    let mut page = vec![0; page_size.len()];
    let mut sum = Checksum::EMPTY;
    while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
        sum = sum.toggle(page_checksum(pgno, &page));
    }
    assert_eq!(sum.to_string(), recipe.db_checksum);
    assert_eq!(decoder.finish().unwrap().post_apply, sum);
}

fn check_compressed(recipe: &Recipe) {
    let (bytes, file) = encode(recipe, true, Vec::new());
    assert_eq!(file.to_string(), recipe.v1_lz4.file_checksum);
    let summary = verify(&bytes[..]).unwrap();
    assert_eq!(summary.trailer.file, file);
    assert_eq!(summary.pages, u64::from(recipe.commit) - 1);
}
