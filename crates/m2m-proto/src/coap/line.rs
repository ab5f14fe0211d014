//! The reliable exchanges of one session, both ways: RFC 7252 sections 4 and 5.2 as a machine without I/O.
//!
//! A line owns the Message IDs of this side, the memory of those of the other, what is in flight and what waits. It
//! knows nothing of keys and packets, so a new session can take it over from an old one. Its owner drives it:
//!
//! 1. [`Line::request`], [`Line::respond`] and [`Line::notify`] take messages in, [`Line::handle_message`] what came
//!    from the peer, [`Line::handle_timeout`] the time;
//! 2. after each of these, [`Line::poll_message`] until it has nothing more, each message followed by
//!    [`Line::sent_in`] once it is in a packet, or by [`Line::fail_front`] if no packet can take it; then
//!    [`Line::poll_event`]; then a timer for [`Line::next_timeout`].
//!
//! What the session's packets take is told by [`Line::limit_messages`] once it is known, and whenever it shrinks.
//!
//! What it promises: a confirmable request reaches the other side's handler once if it is answered, at most once if
//! it fails. What it doesn't: order among requests, or that a non-confirmable message arrives.
use super::{
    exchange::{
        Context, Failure, IncomingId, LineConfig, LineError, LineEvent, NotifyParts, Outbound, RequestId,
        RequestParts, ResponseParts,
    },
    incoming::{AnswerForm, Incoming, Ring},
    message::{MessageToken, MessageType, Mid},
    outgoing::{Progress, Purpose, Request},
    retransmit::RttEstimator,
    writer::MessageWriter,
};
use crate::time::{Duration, Time};
use alloc::boxed::Box;
use busy::{Busy, MESSAGE_HEAD, Ready, encode};
use rand_chacha::{ChaCha12Rng, rand_core::Rng};

mod busy;
mod depart;
mod fit;
mod moved;
mod receive;
mod takeover;

pub use super::incoming::MID_WINDOW;

/// Nothing waits for longer than this for its repetition once its peer is heard again.
const LONG_WAIT: Duration = Duration::from_secs(4);
/// After so many retransmissions without an answer the peer may have lost the session (protocol, section 9).
const UNANSWERED_RETRANSMISSIONS: u8 = 3;

/// The reliable exchanges of one session. Small while idle: what is large is allocated on demand, and freed when
/// nothing is left in it.
#[derive(Debug)]
pub struct Line {
    next_mid: Mid,
    next_non_mid: Mid,
    next_serial: u32,
    ring: Ring,
    rtt: RttEstimator,
    /// Nothing is due before; what was due then may be done by now.
    timer: Time,
    /// New sessions that the peer hasn't said yet of whether it remembers what was before: a line at rest counts them too.
    renewals: u8,
    busy: Option<Box<Busy>>,
}

impl Line {
    /// A line whose first confirmable message gets this Message ID; best a random one.
    pub fn new(first_mid: Mid) -> Line {
        Line {
            next_mid: first_mid,
            // Far away, so that a Message ID tells which kind of message a reset means.
            next_non_mid: first_mid.plus(0x8000),
            next_serial: 0,
            ring: Ring::default(),
            rtt: RttEstimator::default(),
            timer: Time::NEVER,
            renewals: 0,
            busy: None,
        }
    }

    /// Takes a request in; it leaves as soon as the window lets it.
    pub fn request(
        &mut self,
        cx: &mut Context<'_>,
        parts: &RequestParts<'_>,
    ) -> Result<RequestId, LineError> {
        if !parts.code.is_request() {
            return Err(LineError::WrongCode);
        }
        if let Some(busy) = &self.busy {
            busy.check_room(cx.config, parts.is_confirmable)?;
        }
        let token = self.new_token(cx.rng);
        let mid = if parts.is_confirmable { self.next_mid } else { self.take_non_mid() };
        let kind = if parts.is_confirmable { MessageType::Con } else { MessageType::Non };
        let bytes = encode(cx, kind, parts.code, mid, token, parts.options, parts.payload)?;
        let request = Request {
            user: parts.user,
            deadline: parts.deadline,
            serial: self.take_serial(),
            is_observe: parts.is_observe,
            is_repeatable: parts.is_repeatable,
            progress: Progress::Waiting,
            has_left: false,
            acked_in: 0,
            kept: None,
        };
        self.wake_by(parts.deadline);
        let busy = self.busy(cx);
        busy.outgoing.requests.insert(token, request);
        if parts.is_confirmable {
            busy.outgoing.wait(Purpose::Request(token), bytes);
        } else {
            busy.ready.push_back(Ready::NonConfirmable { bytes, request: Some(token) });
        }
        Ok(RequestId(token))
    }

