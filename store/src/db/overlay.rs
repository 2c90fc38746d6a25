//! The pages that a transaction has written and not committed: in memory up to a bound, beyond it
//! in a file without a name.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use litefs_ltx::{PageSize, Pgno};

use crate::error::IoContext;
use crate::shared::Shared;
use crate::{File, OpenMode, Result};

/// Bytes of a local transaction's pages kept in memory.
pub(crate) const LOCAL_LIMIT: usize = 64 << 20;
/// The same for a peer's record, of which many may arrive at once.
pub(crate) const PEER_LIMIT: usize = 8 << 20;

#[derive(Debug)]
enum Slot {
    Memory(Arc<[u8]>),
    /// Where in the spill file.
    Spilled(u64),
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Overlay {
    pages: BTreeMap<Pgno, Slot>,
    page_size: PageSize,
    in_memory: usize,
    limit: usize,
    spill: Option<Spill>,
}

#[derive(Debug)]
struct Spill {
    file: Arc<dyn File>,
    path: PathBuf,
    len: u64,
}

impl Overlay {
    /// Without pages; keeps `limit` bytes of them in memory.
    pub(crate) fn new(page_size: PageSize, limit: usize) -> Self {
        Self { pages: BTreeMap::new(), page_size, in_memory: 0, limit, spill: None }
    }

    pub(crate) fn page_size(&self) -> PageSize {
        self.page_size
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    pub(crate) fn max(&self) -> Option<Pgno> {
        self.pages.keys().next_back().copied()
    }

    pub(crate) fn contains(&self, pgno: Pgno) -> bool {
        self.pages.contains_key(&pgno)
    }

    /// The numbers of the pages, ascending.
    pub(crate) fn pgnos(&self) -> impl Iterator<Item = Pgno> + '_ {
        self.pages.keys().copied()
    }

    /// Pages that are still in memory.
    pub(crate) fn into_memory_pages(self) -> impl Iterator<Item = (Pgno, Arc<[u8]>)> {
        self.pages.into_iter().filter_map(|(pgno, slot)| match slot {
            Slot::Memory(page) => Some((pgno, page)),
            Slot::Spilled(_) => None,
        })
    }

    /// Keeps a page's content in place of an earlier one.
    pub(crate) fn write(&mut self, shared: &Shared, pgno: Pgno, data: &[u8]) -> Result<()> {
        match self.pages.get_mut(&pgno) {
            Some(Slot::Memory(page)) => {
                match Arc::get_mut(page) {
                    Some(page) => page.copy_from_slice(data),
                    None => *page = data.into(),
                }
                Ok(())
            }
            Some(Slot::Spilled(offset)) => {
                let spill = self.spill.as_ref().expect("BUG: a spilled page has a file");
                spill.file.write_all_at(data, *offset).at("write", &spill.path)
            }
            None if self.in_memory + data.len() > self.limit => self.spill(shared, pgno, data),
            None => {
                self.in_memory += data.len();
                self.pages.insert(pgno, Slot::Memory(data.into()));
                Ok(())
            }
        }
    }

    fn spill(&mut self, shared: &Shared, pgno: Pgno, data: &[u8]) -> Result<()> {
        if self.spill.is_none() {
            let path = shared.dir.join(format!("spill-{}", shared.next_id()));
            let file = shared.storage.open(&path, OpenMode::CreateNew).at("create", &path)?;
            shared.storage.remove_file(&path).at("remove", &path)?;
            self.spill = Some(Spill { file, path, len: 0 });
        }
        let spill = self.spill.as_mut().expect("BUG: just made");
        spill.file.write_all_at(data, spill.len).at("write", &spill.path)?;
        self.pages.insert(pgno, Slot::Spilled(spill.len));
        spill.len += data.len() as u64;
        Ok(())
    }

    /// Reads bytes of a page; false if it was not written.
    pub(crate) fn read(&self, pgno: Pgno, offset: usize, buf: &mut [u8]) -> Result<bool> {
        match self.pages.get(&pgno) {
            None => return Ok(false),
            Some(Slot::Memory(page)) => buf.copy_from_slice(&page[offset..offset + buf.len()]),
            Some(Slot::Spilled(at)) => {
                let spill = self.spill.as_ref().expect("BUG: a spilled page has a file");
                spill.file.read_exact_at(buf, at + offset as u64).at("read", &spill.path)?;
            }
        }
        Ok(true)
    }

    /// Calls `f` with a page's content.
    pub(crate) fn with_page<T>(&self, pgno: Pgno, f: impl FnOnce(&[u8]) -> T) -> Result<Option<T>> {
        if let Some(Slot::Memory(page)) = self.pages.get(&pgno) {
            return Ok(Some(f(page)));
        }
        let mut page = vec![0; self.page_size.len()];
        Ok(self.read(pgno, 0, &mut page)?.then(|| f(&page)))
    }
}
