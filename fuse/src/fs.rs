//! The kernel's requests, each answered by the part that knows.
//!
//! No request is answered `ENOSYS` where the kernel then stops asking for the whole mount and
//! something breaks by it. It is the right answer for extended attributes and `access`: there are
//! none, and everything is allowed.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, PollEvents,
    PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::committing::{self, Committing};
use crate::db::{MountedDb, Part, Removal, Result};
use crate::effort::{Effort, Wait};
use crate::errno;
use crate::locks::{Lock, LockKind, Owner, Range};
use crate::name::{self, DbFile, FileKind};
use crate::pool::{Lane, OnlyClient, Pool};
use crate::requests::{Mounted, Opened, describe};
use crate::spin::Spin;
use crate::tree::{Node, TTL, no_such_file};

/// The largest write that one request carries.
const MAX_WRITE: u32 = 1 << 20;
/// Backing files of `-shm` may lie on a stacked file system, such as a container's.
const STACK_DEPTH: u32 = 2;

/// `fcntl`'s lock types, as Linux has them.
const F_RDLCK: i32 = 0;
const F_WRLCK: i32 = 1;
const F_UNLCK: i32 = 2;

fn lock_kind(typ: i32) -> Result<Option<LockKind>> {
    match typ {
        F_RDLCK => Ok(Some(LockKind::Read)),
        F_WRLCK => Ok(Some(LockKind::Write)),
        F_UNLCK => Ok(None),
        _ => Err(Errno::EINVAL),
    }
}

fn answer_empty(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn answer_written(reply: ReplyWrite, len: usize, result: Result<()>) {
    match result {
        // No request carries more than MAX_WRITE.
        Ok(()) => reply.written(len as u32),
        Err(errno) => reply.error(errno),
    }
}

/// Takes the kernel's requests.
pub(crate) struct Served {
    mounted: Arc<Mounted>,
    pool: Pool,
    committing: Arc<Committing>,
    spin: Arc<OnceLock<Spin>>,
    client: OnlyClient,
}

impl Served {
    /// Serves a mounted file system.
    pub(crate) fn new(mounted: Mounted) -> io::Result<Self> {
        let (mounted, pool) = (Arc::new(mounted), Pool::start()?);
        Ok(Self {
            committing: Committing::new(mounted.clone(), pool.clone()),
            mounted,
            pool,
            spin: Arc::default(),
            client: OnlyClient::default(),
        })
    }

    /// Where to put what looks out for requests, once there is a session.
    pub(crate) fn spin(&self) -> Arc<OnceLock<Spin>> {
        self.spin.clone()
    }

    /// A request has come.
    fn arrived(&self, request: &Request) {
        self.client.asks(request.pid());
        if let Some(spin) = self.spin.get() {
            spin.request();
        }
    }

    /// Answers a request on this thread, or on another if it, or somebody before it, may have to
    /// wait for the disk. (If one client is all there is, nobody else is kept waiting: then
    /// here too, as handing it over takes longer than it gains.)
    fn answer(&self, effort: Effort, request: impl FnOnce(&Mounted) + Send + 'static) {
        match effort {
            Effort::Little => request(&self.mounted),
            Effort::MayWait(Some(Wait { short: true, .. })) if self.client.is_alone() => {
                request(&self.mounted);
            }
            Effort::MayWait(lane) => {
                let mounted = self.mounted.clone();
                let request = move || request(&mounted);
                match lane {
                    Some(wait) => wait.lane.run(&self.pool, request),
                    None => self.pool.run(request),
                }
            }
        }
    }

    /// The same for a request that may commit: see [`Committing`].
    fn answer_commit<T: Send + 'static>(
        &self,
        effort: Effort,
        lane: impl FnOnce(&Mounted) -> Option<Arc<Lane>> + Send + 'static,
        act: impl FnOnce(&Mounted) -> Result<T> + Send + 'static,
        answer: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        let committing = self.committing.clone();
        self.answer(effort, move |_| committing.serve(lane, act, answer));
    }

    /// What a request on a file takes.
    fn effort(&self, ino: INodeNo, waits: impl FnOnce(&MountedDb, Part) -> bool) -> Effort {
        match self.mounted.tree.node(ino.0) {
            Ok(Node::Db(_, db, DbFile::Part(part))) => Effort::of(&db, waits(&db, part)),
            _ => Effort::Little,
        }
    }

    /// What a lock takes: on a replica, the primary may have to be asked.
    fn lock_effort(&self, ino: INodeNo, range: Range, kind: Option<LockKind>) -> Effort {
        match (self.mounted.tree.node(ino.0), kind) {
            (Ok(Node::Db(_, db, DbFile::Part(part))), Some(kind))
                if db.must_reach(part, range, kind) =>
            {
                Effort::MayWait(Some(Wait { lane: db.lane.clone(), short: false }))
            }
            (Ok(Node::Db(_, _, DbFile::Lock)), _) => Effort::MayWait(None),
            _ => self.effort(ino, |_, _| false),
        }
    }

    /// The same of one on a name.
    fn effort_by_name(&self, name: &OsStr, waits: impl FnOnce(&MountedDb, Part) -> bool) -> Effort {
        match name::parse(name) {
            Some(FileKind::Db(name, DbFile::Part(part))) => {
                let db = self.mounted.database(&name);
                db.map_or(Effort::Little, |db| Effort::of(&db, waits(&db, part)))
            }
            Some(FileKind::SuperJournal(_)) => Effort::MayWait(None),
            _ => Effort::Little,
        }
    }
}

