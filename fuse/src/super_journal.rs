//! SQLite's super-journals: the files whose removal commits a transaction over several databases.
//!
//! Content: the full names of the databases' journals, each ended by a zero byte. A super-journal
//! is closed before it is removed, so that one whose client was killed in between stays; it does
//! no harm, as the journals that name it went with that client's locks.

use std::path::Path;
use std::time::SystemTime;

use fuser::Errno;
use litefs_store::DbName;
use parking_lot::Mutex;

use crate::db::{Part, Result};
use crate::journal;
use crate::name::{self, DbFile, FileKind};

/// The longest content.
const MAX_LEN: usize = 1 << 20;

/// A super-journal.
#[derive(Debug)]
pub(crate) struct SuperJournal {
    name: String,
    created: SystemTime,
    content: Mutex<Vec<u8>>,
}

impl SuperJournal {
    pub(crate) fn new(name: String) -> Self {
        Self { name, created: SystemTime::now(), content: Mutex::default() }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn created(&self) -> SystemTime {
        self.created
    }

    pub(crate) fn len(&self) -> u64 {
        self.content.lock().len() as u64
    }

    /// Up to `len` bytes; fewer at the end.
    pub(crate) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        slice(&self.content.lock(), offset, len).to_vec()
    }

    /// Writes all of `data`.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let start = usize::try_from(offset).map_err(|_| Errno::EFBIG)?;
        let end =
            start.checked_add(data.len()).filter(|end| *end <= MAX_LEN).ok_or(Errno::EFBIG)?;
        let mut content = self.content.lock();
        if content.len() < end {
            content.resize(end, 0);
        }
        content[start..end].copy_from_slice(data);
        Ok(())
    }

    pub(crate) fn truncate(&self, len: u64) -> Result<()> {
        let len = usize::try_from(len).ok().filter(|len| *len <= MAX_LEN).ok_or(Errno::EFBIG)?;
        self.content.lock().resize(len, 0);
        Ok(())
    }

    /// The databases whose journals it names. Those in other directories have no part in it that
    /// this mount could know of.
    pub(crate) fn databases(&self) -> Vec<DbName> {
        let journals = journal::journals_of(&self.content.lock());
        let mut names: Vec<DbName> = journals.iter().filter_map(|path| database(path)).collect();
        names.sort();
        names.dedup();
        names
    }
}

/// The database that a journal's full name belongs to.
fn database(path: &str) -> Option<DbName> {
    match name::parse(Path::new(path).file_name()?)? {
        FileKind::Db(db, DbFile::Part(Part::Journal)) => Some(db),
        _ => None,
    }
}

/// The bytes of `content` that a read of `len` at `offset` gets.
pub(crate) fn slice(content: &[u8], offset: u64, len: usize) -> &[u8] {
    let start = usize::try_from(offset).map_or(content.len(), |start| start.min(content.len()));
    &content[start..content.len().min(start.saturating_add(len))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_databases_are_those_of_the_journals_that_it_names() {
        let journal = SuperJournal::new("a.db-mj0000009AA".to_owned());
        journal.write(0, b"/mnt/a.db-journal\0/mnt/b.db-journal\0").unwrap();
        journal.write(36, b"/mnt/a.db-journal\0/mnt/no-journal-here\0/mnt/-journal\0").unwrap();
        let names: Vec<String> = journal.databases().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["a.db", "b.db"]);
    }

    #[test]
    fn what_a_client_writes_is_bounded() {
        let journal = SuperJournal::new("x".to_owned());
        for offset in [MAX_LEN as u64, u64::MAX, u64::MAX - 1] {
            assert_eq!(journal.write(offset, b"ab"), Err(Errno::EFBIG));
        }
        assert_eq!(journal.truncate(u64::MAX), Err(Errno::EFBIG));
        journal.write(3, b"ab").unwrap();
        assert_eq!((journal.len(), journal.read(0, 100)), (5, b"\0\0\0ab".to_vec()));
        assert_eq!(journal.read(4, 1), b"b");
        assert!(journal.read(u64::MAX, usize::MAX).is_empty());
        journal.truncate(0).unwrap();
        assert_eq!(journal.len(), 0);
    }
}
