//! Risk: two open gates at once, or none for ever. Several machines with clocks that drift, a
//! lease service that only serialises, and requests that are late, lost, or executed unheard.
//! Sessions end at any moment, keys and everything are deleted, and there is no lock-delay.

use std::collections::BTreeMap;

use litefs_store::sim::Rng;

use super::*;
use crate::lease::action::Replace;

const NODES: u64 = 4;
const SEEDS: u64 = 60;
/// Faults happen until then; afterwards somebody must become primary.
const CALM_FROM: Duration = Duration::from_secs(60);
const END: Duration = Duration::from_secs(110);

/// The lease service.
#[derive(Default)]
struct Service {
    view: View,
    sessions: Vec<SessionId>,
    opened: u64,
}

impl Service {
    /// It loses its data, and counts from the beginning.
    fn forget(&mut self) {
        self.sessions.clear();
        self.view = View::default();
    }

    fn end(&mut self, session: &SessionId) {
        self.sessions.retain(|other| other != session);
        self.view.index += 1;
        self.view.nodes.retain(|entry| entry.session != *session);
        self.view.key.take_if(|key| key.session.as_ref() == Some(session));
    }

    fn execute(&mut self, node: u64, action: &Action) -> Answer {
        match action {
            Action::OpenSession => {
                self.opened += 1;
                let id = session(&format!("{node}-{}", self.opened));
                self.sessions.push(id.clone());
                Answer::Session(Some(id))
            }
            Action::RenewSession(session) if self.sessions.contains(session) => {
                Answer::Renewed(Renewal::Renewed)
            }
            Action::RenewSession(_) => Answer::Renewed(Renewal::Gone),
            Action::Look => Answer::View(Box::new(self.view.clone())),
            Action::Publish(session, record) => Answer::Published(self.publish(session, record)),
            Action::Acquire(acquire) => Answer::Acquired(self.acquire(node, acquire)),
            Action::Beat(replace) => Answer::Beat(self.replace(replace, false)),
            Action::Release(replace) => Answer::Released(self.replace(replace, true)),
            Action::DestroySession(session) => {
                self.end(session);
                Answer::Destroyed
            }
            other => panic!("{other:?} is no request"),
        }
    }

    fn publish(&mut self, session: &SessionId, record: &NodeRecord) -> bool {
        if !self.sessions.contains(session) {
            return false;
        }
        self.view.nodes.retain(|entry| entry.session != *session);
        self.view.nodes.push(NodeEntry { session: session.clone(), record: record.clone() });
        self.view.index += 1;
        true
    }

    fn acquire(&mut self, node: u64, acquire: &Acquire) -> Acquisition {
        let is_held = self.view.holding_session().is_some_and(|s| *s != acquire.session);
        if is_held
            || !self.sessions.contains(&acquire.session)
            || self.view.term_index() != acquire.expected
            || (acquire.cluster.is_some() && self.view.cluster.is_some())
        {
            return Acquisition::Refused;
        }
        self.view.index += 1;
        let index = self.view.index;
        let session = Some(acquire.session.clone());
        self.view.key = Some(Key { index, session, holder: Some(holder(node)) });
        self.view.term = Some((index, acquire.term.clone()));
        let cluster = self.view.cluster.take();
        self.view.cluster = cluster.or_else(|| acquire.cluster.clone());
        Acquisition::Acquired { index }
    }

    fn replace(&mut self, replace: &Replace, is_release: bool) -> Replacement {
        if self.view.holding_session() != Some(&replace.session) {
            return Replacement::Gone;
        }
        if self.view.term_index() != Some(replace.expected) {
            return Replacement::Conflict;
        }
        self.view.index += 1;
        let index = self.view.index;
        self.view.term = Some((index, replace.term.clone()));
        if let Some(key) = self.view.key.as_mut().filter(|_| is_release) {
            (key.session, key.index) = (None, index);
        }
        Replacement::Done { index }
    }
}

#[derive(Debug, Clone)]
enum Answer {
    Session(Option<SessionId>),
    Renewed(Renewal),
    View(Box<View>),
    LookFailed,
    Published(bool),
    Acquired(Acquisition),
    Beat(Replacement),
    Released(Replacement),
    Destroyed,
}

