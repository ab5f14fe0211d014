//! Every table has an end, and says so.
use m2m_proto::{
    coap::{message::Message, option_set::OptionSet},
    config::Rate,
    error::{CloseReason, CommandError},
    event::{Event, Output, RequestId},
    net::{HostConfig, MAX_HOSTS, Route},
    stats::Drop,
    time::Duration,
    wire::{
        frame::{CloseCode, Frame, Req},
        packet::Packet,
    },
};
use m2m_sim::{NetIndex, World};

use crate::rig::*;

fn closes(frame: &Frame<'_>) -> Option<CloseCode> {
    match frame {
        Frame::Close { code, .. } => Some(*code),
        _ => None,
    }
}

/// A net that waits for somebody who is not there.
fn waiting(queue_messages: usize, queue_bytes: usize) -> (World, NetIndex, m2m_proto::event::SessionId) {
    let mut world = World::new(1);
    let mut config = World::config(2);
    (config.limits.queue_messages, config.limits.queue_bytes) = (queue_messages, queue_bytes);
    let net = world.add(config);
    let nowhere = "192.0.2.9:9".parse().unwrap();
    let session = world
        .command(net, |net, now| net.connect(now, World::id(9), &key(9), Route::Direct(nowhere)).unwrap());
    (world, net, session)
}

#[test]
fn a_full_queue_is_an_error_at_once() {
    let (mut world, net, session) = waiting(4, 1 << 20);
    for id in 0..4 {
        assert_eq!(post(&mut world, net, session, id, b"x"), Ok(()));
    }
    assert_eq!(post(&mut world, net, session, 4, b"x"), Err(CommandError::QueueFull));
}

#[test]
fn bytes_fill_a_queue_as_well() {
    let (mut world, net, session) = waiting(1000, 3000);
    let taken = (0..100).take_while(|id| post(&mut world, net, session, *id, &[0; 900]).is_ok()).count();
    assert!((3..=4).contains(&taken), "{taken} times 900 bytes in 3000");
}

#[test]
fn a_message_is_too_large_by_one_byte() {
    for relayed in [false, true] {
        let mut world = World::new(2);
        let host = world.add_host(1);
        let (a, b) = (world.add_guest(2, host, 1), world.add_guest(3, host, 1));
        registered(&mut world, a);
        registered(&mut world, b);
        let route = if relayed { Route::Host } else { Route::Direct(world.address(b)) };
        let session = world.command(a, |net, now| net.connect(now, World::id(3), &key(3), route).unwrap());
        // Before the session is up, and after.
        for id in 0..2 {
            let max = world.net(a).info(session).unwrap().max_message;
            let payload = vec![7; max - 12 - 1];
            let longer = vec![7; max - 12];
            assert_eq!(
                post(&mut world, a, session, id, &longer),
                Err(CommandError::TooLarge { len: max + 1, max })
            );
            post(&mut world, a, session, id, &payload).unwrap();
            let len = world.wait_for(b, 5 * SECOND, |event| match event {
                Event::Request { message, .. } => Some(Message::parse(message).unwrap().payload().len()),
                _ => None,
            });
            assert_eq!(len, payload.len(), "relayed: {relayed}");
        }
    }
}

#[test]
fn open_requests_are_capped_and_the_rest_is_told_so_without_the_handler() {
    let mut world = World::new(3);
    let mut config = World::config(1);
    config.limits.open_incoming = 2;
    let (a, b) = (world.add(World::config(2)), world.add(config));
    let (session, _) = connected(&mut world, a, b, 1);
    for id in 0..3 {
        post(&mut world, a, session, id, b"x").unwrap();
    }
    let code = world.wait_for(a, 5 * SECOND, |event| match event {
        Event::Response { message, .. } => Some(Message::parse(message).unwrap().code()),
        _ => None,
    });
    assert!(matches!((code.class(), code.detail()), (4, 29) | (5, 3)), "{code:?}");
    let asked = world.member(b).events.iter();
    assert_eq!(asked.filter(|(_, event)| matches!(event, Event::Request { .. })).count(), 2);
}

