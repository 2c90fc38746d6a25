//! A primary and replicas in virtual time: the two state machines against each other, over a
//! network that delays, reorders between streams and breaks, with stores that are lists of
//! positions. Each seed is one run; the same seed gives the same run.
//!
//! What must hold, whatever happens on the way: a replica's content is always a prefix of some
//! history; what the primary does not have is kept before it is overwritten; and once the faults
//! end, every replica gets to the primary's positions and knows that it is in sync.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashSet};
use std::rc::Rc;
use std::time::Duration;

use litefs_store::sim::Rng;
use litefs_store::{Checksum, DbName, Pos, Relation, Txid};

use super::primary::{History, Identity, Outcome, Peer, Task, Work, is_far_behind};
use super::replica::{Action, Local, Upstream, must_preserve};
use super::wire::{Close, FromPrimary, FromReplica, Offer, Reason, RecordKind};
use super::wire::{StreamFrame, StreamReset};

const DBS: u64 = 5;
const REPLICAS: usize = 3;
/// Faults happen until here.
const CALM: Duration = Duration::from_secs(30);
/// The longest waits (30 s for a database in trouble) are over by then.
const END: Duration = Duration::from_secs(75);

/// A store whose databases are the positions that they went through.
#[derive(Default)]
struct Store {
    lines: BTreeMap<DbName, Vec<Pos>>,
    /// Positions before this index are not in the log any more.
    starts: BTreeMap<DbName, usize>,
    kept: HashSet<(DbName, Pos)>,
}

impl Store {
    fn pos(&self, db: &DbName) -> Pos {
        self.lines.get(db).and_then(|line| line.last().copied()).unwrap_or_default()
    }

    fn commit(&mut self, db: &DbName, random: &mut Rng) -> Pos {
        let checksum = Checksum::from_raw(Checksum::FLAG | random.number());
        let pos = Pos::new(self.pos(db).txid.next(), checksum);
        self.lines.entry(db.clone()).or_default().push(pos);
        pos
    }

    fn log(&self, db: &DbName) -> &[Pos] {
        let start = self.starts.get(db).copied().unwrap_or(0);
        self.lines.get(db).map_or(&[], |line| &line[start..])
    }

    fn cut_log(&mut self, db: &DbName) {
        if let Some(line) = self.lines.get(db) {
            self.starts.insert(db.clone(), line.len() - 1);
        }
    }

    fn keep_after(&mut self, db: &DbName, common: Option<Pos>) {
        let line = self.lines.get(db).cloned().unwrap_or_default();
        let from = line.iter().position(|pos| Some(*pos) == common).map_or(0, |i| i + 1);
        self.kept.extend(line[from..].iter().map(|pos| (db.clone(), *pos)));
    }
}

impl History for Store {
    fn databases(&self) -> Vec<DbName> {
        self.lines.keys().cloned().collect()
    }

    fn newest(&self, db: &DbName) -> Option<Pos> {
        Some(self.pos(db)).filter(|pos| !pos.is_zero())
    }

    fn relation(&self, db: &DbName, pos: Pos) -> Result<Relation, String> {
        let newest = self.pos(db);
        let oldest = self.log(db).first().copied().unwrap_or_default();
        Ok(match () {
            () if pos == newest => Relation::Current,
            () if pos.txid < oldest.txid => Relation::TooOld,
            () if self.log(db).contains(&pos) => Relation::Behind,
            () => Relation::Diverged,
        })
    }
}

/// A replica's store and machine, and its side of the connection.
struct Replica {
    store: Store,
    upstream: Upstream,
    node: u64,
    /// The present connection; frames and messages of others are lost.
    link: u64,
    connected: bool,
    /// The newest stream of each database, and whether it has been left; older ones have been.
    streams: BTreeMap<DbName, (u64, bool)>,
    /// Databases that are served to nobody until a snapshot replaces them.
    damaged: HashSet<DbName>,
    /// How often a snapshot has done so.
    repairs: u64,
    /// Databases whose streams were left for damage, on this connection: the offer that follows may
    /// cross the answer to the one before, and a record then not follow. That ends the connection.
    halted: HashSet<DbName>,
}

