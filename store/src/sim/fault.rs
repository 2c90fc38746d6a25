//! Faults that a test arms: which call fails, and how.

use std::io;

/// The kinds of calls that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallKind {
    /// Opening an existing file.
    Open,
    /// Opening a file in a way that creates it.
    Create,
    /// Reading from a file.
    Read,
    /// Writing to a file.
    Write,
    /// Setting a file's length.
    SetLen,
    /// Reserving a file's space.
    Allocate,
    /// Asking an open file's length, or that of a path.
    Len,
    /// Syncing a file.
    SyncData,
    /// Renaming.
    Rename,
    /// Removing a file.
    RemoveFile,
    /// Creating directories.
    CreateDir,
    /// Removing a directory with its content.
    RemoveDir,
    /// Listing a directory.
    List,
    /// Syncing a directory.
    SyncDir,
    /// Locking a directory.
    LockDir,
}

impl CallKind {
    /// All kinds.
    pub const ALL: [CallKind; 15] = [
        CallKind::Open,
        CallKind::Create,
        CallKind::Read,
        CallKind::Write,
        CallKind::SetLen,
        CallKind::Allocate,
        CallKind::Len,
        CallKind::SyncData,
        CallKind::Rename,
        CallKind::RemoveFile,
        CallKind::CreateDir,
        CallKind::RemoveDir,
        CallKind::List,
        CallKind::SyncDir,
        CallKind::LockDir,
    ];

    fn is_sync(self) -> bool {
        matches!(self, CallKind::SyncData | CallKind::SyncDir)
    }
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultError {
    /// EIO. Of a write, a prefix may be written. A sync leaves what it should have covered in
    /// doubt.
    Eio,
    /// ENOSPC, from calls that can need space: `Create`, `Write`, `Allocate`, `Rename`, `CreateDir`
    /// and the syncs.
    Enospc,
    /// A write stops after this many bytes (or before its last one, if it is shorter) with ENOSPC.
    ShortWrite(usize),
    /// EIO from a sync: what it should have covered may be lost, and later syncs say nothing about
    /// it.
    FailedSync,
}

impl FaultError {
    /// Whether a call of this kind can fail so; it is not counted by the fault otherwise.
    pub fn applies_to(self, kind: CallKind) -> bool {
        match self {
            FaultError::Eio => true,
            FaultError::ShortWrite(_) => kind == CallKind::Write,
            FaultError::FailedSync => kind.is_sync(),
            FaultError::Enospc => {
                kind.is_sync()
                    || matches!(
                        kind,
                        CallKind::Create
                            | CallKind::Write
                            | CallKind::Allocate
                            | CallKind::Rename
                            | CallKind::CreateDir
                    )
            }
        }
    }

    pub(super) fn to_io(self) -> io::Error {
        match self {
            FaultError::Eio | FaultError::FailedSync => eio(),
            FaultError::Enospc | FaultError::ShortWrite(_) => enospc(),
        }
    }
}

pub(super) fn eio() -> io::Error {
    rustix::io::Errno::IO.into()
}

pub(super) fn enospc() -> io::Error {
    rustix::io::Errno::NOSPC.into()
}

/// A fault to be armed by [`SimDisk::inject`](super::SimDisk::inject).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which calls are counted; `None`: all that can fail with `error`.
    pub kind: Option<CallKind>,
    /// Only calls on paths that contain this.
    pub path: Option<String>,
    /// The first of the counted calls that fails, from 1.
    pub nth: u64,
    /// How it fails.
    pub error: FaultError,
    /// Whether the counted calls after it fail too.
    pub forever: bool,
}

impl Fault {
    /// The `nth` call from now fails, and no other.
    pub fn once(nth: u64, error: FaultError) -> Self {
        Fault { kind: None, path: None, nth, error, forever: false }
    }

    /// The `nth` call from now and all after it fail.
    pub fn forever(nth: u64, error: FaultError) -> Self {
        Fault { forever: true, ..Fault::once(nth, error) }
    }

    /// Only calls of this kind.
    pub fn on(self, kind: CallKind) -> Self {
        Fault { kind: Some(kind), ..self }
    }

    /// Only calls on paths that contain `part` (for files, the path they have at the time of the
    /// call).
    pub fn at(self, part: impl Into<String>) -> Self {
        Fault { path: Some(part.into()), ..self }
    }
}

/// The armed faults, and how many calls there were.
#[derive(Debug, Default)]
pub(super) struct Faults {
    armed: Vec<Armed>,
    calls: [u64; CallKind::ALL.len()],
    fired: u64,
}

#[derive(Debug)]
struct Armed {
    fault: Fault,
    seen: u64,
}

impl Faults {
    pub(super) fn arm(&mut self, fault: Fault) {
        self.armed.push(Armed { fault, seen: 0 });
    }

    pub(super) fn clear(&mut self) {
        self.armed.clear();
    }

    pub(super) fn calls(&self, kind: CallKind) -> u64 {
        self.calls[kind as usize]
    }

    pub(super) fn fired(&self) -> u64 {
        self.fired
    }

    /// Counts a call and says how it fails, if it does.
    pub(super) fn count(
        &mut self,
        kind: CallKind,
        path: impl Fn() -> String,
    ) -> Option<FaultError> {
        self.calls[kind as usize] += 1;
        let mut error = None;
        for armed in &mut self.armed {
            if armed.fires(kind, &path) {
                error = error.or(Some(armed.fault.error));
            }
        }
        self.fired += u64::from(error.is_some());
        error
    }
}

impl Armed {
    fn fires(&mut self, kind: CallKind, path: &impl Fn() -> String) -> bool {
        let fault = &self.fault;
        let counted = fault.kind.is_none_or(|k| k == kind)
            && fault.error.applies_to(kind)
            && fault.path.as_ref().is_none_or(|part| path().contains(part));
        self.seen += u64::from(counted);
        counted && (self.seen == fault.nth || fault.forever && self.seen > fault.nth)
    }
}
