//! The way out: frames and messages that are ready together leave in one packet, straight or through a neighbour.
use alloc::vec::Vec;
use core::net::SocketAddr;

use super::{
    MAX_DATAGRAM, Net, Path,
    netkey::Offer,
    path::{Exit, PING_ROOM},
    pinning::Proving,
    recover::Opener,
    rekey::Renewal,
    session::{Ask, Asking, Control, Proof, Rare, Session},
};
use crate::{
    coap::{
        exchange::{Context, LineEvent},
        line::Line,
    },
    error::{CloseReason, ConnectError, ControlError, RequestError},
    event::{Event, Output, RequestId, SessionId},
    id::Id,
    session::{MAX_SHORT_OVERHEAD, keys::Role},
    stats::Drop,
    time::{Duration, Time},
    wire::{
        bundle::PlainWriter,
        frame::{CloseCode, Frame, RELAY_OVERHEAD, RelayFlags},
    },
};

/// Hops that a RELAY frame of ours may make (protocol, section 10).
pub(super) const HOP_LIMIT: u8 = 16;
/// Packets that may still say goodbye when a key is spent.
pub(super) const LAST_WORDS: u64 = 64;
/// What travels in a RELAY is smaller by this: the frame's head and the hop's own packet at its largest.
const RELAY_ROOM: usize = RELAY_OVERHEAD + MAX_SHORT_OVERHEAD;
/// After so many packets without any answer a PING goes along, so that short packet numbers stay unambiguous.
const UNANSWERED: u64 = 1 << 14;
/// The bit of a message's first byte that acknowledgements and resets have (RFC 7252, section 3).
const IS_REPLY: u8 = 0x20;
/// A question is repeated at least so often while it is unanswered, if the round trip allows.
const ASK_MAX_WAIT: Duration = Duration::from_secs(2);

impl Net {
    /// Notes that a session may have something to send.
    pub(super) fn touch(&mut self, id: SessionId) {
        let Some(session) = self.table.get_mut(id) else { return };
        if !session.dirty && session.is_up() {
            session.dirty = true;
            self.dirty.push_back(id);
        }
        self.arm(id);
    }

    /// Sends one packet of what a session has ready, and puts it behind the others while it has more: who has much to
    /// say delays the rest by one packet a turn.
    pub(super) fn take_turn(&mut self, now: Time, id: SessionId) {
        let Some(session) = self.table.get(id).filter(|session| session.dirty) else { return };
        if session.rare.renewal.is_some() {
            self.renew(now, id);
        }
        let has_ready = |session: &mut Session| session.has_ready(now);
        if self.table.get_mut(id).is_some_and(has_ready)
            && self.send_next(now, id)
            && self.table.get_mut(id).is_some_and(has_ready)
        {
            return self.dirty.push_back(id);
        }
        if let Some(session) = self.table.get_mut(id) {
            session.dirty = false;
            session.settle(now, &mut self.spare);
        }
        self.arm(id);
    }

    /// Sends all that a session has ready, at once: it will have no other turn.
    fn flush(&mut self, now: Time, id: SessionId) {
        let Some(session) = self.table.get_mut(id) else { return };
        session.dirty = false;
        session.line.hurry();
        if session.rare.renewal.is_some() {
            self.renew(now, id);
        }
        while self.table.get_mut(id).is_some_and(|session| session.has_ready(now)) && self.send_next(now, id)
        {
        }
        self.arm(id);
    }

    /// Sends one packet of what a session has ready; false when nothing is.
    fn send_next(&mut self, now: Time, id: SessionId) -> bool {
        let mem = self.mem(now);
        let Some(session) = self.table.get(id).filter(|session| session.is_up()) else { return false };
        let (exit, peer) = (self.exit(now, session), session.peer);
        if self.key_is_spent(session, 0) {
            self.end(now, id, CloseReason::KeyLimit, Some(CloseCode::KEY_LIMIT));
            return false;
        }
        let mut buffer = self.buffer();
        let Some((session, mut cx)) = self.line_of(now, id) else { return false };
        let rto = session.line.rto(cx.config);
        let Some(contents) = fill(session, &mut cx, &exit, mem, &mut buffer) else {
            // What did not fit there may go the usual way.
            let goes_on = exit.is_candidate && has_more(session, &mut cx);
            if goes_on {
                session.answered_candidate(now, 0, rto);
            }
            self.recycle(buffer);
            return goes_on;
        };
        if let Some(secure) = session.secure.as_mut() {
            secure.seal(&mut buffer);
        }
        if exit.is_candidate {
            session.answered_candidate(now, buffer.len(), rto);
        }
        if contents.wants_answer {
            self.remember_tail(id, &buffer);
        }
        self.send_packet(now, exit.path, peer, buffer);
        self.rekey_if_due(now, id);
        self.expect_answer(now, id);
        true
    }

