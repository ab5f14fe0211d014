//! Peers of the server that are driven by hand: a handshake as any net does it, and then as little as a peer can be.
//! A million of them have room here, which a million machines would not.
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use m2m::Id;
use m2m_proto::coap::code::Code;
use m2m_proto::coap::message::{Message, MessageToken, MessageType, Mid};
use m2m_proto::coap::writer::MessageWriter;
use m2m_proto::session::Secure;
use m2m_proto::session::handshake::{Established, InitFields, Initiator};
use m2m_proto::session::keys::{NetKey, Suite, SuiteSet};
use m2m_proto::wire::bundle::{Element, PlainWriter, elements};
use m2m_proto::wire::frame::{Frame, Req};
use m2m_proto::wire::packet::{Caps, KeyId, Packet, Token};

use super::load::Load;
use super::plain::failed;
use super::udp::{Inbox, Outbox, Socket, Way, flow_address};
use super::{SERVER, Secrets, numbered};
use crate::exit::Failure;

/// The group that the peers' ids belong to.
pub(super) const PEERS: u8 = 0xD1;
/// Handshakes on their way at any time.
const INFLIGHT: usize = 64;
/// An INIT that nobody answered leaves again.
const AGAIN: Duration = Duration::from_millis(500);
/// And so often at most.
const MAX_TRIES: u32 = 20;
/// What a net says that it takes: the protocol's largest packet.
const MAX_UDP: u16 = 1200;

/// Handshakes that are about to be done: making them is the client's part, and costs as much as the server's.
pub(super) struct Handshakes {
    waiting: Vec<Initiator>,
    /// By the token that the answer bears.
    open: HashMap<u32, Open>,
    socket: Socket,
    inbox: Inbox,
    outbox: Outbox,
    server: SocketAddr,
    has_flows: bool,
    next: u32,
    answers: Vec<(Established, Way)>,
    /// The first packet of a session.
    first: Vec<u8>,
}

struct Open {
    from: Option<IpAddr>,
    initiator: Initiator,
    packet: Vec<u8>,
    sent: Instant,
    tries: u32,
}

impl Handshakes {
    /// With more than one flow, each peer has an address of its own.
    pub(super) fn new(server: SocketAddr, flows: u32) -> Result<Handshakes, Failure> {
        Ok(Handshakes {
            waiting: Vec::new(),
            open: HashMap::new(),
            socket: Socket::for_flows(flows)?,
            inbox: Inbox::new(),
            outbox: Outbox::new(),
            server,
            has_flows: flows > 1,
            next: 0,
            answers: Vec::new(),
            first: Vec::new(),
        })
    }

    /// The socket that the sessions are tied to.
    pub(super) fn into_socket(self) -> Socket {
        self.socket
    }

    /// Makes so many ready, each another id's, so that the client has less to do while they are measured.
    pub(super) fn prepare(&mut self, secrets: &mut Secrets, count: u32) -> Result<(), Failure> {
        let key = secrets.net_key()?;
        for _ in 0..count {
            let initiator = self.make(secrets, &key)?;
            self.waiting.push(initiator);
        }
        Ok(())
    }

    fn make(&mut self, secrets: &mut Secrets, key: &NetKey) -> Result<Initiator, Failure> {
        let src = numbered(PEERS, self.next.into());
        let fields = init_fields(src, self.next)?;
        self.next += 1;
        Ok(Initiator::start(&fields, &key.pair(src, SERVER), secrets.ephemeral(key)))
    }

    /// Does so many, and makes each when its turn has come. `done` gets each, with the buffer of the first packet, which
    /// it writes.
    pub(super) fn open(
        &mut self,
        secrets: &mut Secrets,
        count: u32,
        mut done: impl FnMut(&Established, &mut Vec<u8>),
    ) -> Result<(), Failure> {
        let key = secrets.net_key()?;
        let mut left = count;
        while left > 0 || !self.open.is_empty() {
            if left > 0 && self.open.len() < INFLIGHT {
                let initiator = self.make(secrets, &key)?;
                self.begin(initiator)?;
                left -= 1;
            }
            self.outbox.flush(&self.socket).map_err(failed)?;
            self.take(&mut done)?;
        }
        self.outbox.flush(&self.socket).map_err(failed)
    }

