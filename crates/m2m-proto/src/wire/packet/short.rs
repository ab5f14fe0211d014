//! The packets that carry data: SHORT under a session's keys, LABEL around it on a warm path through relays, and
//! LABEL-GONE when a relay has forgotten the label.
use super::{PacketError, Token, expect_len, expect_zero, kind};
use crate::wire::cursor::{BufferFull, Reader, Writer};

/// Bytes of the shortest tag of any suite.
const MIN_TAG_LEN: usize = 8;

// ---- SHORT -------------------------------------------------------------------------------------------------------
//
//   0 1 K V V V P P     K key phase, V version 0, P = 01: 2 bytes of packet number, 11: 4 bytes
//
//   0       1               5               5+n
//   +-------+---------------+---------------+-- // ----------------+-- // ----+
//   | flags |     token     | number, n=2/4 |  ciphertext, >= 1    |  tag     |
//   +-------+---------------+---------------+-- // ----------------+-- // ----+

const FIXED: u8 = 0x40;
const KEY_PHASE: u8 = 0x20;
const VERSION_SHIFT: u8 = 2;
const PN_LEN_MASK: u8 = 3;

/// Data to the holder of `token`: the number is masked and the rest sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short<'a> {
    /// Flips with each change of keys.
    pub key_phase: bool,
    /// The receiver's token.
    pub token: Token,
    /// How many bytes of the packet number travel.
    pub pn_len: PnLen,
    /// The masked packet number, the ciphertext and the tag.
    pub body: &'a [u8],
}

impl<'a> Short<'a> {
    /// Bytes before the packet number.
    pub const PN_AT: usize = 5;

    /// Decodes a short packet, also the one inside a [`Labelled`].
    ///
    /// The length is checked for the shortest tag only: which suite it is, only the session knows.
    pub fn decode(datagram: &'a [u8]) -> Result<Short<'a>, PacketError> {
        let mut r = Reader::new(datagram);
        let flags = r.u8().map_err(|_| PacketError::Empty)?;
        if flags & FIXED == 0 || flags & 0x80 != 0 {
            return Err(PacketError::Reserved);
        }
        let version = flags >> VERSION_SHIFT & 7;
        if version != 0 {
            return Err(PacketError::Version(version));
        }
        let pn_len = PnLen::from_bits(flags & PN_LEN_MASK).ok_or(PacketError::Reserved)?;
        let token = r.u32()?;
        if r.remaining() < pn_len.bytes() + 1 + MIN_TAG_LEN {
            return Err(PacketError::Truncated);
        }
        Ok(Short { key_phase: flags & KEY_PHASE != 0, token: Token::decode(token)?, pn_len, body: r.rest() })
    }

    /// Byte 0 of a short packet.
    pub const fn first_byte(key_phase: bool, pn_len: PnLen) -> u8 {
        FIXED | if key_phase { KEY_PHASE } else { 0 } | pn_len.bits()
    }

    /// Writes the packet and returns its length. Sealing writes packets in place; this is for those already sealed.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, BufferFull> {
        let first = Self::first_byte(self.key_phase, self.pn_len);
        Writer::new(out).u8(first).u32(self.token.value()).bytes(self.body).finish()
    }
}

/// How many bytes of a packet number travel. There is no one-byte form: it is too easily misread after a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PnLen {
    /// Two bytes.
    Two,
    /// Four bytes.
    Four,
}

impl PnLen {
    /// The length in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            PnLen::Two => 2,
            PnLen::Four => 4,
        }
    }

    /// Bytes of a short packet's header with such a number.
    pub const fn header_len(self) -> usize {
        Short::PN_AT + self.bytes()
    }

    const fn bits(self) -> u8 {
        match self {
            PnLen::Two => 0b01,
            PnLen::Four => 0b11,
        }
    }

    const fn from_bits(bits: u8) -> Option<PnLen> {
        match bits {
            0b01 => Some(PnLen::Two),
            0b11 => Some(PnLen::Four),
            _ => None,
        }
    }
}

// ---- LABEL -------------------------------------------------------------------------------------------------------
//
//   0       1       2       4               8
//   +-------+-------+-------+---------------+-- // ---------------+
//   | 0x99  | hops  |   0   |     label     |   a short packet    |
//   +-------+-------+-------+---------------+-- // ---------------+

/// A short packet on its way through relays. A relay changes the first eight bytes and sends the same buffer on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Labelled<'a> {
    /// How many relays may still pass it on.
    pub hop_limit: u8,
    /// What the receiver chose to name this flow.
    pub label: Label,
    /// The packet carried.
    pub inner: Short<'a>,
}

impl<'a> Labelled<'a> {
    /// Bytes before the short packet.
    pub const HEADER_LEN: usize = 8;

    pub(super) fn decode(datagram: &'a [u8]) -> Result<Labelled<'a>, PacketError> {
        let mut r = Reader::new(datagram);
        let [_kind, hop_limit, reserved @ ..] = r.array::<4>()?;
        expect_zero(reserved)?;
        let label = Label(r.u32()?);
        let inner = Short::decode(r.rest()).map_err(|error| match error {
            PacketError::Empty => PacketError::Truncated,
            other => other,
        })?;
        Ok(Labelled { hop_limit: *hop_limit, label, inner })
    }

    /// Writes the packet and returns its length.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, BufferFull> {
        let (head, rest) = out.split_first_chunk_mut().ok_or(BufferFull)?;
        Self::encode_header(self.hop_limit, self.label, head);
        Ok(Self::HEADER_LEN + self.inner.encode(rest)?)
    }

