//! The way out: frames and messages that are ready together leave in one packet, straight or through a neighbour.
use alloc::vec::Vec;
use core::net::SocketAddr;

use super::{
    MAX_DATAGRAM, Net, Path,
    contents::{UNANSWERED, fill, has_more},
    session::Session,
};
use crate::{
    coap::{
        exchange::{Context, LineEvent},
        line::Line,
    },
    error::{CloseReason, ConnectError, ControlError, RequestError},
    event::{Event, Output, RequestId, SessionId},
    id::Id,
    session::MAX_SHORT_OVERHEAD,
    stats::Drop,
    time::Time,
    wire::frame::{CloseCode, Frame, RELAY_OVERHEAD, RelayFlags},
};

/// Hops that a RELAY frame of ours may make (protocol, section 10).
pub(super) const HOP_LIMIT: u8 = 16;
/// Packets that may still say goodbye when a key is spent.
pub(super) const LAST_WORDS: u64 = 64;
/// What travels in a RELAY is smaller by this: the frame's head and the hop's own packet at its largest.
const RELAY_ROOM: usize = RELAY_OVERHEAD + MAX_SHORT_OVERHEAD;

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
        if session.remember_tail(packet, &mut self.spare) {
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
