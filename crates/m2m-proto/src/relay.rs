//! Relaying between registered nets: who may send how much.
pub mod budget;
