//! Risk: a hand-over that loses a commit, stops the writers for long, or ends with no primary.

use super::*;

fn releases(action: &Action) -> bool {
    matches!(action, Action::Release(_))
}

/// A primary that hands over to node 3.
fn passing() -> Rig {
    let mut rig = Rig::primary();
    rig.e.handle_take_over(rig.now, 3).unwrap();
    assert_eq!(rig.actions(), [Action::HoldWriters]);
    assert_eq!(rig.e.role(), Role::HandingOver);
    rig
}

#[test]
fn the_lease_passes_only_after_the_writers_the_target_and_the_gate() {
    let mut rig = passing();
    rig.e.handle_caught_up(rig.now, Ok(()));
    assert_eq!(rig.actions(), [], "nobody asked for it yet");
    rig.e.handle_held(rig.now, Ok(()));
    assert_eq!(rig.actions(), [Action::AwaitTarget(3)]);
    rig.e.handle_caught_up(rig.now, Ok(()));
    let actions = rig.actions();
    let release = place(&actions, releases);
    assert!(place(&actions, closes) < release, "{actions:?}");
    let Action::Release(replace) = &actions[release] else { unreachable!() };
    assert_eq!(replace.term.released, Some(Released { to: Some(3) }));
    place(&actions, ends);
    rig.pass(ms(1));
    rig.e.handle_replaced(rig.now, Replacement::Done { index: 21 });
    assert_eq!(rig.actions(), [Action::Look]);
    let roles = [Role::Primary, Role::HandingOver, Role::SteppingDown, Role::Replica];
    let expected: Vec<_> = roles.windows(2).map(|pair| (pair[0], pair[1])).collect();
    assert_eq!(rig.transitions(), expected);
    rig.see(held(3, 22, 22));
    let follow = Action::Follow { url: "http://n3".into(), hostname: "n3".into(), epoch: 22 };
    assert_eq!(rig.actions(), [follow]);
}

#[test]
fn a_hand_over_that_fails_lets_the_writers_go_on() {
    type Failure = fn(&mut Rig);
    let failures: [(&str, Failure); 4] = [
        ("hold", |rig| rig.e.handle_held(rig.now, Err("a writer hangs".into()))),
        ("held too long", |rig| rig.now += HOLD_TIMEOUT),
        ("target", |rig| {
            rig.e.handle_held(rig.now, Ok(()));
            rig.actions();
            rig.e.handle_caught_up(rig.now, Err("it left".into()));
        }),
        ("target too late", |rig| {
            rig.e.handle_held(rig.now, Ok(()));
            rig.actions();
            rig.now += CATCH_UP_TIMEOUT;
        }),
    ];
    for (name, failure) in failures {
        let mut rig = passing();
        rig.pass(ms(1000));
        rig.beat().unwrap();
        rig.e.handle_replaced(rig.now, Replacement::Done { index: 21 });
        assert!(!has_open(&rig.actions()), "{name}: the hold would end");
        let until = rig.now + FAST_RIGHT;
        failure(&mut rig);
        let actions = rig.actions();
        assert!(actions.contains(&open(until)), "{name}: {actions:?}");
        assert!(!actions.iter().any(closes), "{name}");
        assert_eq!(rig.e.role(), Role::Primary, "{name}");
        // What comes late belongs to no hand-over any more.
        rig.e.handle_held(rig.now, Ok(()));
        rig.e.handle_caught_up(rig.now, Ok(()));
        assert!(!rig.actions().iter().any(|a| releases(a) || closes(a)), "{name}");
    }
}

#[test]
fn a_late_answer_of_one_hand_over_does_not_count_for_the_next() {
    let mut rig = passing();
    rig.pass(HOLD_TIMEOUT);
    rig.actions();
    rig.e.handle_replaced(rig.now, Replacement::Done { index: 21 });
    rig.actions();
    let refused = rig.e.handle_take_over(rig.now, 3);
    assert!(refused.is_err(), "the answer to the first hold is still to come");
    rig.e.handle_held(rig.now, Ok(()));
    assert_eq!(rig.actions(), []);
    rig.e.handle_take_over(rig.now, 3).unwrap();
    assert!(rig.actions().contains(&Action::HoldWriters));
}

#[test]
fn only_a_primary_with_the_right_hands_over_and_only_to_a_living_candidate() {
    let mut rig = Rig::primary();
    assert!(rig.e.handle_take_over(rig.now, ME).is_err());
    assert!(rig.e.handle_take_over(rig.now, 4).unwrap_err().contains("not known"));
    let mut view = held(ME, 20, 21);
    let mut silent = entry(4, 5, 100);
    silent.record.candidate = false;
    view.nodes.push(silent);
    rig.see(view);
    assert!(rig.e.handle_take_over(rig.now, 4).is_err());
    rig.see_own();
    rig.pass(FAST_RIGHT);
    rig.actions();
    assert!(rig.e.handle_take_over(rig.now, 3).unwrap_err().contains("could not be renewed"));
    let mut rig = Rig::seeing(held(2, 8, 10));
    rig.actions();
    assert!(rig.e.handle_take_over(rig.now, 3).is_err());
    assert!(rig.e.handle_demote(rig.now, None).is_err());
}

