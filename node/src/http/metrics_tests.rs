//! The metrics that are served are those that the documents and the dashboard speak of.

use std::collections::BTreeSet;
use std::time::Duration;

use super::tests::{Fixture, change_page};
use crate::config::{Bounds, OnTimeout, ReplicationMode, SyncSettings};
use crate::replication::confirm::Confirmer;

const DOCUMENT: &str = include_str!("../../../docs/monitoring.md");
const DASHBOARD: &str = include_str!("../../../examples/grafana/litefs.json");

/// All words that begin as our metrics do.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("litefs_")).collect()
}

/// The names of the metrics that a node serves; of histograms, those of their parts too.
async fn served(f: &Fixture) -> (BTreeSet<String>, BTreeSet<String>) {
    let (status, text) = f.text("GET", "/metrics").await;
    assert_eq!(status, 200);
    let (mut metrics, mut parts) = (BTreeSet::new(), BTreeSet::new());
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        metrics.insert(name.to_owned());
        if kind == "histogram" {
            parts.extend(["bucket", "sum", "count"].map(|part| format!("{name}_{part}")));
        }
    }
    parts.extend(metrics.clone());
    (metrics, parts)
}

#[tokio::test]
async fn what_is_documented_is_served_and_what_is_served_is_documented() {
    let f = Fixture::start();
    f.import("a.db", 10).await;
    let sync =
        SyncSettings { replicas: 1, timeout: Duration::from_secs(1), on_timeout: OnTimeout::Wait };
    let bounds = Bounds { max_lag: None, max_transactions: Some(1) };
    let mut metrics = BTreeSet::new();
    for mode in
        [ReplicationMode::Async, ReplicationMode::Bounded(bounds), ReplicationMode::Sync(sync)]
    {
        *f.node.confirmer.lock() = Confirmer::new(mode);
        metrics.extend(served(&f).await.0);
    }
    let documented: BTreeSet<String> = names(DOCUMENT).into_iter().map(str::to_owned).collect();
    assert_eq!(metrics, documented);
}

#[tokio::test]
async fn the_dashboard_is_valid_and_shows_only_what_is_served() {
    let f = Fixture::start();
    f.import("a.db", 10).await;
    let (_, parts) = served(&f).await;
    let shown = names(DASHBOARD);
    let missing: Vec<_> = shown.iter().filter(|name| !parts.contains(**name)).collect();
    assert!(shown.len() > 20 && missing.is_empty(), "{missing:?}");
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut taken = BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title} shows nothing");
        for target in targets {
            let expression = target["expr"].as_str().unwrap();
            for (open, close) in [('(', ')'), ('{', '}'), ('[', ']')] {
                let count = |c| expression.matches(c).count();
                assert_eq!(count(open), count(close), "{expression}");
            }
        }
        let at = |field: &str| panel["gridPos"][field].as_u64().unwrap();
        for cell in (at("x")..at("x") + at("w")).flat_map(|x| [(x, at("y"))]) {
            assert!(cell.0 < 24 && taken.insert(cell), "{title} lies over another panel");
        }
    }
}

#[tokio::test]
async fn times_are_counted_in_buckets() {
    let f = Fixture::start();
    f.import("a.db", 10).await;
    let count = |text: &str, series: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(series));
        line.unwrap_or_else(|| panic!("{series} is missing"))
            .rsplit(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap()
    };
    let before = f.text("GET", "/metrics").await.1;
    for fill in 1..=5 {
        change_page(&f.node.store.databases()[0], fill);
    }
    f.node.store.databases()[0].fold().unwrap();
    let after = f.text("GET", "/metrics").await.1;
    for (name, at_least) in [("litefs_commit_seconds", 5.0), ("litefs_sync_seconds", 5.0)] {
        for part in ["_count ", "_bucket{le=\"+Inf\"} "] {
            let series = format!("{name}{part}");
            let more = count(&after, &series) - count(&before, &series);
            assert!(more >= at_least, "{series}: {more} more");
        }
        let sum = format!("{name}_sum ");
        assert!(count(&after, &sum) > count(&before, &sum), "{sum}");
    }
    assert!(count(&after, "litefs_fold_seconds_count ") >= 1.0);
    assert_eq!(count(&after, "litefs_replica_ack_seconds_bucket{le=\"0.002\"} "), 0.0);
    assert_eq!(count(&after, "litefs_replica_ack_seconds_bucket{le=\"0.005\"} "), 1.0);
}

/// The names of all fields of an object and of those below it, but for names of databases.
fn fields(value: &serde_json::Value, found: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(map) => {
            for (name, value) in map {
                if name != "a.db" {
                    found.insert(name.clone());
                }
                fields(value, found);
            }
        }
        serde_json::Value::Array(all) => all.iter().for_each(|value| fields(value, found)),
        _ => {}
    }
}

#[test]
fn each_field_of_the_status_is_documented() {
    let full = r#"{"clusterID":"C","isPrimary":false,"candidate":true,"path":"/d",
        "primary":{"hostname":"h"},"nodeID":"1","hostname":"h","role":"replica","disconnected":"x","lagMs":1,
        "lease":{"type":"consul","role":"replica","reason":"r","epoch":1,"rightLeftMs":1},
        "version":"1","replicas":[{"node":"1","hostname":"h","addr":"a","lagMs":1,
        "unacknowledgedTransactions":1}],"databases":{"a.db":{"position":"1/2","pageCount":1,
        "pageSize":512,"mark":"1","logBytes":1,"logTransactions":1,"lagMs":1,"quarantined":"q",
        "poisoned":"p","stopped":"s","diverged":[{"name":"n","common":"c","newest":"n",
        "transactions":1,"keptAt":"k","whole":true,"path":"p"}]}}}"#;
    let info: super::Info = serde_json::from_str(full).unwrap();
    let given: serde_json::Value = serde_json::from_str(full).unwrap();
    let answered = serde_json::to_value(&info).unwrap();
    assert_eq!(answered, given, "a field is missing in this test");
    let mut names = BTreeSet::new();
    fields(&answered, &mut names);
    let words: BTreeSet<&str> = DOCUMENT.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    let missing: Vec<_> = names.iter().filter(|name| !words.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "not in docs/monitoring.md: {missing:?}");
}
