//! Sessions whose peer lost its memory, or was out of reach, go on (protocol, section 9).
use m2m_proto::{
    coap::{code::Code, message::Message, option_set::OptionSet},
    error::{CloseReason, RequestError},
    event::{Event, IncomingId, RequestId, SessionId},
    net::{Request, Route},
    session::keys::PeerKey,
    stats::Drop,
    time::Duration,
    wire::packet::ResetHint,
};
use m2m_sim::{NetIndex, World};

const SECOND: Duration = Duration::from_secs(1);
const RTT: Duration = Duration::from_millis(10);

/// A client with a session to a server, directly; both are up.
fn pair(seed: u64) -> (World, NetIndex, NetIndex, SessionId) {
    let mut world = World::new(seed);
    let (client, server) = (world.add(World::config(2)), world.add(World::config(3)));
    let session = connect(&mut world, client, server, Some(world_route(server)));
    (world, client, server, session)
}

/// Where the simulator puts its nets.
fn world_route(net: NetIndex) -> Route {
    Route::Direct(std::net::SocketAddr::from(([10, 0, net.0 as u8 + 1, 1], 9527)))
}

fn connect(world: &mut World, from: NetIndex, to: NetIndex, route: Option<Route>) -> SessionId {
    let number = to.0 as u8 + 2;
    let session = world.command(from, |net, now| {
        let key = PeerKey::Net(World::key(number));
        net.connect(now, World::id(number), &key, route.unwrap_or(Route::Host)).expect("there is room")
    });
    world.wait_for(from, 5 * SECOND, |event| matches!(event, Event::Connected { .. }).then_some(()));
    session
}

fn send(world: &mut World, net: NetIndex, session: SessionId, id: u64, code: Code, repeatable: bool) {
    let deadline = world.now + 60 * SECOND;
    world.command(net, |machine, now| {
        let options = OptionSet::default();
        let payload = id.to_be_bytes();
        let request =
            Request { code, options: &options, payload: &payload, confirmable: true, repeatable, deadline };
        machine.request(now, session, RequestId(id), &request).expect("the request is taken");
    });
}

fn post(world: &mut World, net: NetIndex, session: SessionId, id: u64) {
    send(world, net, session, id, Code::POST, false);
}

/// Waits until a request runs, and says which.
fn runs(world: &mut World, net: NetIndex, limit: Duration) -> (IncomingId, u64) {
    world.wait_for(net, limit, |event| match event {
        Event::Request { incoming, message, .. } => {
            let payload = Message::parse(message).unwrap().payload().try_into().unwrap();
            Some((*incoming, u64::from_be_bytes(payload)))
        }
        _ => None,
    })
}

fn respond(world: &mut World, net: NetIndex, incoming: IncomingId) {
    world.command(net, |machine, now| {
        machine.respond(now, incoming, Code::CHANGED, &OptionSet::default(), b"ok").expect("it waits");
    });
}

/// What came of a request.
fn outcome(world: &mut World, net: NetIndex, id: u64, limit: Duration) -> Result<(), RequestError> {
    world.wait_for(net, limit, |event| match event {
        Event::Response { request, .. } if *request == RequestId(id) => Some(Ok(())),
        Event::RequestFailed { request, why } if *request == RequestId(id) => Some(Err(*why)),
        _ => None,
    })
}

fn recovered(world: &mut World, net: NetIndex, limit: Duration) -> (SessionId, bool) {
    world.wait_for(net, limit, |event| match event {
        Event::Recovered { session, resumed, .. } => Some((*session, *resumed)),
        _ => None,
    })
}

fn requests_in(world: &mut World, net: NetIndex) -> usize {
    let events = &world.member(net).events;
    events.iter().filter(|(_, event)| matches!(event, Event::Request { .. })).count()
}

fn reboot(world: &mut World, net: NetIndex) {
    world.kill(net);
    world.run(3 * SECOND);
    world.start(net, World::config(net.0 as u8 + 2));
    world.run(3 * SECOND);
}

/// ORIGINAL's B6: requests timed out for ever while the session was shown as connected.
#[test]
fn the_request_that_finds_a_rebooted_peer_is_not_lost() {
    let (mut world, client, server, session) = pair(1);
    reboot(&mut world, server);
    let before = world.now;
    post(&mut world, client, session, 1);
    let (incoming, number) = runs(&mut world, server, SECOND);
    assert_eq!(number, 1);
    // Packet, hint, INIT, RESP, packet: two round trips and a half.
    assert!(
        world.now.since(before) <= RTT * 3,
        "found out within a round trip: {:?}",
        world.now.since(before)
    );
    respond(&mut world, server, incoming);
    assert_eq!(outcome(&mut world, client, 1, SECOND), Ok(()));
    assert_eq!(recovered(&mut world, client, SECOND), (session, false), "under the same handle");
    world.run(5 * SECOND);
    assert_eq!(requests_in(&mut world, server), 0, "it ran once");
}

