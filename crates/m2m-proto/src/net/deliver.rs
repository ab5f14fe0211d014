//! What a short packet holds: it opens or it is dropped; then its frames and messages act, in order.
use alloc::vec::Vec;
use core::{net::SocketAddr, ops::Range};

use super::{
    Net, Origin,
    control::Ask,
    path::Arrival,
    pinning::Prover,
    session::{Path, State},
};
use crate::{
    coap::{
        exchange::{Failure, LineEvent, Outcome},
        message::{Message, MessageType},
    },
    error::{CloseReason, ConnectError, RequestError},
    event::{Event, IncomingId, RequestId, SessionId},
    session::{OpenError, keys::Role, pn::Pn},
    stats::Drop,
    time::{Duration, Time},
    wire::{
        bundle::{Element, elements},
        frame::{CloseCode, ErrorCode, FoundStatus, Frame, Req},
        packet::Token,
    },
};

/// A packet that opened.
struct Opened {
    plain: Range<usize>,
    /// The generation of keys before it.
    generation: u32,
    /// Its number is the highest so far.
    is_newest: bool,
    /// Packets of two generations of keys opened when it came.
    is_rekeying: bool,
    /// It is the first of a session that a peer opened; what a proof of our device key is made from.
    prover: Option<Prover>,
}

/// What a packet's elements leave to be done when all of them have acted.
#[derive(Default)]
struct Aftermath<'a> {
    /// One challenge for a packet: its source may be forged, and whoever lives there must not get more than was sent.
    challenge: Option<[u8; 8]>,
    response: Option<[u8; 8]>,
    has_more: bool,
    key_exchange: Option<Frame<'a>>,
}

impl Net {
    pub(super) fn on_short(&mut self, now: Time, origin: Origin, token: Token, datagram: &mut [u8]) {
        let Some(id) = self.table.by_token(token) else {
            return self.send_hint(now, origin, token, datagram);
        };
        let Some(opened) = self.open_short(now, id, origin, datagram) else { return };
        let (plain, len) = (datagram.get(opened.plain).unwrap_or_default(), datagram.len());
        if self.table.get(id).is_some_and(|session| matches!(session.state, State::Closing { .. })) {
            return self.answer_closed(now, id, origin, plain);
        }
        // All of it, or none: nothing of a packet acts before it is known to be well formed.
        let Ok(elements) = elements(plain) else { return self.stats.drop(Drop::BadFrame) };
        let is_first = opened.prover.is_some();
        if is_first && self.challenge_place(now, id, origin, (plain, len)) {
            return;
        }
        let id = if is_first { self.first_packet(now, id, origin, plain) } else { id };
        let Some(session) = self.table.get_mut(id) else { return };
        session.last_heard = now;
        session.confirmed = true;
        session.line.heard(now, &self.line_config);
        if !is_first {
            self.warm_up(id);
        }
        if opened.is_rekeying {
            self.on_opened(now, id, opened.generation);
        }
        let Some(after) = self.on_elements(now, id, origin, elements, opened.prover) else { return };
        let Aftermath { challenge, response, has_more, key_exchange } = after;
        let (path, newest, only_probes) = (origin.path(), opened.is_newest, !has_more);
        self.on_arrival(now, id, &Arrival { path, len, newest, only_probes, challenge, response });
        if let Some(frame) = key_exchange {
            self.on_key_exchange(now, id, &frame);
        }
        if is_first {
            self.evict_beyond_cap(now, id);
        }
        self.answer_askers(id, FoundStatus::ONLINE);
        self.press_for_verdict(now, id);
        self.touch(id);
    }

