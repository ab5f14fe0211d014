//! A CoAP message (RFC 7252), as it stands inside a session.
#![no_main]

use libfuzzer_sys::fuzz_target;
use m2m_proto::coap::message::Message;

fuzz_target!(|bytes: &[u8]| {
    let _ = Message::parse(bytes);
});
