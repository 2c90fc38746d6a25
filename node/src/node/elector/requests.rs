//! Requests to Consul, each a task that ends in an event; and the query that waits for changes.

use std::time::Duration;

use litefs_store::Store;
use tokio::sync::mpsc;

use super::Event;
use crate::lease::action::{Acquisition, Action, REQUEST_TIMEOUT, Renewal, Replacement};
use crate::lease::consul::{ConsulLease, LeaseError};

/// A query that waits for a change asks again after this time.
const WATCH_WAIT: Duration = Duration::from_secs(5);
/// The name of that query among what Consul is asked.
pub(super) const WATCH: &str = "watch";

/// What an answer says, and, if Consul was asked, for what and what went wrong.
pub(super) struct Answer {
    pub event: Event,
    pub asked: Option<(&'static str, Option<LeaseError>)>,
}

impl Answer {
    /// Of this node itself.
    pub fn ours(event: Event) -> Self {
        Self { event, asked: None }
    }
}

/// Sends the request of an action, made at `now`, and waits for its answer.
pub(super) async fn ask(
    consul: ConsulLease,
    store: Store,
    now: Duration,
    action: Action,
) -> Answer {
    match action {
        Action::OpenSession => {
            let opened = in_time(consul.open_session()).await;
            split("open", opened.map(Some), None, Event::Session)
        }
        Action::RenewSession(session) => {
            let renewed = consul.renew_session(&session).await;
            split("renew", renewed, Renewal::Failed, Event::SessionRenewed)
        }
        Action::Publish(session, record) => {
            let published = consul.publish(&session, &record).await;
            split("publish", published, false, Event::Published)
        }
        Action::Acquire(acquire) => {
            let acquired = consul.acquire(&acquire).await;
            split("acquire", acquired, Acquisition::Failed, Event::Acquired)
        }
        Action::Beat(replace) => {
            let beat = consul.beat(&replace).await;
            let took = store.now().saturating_sub(now);
            let event = |replacement| Event::Beat { replacement, took };
            split("beat", beat, Replacement::Failed, event)
        }
        Action::Release(replace) => {
            let released = consul.release(&replace).await;
            split("release", released, Replacement::Failed, Event::Released)
        }
        Action::DestroySession(session) => {
            let destroyed = consul.destroy_session(&session).await;
            split("destroy", destroyed.map(|()| true), false, Event::Destroyed)
        }
        // All others are done without Consul.
        _ => {
            let seen = consul.view(None).await.map(Some);
            split("look", seen, None, |seen| match seen {
                Some(view) => Event::View { requested: now, view },
                None => Event::LookFailed,
            })
        }
    }
}

/// Queries that wait for changes.
pub(super) struct Watch {
    pub consul: ConsulLease,
    pub store: Store,
    pub tell: mpsc::UnboundedSender<Event>,
    /// After a query that failed.
    pub pause: Duration,
}

impl Watch {
    /// Asks without end.
    pub async fn run(self) {
        let mut after = None;
        loop {
            let requested = self.store.now();
            match self.consul.view(after.map(|index| (index, WATCH_WAIT))).await {
                Ok(view) => {
                    // It counts from the beginning if it has lost its data: nothing is known then.
                    let has_gone_back = after.is_some_and(|index| view.index < index);
                    after = Some(view.index).filter(|_| !has_gone_back);
                    // Fails once the node ends.
                    let _ = self.tell.send(Event::View { requested, view });
                }
                Err(error) => {
                    after = None;
                    let _ = self.tell.send(Event::WatchFailed(error));
                    tokio::time::sleep(self.pause).await;
                }
            }
        }
    }
}

/// An answer, or what stands for none.
fn split<T>(
    what: &'static str,
    answer: Result<T, LeaseError>,
    none: T,
    event: impl FnOnce(T) -> Event,
) -> Answer {
    let (answer, trouble) = match answer {
        Ok(answer) => (answer, None),
        Err(error) => (none, Some(error)),
    };
    Answer { event: event(answer), asked: Some((what, trouble)) }
}

/// For what takes more than one request.
async fn in_time<T>(work: impl Future<Output = Result<T, LeaseError>>) -> Result<T, LeaseError> {
    tokio::time::timeout(REQUEST_TIMEOUT, work).await.unwrap_or_else(|_| {
        Err(LeaseError::Unreadable(format!("Consul did not answer within {REQUEST_TIMEOUT:?}")))
    })
}
