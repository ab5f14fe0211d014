//! From [`Frame`] to bytes.
use super::{Frame, KeyBytes, MAX_CLOSE_TEXT, MAX_PATH, kind};
use core::net::{IpAddr, SocketAddr};

impl Frame<'_> {
    /// The frame's first byte.
    pub fn kind(&self) -> u8 {
        match self {
            Frame::Pad => kind::PAD,
            Frame::Ping { .. } => kind::PING,
            Frame::Pong { .. } => kind::PONG,
            Frame::Confirm { .. } => kind::CONFIRM,
            Frame::Resumed { .. } => kind::RESUMED,
            Frame::PathChallenge(_) => kind::PATH_CHALLENGE,
            Frame::PathResponse(_) => kind::PATH_RESPONSE,
            Frame::Rekey { .. } => kind::REKEY,
            Frame::Rekeyed { .. } => kind::REKEYED,
            Frame::Prove { .. } => kind::PROVE,
            Frame::ProveAsk { .. } => kind::PROVE_ASK,
            Frame::NewToken { .. } => kind::NEW_TOKEN,
            Frame::Done { .. } => kind::DONE,
            Frame::Close { .. } => kind::CLOSE,
            Frame::Register { .. } => kind::REGISTER,
            Frame::Registered { .. } => kind::REGISTERED,
            Frame::Unregister { .. } => kind::UNREGISTER,
            Frame::Lookup { .. } => kind::LOOKUP,
            Frame::Found { .. } => kind::FOUND,
            Frame::Relay { .. } => kind::RELAY,
            Frame::Error { .. } => kind::ERROR,
            Frame::LabelBind { .. } => kind::LABEL_BIND,
            Frame::LabelBound { .. } => kind::LABEL_BOUND,
            Frame::LabelUnbind { .. } => kind::LABEL_UNBIND,
            Frame::Moved { .. } => kind::MOVED,
            Frame::Drain { .. } => kind::DRAIN,
            Frame::NetKey { .. } => kind::NETKEY,
            Frame::Unbind { .. } => kind::UNBIND,
            Frame::Unknown(kind) => *kind,
        }
    }

    /// Hands out the frame's bytes piece by piece, so that its length and its bytes cannot disagree.
    pub(super) fn each_part(&self, mut put: impl FnMut(&[u8])) {
        let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| put(part));
        put(&[&[self.kind()]]);
        match *self {
            Frame::Pad | Frame::Unknown(_) => {}
            Frame::Ping { req, next_s } => put(&[&be16(req.0), &be16(next_s)]),
            Frame::Pong { req, draining, observed } => {
                put(&[&be16(req.0), &[draining.into()]]);
                put_address(observed, put);
            }
            Frame::Confirm { mem, resume: None } => put(&[&[0], &be32(mem)]),
            Frame::Confirm { mem, resume: Some(tag) } => put(&[&[1], &be32(mem), &tag]),
            Frame::Resumed { memory, mem } => put(&[&[memory.0], &be32(mem)]),
            Frame::PathChallenge(data) | Frame::PathResponse(data) => put(&[&data]),
            Frame::Rekey { req, generation, ephemeral, key } => {
                put(&[&be16(req.0), &be32(generation), &[(!key.is_empty()).into()], ephemeral]);
                if !key.is_empty() {
                    put(&[&key_len(key), key.expose()]);
                }
            }
            Frame::Rekeyed { req, generation, ephemeral } => {
                put(&[&be16(req.0), &be32(generation), ephemeral]);
            }
            Frame::Prove { public, mac } => put(&[public, mac]),
            Frame::ProveAsk { req } => put(&[&be16(req.0)]),
            Frame::NewToken { req, token } => put(&[&be16(req.0), &be32(token)]),
            Frame::Done { req, status } => put(&[&be16(req.0), &[status]]),
            Frame::Close { code, text } => put(&[&[code.0], close_text(text)]),
            Frame::Register { req, ephemeral, epoch, lease_s } => {
                put(&[&be16(req.0), &[ephemeral.into()], &be64(epoch.0), &be32(lease_s)]);
            }
            Frame::Registered { req, status, epoch, lease_s, since, path } => {
                put(&[&be16(req.0), &[status.0], &be64(epoch.0), &be32(lease_s), &be32(since)]);
                let (count, ids) = counted(path, MAX_PATH as u8);
                put(&[&count, ids]);
            }
            Frame::Unregister { req, epoch } => put(&[&be16(req.0), &be64(epoch.0)]),
            Frame::Lookup { req, id } => put(&[&be16(req.0), &id.0]),
            Frame::Found { req, status, home } => put(&[&be16(req.0), &[status.0], &home.0]),
            Frame::Relay { hop_limit, flags, dst, src, inner } => {
                put(&[&[hop_limit, flags.0], &dst.0, &src.0, inner]);
            }
            Frame::Error { code, dst, src, packet } => put(&[&[code.0, 0], &dst.0, &src.0, &packet]),
            Frame::LabelBind { req, label, dst, src } => put(&[&be16(req.0), &be32(label.0), &dst.0, &src.0]),
            Frame::LabelBound { req, label } => put(&[&be16(req.0), &be32(label.0)]),
            Frame::LabelUnbind { label } => put(&[&be32(label.0)]),
            Frame::Moved { id, host, epoch } => put(&[&id.0, &host.0, &be64(epoch.0)]),
            Frame::Drain { reconnect_s, try_s, hosts } => {
                let (count, ids) = counted(hosts, u8::MAX);
                put(&[&be16(reconnect_s), &be16(try_s), &count, ids]);
            }
            Frame::NetKey { req, key_id, mac, key } => {
                put(&[&be16(req.0), &be16(key_id), mac, &key_len(key), key.expose()]);
            }
            Frame::Unbind { id, epoch } => put(&[&id.0, &be64(epoch.0)]),
        }
    }
}

fn be16(value: u16) -> [u8; 2] {
    value.to_be_bytes()
}

fn be32(value: u32) -> [u8; 4] {
    value.to_be_bytes()
}

fn be64(value: u64) -> [u8; 8] {
    value.to_be_bytes()
}

/// family 1, port 2, ip 4 or 16.
fn put_address(address: Option<SocketAddr>, mut put: impl FnMut(&[&[u8]])) {
    let Some(address) = address else { return put(&[&[0]]) };
    match address.ip() {
        IpAddr::V4(ip) => put(&[&[4], &be16(address.port()), &ip.octets()]),
        IpAddr::V6(ip) => put(&[&[6], &be16(address.port()), &ip.octets()]),
    }
}

fn key_len(key: KeyBytes<'_>) -> [u8; 1] {
    [key.expose().len() as u8]
}

/// The count byte and the bytes of a list, cut to `max` entries.
fn counted<const N: usize>(list: &[[u8; N]], max: u8) -> ([u8; 1], &[u8]) {
    let list = list.get(..max.into()).unwrap_or(list);
    ([list.len() as u8], list.as_flattened())
}

/// The text, cut before the character that would pass the limit.
fn close_text(text: &str) -> &[u8] {
    let end = (0..=MAX_CLOSE_TEXT.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or(0)).unwrap_or_default().as_bytes()
}
