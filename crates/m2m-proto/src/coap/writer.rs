//! Writes a CoAP message into the caller's buffer (RFC 7252 section 3); [`message`](super::message) reads them.
use super::{
    code::Code,
    message::{
        MessageToken, MessageType, Mid, NIBBLE_ONE_BYTE, NIBBLE_TWO_BYTES, ONE_BYTE_BASE, PAYLOAD_MARKER,
        TWO_BYTES_BASE, VERSION,
    },
    option::{OptionNumber, UintValue},
    option_set::OptionSet,
};
use alloc::vec::Vec;
use core::fmt;

/// The longest value that the two extra bytes of a length can tell.
const MAX_VALUE_LEN: u32 = TWO_BYTES_BASE + 0xFFFF;

/// Appends one message to a buffer: options in ascending order, then the payload. What was appended is a whole
/// message after each call that succeeds, and a call that fails appends nothing.
///
/// ```
/// use m2m_proto::coap::{code::Code, message::*, option::OptionNumber, writer::*};
/// let mut out = Vec::new();
/// let mut writer = MessageWriter::new(&mut out, MessageType::Con, Code::POST, Mid(7), MessageToken::EMPTY);
/// writer.option(OptionNumber::URI_PATH, b"led")?;
/// writer.payload(b"on");
/// assert_eq!(out, b"\x40\x02\x00\x07\xb3led\xffon");
/// # Ok::<(), EncodeError>(())
/// ```
#[derive(Debug)]
pub struct MessageWriter<'b> {
    out: &'b mut Vec<u8>,
    last: u16,
}

impl<'b> MessageWriter<'b> {
    /// Appends header and token.
    pub fn new(
        out: &'b mut Vec<u8>,
        kind: MessageType,
        code: Code,
        mid: Mid,
        token: MessageToken,
    ) -> MessageWriter<'b> {
        let [mid_high, mid_low] = mid.0.to_be_bytes();
        out.extend_from_slice(&[VERSION << 6 | kind.bits() << 4 | token.nibble(), code.0, mid_high, mid_low]);
        out.extend_from_slice(token.as_bytes());
        MessageWriter { out, last: 0 }
    }

    /// Appends an empty message: an acknowledgement, a reset, or a ping (RFC 7252 section 4.1).
    pub fn empty(out: &mut Vec<u8>, kind: MessageType, mid: Mid) {
        MessageWriter::new(out, kind, Code::EMPTY, mid, MessageToken::EMPTY);
    }

    /// Appends an option whose number is not below the one before.
    pub fn option(&mut self, number: OptionNumber, value: &[u8]) -> Result<&mut Self, EncodeError> {
        let delta = number.0.checked_sub(self.last).ok_or(EncodeError::OptionOrder(number))?;
        let len = u32::try_from(value.len()).ok().filter(|len| *len <= MAX_VALUE_LEN);
        let len = len.ok_or(EncodeError::OptionTooLong(number))?;
        let (delta_nibble, len_nibble) = (nibble(u32::from(delta)), nibble(len));
        self.out.push(delta_nibble << 4 | len_nibble);
        self.extend(delta_nibble, u32::from(delta));
        self.extend(len_nibble, len);
        self.out.extend_from_slice(value);
        self.last = number.0;
        Ok(self)
    }

    /// Appends an option whose value is a number, in the shortest form.
    pub fn uint(&mut self, number: OptionNumber, value: u32) -> Result<&mut Self, EncodeError> {
        self.option(number, UintValue::new(value).as_bytes())
    }

    /// Appends all options of a set; those before must not have higher numbers.
    pub fn options(&mut self, options: &OptionSet) -> Result<&mut Self, EncodeError> {
        // Only the first can be out of order, and a set holds no value that is too long: so an error here
        // has appended nothing.
        for option in options.iter() {
            self.option(option.number, option.value)?;
        }
        Ok(self)
    }

    /// Appends the payload and ends the message. Without bytes there is no marker either.
    pub fn payload(self, payload: &[u8]) {
        if payload.is_empty() {
            return;
        }
        self.out.push(PAYLOAD_MARKER);
        self.out.extend_from_slice(payload);
    }

    fn extend(&mut self, nibble: u8, value: u32) {
        match nibble {
            NIBBLE_ONE_BYTE => self.out.push((value - ONE_BYTE_BASE) as u8),
            NIBBLE_TWO_BYTES => self.out.extend_from_slice(&((value - TWO_BYTES_BASE) as u16).to_be_bytes()),
            _ => {}
        }
    }
}

