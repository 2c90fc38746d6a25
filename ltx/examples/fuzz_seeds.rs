//! Writes small LTX files for the fuzz targets to begin with: `fuzz_seeds <corpus directory>`.

use std::path::Path;
use std::{env, fs, io};

use litefs_ltx::{Checksum, Encoder, Header, PageSize, Pgno, Txid, page_checksum};

fn main() -> io::Result<()> {
    let dir = env::args().nth(1).expect("usage: fuzz_seeds <corpus directory>");
    for compressed in [false, true] {
        let files = life(compressed).map_err(io::Error::other)?;
        let kind = if compressed { "lz4" } else { "raw" };
        for (index, file) in files.iter().enumerate() {
            write(&dir, "decode", &format!("{kind}-{index}"), file)?;
        }
        for (index, files) in files.windows(3).enumerate() {
            let mut seed = vec![u8::from(compressed)];
            for file in files {
                seed.extend((file.len() as u32).to_be_bytes());
                seed.extend(file);
            }
            write(&dir, "compact", &format!("{kind}-{index}"), &seed)?;
        }
    }
    Ok(())
}

fn write(dir: &str, target: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let dir = Path::new(dir).join(target);
    fs::create_dir_all(&dir)?;
    fs::write(dir.join(name), bytes)
}

/// A database that is created, changed, grown, shrunk, grown again, deleted and created again.
fn life(compressed: bool) -> litefs_ltx::Result<Vec<Vec<u8>>> {
    let steps: [(u32, &[u32]); 7] =
        [(2, &[1, 2]), (2, &[2]), (4, &[1, 3, 4]), (1, &[1]), (3, &[2, 3]), (0, &[]), (1, &[1])];
    let mut pages: Vec<Vec<u8>> = Vec::new();
    let mut pre_apply = Checksum::NONE;
    let mut files = Vec::new();
    for (txid, (commit, changed)) in (1..).zip(steps) {
        pages.resize(commit as usize, Vec::new());
        for &n in changed {
            pages[n as usize - 1] = vec![txid as u8; 512];
        }
        let file = encode(compressed, txid, pre_apply, changed, &pages)?;
        pre_apply = file.1;
        files.push(file.0);
    }
    Ok(files)
}

fn encode(
    compressed: bool,
    txid: u64,
    pre_apply: Checksum,
    changed: &[u32],
    pages: &[Vec<u8>],
) -> litefs_ltx::Result<(Vec<u8>, Checksum)> {
    let header = Header {
        compressed,
        page_size: PageSize::new(512).expect("a page size"),
        commit: pages.len() as u32,
        min_txid: Txid::new(txid),
        max_txid: Txid::new(txid),
        timestamp_ms: 0,
        pre_apply,
        wal_offset: 0,
        wal_size: 0,
        wal_salt1: 0,
        wal_salt2: 0,
        node_id: 0,
    };
    let numbered = (1..).filter_map(Pgno::new).zip(pages);
    let post = numbered
        .clone()
        .fold(Checksum::EMPTY, |sum, (pgno, page)| sum.toggle(page_checksum(pgno, page)));
    let mut encoder = Encoder::new(Vec::new(), header)?;
    for (pgno, page) in numbered.filter(|(pgno, _)| changed.contains(&pgno.get())) {
        encoder.encode_page(pgno, page)?;
    }
    Ok((encoder.finish(post)?.0, post))
}
