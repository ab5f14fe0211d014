//! What a net keeps of one session.
//!
//! ```text
//!             connect                 RESP ok                 CLOSE, idle, lost
//!  (nothing) ────────> Connecting ────────────> Up ───────────────────────────> Closing ────> (nothing)
//!             INIT ok                first packet opens        ^
//!  (nothing) ────────> HalfOpen ───────────────────────────────┘ (Up)
//! ```
use alloc::{boxed::Box, vec::Vec};
use core::net::SocketAddr;

use super::{
    control::{Control, Queues},
    lazy::{Lazy, Rest, Spare},
    path::Roaming,
    pinning::{Pin, Prover},
    recover::{Opener, Tails},
    rekey::Renewal,
    shard::Asker,
    table::Slot,
};
use crate::{
    coap::line::Line,
    id::Id,
    relay::budget::{Gauge, Level},
    session::{
        Secure, handshake,
        keys::{self, Role},
    },
    time::{Duration, Time},
    wire::{
        frame::{Epoch, FoundStatus, Memory, Req},
        packet::Token,
    },
};

/// Where packets of a session leave to, or where one came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Straight to this address.
    Direct(SocketAddr),
    /// Inside RELAY frames, in the session with this neighbour.
    Through(Id),
}

pub(crate) enum State {
    Connecting(Box<Connecting>),
    HalfOpen(Box<HalfOpen>),
    Up,
    Closing { until: Time },
}

/// A handshake that this net started.
pub(crate) struct Connecting {
    pub(crate) handshake: handshake::Initiator,
    /// INIT as it leaves, with the cookie once there is one.
    pub(crate) init: Vec<u8>,
    pub(crate) sent: u8,
    pub(crate) first_sent: Time,
    pub(crate) next: Time,
    pub(crate) deadline: Time,
    /// What the host said when it was asked whether the peer is there.
    pub(crate) found: Option<FoundStatus>,
}

impl Connecting {
    /// The round trip of a RESP that arrives now, if INIT was sent once, and was not due again.
    pub(crate) fn round_trip(&self, now: Time) -> Option<Duration> {
        (self.sent == 1 && now <= self.next).then(|| now.since(self.first_sent))
    }
}

/// A handshake that a peer started, until its first packet under the new keys.
pub(crate) struct HalfOpen {
    pub(crate) stoken: Token,
    pub(crate) ephemeral: [u8; 32],
    /// The answer, for INITs that come again.
    pub(crate) resp: [u8; 104],
    /// Where the answer went to, and when last. None is given up for another: whoever copies INITs from many places
    /// would drive the initiator's own out.
    pub(crate) answered: [Option<(Path, Time)>; 4],
    /// The place of several that was asked to show that it is there, and with what.
    pub(crate) challenge: Option<(Path, [u8; 8])>,
    pub(crate) expires: Time,
    /// The handshake's final hash, for a proof of our device key.
    pub(crate) hash: [u8; 32],
}

impl HalfOpen {
    /// Whether RESP may go there now: to few places, and to each not again within `pause`.
    pub(crate) fn may_answer_to(&self, path: Path, now: Time, pause: Duration) -> bool {
        match self.answered.iter().flatten().find(|(place, _)| *place == path) {
            Some((_, last)) => now.since(*last) >= pause,
            None => self.answered.contains(&None),
        }
    }

    pub(crate) fn answered_to(&mut self, path: Path, now: Time) {
        let known = self.answered.iter().position(|place| place.is_some_and(|(place, _)| place == path));
        let free = || self.answered.iter().position(Option::is_none);
        if let Some(place) = known.or_else(free).and_then(|at| self.answered.get_mut(at)) {
            *place = Some((path, now));
        }
    }

    /// Who has RESP from one place has it for all: of several none is proven by that.
    pub(crate) fn is_ambiguous(&self) -> bool {
        self.answered.iter().flatten().count() > 1
    }

    /// What a proof of our device key is made from.
    pub(crate) fn prover(&self) -> Prover {
        Prover { peer_ephemeral: self.ephemeral, hash: self.hash }
    }

    /// Whoever could make a first packet had our RESP, so it comes from where that went.
    pub(crate) fn takes_from(&self, path: Path) -> bool {
        self.answered.iter().flatten().any(|(place, _)| *place == path)
    }
}

