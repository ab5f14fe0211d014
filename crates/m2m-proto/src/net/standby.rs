//! Several hosts (protocol, section 6.1): the first named is preferred. The next is taken when the one in use is silent
//! or refuses; the better ones are tried again beside it, and taken back when they stand.
//!
//! ```text
//!  in use ──silent, refused──> Down ──back-off──> tried beside the one in use ──registered──> in use
//!    └── a better one stands ──> lingering: still registered, its sessions are asked over ──> closed
//! ```
use alloc::vec::Vec;

use super::{
    Net, Path,
    control::Ask,
    host::Phase,
    session::{Session, State},
};
use crate::{
    error::ConnectError,
    event::{Event, Output, SessionId},
    time::{Duration, Time},
};

/// How long a host is kept beside a better one at least: peers come back to that one within as long as they wait
/// between two attempts.
const LINGER: Duration = Duration::from_secs(60);
/// Sessions that lie in a host which is kept are asked over to the better one so often.
const LINGER_TICK: Duration = Duration::from_secs(10);

impl Net {
    pub(super) fn next_host_timeout(&self) -> Time {
        let Some(active) = self.hosts.get(self.active_host) else { return Time::NEVER };
        let lookup = active.lookups.iter().map(|(_, _, deadline)| *deadline).min().unwrap_or(Time::NEVER);
        let tried = self.hosts.iter().take(self.active_host + 1);
        let retries = tried.filter(|host| !host.addresses.is_empty() && host.session().is_none());
        let retry = retries.map(|host| host.retry_at).min().unwrap_or(Time::NEVER);
        let linger = self.hosts.iter().filter_map(|host| host.lingers_until.map(|_| host.retry_at)).min();
        let doubt = (0..self.hosts.len()).filter_map(|place| self.doubt_due(place)).min();
        retry.min(lookup).min(linger.unwrap_or(Time::NEVER)).min(doubt.unwrap_or(Time::NEVER))
    }

    pub(super) fn run_hosts(&mut self, now: Time) {
        let Some(active) = self.hosts.get_mut(self.active_host) else { return };
        while let Some(at) = active.lookups.iter().position(|(_, _, deadline)| *deadline <= now) {
            if let Some((_, request, _)) = active.lookups.remove(at) {
                self.outputs.push_back(Output::Event(Event::Found { request, status: None }));
            }
        }
        self.doubt_hosts(now);
        for place in 0..self.hosts.len() {
            let Some(host) = self.hosts.get(place).filter(|host| host.retry_at <= now) else { continue };
            if host.lingers_until.is_some() {
                self.linger(now, place);
            } else if host.session().is_none() && place <= self.active_host {
                self.open_host_session(now, place);
            }
        }
    }

    fn open_host_session(&mut self, now: Time, place: usize) {
        let Some(address) = self.host_address(place, 0) else { return };
        let Some(host) = self.hosts.get(place) else { return };
        let (id, key) = (host.wanted, host.key.clone());
        let started = self.start_handshake(now, id, &key, Path::Direct(address), Some(place));
        let Some(host) = self.hosts.get_mut(place) else { return };
        let Ok(session) = started else {
            host.retry_at = now + host.backoff;
            return;
        };
        host.phase = Phase::Connecting(session);
        self.limit_patience(session);
    }

    /// Where there is another host to go to, none is waited for as long as a peer is.
    pub(super) fn limit_patience(&mut self, id: SessionId) {
        if self.hosts.len() < 2 {
            return;
        }
        let patience = self.config.timers.host_patience;
        if let Some(State::Connecting(connecting)) = self.table.get_mut(id).map(|session| &mut session.state)
        {
            connecting.deadline = connecting.deadline.min(connecting.first_sent + patience);
        }
        self.arm(id);
    }

    /// A host registered this net: it is used from now on if it is better than the one in use, or that is away. False
    /// if it is of no use.
    pub(super) fn take_host(&mut self, now: Time, place: usize) -> bool {
        let before = self.active_host;
        let stands = self.hosts.get(before).is_some_and(|host| host.registered_session().is_some());
        if place > before && stands {
            return false;
        }
        if place != before {
            self.hand_over(before, place);
            self.active_host = place;
        }
        if stands
            && place != before
            && let Some(host) = self.hosts.get_mut(before)
        {
            (host.lingers_until, host.retry_at) = (Some(now + LINGER), now + LINGER_TICK);
        }
        // Those in use until now, and those that were tried together with this one.
        for other in (0..self.hosts.len()).filter(|other| *other > place) {
            if self.hosts.get(other).is_some_and(|host| host.lingers_until.is_none()) {
                self.retire_host(now, other);
            }
        }
        self.follow_host(now, place);
        true
    }

    /// Ends the session with a host that is not needed.
    pub(super) fn retire_host(&mut self, now: Time, place: usize) {
        let Some(host) = self.hosts.get_mut(place) else { return };
        let session = host.session();
        (host.phase, host.lingers_until, host.retry_at) = (Phase::Down, None, now);
        host.forget_told();
        let Some(id) = session else { return };
        if let Some(session) = self.table.get_mut(id) {
            session.host = None;
        }
        self.close_quietly(now, id);
    }

