//! The daemon and its tools; see `litefs-node --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    litefs_node::cli::run(std::env::args_os())
}
