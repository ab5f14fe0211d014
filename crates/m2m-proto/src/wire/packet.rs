//! Packets: what one datagram is, decoded once to a borrowed enum whose existence proves the shape.
//!
//! ```text
//! byte 0   1 V V V T T T T    long: handshake, labels and discovery, by kind T; version V = 1
//!          0 1 K V V V P P    short: data under a session's keys; version V = 0
//! ```
//! The predecessor's first byte, 0x51, is a short packet of version 4 here: counted, never answered.
pub mod handshake;
pub mod hint;
pub mod scan;
pub mod short;

use core::{fmt, num::NonZeroU32};

pub use handshake::{
    Caps, Cookie, CookieReply, Init, InitPayload, KeyId, Resp, RespPayload, Suite, SuiteSet,
};
pub use hint::ResetHint;
pub use scan::{Scan, ScanReply};
pub use short::{Label, LabelGone, Labelled, PnLen, Short};

use crate::wire::cursor::Truncated;

/// The largest datagram that is ever sent, in bytes of UDP payload.
pub const MAX_DATAGRAM: usize = 1200;

/// Bit 7 of byte 0: the header is long.
const LONG: u8 = 0x80;
/// Version 1 in bits 6..4 of a long packet's byte 0.
const LONG_VERSION: u8 = 1;

/// Byte 0 of the long packets: bit 7, the version, the kind.
mod kind {
    use super::{LONG, LONG_VERSION};

    pub(super) const INIT: u8 = long(1);
    pub(super) const RESP: u8 = long(2);
    pub(super) const COOKIE: u8 = long(3);
    pub(super) const RESET_HINT: u8 = long(5);
    pub(super) const VERSION: u8 = long(6);
    pub(super) const SCAN: u8 = long(7);
    pub(super) const SCAN_REPLY: u8 = long(8);
    pub(super) const LABEL: u8 = long(9);
    pub(super) const LABEL_GONE: u8 = long(10);

    const fn long(kind: u8) -> u8 {
        LONG | LONG_VERSION << 4 | kind
    }
}

