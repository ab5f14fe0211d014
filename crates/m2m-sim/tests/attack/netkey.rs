//! Net keys that are changed from afar: by whom, in which order, and what stays when the disk says no.
use m2m_proto::{
    error::{CommandError, ConnectError, ControlError, ErrorKind},
    event::{Event, RequestId, SessionId},
    net::Route,
    session::{
        handshake::Initiator,
        keys::{DhSecret, NetKey, PeerKey},
    },
    stats::Drop,
    time::Duration,
    wire::{
        bundle::{Element, elements},
        frame::{DoneStatus, Frame, KeyBytes, Req},
        packet::Packet,
    },
};
use m2m_sim::{NetIndex, World};

use crate::rig::*;

const NEW: [u8; 32] = [0x4E; 32];
const NEWER: [u8; 16] = [0x5F; 16];

/// Number 1 lets its key be changed; number 2 holds that key, and a session with it.
fn admin() -> (World, NetIndex, NetIndex, SessionId) {
    let mut world = World::new(1);
    let mut config = World::config(1);
    config.allow_key_change = true;
    let device = world.add(config);
    let admin = world.add(World::config(2));
    let (session, _) = connected(&mut world, admin, device, 1);
    (world, device, admin, session)
}

fn ask(world: &mut World, admin: NetIndex, session: SessionId, current: &NetKey, key_id: u16, new: &[u8]) {
    let asked =
        world.command(admin, |net, now| net.set_remote_key(now, session, RequestId(1), current, key_id, new));
    assert_eq!(asked, Ok(()));
}

fn outcome(world: &mut World, admin: NetIndex) -> Result<(), ControlError> {
    world.wait_for(admin, 20 * SECOND, |event| match event {
        Event::ControlDone { request: RequestId(1), result } => Some(*result),
        _ => None,
    })
}

fn refused(status: DoneStatus) -> Result<(), ControlError> {
    Err(ControlError::Refused(status.0))
}

/// True if a session to number 1 comes up under this key.
fn opens(world: &mut World, from: NetIndex, to: NetIndex, key: &NetKey) -> bool {
    let (address, key) = (world.address(to), PeerKey::Net(key.clone()));
    let opened =
        world.command(from, |net, now| net.connect(now, World::id(1), &key, Route::Direct(address)).unwrap());
    world.wait_for(from, 20 * SECOND, |event| match event {
        Event::Connected { session, .. } if *session == opened => Some(true),
        Event::ConnectFailed { why: ConnectError::Unreachable, .. } => Some(false),
        _ => None,
    })
}

fn net_key(bytes: &[u8]) -> NetKey {
    NetKey::new(bytes).unwrap()
}

#[test]
fn a_key_is_stored_then_taken_and_the_old_one_honoured_for_a_while() {
    let (mut world, device, admin, session) = admin();
    ask(&mut world, admin, session, &World::key(1), 1, &NEW);
    assert_eq!(outcome(&mut world, admin), Ok(()));
    let stored = &world.member(device).keys;
    assert_eq!(stored.len(), 1);
    assert_eq!((stored[0].key_id, &stored[0].bytes[..]), (1, &NEW[..]));
    assert!(!format!("{:?}", stored[0]).contains("78"), "bytes of keys are not shown: {:?}", stored[0]);

    assert!(opens(&mut world, admin, device, &net_key(&NEW)));
    assert!(opens(&mut world, admin, device, &World::key(1)), "the old key in its grace");
    post(&mut world, admin, session, 5, b"still here").unwrap();
    world.wait_for(device, SECOND, |event| matches!(event, Event::Request { .. }).then_some(()));

    world.run(Duration::from_secs(24 * 3600));
    assert!(opens(&mut world, admin, device, &net_key(&NEW)));
    assert!(!opens(&mut world, admin, device, &World::key(1)), "the old key after its grace");
    // The one who asked keeps its own.
    assert!(opens_to_admin(&mut world, device, admin));
}

fn opens_to_admin(world: &mut World, device: NetIndex, admin: NetIndex) -> bool {
    connected(world, device, admin, 2);
    true
}

#[test]
fn the_next_version_need_not_be_known() {
    let (mut world, device, admin, session) = admin();
    ask(&mut world, admin, session, &World::key(1), 0, &NEW);
    assert_eq!(outcome(&mut world, admin), Ok(()));
    ask(&mut world, admin, session, &net_key(&NEW), 0, &NEWER);
    assert_eq!(outcome(&mut world, admin), Ok(()));
    let versions: Vec<u16> = world.member(device).keys.iter().map(|key| key.key_id).collect();
    assert_eq!(versions, [1, 2]);
}

#[test]
fn versions_wrap_and_leave_out_zero() {
    let mut world = World::new(1);
    let mut config = World::config(1);
    (config.allow_key_change, config.key_id) = (true, u16::MAX);
    let device = world.add(config);
    let admin = world.add(World::config(2));
    let (session, _) = connected(&mut world, admin, device, 1);
    ask(&mut world, admin, session, &World::key(1), 1, &NEW);
    assert_eq!(outcome(&mut world, admin), Ok(()));
}

