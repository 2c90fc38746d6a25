//! What a disk holds for running programs, what of it is durable, and what lies between.

use std::collections::{BTreeMap, BTreeSet};

use super::volume::{Change, EntryOp, Ino, Op, Volume};

/// Moves forward through the log one operation at a time.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// What running programs see. Keeps the content of removed files: their removal may yet be
    /// lost.
    pub(super) live: Volume,
    /// What a power loss cannot take.
    pub(super) durable: Volume,
    /// Changes of files that are not part of `durable`, in the order of the calls.
    pub(super) data: BTreeMap<Ino, Vec<Pending<Change>>>,
    /// Changes of directories that are not part of `durable`, in the order of the calls.
    pub(super) entries: Vec<Pending<EntryOp>>,
}

#[derive(Clone, Debug)]
pub(super) struct Pending<T> {
    pub(super) op: T,
    pub(super) status: Status,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// May survive a power loss or not.
    Unsynced,
    /// For a rename between directories: one of the two, this one, was synced. It still may survive
    /// or not.
    HalfSynced(Ino),
    /// A sync of it failed: may survive or not, and a later sync says nothing about it.
    Doubtful,
    /// Durable, but to be applied after others that are not.
    Synced,
}

impl Status {
    pub(super) fn is_durable(self) -> bool {
        self == Status::Synced
    }
}

impl State {
    /// A disk on which everything is durable.
    pub(super) fn durable(volume: Volume) -> Self {
        State { live: volume.clone(), durable: volume, data: BTreeMap::new(), entries: Vec::new() }
    }

    pub(super) fn apply(&mut self, op: &Op) {
        match op {
            Op::Data(ino, change) => {
                self.live.change(*ino, change);
                let pending = Pending { op: change.clone(), status: Status::Unsynced };
                self.data.entry(*ino).or_default().push(pending);
            }
            Op::Entry(entry) => {
                self.live.apply_entry(entry);
                self.durable.declare(entry);
                self.entries.push(Pending { op: entry.clone(), status: Status::Unsynced });
            }
            Op::SyncData(ino, ok) => self.sync_data(*ino, *ok, usize::MAX),
            Op::SyncLast(ino, ok) => self.sync_data(*ino, *ok, 1),
            Op::SyncDir(dir, ok) => self.sync_dir(*dir, *ok),
        }
    }

    /// Syncs up to `most` of a file's changes, from the last one back.
    fn sync_data(&mut self, ino: Ino, ok: bool, most: usize) {
        let Some(list) = self.data.get_mut(&ino) else { return };
        let newest = list.iter_mut().rev().take(most);
        for pending in newest.filter(|p| p.status == Status::Unsynced) {
            pending.status = if ok { Status::Synced } else { Status::Doubtful };
        }
        let synced = list.iter().take_while(|p| p.status.is_durable()).count();
        for pending in list.drain(..synced) {
            self.durable.change(ino, &pending.op);
        }
        if list.is_empty() {
            self.data.remove(&ino);
        }
    }

    fn sync_dir(&mut self, dir: Ino, ok: bool) {
        for pending in self.entries.iter_mut().filter(|p| p.op.dirs().contains(&dir)) {
            pending.status = after_sync(pending, dir, ok);
        }
        // What is durable goes to `durable`, unless something before it in the same directory is
        // not.
        let mut blocked = BTreeSet::new();
        let durable = &mut self.durable;
        self.entries.retain(|pending| {
            let dirs = pending.op.dirs();
            if pending.status.is_durable() && !dirs.iter().any(|d| blocked.contains(d)) {
                durable.apply_entry(&pending.op);
                return false;
            }
            blocked.extend(dirs);
            true
        });
    }
}

fn after_sync(pending: &Pending<EntryOp>, dir: Ino, ok: bool) -> Status {
    let [a, b] = pending.op.dirs();
    match pending.status {
        status @ (Status::Doubtful | Status::Synced) => status,
        _ if !ok => Status::Doubtful,
        Status::Unsynced if a != b => Status::HalfSynced(dir),
        Status::HalfSynced(other) if other == dir => Status::HalfSynced(dir),
        Status::Unsynced | Status::HalfSynced(_) => Status::Synced,
    }
}
