//! Registrations that are forged, stale, ahead, replaced, lapsed, or made where none is kept.
use m2m_proto::{
    config::Rate,
    error::{CloseReason, ConnectError},
    event::{Event, HostLoss, RequestId},
    id::Id,
    net::{HostConfig, Route},
    session::{
        Secure,
        keys::{DeviceKey, Role, Suite},
    },
    stats::Drop,
    time::Duration,
    wire::frame::{CloseCode, Epoch, FoundStatus, Frame, RegisterStatus, Req},
};
use m2m_sim::{NetIndex, World, world::UNIX_START_MS};

use crate::rig::*;

/// What REGISTERED says: status, epoch, lease.
type Answer = (RegisterStatus, u64, u32);

fn answers(frame: &Frame<'_>) -> Option<Answer> {
    match frame {
        Frame::Registered { status, epoch, lease_s, .. } => Some((*status, epoch.0, *lease_s)),
        _ => None,
    }
}

/// A host, number 1, and a guest driven by hand, number 2, not registered.
fn host() -> (World, NetIndex, Hand) {
    let mut world = World::new(1);
    let host = world.add_host(1);
    let hand = Hand::up(&mut world, 2, host, 1);
    (world, host, hand)
}

/// Says PROVE and REGISTER.
fn prove_and_register(world: &mut World, hand: &mut Hand, req: u16, epoch: u64) -> Answer {
    let proof = hand.proof();
    let prove = Frame::Prove { public: &proof.public, mac: &proof.mac };
    let said = hand.talk(world, &[prove, register(req, epoch)], answers);
    assert_eq!(said.len(), 1, "one answer");
    said[0]
}

const NOW: u64 = UNIX_START_MS;

#[test]
fn register_without_prove_is_refused() {
    let (mut world, host, mut hand) = host();
    assert_eq!(hand.talk(&mut world, &[register(1, NOW)], answers)[0].0, RegisterStatus::REFUSED);
    assert_eq!(world.net(host).registrations(), 0);
    assert!(world.member(host).claims.is_empty());
}

#[test]
fn a_proof_with_a_wrong_mac_is_refused() {
    let (mut world, host, mut hand) = host();
    let proof = hand.proof();
    let mut mac = proof.mac;
    mac[0] ^= 1;
    let prove = Frame::Prove { public: &proof.public, mac: &mac };
    assert_eq!(hand.talk(&mut world, &[prove, register(1, NOW)], answers)[0].0, RegisterStatus::REFUSED);
    // There is no second try in a session.
    assert_eq!(prove_and_register(&mut world, &mut hand, 2, NOW).0, RegisterStatus::REFUSED);
    assert_eq!((world.net(host).registrations(), world.member(host).claims.len()), (0, 0));
    assert_eq!(dropped(&mut world, host, Drop::BadHandshake), 1);
}

#[test]
fn a_proof_of_another_session_is_refused() {
    let (mut world, host, hand) = host();
    let replayed = hand.proof();
    let mut thief = Hand::new(&mut world, 2, host, 1);
    let fields = thief.fields(0x9999);
    thief.half_open(&mut world, &fields, 0x55);
    let prove = Frame::Prove { public: &replayed.public, mac: &replayed.mac };
    assert_eq!(thief.talk(&mut world, &[prove, register(1, NOW)], answers)[0].0, RegisterStatus::REFUSED);
    assert_eq!(world.net(host).registrations(), 0);
}

#[test]
fn a_weak_public_key_proves_nothing() {
    let (mut world, host, mut hand) = host();
    let prove = Frame::Prove { public: &[0; 32], mac: &[0; 16] };
    assert_eq!(hand.talk(&mut world, &[prove, register(1, NOW)], answers)[0].0, RegisterStatus::REFUSED);
    assert_eq!(world.net(host).registrations(), 0);
}

