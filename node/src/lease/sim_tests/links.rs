//! Replication between the nodes: the real machines of both sides over the simulated network.

use std::collections::BTreeMap;
use std::time::Duration;

use litefs_store::{DbName, Pos};

use super::chance::ms;
use super::data::{Missing, Record};
use super::net::{Net, Packet, Place, Way};
use super::world::{Event, World};
use crate::replication::primary::{Identity, Outcome, Peer, Task, Work, is_far_behind};
use crate::replication::replica::{Action, DIAL_TIMEOUT, Upstream, must_preserve};
use crate::replication::wire::{Close, FromReplica, Offer, Reason, RecordKind, Welcome};
use crate::replication::wire::{StreamFrame, StreamReset};

/// A node's side of the connection to its primary.
pub struct Following {
    pub target: Place,
    pub upstream: Upstream,
    /// Whether this node had everything of this primary and was not primary since.
    trusted: bool,
    /// Everything of this primary has arrived at least once.
    pub is_in_sync: bool,
    /// The epoch of the primary that has welcomed it on the present connection.
    pub epoch: Option<u64>,
    link: Option<Link>,
}

struct Link {
    connection: u64,
    is_connected: bool,
    since: Duration,
    /// The newest stream of each database, and whether it has been left; older ones have been.
    streams: BTreeMap<DbName, (u64, bool)>,
}

impl Following {
    pub fn new(target: Place, upstream: Upstream) -> Self {
        Self { target, upstream, trusted: false, is_in_sync: false, epoch: None, link: None }
    }

    pub fn connection(&self) -> Option<u64> {
        self.link.as_ref().map(|link| link.connection)
    }

    fn has(&self, connection: u64) -> bool {
        self.connection() == Some(connection)
    }

    /// When to look again, by the node's clock.
    pub fn poll_timeout(&self) -> Duration {
        match &self.link {
            Some(link) if !link.is_connected => link.since + DIAL_TIMEOUT,
            _ => self.upstream.poll_timeout(),
        }
    }

    /// Something of this stream arrived; false if it has been left.
    fn reads(&mut self, db: &DbName, stream: u64) -> bool {
        let Some(link) = &mut self.link else { return false };
        let newest = link.streams.entry(db.clone()).or_insert((stream, false));
        if stream > newest.0 {
            *newest = (stream, false);
        }
        *newest == (stream, false)
    }

    fn leave_stream(&mut self, db: &DbName) {
        if let Some((_, is_left)) = self.link.as_mut().and_then(|link| link.streams.get_mut(db)) {
            *is_left = true;
        }
    }
}

/// A primary's term.
pub struct Term {
    pub identity: Identity,
    pub sessions: BTreeMap<u64, Session>,
}

/// A primary's side of a connection.
pub struct Session {
    pub peer: Peer,
    /// The replica's node id, once it has had everything.
    pub joined: Option<u64>,
    /// The open stream of each database.
    streams: BTreeMap<DbName, u64>,
}

impl World {
    /// Dials, answers, acknowledges.
    pub fn pump_following(&mut self, i: Place) {
        loop {
            let now = self.own(i);
            let node = &mut self.nodes[i];
            let Some(following) = node.process.as_mut().and_then(|p| p.following.as_mut()) else {
                return;
            };
            let Some(link) = &following.link else {
                if following.upstream.poll_dial(now) {
                    self.dial(i);
                }
                return;
            };
            if !link.is_connected {
                if now >= link.since + DIAL_TIMEOUT {
                    self.leave_link(i, None);
                }
                return;
            }
            let connection = link.connection;
            if let Some(close) = following.upstream.poll_close(now).cloned() {
                self.note(|| format!("n{i} closes {connection}: {}", close.text));
                self.tell_closed(connection, i, Some(close.reason));
                self.leave_link(i, Some(close.reason));
                return;
            }
            if let Some(action) = following.upstream.poll_action() {
                self.act(i, connection, action);
                continue;
            }
            match following.upstream.poll_message(now, 0, &node.data) {
                Some(message) => self.send(connection, Way::Up, Packet::Up(message)),
                None => return,
            }
        }
    }

