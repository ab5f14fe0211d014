//! Short packets that are replayed, reordered, forged, mixed up or malformed inside.
use m2m_proto::{
    coap::message::Message,
    error::CloseReason,
    event::Event,
    stats::Drop,
    wire::{
        bundle::PlainWriter,
        frame::{CloseCode, Frame, Req},
    },
};
use m2m_sim::{NetIndex, World};

use crate::rig::*;

fn ping(req: u16) -> Frame<'static> {
    Frame::Ping { req: Req(req), next_s: 30 }
}

fn pongs(frame: &Frame<'_>) -> Option<u16> {
    match frame {
        Frame::Pong { req, .. } => Some(req.0),
        _ => None,
    }
}

/// A net, number 1, with a session of a peer driven by hand, number 2.
fn session() -> (World, NetIndex, Hand) {
    let mut world = World::new(1);
    let net = world.add(World::config(1));
    let hand = Hand::up(&mut world, 2, net, 1);
    world.member(net).events.clear();
    (world, net, hand)
}

#[test]
fn a_replayed_packet_is_dropped_and_not_answered() {
    let (mut world, net, mut hand) = session();
    let packet = hand.packet(&[ping(1)]);
    hand.send(&mut world, &packet);
    assert_eq!(pick(&hand.hear(&mut world), pongs), [1]);
    for times in 1..=3 {
        assert!(hand.ask(&mut world, &packet).is_empty());
        assert_eq!(dropped(&mut world, net, Drop::Replayed), times);
    }
}

#[test]
fn packets_out_of_order_are_taken_within_the_window_and_once() {
    let (mut world, net, mut hand) = session();
    let packets: Vec<Vec<u8>> = (0..129).map(|req| hand.packet(&[ping(req)])).collect();
    hand.send(&mut world, &packets[128]);
    assert_eq!(pick(&hand.hear(&mut world), pongs), [128]);
    hand.send(&mut world, &packets[0]);
    assert!(hand.hear(&mut world).is_empty(), "128 behind is too old");
    assert_eq!(dropped(&mut world, net, Drop::Replayed), 1);
    for (req, packet) in packets.iter().enumerate().take(128).skip(1).rev() {
        hand.send(&mut world, packet);
        assert_eq!(pick(&hand.hear(&mut world), pongs), [req as u16]);
    }
    assert_eq!(dropped(&mut world, net, Drop::Replayed), 1);
}

#[test]
fn a_corrupted_packet_changes_nothing() {
    let (mut world, net, mut hand) = session();
    let packet = hand.packet(&[ping(1)]);
    for bit in 0..packet.len() * 8 {
        let mut forged = packet.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        hand.send(&mut world, &forged);
    }
    assert!(hand.inbox(&mut world).iter().all(|answer| is_hint(answer)), "to a token that is unknown");
    // All but those that hit the version, the form or the token were tried with the session's keys, or had turned the
    // packet number into one that was seen.
    let replayed = dropped(&mut world, net, Drop::Replayed);
    assert!(replayed <= 16, "only flips of the two bytes of the number can");
    assert!(dropped(&mut world, net, Drop::BadSeal) + replayed >= packet.len() as u64 * 8 - 8 - 32);
    hand.send(&mut world, &packet);
    assert_eq!(pick(&hand.hear(&mut world), pongs), [1], "the true one is still fresh");
}

#[test]
fn an_unknown_token_gets_a_hint_that_is_smaller() {
    let (mut world, net, mut hand) = session();
    let mut packet = hand.packet(&[ping(1)]);
    packet[1..5].copy_from_slice(&[0x12, 0x34, 0x56, 0x78]);
    let answers = hand.ask(&mut world, &packet);
    assert!(matches!(&answers[..], [hint] if is_hint(hint) && hint[1..5] == packet[1..5]), "{answers:?}");
    assert_eq!(dropped(&mut world, net, Drop::UnknownToken), 1);
}

#[test]
fn a_packet_of_one_session_is_nothing_in_another() {
    let (mut world, net, mut hand) = session();
    let other = Hand::up(&mut world, 3, net, 1);
    let mut packet = hand.packet(&[ping(1)]);
    let token = other.established.as_ref().unwrap().peer_token().value();
    packet[1..5].copy_from_slice(&token.to_be_bytes());
    assert!(hand.ask(&mut world, &packet).is_empty());
    assert_eq!(dropped(&mut world, net, Drop::BadSeal), 1);
}

