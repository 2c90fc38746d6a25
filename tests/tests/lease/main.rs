//! The lease, with a real Consul.

#[path = "../support/consul.rs"]
mod consul;
#[path = "../support/daemon.rs"]
mod daemon;

mod client;
mod cluster;
mod nodes;
mod process;
mod trouble;
