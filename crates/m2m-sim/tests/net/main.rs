//! The machine on a simulated network.
mod basics;
mod promise;
mod recovery;
mod regressions;
