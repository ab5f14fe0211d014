//! What a seed stands for: who is there, what the links do, and what happens when.
use m2m_proto::{time::Duration, wire::packet::Suite};
use rand_chacha::{ChaCha12Rng, rand_core::Rng};

use crate::{Faults, NetIndex};

/// Randomness of a scenario, with the few shapes of it that are needed.
pub(super) struct Dice(pub(super) ChaCha12Rng);

impl Dice {
    /// A number from `low` to `high`, both included.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.0.next_u64() % (high - low + 1)
    }

    /// True so often in a hundred times.
    pub(super) fn percent(&mut self, chance: u64) -> bool {
        self.0.next_u64() % 100 < chance
    }

    /// A time between none and `longest`.
    pub(super) fn within(&mut self, longest: Duration) -> Duration {
        Duration::from_micros(self.between(0, longest.as_micros() as u64))
    }

    /// One of several; there must be some.
    pub(super) fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[self.0.next_u64() as usize % among.len()]
    }
}

/// Something that happens at its time.
#[derive(Clone, Copy, Debug)]
pub(super) enum Doing {
    /// One net asks another, in a session that it has or opens.
    Request { from: NetIndex, to: NetIndex },
    /// A net closes one of its sessions.
    Close(NetIndex),
    /// A net measures a round trip, or asks for another's presence.
    Question(NetIndex),
    /// A net dies without a word.
    Kill(NetIndex),
    /// It starts again, with or without what it had stored.
    Start { net: NetIndex, keeps_disk: bool },
    /// Its store fails from now on, or works again.
    Disk { net: NetIndex, full: bool },
    /// The attacker does one thing.
    Attack,
}

/// A whole scenario.
pub(super) struct Plan {
    /// The first net is a host, the others its guests. Otherwise all are equal and have addresses only.
    pub(super) has_host: bool,
    /// The suites of each net, preferred first.
    pub(super) suites: Vec<Vec<Suite>>,
    /// What the links do until the quiet phase.
    pub(super) faults: Faults,
    /// How long everything may happen; then come the quiet phase and the end.
    pub(super) chaos: Duration,
    /// What happens, by time since the start; in no order.
    pub(super) doings: Vec<(Duration, Doing)>,
}

impl Plan {
    /// Throws a scenario.
    pub(super) fn throw(dice: &mut Dice) -> Plan {
        let has_host = dice.percent(85);
        let nets = if has_host { dice.between(3, 7) } else { dice.between(2, 4) } as usize;
        let chaos = Duration::from_secs(dice.between(5, 90));
        let mut plan =
            Plan { has_host, suites: suites(dice, nets), faults: faults(dice), chaos, doings: Vec::new() };
        plan.throw_requests(dice);
        plan.throw_failures(dice);
        if dice.percent(60) {
            for _ in 0..dice.between(10, 120) {
                plan.add(dice, Doing::Attack);
            }
        }
        plan
    }

    fn add(&mut self, dice: &mut Dice, doing: Doing) {
        let at = dice.within(self.chaos);
        self.doings.push((at, doing));
    }

    fn throw_requests(&mut self, dice: &mut Dice) {
        let nets = self.suites.len() as u64;
        // Some scenarios are about a few pairs that talk much, others about everybody with everybody.
        let pairs: Vec<(NetIndex, NetIndex)> = (0..dice.between(1, 8))
            .map(|_| {
                let from = dice.between(0, nets - 1);
                let to = (from + dice.between(1, nets - 1)) % nets;
                (NetIndex(from as usize), NetIndex(to as usize))
            })
            .collect();
        for _ in 0..dice.between(5, 60) {
            let (mut from, mut to) = *dice.pick(&pairs);
            if dice.percent(30) {
                (from, to) = (to, from);
            }
            self.add(dice, Doing::Request { from, to });
            if dice.percent(10) {
                // A burst: more at once than the window takes.
                let at = dice.within(self.chaos);
                let burst = dice.between(2, 25);
                self.doings.extend((0..burst).map(|_| (at, Doing::Request { from, to })));
            }
        }
        for _ in 0..dice.between(0, 6) {
            let net = NetIndex(dice.between(0, nets - 1) as usize);
            let doing = if dice.percent(50) { Doing::Close(net) } else { Doing::Question(net) };
            self.add(dice, doing);
        }
    }

