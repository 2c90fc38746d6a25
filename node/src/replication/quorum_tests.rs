//! Tests of the sync set and the bounds, in virtual time.

use litefs_ltx::Checksum;

use super::*;

const A: u64 = 0xA;
const B: u64 = 0xB;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn db(name: &str) -> DbName {
    DbName::new(name).unwrap()
}

fn pos(txid: u64) -> Pos {
    let checksum = Checksum::from_raw(Checksum::FLAG | txid);
    if txid == 0 { Pos::ZERO } else { Pos::new(Txid::new(txid), checksum) }
}

fn ack(name: &str, applied: u64, synced: u64) -> Ack {
    Ack { db: db(name), applied: pos(applied), synced: pos(synced) }
}

fn sync(replicas: usize, on_timeout: OnTimeout) -> Quorum {
    let mut quorum = Quorum::sync(SyncSettings { replicas, timeout: ms(1000), on_timeout });
    quorum.handle_term_began();
    quorum
}

/// What is to be done; sets are published at once.
fn drain(quorum: &mut Quorum, now: Duration) -> Vec<Action> {
    let mut all = Vec::new();
    while let Some(action) = quorum.poll_action() {
        if let Action::Publish(number, _) = &action {
            quorum.handle_published(now, *number, true);
        }
        all.push(action);
    }
    all
}

fn publications(actions: &[Action]) -> Vec<BTreeSet<u64>> {
    let set = |action: &Action| match action {
        Action::Publish(_, set) => Some(set.clone()),
        _ => None,
    };
    actions.iter().filter_map(set).collect()
}

fn confirmed(actions: &[Action]) -> Vec<Ticket> {
    let ticket = |action: &Action| match action {
        Action::Confirm(ticket) => Some(*ticket),
        _ => None,
    };
    actions.iter().filter_map(ticket).collect()
}

fn join(quorum: &mut Quorum, now: Duration, node: u64, acks: &[Ack], newest: &[(&str, u64)]) {
    let newest: Vec<_> = newest.iter().map(|(name, txid)| (db(name), pos(*txid))).collect();
    let joined = Joined { node, session: node, filter: &HashSet::new(), may_lead: true, acks };
    quorum.handle_joined(now, &joined, &newest);
}

#[test]
fn a_commit_is_confirmed_by_the_disk_and_not_by_an_application() {
    let mut quorum = sync(1, OnTimeout::Wait);
    join(&mut quorum, ms(0), A, &[ack("a", 4, 4)], &[("a", 4)]);
    assert!(publications(&drain(&mut quorum, ms(0))).contains(&BTreeSet::from([A])));
    let ticket = quorum.handle_commit(ms(1), &db("a"), pos(5));
    assert_eq!(drain(&mut quorum, ms(1)), []);
    quorum.handle_acks(ms(2), A, A, &[ack("a", 5, 4)]);
    assert_eq!(drain(&mut quorum, ms(2)), []);
    quorum.handle_acks(ms(3), A, A, &[ack("a", 5, 5)]);
    assert_eq!(drain(&mut quorum, ms(3)), [Action::Confirm(ticket)]);
    assert_eq!(quorum.waiting(), 0);
}

#[test]
fn an_acknowledgement_that_is_quicker_than_the_commit_confirms_it() {
    let mut quorum = sync(1, OnTimeout::Wait);
    join(&mut quorum, ms(0), A, &[], &[]);
    drain(&mut quorum, ms(0));
    quorum.handle_acks(ms(1), A, A, &[ack("a", 1, 1)]);
    let ticket = quorum.handle_commit(ms(1), &db("a"), pos(1));
    assert_eq!(drain(&mut quorum, ms(1)), [Action::Confirm(ticket)]);
}

#[test]
fn commits_wait_until_there_is_a_set_and_one_for_all_of_its_members() {
    let mut quorum = sync(2, OnTimeout::Wait);
    let ticket = quorum.handle_commit(ms(0), &db("a"), pos(1));
    join(&mut quorum, ms(1), A, &[ack("a", 1, 1)], &[("a", 1)]);
    assert_eq!(confirmed(&drain(&mut quorum, ms(1))), [0_u64; 0]);
    join(&mut quorum, ms(2), B, &[], &[("a", 1)]);
    assert_eq!(confirmed(&drain(&mut quorum, ms(2))), [0_u64; 0]);
    quorum.handle_acks(ms(3), B, B, &[ack("a", 1, 1)]);
    assert_eq!(confirmed(&drain(&mut quorum, ms(3))), [ticket]);
    assert_eq!(quorum.sync_set(), &BTreeSet::from([A, B]));
}

