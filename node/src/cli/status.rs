//! `status`: what a node says about itself, once, as JSON, or over and over.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use clap::Args;
use http_body_util::Empty;
use hyper::body::Bytes;

use super::client::{Client, read_text};
use super::node_args::NodeArgs;
use super::{CliError, CliResult};
use crate::http::{DatabaseInfo, Info, LeaseInfo, ReplicationInfo};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// Moves a terminal's cursor to the top and erases everything.
const CLEAR: &str = "\x1b[H\x1b[J";

#[derive(Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Print the node's answer as it is
    #[arg(long)]
    json: bool,
    /// Look again each second, until interrupted
    #[arg(long, conflicts_with = "json")]
    watch: bool,
}

pub(super) fn run(args: &StatusArgs) -> CliResult {
    let client = args.node.client()?;
    if args.watch {
        return watch(&client, client.url());
    }
    let text = ask(&client)?;
    if args.json {
        say!("{}", text.trim_end());
        return Ok(());
    }
    say!("{}", render(&parse(&text, client.url())?, None).trim_end());
    Ok(())
}

fn ask(client: &Client) -> Result<String, CliError> {
    client.block_on(async {
        read_text(client.send("GET", "/info", None, Empty::<Bytes>::new()).await?).await
    })
}

fn parse(text: &str, url: &str) -> Result<Info, CliError> {
    serde_json::from_str(text).map_err(|e| CliError::new(format!("{url} is no litefs node: {e}")))
}

fn watch(client: &Client, url: &str) -> CliResult {
    let mut out = io::stdout();
    let clear = if out.is_terminal() { CLEAR } else { "\n" };
    let mut rates = Rates::default();
    loop {
        // A node that is being restarted comes back.
        let shown = match ask(client).and_then(|text| parse(&text, url)) {
            Ok(info) => {
                rates.note(Instant::now(), &info);
                render(&info, Some(&rates))
            }
            Err(error) => format!("{}\n", error.0),
        };
        write!(out, "{clear}{shown}")?;
        out.flush()?;
        std::thread::sleep(PAUSE);
    }
}

/// How fast each database's position moves, from two looks.
#[derive(Default)]
struct Rates {
    before: Option<(Instant, BTreeMap<String, u64>)>,
    per_second: BTreeMap<String, f64>,
}

impl Rates {
    fn note(&mut self, now: Instant, info: &Info) {
        let txid = |db: &DatabaseInfo| {
            let hex = db.position.split('/').next().unwrap_or_default();
            u64::from_str_radix(hex, 16).unwrap_or(0)
        };
        let current: BTreeMap<String, u64> =
            info.databases.iter().map(|(name, db)| (name.clone(), txid(db))).collect();
        if let Some((then, before)) = &self.before {
            let seconds = now.duration_since(*then).as_secs_f64().max(0.001);
            let rate = |(name, &txid): (&String, &u64)| {
                let moved = txid.saturating_sub(*before.get(name)?);
                Some((name.clone(), moved as f64 / seconds))
            };
            self.per_second = current.iter().filter_map(rate).collect();
        }
        self.before = Some((now, current));
    }
}

fn render(info: &Info, rates: Option<&Rates>) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name:<9} {value}");
    };
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    line("cluster", &or_dash(info.cluster_id.as_deref().unwrap_or_default()));
    line("node", &info.node_id);
    line("role", &info.role);
    line("lease", &lease(&info.lease, info.candidate));
    line("primary", &or_dash(&info.primary.hostname));
    if let Some(why) = &info.disconnected {
        line("link", &format!("no connection to the primary: {why}"));
    }
    line("lag", &info.lag_ms.map_or("not in sync yet".to_owned(), |ms| format!("{ms} ms")));
    line("data", &info.path);
    line("version", &info.version);
    for replica in &info.replicas {
        let lag = replica.lag_ms.map_or("not in sync yet".to_owned(), |ms| format!("lag {ms} ms"));
        let behind = replica.unacknowledged_transactions;
        let (node, name, addr) = (&replica.node, &replica.hostname, &replica.addr);
        line("replica", &format!("{node} {name} {addr}, {lag}, {behind} transactions behind"));
    }
    if let Some(replication) = &info.replication {
        line("commits", &commits(replication));
    }
    if !info.databases.is_empty() {
        out.push('\n');
        out.push_str(&table(info, rates));
    }
    for (name, db) in &info.databases {
        troubles(name, db, &mut out);
    }
    out
}

fn lease(lease: &LeaseInfo, candidate: bool) -> String {
    let mut text =
        format!("{}, {}, epoch {}", or(&lease.kind, "?"), or(&lease.role, "?"), lease.epoch);
    if let Some(left) = lease.right_left_ms {
        let _ = write!(text, ", may commit for {left} ms without renewal");
    }
    if !candidate {
        text.push_str(", no candidate");
    }
    if !lease.reason.is_empty() {
        let _ = write!(text, ": {}", lease.reason);
    }
    if let Some(trouble) = &lease.trouble {
        let _ = write!(text, "\n          {trouble}");
    }
    text
}

/// What commits wait for.
fn commits(replication: &ReplicationInfo) -> String {
    let mut text = replication.mode.clone();
    if !replication.sync_set.is_empty() {
        text += &format!(", confirmed by {}", replication.sync_set.join(", "));
    }
    if replication.fallen_back {
        text += ", acknowledged without replicas, which did not confirm in time";
    }
    if replication.waiting > 0 {
        text += &format!(", {} wait", replication.waiting);
    }
    text
}