    /// Opens a packet of this session where it lies; none if it is not to be looked at any further.
    fn open_short(
        &mut self,
        now: Time,
        id: SessionId,
        origin: Origin,
        datagram: &mut [u8],
    ) -> Option<Opened> {
        let session = self.table.get_mut(id)?;
        let may_come_from_there = match &session.state {
            // A copy from elsewhere of the packet that confirms: it moves nothing, and does not spend the number either.
            State::HalfOpen(half_open) => half_open.takes_from(origin.path()),
            _ => true,
        };
        if !origin.may_speak_for(session.peer) || !may_come_from_there {
            self.stats.drop(Drop::BadHandshake);
            return None;
        }
        let Some(secure) = session.secure.as_mut() else {
            self.stats.drop(Drop::UnknownToken);
            return None;
        };
        let (generation, newest) = (secure.generation(), secure.newest());
        let plain = match secure.open(datagram) {
            Ok(plain) => plain,
            Err(why) => {
                self.stats.drop(if why == OpenError::Replayed { Drop::Replayed } else { Drop::BadSeal });
                if why == OpenError::Forged {
                    self.on_forged(now, id);
                }
                return None;
            }
        };
        self.dh_budget.served(now);
        self.proven_dh_budget.served(now);
        self.cookie_budget.served(now);
        let prover = match &session.state {
            State::HalfOpen(half_open) => Some(half_open.prover()),
            _ => None,
        };
        let (is_newest, is_rekeying) = (secure.newest() > newest, secure.has_other_keys());
        Some(Opened { plain, generation, is_newest, is_rekeying, prover })
    }

