//! LiteFS's HALT lock over HTTP: `POST /halt`, `POST /tx`, `DELETE /halt`.
//!
//! Who holds it writes one database in the place of this node, which is the primary, and sends its
//! transactions as LTX files. Replicas of this project do that over their own connections
//! (`forward/`), and do not need these endpoints; LiteFS's protocol has them.
//!
//! A lock that is not used for [`IDLE_TIMEOUT`] is taken back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use litefs_ltx::format_timestamp;
use litefs_store::{DbName, Hold, Pos};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::transfer::{db_name, run_blocking, spool_body};
use super::{Api, Failure};
use crate::forward::IDLE_TIMEOUT;
use crate::replication::wall_ms;

/// How long a request waits for the database's writer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Locks that are held or asked for at once.
const LOCKS_MAX: usize = 64;
const LTX_MAGIC: &[u8] = b"LTX1";

/// The locks that clients hold, or ask for.
#[derive(Clone, Default)]
pub(super) struct Halts(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    halts: HashMap<DbName, Halt>,
    /// How many there ever were.
    taken: u64,
}

struct Halt {
    id: i64,
    /// Of this one among all that ever were: clients choose ids, and may choose one again.
    number: u64,
    /// `None` while it is being taken, or something is being committed.
    hold: Option<Hold>,
    until: Instant,
}

#[derive(Deserialize)]
pub(super) struct HaltQuery {
    #[serde(default)]
    name: String,
    id: Option<i64>,
}

#[derive(Deserialize)]
pub(super) struct TxQuery {
    #[serde(default)]
    name: String,
    #[serde(rename = "lockID")]
    lock_id: Option<i64>,
}

/// What is said to who asks for a lock.
enum Asked {
    /// It has it, at this position.
    Has(Pos),
    /// It may take it.
    Place(Lent),
}

/// LiteFS's answer to `POST /halt`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HaltLock {
    id: i64,
    pos: HaltPos,
    expires: String,
}

/// LiteFS's position in JSON.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct HaltPos {
    #[serde(rename = "TXID")]
    txid: String,
    #[serde(rename = "PostApplyChecksum")]
    checksum: String,
}

/// Takes the lock, or confirms it to who has it.
pub(super) async fn halt(
    State(api): State<Api>,
    Query(query): Query<HaltQuery>,
    headers: HeaderMap,
) -> Result<Json<HaltLock>, Failure> {
    let (name, id) = (db_name(&query.name)?, required("id", query.id)?);
    let own = format!("{:016X}", api.view.store().node_id());
    if headers.get("litefs-id").is_some_and(|id| id.as_bytes().eq_ignore_ascii_case(own.as_bytes()))
    {
        return Err(Failure::new(StatusCode::BAD_REQUEST, "a node cannot halt itself"));
    }
    api.require_primary()?;
    let lent = match api.halts.confirm(&name, id)? {
        Asked::Has(pos) => return Ok(Json(answer(id, pos))),
        Asked::Place(lent) => lent,
    };
    let number = lent.number;
    let hold = api.rights.take(&name, PATIENCE).await.map_err(Failure::from_store)?;
    let pos = hold.pos();
    if !lent.put(hold) {
        return Err(not_halted(&name, id));
    }
    api.halts.expire(name, number);
    Ok(Json(answer(id, pos)))
}

/// Commits a transaction of who has the lock.
pub(super) async fn tx(
    State(api): State<Api>,
    Query(query): Query<TxQuery>,
    body: Body,
) -> Result<(), Failure> {
    let (name, lock) = (db_name(&query.name)?, required("lockID", query.lock_id)?);
    api.require_primary()?;
    // Before its bytes are taken, so that each lock has one upload at most.
    let mut lent = api.halts.borrow(&name, lock)?;
    let refuse = || Failure::new(StatusCode::BAD_REQUEST, "the body is no LTX file");
    let mut record = spool_body(&api, body, LTX_MAGIC, refuse).await?;
    let mut hold = lent.hold.take().ok_or_else(|| not_halted(&name, lock))?;
    let (committed, hold) = run_blocking(move || (hold.commit(&mut record), hold)).await?;
    lent.put(hold);
    committed.map(drop).map_err(Failure::from_store)
}

/// Gives the lock back; nothing happens without it.
pub(super) async fn release(
    State(api): State<Api>,
    Query(query): Query<HaltQuery>,
) -> Result<(), Failure> {
    let (name, id) = (db_name(&query.name)?, required("id", query.id)?);
    api.halts.0.lock().halts.retain(|db, halt| *db != name || halt.id != id);
    Ok(())
}

