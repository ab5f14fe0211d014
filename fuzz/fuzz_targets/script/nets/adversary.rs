//! What the network and whoever sits on it does to the nets of a script. It has no keys.
use m2m_proto::time::Duration;
use m2m_sim::{
    Faults,
    world::{Meddle, Meddler, Prey},
};

use super::{
    super::{SECOND, Script},
    Play,
};

/// Byte 0 of INIT, RESP and RESET-HINT.
const KINDS: [u8; 3] = [0x91, 0x92, 0x95];
/// The tail of a packet that a RESET-HINT shows.
const TAIL: usize = 8;

impl Play {
    /// Sends a datagram of the past again, as it was or with some bits flipped, from where it came or from elsewhere.
    pub(super) fn replay(&mut self, n: usize, back: usize, at: usize, flip: usize) {
        let Some(seen) = self.world.overheard.as_ref().and_then(|seen| seen.get(back)).cloned() else {
            return;
        };
        let mut bytes = seen.bytes.clone();
        if let Some(place) = bytes.get_mut(at) {
            *place ^= flip as u8;
        }
        let from = match n % 8 {
            0 | 4 => "192.0.2.77:7".parse().expect("an address"),
            1 => self.world.address(self.nets[n / 8 % self.nets.len()]),
            _ => seen.from,
        };
        let to = if n % 8 == 7 { self.world.address(self.nets[n / 8 % self.nets.len()]) } else { seen.to };
        self.world.replay(&seen, from, to, &bytes);
    }

    pub(super) fn inject(&mut self, n: usize, script: &mut Script<'_>) {
        let bytes = script.bytes(n % 128);
        let (from, to) = (self.world.address(self.nets[n % 3]), self.world.address(self.nets[(n + 1) % 3]));
        self.world.inject(from, to, &bytes);
    }

    /// Says that a token is unknown to whoever used it, with a tail of its own packet or of another.
    pub(super) fn hint(&mut self, n: usize, back: usize) {
        let seen = self.world.overheard.iter().flatten();
        let seen: Vec<_> =
            seen.filter(|seen| seen.bytes[0] & 0x80 == 0 && seen.bytes.len() > 5 + TAIL).collect();
        let Some(token) = seen.get(back % seen.len().max(1)) else { return };
        let tail = if n.is_multiple_of(4) { seen[n % seen.len()] } else { token };
        let mut bytes = vec![KINDS[2]];
        bytes.extend_from_slice(&token.bytes[1..5]);
        bytes.extend_from_slice(&tail.bytes[tail.bytes.len() - TAIL..]);
        let (from, to) = (token.to, token.from);
        self.world.inject(from, to, &bytes);
    }

    pub(super) fn cut(&mut self, n: usize) {
        let pair = (self.nets[n % 3], self.nets[(n % 3 + 1) % 3]);
        let cuts = if n >= 128 { &mut self.world.cut_one_way } else { &mut self.world.cut };
        let before = cuts.len();
        cuts.retain(|cut| *cut != pair);
        if cuts.len() == before {
            cuts.push(pair);
        }
    }

    /// From now on some of what one net sends is lost, late, or comes from elsewhere.
    pub(super) fn meddle(&mut self, n: usize, how: usize, time: usize) {
        let from = (!n.is_multiple_of(4)).then(|| self.nets[n % 4 % self.nets.len()]);
        let prey = match n / 4 % 8 {
            0 => Prey::Any,
            1 => Prey::Long,
            n @ 2..=4 => Prey::Kind(KINDS[n - 2]),
            _ => Prey::Short,
        };
        let what = match how % 3 {
            0 => Meddle::Drop,
            1 => Meddle::Delay(Duration::from_millis(50 * how as u64)),
            _ => Meddle::Divert(([10, 250, 0, (how / 3 % 4) as u8], 4000).into()),
        };
        let until = self.world.now + SECOND * time as u32;
        let every = 1 + (n / 32) as u32;
        self.world.meddlers.truncate(4);
        self.world.meddlers.push(Meddler { until, from, to: None, prey, every, what, seen: 0 });
    }

    /// A net gets another port or another address, and learns nothing of it.
    pub(super) fn change_address(&mut self, n: usize) {
        let net = self.nets[n / 2 % self.nets.len()];
        if n.is_multiple_of(2) { self.world.rebind(net) } else { self.world.relocate(net) }
    }

    /// A net gets no time for a while. Its clock goes on: what a peer remembers is said as a time, so that a request whose
    /// sender's clock stood still would seem too young to have run there (protocol, section 9).
    pub(super) fn suspend(&mut self, n: usize, time: usize) {
        let net = self.nets[n % self.nets.len()];
        self.world.suspend(net, false);
        self.run(SECOND * (time % 128) as u32);
        self.world.resume(net, n.is_multiple_of(8));
        self.listen(net);
    }

    /// A net's wall clock jumps by seconds, minutes, a day or years.
    pub(super) fn set_clock(&mut self, n: usize, ahead: usize) {
        let unit = [20, 4_000, 900_000, 1_000_000_000][n / 4 % 4];
        let net = self.nets[n % self.nets.len()];
        if self.world.is_awake(net) {
            self.world.set_clock(net, unit * (ahead as i64 - 128));
        }
    }

    /// A guest is told another address of its host first, then the right one.
    pub(super) fn tell_host_addresses(&mut self, n: usize, host: usize) {
        let (net, hosts) = (self.nets[1 + n % 2], self.hosts());
        let host = self.nets[hosts[host % hosts.len()]];
        let (id, right) = (m2m_sim::ledger::id_of(host), self.world.address(host));
        let wrong = ([192, 0, 2, 78], 7).into();
        if self.world.is_awake(net) {
            self.world.command(net, |machine, now| machine.set_host_addresses(now, id, &[wrong]));
            self.run(SECOND * (n / 2 % 32) as u32);
            self.world.command(net, |machine, now| machine.set_host_addresses(now, id, &[wrong, right]));
        }
    }

    /// The network is well again.
    pub(super) fn loosen(&mut self, n: usize) {
        self.world.faults = Faults::default();
        self.world.meddlers.clear();
        if n < 128 {
            self.world.cut.clear();
            self.world.cut_one_way.clear();
        }
    }
}
