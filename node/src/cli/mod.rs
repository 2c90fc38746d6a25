//! The command line: LiteFS's verbs with LiteFS's flags (also with a single dash), and ours.
//!
//! Exit codes: 0 done, 1 failed (`ERROR: …` on stderr), 2 wrong usage or configuration; `mount` and
//! `run` end with the code of the program that they started.

/// Prints a line. That can only fail when nobody listens (`| head`), which is no failure.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

mod certs;
mod client;
mod config;
mod diverged;
mod export;
mod import;
mod litefs_data;
mod ltx;
mod mount;
mod node_args;
mod progress;
mod promote;
mod run;
mod shell;
mod source;
mod status;
mod supervise;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use litefs_store::{DbName, Store};

/// The address at which the node on this host answers by default.
const DEFAULT_URL: &str = "http://localhost:20202";

const FAILED: u8 = 1;
const WRONG_USAGE: u8 = 2;

/// What a command fails with: printed once, after `ERROR: `.
type CliResult = Result<(), CliError>;

/// A failure in words for the user, and the exit code.
#[derive(Debug)]
struct CliError(String, u8);

impl CliError {
    fn new(text: impl Into<String>) -> Self {
        Self(text.into(), FAILED)
    }

    /// Says what was being done when `error` happened.
    fn during(doing: impl std::fmt::Display) -> impl Fn(std::io::Error) -> Self {
        move |error| Self::new(format!("{doing}: {error}"))
    }
}

impl From<crate::config::ConfigError> for CliError {
    fn from(error: crate::config::ConfigError) -> Self {
        Self(error.to_string(), WRONG_USAGE)
    }
}

macro_rules! cli_error_from {
    ($($error:ty),+) => {$(
        impl From<$error> for CliError {
            fn from(error: $error) -> Self {
                Self::new(error.to_string())
            }
        }
    )+};
}
cli_error_from!(
    crate::tls::TlsError,
    crate::demo::DemoError,
    crate::NodeError,
    litefs_store::Error,
    std::io::Error,
    rusqlite::Error
);

#[derive(Parser)]
#[command(name = "litefs-node", version, about = "SQLite that replicates itself")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a node
    Mount(mount::MountArgs),
    /// Start a program, once the node may write
    Run(run::RunArgs),
    /// Show a node's role, lag and databases
    Status(status::StatusArgs),
    /// Make a node the primary: the present one hands over, and no commit is lost
    Promote(promote::PromoteArgs),
    /// Replace or create a database from a SQLite file
    Import(import::ImportArgs),
    /// Write a database to a SQLite file
    Export(export::ExportArgs),
    /// Make the cluster's certificates
    #[command(subcommand)]
    Certs(certs::CertsCommand),
    /// Look at transactions: .ltx files, or the log of a database
    #[command(subcommand)]
    Ltx(ltx::LtxCommand),
    /// Check a configuration, or show one with every key
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Show a primary and a replica at work
    Demo,
    /// Print the completions for a shell
    Completions(shell::CompletionsArgs),
    /// Write the manual pages
    Man(shell::ManArgs),
    /// Show the version
    Version,
}

/// A database: on a running node, or in a data directory that no node uses.
#[derive(Args)]
struct Target {
    /// The database's name
    #[arg(long)]
    name: String,
    #[command(flatten)]
    node: node_args::NodeArgs,
    /// Open this data directory instead of asking a node
    #[arg(long, value_name = "DIR", conflicts_with = "url")]
    data_dir: Option<PathBuf>,
}

/// Parses the arguments, runs the command and reports what went wrong.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(accept_single_dashes(args)) {
        Ok(cli) => cli,
        Err(usage) => {
            // Printing can only fail when nobody listens.
            let _ = usage.print();
            return ExitCode::from(if usage.use_stderr() { WRONG_USAGE } else { 0 });
        }
    };
    match execute(cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("ERROR: {}", error.0);
            ExitCode::from(error.1)
        }
    }
}

/// Returns the exit code.
fn execute(command: Command) -> Result<u8, CliError> {
    match command {
        Command::Mount(args) => return mount::run(&args),
        Command::Run(args) => return run::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Promote(args) => promote::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Certs(command) => certs::run(&command),
        Command::Ltx(command) => ltx::run(&command),
        Command::Config(command) => config::run(&command),
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => shell::man(&args),
        Command::Demo => Ok(crate::demo::run(&mut std::io::stdout())?),
        Command::Version => {
            say!("litefs-node {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    }
    .map(|()| 0)
}

/// LiteFS is written in Go, where `-config` means `--config`. Arguments after `--` stay.
fn accept_single_dashes(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut ours = true;
    let lengthen = |arg: OsString| {
        ours &= arg != "--";
        match arg.to_str().and_then(|text| text.strip_prefix('-')) {
            Some(flag) if ours && flag.len() > 1 && !flag.starts_with('-') => {
                format!("--{flag}").into()
            }
            _ => arg,
        }
    };
    args.into_iter().map(lengthen).collect()
}

/// Opens a data directory that must exist already, so that a mistyped path makes no new one.
fn open_data_dir(dir: &std::path::Path) -> Result<Store, CliError> {
    if !dir.join("node.json").is_file() {
        return Err(no_data_dir(dir));
    }
    Ok(Store::open(dir)?)
}

fn no_data_dir(dir: &std::path::Path) -> CliError {
    let dir = dir.display();
    CliError::new(format!("{dir} is no data directory of a node: it holds no node.json"))
}

fn parse_name(name: &str) -> Result<DbName, CliError> {
    Ok(DbName::new(name)?)
}

#[cfg(test)]
mod tests;