/// A replica that lacks what an earlier primary acknowledged must not become a member because it
/// has what is committed now.
#[test]
fn a_member_has_what_was_acknowledged_before() {
    let mut quorum = sync(1, OnTimeout::Wait);
    join(&mut quorum, ms(0), A, &[ack("a", 9, 7), ack("b", 3, 3)], &[("a", 9), ("b", 3)]);
    quorum.handle_commit(ms(1), &db("b"), pos(4));
    quorum.handle_acks(ms(2), A, A, &[ack("b", 4, 4)]);
    let actions = drain(&mut quorum, ms(2));
    assert!(publications(&actions).is_empty());
    assert_eq!(confirmed(&actions), [0_u64; 0]);
    quorum.handle_acks(ms(3), A, A, &[ack("a", 9, 9)]);
    assert_eq!(confirmed(&drain(&mut quorum, ms(3))).len(), 1);
}

#[test]
fn nothing_is_confirmed_before_the_set_is_published() {
    let mut quorum = sync(1, OnTimeout::Wait);
    drain(&mut quorum, ms(0));
    join(&mut quorum, ms(0), A, &[], &[]);
    let Some(Action::Publish(number, set)) = quorum.poll_action() else { panic!() };
    assert_eq!(set, BTreeSet::from([A]));
    let ticket = quorum.handle_commit(ms(1), &db("a"), pos(1));
    quorum.handle_acks(ms(2), A, A, &[ack("a", 1, 1)]);
    assert_eq!(quorum.poll_action(), None);
    quorum.handle_published(ms(3), number, false);
    quorum.handle_timeout(ms(4));
    assert_eq!(quorum.poll_action(), None, "tried again later");
    quorum.handle_timeout(ms(3) + RETRY);
    let actions = drain(&mut quorum, ms(500));
    assert_eq!(publications(&actions), [BTreeSet::from([A])]);
    assert_eq!(confirmed(&actions), [ticket]);
}

#[test]
fn a_lost_member_is_replaced_by_a_replica_that_has_everything() {
    let mut quorum = sync(1, OnTimeout::Wait);
    join(&mut quorum, ms(0), A, &[ack("a", 4, 4)], &[("a", 4)]);
    join(&mut quorum, ms(0), B, &[ack("a", 4, 3)], &[("a", 4)]);
    drain(&mut quorum, ms(0));
    let ticket = quorum.handle_commit(ms(1), &db("a"), pos(5));
    quorum.handle_lost(ms(2), A, A);
    let early = quorum.handle_commit(ms(2), &db("b"), pos(1));
    assert_eq!(drain(&mut quorum, ms(2)), [], "it lacks transaction 4");
    quorum.handle_acks(ms(3), B, B, &[ack("a", 5, 4)]);
    assert_eq!(publications(&drain(&mut quorum, ms(3))), [BTreeSet::from([B])]);
    quorum.handle_acks(ms(4), B, B, &[ack("a", 5, 5), ack("b", 1, 1)]);
    assert_eq!(confirmed(&drain(&mut quorum, ms(4))), [ticket, early]);
}

