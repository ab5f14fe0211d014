//! The machine's clock: monotonic, and going on while the system sleeps, where that can be had. One that stood still would
//! make what was said before the sleep seem young: a lease as good as new, a request one that the peer must remember.
use std::time::{Duration, Instant};

use m2m_proto::time::Time;

/// Counts from the moment when it was made.
pub(super) struct Clock {
    origin: Duration,
}

impl Clock {
    pub(super) fn new() -> Clock {
        Clock { origin: reading() }
    }

    pub(super) fn now(&self) -> Time {
        let passed = reading().saturating_sub(self.origin);
        Time::from_micros(u64::try_from(passed.as_micros()).unwrap_or(u64::MAX))
    }

    /// When this clock will show `time`, if the system does not sleep until then.
    pub(super) fn instant(&self, time: Time) -> Option<Instant> {
        Instant::now().checked_add(time.since(self.now()))
    }
}

/// Linux' monotonic clock stands still in a suspended system; its boot-time clock does not.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn reading() -> Duration {
    let reading = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::try_from(reading).unwrap_or_default()
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn reading() -> Duration {
    use std::sync::LazyLock;
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_at_nothing_and_goes_on() {
        let clock = Clock::new();
        let first = clock.now();
        assert!(first < Time::from_micros(1_000_000), "{first:?}");
        std::thread::sleep(Duration::from_millis(5));
        assert!(clock.now().since(first) >= Duration::from_millis(5));
    }

    #[test]
    fn an_instant_of_the_future_is_as_far_away_as_its_time() {
        let clock = Clock::new();
        let due = clock.instant(clock.now() + Duration::from_secs(10)).expect("it can be told");
        let away = due - Instant::now();
        assert!((Duration::from_secs(9)..=Duration::from_secs(10)).contains(&away), "{away:?}");
    }
}
