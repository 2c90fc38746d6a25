//! The litefs storage engine.

#![forbid(unsafe_code)]

mod clock;
mod filecache;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod storage;
#[cfg(test)]
mod storage_tests;

pub use clock::{Clock, SystemClock};
pub use filecache::{CachedFile, FileCache};
pub use storage::{DirLock, File, OpenMode, OsStorage, Storage};
