//! Rows S: what protected nothing.
use std::collections::BTreeSet;

use m2m_proto::{
    error::CommandError,
    event::{Event, RequestId},
    id::Id,
    net::Route,
    session::{
        handshake::Initiator,
        keys::{DeviceKey, DhSecret},
    },
    stats::Drop,
    wire::{
        frame::{FoundStatus, Frame, KeyBytes, Req},
        packet::Packet,
    },
};
use m2m_sim::World;

use crate::{answer, by_hand, echoes, pair, requests, rig::*, serve};

/// Blocks of 16 equal bytes looked alike under the cipher, in one packet and in all.
#[test]
fn s1_equal_plaintext_never_looks_alike_on_the_wire() {
    let (mut world, [a, b], [at_a, _]) = pair(1);
    world.tap = Some(Vec::new());
    for id in 1..=8 {
        post(&mut world, a, at_a, id, &[0x41; 512]).unwrap();
        serve(&mut world, b);
        answer(&mut world, a, id);
    }
    let mut blocks = BTreeSet::new();
    for (_, _, bytes) in world.tap.iter().flatten().filter(|(_, _, bytes)| bytes.len() > 512) {
        for block in bytes.windows(16) {
            assert!(blocks.insert(block.to_vec()), "a block came twice");
        }
    }
    assert!(blocks.len() > 16 * 500, "eight requests and eight answers were seen");
}

/// A CRC over the ciphertext was all that stood between a forger and the handler.
#[test]
fn s2_a_packet_with_any_bit_changed_reaches_no_handler() {
    let (mut world, net, mut hand) = by_hand(2);
    let packet = hand.seal(b"\x40\x02\x00\x01\xFFx");
    for bit in 0..packet.len() * 8 {
        let mut changed = packet.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        hand.send(&mut world, &changed);
    }
    assert_eq!(requests(&mut world, net), 0, "{:?}", drops(&mut world, net));
    hand.send(&mut world, &packet);
    assert_eq!(requests(&mut world, net), 1, "and the right one still counts");
}

/// The sender of a packet chose whether it was encrypted.
#[test]
fn s3_plaintext_in_an_encrypted_session_reaches_no_handler() {
    let (mut world, net, mut hand) = by_hand(3);
    let genuine = hand.packet(&[Frame::Ping { req: Req(1), next_s: 0 }]);
    let token = &genuine[1..5];
    let message = b"\x40\x02\x00\x01\xFFinjected, and long enough for any sample of ciphertext";
    // Every first byte: whatever a header can say about protection, there is none that turns it off.
    for first in 0..=255 {
        for number in [&[][..], &[0, 9], &[0, 0, 0, 9]] {
            hand.send(&mut world, &[&[first], token, number, message].concat());
        }
    }
    assert_eq!(requests(&mut world, net), 0, "{:?}", drops(&mut world, net));
    assert_eq!(world.net(net).sessions(), 1);
}

/// A recorded packet worked as often as it was played.
#[test]
fn s4_a_recorded_packet_works_once() {
    let (mut world, net, mut hand) = by_hand(4);
    let packet =
        hand.seal(b"\x50\x02\x00\x01\xFFnon-confirmable: nothing but the packet number tells copies");
    let elsewhere = "198.51.100.66:6".parse().unwrap();
    for _ in 0..10 {
        hand.send(&mut world, &packet);
        world.inject(elsewhere, hand.to, &packet);
    }
    assert_eq!(requests(&mut world, net), 1);
    assert_eq!(dropped(&mut world, net, Drop::Replayed), 19);
    // Nor later, when the window has moved on.
    for req in 0..300 {
        hand.say(&mut world, &[Frame::Ping { req: Req(req), next_s: 0 }]);
    }
    hand.send(&mut world, &packet);
    assert_eq!(requests(&mut world, net), 1);
}

/// Tokens came from the clock's second: two nets that started in the same one had the same.
#[test]
fn s5_tokens_and_ephemerals_of_one_moment_are_all_different() {
    let mut world = World::new(5);
    let server = world.add(World::config(1));
    world.tap = Some(Vec::new());
    for number in 2..40 {
        let net = world.add(World::config(number));
        connect(&mut world, net, server, 1);
        connect(&mut world, net, server, 1);
    }
    world.run(SECOND);
    let (mut tokens, mut ephemerals, mut long) = (BTreeSet::new(), BTreeSet::new(), 0);
    for (_, _, bytes) in world.tap.iter().flatten() {
        match Packet::decode(bytes) {
            Ok(Packet::Init(_)) => {
                tokens.insert(bytes[36..40].to_vec());
                ephemerals.insert(bytes[44..76].to_vec());
                long += 1;
            }
            Ok(Packet::Resp(_)) => {
                ephemerals.insert(bytes[40..72].to_vec());
                long += 1;
            }
            _ => {}
        }
    }
    assert_eq!((tokens.len(), ephemerals.len(), long), (76, 152, 152));
}

