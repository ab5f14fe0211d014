//! What the core costs without any I/O: `cargo bench -p m2m-proto`.
use std::{hint::black_box, net::SocketAddr, time::Duration};

use criterion::{BatchSize, Criterion};
use m2m_proto::{
    coap::{code::Code, message::Message, option_set::OptionSet},
    config::Config,
    event::{ClaimOutcome, Event, Output, RequestId, SessionId},
    id::Id,
    net::{HostConfig, Net, Request, Route},
    session::{
        Secure,
        handshake::{Established, InitFields, Initiator, open_init},
        keys::{DeviceKey, DhSecret, NetKey, PeerKey, Suite, SuiteSet},
    },
    time::Time,
    wire::{
        bundle::elements,
        frame::{Frame, RelayFlags, Req},
        packet::{Caps, KeyId, Packet, RespPayload, Token},
    },
};

const NOW: Time = Time::from_micros(1_000_000);

fn id(n: u8) -> Id {
    Id([n; 16])
}

fn key(n: u8) -> NetKey {
    NetKey::new(&[n; 32]).unwrap()
}

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, n, 1], 9527))
}

fn net(n: u8, change: impl FnOnce(&mut Config)) -> Net {
    let mut config = Config::new(id(n), key(n), DeviceKey::from_bytes([n; 32]));
    config.limits.dh_rate = m2m_proto::config::Rate::new(u32::MAX, u32::MAX);
    config.limits.proven_dh_rate = m2m_proto::config::Rate::new(u32::MAX, u32::MAX);
    config.limits.init_rate = m2m_proto::config::Rate::new(u32::MAX, u32::MAX);
    config.limits.relay_packets = m2m_proto::config::Rate::new(u32::MAX, u32::MAX);
    config.limits.relay_bytes = m2m_proto::config::Rate::new(u32::MAX, u32::MAX);
    change(&mut config);
    Net::new(config, [n; 32], NOW)
}

/// Carries out what every net wants, until none wants anything; requests are answered with their own payload.
fn settle(nets: &mut [(u8, Net)], now: Time) {
    let mut busy = true;
    while core::mem::take(&mut busy) {
        for from in 0..nets.len() {
            loop {
                let (number, net) = &mut nets[from];
                let here = address(*number);
                match net.poll_output(now) {
                    Output::Timeout(_) => break,
                    Output::Datagram { to, mut bytes } => {
                        if let Some((_, peer)) = nets.iter_mut().find(|(n, _)| address(*n) == to) {
                            peer.handle_datagram(now, here, &mut bytes);
                        }
                        nets[from].1.recycle(bytes);
                    }
                    Output::Claim(claim) => net.claim_checked(now, claim.session, ClaimOutcome::Held),
                    Output::Event(Event::Request { incoming, message, .. }) => {
                        let payload = Message::parse(&message).unwrap().payload();
                        net.respond(now, incoming, Code::CHANGED, &OptionSet::default(), payload).unwrap();
                        net.recycle(message);
                    }
                    Output::Event(Event::Response { message, .. }) => net.recycle(message),
                    _ => {}
                }
                busy = true;
            }
        }
    }
}

fn pair(suite: Suite) -> (Vec<(u8, Net)>, SessionId) {
    let mut nets =
        vec![(1, net(1, |config| config.suites = vec![suite])), (2, net(2, |c| c.suites = vec![suite]))];
    let route = Route::Direct(address(1));
    let session = nets[1].1.connect(NOW, id(1), &PeerKey::Net(key(1)), route).unwrap();
    settle(&mut nets, NOW);
    (nets, session)
}

fn ask(net: &mut Net, now: Time, session: SessionId, n: u64) {
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
    net.request(now, session, RequestId(n), &request).unwrap();
}

fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    let message = [0x44, 0x01, 0x12, 0x34, 1, 2, 3, 4, 0xB4, b't', b'e', b'm', b'p', 0xFF, b'a', b'b', b'c'];
    group.bench_function("message", |b| {
        b.iter(|| {
            let message = Message::parse(black_box(&message)).unwrap();
            message.options().count() + message.payload().len()
        });
    });
    let mut frame = Vec::new();
    Frame::Relay { hop_limit: 16, flags: RelayFlags(0), dst: id(1), src: id(2), inner: &[0x41; 64] }
        .encode(&mut frame);
    group.bench_function("relay frame", |b| b.iter(|| elements(black_box(&frame)).unwrap().count()));
    let bundle = [0x3F, 5, 1, 0, 1, 0, 25, 4, 0x40, 1, 0x12, 0x34];
    group.bench_function("bundle of two", |b| b.iter(|| elements(black_box(&bundle)).unwrap().count()));
    group.bench_function("short packet", |b| {
        b.iter(|| Packet::decode(black_box(&[0x41; 87])).is_ok());
    });
    group.finish();
}

