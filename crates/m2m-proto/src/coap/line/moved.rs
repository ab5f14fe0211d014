//! A line whose session's packets leave for another place (protocol, section 10.2).
use super::{
    super::{congestion::Congestion, retransmit::RttEstimator},
    Line,
    busy::Ready,
};
use crate::time::Time;
use alloc::vec::Vec;

impl Line {
    /// The peer is reached another way now: what was measured belongs to the old one, and what is in flight went to where
    /// nobody may be any more, so it leaves again, with the same Message IDs and tokens.
    pub fn moved(&mut self) {
        self.rtt = RttEstimator::default();
        let Some(busy) = &mut self.busy else { return };
        busy.congestion = Congestion::default();
        busy.measured_at = Time::ZERO;
        busy.ready.retain(|ready| !matches!(ready, Ready::Confirmable(_)));
        let in_flight = busy.outgoing.mids(self.next_mid).filter(|(_, open)| !open.is_held);
        let mids: Vec<_> = in_flight.map(|(mid, _)| mid).collect();
        for mid in mids {
            let Some(open) = busy.outgoing.get_mut(self.next_mid, mid) else { continue };
            // Not 0: what left before gives no round trip.
            open.transmissions = open.transmissions.min(1);
            busy.outgoing.lose(self.next_mid, mid);
        }
    }

    /// True if something that is in flight left more than once.
    pub fn is_repeating(&self) -> bool {
        let Some(busy) = &self.busy else { return false };
        busy.outgoing.mids(self.next_mid).any(|(_, open)| open.transmissions > 1)
    }
}
