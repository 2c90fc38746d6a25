//! All file access of the engine: the [`Storage`] and [`File`] traits, and the real file system.
//!
//! What the engine may rely on, and what it may not, is what POSIX file systems give after a power
//! loss:
//!
//! * `sync_data` makes the file's bytes and length durable. It does not make the file's *name*
//!   durable.
//! * `sync_dir` makes the names in that directory durable (created, renamed, removed); not in its
//!   parent.
//! * Everything else may reach the disk in any order, wholly, in part (512-byte sectors) or not at
//!   all.
//! * After a failed `sync_data` nothing is known about the writes since the last good one, and a
//!   later `sync_data` that succeeds proves nothing about them.
//! * `write_durably_at` makes its own bytes durable, and nothing else.
//!
//! Errors are those of the operating system; the caller adds the path. A full disk is
//! [`io::ErrorKind::StorageFull`] (or `QuotaExceeded`).

mod direct;

use std::fmt;
use std::fs;
use std::io;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use self::direct::Direct;

/// The unit in which a device writes, in bytes; [`File::write_durably_at`] takes multiples of it.
pub const SECTOR: u64 = 512;

/// How [`Storage::open`] opens a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// For reading; `NotFound` if it is missing.
    Read,
    /// For reading and writing; `NotFound` if it is missing.
    ReadWrite,
    /// For reading and writing; created empty if it is missing.
    Create,
    /// For reading and writing; created, or emptied if it exists.
    CreateNew,
}

/// A file system: the real one ([`OsStorage`]), or a simulated one that can lose power.
pub trait Storage: Send + Sync + fmt::Debug {
    /// Opens the file at `path`.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>>;

    /// Renames a file or a directory. A file at `to` is replaced; open handles to it stay usable.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Open handles to it stay usable. `NotFound` if it is missing.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Creates a directory and its missing parents; no error if it exists.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory with everything in it. `NotFound` if it is missing. On error a part may
    /// be gone.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, sorted. `NotFound` if it is missing; `InvalidData` for a name that
    /// is not UTF-8.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// The length of a file in bytes; `None` if it is missing.
    fn file_len(&self, path: &Path) -> io::Result<Option<u64>>;

    /// Makes the names in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Takes the lock of the existing directory `dir` (its file `lock`) for this process, until the
    /// result is dropped. `WouldBlock`, with the holder's process id in the message, if it is
    /// taken.
    fn lock_dir(&self, dir: &Path) -> io::Result<Box<dyn DirLock>>;
}

/// An open file. All methods can be called from several threads at once.
#[allow(clippy::len_without_is_empty)] // `len` asks the system and can fail.
pub trait File: Send + Sync + fmt::Debug {
    /// Reads at `offset` into `buf` and returns how many bytes were read: fewer than `buf.len()`
    /// only at the file's end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Fills `buf` from `offset`; `UnexpectedEof` if the file ends before.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let got = self.read_at(buf, offset)?;
        if got == buf.len() {
            return Ok(());
        }
        let message = format!("file ends at byte {} of a read of {} at {offset}", got, buf.len());
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, message))
    }

    /// Writes all of `buf` at `offset`; a gap behind the old end reads as zeros. On error, anything
    /// may be in that range.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Cuts or extends the file to `len` bytes; new bytes read as zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// The file's length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Makes the file's bytes and length durable (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;

    /// Writes all of `buf` at `offset` and makes it durable, in one call that costs less than a
    /// write and a sync. False if that cannot be had here, or if `offset` or the length is no
    /// multiple of [`SECTOR`]: then nothing was written.
    ///
    /// # Errors
    /// For lack of space: as from [`File::write_all_at`]. Any other: as if a sync had failed that
    /// should have covered this write.
    fn write_durably_at(&self, _buf: &[u8], _offset: u64) -> io::Result<bool> {
        Ok(false)
    }

    /// Reserves space for the first `len` bytes, so that writing them cannot fail for lack of
    /// space. Extends a shorter file to `len`; never cuts one; new bytes read as zeros. Where the
    /// file system cannot reserve, only extends.
    fn allocate(&self, len: u64) -> io::Result<()>;
}

/// A held directory lock; dropping it releases the lock.
pub trait DirLock: Send + Sync + fmt::Debug {}

/// The name of the lock file in a locked directory.
pub(crate) const LOCK_FILE: &str = "lock";

/// The error of [`Storage::lock_dir`] for a directory that `holder` (a process id, if known) has
/// locked.
pub(crate) fn locked_error(dir: &Path, holder: Option<u32>) -> io::Error {
    let holder = holder.map_or("another process".to_string(), |pid| format!("process {pid}"));
    let message =
        format!("{} is in use by {holder}; stop it, or use another directory", dir.display());
    io::Error::new(io::ErrorKind::WouldBlock, message)
}

/// The real file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsStorage;

impl Storage for OsStorage {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let mut options = fs::OpenOptions::new();
        options.read(true);
        match mode {
            OpenMode::Read => &mut options,
            OpenMode::ReadWrite => options.write(true),
            OpenMode::Create => options.write(true).create(true).truncate(false),
            OpenMode::CreateNew => options.write(true).create(true).truncate(true),
        };
        Ok(Arc::new(OsFile { file: options.open(path)?, direct: Direct::default() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let name = entry?.file_name().into_string().map_err(|name| {
                let message = format!("file name {name:?} is not UTF-8");
                io::Error::new(io::ErrorKind::InvalidData, message)
            })?;
            names.push(name);
        }
        names.sort_unstable();
        Ok(names)
    }

    fn file_len(&self, path: &Path) -> io::Result<Option<u64>> {
        match fs::metadata(path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }

    fn lock_dir(&self, dir: &Path) -> io::Result<Box<dyn DirLock>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(dir.join(LOCK_FILE))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(locked_error(dir, read_pid(&mut file)));
            }
            Err(fs::TryLockError::Error(e)) => return Err(e),
        }
        // The pid only serves the message above: failing to write it (a full disk) must not keep a
        // node from starting.
        let pid_written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        if let Err(error) = pid_written {
            tracing::warn!(dir = %dir.display(), %error, "cannot write the lock file");
        }
        Ok(Box::new(OsDirLock { _file: file }))
    }
}

/// The process id in a lock file; `None` if it holds none (its owner is about to write it).
fn read_pid(file: &mut fs::File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Holds the lock through the open file: the kernel releases it when the file is closed, also when
/// the process dies.
#[derive(Debug)]
struct OsDirLock {
    _file: fs::File,
}

impl DirLock for OsDirLock {}

#[derive(Debug)]
struct OsFile {
    file: fs::File,
    direct: Direct,
}

impl File for OsFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write_durably_at(&self, buf: &[u8], offset: u64) -> io::Result<bool> {
        self.direct.write(&self.file, buf, offset)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        match reserve(&self.file, len) {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => {
                if self.len()? < len {
                    self.set_len(len)?;
                }
                Ok(())
            }
            result => result,
        }
    }
}

/// Reserves the first `len` bytes; `Unsupported` where the system or the file system has no such
/// call.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn reserve(file: &fs::File, len: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    loop {
        match fallocate(file, FallocateFlags::empty(), 0, len) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Err(io::ErrorKind::Unsupported.into()),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Reserves the first `len` bytes; `Unsupported` where the system or the file system has no such
/// call.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn reserve(_file: &fs::File, _len: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
