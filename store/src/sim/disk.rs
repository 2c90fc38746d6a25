//! The running disk: the calls of [`Storage`] and [`File`], logged, counted, and failing when told
//! to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::content::BLOCK;
use super::fault::{CallKind, Fault, FaultError, Faults, enospc};
use super::image::{ImageBuilder, ImageKind};
use super::rng::Rng;
use super::state::State;
use super::volume::{Change, EntryOp, Ino, Node, Op, Place, Volume, names};
use crate::storage::{DirLock, File, LOCK_FILE, OpenMode, SECTOR, Storage, locked_error};

/// No file may grow longer than this (64 GiB): the list of blocks is in memory.
const MAX_LEN: u64 = 64 << 30;

/// A simulated disk; see [the module](super) for what it simulates. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    shared: Shared,
}

type Shared = Arc<Mutex<Inner>>;

struct Inner {
    /// How the disk was before the log's first operation.
    base: State,
    /// How programs see it now.
    live: Volume,
    log: Vec<Op>,
    next_ino: Ino,
    /// How many handles are open on a file.
    handles: BTreeMap<Ino, usize>,
    /// Files without a name that still have open handles.
    orphans: BTreeSet<Ino>,
    locked: BTreeSet<Ino>,
    capacity_blocks: Option<u64>,
    /// False if `allocate` only extends files.
    reserves: bool,
    used_blocks: u64,
    /// False if `write_durably_at` is refused.
    writes_durably: bool,
    durable_writes: u64,
    faults: Faults,
    rng: Rng,
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl SimDisk {
    /// An empty disk without bounds.
    pub fn new() -> Self {
        Self::from_state(State::durable(Volume::new()))
    }

    pub(super) fn from_state(base: State) -> Self {
        let live = base.live.reachable(|ino| base.live.files.get(&ino).cloned());
        let inner = Inner {
            next_ino: 1 + base.live.max_ino().max(base.durable.max_ino()),
            used_blocks: live.used(),
            base,
            live,
            log: Vec::new(),
            handles: BTreeMap::new(),
            orphans: BTreeSet::new(),
            locked: BTreeSet::new(),
            capacity_blocks: None,
            reserves: true,
            writes_durably: true,
            durable_writes: 0,
            faults: Faults::default(),
            rng: Rng::new(0),
        };
        SimDisk { shared: Arc::new(Mutex::new(inner)) }
    }

    /// How many mutating operations there were. Syncs count; so does each file that a directory's
    /// removal removes.
    pub fn op_count(&self) -> usize {
        self.shared.lock().log.len()
    }

    /// A builder of crash images from the log as it is now, standing at operation 0.
    pub fn images(&self) -> ImageBuilder {
        let inner = self.shared.lock();
        ImageBuilder::new(inner.base.clone(), inner.log.clone())
    }

    /// The disk after a crash at the time when the first `at` operations had happened. For many
    /// images of one disk use [`SimDisk::images`], which does not start from the beginning each
    /// time.
    pub fn image(&self, at: usize, kind: ImageKind) -> SimDisk {
        let mut images = self.images();
        images.advance_to(at);
        images.image(kind)
    }

    /// Arms a fault. Of several that hit the same call, the first armed decides.
    pub fn inject(&self, fault: Fault) {
        self.shared.lock().faults.arm(fault);
    }

    /// Disarms all faults.
    pub fn clear_faults(&self) {
        self.shared.lock().faults.clear();
    }

    /// How many calls failed because of an armed fault.
    pub fn faults_fired(&self) -> u64 {
        self.shared.lock().faults.fired()
    }

    /// How many calls of this kind there were.
    pub fn calls(&self, kind: CallKind) -> u64 {
        self.shared.lock().faults.calls(kind)
    }

    /// Bounds the disk to `bytes`, rounded down to blocks of 4096; `None`: no bound. Names occupy
    /// no space.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.shared.lock().capacity_blocks = bytes.map(|bytes| bytes / BLOCK);
    }

    /// Whether space can be reserved (at first, yes): without, `allocate` only extends the file,
    /// and writing there can fail for lack of space.
    pub fn set_reserves(&self, reserves: bool) {
        self.shared.lock().reserves = reserves;
    }

    /// Whether [`File::write_durably_at`] works (at first, yes).
    pub fn set_writes_durably(&self, works: bool) {
        self.shared.lock().writes_durably = works;
    }

