//! Handshakes that are forged, repeated, misdirected, or too many.
use std::net::SocketAddr;

use m2m_proto::{
    config::{Config, Rate},
    error::ConnectError,
    event::Event,
    id::Id,
    net::Route,
    session::{
        Secure,
        handshake::Initiator,
        keys::{DhSecret, PeerKey, Suite, SuiteSet},
    },
    stats::Drop,
    time::Duration,
    wire::{
        frame::Frame,
        packet::{Cookie, Packet, Token},
    },
};
use m2m_sim::{NetIndex, World};

use crate::rig::*;

/// One net, number 1, and a peer driven by hand, number 2.
fn target(change: impl FnOnce(&mut Config)) -> (World, NetIndex, Hand) {
    let mut world = World::new(1);
    let mut config = World::config(1);
    change(&mut config);
    let net = world.add(config);
    let hand = Hand::new(&mut world, 2, net, 1);
    (world, net, hand)
}

/// Nothing at all comes back for these bytes, and they count under that reason, once.
#[track_caller]
fn silent(world: &mut World, net: NetIndex, hand: &mut Hand, bytes: &[u8], why: Drop) {
    let (before, sessions) = (dropped(world, net, why), world.net(net).sessions());
    assert_eq!(hand.ask(world, bytes), Vec::<Vec<u8>>::new(), "{why:?}");
    assert_eq!(dropped(world, net, why), before + 1, "{why:?}; all: {:?}", drops(world, net));
    assert_eq!(world.net(net).sessions(), sessions);
}

fn is_cookie(answers: &[Vec<u8>]) -> bool {
    matches!(answers, [bytes] if bytes.len() == 72 && bytes[0] == 0x93)
}

fn is_resp(answers: &[Vec<u8>]) -> bool {
    matches!(answers, [bytes] if bytes.len() == 104 && bytes[0] == 0x92)
}

/// The same INIT with the cookie that came for it.
fn with_cookie(initiator: &Initiator, answers: &[Vec<u8>]) -> Vec<u8> {
    assert!(is_cookie(answers), "a COOKIE, not {answers:?}");
    let Ok(Packet::Cookie(reply)) = Packet::decode(&answers[0]) else { panic!("a COOKIE") };
    let cookie = initiator.read_cookie(&reply).expect("it is for this INIT");
    initiator.init_with_cookie(&cookie).to_vec()
}

#[test]
fn an_init_for_another_id_is_not_answered() {
    let (mut world, net, mut hand) = target(|_| ());
    let mut fields = hand.fields(7);
    fields.dst = World::id(9);
    let init = *hand.start(&fields, 1).init();
    silent(&mut world, net, &mut hand, &init, Drop::NotMine);
}

#[test]
fn an_init_from_the_nets_own_id_is_refused() {
    let (mut world, net, mut hand) = target(|_| ());
    for src in [World::id(1), Id::ANY] {
        let mut fields = hand.fields(7);
        fields.src = src;
        let init = *hand.start(&fields, 1).init();
        silent(&mut world, net, &mut hand, &init, Drop::BadHandshake);
    }
}

#[test]
fn an_init_without_a_suite_in_common_is_refused() {
    let (mut world, net, mut hand) = target(|_| ());
    for suites in [0, 0b1111_0000, 1 << (Suite::Aes128Ccm8.number() - 1)] {
        let mut fields = hand.fields(7);
        fields.suites = SuiteSet(suites);
        let init = *hand.start(&fields, 1).init();
        silent(&mut world, net, &mut hand, &init, Drop::BadHandshake);
    }
}

#[test]
fn a_net_that_takes_no_sessions_is_silent() {
    let (mut world, net, mut hand) = target(|config| config.accept = false);
    let init = *hand.start(&hand.fields(7), 1).init();
    silent(&mut world, net, &mut hand, &init, Drop::NotMine);
}