fn established(suite: Suite) -> (Established, Established) {
    let fields = InitFields {
        dst: id(1),
        src: id(2),
        stoken: Token::new(7).unwrap(),
        key_id: KeyId(0),
        suites: SuiteSet::of(&[suite]),
        caps: Caps(0),
        max_udp: 1200,
    };
    let pair = key(1).pair(id(2), id(1));
    let initiator = Initiator::start(&fields, &pair, DhSecret::from_bytes([1; 32]));
    let Ok(Packet::Init(init)) = Packet::decode(initiator.init()) else { unreachable!("an INIT") };
    let ctoken = Token::new(8).unwrap();
    let resp = RespPayload { ctoken, suite, caps: Caps(0), max_udp: 1200, mem_s: 0, unix_s: 0 };
    let (bytes, there) =
        open_init(&init, &pair).unwrap().respond(id(1), DhSecret::from_bytes([2; 32]), &resp).unwrap();
    let Ok(Packet::Resp(resp)) = Packet::decode(&bytes) else { unreachable!("a RESP") };
    (initiator.read_resp(&resp).unwrap(), there)
}

fn seal_and_open(c: &mut Criterion) {
    let mut group = c.benchmark_group("seal and open 64 B");
    for (name, suite) in [
        ("AES-128-GCM", Suite::Aes128Gcm),
        ("AES-256-GCM", Suite::Aes256Gcm),
        ("AES-128-CCM-8", Suite::Aes128Ccm8),
    ] {
        let (here, there) = established(suite);
        let (mut here, mut there) = (Secure::new(&here), Secure::new(&there));
        let mut packet = Vec::with_capacity(128);
        group.bench_function(name, |b| {
            b.iter(|| {
                here.begin(&mut packet);
                packet.extend_from_slice(black_box(&[0x40; 64]));
                here.seal(&mut packet);
                here.answered(m2m_proto::session::pn::Pn(here.next_pn().0 - 1));
                there.open(&mut packet).unwrap()
            });
        });
    }
    group.finish();
}

fn request_response(c: &mut Criterion) {
    let mut group = c.benchmark_group("request and response of 64 B, both sides");
    for (name, suite) in [("AES-128-GCM", Suite::Aes128Gcm), ("AES-128-CCM-8", Suite::Aes128Ccm8)] {
        let ((mut nets, mut session), mut n) = (pair(suite), 0);
        group.bench_function(name, |b| {
            b.iter(|| {
                if nets[1].1.info(session).is_none_or(|info| !info.up) {
                    // The key limit ended it: a new one, once in 8 million.
                    (nets, session) = pair(suite);
                }
                n += 1;
                let now = NOW + Duration::from_micros(n);
                ask(&mut nets[1].1, now, session, n);
                settle(&mut nets, now);
            });
        });
        let ((mut nets, mut session), mut n) = (pair(suite), 0);
        group.bench_function(format!("{name}, 16 at once"), |b| {
            b.iter(|| {
                if nets[1].1.info(session).is_none_or(|info| !info.up) {
                    (nets, session) = pair(suite);
                }
                let now = NOW + Duration::from_micros(n);
                for _ in 0..16 {
                    n += 1;
                    ask(&mut nets[1].1, now, session, n);
                }
                settle(&mut nets, now);
            });
        });
    }
    group.finish();
}

fn handshake(c: &mut Criterion) {
    let mut group = c.benchmark_group("handshake");
    let mut nets = vec![(1, net(1, |_| ())), (2, net(2, |_| ()))];
    let mut now = NOW;
    group.bench_function("both sides, with the first packets and the close", |b| {
        b.iter(|| {
            now = now + Duration::from_secs(4);
            nets.iter_mut().for_each(|(_, net)| net.handle_timeout(now));
            let route = Route::Direct(address(1));
            let session = nets[1].1.connect(now, id(1), &PeerKey::Net(key(1)), route).unwrap();
            settle(&mut nets, now);
            assert!(nets[1].1.info(session).unwrap().up);
            nets[1].1.close(now, session);
            settle(&mut nets, now);
        });
    });
    let fields = InitFields {
        dst: id(1),
        src: id(2),
        stoken: Token::new(7).unwrap(),
        key_id: KeyId(0),
        suites: SuiteSet::of(&[Suite::Aes128Gcm]),
        caps: Caps(0),
        max_udp: 1200,
    };
    let wrong = key(9).pair(id(2), id(1));
    let forged = *Initiator::start(&fields, &wrong, DhSecret::from_bytes([1; 32])).init();
    let mut responder = net(1, |_| ());
    let mut now = NOW;
    group.bench_function("forged INIT refused", |b| {
        b.iter_batched_ref(
            || forged,
            |init| {
                now = now + Duration::from_micros(1);
                responder.handle_datagram(now, address(2), init);
            },
            BatchSize::SmallInput,
        );
    });
    assert_eq!(responder.stats().handshakes, 0);
    group.finish();
}