fn failure(action: &Action) -> Answer {
    match action {
        Action::OpenSession => Answer::Session(None),
        Action::RenewSession(_) => Answer::Renewed(Renewal::Failed),
        Action::Publish(..) => Answer::Published(false),
        Action::Acquire(_) => Answer::Acquired(Acquisition::Failed),
        Action::Beat(_) => Answer::Beat(Replacement::Failed),
        Action::Release(_) => Answer::Released(Replacement::Failed),
        Action::DestroySession(_) => Answer::Destroyed,
        _ => Answer::LookFailed,
    }
}

enum Event {
    Poll(u64),
    Watch(u64),
    /// A request reaches the service; its answer comes later, if that is said.
    Arrive {
        node: u64,
        life: u64,
        action: Action,
        asked: Duration,
        answered: bool,
    },
    Answer {
        node: u64,
        life: u64,
        asked: Duration,
        answer: Answer,
    },
    Began {
        node: u64,
        life: u64,
        epoch: u64,
    },
    Held {
        node: u64,
        life: u64,
        result: Result<(), String>,
    },
    CaughtUp {
        node: u64,
        life: u64,
        result: Result<(), String>,
    },
    Linked {
        node: u64,
        life: u64,
        epoch: u64,
    },
    TakeOver {
        target: u64,
    },
    Strike,
    EndSession(SessionId),
}

struct Node {
    e: Election,
    life: u64,
    rate: f64,
    standing: Standing,
    /// By its own clock.
    gate: Duration,
    stopped_until: Duration,
    /// Nothing passes between it and the service before.
    cut_until: Duration,
    /// The one poll that counts.
    poll_at: Duration,
}