#[test]
fn datagrams_that_nobody_fetches_are_dropped_and_counted() {
    let mut config = World::config(2);
    config.limits.outputs = 4;
    let mut net = m2m_proto::net::Net::new(config, [1; 32], m2m_proto::time::Time::ZERO);
    let (now, nowhere) = (m2m_proto::time::Time::ZERO, "192.0.2.9:9".parse().unwrap());
    for n in 10..20 {
        net.connect(now, World::id(n), &key(n), Route::Direct(nowhere)).unwrap();
    }
    assert_eq!(net.stats().dropped(Drop::OutputFull), 6);
    let left = std::iter::repeat_with(|| net.poll_output(now))
        .take_while(|output| matches!(output, Output::Datagram { .. }));
    assert_eq!(left.count(), 4);
}

/// A session of the id 2 from that port.
fn session_from(world: &mut World, net: NetIndex, port: u16) -> Hand {
    let mut hand = Hand::new(world, 2, net, 1);
    hand.address.set_port(port);
    let fields = hand.fields(u32::from(port));
    hand.half_open(world, &fields, port as u8);
    hand.say(world, &[Frame::Confirm { mem: 0, resume: None }]);
    world.run(BEAT);
    hand
}

#[test]
fn the_longest_silent_session_of_a_peer_makes_room() {
    let mut world = World::new(4);
    let mut config = World::config(1);
    config.limits.sessions_per_peer = 2;
    let net = world.add(config);
    let mut first = session_from(&mut world, net, 4001);
    let mut second = session_from(&mut world, net, 4002);
    world.run(50 * SECOND);
    second.say(&mut world, &[Frame::Pad]);
    world.run(15 * SECOND);
    let mut third = session_from(&mut world, net, 4003);
    assert_eq!(pick(&first.hear(&mut world), closes), [CloseCode::TABLE_FULL]);
    assert!(second.hear(&mut world).is_empty());
    assert!(pick(&third.hear(&mut world), closes).is_empty());
    let why = world.wait_for(net, SECOND, |event| match event {
        Event::Closed { why, .. } => Some(*why),
        _ => None,
    });
    assert_eq!(why, CloseReason::Evicted);
}

#[test]
fn sessions_heard_within_a_minute_are_kept_and_the_new_one_goes() {
    let mut world = World::new(5);
    let mut config = World::config(1);
    config.limits.sessions_per_peer = 2;
    let net = world.add(config);
    // Begun before the other two, confirmed after them: it is the new one.
    let mut late = Hand::new(&mut world, 2, net, 1);
    let fields = late.fields(0x7777);
    let mut others = {
        let first = session_from(&mut world, net, 4001);
        late.half_open(&mut world, &fields, 0x77);
        [first, session_from(&mut world, net, 4002)]
    };
    late.say(&mut world, &[Frame::Confirm { mem: 0, resume: None }]);
    assert_eq!(pick(&late.hear(&mut world), closes), [CloseCode::TABLE_FULL]);
    for other in &mut others {
        assert!(pick(&other.hear(&mut world), closes).is_empty(), "it was up before");
    }
}

#[test]
fn questions_are_capped() {
    let mut world = World::new(6);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(1)));
    let (session, _) = connected(&mut world, a, b, 1);
    world.kill(b);
    let taken = world.command(a, |net, now| {
        (0..1000).take_while(|n| net.ping(now, session, RequestId(*n)).is_ok()).count()
    });
    assert_eq!(taken, 32);
    // Each of them hears of its end.
    world.run(30 * SECOND);
    let told = world.member(a).events.iter();
    assert_eq!(told.filter(|(_, event)| matches!(event, Event::Pong { rtt: None, .. })).count(), 32);
}

#[test]
fn a_flood_of_authentic_inits_is_bounded() {
    let mut world = World::new(7);
    let mut config = World::config(1);
    (config.limits.half_open, config.limits.cookie_rate) = (40, Rate::new(1_000, 1_000));
    let net = world.add(config);
    for n in 2..152u8 {
        let mut hand = Hand::new(&mut world, n, net, 1);
        hand.address = format!("198.51.{n}.1:1").parse().unwrap();
        let init = *hand.start(&hand.fields(7), n).init();
        hand.send(&mut world, &init);
    }
    world.run(BEAT);
    assert_eq!((world.net(net).sessions(), world.net(net).stats().cookies), (20, 130), "half of the places");
    world.run(6 * SECOND);
    assert_eq!(world.net(net).sessions(), 0);
}

