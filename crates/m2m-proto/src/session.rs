//! Keys: the handshake, what protects a packet, what refuses a replay. [`Secure`] holds them together for one session.
pub mod handshake;
pub mod keys;
pub mod pn;
pub mod replay;
mod warm;

use alloc::{boxed::Box, vec::Vec};
use core::ops::Range;

use handshake::Established;
pub use keys::OpenError;
use keys::{DhShared, OpenKey, ResumeKey, Role, Root, SealKey, ShortHeader, Suite};
use pn::Pn;
use replay::{Verdict, Window};
use subtle::ConstantTimeEq;
pub use warm::Ciphers;

use crate::{
    time::{Duration, Time},
    wire::packet::{PnLen, Token},
};

/// Bytes that a short packet adds to its plaintext with the usual two-byte packet number and a 16-byte tag.
pub const SHORT_OVERHEAD: usize = 1 + 4 + 2 + 16;
/// The same with a four-byte packet number: what sizes are computed with, so that they never change in mid-session.
pub const MAX_SHORT_OVERHEAD: usize = SHORT_OVERHEAD + 2;
/// So many packets one key protects; then the session ends (protocol, section 4.2; RFC 9001, 6.6 allows 2^23).
pub const KEY_LIMIT: u64 = 1 << 23;
/// A change of keys is asked for no sooner than after so many packets: the change itself takes a few.
const MIN_REKEY_PACKETS: u64 = 32;
/// And no sooner than after this time.
const MIN_REKEY_INTERVAL: Duration = Duration::from_secs(1);

/// The bit of a short packet's first byte that tells the generation of keys.
const KEY_PHASE: u8 = 0b0010_0000;

/// How much one generation of a suite's keys may be used (protocol, section 4.2).
struct KeyLimits {
    /// Packets sealed, before new keys are asked for, and at most.
    sealed: (u64, u64),
    /// Packets that did not open, likewise.
    failed: (u32, u32),
}

impl KeyLimits {
    const fn of(suite: Suite) -> KeyLimits {
        match suite {
            // RFC 9147, 4.5.3 allows 2^36 forgeries; fewer fit the counter.
            Suite::Aes128Gcm | Suite::Aes256Gcm => {
                KeyLimits { sealed: (1 << 22, KEY_LIMIT), failed: (1 << 31, u32::MAX) }
            }
            // RFC 9001, B.2: 2^21.5 packets. A tag of 8 bytes is guessed once in 2^64: few tries are allowed.
            Suite::Aes128Ccm8 => KeyLimits { sealed: (1 << 20, 1 << 21), failed: (1 << 7, 1 << 13) },
        }
    }
}

/// What protects the packets of one session. Keys are kept raw and expanded at use, so that an idle session is small.
///
/// Keys change by generations, whose lowest bit travels in each packet (protocol, section 4.2):
///
/// ```text
///  who asks:     n ──────── switch ──────────> n+1, opens n too ── drop_previous ──> n+1
///  who answers:  n ── prepare ──> n, opens n+1 too ── a packet of n+1 ──> n+1, opens n too ── drop_previous ──> n+1
/// ```
pub struct Secure {
    root: Root,
    seal: SealKey,
    open: OpenKey,
    peer_token: Token,
    generation: u32,
    /// Packets that did not open in this generation.
    failed: u32,
    /// Another generation whose packets open.
    other: Option<Box<Other>>,
    /// The number of the next packet to send; never used twice, whatever the keys.
    next_pn: Pn,
    /// Packets sealed in this generation: never more than [`KEY_LIMIT`] and a few.
    sealed: u32,
    /// When the first of them was, in whole seconds and one more; 0 before.
    since_s: u32,
    /// One more than the highest of our numbers that an answer came to; 0 before the first.
    answered: u64,
    window: Window,
    /// How far behind the newest the packet is that was opened last: less than [`Window::LEN`].
    opened_behind: u8,
    /// The number of the packet that named the peer's token.
    named_in: Pn,
    /// Round keys of this generation, while the session is busy.
    ciphers: Option<Box<Ciphers>>,
}

/// The other generation beside the one that packets are sealed in.
enum Other {
    /// The next one: agreed on, and not used by the peer yet.
    Next(Generation),
    /// The one before: what the peer sealed before it changed still opens.
    Previous {
        open: OpenKey,
        /// The peer has sealed in the present generation.
        peer_follows: bool,
        /// What it names if it opens the session anew before it has.
        resume_key: ResumeKey,
    },
}

