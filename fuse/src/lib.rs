//! A mounted directory of replicated SQLite databases, for programs in any language.
//!
//! Each database of the store is shown as a plain SQLite file with its `-journal`, `-wal` and
//! `-shm` beside it, and with LiteFS's special files. A transaction is committed when its record
//! is in the store's log; the files shown are views of it that live as long as the mount does.
//! [`Mount::start`] mounts a store.
#![forbid(unsafe_code)]

mod backing;
mod committing;
mod db;
mod effort;
mod errno;
mod fs;
mod handles;
mod journal;
mod kernel;
mod locks;
mod mount;
mod mount_point;
mod name;
mod pool;
mod requests;
mod shm;
mod special;
mod spin;
mod super_journal;
mod tree;
mod wal;

use std::time::{Duration, SystemTime};

use litefs_store::{DbName, RemoteError};

pub use mount::{Mount, MountError, MountOptions, View};

/// What the mount shows of the cluster, and asks of it.
pub trait Cluster: Send + Sync + 'static {
    /// The primary's host name, while this node is a replica and connected to it.
    fn primary(&self) -> Option<String>;
    /// How far this node is behind.
    fn lag(&self) -> Lag;
    /// On a replica: has the primary let this node write a database, until it is told to resume,
    /// and waits until this node has everything.
    ///
    /// # Errors
    /// Why not.
    fn halt(&self, db: &DbName) -> Result<(), RemoteError>;
    /// Lets the primary write again.
    fn resume(&self, db: &DbName);
    /// The mount has come to show what a database learned elsewhere: see [`View`].
    fn shown(&self, _db: &DbName) {}
}

/// How far a node is behind the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lag {
    /// How long ago it last had everything: zero on the primary, `None` on a replica that never
    /// had since it started.
    pub behind: Option<Duration>,
    /// The primary's clock when it was last heard of; `None` on the primary, or if it never was.
    pub primary_time: Option<SystemTime>,
}