    /// Remembers a packet that leaves, for the hint that may come in answer to it.
    pub(super) fn remember_tail(&mut self, id: SessionId, packet: &[u8]) {
        let Some(session) = self.table.get_mut(id) else { return };
        if session.remember_tail(packet, &mut self.spare.rare) {
            self.table.index_peer_token(id);
        }
    }

    /// Sends one frame by itself, now, to where the caller says.
    pub(super) fn send_frame(&mut self, now: Time, id: SessionId, path: Path, frame: &Frame<'_>) {
        if self.table.get(id).is_none_or(|session| self.key_is_spent(session, LAST_WORDS)) {
            return;
        }
        let mut buffer = self.buffer();
        let Some(session) = self.table.get_mut(id) else { return };
        let Some(secure) = session.secure.as_mut() else { return };
        let (peer, max_udp) = (session.peer, usize::from(session.max_udp));
        secure.begin(&mut buffer);
        frame.encode(&mut buffer);
        secure.seal(&mut buffer);
        let unanswered = secure.unanswered() >= UNANSWERED;
        if buffer.len() > MAX_DATAGRAM.min(max_udp) {
            // A neighbour may fit more into its packets than the next one takes: by its suite, or by what that one said.
            self.stats.drop(Drop::RelayRefused);
            return self.recycle(buffer);
        }
        self.remember_tail(id, &buffer);
        self.send_packet(now, path, peer, buffer);
        self.rekey_if_due(now, id);
        if unanswered {
            // Who only forwards hears no answers: the PING is asked there, with what else the session has ready.
            self.touch(id);
        }
    }

    /// True once the session's key has protected as many packets as it may, and `more`.
    pub(super) fn key_is_spent(&self, session: &Session, more: u64) -> bool {
        let most = self.config.limits.packets_per_key;
        session.secure.as_ref().is_none_or(|secure| secure.is_spent(most, more))
    }

    pub(super) fn send_raw(&mut self, now: Time, path: Path, peer: Id, bytes: &[u8]) {
        let mut buffer = self.buffer();
        buffer.extend_from_slice(bytes);
        self.send_packet(now, path, peer, buffer);
    }

    pub(super) fn send_packet(&mut self, now: Time, path: Path, peer: Id, packet: Vec<u8>) {
        match path {
            Path::Direct(to) => self.send_datagram(to, packet),
            Path::Through(neighbour) => {
                let src = self.config.id;
                let frame = Frame::Relay {
                    hop_limit: HOP_LIMIT,
                    flags: RelayFlags(0),
                    dst: peer,
                    src,
                    inner: &packet,
                };
                match self.hop_session(neighbour) {
                    Some(hop) => self.send_hop(now, hop, &frame),
                    None => self.hop_elsewhere(neighbour, &frame),
                }
                self.recycle(packet);
            }
        }
    }

    /// Sends a RELAY frame to a neighbour. Neighbours are reached straight: a hop never lies inside another.
    pub(super) fn send_hop(&mut self, now: Time, hop: SessionId, frame: &Frame<'_>) {
        if self.table.get(hop).is_some_and(|session| session.is_up() && self.key_is_spent(session, 0)) {
            return self.end(now, hop, CloseReason::KeyLimit, Some(CloseCode::KEY_LIMIT));
        }
        match self.table.get(hop).map(|session| session.path) {
            Some(path @ Path::Direct(_)) => self.send_frame(now, hop, path, frame),
            _ => self.stats.drop(Drop::NoRoute),
        }
    }

