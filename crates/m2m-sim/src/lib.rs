//! A simulated network for m2m nets: one virtual clock, one seed, and every fault a link can have.
//!
//! A [`World`] holds nets and the datagrams between them; a [`watch::Watch`] looks at each datagram and each wake-up; a
//! [`ledger::Ledger`] knows every request and judges what became of it. [`scenario::run`] makes all of it from a seed: the
//! same seed gives the same run, byte for byte, so whatever goes wrong can be run again.
pub mod bottleneck;
pub mod ledger;
pub mod scenario;
pub mod trace;
pub mod watch;
pub mod world;

pub use bottleneck::Bottleneck;
pub use world::{Faults, NetIndex, World};
