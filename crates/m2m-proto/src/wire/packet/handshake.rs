//! The three packets of a handshake: INIT, RESP, and COOKIE between them; and what the first two carry sealed.
use super::{PacketError, Token, expect_len, expect_zero, kind};
use crate::{
    id::Id,
    wire::cursor::{BufferFull, Reader, Writer},
};

/// Profile 1, the only one: Noise NNpsk0 with the pair key.
const PROFILE_NNPSK0: u8 = 1;
/// Flag in INIT: a cookie is appended.
const FLAG_COOKIE: u8 = 1;
/// Bytes of the common part: kind, flags, profile, reserved, destination, source.
const HEADER_LEN: usize = 36;

// ---- INIT --------------------------------------------------------------------------------------------------------
//
//   0       1       2       3       4                20               36      40     42     43
//   +-------+-------+-------+-------+-- // ----------+-- // ----------+-------+------+------+------+
//   | 0x91  | flags |profile|   0   | destination 16 |   source 16    |stoken |key_id|suites|   0  |
//   +-------+-------+-------+-------+-- // ----------+-- // ----------+-------+------+------+------+
//   44                             76                                104
//   +-- // ------------------------+-- // ---------------------------+-- // -----------------------+
//   |  ephemeral public key 32     |  sealed payload 12 + tag 16     |  [cookie 16 if flag bit 0]  |
//   +-- // ------------------------+-- // ---------------------------+-- // -----------------------+

/// The first message of a handshake. Its ids, token, key and suites are in the clear but bound to the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Init<'a> {
    /// Whom it is for; [`Id::ANY`] for whoever listens at this address.
    pub dst: Id,
    /// Who it claims to be from.
    pub src: Id,
    /// The token that labels packets to the initiator.
    pub stoken: Token,
    /// Which version of the responder's net key was used.
    pub key_id: KeyId,
    /// The suites that the initiator can use.
    pub suites: SuiteSet,
    /// The initiator's ephemeral X25519 public key.
    pub ephemeral: &'a [u8; 32],
    /// The sealed [`InitPayload`].
    pub sealed: &'a [u8; InitPayload::LEN + 16],
    /// The cookie that the responder asked for, outside of what the handshake binds.
    pub cookie: Option<Cookie>,
}

impl<'a> Init<'a> {
    /// Bytes of an INIT without cookie.
    pub const LEN: usize = 104;
    /// Bytes of an INIT with cookie.
    pub const LEN_WITH_COOKIE: usize = Self::LEN + Cookie::LEN;
    /// Bytes of the header, which the handshake binds as its prologue.
    pub const PROLOGUE_LEN: usize = 44;

    pub(super) fn decode(datagram: &'a [u8]) -> Result<Init<'a>, PacketError> {
        let mut r = Reader::new(datagram);
        let header = Header::decode(&mut r)?;
        if header.flags & !FLAG_COOKIE != 0 {
            return Err(PacketError::Reserved);
        }
        let with_cookie = header.flags & FLAG_COOKIE != 0;
        expect_len(datagram, if with_cookie { Self::LEN_WITH_COOKIE } else { Self::LEN })?;
        let stoken = Token::decode(r.u32()?)?;
        let key_id = KeyId(r.u16()?);
        let suites = SuiteSet(r.u8()?);
        expect_zero(r.bytes(1)?)?;
        let ephemeral = r.array()?;
        let sealed = r.array()?;
        let cookie = if with_cookie { Some(Cookie(*r.array()?)) } else { None };
        Ok(Init { dst: header.dst, src: header.src, stoken, key_id, suites, ephemeral, sealed, cookie })
    }

    /// Writes the packet and returns its length.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, BufferFull> {
        let mut w = Writer::new(out);
        self.encode_header(if self.cookie.is_some() { FLAG_COOKIE } else { 0 }, &mut w);
        w.bytes(self.ephemeral).bytes(self.sealed);
        if let Some(cookie) = &self.cookie {
            w.bytes(&cookie.0);
        }
        w.finish()
    }

    /// The header as the handshake binds it: with the cookie's flag cleared, because the cookie comes later.
    pub fn prologue(&self) -> [u8; Init::PROLOGUE_LEN] {
        let mut bytes = [0; Init::PROLOGUE_LEN];
        self.encode_header(0, &mut Writer::new(&mut bytes));
        bytes
    }

