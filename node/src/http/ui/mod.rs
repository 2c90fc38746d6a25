//! The status page: one HTML file that asks `/info` and `/events/recent` each second.
//!
//! Everything is in the file, and its content policy lets the browser run nothing else, load
//! nothing else and talk to nobody but this node.

use axum::http::header;
use axum::response::{Html, IntoResponse, Response};

const PAGE: &str = include_str!("page.html");
/// Stands in the file where each answer has a number of its own.
const NONCE: &str = "{nonce}";
const POLICY: &str = "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// `GET /` and `GET /ui`.
pub(super) async fn page() -> Response {
    // Nobody can guess it.
    let nonce = format!("{:016x}{:016x}", litefs_store::random(), litefs_store::random());
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY.replace(NONCE, &nonce)),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    (headers, Html(PAGE.replace(NONCE, &nonce))).into_response()
}
