//! A request and its response, both sides.
use std::time::Duration;

use criterion::Criterion;
use m2m_proto::{event::SessionId, net::Net, session::keys::Suite};

use super::{NOW, ask, pair, settle};

pub(crate) fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("request and response of 64 B, both sides");
    for (name, suite) in [("AES-128-GCM", Suite::Aes128Gcm), ("AES-128-CCM-8", Suite::Aes128Ccm8)] {
        for at_once in [1, 16] {
            let (mut world, mut n) = (pair(suite), 0);
            group.bench_function(format!("{name}, {at_once} at once"), |b| {
                b.iter(|| round(&mut world, suite, &mut n, at_once));
            });
        }
    }
    group.finish();
}

/// So many requests before any leaves, and all that comes of them.
fn round(world: &mut (Vec<(u8, Net)>, SessionId), suite: Suite, n: &mut u64, at_once: u64) {
    if world.0[1].1.info(world.1).is_none_or(|info| !info.up) {
        // The key limit ended it: a new one, once in 8 million.
        *world = pair(suite);
    }
    let (nets, session) = world;
    let now = NOW + Duration::from_micros(*n);
    for _ in 0..at_once {
        *n += 1;
        ask(&mut nets[1].1, now, *session, *n);
    }
    settle(nets, now);
}
