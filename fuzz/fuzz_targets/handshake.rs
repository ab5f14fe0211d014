//! A handshake between two nets, with forgeries of its packets.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[expect(dead_code, reason = "the other targets run the rest")]
mod script;

fuzz_target!(|bytes: &[u8]| script::handshake::run(bytes));