fn required(what: &str, value: Option<i64>) -> Result<i64, Failure> {
    value.ok_or_else(|| Failure::new(StatusCode::BAD_REQUEST, format!("{what} required")))
}

fn answer(id: i64, pos: Pos) -> HaltLock {
    let idle = i64::try_from(IDLE_TIMEOUT.as_millis()).unwrap_or(i64::MAX);
    let pos = HaltPos { txid: pos.txid.to_string(), checksum: pos.checksum.to_string() };
    HaltLock { id, pos, expires: format_timestamp(wall_ms().saturating_add(idle)) }
}

fn not_halted(name: &DbName, id: i64) -> Failure {
    let text = format!("database {name} is not halted by lock {id}, or not any more");
    Failure::new(StatusCode::CONFLICT, text)
}

impl Halts {
    /// The lock's position and more time for who has it; else makes a place for it.
    fn confirm(&self, name: &DbName, id: i64) -> Result<Asked, Failure> {
        let mut held = self.0.lock();
        held.halts.retain(|_, halt| halt.hold.is_none() || halt.until > Instant::now());
        let is_full = held.halts.len() >= LOCKS_MAX;
        match held.halts.get_mut(name) {
            Some(Halt { id: owner, hold: Some(hold), until, .. }) if *owner == id => {
                *until = Instant::now() + IDLE_TIMEOUT;
                Ok(Asked::Has(hold.pos()))
            }
            Some(_) => Err(Failure::new(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("database {name} is halted by somebody else"),
            )),
            None if is_full => {
                Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "too many halt locks are held"))
            }
            None => {
                held.taken += 1;
                let number = held.taken;
                let until = Instant::now() + IDLE_TIMEOUT;
                held.halts.insert(name.clone(), Halt { id, number, hold: None, until });
                Ok(Asked::Place(self.lend(name, number, None)))
            }
        }
    }

    fn lend(&self, name: &DbName, number: u64, hold: Option<Hold>) -> Lent {
        Lent { halts: self.clone(), name: name.clone(), number, hold, is_over: false }
    }

    /// Takes the right to write out, to commit with it.
    fn borrow(&self, name: &DbName, id: i64) -> Result<Lent, Failure> {
        let mut held = self.0.lock();
        let halt = held.halts.get_mut(name);
        let halt = halt.filter(|halt| halt.id == id && halt.until > Instant::now());
        let taken = halt.and_then(|halt| Some((halt.hold.take()?, halt.number)));
        let (hold, number) = taken.ok_or_else(|| not_halted(name, id))?;
        Ok(self.lend(name, number, Some(hold)))
    }

    /// Takes the lock back when it was not used for long.
    fn expire(&self, name: DbName, number: u64) {
        let halts = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            loop {
                let until = {
                    let Some(halts) = halts.upgrade() else { return };
                    let mut held = halts.lock();
                    match held.halts.get(&name).filter(|halt| halt.number == number) {
                        None => return,
                        // Something is being committed, which is using it.
                        Some(Halt { hold: None, .. }) => Instant::now() + IDLE_TIMEOUT,
                        Some(Halt { until, .. }) if *until > Instant::now() => *until,
                        Some(Halt { id, .. }) => {
                            tracing::warn!(db = %name, "halt lock {id} has expired");
                            held.halts.remove(&name);
                            return;
                        }
                    }
                };
                tokio::time::sleep_until(until).await;
            }
        });
    }
}

/// A lock whose right to write is elsewhere. Dropped with it, it puts it back; without it, the lock
/// is gone.
struct Lent {
    halts: Halts,
    name: DbName,
    number: u64,
    hold: Option<Hold>,
    is_over: bool,
}

impl Lent {
    /// Puts the right to write into its place; false if the lock was released meanwhile.
    fn put(mut self, hold: Hold) -> bool {
        self.hold = Some(hold);
        self.give_back()
    }

