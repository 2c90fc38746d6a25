//! Nodes on loopback in one process: what replication promises, over real sockets and files.

mod catch_up;
mod divergence;
mod forward;
mod hostile;
mod link;
mod support;
mod sync;
