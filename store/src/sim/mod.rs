//! A simulated disk and clock: deterministic, in memory, and able to lose power at any operation.
//!
//! # The fault model
//!
//! [`SimDisk`] implements [`Storage`](crate::storage::Storage) and keeps a log of all operations
//! that change something: writes, lengths, reservations, created, renamed and removed names, and
//! the syncs between them. From the log an [`ImageBuilder`] makes the disks ([`ImageKind`]) that a
//! machine could find after a crash between any two operations. An image is a full `SimDisk`: what
//! recovery does to it can be crashed again.
//!
//! Files have inodes, directories have entries that name them. Durable is:
//!
//! * of a file: what happened to its bytes and its length before the last successful `sync_data` on
//!   any of its handles;
//! * of a directory: what happened to its entries before the last successful `sync_dir`. A rename
//!   between two directories is durable once both were synced. The entry of a new directory belongs
//!   to its parent;
//! * nothing else: a synced file whose entry is not durable is gone, a durable entry can lead to an
//!   empty file.
//!
//! Everything that is not durable is at the power loss's mercy, each operation by itself and in any
//! order: a later one may survive without an earlier one, as on file systems without a journal;
//! those with one, which keep the order of names, or of lengths and names, show a part of the same
//! images. In particular:
//!
//! * A write may survive whole, not at all, in some of its 512-byte sectors, as random bytes in one
//!   of them, or, where it extended the file, as zeros. The device is taken not to harm bytes that
//!   nobody writes, also if they share a sector with bytes that somebody does (SQLite calls that
//!   "powersafe overwrite").
//! * Where a write is lost, the file shows what was there before: older bytes, or zeros in space
//!   that was reserved by `allocate`, extended by `set_len`, or never written.
//! * A lost truncation brings the old bytes back.
//! * A rename survives whole or not at all: the file is under its old name or its new one, never
//!   under both or none (unless its creation was lost and the rename too); what it replaced is
//!   there as long as it is not.
//! * The removal of a directory is a sequence of removals, of the files in it first; a crash can
//!   come between.
//!
//! A durable write (`write_durably_at`) is a write and a sync of it alone: a crash can come between
//! the two, and each can fail. What failed is in doubt like what a failed sync should have covered.
//!
//! After a failed sync, what it should have covered stays visible to the running process but is in
//! doubt for ever: it may survive or not, whatever later syncs say (Linux marks the pages clean).
//! The process keeps reading the new bytes; that the kernel may drop them from its cache and show
//! the old ones is not simulated.
//!
//! A process crash without power loss keeps everything, but makes nothing durable
//! ([`ImageKind::ProcessCrash`]).
//!
//! # Faults and a full disk
//!
//! [`SimDisk::inject`] makes the nth call of a kind fail. With [`SimDisk::set_capacity`], a write
//! that needs more space writes what fits and fails with ENOSPC, a reservation fails whole;
//! overwriting, and what was reserved, always fits. A removed file's space is free once its last
//! handle is closed.
//!
//! The log keeps all written bytes in memory for as long as the disk or an [`ImageBuilder`] of it
//! lives.

mod clock;
mod content;
mod disk;
mod fault;
mod image;
mod rng;
mod state;
mod volume;

#[cfg(test)]
mod tests;

pub use clock::{LeapingClock, SimClock};
pub use disk::SimDisk;
pub use fault::{CallKind, Fault, FaultError};
pub use image::{ImageBuilder, ImageKind};
pub use rng::Rng;
