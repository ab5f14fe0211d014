//! The numbers that travel in frames. Those that this version does not know keep their value, so that they can be
//! shown, counted and relayed.
use core::fmt;
use subtle::ConstantTimeEq;

/// Serial number of a request among the control frames of one direction; its answer repeats it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Req(pub u16);

/// Sequence number of a registration, chosen by the device; the higher one wins (section 8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(pub u64);

/// Names a warm flow between two neighbours in place of its two ids (section 10.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Label(pub u32);

/// The first 4 bytes of an id, as the path of a registration lists them.
pub type ShortId = [u8; 4];

/// Why a session was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CloseCode(pub u8);

impl CloseCode {
    /// The closer needs the session no longer.
    pub const DONE: CloseCode = CloseCode(0);
    /// The same id registered through a newer session.
    pub const REPLACED: CloseCode = CloseCode(1);
    /// The closer is going down.
    pub const SHUTTING_DOWN: CloseCode = CloseCode(2);
    /// The closer's policy forbids the session.
    pub const REFUSED: CloseCode = CloseCode(3);
    /// The closer has no place for the session.
    pub const TABLE_FULL: CloseCode = CloseCode(4);
    /// The session's keys have protected as much as they may.
    pub const KEY_LIMIT: CloseCode = CloseCode(5);
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            CloseCode::DONE => "done",
            CloseCode::REPLACED => "replaced by a newer registration",
            CloseCode::SHUTTING_DOWN => "shutting down",
            CloseCode::REFUSED => "refused",
            CloseCode::TABLE_FULL => "table full",
            CloseCode::KEY_LIMIT => "key limit reached",
            CloseCode(other) => return write!(f, "close code {other}"),
        })
    }
}

/// What a responder remembers of the sessions that CONFIRM named (section 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Memory(pub u8);

impl Memory {
    /// None of them.
    pub const NONE: Memory = Memory(0);
    /// The first of them, and all since.
    pub const WHOLE: Memory = Memory(1);

    /// Not the first of them; all since the one of this place in the list, counted from 0.
    pub const fn since(place: u8) -> Memory {
        if place == 0 { Memory::WHOLE } else { Memory(place.saturating_add(1)) }
    }

    /// Since which of them everything is remembered; none if nothing is.
    pub const fn place(self) -> Option<u8> {
        self.0.checked_sub(1)
    }
}

/// Why a packet was not relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ErrorCode(pub u8);

impl ErrorCode {
    /// The destination is registered nowhere that the relay knows.
    pub const NO_ROUTE: ErrorCode = ErrorCode(1);
    /// The destination has moved to another host.
    pub const NOT_HERE: ErrorCode = ErrorCode(2);
    /// The packet passed more relays than its hop limit allows.
    pub const HOP_LIMIT: ErrorCode = ErrorCode(3);
    /// Over a budget, or the source is not the sender's to use.
    pub const REFUSED: ErrorCode = ErrorCode(4);
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            ErrorCode::NO_ROUTE => "the destination is not registered",
            ErrorCode::NOT_HERE => "the destination is registered at another host",
            ErrorCode::HOP_LIMIT => "too many relays on the way",
            ErrorCode::REFUSED => "the relay refused the packet",
            ErrorCode(other) => return write!(f, "relay error {other}"),
        })
    }
}

/// What became of a REGISTER.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegisterStatus(pub u8);

impl RegisterStatus {
    /// Registered for the lease in the answer.
    pub const OK: RegisterStatus = RegisterStatus(0);
    /// A newer registration stands; its epoch is in the answer.
    pub const STALE: RegisterStatus = RegisterStatus(1);
    /// The id belongs to another device key, since the time in the answer.
    pub const CLAIMED: RegisterStatus = RegisterStatus(2);
    /// Reserved id, policy, or a PROVE that does not verify.
    pub const REFUSED: RegisterStatus = RegisterStatus(3);
    /// The registry has no place.
    pub const FULL: RegisterStatus = RegisterStatus(4);
    /// The claim could not be stored; try later.
    pub const STORE: RegisterStatus = RegisterStatus(5);
    /// The epoch lies in the host's future; the host's own time is in the answer.
    pub const AHEAD: RegisterStatus = RegisterStatus(6);
    /// The peer keeps no registry.
    pub const NO_REGISTRY: RegisterStatus = RegisterStatus(7);
    /// Too many new claims came from the device's network lately; try later.
    pub const BUSY: RegisterStatus = RegisterStatus(8);
}

impl fmt::Display for RegisterStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            RegisterStatus::OK => "registered",
            RegisterStatus::STALE => "a newer registration of this id stands",
            RegisterStatus::CLAIMED => "the id is claimed by another device key",
            RegisterStatus::REFUSED => "registration refused",
            RegisterStatus::FULL => "the registry is full",
            RegisterStatus::STORE => "the host could not store the claim",
            RegisterStatus::AHEAD => "the registration's epoch lies in the host's future",
            RegisterStatus::NO_REGISTRY => "the peer keeps no registry",
            RegisterStatus::BUSY => "the host takes no more new claims from that network for now; try later",
            RegisterStatus(other) => return write!(f, "registration status {other}"),
        })
    }
}

/// What a LOOKUP found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FoundStatus(pub u8);

