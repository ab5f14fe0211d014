//! The reliable exchanges of one session, both ways: RFC 7252 sections 4 and 5.2 as a machine without I/O.
//!
//! A line owns the Message IDs of this side, the memory of those of the other, what is in flight and what waits. It
//! knows nothing of keys and packets, so a new session can take it over from an old one. Its owner drives it:
//!
//! 1. [`Line::request`], [`Line::respond`] and [`Line::notify`] take messages in, [`Line::handle_message`] what came
//!    from the peer, [`Line::handle_timeout`] the time;
//! 2. after each of these, [`Line::poll_message`] until it has nothing more, each message followed by
//!    [`Line::sent_in`] once it is in a packet; then [`Line::poll_event`]; then a timer for [`Line::next_timeout`].
//!
//! What it promises: a confirmable request reaches the other side's handler once if it is answered, at most once if
//! it fails. What it doesn't: order among requests, or that a non-confirmable message arrives.
use super::{
    code::Code,
    incoming::{AnswerForm, AnswerLimits, Incoming, Repeat, Ring, Seen},
    message::{Message, MessageToken, MessageType, Mid},
    option::OptionNumber,
    option_set::OptionSet,
    outgoing::{Outgoing, Progress, Purpose, Request},
    pool::Pool,
    retransmit::{INITIAL_RTO, MAX_RETRANSMIT, RttEstimator, spread},
    writer::MessageWriter,
};
use crate::time::{Duration, Time};
use alloc::{boxed::Box, collections::VecDeque, vec::Vec};
use core::fmt;
use rand_chacha::{ChaCha12Rng, rand_core::Rng};

pub use super::incoming::{IncomingId, MID_WINDOW};

/// Acknowledgements, resets and responses to non-confirmable requests that may wait to leave. The peer sends again
/// what it missed because of more.
const MAX_READY: usize = 1024;
/// What a peer with too many open requests is told: seconds until it may ask again (RFC 8516 section 3).
const OVERLOAD_MAX_AGE: u32 = 1;

/// Limits and times of a line; the same for all lines of a net.
#[derive(Clone, Debug)]
pub struct LineConfig {
    /// Confirmable messages in flight (RFC 7252 section 4.7 NSTART). Default 16.
    pub window: usize,
    /// Bytes of the largest message that fits into a packet. Default 1152.
    pub max_message: usize,
    /// Messages that may wait for the window. Default 256.
    pub max_waiting: usize,
    /// Bytes that may wait for the window. Default 64 KiB.
    pub max_waiting_bytes: usize,
    /// Requests without their response, those that wait included. Default 1024.
    pub max_requests: usize,
    /// Requests of the peer that wait for our answer; more are told 4.29. Default 256.
    pub max_incoming: usize,
    /// Answers kept for repeated requests. Default 256, as many as the peer can ask for again.
    pub max_answers: usize,
    /// Bytes of answers kept for repeated requests. Default 64 KiB.
    pub max_answer_bytes: usize,
    /// How long an answer is kept. Default 247 s (RFC 7252 section 4.8.2 EXCHANGE_LIFETIME).
    pub answer_lifetime: Duration,
    /// How long an acknowledgement waits for the response to go with it. Default 50 ms.
    pub ack_delay: Duration,
    /// Timeout before the first measured round trip. Default 2 s.
    pub initial_rto: Duration,
    /// Retransmissions before giving up. Default 4.
    pub max_retransmit: u8,
}

impl Default for LineConfig {
    fn default() -> LineConfig {
        LineConfig {
            window: 16,
            max_message: 1152,
            max_waiting: 256,
            max_waiting_bytes: 64 * 1024,
            max_requests: 1024,
            max_incoming: 256,
            max_answers: MID_WINDOW,
            max_answer_bytes: 64 * 1024,
            answer_lifetime: Duration::from_secs(247),
            ack_delay: Duration::from_millis(50),
            initial_rto: INITIAL_RTO,
            max_retransmit: MAX_RETRANSMIT,
        }
    }
}

