//! Relays that are abused, and relays that abuse.
use m2m_proto::{
    config::{Config, Rate},
    error::ConnectError,
    event::Event,
    id::Id,
    net::{HostConfig, Route},
    session::{Secure, handshake::Established, keys::Suite},
    stats::Drop,
    time::Duration,
    wire::{
        frame::{ErrorCode, Frame, RegisterStatus, RelayFlags, Req},
        packet::Packet,
    },
};
use m2m_sim::{NetIndex, World, world::UNIX_START_MS};

use crate::rig::*;

/// Looks like a short packet; nobody knows its token.
const INNER: [u8; 32] = [0x41; 32];

fn relay<'a>(hop_limit: u8, src: u8, dst: u8, inner: &'a [u8]) -> Frame<'a> {
    Frame::Relay { hop_limit, flags: RelayFlags(0), dst: World::id(dst), src: World::id(src), inner }
}

fn errors(frame: &Frame<'_>) -> Option<(ErrorCode, Id, Id, [u8; 8])> {
    match frame {
        Frame::Error { code, dst, src, packet } => Some((*code, *dst, *src, *packet)),
        _ => None,
    }
}

fn codes(frame: &Frame<'_>) -> Option<ErrorCode> {
    errors(frame).map(|(code, ..)| code)
}

/// What was relayed: hop limit, source, destination, the packet.
fn relayed(frame: &Frame<'_>) -> Option<(u8, Id, Id, Vec<u8>)> {
    match frame {
        Frame::Relay { hop_limit, src, dst, inner, .. } => Some((*hop_limit, *src, *dst, inner.to_vec())),
        _ => None,
    }
}

/// A peer driven by hand, registered with the host.
fn guest(world: &mut World, number: u8, host: NetIndex) -> Hand {
    let mut hand = Hand::up(world, number, host, 1);
    let proof = hand.proof();
    let prove = Frame::Prove { public: &proof.public, mac: &proof.mac };
    let ok = hand.talk(world, &[prove, register(1, UNIX_START_MS)], |frame| match frame {
        Frame::Registered { status, .. } => Some(*status),
        _ => None,
    });
    assert_eq!(ok, [RegisterStatus::OK]);
    hand
}

/// A host, number 1, with two guests driven by hand, numbers 2 and 3.
fn relaying(change: impl FnOnce(&mut Config)) -> (World, NetIndex, Hand, Hand) {
    let mut world = World::new(1);
    let mut config = World::config(1);
    (config.registry, config.relay) = (true, true);
    change(&mut config);
    let host = world.add(config);
    let (a, b) = (guest(&mut world, 2, host), guest(&mut world, 3, host));
    (world, host, a, b)
}

#[test]
fn a_packet_is_forwarded_as_it_is_with_one_hop_less() {
    let (mut world, host, mut a, mut b) = relaying(|_| ());
    a.say(&mut world, &[relay(16, 2, 3, &INNER)]);
    let came = pick(&b.hear(&mut world), relayed);
    assert_eq!(came, [(15, World::id(2), World::id(3), INNER.to_vec())]);
    let stats = world.net(host).stats();
    assert_eq!((stats.relayed, stats.relayed_bytes), (1, 32));
}

#[test]
fn who_is_not_registered_may_not_relay() {
    let (mut world, host, _, mut b) = relaying(|_| ());
    let mut stranger = Hand::up(&mut world, 4, host, 1);
    let said = stranger.talk(&mut world, &[relay(16, 4, 3, &INNER)], errors);
    assert_eq!(said, [(ErrorCode::REFUSED, World::id(3), World::id(4), [0x41; 8])]);
    assert!(b.hear(&mut world).is_empty());
    assert_eq!(dropped(&mut world, host, Drop::RelayRefused), 1);
}

#[test]
fn nobody_sends_in_anothers_name() {
    let (mut world, host, mut a, mut b) = relaying(|_| ());
    for src in [3, 1, 9] {
        let said = a.talk(&mut world, &[relay(16, src, 3, &INNER)], codes);
        assert_eq!(said, [ErrorCode::REFUSED], "as {src}");
    }
    assert!(b.hear(&mut world).is_empty());
    assert_eq!(dropped(&mut world, host, Drop::RelayRefused), 3);
}

