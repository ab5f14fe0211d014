//! Floods of each kind against one machine: what it keeps of them stays under a bound that its caps give, goes when
//! their timers have passed, and who is served is served all the while. Not a timed test: it counts bytes.
//!
//! `M2M_FLOOD_PACKETS` says how many packets of each kind; `cargo xtask flood memory` sends a million.
use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use m2m_proto::{
    coap::{code::Code, option_set::OptionSet},
    config::{Config, Limits},
    event::{ClaimOutcome, Event, IncomingId, Output},
    id::Id,
    net::Net,
    session::{
        Secure,
        handshake::{InitFields, Initiator},
        keys::{DeviceKey, DhSecret, NetKey, Role, Suite, SuiteSet},
    },
    stats::Drop as Reason,
    time::Time,
    wire::{
        bundle::{Element, PlainWriter, elements},
        frame::{Epoch, Frame, KeyBytes, RelayFlags, Req},
        packet::{Caps, Init, KeyId, Packet, Token},
    },
};

const HOST: Id = Id([1; 16]);
/// Ten thousand packets a second.
const STEP: Duration = Duration::from_micros(100);
/// The served session asks once in so many packets of the flood.
const ASKS_EVERY: u32 = 100;

/// What one session takes at the most: itself, its keys, its place in the tables, control frames that wait, tails.
const SESSION: usize = 3 << 10;
/// What a slot of a session that is gone leaves behind, in tables that don't shrink.
const SLOT: usize = 128;
/// Buffers that are kept for the next packets: so many of each of three sizes, each smaller than the next size.
const SPARE: usize = 64;
const POOL: usize = SPARE * (512 + 1232 + 2048);

fn key() -> NetKey {
    NetKey::new(&[7; 32]).unwrap()
}

