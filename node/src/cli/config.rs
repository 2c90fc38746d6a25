//! `config`: checks a configuration, or shows one with every key.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::CliResult;
use crate::config::Config;

#[derive(Subcommand)]
pub(super) enum ConfigCommand {
    /// Say what is wrong with a configuration; exits with 2 if anything is
    Check(CheckArgs),
    /// Print a commented configuration with every key and its default
    Example,
}

#[derive(Args)]
pub(super) struct CheckArgs {
    /// The file; by default ./litefs.yml, ~/litefs.yml or /etc/litefs.yml
    file: Option<PathBuf>,
    /// Leave $VARIABLES as they are
    #[arg(long)]
    no_expand_env: bool,
}

pub(super) fn run(command: &ConfigCommand) -> CliResult {
    match command {
        ConfigCommand::Check(args) => check(args),
        ConfigCommand::Example => {
            say!("{}", Config::EXAMPLE.trim_end());
            Ok(())
        }
    }
}

fn check(args: &CheckArgs) -> CliResult {
    let path = args.file.clone().map_or_else(Config::find_file, Ok)?;
    let config = Config::from_file_with(&path, !args.no_expand_env)?;
    for notice in &config.notices {
        say!("{}: note: {notice}", path.display());
    }
    say!("{}: ok", path.display());
    Ok(())
}
