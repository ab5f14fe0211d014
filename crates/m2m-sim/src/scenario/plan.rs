//! A scenario as data: who is there, what the links do, and what happens when. Nothing in it depends on anything else in
//! it, so that any part can be left out and the rest stays what it was: that is how a failure is made small.
use m2m_proto::{coap::code::Code, time::Duration, wire::packet::Suite};
use rand_chacha::{
    ChaCha12Rng,
    rand_core::{Rng, SeedableRng},
};

use crate::{Faults, NetIndex, world::Prey};

/// A whole scenario.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// All randomness that is left comes from it: that of nets, links and attacks.
    pub(super) seed: u64,
    /// The nets by their index; none where one was left out.
    pub(super) nets: Vec<Option<NetPlan>>,
    /// What the links do until the quiet phase.
    pub(super) faults: Faults,
    /// How long everything may happen; then come the quiet phase and the end.
    pub(super) chaos: Duration,
    /// What happens; in no order.
    pub(super) doings: Vec<Planned>,
}

/// One net.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct NetPlan {
    /// It keeps a registry and relays.
    pub(super) is_host: bool,
    /// The hosts that it names, preferred first.
    pub(super) hosts: Vec<NetIndex>,
    /// Its suites, preferred first.
    pub(super) suites: Vec<Suite>,
    /// It is behind a NAT that forgets after this time.
    pub(super) nat: Option<Duration>,
    /// So many milliseconds its wall clock is ahead.
    pub(super) clock_ms: i64,
}

/// Something that happens at its time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Planned {
    /// Since the start.
    pub(super) at: Duration,
    /// Its own, in this plan; its randomness comes from it, and a request has it as its id.
    pub(super) number: u32,
    /// What.
    pub(super) doing: Doing,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Doing {
    /// One net asks another, in a session that it has or opens.
    Request(Asking),
    /// A net closes one of its sessions.
    Close { net: NetIndex, which: u32 },
    /// A net measures a round trip in one of its sessions.
    Ping { net: NetIndex, which: u32 },
    /// A net asks for another's presence.
    LookUp { net: NetIndex, about: NetIndex },
    /// A net changes the keys of one of its sessions.
    Rekey { net: NetIndex, which: u32, secret: bool },
    /// A net gives one of its sessions another token.
    Refresh { net: NetIndex, which: u32 },
    /// A net gives the peer of one of its sessions another net key; each peer gets one at most.
    NetKey { net: NetIndex, which: u32 },
    /// A net dies without a word, and its memory with it.
    Kill { net: NetIndex },
    /// It starts again, with or without what it had stored.
    Start { net: NetIndex, keeps_disk: bool },
    /// Its store fails from now on, or works again.
    Disk { net: NetIndex, full: bool },
    /// Its store takes so long from now on.
    Store { net: NetIndex, delay: Duration },
    /// It gets another port, or another address, and learns nothing of that.
    Rebind { net: NetIndex, moves: bool },
    /// It gets no time for so long.
    Suspend { net: NetIndex, time: Duration, clock_stops: bool, datagrams_first: bool },
    /// Its wall clock is set, so many milliseconds ahead.
    Clock { net: NetIndex, ahead_ms: i64 },
    /// Nothing passes from one net to another for so long; nor back, unless it is one way only.
    Cut { from: NetIndex, to: NetIndex, one_way: bool, time: Duration },
    /// The attacker has a rule for so long.
    Meddle(Meddling),
    /// The attacker does one thing.
    Attack(Trick),
}

/// A request, and what its handler does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Asking {
    /// By which net.
    pub(super) from: NetIndex,
    /// To which.
    pub(super) to: NetIndex,
    /// Its method.
    pub(super) method: Code,
    /// Bytes of its payload.
    pub(super) len: Length,
    /// CON rather than NON.
    pub(super) confirmable: bool,
    /// Its sender says that it may run twice.
    pub(super) repeatable: bool,
    /// When its sender gives up.
    pub(super) deadline: Duration,
    /// In a session of its own, even if there is one.
    pub(super) opens: bool,
    /// How the peer is reached if a session is opened.
    pub(super) way: Way,
    /// Bytes of its handler's answer.
    pub(super) answer: Length,
    /// When the handler gives it; never if there is none.
    pub(super) after: Option<Duration>,
    /// When its sender calls it off.
    pub(super) cancel: Option<Duration>,
}

/// How a peer is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// By id, through the host.
    Host,
    /// At its address.
    Direct,
    /// At its address, without naming its id.
    Anyone,
}

/// Bytes of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// So many, or as many as fit.
    Bytes(u32),
    /// As many as fit.
    Most,
    /// One more than fits.
    TooLong,
}

