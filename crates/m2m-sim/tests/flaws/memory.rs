//! Rows M: what crashed, or wrote where it should not, or leaked. Each test ends with a request that is answered.
use m2m_proto::{
    coap::option::OptionNumber,
    coap::option_set::OptionSet,
    error::CloseReason,
    event::{Event, RequestId},
    id::Id,
    net::Route,
    session::keys::NetKey,
    stats::Drop,
    wire::frame::{Epoch, FoundStatus, Frame, Memory, RegisterStatus, Req},
};
use m2m_sim::{NetIndex, World};

use crate::{answer, by_hand, echoes, request, requests, rig::*};

/// It is alive, and its session too.
fn is_well(world: &mut World, net: NetIndex, hand: &mut Hand) {
    let pongs = hand.talk(world, &[Frame::Ping { req: Req(0xEEEE), next_s: 0 }], |frame| {
        matches!(frame, Frame::Pong { req: Req(0xEEEE), .. }).then_some(())
    });
    assert_eq!(pongs.len(), 1, "{:?}", drops(world, net));
}

/// 24 bytes gave a negative length, and a checksum that ran off the heap.
#[test]
fn m1_datagrams_of_every_length_and_first_byte_kill_nobody() {
    let (mut world, net, mut hand) = by_hand(1);
    let token = hand.packet(&[Frame::Ping { req: Req(1), next_s: 0 }])[1..5].to_vec();
    for first in 0..=255 {
        for len in (0..48).chain([71, 72, 73, 103, 104, 105, 119, 120, 121]) {
            for fill in [0x00, 0xFF] {
                let mut bytes = vec![fill; len];
                bytes.iter_mut().take(1).for_each(|byte| *byte = first);
                if let Some(place) = bytes.get_mut(1..5) {
                    place.copy_from_slice(&token);
                }
                hand.send(&mut world, &bytes);
            }
        }
        world.run(BEAT);
    }
    is_well(&mut world, net, &mut hand);
}

/// A length in the header was believed: a short datagram was decrypted far beyond its end.
#[test]
fn m2_lengths_that_lie_are_refused_whole() {
    let (mut world, net, mut hand) = by_hand(2);
    let message = b"\x40\x02\x00\x01\xFFx";
    for lie in [5, 7, 64, 127] {
        let packet = hand.seal(&[&[0x3F, 6][..], message, &[lie], &message[..4]].concat());
        hand.send(&mut world, &packet);
    }
    for lie in [[0x80, 0x00], [0x84, 0xB0], [0xFF, 0xFF]] {
        let packet = hand.seal(&[&[0x3F, 6][..], message, &lie, message].concat());
        hand.send(&mut world, &packet);
    }
    assert_eq!(requests(&mut world, net), 0, "not even what stood before the lie");
    assert_eq!(dropped(&mut world, net, Drop::BadFrame), 7);
    is_well(&mut world, net, &mut hand);
}

/// An answer that nobody had asked for was followed through a null pointer.
#[test]
fn m4_answers_without_a_question_are_nothing() {
    let (mut world, net, mut hand) = by_hand(4);
    let id = World::id(7);
    let stray = [
        Frame::Found { req: Req(1), status: FoundStatus::ONLINE, home: id },
        Frame::Pong { req: Req(1), draining: false, observed: None },
        Frame::Done { req: Req(1), status: 0 },
        Frame::Rekeyed { req: Req(1), generation: 1, ephemeral: &[9; 32] },
        Frame::Resumed { memory: Memory::WHOLE, mem: 0 },
        Frame::PathResponse([7; 8]),
        Frame::Registered {
            req: Req(1),
            status: RegisterStatus::OK,
            epoch: Epoch(1),
            lease_s: 1,
            since: 1,
            path: &[],
        },
    ];
    for frame in stray {
        hand.say(&mut world, &[frame, frame]);
        // And as the answer to another request's message id, which is open nowhere.
        let packet = hand.seal(b"\x64\x45\x00\x01tokn\xFFx");
        hand.send(&mut world, &packet);
    }
    is_well(&mut world, net, &mut hand);
    assert!(world.member(net).events.is_empty(), "the user hears nothing of it");
}

/// A key of 18 bytes made the cipher fail and the checksum run over the heap.
#[test]
fn m7_a_key_of_any_length_works_or_is_refused() {
    for len in 0..100 {
        let made = NetKey::new(&vec![0xA5; len]);
        assert_eq!(made.is_ok(), (16..=64).contains(&len), "{len} bytes");
        let Ok(net_key) = made else { continue };
        let mut world = World::new(7);
        let mut config = World::config(1);
        config.key = net_key.clone();
        let (net, caller) = (world.add(config), world.add(World::config(2)));
        let (address, peer_key) = (world.address(net), m2m_proto::session::keys::PeerKey::Net(net_key));
        let route = Route::Direct(address);
        let session =
            world.command(caller, |net, now| net.connect(now, World::id(1), &peer_key, route).unwrap());
        echoes(&mut world, (caller, session), net, 1);
    }
}

