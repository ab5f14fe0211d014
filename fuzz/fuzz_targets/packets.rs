//! A datagram, before any key is known.
#![no_main]

use libfuzzer_sys::fuzz_target;
use m2m_proto::wire::packet::Packet;

fuzz_target!(|datagram: &[u8]| {
    let _ = Packet::decode(datagram);
});
