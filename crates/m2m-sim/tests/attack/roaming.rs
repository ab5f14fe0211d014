//! Sessions that somebody would like to lead elsewhere, and addresses that somebody would like to have flooded.
use std::{collections::VecDeque, net::SocketAddr};

use m2m_proto::{
    event::Event,
    net::Path,
    stats::Drop,
    time::Duration,
    wire::frame::{Frame, RegisterStatus, RelayFlags, Req},
};
use m2m_sim::{NetIndex, World, world::Seen};

use crate::rig::*;

/// Where the attacker, or its victim, lives.
const ELSEWHERE: &str = "203.0.113.7:4000";

fn elsewhere() -> SocketAddr {
    ELSEWHERE.parse().expect("an address")
}

/// A net, number 1, and a peer driven by hand, number 2, with a session.
fn session(is_host: bool) -> (World, NetIndex, Hand) {
    let mut world = World::new(1);
    let net = if is_host { world.add_host(1) } else { world.add(World::config(1)) };
    let hand = Hand::up(&mut world, 2, net, 1);
    (world, net, hand)
}

/// Where the net sends this hand's packets.
fn path(world: &mut World, net: NetIndex) -> Path {
    let accepted = world.member(net).events.iter().find_map(|(_, event)| match event {
        Event::Accepted { session, .. } => Some(*session),
        _ => None,
    });
    let session = accepted.expect("the session was told");
    world.net(net).info(session).expect("it stands").path
}

/// Bytes that went to an address, by the tap, and the largest number of packets in them.
fn sent_to(world: &World, to: SocketAddr) -> (usize, usize) {
    let tap = world.tap.as_ref().expect("there is a tap");
    let there = || tap.iter().filter(|(_, at, _)| *at == to);
    (there().map(|(_, _, bytes)| bytes.len()).sum(), there().count())
}

fn challenges(frame: &Frame<'_>) -> Option<[u8; 8]> {
    match frame {
        Frame::PathChallenge(data) => Some(*data),
        _ => None,
    }
}

fn ping(req: u16) -> Frame<'static> {
    Frame::Ping { req: Req(req), next_s: 30 }
}

/// What came to another address of the hand's since the start, opened.
fn heard_at(world: &mut World, hand: &mut Hand, address: SocketAddr) -> Vec<Vec<u8>> {
    let home = core::mem::replace(&mut hand.address, address);
    let heard = hand.hear(world);
    hand.address = home;
    heard
}

#[test]
fn a_replayed_packet_from_elsewhere_moves_nothing() {
    for is_host in [false, true] {
        let (mut world, net, mut hand) = session(is_host);
        let packet = hand.packet(&[ping(1)]);
        hand.send(&mut world, &packet);
        world.run(BEAT);
        world.inject(elsewhere(), hand.to, &packet);
        world.run(10 * SECOND);
        assert_eq!(path(&mut world, net), Path::Direct(hand.address));
        assert_eq!(sent_to(&world, elsewhere()), (0, 0));
        assert_eq!(dropped(&mut world, net, Drop::Replayed), 1);
    }
}

#[test]
fn an_older_packet_from_elsewhere_is_taken_and_moves_nothing() {
    let (mut world, net, mut hand) = session(false);
    let (older, newer) = (hand.packet(&[ping(1)]), hand.packet(&[ping(2)]));
    hand.send(&mut world, &newer);
    world.run(BEAT);
    hand.hear(&mut world);
    world.inject(elsewhere(), hand.to, &older);
    let pongs = pick(&hand.hear(&mut world), |frame| match frame {
        Frame::Pong { req, .. } => Some(*req),
        _ => None,
    });
    assert_eq!(pongs, [Req(1)], "it is answered where the peer is");
    assert_eq!(sent_to(&world, elsewhere()), (0, 0));
    assert_eq!(path(&mut world, net), Path::Direct(hand.address));
}

