//! One host, a few nets, no faults: each thing that must work does.
use m2m_proto::{
    coap::{code::Code, message::Message, option_set::OptionSet},
    error::{CloseReason, ConnectError, RequestError},
    event::{Event, RequestId, SessionId},
    net::{Path, Request, Route},
    session::keys::PeerKey,
    time::Duration,
};
use m2m_sim::{NetIndex, World};

const SECOND: Duration = Duration::from_secs(1);

fn key(n: u8) -> PeerKey {
    PeerKey::Net(World::key(n))
}

fn registered(world: &mut World, net: NetIndex) {
    world.wait_for(net, 2 * SECOND, |event| matches!(event, Event::HostConnected { .. }).then_some(()));
}

fn post(world: &mut World, net: NetIndex, session: SessionId, id: u64, payload: &[u8]) {
    let deadline = world.now + 30 * SECOND;
    world.command(net, |machine, now| {
        let options = OptionSet::default();
        let request = Request {
            code: Code::POST,
            options: &options,
            payload,
            confirmable: true,
            repeatable: false,
            deadline,
        };
        machine.request(now, session, RequestId(id), &request).expect("the request is taken");
    });
}

/// Waits for a request and answers it with its own payload in capitals.
fn serve_one(world: &mut World, net: NetIndex) -> Vec<u8> {
    let (incoming, payload) = world.wait_for(net, 20 * SECOND, |event| match event {
        Event::Request { incoming, message, .. } => {
            Some((*incoming, Message::parse(message).expect("requests are valid").payload().to_vec()))
        }
        _ => None,
    });
    world.command(net, |machine, now| {
        let answer = payload.to_ascii_uppercase();
        machine
            .respond(now, incoming, Code::CHANGED, &OptionSet::default(), &answer)
            .expect("the answer is taken");
    });
    payload
}

fn answer(world: &mut World, net: NetIndex, id: u64) -> Vec<u8> {
    world.wait_for(net, 20 * SECOND, |event| match event {
        Event::Response { request, message } if *request == RequestId(id) => {
            Some(Message::parse(message).expect("responses are valid").payload().to_vec())
        }
        _ => None,
    })
}

/// Why a session of this net ended.
fn closed(world: &mut World, net: NetIndex, limit: Duration) -> CloseReason {
    world.wait_for(net, limit, |event| match event {
        Event::Closed { why, .. } => Some(*why),
        _ => None,
    })
}

#[test]
fn a_request_said_before_the_session_is_up_leaves_with_the_first_packet() {
    let mut world = World::new(1);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(3)));
    let to = world.address(b);
    world.tap = Some(Vec::new());
    let session =
        world.command(a, |net, now| net.connect(now, World::id(3), &key(3), Route::Direct(to)).unwrap());
    post(&mut world, a, session, 1, b"hello");
    assert_eq!(serve_one(&mut world, b), b"hello");
    assert_eq!(answer(&mut world, a, 1), b"HELLO");
    let lengths: Vec<usize> = world.tap.iter().flatten().map(|(_, _, bytes)| bytes.len()).collect();
    assert_eq!(lengths[..2], [104, 104], "INIT and RESP");
    assert_eq!(
        lengths.len(),
        5,
        "then one with CONFIRM, PING and the request; PONG, and the answer: {lengths:?}"
    );
}

#[test]
fn nets_find_each_other_by_id_through_their_host() {
    let mut world = World::new(2);
    let host = world.add_host(1);
    let device = world.add_guest(2, host, 1);
    let app = world.add_guest(3, host, 1);
    registered(&mut world, device);
    registered(&mut world, app);
    let session =
        world.command(app, |net, now| net.connect(now, World::id(2), &key(2), Route::Host).unwrap());
    post(&mut world, app, session, 7, b"by id");
    assert_eq!(serve_one(&mut world, device), b"by id");
    assert_eq!(answer(&mut world, app, 7), b"BY ID");
    assert_eq!(world.net(app).info(session).unwrap().path, Path::Through(World::id(1)));

    // The other way round, in the same session.
    let back = world.wait_for(device, SECOND, |event| match event {
        Event::Accepted { session, peer } if *peer == World::id(3) => Some(*session),
        _ => None,
    });
    post(&mut world, device, back, 8, b"and back");
    assert_eq!(serve_one(&mut world, app), b"and back");
    assert_eq!(answer(&mut world, device, 8), b"AND BACK");
}

#[test]
fn an_id_that_is_not_registered_ends_the_wait_at_once() {
    let mut world = World::new(3);
    let host = world.add_host(1);
    let app = world.add_guest(3, host, 1);
    registered(&mut world, app);
    let begun = world.now;
    let session =
        world.command(app, |net, now| net.connect(now, World::id(9), &key(9), Route::Host).unwrap());
    post(&mut world, app, session, 1, b"anyone?");
    let why = world.wait_for(app, SECOND, |event| match event {
        Event::ConnectFailed { why, .. } => Some(*why),
        _ => None,
    });
    assert_eq!(why, ConnectError::UnknownPeer);
    assert!(world.now.since(begun) < SECOND / 10);
    world.wait_for(app, SECOND, |event| match event {
        Event::RequestFailed { why: RequestError::NotSent(ConnectError::UnknownPeer), .. } => Some(()),
        _ => None,
    });
}