    /// Does those that were prepared, until `is_over` says so or none are left, and says how many that were.
    pub(super) fn run(
        &mut self,
        is_over: impl Fn() -> bool,
        mut done: impl FnMut(&Established, &mut Vec<u8>),
    ) -> Result<u64, Failure> {
        let mut count = 0;
        loop {
            while self.open.len() < INFLIGHT && !is_over() {
                let Some(initiator) = self.waiting.pop() else { break };
                self.begin(initiator)?;
            }
            self.outbox.flush(&self.socket).map_err(failed)?;
            if self.open.is_empty() {
                return Ok(count);
            }
            count += self.take(&mut done)?;
        }
    }

    fn begin(&mut self, initiator: Initiator) -> Result<(), Failure> {
        let packet = initiator.init().to_vec();
        let token = initiator_token(&packet);
        let from = self.has_flows.then(|| flow_address(token.saturating_sub(1)).into());
        self.outbox.push(&self.socket, self.server, from, &packet).map_err(failed)?;
        self.open.insert(token, Open { from, initiator, packet, sent: Instant::now(), tries: 1 });
        Ok(())
    }

    /// Takes what came, and begins the sessions whose handshakes are done; says how many.
    fn take(&mut self, done: &mut impl FnMut(&Established, &mut Vec<u8>)) -> Result<u64, Failure> {
        let (open, answers) = (&mut self.open, &mut self.answers);
        let some = self.inbox.receive(&self.socket, |datagram, way| {
            answers.extend(read_answer(open, datagram).map(|established| (established, way)));
        });
        let count = self.answers.len() as u64;
        for (established, way) in self.answers.drain(..) {
            done(&established, &mut self.first);
            let from = way.to.filter(|_| self.has_flows);
            self.outbox.push(&self.socket, way.from, from, &self.first).map_err(failed)?;
        }
        if !some.map_err(failed)? {
            self.repeat()?;
            std::thread::yield_now();
        }
        Ok(count)
    }

    /// Sends again what was lost, and what a cookie was asked for.
    fn repeat(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        for open in self.open.values_mut().filter(|open| now - open.sent > AGAIN) {
            (open.sent, open.tries) = (now, open.tries + 1);
            if open.tries > MAX_TRIES {
                return Err(Failure::TimedOut("the server does not answer handshakes".into()));
            }
            self.outbox.push(&self.socket, self.server, open.from, &open.packet).map_err(failed)?;
        }
        Ok(())
    }
}

/// What an honest INIT says.
pub(super) fn init_fields(src: Id, number: u32) -> Result<InitFields, Failure> {
    let stoken =
        Token::new(number + 1).ok_or_else(|| Failure::Other("too many sessions to tell apart".into()))?;
    Ok(InitFields {
        dst: SERVER,
        src,
        stoken,
        key_id: KeyId(0),
        suites: SuiteSet::of(&[Suite::Aes128Gcm]),
        caps: Caps(0),
        max_udp: MAX_UDP,
    })
}

fn initiator_token(init: &[u8]) -> u32 {
    match Packet::decode(init) {
        Ok(Packet::Init(init)) => init.stoken.value(),
        _ => 0,
    }
}

/// RESP ends a handshake; COOKIE makes its INIT longer.
fn read_answer(open: &mut HashMap<u32, Open>, datagram: &[u8]) -> Option<Established> {
    match Packet::decode(datagram).ok()? {
        Packet::Resp(resp) => {
            let token = resp.stoken.value();
            let established = open.get(&token)?.initiator.read_resp(&resp).ok()?;
            open.remove(&token);
            Some(established)
        }
        Packet::Cookie(reply) => {
            let open = open.get_mut(&reply.stoken.value())?;
            let cookie = open.initiator.read_cookie(&reply).ok()?;
            open.packet = open.initiator.init_with_cookie(&cookie).to_vec();
            // It leaves with the next that are repeated.
            open.sent -= AGAIN;
            None
        }
        _ => None,
    }
}

/// What the first packet of a session says.
pub(super) const CONFIRM: Frame<'static> = Frame::Confirm { mem: 0, resume: None };

/// A session with the server.
pub(super) struct Peer {
    secure: Secure,
    number: u32,
    mid: Mid,
}

impl Peer {
    /// A session that this handshake began.
    pub(super) fn new(established: &Established) -> Peer {
        let number = index_of(established.stoken) as u32;
        Peer { secure: Secure::new(established), number, mid: Mid(0) }
    }

    /// Which handshake it came from.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Seals frames into one packet.
    pub(super) fn say(&mut self, packet: &mut Vec<u8>, frames: &[Frame<'_>]) {
        self.secure.begin(packet);
        let mut plain = PlainWriter::new(packet, MAX_UDP.into());
        for frame in frames {
            plain.push_frame(frame);
        }
        self.secure.seal(packet);
    }

    /// Opens a packet of the server where it lies.
    pub(super) fn open<'a>(&mut self, datagram: &'a mut [u8]) -> Option<&'a [u8]> {
        let plain = self.secure.open(datagram).ok()?;
        datagram.get(plain)
    }
}

