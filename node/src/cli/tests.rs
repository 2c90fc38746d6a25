//! Whole commands, on a server in this process and on data directories.

use std::path::Path;

use clap::CommandFactory;
use litefs_ltx::FileName;
use rusqlite::Connection;

use super::*;
use crate::http::tests::{Fixture, change_page, count_rows, replica, sqlite_file};

/// Runs a command line as `main` would, but keeps the error.
fn command(args: &[&str]) -> Result<(), String> {
    let words = ["litefs-node"].iter().chain(args);
    let cli = Cli::try_parse_from(accept_single_dashes(words.map(OsString::from)));
    execute(cli.map_err(|e| e.to_string())?.command).map(|_| ()).map_err(|e| e.0)
}

/// The same from within a test's runtime: commands have their own.
async fn command_beside(args: Vec<String>) -> Result<(), String> {
    let run = move || command(&args.iter().map(String::as_str).collect::<Vec<_>>());
    tokio::task::spawn_blocking(run).await.unwrap()
}

fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(accept_single_dashes(args.iter().map(OsString::from)))
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn a_node_and_a_directory_are_not_asked_at_once() {
    let args = ["x", "export", "--name", "a", "--url", "http://h:1", "--data-dir", "d", "o"];
    assert!(parse(&args).is_err());
}

#[test]
fn a_configuration_is_checked_with_its_line_and_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("litefs.yml");
    let check = |text: &str| {
        std::fs::write(&path, text).unwrap();
        execute(parse(&["x", "config", "check", path.to_str().unwrap()]).unwrap().command)
    };
    assert_eq!(check(crate::Config::EXAMPLE).unwrap(), 0);
    let error = check("data:\n  dri: /x\n").unwrap_err();
    assert_eq!(error.1, 2);
    assert!(error.0.contains("litefs.yml:2: unknown key"), "{}", error.0);
    std::fs::remove_file(&path).unwrap();
    let missing =
        execute(parse(&["x", "mount", "-config", path.to_str().unwrap()]).unwrap().command);
    assert_eq!(missing.unwrap_err().1, 2);
}

#[test]
fn every_flag_of_litefs_is_taken_with_one_dash() {
    for line in [
        "mount -config F -no-expand-env -skip-unmount -fuse.debug -debug -tracing -- app -x --y",
        "run -url http://localhost:20202 -promote -if-candidate -v -- app -promote",
        "run -with-halt-lock-on /litefs/db -- app",
        "import -url http://localhost:20202 -name db /tmp/db",
        "export -url http://localhost:20202 -name db /tmp/db",
        "version",
    ] {
        let words = ["litefs-node"].into_iter().chain(line.split(' ')).collect::<Vec<_>>();
        let parsed = parse(&words);
        assert!(parsed.is_ok(), "{line}: {}", parsed.err().unwrap());
    }
    let Command::Mount(_) = parse(&["x", "mount"]).unwrap().command else { panic!("mount") };
    assert!(parse(&["x", "run", "-promote", "-with-halt-lock-on", "d", "--", "a"]).is_err());
    assert!(parse(&["x", "run", "-promote"]).is_err(), "a program is needed");
}

#[test]
fn manual_pages_are_written_for_each_command() {
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man1");
    command(&["man", pages.to_str().unwrap()]).unwrap();
    for (page, needed) in
        [("litefs-node.1", "litefs\\-node\\-mount(1)"), ("litefs-node-run.1", "with\\-halt")]
    {
        let text = std::fs::read_to_string(pages.join(page)).unwrap();
        assert!(text.contains(needed), "{page}: {text}");
    }
}

#[tokio::test]
async fn a_database_in_use_goes_to_a_node_and_comes_back() {
    let f = Fixture::start();
    let url = format!("http://{}", f.server.local_addr());
    let (from, to) = (f.dir.path().join("from.db"), f.dir.path().join("to.db"));
    let db = Connection::open(&from).unwrap();
    db.execute_batch(
        "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; CREATE TABLE t(x); \
         INSERT INTO t VALUES (1),(2),(3);",
    )
    .unwrap();
    let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
    command_beside(strings(&["import", "-url", &url, "-name", "a.db", from])).await.unwrap();
    command_beside(strings(&["export", "-url", &url, "-name", "a.db", to])).await.unwrap();
    assert_eq!(count_rows(&std::fs::read(to).unwrap()), 3);
    command_beside(strings(&["status", "--url", &url])).await.unwrap();
    command_beside(strings(&["status", "--url", &url, "--json"])).await.unwrap();

    let missing = command_beside(strings(&["export", "--url", &url, "--name", "b.db", to])).await;
    assert!(missing.unwrap_err().contains("database not found"));
    assert_eq!(count_rows(&std::fs::read(to).unwrap()), 3);

    f.node.role.send_replace(replica());
    let refused = command_beside(strings(&["import", "--url", &url, "--name", "a.db", from])).await;
    assert!(refused.unwrap_err().contains("the primary is n2"));
}

