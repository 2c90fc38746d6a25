//! What stands between a node's role machine and the world: requests to Consul, the gate, the
//! links to the other nodes.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use litefs_store::{DbName, Pos};

use super::chance::{ms, secs};
use super::consul::{Answer, Entry, Op, Request};
use super::links::{Following, Term};
use super::net::Place;
use super::world::{Event, World};
use crate::lease::action::{
    Acquire, Acquisition, Action, CATCH_UP_TIMEOUT, HOLD_TIMEOUT, REQUEST_TIMEOUT, Renewal,
    Replace, Replacement, Role, Standing,
};
use crate::lease::view::{Holder, Key, NodeEntry, NodeRecord, SessionId, TermRecord, View};
use crate::replication::primary::Identity;
use crate::replication::replica::Upstream;

/// The keys of the one lease.
pub const KEY: &str = "litefs/primary";
pub const CLUSTER: &str = "litefs/primary/clusterid";
pub const TERM: &str = "litefs/primary/term";
const NODES: &str = "litefs/primary/nodes/";

/// How long a blocking query waits for a change, as the elector's.
const WATCH_WAIT: Duration = Duration::from_secs(5);

/// A key's value.
#[derive(Debug, Clone)]
pub enum Value {
    Holder(Holder),
    Cluster(String),
    Term(TermRecord),
    Node(NodeRecord),
}

/// What a request was made for.
#[derive(Debug, Clone, Copy)]
enum Purpose {
    Watch { requested: Duration },
    Look { requested: Duration },
    OpenSession,
    Renew,
    Publish,
    Acquire,
    Beat,
    Release,
    Destroy,
}

/// A node's requests to Consul, and what it was asked to wait for.
#[derive(Debug, Default)]
pub struct Client {
    pending: BTreeMap<u64, Purpose>,
    /// The watch has seen changes up to this index.
    seen: u64,
    /// The index that Consul showed last.
    index: u64,
    /// The query of the watch that counts.
    watching: Option<u64>,
    /// The watch begins again then.
    watch_at: Duration,
    /// What is done one after the other.
    parts: VecDeque<Action>,
    is_busy: bool,
    target: Option<(u64, Duration)>,
    /// What the machine was last told of the store.
    standing: Option<Standing>,
}

impl Client {
    /// When to look again, by the node's clock.
    pub fn poll_timeout(&self) -> Duration {
        let watch = if self.watching.is_some() { Duration::MAX } else { self.watch_at };
        watch.min(self.target.map_or(Duration::MAX, |(_, until)| until))
    }

    /// Consul counts anew: the watch would wait in vain.
    fn note_index(&mut self, now: Duration, index: u64) {
        if index < std::mem::replace(&mut self.index, index) {
            (self.seen, self.watching, self.watch_at) = (0, None, now);
        }
    }
}

fn holder_of(node: u64, place: Place) -> Holder {
    Holder { node, hostname: format!("n{place}"), advertise_url: format!("http://n{place}") }
}

fn place_of(url: &str) -> Place {
    url.trim_start_matches("http://n").parse().expect("a node's address")
}

fn node_key(node: u64, session: &str) -> String {
    format!("{NODES}{node:016x}/{session}")
}

fn transaction(replace: Replace, unlocked: Option<Value>) -> Request<Value> {
    let Replace { session, expected, term } = replace;
    let mut ops = vec![
        Op::CheckSession { key: KEY.into(), session: session.0.clone() },
        Op::Cas { key: TERM.into(), value: Value::Term(term), index: expected },
    ];
    if let Some(value) = unlocked {
        ops.push(Op::Unlock { key: KEY.into(), value, session: session.0 });
    }
    Request::Transaction(ops)
}

fn acquisition(acquire: Acquire, holder: Holder) -> Request<Value> {
    let Acquire { session, expected, term, cluster } = acquire;
    let value = Value::Holder(holder);
    let index = expected.unwrap_or(0);
    let mut ops = vec![
        Op::Lock { key: KEY.into(), value, session: session.0 },
        Op::Cas { key: TERM.into(), value: Value::Term(term), index },
    ];
    if let Some(id) = cluster {
        ops.push(Op::Cas { key: CLUSTER.into(), value: Value::Cluster(id), index: 0 });
    }
    Request::Transaction(ops)
}

