//! Whole nets under a script of faults, replays, forgeries and commands.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[expect(dead_code, reason = "the other targets run the rest")]
mod script;

fuzz_target!(|bytes: &[u8]| script::nets::run(bytes));
