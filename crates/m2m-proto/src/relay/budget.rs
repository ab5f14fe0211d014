//! Budgets: how much one source may ask of this net (docs/protocol.md section 12).
//!
//! A bucket is the virtual-scheduling form of the generic cell rate algorithm (ITU-T I.371, annex A): instead of a
//! level and the time of its last change it keeps one instant, the one at which it will be full again. Integers
//! only; a token's time is rounded up, so that the rate is never exceeded.
use crate::{id::Id, time::Time};
use alloc::{boxed::Box, vec};
use core::net::{IpAddr, SocketAddr};

const NANOS_PER_SECOND: u32 = 1_000_000_000;

/// What a bucket allows.
#[derive(Clone, Copy, Debug)]
struct Limit {
    /// How long one token takes to come back.
    token_ns: u32,
    burst: u32,
}

impl Limit {
    fn new(rate: u32, burst: u32) -> Limit {
        // Without a rate nothing that was taken would come back: such a bucket is closed.
        let burst = if rate == 0 { 0 } else { burst };
        Limit { token_ns: NANOS_PER_SECOND.div_ceil(rate.max(1)), burst }
    }

    fn nanos(self, tokens: u32) -> u64 {
        u64::from(tokens) * u64::from(self.token_ns)
    }

    /// When a bucket that is full at `full_at` will be full after giving `n` tokens; `None` if it lacks them.
    fn take(self, full_at: u64, now: Time, n: u32) -> Option<u64> {
        let now = now.as_micros().saturating_mul(1000);
        let then = full_at.max(now).checked_add(self.nanos(n))?;
        (then - now <= self.nanos(self.burst)).then_some(then)
    }
}

/// A token bucket that starts full. It works for the first 584 years of the caller's clock.
///
/// ```
/// use m2m_proto::{relay::budget::TokenBucket, time::{Duration, Time}};
/// let mut bucket = TokenBucket::new(10, 20);
/// assert!(bucket.take(Time::ZERO, 20) && !bucket.take(Time::ZERO, 1));
/// assert!(bucket.take(Time::ZERO + Duration::from_millis(100), 1));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    limit: Limit,
    full_at: u64,
}

impl TokenBucket {
    /// `rate` tokens come back each second, up to `burst`. A rate of 0 refuses everything. A
    /// token's time is rounded up to nanoseconds, which makes a rate lower by at most rate / 10^9 of itself.
    pub fn new(rate: u32, burst: u32) -> TokenBucket {
        TokenBucket { limit: Limit::new(rate, burst), full_at: 0 }
    }

    /// Takes `n` tokens if there are that many; else takes none and says false.
    pub fn take(&mut self, now: Time, n: u32) -> bool {
        let Some(full_at) = self.limit.take(self.full_at, now, n) else { return false };
        self.full_at = full_at;
        true
    }

    /// True if [`TokenBucket::take`] would say so.
    pub fn has(&self, now: Time, n: u32) -> bool {
        self.limit.take(self.full_at, now, n).is_some()
    }

    /// Takes `n` tokens even if they are not there: what lacks is owed, but never more than another burst.
    pub fn charge(&mut self, now: Time, n: u32) {
        let now = now.as_micros().saturating_mul(1000);
        let most = now.saturating_add(self.limit.nanos(self.limit.burst).saturating_mul(2));
        self.full_at = self.full_at.max(now).saturating_add(self.limit.nanos(n)).min(most);
    }

    /// Returns `n` tokens that were taken. The bucket never holds more than its burst.
    pub fn give_back(&mut self, n: u32) {
        self.full_at = self.full_at.saturating_sub(self.limit.nanos(n));
    }
}

/// What one of many token buckets of one [`Gauge`] holds; full at first. 8 bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Level {
    full_at: u64,
}

/// The limit of many token buckets.
#[derive(Clone, Copy, Debug)]
pub struct Gauge {
    limit: Limit,
}

impl Gauge {
    /// As [`TokenBucket::new`].
    pub fn new(rate: u32, burst: u32) -> Gauge {
        Gauge { limit: Limit::new(rate, burst) }
    }

    /// Takes `n` tokens from a bucket of this kind, as [`TokenBucket::take`] does.
    pub fn take(&self, level: &mut Level, now: Time, n: u32) -> bool {
        let Some(full_at) = self.limit.take(level.full_at, now, n) else { return false };
        level.full_at = full_at;
        true
    }
}

