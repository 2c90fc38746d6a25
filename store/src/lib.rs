//! The litefs storage engine.

#![forbid(unsafe_code)]

mod clock;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod storage;

pub use clock::{Clock, SystemClock};
pub use storage::{DirLock, File, OpenMode, OsStorage, Storage};
