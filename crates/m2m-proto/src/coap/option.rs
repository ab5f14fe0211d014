//! Options: their numbers, what the numbers say by themselves, and the limits of those that are registered.
//!
//! RFC 7252 section 5.4 (classes and limits) and 5.10 (the options); RFC 7641, 7959, 7967, 8613, 8768, 9175, 9177
//! and 9668 for those that came later.
use core::fmt;

/// The number of an option. Its low bits say what a recipient may do that doesn't know it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OptionNumber(pub u16);

impl OptionNumber {
    /// The request holds only if the target has one of these ETags (RFC 7252 section 5.10.8.1).
    pub const IF_MATCH: OptionNumber = OptionNumber(1);
    /// The host that the client meant (RFC 7252 section 5.10.1).
    pub const URI_HOST: OptionNumber = OptionNumber(3);
    /// A local name of a representation (RFC 7252 section 5.10.6).
    pub const ETAG: OptionNumber = OptionNumber(4);
    /// The request holds only if there is no target yet (RFC 7252 section 5.10.8.2).
    pub const IF_NONE_MATCH: OptionNumber = OptionNumber(5);
    /// 0 = register, 1 = deregister; in a notification the sequence number (RFC 7641 section 2).
    pub const OBSERVE: OptionNumber = OptionNumber(6);
    /// The port that the client meant (RFC 7252 section 5.10.1).
    pub const URI_PORT: OptionNumber = OptionNumber(7);
    /// One segment of the path of what was created (RFC 7252 section 5.10.7).
    pub const LOCATION_PATH: OptionNumber = OptionNumber(8);
    /// The message is protected end to end (RFC 8613 section 2).
    pub const OSCORE: OptionNumber = OptionNumber(9);
    /// One segment of the path (RFC 7252 section 5.10.1).
    pub const URI_PATH: OptionNumber = OptionNumber(11);
    /// What the payload is (RFC 7252 section 5.10.3).
    pub const CONTENT_FORMAT: OptionNumber = OptionNumber(12);
    /// For how many seconds the response is fresh; 60 if left out (RFC 7252 section 5.10.5).
    pub const MAX_AGE: OptionNumber = OptionNumber(14);
    /// One argument of the query (RFC 7252 section 5.10.1).
    pub const URI_QUERY: OptionNumber = OptionNumber(15);
    /// Through how many proxies more a request may go (RFC 8768 section 3).
    pub const HOP_LIMIT: OptionNumber = OptionNumber(16);
    /// The Content-Format that the client wants (RFC 7252 section 5.10.4).
    pub const ACCEPT: OptionNumber = OptionNumber(17);
    /// A block of a request, for bursts (RFC 9177 section 4).
    pub const Q_BLOCK1: OptionNumber = OptionNumber(19);
    /// One argument of the query of what was created (RFC 7252 section 5.10.7).
    pub const LOCATION_QUERY: OptionNumber = OptionNumber(20);
    /// The request carries the third message of EDHOC (RFC 9668 section 3).
    pub const EDHOC: OptionNumber = OptionNumber(21);
    /// A block of a response (RFC 7959 section 2.1).
    pub const BLOCK2: OptionNumber = OptionNumber(23);
    /// A block of a request (RFC 7959 section 2.1).
    pub const BLOCK1: OptionNumber = OptionNumber(27);
    /// Bytes of the whole response (RFC 7959 section 4).
    pub const SIZE2: OptionNumber = OptionNumber(28);
    /// A block of a response, for bursts (RFC 9177 section 4).
    pub const Q_BLOCK2: OptionNumber = OptionNumber(31);
    /// The whole target as an absolute URI, for a forward proxy (RFC 7252 section 5.10.2).
    pub const PROXY_URI: OptionNumber = OptionNumber(35);
    /// The scheme of the target whose parts the Uri-* options hold (RFC 7252 section 5.10.2).
    pub const PROXY_SCHEME: OptionNumber = OptionNumber(39);
    /// Bytes of the whole request (RFC 7252 section 5.10.9, RFC 7959 section 4).
    pub const SIZE1: OptionNumber = OptionNumber(60);
    /// A value of the server's that the client sends back to show that it lives (RFC 9175 section 2).
    pub const ECHO: OptionNumber = OptionNumber(252);
    /// Classes of responses that the client doesn't want (RFC 7967 section 2).
    pub const NO_RESPONSE: OptionNumber = OptionNumber(258);
    /// Tells the blocks of one request from those of another (RFC 9175 section 3).
    pub const REQUEST_TAG: OptionNumber = OptionNumber(292);

