//! Measures litefs beside plain SQLite, in one run on one disk, and prints one table.
//!
//! Both sides take turns in short slices, so that a noisy machine disturbs both; what is printed
//! is the median of the slices and the median of the ratios of neighbouring slices. Absolute
//! numbers mean little elsewhere. Usage: `litefs-benches [--dir DIR] [NAME...]`.
#![forbid(unsafe_code)]

mod commits;
mod database;
mod mount;
mod reads;
mod replication;
mod report;
mod start;

use std::path::PathBuf;

use report::Report;

type Bench = fn(&std::path::Path, &mut Report);

const BENCHES: [(&str, Bench); 10] = [
    ("disk", commits::disk),
    ("commits", commits::single_rows),
    ("bulk", commits::bulk),
    ("reads", reads::points),
    ("beside", reads::beside_a_writer),
    ("start", start::open_a_gigabyte),
    ("delay", replication::delay),
    ("confirmed", replication::confirmed),
    ("catchup", replication::catching_up),
    ("mount", mount::all),
];

fn main() {
    let mut dir = std::env::temp_dir();
    let mut wanted = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            mount::SERVE => {
                let dir = args.next().map(PathBuf::from).expect("a directory");
                let replicas = args.next().and_then(|n| n.parse().ok()).expect("a number");
                return mount::serve(&dir, replicas);
            }
            "--dir" => dir = args.next().map(PathBuf::from).expect("--dir needs a directory"),
            name => wanted.push(name.to_owned()),
        }
    }
    let mut report = Report::new();
    for (name, bench) in BENCHES {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            let scratch = tempfile::tempdir_in(&dir).expect("a directory to measure in");
            bench(scratch.path(), &mut report);
        }
    }
    report.print();
}