#[test]
fn a_nets_own_packets_do_not_open_when_they_come_back() {
    let (mut world, net, mut hand) = session();
    let packet = hand.packet(&[ping(1)]);
    let pong = hand.ask(&mut world, &packet).remove(0);
    // Under the token that the net has, not the one that it sends to.
    let mut reflected = pong;
    reflected[1..5].copy_from_slice(&packet[1..5]);
    assert!(hand.ask(&mut world, &reflected).is_empty());
    assert_eq!(dropped(&mut world, net, Drop::BadSeal), 1);
}

#[test]
fn nothing_of_a_malformed_bundle_acts() {
    let (mut world, net, mut hand) = session();
    let mut good = Vec::new();
    let mut writer = PlainWriter::new(&mut good, 1000);
    writer.push_frame(&ping(1));
    writer.push_frame(&Frame::Close { code: CloseCode::DONE, text: "" });
    let cut = good[..good.len() - 1].to_vec();
    let longer = [&good[..], &[9]].concat();
    let nested = [&good[..], &[3, 0x3F, 1, 0]].concat();
    let empty = vec![0x3F];
    let zero = vec![0x3F, 0];
    let short_frame = [&[0x3F, 5][..], &[1, 0, 1, 0, 9], &[2, 1, 0]].concat();
    let many = [&[0x3F][..], &[1, 0].repeat(65)].concat();
    for (n, plain) in [cut, longer, nested, empty, zero, short_frame, many].iter().enumerate() {
        let packet = hand.seal(plain);
        assert!(hand.ask(&mut world, &packet).is_empty(), "{n}");
        assert_eq!(dropped(&mut world, net, Drop::BadFrame), n as u64 + 1, "{n}");
    }
    assert!(world.member(net).events.is_empty());
    assert_eq!(
        pick(
            &{
                hand.say(&mut world, &[ping(2)]);
                hand.hear(&mut world)
            },
            pongs
        ),
        [2]
    );
}

#[test]
fn unknown_frames_are_skipped_and_counted() {
    let (mut world, net, mut hand) = session();
    let plain = [&[0x3F, 4, 0x30, 1, 2, 3, 1, 0xFE, 5], &[1u8, 0, 9, 0, 30][..]].concat();
    let packet = hand.seal(&plain);
    hand.hear(&mut world);
    hand.send(&mut world, &packet);
    assert_eq!(pick(&hand.hear(&mut world), pongs), [9]);
    assert_eq!(dropped(&mut world, net, Drop::UnknownFrame), 2);
}

#[test]
fn a_malformed_message_is_counted_and_its_neighbours_act() {
    let (mut world, net, mut hand) = session();
    // A message whose token length is impossible, then a ping.
    let packet = hand.seal(&[0x3F, 4, 0x4F, 1, 0, 1, 5, 1, 0, 9, 0, 30]);
    hand.send(&mut world, &packet);
    assert_eq!(pick(&hand.hear(&mut world), pongs), [9]);
    assert_eq!(dropped(&mut world, net, Drop::BadFrame), 1);
}

#[test]
fn a_close_is_answered_once_for_each_late_packet_and_then_never() {
    let (mut world, net, mut hand) = session();
    let late = [hand.packet(&[ping(1)]), hand.packet(&[ping(2)]), hand.packet(&[ping(3)])];
    let session = world.command(net, |net, _| net.id());
    assert_eq!(session, World::id(1));
    world.command(net, |net, now| net.shutdown(now));
    hand.inbox(&mut world);
    assert_eq!(hand.ask(&mut world, &late[0]).len(), 1);
    assert_eq!(hand.ask(&mut world, &late[1]).len(), 1);
    world.run(4 * SECOND);
    let answers = hand.ask(&mut world, &late[2]);
    assert!(answers.iter().all(|answer| is_hint(answer)), "the session is forgotten");
    assert_eq!(world.net(net).sessions(), 0);
}

#[test]
fn two_that_close_at_once_do_not_keep_telling_each_other() {
    let mut world = World::new(2);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(1)));
    let (here, there) = connected(&mut world, a, b, 1);
    world.tap = Some(Vec::new());
    world.command(a, |net, now| net.close(now, here));
    world.command(b, |net, now| net.close(now, there));
    world.run(5 * SECOND);
    let sent = world.tap.as_ref().unwrap().len();
    assert!(sent <= 4, "{sent} packets to end one session");
}