/// Buckets of one limit for more sources than anyone can count: a fixed number of them, allocated once, 8 bytes each.
/// Sources whose keys collide share one, which an attacker who lacks the key's secret cannot arrange.
#[derive(Debug)]
pub struct BucketTable {
    limit: Limit,
    full_at: Box<[u64]>,
}

impl BucketTable {
    /// At least `buckets` buckets (rounded up to a power of two), each of this rate and burst.
    pub fn new(buckets: usize, rate: u32, burst: u32) -> BucketTable {
        BucketTable {
            limit: Limit::new(rate, burst),
            full_at: vec![0; buckets.next_power_of_two()].into_boxed_slice(),
        }
    }

    /// Takes `n` tokens from the source's bucket, as [`TokenBucket::take`] does. `key` is from [`source_key`].
    pub fn take(&mut self, key: u64, now: Time, n: u32) -> bool {
        let limit = self.limit;
        let slot = self.slot(key);
        let Some(full_at) = limit.take(*slot, now, n) else { return false };
        *slot = full_at;
        true
    }

    /// Returns `n` tokens to the source's bucket.
    pub fn give_back(&mut self, key: u64, n: u32) {
        let nanos = self.limit.nanos(n);
        let slot = self.slot(key);
        *slot = slot.saturating_sub(nanos);
    }

    fn slot(&mut self, key: u64) -> &mut u64 {
        // The length is a power of two, so the mask is an index.
        let index = key as usize & (self.full_at.len() - 1);
        &mut self.full_at[index]
    }
}

/// The key of whoever stands behind `address`: its /24 for IPv4 (also when mapped into IPv6), its /64 for IPv6. The
/// port does not count, since one machine has them all.
pub fn source_key(address: SocketAddr, secret: u64) -> u64 {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => siphash_1_3(secret, 4, (ip.to_bits() >> 8).into()),
        IpAddr::V6(ip) => siphash_1_3(secret, 6, (ip.to_bits() >> 64) as u64),
    }
}

/// The key of one address with its port.
pub fn address_key(address: SocketAddr, secret: u64) -> u64 {
    let port = u64::from(address.port());
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => siphash_1_3(secret, port << 8 | 4, ip.to_bits().into()),
        IpAddr::V6(ip) => {
            let bits = ip.to_bits();
            siphash_1_3(siphash_1_3(secret, port << 8 | 6, (bits >> 64) as u64), 6, bits as u64)
        }
    }
}

/// The key of a neighbour through which relayed packets come.
pub fn neighbour_key(id: &Id, secret: u64) -> u64 {
    let id = u128::from_be_bytes(id.0);
    siphash_1_3(siphash_1_3(secret, 0, (id >> 64) as u64), 0, id as u64)
}

/// The key of a token that somebody else chose.
pub fn token_key(token: u32, secret: u64) -> u64 {
    siphash_1_3(secret, 1, token.into())
}