#[test]
fn an_older_session_of_a_guest_may_not_relay() {
    let (mut world, _, mut a, mut b) = relaying(|_| ());
    let mut again = Hand::new(&mut world, 2, NetIndex(0), 1);
    let fields = again.fields(0x4001);
    again.half_open(&mut world, &fields, 0x41);
    let said = again.talk(&mut world, &[relay(16, 2, 3, &INNER)], codes);
    assert_eq!(said, [ErrorCode::REFUSED], "the registration hangs on the other session");
    assert!(b.hear(&mut world).is_empty());
    a.say(&mut world, &[relay(16, 2, 3, &INNER)]);
    assert_eq!(pick(&b.hear(&mut world), relayed).len(), 1);
}

#[test]
fn an_unknown_destination_is_told_3_times_a_second_at_most() {
    let (mut world, host, mut a, _) = relaying(|_| ());
    let mut told = 0;
    for _ in 0..20 {
        a.say(&mut world, &[relay(16, 2, 9, &INNER)]);
    }
    let said = pick(&a.hear(&mut world), errors);
    assert!(said.iter().all(|error| *error == (ErrorCode::NO_ROUTE, World::id(9), World::id(2), [0x41; 8])));
    told += said.len();
    assert_eq!(told, 6, "a burst of 6");
    world.run(SECOND);
    for _ in 0..20 {
        a.say(&mut world, &[relay(16, 2, 9, &INNER)]);
    }
    assert_eq!(pick(&a.hear(&mut world), errors).len(), 3);
    assert_eq!(dropped(&mut world, host, Drop::NoRoute), 40);
}

#[test]
fn hops_run_out_and_cannot_be_had_in_plenty() {
    let (mut world, host, mut a, mut b) = relaying(|_| ());
    for hop_limit in [0, 1] {
        let said = a.talk(&mut world, &[relay(hop_limit, 2, 3, &INNER)], codes);
        assert_eq!(said, [ErrorCode::HOP_LIMIT]);
    }
    assert!(b.hear(&mut world).is_empty());
    assert_eq!(dropped(&mut world, host, Drop::HopLimit), 2);
    for (asked, left) in [(2, 1), (20, 19), (21, 19), (255, 19)] {
        a.say(&mut world, &[relay(asked, 2, 3, &INNER)]);
        assert_eq!(pick(&b.hear(&mut world), relayed)[0].0, left, "{asked}");
    }
}

#[test]
fn a_source_has_a_budget() {
    let (mut world, host, mut a, mut b) = relaying(|config| config.limits.relay_packets = Rate::new(1, 5));
    let mut c = guest(&mut world, 4, host);
    for _ in 0..12 {
        a.say(&mut world, &[relay(16, 2, 3, &INNER)]);
    }
    assert_eq!(pick(&b.hear(&mut world), relayed).len(), 5);
    assert!(pick(&a.hear(&mut world), codes).iter().all(|code| *code == ErrorCode::REFUSED));
    assert_eq!(dropped(&mut world, host, Drop::OverBudget), 7);
    c.say(&mut world, &[relay(16, 4, 2, &INNER)]);
    assert_eq!(pick(&a.hear(&mut world), relayed).len(), 1, "others are not touched by it");
}

#[test]
fn a_destination_has_a_budget_that_all_its_sources_share() {
    let (mut world, host, mut a, mut b) = relaying(|config| config.limits.relay_packets = Rate::new(1, 5));
    let mut c = guest(&mut world, 4, host);
    for _ in 0..4 {
        a.say(&mut world, &[relay(16, 2, 3, &INNER)]);
        c.say(&mut world, &[relay(16, 4, 3, &INNER)]);
    }
    assert_eq!(pick(&b.hear(&mut world), relayed).len(), 5);
}

#[test]
fn bytes_are_budgeted_too() {
    let (mut world, _, mut a, mut b) = relaying(|config| config.limits.relay_bytes = Rate::new(1, 100));
    for _ in 0..5 {
        a.say(&mut world, &[relay(16, 2, 3, &INNER)]);
    }
    assert_eq!(pick(&b.hear(&mut world), relayed).len(), 3);
}

#[test]
fn nothing_goes_back_to_where_it_came_from() {
    let (mut world, _, mut a, _) = relaying(|_| ());
    a.say(&mut world, &[relay(16, 2, 2, &INNER)]);
    let heard = a.hear(&mut world);
    assert!(pick(&heard, relayed).is_empty());
    assert_eq!(pick(&heard, codes), [ErrorCode::NO_ROUTE]);
}

#[test]
fn a_net_that_does_not_relay_is_silent() {
    let (mut world, host, mut a, mut b) = relaying(|config| config.relay = false);
    assert!(a.talk(&mut world, &[relay(16, 2, 3, &INNER)], errors).is_empty());
    let mut stranger = Hand::up(&mut world, 4, host, 1);
    assert!(stranger.talk(&mut world, &[relay(16, 4, 3, &INNER)], errors).is_empty());
    assert!(b.hear(&mut world).is_empty());
    assert_eq!(dropped(&mut world, host, Drop::NotMine), 2);
}