#[test]
fn reserved_ids_are_not_registered() {
    for id in [Id([0xFF; 16]), Id([0xFF, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9])] {
        let (mut world, host, mut hand) = host();
        let mut fields = hand.fields(0x77);
        fields.src = id;
        hand.half_open(&mut world, &fields, 3);
        assert_eq!(prove_and_register(&mut world, &mut hand, 1, NOW).0, RegisterStatus::REFUSED);
        assert_eq!(world.net(host).registrations(), 0);
    }
}

#[test]
fn a_host_of_the_host_is_not_registered_with_it() {
    let mut world = World::new(2);
    let above = world.add_host(5);
    let host = world.add_host(1);
    world.join(host, above, 5);
    let mut hand = Hand::up(&mut world, 5, host, 1);
    assert_eq!(prove_and_register(&mut world, &mut hand, 1, NOW).0, RegisterStatus::REFUSED);
}

#[test]
fn the_epoch_decides_row_by_row() {
    let (mut world, host, mut hand) = host();
    assert_eq!(prove_and_register(&mut world, &mut hand, 1, NOW), (RegisterStatus::OK, NOW, 600));
    let again = hand.talk(&mut world, &[register(2, NOW)], answers);
    assert_eq!(again, [(RegisterStatus::OK, NOW, 600)], "the same session, equal: refreshed");

    // Another session of the same device.
    let mut other = Hand::new(&mut world, 2, host, 1);
    other.address.set_port(4001);
    let fields = other.fields(0x4001);
    other.half_open(&mut world, &fields, 0x41);
    assert_eq!(prove_and_register(&mut world, &mut other, 1, NOW), (RegisterStatus::STALE, NOW, 0), "equal");
    let lower = other.talk(&mut world, &[register(2, NOW - 5)], answers);
    assert_eq!(lower, [(RegisterStatus::STALE, NOW, 0)], "ours is higher");
    let host_now = UNIX_START_MS + world.now.as_micros() / 1000;
    let ahead = other.talk(&mut world, &[register(3, host_now + 301_000)], answers);
    assert_eq!(ahead[0].0, RegisterStatus::AHEAD);
    assert!(ahead[0].1.abs_diff(host_now) < 1_000, "and is told the host's time");
    assert!(hand.hear(&mut world).is_empty(), "the older one stands through all of it");
    let newer = other.talk(&mut world, &[register(4, NOW + 1)], answers);
    assert_eq!(newer, [(RegisterStatus::OK, NOW + 1, 600)]);
    let closed = pick(&hand.hear(&mut world), |frame| match frame {
        Frame::Close { code, .. } => Some(*code),
        _ => None,
    });
    assert_eq!(closed, [CloseCode::REPLACED]);
    assert_eq!(world.net(host).registrations(), 1);
}

/// AHEAD lowers the epoch of an older registration. That is for the id's own device only.
#[test]
fn an_epoch_far_ahead_moves_nothing_before_its_claim_is_checked() {
    let (mut world, host, mut hand) = host();
    let ahead = NOW + 200_000;
    assert_eq!(prove_and_register(&mut world, &mut hand, 1, ahead).0, RegisterStatus::OK);
    let mut thief = Hand::new(&mut world, 2, host, 1);
    let fields = thief.fields(0x9999);
    thief.half_open(&mut world, &fields, 0x55);
    let established = thief.established.as_ref().unwrap();
    let device = DeviceKey::from_bytes([0x99; 32]);
    let proof = device.prove(&established.peer_ephemeral, established.hash(), Role::Initiator).unwrap();
    let prove = Frame::Prove { public: &proof.public, mac: &proof.mac };
    let said = thief.talk(&mut world, &[prove, register(1, NOW + 400_000_000)], answers);
    assert_eq!(said[0].0, RegisterStatus::CLAIMED);
    let mut borrower = Hand::new(&mut world, 2, host, 1);
    let fields = borrower.fields(0x8888);
    borrower.half_open(&mut world, &fields, 0x56);
    let ephemeral =
        Frame::Register { req: Req(1), ephemeral: true, epoch: Epoch(NOW + 400_000_000), lease_s: 60 };
    let said = borrower.talk(&mut world, &[ephemeral], answers);
    assert!(matches!(said[0].0, RegisterStatus::CLAIMED | RegisterStatus::REFUSED), "{said:?}");

    let mut again = Hand::new(&mut world, 2, host, 1);
    let fields = again.fields(0x7777);
    again.half_open(&mut world, &fields, 0x57);
    let said = prove_and_register(&mut world, &mut again, 1, NOW + 100_000);
    assert_eq!(said, (RegisterStatus::STALE, ahead, 0), "the epoch is what it was");
}

