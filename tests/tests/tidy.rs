//! Rules of this repository that no compiler checks. Each failure says where and what to do.

use std::fs;
use std::path::{Path, PathBuf};

/// The longest source file, in lines.
const FILE_LINES: usize = 800;
/// The longest function, in lines.
const FUNCTION_LINES: usize = 120;
/// The longest function outside tests; longer ones are listed in [`LONG_FUNCTIONS`].
const CODE_FUNCTION_LINES: usize = 70;

/// Functions that are longer than [`CODE_FUNCTION_LINES`], with their lengths. A ratchet: nothing
/// is added, and a length is lowered when the function gets shorter.
const LONG_FUNCTIONS: [(&str, &str, usize); 0] = [];

/// The longest comment line, in columns, as rustfmt has it for code.
const COMMENT_COLUMNS: usize = 100;

/// Crates that talk to C. All others forbid `unsafe`.
const UNSAFE_CRATES: [&str; 1] = ["vfs"];

/// Crates that must say `#![forbid(unsafe_code)]` at their root.
const SAFE_LIBRARIES: [&str; 5] = ["ltx", "store", "fuse", "node", "web"];

/// This file, relative to the repository's root.
const THIS_FILE: &str = "tests/tests/tidy.rs";

/// Directories that hold no source of ours.
const SKIPPED: [&str; 8] =
    [".git", "target", "node_modules", "corpus", "artifacts", "coverage", "data", "dbs"];

/// A text file of the repository.
struct Source {
    /// Relative to the repository's root.
    path: PathBuf,
    text: String,
}

impl Source {
    fn is_rust(&self) -> bool {
        self.path.extension().is_some_and(|extension| extension == "rs")
    }

    fn crate_dir(&self) -> &str {
        self.path.iter().next().and_then(|part| part.to_str()).unwrap_or_default()
    }

    /// True for tests, and for what only serves them.
    fn is_test(&self) -> bool {
        let named = |part: &str| self.path.iter().any(|piece| piece == part);
        let stem = self.path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        named("tests")
            || named("sim_tests")
            || named("fuzz")
            || stem == "tests"
            || stem.ends_with("_tests")
    }

    /// The lines that are code: no comments, and nothing from the module of unit tests on.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let end = self.text.find("\n#[cfg(test)]\nmod tests {").unwrap_or(self.text.len());
        let numbered = self.text[..end].lines().enumerate().map(|(index, line)| (index + 1, line));
        numbered.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    fn at(&self, line: usize) -> String {
        format!("{}:{line}", self.path.display())
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository")
}

/// All text files of the repository.
fn sources() -> Vec<Source> {
    let mut sources = Vec::new();
    let mut directories = vec![root().to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                if !SKIPPED.iter().any(|skipped| entry.file_name() == *skipped) {
                    directories.push(path);
                }
            } else if let Ok(text) = fs::read_to_string(&path) {
                let path = path.strip_prefix(root()).unwrap().to_path_buf();
                sources.push(Source { path, text });
            }
        }
    }
    assert!(sources.iter().any(Source::is_rust), "no sources below {}", root().display());
    sources
}

/// All Rust files but this one, which names what it forbids.
fn rust_sources() -> impl Iterator<Item = Source> {
    sources().into_iter().filter(|source| source.is_rust() && !source.path.ends_with(THIS_FILE))
}

/// Fails with all findings at once.
fn check(rule: &str, findings: Vec<String>) {
    assert!(findings.is_empty(), "{rule}\n{}\n", findings.join("\n"));
}

/// Each function's name, first line and length in lines. Relies on rustfmt: a body ends with the
/// brace that is indented as the declaration is.
fn functions(text: &str) -> Vec<(&str, usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let declared =
        lines.iter().enumerate().filter_map(|(at, line)| Some((function_name(line)?, at)));
    declared.map(|(name, at)| (name, at + 1, function_length(&lines[at..]))).collect()
}

