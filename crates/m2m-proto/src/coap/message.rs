//! One CoAP message as a view of received bytes (RFC 7252 section 3); [`writer`](super::writer) makes them.
//!
//! ```text
//!  0                   1                   2                   3
//! |Ver| T |  TKL  |      Code     |          Message ID           |
//! |   Token (0 to 8 bytes) ...
//! |   Options: delta and length nibbles, 0 to 2 bytes more of each, value ...
//! |1 1 1 1 1 1 1 1|    Payload (1 byte or more) ...
//! ```
//!
//! [`Message::parse`] checks everything once; the accessors of a [`Message`] can't fail. What is checked is the
//! *format*: whether the options make sense together is for the endpoint
//! ([`unknown_critical`](super::option::unknown_critical)).
use super::{
    code::Code,
    option::{CoapOption, OptionNumber, decode_uint},
};
use core::fmt;

/// The version of RFC 7252 section 3; the two bits can't say another that exists.
pub(super) const VERSION: u8 = 1;
/// The byte between options and payload (RFC 7252 section 3).
pub(super) const PAYLOAD_MARKER: u8 = 0xFF;
/// Nibble: one byte more follows (RFC 7252 section 3.1).
pub(super) const NIBBLE_ONE_BYTE: u8 = 13;
/// Nibble: two bytes more follow (RFC 7252 section 3.1).
pub(super) const NIBBLE_TWO_BYTES: u8 = 14;
/// What the one byte counts from.
pub(super) const ONE_BYTE_BASE: u32 = 13;
/// What the two bytes count from.
pub(super) const TWO_BYTES_BASE: u32 = 269;

/// The two bits of type (RFC 7252 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageType {
    /// Confirmable: wants an acknowledgement or a reset.
    Con,
    /// Non-confirmable.
    Non,
    /// Acknowledges a confirmable message; may carry the response.
    Ack,
    /// Says that a message couldn't be processed.
    Rst,
}

impl MessageType {
    const fn from_bits(bits: u8) -> MessageType {
        match bits & 3 {
            0 => MessageType::Con,
            1 => MessageType::Non,
            2 => MessageType::Ack,
            _ => MessageType::Rst,
        }
    }

    pub(super) const fn bits(self) -> u8 {
        match self {
            MessageType::Con => 0,
            MessageType::Non => 1,
            MessageType::Ack => 2,
            MessageType::Rst => 3,
        }
    }

    /// RFC 7252 section 4.3, table 1: what each type can carry.
    const fn may_carry(self, code: Code) -> bool {
        match self {
            MessageType::Con => true,
            MessageType::Non => !matches!(code, Code::EMPTY),
            MessageType::Ack => !code.is_request(),
            MessageType::Rst => matches!(code, Code::EMPTY),
        }
    }
}

/// The Message ID: finds duplicates, and the ACK or RST of a message. Serial numbers modulo 2^16.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mid(pub u16);

impl Mid {
    /// The Message ID `steps` later.
    pub const fn plus(self, steps: u16) -> Mid {
        Mid(self.0.wrapping_add(steps))
    }

    /// How many steps after `earlier` this one comes, modulo 2^16.
    pub const fn since(self, earlier: Mid) -> u16 {
        self.0.wrapping_sub(earlier.0)
    }
}

impl fmt::Debug for Mid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mid {}", self.0)
    }
}

/// The token of a request, which its responses repeat: 0 to 8 bytes (RFC 7252 section 5.3.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MessageToken {
    // Bytes past `len` are zero, so that the derived comparisons hold.
    bytes: [u8; MessageToken::MAX_LEN],
    len: u8,
}

impl MessageToken {
    /// The longest token.
    pub const MAX_LEN: usize = 8;
    /// The token without bytes.
    pub const EMPTY: MessageToken = MessageToken { bytes: [0; 8], len: 0 };

    /// A token of these bytes, or `None` if they are more than 8.
    pub fn new(value: &[u8]) -> Option<MessageToken> {
        let mut bytes = [0; MessageToken::MAX_LEN];
        bytes.get_mut(..value.len())?.copy_from_slice(value);
        Some(MessageToken { bytes, len: value.len() as u8 })
    }

