//! In virtual time.

mod candidacy;
mod failover;
mod passing;
mod right;
mod swarm;

use super::*;
use crate::lease::action::{FAST_BEAT, FAST_RIGHT, HOLD_TIMEOUT, Replacement};
use crate::lease::view::{Key, NodeEntry, NodeRecord, Released, TermRecord};

/// This node.
const ME: u64 = 1;
/// The right that the guard waits out.
const GUARD: Duration = Duration::from_micros(4_025_000);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn settings() -> Settings {
    Settings {
        node: ME,
        candidate: true,
        promote: false,
        fast: true,
        sync: false,
        right: FAST_RIGHT,
        beat_interval: FAST_BEAT,
        session_interval: ms(3300),
        reconnect_delay: ms(1000),
        demote_delay: ms(10_000),
        new_cluster: "NEW".into(),
    }
}

/// A node that was in sync in epoch 5.
fn standing() -> Standing {
    Standing { cluster: Some("C".into()), epoch: 5, term: 5, transactions: 100, in_sync: false }
}

fn session(name: &str) -> SessionId {
    SessionId(name.into())
}

fn term(node: u64) -> TermRecord {
    TermRecord {
        node,
        right: FAST_RIGHT,
        fast: true,
        beat: 7,
        transactions: 0,
        floor: 0,
        sync: BTreeSet::new(),
        released: None,
    }
}

fn entry(node: u64, term: u64, transactions: u64) -> NodeEntry {
    let record =
        NodeRecord { node, candidate: true, epoch: term, term, transactions, link: Link::None };
    NodeEntry { session: session(&format!("s{node}")), record }
}

fn holder(node: u64) -> Holder {
    Holder { node, hostname: format!("n{node}"), advertise_url: format!("http://n{node}") }
}

/// The key is gone; the last primary was node 2, whose record has this index.
fn free(index: u64) -> View {
    View {
        index,
        key: None,
        term: Some((index, term(2))),
        cluster: Some("C".into()),
        nodes: Vec::new(),
    }
}

/// The last primary, node 2, gave the lease back.
fn released(index: u64, to: Option<u64>) -> View {
    let mut view = free(index);
    let key = Key { index, session: None, holder: Some(holder(2)) };
    view.key = Some(key);
    view.term = Some((index, TermRecord { released: Some(Released { to }), ..term(2) }));
    view
}

/// A node holds the lease since `key`; its newest beat is `index`.
fn held(node: u64, key: u64, index: u64) -> View {
    let session = Some(session(&format!("s{node}")));
    let key = Key { index: key, session, holder: Some(holder(node)) };
    View { index, key: Some(key), term: Some((index, term(node))), ..free(index) }
}

/// One machine, with a driver that answers what is of no interest.
struct Rig {
    e: Election,
    now: Duration,
    /// The record that was published last.
    record: Option<NodeRecord>,
    /// What Consul shows, as far as it was shown.
    view: View,
}

impl Rig {
    /// Session `s1` is open, the data is known, Consul is not.
    fn new(settings: Settings) -> Self {
        let mut rig = Self {
            e: Election::new(settings),
            now: ms(100_000),
            record: None,
            view: View::default(),
        };
        assert!(rig.actions().is_empty());
        rig.e.handle_standing(standing());
        assert!(rig.actions().is_empty());
        rig
    }

    /// With this view, just asked for and seen.
    fn seeing(view: View) -> Self {
        Self::with(settings(), standing(), view)
    }

    fn with(settings: Settings, standing: Standing, view: View) -> Self {
        let mut rig = Self::new(settings);
        rig.e.handle_standing(standing);
        rig.see(view);
        rig
    }

    /// The primary of epoch 20, acquired at 100 s.
    fn primary() -> Self {
        let mut rig = Self::seeing(released(10, None));
        let acquire = rig.acquire().expect("the lease is free");
        assert_eq!(acquire.expected, Some(10));
        rig.e.handle_acquired(rig.now, Acquisition::Acquired { index: 20 });
        let begin = Action::BeginTerm { epoch: 20, cluster: "C".into() };
        let actions = rig.actions();
        assert!(actions.contains(&begin) && has_beat(&actions), "{actions:?}");
        rig.e.handle_replaced(rig.now, Replacement::Failed);
        rig.e.handle_term_began(rig.now, 20, Ok(()));
        assert_eq!(rig.actions(), [open(rig.now + FAST_RIGHT)]);
        rig.see_own();
        assert_eq!(rig.actions(), []);
        while rig.e.poll_transition().is_some() {}
        rig
    }

    /// A view in which this node is primary, with a candidate that could follow.
    fn see_own(&mut self) {
        let mut view = held(ME, 20, 20);
        view.nodes.push(entry(3, 5, 100));
        self.see(view);
    }

    fn see(&mut self, view: View) {
        self.view = view.clone();
        self.e.handle_view(self.now, self.now, view);
    }

    fn pass(&mut self, time: Duration) -> &mut Self {
        self.now += time;
        self
    }

    /// All that is to be done now, but what concerns the session and the record.
    fn actions(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        for _ in 0..100 {
            match self.e.poll_action(self.now) {
                Some(Action::OpenSession) => {
                    self.e.handle_session(self.now, Some(session("s1")));
                }
                Some(Action::RenewSession(_)) => {
                    self.e.handle_session_renewed(self.now, Renewal::Renewed);
                }
                Some(Action::Publish(_, record)) => {
                    self.record = Some(record);
                    self.e.handle_published(self.now, true);
                }
                Some(action) => actions.push(action),
                None => {
                    assert!(self.e.poll_timeout() > self.now, "it would be polled without end");
                    return actions;
                }
            }
        }
        panic!("there is no end of actions: {actions:?}");
    }

    /// The acquisition that is asked for now, alone; after another look at what was seen last, if
    /// that is wanted.
    fn acquire(&mut self) -> Option<Acquire> {
        let mut actions = self.actions();
        if actions == [Action::Look] {
            self.see(self.view.clone());
            actions = self.actions();
        }
        match actions.pop() {
            Some(Action::Acquire(acquire)) if actions.is_empty() => Some(acquire),
            None => None,
            other => panic!("{actions:?}, {other:?}"),
        }
    }

    /// The beat that is asked for now, alone.
    fn beat(&mut self) -> Option<crate::lease::action::Replace> {
        let mut actions = self.actions();
        match actions.pop() {
            Some(Action::Beat(replace)) if actions.is_empty() => Some(replace),
            None => None,
            other => panic!("{actions:?}, {other:?}"),
        }
    }

    /// The record that is published now, if one is.
    fn published(&mut self) -> Option<NodeRecord> {
        self.record = None;
        self.actions();
        self.record.take()
    }

    fn transitions(&mut self) -> Vec<(Role, Role)> {
        std::iter::from_fn(|| self.e.poll_transition()).map(|t| (t.from, t.to)).collect()
    }
}

fn open(until: Duration) -> Action {
    Action::OpenGate { until }
}

fn has_beat(actions: &[Action]) -> bool {
    actions.iter().any(|action| matches!(action, Action::Beat(_)))
}

fn has_open(actions: &[Action]) -> bool {
    actions.iter().any(|action| matches!(action, Action::OpenGate { .. }))
}

/// Where an action is among others.
fn place(actions: &[Action], is_it: impl Fn(&Action) -> bool) -> usize {
    actions.iter().position(is_it).unwrap_or_else(|| panic!("it is not among {actions:?}"))
}

fn closes(action: &Action) -> bool {
    matches!(action, Action::CloseGate { .. })
}

fn ends(action: &Action) -> bool {
    matches!(action, Action::EndTerm { .. })
}
