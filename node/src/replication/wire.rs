//! The replication protocol, version 1: what goes over one QUIC connection.
//!
//! A replica dials its primary (ALPN `litefs/1`). All integers are big endian. A *name* is a `u16`
//! length and that many bytes of UTF-8, a *position* is a `u64` txid and a `u64` checksum.
//!
//! **Control stream**: one, bidirectional, opened by the replica. Each side sends frames
//! ```text
//! length u32 (1 ..= 65536) | type u8 | body (length - 1 bytes)
//! ```
//! | type | from    | body                                                                    |
//! |------|---------|-------------------------------------------------------------------------|
//! | 1    | replica | Hello: magic `LTFS`, version u16, node u64, epoch u64, cluster name, hostname name, leads u8 |
//! | 2    | replica | Filter: u16 count, names. The databases that the replica keeps; none sent: all |
//! | 3    | replica | Offers: u16 count, then (name, position, u8: 0 what follows, 1 a snapshot)      |
//! | 4    | replica | Ready: empty. Every database of the replica has been offered            |
//! | 5    | replica | Points: name, u16 count, positions to which the database could rewind, newest first |
//! | 6    | replica | Acks: u16 count, then (name, applied position, position on disk)        |
//! | 7    | replica | Heartbeat: wall clock i64, ms since 1970                                |
//! | 8    | replica | TakeOver: empty. The replica wants to be the primary                    |
//! | 65   | primary | Welcome: version u16, node u64, epoch u64, cluster name, hostname name  |
//! | 66   | primary | AskPoints: name. The offered position is not on the primary's history   |
//! | 67   | primary | Rewind: name, position. The newest common position                      |
//! | 68   | primary | Unknown: name. The primary has no such database and streams nothing     |
//! | 69   | primary | Heartbeat: wall clock i64, lag u64 in ms (2^64-1 until first in sync)   |
//! | 70   | primary | Goodbye: reason u16, text name. The replica closes the connection       |
//! | 71   | primary | NoTakeOver: text name. Why the replica does not get the role            |
//! | 72   | primary | Sync: empty. Put what has been applied on disk, and acknowledge it      |
//!
//! `leads` is 1 if the replica may become primary, else 0.
//!
//! The order is Hello, Welcome, Filter*, Offers*, Ready, then anything. Offers may come again at
//! any time: the replica has stopped that database's stream and wants it from there.
//!
//! **Database streams**: unidirectional, opened by the primary, at most one at a time for a
//! database. A stream is the database's name, then frames
//! ```text
//! kind u8 | length u64 | base position | position after it | LTX v1 bytes (length)
//! ```
//! Kind 1 is a record that follows the replica's position, the base (one transaction or several
//! compacted ones). Kind 2 is a snapshot record; its base is the replica's position if the primary
//! knows that one to be on its history, else zero: a replica that is anywhere else preserves what
//! it has before it takes the snapshot. The primary ends a stream only after everything on it has
//! been acknowledged. It resets one with the code of a [`StreamReset`].
//!
//! **Refusals** are QUIC application closes: a [`Reason`] as the code and a text for the log. A
//! primary in the middle of a stream says Goodbye instead: QUIC drops a close that congestion
//! control holds back, and the replica would have to wait for its timeout.
//!
//! Everything here is checked while it is read: lengths against caps, counts against the bytes
//! that are left, names and flags against their sets; bytes left over are an error.

use litefs_store::{Checksum, DbName, Pos, Txid};

/// The version that this module writes and reads.
pub const VERSION: u16 = 1;
/// Longest control frame, type included, in bytes.
pub const MAX_FRAME: usize = 64 * 1024;
/// Longest record that is accepted, in bytes: the largest SQLite database and its page numbers.
pub const MAX_RECORD: u64 = 1 << 49;
/// Longest host or cluster name, in bytes.
pub const MAX_TEXT: usize = 255;
/// Most rewind points in one message.
pub const MAX_POINTS: usize = 64;
/// Bytes of a frame header on a database stream.
pub const STREAM_FRAME_LEN: usize = 1 + 8 + 16 + 16;

