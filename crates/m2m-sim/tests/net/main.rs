//! The machine on a simulated network.
mod basics;
mod hosts;
mod promise;
mod recovery;
mod regressions;
mod roaming;
