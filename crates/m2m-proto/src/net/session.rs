//! What a net keeps of one session.
//!
//! ```text
//!             connect                 RESP ok                 CLOSE, idle, lost
//!  (nothing) ────────> Connecting ────────────> Up ───────────────────────────> Closing ────> (nothing)
//!             INIT ok                first packet opens        ^
//!  (nothing) ────────> HalfOpen ───────────────────────────────┘ (Up)
//! ```
use alloc::{boxed::Box, collections::VecDeque, vec::Vec};
use core::net::SocketAddr;

use super::{
    netkey::Offer,
    path::Roaming,
    pinning::{Pin, Prover, Proving},
    recover::{Opener, Tails},
    rekey::Renewal,
};
use crate::{
    coap::line::Line,
    event::{RequestId, SessionId},
    id::Id,
    relay::budget::TokenBucket,
    session::{
        Secure, handshake,
        keys::{self, Role},
    },
    time::{Duration, Time},
    wire::{
        frame::{Epoch, FoundStatus, Frame, Memory, Req},
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

pub(crate) struct Session {
    pub(crate) peer: Id,
    pub(crate) next_of_peer: Option<u32>,
    /// What its packets to us are labelled with.
    pub(crate) own_token: Token,
    /// Others that are honoured too: of a handshake that is to renew it, and the one before a token update.
    pub(crate) more_tokens: [Option<Token>; 2],
    pub(crate) role: Role,
    pub(crate) path: Path,
    pub(crate) state: State,
    /// The keys; none before RESP.
    pub(crate) secure: Option<Box<Secure>>,
    pub(crate) line: Line,
    pub(crate) control: Control,
    pub(crate) keepalive: Keepalive,
    pub(crate) last_heard: Time,
    /// Initiator: something opened that the peer sealed, so it has our CONFIRM.
    pub(crate) confirmed: bool,
    /// This is our session with the host of this place in the list.
    pub(crate) host: Option<usize>,
    /// What PROVE needs, on both sides, until the registration stands.
    pub(crate) proof: Option<Box<Proof>>,
    pub(crate) guest: Option<Box<Guest>>,
    /// Other places where the peer may be; none while it stays where it is.
    pub(crate) roaming: Option<Box<Roaming>>,
    /// Initiator: what it takes to open the session anew.
    pub(crate) opener: Option<Box<Opener>>,
    /// Of packets that left lately, while an answer may be missing.
    pub(crate) tails: Option<Box<Tails>>,
    /// Responder: what was there of the sessions that its initiator named, if it named any; and how many it named in
    /// the packet that brought this one up, which is this one's own place in the initiator's list.
    pub(crate) memory: Option<(Memory, u8)>,
    /// When the peer's last request came.
    pub(crate) last_request: Time,
    /// The device that the peer has to be.
    pub(crate) pin: Option<Box<Pin>>,
    /// Keys or a token that are on their way to change.
    pub(crate) renewal: Option<Box<Renewal>>,
    pub(crate) max_udp: u16,
    /// In the list of those that have something to send.
    pub(crate) dirty: bool,
    /// The instant that stands in the heap of deadlines for this session.
    pub(crate) armed: Time,
}

pub(crate) enum Proof {
    /// Ours, ready to be sent.
    Made(keys::Proof),
    /// What the peer's will be checked against.
    Expected { ephemeral: keys::DhSecret, hash: [u8; 32], until: Time },
}

/// What a host keeps of a peer that registers.
pub(crate) struct Guest {
    /// The device key that it proved to hold.
    pub(crate) proven: Option<[u8; 32]>,
    /// The store holds its claim. An ephemeral registration has none.
    pub(crate) claimed: bool,
    /// A REGISTER whose claim is with the store.
    pub(crate) waiting: Option<Registering>,
    /// Its registration ends then; later with each packet.
    pub(crate) lease: Duration,
    pub(crate) registered: bool,
    /// Who asked whether it is there, while it is being asked itself.
    pub(crate) askers: Vec<(SessionId, Req)>,
    pub(crate) probed: Time,
    pub(crate) registers: TokenBucket,
    pub(crate) lookups: TokenBucket,
    pub(crate) errors: TokenBucket,
    pub(crate) out_packets: TokenBucket,
    pub(crate) out_bytes: TokenBucket,
    pub(crate) in_packets: TokenBucket,
    pub(crate) in_bytes: TokenBucket,
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

/// Control frames on their way out.
#[derive(Default)]
pub(crate) struct Control {
    pub(crate) next_req: u16,
    /// Those that want an answer.
    pub(crate) asks: Vec<Asking>,
    /// Those that leave once.
    pub(crate) once: VecDeque<Frame<'static>>,
    /// The net key that the peer is to take.
    pub(crate) offer: Option<Box<Offer>>,
    /// The proof of our device key that the peer asked for.
    pub(crate) proving: Option<Box<Proving>>,
    /// It is to be sent, for the first time or again.
    pub(crate) proof_due: bool,
    /// NETKEYs with a wrong mac that came.
    pub(crate) wrong_macs: u8,
}

/// A registered net that does not answer its host for so long is told to be silent.
const PROBE_PATIENCE: Duration = Duration::from_secs(3);
/// Control questions open at once in one session; beyond it a command fails.
pub(crate) const MAX_ASKS: usize = 32;
/// Control frames that wait to leave once; beyond it the newest is dropped, and asked for again by its sender.
pub(crate) const MAX_ONCE: usize = 64;

#[derive(Clone, Copy)]
pub(crate) struct Asking {
    pub(crate) req: Req,
    pub(crate) what: Ask,
    pub(crate) sent: u8,
    pub(crate) first_sent: Time,
    pub(crate) first_pn: u64,
    /// When it leaves again, or is given up.
    pub(crate) due: Time,
}

impl Asking {
    /// The round trip of an answer that arrives now: of what was sent once (Karn's rule), and was not due again, or the
    /// time that this process slept would count.
    pub(crate) fn round_trip(&self, now: Time) -> Option<Duration> {
        (self.sent == 1 && now <= self.due).then(|| now.since(self.first_sent))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    Ping {
        user: Option<RequestId>,
        next_s: u16,
    },
    /// A PING on behalf of one who looks the peer up: no answer means nothing for the session.
    Probe,
    Register {
        epoch: Epoch,
        ephemeral: bool,
        lease_s: u32,
    },
    Lookup {
        id: Id,
        why: LookupFor,
    },
    /// The peer's proof that it is the pinned device.
    Prove,
    /// The new net key in `Control::offer`.
    NetKey {
        user: RequestId,
    },
    /// The REKEY that the session's renewal holds.
    Rekey,
    /// The NEW_TOKEN that the session's renewal holds.
    NewToken,
    /// A PING that shows the peer our new keys. It says nothing of whether a NAT's mapping lasts.
    Announce {
        next_s: u16,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum LookupFor {
    User(RequestId),
    /// A handshake that gets no answer.
    Session(SessionId),
}

impl Control {
    /// Notes a question; false when too many are open. Of the machine's own there is one of a kind, and it always has
    /// its place: a ping that is due and cannot be asked would be due for ever.
    pub(crate) fn ask(&mut self, what: Ask, now: Time) -> bool {
        let own = matches!(
            what,
            Ask::Ping { user: None, .. }
                | Ask::Register { .. }
                | Ask::Prove
                | Ask::Rekey
                | Ask::NewToken
                | Ask::Announce { .. }
        );
        if !own && self.asks.len() >= MAX_ASKS {
            return false;
        }
        let req = Req(self.next_req);
        self.next_req = self.next_req.wrapping_add(1);
        self.asks.push(Asking { req, what, sent: 0, first_sent: now, first_pn: 0, due: now });
        true
    }

    /// Takes the question out that an answer with `req` belongs to, if `fits` says that it is of that kind.
    pub(crate) fn answered(&mut self, req: Req, fits: impl Fn(&Ask) -> bool) -> Option<Asking> {
        let at = self.asks.iter().position(|ask| ask.req == req && fits(&ask.what))?;
        Some(self.asks.swap_remove(at))
    }

    /// All questions leave again, under new keys, as if for the first time.
    pub(crate) fn ask_again(&mut self, now: Time) {
        self.asks.iter_mut().for_each(|ask| (ask.sent, ask.due, ask.first_pn) = (0, now, u64::MAX));
    }

    /// Whoever is at the other end has to prove first that it is the one meant: what is not about that waits.
    pub(crate) fn hold_back(&mut self) {
        let may_leave = |ask: &Ask| matches!(ask, Ask::Ping { .. } | Ask::Probe | Ask::Prove);
        self.asks.iter_mut().filter(|ask| !may_leave(&ask.what)).for_each(|ask| ask.due = Time::NEVER);
    }

    /// It has.
    pub(crate) fn let_go(&mut self, now: Time) {
        self.asks.iter_mut().filter(|ask| ask.due == Time::NEVER).for_each(|ask| ask.due = now);
    }

    /// Asks, unless the same question is open already.
    pub(crate) fn ensure(&mut self, what: Ask, now: Time) {
        if self.asks.iter().all(|ask| ask.what != what) {
            self.ask(what, now);
        }
    }

    pub(crate) fn has_asked(&self, req: Req, what: &Ask) -> bool {
        self.asks.iter().any(|ask| ask.req == req && ask.what == *what)
    }

    /// Asks no longer; an answer means nothing any more.
    pub(crate) fn withdraw(&mut self, which: impl Fn(&Ask) -> bool) {
        self.asks.retain(|ask| !which(&ask.what));
    }

    pub(crate) fn is_announcing(&self) -> bool {
        self.asks.iter().any(|ask| matches!(ask.what, Ask::Announce { .. }))
    }

    /// Queues a frame. When too many wait it is dropped: whoever wants its answer asks again.
    pub(crate) fn once(&mut self, frame: Frame<'static>) {
        if self.once.len() < MAX_ONCE {
            self.once.push_back(frame);
        }
    }

    /// The question for the peer's proof goes along with the next packet: only the first one that arrives can bring it.
    pub(crate) fn prove_now(&mut self, now: Time) {
        self.asks.iter_mut().filter(|ask| ask.what == Ask::Prove).for_each(|ask| ask.due = now);
    }

    pub(crate) fn pinging(&self) -> bool {
        self.asks.iter().any(|ask| matches!(ask.what, Ask::Ping { user: None, .. }))
    }

    fn next_due(&self) -> Time {
        self.asks.iter().map(|ask| ask.due).min().unwrap_or(Time::NEVER)
    }
}

/// Who pings when.
pub(crate) struct Keepalive {
    /// Ours: the interval now; zero on the responder's side.
    pub(crate) interval: Duration,
    /// The last packet of ours that was answered.
    pub(crate) last_answer: Time,
    /// Where the peer saw our last ping come from.
    pub(crate) observed: Option<SocketAddr>,
    /// The peer forgets or is forgotten after so much silence.
    pub(crate) silence: Duration,
}

impl Session {
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
                .min(self.last_heard + self.keepalive.silence)
                .min(self.lease_due())
                .min(self.opener.as_ref().map_or(Time::NEVER, |opener| opener.deadline()))
                .min(self.renewal_due())
                .min(self.roaming.as_ref().map_or(Time::NEVER, |roaming| roaming.deadline()))
                .min(self.proof_due())
                .min(self.probe_due()),
        }
    }

    pub(crate) fn ping_due(&self) -> Time {
        if self.keepalive.interval.is_zero() || self.control.pinging() {
            return Time::NEVER;
        }
        self.keepalive.last_answer + self.keepalive.interval
    }

    pub(crate) fn lease_due(&self) -> Time {
        match &self.guest {
            Some(guest) if guest.registered => self.last_heard + guest.lease,
            _ => Time::NEVER,
        }
    }

    /// When a PROVE that did not come is not waited for any more.
    pub(crate) fn proof_due(&self) -> Time {
        match self.proof.as_deref() {
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

    /// True for a session that an id is registered through, or will be if the store agrees.
    pub(crate) fn is_registrant(&self) -> bool {
        self.guest.as_ref().is_some_and(|guest| guest.registered || guest.waiting.is_some())
    }

    pub(crate) fn is_up(&self) -> bool {
        matches!(self.state, State::Up)
    }
}
