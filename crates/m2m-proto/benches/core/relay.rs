//! What a host does for others.
use std::time::Duration;

use criterion::{BatchSize, Criterion};
use m2m_proto::{
    event::Output,
    net::{HostConfig, Net, Route},
    session::{
        Secure,
        handshake::Initiator,
        keys::{Crypto, DhSecret, PeerKey, Suite},
        pn::Pn,
    },
    wire::frame::{Epoch, Frame, RelayFlags, Req},
};

use super::{NOW, address, as_resp, ask, id, init_fields, key, net, sent, settle};

pub(crate) fn bench(c: &mut Criterion) {
    let mut nets = host_and_guests();
    end_to_end(c, &mut nets);
    host_alone(c, &mut nets);
}

/// Host 1, and its guests 2 and 3.
fn host_and_guests() -> Vec<(u8, Net)> {
    let mut nets = vec![
        (1, net(1, |config| (config.registry, config.relay) = (true, true))),
        (2, net(2, |_| ())),
        (3, net(3, |_| ())),
    ];
    for (_, guest) in &mut nets[1..] {
        let host = HostConfig { id: id(1), key: PeerKey::Net(key(1)), addresses: vec![address(1)] };
        guest.add_host(NOW, host).unwrap();
    }
    settle(&mut nets, NOW);
    nets
}

fn end_to_end(c: &mut Criterion, nets: &mut [(u8, Net)]) {
    let session = nets[2].1.connect(NOW, id(2), &PeerKey::Net(key(2)), Route::Host).unwrap();
    settle(nets, NOW);
    assert!(nets[2].1.info(session).unwrap().up);
    let mut n = 0;
    c.bench_function("request and response of 64 B through a host, all three nets", |b| {
        b.iter(|| {
            n += 1;
            let now = NOW + Duration::from_micros(n);
            ask(&mut nets[2].1, now, session, n);
            settle(nets, now);
        });
    });
}

/// A guest of the host whose packets are made here: what it seals with.
fn guest(host: &mut Net) -> Secure {
    let pair = key(1).pair(id(4), id(1));
    let ephemeral = DhSecret::with(Crypto::FASTEST, [4; 32]);
    let initiator = Initiator::start(&init_fields(id(4), Suite::Aes128Gcm), &pair, ephemeral);
    host.handle_datagram(NOW, address(4), &mut initiator.init().clone());
    let mut secure = Secure::new(&initiator.read_resp(&as_resp(&sent(host, NOW))).unwrap());
    let mut packet = Vec::new();
    secure.begin(&mut packet);
    Frame::Register { req: Req(1), ephemeral: true, epoch: Epoch(1), lease_s: 120 }.encode(&mut packet);
    secure.seal(&mut packet);
    host.handle_datagram(NOW, address(4), &mut packet);
    secure
}

fn host_alone(c: &mut Criterion, nets: &mut [(u8, Net)]) {
    let mut secure = guest(&mut nets[0].1);
    settle(nets, NOW);
    let host = &mut nets[0].1;
    assert_eq!(host.registrations(), 3);
    let mut inner = [0x41; 87];
    inner[1] = 9;
    let (mut n, mut packet) = (0, Vec::new());
    c.bench_function("relay: a packet of 64 B opened, decided on, sealed for the next hop", |b| {
        b.iter_batched_ref(
            || {
                secure.begin(&mut packet);
                Frame::Relay { hop_limit: 16, flags: RelayFlags(0), dst: id(3), src: id(4), inner: &inner }
                    .encode(&mut packet);
                secure.seal(&mut packet);
                secure.answered(Pn(secure.next_pn().0 - 1));
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