fn or<'a>(text: &'a str, other: &'a str) -> &'a str {
    if text.is_empty() { other } else { text }
}

fn table(info: &Info, rates: Option<&Rates>) -> String {
    let widest = info.databases.keys().map(|name| name.chars().count()).max().unwrap_or(0).max(8);
    let rate_title = if rates.is_some() { format!("{:>9}  ", "tx/s") } else { String::new() };
    let mut out = format!(
        "{:<widest$}  {:<33}  {rate_title}{:>9}  {:>5}  {:>8}  {:>12}  {:>12}  state\n",
        "database", "position", "pages", "size", "lag ms", "mark", "log bytes"
    );
    for (name, db) in &info.databases {
        let rate = rates.map(|rates| rates.per_second.get(name).copied().unwrap_or(0.0));
        let rate = rate.map_or(String::new(), |rate| format!("{rate:>9.1}  "));
        let _ = writeln!(
            out,
            "{name:<widest$}  {:<33}  {rate}{:>9}  {:>5}  {:>8}  {:>12}  {:>12}  {}",
            db.position,
            db.page_count,
            db.page_size,
            db.lag_ms,
            or(db.mark.trim_start_matches('0'), "0"),
            db.log_bytes,
            state(db)
        );
    }
    out
}

/// In one word; [`troubles`] says more.
fn state(db: &DatabaseInfo) -> &'static str {
    match db {
        DatabaseInfo { quarantined: Some(_), .. } => "quarantined",
        DatabaseInfo { poisoned: Some(_), .. } => "read-only",
        DatabaseInfo { stopped: Some(_), .. } => "not followed",
        _ if !db.diverged.is_empty() => "ok, diverged kept",
        _ => "ok",
    }
}

fn troubles(name: &str, db: &DatabaseInfo, out: &mut String) {
    let reasons = [
        ("quarantined, served to nobody", &db.quarantined),
        ("read-only until reopened", &db.poisoned),
        ("does not follow the primary's", &db.stopped),
    ];
    for (what, reason) in reasons {
        if let Some(reason) = reason {
            let _ = writeln!(out, "{name}: {what}: {reason}");
        }
    }
    for kept in &db.diverged {
        let count = kept.transactions.map_or("some".to_owned(), |count| count.to_string());
        let at =
            if kept.kept_at.is_empty() { String::new() } else { format!(" at {}", kept.kept_at) };
        let _ = writeln!(
            out,
            "{name}: kept {count} transactions{at} that the cluster did not keep: {}",
            kept.name
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(txid: u64) -> Info {
        let answer = format!(
            r#"{{"isPrimary":false,"candidate":false,"path":"/d","primary":{{"hostname":""}},
            "nodeID":"00000000000000AB","role":"disconnected","version":"1",
            "disconnected":"no answer",
            "lease":{{"type":"consul","role":"candidate","epoch":7,"reason":"waiting",
            "rightLeftMs":900}},
            "replication":{{"mode":"sync","syncSet":["00000000000000CD"],"fallenBack":false,
            "waiting":2}},
            "replicas":[{{"node":"00000000000000CD","hostname":"n2","addr":"10.0.0.2:1",
            "lagMs":12,"unacknowledgedTransactions":3}}],
            "databases":{{"a.db":{{"position":"{txid:016x}/8000000000000001","pageCount":3,
            "pageSize":4096,"mark":"0000000000000001","logBytes":9000,"lagMs":44,
            "quarantined":"page 2","poisoned":"cannot sync","stopped":"the disk is full",
            "diverged":[{{"name":"a.db/1-2-3","newest":"2/8","transactions":7,
            "keptAt":"2026-01-01T00:00:00.000Z","whole":true,
            "path":"dbs/a.db/diverged/1-2-3"}}]}}}}}}"#
        );
        serde_json::from_str(&answer).unwrap()
    }

    #[test]
    fn trouble_is_shown() {
        let text = render(&info(2), None);
        for needed in [
            "role      disconnected",
            "lease     consul, candidate, epoch 7, may commit for 900 ms without renewal, \
             no candidate: waiting",
            "link      no connection to the primary: no answer",
            "not in sync yet",
            "sync, confirmed by 00000000000000CD, 2 wait",
            "replica   00000000000000CD n2 10.0.0.2:1, lag 12 ms, 3 transactions behind",
            "0000000000000002/8000000000000001",
            "a.db: quarantined, served to nobody: page 2",
            "a.db: read-only until reopened: cannot sync",
            "a.db: does not follow the primary's: the disk is full",
            "kept 7 transactions at 2026-01-01T00:00:00.000Z that the cluster did not keep: \
             a.db/1-2-3",
        ] {
            assert!(text.contains(needed), "{needed} is missing in\n{text}");
        }
        assert!(!text.contains("tx/s"), "{text}");
    }

    #[test]
    fn a_watch_shows_how_fast_positions_move() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        rates.note(start, &info(100));
        assert!(render(&info(100), Some(&rates)).contains("  0.0  "));
        rates.note(start + Duration::from_secs(2), &info(350));
        let text = render(&info(350), Some(&rates));
        assert!(text.contains("tx/s") && text.contains("  125.0  "), "{text}");
        // Another history, after a restore.
        rates.note(start + Duration::from_secs(3), &info(5));
        assert!(render(&info(5), Some(&rates)).contains("  0.0  "));
    }

    /// LiteFS's clients know only these fields; ours must not need more of an older node.
    #[test]
    fn another_server_is_told_apart() {
        assert!(serde_json::from_str::<Info>("{\"isPrimary\":true}").is_err());
    }
}
