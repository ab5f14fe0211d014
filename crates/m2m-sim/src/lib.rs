//! A simulated network for m2m nets: one virtual clock, one seed, and every fault a link can have.
//!
//! A [`World`] holds nets and the datagrams between them. The same seed gives the same run, byte for byte, so whatever
//! goes wrong can be run again.
pub mod world;

pub use world::{Faults, NetIndex, World};