fn view_of(index: u64, entries: Vec<Entry<Value>>) -> View {
    let mut view = View { index, ..View::default() };
    for Entry { key, value, session, modified } in entries {
        let session = session.map(SessionId);
        match (value, session) {
            (Value::Holder(holder), session) => {
                view.key = Some(Key { index: modified, session, holder: Some(holder) });
            }
            (Value::Cluster(id), _) => view.cluster = Some(id),
            (Value::Term(record), _) => view.term = Some((modified, record)),
            (Value::Node(record), Some(session)) => view.nodes.push(NodeEntry { session, record }),
            (Value::Node(_), None) => panic!("{key} is held by nobody"),
        }
    }
    view
}

fn replacement(answer: Answer<Value>) -> Replacement {
    match answer {
        Answer::Committed(index) => Replacement::Done { index },
        Answer::RolledBack(0) => Replacement::Gone,
        Answer::RolledBack(_) => Replacement::Conflict,
        _ => Replacement::Failed,
    }
}

impl World {
    /// Consul's place in the network.
    pub fn consul_place(&self) -> Place {
        self.nodes.len()
    }

    /// Feeds the role machine and does what it wants.
    pub fn pump_election(&mut self, i: Place) {
        self.tell_standing(i);
        self.watch(i);
        loop {
            let now = self.own(i);
            let Some(process) = self.nodes[i].process.as_mut() else { return };
            if now < process.election.poll_timeout() {
                break;
            }
            let action = process.election.poll_action(now);
            let mut transitions = Vec::new();
            while let Some(transition) = process.election.poll_transition() {
                transitions.push(transition);
            }
            for t in transitions {
                self.note(|| format!("n{i} {} -> {} ({}): {}", t.from, t.to, t.epoch, t.reason));
                self.reached.hand_overs +=
                    u64::from(t.from == Role::HandingOver && t.to == Role::SteppingDown);
                self.is_lossy |=
                    [Role::Primary, Role::HandingOver].contains(&t.from) && t.to == Role::Replica;
            }
            match action {
                Some(action) => self.do_action(i, action),
                None => break,
            }
        }
        self.do_parts(i);
        self.check_target(i);
        self.check_held(i);
    }

    /// Tells the machine what the store holds, if that has changed.
    fn tell_standing(&mut self, i: Place) {
        let node = &mut self.nodes[i];
        let disk = &node.data.disk;
        let transactions = disk.databases().iter().map(|db| disk.pos(db).txid.get()).sum();
        let Some(process) = &mut node.process else { return };
        let standing = Standing {
            cluster: disk.cluster(),
            epoch: disk.epoch(),
            term: node.term,
            transactions,
            in_sync: process.following.as_ref().is_some_and(|f| f.is_in_sync),
        };
        if process.client.standing.as_ref() != Some(&standing) {
            process.client.standing = Some(standing.clone());
            process.election.handle_standing(standing);
        }
    }

    /// Keeps one blocking query open.
    fn watch(&mut self, i: Place) {
        let now = self.own(i);
        let Some(process) = self.nodes[i].process.as_mut() else { return };
        let client = &mut process.client;
        if client.watching.is_some() || now < client.watch_at {
            return;
        }
        let after = client.seen;
        let request = Request::List { prefix: KEY.into(), after, wait: WATCH_WAIT };
        let patience = WATCH_WAIT + WATCH_WAIT / 16 + REQUEST_TIMEOUT;
        let id = self.request(i, Purpose::Watch { requested: now }, request, patience);
        self.nodes[i].process.as_mut().expect("it watches").client.watching = Some(id);
    }

    /// Makes a request; returns its number.
    fn request(
        &mut self,
        i: Place,
        purpose: Purpose,
        request: Request<Value>,
        patience: Duration,
    ) -> u64 {
        let now = self.own(i);
        let id = self.next_number();
        let node = &mut self.nodes[i];
        let boot = node.boot;
        let process = node.process.as_mut().expect("it asks");
        process.client.pending.insert(id, purpose);
        let deadline = node.clock.real(now + patience);
        self.plan(deadline, Event::Deadline { node: i, boot, id });
        let is_through = self.net.reaches(i, self.consul_place());
        if let Some(delay) = self.travel(is_through) {
            self.plan(self.now + delay, Event::Request { node: i, boot, id, request });
        }
        id
    }

