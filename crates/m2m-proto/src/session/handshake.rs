//! The handshake: one round trip, Noise NNpsk0 under the pair key, after which both nets have a [`Root`].
//!
//! ```text
//! initiator                                       responder
//! Initiator::start ----------- INIT ------------> open_init: symmetric work only, a stranger gets no further
//!                  <---------- COOKIE ----------- CookieSecret::reply, only if it is pressed
//! read_cookie      ----------- INIT + cookie ---> CookieSecret::verify
//!                  <---------- RESP ------------- OpenedInit::respond: Established
//! read_resp: Established
//! ```
//! The prologue is `"m2m/1"` and INIT's header. For an INIT to [`Id::ANY`] the pair key is that of the zero id, and
//! both sides hash the responder's real id between the messages, so that the one who answered is bound as well.
pub mod cookie;
mod noise;
#[cfg(test)]
mod vectors;

use core::fmt;

pub use cookie::CookieSecret;
use noise::{Forged, Symmetric};
use subtle::ConstantTimeEq;

use crate::{
    id::Id,
    session::keys::{DhSecret, OpenKey, PairKey, Role, Root, SealKey, Suite, SuiteSet, WeakKey},
    wire::packet::{
        Caps, Cookie, CookieReply, Init, InitPayload, KeyId, PacketError, Resp, RespPayload, Token,
    },
};

/// What stands before INIT's header in the prologue.
const PROLOGUE: &[u8] = b"m2m/1";

/// What an initiator says about itself and about what it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitFields {
    /// Whom to reach; [`Id::ANY`] for whoever is at the address.
    pub dst: Id,
    /// The initiator's own id.
    pub src: Id,
    /// The token that shall label packets to the initiator.
    pub stoken: Token,
    /// Which version of the responder's net key the pair key was made from.
    pub key_id: KeyId,
    /// The suites that the initiator can use.
    pub suites: SuiteSet,
    /// What the initiator can do.
    pub caps: Caps,
    /// The largest datagram that it takes, in bytes of UDP payload.
    pub max_udp: u16,
}

/// A handshake begun, waiting for RESP. Nothing that comes in changes it, so it can wait beside forgeries.
#[derive(Clone)]
pub struct Initiator {
    init: [u8; Init::LEN],
    fields: InitFields,
    state: Symmetric,
    ephemeral: DhSecret,
    pair: PairKey,
}

impl Initiator {
    /// Begins a handshake. `pair` is PK(src→dst), `ephemeral` is new and used for nothing else.
    pub fn start(fields: &InitFields, pair: &PairKey, ephemeral: DhSecret) -> Initiator {
        let unsealed = Init {
            dst: fields.dst,
            src: fields.src,
            stoken: fields.stoken,
            key_id: fields.key_id,
            suites: fields.suites,
            ephemeral: ephemeral.public(),
            sealed: &[0; _],
            cookie: None,
        };
        let mut state = first_message(&unsealed, pair);
        let mut sealed = [0; _];
        state.seal(&offer(fields).encode(), &mut sealed);

        let mut init = [0; Init::LEN];
        Init { sealed: &sealed, ..unsealed }.encode(&mut init).expect("the array has an INIT's length");
        Initiator { init, fields: *fields, state, ephemeral, pair: pair.clone() }
    }

    /// The INIT to send, and to send again.
    pub fn init(&self) -> &[u8; Init::LEN] {
        &self.init
    }

    /// The same INIT with the cookie that the responder asked for.
    pub fn init_with_cookie(&self, cookie: &Cookie) -> [u8; Init::LEN_WITH_COOKIE] {
        let mut init = [0; Init::LEN_WITH_COOKIE];
        let (plain, appended) = init.split_at_mut(Init::LEN);
        plain.copy_from_slice(&self.init);
        appended.copy_from_slice(&cookie.0);
        Init::set_cookie_flag(&mut init);
        init
    }

    /// Checks that a COOKIE answers this INIT and comes from a holder of the pair key; gives what to append.
    pub fn read_cookie(&self, reply: &CookieReply<'_>) -> Result<Cookie, HandshakeError> {
        self.expect_answer(reply.dst, reply.src, reply.stoken)?;
        let mac = cookie::reply_mac(&self.pair, &reply.cookie, self.ephemeral.public());
        if bool::from(mac.ct_eq(reply.mac)) { Ok(reply.cookie) } else { Err(HandshakeError::Forged) }
    }

