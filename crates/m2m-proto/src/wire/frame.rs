//! Control frames (docs/protocol.md section 5): what a session says inside its short packets, beside CoAP.
//!
//! ```text
//! 0 1  kind           0x00..=0x3E, 0x80..=0xFF (0x3F is a bundle, 0x40..=0x7F a CoAP message)
//! 1 .. body           fields in the order of the tables in sections 5.1 and 5.2
//! ```
//!
//! A frame ends where its packet or its bundle element ends. What a body holds beyond the fields known here is
//! ignored, what is shorter is malformed.
use crate::{id::Id, wire::packet::ResetHint};
use alloc::vec::Vec;
use core::{fmt, net::SocketAddr};

mod code;
mod decode;
mod encode;
#[cfg(test)]
pub(super) mod sample;
#[cfg(test)]
pub(super) mod vectors;

pub use code::{
    CloseCode, DoneStatus, Epoch, ErrorCode, FoundStatus, KeyBytes, Label, Memory, RegisterStatus,
    RelayFlags, Req, ShortId,
};

/// The first byte of each frame (sections 5.1 and 5.2).
mod kind {
    pub(super) const PAD: u8 = 0x00;
    pub(super) const PING: u8 = 0x01;
    pub(super) const PONG: u8 = 0x02;
    pub(super) const CONFIRM: u8 = 0x03;
    pub(super) const PATH_CHALLENGE: u8 = 0x04;
    pub(super) const PATH_RESPONSE: u8 = 0x05;
    pub(super) const REKEY: u8 = 0x06;
    pub(super) const REKEYED: u8 = 0x07;
    pub(super) const PROVE: u8 = 0x08;
    pub(super) const PROVE_ASK: u8 = 0x09;
    pub(super) const NEW_TOKEN: u8 = 0x0A;
    pub(super) const DONE: u8 = 0x0B;
    pub(super) const REGISTER: u8 = 0x0C;
    pub(super) const REGISTERED: u8 = 0x0D;
    pub(super) const UNREGISTER: u8 = 0x0E;
    pub(super) const LOOKUP: u8 = 0x0F;
    pub(super) const FOUND: u8 = 0x10;
    pub(super) const RELAY: u8 = 0x11;
    pub(super) const ERROR: u8 = 0x12;
    pub(super) const LABEL_BIND: u8 = 0x13;
    pub(super) const LABEL_BOUND: u8 = 0x14;
    pub(super) const LABEL_UNBIND: u8 = 0x15;
    pub(super) const CLOSE: u8 = 0x16;
    pub(super) const MOVED: u8 = 0x17;
    pub(super) const DRAIN: u8 = 0x18;
    pub(super) const NETKEY: u8 = 0x19;
    pub(super) const UNBIND: u8 = 0x1A;
    pub(super) const RESUMED: u8 = 0x1B;
}

/// First byte of a bundle of elements, which is no frame itself (section 5).
pub(super) const BUNDLE: u8 = 0x3F;
/// First bytes of a CoAP message: version 1 in the upper two bits (RFC 7252 section 3).
pub(super) const MESSAGE: core::ops::RangeInclusive<u8> = 0x40..=0x7F;

/// Bytes that a RELAY frame puts before the packet inside it (section 10.1).
pub const RELAY_OVERHEAD: usize = 1 + 1 + 1 + 2 * Id::LEN;
/// Bytes of the smallest packet that a RELAY may hold, a RESET-HINT (section 5.2).
pub const MIN_INNER: usize = ResetHint::LEN;
/// Bytes of the longest text in a CLOSE (section 5.1).
pub const MAX_CLOSE_TEXT: usize = 64;
/// The most short ids in the path of a REGISTERED (section 5.2).
pub const MAX_PATH: usize = 8;

