//! Keeping what the primary does not have, and telling the operator.

use litefs_store::{Database, Pos};

/// Keeps what this node has beyond `common`, before anything of it is replaced, and says how to
/// look at it.
///
/// # Errors
/// The store's: nothing may be replaced.
pub fn keep(db: &Database, common: Option<Pos>) -> litefs_store::Result<()> {
    let Some(kept) = db.preserve_diverged(common)? else { return Ok(()) };
    let what = match kept.transactions() {
        Some(1) => "1 transaction".to_owned(),
        Some(count) => format!("{count} transactions"),
        None => "the whole database".to_owned(),
    };
    let path = kept.path.display();
    // Two levels above the database's directory.
    let data = db.dir().ancestors().nth(2).unwrap_or(db.dir()).display();
    let id = kept.id();
    let how = match kept.whole {
        true => format!(
            "to read it as a SQLite database, type: litefs-node ltx extract --data-dir {data} \
             --diverged {id} --out FILE"
        ),
        false => "its records are there, but not the whole database".to_owned(),
    };
    let (db, newest) = (db.name(), kept.newest);
    tracing::warn!(
        %db, %newest,
        "kept {what} of this node that the primary does not have, in {path}; {how}; once nobody \
         needs it: litefs-node ltx forget --data-dir {data} --diverged {id}"
    );
    Ok(())
}
