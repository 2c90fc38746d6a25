//! What a node has on its disk: either the real store on a simulated disk, or, for speed, lists of
//! positions that behave as the store does.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use litefs_store::{Checksum, Clock, DbName, Pos, Relation};

use super::chance::{DriftClock, Random};
use crate::replication::primary::History;
use crate::replication::replica::Local;
use crate::replication::wire::RecordKind;

/// How a node's process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The process is killed: what it wrote is there.
    Kill,
    /// The machine loses power: what was not synced may be gone.
    PowerLoss,
}

/// A record on its way.
#[derive(Debug, Clone)]
pub enum Payload {
    /// The transactions in it, oldest first; for a snapshot the whole line.
    Line(Rc<[Entry]>),
    /// The record.
    Bytes(Rc<[u8]>),
}

/// A record with the positions that it leads from and to.
#[derive(Debug, Clone)]
pub struct Record {
    pub base: Pos,
    pub pos: Pos,
    pub payload: Payload,
}

/// Why records cannot be read, or not be gone back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The log does not reach back.
    Gone,
    /// Not on this history.
    Mismatch,
}

/// A node's databases and what else it keeps.
pub trait Disk {
    fn databases(&self) -> Vec<DbName>;
    fn pos(&self, db: &DbName) -> Pos;
    fn synced(&self, db: &DbName) -> Pos;
    fn relation(&self, db: &DbName, pos: Pos) -> Result<Relation, String>;
    fn cluster(&self) -> Option<String>;
    fn set_cluster(&mut self, cluster: &str);
    fn epoch(&self) -> u64;
    fn set_epoch(&mut self, epoch: u64);
    /// Opens the gate until that time of the node's clock; zero closes it.
    fn open_until(&mut self, deadline: Duration);
    fn is_open(&self) -> bool;
    /// Begins a transaction and appends its record; false if the gate is closed.
    fn prepare(&mut self, db: &DbName, random: &mut Random, is_full: bool) -> bool;
    /// Syncs if it is to, and asks the gate again; false if it is closed.
    fn sync_prepared(&mut self, db: &DbName) -> bool;
    fn publish(&mut self, db: &DbName) -> Pos;
    fn take_back(&mut self, db: &DbName);
    /// True if a record is appended and not published yet.
    fn is_prepared(&self, db: &DbName) -> bool;
    /// What the background does: syncs, and moves what it can out of the log.
    fn sync(&mut self, db: &DbName);
    fn cut_log(&mut self, db: &DbName);
    fn records(&self, db: &DbName, after: Pos) -> Result<Vec<Record>, Missing>;
    fn compacted(&self, db: &DbName, after: Pos) -> Result<Record, Missing>;
    fn snapshot(&self, db: &DbName) -> Record;
    /// The record's position, or why it was refused.
    fn apply(&mut self, db: &DbName, kind: RecordKind, record: &Record) -> Result<Pos, String>;
    fn preserve(&mut self, db: &DbName, common: Option<Pos>);
    fn rewind(&mut self, db: &DbName, to: Pos) -> Result<(), Missing>;
    fn points(&self, db: &DbName) -> Vec<Pos>;
    /// True if the newest record was committed by another node.
    fn is_newest_foreign(&self, db: &DbName) -> bool;
    /// What was preserved: ends of ranges, each with the position before it.
    fn kept(&self) -> Vec<(DbName, Pos, Pos)>;
    /// The same disk after a crash.
    fn restart(self: Box<Self>, crash: Crash, random: &mut Random) -> Box<dyn Disk>;
}

/// A disk as the replication machines see it.
pub struct Data {
    pub disk: Box<dyn Disk>,
    pub node: u64,
}

impl History for Data {
    fn databases(&self) -> Vec<DbName> {
        self.disk.databases()
    }

    fn newest(&self, db: &DbName) -> Option<Pos> {
        Some(self.disk.pos(db)).filter(|pos| !pos.is_zero())
    }

    fn relation(&self, db: &DbName, pos: Pos) -> Result<Relation, String> {
        self.disk.relation(db, pos)
    }
}

impl Local for Data {
    fn node(&self) -> u64 {
        self.node
    }

    fn cluster(&self) -> String {
        self.disk.cluster().unwrap_or_default()
    }

    fn epoch(&self) -> u64 {
        self.disk.epoch()
    }

    fn databases(&self) -> Vec<DbName> {
        self.disk.databases()
    }

    fn positions(&self, db: &DbName) -> (Pos, Pos) {
        (self.disk.pos(db), self.disk.synced(db))
    }

