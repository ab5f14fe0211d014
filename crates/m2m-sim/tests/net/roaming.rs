//! Addresses that change while requests are open: each is answered once, and runs once.
use std::{collections::BTreeMap, net::SocketAddr};

use m2m_proto::{
    coap::{code::Code, message::Message, option_set::OptionSet},
    event::{Event, RequestId, SessionId},
    net::{Path, Request, Route},
    session::keys::PeerKey,
    time::Duration,
};
use m2m_sim::{NetIndex, World};

const SECOND: Duration = Duration::from_secs(1);

/// Two nets with a session, each of which asks and answers.
struct Pair {
    world: World,
    ends: [End; 2],
    next: u64,
}

/// One end of the session, and what came of what it asked and was asked.
struct End {
    net: NetIndex,
    session: SessionId,
    asked: Vec<u64>,
    answered: BTreeMap<u64, usize>,
    ran: BTreeMap<u64, usize>,
    moves: Vec<Path>,
}

impl End {
    fn new(net: NetIndex, session: SessionId) -> End {
        let (asked, answered, ran) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        End { net, session, asked, answered, ran, moves: Vec::new() }
    }
}

fn address(n: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([10, 9, n, 1], port))
}

/// What two nets are to each other.
fn meet(mut world: World, nets: [NetIndex; 2], peer: u8, route: Route) -> Pair {
    let key = PeerKey::Net(World::key(peer));
    let session = world
        .command(nets[0], |net, now| net.connect(now, World::id(peer), &key, route).expect("there is room"));
    let there = world.wait_for(nets[1], 2 * SECOND, |event| match event {
        Event::Accepted { session, .. } => Some(*session),
        _ => None,
    });
    world.run(SECOND);
    Pair { world, ends: [End::new(nets[0], session), End::new(nets[1], there)], next: 0 }
}

/// Two nets that reach each other straight: the initiator is end 0.
fn direct(seed: u64) -> Pair {
    let mut world = World::new(seed);
    let nets = [world.add(World::config(2)), world.add(World::config(3))];
    let to = world.address(nets[1]);
    meet(world, nets, 3, Route::Direct(to))
}

/// Two nets behind a host, which is net 0.
fn relayed(seed: u64) -> Pair {
    let mut world = World::new(seed);
    let host = world.add_host(1);
    let nets = [world.add_guest(2, host, 1), world.add_guest(3, host, 1)];
    world.run(SECOND);
    meet(world, nets, 3, Route::Host)
}

impl Pair {
    /// Says so many requests at one end.
    fn ask(&mut self, end: usize, count: u64) {
        let end = &mut self.ends[end];
        for id in self.next..self.next + count {
            let deadline = self.world.now + 60 * SECOND;
            let session = end.session;
            self.world.command(end.net, |net, now| {
                let (options, payload) = (OptionSet::default(), id.to_be_bytes());
                let request = Request {
                    code: Code::POST,
                    options: &options,
                    payload: &payload,
                    confirmable: true,
                    repeatable: false,
                    deadline,
                };
                net.request(now, session, RequestId(id), &request).expect("there is room");
            });
            end.asked.push(id);
        }
        self.next += count;
    }

    /// Lets time pass, answering what is asked.
    fn run(&mut self, time: Duration) {
        let until = self.world.now + time;
        while self.world.step(until).is_some() {
            (0..2).for_each(|end| self.serve(end));
        }
    }

    fn serve(&mut self, end: usize) {
        let End { net, answered, ran, moves, .. } = &mut self.ends[end];
        let net = *net;
        while let Some((_, event)) = self.world.member(net).events.pop_front() {
            match event {
                Event::Request { incoming, message, .. } => {
                    let payload = Message::parse(&message).expect("requests are valid").payload().to_vec();
                    let id = u64::from_be_bytes(payload[..].try_into().expect("eight bytes"));
                    *ran.entry(id).or_default() += 1;
                    self.world.command(net, |net, now| {
                        net.respond(now, incoming, Code::CHANGED, &OptionSet::default(), &payload)
                            .expect("the answer is taken");
                    });
                }
                Event::Response { request, .. } => *answered.entry(request.0).or_default() += 1,
                Event::Moved { path, .. } => moves.push(path),
                Event::RequestFailed { request, why } => panic!("request {} failed: {why}", request.0),
                Event::Closed { why, .. } => panic!("the session ended: {why}"),
                _ => {}
            }
        }
    }