/// A data directory with database `a.db`: an import and then `commits` records in its log.
fn data_dir(dir: &Path, commits: u8) -> PathBuf {
    let data = dir.join("data");
    let store = Store::open(&data).unwrap();
    let db = store.create(&DbName::new("a.db").unwrap()).unwrap();
    db.import(&mut &sqlite_file(50)[..]).unwrap();
    (1..=commits).for_each(|n| change_page(&db, n));
    data
}

#[test]
fn a_data_directory_works_without_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let data = data_dir(dir.path(), 0);
    let (data, out) = (data.to_str().unwrap(), dir.path().join("out.db"));
    let out = out.to_str().unwrap();
    command(&["export", "--data-dir", data, "--name", "a.db", out]).unwrap();
    assert_eq!(count_rows(&std::fs::read(out).unwrap()), 50);
    command(&["import", "--data-dir", data, "--name", "b.db", out]).unwrap();
    command(&["export", "--data-dir", data, "--name", "b.db", out]).unwrap();
    assert_eq!(count_rows(&std::fs::read(out).unwrap()), 50);
    let missing = command(&["export", "--data-dir", data, "--name", "c.db", out]).unwrap_err();
    assert!(missing.contains("no database c.db"), "{missing}");
}

#[test]
fn a_mistyped_data_directory_is_refused_and_not_created() {
    let dir = tempfile::tempdir().unwrap();
    let typo = dir.path().join("dta");
    let (typo_text, out) = (typo.to_str().unwrap(), dir.path().join("out.db"));
    let out = out.to_str().unwrap();
    for args in [
        &["export", "--data-dir", typo_text, "--name", "a.db", out][..],
        &["ltx", "list", "--data-dir", typo_text, "--name", "a.db"],
    ] {
        let error = command(args).unwrap_err();
        assert!(error.contains("no data directory"), "{error}");
    }
    assert!(!typo.exists());
}

#[test]
fn a_running_nodes_directory_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let data = data_dir(dir.path(), 0);
    let _running = Store::open(&data).unwrap();
    let args = ["ltx", "list", "--data-dir", data.to_str().unwrap(), "--name", "a.db"];
    let error = command(&args).unwrap_err();
    assert!(error.contains(&std::process::id().to_string()), "{error}");
}

#[test]
fn the_log_is_listed_verified_and_extracted_without_changing_it() {
    let dir = tempfile::tempdir().unwrap();
    let data = data_dir(dir.path(), 3);
    let data = data.to_str().unwrap();
    let out = dir.path().join("ltx");
    let log = ["--data-dir", data, "--name", "a.db"];
    command(&[&["ltx", "list"], &log[..]].concat()).unwrap();
    command(&[&["ltx", "verify"], &log[..]].concat()).unwrap();
    let extract = [&["ltx", "extract"], &log[..], &["--out", out.to_str().unwrap()]].concat();
    command(&extract).unwrap();
    // The import is transaction 1; what follows it are the records.
    let mut names: Vec<String> = std::fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected: Vec<String> = (2..=4).map(|n| format!("{n:016x}-{n:016x}.ltx")).collect();
    assert_eq!(names, expected);
    let mut previous = None;
    for name in &names {
        let summary = litefs_ltx::verify(std::fs::File::open(out.join(name)).unwrap()).unwrap();
        assert_eq!(FileName::of(&summary.header).to_string(), *name);
        assert!(previous.is_none_or(|post| post == summary.header.pre_apply));
        previous = Some(summary.trailer.post_apply);
    }
    let files: Vec<String> =
        names.iter().map(|name| out.join(name).to_str().unwrap().to_owned()).collect();
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    command(&[&["ltx", "verify"], &files[..]].concat()).unwrap();
    // Nothing is overwritten, and a range takes only its own.
    assert!(command(&extract).unwrap_err().contains("0000000000000002"));
    let two = dir.path().join("two");
    let range = ["--from", "0000000000000003", "--to", "0000000000000003"];
    let args =
        [&["ltx", "extract"], &log[..], &range[..], &["--out", two.to_str().unwrap()]].concat();
    command(&args).unwrap();
    assert_eq!(std::fs::read_dir(two).unwrap().count(), 1);
}