#[test]
fn a_wrong_key_is_told_from_an_absent_peer() {
    let mut world = World::new(4);
    let host = world.add_host(1);
    let device = world.add_guest(2, host, 1);
    let app = world.add_guest(3, host, 1);
    registered(&mut world, device);
    registered(&mut world, app);
    world.command(app, |net, now| net.connect(now, World::id(2), &key(77), Route::Host).unwrap());
    let failed = |event: &Event| match event {
        Event::ConnectFailed { why, .. } => Some(*why),
        _ => None,
    };
    assert_eq!(world.wait_for(app, 15 * SECOND, failed), ConnectError::AuthenticationFailed);

    let to = world.address(device);
    world.kill(device);
    world.command(app, |net, now| net.connect(now, World::id(2), &key(2), Route::Direct(to)).unwrap());
    assert_eq!(world.wait_for(app, 15 * SECOND, failed), ConnectError::Unreachable);
}

#[test]
fn an_impostor_is_refused_and_told_since_when() {
    let mut world = World::new(5);
    let host = world.add_host(1);
    let device = world.add_guest(2, host, 1);
    registered(&mut world, device);
    let mut config = World::config(2);
    config.device = m2m_proto::session::keys::DeviceKey::from_bytes([0xEE; 32]);
    let impostor = world.add(config);
    world.join(impostor, host, 1);
    let since = world.wait_for(impostor, 5 * SECOND, |event| match event {
        Event::HostRefused { since, .. } => Some(*since),
        _ => None,
    });
    assert_eq!(u64::from(since), m2m_sim::world::UNIX_START_MS / 1000 + 1);
    assert!(world.net(device).is_registered());
    assert_eq!(world.net(host).registrations(), 1);
}

#[test]
fn presence_follows_registration() {
    let mut world = World::new(6);
    let host = world.add_host(1);
    let device = world.add_guest(2, host, 1);
    let app = world.add_guest(3, host, 1);
    registered(&mut world, device);
    registered(&mut world, app);
    let ask = |world: &mut World, n: u64| {
        world.command(app, |net, now| net.lookup(now, World::id(2), RequestId(n), now + SECOND).unwrap());
        world.wait_for(app, 2 * SECOND, |event| match event {
            Event::Found { request, status } if *request == RequestId(n) => Some(status.unwrap()),
            _ => None,
        })
    };
    use m2m_proto::wire::frame::FoundStatus;
    assert_eq!(ask(&mut world, 1), FoundStatus::ONLINE);
    world.command(device, |net, now| net.shutdown(now));
    world.run(SECOND);
    assert_eq!(ask(&mut world, 2), FoundStatus::OFFLINE);
}

#[test]
fn a_host_that_dies_and_returns_is_found_again_by_itself() {
    let mut world = World::new(7);
    let host = world.add_host(1);
    let device = world.add_guest(2, host, 1);
    registered(&mut world, device);
    world.kill(host);
    world
        .wait_for(device, 40 * SECOND, |event| matches!(event, Event::HostDisconnected { .. }).then_some(()));
    assert!(!world.net(device).is_registered());
    let mut config = World::config(1);
    config.registry = true;
    config.relay = true;
    world.start(host, config);
    world.wait_for(device, 40 * SECOND, |event| matches!(event, Event::HostConnected { .. }).then_some(()));
    assert_eq!(world.net(host).registrations(), 1);
}

#[test]
fn a_silent_session_lives_on_pings_and_ends_without_them() {
    let mut world = World::new(8);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(3)));
    let to = world.address(b);
    world.command(a, |net, now| net.connect(now, World::id(3), &key(3), Route::Direct(to)).unwrap());
    world.run(3600 * SECOND);
    assert_eq!((world.net(a).sessions(), world.net(b).sessions()), (1, 1));
    world.kill(b);
    let why = closed(&mut world, a, 150 * SECOND);
    assert_eq!(why, CloseReason::Lost);
    world.run(10 * SECOND);
    assert_eq!(world.net(a).sessions(), 0);
}

#[test]
fn the_acceptor_forgets_a_peer_that_went_away() {
    let mut world = World::new(9);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(3)));
    let to = world.address(b);
    world.command(a, |net, now| net.connect(now, World::id(3), &key(3), Route::Direct(to)).unwrap());
    world.run(SECOND);
    world.kill(a);
    let why = closed(&mut world, b, 400 * SECOND);
    assert_eq!(why, CloseReason::Idle);
    world.run(10 * SECOND);
    assert_eq!(world.net(b).sessions(), 0);
}

#[test]
fn a_close_is_told_to_the_peer() {
    let mut world = World::new(10);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(3)));
    let to = world.address(b);
    let session =
        world.command(a, |net, now| net.connect(now, World::id(3), &key(3), Route::Direct(to)).unwrap());
    world.run(SECOND);
    world.command(a, |net, now| net.close(now, session));
    let why = closed(&mut world, b, SECOND);
    assert_eq!(why, CloseReason::Peer(0));
    world.run(10 * SECOND);
    assert_eq!((world.net(a).sessions(), world.net(b).sessions()), (0, 0));
}

