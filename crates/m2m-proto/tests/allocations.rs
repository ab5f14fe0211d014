//! How often the machine asks for memory once its sessions are warm. Not a timed test: it counts.
use std::{net::SocketAddr, time::Duration};

use m2m_proto::{
    coap::{code::Code, message::Message, option_set::OptionSet},
    config::{Config, Rate},
    event::{ClaimOutcome, Event, Output, RequestId, SessionId},
    id::Id,
    net::{HostConfig, Net, Request, Route},
    session::keys::{DeviceKey, NetKey, PeerKey},
    time::Time,
};

fn address(n: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, n as u8, 1], 9527))
}

fn id(n: usize) -> Id {
    Id([n as u8; 16])
}

fn key() -> NetKey {
    NetKey::new(&[7; 32]).unwrap()
}

/// What the first net asks of another in each round.
#[derive(Clone, Copy)]
struct Habit {
    requests: u64,
    confirmable: bool,
    pings: bool,
}

/// Some nets; all that they want done is done at once.
struct World {
    nets: Vec<Net>,
    now: Time,
    asked: u64,
    answered: u64,
    pongs: u64,
}

impl World {
    fn new(nets: usize, change: impl Fn(usize, &mut Config)) -> World {
        let now = Time::from_micros(1_000_000);
        let net = |n| {
            let mut config = Config::new(id(n), key(), DeviceKey::from_bytes([n as u8; 32]));
            change(n, &mut config);
            Net::new(config, [n as u8; 32], now)
        };
        World { nets: (1..=nets).map(net).collect(), now, asked: 0, answered: 0, pongs: 0 }
    }

    /// The first asks the second.
    fn pair() -> (World, SessionId) {
        let mut world = World::new(2, |_, _| ());
        let route = Route::Direct(address(1));
        let session = world.nets[0].connect(world.now, id(2), &PeerKey::Net(key()), route).unwrap();
        world.settle();
        (world, session)
    }

    /// The first asks the second through the third, which is host to both.
    fn through_a_host() -> (World, SessionId) {
        let mut world = World::new(3, |n, config| {
            (config.registry, config.relay) = (n == 3, n == 3);
            config.limits.relay_packets = Rate::new(u32::MAX, u32::MAX);
            config.limits.relay_bytes = Rate::new(u32::MAX, u32::MAX);
        });
        for net in 0..2 {
            let host = HostConfig { id: id(3), key: PeerKey::Net(key()), addresses: vec![address(2)] };
            world.nets[net].add_host(world.now, host).unwrap();
        }
        world.settle();
        assert_eq!(world.nets[2].registrations(), 2);
        let session = world.nets[0].connect(world.now, id(2), &PeerKey::Net(key()), Route::Host).unwrap();
        world.settle();
        (world, session)
    }

    fn settle(&mut self) {
        let mut busy = true;
        while std::mem::take(&mut busy) {
            for from in 0..self.nets.len() {
                loop {
                    match self.nets[from].poll_output(self.now) {
                        Output::Timeout(_) => break,
                        Output::Datagram { to, mut bytes } => {
                            let there = (0..self.nets.len()).find(|n| address(*n) == to).unwrap();
                            self.nets[there].handle_datagram(self.now, address(from), &mut bytes);
                            self.nets[from].recycle(bytes);
                        }
                        Output::Claim(claim) => {
                            self.nets[from].claim_checked(self.now, claim.session, ClaimOutcome::Held);
                        }
                        Output::Event(event) => self.hear(from, event),
                        _ => {}
                    }
                    busy = true;
                }
            }
        }
    }

    fn hear(&mut self, net: usize, event: Event) {
        let net = &mut self.nets[net];
        match event {
            Event::Request { incoming, message, .. } => {
                let payload = Message::parse(&message).unwrap().payload();
                net.respond(self.now, incoming, Code::CHANGED, &OptionSet::default(), payload).unwrap();
                net.recycle(message);
            }
            Event::Response { message, .. } => {
                net.recycle(message);
                self.answered += 1;
            }
            Event::Pong { rtt: Some(_), .. } => self.pongs += 1,
            _ => {}
        }
    }

