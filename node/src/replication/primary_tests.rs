//! Risk: a replica is sent what does not follow, or is not sent what it lacks. In virtual time.

use std::cell::RefCell;

use litefs_store::Checksum;

use super::*;

/// Databases as lists of positions; index 0 is the oldest position that the log still reaches.
#[derive(Default)]
struct Fake {
    dbs: BTreeMap<DbName, Vec<Pos>>,
    broken: RefCell<HashSet<DbName>>,
}

impl Fake {
    fn with(mut self, name: &str, txids: std::ops::RangeInclusive<u64>) -> Self {
        self.dbs.insert(db(name), txids.map(pos).collect());
        self
    }
}

impl History for Fake {
    fn databases(&self) -> Vec<DbName> {
        self.dbs.keys().cloned().collect()
    }

    fn newest(&self, db: &DbName) -> Option<Pos> {
        self.dbs.get(db)?.last().copied()
    }

    fn relation(&self, db: &DbName, pos: Pos) -> Result<Relation, String> {
        if self.broken.borrow().contains(db) {
            return Err("input/output error".into());
        }
        let line = &self.dbs[db];
        let (first, last) = (line[0], line[line.len() - 1]);
        Ok(match () {
            () if pos == last => Relation::Current,
            () if pos.txid < first.txid => Relation::TooOld,
            () if line.contains(&pos) => Relation::Behind,
            () => Relation::Diverged,
        })
    }
}

fn db(name: &str) -> DbName {
    DbName::new(name).unwrap()
}

fn pos(txid: u64) -> Pos {
    Pos::new(Txid::new(txid), Checksum::from_raw(Checksum::FLAG | txid))
}

