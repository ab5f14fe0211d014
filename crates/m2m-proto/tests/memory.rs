//! What a server keeps of each idle session. `cargo xtask memory` tells it of a million; with
//! `RUSTFLAGS="--cfg m2m_toy_dh"` in a tenth of the time.
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use allocation_counter::{AllocationInfo, measure};
use m2m_proto::{
    coap::{code::Code, message::Message, option_set::OptionSet},
    config::{Config, Rate},
    event::{ClaimOutcome, Event, Output},
    id::Id,
    net::Net,
    session::{
        Secure,
        handshake::{InitFields, Initiator},
        keys::{DeviceKey, DhSecret, NetKey, SuiteSet},
    },
    time::Time,
    wire::{
        bundle::PlainWriter,
        frame::{Epoch, Frame, Req},
        packet::{Caps, KeyId, Packet, Suite, Token},
    },
};

/// The figure to reach, everything counted.
const BYTES_PER_SESSION: usize = 512;
/// The same of what a host keeps beside it of a net that is registered.
const BYTES_PER_REGISTRATION: usize = 256;
/// What the allocator adds to each allocation: its own head of 8 bytes, and as many for the rounding to 16.
const ALLOCATION_OVERHEAD: usize = 16;

const START: Time = Time::from_micros(1_000_000);
const SERVER: Id = Id([0xEE; 16]);

fn key() -> NetKey {
    NetKey::new(&[7; 32]).unwrap()
}

/// What each of many nets does with the server.
#[derive(Clone, Copy)]
struct Habit {
    registers: bool,
    asks: bool,
}

fn server(sessions: usize) -> Net {
    let mut config = Config::new(SERVER, key(), DeviceKey::from_bytes([1; 32]));
    let unlimited = Rate::new(u32::MAX, u32::MAX);
    (config.registry, config.relay) = (true, true);
    let limits = &mut config.limits;
    (limits.sessions, limits.registrations, limits.half_open) = (2 * sessions, 2 * sessions, 1_000);
    // As many for all numbers of sessions, so that they do not count.
    limits.warm_sessions = 64;
    (limits.dh_rate, limits.proven_dh_rate, limits.init_rate) = (unlimited, unlimited, unlimited);
    Net::new(config, [9; 32], START)
}

/// A net that keeps nothing of its session once that is up.
struct Visitor {
    id: Id,
    address: SocketAddr,
    secure: Secure,
}

impl Visitor {
    /// The `n`th one, with its session up.
    fn new(server: &mut Net, now: Time, n: usize) -> Visitor {
        let n = n as u32;
        let mut id = [0x10; 16];
        id[12..].copy_from_slice(&n.to_be_bytes());
        let (id, ip) = (Id(id), IpAddr::V4(Ipv4Addr::from_bits(0x0A00_0000 | n)));
        let address = SocketAddr::new(ip, 9527);
        let fields = InitFields {
            dst: SERVER,
            src: id,
            stoken: Token::new(n + 1).unwrap(),
            key_id: KeyId(0),
            suites: SuiteSet::of(&[Suite::Aes128Gcm]),
            caps: Caps(0),
            max_udp: 1200,
        };
        let mut secret = [3; 32];
        secret[..4].copy_from_slice(&n.to_be_bytes());
        let pair = key().pair(id, SERVER);
        let initiator = Initiator::start(&fields, &pair, DhSecret::from_bytes(secret));
        server.handle_datagram(now, address, &mut initiator.init().clone());
        let Output::Datagram { bytes, .. } = server.poll_output(now) else { panic!("no RESP for {n}") };
        let Ok(Packet::Resp(resp)) = Packet::decode(&bytes) else { panic!("no RESP for {n}") };
        let established = initiator.read_resp(&resp).unwrap();
        server.recycle(bytes);
        Visitor { id, address, secure: Secure::new(&established) }
    }

