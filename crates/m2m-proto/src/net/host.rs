//! The net's own host: a session kept to it, registered through it, opened anew when it is lost.
//!
//! ```text
//!  Down ──retry──> Connecting ──RESP──> Registering ──REGISTERED ok──> Registered
//!   ^                  │ no answer           │ refused: Refused, again after the longest wait
//!   └──────────────────┴─────────────────────┴──── session lost ───────────┘
//! ```
//! With several hosts configured `standby` chooses.
use alloc::{collections::VecDeque, vec::Vec};
use core::net::SocketAddr;

use super::{
    Net, Path,
    control::{Ask, LookupFor},
    session::State,
};
use crate::{
    error::{CloseReason, CommandError, ConnectError, ControlError},
    event::{Event, HostLoss, Output, RequestId, SessionId},
    id::Id,
    session::{keys::PeerKey, pn::Pn},
    time::{Duration, Time},
    wire::frame::{CloseCode, Epoch, FoundStatus, RegisterStatus, Req},
};

/// Lease that a net asks for; the host grants at most its own `max_router_tm`.
const LEASE: u32 = 600;
/// Lease of an ephemeral registration (protocol, section 8).
const EPHEMERAL_LEASE: u32 = 120;
/// Hosts that one net may be given.
pub const MAX_HOSTS: usize = 8;
/// STALE, AHEAD and then one more that came meanwhile: what a host whose clock was set back says at most.
const MAX_CORRECTIONS: u8 = 3;
/// Questions that wait for the host to be back.
const MAX_WAITING: usize = 256;

/// A host as the caller names it.
pub struct HostConfig {
    /// Its id; all-zero for "whichever net is at the address".
    pub id: Id,
    /// The host's net key, or a pair key for this net and the host.
    pub key: PeerKey,
    /// Where it may be; may be empty until its name is resolved (`Net::set_host_addresses`).
    pub addresses: Vec<SocketAddr>,
}

pub(super) struct Host {
    /// Whom handshakes are for: as the caller named it.
    pub(super) wanted: Id,
    /// Who it is, or was last.
    pub(super) id: Id,
    pub(super) key: PeerKey,
    pub(super) addresses: Vec<SocketAddr>,
    next_address: usize,
    pub(super) phase: Phase,
    pub(super) retry_at: Time,
    pub(super) backoff: Duration,
    /// Connected was told and Disconnected was not, since.
    up_told: bool,
    /// Its session was opened anew, and the registration with it.
    opened_anew: bool,
    pub(super) public: Option<SocketAddr>,
    /// Granted at the last registration.
    pub(super) lease: Option<Duration>,
    /// The host has heard us at this instant or later: when that left to which an answer came last.
    renewed: Time,
    /// Corrections of the epoch that this session was told and followed.
    corrections: u8,
    /// Handshakes that wait for the registration.
    pub(super) waiting: VecDeque<SessionId>,
    pub(super) lookups: VecDeque<(Id, RequestId, Time)>,
    /// Something left at this instant that should have it heard from again.
    pub(super) expected: Option<Time>,
    /// The refusal that was told last, so that one that lasts is told once.
    refusal: Option<RegisterStatus>,
    /// A better one is used again; this one is kept until then at least, and while sessions lie in it.
    pub(super) lingers_until: Option<Time>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Down,
    Connecting(SessionId),
    Registering(SessionId),
    Registered(SessionId),
    Refused,
}

/// What REGISTERED says.
#[derive(Clone, Copy)]
pub(super) struct Answer {
    pub(super) status: RegisterStatus,
    pub(super) epoch: Epoch,
    pub(super) lease_s: u32,
    pub(super) since: u32,
}

impl Host {
    pub(super) fn registered_session(&self) -> Option<SessionId> {
        match self.phase {
            Phase::Registered(session) => Some(session),
            _ => None,
        }
    }

    /// The next registration is news again.
    pub(super) fn forget_told(&mut self) {
        self.up_told = false;
        self.public = None;
    }

    /// Questions that no host will answer any more.
    pub(super) fn waiting_lookups(self) -> impl Iterator<Item = RequestId> {
        self.lookups.into_iter().map(|(_, request, _)| request)
    }

