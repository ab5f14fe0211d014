//! What went wrong once, each in the smallest world in which it does.
use std::{collections::VecDeque, net::SocketAddr};

use m2m_proto::{
    coap::{code::Code, option_set::OptionSet},
    error::CloseReason,
    event::{Event, RequestId, SessionId},
    net::{Request, Route},
    session::keys::PeerKey,
    time::Duration,
};
use m2m_sim::{NetIndex, World, world::Seen};

const SECOND: Duration = Duration::from_secs(1);

fn post(world: &mut World, net: NetIndex, session: SessionId, id: u64) {
    let deadline = world.now + 60 * SECOND;
    world.command(net, |machine, now| {
        let options = OptionSet::default();
        let request = Request {
            code: Code::POST,
            options: &options,
            payload: b"hello",
            confirmable: true,
            repeatable: false,
            deadline,
        };
        machine.request(now, session, RequestId(id), &request).expect("the request is taken");
    });
}

/// The newest datagram that left for this address, once one does.
fn overheard(world: &mut World, from: SocketAddr, to: SocketAddr) -> Seen {
    for _ in 0..1000 {
        let seen = world.overheard.iter().flatten().find(|seen| {
            let is_short = seen.bytes.first().is_some_and(|byte| byte & 0x80 == 0);
            is_short && seen.from == from && seen.to == to
        });
        if let Some(seen) = seen {
            return seen.clone();
        }
        world.step(world.now + SECOND);
    }
    panic!("nothing went from {from} to {to}");
}

/// The packet that confirmed a handshake made its source the peer's address: a copy of it that came first, from elsewhere,
/// led the host's answers astray, and the device was not registered.
#[test]
fn a_copy_of_the_confirming_packet_from_elsewhere_moves_nothing() {
    let mut world = World::new(1);
    world.overheard = Some(VecDeque::new());
    world.faults.delay = Duration::from_millis(100);
    let host = world.add_host(1);
    let device = world.add_guest(2, host, 1);
    let (at_host, at_device) = (world.address(host), world.address(device));
    let stranger = SocketAddr::from(([10, 250, 0, 1], 4000));

    let first = overheard(&mut world, at_device, at_host);
    world.faults.delay = Duration::ZERO;
    world.replay(&first, stranger, at_host, &first.bytes);
    world.tap = Some(Vec::new());
    world.run(SECOND);
    assert!(world.net(device).is_registered());
    assert!(world.tap.iter().flatten().all(|(_, to, _)| *to != stranger), "nothing goes to the stranger");
}

/// The ping that finds a dead peer was spaced by the timeout of the requests that had died with it: the more was
/// lost, the later it was noticed.
#[test]
fn lost_requests_do_not_make_a_ping_more_patient() {
    let mut world = World::new(2);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(3)));
    let to = world.address(b);
    let session = world.command(a, |net, now| {
        net.connect(now, World::id(3), &PeerKey::Net(World::key(3)), Route::Direct(to))
            .expect("there is room")
    });
    world.run(SECOND);
    world.kill(b);
    post(&mut world, a, session, 1);
    // Pinged 25 s after the last answer, given up 8 s later.
    let why = world.wait_for(a, 34 * SECOND, |event| match event {
        Event::Closed { why, .. } => Some(*why),
        _ => None,
    });
    assert_eq!(why, CloseReason::Lost);
}

/// A process that had got no time found a datagram before it looked at its timers: a ping whose time was over was sent
/// again, and again at the same instant, until the key was spent.
#[test]
fn a_ping_that_is_overdue_is_not_repeated_without_end() {
    let mut world = World::new(3);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(3)));
    let to = world.address(b);
    let session = world.command(a, |net, now| {
        net.connect(now, World::id(3), &PeerKey::Net(World::key(3)), Route::Direct(to))
            .expect("there is room")
    });
    world.run(SECOND);
    world.cut.push((a, b));
    world.command(a, |net, now| net.ping(now, session, RequestId(1)).expect("the session is up"));
    world.run(SECOND);
    world.suspend(a, false);
    world.cut.clear();
    let there = world.wait_for(b, SECOND, |event| match event {
        Event::Accepted { session, .. } => Some(*session),
        _ => None,
    });
    post(&mut world, b, there, 2);
    world.run(20 * SECOND);
    world.resume(a, true);
    assert_eq!(world.watch.violations, [""; 0]);
    assert!(world.net(a).stats().datagrams_out < 20);
}

/// A process that slept while an answer waited in its socket took the sleep for the round trip, and then waited half a minute
/// before it repeated what was lost.
#[test]
fn a_sleep_is_no_round_trip() {
    let mut world = World::new(3);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(3)));
    let to = world.address(b);
    let session = world.command(a, |net, now| {
        net.connect(now, World::id(3), &PeerKey::Net(World::key(3)), Route::Direct(to))
            .expect("there is room")
    });
    world.suspend(a, false);
    world.run(11 * SECOND);
    world.resume(a, true);
    world.run(SECOND);
    let rtt = world.net(a).info(session).expect("it is up").rtt;
    assert!(rtt.is_none_or(|rtt| rtt < SECOND), "{rtt:?}");
}