/// One control frame. Slices borrow from the packet; "(later)" marks what this version can read and write but
/// never acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Ignored.
    Pad,
    /// Asks for a PONG.
    Ping {
        /// Repeated by the answer.
        req: Req,
        /// The next ping comes within that many seconds; 0: never.
        next_s: u16,
    },
    /// Answers PING.
    Pong {
        /// Of the PING.
        req: Req,
        /// The peer is going down: look for another host.
        draining: bool,
        /// Where the PING came from; `None` if it came through a relay.
        observed: Option<SocketAddr>,
    },
    /// The initiator holds the session's keys.
    Confirm {
        /// For how many seconds the sender's memory of requests is complete.
        mem: u32,
        /// The resume tag of the session whose line this one takes over (section 9).
        resume: Option<[u8; 8]>,
    },
    /// Answers a CONFIRM with a resume tag.
    Resumed {
        /// What is left of the session, or of the sessions, that were named.
        memory: Memory,
        /// For how many seconds the sender's memory of requests is complete.
        mem: u32,
    },
    /// Asks whether the address that it is sent to takes packets.
    PathChallenge([u8; 8]),
    /// Echoes a challenge to where it came from.
    PathResponse([u8; 8]),
    /// Asks for the next generation of keys.
    Rekey {
        /// Repeated by the answer.
        req: Req,
        /// The generation asked for.
        generation: u32,
        /// A fresh X25519 public key.
        ephemeral: &'a [u8; 32],
        /// What the user mixes in; may be empty.
        key: KeyBytes<'a>,
    },
    /// Answers REKEY.
    Rekeyed {
        /// Of the REKEY.
        req: Req,
        /// The generation agreed to.
        generation: u32,
        /// The answering side's fresh X25519 public key.
        ephemeral: &'a [u8; 32],
    },
    /// Proves that the sender holds a device key (section 8).
    Prove {
        /// The device's X25519 public key.
        public: &'a [u8; 32],
        /// Over the handshake hash and the sender's role.
        mac: &'a [u8; 16],
    },
    /// Asks for a PROVE (later).
    ProveAsk {
        /// Repeated by the answer.
        req: Req,
    },
    /// Asks the peer to label what it sends with another token.
    NewToken {
        /// Repeated by the answer.
        req: Req,
        /// The token from now on.
        token: u32,
    },
    /// Answers NEW_TOKEN, UNREGISTER, NETKEY and LABEL_BIND.
    Done {
        /// Of the frame that it answers.
        req: Req,
        /// 0: done.
        status: u8,
    },
    /// Ends the session.
    Close {
        /// Why.
        code: CloseCode,
        /// More about it, for people; at most [`MAX_CLOSE_TEXT`] bytes, the rest does not travel.
        text: &'a str,
    },
    /// Registers the initiator of this session.
    Register {
        /// Repeated by the answer.
        req: Req,
        /// Makes no claim and needs no PROVE.
        ephemeral: bool,
        /// Of this registration.
        epoch: Epoch,
        /// Seconds asked for.
        lease_s: u32,
    },
    /// Answers REGISTER.
    Registered {
        /// Of the REGISTER.
        req: Req,
        /// Whether it stands.
        status: RegisterStatus,
        /// The registered epoch, or the one that the status speaks of.
        epoch: Epoch,
        /// Seconds granted.
        lease_s: u32,
        /// Since when the id is claimed, Unix seconds.
        since: u32,
        /// The hosts on the way, at most [`MAX_PATH`]; more do not travel.
        path: &'a [ShortId],
    },
    /// Ends a registration.
    Unregister {
        /// Repeated by the answer.
        req: Req,
        /// Of the registration.
        epoch: Epoch,
    },
    /// Asks where an id is registered.
    Lookup {
        /// Repeated by the answer.
        req: Req,
        /// The id asked for.
        id: Id,
    },
    /// Answers LOOKUP.
    Found {
        /// Of the LOOKUP.
        req: Req,
        /// Whether the id is online.
        status: FoundStatus,
        /// The id of its host.
        home: Id,
    },
    /// Carries a packet between two nets that may not be neighbours.
    Relay {
        /// Relays that it may still pass.
        hop_limit: u8,
        /// How it has travelled.
        flags: RelayFlags,
        /// To whom.
        dst: Id,
        /// From whom.
        src: Id,
        /// The packet, at least [`MIN_INNER`] bytes.
        inner: &'a [u8],
    },
    /// Says that a RELAY was dropped. A hint: it ends no session.
    Error {
        /// Why.
        code: ErrorCode,
        /// To whom the packet was going.
        dst: Id,
        /// From whom it came.
        src: Id,
        /// The last 8 bytes of the packet inside.
        packet: [u8; 8],
    },
    /// Asks for a label in place of two ids (later).
    LabelBind {
        /// Repeated by the answer.
        req: Req,
        /// The label.
        label: Label,
        /// To whom the flow goes.
        dst: Id,
        /// From whom it comes.
        src: Id,
    },
    /// Answers LABEL_BIND (later).
    LabelBound {
        /// Of the LABEL_BIND.
        req: Req,
        /// The label.
        label: Label,
    },
    /// The label is forgotten (later).
    LabelUnbind {
        /// The label.
        label: Label,
    },
    /// An id is registered at another host now (later).
    Moved {
        /// The id.
        id: Id,
        /// Its host.
        host: Id,
        /// Of the registration there.
        epoch: Epoch,
    },
    /// The host is going down (later).
    Drain {
        /// Leave within that many seconds.
        reconnect_s: u16,
        /// Try each host for that many seconds.
        try_s: u16,
        /// Ids of hosts to go to, at most 255; more do not travel.
        hosts: &'a [[u8; Id::LEN]],
    },
    /// Replaces the peer's net key (section 2).
    NetKey {
        /// Repeated by the answer.
        req: Req,
        /// The new key's version; 0 is whichever comes next.
        key_id: u16,
        /// Under the administrator's key.
        mac: &'a [u8; 16],
        /// The new key.
        key: KeyBytes<'a>,
    },
    /// The registration of an id has ended (later).
    Unbind {
        /// The id.
        id: Id,
        /// Of the registration.
        epoch: Epoch,
    },
    /// A kind of a later version, by its first byte: skipped and counted.
    Unknown(u8),
}

