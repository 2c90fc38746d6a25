//! `ltx`: looks at transactions, in .ltx files or in the log of a database.
//!
//! `list` and `verify` print what the reference `ltx` tool prints. `extract` writes the records of
//! a log as files that it accepts. With `--diverged`: see `diverged.rs`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use litefs_ltx::{FileName, Summary, Txid, format_timestamp, verify};
use litefs_store::{LogRecord, Store};

use super::diverged::{self, Place};
use super::{CliError, CliResult, open_data_dir, parse_name};

#[derive(Subcommand)]
pub(super) enum LtxCommand {
    /// Show what each file or record holds
    List {
        #[command(flatten)]
        input: Input,
        /// Separate columns by tabs
        #[arg(long)]
        tsv: bool,
    },
    /// Check each file or record wholly; exit code 1 if one is bad
    Verify {
        #[command(flatten)]
        input: Input,
    },
    /// Write the records of a database's log as .ltx files, or a diverged database
    Extract {
        #[command(flatten)]
        place: Place,
        /// The database whose records to write (its node must not be running)
        #[arg(long, required_unless_present = "diverged", requires = "data_dir")]
        name: Option<String>,
        /// Write the database as this node had it, with the transactions that the cluster did not
        /// keep: the name that `ltx list --diverged` shows, or its beginning
        #[arg(long, value_name = "NAME", conflicts_with_all = ["name", "from", "to"])]
        diverged: Option<String>,
        /// Where to write: a directory, with --diverged a new file
        #[arg(long)]
        out: Option<PathBuf>,
        /// First transaction id, in hex
        #[arg(long)]
        from: Option<Txid>,
        /// Last transaction id, in hex
        #[arg(long)]
        to: Option<Txid>,
    },
    /// Remove diverged transactions that nobody needs any more
    Forget {
        #[command(flatten)]
        place: Place,
        /// The name that `ltx list --diverged` shows, or its beginning
        #[arg(long, value_name = "NAME")]
        diverged: String,
    },
}

/// Files, or the log of a database.
#[derive(Args)]
pub(super) struct Input {
    /// .ltx files
    #[arg(
        required_unless_present_any = ["name", "diverged"],
        conflicts_with_all = ["data_dir", "diverged"]
    )]
    files: Vec<PathBuf>,
    #[command(flatten)]
    place: Place,
    /// Look at the log of this database in the data directory (its node must not be running)
    #[arg(long, requires = "data_dir")]
    name: Option<String>,
    /// Look at the transactions of this node that the cluster did not keep
    #[arg(long, conflicts_with = "name")]
    diverged: bool,
}

pub(super) fn run(command: &LtxCommand) -> CliResult {
    match command {
        LtxCommand::List { input, tsv } if input.diverged => {
            let rows = diverged::rows(&input.place)?;
            Ok(io::stdout().lock().write_all(table(&rows, *tsv).as_bytes())?)
        }
        LtxCommand::List { input, tsv } => list(input, *tsv),
        LtxCommand::Verify { input } => verify_all(input),
        LtxCommand::Extract { place, diverged: Some(name), out, .. } => {
            diverged::extract(place, name, out.as_deref())
        }
        LtxCommand::Extract { place, name, out, from, to, .. } => {
            let range = from.unwrap_or(Txid::ZERO)..=to.unwrap_or(Txid::new(u64::MAX));
            let out = out.as_deref().unwrap_or(Path::new("."));
            match (&place.data_dir, name) {
                (Some(dir), Some(name)) => extract_log(dir, name, range, out),
                _ => Err(CliError::new("say which log: --data-dir DIR --name NAME")),
            }
        }
        LtxCommand::Forget { place, diverged } => diverged::forget(place, diverged),
    }
}

fn extract_log(dir: &Path, name: &str, range: RangeInclusive<Txid>, out: &Path) -> CliResult {
    let mut count = 0u64;
    let written = |record: &LogRecord| {
        // A record is wanted if any of its transactions is.
        if record.min_txid() > *range.end() || record.pos().txid < *range.start() {
            return Ok(());
        }
        count += 1;
        extract(record, out)
    };
    fs::create_dir_all(out)
        .map_err(CliError::during(format!("cannot create {}", out.display())))?;
    each_record(dir, name, written)?;
    File::open(out)?.sync_all()?;
    say!("wrote {count} files to {}", out.display());
    Ok(())
}

const COLUMNS: [&str; 11] = [
    "min_txid",
    "max_txid",
    "commit",
    "pages",
    "preapply",
    "postapply",
    "timestamp",
    "wal_offset",
    "wal_size",
    "wal_salt",
    "size",
];

fn list(input: &Input, tsv: bool) -> CliResult {
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    let mut failed = false;
    each(input, |name, size, result| match result {
        Ok(summary) => rows.push(row(&summary, size)),
        Err(e) => {
            eprintln!("{name}: {e}");
            failed = true;
        }
    })?;
    let mut out = io::stdout().lock();
    out.write_all(table(&rows, tsv).as_bytes())?;
    if failed { Err(CliError::new("not every file could be read")) } else { Ok(()) }
}

fn verify_all(input: &Input) -> CliResult {
    let (mut good, mut bad) = (0u64, 0u64);
    each(input, |name, _, result| match result {
        Ok(_) => good += 1,
        Err(e) => {
            say!("{name}: {e}");
            bad += 1;
        }
    })?;
    if bad > 0 {
        return Err(CliError::new(format!("{good} ok, {bad} invalid")));
    }
    say!("ok");
    Ok(())
}

