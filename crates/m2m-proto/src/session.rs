//! Keys: the handshake, what protects a packet, what refuses a replay.
pub mod handshake;
pub mod keys;
pub mod pn;
pub mod replay;
