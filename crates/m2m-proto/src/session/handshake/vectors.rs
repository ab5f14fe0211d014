//! Our own test vectors, for those who write another implementation: docs/vectors/{handshake,rekey,short,pn}.txt.
//!
//! The test computes each file anew and compares every line. Only `M2M_WRITE_VECTORS=1 cargo test` writes them.
use std::{format, fs, string::String, vec, vec::Vec};

use super::{CookieSecret, Established, InitFields, Initiator, open_init};
use crate::{
    id::Id,
    session::{
        Secure,
        keys::{DeviceKey, DhSecret, NetKey, Role, Root, ShortHeader, Suite, SuiteSet},
        pn::Pn,
    },
    wire::{
        frame::{Frame, KeyBytes, Req},
        packet::{Caps, KeyId, Packet, PnLen, RespPayload, Token},
    },
};

/// The text of a vector file while it is computed.
struct Text(String);

impl Text {
    fn new(title: &str) -> Text {
        Text(format!("# {title}\n# One `name = hex` a line. All integers are big-endian.\n"))
    }

    fn comment(&mut self, comment: &str) {
        self.0 += &format!("\n# {comment}\n");
    }

    fn put(&mut self, name: &str, bytes: impl AsRef<[u8]>) {
        let hex: String = bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        self.0 += &format!("{name} = {hex}\n");
    }

    fn compare(&self, name: &str, published: &str) {
        if std::env::var_os("M2M_WRITE_VECTORS").is_some() {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/vectors");
            return fs::write(format!("{folder}/{name}"), &self.0).unwrap();
        }
        for (ours, published) in self.0.lines().zip(published.lines()) {
            assert_eq!(ours, published, "{name}");
        }
        assert_eq!(self.0.lines().count(), published.lines().count(), "{name}");
    }
}

/// Bytes that count up from `first`, so that a misplaced one shows.
/// The hash of the handshake that goes on with a session.
const LATER_HASH: [u8; 32] = [0x68; 32];

fn counting<const N: usize>(first: u8) -> [u8; N] {
    core::array::from_fn(|at| first.wrapping_add(at as u8))
}

const NET_KEY: &[u8] = b"sixteen bytes...";
const A: Id = Id([0xA1; 16]);
const B: Id = Id([0xB2; 16]);

fn resp_fields(suite: Suite) -> RespPayload {
    let ctoken = Token::new(0xC0C1_C2C3).unwrap();
    RespPayload { ctoken, suite, caps: Caps(0), max_udp: 1200, mem_s: 86_400, unix_s: 1_800_000_000 }
}

/// One handshake to B or to nobody in particular; both sides' end.
fn handshake(text: &mut Text, prefix: &str, dst: Id) -> (Established, Established) {
    let pair = NetKey::new(NET_KEY).unwrap().pair(A, dst);
    let fields = InitFields {
        dst,
        src: A,
        stoken: Token::new(0x5051_5253).unwrap(),
        key_id: KeyId(1),
        suites: SuiteSet::of(&[Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::Aes128Ccm8]),
        caps: Caps(0),
        max_udp: 1200,
    };
    let initiator = Initiator::start(&fields, &pair, DhSecret::from_bytes(counting(0x20)));
    let Ok(Packet::Init(init)) = Packet::decode(initiator.init()) else { panic!("no INIT") };
    let opened = open_init(&init, &pair).unwrap();
    let fields = resp_fields(Suite::Aes128Gcm);
    let (bytes, responder) = opened.respond(B, DhSecret::from_bytes(counting(0x40)), &fields).unwrap();
    let Ok(Packet::Resp(resp)) = Packet::decode(&bytes) else { panic!("no RESP") };
    let established = initiator.read_resp(&resp).unwrap();

    text.put(&format!("{prefix}pair_key"), pair.as_bytes());
    text.put(&format!("{prefix}init_payload"), responder.init.encode());
    text.put(&format!("{prefix}init"), initiator.init());
    text.put(&format!("{prefix}resp_payload"), fields.encode());
    text.put(&format!("{prefix}resp"), bytes);
    text.put(&format!("{prefix}hash"), established.hash());
    text.put(&format!("{prefix}root_0"), established.root().bytes());
    let resume_tag = established.root().resume_key().tag(&LATER_HASH);
    text.put(&format!("{prefix}resume_tag_0"), resume_tag);

    if dst == B {
        let secret = CookieSecret::from_bytes(counting(0x60));
        let cookie = secret.reply("192.0.2.1:5683".parse().unwrap(), &init, B, &pair);
        let Ok(Packet::Cookie(reply)) = Packet::decode(&cookie) else { panic!("no COOKIE") };
        text.comment("The same, had B asked for a cookie from A at 192.0.2.1:5683.");
        text.put("cookie_secret", counting::<32>(0x60));
        text.put("cookie", cookie);
        text.put("init_with_cookie", initiator.init_with_cookie(&initiator.read_cookie(&reply).unwrap()));
    }
    (established, responder)
}

