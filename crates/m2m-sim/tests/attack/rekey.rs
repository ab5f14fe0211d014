//! Peers with keys that misuse REKEY and NEW_TOKEN.
use m2m_proto::{
    config::{Config, Rate},
    error::CloseReason,
    event::{Event, RequestId, SessionId},
    session::keys::{DhSecret, Role, Suite},
    stats::Drop,
    wire::frame::{Frame, KeyBytes, Req},
};
use m2m_sim::{NetIndex, World};

use crate::rig::*;

/// A net, number 2, with a session that a peer driven by hand, number 1, opened; and its handle there.
fn target(adapt: impl Fn(&mut Config)) -> (World, NetIndex, Hand, SessionId) {
    let mut world = World::new(1);
    let mut config = World::config(2);
    adapt(&mut config);
    let net = world.add(config);
    let hand = Hand::up(&mut world, 1, net, 2);
    let session = world.wait_for(net, SECOND, |event| match event {
        Event::Accepted { session, .. } => Some(*session),
        _ => None,
    });
    (world, net, hand, session)
}

fn rekey(req: u16, generation: u32, secret: &DhSecret) -> Frame<'_> {
    Frame::Rekey { req: Req(req), generation, ephemeral: secret.public(), key: KeyBytes::NONE }
}

/// The REKEYEDs among what came back: req, generation, key.
fn rekeyed(frame: &Frame<'_>) -> Option<(u16, u32, [u8; 32])> {
    match frame {
        Frame::Rekeyed { req, generation, ephemeral } => Some((req.0, *generation, **ephemeral)),
        _ => None,
    }
}

fn asked(frame: &Frame<'_>) -> Option<(u16, u32, [u8; 32], Vec<u8>)> {
    match frame {
        Frame::Rekey { req, generation, ephemeral, key } => {
            Some((req.0, *generation, **ephemeral, key.expose().to_vec()))
        }
        _ => None,
    }
}

fn secret(n: u8) -> DhSecret {
    DhSecret::from_bytes([n; 32])
}

fn is_alive(world: &mut World, hand: &mut Hand) -> bool {
    let ping = Frame::Ping { req: Req(999), next_s: 100 };
    hand.talk(world, &[ping], |frame| matches!(frame, Frame::Pong { .. }).then_some(())).len() == 1
}

#[test]
fn the_same_rekey_has_the_same_answer_and_another_replaces_it() {
    let (mut world, _, mut hand, _) = target(|_| {});
    let (first, second) = (secret(1), secret(2));
    let once = hand.talk(&mut world, &[rekey(1, 1, &first)], rekeyed);
    let again = hand.talk(&mut world, &[rekey(1, 1, &first)], rekeyed);
    assert_eq!((once.len(), &once), (1, &again));
    let later = hand.talk(&mut world, &[rekey(7, 1, &first)], rekeyed);
    assert_eq!(later, [(7, 1, once[0].2)], "by another number");
    let other = hand.talk(&mut world, &[rekey(8, 1, &second)], rekeyed);
    assert_ne!(other[0].2, once[0].2);

    // The keys of the second are the ones that count.
    let shared = second.agree(&other[0].2).unwrap();
    hand.secure.as_mut().unwrap().switch(Role::Initiator, &shared, None);
    assert!(is_alive(&mut world, &mut hand));
    let late = hand.talk(&mut world, &[rekey(9, 1, &first), rekey(10, 3, &first)], rekeyed);
    assert_eq!(late, [], "neither a generation that is up nor one after the next");
}

#[test]
fn keys_without_a_secret_are_refused() {
    let (mut world, net, mut hand, session) = target(|_| {});
    let weak = Frame::Rekey { req: Req(1), generation: 1, ephemeral: &[0; 32], key: KeyBytes::NONE };
    assert_eq!(hand.talk(&mut world, &[weak], rekeyed), []);
    assert_eq!(dropped(&mut world, net, Drop::BadFrame), 1);

    world.command(net, |net, now| net.rekey(now, session, RequestId(5), None).unwrap());
    let (req, generation, ..) = pick(&hand.hear(&mut world), asked).remove(0);
    let weak = Frame::Rekeyed { req: Req(req), generation, ephemeral: &[0; 32] };
    hand.talk(&mut world, &[weak], |_| None::<()>);
    assert_eq!(dropped(&mut world, net, Drop::BadFrame), 2);
    assert!(is_alive(&mut world, &mut hand));
    // It still waits for an honest answer, and of a wrong one it takes nothing.
    let ours = secret(3);
    for (req, generation) in [(req ^ 0x55, generation), (req, generation + 1)] {
        hand.say(&mut world, &[Frame::Rekeyed { req: Req(req), generation, ephemeral: ours.public() }]);
        hand.hear(&mut world);
        assert!(is_alive(&mut world, &mut hand));
    }
}

