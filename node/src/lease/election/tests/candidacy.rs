//! Risk: a node takes the lease while another may commit, or with less data than another has.

use super::super::steps::VIEW_AGE;
use super::*;

/// True if the node would take the lease by itself, without any change, after waiting so long.
fn takes_after(rig: &mut Rig, wait: Duration) -> bool {
    let before = rig.pass(wait - ms(1)).acquire();
    assert_eq!(before, None, "too early: {}", rig.e.reason());
    rig.pass(ms(1)).acquire().is_some()
}

#[test]
fn the_guard_runs_from_the_last_beat_that_was_seen() {
    assert!(takes_after(&mut Rig::seeing(free(10)), GUARD));
    let mut rig = Rig::seeing(held(2, 8, 10));
    rig.actions();
    rig.pass(ms(3000));
    rig.see(View { index: 11, ..free(10) });
    assert!(takes_after(&mut rig, GUARD - ms(3000)), "the key went later, its record did not move");
    let mut rig = Rig::seeing(free(10));
    rig.pass(ms(3000));
    rig.see(free(11));
    assert!(takes_after(&mut rig, GUARD), "a beat came late");
}

#[test]
fn the_guard_is_the_right_of_the_last_primary_not_the_own() {
    let mut view = free(10);
    view.term = Some((10, TermRecord { right: ms(9000), ..term(2) }));
    assert!(takes_after(&mut Rig::seeing(view.clone()), ms(10_350)));
    // The service lost its data: the longest right that was known.
    let mut rig = Rig::seeing(view);
    rig.see(View { index: 11, term: None, cluster: None, ..free(11) });
    assert!(takes_after(&mut rig, ms(10_350)));
}

#[test]
fn a_cluster_without_a_term_record_is_guarded_too() {
    let view = View { term: None, cluster: None, ..free(10) };
    assert!(takes_after(&mut Rig::seeing(view), GUARD));
}

#[test]
fn a_released_lease_is_taken_at_once_with_the_record_that_was_seen() {
    let mut rig = Rig::seeing(released(10, None));
    let acquire = rig.acquire().unwrap();
    assert_eq!((acquire.session, acquire.expected), (session("s1"), Some(10)));
    assert_eq!(acquire.cluster, None);
    let expected = TermRecord { beat: 0, transactions: 100, floor: 5, ..term(ME) };
    assert_eq!(acquire.term, expected);
}

#[test]
fn a_key_that_was_unlocked_by_hand_is_guarded() {
    let mut view = released(10, None);
    view.term = Some((10, term(2)));
    assert!(takes_after(&mut Rig::seeing(view), GUARD));
}

#[test]
fn a_lease_handed_to_another_is_left_to_it_for_a_while() {
    assert!(takes_after(&mut Rig::seeing(released(10, Some(3))), ms(2000)));
    let mut view = released(10, Some(ME));
    view.nodes.push(entry(3, 9, 900));
    assert!(Rig::seeing(view).acquire().is_some(), "the primary knows that this one has all");
}

#[test]
fn a_new_cluster_is_begun_with_its_id_after_a_look_around() {
    let nothing = View { index: 1, ..View::default() };
    let mut rig = Rig::with(settings(), Standing::default(), nothing.clone());
    assert_eq!(rig.pass(ms(999)).acquire(), None);
    let acquire = rig.pass(ms(1)).acquire().unwrap();
    assert_eq!((acquire.expected, acquire.cluster), (None, Some("NEW".into())));
    // A node with data keeps its cluster's id; one without leaves the cluster to it.
    let mut rig = Rig::with(settings(), standing(), nothing.clone());
    assert_eq!(rig.pass(GUARD).acquire().unwrap().cluster, Some("C".into()));
    let mut silent = entry(3, 0, 1);
    silent.record.candidate = false;
    let view = View { nodes: vec![silent], ..nothing };
    let mut rig = Rig::with(settings(), Standing::default(), view);
    assert_eq!(rig.pass(GUARD).acquire(), None, "an empty node wins over data");
}

