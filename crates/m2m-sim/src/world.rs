//! Nets, the datagrams on their way, and the clock that all of them share.
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use m2m_proto::{
    config::Config,
    event::{ClaimOutcome, ClaimRequest, Event, KeyToStore, Output},
    id::Id,
    net::{HostConfig, Net},
    session::keys::{DeviceKey, NetKey, PeerKey},
    time::{Duration, Time},
};
use rand_chacha::{
    ChaCha12Rng,
    rand_core::{Rng, SeedableRng},
};

use crate::watch::Watch;

/// A net of the world, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetIndex(pub usize);

/// What links do to datagrams. Chances are in 1/1000.
#[derive(Clone, Copy, Debug)]
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

/// One net, where it lives, and what it has told so far.
pub struct Member {
    /// The machine; `None` while it is down.
    pub net: Option<Net>,
    /// Its socket's address.
    pub address: SocketAddr,
    /// What it told and nobody has looked at yet.
    pub events: VecDeque<(Time, Event)>,
    /// The claims that its store holds: id, device key, since when.
    pub claims: BTreeMap<Id, ([u8; 32], u32)>,
    /// The last epoch that it saved.
    pub epoch: u64,
    /// Its store fails.
    pub disk_full: bool,
    /// The net keys that it was sent from afar and kept.
    pub keys: Vec<KeyToStore>,
    /// Its store answers nothing about keys: the test does.
    pub slow_keys: bool,
    /// How often it was started.
    pub lives: u32,
    /// When it wants to be woken; other wake-ups of it are stale.
    wake: Time,
}

/// A datagram that a net sent, as anyone on the path sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its number among all that were sent.
    pub serial: u64,
    /// Who sent it.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
    /// What it holds.
    pub bytes: Vec<u8>,
}

struct Flying {
    to: SocketAddr,
    from: SocketAddr,
    bytes: Vec<u8>,
    /// The number of the datagram that it is an unchanged copy of, on its way to where it was sent.
    genuine: Option<(u64, SocketAddr)>,
}

/// So many datagrams an eavesdropper remembers.
const OVERHEARD: usize = 64;
/// More at once than this, without time passing, is no answer to anything.
const MAX_OUTPUTS: usize = 100_000;

/// The nets and the network between them.
pub struct World {
    /// The time that all nets are told.
    pub now: Time,
    /// What the links do.
    pub faults: Faults,
    /// Randomness of the world, not of the nets.
    pub rng: ChaCha12Rng,
    members: Vec<Member>,
    by_address: BTreeMap<SocketAddr, NetIndex>,
    flying: BTreeMap<(Time, u64), Flying>,
    timers: BinaryHeap<Reverse<(Time, NetIndex)>>,
    sent: u64,
    /// Cut links: nothing passes between these, either way.
    pub cut: Vec<(NetIndex, NetIndex)>,
    /// What every datagram and every wake-up is checked against.
    pub watch: Watch,
    /// The last datagrams that left, if an eavesdropper is there.
    pub overheard: Option<VecDeque<Seen>>,
    /// A copy of each datagram that left, if anyone wants to look at them.
    pub tap: Option<Vec<(SocketAddr, SocketAddr, Vec<u8>)>>,
}

/// Unix time at the world's beginning.
pub const UNIX_START_MS: u64 = 1_800_000_000_000;

impl World {
    /// An empty world.
    pub fn new(seed: u64) -> World {
        World {
            now: Time::from_micros(1_000_000),
            faults: Faults::default(),
            rng: ChaCha12Rng::seed_from_u64(seed),
            members: Vec::new(),
            by_address: BTreeMap::new(),
            flying: BTreeMap::new(),
            timers: BinaryHeap::new(),
            sent: 0,
            cut: Vec::new(),
            watch: Watch::default(),
            overheard: None,
            tap: None,
        }
    }

    /// The id that [`World::add`] gives to a small number.
    pub fn id(n: u8) -> Id {
        let mut id = Id::ANY;
        id.0[15] = n;
        id
    }

    /// The net key that goes with [`World::id`].
    pub fn key(n: u8) -> NetKey {
        NetKey::new(&[n ^ 0xA5; 16]).expect("16 bytes are enough")
    }

    /// The configuration of the net with that number, with a device key of its own.
    pub fn config(n: u8) -> Config {
        Config::new(World::id(n), World::key(n), DeviceKey::from_bytes([n.wrapping_mul(37) ^ 0x5C; 32]))
    }