#[test]
fn an_error_is_never_answered() {
    let (mut world, _, mut a, mut b) = relaying(|_| ());
    let forged =
        Frame::Error { code: ErrorCode::NO_ROUTE, dst: World::id(3), src: World::id(2), packet: [1; 8] };
    a.hear(&mut world);
    b.hear(&mut world);
    a.say(&mut world, &[forged]);
    assert!(a.hear(&mut world).is_empty() && b.hear(&mut world).is_empty());
}

/// An end-to-end session through the host from guest 2, driven by hand, to the net of that number.
fn through(world: &mut World, a: &mut Hand, number: u8) -> Hand {
    let mut end = Hand::new(world, 2, NetIndex(0), number);
    end.peer = World::id(number);
    let initiator = end.start(&end.fields(0x5151), 0x51);
    a.hear(world);
    a.say(world, &[relay(16, 2, number, initiator.init())]);
    world.run(BEAT);
    let came = pick(&a.hear(world), relayed);
    let Ok(Packet::Resp(resp)) = Packet::decode(&came[0].3) else { panic!("a RESP, not {came:?}") };
    let established = initiator.read_resp(&resp).unwrap();
    end.secure = Some(Secure::new(&established));
    end.established = Some(established);
    end
}

/// Says frames end to end, through the hop session.
fn say_through(world: &mut World, a: &mut Hand, end: &mut Hand, number: u8, frames: &[Frame<'_>]) {
    let inner = end.packet(frames);
    a.say(world, &[relay(16, 2, number, &inner)]);
    world.run(BEAT);
}

#[test]
fn a_relay_inside_a_relayed_session_is_refused() {
    let mut world = World::new(2);
    let host = world.add_host(1);
    let mut a = guest(&mut world, 2, host);
    // Even one that relays for others.
    let mut config = World::config(3);
    (config.registry, config.relay) = (true, true);
    let b = world.add(config);
    world.join(b, host, 1);
    registered(&mut world, b);
    let mut end = through(&mut world, &mut a, 3);
    let nested = relay(16, 2, 3, &INNER);
    say_through(&mut world, &mut a, &mut end, 3, &[Frame::Confirm { mem: 0, resume: None }, nested]);
    assert_eq!(dropped(&mut world, b, Drop::RelayRefused), 1);
    assert_eq!(dropped(&mut world, b, Drop::UnknownToken), 0, "what was inside is not looked at");
    say_through(&mut world, &mut a, &mut end, 3, &[relay(16, 2, 1, &INNER)]);
    assert_eq!((dropped(&mut world, b, Drop::RelayRefused), world.net(b).stats().relayed), (2, 0));
}

/// A registered guest's own packet inside a RELAY inside a RELAY: each level was read inside the one around it, and
/// a datagram of 64 KB held a thousand of them.
#[test]
fn relays_inside_each_other_are_not_followed_down() {
    let mut world = World::new(4);
    let host = world.add_host(1);
    let mut a = guest(&mut world, 2, host);
    a.hear(&mut world);
    // The innermost was sealed first, so that each is fresh when its turn comes.
    let mut packet = a.packet(&[Frame::Ping { req: Req(77), next_s: 60 }]);
    for _ in 0..3 {
        packet = a.packet(&[relay(16, 2, 1, &packet)]);
    }
    a.send(&mut world, &packet);
    world.run(BEAT);
    assert_eq!(
        dropped(&mut world, host, Drop::RelayRefused),
        1,
        "the second level is the last one looked at"
    );
    let pongs = pick(&a.hear(&mut world), |frame| matches!(frame, Frame::Pong { .. }).then_some(()));
    assert!(pongs.is_empty());
}

#[test]
fn what_is_larger_than_any_packet_is_not_opened() {
    let mut world = World::new(5);
    let host = world.add_host(1);
    let mut a = guest(&mut world, 2, host);
    let before = dropped(&mut world, host, Drop::Malformed);
    let mut packet = a.packet(&[Frame::Ping { req: Req(78), next_s: 60 }]);
    packet.resize(1201, 0);
    a.send(&mut world, &packet);
    world.run(BEAT);
    assert_eq!(dropped(&mut world, host, Drop::Malformed), before + 1);
    assert_eq!(dropped(&mut world, host, Drop::BadSeal), 0, "no work was done for it");
}

/// A host driven by hand, number 1, with which net 2 is registered.
struct EvilHost {
    world: World,
    net: NetIndex,
    hand: Hand,
}

fn evil_host() -> EvilHost {
    let mut world = World::new(3);
    let net = world.add(World::config(2));
    let mut hand = Hand::new(&mut world, 1, net, 2);
    let addresses = vec![hand.address];
    world.command(net, |net, now| {
        net.add_host(now, HostConfig { id: World::id(1), key: key(1), addresses }).unwrap();
    });
    let init = hand.inbox(&mut world).remove(0);
    let (resp, established) = respond(&init, 1, &resp_fields(Suite::Aes128Gcm));
    hand.send(&mut world, &resp);
    hand.secure = Some(Secure::new(&established));
    let asked = pick(&hand.hear(&mut world), |frame| match frame {
        Frame::Register { req, epoch, .. } => Some((*req, *epoch)),
        Frame::Ping { .. } => None,
        _ => None,
    });
    let (req, epoch) = asked[0];
    let ok = Frame::Registered { req, status: RegisterStatus::OK, epoch, lease_s: 600, since: 0, path: &[] };
    hand.say(&mut world, &[ok, Frame::Pong { req: Req(0), draining: false, observed: None }]);
    registered(&mut world, net);
    EvilHost { world, net, hand }
}

impl EvilHost {
    fn connect(&mut self) -> (m2m_proto::event::SessionId, Vec<u8>) {
        self.hand.hear(&mut self.world);
        let session = self
            .world
            .command(self.net, |net, now| net.connect(now, World::id(9), &key(9), Route::Host).unwrap());
        let init = pick(&self.hand.hear(&mut self.world), relayed).remove(0).3;
        (session, init)
    }

    fn relay(&mut self, src: u8, inner: &[u8]) {
        self.hand.say(&mut self.world, &[relay(9, src, 2, inner)]);
        self.world.run(BEAT);
    }

    fn error(&mut self, packet: [u8; 8]) {
        let error = Frame::Error { code: ErrorCode::NO_ROUTE, dst: World::id(9), src: World::id(2), packet };
        self.hand.say(&mut self.world, &[error]);
        self.world.run(BEAT);
    }

    fn answer(&mut self, init: &[u8]) -> Established {
        let (resp, established) = respond(init, 9, &resp_fields(Suite::Aes128Gcm));
        self.relay(9, &resp);
        established
    }
}

fn tail(packet: &[u8]) -> [u8; 8] {
    *packet.last_chunk().unwrap()
}

#[test]
fn only_an_error_that_names_the_very_init_ends_the_wait_for_it() {
    let mut evil = evil_host();
    let (session, init) = evil.connect();
    evil.error([7; 8]);
    assert!(evil.world.net(evil.net).info(session).is_some());
    evil.error(tail(&init));
    let why = evil.world.wait_for(evil.net, SECOND, |event| match event {
        Event::ConnectFailed { why, .. } => Some(*why),
        _ => None,
    });
    assert_eq!(why, ConnectError::UnknownPeer);
}

#[test]
fn an_error_ends_no_session_that_stands() {
    let mut evil = evil_host();
    let (session, init) = evil.connect();
    evil.answer(&init);
    assert!(evil.world.net(evil.net).info(session).unwrap().up);
    let packets = pick(&evil.hand.hear(&mut evil.world), relayed);
    evil.error(tail(&init));
    for (.., packet) in packets {
        evil.error(tail(&packet));
    }
    assert!(evil.world.net(evil.net).info(session).unwrap().up);
}

#[test]
fn a_host_can_drop_what_it_relays_and_nothing_else() {
    let mut evil = evil_host();
    let (session, init) = evil.connect();
    // It holds its own key, not that of net 9: it cannot answer for it.
    let mut to_host = init.clone();
    to_host[4..20].copy_from_slice(&World::id(1).0);
    assert!(
        m2m_proto::session::handshake::open_init(
            &read_init(&to_host),
            &World::key(1).pair(World::id(2), World::id(1))
        )
        .is_err()
    );
    let (resp, established) = respond(&init, 9, &resp_fields(Suite::Aes128Gcm));
    for byte in 0..resp.len() {
        let mut forged = resp.clone();
        forged[byte] ^= 0x10;
        evil.relay(9, &forged);
    }
    assert!(!evil.world.net(evil.net).info(session).unwrap().up);
    evil.relay(9, &resp);
    assert!(evil.world.net(evil.net).info(session).unwrap().up);

    evil.hand.established = Some(established.clone());
    let mut nine = Secure::new(&established);
    let mut packet = Vec::new();
    nine.begin(&mut packet);
    Frame::Close { code: m2m_proto::wire::frame::CloseCode::DONE, text: "" }.encode(&mut packet);
    nine.seal(&mut packet);
    for byte in 0..packet.len() {
        let mut forged = packet.clone();
        forged[byte] ^= 0x10;
        evil.relay(9, &forged);
    }
    evil.relay(8, &packet);
    assert_eq!(dropped(&mut evil.world, evil.net, Drop::BadHandshake), dropped_by_forged_resps());
    assert!(evil.world.net(evil.net).info(session).unwrap().up, "forged, or in another's name");
    evil.relay(9, &packet);
    assert!(evil.world.net(evil.net).info(session).is_none(), "the true one ends it");
}

/// All of RESP but byte 0, the profile, flags and reserved bytes (malformed) and the stoken (unknown); and the packet
/// in another's name.
fn dropped_by_forged_resps() -> u64 {
    104 - 4 - 4 + 1
}

fn read_init(bytes: &[u8]) -> m2m_proto::wire::packet::Init<'_> {
    match Packet::decode(bytes) {
        Ok(Packet::Init(init)) => init,
        other => panic!("an INIT, not {other:?}"),
    }
}

