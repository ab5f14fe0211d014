//! What sessions do to the network and to each other: fill a link, leave the others their share, and make way for loss.
use std::{collections::BTreeMap, net::SocketAddr};

use m2m_proto::{
    coap::{code::Code, option_set::OptionSet},
    config::Config,
    error::RequestError,
    event::{Event, RequestId, SessionId},
    net::{Request, Route},
    session::keys::PeerKey,
    time::{Duration, Time},
};
use m2m_sim::{Bottleneck, NetIndex, World};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
/// One request fills a packet.
const PAYLOAD: usize = 1000;
/// What such a request takes on the wire: its payload and not much more, IPv4 and UDP included.
const ON_WIRE: u64 = PAYLOAD as u64 + 28 + 40;
/// Datagrams as long as this carry a request.
const REQUEST_LEN: usize = PAYLOAD;

/// A session that always has requests waiting, if it is told to.
struct Flow {
    net: NetIndex,
    session: SessionId,
    open: usize,
    /// So many are open whenever it can be.
    backlog: usize,
    answered: Vec<Time>,
    timed_out: usize,
    asked: usize,
}

/// One server, and flows to it.
struct Rig {
    world: World,
    server: NetIndex,
    flows: Vec<Flow>,
    owner: BTreeMap<u64, usize>,
}

fn config(n: u8) -> Config {
    let mut config = World::config(n);
    config.limits.queue_messages = 10_000;
    config.limits.queue_bytes = 20 << 20;
    config
}

impl Rig {
    fn new(seed: u64, one_way: Duration) -> Rig {
        let mut world = World::new(seed);
        world.faults.delay = one_way;
        let server = world.add(config(1));
        Rig { world, server, flows: Vec::new(), owner: BTreeMap::new() }
    }

    fn narrow(&mut self, bytes_per_second: u64, queue_bytes: u64) {
        let to = self.world.address(self.server);
        self.world.bottleneck = Some(Bottleneck::new(to, bytes_per_second, queue_bytes));
    }

    fn client(&mut self) -> NetIndex {
        let n = 2 + u8::try_from(self.flows.len()).unwrap();
        self.world.add(config(n))
    }

    fn connect(&mut self, net: NetIndex, server: NetIndex, n: u8) -> SessionId {
        let to = self.world.address(server);
        let key = PeerKey::Net(World::key(n));
        self.world.command(net, |net, now| net.connect(now, World::id(n), &key, Route::Direct(to)).unwrap())
    }

    /// A session of `net` with the server.
    fn flow(&mut self, net: NetIndex, backlog: usize) -> usize {
        let session = self.connect(net, self.server, 1);
        let flow = Flow { net, session, open: 0, backlog, answered: Vec::new(), timed_out: 0, asked: 0 };
        self.flows.push(flow);
        self.fill(self.flows.len() - 1);
        self.flows.len() - 1
    }

    fn ask(&mut self, flow: usize, count: usize) {
        let Flow { net, session, .. } = self.flows[flow];
        let first = self.owner.len() as u64;
        let deadline = self.world.now + 300 * SECOND;
        self.world.command(net, |net, now| {
            for id in first..first + count as u64 {
                let options = OptionSet::default();
                let payload = &[7; PAYLOAD];
                let request = Request {
                    code: Code::POST,
                    options: &options,
                    payload,
                    confirmable: true,
                    repeatable: false,
                    deadline,
                };
                net.request(now, session, RequestId(id), &request).expect("there is room");
            }
        });
        self.owner.extend((first..first + count as u64).map(|id| (id, flow)));
        self.flows[flow].open += count;
        self.flows[flow].asked += count;
    }