#[test]
fn what_may_have_run_before_the_peer_forgot_is_repeated_only_if_it_may_be() {
    let (mut world, client, server, session) = pair(2);
    // Four requests run at the server, which dies before it answers: two are acknowledged, two are not.
    post(&mut world, client, session, 1);
    send(&mut world, client, session, 2, Code::PUT, false);
    world.run(SECOND);
    post(&mut world, client, session, 3);
    send(&mut world, client, session, 4, Code::POST, true);
    for _ in 0..4 {
        runs(&mut world, server, SECOND);
    }
    reboot(&mut world, server);
    post(&mut world, client, session, 5);
    let mut again: Vec<u64> = Vec::new();
    for _ in 0..3 {
        let (incoming, number) = runs(&mut world, server, 20 * SECOND);
        respond(&mut world, server, incoming);
        again.push(number);
    }
    again.sort_unstable();
    assert_eq!(again, [2, 4, 5]);
    for id in [2, 4, 5] {
        assert_eq!(outcome(&mut world, client, id, SECOND), Ok(()), "{id}");
    }
    for id in [1, 3] {
        assert_eq!(outcome(&mut world, client, id, SECOND), Err(RequestError::PeerForgot), "{id}");
    }
}

#[test]
fn both_remember_after_an_outage_and_nothing_runs_twice() {
    let (mut world, client, server, session) = pair(3);
    for id in 0..10 {
        post(&mut world, client, session, id);
    }
    // All run, and no answer gets through; then the link is cut for a while.
    let pending: Vec<IncomingId> = (0..10).map(|_| runs(&mut world, server, SECOND).0).collect();
    world.cut.push((client, server));
    for incoming in pending {
        respond(&mut world, server, incoming);
    }
    for id in 10..20 {
        post(&mut world, client, session, id);
    }
    world.run(9 * SECOND);
    world.cut.clear();
    for _ in 10..20 {
        let (incoming, _) = runs(&mut world, server, 20 * SECOND);
        respond(&mut world, server, incoming);
    }
    for id in 0..20 {
        assert_eq!(outcome(&mut world, client, id, 20 * SECOND), Ok(()), "{id}");
    }
    world.run(10 * SECOND);
    assert_eq!(requests_in(&mut world, server), 0, "nothing ran twice");
    assert!(world.net(client).info(session).is_some(), "the session lives");
}

#[test]
fn the_responders_open_requests_go_on_too() {
    let (mut world, client, server, session) = pair(4);
    post(&mut world, client, session, 1);
    let (incoming, _) = runs(&mut world, server, SECOND);
    let back = incoming.session();
    respond(&mut world, server, incoming);
    world.run(SECOND);
    world.cut.push((client, server));
    post(&mut world, server, back, 2);
    post(&mut world, client, session, 3);
    world.run(7 * SECOND);
    world.cut.clear();
    let (at_client, number) = runs(&mut world, client, 20 * SECOND);
    assert_eq!(number, 2);
    respond(&mut world, client, at_client);
    assert_eq!(outcome(&mut world, server, 2, 20 * SECOND), Ok(()));
    let (at_server, number) = runs(&mut world, server, 20 * SECOND);
    assert_eq!((number, at_server.session()), (3, back), "the handle of the responder stays");
}

#[test]
fn a_peer_that_stays_away_is_lost_in_words() {
    let (mut world, client, server, session) = pair(5);
    world.kill(server);
    post(&mut world, client, session, 1);
    let why = outcome(&mut world, client, 1, 30 * SECOND);
    assert_eq!(why, Err(RequestError::SessionLost(CloseReason::Lost)));
}

#[test]
fn a_rebooted_device_behind_a_host_is_found_by_its_hint_through_the_host() {
    let mut world = World::new(6);
    let host = world.add_host(1);
    let (device, app) = (world.add_guest(2, host, 1), world.add_guest(3, host, 1));
    world.run(SECOND);
    let session = world.command(app, |net, now| {
        net.connect(now, World::id(2), &PeerKey::Net(World::key(2)), Route::Host).unwrap()
    });
    world.wait_for(app, SECOND, |event| matches!(event, Event::Connected { .. }).then_some(()));
    world.kill(device);
    world.run(3 * SECOND);
    world.start(device, World::config(2));
    world.join(device, host, 1);
    world.run(3 * SECOND);
    let before = world.now;
    post(&mut world, app, session, 1);
    let (incoming, _) = runs(&mut world, device, SECOND);
    assert!(world.now.since(before) <= RTT * 6, "{:?}", world.now.since(before));
    respond(&mut world, device, incoming);
    assert_eq!(outcome(&mut world, app, 1, SECOND), Ok(()));
    assert_eq!(recovered(&mut world, app, SECOND), (session, false));
}