#[test]
fn handshake_vectors() {
    let mut text = Text::new("The handshake of m2m version 1.");
    text.comment(
        "Inputs. The net key is that of B; the ephemerals and the device secret are X25519 secrets.",
    );
    text.put("net_key", NET_KEY);
    text.put("id_a", A.0);
    text.put("id_b", B.0);
    text.put("initiator_ephemeral", counting::<32>(0x20));
    text.put("responder_ephemeral", counting::<32>(0x40));
    text.put("device_secret", counting::<32>(0x80));

    text.comment("A to B.");
    let (initiator, responder) = handshake(&mut text, "", B);

    text.comment("A to the zero id, answered by B: B's id is hashed between the messages.");
    handshake(&mut text, "any_", Id::ANY);

    text.comment(
        "PROVE in the handshake from A to B, by A as initiator and by B as responder: public key, mac.",
    );
    let device = DeviceKey::from_bytes(counting(0x80));
    for (name, side) in [("initiator", &initiator), ("responder", &responder)] {
        let proof = device.prove(&side.peer_ephemeral, side.hash(), side.role).unwrap();
        text.put(&format!("prove_{name}"), [&proof.public[..], &proof.mac].concat());
    }
    let derived = DeviceKey::derived_from(&NetKey::new(NET_KEY).unwrap(), A);
    text.put("device_public_of_a_derived_from_net_key", derived.public());

    text.comment(
        "The root after one change of keys: with new secrets each way, then with a key set by hand too.",
    );
    let (ours, theirs) = (DhSecret::from_bytes(counting(0xA0)), DhSecret::from_bytes(counting(0xC0)));
    let shared = ours.agree(theirs.public()).unwrap();
    text.put("rekey_secret_a", counting::<32>(0xA0));
    text.put("rekey_secret_b", counting::<32>(0xC0));
    text.put("root_1", initiator.root().next(&shared, None).bytes());
    text.put("secret_set", b"set by hand");
    text.put("root_1_with_secret_set", initiator.root().next(&shared, Some(b"set by hand")).bytes());
    text.compare("handshake.txt", include_str!("../../../../../docs/vectors/handshake.txt"));
}

/// One frame from one side to the other.
fn say(text: &mut Text, name: &str, from: &mut Secure, to: &mut Secure, frame: &Frame<'_>) {
    let mut packet = Vec::new();
    from.begin(&mut packet);
    frame.encode(&mut packet);
    from.seal(&mut packet);
    text.put(&format!("{name}_packet"), &packet);
    let plain = to.open(&mut packet).unwrap();
    text.put(&format!("{name}_frame"), &packet[plain.clone()]);
    assert_eq!(Frame::decode(&packet[plain]).unwrap(), *frame);
}

