//! How often the machine asks for memory once a session is warm. Not a timed test: it counts.
use std::{net::SocketAddr, time::Duration};

use m2m_proto::{
    coap::{code::Code, message::Message, option_set::OptionSet},
    config::Config,
    event::{Event, Output, RequestId, SessionId},
    id::Id,
    net::{Net, Request, Route},
    session::keys::{DeviceKey, NetKey, PeerKey},
    time::Time,
};

fn address(n: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, n as u8, 1], 9527))
}

fn key() -> NetKey {
    NetKey::new(&[7; 32]).unwrap()
}

/// Two nets; all that they want done is done at once.
struct Pair([Net; 2], u64);

impl Pair {
    fn settle(&mut self, now: Time) {
        let mut busy = true;
        while std::mem::take(&mut busy) {
            for from in 0..2 {
                loop {
                    match self.0[from].poll_output(now) {
                        Output::Timeout(_) => break,
                        Output::Datagram { mut bytes, .. } => {
                            self.0[1 - from].handle_datagram(now, address(from), &mut bytes);
                            self.0[from].recycle(bytes);
                        }
                        Output::Event(event) => self.answer(now, from, event),
                        _ => {}
                    }
                    busy = true;
                }
            }
        }
    }

    fn answer(&mut self, now: Time, net: usize, event: Event) {
        let net = &mut self.0[net];
        match event {
            Event::Request { incoming, message, .. } => {
                let payload = Message::parse(&message).unwrap().payload();
                net.respond(now, incoming, Code::CHANGED, &OptionSet::default(), payload).unwrap();
                net.recycle(message);
            }
            Event::Response { message, .. } => {
                net.recycle(message);
                self.1 += 1;
            }
            _ => {}
        }
    }

    fn exchange(&mut self, now: Time, session: SessionId, n: u64) {
        let options = OptionSet::default();
        let deadline = now + Duration::from_secs(30);
        let request = Request {
            code: Code::POST,
            options: &options,
            payload: &[7; 64],
            confirmable: true,
            repeatable: false,
            deadline,
        };
        self.0[0].request(now, session, RequestId(n), &request).unwrap();
        self.settle(now);
    }
}

#[test]
fn a_warm_session_asks_for_no_memory() {
    let mut now = Time::from_micros(1_000_000);
    let net = |n: u8| Net::new(Config::new(Id([n; 16]), key(), DeviceKey::from_bytes([n; 32])), [n; 32], now);
    let mut pair = Pair([net(1), net(2)], 0);
    let route = Route::Direct(address(1));
    let session = pair.0[0].connect(now, Id([2; 16]), &PeerKey::Net(key()), route).unwrap();
    pair.settle(now);
    let mut n = 0;
    let mut rounds = |pair: &mut Pair, count: u64| {
        for _ in 0..count {
            n += 1;
            now = now + Duration::from_micros(100);
            pair.exchange(now, session, n);
        }
    };
    // More than the 256 answers that are kept for repetitions.
    rounds(&mut pair, 2_000);
    let measured = allocation_counter::measure(|| rounds(&mut pair, 1_000));
    assert_eq!((pair.1, measured.count_total), (3_000, 0), "{measured:?}");
    let boxed = allocation_counter::measure(|| drop(std::hint::black_box(Box::new(7))));
    assert_eq!(boxed.count_total, 1, "the counter counts");
}