impl Replica {
    /// Something of this stream arrived; false if it has been left.
    fn reads(&mut self, db: &DbName, stream: u64) -> bool {
        let newest = self.streams.entry(db.clone()).or_insert((stream, false));
        if stream > newest.0 {
            *newest = (stream, false);
        }
        *newest == (stream, false)
    }

    /// Leaves the stream of a database that is read now.
    fn leave_stream(&mut self, db: &DbName) {
        if let Some((_, is_left)) = self.streams.get_mut(db) {
            *is_left = true;
        }
    }
}

impl Local for Replica {
    fn node(&self) -> u64 {
        self.node
    }

    fn cluster(&self) -> String {
        "C".into()
    }

    fn epoch(&self) -> u64 {
        1
    }

    fn databases(&self) -> Vec<DbName> {
        History::databases(&self.store)
    }

    fn positions(&self, db: &DbName) -> (Pos, Pos) {
        (self.store.pos(db), self.store.pos(db))
    }

    fn is_damaged(&self, db: &DbName) -> bool {
        self.damaged.contains(db)
    }
}

enum Happening {
    ToPrimary(Vec<u8>),
    ToReplica(Vec<u8>),
    Frame(DbName, u64, StreamFrame, Rc<[Pos]>),
    Reset(DbName, u64, StreamReset),
    Sent(DbName, Outcome),
    /// The driver hears that a database was found damaged.
    Damage(DbName),
    Poll,
    Cut,
}

struct World {
    random: Rng,
    now: Duration,
    count: u64,
    agenda: BinaryHeap<Reverse<(Duration, u64)>>,
    happenings: BTreeMap<u64, (usize, u64, Happening)>,
    primary: Store,
    replicas: Vec<Replica>,
    peers: Vec<Option<Peer>>,
    /// Streams by replica and database: the number of the open one, and when the last frame, or the
    /// reset, arrives.
    lines: BTreeMap<(usize, DbName), (Option<u64>, Duration)>,
    /// When the last control message arrives, by replica, each way.
    control: Vec<[Duration; 2]>,
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn db(i: u64) -> DbName {
    DbName::new(&format!("db{i}")).unwrap()
}

impl World {
    fn new(seed: u64) -> Self {
        let replica = |i: usize| Replica {
            store: Store::default(),
            upstream: Upstream::new(format!("r{i}"), true, ms(50), seed + i as u64),
            node: 10 + i as u64,
            link: 0,
            connected: false,
            streams: BTreeMap::new(),
            damaged: HashSet::new(),
            repairs: 0,
            halted: HashSet::new(),
        };
        Self {
            random: Rng::new(seed),
            now: Duration::ZERO,
            count: 0,
            agenda: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            primary: Store::default(),
            replicas: (0..REPLICAS).map(replica).collect(),
            peers: (0..REPLICAS).map(|_| None).collect(),
            lines: BTreeMap::new(),
            control: vec![[Duration::ZERO; 2]; REPLICAS],
        }
    }

    fn run(&mut self) {
        for i in 0..REPLICAS {
            self.plan(i, self.now, Happening::Poll);
            self.plan(i, ms(500), Happening::Cut);
        }
        let mut commits = ms(1);
        while let Some(Reverse((at, id))) = self.agenda.pop() {
            if at > END {
                break;
            }
            while commits < at && commits < CALM {
                self.now = commits;
                self.commit();
                commits += ms(1 + self.random.below(60));
            }
            self.now = at;
            let (i, link, happening) = self.happenings.remove(&id).expect("planned");
            if link == self.replicas[i].link {
                self.happen(i, happening);
                self.pump(i);
            }
        }
    }

