//! Nobody gets more out of a net than he put in before his address is proven: whatever he sends, and whoever lives at
//! the address that he gives (protocol, section 12). Authentic packets from elsewhere may earn three times their bytes
//! from a net that neither registers nor relays (10.2); `roaming.rs` has that.
use std::net::SocketAddr;

use m2m_proto::{
    config::Rate,
    session::{
        handshake::Initiator,
        keys::{DhSecret, Suite},
    },
    time::Duration,
    wire::{
        frame::{Frame, Req},
        packet::Packet,
    },
};
use m2m_sim::{NetIndex, World};

use crate::rig::*;

/// An address that nobody has proven to be at, and what was sent in its name.
struct Victim {
    address: SocketAddr,
    sent: usize,
}

impl Victim {
    fn new(n: u16) -> Victim {
        Victim { address: SocketAddr::from(([203, 0, 113, 1 + (n % 200) as u8], 1000 + n)), sent: 0 }
    }

    fn says(&mut self, world: &mut World, to: SocketAddr, bytes: &[u8]) {
        self.sent += bytes.len();
        world.inject(self.address, to, bytes);
    }

    /// What comes to it in half a minute is no more than what was sent in its name; how many bytes that were.
    #[track_caller]
    fn is_spared(&self, world: &mut World, what: &str) -> usize {
        world.run(Duration::from_secs(30));
        let tap = world.tap.as_ref().expect("there is a tap");
        let came: usize =
            tap.iter().filter(|(_, to, _)| *to == self.address).map(|(_, _, bytes)| bytes.len()).sum();
        assert!(came <= self.sent, "{what}: {came} bytes for {}", self.sent);
        came
    }
}

/// A net, number 1, and one driven by hand with a session, number 2.
fn target(is_host: bool, dh_rate: Rate) -> (World, NetIndex, Hand) {
    let mut world = World::new(1);
    let mut config = World::config(1);
    (config.registry, config.relay) = (is_host, is_host);
    let net = world.add(config);
    let hand = Hand::up(&mut world, 2, net, 1);
    if dh_rate.burst == 0 {
        let mut config = World::config(1);
        (config.registry, config.relay, config.limits.dh_rate) = (is_host, is_host, dh_rate);
        world.kill(net);
        world.start(net, config);
    }
    (world, net, hand)
}

const PLENTY: Rate = Rate::new(400, 400);

#[test]
fn bytes_of_any_first_and_any_length_earn_no_more_than_themselves() {
    for is_host in [false, true] {
        let (mut world, _, hand) = target(is_host, PLENTY);
        let mut victims: Vec<Victim> = Vec::new();
        for first in 0..=255u8 {
            for (n, len) in [1usize, 5, 8, 13, 14, 16, 24, 64, 72, 104, 120, 1200].into_iter().enumerate() {
                let mut victim = Victim::new(u16::from(first) * 12 + n as u16);
                let mut bytes = vec![first; len];
                bytes.iter_mut().enumerate().skip(1).for_each(|(at, byte)| *byte = (at * 7) as u8);
                victim.says(&mut world, hand.to, &bytes);
                victims.push(victim);
            }
        }
        world.run(SECOND);
        let tap = world.tap.as_ref().unwrap();
        for victim in &victims {
            let came = tap.iter().filter(|(_, to, _)| *to == victim.address).map(|(_, _, b)| b.len());
            assert!(came.sum::<usize>() < victim.sent.max(1), "{} bytes", victim.sent);
        }
    }
}

#[test]
fn handshakes_of_all_kinds_earn_no_more_than_themselves() {
    for is_host in [false, true] {
        let (mut world, _, hand) = target(is_host, PLENTY);
        let good = *hand.start(&hand.fields(0x70), 7).init();
        let wrong = World::key(99).pair(hand.fields(0x71).src, hand.fields(0x71).dst);
        let forged = *Initiator::start(&hand.fields(0x71), &wrong, DhSecret::from_bytes([1; 32])).init();
        let (resp, _) = respond(&good, 1, &resp_fields(Suite::Aes128Gcm));
        for (n, (what, bytes, answered)) in [
            ("an authentic INIT", good.to_vec(), 104),
            ("a forged INIT", forged.to_vec(), 0),
            ("a RESP that nobody asked for", resp, 0),
            ("a COOKIE that nobody asked for", [&[0x93][..], &[1; 71]].concat(), 0),
            ("a hint", [&[0x95][..], &[1; 12]].concat(), 0),
        ]
        .into_iter()
        .enumerate()
        {
            let mut victim = Victim::new(n as u16);
            victim.says(&mut world, hand.to, &bytes);
            assert_eq!(victim.is_spared(&mut world, what), answered, "{what}");
        }
        // The same again and again, faster than any initiator repeats it: one RESP for all of them.
        let mut victim = Victim::new(99);
        for _ in 0..20 {
            victim.says(&mut world, hand.to, &good);
        }
        assert_eq!(victim.is_spared(&mut world, "an INIT 20 times"), 104);
    }
}

