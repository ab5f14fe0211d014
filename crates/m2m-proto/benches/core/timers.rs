//! Deadlines among many.
use std::{cell::RefCell, time::Duration};

use criterion::{BatchSize, Criterion};
use m2m_proto::{
    event::Output,
    id::Id,
    net::{Net, Route},
    session::keys::PeerKey,
    time::Time,
};

use super::{NOW, address, key, net};

/// The heap's depth is what they cost, and a million would only make it 4 deeper than this; each needs a key pair.
const SESSIONS: u64 = 65_536;

pub(crate) fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group(format!("timers among {SESSIONS}"));
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(1));
    let (mut net, due) = connecting();
    group.bench_function("nothing is due", |b| {
        b.iter(|| {
            net.handle_timeout(NOW);
            drain(&mut net, NOW)
        });
    });
    let world = RefCell::new((net, due));
    group.bench_function("one expires, sends again, and is armed anew", |b| {
        b.iter_batched(
            || {
                let (_, due) = *world.borrow();
                // All have given up after 10 s.
                if due > NOW + Duration::from_secs(6) {
                    *world.borrow_mut() = connecting();
                }
            },
            |()| {
                let (net, due) = &mut *world.borrow_mut();
                net.handle_timeout(*due);
                *due = drain(net, *due);
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// A net that waits for answers to its INITs, which it sends again after 1, 2, 4 and 7 s; and when the first is due.
fn connecting() -> (Net, Time) {
    let mut net = net(1, |config| config.limits.sessions = usize::MAX);
    let key = PeerKey::Net(key(2));
    let mut now = NOW;
    for n in 0..SESSIONS {
        let mut peer = [5; 16];
        peer[..8].copy_from_slice(&n.to_be_bytes());
        now = NOW + Duration::from_micros(n);
        net.connect(now, Id(peer), &key, Route::Direct(address(2))).unwrap();
        drain(&mut net, now);
    }
    let due = drain(&mut net, now);
    (net, due)
}

/// Takes all that a net wants; gives when it is to be told of time next.
fn drain(net: &mut Net, now: Time) -> Time {
    loop {
        match net.poll_output(now) {
            Output::Datagram { bytes, .. } => net.recycle(bytes),
            Output::Timeout(due) => return due,
            _ => {}
        }
    }
}
