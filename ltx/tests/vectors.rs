//! The golden vectors: what the reference implementation wrote, and damaged variants of it.
//! `LTX_VECTORS` names their directory; without it (and outside CI) these tests do nothing.

mod common;

use std::path::Path;

use common::{Database, File, decode, vectors_dir};
use litefs_ltx::{Encoder, Error, Version, verify};
use serde::Deserialize;

#[derive(Deserialize)]
struct Manifest {
    files: Vec<Vector>,
    databases: Vec<Content>,
}

#[derive(Deserialize)]
struct Vector {
    file: String,
    dialect: String,
    strict: String,
    header: Option<VectorHeader>,
    trailer: Option<VectorTrailer>,
    /// Page checksums by number.
    #[serde(default)]
    pages: serde_json::Value,
    page_order: Option<Vec<u32>>,
}

#[derive(Deserialize)]
struct VectorHeader {
    flags: u32,
    page_size: u32,
    commit: u32,
    min_txid: u64,
    max_txid: u64,
    timestamp_ms: i64,
    pre_apply_checksum: String,
    wal_offset: u64,
    wal_size: u64,
    wal_salt1: u32,
    wal_salt2: u32,
    node_id: u64,
}

#[derive(Deserialize)]
struct VectorTrailer {
    post_apply_checksum: String,
    file_checksum: String,
}

#[derive(Deserialize)]
struct Content {
    page_size: u32,
    txid: u64,
    page_count: usize,
    checksum: String,
}

fn manifest(dir: &Path) -> Manifest {
    serde_json::from_slice(&read(dir, "manifest.json")).unwrap()
}

fn read(dir: &Path, file: &str) -> Vec<u8> {
    std::fs::read(dir.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// Compares a decoded file with what the manifest says of it.
fn compare(vector: &Vector, file: &File) {
    let name = &vector.file;
    let (expected, header) = (vector.header.as_ref().unwrap(), &file.header);
    assert_eq!(u32::from(header.compressed), expected.flags, "{name}");
    assert_eq!(header.page_size.get(), expected.page_size, "{name}");
    assert_eq!(header.commit, expected.commit, "{name}");
    assert_eq!(header.min_txid.get(), expected.min_txid, "{name}");
    assert_eq!(header.max_txid.get(), expected.max_txid, "{name}");
    assert_eq!(header.timestamp_ms, expected.timestamp_ms, "{name}");
    assert_eq!(header.pre_apply.to_string(), expected.pre_apply_checksum, "{name}");
    assert_eq!(header.wal_offset, expected.wal_offset, "{name}");
    assert_eq!(header.wal_size, expected.wal_size, "{name}");
    assert_eq!(header.wal_salt1, expected.wal_salt1, "{name}");
    assert_eq!(header.wal_salt2, expected.wal_salt2, "{name}");
    assert_eq!(header.node_id, expected.node_id, "{name}");

    let trailer = vector.trailer.as_ref().unwrap();
    assert_eq!(file.trailer.post_apply.to_string(), trailer.post_apply_checksum, "{name}");
    assert_eq!(file.trailer.file.to_string(), trailer.file_checksum, "{name}");

    let order: Vec<u32> = file.sums.iter().map(|(pgno, _)| *pgno).collect();
    assert_eq!(order, vector.page_order.as_ref().unwrap()[..], "{name}");
    for (pgno, sum) in &file.sums {
        assert_eq!(vector.pages[pgno.to_string()], sum.to_string(), "{name}: page {pgno}");
    }
}

#[test]
fn every_v1_vector_gets_its_strict_verdict() {
    let Some(dir) = vectors_dir() else { return };
    let (mut accepted, mut rejected) = (0, 0);
    for vector in manifest(&dir).files.iter().filter(|v| v.dialect.starts_with("v1")) {
        let result = decode(&read(&dir, &vector.file));
        match vector.strict.as_str() {
            "accept" => {
                compare(vector, &result.unwrap_or_else(|e| panic!("{}: {e}", vector.file)));
                accepted += 1;
            }
            "reject" => {
                let error = result.map(|_| ()).expect_err(&vector.file);
                assert!(!matches!(error, Error::Io(_) | Error::Misuse(_)), "{error}");
                rejected += 1;
            }
            other => panic!("{}: verdict {other}", vector.file),
        }
    }
    assert_eq!((accepted, rejected), (95, 71), "the vectors are not the known set");
}

#[test]
fn every_other_version_is_refused_by_name() {
    let Some(dir) = vectors_dir() else { return };
    let mut named = 0;
    for vector in manifest(&dir).files.iter().filter(|v| !v.dialect.starts_with("v1")) {
        let error = verify(&read(&dir, &vector.file)[..]).expect_err(&vector.file);
        if vector.strict == "reject" {
            continue; // Damaged on top: any error will do.
        }
        let expected = if vector.dialect.starts_with("v2") { Version::V2 } else { Version::V3 };
        match error {
            Error::UnsupportedVersion { version, .. } => assert_eq!(version, expected),
            error => panic!("{}: {error}", vector.file),
        }
        named += 1;
    }
    assert_eq!(named, 176, "the vectors are not the known set");
    let v4 = verify(&read(&dir, "invalid/v1/magic-ltx4.ltx")[..]).unwrap_err();
    assert!(matches!(v4, Error::UnsupportedVersion { version: Version::V4, .. }), "{v4}");
}

#[test]
fn encoding_again_gives_the_bytes_of_the_reference() {
    let Some(dir) = vectors_dir() else { return };
    let vectors = manifest(&dir).files;
    let v1 = |v: &&Vector| v.dialect.starts_with("v1-") && v.strict == "accept";
    for vector in vectors.iter().filter(v1) {
        let bytes = read(&dir, &vector.file);
        let file = decode(&bytes).unwrap();
        let mut encoder = Encoder::new(Vec::new(), file.header).unwrap();
        for (pgno, page) in &file.pages {
            encoder.encode_page(*pgno, page).unwrap();
        }
        let (ours, trailer) = encoder.finish(file.trailer.post_apply).unwrap();
        assert_eq!(trailer, file.trailer, "{}", vector.file);
        if file.header.compressed {
            // Another compressor finds other matches; the content and the framing are the same.
            assert_eq!(decode(&ours).unwrap(), file, "{}", vector.file);
            assert_eq!(ours[..107], bytes[..107], "{}", vector.file);
        } else {
            assert!(ours == bytes, "{}", vector.file);
        }
    }
}

#[test]
fn applying_the_transactions_gives_each_state_of_the_database() {
    let Some(dir) = vectors_dir() else { return };
    let manifest = manifest(&dir);
    for size in [512, 4096, 65536] {
        let mut database = Database::default();
        for txid in 1..=6u64 {
            let name = format!("v1/{size}/raw/{txid:016x}-{txid:016x}.ltx");
            let file = decode(&read(&dir, &name)).unwrap();
            database.apply(&file);
            let state = |d: &&Content| d.page_size == size && d.txid == txid;
            let state = manifest.databases.iter().find(state).unwrap();
            assert_eq!(database.pages.len(), state.page_count, "{name}");
            assert_eq!(database.checksum().to_string(), state.checksum, "{name}");
            assert_eq!(file.trailer.post_apply, database.checksum(), "{name}");
        }
    }
}
