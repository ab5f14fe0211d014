//! Sessions pinned to one device: whoever holds the peer's net key and not its device key gets nothing out of them.
use m2m_proto::{
    config::Rate,
    error::{CloseReason, ConnectError, ErrorKind, RequestError},
    event::{Event, SessionId},
    net::{ConnectOptions, Route},
    session::{
        Secure,
        keys::{DeviceKey, Proof, Role, Suite},
    },
    stats::Drop,
    time::Duration,
    wire::{
        bundle::{Element, elements},
        frame::{Frame, Req},
    },
};
use m2m_sim::{NetIndex, World};

use crate::rig::*;

fn pinned(world: &mut World, from: NetIndex, number: u8, route: Route, pin: [u8; 32]) -> SessionId {
    let options = ConnectOptions { pin: Some(pin) };
    world.command(from, |net, now| {
        net.connect_with(now, World::id(number), &key(number), route, &options).expect("there is room")
    })
}

fn public(number: u8) -> [u8; 32] {
    *device(number).public()
}

fn ended(event: &Event) -> Option<ConnectError> {
    match event {
        Event::ConnectFailed { why, .. } => Some(*why),
        Event::Connected { .. } => panic!("it must not come up"),
        _ => None,
    }
}

/// A net, number 2, whose pinned session to number 1 ends at one who has number 1's net key, and a request in it.
fn in_the_middle() -> (World, NetIndex, SessionId, Hand) {
    let mut world = World::new(1);
    let net = world.add(World::config(2));
    let mut hand = Hand::new(&mut world, 1, net, 2);
    let session = pinned(&mut world, net, 1, Route::Direct(hand.address), public(1));
    post(&mut world, net, session, 7, b"secret").unwrap();
    let init = hand.inbox(&mut world).remove(0);
    let (resp, established) = respond(&init, 1, &resp_fields(Suite::Aes128Gcm));
    hand.send(&mut world, &resp);
    hand.secure = Some(Secure::new(&established));
    hand.established = Some(established);
    (world, net, session, hand)
}

/// No message is among what came.
fn holds_no_message(plains: &[Vec<u8>]) -> bool {
    plains.iter().all(|plain| {
        elements(plain).unwrap().all(|element| !matches!(element, Element::Message(_)))
            && !plain.windows(6).any(|part| part == b"secret")
    })
}

fn is_refused(world: &mut World, net: NetIndex, hand: &mut Hand, limit: Duration) {
    assert_eq!(world.wait_for(net, limit, ended), ConnectError::WrongDevice);
    assert_eq!(ConnectError::WrongDevice.kind(), ErrorKind::AuthenticationFailed);
    let why = world.wait_for(net, SECOND, |event| match event {
        Event::RequestFailed { why, .. } => Some(*why),
        _ => None,
    });
    assert_eq!(why, RequestError::NotSent(ConnectError::WrongDevice));
    let plains = hand.hear(world);
    assert!(holds_no_message(&plains));
    assert_eq!(pick(&plains, |frame| matches!(frame, Frame::Close { .. }).then_some(())).len(), 1);
    assert_eq!(world.net(net).sessions(), 0);
}

fn asks(frame: &Frame<'_>) -> Option<Req> {
    match frame {
        Frame::ProveAsk { req } => Some(*req),
        _ => None,
    }
}

#[test]
fn the_pinned_device_is_reached_straight_and_through_a_host() {
    let mut world = World::new(3);
    let host = world.add_host(1);
    let (app, device) = (world.add_guest(2, host, 1), world.add_guest(3, host, 1));
    registered(&mut world, app);
    registered(&mut world, device);
    let address = world.address(device);
    for route in [Route::Direct(address), Route::Host] {
        let session = pinned(&mut world, app, 3, route, public(3));
        assert!(!world.net(app).info(session).unwrap().up);
        post(&mut world, app, session, 1, b"hello").unwrap();
        world.wait_for(app, SECOND, |event| matches!(event, Event::Connected { .. }).then_some(()));
        world.wait_for(device, SECOND, |event| matches!(event, Event::Request { .. }).then_some(()));
        assert!(world.net(app).info(session).unwrap().up);
    }
}

#[test]
fn a_pinned_session_comes_up_through_loss_and_copies() {
    let mut up = 0;
    for seed in 0..40 {
        let mut world = World::new(seed);
        let (app, device) = (world.add(World::config(2)), world.add(World::config(3)));
        world.faults.loss = 200;
        world.faults.duplicate = 200;
        world.faults.jitter = Duration::from_millis(50);
        let route = Route::Direct(world.address(device));
        let session = pinned(&mut world, app, 3, route, public(3));
        world.run(12 * SECOND);
        up += u32::from(world.net(app).info(session).is_some_and(|info| info.up));
    }
    assert!(up >= 38, "{up} of 40");
}