/// An operator gives an id to another device, or to nobody: whoever has it now has to go, and hears how it stands.
#[test]
fn a_claim_that_is_taken_away_ends_its_registration() {
    for taken in [None, Some([7; 32])] {
        let (mut world, host, mut hand) = host();
        assert_eq!(prove_and_register(&mut world, &mut hand, 1, NOW).0, RegisterStatus::OK);
        let own = *device(2).public();
        world.command(host, |net, now| net.claim_changed(now, World::id(2), Some(own)));
        world.command(host, |net, now| net.claim_changed(now, World::id(3), None));
        assert!(hand.hear(&mut world).is_empty(), "its own key is its claim");
        assert_eq!(world.net(host).registrations(), 1);

        world.command(host, |net, now| net.claim_changed(now, World::id(2), taken));
        let closed = pick(&hand.hear(&mut world), |frame| match frame {
            Frame::Close { code, .. } => Some(*code),
            _ => None,
        });
        assert_eq!(closed, [CloseCode::REFUSED]);
        assert_eq!(world.net(host).registrations(), 0);
        world.wait_for(host, SECOND, |event| matches!(event, Event::Unregistered { .. }).then_some(()));
    }
}

#[test]
fn a_stale_device_tries_once_more_and_stands() {
    let mut world = World::new(3);
    let host = world.add_host(1);
    // An older registration whose epoch is ahead of the clock by less than the slack.
    let mut hand = Hand::up(&mut world, 2, host, 1);
    let ahead = NOW + 200_000;
    assert_eq!(prove_and_register(&mut world, &mut hand, 1, ahead).0, RegisterStatus::OK);
    let device = world.add_guest(2, host, 1);
    registered(&mut world, device);
    assert_eq!(world.member(device).epoch, ahead + 1, "and keeps what it registered with");
}

#[test]
fn a_device_whose_epoch_ran_ahead_takes_the_hosts_time() {
    let mut world = World::new(4);
    let host = world.add_host(1);
    let device = world.add(World::config(2));
    world.member(device).epoch = NOW + 10_000_000_000;
    world.start(device, World::config(2));
    world.join(device, host, 1);
    registered(&mut world, device);
    assert!(world.member(device).epoch < NOW + 100_000);
}

#[test]
fn a_repeated_register_gets_the_same_answer() {
    let (mut world, host, mut hand) = host();
    let first = prove_and_register(&mut world, &mut hand, 1, NOW);
    for _ in 0..3 {
        let proof = hand.proof();
        let prove = Frame::Prove { public: &proof.public, mac: &proof.mac };
        assert_eq!(hand.talk(&mut world, &[prove, register(1, NOW)], answers), [first]);
    }
    let told = world.member(host).events.iter();
    assert_eq!(told.filter(|(_, event)| matches!(event, Event::Registered { .. })).count(), 1);
}

#[test]
fn the_lease_is_the_smaller_of_what_is_asked_and_allowed() {
    for (asked, lease) in [(30, 30), (600, 60), (u32::MAX, 60), (0, 1)] {
        let mut world = World::new(5);
        let mut config = World::config(1);
        (config.registry, config.relay) = (true, true);
        config.max_router_tm = 60 * SECOND;
        let host = world.add(config);
        let mut hand = Hand::up(&mut world, 2, host, 1);
        let proof = hand.proof();
        let prove = Frame::Prove { public: &proof.public, mac: &proof.mac };
        let ask = Frame::Register { req: Req(1), ephemeral: false, epoch: Epoch(NOW), lease_s: asked };
        assert_eq!(hand.talk(&mut world, &[prove, ask], answers)[0].2, lease, "asked {asked}");
    }
}

