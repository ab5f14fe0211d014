//! `m2m bench wire`: bytes on the wire for short messages. m2m's are counted: its machines talk in memory, directly and
//! through a host. The others' are added up from their specifications, each around the same CoAP message.
//!
//! What all have alike: 4 bytes that tell the session (m2m's token, a connection id, OSCORE's kid), numbers of packets of 2
//! bytes where there is a choice, and, relayed, the 4 bytes of a TURN channel (RFC 8656 section 12.4) for those that have
//! no relay of their own.
use std::net::SocketAddr;
use std::time::Duration;

use m2m::{Code, Id, OptionSet};
use m2m_proto::coap::message::Message;
use m2m_proto::config::Config;
use m2m_proto::event::{ClaimOutcome, Event, Output as Asked, RequestId, SessionId};
use m2m_proto::net::{HostConfig, Net, Request, Route};
use m2m_proto::session::keys::{DeviceKey, PeerKey, Suite};
use m2m_proto::time::Time;
use serde_json::{Value, json};

use super::{Secrets, table};
use crate::exit::Failure;
use crate::output::Output;

/// The payloads that are sent.
const PAYLOADS: [usize; 2] = [6, 32];
/// What tells a session from others, of those that leave its length open: as long as m2m's token.
const SESSION_ID: usize = 4;
/// A packet number, of those that leave its length open: as long as m2m's.
const PACKET_NUMBER: usize = 2;
/// The head of a TURN ChannelData message (RFC 8656 section 12.4); over UDP it needs no padding (section 12.5).
const TURN_CHANNEL: usize = 4;
/// AES-GCM's tag (RFC 5116 section 5.1), and CCM_8's (RFC 6655 section 4).
const TAG: usize = 16;
const TAG_8: usize = 8;
/// The nonce that AES-GCM and AES-CCM send with each record of DTLS 1.2 (RFC 5288 section 3, RFC 6655 section 3).
const EXPLICIT_NONCE: usize = 8;
/// A CoAP header (RFC 7252 section 3), and what stands before a payload.
const COAP_HEADER: usize = 4;
const MARKER: usize = 1;
/// When the machines in memory live: any time will do.
const UNIX_MS: u64 = 1_700_000_000_000;

/// How a packet is made up.
struct Packet {
    protocol: &'static str,
    payload: usize,
    is_relayed: bool,
    parts: Vec<(&'static str, usize)>,
    source: &'static str,
}

impl Packet {
    fn bytes(&self) -> usize {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }

