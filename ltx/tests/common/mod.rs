//! Files that no code of this crate made: fixtures put together by hand, and the golden vectors
//! (made by the reference implementation), which are not part of this repository.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use litefs_ltx::{Checksum, Crc64, Decoder, Header, Pgno, Result, Trailer};

/// The directory of the golden vectors, from the environment variable `LTX_VECTORS`.
///
/// Without it the tests are content with the fixtures, except in CI.
pub fn vectors_dir() -> Option<PathBuf> {
    let dir = std::env::var_os("LTX_VECTORS").map(PathBuf::from);
    match &dir {
        Some(dir) => assert!(
            dir.join("manifest.json").is_file(),
            "LTX_VECTORS={} has no manifest.json: set it to the directory of the LTX vectors",
            dir.display()
        ),
        None => {
            let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
            assert!(!ci, "CI must set LTX_VECTORS to the directory of the golden LTX vectors");
            eprintln!("LTX_VECTORS is not set: golden LTX vectors not found, only fixtures tested");
        }
    }
    dir
}

/// A decoded file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub header: Header,
    pub pages: Vec<(Pgno, Vec<u8>)>,
    pub sums: Vec<(u32, Checksum)>,
    pub trailer: Trailer,
}

/// Decodes a file page by page.
pub fn decode(bytes: &[u8]) -> Result<File> {
    let mut decoder = Decoder::new(bytes)?;
    let header = *decoder.header();
    let mut page = vec![0; header.page_size.len()];
    let (mut pages, mut sums) = (Vec::new(), Vec::new());
    while let Some(pgno) = decoder.next_page(&mut page)? {
        pages.push((pgno, page.clone()));
        sums.push((pgno.get(), decoder.last_page_checksum()));
    }
    Ok(File { header, pages, sums, trailer: decoder.finish()? })
}

/// A database in memory, to apply files to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Database {
    pub pages: BTreeMap<u32, Vec<u8>>,
}

impl Database {
    /// Applies a file: writes its pages, then cuts the database to its size.
    pub fn apply(&mut self, file: &File) {
        self.pages.extend(file.pages.iter().map(|(pgno, page)| (pgno.get(), page.clone())));
        self.pages.retain(|&pgno, _| pgno <= file.header.commit);
    }

    /// The checksum of all pages, computed anew and without [`litefs_ltx::page_checksum`].
    pub fn checksum(&self) -> Checksum {
        self.pages.iter().fold(Checksum::EMPTY, |sum, (pgno, page)| {
            let mut crc = Crc64::new();
            crc.update(&[&pgno.to_be_bytes()[..], page].concat());
            sum.toggle(crc.checksum())
        })
    }
}

/// Turns hex digits, with spaces and line breaks, into bytes.
pub fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).unwrap();
        u8::from_str_radix(pair, 16).unwrap()
    };
    digits.chunks(2).map(byte).collect()
}
