//! `import`: a SQLite file becomes a database of the cluster; or a LiteFS data directory, a node's.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use http_body_util::{Empty, StreamBody};
use hyper::body::{Bytes, Frame};
use litefs_store::DbName;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::client::{Client, query_value, read_text};
use super::node_args::NodeArgs;
use super::progress::{self, Counted};
use super::source::Source;
use super::{CliError, CliResult, litefs_data, open_data_dir, parse_name};
use crate::http::Info;

const CHUNK: usize = 256 << 10;

#[derive(Args)]
pub(super) struct ImportArgs {
    /// The database's name; with --litefs-data, only that one
    #[arg(long, required_unless_present = "litefs_data")]
    name: Option<String>,
    #[command(flatten)]
    node: NodeArgs,
    /// Open this data directory instead of asking a node
    #[arg(long, value_name = "DIR", conflicts_with = "url")]
    data_dir: Option<PathBuf>,
    /// Take over all databases of this LiteFS data directory into --data-dir, which is made if it
    /// is missing; nothing in DIR is changed, and LiteFS must be stopped
    #[arg(long, value_name = "DIR", requires = "data_dir", conflicts_with = "path")]
    litefs_data: Option<PathBuf>,
    /// The SQLite file; it may be in use
    #[arg(required_unless_present = "litefs_data")]
    path: Option<PathBuf>,
}

pub(super) fn run(args: &ImportArgs) -> CliResult {
    let name = args.name.as_deref().map(parse_name).transpose()?;
    match (&args.litefs_data, &args.data_dir, &args.path, name) {
        (Some(from), Some(to), _, name) => litefs_data::run(from, to, name.as_ref()),
        (_, data_dir, Some(path), Some(name)) => {
            import_file(data_dir.as_deref(), &args.node, path, &name)
        }
        _ => Err(CliError::new("give --name and a file, or --litefs-data and --data-dir")),
    }
}

fn import_file(data_dir: Option<&Path>, node: &NodeArgs, path: &Path, name: &DbName) -> CliResult {
    let source = Source::open(path)?;
    let bar = progress::bytes(source.len(), "importing");
    let len = source.len();
    let mut source = Counted::new(source, &bar);
    match data_dir {
        Some(dir) => {
            let store = open_data_dir(dir)?;
            store.create(name)?.import(&mut source)?;
            store.close()?;
        }
        None => upload(&node.client()?, name.as_str(), source, len)?,
    }
    bar.finish_and_clear();
    say!("imported {} as {name} ({len} bytes)", path.display());
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