/// Bytes of a position.
pub(crate) const POS_LEN: usize = 16;

const MAGIC: [u8; 4] = *b"LTFS";
const MAX_NAME: usize = 200;
const NEVER_IN_SYNC: u64 = u64::MAX;

/// Why bytes from a peer are not this protocol. The peer is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The first frame is not a hello of this protocol.
    #[error("the peer does not speak the litefs replication protocol")]
    NotLitefs,
    /// The peer speaks another version.
    #[error(
        "the peer speaks version {0} of the replication protocol, this node version {VERSION}: run the same release on both"
    )]
    Version(u16),
    /// A length is beyond its cap.
    #[error("{what} of {len} bytes, at most {max} are allowed")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// Its length.
        len: u64,
        /// The cap.
        max: u64,
    },
    /// The frame ends inside a field.
    #[error("frame ends early in {0}")]
    Short(&'static str),
    /// Bytes after the last field.
    #[error("{0} bytes left over in a frame")]
    Trailing(usize),
    /// A value that the field cannot have.
    #[error("invalid {0}")]
    Invalid(&'static str),
}

/// Why the primary resets a database's stream; the code of the QUIC reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamReset {
    /// The primary failed within a frame: it streams again once the database is offered again.
    Failed,
    /// The primary has taken a newer offer, which it answers: a further one would have it leave
    /// that answer as well.
    Superseded,
}

impl StreamReset {
    /// The code on the wire.
    pub fn code(self) -> u32 {
        match self {
            Self::Failed => 1,
            Self::Superseded => 2,
        }
    }

    /// The reason for a code; one that a later release may know counts as a failure.
    pub fn from_code(code: u64) -> Self {
        match code {
            2 => Self::Superseded,
            _ => Self::Failed,
        }
    }
}

/// Why a connection is closed; the code of the QUIC close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The node stops, or changes its role.
    Shutdown,
    /// The node that was dialled is not the primary.
    NotPrimary,
    /// The two nodes belong to different clusters.
    WrongCluster,
    /// The primary's epoch is older than one that the other node has seen.
    OldEpoch,
    /// A node dialled itself, or another one with a copy of its data directory.
    SameNode,
    /// The peer broke the protocol.
    BadProtocol,
    /// The peer speaks another version.
    Version,
    /// The peer was silent for too long.
    Timeout,
    /// A record failed its verification.
    BadRecord,
    /// The same node connected again.
    Superseded,
    /// The peer's certificate does not fit what it says.
    Identity,
}

const REASONS: [(Reason, u32); 11] = [
    (Reason::Shutdown, 1),
    (Reason::NotPrimary, 2),
    (Reason::WrongCluster, 3),
    (Reason::OldEpoch, 4),
    (Reason::SameNode, 5),
    (Reason::BadProtocol, 6),
    (Reason::Version, 7),
    (Reason::Timeout, 8),
    (Reason::BadRecord, 9),
    (Reason::Superseded, 10),
    (Reason::Identity, 11),
];

impl Reason {
    /// The code on the wire.
    pub fn code(self) -> u32 {
        REASONS.iter().find(|(r, _)| *r == self).map_or(0, |(_, code)| *code)
    }

    /// The reason of a code, if this version knows it.
    pub fn from_code(code: u64) -> Option<Self> {
        REASONS.iter().find(|(_, c)| u64::from(*c) == code).map(|(r, _)| *r)
    }

    /// True if connecting again soon cannot help: somebody must change something first.
    pub fn is_lasting(self) -> bool {
        matches!(
            self,
            Self::WrongCluster | Self::OldEpoch | Self::SameNode | Self::Version | Self::Identity
        )
    }
}

/// The decision to close a connection: the code and the text that both sides log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close {
    /// What it means.
    pub reason: Reason,
    /// What the log says.
    pub text: String,
}

impl Close {
    /// Joins a reason and its text.
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self { reason, text: text.into() }
    }
}

