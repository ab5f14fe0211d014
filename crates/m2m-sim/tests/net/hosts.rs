//! Several hosts, of which the first is preferred; epochs, restarts, clones and clocks.
use m2m_proto::{
    coap::{code::Code, option_set::OptionSet},
    config::Config,
    error::CloseReason,
    event::{Event, HostLoss, RequestId, SessionId},
    net::{HostConfig, Path, Request, Route},
    session::keys::{DeviceKey, PeerKey},
    time::{Duration, Time},
    wire::frame::{CloseCode, RegisterStatus},
};
use m2m_sim::{NetIndex, World};

const SECOND: Duration = Duration::from_secs(1);

fn key(n: u8) -> PeerKey {
    PeerKey::Net(World::key(n))
}

/// Two hosts, numbers 1 and 9, and two nets, numbers 2 and 3, that prefer the first.
struct Pair {
    world: World,
    hosts: [NetIndex; 2],
    nets: [NetIndex; 2],
}

fn hosts_and_nets(seed: u64) -> Pair {
    let mut world = World::new(seed);
    let hosts = [world.add_host(1), world.add_host(9)];
    let nets = [2, 3].map(|n| {
        let net = world.add_guest(n, hosts[0], 1);
        world.join(net, hosts[1], 9);
        net
    });
    world.run(SECOND);
    Pair { world, hosts, nets }
}

/// Waits until a net is registered with the host of that number; says when.
fn at_host(world: &mut World, net: NetIndex, number: u8, limit: Duration) -> Time {
    world.wait_for(net, limit, |event| match event {
        Event::HostConnected { host, .. } if *host == World::id(number) => Some(()),
        _ => None,
    });
    world.now
}

fn connect(world: &mut World, from: NetIndex, number: u8) -> SessionId {
    world.command(from, |net, now| {
        net.connect(now, World::id(number), &key(number), Route::Host).expect("there is room")
    })
}

fn post(world: &mut World, net: NetIndex, session: SessionId, id: u64) {
    let deadline = world.now + 60 * SECOND;
    world.command(net, |machine, now| {
        let options = OptionSet::default();
        let request = Request {
            code: Code::POST,
            options: &options,
            payload: b"x",
            confirmable: true,
            repeatable: false,
            deadline,
        };
        machine.request(now, session, RequestId(id), &request).expect("there is room");
    });
}

