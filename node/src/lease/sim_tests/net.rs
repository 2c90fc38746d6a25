//! The network: who reaches whom, how long it takes, and the connections between nodes.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use litefs_store::DbName;

use super::chance::{Random, ms};
use super::data::Record;
use crate::replication::wire::{FromPrimary, FromReplica, StreamFrame, StreamReset};

/// A node's place in the network, or Consul's, which is the last one.
pub type Place = usize;

/// A one-way way within a connection, on which everything arrives in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// The control stream to the primary.
    Up,
    /// The control stream to the replica.
    Down,
    /// A database's stream to the replica.
    Stream(u64),
}

/// What travels on it.
#[derive(Debug)]
pub enum Packet {
    Up(FromReplica),
    Down(FromPrimary),
    Frame(DbName, StreamFrame, Record),
    Reset(DbName, StreamReset),
}

/// How long things take on the way.
#[derive(Debug, Clone, Copy)]
pub struct Delays {
    pub usual: Duration,
    pub spike: Duration,
    /// One in so many is a spike.
    pub spike_rate: u64,
}

/// A connection, as long as either end knows of it.
#[derive(Debug)]
pub struct Connection {
    pub replica: Place,
    pub primary: Place,
    queues: BTreeMap<Way, VecDeque<Packet>>,
    latest: BTreeMap<Way, Duration>,
}

impl Connection {
    pub fn from(&self, way: Way) -> Place {
        if way == Way::Up { self.replica } else { self.primary }
    }

    pub fn to(&self, way: Way) -> Place {
        if way == Way::Up { self.primary } else { self.replica }
    }

    /// Queues a packet; when it arrives at the earliest.
    pub fn push(&mut self, way: Way, packet: Packet, arrival: Duration) -> Duration {
        if matches!(packet, Packet::Reset(..)) {
            // It overtakes what is on its way.
            self.queues.entry(way).or_default().clear();
        }
        self.queues.entry(way).or_default().push_back(packet);
        let latest = self.latest.entry(way).or_default();
        *latest = (*latest).max(arrival);
        *latest
    }

    pub fn first(&self, way: Way) -> Option<&Packet> {
        self.queues.get(&way)?.front()
    }

    pub fn pop(&mut self, way: Way) -> Option<Packet> {
        self.queues.get_mut(&way)?.pop_front()
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Net {
    blocked: HashSet<(Place, Place)>,
    pub delays: Delays,
    pub connections: BTreeMap<u64, Connection>,
    last: u64,
}

impl Net {
    pub fn new(delays: Delays) -> Self {
        Self { blocked: HashSet::new(), delays, connections: BTreeMap::new(), last: 0 }
    }

    pub fn reaches(&self, from: Place, to: Place) -> bool {
        !self.blocked.contains(&(from, to))
    }

    pub fn block(&mut self, from: Place, to: Place) {
        self.blocked.insert((from, to));
    }

    pub fn open(&mut self, from: Place, to: Place) {
        self.blocked.remove(&(from, to));
    }

    pub fn heal(&mut self) {
        self.blocked.clear();
    }

    pub fn delay(&self, random: &mut Random) -> Duration {
        let Delays { usual, spike, spike_rate } = self.delays;
        let most = if random.one_in(spike_rate) { spike } else { usual };
        random.time(Duration::from_micros(100), most)
    }

    /// How long until a packet that did not get through is sent again.
    pub fn resend(random: &mut Random) -> Duration {
        random.time(ms(30), ms(400))
    }

    pub fn connect(&mut self, replica: Place, primary: Place) -> u64 {
        self.last += 1;
        let (queues, latest) = (BTreeMap::new(), BTreeMap::new());
        let connection = Connection { replica, primary, queues, latest };
        self.connections.insert(self.last, connection);
        self.last
    }
}