/// What the owner of many lines lends to one for a call.
#[derive(Debug)]
pub struct Context<'a> {
    /// The time of the call.
    pub now: Time,
    /// Randomness for tokens and timeouts.
    pub rng: &'a mut ChaCha12Rng,
    /// Buffers.
    pub pool: &'a mut Pool,
    /// Limits and times.
    pub config: &'a LineConfig,
}

/// A request to be sent.
#[derive(Clone, Copy, Debug)]
pub struct RequestParts<'a> {
    /// Method, 0.01 to 0.31.
    pub code: Code,
    /// Options.
    pub options: &'a OptionSet,
    /// Payload; may be empty.
    pub payload: &'a [u8],
    /// Whether it is sent until it is acknowledged.
    pub is_confirmable: bool,
    /// Whether responses may follow the first: the request carries Observe 0 (RFC 7641). It then lasts until
    /// [`Line::forget`], or a response that says it is the last by being an error or by having no Observe.
    pub is_observe: bool,
    /// When it fails if the (first) response hasn't come.
    pub deadline: Time,
    /// The caller's number for it, given back with what becomes of it.
    pub user: u64,
}

/// A response to be sent.
#[derive(Clone, Copy, Debug)]
pub struct ResponseParts<'a> {
    /// Response code, 2.00 to 5.31.
    pub code: Code,
    /// Options.
    pub options: &'a OptionSet,
    /// Payload; may be empty.
    pub payload: &'a [u8],
}

/// A further response to a request of the peer with Observe (RFC 7641 section 4.2).
#[derive(Clone, Copy, Debug)]
pub struct NotifyParts<'a> {
    /// The token of the request.
    pub token: MessageToken,
    /// What is sent.
    pub response: ResponseParts<'a>,
    /// Whether it is sent until it is acknowledged; the caller then hears of its end by
    /// [`LineEvent::Notified`] or [`LineEvent::NotifyFailed`].
    pub is_confirmable: bool,
    /// The caller's number for it.
    pub user: u64,
}

/// A request of this side, until its last response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(MessageToken);

impl RequestId {
    /// The token it travels with.
    pub fn token(self) -> MessageToken {
        self.0
    }
}

/// What a message of the peer was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handled {
    /// What is to be done about it.
    pub outcome: Outcome,
    /// It answers what left in this packet first, which therefore arrived (or a later one did).
    pub answered: Option<u64>,
}

/// What is to be done about a message of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is a request: run the handler on it, then [`Line::respond`] or [`Line::ignore`].
    Request(IncomingId),
    /// It is a response to a request of this side.
    Response {
        /// The request.
        id: RequestId,
        /// The request's number.
        user: u64,
        /// Whether nothing more follows; the id is then over.
        is_last: bool,
    },
    /// Nothing: an acknowledgement, a reset of what was open, or a ping.
    Done,
    /// Nothing: it came before.
    Repeated,
    /// Nothing: it came before, and its answer was given up.
    AnswerGone,
    /// Nothing: it is too old to tell whether it came before.
    TooOld,
    /// Nothing: it belongs to nothing that is open.
    Unmatched,
    /// The peer rejects a message that is not in flight: perhaps a non-confirmable notification.
    Reset(Mid),
    /// Nothing: too many requests are open, and the peer is told so.
    Overloaded,
}

/// What time, or the end of the session, made of a message of this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineEvent {
    /// A request has failed; its id is over.
    Failed {
        /// The request.
        id: RequestId,
        /// The request's number.
        user: u64,
        /// Why.
        reason: Failure,
    },
    /// A confirmable notification has arrived.
    Notified {
        /// The notification's number.
        user: u64,
    },
    /// A confirmable notification was rejected, or not acknowledged: the observer is gone.
    NotifyFailed {
        /// The notification's number.
        user: u64,
        /// Why.
        reason: Failure,
    },
}