    /// Reads the answer. A forged one costs a key exchange and changes nothing: the true one may still come.
    pub fn read_resp(&self, resp: &Resp<'_>) -> Result<Established, HandshakeError> {
        self.expect_answer(resp.dst, resp.src, resp.stoken)?;
        let mut state = self.state.clone();
        if self.fields.dst == Id::ANY {
            state.mix_hash(&[&resp.src.0]);
        }
        state.second_message(resp.ephemeral, &self.ephemeral.agree(resp.ephemeral)?);
        let mut payload = [0; RespPayload::LEN];
        state.open(resp.sealed, &mut payload)?;

        let resp_payload = RespPayload::decode(&payload)?;
        if !self.fields.suites.contains(resp_payload.suite) {
            return Err(HandshakeError::Suite);
        }
        Ok(Established {
            role: Role::Initiator,
            peer: resp.src,
            stoken: self.fields.stoken,
            init: offer(&self.fields),
            resp: resp_payload,
            ephemeral: self.ephemeral.clone(),
            peer_ephemeral: *resp.ephemeral,
            secrets: Secrets::from(&state),
        })
    }

    /// An answer repeats INIT's ids, swapped, and its token. Only who listens at the address was open before.
    fn expect_answer(&self, dst: Id, src: Id, stoken: Token) -> Result<(), HandshakeError> {
        let from_whom_we_asked =
            if self.fields.dst == Id::ANY { src != Id::ANY } else { src == self.fields.dst };
        if dst == self.fields.src && from_whom_we_asked && stoken == self.fields.stoken {
            return Ok(());
        }
        Err(HandshakeError::Mismatch)
    }
}

/// An INIT that a holder of the pair key has made: whether now or long ago, it does not show.
#[derive(Clone)]
pub struct OpenedInit {
    dst: Id,
    src: Id,
    stoken: Token,
    suites: SuiteSet,
    peer_ephemeral: [u8; 32],
    payload: InitPayload,
    state: Symmetric,
}

/// Opens an INIT with PK(src→dst). This is symmetric work only, so that a stranger's costs little.
pub fn open_init(init: &Init<'_>, pair: &PairKey) -> Result<OpenedInit, HandshakeError> {
    let mut state = first_message(init, pair);
    let mut payload = [0; InitPayload::LEN];
    state.open(init.sealed, &mut payload)?;
    Ok(OpenedInit {
        dst: init.dst,
        src: init.src,
        stoken: init.stoken,
        suites: init.suites,
        peer_ephemeral: *init.ephemeral,
        payload: InitPayload::decode(&payload),
        state,
    })
}

impl OpenedInit {
    /// What the initiator can do and take.
    pub fn payload(&self) -> &InitPayload {
        &self.payload
    }

    /// The suites that the initiator can use.
    pub fn suites(&self) -> SuiteSet {
        self.suites
    }

    /// Answers: makes RESP and the session's secrets, at the cost of a key exchange.
    ///
    /// `own_id` is the id that INIT was for, or any if it was for none; `ephemeral` is new and used for nothing
    /// else; `fields.suite` is one of [`suites`](Self::suites).
    pub fn respond(
        &self,
        own_id: Id,
        ephemeral: DhSecret,
        fields: &RespPayload,
    ) -> Result<([u8; Resp::LEN], Established), HandshakeError> {
        if own_id == Id::ANY || self.dst != Id::ANY && self.dst != own_id {
            return Err(HandshakeError::Mismatch);
        }
        if !self.suites.contains(fields.suite) {
            return Err(HandshakeError::Suite);
        }
        let mut state = self.state.clone();
        if self.dst == Id::ANY {
            state.mix_hash(&[&own_id.0]);
        }
        state.second_message(ephemeral.public(), &ephemeral.agree(&self.peer_ephemeral)?);
        let mut sealed = [0; _];
        state.seal(&fields.encode(), &mut sealed);

        let mut bytes = [0; Resp::LEN];
        let public = ephemeral.public();
        Resp { dst: self.src, src: own_id, stoken: self.stoken, ephemeral: public, sealed: &sealed }
            .encode(&mut bytes)
            .expect("the array has a RESP's length");
        let established = Established {
            role: Role::Responder,
            peer: self.src,
            stoken: self.stoken,
            init: self.payload,
            resp: *fields,
            ephemeral,
            peer_ephemeral: self.peer_ephemeral,
            secrets: Secrets::from(&state),
        };
        Ok((bytes, established))
    }
}