/// Lets time pass while a net answers; says how many answers the other got.
fn serve(world: &mut World, server: NetIndex, client: NetIndex, time: Duration) -> usize {
    let until = world.now + time;
    let mut answers = 0;
    while world.step(until).is_some() {
        while let Some(at) = find(world, server, |event| matches!(event, Event::Request { .. })) {
            let Some((_, Event::Request { incoming, .. })) = world.member(server).events.remove(at) else {
                unreachable!("it was just found")
            };
            world.command(server, |net, now| {
                net.respond(now, incoming, Code::CHANGED, &OptionSet::default(), b"y").expect("it is taken");
            });
        }
        while let Some(at) = find(world, client, |event| {
            matches!(event, Event::Response { .. } | Event::RequestFailed { .. } | Event::Closed { .. })
        }) {
            match world.member(client).events.remove(at) {
                Some((_, Event::Response { .. })) => answers += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    answers
}

fn find(world: &mut World, net: NetIndex, wanted: impl Fn(&Event) -> bool) -> Option<usize> {
    world.member(net).events.iter().position(|(_, event)| wanted(event))
}

#[test]
fn the_first_host_is_used_and_the_second_left_alone() {
    let Pair { mut world, hosts, nets } = hosts_and_nets(1);
    at_host(&mut world, nets[0], 1, SECOND);
    world.run(300 * SECOND);
    assert_eq!(world.net(hosts[0]).registrations(), 2);
    assert_eq!(world.net(hosts[1]).stats().datagrams_in, 0);
}

#[test]
fn the_second_host_is_taken_within_10_seconds_when_the_first_never_answers() {
    let mut world = World::new(2);
    let hosts = [world.add_host(1), world.add_host(9)];
    world.kill(hosts[0]);
    let net = world.add_guest(2, hosts[0], 1);
    world.join(net, hosts[1], 9);
    let begun = world.now;
    let at = at_host(&mut world, net, 9, 20 * SECOND);
    assert!(at.since(begun) <= 10 * SECOND, "after {:?}", at.since(begun));
}

#[test]
fn an_idle_net_takes_the_second_host_within_a_ping_interval_and_10_seconds() {
    for seed in 0..5 {
        let Pair { mut world, hosts, nets } = hosts_and_nets(seed);
        world.run(Duration::from_secs(60 + 17 * seed));
        world.kill(hosts[0]);
        let begun = world.now;
        let at = at_host(&mut world, nets[0], 9, 100 * SECOND);
        assert!(at.since(begun) <= 55 * SECOND, "after {:?}", at.since(begun));
    }
}

#[test]
fn a_net_with_traffic_takes_the_second_host_within_10_seconds_and_loses_nothing() {
    for seed in 0..10 {
        let Pair { mut world, hosts, nets } = hosts_and_nets(seed);
        let session = connect(&mut world, nets[1], 2);
        post(&mut world, nets[1], session, 0);
        assert_eq!(serve(&mut world, nets[0], nets[1], SECOND), 1);
        world.run(Duration::from_secs(5 * seed));
        world.kill(hosts[0]);
        let begun = world.now;
        // Both have something to say, or the idle one would only notice with its next ping.
        let back = find(&mut world, nets[0], |event| matches!(event, Event::Accepted { .. })).unwrap();
        let Some((_, Event::Accepted { session: there, .. })) = world.member(nets[0]).events.remove(back)
        else {
            unreachable!("it was just found")
        };
        for id in 1..5 {
            post(&mut world, nets[1], session, id);
            post(&mut world, nets[0], there, id);
        }
        let times = [0, 1].map(|n| at_host(&mut world, nets[n], 9, 20 * SECOND));
        assert!(
            times.iter().all(|at| at.since(begun) <= 10 * SECOND),
            "seed {seed}: {times:?} from {begun:?}"
        );
        // The one that only answers sees the requests in its events.
        let answers = serve(&mut world, nets[0], nets[1], 30 * SECOND);
        assert_eq!(answers, 4, "seed {seed}");
        assert_eq!(serve(&mut world, nets[1], nets[0], 30 * SECOND), 4, "seed {seed}");
        let path = world.net(nets[1]).info(session).expect("it stands").path;
        assert_eq!(path, Path::Through(World::id(9)));
    }
}

#[test]
fn the_first_host_is_used_again_when_it_is_back_and_sessions_go_over() {
    for seed in 0..5 {
        let Pair { mut world, hosts, nets } = hosts_and_nets(seed);
        let mut config = World::config(1);
        (config.registry, config.relay) = (true, true);
        world.kill(hosts[0]);
        at_host(&mut world, nets[0], 9, 70 * SECOND);
        at_host(&mut world, nets[1], 9, 70 * SECOND);
        let session = connect(&mut world, nets[1], 2);
        post(&mut world, nets[1], session, 0);
        assert_eq!(serve(&mut world, nets[0], nets[1], SECOND), 1);
        world.start(hosts[0], config);
        let begun = world.now;
        let mut asked = 1;
        // A request each second all the while.
        while world.now.since(begun) < 180 * SECOND {
            post(&mut world, nets[1], session, asked);
            assert_eq!(serve(&mut world, nets[0], nets[1], SECOND), 1, "request {asked}, seed {seed}");
            asked += 1;
        }
        for net in nets {
            at_host(&mut world, net, 1, SECOND);
        }
        let path = world.net(nets[1]).info(session).expect("it stands").path;
        assert_eq!(path, Path::Through(World::id(1)), "seed {seed}");
        assert_eq!(world.net(hosts[0]).registrations(), 2);
        assert_eq!(world.net(hosts[1]).registrations(), 0, "and the second is left");
        let lost = find(&mut world, nets[0], |event| match event {
            Event::HostDisconnected { host, .. } => *host == World::id(9),
            _ => false,
        });
        assert_eq!(lost, None, "nothing was lost");
    }
}

#[test]
fn a_host_that_refuses_is_left_at_once_and_said_so() {
    let mut world = World::new(3);
    // Number 1 keeps no registry.
    let hosts = [world.add(World::config(1)), world.add_host(9)];
    let net = world.add_guest(2, hosts[0], 1);
    world.join(net, hosts[1], 9);
    let begun = world.now;
    let status = world.wait_for(net, SECOND, |event| match event {
        Event::HostRefused { status, .. } => Some(*status),
        _ => None,
    });
    assert_eq!(status, RegisterStatus::NO_REGISTRY);
    assert!(at_host(&mut world, net, 9, SECOND).since(begun) < SECOND / 5);
    // It is asked again now and then, and its word is not repeated to the user.
    world.run(100 * SECOND);
    let again = find(&mut world, net, |event| matches!(event, Event::HostRefused { .. }));
    assert_eq!(again, None);
    assert!(world.net(net).is_registered());
    assert!(world.net(hosts[0]).stats().handshakes < 8);
}

#[test]
fn handshakes_and_look_ups_that_wait_go_along_to_the_next_host() {
    let mut world = World::new(4);
    let hosts = [world.add_host(1), world.add_host(9)];
    world.kill(hosts[0]);
    let device = world.add_guest(3, hosts[1], 9);
    let net = world.add_guest(2, hosts[0], 1);
    world.join(net, hosts[1], 9);
    connect(&mut world, net, 3);
    let deadline = world.now + 20 * SECOND;
    world.command(net, |net, now| net.lookup(now, World::id(3), RequestId(7), deadline).unwrap());
    world.wait_for(net, 12 * SECOND, |event| matches!(event, Event::Connected { .. }).then_some(()));
    world.wait_for(net, SECOND, |event| matches!(event, Event::Found { status: Some(_), .. }).then_some(()));
    assert!(world.net(device).is_registered());
}

#[test]
fn each_address_of_a_host_is_tried_before_the_next_host() {
    let mut world = World::new(5);
    let hosts = [world.add_host(1), world.add_host(9)];
    let net = world.add(World::config(2));
    let right = world.address(hosts[0]);
    let addresses = vec![
        "10.99.0.1:1".parse().unwrap(),
        "10.99.0.2:1".parse().unwrap(),
        "10.99.0.3:1".parse().unwrap(),
        right,
    ];
    let second = vec![world.address(hosts[1])];
    world.command(net, |net, now| {
        net.add_host(now, HostConfig { id: World::id(1), key: key(1), addresses }).unwrap();
        net.add_host(now, HostConfig { id: World::id(9), key: key(9), addresses: second }).unwrap();
    });
    at_host(&mut world, net, 1, 8 * SECOND);
    assert_eq!(world.net(hosts[1]).stats().datagrams_in, 0);
    world.run(100 * SECOND);
    assert!(world.net(net).is_registered(), "and it stays with the one that answered");
}

#[test]
fn with_all_hosts_away_each_is_tried_for_ever_and_not_too_often() {
    let Pair { mut world, hosts, nets } = hosts_and_nets(6);
    hosts.into_iter().for_each(|host| world.kill(host));
    let before = world.net(nets[0]).stats().datagrams_out;
    world.run(600 * SECOND);
    let sent = world.net(nets[0]).stats().datagrams_out - before;
    assert!((50..600).contains(&sent), "{sent} packets in ten minutes");
    let mut config = World::config(9);
    (config.registry, config.relay) = (true, true);
    world.start(hosts[1], config);
    at_host(&mut world, nets[0], 9, 80 * SECOND);
}

/// A net that was started anew registers again although the older registration still stands.
#[test]
fn a_restarted_device_replaces_its_older_registration() {
    let mut world = World::new(7);
    let host = world.add_host(1);
    let device = world.add_guest(2, host, 1);
    at_host(&mut world, device, 1, SECOND);
    for forgets in [false, true] {
        world.kill(device);
        if forgets {
            world.member(device).epoch = 0;
        }
        world.start(device, World::config(2));
        world.join(device, host, 1);
        at_host(&mut world, device, 1, SECOND);
        assert_eq!(world.net(host).registrations(), 1);
    }
}

#[test]
fn a_clone_with_the_same_device_key_is_told_and_does_not_fight() {
    let mut world = World::new(8);
    let host = world.add_host(1);
    let first = world.add_guest(2, host, 1);
    at_host(&mut world, first, 1, SECOND);
    let clone = world.add_guest(2, host, 1);
    at_host(&mut world, clone, 1, SECOND);
    let why = world.wait_for(first, SECOND, |event| match event {
        Event::HostDisconnected { why, .. } => Some(*why),
        _ => None,
    });
    assert_eq!(why, HostLoss::Session(CloseReason::Peer(CloseCode::REPLACED.0)));
    assert!(why.to_string().contains("replaced"), "{why}");
    let before = world.net(host).stats().handshakes;
    world.run(600 * SECOND);
    let handshakes = world.net(host).stats().handshakes - before;
    assert!(handshakes <= 30, "{handshakes} handshakes in ten minutes, of two");
    assert_eq!(world.net(host).registrations(), 1);
}

#[test]
fn a_clone_with_another_device_key_is_told_that_the_id_is_claimed() {
    let mut world = World::new(9);
    let host = world.add_host(1);
    let first = world.add_guest(2, host, 1);
    at_host(&mut world, first, 1, SECOND);
    let config = Config::new(World::id(2), World::key(2), DeviceKey::from_bytes([0xEE; 32]));
    let clone = world.add(config);
    world.join(clone, host, 1);
    let (status, since) = world.wait_for(clone, SECOND, |event| match event {
        Event::HostRefused { status, since, .. } => Some((*status, *since)),
        _ => None,
    });
    assert_eq!(status, RegisterStatus::CLAIMED);
    assert!(since > 0);
    world.run(300 * SECOND);
    assert!(world.net(first).is_registered() && !world.net(clone).is_registered());
}

#[test]
fn a_host_without_a_clock_registers_and_one_that_gets_it_goes_on() {
    let mut world = World::new(10);
    let host = world.add_host(1);
    let device = world.add_guest(2, host, 1);
    at_host(&mut world, device, 1, SECOND);
    // The host's clock is an hour behind, a day ahead, and right again: each time the device starts anew.
    for error in [-3_600_000, 86_400_000, 0] {
        world.set_clock(host, error);
        world.kill(device);
        world.start(device, World::config(2));
        world.join(device, host, 1);
        at_host(&mut world, device, 1, SECOND);
        assert_eq!(world.net(host).registrations(), 1, "{error} ms");
    }
}

#[test]
fn a_device_that_registered_with_a_host_far_ahead_is_taken_by_it_once_its_clock_is_right() {
    let mut world = World::new(11);
    let host = world.add_host(1);
    world.set_clock(host, 10 * 365 * 86_400_000);
    let device = world.add_guest(2, host, 1);
    at_host(&mut world, device, 1, SECOND);
    let ahead = world.member(device).epoch;
    world.set_clock(host, 0);
    // The older registration stands, with an epoch of ten years from now.
    world.kill(device);
    world.start(device, World::config(2));
    world.join(device, host, 1);
    at_host(&mut world, device, 1, SECOND);
    assert!(world.member(device).epoch < ahead);
    assert_eq!(world.net(host).registrations(), 1);
}
