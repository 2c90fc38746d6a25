//! Any bytes as up to four LTX files, each after its length as a big-endian u32: no panic, and if
//! they can be compacted, the result verifies.
#![no_main]

use libfuzzer_sys::fuzz_target;
use litefs_ltx::{CompactOptions, Crc64, compact, verify};

const MOST_FILES: usize = 4;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else { return };
    let files = split(data);
    let repaired: Vec<Vec<u8>> = files.iter().map(|file| repair(file)).collect();
    check(&files, choice & 1 != 0);
    check(&repaired.iter().map(|file| &file[..]).collect::<Vec<_>>(), choice & 1 != 0);
});

fn split(mut data: &[u8]) -> Vec<&[u8]> {
    let mut files = Vec::new();
    while let Some((len, rest)) = data.split_first_chunk::<4>() {
        if files.len() == MOST_FILES {
            break;
        }
        let (file, rest) = rest.split_at(rest.len().min(u32::from_be_bytes(*len) as usize));
        files.push(file);
        data = rest;
    }
    files
}

/// Puts the file checksum right, as long as the file is not compressed.
fn repair(file: &[u8]) -> Vec<u8> {
    if file.len() < 116 || file[7] & 1 != 0 {
        return file.to_vec();
    }
    let body = &file[..file.len() - 8];
    [body, &Crc64::of(body).get().to_be_bytes()].concat()
}

fn check(files: &[&[u8]], compressed: bool) {
    let mut out = Vec::new();
    match compact(files.to_vec(), &mut out, CompactOptions { compressed }) {
        Ok(summary) => assert_eq!(verify(&out[..]).expect("compacted"), summary),
        Err(_) => assert!(verify(&out[..]).is_err(), "a failed compaction left a valid file"),
    }
}
