//! `GET /debug/vars`: what LiteFS shows there of its store, for programs on this host.
//!
//! `{"cmdline": […], "store": {isPrimary, candidate, dbs: {NAME: {name, txid, checksum, locks}}}}`.
//! `locks` has the state of each of SQLite's locks on the mount, if somebody has used the database
//! there: `unlocked`, `shared` or `exclusive`.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use super::transfer::run_blocking;
use super::view::NodeView;
use super::{Api, Failure};

#[derive(Serialize)]
pub(super) struct Vars {
    cmdline: Vec<String>,
    store: StoreVars,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StoreVars {
    is_primary: bool,
    candidate: bool,
    dbs: BTreeMap<String, DatabaseVars>,
}

#[derive(Serialize)]
struct DatabaseVars {
    name: String,
    txid: String,
    checksum: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    locks: Option<BTreeMap<&'static str, &'static str>>,
}

pub(super) async fn vars(State(api): State<Api>) -> Result<Json<Vars>, Failure> {
    let view = api.view.clone();
    let store = run_blocking(move || store_vars(view.as_ref())).await?;
    let cmdline = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    Ok(Json(Vars { cmdline, store }))
}

fn store_vars(view: &dyn NodeView) -> StoreVars {
    let of = |db: litefs_store::Database| {
        let (name, pos) = (db.name().to_string(), db.pos());
        let locks = view.locks(db.name()).map(|locks| locks.into_iter().collect());
        let (txid, checksum) = (pos.txid.to_string(), pos.checksum.to_string());
        (name.clone(), DatabaseVars { name, txid, checksum, locks })
    };
    StoreVars {
        is_primary: view.role().borrow().is_primary,
        candidate: view.candidate(),
        dbs: view.store().databases().into_iter().map(of).collect(),
    }
}
