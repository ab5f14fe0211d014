//! What happens to a datagram between two sockets: faults, cuts, NATs, and the rules of an attacker on the path.
use std::net::{IpAddr, SocketAddr};

use m2m_proto::time::{Duration, Time};

use super::{Coming, Flying, NetIndex, Seen, World};

/// What links do to datagrams. Chances are in 1/1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faults {
    /// A datagram vanishes.
    pub loss: u32,
    /// It comes twice.
    pub duplicate: u32,
    /// One of its bits flips.
    pub corrupt: u32,
    /// The shortest way takes this long.
    pub delay: Duration,
    /// And up to so much more, which also reorders.
    pub jitter: Duration,
}

impl Default for Faults {
    fn default() -> Faults {
        Faults { loss: 0, duplicate: 0, corrupt: 0, delay: Duration::from_millis(5), jitter: Duration::ZERO }
    }
}

/// What an attacker on the path does to the datagrams that it chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meddle {
    /// They vanish.
    Drop,
    /// They come so much later.
    Delay(Duration),
    /// They come, but from this address.
    Divert(SocketAddr),
}

/// Which datagrams an attacker chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prey {
    /// Each.
    Any,
    /// Those with a long header: handshakes and hints.
    Long,
    /// Those with a short one.
    Short,
    /// Those with this byte 0.
    Kind(u8),
}

/// A rule of an attacker on the path.
#[derive(Clone, Copy, Debug)]
pub struct Meddler {
    /// It works so long.
    pub until: Time,
    /// Only what this net sends.
    pub from: Option<NetIndex>,
    /// Only what goes to this one.
    pub to: Option<NetIndex>,
    /// Only these.
    pub prey: Prey,
    /// Each n-th of them; 1 is each.
    pub every: u32,
    /// What becomes of them.
    pub what: Meddle,
    /// How many it has seen.
    pub seen: u32,
}

impl Meddler {
    fn wants(&mut self, now: Time, from: NetIndex, to: Option<NetIndex>, bytes: &[u8]) -> bool {
        let first = bytes.first().copied().unwrap_or(0);
        let fits = match self.prey {
            Prey::Any => true,
            Prey::Long => first & 0x80 != 0,
            Prey::Short => first & 0x80 == 0,
            Prey::Kind(kind) => first == kind,
        };
        let concerns = self.from.is_none_or(|net| net == from) && self.to.is_none_or(|net| Some(net) == to);
        if now > self.until || !fits || !concerns {
            return false;
        }
        self.seen += 1;
        self.seen.is_multiple_of(self.every.max(1))
    }
}

/// The randomness of one datagram: what happens to it depends on its place among those of its pair only, so that
/// scenarios can be shortened without changing what happens elsewhere.
pub(super) struct LinkDice(u64);

impl LinkDice {
    pub(super) fn new(seed: u64, pair: (usize, usize), count: u64) -> LinkDice {
        let pair = ((pair.0 as u64) << 32) ^ pair.1 as u64;
        let mut dice = LinkDice(seed ^ pair.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        dice.0 ^= count.wrapping_mul(0xA076_1D64_78BD_642F);
        dice.next();
        dice
    }

    /// splitmix64
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn chance(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.next() % 1000 < u64::from(per_mille)
    }
}

/// The number in the addresses of one net, old and new.
fn owner(address: SocketAddr) -> Option<[u8; 3]> {
    match address.ip() {
        IpAddr::V4(ip) => Some([ip.octets()[0], ip.octets()[1], ip.octets()[2]]),
        IpAddr::V6(_) => None,
    }
}

impl World {
    /// A datagram leaves its net's socket.
    pub(super) fn launch(&mut self, index: NetIndex, to: SocketAddr, bytes: &[u8]) {
        self.pass_nat(index, to);
        let from = self.members[index.0].address;
        self.sent += 1;
        let serial = self.sent;
        self.watch.sent(self.now, index, to, bytes);
        if let Some(tap) = &mut self.tap {
            tap.push((from, to, bytes.to_vec()));
        }
        self.overhear(serial, from, to, bytes);
        let target = self.by_address.get(&to).copied();
        if target.is_some_and(|target| self.is_cut(index, target)) {
            return self.count("datagrams cut off");
        }
        let mut dice = self.link_dice(index.0, target.map_or(usize::MAX, |target| target.0));
        if dice.chance(self.faults.loss) {
            return self.count("datagrams lost");
        }
        let genuine = Some((serial, from));
        match self.meddled(index, target, bytes) {
            Some(Meddle::Drop) => return self.count("datagrams dropped by the attacker"),
            Some(Meddle::Delay(more)) => {
                self.count("datagrams delayed by the attacker");
                self.fly(&mut dice, (from, to), bytes, genuine, more);
            }
            Some(Meddle::Divert(stranger)) => {
                self.count("datagrams diverted by the attacker");
                self.watch.is_relay(stranger);
                self.fly(&mut dice, (stranger, to), bytes, genuine, Duration::ZERO);
            }
            None => self.fly(&mut dice, (from, to), bytes, genuine, Duration::ZERO),
        }
        if dice.chance(self.faults.duplicate) {
            self.count("datagrams doubled");
            self.fly(&mut dice, (from, to), bytes, genuine, Duration::ZERO);
        }
    }