    /// A token of four bytes.
    pub fn from_u32(value: u32) -> MessageToken {
        let mut bytes = [0; MessageToken::MAX_LEN];
        for (byte, digit) in bytes.iter_mut().zip(value.to_be_bytes()) {
            *byte = digit;
        }
        MessageToken { bytes, len: 4 }
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// Its length in bytes, 0..=8, as the header tells it.
    pub(super) const fn nibble(self) -> u8 {
        self.len
    }
}

impl fmt::Debug for MessageToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.len == 0 {
            return f.write_str("no token");
        }
        f.write_str("token ")?;
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A well-formed message, borrowed from the bytes it came in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    bytes: &'a [u8],
    /// Checked: a sequence of whole options.
    options: &'a [u8],
    payload: &'a [u8],
    token: MessageToken,
    mid: Mid,
    code: Code,
    kind: MessageType,
}

impl<'a> Message<'a> {
    /// Reads the message that fills `bytes`.
    ///
    /// ```
    /// use m2m_proto::coap::{code::Code, message::Message, option::OptionNumber};
    /// let message = Message::parse(b"\x41\x01\x00\x01\x77\xb1t").unwrap();
    /// assert_eq!(message.code(), Code::GET);
    /// assert_eq!(message.option(OptionNumber::URI_PATH), Some(&b"t"[..]));
    /// ```
    pub fn parse(bytes: &'a [u8]) -> Result<Message<'a>, FormatError> {
        let [first, code, mid_high, mid_low, body @ ..] = bytes else { return Err(FormatError::Truncated) };
        if first >> 6 != VERSION {
            return Err(FormatError::Version(first >> 6));
        }
        let code = Code(*code);
        if code.is_reserved() {
            return Err(FormatError::ReservedClass(code));
        }
        let token_len = first & 15;
        if code == Code::EMPTY && (token_len != 0 || !body.is_empty()) {
            return Err(FormatError::EmptyWithContent);
        }
        if usize::from(token_len) > MessageToken::MAX_LEN {
            return Err(FormatError::TokenLength(token_len));
        }
        let kind = MessageType::from_bits(first >> 4);
        if !kind.may_carry(code) {
            return Err(FormatError::TypeAndCode(kind, code));
        }
        let (token, rest) = body.split_at_checked(usize::from(token_len)).ok_or(FormatError::Truncated)?;
        let token = MessageToken::new(token).ok_or(FormatError::TokenLength(token_len))?;
        let (options, payload) = split_options(rest)?;
        let mid = Mid(u16::from_be_bytes([*mid_high, *mid_low]));
        Ok(Message { bytes, options, payload, token, mid, code, kind })
    }

    /// Type and Message ID of what may be no message beyond its header: what a Reset needs
    /// (RFC 7252 section 4.2). `None` if not even a header of this version is there.
    pub fn peek(bytes: &[u8]) -> Option<(MessageType, Mid)> {
        let [first, _, mid_high, mid_low, ..] = bytes else { return None };
        let is_ours = first >> 6 == VERSION;
        is_ours.then(|| (MessageType::from_bits(first >> 4), Mid(u16::from_be_bytes([*mid_high, *mid_low]))))
    }

    /// Whether it wants an acknowledgement, or is one.
    pub fn kind(&self) -> MessageType {
        self.kind
    }

    /// Method or response code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// Message ID.
    pub fn mid(&self) -> Mid {
        self.mid
    }

    /// Token.
    pub fn token(&self) -> MessageToken {
        self.token
    }

    /// The payload; empty if there is none.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The bytes it was read from.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The options, in order of their numbers.
    pub fn options(&self) -> Options<'a> {
        Options { rest: self.options, number: 0 }
    }

    /// The value of the first option of this number.
    pub fn option(&self, number: OptionNumber) -> Option<&'a [u8]> {
        self.options()
            .take_while(|option| option.number <= number)
            .find(|option| option.number == number)
            .map(|o| o.value)
    }

    /// The first option of this number as a number; `None` too if its value is longer than the registry allows,
    /// which RFC 7252 section 5.4.3 makes an option that isn't understood.
    pub fn uint(&self, number: OptionNumber) -> Option<u32> {
        self.option(number).filter(|value| number.allows_len(value.len())).and_then(decode_uint)
    }
}

impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} {:?} {:?}", self.kind, self.code, self.mid, self.token)?;
        self.options().try_for_each(|option| write!(f, " {option:?}"))?;
        match self.payload.len() {
            0 => Ok(()),
            len => write!(f, " + {len} B"),
        }
    }
}

/// The options of a [`Message`], in order of their numbers.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    rest: &'a [u8],
    number: u16,
}

impl<'a> Iterator for Options<'a> {
    type Item = CoapOption<'a>;

    fn next(&mut self) -> Option<CoapOption<'a>> {
        let (option, rest) = take_option(self.rest, self.number).ok()?;
        self.rest = rest;
        self.number = option.number.0;
        Some(option)
    }
}