#[test]
fn every_flipped_bit_of_an_init_is_silence() {
    let (mut world, net, mut hand) = target(|config| config.limits.init_rate = Rate::new(10_000, 10_000));
    let init = *hand.start(&hand.fields(7), 1).init();
    for bit in 0..init.len() * 8 {
        let mut forged = init;
        forged[bit / 8] ^= 1 << (bit % 8);
        hand.send(&mut world, &forged);
    }
    assert_eq!(hand.inbox(&mut world), Vec::<Vec<u8>>::new());
    assert_eq!((world.net(net).sessions(), world.net(net).stats().handshakes), (0, 0));
    assert!(is_resp(&hand.ask(&mut world, &init)), "the true one is answered");
}

#[test]
fn what_is_not_authentic_gets_no_byte_back() {
    let (mut world, net, mut hand) = target(|_| ());
    silent(&mut world, net, &mut hand, &[], Drop::Malformed);
    silent(&mut world, net, &mut hand, &[0x91; 40], Drop::Malformed);
    silent(&mut world, net, &mut hand, &[0x51; 96], Drop::Version);
    silent(&mut world, net, &mut hand, &[0xA1; 104], Drop::Version);
    silent(&mut world, net, &mut hand, &[0x45; 64], Drop::Version);
    silent(&mut world, net, &mut hand, &[0x94; 104], Drop::Kind);
    silent(&mut world, net, &mut hand, &[0x9F; 104], Drop::Kind);
    let fields = hand.fields(7);
    let wrong = World::key(99).pair(fields.src, fields.dst);
    let init = *Initiator::start(&fields, &wrong, DhSecret::from_bytes([1; 32])).init();
    silent(&mut world, net, &mut hand, &init, Drop::BadHandshake);
    let other = hand.start(&fields, 1);
    let (resp, _) = respond(other.init(), 1, &resp_fields(Suite::Aes128Gcm));
    silent(&mut world, net, &mut hand, &resp, Drop::UnknownToken);
}

#[test]
fn random_bytes_get_no_byte_back_but_for_a_hint() {
    use rand_chacha::rand_core::Rng;
    let (mut world, net, mut hand) = target(|_| ());
    for n in 0..3_000usize {
        let mut bytes = vec![0; n % 130];
        world.rng.fill_bytes(&mut bytes);
        if let Some(first) = bytes.first_mut().filter(|_| n % 3 == 0) {
            *first = [0x91, 0x92, 0x93, 0x41, 0x43, 0x61, 0x95, 0x97, 0x99][n % 9];
        }
        hand.send(&mut world, &bytes);
    }
    // Whatever looks like a short packet may be one of a session that this net forgot: a hint, seldom, and smaller.
    let answers = hand.inbox(&mut world);
    assert!(answers.iter().all(|bytes| is_hint(bytes)), "{answers:?}");
    assert!(answers.len() <= 2, "one in 200 ms: {answers:?}");
    let dropped: u64 = drops(&mut world, net).iter().map(|(_, count)| count).sum();
    assert_eq!(dropped, 3_000, "each counts once");
    assert_eq!(world.net(net).sessions(), 0);
}

#[test]
fn the_same_init_gets_the_same_resp_and_no_second_key_exchange() {
    let (mut world, net, mut hand) = target(|_| ());
    let init = *hand.start(&hand.fields(7), 1).init();
    let first = hand.ask(&mut world, &init);
    assert!(is_resp(&first));
    for _ in 0..5 {
        world.run(SECOND / 2);
        assert_eq!(hand.ask(&mut world, &init), first);
    }
    assert_eq!((world.net(net).stats().handshakes, world.net(net).sessions()), (1, 1));
}