const fn nibble(value: u32) -> u8 {
    match value {
        0..ONE_BYTE_BASE => value as u8,
        ONE_BYTE_BASE..TWO_BYTES_BASE => NIBBLE_ONE_BYTE,
        _ => NIBBLE_TWO_BYTES,
    }
}

/// Writes another Message ID into an encoded message, for one that gets its place in the series only when it
/// leaves. Does nothing to what is shorter than a header.
pub fn set_mid(message: &mut [u8], mid: Mid) {
    if let Some(place) = message.get_mut(2..4) {
        place.copy_from_slice(&mid.0.to_be_bytes());
    }
}

/// Cuts an encoded response to its shortest, with this code: its type, Message ID and token stay. False if that makes
/// it no shorter, or if it is no message.
pub(super) fn cut_to_code(message: &mut Vec<u8>, code: Code) -> bool {
    let len = 4 + message.first().map_or(0, |first| usize::from(first & 0x0F));
    if message.len() <= len {
        return false;
    }
    message.truncate(len);
    if let Some(place) = message.get_mut(1) {
        *place = code.0;
    }
    true
}

/// Why something can't be written into a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncodeError {
    /// An option with a lower number than the one before it.
    OptionOrder(OptionNumber),
    /// A value longer than the format can tell (65804 bytes).
    OptionTooLong(OptionNumber),
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EncodeError::OptionOrder(number) => {
                write!(f, "{number} comes after an option with a higher number")
            }
            EncodeError::OptionTooLong(number) => write!(f, "the value of {number} is too long"),
        }
    }
}

