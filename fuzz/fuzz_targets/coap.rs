//! A CoAP message (RFC 7252), as it stands inside a session.
#![no_main]

use libfuzzer_sys::fuzz_target;
use m2m_proto::coap::message::Message;

fuzz_target!(|bytes: &[u8]| {
    let Ok(message) = Message::parse(bytes) else { return };
    // The options are walked again each time, so a message that was accepted must stay readable.
    let len: usize = message.options().map(|option| option.value.len()).sum();
    assert!(len + message.payload().len() <= bytes.len());
});