/// An eavesdropper has INITs for nothing: copies must neither cost much, nor drive the initiator's own place out.
#[test]
fn copies_of_an_init_are_answered_seldom_and_in_few_places() {
    let (mut world, net, mut hand) = target(|_| ());
    let initiator = hand.start(&hand.fields(7), 1);
    let first = hand.ask(&mut world, initiator.init());
    let home = hand.address;
    let mut answers = 0;
    for n in 0..400u32 {
        hand.address = SocketAddr::from((0x0A00_0001u32.wrapping_add((n % 40) << 8).to_be_bytes(), 4000));
        hand.send(&mut world, initiator.init());
        world.run(SECOND / 400);
        let tap = world.tap.as_ref().unwrap();
        answers =
            tap.iter().filter(|(_, to, bytes)| *to != home && bytes.len() == 104 && bytes[0] == 0x92).count();
    }
    assert!((3..=9).contains(&answers), "three other places, at most each half a second: {answers}");
    assert!(dropped(&mut world, net, Drop::OverBudget) >= 390, "{:?}", drops(&mut world, net));
    hand.address = home;
    assert_eq!(hand.ask(&mut world, initiator.init()), first, "the initiator is answered all the same");
}

/// One handshake's INITs, as early as they may be: no repetition of an honest initiator goes without its answer.
#[test]
fn each_init_of_a_schedule_is_answered() {
    let (mut world, net, mut hand) = target(|_| ());
    let initiator = hand.start(&hand.fields(7), 1);
    let started = world.now;
    // The second as late as it may be, the third as early.
    for due_ms in [0, 1_100, 2_000, 4_000] {
        world.run((started + Duration::from_millis(due_ms)).since(world.now));
        assert!(is_resp(&hand.ask(&mut world, initiator.init())), "the INIT at {due_ms} ms");
    }
    assert_eq!(world.net(net).stats().handshakes, 1);
}

#[test]
fn a_half_open_handshake_is_forgotten_after_5_seconds_without_a_word() {
    let (mut world, net, mut hand) = target(|_| ());
    let init = *hand.start(&hand.fields(7), 1).init();
    let first = hand.ask(&mut world, &init);
    world.run(Duration::from_millis(4_800));
    assert_eq!(world.net(net).sessions(), 1);
    world.run(Duration::from_millis(300));
    assert_eq!(world.net(net).sessions(), 0);
    assert!(hand.inbox(&mut world).is_empty(), "nothing leaves the responder but RESP");
    assert!(world.member(net).events.is_empty(), "and nobody is told");
    assert_ne!(hand.ask(&mut world, &init), first, "it is a new handshake then");
}

#[test]
fn full_slots_of_an_id_ask_for_a_cookie_and_the_cookie_ends_in_a_session() {
    let (mut world, net, mut hand) = target(|config| config.limits.half_open_per_peer = 3);
    for stoken in 1..=3 {
        let init = *hand.start(&hand.fields(stoken), 1).init();
        assert!(is_resp(&hand.ask(&mut world, &init)));
    }
    let initiator = hand.start(&hand.fields(4), 9);
    let answers = hand.ask(&mut world, initiator.init());
    assert_eq!((world.net(net).stats().cookies, world.net(net).sessions()), (1, 3), "{answers:?}");
    let answers = hand.ask(&mut world, &with_cookie(&initiator, &answers));
    assert!(is_resp(&answers), "{answers:?}");
    assert_eq!(world.net(net).sessions(), 3, "the oldest of this id went");
    let Ok(Packet::Resp(resp)) = Packet::decode(&answers[0]) else { panic!("a RESP") };
    hand.secure = Some(Secure::new(&initiator.read_resp(&resp).unwrap()));
    hand.say(&mut world, &[Frame::Confirm { mem: 0, resume: None }]);
    world.wait_for(net, SECOND, |event| matches!(event, Event::Accepted { .. }).then_some(()));
}

#[test]
fn two_nets_come_together_by_a_cookie() {
    let mut world = World::new(3);
    let mut config = World::config(1);
    config.limits.dh_rate = Rate::new(0, 0);
    let (host, guest) = (world.add(config), world.add(World::config(2)));
    connected(&mut world, guest, host, 1);
    assert_eq!(world.net(host).stats().cookies, 1);
}

