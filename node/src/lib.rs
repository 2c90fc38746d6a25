//! SQLite that replicates itself: the litefs node, as a library and a daemon.
#![forbid(unsafe_code)]

pub mod config;
pub mod http;
mod metrics;
pub mod sockets;
pub mod tls;

pub use config::{Config, ConfigError};