/// While the next set is being published, whoever decides may still read the former one.
#[test]
fn during_a_change_of_the_set_the_members_of_both_must_have_a_commit() {
    let mut quorum = sync(1, OnTimeout::Wait);
    join(&mut quorum, ms(0), A, &[], &[]);
    join(&mut quorum, ms(0), B, &[], &[]);
    drain(&mut quorum, ms(0));
    quorum.handle_lost(ms(1), A, A);
    let Some(Action::Publish(number, set)) = quorum.poll_action() else { panic!() };
    assert_eq!(set, BTreeSet::from([B]));
    let ticket = quorum.handle_commit(ms(2), &db("a"), pos(1));
    quorum.handle_acks(ms(3), B, B, &[ack("a", 1, 1)]);
    assert_eq!(quorum.poll_action(), None, "A may be the one who is asked");
    // It failed, or so it seems: then B may be the one.
    quorum.handle_published(ms(4), number, false);
    join(&mut quorum, ms(5), A, &[ack("a", 1, 1)], &[("a", 1)]);
    assert_eq!(confirmed(&drain(&mut quorum, ms(5))), [ticket]);
    let second = quorum.handle_commit(ms(6), &db("a"), pos(2));
    quorum.handle_acks(ms(7), A, A, &[ack("a", 2, 2)]);
    assert_eq!(confirmed(&drain(&mut quorum, ms(7))), [0_u64; 0]);
    quorum.handle_timeout(ms(4) + RETRY);
    let actions = drain(&mut quorum, ms(500));
    assert_eq!(publications(&actions), [BTreeSet::from([A])], "what is in force, beyond doubt");
    assert_eq!(confirmed(&actions), [second]);
}

#[test]
fn a_member_that_returns_goes_on_where_it_was() {
    let mut quorum = sync(1, OnTimeout::Wait);
    join(&mut quorum, ms(0), A, &[], &[]);
    drain(&mut quorum, ms(0));
    quorum.handle_lost(ms(1), A, A);
    let ticket = quorum.handle_commit(ms(2), &db("a"), pos(1));
    quorum.handle_timeout(ms(3000));
    assert_eq!(drain(&mut quorum, ms(3000)), [Action::Report(Report::Stalled)]);
    quorum.handle_timeout(ms(3050));
    assert_eq!(drain(&mut quorum, ms(3050)), [], "said once");
    join(&mut quorum, ms(4000), A, &[ack("a", 1, 1)], &[("a", 1)]);
    assert_eq!(drain(&mut quorum, ms(4000)), [Action::Confirm(ticket)]);
}

#[test]
fn it_falls_back_after_the_timeout_and_returns_by_itself() {
    let mut quorum = sync(1, OnTimeout::Async);
    drain(&mut quorum, ms(0));
    let ticket = quorum.handle_commit(ms(0), &db("a"), pos(1));
    quorum.handle_timeout(ms(999));
    assert_eq!(drain(&mut quorum, ms(999)), []);
    quorum.handle_timeout(ms(1000));
    let actions = drain(&mut quorum, ms(1000));
    assert_eq!(publications(&actions), [BTreeSet::new()], "before anything is acknowledged");
    assert!(actions.contains(&Action::Report(Report::FellBack)));
    assert_eq!(confirmed(&actions), [ticket]);
    let free = quorum.handle_commit(ms(1001), &db("a"), pos(2));
    assert_eq!(drain(&mut quorum, ms(1001)), [Action::Confirm(free)]);

    join(&mut quorum, ms(2000), A, &[ack("a", 2, 1)], &[("a", 2)]);
    quorum.handle_timeout(ms(2001));
    assert!(quorum.has_fallen_back(), "it lacks what was acknowledged");
    quorum.handle_acks(ms(2002), A, A, &[ack("a", 2, 2)]);
    let actions = drain(&mut quorum, ms(2002));
    assert_eq!(publications(&actions), [BTreeSet::from([A])]);
    assert!(actions.contains(&Action::Report(Report::Returned(BTreeSet::from([A])))));
    assert!(!quorum.has_fallen_back());
    quorum.handle_commit(ms(2003), &db("a"), pos(3));
    assert_eq!(drain(&mut quorum, ms(2003)), [], "it waits again");
}