#[test]
fn another_ephemeral_on_a_token_that_is_taken_is_asked_for_a_cookie() {
    let (mut world, net, mut hand) = target(|_| ());
    let first = hand.start(&hand.fields(7), 1);
    let resp = hand.ask(&mut world, first.init());
    let second = hand.start(&hand.fields(7), 2);
    let answers = hand.ask(&mut world, second.init());
    assert!(is_cookie(&answers), "{answers:?}");
    world.run(SECOND / 2);
    assert_eq!(hand.ask(&mut world, first.init()), resp, "the first keeps its slot meanwhile");
    let answers = hand.ask(&mut world, &with_cookie(&second, &answers));
    assert!(is_resp(&answers));
    assert_eq!(world.net(net).sessions(), 1);
}

#[test]
fn an_exhausted_curve_budget_asks_for_a_cookie() {
    let (mut world, net, mut hand) = target(|config| config.limits.dh_rate = Rate::new(1, 1));
    assert!(is_resp(&hand.ask(&mut world, &hand.start(&hand.fields(1), 1).init().clone())));
    let second = hand.start(&hand.fields(2), 2);
    let answers = hand.ask(&mut world, second.init());
    assert!(is_cookie(&answers), "{answers:?}");
    assert!(is_resp(&hand.ask(&mut world, &with_cookie(&second, &answers))));
    assert_eq!(world.net(net).stats().handshakes, 2);
}

#[test]
fn a_cookie_counts_only_for_its_init_from_its_address() {
    let (mut world, net, mut hand) = target(|config| config.limits.dh_rate = Rate::new(0, 0));
    let initiator = hand.start(&hand.fields(2), 2);
    let answers = hand.ask(&mut world, initiator.init());
    let good = with_cookie(&initiator, &answers);
    let mut forged = good.clone();
    forged[110] ^= 1;
    assert!(is_cookie(&hand.ask(&mut world, &forged)), "a wrong cookie is none");
    let elsewhere = hand.address;
    hand.address.set_port(4001);
    assert!(is_cookie(&hand.ask(&mut world, &good)), "nor is one of another address");
    hand.address = elsewhere;
    let other = hand.start(&hand.fields(3), 3);
    let Ok(Packet::Cookie(reply)) = Packet::decode(&answers[0]) else { panic!("a COOKIE") };
    let swapped = other.init_with_cookie(&Cookie(reply.cookie.0));
    assert!(is_cookie(&hand.ask(&mut world, &swapped)), "nor is one of another INIT");
    assert_eq!(world.net(net).stats().handshakes, 0);
    assert!(is_resp(&hand.ask(&mut world, &good)));
}

#[test]
fn a_cookie_outlives_one_change_of_secrets_and_not_two() {
    for (wait, holds) in [(110, true), (130, true), (260, false)] {
        let (mut world, _, mut hand) = target(|config| config.limits.dh_rate = Rate::new(0, 0));
        let initiator = hand.start(&hand.fields(2), 2);
        let answers = hand.ask(&mut world, initiator.init());
        let init = with_cookie(&initiator, &answers);
        // Others' INITs in between make no difference.
        for stoken in 0..wait / 10 {
            world.run(10 * SECOND);
            let other = *hand.start(&hand.fields(50 + stoken), 5).init();
            assert!(is_cookie(&hand.ask(&mut world, &other)));
        }
        let answers = hand.ask(&mut world, &init);
        assert_eq!(is_resp(&answers), holds, "after {wait} s: {answers:?}");
    }
}

