//! Files put together by hand from the format's description.

mod common;

use common::{
    DELETION_HEADER, INCREMENT_HEADER, TINY_HEADER, TINY_LZ4, TINY_POST_APPLY, assemble, decode,
    fixtures, hex, tiny_pages,
};
use litefs_ltx::{
    Checksum, Encoder, Error, Header, PageSize, Txid, Version, Violation, record_len, verify,
};

#[test]
fn compressed_snapshot_has_the_sums_of_the_reference() {
    let file = decode(&hex(TINY_LZ4)).unwrap();
    assert!(file.header.compressed && file.header.is_snapshot());
    assert_eq!(file.header.timestamp_ms, 1_700_000_000_000);
    assert_eq!(file.trailer.post_apply.get(), TINY_POST_APPLY);
    assert_eq!(file.trailer.file.get(), 0xba36_25de_eb56_f484);
    let pages: Vec<_> = file.pages.into_iter().map(|(pgno, page)| (pgno.get(), page)).collect();
    assert_eq!(pages, tiny_pages());
}

#[test]
fn all_header_fields_are_found() {
    let file = decode(&assemble(INCREMENT_HEADER, &[], 1 << 63)).unwrap();
    let expected = Header {
        compressed: false,
        page_size: PageSize::new(512).unwrap(),
        commit: 9,
        min_txid: Txid::new(5),
        max_txid: Txid::new(6),
        timestamp_ms: -1,
        pre_apply: Checksum::from_raw(0x8000_0000_0000_0005),
        wal_offset: 32,
        wal_size: 4152,
        wal_salt1: 0x0102_0304,
        wal_salt2: 0x0506_0708,
        node_id: 0x1112_1314_1516_1718,
    };
    assert_eq!(file.header, expected);
    assert_eq!(file.header.pre_pos().to_string(), "0000000000000004/8000000000000005");
}