    fn plan(&mut self, i: usize, at: Duration, happening: Happening) {
        self.count += 1;
        self.agenda.push(Reverse((at, self.count)));
        self.happenings.insert(self.count, (i, self.replicas[i].link, happening));
    }

    fn delay(&mut self) -> Duration {
        ms(if self.random.one_in(20) { self.random.below(300) } else { self.random.below(4) })
    }

    fn commit(&mut self) {
        let name = db(self.random.below(DBS));
        let pos = self.primary.commit(&name, &mut self.random);
        for peer in self.peers.iter_mut().flatten() {
            peer.handle_commit(self.now, &name, pos, &self.primary);
        }
        if self.random.one_in(30) {
            self.primary.cut_log(&name);
        }
        if self.random.one_in(100) {
            let i = self.random.below(REPLICAS as u64) as usize;
            self.damage(i);
        }
        (0..REPLICAS).for_each(|i| self.pump(i));
    }

    fn happen(&mut self, i: usize, happening: Happening) {
        match happening {
            Happening::ToPrimary(bytes) => {
                let message = FromReplica::decode(&bytes[4..]).unwrap();
                if let Some(peer) = &mut self.peers[i] {
                    peer.handle_message(self.now, message, &self.primary);
                }
            }
            Happening::ToReplica(bytes) => {
                let message = FromPrimary::decode(&bytes[4..]).unwrap();
                self.with_upstream(i, |up, local, now| up.handle_message(now, message, local));
            }
            Happening::Frame(name, stream, frame, line) => {
                self.take_frame(i, &name, stream, frame, line);
            }
            Happening::Reset(name, stream, reset) => {
                let replica = &mut self.replicas[i];
                if replica.reads(&name, stream) {
                    replica.leave_stream(&name);
                    replica.upstream.handle_reset(self.now, &name, reset);
                }
            }
            Happening::Damage(name) => {
                let replica = &mut self.replicas[i];
                if !replica.upstream.awaits_snapshot(&name) {
                    replica.leave_stream(&name);
                    replica.upstream.handle_trouble(self.now, &name, false);
                    replica.halted.insert(name);
                }
            }
            Happening::Sent(name, outcome) => {
                if let Some(peer) = &mut self.peers[i] {
                    peer.handle_outcome(self.now, &name, outcome, &self.primary);
                }
            }
            Happening::Poll => self.poll(i),
            Happening::Cut => self.cut(i),
        }
    }

    fn with_upstream<T>(
        &mut self,
        i: usize,
        act: impl FnOnce(&mut Upstream, &Replica, Duration) -> T,
    ) -> T {
        let spare = Upstream::new(String::new(), true, ms(1), 0);
        let mut upstream = std::mem::replace(&mut self.replicas[i].upstream, spare);
        let result = act(&mut upstream, &self.replicas[i], self.now);
        self.replicas[i].upstream = upstream;
        result
    }

    fn poll(&mut self, i: usize) {
        let now = self.now;
        if self.replicas[i].upstream.poll_dial(now) {
            self.replicas[i].connected = true;
            self.replicas[i].upstream.handle_connected(now);
            let identity =
                Identity { node: 1, epoch: 1, cluster: "C".into(), hostname: "p".into() };
            self.peers[i] = Some(Peer::new(identity, now));
        }
        if let Some(peer) = &mut self.peers[i] {
            peer.handle_timeout(now, &self.primary);
        }
        self.plan(i, now + ms(40), Happening::Poll);
    }

    /// Breaks the connection; meanwhile the replica may commit by itself.
    fn cut(&mut self, i: usize) {
        self.disconnect(i, None);
        if self.now > CALM {
            return;
        }
        if self.random.one_in(3) {
            for _ in 0..=self.random.below(3) {
                let name = db(self.random.below(DBS));
                self.replicas[i].store.commit(&name, &mut self.random);
            }
        }
        if self.random.one_in(3) {
            let name = db(self.random.below(DBS));
            self.replicas[i].store.cut_log(&name);
        }
        let next = self.now + ms(self.random.below(6000));
        self.plan(i, next, Happening::Cut);
    }

