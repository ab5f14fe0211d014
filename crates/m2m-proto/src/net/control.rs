//! Control frames on their way out of one session: questions until they are answered, and what leaves once.
use alloc::{boxed::Box, collections::VecDeque, vec::Vec};

use super::{
    lazy::{Lazy, Rest},
    netkey::Offer,
    pinning::Proving,
};
use crate::{
    event::{RequestId, SessionId},
    id::Id,
    time::{Duration, Time},
    wire::frame::{Epoch, Frame, Req},
};

/// Control frames on their way out.
#[derive(Default)]
pub(crate) struct Control {
    pub(crate) next_req: u16,
    /// NETKEYs with a wrong mac that came.
    pub(crate) wrong_macs: u8,
    /// The proof in the queues is to be sent, for the first time or again.
    pub(crate) proof_due: bool,
    pub(crate) queues: Lazy<Queues>,
}

/// What waits to leave, or for an answer.
#[derive(Default)]
pub(crate) struct Queues {
    /// Those that want an answer.
    pub(crate) asks: Vec<Asking>,
    /// Those that leave once.
    pub(crate) once: VecDeque<Frame<'static>>,
    /// The net key that the peer is to take.
    pub(crate) offer: Option<Box<Offer>>,
    /// The proof of our device key that the peer asked for.
    pub(crate) proving: Option<Box<Proving>>,
}

impl Rest for Queues {
    fn at_rest() -> &'static Queues {
        static AT_REST: Queues =
            Queues { asks: Vec::new(), once: VecDeque::new(), offer: None, proving: None };
        &AT_REST
    }

    fn is_at_rest(&self) -> bool {
        self.asks.is_empty() && self.once.is_empty() && self.offer.is_none() && self.proving.is_none()
    }
}

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
        if !own && self.queues.asks.len() >= MAX_ASKS {
            return false;
        }
        let req = Req(self.next_req);
        self.next_req = self.next_req.wrapping_add(1);
        self.queues.begin().asks.push(Asking { req, what, sent: 0, first_sent: now, first_pn: 0, due: now });
        true
    }

    /// Takes the question out that an answer with `req` belongs to, if `fits` says that it is of that kind.
    pub(crate) fn answered(&mut self, req: Req, fits: impl Fn(&Ask) -> bool) -> Option<Asking> {
        let asks = &mut self.queues.get_mut()?.asks;
        let at = asks.iter().position(|ask| ask.req == req && fits(&ask.what))?;
        Some(asks.swap_remove(at))
    }

    /// All questions leave again, under new keys, as if for the first time.
    pub(crate) fn ask_again(&mut self, now: Time) {
        self.asks_mut().for_each(|ask| (ask.sent, ask.due, ask.first_pn) = (0, now, u64::MAX));
    }

    /// Whoever is at the other end has to prove first that it is the one meant: what is not about that waits.
    pub(crate) fn hold_back(&mut self) {
        let may_leave = |ask: &Ask| matches!(ask, Ask::Ping { .. } | Ask::Probe | Ask::Prove);
        self.asks_mut().filter(|ask| !may_leave(&ask.what)).for_each(|ask| ask.due = Time::NEVER);
    }

    /// It has.
    pub(crate) fn let_go(&mut self, now: Time) {
        self.asks_mut().filter(|ask| ask.due == Time::NEVER).for_each(|ask| ask.due = now);
    }

    /// Asks, unless the same question is open already.
    pub(crate) fn ensure(&mut self, what: Ask, now: Time) {
        if self.queues.asks.iter().all(|ask| ask.what != what) {
            self.ask(what, now);
        }
    }

    pub(crate) fn has_asked(&self, req: Req, what: &Ask) -> bool {
        self.queues.asks.iter().any(|ask| ask.req == req && ask.what == *what)
    }

    /// Asks no longer; an answer means nothing any more.
    pub(crate) fn withdraw(&mut self, which: impl Fn(&Ask) -> bool) {
        if let Some(queues) = self.queues.get_mut() {
            queues.asks.retain(|ask| !which(&ask.what));
        }
    }

    pub(crate) fn is_announcing(&self) -> bool {
        self.queues.asks.iter().any(|ask| matches!(ask.what, Ask::Announce { .. }))
    }

    /// Queues a frame. When too many wait it is dropped: whoever wants its answer asks again.
    pub(crate) fn once(&mut self, frame: Frame<'static>) {
        if self.queues.once.len() < MAX_ONCE {
            self.queues.begin().once.push_back(frame);
        }
    }

    /// The question for the peer's proof goes along with the next packet: only the first one that arrives can bring it.
    pub(crate) fn prove_now(&mut self, now: Time) {
        self.asks_mut().filter(|ask| ask.what == Ask::Prove).for_each(|ask| ask.due = now);
    }

    pub(crate) fn pinging(&self) -> bool {
        self.queues.asks.iter().any(|ask| matches!(ask.what, Ask::Ping { user: None, .. }))
    }

    /// The open questions, to be changed.
    pub(crate) fn asks_mut(&mut self) -> impl Iterator<Item = &mut Asking> {
        self.queues.get_mut().into_iter().flat_map(|queues| &mut queues.asks)
    }

    /// The open questions, which are no longer.
    pub(crate) fn take_asks(&mut self) -> Vec<Asking> {
        self.queues.get_mut().map(|queues| core::mem::take(&mut queues.asks)).unwrap_or_default()
    }

    /// What was to leave once leaves no more.
    pub(crate) fn clear_once(&mut self) {
        if let Some(queues) = self.queues.get_mut() {
            queues.once.clear();
        }
    }

    /// The net key on offer is no longer.
    pub(crate) fn withdraw_offer(&mut self) {
        if let Some(queues) = self.queues.get_mut() {
            queues.offer = None;
        }
    }

    /// When the first of them leaves again, or is given up.
    pub(crate) fn next_due(&self) -> Time {
        self.queues.asks.iter().map(|ask| ask.due).min().unwrap_or(Time::NEVER)
    }
}