/// Under constant commits a replica never has all of them; it must become a member all the same.
#[test]
fn it_returns_from_the_fallback_while_commits_go_on() {
    let mut quorum = sync(1, OnTimeout::Async);
    quorum.handle_commit(ms(0), &db("a"), pos(1));
    quorum.handle_timeout(ms(1000));
    drain(&mut quorum, ms(1000));
    join(&mut quorum, ms(1000), A, &[ack("a", 1, 1)], &[("a", 1)]);
    drain(&mut quorum, ms(1000));
    quorum.handle_lost(ms(1000), A, A);
    quorum.handle_commit(ms(1001), &db("a"), pos(2));
    quorum.handle_timeout(ms(2001));
    drain(&mut quorum, ms(2001));
    assert!(quorum.has_fallen_back());
    // Each acknowledgement comes after the next commit.
    let mut waits = false;
    let mut newest = 2;
    join(&mut quorum, ms(2002), A, &[ack("a", 1, 1)], &[("a", 2)]);
    for t in 2003..2100 {
        if !waits {
            newest += 1;
            quorum.handle_commit(ms(t), &db("a"), pos(newest));
        }
        quorum.handle_acks(ms(t), A, A, &[ack("a", newest - 1, newest - 1)]);
        let actions = drain(&mut quorum, ms(t));
        waits = quorum.waiting() > 0;
        if !publications(&actions).is_empty() {
            assert_eq!(quorum.sync_set(), &BTreeSet::from([A]));
            return;
        }
        if waits {
            quorum.handle_acks(ms(t), A, A, &[ack("a", newest, newest)]);
            drain(&mut quorum, ms(t));
            waits = false;
        }
        if !quorum.has_fallen_back() {
            return;
        }
    }
    panic!("never returned");
}

#[test]
fn an_old_connection_of_a_node_counts_no_more() {
    let mut quorum = sync(1, OnTimeout::Wait);
    join(&mut quorum, ms(0), A, &[], &[]);
    let joined =
        Joined { node: A, session: A + 1, filter: &HashSet::new(), may_lead: true, acks: &[] };
    quorum.handle_joined(ms(1), &joined, &[]);
    drain(&mut quorum, ms(1));
    quorum.handle_lost(ms(2), A, A);
    quorum.handle_commit(ms(3), &db("a"), pos(1));
    quorum.handle_acks(ms(4), A, A, &[ack("a", 1, 1)]);
    assert_eq!(drain(&mut quorum, ms(4)), []);
    quorum.handle_acks(ms(5), A, A + 1, &[ack("a", 1, 1)]);
    assert_eq!(confirmed(&drain(&mut quorum, ms(5))).len(), 1);
}

#[test]
fn a_replica_of_some_databases_is_no_member() {
    let mut quorum = sync(1, OnTimeout::Wait);
    let filter = HashSet::from([db("a")]);
    let joined = Joined {
        node: A,
        session: 1,
        filter: &filter,
        may_lead: true,
        acks: &[ack("a", 1, 1), ack("b", 0, 0)],
    };
    quorum.handle_joined(ms(0), &joined, &[(db("a"), pos(1))]);
    assert!(publications(&drain(&mut quorum, ms(0))).is_empty());
}

/// After the primary's death nobody but a member may follow it.
#[test]
fn a_replica_that_may_never_lead_is_no_member_and_confirms_nothing() {
    let mut quorum = sync(1, OnTimeout::Wait);
    let nothing = HashSet::new();
    let observer = |acks| Joined { node: A, session: A, filter: &nothing, may_lead: false, acks };
    quorum.handle_joined(ms(0), &observer(&[ack("a", 1, 1)]), &[(db("a"), pos(1))]);
    let ticket = quorum.handle_commit(ms(1), &db("a"), pos(2));
    quorum.handle_acks(ms(2), A, A, &[ack("a", 2, 2)]);
    assert_eq!(drain(&mut quorum, ms(2)), []);
    join(&mut quorum, ms(3), B, &[ack("a", 2, 2)], &[("a", 2)]);
    let actions = drain(&mut quorum, ms(3));
    assert_eq!(publications(&actions), [BTreeSet::from([B])]);
    assert_eq!(confirmed(&actions), [ticket]);
    // Not in the place of one that is lost either.
    quorum.handle_lost(ms(4), B, B);
    quorum.handle_timeout(ms(100));
    assert_eq!(drain(&mut quorum, ms(100)), []);
    assert_eq!(quorum.sync_set(), &BTreeSet::from([B]));
}

