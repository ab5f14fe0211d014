//! Rows B: what did not work.
use m2m_proto::{
    coap::{
        code::Code,
        message::{Message, MessageType},
        option_set::OptionSet,
    },
    error::{CloseReason, CommandError, ConnectError},
    event::{Event, RequestId},
    net::{Request, Route},
    session::keys::NetKey,
    time::Duration,
    wire::{
        frame::{CloseCode, FoundStatus, Frame, RegisterStatus},
        packet::Packet,
    },
};
use m2m_sim::{NetIndex, World};

use crate::{answer, by_hand, echoes, pair, request, requests, rig::*, serve};

fn presence(world: &mut World, asker: NetIndex, number: u8, id: u64) -> FoundStatus {
    let deadline = world.now + 9 * SECOND;
    world.command(asker, |net, now| net.lookup(now, World::id(number), RequestId(id), deadline).unwrap());
    world.wait_for(asker, 10 * SECOND, |event| match event {
        Event::Found { request, status } if *request == RequestId(id) => *status,
        _ => None,
    })
}

/// The look-up found nobody as soon as anybody was registered.
#[test]
fn b1_a_registered_id_is_found_and_relayed_to_both_ways() {
    let mut world = World::new(1);
    let host = world.add_host(1);
    let nets: Vec<_> = (2..6).map(|number| world.add_guest(number, host, 1)).collect();
    nets.iter().for_each(|net| registered(&mut world, *net));
    for (at, net) in nets.iter().enumerate() {
        let (next, number) = (nets[(at + 1) % 4], (2 + (at + 1) % 4) as u8);
        assert_eq!(presence(&mut world, *net, number, 1), FoundStatus::ONLINE);
        let session = world
            .command(*net, |machine, now| machine.connect(now, World::id(number), &key(number), Route::Host));
        let session = session.expect("there is room");
        echoes(&mut world, (*net, session), next, 2);
        let back = world.wait_for(next, SECOND, |event| match event {
            Event::Accepted { session, .. } => Some(*session),
            _ => None,
        });
        echoes(&mut world, (next, back), *net, 3);
    }
    assert_eq!(presence(&mut world, nets[0], 99, 4), FoundStatus::OFFLINE);
}

/// The message id stood still, so that a late answer to one request ended the next.
#[test]
fn b3_each_request_has_its_own_message_id_and_token_and_a_late_answer_ends_no_other() {
    let (mut world, net, mut hand) = by_hand(3);
    world.member(net).events.clear();
    let session = {
        // The session as the net sees it: it answers a request there.
        let packet = hand.seal(&[0x40, 0x02, 0, 1]);
        hand.send(&mut world, &packet);
        request(&mut world, net, SECOND).0.session()
    };
    hand.hear(&mut world);
    let mut asked = Vec::new();
    for id in 1..=4 {
        post(&mut world, net, session, id, b"x").unwrap();
        let heard = hand.hear(&mut world);
        let mut found = heard.iter().filter_map(|plain| Message::parse(plain).ok());
        let message = found.rfind(|message| message.code() == Code::POST).expect("it is sent");
        asked.push((message.mid(), message.token()));
    }
    for (at, (mid, token)) in asked.iter().enumerate() {
        assert!(asked[..at].iter().all(|(other, other_token)| other != mid && other_token != token));
        assert!(!token.as_bytes().iter().all(|byte| *byte == 0));
    }
    // The answer to the second comes late, when two more are open: it is the second that ends.
    let (mid, token) = asked[1];
    let mut message = vec![0x60 | token.as_bytes().len() as u8, Code::CHANGED.0];
    message.extend_from_slice(&mid.0.to_be_bytes());
    message.extend_from_slice(token.as_bytes());
    message.extend_from_slice(b"\xFFsecond");
    assert_eq!(Message::parse(&message).unwrap().kind(), MessageType::Ack);
    let packet = hand.seal(&message);
    hand.send(&mut world, &packet);
    assert_eq!(answer(&mut world, net, 2), b"second");
    world.run(BEAT);
    let events = &world.member(net).events;
    assert!(!events.iter().any(|(_, event)| matches!(event, Event::Response { .. })), "{events:?}");
}

/// Who waited for the session before the first request had every request refused.
#[test]
fn b4_a_session_that_waited_before_its_first_request_works() {
    let (mut world, [a, b], [at_a, _]) = pair(4);
    world.run(90 * SECOND);
    for id in 1..5 {
        echoes(&mut world, (a, at_a), b, id);
    }
}

