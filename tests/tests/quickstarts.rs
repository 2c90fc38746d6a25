//! Risk: README and quick starts do not work as they are written. They are executed to the letter,
//! each in an empty directory and with the network, the mounts and the processes to itself.
//!
//! A block marked `sh` is executed; not one marked `bash`, which takes long or is tested elsewhere.
//! A block marked `text` behind it is what it must have printed, with `…` for anything. One marked
//! `yaml` that begins with a file's name is that file; any other is a part of a configuration.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const BINARY: &str = env!("CARGO_BIN_EXE_litefs-daemon");

/// Printed between the blocks.
const MARK: &str = "--- next block ---";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn read(document: &str) -> String {
    fs::read_to_string(root().join(document)).unwrap_or_else(|error| panic!("{document}: {error}"))
}

/// What is between the fences: language and content.
fn blocks(text: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(language), None) => open = Some((language.to_owned(), String::new())),
            (None, Some((_, content))) => *content += &format!("{line}\n"),
            (None, None) => (),
        }
    }
    assert!(open.is_none(), "a block does not end");
    blocks
}

/// The commands, and what is said of their output.
fn steps(document: &str) -> Vec<(String, Option<String>)> {
    let mut steps: Vec<(String, Option<String>)> = Vec::new();
    for (language, content) in blocks(&read(document)) {
        match language.as_str() {
            "sh" => steps.push((content, None)),
            "yaml" => steps.extend(file_name(&content).map(|name| (write(name, &content), None))),
            "text" => steps.last_mut().expect("commands come first").1 = Some(content),
            _ => (),
        }
    }
    assert!(!steps.is_empty(), "{document} has no commands");
    steps
}

/// The name of the configuration that is shown whole.
fn file_name(yaml: &str) -> Option<&str> {
    yaml.lines().next()?.strip_prefix("# ").filter(|name| name.ends_with(".yml"))
}

/// The command that writes a file.
fn write(name: &str, content: &str) -> String {
    format!("cat >{name} <<'END OF FILE'\n{content}END OF FILE\n")
}

/// True if the text is the pattern, in which `…` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    let mut rest = text;
    for (at, part) in pattern.split('…').enumerate() {
        match rest.find(part) {
            Some(found) if at > 0 || found == 0 => rest = &rest[found + part.len()..],
            _ => return false,
        }
    }
    rest.is_empty() || pattern.ends_with('…')
}

/// Executes a document; `prepare` fills the directory first.
fn execute(document: &str, prepare: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let (bin, place) = (dir.path().join("bin"), dir.path().join("place"));
    fs::create_dir(&bin).unwrap();
    fs::create_dir(&place).unwrap();
    symlink(BINARY, bin.join("litefs-node")).unwrap();
    prepare(&place);
    let steps = steps(document);
    let mut script = "set -eu\nip link set lo up\nip address add 10.0.0.1/32 dev lo\n".to_owned();
    for (commands, _) in &steps {
        script += &format!("{commands}echo '{MARK}'\n");
    }
    // With the shell, as process 1 of its own, everything ends and is unmounted.
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["timeout", "--kill-after=5", "120", "bash", "-c", &script])
        .current_dir(&place)
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    let logs = fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().path());
    let logs = logs.filter(|path| path.extension().is_some_and(|e| e == "log"));
    let logs: String = logs.map(|path| fs::read_to_string(path).unwrap_or_default()).collect();
    assert!(output.status.success(), "{document}: {}\n{printed}\n{error}\n{logs}", output.status);
    for ((commands, expected), got) in steps.iter().zip(printed.split(&format!("{MARK}\n"))) {
        if let Some(expected) = expected {
            let (expected, got) = (expected.trim_end(), got.trim_end());
            assert!(matches(expected, got), "{document}:\n{commands}\nprinted:\n{got}\n{logs}");
        }
    }
}

#[test]
fn the_readme_works_as_it_is_written() {
    execute("README.md", |_| ());
}

/// Parts of a configuration, each for itself.
#[test]
fn the_configurations_that_are_shown_are_understood() {
    let mut checked = 0;
    for document in ["README.md", "docs/operations.md", "docs/guarantees.md"] {
        for (language, content) in blocks(&read(document)) {
            if language != "yaml" || file_name(&content).is_some() {
                continue;
            }
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("litefs.yml");
            fs::write(&file, &content).unwrap();
            let output = Command::new(BINARY).args(["config", "check"]).arg(file).output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{document}:\n{content}\n{error}");
            checked += 1;
        }
    }
    assert!(checked > 0, "the documents have lost their configurations");
}

#[test]
fn the_mounts_quick_start_works_as_it_is_written() {
    execute("docs/quickstart-mount.md", |_| ());
}

#[test]
fn the_clusters_quick_start_works_as_it_is_written() {
    let found = Command::new(root().join("scripts/consul")).output().unwrap();
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    let consul = PathBuf::from(String::from_utf8(found.stdout).unwrap().trim());
    execute("docs/quickstart-cluster.md", |place| {
        symlink(&consul, place.with_file_name("bin").join("consul")).unwrap();
    });
}

/// It takes a LiteFS user's file and data directory.
#[test]
fn the_migration_works_as_it_is_written() {
    execute("docs/migration.md", |place| {
        fs::write(place.join("litefs.yml"), "data:\n  dir: litefs-data\n").unwrap();
        let database = place.join("litefs-data/dbs/app.db");
        fs::create_dir_all(database.join("ltx")).unwrap();
        fs::write(place.join("litefs-data/clusterid"), "LFSC0123456789ABCDEF\n").unwrap();
        let sqlite = litefs_vfs::rusqlite::Connection::open(database.join("database")).unwrap();
        sqlite.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1)").unwrap();
    });
}

#[test]
fn the_vfss_quick_start_shows_the_example_that_is_tested() {
    let example = read("examples/src/bin/app.rs");
    let code = example.split_once("\n\n").unwrap().1;
    assert!(read("docs/quickstart-vfs.md").contains(code), "copy examples/src/bin/app.rs");
}

#[test]
fn a_pattern_is_told_from_its_near_misses() {
    assert!(matches("a…c", "abbc") && matches("a…", "a") && matches("a", "a"));
    assert!(!matches("a…c", "xabc") && !matches("a", "ab") && !matches("a…c", "ab"));
}
