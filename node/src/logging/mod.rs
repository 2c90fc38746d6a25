//! What the daemon writes to stderr, and to the trace log.

mod trace_file;

use std::io::{self, IsTerminal};

use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;

use self::trace_file::TraceFile;
use crate::config::{LogConfig, LogFormat};

/// Sends the process's log messages to stderr, and those for debugging to the trace log if there
/// is one. Only the first call has an effect; a program that embeds a node sets up its own logging
/// instead.
///
/// # Errors
/// The trace log cannot be written.
pub fn init(config: &LogConfig) -> io::Result<()> {
    let trace = config.trace.as_ref().map(|trace| {
        let named = |e: io::Error| {
            io::Error::new(e.kind(), format!("tracing.path {}: {e}", trace.path.display()))
        };
        let file = TraceFile::open(trace).map_err(named)?;
        let layer = fmt::layer().with_ansi(false).with_writer(std::sync::Mutex::new(file));
        Ok::<_, io::Error>(layer.with_filter(targets(true)))
    });
    let registry = tracing_subscriber::registry().with(to_stderr(config)).with(trace.transpose()?);
    // An error means that somebody has set up logging already: theirs stays.
    let _ = registry.try_init();
    Ok(())
}

fn to_stderr<S>(config: &LogConfig) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let layer = fmt::layer().with_writer(io::stderr).with_target(config.debug);
    let colours = io::stderr().is_terminal();
    let targets = targets(config.debug);
    match (config.format, config.timestamp) {
        (LogFormat::Json, _) => layer.json().flatten_event(true).with_filter(targets).boxed(),
        (LogFormat::Text, true) => layer.with_ansi(colours).with_filter(targets).boxed(),
        (LogFormat::Text, false) => {
            layer.without_time().with_ansi(colours).with_filter(targets).boxed()
        }
    }
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
