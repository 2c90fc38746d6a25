//! `certs init` and `certs issue`.

use std::path::PathBuf;

use clap::Subcommand;

use super::CliResult;
use crate::tls;

#[derive(Subcommand)]
pub(super) enum CertsCommand {
    /// Make a new cluster's authority: ca.crt and ca.key, valid for ten years
    Init {
        /// Where to write them
        #[arg(long, default_value = "certs")]
        dir: PathBuf,
        /// The cluster's name; nodes of another cluster are refused
        #[arg(long, default_value = "litefs")]
        cluster: String,
    },
    /// Make a node's certificate: NODE.crt and NODE.key, valid for a year
    Issue {
        /// Where ca.crt and ca.key are
        #[arg(long, default_value = "certs")]
        dir: PathBuf,
        /// Where to write the node's files [default: DIR]
        #[arg(long)]
        out: Option<PathBuf>,
        /// The node's name
        node: String,
    },
}

pub(super) fn run(command: &CertsCommand) -> CliResult {
    match command {
        CertsCommand::Init { dir, cluster } => {
            let (cert, key) = tls::init_cluster(dir, cluster)?;
            say!("wrote {} (copy it to every node)", cert.display());
            say!("wrote {} (keep it secret; nodes do not need it)", key.display());
            say!("next: litefs-node certs issue --dir {} NODE", dir.display());
        }
        CertsCommand::Issue { dir, out, node } => {
            let (cert, key) = tls::issue_node(dir, node, out.as_ref().unwrap_or(dir))?;
            say!("wrote {} and {}", cert.display(), key.display());
            say!("in this node's config, with the paths on its host:");
            say!("  tls:");
            say!("    ca: {}", dir.join("ca.crt").display());
            say!("    cert: {}", cert.display());
            say!("    key: {}", key.display());
        }
    }
    Ok(())
}
