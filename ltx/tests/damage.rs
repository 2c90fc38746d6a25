//! Every single-bit flip and every truncation of a file is noticed.

mod common;

use common::{decode, fixtures, vectors_dir};
use litefs_ltx::verify;

/// The golden vectors with pages, 10 raw and 10 compressed, the smallest of each; without them
/// the fixtures.
fn samples() -> Vec<(String, Vec<u8>)> {
    let Some(dir) = vectors_dir() else { return fixtures() };
    let mut files = Vec::new();
    let folders = ["512/raw", "512/raw/compact", "512/lz4", "4096/lz4", "pagesizes", "special"];
    for folder in folders {
        for entry in std::fs::read_dir(dir.join("v1").join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                files.push((path.display().to_string(), std::fs::read(path).unwrap()));
            }
        }
    }
    files.retain(|(_, bytes)| bytes.len() > 120);
    files.sort_by_key(|(name, bytes)| (bytes.len(), name.clone()));
    let (mut samples, mut compressed): (Vec<_>, Vec<_>) =
        files.into_iter().partition(|(_, bytes)| bytes[7] == 0);
    samples.truncate(10);
    compressed.truncate(10);
    samples.append(&mut compressed);
    assert_eq!(samples.len(), 20);
    samples
}

#[test]
fn every_truncation_is_refused() {
    for (name, bytes) in samples() {
        verify(&bytes[..]).unwrap_or_else(|e| panic!("{name}: {e}"));
        for len in 0..bytes.len() {
            assert!(verify(&bytes[..len]).is_err(), "{name} cut to {len} bytes");
        }
    }
}

/// LZ4 has many encodings of the same bytes, and a flipped bit may make one of another (a match at
/// distance 2 instead of 1 in a run of equal bytes). Nothing is wrong with such a file. So within
/// LZ4 blocks, a flip must be refused or leave everything that the file says as it was.
#[test]
fn every_bit_flip_is_refused() {
    for (name, mut bytes) in samples() {
        let original = decode(&bytes).unwrap();
        let end = bytes.len() - 24; // End mark, content checksum and trailer.
        let blocks = if original.header.compressed { 111..end } else { 0..0 };
        for at in 0..bytes.len() {
            for bit in 0..8 {
                bytes[at] ^= 1 << bit;
                match decode(&bytes) {
                    Err(_) => {}
                    Ok(file) => assert!(
                        blocks.contains(&at) && file == original,
                        "{name}: bit {bit} of byte {at}"
                    ),
                }
                bytes[at] ^= 1 << bit;
            }
        }
    }
}
