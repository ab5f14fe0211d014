//! Bytes: every packet and frame, decoded to borrowed enums.
