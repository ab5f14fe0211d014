//! m2m on tokio: nets with sockets, clocks and disks.
//!
//! A [`Net`] is one UDP socket with an id and a key. It opens [`Session`]s to other nets, by address or, through a
//! host, by id; sends [requests](RequestBuilder) in them; and answers others' with a [`Router`].
//!
//! ```text
//!  Net, Session, RequestBuilder, Router     this crate: handles, futures, handlers
//!  driver task ─ socket, timer, disk        this crate: one task a net moves bytes and time
//!  m2m_proto::net::Net                      the protocol, without I/O
//! ```
//!
//! A host, a device that is registered with it, and an app that finds the device by its id:
//!
//! ```
//! use m2m::{Id, Key, Net, Peer, Reply, Request, Router};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (host_key, device_key) = (Key::generate()?, Key::generate()?);
//! let local = "127.0.0.1:0".parse()?;
//!
//! let host = Net::builder(Id::from_hex("1")?, host_key.clone()).bind(local).server(true).open().await?;
//! let at_host: m2m::names::Endpoint = format!("1@{}", host.local_addr()).parse()?;
//!
//! let device = Net::builder(Id::from_hex("2")?, device_key.clone()).bind(local);
//! let device = device.host(at_host.clone(), host_key.clone()).open().await?;
//! tokio::spawn(device.serve(Router::new().get("/temp", |_: Request| async { Reply::text("21.5") })));
//! device.registered().await?;
//!
//! let app = Net::builder(Id::from_hex("3")?, Key::generate()?).bind(local);
//! let app = app.host(at_host, host_key).open().await?;
//! let session = app.connect(Peer::id(Id::from_hex("2")?).key(device_key)).await?;
//! let answer = session.get("/temp").await?.ok()?;
//! assert_eq!(answer.text(), Some("21.5"));
//! # app.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! All futures here may be dropped at any time: a dropped request is given up, a dropped [`Session`] closes.
#![forbid(unsafe_code)]

mod arena;
mod error;
mod key;
pub mod keyfile;
pub mod names;
mod net;
mod peer;
mod request;
mod router;
mod session;
pub mod state;

pub use bytes::Bytes;
pub use m2m_proto::{
    coap::{code::Code, content_format::ContentFormat, option::OptionNumber, option_set::OptionSet},
    config::Config,
    error::{CloseReason, ConnectError, ErrorKind},
    id::{Id, IdError},
    stats::Stats,
};

pub use error::Error;
pub use key::Key;
pub use net::{HostState, Net, NetBuilder, NetEvent};
pub use peer::Peer;
pub use request::{DataBuilder, RequestBuilder, Response};
pub use router::{IntoReply, Reply, Request, Router};
pub use session::{Path, Session, SessionState, SessionStatus, SessionWatch};

/// The README's example, compiled and run with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
pub struct Readme;
