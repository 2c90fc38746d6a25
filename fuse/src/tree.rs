//! The mounted directory: which files there are, under which inode numbers, and for how long.
//!
//! Each database gets a number when it is mounted, each super-journal when it is created; the
//! inode number of a file is eight times that, plus which file of it it is. A database that was
//! removed keeps its number until the kernel has forgotten it and its last open file is closed.
//!
//! The kernel may keep names and attributes for [`TTL`], also that a name does not exist. When a
//! database appears or goes without a client's doing, a thread of its own tells the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo};
use litefs_store::{Database, DbName, Event, Subscription};
use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;

use crate::Cluster;
use crate::backing::Backing;
use crate::db::{self, Attributes, Inodes, MountedDb, Part, Result, Shared};
use crate::errno;
use crate::name::{DbFile, FileKind, SUFFIXES};
use crate::special;
use crate::super_journal::SuperJournal;

/// How long the kernel may keep what the daemon will announce the end of. Not for ever, so that
/// an announcement that got lost does no lasting harm.
pub(crate) const TTL: Duration = Duration::from_secs(60);

/// The same, of a database file's attributes: its mode says whether this node may write, and no
/// announcement is made when that changes.
const MODE_TTL: Duration = Duration::from_secs(1);

/// Super-journals at once; beyond, the oldest that nobody has open goes.
const SUPER_JOURNALS: usize = 256;

const FILES_PER_SLOT: u64 = 8;
const PRIMARY: u64 = 2;
const LAG: u64 = 3;

/// A file, or the directory.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    /// The mounted directory.
    Root,
    /// `.primary`.
    Primary,
    /// `.lag`.
    Lag,
    /// A file of a database.
    Db(Arc<Slot>, Arc<MountedDb>, DbFile),
    /// A super-journal.
    Super(Arc<Slot>, Arc<SuperJournal>),
}

/// Who holds on to a database or a super-journal.
#[derive(Debug)]
pub(crate) struct Slot {
    number: u64,
    owner: Owned,
    /// How often the kernel was told of its files, less how often it forgot them.
    lookups: AtomicU64,
    /// Open files.
    handles: AtomicU64,
    /// How its `-shm` is passed through.
    pub(crate) backing: Backing,
}

#[derive(Debug, Clone)]
enum Owned {
    Db(Arc<MountedDb>),
    Super(Arc<SuperJournal>),
}

type DbSlot = (Arc<Slot>, Arc<MountedDb>);
type SuperSlot = (Arc<Slot>, Arc<SuperJournal>);

/// A directory entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Its place in the listing, the same for as long as the file is there.
    pub cookie: u64,
    pub ino: u64,
    pub kind: FileType,
    pub name: String,
}

/// The mounted directory.
pub(crate) struct Tree {
    shared: Arc<Shared>,
    cluster: Arc<dyn Cluster>,
    slots: RwLock<Slots>,
    /// Databases are mounted one at a time, so that none is mounted twice.
    mounting: Mutex<()>,
    /// Databases whose names the kernel is to forget.
    announce: mpsc::Sender<DbName>,
    uid: u32,
    gid: u32,
    started: SystemTime,
}

#[derive(Default)]
struct Slots {
    last: u64,
    by_number: FxHashMap<u64, Arc<Slot>>,
    databases: BTreeMap<DbName, DbSlot>,
    super_journals: BTreeMap<String, SuperSlot>,
}

impl Slots {
    fn add_database(&mut self, number: u64, db: Arc<MountedDb>) -> DbSlot {
        let added = (self.add(number, Owned::Db(db.clone())), db);
        self.databases.insert(added.1.name().clone(), added.clone());
        added
    }

    fn add_super_journal(&mut self, name: &str) -> SuperSlot {
        let journal = Arc::new(SuperJournal::new(name.to_owned()));
        let number = self.next_number();
        let added = (self.add(number, Owned::Super(journal.clone())), journal);
        self.super_journals.insert(name.to_owned(), added.clone());
        added
    }

