//! How a line goes on in a new session with the same peer (protocol, section 9).
//!
//! ```text
//!  renewed ─┬─ leaves at once: what never left, what may run twice
//!           └─ held: the rest, and responses and notifications of ours
//!  then one of:  remembered ── held messages leave, with the same Message IDs and tokens
//!                forgotten  ── held requests leave if they can't have run, or fail; the peer's requests are void, its
//!                              Message IDs start anew
//! ```
use super::{
    super::{
        congestion::Congestion,
        exchange::{Context, Failure},
        incoming::{Incoming, Ring},
        message::{MessageToken, Mid},
        outgoing::{Open, Progress, Purpose},
    },
    Line,
    busy::{Busy, Ready},
};
use crate::time::Duration;
use alloc::vec::Vec;

impl Line {
    /// While true, retransmissions go on beyond their number: a new handshake decides whether the peer is gone.
    pub fn be_patient(&mut self, is_patient: bool) {
        if let Some(busy) = &mut self.busy {
            busy.is_patient = is_patient;
        }
    }

    /// The session has new keys, and the peer hasn't said yet whether it remembers this line.
    pub fn renewed(&mut self) {
        self.renewals = self.renewals.saturating_add(1);
        self.take_back(|open, is_repeatable| match open.purpose {
            Purpose::Request(_) => open.transmissions > 0 && !is_repeatable,
            Purpose::Response | Purpose::Notification(_) => true,
        });
    }

    /// The session has new keys, and the peer remembers this line: all that is in flight leaves again.
    pub fn taken_over(&mut self) {
        self.take_back(|_, _| false);
    }

    /// What left under the old keys is in flight no longer: it is held, or leaves again with the same Message ID and
    /// token. Packet numbers of the old session mean nothing any more.
    fn take_back(&mut self, is_held: impl Fn(&Open, bool) -> bool) {
        let Some(busy) = &mut self.busy else { return };
        busy.is_patient = false;
        let mut ready = core::mem::take(&mut busy.ready);
        // Acknowledgements and answers are asked for again by those who still need them.
        ready.retain(|ready| matches!(ready, Ready::NonConfirmable { .. }));
        busy.ready = ready;
        busy.incoming.nothing_leaves();
        // What was learnt of the path may be about another one.
        busy.congestion = Congestion::default();
        let mids: Vec<Mid> = busy.outgoing.mids(self.next_mid).map(|(mid, _)| mid).collect();
        for mid in mids {
            let Some(is_repeatable) = busy.outgoing.is_repeatable(self.next_mid, mid) else { continue };
            let Some(open) = busy.outgoing.get_mut(self.next_mid, mid) else { continue };
            open.is_held = is_held(open, is_repeatable);
            open.first_packet = None;
            // Not 0: what left before gives no round trip.
            open.transmissions = open.transmissions.min(1);
            busy.outgoing.lose(self.next_mid, mid);
        }
        for request in busy.outgoing.requests.values_mut() {
            if let Progress::Non(packet) = &mut request.progress {
                *packet = None;
            }
        }
    }

    /// The peer remembers: what was held leaves.
    pub fn remembered(&mut self) {
        self.renewals = 0;
        let Some(busy) = &mut self.busy else { return };
        for mid in busy.held(self.next_mid) {
            busy.release(self.next_mid, mid);
        }
        // The peer has answered: all that is open now is of one session.
        busy.outgoing.settle();
    }

    /// The peer has forgotten: what was held and must not run twice fails, what was acknowledged is sent as if for the
    /// first time if it may, and the peer's own requests are void. For `memory` back from now the peer remembers all
    /// requests that it took: what first left within that time was not one of them.
    pub fn forgotten(&mut self, cx: &mut Context<'_>, memory: Duration) {
        let now = cx.now;
        let renewals = self.renewals;
        self.start_over(cx, |open| now.since(open.first_sent) < memory, |acked_in| acked_in < renewals);
    }

    /// Of several handshakes that the peer did not answer the one of this number, counted from 1, came up as a session of
    /// its own: what was said before is forgotten, what was said since is not.
    pub fn remembered_since(&mut self, cx: &mut Context<'_>, handshake: u8) {
        self.start_over(cx, |open| open.sent_in >= handshake, |acked_in| acked_in < handshake);
    }

    fn start_over(
        &mut self,
        cx: &mut Context<'_>,
        may_leave: impl Fn(&Open) -> bool,
        is_forgotten: impl Fn(u8) -> bool,
    ) {
        self.renewals = 0;
        self.ring = Ring::default();
        let Some(busy) = &mut self.busy else { return };
        busy.ready.retain(|ready| !matches!(ready, Ready::NonConfirmable { request: None, .. }));
        busy.incoming = Incoming::default();
        busy.outgoing.drop_waiting_responses(cx.pool);
        for mid in busy.held(self.next_mid) {
            let Some(open) = busy.outgoing.get(self.next_mid, mid) else { continue };
            if matches!(open.purpose, Purpose::Request(_)) && may_leave(open) {
                busy.release(self.next_mid, mid);
                continue;
            }
            let Some(open) = busy.outgoing.close(self.next_mid, mid) else { continue };
            cx.pool.give(open.bytes);
            busy.end(self.next_mid, open.purpose, Failure::PeerForgot, cx.pool);
        }
        // What was acknowledged under keys that the peer remembers is with it as it is now.
        let was_with_it = |progress: Progress| matches!(progress, Progress::Acked | Progress::Observing);
        for token in
            busy.outgoing.tokens(|request| was_with_it(request.progress) && is_forgotten(request.acked_in))
        {
            busy.repeat_or_fail(self.next_mid, token, cx);
        }
        // The peer has answered: all that is open now is of one session.
        busy.outgoing.settle();
    }
}

impl Busy {
    fn held(&self, next_mid: Mid) -> Vec<Mid> {
        self.outgoing.mids(next_mid).filter(|(_, open)| open.is_held).map(|(mid, _)| mid).collect()
    }

    fn release(&mut self, next_mid: Mid, mid: Mid) {
        if let Some(open) = self.outgoing.get_mut(next_mid, mid) {
            open.is_held = false;
        }
    }

    fn repeat_or_fail(&mut self, next_mid: Mid, token: MessageToken, cx: &mut Context<'_>) {
        let Some(request) = self.outgoing.requests.get_mut(&token) else { return };
        match request.kept.take() {
            Some(bytes) => {
                (request.progress, request.has_left) = (Progress::Waiting, true);
                self.outgoing.wait(Purpose::Request(token), bytes);
            }
            None => self.fail(next_mid, token, Failure::PeerForgot, cx.pool),
        }
    }
}
