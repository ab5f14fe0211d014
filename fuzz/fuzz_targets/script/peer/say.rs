//! What the peer says on its own: any bytes, any frames, any messages, under valid seals.
use std::net::SocketAddr;

use m2m_proto::{
    id::Id,
    session::keys::{DeviceKey, DhSecret, Role},
    wire::{
        bundle::{Element, PlainWriter, elements},
        frame::{
            CloseCode, DoneStatus, Epoch, ErrorCode, FoundStatus, Frame, KeyBytes, Label, Memory,
            RegisterStatus, RelayFlags, Req,
        },
    },
};
use m2m_sim::World;

use super::{Heard, Link, MAX_KEPT, OWN, Play, Script, address, keep};

/// Byte 0 of RESET-HINT, and the tail that it shows.
const HINT: u8 = 0x95;
const TAIL: usize = 8;
/// Longest plaintext, beyond what is legal.
const MAX_PLAIN: usize = 1400;

impl Play {
    /// A packet with this plaintext, in one of the sessions, from one of the addresses; from home most of the time.
    pub(super) fn seal_and_send(&mut self, how: usize, plain: &[u8]) {
        let Some(link) = self.link(how / 4) else { return };
        let from = if how & 2 == 0 { self.links[link].home } else { address(how / 16) };
        self.say(link, from, plain);
    }

    pub(super) fn say(&mut self, link: usize, from: SocketAddr, plain: &[u8]) {
        if plain.is_empty() {
            return;
        }
        let Link { secure, home, established, behind, .. } = &mut self.links[link];
        let mut packet = Vec::new();
        secure.begin(&mut packet);
        packet.extend_from_slice(plain);
        secure.seal(&mut packet);
        let (home, behind) = (*home, *behind);
        if established.role == Role::Initiator && behind.is_none() {
            self.prove(home);
        }
        let proven = self.challenges.iter().filter(|(data, _)| plain.windows(8).any(|part| part == data));
        let proven: Vec<SocketAddr> = proven.map(|(_, address)| *address).collect();
        proven.into_iter().for_each(|address| self.prove(address));
        keep(&mut self.sealed, packet.clone());
        match behind {
            Some(src) => self.wrap(from, src, &packet),
            None => self.send(from, &packet),
        }
    }

    /// A packet for the net behind the host, in the first session that is none through another.
    pub(super) fn wrap(&mut self, from: SocketAddr, src: Id, inner: &[u8]) {
        let Some(first) = self.links.iter().position(|link| link.behind.is_none()) else { return };
        let (dst, flags) = (self.behind(), RelayFlags(0));
        self.say(first, from, &encoded(&Frame::Relay { hop_limit: 8, flags, dst, src, inner }));
    }

    /// What the net said in a session: kept until the script has it answered.
    pub(super) fn note(&mut self, to: SocketAddr, link: usize, plain: Vec<u8>) {
        let mut inner = Vec::new();
        for element in elements(&plain).expect("a net's packets are well formed") {
            match element {
                Element::Frame(Frame::PathChallenge(data)) => keep(&mut self.challenges, (data, to)),
                Element::Frame(Frame::Relay { dst, inner: packet, .. }) => inner.push((dst, packet.to_vec())),
                _ => {}
            }
        }
        inner.into_iter().for_each(|(behind, packet)| self.take(to, packet, Some(behind)));
        keep(&mut self.heard, Heard { link, plain });
    }

    pub(super) fn say_bytes(&mut self, script: &mut Script<'_>) {
        let (how, len) = (script.byte(), script.byte());
        let mut plain = script.bytes(len % 64);
        if len >= 192 {
            plain.resize(MAX_PLAIN, 0);
        }
        self.seal_and_send(how, &plain);
    }

