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
pub(super) struct Halts(Arc<Mutex<HashMap<DbName, Halt>>>);

struct Halt {
    id: i64,
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
    if let Some(pos) = api.halts.confirm(&name, id)? {
        return Ok(Json(answer(id, pos)));
    }
    let taking = Taking { halts: api.halts.clone(), name: name.clone() };
    let store = api.view.store().clone();
    let taken = run_blocking(move || store.create(&name)?.hold(PATIENCE)).await?;
    let hold = taken.map_err(Failure::from_store)?;
    let pos = hold.pos();
    taking.done(hold);
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
    // Before its bytes are taken, and again when they are here.
    api.halts.check(&name, lock)?;
    let refuse = || Failure::new(StatusCode::BAD_REQUEST, "the body is no LTX file");
    let mut record = spool_body(&api, body, LTX_MAGIC, refuse).await?;
    let mut hold = api.halts.borrow(&name, lock)?;
    let taking = Taking { halts: api.halts.clone(), name: name.clone() };
    let (committed, hold) = run_blocking(move || (hold.commit(&mut record), hold)).await?;
    taking.done(hold);
    committed.map(drop).map_err(Failure::from_store)
}

/// Gives the lock back; nothing happens without it.
pub(super) async fn release(
    State(api): State<Api>,
    Query(query): Query<HaltQuery>,
) -> Result<(), Failure> {
    let (name, id) = (db_name(&query.name)?, required("id", query.id)?);
    api.halts.0.lock().retain(|db, halt| *db != name || halt.id != id);
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
    fn confirm(&self, name: &DbName, id: i64) -> Result<Option<Pos>, Failure> {
        let mut halts = self.0.lock();
        halts.retain(|_, halt| halt.hold.is_none() || halt.until > Instant::now());
        let is_full = halts.len() >= LOCKS_MAX;
        match halts.get_mut(name) {
            Some(Halt { id: owner, hold: Some(hold), until }) if *owner == id => {
                *until = Instant::now() + IDLE_TIMEOUT;
                Ok(Some(hold.pos()))
            }
            Some(_) => Err(Failure::new(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("database {name} is halted by somebody else"),
            )),
            None if is_full => {
                Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "too many halt locks are held"))
            }
            None => {
                let until = Instant::now() + IDLE_TIMEOUT;
                halts.insert(name.clone(), Halt { id, hold: None, until });
                Ok(None)
            }
        }
    }

    /// Refuses who does not have the lock.
    fn check(&self, name: &DbName, id: i64) -> Result<(), Failure> {
        let halts = self.0.lock();
        let halt = halts.get(name).filter(|halt| halt.id == id && halt.until > Instant::now());
        halt.map(drop).ok_or_else(|| not_halted(name, id))
    }

    /// Takes the right to write out, to commit with it.
    fn borrow(&self, name: &DbName, id: i64) -> Result<Hold, Failure> {
        let mut halts = self.0.lock();
        let halt = halts.get_mut(name).filter(|halt| halt.id == id && halt.until > Instant::now());
        halt.and_then(|halt| halt.hold.take()).ok_or_else(|| not_halted(name, id))
    }

    /// Takes the lock back when it was not used for long.
    fn expire(&self, name: DbName) {
        let halts = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            loop {
                let until = {
                    let Some(halts) = halts.upgrade() else { return };
                    let mut halts = halts.lock();
                    match halts.get(&name) {
                        Some(Halt { hold: Some(_), until, .. }) if *until > Instant::now() => {
                            *until
                        }
                        Some(Halt { hold: Some(_), id, .. }) => {
                            tracing::warn!(db = %name, "halt lock {id} has expired");
                            halts.remove(&name);
                            return;
                        }
                        _ => return,
                    }
                };
                tokio::time::sleep_until(until).await;
            }
        });
    }
}

/// A lock whose right to write is elsewhere; dropped without it, the lock is gone.
struct Taking {
    halts: Halts,
    name: DbName,
}

impl Taking {
    /// Puts the right to write (back) into its place, unless the lock was released meanwhile.
    fn done(self, hold: Hold) {
        {
            let mut halts = self.halts.0.lock();
            let Some(halt) = halts.get_mut(&self.name) else { return };
            halt.until = Instant::now() + IDLE_TIMEOUT;
            halt.hold = Some(hold);
        }
        self.halts.expire(self.name.clone());
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        let mut halts = self.halts.0.lock();
        if halts.get(&self.name).is_some_and(|halt| halt.hold.is_none()) {
            halts.remove(&self.name);
        }
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