    pub(super) fn session(&self) -> Option<SessionId> {
        match self.phase {
            Phase::Connecting(session) | Phase::Registering(session) | Phase::Registered(session) => {
                Some(session)
            }
            Phase::Down | Phase::Refused => None,
        }
    }
}

impl Net {
    /// Names a host to register with; the first one named is preferred. Up to [`MAX_HOSTS`].
    pub fn add_host(&mut self, now: Time, host: HostConfig) -> Result<(), CommandError> {
        if host.id == self.config.id {
            return Err(CommandError::OwnId);
        }
        if self.hosts.len() >= MAX_HOSTS {
            return Err(CommandError::TableFull);
        }
        self.hosts.push(Host {
            wanted: host.id,
            id: host.id,
            key: host.key,
            addresses: host.addresses,
            next_address: 0,
            phase: Phase::Down,
            retry_at: now,
            backoff: self.config.timers.host_retry_min,
            up_told: false,
            opened_anew: false,
            public: None,
            lease: None,
            renewed: now,
            corrections: 0,
            waiting: VecDeque::new(),
            lookups: VecDeque::new(),
            expected: None,
            refusal: None,
            lingers_until: None,
        });
        for session in self.hosts.iter().filter_map(Host::session).collect::<Vec<_>>() {
            self.limit_patience(session);
        }
        self.run_hosts(now);
        Ok(())
    }

    /// Where the host's name leads to now. A host that is being waited for is tried at once if this is news.
    pub fn set_host_addresses(&mut self, now: Time, host: Id, addresses: &[SocketAddr]) {
        let Some(host) = self.hosts.iter_mut().find(|known| known.id == host) else { return };
        if host.addresses == addresses || addresses.is_empty() {
            return;
        }
        host.addresses = Vec::from(addresses);
        host.next_address = 0;
        if host.phase == Phase::Down {
            host.retry_at = now;
            self.run_hosts(now);
        }
    }

    /// True for a net that registers without a claim to its id.
    pub fn is_ephemeral(&self) -> bool {
        self.config.ephemeral
    }

    /// The host that this net is registered with and found through, if there is one now.
    pub fn registered_with(&self) -> Option<Id> {
        self.hosts
            .get(self.active_host)
            .filter(|host| host.registered_session().is_some())
            .map(|host| host.id)
    }

    /// True while this net is registered with a host.
    pub fn is_registered(&self) -> bool {
        self.registered_with().is_some()
    }

    /// Asks the host whether a net is online; the answer is [`Event::Found`]. Waits for the host if it is away, until `deadline`.
    pub fn lookup(
        &mut self,
        now: Time,
        id: Id,
        request: RequestId,
        deadline: Time,
    ) -> Result<(), CommandError> {
        let host = self.hosts.get_mut(self.active_host).ok_or(CommandError::NoHost)?;
        if host.lookups.len() >= MAX_WAITING {
            return Err(CommandError::QueueFull);
        }
        host.lookups.push_back((id, request, deadline));
        self.ask_waiting_lookups(now);
        Ok(())
    }

    /// The path to a net that is known by its id only.
    pub(super) fn path_by_id(&self, peer: Id) -> Result<Path, CommandError> {
        if let Some(host) = self.hosts.iter().find(|host| host.id == peer) {
            let address = host.addresses.get(host.next_address % host.addresses.len().max(1));
            return address.map(|address| Path::Direct(*address)).ok_or(CommandError::NoHost);
        }
        if let Some(path) =
            self.registry.get(&peer).and_then(|there| Some(self.table.get(there.session)?.path))
        {
            return Ok(path);
        }
        let host = self.hosts.get(self.active_host).ok_or(CommandError::NoHost)?;
        Ok(Path::Through(host.id))
    }

    /// One of a host's addresses, the one in use first.
    pub(super) fn host_address(&self, place: usize, step: usize) -> Option<SocketAddr> {
        let host = self.hosts.get(place)?;
        host.addresses.get(host.next_address.wrapping_add(step) % host.addresses.len().max(1)).copied()
    }