    /// Turns the bytes of an INIT into those of one with cookie, once the cookie is appended.
    pub fn set_cookie_flag(bytes: &mut [u8; Init::LEN_WITH_COOKIE]) {
        bytes[1] |= FLAG_COOKIE;
    }

    fn encode_header(&self, flags: u8, w: &mut Writer<'_>) {
        Header { flags, dst: self.dst, src: self.src }.encode(kind::INIT, w);
        w.u32(self.stoken.value()).u16(self.key_id.0).u8(self.suites.0).u8(0);
    }
}

/// What INIT carries sealed: `caps 1 | 0 | max_udp 2 | 0 x 8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitPayload {
    /// What the initiator can do.
    pub caps: Caps,
    /// The largest datagram that the initiator takes, in bytes of UDP payload.
    pub max_udp: u16,
}

impl InitPayload {
    /// Bytes before sealing.
    pub const LEN: usize = 12;

    /// Decodes the opened payload. Reserved bytes are ignored: they are authentic, so a later version may use them.
    pub fn decode(bytes: &[u8; Self::LEN]) -> InitPayload {
        let [caps, _, high, low, ..] = *bytes;
        InitPayload { caps: Caps(caps), max_udp: u16::from_be_bytes([high, low]) }
    }

    /// Encodes the payload for sealing.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        Writer::new(&mut bytes).u8(self.caps.0).u8(0).u16(self.max_udp);
        bytes
    }
}

// ---- RESP --------------------------------------------------------------------------------------------------------
//
//   0       1       2       3       4                20               36      40
//   +-------+-------+-------+-------+-- // ----------+-- // ----------+-------+
//   | 0x92  |   0   |profile|   0   | destination 16 |   source 16    |stoken |
//   +-------+-------+-------+-------+-- // ----------+-- // ----------+-------+
//   40                             72                                104
//   +-- // ------------------------+-- // ---------------------------+
//   |  ephemeral public key 32     |  sealed payload 16 + tag 16     |
//   +-- // ------------------------+-- // ---------------------------+

/// The second and last message of a handshake. Its header repeats INIT's fields, ids swapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resp<'a> {
    /// The initiator.
    pub dst: Id,
    /// The responder.
    pub src: Id,
    /// INIT's stoken.
    pub stoken: Token,
    /// The responder's ephemeral X25519 public key.
    pub ephemeral: &'a [u8; 32],
    /// The sealed [`RespPayload`].
    pub sealed: &'a [u8; RespPayload::LEN + 16],
}

impl<'a> Resp<'a> {
    /// Bytes of a RESP: never more than an INIT, so that it amplifies nothing.
    pub const LEN: usize = 104;

    pub(super) fn decode(datagram: &'a [u8]) -> Result<Resp<'a>, PacketError> {
        let mut r = Reader::new(datagram);
        let header = Header::decode(&mut r)?;
        expect_zero(&[header.flags])?;
        expect_len(datagram, Self::LEN)?;
        let stoken = Token::decode(r.u32()?)?;
        Ok(Resp { dst: header.dst, src: header.src, stoken, ephemeral: r.array()?, sealed: r.array()? })
    }

    /// Writes the packet and returns its length.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, BufferFull> {
        let mut w = Writer::new(out);
        Header { flags: 0, dst: self.dst, src: self.src }.encode(kind::RESP, &mut w);
        w.u32(self.stoken.value()).bytes(self.ephemeral).bytes(self.sealed).finish()
    }
}

/// What RESP carries sealed: `ctoken 4 | suite 1 | caps 1 | max_udp 2 | mem 4 | unix 4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RespPayload {
    /// The token that labels packets to the responder.
    pub ctoken: Token,
    /// The suite that protects the session, one of those offered.
    pub suite: Suite,
    /// What the responder can do.
    pub caps: Caps,
    /// The largest datagram that the responder takes, in bytes of UDP payload.
    pub max_udp: u16,
    /// For how many seconds back the responder remembers the requests that it has run.
    pub mem_s: u32,
    /// The responder's clock in seconds since 1970, or 0 if it has none.
    pub unix_s: u32,
}

impl RespPayload {
    /// Bytes before sealing.
    pub const LEN: usize = 16;