    fn add(&mut self, number: u64, owner: Owned) -> Arc<Slot> {
        let slot = Arc::new(Slot {
            number,
            owner,
            lookups: AtomicU64::new(0),
            handles: AtomicU64::new(0),
            backing: Backing::default(),
        });
        self.by_number.insert(number, slot.clone());
        slot
    }

    fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// True if `slot` is what its name stands for.
    fn is_named(&self, slot: &Arc<Slot>) -> bool {
        let current = match &slot.owner {
            Owned::Db(db) => self.databases.get(db.name()).map(|(slot, _)| slot),
            Owned::Super(journal) => self.super_journals.get(journal.name()).map(|(slot, _)| slot),
        };
        current.is_some_and(|current| Arc::ptr_eq(current, slot))
    }

    /// Its name stands for nothing any more.
    fn unname(&mut self, slot: &Arc<Slot>) {
        if self.is_named(slot) {
            match &slot.owner {
                Owned::Db(db) => drop(self.databases.remove(db.name())),
                Owned::Super(journal) => drop(self.super_journals.remove(journal.name())),
            }
        }
        self.reap(slot);
    }

    /// Lets a slot go that has no name and no user.
    fn reap(&mut self, slot: &Arc<Slot>) {
        let uses = slot.lookups.load(Ordering::Relaxed) + slot.handles.load(Ordering::Relaxed);
        if uses == 0 && !self.is_named(slot) {
            self.by_number.remove(&slot.number);
        }
    }
}

impl Slot {
    fn main_inode(number: u64) -> u64 {
        number * FILES_PER_SLOT
    }
}

impl Node {
    /// Its inode number.
    pub(crate) fn inode(&self) -> u64 {
        match self {
            Self::Root => INodeNo::ROOT.0,
            Self::Primary => PRIMARY,
            Self::Lag => LAG,
            Self::Db(_, db, DbFile::Part(part)) => db.inode(*part),
            Self::Db(slot, _, DbFile::Pos) => Slot::main_inode(slot.number) + 4,
            Self::Db(slot, _, DbFile::Lock) => Slot::main_inode(slot.number) + 5,
            Self::Super(slot, _) => Slot::main_inode(slot.number),
        }
    }

    /// How long the kernel may keep its attributes.
    pub(crate) fn attributes_ttl(&self) -> Duration {
        match self {
            Self::Root | Self::Primary | Self::Lag | Self::Db(_, _, DbFile::Pos) => Duration::ZERO,
            Self::Db(_, _, DbFile::Part(Part::Main)) => MODE_TTL,
            _ => TTL,
        }
    }

    /// How long the kernel may keep its name.
    pub(crate) fn name_ttl(&self) -> Duration {
        if matches!(self, Self::Primary) { Duration::ZERO } else { TTL }
    }

    /// Differs between files that had the same inode number one after the other.
    pub(crate) fn generation(&self) -> u64 {
        match self {
            Self::Db(_, db, DbFile::Part(part)) => db.generation(*part),
            _ => 0,
        }
    }

    fn slot(&self) -> Option<&Arc<Slot>> {
        match self {
            Self::Db(slot, ..) | Self::Super(slot, _) => Some(slot),
            _ => None,
        }
    }