/// A message without options was read through pointers that nobody had set.
#[test]
fn m9_messages_without_options_and_with_cut_ones() {
    let (mut world, net, mut hand) = by_hand(9);
    for whole in [&b"\x40\x02\x00\x01"[..], b"\x40\x02\x00\x02\xFFx", b"\x40\x01\x00\x03\xB1a"] {
        let packet = hand.seal(whole);
        hand.send(&mut world, &packet);
    }
    assert_eq!(requests(&mut world, net), 3);
    // An option that ends before its value, its extended delta, its extended length; the reserved 15; a marker alone.
    let cut = [
        &b"\xB5abc"[..],
        b"\xD0",
        b"\xE0\x01",
        b"\xBD",
        b"\xBE\x01",
        b"\xBE\xFF\xFFabc",
        b"\xF1a",
        b"\xBFa",
        b"\xFF",
    ];
    for (mid, options) in (0x20..).zip(cut) {
        let packet = hand.seal(&[&[0x40, 0x02, 0, mid], options].concat());
        hand.send(&mut world, &packet);
    }
    assert_eq!(requests(&mut world, net), 3, "none of these ran");
    is_well(&mut world, net, &mut hand);
}

/// A token that was not 4 bytes long leaked a kilobyte.
#[test]
fn m10_tokens_of_every_length_are_taken_or_refused() {
    let (mut world, net, mut hand) = by_hand(10);
    for len in 0..16u8 {
        let token = vec![0x77; usize::from(len)];
        let packet = hand.seal(&[&[0x40 | len, 0x01, 1, len], &token[..]].concat());
        hand.send(&mut world, &packet);
        let ran = requests(&mut world, net);
        assert_eq!(ran, usize::from(len <= 8), "a token of {len} bytes");
        if ran == 1 {
            let (incoming, _) = request(&mut world, net, SECOND);
            world.command(net, |net, now| {
                let code = m2m_proto::coap::code::Code::CONTENT;
                net.respond(now, incoming, code, &OptionSet::default(), b"").unwrap();
            });
            let heard = hand.hear(&mut world);
            let answered = heard.iter().any(|plain| {
                m2m_proto::coap::message::Message::parse(plain)
                    .is_ok_and(|message| message.token().as_bytes() == &token[..])
            });
            assert!(answered, "with its own token: {heard:?}");
        }
    }
    is_well(&mut world, net, &mut hand);
}

/// Eight bytes of a sixteen-byte id were copied: ids that differ behind them were one.
#[test]
fn m13_ids_that_differ_in_any_byte_are_different_nets() {
    for at in 0..16 {
        let mut world = World::new(13);
        let host = world.add_host(1);
        let mut config = World::config(2);
        config.id.0[at] ^= 0x40;
        let twin: Id = config.id;
        let (first, second) = (world.add_guest(2, host, 1), world.add(config));
        world.join(second, host, 1);
        let app = world.add_guest(3, host, 1);
        [first, second, app].into_iter().for_each(|net| registered(&mut world, net));
        assert_eq!(world.net(host).registrations(), 3);
        for (id, net) in [(World::id(2), first), (twin, second)] {
            let session =
                world.command(app, |net, now| net.connect(now, id, &key(2), Route::Host).expect("room"));
            echoes(&mut world, (app, session), net, 1);
        }
    }
}

/// A long text overran the buffer of the log.
#[test]
fn m14_a_text_of_any_length_and_kind_is_only_text() {
    let texts = [1, 64, 65, 255, 256, 1100].map(|len| vec![b'%'; len]);
    // Beyond 64 bytes it is cut, here in the middle of a character.
    let others =
        [b"%s%n".repeat(200), "\u{20AC}".repeat(40).into_bytes(), vec![0xFF; 64], vec![0; 64], vec![]];
    let texts = texts.into_iter().chain(others);
    for text in texts {
        let (mut world, net, mut hand) = by_hand(14);
        let packet = hand.seal(&[&[0x16, 0][..], &text].concat());
        hand.send(&mut world, &packet);
        world.run(BEAT);
        if std::str::from_utf8(&text).is_err() {
            // No CLOSE that a net would send: it is counted, and nothing ends.
            assert_eq!(dropped(&mut world, net, Drop::BadFrame), 1, "{} bytes", text.len());
            is_well(&mut world, net, &mut hand);
            continue;
        }
        let why = world.wait_for(net, SECOND, |event| match event {
            Event::Closed { why, .. } => Some(*why),
            _ => None,
        });
        assert_eq!(why, CloseReason::Peer(0));
        let mut next = Hand::up(&mut world, 3, net, 1);
        is_well(&mut world, net, &mut next);
    }
}

/// The room for an option's extended length was counted one short.
#[test]
fn m15_options_of_every_length_at_the_edge_of_the_packet() {
    let (mut world, [a, b], [at_a, _]) = crate::pair(15);
    let max = world.net(a).info(at_a).unwrap().max_message;
    let deadline = world.now + 600 * SECOND;
    let mut id = 0;
    for len in [0, 1, 12, 13, 14, 254, 255] {
        let mut options = OptionSet::default();
        options.add(OptionNumber::URI_PATH, &vec![b'p'; len]).unwrap();
        let room = (0..=max).rev().find(|room| {
            id += 1;
            let payload = vec![1; *room];
            let asked = m2m_proto::net::Request {
                code: m2m_proto::coap::code::Code::POST,
                options: &options,
                payload: &payload,
                confirmable: true,
                repeatable: false,
                deadline,
            };
            world.command(a, |net, now| net.request(now, at_a, RequestId(id), &asked)).is_ok()
        });
        // Header and token are reckoned at 12 bytes, the longest; then the option's header, and the payload's marker.
        let header = if len < 13 { 1 } else { 2 };
        assert_eq!(room, Some(max - 12 - header - len - 1), "a path of {len} bytes");
        let (incoming, came) = request(&mut world, b, SECOND);
        assert_eq!(Some(came.len()), room);
        world.command(b, |net, now| {
            net.respond(now, incoming, m2m_proto::coap::code::Code::CHANGED, &options, &came).unwrap();
        });
        assert_eq!(answer(&mut world, a, id).len(), came.len());
    }
}