/// What is kept of a session at rest is in here, and small, for a server has a million of them; the rest is boxed, and
/// only there while it is needed.
pub(crate) struct Session {
    pub(crate) peer: Id,
    /// What tells it from others that had its slot; the table sets it.
    pub(crate) generation: u32,
    /// The next session with the same peer.
    pub(crate) next_of_peer: Option<Slot>,
    /// What its packets to us are labelled with.
    pub(crate) own_token: Token,
    pub(crate) role: Role,
    pub(crate) path: Path,
    pub(crate) state: State,
    /// The keys; none before RESP.
    pub(crate) secure: Option<Secure>,
    pub(crate) line: Line,
    pub(crate) control: Control,
    /// The peer forgets or is forgotten after so much silence.
    pub(crate) silence: Span,
    pub(crate) last_heard: Time,
    /// Initiator: something opened that the peer sealed, so it has our CONFIRM.
    pub(crate) confirmed: bool,
    /// This is our session with the host of this place in the list.
    pub(crate) host: Option<HostPlace>,
    pub(crate) guest: Option<Box<Guest>>,
    /// What few sessions have at a time.
    pub(crate) rare: Lazy<Rare>,
    /// Responder: what was there of the sessions that its initiator named, if it named any; and how many it named in
    /// the packet that brought this one up, which is this one's own place in the initiator's list.
    pub(crate) memory: Option<(Memory, u8)>,
    /// The second in which the peer's last request came, counted up.
    pub(crate) last_request_s: u32,
    pub(crate) max_udp: u16,
    /// In the list of those that have something to send.
    pub(crate) dirty: bool,
}

/// A place in the list of hosts.
pub(crate) type HostPlace = u8;

/// What a session begins with on either side.
pub(crate) struct Beginning {
    pub(crate) peer: Id,
    pub(crate) own_token: Token,
    pub(crate) role: Role,
    pub(crate) path: Path,
    pub(crate) state: State,
    pub(crate) secure: Option<Secure>,
    pub(crate) line: Line,
    pub(crate) silence: Duration,
    pub(crate) max_udp: u16,
}

impl Lazy<Rare> {
    /// What it takes to open the session anew, while the session's other fields are in use too.
    pub(crate) fn opener_mut(&mut self) -> Option<&mut Opener> {
        self.get_mut()?.opener.as_deref_mut()
    }
}

/// Memory of sessions that came to rest, for those that wake up.
#[derive(Default)]
pub(super) struct SpareParts {
    pub(super) rare: Spare<Rare>,
    pub(super) queues: Spare<Queues>,
    pub(super) tails: Spare<Tails>,
}

/// What few sessions have at a time.
#[derive(Default)]
pub(crate) struct Rare {
    /// Initiator: what keeps the session up, and what it takes to open it anew.
    pub(crate) opener: Option<Box<Opener>>,
    /// Tokens that are honoured too: of a handshake that is to renew the session, and the one before a token update.
    pub(crate) more_tokens: [Option<Token>; 2],
    /// What PROVE needs, on both sides, until the registration stands.
    pub(crate) proof: Option<Box<Proof>>,
    /// Other places where the peer may be; none while it stays where it is.
    pub(crate) roaming: Option<Box<Roaming>>,
    /// Of packets that left lately, while an answer may be missing.
    pub(crate) tails: Lazy<Tails>,
    /// The device that the peer has to be.
    pub(crate) pin: Option<Box<Pin>>,
    /// Keys or a token that are on their way to change.
    pub(crate) renewal: Option<Box<Renewal>>,
}

impl Rest for Rare {
    fn at_rest() -> &'static Rare {
        static AT_REST: Rare = Rare {
            opener: None,
            more_tokens: [None; 2],
            proof: None,
            roaming: None,
            tails: Lazy::NONE,
            pin: None,
            renewal: None,
        };
        &AT_REST
    }

    fn is_at_rest(&self) -> bool {
        let Rare { opener, more_tokens, proof, roaming, tails, pin, renewal } = self;
        opener.is_none()
            && *more_tokens == [None; 2]
            && proof.is_none()
            && roaming.is_none()
            && !tails.is_there()
            && pin.is_none()
            && renewal.is_none()
    }
}

pub(crate) enum Proof {
    /// Ours, ready to be sent.
    Made(keys::Proof),
    /// What the peer's will be checked against.
    Expected { ephemeral: keys::DhSecret, hash: [u8; 32], until: Time },
}