struct World {
    random: Rng,
    now: Duration,
    service: Service,
    nodes: BTreeMap<u64, Node>,
    events: BTreeMap<(Duration, u64), Event>,
    count: u64,
    terms: u64,
    is_quiet: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Rng::new(seed);
        let nodes = (1..=NODES).map(|id| {
            let settings = Settings { node: id, promote: random.one_in(4), ..settings() };
            let rate = 0.95 + 0.01 * random.below(11) as f64;
            let standing = Standing::default();
            let e = Election::new(settings);
            let zero = Duration::ZERO;
            let node = Node {
                e,
                life: 0,
                rate,
                standing,
                gate: zero,
                stopped_until: zero,
                cut_until: zero,
                poll_at: zero,
            };
            (id, node)
        });
        let nodes = nodes.collect();
        let now = Duration::from_secs(1);
        let (service, events) = (Service::default(), BTreeMap::new());
        let mut world =
            Self { random, now, service, nodes, events, count: 0, terms: 0, is_quiet: false };
        for id in 1..=NODES {
            world.start(id);
            world.push(Duration::ZERO, Event::Watch(id));
        }
        world.push(ms(1000), Event::Strike);
        world
    }

    fn push(&mut self, after: Duration, event: Event) {
        self.count += 1;
        self.events.insert((self.now + after, self.count), event);
    }

    fn local(&self, id: u64) -> Duration {
        self.now.mul_f64(self.nodes[&id].rate)
    }

    fn start(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).unwrap();
        node.life += 1;
        let settings = node.e.settings.clone();
        node.e = Election::new(settings);
        node.e.handle_standing(node.standing.clone());
        self.poll(id);
    }

    /// A delay: mostly short, sometimes beyond every deadline.
    fn delay(&mut self) -> Duration {
        match self.random.below(if self.is_quiet { 20 } else { 30 }) {
            0..20 => ms(1 + self.random.below(30)),
            20..27 => ms(self.random.below(900)),
            _ => ms(self.random.below(9000)),
        }
    }

    fn run(&mut self) {
        while let Some(((at, _), event)) = self.events.pop_first() {
            if at > END {
                break;
            }
            self.now = at;
            if !self.is_quiet && at >= CALM_FROM {
                self.is_quiet = true;
            }
            self.handle(event);
        }
    }

    fn handle(&mut self, event: Event) {
        let id = match &event {
            Event::Poll(node) | Event::Watch(node) => Some(*node),
            Event::Answer { node, .. } | Event::Began { node, .. } => Some(*node),
            Event::Held { node, .. } | Event::CaughtUp { node, .. } => Some(*node),
            Event::Linked { node, .. } => Some(*node),
            _ => None,
        };
        // A stopped process does nothing; what came meanwhile waits.
        if let Some(until) = id.map(|id| self.nodes[&id].stopped_until).filter(|u| *u > self.now) {
            return self.push(until - self.now, event);
        }
        match event {
            Event::Poll(node) if self.nodes[&node].poll_at > self.now => (),
            Event::Strike => self.strike(),
            Event::EndSession(session) => self.service.end(&session),
            Event::Answer { node, asked, answer: Answer::View(_), .. } if self.is_cut(node) => {
                // The watch sees nothing; a look fails.
                let (life, answer) = (self.nodes[&node].life, Answer::LookFailed);
                self.tell(node, Event::Answer { node, life, asked, answer });
            }
            Event::Arrive { node, life, action, asked, answered } => {
                let answer = self.service.execute(node, &action);
                if answered {
                    let delay = self.delay().min(ms(400));
                    self.push(delay, Event::Answer { node, life, asked, answer });
                }
            }
            Event::TakeOver { target } => {
                for id in 1..=NODES {
                    let local = self.local(id);
                    let node = self.nodes.get_mut(&id).unwrap();
                    // Refused by all but the primary.
                    let _ = node.e.handle_take_over(local, target);
                    self.poll(id);
                }
            }
            event => self.tell(id.unwrap(), event),
        }
    }

    fn tell(&mut self, id: u64, event: Event) {
        let local = self.local(id);
        let view = self.service.view.clone();
        let node = self.nodes.get_mut(&id).unwrap();
        let e = &mut node.e;
        match event {
            Event::Watch(_) => {
                let asked = local;
                let life = node.life;
                let delay = self.delay();
                self.push(
                    delay,
                    Event::Answer { node: id, life, asked, answer: Answer::View(Box::new(view)) },
                );
                self.push(ms(100), Event::Watch(id));
            }
            Event::Answer { life, asked, answer, .. } if life == node.life => match answer {
                Answer::Session(session) => e.handle_session(local, session),
                Answer::Renewed(renewal) => e.handle_session_renewed(local, renewal),
                Answer::View(view) => e.handle_view(local, asked, *view),
                Answer::LookFailed => e.handle_look_failed(local),
                Answer::Published(is_written) => e.handle_published(local, is_written),
                Answer::Acquired(acquisition) => e.handle_acquired(local, acquisition),
                Answer::Beat(replacement) => e.handle_replaced(local, replacement),
                Answer::Released(replacement) => e.handle_replaced(local, replacement),
                Answer::Destroyed => e.handle_destroyed(local),
            },
            Event::Began { life, epoch, .. } if life == node.life => {
                node.standing.epoch = epoch;
                node.standing.term = epoch;
                let standing = node.standing.clone();
                e.handle_standing(standing);
                e.handle_term_began(local, epoch, Ok(()));
            }
            Event::Held { life, result, .. } if life == node.life => e.handle_held(local, result),
            Event::CaughtUp { life, result, .. } if life == node.life => {
                e.handle_caught_up(local, result);
            }
            Event::Linked { life, epoch, .. }
                if life == node.life && epoch >= node.standing.epoch =>
            {
                node.standing =
                    Standing { cluster: view.cluster, epoch, term: epoch, ..Standing::default() };
                node.standing.in_sync = true;
                e.handle_standing(node.standing.clone());
                e.handle_linked(epoch);
            }
            _ => (),
        }
        self.poll(id);
    }

    fn poll(&mut self, id: u64) {
        let local = self.local(id);
        while let Some(action) = self.nodes.get_mut(&id).unwrap().e.poll_action(local) {
            self.act(id, local, action);
        }
        let node = self.nodes.get_mut(&id).unwrap();
        while node.e.poll_transition().is_some() {}
        let next = node.e.poll_timeout();
        node.poll_at = Duration::MAX;
        if next < Duration::MAX {
            let after = (next - local).div_f64(node.rate) + Duration::from_nanos(1);
            node.poll_at = self.now + after;
            self.push(after, Event::Poll(id));
        }
    }

    fn act(&mut self, id: u64, local: Duration, action: Action) {
        let life = self.nodes[&id].life;
        match action {
            Action::OpenGate { until } => self.open(id, local, until),
            Action::CloseGate { .. } => self.nodes.get_mut(&id).unwrap().gate = Duration::ZERO,
            Action::BeginTerm { epoch, cluster } => {
                let node = self.nodes.get_mut(&id).unwrap();
                assert!(epoch >= node.standing.epoch, "the epoch went back");
                node.standing.cluster = Some(cluster);
                self.terms += 1;
                let delay = self.delay();
                self.push(delay, Event::Began { node: id, life, epoch });
            }
            Action::HoldWriters => {
                let result = if self.random.one_in(4) { Err("slow".into()) } else { Ok(()) };
                let delay = self.delay();
                self.push(delay, Event::Held { node: id, life, result });
            }
            Action::AwaitTarget(_) => {
                let result = if self.random.one_in(4) { Err("away".into()) } else { Ok(()) };
                let delay = self.delay();
                self.push(delay, Event::CaughtUp { node: id, life, result });
            }
            Action::Follow { epoch, .. } => {
                let delay = self.delay();
                self.push(delay, Event::Linked { node: id, life, epoch });
            }
            Action::AskTakeOver => {
                let delay = self.delay();
                self.push(delay, Event::TakeOver { target: id });
            }
            Action::EndTerm { .. } | Action::NoteSyncSet(_) => (),
            request => self.send(id, local, request),
        }
    }

    /// The request is lost, or executed some time; its answer is in time, or a failure is noted.
    fn send(&mut self, node: u64, asked: Duration, action: Action) {
        let life = self.nodes[&node].life;
        let is_lost = !self.is_quiet && (self.is_cut(node) || self.random.one_in(12));
        let arrives = self.delay();
        let answered = !is_lost && arrives < ms(500) && (self.is_quiet || !self.random.one_in(12));
        if !answered {
            let answer = failure(&action);
            self.push(ms(1000), Event::Answer { node, life, asked, answer });
        }
        if !is_lost {
            self.push(arrives, Event::Arrive { node, life, action, asked, answered });
        }
    }

    fn is_cut(&self, id: u64) -> bool {
        self.nodes[&id].cut_until > self.now
    }

    /// The primary is cut off, and its session ends before it knows.
    fn strike_primary(&mut self) {
        let Some(key) = self.service.view.key.clone() else { return };
        let (Some(session), Some(holder)) = (key.session, key.holder) else { return };
        let length = ms(self.random.below(8000));
        self.nodes.get_mut(&holder.node).unwrap().cut_until = self.now + length;
        let after = ms(self.random.below(1500));
        self.push(after, Event::EndSession(session));
    }

    /// The one rule.
    fn open(&mut self, id: u64, local: Duration, until: Duration) {
        for (other, node) in self.nodes.iter().filter(|(other, _)| **other != id) {
            let theirs = self.now.mul_f64(node.rate);
            assert!(
                until <= local || theirs >= node.gate,
                "{:?}: nodes {other} and {id} may both commit",
                self.now
            );
        }
        self.nodes.get_mut(&id).unwrap().gate = until;
    }

    fn strike(&mut self) {
        if self.is_quiet {
            return;
        }
        let id = 1 + self.random.below(NODES);
        let local = self.local(id);
        match self.random.below(16) {
            0 | 1 => {
                let sessions = &self.service.sessions;
                let at = self.random.below(sessions.len().max(1) as u64) as usize;
                if let Some(session) = sessions.get(at).cloned() {
                    self.service.end(&session);
                }
            }
            2 => {
                self.service.view.index += 1;
                self.service.view.key = None;
            }
            3 => {
                let length = self.random.below(25_000);
                self.nodes.get_mut(&id).unwrap().stopped_until = self.now + ms(length);
            }
            4 => {
                // Killed and started anew: its gate is closed, as its process is gone.
                self.nodes.get_mut(&id).unwrap().gate = Duration::ZERO;
                self.start(id);
            }
            5 => {
                let node = self.nodes.get_mut(&id).unwrap();
                let _ = node.e.handle_demote(local, None);
            }
            6 => self.push(Duration::ZERO, Event::TakeOver { target: id }),
            7 => {
                let _ = self.nodes.get_mut(&id).unwrap().e.handle_promote(local);
            }
            8 => self.service.forget(),
            9..14 => self.strike_primary(),
            _ => self.nodes.get_mut(&id).unwrap().e.handle_unlinked(),
        }
        self.poll(id);
        let next = 200 + self.random.below(3000);
        self.push(ms(next), Event::Strike);
    }
}

#[test]
fn two_gates_are_never_open_and_one_is_in_the_end() {
    let mut terms = 0;
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run()));
        assert!(outcome.is_ok(), "seed {seed}");
        let open = (1..=NODES).filter(|id| world.local(*id) < world.nodes[id].gate).count();
        let states: Vec<_> =
            world.nodes.values().map(|node| (node.e.role(), node.e.reason())).collect();
        assert_eq!(open, 1, "seed {seed}: {states:?}");
        terms += world.terms;
    }
    assert!(terms > 5 * SEEDS, "hardly anything happened: {terms} terms");
}
