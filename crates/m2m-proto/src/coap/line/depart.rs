//! Which confirmable message leaves next, and when: what was lost before what never left, as many and as fast as
//! congestion control lets them (`congestion`). Acknowledgements, and what nobody acknowledges, don't wait for it.
use super::{
    super::{
        congestion::{Admission, PathState},
        exchange::Context,
    },
    Line,
    busy::Ready,
};
use crate::time::Time;

/// In such a window the few messages that wait for a timeout doubled many times would hold the others up, who find the
/// path open. In a wider one they don't matter.
const SMALL_WINDOW: usize = 32;

impl Line {
    /// Puts the next confirmable message down to leave; false if none may.
    pub(super) fn start_next(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(busy) = self.busy.as_deref_mut() else { return false };
        if !busy.outgoing.has_next() {
            busy.congestion.drained();
            return false;
        }
        let mut path = PathState {
            now: cx.now,
            in_network: busy.outgoing.in_network(),
            limit: cx.config.window,
            round_trip: self.rtt.smoothed(),
            rto: self.rtt.rto(cx.config.initial_rto),
        };
        let window = busy.congestion.window(path.limit);
        let mut next_lost = Time::NEVER;
        let has_room = busy.outgoing.in_flight() < path.limit;
        if path.in_network >= window && window <= SMALL_WINDOW && has_room {
            let patience = self.rtt.base_rto(cx.config.initial_rto) * 3 / 2;
            let acknowledged = busy.congestion.acknowledged_at();
            (path.in_network, next_lost) = busy.outgoing.still_in_network(cx.now, acknowledged, patience);
        }
        match busy.congestion.admit(&path) {
            Admission::Now => {}
            Admission::At(time) => {
                self.timer = self.timer.min(time);
                return false;
            }
            Admission::WindowFull => {
                self.timer = self.timer.min(next_lost);
                return false;
            }
        }
        let mid = match busy.outgoing.start_lost(self.next_mid) {
            Some(mid) => mid,
            None if busy.outgoing.start_next(self.next_mid) => {
                let mid = self.next_mid;
                self.next_mid = mid.plus(1);
                mid
            }
            None => {
                // Held up by its oldest message, not by the window.
                busy.congestion.drained();
                return false;
            }
        };
        busy.congestion.left(&path);
        busy.ready.push_back(Ready::Confirmable(mid));
        true
    }

    /// Frees the memory if nothing is left in it, once the next message wouldn't leave any faster for it.
    pub(super) fn free_when_rested(&mut self, cx: &Context<'_>) {
        let Some(busy) = &self.busy else { return };
        let rested = busy.congestion.rested_at(self.rtt.rto(cx.config.initial_rto));
        if cx.now >= rested {
            return self.free_if_empty();
        }
        if busy.is_empty() {
            self.timer = self.timer.min(rested);
        }
    }

    /// Says that the session ends soon: what the window lets leave does so at once.
    pub fn hurry(&mut self) {
        if let Some(busy) = &mut self.busy {
            busy.congestion.hurry();
        }
    }
}
