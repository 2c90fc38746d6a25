//! `status`: what a node says about itself.

use std::fmt::Write;

use clap::Args;
use http_body_util::Empty;
use hyper::body::Bytes;

use super::client::read_text;
use super::node_args::NodeArgs;
use super::{CliError, CliResult};
use crate::http::{DatabaseInfo, Info, LeaseInfo, ReplicationInfo};

#[derive(Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Print the node's answer as it is
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &StatusArgs) -> CliResult {
    let client = args.node.client()?;
    let text = client.block_on(async {
        read_text(client.send("GET", "/info", None, Empty::<Bytes>::new()).await?).await
    })?;
    if args.json {
        println!("{}", text.trim_end());
        return Ok(());
    }
    let info: Info = serde_json::from_str(&text)
        .map_err(|e| CliError::new(format!("{} is no litefs node: {e}", client.url())))?;
    print!("{}", render(&info));
    Ok(())
}

fn render(info: &Info) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name:<9} {value}");
    };
    line("node", &info.node_id);
    line("role", &info.role);
    line("lease", &lease(&info.lease));
    line("primary", if info.primary.hostname.is_empty() { "-" } else { &info.primary.hostname });
    line("lag", &info.lag_ms.map_or("not in sync yet".to_owned(), |ms| format!("{ms} ms")));
    line("data", &info.path);
    line("version", &info.version);
    for replica in &info.replicas {
        let behind = replica.unacknowledged_transactions;
        line("replica", &format!("{} {} {behind} transactions behind", replica.node, replica.addr));
    }
    if let Some(replication) = &info.replication {
        line("commits", &commits(replication));
    }
    if !info.databases.is_empty() {
        out.push('\n');
        out.push_str(&table(info));
    }
    for (name, db) in &info.databases {
        for file in &db.diverged {
            let count = file.transactions.map_or("?".to_owned(), |count| count.to_string());
            let _ = writeln!(
                out,
                "{name}: kept {count} transactions that the cluster did not keep: {}",
                file.name
            );
        }
    }
    out
}

fn lease(lease: &LeaseInfo) -> String {
    let mut text = format!("{}, {}, epoch {}", lease.kind, lease.role, lease.epoch);
    if !lease.reason.is_empty() {
        text.push_str(&format!(": {}", lease.reason));
    }
    if let Some(trouble) = &lease.trouble {
        text.push_str(&format!("\n          {trouble}"));
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

fn table(info: &Info) -> String {
    let widest = info.databases.keys().map(|name| name.chars().count()).max().unwrap_or(0).max(8);
    let mut out = format!(
        "{:<widest$}  {:<33}  {:>9}  {:>5}  {:>12}  {:>12}  state\n",
        "database", "position", "pages", "size", "mark", "log bytes"
    );
    for (name, db) in &info.databases {
        let _ = writeln!(
            out,
            "{name:<widest$}  {:<33}  {:>9}  {:>5}  {:>12}  {:>12}  {}",
            db.position,
            db.page_count,
            db.page_size,
            db.mark.trim_start_matches('0'),
            db.log_bytes,
            state(db)
        );
    }
    out
}

fn state(db: &DatabaseInfo) -> String {
    match (&db.quarantined, db.diverged.is_empty()) {
        (Some(reason), _) => format!("quarantined: {reason}"),
        (None, false) => "ok, diverged files kept".to_owned(),
        (None, true) => "ok".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_shown() {
        let answer = r#"{"isPrimary":false,"candidate":false,"path":"/d","primary":{"hostname":""},
            "nodeID":"00000000000000AB","role":"disconnected","version":"1","replicas":[],
            "replication":{"mode":"sync","syncSet":["00000000000000CD"],"fallenBack":false,
            "waiting":2},
            "databases":{"a.db":{"position":"0000000000000002/8000000000000001","pageCount":3,
            "pageSize":4096,"mark":"0000000000000001","logBytes":9000,"quarantined":"page 2",
            "diverged":[{"name":"a.db/1-2-3","newest":"2/8","transactions":7,"keptAt":"",
            "whole":true,"path":"dbs/a.db/diverged/1-2-3"}]}}}"#;
        let text = render(&serde_json::from_str(answer).unwrap());
        for needed in [
            "disconnected",
            "not in sync yet",
            "sync, confirmed by 00000000000000CD, 2 wait",
            "0000000000000002/8000000000000001",
            "quarantined: page 2",
            "kept 7 transactions that the cluster did not keep: a.db/1-2-3",
        ] {
            assert!(text.contains(needed), "{needed} is missing in\n{text}");
        }
    }

    /// LiteFS's clients know only these fields; ours must not need more of an older node.
    #[test]
    fn another_server_is_told_apart() {
        assert!(serde_json::from_str::<Info>("{\"isPrimary\":true}").is_err());
    }
}