    fn disconnect(&mut self, i: usize, reason: Option<Reason>) {
        let now = self.now;
        self.peers[i] = None;
        self.lines.retain(|(replica, _), _| *replica != i);
        let replica = &mut self.replicas[i];
        replica.link += 1;
        replica.streams.clear();
        replica.halted.clear();
        if std::mem::take(&mut replica.connected) {
            replica.upstream.handle_closed(now, reason);
        }
        self.control[i] = [now; 2];
        self.plan(i, now, Happening::Poll);
        if now < CALM {
            let next = now + ms(self.random.below(6000));
            self.plan(i, next, Happening::Cut);
        }
    }

    /// Does what both machines of a connection want.
    fn pump(&mut self, i: usize) {
        if !self.replicas[i].connected {
            return;
        }
        let now = self.now;
        let closing = self.replicas[i].upstream.poll_close(now).cloned();
        if let Some(Close { reason, text }) = closing {
            assert!(matches!(reason, Reason::Timeout | Reason::BadRecord), "{text}");
            return self.disconnect(i, Some(reason));
        }
        while let Some(action) = self.replicas[i].upstream.poll_action() {
            self.act(i, action);
        }
        while let Some(message) =
            self.with_upstream(i, |up, local, now| up.poll_message(now, 0, local))
        {
            self.send_to_primary(i, &message);
        }
        let Some(mut peer) = self.peers[i].take() else { return };
        if let Some(close) = peer.poll_close() {
            assert_eq!(close.reason, Reason::Timeout, "{}", close.text);
            let reason = close.reason;
            return self.disconnect(i, Some(reason));
        }
        while let Some(message) = peer.poll_message(now, 0) {
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            let at = self.arrival(i, 1);
            self.plan(i, at, Happening::ToReplica(bytes));
        }
        while let Some(work) = peer.poll_work() {
            self.work(i, work);
        }
        self.peers[i] = Some(peer);
    }

    fn send_to_primary(&mut self, i: usize, message: &FromReplica) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        if !bytes.is_empty() {
            let at = self.arrival(i, 0);
            self.plan(i, at, Happening::ToPrimary(bytes));
        }
    }

    /// Control messages arrive in order.
    fn arrival(&mut self, i: usize, way: usize) -> Duration {
        let at = (self.now + self.delay()).max(self.control[i][way]);
        self.control[i][way] = at;
        at
    }

    /// A reader finds damage; the driver hears of it a moment later.
    fn damage(&mut self, i: usize) {
        let name = db(self.random.below(DBS));
        let replica = &mut self.replicas[i];
        if !replica.store.pos(&name).is_zero() && replica.damaged.insert(name.clone()) {
            let at = self.now + ms(self.random.below(3));
            self.plan(i, at, Happening::Damage(name));
        }
    }

    fn act(&mut self, i: usize, action: Action) {
        match action {
            Action::Join(_) => {
                if self.now < CALM && self.random.one_in(3) {
                    self.damage(i);
                }
                let replica = &self.replicas[i];
                let offers: Vec<Offer> = replica
                    .store
                    .databases()
                    .into_iter()
                    .map(|db| Offer {
                        pos: replica.store.pos(&db),
                        snapshot: replica.is_damaged(&db),
                        db,
                    })
                    .collect();
                self.replicas[i].upstream.handle_offered(&offers);
                self.send_to_primary(i, &FromReplica::Offers(offers));
                self.send_to_primary(i, &FromReplica::Ready);
            }
            Action::OfferPoints(db) => {
                let points = self.replicas[i].store.log(&db).iter().rev().take(8).copied();
                let points = FromReplica::Points(db.clone(), points.collect());
                self.send_to_primary(i, &points);
            }
            Action::Rewind(db, to) => {
                let now = self.now;
                let replica = &mut self.replicas[i];
                replica.leave_stream(&db);
                replica.store.keep_after(&db, Some(to));
                let line = replica.store.lines.entry(db.clone()).or_default();
                let common = line.iter().position(|pos| *pos == to).expect("an offered point");
                line.truncate(common + 1);
                replica.upstream.handle_reoffer(now, &db, false);
            }
            Action::Sync => {
                let all = self.replicas[i].store.databases();
                self.replicas[i].upstream.handle_synced(all);
            }
            Action::WarnUnknown(_) | Action::NoteInSync(_) | Action::NoTakeOver(_) => (),
        }
    }