    /// How long a message to or from Consul takes; `None` if it never arrives. What does not get
    /// through is sent again by the system, also when nobody waits for it any more.
    fn travel(&mut self, is_through: bool) -> Option<Duration> {
        let usual = self.net.delay(&mut self.random);
        let is_odd = self.faults_on() && self.random.one_in(self.swarm.consul_loss);
        if is_through && !is_odd {
            return Some(usual);
        }
        self.random.one_in(2).then(|| self.random.time(ms(200), secs(20)))
    }

    /// A request gets to Consul, which may answer at once.
    pub fn request_arrives(&mut self, from: (Place, u64, u64), request: Request<Value>) {
        let (i, boot, id) = from;
        if !self.net.reaches(i, self.consul_place()) {
            return;
        }
        if let Request::Destroy(session) = &request
            && self.consul.get(KEY).is_some_and(|key| key.session.as_ref() == Some(session))
        {
            self.note(|| format!("n{i} destroys the lease's session {session}"));
            self.reached.destroyed += 1;
        }
        self.asked.insert(id, (i, boot));
        let now = self.consul_now();
        if let Some(answer) = self.consul.handle(now, id, request) {
            self.answer(id, answer);
        }
        self.pump_consul();
    }

    /// Consul answers.
    pub fn answer(&mut self, id: u64, answer: Answer<Value>) {
        let Some((node, boot)) = self.asked.remove(&id) else { return };
        let is_through = self.net.reaches(self.consul_place(), node);
        let is_late = self.late == Some(node);
        let late = if is_late { self.random.time(ms(500), ms(930)) } else { Duration::ZERO };
        if let Some(delay) = self.travel(is_through) {
            self.plan(self.now + delay + late, Event::Answer { node, boot, id, answer });
        }
    }

    /// An answer, or the end of the patience, gets to the node.
    pub fn take_answer(&mut self, i: Place, id: u64, answer: Answer<Value>) {
        let now = self.own(i);
        let Some(process) = self.nodes[i].process.as_mut() else { return };
        let Some(purpose) = process.client.pending.remove(&id) else { return };
        let (client, election) = (&mut process.client, &mut process.election);
        let is_given_up = matches!(purpose, Purpose::Watch { .. }) && client.watching != Some(id);
        match (purpose, answer) {
            _ if is_given_up => (),
            (Purpose::Watch { requested }, Answer::List { index, entries }) => {
                client.watching = None;
                client.watch_at = now;
                // An index that goes back belongs to another history.
                client.seen = if index < client.seen { 0 } else { index };
                client.note_index(now, index);
                election.handle_view(now, requested, view_of(index, entries));
            }
            (Purpose::Watch { .. }, _) => {
                client.watching = None;
                client.seen = 0;
                client.watch_at = now + ms(300);
            }
            (Purpose::Look { requested }, Answer::List { index, entries }) => {
                client.note_index(now, index);
                election.handle_view(now, requested, view_of(index, entries));
            }
            (Purpose::Look { .. }, _) => election.handle_look_failed(now),
            (Purpose::OpenSession, Answer::Session(id)) => {
                election.handle_session(now, Some(SessionId(id)));
            }
            (Purpose::OpenSession, _) => election.handle_session(now, None),
            (Purpose::Renew, answer) => {
                let renewal = match answer {
                    Answer::Done(true) => Renewal::Renewed,
                    Answer::Gone => Renewal::Gone,
                    _ => Renewal::Failed,
                };
                election.handle_session_renewed(now, renewal);
            }
            (Purpose::Publish, answer) => {
                election.handle_published(now, matches!(answer, Answer::Done(true)));
            }
            (Purpose::Acquire, answer) => {
                let acquisition = match answer {
                    Answer::Committed(index) => Acquisition::Acquired { index },
                    Answer::RolledBack(_) => Acquisition::Refused,
                    _ => Acquisition::Failed,
                };
                election.handle_acquired(now, acquisition);
            }
            (Purpose::Beat, answer) => election.handle_replaced(now, replacement(answer)),
            (Purpose::Release, answer) => election.handle_replaced(now, replacement(answer)),
            (Purpose::Destroy, _) => election.handle_destroyed(now),
        }
    }

