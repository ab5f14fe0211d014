//! What the plaintext of a short packet holds (docs/protocol.md section 5): one CoAP message, one frame, or a bundle.
//!
//! ```text
//! 0x40..=0x7F ..                      one CoAP message to the end
//! 0x3F { length 1-2, element }*       a bundle of 1 to 64 elements that fill the packet
//! anything else                       one frame to the end
//!
//! length: 0LLLLLLL or 1LLLLLLL LLLLLLLL, at least 1
//! ```
use super::{
    cursor::Reader,
    frame::{BUNDLE, Frame, FrameError, MESSAGE},
};
use alloc::vec::Vec;

/// The most elements in a bundle.
pub const MAX_ELEMENTS: usize = 64;
/// The longest element that a length can name.
pub const MAX_ELEMENT: usize = 0x7FFF;
/// The longest element whose length takes one byte.
const MAX_SHORT: usize = 0x7F;

/// A part of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element<'a> {
    /// A CoAP message, known by its first byte; nothing else of it has been looked at.
    Message(&'a [u8]),
    /// A control frame.
    Frame(Frame<'a>),
}

/// Reads a plaintext. All of it is checked before the first element comes out, because a packet of which any
/// part is malformed must not act at all.
pub fn elements(plain: &[u8]) -> Result<Elements<'_>, FrameError> {
    let Some((&BUNDLE, bundled)) = plain.split_first() else {
        element(plain)?;
        return Ok(Elements { rest: plain, bundled: false });
    };
    let mut rest = Reader::new(bundled);
    let mut count = 0;
    while !rest.is_empty() {
        count += 1;
        if count > MAX_ELEMENTS {
            return Err(FrameError::Count);
        }
        element(next_bundled(&mut rest)?)?;
    }
    if count == 0 {
        return Err(FrameError::Count);
    }
    Ok(Elements { rest: bundled, bundled: true })
}

/// The elements of a packet that is well formed, in order.
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    rest: &'a [u8],
    bundled: bool,
}

impl<'a> Iterator for Elements<'a> {
    type Item = Element<'a>;

    fn next(&mut self) -> Option<Element<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        if !self.bundled {
            return element(core::mem::take(&mut self.rest)).ok();
        }
        let mut rest = Reader::new(self.rest);
        let bytes = next_bundled(&mut rest).ok()?;
        self.rest = rest.rest();
        element(bytes).ok()
    }
}

fn next_bundled<'a>(rest: &mut Reader<'a>) -> Result<&'a [u8], FrameError> {
    let first = rest.u8()?;
    let len =
        if first & 0x80 == 0 { u16::from(first) } else { u16::from_be_bytes([first & 0x7F, rest.u8()?]) };
    Ok(rest.bytes(len.into())?)
}

fn element(bytes: &[u8]) -> Result<Element<'_>, FrameError> {
    match bytes.first() {
        Some(first) if MESSAGE.contains(first) => Ok(Element::Message(bytes)),
        _ => Frame::decode(bytes).map(Element::Frame),
    }
}

/// Collects elements into the plaintext of one packet. A single one stands bare; the bundle's head and lengths
/// come with the second.
///
/// ```
/// use m2m_proto::wire::{bundle::PlainWriter, frame::{Frame, Req}};
/// let mut packet = vec![0x41, 0, 0, 0, 7, 0, 0]; // the header of a short packet
/// let mut plain = PlainWriter::new(&mut packet, 1200 - 23);
/// assert!(plain.push_frame(&Frame::Ping { req: Req(1), next_s: 25 }));
/// assert!(plain.push_message(&[0x40, 0x01, 0x12, 0x34]));
/// assert_eq!(packet[7..], [0x3F, 5, 0x01, 0, 1, 0, 25, 4, 0x40, 0x01, 0x12, 0x34]);
/// ```
#[derive(Debug)]
pub struct PlainWriter<'v> {
    out: &'v mut Vec<u8>,
    start: usize,
    limit: usize,
    count: usize,
}