    fn work(&mut self, i: usize, work: Work) {
        match work {
            Work::Finish(db) => {
                if let Some((stream, _)) = self.lines.get_mut(&(i, db)) {
                    *stream = None;
                }
            }
            Work::Reset(db) => self.reset(i, db, StreamReset::Superseded),
            Work::Send(db, task) => self.send(i, db, task),
        }
    }

    /// A reset overtakes frames: those that arrive later are lost.
    fn reset(&mut self, i: usize, db: DbName, reset: StreamReset) {
        let at = self.now + self.delay();
        if let Some((stream, last)) = self.lines.get_mut(&(i, db.clone())) {
            *last = at;
            if let Some(stream) = stream.take() {
                self.plan(i, at, Happening::Reset(db, stream, reset));
            }
        }
    }

    /// Sends what a real job would: frames one after the other, then the outcome.
    fn send(&mut self, i: usize, db: DbName, task: Task) {
        let line: Rc<[Pos]> = self.primary.lines[&db].as_slice().into();
        let newest = self.primary.pos(&db);
        let frame = |kind, base, pos| StreamFrame { kind, len: 1, base, pos };
        let after = |pos: Pos| line.iter().position(|p| *p == pos).map_or(0, |at| at + 1);
        let known = |pos| self.primary.relation(&db, pos) != Ok(Relation::TooOld);
        let (frames, outcome) = match task {
            Task::Records(pos) | Task::Compacted(pos) if !known(pos) => {
                (Vec::new(), Outcome::Gone(pos))
            }
            Task::Records(pos) if is_far_behind(pos.txid, newest.txid, || 1 << 30) => {
                (Vec::new(), Outcome::FarBehind(pos))
            }
            Task::Records(pos) => {
                let mut base = pos;
                let frames = line[after(pos)..].iter().map(|next| {
                    frame(RecordKind::Record, std::mem::replace(&mut base, *next), *next)
                });
                (frames.collect(), Outcome::Sent(newest))
            }
            Task::Compacted(pos) => {
                (vec![frame(RecordKind::Record, pos, newest)], Outcome::Sent(newest))
            }
            Task::Snapshot(known) => {
                (vec![frame(RecordKind::Snapshot, known, newest)], Outcome::Sent(newest))
            }
        };
        let fails = self.now < CALM && self.random.one_in(20);
        let (open, mut last) =
            self.lines.get(&(i, db.clone())).copied().unwrap_or((None, Duration::ZERO));
        let stream = open.unwrap_or(self.count);
        for frame in frames {
            last = last.max(self.now + self.delay());
            self.plan(i, last, Happening::Frame(db.clone(), stream, frame, line.clone()));
        }
        self.lines.insert((i, db.clone()), (Some(stream), last));
        let mut outcome = outcome;
        if fails {
            // The primary cannot read its database to the end of a frame.
            outcome = Outcome::Broken;
            self.reset(i, db.clone(), StreamReset::Failed);
        }
        let done = self.now + self.delay();
        self.plan(i, done, Happening::Sent(db, outcome));
    }