#[test]
fn rekey_vectors() {
    let mut text =
        Text::new("A change of keys of m2m version 1, in the session of handshake.txt from A to B.");
    let (initiator, responder) = handshake(&mut Text::new(""), "", B);
    let (mut a, mut b) = (Secure::new(&initiator), Secure::new(&responder));
    let (ours, theirs) = (DhSecret::from_bytes(counting(0xA0)), DhSecret::from_bytes(counting(0xC0)));
    let set = &b"sixteen by hand."[..];
    text.put("root_0", initiator.root().bytes());
    text.put("rekey_secret_a", counting::<32>(0xA0));
    text.put("rekey_secret_b", counting::<32>(0xC0));
    text.put("secret_set", set);

    text.comment(
        "A asks, with a key set by hand; B answers. The first packets of either side, in generation 0.",
    );
    let (req, generation, ephemeral) = (Req(1), 1, ours.public());
    let key = KeyBytes::new(set).unwrap();
    say(&mut text, "rekey", &mut a, &mut b, &Frame::Rekey { req, generation, ephemeral, key });
    b.prepare(Role::Responder, &theirs.agree(ours.public()).unwrap(), Some(set));
    let rekeyed = Frame::Rekeyed { req, generation, ephemeral: theirs.public() };
    say(&mut text, "rekeyed", &mut b, &mut a, &rekeyed);
    a.switch(Role::Initiator, &ours.agree(theirs.public()).unwrap(), Some(set));

    text.comment("Generation 1, as it came of that.");
    let root = initiator.root().next(&ours.agree(theirs.public()).unwrap(), Some(set));
    text.put("root_1", root.bytes());
    for (direction, role) in [("i2r", Role::Initiator), ("r2i", Role::Responder)] {
        let [key, iv, hp] = root.packet_keys(Suite::Aes128Gcm, role).0.raw();
        text.put(&format!("{direction}_1_key"), key);
        text.put(&format!("{direction}_1_iv"), iv);
        text.put(&format!("{direction}_1_hp"), hp);
    }
    text.put("resume_tag_1", a.resume_key().tag(&LATER_HASH));

    text.comment("A sends at once, and B follows: the second packets of either side, with the key phase 1.");
    say(&mut text, "ping", &mut a, &mut b, &Frame::Ping { req: Req(2), next_s: 25 });
    let pong = Frame::Pong { req: Req(2), draining: false, observed: None };
    say(&mut text, "pong", &mut b, &mut a, &pong);
    assert_eq!((a.generation(), b.generation()), (1, 1));
    let tag = root.resume_key().tag(&LATER_HASH);
    assert_eq!([a.resume_key(), b.resume_key()].map(|key| key.tag(&LATER_HASH)), [tag; 2]);
    text.compare("rekey.txt", include_str!("../../../../../docs/vectors/rekey.txt"));
}

/// One packet, sealed and opened again.
fn short(text: &mut Text, name: &str, suite: Suite, header: ShortHeader, largest: Pn) {
    let root = Root::from_split(&counting(0), &counting(0x20));
    let (sealing, _) = root.packet_keys(suite, Role::Initiator);
    let (_, opening) = root.packet_keys(suite, Role::Responder);
    let plain = [&[0x40, 0x01, 0x12, 0x34, 0xFF][..], b"payload"].concat();
    let mut packet: Vec<u8> = vec![0; header.pn_len.header_len()];
    packet.extend_from_slice(&plain);
    packet.resize(packet.len() + suite.tag_len(), 0);
    sealing.seal_in_place(&header, &mut packet).unwrap();
    text.put(&format!("{name}_packet"), &packet);
    let (pn, range) = opening.open_in_place(&mut packet, largest).unwrap();
    assert_eq!((pn, &packet[range]), (header.pn, &plain[..]));
    text.put(&format!("{name}_pn"), pn.0.to_be_bytes());
    text.put(&format!("{name}_largest_before"), largest.0.to_be_bytes());
}

