//! The litefs storage engine.

#![forbid(unsafe_code)]

mod clock;
mod storage;

pub use clock::{Clock, SystemClock};
pub use storage::{DirLock, File, OpenMode, OsStorage, Storage};
