//! The floods: each kind of packet that a stranger, an eavesdropper or a guest can send in any number.
use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use m2m_proto::{
    id::Id,
    session::{
        handshake::Initiator,
        keys::{DhSecret, PairKey},
    },
    wire::{
        frame::{Epoch, Frame, RelayFlags, Req},
        packet::Packet,
    },
};

use crate::{
    clients::Clients,
    insider::{self, Insider},
    names,
};

/// Networks that an attacker with many addresses sends from.
const SOURCES: usize = 400;
/// Guests that turn against their host.
const GUESTS: usize = 4;
/// The flood comes evenly, in steps of this.
const STEP: Duration = Duration::from_millis(2);
/// What could not be sent in time is not made good beyond this: a burst would be another attack.
const LATE: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// All of the others in turn.
    Mix,
    RandomBytes,
    ForgedInits,
    ForgedInitsFromMany,
    /// One who has the pair key, and never confirms.
    InitsOfOneId,
    /// One who has the net key, from many addresses.
    InitsOfManyIds,
    /// The same, with the cookies that it was given.
    InitsWithCookies,
    ReplayedInits,
    UnknownTokens,
    BadSeals,
    ReplayedPackets,
    Relays,
    Lookups,
    Registers,
}

impl Kind {
    pub(crate) const ALL: [Kind; 14] = [
        Kind::Mix,
        Kind::RandomBytes,
        Kind::ForgedInits,
        Kind::ForgedInitsFromMany,
        Kind::InitsOfOneId,
        Kind::InitsOfManyIds,
        Kind::InitsWithCookies,
        Kind::ReplayedInits,
        Kind::UnknownTokens,
        Kind::BadSeals,
        Kind::ReplayedPackets,
        Kind::Relays,
        Kind::Lookups,
        Kind::Registers,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Mix => "mix",
            Kind::RandomBytes => "random-bytes",
            Kind::ForgedInits => "forged-inits",
            Kind::ForgedInitsFromMany => "forged-inits-from-many",
            Kind::InitsOfOneId => "inits-of-one-id",
            Kind::InitsOfManyIds => "inits-of-many-ids",
            Kind::InitsWithCookies => "inits-with-cookies",
            Kind::ReplayedInits => "replayed-inits",
            Kind::UnknownTokens => "unknown-tokens",
            Kind::BadSeals => "bad-seals",
            Kind::ReplayedPackets => "replayed-packets",
            Kind::Relays => "relays",
            Kind::Lookups => "lookups",
            Kind::Registers => "registers",
        }
    }
}

/// INITs that are made before they are needed: making them costs more than sending them.
struct Inits {
    initiators: Vec<Initiator>,
    next: usize,
}

impl Inits {
    fn new(count: usize, first_token: u32, src: impl Fn(usize) -> Id) -> Inits {
        let key = names::key();
        let initiators = (0..count).map(|n| {
            let (id, mut ephemeral) = (src(n), [0x42; 32]);
            ephemeral[..4].copy_from_slice(&(first_token + n as u32).to_be_bytes());
            let pair: PairKey = key.pair(id, names::HOST);
            let fields = insider::init_fields(id, first_token + n as u32);
            Initiator::start(&fields, &pair, DhSecret::from_bytes(ephemeral))
        });
        Inits { initiators: initiators.collect(), next: 0 }
    }

    fn next(&mut self) -> (usize, &Initiator) {
        let n = self.next;
        self.next = (n + 1) % self.initiators.len();
        (n, &self.initiators[n])
    }
}

pub(crate) struct Attacker {
    kind: Kind,
    host: SocketAddr,
    /// The first is an address like another; all have networks of their own.
    sockets: Vec<UdpSocket>,
    random: u64,
    count: u64,
    forged: Vec<u8>,
    of_one: Inits,
    of_many: Inits,
    with_cookies: Inits,
    heard_inits: Vec<Vec<u8>>,
    heard_packets: Vec<Vec<u8>>,
    guests: Vec<Insider>,
    epoch: u64,
}