    /// Decodes the opened payload.
    ///
    /// Refuses a zero token and a suite of unknown number.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<RespPayload, PacketError> {
        let mut r = Reader::new(bytes);
        let ctoken = Token::decode(r.u32()?)?;
        let suite = Suite::from_number(r.u8()?).ok_or(PacketError::Reserved)?;
        let caps = Caps(r.u8()?);
        Ok(RespPayload { ctoken, suite, caps, max_udp: r.u16()?, mem_s: r.u32()?, unix_s: r.u32()? })
    }

    /// Encodes the payload for sealing.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let mut w = Writer::new(&mut bytes);
        w.u32(self.ctoken.value()).u8(self.suite.number()).u8(self.caps.0);
        w.u16(self.max_udp).u32(self.mem_s).u32(self.unix_s);
        bytes
    }
}

// ---- COOKIE ------------------------------------------------------------------------------------------------------
//
//   0       1       2       3       4                20               36      40           56          72
//   +-------+-------+-------+-------+-- // ----------+-- // ----------+-------+-- // ------+-- // -----+
//   | 0x93  |   0   |profile|   0   | destination 16 |   source 16    |stoken | cookie 16  |  mac 16   |
//   +-------+-------+-------+-------+-- // ----------+-- // ----------+-------+-- // ------+-- // -----+

/// A responder's demand to show that INIT's address is real, by sending it again with this cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CookieReply<'a> {
    /// The initiator.
    pub dst: Id,
    /// The responder.
    pub src: Id,
    /// INIT's stoken.
    pub stoken: Token,
    /// What to append to INIT.
    pub cookie: Cookie,
    /// Shows that the cookie comes from one who holds the pair key and saw this INIT.
    pub mac: &'a [u8; 16],
}

impl<'a> CookieReply<'a> {
    /// Bytes of a COOKIE.
    pub const LEN: usize = 72;

    pub(super) fn decode(datagram: &'a [u8]) -> Result<CookieReply<'a>, PacketError> {
        let mut r = Reader::new(datagram);
        let header = Header::decode(&mut r)?;
        expect_zero(&[header.flags])?;
        expect_len(datagram, Self::LEN)?;
        let stoken = Token::decode(r.u32()?)?;
        let cookie = Cookie(*r.array()?);
        Ok(CookieReply { dst: header.dst, src: header.src, stoken, cookie, mac: r.array()? })
    }

    /// Writes the packet and returns its length.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, BufferFull> {
        let mut w = Writer::new(out);
        Header { flags: 0, dst: self.dst, src: self.src }.encode(kind::COOKIE, &mut w);
        w.u32(self.stoken.value()).bytes(&self.cookie.0).bytes(self.mac).finish()
    }
}

/// The first 36 bytes of all three. Their kind was matched before.
struct Header {
    flags: u8,
    dst: Id,
    src: Id,
}

impl Header {
    fn decode(r: &mut Reader<'_>) -> Result<Header, PacketError> {
        let [_kind, flags, profile, reserved] = *r.array()?;
        if profile != PROFILE_NNPSK0 {
            return Err(PacketError::Profile(profile));
        }
        expect_zero(&[reserved])?;
        Ok(Header { flags, dst: r.id()?, src: r.id()? })
    }

    fn encode(&self, kind: u8, w: &mut Writer<'_>) {
        w.bytes(&[kind, self.flags, PROFILE_NNPSK0, 0]).id(&self.dst).id(&self.src);
        debug_assert!(w.finish().is_err() || w.written() == HEADER_LEN);
    }
}

/// The version of a net key, so that its owner can keep the one before for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct KeyId(pub u16);

/// Capabilities, a bit each. None is defined here; unknown bits are kept and ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Caps(pub u8);

/// What a responder hands out instead of memory: sixteen bytes that only it can make again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie(pub [u8; Cookie::LEN]);

impl Cookie {
    /// Bytes of a cookie.
    pub const LEN: usize = 16;
}

/// How the packets of a session are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Suite {
    /// AES-128-GCM (RFC 5116), 16-byte tag: the default, which every net has.
    Aes128Gcm = 1,
    /// AES-256-GCM (RFC 5116), 16-byte tag.
    Aes256Gcm = 2,
    /// AES-128-CCM (RFC 6655) with an 8-byte tag, for tiny radio frames; packet numbers stay unmasked.
    Aes128Ccm8 = 4,
}

