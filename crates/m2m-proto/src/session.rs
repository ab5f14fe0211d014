//! Keys: the handshake, what protects a packet, what refuses a replay. [`Secure`] holds them together for one session.
pub mod handshake;
pub mod keys;
pub mod pn;
pub mod replay;

use alloc::vec::Vec;
use core::ops::Range;

use handshake::Established;
pub use keys::OpenError;
use keys::{OpenKey, Root, SealKey, ShortHeader};
use pn::Pn;
use replay::{Verdict, Window};
use subtle::ConstantTimeEq;

use crate::wire::packet::{PnLen, Token};

/// Bytes that a short packet adds to its plaintext with the usual two-byte packet number and a 16-byte tag.
pub const SHORT_OVERHEAD: usize = 1 + 4 + 2 + 16;
/// The same with a four-byte packet number: what sizes are computed with, so that they never change in mid-session.
pub const MAX_SHORT_OVERHEAD: usize = SHORT_OVERHEAD + 2;
/// So many packets one key protects; then the session ends (protocol, section 4.2; RFC 9001, 6.6 allows 2^23).
pub const KEY_LIMIT: u64 = 1 << 23;

/// The bit of a short packet's first byte that tells the generation of keys.
const KEY_PHASE: u8 = 0b0010_0000;

/// What protects the packets of one session. Keys are kept raw and expanded at use, so that an idle session is small.
pub struct Secure {
    root: Root,
    seal: SealKey,
    open: OpenKey,
    peer_token: Token,
    /// The number of the next packet to send; never used twice.
    next_pn: Pn,
    /// The highest of our numbers that an answer came to.
    answered: Option<Pn>,
    window: Window,
}

impl Secure {
    /// The keys that a handshake ended with.
    pub fn new(established: &Established) -> Secure {
        let (seal, open) = established.packet_keys();
        Secure {
            root: established.root().clone(),
            seal,
            open,
            peer_token: established.peer_token(),
            next_pn: Pn(0),
            answered: None,
            window: Window::default(),
        }
    }

    /// Makes room for the header of the next packet at the end of an empty buffer; the plaintext follows, then [`Secure::seal`].
    pub fn begin(&self, buffer: &mut Vec<u8>) {
        buffer.clear();
        buffer.resize(self.pn_len().header_len(), 0);
    }

    /// Seals what [`Secure::begin`] and the caller wrote. The packet number is spent, whatever happens to the packet.
    pub fn seal(&mut self, buffer: &mut Vec<u8>) {
        let header =
            ShortHeader { key_phase: false, token: self.peer_token, pn: self.next_pn, pn_len: self.pn_len() };
        buffer.resize(buffer.len() + self.seal.suite().tag_len(), 0);
        self.next_pn = Pn(self.next_pn.0 + 1);
        self.seal
            .seal_in_place(&header, buffer)
            .expect("the buffer begins with a header and holds a byte of plaintext");
    }

    /// Opens a packet where it lies and says where its plaintext is. Only an authentic packet moves the replay window.
    pub fn open(&mut self, packet: &mut [u8]) -> Result<Range<usize>, OpenError> {
        if packet.first().is_some_and(|first| first & KEY_PHASE != 0) {
            // A generation of keys that was never agreed on (protocol, section 4.2).
            return Err(OpenError::Forged);
        }
        let largest = self.window.newest().unwrap_or_default();
        let window = &self.window;
        let (pn, plain) = self.open.open_if(packet, largest, |pn| window.check(pn) == Verdict::Fresh)?;
        self.window.mark(pn);
        Ok(plain)
    }

    /// An answer to our packet of this number came.
    pub fn answered(&mut self, pn: Pn) {
        self.answered = self.answered.max(Some(pn));
    }

    /// The number that the next packet will have.
    pub fn next_pn(&self) -> Pn {
        self.next_pn
    }

    /// How many packets have left since the last that was answered.
    pub fn unanswered(&self) -> u64 {
        self.answered.map_or(self.next_pn.0, |answered| self.next_pn.0 - answered.0)
    }

    /// What our packets are labelled with.
    pub fn peer_token(&self) -> Token {
        self.peer_token
    }

    /// Whether a session that names this tag means to take this one over; compared in constant time.
    pub fn has_resume_tag(&self, tag: &[u8; 8]) -> bool {
        self.root.resume_tag().ct_eq(tag).into()
    }

    /// What a session that takes this one over will name (protocol, section 9).
    pub fn resume_tag(&self) -> [u8; 8] {
        self.root.resume_tag()
    }

    fn pn_len(&self) -> PnLen {
        self.next_pn.len_on_wire(self.answered)
    }
}
