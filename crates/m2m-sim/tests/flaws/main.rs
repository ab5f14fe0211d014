//! The flaws of the original of 2018, one test a row: the same situation, and the right behaviour. `docs/flaws.md`
//! says which test belongs to which row.
#[path = "../attack/rig.rs"]
#[allow(dead_code, reason = "the attacks need more of it than the flaws do")]
mod rig;

mod broken;
mod memory;
mod security;
mod table;

use m2m_proto::{
    coap::{code::Code, message::Message, option_set::OptionSet},
    event::{Event, IncomingId, RequestId, SessionId},
    time::Duration,
};
use m2m_sim::{NetIndex, World};

use rig::{BEAT, Hand, SECOND, connected, post};

/// Two nets with a session from the first to the second: both, and the session's handle at each.
fn pair(seed: u64) -> (World, [NetIndex; 2], [SessionId; 2]) {
    let mut world = World::new(seed);
    let (a, b) = (world.add(World::config(2)), world.add(World::config(3)));
    let (at_a, at_b) = connected(&mut world, a, b, 3);
    (world, [a, b], [at_a, at_b])
}

/// A net, and a session to it that is driven by hand.
fn by_hand(seed: u64) -> (World, NetIndex, Hand) {
    let mut world = World::new(seed);
    let net = world.add(World::config(1));
    let hand = Hand::up(&mut world, 2, net, 1);
    world.member(net).events.clear();
    (world, net, hand)
}

/// The request that comes next to a net.
fn request(world: &mut World, net: NetIndex, limit: Duration) -> (IncomingId, Vec<u8>) {
    world.wait_for(net, limit, |event| match event {
        Event::Request { incoming, message, .. } => {
            Some((*incoming, Message::parse(message).expect("requests are valid").payload().to_vec()))
        }
        _ => None,
    })
}

/// Answers the next request with what it held.
fn serve(world: &mut World, net: NetIndex) {
    let (incoming, payload) = request(world, net, 20 * SECOND);
    world.command(net, |machine, now| {
        machine.respond(now, incoming, Code::CHANGED, &OptionSet::default(), &payload).expect("it waits");
    });
}

/// What came back for a request.
fn answer(world: &mut World, net: NetIndex, id: u64) -> Vec<u8> {
    world.wait_for(net, 20 * SECOND, |event| match event {
        Event::Response { request, message } if *request == RequestId(id) => {
            Some(Message::parse(message).expect("responses are valid").payload().to_vec())
        }
        _ => None,
    })
}

/// A request there, and its answer back.
fn echoes(world: &mut World, from: (NetIndex, SessionId), to: NetIndex, id: u64) {
    let payload = id.to_be_bytes();
    post(world, from.0, from.1, id, &payload).expect("it is taken");
    serve(world, to);
    assert_eq!(answer(world, from.0, id), payload);
}

/// How many requests wait for this net's user.
fn requests(world: &mut World, net: NetIndex) -> usize {
    world.run(BEAT);
    let events = &world.member(net).events;
    events.iter().filter(|(_, event)| matches!(event, Event::Request { .. })).count()
}