impl core::error::Error for EncodeError {}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::coap::message::Message;
    use coap_lite::{MessageClass, Packet};
    use proptest::prelude::*;
    use std::{collections::BTreeSet, string::ToString};

    /// A message with Message ID 0x1234.
    pub(in crate::coap) fn build(
        kind: MessageType,
        code: Code,
        token: &[u8],
        options: &[(u16, &[u8])],
        payload: &[u8],
    ) -> Vec<u8> {
        let mut out = Vec::new();
        let token = MessageToken::new(token).unwrap();
        let mut writer = MessageWriter::new(&mut out, kind, code, Mid(0x1234), token);
        for (number, value) in options {
            writer.option(OptionNumber(*number), value).unwrap();
        }
        writer.payload(payload);
        out
    }

    #[test]
    fn bytes_are_frozen() {
        let get = build(MessageType::Con, Code::GET, &[0x71], &[(11, b"temperature")], &[]);
        assert_eq!(get, b"\x41\x01\x12\x34\x71\xbbtemperature");
        let extended = build(MessageType::Non, Code::POST, &[], &[(13, &[]), (282, &[0; 13])], &[1]);
        assert_eq!(extended, b"\x50\x02\x12\x34\xd0\x00\xed\x00\x00\x00\0\0\0\0\0\0\0\0\0\0\0\0\0\xff\x01");
        let mut ack = Vec::new();
        MessageWriter::empty(&mut ack, MessageType::Ack, Mid(0x1234));
        assert_eq!(ack, [0x60, 0x00, 0x12, 0x34]);
    }

    #[test]
    fn refuses_disorder_and_appends_nothing() {
        let mut out = Vec::new();
        let mut writer =
            MessageWriter::new(&mut out, MessageType::Con, Code::GET, Mid(0), MessageToken::EMPTY);
        writer.option(OptionNumber::URI_PATH, b"a").unwrap();
        let error = writer.option(OptionNumber::URI_HOST, b"h").unwrap_err();
        assert_eq!(error.to_string(), "Uri-Host comes after an option with a higher number");
        let mut set = OptionSet::new();
        set.add(OptionNumber::URI_PATH, b"b").unwrap().add(OptionNumber::OBSERVE, b"").unwrap();
        assert_eq!(writer.options(&set).unwrap_err(), EncodeError::OptionOrder(OptionNumber::OBSERVE));
        let too_long = [0; MAX_VALUE_LEN as usize + 1];
        assert!(writer.option(OptionNumber(2000), &too_long).is_err());
        assert_eq!(out, b"\x40\x01\0\0\xb1a");
    }

    #[test]
    fn message_ids_can_be_set_late() {
        let mut message = build(MessageType::Con, Code::GET, &[], &[], &[]);
        set_mid(&mut message, Mid(0xABCD));
        assert_eq!(Message::parse(&message).unwrap().mid(), Mid(0xABCD));
        set_mid(&mut [0x40, 0x01], Mid(1));
    }

    #[test]
    fn a_response_can_be_cut_to_its_code() {
        let mut message = build(MessageType::Con, Code::CONTENT, &[1, 2], &[], &[7; 20]);
        assert!(cut_to_code(&mut message, Code::INTERNAL_SERVER_ERROR));
        assert_eq!(message, build(MessageType::Con, Code::INTERNAL_SERVER_ERROR, &[1, 2], &[], &[]));
        assert!(!cut_to_code(&mut message, Code::INTERNAL_SERVER_ERROR));
        assert!(!cut_to_code(&mut Vec::new(), Code::INTERNAL_SERVER_ERROR));
    }

    /// Options in ascending order, made of their deltas, with lengths around those where the encoding changes.
    fn any_options() -> impl Strategy<Value = Vec<(u16, Vec<u8>)>> {
        let delta = prop_oneof![0u16..12, 12u16..15, 267u16..271, 0u16..5000];
        let len = prop_oneof![0usize..11, 12usize..15, 267usize..271];
        let value = len.prop_flat_map(|len| prop::collection::vec(any::<u8>(), len));
        prop::collection::vec((delta, value), 0..8).prop_map(|rows| {
            let mut number = 0;
            rows.into_iter()
                .map(|(delta, value)| {
                    number += delta;
                    (number, value)
                })
                .collect()
        })
    }

    fn any_code() -> impl Strategy<Value = Code> {
        prop_oneof![
            (1u8..8).prop_map(Code),
            Just(Code::CONTENT),
            Just(Code::NOT_FOUND),
            Just(Code::BAD_GATEWAY)
        ]
    }

    proptest! {
        #[test]
        fn round_trips(
            confirmable: bool,
            code in any_code(),
            mid: u16,
            token in prop::collection::vec(any::<u8>(), 0..=8),
            options in any_options(),
            payload in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let kind = if confirmable { MessageType::Con } else { MessageType::Non };
            let borrowed: Vec<_> = options.iter().map(|(number, value)| (*number, value.as_slice())).collect();
            let mut bytes = build(kind, code, &token, &borrowed, &payload);
            set_mid(&mut bytes, Mid(mid));
            let message = Message::parse(&bytes).unwrap();
            prop_assert_eq!((message.kind(), message.code(), message.mid()), (kind, code, Mid(mid)));
            prop_assert_eq!(Some(message.token()), MessageToken::new(&token));
            prop_assert!(message.options().map(|option| (option.number.0, option.value)).eq(borrowed));
            prop_assert_eq!(message.payload(), payload.as_slice());
        }

        /// What this writes, coap-lite reads the same; what coap-lite writes of that, this reads the same.
        #[test]
        fn agrees_with_coap_lite(
            code in any_code(),
            token in prop::collection::vec(any::<u8>(), 0..=8),
            options in any_options(),
            payload in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let borrowed: Vec<_> = options.iter().map(|(number, value)| (*number, value.as_slice())).collect();
            let bytes = build(MessageType::Non, code, &token, &borrowed, &payload);
            let theirs = Packet::from_bytes(&bytes).unwrap();
            prop_assert_eq!(u8::from(theirs.header.code), code.0);
            prop_assert!(!matches!(theirs.header.code, MessageClass::Reserved(_)));
            prop_assert_eq!(theirs.header.message_id, 0x1234);
            prop_assert_eq!(theirs.get_token(), token.as_slice());
            prop_assert_eq!(&theirs.payload, &payload);
            for (number, values) in theirs.options() {
                let ours = options.iter().filter(|(ours, _)| ours == number).map(|(_, value)| value);
                prop_assert!(values.iter().eq(ours));
            }
            let numbers: BTreeSet<_> = options.iter().map(|(number, _)| number).collect();
            prop_assert_eq!(theirs.options().count(), numbers.len());

            let again = theirs.to_bytes_unlimited().unwrap();
            prop_assert_eq!(again, bytes);
        }
    }
}
