//! A model of Consul: sessions, locks, blocking queries, as its leader sees them.
//!
//! What it keeps to (Consul's documentation, and measurements with an agent):
//! * a session expires between its TTL and twice that after the last renewal that the leader saw,
//!   by the leader's own clock; at a change of leader, all sessions start anew;
//! * when a session ends, the keys that it holds are deleted, and nobody can acquire them for the
//!   session's lock-delay. The delays are kept in the leader's memory: a new leader knows none;
//! * acquiring fails if another session holds the key; the one that holds it writes it anew;
//! * releasing keeps the key and its new value; a transaction is done as a whole, at one index, or
//!   not at all;
//! * each change has an index. A blocking query answers once its prefix has changed after the index
//!   that it names, or when its time is up. Removed keys count as changes;
//! * all reads are consistent ones. What is late or lost is the network's matter.

use std::collections::BTreeMap;
use std::time::Duration;

use super::chance::Random;

/// A session's id.
pub type SessionId = String;

/// What a client asks for.
#[derive(Debug, Clone)]
pub enum Request<V> {
    CreateSession {
        ttl: Duration,
        lock_delay: Duration,
    },
    Renew(SessionId),
    Destroy(SessionId),
    Acquire {
        key: String,
        value: V,
        session: SessionId,
    },
    /// A transaction: all of it or nothing.
    Transaction(Vec<Op<V>>),
    /// All keys that begin with a prefix, once something changed after that index.
    List {
        prefix: String,
        after: u64,
        wait: Duration,
    },
}

/// A part of a transaction.
#[derive(Debug, Clone)]
pub enum Op<V> {
    /// Acquires a key; fails during its lock-delay.
    Lock { key: String, value: V, session: SessionId },
    /// Releases it, with a new value.
    Unlock { key: String, value: V, session: SessionId },
    /// Writes a key if its index is that one; 0: if it does not exist.
    Cas { key: String, value: V, index: u64 },
    /// Fails unless the session holds the key.
    CheckSession { key: String, session: SessionId },
}

/// What it gets.
#[derive(Debug, Clone)]
pub enum Answer<V> {
    Session(SessionId),
    /// Done, or refused.
    Done(bool),
    /// The transaction is done, at this index.
    Committed(u64),
    /// The transaction failed at this part of it; nothing was written.
    RolledBack(usize),
    /// There is no such session.
    Gone,
    List {
        index: u64,
        entries: Vec<Entry<V>>,
    },
    /// There is no leader, or the request makes no sense.
    Failed,
}

/// A key.
#[derive(Debug, Clone)]
pub struct Entry<V> {
    pub key: String,
    pub value: V,
    pub session: Option<SessionId>,
    pub modified: u64,
}

#[derive(Debug)]
struct Session {
    ttl: Duration,
    lock_delay: Duration,
    expires: Duration,
}

/// A blocking query that waits.
#[derive(Debug)]
struct Waiter {
    id: u64,
    prefix: String,
    after: u64,
    until: Duration,
}

/// See the module's text. All times are the leader's.
#[derive(Debug)]
pub struct Consul<V> {
    random: Random,
    index: u64,
    keys: BTreeMap<String, Entry<V>>,
    /// When a key was last removed.
    removed: BTreeMap<String, u64>,
    sessions: BTreeMap<SessionId, Session>,
    delays: BTreeMap<String, Duration>,
    waiters: Vec<Waiter>,
    /// There is no leader before this time.
    leaderless: Duration,
    pub expiries: u64,
}

impl<V: Clone> Consul<V> {
    pub fn new(random: Random) -> Self {
        Self {
            random,
            index: 10,
            keys: BTreeMap::new(),
            removed: BTreeMap::new(),
            sessions: BTreeMap::new(),
            delays: BTreeMap::new(),
            waiters: Vec::new(),
            leaderless: Duration::ZERO,
            expiries: 0,
        }
    }

