//! `promote`: makes a node the primary.

use clap::Args;
use http_body_util::Empty;
use hyper::body::Bytes;

use super::CliResult;
use super::node_args::NodeArgs;

#[derive(Args)]
pub(super) struct PromoteArgs {
    #[command(flatten)]
    node: NodeArgs,
}

pub(super) fn run(args: &PromoteArgs) -> CliResult {
    let client = args.node.client()?;
    client.block_on(client.send("POST", "/promote", None, Empty::<Bytes>::new()))?;
    say!("{} is the primary", client.url());
    Ok(())
}
