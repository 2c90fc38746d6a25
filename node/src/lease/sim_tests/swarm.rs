//! What a seed's world is like, and which faults it knows: each seed has its own mixture.

use std::time::Duration;

use super::chance::{Random, ms, secs};
use super::net::Delays;
use crate::config::{Bounds, OnTimeout, ReplicationMode, SyncSettings};
use crate::lease::action::{FAST_BEAT, FAST_RIGHT, Settings};

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strike {
    /// A process is killed, and started again later.
    Kill,
    /// Those that are in no sync set lose the primary; then it and its set are killed.
    KillSet,
    /// A machine loses power.
    PowerLoss,
    /// A machine is replaced by a new one.
    Wipe,
    /// A process is stopped and goes on later (SIGSTOP, a suspended machine).
    Stop,
    /// A node is cut off from everything.
    Isolate,
    /// A node is cut off from Consul.
    LoseConsul,
    /// A node is cut off from the other nodes.
    LosePeers,
    /// Two nodes do not reach each other.
    CutPair,
    /// Consul's answers to a node are late, though not too late; then the node is cut off.
    LateAnswers,
    /// As the four above, in one direction only.
    OneWay,
    /// Consul reaches nobody.
    ConsulAway,
    /// Consul has a new leader.
    NewLeader,
    /// Consul lost its data.
    ConsulForgets,
    /// An operator removes the lease's key.
    DeleteKey,
    /// An operator, or some tool, destroys the primary's session.
    DestroySession,
    /// The network is slow.
    Slow,
    /// An operator promotes a node.
    Promote,
    /// An operator demotes the primary.
    Demote,
    /// A node is shut down in order and started again.
    Restart,
}

const ALL: [Strike; 20] = [
    Strike::Kill,
    Strike::KillSet,
    Strike::PowerLoss,
    Strike::Wipe,
    Strike::Stop,
    Strike::Isolate,
    Strike::LoseConsul,
    Strike::LosePeers,
    Strike::CutPair,
    Strike::LateAnswers,
    Strike::OneWay,
    Strike::ConsulAway,
    Strike::NewLeader,
    Strike::ConsulForgets,
    Strike::DeleteKey,
    Strike::DestroySession,
    Strike::Slow,
    Strike::Promote,
    Strike::Demote,
    Strike::Restart,
];

/// What ends no term but in order.
const GENTLE: [Strike; 4] = [Strike::Promote, Strike::Demote, Strike::Restart, Strike::Slow];

/// A seed's world.
#[derive(Debug, Clone)]
pub struct Swarm {
    pub nodes: usize,
    /// Nodes from this one on are no candidates.
    pub candidates: usize,
    pub databases: usize,
    /// The real store on the simulated disk.
    pub is_real: bool,
    pub fast: bool,
    /// What a commit needs of replicas.
    pub mode: ReplicationMode,
    /// Commits wait for the disk.
    pub is_full: bool,
    /// Clocks are wrong by up to so many parts in a million.
    pub drift: i64,
    pub delays: Delays,
    pub commit_interval: Duration,
    /// One in so many of the background's turns moves the log into the base.
    pub cut_rate: u64,
    /// One in so many messages to or from Consul is late or lost.
    pub consul_loss: u64,
    pub ttl: Duration,
    pub lock_delay: Duration,
    pub reconnect_delay: Duration,
    pub strike_interval: Duration,
    pub strikes: Vec<Strike>,
    /// Faults happen until then.
    pub calm: Duration,
}