/// The number of the peer that has this token.
pub(super) fn index_of(token: Token) -> usize {
    token.value() as usize - 1
}

/// How the next peer to ask is chosen.
#[derive(Clone, Copy)]
pub(super) enum Choice {
    /// All of them in turn.
    InTurn,
    /// Any of them; the state of a xorshift generator, which nobody has to be surprised by.
    Random(u64),
}

/// What the next peer is to ask.
#[derive(Clone, Copy)]
pub(super) enum Question {
    /// A request with a payload.
    Request,
    /// A PING which says that the next one comes within so many seconds; 0 for never.
    Ping(u16),
}

/// Peers on one socket, with questions that each fill a packet of their own.
pub(super) struct Crowd {
    peers: Vec<Peer>,
    pub(super) choice: Choice,
    pub(super) question: Question,
    socket: Socket,
    inbox: Inbox,
    outbox: Outbox,
    server: SocketAddr,
    payload: Vec<u8>,
    message: Vec<u8>,
    packet: Vec<u8>,
    turn: usize,
}

impl Crowd {
    /// All peers that these handshakes began, by their numbers.
    pub(super) fn new(mut peers: Vec<Peer>, handshakes: Handshakes, size: usize) -> Crowd {
        peers.sort_by_key(Peer::number);
        Crowd {
            peers,
            choice: Choice::InTurn,
            question: Question::Request,
            server: handshakes.server,
            socket: handshakes.socket,
            inbox: handshakes.inbox,
            outbox: handshakes.outbox,
            payload: vec![7; size],
            message: Vec::new(),
            packet: Vec::new(),
            turn: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.peers.len()
    }

    fn choose(&mut self) -> usize {
        let count = self.peers.len().max(1);
        match &mut self.choice {
            Choice::InTurn => {
                self.turn = (self.turn + 1) % count;
                self.turn
            }
            Choice::Random(state) => {
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                (*state % count as u64) as usize
            }
        }
    }
}

impl Load for Crowd {
    fn ask(&mut self, slot: u32) -> Result<(), Failure> {
        let at = self.choose();
        let Some(peer) = self.peers.get_mut(at) else { return Ok(()) };
        match self.question {
            Question::Ping(next_s) => {
                // There are fewer slots than numbers of requests.
                let req = Req(slot as u16);
                peer.say(&mut self.packet, &[Frame::Ping { req, next_s }]);
            }
            Question::Request => {
                peer.mid = Mid(peer.mid.0.wrapping_add(1));
                self.message.clear();
                let (kind, token) = (MessageType::Con, MessageToken::from_u32(slot));
                let message = MessageWriter::new(&mut self.message, kind, Code::POST, peer.mid, token);
                message.payload(&self.payload);
                peer.secure.begin(&mut self.packet);
                PlainWriter::new(&mut self.packet, MAX_UDP.into()).push_message(&self.message);
                peer.secure.seal(&mut self.packet);
            }
        }
        self.outbox.push(&self.socket, self.server, None, &self.packet).map_err(failed)
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.outbox.flush(&self.socket).map_err(failed)
    }

    fn take(&mut self, answered: &mut Vec<u32>) -> Result<(), Failure> {
        let peers = &mut self.peers;
        let payload = &self.payload;
        let some =
            self.inbox.receive(&self.socket, |datagram, _| read_answers(peers, datagram, payload, answered));
        some.map(drop).map_err(failed)
    }
}

/// Opens a packet of the server, and tells the slots of the questions that it answers.
fn read_answers(peers: &mut [Peer], datagram: &mut [u8], payload: &[u8], answered: &mut Vec<u32>) {
    let Ok(Packet::Short(short)) = Packet::decode(datagram) else { return };
    let Some(peer) = peers.get_mut(index_of(short.token)) else { return };
    let Some(plain) = peer.open(datagram) else { return };
    for element in elements(plain).into_iter().flatten() {
        match element {
            Element::Frame(Frame::Pong { req, .. }) => answered.push(req.0.into()),
            Element::Message(message) => {
                let Ok(message) = Message::parse(message) else { continue };
                let token = message.token();
                if let (Ok(slot), true) = (token.as_bytes().try_into(), message.payload() == payload) {
                    answered.push(u32::from_be_bytes(slot));
                }
            }
            Element::Frame(_) => {}
        }
    }
}
