//! What a line makes of the peer's messages: each is matched with what is open (RFC 7252 sections 4.2, 4.3 and 5.3.2)
//! or is a request, of which each runs once.
use super::{
    super::{
        code::Code,
        exchange::{Context, Failure, Handled, LineEvent, Outcome, RequestId},
        incoming::Seen,
        message::{Message, MessageType},
        option::OptionNumber,
        outgoing::{Progress, Purpose},
    },
    Line,
    busy::{MESSAGE_HEAD, encode_overload},
};
use crate::time::Time;

impl Line {
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
                self.busy(cx).push_empty(MessageType::Rst, message.mid());
                Handled::only(Outcome::Done)
            }
            MessageType::Non if code.is_request() => Handled::only(self.handle_non_request(cx, message)),
            MessageType::Non => self.handle_non_response(cx, message),
            MessageType::Ack => self.handle_acknowledgement(cx, message),
            MessageType::Rst => self.handle_reset(cx, message),
        }
    }

    fn handle_confirmable_request(&mut self, cx: &mut Context<'_>, message: &Message<'_>) -> Outcome {
        let mid = message.mid();
        match self.ring.look(mid) {
            Seen::TooOld => return Outcome::TooOld,
            Seen::Before => return self.busy(cx).repeat(mid),
            Seen::Never => self.ring.mark(mid),
        }
        let serial = self.take_serial();
        self.wake_by(cx.now + cx.config.ack_delay);
        let busy = self.busy(cx);
        let is_full = busy.is_overloaded(cx.config);
        let Some(id) = busy.incoming.add(cx.now, serial, mid, message.token(), true, cx.pool) else {
            return Outcome::Overloaded;
        };
        if !is_full {
            return Outcome::Request(id);
        }
        // It is marked and its answer kept like a handler's: a repetition must not run after the peer was told that
        // it didn't.
        let mut bytes = cx.pool.take(2 * MESSAGE_HEAD);
        encode_overload(&mut bytes, MessageType::Ack, mid, message.token());
        busy.answer_now(cx, id, bytes);
        Outcome::Overloaded
    }

    fn handle_non_request(&mut self, cx: &mut Context<'_>, message: &Message<'_>) -> Outcome {
        let serial = self.take_serial();
        let is_full = self.busy(cx).is_overloaded(cx.config);
        if is_full {
            let mid = self.take_non_mid();
            let mut bytes = cx.pool.take(2 * MESSAGE_HEAD);
            encode_overload(&mut bytes, MessageType::Non, mid, message.token());
            self.busy(cx).push_non(bytes, cx.pool);
            return Outcome::Overloaded;
        }
        let id = self.busy(cx).incoming.add(cx.now, serial, message.mid(), message.token(), false, cx.pool);
        id.map_or(Outcome::Overloaded, Outcome::Request)
    }

    fn handle_separate_response(&mut self, cx: &mut Context<'_>, message: &Message<'_>) -> Handled {
        let mid = message.mid();
        match self.ring.look(mid) {
            Seen::TooOld => return Handled::only(Outcome::TooOld),
            Seen::Before => {
                self.busy(cx).push_empty(MessageType::Ack, mid);
                return Handled::only(Outcome::Repeated);
            }
            Seen::Never => {}
        }
        let Some(handled) = self.accept_response(cx, message) else {
            // Not marked: should it come again, it is rejected again, not acknowledged.
            self.busy(cx).push_empty(MessageType::Rst, mid);
            return Handled::only(Outcome::Unmatched);
        };
        self.ring.mark(mid);
        self.busy(cx).push_empty(MessageType::Ack, mid);
        handled
    }

    fn handle_non_response(&mut self, cx: &mut Context<'_>, message: &Message<'_>) -> Handled {
        self.accept_response(cx, message).unwrap_or_else(|| {
            if message.option(OptionNumber::OBSERVE).is_some() {
                // The other side would notify for ever (RFC 7641 section 3.6).
                self.busy(cx).push_empty(MessageType::Rst, message.mid());
            }
            Handled::only(Outcome::Unmatched)
        })
    }

    /// Matches a response with its request by the token (RFC 7252 section 5.3.2).
    fn accept_response(&mut self, cx: &mut Context<'_>, message: &Message<'_>) -> Option<Handled> {
        let busy = self.busy.as_mut()?;
        let token = message.token();
        let request = busy.outgoing.requests.get_mut(&token)?;
        let (user, progress, is_observe) = (request.user, request.progress, request.is_observe);
        let is_last =
            !(is_observe && message.code().is_success() && message.option(OptionNumber::OBSERVE).is_some());
        if progress == Progress::Waiting {
            return None;
        }
        if let Some(kept) = request.kept.take() {
            cx.pool.give(kept);
        }
        if is_last {
            busy.outgoing.requests.remove(&token);
        } else {
            request.progress = Progress::Observing;
            request.deadline = Time::NEVER;
        }
        let answered = match progress {
            Progress::Sent(mid) => busy.outgoing.close(self.next_mid, mid).and_then(|open| {
                if message.code() == Code::TOO_MANY_REQUESTS {
                    // RFC 8516 section 3: to go on as before would only be refused again.
                    busy.congestion.lost(cx.now, open.last_sent);
                } else {
                    busy.congestion.acknowledged(cx.now, open.last_sent, cx.config.window);
                }
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
            let is_first = self.rtt.smoothed().is_none();
            self.rtt.sample(round_trip);
            busy.measured_at = cx.now;
            if is_first {
                // What left before the first sample has a timeout of seconds.
                let due = busy.outgoing.shorten_timeouts(&self.rtt, cx.config.initial_rto);
                self.timer = self.timer.min(due);
            }
        }
        if carries_response {
            return self.accept_response(cx, message).unwrap_or(unmatched);
        }
        let Some(open) = busy.outgoing.close(self.next_mid, mid) else { return unmatched };
        busy.congestion.acknowledged(cx.now, open.last_sent, cx.config.window);
        let answered = open.first_packet;
        match purpose {
            Purpose::Request(token) => busy.acknowledged(token, self.renewals, open.bytes, cx.pool),
            Purpose::Notification(user) => {
                cx.pool.give(open.bytes);
                busy.events.push_back(LineEvent::Notified { user });
            }
            Purpose::Response => cx.pool.give(open.bytes),
        }
        Handled { outcome: Outcome::Done, answered }
    }

    fn handle_reset(&mut self, cx: &mut Context<'_>, message: &Message<'_>) -> Handled {
        let reset = Handled::only(Outcome::Reset(message.mid()));
        let Some(busy) = &mut self.busy else { return reset };
        let Some(open) = busy.outgoing.close(self.next_mid, message.mid()) else { return reset };
        cx.pool.give(open.bytes);
        busy.end(self.next_mid, open.purpose, Failure::Reset, cx.pool);
        Handled { outcome: Outcome::Done, answered: open.first_packet }
    }
}
