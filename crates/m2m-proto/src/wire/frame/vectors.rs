//! docs/vectors/frames.txt: the bytes that freeze the wire, beside the frames that they are.
use super::{
    CloseCode, Epoch, ErrorCode, FoundStatus, Frame, KeyBytes, Label, Memory, RegisterStatus, RelayFlags,
    Req, kind,
};
use crate::id::Id;
use alloc::{vec, vec::Vec};
use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::collections::BTreeMap;

const VECTORS: &str = include_str!("../../../../../docs/vectors/frames.txt");

/// `name = hex` lines: spaces in the hex carry no meaning.
pub(crate) fn vectors() -> Vec<(&'static str, Vec<u8>)> {
    let lines = VECTORS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split_once('=').unwrap()).map(|(name, hex)| (name.trim(), from_hex(hex))).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter(|c| *c != ' ').map(|c| c.to_digit(16).unwrap() as u8).collect();
    assert!(digits.len().is_multiple_of(2), "{text}");
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

const ONE: Id = Id([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
const TWO: Id = Id([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
const THREE: Id = Id([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
const DATA: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];
const EPOCH: Epoch = Epoch(0x0199_7A1B_2C3D);
const MAC: [u8; 16] = *b"\x90\x91\x92\x93\x94\x95\x96\x97\x98\x99\x9a\x9b\x9c\x9d\x9e\x9f";
const PUBLIC: [u8; 32] =
    *b"\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f !\"#$%&'()*+,-./";
const EPHEMERAL: [u8; 32] = *b"\xe0\xe1\xe2\xe3\xe4\xe5\xe6\xe7\xe8\xe9\xea\xeb\xec\xed\xee\xef\
    \xa0\xa1\xa2\xa3\xa4\xa5\xa6\xa7\xa8\xa9\xaa\xab\xac\xad\xae\xaf";
const INNER: [u8; 24] =
    *b"\x41\x0a\x0b\x0c\x0d\x00\x01\x90\x91\x92\x93\x94\x95\x96\x97\x98\x99\x9a\x9b\x9c\x9d\x9e\x9f\xff";

/// The frames of docs/vectors/frames.txt, section 5.1.
fn session_vectors() -> Vec<(&'static str, Frame<'static>)> {
    let (req, four) = (Req(0x0102), Req(0x0104));
    let v4 = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 7), 5683));
    let v6 = SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7), 5683));
    let rekey = |key| Frame::Rekey { req: four, generation: 1, ephemeral: &EPHEMERAL, key };
    vec![
        ("pad", Frame::Pad),
        ("ping", Frame::Ping { req, next_s: 25 }),
        ("ping_never_again", Frame::Ping { req: Req(0x0103), next_s: 0 }),
        ("pong_relayed", Frame::Pong { req, draining: false, observed: None }),
        ("pong_v4", Frame::Pong { req, draining: true, observed: Some(v4) }),
        ("pong_v6", Frame::Pong { req, draining: false, observed: Some(v6) }),
        ("confirm", Frame::Confirm { mem: 3600, resume: None }),
        ("confirm_resume", Frame::Confirm { mem: 3600, resume: Some(DATA) }),
        ("resumed", Frame::Resumed { memory: Memory::WHOLE, mem: 3600 }),
        ("resumed_not", Frame::Resumed { memory: Memory::NONE, mem: 0 }),
        ("resumed_since", Frame::Resumed { memory: Memory::SINCE, mem: 60 }),
        ("path_challenge", Frame::PathChallenge(DATA)),
        ("path_response", Frame::PathResponse(DATA)),
        ("rekey", rekey(KeyBytes::NONE)),
        ("rekey_keyed", rekey(KeyBytes::new(b"key\xff").unwrap())),
        ("rekeyed", Frame::Rekeyed { req: four, generation: 1, ephemeral: &EPHEMERAL }),
        ("prove", Frame::Prove { public: &PUBLIC, mac: &MAC }),
        ("prove_ask", Frame::ProveAsk { req: Req(0x0105) }),
        ("new_token", Frame::NewToken { req: Req(0x0106), token: 0x0A0B_0C0D }),
        ("done", Frame::Done { req: Req(0x0106), status: 0 }),
        ("done_refused", Frame::Done { req: Req(0x0106), status: 3 }),
        ("close", Frame::Close { code: CloseCode::SHUTTING_DOWN, text: "back soon" }),
        ("close_silent", Frame::Close { code: CloseCode::DONE, text: "" }),
        ("close_unknown_code", Frame::Close { code: CloseCode(200), text: "\u{e9}" }),
        ("unknown", Frame::Unknown(0x1C)),
        ("unknown_high", Frame::Unknown(0xFF)),
    ]
}

