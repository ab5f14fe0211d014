//! The one place that indexes bytes from the network: a reader that can run out and a writer that can fill up,
//! neither of which panics. All integers are big-endian.
use core::fmt;

use crate::id::Id;

/// Reads a datagram or a frame from its front.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first of these bytes.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// What was not read yet; does not move.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// How many bytes were not read yet.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// True at the end.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], Truncated> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    /// The next `N` bytes, borrowed.
    pub fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], Truncated> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    /// The next byte.
    pub fn u8(&mut self) -> Result<u8, Truncated> {
        self.array::<1>().map(|[byte]| *byte)
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> Result<u16, Truncated> {
        self.array().map(|bytes| u16::from_be_bytes(*bytes))
    }

    /// The next four bytes.
    pub fn u32(&mut self) -> Result<u32, Truncated> {
        self.array().map(|bytes| u32::from_be_bytes(*bytes))
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> Result<u64, Truncated> {
        self.array().map(|bytes| u64::from_be_bytes(*bytes))
    }

    /// The next sixteen bytes, as an id.
    pub fn id(&mut self) -> Result<Id, Truncated> {
        self.array().map(|bytes| Id(*bytes))
    }
}

/// Writes into the caller's buffer from its front. A write that does not fit is remembered, and [`finish`](Self::finish)
/// reports it, so that an encoder is a plain list of fields.
pub struct Writer<'a> {
    buffer: &'a mut [u8],
    at: usize,
    full: bool,
}

impl<'a> Writer<'a> {
    /// Starts at the first byte of `buffer`.
    pub fn new(buffer: &'a mut [u8]) -> Writer<'a> {
        Writer { buffer, at: 0, full: false }
    }

    /// Appends these bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        match self.buffer.get_mut(self.at..).and_then(|free| free.get_mut(..bytes.len())) {
            // After one miss nothing more is written: a later, shorter field must not take the place of the lost one.
            Some(place) if !self.full => {
                place.copy_from_slice(bytes);
                self.at += bytes.len();
            }
            _ => self.full = true,
        }
        self
    }

    /// Appends one byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    /// Appends two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    /// Appends four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    /// Appends eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    /// Appends the sixteen bytes of an id.
    pub fn id(&mut self, id: &Id) -> &mut Self {
        self.bytes(&id.0)
    }

    /// How many bytes were written so far.
    pub fn written(&self) -> usize {
        self.at
    }

    /// How many bytes were written in all, or that they did not fit.
    pub fn finish(&self) -> Result<usize, BufferFull> {
        if self.full { Err(BufferFull) } else { Ok(self.at) }
    }
}

/// The bytes ended inside a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncated;

impl fmt::Display for Truncated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the bytes end inside a field")
    }
}

impl core::error::Error for Truncated {}

/// The caller's buffer is too short for what should be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferFull;

impl fmt::Display for BufferFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the buffer is too short for the packet")
    }
}

impl core::error::Error for BufferFull {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_was_written() {
        let mut buffer = [0; 40];
        let mut w = Writer::new(&mut buffer);
        w.u8(1).u16(0x0203).u32(0x0405_0607).u64(0x0809_0a0b_0c0d_0e0f).id(&Id([7; 16])).bytes(b"end");
        let len = w.finish().unwrap();
        assert_eq!(buffer[..15], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);

        let mut r = Reader::new(&buffer[..len]);
        assert_eq!(r.u8(), Ok(1));
        assert_eq!(r.u16(), Ok(0x0203));
        assert_eq!(r.u32(), Ok(0x0405_0607));
        assert_eq!(r.u64(), Ok(0x0809_0a0b_0c0d_0e0f));
        assert_eq!(r.id(), Ok(Id([7; 16])));
        assert_eq!(r.bytes(3), Ok(&b"end"[..]));
        assert!(r.is_empty());
    }

    #[test]
    fn a_reader_that_runs_out_does_not_move() {
        let mut r = Reader::new(&[1, 2, 3]);
        assert_eq!(r.u32(), Err(Truncated));
        assert_eq!(r.bytes(usize::MAX), Err(Truncated));
        assert_eq!(r.u16(), Ok(0x0102));
        assert_eq!(r.rest(), [3]);
    }

    #[test]
    fn a_writer_that_fills_up_says_so_and_writes_no_later_field() {
        let mut buffer = [0; 4];
        let mut w = Writer::new(&mut buffer);
        w.u8(1).u32(2).u8(3);
        assert_eq!(w.finish(), Err(BufferFull));
        assert_eq!(buffer, [1, 0, 0, 0]);
    }
}
