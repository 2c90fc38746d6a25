//! What the requests do: finds the file that is meant, and calls the part that knows it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fuser::{BackingId, Errno, FileAttr, FileHandle, FopenFlags, INodeNo};
use litefs_store::{DbName, RemoteError};
use parking_lot::Mutex;

use crate::db::{LockReply, MountedDb, Part, Result};
use crate::errno;
use crate::handles::{Handle, Handles};
use crate::locks::{Lock, LockKind};
use crate::name::{self, DbFile, FileKind};
use crate::pool::Lane;
use crate::special::{self, HaltRequest};
use crate::super_journal::slice;
use crate::tree::{Node, Tree};

/// `lseek`'s origins and `open`'s flag, as Linux has them.
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;
const O_EXCL: i32 = 0o200;

/// The mounted file system.
pub(crate) struct Mounted {
    pub tree: Arc<Tree>,
    pub handles: Handles,
    pub data_dir: PathBuf,
    /// Use kernel passthrough if the kernel offers it.
    pub passthrough: bool,
    /// Log each request.
    pub debug: bool,
    /// The open `-lock` files through which clients have halted the primary.
    pub halts: Mutex<HashMap<u64, DbName>>,
}

/// How a file was opened.
pub(crate) struct Opened {
    pub handle: u64,
    pub flags: FopenFlags,
    pub backing: Option<Arc<BackingId>>,
}

impl Mounted {
    /// Logs a request and its outcome, if asked to.
    pub(crate) fn log<T>(&self, what: fmt::Arguments<'_>, result: &Result<T>) {
        if self.debug {
            match result {
                Ok(_) => tracing::info!("fuse: {what}"),
                Err(errno) => tracing::info!("fuse: {what}: {}", describe(*errno)),
            }
        }
    }

    /// The database of that name, if it was looked at.
    pub(crate) fn database(&self, name: &DbName) -> Option<Arc<MountedDb>> {
        self.tree.shared().mounted.read().get(name).cloned()
    }

    /// Where requests on a file that take long are served.
    pub(crate) fn lane(&self, ino: INodeNo) -> Option<Arc<Lane>> {
        match self.tree.node(ino.0) {
            Ok(Node::Db(_, db, _)) => Some(db.lane.clone()),
            _ => None,
        }
    }

    /// The same of one on a name.
    pub(crate) fn lane_by_name(&self, name: &OsStr) -> Option<Arc<Lane>> {
        match name::parse(name) {
            Some(FileKind::Db(name, _)) => self.database(&name).map(|db| db.lane.clone()),
            _ => None,
        }
    }

    pub(crate) fn kind(parent: INodeNo, name: &OsStr) -> Result<FileKind> {
        if parent != INodeNo::ROOT {
            return Err(Errno::ENOTDIR);
        }
        name::parse(name).ok_or(Errno::ENOENT)
    }

    pub(crate) fn attributes_of(
        &self,
        ino: INodeNo,
        fh: Option<FileHandle>,
    ) -> Result<(Node, FileAttr)> {
        let node = self.tree.node(ino.0)?;
        let attributes = match (self.tree.attributes(&node), fh) {
            (Some(attributes), _) => attributes,
            (None, Some(_)) => self.tree.attributes_of_removed(&node),
            (None, None) => return Err(Errno::ESTALE),
        };
        Ok((node, attributes))
    }

    pub(crate) fn lookup_name(&self, parent: INodeNo, name: &OsStr) -> Result<(Node, FileAttr)> {
        let node = self.tree.find(&Self::kind(parent, name)?)?.ok_or(Errno::ENOENT)?;
        let attributes = self.tree.attributes(&node).ok_or(Errno::ENOENT)?;
        node.looked_up();
        Ok((node, attributes))
    }