    /// Adds a net, on an address of its own.
    pub fn add(&mut self, config: Config) -> NetIndex {
        let index = NetIndex(self.members.len());
        let host = u8::try_from(index.0 + 1).expect("a world holds at most 254 nets");
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, host, 1)), 9527);
        self.members.push(Member {
            net: None,
            address,
            events: VecDeque::new(),
            claims: BTreeMap::new(),
            epoch: 0,
            disk_full: false,
            keys: Vec::new(),
            slow_keys: false,
            lives: 0,
            wake: Time::NEVER,
        });
        self.by_address.insert(address, index);
        self.start(index, config);
        index
    }

    /// A host: keeps a registry and relays.
    pub fn add_host(&mut self, n: u8) -> NetIndex {
        let mut config = World::config(n);
        config.registry = true;
        config.relay = true;
        self.add(config)
    }

    /// A net with that host.
    pub fn add_guest(&mut self, n: u8, host: NetIndex, host_number: u8) -> NetIndex {
        let guest = self.add(World::config(n));
        self.join(guest, host, host_number);
        guest
    }

    /// Gives a net its host.
    pub fn join(&mut self, guest: NetIndex, host: NetIndex, host_number: u8) {
        let address = self.address(host);
        let config = HostConfig {
            id: World::id(host_number),
            key: PeerKey::Net(World::key(host_number)),
            addresses: vec![address],
        };
        let now = self.now;
        self.net(guest).add_host(now, config).expect("a new net has room for a host");
        self.pump(guest);
    }

    /// Starts a net's machine, anew if it ran: its memory is gone, its address and its disk are not.
    pub fn start(&mut self, index: NetIndex, mut config: Config) {
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        config.last_epoch = self.members[index.0].epoch;
        let mut net = Net::new(config, seed, self.now);
        net.set_unix_time(self.now, UNIX_START_MS + self.now.as_micros() / 1000);
        self.members[index.0].net = Some(net);
        self.members[index.0].lives += 1;
        self.watch.forget(index);
        self.pump(index);
    }

    /// Takes a net down without a word (kill -9).
    pub fn kill(&mut self, index: NetIndex) {
        self.members[index.0].net = None;
    }

    /// The net sends from another address from now on, of which it learns nothing. What goes to the old one reaches it
    /// too if `keeps_old`, else nobody.
    pub fn move_net(&mut self, index: NetIndex, address: SocketAddr, keeps_old: bool) {
        let old = core::mem::replace(&mut self.members[index.0].address, address);
        if !keeps_old {
            self.by_address.remove(&old);
        }
        self.by_address.insert(address, index);
    }

    /// Where a net lives.
    pub fn address(&self, index: NetIndex) -> SocketAddr {
        self.members[index.0].address
    }

    /// A net and all that the world keeps of it.
    pub fn member(&mut self, index: NetIndex) -> &mut Member {
        &mut self.members[index.0]
    }

    /// A net's machine, which must be running. Call [`World::pump`] after a command.
    pub fn net(&mut self, index: NetIndex) -> &mut Net {
        self.members[index.0].net.as_mut().expect("the net is running")
    }

    /// Gives a command and carries out what comes of it.
    pub fn command<T>(&mut self, index: NetIndex, command: impl FnOnce(&mut Net, Time) -> T) -> T {
        let now = self.now;
        let result = command(self.net(index), now);
        self.pump(index);
        result
    }

    /// Carries out what a net wants done, and says how much that was.
    pub fn pump(&mut self, index: NetIndex) -> usize {
        for done in 0..MAX_OUTPUTS {
            let now = self.now;
            let member = &mut self.members[index.0];
            let Some(net) = member.net.as_mut() else { return done };
            match net.poll_output(now) {
                Output::Datagram { to, bytes } => {
                    let from = member.address;
                    self.launch(index, from, to, &bytes);
                    self.net(index).recycle(bytes);
                }
                Output::Event(event) => member.events.push_back((now, event)),
                Output::Claim(request) => {
                    let outcome = member.claim(&request, now);
                    self.net(index).claim_checked(now, request.session, outcome);
                }
                Output::SaveEpoch(epoch) => member.epoch = epoch,
                Output::StoreKey(key) => {
                    let (session, ok, answers) = (key.session, !member.disk_full, !member.slow_keys);
                    member.keys.push(key);
                    if answers {
                        self.net(index).key_stored(now, session, ok);
                    }
                }
                Output::Handover { shard, .. } => panic!("the world has no shard {shard}"),
                Output::Timeout(until) => {
                    if until != member.wake {
                        member.wake = until;
                        self.timers.push(Reverse((until, index)));
                    }
                    return done;
                }
            }
        }
        panic!("net {} has more than {MAX_OUTPUTS} things to do at once", index.0);
    }

    fn chance(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.rng.next_u32() % 1000 < per_mille
    }

    fn launch(&mut self, index: NetIndex, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        self.sent += 1;
        let serial = self.sent;
        self.watch.sent(self.now, index, to, bytes);
        if let Some(tap) = &mut self.tap {
            tap.push((from, to, bytes.to_vec()));
        }
        if let Some(overheard) = &mut self.overheard {
            overheard.truncate(OVERHEARD - 1);
            overheard.push_front(Seen { serial, from, to, bytes: bytes.to_vec() });
        }
        let target = self.by_address.get(&to).copied();
        let is_cut = target.is_some_and(|target| {
            self.cut.iter().any(|(a, b)| (*a, *b) == (index, target) || (*b, *a) == (index, target))
        });
        if is_cut || self.chance(self.faults.loss) {
            return;
        }
        self.fly(from, to, bytes, Some((serial, from)));
        if self.chance(self.faults.duplicate) {
            self.fly(from, to, bytes, Some((serial, from)));
        }
    }

    /// Puts a datagram on the wire that an eavesdropper made of one that it saw.
    pub fn replay(&mut self, seen: &Seen, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let is_unchanged = to == seen.to && bytes == seen.bytes;
        self.fly(from, to, bytes, is_unchanged.then_some((seen.serial, seen.from)));
    }

    /// Puts a datagram on the wire, whoever made it.
    pub fn inject(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        self.fly(from, to, bytes, None);
    }

    fn fly(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        bytes: &[u8],
        mut genuine: Option<(u64, SocketAddr)>,
    ) {
        let jitter = u64::try_from(self.faults.jitter.as_micros()).unwrap_or(u64::MAX).max(1);
        let arrival = self.now + self.faults.delay + Duration::from_micros(self.rng.next_u64() % jitter);
        let mut bytes = bytes.to_vec();
        if self.chance(self.faults.corrupt) && !bytes.is_empty() {
            let at = self.rng.next_u32() as usize % bytes.len();
            bytes[at] ^= 1 << (self.rng.next_u32() % 8);
            genuine = None;
        }
        self.sent += 1;
        self.flying.insert((arrival, self.sent), Flying { to, from, bytes, genuine });
    }

    /// Lets the next thing happen, if that is not after `until`, and says to whom; none if nothing does.
    pub fn step(&mut self, until: Time) -> Option<NetIndex> {
        let arrival = self.flying.first_key_value().map_or(Time::NEVER, |((at, _), _)| *at);
        let timer = self.timers.peek().map_or(Time::NEVER, |Reverse((at, _))| *at);
        if arrival.min(timer) > until {
            self.now = self.now.max(until);
            return None;
        }
        self.now = self.now.max(arrival.min(timer));
        let now = self.now;
        let index = if arrival <= timer {
            let (_, mut flying) = self.flying.pop_first()?;
            let Some(index) = self.by_address.get(&flying.to).copied() else {
                return Some(NetIndex(usize::MAX));
            };
            if let Some(net) = self.members[index.0].net.as_mut() {
                self.watch.received(now, index, flying.from, &flying.bytes, flying.genuine);
                net.handle_datagram(now, flying.from, &mut flying.bytes);
            }
            self.pump(index);
            index
        } else {
            let Reverse((at, index)) = self.timers.pop()?;
            let member = &mut self.members[index.0];
            if member.wake != at {
                return Some(index);
            }
            member.wake = Time::NEVER;
            if let Some(net) = self.members[index.0].net.as_mut() {
                net.handle_timeout(now);
            }
            let done = self.pump(index);
            self.watch.woken(now, index, done);
            index
        };
        Some(index)
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until).is_some() {}
    }

    /// Lets time pass until a net tells what is waited for; panics with all that it told if it does not in time.
    pub fn wait_for<T>(
        &mut self,
        index: NetIndex,
        limit: Duration,
        mut wanted: impl FnMut(&Event) -> Option<T>,
    ) -> T {
        let until = self.now + limit;
        let mut seen = 0;
        loop {
            let events = &mut self.members[index.0].events;
            while seen < events.len() {
                if let Some(found) = wanted(&events[seen].1) {
                    events.remove(seen);
                    return found;
                }
                seen += 1;
            }
            let told: Vec<_> = events.iter().collect();
            assert!(self.now < until, "net {} did not tell it within {limit:?}; it told {told:?}", index.0);
            self.step(until);
        }
    }
}

impl Member {
    fn claim(&mut self, request: &ClaimRequest, now: Time) -> ClaimOutcome {
        if self.disk_full {
            return ClaimOutcome::Failed;
        }
        let since = u32::try_from((UNIX_START_MS + now.as_micros() / 1000) / 1000).unwrap_or(u32::MAX);
        match (self.claims.get(&request.id), request.public) {
            (None, None) => ClaimOutcome::Held,
            (None, Some(_)) if !request.may_be_new => ClaimOutcome::NotNow,
            (None, Some(public)) => {
                self.claims.insert(request.id, (public, since));
                ClaimOutcome::New
            }
            (Some((known, _)), Some(public)) if *known == public => ClaimOutcome::Held,
            (Some((_, since)), _) => ClaimOutcome::Taken { since: *since },
        }
    }
}