#[test]
fn cookies_are_smaller_than_what_they_answer_wherever_they_are_shown() {
    for is_host in [false, true] {
        let (mut world, _, mut hand) = target(is_host, Rate::new(0, 0));
        let initiator = hand.start(&hand.fields(0x70), 7);
        let answers = hand.ask(&mut world, initiator.init());
        let Ok(Packet::Cookie(reply)) = Packet::decode(&answers[0]) else { panic!("a COOKIE") };
        let with = initiator.init_with_cookie(&initiator.read_cookie(&reply).unwrap());
        for (n, bytes) in [initiator.init().to_vec(), with.to_vec()].into_iter().enumerate() {
            let mut victim = Victim::new(n as u16);
            victim.says(&mut world, hand.to, &bytes);
            assert_eq!(victim.is_spared(&mut world, "INIT when cookies are asked for"), 72);
        }
    }
}

#[test]
fn packets_of_a_session_from_elsewhere_earn_no_more_than_themselves() {
    let challenge = Frame::PathChallenge([7; 8]);
    let ping = Frame::Ping { req: Req(9), next_s: 30 };
    for is_host in [false, true] {
        let (mut world, _, mut hand) = target(is_host, PLENTY);
        let heard = hand.packet(&[ping, challenge]);
        hand.send(&mut world, &heard);
        world.run(BEAT);
        let mut bad = hand.packet(&[ping, challenge]);
        *bad.last_mut().unwrap() ^= 1;
        let mut unknown = bad.clone();
        unknown[1] ^= 0x55;
        for (n, (what, bytes)) in
            [("a replayed packet", heard), ("a bad seal", bad), ("an unknown token", unknown)]
                .into_iter()
                .enumerate()
        {
            let mut victim = Victim::new(n as u16);
            victim.says(&mut world, hand.to, &bytes);
            let came = victim.is_spared(&mut world, what);
            assert_eq!(came, if n == 2 { 13 } else { 0 }, "{what}");
        }
        // Probes alone are echoed, once a packet, whoever said where they are from.
        let mut victim = Victim::new(50);
        for _ in 0..10 {
            let probe = hand.packet(&[challenge]);
            victim.says(&mut world, hand.to, &probe);
        }
        victim.is_spared(&mut world, "probes");
    }
    // Withheld, and sent from elsewhere: a host gives no more than came, whatever it is asked.
    let (mut world, _, mut hand) = target(true, PLENTY);
    let mut victim = Victim::new(60);
    for _ in 0..20 {
        let packet = hand.packet(&[ping, challenge]);
        victim.says(&mut world, hand.to, &packet);
    }
    victim.is_spared(&mut world, "authentic packets from elsewhere");
}

#[test]
fn the_packet_that_confirms_earns_nothing_elsewhere() {
    for is_host in [false, true] {
        let (mut world, net, _) = target(is_host, PLENTY);
        let mut late = Hand::new(&mut world, 3, net, 1);
        let fields = late.fields(0x77);
        late.half_open(&mut world, &fields, 0x77);
        let first = late.packet(&[
            Frame::Confirm { mem: 0, resume: None },
            Frame::Ping { req: Req(1), next_s: 30 },
            Frame::PathChallenge([7; 8]),
        ]);
        let mut victim = Victim::new(1);
        victim.says(&mut world, late.to, &first);
        assert_eq!(victim.is_spared(&mut world, "the first packet from elsewhere"), 0);
    }
}

/// INIT through a relay: the answer goes to the guest that brought it, and to nobody else.
#[test]
fn what_comes_through_a_relay_is_answered_through_it_alone() {
    let (mut world, _, mut hand) = target(true, PLENTY);
    let proof = hand.proof();
    let prove = Frame::Prove { public: &proof.public, mac: &proof.mac };
    hand.say(&mut world, &[prove, register(1, m2m_sim::world::UNIX_START_MS)]);
    hand.hear(&mut world);
    let init = *hand.start(&hand.fields(0x70), 7).init();
    let before = world.tap.as_ref().unwrap().len();
    for inner in [init.to_vec(), vec![0x41; 60], vec![0x95; 13]] {
        hand.say(
            &mut world,
            &[Frame::Relay {
                hop_limit: 16,
                flags: m2m_proto::wire::frame::RelayFlags(0),
                dst: World::id(1),
                src: World::id(2),
                inner: &inner,
            }],
        );
    }
    world.run(SECOND);
    let tap = &world.tap.as_ref().unwrap()[before..];
    assert!(!tap.is_empty() && tap.iter().all(|(_, to, _)| *to == hand.address), "only to the guest");
}
