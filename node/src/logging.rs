//! What the daemon writes to stderr.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogConfig, LogFormat};

/// Sends the process's log messages to stderr. Only the first call has an effect; a program that
/// embeds a node sets up its own logging instead.
pub fn init(config: &LogConfig) {
    let registry = tracing_subscriber::registry().with(targets(config.debug));
    let layer = fmt::layer().with_writer(std::io::stderr).with_target(config.debug);
    // An error means that somebody has set up logging already: theirs stays.
    let _ = match (config.format, config.timestamp) {
        (LogFormat::Json, _) => registry.with(layer.json().flatten_event(true)).try_init(),
        (LogFormat::Text, true) => {
            registry.with(layer.with_ansi(std::io::stderr().is_terminal())).try_init()
        }
        (LogFormat::Text, false) => registry
            .with(layer.without_time().with_ansi(std::io::stderr().is_terminal()))
            .try_init(),
    };
}

/// The libraries below report ordinary network events as warnings; our own lines say what matters.
fn targets(debug: bool) -> Targets {
    let (ours, theirs) = if debug {
        (LevelFilter::DEBUG, LevelFilter::INFO)
    } else {
        (LevelFilter::INFO, LevelFilter::ERROR)
    };
    Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target("litefs", ours)
        .with_targets(["quinn", "quinn_proto", "quinn_udp", "rustls", "hyper"].map(|t| (t, theirs)))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn our_messages_pass_and_the_networks_noise_does_not() {
        let quiet = targets(false);
        assert!(quiet.would_enable("litefs_node::replication", &Level::INFO));
        assert!(quiet.would_enable("litefs_store", &Level::INFO));
        assert!(!quiet.would_enable("litefs_store", &Level::DEBUG));
        assert!(!quiet.would_enable("quinn_proto::connection", &Level::WARN));
        let debug = targets(true);
        assert!(debug.would_enable("litefs_vfs", &Level::DEBUG));
        assert!(!debug.would_enable("rustls::client", &Level::DEBUG));
    }
}