#[test]
fn the_secret_of_a_user_goes_into_the_keys() {
    let (mut world, net, mut hand, session) = target(|_| {});
    let by_hand = [0x5E; 24];
    world.command(net, |net, now| net.rekey(now, session, RequestId(5), Some(&by_hand)).unwrap());
    let (req, generation, theirs, key) = pick(&hand.hear(&mut world), asked).remove(0);
    assert_eq!((generation, &key[..]), (1, &by_hand[..]));
    let ours = secret(4);
    hand.say(&mut world, &[Frame::Rekeyed { req: Req(req), generation, ephemeral: ours.public() }]);
    let shared = ours.agree(&theirs).unwrap();
    hand.secure.as_mut().unwrap().prepare(Role::Initiator, &shared, Some(&by_hand));
    let pings = pick(&hand.hear(&mut world), |frame| matches!(frame, Frame::Ping { .. }).then_some(()));
    assert_eq!(pings.len(), 1, "the first packet under the new keys comes at once");
    assert!(is_alive(&mut world, &mut hand));
    assert_eq!(hand.secure.as_ref().unwrap().generation(), 1);
}

/// A REKEY costs a Diffie-Hellman: at most one a packet, and all of them no more than there is budget for.
#[test]
fn a_flood_of_rekeys_is_bounded() {
    let (mut world, net, mut hand, _) = target(|config| config.limits.dh_rate = Rate::new(1, 20));
    let secrets: Vec<DhSecret> = (0..100).map(secret).collect();
    let bundle: Vec<_> = secrets.iter().take(20).map(|secret| rekey(1, 1, secret)).collect();
    assert_eq!(hand.talk(&mut world, &bundle, rekeyed).len(), 1, "one a packet");
    let mut answers = 0;
    for secret in &secrets {
        answers += hand.talk(&mut world, &[rekey(2, 1, secret)], rekeyed).len();
    }
    let refused = dropped(&mut world, net, Drop::OverBudget);
    // Each exchange takes 80 ms, so that a few came back.
    assert!((15..=30).contains(&answers) && refused >= 70, "{answers} {refused}");
    assert!(is_alive(&mut world, &mut hand));
}

/// Whoever goes on asking for keys uses up what is there for his own session, and leaves the others theirs.
#[test]
fn a_flood_of_rekeys_leaves_the_others_theirs() {
    let (mut world, net, mut hand, _) = target(|config| {
        config.limits.dh_rate = Rate::new(1, 60);
        config.limits.rekey_rate = Rate::new(1, 10);
    });
    let answered = |world: &mut World, hand: &mut Hand, asks: u16| -> usize {
        // Each with other keys: that is what costs something.
        (0..asks).map(|n| hand.talk(world, &[rekey(n, 1, &secret(n as u8))], rekeyed).len()).sum()
    };
    let first = answered(&mut world, &mut hand, 100);
    assert!((10..=20).contains(&first), "10, and one for each second: {first}");
    assert!(dropped(&mut world, net, Drop::OverBudget) >= 80);
    let mut other = Hand::up(&mut world, 3, net, 2);
    assert_eq!(answered(&mut world, &mut other, 5), 5);
    // It has its own again once it has been quiet for a while.
    world.run(15 * SECOND);
    assert_eq!(answered(&mut world, &mut hand, 10), 10);
    assert!(is_alive(&mut world, &mut hand));
}

/// One who asks, is answered and never uses the keys holds up our own changes, and nothing else.
#[test]
fn who_never_changes_is_served_with_the_old_keys() {
    let (mut world, net, mut hand, session) = target(|config| config.limits.rekey_packets = 40);
    hand.talk(&mut world, &[rekey(1, 1, &secret(1))], rekeyed);
    for _ in 0..100 {
        assert!(is_alive(&mut world, &mut hand));
    }
    world.command(net, |net, now| net.rekey(now, session, RequestId(5), None).unwrap());
    assert_eq!(pick(&hand.hear(&mut world), asked), []);
}