    /// True if a message with this option must be refused by who doesn't know it (RFC 7252 section 5.4.6).
    pub const fn is_critical(self) -> bool {
        self.0 & 1 != 0
    }

    /// True if a proxy that doesn't know it must not pass the message on (RFC 7252 section 5.4.6).
    pub const fn is_unsafe(self) -> bool {
        self.0 & 2 != 0
    }

    /// True if a cache leaves it out of its key; only meaningful for what is safe to forward
    /// (RFC 7252 section 5.4.6).
    pub const fn is_no_cache_key(self) -> bool {
        self.0 & 0x1E == 0x1C
    }

    /// True if it may occur several times. What isn't registered may, as nobody can tell.
    pub fn is_repeatable(self) -> bool {
        self.definition().is_none_or(|definition| definition.repeatable)
    }

    /// What the registry says about it.
    pub fn definition(self) -> Option<&'static OptionDefinition> {
        let at = DEFINITIONS.binary_search_by_key(&self, |definition| definition.number).ok()?;
        DEFINITIONS.get(at)
    }

    /// True if a value of `len` bytes is one that the registry allows; always for what isn't registered.
    pub fn allows_len(self, len: usize) -> bool {
        self.definition().is_none_or(|definition| {
            (usize::from(definition.min_len)..=usize::from(definition.max_len)).contains(&len)
        })
    }
}

impl fmt::Display for OptionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.definition() {
            Some(definition) => f.write_str(definition.name),
            None => write!(f, "option {}", self.0),
        }
    }
}

impl fmt::Debug for OptionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// How the bytes of a value are meant (RFC 7252 section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionFormat {
    /// No bytes.
    Empty,
    /// Bytes.
    Opaque,
    /// A number, most significant byte first, best without leading zeros.
    Uint,
    /// UTF-8.
    String,
}

/// A row of the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionDefinition {
    /// Its number.
    pub number: OptionNumber,
    /// Its registered name.
    pub name: &'static str,
    /// How its bytes are meant.
    pub format: OptionFormat,
    /// The shortest value, in bytes.
    pub min_len: u16,
    /// The longest value, in bytes.
    pub max_len: u16,
    /// True if it may occur several times.
    pub repeatable: bool,
}

const fn once(
    number: OptionNumber,
    name: &'static str,
    format: OptionFormat,
    min_len: u16,
    max_len: u16,
) -> OptionDefinition {
    OptionDefinition { number, name, format, min_len, max_len, repeatable: false }
}

const fn repeated(
    number: OptionNumber,
    name: &'static str,
    format: OptionFormat,
    min_len: u16,
    max_len: u16,
) -> OptionDefinition {
    OptionDefinition { number, name, format, min_len, max_len, repeatable: true }
}

/// The options this crate names, in order of their numbers.
pub const DEFINITIONS: &[OptionDefinition] = &[
    repeated(OptionNumber::IF_MATCH, "If-Match", OptionFormat::Opaque, 0, 8),
    once(OptionNumber::URI_HOST, "Uri-Host", OptionFormat::String, 1, 255),
    repeated(OptionNumber::ETAG, "ETag", OptionFormat::Opaque, 1, 8),
    once(OptionNumber::IF_NONE_MATCH, "If-None-Match", OptionFormat::Empty, 0, 0),
    once(OptionNumber::OBSERVE, "Observe", OptionFormat::Uint, 0, 3),
    once(OptionNumber::URI_PORT, "Uri-Port", OptionFormat::Uint, 0, 2),
    repeated(OptionNumber::LOCATION_PATH, "Location-Path", OptionFormat::String, 0, 255),
    once(OptionNumber::OSCORE, "OSCORE", OptionFormat::Opaque, 0, 255),
    repeated(OptionNumber::URI_PATH, "Uri-Path", OptionFormat::String, 0, 255),
    once(OptionNumber::CONTENT_FORMAT, "Content-Format", OptionFormat::Uint, 0, 2),
    once(OptionNumber::MAX_AGE, "Max-Age", OptionFormat::Uint, 0, 4),
    repeated(OptionNumber::URI_QUERY, "Uri-Query", OptionFormat::String, 0, 255),
    once(OptionNumber::HOP_LIMIT, "Hop-Limit", OptionFormat::Uint, 1, 1),
    once(OptionNumber::ACCEPT, "Accept", OptionFormat::Uint, 0, 2),
    once(OptionNumber::Q_BLOCK1, "Q-Block1", OptionFormat::Uint, 0, 3),
    repeated(OptionNumber::LOCATION_QUERY, "Location-Query", OptionFormat::String, 0, 255),
    once(OptionNumber::EDHOC, "EDHOC", OptionFormat::Empty, 0, 0),
    once(OptionNumber::BLOCK2, "Block2", OptionFormat::Uint, 0, 3),
    once(OptionNumber::BLOCK1, "Block1", OptionFormat::Uint, 0, 3),
    once(OptionNumber::SIZE2, "Size2", OptionFormat::Uint, 0, 4),
    repeated(OptionNumber::Q_BLOCK2, "Q-Block2", OptionFormat::Uint, 0, 3),
    once(OptionNumber::PROXY_URI, "Proxy-Uri", OptionFormat::String, 1, 1034),
    once(OptionNumber::PROXY_SCHEME, "Proxy-Scheme", OptionFormat::String, 1, 255),
    once(OptionNumber::SIZE1, "Size1", OptionFormat::Uint, 0, 4),
    once(OptionNumber::ECHO, "Echo", OptionFormat::Opaque, 1, 40),
    once(OptionNumber::NO_RESPONSE, "No-Response", OptionFormat::Uint, 0, 1),
    repeated(OptionNumber::REQUEST_TAG, "Request-Tag", OptionFormat::Opaque, 0, 8),
];