/// One datagram, well formed; nothing in it is authentic yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// Data under a session's keys.
    Short(Short<'a>),
    /// The first message of a handshake.
    Init(Init<'a>),
    /// The answer to an INIT.
    Resp(Resp<'a>),
    /// "Send your INIT again, with this cookie."
    Cookie(CookieReply<'a>),
    /// "Your packet's token means nothing here."
    ResetHint(ResetHint<'a>),
    /// Kept for negotiating versions; has no body in version 1.
    Version,
    /// "Who is on this link?"
    Scan(Scan<'a>),
    /// The answer to a SCAN.
    ScanReply(ScanReply<'a>),
    /// A short packet on its way along labels.
    Label(Labelled<'a>),
    /// "That label means nothing here."
    LabelGone(LabelGone),
}

impl<'a> Packet<'a> {
    /// Decodes a whole datagram.
    ///
    /// Errors mean "count and drop": nothing is ever answered to a datagram that is no packet.
    pub fn decode(datagram: &'a [u8]) -> Result<Packet<'a>, PacketError> {
        let first = *datagram.first().ok_or(PacketError::Empty)?;
        if first & LONG == 0 {
            return Short::decode(datagram).map(Packet::Short);
        }
        let version = first >> 4 & 7;
        if version != LONG_VERSION {
            return Err(PacketError::Version(version));
        }
        match first {
            kind::INIT => Init::decode(datagram).map(Packet::Init),
            kind::RESP => Resp::decode(datagram).map(Packet::Resp),
            kind::COOKIE => CookieReply::decode(datagram).map(Packet::Cookie),
            kind::RESET_HINT => ResetHint::decode(datagram).map(Packet::ResetHint),
            kind::VERSION if datagram.len() == 1 => Ok(Packet::Version),
            kind::VERSION => Err(PacketError::Length),
            kind::SCAN => Scan::decode(datagram).map(Packet::Scan),
            kind::SCAN_REPLY => ScanReply::decode(datagram).map(Packet::ScanReply),
            kind::LABEL => Labelled::decode(datagram).map(Packet::Label),
            kind::LABEL_GONE => LabelGone::decode(datagram).map(Packet::LabelGone),
            _ => Err(PacketError::Kind(first & 0x0F)),
        }
    }
}

/// A session's label in packets to the one who chose it: the stoken in packets to the initiator, the ctoken in
/// packets to the responder. Never zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(NonZeroU32);

impl Token {
    /// The token of this number; none for zero.
    pub const fn new(value: u32) -> Option<Token> {
        match NonZeroU32::new(value) {
            Some(value) => Some(Token(value)),
            None => None,
        }
    }

    /// The number.
    pub const fn value(self) -> u32 {
        self.0.get()
    }

    fn decode(value: u32) -> Result<Token, PacketError> {
        Token::new(value).ok_or(PacketError::ZeroToken)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "~{:08x}", self.0)
    }
}

/// Why a datagram is no packet of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketError {
    /// It has no bytes.
    Empty,
    /// It ends inside its header.
    Truncated,
    /// It belongs to this other version of the protocol, or to another protocol.
    Version(u8),
    /// A long packet of this unknown kind.
    Kind(u8),
    /// Its length is not that of its kind.
    Length,
    /// A handshake of this unknown profile.
    Profile(u8),
    /// A bit or byte that must be zero is not, or one that must be set is not.
    Reserved,
    /// Its token is zero.
    ZeroToken,
}

impl From<Truncated> for PacketError {
    fn from(Truncated: Truncated) -> PacketError {
        PacketError::Truncated
    }
}

impl fmt::Display for PacketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PacketError::Empty => f.write_str("the datagram is empty"),
            PacketError::Truncated => f.write_str("the datagram ends inside its header"),
            PacketError::Version(v) => write!(f, "the datagram is of unknown version {v}"),
            PacketError::Kind(kind) => write!(f, "the datagram is of unknown kind {kind}"),
            PacketError::Length => f.write_str("the datagram's length is not that of its kind"),
            PacketError::Profile(profile) => write!(f, "the handshake is of unknown profile {profile}"),
            PacketError::Reserved => f.write_str("a reserved bit of the datagram has the wrong value"),
            PacketError::ZeroToken => f.write_str("the datagram's token is zero"),
        }
    }
}

impl core::error::Error for PacketError {}

/// Reserved bytes must be zero, so that a later version may give them a meaning.
fn expect_zero(bytes: &[u8]) -> Result<(), PacketError> {
    if bytes.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(PacketError::Reserved) }
}

/// For kinds of one fixed length.
fn expect_len(datagram: &[u8], len: usize) -> Result<(), PacketError> {
    if datagram.len() == len { Ok(()) } else { Err(PacketError::Length) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_what_is_no_packet() {
        assert_eq!(Packet::decode(&[]), Err(PacketError::Empty));
        assert_eq!(Packet::decode(&[0x51; 96]), Err(PacketError::Version(4)), "the predecessor's packet");
        assert_eq!(Packet::decode(&[0x81; 104]), Err(PacketError::Version(0)));
        assert_eq!(Packet::decode(&[0xA1; 104]), Err(PacketError::Version(2)));
        assert_eq!(
            Packet::decode(&[0x94; 104]),
            Err(PacketError::Kind(4)),
            "nothing is relayed in a long header"
        );
        assert_eq!(Packet::decode(&[0x96]), Ok(Packet::Version));
        assert_eq!(Packet::decode(&[0x96, 1]), Err(PacketError::Length));
    }

    #[test]
    fn tokens_are_never_zero() {
        assert_eq!(Token::new(0), None);
        assert_eq!(Token::new(7).map(Token::value), Some(7));
        assert_eq!(size_of::<Option<Token>>(), 4);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(first in any::<u8>(), rest in prop::collection::vec(any::<u8>(), 0..130)) {
            let mut datagram = rest;
            datagram.insert(0, first);
            let _ = Packet::decode(&datagram);
        }
    }
}
