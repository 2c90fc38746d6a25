//! Peers that break the protocol: their connection is closed with a reason, and nothing changes.
//!
//! The peers here are bare QUIC endpoints that are free to send anything.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use litefs_node::replication::wire::{
    FromPrimary, FromReplica, Hello, Offer, Reason, RecordKind, StreamFrame, Welcome,
    encode_stream_name,
};
use litefs_node::{Config, Node, tls};
use litefs_store::{Checksum, DbName, Pos, Store, Txid};
use quinn::{Connection, ConnectionError, Endpoint};
use tokio::runtime::Runtime;

use crate::support::{LONG, TestNode, assert_same, fill, insert_each, loopback, pos};

const CLUSTER: &str = "LFSC00000000000000AA";

fn name(text: &str) -> DbName {
    DbName::new(text).unwrap()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn endpoint() -> Endpoint {
    let mode = tls::TlsMode::load(&Config::new("/nonexistent")).unwrap();
    let server = tls::quic_server_config(&mode).unwrap();
    let socket = tls::bind_socket(loopback()).unwrap();
    let quinn_runtime = Arc::new(quinn::TokioRuntime);
    let mut endpoint =
        Endpoint::new(tls::quic_endpoint_config(), Some(server), socket, quinn_runtime).unwrap();
    endpoint.set_default_client_config(tls::quic_client_config(&mode).unwrap());
    endpoint
}

fn reason(error: &ConnectionError) -> Option<Reason> {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            assert!(!close.reason.is_empty(), "a close without words");
            Reason::from_code(close.error_code.into_inner())
        }
        other => panic!("{other}"),
    }
}

fn encoded(message: &FromReplica) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(&mut out);
    out
}

fn hello(cluster: &str) -> Vec<u8> {
    let (cluster, hostname) = (cluster.into(), "evil".into());
    let hello = Hello { node: 77, epoch: 0, cluster, hostname, may_lead: true };
    encoded(&FromReplica::Hello(hello))
}

/// Sends `bytes` on a control stream; returns why the node closes the connection.
fn dial_and_send(node: &Node, bytes: &[u8], then_end: bool) -> Option<Reason> {
    runtime().block_on(async {
        let endpoint = endpoint();
        let connecting = endpoint.connect(node.addr(), tls::SERVER_NAME).unwrap();
        let connection = connecting.await.unwrap();
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        // The node may close before all is sent.
        let _ = send.write_all(bytes).await;
        if then_end {
            let _ = send.finish();
        }
        let closed = tokio::time::timeout(LONG, connection.closed()).await;
        reason(&closed.expect("the node must close the connection"))
    })
}

