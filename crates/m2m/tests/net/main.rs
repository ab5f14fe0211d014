//! Nets on real sockets of this machine.
mod fixture;

mod allocations;
mod failures;
mod flaws;
mod guest;
mod hosts;
mod keys;
mod lifetimes;
mod many;
mod neighbours;
mod requests;
#[cfg(target_os = "linux")]
mod shards;
mod survive;
