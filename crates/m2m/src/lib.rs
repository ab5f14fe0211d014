//! m2m on tokio: nets with sockets, clocks and disks.
#![forbid(unsafe_code)]

pub mod keyfile;
pub mod names;
pub mod state;
