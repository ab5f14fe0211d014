//! The narrowest link of a path: what it can't carry at once waits in a queue, and what finds that full is dropped.
use std::net::SocketAddr;

use m2m_proto::time::{Duration, Time};

/// IPv4 (RFC 791 section 3.1) and UDP (RFC 768) put so much before each datagram.
const HEADERS: u64 = 20 + 8;

/// A link with a rate and a drop-tail queue, towards one address. The link's own delay is that of the world.
#[derive(Clone, Debug)]
pub struct Bottleneck {
    /// Where it leads.
    pub to: SocketAddr,
    /// What it carries.
    pub bytes_per_second: u64,
    /// What may wait for it.
    pub queue_bytes: u64,
    /// Bytes that it took, with their headers.
    pub carried: u64,
    /// Datagrams that it dropped.
    pub dropped: u64,
    /// When all that it took will have left.
    free_at: Time,
}

impl Bottleneck {
    /// An idle link.
    pub fn new(to: SocketAddr, bytes_per_second: u64, queue_bytes: u64) -> Bottleneck {
        Bottleneck { to, bytes_per_second, queue_bytes, carried: 0, dropped: 0, free_at: Time::ZERO }
    }

    /// How long a datagram of `len` bytes takes to get through, the queue before it included; none if it is dropped.
    /// What goes elsewhere doesn't come by here.
    pub(crate) fn pass(&mut self, now: Time, to: SocketAddr, len: usize) -> Option<Duration> {
        if to != self.to {
            return Some(Duration::ZERO);
        }
        let bytes = len as u64 + HEADERS;
        let wait = self.free_at.since(now);
        let queued = wait.as_micros() * u128::from(self.bytes_per_second) / 1_000_000;
        if queued + u128::from(bytes) > u128::from(self.queue_bytes) {
            self.dropped += 1;
            return None;
        }
        self.carried += bytes;
        let through = wait + Duration::from_micros(bytes * 1_000_000 / self.bytes_per_second);
        self.free_at = now + through;
        Some(through)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carries_at_its_rate_and_drops_what_finds_no_room() {
        let [to, other] = [1, 2].map(|n| SocketAddr::from(([10, 0, 0, n], 1)));
        let mut link = Bottleneck::new(to, 100_000, 2_500);
        let now = Time::from_micros(5_000);
        let ms = |millis| Some(Duration::from_millis(millis));
        assert_eq!([972, 972, 972].map(|len| link.pass(now, to, len)), [ms(10), ms(20), None]);
        assert_eq!(link.pass(now, other, 972), ms(0));
        assert_eq!(link.pass(Time::from_micros(10_000), to, 972), ms(25));
        assert_eq!(link.pass(Time::from_micros(99_000), to, 972), ms(10));
        assert_eq!((link.carried, link.dropped), (4_000, 1));
    }
}