impl Attacker {
    /// Makes ready for `packets` packets.
    pub(crate) fn new(kind: Kind, host: SocketAddr, clients: &Clients, packets: usize) -> Attacker {
        let needs = |wanted: Kind| match kind {
            Kind::Mix => packets / (Kind::ALL.len() - 1) + 1,
            _ => {
                if kind == wanted {
                    packets + 1
                } else {
                    1
                }
            }
        };
        let bind = |n| {
            let socket = UdpSocket::bind(crate::local(n)).expect("a port is free");
            socket.set_nonblocking(true).expect("a socket need not wait");
            socket
        };
        let is_guest = matches!(kind, Kind::Mix | Kind::Relays | Kind::Lookups | Kind::Registers);
        let forged = {
            let fields = insider::init_fields(names::id(0xEE, 0), 7);
            let wrong = PairKey::from_bytes([0xEE; 32]);
            Initiator::start(&fields, &wrong, DhSecret::from_bytes([9; 32])).init().to_vec()
        };
        Attacker {
            kind,
            host,
            sockets: (10..10 + SOURCES).map(bind).collect(),
            random: 0x9E37_79B9_7F4A_7C15,
            count: 0,
            forged,
            of_one: Inits::new(needs(Kind::InitsOfOneId), 0x1000_0000, |_| names::id(0xA1, 0)),
            of_many: Inits::new(needs(Kind::InitsOfManyIds), 0x2000_0000, |n| names::id(0xA2, n)),
            with_cookies: Inits::new(needs(Kind::InitsWithCookies), 0x3000_0000, |n| names::id(0xA3, n)),
            heard_inits: clients.inits(),
            heard_packets: clients.packets(),
            guests: (0..if is_guest { GUESTS } else { 0 }).map(|n| Insider::register(n, host)).collect(),
            epoch: std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_millis() as u64,
        }
    }

    /// Sends at this rate for so long, and says how many packets that were.
    pub(crate) fn run(&mut self, rate: u64, lasts: Duration) -> u64 {
        let start = Instant::now();
        let (mut sent, mut lost) = (0u64, 0u64);
        loop {
            let elapsed = start.elapsed();
            if elapsed >= lasts {
                return sent;
            }
            let due = (elapsed.as_secs_f64() * rate as f64) as u64;
            let most = (LATE.as_secs_f64() * rate as f64) as u64 + 1;
            lost += due.saturating_sub(sent + lost).saturating_sub(most);
            while sent + lost < due {
                self.fire();
                sent += 1;
            }
            std::thread::sleep(STEP);
        }
    }

    fn fire(&mut self) {
        self.count += 1;
        let others = Kind::ALL.len() - 1;
        let kind = match self.kind {
            Kind::Mix => Kind::ALL[1 + self.count as usize % others],
            kind => kind,
        };
        let turn = if self.kind == Kind::Mix { self.count as usize / others } else { self.count as usize };
        match kind {
            Kind::Mix => {}
            Kind::RandomBytes => self.random_bytes(turn),
            Kind::ForgedInits => self.forged_init(0),
            Kind::ForgedInitsFromMany => self.forged_init(turn),
            Kind::InitsOfOneId => {
                let (n, initiator) = self.of_one.next();
                send(&self.sockets[n % SOURCES], self.host, initiator.init());
            }
            Kind::InitsOfManyIds => {
                let (n, initiator) = self.of_many.next();
                send(&self.sockets[n % SOURCES], self.host, initiator.init());
            }
            Kind::InitsWithCookies => self.init_or_cookie(turn),
            Kind::ReplayedInits => {
                let init = &self.heard_inits[turn % self.heard_inits.len()];
                send(&self.sockets[turn % SOURCES], self.host, init);
            }
            Kind::UnknownTokens => self.unknown_token(turn),
            Kind::BadSeals => {
                let at = turn % self.heard_packets.len();
                let packet = &mut self.heard_packets[at];
                // Other numbers: some of them lie ahead of the replay window, so that the seal has to be tried.
                packet[5] = packet[5].wrapping_add(37);
                send(&self.sockets[turn % SOURCES], self.host, packet);
            }
            Kind::ReplayedPackets => {
                let packet = &self.heard_packets[turn % self.heard_packets.len()];
                send(&self.sockets[turn % SOURCES], self.host, packet);
            }
            Kind::Relays => self.relay(turn),
            Kind::Lookups => {
                let id = if turn.is_multiple_of(2) { self.random_id() } else { self.guests[0].id };
                self.guests[turn % GUESTS].say(&[Frame::Lookup { req: Req(turn as u16), id }]);
            }
            Kind::Registers => self.register(turn),
        }
    }