    /// RESP of a host came from this address: the one of its addresses to go on with.
    pub(super) fn host_answered_from(&mut self, id: SessionId, place: usize, path: Path) {
        let Some(host) = self.hosts.get_mut(place) else { return };
        let at = host.addresses.iter().position(|address| Path::Direct(*address) == path);
        if let (Some(at), Some(session)) = (at, self.table.get_mut(id)) {
            host.next_address = at;
            session.path = path;
        }
    }

    /// Whether this host is the one that ids are found through.
    fn is_active(&self, place: usize) -> bool {
        self.active_host == place
    }

    pub(super) fn host_session_up(&mut self, now: Time, place: usize, session: SessionId, unix: u32) {
        let epoch = Epoch(self.last_epoch.saturating_add(1).max(u64::from(unix) * 1000));
        let Some(host) = self.hosts.get_mut(place) else { return };
        host.opened_anew = host.phase == Phase::Registered(session);
        host.phase = Phase::Registering(session);
        host.corrections = 0;
        if let Some(state) = self.table.get(session) {
            host.id = state.peer;
        }
        self.register(now, session, epoch);
    }

    fn register(&mut self, now: Time, session: SessionId, epoch: Epoch) {
        self.last_epoch = epoch.0;
        self.outputs.push_back(Output::SaveEpoch(epoch.0));
        let ephemeral = self.config.ephemeral;
        let lease_s = if ephemeral { EPHEMERAL_LEASE } else { LEASE };
        if let Some(state) = self.table.get_mut(session) {
            state.control.ask(Ask::Register { epoch, ephemeral, lease_s }, now);
        }
        self.touch(session);
    }

    pub(super) fn on_registered(&mut self, now: Time, id: SessionId, req: Req, answer: Answer) {
        let Some(session) = self.table.get_mut(id) else { return };
        let Some(asked) = session.control.answered(req, |ask| matches!(ask, Ask::Register { .. })) else {
            return;
        };
        if let Some(rtt) = asked.round_trip(now) {
            session.line.add_round_trip(now, rtt);
        }
        if let Some(secure) = session.secure.as_mut() {
            secure.answered(Pn(asked.first_pn));
        }
        let Some(place) = session.host_place() else { return };
        let Some(host) = self.hosts.get_mut(place) else { return };
        match answer.status {
            RegisterStatus::OK => {
                if let Some(session) = self.table.get_mut(id) {
                    session.take_proof();
                }
                self.registered(now, place, id, answer.lease_s, asked.first_sent);
            }
            RegisterStatus::STALE if host.corrections < MAX_CORRECTIONS => {
                host.corrections += 1;
                self.register(now, id, Epoch(answer.epoch.0.saturating_add(1)));
            }
            RegisterStatus::AHEAD if host.corrections < MAX_CORRECTIONS => {
                // Our idea of the epoch came from a clock that ran ahead: the host's is the one that counts.
                host.corrections += 1;
                self.register(now, id, answer.epoch);
            }
            status => self.refused(now, place, id, status, answer.since),
        }
    }

    /// The host answered a ping that left at `asked`. If it may have heard nothing for a whole lease before, the
    /// registration has lapsed, which nobody told us: it is made again, in the same session and with the same epoch.
    pub(super) fn host_answered(&mut self, now: Time, id: SessionId, asked: Time) {
        let place = self.table.get(id).and_then(|session| session.host_place());
        let Some(host) = place.and_then(|place| self.hosts.get_mut(place)) else { return };
        let before = core::mem::replace(&mut host.renewed, asked);
        if host.phase == Phase::Registered(id) && host.lease.is_some_and(|lease| now.since(before) >= lease) {
            self.register(now, id, Epoch(self.last_epoch));
        }
    }

