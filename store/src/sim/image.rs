//! Disk images: what a machine may find on its disk when it comes back.

use std::sync::Arc;

use super::content::Content;
use super::disk::SimDisk;
use super::rng::Rng;
use super::state::{Pending, State, Status};
use super::volume::{Change, EntryOp, Ino, Op, Volume};
use crate::SECTOR;

/// What happened to the operations that no sync had covered. The fault model is described in [the
/// module](super).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImageKind {
    /// The process died, the machine did not: everything is there, and what was not synced still is
    /// not. A second crash on this image can lose it.
    ProcessCrash,
    /// Power loss, after everything had reached the disk.
    Prefix,
    /// Power loss; nothing that was not synced survives.
    DropUnsynced,
    /// Power loss; each unsynced operation survives or not, at random and independently.
    Subset {
        /// Determines the choice.
        seed: u64,
    },
    /// As `Subset`, and surviving writes may be torn: each 512-byte sector is old or new.
    Torn {
        /// Determines the choice.
        seed: u64,
    },
    /// As `Subset` or as `Prefix`, and what one unsynced write changed in one sector is random
    /// bytes.
    GarbageSector {
        /// Determines the choice and the bytes.
        seed: u64,
    },
    /// All changes of files survive, no unsynced change of a directory does: created files are
    /// gone, renamed ones have their old name, removed ones are back.
    RenameWithoutDirSync,
    /// Everything survives but the unsynced changes of length of some files (at least one, if there
    /// is any).
    LengthLost {
        /// Determines which files.
        seed: u64,
    },
}

/// Walks once through a disk's log and builds images on the way. The cost of an image grows with
/// the number of files and of operations that are not synced, not with the length of the log or the
/// size of the files.
#[derive(Debug)]
pub struct ImageBuilder {
    log: Vec<Op>,
    at: usize,
    state: State,
}

impl ImageBuilder {
    pub(super) fn new(base: State, log: Vec<Op>) -> Self {
        ImageBuilder { log, at: 0, state: base }
    }

    /// How many operations the log has: images can be built at 0 to this, inclusive.
    pub fn op_count(&self) -> usize {
        self.log.len()
    }

    /// How many operations have happened on the images built now.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Goes forward to where the first `at` operations have happened.
    ///
    /// # Panics
    /// If that is back, or behind the log's end.
    pub fn advance_to(&mut self, at: usize) {
        assert!(
            self.at <= at && at <= self.log.len(),
            "cannot go from operation {} to {at}",
            self.at
        );
        for op in &self.log[self.at..at] {
            self.state.apply(op);
        }
        self.at = at;
    }

    /// The next operation (the one that did not happen any more), for messages.
    pub fn describe(&self) -> String {
        let Some(op) = self.log.get(self.at) else { return "end of the log".to_string() };
        let path = |ino: &Ino| self.state.live.path_of(*ino);
        let result = |ok: &bool| if *ok { "" } else { " (failed)" };
        match op {
            Op::Data(ino, Change::Write(offset, bytes)) => {
                format!("write {} bytes at {offset} of {}", bytes.len(), path(ino))
            }
            Op::Data(ino, Change::SetLen(len)) => format!("set length {len} of {}", path(ino)),
            Op::Data(ino, Change::Allocate(len)) => {
                format!("allocate {len} bytes of {}", path(ino))
            }
            Op::SyncData(ino, ok) => format!("sync {}{}", path(ino), result(ok)),
            Op::SyncLast(ino, ok) => format!("sync that write to {}{}", path(ino), result(ok)),
            Op::SyncDir(ino, ok) => format!("sync directory {}{}", path(ino), result(ok)),
            Op::Entry(EntryOp::CreateFile((dir, name), _)) => {
                format!("create {name} in {}", path(dir))
            }
            Op::Entry(EntryOp::CreateDir((dir, name), _)) => {
                format!("mkdir {name} in {}", path(dir))
            }
            Op::Entry(EntryOp::Remove(_, ino)) => format!("remove {}", path(ino)),
            Op::Entry(EntryOp::Rename(_, (dir, name), ino)) => {
                format!("rename {} to {name} in {}", path(ino), path(dir))
            }
        }
    }

