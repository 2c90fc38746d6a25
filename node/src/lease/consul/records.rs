//! What lies below the lease's key, as JSON. Fields that a later release may add are ignored.
//!
//! ```text
//! <key>              {"hostname", "advertise-url", "node"}       LiteFS's, with our `node`
//! <key>/clusterid    the id itself                               LiteFS's
//! <key>/term         {"node", "right-ms", "fast", "beat", "transactions", "floor", "sync",
//!                     "released"}
//! <key>/nodes/<id>/<session>
//!                    {"node", "hostname", "advertise-url", "candidate", "epoch", "term",
//!                     "transactions", "link"}
//! ```
//! Node ids are 16 hex digits, as everywhere.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::view::{
    Holder, Key, Link, NodeEntry, NodeRecord, Released, SessionId, TermRecord, View,
};
use super::client::{Pair, Tree, to_json};
use crate::replication::printable;

/// Longest host name or URL that is taken from another node, in characters.
const TEXT_MAX: usize = 255;

/// Where the parts of the lease lie.
#[derive(Debug, Clone)]
pub struct Names {
    /// Who is primary.
    pub key: String,
    /// The cluster's id.
    pub cluster: String,
    /// The term record.
    pub term: String,
    /// Before each node's id.
    nodes: String,
}

impl Names {
    /// Below `key`, behind the prefix of Consul's URL.
    pub fn new(prefix: &str, key: &str) -> Self {
        let parts = [prefix.trim_matches('/'), key.trim_matches('/')];
        let key = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
        Self {
            cluster: format!("{key}/clusterid"),
            term: format!("{key}/term"),
            nodes: format!("{key}/nodes/"),
            key,
        }
    }

    /// A node's record in one of its sessions.
    pub fn node(&self, node: u64, session: &SessionId) -> String {
        format!("{}{node:016x}/{session}", self.nodes)
    }
}

/// A node as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Face {
    /// Its id.
    pub node: u64,
    /// Its name.
    pub hostname: String,
    /// Where others reach it.
    pub advertise_url: String,
}

/// A node id as 16 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Id(u64);