    /// The host in use is away or refuses: another takes its place, the one that can be tried first, and of those the
    /// best.
    pub(super) fn leave_host(&mut self, now: Time, from: usize) {
        let hosts = self.hosts.iter().enumerate().filter(|(_, host)| !host.addresses.is_empty());
        let next = hosts.min_by_key(|(_, host)| match host.registered_session() {
            Some(_) => Time::ZERO,
            None => host.retry_at.max(now),
        });
        let to = next.map_or(from, |(place, _)| place);
        if to != from {
            self.hand_over(from, to);
            self.active_host = to;
            if let Some(host) = self.hosts.get_mut(to).filter(|host| host.registered_session().is_some()) {
                // It was about to be left.
                host.lingers_until = None;
                let event = Event::HostConnected { host: host.id, public: host.public };
                self.event(event);
                self.follow_host(now, to);
                self.wake_waiting(now, to);
                self.ask_waiting_lookups(now);
            }
        }
        let refuse = self.hosts.iter().all(|host| host.phase == Phase::Refused);
        let waiting = match self.hosts.get_mut(self.active_host) {
            Some(host) if refuse => core::mem::take(&mut host.waiting),
            _ => return,
        };
        for session in waiting {
            self.fail(now, session, ConnectError::HostRefused);
        }
    }

    /// What waited for one host waits for another.
    fn hand_over(&mut self, from: usize, to: usize) {
        let Some(host) = self.hosts.get_mut(from) else { return };
        let (waiting, lookups) = (core::mem::take(&mut host.waiting), core::mem::take(&mut host.lookups));
        let Some(host) = self.hosts.get_mut(to) else { return };
        host.lookups.extend(lookups);
        host.waiting.extend(&waiting);
        let id = host.id;
        for session in waiting {
            if let Some(state) = self.table.get_mut(session) {
                state.path = Path::Through(id);
            }
        }
    }

    /// Sessions that lie in hosts which are away go on through this one.
    fn follow_host(&mut self, now: Time, place: usize) {
        let Some(to) = self.hosts.get(place).map(|host| host.id) else { return };
        for id in self.table.all().collect::<Vec<SessionId>>() {
            let Some(session) = self.table.get(id) else { continue };
            let Path::Through(neighbour) = session.path else { continue };
            let is_mine = self.hosts.iter().any(|host| host.id == neighbour);
            if neighbour == to || !is_mine || self.can_send(&session.path) {
                continue;
            }
            match session.state {
                State::Up => self.leave_through(now, id, Path::Through(to)),
                State::Connecting(_) => self.restart_through(now, id, Path::Through(to)),
                _ => {}
            }
        }
    }

    fn restart_through(&mut self, now: Time, id: SessionId, path: Path) {
        let Some(session) = self.table.get_mut(id) else { return };
        session.path = path;
        if let State::Connecting(connecting) = &mut session.state {
            connecting.next = now;
            connecting.found = None;
        }
        self.send_init(now, id);
    }

    /// A host that a better one has replaced: its sessions are asked over, and when none is left it goes.
    fn linger(&mut self, now: Time, place: usize) {
        let active = self.hosts.get(self.active_host).map(|host| host.id);
        let Some(host) = self.hosts.get_mut(place) else { return };
        host.retry_at = now + LINGER_TICK;
        let (old, is_over) = (host.id, host.lingers_until.is_some_and(|until| until <= now));
        let lie_in_it: Vec<SessionId> = self
            .table
            .all()
            .filter(|id| self.table.get(*id).is_some_and(|session| session.path == Path::Through(old)))
            .collect();
        if is_over && lie_in_it.is_empty() {
            return self.retire_host(now, place);
        }
        for id in lie_in_it {
            if let Some(to) = active {
                self.propose(now, id, Path::Through(to));
            }
        }
    }

    /// A packet left that wants an answer: if it went through a host, or in the session with one, that is expected to
    /// be heard before long.
    pub(super) fn expect_answer(&mut self, now: Time, id: SessionId) {
        let Some(session) = self.table.get(id).filter(|session| session.waits_for_answer()) else { return };
        let place = match session.path {
            _ if session.host.is_some() => session.host_place(),
            Path::Through(neighbour) => self.hosts.iter().position(|host| host.id == neighbour),
            Path::Direct(_) => None,
        };
        if let Some(host) = place.and_then(|place| self.hosts.get_mut(place)) {
            host.expected.get_or_insert(now);
        }
    }

    /// When a host that is expected to be heard is asked whether it is there: an RTO after it should have been.
    fn doubt_due(&self, place: usize) -> Option<Time> {
        let host = self.hosts.get(place)?;
        let session = self.table.get(host.session()?)?;
        Some(host.expected? + session.line.rto(&self.line_config))
    }

    fn doubt_hosts(&mut self, now: Time) {
        for place in 0..self.hosts.len() {
            if self.doubt_due(place).is_none_or(|due| due > now) {
                continue;
            }
            let Some(host) = self.hosts.get_mut(place) else { continue };
            let (since, id) = (host.expected.take(), host.session());
            let Some((id, session)) = id.and_then(|id| Some((id, self.table.get_mut(id)?))) else { continue };
            let is_silent = session.is_up() && since.is_some_and(|since| session.last_heard < since);
            if is_silent && !session.control.pinging() {
                let next_s = super::timers::next_s(session);
                session.control.ask(Ask::Ping { user: None, next_s }, now);
                self.touch(id);
            }
        }
    }
}

impl Session {
    fn waits_for_answer(&self) -> bool {
        match self.state {
            State::Connecting(_) => true,
            State::Up => self.line.in_flight() > 0 || self.control.queues.asks.iter().any(|ask| ask.sent > 0),
            _ => false,
        }
    }
}