    fn registered(&mut self, now: Time, place: usize, id: SessionId, lease_s: u32, asked: Time) {
        let Some(host) = self.hosts.get_mut(place) else { return };
        let lease = Duration::from_secs(u64::from(lease_s.max(1)));
        host.phase = Phase::Registered(id);
        host.lease = Some(lease);
        host.renewed = asked;
        host.backoff = self.config.timers.host_retry_min;
        host.refusal = None;
        let opened_anew = core::mem::take(&mut host.opened_anew);
        let lingers = host.lingers_until.is_some();
        let (told, host_id, public) = (core::mem::replace(&mut host.up_told, true), host.id, host.public);
        let cap = self.ping_cap(id);
        if let Some(session) = self.table.get_mut(id) {
            session.cap_ping_interval(cap);
        }
        if lingers {
            return self.arm(id);
        }
        if !self.take_host(now, place) {
            // One that came back too late to be of use.
            return self.retire_host(now, place);
        }
        if !told {
            self.event(Event::HostConnected { host: host_id, public });
        } else if opened_anew {
            self.event(Event::HostRecovered { host: host_id, public });
        }
        self.wake_waiting(now, place);
        self.wake_attempts(now);
        self.ask_waiting_lookups(now);
        self.arm(id);
    }

    fn refused(&mut self, now: Time, place: usize, id: SessionId, status: RegisterStatus, since: u32) {
        let retry = self.config.timers.host_retry_max.mul_f32(self.spread());
        let is_active = self.is_active(place);
        let Some(host) = self.hosts.get_mut(place) else { return };
        host.phase = Phase::Refused;
        host.up_told = false;
        host.retry_at = now + retry;
        host.lingers_until = None;
        let (host_id, is_news) = (host.id, host.refusal.replace(status) != Some(status));
        if let Some(session) = self.table.get_mut(id) {
            // The session was the registration's: it goes, and nobody is told twice.
            session.host = None;
        }
        if is_active || is_news {
            self.event(Event::HostRefused { host: host_id, status, since });
        }
        self.close_quietly(now, id);
        if is_active {
            self.leave_host(now, place);
        }
    }

    /// Closes a session of the machine's own, of which no user knows.
    pub(super) fn close_quietly(&mut self, now: Time, id: SessionId) {
        let Some(path) = self.table.get(id).map(|session| session.path) else { return };
        let frame = crate::wire::frame::Frame::Close { code: CloseCode::DONE, text: "" };
        self.send_frame(now, id, path, &frame);
        let asks = self.table.get_mut(id).map(|session| session.control.take_asks());
        for ask in asks.unwrap_or_default() {
            self.ask_failed(ask.what, ControlError::SessionLost(CloseReason::Lost));
        }
        self.forget(now, id);
    }

    /// The handshake with a host failed.
    pub(super) fn host_failed(&mut self, now: Time, place: usize, why: ConnectError) {
        self.host_down(now, place, HostLoss::Connect(why));
    }

    /// The session with a host ended.
    pub(super) fn host_lost(&mut self, now: Time, place: usize, why: CloseReason) {
        self.host_down(now, place, HostLoss::Session(why));
    }

    fn host_down(&mut self, now: Time, place: usize, why: HostLoss) {
        let spread = self.spread();
        let is_active = self.is_active(place);
        let Some(host) = self.hosts.get_mut(place) else { return };
        let was_registered = core::mem::replace(&mut host.up_told, false);
        host.phase = Phase::Down;
        host.public = None;
        host.lingers_until = None;
        host.next_address = host.next_address.wrapping_add(1);
        // A session that stood and is gone is tried again at once; one that never stood waits longer each time.
        let wait = match (why, was_registered) {
            // Another net has our id and our device key: two that come back at once would drive each other out for ever.
            (HostLoss::Session(CloseReason::Peer(code)), _) if CloseCode(code) == CloseCode::REPLACED => {
                self.config.timers.host_retry_max
            }
            (HostLoss::Session(_), true) => Duration::from_millis(100),
            _ => host.backoff,
        };
        host.retry_at = now + wait.mul_f32(spread);
        host.backoff = (host.backoff * 2).min(self.config.timers.host_retry_max);
        let host_id = host.id;
        if !is_active {
            // Tried, or kept, beside the one that is used: nobody waits for it.
            return;
        }
        // Told of the first failure too, so that a user learns why nothing happens.
        self.event(Event::HostDisconnected { host: host_id, why });
        self.leave_host(now, place);
    }

