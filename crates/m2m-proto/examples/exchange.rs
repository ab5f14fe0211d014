//! Requests of 64 bytes and their responses between two nets in memory, for a profiler:
//! `valgrind --tool=callgrind target/release/examples/exchange 10000`.
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

const START: Time = Time::from_micros(1_000_000);

fn key() -> NetKey {
    NetKey::new(&[7; 32]).unwrap()
}

fn address(n: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, n as u8, 1], 9527))
}

/// Carries out what both want, until neither wants anything; requests are answered with their own payload.
fn settle(nets: &mut [Net; 2], now: Time) -> u64 {
    let (mut busy, mut answers) = (true, 0);
    while std::mem::take(&mut busy) {
        for from in 0..2 {
            loop {
                match nets[from].poll_output(now) {
                    Output::Timeout(_) => break,
                    Output::Datagram { mut bytes, .. } => {
                        nets[1 - from].handle_datagram(now, address(from), &mut bytes);
                        nets[from].recycle(bytes);
                    }
                    Output::Event(Event::Request { incoming, message, .. }) => {
                        let payload = Message::parse(&message).unwrap().payload();
                        let options = OptionSet::default();
                        nets[from].respond(now, incoming, Code::CHANGED, &options, payload).unwrap();
                        nets[from].recycle(message);
                    }
                    Output::Event(Event::Response { message, .. }) => {
                        nets[from].recycle(message);
                        answers += 1;
                    }
                    _ => {}
                }
                busy = true;
            }
        }
    }
    answers
}

fn ask(net: &mut Net, now: Time, session: SessionId, n: u64) {
    let request = Request {
        code: Code::POST,
        options: &OptionSet::default(),
        payload: &[7; 64],
        confirmable: true,
        repeatable: false,
        deadline: now + Duration::from_secs(30),
    };
    net.request(now, session, RequestId(n), &request).unwrap();
}

#[expect(clippy::disallowed_methods, reason = "an example has a clock; the machine has none")]
fn main() {
    let number = |n: usize, default: u64| std::env::args().nth(n).map_or(default, |n| n.parse().unwrap());
    let (count, at_once) = (number(1, 1_000_000), number(2, 1));
    let mut nets = [1, 2]
        .map(|n| Net::new(Config::new(Id([n; 16]), key(), DeviceKey::from_bytes([n; 32])), [n; 32], START));
    let route = Route::Direct(address(1));
    let session = nets[0].connect(START, Id([2; 16]), &PeerKey::Net(key()), route).unwrap();
    settle(&mut nets, START);
    let began = std::time::Instant::now();
    let (mut answers, mut n) = (0, 0);
    while n < count {
        let now = START + Duration::from_micros(n);
        for _ in 0..at_once {
            n += 1;
            ask(&mut nets[0], now, session, n);
        }
        answers += settle(&mut nets, now);
    }
    let each = began.elapsed().as_nanos() as f64 / n as f64;
    println!("{answers} of {n} answered, {each:.0} ns each");
}