#[test]
fn a_right_that_ends_during_a_hand_over_ends_the_hand_over() {
    let mut rig = passing();
    rig.pass(FAST_RIGHT);
    let actions = rig.actions();
    place(&actions, |a| *a == open(rig.now));
    rig.e.handle_held(rig.now, Ok(()));
    assert!(!rig.actions().iter().any(|a| matches!(a, Action::AwaitTarget(_))));
    assert_eq!(rig.e.role(), Role::Primary);
    assert!(rig.e.reason().contains("could not be renewed"), "{}", rig.e.reason());
}

#[test]
fn a_release_whose_answer_was_lost_is_repeated_from_a_fresh_view() {
    let mut rig = passing();
    rig.e.handle_held(rig.now, Ok(()));
    rig.actions();
    rig.e.handle_caught_up(rig.now, Ok(()));
    rig.actions();
    rig.pass(ms(1000));
    rig.e.handle_replaced(rig.now, Replacement::Failed);
    assert!(rig.actions().iter().any(releases));
    rig.e.handle_replaced(rig.now, Replacement::Gone);
    rig.actions();
    assert_eq!(rig.e.role(), Role::Replica);
    assert!(rig.e.reason().contains("handed over"), "{}", rig.e.reason());
    // The same, told by a view.
    let mut rig = Rig::primary();
    rig.e.handle_demote(rig.now, None).unwrap();
    rig.actions();
    rig.e.handle_replaced(rig.now, Replacement::Failed);
    rig.see(released(21, None));
    rig.actions();
    assert!([Role::Replica, Role::Candidate].contains(&rig.e.role()));
}

fn demote(rig: &mut Rig) {
    rig.e.handle_demote(rig.now, None).unwrap();
    rig.actions();
    rig.pass(ms(1));
    rig.e.handle_replaced(rig.now, Replacement::Done { index: 21 });
    assert_eq!(rig.actions(), [Action::Look]);
    rig.see(released(21, None));
}

#[test]
fn a_demoted_node_does_not_try_again_for_a_while() {
    let mut rig = Rig::primary();
    demote(&mut rig);
    assert_eq!(rig.pass(ms(9998)).acquire(), None);
    assert!(rig.pass(ms(1)).acquire().is_some());
    // An operator may change his mind.
    let mut rig = Rig::primary();
    demote(&mut rig);
    assert_eq!(rig.acquire(), None);
    assert_eq!(rig.e.handle_promote(rig.now), Ok(Promotion::Wanted));
    assert!(rig.acquire().is_some());
}

#[test]
fn a_promotion_that_is_refused_leaves_the_rest_as_it_was() {
    let mut rig = Rig::new(settings());
    let rest = Some((rig.now + ms(10_000), "demoted".to_owned()));
    rig.e.resting = rest.clone();
    assert!(rig.e.handle_promote(rig.now).is_err(), "Consul has not answered yet");
    assert_eq!(rig.e.resting, rest);
    rig.see(held(2, 8, 10));
    assert!(rig.e.handle_promote(rig.now).is_err(), "it is not connected");
    assert_eq!(rig.e.resting, rest);
    rig.e.handle_linked(8);
    assert!(rig.e.handle_promote(rig.now).is_ok());
    assert_eq!(rig.e.resting, None);
}

#[test]
fn a_node_that_is_to_be_primary_asks_the_one_it_follows() {
    let mut rig = Rig::seeing(held(2, 8, 10));
    rig.actions();
    assert!(rig.e.handle_promote(rig.now).is_err(), "it is not connected");
    rig.e.handle_linked(7);
    assert!(rig.e.handle_promote(rig.now).is_err(), "connected to a former primary");
    rig.e.handle_linked(8);
    assert_eq!(rig.e.handle_promote(rig.now), Ok(Promotion::Wanted));
    assert_eq!(rig.actions(), [Action::AskTakeOver]);
    assert_eq!(rig.actions(), []);
    rig.e.handle_take_over_refused(rig.now, "busy");
    assert!(std::iter::from_fn(|| rig.e.poll_transition()).any(|t| t.reason.contains("busy")));
    assert!(!rig.e.is_promoting());
    assert_eq!(rig.pass(ms(20_000)).actions(), [], "no second time by itself");
    assert_eq!(Rig::primary().e.handle_promote(ms(100_000)), Ok(Promotion::Already));
}