    /// Every request was answered once and ran once.
    fn check(&mut self) {
        for (end, other) in [(0, 1), (1, 0)] {
            for id in &self.ends[end].asked {
                assert_eq!(
                    self.ends[end].answered.get(id),
                    Some(&1),
                    "request {id} of end {end} is answered"
                );
                assert_eq!(self.ends[other].ran.get(id), Some(&1), "request {id} of end {end} ran once");
            }
        }
        assert_eq!(self.world.watch.violations, [""; 0]);
    }

    fn path(&mut self, end: usize) -> Path {
        let End { net, session, .. } = self.ends[end];
        self.world.net(net).info(session).expect("it stands").path
    }

    fn move_end(&mut self, end: usize, address: SocketAddr, keeps_old: bool) {
        self.world.move_net(self.ends[end].net, address, keeps_old);
    }
}

#[test]
fn a_clients_port_changes_with_16_requests_open() {
    for seed in 0..20 {
        let mut pair = direct(seed);
        pair.world.faults.jitter = Duration::from_millis(20);
        pair.ask(0, 16);
        pair.run(Duration::from_millis(seed));
        pair.move_end(0, address(2, 4000), false);
        pair.run(20 * SECOND);
        pair.check();
        assert_eq!(pair.path(1), Path::Direct(address(2, 4000)), "seed {seed}");
    }
}

#[test]
fn a_rebinding_under_loss_loses_no_request() {
    for seed in 0..20 {
        let mut pair = direct(seed);
        pair.world.faults.loss = 100;
        pair.world.faults.jitter = Duration::from_millis(20);
        for port in 4000..4004 {
            pair.ask(0, 4);
            pair.ask(1, 4);
            pair.run(Duration::from_millis(seed % 7));
            pair.move_end(0, address(2, port), false);
            pair.run(15 * SECOND);
        }
        pair.run(30 * SECOND);
        pair.check();
    }
}

#[test]
fn what_the_peer_had_on_its_way_follows_the_mover() {
    let mut pair = direct(1);
    pair.ask(1, 8);
    pair.move_end(0, address(2, 4000), false);
    // The mover's next packet tells where it is.
    pair.run(SECOND);
    pair.ask(0, 1);
    pair.run(20 * SECOND);
    pair.check();
    assert_eq!(pair.ends[1].moves, [Path::Direct(address(2, 4000))]);
}

#[test]
fn a_servers_address_changes() {
    for keeps_old in [true, false] {
        let mut pair = direct(2);
        pair.ask(0, 16);
        pair.ask(1, 16);
        pair.run(Duration::from_millis(3));
        pair.move_end(1, address(3, 9527), keeps_old);
        pair.run(20 * SECOND);
        pair.check();
        assert_eq!(pair.path(0), Path::Direct(address(3, 9527)));
    }
}

#[test]
fn both_ends_change_at_once_while_the_old_addresses_last() {
    let mut pair = direct(3);
    pair.ask(0, 16);
    pair.run(Duration::from_millis(2));
    pair.move_end(0, address(2, 4000), true);
    pair.move_end(1, address(3, 4000), true);
    pair.run(SECOND);
    // The client was only asked where it is, which moves nothing; what it says next does.
    pair.ask(0, 1);
    pair.run(20 * SECOND);
    pair.check();
    assert_eq!(pair.path(1), Path::Direct(address(2, 4000)));
    assert_eq!(pair.path(0), Path::Direct(address(3, 4000)));
}

#[test]
fn both_ends_change_at_once_behind_a_host() {
    for seed in 0..10 {
        let mut pair = relayed(seed);
        pair.world.faults.jitter = Duration::from_millis(10);
        pair.ask(0, 16);
        pair.ask(1, 16);
        pair.run(Duration::from_millis(seed));
        pair.move_end(0, address(2, 4000), false);
        pair.move_end(1, address(3, 4000), false);
        pair.run(30 * SECOND);
        pair.check();
        let host = NetIndex(0);
        assert_eq!(pair.world.net(host).registrations(), 2);
        assert_eq!(pair.world.net(host).stats().moves, 2, "seed {seed}");
    }
}