impl<'a> Frame<'a> {
    /// Reads one frame that fills `bytes`.
    pub fn decode(bytes: &'a [u8]) -> Result<Frame<'a>, FrameError> {
        decode::frame(bytes)
    }

    /// Appends the frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.each_part(|part| out.extend_from_slice(part));
    }

    /// How many bytes [`Frame::encode`] appends.
    pub fn encoded_len(&self) -> usize {
        let mut len = 0;
        self.each_part(|part| len += part.len());
        len
    }
}

/// Why the plaintext of a packet is not what the protocol allows. The packet is dropped as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// No bytes at all.
    Empty,
    /// A field lies beyond the end.
    Truncated,
    /// A field holds what it must not: an unknown address family, too many ids in a path, text that is not UTF-8.
    Value,
    /// A CoAP message stands where a frame must.
    NotAFrame,
    /// A bundle inside a bundle.
    Nested,
    /// A bundle of no or of more than 64 elements.
    Count,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FrameError::Empty => "the packet or an element of it is empty",
            FrameError::Truncated => "a frame or an element is shorter than its fields",
            FrameError::Value => "a frame holds a value that it must not",
            FrameError::NotAFrame => "a message stands where a frame must",
            FrameError::Nested => "a bundle inside a bundle",
            FrameError::Count => "a bundle holds 1 to 64 elements",
        })
    }
}

impl core::error::Error for FrameError {}

#[cfg(test)]
mod tests {
    use super::{sample::material, *};
    use alloc::{format, string::String, vec};
    use proptest::{collection::vec as bytes, prelude::*};

    const ONE: Id = Id([1; 16]);
    const TWO: Id = Id([2; 16]);
    const INNER: [u8; 24] = [0x41; 24];

    fn encoded(frame: &Frame<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        frame.encode(&mut out);
        out
    }

    #[test]
    fn relay_adds_35_bytes() {
        assert_eq!(RELAY_OVERHEAD, 35);
        let relay = Frame::Relay { hop_limit: 16, flags: RelayFlags(0), dst: TWO, src: ONE, inner: &INNER };
        assert_eq!(relay.encoded_len(), RELAY_OVERHEAD + INNER.len());
    }

    #[test]
    fn kinds_of_later_versions_are_kept_by_number() {
        for kind in (0x1C..=0x3E).chain(0x80..=0xFF) {
            assert_eq!(Frame::decode(&[kind, 1, 2]), Ok(Frame::Unknown(kind)));
        }
    }

    #[test]
    fn bundles_and_messages_are_no_frames() {
        assert_eq!(Frame::decode(&[]), Err(FrameError::Empty));
        assert_eq!(Frame::decode(&[0x3F, 1, 0]), Err(FrameError::Nested));
        for first in 0x40..=0x7F {
            assert_eq!(Frame::decode(&[first, 1, 0, 0]), Err(FrameError::NotAFrame));
        }
    }