    fn give_back(&mut self) -> bool {
        if std::mem::replace(&mut self.is_over, true) {
            return false;
        }
        let mut held = self.halts.0.lock();
        // Another may have taken its place meanwhile.
        let halt = held.halts.get_mut(&self.name).filter(|halt| halt.number == self.number);
        let Some(halt) = halt else { return false };
        halt.until = Instant::now() + IDLE_TIMEOUT;
        halt.hold = self.hold.take();
        let is_held = halt.hold.is_some();
        if !is_held {
            held.halts.remove(&self.name);
        }
        is_held
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use litefs_store::Store;

    use super::super::tests::{Fixture, change_page};
    use super::*;

    /// The record of one more transaction, made on a copy of the database elsewhere.
    fn next_transaction(fixture: &Fixture) -> Vec<u8> {
        let name = DbName::new("a.db").unwrap();
        let mut snapshot = Vec::new();
        let ours = fixture.node.store.database(&name).unwrap();
        ours.snapshot().unwrap().write_snapshot_record(&mut snapshot).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let copy = store.create(&name).unwrap();
        let at = copy.install_snapshot(&mut snapshot.as_slice()).unwrap();
        change_page(&copy, 7);
        let record = copy.log_cursor(at).unwrap().next().unwrap().expect("a record");
        let mut bytes = vec![0; usize::try_from(record.len()).unwrap()];
        record.read_at(0, &mut bytes).unwrap();
        bytes
    }

    async fn ask(fixture: &Fixture, method: &str, path: &str, body: &[u8]) -> u16 {
        fixture.call(method, path, body).await.0.as_u16()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_holds_the_lock_commits_and_nobody_else() {
        let f = Fixture::start();
        f.import("a.db", 10).await;
        let (status, body) = f.call("POST", "/halt?name=a.db&id=7", b"").await;
        assert_eq!(status, 200, "{body:?}");
        let lock: HaltLock = serde_json::from_slice(&body).unwrap();
        assert_eq!((lock.id, lock.pos.txid.as_str()), (7, "0000000000000001"));
        assert_eq!(ask(&f, "POST", "/halt?name=a.db&id=7", b"").await, 200, "the same id");
        assert_eq!(ask(&f, "POST", "/halt?name=a.db&id=8", b"").await, 503, "another one");

        let record = next_transaction(&f);
        assert_eq!(ask(&f, "POST", "/tx?name=a.db&lockID=8", &record).await, 409);
        assert_eq!(ask(&f, "POST", "/tx?name=a.db&lockID=7", b"LTX1 and junk").await, 500);
        assert_eq!(ask(&f, "POST", "/tx?name=a.db&lockID=7", b"junk").await, 400);
        assert_eq!(f.txid("a.db"), 1);
        assert_eq!(ask(&f, "POST", "/tx?name=a.db&lockID=7", &record).await, 200);
        assert_eq!(f.txid("a.db"), 2);
        assert_eq!(ask(&f, "POST", "/tx?name=a.db&lockID=7", &record).await, 500, "twice");

        assert_eq!(ask(&f, "DELETE", "/halt?name=a.db&id=8", b"").await, 200);
        assert_eq!(ask(&f, "POST", "/halt?name=a.db&id=8", b"").await, 503, "still halted");
        assert_eq!(ask(&f, "DELETE", "/halt?name=a.db&id=7", b"").await, 200);
        assert_eq!(ask(&f, "POST", "/halt?name=a.db&id=8", b"").await, 200);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_lock_that_was_released_during_a_commit_takes_nothing_from_the_next_one() {
        let f = Fixture::start();
        f.import("a.db", 10).await;
        let name = DbName::new("a.db").unwrap();
        let take_hold = || f.node.store.create(&name).unwrap().hold(Duration::ZERO).unwrap();
        let halts = Halts::default();
        let place = |id| match halts.confirm(&name, id) {
            Ok(Asked::Place(lent)) => Some(lent),
            _ => None,
        };
        assert!(place(7).unwrap().put(take_hold()));
        let mut committing = halts.borrow(&name, 7).ok().unwrap();
        assert!(halts.borrow(&name, 7).is_err(), "two commits at once");
        let hold = committing.hold.take().unwrap();
        halts.0.lock().halts.clear();
        let next = place(8).expect("nobody has it");
        assert!(!committing.put(hold), "into the place of the next one");
        assert!(place(9).is_none(), "8 is about to take it");
        assert!(next.put(take_hold()));
        assert!(halts.borrow(&name, 7).is_err());
        assert!(halts.borrow(&name, 8).is_ok());
        assert!(halts.borrow(&name, 8).is_ok(), "it is back when an upload has failed");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_name_that_leads_out_and_a_replica_are_refused() {
        let f = Fixture::start();
        let before = f.files();
        for name in ["..%2Fx", "", "a%00b"] {
            assert_eq!(ask(&f, "POST", &format!("/halt?name={name}&id=1"), b"").await, 400);
            assert_eq!(ask(&f, "DELETE", &format!("/halt?name={name}&id=1"), b"").await, 400);
        }
        assert_eq!(ask(&f, "POST", "/tx?name=a.db&lockID=1", b"LTX1").await, 409);
        assert_eq!(f.files(), before);
        f.node.role.send_replace(super::super::tests::replica());
        assert_eq!(ask(&f, "POST", "/halt?name=a.db&id=1", b"").await, 503);
    }
}