impl Filesystem for Served {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let needed = InitFlags::FUSE_POSIX_LOCKS | InitFlags::FUSE_ASYNC_READ;
        config.add_capabilities(needed).map_err(|missing| {
            io::Error::other(format!("this kernel's FUSE lacks {missing:?}: a newer one is needed"))
        })?;
        for wished in [
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
        ] {
            // Without it, the mount is slower.
            let _ = config.add_capabilities(wished);
        }
        // It fails for a value that is out of bounds; this one is not.
        let _ = config.set_max_write(MAX_WRITE);
        let passthrough = self.mounted.passthrough
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(STACK_DEPTH).is_ok();
        self.mounted.tree.shared().passthrough.store(passthrough, Ordering::Relaxed);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.arrived(req);
        let name = name.to_owned();
        self.answer(self.effort_by_name(&name, |_, _| false), move |fs| {
            let result = fs.lookup_name(parent, &name);
            fs.log(format_args!("lookup {name:?}"), &result);
            match result {
                Ok((node, attributes)) => reply.entry_with_ttls(
                    &node.name_ttl(),
                    &node.attributes_ttl(),
                    &attributes,
                    Generation(node.generation()),
                ),
                Err(Errno::ENOENT) if name != ".primary" => {
                    reply.entry(&TTL, &no_such_file(), Generation(0));
                }
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.mounted.tree.forget(ino.0, nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        self.arrived(req);
        self.answer(self.effort(ino, |_, _| false), move |fs| {
            let result = fs.attributes_of(ino, fh);
            fs.log(format_args!("getattr {ino}"), &result);
            match result {
                Ok((node, attributes)) => reply.attr(&node.attributes_ttl(), &attributes),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.arrived(req);
        let effort = self.effort(ino, |db, part| size.is_some() && db.may_commit(part));
        let act = move |fs: &Mounted| {
            let set = fs.set_attributes(ino, fh, size);
            let result = set.and_then(|()| fs.attributes_of(ino, fh));
            fs.log(format_args!("setattr {ino} size {size:?}"), &result);
            result
        };
        let answer = |result| match result {
            Ok((node, attributes)) => reply.attr(&Node::attributes_ttl(&node), &attributes),
            Err(errno) => reply.error(errno),
        };
        match size {
            Some(_) => self.answer_commit(effort, move |fs| fs.lane(ino), act, answer),
            None => self.answer(effort, move |fs| answer(act(fs))),
        }
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.arrived(req);
        let name = name.to_owned();
        let of = name.clone();
        let removal = Removal::begin(self.mounted.tree.shared());
        self.answer_commit(
            self.effort_by_name(&name, |db, part| part == Part::Main || db.may_commit(part)),
            move |fs| fs.lane_by_name(&of),
            move |fs| {
                let result = Mounted::kind(parent, &name).and_then(|kind| fs.tree.unlink(&kind));
                fs.log(format_args!("unlink {name:?}"), &result);
                result
            },
            move |result| {
                answer_empty(reply, result);
                drop(removal);
            },
        );
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.arrived(req);
        self.answer(self.effort(ino, |_, _| false), move |fs| {
            let for_writing = flags.acc_mode() != OpenAccMode::O_RDONLY;
            let register = |file: &File| reply.open_backing(file);
            let node = fs.tree.node(ino.0);
            let result = node.and_then(|node| fs.open_node(&node, for_writing, register));
            fs.log(format_args!("open {ino} flags {:#o}", flags.0), &result);
            match result {
                Ok(Opened { handle, flags, backing: Some(id) }) => {
                    reply.opened_passthrough(FileHandle(handle), flags, &id);
                }
                Ok(Opened { handle, flags, backing: None }) => {
                    reply.opened(FileHandle(handle), flags)
                }
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.arrived(req);
        let name = name.to_owned();
        self.answer(self.effort_by_name(&name, |_, _| false), move |fs| {
            let register = |file: &File| reply.open_backing(file);
            let result = fs.create_file(parent, &name, flags, register);
            fs.log(format_args!("create {name:?}"), &result);
            match result {
                Ok((Opened { handle, flags, backing }, node, attr)) => {
                    let (handle, generation) = (FileHandle(handle), Generation(node.generation()));
                    // One for name and attributes.
                    let ttl = node.attributes_ttl();
                    match backing {
                        Some(id) => {
                            reply.created_passthrough(&ttl, &attr, generation, handle, flags, &id);
                        }
                        None => reply.created(&ttl, &attr, generation, handle, flags),
                    }
                }
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.arrived(req);
        self.answer(self.effort(ino, |_, part| part == Part::Main), move |fs| {
            let result = fs.read_file(ino, fh, offset, size as usize);
            fs.log(format_args!("read {ino} at {offset} for {size}"), &result);
            match result {
                Ok(data) => reply.data(&data),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.arrived(req);
        let waits = |db: &MountedDb, part| {
            part == Part::Wal && (db.syncs_each_commit() || db.is_remote())
                || offset == 0 && db.may_commit(part)
        };
        let mut commits = false;
        let effort = self.effort(ino, |db, part| {
            commits = part == Part::Wal || offset == 0 && part == Part::Journal;
            waits(db, part)
        });
        let len = data.len();
        if let Effort::Little = effort {
            let write = |fs: &Mounted| fs.write_file(ino, fh, offset, data);
            if !commits {
                return answer_written(reply, len, write(&self.mounted));
            }
            if let Some(_pass) = self.committing.gate().try_pass() {
                let answer = move |result| answer_written(reply, len, result);
                return committing::commit(&self.mounted, write, answer);
            }
        }
        let data = data.to_vec();
        let write = move |fs: &Mounted| fs.write_file(ino, fh, offset, &data);
        let answer = move |result| answer_written(reply, len, result);
        match commits {
            true => self.answer_commit(effort, move |fs| fs.lane(ino), write, answer),
            false => self.answer(effort, move |fs| answer(write(fs))),
        }
    }

    fn flush(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.arrived(req);
        self.answer(self.effort(ino, |_, _| false), move |fs| {
            let result = fs.with_part(ino, |db, part| {
                db.owner_closed(part, Owner(owner.0), fh.0);
                Ok(())
            });
            fs.log(format_args!("flush {ino} owner {owner}"), &result);
            reply.ok();
        });
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.arrived(req);
        self.answer(self.effort(ino, |_, _| false), move |fs| {
            let result = fs.tree.node(ino.0).map(|node| fs.close(&node, fh.0));
            fs.log(format_args!("release {ino}"), &result);
            reply.ok();
        });
    }

    fn fsync(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.arrived(req);
        let mut precedes_commit = false;
        let effort = self.effort(ino, |db, part| {
            precedes_commit = part == Part::Main && db.may_commit(Part::Journal);
            part == Part::Wal
        });
        let act = move |fs: &Mounted| {
            let result = fs.with_part(ino, |db, part| db.sync(part));
            fs.log(format_args!("fsync {ino}"), &result);
            result
        };
        let answer = |result| answer_empty(reply, result);
        match precedes_commit {
            // If commits are held, it better waits here: in DELETE mode, the kernel keeps the
            // directory locked for as long as the commit itself takes.
            true => self.answer_commit(effort, move |fs| fs.lane(ino), act, answer),
            false => self.answer(effort, move |fs| answer(act(fs))),
        }
    }

    /// Nothing to open: the kernel need not ask. SQLite opens the directory in each commit of
    /// journal_mode=DELETE.
    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn readdir(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.arrived(req);
        self.answer(Effort::MayWait(None), move |fs| {
            let entries = fs.tree.list();
            for entry in entries.iter().filter(|entry| entry.cookie > offset) {
                if reply.add(INodeNo(entry.ino), entry.cookie, entry.kind, &entry.name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    /// What a name's creation or removal means is durable when it is answered. The kernel takes
    /// this for success, and asks no more.
    fn fsyncdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    /// The data directory's.
    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match rustix::fs::statvfs(&self.mounted.data_dir) {
            Ok(stat) => {
                let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
                reply.statfs(
                    stat.f_blocks,
                    stat.f_bfree,
                    stat.f_bavail,
                    stat.f_files,
                    stat.f_ffree,
                    narrow(stat.f_bsize),
                    narrow(stat.f_namemax),
                    narrow(stat.f_frsize),
                );
            }
            Err(error) => {
                let path = self.mounted.data_dir.display().to_string();
                reply.error(errno::of_io_at(&path, &error.into()));
            }
        }
    }

    fn getlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        self.arrived(req);
        self.answer(self.effort(ino, |_, _| false), move |fs| {
            let range = Range { start, end };
            let kind = lock_kind(typ).and_then(|kind| kind.ok_or(Errno::EINVAL));
            let lock = kind.map(|kind| Lock {
                owner: Owner(lock_owner.0),
                range,
                kind,
                pid,
                handle: fh.0,
            });
            let result = lock.and_then(|lock| fs.conflict(ino, &lock));
            fs.log(format_args!("getlk {ino} {start}..={end} type {typ}"), &result);
            match result {
                Ok(None) => reply.locked(start, end, F_UNLCK, 0),
                Ok(Some(Lock { range, kind, pid, .. })) => {
                    let typ = if kind == LockKind::Read { F_RDLCK } else { F_WRLCK };
                    reply.locked(range.start, range.end, typ, pid);
                }
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        self.arrived(req);
        let kind = match lock_kind(typ) {
            Ok(kind) => kind,
            Err(errno) => return reply.error(errno),
        };
        let lock = Lock {
            owner: Owner(lock_owner.0),
            range: Range { start, end },
            // Of no meaning when a lock is given back.
            kind: kind.unwrap_or(LockKind::Read),
            pid,
            handle: fh.0,
        };
        let debug = self.mounted.debug;
        let answer = move |result: Result<()>| {
            if debug {
                let wanted = kind.map_or("none".to_owned(), |kind| format!("{kind:?}"));
                let outcome = result.map_or_else(|e| describe(e).to_string(), |()| "ok".to_owned());
                tracing::info!(
                    "fuse: setlk {ino} {start}..={end} {wanted} by {lock_owner}: {outcome}"
                );
            }
            answer_empty(reply, result);
        };
        let effort = self.lock_effort(ino, lock.range, kind);
        let request = move |fs: &Mounted| fs.lock(ino, lock, kind, sleep, Box::new(answer));
        if kind == Some(LockKind::Write) && self.committing.gate().is_held() {
            let committing = self.committing.clone();
            return self.answer(effort, move |_| committing.begin(ino, &lock, request));
        }
        self.answer(effort, request);
    }

    /// There are no holes.
    fn lseek(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.arrived(req);
        self.answer(self.effort(ino, |_, _| false), move |fs| {
            match fs.seek(ino, fh, offset, whence) {
                Ok(offset) => reply.offset(offset),
                Err(errno) => reply.error(errno),
            }
        });
    }

    /// Files are always ready.
    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.poll(events & (PollEvents::POLLIN | PollEvents::POLLOUT));
    }

    fn readlink(&self, _req: &Request, _ino: INodeNo, reply: ReplyData) {
        reply.error(Errno::EINVAL);
    }

    fn mknod(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn rmdir(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn symlink(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _link_name: &OsStr,
        _target: &Path,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn rename(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _newparent: INodeNo,
        _newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EPERM);
    }

    fn link(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _newparent: INodeNo,
        _newname: &OsStr,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn setxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _size: u32,
        reply: ReplyXattr,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _req: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: ReplyBmap) {
        reply.error(Errno::EINVAL);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    /// SQLite and glibc then write zeros instead.
    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EOPNOTSUPP);
    }

    /// The kernel then copies by reading and writing.
    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EOPNOTSUPP);
    }
}
