//! Whether what this node has came from the primary that it follows.
//!
//! A replica that was away for longer than the primary keeps its log cannot be placed in the
//! primary's history: it gets a snapshot. If it might hold transactions of its own, it must keep
//! all it has first; that costs a copy of the database and looks like an accident, so it should
//! not happen to a node that was merely switched off. Therefore:
//!
//! * once everything of a primary has arrived, the file `following` in the data directory names
//!   that primary and its epoch;
//! * before this node may commit by itself, the file is removed, durably;
//! * content is *the primary's own* if the file names the primary and epoch that are followed now,
//!   and the newest record in the database's log names another node as its author.
//!
//! Beside it, the file `term` has the epoch in which this node last was in sync with the primary,
//! or was primary itself: a node that was left behind in an older one does not become primary while
//! another knows more.
//!
//! Whenever something is missing or unreadable, the answer is no, and the epoch 0.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use litefs_store::ltx::Header;
use litefs_store::{Database, Store};

use super::wire::Welcome;

const NAME: &str = "following";
const TERM: &str = "term";

/// The file `following`.
pub struct Standing {
    dir: PathBuf,
}

impl Standing {
    /// Of the node with this data directory.
    pub fn of(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf() }
    }

    /// Everything of this primary has arrived.
    ///
    /// # Errors
    /// A file could not be written: content counts as this node's own, or as older than it is.
    pub fn note_in_sync(&self, primary: &Welcome) -> io::Result<()> {
        let new = self.dir.join(format!("{NAME}.new"));
        fs::write(&new, text(primary))?;
        fs::rename(new, self.dir.join(NAME))?;
        self.note_term(primary.epoch)
    }

    /// The epoch in which this node last was in sync with the primary, or was primary; 0 if never.
    pub fn term(&self) -> u64 {
        let text = fs::read_to_string(self.dir.join(TERM)).unwrap_or_default();
        text.trim_end().parse().unwrap_or(0)
    }

    /// From now on this node may commit by itself, in this epoch.
    ///
    /// # Errors
    /// The file may still be there: this node must not commit.
    pub fn note_own_commits(&self, epoch: u64) -> io::Result<()> {
        self.note_term(epoch)?;
        match fs::remove_file(self.dir.join(NAME)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => File::open(&self.dir)?.sync_all(),
        }
    }

    fn note_term(&self, epoch: u64) -> io::Result<()> {
        let new = self.dir.join(format!("{TERM}.new"));
        let mut file = File::create(&new)?;
        writeln!(file, "{epoch}")?;
        file.sync_all()?;
        fs::rename(new, self.dir.join(TERM))?;
        File::open(&self.dir)?.sync_all()
    }

    /// True if this node had everything of this primary, in this epoch, and was not primary since.
    pub fn follows(&self, primary: &Welcome) -> bool {
        fs::read_to_string(self.dir.join(NAME)).is_ok_and(|found| found == text(primary))
    }
}

fn text(primary: &Welcome) -> String {
    format!("{} {:016X} {}\n", primary.cluster, primary.node, primary.epoch)
}

/// True if the newest record in the database's log was committed by another node than this one.
/// Imported, compacted and snapshot records name nobody, and prove nothing.
pub fn is_newest_foreign(store: &Store, db: &Database) -> bool {
    let newest = || -> litefs_store::Result<Option<[u8; Header::LEN]>> {
        let mut cursor = db.log_cursor(db.log_start()?)?;
        let mut newest = None;
        while let Some(record) = cursor.next()? {
            newest = Some(record);
        }
        let mut header = [0; Header::LEN];
        newest.map(|record| record.read_at(0, &mut header).map(|()| header)).transpose()
    };
    let is_foreign = |header: Header| ![0, store.node_id()].contains(&header.node_id);
    match newest() {
        Ok(Some(bytes)) => Header::decode(&bytes).is_ok_and(is_foreign),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn primary(node: u64, epoch: u64) -> Welcome {
        Welcome { node, epoch, cluster: "C".into(), hostname: "h".into() }
    }

    #[test]
    fn only_the_primary_that_everything_came_from_is_trusted_until_own_commits() {
        let dir = tempfile::tempdir().unwrap();
        let standing = Standing::of(dir.path());
        assert!(!standing.follows(&primary(1, 1)));
        assert_eq!(standing.term(), 0);
        standing.note_own_commits(3).unwrap();
        assert_eq!(standing.term(), 3);
        standing.note_in_sync(&primary(1, 1)).unwrap();
        assert_eq!(standing.term(), 1);
        assert!(standing.follows(&primary(1, 1)));
        assert!(!standing.follows(&primary(2, 1)) && !standing.follows(&primary(1, 2)));
        standing.note_own_commits(1).unwrap();
        assert!(!standing.follows(&primary(1, 1)));
        fs::write(dir.path().join(NAME), "C 00000000000").unwrap();
        assert!(!standing.follows(&primary(1, 1)), "torn");
    }
}