#[test]
fn a_forged_resp_ends_nothing_and_the_true_one_still_works() {
    let mut world = World::new(5);
    let net = world.add(World::config(2));
    let mut hand = Hand::new(&mut world, 1, net, 2);
    let to = hand.address;
    let session =
        world.command(net, |net, now| net.connect(now, World::id(1), &key(1), Route::Direct(to)).unwrap());
    let init = hand.inbox(&mut world).remove(0);
    let (resp, established) = respond(&init, 1, &resp_fields(Suite::Aes128Gcm));
    for bit in 0..resp.len() * 8 {
        let mut forged = resp.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        hand.send(&mut world, &forged);
    }
    world.run(BEAT);
    assert!(!world.net(net).info(session).unwrap().up, "{:?}", drops(&mut world, net));
    hand.send(&mut world, &resp);
    world.run(BEAT);
    assert!(world.net(net).info(session).unwrap().up);
    hand.secure = Some(Secure::new(&established));
    let pinged = pick(&hand.hear(&mut world), |frame| matches!(frame, Frame::Ping { .. }).then_some(()));
    assert!(!pinged.is_empty(), "its first packet comes under the keys of the true RESP");
}

#[test]
fn a_resp_with_other_fields_than_the_init_is_refused() {
    let mut world = World::new(6);
    let net = world.add(World::config(2));
    let mut hand = Hand::new(&mut world, 1, net, 2);
    let to = hand.address;
    let session =
        world.command(net, |net, now| net.connect(now, World::id(1), &key(1), Route::Direct(to)).unwrap());
    let init = hand.inbox(&mut world).remove(0);
    let (resp, _) = respond(&init, 1, &resp_fields(Suite::Aes128Gcm));
    let swapped = [&resp[..4], &resp[20..36], &resp[4..20], &resp[36..]].concat();
    let from_another = [&resp[..20], &World::id(9).0, &resp[36..]].concat();
    let for_another = [&resp[..4], &World::id(9).0, &resp[20..]].concat();
    for forged in [swapped, from_another, for_another] {
        let before = dropped(&mut world, net, Drop::BadHandshake);
        hand.send(&mut world, &forged);
        world.run(BEAT);
        assert_eq!(dropped(&mut world, net, Drop::BadHandshake), before + 1);
        assert!(!world.net(net).info(session).unwrap().up);
    }
}

#[test]
fn a_replayed_resp_changes_nothing() {
    let mut world = World::new(7);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(1)));
    world.tap = Some(Vec::new());
    let (session, _) = connected(&mut world, a, b, 1);
    let (from, to, resp) = world.tap.as_ref().unwrap()[1].clone();
    assert_eq!(resp[0], 0x92);
    let before = world.tap.as_ref().unwrap().len();
    world.inject(from, to, &resp);
    world.run(BEAT);
    assert_eq!(dropped(&mut world, a, Drop::Replayed), 1);
    assert_eq!(world.tap.as_ref().unwrap().len(), before, "and is not answered");
    post(&mut world, a, session, 1, b"still works").unwrap();
    world.wait_for(b, SECOND, |event| matches!(event, Event::Request { .. }).then_some(()));
}

#[test]
fn a_replayed_init_disturbs_no_session() {
    let mut world = World::new(8);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(1)));
    world.tap = Some(Vec::new());
    let (session, there) = connected(&mut world, a, b, 1);
    let (from, to, init) = world.tap.as_ref().unwrap()[0].clone();
    for _ in 0..10 {
        world.inject(from, to, &init);
        world.run(SECOND);
        assert!(world.net(b).info(there).is_some_and(|info| info.up));
    }
    world.run(6 * SECOND);
    assert_eq!((world.net(a).sessions(), world.net(b).sessions()), (1, 1));
    post(&mut world, a, session, 1, b"still works").unwrap();
    world.wait_for(b, SECOND, |event| matches!(event, Event::Request { .. }).then_some(()));
}

