//! Bytes: every packet and frame, decoded to borrowed enums.
pub mod bundle;
pub mod cursor;
pub mod frame;
pub mod packet;
