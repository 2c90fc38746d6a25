//! Whether what this node has came from the primary that it follows.
//!
//! A replica that was away for longer than the primary keeps its log cannot be placed in the
//! primary's history: it gets a snapshot. If it might hold transactions of its own, it must keep
//! all it has first; that costs a copy of the database and looks like an accident, so it should
//! not happen to a node that was merely switched off. Therefore:
//!
//! * once everything of a primary has arrived, the file `following` in the data directory names
//!   that primary and its epoch, and the position of each of its databases; a snapshot that comes
//!   later adds a line;
//! * before this node may commit by itself, the file is removed, durably;
//! * content is *the primary's own* if the file names the primary and epoch that are followed now,
//!   and either the newest record in the database's log names another node as its author, or the
//!   database is at the position that the file has for it (imports and snapshots name no author).
//!
//! Beside it, the file `term` has the epoch in which this node last was in sync with the primary,
//! or was primary itself: a node that was left behind in an older one does not become primary while
//! another knows more.
//!
//! Whenever something is missing or unreadable, the answer is no, and the epoch 0.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use litefs_store::{Database, DbName, Pos, Store};

use super::wire::Welcome;

const NAME: &str = "following";
const TERM: &str = "term";

/// The file `following`.
pub struct Following {
    dir: PathBuf,
}

/// Where databases were when all that they had came from the primary.
pub type Received = HashMap<DbName, Pos>;

impl Following {
    /// Of the node with this data directory.
    pub fn of(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf() }
    }

    /// Everything of this primary has arrived: these databases are its own, where they are.
    ///
    /// # Errors
    /// A file could not be written: content counts as this node's own, or as older than it is.
    pub fn note_in_sync(&self, primary: &Welcome, received: &Received) -> io::Result<()> {
        let new = self.dir.join(format!("{NAME}.new"));
        let lines = received.iter().map(|(db, pos)| line(db, *pos));
        fs::write(&new, header(primary) + &lines.collect::<String>())?;
        fs::rename(new, self.dir.join(NAME))?;
        self.note_term(primary.epoch)
    }

    /// The epoch in which this node last was in sync with the primary, or was primary; 0 if never.
    pub fn term(&self) -> u64 {
        let text = fs::read_to_string(self.dir.join(TERM)).unwrap_or_default();
        text.trim_end().parse().unwrap_or(0)
    }

    /// A snapshot of the primary that the file names was installed.
    ///
    /// # Errors
    /// As [`Following::note_in_sync`].
    pub fn note_received(&self, db: &DbName, pos: Pos) -> io::Result<()> {
        let file = OpenOptions::new().append(true).open(self.dir.join(NAME));
        match file {
            // Removed meanwhile: this node is no replica any more.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            file => file?.write_all(line(db, pos).as_bytes()),
        }
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

    /// What came from this primary, in this epoch; `None` if this node never had everything of it,
    /// or was primary since.
    pub fn received_of(&self, primary: &Welcome) -> Option<Received> {
        let text = fs::read_to_string(self.dir.join(NAME)).ok()?;
        let lines = text.strip_prefix(&header(primary))?;
        // The last line may be torn; a later one counts more.
        let whole = &lines[..lines.rfind('\n').map_or(0, |end| end + 1)];
        Some(whole.lines().filter_map(parse_line).collect())
    }
}

fn header(primary: &Welcome) -> String {
    format!("{} {:016X} {}\n", primary.cluster, primary.node, primary.epoch)
}

/// No name holds a line feed.
fn line(db: &DbName, pos: Pos) -> String {
    format!("{pos} {db}\n")
}

fn parse_line(line: &str) -> Option<(DbName, Pos)> {
    let (pos, db) = line.split_once(' ')?;
    Some((DbName::new(db).ok()?, pos.parse().ok()?))
}

/// True if everything in the database came from the primary of which `received` is known.
pub fn came_from_primary(store: &Store, db: &Database, received: &Received) -> bool {
    let author = db.newest_author().ok().flatten();
    let is_foreign = author.is_some_and(|author| ![0, store.node_id()].contains(&author));
    is_foreign || received.get(db.name()) == Some(&db.pos())
}

/// Where the databases are of which everything came from the primary, once it has said so.
pub fn received_now(store: &Store, databases: &[Database]) -> Received {
    let author = |db: &Database| db.newest_author().ok().flatten();
    let theirs = databases.iter().filter(|db| author(db) != Some(store.node_id()));
    theirs.map(|db| (db.name().clone(), db.pos())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DbName {
        DbName::new(text).unwrap()
    }

    fn primary(node: u64, epoch: u64) -> Welcome {
        Welcome { node, epoch, cluster: "C".into(), hostname: "h".into() }
    }

    #[test]
    fn only_the_primary_that_everything_came_from_is_trusted_until_own_commits() {
        let dir = tempfile::tempdir().unwrap();
        let following = Following::of(dir.path());
        let follows = |node, epoch| following.received_of(&primary(node, epoch)).is_some();
        let none = Received::new();
        assert!(!follows(1, 1));
        assert_eq!(following.term(), 0);
        following.note_own_commits(3).unwrap();
        assert_eq!(following.term(), 3);
        following.note_in_sync(&primary(1, 1), &none).unwrap();
        assert_eq!(following.term(), 1);
        assert!(follows(1, 1));
        assert!(!follows(2, 1) && !follows(1, 2) && !follows(1, 11));
        following.note_own_commits(1).unwrap();
        assert!(!follows(1, 1));
        following.note_received(&name("a"), Pos::ZERO).unwrap();
        assert!(!follows(1, 1), "a snapshot alone says nothing of the rest");
        fs::write(dir.path().join(NAME), "C 00000000000").unwrap();
        assert!(!follows(1, 1), "torn");
    }

    #[test]
    fn positions_are_remembered_and_a_torn_line_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let following = Following::of(dir.path());
        let pos = |n: u64| format!("{n:016x}/8000000000000001").parse::<Pos>().unwrap();
        let first = Received::from([(name("a b.db"), pos(1))]);
        following.note_in_sync(&primary(1, 1), &first).unwrap();
        following.note_received(&name("c"), pos(2)).unwrap();
        following.note_received(&name("a b.db"), pos(3)).unwrap();
        let expected = Received::from([(name("a b.db"), pos(3)), (name("c"), pos(2))]);
        assert_eq!(following.received_of(&primary(1, 1)), Some(expected.clone()));
        let path = dir.path().join(NAME);
        let torn = fs::read_to_string(&path).unwrap() + &line(&name("c"), pos(9));
        fs::write(&path, &torn[..torn.len() - 1]).unwrap();
        assert_eq!(following.received_of(&primary(1, 1)), Some(expected));
    }
}
