//! `m2m bench relay`: what a host forwards between devices, beside UDP forwarders.
//!
//! Every flow is a net that is registered with the host, and each sends to the next. The host sees RELAY frames as they
//! come from any net; what is inside belongs to others, and here only the one it is for reads it.
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use m2m_proto::session::SHORT_OVERHEAD;
use m2m_proto::session::keys::{DeviceKey, Role as Side};
use m2m_proto::wire::bundle::{Element, elements};
use m2m_proto::wire::frame::{Epoch, Frame, RelayFlags, Req};
use m2m_proto::wire::packet::Packet;
use serde_json::json;

use super::child::{Child, Start};
use super::figures::{grouped, rounded};
use super::load::{Load, Round};
use super::peers::{CONFIRM, Handshakes, PEERS, Peer, index_of};
use super::plain::{Plain, failed};
use super::request::{Contender, take_turns};
use super::serving::next_flow;
use super::udp::{Inbox, Outbox, Socket, flow_address};
use super::words::{Relay, Role};
use super::{Place, Secrets, numbered, table};
use crate::exit::Failure;
use crate::output::Output;

/// The packet that is forwarded: a POST of 64 bytes in a session of two devices. Head and token of the message, the
/// payload's marker, the payload, and what the session adds.
const INNER: usize = 4 + 4 + 1 + 64 + SHORT_OVERHEAD;
/// Hops that a packet may make: there is one.
const HOP_LIMIT: u8 = 16;
/// Longest lease that is asked for, in seconds; a bench is over before.
const LEASE_S: u32 = 600;
/// All are registered within this time.
const PATIENCE: Duration = Duration::from_secs(60);
/// One packet in so many is opened, to see that it is the right one; the client has no time for all.
const OPENED_EVERY: u64 = 61;
/// When nothing comes for so long, what is on its way was lost.
const LOST: Duration = Duration::from_millis(200);

pub(super) fn run(relay: &Relay, place: &Place, output: Output) -> Result<(), Failure> {
    let mut secrets = Secrets::new()?;
    let flows = relay.flows;
    let start =
        |role, port| Child::start(&Start { role, key: secrets.key(), sessions: flows, flows: (port, flows) });
    let (to_plain, to_batched) = (Socket::for_flows(flows)?, Socket::for_flows(flows)?);
    let mut host = start(Role::Net, 0)?;
    let mut plain = start(Role::Forward, to_plain.port()?)?;
    let mut batched = start(Role::ForwardBatched, to_batched.port()?)?;
    let place = place.with(&[&host, &plain, &batched]);
    let mut guests = Guests::register(&mut host, &mut secrets, flows)?;
    let mut plain_load = Plain::new(to_plain, plain.address, flows, INNER);
    let mut batched_load = Plain::new(to_batched, batched.address, flows, INNER);
    let mut contenders = [
        Contender::new("m2m, by id", &mut host, &mut guests),
        Contender::new("(a) plain UDP forwarder", &mut plain, &mut plain_load),
        Contender::new("(b) batched UDP forwarder", &mut batched, &mut batched_load),
    ];
    let lasts = Duration::from_millis(relay.pace.millis);
    take_turns(&mut contenders, relay.inflight, relay.pace.rounds, lasts, output)?;
    tell(relay, &place, &contenders, output)
}