    /// How many calls of [`File::write_durably_at`] have written something durably.
    pub fn durable_writes(&self) -> u64 {
        self.shared.lock().durable_writes
    }

    /// The space that files occupy, in bytes, with removed files that are still open.
    pub fn used_bytes(&self) -> u64 {
        self.shared.lock().used_blocks * BLOCK
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk").field("op_count", &self.op_count()).finish_non_exhaustive()
    }
}

impl Storage for SimDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let ino = self.shared.lock().open(path, mode)?;
        Ok(Arc::new(SimFile { shared: self.shared.clone(), ino, writable: mode != OpenMode::Read }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.shared.lock();
        inner.call(CallKind::Rename, from)?;
        inner.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.shared.lock();
        inner.call(CallKind::RemoveFile, path)?;
        match inner.live.place(path)? {
            (place, Some(Node::File(ino))) => inner.entry(EntryOp::Remove(place, ino)),
            (_, Some(Node::Dir(_))) => return Err(io::ErrorKind::IsADirectory.into()),
            (_, None) => return Err(io::ErrorKind::NotFound.into()),
        }
        Ok(())
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.shared.lock();
        inner.call(CallKind::CreateDir, path)?;
        inner.create_dir_all(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.shared.lock();
        let fault = inner.fault(CallKind::RemoveDir, path);
        let (place, node) = inner.live.place(path)?;
        let mut removals = match node {
            Some(Node::Dir(ino)) => inner.removals(place, ino),
            Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        if fault.is_some() {
            removals.truncate(removals.len() / 2);
        }
        removals.into_iter().for_each(|op| inner.entry(op));
        fault.map_or(Ok(()), |error| Err(error.to_io()))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut inner = self.shared.lock();
        inner.call(CallKind::List, dir)?;
        let ino = inner.live.lookup_dir(dir)?;
        Ok(inner.live.entries(ino).map(|(name, _)| name.to_string()).collect())
    }

    fn file_len(&self, path: &Path) -> io::Result<Option<u64>> {
        let mut inner = self.shared.lock();
        inner.call(CallKind::Len, path)?;
        match inner.live.lookup(path) {
            Ok(Node::File(ino)) => Ok(Some(inner.len(ino))),
            Ok(Node::Dir(_)) => Err(io::ErrorKind::IsADirectory.into()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut inner = self.shared.lock();
        let ino = inner.live.lookup_dir(dir)?;
        let fault = inner.fault(CallKind::SyncDir, dir);
        inner.log.push(Op::SyncDir(ino, fault.is_none()));
        fault.map_or(Ok(()), |error| Err(error.to_io()))
    }

    fn lock_dir(&self, dir: &Path) -> io::Result<Box<dyn DirLock>> {
        let mut inner = self.shared.lock();
        inner.call(CallKind::LockDir, dir)?;
        let ino = inner.live.lookup_dir(dir)?;
        if !inner.locked.insert(ino) {
            return Err(locked_error(dir, Some(std::process::id())));
        }
        let (place, found) = inner.live.place(&dir.join(LOCK_FILE))?;
        if found.is_none() {
            inner.create_file(place);
        }
        Ok(Box::new(SimDirLock { shared: self.shared.clone(), ino }))
    }
}

/// The inner calls: those that log (`entry`, `change`, `create_*`) and those that decide what to
/// log.
impl Inner {
    fn fault(&mut self, kind: CallKind, path: &Path) -> Option<FaultError> {
        self.faults.count(kind, || path.display().to_string())
    }

    fn file_fault(&mut self, kind: CallKind, ino: Ino) -> Option<FaultError> {
        let live = &self.live;
        self.faults.count(kind, || live.path_of(ino))
    }

    fn call(&mut self, kind: CallKind, path: &Path) -> io::Result<()> {
        self.fault(kind, path).map_or(Ok(()), |error| Err(error.to_io()))
    }

    fn file_call(&mut self, kind: CallKind, ino: Ino) -> io::Result<()> {
        self.file_fault(kind, ino).map_or(Ok(()), |error| Err(error.to_io()))
    }

    fn len(&self, ino: Ino) -> u64 {
        self.live.files[&ino].len()
    }

    fn used(&self, ino: Ino) -> u64 {
        self.live.files[&ino].used()
    }

    fn open(&mut self, path: &Path, mode: OpenMode) -> io::Result<Ino> {
        let found = self.live.place(path).map(|(_, node)| node);
        let creates =
            matches!(mode, OpenMode::Create | OpenMode::CreateNew) && matches!(found, Ok(None));
        self.call(if creates { CallKind::Create } else { CallKind::Open }, path)?;
        let ino = match self.live.place(path)? {
            (_, Some(Node::File(ino))) => ino,
            (_, Some(Node::Dir(_))) => return Err(io::ErrorKind::IsADirectory.into()),
            (place, None) if creates => self.create_file(place),
            (_, None) => return Err(io::ErrorKind::NotFound.into()),
        };
        if mode == OpenMode::CreateNew && self.len(ino) > 0 {
            self.change(ino, Change::SetLen(0));
        }
        *self.handles.entry(ino).or_default() += 1;
        Ok(ino)
    }

    fn close(&mut self, ino: Ino) {
        let handles = self.handles.get_mut(&ino).expect("BUG: closed a handle that is not open");
        *handles -= 1;
        if *handles == 0 {
            self.handles.remove(&ino);
            if self.orphans.remove(&ino) {
                self.forget(ino);
            }
        }
    }

    fn forget(&mut self, ino: Ino) {
        let content = self.live.forget(ino);
        self.used_blocks -= content.map_or(0, |content| content.used());
    }

    /// Logs and applies an operation on entries.
    fn entry(&mut self, op: EntryOp) {
        let unnamed = self.live.apply_entry(&op);
        self.log.push(Op::Entry(op));
        match unnamed {
            Some(ino) if self.handles.contains_key(&ino) => drop(self.orphans.insert(ino)),
            Some(ino) => self.forget(ino),
            None => {}
        }
    }

    /// Logs and applies a change of a file.
    fn change(&mut self, ino: Ino, change: Change) {
        let before = self.used(ino);
        self.live.change(ino, &change);
        self.used_blocks = self.used_blocks - before + self.used(ino);
        self.log.push(Op::Data(ino, change));
    }

    fn new_ino(&mut self) -> Ino {
        self.next_ino += 1;
        self.next_ino - 1
    }

    fn create_file(&mut self, place: Place) -> Ino {
        let ino = self.new_ino();
        self.entry(EntryOp::CreateFile(place, ino));
        ino
    }

    fn create_dir_all(&mut self, path: &Path) -> io::Result<()> {
        let mut at = PathBuf::from("/");
        for name in names(path)? {
            at.push(&*name);
            match self.live.place(&at)? {
                (_, Some(Node::Dir(_))) => {}
                (_, Some(Node::File(_))) => return Err(io::ErrorKind::NotADirectory.into()),
                (place, None) => {
                    let ino = self.new_ino();
                    self.entry(EntryOp::CreateDir(place, ino));
                }
            }
        }
        Ok(())
    }

    /// The operations that remove a directory: first what is in it.
    fn removals(&self, place: Place, dir: Ino) -> Vec<EntryOp> {
        let mut ops = Vec::new();
        for (name, node) in self.live.entries(dir) {
            let place = (dir, name.clone());
            match node {
                Node::Dir(ino) => ops.extend(self.removals(place, ino)),
                Node::File(ino) => ops.push(EntryOp::Remove(place, ino)),
            }
        }
        ops.push(EntryOp::Remove(place, dir));
        ops
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_place, source) = self.live.place(from)?;
        let (to_place, target) = self.live.place(to)?;
        let source = source.ok_or(io::ErrorKind::NotFound)?;
        match (source, target) {
            _ if target == Some(source) => return Ok(()),
            (Node::Dir(_), _) if names(to)?.starts_with(&names(from)?) => {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            (Node::File(_), Some(Node::Dir(_))) => return Err(io::ErrorKind::IsADirectory.into()),
            (Node::Dir(_), Some(Node::File(_))) => return Err(io::ErrorKind::NotADirectory.into()),
            (Node::Dir(_), Some(Node::Dir(dir))) if self.live.entries(dir).next().is_some() => {
                return Err(io::ErrorKind::DirectoryNotEmpty.into());
            }
            _ => {}
        }
        self.entry(EntryOp::Rename(from_place, to_place, source.ino()));
        Ok(())
    }

    fn free_blocks(&self) -> u64 {
        self.capacity_blocks.map_or(u64::MAX, |capacity| capacity.saturating_sub(self.used_blocks))
    }

    fn write(&mut self, ino: Ino, bytes: &[u8], offset: u64) -> io::Result<()> {
        check_end(offset.checked_add(bytes.len() as u64))?;
        let fault = self.file_fault(CallKind::Write, ino);
        let fits = self.live.files[&ino].writable(offset, bytes.len(), self.free_blocks());
        let count = match fault {
            None => fits,
            Some(FaultError::ShortWrite(n)) => fits.min(n).min(bytes.len().saturating_sub(1)),
            Some(_) => fits.min(self.rng.below(bytes.len() as u64 + 1) as usize),
        };
        if count > 0 {
            self.change(ino, Change::Write(offset, bytes[..count].into()));
        }
        match fault {
            Some(error) => Err(error.to_io()),
            None if count < bytes.len() => Err(enospc()),
            None => Ok(()),
        }
    }

    /// A write, and a sync of it alone: a crash can come between the two, and each can fail.
    fn write_durably(&mut self, ino: Ino, bytes: &[u8], offset: u64) -> io::Result<bool> {
        let aligned = (bytes.len() as u64 | offset).is_multiple_of(SECTOR);
        if !self.writes_durably || !aligned || bytes.is_empty() {
            return Ok(false);
        }
        let before = self.log.len();
        let written = self.write(ino, bytes, offset);
        if written.is_err() {
            if self.log.len() > before {
                self.log.push(Op::SyncLast(ino, false));
            }
            return written.map(|()| true);
        }
        let fault = self.file_fault(CallKind::SyncData, ino);
        self.log.push(Op::SyncLast(ino, fault.is_none()));
        self.durable_writes += u64::from(fault.is_none());
        fault.map_or(Ok(true), |error| Err(error.to_io()))
    }

    fn allocate(&mut self, ino: Ino, len: u64) -> io::Result<()> {
        check_end(Some(len))?;
        self.file_call(CallKind::Allocate, ino)?;
        if !self.reserves {
            if self.len(ino) < len {
                self.change(ino, Change::SetLen(len));
            }
            return Ok(());
        }
        let mut content = (*self.live.files[&ino]).clone();
        content.allocate(len);
        if content.used() - self.used(ino) > self.free_blocks() {
            return Err(enospc());
        }
        self.change(ino, Change::Allocate(len));
        Ok(())
    }

    fn sync_data(&mut self, ino: Ino) -> io::Result<()> {
        let fault = self.file_fault(CallKind::SyncData, ino);
        self.log.push(Op::SyncData(ino, fault.is_none()));
        fault.map_or(Ok(()), |error| Err(error.to_io()))
    }
}

fn check_end(end: Option<u64>) -> io::Result<()> {
    match end {
        Some(end) if end <= MAX_LEN => Ok(()),
        _ => Err(io::ErrorKind::FileTooLarge.into()),
    }
}

/// An open file of a [`SimDisk`].
struct SimFile {
    shared: Shared,
    ino: Ino,
    writable: bool,
}

impl SimFile {
    fn writable(&self) -> io::Result<parking_lot::MutexGuard<'_, Inner>> {
        if !self.writable {
            return Err(rustix::io::Errno::BADF.into());
        }
        Ok(self.shared.lock())
    }
}

impl File for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut inner = self.shared.lock();
        inner.file_call(CallKind::Read, self.ino)?;
        Ok(inner.live.files[&self.ino].read(buf, offset))
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.writable()?.write(self.ino, buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        check_end(Some(len))?;
        let mut inner = self.writable()?;
        inner.file_call(CallKind::SetLen, self.ino)?;
        if inner.len(self.ino) != len {
            inner.change(self.ino, Change::SetLen(len));
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let mut inner = self.shared.lock();
        inner.file_call(CallKind::Len, self.ino)?;
        Ok(inner.len(self.ino))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.shared.lock().sync_data(self.ino)
    }

    fn write_durably_at(&self, buf: &[u8], offset: u64) -> io::Result<bool> {
        self.writable()?.write_durably(self.ino, buf, offset)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.writable()?.allocate(self.ino, len)
    }
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.shared.lock().live.path_of(self.ino);
        f.debug_struct("SimFile").field("path", &path).finish_non_exhaustive()
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.shared.lock().close(self.ino);
    }
}

struct SimDirLock {
    shared: Shared,
    ino: Ino,
}

impl DirLock for SimDirLock {}

impl fmt::Debug for SimDirLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDirLock").finish_non_exhaustive()
    }
}

impl Drop for SimDirLock {
    fn drop(&mut self) {
        self.shared.lock().locked.remove(&self.ino);
    }
}
