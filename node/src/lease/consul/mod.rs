//! The lease in Consul: who is primary, decided by the holder of a key.

mod client;

pub use client::{Client, ConsulError, NewSession, Pair, Session, Tree};
