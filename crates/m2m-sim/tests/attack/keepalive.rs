//! Pings, silence, and clocks that jump.
use m2m_proto::{
    error::CloseReason,
    event::{Event, RequestId},
    net::HostConfig,
    session::{Secure, keys::Suite},
    time::{Duration, Time},
    wire::frame::{Frame, Req},
};
use m2m_sim::{NetIndex, World};

use crate::rig::*;

/// A net, number 2, that opened a session to a peer driven by hand, number 1.
fn opened() -> (World, NetIndex, Hand) {
    let mut world = World::new(1);
    let net = world.add(World::config(2));
    let mut hand = Hand::new(&mut world, 1, net, 2);
    let to = hand.address;
    world.command(net, |net, now| {
        net.connect(now, World::id(1), &key(1), m2m_proto::net::Route::Direct(to)).unwrap()
    });
    let init = hand.inbox(&mut world).remove(0);
    let (resp, established) = respond(&init, 1, &resp_fields(Suite::Aes128Gcm));
    hand.send(&mut world, &resp);
    hand.secure = Some(Secure::new(&established));
    (world, net, hand)
}

/// Answers pings for a while, from `address(now)`; says when each came and what it said of the next.
fn answer_pings(
    world: &mut World,
    hand: &mut Hand,
    time: Duration,
    observed: impl Fn(Time) -> std::net::SocketAddr,
) -> Vec<(Time, u16)> {
    let end = world.now + time;
    let mut pings = Vec::new();
    while world.now < end {
        let asked = pick(&hand.hear(world), |frame| match frame {
            Frame::Ping { req, next_s } => Some((*req, *next_s)),
            _ => None,
        });
        for (req, next_s) in asked {
            pings.push((world.now, next_s));
            let observed = Some(observed(world.now));
            hand.say(world, &[Frame::Pong { req, draining: false, observed }]);
        }
        world.run(Duration::from_millis(200));
    }
    pings
}

fn gaps(pings: &[(Time, u16)]) -> Vec<Duration> {
    pings.windows(2).map(|pair| pair[1].0.since(pair[0].0)).collect()
}

#[test]
fn the_interval_grows_from_25_to_110_seconds_while_the_address_stays() {
    let (mut world, _, mut hand) = opened();
    let address = hand.to;
    let pings = answer_pings(&mut world, &mut hand, 1500 * SECOND, |_| address);
    let gaps = gaps(&pings);
    assert!((25 * SECOND..27 * SECOND).contains(&gaps[0]), "{gaps:?}");
    assert!(gaps.windows(2).all(|pair| pair[1] + SECOND > pair[0]), "{gaps:?}");
    let last = *gaps.last().unwrap();
    assert!((110 * SECOND..112 * SECOND).contains(&last), "{gaps:?}");
}

#[test]
fn a_ping_never_promises_the_next_one_too_early() {
    let (mut world, _, mut hand) = opened();
    let address = hand.to;
    let pings = answer_pings(&mut world, &mut hand, 1500 * SECOND, |_| address);
    for (pair, gap) in pings.windows(2).zip(gaps(&pings)) {
        let next_s = u64::from(pair[0].1);
        assert!(gap <= Duration::from_secs(next_s) + SECOND / 2, "said {next_s} s, came after {gap:?}");
    }
}

#[test]
fn another_address_sets_the_interval_back() {
    let (mut world, _, mut hand) = opened();
    let (address, change) = (hand.to, world.now + 700 * SECOND);
    let other = "203.0.113.9:9".parse().unwrap();
    let pings =
        answer_pings(&mut world, &mut hand, 1000 * SECOND, |now| if now < change { address } else { other });
    let gaps = gaps(&pings);
    let at = pings.iter().position(|(time, _)| *time >= change).unwrap();
    assert!(gaps[at - 1] > 60 * SECOND, "{gaps:?}");
    assert!(gaps[at] < 27 * SECOND, "{gaps:?}");
}

#[test]
fn a_dead_peer_is_given_up_after_pings_and_a_handshake_that_it_leaves_unanswered() {
    let (mut world, net, mut hand) = opened();
    let address = hand.to;
    answer_pings(&mut world, &mut hand, 20 * SECOND, |_| address);
    world.member(net).events.clear();
    let unanswered = loop {
        let heard = hand.hear(&mut world);
        if pick(&heard, |frame| matches!(frame, Frame::Ping { .. }).then_some(())).len() == 1 {
            break world.now;
        }
    };
    let why = world.wait_for(net, 60 * SECOND, |event| match event {
        Event::Closed { why, .. } => Some(*why),
        _ => None,
    });
    assert_eq!(why, CloseReason::Lost);
    let took = world.now.since(unanswered);
    // Pings for 3 s, at this round trip, then a handshake for 10, unless it is heard again within 20 s.
    assert!(took <= 25 * SECOND, "{took:?}");
}