    /// The kernel is told of it.
    pub(crate) fn looked_up(&self) {
        if let Some(slot) = self.slot() {
            slot.lookups.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Tree {
    /// Shows all databases of the store. Ends its thread when dropped.
    pub(crate) fn new(
        shared: Arc<Shared>,
        cluster: Arc<dyn Cluster>,
    ) -> std::io::Result<Arc<Self>> {
        let (announce, announced) = mpsc::channel();
        let tree = Arc::new(Self {
            shared,
            cluster,
            slots: RwLock::default(),
            mounting: Mutex::default(),
            announce,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            started: SystemTime::now(),
        });
        let weak = Arc::downgrade(&tree);
        std::thread::Builder::new()
            .name("litefs-names".to_owned())
            .spawn(move || announcer(&weak, &announced))?;
        for database in tree.shared.store.databases() {
            // A damaged one is logged, and does not keep the others from being shown.
            let _ = tree.mount(database.name());
        }
        Ok(tree)
    }

    /// Shows databases that appear in the store from now on.
    pub(crate) fn watch(self: &Arc<Self>) -> Subscription {
        let tree = Arc::downgrade(self);
        self.shared.store.subscribe(move |event| {
            let Event::Position { db, commit: 1.., .. } = event else { return };
            let Some(tree) = tree.upgrade() else { return };
            if !tree.slots.read().databases.contains_key(db) {
                tree.forget_names(db);
            }
        })
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// True if clients may write any database here.
    pub(crate) fn is_writable(&self) -> bool {
        self.shared.store.is_writable()
    }

    /// The cluster that the node is in.
    pub(crate) fn cluster(&self) -> &dyn Cluster {
        &*self.cluster
    }

    /// The file of an inode number. `ESTALE` makes the kernel look its name up again.
    pub(crate) fn node(&self, ino: u64) -> Result<Node> {
        let slot = match ino {
            1 => return Ok(Node::Root),
            PRIMARY => return Ok(Node::Primary),
            LAG => return Ok(Node::Lag),
            _ => self.slots.read().by_number.get(&(ino / FILES_PER_SLOT)).cloned(),
        };
        let slot = slot.ok_or(Errno::ESTALE)?;
        Ok(match slot.owner.clone() {
            Owned::Db(db) => Node::Db(slot, db, file_of(ino)),
            Owned::Super(journal) => Node::Super(slot, journal),
        })
    }

    /// The file of that name, if there is one now.
    pub(crate) fn find(&self, kind: &FileKind) -> Result<Option<Node>> {
        let node = match kind {
            FileKind::Primary => self.cluster.primary().map(|_| Node::Primary),
            FileKind::Lag => Some(Node::Lag),
            FileKind::SuperJournal(name) => {
                let found = self.slots.read().super_journals.get(name).cloned();
                found.map(|(slot, journal)| Node::Super(slot, journal))
            }
            FileKind::Db(name, file) => {
                self.mount(name)?.map(|(slot, db)| Node::Db(slot, db, *file))
            }
        };
        let there = |node: &Node| match node {
            Node::Db(slot, db, DbFile::Part(Part::Main)) => slot.is_open() || db.has_content(),
            Node::Db(_, db, DbFile::Part(part)) => db.attributes(*part).is_some(),
            Node::Db(slot, db, _) => slot.is_open() || db.has_content(),
            _ => true,
        };
        Ok(node.filter(there))
    }

    /// The database of that name, mounted now if need be; `None` if there is none with content.
    fn mount(&self, name: &DbName) -> Result<Option<DbSlot>> {
        if let Some(found) = self.mounted(name) {
            return Ok(Some(found));
        }
        let _alone = self.mounting.lock();
        if let Some(found) = self.mounted(name) {
            return Ok(Some(found));
        }
        let has_content = |db: &Database| db.page_count() > 0 || db.quarantined().is_some();
        match self.shared.store.database(name).filter(has_content) {
            Some(database) => self.mount_alone(database).map(Some),
            None => Ok(None),
        }
    }

    /// The caller holds `mounting`.
    fn mount_alone(&self, database: Database) -> Result<DbSlot> {
        let name = database.name().clone();
        let number = self.slots.write().next_number();
        let main = Slot::main_inode(number);
        let inodes = Inodes { main, journal: main + 1, wal: main + 2, shm: main + 3 };
        let db = MountedDb::new(self.shared.clone(), database, inodes)?;
        self.shared.mounted.write().insert(name, db.clone());
        db.nudge(); // the store may have moved since it was looked at
        Ok(self.slots.write().add_database(number, db))
    }

    /// The database of that name, if it is mounted. One that was removed is let go.
    fn mounted(&self, name: &DbName) -> Option<DbSlot> {
        let (slot, db) = self.slots.read().databases.get(name).cloned()?;
        if db.is_removed() {
            self.unname(&slot);
            return None;
        }
        Some((slot, db))
    }

    /// Creates a file that is not there. A database or super-journal that is there is given back.
    pub(crate) fn create(&self, kind: &FileKind) -> Result<Node> {
        match kind {
            FileKind::Db(name, DbFile::Part(Part::Main)) => {
                let (slot, db) = self.create_database(name)?;
                Ok(Node::Db(slot, db, DbFile::Part(Part::Main)))
            }
            FileKind::Db(name, DbFile::Part(part)) => {
                let (slot, db) = self.mount(name)?.ok_or(Errno::EACCES)?;
                db.create(*part)?;
                Ok(Node::Db(slot, db, DbFile::Part(*part)))
            }
            FileKind::SuperJournal(name) if self.is_writable() => {
                let (slot, journal) = self.create_super_journal(name);
                Ok(Node::Super(slot, journal))
            }
            _ => Err(Errno::EACCES),
        }
    }

    fn create_database(&self, name: &DbName) -> Result<DbSlot> {
        if !self.shared.store.is_writable() {
            return Err(Errno::EACCES);
        }
        if let Some(found) = self.mount(name)? {
            return Ok(found);
        }
        let _alone = self.mounting.lock();
        if let Some(found) = self.mounted(name) {
            return Ok(found);
        }
        let database = self.shared.store.create(name).map_err(|e| errno::of(&e))?;
        let created = self.mount_alone(database)?;
        // The kernel may know that its other files do not exist.
        self.forget_names(name);
        Ok(created)
    }

    fn create_super_journal(&self, name: &str) -> SuperSlot {
        let mut slots = self.slots.write();
        if let Some(found) = slots.super_journals.get(name) {
            return found.clone();
        }
        if slots.super_journals.len() >= SUPER_JOURNALS {
            let closed = |slot: &&Arc<Slot>| slot.handles.load(Ordering::Relaxed) == 0;
            let all = slots.super_journals.values().map(|(slot, _)| slot);
            let oldest = all.filter(closed).min_by_key(|slot| slot.number);
            if let Some(oldest) = oldest.cloned() {
                slots.unname(&oldest);
            }
        }
        slots.add_super_journal(name)
    }

    /// Removes a file. Removing a super-journal commits the transaction that it stands for.
    pub(crate) fn unlink(&self, kind: &FileKind) -> Result<()> {
        match self.find(kind)?.ok_or(Errno::ENOENT)? {
            Node::Db(slot, db, DbFile::Part(part)) => {
                db.unlink(part)?;
                if part == Part::Main {
                    self.unname(&slot);
                    self.forget_names(db.name());
                }
                Ok(())
            }
            Node::Super(slot, journal) => {
                let databases = self.mounted_databases(&journal.databases());
                db::commit_together(&databases, journal.name())?;
                self.unname(&slot);
                Ok(())
            }
            _ => Err(Errno::EACCES),
        }
    }

    fn mounted_databases(&self, names: &[DbName]) -> Vec<Arc<MountedDb>> {
        names.iter().filter_map(|name| self.mounted(name)).map(|(_, db)| db).collect()
    }

    /// A file is opened. False if it is gone meanwhile.
    pub(crate) fn opened(&self, node: &Node) -> bool {
        let Some(slot) = node.slot() else { return true };
        // With the lock, so that nobody lets go of a database that is just being opened.
        let slots = self.slots.read();
        slot.handles.fetch_add(1, Ordering::Relaxed);
        let named = slots.is_named(slot);
        drop(slots);
        if !named {
            self.closed(node);
        }
        named
    }

    /// The last descriptor of an open file is gone. A database that was created and never written
    /// disappears with its last open file.
    pub(crate) fn closed(&self, node: &Node) {
        let Some(slot) = node.slot() else { return };
        let was_last = {
            let mut slots = self.slots.write();
            let was_last = slot.handles.fetch_sub(1, Ordering::Relaxed) == 1;
            slots.reap(slot);
            was_last && slots.is_named(slot)
        };
        let Some(db) = slot.database().filter(|db| was_last && !db.has_content()) else { return };
        let is_gone = {
            let mut slots = self.slots.write();
            // Somebody may have opened it meanwhile.
            let is_gone = !slot.is_open();
            if is_gone {
                slots.unname(slot);
            }
            is_gone
        };
        if is_gone {
            self.unmount(slot);
            self.forget_names(db.name());
        }
    }

    /// Its name stands for nothing any more.
    fn unname(&self, slot: &Arc<Slot>) {
        self.slots.write().unname(slot);
        self.unmount(slot);
    }

    /// The store's news of a database that has no name any more are of no interest.
    fn unmount(&self, slot: &Arc<Slot>) {
        if let Some(db) = slot.database() {
            let mut mounted = self.shared.mounted.write();
            if mounted.get(db.name()).is_some_and(|current| Arc::ptr_eq(current, db)) {
                mounted.remove(db.name());
            }
        }
    }

    /// The kernel has forgotten as many lookups of a file.
    pub(crate) fn forget(&self, ino: u64, lookups: u64) {
        let slot = self.slots.read().by_number.get(&(ino / FILES_PER_SLOT)).cloned();
        let Some(slot) = slot else { return };
        let subtract = |had: u64| Some(had.saturating_sub(lookups));
        let had = slot.lookups.fetch_update(Ordering::Relaxed, Ordering::Relaxed, subtract);
        if had.is_ok_and(|had| had <= lookups) {
            self.slots.write().reap(&slot);
        }
    }

    /// All entries, in LiteFS's order.
    pub(crate) fn list(&self) -> Vec<Listed> {
        let entry = |ino, name: &str| Listed {
            cookie: ino + 1, // after those of the two directories
            ino,
            kind: FileType::RegularFile,
            name: name.to_owned(),
        };
        let directory = |cookie, name: &str| Listed {
            cookie,
            ino: INodeNo::ROOT.0,
            kind: FileType::Directory,
            name: name.to_owned(),
        };
        let mut entries = vec![directory(1, "."), directory(2, "..")];
        entries.push(entry(LAG, ".lag"));
        if self.cluster.primary().is_some() {
            entries.push(entry(PRIMARY, ".primary"));
        }
        for name in self.database_names() {
            // What cannot be mounted was logged.
            let Ok(Some((slot, db))) = self.mount(&name) else { continue };
            if !db.has_content() {
                continue;
            }
            entries.push(entry(db.inode(Part::Main), name.as_str()));
            for file in [
                DbFile::Pos,
                DbFile::Part(Part::Journal),
                DbFile::Part(Part::Shm),
                DbFile::Part(Part::Wal),
            ] {
                let node = Node::Db(slot.clone(), db.clone(), file);
                if self.attributes(&node).is_some_and(|attributes| attributes.nlink > 0) {
                    entries.push(entry(node.inode(), &format!("{name}{}", suffix(file))));
                }
            }
        }
        entries.sort_by_key(|entry| entry.cookie);
        entries
    }

    fn database_names(&self) -> BTreeSet<DbName> {
        let mut names: BTreeSet<DbName> = self.slots.read().databases.keys().cloned().collect();
        names.extend(self.shared.store.databases().iter().map(|db| db.name().clone()));
        names
    }

    /// The content of a special file, with its time; `None` if it does not exist now, or is none.
    pub(crate) fn content(&self, node: &Node) -> Option<(Vec<u8>, SystemTime)> {
        match node {
            Node::Primary => Some((special::primary(&self.cluster.primary()?), self.started)),
            Node::Lag => {
                let lag = self.cluster.lag();
                Some((special::lag(&lag), lag.primary_time.unwrap_or(UNIX_EPOCH)))
            }
            Node::Db(_, db, DbFile::Pos) => {
                let (pos, timestamp_ms) = db.pos();
                Some((special::position(pos), special::time(timestamp_ms)))
            }
            Node::Db(_, _, DbFile::Lock) => Some((Vec::new(), self.started)),
            _ => None,
        }
    }

    /// What `stat` says; `None` if there is no such file now.
    pub(crate) fn attributes(&self, node: &Node) -> Option<FileAttr> {
        let writable = self.is_writable();
        let (perm, attributes) = match node {
            Node::Root => {
                let attributes = Attributes { size: 0, mtime: self.started };
                (if writable { 0o777 } else { 0o555 }, attributes)
            }
            Node::Db(_, db, DbFile::Part(part)) => {
                let writable = *part != Part::Main || writable || db.is_writable();
                let perm = if writable { 0o666 } else { 0o444 };
                (perm, db.attributes(*part)?)
            }
            Node::Super(_, journal) => {
                (0o666, Attributes { size: journal.len(), mtime: journal.created() })
            }
            Node::Primary | Node::Lag | Node::Db(_, _, DbFile::Pos | DbFile::Lock) => {
                let perm = if matches!(node, Node::Db(_, _, DbFile::Pos)) { 0o666 } else { 0o444 };
                let (content, mtime) = self.content(node)?;
                (perm, Attributes { size: content.len() as u64, mtime })
            }
        };
        Some(self.file_attr(node, perm, attributes))
    }

    /// What `fstat` says of an open file that is not there any more.
    pub(crate) fn attributes_of_removed(&self, node: &Node) -> FileAttr {
        let attributes = Attributes { size: 0, mtime: self.started };
        FileAttr { nlink: 0, ..self.file_attr(node, 0o666, attributes) }
    }

    fn file_attr(&self, node: &Node, perm: u16, attributes: Attributes) -> FileAttr {
        let Attributes { size, mtime } = attributes;
        let is_root = matches!(node, Node::Root);
        let is_removed = matches!(node, Node::Db(_, db, _) if db.is_removed());
        FileAttr {
            ino: INodeNo(node.inode()),
            size,
            blocks: size.div_ceil(512),
            atime: mtime,
            mtime,
            ctime: mtime,
            crtime: mtime,
            kind: if is_root { FileType::Directory } else { FileType::RegularFile },
            perm,
            nlink: if is_root { 2 } else { u32::from(!is_removed) },
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// Lets the kernel look all names of a database up again, a little later.
    fn forget_names(&self, name: &DbName) {
        // Fails only when the mount ends.
        let _ = self.announce.send(name.clone());
    }
}

impl Slot {
    /// True if a client has one of its files open.
    fn is_open(&self) -> bool {
        self.handles.load(Ordering::Relaxed) > 0
    }

    /// The database, if it is one.
    fn database(&self) -> Option<&Arc<MountedDb>> {
        match &self.owner {
            Owned::Db(db) => Some(db),
            Owned::Super(_) => None,
        }
    }
}

/// Which file of its database an inode number stands for.
fn file_of(ino: u64) -> DbFile {
    match ino % FILES_PER_SLOT {
        0 => DbFile::Part(Part::Main),
        1 => DbFile::Part(Part::Journal),
        2 => DbFile::Part(Part::Wal),
        3 => DbFile::Part(Part::Shm),
        4 => DbFile::Pos,
        _ => DbFile::Lock,
    }
}

fn suffix(file: DbFile) -> &'static str {
    SUFFIXES.iter().find(|(_, other)| *other == file).map_or("", |(suffix, _)| suffix)
}

/// Mounts databases that have appeared, and tells the kernel to look their names up again. The
/// kernel may wait for an answer of ours meanwhile, so that no thread that answers does this.
fn announcer(tree: &Weak<Tree>, announced: &mpsc::Receiver<DbName>) {
    while let Ok(name) = announced.recv() {
        let Some(tree) = tree.upgrade() else { return };
        // A damaged one was logged.
        let _ = tree.mount(&name);
        let kernel = &tree.shared.kernel;
        kernel.forget_name(name.as_str());
        for (suffix, _) in SUFFIXES {
            kernel.forget_name(&format!("{name}{suffix}"));
        }
    }
}

/// Tells the kernel that a name does not exist, and that it need not ask again soon.
pub(crate) fn no_such_file() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: fuser::FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}
