//! When to send again: RFC 6298's estimate of the round trip, in the place of RFC 7252's fixed 2 seconds.
use crate::time::Duration;

/// Timeout before the first sample (RFC 7252 section 4.8 ACK_TIMEOUT).
pub const INITIAL_RTO: Duration = Duration::from_secs(2);
/// The shortest timeout. RFC 6298 section 2.4 says 1 s, for a TCP that delays acknowledgements by up to 500 ms; ours
/// are delayed by 50 ms.
pub const MIN_RTO: Duration = Duration::from_millis(200);
/// The longest timeout (RFC 6298 section 2.5).
pub const MAX_RTO: Duration = Duration::from_secs(60);
/// Retransmissions before giving up (RFC 7252 section 4.8 MAX_RETRANSMIT).
pub const MAX_RETRANSMIT: u8 = 4;

/// Smoothed round trip and its variation, in microseconds. Small, for a net may keep a million of them: packed, or a
/// quarter of it would be padding.
#[derive(Clone, Copy, Debug, Default)]
#[repr(Rust, packed)]
pub struct RttEstimator {
    /// 0 = no sample yet.
    smoothed: u32,
    variation: u32,
    /// Doublings that stay in force until a sample (RFC 6298 section 5.5 to 5.7). Without them a round trip that grew
    /// beyond the timeout would never be measured: by Karn's rule, no message that was sent twice gives a sample.
    backoff: u8,
}

impl RttEstimator {
    /// Takes a round trip into account. The caller keeps Karn's rule: only of what was sent once.
    pub fn sample(&mut self, round_trip: Duration) {
        let sample = u32::try_from(round_trip.as_micros()).unwrap_or(u32::MAX).max(1);
        self.backoff = 0;
        if self.smoothed == 0 {
            // RFC 6298 section 2.2.
            (self.smoothed, self.variation) = (sample, sample / 2);
            return;
        }
        // RFC 6298 section 2.3, with beta = 1/4 and alpha = 1/8; the variation first, from the old mean.
        let deviation = u64::from(self.smoothed.abs_diff(sample));
        self.variation = ((3 * u64::from(self.variation) + deviation) / 4) as u32;
        self.smoothed = ((7 * u64::from(self.smoothed) + u64::from(sample)) / 8).max(1) as u32;
    }

    /// Says that what left since the last sample timed out for the `attempts`th time.
    pub fn timed_out(&mut self, attempts: u8) {
        self.backoff = self.backoff.max(attempts);
    }

    /// Timeouts of one message since it left, if nothing was measured in the meantime.
    pub fn backoff(&self) -> u8 {
        self.backoff
    }

    /// The smoothed round trip, once there is one.
    pub fn smoothed(&self) -> Option<Duration> {
        (self.smoothed != 0).then(|| Duration::from_micros(u64::from(self.smoothed)))
    }

    /// The timeout for a message that leaves now, between [`MIN_RTO`] and [`MAX_RTO`]; `initial` before any sample.
    pub fn rto(&self, initial: Duration) -> Duration {
        self.rto_of_attempt(initial, 0)
    }

    /// The timeout for what leaves now after `timeouts` of them: doubled each time, from what is known by now. A
    /// message that left before the first sample doesn't go on doubling `initial`.
    pub fn rto_of_attempt(&self, initial: Duration, timeouts: u8) -> Duration {
        let doublings = 1u32.checked_shl(u32::from(self.backoff.max(timeouts))).unwrap_or(u32::MAX);
        self.base_rto(initial).saturating_mul(doublings).min(MAX_RTO)
    }

    /// What the round trips alone say: without the doublings that lost messages caused.
    pub fn base_rto(&self, initial: Duration) -> Duration {
        match self.smoothed {
            0 => initial,
            smoothed => Duration::from_micros(u64::from(smoothed) + 4 * u64::from(self.variation))
                .clamp(MIN_RTO, MAX_RTO),
        }
    }
}

/// `rto` times 1 to 1.5, so that senders who started together part (RFC 7252 section 4.8 ACK_RANDOM_FACTOR).
pub fn spread(rto: Duration, random: u32) -> Duration {
    let micros = u64::try_from(rto.as_micros()).unwrap_or(u64::MAX);
    let extra = (u128::from(micros) * u128::from(random) / 2) >> 32;
    Duration::from_micros(micros.saturating_add(u64::try_from(extra).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn follows_rfc_6298() {
        let mut rtt = RttEstimator::default();
        assert_eq!((rtt.smoothed(), rtt.rto(INITIAL_RTO)), (None, INITIAL_RTO));
        rtt.sample(ms(100));
        // SRTT 100, RTTVAR 50.
        assert_eq!(rtt.rto(INITIAL_RTO), ms(300));
        rtt.sample(ms(200));
        // RTTVAR (3 * 50 + 100) / 4 = 62.5; SRTT (7 * 100 + 200) / 8 = 112.5.
        assert_eq!(rtt.smoothed(), Some(Duration::from_micros(112_500)));
        assert_eq!(rtt.rto(INITIAL_RTO), Duration::from_micros(362_500));
    }

    #[test]
    fn stays_within_its_bounds() {
        let mut rtt = RttEstimator::default();
        (0..50).for_each(|_| rtt.sample(Duration::ZERO));
        assert_eq!(rtt.rto(INITIAL_RTO), MIN_RTO);
        (0..50).for_each(|_| rtt.sample(Duration::from_secs(1_000_000)));
        assert_eq!(rtt.rto(INITIAL_RTO), MAX_RTO);
        rtt.timed_out(255);
        assert_eq!(rtt.rto(INITIAL_RTO), MAX_RTO);
    }

    #[test]
    fn a_timeout_doubles_until_a_sample() {
        let mut rtt = RttEstimator::default();
        rtt.sample(ms(100));
        rtt.timed_out(2);
        rtt.timed_out(1);
        assert_eq!(rtt.rto(INITIAL_RTO), ms(1200));
        rtt.sample(ms(100));
        assert_eq!(rtt.rto(INITIAL_RTO), Duration::from_micros(100_000 + 4 * 37_500));
    }

    #[test]
    fn each_message_doubles_its_own() {
        let mut rtt = RttEstimator::default();
        rtt.sample(ms(100));
        assert_eq!(rtt.rto(INITIAL_RTO), ms(300));
        assert_eq!(rtt.rto_of_attempt(INITIAL_RTO, 2), ms(1200));
    }

    #[test]
    fn spreads_by_up_to_a_half() {
        assert_eq!(spread(ms(1000), 0), ms(1000));
        assert_eq!(spread(ms(1000), 1 << 31), ms(1250));
        let most = spread(ms(1000), u32::MAX);
        assert!(most < ms(1500) && most > ms(1499));
    }
}