/// A handshake done. Both sides hold the same, apart from `role`, `peer` and the ephemeral keys.
#[derive(Clone)]
pub struct Established {
    /// Which side we are.
    pub role: Role,
    /// The id of the other side, bound by the handshake.
    pub peer: Id,
    /// The token that labels packets to the initiator.
    pub stoken: Token,
    /// What INIT carried.
    pub init: InitPayload,
    /// What RESP carried: the token that labels packets to the responder, the suite, and more.
    pub resp: RespPayload,
    /// Our secret of this handshake; kept until the peer's device key is proved.
    pub ephemeral: DhSecret,
    /// The peer's public key of this handshake, which our device key is proved to.
    pub peer_ephemeral: [u8; 32],
    secrets: Secrets,
}

impl Established {
    /// The head of the session's secrets.
    pub fn root(&self) -> &Root {
        &self.secrets.root
    }

    /// The final hash, which stands for this handshake and no other.
    pub fn hash(&self) -> &[u8; 32] {
        &self.secrets.hash
    }

    /// How the session's packets are protected.
    pub fn suite(&self) -> Suite {
        self.resp.suite
    }

    /// The token that labels packets to the peer.
    pub fn peer_token(&self) -> Token {
        match self.role {
            Role::Initiator => self.resp.ctoken,
            Role::Responder => self.stoken,
        }
    }

    /// The token that labels packets to us.
    pub fn own_token(&self) -> Token {
        match self.role {
            Role::Initiator => self.stoken,
            Role::Responder => self.resp.ctoken,
        }
    }

    /// The packet keys of the first generation.
    pub fn packet_keys(&self) -> (SealKey, OpenKey) {
        self.root().packet_keys(self.suite(), self.role)
    }
}

/// What the handshake ends with.
#[derive(Clone)]
struct Secrets {
    root: Root,
    hash: [u8; 32],
}

impl From<&Symmetric> for Secrets {
    fn from(state: &Symmetric) -> Secrets {
        let (forth, back, hash) = state.split();
        Secrets { root: Root::from_split(&forth, &back), hash }
    }
}

/// Why a handshake goes no further. All but a caller's own wrong `own_id` and suite mean "count and drop".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeError {
    /// It was not made with the pair key, or not for this handshake.
    Forged,
    /// Its ids or its token are not those of the INIT it answers.
    Mismatch,
    /// Its ephemeral key has a small order.
    WeakKey,
    /// The suite is not one that the initiator offered.
    Suite,
    /// It is authentic but holds an impossible value.
    Payload,
}

impl From<Forged> for HandshakeError {
    fn from(Forged: Forged) -> HandshakeError {
        HandshakeError::Forged
    }
}

impl From<WeakKey> for HandshakeError {
    fn from(WeakKey: WeakKey) -> HandshakeError {
        HandshakeError::WeakKey
    }
}

impl From<PacketError> for HandshakeError {
    fn from(_: PacketError) -> HandshakeError {
        HandshakeError::Payload
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HandshakeError::Forged => "not made with this pair key for this handshake",
            HandshakeError::Mismatch => "the ids or the token are not those of the INIT",
            HandshakeError::WeakKey => "the ephemeral key has a small order",
            HandshakeError::Suite => "the suite was not offered",
            HandshakeError::Payload => "an authentic message with an impossible value",
        })
    }
}

impl core::error::Error for HandshakeError {}

/// The state of both sides up to INIT's payload. The cookie's flag is not in the prologue.
fn first_message(init: &Init<'_>, pair: &PairKey) -> Symmetric {
    Symmetric::first_message(&[PROLOGUE, &init.prologue()], pair.as_bytes(), init.ephemeral)
}