#[test]
fn a_shutdown_is_told_to_peers_behind_the_host_too() {
    let mut world = World::new(12);
    let host = world.add_host(1);
    let device = world.add_guest(2, host, 1);
    let app = world.add_guest(3, host, 1);
    registered(&mut world, device);
    registered(&mut world, app);
    let session =
        world.command(app, |net, now| net.connect(now, World::id(2), &key(2), Route::Host).unwrap());
    post(&mut world, app, session, 1, b"x");
    serve_one(&mut world, device);
    answer(&mut world, app, 1);
    world.command(app, |net, now| net.shutdown(now));
    let why = closed(&mut world, device, SECOND);
    assert_eq!(why, CloseReason::Peer(2));
}

#[test]
fn a_session_whose_key_is_spent_ends_with_words_on_both_sides() {
    let mut world = World::new(13);
    let mut config = World::config(2);
    config.limits.packets_per_key = 100;
    let (a, b) = (world.add(config), world.add(World::config(3)));
    let to = world.address(b);
    let session =
        world.command(a, |net, now| net.connect(now, World::id(3), &key(3), Route::Direct(to)).unwrap());
    for id in 0..120 {
        if world.net(a).info(session).is_none_or(|info| !info.up && id > 0) {
            break;
        }
        post(&mut world, a, session, id, b"x");
        world.run(SECOND / 10);
        while let Some((_, event)) = world.member(b).events.pop_front() {
            match event {
                // The close may have come right behind the request: then there is nobody left to answer.
                Event::Request { incoming, .. } => world.command(b, |net, now| {
                    net.respond(now, incoming, Code::CHANGED, &OptionSet::default(), b"").ok();
                }),
                Event::Closed { why, .. } => {
                    assert_eq!(why, CloseReason::Peer(5));
                    let at_a = closed(&mut world, a, SECOND);
                    assert_eq!(at_a, CloseReason::KeyLimit);
                    return;
                }
                _ => {}
            }
        }
    }
    panic!("the session went on beyond its key's limit");
}

#[test]
fn a_device_that_died_is_not_taken_for_one_with_another_key() {
    use m2m_proto::wire::frame::FoundStatus;
    let mut world = World::new(14);
    let host = world.add_host(1);
    let device = world.add_guest(2, host, 1);
    let app = world.add_guest(3, host, 1);
    registered(&mut world, device);
    registered(&mut world, app);
    world.run(5 * SECOND);
    let found = |world: &mut World, n: u64| {
        world.command(app, |net, now| net.lookup(now, World::id(2), RequestId(n), now + 9 * SECOND).unwrap());
        world.wait_for(app, 10 * SECOND, |event| match event {
            Event::Found { request, status } if *request == RequestId(n) => *status,
            _ => None,
        })
    };
    assert_eq!(found(&mut world, 1), FoundStatus::ONLINE, "it is asked, and answers");
    world.kill(device);
    world.run(5 * SECOND);
    assert_eq!(found(&mut world, 2), FoundStatus::SILENT);
    assert_eq!(world.net(host).registrations(), 2, "a question ends no registration");
    let session =
        world.command(app, |net, now| net.connect(now, World::id(2), &key(2), Route::Host).unwrap());
    post(&mut world, app, session, 7, b"x");
    let why = world.wait_for(app, 15 * SECOND, |event| match event {
        Event::ConnectFailed { why, .. } => Some(*why),
        _ => None,
    });
    assert_eq!(why, ConnectError::Silent);
}

#[test]
fn a_request_that_gives_up_before_its_session_is_up_was_not_sent() {
    let mut world = World::new(15);
    let app = world.add(World::config(3));
    let nowhere = "192.0.2.1:9".parse().unwrap();
    let session = world
        .command(app, |net, now| net.connect(now, World::id(2), &key(2), Route::Direct(nowhere)).unwrap());
    let deadline = world.now + SECOND;
    world.command(app, |net, now| {
        let options = OptionSet::default();
        let request = Request {
            code: Code::POST,
            options: &options,
            payload: b"x",
            confirmable: true,
            repeatable: false,
            deadline,
        };
        net.request(now, session, RequestId(1), &request).unwrap();
    });
    let why = world.wait_for(app, 2 * SECOND, |event| match event {
        Event::RequestFailed { why, .. } => Some(*why),
        _ => None,
    });
    assert_eq!(why, RequestError::NotSent(ConnectError::Unreachable));
}

#[test]
fn the_net_at_an_address_tells_its_id() {
    let mut world = World::new(11);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(3)));
    let to = world.address(b);
    let any = m2m_proto::id::Id::ANY;
    world.command(a, |net, now| net.connect(now, any, &key(3), Route::Direct(to)).unwrap());
    let peer = world.wait_for(a, SECOND, |event| match event {
        Event::Connected { peer, .. } => Some(*peer),
        _ => None,
    });
    assert_eq!(peer, World::id(3));
}
