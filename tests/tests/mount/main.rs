//! The mount, end to end: real daemons, real mounts, the sqlite3 shell, Python and Node.
//!
//! Most scenarios do the same on a plain directory, and compare. `LITEFS_TESTS_PLAIN=1` runs them
//! on plain directories alone: what fails then is wrong in the test.

#[path = "../support/daemon.rs"]
mod daemon;
#[path = "../support/ledger.rs"]
mod ledger;
#[path = "../support/npm.rs"]
mod npm;
mod place;
mod shell;

mod concurrency;
mod files;
mod forward;
mod full_disk;
mod in_process;
mod kills;
mod litefs_clients;
mod matrix;
mod metrics;
mod proxy;
mod replica;
mod shutdown;
mod split_brain;
mod sqlite;
mod waits;