    fn send_datagram(&mut self, to: SocketAddr, bytes: Vec<u8>) {
        if self.outputs.len() >= self.config.limits.outputs {
            self.stats.drop(Drop::OutputFull);
            return self.recycle(bytes);
        }
        self.stats.datagrams_out += 1;
        self.outputs.push_back(Output::Datagram { to, bytes });
    }

    /// True if a packet can leave on this path at all now.
    pub(super) fn can_send(&self, path: &Path) -> bool {
        match path {
            Path::Direct(_) => true,
            Path::Through(neighbour) => {
                self.hop_session(*neighbour).is_some() || self.home_elsewhere(*neighbour).is_some()
            }
        }
    }

    /// What was said before the peer told how much it takes, and is more than that, fails now.
    pub(super) fn limit_messages(&mut self, now: Time, id: SessionId) {
        if let Some((session, mut cx)) = self.line_of(now, id) {
            let room = room(session);
            session.line.limit_messages(&mut cx, room);
        }
        self.tell_line_events(id, None);
    }

    /// The largest CoAP message that fits one packet of this session.
    pub(super) fn max_message(&self, id: SessionId) -> Option<usize> {
        self.table.get(id).map(room)
    }

    /// Ends a session: its user is told, its peer too if `tell` has a code.
    pub(super) fn end(&mut self, now: Time, id: SessionId, why: CloseReason, tell: Option<CloseCode>) {
        let Some(session) = self.table.get(id) else { return };
        let path = session.path;
        match session.state {
            super::State::Connecting(_) => return self.fail(now, id, ConnectError::Closed),
            super::State::HalfOpen(_) => return self.forget(now, id),
            super::State::Closing { .. } => return,
            super::State::Up if session.is_unproven() => {
                return self.end_unproven(now, id, why);
            }
            super::State::Up => {}
        }
        if tell.is_some() || !matches!(why, CloseReason::Peer(_)) {
            // The peer may not hear of it, and ask again what ran here.
            self.memory_since = self.memory_since.max(session.last_request());
        }
        if let Some(code) = tell {
            // What is ready goes first: an answer given just before the close is not lost by it.
            if why != CloseReason::KeyLimit {
                self.flush(now, id);
            }
            self.send_frame(now, id, path, &Frame::Close { code, text: "" });
        }
        self.leave(now, id, why);
        let closing = now + self.config.timers.closing;
        let Some(session) = self.table.get_mut(id) else { return };
        if tell.is_none() {
            self.table.remove(id);
            return;
        }
        session.state = super::State::Closing { until: closing };
        self.arm(id);
    }

    /// What hangs on a session that ends: its user's requests, its registration, its place among the hosts.
    pub(super) fn leave(&mut self, now: Time, id: SessionId, why: CloseReason) {
        let Some(session) = self.table.get_mut(id) else { return };
        drop(session.rare.get_mut().and_then(|rare| rare.opener.take()));
        let (peer, host) = (session.peer, session.host_place());
        session.host = None;
        let (asks, renewal) = (session.control.take_asks(), session.take_renewal());
        session.control.clear_once();
        if let Some((session, mut cx)) = self.line_of(now, id) {
            session.line.fail_open(&mut cx);
        }
        self.tell_line_events(id, Some(why));
        for ask in asks {
            self.ask_failed(ask.what, ControlError::SessionLost(why));
        }
        self.renewal_failed(renewal, why);
        self.unregister_session(peer, id);
        if let Some(session) = self.table.get_mut(id) {
            session.guest = None;
        }
        match host {
            Some(host) => self.host_lost(now, host, why),
            None => self.event(Event::Closed { session: id, peer, why }),
        }
    }

    /// Fails every request of a session that never came up: none of them ran.
    pub(super) fn fail_line(&mut self, now: Time, line: &mut Line, why: RequestError) {
        let mut cx = Context { now, rng: &mut self.rng, pool: &mut self.pool, config: &self.line_config };
        line.fail_open(&mut cx);
        while let Some(event) = line.poll_event() {
            if let LineEvent::Failed { user, .. } = event {
                self.event(Event::RequestFailed { request: RequestId(user), why });
            }
        }
    }
}

