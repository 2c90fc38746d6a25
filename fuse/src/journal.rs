//! The rollback journal and the super-journal, as far as the mount must understand them.
//!
//! A journal begins with 8 bytes of magic while a transaction is open ("live"); it is finalized by
//! removing it, by truncating it to nothing, or by overwriting its first 28 bytes with zeros.
//!
//! A transaction over several databases writes, before it commits, a super-journal: the paths of
//! all their journals, each followed by a NUL. Each journal then ends in its name (integers are
//! big-endian):
//! ```text
//! u32 number of the lock page | name | u32 length of name | u32 sum of its bytes | 8 bytes magic
//! ```
//! Removing the super-journal commits all of them. The sum is over C's `char`s, signed or not as
//! the machine has it.

use std::ffi::c_char;
use std::io;

/// What a live journal begins with.
pub(crate) const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];

/// How much of a journal's beginning SQLite zeroes to finalize it (journal_mode=PERSIST).
pub(crate) const HEADER_LEN: usize = 28;

/// Behind the name: its length, its sum, the magic.
const NAME_TRAILER: u64 = 16;

/// No name of a super-journal is longer, in bytes: `PATH_MAX`.
const MAX_NAME: u64 = 4096;

/// True if a journal that begins with these bytes belongs to an open transaction.
pub(crate) fn is_live(head: &[u8]) -> bool {
    head.starts_with(&MAGIC)
}

/// True if a file name has the form that SQLite gives to super-journals: `-mj`, six hex digits, a
/// `9`, two hex digits at its end.
pub(crate) fn is_super_journal(name: &str) -> bool {
    let Some((database, digits)) = name.rsplit_once("-mj") else { return false };
    let digits = digits.as_bytes();
    !database.is_empty()
        && digits.len() == 9
        && digits[6] == b'9'
        && digits.iter().all(u8::is_ascii_hexdigit)
}

