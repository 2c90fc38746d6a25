//! Files that no code of this crate made: fixtures put together by hand, and the golden vectors
//! (made by the reference implementation), which are not part of this repository.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use litefs_ltx::{Checksum, Decoder, Header, Pgno, Result, Trailer};

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

    /// The checksum of all pages, computed without this crate.
    pub fn checksum(&self) -> Checksum {
        let sum =
            |(pgno, page): (&u32, &Vec<u8>)| oracle(&[&pgno.to_be_bytes()[..], page].concat());
        let xor = self.pages.iter().map(sum).fold(0, |xor, sum| xor ^ sum);
        Checksum::from_raw(xor | 1 << 63)
    }
}

/// The checksum of bytes by another implementation.
pub fn oracle(bytes: &[u8]) -> u64 {
    crc::Crc::<u64, crc::Table<16>>::new(&crc::CRC_64_GO_ISO).checksum(bytes) | 1 << 63
}

/// Puts an uncompressed file together without this crate's encoder.
pub fn assemble(header: &str, pages: &[(u32, Vec<u8>)], post_apply: u64) -> Vec<u8> {
    let mut bytes = hex(header);
    assert_eq!(bytes.len(), 100);
    for (pgno, page) in pages {
        bytes.extend(pgno.to_be_bytes());
        bytes.extend(page);
    }
    bytes.extend([0; 4]);
    bytes.extend(post_apply.to_be_bytes());
    bytes.extend(oracle(&bytes).to_be_bytes());
    bytes
}

/// Three pages of 512 bytes, filled with 1, 2 and 3.
pub fn tiny_pages() -> Vec<(u32, Vec<u8>)> {
    (1..=3).map(|n| (n, vec![n as u8; 512])).collect()
}

/// A snapshot of [`tiny_pages`], with the sums that the reference implementation computes.
pub const TINY_HEADER: &str = "4c545831 00000000 00000200 00000003
    0000000000000001 0000000000000001 0000018bcfe56800 0000000000000000
    0000000000000000 0000000000000000 00000000 00000000 0000000000000000
    0000000000000000000000000000000000000000";
pub const TINY_POST_APPLY: u64 = 0xefff_ffff_ecd9_9000;

/// The same compressed: the checksums of LZ4 frame and file are the reference implementation's,
/// the LZ4 block was written by hand.
pub const TINY_LZ4: &str = "4c545831 00000001 00000200 00000003
    0000000000000001 0000000000000001 0000018bcfe56800 0000000000000000
    0000000000000000 0000000000000000 00000000 00000000 0000000000000000
    0000000000000000000000000000000000000000
    04224d18 64 40 a7
    21000000
        4f 00000001 0100 ffee
        4f 00000002 0100 ffee
        4f 00000003 0100 ffed
        50 0300000000
    00000000 8b44acfe
    efffffffecd99000 ba3625deeb56f484";

/// The header of transactions 5 to 6, with all fields set: commit 9, pre-apply 8000000000000005.
pub const INCREMENT_HEADER: &str = "4c545831 00000000 00000200 00000009
    0000000000000005 0000000000000006 ffffffffffffffff 8000000000000005
    0000000000000020 0000000000001038 01020304 05060708 1112131415161718
    0000000000000000000000000000000000000000";

/// The header of transaction 7, which deletes the database.
pub const DELETION_HEADER: &str = "4c545831 00000000 00001000 00000000
    0000000000000007 0000000000000007 0000018bcfe56800 8000000000000123
    0000000000000000 0000000000000000 00000000 00000000 0000000000000000
    0000000000000000000000000000000000000000";

/// All valid files put together by hand.
pub fn fixtures() -> Vec<(String, Vec<u8>)> {
    let increment = [(2, vec![7; 512]), (9, (0..512).map(|i| (i * 7) as u8).collect())];
    let fixtures = [
        ("snapshot", assemble(TINY_HEADER, &tiny_pages(), TINY_POST_APPLY)),
        ("compressed snapshot", hex(TINY_LZ4)),
        ("increment", assemble(INCREMENT_HEADER, &increment, 0x8000_0000_0000_0042)),
        ("empty increment", assemble(INCREMENT_HEADER, &[], 0x8000_0000_0000_0005)),
        ("deletion", assemble(DELETION_HEADER, &[], 1 << 63)),
    ];
    fixtures.map(|(name, bytes)| (name.to_owned(), bytes)).into()
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