#[test]
fn a_cluster_that_was_begun_and_not_kept_can_be_gone_on_with() {
    let nothing = View { index: 1, ..View::default() };
    let mut rig = Rig::with(settings(), Standing::default(), nothing);
    rig.pass(ms(1000)).acquire().unwrap();
    let view = View { cluster: Some("NEW".into()), ..held(ME, 20, 20) };
    rig.see(view.clone());
    rig.e.handle_acquired(rig.now, Acquisition::Acquired { index: 20 });
    let actions = rig.actions();
    place(&actions, |a| *a == Action::BeginTerm { epoch: 20, cluster: "NEW".into() });
    // The same if it was killed before it kept the id.
    let free = View { key: None, index: 21, ..view };
    let mut rig = Rig::with(settings(), Standing::default(), free);
    assert!(takes_after(&mut rig, GUARD));
}

#[test]
fn a_new_node_never_takes_an_old_clusters_lease() {
    let joined = Standing { cluster: Some("C".into()), epoch: 5, ..Standing::default() };
    for (standing, view) in [
        (Standing::default(), released(10, None)),
        (Standing::default(), View { term: None, ..free(10) }),
        (joined.clone(), released(10, None)),
        (joined, View { index: 1, ..View::default() }),
    ] {
        let mut rig = Rig::with(settings(), standing, view);
        assert_eq!(rig.pass(GUARD * 2).acquire(), None);
        assert_eq!(rig.e.role(), Role::Replica);
        assert!(rig.e.reason().contains("new"), "{}", rig.e.reason());
        assert!(rig.e.handle_promote(rig.now).is_err());
    }
}

#[test]
fn data_from_before_the_first_epoch_begins_the_cluster_that_it_belongs_to() {
    let brought = Standing { epoch: 0, term: 0, ..standing() };
    let litefs = View { term: None, ..free(10) };
    let empty = View { index: 1, ..View::default() };
    for view in [litefs, empty] {
        let mut rig = Rig::with(settings(), brought.clone(), view);
        assert!(takes_after(&mut rig, GUARD));
    }
    let mut rig = Rig::with(settings(), brought, free(10));
    assert_eq!(rig.pass(GUARD).acquire(), None, "the cluster went on without it");
}

#[test]
fn a_node_of_another_cluster_neither_follows_nor_takes_nor_shows_itself() {
    let mut rig = Rig::new(settings());
    rig.e.handle_standing(Standing { cluster: Some("D".into()), ..standing() });
    for view in [held(2, 8, 10), released(11, None)] {
        rig.see(view);
        assert_eq!(rig.actions(), []);
        assert!(rig.e.reason().contains("cluster D"), "{}", rig.e.reason());
        assert!(rig.e.handle_promote(rig.now).is_err());
    }
    assert_eq!(rig.published(), None);
}

#[test]
fn a_node_that_is_no_candidate_says_so_and_takes_nothing() {
    let settings = Settings { candidate: false, promote: true, ..settings() };
    let mut rig = Rig::with(settings, standing(), released(10, None));
    assert_eq!(rig.acquire(), None);
    assert_eq!((rig.e.role(), rig.e.handle_promote(rig.now).is_err()), (Role::Replica, true));
}

#[test]
fn a_candidate_that_is_behind_stands_back_as_long_as_the_other_lives() {
    let with = |index, node: NodeEntry| View { nodes: vec![node], ..released(index, None) };
    for better in [entry(3, 5, 101), entry(3, 6, 1)] {
        let mut rig = Rig::seeing(with(10, better));
        assert_eq!(rig.pass(GUARD * 5).acquire(), None);
        assert_eq!(rig.e.role(), Role::Candidate);
        rig.see(released(11, None));
        assert!(rig.acquire().is_some(), "the better one died");
    }
    for not_better in [entry(3, 5, 100), entry(3, 4, 1000)] {
        assert!(Rig::seeing(with(10, not_better)).acquire().is_some());
    }
}

