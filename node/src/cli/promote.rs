//! `promote`: makes a node the primary.

use clap::Args;
use http_body_util::Empty;
use hyper::body::Bytes;

use super::client::Client;
use super::{CliResult, DEFAULT_URL};

#[derive(Args)]
pub(super) struct PromoteArgs {
    /// The HTTP address of the node that is to be the primary
    #[arg(long, default_value = DEFAULT_URL)]
    url: String,
}

pub(super) fn run(args: &PromoteArgs) -> CliResult {
    let client = Client::new(&args.url)?;
    client.block_on(client.send("POST", "/promote", None, Empty::<Bytes>::new()))?;
    println!("{} is the primary", args.url);
    Ok(())
}