#[test]
fn a_primary_survives_every_kind_of_nonsense() {
    let primary = TestNode::primary();
    let replica = TestNode::replica_of(&primary);
    fill(&primary, "app.db", 10, 100);
    assert_same(&primary, &replica, "app.db");
    let before = pos(&primary, "app.db");

    let offer = |db: &str, txid| Offer {
        db: name(db),
        pos: Pos::new(Txid::new(txid), Checksum::from_raw(u64::MAX)),
        snapshot: false,
    };
    let with_hello = |rest: &[u8]| [hello(""), rest.to_vec()].concat();
    let mut other_version = hello("");
    other_version[10] = 99;
    let unasked = FromReplica::Points(name("app.db"), vec![before]);
    let foreign_offer = [
        encoded(&FromReplica::Filter(vec![name("a.db")])),
        encoded(&FromReplica::Offers(vec![offer("b.db", 1)])),
    ]
    .concat();
    let cases: Vec<(&str, Vec<u8>, bool, Reason)> = vec![
        ("another protocol", b"GET / HTTP/1.1\r\n\r\n".to_vec(), false, Reason::BadProtocol),
        ("a huge length", vec![0xff; 8], false, Reason::BadProtocol),
        ("an empty frame", vec![0; 4], false, Reason::BadProtocol),
        ("another version", other_version, false, Reason::Version),
        ("another cluster", hello(CLUSTER), false, Reason::WrongCluster),
        ("a hello cut off", hello("")[..20].to_vec(), true, Reason::BadProtocol),
        ("no hello", encoded(&FromReplica::Ready), false, Reason::BadProtocol),
        ("two hellos", with_hello(&hello("")), false, Reason::BadProtocol),
        ("garbage after it", with_hello(&[0, 0, 0, 2, 200, 1]), false, Reason::BadProtocol),
        ("a count too high", with_hello(&[0, 0, 0, 3, 3, 255, 255]), false, Reason::BadProtocol),
        ("outside its filter", with_hello(&foreign_offer), false, Reason::BadProtocol),
        ("an end", with_hello(&encoded(&unasked)), true, Reason::BadProtocol),
    ];
    for (what, bytes, then_end, expected) in cases {
        assert_eq!(dial_and_send(&primary, &bytes, then_end), Some(expected), "{what}");
    }
    assert_eq!(pos(&primary, "app.db"), before);
    assert_eq!(primary.replicas().len(), 1, "only the honest one is left");
    insert_each(&primary, "app.db", 5);
    assert_same(&primary, &replica, "app.db");
}

#[test]
fn a_silent_dialler_is_given_up() {
    let primary = TestNode::primary();
    assert_eq!(dial_and_send(&primary, &[], false), Some(Reason::Timeout));
    assert_eq!(dial_and_send(&primary, &hello(""), false), Some(Reason::Timeout));
}

#[test]
fn a_diallers_lies_about_positions_cost_the_primary_nothing() {
    let primary = TestNode::primary();
    fill(&primary, "app.db", 10, 100);
    let before = pos(&primary, "app.db");
    runtime().block_on(async {
        let endpoint = endpoint();
        let connecting = endpoint.connect(primary.addr(), tls::SERVER_NAME).unwrap();
        let connection = connecting.await.unwrap();
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        send.write_all(&hello("")).await.unwrap();
        let lie = Pos::new(Txid::new(u64::MAX), Checksum::from_raw(u64::MAX));
        for i in 0..2000 {
            let db = name(if i % 2 == 0 { "app.db" } else { "none.db" });
            let offer = Offer { db: db.clone(), pos: lie, snapshot: i % 3 == 0 };
            let points = FromReplica::Points(db, vec![lie; 64]);
            let bytes = [encoded(&FromReplica::Offers(vec![offer])), encoded(&points)].concat();
            send.write_all(&bytes).await.unwrap();
        }
        connection.close(0u32.into(), b"done");
        endpoint.wait_idle().await;
    });
    assert_eq!(pos(&primary, "app.db"), before);
    let replica = TestNode::replica_of(&primary);
    assert_same(&primary, &replica, "app.db");
    assert_eq!(primary.position("none.db"), None);
}

/// Takes the right to write, begins a record, and says no more but that it is alive.
async fn stall_in_a_forwarded_record(primary: &Node, taken: mpsc::Sender<()>) {
    let endpoint = endpoint();
    let connecting = endpoint.connect(primary.addr(), tls::SERVER_NAME).unwrap();
    let connection = connecting.await.unwrap();
    let (mut control, mut welcome) = connection.open_bi().await.unwrap();
    let greeting = [hello(""), encoded(&FromReplica::Ready)].concat();
    control.write_all(&greeting).await.unwrap();
    welcome.read_exact(&mut [0; 4]).await.unwrap();
    let (mut to, mut from) = connection.open_bi().await.unwrap();
    let lock = [&[1][..], &5000_u32.to_be_bytes()].concat();
    to.write_all(&[encode_stream_name(&name("app.db")), lock].concat()).await.unwrap();
    let mut answer = [0; 17];
    from.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[0], 0, "it has the right to write");
    let commit = [&[2][..], &1_000_000_u64.to_be_bytes(), b"LTX1"].concat();
    to.write_all(&commit).await.unwrap();
    taken.send(()).unwrap();
    let alive = encoded(&FromReplica::Heartbeat { wall_ms: 0 });
    while control.write_all(&alive).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[test]