/// Verifies every file or record: its name, its size in bytes and what it holds.
fn each(input: &Input, mut visit: impl FnMut(&str, u64, litefs_ltx::Result<Summary>)) -> CliResult {
    if let (Some(dir), Some(name)) = (&input.place.data_dir, &input.name) {
        return each_record(dir, name, |record| {
            let file = FileName { min: record.min_txid(), max: record.pos().txid };
            visit(&file.to_string(), record.len(), verify(record.reader()));
            Ok(())
        });
    }
    let kept = if input.diverged { diverged::files(&input.place)? } else { Vec::new() };
    for path in input.files.iter().chain(&kept) {
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let name = path.display().to_string();
        match opened {
            Ok((size, file)) => visit(&name, size, verify(file)),
            Err(e) => visit(&name, 0, Err(e.into())),
        }
    }
    Ok(())
}

/// Visits the records of a database's log, oldest first.
fn each_record(
    dir: &Path,
    name: &str,
    mut visit: impl FnMut(&LogRecord) -> CliResult,
) -> CliResult {
    let name = parse_name(name)?;
    let store: Store = open_data_dir(dir)?;
    let database = store
        .database(&name)
        .ok_or_else(|| CliError::new(format!("{} has no database {name}", dir.display())))?;
    let mut cursor = database.log_cursor(database.log_start()?)?;
    while let Some(record) = cursor.next()? {
        visit(&record)?;
    }
    // The store is dropped, not closed: closing folds the log, and this only looks.
    Ok(())
}

fn extract(record: &LogRecord, out: &Path) -> CliResult {
    let name = FileName { min: record.min_txid(), max: record.pos().txid };
    let path = out.join(name.to_string());
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        io::copy(&mut record.reader(), &mut file)?;
        file.sync_all()
    };
    write().map_err(CliError::during(format!("cannot write {}", path.display())))
}

fn row(summary: &Summary, size: u64) -> [String; COLUMNS.len()] {
    let header = &summary.header;
    let timestamp = match header.timestamp_ms {
        0 => String::new(),
        ms => format_timestamp(ms),
    };
    [
        header.min_txid.to_string(),
        header.max_txid.to_string(),
        header.commit.to_string(),
        summary.pages.to_string(),
        header.pre_apply.to_string(),
        summary.trailer.post_apply.to_string(),
        timestamp,
        header.wal_offset.to_string(),
        header.wal_size.to_string(),
        format!("{:08x} {:08x}", header.wal_salt1, header.wal_salt2),
        size.to_string(),
    ]
}

/// Columns padded to their widest cell, or separated by tabs.
fn table<const N: usize>(rows: &[[String; N]], tsv: bool) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        if tsv {
            return row.join("\t") + "\n";
        }
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use litefs_ltx::{Checksum, Encoder, Header, PageSize, Pgno, page_checksum};

    use super::super::node_args::NodeArgs;
    use super::*;

    /// The tiny snapshot of FORMAT §19, with the timestamp given there.
    fn tiny_snapshot() -> Vec<u8> {
        let header = Header {
            timestamp_ms: 1_700_000_000_000,
            ..Header::snapshot(PageSize::new(512).unwrap(), 3, Txid::new(1))
        };
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        let mut sum = Checksum::EMPTY;
        for n in 1..=3u8 {
            let pgno = Pgno::new(n.into()).unwrap();
            encoder.encode_page(pgno, &[n; 512]).unwrap();
            sum = sum.toggle(page_checksum(pgno, &[n; 512]));
        }
        encoder.finish(sum).unwrap().0
    }

    fn files(names: &[&Path]) -> Input {
        let place = Place { data_dir: None, node: NodeArgs::default() };
        let files = names.iter().map(|p| p.into()).collect();
        Input { files, place, name: None, diverged: false }
    }

    #[test]
    fn a_row_has_the_references_columns() {
        let summary = verify(&tiny_snapshot()[..]).unwrap();
        let row = row(&summary, 9).join("|");
        assert_eq!(
            row,
            "0000000000000001|0000000000000001|3|3|0000000000000000|efffffffecd99000|\
             2023-11-14T22:13:20.000Z|0|0|00000000 00000000|9"
        );
    }

    #[test]
    fn one_bad_file_fails_the_whole_but_not_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let (good, bad, missing) =
            (dir.path().join("g"), dir.path().join("b"), dir.path().join("m"));
        let mut bytes = tiny_snapshot();
        fs::write(&good, &bytes).unwrap();
        bytes[300] ^= 1;
        fs::write(&bad, &bytes).unwrap();
        verify_all(&files(&[&good, &good])).unwrap();
        let error = verify_all(&files(&[&good, &bad, &missing])).unwrap_err();
        assert_eq!(error.0, "1 ok, 2 invalid");
        assert!(list(&files(&[&good, &bad]), true).is_err());
        list(&files(&[&good]), false).unwrap();
    }

    #[test]
    fn columns_line_up() {
        let rows = [["a".to_owned(), "b".to_owned()], ["long".to_owned(), "c".to_owned()]];
        assert_eq!(table(&rows, false), "a     b\nlong  c\n");
        assert_eq!(table(&rows, true), "a\tb\nlong\tc\n");
    }
}
