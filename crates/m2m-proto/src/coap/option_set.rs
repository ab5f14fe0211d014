//! Options that somebody fills in, in whatever order, before they are written in the order of RFC 7252 section 3.1.
use super::option::{CoapOption, OptionNumber, UintValue};
use alloc::vec::Vec;
use core::fmt;

/// Options sorted by number; those of one number keep the order in which they came. Two allocations, which
/// [`OptionSet::clear`] keeps.
#[derive(Clone, Default)]
pub struct OptionSet {
    entries: Vec<Entry>,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Entry {
    number: OptionNumber,
    len: u16,
    start: u32,
}

impl OptionSet {
    /// The longest value it takes. No registered option comes near, nor does a datagram.
    pub const MAX_VALUE_LEN: usize = 0xFFFF;

    /// A set without options.
    pub const fn new() -> OptionSet {
        OptionSet { entries: Vec::new(), bytes: Vec::new() }
    }

    /// Adds an option after those of the same number. The registry's length limits are checked
    /// (RFC 7252 section 5.4.3), repetition isn't.
    pub fn add(&mut self, number: OptionNumber, value: &[u8]) -> Result<&mut Self, OptionLengthError> {
        if !number.allows_len(value.len()) {
            return Err(OptionLengthError(number));
        }
        let len = u16::try_from(value.len()).map_err(|_| OptionLengthError(number))?;
        let start = u32::try_from(self.bytes.len()).map_err(|_| OptionLengthError(number))?;
        let place = self.entries.partition_point(|entry| entry.number <= number);
        self.entries.insert(place, Entry { number, len, start });
        self.bytes.extend_from_slice(value);
        Ok(self)
    }

    /// Adds an option whose value is a number, in the shortest form.
    pub fn add_uint(&mut self, number: OptionNumber, value: u32) -> Result<&mut Self, OptionLengthError> {
        self.add(number, UintValue::new(value).as_bytes())
    }

    /// Replaces all options of this number with one.
    pub fn set(&mut self, number: OptionNumber, value: &[u8]) -> Result<&mut Self, OptionLengthError> {
        if !number.allows_len(value.len()) || value.len() > OptionSet::MAX_VALUE_LEN {
            return Err(OptionLengthError(number));
        }
        self.remove(number);
        self.add(number, value)
    }

    /// Replaces all options of this number with one whose value is a number.
    pub fn set_uint(&mut self, number: OptionNumber, value: u32) -> Result<&mut Self, OptionLengthError> {
        self.set(number, UintValue::new(value).as_bytes())
    }

    /// Takes all options of this number out.
    pub fn remove(&mut self, number: OptionNumber) {
        // Their bytes stay behind until `clear`: sets are short-lived, and nothing counts them.
        self.entries.retain(|entry| entry.number != number);
    }

    /// Takes all options out; the memory stays for the next message.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.bytes.clear();
    }

    /// How many options there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True without options.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The options in order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = CoapOption<'_>> + Clone {
        self.entries.iter().map(|entry| {
            let start = entry.start as usize;
            let value = self.bytes.get(start..start + usize::from(entry.len)).unwrap_or_default();
            CoapOption { number: entry.number, value }
        })
    }

    /// The value of the first option of this number.
    pub fn get(&self, number: OptionNumber) -> Option<&[u8]> {
        self.iter().find(|option| option.number == number).map(|option| option.value)
    }
}

impl<'a> Extend<CoapOption<'a>> for OptionSet {
    /// Adds what is allowed; an option with a length that the registry forbids is left out, as a recipient would
    /// have to take it for unknown.
    fn extend<I: IntoIterator<Item = CoapOption<'a>>>(&mut self, options: I) {
        for option in options {
            let _ = self.add(option.number, option.value);
        }
    }
}

impl fmt::Debug for OptionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A value that is shorter or longer than the registry allows for this option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionLengthError(pub OptionNumber);

impl fmt::Display for OptionLengthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.definition() {
            Some(row) if row.min_len == row.max_len => write!(f, "{} takes {} bytes", row.name, row.min_len),
            Some(row) => write!(f, "{} takes {} to {} bytes", row.name, row.min_len, row.max_len),
            None => write!(f, "{} takes at most {} bytes", self.0, OptionSet::MAX_VALUE_LEN),
        }
    }
}

impl core::error::Error for OptionLengthError {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{format, string::ToString, vec};

    #[test]
    fn sorts_by_number_and_keeps_the_order_within() {
        let mut set = OptionSet::new();
        set.add(OptionNumber::URI_QUERY, b"x").unwrap();
        set.add(OptionNumber::URI_PATH, b"a").unwrap().add(OptionNumber::URI_PATH, b"b").unwrap();
        set.add_uint(OptionNumber::OBSERVE, 0).unwrap();
        assert_eq!(format!("{set:?}"), r#"[Observe=0, Uri-Path="a", Uri-Path="b", Uri-Query="x"]"#);
        assert_eq!(set.get(OptionNumber::URI_PATH), Some(&b"a"[..]));
    }

    #[test]
    fn replaces_and_removes() {
        let mut set = OptionSet::new();
        set.add(OptionNumber::URI_PATH, b"a").unwrap().add(OptionNumber::URI_PATH, b"b").unwrap();
        set.set(OptionNumber::URI_PATH, b"c").unwrap();
        set.set_uint(OptionNumber::MAX_AGE, 5).unwrap();
        assert_eq!((set.len(), set.get(OptionNumber::URI_PATH)), (2, Some(&b"c"[..])));
        set.remove(OptionNumber::URI_PATH);
        assert_eq!(set.get(OptionNumber::URI_PATH), None);
        set.clear();
        assert!(set.is_empty());
    }

    #[test]
    fn refuses_lengths_and_stays_as_it_was() {
        let mut set = OptionSet::new();
        set.add(OptionNumber::ETAG, b"tag").unwrap();
        let refused = set.set(OptionNumber::ETAG, b"").unwrap_err();
        assert_eq!(refused.to_string(), "ETag takes 1 to 8 bytes");
        assert!(set.set(OptionNumber(2000), &vec![0; 70_000]).is_err());
        assert_eq!(set.add(OptionNumber::HOP_LIMIT, b"").unwrap_err().to_string(), "Hop-Limit takes 1 bytes");
        assert_eq!(format!("{set:?}"), "[ETag=746167]");
    }

    proptest! {
        #[test]
        fn equals_a_stable_sort(options in prop::collection::vec((0u16..6, prop::collection::vec(any::<u8>(), 0..5)), 0..20)) {
            // Numbers that the registry doesn't know, so that every length passes.
            let number = |small: u16| OptionNumber(2000 + small);
            let mut set = OptionSet::new();
            set.extend(options.iter().map(|(small, value)| CoapOption { number: number(*small), value }));
            let mut sorted = options.clone();
            sorted.sort_by_key(|(small, _)| *small);
            let expected = sorted.iter().map(|(small, value)| CoapOption { number: number(*small), value });
            prop_assert!(set.iter().eq(expected));
        }
    }
}