    fn is_damaged(&self, _: &DbName) -> bool {
        false
    }
}

/// A transaction's record in a list.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    pos: Pos,
    /// 0 where it is not known: in a snapshot.
    author: u64,
}

#[derive(Debug, Default, Clone)]
struct Line {
    entries: Vec<Entry>,
    /// Entries before this index are not in the log any more.
    start: usize,
    /// How many entries are on disk for sure.
    synced: usize,
    prepared: Option<(Pos, bool)>,
}

/// Databases as lists.
pub struct Lists {
    node: u64,
    clock: Arc<DriftClock>,
    lines: BTreeMap<DbName, Line>,
    kept: Vec<(DbName, Pos, Pos)>,
    cluster: Option<String>,
    epoch: u64,
    gate: Duration,
}

impl Lists {
    pub fn new(node: u64, clock: Arc<DriftClock>) -> Self {
        let gate = Duration::ZERO;
        let (lines, kept) = (BTreeMap::new(), Vec::new());
        Self { node, clock, lines, kept, cluster: None, epoch: 0, gate }
    }

    fn line(&self, db: &DbName) -> &[Entry] {
        self.lines.get(db).map_or(&[], |line| &line.entries)
    }

    fn log(&self, db: &DbName) -> &[Entry] {
        self.lines.get(db).map_or(&[], |line| &line.entries[line.start..])
    }

    fn place(&self, db: &DbName, pos: Pos) -> Option<usize> {
        if pos.is_zero() {
            return Some(0);
        }
        self.line(db).iter().position(|entry| entry.pos == pos).map(|at| at + 1)
    }
}

impl Disk for Lists {
    fn databases(&self) -> Vec<DbName> {
        self.lines.iter().filter(|(_, l)| !l.entries.is_empty()).map(|(db, _)| db.clone()).collect()
    }

    fn pos(&self, db: &DbName) -> Pos {
        self.line(db).last().map(|entry| entry.pos).unwrap_or_default()
    }

    fn synced(&self, db: &DbName) -> Pos {
        let Some(line) = self.lines.get(db) else { return Pos::ZERO };
        line.synced.checked_sub(1).map(|at| line.entries[at].pos).unwrap_or_default()
    }

    fn relation(&self, db: &DbName, pos: Pos) -> Result<Relation, String> {
        let log = self.log(db);
        let is_whole = self.lines.get(db).is_none_or(|line| line.start == 0);
        let before_log = log.first().map_or(0, |entry| entry.pos.txid.get());
        Ok(match () {
            () if pos == self.pos(db) => Relation::Current,
            () if pos.is_zero() && is_whole => Relation::Behind,
            () if pos.txid.get() < before_log => Relation::TooOld,
            () if log.iter().any(|entry| entry.pos == pos) => Relation::Behind,
            () => Relation::Diverged,
        })
    }

    fn cluster(&self) -> Option<String> {
        self.cluster.clone()
    }

    fn set_cluster(&mut self, cluster: &str) {
        let known = self.cluster.get_or_insert_with(|| cluster.to_owned());
        assert_eq!(known, cluster, "a node never changes its cluster");
    }

    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn set_epoch(&mut self, epoch: u64) {
        self.epoch = self.epoch.max(epoch);
    }

    fn open_until(&mut self, deadline: Duration) {
        self.gate = deadline;
    }

    fn is_open(&self) -> bool {
        self.clock.now() < self.gate
    }

    fn prepare(&mut self, db: &DbName, random: &mut Random, is_full: bool) -> bool {
        if !self.is_open() {
            return false;
        }
        let checksum = Checksum::from_raw(Checksum::FLAG | random.next());
        let pos = Pos::new(self.pos(db).txid.next(), checksum);
        self.lines.entry(db.clone()).or_default().prepared = Some((pos, is_full));
        true
    }

    fn sync_prepared(&mut self, db: &DbName) -> bool {
        self.is_prepared(db) && self.is_open()
    }

    fn publish(&mut self, db: &DbName) -> Pos {
        let line = self.lines.get_mut(db).expect("prepared");
        let (pos, is_full) = line.prepared.take().expect("prepared");
        line.entries.push(Entry { pos, author: self.node });
        if is_full {
            line.synced = line.entries.len();
        }
        pos
    }

    fn take_back(&mut self, db: &DbName) {
        if let Some(line) = self.lines.get_mut(db) {
            line.prepared = None;
        }
    }

    fn is_prepared(&self, db: &DbName) -> bool {
        self.lines.get(db).is_some_and(|line| line.prepared.is_some())
    }