/// A request that was sent again ran again.
#[test]
fn b5_a_request_that_is_sent_again_runs_once() {
    let mut world = World::new(5);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(3)));
    let (at_a, _) = connected(&mut world, a, b, 3);
    // Only b's packets are lost, so that a sends again what b has long taken.
    post(&mut world, a, at_a, 1, b"once").unwrap();
    let (incoming, _) = request(&mut world, b, SECOND);
    world.cut.push((a, b));
    world.command(b, |net, now| {
        net.respond(now, incoming, Code::CHANGED, &OptionSet::default(), b"done").unwrap();
    });
    world.run(SECOND);
    world.cut.clear();
    world.tap = Some(Vec::new());
    assert_eq!(answer(&mut world, a, 1), b"done");
    assert!(world.tap.iter().flatten().any(|(from, ..)| *from == world.address(a)), "it was sent again");
    assert_eq!(requests(&mut world, b), 0, "and did not run again");
}

/// Requests timed out for ever, while the session was shown as connected.
#[test]
fn b6_a_peer_that_forgot_the_session_is_found_out_and_the_request_answered() {
    let (mut world, [a, b], [at_a, _]) = pair(6);
    world.kill(b);
    world.run(SECOND);
    world.start(b, World::config(3));
    world.run(3 * SECOND);
    echoes(&mut world, (a, at_a), b, 1);
    world.wait_for(a, SECOND, |event| match event {
        Event::Recovered { session, resumed: false, .. } if *session == at_a => Some(()),
        _ => None,
    });
    assert!(world.net(a).info(at_a).is_some_and(|info| info.up));
}

/// A peer that never answered was reported as connected after half a minute.
#[test]
fn b7_a_peer_that_never_answers_is_never_reported_connected() {
    let mut world = World::new(7);
    let net = world.add(World::config(2));
    let nowhere = "192.0.2.9:9".parse().unwrap();
    let session = world
        .command(net, |net, now| net.connect(now, World::id(3), &key(3), Route::Direct(nowhere)).unwrap());
    for _ in 0..60 {
        assert!(world.net(net).info(session).is_none_or(|info| !info.up));
        assert!(!world.net(net).is_registered());
        world.run(SECOND);
    }
    let told: Vec<_> = world.member(net).events.drain(..).map(|(_, event)| event).collect();
    assert!(
        matches!(&told[..], [Event::ConnectFailed { why: ConnectError::Unreachable, .. }]),
        "one word, and it is no: {told:?}"
    );
}

/// The callback of a session that came up was never called.
#[test]
fn b8_both_sides_hear_once_that_a_session_is_up() {
    let mut world = World::new(8);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(3)));
    let session = connect(&mut world, a, b, 3);
    world.run(SECOND);
    let at_a: Vec<_> = world.member(a).events.drain(..).map(|(_, event)| event).collect();
    let at_b: Vec<_> = world.member(b).events.drain(..).map(|(_, event)| event).collect();
    assert!(matches!(&at_a[..], [Event::Connected { session: up, .. }] if *up == session), "{at_a:?}");
    assert!(matches!(&at_b[..], [Event::Accepted { .. }]), "{at_b:?}");
}

/// Each copy of a token request made one more session.
#[test]
fn b9_copies_of_an_init_make_one_session() {
    let mut world = World::new(9);
    let net = world.add(World::config(1));
    let mut hand = Hand::new(&mut world, 2, net, 1);
    let fields = hand.fields(0x77);
    let init = hand.start(&fields, 5).init().to_vec();
    let first = hand.ask(&mut world, &init);
    for _ in 0..5 {
        // Copies that come at once are no lost answers, and get none.
        world.run(Duration::from_millis(600));
        assert_eq!(hand.ask(&mut world, &init), first, "the same RESP");
    }
    assert_eq!(world.net(net).half_open(), 1);
    world.run(6 * SECOND);
    assert_eq!(world.net(net).sessions(), 0, "and nothing comes of them");

    let (mut world, [a, b], _) = {
        let mut world = World::new(9);
        world.faults.duplicate = 1000;
        let (a, b) = (world.add(World::config(2)), world.add(World::config(3)));
        let sessions = connected(&mut world, a, b, 3);
        (world, [a, b], sessions)
    };
    world.run(10 * SECOND);
    assert_eq!((world.net(a).sessions(), world.net(b).sessions(), world.net(b).half_open()), (1, 1, 0));
}