    #[test]
    fn close_text_is_cut_between_characters() {
        let long: String = "a".repeat(63) + "\u{e9}\u{e9}";
        let close = Frame::Close { code: CloseCode::DONE, text: &long };
        let sent = encoded(&close);
        assert_eq!(sent.len(), 2 + 63);
        assert_eq!(close.encoded_len(), sent.len());

        // A peer that sends more than it may is read up to the limit.
        let mut received = vec![kind::CLOSE, 0];
        received.extend_from_slice(long.as_bytes());
        let text = &long[..63];
        assert_eq!(Frame::decode(&received), Ok(Frame::Close { code: CloseCode::DONE, text }));
    }

    #[test]
    fn close_text_must_be_utf8() {
        let decode = |text: &[u8]| Frame::decode(&[&[kind::CLOSE, 0], text].concat()).map(|_| ());
        assert_eq!(decode(&[0xC3, 0x28]), Err(FrameError::Value));
        // Half a character at the end of a text that was not cut.
        assert_eq!(decode(&[b'a', 0xC3]), Err(FrameError::Value));
        assert_eq!(decode(&[[0xFF; 1].as_slice(), &[b'a'; 80]].concat()), Err(FrameError::Value));
    }

    #[test]
    fn lists_that_are_too_long_are_cut() {
        let path = [[7; 4]; 9];
        let (req, status, epoch) = (Req(1), RegisterStatus::OK, Epoch(1));
        let sent = encoded(&Frame::Registered { req, status, epoch, lease_s: 1, since: 0, path: &path });
        let Ok(Frame::Registered { path: read, .. }) = Frame::decode(&sent) else { panic!("{sent:?}") };
        assert_eq!(read, &path[..8]);
        let sent = encoded(&Frame::Drain { reconnect_s: 1, try_s: 1, hosts: &[[7; 16]; 300] });
        let Ok(Frame::Drain { hosts, .. }) = Frame::decode(&sent) else { panic!("drain") };
        assert_eq!(hosts.len(), 255);
    }

    #[test]
    fn relay_without_a_whole_packet_is_malformed() {
        let relay =
            |inner| encoded(&Frame::Relay { hop_limit: 1, flags: RelayFlags(0), dst: ONE, src: TWO, inner });
        assert_eq!(Frame::decode(&relay(&[0x43; MIN_INNER - 1])), Err(FrameError::Truncated));
        assert!(Frame::decode(&relay(&[0x43; MIN_INNER])).is_ok());
    }

    #[test]
    fn keys_do_not_show_in_debug() {
        let key = KeyBytes::new(&[0xAB; 16]).unwrap();
        let text = format!("{:?}", Frame::NetKey { req: Req(1), key_id: 1, mac: &[0; 16], key });
        assert!(text.contains("(16 bytes)") && !text.contains("171"), "{text}");
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(material in material()) {
            let frame = material.frame();
            let bytes = encoded(&frame);
            prop_assert_eq!(bytes.len(), frame.encoded_len());
            prop_assert_eq!(bytes[0], frame.kind());
            prop_assert_eq!(Frame::decode(&bytes), Ok(frame));
        }

        #[test]
        fn more_than_this_version_knows_is_ignored(material in material(), more in bytes(any::<u8>(), 1..40)) {
            let frame = material.frame();
            // The two whose last field runs to the end have no beyond.
            prop_assume!(!matches!(frame, Frame::Relay { .. } | Frame::Close { .. }));
            let longer = [encoded(&frame), more].concat();
            prop_assert_eq!(Frame::decode(&longer), Ok(frame));
        }

        #[test]
        fn what_is_cut_short_is_malformed(material in material(), cut in any::<prop::sample::Index>()) {
            let frame = material.frame();
            prop_assume!(!matches!(frame, Frame::Relay { .. } | Frame::Close { .. }));
            let bytes = encoded(&frame);
            prop_assume!(bytes.len() > 1);
            let cut = 1 + cut.index(bytes.len() - 1);
            prop_assert_eq!(Frame::decode(&bytes[..cut]), Err(FrameError::Truncated));
        }

        #[test]
        fn flipped_bits_never_panic(material in material(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let mut bytes = encoded(&material.frame());
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            // What still decodes must be written back no longer than it was.
            if let Ok(frame) = Frame::decode(&bytes) {
                prop_assert!(encoded(&frame).len() <= bytes.len());
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in bytes(any::<u8>(), 0..1300)) {
            if let Ok(frame) = Frame::decode(&bytes) {
                let again = encoded(&frame);
                prop_assert_eq!(Frame::decode(&again), Ok(frame));
            }
        }
    }
}