    /// Answers, or lets a blocking query wait: then [`Consul::poll`] answers it under its id.
    pub fn handle(&mut self, now: Duration, id: u64, request: Request<V>) -> Option<Answer<V>> {
        self.expire(now);
        if now < self.leaderless {
            return Some(Answer::Failed);
        }
        let answer = match request {
            Request::CreateSession { ttl, lock_delay } => self.create_session(now, ttl, lock_delay),
            Request::Renew(session) => self.renew(now, &session),
            Request::Destroy(session) => {
                self.end_session(now, &session);
                Answer::Done(true)
            }
            Request::Acquire { key, value, session } => self.acquire(now, key, value, session),
            Request::Transaction(ops) => self.transaction(now, ops),
            Request::List { prefix, after, wait } => {
                let waiter = Waiter { id, prefix, after, until: now + wait };
                if self.index_of(&waiter.prefix) > after || wait.is_zero() {
                    return Some(self.list(&waiter.prefix));
                }
                self.waiters.push(waiter);
                return None;
            }
        };
        Some(answer)
    }

    /// Lets time pass; what waiting queries are answered now.
    pub fn poll(&mut self, now: Duration) -> Vec<(u64, Answer<V>)> {
        self.expire(now);
        let mut answers = Vec::new();
        let mut i = 0;
        while i < self.waiters.len() {
            let waiter = &self.waiters[i];
            if self.index_of(&waiter.prefix) > waiter.after || waiter.until <= now {
                let waiter = self.waiters.remove(i);
                answers.push((waiter.id, self.list(&waiter.prefix)));
            } else {
                i += 1;
            }
        }
        answers
    }