#[test]
fn a_promotion_that_does_not_come_is_given_up_or_ends_with_the_term_that_it_led_to() {
    let promoting = || {
        let mut rig = Rig::seeing(held(2, 8, 10));
        rig.actions();
        rig.e.handle_linked(8);
        rig.e.handle_promote(rig.now).unwrap();
        assert_eq!(rig.actions(), [Action::AskTakeOver]);
        rig
    };
    let mut rig = promoting();
    rig.pass(ms(9_999)).actions();
    assert!(rig.e.is_promoting(), "the primary may still hand over");
    rig.pass(ms(1)).actions();
    assert!(!rig.e.is_promoting(), "who waits for it must be told");
    let mut rig = promoting();
    rig.see(released(11, Some(ME)));
    rig.acquire().unwrap();
    rig.e.handle_acquired(rig.now, Acquisition::Acquired { index: 12 });
    assert!(rig.e.is_promoting(), "its term is about to begin");
}

#[test]
fn lease_promote_asks_once_in_sync_until_it_was_heard_and_then_no_more() {
    let settings = Settings { promote: true, ..settings() };
    let mut rig = Rig::with(settings, standing(), held(2, 8, 10));
    rig.actions();
    rig.e.handle_linked(8);
    assert_eq!(rig.actions(), [], "it is not in sync");
    rig.e.handle_standing(Standing { in_sync: true, ..standing() });
    assert_eq!(rig.actions(), [Action::AskTakeOver]);
    rig.e.handle_take_over_refused(rig.now, "busy");
    rig.see(held(2, 8, 11));
    assert_eq!(rig.pass(ms(4999)).actions(), []);
    assert_eq!(rig.pass(ms(1)).actions(), [Action::AskTakeOver]);
    rig.see(released(12, Some(ME)));
    rig.acquire().unwrap();
    rig.e.handle_acquired(rig.now, Acquisition::Acquired { index: 13 });
    rig.actions();
    rig.e.handle_replaced(rig.now, Replacement::Gone);
    rig.see(held(2, 30, 30));
    rig.e.handle_linked(30);
    rig.pass(ms(60_000));
    assert!(!rig.actions().contains(&Action::AskTakeOver));
}

#[test]
fn a_primary_that_shuts_down_hands_over_and_leaves() {
    let mut rig = Rig::primary();
    rig.e.handle_shutdown(rig.now, Some(3));
    assert_eq!(rig.actions(), [Action::HoldWriters]);
    rig.e.handle_held(rig.now, Ok(()));
    assert_eq!(rig.actions(), [Action::AwaitTarget(3)]);
    rig.e.handle_caught_up(rig.now, Ok(()));
    let actions = rig.actions();
    let Action::Release(replace) = &actions[place(&actions, releases)] else { unreachable!() };
    assert_eq!(replace.term.released, Some(Released { to: Some(3) }));
    rig.pass(ms(1));
    rig.e.handle_replaced(rig.now, Replacement::Done { index: 21 });
    assert_eq!(rig.actions(), [Action::DestroySession(session("s1"))]);
    rig.e.handle_destroyed(rig.now);
    assert_eq!(rig.actions(), []);
    assert_eq!((rig.e.role(), rig.e.poll_timeout()), (Role::Stopped, Duration::MAX));
}

#[test]
fn a_primary_that_shuts_down_gives_the_lease_back_if_nobody_takes_it() {
    let mut rig = Rig::primary();
    rig.e.handle_shutdown(rig.now, Some(4));
    let actions = rig.actions();
    assert!(place(&actions, closes) < place(&actions, releases), "node 4 is not there");
    let mut rig = Rig::primary();
    rig.e.handle_shutdown(rig.now, Some(3));
    rig.actions();
    rig.e.handle_held(rig.now, Err("a writer hangs".into()));
    let actions = rig.actions();
    let Action::Release(replace) = &actions[place(&actions, releases)] else { unreachable!() };
    assert_eq!(replace.term.released, Some(Released { to: None }));
    assert!(!has_open(&actions));
}

#[test]
fn a_shutdown_ends_in_time_whatever_consul_does() {
    for target in [None, Some(3)] {
        let mut rig = Rig::primary();
        let deadline = rig.now + SHUTDOWN_TIMEOUT;
        rig.e.handle_shutdown(rig.now, target);
        let mut actions = rig.actions();
        while rig.e.role() != Role::Stopped {
            let next = rig.e.poll_timeout();
            assert!(next <= deadline, "{next:?}");
            rig.now = next.max(rig.now);
            actions.extend(rig.actions());
        }
        assert!(actions.iter().any(closes) && actions.iter().any(ends), "{actions:?}");
    }
    let mut rig = Rig::seeing(held(2, 8, 10));
    rig.actions();
    rig.e.handle_shutdown(rig.now, None);
    assert_eq!(rig.actions(), [Action::DestroySession(session("s1"))]);
    rig.e.handle_destroyed(rig.now);
    assert_eq!(rig.actions(), []);
    assert_eq!(rig.e.role(), Role::Stopped);
}