    fn do_action(&mut self, i: Place, action: Action) {
        let ask = |world: &mut Self, purpose, request| {
            world.request(i, purpose, request, REQUEST_TIMEOUT);
        };
        let holder = holder_of(self.nodes[i].id, i);
        match action {
            Action::OpenSession => {
                let (ttl, lock_delay) = (self.swarm.ttl, self.swarm.lock_delay);
                ask(self, Purpose::OpenSession, Request::CreateSession { ttl, lock_delay });
            }
            Action::RenewSession(session) => ask(self, Purpose::Renew, Request::Renew(session.0)),
            Action::Look => {
                let requested = self.own(i);
                let wait = Duration::ZERO;
                let list = Request::List { prefix: KEY.into(), after: 0, wait };
                ask(self, Purpose::Look { requested }, list);
            }
            Action::Publish(session, record) => {
                let (key, session) = (node_key(record.node, &session.0), session.0);
                let value = Value::Node(record);
                ask(self, Purpose::Publish, Request::Acquire { key, value, session });
            }
            Action::Acquire(acquire) => {
                ask(self, Purpose::Acquire, acquisition(acquire, holder));
            }
            Action::Beat(replace) => ask(self, Purpose::Beat, transaction(replace, None)),
            Action::Release(replace) => {
                let to = replace.term.released.as_ref().and_then(|released| released.to);
                self.is_lossy |= to.is_none();
                let unlocked = Some(Value::Holder(holder));
                ask(self, Purpose::Release, transaction(replace, unlocked));
            }
            Action::DestroySession(session) => {
                ask(self, Purpose::Destroy, Request::Destroy(session.0));
            }
            Action::OpenGate { until } => self.open_gate(i, until),
            Action::CloseGate { reason } => self.close_gate(i, &reason),
            other => {
                let process = self.nodes[i].process.as_mut().expect("it acts");
                process.client.parts.push_back(other);
            }
        }
    }

    fn open_gate(&mut self, i: Place, until: Duration) {
        let now = self.own(i);
        let node = &mut self.nodes[i];
        node.data.disk.open_until(until);
        let process = node.process.as_mut().expect("it acts");
        process.held = None;
        let waiting = std::mem::take(&mut process.waiting);
        self.check_gates();
        for (_, db) in waiting.into_iter().filter(|(until, _)| now < *until) {
            self.begin_commit(i, db);
        }
    }

    fn close_gate(&mut self, i: Place, reason: &str) {
        self.note(|| format!("n{i} closes its gate: {reason}"));
        let node = &mut self.nodes[i];
        node.data.disk.open_until(Duration::ZERO);
        let process = node.process.as_mut().expect("it acts");
        process.held = None;
        self.ledger.refused += process.waiting.drain(..).count() as u64;
    }

    /// Does what is done one after the other.
    fn do_parts(&mut self, i: Place) {
        loop {
            let Some(process) = self.nodes[i].process.as_mut() else { return };
            if process.client.is_busy {
                return;
            }
            let Some(action) = process.client.parts.pop_front() else { return };
            self.do_part(i, action);
        }
    }

    fn do_part(&mut self, i: Place, action: Action) {
        let now = self.own(i);
        match action {
            Action::BeginTerm { epoch, cluster } => {
                self.stop_following(i);
                let slow = if self.random.one_in(30) { secs(3) } else { ms(20) };
                let at = self.now + self.random.time(Duration::from_micros(100), slow);
                let node = &mut self.nodes[i];
                node.process.as_mut().expect("it acts").client.is_busy = true;
                let boot = node.boot;
                self.plan(at, Event::TermBegan { node: i, boot, epoch, cluster });
            }
            Action::HoldWriters => {
                self.nodes[i].process.as_mut().expect("it acts").held = Some(now);
            }
            Action::AwaitTarget(target) => {
                let process = self.nodes[i].process.as_mut().expect("it acts");
                process.client.target = Some((target, now + CATCH_UP_TIMEOUT));
            }
            Action::EndTerm { .. } => self.end_term(i),
            Action::Follow { url, hostname: _, epoch } => self.follow(i, place_of(&url), epoch),
            Action::AskTakeOver => self.ask_take_over(i),
            Action::NoteSyncSet(set) => self.set_published(i, &set),
            other => panic!("{other:?} is done at once"),
        }
    }

    /// The term's beginning is on the disk.
    pub fn term_began(&mut self, i: Place, epoch: u64, cluster: String) {
        let now = self.own(i);
        self.check_beginning(i);
        let node = &mut self.nodes[i];
        node.following.note_own_commits();
        node.data.disk.set_epoch(epoch);
        node.data.disk.set_cluster(&cluster);
        node.term = epoch;
        let identity = Identity { node: node.id, epoch, cluster, hostname: format!("n{i}") };
        let process = node.process.as_mut().expect("it is running");
        process.term = Some(Term { identity, sessions: BTreeMap::new() });
        process.epoch = epoch;
        process.client.is_busy = false;
        self.quorum_begins(i);
        let process = self.nodes[i].process.as_mut().expect("it is running");
        process.election.handle_term_began(now, epoch, Ok(()));
        self.reached.terms += 1;
        self.note(|| format!("n{i} begins the term of epoch {epoch}"));
    }

