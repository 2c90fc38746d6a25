//! Files and directories at one moment, and the operations that change them.
//!
//! Inodes are apart from names, as on a real file system: a file renamed over or removed keeps its
//! content. There are no hard links: an inode has at most one name.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path};
use std::sync::Arc;

use super::content::Content;

/// An inode's number, never used twice on one disk.
pub(super) type Ino = u64;

/// The root directory's inode.
pub(super) const ROOT: Ino = 0;

/// An entry: the directory it is in, and its name.
pub(super) type Place = (Ino, Arc<str>);

/// One mutating operation. The log of a disk is a sequence of these.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// A change of a file's bytes or length.
    Data(Ino, Change),
    /// A change of directory entries.
    Entry(EntryOp),
    /// A sync of a file; false if it failed.
    SyncData(Ino, bool),
    /// A sync of a file's last change alone; false if it failed.
    SyncLast(Ino, bool),
    /// A sync of a directory; false if it failed.
    SyncDir(Ino, bool),
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    Write(u64, Arc<[u8]>),
    SetLen(u64),
    Allocate(u64),
}

#[derive(Clone, Debug)]
pub(super) enum EntryOp {
    CreateFile(Place, Ino),
    CreateDir(Place, Ino),
    Remove(Place, Ino),
    /// From, to, and what is renamed.
    Rename(Place, Place, Ino),
}

impl Change {
    pub(super) fn apply(&self, content: &mut Content) {
        match self {
            Change::Write(offset, bytes) => content.write(bytes, *offset),
            Change::SetLen(len) => content.set_len(*len),
            Change::Allocate(len) => content.allocate(*len),
        }
    }
}