    fn throw_failures(&mut self, dice: &mut Dice) {
        for net in 0..self.suites.len() {
            let is_host = self.has_host && net == 0;
            let net = NetIndex(net);
            if !dice.percent(if is_host { 35 } else { 25 }) {
                continue;
            }
            for _ in 0..dice.between(1, 2) {
                let at = dice.within(self.chaos);
                let back = (at + Duration::from_millis(dice.between(1, 20_000))).min(self.chaos);
                self.doings.push((at, Doing::Kill(net)));
                // Some stay dead; a host has to come back, or there is nothing to see.
                if is_host || dice.percent(80) {
                    self.doings.push((back, Doing::Start { net, keeps_disk: dice.percent(70) }));
                }
            }
        }
        if self.has_host && dice.percent(8) {
            self.doings.push((Duration::ZERO, Doing::Disk { net: NetIndex(0), full: true }));
            self.add(dice, Doing::Disk { net: NetIndex(0), full: false });
        }
    }
}

fn suites(dice: &mut Dice, nets: usize) -> Vec<Vec<Suite>> {
    use Suite::{Aes128Ccm8, Aes128Gcm, Aes256Gcm};
    let only = match dice.between(0, 5) {
        0 => Some(vec![Aes256Gcm]),
        1 => Some(vec![Aes128Ccm8]),
        _ => None,
    };
    let mixed: [&[Suite]; 6] = [
        &[Aes128Gcm],
        &[Aes128Gcm, Aes256Gcm],
        &[Aes256Gcm, Aes128Gcm],
        &[Aes128Ccm8, Aes128Gcm],
        &[Aes128Gcm, Aes128Ccm8, Aes256Gcm],
        &[Aes256Gcm, Aes128Ccm8, Aes128Gcm],
    ];
    (0..nets).map(|_| only.clone().unwrap_or_else(|| dice.pick(&mixed).to_vec())).collect()
}

fn faults(dice: &mut Dice) -> Faults {
    let delay = Duration::from_millis(dice.between(1, 200));
    if dice.percent(15) {
        return Faults { delay, ..Faults::default() };
    }
    Faults {
        loss: dice.between(0, 200) as u32,
        duplicate: dice.between(0, 100) as u32,
        corrupt: dice.between(0, 10) as u32,
        delay,
        jitter: delay.mul_f64(dice.between(0, 200) as f64 / 100.0),
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    #[test]
    fn plans_stay_within_what_they_say_and_cover_it() {
        let (mut with_host, mut attacked, mut killed) = (0, 0, 0);
        for seed in 0..300 {
            let plan = Plan::throw(&mut Dice(ChaCha12Rng::seed_from_u64(seed)));
            assert!(plan.doings.iter().all(|(at, _)| *at <= plan.chaos));
            assert!(plan.faults.loss <= 200 && plan.faults.jitter <= 2 * plan.faults.delay);
            assert!(plan.doings.iter().all(|(_, doing)| match doing {
                Doing::Request { from, to } => from != to && from.0.max(to.0) < plan.suites.len(),
                _ => true,
            }));
            with_host += usize::from(plan.has_host);
            attacked += usize::from(plan.doings.iter().any(|(_, doing)| matches!(doing, Doing::Attack)));
            killed += usize::from(plan.doings.iter().any(|(_, doing)| matches!(doing, Doing::Kill(_))));
        }
        for count in [with_host, attacked, killed] {
            assert!((50..300).contains(&count), "{with_host} {attacked} {killed}");
        }
    }
}
