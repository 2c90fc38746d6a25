//! What goes wrong below SQLite, and the one table that turns it into SQLite's result codes.

use std::ffi::c_int;

use litefs_store::{DbName, ErrorKind};

use crate::ffi::{
    Api, SQLITE_BUSY, SQLITE_BUSY_SNAPSHOT, SQLITE_CANTOPEN, SQLITE_CORRUPT, SQLITE_FULL,
    SQLITE_IOERR, SQLITE_READONLY,
};

/// Why a callback failed. SQLite takes only a code; the text goes to the logs.
#[derive(Debug)]
pub(crate) struct Failure {
    pub code: c_int,
    pub text: String,
}

impl Failure {
    pub(crate) fn new(code: c_int, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// The same failure, saying for which database if its text does not yet.
    pub(crate) fn of(mut self, name: &DbName) -> Self {
        if !self.text.contains(name.as_str()) {
            self.text = format!("{name}: {}", self.text);
        }
        self
    }
}

impl From<litefs_store::Error> for Failure {
    fn from(e: litefs_store::Error) -> Self {
        Self { code: code_of(e.kind()), text: e.to_string() }
    }
}

/// SQLite's code for an error of the store.
fn code_of(kind: ErrorKind) -> c_int {
    match kind {
        ErrorKind::Busy | ErrorKind::Timeout => SQLITE_BUSY,
        ErrorKind::StaleSnapshot => SQLITE_BUSY_SNAPSHOT,
        ErrorKind::ReadOnly => SQLITE_READONLY,
        ErrorKind::Full => SQLITE_FULL,
        ErrorKind::Corrupt => SQLITE_CORRUPT,
        ErrorKind::NotFound | ErrorKind::Invalid => SQLITE_CANTOPEN,
        // Of an unconfirmed transaction too: it drops its cache, and programs take it for an
        // unknown outcome.
        ErrorKind::Io
        | ErrorKind::Unconfirmed
        | ErrorKind::Mismatch
        | ErrorKind::Gone
        | ErrorKind::Closed => SQLITE_IOERR,
    }
}

/// Writes the reason to SQLite's log and ours, and returns the code. A busy database is no news.
pub(crate) fn report(api: &Api, failure: &Failure) -> c_int {
    let Failure { code, text } = failure;
    match *code & 0xff {
        SQLITE_BUSY => {}
        SQLITE_READONLY => {
            tracing::debug!("{text}");
            api.log(*code, text);
        }
        _ => {
            tracing::error!("{text}");
            api.log(*code, text);
        }
    }
    *code
}