#[test]
fn an_acceptor_waits_three_and_a_half_times_what_the_ping_said() {
    let mut world = World::new(2);
    let net = world.add(World::config(1));
    let mut hand = Hand::up(&mut world, 2, net, 1);
    hand.say(&mut world, &[Frame::Ping { req: Req(1), next_s: 10 }]);
    hand.hear(&mut world);
    world.run(Duration::from_millis(34_800));
    assert_eq!(world.net(net).sessions(), 1);
    let why = world.wait_for(net, SECOND, |event| match event {
        Event::Closed { why, .. } => Some(*why),
        _ => None,
    });
    assert_eq!(why, CloseReason::Idle);
}

#[test]
fn a_peer_that_never_pings_is_kept_for_a_day() {
    let mut world = World::new(3);
    let net = world.add(World::config(1));
    let mut hand = Hand::up(&mut world, 2, net, 1);
    hand.say(&mut world, &[Frame::Ping { req: Req(1), next_s: 0 }]);
    world.run(23 * 3600 * SECOND);
    assert_eq!(world.net(net).sessions(), 1);
    world.run(3610 * SECOND);
    assert_eq!(world.net(net).sessions(), 0);
}

#[test]
fn many_open_pings_of_the_user_do_not_stop_the_machines_own() {
    let mut world = World::new(4);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(1)));
    let (session, _) = connected(&mut world, a, b, 1);
    world.run(24 * SECOND);
    world.kill(b);
    world.command(a, |net, now| {
        (0..100).take_while(|n| net.ping(now, session, RequestId(*n)).is_ok()).count()
    });
    // Time must pass, and the session must end, whatever the questions are that are open.
    let until = world.now + 20 * SECOND;
    for _ in 0..10_000 {
        if world.step(until).is_none() {
            break;
        }
    }
    assert_eq!(world.now, until, "a deadline in the past was given again and again");
    world.wait_for(a, 20 * SECOND, |event| matches!(event, Event::Closed { .. }).then_some(()));
}

#[test]
fn a_lost_host_is_tried_again_at_growing_distances() {
    let mut world = World::new(5);
    let net = world.add(World::config(2));
    world.tap = Some(Vec::new());
    let now = world.now;
    let config =
        HostConfig { id: World::id(1), key: key(1), addresses: vec!["192.0.2.1:1".parse().unwrap()] };
    world.command(net, |net, now| net.add_host(now, config).unwrap());
    let mut firsts = vec![now];
    for _ in 0..8 {
        world.wait_for(net, 60 * SECOND, |event| {
            matches!(event, Event::HostDisconnected { .. }).then_some(())
        });
        let failed = world.now;
        let seen = world.tap.as_ref().unwrap().len();
        while world.tap.as_ref().unwrap().len() == seen {
            world.run(Duration::from_millis(50));
        }
        let wait = world.now.since(failed);
        firsts.push(world.now);
        let doubled = SECOND * (1 << (firsts.len() - 2)).min(30);
        assert!(wait >= doubled * 7 / 10 && wait <= doubled * 13 / 10, "{wait:?} and not about {doubled:?}");
    }
}

#[test]
fn a_clock_that_jumps_or_stands_harms_nothing() {
    for jump in [Duration::ZERO, Duration::from_secs(86_400), Duration::from_secs(400 * 86_400)] {
        let mut world = World::new(6);
        let host = world.add_host(1);
        let device = world.add_guest(2, host, 1);
        registered(&mut world, device);
        world.now = world.now + jump;
        for _ in 0..5 {
            for net in [host, device] {
                world.command(net, |net, now| {
                    net.handle_timeout(now);
                    net.handle_timeout(now);
                });
            }
        }
        world.run(60 * SECOND);
        assert!(world.net(device).is_registered(), "after {jump:?}");
        assert_eq!(world.net(host).registrations(), 1);
    }
}

#[test]
fn the_end_of_time_is_no_panic() {
    let mut world = World::new(7);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(1)));
    connected(&mut world, a, b, 1);
    for net in [a, b] {
        let machine = world.net(net);
        for time in [Time::from_micros(u64::MAX - 1), Time::NEVER, Time::ZERO] {
            machine.handle_timeout(time);
            let mut datagram = [0x91; 104];
            machine.handle_datagram(time, "192.0.2.1:1".parse().unwrap(), &mut datagram);
            for _ in 0..100 {
                if matches!(machine.poll_output(time), m2m_proto::event::Output::Timeout(_)) {
                    break;
                }
            }
        }
    }
}

#[test]
fn timeouts_that_come_early_late_or_twice_are_harmless() {
    let mut world = World::new(8);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(1)));
    let (session, _) = connected(&mut world, a, b, 1);
    world.tap = Some(Vec::new());
    for _ in 0..200 {
        world.command(a, |net, now| net.handle_timeout(now));
        world.command(b, |net, now| net.handle_timeout(now));
        world.run(Duration::from_millis(100));
    }
    assert!(world.tap.as_ref().unwrap().is_empty(), "nothing was due");
    assert!(world.net(a).info(session).unwrap().up);
}

#[test]
fn a_ping_in_a_session_that_closes_is_refused() {
    let mut world = World::new(9);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(1)));
    let (session, _) = connected(&mut world, a, b, 1);
    let refused = world.command(a, |net, now| {
        net.close(now, session);
        net.ping(now, session, RequestId(1))
    });
    assert!(refused.is_err(), "nobody would ever hear of it");
}