    fn sync(&mut self, db: &DbName) {
        if let Some(line) = self.lines.get_mut(db) {
            line.synced = line.entries.len();
        }
    }

    fn cut_log(&mut self, db: &DbName) {
        if let Some(line) = self.lines.get_mut(db) {
            line.synced = line.entries.len();
            line.start = line.entries.len().saturating_sub(1);
        }
    }

    fn records(&self, db: &DbName, after: Pos) -> Result<Vec<Record>, Missing> {
        match self.relation(db, after) {
            Ok(Relation::Current | Relation::Behind) => (),
            Ok(Relation::TooOld) => return Err(Missing::Gone),
            _ => return Err(Missing::Mismatch),
        }
        let from = self.place(db, after).ok_or(Missing::Mismatch)?;
        let mut base = after;
        let records = self.line(db)[from..].iter().map(|entry| {
            let base = std::mem::replace(&mut base, entry.pos);
            Record { base, pos: entry.pos, payload: Payload::Line(Rc::new([*entry])) }
        });
        Ok(records.collect())
    }

    fn compacted(&self, db: &DbName, after: Pos) -> Result<Record, Missing> {
        let from = self.records(db, after).map(|_| self.place(db, after))?;
        let line = &self.line(db)[from.unwrap_or(0)..];
        let line = line.iter().map(|entry| Entry { author: 0, ..*entry }).collect();
        Ok(Record { base: after, pos: self.pos(db), payload: Payload::Line(line) })
    }

    fn snapshot(&self, db: &DbName) -> Record {
        let line = self.line(db).iter().map(|entry| Entry { author: 0, ..*entry }).collect();
        Record { base: Pos::ZERO, pos: self.pos(db), payload: Payload::Line(line) }
    }

    fn apply(&mut self, db: &DbName, kind: RecordKind, record: &Record) -> Result<Pos, String> {
        let Payload::Line(new) = &record.payload else { return Err("not a list".into()) };
        let here = self.pos(db);
        let line = self.lines.entry(db.clone()).or_default();
        match kind {
            RecordKind::Record if record.base != here => {
                return Err(format!("a record after {} at {here}", record.base));
            }
            RecordKind::Record => line.entries.extend_from_slice(new),
            RecordKind::Snapshot => {
                line.entries = new.to_vec();
                line.start = line.entries.len().saturating_sub(1);
                line.synced = line.entries.len();
            }
        }
        Ok(self.pos(db))
    }

    fn preserve(&mut self, db: &DbName, common: Option<Pos>) {
        let range = (db.clone(), common.unwrap_or_default(), self.pos(db));
        if !self.kept.contains(&range) {
            self.kept.push(range);
        }
    }

    fn rewind(&mut self, db: &DbName, to: Pos) -> Result<(), Missing> {
        let place = self.place(db, to).ok_or(Missing::Gone)?;
        let line = self.lines.get_mut(db).ok_or(Missing::Gone)?;
        if place < line.start + 1 {
            return Err(Missing::Gone);
        }
        line.entries.truncate(place);
        line.synced = line.synced.min(place);
        Ok(())
    }

    fn points(&self, db: &DbName) -> Vec<Pos> {
        let mut points = Vec::new();
        let log = self.log(db);
        let (mut back, mut step) = (0, 1);
        while back < log.len() && points.len() < 64 {
            points.push(log[log.len() - 1 - back].pos);
            back += step;
            if points.len() % 8 == 0 {
                step *= 2;
            }
        }
        points
    }

    fn is_newest_foreign(&self, db: &DbName) -> bool {
        let author = self.line(db).last().map_or(0, |entry| entry.author);
        ![0, self.node].contains(&author)
    }

    fn kept(&self) -> Vec<(DbName, Pos, Pos)> {
        self.kept.clone()
    }

    fn restart(mut self: Box<Self>, crash: Crash, random: &mut Random) -> Box<dyn Disk> {
        for line in self.lines.values_mut() {
            // The record of an unfinished commit is in the log.
            if let Some((pos, _)) = line.prepared.take() {
                line.entries.push(Entry { pos, author: self.node });
            }
            if crash == Crash::PowerLoss {
                let unsynced = line.entries.len() - line.synced;
                let left = line.synced + random.index(unsynced + 1);
                line.entries.truncate(left);
                line.start = line.start.min(left.saturating_sub(1));
            }
            line.synced = line.synced.min(line.entries.len());
        }
        self.lines.retain(|_, line| !line.entries.is_empty());
        self.gate = Duration::ZERO;
        self
    }
}
