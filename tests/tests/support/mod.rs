//! Children that are killed, and the ledger of what they said.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

/// A running `litefs-test-app`; killed when dropped.
pub struct App {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl App {
    /// Starts it.
    pub fn start(args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_litefs-test-app"));
        let mut child = command.args(args).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    /// Waits for its next line; `None` at its end.
    pub fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.out.read_line(&mut line).unwrap();
        (read > 0).then(|| line.trim_end().to_owned())
    }

    /// Kills it like a power switch, and returns what it had said and was not read yet.
    pub fn kill(mut self) -> Vec<String> {
        assert!(self.child.try_wait().unwrap().is_none(), "the app ended by itself");
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::iter::from_fn(|| self.line()).collect()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the app said of each row: outside the processes that are killed.
#[derive(Debug, Default)]
pub struct Ledger {
    acked: BTreeSet<i64>,
    undone: BTreeSet<i64>,
    open: Option<i64>,
}

impl Ledger {
    /// Takes note of one line.
    pub fn note(&mut self, line: &str) {
        let (what, id) = line.split_once(' ').unwrap();
        let id = id.parse().unwrap();
        match what {
            "begin" => self.open = Some(id),
            "acked" => _ = self.acked.insert(self.open.take().filter(|&open| open == id).unwrap()),
            "undone" => {
                _ = self.undone.insert(self.open.take().filter(|&open| open == id).unwrap())
            }
            "ready" => {}
            other => panic!("unexpected line {other}"),
        }
    }

    /// Rows that were acknowledged so far.
    pub fn acked(&self) -> usize {
        self.acked.len()
    }

    /// Compares with the rows that are there. What was being committed at the kill may be there.
    pub fn check(&mut self, present: &BTreeSet<i64>) {
        let lost: Vec<_> = self.acked.difference(present).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        if let Some(open) = self.open.take()
            && present.contains(&open)
        {
            self.acked.insert(open);
        }
        let extra: Vec<_> = present.difference(&self.acked).collect();
        assert!(extra.is_empty(), "never acknowledged, but there: {extra:?}");
    }

    /// The first row that was never tried.
    pub fn next(&self) -> i64 {
        let last = |rows: &BTreeSet<i64>| rows.last().copied().unwrap_or(0);
        last(&self.acked).max(last(&self.undone)).max(self.open.unwrap_or(0)) + 1
    }
}

/// A number of rounds: from the environment, or the one for every run.
pub fn rounds(variable: &str, usual: u32) -> u32 {
    std::env::var(variable).map_or(usual, |text| text.parse().unwrap())
}
