//! What fits into a packet: a message is taken in before it is known which path it will take, and a path can change.
//!
//! Nothing may block the line by its size: a request that never left fails, a response gives way to a 5.00 without a
//! payload, so that the peer gets an answer, and what left before counts as lost on the way.
use super::{
    super::{
        code::Code,
        exchange::{Context, Failure},
        message::Mid,
        outgoing::Purpose,
        writer::cut_to_code,
    },
    Line,
    busy::{Busy, Ready},
};

impl Line {
    /// Says that messages of more than `max_len` bytes fit into no packet. Requests and confirmable notifications that
    /// never left fail by [`Failure::TooLarge`]; those that did wait on for their answer. Responses and
    /// non-confirmable notifications become a 5.00 without a payload.
    pub fn limit_messages(&mut self, cx: &mut Context<'_>, max_len: usize) {
        let Some(busy) = &mut self.busy else { return };
        let Busy { outgoing, incoming, ready, .. } = &mut **busy;
        outgoing.cut_responses(max_len);
        incoming.cut_answers(max_len);
        let mut failed = outgoing.take_too_large(self.next_mid, max_len, cx.pool);
        ready.retain_mut(|ready| {
            let Ready::NonConfirmable { bytes, request } = ready else { return true };
            if bytes.len() <= max_len {
                return true;
            }
            let Some(token) = *request else {
                cut_to_code(bytes, Code::INTERNAL_SERVER_ERROR);
                return true;
            };
            cx.pool.give(core::mem::take(bytes));
            failed.push(Purpose::Request(token));
            false
        });
        for purpose in failed {
            busy.end(self.next_mid, purpose, Failure::TooLarge, cx.pool);
        }
    }

    /// Says that the message of the last [`Line::poll_message`] doesn't fit into a packet that has nothing else in it.
    /// It becomes shorter or makes way for the next one, as in [`Line::limit_messages`]; one that left before is sent
    /// again later, as if it were lost.
    pub fn fail_front(&mut self, cx: &mut Context<'_>) {
        let Some(busy) = &mut self.busy else { return };
        let is_cut = match busy.ready.front_mut() {
            Some(Ready::Answer { id, .. }) => busy.incoming.cut_answer(*id),
            Some(Ready::Confirmable(mid)) => busy.outgoing.cut_response(self.next_mid, *mid),
            Some(Ready::NonConfirmable { bytes, request: None }) => {
                cut_to_code(bytes, Code::INTERNAL_SERVER_ERROR)
            }
            Some(Ready::NonConfirmable { .. } | Ready::Empty(..)) | None => false,
        };
        if is_cut {
            return;
        }
        match busy.ready.pop_front() {
            Some(Ready::Answer { id, .. }) => busy.incoming.left(id),
            Some(Ready::Confirmable(mid)) => self.fail_confirmable(cx, mid),
            Some(Ready::NonConfirmable { bytes, request }) => {
                cx.pool.give(bytes);
                if let Some(token) = request {
                    busy.fail(self.next_mid, token, Failure::TooLarge, cx.pool);
                }
            }
            Some(Ready::Empty(..)) | None => {}
        }
    }

    fn fail_confirmable(&mut self, cx: &mut Context<'_>, mid: Mid) {
        let Some(busy) = &mut self.busy else { return };
        let Some(open) = busy.outgoing.get_mut(self.next_mid, mid) else { return };
        if open.transmissions > 0 {
            open.count_transmission(cx.now, &self.rtt, cx.config.initial_rto);
            self.timer = self.timer.min(open.due);
            return;
        }
        let Some(open) = busy.outgoing.close(self.next_mid, mid) else { return };
        cx.pool.give(open.bytes);
        busy.end(self.next_mid, open.purpose, Failure::TooLarge, cx.pool);
    }
}