#[test]
fn a_withheld_packet_from_elsewhere_gets_no_more_than_a_multiple_of_its_bytes() {
    for (is_host, factor) in [(false, 3), (true, 1)] {
        for padding in [0, 1, 4, 20, 200, 1100] {
            let (mut world, net, mut hand) = session(is_host);
            let mut plain = vec![0x3F, 5, 1, 0, 9, 0, 30];
            let pad = vec![0; padding];
            if padding > 0 {
                plain.extend([0x80 | (padding >> 8) as u8, padding as u8]);
                plain.extend(pad);
            }
            let packet = hand.seal(&plain);
            world.inject(elsewhere(), hand.to, &packet);
            world.run(20 * SECOND);
            let (bytes, _) = sent_to(&world, elsewhere());
            assert!(bytes <= (factor * packet.len()).min(1200), "{bytes} for {}", packet.len());
            assert!(bytes > 0 || packet.len() < 32, "{} bytes pay for a challenge", packet.len());
            assert_eq!(path(&mut world, net), Path::Direct(hand.address), "nobody answered from there");
            assert_eq!(world.net(net).stats().moves_failed, 1);
            assert_eq!(world.net(net).stats().moves, 0);
        }
    }
}

#[test]
fn a_challenge_fits_the_shortest_ping_of_a_net() {
    let mut world = World::new(2);
    let host = world.add_host(1);
    let device = world.add_guest(2, host, 1);
    registered(&mut world, device);
    world.move_net(device, elsewhere(), false);
    world.run(50 * SECOND);
    let seen_at = world.wait_for(device, SECOND, |event| match event {
        Event::HostConnected { public: Some(public), .. } if *public == elsewhere() => Some(*public),
        _ => None,
    });
    assert_eq!(seen_at, elsewhere());
    assert_eq!(world.net(host).stats().moves, 1);
    assert_eq!(world.watch.violations, [""; 0]);
}

#[test]
fn only_the_right_data_from_the_right_place_moves() {
    let (mut world, net, mut hand) = session(false);
    let home = hand.address;
    let packet = hand.packet(&[ping(1)]);
    world.inject(elsewhere(), hand.to, &packet);
    let [new] = pick(&heard_at(&mut world, &mut hand, elsewhere()), challenges)[..] else {
        panic!("one challenge there")
    };
    let packet = hand.packet(&[Frame::PathResponse([7; 8])]);
    world.inject(elsewhere(), hand.to, &packet);
    let packet = hand.packet(&[Frame::PathResponse(new)]);
    world.inject("203.0.113.8:4000".parse().unwrap(), hand.to, &packet);
    world.run(BEAT);
    assert_eq!(path(&mut world, net), Path::Direct(home));
    let packet = hand.packet(&[Frame::PathResponse(new)]);
    world.inject(elsewhere(), hand.to, &packet);
    world.run(BEAT);
    assert_eq!(path(&mut world, net), Path::Direct(elsewhere()));
}

#[test]
fn old_and_new_place_are_asked_different_things_and_the_old_one_takes_the_move_back() {
    let (mut world, net, mut hand) = session(false);
    let home = hand.address;
    let seen = world.tap.as_ref().map_or(0, Vec::len);
    let packet = hand.packet(&[ping(1)]);
    world.inject(elsewhere(), hand.to, &packet);
    world.run(BEAT);
    let mut data = Vec::new();
    let sent: Vec<_> = world.tap.as_ref().unwrap()[seen..].to_vec();
    for to in [elsewhere(), home] {
        let secure = hand.secure.as_mut().unwrap();
        let opened = sent.iter().filter(|(_, at, _)| *at == to).filter_map(|(_, _, bytes)| {
            let mut bytes = bytes.clone();
            let range = secure.open(&mut bytes).ok()?;
            Some(bytes[range].to_vec())
        });
        let opened: Vec<_> = opened.collect();
        data.push(pick(&opened, challenges)[0]);
    }
    assert_ne!(data[0], data[1]);
    let packet = hand.packet(&[Frame::PathResponse(data[0])]);
    world.inject(elsewhere(), hand.to, &packet);
    world.run(BEAT);
    assert_eq!(path(&mut world, net), Path::Direct(elsewhere()));
    // A mere probe from there says only that the peer can be reached there, too.
    hand.say(&mut world, &[Frame::PathResponse(data[1])]);
    world.run(BEAT);
    assert_eq!(path(&mut world, net), Path::Direct(elsewhere()));
    hand.say(&mut world, &[Frame::PathResponse(data[1]), ping(2)]);
    world.run(BEAT);
    assert_eq!(path(&mut world, net), Path::Direct(home), "it is still where it was");
    // And for a while nothing leads it away again.
    let packet = hand.packet(&[ping(3)]);
    let (before, _) = sent_to(&world, elsewhere());
    world.inject(elsewhere(), hand.to, &packet);
    world.run(SECOND);
    assert_eq!(sent_to(&world, elsewhere()).0, before);
}

