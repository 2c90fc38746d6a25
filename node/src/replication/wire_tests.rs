//! Risk: what one side writes, the other reads as something else, or a lie makes it panic.

use proptest::prelude::*;

use super::*;

fn db(name: &str) -> DbName {
    DbName::new(name).unwrap()
}

fn pos(txid: u64) -> Pos {
    Pos::new(Txid::new(txid), Checksum::from_raw(Checksum::FLAG | txid))
}

fn split(bytes: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    let mut rest = bytes;
    while let Some((len, tail)) = rest.split_first_chunk::<4>() {
        let (frame, tail) = tail.split_at(decode_frame_len(*len).unwrap());
        frames.push(frame);
        rest = tail;
    }
    assert!(rest.is_empty());
    frames
}

fn replica_frames(message: &FromReplica) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(&mut out);
    out
}

fn replica_messages() -> Vec<FromReplica> {
    vec![
        FromReplica::Hello(Hello {
            node: 7,
            epoch: 3,
            cluster: "LFSC0123456789ABCDEF".into(),
            hostname: "höst".into(),
            may_lead: false,
        }),
        FromReplica::Filter(vec![db("a.db"), db("b.db")]),
        FromReplica::Offers(vec![
            Offer { db: db("a.db"), pos: pos(9), snapshot: false },
            Offer { db: db("b.db"), pos: Pos::ZERO, snapshot: true },
        ]),
        FromReplica::Ready,
        FromReplica::Points(db("a.db"), vec![pos(3), pos(1)]),
        FromReplica::Acks(vec![Ack { db: db("a.db"), applied: pos(5), synced: pos(4) }]),
        FromReplica::Heartbeat { wall_ms: -1 },
        FromReplica::TakeOver,
    ]
}

fn primary_messages() -> Vec<FromPrimary> {
    vec![
        FromPrimary::Welcome(Welcome {
            node: 1,
            epoch: 2,
            cluster: "LFSC0123456789ABCDEF".into(),
            hostname: "primary".into(),
        }),
        FromPrimary::AskPoints(db("a.db")),
        FromPrimary::Rewind(db("a.db"), pos(3)),
        FromPrimary::Unknown(db("a.db")),
        FromPrimary::Heartbeat { wall_ms: 1, lag_ms: None },
        FromPrimary::Heartbeat { wall_ms: 1, lag_ms: Some(12) },
        FromPrimary::Goodbye(Close::new(Reason::NotPrimary, "the primary is elsewhere")),
        FromPrimary::NoTakeOver("not in sync".to_owned()),
        FromPrimary::Sync,
    ]
}

#[test]
fn every_message_round_trips_and_every_truncation_or_extension_is_refused() {
    for message in replica_messages() {
        let bytes = replica_frames(&message);
        let frame = &bytes[4..];
        assert_eq!(FromReplica::decode(frame).unwrap(), message);
        for end in 0..frame.len() {
            assert!(FromReplica::decode(&frame[..end]).is_err(), "{message:?} cut at {end}");
        }
        let longer = [frame, &[0]].concat();
        assert_eq!(FromReplica::decode(&longer), Err(WireError::Trailing(1)));
    }
    for message in primary_messages() {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        let frame = &bytes[4..];
        assert_eq!(FromPrimary::decode(frame).unwrap(), message);
        for end in 0..frame.len() {
            assert!(FromPrimary::decode(&frame[..end]).is_err(), "{message:?} cut at {end}");
        }
        assert!(FromPrimary::decode(&[frame, &[0]].concat()).is_err());
    }
}

#[test]
fn the_bytes_are_those_of_the_description() {
    let bytes = replica_frames(&FromReplica::Points(db("ab"), vec![pos(2)]));
    let expected: Vec<u8> = [
        &[0, 0, 0, 23, 5][..],
        &[0, 2, b'a', b'b'],
        &[0, 1],
        &[0, 0, 0, 0, 0, 0, 0, 2],
        &[0x80, 0, 0, 0, 0, 0, 0, 2],
    ]
    .concat();
    assert_eq!(bytes, expected);
    let frame =
        StreamFrame { kind: RecordKind::Snapshot, len: 258, base: pos(1), pos: pos(2) }.encode();
    let expected: Vec<u8> = [
        &[2][..],
        &[0, 0, 0, 0, 0, 0, 1, 2],
        &[0, 0, 0, 0, 0, 0, 0, 1],
        &[0x80, 0, 0, 0, 0, 0, 0, 1],
        &[0, 0, 0, 0, 0, 0, 0, 2],
        &[0x80, 0, 0, 0, 0, 0, 0, 2],
    ]
    .concat();
    assert_eq!(frame.as_slice(), expected);
}