/// SipHash-1-3 over two words. Why not less: with an unkeyed or a linear mix an attacker picks prefixes that fall into
/// a victim's bucket and empties it. Why not more: the result is never seen from outside, so one round a word and
/// three at the end, as in the hash tables of several languages, leave nothing to search with. Both halves of
/// the 128-bit key come from the one secret, whose 64 bits nobody can try without seeing a result.
fn siphash_1_3(secret: u64, kind: u64, word: u64) -> u64 {
    let (k0, k1) = (secret, secret.rotate_left(32));
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    // The last word holds the length in bytes.
    for word in [kind, word, 16 << 56] {
        v[3] ^= word;
        sip_round(&mut v);
        v[0] ^= word;
    }
    v[2] ^= 0xFF;
    (0..3).for_each(|_| sip_round(&mut v));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn sip_round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use core::{mem::size_of, time::Duration};
    use proptest::{collection::vec as many, prelude::*};

    fn at(micros: u64) -> Time {
        Time::from_micros(micros)
    }

    fn key(address: &str) -> u64 {
        source_key(address.parse().unwrap(), 0x0123_4567_89AB_CDEF)
    }

    #[test]
    fn a_bucket_is_small() {
        assert!(size_of::<TokenBucket>() <= 16);
    }

    #[test]
    fn the_whole_burst_is_there_at_once() {
        // Rates that do not divide a second round a token's time up; the burst must not suffer from it.
        for rate in [1, 3, 7, 50, 999, 1 << 20] {
            let mut bucket = TokenBucket::new(rate, 100);
            assert!((0..100).all(|_| bucket.take(Time::ZERO, 1)), "{rate}");
            assert!(!bucket.take(Time::ZERO, 1), "{rate}");
        }
    }

    #[test]
    fn tokens_come_back_at_the_rate() {
        let mut bucket = TokenBucket::new(50, 100);
        assert!(bucket.take(at(5), 100));
        assert!(!bucket.take(at(20_004), 1));
        assert!(bucket.take(at(20_005), 1));
        assert!(bucket.take(at(1_000_005), 49) && !bucket.take(at(1_000_005), 1));
        // Never more than the burst, however long nobody asks.
        assert!(bucket.take(at(1 << 50), 100) && !bucket.take(at(1 << 50), 1));
    }

    #[test]
    fn a_refusal_takes_nothing() {
        let mut bucket = TokenBucket::new(1, 10);
        assert!(!bucket.take(Time::ZERO, 11));
        assert!(bucket.take(Time::ZERO, 4) && !bucket.take(Time::ZERO, 7) && bucket.take(Time::ZERO, 6));
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let mut bucket = TokenBucket::new(1, 10);
        assert!(bucket.take(Time::ZERO, 10));
        bucket.give_back(3);
        assert!(bucket.take(Time::ZERO, 3) && !bucket.take(Time::ZERO, 1));
        bucket.give_back(u32::MAX);
        assert!(bucket.take(Time::ZERO, 10) && !bucket.take(Time::ZERO, 1));
    }

    #[test]
    fn a_debt_is_paid_first_and_is_never_more_than_a_burst() {
        let mut bucket = TokenBucket::new(10, 10);
        bucket.charge(Time::ZERO, 15);
        assert!(!bucket.has(at(500_000), 1) && bucket.has(at(600_000), 1));
        bucket.charge(Time::ZERO, u32::MAX);
        assert!(!bucket.take(at(1_000_000), 1) && bucket.take(at(1_100_000), 1));
    }

    #[test]
    fn no_rate_and_no_burst_refuse_everything() {
        for mut bucket in [TokenBucket::new(0, 10), TokenBucket::new(10, 0)] {
            assert!(!bucket.take(Time::ZERO, 1) && !bucket.take(at(1 << 50), 1));
        }
    }

    #[test]
    fn a_clock_that_steps_back_frees_nothing() {
        let mut bucket = TokenBucket::new(10, 10);
        assert!(bucket.take(at(5_000_000), 10));
        assert!(!bucket.take(at(1_000_000), 1) && !bucket.take(Time::ZERO, 1));
        assert!(bucket.take(at(5_100_000), 1));
    }

    #[test]
    fn the_extremes_do_not_overflow() {
        let mut bucket = TokenBucket::new(1, u32::MAX);
        assert!(bucket.take(Time::ZERO, u32::MAX) && !bucket.take(Time::ZERO, u32::MAX));
        assert!(!bucket.take(Time::NEVER, 1), "beyond the range of the clock nothing is allowed");
        let mut bucket = TokenBucket::new(u32::MAX, u32::MAX);
        assert!(bucket.take(Time::ZERO, u32::MAX) && !bucket.take(Time::ZERO, 1));
    }

    #[test]
    fn the_table_keeps_sources_apart() {
        let mut table = BucketTable::new(4096, 50, 100);
        let (one, other) = (key("192.0.2.1:1"), key("198.51.100.1:1"));
        assert!(table.take(one, Time::ZERO, 100) && !table.take(one, Time::ZERO, 1));
        assert!(table.take(other, Time::ZERO, 100));
        table.give_back(one, 1);
        assert!(table.take(one, Time::ZERO, 1) && !table.take(one, Time::ZERO, 1));
    }

    #[test]
    fn colliding_sources_share_a_bucket() {
        let mut table = BucketTable::new(3, 1, 1);
        assert!(table.take(1, Time::ZERO, 1), "rounded up to 4 buckets");
        assert!(!table.take(5, Time::ZERO, 1) && table.take(4, Time::ZERO, 1));
        let mut single = BucketTable::new(0, 1, 1);
        assert!(single.take(7, Time::ZERO, 1) && !single.take(8, Time::ZERO, 1));
    }

    #[test]
    fn a_source_is_a_prefix_without_port() {
        assert_eq!(key("192.0.2.1:1"), key("192.0.2.254:65535"));
        assert_ne!(key("192.0.2.1:1"), key("192.0.3.1:1"));
        assert_eq!(key("[::ffff:192.0.2.9]:1"), key("192.0.2.1:1"));
        assert_eq!(key("[2001:db8:0:1::1]:1"), key("[2001:db8:0:1:ffff::2]:2"));
        assert_ne!(key("[2001:db8:0:1::1]:1"), key("[2001:db8:0:2::1]:1"));
        // The v6 prefix whose number is that of the v4 one.
        assert_ne!(key("[0:0:c0:2::]:1"), key("192.0.2.1:1"));
    }

    #[test]
    fn the_key_is_siphash_1_3() {
        // The values of another implementation, under the all-zero key.
        assert_eq!(source_key("192.0.2.1:1".parse().unwrap(), 0), 0x9C5D_1F4F_99E8_8EE6);
        assert_eq!(source_key("[2001:db8:0:1::1]:1".parse().unwrap(), 0), 0x6436_730E_6796_7AE0);
    }

    #[test]
    fn the_key_depends_on_the_secret() {
        let address = "192.0.2.1:1".parse().unwrap();
        let keys: Vec<u64> = (0..64).map(|bit| source_key(address, 1 << bit)).collect();
        let mut apart = keys.clone();
        apart.sort_unstable();
        apart.dedup();
        assert_eq!(apart.len(), keys.len());
        assert_ne!(neighbour_key(&Id([1; 16]), 1), neighbour_key(&Id([1; 16]), 2));
    }

    #[test]
    fn neighbours_differ_by_every_byte() {
        let base = neighbour_key(&Id([0; 16]), 9);
        for byte in 0..16 {
            let mut id = [0; 16];
            id[byte] = 1;
            assert_ne!(neighbour_key(&Id(id), 9), base, "{byte}");
        }
    }

    #[test]
    fn neighbouring_prefixes_spread_over_the_table() {
        // 4,096 balls into 4,096 bins fill 63 % of them if the hash is as good as chance; a hash that keeps the
        // order of the prefixes would fill all, a poor one few.
        let address = |n: u32| SocketAddr::new(IpAddr::from((n << 8).to_be_bytes()), 1);
        let mut slots: Vec<u64> = (0..4096).map(|n| source_key(address(n), 42) & 4095).collect();
        slots.sort_unstable();
        slots.dedup();
        assert!((2450..2750).contains(&slots.len()), "{}", slots.len());
    }

    proptest! {
        #[test]
        fn no_window_gives_more_than_burst_and_rate(
            rate in 1..3_000_000u32, burst in 1..100_000u32,
            asks in many((0..200_000u64, 1..5_000u32), 1..120),
        ) {
            let mut bucket = TokenBucket::new(rate, burst);
            let mut now = Time::ZERO;
            let mut taken = Vec::new();
            for (pause, n) in asks {
                now = now + Duration::from_micros(pause);
                if bucket.take(now, n) {
                    taken.push((now.as_micros(), u128::from(n)));
                }
            }
            for (first, (start, _)) in taken.iter().enumerate() {
                let mut sum = 0;
                for (end, n) in &taken[first..] {
                    sum += n;
                    // In millionths of a token, so that nothing is rounded.
                    let allowed = u128::from(burst) * 1_000_000 + u128::from(rate) * u128::from(end - start);
                    prop_assert!(sum * 1_000_000 <= allowed, "{sum} tokens from {start} to {end} us");
                }
            }
        }

        #[test]
        fn whoever_keeps_to_the_rate_is_never_refused(rate in 1..1_000u32, burst in 1..100u32) {
            let mut bucket = TokenBucket::new(rate, burst);
            let pause = 1_000_000u64.div_ceil(rate.into());
            for step in 0..300 {
                prop_assert!(bucket.take(at(step * pause), 1), "step {step}");
            }
        }
    }
}
