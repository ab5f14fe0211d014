//! The command line as its users meet it: real processes, real sockets, exit codes.
mod bench;
mod failures;
mod keys;
mod lifecycle;
mod remote;
mod shapes;
mod shards;
mod talks;
mod world;
