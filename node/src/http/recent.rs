//! `GET /events/recent`: the last events but for transactions, for who looks now and then.
//!
//! `[{"at": RFC 3339, "event": …}]`, oldest first; each event as `/events` has it.

use std::collections::VecDeque;

use axum::body::Bytes;
use litefs_ltx::format_timestamp;
use parking_lot::Mutex;

use crate::replication::wall_ms;

/// Events that are remembered.
const MAX: usize = 100;

/// The last events.
#[derive(Default)]
pub(super) struct Recent {
    events: Mutex<VecDeque<(i64, Bytes)>>,
}

impl Recent {
    /// Remembers an event, one JSON object.
    pub(super) fn note(&self, line: Bytes) {
        let mut events = self.events.lock();
        if events.len() == MAX {
            events.pop_front();
        }
        events.push_back((wall_ms(), line));
    }

    /// All of them as JSON.
    pub(super) fn json(&self) -> String {
        let entry = |(at, line): &(i64, Bytes)| {
            let event = String::from_utf8_lossy(line);
            format!("{{\"at\":\"{}\",\"event\":{}}}", format_timestamp(*at), event.trim_end())
        };
        let entries: Vec<String> = self.events.lock().iter().map(entry).collect();
        format!("[{}]", entries.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept() {
        let recent = Recent::default();
        assert_eq!(recent.json(), "[]");
        for n in 0..MAX + 3 {
            recent.note(Bytes::from(format!("{{\"n\":{n}}}\n")));
        }
        let found: Vec<serde_json::Value> = serde_json::from_str(&recent.json()).unwrap();
        assert_eq!(found.len(), MAX);
        assert_eq!(
            (&found[0]["event"]["n"], &found[MAX - 1]["event"]["n"]),
            (&3.into(), &102.into())
        );
        assert!(found[0]["at"].as_str().unwrap().starts_with("20"));
    }
}
