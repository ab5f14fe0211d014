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

/// A token bucket that starts full.
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
    /// `rate` tokens come back each second, up to `burst`. A rate of 0 refuses everything. Above 1,000,000 a second
    /// the rounding of a token's time to nanoseconds makes the rate up to rate/10^9 of itself lower.
    pub fn new(rate: u32, burst: u32) -> TokenBucket {
        TokenBucket { limit: Limit::new(rate, burst), full_at: 0 }
    }

    /// Takes `n` tokens if there are that many; else takes none and says false.
    pub fn take(&mut self, now: Time, n: u32) -> bool {
        let Some(full_at) = self.limit.take(self.full_at, now, n) else { return false };
        self.full_at = full_at;
        true
    }

    /// Returns `n` tokens that were taken. The bucket never holds more than its burst.
    pub fn give_back(&mut self, n: u32) {
        self.full_at = self.full_at.saturating_sub(self.limit.nanos(n));
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

/// The key of a neighbour through which relayed packets come.
pub fn neighbour_key(id: &Id, secret: u64) -> u64 {
    let id = u128::from_be_bytes(id.0);
    siphash_1_3(siphash_1_3(secret, 0, (id >> 64) as u64), 0, id as u64)
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
    for word in [kind, word] {
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