    /// Modes, owners and times are accepted and ignored, as LiteFS does, but for special files.
    pub(crate) fn set_attributes(
        &self,
        ino: INodeNo,
        fh: Option<FileHandle>,
        size: Option<u64>,
    ) -> Result<()> {
        match (self.tree.node(ino.0)?, size) {
            (Node::Db(_, db, DbFile::Part(part)), Some(len)) => {
                db.truncate(part, fh.map(|fh| fh.0), len)
            }
            (Node::Super(_, journal), Some(len)) => journal.truncate(len),
            (Node::Root, Some(_)) => Err(Errno::EISDIR),
            (Node::Root | Node::Super(..) | Node::Db(_, _, DbFile::Part(_)), None) => Ok(()),
            _ => Err(Errno::EACCES),
        }
    }

    pub(crate) fn open_node(
        &self,
        node: &Node,
        for_writing: bool,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Result<Opened> {
        let mut flags = FopenFlags::FOPEN_DIRECT_IO;
        let (mut handle, mut backing) = (Handle::Plain, None);
        match node {
            Node::Root => return Err(Errno::EISDIR),
            Node::Primary | Node::Lag | Node::Db(_, _, DbFile::Pos) => {
                if for_writing {
                    return Err(Errno::EACCES);
                }
                let (content, _) = self.tree.content(node).ok_or(Errno::ESTALE)?;
                handle = Handle::Content(Arc::new(content));
            }
            Node::Db(_, db, DbFile::Part(part)) => {
                db.attributes(*part).ok_or(Errno::ESTALE)?;
                // The kernel locks the cached page of a WAL to which it writes until it has the
                // answer, and readers need that page: not where a commit's answer may take long.
                let waits = *part == Part::Wal && self.tree.shared().store.waits_for_replicas();
                if *part != Part::Journal && !waits {
                    flags = FopenFlags::FOPEN_KEEP_CACHE;
                }
                if *part == Part::Shm {
                    backing = self.backing(node, register)?;
                }
            }
            Node::Db(_, _, DbFile::Lock) | Node::Super(..) => {}
        }
        if let Some(id) = &backing {
            flags = FopenFlags::empty();
            handle = Handle::Backed { _id: id.clone() };
        }
        if !self.tree.opened(node) {
            return Err(Errno::ESTALE);
        }
        Ok(Opened { handle: self.handles.open(handle), flags, backing })
    }

    /// The passthrough of a `-shm`; `None` if the kernel does not offer it.
    fn backing(
        &self,
        node: &Node,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Result<Option<Arc<BackingId>>> {
        let Node::Db(slot, db, _) = node else { return Ok(None) };
        if !self.tree.shared().passthrough.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let file = db.shm_file().ok_or(Errno::ESTALE)?;
        // Not without: open files of the same inode may be passed through.
        let id = slot.backing.get(&file, register);
        id.map(Some)
            .map_err(|e| errno::of_io_at("cannot pass a -shm file through to the kernel", &e))
    }

    pub(crate) fn create_file(
        &self,
        parent: INodeNo,
        name: &OsStr,
        flags: i32,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Result<(Opened, Node, FileAttr)> {
        let kind = Self::kind(parent, name).map_err(|_| Errno::EACCES)?;
        let node = match self.tree.find(&kind)? {
            Some(_) if flags & O_EXCL != 0 => return Err(Errno::EEXIST),
            Some(node) => node,
            None => self.tree.create(&kind)?,
        };
        let opened = self.open_node(&node, true, register)?;
        let Some(attributes) = self.tree.attributes(&node) else {
            self.close(&node, opened.handle);
            return Err(Errno::ESTALE);
        };
        node.looked_up();
        Ok((opened, node, attributes))
    }

    pub(crate) fn close(&self, node: &Node, handle: u64) {
        self.handles.close(handle);
        self.resume(handle);
        if let Node::Db(_, db, DbFile::Part(part)) = node {
            db.handle_closed(*part, handle);
        }
        self.tree.closed(node);
    }

    pub(crate) fn read_file(
        &self,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>> {
        match self.tree.node(ino.0)? {
            Node::Db(_, db, DbFile::Part(part)) => db.read(part, offset, len),
            Node::Super(_, journal) => Ok(journal.read(offset, len)),
            _ => match self.handles.get(fh.0) {
                Handle::Content(content) => Ok(slice(&content, offset, len).to_vec()),
                _ => Ok(Vec::new()),
            },
        }
    }

    pub(crate) fn write_file(
        &self,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
    ) -> Result<()> {
        let result = match self.tree.node(ino.0)? {
            Node::Db(_, db, DbFile::Part(part)) => db.write(part, fh.0, offset, data),
            Node::Super(_, journal) => journal.write(offset, data),
            _ => Err(Errno::EIO),
        };
        self.log(format_args!("write {ino} at {offset} for {}", data.len()), &result);
        result
    }

    /// Gives a lock back, or (`kind`) asks for one; `answer` may be called later.
    pub(crate) fn lock(
        &self,
        ino: INodeNo,
        lock: Lock,
        kind: Option<LockKind>,
        waits: bool,
        answer: LockReply,
    ) {
        match (self.tree.node(ino.0), kind) {
            (Err(errno), _) => answer(Err(errno)),
            (Ok(Node::Db(_, db, DbFile::Part(part))), None) => {
                db.unlock(part, lock.owner, lock.range);
                answer(Ok(()));
            }
            (Ok(Node::Db(_, _, DbFile::Part(_))), Some(_)) if waits => answer(Err(Errno::ENOSYS)),
            // Else it would be "locked" until the client's patience ends.
            (Ok(Node::Db(_, db, DbFile::Part(Part::Main))), Some(LockKind::Write))
                if db.is_removed() =>
            {
                answer(Err(Errno::EIO));
            }
            (Ok(Node::Db(_, db, DbFile::Part(part))), Some(kind)) => {
                match db.reach_to_write(part, lock.range, kind) {
                    Ok(()) => db.lock(part, lock, answer),
                    Err(errno) => answer(Err(errno)),
                }
            }
            (Ok(Node::Db(_, db, DbFile::Lock)), kind) => {
                let request = special::halt(kind, lock.range, waits);
                answer(request.and_then(|request| match request {
                    HaltRequest::Halt => self.halt(db.name(), lock.handle),
                    HaltRequest::Resume => {
                        self.resume(lock.handle);
                        Ok(())
                    }
                }));
            }
            (Ok(_), None) => answer(Ok(())),
            (Ok(_), Some(_)) => answer(Err(Errno::ENOSYS)),
        }
    }

    /// On the primary, halting does nothing.
    fn halt(&self, db: &DbName, handle: u64) -> Result<()> {
        let store = &self.tree.shared().store;
        if store.gate().is_open() || self.halts.lock().contains_key(&handle) {
            return Ok(());
        }
        self.tree.cluster().halt(db).map_err(|error| {
            tracing::warn!(%db, "a client asked to write through this replica (HALT): {error}");
            match error {
                RemoteError::Busy => Errno::EAGAIN,
                _ => Errno::EIO,
            }
        })?;
        self.halts.lock().insert(handle, db.clone());
        Ok(())
    }

    fn resume(&self, handle: u64) {
        let halted = self.halts.lock().remove(&handle);
        if let Some(db) = halted {
            self.tree.cluster().resume(&db);
        }
    }

    pub(crate) fn conflict(&self, ino: INodeNo, lock: &Lock) -> Result<Option<Lock>> {
        match self.tree.node(ino.0)? {
            Node::Db(_, db, DbFile::Part(part)) => Ok(db.conflict(part, lock)),
            _ => Ok(None),
        }
    }

    pub(crate) fn seek(
        &self,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
    ) -> Result<i64> {
        let (_, attributes) = self.attributes_of(ino, Some(fh))?;
        let size = i64::try_from(attributes.size).map_err(|_| Errno::EOVERFLOW)?;
        match whence {
            _ if offset < 0 || offset >= size => Err(Errno::ENXIO),
            SEEK_DATA => Ok(offset),
            SEEK_HOLE => Ok(size),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Does something with one of a database's files; nothing with others.
    pub(crate) fn with_part(
        &self,
        ino: INodeNo,
        act: impl FnOnce(&Arc<MountedDb>, Part) -> Result<()>,
    ) -> Result<()> {
        match self.tree.node(ino.0)? {
            Node::Db(_, db, DbFile::Part(part)) => act(&db, part),
            _ => Ok(()),
        }
    }
}

/// The system's text for an error number.
pub(crate) fn describe(errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(errno.code())
}