/// A position of another history.
fn foreign(txid: u64) -> Pos {
    Pos::new(Txid::new(txid), Checksum::from_raw(Checksum::FLAG | txid | 1 << 32))
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn identity() -> Identity {
    Identity { node: 1, epoch: 5, cluster: "C".into(), hostname: "p".into() }
}

fn hello(node: u64, epoch: u64, cluster: &str) -> FromReplica {
    let (cluster, hostname) = (cluster.into(), "r".into());
    FromReplica::Hello(Hello { node, epoch, cluster, hostname, may_lead: true })
}

fn offer(name: &str, pos: Pos) -> Offer {
    Offer { db: db(name), pos, snapshot: false }
}

fn ack(name: &str, pos: Pos) -> FromReplica {
    FromReplica::Acks(vec![Ack { db: db(name), applied: pos, synced: pos }])
}

/// A live peer that offered these positions.
fn live(history: &Fake, offers: Vec<Offer>) -> Peer {
    let mut peer = Peer::new(identity(), ms(0));
    peer.handle_message(ms(0), hello(2, 5, "C"), history);
    assert!(matches!(peer.poll_message(ms(0), 0), Some(FromPrimary::Welcome(_))));
    peer.handle_message(ms(0), FromReplica::Offers(offers), history);
    peer.handle_message(ms(0), FromReplica::Ready, history);
    assert_eq!(peer.poll_close(), None);
    peer
}

fn work(peer: &mut Peer) -> Vec<Work> {
    std::iter::from_fn(|| peer.poll_work()).collect()
}

fn questions(peer: &mut Peer) -> Vec<FromPrimary> {
    std::iter::from_fn(|| peer.poll_message(ms(0), 0))
        .filter(|m| !matches!(m, FromPrimary::Heartbeat { .. }))
        .collect()
}

fn closed(peer: &Peer) -> Reason {
    peer.poll_close().expect("must be closed").reason
}

#[test]
fn each_position_gets_its_plan() {
    let history = Fake::default()
        .with("current", 3..=9)
        .with("behind", 3..=9)
        .with("old", 3..=9)
        .with("new", 3..=9)
        .with("diverged", 3..=9)
        .with("damaged", 3..=9);
    let mut damaged = offer("damaged", pos(5));
    damaged.snapshot = true;
    let offers = vec![
        offer("current", pos(9)),
        offer("behind", pos(5)),
        offer("old", pos(2)),
        offer("diverged", foreign(7)),
        damaged,
        offer("theirs", pos(4)),
    ];
    let mut peer = live(&history, offers);
    let mut jobs = work(&mut peer);
    peer.handle_outcome(ms(1), &db("damaged"), Outcome::Sent(pos(9)), &history);
    jobs.extend(work(&mut peer));
    jobs.sort_by_key(|w| format!("{w:?}"));
    assert_eq!(
        jobs,
        vec![
            Work::Send(db("behind"), Task::Records(pos(5))),
            Work::Send(db("damaged"), Task::Snapshot(pos(5))),
            Work::Send(db("new"), Task::Snapshot(Pos::ZERO)),
            Work::Send(db("old"), Task::Snapshot(Pos::ZERO)),
        ]
    );
    assert_eq!(
        questions(&mut peer),
        vec![FromPrimary::AskPoints(db("diverged")), FromPrimary::Unknown(db("theirs"))]
    );
}

/// Whoever relies on acknowledgements must not take a diverged replica for one that has everything.
#[test]
fn only_positions_on_our_history_count_as_acknowledged() {
    let history = Fake::default().with("a", 3..=9).with("b", 3..=9).with("c", 3..=9);
    let offers = vec![offer("a", foreign(12)), offer("b", pos(5)), offer("c", pos(2))];
    let mut peer = live(&history, offers);
    let acked = |peer: &Peer| {
        let mut all: Vec<_> = peer.acks().map(|ack| (ack.db, ack.applied)).collect();
        all.sort_by_key(|(db, _)| db.clone());
        all
    };
    assert_eq!(acked(&peer), [(db("b"), pos(5))]);
    assert_eq!(peer.unacknowledged(), 9 + 4 + 9);
    // It went back, and says so.
    peer.handle_message(ms(1), FromReplica::Offers(vec![offer("a", pos(4))]), &history);
    assert_eq!(acked(&peer), [(db("a"), pos(4)), (db("b"), pos(5))]);
}

#[test]
fn strangers_are_refused_with_the_reason() {
    let history = Fake::default();
    let refusal = |message| {
        let mut peer = Peer::new(identity(), ms(0));
        peer.handle_message(ms(0), message, &history);
        assert_eq!(peer.poll_message(ms(0), 0), None, "no welcome");
        closed(&peer)
    };
    assert_eq!(refusal(hello(1, 5, "C")), Reason::SameNode);
    assert_eq!(refusal(hello(2, 5, "D")), Reason::WrongCluster);
    assert_eq!(refusal(hello(2, 6, "C")), Reason::OldEpoch);
    assert_eq!(refusal(FromReplica::Ready), Reason::BadProtocol);
    assert_eq!(refusal(ack("a", pos(1))), Reason::BadProtocol);
    let mut peer = Peer::new(identity(), ms(0));
    peer.handle_message(ms(0), hello(2, 0, ""), &history);
    assert_eq!(peer.poll_close(), None, "a new replica has no cluster yet");
    peer.handle_message(ms(0), hello(2, 0, ""), &history);
    assert_eq!(closed(&peer), Reason::BadProtocol, "a second hello");
}

#[test]
fn the_newest_common_point_is_named_and_without_one_the_snapshot_preserves() {
    let history = Fake::default().with("a", 3..=9).with("b", 3..=9);
    let mut peer = live(&history, vec![offer("a", foreign(8)), offer("b", foreign(8))]);
    assert_eq!(questions(&mut peer).len(), 2);
    let points = vec![foreign(8), foreign(7), pos(6), pos(4)];
    peer.handle_message(ms(1), FromReplica::Points(db("a"), points), &history);
    assert_eq!(questions(&mut peer), vec![FromPrimary::Rewind(db("a"), pos(6))]);
    assert_eq!(work(&mut peer), vec![], "nothing is sent before the replica has rewound");
    peer.handle_message(ms(2), FromReplica::Offers(vec![offer("a", pos(6))]), &history);
    assert_eq!(work(&mut peer), vec![Work::Send(db("a"), Task::Records(pos(6)))]);

    // Points below our log prove nothing.
    let points = vec![foreign(8), pos(2), Pos::ZERO];
    peer.handle_message(ms(1), FromReplica::Points(db("b"), points), &history);
    assert_eq!(work(&mut peer), vec![Work::Send(db("b"), Task::Snapshot(Pos::ZERO))]);
}

#[test]
fn a_commit_between_the_last_read_and_the_end_of_a_job_is_not_forgotten() {
    let mut history = Fake::default().with("a", 1..=5);
    let mut peer = live(&history, vec![offer("a", pos(4))]);
    assert_eq!(work(&mut peer).len(), 1);
    history.dbs.get_mut(&db("a")).unwrap().push(pos(6));
    peer.handle_commit(ms(1), &db("a"), pos(6), &history);
    assert_eq!(work(&mut peer), vec![], "one job at a time for a database");
    peer.handle_outcome(ms(2), &db("a"), Outcome::Sent(pos(5)), &history);
    assert_eq!(work(&mut peer), vec![Work::Send(db("a"), Task::Records(pos(5)))]);
    peer.handle_outcome(ms(3), &db("a"), Outcome::Sent(pos(6)), &history);
    assert_eq!(work(&mut peer), vec![]);
    peer.handle_commit(ms(4), &db("a"), pos(7), &history);
    assert_eq!(work(&mut peer), vec![Work::Send(db("a"), Task::Records(pos(6)))]);
}

#[test]
fn outcomes_lead_to_the_next_job() {
    let history = Fake::default().with("a", 1..=500);
    let mut peer = live(&history, vec![offer("a", pos(4))]);
    assert_eq!(work(&mut peer), vec![Work::Send(db("a"), Task::Records(pos(4)))]);
    peer.handle_outcome(ms(1), &db("a"), Outcome::FarBehind(pos(6)), &history);
    assert_eq!(work(&mut peer), vec![Work::Send(db("a"), Task::Compacted(pos(6)))]);
    peer.handle_outcome(ms(2), &db("a"), Outcome::Gone(pos(6)), &history);
    assert_eq!(work(&mut peer), vec![Work::Send(db("a"), Task::Snapshot(pos(6)))]);
    peer.handle_outcome(ms(3), &db("a"), Outcome::Sent(pos(500)), &history);
    assert_eq!(work(&mut peer), vec![]);
}

#[test]
fn a_snapshot_that_failed_to_start_is_never_taken_for_a_known_position() {
    let history = Fake::default().with("a", 3..=9);
    let mut peer = live(&history, vec![offer("a", pos(2))]);
    assert_eq!(work(&mut peer), vec![Work::Send(db("a"), Task::Snapshot(Pos::ZERO))]);
    peer.handle_outcome(ms(1), &db("a"), Outcome::Failed(None), &history);
    peer.handle_timeout(ms(1001), &history);
    assert_eq!(work(&mut peer), vec![Work::Send(db("a"), Task::Snapshot(Pos::ZERO))]);
}

#[test]
fn an_unreadable_database_is_retried_later_and_disturbs_no_other() {
    let history = Fake::default().with("a", 1..=5).with("b", 1..=5);
    history.broken.borrow_mut().insert(db("a"));
    let mut peer = live(&history, vec![offer("a", pos(4)), offer("b", pos(4))]);
    assert_eq!(work(&mut peer), vec![Work::Send(db("b"), Task::Records(pos(4)))]);
    peer.handle_outcome(ms(1), &db("b"), Outcome::Failed(Some(pos(4))), &history);
    peer.handle_timeout(ms(500), &history);
    assert_eq!(work(&mut peer), vec![]);
    history.broken.borrow_mut().clear();
    peer.handle_alive(ms(900));
    assert!(peer.poll_timeout() <= ms(1001));
    peer.handle_timeout(ms(1001), &history);
    assert_eq!(work(&mut peer).len(), 2);
}

#[test]
fn an_offer_during_a_job_waits_for_its_end_and_gets_a_new_stream() {
    let history = Fake::default().with("a", 1..=5);
    let mut peer = live(&history, vec![offer("a", pos(2))]);
    assert_eq!(work(&mut peer).len(), 1);
    peer.handle_message(ms(1), FromReplica::Offers(vec![offer("a", pos(3))]), &history);
    assert_eq!(work(&mut peer), vec![]);
    peer.handle_outcome(ms(2), &db("a"), Outcome::Sent(pos(5)), &history);
    assert_eq!(
        work(&mut peer),
        vec![Work::Reset(db("a")), Work::Send(db("a"), Task::Records(pos(3)))]
    );
    // A broken stream needs no reset, and waits for the offer.
    peer.handle_outcome(ms(3), &db("a"), Outcome::Broken, &history);
    assert_eq!(work(&mut peer), vec![]);
    peer.handle_message(ms(4), FromReplica::Offers(vec![offer("a", pos(3))]), &history);
    assert_eq!(work(&mut peer), vec![], "not at once: it just failed");
    peer.handle_timeout(ms(1100), &history);
    assert_eq!(work(&mut peer), vec![Work::Send(db("a"), Task::Records(pos(3)))]);
}

#[test]
fn a_database_that_only_the_replica_has_is_streamed_once_the_primary_commits_to_it() {
    let mut history = Fake::default();
    let mut peer = live(&history, vec![offer("a", foreign(9))]);
    assert_eq!(questions(&mut peer), vec![FromPrimary::Unknown(db("a"))]);
    assert_eq!(work(&mut peer), vec![]);
    assert_eq!(peer.lag(ms(9)), Some(ms(0)), "an unknown database holds back no lag");
    history = history.with("a", 1..=1);
    peer.handle_commit(ms(10), &db("a"), pos(1), &history);
    assert_eq!(questions(&mut peer), vec![FromPrimary::AskPoints(db("a"))]);
    peer.handle_message(ms(11), FromReplica::Points(db("a"), vec![foreign(9)]), &history);
    assert_eq!(work(&mut peer), vec![Work::Send(db("a"), Task::Snapshot(Pos::ZERO))]);
}

#[test]
fn a_new_database_is_streamed_and_one_outside_the_filter_never() {
    let mut history = Fake::default().with("a", 1..=2).with("c", 1..=2);
    let mut peer = Peer::new(identity(), ms(0));
    peer.handle_message(ms(0), hello(2, 5, "C"), &history);
    peer.handle_message(ms(0), FromReplica::Filter(vec![db("a"), db("b")]), &history);
    peer.handle_message(ms(0), FromReplica::Ready, &history);
    assert_eq!(work(&mut peer), vec![Work::Send(db("a"), Task::Snapshot(Pos::ZERO))]);
    history = history.with("b", 1..=1).with("d", 1..=1);
    for name in ["b", "c", "d"] {
        peer.handle_commit(ms(1), &db(name), pos(3), &history);
    }
    assert_eq!(work(&mut peer), vec![Work::Send(db("b"), Task::Snapshot(Pos::ZERO))]);
    peer.handle_message(ms(2), FromReplica::Offers(vec![offer("c", pos(1))]), &history);
    assert_eq!(closed(&peer), Reason::BadProtocol);
}

#[test]
fn snapshots_leave_room_for_records() {
    let mut history = Fake::default();
    for i in 0..100 {
        history = history.with(&format!("big{i}"), 5..=9).with(&format!("small{i}"), 5..=9);
    }
    let offers = (0..100).map(|i| offer(&format!("small{i}"), pos(8))).collect();
    let mut peer = live(&history, offers);
    let jobs = work(&mut peer);
    let is_bulk = |w: &&Work| matches!(w, Work::Send(_, task) if task.is_bulk());
    assert_eq!(jobs.len(), MAX_ACTIVE);
    assert_eq!(jobs.iter().filter(is_bulk).count(), MAX_BULK);
    // All get their turn, and the caps hold on the way.
    let mut running = VecDeque::from(jobs);
    let mut done = 0;
    while let Some(Work::Send(name, _)) = running.pop_front() {
        done += 1;
        peer.handle_outcome(ms(1), &name, Outcome::Sent(pos(9)), &history);
        running.extend(work(&mut peer));
        assert!(running.len() <= MAX_ACTIVE);
        assert!(running.iter().filter(is_bulk).count() <= MAX_BULK);
    }
    assert_eq!(done, 200);
}

#[test]
fn only_idle_acknowledged_streams_are_closed_to_make_room() {
    let mut history = Fake::default();
    let name = |i: usize| format!("db{i}");
    for i in 0..=MAX_STREAMS {
        history = history.with(&name(i), 1..=2);
    }
    let offers = (0..=MAX_STREAMS).map(|i| offer(&name(i), pos(1))).collect();
    let mut peer = live(&history, offers);
    let mut sent = HashSet::new();
    while let Some(Work::Send(db, _)) = peer.poll_work() {
        peer.handle_outcome(ms(1), &db, Outcome::Sent(pos(2)), &history);
        sent.insert(db);
    }
    assert_eq!(sent.len(), MAX_STREAMS, "the last one waits: nothing is acknowledged");
    peer.handle_message(ms(2), ack(&name(7), pos(2)), &history);
    assert_eq!(peer.poll_work(), Some(Work::Finish(db(&name(7)))));
    let last = peer.poll_work();
    assert!(matches!(&last, Some(Work::Send(db, _)) if !sent.contains(db)), "{last:?}");
    // The closed one opens a stream again, once another one is idle.
    history.dbs.get_mut(&db(&name(7))).unwrap().push(pos(3));
    peer.handle_commit(ms(3), &db(&name(7)), pos(3), &history);
    assert_eq!(peer.poll_work(), None);
    peer.handle_message(ms(4), ack(&name(9), pos(2)), &history);
    assert_eq!(peer.poll_work(), Some(Work::Finish(db(&name(9)))));
    assert_eq!(peer.poll_work(), Some(Work::Send(db(&name(7)), Task::Records(pos(2)))));
}

#[test]
fn a_silent_replica_is_given_up_and_a_talking_one_gets_heartbeats() {
    let history = Fake::default().with("a", 1..=2);
    let mut silent = Peer::new(identity(), ms(0));
    silent.handle_timeout(GREETING_TIMEOUT, &history);
    assert_eq!(closed(&silent), Reason::Timeout);

    let mut peer = live(&history, vec![offer("a", pos(1))]);
    let beat = |peer: &mut Peer, at| peer.poll_message(ms(at), 77);
    assert_eq!(beat(&mut peer, 0), Some(FromPrimary::Heartbeat { wall_ms: 77, lag_ms: None }));
    assert_eq!(beat(&mut peer, 10), None);
    work(&mut peer);
    peer.handle_outcome(ms(20), &db("a"), Outcome::Sent(pos(2)), &history);
    peer.handle_message(ms(30), ack("a", pos(2)), &history);
    let in_sync = Some(FromPrimary::Heartbeat { wall_ms: 77, lag_ms: Some(0) });
    assert_eq!(beat(&mut peer, 30), in_sync, "the first time in sync is told at once");
    assert_eq!(beat(&mut peer, 1029), None);
    assert_eq!(beat(&mut peer, 1030), in_sync);
    peer.handle_timeout(ms(30) + HEARTBEAT_TIMEOUT - ms(1), &history);
    assert_eq!(peer.poll_close(), None);
    peer.handle_timeout(ms(30) + HEARTBEAT_TIMEOUT, &history);
    assert_eq!(closed(&peer), Reason::Timeout);
}

#[test]
fn a_flood_of_offers_stays_bounded() {
    let history = Fake::default().with("a", 3..=9);
    let mut peer = live(&history, vec![]);
    for i in 0..10_000u64 {
        let pos = if i % 2 == 0 { foreign(8) } else { pos(4) };
        peer.handle_message(ms(1), FromReplica::Offers(vec![offer("a", pos)]), &history);
    }
    assert!(peer.questions.len() <= 1 && peer.ready.len() <= 1 && peer.bulk.len() <= 1);
    assert!(peer.resets.len() <= 1);
    for i in 0..=MAX_DATABASES {
        let offers = vec![offer(&format!("x{i}"), pos(1))];
        peer.handle_message(ms(1), FromReplica::Offers(offers), &history);
    }
    assert_eq!(closed(&peer), Reason::BadProtocol);
}

#[test]
fn far_behind_needs_many_transactions_and_many_bytes() {
    let far = |n: u64, bytes: u64| is_far_behind(Txid::new(10), Txid::new(10 + n), || bytes);
    assert!(!far(128, 1 << 30));
    assert!(!far(1 << 30, 1 << 20));
    assert!(far(129, (1 << 20) + 1));
}

#[test]
fn ten_thousand_databases_are_served_with_a_bounded_number_of_jobs_and_streams() {
    let mut history = Fake::default();
    let name = |i: usize| format!("db{i}");
    for i in 0..10_000 {
        history = history.with(&name(i), 1..=3);
    }
    let offers = (0..10_000).map(|i| offer(&name(i), pos(1 + i as u64 % 4))).collect();
    let mut peer = live(&history, offers);
    let (mut sent, mut open, mut most) = (0, 0, 0);
    while let Some(work) = peer.poll_work() {
        match work {
            Work::Send(db, _) => {
                sent += 1;
                open += 1;
                most = most.max(open);
                peer.handle_outcome(ms(1), &db, Outcome::Sent(pos(3)), &history);
                peer.handle_message(ms(1), ack(db.as_str(), pos(3)), &history);
            }
            Work::Finish(_) => open -= 1,
            Work::Reset(db) => panic!("{db}"),
        }
    }
    // A quarter is current, a quarter is ahead by one transaction.
    assert_eq!(sent, 5_000);
    assert_eq!(most, MAX_STREAMS);
    assert_eq!(questions(&mut peer).len(), 2_500);
}
