//! What the crash, fault and damage tests share: a model of what databases hold, a driver that
//! does the same to a store and to the model, and workloads for it.
#![allow(dead_code)] // each test uses a part of it

pub mod driver;
pub mod model;
pub mod workload;

pub use driver::{Driver, Ending};
pub use model::Rng;
