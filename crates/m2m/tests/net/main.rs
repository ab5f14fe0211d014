//! Nets on real sockets of this machine.
mod fixture;

mod failures;
mod flaws;
mod hosts;
mod lifetimes;
mod many;
mod requests;