#[test]
fn each_packet_renews_a_lease_and_silence_ends_it() {
    let mut world = World::new(6);
    let mut config = World::config(1);
    config.registry = true;
    config.max_router_tm = 10 * SECOND;
    let host = world.add(config);
    let mut hand = Hand::up(&mut world, 2, host, 1);
    prove_and_register(&mut world, &mut hand, 1, NOW);
    for _ in 0..5 {
        world.run(8 * SECOND);
        assert_eq!(world.net(host).registrations(), 1);
        hand.say(&mut world, &[Frame::Pad]);
    }
    world.run(9 * SECOND);
    assert_eq!(world.net(host).registrations(), 1);
    world.run(2 * SECOND);
    assert_eq!(world.net(host).registrations(), 0);
    world.wait_for(host, SECOND, |event| matches!(event, Event::Unregistered { .. }).then_some(()));
}

/// A host with that longest lease and a net registered with it.
fn short_lease(lease: Duration) -> (World, NetIndex, NetIndex) {
    let mut world = World::new(7);
    let mut config = World::config(1);
    (config.registry, config.relay) = (true, true);
    config.max_router_tm = lease;
    let host = world.add(config);
    let device = world.add_guest(2, host, 1);
    registered(&mut world, device);
    (world, host, device)
}

#[test]
fn a_net_under_a_lease_of_6_seconds_stays_registered() {
    let (mut world, host, _) = short_lease(6 * SECOND);
    for _ in 0..600 {
        world.run(SECOND / 2);
        assert_eq!(world.net(host).registrations(), 1);
    }
}

#[test]
fn a_lease_that_lapsed_in_an_outage_is_made_good_afterwards() {
    for outage in [5, 6, 7, 8, 9, 12, 30] {
        let (mut world, host, device) = short_lease(6 * SECOND);
        world.cut.push((host, device));
        world.run(outage * SECOND);
        world.cut.clear();
        world.run(40 * SECOND);
        assert!(world.net(device).is_registered());
        assert_eq!(world.net(host).registrations(), 1, "after an outage of {outage} s");
    }
}

#[test]
fn a_net_without_a_registry_says_so() {
    let mut world = World::new(8);
    let other = world.add(World::config(1));
    let device = world.add_guest(2, other, 1);
    let status = world.wait_for(device, 5 * SECOND, |event| match event {
        Event::HostRefused { status, .. } => Some(*status),
        _ => None,
    });
    assert_eq!(status, RegisterStatus::NO_REGISTRY);
    assert_eq!(world.net(device).sessions(), 0);
}

#[test]
fn what_waits_for_a_host_that_refuses_fails_with_that_reason() {
    let mut world = World::new(9);
    let other = world.add(World::config(1));
    let device = world.add_guest(2, other, 1);
    world.command(device, |net, now| net.connect(now, World::id(9), &key(9), Route::Host).unwrap());
    let why = world.wait_for(device, 15 * SECOND, |event| match event {
        Event::ConnectFailed { why, .. } => Some(*why),
        _ => None,
    });
    assert_eq!(why, ConnectError::HostRefused);
}

#[test]
fn lookup_is_for_those_who_are_registered_and_within_their_budget() {
    let (mut world, _, mut hand) = host();
    let found = |frame: &Frame<'_>| match frame {
        Frame::Found { status, home, .. } => Some((*status, *home)),
        _ => None,
    };
    let ask = |req: u16| Frame::Lookup { req: Req(req), id: World::id(2) };
    assert_eq!(hand.talk(&mut world, &[ask(1)], found), [(FoundStatus::REFUSED, Id::ANY)]);
    prove_and_register(&mut world, &mut hand, 2, NOW);
    let mut said = Vec::new();
    for half in 0..2 {
        let asks: Vec<Frame<'_>> = (0..15).map(|n| ask(10 + 20 * half + n)).collect();
        said.extend(hand.talk(&mut world, &asks, found));
    }
    let online = said.iter().filter(|answer| **answer == (FoundStatus::ONLINE, World::id(1))).count();
    let busy = said.iter().filter(|answer| **answer == (FoundStatus::BUSY, Id::ANY)).count();
    assert!((20..=21).contains(&online) && online + busy == 30, "a burst of 20: {said:?}");
}