#[test]
fn another_device_with_the_same_net_key_is_refused() {
    let mut world = World::new(1);
    let app = world.add(World::config(2));
    let mut config = World::config(1);
    config.device = DeviceKey::from_bytes([0xEE; 32]);
    let thief = world.add(config);
    let route = Route::Direct(world.address(thief));
    let session = pinned(&mut world, app, 1, route, public(1));
    post(&mut world, app, session, 1, b"secret").unwrap();
    assert_eq!(world.wait_for(app, SECOND, ended), ConnectError::WrongDevice);
    world.run(SECOND);
    let events = &world.member(thief).events;
    assert!(events.iter().all(|(_, event)| !matches!(event, Event::Request { .. })), "{events:?}");
    assert!(events.iter().any(|(_, event)| matches!(event, Event::Closed { .. })), "{events:?}");
}

#[test]
fn a_proof_with_a_wrong_mac_or_the_wrong_role_ends_the_session_at_once() {
    for role in [Role::Initiator, Role::Responder] {
        let (mut world, net, _, mut hand) = in_the_middle();
        assert_eq!(pick(&hand.hear(&mut world), asks).len(), 1, "asked in the first packet");
        let established = hand.established.as_ref().unwrap();
        let hash = established.hash();
        let mut proof = device(1).prove(&established.peer_ephemeral, hash, role).unwrap();
        if role == Role::Responder {
            proof.mac[15] ^= 0x80;
        }
        hand.say(&mut world, &[Frame::Prove { public: &proof.public, mac: &proof.mac }]);
        is_refused(&mut world, net, &mut hand, SECOND);
        assert_eq!(dropped(&mut world, net, Drop::BadHandshake), 1);
    }
}

/// The proof of the true device, got in a session of the attacker's own, is bound to that session.
#[test]
fn a_proof_that_was_made_for_another_session_is_refused() {
    let (mut world, net, _, mut hand) = in_the_middle();
    let device = world.add(World::config(1));
    let mut thief = Hand::new(&mut world, 5, device, 1);
    let fields = thief.fields(0x55);
    thief.half_open(&mut world, &fields, 5);
    let proofs = thief.talk(&mut world, &[Frame::ProveAsk { req: Req(1) }], proof);
    assert_eq!(proofs.len(), 1);
    assert_eq!(proofs[0].public, public(1), "the true device's");
    hand.say(&mut world, &[Frame::Prove { public: &proofs[0].public, mac: &proofs[0].mac }]);
    is_refused(&mut world, net, &mut hand, SECOND);
}

fn proof(frame: &Frame<'_>) -> Option<Proof> {
    match frame {
        Frame::Prove { public, mac } => Some(Proof { public: **public, mac: **mac }),
        _ => None,
    }
}

#[test]
fn a_proof_that_never_comes_is_waited_for_8_seconds() {
    let (mut world, net, session, mut hand) = in_the_middle();
    let start = world.now;
    let mut heard = Vec::new();
    while world.now.since(start) < 7 * SECOND + SECOND / 2 {
        let plains = hand.hear(&mut world);
        // All that can be said without the device key is said: it is alive, and answers.
        for (req, observed) in pick(&plains, |frame| match frame {
            Frame::Ping { req, .. } => Some((*req, None)),
            _ => None,
        }) {
            hand.say(&mut world, &[Frame::Pong { req, draining: false, observed }]);
        }
        heard.extend(plains);
    }
    assert!(pick(&heard, asks).len() >= 3, "it asks again");
    assert!(holds_no_message(&heard));
    assert!(world.net(net).info(session).is_some_and(|info| !info.up));
    is_refused(&mut world, net, &mut hand, 2 * SECOND);
}

/// A pinned session whose peer restarts: as the same device, or as one that has its net key, id and address.
fn restarted_as(device: DeviceKey) -> (World, NetIndex, NetIndex, SessionId) {
    let mut world = World::new(8);
    let (app, net) = (world.add(World::config(2)), world.add(World::config(3)));
    let route = Route::Direct(world.address(net));
    let session = pinned(&mut world, app, 3, route, public(3));
    world.wait_for(app, SECOND, |event| matches!(event, Event::Connected { .. }).then_some(()));
    world.run(BEAT);
    let mut config = World::config(3);
    config.device = device;
    world.start(net, config);
    post(&mut world, app, session, 1, b"secret").unwrap();
    (world, app, net, session)
}

