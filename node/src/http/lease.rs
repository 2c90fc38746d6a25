//! `POST /promote` and `POST /handoff`: an operator moves the role of the primary.
//!
//! Both answer when it has moved. LiteFS's status codes: 409 if this node can never be primary, 400
//! for a node id that is none, 500 with the reason for everything else.

use axum::extract::{Query, State};
use axum::http::StatusCode;
use serde::Deserialize;

use super::{Api, Failure, Wish};

/// `POST /promote`.
pub(super) async fn promote(State(api): State<Api>) -> Result<(), Failure> {
    let view = &api.view;
    if !view.candidate() {
        let text = "this node is not a candidate, cannot promote it (lease.candidate)";
        return Err(Failure::new(StatusCode::CONFLICT, text));
    }
    if view.role().borrow().is_primary {
        return Ok(());
    }
    granted(&api, view.promote()).await
}

#[derive(Deserialize)]
pub(super) struct HandOver {
    #[serde(rename = "nodeID")]
    node_id: Option<String>,
}

/// `POST /handoff?nodeID=`.
pub(super) async fn hand_over(
    State(api): State<Api>,
    Query(query): Query<HandOver>,
) -> Result<(), Failure> {
    let text = query.node_id.unwrap_or_default();
    let is_id = (1..=16).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    let node = u64::from_str_radix(&text, 16).ok().filter(|_| is_id).ok_or_else(|| {
        let text = format!("nodeID: {text:?} is no node id of up to 16 hex digits");
        Failure::new(StatusCode::BAD_REQUEST, text)
    })?;
    granted(&api, api.view.hand_over(node)).await
}

async fn granted(api: &Api, wish: Wish) -> Result<(), Failure> {
    wish.answer().await.map_err(|text| {
        let lease = api.view.lease();
        let state = format!("{text} (this node is {}: {})", lease.role, lease.reason);
        let text = if lease.reason.is_empty() { text } else { state };
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    })
}
