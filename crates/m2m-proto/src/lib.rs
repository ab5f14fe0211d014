//! The m2m protocol as one machine without I/O.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod coap;
pub mod id;
pub mod relay;
pub mod session;
pub mod time;
pub mod wire;
