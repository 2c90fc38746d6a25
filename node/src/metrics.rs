//! The node's numbers for Prometheus.
//!
//! LiteFS's names and meanings are kept, so they lack the `_total` that counters have elsewhere.
//! Everything is read when asked: nothing is counted twice. Where LiteFS counts LTX files, these
//! count transactions in the log: there is one of the other for each. Writes of clients to a
//! database's files are those that reach a mount; a mapped shm is written past it.
//! `docs/monitoring.md` describes all of them.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use litefs_store::{Database, Diverged, Histogram, Stats};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeGaugeValue, EncodeMetric, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::http::{LeaseStatus, NodeView};
use crate::lease::action::Role;
use crate::replication::confirm::ConfirmStatus;

/// The text format, which every Prometheus reads.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics of a node as text. Reads directories, so not on an async thread.
pub(crate) fn render(view: Arc<dyn NodeView>, event_clients: usize) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(NodeCollector { view, event_clients }));
    let mut out = String::new();
    text::encode(&mut out, &registry).expect("BUG: writing to a String cannot fail");
    out
}

struct NodeCollector {
    view: Arc<dyn NodeView>,
    event_clients: usize,
}

impl fmt::Debug for NodeCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeCollector")
    }
}

impl Collector for NodeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_node(&mut encoder)?;
        let databases: Vec<(Database, Stats)> = self
            .view
            .store()
            .databases()
            .into_iter()
            .map(|db| {
                let stats = db.stats();
                (db, stats)
            })
            .collect();
        for family in FAMILIES {
            let mut family_encoder =
                encoder.encode_descriptor(family.name, family.help, None, family.kind)?;
            for (db, stats) in &databases {
                let labels = [("db", db.name().as_str())];
                let value = (family.value)(db, stats);
                ConstGauge::new(value).encode(family_encoder.encode_family(&labels)?)?;
            }
        }
        encode_lags(&mut encoder, &databases)?;
        encode_frames(&mut encoder, &databases)?;
        self.encode_times(&mut encoder)
    }
}

impl NodeCollector {
    fn encode_node(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let view = &self.view;
        let replicas = view.replicas();
        let live = view.store().databases().iter().filter(|db| db.page_count() > 0).count();
        let unacknowledged: u64 = replicas.iter().map(|r| r.unacknowledged_transactions).sum();
        let is_primary = view.role().borrow().is_primary;
        // LiteFS: -1 until the first sync.
        let lag = view.lag().map_or(-1.0, |lag| lag.as_secs_f64());
        gauge(encoder, "litefs_db_count", "Databases with content.", int(live))?;
        let help = "1 if this node is the primary, else 0.";
        gauge(encoder, "litefs_is_primary", help, i64::from(is_primary))?;
        let help = "Connected replicas and clients of /events.";
        let subscribers = replicas.len() + self.event_clients;
        gauge(encoder, "litefs_subscriber_count", help, int(subscribers))?;
        let help = "Seconds behind the primary; -1 before the first sync.";
        gauge(encoder, "litefs_lag_seconds", help, lag)?;
        let help = "Connected replicas.";
        gauge(encoder, "litefs_http_stream_count", help, int(replicas.len()))?;
        let help = "Transactions that connected replicas have not acknowledged yet.";
        gauge(encoder, "litefs_replica_unacknowledged_transactions", help, int64(unacknowledged))?;
        encode_lease(encoder, &view.lease())?;
        view.confirm().map_or(Ok(()), |status| encode_confirm(encoder, &status))
    }
}

impl NodeCollector {
    fn encode_times(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let timings = self.view.store().timings();
        let help = "Time of a commit on this node, until readers see it.";
        histogram(encoder, "litefs_commit_seconds", help, &timings.commit.read())?;
        let help = "Time to make the log durable.";
        histogram(encoder, "litefs_sync_seconds", help, &timings.sync.read())?;
        let help = "Time to fold the log into a base.";
        histogram(encoder, "litefs_fold_seconds", help, &timings.fold.read())?;
        let help = "Time from a commit until a replica has acknowledged it.";
        histogram(encoder, "litefs_replica_ack_seconds", help, &self.view.ack_times())
    }
}

