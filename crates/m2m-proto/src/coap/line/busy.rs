//! The part of a line that exists only while it has something to do.
use super::super::{
    code::Code,
    congestion::Congestion,
    exchange::{Context, Failure, LineConfig, LineError, LineEvent, Outbound, Outcome, RequestId},
    incoming::{AnswerLimits, Incoming, IncomingId, Repeat},
    message::{MessageToken, MessageType, Mid},
    option::OptionNumber,
    option_set::OptionSet,
    outgoing::{Outgoing, Progress, Purpose},
    pool::Pool,
    writer::MessageWriter,
};
use crate::time::Time;
use alloc::{collections::VecDeque, vec::Vec};

/// Acknowledgements, resets and responses to non-confirmable requests that may wait to leave. The peer sends again
/// what it missed because of more.
const MAX_READY: usize = 1024;
/// What a peer with too many open requests is told: seconds until it may ask again (RFC 8516 section 3).
const OVERLOAD_MAX_AGE: u32 = 1;

/// Bytes of a message's head and token (RFC 7252 section 3).
pub(super) const MESSAGE_HEAD: usize = 4 + 8;
/// Bytes of a message's options and the marker after them, in most.
const OPTIONS_ROOM: usize = 32;

#[derive(Debug, Default)]
pub(super) struct Busy {
    pub(super) outgoing: Outgoing,
    pub(super) incoming: Incoming,
    pub(super) ready: VecDeque<Ready>,
    pub(super) events: VecDeque<LineEvent>,
    /// Retransmissions go on beyond their number: the session is being opened anew, which decides.
    pub(super) is_patient: bool,
    pub(super) congestion: Congestion,
    /// When a round trip was measured last.
    pub(super) measured_at: Time,
    /// The empty message that is on its way out.
    scratch: Vec<u8>,
}

/// What leaves as soon as there is a packet for it.
#[derive(Debug)]
pub(super) enum Ready {
    Empty(MessageType, Mid),
    Answer { id: IncomingId, is_repeat: bool },
    Confirmable(Mid),
    NonConfirmable { bytes: Vec<u8>, request: Option<MessageToken> },
}

impl Busy {
    pub(super) fn is_idle(&self) -> bool {
        self.outgoing.is_empty()
            && self.incoming.open() == 0
            && self.ready.is_empty()
            && self.events.is_empty()
    }

    /// Idle, and without answers for repeated requests.
    pub(super) fn is_empty(&self) -> bool {
        self.is_idle() && self.incoming.answers() == 0
    }

