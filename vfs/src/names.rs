//! Which names belong to the store, and which to the file system.
//!
//! A name without a slash is a database of the store; a path with one (`/tmp/x.db`, `./x.db`) is a
//! plain file and goes to the default VFS. SQLite derives further names from a database's: its
//! journals, which exist only inside the VFS.

use litefs_store::DbName;

/// What a name stands for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A plain file, of the default VFS.
    Plain,
    /// A database of the store.
    Database(DbName),
    /// A journal or WAL beside a database of the store.
    Sidecar,
}

/// Sorts a name; the error says what is wrong with one that is neither.
pub(crate) fn target(name: &[u8]) -> Result<Target, String> {
    if name.is_empty() || name.contains(&b'/') {
        return Ok(Target::Plain);
    }
    if is_sidecar(name) {
        return Ok(Target::Sidecar);
    }
    let text = std::str::from_utf8(name)
        .map_err(|_| format!("database name is not UTF-8: {:?}", String::from_utf8_lossy(name)))?;
    DbName::new(text).map(Target::Database).map_err(|e| e.to_string())
}

/// True for the names that SQLite makes from a database's name. (That of a super-journal could be
/// a database's too; SQLite says which it means when it opens one.)
fn is_sidecar(name: &[u8]) -> bool {
    const SUFFIXES: [&[u8]; 3] = [b"-journal", b"-wal", b"-shm"];
    SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_without_a_slash_belong_to_the_store() {
        for plain in ["", "/tmp/app.db", "./app.db", "dir/app.db", "/tmp/app.db-journal"] {
            assert_eq!(target(plain.as_bytes()), Ok(Target::Plain), "{plain}");
        }
        assert!(
            matches!(target(b"app.db"), Ok(Target::Database(name)) if name.as_str() == "app.db")
        );
    }

    #[test]
    fn journals_of_a_managed_database_never_reach_the_file_system() {
        for side in ["app.db-journal", "app.db-wal", "app.db-shm"] {
            assert_eq!(target(side.as_bytes()), Ok(Target::Sidecar), "{side}");
        }
    }

    #[test]
    fn bad_names_are_refused_with_a_reason() {
        assert!(target(b".hidden").is_err());
        assert!(target(b"\xff.db").is_err());
    }
}
