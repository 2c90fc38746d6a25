//! Where a VFS finds its databases.

use std::any::Any;

use litefs_store::{Database, DbName};

use crate::errors::Failure;

/// A database that was found, and what keeps its store open until the file is closed.
pub(crate) struct Found {
    pub db: Database,
    pub keep: Box<dyn Any + Send>,
}

/// The store (or stores) behind a VFS.
pub(crate) trait Home: Send + Sync {
    /// The database of this name, created if `create`; `None` if it does not exist. `dir` is the
    /// URI parameter `data`.
    fn open(
        &self,
        name: &DbName,
        dir: Option<&str>,
        create: bool,
    ) -> Result<Option<Found>, Failure>;

    /// The database if it is open somewhere or can be found without opening a store.
    fn peek(&self, name: &DbName) -> Option<Database>;
}