#[test]
fn one_source_has_a_budget_of_forged_inits_and_others_have_their_own() {
    let (mut world, net, mut hand) = target(|config| config.limits.init_rate = Rate::new(1, 100));
    let fields = hand.fields(7);
    let wrong = World::key(99).pair(fields.src, fields.dst);
    let forged = *Initiator::start(&fields, &wrong, DhSecret::from_bytes([1; 32])).init();
    for _ in 0..150 {
        hand.send(&mut world, &forged);
    }
    world.run(BEAT);
    let (bad, over) =
        (dropped(&mut world, net, Drop::BadHandshake), dropped(&mut world, net, Drop::OverBudget));
    assert_eq!((bad, over), (100, 50), "a burst of 100");
    let honest = *hand.start(&fields, 2).init();
    assert!(hand.ask(&mut world, &honest).is_empty(), "the source waits");
    hand.address = "198.51.100.1:4000".parse().unwrap();
    assert!(is_resp(&hand.ask(&mut world, &honest)), "another source does not");
}

#[test]
fn authentic_inits_do_not_use_up_the_budget_of_their_source() {
    let (mut world, net, mut hand) = target(|config| config.limits.init_rate = Rate::new(1, 2));
    for stoken in 1..=50 {
        let init = *hand.start(&hand.fields(stoken), 1).init();
        hand.send(&mut world, &init);
    }
    assert_eq!(hand.inbox(&mut world).len(), 50);
    assert_eq!(dropped(&mut world, net, Drop::OverBudget), 0);
}

#[test]
fn a_full_table_refuses_and_keeps_what_it_has() {
    let (mut world, net, mut hand) = target(|config| config.limits.sessions = 2);
    let mut old = Hand::up(&mut world, 3, net, 1);
    Hand::up(&mut world, 4, net, 1);
    let init = *hand.start(&hand.fields(7), 1).init();
    silent(&mut world, net, &mut hand, &init, Drop::TableFull);
    let ponged = old.talk(&mut world, &[ping(1)], |frame| matches!(frame, Frame::Pong { .. }).then_some(()));
    assert_eq!(ponged.len(), 1);
}

fn ping(req: u16) -> Frame<'static> {
    Frame::Ping { req: m2m_proto::wire::frame::Req(req), next_s: 30 }
}

#[test]
fn an_init_to_whoever_is_there_binds_the_one_who_answers() {
    let (mut world, net, mut hand) = target(|_| ());
    let mut fields = hand.fields(7);
    fields.dst = Id::ANY;
    hand.half_open(&mut world, &fields, 5);
    assert_eq!(hand.established.as_ref().unwrap().peer, World::id(1));
    hand.say(&mut world, &[Frame::Confirm { mem: 0, resume: None }]);
    world.wait_for(net, SECOND, |event| matches!(event, Event::Accepted { .. }).then_some(()));

    // Another id in the RESP does not open.
    let initiator = hand.start(&hand.fields(8), 6);
    let mut fields = hand.fields(9);
    fields.dst = Id::ANY;
    let any = hand.start(&fields, 6);
    let mut resp = hand.ask(&mut world, any.init()).remove(0);
    resp[35] ^= 3;
    let Ok(Packet::Resp(read)) = Packet::decode(&resp) else { panic!("a RESP") };
    assert!(any.read_resp(&read).is_err());
    assert!(initiator.read_resp(&read).is_err());
}

#[test]
fn a_pair_key_opens_its_own_pair_and_no_other() {
    let mut world = World::new(9);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(1)));
    let c = world.add(World::config(3));
    let pair = PeerKey::Pair(World::key(1).pair(World::id(2), World::id(1)));
    let to = world.address(b);
    for (net, works) in [(a, true), (c, false)] {
        world.command(net, |net, now| net.connect(now, World::id(1), &pair, Route::Direct(to)).unwrap());
        let connected = world.wait_for(net, 15 * SECOND, |event| match event {
            Event::Connected { .. } => Some(true),
            Event::ConnectFailed { why, .. } => {
                assert_eq!(*why, ConnectError::Unreachable);
                Some(false)
            }
            _ => None,
        });
        assert_eq!(connected, works);
    }
}