fn packets() -> u32 {
    std::env::var("M2M_FLOOD_PACKETS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000)
}

fn limits() -> Limits {
    Limits {
        sessions: 300,
        sessions_per_peer: 4,
        spare_buffers: SPARE,
        half_open: 100,
        half_open_per_peer: 8,
        registrations: 50,
        open_incoming: 4,
        answer_bytes: 4 << 10,
        ..Limits::default()
    }
}

/// Another source with each number, and another network.
fn source(n: u32) -> SocketAddr {
    SocketAddr::from(((0x0A00_0000 | n << 8 | 1).to_be_bytes(), 1000 + (n % 7) as u16))
}

fn id(group: u8, n: u32) -> Id {
    let mut id = [group; 16];
    id[12..].copy_from_slice(&n.to_be_bytes());
    Id(id)
}

type Answers = Vec<(SocketAddr, Vec<u8>)>;

/// The machine under attack, and the bytes that it has on the heap.
struct Target {
    net: Net,
    now: Time,
    live: i64,
    most: i64,
    served: Option<Peer>,
    packets: u32,
}

impl Target {
    /// A host with one guest, who is served.
    fn new() -> Target {
        let mut net = None;
        let made = allocation_counter::measure(|| {
            let mut config = Config::new(HOST, key(), DeviceKey::from_bytes([1; 32]));
            (config.registry, config.relay, config.limits) = (true, true, limits());
            net = Some(Net::new(config, [9; 32], Time::ZERO));
        });
        let (net, live) = (net.unwrap(), made.bytes_current);
        let mut target =
            Target { net, now: Time::from_micros(1_000_000), live, most: live, served: None, packets: 0 };
        let mut served = Peer::open(&mut target, id(2, 0), "192.0.2.1:4000".parse().unwrap(), 1).unwrap();
        served.register(&mut target);
        target.served = Some(served);
        target
    }

    /// Does something with the machine, and notes what that does to its memory.
    fn measured(&mut self, act: impl FnOnce(&mut Net, Time)) {
        let (net, now) = (&mut self.net, self.now);
        let change = allocation_counter::measure(|| act(net, now));
        self.most = self.most.max(self.live + change.bytes_max as i64);
        self.live += change.bytes_current;
    }

    /// One packet, and what it is answered.
    fn deliver(&mut self, from: SocketAddr, packet: &mut [u8]) -> Answers {
        let mut answers = Vec::new();
        self.measured(|net, now| {
            net.handle_datagram(now, from, packet);
            carry_out(net, now, &mut answers);
        });
        answers
    }

    /// A packet of the flood; the served one asks now and then, and must be answered at once.
    fn flood(&mut self, from: SocketAddr, packet: &mut [u8]) -> Answers {
        let answers = self.deliver(from, packet);
        self.after_one();
        answers
    }

    fn after_one(&mut self) {
        self.packets += 1;
        self.now = self.now + STEP;
        self.pass_time();
        if self.packets.is_multiple_of(ASKS_EVERY) {
            self.ask_as_served();
        }
    }

    fn pass_time(&mut self) {
        // Outside of the measure: what the test keeps is neither taken from the machine nor given back by it.
        let mut answers = Vec::new();
        self.measured(|net, now| {
            net.handle_timeout(now);
            carry_out(net, now, &mut answers);
        });
    }

    fn ask_as_served(&mut self) {
        let mut served = self.served.take().unwrap();
        let ping = Frame::Ping { req: Req(self.packets as u16), next_s: 1200 };
        let answers = served.say(self, &[ping]);
        let pongs = served.hear(&answers, |frame| matches!(frame, Frame::Pong { .. }));
        assert_eq!(pongs, 1, "the served session after {} packets: {:?}", self.packets, self.net.stats());
        self.served = Some(served);
    }

    /// The bound on what the machine may have on the heap, and what it has to come back to.
    fn check(mut self, name: &str, start: i64) {
        let limits = limits();
        let session = SESSION + limits.answer_bytes + limits.open_incoming * 1200;
        let bound = start + (limits.sessions * session + POOL) as i64;
        assert!(self.most <= bound, "{name}: {} bytes, more than {bound}", self.most);
        assert!(self.net.sessions() <= limits.sessions && self.net.half_open() <= limits.half_open);
        assert!(self.net.registrations() <= limits.registrations);
        let flooded = self.live;
        // All but the served one fall silent, and it asks now and then, through the longest of all timers.
        for _ in 0..190 {
            self.now = self.now + Duration::from_secs(500);
            self.pass_time();
            self.ask_as_served();
        }
        let rest = start + (limits.sessions * SLOT + POOL) as i64;
        println!(
            "{name}: {start} bytes, {} at the most, {flooded} after it, {} a day later",
            self.most, self.live
        );
        assert!(self.live <= rest, "{name}: {} bytes stayed, more than {rest}", self.live);
        assert_eq!((self.net.sessions(), self.net.registrations()), (1, 1), "{name}: the served one");
    }
}

fn carry_out(net: &mut Net, now: Time, answers: &mut Answers) {
    loop {
        match net.poll_output(now) {
            Output::Timeout(_) => return,
            Output::Datagram { to, bytes } => {
                // What the test keeps of it is not the machine's.
                allocation_counter::opt_out(|| answers.push((to, bytes.clone())));
                net.recycle(bytes);
            }
            Output::Claim(claim) => net.claim_checked(now, claim.session, ClaimOutcome::Held),
            _ => {}
        }
    }
}

/// A peer driven by hand.
struct Peer {
    id: Id,
    address: SocketAddr,
    secure: Secure,
    established: m2m_proto::session::handshake::Established,
}

impl Peer {
    /// A session that is up, if the machine takes it.
    fn open(target: &mut Target, id: Id, address: SocketAddr, n: u32) -> Option<Peer> {
        let initiator = initiator(id, n);
        let mut init = initiator.init().to_vec();
        for _ in 0..2 {
            let answers = target.deliver(address, &mut init);
            match Packet::decode(&answers.first()?.1) {
                Ok(Packet::Cookie(reply)) => {
                    init = initiator.init_with_cookie(&initiator.read_cookie(&reply).unwrap()).to_vec();
                }
                Ok(Packet::Resp(resp)) => {
                    let established = initiator.read_resp(&resp).unwrap();
                    let secure = Secure::new(&established);
                    let mut peer = Peer { id, address, secure, established };
                    peer.say(target, &[Frame::Confirm { mem: 0, resume: None }]);
                    return Some(peer);
                }
                other => panic!("{other:?}"),
            }
        }
        None
    }

    fn register(&mut self, target: &mut Target) {
        let device = DeviceKey::from_bytes(core::array::from_fn(|n| self.id.0[n % 16]));
        let established = &self.established;
        let proof = device.prove(&established.peer_ephemeral, established.hash(), Role::Initiator).unwrap();
        let prove = Frame::Prove { public: &proof.public, mac: &proof.mac };
        self.say(target, &[prove, register(1, 1)]);
    }

    fn packet(&mut self, frames: &[Frame<'_>]) -> Vec<u8> {
        let mut packet = Vec::new();
        self.secure.begin(&mut packet);
        let mut plain = PlainWriter::new(&mut packet, 1200);
        frames.iter().for_each(|frame| assert!(plain.push_frame(frame)));
        self.secure.seal(&mut packet);
        packet
    }

    fn say(&mut self, target: &mut Target, frames: &[Frame<'_>]) -> Answers {
        let mut packet = self.packet(frames);
        target.deliver(self.address, &mut packet)
    }

    /// How many frames of a kind are in what came for this peer.
    fn hear(&mut self, answers: &Answers, wanted: impl Fn(&Frame<'_>) -> bool) -> usize {
        let mut count = 0;
        for (_, bytes) in answers.iter().filter(|(to, _)| *to == self.address) {
            let mut bytes = bytes.clone();
            let Ok(range) = self.secure.open(&mut bytes) else { continue };
            let frames = elements(&bytes[range]).unwrap();
            count += frames.filter(|e| matches!(e, Element::Frame(frame) if wanted(frame))).count();
        }
        count
    }
}

fn register(req: u16, epoch: u64) -> Frame<'static> {
    Frame::Register { req: Req(req), ephemeral: false, epoch: Epoch(epoch), lease_s: 600 }
}

fn initiator(src: Id, n: u32) -> Initiator {
    let fields = InitFields {
        dst: HOST,
        src,
        stoken: Token::new(n + 1).unwrap(),
        key_id: KeyId(0),
        suites: SuiteSet::of(&[Suite::Aes128Gcm]),
        caps: Caps(0),
        max_udp: 1200,
    };
    let mut ephemeral = [3; 32];
    ephemeral[..4].copy_from_slice(&n.to_be_bytes());
    Initiator::start(&fields, &key().pair(src, HOST), DhSecret::from_bytes(ephemeral))
}

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

#[test]
fn random_bytes_leave_nothing() {
    let (mut target, mut random) = (Target::new(), Random(1));
    let start = target.live;
    for n in 0..packets() {
        let len = random.next() as usize % 200;
        target.flood(source(n), &mut random.bytes(len));
    }
    let counted: u64 = target.net.stats().drops().map(|(_, count)| count).sum();
    assert_eq!(counted, u64::from(packets()), "each under one reason");
    target.check("random bytes", start);
}

#[test]
fn forged_inits_leave_nothing() {
    let (mut target, mut random) = (Target::new(), Random(2));
    let start = target.live;
    let init = *initiator(id(9, 0), 9).init();
    for n in 0..packets() {
        let mut forged = init;
        forged[44..52].copy_from_slice(&random.next().to_be_bytes());
        assert!(target.flood(source(n % 1000), &mut forged).is_empty());
    }
    let stats = target.net.stats();
    let counted = stats.dropped(Reason::BadHandshake) + stats.dropped(Reason::OverBudget);
    assert_eq!(counted, u64::from(packets()));
    target.check("forged INITs", start);
}

/// From all over, by one who has the net key: of one id, of many, and with cookies.
#[test]
fn half_open_handshakes_are_bounded_and_go() {
    for (name, ids, answers_cookies) in
        [("of one id", 1, false), ("of many ids", u32::MAX, false), ("with cookies", u32::MAX, true)]
    {
        let mut target = Target::new();
        let start = target.live;
        for n in 0..packets() / 4 {
            let initiator = initiator(id(3, n % ids), n + 100);
            let answers = target.flood(source(n), &mut initiator.init().to_vec());
            assert!(answers.iter().all(|(_, bytes)| bytes.len() <= Init::LEN));
            let Some((_, bytes)) = answers.first().filter(|_| answers_cookies) else { continue };
            if let Ok(Packet::Cookie(reply)) = Packet::decode(bytes) {
                let again = initiator.init_with_cookie(&initiator.read_cookie(&reply).unwrap());
                target.flood(source(n), &mut again.to_vec());
            }
        }
        let (stats, half_open) = (target.net.stats().clone(), target.net.half_open());
        let most = if ids == 1 {
            8
        } else if answers_cookies {
            100
        } else {
            50
        };
        assert_eq!(half_open, most, "{name}: as many as it may hold: {stats:?}");
        assert!(stats.cookies > 0 && (stats.dropped(Reason::OverBudget) > 0), "{name}: {stats:?}");
        target.check(name, start);
    }
}

#[test]
fn tokens_that_nobody_knows_leave_nothing() {
    let (mut target, mut random) = (Target::new(), Random(3));
    let start = target.live;
    for n in 0..packets() {
        let mut packet = random.bytes(40);
        packet[0] = 0x41;
        let answers = target.flood(source(n), &mut packet);
        assert!(answers.iter().all(|(_, bytes)| bytes.len() == 13));
    }
    assert_eq!(target.net.stats().dropped(Reason::UnknownToken), u64::from(packets()));
    target.check("unknown tokens", start);
}

#[test]
fn bad_seals_and_replayed_packets_leave_nothing() {
    let (mut target, mut random) = (Target::new(), Random(4));
    let mut victim = Peer::open(&mut target, id(4, 0), "192.0.2.9:4000".parse().unwrap(), 50).unwrap();
    let good = victim.packet(&[Frame::Pad]);
    target.deliver(victim.address, &mut good.clone());
    let start = target.live;
    for n in 0..packets() {
        let mut packet = good.clone();
        if n % 2 == 0 {
            packet[5..7].copy_from_slice(&(random.next() as u16).to_be_bytes());
        }
        assert!(target.flood(source(n), &mut packet).is_empty());
    }
    let stats = target.net.stats();
    assert_eq!(stats.dropped(Reason::BadSeal) + stats.dropped(Reason::Replayed), u64::from(packets()));
    assert!(stats.dropped(Reason::BadSeal) > 0 && stats.dropped(Reason::Replayed) > 0);
    target.check("bad seals", start);
}

/// One who has the net key opens sessions from everywhere until none is taken any more, and registers in each.
#[test]
fn sessions_and_registrations_stop_at_their_caps() {
    let mut target = Target::new();
    let start = target.live;
    for n in 0..packets() / 10 {
        let opened = Peer::open(&mut target, id(5, n), source(n), n + 100);
        if let Some(mut peer) = opened {
            peer.register(&mut target);
        }
        target.now = target.now + Duration::from_millis(10);
        target.after_one();
    }
    assert_eq!(target.net.sessions(), limits().sessions);
    assert_eq!(target.net.registrations(), limits().registrations);
    assert!(target.net.stats().dropped(Reason::TableFull) > 0);
    target.check("sessions", start);
}

/// A guest says everything that makes its host keep something, over and over, from here and there.
#[test]
fn a_registered_guest_can_fill_no_table() {
    let (mut target, mut random) = (Target::new(), Random(5));
    let start = target.live;
    let mut guest = Peer::open(&mut target, id(6, 0), "192.0.2.66:4000".parse().unwrap(), 60).unwrap();
    guest.register(&mut target);
    for n in 0..packets() {
        let req = Req(n as u16);
        let (dst, src) = (id(7, random.next() as u32), guest.id);
        let inner = match n % 3 {
            0 => initiator(src, n + 1000).init().to_vec(),
            1 => vec![0x41; 40],
            _ => random.bytes(60),
        };
        let to = if n % 2 == 0 { HOST } else { dst };
        let secret = DhSecret::from_bytes([n as u8; 32]);
        let frame = match random.next() % 9 {
            0 => Frame::Lookup { req, id: if n % 2 == 0 { id(2, 0) } else { dst } },
            1 => Frame::Relay { hop_limit: 16, flags: RelayFlags(0), dst: to, src, inner: &inner },
            2 => register(n as u16, u64::from(n)),
            3 => Frame::Unregister { req, epoch: Epoch(u64::from(n)) },
            4 => Frame::PathChallenge(random.next().to_be_bytes()),
            5 => Frame::NewToken { req, token: n + 1 },
            6 => Frame::Rekey { req, generation: 1, ephemeral: secret.public(), key: KeyBytes::NONE },
            7 => Frame::ProveAsk { req },
            _ => Frame::Ping { req, next_s: 0 },
        };
        let mut packet = guest.packet(&[frame]);
        target.flood(if n % 5 == 0 { source(n) } else { guest.address }, &mut packet);
    }
    target.check("a guest", start);
}

/// Requests that the user never answers, with bodies as large as they may be.
#[test]
fn requests_that_nobody_answers_are_bounded() {
    let mut target = Target::new();
    let start = target.live;
    let mut guests: Vec<Peer> = (0..20)
        .map(|n| {
            target.now = target.now + Duration::from_millis(100);
            Peer::open(&mut target, id(8, n), source(n), n + 100).unwrap()
        })
        .collect();
    for n in 0..packets() {
        let guest = &mut guests[n as usize % 20];
        let mut message = vec![0x44, 0x02];
        message.extend((n as u16).to_be_bytes());
        message.extend(n.to_be_bytes());
        message.push(0xFF);
        message.resize(1100, 7);
        let mut packet = Vec::new();
        guest.secure.begin(&mut packet);
        assert!(PlainWriter::new(&mut packet, 1150).push_message(&message));
        guest.secure.seal(&mut packet);
        let from = guest.address;
        target.flood(from, &mut packet);
    }
    target.check("requests", start);
}

/// Peers that ask and never read an answer: those that leave with the acknowledgement, and those that leave later in
/// messages of their own, which wait for theirs.
#[test]
fn answers_that_nobody_reads_are_bounded() {
    let mut target = Target::new();
    let start = target.live;
    let mut guests: Vec<Peer> = (0..20)
        .map(|n| {
            target.now = target.now + Duration::from_millis(100);
            Peer::open(&mut target, id(9, n), source(n), n + 100).unwrap()
        })
        .collect();
    let mut late = VecDeque::new();
    let mut answered = 0;
    for n in 0..packets() {
        let guest = &mut guests[n as usize % 20];
        let mut message = vec![0x44, 0x01];
        message.extend((n as u16).to_be_bytes());
        message.extend(n.to_be_bytes());
        let mut packet = Vec::new();
        guest.secure.begin(&mut packet);
        assert!(PlainWriter::new(&mut packet, 1150).push_message(&message));
        guest.secure.seal(&mut packet);
        let from = guest.address;
        target.measured(|net, now| {
            net.handle_datagram(now, from, &mut packet);
            answered += answer(net, now, n, &mut late);
        });
        target.after_one();
    }
    assert!(answered > 20 * limits().open_incoming as u32, "{answered}");
    target.check("answers", start);
}

/// Answers every other request at once, and the others when they were acknowledged long ago. How many.
fn answer(net: &mut Net, now: Time, n: u32, late: &mut VecDeque<(Time, IncomingId)>) -> u32 {
    let mut due = Vec::new();
    loop {
        match net.poll_output(now) {
            Output::Timeout(_) => break,
            Output::Datagram { bytes, .. } => net.recycle(bytes),
            Output::Event(Event::Request { incoming, message, .. }) => {
                net.recycle(message);
                allocation_counter::opt_out(|| {
                    if n.is_multiple_of(2) {
                        due.push(incoming);
                    } else {
                        late.push_back((now + Duration::from_millis(100), incoming));
                    }
                });
            }
            _ => {}
        }
    }
    while late.front().is_some_and(|(at, _)| *at <= now) {
        let Some((_, incoming)) = late.pop_front() else { break };
        allocation_counter::opt_out(|| due.push(incoming));
    }
    let count = due.len() as u32;
    for incoming in &due {
        // Those whose session has ended are void.
        let _ = net.respond(now, *incoming, Code::CONTENT, &OptionSet::new(), &[7; 1000]);
    }
    // What the test keeps is not the machine's, to the last.
    allocation_counter::opt_out(|| drop(due));
    count
}