#[test]
fn a_hostile_peer_that_claims_a_victims_address_has_little_sent_there() {
    for (is_host, factor) in [(false, 3), (true, 1)] {
        let (mut world, net, mut hand) = session(is_host);
        let mut claimed = 0;
        for n in 0..200u16 {
            // All that elicits answers, in one packet: pings, challenges, look-ups.
            let frames =
                [ping(n), Frame::PathChallenge([9; 8]), Frame::Lookup { req: Req(n), id: World::id(2) }];
            let packet = hand.packet(&frames);
            claimed += packet.len();
            world.inject(elsewhere(), hand.to, &packet);
            world.run(Duration::from_millis(50));
            let (bytes, _) = sent_to(&world, elsewhere());
            assert!(bytes <= factor * claimed, "{bytes} for {claimed}");
        }
        world.run(20 * SECOND);
        let (bytes, packets) = sent_to(&world, elsewhere());
        assert!(bytes <= factor * claimed, "{bytes} for {claimed}");
        assert!(packets < 400, "{packets}");
        assert_eq!(path(&mut world, net), Path::Direct(hand.address));
    }
}

#[test]
fn a_large_answer_goes_elsewhere_at_most_once_a_round_trip_and_never_beyond_a_packets_worth() {
    let (mut world, net, mut hand) = session(false);
    for n in 0..40u8 {
        // A request of 500 bytes, whose answer has 1000.
        let mut plain = vec![0x40, 0x02, 0x12, n, 0xFF];
        plain.extend([b'x'; 500]);
        let packet = hand.seal(&plain);
        world.inject(elsewhere(), hand.to, &packet);
        let incoming = world.wait_for(net, SECOND, |event| match event {
            Event::Request { incoming, .. } => Some(*incoming),
            _ => None,
        });
        world.command(net, |net, now| {
            let options = Default::default();
            net.respond(now, incoming, m2m_proto::coap::code::Code::CHANGED, &options, &[b'y'; 1000])
                .unwrap();
        });
        world.run(Duration::from_millis(2));
    }
    let (bytes, _) = sent_to(&world, elsewhere());
    assert!((1000..=1200).contains(&bytes), "{bytes}: one answer, and challenges");
}

#[test]
fn a_flood_of_addresses_costs_two_packets_a_timeout() {
    let (mut world, net, mut hand) = session(false);
    let before = world.net(net).stats().datagrams_out;
    for n in 0..2000u16 {
        let packet = hand.packet(&[Frame::Confirm { mem: 0, resume: None }]);
        world.inject(SocketAddr::from(([198, 51, (n >> 8) as u8, n as u8], 4000)), hand.to, &packet);
        world.run(Duration::from_millis(1));
    }
    world.run(20 * SECOND);
    let sent = world.net(net).stats().datagrams_out - before;
    assert!(sent <= 30, "{sent} packets for 2000 addresses in 2 seconds");
    assert_eq!(path(&mut world, net), Path::Direct(hand.address));
    assert_eq!(world.net(net).sessions(), 1);
}

#[test]
fn packets_from_third_places_do_not_keep_a_move_from_being_proven() {
    let (mut world, net, mut hand) = session(false);
    let new: SocketAddr = "198.51.100.1:4000".parse().unwrap();
    let packet = hand.packet(&[ping(1)]);
    world.inject(new, hand.to, &packet);
    // Whoever holds packets back sends each on from another place.
    for n in 0..20u8 {
        let packet = hand.packet(&[ping(2)]);
        world.inject(SocketAddr::from(([203, 0, 113, n], 4000)), hand.to, &packet);
        world.run(Duration::from_millis(1));
    }
    let [data] = pick(&heard_at(&mut world, &mut hand, new), challenges)[..] else { panic!("one challenge") };
    let packet = hand.packet(&[Frame::PathResponse(data)]);
    world.inject(new, hand.to, &packet);
    world.run(BEAT);
    assert_eq!(path(&mut world, net), Path::Direct(new));
}

