//! `GET /events`: what happens on this node, one JSON object a line, as LiteFS writes it.
//!
//! `init` first, then `tx` for each moved position and `primaryChange` whenever the primary is
//! another one. Besides LiteFS's: `quarantined` for a database that failed a check, `diverged` when
//! transactions were kept that the cluster does not have, `syncChange` when commits begin to do
//! without replicas or wait for them again, and with Consul `roleChange`: this node's role and its
//! reason.
//! A client that is more than [`BACKLOG`] events behind is disconnected.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use litefs_store::{DbName, Event, Store, Subscription};
use serde::Serialize;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::info::DivergedInfo;
use super::recent::Recent;
use super::view::{NodeView, Role};
use crate::lease::action::Transition;
use crate::replication::confirm::SyncChange;
use litefs_ltx::format_timestamp;

/// Events that a client may be behind.
const BACKLOG: usize = 1024;

/// Spreads events to the connected clients.
pub(super) struct EventHub {
    teller: Teller,
    _subscription: Subscription,
}

#[derive(Clone)]
struct Teller {
    lines: broadcast::Sender<Bytes>,
    recent: Arc<Recent>,
}

impl Teller {
    /// Tells the clients, and remembers it.
    fn tell(&self, line: Bytes) {
        self.recent.note(line.clone());
        self.tell_clients(line);
    }

    fn tell_clients(&self, line: Bytes) {
        // An error means that nobody listens.
        let _ = self.lines.send(line);
    }
}

impl EventHub {
    pub(super) fn new(store: &Store) -> Self {
        let (lines, _) = broadcast::channel(BACKLOG);
        let teller = Teller { lines, recent: Arc::default() };
        let (spread, dir) = (teller.clone(), store.dir().to_owned());
        let subscription = store.subscribe(move |event| {
            let is_transaction = matches!(event, Event::Position { .. });
            // Serializing for nobody would cost every commit.
            if is_transaction && spread.lines.receiver_count() == 0 {
                return;
            }
            let Some(line) = store_event_line(&dir, event) else { return };
            match is_transaction {
                true => spread.tell_clients(line),
                false => spread.tell(line),
            }
        });
        Self { teller, _subscription: subscription }
    }

    /// The last events, but for transactions, as JSON.
    pub(super) fn recent(&self) -> String {
        self.teller.recent.json()
    }

    /// Tells of what the node's roles and its replicas become, until the node stops.
    pub(super) fn follow(&self, view: &dyn NodeView, mut stop: watch::Receiver<bool>) {
        let (mut role, teller) = (view.role(), self.teller.clone());
        let (mut transitions, mut syncs) = (view.transitions(), view.sync_changes());
        let mut shown = role.borrow_and_update().clone();
        teller.recent.note(role_line("init", &shown));
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    changed = role.changed() => {
                        let now = role.borrow_and_update().clone();
                        if changed.is_err() {
                            return;
                        }
                        if now != shown {
                            teller.tell(role_line("primaryChange", &now));
                        }
                        shown = now;
                    }
                    transition = next(&mut transitions) => match transition {
                        Some(transition) => teller.tell(transition_line(&transition)),
                        None => transitions = None,
                    },
                    change = next(&mut syncs) => match change {
                        Some(change) => teller.tell(sync_line(&change)),
                        None => syncs = None,
                    },
                    () = super::stopped(&mut stop) => return,
                }
            }
        });
    }

    /// Connected clients.
    pub(super) fn clients(&self) -> usize {
        self.teller.lines.receiver_count()
    }

    /// The response to one client; ends when it is gone, too slow, or the node stops.
    pub(super) fn stream(
        &self,
        role: watch::Receiver<Role>,
        mut stop: watch::Receiver<bool>,
    ) -> Body {
        let lines = self.teller.lines.subscribe();
        let (sender, receiver) = mpsc::channel::<Result<Bytes, Infallible>>(1);
        tokio::spawn(async move {
            tokio::select! {
                // An error means that the client is gone.
                _ = forward(lines, role, sender) => {}
                () = super::stopped(&mut stop) => {}
            }
        });
        Body::from_stream(ReceiverStream::new(receiver))
    }
}

type Gone = mpsc::error::SendError<Result<Bytes, Infallible>>;

async fn forward(
    mut lines: broadcast::Receiver<Bytes>,
    role: watch::Receiver<Role>,
    sender: mpsc::Sender<Result<Bytes, Infallible>>,
) -> Result<(), Gone> {
    let first = role.borrow().clone();
    sender.send(Ok(role_line("init", &first))).await?;
    loop {
        tokio::select! {
            line = lines.recv() => match line {
                Ok(line) => sender.send(Ok(line)).await?,
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::warn!("disconnected a client of /events that is {missed} events late");
                    return Ok(());
                }
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            },
            () = sender.closed() => return Ok(()),
        }
    }
}

/// The next change, without those that came too fast; `None` once there will be none.
async fn next<T: Clone>(changes: &mut Option<broadcast::Receiver<T>>) -> Option<T> {
    let Some(receiver) = changes else { return std::future::pending().await };
    loop {
        match receiver.recv().await {
            Ok(transition) => return Some(transition),
            Err(broadcast::error::RecvError::Lagged(_)) => (),
            Err(broadcast::error::RecvError::Closed) => return None,
        }
    }
}

#[derive(Serialize)]
struct Line<'a, T> {
    r#type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    db: Option<&'a str>,
    data: T,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RoleData<'a> {
    is_primary: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname: Option<&'a str>,
}

#[derive(Serialize)]
struct TransitionData<'a> {
    from: &'a str,
    to: &'a str,
    epoch: u64,
    reason: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TxData {
    #[serde(rename = "txID")]
    txid: String,
    post_apply_checksum: String,
    page_size: u32,
    commit: u32,
    timestamp: String,
}

