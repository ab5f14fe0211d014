//! How many confirmable messages may be on their way, and how fast they leave: slow start and AIMD of RFC 5681, counted
//! in messages and begun by RFC 6928, and the pacing of RFC 9002 section 7.7.
//!
//! ```text
//!  slow start ── loss ──► avoidance: + 1 a window ── loss, once a round trip: half ──► avoidance
//!  + 1 an acknowledgement                        └── nothing arrives for two timeouts: 1 ──► slow start to the threshold
//! ```
//!
//! A loss shows by its timeout only. An acknowledgement of something later is no sign of one: a peer acknowledges with
//! the response, each when its handler is done, or after a delay of its own choice (RFC 7252 section 5.2.2). To wait
//! that delay out, and a margin for reordering, would take about as long as the shortest timeout; to guess would send
//! again, and slow down, only because one handler is slower than another.
use crate::time::{Duration, Time};

/// The window at the start and after idling (RFC 6928 section 2).
const INITIAL_WINDOW: u16 = 10;
/// No single loss makes the window smaller (RFC 5681 section 3.1, equation 4).
const MIN_THRESHOLD: u16 = 2;
/// The window when nothing arrives any more (RFC 5681 section 3.1, loss window).
const LOSS_WINDOW: u16 = 1;
/// So many timeouts of one message, while nothing else is measured, say that nothing arrives. One may be bad luck:
/// unlike TCP's segments, the messages of many exchanges have timers of their own.
const PERSISTENT_TIMEOUTS: u8 = 2;
/// Messages that leave together without being spread.
const BURST: u32 = 10;
/// Messages that make it worth to wake up: they also share a packet, and wake-ups cost.
const QUANTUM: u32 = BURST / 2;
/// Timers of the systems below are about so exact.
const TIMER_GRANULARITY: Duration = Duration::from_millis(1);
/// To spread a window over less than this would only add the timers' own delays to it.
const MIN_PACED_ROUND_TRIP: Duration = Duration::from_millis(4);

/// What another confirmable message has to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Nothing.
    Now,
    /// Its time.
    At(Time),
    /// The end of one on its way.
    WindowFull,
}

/// What a sender knows of its path at this moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct PathState {
    pub(super) now: Time,
    /// Messages sent of which nobody knows whether they arrived.
    pub(super) in_network: usize,
    /// The widest window allowed.
    pub(super) limit: usize,
    pub(super) round_trip: Option<Duration>,
    /// After so long without sending, the window says nothing about the path any more.
    pub(super) rto: Duration,
}

/// The congestion window of one session, and its pace. 32 bytes, and kept only until they are worth nothing any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Congestion {
    /// A token bucket in one number (as in ITU-T I.371's virtual scheduling): when it will be full again.
    full_at: Time,
    acknowledged_at: Time,
    /// Losses of what left before this are paid for.
    reduced_at: Time,
    window: u16,
    /// Slow start ends here.
    threshold: u16,
    /// Acknowledgements since the last growth in avoidance.
    acknowledged: u16,
    /// More wants to leave than may: only then an acknowledgement says that a wider window would be filled (RFC 7661).
    is_short: bool,
    is_hurried: bool,
}

impl Default for Congestion {
    fn default() -> Congestion {
        Congestion {
            full_at: Time::ZERO,
            acknowledged_at: Time::ZERO,
            reduced_at: Time::ZERO,
            window: INITIAL_WINDOW,
            threshold: u16::MAX,
            acknowledged: 0,
            is_short: false,
            is_hurried: false,
        }
    }
}

impl Congestion {
    /// Messages that may be on their way at once, 1 to `limit`.
    pub(super) fn window(&self, limit: usize) -> usize {
        usize::from(self.window).min(limit).max(1)
    }

    /// Whether a message that waits may leave now. [`Congestion::left`] follows if it does.
    pub(super) fn admit(&mut self, path: &PathState) -> Admission {
        self.is_short = true;
        if path.in_network == 0 && path.now >= self.rested_at(path.rto) {
            // RFC 5681 section 4.1.
            self.window = self.window.min(INITIAL_WINDOW);
        }
        if path.in_network >= self.window(path.limit) {
            return Admission::WindowFull;
        }
        let interval = self.interval(path);
        let until_full = self.full_at.since(path.now);
        // Fewer than a burst on their way need no bucket, nor trust in the round trip: a peer's slow handlers, which
        // acknowledge with the response, make it look longer than the path is.
        if path.in_network < BURST as usize || interval.is_zero() || until_full <= interval * (BURST - 1) {
            return Admission::Now;
        }
        let quantum = until_full.saturating_sub(interval * (BURST - QUANTUM));
        Admission::At(path.now + quantum.max(TIMER_GRANULARITY))
    }

    /// When the last acknowledgement came.
    pub(super) fn acknowledged_at(&self) -> Time {
        self.acknowledged_at
    }

