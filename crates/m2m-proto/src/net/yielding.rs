//! What a net does for those who come, beside those whom it serves (protocol, section 12).
//!
//! One key exchange takes as long as ten packets of a session, a cookie as long as two. How fast the machine is the core
//! can't know, but how many packets it serves it does: the more those are, the less there is beside them, down to a
//! share of them that costs the served a few hundredths. A net at rest does much.
use crate::{config::Rate, relay::budget::TokenBucket, time::Time};

/// What one served packet takes from what a net at rest would do.
const TAKEN: u32 = 20;
/// What it gives to those that are done in any case.
const GIVEN: u32 = 1;
/// The least rate is this part of the full one.
const LEAST: u32 = 32;

pub(super) struct YieldingBudget {
    full: TokenBucket,
    least: TokenBucket,
    /// Of one act, in units of [`GIVEN`].
    cost: u32,
}

impl YieldingBudget {
    /// At most `rate`; beside many served packets one for each `packets` of them, and a 32nd of `rate`.
    pub(super) fn new(rate: Rate, packets: u32) -> YieldingBudget {
        let cost = packets * GIVEN;
        let units = |n: u32, part: u32| (n / part).saturating_mul(cost);
        let bucket = |part: u32| {
            let burst = units(rate.burst, part);
            // The packet that asks for a key exchange is served too, and must not lack what it takes itself.
            let slack = if burst > 0 { TAKEN } else { 0 };
            TokenBucket::new(units(rate.per_second, part), burst.saturating_add(slack))
        };
        YieldingBudget { full: bucket(1), least: bucket(LEAST), cost }
    }

    /// True if [`YieldingBudget::take`] would say so.
    pub(super) fn has(&self, now: Time) -> bool {
        self.full.has(now, self.cost) || self.least.has(now, self.cost)
    }

    /// Takes what one act costs, if it is there.
    pub(super) fn take(&mut self, now: Time) -> bool {
        self.full.take(now, self.cost) || self.least.take(now, self.cost)
    }

    /// A packet of a session was served.
    pub(super) fn served(&mut self, now: Time) {
        // Owed if it is not there: between two bursts of served packets there is no rest.
        self.full.charge(now, TAKEN);
        self.least.give_back(GIVEN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    /// Key exchanges in ten seconds beside so many served packets a second.
    fn beside(packets_per_second: u32) -> u32 {
        let mut budget = YieldingBudget::new(Rate::new(400, 400), 512);
        let (mut now, mut done) = (Time::from_micros(1), 0);
        for step in 0..20_000 {
            now = now + Duration::from_millis(1);
            let served = |step: u64| step * u64::from(packets_per_second) / 1000;
            (served(step)..served(step + 1)).for_each(|_| budget.served(now));
            // The first ten seconds use up what was saved.
            let taken = (0..10).filter(|_| budget.take(now)).count() as u32;
            done += if step < 10_000 { 0 } else { taken };
        }
        done
    }

    #[test]
    fn a_net_at_rest_does_many() {
        assert!((3_990..=4_010).contains(&(beside(0) - 120)), "{}", beside(0));
    }

    #[test]
    fn the_served_are_served_first() {
        assert!(beside(5_000) < beside(1_000) && beside(1_000) < beside(0));
        for packets in [20_000, 60_000] {
            let share = f64::from(beside(packets)) / f64::from(packets * 10);
            assert!((0.0015..0.004).contains(&share), "{packets}: {share}");
        }
    }

    #[test]
    fn no_rate_is_none_whoever_is_served() {
        let mut budget = YieldingBudget::new(Rate::new(0, 0), 256);
        (0..10_000).for_each(|_| budget.served(Time::ZERO));
        assert!(!budget.take(Time::from_micros(1 << 40)));
    }
}
