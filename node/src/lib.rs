//! SQLite that replicates itself: the litefs node, as a library and a daemon.
#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod http;
pub mod logging;
mod metrics;
pub mod replication;
pub mod sockets;
pub mod tls;

pub use config::{Config, ConfigError};