    fn say(&mut self, server: &mut Net, now: Time, frames: &[Frame<'_>], message: Option<&[u8]>) {
        let mut packet = Vec::new();
        self.secure.begin(&mut packet);
        let mut plain = PlainWriter::new(&mut packet, 1000);
        assert!(frames.iter().all(|frame| plain.push_frame(frame)));
        assert!(message.is_none_or(|message| plain.push_message(message)));
        self.secure.seal(&mut packet);
        server.handle_datagram(now, self.address, &mut packet);
    }
}

/// Carries out what the server wants; the number of requests and of registrations that it tells of.
fn settle(server: &mut Net, now: Time) -> (usize, usize) {
    let (mut requests, mut registrations) = (0, 0);
    loop {
        match server.poll_output(now) {
            Output::Timeout(_) => return (requests, registrations),
            Output::Datagram { bytes, .. } => server.recycle(bytes),
            Output::Claim(claim) => server.claim_checked(now, claim.session, ClaimOutcome::Held),
            Output::Event(Event::Request { incoming, message, .. }) => {
                let payload = Message::parse(&message).unwrap().payload();
                server.respond(now, incoming, Code::CHANGED, &OptionSet::default(), payload).unwrap();
                server.recycle(message);
                requests += 1;
            }
            Output::Event(Event::Registered { .. }) => registrations += 1,
            _ => {}
        }
    }
}

/// All sessions come up, do what they do, and rest for five minutes; one comes in a millisecond, so that the first of
/// many have been at rest for long when the last ones come; those who register faster, before a lease is over.
fn visit(server: &mut Net, sessions: usize, habit: Habit) -> Time {
    let mut now = START;
    let confirm = Frame::Confirm { mem: 0, resume: None };
    let ping = Frame::Ping { req: Req(1), next_s: 0 };
    let register = Frame::Register { req: Req(2), ephemeral: true, epoch: Epoch(1), lease_s: 600 };
    let request = [0x44, 0x02, 0x12, 0x34, 1, 2, 3, 4, 0xFF, b'o', b'n'];
    for n in 0..sessions {
        now = now + Duration::from_micros(if habit.registers { 10 } else { 1_000 });
        server.handle_timeout(now);
        // What the visitor keeps is gone before the next one comes.
        let mut visitor = Visitor::new(server, now, n);
        let frames = [confirm, ping, register];
        let message = habit.asks.then_some(&request[..]);
        visitor.say(server, now, &frames[..if habit.registers { 3 } else { 2 }], message);
        let told = settle(server, now);
        assert_eq!(told, (usize::from(habit.asks), usize::from(habit.registers)), "{:?}", visitor.id);
        // Whatever it comes back for: the next packet finds the server as an idle session has it.
        visitor.say(server, now, &[ping], None);
        settle(server, now);
    }
    let rest = if habit.registers { Duration::from_secs(100) } else { Duration::from_secs(300) };
    for _ in 0..10 {
        now = now + rest / 10;
        server.handle_timeout(now);
        settle(server, now);
    }
    now
}

/// What `sessions` of them take, beyond what the net takes without any: bytes asked for, allocations.
fn held(sessions: usize, habit: Habit) -> (usize, usize) {
    let mut net = server(sessions);
    let AllocationInfo { bytes_current, count_current, .. } = measure(|| {
        visit(&mut net, sessions, habit);
    });
    assert_eq!(net.sessions(), sessions);
    assert_eq!(net.registrations(), if habit.registers { sessions } else { 0 });
    // Round keys and buffers are kept for as many as are busy at once, whatever the number of sessions.
    (usize::try_from(bytes_current).unwrap(), usize::try_from(count_current).unwrap())
}

/// Bytes of one more session, from a small number of them to one at which tables have just grown.
fn per_session(habit: Habit) -> usize {
    let (few, many) = (256, 1_900);
    let ((few_bytes, few_count), (many_bytes, many_count)) = (held(few, habit), held(many, habit));
    let bytes = many_bytes - few_bytes + (many_count - few_count) * ALLOCATION_OVERHEAD;
    bytes.div_ceil(many - few)
}

#[test]
fn an_idle_session_takes_no_more_than_it_may() {
    let fresh = per_session(Habit { registers: false, asks: false });
    let used = per_session(Habit { registers: false, asks: true });
    println!("{fresh} bytes a session, {used} of one that was used before");
    assert!(fresh <= BYTES_PER_SESSION && used <= BYTES_PER_SESSION, "{fresh} fresh, {used} used");
}

#[test]
fn a_registration_takes_little_more() {
    let [plain, registered] = [false, true].map(|registers| per_session(Habit { registers, asks: false }));
    println!("{} bytes a registration beside its session", registered - plain);
    assert!(registered - plain <= BYTES_PER_REGISTRATION, "{registered} against {plain}");
}

/// Resident bytes of this process, where the system tells.
fn resident() -> Option<usize> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(pages.split_whitespace().nth(1)?.parse::<usize>().ok()? * 4096)
}

#[test]
#[ignore = "M2M_SESSIONS says how many: cargo xtask memory"]
#[expect(clippy::disallowed_methods, reason = "it says how long a sweep takes; the machine has no clock")]
fn as_many_sessions_as_asked_for() {
    let sessions = std::env::var("M2M_SESSIONS").expect("M2M_SESSIONS says how many");
    let sessions: usize = sessions.parse().expect("M2M_SESSIONS is a number");
    for (registers, asks) in [(false, false), (false, true), (true, false)] {
        let before = resident().unwrap();
        let mut net = server(sessions);
        let mut now = START;
        let info = measure(|| now = visit(&mut net, sessions, Habit { registers, asks }));
        let each = (resident().unwrap() - before) as f64 / sessions as f64;
        println!(
            "{sessions} sessions, registered: {registers}, used before: {asks}: {each:.1} B resident each; {:.1} B in {:.3} allocations",
            info.bytes_current as f64 / sessions as f64,
            info.count_current as f64 / sessions as f64,
        );
        let began = std::time::Instant::now();
        net.handle_timeout(now + Duration::from_secs(1));
        println!("one tick without anything due: {:?}", began.elapsed());
        assert!(registers || each <= BYTES_PER_SESSION as f64, "{each}");
    }
}
