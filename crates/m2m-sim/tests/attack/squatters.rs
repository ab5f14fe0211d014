//! What one who holds the host's key, or is a guest of the host, can do to the device that owns an id: nothing that lasts.
use m2m_proto::{
    event::Event,
    net::Route,
    session::{
        handshake::Initiator,
        keys::{DhSecret, NetKey},
    },
    time::Duration,
    wire::frame::{Epoch, Frame, RelayFlags, Req},
};
use m2m_sim::{World, world::UNIX_START_MS};

use crate::rig::*;

#[test]
fn sessions_without_a_claim_do_not_drive_the_device_out_of_its_id() {
    let mut world = World::new(1);
    let host = world.add_host(1);
    let device = world.add_guest(2, host, 1);
    registered(&mut world, device);
    world.run(600 * SECOND);
    let mut hands = Vec::new();
    for n in 0..100u16 {
        let mut hand = Hand::new(&mut world, 2, host, 1);
        hand.address.set_port(5000 + n);
        let fields = hand.fields(0x5000 + u32::from(n));
        hand.half_open(&mut world, &fields, n as u8 + 1);
        hand.say(&mut world, &[Frame::Confirm { mem: 0, resume: None }]);
        hands.push(hand);
        world.run(SECOND);
        assert!(world.net(device).is_registered(), "after {n} squatters");
    }
    world.run(300 * SECOND);
    assert!(world.net(device).is_registered());
    assert_eq!(world.net(host).registrations(), 1);
    let lost =
        world.member(device).events.iter().any(|(_, event)| matches!(event, Event::HostDisconnected { .. }));
    assert!(!lost, "it was never even disturbed");
}

#[test]
fn forged_handshakes_of_one_guest_leave_the_others_theirs() {
    let mut world = World::new(1);
    let host = world.add_host(1);
    let device = world.add_guest(2, host, 1);
    let app = world.add_guest(4, host, 1);
    registered(&mut world, device);
    registered(&mut world, app);
    let mut hand = Hand::up(&mut world, 3, host, 1);
    hand.say(
        &mut world,
        &[Frame::Register { req: Req(1), ephemeral: true, epoch: Epoch(UNIX_START_MS), lease_s: 600 }],
    );
    world.run(SECOND);
    assert_eq!(world.net(host).registrations(), 3);
    let mut fields = hand.fields(0x100);
    fields.dst = World::id(2);
    let pair = NetKey::new(&[0x11; 16]).unwrap().pair(fields.src, fields.dst);
    let forged = *Initiator::start(&fields, &pair, DhSecret::from_bytes([7; 32])).init();
    for tick in 0..600 {
        let frame = Frame::Relay {
            hop_limit: 16,
            flags: RelayFlags(0),
            dst: World::id(2),
            src: World::id(3),
            inner: &forged,
        };
        hand.say(&mut world, &[frame]);
        if tick == 300 {
            world.command(app, |net, now| net.connect(now, World::id(2), &key(2), Route::Host).unwrap());
        }
        world.run(Duration::from_millis(10));
    }
    let connected = |event: &Event| matches!(event, Event::Connected { .. }).then_some(());
    world.wait_for(app, SECOND / 100, connected);
}

#[test]
fn a_squatter_without_a_claim_gives_way_to_the_device_that_claims() {
    let mut world = World::new(1);
    let host = world.add_host(1);
    let mut hand = Hand::up(&mut world, 2, host, 1);
    // As far ahead as a host allows.
    let epoch = Epoch(UNIX_START_MS + world.now.as_micros() / 1000 + 299_000);
    hand.say(&mut world, &[Frame::Register { req: Req(1), ephemeral: true, epoch, lease_s: 600 }]);
    world.run(SECOND);
    assert_eq!(world.net(host).registrations(), 1);
    let device = world.add_guest(2, host, 1);
    registered(&mut world, device);
}

#[test]
fn a_session_that_closes_is_over_for_its_user() {
    let mut world = World::new(1);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(3)));
    let (session, _) = connected(&mut world, a, b, 3);
    world.command(a, |net, now| net.close(now, session));
    assert!(world.net(a).info(session).is_none());
}

#[test]
fn a_device_that_has_been_up_for_long_is_back_within_a_minute_after_its_host_restarted() {
    for age in [1, 60, 300, 1800] {
        let mut world = World::new(1);
        let host = world.add_host(1);
        let device = world.add_guest(2, host, 1);
        registered(&mut world, device);
        world.run(age * SECOND);
        world.kill(host);
        let mut config = World::config(1);
        (config.registry, config.relay) = (true, true);
        world.start(host, config);
        world.run(60 * SECOND);
        assert_eq!(world.net(host).registrations(), 1, "after {age} s");
    }
}