    fn object(&self) -> Value {
        let parts: Vec<Value> =
            self.parts.iter().map(|(what, bytes)| json!({"part": what, "bytes": bytes})).collect();
        json!({
            "bench": "wire",
            "protocol": self.protocol,
            "payload": self.payload,
            "path": if self.is_relayed { "relayed" } else { "direct" },
            "bytes": self.bytes(),
            "parts": parts,
            "source": self.source,
        })
    }
}

/// The CoAP message that all of them carry.
#[derive(Clone, Copy)]
struct Carried {
    payload: usize,
    /// Of the CoAP token.
    token: usize,
}

impl Carried {
    fn len(self) -> usize {
        COAP_HEADER + self.token + MARKER + self.payload
    }
}

pub(super) fn run(output: Output) -> Result<(), Failure> {
    let mut packets = Vec::new();
    for payload in PAYLOADS {
        for is_relayed in [false, true] {
            let (ours, carried) = ours("m2m", Suite::Aes128Gcm, payload, is_relayed)?;
            packets.push(ours);
            packets.push(self::ours("m2m, AES-128-CCM-8", Suite::Aes128Ccm8, payload, is_relayed)?.0);
            let others = others(carried).into_iter().map(|(protocol, source, mut parts)| {
                if is_relayed {
                    parts.insert(0, ("TURN channel", TURN_CHANNEL));
                }
                Packet { protocol, payload, is_relayed, parts, source }
            });
            packets.extend(others);
        }
    }
    if output.is_json() {
        return packets.iter().try_for_each(|packet| output.object(&packet.object()));
    }
    output.line(&words(&packets), &Value::Null)
}

fn words(packets: &[Packet]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for packet in packets {
        if !names.contains(&packet.protocol) {
            names.push(packet.protocol);
        }
    }
    let cell = |name: &str, payload: usize, is_relayed: bool| {
        let same = |packet: &&Packet| {
            (packet.protocol, packet.payload, packet.is_relayed) == (name, payload, is_relayed)
        };
        packets.iter().find(same).map_or_else(String::new, |packet| packet.bytes().to_string())
    };
    let row = |name: &&str| {
        let cells =
            PAYLOADS.iter().flat_map(|payload| [cell(name, *payload, false), cell(name, *payload, true)]);
        std::iter::once((*name).to_owned()).chain(cells).collect()
    };
    let rows: Vec<Vec<String>> = names.iter().map(row).collect();
    let [small, large] = PAYLOADS;
    let heads = ["", &format!("{small} B"), "relayed", &format!("{large} B"), "relayed"];
    format!(
        "bytes of UDP payload for one confirmable message; IP and UDP add 28 to each (48 with IPv6)\n\n{}\n\
         m2m's are counted, the others' added up from their specifications around the same CoAP message; --json shows each\n\
         part. Relayed, m2m's host knows from keys who sends to whom, and is told ids of 16 bytes; the others' go through a\n\
         TURN channel that was opened before, whose relay is told by addresses alone.",
        table(&heads, &rows),
    )
}

/// A protocol, where it stands what it adds, and what that is.
type Other = (&'static str, &'static str, Vec<(&'static str, usize)>);

/// What others put around a CoAP message.
fn others(carried: Carried) -> Vec<Other> {
    let message = ("CoAP message", carried.len());
    // RFC 9146 section 4: type, version, epoch and sequence number, connection id, length; the true type is encrypted.
    let dtls_12 = |tag| {
        let header = 1 + 2 + 8 + SESSION_ID + 2;
        vec![
            ("record header", header),
            ("explicit nonce", EXPLICIT_NONCE),
            message,
            ("content type", 1),
            ("tag", tag),
        ]
    };
    // RFC 9147 section 4: one byte, connection id, sequence number; the last record of a datagram needs no length.
    let dtls_13 = |tag| {
        let header = 1 + SESSION_ID + PACKET_NUMBER;
        vec![("record header", header), message, ("content type", 1), ("tag", tag)]
    };
    // RFC 8613: the option is its head, flags, Partial IV and kid (section 6.1); code, marker and payload are encrypted
    // (section 5.3), with the 8-byte tag of AES-CCM-16-64-128 (section 3.2).
    let oscore = vec![
        ("CoAP header and token", COAP_HEADER + carried.token),
        ("OSCORE option", 1 + 1 + PACKET_NUMBER + SESSION_ID),
        ("payload marker", MARKER),
        ("encrypted code and marker", 1 + MARKER),
        ("payload", carried.payload),
        ("tag", TAG_8),
    ];
    // RFC 9000 section 17.3.1: one byte, connection id, packet number; RFC 9221 section 4: a DATAGRAM frame without a length;
    // RFC 9001 section 5.3: the tag.
    let quic = vec![
        ("short header", 1 + SESSION_ID + PACKET_NUMBER),
        ("DATAGRAM frame type", 1),
        message,
        ("tag", TAG),
    ];
    vec![
        (
            "DTLS 1.2 with CID, AES-128-GCM",
            "RFC 6347 section 4.1, RFC 9146 section 4, RFC 5288 section 3",
            dtls_12(TAG),
        ),
        (
            "DTLS 1.2 with CID, AES-128-CCM-8",
            "RFC 6347 section 4.1, RFC 9146 section 4, RFC 6655",
            dtls_12(TAG_8),
        ),
        ("DTLS 1.3 with CID, AES-128-GCM", "RFC 9147 section 4, RFC 8446 section 5.2", dtls_13(TAG)),
        (
            "DTLS 1.3 with CID, AES-128-CCM-8",
            "RFC 9147 section 4, RFC 8446 section 5.2, RFC 6655",
            dtls_13(TAG_8),
        ),
        ("OSCORE", "RFC 8613 sections 5.3 and 6.1", oscore),
        ("QUIC datagram", "RFC 9000 section 17.3.1, RFC 9001 section 5.3, RFC 9221 section 4", quic),
    ]
}

/// One packet of ours, counted; and the message in it.
fn ours(
    protocol: &'static str,
    suite: Suite,
    payload: usize,
    is_relayed: bool,
) -> Result<(Packet, Carried), Failure> {
    let mut world = World::new(suite, is_relayed)?;
    // The first requests may share their packets with what a session says once.
    let mut len = 0;
    for _ in 0..3 {
        len = world.ask(payload)?;
    }
    let token = world.seen.token.ok_or_else(unmeasured)?;
    let carried = Carried { payload, token };
    let tag = suite.tag_len();
    let sealed = 1 + SESSION_ID + PACKET_NUMBER;
    let mut parts = vec![("packet header", sealed), ("CoAP message", carried.len()), ("tag", tag)];
    let inner: usize = parts.iter().map(|(_, bytes)| bytes).sum();
    if is_relayed {
        let frame = len.checked_sub(inner + sealed + tag).ok_or_else(unmeasured)?;
        parts.insert(0, ("packet header to the host", sealed));
        parts.insert(1, ("RELAY frame, by id", frame));
        parts.push(("tag to the host", tag));
    }
    let packet = Packet { protocol, payload, is_relayed, parts, source: "measured" };
    if packet.bytes() == len { Ok((packet, carried)) } else { Err(unmeasured()) }
}

fn unmeasured() -> Failure {
    Failure::Other("the machines in memory did not send what was expected: this is a fault of m2m".into())
}

const HOST: usize = 0;
const DEVICE: usize = 1;
const APP: usize = 2;

/// A host, a device and an app, in memory.
struct World {
    nets: Vec<(SocketAddr, Net)>,
    session: Option<SessionId>,
    now: Time,
    requests: u64,
    /// What happened since somebody looked.
    seen: Seen,
}

#[derive(Default)]
struct Seen {
    /// The first datagram that left the app.
    datagram: Option<usize>,
    /// Bytes of the CoAP token that the device saw.
    token: Option<usize>,
    is_answered: bool,
}

impl World {
    /// The app has a session with the device, directly or through the host.
    fn new(suite: Suite, is_relayed: bool) -> Result<World, Failure> {
        let mut secrets = Secrets::new()?;
        let key = secrets.net_key()?;
        let now = Time::from_micros(1_000_000);
        let mut nets = Vec::new();
        for number in [HOST, DEVICE, APP] {
            let mut config = Config::new(id(number), key.clone(), DeviceKey::derived_from(&key, id(number)));
            config.suites = vec![suite];
            (config.registry, config.relay) = (number == HOST, number == HOST);
            let mut net = Net::new(config, secrets.seed()?, now);
            net.set_unix_time(now, UNIX_MS);
            nets.push((address(number), net));
        }
        let mut world = World { nets, session: None, now, requests: 0, seen: Seen::default() };
        let cannot = |why| Failure::Other(format!("can't connect machines in memory: {why}"));
        if is_relayed {
            for number in [DEVICE, APP] {
                let addresses = vec![address(HOST)];
                let host = HostConfig { id: id(HOST), key: PeerKey::Net(key.clone()), addresses };
                let Some((_, net)) = world.nets.get_mut(number) else { continue };
                net.add_host(now, host).map_err(cannot)?;
                world.settle();
            }
        }
        let route = if is_relayed { Route::Host } else { Route::Direct(address(DEVICE)) };
        if let Some((_, app)) = world.nets.get_mut(APP) {
            world.session = Some(app.connect(now, id(DEVICE), &PeerKey::Net(key), route).map_err(cannot)?);
        }
        world.settle();
        Ok(world)
    }

    /// Asks the device, and says how long the datagram was that asked.
    fn ask(&mut self, payload: usize) -> Result<usize, Failure> {
        // What a session says now and then has been said by now.
        self.now = self.now + Duration::from_secs(1);
        self.settle();
        self.seen = Seen::default();
        self.requests += 1;
        let (payload, options) = (vec![7; payload], OptionSet::default());
        let request = Request {
            code: Code::POST,
            options: &options,
            payload: &payload,
            confirmable: true,
            repeatable: false,
            deadline: self.now + Duration::from_secs(30),
        };
        if let (Some((_, app)), Some(session)) = (self.nets.get_mut(APP), self.session) {
            let asked = app.request(self.now, session, RequestId(self.requests), &request);
            asked.map_err(|why| Failure::Other(format!("can't ask a machine in memory: {why}")))?;
        }
        self.settle();
        self.seen.datagram.filter(|_| self.seen.is_answered).ok_or_else(unmeasured)
    }

    /// Does what all want done, until none wants anything more.
    fn settle(&mut self) {
        for (_, net) in &mut self.nets {
            net.handle_timeout(self.now);
        }
        let mut is_busy = true;
        while std::mem::take(&mut is_busy) {
            for number in [HOST, DEVICE, APP] {
                is_busy |= self.carry_out(number);
            }
        }
    }

    /// Does what one wants done; true if that was anything.
    fn carry_out(&mut self, number: usize) -> bool {
        let (now, mut did) = (self.now, false);
        while let Some((from, net)) = self.nets.get_mut(number) {
            let from = *from;
            match net.poll_output(now) {
                Asked::Timeout(_) => break,
                Asked::Datagram { to, mut bytes } => {
                    if number == APP {
                        self.seen.datagram.get_or_insert(bytes.len());
                    }
                    if let Some((_, peer)) = self.nets.iter_mut().find(|(address, _)| *address == to) {
                        peer.handle_datagram(now, from, &mut bytes);
                    }
                }
                Asked::Claim(claim) => net.claim_checked(now, claim.session, ClaimOutcome::Held),
                Asked::Event(Event::Request { incoming, message, .. }) => {
                    self.seen.token =
                        Message::parse(&message).ok().map(|message| message.token().as_bytes().len());
                    // It fails for a session that has ended, which would show in the lengths.
                    let _ = net.respond(now, incoming, Code::CHANGED, &OptionSet::default(), &[]);
                }
                Asked::Event(Event::Response { .. }) => self.seen.is_answered = true,
                _ => {}
            }
            did = true;
        }
        did
    }
}

fn id(number: usize) -> Id {
    super::numbered(0xB0, number as u64)
}

/// An address that no machine has (RFC 5737).
fn address(number: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number as u8 + 1], 9527))
}