fn encode_lease(encoder: &mut DescriptorEncoder<'_>, lease: &LeaseStatus) -> fmt::Result {
    let help = "1 for this node's present role, else 0.";
    let mut roles =
        encoder.encode_descriptor("litefs_lease_role", help, None, MetricType::Gauge)?;
    for role in Role::ALL.map(Role::name) {
        let labels = [("role", role)];
        let value = i64::from(role == lease.role);
        ConstGauge::new(value).encode(roles.encode_family(&labels)?)?;
    }
    let help = "Newest epoch known to this node.";
    gauge(encoder, "litefs_lease_epoch", help, int64(lease.epoch))?;
    let help = "Changes of this node's role, or of its reason, since the start.";
    let name = "litefs_lease_transition_count";
    let transitions = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    ConstGauge::new(int64(lease.transitions)).encode(transitions)?;
    if let Some(left) = lease.right_left {
        let help = "Seconds for which this node may still commit if Consul falls silent.";
        gauge(encoder, "litefs_lease_right_seconds", help, left.as_secs_f64())?;
    }
    if let Some(beats) = &lease.beats {
        let name = "litefs_lease_renew_seconds";
        let help = "Time that Consul took to extend the right to commit.";
        beats.encode(encoder.encode_descriptor(name, help, None, MetricType::Histogram)?)?;
    }
    Ok(())
}

/// What commits wait for; not in mode `async`.
fn encode_confirm(encoder: &mut DescriptorEncoder<'_>, status: &ConfirmStatus) -> fmt::Result {
    if status.mode == "bounded" {
        let help = "Commits refused since the start, as no replica was near.";
        return counter(encoder, "litefs_replication_refused_count", help, status.refusals);
    }
    let help = "Replicas that have everything that was acknowledged.";
    gauge(encoder, "litefs_sync_replicas", help, int(status.sync_set.len()))?;
    let help = "1 while commits are acknowledged without replicas, else 0.";
    gauge(encoder, "litefs_sync_fallen_back", help, i64::from(status.fallen_back))?;
    let help = "Commits that wait for replicas.";
    gauge(encoder, "litefs_sync_waiting", help, int(status.waiting))?;
    let help = "How often commits began to be acknowledged without replicas.";
    counter(encoder, "litefs_sync_fallback_count", help, status.fallbacks)?;
    let help = "How long commits waited for replicas.";
    histogram(encoder, "litefs_sync_wait_seconds", help, &status.waits)
}

/// How late each database's newest transaction was here.
fn encode_lags(
    encoder: &mut DescriptorEncoder<'_>,
    databases: &[(Database, Stats)],
) -> fmt::Result {
    let help = "Seconds from the newest transaction's commit on the primary until it was here.";
    let kind = MetricType::Gauge;
    let mut lags = encoder.encode_descriptor("litefs_db_lag_seconds", help, None, kind)?;
    for (db, stats) in databases {
        let lag = ConstGauge::new(stats.lag_ms as f64 / 1000.0);
        lag.encode(lags.encode_family(&[("db", db.name().as_str())])?)?;
    }
    Ok(())
}