#[test]
fn an_init_in_anothers_name_is_refused_behind_a_relay() {
    let mut evil = evil_host();
    let stranger = Hand::new(&mut evil.world, 7, evil.net, 2);
    let init = *stranger.start(&stranger.fields(5), 5).init();
    evil.hand.hear(&mut evil.world);
    evil.relay(6, &init);
    assert_eq!(dropped(&mut evil.world, evil.net, Drop::BadHandshake), 1);
    assert!(pick(&evil.hand.hear(&mut evil.world), relayed).is_empty());
    evil.relay(7, &init);
    assert_eq!(pick(&evil.hand.hear(&mut evil.world), relayed).len(), 1);
}

#[test]
fn a_relayed_packet_for_somebody_else_is_not_passed_on_by_a_guest() {
    let mut evil = evil_host();
    evil.hand.hear(&mut evil.world);
    evil.hand.say(&mut evil.world, &[relay(9, 7, 6, &INNER)]);
    assert!(evil.hand.hear(&mut evil.world).is_empty());
    assert_eq!(dropped(&mut evil.world, evil.net, Drop::NotMine), 1);
}

#[test]
fn a_forwarded_packet_is_never_larger_than_a_datagram() {
    // A neighbour of suite 4 has 8 bytes more room in its packets than the next hop has.
    let mut world = World::new(4);
    let mut config = World::config(1);
    (config.registry, config.relay) = (true, true);
    config.suites = vec![Suite::Aes128Ccm8, Suite::Aes128Gcm];
    let host = world.add(config);
    let mut a = Hand::new(&mut world, 2, host, 1);
    let mut fields = a.fields(0x1002);
    fields.suites = m2m_proto::session::keys::SuiteSet::of(&[Suite::Aes128Ccm8]);
    a.half_open(&mut world, &fields, 2);
    let proof = a.proof();
    a.say(&mut world, &[Frame::Prove { public: &proof.public, mac: &proof.mac }, register(1, UNIX_START_MS)]);
    a.hear(&mut world);
    let mut b = guest(&mut world, 3, host);
    a.say(&mut world, &[relay(16, 2, 3, &[0x41; 1200 - 35 - 15])]);
    a.say(&mut world, &[relay(16, 2, 3, &[0x41; 1142])]);
    // The world panics at a datagram that is too large.
    let came: Vec<usize> = pick(&b.hear(&mut world), relayed).iter().map(|(.., inner)| inner.len()).collect();
    assert_eq!(came, [1142]);
}

#[test]
fn a_relay_pings_a_neighbour_that_only_listens() {
    let (mut world, host, mut a, mut b) = relaying(|config| {
        config.limits.relay_packets = Rate::new(1_000_000, 1_000_000);
        config.limits.relay_bytes = Rate::new(1 << 30, 1 << 30);
    });
    let mut pings = 0;
    for n in 0..40_000u32 {
        a.say(&mut world, &[relay(16, 2, 3, &INNER)]);
        if n % 64 == 63 {
            let heard = b.hear(&mut world);
            let asked = pick(&heard, |frame| match frame {
                Frame::Ping { req, .. } => Some(*req),
                _ => None,
            });
            pings += asked.len();
            for req in asked {
                b.say(&mut world, &[Frame::Pong { req, draining: false, observed: None }]);
            }
        }
    }
    assert!((1..=4).contains(&pings), "{pings} pings in 40,000 packets");
    assert_eq!(world.net(host).registrations(), 2);
    world.run(Duration::from_millis(100));
}