    /// The disk after a crash here. Nothing on it is locked or open, and no fault or capacity is
    /// set.
    pub fn image(&self, kind: ImageKind) -> SimDisk {
        let state = match kind {
            ImageKind::ProcessCrash => self.state.clone(),
            _ => State::durable(self.volume(kind)),
        };
        SimDisk::from_state(state)
    }

    fn volume(&self, kind: ImageKind) -> Volume {
        let live = |ino| self.state.live.files.get(&ino).cloned();
        match kind {
            ImageKind::ProcessCrash | ImageKind::Prefix => self.state.live.reachable(live),
            ImageKind::RenameWithoutDirSync => self.dirs(|| false).reachable(live),
            ImageKind::DropUnsynced => {
                self.dirs(|| false).reachable(|ino| self.file(ino, |_, _| {}))
            }
            ImageKind::Subset { seed } => {
                let mut loss = self.loss(seed);
                let dirs = self.dirs(|| loss.survives());
                dirs.reachable(|ino| {
                    self.file(ino, |content, change| loss.drop_some(content, change))
                })
            }
            ImageKind::Torn { seed } => {
                let mut loss = self.loss(seed);
                let dirs = self.dirs(|| loss.survives());
                dirs.reachable(|ino| {
                    self.file(ino, |content, change| loss.tear_some(content, change))
                })
            }
            ImageKind::GarbageSector { seed } => self.garbage(seed),
            ImageKind::LengthLost { seed } => self.length_lost(seed),
        }
    }

    fn loss(&self, seed: u64) -> Loss {
        // Mixed with the index: else all images of one seed would lose the same operations.
        let mut rng = Rng::new(seed ^ (self.at as u64).wrapping_mul(0xd6e8_feb8_6659_fd93));
        let percent = [10, 50, 90][rng.below(3) as usize];
        Loss { rng, percent }
    }

    /// The directories, with those unsynced operations for which `survives` says so.
    fn dirs(&self, mut survives: impl FnMut() -> bool) -> Volume {
        let mut dirs = self.state.durable.without_files();
        for pending in &self.state.entries {
            if pending.status.is_durable() || survives() {
                dirs.apply_entry(&pending.op);
            }
        }
        dirs
    }

    /// A file's durable content with its unsynced changes as `apply` lets them survive.
    fn file(&self, ino: Ino, mut apply: impl FnMut(&mut Content, &Change)) -> Option<Arc<Content>> {
        let durable = self.state.durable.files.get(&ino)?;
        let Some(list) = self.state.data.get(&ino) else { return Some(durable.clone()) };
        let mut content = (**durable).clone();
        for Pending { op, status } in list {
            if status.is_durable() {
                op.apply(&mut content);
            } else {
                apply(&mut content, op);
            }
        }
        Some(Arc::new(content))
    }

    fn garbage(&self, seed: u64) -> Volume {
        let mut loss = self.loss(seed);
        if loss.rng.chance(50) {
            loss.percent = 100;
        }
        let target = self.pick_sector(&mut loss.rng);
        let dirs = self.dirs(|| loss.survives());
        dirs.reachable(|ino| {
            let content = self.file(ino, |content, change| loss.drop_some(content, change))?;
            match &target {
                Some(sector) if sector.ino == ino => {
                    Some(Arc::new(sector.spoil(&content, &mut loss.rng)))
                }
                _ => Some(content),
            }
        })
    }

    /// One sector of one unsynced write.
    fn pick_sector(&self, rng: &mut Rng) -> Option<Spoiled> {
        let writes: Vec<_> =
            self.state.data.iter().flat_map(|(ino, list)| unsynced_writes(*ino, list)).collect();
        if writes.is_empty() {
            return None;
        }
        let (ino, offset, end) = writes[rng.below(writes.len() as u64) as usize];
        let (first, last) = (offset / SECTOR, (end - 1) / SECTOR);
        let sector = first + rng.below(last - first + 1);
        Some(Spoiled {
            ino,
            start: offset.max(sector * SECTOR),
            end: end.min((sector + 1) * SECTOR),
        })
    }

