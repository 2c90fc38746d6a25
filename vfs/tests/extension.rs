//! Risk: the loadable extension does not load, or does not do in another program what it does here.
//!
//! Builds the extension and uses it from the sqlite3 shell and from Python, as a user would.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use common::*;

/// Builds `liblitefs_vfs.so` in a target directory of its own: its features exclude those of this
/// test.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("extension");
        let output = Command::new(env!("CARGO"))
            .args(["rustc", "--locked", "-p", "litefs-vfs", "--lib"])
            .args(["--no-default-features", "--features", "extension", "--crate-type", "cdylib"])
            .arg("--target-dir")
            .arg(&target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        target.join("debug/liblitefs_vfs.so")
    })
}

fn shell(dir: &Path, database: &str, sql: &str) -> Output {
    Command::new("sqlite3")
        .args(["-batch", "-bail", ":memory:"])
        .args(["-cmd", &format!(".load {}", library().display())])
        .arg(format!(".open {database}"))
        .arg(sql)
        .env("LITEFS_DATA_DIR", dir)
        .output()
        .expect("the sqlite3 shell is needed for this test (Debian: apt install sqlite3)")
}

/// What a program printed; its errors are this test's.
fn printed(output: Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn the_sqlite3_shell_uses_the_extension_by_uri() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let sql = "PRAGMA journal_mode = WAL; CREATE TABLE t (x); INSERT INTO t VALUES (1), (2);
               SELECT sum(x) FROM t; PRAGMA integrity_check";
    assert_eq!(printed(shell(&data, "file:app.db?vfs=litefs", sql)), "wal\n3\nok");
    let again =
        shell(&data, "file:app.db?vfs=litefs", "INSERT INTO t VALUES (3); SELECT sum(x) FROM t");
    assert_eq!(printed(again), "6");
    let base = open_plain(&data.join("dbs/app.db/base"));
    assert_eq!(number(&base, "SELECT sum(x) FROM t"), 6);
}

#[test]
fn the_data_directory_comes_from_the_uri_before_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let (env, uri) = (dir.path().join("env"), dir.path().join("uri"));
    let database = format!("file:app.db?vfs=litefs&data={}", uri.display());
    printed(shell(&env, &database, "CREATE TABLE t (x)"));
    assert!(uri.join("dbs/app.db/base").exists());
    assert!(!env.exists());
}

#[test]
fn a_host_without_uris_can_make_it_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new("sqlite3")
        .args(["-batch", "-bail", ":memory:"])
        .args(["-cmd", &format!(".load {} litefs_default_init", library().display())])
        .arg(".open app.db")
        .arg("CREATE TABLE t (x); ATTACH './plain.db' AS plain; CREATE TABLE plain.p (x)")
        .env("LITEFS_DATA_DIR", dir.path().join("data"))
        .current_dir(dir.path())
        .output()
        .unwrap();
    printed(output);
    assert!(dir.path().join("data/dbs/app.db/base").exists());
    assert!(!dir.path().join("app.db").exists());
    assert!(dir.path().join("plain.db").exists(), "a path is a plain file");
}

#[test]
fn a_second_process_is_told_who_holds_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let store = litefs_store::Store::open(dir.path()).unwrap();
    let output = shell(dir.path(), "file:app.db?vfs=litefs", "CREATE TABLE t (x)");
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.contains("unable to open"), "{text}");
    store.close().unwrap();
    printed(shell(dir.path(), "file:app.db?vfs=litefs", "CREATE TABLE t (x)"));
}

#[test]
fn python_uses_the_extension_from_several_threads() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
import threading
def connect():
    return sqlite3.connect("file:app.db?vfs=litefs", uri=True, timeout=60)
db = connect()
assert db.execute("PRAGMA journal_mode = WAL").fetchone()[0] == "wal"
with db:
    db.execute("CREATE TABLE t (who, n)")
def work(who):
    own = connect()
    for n in range(50):
        with own:
            own.execute("INSERT INTO t VALUES (?, ?)", (who, n))
    own.close()
threads = [threading.Thread(target=work, args=(who,)) for who in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
db.execute("BEGIN")
db.execute("DELETE FROM t")
db.rollback()
with sqlite3.connect(sys.argv[2]) as copy:
    db.backup(copy)
print(db.execute("SELECT count(*) FROM t").fetchone()[0])
print(db.execute("PRAGMA integrity_check").fetchone()[0])
"#;
    let copy = dir.path().join("copy.db");
    let output = python_with_the_extension(script)
        .arg(&copy)
        .env("LITEFS_DATA_DIR", dir.path().join("data"))
        .output()
        .unwrap();
    assert_eq!(printed(output), "200\nok");
    assert_eq!(number(&open_plain(&copy), "SELECT count(*) FROM t"), 200);
}

/// Each waits for the writer of its own database, not for that of another one with its name.
#[test]
fn a_writer_waits_as_long_as_it_is_told_whatever_directories_are_open() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
import time
def connect(data):
    uri = f"file:app.db?vfs=litefs&data={data}"
    return sqlite3.connect(uri, uri=True, timeout=2, isolation_level=None)
writers = [(connect(data), connect(data)) for data in sys.argv[2:]]
for db, _ in writers:
    db.execute("CREATE TABLE t (x)")
for first, second in writers:
    first.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    try:
        second.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        print(error, time.monotonic() - started > 1)
    first.execute("ROLLBACK")
"#;
    let output = python_with_the_extension(script)
        .args([dir.path().join("a"), dir.path().join("b")])
        .output()
        .unwrap();
    assert_eq!(printed(output), ["database is locked True"; 2].join("\n"));
}

/// A script's arguments follow the library in `sys.argv`.
fn python_with_the_extension(script: &str) -> Command {
    let load = r#"
import sqlite3, sys
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(sys.argv[1])
loader.close()
"#;
    let mut command = Command::new(python());
    command.args(["-c", &format!("{load}{script}")]).arg(library());
    command
}

/// A Python that can load extensions; some builds cannot.
fn python() -> &'static str {
    let able = "import sqlite3; sqlite3.Connection.enable_load_extension";
    ["python3", "/usr/bin/python3"]
        .into_iter()
        .find(|python| {
            Command::new(python).args(["-c", able]).output().is_ok_and(|out| out.status.success())
        })
        .expect(
            "this test needs a Python whose sqlite3 module can load extensions \
             (Debian: apt install python3)",
        )
}
