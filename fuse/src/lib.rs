//! A mounted directory of replicated SQLite databases, for programs in any language.
#![forbid(unsafe_code)]
#![cfg_attr(test, expect(dead_code, reason = "what uses them comes next"))]
#[cfg(test)]
mod journal;
#[cfg(test)]
mod locks;
#[cfg(test)]
mod shm;
#[cfg(test)]
mod wal;