/// The length of the function that begins with the first line.
fn function_length(lines: &[&str]) -> usize {
    let declared = |line: &&str| line.ends_with(['{', ';', '}']);
    let Some(signature) = lines.iter().position(declared) else { return lines.len() };
    if !lines[signature].ends_with('{') {
        return signature + 1;
    }
    let indent = lines[0].len() - lines[0].trim_start().len();
    let closes = |line: &&str| line.trim_start() == "}" && line.len() == indent + 1;
    lines.iter().position(closes).map_or(lines.len(), |last| last + 1)
}

/// The name of the function whose declaration begins on this line.
fn function_name(line: &str) -> Option<&str> {
    const BEFORE: [&str; 9] = [
        "pub",
        "pub(crate)",
        "pub(super)",
        "async",
        "const",
        "unsafe",
        "extern",
        "\"C\"",
        "default",
    ];
    let mut words = line.split_whitespace().skip_while(|word| BEFORE.contains(word));
    let name = (words.next() == Some("fn")).then(|| words.next())?;
    name?.split(['(', '<']).next()
}

#[test]
fn files_and_functions_stay_short() {
    let mut findings = Vec::new();
    let mut long = Vec::new();
    for source in rust_sources() {
        let lines = source.text.lines().count();
        if lines > FILE_LINES {
            findings.push(format!("{}: {lines} lines, at most {FILE_LINES}", source.at(1)));
        }
        let code_end = source.code().last().map_or(0, |(line, _)| line);
        for (name, line, length) in functions(&source.text) {
            let is_code = !source.is_test() && line <= code_end;
            if length > FUNCTION_LINES {
                findings.push(format!("{}: {name} has {length} lines", source.at(line)));
            } else if is_code && length > CODE_FUNCTION_LINES {
                long.push((source.path.display().to_string(), name.to_owned(), length));
            }
        }
    }
    let listed = LONG_FUNCTIONS.map(|(path, name, len)| (path.to_owned(), name.to_owned(), len));
    for (path, name, length) in long.iter().filter(|function| !listed.contains(function)) {
        findings
            .push(format!("{path}: {name} has {length} lines, more than {CODE_FUNCTION_LINES}"));
    }
    for (path, name, _) in listed.iter().filter(|function| !long.contains(function)) {
        findings.push(format!("{path}: {name} has another length now: lower the ratchet"));
    }
    check("split what is too long: one thing per file and per function", findings);
}

/// True for a comment that is too long and could be broken: not a table's row, nor an address.
fn is_overlong_comment(line: &str) -> bool {
    let Some(comment) = line.trim_start().strip_prefix("//") else { return false };
    let text = comment.trim_start_matches(['/', '!']).trim_start();
    let breakable = !text.starts_with('|') && !text.contains("://");
    breakable && line.chars().count() > COMMENT_COLUMNS
}

#[test]
fn comments_are_no_wider_than_code() {
    let mut findings = Vec::new();
    for source in rust_sources() {
        let lines = source.text.lines().enumerate();
        let long = lines.filter(|(_, line)| is_overlong_comment(line));
        findings.extend(long.map(|(index, _)| source.at(index + 1)));
    }
    check("break the line after 100 columns at most", findings);
}

#[test]
fn nothing_unfinished_is_left_behind() {
    let forbidden = ["FIXME", "XXX", "todo!(", "unimplemented!(", "dbg!(", "#[ignore"];
    let mut findings = Vec::new();
    for source in rust_sources() {
        for (index, line) in source.text.lines().enumerate() {
            for word in forbidden.iter().filter(|word| line.contains(**word)) {
                findings.push(format!("{}: {word}", source.at(index + 1)));
            }
        }
    }
    check("finish it, or open an issue and leave the code without a trace", findings);
}

#[test]
fn only_the_crates_that_talk_to_c_have_unsafe_code() {
    let mut findings = Vec::new();
    for source in rust_sources() {
        if UNSAFE_CRATES.contains(&source.crate_dir()) {
            continue;
        }
        let word = |line: &str| {
            line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == "unsafe")
        };
        for (line, text) in source.code().filter(|(_, text)| word(text)) {
            findings.push(format!("{}: {}", source.at(line), text.trim()));
        }
    }
    for library in SAFE_LIBRARIES {
        let path = root().join(library).join("src/lib.rs");
        if !fs::read_to_string(&path).unwrap().contains("#![forbid(unsafe_code)]") {
            findings.push(format!("{}: no #![forbid(unsafe_code)]", path.display()));
        }
    }
    check("unsafe code belongs into vfs, behind a safe interface", findings);
}