struct Generation {
    root: Root,
    seal: SealKey,
    open: OpenKey,
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
            generation: 0,
            failed: 0,
            other: None,
            next_pn: Pn(0),
            sealed: 0,
            since_s: 0,
            answered: 0,
            window: Window::default(),
            opened_behind: 0,
            named_in: Pn(0),
            ciphers: None,
        }
    }

    /// Keeps round keys from now on, in this place, so that packets need not make them.
    pub fn warm_up(&mut self, mut place: Box<Ciphers>) {
        place.clear();
        self.ciphers = Some(place);
    }

    /// True while round keys are kept; they count as used then.
    pub fn is_warm(&mut self) -> bool {
        self.ciphers.as_deref_mut().is_some_and(Ciphers::touch)
    }

    /// True while round keys are kept.
    pub fn has_ciphers(&self) -> bool {
        self.ciphers.is_some()
    }

    /// Gives the place for round keys up, unless they were used since this was asked last.
    pub fn cool_down(&mut self, if_unused: bool) -> Option<Box<Ciphers>> {
        let was_used = self.ciphers.as_deref_mut()?.untouch();
        if was_used && if_unused { None } else { self.ciphers.take() }
    }

    /// Makes room for the header of the next packet at the end of an empty buffer; the plaintext follows, then [`Secure::seal`].
    pub fn begin(&self, buffer: &mut Vec<u8>) {
        buffer.clear();
        buffer.resize(self.pn_len().header_len(), 0);
    }

    /// Seals what [`Secure::begin`] and the caller wrote. The packet number is spent, whatever happens to the packet.
    pub fn seal(&mut self, buffer: &mut Vec<u8>) {
        let header = ShortHeader {
            key_phase: self.key_phase(),
            token: self.peer_token,
            pn: self.next_pn,
            pn_len: self.pn_len(),
        };
        buffer.resize(buffer.len() + self.seal.suite().tag_len(), 0);
        self.next_pn = Pn(self.next_pn.0 + 1);
        self.sealed = self.sealed.saturating_add(1);
        let sealed = match self.ciphers.as_deref_mut() {
            Some(ciphers) => ciphers.seal(&self.seal).seal_in_place(&header, buffer),
            None => self.seal.seal_in_place(&header, buffer),
        };
        sealed.expect("the buffer begins with a header and holds a byte of plaintext");
    }

    /// Opens a packet where it lies and says where its plaintext is. Only an authentic packet moves the replay window,
    /// or begins the next generation of keys.
    pub fn open(&mut self, packet: &mut [u8]) -> Result<Range<usize>, OpenError> {
        let phase = packet.first().is_some_and(|first| first & KEY_PHASE != 0);
        let is_current = phase == self.key_phase();
        let largest = self.window.newest().unwrap_or_default();
        let is_fresh = |pn| self.window.check(pn) == Verdict::Fresh;
        let opened = match (self.other.as_deref(), self.ciphers.as_deref_mut()) {
            (_, Some(ciphers)) if is_current => ciphers.open(&self.open).open_if(packet, largest, is_fresh),
            _ if is_current => self.open.open_if(packet, largest, is_fresh),
            (Some(Other::Next(next)), _) => next.open.open_if(packet, largest, is_fresh),
            (Some(Other::Previous { open, .. }), _) => open.open_if(packet, largest, is_fresh),
            // A generation of keys that was never agreed on, or is over.
            (None, _) => Err(OpenError::Forged),
        };
        if opened == Err(OpenError::Forged) {
            self.failed = self.failed.saturating_add(1);
        }
        let (pn, plain) = opened?;
        self.window.mark(pn);
        self.opened_behind = self.window.newest().map_or(0, |newest| (newest.0 - pn.0) as u8);
        match self.other.as_deref_mut() {
            Some(Other::Previous { peer_follows, .. }) => *peer_follows |= is_current,
            Some(Other::Next(_)) if !is_current => self.begin_next(),
            _ => {}
        }
        Ok(plain)
    }

    /// The generation of keys that packets are sealed in: 0 after the handshake.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The one after it. After the last of all numbers comes 0: only its lowest bit matters.
    pub fn next_generation(&self) -> u32 {
        self.generation.wrapping_add(1)
    }

    /// For the side that answers: the next generation's keys. The peer's first packet under them begins it. Replaces
    /// what an earlier call prepared; what was sealed in the generation before the present one opens no more.
    pub fn prepare(&mut self, role: Role, fresh: &DhShared, secret_set: Option<&[u8]>) {
        let next = self.after(role, fresh, secret_set);
        self.other = Some(Box::new(Other::Next(next)));
    }

    /// For the side that asked: the next generation begins now.
    pub fn switch(&mut self, role: Role, fresh: &DhShared, secret_set: Option<&[u8]>) {
        let next = self.after(role, fresh, secret_set);
        self.begin_generation(next, false);
    }

    /// True while a generation was prepared that the peer has not begun.
    pub fn is_prepared(&self) -> bool {
        matches!(self.other.as_deref(), Some(Other::Next(_)))
    }

    /// What is known of the peer's change to the present generation, while packets of the one before still open: whether
    /// it has followed. None at other times.
    pub fn peer_follows(&self) -> Option<bool> {
        match self.other.as_deref()? {
            Other::Previous { peer_follows, .. } => Some(*peer_follows),
            Other::Next(_) => None,
        }
    }

    /// True while packets of another generation open too.
    pub fn has_other_keys(&self) -> bool {
        self.other.is_some()
    }

    /// Packets of the generation before open no longer.
    pub fn drop_previous(&mut self) {
        if !self.is_prepared() {
            self.other = None;
        }
    }

    /// True if it is time to change keys, at a moment when a packet has left: after so many packets, so long after the
    /// first packet of this generation, or because too many failed to open.
    pub fn is_rekey_due(&mut self, now: Time, packets: u64, interval: Duration) -> bool {
        let now_s = u32::try_from(now.as_micros() / 1_000_000).unwrap_or(u32::MAX - 1) + 1;
        if self.since_s == 0 {
            self.since_s = now_s;
        }
        let age = Duration::from_secs((now_s - self.since_s.min(now_s)).into());
        let limits = KeyLimits::of(self.seal.suite());
        self.sealed() >= packets.min(limits.sealed.0).max(MIN_REKEY_PACKETS)
            || age >= interval.max(MIN_REKEY_INTERVAL)
            || self.is_under_attack()
    }

    /// True once the keys of this generation have sealed as many packets as they may, or as `most`, and `more`.
    pub fn is_spent(&self, most: u64, more: u64) -> bool {
        self.sealed() >= most.min(KeyLimits::of(self.seal.suite()).sealed.1) + more
    }

    /// True once so many packets failed to open in this generation that its keys should change.
    pub fn is_under_attack(&self) -> bool {
        self.failed >= KeyLimits::of(self.seal.suite()).failed.0
    }

    /// True once so many packets failed to open in this generation that a forgery comes within reach.
    pub fn is_beset(&self) -> bool {
        self.failed >= KeyLimits::of(self.seal.suite()).failed.1
    }

    /// From now on the peer's packets are labelled with this token, as the packet opened last says, unless a later
    /// packet has said something else.
    pub fn label_with(&mut self, token: Token) {
        let newest = self.window.newest().unwrap_or_default();
        let opened = Pn(newest.0 - u64::from(self.opened_behind));
        if opened >= self.named_in {
            self.named_in = opened;
            self.peer_token = token;
        }
    }

    /// The highest number of a packet that was opened.
    pub fn newest(&self) -> Option<Pn> {
        self.window.newest()
    }

    /// How long the next packet will be with so many bytes of plaintext.
    pub fn sealed_len(&self, plain: usize) -> usize {
        self.pn_len().header_len() + plain + self.seal.suite().tag_len()
    }

    /// An answer to our packet of this number came.
    pub fn answered(&mut self, pn: Pn) {
        // A question that is to be asked again under new keys has no number of them yet.
        if pn < self.next_pn {
            self.answered = self.answered.max(pn.0 + 1);
        }
    }

    fn highest_answered(&self) -> Option<Pn> {
        self.answered.checked_sub(1).map(Pn)
    }

    /// The number that the next packet will have.
    pub fn next_pn(&self) -> Pn {
        self.next_pn
    }

    /// How many packets have left since the last that was answered.
    pub fn unanswered(&self) -> u64 {
        self.highest_answered().map_or(self.next_pn.0, |answered| self.next_pn.0.saturating_sub(answered.0))
    }

    /// What our packets are labelled with.
    pub fn peer_token(&self) -> Token {
        self.peer_token
    }

    /// Which of the tags that a session of this handshake hash names is this one's, if it means to take this one over;
    /// compared in constant time.
    pub fn named_by(&self, tags: &[[u8; 8]], hash: &[u8; 32]) -> Option<usize> {
        let other = match self.other.as_deref() {
            // The peer may be a generation ahead of us, or behind.
            Some(Other::Next(next)) => Some(next.root.resume_key()),
            Some(Other::Previous { resume_key, .. }) => Some(resume_key.clone()),
            None => None,
        };
        let own = [Some(self.root.resume_key()), other].map(|key| key.map(|key| key.tag(hash)));
        let is_own = |tag: &[u8; 8]| own.iter().flatten().any(|own| bool::from(own.ct_eq(tag)));
        tags.iter().position(is_own)
    }

    /// What a session that takes this one over will prove itself with (protocol, section 9).
    pub fn resume_key(&self) -> ResumeKey {
        self.root.resume_key()
    }

    fn after(&self, role: Role, fresh: &DhShared, secret_set: Option<&[u8]>) -> Generation {
        let root = self.root.next(fresh, secret_set);
        let (seal, open) = root.packet_keys(self.seal.suite(), role);
        Generation { root, seal, open }
    }

    /// The peer has begun the generation that was prepared.
    fn begin_next(&mut self) {
        match self.other.take().map(|other| *other) {
            Some(Other::Next(next)) => self.begin_generation(next, true),
            other => self.other = other.map(Box::new),
        }
    }

    fn begin_generation(&mut self, next: Generation, peer_follows: bool) {
        let open = core::mem::replace(&mut self.open, next.open);
        let resume_key = self.root.resume_key();
        (self.root, self.seal) = (next.root, next.seal);
        self.other = Some(Box::new(Other::Previous { open, peer_follows, resume_key }));
        self.generation = self.next_generation();
        self.failed = 0;
        self.sealed = 0;
        self.since_s = 0;
        if let Some(ciphers) = &mut self.ciphers {
            ciphers.clear();
        }
    }

    /// Packets sealed in this generation.
    fn sealed(&self) -> u64 {
        self.sealed.into()
    }

    fn key_phase(&self) -> bool {
        self.generation & 1 != 0
    }

    fn pn_len(&self) -> PnLen {
        self.next_pn.len_on_wire(self.highest_answered())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::Id,
        session::{
            handshake::{InitFields, Initiator, open_init},
            keys::{DhSecret, NetKey, SuiteSet},
        },
        wire::packet::{Caps, KeyId, Packet, RespPayload},
    };

    const SUITE: Suite = Suite::Aes128Gcm;
    const MINUTE: Duration = Duration::from_secs(60);

    /// Both ends of one session: the initiator's, the responder's.
    fn pair(suite: Suite) -> [Secure; 2] {
        let (a, b) = (Id([1; 16]), Id([2; 16]));
        let key = NetKey::new(&[7; 16]).unwrap().pair(a, b);
        let token = Token::new(1).unwrap();
        let fields = InitFields {
            dst: b,
            src: a,
            stoken: token,
            key_id: KeyId(0),
            suites: SuiteSet::of(&[suite]),
            caps: Caps(0),
            max_udp: 1200,
        };
        let initiator = Initiator::start(&fields, &key, DhSecret::from_bytes([3; 32]));
        let Ok(Packet::Init(init)) = Packet::decode(initiator.init()) else { panic!("no INIT") };
        let fields = RespPayload { ctoken: token, suite, caps: Caps(0), max_udp: 1200, mem_s: 0, unix_s: 0 };
        let ephemeral = DhSecret::from_bytes([4; 32]);
        let (resp, responder) = open_init(&init, &key).unwrap().respond(b, ephemeral, &fields).unwrap();
        let Ok(Packet::Resp(resp)) = Packet::decode(&resp) else { panic!("no RESP") };
        [Secure::new(&initiator.read_resp(&resp).unwrap()), Secure::new(&responder)]
    }

    fn shared(n: u8) -> DhShared {
        DhSecret::from_bytes([n; 32]).agree(DhSecret::from_bytes([0x77; 32]).public()).unwrap()
    }

    fn packet(from: &mut Secure) -> Vec<u8> {
        let mut packet = Vec::new();
        from.begin(&mut packet);
        packet.push(0);
        from.seal(&mut packet);
        packet
    }

    /// A copy of a packet arrives.
    fn arrive(at: &mut Secure, packet: &[u8]) -> Result<Range<usize>, OpenError> {
        at.open(&mut packet.to_vec())
    }

    fn phase(packet: &[u8]) -> bool {
        packet[0] & KEY_PHASE != 0
    }

    /// The initiator asks, the responder answers; nothing was sent under the new keys.
    fn change([a, b]: &mut [Secure; 2], n: u8) {
        b.prepare(Role::Responder, &shared(n), None);
        a.switch(Role::Initiator, &shared(n), None);
    }

    #[test]
    fn packets_open_whatever_passes_them_by() {
        let mut pair = pair(SUITE);
        let [early_a, early_b] = pair.each_mut().map(packet);
        change(&mut pair, 1);
        let [a, b] = &mut pair;
        assert_eq!((a.generation(), b.generation()), (1, 0));
        assert_eq!((a.peer_follows(), b.peer_follows(), b.is_prepared()), (Some(false), None, true));
        let slow = packet(b);
        let first = packet(a);
        assert!(phase(&first) && !phase(&slow) && !phase(&early_a));
        // What was sealed before passes what was sealed after, both ways.
        assert!(arrive(b, &first).is_ok());
        assert_eq!((b.generation(), b.peer_follows()), (1, Some(true)));
        assert!(arrive(b, &early_a).is_ok());
        let answer = packet(b);
        assert!(phase(&answer));
        assert!(arrive(a, &early_b).is_ok());
        assert_eq!(a.peer_follows(), Some(false));
        assert!(arrive(a, &answer).is_ok());
        assert_eq!(a.peer_follows(), Some(true));
        a.drop_previous();
        assert_eq!(arrive(a, &slow), Err(OpenError::Forged), "after its time");
        assert_eq!(arrive(a, &answer), Err(OpenError::Replayed), "one window for all generations");
    }

    #[test]
    fn a_forged_packet_begins_nothing() {
        let mut pair = pair(SUITE);
        change(&mut pair, 1);
        let [a, b] = &mut pair;
        let first = packet(a);
        for at in 1..first.len() {
            let mut forged = first.clone();
            forged[at] ^= 1;
            assert!(b.open(&mut forged).is_err());
        }
        assert_eq!((b.generation(), b.is_prepared()), (0, true));
        assert!(arrive(b, &first).is_ok());
        assert_eq!(b.generation(), 1);
    }

    #[test]
    fn another_preparation_replaces_the_first() {
        let mut pair = pair(SUITE);
        let [a, b] = &mut pair;
        b.prepare(Role::Responder, &shared(1), None);
        b.prepare(Role::Responder, &shared(2), Some(b"by hand"));
        a.switch(Role::Initiator, &shared(2), Some(b"by hand"));
        assert!(b.open(&mut packet(a)).is_ok());
        assert_eq!(a.resume_key().tag(&[9; 32]), b.resume_key().tag(&[9; 32]));
    }

    #[test]
    fn generations_go_round_and_their_phase_alternates() {
        let mut pair = pair(SUITE);
        pair.iter_mut().for_each(|secure| secure.generation = u32::MAX - 2);
        let mut phases = Vec::new();
        for n in 1..6 {
            change(&mut pair, n);
            let [a, b] = &mut pair;
            let first = packet(a);
            phases.push(phase(&first));
            assert!(arrive(b, &first).is_ok());
            assert!(a.open(&mut packet(b)).is_ok());
        }
        assert_eq!(phases, [false, true, false, true, false]);
        assert_eq!((pair[0].generation(), pair[1].generation()), (2, 2));
    }

    #[test]
    fn keys_are_due_by_packets_by_time_and_by_forgeries() {
        let mut pair = pair(SUITE);
        let now = Time::from_micros(1);
        let [a, _] = &mut pair;
        assert!(!a.is_rekey_due(now, 100, MINUTE));
        assert!(a.is_rekey_due(now + MINUTE, 100, MINUTE));
        (0..100).for_each(|_| drop(packet(a)));
        assert!(a.is_rekey_due(now, 100, MINUTE) && !a.is_rekey_due(now, 101, MINUTE));
        assert!(a.is_spent(100, 0) && !a.is_spent(100, 1));
        change(&mut pair, 1);
        let [a, b] = &mut pair;
        assert!(!a.is_rekey_due(now + 9 * MINUTE, 100, MINUTE) && !a.is_spent(100, 0), "each counts anew");
        assert_eq!(a.next_pn(), Pn(100), "but for the packet number");
        (0..1000).for_each(|_| assert!(b.open(&mut [0x61; 40]).is_err()));
        assert!(!b.is_under_attack(), "GCM bears a lot");
    }

    #[test]
    fn few_forgeries_are_allowed_with_short_tags() {
        let [_, mut b] = pair(Suite::Aes128Ccm8);
        let mut forge = |count: u32| {
            (0..count).for_each(|_| assert_eq!(b.open(&mut [0x41; 40]), Err(OpenError::Forged)));
            (b.is_under_attack(), b.is_beset())
        };
        assert_eq!(forge(127), (false, false));
        assert_eq!(forge(1), (true, false));
        assert_eq!(forge(8_063), (true, false));
        assert_eq!(forge(1), (true, true));
    }

    #[test]
    fn a_session_at_rest_is_small() {
        assert!(size_of::<Secure>() <= 216, "{}", size_of::<Secure>());
    }
}
