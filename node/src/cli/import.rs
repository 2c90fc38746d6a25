//! `import`: a SQLite file becomes a database of the cluster.

use std::io::{self, Read};
use std::path::PathBuf;

use clap::Args;
use http_body_util::{Empty, StreamBody};
use hyper::body::{Bytes, Frame};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::client::{Client, query_value, read_text};
use super::progress::{self, Counted};
use super::source::Source;
use super::{CliError, CliResult, Target, open_data_dir, parse_name};
use crate::http::Info;

const CHUNK: usize = 256 << 10;

#[derive(Args)]
pub(super) struct ImportArgs {
    #[command(flatten)]
    target: Target,
    /// The SQLite file; it may be in use
    path: PathBuf,
}

pub(super) fn run(args: &ImportArgs) -> CliResult {
    let name = parse_name(&args.target.name)?;
    let source = Source::open(&args.path)?;
    let bar = progress::bytes(source.len(), "importing");
    let len = source.len();
    let source = Counted::new(source, &bar);
    match &args.target.data_dir {
        Some(dir) => {
            let store = open_data_dir(dir)?;
            let mut source = source;
            store.create(&name)?.import(&mut source)?;
            store.close()?;
        }
        None => upload(&args.target.node.client()?, name.as_str(), source, len)?,
    }
    bar.finish_and_clear();
    println!("imported {} as {name} ({len} bytes)", args.path.display());
    Ok(())
}

fn upload(client: &Client, name: &str, source: impl Read + Send + 'static, len: u64) -> CliResult {
    client.block_on(async {
        require_primary(client).await?;
        let (sender, receiver) = mpsc::channel(2);
        let reader = tokio::task::spawn_blocking(move || send_chunks(source, &sender));
        let body = StreamBody::new(ReceiverStream::new(receiver));
        let path = format!("/import?name={}", query_value(name));
        let sent = client.send("POST", &path, Some(len), body).await;
        // What could not be read here explains a broken upload best.
        match reader.await {
            Ok(Err(e)) if e.kind() != io::ErrorKind::BrokenPipe => {
                Err(CliError::new(format!("cannot read the file: {e}")))
            }
            _ => sent.map(|_| ()),
        }
    })
}

/// Asks before gigabytes are sent in vain.
async fn require_primary(client: &Client) -> CliResult {
    let response = client.send("GET", "/info", None, Empty::<Bytes>::new()).await?;
    let text = read_text(response).await?;
    let info: Info = serde_json::from_str(&text)
        .map_err(|e| CliError::new(format!("this is no litefs node: {e}")))?;
    if info.is_primary {
        return Ok(());
    }
    let primary = match info.primary.hostname.as_str() {
        "" => "no primary is known".to_owned(),
        name => format!("the primary is {name}"),
    };
    Err(CliError::new(format!("this node is not the primary; {primary}: import there")))
}

fn send_chunks(
    mut source: impl Read,
    sender: &mpsc::Sender<io::Result<Frame<Bytes>>>,
) -> io::Result<()> {
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        source.by_ref().take(CHUNK as u64).read_to_end(&mut chunk)?;
        if chunk.is_empty() {
            return Ok(());
        }
        sender
            .blocking_send(Ok(Frame::data(chunk.into())))
            .map_err(|_| io::ErrorKind::BrokenPipe)?;
    }
}