#[test]
fn the_end_of_the_term_fails_what_waits_and_the_next_one_knows_nothing() {
    let mut quorum = sync(1, OnTimeout::Wait);
    join(&mut quorum, ms(0), A, &[], &[]);
    drain(&mut quorum, ms(0));
    let ticket = quorum.handle_commit(ms(1), &db("a"), pos(1));
    quorum.handle_term_ended("n2 is the primary");
    let failed = Action::Fail(ticket, "n2 is the primary".to_owned());
    assert_eq!(drain(&mut quorum, ms(2)), [failed]);
    quorum.handle_term_began();
    let began = publications(&drain(&mut quorum, ms(3)));
    assert!(
        began.is_empty(),
        "the set of the term before tells who has what was acknowledged then"
    );
    let later = quorum.handle_commit(ms(4), &db("a"), pos(2));
    assert_ne!(later, ticket);
    assert_eq!(drain(&mut quorum, ms(4)), []);
}

#[test]
fn bounded_refuses_when_the_nearest_replica_is_too_far_behind_and_recovers() {
    let bounds = Bounds { max_lag: Some(ms(500)), max_transactions: Some(3) };
    let mut quorum = Quorum::bounded(bounds);
    quorum.handle_term_began();
    let refused = quorum.admit(ms(0), &db("a")).unwrap_err();
    assert!(refused.contains("none is connected"), "{refused}");
    // One of the databases was opened, and never written.
    join(&mut quorum, ms(0), A, &[ack("a", 1, 0)], &[("a", 1), ("new", 0)]);
    assert_eq!(quorum.admit(ms(0), &db("a")), Ok(()));
    for txid in 2..=4 {
        assert_eq!(quorum.admit(ms(10), &db("a")), Ok(()), "before transaction {txid}");
        quorum.handle_commit(ms(10), &db("a"), pos(txid));
    }
    assert_eq!(quorum.admit(ms(510), &db("a")), Ok(()));
    let refused = quorum.admit(ms(511), &db("a")).unwrap_err();
    assert!(refused.contains("501 ms and 3 transactions behind"), "{refused}");
    quorum.handle_acks(ms(600), A, A, &[ack("a", 4, 0)]);
    assert_eq!(quorum.admit(ms(600), &db("a")), Ok(()));
    for txid in 5..=8 {
        quorum.handle_commit(ms(601), &db("a"), pos(txid));
    }
    assert!(quorum.admit(ms(601), &db("a")).is_err(), "4 transactions behind");
    assert_eq!(quorum.admit(ms(601), &db("b")), Ok(()), "another database is not behind");
    // Who is away was near a moment ago.
    quorum.handle_acks(ms(602), A, A, &[ack("a", 8, 0)]);
    quorum.handle_lost(ms(603), A, A);
    assert_eq!(quorum.admit(ms(9000), &db("a")), Ok(()));
    quorum.handle_commit(ms(9000), &db("a"), pos(9));
    assert!(quorum.admit(ms(9501), &db("a")).is_err());
    assert_eq!(quorum.poll_action(), None);
}

#[test]
fn a_replica_without_a_database_does_not_bound_it() {
    let mut quorum = Quorum::bounded(Bounds { max_lag: Some(ms(500)), max_transactions: None });
    quorum.handle_term_began();
    let filter = HashSet::from([db("a")]);
    let joined =
        Joined { node: A, session: 1, filter: &filter, may_lead: true, acks: &[ack("a", 1, 1)] };
    quorum.handle_joined(ms(0), &joined, &[(db("a"), pos(1)), (db("b"), pos(1))]);
    quorum.handle_commit(ms(1), &db("b"), pos(2));
    assert_eq!(quorum.admit(ms(5000), &db("a")), Ok(()));
    assert!(quorum.admit(ms(5000), &db("b")).is_err());
}

/// The set of an earlier term stays published until another one takes its place.
#[test]
fn a_first_set_that_could_not_be_published_is_not_replaced_by_an_empty_one() {
    let mut quorum = sync(1, OnTimeout::Wait);
    join(&mut quorum, ms(0), A, &[], &[]);
    let Some(Action::Publish(number, _)) = quorum.poll_action() else { panic!() };
    quorum.handle_published(ms(1), number, false);
    quorum.handle_lost(ms(2), A, A);
    quorum.handle_timeout(ms(1) + RETRY);
    quorum.handle_timeout(ms(5000));
    assert!(publications(&drain(&mut quorum, ms(5000))).is_empty());
}