impl From<WireError> for Close {
    fn from(e: WireError) -> Self {
        let reason = match e {
            WireError::Version(_) => Reason::Version,
            _ => Reason::BadProtocol,
        };
        Self::new(reason, e.to_string())
    }
}

/// What a replica says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The replica's node id.
    pub node: u64,
    /// The highest epoch that it has seen.
    pub epoch: u64,
    /// Its cluster; empty if it has joined none yet.
    pub cluster: String,
    /// Its host's name, for people.
    pub hostname: String,
    /// True if it may become primary once this one is gone.
    pub may_lead: bool,
}

/// How a primary answers a [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The primary's node id.
    pub node: u64,
    /// The epoch in which it is primary.
    pub epoch: u64,
    /// The cluster.
    pub cluster: String,
    /// The name under which clients know the primary.
    pub hostname: String,
}

/// A replica's state in one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The database.
    pub db: DbName,
    /// Where the replica is.
    pub pos: Pos,
    /// True if records cannot help (damaged here, or cannot rewind): only a snapshot will do.
    pub snapshot: bool,
}

/// How far a replica got in one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// The database.
    pub db: DbName,
    /// Applied up to here.
    pub applied: Pos,
    /// On the replica's disk up to here.
    pub synced: Pos,
}

/// A control message from a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromReplica {
    /// The first message.
    Hello(Hello),
    /// Databases to stream; several add up.
    Filter(Vec<DbName>),
    /// Where the replica is.
    Offers(Vec<Offer>),
    /// All databases have been offered.
    Ready,
    /// Where a database could rewind to, newest first.
    Points(DbName, Vec<Pos>),
    /// How far the replica got.
    Acks(Vec<Ack>),
    /// A sign of life.
    Heartbeat {
        /// The replica's wall clock, ms since 1970.
        wall_ms: i64,
    },
    /// The replica wants the primary to hand its role over to it.
    TakeOver,
}

/// A control message from a primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromPrimary {
    /// The first message.
    Welcome(Welcome),
    /// The offered position is not on the primary's history: where could the replica rewind to?
    AskPoints(DbName),
    /// Rewind to this common position, then offer it.
    Rewind(DbName, Pos),
    /// The primary has no such database.
    Unknown(DbName),
    /// A sign of life.
    Heartbeat {
        /// The primary's wall clock, ms since 1970.
        wall_ms: i64,
        /// How long ago the replica last had everything, in ms; `None`: never yet.
        lag_ms: Option<u64>,
    },
    /// The connection is over.
    Goodbye(Close),
    /// Why the role is not handed over.
    NoTakeOver(String),
    /// Put what has been applied on disk now, and acknowledge it.
    Sync,
}

/// What a frame on a database stream holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// Follows the base.
    Record,
    /// Replaces whatever the replica has.
    Snapshot,
}

/// The header of a frame on a database stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamFrame {
    /// What follows.
    pub kind: RecordKind,
    /// Its length in bytes.
    pub len: u64,
    /// The replica's position that the primary knows to be on its history; zero if none.
    pub base: Pos,
    /// The position after it.
    pub pos: Pos,
}

impl StreamFrame {
    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; STREAM_FRAME_LEN] {
        let mut out = [0; STREAM_FRAME_LEN];
        out[0] = match self.kind {
            RecordKind::Record => 1,
            RecordKind::Snapshot => 2,
        };
        out[1..9].copy_from_slice(&self.len.to_be_bytes());
        let positions = [self.base, self.pos].into_iter();
        let words = positions.flat_map(|pos| [pos.txid.get(), pos.checksum.get()]);
        for (word, place) in words.zip(out[9..].chunks_exact_mut(8)) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        out
    }

    /// Reads what [`StreamFrame::encode`] wrote.
    pub fn decode(bytes: &[u8; STREAM_FRAME_LEN]) -> Result<Self, WireError> {
        let mut r = Reader(bytes);
        let kind = match r.u8("record kind")? {
            1 => RecordKind::Record,
            2 => RecordKind::Snapshot,
            _ => return Err(WireError::Invalid("record kind")),
        };
        let len = r.u64("record length")?;
        if len == 0 {
            return Err(WireError::Invalid("record length"));
        }
        if len > MAX_RECORD {
            return Err(WireError::TooLong { what: "a record", len, max: MAX_RECORD });
        }
        let (base, pos) = (r.pos("base position")?, r.pos("record position")?);
        if pos.is_zero() || (kind == RecordKind::Record && base.txid >= pos.txid) {
            return Err(WireError::Invalid("record position"));
        }
        Ok(Self { kind, len, base, pos })
    }
}

