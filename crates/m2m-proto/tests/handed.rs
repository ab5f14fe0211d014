//! How often two shards ask for memory while they hand packets over to each other. Not a timed test: it counts.
use std::{net::SocketAddr, time::Duration};

use m2m_proto::{
    coap::{code::Code, message::Message, option_set::OptionSet},
    config::{Config, Shard},
    event::{ClaimOutcome, Event, Output, RequestId, SessionId},
    id::Id,
    net::{HostConfig, Net, Request, Route},
    session::keys::{DeviceKey, NetKey, PeerKey},
    time::Time,
};

const SHARDS: usize = 2;

fn key() -> NetKey {
    NetKey::new(&[7; 32]).unwrap()
}

fn address(member: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, member as u8, 1], 9527))
}

fn config(id: Id) -> Config {
    Config::new(id, key(), DeviceKey::from_bytes(id.0[..].repeat(2).try_into().unwrap()))
}

/// A host of two shards, and a net of each; what a net sends comes to the socket of the other shard.
struct World {
    /// The host's shards, then the nets.
    machines: [Net; 4],
    answered: u64,
}

impl World {
    /// The ids of the two nets: the first one's home is the first shard.
    fn ids() -> [Id; 2] {
        let home = |wanted: u8| {
            (2..).map(|n| Id([n; 16])).find(|id| Shard { index: 0, count: SHARDS as u8 }.of_id(*id) == wanted)
        };
        [0, 1].map(|wanted| home(wanted).unwrap())
    }

    fn new(now: Time) -> World {
        let shard = |index: u8| {
            let mut config = config(Id([1; 16]));
            config.shard = Shard { index, count: SHARDS as u8 };
            (config.registry, config.relay) = (true, true);
            Net::new(config, [index; 32], now)
        };
        let net = |id: Id| {
            let mut net = Net::new(config(id), id.0[..].repeat(2).try_into().unwrap(), now);
            let host = HostConfig { id: Id([1; 16]), key: PeerKey::Net(key()), addresses: vec![address(0)] };
            net.add_host(now, host).unwrap();
            net
        };
        let [a, b] = World::ids();
        World { machines: [shard(0), shard(1), net(a), net(b)], answered: 0 }
    }

    fn settle(&mut self, now: Time) {
        let mut busy = true;
        while std::mem::take(&mut busy) {
            for from in 0..self.machines.len() {
                loop {
                    match self.machines[from].poll_output(now) {
                        Output::Timeout(_) => break,
                        Output::Datagram { to, mut bytes } => {
                            let is_host = from < SHARDS;
                            let at = if is_host {
                                usize::from(to.ip() != address(2).ip()) + SHARDS
                            } else {
                                3 - from
                            };
                            let source = if is_host { address(0) } else { address(from) };
                            self.machines[at].handle_datagram(now, source, &mut bytes);
                            self.machines[from].recycle(bytes);
                        }
                        Output::Handover { shard, handed } => {
                            let spent = self.machines[usize::from(shard)].handle_handed(now, handed);
                            self.machines[from].recycle(spent);
                        }
                        Output::Claim(claim) => {
                            self.machines[from].claim_checked(now, claim.session, ClaimOutcome::New);
                        }
                        Output::Event(event) => self.hear(now, from, event),
                        _ => {}
                    }
                    busy = true;
                }
            }
        }
    }

    fn hear(&mut self, now: Time, at: usize, event: Event) {
        let net = &mut self.machines[at];
        match event {
            Event::Request { incoming, message, .. } => {
                let payload = Message::parse(&message).unwrap().payload();
                net.respond(now, incoming, Code::CHANGED, &OptionSet::default(), payload).unwrap();
                net.recycle(message);
            }
            Event::Response { message, .. } => {
                net.recycle(message);
                self.answered += 1;
            }
            _ => {}
        }
    }

    fn exchange(&mut self, now: Time, session: SessionId, n: u64) {
        let request = Request {
            code: Code::POST,
            options: &OptionSet::default(),
            payload: &[7; 64],
            confirmable: true,
            repeatable: false,
            deadline: now + Duration::from_secs(30),
        };
        self.machines[SHARDS].request(now, session, RequestId(n), &request).unwrap();
        self.settle(now);
    }
}

#[test]
fn what_is_handed_over_asks_for_no_memory() {
    let mut now = Time::from_micros(1_000_000);
    let mut world = World::new(now);
    world.settle(now);
    let [_, b] = World::ids();
    let session = world.machines[SHARDS].connect(now, b, &PeerKey::Net(key()), Route::Host).unwrap();
    world.settle(now);
    let mut n = 0;
    let mut rounds = |world: &mut World, count: u64| {
        for _ in 0..count {
            n += 1;
            // A source has so many packets a second.
            now = now + Duration::from_millis(5);
            world.exchange(now, session, n);
        }
    };
    rounds(&mut world, 2_000);
    let handed =
        |world: &World| world.machines[..SHARDS].iter().map(|shard| shard.stats().handed_over).sum::<u64>();
    let before = handed(&world);
    let measured = allocation_counter::measure(|| rounds(&mut world, 1_000));
    assert_eq!((world.answered, measured.count_total), (3_000, 0), "{measured:?}");
    // There and back, a packet to its home, and the relayed one on.
    assert!(handed(&world) - before >= 4_000, "{} handed over", handed(&world) - before);
}