/// Why a request ended without a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Not acknowledged, or not answered before the deadline. It ran at most once.
    TimedOut,
    /// The peer couldn't process it. It did not run.
    Reset,
    /// The session ended. It ran at most once.
    SessionLost,
    /// It never left, as others were before it. It did not run.
    NotSent,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Failure::TimedOut => "no answer in time: it may have run",
            Failure::Reset => "the peer rejected it: it did not run",
            Failure::SessionLost => "session lost: it may have run",
            Failure::NotSent => "not sent: it did not run",
        })
    }
}

impl core::error::Error for Failure {}

/// Why a message was not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineError {
    /// As many messages wait as are allowed to.
    QueueFull,
    /// It doesn't fit into a packet.
    TooLarge,
    /// A request with a response's code, or the other way round.
    WrongCode,
    /// The request to be answered is not waiting for an answer.
    UnknownRequest,
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LineError::QueueFull => "too many messages are waiting to be sent",
            LineError::TooLarge => "the message doesn't fit into a packet",
            LineError::WrongCode => "this code doesn't belong into this kind of message",
            LineError::UnknownRequest => "the request was answered before, or its session has ended",
        })
    }
}

impl core::error::Error for LineError {}

/// A message that is to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outbound<'a> {
    /// The whole message.
    pub bytes: &'a [u8],
    /// Whether it left before.
    pub is_repeat: bool,
}

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
    busy: Option<Box<Busy>>,
}

#[derive(Debug, Default)]
struct Busy {
    outgoing: Outgoing,
    incoming: Incoming,
    ready: VecDeque<Ready>,
    events: VecDeque<LineEvent>,
    /// The empty message that is on its way out.
    scratch: Vec<u8>,
}

