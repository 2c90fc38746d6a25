//! `export`: a database becomes a SQLite file.
//!
//! The file is complete and on disk before it takes the place of an older one, whose `-journal`,
//! `-wal` and `-shm` go first: SQLite would apply them to the new content.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::header::CONTENT_LENGTH;
use litefs_store::DbName;
use tempfile::NamedTempFile;

use super::client::{Client, query_value};
use super::progress::{self, Counted};
use super::{CliError, CliResult, Target, open_data_dir, parse_name};

#[derive(Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    target: Target,
    /// The file to write; an older one is replaced
    path: PathBuf,
}

pub(super) fn run(args: &ExportArgs) -> CliResult {
    let name = parse_name(&args.target.name)?;
    let dir = directory_of(&args.path);
    let mut file =
        new_file(dir).map_err(CliError::during(format!("cannot write to {}", dir.display())))?;
    match &args.target.data_dir {
        Some(data_dir) => copy(data_dir, &name, &mut file)?,
        None => download(&args.target.node.client()?, &name, &mut file)?,
    }
    let bytes = file.as_file().metadata()?.len();
    put_in_place(file, &args.path)
        .map_err(CliError::during(format!("cannot write {}", args.path.display())))?;
    say!("exported {name} to {} ({bytes} bytes)", args.path.display());
    Ok(())
}

fn copy(data_dir: &Path, name: &DbName, file: &mut NamedTempFile) -> CliResult {
    let store = open_data_dir(data_dir)?;
    let database = store
        .database(name)
        .filter(|db| db.page_count() > 0)
        .ok_or_else(|| CliError::new(format!("{} has no database {name}", data_dir.display())))?;
    let snapshot = database.snapshot()?;
    let page_size = snapshot.page_size().map_or(0, |size| u64::from(size.get()));
    let bar = progress::bytes(u64::from(snapshot.page_count()) * page_size, "exporting");
    let mut out = io::BufWriter::with_capacity(256 << 10, Counted::new(file, &bar));
    snapshot.export(&mut out)?;
    out.flush()?;
    bar.finish_and_clear();
    Ok(())
}

fn download(client: &Client, name: &DbName, file: &mut NamedTempFile) -> CliResult {
    client.block_on(async {
        let path = format!("/export?name={}", query_value(name.as_str()));
        let response = client.send("GET", &path, None, Empty::<Bytes>::new()).await?;
        let length = response.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok());
        let length: u64 = length.and_then(|text| text.parse().ok()).unwrap_or(0);
        let bar = progress::bytes(length, "exporting");
        let mut body = response.into_body();
        // A body that ends early is an error of hyper's, because the node announced its length.
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| client.failed(&e))?;
            if let Some(data) = frame.data_ref() {
                file.write_all(data)?;
                bar.inc(data.len() as u64);
            }
        }
        bar.finish_and_clear();
        Ok(())
    })
}

/// A file that vanishes unless it is put in place; readable as the user's umask says.
pub(super) fn new_file(dir: &Path) -> io::Result<NamedTempFile> {
    use std::os::unix::fs::PermissionsExt;
    tempfile::Builder::new()
        .prefix(".litefs-export-")
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(dir)
}

pub(super) fn put_in_place(file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    for suffix in ["-journal", "-wal", "-shm"] {
        let mut side = path.as_os_str().to_owned();
        side.push(suffix);
        match fs::remove_file(&side) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    file.persist(path).map_err(|e| e.error)?;
    fs::File::open(directory_of(path))?.sync_all()
}

pub(super) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_file_is_replaced_with_its_companions_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("o.db");
        for name in ["o.db", "o.db-wal", "o.db-shm", "o.db-journal"] {
            fs::write(dir.path().join(name), b"old").unwrap();
        }
        let mut file = new_file(dir.path()).unwrap();
        file.write_all(b"new").unwrap();
        put_in_place(file, &path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_export_leaves_the_older_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("o.db");
        fs::write(&path, b"old").unwrap();
        let args = ExportArgs {
            target: Target {
                name: "a.db".into(),
                node: super::super::node_args::NodeArgs::default(),
                data_dir: Some(dir.path().join("no-such-directory")),
            },
            path: path.clone(),
        };
        assert!(run(&args).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
