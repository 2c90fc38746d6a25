//! Risk: a gate that is open longer than the right lasts, or opens again after it was given up.

use super::*;

#[test]
fn the_right_begins_with_the_request_however_late_its_answer() {
    let mut rig = Rig::seeing(released(10, None));
    let asked = rig.now;
    rig.acquire().unwrap();
    rig.pass(ms(900));
    rig.e.handle_acquired(rig.now, Acquisition::Acquired { index: 20 });
    rig.actions();
    rig.e.handle_term_began(rig.now, 20, Ok(()));
    assert_eq!(rig.actions(), [open(asked + FAST_RIGHT)]);
    let beat_asked = asked + ms(900);
    rig.pass(ms(700));
    rig.e.handle_replaced(rig.now, Replacement::Done { index: 21 });
    assert_eq!(rig.actions(), [open(beat_asked + FAST_RIGHT)]);
    assert_eq!(rig.e.right_until(), beat_asked + FAST_RIGHT);
}

#[test]
fn an_answer_that_comes_after_the_right_it_gives_opens_nothing() {
    let mut rig = Rig::seeing(released(10, None));
    rig.acquire().unwrap();
    rig.pass(FAST_RIGHT);
    rig.e.handle_acquired(rig.now, Acquisition::Acquired { index: 20 });
    rig.actions();
    rig.e.handle_term_began(rig.now, 20, Ok(()));
    assert!(!has_open(&rig.actions()));
    rig.e.handle_replaced(rig.now, Replacement::Done { index: 21 });
    assert_eq!(rig.actions(), [open(rig.now + FAST_RIGHT)]);
}

#[test]
fn no_gate_opens_before_the_node_serves_as_primary() {
    let mut rig = Rig::seeing(released(10, None));
    rig.acquire().unwrap();
    rig.e.handle_acquired(rig.now, Acquisition::Acquired { index: 20 });
    rig.actions();
    rig.e.handle_replaced(rig.now, Replacement::Done { index: 21 });
    assert_eq!(rig.actions(), []);
    assert_eq!(rig.e.right_until(), Duration::ZERO);
    rig.e.handle_term_began(rig.now, 19, Ok(()));
    assert_eq!(rig.actions(), [], "that is another term");
}

#[test]
fn a_node_that_cannot_serve_gives_the_lease_back_and_rests() {
    let mut rig = Rig::seeing(released(10, None));
    rig.acquire().unwrap();
    rig.e.handle_acquired(rig.now, Acquisition::Acquired { index: 20 });
    rig.actions();
    rig.e.handle_term_began(rig.now, 20, Err("disk full".into()));
    rig.e.handle_replaced(rig.now, Replacement::Done { index: 21 });
    let actions = rig.actions();
    assert!(!has_open(&actions));
    place(&actions, |a| matches!(a, Action::Release(r) if r.expected == 21));
    rig.pass(ms(1));
    rig.e.handle_replaced(rig.now, Replacement::Done { index: 22 });
    rig.actions();
    rig.see(released(22, None));
    rig.pass(ms(8999));
    assert_eq!(rig.acquire(), None);
    assert!(rig.e.reason().contains("disk full"), "{}", rig.e.reason());
    assert!(!rig.record.take().unwrap().candidate, "nobody needs to wait for it");
    assert!(rig.pass(ms(1000)).acquire().is_some());
    assert!(rig.record.take().unwrap().candidate);
}

#[test]
fn a_lease_that_is_not_renewed_pauses_and_goes_on_in_the_same_term() {
    let mut rig = Rig::primary();
    rig.pass(ms(1000));
    for _ in 0..2 {
        assert!(rig.beat().is_some());
        rig.pass(ms(1000));
        rig.e.handle_replaced(rig.now, Replacement::Failed);
    }
    rig.pass(ms(500));
    assert!(rig.beat().is_some());
    assert_eq!(rig.e.right_until(), rig.now);
    assert_eq!(rig.transitions(), [(Role::Primary, Role::Primary)], "paused");
    rig.pass(ms(500));
    rig.e.handle_replaced(rig.now, Replacement::Done { index: 25 });
    assert_eq!(rig.actions(), [open(rig.now - ms(500) + FAST_RIGHT)]);
    assert_eq!(rig.transitions(), [(Role::Primary, Role::Primary)], "resumed");
}

