//! Requests that are under way while the keys change, again and again: none fails, none is lost, none is sent twice.
//! Optimised it is 10^6 requests across 1,000 changes, else a tenth of that (`cargo xtask rekey` runs the whole).
use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use m2m_proto::{
    coap::{code::Code, option_set::OptionSet},
    config::{Config, Rate},
    event::{Event, Output, RequestId, SessionId},
    id::Id,
    net::{Net, Request, Route},
    session::keys::{DeviceKey, NetKey, PeerKey},
    stats::Drop,
    time::Time,
};

const REKEYS: u64 = if cfg!(debug_assertions) { 100 } else { 1_000 };
const REQUESTS: u64 = 1_000 * REKEYS;
/// Never fewer under way, until the last have left.
const IN_FLIGHT: u64 = 16;
const TICK: Duration = Duration::from_micros(500);
/// One way takes so many ticks: a change of keys happens while several packets are on their way.
const DELAY: u64 = 3;
/// No answer takes longer, and no message is sent again earlier (200 ms): so none was lost.
const PATIENCE: Duration = Duration::from_millis(100);

fn address(n: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, n as u8, 1], 9527))
}

fn key() -> NetKey {
    NetKey::new(&[7; 32]).unwrap()
}

/// Two nets and the wires between them, on which nothing is lost.
struct Pair {
    nets: [Net; 2],
    now: Time,
    ticks: u64,
    wires: [VecDeque<(u64, Vec<u8>)>; 2],
    sent: VecDeque<Time>,
    answers: u64,
    begun: u64,
    changed: u64,
    sessions: [Option<SessionId>; 2],
}

impl Pair {
    fn up() -> Pair {
        let now = Time::from_micros(1_000_000);
        let net = |n: u8| {
            let mut config = Config::new(Id([n; 16]), key(), DeviceKey::from_bytes([n; 32]));
            // A thousand changes in seconds are what nobody else would want.
            config.limits.dh_rate = Rate::new(100_000, 100_000);
            config.limits.rekey_rate = Rate::new(100_000, 100_000);
            Net::new(config, [n; 32], now)
        };
        let mut pair = Pair {
            nets: [net(1), net(2)],
            now,
            ticks: 0,
            wires: [VecDeque::new(), VecDeque::new()],
            sent: VecDeque::new(),
            answers: 0,
            begun: 0,
            changed: 0,
            sessions: [None; 2],
        };
        let route = Route::Direct(address(1));
        pair.sessions[0] = pair.nets[0].connect(now, Id([2; 16]), &PeerKey::Net(key()), route).ok();
        while pair.sessions[1].is_none() {
            pair.tick();
        }
        pair
    }

    fn tick(&mut self) {
        self.now = self.now + TICK;
        self.ticks += 1;
        for to in 0..2 {
            self.nets[to].handle_timeout(self.now);
            while self.wires[to].front().is_some_and(|(arrival, _)| *arrival <= self.ticks) {
                let (_, mut bytes) = self.wires[to].pop_front().unwrap();
                self.nets[to].handle_datagram(self.now, address(1 - to), &mut bytes);
                self.poll(to);
            }
            self.poll(to);
        }
    }

    fn poll(&mut self, net: usize) {
        loop {
            match self.nets[net].poll_output(self.now) {
                Output::Timeout(_) => return,
                Output::Datagram { bytes, .. } => self.wires[1 - net].push_back((self.ticks + DELAY, bytes)),
                Output::Event(event) => self.on_event(net, event),
                other => panic!("two nets without a host want no {other:?}"),
            }
        }
    }

    fn on_event(&mut self, net: usize, event: Event) {
        let now = self.now;
        match event {
            Event::Connected { .. } => {}
            Event::Accepted { session, .. } => self.sessions[net] = Some(session),
            Event::Request { incoming, message, .. } => {
                self.nets[net].respond(now, incoming, Code::CHANGED, &OptionSet::default(), &[1]).unwrap();
                self.nets[net].recycle(message);
            }
            Event::Response { message, .. } => {
                self.nets[net].recycle(message);
                let sent = self.sent.pop_front().expect("no more answers than requests");
                assert!(
                    now.since(sent) < PATIENCE,
                    "an answer took {:?}: something was lost",
                    now.since(sent)
                );
                self.answers += 1;
            }
            Event::ControlDone { result, .. } => {
                result.unwrap();
                self.changed += 1;
            }
            event => panic!("{event:?}"),
        }
    }

    fn post(&mut self) {
        let options = OptionSet::default();
        let deadline = self.now + Duration::from_secs(30);
        let request = Request {
            code: Code::POST,
            options: &options,
            payload: &[7; 64],
            confirmable: true,
            repeatable: false,
            deadline,
        };
        let id = RequestId(self.begun);
        self.nets[0].request(self.now, self.sessions[0].unwrap(), id, &request).unwrap();
        self.sent.push_back(self.now);
        self.begun += 1;
    }
}

#[test]
fn requests_go_on_while_keys_change() {
    let mut pair = Pair::up();
    let mut wanted = 0;
    while pair.answers < REQUESTS {
        while pair.begun < REQUESTS && pair.begun - pair.answers < IN_FLIGHT {
            pair.post();
            if pair.begun.is_multiple_of(REQUESTS / REKEYS) {
                // One side, the other side, now and then with a secret.
                let by = (pair.begun / 1_000 % 2) as usize;
                let secret = [by as u8; 16];
                let secret = pair.begun.is_multiple_of(3).then_some(&secret[..]);
                pair.nets[by].rekey(pair.now, pair.sessions[by].unwrap(), RequestId(wanted), secret).unwrap();
                wanted += 1;
            }
        }
        pair.tick();
    }
    while pair.changed < REKEYS {
        pair.tick();
    }
    assert_eq!((pair.answers, pair.changed, wanted), (REQUESTS, REKEYS, REKEYS));
    for net in &pair.nets {
        let dropped: Vec<_> =
            Drop::ALL.into_iter().map(|why| (why.name(), net.stats().dropped(why))).collect();
        assert!(dropped.iter().all(|(_, count)| *count == 0), "{dropped:?}");
    }
}
