//! CoAP inside a session: messages (RFC 7252) and the exchanges made of them.
//!
//! [`message`] reads and [`writer`] writes the bytes; [`option`], [`option_set`], [`uri`], [`code`] and
//! [`content_format`] are what they are made of. [`mod@line`] makes exchanges of messages, in
//! the words of [`exchange`]: `incoming` and `outgoing` are its two halves, [`retransmit`] its clockwork, `congestion` its
//! restraint.
pub mod code;
mod congestion;
pub mod content_format;
pub mod exchange;
mod incoming;
pub mod line;
pub mod message;
pub mod option;
pub mod option_set;
mod outgoing;
pub mod pool;
pub mod retransmit;
pub mod uri;
pub mod writer;