/// A token request that got lost was never sent again.
#[test]
fn b10_a_handshake_whose_first_packets_are_lost_comes_up() {
    let mut world = World::new(10);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(3)));
    world.cut.push((a, b));
    let session = connect(&mut world, a, b, 3);
    post(&mut world, a, session, 1, b"patience").unwrap();
    world.run(Duration::from_millis(3500));
    world.cut.clear();
    serve(&mut world, b);
    assert_eq!(answer(&mut world, a, 1), b"patience");
}

/// The configured lifetime of a registration was overwritten by two minutes.
#[test]
fn b15_max_router_tm_is_honoured() {
    for minutes in [1, 5, 10] {
        let mut world = World::new(15);
        let mut config = World::config(1);
        (config.registry, config.relay) = (true, true);
        config.max_router_tm = Duration::from_secs(60 * minutes);
        let host = world.add(config);
        let mut hand = Hand::new(&mut world, 2, host, 1);
        let fields = hand.fields(0x15);
        hand.half_open(&mut world, &fields, 5);
        let proof = hand.proof();
        let prove = Frame::Prove { public: &proof.public, mac: &proof.mac };
        let epoch = m2m_sim::world::UNIX_START_MS;
        let leases = hand.talk(&mut world, &[prove, register(1, epoch)], |frame| match frame {
            Frame::Registered { status: RegisterStatus::OK, lease_s, .. } => Some(u64::from(*lease_s)),
            _ => None,
        });
        assert_eq!(leases, [60 * minutes]);
        world.run(Duration::from_secs(60 * minutes) - 2 * SECOND);
        assert_eq!(world.net(host).registrations(), 1, "after almost {minutes} minutes without a word");
        world.run(4 * SECOND);
        assert_eq!(world.net(host).registrations(), 0);
    }
}

/// Who changed a peer's net key found its own replaced by it.
#[test]
fn b17_who_changes_a_peers_net_key_keeps_its_own() {
    let mut world = World::new(17);
    let mut config = World::config(1);
    config.allow_key_change = true;
    let device = world.add(config);
    let admin = world.add(World::config(2));
    let (session, _) = connected(&mut world, admin, device, 1);
    let (current, new) = (World::key(1), [0x4E; 32]);
    world.command(admin, |net, now| {
        net.set_remote_key(now, session, RequestId(1), &current, 1, &new).expect("it is taken");
    });
    let changed = world.wait_for(admin, 5 * SECOND, |event| match event {
        Event::ControlDone { request: RequestId(1), result } => Some(*result),
        _ => None,
    });
    assert_eq!(changed, Ok(()));
    assert_eq!(world.member(device).keys[0].bytes[..], new);
    assert!(world.member(admin).keys.is_empty());
    let (_, _) = connected(&mut world, device, admin, 2);
    // And the new key is the device's from now on.
    let (address, new) = (world.address(device), NetKey::new(&new).unwrap());
    let key = m2m_proto::session::keys::PeerKey::Net(new);
    let again = world
        .command(admin, |net, now| net.connect(now, World::id(1), &key, Route::Direct(address)).unwrap());
    world.wait_for(admin, SECOND, |event| match event {
        Event::Connected { session, .. } if *session == again => Some(()),
        _ => None,
    });
}

/// A session that was destroyed was never told to the peer.
#[test]
fn b19_a_closed_session_ends_at_the_peer_even_if_the_word_is_lost() {
    let closed = |world: &mut World, net: NetIndex| {
        world.wait_for(net, 20 * SECOND, |event| match event {
            Event::Closed { why, .. } => Some(*why),
            _ => None,
        })
    };
    let done = CloseReason::Peer(CloseCode::DONE.0);
    let (mut world, [a, b], [at_a, _]) = pair(19);
    world.command(a, |net, now| net.close(now, at_a));
    assert_eq!(closed(&mut world, b), done);

    // The peer speaks soon after: it is told again.
    let (mut world, [a, b], [at_a, at_b]) = pair(20);
    world.cut.push((a, b));
    world.command(a, |net, now| net.close(now, at_a));
    world.run(BEAT);
    world.cut.clear();
    post(&mut world, b, at_b, 1, b"still there?").unwrap();
    assert_eq!(closed(&mut world, b), done);
    world.wait_for(b, SECOND, |event| matches!(event, Event::RequestFailed { .. }).then_some(()));
}