fn relay(c: &mut Criterion) {
    let mut nets = vec![
        (1, net(1, |config| (config.registry, config.relay) = (true, true))),
        (2, net(2, |_| ())),
        (3, net(3, |_| ())),
    ];
    for n in [1, 2] {
        let host = HostConfig { id: id(1), key: PeerKey::Net(key(1)), addresses: vec![address(1)] };
        nets[n].1.add_host(NOW, host).unwrap();
    }
    settle(&mut nets, NOW);
    let session = nets[2].1.connect(NOW, id(2), &PeerKey::Net(key(2)), Route::Host).unwrap();
    settle(&mut nets, NOW);
    assert!(nets[2].1.info(session).unwrap().up);
    let mut n = 0;
    c.bench_function("request and response of 64 B through a host, all three nets", |b| {
        b.iter(|| {
            n += 1;
            let now = NOW + Duration::from_micros(n);
            ask(&mut nets[2].1, now, session, n);
            settle(&mut nets, now);
        });
    });

    // The host alone: a packet of guest 2 comes in, and leaves for guest 3.
    let mut inner = [0x41; 87];
    inner[1] = 9;
    let fields = InitFields {
        dst: id(1),
        src: id(4),
        stoken: Token::new(0x4444).unwrap(),
        key_id: KeyId(0),
        suites: SuiteSet::of(&[Suite::Aes128Gcm]),
        caps: Caps(0),
        max_udp: 1200,
    };
    let pair = key(1).pair(id(4), id(1));
    let initiator = Initiator::start(&fields, &pair, DhSecret::from_bytes([4; 32]));
    let host = &mut nets[0].1;
    host.handle_datagram(NOW, address(4), &mut initiator.init().clone());
    let resp = loop {
        match host.poll_output(NOW) {
            Output::Datagram { bytes, .. } => break bytes,
            Output::Timeout(_) => unreachable!("there is a RESP"),
            _ => {}
        }
    };
    let Ok(Packet::Resp(resp)) = Packet::decode(&resp) else { unreachable!("a RESP") };
    let mut secure = Secure::new(&initiator.read_resp(&resp).unwrap());
    let epoch = m2m_proto::wire::frame::Epoch(1);
    let register = Frame::Register { req: Req(1), ephemeral: true, epoch, lease_s: 120 };
    let mut packet = Vec::new();
    secure.begin(&mut packet);
    register.encode(&mut packet);
    secure.seal(&mut packet);
    host.handle_datagram(NOW, address(4), &mut packet);
    settle(&mut nets, NOW);
    assert_eq!(nets[0].1.registrations(), 3);
    let host = &mut nets[0].1;
    let mut n = 0;
    c.bench_function("relay: a packet of 64 B opened, decided on, sealed for the next hop", |b| {
        b.iter_batched_ref(
            || {
                secure.begin(&mut packet);
                Frame::Relay { hop_limit: 16, flags: RelayFlags(0), dst: id(3), src: id(4), inner: &inner }
                    .encode(&mut packet);
                secure.seal(&mut packet);
                secure.answered(m2m_proto::session::pn::Pn(secure.next_pn().0 - 1));
                packet.clone()
            },
            |packet| {
                n += 1;
                let now = NOW + Duration::from_micros(n);
                host.handle_datagram(now, address(4), packet);
                while let Output::Datagram { bytes, .. } = host.poll_output(now) {
                    host.recycle(bytes);
                }
            },
            BatchSize::SmallInput,
        );
    });
    assert!(host.stats().relayed >= n, "each was forwarded");
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for bench in [parse, seal_and_open, request_response, handshake, relay] {
        bench(&mut criterion);
    }
    criterion.final_summary();
}