#[test]
fn every_file_begins_by_saying_what_it_is() {
    let silent = |source: &Source| !source.text.starts_with("//! ");
    let findings = rust_sources().filter(silent).map(|source| source.at(1)).collect();
    check("begin the file with //! and one sentence", findings);
}

/// What runs on a user's data says what is wrong instead of panicking; an `expect` states an
/// invariant whose breach is a bug.
#[test]
fn code_outside_tests_does_not_unwrap() {
    let ours = ["ltx", "store", "vfs", "node", "fuse", "web"];
    let mut findings = Vec::new();
    for source in rust_sources() {
        let simulation = source.path.starts_with("store/src/sim");
        let example = source.path.iter().any(|part| part == "examples");
        if !ours.contains(&source.crate_dir()) || source.is_test() || simulation || example {
            continue;
        }
        for (line, text) in source.code() {
            let unexplained = text.contains(".expect(\"") && !text.contains(".expect(\"BUG: ");
            if text.contains(".unwrap()") || unexplained {
                findings.push(format!("{}: {}", source.at(line), text.trim()));
            }
        }
    }
    check("return an error, or .expect(\"BUG: <the invariant>\")", findings);
}

/// Crash tests see only what goes through the trait.
#[test]
fn the_store_touches_files_through_its_storage_trait_only() {
    let exempt = ["store/src/storage.rs", "store/src/storage/direct.rs"].map(Path::new);
    let mut findings = Vec::new();
    for source in rust_sources().filter(|source| source.path.starts_with("store/src")) {
        if exempt.contains(&source.path.as_path()) || source.is_test() {
            continue;
        }
        for (line, text) in source.code().filter(|(_, text)| text.contains("std::fs")) {
            findings.push(format!("{}: {}", source.at(line), text.trim()));
        }
    }
    check("use the Storage trait", findings);
}

/// Dependencies come from the default registry, whatever mirror a developer's machine uses.
#[test]
fn no_registry_is_named() {
    let standard = concat!("registry+https://github.com/rust-lang/", "crates.io-index");
    let marks = ["registry+", "sparse+", "[source.", "[registries"];
    let mut findings = Vec::new();
    for source in sources().into_iter().filter(|source| !source.path.ends_with(THIS_FILE)) {
        let lock = source.path.file_name().is_some_and(|name| name == "Cargo.lock");
        for (index, line) in source.text.lines().enumerate() {
            let named = marks.iter().any(|mark| line.contains(mark));
            if named && !(lock && line == format!("source = \"{standard}\"")) {
                findings.push(format!("{}: {line}", source.at(index + 1)));
            }
        }
        if source.path.starts_with(".cargo") {
            findings.push(format!("{}: settings of one machine", source.path.display()));
        }
    }
    check("leave the registry to each machine's own settings", findings);
}

#[test]
fn only_a_comment_that_could_be_broken_is_too_long() {
    let words = "word ".repeat(19); // 95 columns
    assert!(is_overlong_comment(&format!("/// {words}too")));
    assert!(is_overlong_comment(&format!("    //! {words}x")));
    assert!(!is_overlong_comment(&format!("// {words}it")));
    assert!(!is_overlong_comment(&format!("//! | {words}| cells |")));
    assert!(!is_overlong_comment(&format!("// {words}https://sqlite.org")));
    assert!(!is_overlong_comment(&format!("let text = {words}no_comment;")));
}

#[test]
fn a_function_is_measured_from_its_declaration_to_its_brace() {
    let text = "\
fn one() {}

pub(crate) async fn two<T>(
    a: T,
) -> T {
    a
}

impl X {
    const fn three(self) -> u8 {
        1
    }

    fn four(&self);
}
";
    assert_eq!(functions(text), [("one", 1, 1), ("two", 3, 5), ("three", 10, 3), ("four", 14, 1)]);
}