#[test]
fn it_is_off_unless_allowed() {
    let mut world = World::new(1);
    let (device, admin) = (world.add(World::config(1)), world.add(World::config(2)));
    let (session, _) = connected(&mut world, admin, device, 1);
    ask(&mut world, admin, session, &World::key(1), 1, &NEW);
    assert_eq!(outcome(&mut world, admin), refused(DoneStatus::NOT_ALLOWED));
    assert!(world.member(device).keys.is_empty());
}

#[test]
fn a_mac_of_another_key_is_refused_three_times_and_then_ignored() {
    let (mut world, device, admin, session) = admin();
    for _ in 0..3 {
        ask(&mut world, admin, session, &net_key(&NEWER), 1, &NEW);
        let outcome = outcome(&mut world, admin);
        assert_eq!(outcome, refused(DoneStatus::WRONG_MAC));
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::AuthenticationFailed);
    }
    // Not even the right one, in this session.
    ask(&mut world, admin, session, &World::key(1), 1, &NEW);
    assert_eq!(outcome(&mut world, admin), Err(ControlError::TimedOut));
    assert!(world.member(device).keys.is_empty());
    assert!(opens(&mut world, admin, device, &World::key(1)));
}

/// Who holds a pair key may talk to the net, and not change its key.
#[test]
fn the_mac_covers_the_id_the_version_and_the_key() {
    let (mut world, device, _, _) = admin();
    let mac = World::key(1).change_mac(World::id(1), 1, &NEW);
    let other_id = World::key(1).change_mac(World::id(2), 1, &NEW);
    for (number, key_id, mac, key) in
        [(3, 2, mac, &NEW[..]), (4, 1, mac, &NEWER), (5, 1, other_id, &NEW), (6, 1, mac, &NEW[..31])]
    {
        let mut hand = Hand::up(&mut world, number, device, 1);
        let key = KeyBytes::new(key).unwrap();
        let asked = [Frame::NetKey { req: Req(9), key_id, mac: &mac, key }];
        assert_eq!(hand.talk(&mut world, &asked, done), [(Req(9), DoneStatus::WRONG_MAC)]);
    }
    assert!(world.member(device).keys.is_empty());
}

fn done(frame: &Frame<'_>) -> Option<(Req, DoneStatus)> {
    match frame {
        Frame::Done { req, status } => Some((*req, DoneStatus(*status))),
        _ => None,
    }
}

#[test]
fn a_version_that_is_not_the_next_is_refused() {
    let (mut world, device, admin, session) = admin();
    for key_id in [2, 7, u16::MAX] {
        ask(&mut world, admin, session, &World::key(1), key_id, &NEW);
        assert_eq!(outcome(&mut world, admin), refused(DoneStatus::WRONG_KEY_ID));
    }
    assert!(world.member(device).keys.is_empty());
}

#[test]
fn a_key_of_a_wrong_length_is_never_sent_and_refused_if_it_comes() {
    let (mut world, device, admin, session) = admin();
    for len in [0, 15, 65] {
        let key = vec![0x11; len];
        let current = World::key(1);
        let asked = world
            .command(admin, |net, now| net.set_remote_key(now, session, RequestId(1), &current, 1, &key));
        assert_eq!(asked, Err(CommandError::BadKey));
        let mut hand = Hand::up(&mut world, 3 + len as u8, device, 1);
        let mac = current.change_mac(World::id(1), 1, &key);
        let key = KeyBytes::new(&key).unwrap();
        let asked = [Frame::NetKey { req: Req(9), key_id: 1, mac: &mac, key }];
        assert_eq!(hand.talk(&mut world, &asked, done), [(Req(9), DoneStatus::BAD_KEY)]);
    }
    assert!(world.member(device).keys.is_empty());
}

#[test]
fn a_disk_that_says_no_leaves_the_old_key() {
    let (mut world, device, admin, session) = admin();
    world.member(device).disk_full = true;
    ask(&mut world, admin, session, &World::key(1), 1, &NEW);
    assert_eq!(outcome(&mut world, admin), refused(DoneStatus::NOT_STORED));
    assert!(!opens(&mut world, admin, device, &net_key(&NEW)));
    assert!(opens(&mut world, admin, device, &World::key(1)));
    world.member(device).disk_full = false;
    ask(&mut world, admin, session, &World::key(1), 1, &NEW);
    assert_eq!(outcome(&mut world, admin), Ok(()));
}