/// With a tag of eight bytes few forgeries are allowed before the keys change, and not many before the session ends.
#[test]
fn forgeries_change_the_keys_of_short_tags() {
    for (forged, ends) in [(127, false), (128, false), (8_192, true)] {
        let mut world = World::new(1);
        let mut config = World::config(2);
        config.suites = vec![Suite::Aes128Ccm8];
        let net = world.add(config);
        let mut hand = Hand::new(&mut world, 1, net, 2);
        let mut fields = hand.fields(0x1001);
        fields.suites = m2m_proto::session::keys::SuiteSet::of(&[Suite::Aes128Ccm8]);
        hand.half_open(&mut world, &fields, 1);
        hand.say(&mut world, &[Frame::Confirm { mem: 0, resume: None }]);
        hand.hear(&mut world);
        let honest = hand.packet(&[Frame::Pad]);
        for n in 0..forged {
            let mut packet = honest.clone();
            let last = packet.len() - 1 - n as usize % 8;
            packet[last] ^= 1 + (n % 200) as u8;
            hand.send(&mut world, &packet);
        }
        let plains = hand.hear(&mut world);
        assert!(dropped(&mut world, net, Drop::BadSeal) >= forged.min(8_192));
        assert_eq!(pick(&plains, asked).len(), usize::from(forged > 127));
        let closed = world.member(net).events.iter().find_map(|(_, event)| match event {
            Event::Closed { why, .. } => Some(*why),
            _ => None,
        });
        assert_eq!(closed, ends.then_some(CloseReason::KeyLimit));
    }
}

/// What a late copy of an older NEW_TOKEN names is not taken again.
#[test]
fn the_newest_token_stays() {
    let (mut world, _, mut hand, _) = target(|_| {});
    let new_token = |req, token| Frame::NewToken { req: Req(req), token };
    let done = |frame: &Frame<'_>| match frame {
        Frame::Done { req, status } => Some((req.0, *status)),
        _ => None,
    };
    let label = |world: &mut World, hand: &mut Hand| {
        let packet = hand.packet(&[Frame::Ping { req: Req(50), next_s: 9 }]);
        let answers = hand.ask(world, &packet);
        u32::from_be_bytes(answers[0][1..5].try_into().unwrap())
    };
    let late = hand.packet(&[new_token(1, 0x1111)]);
    assert_eq!(hand.talk(&mut world, &[new_token(1, 0x1111)], done), [(1, 0)]);
    assert_eq!(label(&mut world, &mut hand), 0x1111);
    assert_eq!(hand.talk(&mut world, &[new_token(2, 0x2222)], done), [(2, 0)]);
    let answers = hand.ask(&mut world, &late);
    assert_eq!(answers.len(), 1, "answered all the same");
    assert_eq!(label(&mut world, &mut hand), 0x2222);
    assert_eq!(hand.talk(&mut world, &[new_token(3, 0)], done), [(3, 7)], "zero is no token");
    assert_eq!(label(&mut world, &mut hand), 0x2222);
    let flood: Vec<_> = (0..64).map(|n| new_token(10 + n, 1 + u32::from(n))).collect();
    assert!(hand.talk(&mut world, &flood, done).len() <= 64);
    assert!(is_alive(&mut world, &mut hand));
}

/// DONE says that a token was taken, or was not.
#[test]
fn a_refused_token_is_told_and_forgotten() {
    let (mut world, net, mut hand, session) = target(|_| {});
    world.command(net, |net, now| net.refresh_token(now, session, RequestId(5)).unwrap());
    let named = pick(&hand.hear(&mut world), |frame| match frame {
        Frame::NewToken { req, token } => Some((*req, *token)),
        _ => None,
    });
    let [(req, token)] = named[..] else { panic!("one NEW_TOKEN, not {named:?}") };
    hand.say(&mut world, &[Frame::Done { req: Req(req.0 ^ 1), status: 0 }, Frame::Done { req, status: 3 }]);
    hand.hear(&mut world);
    let result = world.wait_for(net, SECOND, |event| match event {
        Event::ControlDone { result, .. } => Some(*result),
        _ => None,
    });
    assert_eq!(result, Err(m2m_proto::error::ControlError::Refused(3)));
    let mut packet = hand.packet(&[Frame::Pad]);
    packet[1..5].copy_from_slice(&token.to_be_bytes());
    hand.send(&mut world, &packet);
    world.run(BEAT);
    assert_eq!(dropped(&mut world, net, Drop::UnknownToken), 1);
    assert!(is_alive(&mut world, &mut hand));
}
