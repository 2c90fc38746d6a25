//! The ledger of all attempts to commit, outside of the processes that are killed, and what must be
//! true of it. Times are CLOCK_MONOTONIC, which all processes of the machine share.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Add, Sub};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A moment on the machine's monotonic clock, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(i64);

impl Moment {
    /// This one.
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        Self(now.tv_sec * 1_000_000_000 + now.tv_nsec)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;
    fn add(self, time: Duration) -> Self {
        Self(self.0 + i64::try_from(time.as_nanos()).unwrap())
    }
}

/// Zero if the other one is later.
impl Sub for Moment {
    type Output = Duration;
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0 - earlier.0).unwrap_or(0))
    }
}

/// What became of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was said: its process is at it, or was killed then. It may be there or not.
    Open,
    /// The commit returned.
    Acked(Moment),
    /// An error was returned then: it must not be there, if its node was alive all the time.
    Refused(Moment, String),
}

/// An attempt to commit one row.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The row.
    pub id: i64,
    /// The node on which it was tried.
    pub node: usize,
    /// When.
    pub begun: Moment,
    /// And then.
    pub outcome: Outcome,
}

impl Attempt {
    /// When it was acknowledged.
    pub fn acked(&self) -> Option<Moment> {
        match self.outcome {
            Outcome::Acked(at) => Some(at),
            _ => None,
        }
    }
}

/// A row as it stands in a database: where in the order of commits, and which.
pub type Row = (i64, i64);

/// All attempts on all nodes. Clones are the same ledger.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    attempts: Arc<Mutex<BTreeMap<i64, Attempt>>>,
    kills: Arc<Mutex<Vec<(usize, Moment)>>>,
}

impl Ledger {
    /// Takes note of what a writer said of a row: `begin ID TIME`, `acked ID TIME`, or `refused ID
    /// TIME WHY`.
    pub fn note(&self, node: usize, line: &str) {
        let mut words = line.splitn(4, ' ');
        let mut word = || words.next().unwrap_or_else(|| panic!("half a line: {line}"));
        let (what, id, at) = (word(), word().parse().unwrap(), Moment(word().parse().unwrap()));
        let mut attempts = self.attempts.lock().unwrap();
        if what == "begin" {
            let attempt = Attempt { id, node, begun: at, outcome: Outcome::Open };
            assert!(attempts.insert(id, attempt).is_none(), "row {id} was tried before");
            return;
        }
        let attempt = attempts.get_mut(&id).expect("it was begun");
        assert_eq!(attempt.outcome, Outcome::Open, "{line}");
        attempt.outcome = match what {
            "acked" => Outcome::Acked(at),
            "refused" => Outcome::Refused(at, word().to_owned()),
            _ => panic!("unexpected line: {line}"),
        };
    }

    /// Takes note of a node's death: a client that it leaves behind gets an error, whatever became
    /// of its commit.
    pub fn note_kill(&self, node: usize) {
        self.kills.lock().unwrap().push((node, Moment::now()));
    }

    fn was_killed_during(&self, attempt: &Attempt, end: Moment) -> bool {
        let kills = self.kills.lock().unwrap();
        kills.iter().any(|(node, at)| *node == attempt.node && (attempt.begun..=end).contains(at))
    }

    /// Those that a filter wants, in the order of their rows' numbers.
    pub fn attempts(&self, mut wanted: impl FnMut(&Attempt) -> bool) -> Vec<Attempt> {
        self.attempts.lock().unwrap().values().filter(|attempt| wanted(attempt)).cloned().collect()
    }

    /// The acknowledged attempts of a node.
    pub fn acked(&self, node: usize) -> Vec<Attempt> {
        self.attempts(|attempt| attempt.node == node && attempt.acked().is_some())
    }

    /// When a node acknowledged its newest row.
    pub fn last_ack(&self, node: usize) -> Option<Moment> {
        self.acked(node).iter().filter_map(Attempt::acked).max()
    }