    /// When what is known of the path is too old, if nothing leaves until then.
    pub(super) fn rested_at(&self, rto: Duration) -> Time {
        self.full_at + rto
    }

    /// A message leaves.
    pub(super) fn left(&mut self, path: &PathState) {
        let interval = self.interval(path);
        self.full_at = (self.full_at.max(path.now) + interval).min(path.now + interval * BURST);
    }

    /// Nothing waits any more.
    pub(super) fn drained(&mut self) {
        self.is_short = false;
    }

    /// What left at `sent`, for the last time, was acknowledged.
    pub(super) fn acknowledged(&mut self, now: Time, sent: Time, limit: usize) {
        self.acknowledged_at = now;
        if !self.is_short || sent < self.reduced_at {
            return;
        }
        if self.window >= self.threshold {
            self.acknowledged += 1;
            if self.acknowledged < self.window {
                return;
            }
            self.acknowledged = 0;
        }
        let limit = u16::try_from(limit).unwrap_or(u16::MAX).max(1);
        self.window = self.window.saturating_add(1).min(limit);
    }

    /// What left at `sent`, for the last time, was lost on the way, or refused by a peer that has too much to do. All
    /// that left before the last reduction belongs to the congestion that caused it.
    pub(super) fn lost(&mut self, now: Time, sent: Time) {
        if sent < self.reduced_at {
            return;
        }
        self.threshold = (self.window / 2).max(MIN_THRESHOLD);
        self.window = self.window.min(self.threshold);
        self.acknowledged = 0;
        self.reduced_at = now;
    }

    /// As [`Congestion::lost`], after so many timeouts of one message without a sign of life.
    pub(super) fn timed_out(&mut self, now: Time, sent: Time, in_a_row: u8) {
        self.lost(now, sent);
        if in_a_row >= PERSISTENT_TIMEOUTS {
            self.window = LOSS_WINDOW;
            self.acknowledged = 0;
            self.reduced_at = now;
        }
    }

    /// From now on what the window lets leave does so at once: there will be no later.
    pub(super) fn hurry(&mut self) {
        self.is_hurried = true;
    }