fn a_replica_that_stalls_in_a_forwarded_record_loses_its_right_to_write() {
    let primary = TestNode::primary();
    fill(&primary, "app.db", 10, 100);
    let runtime = runtime();
    let (taken, waiting) = mpsc::channel();
    std::thread::scope(|scope| {
        let stalling = runtime.handle().clone();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let primary = &primary;
        scope.spawn(move || {
            stalling.block_on(async {
                tokio::select! {
                    () = stall_in_a_forwarded_record(primary, taken) => (),
                    _ = stopped => (),
                }
            })
        });
        waiting.recv_timeout(LONG).expect("it takes the right");
        let conn = primary.open("app.db").unwrap();
        conn.busy_timeout(Duration::ZERO).unwrap();
        let insert = || conn.execute("INSERT INTO t (x) VALUES (1)", []);
        assert!(insert().is_err(), "somebody else has the right");
        conn.busy_timeout(LONG).unwrap();
        insert().unwrap();
        drop(stop);
    });
}

/// What a false primary sends on one stream, and whether it ends it.
struct Stream {
    bytes: Vec<u8>,
    end: bool,
}

/// Lets a replica dial a false primary that welcomes it and sends `streams`; returns why the
/// replica closes the connection.
fn welcome_and_send(replica: &mut TestNode, streams: Vec<Stream>) -> Option<Reason> {
    let runtime = runtime();
    let endpoint = {
        let _inside = runtime.enter();
        endpoint()
    };
    let addr = endpoint.local_addr().unwrap();
    let (told, result) = mpsc::channel();
    runtime.spawn(async move {
        let connection = endpoint.accept().await.unwrap().await.unwrap();
        let error = play_primary(&connection, streams).await;
        told.send(reason(&error)).unwrap();
        endpoint.wait_idle().await;
    });
    replica.restart(|config| config.replica_of(&format!("http://{addr}")).unwrap());
    let reason = result.recv_timeout(LONG).expect("the replica must close the connection");
    replica.stop();
    reason
}

