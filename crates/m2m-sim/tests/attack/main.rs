//! The machine under attack: what the protocol says it refuses, bounds or outlives, one behaviour a test.
mod amplification;
mod corpus;
mod handshake;
mod impostors;
mod keepalive;
mod limits;
mod netkey;
mod packets;
mod pinning;
mod registration;
mod rekey;
mod relay;
mod rig;
mod roaming;
mod squatters;