    /// The time between two messages that are not in a burst: a bit less than a window takes for its round trip.
    fn interval(&self, path: &PathState) -> Duration {
        match path.round_trip {
            Some(round_trip) if round_trip >= MIN_PACED_ROUND_TRIP && !self.is_hurried => {
                // RFC 9002 section 7.7, N = 1.25.
                let window = u32::try_from(self.window(path.limit)).unwrap_or(u32::MAX);
                round_trip * 4 / 5 / window
            }
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: usize = 256;

    const fn at(millis: u64) -> Time {
        Time::from_micros(millis * 1000)
    }

    const fn path(millis: u64, in_network: usize, round_trip: u64) -> PathState {
        PathState {
            now: at(millis),
            in_network,
            limit: LIMIT,
            round_trip: Some(Duration::from_millis(round_trip)),
            rto: Duration::from_millis(300),
        }
    }

    /// Sends until it may not: how many left, and what the next one waits for.
    fn fill(congestion: &mut Congestion, mut path: PathState) -> (usize, Admission) {
        let before = path.in_network;
        loop {
            match congestion.admit(&path) {
                Admission::Now => congestion.left(&path),
                wait => return (path.in_network - before, wait),
            }
            path.in_network += 1;
        }
    }

    fn acknowledge(congestion: &mut Congestion, count: usize, sent: u64) -> usize {
        (0..count).for_each(|_| congestion.acknowledged(at(sent), at(sent), LIMIT));
        congestion.window(LIMIT)
    }

    #[test]
    fn slow_start_doubles_each_round_trip_up_to_the_limit() {
        let mut congestion = Congestion::default();
        let mut windows = std::vec::Vec::new();
        for round in 1..8 {
            let (left, wait) = fill(&mut congestion, path(round * 2, 0, 2));
            assert_eq!(wait, Admission::WindowFull);
            windows.push(left);
            acknowledge(&mut congestion, left, round * 2);
        }
        assert_eq!(windows, [10, 20, 40, 80, 160, 256, 256]);
    }

    #[test]
    fn a_loss_halves_once_a_round_trip_and_growth_is_slow_after_it() {
        let mut congestion = Congestion::default();
        fill(&mut congestion, path(1, 0, 2));
        assert_eq!(acknowledge(&mut congestion, 30, 1), 40);
        congestion.lost(at(100), at(50));
        congestion.lost(at(101), at(60));
        assert_eq!(congestion.window(LIMIT), 20);
        assert_eq!(acknowledge(&mut congestion, 100, 99), 20, "that was sent before the loss was known");
        assert_eq!(acknowledge(&mut congestion, 19, 100), 20);
        assert_eq!(acknowledge(&mut congestion, 1, 100), 21);
        assert_eq!(acknowledge(&mut congestion, 21, 100), 22);
        congestion.lost(at(200), at(100));
        assert_eq!(congestion.window(LIMIT), 11);
        (3..20).for_each(|n| congestion.lost(at(n * 100), at(n * 100)));
        assert_eq!(congestion.window(LIMIT), 2);
    }

    #[test]
    fn silence_leaves_one_message_and_slow_start_brings_half_of_the_window_back() {
        let mut congestion = Congestion::default();
        fill(&mut congestion, path(1, 0, 2));
        acknowledge(&mut congestion, 30, 1);
        congestion.timed_out(at(300), at(10), 1);
        assert_eq!(congestion.window(LIMIT), 20);
        congestion.timed_out(at(900), at(300), 2);
        assert_eq!(congestion.window(LIMIT), 1);
        assert_eq!(acknowledge(&mut congestion, 9, 900), 10);
        assert_eq!(acknowledge(&mut congestion, 9, 900), 10, "from here on by one a window");
    }

    #[test]
    fn a_window_that_is_not_filled_does_not_grow() {
        let mut congestion = Congestion::default();
        fill(&mut congestion, path(1, 0, 2));
        congestion.drained();
        assert_eq!(acknowledge(&mut congestion, 100, 1), 10);
    }

    #[test]
    fn idling_leaves_the_initial_window() {
        let mut congestion = Congestion::default();
        fill(&mut congestion, path(1, 0, 2));
        acknowledge(&mut congestion, 30, 1);
        assert_eq!(fill(&mut congestion, path(300, 0, 2)).0, 40);
        assert_eq!(fill(&mut congestion, path(600, 1, 2)).0, 39, "one is on its way still");
        assert_eq!(fill(&mut congestion, path(900, 0, 2)).0, 10);
    }

    #[test]
    fn more_than_a_burst_is_spread_over_the_round_trip() {
        let mut congestion = Congestion::default();
        fill(&mut congestion, path(1, 0, 100));
        acknowledge(&mut congestion, 30, 1);
        // A window of 40 in 80 ms: 2 ms each.
        let (left, wait) = fill(&mut congestion, path(200, 0, 100));
        assert_eq!((left, wait), (10, Admission::At(at(210))));
        let (left, wait) = fill(&mut congestion, path(210, 10, 100));
        assert_eq!((left, wait), (5, Admission::At(at(220))));
        congestion.hurry();
        assert_eq!(fill(&mut congestion, path(211, 15, 100)), (25, Admission::WindowFull));
    }

    #[test]
    fn the_nearest_paths_are_not_paced() {
        let mut congestion = Congestion::default();
        fill(&mut congestion, path(1, 0, 1));
        acknowledge(&mut congestion, 246, 1);
        assert_eq!(fill(&mut congestion, path(2, 0, 3)), (256, Admission::WindowFull));
        let unknown = PathState { round_trip: None, ..path(3, 0, 0) };
        assert_eq!(fill(&mut congestion, unknown), (256, Admission::WindowFull));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Wait(u64),
        Fill(u64),
        Acknowledged(u64),
        Lost(u64),
        TimedOut(u64, u8),
        Drained,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..400u64).prop_map(Step::Wait),
            (0..2000u64).prop_map(Step::Fill),
            (0..500u64).prop_map(Step::Acknowledged),
            (0..500u64).prop_map(Step::Lost),
            (0..500u64, any::<u8>()).prop_map(|(ago, times)| Step::TimedOut(ago, times)),
            Just(Step::Drained),
        ]
    }

    proptest! {
        #[test]
        fn the_window_and_the_pace_keep_their_bounds(
            steps in prop::collection::vec(step(), 0..300),
            limit in 1..400usize,
        ) {
            let mut congestion = Congestion::default();
            let (mut now, mut in_network) = (500, 0usize);
            for step in steps {
                match step {
                    Step::Wait(millis) => now += millis,
                    Step::Fill(round_trip) => {
                        let path = PathState { limit, ..path(now, in_network, round_trip) };
                        let (left, wait) = fill(&mut congestion, path);
                        in_network += left;
                        prop_assert!(in_network <= limit.max(in_network - left));
                        // What has to wait does so for a while, and not for ever.
                        if let Admission::At(time) = wait {
                            prop_assert!(time >= at(now + 1) && time <= at(now + 1 + 2000 * 10));
                        }
                    }
                    Step::Acknowledged(ago) => {
                        congestion.acknowledged(at(now), at(now - ago), limit);
                        in_network = in_network.saturating_sub(1);
                    }
                    Step::Lost(ago) => {
                        congestion.lost(at(now), at(now - ago));
                        in_network = in_network.saturating_sub(1);
                    }
                    Step::TimedOut(ago, times) => congestion.timed_out(at(now), at(now - ago), times),
                    Step::Drained => congestion.drained(),
                }
                prop_assert!((1..=limit).contains(&congestion.window(limit)));
            }
        }
    }

    #[test]
    fn is_small() {
        assert!(size_of::<Congestion>() <= 32);
    }
}
