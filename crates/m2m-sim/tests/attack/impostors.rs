//! Who steps in when a session is opened anew, and who confirms one from where it never was.
use m2m_proto::{
    coap::{code::Code, option_set::OptionSet},
    error::{CloseReason, RequestError},
    event::{Event, RequestId, SessionId},
    net::{ConnectOptions, Route},
    session::{
        Secure,
        keys::{Role, Suite},
    },
    wire::frame::{Frame, Memory, RegisterStatus, Req},
};
use m2m_sim::{NetIndex, World};

use crate::rig::{BEAT, Hand, SECOND, device, key, pick, post, register, resp_fields, respond};

fn hint_for(packet: &[u8]) -> Vec<u8> {
    let mut hint = vec![0x95];
    hint.extend_from_slice(&packet[1..5]);
    hint.extend_from_slice(&packet[packet.len() - 8..]);
    hint
}

/// Number 2 with a pinned and proved session to number 1, who is played by hand.
fn pinned() -> (World, NetIndex, SessionId, Hand) {
    let mut world = World::new(1);
    let net = world.add(World::config(2));
    let mut hand = Hand::new(&mut world, 1, net, 2);
    let options = ConnectOptions { pin: Some(*device(1).public()) };
    let address = hand.address;
    let session = world.command(net, |net, now| {
        net.connect_with(now, World::id(1), &key(1), Route::Direct(address), &options).unwrap()
    });
    answer_init(&mut world, &mut hand);
    hand.hear(&mut world);
    let established = hand.established.as_ref().unwrap();
    let proof = device(1).prove(&established.peer_ephemeral, established.hash(), Role::Responder).unwrap();
    hand.say(&mut world, &[Frame::Prove { public: &proof.public, mac: &proof.mac }]);
    world.run(BEAT);
    assert!(world.net(net).info(session).unwrap().up);
    (world, net, session, hand)
}

fn answer_init(world: &mut World, hand: &mut Hand) {
    let init = hand.inbox(world).into_iter().find(|b| b[0] == 0x91).expect("an INIT");
    let (resp, established) = respond(&init, 1, &resp_fields(Suite::Aes128Gcm));
    hand.send(world, &resp);
    hand.secure = Some(Secure::new(&established));
    hand.established = Some(established);
}

/// Who holds number 1's net key, and not its device key, steps in.
fn step_in(world: &mut World, hand: &mut Hand) {
    let packet = hand.inbox(world).into_iter().rev().find(|b| b[0] & 0x80 == 0).expect("a short packet");
    hand.send(world, &hint_for(&packet));
    answer_init(world, hand);
}

#[test]
fn an_answer_to_a_question_under_the_old_keys_counts_no_packet_of_the_new() {
    let mut world = World::new(1);
    let host = world.add_host(1);
    let mut hand = Hand::up(&mut world, 2, host, 1);
    let mut other = Hand::up(&mut world, 3, host, 1);
    for hand in [&mut hand, &mut other] {
        let proof = hand.proof();
        let prove = Frame::Prove { public: &proof.public, mac: &proof.mac };
        let said =
            hand.talk(
                &mut world,
                &[prove, register(1, m2m_sim::world::UNIX_START_MS)],
                |frame| match frame {
                    Frame::Registered { status, .. } => Some(*status),
                    _ => None,
                },
            );
        assert_eq!(said, [RegisterStatus::OK]);
    }
    world.run(3 * SECOND);
    other.say(&mut world, &[Frame::Lookup { req: Req(9), id: World::id(2) }]);
    let pings = pick(&hand.hear(&mut world), |frame| match frame {
        Frame::Ping { req, .. } => Some(*req),
        _ => None,
    });
    let key = hand.secure.as_ref().unwrap().resume_key();
    let fields = hand.fields(0x7777);
    hand.half_open(&mut world, &fields, 0x55);
    let tag = key.tag(hand.established.as_ref().unwrap().hash());
    hand.say(
        &mut world,
        &[
            Frame::Confirm { mem: 0, resume: Some(tag) },
            Frame::Pong { req: pings[0], draining: false, observed: None },
        ],
    );
    hand.hear(&mut world);
}