/// What leaves as soon as there is a packet for it.
#[derive(Debug)]
enum Ready {
    Empty(MessageType, Mid),
    Answer { id: IncomingId, is_repeat: bool },
    Confirmable(Mid),
    NonConfirmable { bytes: Vec<u8>, request: Option<MessageToken> },
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
            progress: if parts.is_confirmable { Progress::Waiting } else { Progress::Non(None) },
        };
        self.wake_by(parts.deadline);
        let busy = self.busy();
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
        let busy = self.busy();
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
        let busy = self.busy();
        match form {
            AnswerForm::Piggybacked(mid) => {
                let mut bytes = cx.pool.take();
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
    /// [`Outcome::Reset`].
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
            self.busy().outgoing.wait(Purpose::Notification(parts.user), bytes);
            return Ok(None);
        }
        let mid = self.take_non_mid();
        let bytes = encode(cx, MessageType::Non, code, mid, parts.token, options, payload)?;
        self.busy().push_non(bytes, cx.pool);
        Ok(Some(mid))
    }

    /// Takes in a message of the peer. Each packet must come here once: that non-confirmable messages run once is
    /// the packets' replay protection.
    pub fn handle_message(&mut self, cx: &mut Context<'_>, message: &Message<'_>) -> Handled {
        let code = message.code();
        match message.kind() {
            MessageType::Con if code.is_request() => {
                Handled::only(self.handle_confirmable_request(cx, message))
            }
            MessageType::Con if code.is_response() => self.handle_separate_response(cx, message),
            MessageType::Con => {
                // A ping (RFC 7252 section 4.3).
                self.busy().push_empty(MessageType::Rst, message.mid());
                Handled::only(Outcome::Done)
            }
            MessageType::Non if code.is_request() => Handled::only(self.handle_non_request(cx, message)),
            MessageType::Non => self.handle_non_response(cx, message),
            MessageType::Ack => self.handle_acknowledgement(cx, message),
            MessageType::Rst => self.handle_reset(cx, message),
        }
    }

    /// The next message to leave. The same one again until [`Line::sent_in`] says that it has.
    pub fn poll_message(&mut self, cx: &mut Context<'_>) -> Option<Outbound<'_>> {
        let busy = self.busy.as_deref_mut()?;
        loop {
            match busy.ready.front() {
                Some(ready) if busy.is_current(self.next_mid, ready) => break,
                Some(_) => drop(busy.ready.pop_front()),
                None => {
                    if !busy.outgoing.start_next(self.next_mid, cx.config.window) {
                        return None;
                    }
                    busy.ready.push_back(Ready::Confirmable(self.next_mid));
                    self.next_mid = self.next_mid.plus(1);
                }
            }
        }
        busy.outbound(self.next_mid)
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
                    open.rto = spread(self.rtt.rto(cx.config.initial_rto), cx.rng.next_u32());
                }
                open.first_packet = open.first_packet.or(Some(packet));
                open.transmissions = open.transmissions.saturating_add(1);
                open.due = cx.now + open.rto;
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

    /// Does what is due: retransmissions, failures, late acknowledgements; frees what is old.
    pub fn handle_timeout(&mut self, cx: &mut Context<'_>) {
        if cx.now < self.timer {
            return;
        }
        self.timer = Time::NEVER;
        self.retransmit(cx);
        let Some(busy) = &mut self.busy else { return };
        for token in busy.outgoing.expired(cx.now) {
            busy.fail(self.next_mid, token, Failure::TimedOut, cx.pool);
        }
        let Busy { incoming, ready, .. } = &mut **busy;
        incoming.acknowledge_late(cx.now, cx.config.ack_delay, |mid| {
            ready.push_back(Ready::Empty(MessageType::Ack, mid));
        });
        incoming.expire_answers(cx.now, cx.config.answer_lifetime, cx.pool);
        let due = busy.incoming.next_timeout(cx.config.ack_delay, cx.config.answer_lifetime);
        self.timer = due.min(busy.outgoing.next_timeout());
        self.free_if_empty();
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

    /// Prepares for a new session that takes this line over: what is in flight leaves again, with the same Message
    /// IDs and tokens. Packet numbers of the old session mean nothing any more.
    pub fn send_again(&mut self, cx: &mut Context<'_>) {
        let Some(busy) = &mut self.busy else { return };
        busy.ready.retain(|ready| !matches!(ready, Ready::Confirmable(_)));
        let mids: Vec<Mid> = busy.outgoing.mids(self.next_mid).map(|(mid, _)| mid).collect();
        for mid in mids {
            let Some(open) = busy.outgoing.get_mut(self.next_mid, mid) else { continue };
            // Not 0: a message that left before gives no round trip.
            open.transmissions = open.transmissions.min(1);
            open.rto = spread(self.rtt.rto(cx.config.initial_rto), cx.rng.next_u32());
            open.first_packet = None;
            open.due = Time::NEVER;
            busy.ready.push_back(Ready::Confirmable(mid));
        }
        for request in busy.outgoing.requests.values_mut() {
            if let Progress::Non(packet) = &mut request.progress {
                *packet = None;
            }
        }
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
    pub fn add_round_trip(&mut self, round_trip: Duration) {
        self.rtt.sample(round_trip);
    }

    fn handle_confirmable_request(&mut self, cx: &mut Context<'_>, message: &Message<'_>) -> Outcome {
        let mid = message.mid();
        match self.ring.look(mid) {
            Seen::TooOld => return Outcome::TooOld,
            Seen::Before => return self.busy().repeat(mid),
            Seen::Never => self.ring.mark(mid),
        }
        let serial = self.take_serial();
        self.wake_by(cx.now + cx.config.ack_delay);
        let busy = self.busy();
        let is_full = busy.incoming.open() >= cx.config.max_incoming;
        let Some(id) = busy.incoming.add(cx.now, serial, mid, message.token(), true, cx.pool) else {
            return Outcome::Overloaded;
        };
        if !is_full {
            return Outcome::Request(id);
        }
        // It is marked and its answer kept like a handler's: a repetition must not run after the peer was told that
        // it didn't.
        let mut bytes = cx.pool.take();
        encode_overload(&mut bytes, MessageType::Ack, mid, message.token());
        busy.answer_now(cx, id, bytes);
        Outcome::Overloaded
    }

    fn handle_non_request(&mut self, cx: &mut Context<'_>, message: &Message<'_>) -> Outcome {
        let serial = self.take_serial();
        let is_full = self.busy().incoming.open() >= cx.config.max_incoming;
        if is_full {
            let mid = self.take_non_mid();
            let mut bytes = cx.pool.take();
            encode_overload(&mut bytes, MessageType::Non, mid, message.token());
            self.busy().push_non(bytes, cx.pool);
            return Outcome::Overloaded;
        }
        let id = self.busy().incoming.add(cx.now, serial, message.mid(), message.token(), false, cx.pool);
        id.map_or(Outcome::Overloaded, Outcome::Request)
    }

    fn handle_separate_response(&mut self, cx: &mut Context<'_>, message: &Message<'_>) -> Handled {
        let mid = message.mid();
        match self.ring.look(mid) {
            Seen::TooOld => return Handled::only(Outcome::TooOld),
            Seen::Before => {
                self.busy().push_empty(MessageType::Ack, mid);
                return Handled::only(Outcome::Repeated);
            }
            Seen::Never => {}
        }
        let Some(handled) = self.accept_response(cx, message) else {
            // Not marked: should it come again, it is rejected again, not acknowledged.
            self.busy().push_empty(MessageType::Rst, mid);
            return Handled::only(Outcome::Unmatched);
        };
        self.ring.mark(mid);
        self.busy().push_empty(MessageType::Ack, mid);
        handled
    }

    fn handle_non_response(&mut self, cx: &mut Context<'_>, message: &Message<'_>) -> Handled {
        self.accept_response(cx, message).unwrap_or_else(|| {
            if message.option(OptionNumber::OBSERVE).is_some() {
                // The other side would notify for ever (RFC 7641 section 3.6).
                self.busy().push_empty(MessageType::Rst, message.mid());
            }
            Handled::only(Outcome::Unmatched)
        })
    }

    /// Matches a response with its request by the token (RFC 7252 section 5.3.2).
    fn accept_response(&mut self, cx: &mut Context<'_>, message: &Message<'_>) -> Option<Handled> {
        let busy = self.busy.as_mut()?;
        let token = message.token();
        let request = busy.outgoing.requests.get_mut(&token)?;
        let Request { user, progress, is_observe, .. } = *request;
        let is_last =
            !(is_observe && message.code().is_success() && message.option(OptionNumber::OBSERVE).is_some());
        if progress == Progress::Waiting {
            return None;
        }
        if is_last {
            busy.outgoing.requests.remove(&token);
        } else {
            request.progress = Progress::Observing;
            request.deadline = Time::NEVER;
        }
        let answered = match progress {
            Progress::Sent(mid) => busy.outgoing.close(self.next_mid, mid).and_then(|open| {
                cx.pool.give(open.bytes);
                open.first_packet
            }),
            Progress::Non(packet) => packet,
            Progress::Waiting | Progress::Acked | Progress::Observing => None,
        };
        Some(Handled { outcome: Outcome::Response { id: RequestId(token), user, is_last }, answered })
    }

    fn handle_acknowledgement(&mut self, cx: &mut Context<'_>, message: &Message<'_>) -> Handled {
        let unmatched = Handled::only(Outcome::Unmatched);
        let mid = message.mid();
        let Some(busy) = &mut self.busy else { return unmatched };
        let Some(open) = busy.outgoing.get(self.next_mid, mid) else { return unmatched };
        let (purpose, round_trip) = (open.purpose, open.round_trip(cx.now));
        let carries_response = message.code() != Code::EMPTY;
        if carries_response && purpose != Purpose::Request(message.token()) {
            return unmatched;
        }
        if let Some(round_trip) = round_trip {
            self.rtt.sample(round_trip);
        }
        if carries_response {
            return self.accept_response(cx, message).unwrap_or(unmatched);
        }
        let Some(open) = busy.outgoing.close(self.next_mid, mid) else { return unmatched };
        cx.pool.give(open.bytes);
        match purpose {
            Purpose::Request(token) => {
                if let Some(request) = busy.outgoing.requests.get_mut(&token) {
                    request.progress = Progress::Acked;
                }
            }
            Purpose::Notification(user) => busy.events.push_back(LineEvent::Notified { user }),
            Purpose::Response => {}
        }
        Handled { outcome: Outcome::Done, answered: open.first_packet }
    }

    fn handle_reset(&mut self, cx: &mut Context<'_>, message: &Message<'_>) -> Handled {
        let reset = Handled::only(Outcome::Reset(message.mid()));
        let Some(busy) = &mut self.busy else { return reset };
        let Some(open) = busy.outgoing.close(self.next_mid, message.mid()) else { return reset };
        cx.pool.give(open.bytes);
        busy.end(self.next_mid, open.purpose, Failure::Reset, cx.pool);
        Handled { outcome: Outcome::Done, answered: open.first_packet }
    }

    fn retransmit(&mut self, cx: &mut Context<'_>) {
        let Some(busy) = &mut self.busy else { return };
        while let Some(mid) = busy.outgoing.first_due(self.next_mid, cx.now) {
            let Some(open) = busy.outgoing.get_mut(self.next_mid, mid) else { return };
            if open.transmissions <= cx.config.max_retransmit {
                self.rtt.timed_out(open.transmissions);
                open.back_off();
                busy.ready.push_back(Ready::Confirmable(mid));
                continue;
            }
            let Some(open) = busy.outgoing.close(self.next_mid, mid) else { return };
            cx.pool.give(open.bytes);
            busy.end(self.next_mid, open.purpose, Failure::TimedOut, cx.pool);
        }
    }

    fn busy(&mut self) -> &mut Busy {
        self.busy.get_or_insert_default()
    }

    fn free_if_empty(&mut self) {
        if self.busy.as_ref().is_some_and(|busy| busy.is_idle() && busy.incoming.answers() == 0) {
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

impl Handled {
    fn only(outcome: Outcome) -> Handled {
        Handled { outcome, answered: None }
    }
}

impl Busy {
    fn is_idle(&self) -> bool {
        self.outgoing.is_empty()
            && self.incoming.open() == 0
            && self.ready.is_empty()
            && self.events.is_empty()
    }

    fn check_room(&self, config: &LineConfig, is_confirmable: bool) -> Result<(), LineError> {
        let (count, bytes) = self.outgoing.waiting();
        let is_full = if is_confirmable {
            count >= config.max_waiting || bytes >= config.max_waiting_bytes
        } else {
            self.ready.len() >= config.max_waiting
        };
        if is_full || self.outgoing.requests.len() >= config.max_requests {
            return Err(LineError::QueueFull);
        }
        Ok(())
    }

    fn push_empty(&mut self, kind: MessageType, mid: Mid) {
        if self.ready.len() < MAX_READY {
            self.ready.push_back(Ready::Empty(kind, mid));
        }
    }

    fn push_non(&mut self, bytes: Vec<u8>, pool: &mut Pool) {
        if self.ready.len() < MAX_READY {
            self.ready.push_back(Ready::NonConfirmable { bytes, request: None });
        } else {
            pool.give(bytes);
        }
    }

    /// Lets the answer of `id` leave, and keeps it.
    fn answer_now(&mut self, cx: &mut Context<'_>, id: IncomingId, bytes: Vec<u8>) {
        self.incoming.set_answer(cx.now, id, bytes, true, answer_limits(cx.config), cx.pool);
        self.ready.push_back(Ready::Answer { id, is_repeat: false });
    }

    /// The acknowledgement has left and the answer goes its own way: a repetition is only acknowledged.
    fn answer_later(&mut self, cx: &mut Context<'_>, id: IncomingId, mid: Mid) {
        let mut bytes = cx.pool.take();
        MessageWriter::empty(&mut bytes, MessageType::Ack, mid);
        self.incoming.set_answer(cx.now, id, bytes, false, answer_limits(cx.config), cx.pool);
    }

    fn repeat(&mut self, mid: Mid) -> Outcome {
        match self.incoming.repeat(mid) {
            Repeat::Acknowledge => self.push_empty(MessageType::Ack, mid),
            Repeat::Resend(id) => self.ready.push_back(Ready::Answer { id, is_repeat: true }),
            Repeat::Wait | Repeat::Leaving => {}
            Repeat::Gone => return Outcome::AnswerGone,
        }
        Outcome::Repeated
    }

    /// Whether what was put down to leave still has to.
    fn is_current(&self, next_mid: Mid, ready: &Ready) -> bool {
        match ready {
            Ready::Empty(..) | Ready::NonConfirmable { .. } => true,
            Ready::Answer { id, .. } => self.incoming.leaving(*id).is_some(),
            Ready::Confirmable(mid) => {
                self.outgoing.get(next_mid, *mid).is_some_and(|open| open.due == Time::NEVER)
            }
        }
    }

    fn outbound(&mut self, next_mid: Mid) -> Option<Outbound<'_>> {
        match self.ready.front()? {
            Ready::Empty(kind, mid) => {
                self.scratch.clear();
                MessageWriter::empty(&mut self.scratch, *kind, *mid);
                Some(Outbound { bytes: &self.scratch, is_repeat: false })
            }
            Ready::Answer { id, is_repeat } => {
                Some(Outbound { bytes: self.incoming.leaving(*id)?, is_repeat: *is_repeat })
            }
            Ready::NonConfirmable { bytes, .. } => Some(Outbound { bytes, is_repeat: false }),
            Ready::Confirmable(mid) => {
                let open = self.outgoing.get(next_mid, *mid)?;
                Some(Outbound { bytes: &open.bytes, is_repeat: open.transmissions > 0 })
            }
        }
    }

    /// A confirmable message ended without an acknowledgement.
    fn end(&mut self, next_mid: Mid, purpose: Purpose, reason: Failure, pool: &mut Pool) {
        match purpose {
            Purpose::Request(token) => self.fail(next_mid, token, reason, pool),
            Purpose::Notification(user) => self.events.push_back(LineEvent::NotifyFailed { user, reason }),
            Purpose::Response => {}
        }
    }

    fn fail(&mut self, next_mid: Mid, token: MessageToken, reason: Failure, pool: &mut Pool) {
        let Some(request) = self.outgoing.forget(next_mid, token, pool) else { return };
        let reason = if request.progress == Progress::Waiting { Failure::NotSent } else { reason };
        self.events.push_back(LineEvent::Failed { id: RequestId(token), user: request.user, reason });
    }
}

fn answer_limits(config: &LineConfig) -> AnswerLimits {
    AnswerLimits { count: config.max_answers, bytes: config.max_answer_bytes }
}

/// The bytes of a message, in a buffer of the pool.
fn encode(
    cx: &mut Context<'_>,
    kind: MessageType,
    code: Code,
    mid: Mid,
    token: MessageToken,
    options: &OptionSet,
    payload: &[u8],
) -> Result<Vec<u8>, LineError> {
    let mut bytes = cx.pool.take();
    let mut writer = MessageWriter::new(&mut bytes, kind, code, mid, token);
    let is_written = writer.options(options).is_ok();
    writer.payload(payload);
    if !is_written || bytes.len() > cx.config.max_message {
        cx.pool.give(bytes);
        return Err(LineError::TooLarge);
    }
    Ok(bytes)
}

fn encode_overload(out: &mut Vec<u8>, kind: MessageType, mid: Mid, token: MessageToken) {
    let mut writer = MessageWriter::new(out, kind, Code::TOO_MANY_REQUESTS, mid, token);
    // One option can't be out of order.
    let _ = writer.uint(OptionNumber::MAX_AGE, OVERLOAD_MAX_AGE);
}