    fn dial(&mut self, i: Place) {
        let now = self.own(i);
        let following = self.following(i).expect("it dials");
        let target = following.target;
        let connection = self.net.connect(i, target);
        let link = Link { connection, is_connected: false, since: now, streams: BTreeMap::new() };
        self.following(i).expect("it dials").link = Some(link);
        let at = self.now + self.net.delay(&mut self.random);
        self.plan(at, Event::Dial { connection });
    }

    pub fn following(&mut self, i: Place) -> Option<&mut Following> {
        self.nodes[i].process.as_mut()?.following.as_mut()
    }

    pub fn term(&mut self, i: Place) -> Option<&mut Term> {
        self.nodes[i].process.as_mut()?.term.as_mut()
    }

    /// A dial reaches its target.
    pub fn take_dial(&mut self, connection: u64) {
        let Some(ends) = self.net.connections.get(&connection) else { return };
        let (replica, primary) = (ends.replica, ends.primary);
        if !self.net.reaches(replica, primary) || !self.net.reaches(primary, replica) {
            return;
        }
        let now = self.own(primary);
        if self.nodes[primary].process.is_none() {
            return;
        }
        let refused = match self.term(primary) {
            Some(term) => {
                let peer = Peer::new(term.identity.clone(), now);
                let session = Session { peer, joined: None, streams: BTreeMap::new() };
                term.sessions.insert(connection, session);
                None
            }
            None => Some(Reason::NotPrimary),
        };
        let at = self.now + self.net.delay(&mut self.random);
        self.plan(at, Event::Dialed { connection, refused });
    }

    pub fn take_dialed(&mut self, connection: u64, refused: Option<Reason>) {
        let Some(ends) = self.net.connections.get(&connection) else { return };
        let i = ends.replica;
        let now = self.own(i);
        let Some(following) = self.following(i).filter(|f| f.has(connection)) else { return };
        match refused {
            Some(reason) => self.leave_link(i, Some(reason)),
            None => {
                following.link.as_mut().expect("dialling").is_connected = true;
                following.upstream.handle_connected(now);
            }
        }
    }

    /// The replica's end is over.
    fn leave_link(&mut self, i: Place, reason: Option<Reason>) {
        let now = self.own(i);
        let Some(following) = self.following(i) else { return };
        following.link = None;
        following.upstream.handle_closed(now, reason);
        if let Some(epoch) = following.epoch.take() {
            self.link_changed(i, epoch, false);
        }
    }

    /// Stops following: nothing of the primary is applied any more.
    pub fn stop_following(&mut self, i: Place) {
        let Some(following) = self.nodes[i].process.as_mut().and_then(|p| p.following.take())
        else {
            return;
        };
        if let Some(connection) = following.connection() {
            self.tell_closed(connection, i, Some(Reason::Shutdown));
        }
        if let Some(epoch) = following.epoch {
            self.link_changed(i, epoch, false);
        }
    }

    /// Ends a term: all replicas are told.
    pub fn end_term(&mut self, i: Place) {
        let Some(term) = self.nodes[i].process.as_mut().and_then(|p| p.term.take()) else { return };
        self.quorum_ends(i);
        for connection in term.sessions.keys() {
            self.tell_closed(*connection, i, Some(Reason::NotPrimary));
        }
    }

    fn tell_closed(&mut self, connection: u64, from: Place, reason: Option<Reason>) {
        let Some(ends) = self.net.connections.get(&connection) else { return };
        let to = if ends.replica == from { ends.primary } else { ends.replica };
        if self.net.reaches(from, to) {
            let at = self.now + self.net.delay(&mut self.random);
            self.plan(at, Event::Closed { connection, to, reason });
        }
    }

    /// The other end has closed the connection, or does not know it any more.
    pub fn take_closed(&mut self, connection: u64, to: Place, reason: Option<Reason>) {
        if self.following(to).is_some_and(|following| following.has(connection)) {
            self.leave_link(to, reason);
        }
        self.drop_session(to, connection);
    }

    fn drop_session(&mut self, i: Place, connection: u64) {
        if let Some(session) = self.term(i).and_then(|term| term.sessions.remove(&connection)) {
            self.leave_quorum(i, connection, session.joined);
        }
    }

    fn send(&mut self, connection: u64, way: Way, packet: Packet) {
        let arrival = self.now + self.net.delay(&mut self.random);
        let Some(ends) = self.net.connections.get_mut(&connection) else { return };
        let at = ends.push(way, packet, arrival);
        self.plan(at, Event::Deliver { connection, way });
    }