/// INITs of many sources, each with the cookie that it was given.
fn proven_inits(world: &mut World, net: NetIndex, numbers: core::ops::Range<u8>) {
    for n in numbers {
        let mut hand = Hand::new(world, n, net, 1);
        hand.address = format!("198.51.{n}.1:1").parse().unwrap();
        let initiator = hand.start(&hand.fields(7), n);
        let answers = hand.ask(world, initiator.init());
        let Ok(Packet::Cookie(reply)) = Packet::decode(&answers[0]) else { panic!("a COOKIE") };
        let again = initiator.init_with_cookie(&initiator.read_cookie(&reply).unwrap());
        hand.send(world, &again);
    }
    world.run(BEAT);
}

#[test]
fn the_second_half_of_the_half_open_places_is_for_those_who_show_their_address() {
    let mut world = World::new(7);
    let mut config = World::config(1);
    config.limits.half_open = 20;
    config.limits.dh_rate = Rate::new(0, 0);
    config.timers.half_open = 60 * SECOND;
    let net = world.add(config);
    proven_inits(&mut world, net, 2..32);
    assert_eq!(world.net(net).half_open(), 20);
    assert_eq!(dropped(&mut world, net, Drop::TableFull), 10);
}

#[test]
fn key_exchanges_for_those_who_showed_their_address_have_a_budget_too() {
    let mut world = World::new(8);
    let mut config = World::config(1);
    config.limits.dh_rate = Rate::new(0, 0);
    config.limits.proven_dh_rate = Rate::new(1, 3);
    config.timers.half_open = 60 * SECOND;
    let net = world.add(config);
    proven_inits(&mut world, net, 2..12);
    let stats = world.net(net).stats().clone();
    assert_eq!((stats.cookies, stats.handshakes + stats.dropped(Drop::OverBudget)), (10, 10));
    assert_eq!(stats.handshakes, 3, "a burst of 3, in less than a second");
}

#[test]
fn cookies_have_a_budget_and_beyond_it_there_is_silence() {
    let mut world = World::new(9);
    let mut config = World::config(1);
    config.limits.dh_rate = Rate::new(0, 0);
    config.limits.cookie_rate = Rate::new(1, 5);
    let net = world.add(config);
    for n in 2..22 {
        let hand = Hand::new(&mut world, n, net, 1);
        let init = *hand.start(&hand.fields(7), n).init();
        hand.send(&mut world, &init);
    }
    world.run(BEAT);
    assert_eq!((world.net(net).stats().cookies, dropped(&mut world, net, Drop::OverBudget)), (5, 15));
}

#[test]
fn commands_hit_their_caps_with_words() {
    let mut world = World::new(8);
    let mut config = World::config(2);
    config.limits.sessions = 2;
    let net = world.add(config);
    let nowhere = Route::Direct("192.0.2.9:9".parse().unwrap());
    world.command(net, |net, now| {
        assert_eq!(net.connect(now, World::id(2), &key(2), nowhere).err(), Some(CommandError::OwnId));
        assert_eq!(net.connect(now, World::id(3), &key(3), Route::Host).err(), Some(CommandError::NoHost));
        for n in 3..5 {
            net.connect(now, World::id(n), &key(n), nowhere).unwrap();
        }
        assert_eq!(net.connect(now, World::id(5), &key(5), nowhere).err(), Some(CommandError::TableFull));
        let host = |n: u8| HostConfig { id: World::id(n), key: key(n), addresses: Vec::new() };
        for n in 0..MAX_HOSTS {
            net.add_host(now, host(10 + n as u8)).unwrap();
        }
        assert_eq!(net.add_host(now, host(99)).err(), Some(CommandError::TableFull));
    });
}