/// What a host keeps of a peer that registers.
#[derive(Default)]
pub(crate) struct Guest {
    /// The device key that it proved to hold.
    pub(crate) proven: Option<[u8; 32]>,
    /// The store holds its claim. An ephemeral registration has none.
    pub(crate) claimed: bool,
    /// A REGISTER whose claim is with the store.
    pub(crate) waiting: Option<Registering>,
    /// Its registration ends then; later with each packet.
    pub(crate) lease: Span,
    pub(crate) registered: bool,
    /// Who asked whether it is there, while it is being asked itself.
    pub(crate) askers: Vec<Asker>,
    pub(crate) probed: Time,
    pub(crate) registers: Level,
    pub(crate) lookups: Level,
    pub(crate) errors: Level,
    pub(crate) out_packets: Level,
    pub(crate) out_bytes: Level,
    pub(crate) in_packets: Level,
    pub(crate) in_bytes: Level,
}

/// What every guest may do.
pub(super) struct GuestLimits {
    pub(super) registers: Gauge,
    pub(super) lookups: Gauge,
    pub(super) errors: Gauge,
    pub(super) packets: Gauge,
    pub(super) bytes: Gauge,
}

#[derive(Clone, Copy)]
pub(crate) struct Registering {
    pub(crate) req: Req,
    pub(crate) ephemeral: bool,
    pub(crate) epoch: Epoch,
    pub(crate) lease_s: u32,
    /// The budget of new claims was charged for it.
    pub(crate) is_charged: bool,
}

/// A registered net that does not answer its host for so long is told to be silent.
const PROBE_PATIENCE: Duration = Duration::from_secs(3);

/// When the initiator pings.
pub(crate) struct Keepalive {
    pub(crate) interval: Duration,
    /// The last packet of ours that was answered.
    pub(crate) last_answer: Time,
    /// Where the peer saw our last ping come from.
    pub(crate) observed: Option<SocketAddr>,
}

/// A duration of up to seven weeks in whole milliseconds.
#[derive(Clone, Copy, Default)]
pub(crate) struct Span(u32);

impl Span {
    pub(crate) fn get(self) -> Duration {
        Duration::from_millis(self.0.into())
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Span {
        let millis = duration.as_nanos().div_ceil(1_000_000);
        Span(u32::try_from(millis).unwrap_or(u32::MAX))
    }
}

impl Session {
    /// A session of which nothing was heard yet.
    pub(crate) fn new(now: Time, beginning: Beginning) -> Session {
        let Beginning { peer, own_token, role, path, state, secure, line, silence, max_udp } = beginning;
        Session {
            peer,
            generation: 0,
            next_of_peer: None,
            own_token,
            role,
            path,
            state,
            secure,
            line,
            control: Control::default(),
            silence: silence.into(),
            last_heard: now,
            // Whoever answers an INIT has nothing to confirm.
            confirmed: role == Role::Responder,
            host: None,
            guest: None,
            rare: Lazy::default(),
            memory: None,
            last_request_s: 0,
            max_udp,
            dirty: false,
        }
    }

    /// The instant at which something is due, whatever it is.
    pub(crate) fn deadline(&self) -> Time {
        match &self.state {
            State::Connecting(connecting) => {
                connecting.next.min(connecting.deadline).min(self.line.next_timeout())
            }
            State::HalfOpen(half_open) => half_open.expires,
            State::Closing { until } => *until,
            State::Up => self
                .line
                .next_timeout()
                .min(self.control.next_due())
                .min(self.ping_due())
                .min(self.last_heard + self.silence.get())
                .min(self.lease_due())
                .min(self.rare.opener.as_ref().map_or(Time::NEVER, |opener| opener.deadline()))
                .min(self.renewal_due())
                .min(self.rare.roaming.as_ref().map_or(Time::NEVER, |roaming| roaming.deadline()))
                .min(self.proof_due())
                .min(self.probe_due()),
        }
    }

    pub(crate) fn ping_due(&self) -> Time {
        match self.rare.opener.as_ref().map(|opener| &opener.keepalive) {
            Some(Keepalive { interval, last_answer, .. })
                if !interval.is_zero() && !self.control.pinging() =>
            {
                *last_answer + *interval
            }
            _ => Time::NEVER,
        }
    }

    pub(crate) fn lease_due(&self) -> Time {
        match &self.guest {
            Some(guest) if guest.registered => self.last_heard + guest.lease.get(),
            _ => Time::NEVER,
        }
    }