#[test]
fn a_device_that_restarts_proves_itself_again() {
    let (mut world, app, net, session) = restarted_as(device(3));
    world.wait_for(app, 5 * SECOND, |event| match event {
        Event::Recovered { session: told, resumed: false, .. } => (*told == session).then_some(()),
        Event::Connected { .. } => panic!("it is told once"),
        _ => None,
    });
    post(&mut world, app, session, 2, b"again").unwrap();
    world.wait_for(net, 5 * SECOND, |event| matches!(event, Event::Request { .. }).then_some(()));
    assert!(world.net(app).info(session).is_some_and(|info| info.up));
}

#[test]
fn another_device_cannot_step_into_a_living_session() {
    let (mut world, app, net, session) = restarted_as(DeviceKey::from_bytes([0xEE; 32]));
    let why = world.wait_for(app, 20 * SECOND, |event| match event {
        Event::Closed { session: told, why, .. } if *told == session => Some(*why),
        Event::Recovered { .. } | Event::Connected { .. } => panic!("it is not the device: {event:?}"),
        _ => None,
    });
    assert_eq!(why, CloseReason::WrongDevice);
    let events = &world.member(net).events;
    assert!(events.iter().all(|(_, event)| !matches!(event, Event::Request { .. })), "{events:?}");
    assert_eq!(world.net(app).sessions(), 0);
}

#[test]
fn requests_of_an_unproven_peer_do_not_run() {
    let (mut world, net, _, mut hand) = in_the_middle();
    hand.hear(&mut world);
    // A confirmable POST, and one that is not.
    for first in [0x40, 0x50] {
        let packet = hand.seal(&[first, 0x02, 0x12, 0x34]);
        hand.send(&mut world, &packet);
    }
    world.run(BEAT);
    let events = &world.member(net).events;
    assert!(events.iter().all(|(_, event)| !matches!(event, Event::Request { .. })), "{events:?}");
}

#[test]
fn closing_before_the_proof_is_no_authentication_failure() {
    let (mut world, net, session, _) = in_the_middle();
    world.run(BEAT);
    world.command(net, |net, now| net.close(now, session));
    assert_eq!(world.wait_for(net, SECOND, ended), ConnectError::Closed);
}

#[test]
fn only_the_first_packet_may_ask_and_the_answer_is_given_again() {
    let mut world = World::new(1);
    let net = world.add(World::config(1));
    let mut late = Hand::up(&mut world, 2, net, 1);
    assert!(late.talk(&mut world, &[Frame::ProveAsk { req: Req(1) }], proof).is_empty());
    assert_eq!(dropped(&mut world, net, Drop::BadHandshake), 1);

    let mut hand = Hand::new(&mut world, 3, net, 1);
    let fields = hand.fields(0x33);
    hand.half_open(&mut world, &fields, 3);
    let first = hand.talk(&mut world, &[Frame::ProveAsk { req: Req(1) }], proof);
    assert_eq!(first.len(), 1);
    let established = hand.established.as_ref().unwrap();
    assert_eq!(first[0].verify(&established.ephemeral, established.hash(), Role::Responder), Ok(()));
    assert_eq!(first[0].public, public(1));
    // The packet with the proof got lost: it is asked for again, and costs no second key exchange.
    assert_eq!(hand.talk(&mut world, &[Frame::ProveAsk { req: Req(1) }], proof), first);
    // However often it is asked in one packet, it is said once.
    let many = [Frame::ProveAsk { req: Req(1) }; 30];
    assert_eq!(hand.talk(&mut world, &many, proof).len(), 1);
}

/// One token of the key-exchange budget goes for RESP; the proof waits for the next.
#[test]
fn proofs_are_within_the_budget_of_key_exchanges() {
    let mut world = World::new(1);
    let mut config = World::config(1);
    config.limits.dh_rate = Rate::new(1, 1);
    let net = world.add(config);
    let mut hand = Hand::new(&mut world, 2, net, 1);
    let fields = hand.fields(0x22);
    hand.half_open(&mut world, &fields, 2);
    assert!(hand.talk(&mut world, &[Frame::ProveAsk { req: Req(1) }], proof).is_empty());
    assert_eq!(dropped(&mut world, net, Drop::OverBudget), 1);
    world.run(2 * SECOND);
    assert_eq!(hand.talk(&mut world, &[Frame::ProveAsk { req: Req(1) }], proof).len(), 1);
}
