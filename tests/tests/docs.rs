//! Risk: the documents speak of files, functions and programs that are not there any more.

use std::fs;
use std::path::{Path, PathBuf};

const DOCUMENTS: [&str; 15] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "fuzz/README.md",
    "examples/express/README.md",
    "docs/concepts.md",
    "docs/configuration.md",
    "docs/guarantees.md",
    "docs/migration.md",
    "docs/monitoring.md",
    "docs/operations.md",
    "docs/quickstart-cluster.md",
    "docs/quickstart-mount.md",
    "docs/quickstart-vfs.md",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A link: what it shows, and the file that it leads to.
struct Link {
    document: &'static str,
    text: String,
    target: PathBuf,
}

/// All links from the documents to files of the repository.
fn links() -> Vec<Link> {
    let mut links = Vec::new();
    for document in DOCUMENTS {
        let content = read(document);
        let parts: Vec<&str> = content.split("](").collect();
        for pair in parts.windows(2) {
            let text = pair[0].rsplit('[').next().unwrap_or_default().replace('`', "");
            let target = pair[1].split([')', '#']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") {
                let directory = Path::new(document).parent().unwrap_or(Path::new(""));
                links.push(Link { document, text, target: root().join(directory).join(target) });
            }
        }
    }
    assert!(links.len() > 30, "the documents have lost their links");
    links
}

#[test]
fn links_lead_to_files_that_are_there() {
    let broken = links().into_iter().filter(|link| !link.target.exists());
    let broken: Vec<String> =
        broken.map(|link| format!("{}: {}", link.document, link.target.display())).collect();
    assert!(broken.is_empty(), "links to what is not there:\n{}", broken.join("\n"));
}

/// A link that shows `Type::function` or `function` leads to the file that declares it.
#[test]
fn linked_functions_are_in_the_linked_files() {
    let mut missing = Vec::new();
    let in_rust = |link: &Link| link.target.extension().is_some_and(|extension| extension == "rs");
    for link in links().into_iter().filter(in_rust) {
        let is_name = |part: &str| part.chars().all(|c| c.is_alphanumeric() || c == '_');
        if !link.text.split("::").all(is_name) {
            continue; // the name of a file
        }
        let declared = fs::read_to_string(&link.target).unwrap_or_default();
        let name = link.text.rsplit("::").next().unwrap_or_default();
        let declares = |keyword: &str| {
            let start = format!("{keyword} {name}");
            declared.match_indices(&start).any(|(at, _)| {
                let next = declared[at + start.len()..].chars().next();
                next.is_none_or(|c| !c.is_alphanumeric() && c != '_')
            })
        };
        if !["fn", "struct", "enum", "trait"].into_iter().any(declares) {
            missing.push(format!("{}: {} in {}", link.document, link.text, link.target.display()));
        }
    }
    assert!(missing.is_empty(), "named, but not declared there:\n{}", missing.join("\n"));
}

#[test]
fn the_readme_shows_the_example_that_is_tested() {
    let example = read("examples/src/bin/app.rs");
    let code = example.split_once("\n\n").expect("a head and the code").1;
    assert!(read("README.md").contains(code), "copy examples/src/bin/app.rs into README.md");
}

#[test]
fn the_documented_commands_are_in_the_makefile() {
    let makefile = read("Makefile");
    for document in DOCUMENTS {
        let content = read(document);
        let words = content.split('`').flat_map(|part| part.lines());
        for command in words.filter_map(|line| line.strip_prefix("make ")) {
            let target = command.split_whitespace().next().unwrap_or_default();
            assert!(makefile.contains(&format!("\n{target}:")), "{document}: make {target}");
        }
    }
}
