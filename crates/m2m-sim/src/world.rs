//! Nets, the datagrams on their way, and the clock that all of them share.
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use m2m_proto::{
    config::{Config, PreviousKey},
    event::{ClaimRequest, Event, Output},
    id::Id,
    net::{HostConfig, Net},
    session::keys::{DeviceKey, NetKey, PeerKey},
    time::{Duration, Time},
};
use rand_chacha::{ChaCha12Rng, rand_core::SeedableRng};

use crate::{bottleneck::Bottleneck, watch::Watch};

mod link;
mod member;
mod shards;

pub use link::{Faults, Meddle, Meddler, Prey};
pub use member::{Member, Nat, SOCKET_BUFFER};

use member::{Held, Suspension};

/// A net of the world, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetIndex(pub usize);

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

/// What is on its way to a net.
enum Coming {
    Datagram(Flying),
    /// The answer of a store that takes its time.
    Stored {
        net: NetIndex,
        shard: u8,
        life: u32,
        request: ClaimRequest,
    },
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
    /// The narrowest link, if any is narrow.
    pub bottleneck: Option<Bottleneck>,
    /// Randomness of the world, not of the nets.
    pub rng: ChaCha12Rng,
    members: Vec<Member>,
    by_address: BTreeMap<SocketAddr, NetIndex>,
    coming: BTreeMap<(Time, u64), Coming>,
    timers: BinaryHeap<Reverse<(Time, NetIndex)>>,
    sent: u64,
    seed: u64,
    link_counts: BTreeMap<(usize, usize), u64>,
    /// Buffers for the next datagrams.
    spare: Vec<Vec<u8>>,
    /// Cut links: nothing passes between these, either way.
    pub cut: Vec<(NetIndex, NetIndex)>,
    /// Links that are cut in one direction: nothing passes from the first to the second.
    pub cut_one_way: Vec<(NetIndex, NetIndex)>,
    /// What an attacker on the path does to datagrams; the first rule that wants one has it.
    pub meddlers: Vec<Meddler>,
    /// How often what happened.
    pub tally: BTreeMap<&'static str, u64>,
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
            bottleneck: None,
            rng: ChaCha12Rng::seed_from_u64(seed),
            members: Vec::new(),
            by_address: BTreeMap::new(),
            coming: BTreeMap::new(),
            timers: BinaryHeap::new(),
            sent: 0,
            seed,
            link_counts: BTreeMap::new(),
            spare: Vec::new(),
            cut: Vec::new(),
            cut_one_way: Vec::new(),
            meddlers: Vec::new(),
            tally: BTreeMap::new(),
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
        self.members.push(Member::new(address));
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
        let now = self.now;
        let member = &mut self.members[index.0];
        member.lives += 1;
        member.born = now;
        member.lag = Duration::ZERO;
        member.suspended = None;
        config.last_epoch = member.epoch;
        if let Some(key) = &member.kept_key {
            let before = core::mem::replace(&mut config.key, key.clone());
            config.previous_key = Some(PreviousKey { key: before, grace: config.timers.key_grace });
        }
        // A net's randomness depends on nothing that the others do.
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.seed.to_le_bytes());
        seed[8..16].copy_from_slice(&(index.0 as u64).to_le_bytes());
        seed[16..20].copy_from_slice(&member.lives.to_le_bytes());
        let mut net = Net::new(config, seed, self.now);
        net.set_unix_time(self.now, member.unix_ms(self.now));
        member.net = Some(net);
        member.others.clear();
        member.handed.clear();
        self.watch.forget(index);
        self.pump(index);
    }

    /// Takes a net down without a word (kill -9).
    pub fn kill(&mut self, index: NetIndex) {
        let member = &mut self.members[index.0];
        member.net = None;
        member.others.clear();
        member.handed.clear();
        member.suspended = None;
    }

    /// Counts one more of these.
    pub fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    /// A net's own monotonic time, which deadlines are in.
    pub fn local_now(&self, index: NetIndex) -> Time {
        self.members[index.0].local(self.now)
    }

    /// The net gets another port, of which it learns nothing; what goes to the old one is lost.
    pub fn rebind(&mut self, index: NetIndex) {
        let mut address = self.members[index.0].address;
        // Ports come again after a while, as they do.
        address.set_port(9527 + (address.port() - 9526) % 1000);
        self.change_address(index, address);
    }

    /// The net gets another address, of which it learns nothing.
    pub fn relocate(&mut self, index: NetIndex) {
        let mut address = self.members[index.0].address;
        if let IpAddr::V4(ip) = address.ip() {
            let [a, b, net, host] = ip.octets();
            address.set_ip(IpAddr::V4(Ipv4Addr::new(a, b, net, host % 250 + 1)));
        }
        self.change_address(index, address);
    }

    fn change_address(&mut self, index: NetIndex, address: SocketAddr) {
        let now = self.now;
        let member = &mut self.members[index.0];
        member.moved = now;
        let old = core::mem::replace(&mut member.address, address);
        if let Some(nat) = &mut member.nat {
            nat.forget();
        }
        self.by_address.remove(&old);
        self.by_address.insert(address, index);
    }

    /// Takes a net's time away: its socket keeps a few datagrams for it. With `clock_stops` its monotonic clock stands
    /// still until [`World::resume`], as where it does not count while the machine sleeps.
    pub fn suspend(&mut self, index: NetIndex, clock_stops: bool) {
        let since = self.now;
        let member = &mut self.members[index.0];
        if member.net.is_some() && member.suspended.is_none() {
            member.suspended = Some(Suspension { since, clock_stops, buffer: VecDeque::new() });
        }
    }

    /// True if a net has a machine that gets time.
    pub fn is_awake(&self, index: NetIndex) -> bool {
        let member = &self.members[index.0];
        member.net.is_some() && member.suspended.is_none()
    }

    /// Gives a suspended net time again: everything that is overdue happens at once, the datagrams first or last.
    pub fn resume(&mut self, index: NetIndex, datagrams_first: bool) {
        let now = self.now;
        let member = &mut self.members[index.0];
        let Some(Suspension { since, clock_stops, buffer }) = member.suspended.take() else { return };
        if clock_stops {
            member.lag += now.since(since);
        }
        let local = member.local(now);
        if !datagrams_first && member.net.is_some() {
            member.machines().for_each(|net| net.handle_timeout(local));
            self.pump(index);
        }
        for Held { from, bytes, genuine } in buffer {
            self.arrive(index, from, bytes, genuine);
        }
        self.members[index.0].machines().for_each(|net| net.handle_timeout(local));
        self.pump(index);
    }

    /// Sets a net's wall clock: so many milliseconds ahead of the right time.
    pub fn set_clock(&mut self, index: NetIndex, error_ms: i64) {
        let now = self.now;
        let member = &mut self.members[index.0];
        member.clock_error_ms = error_ms;
        let (local, unix_ms) = (member.local(now), member.unix_ms(now));
        member.machines().for_each(|net| net.set_unix_time(local, unix_ms));
        self.pump(index);
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
        let now = self.local_now(index);
        let result = command(self.net(index), now);
        self.pump(index);
        result
    }

    /// Carries out what a net wants done, and says how much that was.
    pub fn pump(&mut self, index: NetIndex) -> usize {
        let mut done = 0;
        loop {
            let mut until = Time::NEVER;
            for shard in 0..self.members[index.0].shards() {
                let Some(next) = self.pump_shard(index, shard, &mut done) else { return done };
                until = until.min(next);
            }
            if self.hand_over(index) {
                continue;
            }
            let member = &mut self.members[index.0];
            let until = until + member.lag;
            if until != member.wake && member.net.is_some() {
                member.wake = until;
                self.timers.push(Reverse((until, index)));
            }
            return done;
        }
    }

    /// The same for one of its machines; says when it wants to be woken, if it gets time at all.
    fn pump_shard(&mut self, index: NetIndex, shard: u8, done: &mut usize) -> Option<Time> {
        while *done < MAX_OUTPUTS {
            let now = self.now;
            let member = &mut self.members[index.0];
            let local = member.local(now);
            if member.suspended.is_some() {
                return None;
            }
            match member.machine(shard)?.poll_output(local) {
                Output::Datagram { to, bytes } => {
                    self.launch(index, to, &bytes);
                    self.members[index.0].machine(shard)?.recycle(bytes);
                }
                Output::Event(event) => member.events.push_back((now, event)),
                Output::Claim(request) => self.ask_store(index, shard, request),
                Output::SaveEpoch(epoch) if !member.disk_full => member.epoch = epoch,
                Output::SaveEpoch(_) => {}
                Output::StoreKey(key) => {
                    let (session, ok, answers) = (key.session, !member.disk_full, !member.slow_keys);
                    if ok && answers {
                        member.kept_key = NetKey::new(&key.bytes).ok();
                    }
                    member.keys.push(key);
                    if answers {
                        member.machine(shard)?.key_stored(local, session, ok);
                    }
                }
                Output::Handover { shard: to, handed } => member.handed.push_back((to, handed)),
                Output::Timeout(until) => return Some(until),
            }
            *done += 1;
        }
        panic!("net {} has more than {MAX_OUTPUTS} things to do at once", index.0);
    }

    fn ask_store(&mut self, net: NetIndex, shard: u8, request: ClaimRequest) {
        let now = self.now;
        let member = &mut self.members[net.0];
        if member.store_delay == Duration::ZERO {
            let (outcome, local) = (member.claim(&request, now), member.local(now));
            let machine = member.machine(shard).expect("it has just asked");
            return machine.claim_checked(local, request.session, outcome);
        }
        let (at, life) = (now + member.store_delay, member.lives);
        self.sent += 1;
        self.coming.insert((at, self.sent), Coming::Stored { net, shard, life, request });
        self.count("late answers of a store");
    }

    /// A store is done; whoever asked may be gone.
    fn stored(&mut self, net: NetIndex, shard: u8, life: u32, request: &ClaimRequest) {
        let now = self.now;
        let member = &mut self.members[net.0];
        let (outcome, local) = (member.claim(request, now), member.local(now));
        if member.lives == life
            && let Some(machine) = member.machine(shard)
        {
            machine.claim_checked(local, request.session, outcome);
            self.pump(net);
        }
    }

    /// Lets the next thing happen, if that is not after `until`, and says to whom; none if nothing does.
    pub fn step(&mut self, until: Time) -> Option<NetIndex> {
        let arrival = self.coming.first_key_value().map_or(Time::NEVER, |((at, _), _)| *at);
        let timer = self.timers.peek().map_or(Time::NEVER, |Reverse((at, _))| *at);
        if arrival.min(timer) > until {
            self.now = self.now.max(until);
            return None;
        }
        self.now = self.now.max(arrival.min(timer));
        if arrival > timer {
            let Reverse((at, index)) = self.timers.pop()?;
            self.wake(at, index);
            return Some(index);
        }
        let (_, coming) = self.coming.pop_first()?;
        let flying = match coming {
            Coming::Datagram(flying) => flying,
            Coming::Stored { net, shard, life, request } => {
                self.stored(net, shard, life, &request);
                return Some(net);
            }
        };
        let Some(index) = self.by_address.get(&flying.to).copied() else {
            return Some(NetIndex(usize::MAX));
        };
        let nat = self.members[index.0].nat.as_ref();
        if nat.is_some_and(|nat| !nat.lets_in(self.now, flying.from)) {
            self.count("datagrams kept out by a NAT");
            return Some(NetIndex(usize::MAX));
        }
        self.arrive(index, flying.from, flying.bytes, flying.genuine);
        Some(index)
    }

    /// A datagram is at a net's socket.
    fn arrive(
        &mut self,
        index: NetIndex,
        from: SocketAddr,
        mut bytes: Vec<u8>,
        genuine: Option<(u64, SocketAddr)>,
    ) {
        let now = self.now;
        let member = &mut self.members[index.0];
        if let Some(suspension) = &mut member.suspended {
            if suspension.buffer.len() < SOCKET_BUFFER {
                suspension.buffer.push_back(Held { from, bytes, genuine });
            }
            return;
        }
        let local = member.local(now);
        let socket = member.socket_of(from);
        if let Some(net) = member.machine(socket) {
            self.watch.received(now, index, from, &bytes, genuine);
            net.handle_datagram(local, from, &mut bytes);
        }
        self.spare.push(bytes);
        self.pump(index);
    }

    /// A net's timer fires, if it is not one that was moved since.
    fn wake(&mut self, at: Time, index: NetIndex) {
        let now = self.now;
        let member = &mut self.members[index.0];
        if member.wake != at {
            return;
        }
        member.wake = Time::NEVER;
        let local = member.local(now);
        if member.net.is_none() || member.suspended.is_some() {
            return;
        }
        member.machines().for_each(|net| net.handle_timeout(local));
        let done = self.pump(index);
        self.watch.woken(now, index, done);
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
