//! CoAP inside a session: messages (RFC 7252) and the exchanges made of them.
pub mod message;
pub mod option;