/// The query that waits for changes may hang for long, with what was known when it was asked.
#[test]
fn the_lease_is_taken_by_a_fresh_look_at_what_others_have() {
    let better = || View { nodes: vec![entry(3, 5, 101)], ..free(10) };
    for age in [VIEW_AGE + ms(1), GUARD] {
        let mut rig = Rig::new(settings());
        rig.e.handle_view(rig.now, rig.now, free(10));
        assert_eq!(rig.pass(GUARD - age).actions(), []);
        rig.see(free(10));
        assert_eq!(rig.pass(age).actions(), [Action::Look]);
        rig.e.handle_look_failed(rig.now);
        assert_eq!(rig.pass(ms(200)).actions(), [Action::Look], "not without it");
        rig.see(better());
        assert_eq!(rig.actions(), [], "node 3 has newer data");
        assert_eq!(rig.e.role(), Role::Candidate);
    }
    let mut rig = Rig::seeing(free(10));
    rig.pass(GUARD - VIEW_AGE).see(free(10));
    rig.pass(VIEW_AGE);
    assert!(matches!(rig.actions()[..], [Action::Acquire(_)]), "that is fresh enough");
    // An answer that took as long as it may is.
    let mut rig = Rig::seeing(free(10));
    assert_eq!(rig.pass(GUARD).actions(), [Action::Look]);
    let asked = rig.now;
    rig.pass(REQUEST_TIMEOUT);
    rig.e.handle_view(rig.now, asked, free(10));
    assert!(matches!(rig.actions()[..], [Action::Acquire(_)]));
}

#[test]
fn being_behind_one_that_may_not_follow_is_said() {
    let mut other = entry(3, 5, 101);
    other.record.candidate = false;
    let mut rig = Rig::seeing(View { nodes: vec![other], ..released(10, None) });
    assert!(rig.acquire().is_some());
    rig.e.handle_acquired(rig.now, Acquisition::Acquired { index: 20 });
    assert!(rig.e.reason().contains("node 0000000000000003 has newer data"), "{}", rig.e.reason());
}

#[test]
fn only_a_member_of_the_sync_set_or_its_primary_follows_without_an_operator() {
    let with = |node: u64, sync: &[u64]| {
        let mut view = released(10, None);
        let sync = sync.iter().copied().collect();
        view.term =
            Some((10, TermRecord { sync, released: Some(Released { to: None }), ..term(node) }));
        // Ahead, but by what nobody was told of.
        view.nodes.push(entry(4, 5, 103));
        view
    };
    assert!(Rig::seeing(with(2, &[ME, 3])).acquire().is_some());
    assert!(Rig::seeing(with(ME, &[3])).acquire().is_some());
    let mut rig = Rig::seeing(with(2, &[3]));
    rig.see(View { nodes: Vec::new(), ..with(2, &[3]) });
    assert_eq!(rig.pass(GUARD * 9).acquire(), None);
    assert_eq!(rig.e.handle_promote(rig.now), Ok(Promotion::Wanted));
    assert!(rig.acquire().is_some());
    rig.e.handle_acquired(rig.now, Acquisition::Acquired { index: 20 });
    assert!(rig.e.reason().contains("may be lost"), "{}", rig.e.reason());
}

#[test]
fn a_sync_set_outlives_a_primary_that_dies_before_it_publishes_its_own() {
    let mut view = released(10, None);
    let sync = [ME, 3].into_iter().collect();
    view.term = Some((10, TermRecord { sync, released: Some(Released { to: None }), ..term(2) }));
    let acquire = Rig::seeing(view.clone()).acquire().unwrap();
    assert!(acquire.term.sync.is_empty(), "asynchronous: the old set will not have everything");
    let settings = Settings { sync: true, ..settings() };
    let acquire = Rig::with(settings, standing(), view).acquire().unwrap();
    assert_eq!(acquire.term.sync, [1, 2, 3].into_iter().collect());
}

#[test]
fn an_acquisition_that_was_not_executed_is_repeated_from_a_fresh_view() {
    for answer in [Acquisition::Refused, Acquisition::Failed] {
        let mut rig = Rig::seeing(released(10, None));
        rig.acquire().unwrap();
        rig.pass(ms(200));
        rig.e.handle_acquired(rig.now, answer);
        assert_eq!(rig.actions(), [Action::Look]);
        rig.e.handle_look_failed(rig.now);
        assert_eq!(rig.actions(), []);
        rig.pass(ms(200));
        assert_eq!(rig.actions(), [Action::Look]);
        rig.see(released(12, None));
        assert_eq!(rig.acquire().unwrap().expected, Some(12));
        assert!(rig.e.reason().contains("Consul"), "{}", rig.e.reason());
    }
}

