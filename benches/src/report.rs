//! Medians, ratios and the table.

use std::time::Duration;

/// Collects rows and prints them as one table.
pub struct Report {
    rows: Vec<[String; 4]>,
}

impl Report {
    /// Without rows.
    pub fn new() -> Self {
        Self { rows: Vec::new() }
    }

    /// Adds a row: what was measured, plain SQLite's figure, ours, and the ratio or target.
    pub fn row(&mut self, what: &str, plain: String, ours: String, ratio: String) {
        eprintln!("{what}: {plain} | {ours} | {ratio}");
        self.rows.push([what.to_owned(), plain, ours, ratio]);
    }

    /// Adds a row from slices of both sides, in operations a second, measured in turns.
    pub fn rates(&mut self, what: &str, plain: &[f64], ours: &[f64]) {
        let ratios: Vec<f64> = ours.iter().zip(plain).map(|(ours, plain)| ours / plain).collect();
        let rate = |slices: &[f64]| format!("{:.0}/s", median(slices));
        self.row(what, rate(plain), rate(ours), format!("{:.2} x", median(&ratios)));
    }

    /// Prints everything.
    pub fn print(&self) {
        let head = ["what", "plain SQLite", "litefs", "ratio"].map(str::to_owned);
        let width = |column: usize| {
            let cells = std::iter::once(&head).chain(&self.rows);
            cells.map(|row| row[column].chars().count()).max().unwrap_or(0)
        };
        let widths = [0, 1, 2, 3].map(width);
        for row in std::iter::once(&head).chain(&self.rows) {
            let [a, b, c, d] = row;
            let [w0, w1, w2, w3] = widths;
            println!("{a:<w0$}  {b:>w1$}  {c:>w2$}  {d:>w3$}");
        }
    }
}

/// The middle value.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// The value below which a share of the values lies.
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = ((sorted.len() as f64 - 1.0) * share).round() as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

/// Operations a second.
pub fn rate(operations: usize, elapsed: Duration) -> f64 {
    operations as f64 / elapsed.as_secs_f64()
}