#[test]
fn a_registered_session_does_not_move_into_a_relay() {
    let mut world = World::new(3);
    let host = world.add_host(1);
    let mut hand = Hand::up(&mut world, 2, host, 1);
    let proof = hand.proof();
    let prove = Frame::Prove { public: &proof.public, mac: &proof.mac };
    let ok =
        hand.talk(&mut world, &[prove, register(1, m2m_sim::world::UNIX_START_MS)], |frame| match frame {
            Frame::Registered { status, .. } => Some(*status),
            _ => None,
        });
    assert_eq!(ok, [RegisterStatus::OK]);
    // A packet of the session, inside a later one of the same session.
    for n in 0..5 {
        let inner = hand.packet(&[ping(n)]);
        let relay = Frame::Relay {
            hop_limit: 16,
            flags: RelayFlags(0),
            dst: World::id(1),
            src: World::id(2),
            inner: &inner,
        };
        hand.say(&mut world, &[relay]);
        let inner = hand.packet(&[ping(n)]);
        let relay = Frame::Relay {
            hop_limit: 16,
            flags: RelayFlags(0),
            dst: World::id(1),
            src: World::id(2),
            inner: &inner,
        };
        let outer = hand.packet(&[relay]);
        hand.send(&mut world, &outer);
        world.run(SECOND);
    }
    assert_eq!(path(&mut world, host), Path::Direct(hand.address));
    assert_eq!(world.net(host).stats().moves, 0);
}

/// An attacker beside the path that copies whatever passes, faster than the network, from an address of its own, and
/// carries what is sent there.
struct CopyForward {
    nets: [SocketAddr; 2],
    seen: u64,
}

impl CopyForward {
    /// Lets one thing happen, and meddles with what left.
    fn step(&mut self, world: &mut World, until: m2m_proto::time::Time) -> bool {
        let goes_on = world.step(until).is_some();
        let new: Vec<Seen> =
            world.overheard.iter().flatten().filter(|seen| seen.serial > self.seen).cloned().collect();
        let delay = core::mem::replace(&mut world.faults.delay, Duration::from_millis(1));
        for seen in new.iter().rev() {
            self.seen = self.seen.max(seen.serial);
            let [a, b] = self.nets;
            let to = match (seen.from, seen.to) {
                (from, to) if from == a && to == b => b,
                (from, to) if from == b && to == a => a,
                (from, to) if to == elsewhere() => {
                    if from == a {
                        b
                    } else {
                        a
                    }
                }
                _ => continue,
            };
            world.replay(seen, elsewhere(), to, &seen.bytes);
        }
        world.faults.delay = delay;
        goes_on
    }
}

#[test]
fn who_passes_copies_on_and_stops_has_led_nobody_away_for_good() {
    let mut world = World::new(4);
    world.overheard = Some(VecDeque::new());
    let (a, b) = (world.add(World::config(2)), world.add(World::config(3)));
    let (session, there) = connected(&mut world, a, b, 3);
    let mut attacker = CopyForward { nets: [world.address(a), world.address(b)], seen: u64::MAX };
    attacker.seen = world.overheard.iter().flatten().map(|seen| seen.serial).max().unwrap();
    let mut answered = 0;
    for id in 0..60u64 {
        post(&mut world, a, session, id, b"x").unwrap();
        post(&mut world, b, there, id, b"x").unwrap();
        let until = world.now + Duration::from_millis(100);
        let meddles = id < 30;
        if id == 20 {
            let at = |world: &mut World, net, session| world.net(net).info(session).unwrap().path;
            let led = [at(&mut world, a, session), at(&mut world, b, there)];
            assert!(led.contains(&Path::Direct(elsewhere())), "the attack works while it lasts: {led:?}");
        }
        while if meddles { attacker.step(&mut world, until) } else { world.step(until).is_some() } {
            answered += answer_all(&mut world, a) + answer_all(&mut world, b);
        }
    }
    let until = world.now + 25 * SECOND;
    while world.step(until).is_some() {
        answered += answer_all(&mut world, a) + answer_all(&mut world, b);
    }
    assert_eq!(answered, 120);
    assert_eq!(world.net(a).info(session).unwrap().path, Path::Direct(world.address(b)));
    assert_eq!(world.net(b).info(there).unwrap().path, Path::Direct(world.address(a)));
}

/// Answers what a net was asked, and counts the answers that it got.
fn answer_all(world: &mut World, net: NetIndex) -> usize {
    let mut answers = 0;
    while let Some((_, event)) = world.member(net).events.pop_front() {
        match event {
            Event::Request { incoming, .. } => world.command(net, |net, now| {
                let options = Default::default();
                net.respond(now, incoming, m2m_proto::coap::code::Code::CHANGED, &options, b"y").unwrap();
            }),
            Event::Response { .. } => answers += 1,
            Event::RequestFailed { request, why } => panic!("request {} failed: {why}", request.0),
            Event::Closed { why, .. } => panic!("the session ended: {why}"),
            _ => {}
        }
    }
    answers
}
