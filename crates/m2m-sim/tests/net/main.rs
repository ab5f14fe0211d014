//! The machine on a simulated network.
mod basics;
