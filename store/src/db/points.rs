//! Positions of a database's history, for a peer to find the newest that it has too.

use std::sync::Arc;

use litefs_ltx::{Pos, Txid};

use super::Db;
use super::cursor::record_at_frame;
use super::frame::SEGMENT_HEADER_LEN;
use super::log::Segment;
use super::recovery::read_headers;
use crate::Result;

/// After so many points, the next ones are twice as far apart.
const EVEN: usize = 8;

/// Chooses from the positions that it is given, newest first.
struct Points {
    chosen: Vec<Pos>,
    max: usize,
    /// The last one given.
    last: Txid,
    step: usize,
    skip: usize,
}

impl Points {
    fn new(max: usize) -> Self {
        Self { chosen: Vec::new(), max, last: Txid::new(u64::MAX), step: 1, skip: 0 }
    }

    fn is_full(&self) -> bool {
        self.chosen.len() >= self.max
    }

    /// Takes the next one, unless it was given before.
    fn give(&mut self, pos: Pos) {
        if self.is_full() || pos.txid >= self.last || pos.is_zero() {
            return;
        }
        self.last = pos.txid;
        if self.skip > 0 {
            self.skip -= 1;
            return;
        }
        self.chosen.push(pos);
        if self.chosen.len().is_multiple_of(EVEN) {
            self.step *= 2;
        }
        self.skip = self.step - 1;
    }
}

impl Db {
    /// At most `max` positions of this history, newest first, ever further apart. To those above
    /// the mark it can rewind; from the others it still has the records that follow.
    pub(crate) fn history_points(&self, max: usize) -> Vec<Pos> {
        let mut points = Points::new(max);
        let mark = {
            let content = self.content();
            let published = content.published.read();
            published.records.iter().rev().for_each(|record| points.give(record.pos));
            published.mark.pos
        };
        points.give(mark);
        if let Err(error) = self.give_folded(&mut points) {
            // Fewer points: at worst more is kept than need be.
            tracing::warn!(db = %self.name, "cannot look for old positions: {error}");
        }
        points.chosen
    }

    fn give_folded(&self, points: &mut Points) -> Result<()> {
        let segments: Vec<Arc<Segment>> = self.log.lock().segments().cloned().collect();
        for segment in segments.iter().rev().filter(|segment| segment.last() > Txid::ZERO) {
            if points.is_full() {
                break;
            }
            if segment.header.first < points.last {
                positions(segment)?.into_iter().rev().for_each(|pos| points.give(pos));
            }
        }
        points.give(self.log_start()?);
        Ok(())
    }
}

/// The positions after the records in a segment, oldest first.
fn positions(segment: &Arc<Segment>) -> Result<Vec<Pos>> {
    let mut found = Vec::new();
    let mut offset = SEGMENT_HEADER_LEN;
    while let Some(frame) = read_headers(segment, offset)? {
        // Beyond a segment's last record may lie what recovery dropped.
        if frame.header.max_txid > segment.last() {
            break;
        }
        found.push(record_at_frame(segment, offset, &frame)?.pos());
        offset += frame.total_len();
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use litefs_ltx::Checksum;

    use super::*;

    #[test]
    fn points_are_ever_further_apart_and_none_comes_twice() {
        let pos = |txid| Pos::new(Txid::new(txid), Checksum::from_raw(txid));
        let mut points = Points::new(20);
        (80..=100).rev().for_each(|txid| points.give(pos(txid)));
        (0..=90).rev().for_each(|txid| points.give(pos(txid)));
        let chosen: Vec<u64> = points.chosen.iter().map(|pos| pos.txid.get()).collect();
        assert_eq!(chosen[..9], [100, 99, 98, 97, 96, 95, 94, 93, 91]);
        assert_eq!(chosen[14..], [79, 77, 73, 69, 65, 61]);
    }
}
