//! This node's own term: its beats, its right, and how it is given back.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::action::{Action, Replace, Replacement, Settings};
use super::super::view::{Released, SessionId, TermRecord, View, epoch};
use super::request::{RETRY, Request};

/// A term of this node, from the acquisition until the key is known not to be its own.
#[derive(Debug)]
pub(super) struct OwnTerm {
    pub(super) epoch: u64,
    session: SessionId,
    /// The acquisition's index: the key's.
    key_index: u64,
    /// The term record as it is known to be, and its index.
    record: TermRecord,
    index: u64,
    /// The index is in doubt: only a view that is asked for after this moment tells.
    doubt: Option<Duration>,
    /// Beats, or releases once [`OwnTerm::ending`] is set.
    request: Request,
    /// What the request that is under way writes.
    attempt: Option<TermRecord>,
    /// The end of the right; zero before the first.
    pub(super) right_until: Duration,
    /// When the term is given up if no beat succeeds.
    pub(super) give_up_at: Duration,
    /// True once the node was told to serve as primary.
    pub(super) is_announced: bool,
    /// True once the node serves as primary, so that the gate may open.
    pub(super) has_begun: bool,
    /// True while the right has run out and the term is not given up.
    pub(super) is_paused: bool,
    /// The hand-over that is under way.
    pub(super) passing: Option<Passing>,
    /// Set when the gate is closed for the rest of the term.
    pub(super) ending: Option<Ending>,
    /// The sync set that the primary wants published; `None`: as it is.
    wanted: Option<BTreeSet<u64>>,
}

/// A hand-over before the gate is closed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Passing {
    pub(super) target: u64,
    /// When it has failed.
    pub(super) until: Duration,
    /// True once no commit is under way.
    pub(super) is_held: bool,
    /// True if the term ends even if the hand-over fails.
    pub(super) is_final: bool,
}

/// How the term ends.
#[derive(Debug, Clone)]
pub(super) struct Ending {
    pub(super) released: Released,
    pub(super) since: Duration,
    /// For people, once it is done.
    pub(super) done: String,
}

/// What an answer means for the term.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The right lasts longer now; and this sync set, which was wanted, is published.
    Extended(Option<BTreeSet<u64>>),
    /// The key is released.
    Released,
    /// The key is not this node's any more.
    Lost,
    /// Nothing yet.
    Open,
}

impl OwnTerm {
    /// A term whose acquisition is known to have been executed. `requested` is when it was asked
    /// for, if its own answer said so: then the right begins there. The indices are the key's and
    /// the term record's.
    pub(super) fn new(
        now: Duration,
        session: SessionId,
        (key_index, index): (u64, u64),
        record: TermRecord,
        requested: Option<Duration>,
    ) -> Self {
        let right_until = requested.map_or(Duration::ZERO, |requested| requested + record.right);
        Self {
            epoch: epoch(key_index, Some(&record)),
            session,
            key_index,
            index,
            doubt: None,
            request: Request::default(),
            attempt: None,
            right_until,
            give_up_at: requested.unwrap_or(now) + 2 * record.right,
            record,
            is_announced: false,
            has_begun: false,
            is_paused: false,
            passing: None,
            ending: None,
            wanted: None,
        }
    }

    /// True while the right lasts.
    pub(super) fn is_within_right(&self, now: Duration) -> bool {
        self.has_begun && self.ending.is_none() && now < self.right_until
    }

    /// A newer view. False if it shows that the key is not this node's.
    pub(super) fn check(&mut self, requested: Duration, view: &View) -> bool {
        let key = view.key.as_ref();
        let is_ours = key.is_some_and(|key| {
            key.index == self.key_index && key.session.as_ref() == Some(&self.session)
        });
        let Some(index) = view.term_index().filter(|_| is_ours) else { return false };
        match self.doubt {
            Some(since) if since <= requested => {
                self.doubt = None;
                self.index = index;
            }
            _ => self.index = self.index.max(index),
        }
        true
    }

    /// Publish this sync set.
    pub(super) fn want_sync_set(&mut self, set: BTreeSet<u64>) {
        self.wanted = Some(set);
        self.request.hurry();
    }

    /// The gate is closed for good; give the key back.
    pub(super) fn end(&mut self, ending: Ending) {
        self.ending = Some(ending);
        self.passing = None;
        self.request.hurry();
    }

    /// The next beat or release, if one is due; `transactions` are those of the store.
    pub(super) fn poll(&mut self, now: Duration, transactions: u64) -> Option<Action> {
        if self.doubt.is_some() || !self.request.start(now) {
            return None;
        }
        let mut term = self.record.clone();
        term.beat += 1;
        term.transactions = transactions;
        if let Some(wanted) = &self.wanted {
            term.sync.clone_from(wanted);
        }
        term.released = self.ending.as_ref().map(|ending| ending.released);
        self.attempt = Some(term.clone());
        let replace = Replace { session: self.session.clone(), expected: self.index, term };
        let is_ending = replace.term.released.is_some();
        Some(if is_ending { Action::Release(replace) } else { Action::Beat(replace) })
    }

    /// The answer to a beat or a release.
    pub(super) fn handle_replaced(
        &mut self,
        now: Duration,
        replacement: Replacement,
        settings: &Settings,
    ) -> Outcome {
        let Some(requested) = self.request.finish(now) else { return Outcome::Open };
        self.request.defer(requested + RETRY);
        let attempt = self.attempt.take();
        match (replacement, attempt) {
            (Replacement::Done { index }, Some(record)) => {
                self.index = self.index.max(index);
                self.record = record;
                self.succeed(requested, settings)
            }
            (Replacement::Gone, _) => Outcome::Lost,
            (Replacement::Conflict, _) => {
                self.doubt = Some(now);
                self.request.hurry();
                Outcome::Open
            }
            (Replacement::Failed, _) | (_, None) => Outcome::Open,
        }
    }

    fn succeed(&mut self, requested: Duration, settings: &Settings) -> Outcome {
        if self.record.released.is_some() {
            return Outcome::Released;
        }
        self.right_until = requested + self.record.right;
        self.give_up_at = requested + 2 * self.record.right;
        // Its own answer counts, and nothing less: what the record was before may yet be replaced
        // by a beat that is late. None that is older than this one can be executed after it.
        let published = self.wanted.take_if(|wanted| *wanted == self.record.sync);
        let is_urgent = self.ending.is_some() || self.wanted.is_some();
        let due = if is_urgent { Duration::ZERO } else { requested + settings.beat_interval };
        self.request.defer(due);
        Outcome::Extended(published)
    }

    /// Since when the record's index is in doubt.
    pub(super) fn doubt(&self) -> Option<Duration> {
        self.doubt
    }

    /// True if the gate was to be open and is not any more.
    pub(super) fn is_over(&self, now: Duration) -> bool {
        self.has_begun && !self.right_until.is_zero() && now >= self.right_until
    }

    /// When time changes something, unless the term is ending.
    pub(super) fn next_moment(&self) -> Duration {
        let may_pause = self.has_begun && !self.is_paused && !self.right_until.is_zero();
        let pause = if may_pause { self.right_until } else { Duration::MAX };
        let passing = self.passing.map_or(Duration::MAX, |passing| passing.until);
        self.give_up_at.min(pause).min(passing)
    }

    /// When to poll again for a request.
    pub(super) fn wake(&self) -> Duration {
        if self.doubt.is_some() { Duration::MAX } else { self.request.wake() }
    }
}