    fn take_frame(
        &mut self,
        i: usize,
        db: &DbName,
        stream: u64,
        frame: StreamFrame,
        line: Rc<[Pos]>,
    ) {
        let now = self.now;
        let is_trouble = now < CALM && self.random.one_in(40);
        let replica = &mut self.replicas[i];
        if !replica.reads(db, stream) {
            return;
        }
        let here = replica.store.pos(db);
        if is_trouble {
            // The disk is full; the stream is left.
            replica.leave_stream(db);
            return replica.upstream.handle_trouble(now, db, false);
        }
        if replica.damaged.contains(db) && frame.kind == RecordKind::Record {
            replica.leave_stream(db);
            return replica.upstream.handle_trouble(now, db, false);
        }
        let follows = frame.kind == RecordKind::Snapshot || frame.base == here;
        if !follows && replica.halted.contains(db) {
            let text = format!("{db} on replica {i} at {now:?}: {frame:?}");
            return replica.upstream.handle_end(Close::new(Reason::BadRecord, text));
        }
        let end = line.iter().position(|pos| *pos == frame.pos).expect("a position of ours");
        let theirs = replica.store.lines.entry(db.clone()).or_default();
        match frame.kind {
            RecordKind::Record => {
                assert_eq!(frame.base, here, "{db} on replica {i} at {now:?}: {frame:?}");
                theirs.extend_from_slice(&line[theirs.len()..=end]);
            }
            RecordKind::Snapshot => {
                if must_preserve(frame.base, here, || true) {
                    replica.store.keep_after(db, None);
                }
                let theirs = replica.store.lines.insert(db.clone(), line[..=end].to_vec());
                let was_damaged = replica.damaged.remove(db);
                replica.repairs += u64::from(was_damaged);
                let foreign = theirs.into_iter().flatten().filter(|pos| !line.contains(pos));
                for pos in foreign {
                    // What is damaged cannot be read to be kept.
                    let is_kept = replica.store.kept.contains(&(db.clone(), pos)) || was_damaged;
                    assert!(is_kept, "{db} on replica {i}: {pos} is overwritten and not kept");
                }
                replica.store.starts.insert(db.clone(), end);
            }
        }
        replica.upstream.handle_applied(db);
    }

    fn check_converged(&self, seed: u64) {
        for (i, replica) in self.replicas.iter().enumerate() {
            for (name, line) in &self.primary.lines {
                let ours = line.last().copied();
                let theirs = replica.store.lines.get(name).and_then(|l| l.last().copied());
                assert_eq!(theirs, ours, "seed {seed}: {name} on replica {i}");
            }
            assert!(replica.damaged.is_empty(), "seed {seed}: replica {i}: {:?}", replica.damaged);
            let lag = replica.upstream.lag(self.now);
            assert!(lag.is_some_and(|lag| lag < ms(2500)), "seed {seed}: replica {i}: {lag:?}");
            let peer = self.peers[i].as_ref().expect("connected at the end");
            assert_eq!(peer.unacknowledged(), 0, "seed {seed}: replica {i}");
        }
    }
}

#[test]
fn replicas_converge_and_lose_nothing_silently_whatever_the_network_does() {
    for seed in 0..40 {
        let mut world = World::new(seed);
        world.run();
        world.check_converged(seed);
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let trace = || {
        let mut world = World::new(7);
        world.run();
        (world.count, world.replicas[0].store.lines.clone())
    };
    assert_eq!(trace(), trace());
}

#[test]
fn the_runs_reach_every_kind_of_task() {
    // Kept transactions prove divergence; a log that begins late on a replica, a snapshot.
    let worlds: Vec<World> = (0..10)
        .map(|seed| {
            let mut world = World::new(seed);
            world.run();
            world
        })
        .collect();
    let replicas = || worlds.iter().flat_map(|world| &world.replicas);
    assert!(replicas().any(|r| !r.store.kept.is_empty()));
    assert!(replicas().any(|r| r.store.starts.values().any(|start| *start > 0)));
    assert!(replicas().any(|r| r.repairs > 0));
    assert!(replicas().all(|r| r.link > 3));
    let newest = Txid::new(100);
    assert!(worlds.iter().all(|w| w.primary.lines.values().any(|l| l.len() as u64 > newest.get())));
}