/// The path of the super-journal that a journal of `len` bytes names at its end; `None` if it
/// names none. `read` fills a buffer from an offset in the journal.
pub(crate) fn super_journal_name(
    len: u64,
    read: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> io::Result<Option<String>> {
    let Some(trailer_at) = len.checked_sub(NAME_TRAILER) else { return Ok(None) };
    let mut trailer = [0; NAME_TRAILER as usize];
    read(trailer_at, &mut trailer)?;
    let [n1, n2, n3, n4, s1, s2, s3, s4, magic @ ..] = trailer;
    let name_len = u64::from(u32::from_be_bytes([n1, n2, n3, n4]));
    if magic != MAGIC || name_len == 0 || name_len > MAX_NAME.min(trailer_at) {
        return Ok(None);
    }
    let mut name = vec![0; name_len as usize];
    read(trailer_at - name_len, &mut name)?;
    if sum(&name) != u32::from_be_bytes([s1, s2, s3, s4]) {
        return Ok(None);
    }
    Ok(String::from_utf8(name).ok().filter(|name| is_super_journal(name) && !name.contains('\0')))
}

/// The paths of the journals that a super-journal names. A path that is not ended yet is left out.
pub(crate) fn journals_of(super_journal: &[u8]) -> Vec<String> {
    let Some(end) = super_journal.iter().rposition(|byte| *byte == 0) else { return Vec::new() };
    super_journal[..end]
        .split(|byte| *byte == 0)
        .map(|path| String::from_utf8_lossy(path).into_owned())
        .collect()
}

fn sum(name: &[u8]) -> u32 {
    name.iter().fold(0, |sum, byte| sum.wrapping_add(*byte as c_char as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;
    use std::path::Path;

    fn name_at_end(journal: &[u8]) -> Option<String> {
        let mut read = |at: u64, buf: &mut [u8]| {
            buf.copy_from_slice(&journal[at as usize..at as usize + buf.len()]);
            Ok(())
        };
        super_journal_name(journal.len() as u64, &mut read).unwrap()
    }

    #[test]
    fn only_names_of_sqlites_form_are_super_journals() {
        assert!(is_super_journal("main.db-mj0123AB9FF"));
        assert!(is_super_journal("/mnt/a-mjb-mj0123ab9ff"));
        for name in ["main.db-mj0123AB8FF", "main.db-mj0123AB9F", "a-mj0123AG9FF", "-mj0123AB9FF"] {
            assert!(!is_super_journal(name), "{name}");
        }
        assert!(!is_super_journal("main.db-mj0123AB9FF-journal"));
    }

    #[test]
    fn damaged_or_short_ends_name_no_super_journal() {
        let name = b"/x/a.db-mj0123AB9FF";
        let mut journal = vec![0; 512];
        journal.extend_from_slice(name);
        journal.extend_from_slice(&(name.len() as u32).to_be_bytes());
        journal.extend_from_slice(&sum(name).to_be_bytes());
        journal.extend_from_slice(&MAGIC);
        assert_eq!(name_at_end(&journal).as_deref(), Some("/x/a.db-mj0123AB9FF"));
        for at in 512..journal.len() {
            let mut bad = journal.clone();
            bad[at] ^= 1;
            assert_eq!(name_at_end(&bad), None, "byte {at}");
        }
        for len in 0..16 {
            assert_eq!(name_at_end(&journal[journal.len() - len..]), None, "{len} bytes");
        }
        assert_eq!(name_at_end(&journal[journal.len() - 20..]), None, "longer than the journal");
    }

    /// What the journals of a transaction over two databases were when they were removed: SQLite
    /// removes their names only, and each has a second one.
    fn journals_of_a_transaction(dir: &Path) -> [Vec<u8>; 2] {
        let (a, b) = (dir.join("a.db"), dir.join("b.db"));
        for path in [&a, &b] {
            let setup = "CREATE TABLE t(x); INSERT INTO t VALUES(1)";
            Connection::open(path).unwrap().execute_batch(setup).unwrap();
        }
        let db = Connection::open(&a).unwrap();
        db.execute_batch(&format!("ATTACH '{}' AS b", b.display())).unwrap();
        db.execute_batch("BEGIN; UPDATE main.t SET x=2; UPDATE b.t SET x=2").unwrap();
        for name in ["a", "b"] {
            let journal = dir.join(format!("{name}.db-journal"));
            std::fs::hard_link(journal, dir.join(format!("{name}-kept"))).unwrap();
        }
        db.execute_batch("COMMIT").unwrap();
        ["a-kept", "b-kept"].map(|name| std::fs::read(dir.join(name)).unwrap())
    }

    #[test]
    fn the_name_that_sqlite_wrote_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = journals_of_a_transaction(dir.path());
        let name = name_at_end(&a).expect("SQLite wrote a super-journal's name");
        assert_eq!(name_at_end(&b).as_ref(), Some(&name));
        let prefix = dir.path().join("a.db-mj");
        assert!(name.starts_with(prefix.to_str().unwrap()), "{name}");
        assert!(is_live(&a) && is_live(&b));
    }

    #[test]
    fn a_journal_of_an_open_transaction_is_live() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let db = Connection::open(&path).unwrap();
        db.execute_batch("CREATE TABLE t(x); BEGIN; INSERT INTO t VALUES(1)").unwrap();
        db.execute_batch("PRAGMA cache_spill=1; PRAGMA cache_size=1").unwrap();
        db.execute_batch(
            "INSERT INTO t SELECT zeroblob(40000); INSERT INTO t SELECT zeroblob(40000)",
        )
        .unwrap();
        let journal = std::fs::read(dir.path().join("a.db-journal")).unwrap();
        assert!(is_live(&journal[..HEADER_LEN]));
        assert_eq!(name_at_end(&journal), None);
    }

    #[test]
    fn a_super_journal_lists_whole_paths_only() {
        assert_eq!(
            journals_of(b"/m/a-journal\0/m/b-journal\0/m/c-jou"),
            ["/m/a-journal", "/m/b-journal"]
        );
        assert_eq!(journals_of(b"/m/a-jour"), Vec::<String>::new());
        assert_eq!(journals_of(b""), Vec::<String>::new());
    }
}