/// Walks the options, so that the iterator can't fail later; returns them and the payload.
fn split_options(bytes: &[u8]) -> Result<(&[u8], &[u8]), FormatError> {
    let mut rest = bytes;
    let mut number = 0;
    loop {
        match rest {
            [] => return Ok((bytes, &[])),
            [PAYLOAD_MARKER] => return Err(FormatError::EmptyPayload),
            [PAYLOAD_MARKER, payload @ ..] => {
                return Ok((bytes.get(..bytes.len() - rest.len()).unwrap_or_default(), payload));
            }
            _ => {
                let (option, after) = take_option(rest, number)?;
                number = option.number.0;
                rest = after;
            }
        }
    }
}

/// The option at the start of `bytes`, and what follows it. `last` is the number of the one before.
fn take_option(bytes: &[u8], last: u16) -> Result<(CoapOption<'_>, &[u8]), FormatError> {
    let (nibbles, rest) = bytes.split_first().ok_or(FormatError::Truncated)?;
    let (delta, rest) = take_extended(nibbles >> 4, rest, FormatError::OptionDelta)?;
    let (len, rest) = take_extended(nibbles & 15, rest, FormatError::OptionLength)?;
    let number = u16::try_from(u32::from(last) + delta).map_err(|_| FormatError::OptionNumber)?;
    let (value, rest) = rest.split_at_checked(len as usize).ok_or(FormatError::Truncated)?;
    Ok((CoapOption { number: OptionNumber(number), value }, rest))
}

/// The number that a nibble and up to two bytes after it tell; 15 is `reserved` (RFC 7252 section 3.1).
fn take_extended(nibble: u8, bytes: &[u8], reserved: FormatError) -> Result<(u32, &[u8]), FormatError> {
    match (nibble, bytes) {
        (0..NIBBLE_ONE_BYTE, _) => Ok((u32::from(nibble), bytes)),
        (NIBBLE_ONE_BYTE, [more, rest @ ..]) => Ok((ONE_BYTE_BASE + u32::from(*more), rest)),
        (NIBBLE_TWO_BYTES, [high, low, rest @ ..]) => {
            Ok((TWO_BYTES_BASE + u32::from(u16::from_be_bytes([*high, *low])), rest))
        }
        (NIBBLE_ONE_BYTE | NIBBLE_TWO_BYTES, _) => Err(FormatError::Truncated),
        _ => Err(reserved),
    }
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormatError {
    /// Header, token or an option goes beyond the end.
    Truncated,
    /// Another version than 1; such a message is ignored without an answer (RFC 7252 section 3).
    Version(u8),
    /// A token length of 9 to 15 (RFC 7252 section 3).
    TokenLength(u8),
    /// A code of class 1, 6 or 7 (RFC 7252 section 4.2).
    ReservedClass(Code),
    /// A type that can't carry this code (RFC 7252 section 4.3).
    TypeAndCode(MessageType, Code),
    /// Code 0.00 with a token or with bytes after the Message ID (RFC 7252 section 4.1).
    EmptyWithContent,
    /// A delta nibble of 15 that is not the payload marker (RFC 7252 section 3.1).
    OptionDelta,
    /// A length nibble of 15 (RFC 7252 section 3.1).
    OptionLength,
    /// The deltas add up to a number above 65535.
    OptionNumber,
    /// A payload marker with nothing after it (RFC 7252 section 3).
    EmptyPayload,
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FormatError::Truncated => {
                write!(f, "the message ends in the middle of its header, token or an option")
            }
            FormatError::Version(version) => write!(f, "CoAP version {version}, only 1 is known"),
            FormatError::TokenLength(len) => write!(f, "a token length of {len}, more than 8"),
            FormatError::ReservedClass(code) => write!(f, "code {code} is in a reserved class"),
            FormatError::TypeAndCode(kind, code) => write!(f, "type {kind:?} can't carry code {code}"),
            FormatError::EmptyWithContent => {
                write!(f, "an empty message (0.00) with bytes after its Message ID")
            }
            FormatError::OptionDelta => write!(f, "an option delta of 15, which is reserved"),
            FormatError::OptionLength => write!(f, "an option length of 15, which is reserved"),
            FormatError::OptionNumber => write!(f, "an option number above 65535"),
            FormatError::EmptyPayload => write!(f, "a payload marker without a payload"),
        }
    }
}

