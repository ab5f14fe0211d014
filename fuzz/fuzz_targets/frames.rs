//! The plaintext of a short packet: what is read can be written, and reads the same again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use m2m_proto::wire::bundle::{Element, MAX_ELEMENT, PlainWriter, elements};

fuzz_target!(|plain: &[u8]| {
    let Ok(read) = elements(plain) else { return };
    // A packet can hold one bare element that is longer than a bundle's lengths can say.
    if plain.len() > MAX_ELEMENT {
        return;
    }
    let mut out = Vec::new();
    let mut writer = PlainWriter::new(&mut out, plain.len());
    for element in read.clone() {
        let fits = match element {
            Element::Message(message) => writer.push_message(message),
            Element::Frame(frame) => writer.push_frame(&frame),
        };
        assert!(fits, "{element:?} takes more room than it came in");
    }
    let again = elements(&out).expect("what was written is well formed");
    assert!(again.eq(read));
});
