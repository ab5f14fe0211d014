//! The words in which a [`Line`](super::line::Line) and its owner talk: limits, what is to be sent, what came of it.
use super::{
    code::Code,
    incoming::MID_WINDOW,
    message::{MessageToken, Mid},
    option_set::OptionSet,
    pool::Pool,
    retransmit::{INITIAL_RTO, MAX_RETRANSMIT},
};
use crate::time::{Duration, Time};
use core::fmt;
use rand_chacha::ChaCha12Rng;

pub use super::incoming::IncomingId;

/// Limits and times of a line; the same for all lines of a net.
#[derive(Clone, Debug)]
pub struct LineConfig {
    /// Most confirmable messages in flight (RFC 7252 section 4.7 NSTART), if the path takes as many. Default 256: more
    /// would outrun the peer's memory.
    pub window: usize,
    /// Bytes of the largest message that fits into a packet. Default 1152.
    pub max_message: usize,
    /// Messages that may wait for the window. Default 256.
    pub max_waiting: usize,
    /// Bytes that may wait for the window. Default 256 KiB.
    pub max_waiting_bytes: usize,
    /// Requests without their response, those that wait included. Default 1024.
    pub max_requests: usize,
    /// Requests of the peer that wait for our answer, and separate responses that it hasn't acknowledged; more requests
    /// are told 4.29. Default 256.
    pub max_incoming: usize,
    /// Answers kept for repeated requests. Default 256, as many as the peer can ask for again.
    pub max_answers: usize,
    /// Bytes of answers kept for repeated requests. With as many in separate responses that the peer hasn't
    /// acknowledged, its requests are told 4.29. Default 64 KiB.
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
            window: MID_WINDOW,
            max_message: 1152,
            max_waiting: 256,
            max_waiting_bytes: 256 * 1024,
            max_requests: 1024,
            max_incoming: MID_WINDOW,
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
    /// Whether it may run twice if the other side loses its memory: by its method, or by the caller's word.
    pub is_repeatable: bool,
    /// Whether responses may follow the first: the request carries Observe 0 (RFC 7641). It then lasts until
    /// [`Line::forget`](super::line::Line::forget), or a response that says it is the last by being an error or by having no Observe.
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
pub struct RequestId(pub(super) MessageToken);

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
    /// It is a request: run the handler on it, then
    /// [`Line::respond`](super::line::Line::respond) or [`Line::ignore`](super::line::Line::ignore).
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
    /// The peer lost its memory, and the request must not run twice. It ran at most once.
    PeerForgot,
    /// It never left, as others were before it. It did not run.
    NotSent,
    /// It never left, as it fits into no packet of this session. It did not run.
    TooLarge,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Failure::TimedOut => "no answer in time: it may have run",
            Failure::Reset => "the peer rejected it: it did not run",
            Failure::SessionLost => "session lost: it may have run",
            Failure::PeerForgot => "the peer lost its memory: it may have run",
            Failure::NotSent => "not sent: it did not run",
            Failure::TooLarge => "too large for a packet of this session: it did not run",
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

impl Handled {
    pub(super) fn only(outcome: Outcome) -> Handled {
        Handled { outcome, answered: None }
    }
}
