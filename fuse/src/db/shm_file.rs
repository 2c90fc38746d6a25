//! The `-shm` file: SQLite's wal-index, shared by its clients through `mmap`.
//!
//! With passthrough, clients map the very file that is open here. Without it, they map the
//! kernel's cache of it; the daemon then writes only on the mover's thread while no client is in
//! a transaction, and lets the kernel write back and drop its pages before and after.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fuser::Errno;

use super::{MountedDb, Result};
use crate::errno;
use crate::shm;

/// No wal-index is larger: 2^32 frames need about 40 GiB. What a client may make of it is less.
const MAX_LEN: u64 = 1 << 32;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Shm {
    file: Option<Arc<File>>,
    generation: u64,
}

impl Shm {
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn file(&self) -> Option<Arc<File>> {
        self.file.clone()
    }

    pub(crate) fn len(&self) -> Option<u64> {
        let file = self.file.as_ref()?;
        Some(file.metadata().map_or(0, |metadata| metadata.len()))
    }

    fn opened(&self) -> Result<&File> {
        self.file.as_deref().ok_or(Errno::ESTALE)
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut buf = vec![0; len];
        let read = self.opened()?.read_at(&mut buf, offset).map_err(|e| errno::of_io(&e))?;
        buf.truncate(read);
        Ok(buf)
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        if offset.saturating_add(data.len() as u64) > MAX_LEN {
            return Err(Errno::EFBIG);
        }
        self.opened()?.write_all_at(data, offset).map_err(|e| errno::of_io(&e))
    }

    pub(crate) fn truncate(&self, len: u64) -> Result<()> {
        if len > MAX_LEN {
            return Err(Errno::EFBIG);
        }
        self.opened()?.set_len(len).map_err(|e| errno::of_io(&e))
    }

    /// The newest frame that the wal-index tells readers of.
    pub(crate) fn max_frame(&self) -> Option<u32> {
        let mut header = [0; shm::HEAD_LEN];
        self.file.as_ref()?.read_exact_at(&mut header, 0).ok()?;
        shm::max_frame(&header)
    }
}

impl MountedDb {
    pub(super) fn create_shm(&self) -> Result<()> {
        self.check_in_use()?;
        let mut shm = self.shm.lock();
        if shm.file.is_none() {
            let file = tempfile::tempfile_in(self.shared.store.dir());
            shm.file = Some(Arc::new(file.map_err(|e| errno::of_io(&e))?));
            shm.generation += 1;
        }
        Ok(())
    }

    pub(super) fn unlink_shm(&self) -> Result<()> {
        self.check_removable()?;
        self.shm.lock().file.take().map(drop).ok_or(Errno::ENOENT)
    }

    /// True if the wal-index tells readers of all `committed` frames. A writer that is `gone` may
    /// not have got that far; without passthrough nobody here can look.
    pub(super) fn shows_frames(&self, committed: u32, gone: bool) -> bool {
        let shm = self.shm.lock();
        if shm.file.is_none() || committed == 0 {
            return true; // EXCLUSIVE clients have their own index, in memory
        }
        if !self.shared.passthrough.load(Ordering::Relaxed) {
            return !gone;
        }
        shm.max_frame() == Some(committed)
    }

    /// True if clients have to rebuild the wal-index before they can read.
    pub(super) fn lacks_index(&self) -> bool {
        self.shared.passthrough.load(Ordering::Relaxed) && self.shm.lock().max_frame().is_none()
    }

    /// Writes over the wal-index's header, if clients have made one. On the mover's thread, with
    /// no client in a transaction.
    pub(super) fn write_shm_header(&self, header: &[u8]) {
        let Some(file) = self.shm.lock().file() else { return };
        let inode = self.inodes.shm;
        let mapped_here = self.shared.passthrough.load(Ordering::Relaxed);
        if !mapped_here {
            self.shared.kernel.invalidate(inode, 0, 0);
        }
        if file.metadata().is_ok_and(|metadata| metadata.len() < shm::HEAD_LEN as u64) {
            return;
        }
        if let Err(error) = file.write_all_at(header, 0) {
            tracing::error!(db = %self.name(), %error, "cannot write the wal-index");
        }
        if !mapped_here {
            self.shared.kernel.invalidate(inode, 0, 0);
        }
    }
}
