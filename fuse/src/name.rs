//! What a file name in the mounted directory stands for.

use std::ffi::OsStr;

use litefs_store::DbName;

use crate::db::Part;
use crate::journal;

/// Beside each database, in the order in which they are announced.
pub(crate) const SUFFIXES: [(&str, DbFile); 5] = [
    ("-journal", DbFile::Part(Part::Journal)),
    ("-wal", DbFile::Part(Part::Wal)),
    ("-shm", DbFile::Part(Part::Shm)),
    ("-pos", DbFile::Pos),
    ("-lock", DbFile::Lock),
];

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// `.primary`: the primary's host name.
    Primary,
    /// `.lag`: how far this node is behind.
    Lag,
    /// A file of a database.
    Db(DbName, DbFile),
    /// A super-journal.
    SuperJournal(String),
}

/// Which file of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DbFile {
    /// One that SQLite reads and writes.
    Part(Part),
    /// `-pos`: the position.
    Pos,
    /// `-lock`: byte 72 is LiteFS's HALT lock.
    Lock,
}

/// What `name` stands for; `None` if no file can have it.
pub(crate) fn parse(name: &OsStr) -> Option<FileKind> {
    let name = name.to_str()?;
    match name {
        ".primary" => return Some(FileKind::Primary),
        ".lag" => return Some(FileKind::Lag),
        _ => {}
    }
    if journal::is_super_journal(name) && DbName::new(name).is_ok() {
        return Some(FileKind::SuperJournal(name.to_owned()));
    }
    for (suffix, file) in SUFFIXES {
        if let Some(db) = name.strip_suffix(suffix) {
            return Some(FileKind::Db(DbName::new(db).ok()?, file));
        }
    }
    Some(FileKind::Db(DbName::new(name).ok()?, DbFile::Part(Part::Main)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn db(name: &str, file: DbFile) -> Option<FileKind> {
        Some(FileKind::Db(DbName::new(name).unwrap(), file))
    }

    #[test]
    fn each_suffix_belongs_to_the_database_before_it() {
        let kind = |name: &str| parse(OsStr::new(name));
        assert_eq!(kind("app.db"), db("app.db", DbFile::Part(Part::Main)));
        assert_eq!(kind("app.db-journal"), db("app.db", DbFile::Part(Part::Journal)));
        assert_eq!(kind("app.db-wal"), db("app.db", DbFile::Part(Part::Wal)));
        assert_eq!(kind("app.db-shm"), db("app.db", DbFile::Part(Part::Shm)));
        assert_eq!(kind("app.db-pos"), db("app.db", DbFile::Pos));
        assert_eq!(kind("app.db-lock"), db("app.db", DbFile::Lock));
        assert_eq!(kind("wal"), db("wal", DbFile::Part(Part::Main)));
        assert_eq!(kind(".primary"), Some(FileKind::Primary));
        assert_eq!(kind(".lag"), Some(FileKind::Lag));
    }

    #[test]
    fn names_that_no_file_can_have_stand_for_nothing() {
        let long = "x".repeat(201);
        for name in ["-wal", "", ".git", ".primary-pos", "a-wal-wal", "a-pos-journal", &long] {
            assert_eq!(parse(OsStr::new(name)), None, "{name:?}");
        }
        use std::os::unix::ffi::OsStrExt;
        assert_eq!(parse(OsStr::from_bytes(b"a\xff")), None);
    }

    #[test]
    fn a_super_journal_is_no_database() {
        let name = "app.db-mj0A1B2C9FF";
        assert_eq!(parse(OsStr::new(name)), Some(FileKind::SuperJournal(name.to_owned())));
        assert_eq!(parse(OsStr::new(".a-mj0A1B2C9FF")), None);
        assert_eq!(parse(OsStr::new("app.db-mj")), db("app.db-mj", DbFile::Part(Part::Main)));
    }
}