/// Any datagram with an id in it moved that id to its sender.
#[test]
fn s6_nobody_else_gets_a_registered_id() {
    let mut world = World::new(6);
    let host = world.add_host(1);
    let device = world.add_guest(2, host, 1);
    let app = world.add_guest(3, host, 1);
    registered(&mut world, device);
    registered(&mut world, app);
    // One who knows the host's key, and so may be id 2 to it, but has another device key.
    let mut config = World::config(2);
    config.device = DeviceKey::from_bytes([0xEE; 32]);
    let impostor = world.add(config);
    world.join(impostor, host, 1);
    world.wait_for(impostor, 5 * SECOND, |event| matches!(event, Event::HostRefused { .. }).then_some(()));
    // One who knows no key, and says what the device said, from elsewhere.
    let elsewhere = "198.51.100.66:6".parse().unwrap();
    world.tap = Some(Vec::new());
    world.run(120 * SECOND);
    let (from, to) = (world.address(device), world.address(host));
    let said: Vec<_> =
        world.tap.iter().flatten().filter(|seen| (seen.0, seen.1) == (from, to)).cloned().collect();
    assert!(!said.is_empty(), "it pings");
    said.iter().for_each(|(_, _, bytes)| world.inject(elsewhere, to, bytes));
    world.run(SECOND);
    assert_eq!(world.net(host).registrations(), 2);
    let session =
        world.command(app, |net, now| net.connect(now, World::id(2), &key(2), Route::Host).expect("room"));
    echoes(&mut world, (app, session), device, 1);
}

/// A new key travelled under the old one, so that who had the old one had them all; and it could be "none".
#[test]
fn s7_new_keys_owe_nothing_to_the_old_ones_and_cannot_be_none() {
    let (mut world, _, mut hand) = by_hand(7);
    // The user of a net changes the keys of a session; a copy of the peer that only knows the old keys is left behind.
    let (mut world2, [a, b], [at_a, _]) = pair(7);
    for (round, secret) in [(1, None), (2, Some(&[7; 16][..]))] {
        world2.command(a, |net, now| net.rekey(now, at_a, RequestId(round), secret).unwrap());
        let changed = world2.wait_for(a, 5 * SECOND, |event| match event {
            Event::ControlDone { request, result } if *request == RequestId(round) => Some(*result),
            _ => None,
        });
        assert_eq!(changed, Ok(()));
        echoes(&mut world2, (a, at_a), b, 10 + round);
    }
    let none = world2.command(a, |net, now| net.rekey(now, at_a, RequestId(3), Some(&[])));
    assert_eq!(none, Err(CommandError::SecretLength(0)));

    // A peer that asks for new keys with an ephemeral that has no secret in it gets none.
    hand.hear(&mut world);
    let weak = Frame::Rekey { req: Req(1), generation: 1, ephemeral: &[0; 32], key: KeyBytes::NONE };
    let granted =
        hand.talk(&mut world, &[weak], |frame| matches!(frame, Frame::Rekeyed { .. }).then_some(()));
    assert!(granted.is_empty());
    let pongs = hand.talk(&mut world, &[Frame::Ping { req: Req(2), next_s: 0 }], |frame| {
        matches!(frame, Frame::Pong { .. }).then_some(())
    });
    assert_eq!(pongs.len(), 1, "the session goes on under the keys that it had");
}

/// One key was a net's identity and every caller's: who could call could be anyone.
#[test]
fn s8_a_pair_key_makes_its_holder_nobody_else() {
    let mut world = World::new(8);
    let net = world.add(World::config(1));
    // Number 2 was given the key of its own pair with number 1, and tries to be number 3 with it.
    let pair = World::key(1).pair(World::id(2), World::id(1));
    let mut hand = Hand::new(&mut world, 3, net, 1);
    let fields = hand.fields(0x88);
    let forged = Initiator::start(&fields, &pair, DhSecret::from_bytes([3; 32]));
    assert!(hand.ask(&mut world, forged.init()).is_empty(), "silence");
    assert_eq!(dropped(&mut world, net, Drop::BadHandshake), 1);
    // Nor is it number 1 to number 2.
    let other = world.add(World::config(2));
    let mut hand = Hand::new(&mut world, 1, other, 2);
    let fields = hand.fields(0x89);
    let forged = Initiator::start(&fields, &pair, DhSecret::from_bytes([4; 32]));
    assert!(hand.ask(&mut world, forged.init()).is_empty());
    assert_eq!(world.net(net).half_open() + world.net(other).half_open(), 0);
}

/// The online check told anybody where a device is, and an unencrypted ping was answered to whoever it named.
#[test]
fn s10_strangers_learn_nothing_and_nothing_grows_on_its_way_back() {
    let mut world = World::new(10);
    let host = world.add_host(1);
    let device = world.add_guest(2, host, 1);
    registered(&mut world, device);
    // A session alone gives no right to ask; only the registered may, and they hear no address.
    let mut hand = Hand::up(&mut world, 9, host, 1);
    let ask = Frame::Lookup { req: Req(1), id: World::id(2) };
    let found = hand.talk(&mut world, &[ask], |frame| match frame {
        Frame::Found { status, home, .. } => Some((*status, *home)),
        _ => None,
    });
    assert_eq!(found, [(FoundStatus::REFUSED, Id::ANY)]);
    // Whatever a stranger sends, at most a hint comes back, and that is smaller.
    let mut stranger = Hand::new(&mut world, 66, host, 1);
    for len in 1..=120 {
        for first in [0x41, 0x43, 0x51, 0x61, 0x91, 0x92, 0x93, 0x95, 0x97, 0x01] {
            let mut bytes = vec![0x5A; len];
            bytes[0] = first;
            let answers = stranger.ask(&mut world, &bytes);
            let size: usize = answers.iter().map(Vec::len).sum();
            assert!(
                size < len && answers.iter().all(|answer| is_hint(answer)),
                "{first:#x}, {len}: {answers:?}"
            );
        }
    }
}
