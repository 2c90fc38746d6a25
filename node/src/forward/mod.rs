//! Write forwarding: clients of a replica write, and the primary commits.
//!
//! A replica that wants to write a database opens a stream of its connection to the primary, and
//! the primary holds the right to write that database for it: for as long as the stream is open,
//! and at most 30 s between commits. The records of the replica's transactions go up this stream;
//! what the primary has made of them comes back as all records do.
//!
//! ```text
//! replica                                     primary
//!   name, Lock ------------------------------>  waits for other writers
//!   <------------------------------ Done(pos)   holds the right to write
//!   (catches up with pos; its client writes)
//!   Commit, record --------------------------->  verifies, appends, syncs, publishes
//!   <------------------------------ Done(pos)
//!   (waits until the record has come)
//!   end of stream ---------------------------->  gives the right back
//! ```
//!
//! A transaction costs two round trips to the primary, a sync there, and the way of the record. If
//! the connection ends, so does the right; whether a commit that was under way then was made is not
//! known.
//!
//! | module    | what |
//! |-----------|------|
//! | `wire`    | the frames on such a stream |
//! | `primary` | holds rights for replicas, and commits |
//! | `replica` | takes rights for this node's clients |

pub mod primary;
pub mod replica;
mod wire;

use std::time::Duration;

pub(crate) use primary::Rights;

/// A right to write that is not used for so long is taken back, as LiteFS does.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Streams for write forwarding on one connection.
pub const STREAMS_MAX: u32 = 16;
