//! The way out: frames and messages that are ready together leave in one packet, straight or through a neighbour.
use alloc::vec::Vec;
use core::net::SocketAddr;

use super::{
    MAX_DATAGRAM, Net, Path,
    netkey::Offer,
    path::PING_ROOM,
    pinning::Proving,
    rekey::Renewal,
    session::{Ask, Asking, Control, Proof, Session},
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
        if session.renewal.is_some() {
            self.renew(now, id);
        }
        if self.send_next(now, id) {
            return self.dirty.push_back(id);
        }
        if let Some(session) = self.table.get_mut(id) {
            session.dirty = false;
        }
        self.arm(id);
    }

    /// Sends all that a session has ready, at once: it will have no other turn.
    fn flush(&mut self, now: Time, id: SessionId) {
        let Some(session) = self.table.get_mut(id) else { return };
        session.dirty = false;
        session.line.hurry();
        if session.renewal.is_some() {
            self.renew(now, id);
        }
        while self.send_next(now, id) {}
        self.arm(id);
    }

    /// Sends one packet of what a session has ready; false when nothing is.
    fn send_next(&mut self, now: Time, id: SessionId) -> bool {
        let mut buffer = self.buffer();
        let mem = self.mem(now);
        let Some(session) = self.table.get(id).filter(|session| session.is_up()) else { return false };
        let (exit, peer) = (self.exit(now, session), session.peer);
        if self.key_is_spent(session, 0) {
            self.end(now, id, CloseReason::KeyLimit, Some(CloseCode::KEY_LIMIT));
            return false;
        }
        let Some((session, mut cx)) = self.line_of(now, id) else { return false };
        let confirm = session.role == Role::Initiator
            && (!session.confirmed || session.resume().is_some())
            && has_more(session, &mut cx);
        let open = session.is_open();
        let next_s = super::timers::next_s(session);
        let rto = session.line.rto(cx.config);
        let Some(secure) = session.secure.as_mut() else { return false };
        if secure.unanswered() >= UNANSWERED && !session.control.pinging() {
            session.control.ask(Ask::Ping { user: None, next_s }, now);
        }
        secure.begin(&mut buffer);
        let pn = secure.next_pn().0;
        let mut plain = PlainWriter::new(&mut buffer, exit.room);
        if confirm {
            match session.opener.as_ref().and_then(|opener| opener.resume.as_ref()) {
                Some(resume) => resume.tags.iter().for_each(|tag| {
                    plain.push_frame(&Frame::Confirm { mem, resume: Some(*tag) });
                }),
                None => drop(plain.push_frame(&Frame::Confirm { mem, resume: None })),
            }
        }
        let fresh = plain.count();
        if confirm {
            session.control.prove_now(cx.now);
        }
        let attached = Attached { proof: session.proof.as_deref(), renewal: session.renewal.as_deref_mut() };
        let pinged = push_control(&mut session.control, attached, &mut plain, Leaving { now, pn, rto });
        while open && let Some(message) = session.line.poll_message(&mut cx) {
            if !plain.push_message(message.bytes) {
                if !plain.is_empty() || exit.is_candidate {
                    break;
                }
                // It fits no packet of this session, and must not keep the others from leaving.
                session.line.fail_front(&mut cx);
                continue;
            }
            session.line.sent_in(&mut cx, pn);
        }
        if plain.count() == fresh {
            // What did not fit there may go the usual way.
            let goes_on = exit.is_candidate && has_more(session, &mut cx);
            if goes_on {
                session.answered_candidate(now, 0, rto);
            }
            self.recycle(buffer);
            return goes_on;
        }
        // On a candidate path there may be no room for it.
        while plain.len() < PING_ROOM && pinged && plain.push_frame(&Frame::Pad) {}
        secure.seal(&mut buffer);
        session.remember_tail(&buffer);
        if exit.is_candidate {
            session.answered_candidate(now, buffer.len(), rto);
        }
        self.send_packet(now, exit.path, peer, buffer);
        self.rekey_if_due(now, id);
        self.expect_answer(now, id);
        true
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
        session.remember_tail(&buffer);
        if buffer.len() > MAX_DATAGRAM.min(max_udp) {
            // A neighbour may fit more into its packets than the next one takes: by its suite, or by what that one said.
            self.stats.drop(Drop::RelayRefused);
            return self.recycle(buffer);
        }
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
            self.memory_since = self.memory_since.max(session.last_request);
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
        session.opener = None;
        let (peer, host) = (session.peer, session.host.take());
        let asks = core::mem::take(&mut session.control.asks);
        let renewal = session.renewal.take();
        session.control.once.clear();
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

/// True if there is anything that CONFIRM could go along with.
fn has_more(session: &mut Session, cx: &mut Context<'_>) -> bool {
    let patience = super::timers::patience(session.line.rto(cx.config));
    !session.control.once.is_empty()
        || session.control.asks.iter().any(|ask| is_due(ask, cx.now, patience))
        || session.is_open() && session.line.poll_message(cx).is_some()
}

/// What nobody answered in time is not asked again, should a packet come before the timer that ends it.
fn is_due(ask: &Asking, now: Time, patience: Duration) -> bool {
    ask.due <= now && (ask.sent == 0 || now < ask.first_sent + patience)
}

/// What some frames are made of.
struct Attached<'a> {
    proof: Option<&'a Proof>,
    renewal: Option<&'a mut Renewal>,
}

/// The packet that leaves.
#[derive(Clone, Copy)]
struct Leaving {
    now: Time,
    pn: u64,
    rto: Duration,
}

/// Frames first those that leave once, then the questions that are due. True if a PING is among them.
fn push_control(
    control: &mut Control,
    mut attached: Attached<'_>,
    plain: &mut PlainWriter<'_>,
    Leaving { now, pn, rto }: Leaving,
) -> bool {
    let mut pinged = false;
    // First of all: the rest may be taken only from one who is proved.
    if control.proof_due
        && let Some(Proving::Made(made)) = control.proving.as_deref()
    {
        if !plain.push_frame(&Frame::Prove { public: &made.public, mac: &made.mac }) {
            return pinged;
        }
        control.proof_due = false;
    }
    while let Some(frame) = control.once.front() {
        if !plain.push_frame(frame) {
            return pinged;
        }
        control.once.pop_front();
    }
    if !attached.renewal.as_deref_mut().is_none_or(|renewal| renewal.push_answer(plain)) {
        return pinged;
    }
    let patience = super::timers::patience(rto);
    for asking in control.asks.iter_mut().filter(|ask| is_due(ask, now, patience)) {
        if !push_ask(asking, &attached, control.offer.as_deref(), plain) {
            return pinged;
        }
        pinged |= matches!(asking.what, Ask::Ping { .. } | Ask::Probe | Ask::Announce { .. });
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
    pinged
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
