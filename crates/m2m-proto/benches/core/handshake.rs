//! Set-ups, and what strangers cost.
use std::{hint::black_box, time::Duration};

use criterion::{BatchSize, Criterion};
use m2m_proto::{
    id::Id,
    net::{Net, Route},
    session::{
        Secure,
        handshake::{Initiator, open_init},
        keys::{Crypto, DhSecret, PeerKey, Suite},
    },
    time::Time,
    wire::frame::{Frame, Req},
};

use super::{
    NOW, address, as_init, as_resp, crypto_name, id, init_fields, key, net, resp_fields, sent, settle,
};

const SUITE: Suite = Suite::Aes128Gcm;

pub(crate) fn bench(c: &mut Criterion) {
    initiator(c);
    responder(c);
    set_up(c);
    both(c);
    forged(c);
}

fn initiator(c: &mut Criterion) {
    let mut group = c.benchmark_group("handshake, initiator");
    let pair = key(1).pair(id(2), id(1));
    for &crypto in Crypto::ALL {
        let start = || {
            let ephemeral = DhSecret::with(crypto, black_box([1; 32]));
            Initiator::start(&init_fields(id(2), SUITE), &pair, ephemeral)
        };
        let initiator = start();
        let opened = open_init(&as_init(initiator.init()), &pair).unwrap();
        let (resp, _) = opened.respond(id(1), DhSecret::with(crypto, [2; 32]), &resp_fields(SUITE)).unwrap();
        let name = crypto_name(crypto);
        group.bench_function(format!("INIT made, {name}"), |b| b.iter(start));
        group.bench_function(format!("RESP read, packet keys made, {name}"), |b| {
            b.iter(|| initiator.read_resp(black_box(&as_resp(&resp))).unwrap().packet_keys());
        });
    }
    group.finish();
}

fn responder(c: &mut Criterion) {
    let mut group = c.benchmark_group("handshake, responder");
    let pair = key(1).pair(id(2), id(1));
    let ephemeral = DhSecret::with(Crypto::FASTEST, [1; 32]);
    let init = *Initiator::start(&init_fields(id(2), SUITE), &pair, ephemeral).init();
    for &crypto in Crypto::ALL {
        group.bench_function(
            format!("INIT opened, RESP and packet keys made, {}", crypto_name(crypto)),
            |b| {
                b.iter(|| {
                    let pair = key(1).pair(id(2), id(1));
                    let opened = open_init(black_box(&as_init(&init)), &pair).unwrap();
                    let ephemeral = DhSecret::with(crypto, black_box([2; 32]));
                    opened.respond(id(1), ephemeral, &resp_fields(SUITE)).unwrap().1.packet_keys()
                });
            },
        );
    }
    group.finish();
}

/// The initiator's two datagrams of one handshake; `twin` is a responder in the same state as the one that will be
/// measured, so that its RESP is the same.
fn datagrams(twin: &mut Net, now: Time, n: u64) -> ([u8; 104], Vec<u8>) {
    let mut src = [4; 16];
    src[..8].copy_from_slice(&n.to_be_bytes());
    let pair = key(1).pair(Id(src), id(1));
    let ephemeral = DhSecret::with(Crypto::FASTEST, [1; 32]);
    let initiator = Initiator::start(&init_fields(Id(src), SUITE), &pair, ephemeral);
    let init = *initiator.init();
    twin.handle_datagram(now, address(2), &mut init.clone());
    let resp = sent(twin, now);
    let mut secure = Secure::new(&initiator.read_resp(&as_resp(&resp)).unwrap());
    let mut first = Vec::new();
    secure.begin(&mut first);
    Frame::Ping { req: Req(1), next_s: 25 }.encode(&mut first);
    secure.seal(&mut first);
    answer(twin, now, &mut first.clone());
    (init, first)
}

/// The first packet under the new keys comes in, and its answer leaves.
fn answer(net: &mut Net, now: Time, first: &mut [u8]) {
    net.handle_datagram(now, address(2), first);
    let pong = sent(net, now);
    net.recycle(pong);
}

fn set_up(c: &mut Criterion) {
    let responder = || net(1, |config| config.limits.sessions = usize::MAX);
    let (mut twin, mut server) = (responder(), responder());
    let mut n = 0;
    let crypto = crypto_name(Crypto::FASTEST);
    c.bench_function(
        &format!("set-up in a server: INIT, RESP, the first packet, its answer, {crypto}"),
        |b| {
            b.iter_batched_ref(
                || {
                    n += 1;
                    let now = NOW + Duration::from_micros(n);
                    (now, datagrams(&mut twin, now, n))
                },
                |(now, (init, first))| {
                    server.handle_datagram(*now, address(2), init);
                    let resp = sent(&mut server, *now);
                    server.recycle(resp);
                    answer(&mut server, *now, first);
                },
                BatchSize::SmallInput,
            );
        },
    );
    assert_eq!((server.stats().handshakes, twin.stats().handshakes), (n, n));
}

fn both(c: &mut Criterion) {
    let mut nets = vec![(1, net(1, |_| ())), (2, net(2, |_| ()))];
    let mut now = NOW;
    let crypto = crypto_name(Crypto::FASTEST);
    c.bench_function(&format!("set-up, both sides, and the close, {crypto}"), |b| {
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
}

fn forged(c: &mut Criterion) {
    let wrong = key(9).pair(id(2), id(1));
    let ephemeral = DhSecret::with(Crypto::FASTEST, [1; 32]);
    let forged = *Initiator::start(&init_fields(id(2), SUITE), &wrong, ephemeral).init();
    let mut responder = net(1, |_| ());
    let mut now = NOW;
    c.bench_function("forged INIT refused", |b| {
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
}