    /// Writes only what stands before the short packet: for a sender that has sealed behind it, and for a relay.
    pub fn encode_header(hop_limit: u8, label: Label, out: &mut [u8; Labelled::HEADER_LEN]) {
        let [a, b, c, d] = label.0.to_be_bytes();
        *out = [kind::LABEL, hop_limit, 0, 0, a, b, c, d];
    }
}

/// The name of one flow between two neighbours, chosen by the one who receives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(pub u32);

// ---- LABEL-GONE --------------------------------------------------------------------------------------------------
//
//   0       1               4               8
//   +-------+---------------+---------------+
//   | 0x9A  |   0           |     label     |
//   +-------+---------------+---------------+

/// A relay's hint that it does not know a label: the sender goes back to the session with its neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelGone {
    /// The label that it does not know.
    pub label: Label,
}

impl LabelGone {
    /// Bytes of a LABEL-GONE.
    pub const LEN: usize = 8;

    pub(super) fn decode(datagram: &[u8]) -> Result<LabelGone, PacketError> {
        expect_len(datagram, Self::LEN)?;
        let mut r = Reader::new(datagram);
        let [_kind, reserved @ ..] = r.array::<4>()?;
        expect_zero(reserved)?;
        Ok(LabelGone { label: Label(r.u32()?) })
    }

    /// Writes the packet and returns its length.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, BufferFull> {
        Writer::new(out).bytes(&[kind::LABEL_GONE, 0, 0, 0]).u32(self.label.0).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Packet, *};
    use proptest::prelude::*;
    use std::vec::Vec;

    /// Key phase 1, token 0x01020304, two bytes of number, nine of ciphertext and tag.
    const SHORT: [u8; 16] = [0x61, 1, 2, 3, 4, 0xAA, 0xBB, 1, 2, 3, 4, 5, 6, 7, 8, 9];

    fn short() -> Short<'static> {
        Short {
            key_phase: true,
            token: Token::new(0x0102_0304).unwrap(),
            pn_len: PnLen::Two,
            body: &SHORT[5..],
        }
    }

    #[test]
    fn short_looks_like_this() {
        assert_eq!(Packet::decode(&SHORT), Ok(Packet::Short(short())));
        assert_eq!(Packet::decode(&SHORT[..15]), Err(PacketError::Truncated));
        assert_eq!(Packet::decode(&SHORT[..3]), Err(PacketError::Truncated));
        let first = |byte: u8| {
            let mut packet = SHORT;
            packet[0] = byte;
            Packet::decode(&packet).map(|_| ())
        };
        assert_eq!(first(0x41), Ok(()));
        assert_eq!(first(0x43), Err(PacketError::Truncated), "a longer number needs a longer packet");
        assert_eq!(first(0x40), Err(PacketError::Reserved), "one byte of number");
        assert_eq!(first(0x42), Err(PacketError::Reserved), "three bytes of number");
        assert_eq!(first(0x21), Err(PacketError::Reserved), "the fixed bit is clear");
        assert_eq!(first(0x45), Err(PacketError::Version(1)));
        let mut no_token = SHORT;
        no_token[1..5].fill(0);
        assert_eq!(Packet::decode(&no_token), Err(PacketError::ZeroToken));
    }

    #[test]
    fn label_looks_like_this() {
        let labelled = Labelled { hop_limit: 16, label: Label(0x0A0B_0C0D), inner: short() };
        let mut bytes = [0; 24];
        assert_eq!(labelled.encode(&mut bytes), Ok(24));
        assert_eq!(bytes[..8], [0x99, 16, 0, 0, 0x0A, 0x0B, 0x0C, 0x0D]);
        assert_eq!(bytes[8..], SHORT);
        assert_eq!(Packet::decode(&bytes), Ok(Packet::Label(labelled)));
        assert_eq!(Packet::decode(&bytes[..8]), Err(PacketError::Truncated));
        bytes[8] = 0x99;
        assert_eq!(Packet::decode(&bytes), Err(PacketError::Reserved), "a label inside a label");
    }

    #[test]
    fn label_gone_looks_like_this() {
        let gone = LabelGone { label: Label(0x0A0B_0C0D) };
        let mut bytes = [0; 8];
        assert_eq!(gone.encode(&mut bytes), Ok(8));
        assert_eq!(bytes, [0x9A, 0, 0, 0, 0x0A, 0x0B, 0x0C, 0x0D]);
        assert_eq!(Packet::decode(&bytes), Ok(Packet::LabelGone(gone)));
        bytes[3] = 1;
        assert_eq!(Packet::decode(&bytes), Err(PacketError::Reserved));
        assert_eq!(Packet::decode(&bytes[..7]), Err(PacketError::Length));
    }

    proptest! {
        #[test]
        fn round_trip(
            key_phase: bool, token in 1u32.., four: bool, hop_limit: u8, label: u32,
            body in prop::collection::vec(any::<u8>(), 13..80),
        ) {
            let pn_len = if four { PnLen::Four } else { PnLen::Two };
            let inner = Short { key_phase, token: Token::new(token).unwrap(), pn_len, body: &body };
            let mut bytes: Vec<u8> = [0; 96].into();
            let len = inner.encode(&mut bytes).unwrap();
            prop_assert_eq!(Packet::decode(&bytes[..len]), Ok(Packet::Short(inner)));

            let labelled = Labelled { hop_limit, label: Label(label), inner };
            let len = labelled.encode(&mut bytes).unwrap();
            prop_assert_eq!(Packet::decode(&bytes[..len]), Ok(Packet::Label(labelled)));
        }
    }
}