/// Bytes of plaintext that one packet of a session takes.
fn room(session: &Session) -> usize {
    room_on(session, session.path)
}

/// The same on another path than its own.
pub(super) fn room_on(session: &Session, path: Path) -> usize {
    let around = match path {
        Path::Direct(_) => 0,
        Path::Through(_) => RELAY_ROOM,
    };
    MAX_DATAGRAM.min(usize::from(session.max_udp)) - around - MAX_SHORT_OVERHEAD
}

impl Session {
    /// False if it would be in vain to begin a packet: after most packets there is nothing more to say.
    fn has_ready(&mut self, now: Time) -> bool {
        let queues = &self.control.queues;
        !queues.once.is_empty()
            || self.control.proof_due
            || queues.asks.iter().any(|ask| ask.due <= now)
            || self.rare.renewal.is_some()
            || self.line.has_next()
            || self.owes_ping()
    }

    /// So much has left without an answer that it has to be asked for one.
    fn owes_ping(&self) -> bool {
        self.secure.as_ref().is_some_and(|secure| secure.unanswered() >= UNANSWERED)
            && !self.control.pinging()
    }
}

/// True if there is anything that CONFIRM could go along with.
fn has_more(session: &mut Session, cx: &mut Context<'_>) -> bool {
    let patience = super::timers::patience(session.line.rto(cx.config));
    !session.control.queues.once.is_empty()
        || session.control.queues.asks.iter().any(|ask| is_due(ask, cx.now, patience))
        || session.is_open() && session.line.poll_message(cx).is_some()
}

/// What nobody answered in time is not asked again, should a packet come before the timer that ends it.
fn is_due(ask: &Asking, now: Time, patience: Duration) -> bool {
    ask.due <= now && (ask.sent == 0 || now < ask.first_sent + patience)
}

/// What a packet holds.
struct Contents {
    /// Its peer answers, if it is there: with a hint, should it have forgotten the session.
    wants_answer: bool,
}

/// Begins a packet and writes what a session has ready, as much as fits. None if that is nothing.
fn fill(
    session: &mut Session,
    cx: &mut Context<'_>,
    exit: &Exit,
    mem: u32,
    buffer: &mut Vec<u8>,
) -> Option<Contents> {
    let confirm = session.role == Role::Initiator
        && (!session.confirmed || session.resume().is_some())
        && has_more(session, cx);
    let (open, next_s) = (session.is_open(), super::timers::next_s(session));
    let rto = session.line.rto(cx.config);
    if session.owes_ping() {
        session.control.ask(Ask::Ping { user: None, next_s }, cx.now);
    }
    let secure = session.secure.as_mut()?;
    secure.begin(buffer);
    let pn = secure.next_pn().0;
    let mut plain = PlainWriter::new(buffer, exit.room);
    if confirm {
        push_confirm(session.rare.opener.as_deref(), mem, &mut plain);
        session.control.prove_now(cx.now);
    }
    let fresh = plain.count();
    let rare = session.rare.get_mut();
    let attached = rare.map(Attached::of).unwrap_or_default();
    let sent = push_control(&mut session.control, attached, &mut plain, Leaving { now: cx.now, pn, rto });
    let mut wants_answer = confirm || sent.asked;
    while open && let Some(message) = session.line.poll_message(cx) {
        if plain.push_message(message.bytes) {
            wants_answer |= message.bytes.first().is_some_and(|first| first & IS_REPLY == 0);
            session.line.sent_in(cx, pn);
            continue;
        }
        if !plain.is_empty() || exit.is_candidate {
            break;
        }
        // It fits no packet of this session, and must not keep the others from leaving.
        session.line.fail_front(cx);
    }
    if plain.count() == fresh {
        return None;
    }
    // On a candidate path there may be no room for it.
    while plain.len() < PING_ROOM && sent.pinged && plain.push_frame(&Frame::Pad) {}
    Some(Contents { wants_answer })
}

fn push_confirm(opener: Option<&Opener>, mem: u32, plain: &mut PlainWriter<'_>) {
    match opener.and_then(|opener| opener.resume.as_ref()) {
        Some(resume) => resume.tags.iter().for_each(|tag| {
            plain.push_frame(&Frame::Confirm { mem, resume: Some(*tag) });
        }),
        None => drop(plain.push_frame(&Frame::Confirm { mem, resume: None })),
    }
}