/// A hint is the smallest packet that a relay carries.
#[test]
fn a_hint_passes_a_host() {
    let mut world = World::new(6);
    let host = world.add_host(1);
    let (device, app) = (world.add_guest(2, host, 1), world.add_guest(3, host, 1));
    world.run(SECOND);
    let session = world.command(app, |net, now| {
        net.connect(now, World::id(2), &PeerKey::Net(World::key(2)), Route::Host).unwrap()
    });
    world.run(SECOND);
    world.kill(device);
    world.start(device, World::config(2));
    world.join(device, host, 1);
    world.run(RTT * 10);
    let before = world.net(app).stats().recoveries;
    post(&mut world, app, session, 1);
    // Packet, hint, INIT, RESP: two round trips of two hops.
    world.run(RTT * 5);
    assert_eq!(world.net(host).stats().dropped(Drop::BadFrame), 0);
    assert_eq!(world.net(app).stats().recoveries, before + 1);
}

#[test]
fn a_device_is_registered_again_at_once_when_its_host_has_forgotten() {
    let mut world = World::new(7);
    let host = world.add_host(1);
    let (device, app) = (world.add_guest(2, host, 1), world.add_guest(3, host, 1));
    world.run(SECOND);
    world.kill(host);
    world.run(SECOND);
    let mut config = World::config(1);
    (config.registry, config.relay) = (true, true);
    world.start(host, config);
    // Whatever they send next finds it out.
    for net in [device, app] {
        world.command(net, |machine, now| {
            machine.lookup(now, World::id(2), RequestId(9), now + SECOND).unwrap();
        });
    }
    world.run(Duration::from_millis(200));
    assert_eq!(world.net(host).registrations(), 2);
}

#[test]
fn a_session_through_a_host_outlives_the_hosts_restart() {
    let mut world = World::new(8);
    let host = world.add_host(1);
    let (device, app) = (world.add_guest(2, host, 1), world.add_guest(3, host, 1));
    world.run(SECOND);
    let session = world.command(app, |net, now| {
        net.connect(now, World::id(2), &PeerKey::Net(World::key(2)), Route::Host).unwrap()
    });
    world.wait_for(app, SECOND, |event| matches!(event, Event::Connected { .. }).then_some(()));
    world.kill(host);
    world.run(SECOND);
    for id in 0..5 {
        post(&mut world, app, session, id);
    }
    world.run(20 * SECOND);
    let mut config = World::config(1);
    (config.registry, config.relay) = (true, true);
    world.start(host, config);
    for _ in 0..5 {
        let (incoming, _) = runs(&mut world, device, 50 * SECOND);
        respond(&mut world, device, incoming);
    }
    for id in 0..5 {
        assert_eq!(outcome(&mut world, app, id, 20 * SECOND), Ok(()), "{id}");
    }
    assert!(world.net(app).info(session).is_some());
}

/// Forged hints: the wrong token, the wrong tail, and a true one over and over.
#[test]
fn hints_start_at_most_one_handshake_in_five_seconds_and_end_nothing() {
    let (mut world, client, server, session) = pair(9);
    world.overheard = Some(std::collections::VecDeque::new());
    post(&mut world, client, session, 1);
    let (at_client, at_server) = (world.address(client), world.address(server));
    let seen = world.overheard.iter().flatten().find(|seen| seen.to == at_server).cloned().expect("it left");
    let (incoming, _) = runs(&mut world, server, SECOND);
    respond(&mut world, server, incoming);
    let mut hint = vec![0x95];
    hint.extend_from_slice(&seen.bytes[1..5]);
    hint.extend_from_slice(&[0xEE; ResetHint::TAIL_LEN]);
    world.tap = Some(Vec::new());
    for _ in 0..100 {
        world.inject(at_server, at_client, &hint);
    }
    world.run(SECOND);
    let inits = |world: &World| {
        world.tap.iter().flatten().filter(|(_, _, bytes)| bytes.first() == Some(&0x91)).count()
    };
    assert_eq!(inits(&world), 0, "a hint without the packet's end is nothing");
    assert_eq!(world.net(client).stats().dropped(Drop::BadHint), 100);

    let tail = seen.bytes.last_chunk::<8>().unwrap();
    hint.truncate(5);
    hint.extend_from_slice(tail);
    for _ in 0..300 {
        world.inject(at_server, at_client, &hint);
        world.run(Duration::from_millis(100));
    }
    assert!(inits(&world) <= 7, "{} handshakes in 30 s", inits(&world));
    post(&mut world, client, session, 2);
    let (incoming, _) = runs(&mut world, server, SECOND);
    respond(&mut world, server, incoming);
    assert_eq!(outcome(&mut world, client, 2, SECOND), Ok(()));
    let closed = |world: &mut World, net| {
        world.member(net).events.iter().filter(|(_, event)| matches!(event, Event::Closed { .. })).count()
    };
    assert_eq!((closed(&mut world, client), closed(&mut world, server)), (0, 0));
}