/// Encodes the name that begins a database stream.
pub fn encode_stream_name(db: &DbName) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 + db.as_str().len());
    put_text(&mut out, db.as_str());
    out
}

/// Checks the length of the name that begins a database stream.
pub fn decode_stream_name_len(bytes: [u8; 2]) -> Result<usize, WireError> {
    let len = usize::from(u16::from_be_bytes(bytes));
    if len == 0 {
        return Err(WireError::Invalid("database name"));
    }
    if len > MAX_NAME {
        return Err(too_long("a database name", len, MAX_NAME));
    }
    Ok(len)
}

/// Reads the bytes of a database's name.
pub fn decode_name(bytes: &[u8]) -> Result<DbName, WireError> {
    let text = std::str::from_utf8(bytes).map_err(|_| WireError::Invalid("database name"))?;
    DbName::new(text).map_err(|_| WireError::Invalid("database name"))
}

/// Checks the length that begins a control frame.
pub fn decode_frame_len(bytes: [u8; 4]) -> Result<usize, WireError> {
    let len = u32::from_be_bytes(bytes) as usize;
    if len == 0 {
        return Err(WireError::Invalid("control frame"));
    }
    if len > MAX_FRAME {
        return Err(too_long("a control frame", len, MAX_FRAME));
    }
    Ok(len)
}

impl FromReplica {
    /// Appends the message as frames; lists that do not fit into one frame take several.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello(h) => frame(out, 1, |b| {
                b.extend_from_slice(&MAGIC);
                put_greeting(b, h.node, h.epoch, &h.cluster, &h.hostname);
                b.push(u8::from(h.may_lead));
            }),
            Self::Filter(names) => list(out, 2, names, |b, n| put_text(b, n.as_str())),
            Self::Offers(offers) => list(out, 3, offers, |b, o| {
                put_text(b, o.db.as_str());
                put_pos(b, o.pos);
                b.push(u8::from(o.snapshot));
            }),
            Self::Ready => frame(out, 4, |_| ()),
            Self::Points(db, points) => frame(out, 5, |b| {
                put_text(b, db.as_str());
                let points = &points[..points.len().min(MAX_POINTS)];
                b.extend_from_slice(&(points.len() as u16).to_be_bytes());
                points.iter().for_each(|p| put_pos(b, *p));
            }),
            Self::Acks(acks) => list(out, 6, acks, |b, a| {
                put_text(b, a.db.as_str());
                put_pos(b, a.applied);
                put_pos(b, a.synced);
            }),
            Self::Heartbeat { wall_ms } => {
                frame(out, 7, |b| b.extend_from_slice(&wall_ms.to_be_bytes()));
            }
            Self::TakeOver => frame(out, 8, |_| ()),
        }
    }

    /// Reads one frame (without its length).
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader(bytes);
        let message = match r.u8("message type")? {
            1 => Self::Hello(r.hello()?),
            2 => Self::Filter(r.list("filter", Reader::name)?),
            3 => Self::Offers(r.list("offers", Reader::offer)?),
            4 => Self::Ready,
            5 => {
                let db = r.name()?;
                let points = r.list("points", |r| r.pos("point"))?;
                if points.len() > MAX_POINTS {
                    return Err(too_long("a list of points", points.len(), MAX_POINTS));
                }
                Self::Points(db, points)
            }
            6 => Self::Acks(r.list("acks", Reader::ack)?),
            7 => Self::Heartbeat { wall_ms: r.i64("wall clock")? },
            8 => Self::TakeOver,
            _ => return Err(WireError::Invalid("message type")),
        };
        r.end()?;
        Ok(message)
    }
}