    fn fill(&mut self, flow: usize) {
        let Flow { open, backlog, .. } = self.flows[flow];
        if open < backlog {
            self.ask(flow, backlog - open);
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.world.now + time;
        while let Some(index) = self.world.step(until) {
            if index.0 != usize::MAX {
                self.attend(index);
            }
        }
    }

    fn attend(&mut self, index: NetIndex) {
        while let Some((now, event)) = self.world.member(index).events.pop_front() {
            let (request, is_answered) = match event {
                Event::Request { incoming, .. } => {
                    self.world.command(index, |net, now| {
                        net.respond(now, incoming, Code::CHANGED, &OptionSet::default(), b"").unwrap();
                    });
                    continue;
                }
                Event::Response { request, .. } => (request, true),
                Event::RequestFailed { request, why } => {
                    assert_eq!(why, RequestError::TimedOut);
                    (request, false)
                }
                _ => continue,
            };
            let at = self.owner.get(&request.0).copied().expect("it was asked");
            let flow = &mut self.flows[at];
            flow.open -= 1;
            if is_answered {
                flow.answered.push(now);
            } else {
                flow.timed_out += 1;
            }
            self.fill(at);
        }
    }

    /// Answers that each flow got from now on for so long.
    fn measure(&mut self, time: Duration) -> Vec<usize> {
        let before: Vec<usize> = self.flows.iter().map(|flow| flow.answered.len()).collect();
        self.run(time);
        self.flows.iter().zip(before).map(|(flow, before)| flow.answered.len() - before).collect()
    }

    /// Sends nothing new, and waits until each request has told its end.
    fn finish(&mut self) {
        self.flows.iter_mut().for_each(|flow| flow.backlog = 0);
        self.run(310 * SECOND);
        for flow in &self.flows {
            assert_eq!((flow.open, flow.answered.len() + flow.timed_out), (0, flow.asked));
        }
        assert_eq!(self.world.watch.violations, [""; 0]);
    }

    /// The datagrams that left since the last look, and had a request in them.
    fn requests_seen(&mut self) -> Vec<SocketAddr> {
        let tap = self.world.tap.replace(Vec::new()).unwrap_or_default();
        tap.into_iter().filter(|(.., bytes)| bytes.len() > REQUEST_LEN).map(|(_, to, _)| to).collect()
    }
}

/// 400 requests a second: 20 are on the way in a round trip if the link is full, and up to 30 wait for it.
const RATE: u64 = 400 * ON_WIRE;

/// The flows' shares are within 20 % of each other, and the link isn't wasted.
fn judge(shares: &[usize], time: Duration) {
    let [least, most] = [shares.iter().min(), shares.iter().max()].map(|share| *share.unwrap());
    assert!(most * 10 <= least * 12, "{shares:?}");
    let carried = shares.iter().sum::<usize>() as u64 * ON_WIRE;
    assert!(carried * 10 >= RATE * time.as_secs() * 7, "{shares:?}: {carried} of {}", RATE * time.as_secs());
}

#[test]
fn two_nets_share_a_link() {
    for seed in 0..2 {
        let mut rig = Rig::new(seed, 25 * MS);
        rig.narrow(RATE, 30 * ON_WIRE);
        for _ in 0..2 {
            let net = rig.client();
            rig.flow(net, 200);
        }
        rig.run(10 * SECOND);
        let shares = rig.measure(20 * SECOND);
        judge(&shares, 20 * SECOND);
        rig.finish();
    }
}

#[test]
fn two_sessions_of_one_net_share_a_link() {
    let mut rig = Rig::new(10, 25 * MS);
    rig.narrow(RATE, 30 * ON_WIRE);
    let net = rig.client();
    rig.flow(net, 200);
    rig.flow(net, 200);
    rig.run(10 * SECOND);
    let shares = rig.measure(20 * SECOND);
    judge(&shares, 20 * SECOND);
    rig.finish();
}

#[test]
fn who_comes_later_gets_as_much() {
    let mut rig = Rig::new(20, 25 * MS);
    rig.narrow(RATE, 30 * ON_WIRE);
    let first = rig.client();
    rig.flow(first, 200);
    let alone = rig.measure(10 * SECOND);
    judge(&alone, 10 * SECOND);
    let second = rig.client();
    rig.flow(second, 200);
    rig.run(10 * SECOND);
    let shares = rig.measure(20 * SECOND);
    judge(&shares, 20 * SECOND);
    rig.finish();
}

#[test]
fn the_window_starts_at_ten_doubles_and_is_halved_by_a_loss() {
    let mut rig = Rig::new(30, 50 * MS);
    rig.world.tap = Some(Vec::new());
    let net = rig.client();
    // INIT and RESP take the first round trip; from then on it is looked at between two of them.
    rig.flow(net, 1000);
    rig.run(150 * MS);
    assert_eq!(rig.requests_seen().len(), 10);
    let windows: Vec<usize> = (0..6)
        .map(|_| {
            rig.run(100 * MS);
            rig.requests_seen().len()
        })
        .collect();
    // No more than doubled each time; pacing puts a part of it off into the next round trip.
    let mut most = 10;
    for (round, sent) in windows.iter().scan(10, |sum, sent| Some((*sum += sent, *sum).1)).enumerate() {
        most += 10 << (round + 1);
        assert!(sent <= most && sent * 2 > most.min(256), "{windows:?}");
    }
    rig.run(SECOND);
    rig.requests_seen();
    rig.run(100 * MS);
    let full = rig.requests_seen().len();
    assert!((250..=258).contains(&full), "{full}");
    rig.world.faults.loss = 1000;
    rig.run(MS);
    rig.world.faults.loss = 0;
    // Until it timed out, and a round trip for what was on its way.
    rig.run(500 * MS);
    rig.requests_seen();
    rig.run(100 * MS);
    let half = rig.requests_seen().len();
    assert!((120..=140).contains(&half), "{half}");
    rig.finish();
}

#[test]
fn a_lossy_path_delivers() {
    let mut rig = Rig::new(40, 25 * MS);
    let net = rig.client();
    let flow = rig.flow(net, 0);
    rig.run(SECOND);
    rig.world.faults.loss = 200;
    rig.ask(flow, 400);
    rig.finish();
    let Flow { answered, timed_out, .. } = &rig.flows[flow];
    // A request and its answer get through together with 0.64: five attempts of which each fails are 0.6 %.
    assert!(answered.len() >= 390, "{} {timed_out}", answered.len());
}

#[test]
fn a_burst_is_spread_over_the_round_trip() {
    let mut rig = Rig::new(50, 50 * MS);
    let net = rig.client();
    let flow = rig.flow(net, 400);
    // The window is wide, and all that was asked is answered since less than a timeout.
    rig.run(2 * SECOND);
    rig.flows[flow].backlog = 0;
    rig.run(240 * MS);
    assert_eq!(rig.flows[flow].open, 0);
    rig.world.tap = Some(Vec::new());
    rig.ask(flow, 200);
    let mut left = Vec::new();
    for _ in 0..40 {
        left.push(rig.requests_seen().len());
        rig.run(5 * MS);
    }
    assert_eq!(left.iter().sum::<usize>(), 200);
    assert!(left.iter().all(|count| *count <= 20), "{left:?}");
    assert!(left.iter().filter(|count| **count > 0).count() >= 12, "{left:?}");
    rig.finish();
}

#[test]
fn a_greedy_session_delays_the_others_by_a_few_packets() {
    let mut rig = Rig::new(60, MS / 10);
    let other = rig.world.add(config(200));
    let net = rig.client();
    let session = rig.connect(net, other, 200);
    let greedy = rig.flow(net, 600);
    rig.run(5 * MS);
    rig.flows[greedy].backlog = 0;
    rig.run(10 * MS);
    assert_eq!(rig.flows[greedy].open, 0);

    rig.world.tap = Some(Vec::new());
    let greedy_session = rig.flows[greedy].session;
    let deadline = rig.world.now + 300 * SECOND;
    rig.world.command(net, |net, now| {
        let options = OptionSet::default();
        let payload = &[7; PAYLOAD];
        let request = Request {
            code: Code::POST,
            options: &options,
            payload,
            confirmable: true,
            repeatable: false,
            deadline,
        };
        for id in 0..10_000 {
            net.request(now, greedy_session, RequestId(1 << 40 | id), &request).expect("there is room");
        }
        net.request(now, session, RequestId(1 << 41), &request).expect("there is room");
    });
    let to_other = rig.world.address(other);
    let left = rig.requests_seen();
    let place = left.iter().position(|to| *to == to_other).expect("it left at once");
    assert!(left.len() > 200 && place <= 2, "{place} of {}", left.len());
}