    /// The first row that one of these nodes acknowledged after that moment.
    pub fn first_after(&self, nodes: &[usize], moment: Moment) -> Option<Attempt> {
        let wanted =
            |attempt: &Attempt| nodes.contains(&attempt.node) && attempt.acked() > Some(moment);
        self.attempts(wanted).into_iter().min_by_key(Attempt::acked)
    }

    /// A node that lost touch at `since` for `right` acknowledges nothing that was begun later,
    /// until `healed`. The check is at the commit point: what was begun earlier may be reported
    /// later, on a machine that has other things to do.
    pub fn assert_fenced(&self, node: usize, since: Moment, right: Duration, healed: Moment) {
        let late =
            |attempt: &Attempt| attempt.begun > since + right && attempt.acked() < Some(healed);
        let late: Vec<_> = self.acked(node).into_iter().filter(late).collect();
        let (count, first) = (late.len(), late.first());
        assert!(late.is_empty(), "{count} acknowledged too late, cut off at {since:?}: {first:?}");
    }

    /// The longest time around `moment`, up to `until`, in which no node acknowledged anything.
    pub fn gap(&self, moment: Moment, until: Moment) -> Duration {
        let mut acks: Vec<_> = self.attempts(|_| true).iter().filter_map(Attempt::acked).collect();
        acks.sort();
        let around = |pair: &&[Moment]| pair[1] >= moment && pair[0] <= until;
        let gaps = acks.windows(2).filter(around).map(|pair| pair[1] - pair[0]);
        gaps.max().expect("commits on both sides")
    }

    /// What the nodes agreed on must tell the same story as the ledger; `kept` are the rows of the
    /// transactions that a node had and the cluster did not keep, each time that it was so.
    ///
    /// Returns how many acknowledged rows are among the latter.
    pub fn check(&self, history: &[Row], kept: &[(usize, Vec<Row>)]) -> usize {
        let attempts = self.attempts.lock().unwrap();
        let present: BTreeSet<i64> = history.iter().map(|row| row.1).collect();
        let mut aside = 0;
        for attempt in attempts.values() {
            let is_kept = || {
                let mut own = kept.iter().filter(|(node, _)| *node == attempt.node);
                own.any(|(_, rows)| rows.iter().any(|row| row.1 == attempt.id))
            };
            match &attempt.outcome {
                Outcome::Acked(_) if present.contains(&attempt.id) => {}
                Outcome::Acked(_) => {
                    assert!(is_kept(), "acknowledged, and lost without a trace: {attempt:?}");
                    aside += 1;
                }
                Outcome::Refused(end, why) => {
                    let there = present.contains(&attempt.id);
                    // The right to commit ended, or replicas were silent, when it was made already.
                    let unsure = why.contains("I/O");
                    let unknown = unsure || self.was_killed_during(attempt, *end);
                    assert!(!there || unknown, "refused, but there: {attempt:?}");
                }
                Outcome::Open => {}
            }
        }
        let unknown = present.iter().find(|id| !attempts.contains_key(id));
        assert_eq!(unknown, None, "a row that nobody wrote");
        check_order(&attempts, history);
        for (_, rows) in kept {
            check_branch(&attempts, history, rows);
        }
        aside
    }
}

/// No commit stands before one that had been acknowledged before it was even begun: else two nodes
/// have acknowledged at once, or something was applied twice.
fn check_order(attempts: &BTreeMap<i64, Attempt>, history: &[Row]) {
    let mut latest: Option<&Attempt> = None;
    for attempt in history.iter().map(|row| &attempts[&row.1]) {
        if let (Some(latest), Some(acked)) = (latest, attempt.acked()) {
            assert!(acked >= latest.begun, "{attempt:?} stands behind {latest:?}");
        }
        latest = latest.filter(|latest| latest.begun >= attempt.begun).or(Some(attempt));
    }
}