    pub(super) fn say_frames(&mut self, script: &mut Script<'_>) {
        let (how, count) = (script.byte(), script.byte());
        let mut plain = Vec::new();
        let mut writer = PlainWriter::new(&mut plain, MAX_PLAIN);
        // The same frame many times is as easy to say as once.
        let (kinds, times) = (1 + count % 4, if count >= 224 { 16 } else { 1 });
        for _ in 0..kinds {
            let frame = self.any_frame(script);
            let fits = |writer: &mut PlainWriter<'_>| match frame.first() {
                Some(0x40..=0x7F) => writer.push_message(&frame),
                _ => Frame::decode(&frame).is_ok_and(|frame| writer.push_frame(&frame)),
            };
            (0..times).for_each(|_| _ = fits(&mut writer));
        }
        self.seal_and_send(how, &plain);
    }

    /// One frame of a kind that the script chooses.
    fn any_frame(&self, script: &mut Script<'_>) -> Vec<u8> {
        let (kind, how) = (script.byte() % 0x20, script.byte());
        let req = self.any_req(script, how);
        let id = |n: usize| if n % 6 == 5 { Id([n as u8; 16]) } else { World::id((n % 6) as u8) };
        let (status, word) = (script.byte() as u8, script.word());
        let generation = self.links.first().map_or(1, |link| link.secure.next_generation());
        let (number, key) = (script.word(), script.bytes(if how & 3 == 3 { 24 } else { 0 }));
        let public = if how & 4 == 0 { *DhSecret::from_bytes([status; 32]).public() } else { [0; 32] };
        let data = (u64::from(word) << 8 | u64::from(status)).to_be_bytes();
        let epoch = Epoch(if how & 8 == 0 { u64::from(number) } else { u64::MAX - u64::from(number) });
        let key_bytes = KeyBytes::new(&key).unwrap_or(KeyBytes::NONE);
        let mac = [status; 16];
        let lease_s = if how & 16 == 0 { u32::from(number) } else { u32::MAX };
        let observed = (how & 16 == 0).then(|| address(how));
        let (code, flags) = (CloseCode(status % 8), RelayFlags(status % 4));
        let frame = match kind {
            0x01 => Frame::Ping { req, next_s: word },
            0x02 => Frame::Pong { req, draining: how & 8 != 0, observed },
            0x03 => Frame::Confirm { mem: lease_s, resume: (how & 32 != 0).then_some(data) },
            0x04 => Frame::PathChallenge(data),
            0x05 => Frame::PathResponse(data),
            0x06 => Frame::Rekey { req, generation, ephemeral: &public, key: key_bytes },
            0x07 => Frame::Rekeyed { req, generation, ephemeral: &public },
            0x08 => return self.proof(how, script),
            0x09 => Frame::ProveAsk { req },
            0x0A => Frame::NewToken { req, token: u32::from(word) << 8 | u32::from(status) },
            0x0B => Frame::Done { req, status: status % 8 },
            0x0C => Frame::Register { req, ephemeral: how & 32 != 0, epoch, lease_s },
            0x0D => {
                let (status, path) = (RegisterStatus(status % 9), [[0; 4]; 2]);
                let frame = Frame::Registered { req, status, epoch, lease_s, since: 0, path: &path };
                return encoded(&frame);
            }
            0x0E => Frame::Unregister { req, epoch },
            0x0F => Frame::Lookup { req, id: id(how / 4) },
            0x10 => Frame::Found { req, status: FoundStatus(status % 7), home: id(how / 4) },
            0x11 => return self.any_relay(how, flags, [id(how / 4), id(usize::from(status))], word),
            0x12 => Frame::Error {
                code: ErrorCode(status % 6),
                dst: id(how / 4),
                src: id(how / 16),
                packet: self.tail(),
            },
            0x13 => Frame::LabelBind { req, label: Label(1), dst: id(how / 4), src: id(OWN.into()) },
            0x14 => Frame::LabelBound { req, label: Label(1) },
            0x15 => Frame::LabelUnbind { label: Label(1) },
            0x16 => Frame::Close { code, text: "so" },
            0x17 => Frame::Moved { id: id(how / 4), host: id(how / 16), epoch },
            0x18 => Frame::Drain { reconnect_s: word, try_s: number, hosts: &[[1; 16]] },
            0x19 => {
                let key = [status; 20];
                let mac =
                    if how & 8 == 0 { World::key(1).change_mac(World::id(1), number % 4, &key) } else { mac };
                let key = KeyBytes::new(&key).unwrap_or(KeyBytes::NONE);
                return encoded(&Frame::NetKey { req, key_id: number % 4, mac: &mac, key });
            }
            0x1A => Frame::Unbind { id: id(how / 4), epoch },
            0x1B => Frame::Resumed { memory: Memory(status % 4), mem: lease_s },
            0x1C => return self.any_message(script),
            0x1D => return script.bytes(1 + how % 16),
            _ => Frame::Pad,
        };
        encoded(&frame)
    }

    /// A number, one that the net asked with more often than not.
    fn any_req(&self, script: &mut Script<'_>, how: usize) -> Req {
        let number = Req(script.word());
        let heard = self.heard.iter().rev().flat_map(|heard| elements(&heard.plain).into_iter().flatten());
        let asked = heard.filter_map(|element| match element {
            Element::Frame(
                Frame::Ping { req, .. }
                | Frame::Rekey { req, .. }
                | Frame::NewToken { req, .. }
                | Frame::Register { req, .. }
                | Frame::Lookup { req, .. }
                | Frame::NetKey { req, .. },
            ) => Some(req),
            _ => None,
        });
        if how & 128 == 0 { asked.take(8).nth(how / 64).unwrap_or(number) } else { number }
    }

    /// Of the right device key in this session, or of another.
    fn proof(&self, how: usize, script: &mut Script<'_>) -> Vec<u8> {
        let number = script.byte() as u8 % 4;
        let Some(link) = self.link(how / 4) else { return Vec::new() };
        let established = &self.links[link].established;
        let proof = device(number).prove(&established.peer_ephemeral, established.hash(), established.role);
        proof
            .map(|proof| encoded(&Frame::Prove { public: &proof.public, mac: &proof.mac }))
            .unwrap_or_default()
    }

    /// Shows its device key and registers, as it should.
    pub(super) fn register(&mut self, script: &mut Script<'_>) {
        let (how, lease) = (script.byte(), script.byte());
        let Some(link) = self.link(how / 4) else { return };
        let unix_ms = m2m_sim::world::UNIX_START_MS + self.world.now.as_micros() / 1000;
        let established = &self.links[link].established;
        let proof = device(OWN).prove(&established.peer_ephemeral, established.hash(), established.role);
        let Ok(proof) = proof else { return };
        let mut plain = Vec::new();
        let mut writer = PlainWriter::new(&mut plain, MAX_PLAIN);
        writer.push_frame(&Frame::Prove { public: &proof.public, mac: &proof.mac });
        let (epoch, lease_s) = (Epoch(unix_ms), 600 - 2 * lease as u32);
        writer.push_frame(&Frame::Register {
            req: Req(lease as u16),
            ephemeral: how & 1 != 0,
            epoch,
            lease_s,
        });
        self.seal_and_send(how, &plain);
    }

    /// With a packet of the net's, of the peer's or of nobody's inside.
    fn any_relay(&self, how: usize, flags: RelayFlags, [dst, src]: [Id; 2], word: u16) -> Vec<u8> {
        let zeros = vec![word as u8; usize::from(word) % 1300];
        let inner = match how % 4 {
            0 => &self.last,
            1 => self.sealed.back().unwrap_or(&zeros),
            2 => self.inits.back().map_or(&zeros, |(_, init)| init),
            _ => &zeros,
        };
        encoded(&Frame::Relay { hop_limit: (word % 17) as u8, flags, dst, src, inner })
    }

    fn tail(&self) -> [u8; TAIL] {
        self.last.last_chunk().copied().unwrap_or_default()
    }

    pub(super) fn say_message(&mut self, script: &mut Script<'_>) {
        let how = script.byte();
        let message = self.any_message(script);
        let times = if how >= 240 { 8 } else { 1 };
        (0..times).for_each(|_| self.seal_and_send(how, &message));
    }

    /// Type, code, number, token, options, payload (RFC 7252 section 3); seldom well formed beyond the header.
    fn any_message(&self, script: &mut Script<'_>) -> Vec<u8> {
        let (first, code, mid) = (script.byte(), script.byte(), script.byte());
        let codes = [0x00, 0x01, 0x02, 0x03, 0x04, 0x44, 0x45, 0x84, 0xA0, 0x05, 0x9D, 0xE1];
        let code = if code < 0xC0 { codes[code % codes.len()] } else { code };
        let [high, low] = match self.message_heard(mid) {
            Some(mid) if mid[0] & 1 == 0 || first & 8 == 0 => mid,
            _ => [0, mid as u8],
        };
        let mut message = vec![0x40 | (first & 0x3F) as u8, code as u8, high, low];
        message.extend(script.bytes(first & 0xF));
        let more = script.byte();
        message.extend(script.bytes(more % 32));
        if more >= 64 {
            message.push(0xFF);
            message.resize(message.len() + more * 4, more as u8);
        }
        message
    }

    /// The number of a message of the net's.
    fn message_heard(&self, n: usize) -> Option<[u8; 2]> {
        let heard = self.heard.iter().rev().flat_map(|heard| elements(&heard.plain).into_iter().flatten());
        let mut mids = heard.filter_map(|element| match element {
            Element::Message(message) => Some([*message.get(2)?, *message.get(3)?]),
            Element::Frame(_) => None,
        });
        mids.nth(n / 8 % 4)
    }

    /// Asks for other keys; the script answers REKEYED with a change of its own, or never.
    pub(super) fn rekey(&mut self, script: &mut Script<'_>) {
        let (how, secret) = (script.byte(), script.byte());
        let Some(n) = self.link(how / 4) else { return };
        let key = if secret >= 128 { vec![secret as u8; 16 + secret % 48] } else { Vec::new() };
        let ephemeral = DhSecret::from_bytes([secret as u8; 32]);
        let generation = self.links[n].secure.next_generation();
        let mut plain = Vec::new();
        let bytes = KeyBytes::new(&key).unwrap_or(KeyBytes::NONE);
        Frame::Rekey { req: Req(7), generation, ephemeral: ephemeral.public(), key: bytes }
            .encode(&mut plain);
        self.links[n].asked = Some((generation, ephemeral, key));
        self.seal_and_send(how, &plain);
    }

    /// The peer holds the keys; and perhaps it says that this session takes an older one over.
    pub(super) fn confirm(&mut self, script: &mut Script<'_>) {
        let (how, old) = (script.byte(), script.byte());
        let (Some(new), Some(old)) =
            (self.link(how / 4), (old >= 64).then(|| self.link(old)).flatten().or(Some(usize::MAX)))
        else {
            return;
        };
        let hash = self.links[new].established.hash();
        let resume = self.links.get(old).map(|link| link.secure.resume_key().tag(hash));
        let mut plain = Vec::new();
        Frame::Confirm { mem: how as u32, resume }.encode(&mut plain);
        self.seal_and_send(how, &plain);
    }

    /// A packet of the past again, as it was or damaged, from anywhere.
    pub(super) fn replay(&mut self, script: &mut Script<'_>) {
        let (which, how, flip) = (script.byte(), script.byte(), script.byte());
        let Some(mut packet) = self.sealed.iter().rev().nth(which % MAX_KEPT).cloned() else { return };
        let at = how % packet.len();
        packet[at] ^= flip as u8;
        self.send(address(how), &packet);
    }

    /// RESET-HINT for the net's last packet, or a forged one.
    pub(super) fn hint(&mut self, script: &mut Script<'_>) {
        let (how, flip) = (script.byte(), script.byte());
        if self.last.len() < 5 + TAIL {
            return;
        }
        let mut bytes = vec![HINT];
        bytes.extend_from_slice(&self.last[1..5]);
        bytes.extend_from_slice(&self.tail());
        bytes[5] ^= flip as u8;
        self.send(address(how), &bytes);
    }

    pub(super) fn status(status: usize) -> u8 {
        if status < 192 { DoneStatus::DONE.0 } else { (status % 8) as u8 }
    }
}

/// The device key that `World::config` gives to a number.
pub(super) fn device(number: u8) -> DeviceKey {
    DeviceKey::from_bytes([number.wrapping_mul(37) ^ 0x5C; 32])
}

fn encoded(frame: &Frame<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    frame.encode(&mut out);
    out
}