fn tell(
    relay: &Relay,
    place: &Place,
    contenders: &[Contender<'_>; 3],
    output: Output,
) -> Result<(), Failure> {
    let [ours, plain, batched] = contenders;
    let cpu_ratio = ours.ratio_to(plain, Round::cpu_each);
    let rate_ratio = |other: &Contender<'_>| ours.ratio_to(other, |round| Some(round.rate()));
    let ratio_forwarder = rate_ratio(plain);
    let of = |value: Option<f64>, digits| value.map(|value| rounded(value, digits));
    let object = json!({
        "bench": "relay",
        "flows": relay.flows,
        "form": "id",
        "rate": of(ours.rate(), 0),
        "cpu_ns": of(ours.cpu(), 0),
        "cpu_ratio": of(cpu_ratio, 3),
        "ratio_forwarder": of(ratio_forwarder, 3),
    });
    let words = |ratio: Option<f64>| ratio.map_or_else(|| "?".to_owned(), |ratio| format!("{ratio:.2}"));
    let number = |value: Option<f64>| value.map_or_else(|| "?".to_owned(), grouped);
    let row =
        |one: &Contender<'_>| vec![one.name.to_owned(), number(one.rate()), number(one.cpu()), one.busy()];
    let rows: Vec<Vec<String>> = contenders.iter().map(row).collect();
    let text = format!(
        "packets of {INNER} bytes (64 of payload), {} on their way, {} flows; {} rounds of {} ms; {place}\n\n{}\n\
         The host's rate is {} of (a)'s and {} of (b)'s: above 1 it is faster. Its CPU for each packet is {} of (a)'s: below 1\n\
         it is cheaper, though it knows who sends what to whom by keys, not by addresses.",
        relay.inflight,
        relay.flows,
        relay.pace.rounds,
        relay.pace.millis,
        table(&["", "packets/s", "server CPU ns each", "server busy"], &rows),
        words(ratio_forwarder),
        words(rate_ratio(batched)),
        words(cpu_ratio),
    );
    output.line(&text, &object)
}

/// Nets that are registered with the host, by flow.
struct Guests {
    peers: Vec<Peer>,
    socket: Socket,
    inbox: Inbox,
    outbox: Outbox,
    server: SocketAddr,
    next: u32,
    inner: [u8; INNER],
    packet: Vec<u8>,
    /// Slots whose packets are on their way, the oldest first.
    open: VecDeque<u32>,
    came: u64,
    heard: Instant,
}

impl Guests {
    fn register(host: &mut Child, secrets: &mut Secrets, flows: u32) -> Result<Guests, Failure> {
        let mut handshakes = Handshakes::new(host.address, flows)?;
        handshakes.prepare(secrets, flows)?;
        let (key, epoch, mut peers) = (secrets.net_key()?, Epoch(unix_ms()), Vec::new());
        handshakes.run(
            || false,
            |established, first| {
                let mut peer = Peer::new(established);
                let device = DeviceKey::derived_from(&key, numbered(PEERS, peer.number().into()));
                let mut frames = vec![CONFIRM];
                // It fails for a public key of low order, which no host has: the registration would be refused.
                let proof = device.prove(&established.peer_ephemeral, established.hash(), Side::Initiator);
                if let Ok(proof) = &proof {
                    frames.push(Frame::Prove { public: &proof.public, mac: &proof.mac });
                }
                frames.push(Frame::Register { req: Req(1), ephemeral: false, epoch, lease_s: LEASE_S });
                peer.say(first, &frames);
                peers.push(peer);
            },
        )?;
        peers.sort_by_key(Peer::number);
        wait_until_registered(host, flows)?;
        Ok(Guests {
            peers,
            socket: handshakes.into_socket(),
            inbox: Inbox::new(),
            outbox: Outbox::new(),
            server: host.address,
            next: 0,
            inner: [0x41; INNER],
            packet: Vec::new(),
            open: VecDeque::new(),
            came: 0,
            heard: Instant::now(),
        })
    }

    fn send(&mut self, slot: u32) -> Result<(), Failure> {
        let (flow, flows) = (self.next, self.peers.len() as u32);
        let Some(peer) = self.peers.get_mut(flow as usize) else { return Ok(()) };
        self.next = next_flow(flow, flows);
        let frame = Frame::Relay {
            hop_limit: HOP_LIMIT,
            flags: RelayFlags(0),
            dst: numbered(PEERS, self.next.into()),
            src: numbered(PEERS, flow.into()),
            inner: &self.inner,
        };
        peer.say(&mut self.packet, &[frame]);
        self.open.push_back(slot);
        let from = IpAddr::from(flow_address(flow));
        self.outbox.push(&self.socket, self.server, Some(from), &self.packet).map_err(failed)
    }
}

impl Load for Guests {
    fn ask(&mut self, slot: u32) -> Result<(), Failure> {
        self.send(slot)
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.outbox.flush(&self.socket).map_err(failed)
    }

    fn take(&mut self, answered: &mut Vec<u32>) -> Result<(), Failure> {
        let Guests { peers, open, came, inner, .. } = self;
        let mut wrong = false;
        let some = self.inbox.receive(&self.socket, |datagram, _| {
            let Ok(Packet::Short(short)) = Packet::decode(datagram) else { return };
            let at = index_of(short.token);
            // What a host says of its own accord is shorter than what it forwards.
            if datagram.len() < INNER {
                return;
            }
            *came += 1;
            if came.is_multiple_of(OPENED_EVERY) {
                wrong |= peers.get_mut(at).is_none_or(|peer| !holds(peer, datagram, inner));
            }
            answered.extend(open.pop_front());
        });
        let some = some.map_err(failed)?;
        if wrong {
            return Err(Failure::Other("the host has forwarded something else than was sent".into()));
        }
        if some {
            self.heard = Instant::now();
        } else if self.heard.elapsed() > LOST {
            self.heard = Instant::now();
            let lost: Vec<u32> = self.open.drain(..).collect();
            lost.into_iter().try_for_each(|slot| self.send(slot))?;
            self.flush()?;
        }
        Ok(())
    }
}

/// True if a packet of the host holds a RELAY with this inside.
fn holds(peer: &mut Peer, datagram: &mut [u8], expected: &[u8]) -> bool {
    let Some(plain) = peer.open(datagram) else { return false };
    let mut read = elements(plain).into_iter().flatten();
    read.any(|element| matches!(element, Element::Frame(Frame::Relay { inner, .. }) if inner == expected))
}

fn wait_until_registered(host: &mut Child, flows: u32) -> Result<(), Failure> {
    let start = Instant::now();
    loop {
        let registered = host.read()?.registered;
        if registered >= u64::from(flows) {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            return Err(Failure::TimedOut(format!(
                "the host has registered only {registered} of {flows} nets"
            )));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Milliseconds since 1970; 0 on a machine that doesn't know.
fn unix_ms() -> u64 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