impl core::error::Error for FormatError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coap::writer::{MessageWriter, tests::build};
    use proptest::prelude::*;
    use std::{format, string::String, vec::Vec};

    /// Every way in which RFC 7252 sections 3, 3.1, 4.1, 4.2 and 4.3 call bytes malformed.
    #[test]
    fn tells_every_format_error() {
        let rows: &[(&[u8], FormatError)] = &[
            (&[], FormatError::Truncated),
            (&[0x40, 0x01, 0x00], FormatError::Truncated),
            (&[0x00, 0x01, 0, 1], FormatError::Version(0)),
            (&[0x80, 0x01, 0, 1], FormatError::Version(2)),
            (&[0xC0, 0x01, 0, 1], FormatError::Version(3)),
            (&[0x49, 0x01, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9], FormatError::TokenLength(9)),
            (
                &[0x4F, 0x01, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
                FormatError::TokenLength(15),
            ),
            (&[0x44, 0x01, 0, 1, 1, 2, 3], FormatError::Truncated),
            (&[0x40, 0x20, 0, 1], FormatError::ReservedClass(Code::new(1, 0))),
            (&[0x40, 0xC0, 0, 1], FormatError::ReservedClass(Code::new(6, 0))),
            (&[0x40, 0xE1, 0, 1], FormatError::ReservedClass(Code::new(7, 1))),
            (&[0x41, 0x00, 0, 1, 7], FormatError::EmptyWithContent),
            (&[0x41, 0x00, 0, 1], FormatError::EmptyWithContent),
            (&[0x60, 0x00, 0, 1, 0xB1, b'a'], FormatError::EmptyWithContent),
            (&[0x70, 0x00, 0, 1, 0xFF, 1], FormatError::EmptyWithContent),
            (&[0x50, 0x00, 0, 1], FormatError::TypeAndCode(MessageType::Non, Code::EMPTY)),
            (&[0x60, 0x01, 0, 1], FormatError::TypeAndCode(MessageType::Ack, Code::GET)),
            (&[0x70, 0x01, 0, 1], FormatError::TypeAndCode(MessageType::Rst, Code::GET)),
            (&[0x70, 0x45, 0, 1], FormatError::TypeAndCode(MessageType::Rst, Code::CONTENT)),
            (&[0x40, 0x01, 0, 1, 0xF1, 1], FormatError::OptionDelta),
            (&[0x40, 0x01, 0, 1, 0x1F, 1], FormatError::OptionLength),
            (&[0x40, 0x01, 0, 1, 0xD0], FormatError::Truncated),
            (&[0x40, 0x01, 0, 1, 0xE0, 1], FormatError::Truncated),
            (&[0x40, 0x01, 0, 1, 0x1D], FormatError::Truncated),
            (&[0x40, 0x01, 0, 1, 0x1E, 1], FormatError::Truncated),
            (&[0x40, 0x01, 0, 1, 0x12, 1], FormatError::Truncated),
            (&[0x40, 0x01, 0, 1, 0xE0, 0xFE, 0xF3], FormatError::OptionNumber),
            (&[0x40, 0x01, 0, 1, 0xE0, 0xFE, 0xF2, 0x10], FormatError::OptionNumber),
            (&[0x40, 0x01, 0, 1, 0xFF], FormatError::EmptyPayload),
            (&[0x40, 0x01, 0, 1, 0xB1, b'a', 0xFF], FormatError::EmptyPayload),
        ];
        for (bytes, expected) in rows {
            assert_eq!(Message::parse(bytes), Err(*expected), "{bytes:02x?}");
        }
    }

    #[test]
    fn accepts_the_edges_of_the_format() {
        let highest = [0x40, 0x01, 0, 1, 0xE0, 0xFE, 0xF2];
        let options: Vec<_> =
            Message::parse(&highest).unwrap().options().map(|option| option.number.0).collect();
        assert_eq!(options, [65535]);
        let response_in_a_con = [0x40, 0x45, 0, 1];
        assert_eq!(Message::parse(&response_in_a_con).unwrap().code(), Code::CONTENT);
        let marker_inside_the_payload = [0x40, 0x02, 0, 1, 0xFF, 0xFF];
        assert_eq!(Message::parse(&marker_inside_the_payload).unwrap().payload(), [0xFF]);
        let ping = [0x40, 0x00, 0x12, 0x34];
        assert_eq!(format!("{:?}", Message::parse(&ping).unwrap()), "Con 0.00 Empty mid 4660 no token");
    }

    #[test]
    fn peeks_at_what_it_cannot_read() {
        assert_eq!(Message::peek(&[0x40, 0x01, 0, 1, 0xFF]), Some((MessageType::Con, Mid(1))));
        assert_eq!(Message::peek(&[0x00, 0x01, 0, 1, 0xFF]), None);
        assert_eq!(Message::peek(&[0x40, 0x01, 0]), None);
    }

    #[test]
    fn finds_the_first_option_of_a_number() {
        let bytes = [0x40, 0x01, 0, 1, 0x61, 5, 0x51, b'a', 0x01, b'b', 0x35, 0, 0, 0, 0, 7];
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.option(OptionNumber::URI_PATH), Some(&b"a"[..]));
        assert_eq!(message.option(OptionNumber::ETAG), None);
        assert_eq!(message.uint(OptionNumber::OBSERVE), Some(5));
        // Five bytes are no Max-Age, though the number would fit.
        assert_eq!(message.option(OptionNumber::MAX_AGE).map(<[u8]>::len), Some(5));
        assert_eq!(message.uint(OptionNumber::MAX_AGE), None);
    }

    #[test]
    fn serial_numbers_wrap() {
        assert_eq!(Mid(65535).plus(2), Mid(1));
        assert_eq!(Mid(1).since(Mid(65535)), 2);
    }

    #[test]
    fn tokens_compare_by_bytes_and_length() {
        assert_ne!(MessageToken::new(&[0]), MessageToken::new(&[]));
        assert_eq!(MessageToken::new(&[0; 9]), None);
        assert_eq!(MessageToken::from_u32(0x0102_0304).as_bytes(), [1, 2, 3, 4]);
        assert_eq!(MessageToken::new(&[1, 2, 3, 4]), Some(MessageToken::from_u32(0x0102_0304)));
    }

    /// A message with each kind of extension in it.
    fn sample() -> Vec<u8> {
        let long = [b'x'; 300];
        build(
            MessageType::Con,
            Code::POST,
            &[1, 2, 3, 4],
            &[(11, b"a"), (11, &long[..20]), (60, &[9]), (2048, &long)],
            b"payload",
        )
    }

    /// Reads all there is, which must not panic, and gives it back as text.
    fn read_all(bytes: &[u8]) -> Option<String> {
        let message = Message::parse(bytes).ok()?;
        let _ = (message.uint(OptionNumber::SIZE1), message.option(OptionNumber(2048)));
        Some(format!("{message:?}"))
    }

    #[test]
    fn survives_every_cut_and_every_flipped_bit() {
        let whole = sample();
        let intact = read_all(&whole).unwrap();
        for len in 0..whole.len() {
            if let Some(text) = read_all(&whole[..len]) {
                assert_ne!(text, intact);
            }
        }
        for bit in 0..whole.len() * 8 {
            let mut broken = whole.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            read_all(&broken);
        }
    }

    /// The published vectors say in their comment what the bytes mean; names that start with `bad` are no messages.
    #[test]
    fn vectors_mean_what_they_say() {
        let mut seen = 0;
        for line in include_str!("../../../../docs/vectors/coap.txt").lines() {
            let Some((name, rest)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) else {
                continue;
            };
            let (hex, meaning) = rest.split_once(" # ").unwrap();
            let bytes: Vec<u8> = (0..hex.len() / 2)
                .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
                .collect();
            let read = match Message::parse(&bytes) {
                Ok(message) => format!("{message:?}"),
                Err(error) => format!("{error}"),
            };
            assert_eq!(read, meaning, "{name}");
            assert_eq!(Message::parse(&bytes).is_err(), name.starts_with("bad"), "{name}");
            if let Ok(message) = Message::parse(&bytes) {
                assert_eq!(rewrite(&message), bytes, "{name}");
            }
            seen += 1;
        }
        assert!(seen > 20, "{seen} vectors");
    }

    fn rewrite(message: &Message<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer =
            MessageWriter::new(&mut out, message.kind(), message.code(), message.mid(), message.token());
        for option in message.options() {
            writer.option(option.number, option.value).unwrap();
        }
        writer.payload(message.payload());
        out
    }

    proptest! {
        #[test]
        fn noise_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..64), claim_version: bool) {
            if claim_version && let Some(first) = bytes.first_mut() {
                *first = 0x40 | *first & 0x37;
            }
            read_all(&bytes);
        }

        #[test]
        fn what_parses_is_written_back_with_the_same_meaning(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let bytes = [&[0x42, 0x01, 0, 1, 7, 7], bytes.as_slice()].concat();
            let Ok(message) = Message::parse(&bytes) else { return Ok(()) };
            let again = rewrite(&message);
            let again = Message::parse(&again).unwrap();
            prop_assert!(again.options().eq(message.options()));
            prop_assert_eq!(again.payload(), message.payload());
        }
    }
}
