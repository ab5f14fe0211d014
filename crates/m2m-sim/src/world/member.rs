//! One net of a world: its machine, where it lives, its store and its clocks.
use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
};

use m2m_proto::{
    event::{ClaimOutcome, ClaimRequest, Event, KeyToStore},
    id::Id,
    net::{Handed, Net},
    session::keys::NetKey,
    time::{Duration, Time},
};

use super::UNIX_START_MS;

/// So many datagrams a socket keeps for a process that gets no time; more are lost.
pub const SOCKET_BUFFER: usize = 128;

/// One net, where it lives, and what it has told so far.
pub struct Member {
    /// The machine; `None` while it is down.
    pub net: Option<Net>,
    /// The other machines of a net of several shards, from the second on.
    pub(super) others: Vec<Net>,
    /// What its shards have handed over to each other.
    pub(super) handed: VecDeque<(u8, Handed)>,
    /// One hand-over in so many is lost; 0: none.
    pub handover_loss: u64,
    pub(super) handovers: u64,
    /// Its socket's address, as others see it.
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
    /// The net key that it has since one was changed from afar, and outlives a restart with.
    pub kept_key: Option<NetKey>,
    /// Its store answers nothing about keys: the test does.
    pub slow_keys: bool,
    /// So long its store takes to answer.
    pub store_delay: Duration,
    /// So many milliseconds its wall clock is ahead of the right time.
    pub clock_error_ms: i64,
    /// The NAT that it is behind.
    pub nat: Option<Nat>,
    /// When its address changed last.
    pub moved: Time,
    /// How often it was started.
    pub lives: u32,
    /// When it was started last.
    pub born: Time,
    /// When it wants to be woken, by the world's time; other wake-ups of it are stale.
    pub(super) wake: Time,
    /// By so much its monotonic clock is behind the world's: for so long it stood still.
    pub(super) lag: Duration,
    pub(super) suspended: Option<Suspension>,
}

/// A process that gets no time.
pub(super) struct Suspension {
    pub(super) since: Time,
    /// Its monotonic clock stands still as well, as CLOCK_MONOTONIC does while a machine sleeps.
    pub(super) clock_stops: bool,
    /// What its socket holds for it.
    pub(super) buffer: VecDeque<Held>,
}

/// A datagram that waits in a socket.
pub(super) struct Held {
    pub(super) from: SocketAddr,
    pub(super) bytes: Vec<u8>,
    pub(super) genuine: Option<(u64, SocketAddr)>,
}

/// A NAT with one mapping a socket, which lets in only those whom the net has written to (RFC 4787: endpoint-independent
/// mapping, address and port-dependent filtering). It is refreshed by what leaves, and after a rest the port is another.
#[derive(Clone, Debug)]
pub struct Nat {
    /// It forgets whom the net has not written to for so long.
    pub forgets: Duration,
    written: BTreeMap<SocketAddr, Time>,
    last: Option<Time>,
}

impl Nat {
    /// One that forgets after this time.
    pub fn new(forgets: Duration) -> Nat {
        Nat { forgets, written: BTreeMap::new(), last: None }
    }

    /// The net writes to an address. True if its mapping was gone: it comes from another port now.
    pub(super) fn leaves(&mut self, now: Time, to: SocketAddr) -> bool {
        let gone = self.last.is_some_and(|last| now.since(last) > self.forgets);
        if gone {
            self.forget();
        }
        self.last = Some(now);
        self.written.insert(to, now);
        gone
    }

    /// True if what comes from there passes.
    pub(super) fn lets_in(&self, now: Time, from: SocketAddr) -> bool {
        self.written.get(&from).is_some_and(|last| now.since(*last) <= self.forgets)
    }

    pub(super) fn forget(&mut self) {
        self.written.clear();
        self.last = None;
    }
}

impl Member {
    pub(super) fn new(address: SocketAddr) -> Member {
        Member {
            net: None,
            others: Vec::new(),
            handed: VecDeque::new(),
            handover_loss: 0,
            handovers: 0,
            address,
            events: VecDeque::new(),
            claims: BTreeMap::new(),
            epoch: 0,
            disk_full: false,
            keys: Vec::new(),
            kept_key: None,
            slow_keys: false,
            store_delay: Duration::ZERO,
            clock_error_ms: 0,
            nat: None,
            moved: Time::ZERO,
            lives: 0,
            born: Time::ZERO,
            wake: Time::NEVER,
            lag: Duration::ZERO,
            suspended: None,
        }
    }

    /// The net's own monotonic time.
    pub(super) fn local(&self, now: Time) -> Time {
        Time::from_micros(now.as_micros().saturating_sub(self.lag.as_micros() as u64))
    }

    /// The net's own wall clock, in unix milliseconds.
    pub(super) fn unix_ms(&self, now: Time) -> u64 {
        (UNIX_START_MS + now.as_micros() / 1000).saturating_add_signed(self.clock_error_ms)
    }

    /// Asks the store.
    pub(super) fn claim(&mut self, request: &ClaimRequest, now: Time) -> ClaimOutcome {
        if self.disk_full {
            return ClaimOutcome::Failed;
        }
        let since = u32::try_from(self.unix_ms(now) / 1000).unwrap_or(u32::MAX);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nat_lets_in_whom_the_net_wrote_to_and_forgets_them() {
        let [a, b] = [1, 2].map(|n| SocketAddr::from(([10, 0, 0, n], 1)));
        let at = |seconds| Time::ZERO + Duration::from_secs(seconds);
        let mut nat = Nat::new(Duration::from_secs(30));
        assert!(!nat.leaves(at(0), a), "the first packet makes the mapping");
        assert!(nat.lets_in(at(30), a) && !nat.lets_in(at(30), b));
        assert!(!nat.leaves(at(30), b), "what leaves for anyone keeps the port");
        assert!(!nat.lets_in(at(31), a), "but not the door open for everyone");
        assert!(nat.leaves(at(61), a), "after a rest the port is another");
        assert!(!nat.lets_in(at(61), b));
    }
}
