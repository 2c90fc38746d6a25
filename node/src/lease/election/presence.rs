//! A node's session and the record that it publishes with it.

use std::time::Duration;

use super::super::action::{Action, Renewal, Settings};
use super::super::view::{NodeRecord, SessionId, View};
use super::request::{RETRY, Request};

/// A record that changed little is written this often at most.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(1);

/// The session and the record.
#[derive(Debug, Default)]
pub(super) struct Presence {
    session: Option<SessionId>,
    opening: Request,
    renewing: Request,
    publishing: Request,
    /// The record that is being written.
    attempt: Option<NodeRecord>,
    /// The record that is known to be written, and since when.
    written: Option<(NodeRecord, Duration)>,
}

impl Presence {
    pub(super) fn session(&self) -> Option<&SessionId> {
        self.session.as_ref()
    }

    /// The record that is known to be written.
    pub(super) fn written(&self) -> Option<&NodeRecord> {
        self.written.as_ref().map(|(record, _)| record)
    }

    pub(super) fn handle_session(
        &mut self,
        now: Duration,
        session: Option<SessionId>,
        settings: &Settings,
    ) {
        self.opening.finish(now + settings.reconnect_delay.max(RETRY));
        if session.is_some() {
            self.session = session;
            self.renewing.defer(now + settings.session_interval);
            self.publishing.hurry();
        }
    }

    /// True if the session is gone.
    pub(super) fn handle_renewed(
        &mut self,
        now: Duration,
        renewal: Renewal,
        settings: &Settings,
    ) -> bool {
        let wait = match renewal {
            Renewal::Failed => RETRY,
            Renewal::Renewed | Renewal::Gone => settings.session_interval,
        };
        let is_gone = self.renewing.finish(now + wait).is_some() && renewal == Renewal::Gone;
        if is_gone {
            self.forget();
        }
        is_gone
    }

    pub(super) fn handle_published(&mut self, now: Duration, is_written: bool) {
        if self.publishing.finish(now).is_none() {
            // It was for a session that is gone.
            return;
        }
        let attempt = self.attempt.take();
        self.written = attempt.filter(|_| is_written).map(|record| (record, now));
        if self.written.is_none() {
            // Perhaps the session is gone.
            self.renewing.hurry();
            self.publishing.defer(now + RETRY);
        }
    }

    /// A view that was asked for after the last write shows whether the record is still as it was
    /// written: an older write may have come late.
    pub(super) fn check(&mut self, node: u64, requested: Duration, view: &View) {
        let Some((written, at)) = &self.written else { return };
        let is_ours = |session| Some(session) == self.session.as_ref();
        let mut own = view.nodes.iter().filter(|entry| entry.record.node == node);
        let is_there = own.any(|entry| is_ours(&entry.session) && entry.record == *written);
        if requested >= *at && !is_there {
            self.publishing.defer(*at + PUBLISH_INTERVAL);
            self.written = None;
        }
    }

    /// There is no session any more.
    pub(super) fn forget(&mut self) {
        self.session = None;
        self.written = None;
        self.attempt = None;
        self.opening.hurry();
        self.renewing.void();
        self.publishing.void();
    }

    /// The next request, if one is due. `record` is what is to be published.
    pub(super) fn poll(&mut self, now: Duration, record: Option<NodeRecord>) -> Option<Action> {
        let Some(session) = self.session.clone() else {
            return self.opening.start(now).then_some(Action::OpenSession);
        };
        if self.renewing.start(now) {
            return Some(Action::RenewSession(session));
        }
        let record = record?;
        if now < self.publish_due(&record) || !self.publishing.start(now) {
            return None;
        }
        self.attempt = Some(record.clone());
        Some(Action::Publish(session, record))
    }

    /// When to poll again.
    pub(super) fn wake(&self, record: Option<&NodeRecord>) -> Duration {
        if self.session.is_none() {
            return self.opening.wake();
        }
        let publish = record
            .map_or(Duration::MAX, |record| self.publishing.wake().max(self.publish_due(record)));
        self.renewing.wake().min(publish)
    }

    /// When this record is to be written: at once if others decide by what changed in it.
    fn publish_due(&self, record: &NodeRecord) -> Duration {
        match &self.written {
            None => Duration::ZERO,
            Some((written, _)) if written == record => Duration::MAX,
            Some((written, at)) => {
                let is_urgent = written.link != record.link
                    || written.candidate != record.candidate
                    || written.term != record.term;
                if is_urgent { Duration::ZERO } else { *at + PUBLISH_INTERVAL }
            }
        }
    }
}