#[test]
fn one_packet_of_challenges_is_not_answered_by_many() {
    let (mut world, _, mut hand) = session();
    let challenges: Vec<Frame<'_>> = (0..64).map(|n| Frame::PathChallenge([n; 8])).collect();
    let packet = hand.packet(&challenges);
    let answers = hand.ask(&mut world, &packet);
    let bytes: usize = answers.iter().map(Vec::len).sum();
    assert!(!answers.is_empty() && bytes <= packet.len(), "{} packets, {bytes} bytes", answers.len());
}

#[test]
fn a_challenge_is_echoed_to_where_it_came_from() {
    let (mut world, _, mut hand) = session();
    hand.inbox(&mut world);
    hand.address = "198.51.100.7:99".parse().unwrap();
    let echoed = hand.talk(&mut world, &[Frame::PathChallenge(*b"datadata")], |frame| match frame {
        Frame::PathResponse(data) => Some(*data),
        _ => None,
    });
    assert_eq!(echoed, [*b"datadata"]);
}

#[test]
fn a_request_that_comes_twice_in_new_packets_runs_once_and_is_answered_again() {
    let (mut world, net, mut hand) = session();
    let message = [0x40, 0x02, 0x12, 0x34, 0xFF, b'x'];
    let packet = hand.seal(&message);
    hand.send(&mut world, &packet);
    let incoming = world.wait_for(net, SECOND, |event| match event {
        Event::Request { incoming, .. } => Some(*incoming),
        _ => None,
    });
    let options = Default::default();
    world.command(net, |net, now| {
        net.respond(now, incoming, m2m_proto::coap::code::Code::CHANGED, &options, b"done").unwrap();
    });
    hand.hear(&mut world);
    for _ in 0..3 {
        let again = hand.seal(&message);
        hand.send(&mut world, &again);
        let heard = hand.hear(&mut world);
        assert_eq!(Message::parse(&heard[0]).unwrap().payload(), b"done");
    }
    assert!(world.member(net).events.is_empty());
}

#[test]
fn a_ping_goes_along_when_nothing_was_answered_for_long() {
    let (mut world, net, mut hand) = session();
    hand.hear(&mut world);
    // Each of these makes the net send one packet that nobody answers: a NON response is not needed, an echo is enough. A
    // PING that goes with an echo belongs to that.
    let asked = |heard: &[Vec<u8>]| {
        let is_echo = |frame: &Frame<'_>| matches!(frame, Frame::PathResponse(_)).then_some(());
        let own =
            heard.iter().filter(|plain| pick(core::slice::from_ref(plain), is_echo).is_empty()).cloned();
        let is_ping = |frame: &Frame<'_>| matches!(frame, Frame::Ping { .. }).then_some(());
        pick(&own.collect::<Vec<_>>(), is_ping).len()
    };
    let mut pinged = 0;
    for n in 0..(1u64 << 14) + 8 {
        let packet = hand.packet(&[Frame::PathChallenge(n.to_be_bytes())]);
        hand.send(&mut world, &packet);
        if n % 64 == 0 {
            let heard = hand.hear(&mut world);
            pinged += asked(&heard);
            assert!(n > 16_000 || pinged == 0, "too early, after {n}");
        }
    }
    let heard = hand.hear(&mut world);
    pinged += asked(&heard);
    assert!(pinged > 0 && world.net(net).sessions() == 1);
}

#[test]
fn a_forged_close_ends_nothing() {
    let (mut world, net, mut hand) = session();
    let mut other = Hand::up(&mut world, 3, net, 1);
    let close = Frame::Close { code: CloseCode::DONE, text: "" };
    let mut packet = other.packet(&[close]);
    let token = hand.established.as_ref().unwrap().peer_token().value();
    packet[1..5].copy_from_slice(&token.to_be_bytes());
    hand.ask(&mut world, &packet);
    assert_eq!(world.net(net).sessions(), 2);
    hand.say(&mut world, &[close]);
    let why = world.wait_for(net, SECOND, |event| match event {
        Event::Closed { why, .. } => Some(*why),
        _ => None,
    });
    assert_eq!(why, CloseReason::Peer(0));
}