/// What some frames are made of.
#[derive(Default)]
struct Attached<'a> {
    proof: Option<&'a Proof>,
    renewal: Option<&'a mut Renewal>,
}

impl Attached<'_> {
    fn of(rare: &mut Rare) -> Attached<'_> {
        Attached { proof: rare.proof.as_deref(), renewal: rare.renewal.as_deref_mut() }
    }
}

/// The packet that leaves.
#[derive(Clone, Copy)]
struct Leaving {
    now: Time,
    pn: u64,
    rto: Duration,
}

/// What [`push_control`] wrote.
#[derive(Clone, Copy, Default)]
struct Sent {
    /// A question.
    asked: bool,
    /// A PING, among others.
    pinged: bool,
}

/// Frames first those that leave once, then the questions that are due.
fn push_control(
    control: &mut Control,
    mut attached: Attached<'_>,
    plain: &mut PlainWriter<'_>,
    Leaving { now, pn, rto }: Leaving,
) -> Sent {
    let mut sent = Sent::default();
    let Some(queues) = control.queues.get_mut() else {
        if let Some(renewal) = attached.renewal {
            renewal.push_answer(plain);
        }
        return sent;
    };
    // First of all: the rest may be taken only from one who is proved.
    if control.proof_due
        && let Some(Proving::Made(made)) = queues.proving.as_deref()
    {
        if !plain.push_frame(&Frame::Prove { public: &made.public, mac: &made.mac }) {
            return sent;
        }
        control.proof_due = false;
    }
    while let Some(frame) = queues.once.front() {
        if !plain.push_frame(frame) {
            return sent;
        }
        queues.once.pop_front();
    }
    if !attached.renewal.as_deref_mut().is_none_or(|renewal| renewal.push_answer(plain)) {
        return sent;
    }
    let patience = super::timers::patience(rto);
    for asking in queues.asks.iter_mut().filter(|ask| is_due(ask, now, patience)) {
        if !push_ask(asking, &attached, queues.offer.as_deref(), plain) {
            return sent;
        }
        sent.asked = true;
        sent.pinged |= matches!(asking.what, Ask::Ping { .. } | Ask::Probe | Ask::Announce { .. });
        if asking.sent == 0 {
            asking.first_pn = pn;
            asking.first_sent = now;
        }
        let doubled = rto * (1 << u32::from(asking.sent).min(6));
        asking.sent = asking.sent.saturating_add(1);
        // The end of all patience is an instant of its own, not the next repetition after it.
        let over = asking.first_sent + patience;
        asking.due = (now + doubled.min(ASK_MAX_WAIT).max(rto)).min(over);
    }
    sent
}

fn push_ask(
    asking: &Asking,
    attached: &Attached<'_>,
    offer: Option<&Offer>,
    plain: &mut PlainWriter<'_>,
) -> bool {
    let req = asking.req;
    match asking.what {
        Ask::Ping { next_s, .. } | Ask::Announce { next_s } => plain.push_frame(&Frame::Ping { req, next_s }),
        Ask::Probe => plain.push_frame(&Frame::Ping { req, next_s: 0 }),
        Ask::Prove => plain.push_frame(&Frame::ProveAsk { req }),
        Ask::NetKey { .. } => offer.is_none_or(|offer| plain.push_frame(&offer.frame(req))),
        Ask::Lookup { id, .. } => plain.push_frame(&Frame::Lookup { req, id }),
        Ask::Register { epoch, ephemeral, lease_s } => {
            if let Some(Proof::Made(made)) = attached.proof
                && !plain.push_frame(&Frame::Prove { public: &made.public, mac: &made.mac })
            {
                return false;
            }
            plain.push_frame(&Frame::Register { req, ephemeral, epoch, lease_s })
        }
        Ask::Rekey => attached.renewal.as_ref().is_none_or(|renewal| renewal.push_rekey(req, plain)),
        Ask::NewToken => {
            let change = attached.renewal.as_ref().and_then(|renewal| renewal.token.as_ref());
            change.is_none_or(|change| change.push(req, plain))
        }
    }
}