impl FromPrimary {
    /// Appends the message as one frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Welcome(w) => {
                frame(out, 65, |b| put_greeting(b, w.node, w.epoch, &w.cluster, &w.hostname));
            }
            Self::AskPoints(db) => frame(out, 66, |b| put_text(b, db.as_str())),
            Self::Rewind(db, to) => frame(out, 67, |b| {
                put_text(b, db.as_str());
                put_pos(b, *to);
            }),
            Self::Unknown(db) => frame(out, 68, |b| put_text(b, db.as_str())),
            Self::Heartbeat { wall_ms, lag_ms } => frame(out, 69, |b| {
                b.extend_from_slice(&wall_ms.to_be_bytes());
                b.extend_from_slice(&lag_ms.unwrap_or(NEVER_IN_SYNC).to_be_bytes());
            }),
            Self::Goodbye(close) => frame(out, 70, |b| {
                b.extend_from_slice(&(close.reason.code() as u16).to_be_bytes());
                put_text(b, &close.text);
            }),
            Self::NoTakeOver(why) => frame(out, 71, |b| put_text(b, why)),
            Self::Sync => frame(out, 72, |_| ()),
        }
    }

    /// Reads one frame (without its length).
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader(bytes);
        let message = match r.u8("message type")? {
            65 => Self::Welcome(r.welcome()?),
            66 => Self::AskPoints(r.name()?),
            67 => Self::Rewind(r.name()?, r.pos("rewind position")?),
            68 => Self::Unknown(r.name()?),
            69 => {
                let wall_ms = r.i64("wall clock")?;
                let lag = r.u64("lag")?;
                Self::Heartbeat { wall_ms, lag_ms: (lag != NEVER_IN_SYNC).then_some(lag) }
            }
            70 => {
                let reason = Reason::from_code(r.u16("reason")?.into());
                let reason = reason.ok_or(WireError::Invalid("reason"))?;
                Self::Goodbye(Close::new(reason, r.text("goodbye")?))
            }
            71 => Self::NoTakeOver(r.text("refusal")?),
            72 => Self::Sync,
            _ => return Err(WireError::Invalid("message type")),
        };
        r.end()?;
        Ok(message)
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.push(kind);
    body(out);
    let len = out.len() - start - 4;
    assert!(len <= MAX_FRAME, "BUG: control frame of {len} bytes");
    out[start..start + 4].copy_from_slice(&(len as u32).to_be_bytes());
}

/// Writes items into as many frames as they need.
fn list<T>(out: &mut Vec<u8>, kind: u8, items: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    // No item is longer than a name and two positions.
    const PER_FRAME: usize = (MAX_FRAME - 3) / (2 + MAX_NAME + 32);
    for chunk in items.chunks(PER_FRAME) {
        frame(out, kind, |b| {
            b.extend_from_slice(&(chunk.len() as u16).to_be_bytes());
            chunk.iter().for_each(|item| put(b, item));
        });
    }
}

fn put_greeting(out: &mut Vec<u8>, node: u64, epoch: u64, cluster: &str, hostname: &str) {
    out.extend_from_slice(&VERSION.to_be_bytes());
    out.extend_from_slice(&node.to_be_bytes());
    out.extend_from_slice(&epoch.to_be_bytes());
    put_text(out, cluster);
    put_text(out, hostname);
}