#[test]
fn short_vectors() {
    let mut text = Text::new("Short packets of m2m version 1, from initiator to responder.");
    text.comment("The root is made from these two keys of a split; all packets hold the same plaintext.");
    text.put("split_i2r", counting::<32>(0));
    text.put("split_r2i", counting::<32>(0x20));
    let root = Root::from_split(&counting(0), &counting(0x20));
    text.put("root", root.bytes());
    text.put("plaintext", [&[0x40, 0x01, 0x12, 0x34, 0xFF][..], b"payload"].concat());
    text.put("token", [0xC0, 0xC1, 0xC2, 0xC3]);

    for (name, suite) in
        [("gcm128", Suite::Aes128Gcm), ("gcm256", Suite::Aes256Gcm), ("ccm8", Suite::Aes128Ccm8)]
    {
        text.comment(&format!("Suite {}, key phase 0 with 2 bytes of number, 1 with 4.", suite.number()));
        for (direction, role) in [("i2r", Role::Initiator), ("r2i", Role::Responder)] {
            let [key, iv, hp] = root.packet_keys(suite, role).0.raw();
            text.put(&format!("{name}_{direction}_key"), key);
            text.put(&format!("{name}_{direction}_iv"), iv);
            text.put(&format!("{name}_{direction}_hp"), hp);
        }
        let token = Token::new(0xC0C1_C2C3).unwrap();
        let two = ShortHeader { key_phase: false, token, pn: Pn(0x1_0002), pn_len: PnLen::Two };
        short(&mut text, &format!("{name}_two"), suite, two, Pn(0xFFFE));
        let four = ShortHeader { key_phase: true, token, pn: Pn(0x1_0000_0003), pn_len: PnLen::Four };
        short(&mut text, &format!("{name}_four"), suite, four, Pn(0xFFFF_FFF0));
    }
    text.compare("short.txt", include_str!("../../../../../docs/vectors/short.txt"));
}

#[test]
fn pn_vectors() {
    let mut text = Text::new("Packet numbers of m2m version 1, after RFC 9000, appendices A.2 and A.3.");
    text.comment(
        "What is sent for pn when acknowledged is the highest number known to have arrived, if any is.",
    );
    let sent = [
        (0u64, None),
        (0x7FFF, None),
        (0x8000, None),
        (0x8000, Some(0u64)),
        (0x8001, Some(0)),
        (0xac_5c02, Some(0xab_e8b3)),
        (0xac_e8fe, Some(0xab_e8b3)),
    ];
    for (at, (pn, acknowledged)) in sent.into_iter().enumerate() {
        let len = Pn(pn).len_on_wire(acknowledged.map(Pn));
        text.put(&format!("send_{at}_pn"), pn.to_be_bytes());
        if let Some(acknowledged) = acknowledged {
            text.put(&format!("send_{at}_acknowledged"), acknowledged.to_be_bytes());
        }
        text.put(&format!("send_{at}_wire"), &Pn(pn).truncate(len)[..len.bytes()]);
    }
    text.comment(
        "What a receiver makes of wire when largest is the highest number that it has opened, or 0.",
    );
    let received = [
        (0x0000, PnLen::Two, 0),
        (0x7FFF, PnLen::Two, 0),
        (0x9b32, PnLen::Two, 0xa82f_30ea),
        (0x0001, PnLen::Two, 0xFFFF),
        (0xFFFF, PnLen::Two, 0x1_0001),
        (0x0000_0005, PnLen::Four, 0xFFFF_FFFF),
        (0xFFFF_FFFF, PnLen::Four, u64::MAX),
    ];
    for (at, (wire, len, largest)) in received.into_iter().enumerate() {
        let bytes: [u8; 4] = u32::to_be_bytes(wire);
        text.put(&format!("receive_{at}_wire"), &bytes[4 - len.bytes()..]);
        text.put(&format!("receive_{at}_largest"), largest.to_be_bytes());
        text.put(&format!("receive_{at}_pn"), Pn::expand(wire, len, Pn(largest)).0.to_be_bytes());
    }
    text.compare("pn.txt", include_str!("../../../../../docs/vectors/pn.txt"));
}