impl EntryOp {
    /// The directories that it changes; twice the same for all but a rename from one to another.
    pub(super) fn dirs(&self) -> [Ino; 2] {
        match self {
            EntryOp::CreateFile(at, _) | EntryOp::CreateDir(at, _) | EntryOp::Remove(at, _) => {
                [at.0; 2]
            }
            EntryOp::Rename(from, to, _) => [from.0, to.0],
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    File(Ino),
    Dir(Ino),
}

impl Node {
    pub(super) fn ino(self) -> Ino {
        match self {
            Node::File(ino) | Node::Dir(ino) => ino,
        }
    }
}

type Entries = BTreeMap<Arc<str>, Ino>;

/// Files and directories. Cloning copies references, no bytes.
#[derive(Clone, Debug)]
pub(super) struct Volume {
    /// Also those that no directory names any more.
    pub(super) files: BTreeMap<Ino, Arc<Content>>,
    dirs: BTreeMap<Ino, Arc<Entries>>,
}

impl Volume {
    /// An empty root directory.
    pub(super) fn new() -> Self {
        Volume { files: BTreeMap::new(), dirs: BTreeMap::from([(ROOT, Arc::default())]) }
    }

    /// Applies a change to a file. `false` if the file is gone.
    pub(super) fn change(&mut self, ino: Ino, change: &Change) -> bool {
        let content = self.files.get_mut(&ino);
        content.map(|content| change.apply(Arc::make_mut(content))).is_some()
    }

    /// Applies an operation on entries, also when operations before it were lost. Returns the inode
    /// that lost its name.
    pub(super) fn apply_entry(&mut self, op: &EntryOp) -> Option<Ino> {
        match op {
            EntryOp::CreateFile(at, ino) => {
                self.files.entry(*ino).or_default();
                self.set_entry(at, *ino)
            }
            EntryOp::CreateDir(at, ino) => {
                self.dirs.entry(*ino).or_default();
                self.set_entry(at, *ino)
            }
            EntryOp::Remove(at, ino) => self.clear_entry(at, *ino).then_some(*ino),
            EntryOp::Rename(from, to, ino) => {
                if !self.clear_entry(from, *ino) {
                    self.clear_anywhere(*ino); // The rename that brought it to `from` was lost.
                }
                self.set_entry(to, *ino)
            }
        }
    }

    fn set_entry(&mut self, (dir, name): &Place, ino: Ino) -> Option<Ino> {
        let entries = Arc::make_mut(self.dirs.entry(*dir).or_default());
        entries.insert(name.clone(), ino).filter(|old| *old != ino)
    }

    /// Removes the entry if it names `ino`; returns whether it did.
    fn clear_entry(&mut self, (dir, name): &Place, ino: Ino) -> bool {
        let Some(entries) = self.dirs.get_mut(dir) else { return false };
        let found = entries.get(name) == Some(&ino);
        if found {
            Arc::make_mut(entries).remove(name);
        }
        found
    }

    fn clear_anywhere(&mut self, ino: Ino) {
        for entries in self.dirs.values_mut() {
            if entries.values().any(|i| *i == ino) {
                Arc::make_mut(entries).retain(|_, i| *i != ino);
            }
        }
    }

    /// Forgets an inode that has no name and no open handle; returns its content.
    pub(super) fn forget(&mut self, ino: Ino) -> Option<Arc<Content>> {
        self.dirs.remove(&ino);
        self.files.remove(&ino)
    }

    /// Creates the entry of an inode that was only ever changed through a handle, so that `change`
    /// finds it.
    pub(super) fn declare(&mut self, op: &EntryOp) {
        match op {
            EntryOp::CreateFile(_, ino) => drop(self.files.entry(*ino).or_default()),
            EntryOp::CreateDir(_, ino) => drop(self.dirs.entry(*ino).or_default()),
            EntryOp::Remove(..) | EntryOp::Rename(..) => {}
        }
    }

    /// The directories alone.
    pub(super) fn without_files(&self) -> Volume {
        Volume { files: BTreeMap::new(), dirs: self.dirs.clone() }
    }

    /// What the root directory leads to, with each file's content from `content`.
    pub(super) fn reachable(&self, mut content: impl FnMut(Ino) -> Option<Arc<Content>>) -> Volume {
        let mut found = Volume::new();
        let mut todo = vec![ROOT];
        while let Some(dir) = todo.pop() {
            let Some(entries) = self.dirs.get(&dir) else { continue };
            found.dirs.insert(dir, entries.clone());
            for ino in entries.values() {
                if self.dirs.contains_key(ino) {
                    todo.push(*ino);
                } else {
                    found.files.insert(*ino, content(*ino).unwrap_or_default());
                }
            }
        }
        found
    }

    /// The largest inode number.
    pub(super) fn max_ino(&self) -> Ino {
        let last = |a: Option<&Ino>, b: Option<&Ino>| a.max(b).copied().unwrap_or(ROOT);
        last(self.files.keys().next_back(), self.dirs.keys().next_back())
    }

    /// How many blocks the files occupy.
    pub(super) fn used(&self) -> u64 {
        self.files.values().map(|content| content.used()).sum()
    }

    pub(super) fn entries(&self, dir: Ino) -> impl Iterator<Item = (&Arc<str>, Node)> {
        let entries = self.dirs.get(&dir).into_iter().flat_map(|entries| entries.iter());
        entries.map(|(name, ino)| (name, self.node(*ino)))
    }

    fn node(&self, ino: Ino) -> Node {
        if self.dirs.contains_key(&ino) { Node::Dir(ino) } else { Node::File(ino) }
    }

    /// What `path` names; `NotFound`, or `NotADirectory` if a file is in the way.
    pub(super) fn lookup(&self, path: &Path) -> io::Result<Node> {
        let mut node = Node::Dir(ROOT);
        for name in names(path)? {
            node = self.child(node, &name)?.ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(node)
    }

    /// The directory at `path`.
    pub(super) fn lookup_dir(&self, path: &Path) -> io::Result<Ino> {
        match self.lookup(path)? {
            Node::Dir(ino) => Ok(ino),
            Node::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    /// The place that `path` names, whose directory must exist, and what is there.
    pub(super) fn place(&self, path: &Path) -> io::Result<(Place, Option<Node>)> {
        let mut names = names(path)?;
        let last = names.pop().ok_or(io::ErrorKind::InvalidInput)?;
        let mut dir = Node::Dir(ROOT);
        for name in names {
            dir = self.child(dir, &name)?.ok_or(io::ErrorKind::NotFound)?;
        }
        let node = self.child(dir, &last)?;
        Ok(((dir.ino(), last), node))
    }

    fn child(&self, node: Node, name: &str) -> io::Result<Option<Node>> {
        let Node::Dir(dir) = node else { return Err(io::ErrorKind::NotADirectory.into()) };
        let ino = self.dirs.get(&dir).and_then(|entries| entries.get(name));
        Ok(ino.map(|ino| self.node(*ino)))
    }

    /// The path of an inode, for messages.
    pub(super) fn path_of(&self, ino: Ino) -> String {
        let mut path = String::new();
        let mut at = ino;
        while at != ROOT {
            let mut all =
                self.dirs.iter().flat_map(|(dir, e)| e.iter().map(move |(n, i)| (*dir, n, *i)));
            let Some((dir, name, _)) = all.find(|(_, _, i)| *i == at) else {
                return format!("(unlinked inode {ino})");
            };
            path = format!("/{name}{path}");
            at = dir;
        }
        path
    }
}

/// The names in a path; the root is the start of relative paths too.
pub(super) fn names(path: &Path) -> io::Result<Vec<Arc<str>>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => {
                names.push(name.to_str().ok_or(io::ErrorKind::InvalidInput)?.into())
            }
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::ErrorKind::InvalidInput.into());
            }
        }
    }
    Ok(names)
}