impl<'v> PlainWriter<'v> {
    /// Writes behind what `out` holds already, at most `limit` bytes.
    pub fn new(out: &'v mut Vec<u8>, limit: usize) -> PlainWriter<'v> {
        let start = out.len();
        PlainWriter { out, start, limit, count: 0 }
    }

    /// Adds a frame. False if there is no room for it; then nothing has changed.
    pub fn push_frame(&mut self, frame: &Frame<'_>) -> bool {
        self.push(frame.encoded_len(), |out| frame.encode(out))
    }

    /// Adds a CoAP message. False if there is no room for it, or if its first byte is not that of one; then nothing
    /// has changed.
    pub fn push_message(&mut self, message: &[u8]) -> bool {
        message.first().is_some_and(|first| MESSAGE.contains(first))
            && self.push(message.len(), |out| out.extend_from_slice(message))
    }

    /// Bytes of the plaintext so far.
    pub fn len(&self) -> usize {
        self.out.len() - self.start
    }

    /// True if nothing has been added.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Elements so far.
    pub fn count(&self) -> usize {
        self.count
    }

    fn push(&mut self, len: usize, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let head = match self.count {
            0 => 0,
            1 => 1 + length(self.len()).1 + length(len).1,
            _ => length(len).1,
        };
        if len > MAX_ELEMENT || self.count == MAX_ELEMENTS || self.len() + head + len > self.limit {
            return false;
        }
        if self.count == 1 {
            self.wrap_first();
        }
        if self.count > 0 {
            let (bytes, n) = length(len);
            self.out.extend(bytes.iter().take(n));
        }
        write(self.out);
        self.count += 1;
        true
    }

    /// Turns the bare element into the first of a bundle.
    fn wrap_first(&mut self) {
        let ([high, low], n) = length(self.len());
        let head = [BUNDLE, high, low];
        self.out.splice(self.start..self.start, head.into_iter().take(1 + n));
    }
}

/// The bytes of an element's length and how many of them count. `len` is at most [`MAX_ELEMENT`].
fn length(len: usize) -> ([u8; 2], usize) {
    if len <= MAX_SHORT { ([len as u8, 0], 1) } else { ((len as u16 | 0x8000).to_be_bytes(), 2) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::Id,
        wire::frame::{RelayFlags, Req, sample::material, vectors::vectors},
    };
    use alloc::vec;
    use proptest::{collection::vec as many, prelude::*};

    const PING: Frame<'static> = Frame::Ping { req: Req(0x0102), next_s: 25 };
    const GET: [u8; 4] = [0x40, 0x01, 0x12, 0x34];

    fn errors(plain: &[u8]) -> Option<FrameError> {
        elements(plain).err()
    }

    /// A bundle of `count` PADs.
    fn pads(count: usize) -> Vec<u8> {
        [&[BUNDLE][..], &[1, 0].repeat(count)].concat()
    }

    fn push(plain: &mut PlainWriter<'_>, element: &Element<'_>) -> bool {
        match element {
            Element::Message(message) => plain.push_message(message),
            Element::Frame(frame) => plain.push_frame(frame),
        }
    }

    #[test]
    fn vectors_of_bundles_are_read_and_written() {
        let bundles: Vec<_> = vectors().into_iter().filter(|(name, _)| name.starts_with("bundle_")).collect();
        assert_eq!(bundles.len(), 4);
        for (name, bytes) in bundles {
            let read: Vec<_> = elements(&bytes).unwrap_or_else(|e| panic!("{name}: {e}")).collect();
            let mut out = Vec::new();
            let mut plain = PlainWriter::new(&mut out, bytes.len());
            assert!(read.iter().all(|element| push(&mut plain, element)), "{name}");
            // One element alone needs no bundle.
            let expected = if name == "bundle_of_one" { &bytes[2..] } else { &bytes[..] };
            assert_eq!(out, expected, "{name}");
        }
    }

    #[test]
    fn vectors_of_malformed_packets_are_refused() {
        let malformed: Vec<_> =
            vectors().into_iter().filter(|(name, _)| name.starts_with("malformed_")).collect();
        assert!(malformed.len() >= 18);
        for (name, bytes) in malformed {
            assert!(elements(&bytes).is_err(), "{name}");
        }
    }

    #[test]
    fn a_message_fills_the_packet() {
        for first in 0x40..=0x7F {
            let plain = [first, BUNDLE, 0, 0];
            let read: Vec<_> = elements(&plain).unwrap().collect();
            assert_eq!(read, [Element::Message(&plain)]);
        }
    }

    #[test]
    fn a_frame_fills_the_packet() {
        let read: Vec<_> = elements(&[0x01, 0x01, 0x02, 0, 25, 0x40, 0x40]).unwrap().collect();
        assert_eq!(read, [Element::Frame(PING)]);
    }

    #[test]
    fn elements_come_in_order() {
        let plain = [BUNDLE, 5, 0x01, 0x01, 0x02, 0, 25, 4, 0x40, 0x01, 0x12, 0x34, 1, 0x80];
        let read: Vec<_> = elements(&plain).unwrap().collect();
        let expected = [Element::Frame(PING), Element::Message(&GET), Element::Frame(Frame::Unknown(0x80))];
        assert_eq!(read, expected);
    }

    #[test]
    fn one_to_64_elements() {
        assert_eq!(errors(&pads(0)), Some(FrameError::Count));
        assert_eq!(elements(&pads(1)).unwrap().count(), 1);
        assert_eq!(elements(&pads(64)).unwrap().count(), 64);
        assert_eq!(errors(&pads(65)), Some(FrameError::Count));
    }

    #[test]
    fn lengths_start_at_one() {
        assert_eq!(errors(&[BUNDLE, 0]), Some(FrameError::Empty));
        assert_eq!(errors(&[BUNDLE, 1, 0, 0x80, 0]), Some(FrameError::Empty));
        assert_eq!(errors(&[]), Some(FrameError::Empty));
    }

    #[test]
    fn elements_fill_the_packet_exactly() {
        let plain = [BUNDLE, 5, 0x01, 0x01, 0x02, 0, 25, 4, 0x40, 0x01, 0x12, 0x34];
        for cut in (2..plain.len()).filter(|cut| *cut != 7) {
            assert_eq!(errors(&plain[..cut]), Some(FrameError::Truncated), "{cut}");
        }
        assert!(elements(&plain[..7]).is_ok());
        assert_eq!(errors(&[&plain[..], &[9]].concat()), Some(FrameError::Truncated));
    }

    #[test]
    fn lengths_take_one_or_two_bytes() {
        let message = [0x40; 200];
        let plain = [&[BUNDLE, 0x80, 200][..], &message, &[0x80, 1, 0]].concat();
        let read: Vec<_> = elements(&plain).unwrap().collect();
        assert_eq!(read, [Element::Message(&message), Element::Frame(Frame::Pad)]);
        assert_eq!(errors(&[BUNDLE, 0x80]), Some(FrameError::Truncated));
    }

    #[test]
    fn no_bundle_in_a_bundle() {
        assert_eq!(errors(&[BUNDLE, 3, BUNDLE, 1, 0]), Some(FrameError::Nested));
    }

    #[test]
    fn a_malformed_last_element_stops_the_first() {
        assert_eq!(errors(&[BUNDLE, 4, 0x40, 0x01, 0x12, 0x34, 2, 0x01, 0]), Some(FrameError::Truncated));
    }

    #[test]
    fn the_second_element_makes_the_bundle() {
        let mut out = vec![0xAA];
        let mut plain = PlainWriter::new(&mut out, 100);
        assert!(plain.is_empty());
        assert_eq!((plain.len(), plain.count()), (0, 0));
        assert!(plain.push_frame(&PING));
        assert_eq!((plain.len(), plain.count()), (5, 1));
        assert!(plain.push_message(&GET));
        assert_eq!((plain.len(), plain.count()), (12, 2));
        assert_eq!(out, [0xAA, BUNDLE, 5, 0x01, 0x01, 0x02, 0, 25, 4, 0x40, 0x01, 0x12, 0x34]);
    }

    #[test]
    fn the_limit_is_met_to_the_byte() {
        // 4 bare; 1 + (1 + 4) + (1 + 5) with the ping; 1 + 1 more with a pad.
        for (limit, fits) in [(3, 0), (4, 1), (11, 1), (12, 2), (13, 2), (14, 3)] {
            let mut out = vec![1, 2];
            let mut plain = PlainWriter::new(&mut out, limit);
            let pushed = [plain.push_message(&GET), plain.push_frame(&PING), plain.push_frame(&Frame::Pad)];
            // In the two smallest cases a later, smaller element still finds its place.
            let all = pushed.iter().filter(|pushed| **pushed).count();
            assert!(all >= fits && plain.count() == all && plain.len() <= limit, "{limit}: {pushed:?}");
            assert_eq!(pushed[..fits], [true; 3][..fits], "{limit}");
            assert_eq!(out[..2], [1, 2]);
        }
    }

    #[test]
    fn what_is_refused_changes_nothing() {
        let mut out = Vec::new();
        let mut plain = PlainWriter::new(&mut out, 12);
        assert!(plain.push_message(&GET));
        let relay = Frame::Relay {
            hop_limit: 16,
            flags: RelayFlags::default(),
            dst: Id::ANY,
            src: Id::ANY,
            inner: &[0x41; 24],
        };
        assert!(!plain.push_frame(&relay));
        assert_eq!((plain.len(), plain.count()), (4, 1));
        assert!(!plain.push_message(&[]) && !plain.push_message(&[0x3F]) && !plain.push_message(&[0x80]));
        assert_eq!(out, GET);
    }

    #[test]
    fn a_65th_element_is_refused() {
        let mut out = Vec::new();
        let mut plain = PlainWriter::new(&mut out, 1200);
        assert!((0..64).all(|_| plain.push_frame(&Frame::Pad)));
        assert!(!plain.push_frame(&Frame::Pad));
        assert_eq!(plain.count(), 64);
        assert_eq!(out, pads(64));
    }

    #[test]
    fn elements_have_15_bits_of_length() {
        let mut out = Vec::new();
        let mut plain = PlainWriter::new(&mut out, usize::MAX);
        assert!(!plain.push_message(&[0x40; 0x8000]));
        assert!(plain.push_message(&[0x40; 0x7FFF]) && plain.push_message(&[0x41; 0x7FFF]));
        assert!(!plain.push_message(&[0x40; 0x8000]));
        let lengths: Vec<_> = elements(&out)
            .unwrap()
            .map(|element| matches!(element, Element::Message(m) if m.len() == 0x7FFF))
            .collect();
        assert_eq!(lengths, [true, true]);
    }

    #[test]
    fn lengths_change_their_size_at_128() {
        for (len, size) in [(127, 1), (128, 2)] {
            let message = vec![0x40; len];
            let mut out = Vec::new();
            let mut plain = PlainWriter::new(&mut out, 2 * (len + size) + 1);
            assert!(plain.push_message(&message) && plain.push_message(&message), "{len}");
            assert_eq!(out.len(), 2 * (len + size) + 1);
            assert_eq!(elements(&out).unwrap().count(), 2);
        }
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(parts in many((material(), many(any::<u8>(), 0..300), any::<bool>()), 1..80), limit in 1..4000usize) {
            let messages: Vec<Vec<u8>> = parts.iter().map(|(_, bytes, _)| [&[0x40], &bytes[..]].concat()).collect();
            let mut out = vec![7; 3];
            let mut plain = PlainWriter::new(&mut out, limit);
            let mut kept = Vec::new();
            for ((material, _, is_frame), message) in parts.iter().zip(&messages) {
                let element = if *is_frame { Element::Frame(material.frame()) } else { Element::Message(message) };
                let before = (plain.len(), plain.count());
                if push(&mut plain, &element) {
                    kept.push(element);
                } else {
                    prop_assert_eq!((plain.len(), plain.count()), before);
                }
            }
            prop_assert!(plain.len() <= limit && plain.count() == kept.len() && kept.len() <= MAX_ELEMENTS);
            prop_assert_eq!(&out[..3], [7; 3]);
            if !kept.is_empty() {
                let read: Vec<_> = elements(&out[3..]).unwrap().collect();
                prop_assert_eq!(read, kept);
            }
        }

        #[test]
        fn arbitrary_bundles_never_panic(bytes in many(any::<u8>(), 0..1300)) {
            let plain = [&[BUNDLE], &bytes[..]].concat();
            for plain in [&plain[..], &bytes[..]] {
                if let Ok(read) = elements(plain) {
                    prop_assert!((1..=MAX_ELEMENTS).contains(&read.count()));
                }
            }
        }

        #[test]
        fn damaged_bundles_never_panic(
            parts in many(material(), 2..6), at in any::<prop::sample::Index>(), bit in 0..8u8, cut in any::<prop::sample::Index>(),
        ) {
            let mut out = Vec::new();
            let mut plain = PlainWriter::new(&mut out, 4000);
            parts.iter().for_each(|part| assert!(plain.push_frame(&part.frame())));
            let at = at.index(out.len());
            out[at] ^= 1 << bit;
            for plain in [&out[..], &out[..cut.index(out.len())]] {
                // Checked first means that the iterator drops nothing later: it ends where the packet does.
                if let Ok(mut read) = elements(plain) {
                    read.by_ref().for_each(drop);
                    prop_assert!(read.rest.is_empty());
                }
            }
        }
    }
}
