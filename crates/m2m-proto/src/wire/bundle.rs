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
        return Ok(Elements { rest: Reader::new(plain), bundled: false });
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
    Ok(Elements { rest: Reader::new(bundled), bundled: true })
}

/// The elements of a packet that is well formed, in order.
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    rest: Reader<'a>,
    bundled: bool,
}

impl<'a> Iterator for Elements<'a> {
    type Item = Element<'a>;

    fn next(&mut self) -> Option<Element<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        let bytes = if self.bundled { next_bundled(&mut self.rest).ok()? } else { self.rest.rest() };
        element(bytes).ok()
    }
}

fn next_bundled<'a>(rest: &mut Reader<'a>) -> Result<&'a [u8], FrameError> {
    let first = rest.u8()?;
    let len =
        if first & 0x80 == 0 { u16::from(first) } else { u16::from_be_bytes([first & 0x7F, rest.u8()?]) };
    Ok(rest.take(len.into())?)
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