#[test]
fn a_claimed_id_is_not_lent_to_an_ephemeral_one() {
    let (mut world, host, mut hand) = host();
    prove_and_register(&mut world, &mut hand, 1, NOW);
    let mut other = Hand::new(&mut world, 2, host, 1);
    let fields = other.fields(0x4001);
    other.half_open(&mut world, &fields, 0x41);
    let ask = Frame::Register { req: Req(1), ephemeral: true, epoch: Epoch(NOW + 1), lease_s: 120 };
    assert_eq!(other.talk(&mut world, &[ask], answers)[0].0, RegisterStatus::CLAIMED);
}

#[test]
fn an_ephemeral_registration_is_short_and_claims_nothing() {
    let (mut world, host, mut hand) = host();
    let ask = Frame::Register { req: Req(1), ephemeral: true, epoch: Epoch(NOW), lease_s: 600 };
    assert_eq!(hand.talk(&mut world, &[ask], answers), [(RegisterStatus::OK, NOW, 120)]);
    assert!(world.member(host).claims.is_empty());
}

#[test]
fn an_ephemeral_registration_does_not_become_a_claim_unasked() {
    let (mut world, host, mut hand) = host();
    let ask = Frame::Register { req: Req(1), ephemeral: true, epoch: Epoch(NOW), lease_s: 600 };
    hand.talk(&mut world, &[ask], answers);
    let answer = prove_and_register(&mut world, &mut hand, 2, NOW);
    assert_eq!(answer, (RegisterStatus::OK, NOW, 600));
    assert_eq!(world.member(host).claims.len(), 1, "a full lease is for those whose claim is stored");
}

#[test]
fn a_store_that_fails_is_told_and_tried_again() {
    let mut world = World::new(10);
    let host = world.add_host(1);
    world.member(host).disk_full = true;
    let device = world.add_guest(2, host, 1);
    for _ in 0..2 {
        let status = world.wait_for(device, 60 * SECOND, |event| match event {
            Event::HostRefused { status, .. } => Some(*status),
            _ => None,
        });
        assert_eq!(status, RegisterStatus::STORE);
        assert_eq!(world.net(host).registrations(), 0);
    }
    world.member(host).disk_full = false;
    world.wait_for(device, 60 * SECOND, |event| matches!(event, Event::HostConnected { .. }).then_some(()));
}

#[test]
fn a_full_registry_refuses_the_new_and_keeps_the_known() {
    let mut world = World::new(11);
    let mut config = World::config(1);
    config.registry = true;
    config.limits.registrations = 1;
    let host = world.add(config);
    let first = world.add_guest(2, host, 1);
    registered(&mut world, first);
    let second = world.add_guest(3, host, 1);
    let status = world.wait_for(second, 5 * SECOND, |event| match event {
        Event::HostRefused { status, .. } => Some(*status),
        _ => None,
    });
    assert_eq!(status, RegisterStatus::FULL);
    assert!(world.net(first).is_registered());
}

#[test]
fn two_copies_of_a_device_do_not_chase_each_other() {
    let mut world = World::new(12);
    let host = world.add_host(1);
    let copies = [world.add_guest(2, host, 1), world.add_guest(2, host, 1)];
    world.run(5 * SECOND);
    let before = world.net(host).stats().handshakes;
    world.run(120 * SECOND);
    let handshakes = world.net(host).stats().handshakes - before;
    assert!(handshakes <= 12, "{handshakes} handshakes in two minutes");
    let replaced = HostLoss::Session(CloseReason::Peer(CloseCode::REPLACED.0));
    for copy in copies {
        world.wait_for(copy, 120 * SECOND, |event| match event {
            Event::HostDisconnected { why, .. } if *why == replaced => Some(()),
            _ => None,
        });
    }
}