/// So much of a text as fits into `max` bytes.
pub(crate) fn truncated(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let text = truncated(text, MAX_TEXT);
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

pub(crate) fn put_pos(out: &mut Vec<u8>, pos: Pos) {
    out.extend_from_slice(&pos.txid.get().to_be_bytes());
    out.extend_from_slice(&pos.checksum.get().to_be_bytes());
}

fn too_long(what: &'static str, len: usize, max: usize) -> WireError {
    WireError::TooLong { what, len: len as u64, max: max as u64 }
}

/// Reads what `put_pos` wrote.
pub(crate) fn decode_pos(bytes: &[u8; POS_LEN]) -> Result<Pos, WireError> {
    Reader(bytes).pos("position")
}

/// Takes fields off the front of a frame.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], WireError> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(WireError::Short(what))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], WireError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(WireError::Short(what))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self, what: &'static str) -> Result<u8, WireError> {
        self.array::<1>(what).map(|b| b[0])
    }

    fn u16(&mut self, what: &'static str) -> Result<u16, WireError> {
        self.array(what).map(u16::from_be_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, WireError> {
        self.array(what).map(u64::from_be_bytes)
    }

    fn i64(&mut self, what: &'static str) -> Result<i64, WireError> {
        self.array(what).map(i64::from_be_bytes)
    }

    fn pos(&mut self, what: &'static str) -> Result<Pos, WireError> {
        let txid = Txid::new(self.u64(what)?);
        let checksum = Checksum::from_raw(self.u64(what)?);
        // A real checksum has its flag set; only the zero position has none.
        if txid.is_zero() != checksum.is_none() || (!txid.is_zero() && !checksum.is_valid()) {
            return Err(WireError::Invalid(what));
        }
        Ok(Pos::new(txid, checksum))
    }

    fn name(&mut self) -> Result<DbName, WireError> {
        let len = decode_stream_name_len(self.array("database name")?)?;
        decode_name(self.bytes(len, "database name")?)
    }

    fn text(&mut self, what: &'static str) -> Result<String, WireError> {
        let len = usize::from(self.u16(what)?);
        if len > MAX_TEXT {
            return Err(too_long(what, len, MAX_TEXT));
        }
        let text =
            std::str::from_utf8(self.bytes(len, what)?).map_err(|_| WireError::Invalid(what))?;
        // These texts reach logs and terminals.
        if text.chars().any(char::is_control) {
            return Err(WireError::Invalid(what));
        }
        Ok(text.to_owned())
    }

    /// Reads a counted list. Each item takes at least 3 bytes, so a count is never trusted
    /// beyond what the frame can hold.
    fn list<T>(
        &mut self,
        what: &'static str,
        item: impl Fn(&mut Self) -> Result<T, WireError>,
    ) -> Result<Vec<T>, WireError> {
        let count = usize::from(self.u16(what)?);
        if count > self.0.len() / 3 {
            return Err(WireError::Short(what));
        }
        (0..count).map(|_| item(self)).collect()
    }

    fn offer(&mut self) -> Result<Offer, WireError> {
        let (db, pos) = (self.name()?, self.pos("offered position")?);
        Ok(Offer { db, pos, snapshot: self.flag("offer flag")? })
    }

    fn flag(&mut self, what: &'static str) -> Result<bool, WireError> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::Invalid(what)),
        }
    }

    fn ack(&mut self) -> Result<Ack, WireError> {
        let db = self.name()?;
        let (applied, synced) = (self.pos("applied position")?, self.pos("synced position")?);
        Ok(Ack { db, applied, synced })
    }

    fn hello(&mut self) -> Result<Hello, WireError> {
        if self.array::<4>("magic").ok() != Some(MAGIC) {
            return Err(WireError::NotLitefs);
        }
        self.version()?;
        let (node, epoch) = (self.u64("node id")?, self.u64("epoch")?);
        Ok(Hello {
            node,
            epoch,
            cluster: self.text("cluster id")?,
            hostname: self.text("hostname")?,
            may_lead: self.flag("candidate flag")?,
        })
    }

    fn welcome(&mut self) -> Result<Welcome, WireError> {
        self.version()?;
        let (node, epoch) = (self.u64("node id")?, self.u64("epoch")?);
        Ok(Welcome {
            node,
            epoch,
            cluster: self.text("cluster id")?,
            hostname: self.text("hostname")?,
        })
    }

    fn version(&mut self) -> Result<(), WireError> {
        match self.u16("version")? {
            VERSION => Ok(()),
            other => Err(WireError::Version(other)),
        }
    }

    fn end(&self) -> Result<(), WireError> {
        if self.0.is_empty() { Ok(()) } else { Err(WireError::Trailing(self.0.len())) }
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
