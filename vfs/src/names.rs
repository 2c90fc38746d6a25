//! Which names belong to the store, and which to the file system.
//!
//! A name without a slash is a database of the store; a path with one (`/tmp/x.db`, `./x.db`) is a
//! plain file and goes to the default VFS. SQLite derives further names from a database's: its
//! journals, which exist only inside the VFS.

use litefs_store::DbName;

use crate::errors::Failure;
use crate::ffi::SQLITE_CANTOPEN;

/// The name within the store; `None` for a plain file.
#[cfg(not(feature = "testfixture"))]
pub(crate) fn within_store(name: &[u8]) -> Option<&[u8]> {
    (!name.is_empty() && !name.contains(&b'/')).then_some(name)
}

#[cfg(feature = "testfixture")]
pub(crate) use crate::testfixture::within_store;

/// Checks a name within the store; the error says what is wrong with it.
pub(crate) fn database_name(name: &[u8]) -> Result<DbName, Failure> {
    let shown = String::from_utf8_lossy(name);
    let failure =
        |reason: &dyn std::fmt::Display| Failure::new(SQLITE_CANTOPEN, reason.to_string());
    let text = std::str::from_utf8(name)
        .map_err(|_| failure(&format_args!("database name {shown:?} is not UTF-8")))?;
    DbName::new(text).map_err(|e| failure(&e))
}

/// True for the names that SQLite makes from a database's name. (That of a super-journal could be
/// a database's too; SQLite says which it means when it opens one.)
pub(crate) fn is_sidecar(name: &[u8]) -> bool {
    const SUFFIXES: [&[u8]; 3] = [b"-journal", b"-wal", b"-shm"];
    SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_without_a_slash_belong_to_the_store() {
        for plain in ["", "/tmp/app.db", "./app.db", "dir/app.db", "/tmp/app.db-journal"] {
            assert_eq!(within_store(plain.as_bytes()), None, "{plain}");
        }
        assert_eq!(within_store(b"app.db"), Some(&b"app.db"[..]));
        assert_eq!(database_name(b"app.db").unwrap().as_str(), "app.db");
    }

    #[test]
    fn journals_of_a_managed_database_never_reach_the_file_system() {
        for side in [&b"app.db-journal"[..], b"app.db-wal", b"app.db-shm"] {
            assert_eq!(within_store(side), Some(side));
            assert!(is_sidecar(side));
            assert!(database_name(side).is_err());
        }
    }

    #[test]
    fn bad_names_are_refused_with_a_reason() {
        for bad in [&b".hidden"[..], b"\xff.db", b".."] {
            assert!(!database_name(bad).unwrap_err().text.is_empty());
        }
    }
}