async fn play_primary(connection: &Connection, streams: Vec<Stream>) -> ConnectionError {
    let (mut send, mut recv) = connection.accept_bi().await.unwrap();
    let mut hello = [0; 16];
    recv.read_exact(&mut hello).await.unwrap();
    let mut bytes = Vec::new();
    FromPrimary::Welcome(Welcome {
        node: 99,
        epoch: 1,
        cluster: CLUSTER.into(),
        hostname: "false".into(),
    })
    .encode(&mut bytes);
    send.write_all(&bytes).await.unwrap();
    for stream in streams {
        let mut uni = connection.open_uni().await.unwrap();
        // The replica may close before all is sent.
        let _ = uni.write_all(&stream.bytes).await;
        if stream.end {
            let _ = uni.finish();
        } else {
            tokio::spawn(async move {
                let _open = uni;
                tokio::time::sleep(LONG).await;
            });
        }
    }
    // Alive, so that silence is not the reason.
    let beat = async {
        loop {
            let mut bytes = Vec::new();
            FromPrimary::Heartbeat { wall_ms: 0, lag_ms: Some(0) }.encode(&mut bytes);
            if send.write_all(&bytes).await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::select! {
        error = connection.closed() => error,
        () = beat => unreachable!(),
    }
}

/// A stopped replica of cluster [`CLUSTER`] with one database.
struct Victim {
    replica: TestNode,
    /// Where it is.
    before: Pos,
    /// Where the next record leads, and its bytes.
    after: Pos,
    record: Vec<u8>,
    /// A snapshot record of the position after it.
    snapshot: Vec<u8>,
}

fn victim() -> Victim {
    let source = TestNode::primary();
    let mut replica = TestNode::replica_of(&source);
    insert_each(&source, "app.db", 3);
    assert_same(&source, &replica, "app.db");
    replica.stop();
    let before = pos(&source, "app.db");
    insert_each(&source, "app.db", 1);
    let db = source.db("app.db");
    let record = db.log_cursor(before).unwrap().next().unwrap().unwrap();
    let mut bytes = vec![0; record.len() as usize];
    record.read_at(0, &mut bytes).unwrap();
    let mut snapshot = Vec::new();
    db.snapshot().unwrap().write_snapshot_record(&mut snapshot).unwrap();
    join_cluster(&replica);
    Victim { replica, before, after: record.pos(), record: bytes, snapshot }
}

/// Gives the stopped node's directory to the false primary's cluster.
fn join_cluster(node: &TestNode) {
    let path = node.dir.path().join("node.json");
    let store = Store::open(node.dir.path()).unwrap();
    let id = store.cluster_id().unwrap();
    store.close().unwrap();
    drop(store);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(&id));
    std::fs::write(&path, text.replace(&id, CLUSTER)).unwrap();
}

fn stream(db: &str, frames: &[(StreamFrame, &[u8])]) -> Vec<u8> {
    let mut out = encode_stream_name(&name(db));
    for (frame, bytes) in frames {
        out.extend_from_slice(&frame.encode());
        out.extend_from_slice(bytes);
    }
    out
}

#[test]
fn a_replica_survives_every_kind_of_nonsense() {
    let Victim { mut replica, before, after, record, snapshot } = victim();
    let frame = |bytes: &[u8]| StreamFrame {
        kind: RecordKind::Record,
        len: bytes.len() as u64,
        base: before,
        pos: after,
    };
    let in_frame = |bytes: &[u8]| stream("app.db", &[(frame(bytes), bytes)]);
    let mut flipped = record.clone();
    flipped[record.len() / 2] ^= 1;
    let mut lies_about_pos = frame(&record);
    lies_about_pos.pos = Pos::new(after.txid.next(), after.checksum);
    let mut lies_about_base = frame(&record);
    lies_about_base.base = Pos::new(before.txid, Checksum::EMPTY);
    let mut flipped_snapshot = snapshot.clone();
    flipped_snapshot[snapshot.len() - 3] ^= 1;
    let snapshot_frame = StreamFrame { kind: RecordKind::Snapshot, ..frame(&snapshot) };
    let as_snapshot = StreamFrame { kind: RecordKind::Snapshot, ..frame(&record) };
    let long = StreamFrame { len: 3 << 20, ..frame(&record) };
    let huge = StreamFrame { len: u64::MAX, ..frame(&record) };
    let long_garbage = vec![7; 3 << 20];
    let mut bad_kind = in_frame(&record);
    bad_kind[2 + "app.db".len()] = 9;
    let cases: Vec<(&str, Vec<u8>, bool, Reason)> = vec![
        ("no name", vec![0, 0], false, Reason::BadProtocol),
        ("a path as a name", b"\0\x04../x".to_vec(), false, Reason::BadProtocol),
        ("a long name", vec![0xff; 300], false, Reason::BadProtocol),
        ("a name cut off", b"\0\x06app".to_vec(), true, Reason::BadProtocol),
        ("an unknown kind", bad_kind, false, Reason::BadProtocol),
        ("a huge record", stream("app.db", &[(huge, &[])]), false, Reason::BadProtocol),
        ("a record cut off", in_frame(&record)[..500].to_vec(), true, Reason::BadProtocol),
        (
            "a long record cut off",
            stream("app.db", &[(long, &record[..500])]),
            true,
            Reason::BadProtocol,
        ),
        ("a flipped bit", in_frame(&flipped), false, Reason::BadRecord),
        ("garbage", in_frame(&[7; 3000]), false, Reason::BadRecord),
        ("much garbage", in_frame(&long_garbage), false, Reason::BadRecord),
        (
            "bytes after the record",
            in_frame(&[&record[..], &[0]].concat()),
            false,
            Reason::BadRecord,
        ),
        ("another base", stream("app.db", &[(lies_about_base, &record)]), false, Reason::BadRecord),
        (
            "a record as a snapshot",
            stream("app.db", &[(as_snapshot, &record)]),
            false,
            Reason::BadRecord,
        ),
        ("a snapshot as a record", in_frame(&snapshot), false, Reason::BadRecord),
        (
            "a snapshot with a flipped bit",
            stream("app.db", &[(snapshot_frame, &flipped_snapshot)]),
            false,
            Reason::BadRecord,
        ),
    ];
    for (what, bytes, end, expected) in cases {
        let refused = welcome_and_send(&mut replica, vec![Stream { bytes, end }]);
        assert_eq!(refused, Some(expected), "{what}");
        let store = Store::open(replica.dir.path()).unwrap();
        let db = store.database(&name("app.db")).unwrap();
        assert_eq!((db.pos(), db.quarantined()), (before, None), "{what}");
        assert!(store.databases().len() == 1, "{what}");
        assert!(db.diverged().unwrap().is_empty(), "{what}");
        store.close().unwrap();
    }
    // The true record is taken, though its frame lies about where it leads: that ends the
    // connection, and the content is what the record's own checksums prove.
    let bytes = stream("app.db", &[(lies_about_pos, &record)]);
    let refused = welcome_and_send(&mut replica, vec![Stream { bytes, end: false }]);
    assert_eq!(refused, Some(Reason::BadRecord));
    let store = Store::open(replica.dir.path()).unwrap();
    assert_eq!(store.database(&name("app.db")).unwrap().pos(), after);
}

#[test]
fn a_flood_of_streams_that_never_end_is_bounded_and_ends_with_the_connection() {
    let Victim { mut replica, before, after, record, .. } = victim();
    let frame = StreamFrame { kind: RecordKind::Record, len: 1 << 20, base: Pos::ZERO, pos: after };
    let mut streams: Vec<Stream> = (0..500)
        .map(|i| Stream {
            bytes: stream(&format!("flood{i}.db"), &[(frame, &record[..100])]),
            end: false,
        })
        .collect();
    streams.push(Stream { bytes: vec![0, 0], end: false });
    assert_eq!(welcome_and_send(&mut replica, streams), Some(Reason::BadProtocol));
    let store = Store::open(replica.dir.path()).unwrap();
    assert_eq!(store.database(&name("app.db")).unwrap().pos(), before);
    assert_eq!(store.databases().len(), 1, "no database was made");
}

/// It keeps the connection alive, but never allows the stream on which the replica would speak.
#[test]
fn a_primary_that_allows_no_stream_is_given_up_and_holds_up_no_shutdown() {
    let mode = tls::TlsMode::load(&Config::new("/nonexistent")).unwrap();
    let mut server = tls::quic_server_config(&mode).unwrap();
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(0u32.into())
        .keep_alive_interval(Some(Duration::from_secs(1)));
    server.transport_config(Arc::new(transport));
    let runtime = runtime();
    let _inside = runtime.enter();
    let endpoint = Endpoint::server(server, loopback()).unwrap();
    let url = format!("http://{}", endpoint.local_addr().unwrap());
    let (sender, accepted) = mpsc::channel();
    runtime.spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            // Kept open.
            let _ = sender.send(incoming.await);
        }
    });
    let mut replica = TestNode::start(|config| config.replica_of(&url).unwrap());
    let _first = accepted.recv_timeout(LONG).unwrap();
    let _second = accepted.recv_timeout(LONG).expect("the replica must give up and dial again");
    replica.stop();
}
