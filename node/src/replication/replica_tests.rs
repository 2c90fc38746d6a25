//! Risk: a replica acknowledges, answers or dials what it must not. In virtual time.

use std::collections::HashMap;

use litefs_store::{Checksum, Txid};

use super::*;

#[derive(Default)]
struct Fake {
    cluster: String,
    epoch: u64,
    positions: HashMap<DbName, (Pos, Pos)>,
    damaged: Option<DbName>,
}

impl Local for Fake {
    fn node(&self) -> u64 {
        2
    }

    fn cluster(&self) -> String {
        self.cluster.clone()
    }

    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn databases(&self) -> Vec<DbName> {
        self.positions.keys().cloned().collect()
    }

    fn positions(&self, db: &DbName) -> (Pos, Pos) {
        self.positions.get(db).copied().unwrap_or_default()
    }

    fn is_damaged(&self, db: &DbName) -> bool {
        self.damaged.as_ref() == Some(db)
    }
}

fn db(name: &str) -> DbName {
    DbName::new(name).unwrap()
}

fn pos(txid: u64) -> Pos {
    Pos::new(Txid::new(txid), Checksum::from_raw(Checksum::FLAG | txid))
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn welcome(node: u64, epoch: u64, cluster: &str) -> FromPrimary {
    FromPrimary::Welcome(Welcome {
        node,
        epoch,
        cluster: cluster.into(),
        hostname: "primary".into(),
    })
}

fn upstream() -> Upstream {
    Upstream::new("replica".into(), true, ms(1000), 42)
}

fn live(local: &Fake) -> Upstream {
    let mut up = upstream();
    assert!(up.poll_dial(ms(0)));
    up.handle_connected(ms(0));
    assert!(matches!(up.poll_message(ms(0), 0, local), Some(FromReplica::Hello(_))));
    up.handle_message(ms(0), welcome(1, 1, "C"), local);
    assert!(matches!(up.poll_action(), Some(Action::Join(_))));
    up
}

fn messages(up: &mut Upstream, at: u64, local: &Fake) -> Vec<FromReplica> {
    std::iter::from_fn(|| up.poll_message(ms(at), 5, local)).collect()
}

#[test]
fn waits_double_up_to_a_bound_and_differ_between_replicas() {
    let waits = |seed| {
        let mut up = Upstream::new("r".into(), true, ms(100), seed);
        let mut now = ms(0);
        (0..12)
            .map(|_| {
                assert!(up.poll_dial(now) && !up.poll_dial(now), "one dial at a time");
                up.handle_closed(now, None);
                let wait = up.poll_timeout() - now;
                assert!(!up.poll_dial(now + wait - Duration::from_nanos(1)));
                now += wait;
                wait
            })
            .collect::<Vec<_>>()
    };
    let first = waits(1);
    for (i, wait) in first.iter().enumerate() {
        let full = ms(100 * (1 << i)).min(MAX_RECONNECT);
        assert!(*wait <= full && *wait >= full / 2, "wait {i} is {wait:?} of {full:?}");
    }
    assert_ne!(first, waits(2));
    assert_eq!(first, waits(1), "the same seed gives the same run");
}

#[test]
fn a_lasting_refusal_waits_long_and_success_forgets_failures() {
    let local = Fake::default();
    let mut up = Upstream::new("r".into(), true, ms(10), 1);
    assert!(up.poll_dial(ms(0)));
    up.handle_closed(ms(0), Some(Reason::WrongCluster));
    assert!(up.poll_timeout() >= MAX_RECONNECT / 2);
    let now = up.poll_timeout();
    assert!(up.poll_dial(now));
    up.handle_connected(now);
    up.handle_message(now, welcome(1, 1, "C"), &local);
    up.handle_message(now, FromPrimary::Heartbeat { wall_ms: 0, lag_ms: Some(0) }, &local);
    up.handle_closed(now, Some(Reason::Shutdown));
    assert!(up.poll_timeout() <= now + ms(10));
}

#[test]
fn only_a_primary_of_our_cluster_and_epoch_is_joined() {
    let local = Fake { cluster: "C".into(), epoch: 3, ..Fake::default() };
    let verdict = |message| {
        let mut up = upstream();
        up.poll_dial(ms(0));
        up.handle_connected(ms(0));
        up.handle_message(ms(0), message, &local);
        let joined = up.poll_action().is_some();
        let refused = up.poll_close(ms(0)).map(|c| c.reason);
        assert_ne!(joined, refused.is_some());
        assert_eq!(joined, up.primary().is_some());
        refused
    };
    assert_eq!(verdict(welcome(1, 3, "C")), None);
    assert_eq!(verdict(welcome(1, 4, "C")), None);
    assert_eq!(verdict(welcome(1, 2, "C")), Some(Reason::OldEpoch));
    assert_eq!(verdict(welcome(1, 3, "D")), Some(Reason::WrongCluster));
    assert_eq!(verdict(welcome(2, 3, "C")), Some(Reason::SameNode));
    assert_eq!(verdict(welcome(1, 3, "")), Some(Reason::BadProtocol));
    assert_eq!(verdict(FromPrimary::AskPoints(db("a"))), Some(Reason::BadProtocol));
}

#[test]
fn acknowledgements_are_coalesced_and_the_disk_is_told_later() {
    let mut local = Fake::default();
    let mut up = live(&local);
    for n in 1..=100 {
        local.positions.insert(db("a"), (pos(n), pos(3)));
        up.handle_applied(&db("a"));
    }
    let ack = |applied, synced| {
        FromReplica::Acks(vec![Ack { db: db("a"), applied: pos(applied), synced: pos(synced) }])
    };
    assert_eq!(messages(&mut up, 1, &local), vec![ack(100, 3)]);
    local.positions.insert(db("a"), (pos(100), pos(100)));
    assert_eq!(messages(&mut up, 2, &local), vec![]);
    let beat = FromReplica::Heartbeat { wall_ms: 5 };
    assert_eq!(messages(&mut up, 1000, &local), vec![ack(100, 100), beat.clone()]);
    assert_eq!(messages(&mut up, 2000, &local), vec![beat.clone()]);
    // A slow disk is asked once a heartbeat, not without end.
    local.positions.insert(db("a"), (pos(101), pos(100)));
    up.handle_applied(&db("a"));
    assert_eq!(up.poll_message(ms(3000), 5, &local), Some(ack(101, 100)));
    assert_eq!(up.poll_message(ms(3000), 5, &local), Some(beat));
    assert_eq!(up.poll_message(ms(3000), 5, &local), None);
}

#[test]
fn questions_become_actions_once_and_a_missing_database_is_told_once() {
    let local = Fake::default();
    let mut up = live(&local);
    up.handle_message(ms(1), FromPrimary::AskPoints(db("a")), &local);
    up.handle_message(ms(1), FromPrimary::Rewind(db("b"), pos(3)), &local);
    up.handle_message(ms(1), FromPrimary::Unknown(db("c")), &local);
    assert!(up.has_diverged(&db("a")) && up.has_diverged(&db("b")) && !up.has_diverged(&db("c")));
    assert_eq!((up.common(&db("a")), up.common(&db("b"))), (None, Some(pos(3))));
    assert!(up.is_unknown(&db("c")) && !up.is_unknown(&db("a")));
    let actions: Vec<_> = std::iter::from_fn(|| up.poll_action()).collect();
    assert_eq!(
        actions,
        vec![
            Action::OfferPoints(db("a")),
            Action::Rewind(db("b"), pos(3)),
            Action::WarnUnknown(db("c")),
        ]
    );
    up.handle_message(ms(1), FromPrimary::Unknown(db("c")), &local);
    assert_eq!(up.poll_action(), None);
}

#[test]
fn a_troubled_database_is_offered_again_later_and_later() {
    let mut local = Fake::default();
    local.positions.insert(db("a"), (pos(4), pos(4)));
    let mut up = live(&local);
    let offer = |snapshot| FromReplica::Offers(vec![Offer { db: db("a"), pos: pos(4), snapshot }]);
    let mut now = 10;
    up.handle_trouble(ms(now), &db("a"), true);
    assert_eq!(messages(&mut up, now, &local), vec![offer(true)]);
    let mut waits = Vec::new();
    for _ in 0..10 {
        up.handle_trouble(ms(now), &db("a"), false);
        up.handle_alive(ms(now + 100_000));
        assert!(messages(&mut up, now, &local).iter().all(|m| *m != offer(false)));
        let wait = (1..100_000)
            .step_by(100)
            .find(|wait| messages(&mut up, now + wait, &local).contains(&offer(false)));
        now += wait.expect("must be offered again");
        waits.push(wait.unwrap());
    }
    assert!(waits.is_sorted() && waits[0] < 2_000 && waits[9] > 20_000, "{waits:?}");
    up.handle_applied(&db("a"));
    up.handle_trouble(ms(now), &db("a"), false);
    assert!(messages(&mut up, now, &local).contains(&offer(false)), "applying forgets the trouble");
}

#[test]
fn a_damaged_database_gets_a_snapshot_whyever_it_is_offered() {
    let mut local = Fake::default();
    local.positions.insert(db("a"), (pos(4), pos(4)));
    let mut up = live(&local);
    let offer = |snapshot| FromReplica::Offers(vec![Offer { db: db("a"), pos: pos(4), snapshot }]);
    up.handle_reset(ms(1), &db("a"), StreamReset::Failed);
    assert_eq!(messages(&mut up, 1, &local), vec![offer(false)]);
    local.damaged = Some(db("a"));
    up.handle_reset(ms(2), &db("a"), StreamReset::Failed);
    assert_eq!(messages(&mut up, 2, &local), vec![offer(true)]);
    up.handle_applied(&db("a"));
    local.damaged = None;
    // What is to be a snapshot for another reason stays one.
    up.handle_reoffer(ms(3), &db("a"), true);
    up.handle_trouble(ms(3), &db("a"), false);
    assert!(messages(&mut up, 3, &local).contains(&offer(true)));
}

#[test]
fn the_answer_to_an_offer_is_not_crossed_by_another_offer() {
    let mut local = Fake { damaged: Some(db("a")), ..Fake::default() };
    local.positions.insert(db("a"), (pos(4), pos(4)));
    let mut up = live(&local);
    // Found damaged before it was offered: offered once.
    up.handle_trouble(ms(1), &db("a"), true);
    up.handle_offered(&[Offer { db: db("a"), pos: pos(4), snapshot: true }]);
    assert_eq!(messages(&mut up, 1, &local), vec![]);
    assert!(up.awaits_snapshot(&db("a")) && !up.awaits_snapshot(&db("b")));
    // The primary leaves a stream because it answers a newer offer on another.
    up.handle_reset(ms(2), &db("a"), StreamReset::Superseded);
    assert_eq!(messages(&mut up, 2, &local), vec![]);
    assert!(up.awaits_snapshot(&db("a")));
    // A failure takes the answer away.
    up.handle_reset(ms(3), &db("a"), StreamReset::Failed);
    assert!(!up.awaits_snapshot(&db("a")));
    assert!(matches!(&messages(&mut up, 3, &local)[..], [FromReplica::Offers(_)]));
    assert!(up.awaits_snapshot(&db("a")));
    // What has come in the end answers the offer that was still to be made.
    up.handle_trouble(ms(4), &db("a"), false);
    up.handle_applied(&db("a"));
    let later = messages(&mut up, 100_000, &local);
    assert!(later.iter().all(|m| !matches!(m, FromReplica::Offers(_))), "{later:?}");
}

#[test]
fn a_silent_primary_is_given_up() {
    let local = Fake::default();
    let mut up = live(&local);
    assert_eq!(up.poll_close(HEARTBEAT_TIMEOUT - ms(1)), None);
    assert_eq!(up.poll_close(HEARTBEAT_TIMEOUT).unwrap().reason, Reason::Timeout);
    let mut up = upstream();
    up.poll_dial(ms(0));
    up.handle_connected(ms(0));
    assert_eq!(up.poll_close(GREETING_TIMEOUT).unwrap().reason, Reason::Timeout);
}

#[test]
fn the_lag_is_unknown_then_grows_from_the_primarys_last_word_even_without_a_connection() {
    let local = Fake::default();
    let mut up = live(&local);
    up.handle_message(ms(5), FromPrimary::Heartbeat { wall_ms: 9, lag_ms: None }, &local);
    assert_eq!(up.lag(ms(10)), None);
    assert_eq!(up.primary_wall_ms(), Some(9));
    up.handle_message(ms(1000), FromPrimary::Heartbeat { wall_ms: 9, lag_ms: Some(40) }, &local);
    assert_eq!(up.lag(ms(1500)), Some(ms(540)));
    up.handle_closed(ms(2000), None);
    assert_eq!(up.lag(ms(60_000)), Some(ms(59_040)));
}

#[test]
fn nothing_of_a_closed_connection_reaches_the_next_one() {
    let mut local = Fake::default();
    local.positions.insert(db("a"), (pos(4), pos(4)));
    let mut up = live(&local);
    up.handle_applied(&db("a"));
    up.handle_reoffer(ms(1), &db("a"), true);
    up.handle_message(ms(1), FromPrimary::AskPoints(db("a")), &local);
    up.handle_end(Close::new(Reason::BadRecord, "x"));
    assert_eq!(up.poll_close(ms(1)).unwrap().reason, Reason::BadRecord);
    up.handle_closed(ms(1), None);
    let now = up.poll_timeout();
    assert!(up.poll_dial(now));
    up.handle_connected(now);
    assert_eq!(up.poll_close(now), None);
    assert!(matches!(up.poll_message(now, 0, &local), Some(FromReplica::Hello(_))));
    up.handle_message(now, welcome(1, 1, "C"), &local);
    assert!(matches!(up.poll_action(), Some(Action::Join(_))));
    assert_eq!((up.poll_action(), up.poll_message(now, 0, &local)), (None, None));
}

#[test]
fn content_is_preserved_unless_it_is_known_elsewhere() {
    let (ours, theirs) = (|| true, || false);
    assert!(must_preserve(Pos::ZERO, pos(5), ours));
    assert!(must_preserve(pos(4), pos(5), ours));
    assert!(!must_preserve(pos(5), pos(5), ours), "the primary knows it");
    assert!(!must_preserve(pos(5), Pos::ZERO, ours), "nothing is there");
    assert!(!must_preserve(Pos::ZERO, pos(5), theirs), "it came from the primary");
}

#[test]
fn being_in_sync_is_noted_once_a_connection() {
    let local = Fake::default();
    let mut up = live(&local);
    let beat = |lag_ms| FromPrimary::Heartbeat { wall_ms: 0, lag_ms };
    up.handle_message(ms(1), beat(None), &local);
    assert_eq!(up.poll_action(), None);
    up.handle_message(ms(2), beat(Some(0)), &local);
    up.handle_message(ms(3), beat(Some(0)), &local);
    assert!(matches!(up.poll_action(), Some(Action::NoteInSync(_))));
    assert_eq!(up.poll_action(), None);
}
