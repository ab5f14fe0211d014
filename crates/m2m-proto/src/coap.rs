//! CoAP inside a session: messages (RFC 7252) and the exchanges made of them.
pub mod code;
pub mod content_format;
pub mod message;
pub mod option;
pub mod option_set;
pub mod uri;
pub mod writer;