#[test]
fn a_term_without_a_beat_for_twice_the_right_is_given_back() {
    let mut rig = Rig::primary();
    rig.pass(FAST_RIGHT);
    assert!(rig.beat().is_some());
    rig.pass(ms(1000));
    rig.e.handle_replaced(rig.now, Replacement::Failed);
    rig.pass(FAST_RIGHT - ms(1000));
    let actions = rig.actions();
    let close = place(&actions, closes);
    let release = place(&actions, |a| matches!(a, Action::Release(_)));
    assert!(close < release && close < place(&actions, ends));
    assert_eq!(rig.e.role(), Role::SteppingDown);
    rig.pass(ms(1000));
    rig.e.handle_replaced(rig.now, Replacement::Failed);
    assert!(rig.actions().iter().any(|a| matches!(a, Action::Release(_))), "it is repeated");
    rig.e.handle_replaced(rig.now, Replacement::Done { index: 30 });
    assert_eq!(rig.actions(), [Action::Look]);
    assert_eq!(rig.e.role(), Role::Replica);
}

#[test]
fn after_a_release_was_asked_for_nothing_opens_the_gate_in_that_term() {
    let mut rig = Rig::primary();
    rig.e.handle_demote(rig.now, None).unwrap();
    rig.actions();
    rig.e.handle_replaced(rig.now, Replacement::Failed);
    rig.see_own();
    for _ in 0..30 {
        rig.pass(ms(300));
        assert!(!has_open(&rig.actions()));
        rig.e.handle_replaced(rig.now, Replacement::Failed);
    }
    assert_eq!(rig.e.right_until(), Duration::ZERO);
}

#[test]
fn a_beat_under_way_does_not_open_the_gate_after_the_term_was_given_up() {
    let mut rig = Rig::primary();
    rig.pass(ms(1000));
    assert!(rig.beat().is_some());
    rig.e.handle_demote(rig.now, None).unwrap();
    assert!(rig.actions().iter().any(closes));
    rig.e.handle_replaced(rig.now, Replacement::Done { index: 21 });
    let actions = rig.actions();
    assert!(!has_open(&actions));
    place(&actions, |a| matches!(a, Action::Release(r) if r.expected == 21));
}

#[test]
fn a_beat_whose_answer_was_lost_does_not_end_the_term() {
    let mut rig = Rig::primary();
    rig.pass(ms(1000));
    assert_eq!(rig.beat().unwrap().expected, 20);
    rig.pass(ms(1000));
    rig.e.handle_replaced(rig.now, Replacement::Failed);
    assert_eq!(rig.beat().unwrap().expected, 20);
    rig.e.handle_replaced(rig.now, Replacement::Conflict);
    assert_eq!(rig.actions(), [Action::Look]);
    rig.e.handle_view(rig.now, rig.now - ms(1), held(ME, 20, 21));
    assert_eq!(rig.actions(), [], "it was asked for before the conflict");
    rig.see(held(ME, 20, 22));
    assert_eq!(rig.beat().unwrap().expected, 22);
}

#[test]
fn a_lease_that_is_gone_closes_the_gate_at_once() {
    type Cause = fn(&mut Rig);
    let causes: [(&str, Cause); 4] = [
        ("beat", |rig| {
            rig.pass(ms(1000)).beat().unwrap();
            rig.e.handle_replaced(rig.now, Replacement::Gone);
        }),
        ("session", |rig| {
            while !matches!(rig.e.poll_action(rig.now), Some(Action::RenewSession(_))) {
                rig.pass(ms(100));
            }
            rig.e.handle_session_renewed(rig.now, Renewal::Gone);
        }),
        ("key", |rig| rig.see(free(30))),
        ("other", |rig| rig.see(held(2, 30, 30))),
    ];
    for (name, cause) in causes {
        let mut rig = Rig::primary();
        cause(&mut rig);
        let actions = rig.actions();
        assert!(place(&actions, closes) < place(&actions, ends), "{name}: {actions:?}");
        assert!(!has_open(&actions), "{name}");
        assert_eq!(rig.e.right_until(), Duration::ZERO, "{name}");
        assert!([Role::Replica, Role::Candidate].contains(&rig.e.role()), "{name}");
    }
}