    fn length_lost(&self, seed: u64) -> Volume {
        let mut rng = self.loss(seed).rng;
        let live = &self.state.live;
        let resized: Vec<Ino> =
            self.state.data.keys().copied().filter(|ino| self.is_resized(*ino)).collect();
        let one = (!resized.is_empty()).then(|| resized[rng.below(resized.len() as u64) as usize]);
        live.reachable(|ino| {
            let lost = resized.contains(&ino) && (one == Some(ino) || rng.chance(50));
            if lost { self.with_durable_length(ino) } else { live.files.get(&ino).cloned() }
        })
    }

    fn is_resized(&self, ino: Ino) -> bool {
        let live = self.state.live.files.get(&ino).map(|content| content.len());
        live != self.file(ino, |_, _| {}).map(|content| content.len())
    }

    /// All bytes written to a file, at the length it durably has.
    fn with_durable_length(&self, ino: Ino) -> Option<Arc<Content>> {
        let len = self.file(ino, |_, _| {})?.len();
        let mut content = self.file(ino, |content, change| {
            if matches!(change, Change::Write(..)) {
                change.apply(content);
            }
        })?;
        Arc::make_mut(&mut content).set_len(len);
        Some(content)
    }
}

/// The unsynced writes in a file's pending changes: inode, first byte, behind the last byte.
fn unsynced_writes(ino: Ino, list: &[Pending<Change>]) -> impl Iterator<Item = (Ino, u64, u64)> {
    list.iter().filter_map(move |pending| match &pending.op {
        // Not the doubtful ones: a later synced write may have made some of their bytes durable.
        Change::Write(offset, bytes) if pending.status == Status::Unsynced && !bytes.is_empty() => {
            Some((ino, *offset, offset + bytes.len() as u64))
        }
        _ => None,
    })
}

/// Bytes of one sector that a write left in disorder.
struct Spoiled {
    ino: Ino,
    start: u64,
    end: u64,
}

impl Spoiled {
    fn spoil(&self, content: &Content, rng: &mut Rng) -> Content {
        let mut content = content.clone();
        let mut bytes = vec![0; content.len().min(self.end).saturating_sub(self.start) as usize];
        rng.fill(&mut bytes);
        content.write(&bytes, self.start);
        content
    }
}

/// The choice of what survives.
struct Loss {
    rng: Rng,
    /// How many of 100 operations survive.
    percent: u64,
}

impl Loss {
    fn survives(&mut self) -> bool {
        self.rng.chance(self.percent)
    }

    fn drop_some(&mut self, content: &mut Content, change: &Change) {
        if self.survives() {
            change.apply(content);
        } else {
            self.maybe_extend(content, change);
        }
    }

    /// The length is not part of the data: a write that extended the file may survive as zeros.
    fn maybe_extend(&mut self, content: &mut Content, change: &Change) {
        if let Change::Write(offset, bytes) = change
            && offset + bytes.len() as u64 > content.len()
            && self.rng.chance(30)
        {
            content.set_len(offset + bytes.len() as u64);
        }
    }

    fn tear_some(&mut self, content: &mut Content, change: &Change) {
        match change {
            Change::Write(offset, bytes) if self.survives() && self.rng.chance(70) => {
                self.maybe_extend(content, change);
                self.tear(content, *offset, bytes);
            }
            _ => self.drop_some(content, change),
        }
    }

    fn tear(&mut self, content: &mut Content, offset: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let end = bytes.len().min(done + (SECTOR - at % SECTOR) as usize);
            if self.rng.chance(50) {
                content.write(&bytes[done..end], at);
            }
            done = end;
        }
    }
}
