//! Random numbers, for names and numbers that must differ from those of others.

use std::hash::{BuildHasher, Hasher, RandomState};

/// A random number, from the seeds that the standard library takes from the system.
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