#[test]
fn ten_thousand_offers_take_several_frames_and_none_is_lost() {
    let offers: Vec<Offer> = (0..10_000)
        .map(|i| Offer { db: db(&format!("{i:0>190}.db")), pos: pos(i + 1), snapshot: i % 2 == 0 })
        .collect();
    let bytes = replica_frames(&FromReplica::Offers(offers.clone()));
    let mut seen = Vec::new();
    for frame in split(&bytes) {
        match FromReplica::decode(frame).unwrap() {
            FromReplica::Offers(part) => seen.extend(part),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, offers);
}

#[test]
fn lengths_are_capped_before_anything_is_allocated() {
    assert!(decode_frame_len([0; 4]).is_err());
    assert!(decode_frame_len([0xff; 4]).is_err());
    assert!(decode_frame_len(((MAX_FRAME + 1) as u32).to_be_bytes()).is_err());
    assert_eq!(decode_frame_len((MAX_FRAME as u32).to_be_bytes()), Ok(MAX_FRAME));
    assert!(decode_stream_name_len([0, 0]).is_err());
    assert!(decode_stream_name_len([0, 201]).is_err());
    // A count of 65535 in a frame of a few bytes.
    assert_eq!(FromReplica::decode(&[6, 0xff, 0xff, 0, 0]), Err(WireError::Short("acks")));
    let frame = |len, base, pos| StreamFrame { kind: RecordKind::Record, len, base, pos };
    let decode = |frame: StreamFrame| StreamFrame::decode(&frame.encode());
    assert_eq!(decode(frame(9, pos(1), pos(2))), Ok(frame(9, pos(1), pos(2))));
    assert!(decode(frame(MAX_RECORD + 1, pos(1), pos(2))).is_err());
    assert!(decode(frame(0, pos(1), pos(2))).is_err());
    assert!(decode(frame(9, pos(2), pos(2))).is_err(), "a record that does not move on");
    assert!(decode(frame(9, Pos::ZERO, Pos::ZERO)).is_err());
}

#[test]
fn names_texts_and_positions_that_cannot_be_are_refused() {
    for name in ["", "../x", "a/b", ".hidden"] {
        assert!(decode_name(name.as_bytes()).is_err(), "{name:?}");
    }
    assert!(decode_name(b"\xff").is_err());
    let mut hello = replica_frames(&replica_messages()[0])[4..].to_vec();
    let cluster = hello.windows(4).position(|w| w == b"LFSC").unwrap();
    hello[cluster] = b'\n';
    assert_eq!(FromReplica::decode(&hello), Err(WireError::Invalid("cluster id")));
    // A checksum without its flag; a zero txid with a checksum.
    for (txid, checksum) in [(1, 1), (0, Checksum::FLAG), (1, 0)] {
        let bad = Pos::new(Txid::new(txid), Checksum::from_raw(checksum));
        let bytes = replica_frames(&FromReplica::Points(db("a"), vec![bad]));
        assert_eq!(FromReplica::decode(&bytes[4..]), Err(WireError::Invalid("point")), "{bad}");
    }
}

#[test]
fn another_version_or_protocol_is_named() {
    let mut hello = replica_frames(&replica_messages()[0])[4..].to_vec();
    hello[6] = 9;
    let error = FromReplica::decode(&hello).unwrap_err();
    assert_eq!(error, WireError::Version(9));
    assert_eq!(Close::from(error).reason, Reason::Version);
    hello[1] = b'X';
    assert_eq!(FromReplica::decode(&hello), Err(WireError::NotLitefs));
}

#[test]
fn reasons_keep_their_codes() {
    for (reason, code) in REASONS {
        assert_eq!(reason.code(), code);
        assert_eq!(Reason::from_code(u64::from(code)), Some(reason));
    }
    assert_eq!(Reason::from_code(0), None);
    assert_eq!(Reason::from_code(u64::MAX), None);
    for (code, reset) in [(1, StreamReset::Failed), (2, StreamReset::Superseded)] {
        assert_eq!(reset.code(), code);
        assert_eq!(StreamReset::from_code(u64::from(code)), reset);
    }
    assert_eq!(StreamReset::from_code(u64::MAX), StreamReset::Failed);
}

#[test]
fn a_long_hostname_is_cut_at_a_character() {
    let (cluster, hostname) = (String::new(), "ä".repeat(200));
    let hello = Hello { node: 1, epoch: 1, cluster, hostname, may_lead: true };
    let bytes = replica_frames(&FromReplica::Hello(hello));
    match FromReplica::decode(&bytes[4..]).unwrap() {
        FromReplica::Hello(h) => assert_eq!(h.hostname, "ä".repeat(127)),
        other => panic!("{other:?}"),
    }
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = FromReplica::decode(&bytes);
        let _ = FromPrimary::decode(&bytes);
        if let Some(header) = bytes.first_chunk() {
            let _ = StreamFrame::decode(header);
        }
    }

    #[test]
    fn a_flipped_bit_never_panics_and_never_reads_beyond(
        which in 0..7usize, at in any::<prop::sample::Index>(), bit in 0..8u8,
    ) {
        let message = &replica_messages()[which];
        let mut frame = replica_frames(message)[4..].to_vec();
        let at = at.index(frame.len());
        frame[at] ^= 1 << bit;
        // What still decodes must encode to the same bytes: nothing was made up or dropped.
        if let Ok(decoded) = FromReplica::decode(&frame) {
            prop_assert_eq!(&replica_frames(&decoded)[4..], &frame[..]);
        }
    }
}