#[test]
fn a_host_named_by_its_address_alone_carries_what_waited_for_it() {
    let mut world = World::new(13);
    let host = world.add_host(1);
    let other = world.add_guest(3, host, 1);
    registered(&mut world, other);
    let device = world.add(World::config(2));
    let addresses = vec![world.address(host)];
    world.command(device, |net, now| {
        net.add_host(now, HostConfig { id: Id::ANY, key: key(1), addresses }).unwrap();
        net.connect(now, World::id(3), &key(3), Route::Host).unwrap();
    });
    world.wait_for(device, 5 * SECOND, |event| matches!(event, Event::Connected { .. }).then_some(()));
}

#[test]
fn a_host_named_by_its_address_alone_may_become_another() {
    let mut world = World::new(14);
    let host = world.add_host(1);
    let device = world.add(World::config(2));
    let addresses = vec![world.address(host)];
    world.command(device, |net, now| {
        net.add_host(now, HostConfig { id: Id::ANY, key: key(1), addresses }).unwrap();
    });
    registered(&mut world, device);
    world.kill(host);
    let mut config = World::config(9);
    config.key = World::key(1);
    config.registry = true;
    world.start(host, config);
    world.member(device).events.clear();
    let new = world.wait_for(device, 300 * SECOND, |event| match event {
        Event::HostConnected { host, .. } => Some(*host),
        _ => None,
    });
    assert_eq!(new, World::id(9));
}

#[test]
fn an_impostor_with_the_net_key_takes_neither_the_id_nor_the_place() {
    let (mut world, host, mut hand) = host();
    prove_and_register(&mut world, &mut hand, 1, NOW);
    let mut config = World::config(2);
    config.device = DeviceKey::from_bytes([0xEE; 32]);
    let impostor = world.add(config);
    world.join(impostor, host, 1);
    let status = world.wait_for(impostor, 5 * SECOND, |event| match event {
        Event::HostRefused { status, .. } => Some(*status),
        _ => None,
    });
    assert_eq!(status, RegisterStatus::CLAIMED);
    assert!(hand.hear(&mut world).is_empty(), "the owner hears nothing of it");
}

#[test]
fn an_unregistered_net_is_gone_and_one_of_another_session_is_not() {
    let (mut world, host, mut hand) = host();
    prove_and_register(&mut world, &mut hand, 1, NOW);
    let mut other = Hand::new(&mut world, 2, host, 1);
    let fields = other.fields(0x4001);
    other.half_open(&mut world, &fields, 0x41);
    let done = |frame: &Frame<'_>| matches!(frame, Frame::Done { .. }).then_some(());
    let leave = Frame::Unregister { req: Req(9), epoch: Epoch(NOW + 5) };
    assert_eq!(other.talk(&mut world, &[leave], done).len(), 1);
    assert_eq!(world.net(host).registrations(), 1);
    assert_eq!(hand.talk(&mut world, &[leave], done).len(), 1);
    assert_eq!(world.net(host).registrations(), 0);
}

#[test]
fn an_answer_that_was_not_asked_for_registers_nobody() {
    let mut world = World::new(15);
    let device = world.add(World::config(1));
    let mut hand = Hand::up(&mut world, 2, device, 1);
    let answer = Frame::Registered {
        req: Req(0),
        status: RegisterStatus::OK,
        epoch: Epoch(1),
        lease_s: 600,
        since: 0,
        path: &[],
    };
    let found = Frame::Found { req: Req(0), status: FoundStatus::ONLINE, home: Id::ANY };
    hand.say(&mut world, &[answer, found, Frame::Pong { req: Req(0), draining: false, observed: None }]);
    world.run(SECOND);
    assert!(!world.net(device).is_registered());
    world.command(device, |net, now| {
        let asked = net.lookup(now, World::id(2), RequestId(1), now + SECOND);
        assert!(asked.is_err(), "there is no host");
    });
}

