//! What holds for every datagram and every wake-up, whatever the nets are doing.
//!
//! - No datagram is larger than 1200 bytes (protocol, section 3).
//! - No more goes to an address than came from it, until something authentic did (section 12), unless a session was opened
//!   to it: then this net's user named the address. What is authentic but was sent from elsewhere may be answered with
//!   three times as much (section 10.2).
//! - A machine that is woken has something to do, and is not woken all the time.
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
};

use m2m_proto::{net::MAX_DATAGRAM, time::Time};

use crate::{NetIndex, trace::Trace};

/// Byte 0 of INIT.
const INIT: u8 = 0x91;
/// Byte 0 of a long packet has this bit.
const LONG: u8 = 0x80;
/// Byte 0 of RESP.
const RESP: u8 = 0x92;
/// So many times the size of an authentic packet from a new address may go there, beside as much as came.
const ROAMING_CREDIT: usize = 2;
/// So often in a row, at one instant, a machine may be woken for nothing.
const MAX_IDLE_WAKES: u32 = 20;
/// So often in one second a machine may be woken: a scenario has no work for more.
const MAX_WAKES_A_SECOND: u32 = 2_000;

/// So many datagrams a net may send at one instant: a scenario gives no cause for more.
const MAX_BURST: u32 = 1_000;

/// The checks, and what they found.
#[derive(Debug)]
pub struct Watch {
    /// What must not be, in the order in which it was seen.
    pub violations: Vec<String>,
    /// The record of the run.
    pub trace: Trace,
    /// Datagrams that nets sent.
    pub datagrams: u64,
    accounts: BTreeMap<(NetIndex, SocketAddr), Account>,
    delivered: BTreeSet<u64>,
    wakes: BTreeMap<NetIndex, Wakes>,
    /// Who sent last, when, and how many at that instant.
    burst: (NetIndex, Time, u32),
    /// Where the attacker passes packets on.
    relays: BTreeSet<SocketAddr>,
}

/// What went between a net and an address.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    received: usize,
    sent: usize,
    is_trusted: bool,
    /// It was sent a RESP: what confirms a handshake may come from there (section 10.2).
    was_answered: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Wakes {
    instant: Time,
    idle: u32,
    second: u64,
    in_second: u32,
}

impl Default for Watch {
    fn default() -> Watch {
        Watch {
            violations: Vec::new(),
            trace: Trace::default(),
            datagrams: 0,
            accounts: BTreeMap::new(),
            delivered: BTreeSet::new(),
            wakes: BTreeMap::new(),
            burst: (NetIndex(0), Time::ZERO, 0),
            relays: BTreeSet::new(),
        }
    }
}

impl Watch {
    /// The attacker passes whole packets on from this address: what goes there is its own, and may prove the address.
    pub fn is_relay(&mut self, address: SocketAddr) {
        self.relays.insert(address);
    }

    /// A net started anew: it knows no address any more.
    pub fn forget(&mut self, index: NetIndex) {
        self.accounts.retain(|(net, _), _| *net != index);
    }

    /// A net sends a datagram.
    pub fn sent(&mut self, now: Time, index: NetIndex, to: SocketAddr, bytes: &[u8]) {
        self.datagrams += 1;
        self.trace.mix_number(now.as_micros());
        self.trace.mix(bytes);
        self.trace.line(now, format_args!("{} -> {to}: {}", index.0, Sketch(bytes)));
        if bytes.len() > MAX_DATAGRAM {
            self.violation(now, format!("net {} sends a datagram of {} bytes", index.0, bytes.len()));
        }
        self.burst = match self.burst {
            (net, at, count) if (net, at) == (index, now) => (net, at, count + 1),
            _ => (index, now, 1),
        };
        if self.burst.2 == MAX_BURST {
            self.violation(now, format!("net {} sends {MAX_BURST} datagrams at one instant", index.0));
        }
        let account = self.accounts.entry((index, to)).or_default();
        account.sent += bytes.len();
        account.is_trusted |= bytes.first() == Some(&INIT);
        account.was_answered |= bytes.first() == Some(&RESP);
        if !account.is_trusted && account.sent > account.received && !self.relays.contains(&to) {
            let Account { sent, received, .. } = *account;
            self.violation(
                now,
                format!(
                    "net {} sent {sent} bytes to {to}, from where {received} came, none of them authentic",
                    index.0
                ),
            );
        }
    }

    /// A net gets a datagram; `genuine` is the number of the one that it is an unchanged copy of, and where that was sent.
    pub fn received(
        &mut self,
        now: Time,
        index: NetIndex,
        from: SocketAddr,
        bytes: &[u8],
        genuine: Option<(u64, SocketAddr)>,
    ) {
        self.trace.line(
            now,
            format_args!(
                "{} <- {from}: {}{}",
                index.0,
                Sketch(bytes),
                if genuine.is_none() { ", forged" } else { "" }
            ),
        );
        let account = self.accounts.entry((index, from)).or_default();
        account.received += bytes.len();
        let proves = bytes.first().is_some_and(|byte| byte & LONG == 0 || *byte == RESP);
        // The first copy to arrive is the authentic one, wherever it came from; later ones are replays. Who made it has
        // had the keys from here, so its own address is proven.
        if let Some((serial, sender)) = genuine
            && self.delivered.insert(serial)
            && proves
        {
            // From elsewhere it proves nothing of that place: it may be asked, with three times as much (section 10.2).
            account.is_trusted |= account.was_answered;
            account.received += if from == sender { 0 } else { ROAMING_CREDIT * bytes.len() };
            self.accounts.entry((index, sender)).or_default().is_trusted = true;
        }
    }