/// What was longer than 255 bytes was cut, what filled a packet was lost, and what did not fit vanished without a word.
#[test]
fn b20_a_payload_arrives_whole_or_is_refused_in_words() {
    let (mut world, [a, b], [at_a, _]) = pair(20);
    let max = world.net(a).info(at_a).unwrap().max_message;
    let mut sizes = vec![0, 1, 254, 255, 256, 257, 959, 960, 1012, 1013, 1024];
    // The largest: header and token, reckoned at 8 bytes as the longest, are 12, and one marks the payload.
    sizes.push(max - 13);
    for (id, size) in (1..).zip(sizes) {
        let payload: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        post(&mut world, a, at_a, id, &payload).unwrap_or_else(|error| panic!("{size} bytes: {error}"));
        let (incoming, came) = request(&mut world, b, SECOND);
        assert_eq!(came, payload);
        world.command(b, |net, now| {
            net.respond(now, incoming, Code::CHANGED, &OptionSet::default(), &payload).unwrap();
        });
        assert_eq!(answer(&mut world, a, id), payload);
    }
    let refused = post(&mut world, a, at_a, 99, &vec![0; max - 12]);
    assert!(matches!(refused, Err(CommandError::TooLarge { .. })), "{refused:?}");
}

/// Milliseconds of the wall clock in 32 bits, compared wrongly when they wrap.
#[test]
fn b22_a_clock_that_wraps_or_is_set_disturbs_nothing() {
    let mut world = World::new(22);
    world.now = world.now + (Duration::from_millis(u64::from(u32::MAX)) - 40 * SECOND);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(3)));
    let (at_a, _) = connected(&mut world, a, b, 3);
    post(&mut world, a, at_a, 1, b"across").unwrap();
    let (incoming, _) = request(&mut world, b, SECOND);
    world.run(60 * SECOND);
    world.command(b, |net, now| {
        net.respond(now, incoming, Code::CHANGED, &OptionSet::default(), b"the wrap").ok();
    });
    // The wall clock is set forth and back, by years.
    for unix_ms in [4_000_000_000_000, 0, 1_000] {
        world.command(a, |net, now| net.set_unix_time(now, unix_ms));
        world.command(b, |net, now| net.set_unix_time(now, unix_ms));
        world.run(60 * SECOND);
    }
    assert_eq!((world.net(a).sessions(), world.net(b).sessions()), (1, 1));
    world.member(b).events.clear();
    echoes(&mut world, (a, at_a), b, 2);
}

/// Only who opened a session could ask in it.
#[test]
fn b24_who_accepted_a_session_asks_in_it_too() {
    let (mut world, [a, b], [at_a, at_b]) = pair(24);
    for id in 1..5 {
        echoes(&mut world, (b, at_b), a, id);
        echoes(&mut world, (a, at_a), b, id);
    }
}

/// The other half of it: what the acceptor said went to the first address for ever.
#[test]
fn b24_what_the_acceptor_says_follows_the_peer_to_its_new_address() {
    let (mut world, [a, b], [at_a, at_b]) = pair(240);
    let old = world.address(a);
    world.rebind(a);
    let new = world.address(a);
    assert_ne!(old, new);
    // One packet from the new address is enough.
    echoes(&mut world, (a, at_a), b, 1);
    let path = world.wait_for(b, 5 * SECOND, |event| match event {
        Event::Moved { session, path, .. } if *session == at_b => Some(*path),
        _ => None,
    });
    assert_eq!(path, m2m_proto::net::Path::Direct(new));
    world.tap = Some(Vec::new());
    echoes(&mut world, (b, at_b), a, 2);
    assert!(world.tap.iter().flatten().all(|(_, to, _)| *to != old));
}

/// The same, as it looks on the wire of two nets.
#[test]
fn b9_a_session_costs_one_init_and_one_resp() {
    let mut world = World::new(90);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(3)));
    world.tap = Some(Vec::new());
    connected(&mut world, a, b, 3);
    let long = world
        .tap
        .iter()
        .flatten()
        .filter(|(_, _, bytes)| matches!(Packet::decode(bytes), Ok(Packet::Init(_) | Packet::Resp(_))));
    assert_eq!(long.count(), 2);
}

/// The other half of it: a peer that stays away.
#[test]
fn b6_no_request_waits_for_ever() {
    let (mut world, [a, b], [at_a, _]) = pair(60);
    world.kill(b);
    let deadline = world.now + 5 * SECOND;
    world.command(a, |net, now| {
        let options = OptionSet::default();
        let (code, payload) = (Code::POST, &b"anyone?"[..]);
        let asked =
            Request { code, options: &options, payload, confirmable: true, repeatable: false, deadline };
        net.request(now, at_a, RequestId(1), &asked).unwrap();
    });
    world.wait_for(a, 6 * SECOND, |event| match event {
        Event::RequestFailed { request: RequestId(1), .. } => Some(()),
        _ => None,
    });
}