    fn follow(&mut self, i: Place, target: Place, epoch: u64) {
        self.note(|| format!("n{i} follows n{target}, epoch {epoch}"));
        self.stop_following(i);
        let seed = self.random.next();
        let may_lead = i < self.swarm.candidates;
        let upstream = Upstream::new(format!("n{i}"), may_lead, self.swarm.reconnect_delay, seed);
        let process = self.nodes[i].process.as_mut().expect("it acts");
        process.following = Some(Following::new(target, upstream));
    }

    fn ask_take_over(&mut self, i: Place) {
        let linked = self.following(i).filter(|f| f.epoch.is_some()).map(|f| f.target);
        let boot = self.nodes[i].boot;
        let at = self.now + self.net.delay(&mut self.random);
        match linked.filter(|to| self.net.reaches(i, *to)) {
            Some(to) => self.plan(at, Event::TakeOver { from: i, boot, to }),
            None => self.plan(at, Event::TakeOverRefused { node: i, boot }),
        }
    }

    /// A replica asks this node for the lease.
    pub fn take_over(&mut self, from: Place, boot: u64, to: Place) {
        let now = self.own(to);
        let target = self.nodes[from].id;
        let Some(process) = self.nodes[to].process.as_mut() else { return };
        if let Err(why) = process.election.handle_take_over(now, target) {
            self.note(|| format!("n{to} refuses to hand over to n{from}: {why}"));
            let at = self.now + self.net.delay(&mut self.random);
            self.plan(at, Event::TakeOverRefused { node: from, boot });
        }
    }

    /// The link to the primary of this epoch is there, or gone.
    pub fn link_changed(&mut self, i: Place, epoch: u64, is_up: bool) {
        self.tell_standing(i);
        let Some(process) = self.nodes[i].process.as_mut() else { return };
        match is_up {
            true => process.election.handle_linked(epoch),
            false => process.election.handle_unlinked(),
        }
    }

    /// Everything of the primary of this epoch has arrived.
    pub fn in_sync(&mut self, i: Place, epoch: u64) {
        self.nodes[i].term = epoch;
        self.tell_standing(i);
    }

    /// Writers are held once those under way are in the log.
    fn check_held(&mut self, i: Place) {
        let now = self.own(i);
        let Some(process) = self.nodes[i].process.as_mut() else { return };
        let Some(since) = process.held.filter(|since| *since != Duration::MAX) else { return };
        let result = match process.commits.is_empty() {
            true => Ok(()),
            false if now >= since + HOLD_TIMEOUT => Err("a commit takes too long".to_owned()),
            false => return,
        };
        // Told once; they are still held.
        process.held = Some(Duration::MAX);
        process.election.handle_held(now, result);
    }

    fn check_target(&mut self, i: Place) {
        let now = self.own(i);
        let Some((target, until)) = self.nodes[i].process.as_ref().and_then(|p| p.client.target)
        else {
            return;
        };
        let has_all = self.has_everything(i, target);
        let process = self.nodes[i].process.as_mut().expect("it waits");
        let result = match has_all {
            true => Ok(()),
            false if now >= until => Err("it did not catch up".to_owned()),
            false => return,
        };
        process.client.target = None;
        process.election.handle_caught_up(now, result);
    }

    /// True if a connected replica has acknowledged everything of this node, on disk.
    pub fn has_everything(&self, i: Place, replica: u64) -> bool {
        let disk = &self.nodes[i].data.disk;
        let all: Vec<(DbName, Pos)> =
            disk.databases().into_iter().map(|db| (db.clone(), disk.pos(&db))).collect();
        let sessions = self.nodes[i].process.iter().filter_map(|p| p.term.as_ref());
        let mut peers = sessions.flat_map(|term| term.sessions.values()).map(|s| &s.peer);
        peers.any(|peer| {
            let acks: BTreeMap<DbName, Pos> = peer.acks().map(|a| (a.db, a.synced)).collect();
            peer.hello().is_some_and(|hello| hello.node == replica)
                && all.iter().all(|(db, pos)| acks.get(db) == Some(pos))
        })
    }
}