/// One option of a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CoapOption<'a> {
    /// Its number.
    pub number: OptionNumber,
    /// Its bytes.
    pub value: &'a [u8],
}

impl<'a> CoapOption<'a> {
    /// The value as a number: up to 4 bytes after leading zeros, which RFC 7252 section 3.2 lets a sender add.
    pub fn as_uint(&self) -> Option<u32> {
        decode_uint(self.value)
    }

    /// The value as text.
    pub fn as_str(&self) -> Option<&'a str> {
        core::str::from_utf8(self.value).ok()
    }
}

impl fmt::Debug for CoapOption<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=", self.number)?;
        match (self.number.definition().map(|definition| definition.format), self.as_uint(), self.as_str()) {
            (Some(OptionFormat::Uint), Some(number), _) => write!(f, "{number}"),
            (Some(OptionFormat::String), _, Some(text)) => write!(f, "{text:?}"),
            _ => self.value.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}

/// A value as a number, or `None` if it needs more than 32 bits.
pub fn decode_uint(value: &[u8]) -> Option<u32> {
    value.iter().try_fold(0u32, |number, byte| Some(number.checked_mul(256)? | u32::from(*byte)))
}

/// A number in its shortest form, which for 0 is no byte at all (RFC 7252 section 3.2).
#[derive(Clone, Copy)]
pub struct UintValue {
    bytes: [u8; 4],
    skip: u8,
}

impl UintValue {
    /// The shortest form of `number`.
    pub fn new(number: u32) -> UintValue {
        UintValue { bytes: number.to_be_bytes(), skip: (number.leading_zeros() / 8) as u8 }
    }

    /// Its 0 to 4 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(usize::from(self.skip)..).unwrap_or_default()
    }
}