/// The frames of docs/vectors/frames.txt, section 5.2.
fn relay_vectors() -> Vec<(&'static str, Frame<'static>)> {
    let (req, four, label) = (Req(1), Req(4), Label(0x00C0_FFEE));
    let (dst, src, epoch, since) = (TWO, THREE, EPOCH, 0x68A1_B2C3);
    let registered = |status, lease_s, path| Frame::Registered { req, status, epoch, lease_s, since, path };
    let relay = |hop_limit, flags| Frame::Relay { hop_limit, flags, dst, src, inner: &INNER };
    vec![
        ("register", Frame::Register { req, ephemeral: false, epoch, lease_s: 600 }),
        ("register_ephemeral", Frame::Register { req, ephemeral: true, epoch, lease_s: 120 }),
        ("registered", registered(RegisterStatus::OK, 600, &[])),
        (
            "registered_claimed",
            registered(RegisterStatus::CLAIMED, 0, &[[0, 0, 0, 1], [0xC0, 0xFF, 0xEE, 0]]),
        ),
        ("unregister", Frame::Unregister { req: Req(2), epoch }),
        ("lookup", Frame::Lookup { req: Req(3), id: TWO }),
        ("found", Frame::Found { req: Req(3), status: FoundStatus::ONLINE, home: ONE }),
        ("relay", relay(16, RelayFlags::default())),
        ("relay_core", relay(20, RelayFlags(0x81))),
        ("error", Frame::Error { code: ErrorCode::NO_ROUTE, dst, src, packet: DATA }),
        ("label_bind", Frame::LabelBind { req: four, label, dst, src }),
        ("label_bound", Frame::LabelBound { req: four, label }),
        ("label_unbind", Frame::LabelUnbind { label }),
        ("moved", Frame::Moved { id: TWO, host: ONE, epoch }),
        ("drain", Frame::Drain { reconnect_s: 30, try_s: 5, hosts: &[ONE.0, THREE.0] }),
        (
            "net_key",
            Frame::NetKey { req: Req(5), key_id: 1, mac: &MAC, key: KeyBytes::new(&[0x6B; 16]).unwrap() },
        ),
        ("unbind", Frame::Unbind { id: TWO, epoch }),
    ]
}

#[test]
fn vectors_and_code_agree() {
    let mut written: BTreeMap<_, _> = vectors().into_iter().collect();
    written.retain(|name, _| !name.starts_with("bundle_") && !name.starts_with("malformed_"));
    for (name, frame) in session_vectors().into_iter().chain(relay_vectors()) {
        let hex = written.remove(name).unwrap_or_else(|| panic!("no vector {name}"));
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        assert_eq!(bytes, hex, "{name}");
        assert_eq!(Frame::decode(&hex), Ok(frame), "{name}");
    }
    assert!(written.is_empty(), "vectors without a frame: {written:?}");
}

#[test]
fn each_known_kind_has_a_vector() {
    let first = |(_, bytes): &(&str, Vec<u8>)| bytes.first().copied();
    let kinds: Vec<u8> = vectors().iter().filter_map(first).collect();
    assert!((kind::PAD..=kind::RESUMED).all(|kind| kinds.contains(&kind)));
}