fn offer(fields: &InitFields) -> InitPayload {
    InitPayload { caps: fields.caps, max_udp: fields.max_udp }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        session::{
            keys::{DeviceKey, NetKey, ShortHeader},
            pn::Pn,
        },
        wire::packet::{Packet, PnLen},
    };
    use std::{net::SocketAddr, vec, vec::Vec};

    const ALL: SuiteSet = SuiteSet::of(&[Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::Aes128Ccm8]);
    const A: Id = Id([0xA; 16]);
    const B: Id = Id([0xB; 16]);

    fn pair(dst: Id) -> PairKey {
        NetKey::new(&[7; 32]).unwrap().pair(A, dst)
    }

    fn fields(dst: Id) -> InitFields {
        InitFields {
            dst,
            src: A,
            stoken: Token::new(0x0102_0304).unwrap(),
            key_id: KeyId(5),
            suites: ALL,
            caps: Caps(6),
            max_udp: 1200,
        }
    }

    fn resp_fields(suite: Suite) -> RespPayload {
        let ctoken = Token::new(0x0A0B_0C0D).unwrap();
        RespPayload { ctoken, suite, caps: Caps(1), max_udp: 1100, mem_s: 600, unix_s: 1_800_000_000 }
    }

    fn initiator(dst: Id) -> Initiator {
        Initiator::start(&fields(dst), &pair(dst), DhSecret::from_bytes([1; 32]))
    }

    fn init(bytes: &[u8]) -> Init<'_> {
        match Packet::decode(bytes) {
            Ok(Packet::Init(init)) => init,
            other => panic!("{other:?}"),
        }
    }

    fn resp(bytes: &[u8]) -> Resp<'_> {
        match Packet::decode(bytes) {
            Ok(Packet::Resp(resp)) => resp,
            other => panic!("{other:?}"),
        }
    }

    fn respond(dst: Id, bytes: &[u8], suite: Suite) -> ([u8; Resp::LEN], Established) {
        let opened = open_init(&init(bytes), &pair(dst)).unwrap();
        opened.respond(B, DhSecret::from_bytes([2; 32]), &resp_fields(suite)).unwrap()
    }

    /// Sends one packet from one side to the other.
    fn talk(from: &Established, to: &Established) {
        let header =
            ShortHeader { key_phase: false, token: from.peer_token(), pn: Pn(0), pn_len: PnLen::Two };
        let mut packet = vec![0; PnLen::Two.header_len()];
        packet.extend_from_slice(b"hello");
        packet.resize(packet.len() + from.suite().tag_len(), 0);
        from.packet_keys().0.seal_in_place(&header, &mut packet).unwrap();
        let (pn, range) = to.packet_keys().1.open_in_place(&mut packet, Pn(0)).unwrap();
        assert_eq!((pn, &packet[range]), (Pn(0), &b"hello"[..]));
        assert_eq!(from.peer_token(), to.own_token());
    }

    #[test]
    fn both_sides_end_with_the_same_secrets() {
        for dst in [B, Id::ANY] {
            for suite in [Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::Aes128Ccm8] {
                let initiator = initiator(dst);
                let (bytes, responder) = respond(dst, initiator.init(), suite);
                let initiator = initiator.read_resp(&resp(&bytes)).unwrap();
                assert_eq!(initiator.hash(), responder.hash());
                assert_eq!(
                    initiator.root().resume_key().tag(&[9; 32]),
                    responder.root().resume_key().tag(&[9; 32])
                );
                assert_eq!((initiator.peer, responder.peer), (B, A));
                assert_eq!((initiator.init, initiator.resp), (responder.init, responder.resp));
                assert_eq!(initiator.resp, resp_fields(suite));
                talk(&initiator, &responder);
                talk(&responder, &initiator);
            }
        }
    }

    #[test]
    fn every_flipped_bit_of_init_is_refused() {
        for dst in [B, Id::ANY] {
            let initiator = initiator(dst);
            for bit in 0..Init::LEN * 8 {
                let mut forged = *initiator.init();
                forged[bit / 8] ^= 1 << (bit % 8);
                let Ok(Packet::Init(init)) = Packet::decode(&forged) else { continue };
                // The responder takes the pair key from the ids that it reads.
                let key = NetKey::new(&[7; 32]).unwrap().pair(init.src, init.dst);
                assert_eq!(open_init(&init, &key).err(), Some(HandshakeError::Forged), "bit {bit}");
            }
        }
    }

    #[test]
    fn every_flipped_bit_of_resp_is_refused_and_leaves_the_initiator_waiting() {
        for dst in [B, Id::ANY] {
            let initiator = initiator(dst);
            let (bytes, _) = respond(dst, initiator.init(), Suite::Aes128Gcm);
            for bit in 0..Resp::LEN * 8 {
                let mut forged = bytes;
                forged[bit / 8] ^= 1 << (bit % 8);
                let Ok(Packet::Resp(resp)) = Packet::decode(&forged) else { continue };
                assert!(initiator.read_resp(&resp).is_err(), "bit {bit}");
            }
            assert!(initiator.read_resp(&resp(&bytes)).is_ok());
        }
    }

    #[test]
    fn an_answer_must_fit_the_question() {
        let initiator = initiator(B);
        let (bytes, _) = respond(B, initiator.init(), Suite::Aes128Gcm);
        let good = resp(&bytes);
        let mismatch = Some(HandshakeError::Mismatch);
        assert_eq!(initiator.read_resp(&Resp { src: A, ..good }).err(), mismatch);
        assert_eq!(initiator.read_resp(&Resp { dst: B, ..good }).err(), mismatch);
        assert_eq!(initiator.read_resp(&Resp { stoken: Token::new(9).unwrap(), ..good }).err(), mismatch);
        let weak = Resp { ephemeral: &[0; 32], ..good };
        assert_eq!(initiator.read_resp(&weak).err(), Some(HandshakeError::WeakKey));
    }

    #[test]
    fn a_responder_answers_only_for_itself_and_within_the_offer() {
        let narrow = InitFields { suites: SuiteSet::of(&[Suite::Aes256Gcm]), ..fields(B) };
        let initiator = Initiator::start(&narrow, &pair(B), DhSecret::from_bytes([1; 32]));
        let opened = open_init(&init(initiator.init()), &pair(B)).unwrap();
        let answer = |id, suite| opened.respond(id, DhSecret::from_bytes([2; 32]), &resp_fields(suite)).err();
        assert_eq!(answer(A, Suite::Aes256Gcm), Some(HandshakeError::Mismatch));
        assert_eq!(answer(B, Suite::Aes128Gcm), Some(HandshakeError::Suite));
        assert_eq!(answer(B, Suite::Aes256Gcm), None);
    }

    #[test]
    fn an_init_with_a_weak_key_is_refused_before_the_answer() {
        let initiator = initiator(B);
        let unsealed = Init { ephemeral: &[0; 32], ..init(initiator.init()) };
        let mut state = first_message(&unsealed, &pair(B));
        let mut sealed = [0; _];
        state.seal(&offer(&fields(B)).encode(), &mut sealed);
        let opened = open_init(&Init { sealed: &sealed, ..unsealed }, &pair(B)).unwrap();
        let answer = opened.respond(B, DhSecret::from_bytes([2; 32]), &resp_fields(Suite::Aes128Gcm));
        assert_eq!(answer.err(), Some(HandshakeError::WeakKey));
    }

    #[test]
    fn a_cookie_goes_round() {
        let from: SocketAddr = "[2001:db8::1]:5683".parse().unwrap();
        let secret = CookieSecret::from_bytes([9; 32]);
        for dst in [B, Id::ANY] {
            let initiator = initiator(dst);
            let bytes = secret.reply(from, &init(initiator.init()), B, &pair(dst));
            let Ok(Packet::Cookie(reply)) = Packet::decode(&bytes) else { panic!("no COOKIE") };
            let cookie = initiator.read_cookie(&reply).unwrap();
            let again = initiator.init_with_cookie(&cookie);
            assert!(secret.verify(from, &init(&again)));
            let (bytes, responder) = respond(dst, &again, Suite::Aes128Gcm);
            assert_eq!(initiator.read_resp(&resp(&bytes)).unwrap().hash(), responder.hash());

            let forged = CookieReply { cookie: Cookie([1; 16]), ..reply };
            assert_eq!(initiator.read_cookie(&forged), Err(HandshakeError::Forged));
            let other = CookieReply { stoken: Token::new(9).unwrap(), ..reply };
            assert_eq!(initiator.read_cookie(&other), Err(HandshakeError::Mismatch));
        }
    }

    #[test]
    fn the_device_is_proved_both_ways() {
        let initiator = initiator(B);
        let (bytes, responder) = respond(B, initiator.init(), Suite::Aes128Gcm);
        let initiator = initiator.read_resp(&resp(&bytes)).unwrap();
        for (prover, verifier) in [(&initiator, &responder), (&responder, &initiator)] {
            let device = DeviceKey::from_bytes([3; 32]);
            let proof = device.prove(&prover.peer_ephemeral, prover.hash(), prover.role).unwrap();
            assert_eq!(proof.verify(&verifier.ephemeral, verifier.hash(), prover.role), Ok(()));
            assert!(proof.verify(&verifier.ephemeral, verifier.hash(), verifier.role).is_err());
        }
    }

    /// What snow needs to be the other side: the same prologue and PSK.
    fn snow(
        init_header: &[u8],
        psk: &[u8; 32],
        ephemeral: &[u8; 32],
        initiator: bool,
    ) -> snow::HandshakeState {
        let builder = snow::Builder::new("Noise_NNpsk0_25519_AESGCM_SHA256".parse().unwrap());
        let prologue = [b"m2m/1", &init_header[..Init::PROLOGUE_LEN]].concat();
        let builder = builder.prologue(&prologue).unwrap().psk(0, psk).unwrap();
        let builder = builder.fixed_ephemeral_key_for_testing_only(ephemeral);
        if initiator { builder.build_initiator().unwrap() } else { builder.build_responder().unwrap() }
    }

    #[test]
    fn snow_understands_us_in_both_roles() {
        for seed in 0..20u8 {
            let key = NetKey::new(&[seed; 32]).unwrap().pair(A, B);
            let [ours, theirs] = [[seed; 32], [seed ^ 0xFF; 32]];

            let initiator = Initiator::start(&fields(B), &key, DhSecret::from_bytes(ours));
            let mut peer = snow(initiator.init(), key.as_bytes(), &theirs, false);
            let mut text = [0; 64];
            assert_eq!(peer.read_message(&initiator.init()[44..], &mut text).unwrap(), InitPayload::LEN);
            assert_eq!(text[..12], offer(&fields(B)).encode());
            let mut message = [0; 128];
            let len = peer.write_message(&resp_fields(Suite::Aes128Gcm).encode(), &mut message).unwrap();
            let header = Resp {
                dst: A,
                src: B,
                stoken: fields(B).stoken,
                ephemeral: message[..32].try_into().unwrap(),
                sealed: message[32..len].try_into().unwrap(),
            };
            assert_eq!(initiator.read_resp(&header).unwrap().hash()[..], *peer.get_handshake_hash());

            let mut peer = snow(initiator.init(), key.as_bytes(), &ours, true);
            let len = peer.write_message(&offer(&fields(B)).encode(), &mut message).unwrap();
            let mut bytes: Vec<u8> = initiator.init()[..44].to_vec();
            bytes.extend_from_slice(&message[..len]);
            assert_eq!(bytes, initiator.init(), "same keys, same INIT");
            let opened = open_init(&init(&bytes), &key).unwrap();
            let (bytes, responder) =
                opened.respond(B, DhSecret::from_bytes(theirs), &resp_fields(Suite::Aes128Gcm)).unwrap();
            assert_eq!(peer.read_message(&bytes[40..], &mut text).unwrap(), RespPayload::LEN);
            assert_eq!(*peer.get_handshake_hash(), responder.hash()[..]);
            let (forth, back) = peer.dangerously_get_raw_split();
            assert_eq!(
                Root::from_split(&forth, &back).resume_key().tag(&[9; 32]),
                responder.root().resume_key().tag(&[9; 32])
            );
        }
    }
}
