//! What the core costs without any I/O: `cargo xtask bench`, or `cargo xtask bench aws-lc` for both implementations of the
//! cryptography in one run.
mod codec;
mod handshake;
mod keys;
mod relay;
mod request;
mod timers;

use std::{net::SocketAddr, time::Duration};

use criterion::Criterion;
use m2m_proto::{
    coap::{code::Code, message::Message, option_set::OptionSet},
    config::{Config, Rate},
    event::{ClaimOutcome, Event, Output, RequestId, SessionId},
    id::Id,
    net::{Net, Request, Route},
    session::{
        handshake::{Established, InitFields, Initiator, open_init},
        keys::{Crypto, DeviceKey, DhSecret, NetKey, PeerKey, Suite, SuiteSet},
    },
    time::Time,
    wire::packet::{Caps, Init, KeyId, Packet, Resp, RespPayload, Token},
};

pub(crate) const NOW: Time = Time::from_micros(1_000_000);

pub(crate) fn id(n: u8) -> Id {
    Id([n; 16])
}

pub(crate) fn key(n: u8) -> NetKey {
    NetKey::new(&[n; 32]).unwrap()
}

pub(crate) fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, n, 1], 9527))
}

pub(crate) fn net(n: u8, change: impl FnOnce(&mut Config)) -> Net {
    let mut config = Config::new(id(n), key(n), DeviceKey::from_bytes([n; 32]));
    config.limits.dh_rate = Rate::new(u32::MAX, u32::MAX);
    config.limits.proven_dh_rate = Rate::new(u32::MAX, u32::MAX);
    config.limits.init_rate = Rate::new(u32::MAX, u32::MAX);
    config.limits.relay_packets = Rate::new(u32::MAX, u32::MAX);
    config.limits.relay_bytes = Rate::new(u32::MAX, u32::MAX);
    change(&mut config);
    Net::new(config, [n; 32], NOW)
}

/// Carries out what every net wants, until none wants anything; requests are answered with their own payload.
pub(crate) fn settle(nets: &mut [(u8, Net)], now: Time) {
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

pub(crate) fn pair(suite: Suite) -> (Vec<(u8, Net)>, SessionId) {
    let mut nets =
        vec![(1, net(1, |config| config.suites = vec![suite])), (2, net(2, |c| c.suites = vec![suite]))];
    let route = Route::Direct(address(1));
    let session = nets[1].1.connect(NOW, id(1), &PeerKey::Net(key(1)), route).unwrap();
    settle(&mut nets, NOW);
    (nets, session)
}

pub(crate) fn ask(net: &mut Net, now: Time, session: SessionId, n: u64) {
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

/// What net `src` says to net 1.
pub(crate) fn init_fields(src: Id, suite: Suite) -> InitFields {
    InitFields {
        dst: id(1),
        src,
        stoken: Token::new(0x4444).unwrap(),
        key_id: KeyId(0),
        suites: SuiteSet::of(&[suite]),
        caps: Caps(0),
        max_udp: 1200,
    }
}

pub(crate) fn resp_fields(suite: Suite) -> RespPayload {
    let ctoken = Token::new(8).unwrap();
    RespPayload { ctoken, suite, caps: Caps(0), max_udp: 1200, mem_s: 0, unix_s: 0 }
}

pub(crate) fn as_init(bytes: &[u8]) -> Init<'_> {
    let Ok(Packet::Init(init)) = Packet::decode(bytes) else { unreachable!("an INIT") };
    init
}

pub(crate) fn as_resp(bytes: &[u8]) -> Resp<'_> {
    let Ok(Packet::Resp(resp)) = Packet::decode(bytes) else { unreachable!("a RESP") };
    resp
}

/// Both sides of a handshake of net 2 with net 1.
pub(crate) fn established(suite: Suite) -> (Established, Established) {
    let pair = key(1).pair(id(2), id(1));
    let secret = |byte| DhSecret::with(Crypto::FASTEST, [byte; 32]);
    let initiator = Initiator::start(&init_fields(id(2), suite), &pair, secret(1));
    let opened = open_init(&as_init(initiator.init()), &pair).unwrap();
    let (resp, there) = opened.respond(id(1), secret(2), &resp_fields(suite)).unwrap();
    (initiator.read_resp(&as_resp(&resp)).unwrap(), there)
}

/// The datagram that a net wants to send at once.
pub(crate) fn sent(net: &mut Net, now: Time) -> Vec<u8> {
    loop {
        match net.poll_output(now) {
            Output::Datagram { bytes, .. } => break bytes,
            Output::Timeout(_) => unreachable!("there is something to send"),
            _ => {}
        }
    }
}

/// What an implementation is called in the names of benches.
pub(crate) fn crypto_name(crypto: Crypto) -> &'static str {
    match crypto {
        Crypto::RustCrypto => "RustCrypto",
        #[cfg(feature = "aws-lc")]
        Crypto::AwsLc => "AWS-LC",
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for bench in [codec::bench, keys::bench, handshake::bench, request::bench, relay::bench, timers::bench] {
        bench(&mut criterion);
    }
    criterion.final_summary();
}
