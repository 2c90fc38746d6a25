//! What a registered VFS knows, and what it does with names.

use std::ffi::{CString, c_int};

use crate::errors::Failure;
use crate::ffi::{Api, DefaultVfs, SQLITE_CANTOPEN, SQLITE_OPEN_CREATE, SQLITE_OPEN_READONLY};
use crate::file::MainFile;
use crate::home::Home;
use crate::names::{database_name, is_sidecar};

/// A registered VFS. Never freed: SQLite may call it as long as any connection exists.
pub(crate) struct Vfs {
    pub api: &'static Api,
    /// Takes everything that is not a database of the store.
    pub default: DefaultVfs,
    pub home: Box<dyn Home>,
    pub name: CString,
}

/// URI parameters of a database name.
#[derive(Default)]
pub(crate) struct Params {
    /// `data=`: the data directory (loadable extension only).
    pub data: Option<String>,
    /// `immutable=1`.
    pub immutable: bool,
    /// `nolock=1`.
    pub nolock: bool,
}

impl Vfs {
    /// Identifies this VFS within the process.
    pub(crate) fn id(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Opens a database of the store. `flags` are SQLite's.
    pub(crate) fn open_database(
        &self,
        name: &[u8],
        params: &Params,
        flags: c_int,
    ) -> Result<MainFile, Failure> {
        let name = database_name(name)?;
        if params.nolock {
            return Err(Failure::new(
                SQLITE_CANTOPEN,
                format!("{name}: nolock=1 is not supported; readers block nobody here anyway"),
            ));
        }
        let create = flags & SQLITE_OPEN_CREATE != 0;
        let found = self.home.open(&name, params.data.as_deref(), create)?;
        let found = found.ok_or_else(|| {
            Failure::new(SQLITE_CANTOPEN, format!("there is no database {name} in the store"))
        })?;
        let read_only = flags & SQLITE_OPEN_READONLY != 0;
        let mut file = MainFile::new(found.db, read_only, found.keep);
        if params.immutable {
            file.freeze()?;
        }
        Ok(file)
    }

    /// True if a managed name exists. Journals never do.
    pub(crate) fn exists(&self, name: &[u8]) -> bool {
        // First, because SQLite asks for two journals in every transaction.
        !is_sidecar(name)
            && database_name(name)
                .is_ok_and(|name| self.home.peek(&name).is_some_and(|db| db.page_count() > 0))
    }

    /// Deletes a managed name: drops a database; a journal is not there anyway.
    pub(crate) fn delete(&self, name: &[u8]) -> Result<(), Failure> {
        if let Ok(name) = database_name(name)
            && let Some(db) = self.home.peek(&name)
        {
            db.drop_database()?;
        }
        Ok(())
    }
}