    /// A packet arrives, or is sent again if the way is blocked.
    pub fn deliver(&mut self, connection: u64, way: Way) {
        let Some(ends) = self.net.connections.get(&connection) else { return };
        let (from, to) = (ends.from(way), ends.to(way));
        if !self.has_end(connection, from) {
            return;
        }
        if !self.net.reaches(from, to) {
            let at = self.now + Net::resend(&mut self.random);
            return self.plan(at, Event::Deliver { connection, way });
        }
        if !self.has_end(connection, to) {
            if self.nodes[to].process.is_some() && self.random.one_in(2) {
                self.tell_closed(connection, to, None);
            }
            return;
        }
        if self.is_database_busy(connection, way, to) {
            let at = self.now + ms(1);
            return self.plan(at, Event::Deliver { connection, way });
        }
        let Some(packet) = self.net.connections.get_mut(&connection).and_then(|ends| ends.pop(way))
        else {
            return;
        };
        self.take_packet(connection, way, to, packet);
    }

    fn has_end(&mut self, connection: u64, place: Place) -> bool {
        self.following(place).is_some_and(|following| following.has(connection))
            || self.term(place).is_some_and(|term| term.sessions.contains_key(&connection))
    }

    /// What a peer sends waits for a commit that is on its way to the disk.
    fn is_database_busy(&self, connection: u64, way: Way, to: Place) -> bool {
        let first = self.net.connections.get(&connection).and_then(|ends| ends.first(way));
        let Some(Packet::Frame(db, ..)) = first else { return false };
        self.nodes[to].data.disk.is_prepared(db)
    }

    fn take_packet(&mut self, connection: u64, way: Way, to: Place, packet: Packet) {
        let now = self.own(to);
        let node = &mut self.nodes[to];
        let Some(process) = &mut node.process else { return };
        match packet {
            Packet::Up(message) => {
                let sessions = process.term.as_mut().map(|term| &mut term.sessions);
                let acks = match &message {
                    FromReplica::Acks(acks) => acks.clone(),
                    _ => Vec::new(),
                };
                if let Some(session) = sessions.and_then(|s| s.get_mut(&connection)) {
                    session.peer.handle_message(now, message, &node.data);
                }
                self.pass_on(to, connection, acks);
                self.join_quorum(to, connection);
            }
            Packet::Down(message) => {
                if let Some(following) = &mut process.following {
                    following.upstream.handle_message(now, message, &node.data);
                }
            }
            Packet::Frame(db, frame, record) => {
                let Way::Stream(stream) = way else { return };
                self.take_frame(to, &db, stream, frame, &record);
            }
            Packet::Reset(db, reset) => {
                let Way::Stream(stream) = way else { return };
                if let Some(following) = &mut process.following
                    && following.reads(&db, stream)
                {
                    following.leave_stream(&db);
                    following.upstream.handle_reset(now, &db, reset);
                }
            }
        }
    }

    fn take_frame(&mut self, i: Place, db: &DbName, stream: u64, frame: StreamFrame, r: &Record) {
        let now = self.own(i);
        let is_trouble = self.faults_on() && self.random.one_in(200);
        let node = &mut self.nodes[i];
        let Some(following) = node.process.as_mut().and_then(|p| p.following.as_mut()) else {
            return;
        };
        if !following.reads(db, stream) {
            return;
        }
        following.upstream.handle_alive(now);
        if is_trouble {
            // The disk is full; the stream is left.
            following.leave_stream(db);
            return following.upstream.handle_trouble(now, db, false);
        }
        let here = node.data.disk.pos(db);
        if frame.kind == RecordKind::Record && frame.base != here {
            let text = format!("a record after {} for {db}, at {here}", frame.base);
            return following.upstream.handle_end(Close::new(Reason::BadRecord, text));
        }
        let disk = &mut node.data.disk;
        let is_ours = || {
            !following.trusted || following.upstream.has_diverged(db) || !disk.is_newest_foreign(db)
        };
        let keeps = frame.kind == RecordKind::Snapshot && must_preserve(frame.base, here, is_ours);
        if keeps {
            disk.preserve(db, following.upstream.common(db));
            self.reached.preserved += 1;
        }
        let applied = disk.apply(db, frame.kind, r);
        assert_eq!(applied, Ok(frame.pos), "{db} on n{i} at {here}: {frame:?}");
        following.upstream.handle_applied(db);
        self.reached.snapshots += u64::from(frame.kind == RecordKind::Snapshot);
    }

