//! The VFSes that this process registered with SQLite.
//!
//! Each store gets a VFS of its own (`litefs-1`, `litefs-2`, ...), so that a program with several
//! stores always reaches the right one. The plain name `litefs` is the store registered last.

use litefs_store::{Database, DbName, Store, WeakStore};
use parking_lot::Mutex;

use crate::errors::Failure;
use crate::ffi::{Api, SQLITE_CANTOPEN};
use crate::home::{Found, Home};
use crate::install::{PLAIN_NAME, Refused, Registered, make};

/// The VFSes of one store.
struct Entry {
    store: WeakStore,
    name: String,
    own: Registered,
    /// Registered as `litefs`; kept to be taken up again.
    plain: Option<Registered>,
}

/// All stores that have a VFS.
struct Registry {
    entries: Vec<Entry>,
    count: u64,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { entries: Vec::new(), count: 0 });

/// The name of the store's own VFS, registered if it was not.
pub(crate) fn own_name(api: &'static Api, store: &Store) -> Result<String, Refused> {
    let mut registry = REGISTRY.lock();
    let at = registry.entry(api, store)?;
    Ok(registry.entries[at].name.clone())
}

/// Gives the plain name to this store.
pub(crate) fn take_plain_name(api: &'static Api, store: &Store) -> Result<(), Refused> {
    let mut registry = REGISTRY.lock();
    let at = registry.entry(api, store)?;
    let entry = &mut registry.entries[at];
    let plain = match entry.plain.take() {
        Some(plain) => plain,
        None => make(api, PLAIN_NAME, Box::new(OneStore(store.downgrade())))?,
    };
    entry.plain = Some(plain);
    for other in registry.entries.iter().filter_map(|entry| entry.plain.as_ref()) {
        other.withdraw(api);
    }
    registry.entries[at].plain.as_ref().map_or(Ok(()), |plain| plain.offer(api, false))
}

/// Takes the store's VFSes out of SQLite's list. Open connections go on.
pub(crate) fn forget(api: &Api, store: &Store) {
    REGISTRY.lock().remove(api, |entry| entry.store.upgrade().is_some_and(|other| other == *store));
}

impl Registry {
    /// Index of the store's entry; a new one if there is none.
    fn entry(&mut self, api: &'static Api, store: &Store) -> Result<usize, Refused> {
        self.remove(api, |entry| entry.store.upgrade().is_none_or(|store| store.is_closed()));
        let known = self
            .entries
            .iter()
            .position(|entry| entry.store.upgrade().is_some_and(|other| other == *store));
        if let Some(at) = known {
            return Ok(at);
        }
        self.count += 1;
        let name = format!("{PLAIN_NAME}-{}", self.count);
        let own = make(api, &name, Box::new(OneStore(store.downgrade())))?;
        own.offer(api, false)?;
        self.entries.push(Entry { store: store.downgrade(), name, own, plain: None });
        Ok(self.entries.len() - 1)
    }

    fn remove(&mut self, api: &Api, which: impl Fn(&Entry) -> bool) {
        for entry in self.entries.extract_if(.., |entry| which(entry)) {
            entry.own.withdraw(api);
            if let Some(plain) = entry.plain {
                plain.withdraw(api);
            }
        }
    }
}

/// One store, that of the program. It is not kept alive.
struct OneStore(WeakStore);

impl OneStore {
    fn store(&self) -> Result<Store, Failure> {
        self.0
            .upgrade()
            .filter(|store| !store.is_closed())
            .ok_or_else(|| Failure::new(SQLITE_CANTOPEN, "the store behind this VFS was closed"))
    }
}

impl Home for OneStore {
    fn open(
        &self,
        name: &DbName,
        dir: Option<&str>,
        create: bool,
    ) -> Result<Option<Found>, Failure> {
        let store = self.store()?;
        if let Some(dir) = dir {
            return Err(Failure::new(
                SQLITE_CANTOPEN,
                format!(
                    "the parameter data={dir} is only for the loadable extension: this program \
                     keeps its databases in {}",
                    store.dir().display()
                ),
            ));
        }
        let db = if create { Some(store.create(name)?) } else { store.database(name) };
        Ok(db.map(|db| Found { db, keep: Box::new(()) }))
    }

    fn peek(&self, name: &DbName) -> Option<Database> {
        self.store().ok()?.database(name)
    }
}