    /// A net was woken by its timer, and had so many things to do.
    pub fn woken(&mut self, now: Time, index: NetIndex, done: usize) {
        self.trace.line(now, format_args!("{} wakes, {done} things to do", index.0));
        let wakes = self.wakes.entry(index).or_default();
        let second = now.as_micros() / 1_000_000;
        if wakes.second != second {
            (wakes.second, wakes.in_second) = (second, 0);
        }
        wakes.in_second += 1;
        if wakes.instant != now || done > 0 {
            (wakes.instant, wakes.idle) = (now, 0);
        }
        wakes.idle += u32::from(done == 0);
        let Wakes { idle, in_second, .. } = *wakes;
        if idle > MAX_IDLE_WAKES {
            self.violation(
                now,
                format!("net {} was woken {idle} times for nothing, at one instant", index.0),
            );
        }
        if in_second > MAX_WAKES_A_SECOND {
            self.violation(now, format!("net {} was woken {in_second} times within a second", index.0));
        }
    }

    /// Notes what must not be.
    pub fn violation(&mut self, now: Time, words: String) {
        self.trace.line(now, format_args!("VIOLATION {words}"));
        self.violations.push(words);
    }
}

/// A datagram in a few words, made only if they are read.
struct Sketch<'a>(&'a [u8]);

impl fmt::Display for Sketch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0;
        let kind = match bytes.first() {
            None => return f.write_str("nothing"),
            Some(&INIT) => "INIT",
            Some(&RESP) => "RESP",
            Some(0x93) => "COOKIE",
            Some(0x95) => "RESET-HINT",
            Some(byte) if byte & LONG == 0 => "short",
            Some(_) => "other",
        };
        let token = bytes.get(1..5).filter(|_| matches!(kind, "short" | "RESET-HINT"));
        f.write_str(kind)?;
        if let Some([a, b, c, d]) = token {
            write!(f, " {a:02x}{b:02x}{c:02x}{d:02x}")?;
        }
        write!(f, ", {} bytes", bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NET: NetIndex = NetIndex(0);

    fn address(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 1))
    }

    #[test]
    fn nobody_is_sent_more_than_came_from_there() {
        let mut watch = Watch::default();
        watch.received(Time::ZERO, NET, address(1), &[INIT; 104], Some((1, address(1))));
        watch.sent(Time::ZERO, NET, address(1), &[RESP; 104]);
        assert_eq!(watch.violations, [""; 0]);
        watch.sent(Time::ZERO, NET, address(1), &[RESP; 1]);
        assert_eq!(watch.violations.len(), 1);
    }

    #[test]
    fn the_first_copy_of_a_short_packet_proves_an_address_and_a_replay_does_not() {
        let mut watch = Watch::default();
        watch.received(Time::ZERO, NET, address(1), &[0x41; 30], Some((1, address(1))));
        watch.received(Time::ZERO, NET, address(2), &[0x41; 30], Some((1, address(1))));
        watch.received(Time::ZERO, NET, address(3), &[0x41; 30], None);
        for n in 1..=3 {
            watch.sent(Time::ZERO, NET, address(n), &[0x41; 100]);
            assert_eq!(watch.violations.len(), usize::from(n) - 1);
        }
        watch.forget(NET);
        watch.sent(Time::ZERO, NET, address(1), &[0x41; 100]);
        assert_eq!(watch.violations.len(), 3);
    }

    #[test]
    fn an_authentic_packet_from_elsewhere_earns_three_times_its_size_there() {
        let mut watch = Watch::default();
        watch.received(Time::ZERO, NET, address(2), &[0x41; 30], Some((1, address(1))));
        watch.sent(Time::ZERO, NET, address(2), &[0x41; 90]);
        watch.sent(Time::ZERO, NET, address(1), &[0x41; 1000]);
        assert_eq!(watch.violations, [""; 0]);
        watch.sent(Time::ZERO, NET, address(2), &[0x41; 1]);
        assert_eq!(watch.violations.len(), 1);
    }

    #[test]
    fn whoever_opens_a_session_may_ask_first() {
        let mut watch = Watch::default();
        (0..5).for_each(|_| watch.sent(Time::ZERO, NET, address(1), &[INIT; 104]));
        watch.sent(Time::ZERO, NET, address(1), &[0x41; 1000]);
        assert_eq!(watch.violations, [""; 0]);
        watch.sent(Time::ZERO, NET, address(1), &[INIT; 1201]);
        assert_eq!(watch.violations.len(), 1, "whatever it is, it must fit");
    }

    #[test]
    fn a_busy_loop_is_seen() {
        let mut watch = Watch::default();
        for n in 0..100 {
            watch.woken(Time::from_micros(n), NET, 0);
            watch.woken(Time::from_micros(n), NET, 1);
        }
        assert_eq!(watch.violations, [""; 0]);
        (0..=MAX_IDLE_WAKES).for_each(|_| watch.woken(Time::from_micros(500), NET, 0));
        assert_eq!(watch.violations.len(), 1);
        (0..MAX_BURST).for_each(|_| watch.sent(Time::ZERO, NET, address(1), &[INIT; 104]));
        assert_eq!(watch.violations.len(), 2, "{:?}", watch.violations);
        (0..=MAX_WAKES_A_SECOND)
            .for_each(|n| watch.woken(Time::from_micros(u64::from(n) + 2_000_000), NET, 1));
        assert_eq!(watch.violations.len(), 3);
    }
}