#[test]
fn an_acquisition_that_is_executed_though_it_was_given_up_is_given_back() {
    let mut rig = Rig::seeing(released(10, None));
    rig.acquire().unwrap();
    rig.pass(ms(1000));
    rig.e.handle_acquired(rig.now, Acquisition::Failed);
    rig.e.handle_standing(Standing { cluster: Some("D".into()), ..standing() });
    rig.see(held(ME, 20, 20));
    assert!(!has_open(&rig.actions()));
    let mut rig = Rig::seeing(released(10, None));
    rig.acquire().unwrap();
    rig.e.handle_shutdown(rig.now, None);
    rig.e.handle_acquired(rig.now, Acquisition::Acquired { index: 20 });
    let actions = rig.actions();
    assert!(!has_open(&actions) && !actions.iter().any(|a| matches!(a, Action::BeginTerm { .. })));
    place(&actions, |a| matches!(a, Action::Release(_) | Action::DestroySession(_)));
}

#[test]
fn a_session_that_ended_is_not_used_to_acquire() {
    let mut rig = Rig::seeing(free(10));
    rig.actions();
    rig.pass(ms(3300));
    while !matches!(rig.e.poll_action(rig.now), Some(Action::RenewSession(_))) {}
    rig.e.handle_session_renewed(rig.now, Renewal::Gone);
    assert_eq!(rig.e.poll_action(rig.now), Some(Action::OpenSession));
    rig.pass(ms(900));
    rig.e.handle_session(rig.now, None);
    rig.pass(ms(900));
    assert_eq!(rig.actions(), []);
    assert_eq!(rig.pass(ms(100)).actions(), [Action::Look], "the session is open again");
    rig.see(free(10));
    assert!(takes_after(&mut rig, GUARD));
}

#[test]
fn the_epoch_grows_though_the_service_counts_from_the_beginning() {
    let mut view = View { index: 3, term: None, cluster: None, ..free(3) };
    view.nodes.push(entry(3, 800, 0));
    let known = Standing { epoch: 900, term: 900, ..standing() };
    let mut rig = Rig::with(settings(), known, view);
    let acquire = rig.pass(GUARD).acquire().unwrap();
    assert_eq!(acquire.term.floor, 900);
    rig.e.handle_acquired(rig.now, Acquisition::Acquired { index: 4 });
    let actions = rig.actions();
    place(&actions, |a| matches!(a, Action::BeginTerm { epoch: 901, .. }));
    // The next one never heard of it but by the record.
    let mut next = released(6, None);
    let released = Some(Released { to: None });
    next.term = Some((6, TermRecord { floor: 900, released, ..term(2) }));
    let mut rig = Rig::seeing(next);
    let record = rig.acquire().unwrap().term;
    assert!(crate::lease::view::epoch(7, Some(&record)) > 901);
}

#[test]
fn an_index_seen_before_the_session_was_opened_proves_nothing() {
    let mut rig = Rig::seeing(free(10));
    rig.actions();
    // Consul forgets everything, and comes to the same index again.
    rig.pass(ms(4000));
    let asked = rig.now;
    while !matches!(rig.e.poll_action(rig.now), Some(Action::RenewSession(_))) {}
    rig.e.handle_session_renewed(rig.now, Renewal::Gone);
    assert_eq!(rig.e.poll_action(rig.now), Some(Action::OpenSession));
    rig.pass(ms(10));
    rig.e.handle_session(rig.now, Some(session("s2")));
    rig.e.handle_view(rig.now, asked, free(10));
    assert_eq!(rig.pass(GUARD * 9).actions(), [Action::Look]);
    rig.see(free(10));
    assert!(takes_after(&mut rig, GUARD));
}

#[test]
fn a_primary_that_others_would_refuse_takes_a_newer_epoch() {
    let mut rig = Rig::primary();
    let mut view = held(ME, 20, 20);
    view.nodes.push(NodeEntry {
        record: NodeRecord { epoch: 60, ..entry(3, 5, 1).record },
        ..entry(3, 5, 1)
    });
    let nodes = view.nodes.clone();
    rig.see(view);
    assert!(rig.actions().iter().any(closes));
    rig.pass(ms(1));
    rig.e.handle_replaced(rig.now, Replacement::Done { index: 21 });
    rig.actions();
    rig.see(View { nodes, ..released(21, None) });
    assert_eq!(rig.acquire().unwrap().term.floor, 60);
}