impl FoundStatus {
    /// Offline, or never heard of: the two are not told apart.
    pub const OFFLINE: FoundStatus = FoundStatus(0);
    /// Registered at the host that answers.
    pub const ONLINE: FoundStatus = FoundStatus(1);
    /// Registered at the host that the answer names.
    pub const ELSEWHERE: FoundStatus = FoundStatus(2);
    /// The asker may not ask.
    pub const REFUSED: FoundStatus = FoundStatus(3);
    /// Over the budget of lookups; ask later.
    pub const BUSY: FoundStatus = FoundStatus(4);
    /// Registered, but it does not answer the host: asleep, or just gone.
    pub const SILENT: FoundStatus = FoundStatus(5);
}

impl fmt::Display for FoundStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            FoundStatus::OFFLINE => "offline or unknown",
            FoundStatus::ONLINE => "online",
            FoundStatus::ELSEWHERE => "online at another host",
            FoundStatus::REFUSED => "lookup refused",
            FoundStatus::BUSY => "the host is busy",
            FoundStatus::SILENT => "registered, but silent",
            FoundStatus(other) => return write!(f, "lookup status {other}"),
        })
    }
}

/// What a DONE frame says (protocol, section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DoneStatus(pub u8);

impl DoneStatus {
    /// It is done.
    pub const DONE: DoneStatus = DoneStatus(0);
    /// That net does not allow it.
    pub const NOT_ALLOWED: DoneStatus = DoneStatus(1);
    /// The mac was not made from the key that the net has now.
    pub const WRONG_MAC: DoneStatus = DoneStatus(2);
    /// Another version of the key would be the next.
    pub const WRONG_KEY_ID: DoneStatus = DoneStatus(3);
    /// It could not be kept.
    pub const NOT_STORED: DoneStatus = DoneStatus(4);
    /// Another change is under way.
    pub const BUSY: DoneStatus = DoneStatus(5);
    /// The new key is too short or too long.
    pub const BAD_KEY: DoneStatus = DoneStatus(6);
    /// The new token is zero, which labels nothing.
    pub const BAD_TOKEN: DoneStatus = DoneStatus(7);
}

impl fmt::Display for DoneStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            DoneStatus::DONE => "done",
            DoneStatus::NOT_ALLOWED => "it does not allow that from afar",
            DoneStatus::WRONG_MAC => "its key now is another than the one that was given",
            DoneStatus::WRONG_KEY_ID => "its key has another version than expected",
            DoneStatus::NOT_STORED => "it could not store it, and keeps what it has",
            DoneStatus::BUSY => "another change is under way there: try again later",
            DoneStatus::BAD_KEY => "the new key is too short or too long",
            DoneStatus::BAD_TOKEN => "the new token is none",
            DoneStatus(other) => return write!(f, "status {other}"),
        })
    }
}

/// The flags of a RELAY frame; unknown bits are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct RelayFlags(pub u8);

impl RelayFlags {
    /// The packet has entered the mesh of hosts.
    pub const CORE: RelayFlags = RelayFlags(1);
    /// A host has redirected the packet once.
    pub const REDIRECTED: RelayFlags = RelayFlags(2);

    /// True if all bits of `flags` are set.
    pub const fn contains(self, flags: RelayFlags) -> bool {
        self.0 & flags.0 == flags.0
    }
}

/// A key inside a frame, 0 to 255 bytes. Its `Debug` shows the length only, its comparison takes constant time.
#[derive(Clone, Copy)]
pub struct KeyBytes<'a>(&'a [u8]);

impl<'a> KeyBytes<'a> {
    /// No key.
    pub const NONE: KeyBytes<'static> = KeyBytes(&[]);

    /// A key for the wire; `None` if it has more than 255 bytes.
    pub fn new(key: &'a [u8]) -> Option<KeyBytes<'a>> {
        (key.len() <= usize::from(u8::MAX)).then_some(KeyBytes(key))
    }

    /// The key itself.
    pub fn expose(&self) -> &'a [u8] {
        self.0
    }

    /// True if there is no key.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl PartialEq for KeyBytes<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(other.0).into()
    }
}

impl Eq for KeyBytes<'_> {}

impl fmt::Debug for KeyBytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{format, string::ToString};

    #[test]
    fn unknown_codes_keep_their_number() {
        assert_eq!(CloseCode(200).to_string(), "close code 200");
        assert_eq!(ErrorCode(200).to_string(), "relay error 200");
        assert_eq!(RegisterStatus(200).to_string(), "registration status 200");
        assert_eq!(FoundStatus(200).to_string(), "lookup status 200");
        assert_eq!(DoneStatus(200).to_string(), "status 200");
    }

    #[test]
    fn known_codes_read_as_words() {
        let texts = (0..=5).map(|n| CloseCode(n).to_string());
        let texts = texts.chain((1..=4).map(|n| ErrorCode(n).to_string()));
        let texts = texts.chain((0..=7).map(|n| RegisterStatus(n).to_string()));
        let texts = texts.chain((0..=4).map(|n| FoundStatus(n).to_string()));
        let texts = texts.chain((0..=6).map(|n| DoneStatus(n).to_string()));
        for text in texts {
            assert!(!text.contains(|c: char| c.is_ascii_digit()), "{text:?}");
        }
    }

    #[test]
    fn keys_do_not_show() {
        let key = KeyBytes::new(b"secret").unwrap();
        assert_eq!(format!("{key:?}"), "(6 bytes)");
        assert!(key != KeyBytes::new(b"Secret").unwrap() && key != KeyBytes::NONE);
        assert!(KeyBytes::new(&[0; 256]).is_none());
    }

    #[test]
    fn relay_flags_keep_unknown_bits() {
        let flags = RelayFlags(0x82);
        assert!(flags.contains(RelayFlags::REDIRECTED) && !flags.contains(RelayFlags::CORE));
    }
}
