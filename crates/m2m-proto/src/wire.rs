//! Bytes: every packet and frame, decoded to borrowed enums.
pub mod cursor;
pub mod packet;
