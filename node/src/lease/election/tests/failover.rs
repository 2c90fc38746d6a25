//! Risk: a primary that works is ended, or one that is dead is waited for too long.

use super::*;

/// A replica of node 2, whose key was acquired at 8, with another replica.
fn replica(other: Link) -> Rig {
    let mut rig = Rig::seeing(with_other(held(2, 8, 10), other));
    rig.e.handle_linked(8);
    rig.actions();
    rig
}

fn with_other(mut view: View, link: Link) -> View {
    let mut other = entry(3, 5, 100);
    other.record.link = link;
    view.nodes = vec![entry(2, 8, 100), other];
    view
}

/// What is destroyed, if a fresh view shows nothing new.
fn destroyed(rig: &mut Rig, view: View) -> Option<SessionId> {
    for _ in 0..3 {
        match rig.actions().pop() {
            Some(Action::Look) => rig.see(view.clone()),
            Some(Action::DestroySession(session)) => return Some(session),
            _ => return None,
        }
    }
    None
}

#[test]
fn a_primary_that_all_lost_is_ended_after_its_silence() {
    for other in [Link::Lost(8), Link::None, Link::Up(7)] {
        let mut rig = replica(other);
        let view = with_other(held(2, 8, 10), other);
        rig.pass(ms(2000));
        rig.e.handle_unlinked();
        rig.pass(ms(799));
        assert_eq!(destroyed(&mut rig, view.clone()), None);
        rig.pass(ms(1));
        assert_eq!(rig.actions(), [Action::Look], "what was seen is old");
        rig.see(view.clone());
        assert_eq!(rig.actions(), [Action::DestroySession(session("s2"))]);
        rig.e.handle_destroyed(rig.now);
        assert_eq!(rig.pass(ms(999)).actions(), []);
        assert_eq!(rig.pass(ms(1)).actions(), [Action::DestroySession(session("s2"))]);
    }
}

#[test]
fn a_primary_that_still_beats_is_left_alone() {
    let mut rig = replica(Link::Lost(8));
    rig.e.handle_unlinked();
    for index in 11..30 {
        rig.pass(ms(2700));
        assert_eq!(rig.actions(), []);
        rig.see(with_other(held(2, 8, index), Link::Lost(8)));
        assert_eq!(rig.actions(), []);
    }
    // The watch hangs: the look shows that it has beaten.
    rig.pass(ms(2900));
    assert_eq!(destroyed(&mut rig, with_other(held(2, 8, 31), Link::Lost(8))), None);
}

#[test]
fn a_primary_to_which_another_is_connected_is_ended_only_when_it_cannot_commit() {
    let mut rig = replica(Link::Up(8));
    let view = with_other(held(2, 8, 10), Link::Up(8));
    rig.e.handle_unlinked();
    rig.pass(GUARD);
    assert_eq!(destroyed(&mut rig, view.clone()), None);
    rig.pass(ms(2000));
    assert_eq!(destroyed(&mut rig, view), Some(session("s2")));
}

#[test]
fn a_node_that_is_connected_to_the_primary_never_ends_it() {
    let mut rig = replica(Link::Lost(8));
    rig.pass(ms(60_000));
    let view = with_other(held(2, 8, 10), Link::Lost(8));
    assert_eq!(destroyed(&mut rig, view), None);
}

#[test]
fn a_node_that_came_after_the_primary_died_ends_it_when_it_cannot_commit() {
    let view = held(2, 8, 10);
    let mut rig = Rig::seeing(view.clone());
    rig.actions();
    rig.pass(GUARD + ms(1999));
    assert_eq!(destroyed(&mut rig, view.clone()), None);
    rig.pass(ms(1));
    assert_eq!(destroyed(&mut rig, view), Some(session("s2")));
}

#[test]
fn without_fast_failover_on_both_sides_nobody_is_ended() {
    let mut slow = held(2, 8, 10);
    slow.term = Some((10, TermRecord { fast: false, ..term(2) }));
    let not_fast = Settings { fast: false, ..settings() };
    let observer = Settings { candidate: false, ..settings() };
    for (settings, view) in
        [(settings(), slow), (not_fast, held(2, 8, 10)), (observer, held(2, 8, 10))]
    {
        let mut rig = Rig::with(settings, standing(), view.clone());
        rig.e.handle_linked(8);
        rig.actions();
        rig.e.handle_unlinked();
        rig.pass(ms(60_000));
        assert_eq!(destroyed(&mut rig, view), None);
    }
}

#[test]
fn a_dead_primary_is_followed_within_the_guard() {
    let mut rig = replica(Link::None);
    rig.pass(ms(2800));
    rig.e.handle_unlinked();
    let view = with_other(held(2, 8, 10), Link::None);
    assert_eq!(destroyed(&mut rig, view), Some(session("s2")));
    rig.e.handle_destroyed(rig.now);
    rig.see(View { key: None, term: Some((10, term(2))), ..free(12) });
    assert_eq!(rig.pass(GUARD - ms(2801)).acquire(), None);
    assert_eq!(rig.e.poll_timeout(), ms(100_000) + GUARD);
    assert!(rig.pass(ms(1)).acquire().is_some());
}