    pub(super) fn check_room(&self, config: &LineConfig, is_confirmable: bool) -> Result<(), LineError> {
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

    /// Whether the peer has as many requests open as it may. A response that it doesn't acknowledge keeps its request
    /// open, or a peer that never does could have us keep any number of them.
    pub(super) fn is_overloaded(&self, config: &LineConfig) -> bool {
        let (responses, bytes) = self.outgoing.responses();
        self.incoming.open() + responses >= config.max_incoming || bytes >= config.max_answer_bytes
    }

    pub(super) fn push_empty(&mut self, kind: MessageType, mid: Mid) {
        if self.ready.len() < MAX_READY {
            self.ready.push_back(Ready::Empty(kind, mid));
        }
    }

    pub(super) fn push_non(&mut self, bytes: Vec<u8>, pool: &mut Pool) {
        if self.ready.len() < MAX_READY {
            self.ready.push_back(Ready::NonConfirmable { bytes, request: None });
        } else {
            pool.give(bytes);
        }
    }

    /// Lets the answer of `id` leave, and keeps it.
    pub(super) fn answer_now(&mut self, cx: &mut Context<'_>, id: IncomingId, bytes: Vec<u8>) {
        self.incoming.set_answer(cx.now, id, bytes, true, answer_limits(cx.config), cx.pool);
        self.ready.push_back(Ready::Answer { id, is_repeat: false });
    }

    /// The acknowledgement has left and the answer goes its own way: a repetition is only acknowledged.
    pub(super) fn answer_later(&mut self, cx: &mut Context<'_>, id: IncomingId, mid: Mid) {
        let mut bytes = cx.pool.take(MESSAGE_HEAD);
        MessageWriter::empty(&mut bytes, MessageType::Ack, mid);
        self.incoming.set_answer(cx.now, id, bytes, false, answer_limits(cx.config), cx.pool);
    }

    pub(super) fn repeat(&mut self, mid: Mid) -> Outcome {
        match self.incoming.repeat(mid) {
            Repeat::Acknowledge => self.push_empty(MessageType::Ack, mid),
            Repeat::Resend(id) => self.ready.push_back(Ready::Answer { id, is_repeat: true }),
            Repeat::Wait | Repeat::Leaving => {}
            Repeat::Gone => return Outcome::AnswerGone,
        }
        Outcome::Repeated
    }

    /// Whether what was put down to leave still has to.
    pub(super) fn is_current(&self, next_mid: Mid, ready: &Ready) -> bool {
        match ready {
            Ready::Empty(..) | Ready::NonConfirmable { request: None, .. } => true,
            Ready::NonConfirmable { request: Some(token), .. } => self.outgoing.requests.contains_key(token),
            Ready::Answer { id, .. } => self.incoming.leaving(*id).is_some(),
            Ready::Confirmable(mid) => {
                self.outgoing.get(next_mid, *mid).is_some_and(|open| open.due == Time::NEVER)
            }
        }
    }

    pub(super) fn outbound(&mut self, next_mid: Mid) -> Option<Outbound<'_>> {
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
    pub(super) fn end(&mut self, next_mid: Mid, purpose: Purpose, reason: Failure, pool: &mut Pool) {
        match purpose {
            Purpose::Request(token) => self.fail(next_mid, token, reason, pool),
            Purpose::Notification(user) => self.events.push_back(LineEvent::NotifyFailed { user, reason }),
            Purpose::Response => {}
        }
    }

    /// A request of ours arrived after so many renewals, and its response follows. Its bytes stay if it may have to be
    /// sent again.
    pub(super) fn acknowledged(
        &mut self,
        token: MessageToken,
        renewals: u8,
        bytes: Vec<u8>,
        pool: &mut Pool,
    ) {
        let Some(request) = self.outgoing.requests.get_mut(&token) else { return pool.give(bytes) };
        (request.progress, request.acked_in) = (Progress::Acked, renewals);
        if request.is_repeatable {
            request.kept = Some(bytes);
        } else {
            pool.give(bytes);
        }
    }

    pub(super) fn fail(&mut self, next_mid: Mid, token: MessageToken, reason: Failure, pool: &mut Pool) {
        let Some(request) = self.outgoing.forget(next_mid, token, pool) else { return };
        let reason = match (request.progress, reason) {
            // On a path that takes less than the one that it left on before.
            (_, Failure::TooLarge) if request.has_left => Failure::PeerForgot,
            (_, Failure::TooLarge) => Failure::TooLarge,
            (Progress::Waiting, _) if !request.has_left => Failure::NotSent,
            _ => reason,
        };
        self.events.push_back(LineEvent::Failed { id: RequestId(token), user: request.user, reason });
    }
}

fn answer_limits(config: &LineConfig) -> AnswerLimits {
    AnswerLimits { count: config.max_answers, bytes: config.max_answer_bytes }
}

/// The bytes of a message, in a buffer of the pool.
pub(super) fn encode(
    cx: &mut Context<'_>,
    kind: MessageType,
    code: Code,
    mid: Mid,
    token: MessageToken,
    options: &OptionSet,
    payload: &[u8],
) -> Result<Vec<u8>, LineError> {
    // Options are seldom long: a buffer grows if they are.
    let mut bytes = cx.pool.take(MESSAGE_HEAD + OPTIONS_ROOM + payload.len());
    let mut writer = MessageWriter::new(&mut bytes, kind, code, mid, token);
    let is_written = writer.options(options).is_ok();
    writer.payload(payload);
    if !is_written || bytes.len() > cx.config.max_message {
        cx.pool.give(bytes);
        return Err(LineError::TooLarge);
    }
    Ok(bytes)
}

pub(super) fn encode_overload(out: &mut Vec<u8>, kind: MessageType, mid: Mid, token: MessageToken) {
    let mut writer = MessageWriter::new(out, kind, Code::TOO_MANY_REQUESTS, mid, token);
    // One option can't be out of order.
    let _ = writer.uint(OptionNumber::MAX_AGE, OVERLOAD_MAX_AGE);
}