/// A net with a request under way in a session of its own, whose peer is played by hand and has proved nothing.
fn unproven() -> (World, NetIndex, Hand) {
    let mut world = World::new(1);
    let net = world.add(World::config(2));
    let mut hand = Hand::new(&mut world, 1, net, 2);
    let address = hand.address;
    let session = world
        .command(net, |net, now| net.connect(now, World::id(1), &key(1), Route::Direct(address)).unwrap());
    answer_init(&mut world, &mut hand);
    hand.hear(&mut world);
    post(&mut world, net, session, 7, b"pay").unwrap();
    (world, net, hand)
}

/// A peer that answers, and never says whether it remembers, holds up what waits for that. It is asked a few times, and
/// then told to be of no use.
#[test]
fn who_keeps_the_verdict_back_is_asked_a_few_times_and_left() {
    let (mut world, net, mut hand) = unproven();
    step_in(&mut world, &mut hand);
    let mut pings = 0;
    for _ in 0..100 {
        let asked = pick(&hand.hear(&mut world), |frame| match frame {
            Frame::Ping { req, .. } => Some(*req),
            _ => None,
        });
        pings += asked.len();
        for req in asked {
            hand.say(&mut world, &[Frame::Pong { req, draining: false, observed: None }]);
        }
    }
    assert!((10..=20).contains(&pings), "{pings}");
    let events = &world.member(net).events;
    let closed = events.iter().find_map(|(_, event)| match event {
        Event::Closed { why, .. } => Some(*why),
        _ => None,
    });
    assert_eq!(closed, Some(CloseReason::NoVerdict));
    let failed = events.iter().find_map(|(_, event)| match event {
        Event::RequestFailed { why, .. } => Some(*why),
        _ => None,
    });
    assert_eq!(failed, Some(RequestError::SessionLost(CloseReason::NoVerdict)));
}

/// Whoever answers each handshake and nothing after it is left too, before it can no longer be told which of the handshakes
/// it means.
#[test]
fn who_answers_handshakes_only_is_left_after_a_few() {
    let (mut world, net, mut hand) = unproven();
    let mut handshakes = 0;
    let closed = (0..600).find_map(|_| {
        world.run(SECOND);
        let init = hand.inbox(&mut world).into_iter().find(|bytes| bytes[0] == 0x91);
        if let Some(init) = init {
            let (resp, _) = respond(&init, 1, &resp_fields(Suite::Aes128Gcm));
            hand.send(&mut world, &resp);
            handshakes += 1;
        }
        world.member(net).events.iter().find_map(|(_, event)| match event {
            Event::Closed { why, .. } => Some(*why),
            _ => None,
        })
    });
    assert_eq!(closed, Some(CloseReason::NoVerdict));
    assert_eq!(handshakes, 8);
}

#[test]
fn no_key_and_no_secret_leaves_before_the_device_has_proved_itself_again() {
    let (mut world, net, session, mut hand) = pinned();
    world.command(net, |net, now| {
        net.set_remote_key(now, session, RequestId(1), &World::key(1), 0, &[0x4E; 32]).unwrap();
        net.rekey(now, session, RequestId(2), Some(&[0x5A; 32])).unwrap();
    });
    step_in(&mut world, &mut hand);
    let leaked = pick(&hand.hear(&mut world), |frame| match frame {
        Frame::NetKey { key, .. } => Some(("net key", key.expose().to_vec())),
        Frame::Rekey { key, .. } => Some(("secret", key.expose().to_vec())),
        _ => None,
    });
    assert!(leaked.is_empty());
}

#[test]
fn what_an_unproven_peer_says_it_remembers_counts_for_nothing() {
    let (mut world, net, session, mut hand) = pinned();
    post(&mut world, net, session, 7, b"pay").unwrap();
    step_in(&mut world, &mut hand);
    world.run(BEAT);
    hand.say(&mut world, &[Frame::Resumed { memory: Memory::NONE, mem: 0 }]);
    world.run(BEAT);
    let events = &world.member(net).events;
    assert!(!events.iter().any(|(_, e)| matches!(e, Event::Recovered { .. })), "before the proof");
    assert!(
        !events.iter().any(|(_, e)| matches!(e, Event::RequestFailed { why: RequestError::NotSent(_), .. }))
    );
}