/// A rule of the attacker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Meddling {
    /// Only what this net sends.
    pub(super) from: Option<NetIndex>,
    /// Only what goes to this one.
    pub(super) to: Option<NetIndex>,
    /// Only these.
    pub(super) prey: Prey,
    /// Each n-th of them.
    pub(super) every: u32,
    /// What becomes of them.
    pub(super) fate: Prank,
    /// For how long.
    pub(super) time: Duration,
}

/// What becomes of datagrams that the attacker chose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Prank {
    /// They vanish.
    Drop,
    /// They come so much later.
    Delay(Duration),
    /// They come from elsewhere.
    Divert,
}

/// What the attacker can do once. The details come from the doing's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trick {
    /// Sends again what it saw.
    Repeat,
    /// The same from elsewhere.
    FromElsewhere,
    /// The same from another net's address.
    FromNeighbour,
    /// A copy that overtakes the original.
    Overtake,
    /// Back to where it came from.
    Reflect,
    /// To somebody whom it never was for.
    Misdeliver,
    /// Cut short.
    Truncate,
    /// With some bits flipped.
    Flip,
    /// Noise.
    Garbage,
    /// A RESET-HINT for a packet that it saw.
    Hint,
    /// A RESET-HINT with the token of one packet and the tail of another.
    WrongHint,
    /// An INIT or a COOKIE like one that it saw, with other fields.
    Handshake,
}

impl Trick {
    /// Each, with its name in scripts.
    pub(super) const ALL: [(Trick, &'static str); 12] = [
        (Trick::Repeat, "repeat"),
        (Trick::FromElsewhere, "from-elsewhere"),
        (Trick::FromNeighbour, "from-neighbour"),
        (Trick::Overtake, "overtake"),
        (Trick::Reflect, "reflect"),
        (Trick::Misdeliver, "misdeliver"),
        (Trick::Truncate, "truncate"),
        (Trick::Flip, "flip"),
        (Trick::Garbage, "garbage"),
        (Trick::Hint, "hint"),
        (Trick::WrongHint, "wrong-hint"),
        (Trick::Handshake, "handshake"),
    ];
}

impl Plan {
    /// The nets that are there.
    pub(super) fn present(&self) -> impl Iterator<Item = (NetIndex, &NetPlan)> {
        self.nets.iter().enumerate().filter_map(|(index, net)| Some((NetIndex(index), net.as_ref()?)))
    }

    /// A net, if it is there.
    pub(super) fn net(&self, index: NetIndex) -> Option<&NetPlan> {
        self.nets.get(index.0)?.as_ref()
    }
}

impl Doing {
    /// The nets without which it can't happen.
    pub(super) fn nets(&self) -> [Option<NetIndex>; 2] {
        match *self {
            Doing::Request(Asking { from, to, .. }) | Doing::Cut { from, to, .. } => [Some(from), Some(to)],
            Doing::LookUp { net, about } => [Some(net), Some(about)],
            Doing::Close { net, .. }
            | Doing::Ping { net, .. }
            | Doing::Rekey { net, .. }
            | Doing::Refresh { net, .. }
            | Doing::NetKey { net, .. }
            | Doing::Kill { net }
            | Doing::Start { net, .. }
            | Doing::Disk { net, .. }
            | Doing::Store { net, .. }
            | Doing::Rebind { net, .. }
            | Doing::Suspend { net, .. }
            | Doing::Clock { net, .. } => [Some(net), None],
            Doing::Meddle(Meddling { from, to, .. }) => [from, to],
            Doing::Attack(_) => [None, None],
        }
    }
}

/// Randomness, with the few shapes of it that are needed.
pub(super) struct Dice(pub(super) ChaCha12Rng);

impl Dice {
    pub(super) fn of(seed: u64) -> Dice {
        Dice(ChaCha12Rng::seed_from_u64(seed))
    }

    /// That of one doing of a plan.
    pub(super) fn of_doing(seed: u64, number: u32) -> Dice {
        Dice::of(seed ^ (u64::from(number) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// A number from `low` to `high`, both included.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.0.next_u64() % (high - low + 1)
    }

    /// True so often in a hundred times.
    pub(super) fn percent(&mut self, chance: u64) -> bool {
        self.0.next_u64() % 100 < chance
    }

    /// A time between none and `longest`, in whole milliseconds.
    pub(super) fn within(&mut self, longest: Duration) -> Duration {
        Duration::from_millis(self.between(0, longest.as_millis() as u64))
    }

    /// One of several; there must be some.
    pub(super) fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[self.0.next_u64() as usize % among.len()]
    }
}