impl Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:016x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let id = u64::from_str_radix(&text, 16).ok().filter(|_| text.len() == 16);
        id.map(Id).ok_or_else(|| serde::de::Error::custom("a node id that is not 16 hex digits"))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawHolder {
    hostname: String,
    advertise_url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<Id>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawTerm {
    node: Id,
    right_ms: u64,
    fast: bool,
    beat: u64,
    #[serde(default)]
    transactions: u64,
    floor: u64,
    #[serde(default)]
    sync: BTreeSet<Id>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    released: Option<RawReleased>,
}

#[derive(Serialize, Deserialize)]
struct RawReleased {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    to: Option<Id>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawNode {
    node: Id,
    hostname: String,
    advertise_url: String,
    candidate: bool,
    #[serde(default)]
    epoch: u64,
    term: u64,
    transactions: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    link: Option<RawLink>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawLink {
    Up(u64),
    Lost(u64),
}

/// The value of the lease's key.
pub fn holder(face: &Face) -> Vec<u8> {
    to_json(&RawHolder {
        hostname: face.hostname.clone(),
        advertise_url: face.advertise_url.clone(),
        node: Some(Id(face.node)),
    })
}

/// The value of the term record.
pub fn term(term: &TermRecord) -> Vec<u8> {
    to_json(&RawTerm {
        node: Id(term.node),
        right_ms: u64::try_from(term.right.as_millis()).unwrap_or(u64::MAX),
        fast: term.fast,
        beat: term.beat,
        transactions: term.transactions,
        floor: term.floor,
        sync: term.sync.iter().copied().map(Id).collect(),
        released: term.released.map(|released| RawReleased { to: released.to.map(Id) }),
    })
}

/// The value of a node's record.
pub fn node(face: &Face, record: &NodeRecord) -> Vec<u8> {
    to_json(&RawNode {
        node: Id(record.node),
        hostname: face.hostname.clone(),
        advertise_url: face.advertise_url.clone(),
        candidate: record.candidate,
        epoch: record.epoch,
        term: record.term,
        transactions: record.transactions,
        link: match record.link {
            Link::None => None,
            Link::Up(epoch) => Some(RawLink::Up(epoch)),
            Link::Lost(epoch) => Some(RawLink::Lost(epoch)),
        },
    })
}

/// Reads what lies below the key. What another node says of itself and cannot be read is left out;
/// without the term record and the cluster's id nothing can be decided.
///
/// # Errors
/// Which of those cannot be read, and why.
pub fn view(names: &Names, tree: Tree) -> Result<View, String> {
    let mut view = View { index: tree.index, ..View::default() };
    for pair in tree.pairs {
        if pair.key == names.key {
            view.key = Some(read_key(pair));
        } else if pair.key == names.term {
            view.term = Some((pair.modify_index, read_term(&pair)?));
        } else if pair.key == names.cluster {
            view.cluster = Some(read_cluster(&pair)?);
        } else if pair.key.starts_with(&names.nodes) {
            view.nodes.extend(read_node(names, pair));
        }
    }
    Ok(view)
}

fn read_key(pair: Pair) -> Key {
    let holder = serde_json::from_slice::<RawHolder>(&pair.value).ok().map(|raw| Holder {
        node: raw.node.map_or(0, |id| id.0),
        hostname: shortened(&raw.hostname),
        advertise_url: shortened(&raw.advertise_url),
    });
    Key { index: pair.modify_index, session: pair.session.map(SessionId), holder }
}

fn read_term(pair: &Pair) -> Result<TermRecord, String> {
    let raw: RawTerm =
        serde_json::from_slice(&pair.value).map_err(|error| unreadable(pair, error))?;
    Ok(TermRecord {
        node: raw.node.0,
        right: Duration::from_millis(raw.right_ms),
        fast: raw.fast,
        beat: raw.beat,
        transactions: raw.transactions,
        floor: raw.floor,
        sync: raw.sync.into_iter().map(|id| id.0).collect(),
        released: raw.released.map(|raw| Released { to: raw.to.map(|id| id.0) }),
    })
}

fn read_cluster(pair: &Pair) -> Result<String, String> {
    let text = std::str::from_utf8(&pair.value).map_err(|error| unreadable(pair, error))?.trim();
    if text.is_empty() || text.len() > TEXT_MAX || text.chars().any(char::is_control) {
        return Err(unreadable(pair, "it is no cluster's id"));
    }
    Ok(text.to_owned())
}

/// A record without a session is a leftover of nobody who lives.
fn read_node(names: &Names, pair: Pair) -> Option<NodeEntry> {
    let raw: RawNode = serde_json::from_slice(&pair.value).ok()?;
    let record = NodeRecord {
        node: raw.node.0,
        candidate: raw.candidate,
        epoch: raw.epoch,
        term: raw.term,
        transactions: raw.transactions,
        link: match raw.link {
            None => Link::None,
            Some(RawLink::Up(epoch)) => Link::Up(epoch),
            Some(RawLink::Lost(epoch)) => Link::Lost(epoch),
        },
    };
    let session = SessionId(pair.session?);
    let is_its_own = pair.key == names.node(record.node, &session);
    is_its_own.then_some(NodeEntry { session, record })
}

fn unreadable(pair: &Pair, why: impl std::fmt::Display) -> String {
    format!(
        "the value of Consul's key {} cannot be read: {why}; is lease.consul.key used by something \
         else than this release?",
        pair.key
    )
}

fn shortened(text: &str) -> String {
    printable(text).chars().take(TEXT_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn face() -> Face {
        Face { node: 0xab, hostname: "db1".into(), advertise_url: "http://db1:20202".into() }
    }

    fn pair(key: &str, value: impl Into<Vec<u8>>, session: Option<&str>) -> Pair {
        let session = session.map(str::to_owned);
        Pair { key: key.to_owned(), value: value.into(), session, modify_index: 7 }
    }

    fn names() -> Names {
        Names::new("", "k")
    }

    fn read(pairs: Vec<Pair>) -> Result<View, String> {
        view(&names(), Tree { index: 9, pairs })
    }

    /// LiteFS writes `{"hostname":…,"advertise-url":…}` (consul.go, PrimaryInfo) and so reads ours.
    #[test]
    fn the_key_s_value_is_litefss() {
        let json =
            r#"{"hostname":"db1","advertise-url":"http://db1:20202","node":"00000000000000ab"}"#;
        assert_eq!(String::from_utf8(holder(&face())).unwrap(), json);
        let litefs = r#"{"hostname":"h","advertise-url":"http://h:1"}"#;
        let found = read(vec![pair("k", litefs, Some("s"))]).unwrap().key.unwrap();
        let holder = Holder { node: 0, hostname: "h".into(), advertise_url: "http://h:1".into() };
        assert_eq!(found.holder, Some(holder));
        assert_eq!((found.index, found.session), (7, Some(SessionId("s".into()))));
        let odd = read(vec![pair("k", "", None)]).unwrap().key.unwrap();
        assert_eq!((odd.holder, odd.session), (None, None));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let term_record = TermRecord {
            node: 0xab,
            right: Duration::from_millis(3500),
            fast: true,
            beat: 3,
            transactions: 9,
            floor: 11,
            sync: BTreeSet::from([1, u64::MAX]),
            released: Some(Released { to: Some(2) }),
        };
        let mut record = NodeRecord {
            node: 0xab,
            candidate: true,
            epoch: 13,
            term: 12,
            transactions: 1 << 60,
            link: Link::None,
        };
        for link in [Link::None, Link::Up(4), Link::Lost(5)] {
            record.link = link;
            let pairs = vec![
                pair("k/clusterid", "LFSC0000000000000001", None),
                pair("k/term", term(&term_record), None),
                pair("k/nodes/00000000000000ab/s", node(&face(), &record), Some("s")),
            ];
            let view = read(pairs).unwrap();
            assert_eq!(view.term, Some((7, term_record.clone())));
            assert_eq!(view.cluster.as_deref(), Some("LFSC0000000000000001"));
            assert_eq!(view.nodes[0].record, record);
            assert_eq!((view.index, view.key), (9, None));
        }
    }

    #[test]
    fn a_record_that_lies_under_another_s_name_or_is_broken_is_left_out() {
        let record = NodeRecord {
            node: 0xab,
            candidate: true,
            epoch: 2,
            term: 1,
            transactions: 1,
            link: Link::None,
        };
        let value = node(&face(), &record);
        let pairs = vec![
            pair("k/nodes/00000000000000ac/s", value.clone(), Some("s")),
            pair("k/nodes/00000000000000ab/r", value.clone(), Some("s")),
            pair("k/nodes/00000000000000ab", value.clone(), Some("s")),
            pair("k/nodes/00000000000000ab/s", value.clone(), None),
            pair("k/nodes/00000000000000ad/s", "{", Some("s")),
            pair("k/nodes/00000000000000ae/s", [0xff], Some("s")),
        ];
        assert!(read(pairs).unwrap().nodes.is_empty());
    }

    #[test]
    fn a_term_or_cluster_that_cannot_be_read_is_named() {
        for (key, value) in [("k/term", "{}"), ("k/term", ""), ("k/clusterid", " ")] {
            let text = read(vec![pair(key, value, None)]).unwrap_err();
            assert!(text.contains(key) && text.contains("lease.consul.key"), "{text}");
        }
    }

    #[test]
    fn keys_are_joined_as_litefs_joins_them() {
        assert_eq!(Names::new("", "/a/b/").key, "a/b");
        let names = Names::new("p/q", "a");
        assert_eq!(names.cluster, "p/q/a/clusterid");
        assert_eq!(names.node(0xab, &SessionId("s".into())), "p/q/a/nodes/00000000000000ab/s");
    }

    proptest::proptest! {
        #[test]
        fn no_value_makes_the_reader_panic(value: Vec<u8>, which in 0_usize..4) {
            let key = ["k", "k/term", "k/clusterid", "k/nodes/00000000000000ab/s"][which];
            let _ = read(vec![pair(key, value, Some("s"))]);
        }
    }
}