    /// When a PROVE that did not come is not waited for any more.
    pub(crate) fn proof_due(&self) -> Time {
        match self.rare.proof.as_deref() {
            Some(Proof::Expected { until, .. }) => *until,
            _ => Time::NEVER,
        }
    }

    /// When those who look this peer up are told that it is silent.
    pub(crate) fn probe_due(&self) -> Time {
        match &self.guest {
            Some(guest) if !guest.askers.is_empty() => guest.probed + PROBE_PATIENCE,
            _ => Time::NEVER,
        }
    }

    pub(crate) fn opener_mut(&mut self) -> Option<&mut Opener> {
        self.rare.opener_mut()
    }

    pub(crate) fn keepalive_mut(&mut self) -> Option<&mut Keepalive> {
        Some(&mut self.opener_mut()?.keepalive)
    }

    /// Pings at least so often from now on, if it pings at all.
    pub(crate) fn cap_ping_interval(&mut self, cap: Duration) {
        if let Some(keepalive) = self.keepalive_mut() {
            keepalive.interval = keepalive.interval.min(cap);
        }
    }

    /// The peer asked something: what was before may be repeated by it.
    pub(crate) fn note_request(&mut self, now: Time) {
        self.last_request_s = u32::try_from(now.as_micros().div_ceil(1_000_000)).unwrap_or(u32::MAX);
    }

    /// No earlier than the peer's last request.
    pub(crate) fn last_request(&self) -> Time {
        Time::ZERO + Duration::from_secs(self.last_request_s.into())
    }

    /// A packet of ours was answered.
    pub(crate) fn was_answered(&mut self, now: Time) {
        if let Some(keepalive) = self.keepalive_mut() {
            keepalive.last_answer = now;
        }
    }

    pub(crate) fn roaming_mut(&mut self) -> Option<&mut Roaming> {
        self.rare.get_mut()?.roaming.as_deref_mut()
    }

    pub(crate) fn pin_mut(&mut self) -> Option<&mut Pin> {
        self.rare.get_mut()?.pin.as_deref_mut()
    }

    pub(crate) fn renewal_mut(&mut self) -> Option<&mut Renewal> {
        self.rare.get_mut()?.renewal.as_deref_mut()
    }

    pub(crate) fn take_renewal(&mut self) -> Option<Box<Renewal>> {
        self.rare.get_mut()?.renewal.take()
    }

    pub(crate) fn take_proof(&mut self) -> Option<Box<Proof>> {
        self.rare.get_mut()?.proof.take()
    }

    /// Nothing is under way, and nothing was asked that has no answer yet.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.line.is_idle() && self.control.queues.asks.is_empty()
    }

    /// Gives back what is empty.
    pub(super) fn settle(&mut self, now: Time, spare: &mut SpareParts) {
        if let Some(rare) = self.rare.get_mut() {
            rare.roaming.take_if(|roaming| roaming.is_over(now));
        }
        self.rare.settle(&mut spare.rare);
        self.control.queues.settle(&mut spare.queues);
    }

    /// Where a token stands that is honoured beside its own.
    pub(crate) fn further_token(&mut self, token: Token) -> Option<&mut Option<Token>> {
        let places = &mut self.rare.get_mut()?.more_tokens;
        places.iter_mut().find(|place| **place == Some(token))
    }

    /// The place in the list of the host that this is our session with.
    pub(crate) fn host_place(&self) -> Option<usize> {
        self.host.map(usize::from)
    }

    /// True for a session that an id is registered through, or will be if the store agrees.
    pub(crate) fn is_registrant(&self) -> bool {
        self.guest.as_ref().is_some_and(|guest| guest.registered || guest.waiting.is_some())
    }

    pub(crate) fn is_up(&self) -> bool {
        matches!(self.state, State::Up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_at_rest_is_small() {
        assert!(size_of::<Session>() <= 424, "{}", size_of::<Session>());
    }

    #[test]
    fn spans_are_rounded_up_and_have_an_end() {
        let millis = |nanos| Span::from(Duration::from_nanos(nanos)).get();
        assert_eq!([0, 1, 1_000_000].map(millis), [0, 1, 1].map(Duration::from_millis));
        assert_eq!(Span::from(Duration::MAX).get(), Duration::from_millis(u32::MAX.into()));
    }
}
