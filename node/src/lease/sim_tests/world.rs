//! The world: virtual time, the nodes, and what happens to them.
//!
//! Everything that happens is an [`Event`] at a time; events at the same time happen in the order
//! in which they were planned. A node whose process is stopped gets its events when it goes on.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use litefs_store::{DbName, Pos};

use super::chance::{DriftClock, Random, ms, secs};
use super::commits::{Commit, Ledger};
use super::consul::{Answer, Consul, Request};
use super::data::{Data, Disk, Lists};
use super::driver::{Client, Value};
use super::links::{Following, Term};
use super::net::{Net, Place, Way};
use super::real::Real;
use super::strikes::Undo;
use super::swarm::Swarm;
use super::sync::Confirmer;
use crate::lease::election::Election;
use crate::replication::primary::Outcome;
use crate::replication::wire::Reason;

/// What happens.
#[derive(Debug)]
pub enum Event {
    Dial {
        connection: u64,
    },
    Dialed {
        connection: u64,
        refused: Option<Reason>,
    },
    Deliver {
        connection: u64,
        way: Way,
    },
    Closed {
        connection: u64,
        to: Place,
        reason: Option<Reason>,
    },
    Sent {
        connection: u64,
        db: DbName,
        outcome: Outcome,
    },
    Rewind {
        connection: u64,
        db: DbName,
        to: Pos,
    },
    /// A timer of a node.
    Wake {
        node: Place,
        boot: u64,
    },
    /// A request gets to Consul.
    Request {
        node: Place,
        boot: u64,
        id: u64,
        request: Request<Value>,
    },
    /// Its answer gets back.
    Answer {
        node: Place,
        boot: u64,
        id: u64,
        answer: Answer<Value>,
    },
    /// The node gives a request up.
    Deadline {
        node: Place,
        boot: u64,
        id: u64,
    },
    /// The beginning of a term is on the disk.
    TermBegan {
        node: Place,
        boot: u64,
        epoch: u64,
        cluster: String,
    },
    /// A replica asks its primary for the lease.
    TakeOver {
        from: Place,
        boot: u64,
        to: Place,
    },
    TakeOverRefused {
        node: Place,
        boot: u64,
    },
    /// A timer of Consul.
    Consul,
    Client,
    Commit {
        node: Place,
        boot: u64,
        number: u64,
    },
    /// What a store does in the background.
    Background {
        node: Place,
    },
    /// Something goes wrong.
    Strike,
    /// It is over.
    Undo(Undo),
}

/// A primary that everything of came, as `replication::standing` keeps it: durable once it is
/// removed, but not when it is written.
#[derive(Debug, Default)]
pub struct Standing {
    durable: Option<(u64, u64)>,
    written: Option<(u64, u64)>,
}

impl Standing {
    pub fn note(&mut self, primary: (u64, u64)) {
        self.written = Some(primary);
    }

    pub fn note_own_commits(&mut self) {
        *self = Self::default();
    }

    pub fn is(&self, primary: (u64, u64)) -> bool {
        self.written == Some(primary)
    }

    pub fn lose_power(&mut self, random: &mut Random) {
        let left = if random.one_in(2) { self.written } else { self.durable };
        *self = Self { durable: left, written: left };
    }
}

/// A machine with its disk.
pub struct Node {
    pub id: u64,
    pub clock: Arc<DriftClock>,
    pub data: Data,
    pub following: Standing,
    /// The epoch in which its data was last all that the primary had.
    pub term: u64,
    pub process: Option<Process>,
    /// How often the process was started.
    pub boot: u64,
    /// While the process is stopped (SIGSTOP): what it will find when it goes on.
    pub stopped: Option<VecDeque<Event>>,
    /// The highest epoch that it has ever shown.
    pub seen_epoch: u64,
}

/// What a node has in memory.
pub struct Process {
    pub election: Election,
    pub client: Client,
    pub following: Option<Following>,
    pub term: Option<Term>,
    pub epoch: u64,
    pub commits: BTreeMap<u64, Commit>,
    /// Writers wait, since the node's time.
    pub held: Option<Duration>,
    pub waiting: Vec<(Duration, DbName)>,
    /// Where commits wait for replicas, if they have to.
    pub confirmer: Option<Confirmer>,
    /// When it is woken, by the node's clock.
    pub wake: Duration,
}

/// What a run has seen, so that a test can tell that the runs are worth something.
#[derive(Debug, Default, Clone, Copy)]
pub struct Reached {
    pub terms: u64,
    pub preserved: u64,
    pub rewinds: u64,
    pub snapshots: u64,
    pub hand_overs: u64,
    pub destroyed: u64,
    pub expired: u64,
    pub sync_acks: u64,
    pub bounded_acks: u64,
    pub fallbacks: u64,
    pub acks: u64,
}