    fn rounds(&mut self, session: SessionId, habit: Habit, count: u64) {
        let options = OptionSet::default();
        for _ in 0..count {
            self.now = self.now + Duration::from_micros(100);
            for _ in 0..habit.requests {
                self.asked += 1;
                let request = Request {
                    code: Code::POST,
                    options: &options,
                    payload: &[7; 64],
                    confirmable: habit.confirmable,
                    repeatable: false,
                    deadline: self.now + Duration::from_secs(30),
                };
                self.nets[0].request(self.now, session, RequestId(self.asked), &request).unwrap();
            }
            if habit.pings {
                self.nets[0].ping(self.now, session, RequestId(0)).unwrap();
            }
            self.settle();
        }
    }

    /// How often memory was asked for in three hundred rounds, after more than the 256 answers that are kept for
    /// repetitions; and that all that was asked was answered.
    fn allocations(mut self, session: SessionId, habit: Habit) -> u64 {
        self.rounds(session, habit, 700);
        let measured = allocation_counter::measure(|| self.rounds(session, habit, 300));
        assert_eq!(self.answered, 1_000 * habit.requests);
        assert_eq!(self.pongs, if habit.pings { 1_000 } else { 0 });
        measured.count_total
    }
}

const ONE: Habit = Habit { requests: 1, confirmable: true, pings: false };
const SIXTEEN: Habit = Habit { requests: 16, ..ONE };
const UNCONFIRMED: Habit = Habit { confirmable: false, ..ONE };
const UNCONFIRMED_SIXTEEN: Habit = Habit { confirmable: false, ..SIXTEEN };
const PING: Habit = Habit { requests: 0, confirmable: false, pings: true };

#[test]
fn a_warm_session_asks_for_no_memory() {
    for (habit, what) in [
        (ONE, "requests"),
        (SIXTEEN, "requests in bundles"),
        (UNCONFIRMED, "requests that nobody acknowledges"),
        (UNCONFIRMED_SIXTEEN, "bundles of those"),
        (PING, "pings, between which the session is at rest"),
        (Habit { pings: true, ..ONE }, "both"),
    ] {
        let (world, session) = World::pair();
        assert_eq!(world.allocations(session, habit), 0, "{what}");
    }
}

#[test]
fn what_is_relayed_asks_for_no_memory_on_any_of_three_machines() {
    for (habit, what) in [(ONE, "requests"), (UNCONFIRMED_SIXTEEN, "bundles"), (PING, "pings")] {
        let (world, session) = World::through_a_host();
        assert_eq!(world.allocations(session, habit), 0, "{what}");
    }
}

/// With so many sessions at work that not all can keep their round keys.
#[test]
fn more_busy_sessions_than_stay_warm_ask_for_no_memory() {
    let mut world = World::new(2, |_, config| config.limits.warm_sessions = 3);
    let route = Route::Direct(address(1));
    let mut connect = || world.nets[0].connect(world.now, id(2), &PeerKey::Net(key()), route).unwrap();
    let sessions: Vec<SessionId> = (0..8).map(|_| connect()).collect();
    world.settle();
    let all = |world: &mut World, count| {
        (0..count).for_each(|_| sessions.iter().for_each(|session| world.rounds(*session, ONE, 1)));
    };
    all(&mut world, 300);
    let measured = allocation_counter::measure(|| all(&mut world, 100));
    assert_eq!((world.answered, measured.count_total), (3_200, 0));
}

#[test]
fn the_counter_counts() {
    let boxed = allocation_counter::measure(|| drop(std::hint::black_box(Box::new(7))));
    assert_eq!(boxed.count_total, 1);
}