#[test]
fn every_suite_carries_requests_at_its_price() {
    for (suite, overhead) in [(Suite::Aes128Gcm, 23), (Suite::Aes256Gcm, 23), (Suite::Aes128Ccm8, 15)] {
        let mut world = World::new(10);
        let nets = [2, 1].map(|n| {
            let mut config = World::config(n);
            config.suites = vec![suite];
            world.add(config)
        });
        let (session, _) = connected(&mut world, nets[0], nets[1], 1);
        world.tap = Some(Vec::new());
        post(&mut world, nets[0], session, 1, &[7; 32]).unwrap();
        let message = world.wait_for(nets[1], SECOND, |event| match event {
            Event::Request { message, .. } => Some(message.len()),
            _ => None,
        });
        let len = world.tap.as_ref().unwrap()[0].2.len();
        assert_eq!(len - message, overhead, "{suite:?}");
        assert!(len <= 64, "{suite:?}: 32 bytes travel in {len}");
    }
}

#[test]
fn the_responders_preference_decides() {
    let mut world = World::new(11);
    let mut config = World::config(1);
    config.suites = vec![Suite::Aes256Gcm, Suite::Aes128Gcm];
    let net = world.add(config);
    let mut hand = Hand::new(&mut world, 2, net, 1);
    let fields = hand.fields(7);
    hand.half_open(&mut world, &fields, 1);
    assert_eq!(hand.established.as_ref().unwrap().suite(), Suite::Aes256Gcm);
}

#[test]
fn a_peer_that_takes_next_to_nothing_is_refused_not_obeyed() {
    let (mut world, net, mut hand) = target(|_| ());
    for max_udp in [0, 24, 255] {
        let mut fields = hand.fields(7);
        fields.max_udp = max_udp;
        let init = *hand.start(&fields, 1).init();
        silent(&mut world, net, &mut hand, &init, Drop::BadHandshake);
    }
    let mut fields = hand.fields(8);
    fields.max_udp = 256;
    hand.half_open(&mut world, &fields, 2);
    hand.say(&mut world, &[ping(1)]);
    assert_eq!(hand.hear(&mut world).len(), 1);
}

#[test]
fn a_responder_that_takes_next_to_nothing_is_refused_not_obeyed() {
    let mut world = World::new(12);
    let net = world.add(World::config(2));
    let mut hand = Hand::new(&mut world, 1, net, 2);
    let to = hand.address;
    let session =
        world.command(net, |net, now| net.connect(now, World::id(1), &key(1), Route::Direct(to)).unwrap());
    let init = hand.inbox(&mut world).remove(0);
    let mut fields = resp_fields(Suite::Aes128Gcm);
    fields.max_udp = 10;
    hand.send(&mut world, &respond(&init, 1, &fields).0);
    world.run(BEAT);
    assert!(!world.net(net).info(session).unwrap().up);
    assert_eq!(dropped(&mut world, net, Drop::BadHandshake), 1);
}

#[test]
fn a_cookie_from_nobody_is_not_fed_to_an_initiator() {
    let mut world = World::new(13);
    let net = world.add(World::config(2));
    let mut hand = Hand::new(&mut world, 1, net, 2);
    let to = hand.address;
    world.command(net, |net, now| net.connect(now, World::id(1), &key(1), Route::Direct(to)).unwrap());
    let init = hand.inbox(&mut world).remove(0);
    let Ok(Packet::Init(read)) = Packet::decode(&init) else { panic!("an INIT") };
    let mut bytes = [0; 72];
    let stoken = Token::new(read.stoken.value()).unwrap();
    let reply = m2m_proto::wire::packet::CookieReply {
        dst: World::id(2),
        src: World::id(1),
        stoken,
        cookie: Cookie([9; 16]),
        mac: &[9; 16],
    };
    reply.encode(&mut bytes).unwrap();
    assert!(hand.ask(&mut world, &bytes).is_empty());
    assert_eq!(dropped(&mut world, net, Drop::BadHandshake), 1);
}
