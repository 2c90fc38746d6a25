//! Requests to Consul, each a task that ends in an event; and the query that waits for changes.

use std::sync::Arc;
use std::time::Duration;

use litefs_store::Store;
use tokio::sync::{Notify, mpsc};

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
            split("destroy", destroyed, (), |()| Event::Destroyed)
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

/// The index that Consul showed last, to any query.
#[derive(Default)]
pub(super) struct Index {
    newest: u64,
    anew: Arc<Notify>,
}

impl Index {
    /// Notes an answer's. One that was overtaken by a newer one goes back too: that costs the watch
    /// a query.
    pub fn note(&mut self, index: u64) {
        if index < std::mem::replace(&mut self.newest, index) {
            self.anew.notify_one();
        }
    }

    /// Notified when it has gone back.
    pub fn anew(&self) -> Arc<Notify> {
        self.anew.clone()
    }
}

/// Queries that wait for changes.
pub(super) struct Watch {
    pub consul: ConsulLease,
    pub store: Store,
    pub tell: mpsc::UnboundedSender<Event>,
    /// After a query that failed.
    pub pause: Duration,
    /// Another read showed that Consul has lost its data and counts anew: to wait for a change of
    /// what it had before is to wait in vain.
    pub anew: Arc<Notify>,
}

impl Watch {
    /// Asks without end.
    pub async fn run(self) {
        let mut after = None;
        loop {
            let requested = self.store.now();
            let query = self.consul.view(after.map(|index| (index, WATCH_WAIT)));
            let answer = tokio::select! {
                answer = query => answer,
                () = self.anew.notified() => {
                    after = None;
                    continue;
                }
            };
            match answer {
                Ok(view) => {
                    // It counts from the beginning if it has lost its data: nothing is known then.
                    let has_gone_back = after.is_some_and(|index| view.index < index);
                    after = Some(view.index).filter(|_| !has_gone_back);
                    // Fails once the node ends.
                    let _ = self.tell.send(Event::View { requested, view });
                }
                Err(error) => {
                    // Whoever answers next may know less, or have another history.
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::config::ConsulConfig;
    use crate::lease::consul::Face;

    /// The next query; the rest of its head is of no interest.
    async fn query(listener: &TcpListener) -> (String, TcpStream) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        (head.lines().next().unwrap().to_owned(), stream)
    }

    /// There are no keys, at this index.
    async fn answer(mut stream: TcpStream, index: u64) {
        let text = format!(
            "HTTP/1.1 404 Not Found\r\nX-Consul-Index: {index}\r\nContent-Length: 0\r\n\
             Connection: close\r\n\r\n"
        );
        stream.write_all(text.as_bytes()).await.unwrap();
    }

    type Told = mpsc::UnboundedReceiver<Event>;

    async fn watch(listener: &TcpListener, dir: &tempfile::TempDir) -> (Watch, Index, Told) {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let config = ConsulConfig::new(url.parse().unwrap(), "k");
        let face = Face { node: 1, hostname: "n1".into(), advertise_url: "http://n1".into() };
        let index = Index::default();
        let (tell, told) = mpsc::unbounded_channel();
        let watch = Watch {
            consul: ConsulLease::new(&config, face).unwrap(),
            store: Store::open(dir.path()).unwrap(),
            tell,
            pause: Duration::ZERO,
            anew: index.anew(),
        };
        (watch, index, told)
    }

    /// Risk: it waits for a change after an index of a Consul that is gone, and sees nothing.
    #[tokio::test]
    async fn the_watch_begins_anew_when_what_it_waits_for_may_be_of_another_history() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (watch, mut index, mut told) = watch(&listener, &dir).await;
        let watching = tokio::spawn(watch.run());
        let test = async {
            let is_waiting = |line: &str| line.contains("index=");
            let (line, stream) = query(&listener).await;
            assert!(!is_waiting(&line), "{line}");
            answer(stream, 100).await;
            let (line, stream) = query(&listener).await;
            assert!(line.contains("index=100"), "{line}");
            drop(stream);
            let (line, stream) = query(&listener).await;
            assert!(!is_waiting(&line), "after one that broke: {line}");
            answer(stream, 120).await;
            let (line, stream) = query(&listener).await;
            assert!(line.contains("index=120"), "{line}");
            answer(stream, 7).await;
            let (line, stream) = query(&listener).await;
            assert!(!is_waiting(&line), "after it went back: {line}");
            answer(stream, 7).await;
            let (line, _hangs) = query(&listener).await;
            assert!(line.contains("index=7&"), "{line}");
            [5, 7, 7, 9, 3].into_iter().for_each(|shown| index.note(shown));
            let (line, _) = query(&listener).await;
            assert!(!is_waiting(&line), "after another read said so: {line}");
        };
        tokio::time::timeout(Duration::from_secs(60), test).await.unwrap();
        watching.abort();
        let told = std::iter::from_fn(|| told.try_recv().ok());
        let failed = told.filter(|event| matches!(event, Event::WatchFailed(_))).count();
        assert_eq!(failed, 1, "the last one was given up, not waited for");
    }
}
