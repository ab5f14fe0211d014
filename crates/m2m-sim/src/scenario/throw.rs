//! What a seed stands for. Most scenarios are small, so that there can be many; some are large, for what needs a crowd.
use m2m_proto::{coap::code::Code, time::Duration, wire::packet::Suite};

use super::plan::{Asking, Dice, Doing, Length, Meddling, NetPlan, Plan, Planned, Prank, Trick, Way};
use crate::{Faults, NetIndex, world::Prey};

/// Longest deadline of a request; shorter than the quiet phase, in which it must end.
const LONGEST_DEADLINE_MS: u64 = 55_000;
/// Sets a plan's randomness apart from its world's.
const SALT: u64 = 0x6D32_6D2D_7369_6D21;

/// The plan of a seed.
pub fn throw(seed: u64) -> Plan {
    let mut dice = Dice::of(seed ^ SALT);
    let size = match dice.between(0, 99) {
        0..=79 => Size::Small,
        80..=96 => Size::Medium,
        _ => Size::Large,
    };
    let nets = nets(&mut dice, size);
    let chaos = Duration::from_secs(match size {
        Size::Small => dice.between(3, 40),
        _ => dice.between(5, 90),
    });
    let plan = Plan {
        seed,
        nets: nets.into_iter().map(Some).collect(),
        faults: faults(&mut dice),
        chaos,
        doings: Vec::new(),
    };
    let mut thrower = Thrower { plan, dice, size };
    thrower.requests();
    thrower.commands();
    thrower.deaths();
    thrower.hardships();
    thrower.attacks();
    thrower.key_changes();
    thrower.plan
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Size {
    Small,
    Medium,
    Large,
}

struct Thrower {
    plan: Plan,
    dice: Dice,
    size: Size,
}

impl Thrower {
    fn add(&mut self, doing: Doing) {
        let at = self.dice.within(self.plan.chaos);
        self.add_at(at, doing);
    }

    fn add_at(&mut self, at: Duration, doing: Doing) {
        let number = self.plan.doings.len() as u32 + 1;
        self.plan.doings.push(Planned { at, number, doing });
    }

    fn count(&self) -> u64 {
        self.plan.nets.len() as u64
    }

    fn any(&mut self) -> NetIndex {
        NetIndex(self.dice.between(0, self.count() - 1) as usize)
    }

    fn any_pair(&mut self) -> (NetIndex, NetIndex) {
        let from = self.any();
        let step = self.dice.between(1, self.count() - 1) as usize;
        (from, NetIndex((from.0 + step) % self.plan.nets.len()))
    }

    fn is_host(&self, net: NetIndex) -> bool {
        self.plan.net(net).is_some_and(|net| net.is_host)
    }

    fn requests(&mut self) {
        // Some scenarios are about a few pairs that talk much, others about everybody with everybody.
        let (pairs, requests) = match self.size {
            Size::Small => (self.dice.between(1, 2), self.dice.between(2, 20)),
            Size::Medium => (self.dice.between(1, 4), self.dice.between(5, 40)),
            Size::Large => (self.dice.between(2, 8), self.dice.between(20, 80)),
        };
        let pairs: Vec<_> = (0..pairs).map(|_| self.any_pair()).collect();
        for _ in 0..requests {
            let (mut from, mut to) = *self.dice.pick(&pairs);
            if self.dice.percent(30) {
                (from, to) = (to, from);
            }
            let asking = self.asking(from, to);
            self.add(Doing::Request(asking));
            if self.dice.percent(5) {
                // A burst: more at once than the window takes.
                let at = self.dice.within(self.plan.chaos);
                for _ in 0..self.dice.between(2, 25) {
                    let asking = Asking { opens: false, ..self.asking(from, to) };
                    self.add_at(at, Doing::Request(asking));
                }
            }
        }
    }

    fn asking(&mut self, from: NetIndex, to: NetIndex) -> Asking {
        let dice = &mut self.dice;
        let method = match dice.between(0, 9) {
            0..=3 => Code::POST,
            4..=5 => Code::GET,
            6 => Code::PUT,
            7 => Code::DELETE,
            8 => Code::PATCH,
            _ => *dice.pick(&[Code::IPATCH, Code::FETCH]),
        };
        let len = match dice.between(0, 9) {
            0 => Length::Bytes(0),
            1 => Length::Most,
            2 => Length::TooLong,
            3..=4 => Length::Bytes(dice.between(0, 1100) as u32),
            _ => Length::Bytes(dice.between(0, 64) as u32),
        };
        let has_host = self.plan.nets.iter().flatten().any(|net| net.is_host);
        let way = match dice.between(0, 99) {
            0..=2 => Way::Anyone,
            3..=14 => Way::Direct,
            _ if has_host => Way::Host,
            _ => Way::Direct,
        };
        Asking {
            from,
            to,
            method,
            len,
            confirmable: !dice.percent(20),
            repeatable: dice.percent(20),
            deadline: Duration::from_millis(dice.between(500, LONGEST_DEADLINE_MS)),
            opens: dice.percent(7),
            way,
            answer: if dice.percent(10) { Length::Most } else { Length::Bytes(dice.between(0, 80) as u32) },
            // A handler answers at once, late, or never.
            after: match dice.between(0, 9) {
                0 => None,
                1..=3 => Some(dice.within(Duration::from_secs(8))),
                4 => Some(dice.within(Duration::from_millis(100))),
                _ => Some(Duration::ZERO),
            },
            cancel: dice.percent(3).then(|| dice.within(Duration::from_secs(3))),
        }
    }

    fn commands(&mut self) {
        let most = if self.size == Size::Small { 3 } else { 8 };
        for _ in 0..self.dice.between(0, most) {
            let (net, about) = self.any_pair();
            let which = self.dice.between(0, 7) as u32;
            let doing = match self.dice.between(0, 9) {
                0..=1 => Doing::Close { net, which },
                2 => Doing::Ping { net, which },
                3 => Doing::LookUp { net, about },
                4..=7 => Doing::Rekey { net, which, secret: self.dice.percent(30) },
                _ => Doing::Refresh { net, which },
            };
            self.add(doing);
        }
    }

    fn deaths(&mut self) {
        for net in (0..self.plan.nets.len()).map(NetIndex) {
            let is_host = self.is_host(net);
            if !self.dice.percent(if is_host { 22 } else { 18 }) {
                continue;
            }
            for _ in 0..self.dice.between(1, 2) {
                let at = self.dice.within(self.plan.chaos);
                let away = Duration::from_millis(self.dice.between(1, 20_000));
                self.add_at(at, Doing::Kill { net });
                // Some stay dead; a host has to come back, or there is nothing to see.
                if is_host || self.dice.percent(80) {
                    let keeps_disk = self.dice.percent(70);
                    self.add_at((at + away).min(self.plan.chaos), Doing::Start { net, keeps_disk });
                }
            }
        }
    }

    /// What machines and networks do to nets.
    fn hardships(&mut self) {
        for net in (0..self.plan.nets.len()).map(NetIndex) {
            let is_host = self.is_host(net);
            if self.dice.percent(if is_host { 4 } else { 16 }) {
                for _ in 0..self.dice.between(1, 3) {
                    let moves = self.dice.percent(40);
                    self.add(Doing::Rebind { net, moves });
                }
            }
            if self.dice.percent(8) {
                let time = self.dice.within(self.plan.chaos);
                // A clock that stands still while the rest of the world goes on makes what is old seem young: a driver has to
                // give the machine one that does not.
                let (clock_stops, datagrams_first) = (false, self.dice.percent(50));
                self.add(Doing::Suspend { net, time, clock_stops, datagrams_first });
            }
            if self.dice.percent(6) {
                let ahead_ms = clock_error(&mut self.dice);
                self.add(Doing::Clock { net, ahead_ms });
            }
            if self.dice.percent(4) {
                self.add(Doing::Disk { net, full: true });
                self.add(Doing::Disk { net, full: false });
            }
            if is_host && self.dice.percent(8) {
                let delay = self.dice.within(Duration::from_secs(20));
                self.add_at(Duration::ZERO, Doing::Store { net, delay });
            }
        }
        if self.dice.percent(6) {
            // Several networks change at once.
            let at = self.dice.within(self.plan.chaos);
            for net in (0..self.plan.nets.len()).map(NetIndex) {
                if self.dice.percent(60) && !self.is_host(net) {
                    self.add_at(at, Doing::Rebind { net, moves: true });
                }
            }
        }
        if self.dice.percent(15) {
            for _ in 0..self.dice.between(1, 3) {
                let (from, to) = self.any_pair();
                let (one_way, time) = (self.dice.percent(50), self.dice.within(Duration::from_secs(20)));
                self.add(Doing::Cut { from, to, one_way, time });
            }
        }
    }

    fn attacks(&mut self) {
        if self.dice.percent(45) {
            let most = if self.size == Size::Small { 25 } else { 100 };
            for _ in 0..self.dice.between(3, most) {
                let (trick, _) = *self.dice.pick(&Trick::ALL);
                self.add(Doing::Attack(trick));
            }
        }
        if self.dice.percent(25) {
            for _ in 0..self.dice.between(1, 3) {
                let meddling = self.meddling();
                self.add(Doing::Meddle(meddling));
            }
        }
    }

    fn key_changes(&mut self) {
        if self.dice.percent(12) {
            for _ in 0..self.dice.between(1, 3) {
                let (net, which) = (self.any(), self.dice.between(0, 7) as u32);
                self.add(Doing::NetKey { net, which });
            }
        }
    }

    fn meddling(&mut self) -> Meddling {
        let (from, to) = self.any_pair();
        let dice = &mut self.dice;
        let prey = match dice.between(0, 7) {
            0..=1 => Prey::Any,
            2 => Prey::Long,
            3..=4 => Prey::Short,
            5 => Prey::Kind(0x91),
            6 => Prey::Kind(0x92),
            _ => Prey::Kind(0x95),
        };
        let fate = match dice.between(0, 2) {
            0 => Prank::Drop,
            1 => Prank::Delay(dice.within(Duration::from_secs(12))),
            _ => Prank::Divert,
        };
        Meddling {
            from: dice.percent(60).then_some(from),
            to: dice.percent(40).then_some(to),
            prey,
            every: if dice.percent(50) { 1 } else { dice.between(2, 6) as u32 },
            fate,
            time: dice.within(Duration::from_secs(30)),
        }
    }
}

fn nets(dice: &mut Dice, size: Size) -> Vec<NetPlan> {
    let hosts = match dice.between(0, 99) {
        0..=13 => 0,
        14..=79 => 1,
        _ => 2,
    };
    let guests = match size {
        Size::Small if hosts == 0 => 2,
        Size::Small => dice.between(1, 2) as usize,
        Size::Medium => dice.between(2, 4) as usize,
        Size::Large => dice.between(3, 7) as usize,
    };
    let (natted, skewed) = (dice.percent(25), dice.percent(12));
    let mut suites = suites(dice, hosts + guests).into_iter();
    let mut nets = Vec::new();
    for index in 0..hosts + guests {
        let is_host = index < hosts;
        // One behind a NAT can't be reached unless it wrote first.
        let is_natted = natted && !is_host && dice.percent(60);
        nets.push(NetPlan {
            is_host,
            hosts: if is_host { Vec::new() } else { host_choice(dice, hosts) },
            suites: suites.next().unwrap_or_default(),
            nat: is_natted.then(|| Duration::from_secs(dice.between(60, 300))),
            clock_ms: if skewed && dice.percent(50) { clock_error(dice) } else { 0 },
        });
    }
    nets
}

fn host_choice(dice: &mut Dice, hosts: usize) -> Vec<NetIndex> {
    let all: Vec<NetIndex> = (0..hosts).map(NetIndex).collect();
    match (hosts, dice.between(0, 9)) {
        (2, 0..=5) => all,
        (2, 6..=7) => vec![NetIndex(1), NetIndex(0)],
        (2, n) => vec![NetIndex(n as usize % 2)],
        _ => all,
    }
}

/// A little, or years.
fn clock_error(dice: &mut Dice) -> i64 {
    let most = *dice.pick(&[2_000, 400_000, 90_000_000, 100_000_000_000]);
    let error = dice.between(0, most) as i64;
    if dice.percent(50) { error } else { -error }
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
        jitter: Duration::from_millis(delay.as_millis() as u64 * dice.between(0, 200) / 100),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn plans_stay_within_what_they_say_and_cover_it() {
        let mut seen = BTreeMap::new();
        for seed in 0..1000 {
            let plan = throw(seed);
            let mut here = BTreeMap::new();
            for Planned { at, doing, .. } in &plan.doings {
                assert!(*at <= plan.chaos, "{doing:?} at {at:?}");
                let nets: Vec<_> = doing.nets().into_iter().flatten().collect();
                assert!(nets.iter().all(|net| plan.net(*net).is_some()), "{doing:?}");
                assert!(nets.len() < 2 || nets[0] != nets[1], "{doing:?}");
                let name = format!("{doing:?}");
                let name = name.split(['(', ' ']).next().unwrap_or_default().to_string();
                here.insert(name, true);
            }
            here.insert(
                "two hosts".into(),
                plan.nets.iter().flatten().filter(|net| net.is_host).count() == 2,
            );
            here.insert("behind a NAT".into(), plan.nets.iter().flatten().any(|net| net.nat.is_some()));
            assert!(plan.faults.loss <= 200 && plan.faults.jitter <= 2 * plan.faults.delay);
            here.into_iter().filter(|(_, is)| *is).for_each(|(name, _)| *seen.entry(name).or_insert(0) += 1);
        }
        assert_eq!(seen.len(), 19, "{seen:?}");
        assert!(seen.values().all(|count| *count >= 40), "{seen:?}");
    }
}