/// What was sent of each database.
fn encode_frames(
    encoder: &mut DescriptorEncoder<'_>,
    databases: &[(Database, Stats)],
) -> fmt::Result {
    let (name, help) = ("litefs_http_frame_send_count", "Records sent to replicas.");
    let mut frames = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (db, _) in databases {
        let counters = db.counters();
        let sent = [("ltx", &counters.records_sent), ("ltx:snapshot", &counters.snapshots_sent)];
        for (kind, count) in sent {
            let labels = [("db", db.name().as_str()), ("type", kind)];
            ConstGauge::new(load(count)).encode(frames.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn histogram(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    times: &Histogram,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    let exemplars: Option<&HashMap<usize, Exemplar<NoLabelSet, f64>>> = None;
    metric.encode_histogram(times.sum, times.count, &times.buckets, exemplars)
}

/// A metric that every database has.
struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    value: fn(&Database, &Stats) -> i64,
}

const FAMILIES: [Family; 19] = [
    Family {
        name: "litefs_db_txid",
        help: "Newest transaction id.",
        kind: MetricType::Gauge,
        value: |db, _| int64(db.pos().txid.get()),
    },
    Family {
        name: "litefs_db_commit_count",
        help: "Transactions committed or applied since the start.",
        kind: MetricType::Counter,
        value: |_, stats| int64(stats.commits),
    },
    Family {
        name: "litefs_db_database_write_count",
        help: "Writes of a mount's clients to the database file.",
        kind: MetricType::Counter,
        value: |db, _| load(&db.counters().database_writes),
    },
    Family {
        name: "litefs_db_journal_write_count",
        help: "Writes of a mount's clients to the journal.",
        kind: MetricType::Counter,
        value: |db, _| load(&db.counters().journal_writes),
    },
    Family {
        name: "litefs_db_wal_write_count",
        help: "Writes of a mount's clients to the WAL.",
        kind: MetricType::Counter,
        value: |db, _| load(&db.counters().wal_writes),
    },
    Family {
        name: "litefs_db_shm_write_count",
        help: "Writes of a mount's clients to the shm, but for those to mapped memory.",
        kind: MetricType::Counter,
        value: |db, _| load(&db.counters().shm_writes),
    },
    Family {
        name: "litefs_db_ltx_count",
        help: "Transactions in the log.",
        kind: MetricType::Gauge,
        value: |_, stats| int64(stats.log_transactions),
    },
    Family {
        name: "litefs_db_ltx_reap_count",
        help: "Transactions that retention has removed from the log since the start.",
        kind: MetricType::Counter,
        value: |_, stats| int64(stats.retired),
    },
    Family {
        name: "litefs_db_ltx_bytes",
        help: "Bytes of log on disk.",
        kind: MetricType::Gauge,
        value: |_, stats| int64(stats.log_bytes),
    },
    Family {
        name: "litefs_db_pages",
        help: "Size in pages.",
        kind: MetricType::Gauge,
        value: |db, _| i64::from(db.page_count()),
    },
    Family {
        name: "litefs_db_mark_txid",
        help: "Transaction id up to which the base is durable.",
        kind: MetricType::Gauge,
        value: |_, stats| int64(stats.mark.get()),
    },
    Family {
        name: "litefs_db_synced_txid",
        help: "Newest transaction id known to be on disk.",
        kind: MetricType::Gauge,
        value: |db, _| int64(db.synced_pos().txid.get()),
    },
    Family {
        name: "litefs_db_fold_count",
        help: "Folds of the log into the base since the start.",
        kind: MetricType::Counter,
        value: |_, stats| int64(stats.folds),
    },
    Family {
        name: "litefs_db_snapshots",
        help: "Snapshots that readers hold.",
        kind: MetricType::Gauge,
        value: |_, stats| int(stats.snapshots),
    },
    Family {
        name: "litefs_db_quarantined",
        help: "1 if the database failed a check and is served to nobody, else 0.",
        kind: MetricType::Gauge,
        value: |db, _| i64::from(db.quarantined().is_some()),
    },
    Family {
        name: "litefs_db_poisoned",
        help: "1 if a failed sync made the database read-only until it is reopened, else 0.",
        kind: MetricType::Gauge,
        value: |db, _| i64::from(db.poisoned().is_some()),
    },
    Family {
        name: "litefs_db_unfolded_bytes",
        help: "Bytes of log above the mark.",
        kind: MetricType::Gauge,
        value: |_, stats| int64(stats.unfolded_bytes),
    },
    Family {
        name: "litefs_db_diverged",
        help: "Divergences kept: transactions of this node that the cluster does not have.",
        kind: MetricType::Gauge,
        // What cannot be read is reported by /info and the log; the node's other numbers count.
        value: |db, _| db.diverged().map_or(0, |kept| int(kept.len())),
    },
    Family {
        name: "litefs_db_diverged_transactions",
        help: "Transactions in the divergences kept, where their number is known.",
        kind: MetricType::Gauge,
        value: |db, _| {
            let count = |kept: Vec<Diverged>| kept.iter().filter_map(Diverged::transactions).sum();
            int64(db.diverged().map_or(0, count))
        },
    },
];

fn gauge<N: EncodeGaugeValue>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: N,
) -> fmt::Result {
    let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(metric)
}

/// LiteFS's names have no `_total`, so the plain number is written.
fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    ConstGauge::new(int64(value)).encode(metric)
}

fn load(count: &AtomicU64) -> i64 {
    int64(count.load(Ordering::Relaxed))
}

fn int(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn int64(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
