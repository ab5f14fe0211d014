//! The 16-byte id of a net.
use core::fmt;

/// The id of a net: 16 bytes, written as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Id(pub [u8; Id::LEN]);

impl Id {
    /// Bytes of an id on the wire.
    pub const LEN: usize = 16;
    /// The destination that means "whichever net listens at this address".
    pub const ANY: Id = Id([0; 16]);

    /// Reads hex digits; fewer than 32 are padded with zeros on the left, so that `1` is id 1.
    ///
    /// ```
    /// use m2m_proto::id::Id;
    /// assert_eq!(Id::from_hex("1").unwrap().0[15], 1);
    /// assert!(Id::from_hex("").is_err());
    /// ```
    pub fn from_hex(text: &str) -> Result<Id, IdError> {
        if text.is_empty() || text.len() > 32 {
            return Err(IdError::Length(text.len()));
        }
        let mut id = [0u8; 16];
        for (place, digit) in text.bytes().rev().enumerate() {
            let value = char::from(digit).to_digit(16).ok_or(IdError::NotHex)? as u8;
            id[15 - place / 2] |= value << (4 * (place % 2));
        }
        Ok(Id(id))
    }

    /// True for the ids that nobody may register: all-zero, all-ones, and those that start with 0xFF, kept for
    /// ids that certify themselves.
    pub fn is_reserved(&self) -> bool {
        *self == Id::ANY || self.0[0] == 0xFF
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The short form that people type: leading zeros say nothing.
        let zeros = self.0.iter().take(15).take_while(|byte| **byte == 0).count();
        write!(f, "#")?;
        self.0[zeros..].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Why a text is no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdError {
    /// It must have 1 to 32 digits; it had this many bytes.
    Length(usize),
    /// It holds something other than hex digits.
    NotHex,
}

impl fmt::Display for IdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IdError::Length(n) => write!(f, "an id is 1 to 32 hex digits, this has {n} characters"),
            IdError::NotHex => write!(f, "an id is written in hex digits (0-9, a-f) only"),
        }
    }
}

impl core::error::Error for IdError {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn reads_what_it_writes() {
        let id = Id::from_hex("0123456789abcdefFEDCBA9876543210").unwrap();
        assert_eq!(Id::from_hex(&id.to_string()), Ok(id));
        assert_eq!(Id::from_hex("f").unwrap().to_string(), "0000000000000000000000000000000f");
    }

    #[test]
    fn refuses_what_is_no_id() {
        assert_eq!(Id::from_hex(""), Err(IdError::Length(0)));
        assert_eq!(Id::from_hex(&"1".repeat(33)), Err(IdError::Length(33)));
        assert_eq!(Id::from_hex("12 4"), Err(IdError::NotHex));
        assert!(Id::from_hex("ff000000000000000000000000000001").unwrap().is_reserved());
        assert!(!Id::from_hex("1").unwrap().is_reserved());
    }
}