    fn act(&mut self, i: Place, connection: u64, action: Action) {
        match action {
            Action::Join(welcome) => self.join(i, connection, &welcome),
            Action::OfferPoints(db) => {
                let points = self.nodes[i].data.disk.points(&db);
                self.send(connection, Way::Up, Packet::Up(FromReplica::Points(db, points)));
            }
            Action::Rewind(db, to) => {
                let at = self.now + self.random.time(ms(1), ms(20));
                self.plan(at, Event::Rewind { connection, db, to });
            }
            Action::NoteInSync(primary) => {
                self.nodes[i].following.note((primary.node, primary.epoch));
                self.following(i).expect("linked").is_in_sync = true;
                self.in_sync(i, primary.epoch);
            }
            Action::Sync => {
                let data = &mut self.nodes[i].data;
                let all = data.disk.databases();
                all.iter().for_each(|db| data.disk.sync(db));
                if let Some(following) = self.following(i) {
                    following.upstream.handle_synced(all);
                }
            }
            // The machines of this simulation ask each other without the wire.
            Action::WarnUnknown(_) | Action::NoTakeOver(_) => (),
        }
    }

    fn join(&mut self, i: Place, connection: u64, welcome: &Welcome) {
        let node = &mut self.nodes[i];
        let following = node.process.as_mut().and_then(|p| p.following.as_mut()).expect("joins");
        following.trusted = node.following.is((welcome.node, welcome.epoch));
        following.epoch = Some(welcome.epoch);
        node.data.disk.set_cluster(&welcome.cluster);
        node.data.disk.set_epoch(welcome.epoch);
        let disk = &node.data.disk;
        let offer = |db: DbName| Offer { pos: disk.pos(&db), snapshot: false, db };
        let offers: Vec<Offer> = disk.databases().into_iter().map(offer).collect();
        following.upstream.handle_offered(&offers);
        self.note(|| format!("n{i} follows epoch {} on {connection}", welcome.epoch));
        self.send(connection, Way::Up, Packet::Up(FromReplica::Offers(offers)));
        self.send(connection, Way::Up, Packet::Up(FromReplica::Ready));
        self.link_changed(i, welcome.epoch, true);
    }

    /// A replica goes back to what the primary has.
    pub fn rewind(&mut self, connection: u64, db: DbName, to: Pos) {
        let Some(ends) = self.net.connections.get(&connection) else { return };
        let i = ends.replica;
        if !self.has_end(connection, i) {
            return;
        }
        if self.nodes[i].data.disk.is_prepared(&db) {
            let at = self.now + ms(1);
            return self.plan(at, Event::Rewind { connection, db, to });
        }
        let now = self.own(i);
        let node = &mut self.nodes[i];
        let following = node.process.as_mut().and_then(|p| p.following.as_mut()).expect("linked");
        following.leave_stream(&db);
        node.data.disk.preserve(&db, Some(to));
        let is_gone = node.data.disk.rewind(&db, to).is_err();
        following.upstream.handle_reoffer(now, &db, is_gone);
        self.reached.rewinds += 1;
    }

    /// Serves all replicas of a primary.
    pub fn pump_term(&mut self, i: Place) {
        let Some(term) = self.term(i) else { return };
        let connections: Vec<u64> = term.sessions.keys().copied().collect();
        connections.into_iter().for_each(|connection| self.pump_session(i, connection));
    }

    fn pump_session(&mut self, i: Place, connection: u64) {
        let now = self.own(i);
        let node = &mut self.nodes[i];
        let Some(term) = node.process.as_mut().and_then(|p| p.term.as_mut()) else { return };
        let Some(session) = term.sessions.get_mut(&connection) else { return };
        session.peer.handle_timeout(now, &node.data);
        if let Some(close) = session.peer.poll_close().cloned() {
            self.note(|| format!("n{i} closes {connection}: {}", close.text));
            self.tell_closed(connection, i, Some(close.reason));
            return self.drop_session(i, connection);
        }
        let mut messages = Vec::new();
        while let Some(message) = session.peer.poll_message(now, 0) {
            messages.push(message);
        }
        let mut works = Vec::new();
        while let Some(work) = session.peer.poll_work() {
            works.push(work);
        }
        for message in messages {
            self.send(connection, Way::Down, Packet::Down(message));
        }
        works.into_iter().for_each(|work| self.work(i, connection, work));
    }

