//! `ltx … --diverged`: transactions of this node that the cluster did not keep, in the data
//! directory. They are files that nobody changes, so the node may be running.

use std::fs;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use http_body_util::Empty;
use hyper::body::Bytes;
use litefs_ltx::{Decoder, Pgno};
use litefs_store::{Diverged, OsStorage};

use super::client::read_text;
use super::export::{directory_of, new_file, put_in_place};
use super::node_args::NodeArgs;
use super::{CliError, CliResult};
use crate::http::{DivergedInfo, Info};

/// Where a node keeps its data.
#[derive(Args)]
pub(super) struct Place {
    /// The data directory; without it, the node that runs here is asked where it is
    #[arg(long, value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(super) node: NodeArgs,
}

impl Place {
    fn dir(&self) -> Result<PathBuf, CliError> {
        if let Some(dir) = &self.data_dir {
            return match dir.join("node.json").is_file() {
                true => Ok(dir.clone()),
                false => Err(super::no_data_dir(dir)),
            };
        }
        let client = self.node.client()?;
        let text = client.block_on(async {
            read_text(client.send("GET", "/info", None, Empty::<Bytes>::new()).await?).await
        })?;
        let info: Info = serde_json::from_str(&text)
            .map_err(|e| CliError::new(format!("{} is no litefs node: {e}", client.url())))?;
        let dir = PathBuf::from(info.path);
        match dir.join("node.json").is_file() {
            true => Ok(dir),
            false => Err(CliError::new(format!(
                "the node at {} has its data in {}, which is not here: type this on its host",
                client.url(),
                dir.display()
            ))),
        }
    }

    fn all(&self) -> Result<(PathBuf, Vec<Diverged>), CliError> {
        let dir = self.dir()?;
        let all = Diverged::list(&OsStorage, &dir)?;
        Ok((dir, all))
    }

    /// The one whose name begins so.
    fn find(&self, name: &str) -> Result<Diverged, CliError> {
        let (dir, all) = self.all()?;
        let mut found: Vec<Diverged> =
            all.into_iter().filter(|kept| kept.id().starts_with(name)).collect();
        if found.len() == 1 {
            return Ok(found.remove(0));
        }
        let names: Vec<String> = found.iter().map(Diverged::id).collect();
        Err(CliError::new(match names.is_empty() {
            true => format!(
                "nothing is kept under the name {name} in {}: litefs-node ltx list --diverged \
                 shows what is",
                dir.display()
            ),
            false => format!("{name} begins the names of several: {}", names.join(", ")),
        }))
    }
}

const COLUMNS: [&str; 6] = ["name", "kept_at", "common", "newest", "transactions", "database"];

/// The rows of a table of what is kept.
pub(super) fn rows(place: &Place) -> Result<Vec<[String; 6]>, CliError> {
    let (dir, all) = place.all()?;
    let row = |kept: &Diverged| {
        let info = DivergedInfo::new(&dir, kept);
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        [
            info.name,
            or_dash(Some(info.kept_at).filter(|text| !text.is_empty())),
            or_dash(info.common),
            info.newest,
            or_dash(info.transactions.map(|count| count.to_string())),
            if info.whole { "whole" } else { "records only" }.to_owned(),
        ]
    };
    Ok([COLUMNS.map(str::to_owned)].into_iter().chain(all.iter().map(row)).collect())
}

/// All files that are kept.
pub(super) fn files(place: &Place) -> Result<Vec<PathBuf>, CliError> {
    let mut files = Vec::new();
    for kept in place.all()?.1 {
        files.extend(kept.records(&OsStorage)?);
        files.extend(kept.whole_file());
    }
    Ok(files)
}

/// Writes the database as it was on this node, as a SQLite file.
pub(super) fn extract(place: &Place, name: &str, out: Option<&Path>) -> CliResult {
    let kept = place.find(name)?;
    let Some(whole) = kept.whole_file() else { return Err(records_only(&kept)?) };
    let default = PathBuf::from(format!("diverged-{}", kept.db));
    let out = match out {
        Some(path) if path.is_dir() => path.join(default),
        Some(path) => path.to_owned(),
        None => default,
    };
    if out.symlink_metadata().is_ok() {
        return Err(CliError::new(format!("{} exists already: name another", out.display())));
    }
    let dir = directory_of(&out);
    let mut file =
        new_file(dir).map_err(CliError::during(format!("cannot write to {}", dir.display())))?;
    let pages = write_database(&whole, &mut file)?;
    if pages == 0 {
        return Err(CliError::new(format!("{} had been dropped: it was empty", kept.db)));
    }
    put_in_place(file, &out)
        .map_err(CliError::during(format!("cannot write {}", out.display())))?;
    say!("wrote {} as it was at {} to {}", kept.db, kept.newest, out.display());
    if let Some(count) = kept.transactions() {
        let dir = kept.path.display();
        say!("the last {count} transactions of it are also in {dir}, as .ltx files");
    }
    Ok(())
}

fn records_only(kept: &Diverged) -> Result<CliError, CliError> {
    let records = kept.records(&OsStorage)?;
    let names: Vec<String> = records.iter().map(|path| path.display().to_string()).collect();
    Ok(CliError::new(format!(
        "{} was kept without the whole database, as there was no room for it; what there is are \
         its {} records, each with the pages that a transaction wrote (litefs-node ltx list FILE \
         shows more): {}",
        kept.id(),
        names.len(),
        names.join(" ")
    )))
}

/// Writes the pages of a snapshot record as a SQLite file; returns how many it has.
fn write_database(record: &Path, file: &mut (impl Write + Seek)) -> Result<u32, CliError> {
    let bad = |e| CliError::new(format!("cannot read {}: {e}", record.display()));
    let source = fs::File::open(record)
        .map_err(CliError::during(format!("cannot open {}", record.display())))?;
    let mut decoder = Decoder::new(source).map_err(bad)?;
    let header = *decoder.header();
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut page = vec![0; header.page_size.len()];
    let mut next = Pgno::FIRST.get();
    while let Some(pgno) = decoder.next_page(&mut page).map_err(bad)? {
        if pgno.get() != next {
            // The lock page is in no record.
            out.seek(SeekFrom::Start(pgno.offset(header.page_size)))?;
        }
        out.write_all(&page)?;
        next = pgno.get() + 1;
    }
    // Nothing counts before this has verified.
    decoder.finish().map_err(bad)?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(header.commit)
}

/// Removes what is kept under a name.
pub(super) fn forget(place: &Place, name: &str) -> CliResult {
    let kept = place.find(name)?;
    kept.forget(&OsStorage)?;
    say!("removed {}", kept.id());
    Ok(())
}
