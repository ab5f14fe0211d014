//! The m2m protocol as one machine without I/O.
//!
//! ```text
//!            net ── one socket's worth of sessions; the only one that knows all four below
//!     ┌───────┼────────┬─────────┐
//!   wire   session    coap     relay
//!   bytes   keys    messages    ids          none of them knows another
//! ```
//! A [`net::Net`] is told of time, datagrams and commands, and says what to do. Its driver is a loop:
//!
//! ```no_run
//! use m2m_proto::{event::Output, net::Net, time::Time};
//! # fn wait(_: Time) -> Option<(core::net::SocketAddr, Vec<u8>)> { None }
//! # fn clock() -> Time { Time::ZERO }
//! # fn send(_: core::net::SocketAddr, _: &[u8]) {}
//! fn drive(net: &mut Net) {
//!     loop {
//!         let until = loop {
//!             match net.poll_output(clock()) {
//!                 Output::Datagram { to, bytes } => { send(to, &bytes); net.recycle(bytes); }
//!                 Output::Event(event) => println!("{event:?}"),
//!                 Output::Timeout(until) => break until,
//!                 _ => {} // stores and shards: see `event`
//!             }
//!         };
//!         match wait(until) {
//!             Some((from, mut datagram)) => net.handle_datagram(clock(), from, &mut datagram),
//!             None => net.handle_timeout(clock()),
//!         }
//!     }
//! }
//! ```
//! What it does not do: open sockets, read clocks, find randomness, resolve names, keep anything on disk. The text that it
//! follows is `docs/protocol.md`.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod coap;
pub mod config;
pub mod error;
pub mod event;
pub mod id;
pub mod net;
pub mod relay;
pub mod session;
pub mod stats;
pub mod time;
pub mod wire;