/// The first option that obliges a recipient who knows only `known` to refuse the message: a critical one that isn't
/// in `known`, whose length is not allowed, or that is repeated without being repeatable (RFC 7252 sections 5.4.1,
/// 5.4.3 and 5.4.5 treat all three alike). Options of the elective kind are never returned; the recipient ignores
/// them.
pub fn unknown_critical<'a>(
    options: impl Iterator<Item = CoapOption<'a>>,
    known: &[OptionNumber],
) -> Option<OptionNumber> {
    let mut last = None;
    for option in options {
        let is_repeat = last == Some(option.number);
        last = Some(option.number);
        if !option.number.is_critical() {
            continue;
        }
        let is_understood = known.contains(&option.number)
            && option.number.allows_len(option.value.len())
            && (!is_repeat || option.number.is_repeatable());
        if !is_understood {
            return Some(option.number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{format, vec::Vec};

    #[test]
    fn the_number_says_what_strangers_may_do() {
        // RFC 7252 table 4 and its followers: C, U, N columns.
        let marks = |number: OptionNumber| {
            let mark = |set, letter| if set { letter } else { '-' };
            let no_cache_key = !number.is_unsafe() && number.is_no_cache_key();
            [mark(number.is_critical(), 'C'), mark(number.is_unsafe(), 'U'), mark(no_cache_key, 'N')]
                .iter()
                .collect::<std::string::String>()
        };
        let expected = [
            ("If-Match", "C--"),
            ("Uri-Host", "CU-"),
            ("ETag", "---"),
            ("If-None-Match", "C--"),
            ("Observe", "-U-"),
            ("Uri-Port", "CU-"),
            ("Location-Path", "---"),
            ("OSCORE", "C--"),
            ("Uri-Path", "CU-"),
            ("Content-Format", "---"),
            ("Max-Age", "-U-"),
            ("Uri-Query", "CU-"),
            ("Hop-Limit", "---"),
            ("Accept", "C--"),
            ("Q-Block1", "CU-"),
            ("Location-Query", "---"),
            ("EDHOC", "C--"),
            ("Block2", "CU-"),
            ("Block1", "CU-"),
            ("Size2", "--N"),
            ("Q-Block2", "CU-"),
            ("Proxy-Uri", "CU-"),
            ("Proxy-Scheme", "CU-"),
            ("Size1", "--N"),
            ("Echo", "--N"),
            ("No-Response", "-U-"),
            ("Request-Tag", "---"),
        ];
        let rows: Vec<_> = DEFINITIONS.iter().map(|row| (row.name, marks(row.number))).collect();
        assert_eq!(rows.len(), expected.len());
        for ((name, marks), expected) in rows.iter().zip(expected) {
            assert_eq!((*name, marks.as_str()), expected);
        }
    }

    #[test]
    fn definitions_are_searchable() {
        assert!(DEFINITIONS.is_sorted_by(|a, b| a.number < b.number));
        for row in DEFINITIONS {
            assert_eq!(row.number.definition(), Some(row));
            assert!(row.min_len <= row.max_len, "{}", row.name);
        }
        assert_eq!(OptionNumber(2).definition(), None);
        assert_eq!(format!("{}", OptionNumber(65000)), "option 65000");
    }

    #[test]
    fn lengths_outside_the_registry_are_told() {
        assert!(OptionNumber::URI_PATH.allows_len(255));
        assert!(!OptionNumber::URI_PATH.allows_len(256));
        assert!(!OptionNumber::HOP_LIMIT.allows_len(0));
        assert!(!OptionNumber::IF_NONE_MATCH.allows_len(1));
        assert!(OptionNumber(2).allows_len(5000));
    }

    #[test]
    fn numbers_are_written_shortest() {
        let forms: [(u32, &[u8]); 6] = [
            (0, &[]),
            (1, &[1]),
            (255, &[255]),
            (256, &[1, 0]),
            (0x01_0000, &[1, 0, 0]),
            (u32::MAX, &[255, 255, 255, 255]),
        ];
        for (number, bytes) in forms {
            assert_eq!(UintValue::new(number).as_bytes(), bytes);
        }
        assert_eq!(decode_uint(&[0, 0, 0, 0, 7]), Some(7));
        assert_eq!(decode_uint(&[1, 0, 0, 0, 0]), None);
    }

    fn check(options: &[(u16, &[u8])], known: &[OptionNumber]) -> Option<OptionNumber> {
        let options =
            options.iter().map(|(number, value)| CoapOption { number: OptionNumber(*number), value });
        unknown_critical(options, known)
    }

    #[test]
    fn strangers_refuse_only_what_is_critical() {
        let known = [OptionNumber::URI_PATH, OptionNumber::URI_PORT, OptionNumber::ACCEPT];
        assert_eq!(check(&[(11, b"a"), (11, b"b"), (17, &[50])], &known), None);
        assert_eq!(check(&[(11, b"a"), (2000, b"x")], &known), None);
        assert_eq!(check(&[(11, b"a"), (2001, b"x")], &known), Some(OptionNumber(2001)));
        assert_eq!(check(&[(7, &[1, 2, 3])], &known), Some(OptionNumber::URI_PORT));
        assert_eq!(check(&[(17, &[50]), (17, &[60])], &known), Some(OptionNumber::ACCEPT));
        assert_eq!(check(&[(14, &[50]), (14, &[60])], &known), None);
        assert_eq!(check(&[(11, b"a")], &[]), Some(OptionNumber::URI_PATH));
    }

    #[test]
    fn is_shown_by_its_format() {
        let show = |number, value: &[u8]| format!("{:?}", CoapOption { number, value });
        assert_eq!(show(OptionNumber::URI_PATH, b"t"), "Uri-Path=\"t\"");
        assert_eq!(show(OptionNumber::URI_PATH, &[0xFF]), "Uri-Path=ff");
        assert_eq!(show(OptionNumber::MAX_AGE, &[1, 0]), "Max-Age=256");
        assert_eq!(show(OptionNumber(9000), &[1, 0]), "option 9000=0100");
    }

    proptest! {
        #[test]
        fn uints_round_trip(number: u32) {
            let value = UintValue::new(number);
            prop_assert_eq!(decode_uint(value.as_bytes()), Some(number));
            prop_assert!(value.as_bytes().first() != Some(&0));
        }
    }
}