#[test]
fn forged_registers_cost_no_more_than_their_budget_of_events() {
    let mut world = World::new(16);
    let mut config = World::config(1);
    config.registry = true;
    config.limits.lookup_rate = Rate::new(1, 1);
    let host = world.add(config);
    let mut hand = Hand::up(&mut world, 2, host, 1);
    world.member(host).events.clear();
    for req in 0..200 {
        hand.say(&mut world, &[register(req, NOW)]);
    }
    world.run(SECOND);
    assert!(world.member(host).events.is_empty() && world.member(host).claims.is_empty());
}

#[test]
fn a_session_registers_and_leaves_within_a_budget() {
    let mut world = World::new(18);
    let mut config = World::config(1);
    config.registry = true;
    config.limits.register_rate = Rate::new(1, 6);
    let host = world.add(config);
    let mut hand = Hand::up(&mut world, 2, host, 1);
    prove_and_register(&mut world, &mut hand, 1, NOW);
    let mut said = 0;
    for turn in 0..50u16 {
        let epoch = Epoch(NOW + u64::from(turn));
        let leave = Frame::Unregister { req: Req(100 + turn), epoch };
        let heard = hand.talk(&mut world, &[leave, register(200 + turn, epoch.0)], |frame| {
            matches!(frame, Frame::Registered { .. } | Frame::Done { .. }).then_some(())
        });
        said += heard.len();
    }
    // 50 times there and back take some seconds of this world.
    let seconds = 1 + (50 * 2 * BEAT).as_secs() as usize;
    assert!((5..=5 + seconds).contains(&said), "{said} answers");
    assert_eq!(dropped(&mut world, host, Drop::OverBudget), 100 - said as u64);
}

#[test]
fn a_register_that_is_not_answered_in_time_is_asked_again_while_the_host_lives() {
    let mut world = World::new(17);
    let net = world.add(World::config(2));
    let mut hand = Hand::new(&mut world, 1, net, 2);
    let addresses = vec![hand.address];
    world.command(net, |net, now| {
        net.add_host(now, HostConfig { id: World::id(1), key: key(1), addresses }).unwrap();
    });
    let init = hand.inbox(&mut world).remove(0);
    let (resp, established) = respond(&init, 1, &resp_fields(Suite::Aes128Gcm));
    hand.send(&mut world, &resp);
    hand.secure = Some(Secure::new(&established));
    let (begun, mut proofs) = (world.now, 0);
    // A host with a slow store: it answers pings at once, and REGISTER only after 20 seconds.
    while !world.net(net).is_registered() {
        assert!(world.now.since(begun) < 40 * SECOND, "it never asked again");
        let late = world.now.since(begun) > 20 * SECOND;
        let heard = hand.hear(&mut world);
        proofs += pick(&heard, |frame| matches!(frame, Frame::Prove { .. }).then_some(())).len();
        let mut said = pick(&heard, |frame| match frame {
            Frame::Ping { req, .. } => Some(Frame::Pong { req: *req, draining: false, observed: None }),
            Frame::Register { req, epoch, lease_s, .. } if late => Some(Frame::Registered {
                req: *req,
                status: RegisterStatus::OK,
                epoch: *epoch,
                lease_s: *lease_s,
                since: 0,
                path: &[],
            }),
            _ => None,
        });
        // Something is heard in between, so that the session is not taken for lost.
        said.push(Frame::Pad);
        hand.say(&mut world, &said);
        world.run(SECOND);
    }
    assert!(proofs > 2, "each with the proof");
}

