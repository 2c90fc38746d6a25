//! `mount`: runs a node, and the programs beside it, until it is told to stop or the last program
//! ends. Without `fuse.dir` it is a node without a mount.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use sd_notify::NotifyState;

use super::supervise::{self, Signals, name_of};
use super::{CliError, FAILED};
use crate::config::{Config, ExecConfig};
use crate::{Node, logging};

/// How often a node is asked whether it has its primary's data.
const SYNC_POLL: Duration = Duration::from_millis(20);

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
    /// Log debug messages and each request to the mount
    #[arg(long)]
    tracing: bool,
    /// Leave the mount in place when the node ends; the next start removes it
    #[arg(long)]
    skip_unmount: bool,
    /// A program to run beside the node, after --; instead of exec in the configuration
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Returns the last program's exit code, 0 without a program.
pub(super) fn run(args: &MountArgs) -> Result<u8, CliError> {
    let config = configure(args)?;
    let exit_on_error = config.exec.exit_on_error;
    let programs = Programs::new(&config.exec, &args.command);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before the node starts, so that no signal ends the process without closing the node.
    let mut signals = {
        let _inside = runtime.enter();
        Signals::catch()?
    };
    let running = match Running::start(config, args.skip_unmount) {
        Ok(running) => Some(running),
        Err(error) if exit_on_error => return Err(error),
        Err(error) => {
            stay(&error);
            None
        }
    };
    let code = runtime.block_on(async {
        let Some(running) = &running else {
            signals.stop().await;
            return Ok(FAILED);
        };
        match programs.run(&running.node, &mut signals).await {
            Err(error) if !exit_on_error => {
                stay(&error);
                signals.stop().await;
                Ok(FAILED)
            }
            result => result,
        }
    });
    notify(NotifyState::Stopping);
    // A failed program does not spare the node its orderly end.
    let closed = running.map_or(Ok(()), Running::stop);
    let code = code?;
    closed.map(|()| code)
}

fn configure(args: &MountArgs) -> Result<Config, CliError> {
    let path = args.config.clone().map_or_else(Config::find_file, Ok)?;
    let mut config = Config::from_file_with(&path, !args.no_expand_env)?;
    config.log.debug |= args.debug || args.tracing;
    config.fuse.debug |= args.fuse_debug || args.tracing;
    logging::init(&config.log)?;
    for notice in &config.notices {
        tracing::info!("{}: {notice}", path.display());
    }
    Ok(config)
}

fn stay(error: &CliError) {
    eprintln!("ERROR: {}", error.0);
    tracing::warn!("staying all the same, until a signal comes: exit-on-error is false");
}

/// Tells systemd, if it started this process and wants to know.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(false, &[state]) {
        tracing::warn!("cannot notify systemd: {error}");
    }
}

/// A node with its mount.
struct Running {
    node: Node,
    mount: Option<litefs_fuse::Mount>,
    skip_unmount: bool,
}

impl Running {
    fn start(config: Config, skip_unmount: bool) -> Result<Self, CliError> {
        let node = Node::start(config)?;
        let mount = node.mount()?;
        notify(NotifyState::Ready);
        Ok(Self { node, mount, skip_unmount })
    }

    fn stop(self) -> Result<(), CliError> {
        // Writers on the mount wait for that, and are refused once another node is the primary.
        self.node.resign();
        if self.skip_unmount {
            // Requests that still come are refused by the store, once it is closed.
            std::mem::forget(self.mount);
        } else {
            drop(self.mount);
        }
        Ok(self.node.shutdown()?)
    }
}

/// What runs beside the node: command lines, and whether each is for candidates only.
struct Programs {
    commands: Vec<(Vec<OsString>, bool)>,
    skip_sync: bool,
}

impl Programs {
    fn new(config: &ExecConfig, instead: &[OsString]) -> Self {
        let words = |words: &[String]| words.iter().map(OsString::from).collect();
        let configured = config.commands.iter().map(|c| (words(&c.words), c.if_candidate));
        let commands = match instead.is_empty() {
            true => configured.collect(),
            false => vec![(instead.to_owned(), false)],
        };
        Self { commands, skip_sync: config.skip_sync }
    }

    /// Runs them one after the other, or waits for a signal if there is none to wait for. Returns
    /// the exit code for this process.
    async fn run(&self, node: &Node, signals: &mut Signals) -> Result<u8, CliError> {
        if !self.commands.is_empty() && !self.skip_sync {
            tokio::select! {
                () = until_in_sync(node) => (),
                signal = signals.stop() => return Ok(stopped_by(signal)),
            }
        }
        let last = self.commands.len().saturating_sub(1);
        for (at, (words, if_candidate)) in self.commands.iter().enumerate() {
            let shown = words.join(" ".as_ref()).to_string_lossy().into_owned();
            if *if_candidate && !node.is_candidate() {
                tracing::info!("this node is not a candidate: skipping {shown}");
                continue;
            }
            tracing::info!("starting {shown}");
            let ended = supervise::run(words, signals).await?;
            if at == last || ended.stopped {
                tracing::info!("{shown} ended with {}: shutting down", ended.code);
                return Ok(ended.code);
            }
            if ended.code != 0 {
                return Err(CliError::new(format!("exec: {shown} ended with {}", ended.code)));
            }
        }
        Ok(stopped_by(signals.stop().await))
    }
}

fn stopped_by(signal: rustix::process::Signal) -> u8 {
    tracing::info!("{}: shutting down", name_of(signal));
    0
}

/// Waits until the node is the primary, or has had all of the primary's data.
async fn until_in_sync(node: &Node) {
    let in_sync = || node.is_primary() || node.lag().is_some();
    if !in_sync() {
        tracing::info!("waiting for the primary's data before a program is started");
    }
    while !in_sync() {
        tokio::time::sleep(SYNC_POLL).await;
    }
}