    fn pass_nat(&mut self, index: NetIndex, to: SocketAddr) {
        let now = self.now;
        let Some(nat) = &mut self.members[index.0].nat else { return };
        if nat.leaves(now, to) {
            self.rebind(index);
            // The rebinding forgot this very packet.
            if let Some(nat) = &mut self.members[index.0].nat {
                nat.leaves(now, to);
            }
        }
    }

    fn overhear(&mut self, serial: u64, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let Some(overheard) = &mut self.overheard else { return };
        let mut copy = Vec::new();
        while overheard.len() >= super::OVERHEARD {
            copy = overheard.pop_back().map(|seen| seen.bytes).unwrap_or_default();
        }
        copy.clear();
        copy.extend_from_slice(bytes);
        overheard.push_front(Seen { serial, from, to, bytes: copy });
    }

    fn is_cut(&self, from: NetIndex, to: NetIndex) -> bool {
        self.cut.iter().any(|(a, b)| (*a, *b) == (from, to) || (*b, *a) == (from, to))
            || self.cut_one_way.contains(&(from, to))
    }

    fn meddled(&mut self, from: NetIndex, to: Option<NetIndex>, bytes: &[u8]) -> Option<Meddle> {
        let now = self.now;
        let wants = |meddler: &mut Meddler| meddler.wants(now, from, to, bytes).then_some(meddler.what);
        self.meddlers.iter_mut().find_map(wants)
    }

    /// Fate of the next datagram between these two.
    fn link_dice(&mut self, from: usize, to: usize) -> LinkDice {
        let count = self.link_counts.entry((from, to)).or_default();
        *count += 1;
        LinkDice::new(self.seed, (from, to), *count)
    }

    /// Puts a datagram on the wire that an eavesdropper made of one that it saw.
    pub fn replay(&mut self, seen: &Seen, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        // Whoever it was for knows it, wherever it lives by now.
        let is_unchanged = owner(to) == owner(seen.to) && bytes == seen.bytes;
        let mut dice = self.link_dice(usize::MAX, usize::MAX);
        let genuine = is_unchanged.then_some((seen.serial, seen.from));
        self.fly(&mut dice, (from, to), bytes, genuine, Duration::ZERO);
    }

    /// Puts a datagram on the wire, whoever made it.
    pub fn inject(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let mut dice = self.link_dice(usize::MAX, usize::MAX);
        self.fly(&mut dice, (from, to), bytes, None, Duration::ZERO);
    }

    fn fly(
        &mut self,
        dice: &mut LinkDice,
        (from, to): (SocketAddr, SocketAddr),
        bytes: &[u8],
        mut genuine: Option<(u64, SocketAddr)>,
        more: Duration,
    ) {
        let jitter = u64::try_from(self.faults.jitter.as_micros()).unwrap_or(u64::MAX).max(1);
        let through = self.bottleneck.as_mut().map(|link| link.pass(self.now, to, bytes.len()));
        let Some(through) = through.unwrap_or(Some(Duration::ZERO)) else { return };
        let delay = self.faults.delay + more + Duration::from_micros(dice.next() % jitter);
        let arrival = self.now + through + delay;
        let mut copy = self.spare.pop().unwrap_or_default();
        copy.clear();
        copy.extend_from_slice(bytes);
        if dice.chance(self.faults.corrupt) && !copy.is_empty() {
            self.count("datagrams corrupted");
            let at = dice.next() as usize % copy.len();
            copy[at] ^= 1 << (dice.next() % 8);
            genuine = None;
        }
        self.sent += 1;
        let flying = Flying { to, from, bytes: copy, genuine };
        self.coming.insert((arrival, self.sent), Coming::Datagram(flying));
    }
}