#[derive(Serialize)]
struct QuarantinedData<'a> {
    reason: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SyncData {
    fallen_back: bool,
    sync_set: Vec<String>,
}

fn role_line(kind: &str, role: &Role) -> Bytes {
    let hostname = role.primary_hostname.as_deref();
    line(&Line { r#type: kind, db: None, data: RoleData { is_primary: role.is_primary, hostname } })
}

fn transition_line(transition: &Transition) -> Bytes {
    let Transition { from, to, epoch, reason } = transition;
    let data = TransitionData { from: from.name(), to: to.name(), epoch: *epoch, reason };
    line(&Line { r#type: "roleChange", db: None, data })
}

fn sync_line(change: &SyncChange) -> Bytes {
    let sync_set = change.sync_set.iter().map(|node| format!("{node:016X}")).collect();
    let data = SyncData { fallen_back: change.fallen_back, sync_set };
    line(&Line { r#type: "syncChange", db: None, data })
}

/// LiteFS's clients pass over types that they do not know.
fn store_event_line(dir: &Path, event: &Event) -> Option<Bytes> {
    match event {
        Event::Position { db, pos, page_size, commit, timestamp_ms } => {
            let data = TxData {
                txid: pos.txid.to_string(),
                post_apply_checksum: pos.checksum.to_string(),
                page_size: *page_size,
                commit: *commit,
                timestamp: format_timestamp(*timestamp_ms),
            };
            Some(db_line("tx", db, data))
        }
        Event::Quarantined { db, reason } => {
            Some(db_line("quarantined", db, QuarantinedData { reason }))
        }
        Event::Diverged(kept) => Some(db_line("diverged", &kept.db, DivergedInfo::new(dir, kept))),
        _ => None,
    }
}

fn db_line(kind: &str, db: &DbName, data: impl Serialize) -> Bytes {
    line(&Line { r#type: kind, db: Some(db.as_str()), data })
}

fn line(value: &impl Serialize) -> Bytes {
    let mut text = serde_json::to_vec(value).expect("BUG: an event always has a JSON form");
    text.push(b'\n');
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_falls_too_far_behind_is_disconnected() {
        let (lines, receiver) = broadcast::channel(BACKLOG);
        let role = watch::Sender::new(Role::default());
        let (sender, mut client) = mpsc::channel(1);
        for n in 0..=BACKLOG {
            lines.send(Bytes::from(n.to_string())).unwrap();
        }
        let forwarding = tokio::spawn(forward(receiver, role.subscribe(), sender));
        assert!(client.recv().await.unwrap().unwrap().starts_with(b"{\"type\":\"init\""));
        assert!(client.recv().await.is_none());
        forwarding.await.unwrap().unwrap();
    }

    #[test]
    fn trouble_is_told_with_where_it_lies() {
        let db = DbName::new("a.db").unwrap();
        let pos = |text: &str| text.parse().unwrap();
        let kept = litefs_store::Diverged {
            db: db.clone(),
            path: "/d/dbs/a.db/diverged/x".into(),
            common: Some(pos("0000000000000002/8000000000000002")),
            newest: pos("0000000000000005/8000000000000005"),
            kept_ms: 0,
            whole: true,
        };
        let line = store_event_line(Path::new("/d"), &Event::Diverged(kept)).unwrap();
        let event: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!((&event["type"], &event["db"]), (&"diverged".into(), &"a.db".into()));
        let expected = serde_json::json!({"name": "a.db/x", "transactions": 3, "whole": true,
            "common": "0000000000000002/8000000000000002", "keptAt": "",
            "newest": "0000000000000005/8000000000000005", "path": "dbs/a.db/diverged/x"});
        assert_eq!(event["data"], expected);
        let event = Event::Quarantined { db, reason: "page 3".to_owned() };
        let line = store_event_line(Path::new("/d"), &event).unwrap();
        let expected =
            "{\"type\":\"quarantined\",\"db\":\"a.db\",\"data\":{\"reason\":\"page 3\"}}\n";
        assert_eq!(line, expected);
    }

    /// The field names are what LiteFS's clients read (store.go, Event).
    #[test]
    fn lines_are_those_of_litefs() {
        let role =
            Role { is_primary: true, primary_hostname: Some("n1".into()), primary_url: None };
        assert_eq!(
            role_line("init", &role),
            "{\"type\":\"init\",\"data\":{\"isPrimary\":true,\"hostname\":\"n1\"}}\n"
        );
        assert_eq!(
            role_line("primaryChange", &Role::default()),
            "{\"type\":\"primaryChange\",\"data\":{\"isPrimary\":false}}\n"
        );
        let transition = Transition {
            from: crate::lease::action::Role::Candidate,
            to: crate::lease::action::Role::Primary,
            epoch: 7,
            reason: "the lease was free".to_owned(),
        };
        assert_eq!(
            transition_line(&transition),
            "{\"type\":\"roleChange\",\"data\":{\"from\":\"candidate\",\"to\":\"primary\",\
             \"epoch\":7,\"reason\":\"the lease was free\"}}\n"
        );
        let data = TxData {
            txid: "0000000000000002".into(),
            post_apply_checksum: "8000000000000001".into(),
            page_size: 4096,
            commit: 3,
            timestamp: format_timestamp(0),
        };
        assert_eq!(
            line(&Line { r#type: "tx", db: Some("a.db"), data }),
            "{\"type\":\"tx\",\"db\":\"a.db\",\"data\":{\"txID\":\"0000000000000002\",\
             \"postApplyChecksum\":\"8000000000000001\",\"pageSize\":4096,\"commit\":3,\
             \"timestamp\":\"1970-01-01T00:00:00.000Z\"}}\n"
        );
    }
}