impl Reached {
    pub fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.terms, other.terms),
            (&mut self.preserved, other.preserved),
            (&mut self.rewinds, other.rewinds),
            (&mut self.snapshots, other.snapshots),
            (&mut self.hand_overs, other.hand_overs),
            (&mut self.destroyed, other.destroyed),
            (&mut self.expired, other.expired),
            (&mut self.sync_acks, other.sync_acks),
            (&mut self.bounded_acks, other.bounded_acks),
            (&mut self.fallbacks, other.fallbacks),
            (&mut self.acks, other.acks),
        ];
        pairs.into_iter().for_each(|(sum, more)| *sum += more);
    }

    /// Runs that never get anywhere prove nothing.
    pub fn assert_all(&self) {
        let counts = [
            self.terms,
            self.preserved,
            self.rewinds,
            self.snapshots,
            self.hand_overs,
            self.destroyed,
            self.expired,
            self.sync_acks,
            self.bounded_acks,
            self.fallbacks,
            self.acks,
        ];
        assert!(counts.iter().all(|count| *count >= 20), "{self:?}");
    }
}

#[derive(Debug)]
struct Planned(Duration, u64, Box<Event>);

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.1 == other.1
    }
}
impl Eq for Planned {}
impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// See the module's text.
pub struct World {
    pub swarm: Swarm,
    pub random: Random,
    /// The real time.
    pub now: Duration,
    agenda: BinaryHeap<Reverse<Planned>>,
    numbers: u64,
    pub nodes: Vec<Node>,
    pub net: Net,
    pub consul: Consul<Value>,
    pub consul_clock: DriftClock,
    /// Who waits for the answer to a request.
    pub asked: HashMap<u64, (Place, u64)>,
    consul_wake: Duration,
    /// The node to which Consul's answers are late.
    pub late: Option<Place>,
    pub databases: Vec<DbName>,
    pub ledger: Ledger,
    pub reached: Reached,
    pub violations: Vec<String>,
    /// Changes with everything that happens.
    pub trace: u64,
    /// A term ended otherwise than by a hand-over: with `async`, its last commits may be preserved
    /// only.
    pub is_lossy: bool,
    /// How many disks were replaced.
    pub wipes: u64,
    is_told: bool,
    is_calm: bool,
    is_silent: bool,
}

impl World {
    pub fn new(seed: u64, swarm: Swarm) -> Self {
        let mut random = Random::new(seed);
        let consul_clock = DriftClock::new(swarm.drift(&mut random), secs(random.below(1000)));
        let nodes = (0..swarm.nodes).map(|i| new_node(i, 0, &swarm, &mut random)).collect();
        let name = |i| DbName::new(&format!("db{i}")).expect("a name");
        let databases = (0..swarm.databases).map(name).collect();
        let mut world = Self {
            random: random.clone(),
            now: Duration::ZERO,
            agenda: BinaryHeap::new(),
            numbers: 0,
            nodes,
            net: Net::new(swarm.delays),
            consul: Consul::new(random),
            consul_clock,
            asked: HashMap::new(),
            consul_wake: Duration::MAX,
            late: None,
            databases,
            ledger: Ledger::default(),
            reached: Reached::default(),
            violations: Vec::new(),
            trace: seed,
            is_told: std::env::var_os("LITEFS_SIM_TRACE").is_some(),
            is_lossy: false,
            wipes: 0,
            is_calm: false,
            is_silent: false,
            swarm,
        };
        for i in 0..world.nodes.len() {
            let at = world.random.time(ms(0), ms(1500));
            world.plan(at, Event::Undo(Undo::Start(i)));
            world.plan(at, Event::Background { node: i });
        }
        world.plan(ms(500), Event::Client);
        world
    }

    pub fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub fn plan(&mut self, at: Duration, event: Event) {
        let number = self.next_number();
        self.agenda.push(Reverse(Planned(at, number, Box::new(event))));
    }

    /// True while things may go wrong.
    pub fn faults_on(&self) -> bool {
        !self.is_calm
    }

    pub fn calm_down(&mut self) {
        self.is_calm = true;
    }

    /// No client commits any more.
    pub fn silence_clients(&mut self) {
        self.is_silent = true;
    }

    /// A node's time.
    pub fn own(&self, i: Place) -> Duration {
        let clock = &self.nodes[i].clock;
        clock.show(self.now);
        clock.at(self.now)
    }

    /// Says what happens, if somebody listens.
    pub fn note(&mut self, text: impl FnOnce() -> String) {
        if self.is_told {
            println!("{:>12.6} {}", self.now.as_secs_f64(), text());
        }
    }