impl Suite {
    /// The suite of this number on the wire.
    pub const fn from_number(number: u8) -> Option<Suite> {
        match number {
            1 => Some(Suite::Aes128Gcm),
            2 => Some(Suite::Aes256Gcm),
            4 => Some(Suite::Aes128Ccm8),
            _ => None,
        }
    }

    /// Its number on the wire.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Bytes of the tag that ends each packet.
    pub const fn tag_len(self) -> usize {
        match self {
            Suite::Aes128Gcm | Suite::Aes256Gcm => 16,
            Suite::Aes128Ccm8 => 8,
        }
    }
}

/// A set of suites; bit n-1 stands for suite n. Bits of unknown suites are kept, because the handshake binds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct SuiteSet(pub u8);

impl SuiteSet {
    /// The set of these suites.
    pub const fn of(suites: &[Suite]) -> SuiteSet {
        let mut bits = 0;
        let mut rest = suites;
        while let [first, tail @ ..] = rest {
            bits |= 1 << (first.number() - 1);
            rest = tail;
        }
        SuiteSet(bits)
    }

    /// Whether the set has this suite.
    pub const fn contains(self, suite: Suite) -> bool {
        self.0 & 1 << (suite.number() - 1) != 0
    }

    /// The first of `preferred` that the set has.
    pub fn choose(self, preferred: &[Suite]) -> Option<Suite> {
        preferred.iter().copied().find(|suite| self.contains(*suite))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Packet, *};
    use proptest::prelude::*;
    use std::{format, string::String, vec::Vec};

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn token(value: u32) -> Token {
        Token::new(value).unwrap()
    }

