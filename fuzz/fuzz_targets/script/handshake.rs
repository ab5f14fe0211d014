//! Two nets that want a session, and forgeries of their handshake from all sides: what the target `handshake` runs.
use m2m_proto::{
    config::Rate,
    event::{Event, RequestId},
    net::Route,
    session::keys::PeerKey,
    time::Duration,
};
use m2m_sim::{NetIndex, World};

use super::{SECOND, Script};

/// Fewer than the budget of one source allows, or the honest ones would wait as well.
const FORGERIES: usize = 60;

/// The session comes up all the same, once; and again after the responder forgot it.
pub(crate) fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes, 400);
    let mut world = World::new(9);
    let pressed = script.byte();
    let [a, b] = [2, 1].map(|number| world.add(config(number, pressed)));
    world.tap = Some(Vec::new());
    let to = world.address(b);
    let key = PeerKey::Net(World::key(1));
    let session = world.command(a, |net, now| {
        net.connect(now, World::id(1), &key, Route::Direct(to)).expect("there is room")
    });
    // With the top bit the responder loses its memory when half of the forgeries were sent.
    let first = if pressed < 128 { FORGERIES } else { FORGERIES / 2 };
    forge_some(&mut world, &mut script, first);
    if pressed >= 128 {
        world.run(9 * SECOND);
        world.kill(b);
        world.member(b).events.clear();
        world.start(b, config(1, pressed));
        world.command(a, |net, now| net.ping(now, session, RequestId(1)).expect("the session is up"));
        forge_some(&mut world, &mut script, FORGERIES / 2);
        world.run(60 * SECOND);
    }
    world.run(9 * SECOND);
    assert!(world.net(a).info(session).is_some_and(|info| info.up), "the session did not come up");
    assert_eq!(accepted(&mut world, b), 1);
    assert_eq!((world.net(a).sessions(), world.net(b).sessions(), world.net(b).half_open()), (1, 1, 0));
}

fn config(number: u8, pressed: usize) -> m2m_proto::config::Config {
    let mut config = World::config(number);
    if number == 1 {
        config.limits.dh_rate = Rate::new(0, (pressed % 3) as u32);
        config.limits.half_open_per_peer = 1 + pressed / 3 % 3;
    }
    config
}

fn accepted(world: &mut World, net: NetIndex) -> usize {
    let events = world.member(net).events.iter();
    events.filter(|(_, event)| matches!(event, Event::Accepted { .. })).count()
}

fn forge_some(world: &mut World, script: &mut Script<'_>, most: usize) {
    let mut forged = 0;
    while !script.is_over() && forged < most {
        forge(world, script);
        forged += 1;
        if script.byte().is_multiple_of(4) {
            world.run(Duration::from_millis(3));
        }
    }
}

/// A packet that was seen, changed in one to four places, cut or joined with another one.
fn forge(world: &mut World, script: &mut Script<'_>) {
    let tap = world.tap.as_ref().expect("there is a tap");
    let (which, how) = (script.byte(), script.byte());
    let (from, to, mut bytes) = tap[which % tap.len()].clone();
    let other = &tap[script.byte() % tap.len()].2;
    if how & 0x80 != 0 {
        let at = script.byte().min(bytes.len()).min(other.len());
        bytes.truncate(at);
        bytes.extend_from_slice(&other[at..]);
    }
    for _ in 0..how % 4 {
        let (at, flip) = (script.byte(), script.byte());
        if let Some(place) = bytes.get_mut(at) {
            *place ^= flip as u8;
        }
    }
    if how & 0x40 != 0 {
        bytes.truncate(script.byte());
    }
    let (from, to) = if how & 0x20 != 0 { (to, from) } else { (from, to) };
    world.inject(from, to, &bytes);
}