/// While the disk works nothing is answered, nothing has changed, a second change is told busy, and a copy of the
/// first is no second one. The answer comes after the store's.
#[test]
fn nothing_is_answered_before_it_is_stored() {
    let (mut world, device, _, _) = admin();
    world.member(device).slow_keys = true;
    let mut hand = Hand::up(&mut world, 3, device, 1);
    let mac = World::key(1).change_mac(World::id(1), 1, &NEW);
    let key = KeyBytes::new(&NEW).unwrap();
    let asked = [Frame::NetKey { req: Req(9), key_id: 1, mac: &mac, key }];
    for _ in 0..3 {
        assert!(hand.talk(&mut world, &asked, done).is_empty());
    }
    let again = [Frame::NetKey { req: Req(10), key_id: 1, mac: &mac, key }];
    assert_eq!(hand.talk(&mut world, &again, done), [(Req(10), DoneStatus::BUSY)]);
    assert_eq!(world.member(device).keys.len(), 1);
    assert!(!answers_init(&mut world, device, &net_key(&NEW)));

    let session = world.member(device).keys[0].session;
    world.command(device, |net, now| net.key_stored(now, session, true));
    assert_eq!(pick(&hand.hear(&mut world), done), [(Req(9), DoneStatus::DONE)]);
    assert!(answers_init(&mut world, device, &net_key(&NEW)));
    // DONE got lost: the question comes again, in this session or another, and is done already.
    assert_eq!(hand.talk(&mut world, &asked, done), [(Req(9), DoneStatus::DONE)]);
    let mut other = Hand::up(&mut world, 4, device, 1);
    assert_eq!(other.talk(&mut world, &asked, done), [(Req(9), DoneStatus::DONE)]);
    // Another key under the old one's mac is no repetition.
    let mac = World::key(1).change_mac(World::id(1), 1, &NEWER);
    let key = KeyBytes::new(&NEWER).unwrap();
    let asked = [Frame::NetKey { req: Req(11), key_id: 1, mac: &mac, key }];
    assert_eq!(other.talk(&mut world, &asked, done), [(Req(11), DoneStatus::WRONG_MAC)]);
    assert_eq!(world.member(device).keys.len(), 1);
}

fn answers_init(world: &mut World, device: NetIndex, key: &NetKey) -> bool {
    let mut hand = Hand::new(world, 9, device, 1);
    let fields = hand.fields(0x99);
    let initiator =
        Initiator::start(&fields, &key.pair(fields.src, fields.dst), DhSecret::from_bytes([9; 32]));
    let answers = hand.ask(world, initiator.init());
    answers.iter().any(|answer| matches!(Packet::decode(answer), Ok(Packet::Resp(_))))
}

/// The one who asked is gone when the disk is done: the key has changed all the same.
#[test]
fn a_session_that_ends_meanwhile_changes_nothing_about_it() {
    let (mut world, device, admin, session) = admin();
    world.member(device).slow_keys = true;
    ask(&mut world, admin, session, &World::key(1), 1, &NEW);
    world.run(BEAT);
    world.command(admin, |net, now| net.close(now, session));
    assert!(matches!(outcome(&mut world, admin), Err(ControlError::SessionLost(_))));
    world.run(5 * SECOND);
    let stored = world.member(device).keys[0].session;
    // Word of another session, or a second word, is no word.
    world.command(device, |net, now| net.key_stored(now, stored, true));
    world.command(device, |net, now| net.key_stored(now, stored, false));
    assert!(opens(&mut world, admin, device, &net_key(&NEW)));
}

#[test]
fn the_change_survives_loss() {
    for seed in 0..20 {
        let mut world = World::new(seed);
        let mut config = World::config(1);
        config.allow_key_change = true;
        let device = world.add(config);
        let admin = world.add(World::config(2));
        let (session, _) = connected(&mut world, admin, device, 1);
        world.faults.loss = 200;
        world.faults.duplicate = 100;
        ask(&mut world, admin, session, &World::key(1), 0, &NEW);
        let result = outcome(&mut world, admin);
        assert!(result == Ok(()) || result == Err(ControlError::TimedOut), "seed {seed}: {result:?}");
        assert_eq!(world.member(device).keys.len(), 1, "seed {seed}");
    }
}

#[test]
fn a_session_that_is_not_up_takes_no_key() {
    let mut world = World::new(1);
    let (device, admin) = (world.add(World::config(1)), world.add(World::config(2)));
    let session = connect(&mut world, admin, device, 1);
    let current = World::key(1);
    let asked =
        world.command(admin, |net, now| net.set_remote_key(now, session, RequestId(1), &current, 1, &NEW));
    assert_eq!(asked, Err(CommandError::NotUp));
}

/// A DONE that nobody asked for means nothing.
#[test]
fn an_answer_without_a_question_is_nothing() {
    let mut world = World::new(1);
    let net = world.add(World::config(1));
    let mut hand = Hand::up(&mut world, 2, net, 1);
    let answers = hand.talk(&mut world, &[Frame::Done { req: Req(0), status: 0 }], |frame| {
        matches!(frame, Frame::Done { .. }).then_some(())
    });
    assert!(answers.is_empty());
    assert_eq!(dropped(&mut world, net, Drop::BadFrame), 0);
    assert!(elements(&[0x01, 0, 0, 0, 0]).is_ok_and(|mut all| matches!(all.next(), Some(Element::Frame(_)))));
}
