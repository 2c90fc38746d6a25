//! `mount`: runs a node until it is told to stop. Without `fuse.dir` it is a node without a mount.

use std::path::{Path, PathBuf};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{CliError, CliResult};
use crate::config::Config;
use crate::{Node, logging};

#[derive(Args)]
pub(super) struct MountArgs {
    /// The configuration; by default ./litefs.yml, ~/litefs.yml or /etc/litefs.yml
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Leave $VARIABLES in the configuration as they are
    #[arg(long)]
    no_expand_env: bool,
    /// Log debug messages
    #[arg(long)]
    debug: bool,
    /// Log each request to the mount
    #[arg(long = "fuse.debug")]
    fuse_debug: bool,
    /// Leave the mount in place when the node ends; the next start removes it
    #[arg(long)]
    skip_unmount: bool,
}

pub(super) fn run(args: &MountArgs) -> CliResult {
    let path = match &args.config {
        Some(path) => path.clone(),
        None => find_config()?,
    };
    let mut config = Config::from_file_with(&path, !args.no_expand_env)?;
    config.log.debug |= args.debug;
    config.fuse.debug |= args.fuse_debug;
    logging::init(&config.log);
    for notice in &config.notices {
        tracing::info!("{}: {notice}", path.display());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before the node starts, so that no signal ends the process without closing the node.
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let node = Node::start(config)?;
    let mount = node.mount()?;
    let name = runtime.block_on(async {
        tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        }
    });
    tracing::info!("{name}: shutting down");
    // Writers on the mount wait for that, and are refused once another node is the primary.
    node.resign();
    if args.skip_unmount {
        // Requests that still come are refused by the store, once it is closed.
        std::mem::forget(mount);
    } else {
        drop(mount);
    }
    Ok(node.shutdown()?)
}

/// Looks where LiteFS looks.
fn find_config() -> Result<PathBuf, CliError> {
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join("litefs.yml"));
    let places = [Some("litefs.yml".into()), home, Some("/etc/litefs.yml".into())];
    let mut places = places.into_iter().flatten();
    places.find(|path| path.exists()).ok_or_else(|| {
        CliError::new(
            "there is no litefs.yml here, in the home directory or in /etc: name one with --config",
        )
    })
}
