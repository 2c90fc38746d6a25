//! The ledger of what children said before they were killed.

use std::collections::BTreeSet;

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
        self.check_kept(present);
        if let Some(open) = self.open.take()
            && present.contains(&open)
        {
            self.acked.insert(open);
        }
        let extra: Vec<_> = present.difference(&self.acked).collect();
        assert!(extra.is_empty(), "never acknowledged, but there: {extra:?}");
    }

    /// Fails if a row that was acknowledged is not there. Others may be.
    pub fn check_kept(&self, present: &BTreeSet<i64>) {
        let lost: Vec<_> = self.acked.difference(present).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
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