#[test]
fn encoder_writes_the_fixtures_byte_for_byte() {
    for (name, bytes) in fixtures() {
        let file = decode(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut encoder = Encoder::new(Vec::new(), file.header).unwrap();
        for (pgno, page) in &file.pages {
            encoder.encode_page(*pgno, page).unwrap();
        }
        let (out, _) = encoder.finish(file.trailer.post_apply).unwrap();
        if file.header.compressed {
            // The block may be compressed in another way.
            assert_eq!(out[..107], bytes[..107], "{name}");
            assert_eq!(out[out.len() - 24..], bytes[bytes.len() - 24..], "{name}");
            assert_eq!(decode(&out).unwrap(), file, "{name}");
        } else {
            assert_eq!(out, bytes, "{name}");
            let len = record_len(file.header.page_size, file.pages.len() as u64);
            assert_eq!(bytes.len() as u64, len, "{name}");
        }
    }
}

#[test]
fn reserved_bytes_are_ignored() {
    let header = TINY_HEADER.replace("0000000000000000000000000000000000000000", &"5a".repeat(20));
    decode(&assemble(&header, &tiny_pages(), TINY_POST_APPLY)).unwrap();
}

/// Checks that a file with right checksums is refused for this reason alone.
fn expect_violation(bytes: &[u8], offset: u64, violation: Violation) {
    match verify(bytes).unwrap_err() {
        Error::Invalid { offset: at, violation: found } => {
            assert_eq!((at, found), (offset, violation));
        }
        error => panic!("expected {violation}, got {error}"),
    }
}

#[test]
fn broken_rules_are_found_behind_right_checksums() {
    let page = |n: u32| (n, vec![1; 512]);
    let increment = |pages: &[u32], post: u64| {
        let pages: Vec<_> = pages.iter().map(|&n| page(n)).collect();
        assemble(INCREMENT_HEADER, &pages, post)
    };
    let valid = 0x8000_0000_0000_0042;
    verify(&increment(&[2, 4], valid)[..]).unwrap();
    expect_violation(&increment(&[4, 2], valid), 616, Violation::PageOrder { pgno: 2, last: 4 });
    expect_violation(&increment(&[2, 2], valid), 616, Violation::PageOrder { pgno: 2, last: 2 });
    expect_violation(
        &increment(&[10], valid),
        100,
        Violation::PageBeyondCommit { pgno: 10, commit: 9 },
    );
    let post = Checksum::from_raw(0x42);
    expect_violation(&increment(&[2], 0x42), 620, Violation::PostApplyFormat(post));
    expect_violation(&increment(&[2], 0), 620, Violation::PostApplyFormat(Checksum::NONE));

    let deletion = assemble(DELETION_HEADER, &[], valid);
    let post = Checksum::from_raw(valid);
    expect_violation(&deletion, 104, Violation::PostApplyOfDeletion(post));

    let snapshot = |pages: &[u32]| {
        let pages: Vec<_> = pages.iter().map(|&n| tiny_pages()[n as usize - 1].clone()).collect();
        assemble(TINY_HEADER, &pages, 1 << 63)
    };
    expect_violation(&snapshot(&[2, 3]), 100, Violation::SnapshotGap { pgno: 2, expected: 1 });
    expect_violation(&snapshot(&[1, 3]), 616, Violation::SnapshotGap { pgno: 3, expected: 2 });
    expect_violation(&snapshot(&[1, 2]), 1132, Violation::SnapshotShort { last: 2, commit: 3 });
    expect_violation(&snapshot(&[]), 100, Violation::SnapshotShort { last: 0, commit: 3 });
}

#[test]
fn snapshot_whose_pages_do_not_have_its_checksum_is_refused() {
    let bytes = assemble(TINY_HEADER, &tiny_pages(), TINY_POST_APPLY ^ 1);
    let error = verify(&bytes[..]).unwrap_err();
    assert!(matches!(error, Error::ChecksumMismatch { what: "database", .. }), "{error}");
}

#[test]
fn anything_after_the_trailer_is_refused() {
    for (name, bytes) in fixtures() {
        for extra in [&[0][..], &[0; 16], &bytes] {
            let error = verify(&[&bytes, extra].concat()[..]).unwrap_err();
            let end = bytes.len() as u64;
            assert!(
                matches!(error, Error::TrailingBytes { offset } if offset == end),
                "{name}: {error}"
            );
        }
    }
}

#[test]
fn what_is_no_ltx_file_is_told_from_a_truncated_one() {
    let error = |bytes: &[u8]| verify(bytes).unwrap_err().to_string();
    assert!(error(b"SQLite format 3\0").contains("not an LTX file"), "short foreign file");
    assert_eq!(error(b""), "truncated LTX file: it ends at byte 0, in the header");
    assert_eq!(error(b"LTX1 and so"), "truncated LTX file: it ends at byte 11, in the header");
    let fixture = assemble(TINY_HEADER, &tiny_pages(), TINY_POST_APPLY);
    let cut = |len: usize| error(&fixture[..len]);
    assert_eq!(cut(102), "truncated LTX file: it ends at byte 102, in the page number");
    assert_eq!(cut(616), "truncated LTX file: it ends at byte 616, in the page number");
    assert_eq!(cut(615), "truncated LTX file: it ends at byte 615, in the page");
    assert_eq!(cut(1667), "truncated LTX file: it ends at byte 1667, in the trailer");
    let compressed = verify(&hex(TINY_LZ4)[..130]).unwrap_err();
    assert!(matches!(compressed, Error::Truncated { offset: 130, .. }), "{compressed}");
}

/// The beginnings of other versions' files, as their writers make them.
#[test]
fn other_versions_are_named() {
    let refused = |flags: &str, body: &str| {
        let mut bytes = hex(&TINY_HEADER.replacen("00000000", flags, 1));
        bytes.extend(hex(body));
        bytes.extend([0x11; 600]);
        match verify(&bytes[..]).unwrap_err() {
            Error::UnsupportedVersion { version, .. } => version,
            error => panic!("{flags} {body}: {error}"),
        }
    };
    for flags in ["00000000", "00000002"] {
        let v3_block = "00000001 0001 00000018 1f01";
        let v3_frame = "00000001 0000 04224d18 6440a7 18000000";
        let v3_empty = "000000000000 00 0000000000000001 8000000000000001";
        let v2 = "00000001 04224d18 6440a7 18000000";
        let v2_empty = "00000000 00 0000000000000001 8000000000000001";
        assert_eq!(refused(flags, v3_block), Version::V3);
        assert_eq!(refused(flags, v3_frame), Version::V3);
        assert_eq!(refused(flags, v3_empty), Version::V3);
        assert_eq!(refused(flags, v2), Version::V2);
        assert_eq!(refused(flags, v2_empty), Version::V2);
    }
    assert_eq!(refused("00000002", "00000001 53514c69"), Version::NoChecksum);
}