    /// When something happens by itself.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let expiries = self.sessions.values().map(|session| session.expires);
        expiries.chain(self.waiters.iter().map(|waiter| waiter.until)).min()
    }

    /// Another server becomes the leader, some time from now: it knows of no lock-delays, and
    /// starts all sessions anew. Waiting queries fail.
    pub fn change_leader(&mut self, now: Duration, pause: Duration) -> Vec<u64> {
        self.leaderless = now + pause;
        self.delays.clear();
        let ids: Vec<SessionId> = self.sessions.keys().cloned().collect();
        for id in ids {
            self.restart_timer(now + pause, &id);
        }
        self.waiters.drain(..).map(|waiter| waiter.id).collect()
    }

    /// An operator removes a key.
    pub fn delete(&mut self, key: &str) -> bool {
        if self.keys.remove(key).is_none() {
            return false;
        }
        self.index += 1;
        self.removed.insert(key.to_owned(), self.index);
        true
    }

    /// All data is lost, and the indexes begin anew. Waiting queries fail.
    pub fn forget_everything(&mut self) -> Vec<u64> {
        let waiters = self.waiters.drain(..).map(|waiter| waiter.id).collect();
        let fresh = Self::new(self.random.clone());
        let expiries = self.expiries;
        *self = Self { expiries, leaderless: self.leaderless, ..fresh };
        waiters
    }

    pub fn get(&self, key: &str) -> Option<&Entry<V>> {
        self.keys.get(key)
    }

    fn create_session(&mut self, now: Duration, ttl: Duration, lock_delay: Duration) -> Answer<V> {
        let id = format!("s{:08x}", self.random.next() as u32);
        let session = Session { ttl, lock_delay, expires: Duration::MAX };
        self.sessions.insert(id.clone(), session);
        self.restart_timer(now, &id);
        self.index += 1;
        Answer::Session(id)
    }

    fn renew(&mut self, now: Duration, id: &SessionId) -> Answer<V> {
        if !self.sessions.contains_key(id) {
            return Answer::Gone;
        }
        self.restart_timer(now, id);
        Answer::Done(true)
    }

    fn restart_timer(&mut self, now: Duration, id: &SessionId) {
        let extra = self.random.below(101) as u32;
        if let Some(session) = self.sessions.get_mut(id) {
            // Often as early as it may be: that is where mistakes show.
            let percent = if extra < 30 { 100 } else { 100 + extra };
            session.expires = now + session.ttl * percent.min(200) / 100;
        }
    }

    fn acquire(&mut self, now: Duration, key: String, value: V, session: SessionId) -> Answer<V> {
        if !self.sessions.contains_key(&session) {
            return Answer::Failed;
        }
        let may = self.may_lock(now, &key, &session);
        if may {
            self.index += 1;
            self.write(key, value, Some(session));
        }
        Answer::Done(may)
    }

    fn may_lock(&self, now: Duration, key: &str, session: &SessionId) -> bool {
        let holder = self.keys.get(key).and_then(|entry| entry.session.as_ref());
        let is_free = holder.is_none_or(|holder| holder == session);
        let is_delayed = self.delays.get(key).is_some_and(|until| now < *until);
        is_free && !is_delayed && self.sessions.contains_key(session)
    }

    fn transaction(&mut self, now: Duration, ops: Vec<Op<V>>) -> Answer<V> {
        let failed = ops.iter().position(|op| !self.may_do(now, op));
        if let Some(at) = failed {
            return Answer::RolledBack(at);
        }
        self.index += 1;
        for op in ops {
            match op {
                Op::Lock { key, value, session } => self.write(key, value, Some(session)),
                Op::Unlock { key, value, .. } => self.write(key, value, None),
                Op::Cas { key, value, .. } => {
                    let session = self.keys.get(&key).and_then(|entry| entry.session.clone());
                    self.write(key, value, session);
                }
                Op::CheckSession { .. } => (),
            }
        }
        Answer::Committed(self.index)
    }

    fn may_do(&self, now: Duration, op: &Op<V>) -> bool {
        match op {
            Op::Lock { key, session, .. } => self.may_lock(now, key, session),
            Op::Unlock { key, session, .. } | Op::CheckSession { key, session } => {
                self.keys.get(key).is_some_and(|entry| entry.session.as_ref() == Some(session))
            }
            Op::Cas { key, index, .. } => {
                self.keys.get(key).map_or(0, |entry| entry.modified) == *index
            }
        }
    }

    fn write(&mut self, key: String, value: V, session: Option<SessionId>) {
        let entry = Entry { key: key.clone(), value, session, modified: self.index };
        self.keys.insert(key, entry);
    }

    fn expire(&mut self, now: Duration) {
        if now < self.leaderless {
            return;
        }
        let is_over = |session: &Session| session.expires <= now;
        let over: Vec<SessionId> =
            self.sessions.iter().filter(|(_, s)| is_over(s)).map(|(id, _)| id.clone()).collect();
        for id in over {
            self.expiries += 1;
            self.end_session(now, &id);
        }
    }

    fn end_session(&mut self, now: Duration, id: &SessionId) {
        let Some(session) = self.sessions.remove(id) else { return };
        let is_held = |entry: &&Entry<V>| entry.session.as_ref() == Some(id);
        let held: Vec<String> =
            self.keys.values().filter(is_held).map(|entry| entry.key.clone()).collect();
        for key in held {
            self.index += 1;
            self.keys.remove(&key);
            self.removed.insert(key.clone(), self.index);
            if !session.lock_delay.is_zero() {
                self.delays.insert(key, now + session.lock_delay);
            }
        }
    }

    fn index_of(&self, prefix: &str) -> u64 {
        let keys = self.keys.range(prefix.to_owned()..);
        let keys = keys.take_while(|(key, _)| key.starts_with(prefix)).map(|(_, e)| e.modified);
        let removed = self.removed.range(prefix.to_owned()..);
        let removed = removed.take_while(|(key, _)| key.starts_with(prefix)).map(|(_, at)| *at);
        // An index is never 0: a query that names 0 does not wait.
        keys.chain(removed).max().unwrap_or(1)
    }

    fn list(&self, prefix: &str) -> Answer<V> {
        let keys = self.keys.range(prefix.to_owned()..);
        let keys = keys.take_while(|(key, _)| key.starts_with(prefix));
        let entries = keys.map(|(_, entry)| entry.clone()).collect();
        Answer::List { index: self.index_of(prefix), entries }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::sim_tests::chance::{ms, secs};

    const TTL: Duration = Duration::from_secs(10);

    fn consul() -> Consul<u8> {
        Consul::new(Random::new(1))
    }

    fn session(consul: &mut Consul<u8>, now: Duration, lock_delay: Duration) -> SessionId {
        let request = Request::CreateSession { ttl: TTL, lock_delay };
        match consul.handle(now, 0, request) {
            Some(Answer::Session(id)) => id,
            other => panic!("{other:?}"),
        }
    }

    fn acquires(consul: &mut Consul<u8>, now: Duration, session: &SessionId) -> bool {
        let (key, value, session) = ("k".to_owned(), 1, session.clone());
        let answer = consul.handle(now, 0, Request::Acquire { key, value, session });
        matches!(answer, Some(Answer::Done(true)))
    }

    #[test]
    fn a_session_lives_for_its_ttl_after_the_last_renewal_and_for_twice_that_at_most() {
        let mut consul = consul();
        for _ in 0..50 {
            let id = session(&mut consul, ms(0), ms(0));
            let renewal = consul.handle(secs(9), 0, Request::Renew(id.clone()));
            assert!(matches!(renewal, Some(Answer::Done(true))));
            assert!(consul.handle(secs(19) - ms(1), 0, Request::Renew(id.clone())).is_some());
            let late = consul.handle(secs(39), 0, Request::Renew(id));
            assert!(matches!(late, Some(Answer::Gone)));
            consul = self::consul();
        }
    }

    #[test]
    fn a_lock_delay_keeps_a_key_until_it_is_over_or_the_leader_changes() {
        for leader_changes in [false, true] {
            let mut consul = consul();
            let (a, b) =
                (session(&mut consul, ms(0), secs(5)), session(&mut consul, ms(0), secs(5)));
            assert!(acquires(&mut consul, ms(0), &a) && !acquires(&mut consul, ms(0), &b));
            consul.handle(ms(10), 0, Request::Destroy(a));
            assert!(consul.get("k").is_none());
            if leader_changes {
                consul.change_leader(ms(20), ms(0));
            }
            assert_eq!(acquires(&mut consul, ms(20), &b), leader_changes);
            assert!(acquires(&mut consul, secs(6), &b));
        }
    }

    #[test]
    fn a_transaction_is_done_at_one_index_or_not_at_all() {
        let mut consul = consul();
        let id = session(&mut consul, ms(0), ms(0));
        let lock = |index| {
            Request::Transaction(vec![
                Op::Lock { key: "k".into(), value: 1, session: id.clone() },
                Op::Cas { key: "t".into(), value: 2, index },
            ])
        };
        assert!(matches!(consul.handle(ms(0), 0, lock(7)), Some(Answer::RolledBack(1))));
        assert!(consul.get("k").is_none());
        let Some(Answer::Committed(at)) = consul.handle(ms(0), 0, lock(0)) else { panic!() };
        let indexes = ["k", "t"].map(|key| consul.get(key).unwrap().modified);
        assert_eq!(indexes, [at; 2]);
    }

    #[test]
    fn a_blocking_query_hears_of_writes_and_removals_below_its_prefix_only() {
        let mut consul = consul();
        let id = session(&mut consul, ms(0), ms(0));
        assert!(acquires(&mut consul, ms(0), &id));
        let list = |after| Request::List { prefix: "k".into(), after, wait: secs(60) };
        let Some(Answer::List { index, .. }) = consul.handle(ms(1), 7, list(0)) else { panic!() };
        assert!(consul.handle(ms(1), 8, list(index)).is_none());
        session(&mut consul, ms(1), ms(0));
        assert!(consul.poll(ms(1)).is_empty());
        consul.delete("k");
        let answers = consul.poll(ms(1));
        assert!(matches!(&answers[..], [(8, Answer::List { entries, .. })] if entries.is_empty()));
    }
}
