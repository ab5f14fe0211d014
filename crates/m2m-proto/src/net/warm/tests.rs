use super::*;
use crate::{
    coap::{code::Code, message::Message, option_set::OptionSet},
    config::Config,
    event::{Event, Output, RequestId},
    id::Id,
    net::{Request, Route},
    session::keys::{DeviceKey, NetKey, PeerKey},
    time::{Duration, Time},
};
use core::net::SocketAddr;
use proptest::prelude::*;
use std::{vec, vec::Vec};

const ROUTE: Route =
    Route::Direct(SocketAddr::V4(core::net::SocketAddrV4::new(core::net::Ipv4Addr::new(10, 0, 0, 2), 9527)));

/// Two nets with several sessions between them, and every datagram that went from one to the other.
struct Pair {
    nets: [Net; 2],
    sessions: Vec<SessionId>,
    now: Time,
    answered: u64,
    datagrams: Vec<Vec<u8>>,
}

impl Pair {
    fn new(warm_sessions: usize, sessions: usize) -> Pair {
        let now = Time::from_micros(1_000_000);
        let key = || NetKey::new(&[7; 32]).unwrap();
        let nets = [1, 2].map(|n| {
            let mut config = Config::new(Id([n; 16]), key(), DeviceKey::from_bytes([n; 32]));
            config.limits.warm_sessions = warm_sessions;
            config.limits.rekey_packets = 32;
            Net::new(config, [n; 32], now)
        });
        let mut pair = Pair { nets, sessions: vec![], now, answered: 0, datagrams: vec![] };
        for _ in 0..sessions {
            let session = pair.nets[0].connect(now, Id([2; 16]), &PeerKey::Net(key()), ROUTE).unwrap();
            pair.sessions.push(session);
        }
        pair.settle();
        pair
    }

    fn settle(&mut self) {
        let mut is_busy = true;
        while core::mem::take(&mut is_busy) {
            for from in 0..2 {
                loop {
                    let output = self.nets[from].poll_output(self.now);
                    is_busy |= !matches!(output, Output::Timeout(_));
                    match output {
                        Output::Timeout(_) => break,
                        Output::Datagram { mut bytes, .. } => {
                            self.datagrams.push(bytes.clone());
                            let here = SocketAddr::from(([10, 0, 0, from as u8 + 1], 9527));
                            self.nets[1 - from].handle_datagram(self.now, here, &mut bytes);
                        }
                        Output::Event(Event::Request { incoming, message, .. }) => {
                            let payload = Message::parse(&message).unwrap().payload();
                            let (net, options) = (&mut self.nets[from], OptionSet::default());
                            net.respond(self.now, incoming, Code::CHANGED, &options, payload).unwrap();
                        }
                        Output::Event(Event::Response { .. }) => self.answered += 1,
                        _ => {}
                    }
                }
            }
        }
    }

    fn ask(&mut self, nth: usize) {
        self.now = self.now + Duration::from_millis(1);
        let request = Request {
            code: Code::POST,
            options: &OptionSet::default(),
            payload: b"on",
            confirmable: true,
            repeatable: false,
            deadline: self.now + Duration::from_secs(30),
        };
        let session = self.sessions[nth % self.sessions.len()];
        self.nets[0].request(self.now, session, RequestId(0), &request).unwrap();
        self.settle();
    }

    fn close(&mut self, nth: usize) {
        let session = self.sessions.swap_remove(nth % self.sessions.len());
        self.nets[0].close(self.now, session);
        self.settle();
        self.now = self.now + Duration::from_secs(4);
        self.nets.iter_mut().for_each(|net| net.handle_timeout(self.now));
        self.settle();
    }

    fn warm(&self) -> [usize; 2] {
        self.nets.each_ref().map(|net| {
            let sessions = net.table.all().filter_map(|id| net.table.get(id)?.secure.as_ref());
            sessions.filter(|secure| secure.has_ciphers()).count()
        })
    }
}

#[test]
fn no_more_are_warm_than_may_be_and_the_busy_ones_stay() {
    let mut pair = Pair::new(4, 12);
    (0..200).for_each(|n| pair.ask(if n % 2 == 0 { 0 } else { n }));
    assert_eq!((pair.answered, pair.warm()), (200, [4, 4]));
    let busy = pair.sessions[0];
    assert!(pair.nets[0].table.get(busy).unwrap().secure.as_ref().unwrap().has_ciphers());
}

#[test]
fn round_keys_go_with_their_session() {
    let mut pair = Pair::new(64, 3);
    (0..6).for_each(|n| pair.ask(n));
    assert_eq!(pair.warm(), [3, 3]);
    pair.close(1);
    assert_eq!(pair.warm(), [2, 2]);
    let place = pair.nets[0].warm.places.clone();
    assert_eq!(place.len(), 3, "its turn comes round, and is free then");
}

#[test]
fn a_place_left_by_a_closed_session_is_taken() {
    let mut pair = Pair::new(2, 4);
    (0..8).for_each(|n| pair.ask(n));
    (0..2).for_each(|_| pair.close(0));
    (0..8).for_each(|n| pair.ask(n));
    assert_eq!((pair.answered, pair.warm()), (16, [2, 2]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Whatever is kept: through evictions, changes of keys (every 32 packets) and closes.
    #[test]
    fn the_same_bytes_leave_with_and_without(steps in prop::collection::vec((0usize..8, 0u8..40), 150)) {
        let run = |limit| {
            let mut pair = Pair::new(limit, 7);
            for (nth, kind) in &steps {
                match kind {
                    0 if pair.sessions.len() > 1 => pair.close(*nth),
                    _ => pair.ask(if *kind % 2 == 0 { 0 } else { *nth }),
                }
            }
            (pair.answered, pair.datagrams)
        };
        let without = run(0);
        for limit in [1, 3, 100] {
            prop_assert!(run(limit) == without, "{limit}");
        }
    }
}