/// What the cluster did not keep was begun before the other branch acknowledged anything.
fn check_branch(attempts: &BTreeMap<i64, Attempt>, history: &[Row], branch: &[Row]) {
    let shared: BTreeSet<&Row> = history.iter().collect();
    let own: Vec<&Row> = branch.iter().filter(|row| !shared.contains(row)).collect();
    let Some(fork) = own.iter().map(|row| row.0).min() else { return };
    let acked = |row: &Row| attempts[&row.1].acked().map(|at| (at, row.1));
    let others = history.iter().filter(|row| row.0 >= fork);
    let Some((first, id)) = others.filter_map(acked).min() else { return };
    for row in own {
        let lost = attempts.get(&row.1).expect("a row that nobody wrote");
        let late = lost.acked().is_some() && lost.begun > first;
        assert!(!late, "two nodes acknowledged at once: {lost:?}, after {:?}", attempts[&id]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows 1 to 4 of node 0, acknowledged at 11 to 14; 5 and 6 of node 1, at 25 and 26.
    fn ledger() -> Ledger {
        let ledger = Ledger::default();
        for (node, id) in [(0, 1), (0, 2), (0, 3), (0, 4), (1, 5), (1, 6)] {
            let begun = if node == 0 { id + 9 } else { id + 19 };
            ledger.note(node, &format!("begin {id} {begun} "));
            ledger.note(node, &format!("acked {id} {} ", begun + 1));
        }
        ledger
    }

    fn history(ids: &[i64]) -> Vec<Row> {
        ids.iter().enumerate().map(|(place, &id)| (place as i64, id)).collect()
    }

    #[test]
    fn what_was_kept_aside_is_counted_and_what_is_nowhere_is_lost() {
        assert_eq!(ledger().check(&history(&[1, 2, 3, 4, 5, 6]), &[]), 0);
        let kept = [(0, history(&[1, 2, 3, 4]))];
        assert_eq!(ledger().check(&history(&[1, 2, 5, 6]), &kept), 2);
        let lost = std::panic::catch_unwind(|| ledger().check(&history(&[1, 2, 5, 6]), &[]));
        assert!(lost.is_err());
        let of_another = [(1, history(&[1, 2, 3, 4]))];
        let lost =
            std::panic::catch_unwind(|| ledger().check(&history(&[1, 2, 5, 6]), &of_another));
        assert!(lost.is_err());
    }

    #[test]
    fn two_that_acknowledge_at_once_are_found_on_one_branch_and_on_two() {
        // Node 1's commits stand before what node 0 had acknowledged earlier.
        let wrong = std::panic::catch_unwind(|| ledger().check(&history(&[1, 2, 5, 6, 3, 4]), &[]));
        assert!(wrong.is_err());
        // Node 0 goes on after node 1 has begun another branch behind row 2.
        let ledger = ledger();
        ledger.note(0, "begin 7 30 ");
        ledger.note(0, "acked 7 31 ");
        let kept = [(0, history(&[1, 2, 3, 4, 7]))];
        let wrong = std::panic::catch_unwind(|| ledger.check(&history(&[1, 2, 5, 6]), &kept));
        assert!(wrong.is_err());
    }

    #[test]
    fn a_refused_row_must_not_be_there_unless_nobody_could_know() {
        let refused = |why| {
            let ledger = ledger();
            ledger.note(0, "begin 7 30 ");
            ledger.note(0, &format!("refused 7 {} {why}", i64::MAX));
            ledger
        };
        let rows = history(&[1, 2, 3, 4, 5, 6, 7]);
        let clear = || refused("attempt to write a readonly database");
        assert!(std::panic::catch_unwind(|| clear().check(&rows, &[])).is_err());
        let killed = clear();
        killed.note_kill(0);
        killed.check(&rows, &[]);
        refused("disk I/O error").check(&rows, &[]);
    }

    #[test]
    fn a_late_acknowledgement_is_found() {
        let ledger = ledger();
        let fenced = |right| {
            let right = Duration::from_nanos(right);
            std::panic::catch_unwind(|| ledger.assert_fenced(0, Moment(5), right, Moment(100)))
        };
        assert!(fenced(7).is_err(), "row 4 was begun at 13");
        assert!(fenced(8).is_ok());
        assert_eq!(ledger.gap(Moment(12), Moment(30)), Duration::from_nanos(11));
    }
}
