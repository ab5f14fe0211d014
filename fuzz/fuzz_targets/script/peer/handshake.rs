//! The peer's handshakes, in either role, with what no honest one would say in them.
use std::net::SocketAddr;

use m2m_proto::{
    id::Id,
    session::{
        Secure,
        handshake::{InitFields, Initiator, open_init},
        keys::{DhSecret, Suite, SuiteSet},
    },
    wire::packet::{Caps, Packet, RespPayload, Token},
};
use m2m_sim::World;

use super::{KeyId, Link, MAX_LINKS, OWN, Play, Script, address};

/// What a peer takes.
const SIZES: [u16; 4] = [1200, 1200, 256, 0xFFFF];
const SUITES: [Suite; 3] = [Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::Aes128Ccm8];

impl Play {
    /// INIT to the net, from one of the peer's addresses, perhaps under another's id.
    pub(super) fn open(&mut self, script: &mut Script<'_>) {
        let (fields, from, ephemeral) = fields(script, World::id(1));
        let initiator = Initiator::start(&fields, &World::key(1).pair(fields.src, fields.dst), ephemeral);
        let init = *initiator.init();
        self.remember(initiator, from, None);
        self.send(from, &init);
    }

    /// INIT to the net behind the host, or behind the peer if that is the host, through the first session.
    pub(super) fn open_behind(&mut self, script: &mut Script<'_>) {
        let dst = self.behind();
        let (fields, from, ephemeral) = fields(script, dst);
        let pair = World::key(dst.0[15]).pair(fields.src, dst);
        let initiator = Initiator::start(&fields, &pair, ephemeral);
        let init = *initiator.init();
        self.remember(initiator, from, Some(fields.src));
        self.wrap(from, fields.src, &init);
    }

    /// Whom a relayed packet is for.
    pub(super) fn behind(&self) -> Id {
        World::id(if self.guest.is_some() { 2 } else { 1 })
    }

    fn remember(&mut self, initiator: Initiator, from: SocketAddr, behind: Option<Id>) {
        self.opening.truncate(MAX_LINKS);
        self.opening.insert(0, (initiator, from, behind));
    }

    /// COOKIE or RESP came.
    pub(super) fn open_further(&mut self, to: SocketAddr, bytes: &[u8], behind: Option<Id>) {
        let initiators = self.opening.iter().enumerate().filter(|(_, (_, _, relayed))| *relayed == behind);
        match Packet::decode(bytes) {
            Ok(Packet::Cookie(reply)) => {
                let cookie = initiators.filter_map(|(_, (initiator, from, _))| {
                    Some((*from, initiator.init_with_cookie(&initiator.read_cookie(&reply).ok()?)))
                });
                // Once each: it costs the script nothing, and the net a session.
                if let (Some((from, init)), None) = (cookie.collect::<Vec<_>>().pop(), behind) {
                    let to = self.world.address(self.net);
                    self.accounts.entry(from).or_default().received += init.len();
                    self.world.inject(from, to, &init);
                }
            }
            Ok(Packet::Resp(resp)) => {
                let established = initiators
                    .filter_map(|(n, (initiator, ..))| Some((n, initiator.read_resp(&resp).ok()?)))
                    .next();
                if let Some((n, established)) = established {
                    self.opening.remove(n);
                    self.add(to, behind, established);
                }
            }
            _ => {}
        }
    }

    fn add(
        &mut self,
        home: SocketAddr,
        behind: Option<Id>,
        established: m2m_proto::session::handshake::Established,
    ) {
        if self.links.len() >= MAX_LINKS {
            self.links.remove(1);
            self.heard.clear();
        }
        let secure = Secure::new(&established);
        self.links.push(Link { secure, established, home, behind, asked: None });
    }

    /// RESP to an INIT of the net's own.
    pub(super) fn respond(&mut self, script: &mut Script<'_>) {
        let Some((home, init)) = self.inits.pop_back() else { return };
        let Ok(Packet::Init(init)) = Packet::decode(&init) else { return };
        let Ok(opened) = open_init(&init, &World::key(OWN).pair(init.src, init.dst)) else { return };
        let (token, how) = (script.byte() as u32, script.byte());
        let fields = RespPayload {
            ctoken: Token::new(0x0BAD_0000 + token).expect("none that is reserved"),
            suite: SUITES[how % 2],
            caps: Caps(if how >= 128 { 0xFF } else { 0 }),
            max_udp: SIZES[how / 2 % 4],
            mem_s: if how & 8 == 0 { 0 } else { u32::MAX },
            unix_s: if how & 16 == 0 { 1_800_000_000 } else { u32::MAX },
        };
        let ephemeral = DhSecret::from_bytes([token as u8; 32]);
        let Ok((resp, established)) = opened.respond(World::id(OWN), ephemeral, &fields) else { return };
        self.add(home, None, established);
        let from = if how & 32 == 0 { home } else { address(how / 64) };
        self.send(from, &resp);
    }
}

fn fields(script: &mut Script<'_>, dst: Id) -> (InitFields, SocketAddr, DhSecret) {
    let (how, more, token) = (script.byte(), script.byte(), script.byte());
    let suites: &[Suite] = match more % 4 {
        0 | 1 => &SUITES[..2],
        2 => &SUITES[1..],
        _ => &[],
    };
    let fields = InitFields {
        dst,
        // One of the net behind the host, too.
        src: World::id(if how & 16 == 0 { OWN } else { 2 + (how / 32 % 4) as u8 }),
        stoken: Token::new(0x1000_0000 + token as u32).expect("none that is reserved"),
        key_id: KeyId(u16::from(more & 4 != 0)),
        suites: SuiteSet::of(suites),
        caps: Caps(if more & 8 != 0 { 0xFF } else { 0 }),
        max_udp: SIZES[more / 16 % 4],
    };
    (fields, address(how), DhSecret::from_bytes([token as u8 ^ 0x3C; 32]))
}
