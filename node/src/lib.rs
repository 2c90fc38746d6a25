//! SQLite that replicates itself: the litefs node, as a library and a daemon.
#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod demo;
mod faces;
pub mod forward;
pub mod http;
pub mod lease;
pub mod logging;
mod metrics;
mod node;
pub mod proxy;
pub mod replication;
pub mod sockets;
pub mod tls;
mod web;

pub use config::{Config, ConfigError};
pub use lease::Primary;
pub use node::{Node, NodeError};
pub use replication::serve::ConnectedReplica;
pub use web::WebDatabase;
