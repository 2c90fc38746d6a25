//! Durable writes past the kernel's cache, in one call.
//!
//! A write with `RWF_DSYNC` to a file that was opened with `O_DIRECT` goes from memory to the
//! device, and is durable when the call returns: less work than a write into the kernel's cache and
//! a sync that writes it back, and no more bytes than were asked for, where the cache writes whole
//! blocks. (Not `O_DSYNC`: rustix's constant of that name is `O_SYNC`, which writes the file's
//! times as well.)
//!
//! The file is opened a second time for that, on the first such write. What refuses (a file system,
//! a device with larger sectors, a system without `/proc`, another operating system) is not asked
//! again for that file.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::storage::SECTOR;

/// A file's second handle, if it has one.
#[derive(Debug, Default)]
pub(crate) struct Direct(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    #[default]
    NotTried,
    Open(Arc<Handle>),
    Refused,
}

impl Direct {
    /// See [`crate::File::write_durably_at`]; `file` is the first handle.
    pub(crate) fn write(
        &self,
        file: &std::fs::File,
        bytes: &[u8],
        offset: u64,
    ) -> io::Result<bool> {
        if bytes.is_empty() || !(bytes.len() as u64 | offset).is_multiple_of(SECTOR) {
            return Ok(false);
        }
        let Some(handle) = self.handle(file) else { return Ok(false) };
        let written = handle.write(bytes, offset)?;
        if !written {
            *self.0.lock() = State::Refused;
        }
        Ok(written)
    }

    fn handle(&self, file: &std::fs::File) -> Option<Arc<Handle>> {
        let mut state = self.0.lock();
        if let State::NotTried = *state {
            *state = match Handle::open(file) {
                Opened::Yes(handle) => State::Open(Arc::new(handle)),
                Opened::No => State::Refused,
                Opened::NotNow => State::NotTried,
            };
        }
        match &*state {
            State::Open(handle) => Some(handle.clone()),
            _ => None,
        }
    }
}

enum Opened {
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    Yes(Handle),
    No,
    /// For lack of handles.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    NotNow,
}

#[cfg(target_os = "linux")]
use linux::Handle;

#[cfg(target_os = "linux")]
mod linux {
    use std::fs;
    use std::io::{self, IoSlice};
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustix::fs::OFlags;
    use rustix::io::{Errno, ReadWriteFlags, pwritev2};

    use super::Opened;

    /// Second handles that this process may have open: they come on top of those that the file
    /// cache counts.
    const MAX_HANDLES: usize = 100;
    static HANDLES: AtomicUsize = AtomicUsize::new(0);

    /// What any device takes as the alignment of memory.
    const MEMORY_ALIGN: usize = 4096;

    #[derive(Debug)]
    pub(super) struct Handle(fs::File);

    impl Drop for Handle {
        fn drop(&mut self) {
            HANDLES.fetch_sub(1, Ordering::Relaxed);
        }
    }

    impl Handle {
        pub(super) fn open(file: &fs::File) -> Opened {
            if HANDLES.fetch_add(1, Ordering::Relaxed) >= MAX_HANDLES {
                HANDLES.fetch_sub(1, Ordering::Relaxed);
                return Opened::NotNow;
            }
            let flags = OFlags::DIRECT.bits().cast_signed();
            // Not by its path, which may lead to another file by now.
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            match fs::OpenOptions::new().write(true).custom_flags(flags).open(path) {
                Ok(file) => Opened::Yes(Self(file)),
                Err(_) => {
                    HANDLES.fetch_sub(1, Ordering::Relaxed);
                    Opened::No
                }
            }
        }

        /// False if it is refused, and nothing was written.
        pub(super) fn write(&self, bytes: &[u8], offset: u64) -> io::Result<bool> {
            let (memory, start) = aligned(bytes);
            let bytes = &memory[start..];
            let mut done = 0;
            while done < bytes.len() {
                let rest = [IoSlice::new(&bytes[done..])];
                match pwritev2(&self.0, &rest, offset + done as u64, ReadWriteFlags::DSYNC) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => done += written,
                    Err(Errno::INTR) => {}
                    Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) if done == 0 => {
                        return Ok(false);
                    }
                    Err(e) => return Err(e.into()),
                }
            }
            Ok(true)
        }
    }

    /// A copy of `bytes` that ends a vector and begins, at the returned index of it, at an aligned
    /// address.
    fn aligned(bytes: &[u8]) -> (Vec<u8>, usize) {
        let mut memory: Vec<u8> = Vec::with_capacity(bytes.len() + MEMORY_ALIGN);
        let address = memory.as_ptr().addr();
        let start = address.next_multiple_of(MEMORY_ALIGN) - address;
        memory.resize(start, 0);
        memory.extend_from_slice(bytes); // within the capacity: it stays where it is
        (memory, start)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn copies_begin_at_an_aligned_address() {
            for len in [1, 512, 4608, 1 << 20] {
                let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
                let (memory, start) = aligned(&bytes);
                assert_eq!(memory[start..].as_ptr().addr() % MEMORY_ALIGN, 0);
                assert_eq!(&memory[start..], bytes);
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
struct Handle;

#[cfg(not(target_os = "linux"))]
impl Handle {
    fn open(_file: &std::fs::File) -> Opened {
        Opened::No
    }

    fn write(&self, _bytes: &[u8], _offset: u64) -> io::Result<bool> {
        Ok(false)
    }
}