#[test]
fn new_claims_of_one_network_have_a_budget_and_known_ones_do_not_need_it() {
    let mut world = World::new(18);
    let mut config = World::config(1);
    (config.registry, config.limits.claims_at_once, config.limits.claims_per_hour) = (true, 3, 60);
    let host = world.add(config);
    // Each id is another; all come from one /24.
    let mut statuses = Vec::new();
    for number in 10..16 {
        let mut hand = Hand::up(&mut world, number, host, 1);
        statuses.push(prove_and_register(&mut world, &mut hand, 1, NOW).0);
    }
    let (ok, busy) = (RegisterStatus::OK, RegisterStatus::BUSY);
    assert_eq!(statuses, [ok, ok, ok, busy, busy, busy]);
    assert_eq!(world.member(host).claims.len(), 3);
    assert!(busy.to_string().contains("later"));
    // One that is known registers again, as often as it likes.
    for round in 0..5u8 {
        let mut hand = Hand::new(&mut world, 10, host, 1);
        hand.address.set_port(5000 + u16::from(round));
        let fields = hand.fields(0x5000 + u32::from(round));
        hand.half_open(&mut world, &fields, 0x60 + round);
        assert_eq!(prove_and_register(&mut world, &mut hand, 1, NOW + 1 + u64::from(round)).0, ok);
    }
    // Another network has a budget of its own, and in a minute one more may claim.
    let mut other = Hand::new(&mut world, 20, host, 1);
    other.address = "198.51.100.9:4000".parse().unwrap();
    let fields = other.fields(0x2020);
    other.half_open(&mut world, &fields, 0x20);
    assert_eq!(prove_and_register(&mut world, &mut other, 1, NOW).0, ok);
    world.run(60 * SECOND);
    let mut hand = Hand::up(&mut world, 21, host, 1);
    assert_eq!(prove_and_register(&mut world, &mut hand, 1, NOW).0, ok);
    let mut hand = Hand::up(&mut world, 22, host, 1);
    assert_eq!(prove_and_register(&mut world, &mut hand, 1, NOW).0, busy);
}

#[test]
fn a_proof_that_does_not_come_soon_is_not_waited_for() {
    let (mut world, host, mut hand) = host();
    world.run(16 * SECOND);
    hand.say(&mut world, &[Frame::Pad]);
    assert_eq!(prove_and_register(&mut world, &mut hand, 1, NOW).0, RegisterStatus::REFUSED);
    assert_eq!(world.net(host).registrations(), 0);
}

#[test]
fn a_register_that_was_under_way_when_the_device_started_anew_changes_nothing() {
    let mut world = World::new(19);
    let host = world.add_host(1);
    let mut before = Hand::up(&mut world, 2, host, 1);
    let proof = before.proof();
    let prove = Frame::Prove { public: &proof.public, mac: &proof.mac };
    let delayed = before.packet(&[prove, register(1, NOW)]);
    let device = world.add_guest(2, host, 1);
    registered(&mut world, device);
    let epoch = world.member(device).epoch;
    before.send(&mut world, &delayed);
    let said = pick(&before.hear(&mut world), answers);
    assert_eq!(said, [(RegisterStatus::STALE, epoch, 0)]);
    world.run(60 * SECOND);
    assert!(world.net(device).is_registered());
    assert_eq!(world.net(host).registrations(), 1);
    let lost =
        world.member(device).events.iter().any(|(_, event)| matches!(event, Event::HostDisconnected { .. }));
    assert!(!lost, "the newer one was never in doubt");
}

#[test]
fn what_the_store_says_of_a_session_that_is_gone_is_of_no_interest() {
    let (mut world, host, mut hand) = host();
    let session = world.wait_for(host, SECOND, |event| match event {
        Event::Accepted { session, .. } => Some(*session),
        _ => None,
    });
    // Nothing was asked; the session stands; then it is gone.
    use m2m_proto::event::ClaimOutcome;
    for outcome in
        [ClaimOutcome::Held, ClaimOutcome::New, ClaimOutcome::Taken { since: 1 }, ClaimOutcome::Failed]
    {
        world.command(host, |net, now| net.claim_checked(now, session, outcome));
    }
    assert!(pick(&hand.hear(&mut world), answers).is_empty());
    hand.say(&mut world, &[Frame::Close { code: CloseCode::DONE, text: "" }]);
    world.run(5 * SECOND);
    assert_eq!(world.net(host).sessions(), 0);
    world.command(host, |net, now| net.claim_checked(now, session, ClaimOutcome::New));
    world.run(SECOND);
    assert_eq!(world.net(host).registrations(), 0);
}
