//! Nets on real sockets of this machine.
mod fixture;

mod allocations;
mod failures;
mod flaws;
mod hosts;
mod keys;
mod lifetimes;
mod many;
mod requests;
#[cfg(target_os = "linux")]
mod shards;
mod survive;