#[test]
fn a_view_from_before_the_acquisition_does_not_end_the_term() {
    let mut rig = Rig::primary();
    rig.e.handle_view(rig.now, rig.now - ms(1), released(19, None));
    assert_eq!(rig.actions(), []);
    assert_eq!(rig.e.role(), Role::Primary);
}

#[test]
fn a_view_from_before_the_release_does_not_begin_the_term_again() {
    let mut rig = Rig::primary();
    rig.e.handle_demote(rig.now, None).unwrap();
    rig.actions();
    rig.pass(ms(100));
    rig.e.handle_replaced(rig.now, Replacement::Done { index: 21 });
    assert_eq!(rig.actions(), [Action::Look]);
    rig.e.handle_view(rig.now, rig.now - ms(1), held(ME, 20, 21));
    assert_eq!(rig.actions(), []);
    assert_eq!(rig.e.role(), Role::Replica);
}

#[test]
fn an_acquisition_whose_answer_was_lost_gives_no_right_before_a_beat() {
    let mut rig = Rig::seeing(released(10, None));
    rig.acquire().unwrap();
    rig.pass(ms(1000));
    rig.e.handle_acquired(rig.now, Acquisition::Failed);
    assert_eq!(rig.actions(), [Action::Look]);
    rig.see(held(ME, 20, 20));
    let actions = rig.actions();
    place(&actions, |a| *a == Action::BeginTerm { epoch: 20, cluster: "C".into() });
    assert!(has_beat(&actions));
    rig.e.handle_term_began(rig.now, 20, Ok(()));
    assert_eq!(rig.actions(), []);
    rig.e.handle_replaced(rig.now, Replacement::Done { index: 21 });
    assert_eq!(rig.actions(), [open(rig.now + FAST_RIGHT)]);
}

#[test]
fn a_key_held_with_a_foreign_record_is_not_taken_for_the_own_term() {
    let mut view = held(ME, 20, 20);
    view.term = Some((20, term(2)));
    let mut rig = Rig::seeing(view);
    assert_eq!(rig.actions(), [Action::DestroySession(session("s1"))]);
    assert_eq!(rig.e.role(), Role::Starting);
    rig.e.handle_destroyed(rig.now);
    assert_eq!(rig.e.presence.session(), None);
}

#[test]
fn acknowledgements_rely_on_a_sync_set_only_once_a_beat_has_published_it() {
    let set = |nodes: &[u64]| nodes.iter().copied().collect::<BTreeSet<u64>>();
    let mut rig = Rig::primary();
    rig.e.handle_sync_set(set(&[2]));
    assert_eq!(rig.beat().unwrap().term.sync, set(&[2]));
    rig.e.handle_sync_set(set(&[3]));
    rig.e.handle_replaced(rig.now, Replacement::Done { index: 21 });
    let actions = rig.actions();
    assert!(!actions.contains(&Action::NoteSyncSet(set(&[2]))), "it is not wanted any more");
    place(&actions, |a| matches!(a, Action::Beat(b) if b.term.sync == set(&[3])));
    // The record says 2 so far, but the beat with 3 may yet be executed.
    rig.e.handle_replaced(rig.now, Replacement::Failed);
    rig.e.handle_sync_set(set(&[2]));
    let again = rig.beat().unwrap();
    assert_eq!((again.expected, again.term.sync), (21, set(&[2])));
    rig.e.handle_replaced(rig.now, Replacement::Done { index: 22 });
    assert!(rig.actions().contains(&Action::NoteSyncSet(set(&[2]))));
    assert_eq!(rig.pass(ms(1000)).beat().unwrap().term.sync, set(&[2]), "it stays");
}