    /// Between 0.8 and 1.2, so that the nets of one host do not come back all at once.
    pub(super) fn spread(&mut self) -> f32 {
        use rand_chacha::rand_core::Rng;
        0.8 + (self.rng.next_u32() % 400) as f32 / 1000.0
    }

    /// True if this host said no, and has not been asked again yet.
    pub(super) fn has_refused(&self, host: Id) -> bool {
        self.hosts.iter().any(|known| known.id == host && known.phase == Phase::Refused)
    }

    /// Notes that a handshake waits until its host is back.
    pub(super) fn wait_for_host(&mut self, host: Id, session: SessionId) {
        let table = &self.table;
        let Some(host) = self.hosts.iter_mut().find(|known| known.id == host) else { return };
        if host.waiting.contains(&session) {
            return;
        }
        if host.waiting.len() >= MAX_WAITING {
            host.waiting.retain(|waiting| table.get(*waiting).is_some());
        }
        if host.waiting.len() < MAX_WAITING {
            host.waiting.push_back(session);
        }
    }

    pub(super) fn wake_waiting(&mut self, now: Time, place: usize) {
        let Some(host) = self.hosts.get_mut(place) else { return };
        let (neighbour, waiting) = (host.id, core::mem::take(&mut host.waiting));
        for id in waiting {
            if let Some(session) = self.table.get_mut(id)
                && let State::Connecting(connecting) = &mut session.state
            {
                // The host's id may be news: it was named by its address, or another one is there now.
                session.path = Path::Through(neighbour);
                connecting.next = now;
                self.send_init(now, id);
            }
        }
    }

    pub(super) fn ask_waiting_lookups(&mut self, now: Time) {
        let Some(host) = self.hosts.get_mut(self.active_host) else { return };
        let Some(session) = host.registered_session() else { return };
        for (id, request, _) in core::mem::take(&mut host.lookups) {
            let asked = self.table.get_mut(session).is_some_and(|state| {
                state.control.ask(Ask::Lookup { id, why: LookupFor::User(request) }, now)
            });
            if !asked {
                self.event(Event::Found { request, status: Some(FoundStatus::BUSY) });
            }
        }
        self.touch(session);
    }

    /// Asks the host something on the machine's own behalf; nothing happens if it is away.
    pub(super) fn ask_host(&mut self, now: Time, what: Ask) {
        let Some(session) = self.hosts.get(self.active_host).and_then(Host::session) else { return };
        if let Some(state) = self.table.get_mut(session) {
            state.control.ask(what, now);
            self.touch(session);
        }
    }

    pub(super) fn on_found(&mut self, now: Time, id: SessionId, req: Req, status: FoundStatus) {
        let Some(session) = self.table.get_mut(id) else { return };
        let Some(asked) = session.control.answered(req, |ask| matches!(ask, Ask::Lookup { .. })) else {
            return;
        };
        if let Some(secure) = session.secure.as_mut() {
            secure.answered(Pn(asked.first_pn));
        }
        session.was_answered(now);
        match asked.what {
            Ask::Lookup { why: LookupFor::User(request), .. } => {
                self.event(Event::Found { request, status: Some(status) });
            }
            Ask::Lookup { why: LookupFor::Session(waiting), .. } => {
                if let Some(State::Connecting(connecting)) =
                    self.table.get_mut(waiting).map(|session| &mut session.state)
                {
                    connecting.found = Some(status);
                }
            }
            _ => {}
        }
    }

    pub(super) fn tell_public_address(&mut self, id: SessionId, observed: Option<SocketAddr>) {
        let Some(place) = self.table.get(id).and_then(|session| session.host_place()) else { return };
        let Some(host) = self.hosts.get_mut(place) else { return };
        if host.public == observed || observed.is_none() {
            return;
        }
        host.public = observed;
        let (host_id, told) = (host.id, host.up_told);
        if told && self.is_active(place) {
            self.event(Event::HostConnected { host: host_id, public: observed });
        }
    }
}
