//! The lease, with a real Consul.

#[path = "../support/consul.rs"]
mod consul;
#[path = "../support/daemon.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod daemon;

mod client;
mod cluster;
mod nodes;
mod process;
mod trouble;
