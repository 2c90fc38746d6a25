//! Nodes that are cut off, stopped and killed: real daemons, a real Consul and real partitions, in
//! network namespaces, under writes.
//!
//! `LITEFS_PARTITIONS=500` for that many random faults, beside the listed ones. The figures are
//! printed: `cargo nextest run -p litefs-tests --test partition --success-output final`.

mod cluster;
#[path = "../support/lab.rs"]
mod lab;
mod ledger;

mod election;
mod frozen;
mod hand_over;
mod isolation;
mod kills;
mod network;
mod random;
mod sync;