#[test]
fn a_hint_is_smaller_than_what_it_answers_and_seldom() {
    let mut world = World::new(10);
    let server = world.add(World::config(3));
    let at_server = world.address(server);
    let stranger = std::net::SocketAddr::from(([10, 250, 0, 1], 4000));
    world.tap = Some(Vec::new());
    for n in 0..50u8 {
        let mut packet = vec![0x41, 1, 2, 3, n];
        packet.extend_from_slice(&[n; 19]);
        world.inject(stranger, at_server, &packet);
    }
    world.run(SECOND);
    let hints: Vec<_> = world.tap.iter().flatten().filter(|(_, to, _)| *to == stranger).collect();
    assert!((1..=2).contains(&hints.len()), "{}", hints.len());
    assert!(hints.iter().all(|(_, _, bytes)| bytes.len() == ResetHint::LEN));
    // A hint is never answered, however it looks.
    let (hint, count) = (hints[0].2.clone(), hints.len());
    world.inject(stranger, at_server, &hint);
    world.run(SECOND);
    assert_eq!(world.tap.iter().flatten().filter(|(_, to, _)| *to == stranger).count(), count);
}

/// Everything at once: loss, duplication, reordering, outages and restarts, over many seeds, judged by what ran.
#[test]
fn outages_and_loss_never_make_a_request_run_twice() {
    for seed in 0..30 {
        let (mut world, client, server, session) = pair(100 + seed);
        world.faults.loss = 200;
        world.faults.duplicate = 200;
        world.faults.jitter = Duration::from_millis(300);
        let mut ran = std::collections::BTreeMap::<u64, u32>::new();
        for step in 0..60u64 {
            if step % 13 == 5 {
                world.cut.push((client, server));
            }
            if step % 13 == 9 {
                world.cut.clear();
            }
            post(&mut world, client, session, step);
            world.run(SECOND);
            let events = std::mem::take(&mut world.member(server).events);
            for (_, event) in events {
                if let Event::Request { incoming, message, .. } = event {
                    let payload = Message::parse(&message).unwrap().payload().try_into().unwrap();
                    *ran.entry(u64::from_be_bytes(payload)).or_default() += 1;
                    if incoming.session() != session || step % 3 > 0 {
                        respond(&mut world, server, incoming);
                    }
                }
            }
        }
        assert!(ran.values().all(|runs| *runs == 1), "seed {seed}: {ran:?}");
        assert!(ran.len() > 8, "seed {seed}: only {} ran", ran.len());
    }
}

/// The session came up at its responder by a late copy of its first packet, after its initiator had opened it anew and had
/// said everything again.
#[test]
fn a_first_packet_that_comes_after_the_session_was_opened_anew_runs_nothing() {
    let mut world = World::new(11);
    let (client, server) = (world.add(World::config(2)), world.add(World::config(3)));
    let (at_client, at_server) = (world.address(client), world.address(server));
    world.run(3 * SECOND);
    world.overheard = Some(std::collections::VecDeque::new());
    let session = world.command(client, |net, now| {
        net.connect(now, World::id(3), &PeerKey::Net(World::key(3)), world_route(server)).unwrap()
    });
    post(&mut world, client, session, 1);
    // RESP is on its way; the attacker keeps the first packet that answers it.
    world.run(RTT / 2);
    world.cut_one_way.push((client, server));
    world.wait_for(client, SECOND, |event| matches!(event, Event::Connected { .. }).then_some(()));
    world.cut_one_way.clear();
    let first = world.overheard.iter().flatten().next().cloned().expect("it left");
    assert!(first.to == at_server && first.bytes[0] < 0x80, "{first:?}");

    let mut hint = vec![0x95];
    hint.extend_from_slice(&first.bytes[1..5]);
    hint.extend_from_slice(first.bytes.last_chunk::<8>().unwrap());
    world.inject(at_server, at_client, &hint);
    let (incoming, _) = runs(&mut world, server, SECOND);
    world.replay(&first, at_client, at_server, &first.bytes);
    respond(&mut world, server, incoming);
    assert_eq!(outcome(&mut world, client, 1, SECOND), Ok(()));
    world.run(SECOND);
    assert_eq!(requests_in(&mut world, server), 0, "it ran once");
}
