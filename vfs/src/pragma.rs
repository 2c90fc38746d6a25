//! The `PRAGMA`s that mean something else here than in plain SQLite.
//!
//! SQLite asks the VFS before it looks at a `PRAGMA` itself. One that the VFS answers becomes a row
//! with a single text; SQLite uses the text for the name of the column too.

use litefs_store::Durability;

use crate::file::MainFile;

/// What becomes of a `PRAGMA`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// SQLite handles it.
    Pass,
    /// The statement yields this text.
    Answer(&'static str),
}

/// SQLite's journal modes, in its order: the first that begins with what was asked for is meant.
const JOURNAL_MODES: [&str; 6] = ["delete", "persist", "off", "truncate", "memory", "wal"];

/// Handles `PRAGMA name = value`. SQLite ignores `synchronous` inside a transaction.
pub(crate) fn handle(
    file: &mut MainFile,
    name: &str,
    value: Option<&str>,
    in_transaction: bool,
) -> Reply {
    if name.eq_ignore_ascii_case("journal_mode") {
        return journal_mode(file, value);
    }
    if let Some(value) = value {
        if name.eq_ignore_ascii_case("synchronous") && !in_transaction {
            file.settings.durability = durability(value);
        } else if name.eq_ignore_ascii_case("locking_mode") {
            return locking_mode(file, value);
        }
    }
    if name.eq_ignore_ascii_case("wal_checkpoint")
        && let Err(e) = file.database().fold()
    {
        tracing::warn!("wal_checkpoint: {e}");
    }
    Reply::Pass
}

/// Any mode is accepted, as the log takes the place of every journal. SQLite keeps its own rollback
/// journal in memory throughout.
fn journal_mode(file: &mut MainFile, value: Option<&str>) -> Reply {
    let asked = value.and_then(|value| {
        JOURNAL_MODES.into_iter().find(|mode| {
            mode.get(..value.len()).is_some_and(|head| head.eq_ignore_ascii_case(value))
        })
    });
    if let Some(mode) = asked {
        file.settings.journal_mode = mode;
    }
    Reply::Answer(file.settings.journal_mode)
}

/// `EXCLUSIVE` inside a transaction is refused, as SQLite lets a `PRAGMA` be, where the transaction
/// could not become a write transaction any more.
fn locking_mode(file: &mut MainFile, value: &str) -> Reply {
    if value.eq_ignore_ascii_case("normal") {
        file.settings.exclusive = false;
    } else if value.eq_ignore_ascii_case("exclusive") {
        if !file.can_stay_locked() {
            return Reply::Answer("normal");
        }
        file.settings.exclusive = true;
    }
    Reply::Pass
}

/// Reads a value of `PRAGMA synchronous` as SQLite does.
fn durability(value: &str) -> Durability {
    let level = if value.starts_with(|first: char| first.is_ascii_digit()) {
        leading_number(value)
    } else {
        match value.to_ascii_lowercase().as_str() {
            "off" | "no" | "false" => 0,
            "full" => 2,
            "extra" => 3,
            _ => 1, // also "normal", which SQLite does not know by name
        }
    };
    match (level + 1) & 7 {
        0 | 1 => Durability::Off,
        2 => Durability::Normal,
        _ => Durability::Full,
    }
}

/// Reads a boolean URI parameter as SQLite does.
pub(crate) fn is_true(value: &str) -> bool {
    if value.starts_with(|first: char| first.is_ascii_digit()) {
        return leading_number(value) != 0;
    }
    ["on", "yes", "true"].into_iter().any(|word| value.eq_ignore_ascii_case(word))
}

/// SQLite's `atoi`: digits until something else; 0 if they do not fit in 32 bits.
fn leading_number(value: &str) -> i64 {
    let digits = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    value[..digits].parse::<i32>().map_or(0, i64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(feature = "rusqlite")]
    fn synchronous_is_read_as_sqlite_reads_it() {
        let conn = rusqlite::Connection::open_in_memory().unwrap();
        for value in [
            "OFF",
            "0",
            "no",
            "false",
            "NORMAL",
            "1",
            "on",
            "yes",
            "true",
            "nonsense",
            "full",
            "2",
            "EXTRA",
            "3",
            "6",
            "7",
            "8",
            "9",
            "10",
            "99999999999",
            "2x",
        ] {
            conn.execute_batch(&format!("PRAGMA main.synchronous = '{value}'")).unwrap();
            let level: i64 = conn.query_row("PRAGMA synchronous", [], |row| row.get(0)).unwrap();
            let expected = match level {
                0 => Durability::Off,
                1 => Durability::Normal,
                _ => Durability::Full,
            };
            assert_eq!(durability(value), expected, "{value} means {level} to SQLite");
        }
    }
}
