//! Database names: one path component, safe to use as a directory name.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::{Error, Result};

/// A database's name, checked when made. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DbName(Arc<str>);

/// Suffixes of the files that SQLite and LiteFS keep beside a database.
const RESERVED_SUFFIXES: [&str; 5] = ["-journal", "-wal", "-shm", "-pos", "-lock"];

/// The longest name, in bytes.
const MAX_LEN: usize = 200;

impl DbName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`Error::InvalidName`] unless it is one path component of 1 to 200 bytes without a leading
    /// dot, control characters or a reserved suffix (`-journal`, `-wal`, `-shm`, `-pos`, `-lock`).
    pub fn new(name: &str) -> Result<Self> {
        match fault(name) {
            None => Ok(Self(name.into())),
            Some(reason) => {
                Err(Error::InvalidName { name: name.chars().take(80).collect(), reason })
            }
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn fault(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("it is empty")
    } else if name.len() > MAX_LEN {
        Some("it is longer than 200 bytes")
    } else if name.contains(['/', '\\']) {
        Some("it contains a slash; a database is a single file without a directory")
    } else if name.starts_with('.') {
        Some("it begins with a dot")
    } else if name.chars().any(char::is_control) {
        Some("it contains a control character")
    } else if RESERVED_SUFFIXES.iter().any(|suffix| name.ends_with(suffix)) {
        Some(
            "it ends in -journal, -wal, -shm, -pos or -lock, which are kept for a database's side files",
        )
    } else {
        None
    }
}

impl fmt::Display for DbName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DbName {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::new(s)
    }
}

impl AsRef<str> for DbName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_directory_or_clash_are_refused() {
        for bad in ["", ".", "..", ".x", "a/b", "../x", "a\\b", "x-wal", "x-journal", "a\0b", "a\n"]
        {
            assert!(DbName::new(bad).is_err(), "{bad:?}");
        }
        assert!(DbName::new(&"x".repeat(201)).is_err());
        for good in ["app.db", "a b", "db-1", "ü.sqlite", "x-walrus"] {
            assert_eq!(DbName::new(good).unwrap().as_str(), good);
        }
    }
}