    fn session(&mut self, i: Place, connection: u64) -> &mut Session {
        let term = self.term(i).expect("it serves");
        term.sessions.get_mut(&connection).expect("it works for it")
    }

    fn work(&mut self, i: Place, connection: u64, work: Work) {
        match work {
            Work::Finish(db) => {
                self.session(i, connection).streams.remove(&db);
            }
            Work::Reset(db) => self.reset(i, connection, db, StreamReset::Superseded),
            Work::Send(db, task) => self.run_job(i, connection, db, task),
        }
    }

    fn reset(&mut self, i: Place, connection: u64, db: DbName, reset: StreamReset) {
        if let Some(stream) = self.session(i, connection).streams.remove(&db) {
            self.send(connection, Way::Stream(stream), Packet::Reset(db, reset));
        }
    }

    /// Sends what a real job would: frames one after the other, then the outcome.
    fn run_job(&mut self, i: Place, connection: u64, db: DbName, task: Task) {
        let disk = &self.nodes[i].data.disk;
        let newest = disk.pos(&db);
        let failed = |missing, pos| match missing {
            Missing::Gone => Outcome::Gone(pos),
            Missing::Mismatch => Outcome::Mismatch(pos),
        };
        let is_far = |pos: Pos| is_far_behind(pos.txid, newest.txid, || 1 << 30);
        let (kind, records, outcome) = match task {
            Task::Records(pos) if is_far(pos) => {
                (RecordKind::Record, Vec::new(), Outcome::FarBehind(pos))
            }
            Task::Records(pos) => match disk.records(&db, pos) {
                Ok(records) => (RecordKind::Record, records, Outcome::Sent(newest)),
                Err(why) => (RecordKind::Record, Vec::new(), failed(why, pos)),
            },
            Task::Compacted(pos) => match disk.compacted(&db, pos) {
                Ok(record) => (RecordKind::Record, vec![record], Outcome::Sent(newest)),
                Err(why) => (RecordKind::Record, Vec::new(), failed(why, pos)),
            },
            Task::Snapshot(known) => {
                let record = Record { base: known, ..disk.snapshot(&db) };
                (RecordKind::Snapshot, vec![record], Outcome::Sent(newest))
            }
        };
        let fresh = self.next_number();
        let stream = *self.session(i, connection).streams.entry(db.clone()).or_insert(fresh);
        for record in records {
            let frame = StreamFrame { kind, len: 1, base: record.base, pos: record.pos };
            let packet = Packet::Frame(db.clone(), frame, record);
            self.send(connection, Way::Stream(stream), packet);
        }
        let mut outcome = outcome;
        if self.faults_on() && self.random.one_in(100) {
            // The primary cannot read its database to the end of a frame.
            outcome = Outcome::Broken;
            self.reset(i, connection, db.clone(), StreamReset::Failed);
        }
        let at = self.now + self.net.delay(&mut self.random);
        self.plan(at, Event::Sent { connection, db, outcome });
    }

    pub fn take_outcome(&mut self, connection: u64, db: &DbName, outcome: Outcome) {
        let Some(ends) = self.net.connections.get(&connection) else { return };
        let i = ends.primary;
        let now = self.own(i);
        let node = &mut self.nodes[i];
        let Some(term) = node.process.as_mut().and_then(|p| p.term.as_mut()) else { return };
        if let Some(session) = term.sessions.get_mut(&connection) {
            session.peer.handle_outcome(now, db, outcome, &node.data);
        }
    }

    /// A transaction was published: the replicas get it.
    pub fn stream_commit(&mut self, i: Place, db: &DbName, pos: Pos) {
        let now = self.own(i);
        let node = &mut self.nodes[i];
        let Some(term) = node.process.as_mut().and_then(|p| p.term.as_mut()) else { return };
        for session in term.sessions.values_mut() {
            session.peer.handle_commit(now, db, pos, &node.data);
        }
    }
}