    /// Gives a request up without an event: its response, should it come, will be unmatched, which ends an
    /// observation. False if it was over.
    pub fn forget(&mut self, cx: &mut Context<'_>, id: RequestId) -> bool {
        let Some(busy) = &mut self.busy else { return false };
        busy.outgoing.forget(self.next_mid, id.0, cx.pool).is_some()
    }

    /// As [`Line::forget`], by the caller's own number.
    pub fn forget_user(&mut self, cx: &mut Context<'_>, user: u64) -> bool {
        let token = self.busy.as_ref().and_then(|busy| {
            busy.outgoing.requests.iter().find(|(_, request)| request.user == user).map(|(token, _)| *token)
        });
        token.is_some_and(|token| self.forget(cx, RequestId(token)))
    }

    /// Answers a request of the peer: with the acknowledgement if that hasn't left, else in a message of its own, of
    /// the same kind as the request. After [`LineError::TooLarge`] or [`LineError::WrongCode`] it still waits.
    pub fn respond(
        &mut self,
        cx: &mut Context<'_>,
        id: IncomingId,
        response: &ResponseParts<'_>,
    ) -> Result<(), LineError> {
        if !response.code.is_response() {
            return Err(LineError::WrongCode);
        }
        let form = self.busy.as_ref().and_then(|busy| busy.incoming.answer_form(id));
        let (form, token) = form.ok_or(LineError::UnknownRequest)?;
        let (kind, mid) = match form {
            AnswerForm::Piggybacked(mid) => (MessageType::Ack, mid),
            AnswerForm::Separate(_) => (MessageType::Con, self.next_mid),
            AnswerForm::NonConfirmable => (MessageType::Non, self.take_non_mid()),
        };
        let bytes = encode(cx, kind, response.code, mid, token, response.options, response.payload)?;
        let busy = self.busy(cx);
        match form {
            AnswerForm::Piggybacked(_) => busy.answer_now(cx, id, bytes),
            AnswerForm::Separate(mid) => {
                busy.outgoing.wait(Purpose::Response, bytes);
                busy.answer_later(cx, id, mid);
            }
            AnswerForm::NonConfirmable => {
                busy.incoming.release(id, cx.pool);
                busy.push_non(bytes, cx.pool);
            }
        }
        self.wake_by(cx.now + cx.config.answer_lifetime);
        Ok(())
    }

    /// Ends a request of the peer without a response (RFC 7967): a confirmable one is only acknowledged.
    pub fn ignore(&mut self, cx: &mut Context<'_>, id: IncomingId) -> Result<(), LineError> {
        let form = self.busy.as_ref().and_then(|busy| busy.incoming.answer_form(id));
        let (form, _) = form.ok_or(LineError::UnknownRequest)?;
        let busy = self.busy(cx);
        match form {
            AnswerForm::Piggybacked(mid) => {
                let mut bytes = cx.pool.take(MESSAGE_HEAD);
                MessageWriter::empty(&mut bytes, MessageType::Ack, mid);
                busy.answer_now(cx, id, bytes);
            }
            AnswerForm::Separate(mid) => busy.answer_later(cx, id, mid),
            AnswerForm::NonConfirmable => busy.incoming.release(id, cx.pool),
        }
        self.wake_by(cx.now + cx.config.answer_lifetime);
        Ok(())
    }

    /// Takes a notification in. Returns its Message ID if it is not confirmable, to be compared with that of an
    /// [`Outcome::Reset`](super::exchange::Outcome::Reset).
    pub fn notify(
        &mut self,
        cx: &mut Context<'_>,
        parts: &NotifyParts<'_>,
    ) -> Result<Option<Mid>, LineError> {
        if !parts.response.code.is_response() {
            return Err(LineError::WrongCode);
        }
        if let Some(busy) = &self.busy {
            busy.check_room(cx.config, parts.is_confirmable)?;
        }
        let ResponseParts { code, options, payload } = parts.response;
        if parts.is_confirmable {
            let bytes = encode(cx, MessageType::Con, code, self.next_mid, parts.token, options, payload)?;
            self.busy(cx).outgoing.wait(Purpose::Notification(parts.user), bytes);
            return Ok(None);
        }
        let mid = self.take_non_mid();
        let bytes = encode(cx, MessageType::Non, code, mid, parts.token, options, payload)?;
        self.busy(cx).push_non(bytes, cx.pool);
        Ok(Some(mid))
    }

    /// False if [`Line::poll_message`] would find nothing. True is no promise that the window lets it leave.
    pub fn has_next(&mut self) -> bool {
        let Some(busy) = &mut self.busy else { return false };
        if !busy.ready.is_empty() || busy.outgoing.has_next() {
            return true;
        }
        busy.congestion.drained();
        false
    }