#[test]
fn an_idle_device_is_found_again_after_its_next_ping() {
    let mut pair = relayed(1);
    pair.move_end(0, address(2, 4000), false);
    pair.run(60 * SECOND);
    pair.ask(1, 4);
    pair.run(5 * SECOND);
    pair.check();
}

/// Both ends moved at once, so that neither finds the other straight: their host still knows both.
#[test]
fn a_session_goes_on_through_the_host_of_both_when_the_straight_way_is_gone() {
    let mut world = World::new(5);
    let host = world.add_host(1);
    let nets = [world.add_guest(2, host, 1), world.add_guest(3, host, 1)];
    world.run(SECOND);
    let straight = Route::Direct(world.address(nets[1]));
    let mut pair = meet(world, nets, 3, straight);
    assert!(matches!(pair.path(0), Path::Direct(_)));
    pair.world.cut.push((nets[0], nets[1]));
    pair.ask(0, 16);
    pair.run(40 * SECOND);
    assert_eq!(pair.path(0), Path::Through(World::id(1)));
    pair.check();
}

/// The side that followed its peer into the host remembers where that was before, and tries it once the host is gone.
#[test]
fn a_session_that_went_through_the_host_goes_back_when_only_the_straight_way_is_left() {
    let mut world = World::new(6);
    let host = world.add_host(1);
    let nets = [world.add_guest(2, host, 1), world.add_guest(3, host, 1)];
    world.run(SECOND);
    let straight = Route::Direct(world.address(nets[1]));
    let mut pair = meet(world, nets, 3, straight);
    let [was, _] = [pair.path(0), pair.path(1)];
    pair.world.cut.push((nets[0], nets[1]));
    pair.ask(0, 4);
    pair.run(40 * SECOND);
    assert_eq!([pair.path(0), pair.path(1)], [Path::Through(World::id(1)); 2]);

    pair.world.cut.clear();
    pair.world.kill(host);
    pair.ask(1, 4);
    pair.run(40 * SECOND);
    assert_eq!(pair.path(0), was);
    assert!(matches!(pair.path(1), Path::Direct(_)));
    pair.check();
}

/// Straight paths between those who met through a host are not looked for (protocol, section 10.2): nothing but a packet
/// that comes another way makes a candidate, and no net sends one.
#[test]
fn a_session_that_began_in_the_host_stays_there() {
    let mut pair = relayed(7);
    for _ in 0..20 {
        pair.ask(0, 4);
        pair.ask(1, 4);
        pair.run(10 * SECOND);
    }
    assert_eq!([pair.path(0), pair.path(1)], [Path::Through(World::id(1)); 2]);
    pair.check();
}

#[test]
fn a_session_through_a_host_answers_a_window_of_requests() {
    let mut world = World::new(4);
    let host = world.add_host(1);
    let nets = [world.add_guest(2, host, 1), world.add_guest(3, host, 1)];
    world.run(SECOND);
    let mut pair = meet(world, nets, 3, Route::Host);
    assert_eq!(pair.path(0), Path::Through(World::id(1)));
    pair.ask(0, 16);
    pair.run(20 * SECOND);
    pair.check();
}

#[test]
fn a_net_that_flaps_between_two_addresses_loses_nothing() {
    for seed in 0..10 {
        let mut pair = direct(seed);
        let home = pair.world.address(pair.ends[0].net);
        for round in 0..40 {
            let to = if round % 2 == 0 { address(2, 4000) } else { home };
            pair.move_end(0, to, seed % 2 == 0);
            pair.ask(0, 1);
            pair.run(Duration::from_millis(100 + 37 * seed));
        }
        pair.run(30 * SECOND);
        pair.check();
    }
}

#[test]
fn the_round_trip_is_measured_anew_on_a_new_path() {
    let mut pair = direct(5);
    pair.ask(1, 8);
    pair.run(SECOND);
    let rtt = |pair: &mut Pair| {
        let End { net, session, .. } = pair.ends[1];
        pair.world.net(net).info(session).expect("it stands").rtt.expect("it was measured")
    };
    assert!(rtt(&mut pair) < Duration::from_millis(20));
    pair.world.faults.delay = Duration::from_millis(150);
    pair.move_end(0, address(2, 4000), false);
    pair.ask(0, 1);
    pair.run(5 * SECOND);
    assert!(rtt(&mut pair) > Duration::from_millis(250), "{:?}", rtt(&mut pair));
    pair.check();
}