#[test]
fn stale_handles_name_nothing() {
    let mut world = World::new(9);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(1)));
    let (session, _) = connected(&mut world, a, b, 1);
    world.command(a, |net, now| net.close(now, session));
    assert_eq!(post(&mut world, a, session, 1, b"x"), Err(CommandError::Closed));
    world.run(5 * SECOND);
    assert_eq!(post(&mut world, a, session, 1, b"x"), Err(CommandError::Stale));
    let (again, _) = connected(&mut world, a, b, 1);
    assert_eq!(post(&mut world, a, session, 1, b"x"), Err(CommandError::Stale), "the slot is another's");
    assert_eq!(post(&mut world, a, again, 1, b"x"), Ok(()));
}

#[test]
fn requests_given_up_make_room_at_once() {
    let mut world = World::new(10);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(1)));
    let (session, _) = connected(&mut world, a, b, 1);
    world.kill(b);
    for id in 0..17 {
        post(&mut world, a, session, id, b"x").unwrap();
    }
    world.tap = Some(Vec::new());
    world.command(a, |net, now| (0..16).for_each(|id| net.cancel(now, session, RequestId(id))));
    assert_eq!(world.tap.as_ref().unwrap().len(), 1, "the one that waited for the window leaves");
}

#[test]
fn a_respond_to_what_was_answered_is_refused() {
    let mut world = World::new(11);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(1)));
    let (session, _) = connected(&mut world, a, b, 1);
    post(&mut world, a, session, 1, b"x").unwrap();
    let incoming = world.wait_for(b, SECOND, |event| match event {
        Event::Request { incoming, .. } => Some(*incoming),
        _ => None,
    });
    let options = OptionSet::default();
    let code = m2m_proto::coap::code::Code::CHANGED;
    world.command(b, |net, now| {
        assert_eq!(net.respond(now, incoming, code, &options, b"1"), Ok(()));
        assert!(net.respond(now, incoming, code, &options, b"2").is_err());
    });
}

#[test]
fn a_flood_of_questions_is_answered_in_bounds() {
    let mut world = World::new(12);
    let net = world.add(World::config(1));
    let mut hand = Hand::up(&mut world, 2, net, 1);
    let pings: Vec<Frame<'_>> = (0..64).map(|n| Frame::Ping { req: Req(n), next_s: 9 }).collect();
    let packets: Vec<Vec<u8>> = (0..50).map(|_| hand.packet(&pings)).collect();
    let now = world.now;
    let address = hand.address;
    let machine = world.net(net);
    // All of them before the machine is asked what it wants to send.
    for mut packet in packets {
        machine.handle_datagram(now, address, &mut packet);
    }
    world.pump(net);
    let heard = hand.hear(&mut world);
    let pongs = pick(&heard, |frame| matches!(frame, Frame::Pong { .. }).then_some(())).len();
    assert!((1..=64).contains(&pongs), "{pongs}");
    world.run(Duration::from_secs(1));
}

#[test]
fn a_message_that_turns_out_too_large_for_the_peer_fails_and_holds_nothing_up() {
    let mut world = World::new(12);
    let net = world.add(World::config(2));
    let mut hand = Hand::new(&mut world, 1, net, 2);
    let to = hand.address;
    let session =
        world.command(net, |net, now| net.connect(now, World::id(1), &key(1), Route::Direct(to)).unwrap());
    post(&mut world, net, session, 1, &[1; 1000]).unwrap();
    post(&mut world, net, session, 2, &[2; 10]).unwrap();
    let init = hand.inbox(&mut world).remove(0);
    let mut fields = resp_fields(m2m_proto::wire::packet::Suite::Aes128Gcm);
    fields.max_udp = 512;
    let (resp, established) = respond(&init, 1, &fields);
    hand.secure = Some(m2m_proto::session::Secure::new(&established));
    hand.established = Some(established);
    hand.send(&mut world, &resp);
    world.wait_for(net, SECOND, |event| match event {
        Event::RequestFailed { request: RequestId(1), why } => {
            assert_eq!(*why, m2m_proto::error::RequestError::TooLarge);
            Some(())
        }
        _ => None,
    });
    let heard = hand.hear(&mut world).concat();
    assert!(heard.windows(10).any(|bytes| bytes == [2; 10]), "the small one has left");
}