    /// A packet's elements act, in order. None if one of them ended the session.
    fn on_elements<'a>(
        &mut self,
        now: Time,
        id: SessionId,
        origin: Origin,
        elements: impl Iterator<Item = Element<'a>>,
        mut prover: Option<Prover>,
    ) -> Option<Aftermath<'a>> {
        let mut after = Aftermath::default();
        for element in elements {
            self.table.get(id).filter(|session| session.is_up())?;
            after.has_more |= !is_probe(&element);
            match element {
                Element::Frame(Frame::PathChallenge(data)) => after.challenge = Some(data),
                Element::Frame(Frame::PathResponse(data)) => after.response = Some(data),
                Element::Frame(Frame::Pad) => {}
                Element::Frame(Frame::ProveAsk { .. }) => self.on_prove_ask(now, id, prover.take()),
                Element::Frame(frame @ (Frame::Rekey { .. } | Frame::Rekeyed { .. })) => {
                    after.key_exchange = Some(frame);
                }
                Element::Frame(frame) => self.on_frame(now, id, origin, &frame),
                Element::Message(message) => self.on_message(now, id, message),
            }
        }
        Some(after)
    }

    /// The first packet of a session that a peer opened: it stands, or goes on as the one that it names.
    fn first_packet(&mut self, now: Time, id: SessionId, origin: Origin, plain: &[u8]) -> SessionId {
        let Some((old, is_by_first)) = self.resumed_by(id, plain) else {
            self.confirm(now, id, origin);
            return id;
        };
        self.take_over(now, old, id, is_by_first);
        old
    }

    /// A packet for a session that was closed here: its sender is told again, unless it says the same. Two that closed
    /// at once would tell each other until both forgot.
    fn answer_closed(&mut self, now: Time, id: SessionId, origin: Origin, plain: &[u8]) {
        let is_close = |element| matches!(element, Element::Frame(Frame::Close { .. }));
        let Ok(mut elements) = elements(plain) else { return self.stats.drop(Drop::BadFrame) };
        if !elements.any(is_close) {
            self.send_frame(now, id, origin.path(), &Frame::Close { code: CloseCode::DONE, text: "" });
        }
    }

    fn on_message(&mut self, now: Time, id: SessionId, bytes: &[u8]) {
        let Ok(message) = Message::parse(bytes) else { return self.stats.drop(Drop::BadFrame) };
        let Some((session, mut cx)) = self.line_of(now, id) else { return };
        if session.is_unproven() {
            // Whoever it is that asks: the device, if it is the one, asks again.
            return;
        }
        if session.resume().is_some() && (message.kind() == MessageType::Con || message.code().is_request()) {
            // Until the peer has said whether it remembers, its Message IDs tell nothing. It sends them again.
            return;
        }
        let handled = session.line.handle_message(&mut cx, &message);
        if let (Some(pn), Some(secure)) = (handled.answered, session.secure.as_mut()) {
            secure.answered(Pn(pn));
            session.was_answered(now);
        }
        let peer = session.peer;
        match handled.outcome {
            Outcome::Request(exchange) => {
                session.note_request(now);
                let incoming = IncomingId { session: id, exchange };
                let message = self.copy(bytes);
                self.event(Event::Request { incoming, peer, message });
            }
            Outcome::Response { user, .. } => {
                let message = self.copy(bytes);
                self.event(Event::Response { request: RequestId(user), message });
            }
            _ => {}
        }
        self.tell_line_events(id, None);
    }

    fn copy(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut copy = self.pool.take(bytes.len());
        copy.extend_from_slice(bytes);
        copy
    }

    /// Passes on what a session's line has to tell its user; `end` says why the session is over, if it is.
    pub(super) fn tell_line_events(&mut self, id: SessionId, end: Option<CloseReason>) {
        let not_up = self.why_not_up(id);
        while let Some(event) = self.table.get_mut(id).and_then(|session| session.line.poll_event()) {
            if let LineEvent::Failed { user, reason, .. } = event {
                let why = match (reason, end) {
                    (Failure::NotSent, None) if not_up.is_some() => {
                        RequestError::NotSent(not_up.unwrap_or(ConnectError::Unreachable))
                    }
                    (Failure::NotSent, Some(why)) => RequestError::NeverLeft(why),
                    (Failure::SessionLost, Some(why)) => RequestError::SessionLost(why),
                    (Failure::PeerForgot, _) => RequestError::PeerForgot,
                    (Failure::Reset, _) => RequestError::Reset,
                    (Failure::TooLarge, _) => RequestError::TooLarge,
                    _ => RequestError::TimedOut,
                };
                self.event(Event::RequestFailed { request: RequestId(user), why });
            }
        }
    }

    fn on_frame(&mut self, now: Time, id: SessionId, origin: Origin, frame: &Frame<'_>) {
        match *frame {
            Frame::Confirm { resume, .. } => self.on_confirm(now, id, resume),
            Frame::Resumed { memory, mem } => self.on_resumed(now, id, memory, mem),
            Frame::Pad | Frame::PathChallenge(_) | Frame::PathResponse(_) => {}
            Frame::Ping { req, next_s } => self.on_ping(id, origin, req, next_s),
            Frame::Pong { req, observed, .. } => self.on_pong(now, id, req, observed),
            Frame::Close { code, .. } => self.end(now, id, CloseReason::Peer(code.0), None),
            Frame::Prove { public, mac } => self.on_prove(now, id, public, mac),
            Frame::Done { req, status } => {
                self.on_done(now, id, req, status);
                self.on_token_done(now, id, req, status);
            }
            Frame::NetKey { req, key_id, mac, key } => {
                let change = super::netkey::Change { req, key_id, mac, key: key.expose() };
                self.on_netkey(now, id, &change);
            }
            Frame::Register { req, ephemeral, epoch, lease_s } => {
                self.on_register(
                    now,
                    id,
                    super::session::Registering { req, ephemeral, epoch, lease_s, is_charged: false },
                );
            }
            Frame::Registered { req, status, epoch, lease_s, since, .. } => {
                self.on_registered(now, id, req, super::host::Answer { status, epoch, lease_s, since });
            }
            Frame::Unregister { req, epoch } => self.on_unregister(now, id, req, epoch),
            Frame::Lookup { req, id: wanted } => self.on_lookup(now, id, req, wanted),
            Frame::Found { req, status, .. } => self.on_found(now, id, req, status),
            // Between neighbours only (protocol, section 10). One inside another would also be read by as many calls
            // inside each other as a datagram holds.
            Frame::Relay { .. } if matches!(origin, Origin::Through { .. }) => {
                self.stats.drop(Drop::RelayRefused);
            }
            Frame::Relay { hop_limit, flags, dst, src, inner } => {
                self.on_relay(now, id, super::relay::Relayed { hop_limit, flags, dst, src, inner });
            }
            Frame::NewToken { req, token } => self.on_new_token(id, req, token),
            Frame::Error { code, dst, src, packet } => {
                self.stats.errors += 1;
                if code == ErrorCode::NO_ROUTE && src == self.config.id {
                    self.on_no_route(now, id, dst, packet);
                }
            }
            // What this version specifies and does not act on yet, and what a later one will bring.
            _ => self.stats.drop(Drop::UnknownFrame),
        }
    }

    fn on_ping(&mut self, id: SessionId, origin: Origin, req: Req, next_s: u16) {
        let idle = self.config.timers.session_idle;
        let Some(session) = self.table.get_mut(id) else { return };
        if session.role == Role::Responder {
            session.silence = match next_s {
                0 => idle.into(),
                // 3.5 times, in whole milliseconds.
                s => Duration::from_millis(u64::from(s) * 3_500).into(),
            };
        }
        let observed = match origin {
            Origin::Direct(address) => Some(address),
            Origin::Through { .. } => None,
        };
        session.control.queues.begin_with(&mut self.spare.queues);
        if session.is_at_rest() {
            // Who pings has not forgotten.
            self.table.forget_tails(id, &mut self.spare);
        }
        let Some(session) = self.table.get_mut(id) else { return };
        session.control.once(Frame::Pong { req, draining: false, observed });
    }

    fn on_pong(&mut self, now: Time, id: SessionId, req: Req, observed: Option<SocketAddr>) {
        let Some(session) = self.table.get_mut(id) else { return };
        let is_ping = |ask: &Ask| matches!(ask, Ask::Ping { .. } | Ask::Probe | Ask::Announce { .. });
        let Some(asked) = session.control.answered(req, is_ping) else {
            return;
        };
        if let Some(secure) = session.secure.as_mut() {
            secure.answered(Pn(asked.first_pn));
        }
        let rtt = now.since(asked.first_sent);
        if let Some(rtt) = asked.round_trip(now) {
            session.line.add_round_trip(now, rtt);
        }
        session.was_answered(now);
        if session.is_at_rest() {
            // No hint can be owed any more.
            self.table.forget_tails(id, &mut self.spare);
        }
        self.host_answered(now, id, asked.first_sent);
        match asked.what {
            Ask::Ping { user: Some(request), .. } => self.event(Event::Pong { request, rtt: Some(rtt) }),
            Ask::Announce { .. } => {}
            _ => self.grow_ping(id, observed),
        }
        self.tell_public_address(id, observed);
    }

    /// A mapping that held for the whole interval may hold longer (protocol, section 6.1).
    fn grow_ping(&mut self, id: SessionId, observed: Option<SocketAddr>) {
        let (min, max) = (self.config.timers.ping_min, self.ping_cap(id));
        let Some(keepalive) = self.table.get_mut(id).and_then(|session| session.keepalive_mut()) else {
            return;
        };
        if keepalive.interval.is_zero() {
            return;
        }
        let before = core::mem::replace(&mut keepalive.observed, observed);
        let interval = keepalive.interval;
        let grown = match before {
            Some(_) if before == observed => interval + interval / 4,
            Some(_) => min,
            None => interval,
        };
        keepalive.interval = grown.min(max);
    }

    /// The session with a neighbour: the one with our host, or the one that it registered through.
    pub(super) fn hop_session(&self, neighbour: crate::id::Id) -> Option<SessionId> {
        let ours = self
            .hosts
            .iter()
            .filter(|host| host.id == neighbour)
            .find_map(super::host::Host::registered_session);
        ours.or_else(|| self.registry.get(&neighbour).map(|registration| registration.session))
    }

    pub(super) fn path_of_neighbour(&self, neighbour: crate::id::Id) -> Option<Path> {
        Some(self.table.get(self.hop_session(neighbour)?)?.path)
    }
}

/// What says nothing of where the peer wants to be reached.
fn is_probe(element: &Element<'_>) -> bool {
    matches!(element, Element::Frame(Frame::PathChallenge(_) | Frame::PathResponse(_) | Frame::Pad))
}