#[test]
fn a_node_that_was_away_waits_for_those_that_were_not() {
    let with = |node: u64| {
        let mut view = released(10, None);
        let released = Some(Released { to: None });
        view.term = Some((10, TermRecord { transactions: 101, released, ..term(node) }));
        view
    };
    let dead = |node: u64, floor: u64| {
        let record = TermRecord { transactions: 101, floor, ..term(node) };
        View { term: Some((10, record)), ..free(10) }
    };
    assert!(takes_after(&mut Rig::seeing(with(2)), ms(10_000)));
    assert!(Rig::seeing(with(ME)).acquire().is_some(), "it was the primary");
    let linked = || {
        let mut rig = Rig::seeing(held(2, 8, 9));
        rig.e.handle_linked(8);
        rig.actions();
        rig.e.handle_unlinked();
        rig
    };
    let mut rig = linked();
    rig.see(dead(2, 7));
    assert!(takes_after(&mut rig, GUARD), "it has what the primary sent, and that is all there is");
    let mut rig = linked();
    rig.see(with(2));
    assert!(takes_after(&mut rig, ms(10_000)), "the primary left in order, and comes back");
    let mut rig = linked();
    rig.see(dead(3, 8));
    assert!(takes_after(&mut rig, ms(10_000)), "this node never was connected to that one");
    let mut rig = Rig::seeing(with(2));
    rig.e.handle_promote(rig.now).unwrap();
    assert!(rig.acquire().is_some());
}

#[test]
fn a_restarted_node_ends_the_session_that_it_had_before() {
    let mut view = held(ME, 8, 10);
    view.key.as_mut().unwrap().session = Some(session("old"));
    let mut rig = Rig::seeing(view);
    assert_eq!(rig.actions(), [Action::DestroySession(session("old"))]);
    assert_eq!(rig.e.role(), Role::Replica);
    rig.e.handle_destroyed(rig.now);
    rig.see(View { index: 11, term: Some((10, term(ME))), ..free(11) });
    assert!(takes_after(&mut rig, GUARD));
    let mut mine = entry(ME, 5, 100);
    mine.session = session("old");
    let mut rig = Rig::seeing(View { nodes: vec![mine], ..held(2, 8, 10) });
    place(&rig.actions(), |a| *a == Action::DestroySession(session("old")));
}

#[test]
fn a_record_is_written_again_if_an_older_one_came_late() {
    let mut rig = Rig::seeing(held(2, 8, 10));
    let record = rig.published().unwrap();
    rig.actions();
    let mut late = entry(ME, 4, 3);
    late.session = session("s1");
    rig.see(View { nodes: vec![late], ..held(2, 8, 11) });
    assert_eq!(rig.published(), None, "not without end, if it is always shown otherwise");
    assert_eq!(rig.pass(ms(1000)).published(), Some(record.clone()));
    let shown = NodeEntry { session: session("s1"), record };
    rig.see(View { nodes: vec![shown], ..held(2, 8, 12) });
    assert_eq!(rig.pass(ms(5000)).published(), None);
}

#[test]
fn what_others_decide_by_is_published_at_once_the_rest_once_a_second() {
    let mut rig = Rig::seeing(held(2, 8, 10));
    rig.actions();
    rig.e.handle_standing(Standing { transactions: 101, ..standing() });
    assert_eq!(rig.published(), None);
    rig.e.handle_linked(8);
    assert_eq!(rig.published().unwrap().link, Link::Up(8));
    rig.e.handle_unlinked();
    assert_eq!(rig.published().unwrap().link, Link::Lost(8));
    rig.e.handle_standing(Standing { transactions: 102, ..standing() });
    assert_eq!(rig.published(), None);
    assert_eq!(rig.e.poll_timeout(), rig.now + ms(1000));
    assert_eq!(rig.pass(ms(1000)).published().unwrap().transactions, 102);
}
