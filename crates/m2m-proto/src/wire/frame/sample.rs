//! Frames for tests: one of each kind out of arbitrary material.
use super::{
    CloseCode, Epoch, ErrorCode, FoundStatus, Frame, KeyBytes, Label, MAX_PATH, MIN_INNER, Memory,
    RegisterStatus, RelayFlags, Req, ShortId, kind,
};
use crate::id::Id;
use alloc::{string::String, vec::Vec};
use core::net::{IpAddr, SocketAddr};
use proptest::{collection::vec, prelude::*};

/// What the fields of a frame are taken from.
#[derive(Clone, Debug)]
pub(crate) struct Material {
    kind: u8,
    flag: bool,
    byte: u8,
    word: u16,
    number: u32,
    long: u64,
    ids: [[u8; 16]; 2],
    key: [u8; 32],
    bytes: Vec<u8>,
    text: String,
    address: Option<SocketAddr>,
    path: Vec<ShortId>,
    hosts: Vec<[u8; 16]>,
}

/// Material for a frame of any kind that this version knows.
pub(crate) fn material() -> impl Strategy<Value = Material> {
    let numbers =
        (kind::PAD..=kind::RESUMED, any::<bool>(), any::<u8>(), any::<u16>(), any::<u32>(), any::<u64>());
    let arrays = (any::<[[u8; 16]; 2]>(), any::<[u8; 32]>(), vec(any::<u8>(), MIN_INNER..256));
    let address = prop_oneof![
        Just(None),
        (any::<[u8; 4]>(), any::<u16>()).prop_map(|(ip, port)| Some(SocketAddr::new(IpAddr::from(ip), port))),
        (any::<[u8; 16]>(), any::<u16>())
            .prop_map(|(ip, port)| Some(SocketAddr::new(IpAddr::from(ip), port))),
    ];
    let text = vec(any::<char>(), 0..=16).prop_map(|chars| chars.into_iter().collect());
    let lists = (text, address, vec(any::<ShortId>(), 0..=MAX_PATH), vec(any::<[u8; 16]>(), 0..20));
    (numbers, arrays, lists).prop_map(|(numbers, arrays, lists)| {
        let (kind, flag, byte, word, number, long) = numbers;
        let (ids, key, bytes) = arrays;
        let (text, address, path, hosts) = lists;
        Material { kind, flag, byte, word, number, long, ids, key, bytes, text, address, path, hosts }
    })
}

impl Material {
    /// The frame of the material's kind.
    pub(crate) fn frame(&self) -> Frame<'_> {
        let (req, epoch, [dst, src]) = (Req(self.word), Epoch(self.long), self.ids.map(Id));
        let (id, label, data) = (dst, Label(self.number), self.long.to_be_bytes());
        let key = KeyBytes::new(&self.bytes).unwrap();
        match self.kind {
            kind::PAD => Frame::Pad,
            kind::PING => Frame::Ping { req, next_s: self.number as u16 },
            kind::PONG => Frame::Pong { req, draining: self.flag, observed: self.address },
            kind::CONFIRM => Frame::Confirm { mem: self.number, resume: self.flag.then_some(data) },
            kind::RESUMED => Frame::Resumed { memory: Memory(self.byte), mem: self.number },
            kind::PATH_CHALLENGE => Frame::PathChallenge(data),
            kind::PATH_RESPONSE => Frame::PathResponse(data),
            kind::REKEY => {
                let key = if self.flag { key } else { KeyBytes::NONE };
                Frame::Rekey { req, generation: self.number, ephemeral: &self.key, key }
            }
            kind::REKEYED => Frame::Rekeyed { req, generation: self.number, ephemeral: &self.key },
            kind::PROVE => Frame::Prove { public: &self.key, mac: &self.ids[0] },
            kind::PROVE_ASK => Frame::ProveAsk { req },
            kind::NEW_TOKEN => Frame::NewToken { req, token: self.number },
            kind::DONE => Frame::Done { req, status: self.byte },
            kind::CLOSE => Frame::Close { code: CloseCode(self.byte), text: &self.text },
            _ => self.relay_frame(req, epoch, label, [id, src], key),
        }
    }

    fn relay_frame<'a>(
        &'a self,
        req: Req,
        epoch: Epoch,
        label: Label,
        [dst, src]: [Id; 2],
        key: KeyBytes<'a>,
    ) -> Frame<'a> {
        let (lease_s, packet) = (self.number, self.long.to_be_bytes());
        match self.kind {
            kind::REGISTER => Frame::Register { req, ephemeral: self.flag, epoch, lease_s },
            kind::REGISTERED => {
                let status = RegisterStatus(self.byte);
                Frame::Registered { req, status, epoch, lease_s, since: !lease_s, path: &self.path }
            }
            kind::UNREGISTER => Frame::Unregister { req, epoch },
            kind::LOOKUP => Frame::Lookup { req, id: dst },
            kind::FOUND => Frame::Found { req, status: FoundStatus(self.byte), home: dst },
            kind::RELAY => {
                let flags = RelayFlags(self.byte);
                Frame::Relay { hop_limit: self.word as u8, flags, dst, src, inner: &self.bytes }
            }
            kind::ERROR => Frame::Error { code: ErrorCode(self.byte), dst, src, packet },
            kind::LABEL_BIND => Frame::LabelBind { req, label, dst, src },
            kind::LABEL_BOUND => Frame::LabelBound { req, label },
            kind::LABEL_UNBIND => Frame::LabelUnbind { label },
            kind::MOVED => Frame::Moved { id: dst, host: src, epoch },
            kind::DRAIN => {
                Frame::Drain { reconnect_s: self.word, try_s: self.number as u16, hosts: &self.hosts }
            }
            kind::NETKEY => Frame::NetKey { req, key_id: self.number as u16, mac: &self.ids[0], key },
            kind::UNBIND => Frame::Unbind { id: dst, epoch },
            other => Frame::Unknown(other),
        }
    }
}
