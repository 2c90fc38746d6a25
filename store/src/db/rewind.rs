//! Going back to an earlier position, once what follows it is kept aside (`diverged.rs`).

use std::sync::Arc;

use litefs_ltx::{Pos, Txid};

use super::published::Published;
use super::{Content, Db};
use crate::{Error, Event, Result};

impl Db {
    /// Drops the records after `to`.
    pub(crate) fn rewind(self: &Arc<Self>, to: Pos) -> Result<()> {
        self.check_well()?;
        // In this order, as installations do.
        let _seized = self.seize();
        let _alone = self.folding.lock();
        self.settle()?;
        let content = self.content();
        let rewound = {
            let published = content.published.read();
            if published.newest.pos == to {
                return Ok(());
            }
            if published.state_at(to.txid).map(|state| state.pos) != Some(to) {
                return Err(Error::Gone { db: self.name.clone(), after: to });
            }
            rewound(&published, to.txid)
        };
        content.keep_base()?; // until its last reader is done, whatever is installed later
        self.cut_log(&content, to.txid)?;
        let newest = rewound.newest;
        let timestamp_ms = rewound.timestamp_ms;
        let rewound = Content::rewound(&self.shared, &self.dir, &content, rewound);
        *self.content.write() = Arc::new(rewound);
        self.announce_move();
        self.shared.emit(&Event::Position {
            db: self.name.clone(),
            pos: newest.pos,
            page_size: newest.page_size.map_or(0, |size| size.get()),
            commit: newest.pages,
            timestamp_ms,
        });
        Ok(())
    }

    fn cut_log(&self, content: &Content, to: Txid) -> Result<()> {
        let published = content.published.read();
        let (segment, end) = match published.record_at(to) {
            Some(record) => (record.segment.clone(), record.end),
            None => {
                let first = published.records.front().expect("BUG: a record follows the mark");
                (first.segment.clone(), first.end - first.len)
            }
        };
        drop(published);
        let mut log = self.log.lock();
        log.prepare_cut(&segment, end)?;
        let cut = log.cut(&segment, end, to);
        drop(log);
        // In the middle, disk and memory may differ.
        cut.inspect_err(|error| self.poison(error))
    }
}

/// The published state as it was after `to`.
fn rewound(published: &Published, to: Txid) -> Published {
    let mut rewound = Published::of_base(published.mark, published.sums.clone());
    for record in published.records.iter().filter(|record| record.pos.txid <= to) {
        rewound.push(record.clone(), std::iter::empty());
    }
    for (&pgno, versions) in &published.versions {
        let kept: Vec<_> = versions.iter().filter(|version| version.txid <= to).cloned().collect();
        if !kept.is_empty() {
            rewound.versions.insert(pgno, kept);
        }
    }
    rewound
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node_file::NodeFile;
    use crate::shared::Shared;
    use crate::{DbName, Options, OsStorage};
    use std::thread;
    use std::time::Duration;

    #[test]
    fn a_rewind_that_waits_for_the_writer_does_not_block_the_writers_installation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_path_buf();
        let node = NodeFile::open(&OsStorage, &path, None).unwrap();
        let options = Options { background: false, ..Options::default() };
        let shared = Arc::new(Shared::new(path.clone(), options, node));
        let name = DbName::new("db").unwrap();
        let db = Arc::new(Db::open(&shared, name, path.join("dbs/db")));
        let installing = db.seize();
        let rewinder = thread::spawn({
            let db = db.clone();
            move || db.rewind(Pos::ZERO)
        });
        thread::sleep(Duration::from_millis(200)); // until it waits; too short proves less only
        assert!(db.folding.try_lock_for(Duration::from_secs(10)).is_some());
        drop(installing);
        rewinder.join().unwrap().unwrap();
    }
}