    pub fn violation(&mut self, text: String) {
        let text = format!("at {:?}: {text}", self.now);
        self.note(|| format!("VIOLATION {text}"));
        self.violations.push(text);
    }

    /// True if commits would be let through on this node now.
    pub fn is_open(&self, i: Place) -> bool {
        self.own(i);
        self.nodes[i].process.is_some() && self.nodes[i].data.disk.is_open()
    }

    /// No two nodes may commit at the same time. Called whenever a gate opens.
    pub fn check_gates(&mut self) {
        let open: Vec<Place> = (0..self.nodes.len()).filter(|i| self.is_open(*i)).collect();
        if open.len() > 1 {
            self.violation(format!("the gates of nodes {open:?} are open at the same time"));
        }
    }

    /// Runs until `until`, or until something is violated.
    pub fn run(&mut self, until: Duration) {
        while self.violations.is_empty() && self.step(until) {}
    }

    /// The next event, if there is one before `until`.
    pub fn step(&mut self, until: Duration) -> bool {
        if self.agenda.peek().is_none_or(|Reverse(planned)| planned.0 > until) {
            self.now = until;
            return false;
        }
        let Reverse(Planned(at, number, event)) = self.agenda.pop().expect("peeked");
        self.now = at;
        let mixed = self.trace ^ at.as_nanos() as u64 ^ number.rotate_left(40);
        self.trace = mixed.wrapping_mul(0x0000_0100_0000_01b3).rotate_left(5);
        self.take(*event);
        true
    }

    fn take(&mut self, event: Event) {
        let owner = self.owner(&event);
        if let Some(queue) = owner.and_then(|i| self.nodes[i].stopped.as_mut()) {
            queue.push_back(event);
            return;
        }
        self.happen(event);
        if let Some(i) = owner {
            self.pump(i);
        }
    }

    /// A stopped process goes on and finds all that has happened meanwhile.
    pub fn go_on(&mut self, i: Place) {
        let Some(events) = self.nodes[i].stopped.take() else { return };
        let mut events: Vec<Event> = events.into();
        if self.random.one_in(2) {
            // A thread in the middle of a commit may be faster than those that hear the news.
            events.sort_by_key(|event| !matches!(event, Event::Commit { .. }));
        }
        self.note(|| format!("n{i} goes on, {} events", events.len()));
        for event in events {
            self.happen(event);
            self.pump(i);
        }
        self.pump(i);
    }

    /// The node where it happens.
    fn owner(&self, event: &Event) -> Option<Place> {
        let ends = |connection| self.net.connections.get(connection);
        match event {
            Event::Dial { connection } | Event::Sent { connection, .. } => {
                Some(ends(connection)?.primary)
            }
            Event::Dialed { connection, .. } | Event::Rewind { connection, .. } => {
                Some(ends(connection)?.replica)
            }
            Event::Deliver { connection, way } => Some(ends(connection)?.to(*way)),
            Event::Closed { to, .. } => Some(*to),
            Event::Wake { node, .. }
            | Event::Answer { node, .. }
            | Event::Deadline { node, .. }
            | Event::TermBegan { node, .. }
            | Event::TakeOverRefused { node, .. }
            | Event::TakeOver { to: node, .. }
            | Event::Commit { node, .. } => Some(*node),
            Event::Request { .. }
            | Event::Background { .. }
            | Event::Consul
            | Event::Client
            | Event::Strike
            | Event::Undo(_) => None,
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Dial { connection } => self.take_dial(connection),
            Event::Dialed { connection, refused } => self.take_dialed(connection, refused),
            Event::Deliver { connection, way } => self.deliver(connection, way),
            Event::Closed { connection, to, reason } => self.take_closed(connection, to, reason),
            Event::Sent { connection, db, outcome } => self.take_outcome(connection, &db, outcome),
            Event::Rewind { connection, db, to } => self.rewind(connection, db, to),
            Event::Wake { node, boot } => {
                if let Some(process) = self.running(node, boot) {
                    process.wake = Duration::MAX;
                }
            }
            Event::Request { node, boot, id, request } => {
                self.request_arrives((node, boot, id), request);
            }
            Event::Answer { node, boot, id, answer } => {
                if self.running(node, boot).is_some() {
                    self.take_answer(node, id, answer);
                }
            }
            Event::Deadline { node, boot, id } => {
                if self.running(node, boot).is_some() {
                    self.take_answer(node, id, Answer::Failed);
                }
            }
            Event::TermBegan { node, boot, epoch, cluster } => {
                if self.running(node, boot).is_some() {
                    self.term_began(node, epoch, cluster);
                }
            }
            Event::TakeOver { from, boot, to } => self.take_over(from, boot, to),
            Event::TakeOverRefused { node, boot } => {
                let now = self.own(node);
                if let Some(process) = self.running(node, boot) {
                    process.election.handle_take_over_refused(now, "refused");
                }
            }
            Event::Consul => self.wake_consul(),
            Event::Client if self.is_silent => (),
            Event::Client => self.try_commit(),
            Event::Commit { node, boot, number } => {
                if self.running(node, boot).is_some() {
                    self.go_on_with_commit(node, number);
                }
            }
            Event::Background { node } => self.do_background(node),
            Event::Strike => self.strike(),
            Event::Undo(undo) => self.undo(undo),
        }
    }