#[cfg(test)]
mod tests {
    use super::*;
    use m2m_proto::wire::frame::RELAY_OVERHEAD;

    /// The limits that m2m sets itself: 23 bytes around a message, the same again and a RELAY frame around that.
    #[test]
    fn ours_are_as_long_as_the_protocol_says() {
        for payload in PAYLOADS {
            for (suite, overhead) in [(Suite::Aes128Gcm, 23), (Suite::Aes128Ccm8, 15)] {
                let (direct, carried) =
                    ours("m2m", suite, payload, false).unwrap_or_else(|why| panic!("{why:?}"));
                assert_eq!(direct.bytes(), carried.len() + overhead);
                let (relayed, same) =
                    ours("m2m", suite, payload, true).unwrap_or_else(|why| panic!("{why:?}"));
                assert_eq!(relayed.bytes(), direct.bytes() + overhead + RELAY_OVERHEAD);
                assert_eq!(carried.len(), same.len());
            }
        }
    }

    #[test]
    fn others_add_up_as_their_specifications_say() {
        let carried = Carried { payload: 32, token: 4 };
        let bytes: Vec<usize> =
            others(carried).iter().map(|(_, _, parts)| parts.iter().map(|(_, bytes)| bytes).sum()).collect();
        let message = 4 + 4 + 1 + 32;
        // 13 bytes of header, 8 of nonce and 16 of tag are DTLS 1.2's; the connection id and the inner type come on top.
        assert_eq!(bytes.first(), Some(&(message + 13 + 8 + 16 + SESSION_ID + 1)));
        // QUIC's and DTLS 1.3's differ in nothing but where the type stands.
        assert_eq!(bytes.get(2), bytes.get(5));
        assert_eq!(bytes.get(3).map(|bytes| bytes + 8), bytes.get(2).copied());
    }
}
