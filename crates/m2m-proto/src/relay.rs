//! Ids: who is registered here, and what each may send.
pub mod budget;
pub mod registry;