    fn random_bytes(&mut self, turn: usize) {
        let mut bytes = [0; 1200];
        for chunk in bytes.chunks_exact_mut(8) {
            chunk.copy_from_slice(&self.next_random().to_le_bytes());
        }
        let len = 1 + self.next_random() as usize % bytes.len();
        send(&self.sockets[turn % SOURCES], self.host, &bytes[..len]);
    }

    fn forged_init(&mut self, turn: usize) {
        let random = self.next_random().to_be_bytes();
        self.forged[44..52].copy_from_slice(&random);
        send(&self.sockets[turn % SOURCES], self.host, &self.forged);
    }

    /// Answers a cookie if there is one, else begins another handshake.
    fn init_or_cookie(&mut self, turn: usize) {
        let socket = &self.sockets[turn % SOURCES];
        let mut buffer = [0; 256];
        while let Ok(len) = socket.recv(&mut buffer) {
            let Ok(Packet::Cookie(reply)) = Packet::decode(&buffer[..len]) else { continue };
            let at = (reply.stoken.value() - 0x3000_0000) as usize;
            let Some(initiator) = self.with_cookies.initiators.get(at) else { continue };
            let Ok(cookie) = initiator.read_cookie(&reply) else { continue };
            return send(socket, self.host, &initiator.init_with_cookie(&cookie));
        }
        send(socket, self.host, self.with_cookies.next().1.init());
    }

    fn unknown_token(&mut self, turn: usize) {
        let mut packet = [0; 64];
        for chunk in packet.chunks_exact_mut(8) {
            chunk.copy_from_slice(&self.next_random().to_le_bytes());
        }
        packet[0] = 0x41;
        send(&self.sockets[turn % SOURCES], self.host, &packet);
    }

    fn relay(&mut self, turn: usize) {
        let (from, to) = (turn % GUESTS, (turn + 1) % GUESTS);
        let dst = if turn.is_multiple_of(2) { self.random_id() } else { self.guests[to].id };
        let src = self.guests[from].id;
        self.guests[from].say(&[Frame::Relay {
            hop_limit: 16,
            flags: RelayFlags(0),
            dst,
            src,
            inner: &[0x41; 100],
        }]);
    }

    /// Registrations that end at once, so that each is a new one.
    fn register(&mut self, turn: usize) {
        self.epoch += 1;
        let epoch = Epoch(self.epoch);
        let frame = if turn.is_multiple_of(2) {
            Frame::Unregister { req: Req(turn as u16), epoch }
        } else {
            Frame::Register { req: Req(turn as u16), ephemeral: false, epoch, lease_s: 600 }
        };
        self.guests[turn / 2 % GUESTS].say(&[frame]);
    }

    fn random_id(&mut self) -> Id {
        let mut id = [0xDD; 16];
        id[..8].copy_from_slice(&self.next_random().to_be_bytes());
        Id(id)
    }

    /// Xorshift: nobody has to be surprised by it.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

fn send(socket: &UdpSocket, to: SocketAddr, packet: &[u8]) {
    // A full buffer loses it, as a network would.
    let _ = socket.send_to(packet, to);
}