    /// The process, if it is still the one that was meant.
    pub fn running(&mut self, i: Place, boot: u64) -> Option<&mut Process> {
        self.own(i);
        let node = &mut self.nodes[i];
        node.process.as_mut().filter(|_| node.boot == boot)
    }

    /// Lets a node do all that it wants to do now.
    pub fn pump(&mut self, i: Place) {
        if self.nodes[i].process.is_none() || self.nodes[i].stopped.is_some() {
            return;
        }
        self.pump_election(i);
        self.pump_following(i);
        self.pump_term(i);
        self.tick_quorum(i);
        // What the links have learned may concern the election.
        self.pump_election(i);
        self.plan_wake(i);
        self.check_epoch(i);
        self.end_stopped(i);
    }

    fn plan_wake(&mut self, i: Place) {
        let now = self.own(i);
        let node = &mut self.nodes[i];
        let (clock, boot) = (node.clock.clone(), node.boot);
        let Some(process) = node.process.as_mut() else { return };
        let mut at = process.election.poll_timeout();
        if let Some(following) = &process.following {
            at = at.min(following.poll_timeout());
        }
        for session in process.term.iter().flat_map(|term| term.sessions.values()) {
            at = at.min(session.peer.poll_timeout());
        }
        let at = at.min(process.client.poll_timeout()).max(now + Duration::from_micros(50));
        if at < process.wake {
            process.wake = at;
            // Timers are not exact.
            let late = self.random.time(Duration::ZERO, Duration::from_micros(800));
            self.plan(clock.real(at) + late, Event::Wake { node: i, boot });
        }
    }

    pub fn check_epoch(&mut self, i: Place) {
        let epoch = self.nodes[i].data.disk.epoch();
        let seen = self.nodes[i].seen_epoch;
        if epoch < seen {
            self.violation(format!("n{i} goes back from epoch {seen} to {epoch}"));
        }
        self.nodes[i].seen_epoch = epoch;
    }

    fn do_background(&mut self, i: Place) {
        let at = self.now + self.random.time(ms(40), ms(160));
        self.plan(at, Event::Background { node: i });
        if self.nodes[i].process.is_none() || self.nodes[i].stopped.is_some() {
            return;
        }
        self.own(i);
        let cuts = self.random.one_in(self.swarm.cut_rate);
        let disk = &mut self.nodes[i].data.disk;
        for db in disk.databases() {
            if disk.is_prepared(&db) {
                continue;
            }
            disk.sync(&db);
            if cuts {
                disk.cut_log(&db);
            }
        }
    }

    /// Consul's time.
    pub fn consul_now(&self) -> Duration {
        self.consul_clock.at(self.now)
    }

    fn wake_consul(&mut self) {
        self.reached.expired = self.consul.expiries;
        self.consul_wake = Duration::MAX;
        self.pump_consul();
    }

    /// Answers the blocking queries that something has happened for.
    pub fn pump_consul(&mut self) {
        let now = self.consul_now();
        for (id, answer) in self.consul.poll(now) {
            self.answer(id, answer);
        }
        let at = self.consul.poll_timeout().unwrap_or(Duration::MAX);
        if at < self.consul_wake {
            self.consul_wake = at;
            let real = self.consul_clock.real(at).max(self.now);
            self.plan(real, Event::Consul);
        }
    }
}

/// A machine that was never started; `wipes` tells how often its disk was replaced.
pub fn new_node(i: Place, wipes: u64, swarm: &Swarm, random: &mut Random) -> Node {
    let clock = Arc::new(DriftClock::new(swarm.drift(random), secs(random.below(100_000))));
    let id = 0x10 + i as u64 + 0x100 * wipes;
    let disk: Box<dyn Disk> = match swarm.is_real {
        true => Box::new(Real::new(id, clock.clone())),
        false => Box::new(Lists::new(id, clock.clone())),
    };
    Node {
        id,
        clock,
        data: Data { disk, node: id },
        following: Standing::default(),
        term: 0,
        process: None,
        boot: 0,
        stopped: None,
        seen_epoch: 0,
    }
}