impl Swarm {
    /// The mixture of a seed.
    pub fn of(seed: u64, is_real: bool) -> Self {
        let mut random = Random::new(seed ^ 0x5741_524d);
        let nodes = 2 + random.index(3);
        let has_bystander = nodes > 2 && random.one_in(4);
        let candidates = nodes - usize::from(has_bystander);
        let mode = Self::mode(&mut random, candidates);
        let is_sync = matches!(mode, ReplicationMode::Sync(_));
        let is_gentle = random.one_in(8);
        let from: &[Strike] = if is_gentle { &GENTLE } else { &ALL };
        let mut strikes: Vec<Strike> = from.iter().copied().filter(|_| random.one_in(3)).collect();
        if strikes.contains(&Strike::ConsulForgets) {
            // A new machine at a Consul that knows of nothing begins a cluster: what else?
            strikes.retain(|strike| *strike != Strike::Wipe);
        }
        if strikes.is_empty() {
            strikes.push(random.pick(from));
        }
        Self {
            nodes,
            candidates,
            databases: 1 + random.index(3),
            is_real,
            fast: !random.one_in(4),
            mode,
            is_full: is_sync || random.one_in(2),
            drift: random.pick(&[0, 1_000, 50_000, 50_000, 50_000]),
            delays: Delays {
                usual: ms(random.pick(&[1, 4, 4, 40])),
                spike: ms(random.pick(&[5, 100, 300, 1500])),
                spike_rate: random.pick(&[10, 40, 200]),
            },
            commit_interval: ms(random.pick(&[15, 50, 120, 300])),
            cut_rate: random.pick(&[5, 30, 200]),
            consul_loss: random.pick(&[20, 100, 1000]),
            ttl: secs(10),
            lock_delay: random.pick(&[secs(0), secs(1), secs(1), secs(15)]),
            reconnect_delay: ms(random.pick(&[100, 1000])),
            strike_interval: ms(random.pick(&[1500, 4000, 9000])),
            strikes,
            calm: secs(random.pick(&[25, 40])),
        }
    }

    fn mode(random: &mut Random, candidates: usize) -> ReplicationMode {
        let replicas = 1 + random.index((candidates - 1).min(2));
        let sync = |timeout, on_timeout| SyncSettings { replicas, timeout, on_timeout };
        match random.below(10) {
            0..3 => ReplicationMode::Sync(sync(secs(5), OnTimeout::Wait)),
            3 => ReplicationMode::Sync(sync(ms(400), OnTimeout::Async)),
            4 => {
                let max_transactions = Some(1 + random.below(6));
                ReplicationMode::Bounded(Bounds { max_lag: None, max_transactions })
            }
            5 => {
                let max_lag = Some(ms(random.pick(&[50, 300, 1000])));
                ReplicationMode::Bounded(Bounds { max_lag, max_transactions: None })
            }
            _ => ReplicationMode::Async,
        }
    }

    /// True in mode `sync`.
    pub fn is_sync(&self) -> bool {
        matches!(self.mode, ReplicationMode::Sync(_))
    }

    /// True if commits wait for replicas however long it takes.
    pub fn always_waits(&self) -> bool {
        let ReplicationMode::Sync(settings) = self.mode else { return false };
        settings.on_timeout == OnTimeout::Wait
    }

    /// A quiet cluster of three candidates.
    pub fn plain(fast: bool) -> Self {
        Self {
            nodes: 3,
            candidates: 3,
            databases: 2,
            is_real: false,
            fast,
            mode: ReplicationMode::Async,
            is_full: true,
            drift: 50_000,
            delays: Delays { usual: ms(2), spike: ms(20), spike_rate: 50 },
            commit_interval: ms(20),
            cut_rate: 50,
            consul_loss: 1_000_000,
            ttl: secs(10),
            lock_delay: secs(1),
            reconnect_delay: secs(1),
            strike_interval: secs(1),
            strikes: Vec::new(),
            calm: secs(20),
        }
    }

    /// True if nodes only change their roles.
    pub fn is_gentle(&self) -> bool {
        self.strikes.iter().all(|strike| GENTLE.contains(strike))
    }

    /// How wrong a clock is, in parts per million; often as wrong as may be.
    pub fn drift(&self, random: &mut Random) -> i64 {
        match random.below(3) {
            0 => self.drift,
            1 => -self.drift,
            _ => random.below(2 * self.drift as u64 + 1) as i64 - self.drift,
        }
    }

    /// A node's settings.
    pub fn settings(&self, node: u64, place: usize) -> Settings {
        let right = if self.fast { FAST_RIGHT } else { self.ttl - secs(1) };
        Settings {
            node,
            candidate: place < self.candidates,
            promote: false,
            fast: self.fast,
            sync: self.is_sync(),
            right,
            beat_interval: if self.fast { FAST_BEAT } else { right / 3 },
            session_interval: self.ttl / 3,
            reconnect_delay: self.reconnect_delay,
            demote_delay: secs(10),
            new_cluster: format!("LFSC{node:016X}"),
        }
    }
}