#[test]
fn a_request_that_left_never_ends_as_not_sent() {
    let (mut world, net, session, mut hand) = pinned();
    let deadline = world.now + 3 * SECOND;
    world.command(net, |machine, now| {
        let options = OptionSet::default();
        let request = m2m_proto::net::Request {
            code: Code::POST,
            options: &options,
            payload: b"pay",
            confirmable: true,
            repeatable: false,
            deadline,
        };
        machine.request(now, session, RequestId(7), &request).unwrap();
    });
    step_in(&mut world, &mut hand);
    let why = world.wait_for(net, 10 * SECOND, |event| match event {
        Event::RequestFailed { why, .. } => Some(*why),
        _ => None,
    });
    assert!(!matches!(why, RequestError::NotSent(_)));
}

#[test]
fn a_session_that_was_replaced_is_forgotten_and_mem_says_so() {
    let mut world = World::new(1);
    let host = world.add_host(1);
    world.run(20 * SECOND);
    let enrol = |world: &mut World, epoch: u64| {
        let mut hand = Hand::up(world, 2, host, 1);
        let proof = hand.proof();
        let prove = Frame::Prove { public: &proof.public, mac: &proof.mac };
        hand.say(world, &[prove, register(1, m2m_sim::world::UNIX_START_MS + epoch)]);
        hand.hear(world);
        hand
    };
    let mut first = enrol(&mut world, 1);
    let packet = first.seal(&[0x40, 2, 0x12, 0x34]);
    first.send(&mut world, &packet);
    world.run(BEAT);
    let key = first.secure.as_ref().unwrap().resume_key();
    let _second = enrol(&mut world, 2);
    world.run(5 * SECOND);
    let fields = first.fields(0x7777);
    first.half_open(&mut world, &fields, 0x55);
    let tag = key.tag(first.established.as_ref().unwrap().hash());
    let said = first.talk(&mut world, &[Frame::Confirm { mem: 0, resume: Some(tag) }], |frame| match frame {
        Frame::Resumed { memory, mem } => Some((*memory, *mem)),
        _ => None,
    });
    assert!(matches!(said[..], [(Memory::NONE, mem)] if mem <= 5), "it ran 5 s ago: {said:?}");
}

#[test]
fn a_session_does_not_come_up_at_an_address_that_never_proved_itself() {
    let mut world = World::new(1);
    let net = world.add(World::config(1));
    let ping = Frame::Ping { req: Req(1), next_s: 25 };
    let victim = "203.0.113.7:4000".parse().unwrap();
    let mut hand = Hand::new(&mut world, 2, net, 1);
    let fields = hand.fields(0x1002);
    let initiator = hand.start(&fields, 2);
    let init = initiator.init().to_vec();
    hand.half_open(&mut world, &fields, 2);
    let mut spent = init.len();
    world.inject(victim, hand.to, &init);
    world.run(BEAT);
    let packet = hand.packet(&[Frame::Confirm { mem: 0, resume: None }, ping]);
    spent += packet.len();
    world.inject(victim, hand.to, &packet);
    world.run(BEAT);
    // Whoever lives there is asked once for each packet whether it is there, in no more bytes than that had.
    let got: usize =
        world.tap.iter().flatten().filter(|(_, to, _)| *to == victim).map(|(_, _, bytes)| bytes.len()).sum();
    assert!(got <= spent, "{got} bytes for {spent}");
    let accepted = world.member(net).events.iter().any(|(_, event)| matches!(event, Event::Accepted { .. }));
    assert!(!accepted, "nobody there has shown that it reads what goes there");

    // One that is where it says answers, and is believed.
    let asked =
        world.tap.iter().flatten().rev().find(|(_, to, bytes)| *to == victim && bytes[0] < 0x80).cloned();
    let (_, _, mut asked) = asked.expect("the place was challenged");
    let range = hand.secure.as_mut().unwrap().open(&mut asked).unwrap();
    let data = pick(&[asked[range].to_vec()], |frame| match frame {
        Frame::PathChallenge(data) => Some(*data),
        _ => None,
    });
    let packets = [
        hand.packet(&[Frame::PathResponse(data[0])]),
        hand.packet(&[Frame::Confirm { mem: 0, resume: None }, ping]),
    ];
    packets.iter().for_each(|packet| {
        world.inject(victim, hand.to, packet);
        world.run(BEAT);
    });
    let accepted = world.member(net).events.iter().any(|(_, event)| matches!(event, Event::Accepted { .. }));
    assert!(accepted, "this one reads what goes there");
}
