//! `GET /health`, `/health/live` and `/health/ready`: for orchestrators, open to everybody.
//!
//! `live` is 200 while the process answers. `ready` is 200 while the node can serve: a primary that
//! may commit, or a replica that has had everything no longer than `max-lag` (a duration in the
//! query, 10 s by default, 0 for any) ago; else it is 503 and says why. `/health` always is 200.

use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::view::NodeView;
use super::{Api, Failure};
use crate::config::parse_duration;

/// LiteFS's limit of its health page.
const MAX_LAG: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
pub(super) struct Limit {
    #[serde(rename = "max-lag")]
    max_lag: Option<String>,
}

impl Limit {
    fn max_lag(&self) -> Result<Option<Duration>, Failure> {
        let given = self.max_lag.as_deref().map(parse_duration).transpose();
        let given = given.map_err(|e| Failure::new(StatusCode::BAD_REQUEST, e))?;
        Ok(given.or(Some(MAX_LAG)).filter(|limit| !limit.is_zero()))
    }
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Health {
    live: bool,
    ready: bool,
    role: &'static str,
    /// Absent before the first sync.
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_ms: Option<u64>,
    /// Why it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Health {
    fn of(view: &dyn NodeView, max_lag: Option<Duration>) -> Self {
        let role = view.role().borrow().clone();
        let lag = view.lag();
        let (name, reason) = if role.is_primary {
            let held = (!view.store().gate().is_open()).then_some("it may not commit now");
            ("primary", held.map(str::to_owned))
        } else {
            ("replica", behind(lag, max_lag))
        };
        let unmounted = (!view.is_mounted()).then(|| "fuse.dir is not mounted".to_owned());
        let reason = unmounted.or(reason);
        let lag_ms = lag.map(|lag| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX));
        Self { live: true, ready: reason.is_none(), role: name, lag_ms, reason }
    }
}

fn behind(lag: Option<Duration>, max_lag: Option<Duration>) -> Option<String> {
    match (lag, max_lag) {
        (None, _) => Some("it has never had everything since it started".to_owned()),
        (Some(lag), Some(most)) if lag > most => Some(format!(
            "it last had everything {} ms ago; the limit is {} ms",
            lag.as_millis(),
            most.as_millis()
        )),
        _ => None,
    }
}

/// `GET /health`.
pub(super) async fn all(
    State(api): State<Api>,
    Query(limit): Query<Limit>,
) -> Result<Response, Failure> {
    Ok(Json(Health::of(api.view.as_ref(), limit.max_lag()?)).into_response())
}

/// `GET /health/live`.
pub(super) async fn live() -> Response {
    Json(serde_json::json!({ "live": true })).into_response()
}

/// `GET /health/ready`.
pub(super) async fn ready(
    State(api): State<Api>,
    Query(limit): Query<Limit>,
) -> Result<Response, Failure> {
    let health = Health::of(api.view.as_ref(), limit.max_lag()?);
    let status = if health.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Json(health)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_ready_once_it_had_everything_and_not_too_long_ago() {
        let ms = Duration::from_millis;
        assert!(behind(None, None).is_some());
        assert_eq!(behind(Some(ms(10)), Some(ms(10))), None);
        assert!(behind(Some(ms(11)), Some(ms(10))).unwrap().contains("11 ms"));
        assert_eq!(behind(Some(ms(1_000_000)), None), None);
    }

    #[test]
    fn zero_lifts_the_limit_and_nonsense_is_an_error() {
        let limit = |text: Option<&str>| Limit { max_lag: text.map(str::to_owned) }.max_lag();
        assert_eq!(limit(None).ok(), Some(Some(MAX_LAG)));
        assert_eq!(limit(Some("0s")).ok(), Some(None));
        assert_eq!(limit(Some("250ms")).ok(), Some(Some(Duration::from_millis(250))));
        assert!(limit(Some("soon")).is_err());
    }
}
