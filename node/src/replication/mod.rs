//! Replication: a primary streams its databases' records to replicas over QUIC.
//!
//! | module      | what                                                                     |
//! |-------------|--------------------------------------------------------------------------|
//! | `wire`      | the protocol: bytes in, messages out                                     |
//! | `primary`   | pure: what one replica needs next, from its offers and acknowledgements  |
//! | `replica`   | pure: a replica's connection, its acknowledgements and its lag           |
//! | `lag`       | pure: since when a replica has not had everything                        |
//! | `quorum`    | pure: which replicas have what on disk, and which commits that confirms  |
//! | `confirm`   | drives `quorum`: commits wait there for their replicas                   |
//! | `control`   | frames on the control stream                                             |
//! | `serve`     | drives `primary` for each connection that replicas make                  |
//! | `send`      | one job of a primary: records or a snapshot onto a database's stream     |
//! | `follow`    | drives `replica`: dials the primary, stays connected                     |
//! | `dial`      | reaches the primary at one of its addresses                              |
//! | `receive`   | one database's stream into the store                                     |
//! | `following` | whether what this node has came from the primary                         |
//! | `diverged`  | keeping what the primary does not have                                   |
//! | `ack_times` | how long commits take to be acknowledged                                 |
//! | `pipe`      | bounded pipes between the async streams and the store's blocking calls   |
//!
//! The pure modules decide; the drivers own sockets, tasks and the clock and decide nothing.

mod ack_times;
pub mod confirm;
mod control;
mod dial;
pub mod diverged;
pub mod follow;
pub mod following;
pub mod lag;
pub(crate) mod pipe;
pub mod primary;
pub mod quorum;
mod receive;
pub mod replica;
mod send;
pub mod serve;
pub mod wire;

use std::time::Duration;

/// Each side sends a sign of life this often.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// A connection on which nothing was heard for this long is given up.
pub const HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(2800);
/// A new connection must have exchanged its greetings within this time.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// Most databases that a peer may name on one connection.
pub const MAX_DATABASES: usize = litefs_store::MAX_DATABASES;

/// The wall clock, ms since 1970; only for people to read, never to decide by.
pub(crate) fn wall_ms() -> i64 {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since_1970.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// What a peer says reaches the log as one line.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect()
}

#[cfg(test)]
mod sim_tests;