    const INIT: Init<'_> = Init {
        dst: Id([0xD1; 16]),
        src: Id([0x51; 16]),
        stoken: Token::new(0x0102_0304).unwrap(),
        key_id: KeyId(0x0506),
        suites: SuiteSet::of(&[Suite::Aes128Gcm, Suite::Aes128Ccm8]),
        ephemeral: &[0xEE; 32],
        sealed: &[0xAE; 28],
        cookie: Some(Cookie([0xC0; 16])),
    };
    const RESP: Resp<'_> = Resp {
        dst: INIT.src,
        src: INIT.dst,
        stoken: INIT.stoken,
        ephemeral: &[0xEE; 32],
        sealed: &[0xAE; 32],
    };
    const COOKIE: CookieReply<'_> = CookieReply {
        dst: INIT.src,
        src: INIT.dst,
        stoken: INIT.stoken,
        cookie: Cookie([0xC0; 16]),
        mac: &[0x3A; 16],
    };

    fn init_bytes() -> Vec<u8> {
        let mut bytes = [0; Init::LEN_WITH_COOKIE];
        assert_eq!(INIT.encode(&mut bytes), Ok(Init::LEN_WITH_COOKIE));
        bytes.to_vec()
    }

    #[test]
    fn init_looks_like_this() {
        let expected = format!(
            "91010100{}{}01020304050609{}{}{}{}",
            "d1".repeat(16),
            "51".repeat(16),
            "00",
            "ee".repeat(32),
            "ae".repeat(28),
            "c0".repeat(16)
        );
        assert_eq!(hex(&init_bytes()), expected);
        assert_eq!(Packet::decode(&init_bytes()), Ok(Packet::Init(INIT)));
        assert_eq!(INIT.prologue()[..4], [0x91, 0, 1, 0], "the handshake does not bind the cookie's flag");
        assert_eq!(INIT.prologue()[4..], init_bytes()[4..44]);
    }

    #[test]
    fn resp_looks_like_this() {
        let mut bytes = [0; Resp::LEN];
        assert_eq!(RESP.encode(&mut bytes), Ok(Resp::LEN));
        let ids = format!("{}{}", "51".repeat(16), "d1".repeat(16));
        assert_eq!(hex(&bytes), format!("92000100{ids}01020304{}{}", "ee".repeat(32), "ae".repeat(32)));
        assert_eq!(Packet::decode(&bytes), Ok(Packet::Resp(RESP)));
        assert_eq!(RESP.encode(&mut bytes[..103]), Err(BufferFull));
    }

    #[test]
    fn cookie_looks_like_this() {
        let mut bytes = [0; CookieReply::LEN];
        assert_eq!(COOKIE.encode(&mut bytes), Ok(CookieReply::LEN));
        let ids = format!("{}{}", "51".repeat(16), "d1".repeat(16));
        assert_eq!(hex(&bytes), format!("93000100{ids}01020304{}{}", "c0".repeat(16), "3a".repeat(16)));
        assert_eq!(Packet::decode(&bytes), Ok(Packet::Cookie(COOKIE)));
    }

    #[test]
    fn payloads_look_like_this() {
        let payload = InitPayload { caps: Caps(0x0C), max_udp: 1200 };
        assert_eq!(hex(&payload.encode()), "0c0004b00000000000000000");
        assert_eq!(InitPayload::decode(&payload.encode()), payload);

        let payload = RespPayload {
            ctoken: token(0xA1B2_C3D4),
            suite: Suite::Aes128Ccm8,
            caps: Caps(0x0C),
            max_udp: 1200,
            mem_s: 86_400,
            unix_s: 0x6789_ABCD,
        };
        assert_eq!(hex(&payload.encode()), "a1b2c3d4040c04b0000151806789abcd");
        assert_eq!(RespPayload::decode(&payload.encode()), Ok(payload));
        assert_eq!(RespPayload::decode(&[0; 16]), Err(PacketError::ZeroToken));
        assert_eq!(RespPayload::decode(&[3; 16]), Err(PacketError::Reserved), "there is no suite 3");
    }

    #[test]
    fn refuses_other_shapes() {
        let refusal = |at: usize, value: u8| {
            let mut bytes = init_bytes();
            bytes[at] = value;
            Packet::decode(&bytes).unwrap_err()
        };
        assert_eq!(refusal(1, 0), PacketError::Length, "a cookie without its flag");
        assert_eq!(refusal(1, 3), PacketError::Reserved);
        assert_eq!(refusal(2, 2), PacketError::Profile(2));
        assert_eq!(refusal(3, 1), PacketError::Reserved);
        assert_eq!(refusal(43, 1), PacketError::Reserved);
        let mut no_token = init_bytes();
        no_token[36..40].fill(0);
        assert_eq!(Packet::decode(&no_token), Err(PacketError::ZeroToken));
        for len in 1..Init::LEN_WITH_COOKIE {
            assert!(Packet::decode(&init_bytes()[..len]).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn sets_hold_suites() {
        let all = SuiteSet::of(&[Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::Aes128Ccm8]);
        assert_eq!(all.0, 0b1011);
        assert_eq!(all.choose(&[Suite::Aes256Gcm, Suite::Aes128Gcm]), Some(Suite::Aes256Gcm));
        assert_eq!(SuiteSet(0xF0).choose(&[Suite::Aes128Gcm]), None);
    }

    proptest! {
        #[test]
        fn init_round_trips(
            dst: [u8; 16], src: [u8; 16], stoken in 1u32.., key_id: u16, suites: u8,
            ephemeral: [u8; 32], sealed: [u8; 28], cookie: Option<[u8; 16]>,
        ) {
            let init = Init {
                dst: Id(dst), src: Id(src), stoken: token(stoken), key_id: KeyId(key_id), suites: SuiteSet(suites),
                ephemeral: &ephemeral, sealed: &sealed, cookie: cookie.map(Cookie),
            };
            let mut bytes = [0; Init::LEN_WITH_COOKIE];
            let len = init.encode(&mut bytes).unwrap();
            prop_assert_eq!(Packet::decode(&bytes[..len]), Ok(Packet::Init(init)));
        }

        #[test]
        fn what_decodes_encodes_to_the_same_bytes(flips in prop::collection::vec((0usize..120, any::<u8>()), 0..4)) {
            let mut bytes = init_bytes();
            flips.into_iter().for_each(|(at, value)| bytes[at] = value);
            if let Ok(Packet::Init(init)) = Packet::decode(&bytes) {
                let mut again = [0; Init::LEN_WITH_COOKIE];
                let len = init.encode(&mut again).unwrap();
                prop_assert_eq!(&again[..len], &bytes[..]);
            }
        }
    }
}