    /// The next message to leave. The same one again until [`Line::sent_in`] says that it has.
    pub fn poll_message(&mut self, cx: &mut Context<'_>) -> Option<Outbound<'_>> {
        loop {
            let busy = self.busy.as_deref_mut()?;
            match busy.ready.front() {
                Some(ready) if busy.is_current(self.next_mid, ready) => break,
                Some(_) => {
                    if let Some(Ready::NonConfirmable { bytes, .. }) = busy.ready.pop_front() {
                        cx.pool.give(bytes);
                    }
                }
                None => {
                    if !self.start_next(cx) {
                        return None;
                    }
                }
            }
        }
        self.busy.as_deref_mut()?.outbound(self.next_mid)
    }

    /// Says that the message of the last [`Line::poll_message`] is in the packet of this number, which leaves now.
    pub fn sent_in(&mut self, cx: &mut Context<'_>, packet: u64) {
        let Some(busy) = &mut self.busy else { return };
        match busy.ready.pop_front() {
            None | Some(Ready::Empty(..)) => {}
            Some(Ready::Answer { id, .. }) => busy.incoming.left(id),
            Some(Ready::NonConfirmable { bytes, request }) => {
                cx.pool.give(bytes);
                if let Some(request) = request.and_then(|token| busy.outgoing.requests.get_mut(&token)) {
                    request.progress = Progress::Non(Some(packet));
                }
            }
            Some(Ready::Confirmable(mid)) => {
                let Some(open) = busy.outgoing.get_mut(self.next_mid, mid) else { return };
                if open.transmissions == 0 {
                    open.first_sent = cx.now;
                    open.sent_in = self.renewals;
                    open.jitter = cx.rng.next_u32();
                }
                open.first_packet = open.first_packet.or(Some(packet));
                open.count_transmission(cx.now, &self.rtt, cx.config.initial_rto);
                self.timer = self.timer.min(open.due);
            }
        }
    }

    /// The next failure, or the end of a notification.
    pub fn poll_event(&mut self) -> Option<LineEvent> {
        self.busy.as_mut()?.events.pop_front()
    }

    /// When to call [`Line::handle_timeout`]: never later than something is due, sometimes earlier.
    pub fn next_timeout(&self) -> Time {
        self.timer
    }

    /// Does what is due: retransmissions, failures, late acknowledgements; frees what is old. True if a
    /// message was sent again so often without an answer that the peer may be gone.
    pub fn handle_timeout(&mut self, cx: &mut Context<'_>) -> bool {
        if cx.now < self.timer {
            return false;
        }
        self.timer = Time::NEVER;
        let unanswered = self.retransmit(cx);
        let Some(busy) = &mut self.busy else { return unanswered };
        for token in busy.outgoing.expired(cx.now) {
            busy.fail(self.next_mid, token, Failure::TimedOut, cx.pool);
        }
        let Busy { incoming, ready, .. } = &mut **busy;
        incoming.acknowledge_late(cx.now, cx.config.ack_delay, |mid| {
            ready.push_back(Ready::Empty(MessageType::Ack, mid));
        });
        incoming.expire_answers(cx.now, cx.config.answer_lifetime, cx.pool);
        let due = busy.incoming.next_timeout(cx.config.ack_delay, cx.config.answer_lifetime);
        self.timer = due.min(busy.outgoing.next_timeout()).min(cx.now + cx.config.answer_lifetime);
        self.free_when_rested(cx);
        unanswered
    }

    /// Ends all that is open, because the session has: each request fails by [`Failure::SessionLost`] or
    /// [`Failure::NotSent`], requests of the peer can't be answered any more. The memory of what was handled stays.
    pub fn fail_open(&mut self, cx: &mut Context<'_>) {
        let Some(busy) = &mut self.busy else { return };
        for token in busy.outgoing.tokens(|_| true) {
            busy.fail(self.next_mid, token, Failure::SessionLost, cx.pool);
        }
        let Busy { outgoing, incoming, ready, events, .. } = &mut **busy;
        outgoing.clear(cx.pool, |user| {
            events.push_back(LineEvent::NotifyFailed { user, reason: Failure::SessionLost });
        });
        ready.clear();
        *incoming = Incoming::default();
        self.timer = Time::NEVER;
    }

    /// True if nothing is open, waits, or is to be told. Answers may still be kept.
    pub fn is_idle(&self) -> bool {
        self.busy.as_ref().is_none_or(|busy| busy.is_idle())
    }

    /// Gives up the kept answers, and all memory if nothing is left. A repeated request is then not answered again,
    /// nor run again.
    pub fn shrink(&mut self, cx: &mut Context<'_>) {
        if let Some(busy) = &mut self.busy {
            busy.incoming.give_up_answers(cx.pool);
        }
        self.free_if_empty();
    }

    /// Messages that are sent and not acknowledged.
    pub fn in_flight(&self) -> usize {
        self.busy.as_ref().map_or(0, |busy| busy.outgoing.in_flight())
    }

    /// The timeout of what the round trips say, for others that retransmit in this session by a schedule of their own:
    /// without the doublings that lost messages caused here.
    pub fn rto(&self, config: &LineConfig) -> Duration {
        self.rtt.base_rto(config.initial_rto)
    }

    /// The smoothed round trip, once it was measured.
    pub fn round_trip(&self) -> Option<Duration> {
        self.rtt.smoothed()
    }

    /// Takes a round trip into account that others measured in this session.
    pub fn add_round_trip(&mut self, now: Time, round_trip: Duration) {
        self.rtt.sample(round_trip);
        if let Some(busy) = &mut self.busy {
            busy.measured_at = now;
        }
    }

    /// Something came from the peer: it is there, so what has been repeated into silence need not go on doubling its
    /// timeouts up to a minute.
    pub fn heard(&mut self, now: Time, config: &LineConfig) {
        if self.rtt.backoff() == 0 {
            return;
        }
        let Some(busy) = &mut self.busy else { return };
        let due = busy.outgoing.hasten(now, self.rtt.base_rto(config.initial_rto), LONG_WAIT);
        self.timer = self.timer.min(due);
    }

    fn retransmit(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(busy) = self.busy.as_mut() else { return false };
        let mut unanswered = false;
        while let Some(mid) = busy.outgoing.first_due(self.next_mid, cx.now) {
            let Some(open) = busy.outgoing.get_mut(self.next_mid, mid) else { break };
            unanswered |= open.transmissions > UNANSWERED_RETRANSMISSIONS;
            // If samples came in since then, it was lost, and what leaves next needs no longer timeout: unlike TCP's
            // segments, the messages of many exchanges don't wait for each other.
            if busy.measured_at <= open.first_sent {
                self.rtt.timed_out(open.transmissions);
            }
            busy.congestion.timed_out(cx.now, open.last_sent, self.rtt.backoff());
            if open.transmissions <= cx.config.max_retransmit || busy.is_patient {
                if self.rtt.backoff() == 0 {
                    busy.outgoing.lose(self.next_mid, mid);
                } else {
                    // Into silence each goes by its own doubled timeouts (RFC 7252 section 4.2).
                    open.due = Time::NEVER;
                    busy.ready.push_back(Ready::Confirmable(mid));
                }
                continue;
            }
            let Some(open) = busy.outgoing.close(self.next_mid, mid) else { break };
            cx.pool.give(open.bytes);
            busy.end(self.next_mid, open.purpose, Failure::TimedOut, cx.pool);
        }
        unanswered
    }

    fn busy(&mut self, cx: &Context<'_>) -> &mut Busy {
        if self.busy.is_none() {
            // So that its memory is freed even if nothing else is ever due.
            self.wake_by(cx.now + cx.config.answer_lifetime);
        }
        self.busy.get_or_insert_default()
    }

    fn free_if_empty(&mut self) {
        if self.busy.as_ref().is_some_and(|busy| busy.is_empty()) {
            self.busy = None;
            self.timer = Time::NEVER;
        }
    }

    fn wake_by(&mut self, time: Time) {
        self.timer = self.timer.min(time);
    }

    fn take_serial(&mut self) -> u32 {
        let serial = self.next_serial;
        self.next_serial = serial.wrapping_add(1);
        serial
    }

    fn new_token(&self, rng: &mut ChaCha12Rng) -> MessageToken {
        loop {
            let token = MessageToken::from_u32(rng.next_u32());
            let is_taken = |busy: &Busy| busy.outgoing.requests.contains_key(&token);
            if !self.busy.as_deref().is_some_and(is_taken) {
                return token;
            }
        }
    }

    /// A Message ID for what is not confirmable: never one that a confirmable message has or will have soon.
    fn take_non_mid(&mut self) -> Mid {
        let window = MID_WINDOW as u16;
        let oldest = self.next_mid.plus(0u16.wrapping_sub(window));
        if self.next_non_mid.since(oldest) < 2 * window {
            self.next_non_mid = oldest.plus(2 * window);
        }
        let mid = self.next_non_mid;
        self.next_non_mid = mid.plus(1);
        mid
    }
}

#[cfg(test)]
mod tests;
