//! The machine on a simulated network.
mod basics;
mod congestion;
mod hosts;
mod promise;
mod recovery;
mod regressions;
mod rekey;
mod roaming;
mod shards;
