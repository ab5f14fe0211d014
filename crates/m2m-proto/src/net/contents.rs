//! What goes into the next packet of a session: CONFIRM, control frames that are due, and messages, as much as fits.
use alloc::vec::Vec;

use super::{
    control::{Ask, Asking, Control},
    netkey::Offer,
    path::{Exit, PING_ROOM},
    pinning::Proving,
    recover::Opener,
    rekey::Renewal,
    session::{Proof, Rare, Session},
};
use crate::{
    coap::exchange::Context,
    session::keys::Role,
    time::{Duration, Time},
    wire::{bundle::PlainWriter, frame::Frame},
};

/// After so many packets without any answer a PING goes along, so that short packet numbers stay unambiguous.
pub(super) const UNANSWERED: u64 = 1 << 14;
/// The bit of a message's first byte that acknowledgements and resets have (RFC 7252, section 3).
const IS_REPLY: u8 = 0x20;
/// A question is repeated at least so often while it is unanswered, if the round trip allows.
const ASK_MAX_WAIT: Duration = Duration::from_secs(2);

impl Session {
    /// False if it would be in vain to begin a packet: after most packets there is nothing more to say.
    pub(super) fn has_ready(&mut self, now: Time) -> bool {
        let queues = &self.control.queues;
        !queues.once.is_empty()
            || self.control.proof_due
            || queues.asks.iter().any(|ask| ask.due <= now)
            || self.rare.renewal.is_some()
            || self.line.has_next()
            || self.owes_ping()
    }

    /// So much has left without an answer that it has to be asked for one.
    fn owes_ping(&self) -> bool {
        self.secure.as_ref().is_some_and(|secure| secure.unanswered() >= UNANSWERED)
            && !self.control.pinging()
    }
}

/// True if there is anything that CONFIRM could go along with.
pub(super) fn has_more(session: &mut Session, cx: &mut Context<'_>) -> bool {
    let patience = super::timers::patience(session.line.rto(cx.config));
    !session.control.queues.once.is_empty()
        || session.control.queues.asks.iter().any(|ask| is_due(ask, cx.now, patience))
        || session.is_open() && session.line.poll_message(cx).is_some()
}

/// What nobody answered in time is not asked again, should a packet come before the timer that ends it.
fn is_due(ask: &Asking, now: Time, patience: Duration) -> bool {
    ask.due <= now && (ask.sent == 0 || now < ask.first_sent + patience)
}

/// What a packet holds.
pub(super) struct Contents {
    /// Its peer answers, if it is there: with a hint, should it have forgotten the session.
    pub(super) wants_answer: bool,
}

/// Begins a packet and writes what a session has ready, as much as fits. None if that is nothing.
pub(super) fn fill(
    session: &mut Session,
    cx: &mut Context<'_>,
    exit: &Exit,
    mem: u32,
    buffer: &mut Vec<u8>,
) -> Option<Contents> {
    let confirm = session.role == Role::Initiator
        && (!session.confirmed || session.resume().is_some())
        && has_more(session, cx);
    let (open, next_s) = (session.is_open(), super::timers::next_s(session));
    let rto = session.line.rto(cx.config);
    if session.owes_ping() {
        session.control.ask(Ask::Ping { user: None, next_s }, cx.now);
    }
    let secure = session.secure.as_mut()?;
    secure.begin(buffer);
    let pn = secure.next_pn().0;
    let mut plain = PlainWriter::new(buffer, exit.room);
    if confirm {
        push_confirm(session.rare.opener.as_deref(), mem, &mut plain);
        session.control.prove_now(cx.now);
    }
    let fresh = plain.count();
    let rare = session.rare.get_mut();
    let attached = rare.map(Attached::of).unwrap_or_default();
    let sent = push_control(&mut session.control, attached, &mut plain, Leaving { now: cx.now, pn, rto });
    let mut wants_answer = confirm || sent.asked;
    while open && let Some(message) = session.line.poll_message(cx) {
        if plain.push_message(message.bytes) {
            wants_answer |= message.bytes.first().is_some_and(|first| first & IS_REPLY == 0);
            session.line.sent_in(cx, pn);
            continue;
        }
        if !plain.is_empty() || exit.is_candidate {
            break;
        }
        // It fits no packet of this session, and must not keep the others from leaving.
        session.line.fail_front(cx);
    }
    if plain.count() == fresh {
        return None;
    }
    // On a candidate path there may be no room for it.
    while plain.len() < PING_ROOM && sent.pinged && plain.push_frame(&Frame::Pad) {}
    Some(Contents { wants_answer })
}

fn push_confirm(opener: Option<&Opener>, mem: u32, plain: &mut PlainWriter<'_>) {
    match opener.and_then(|opener| opener.resume.as_ref()) {
        Some(resume) => resume.tags.iter().for_each(|tag| {
            plain.push_frame(&Frame::Confirm { mem, resume: Some(*tag) });
        }),
        None => drop(plain.push_frame(&Frame::Confirm { mem, resume: None })),
    }
}

/// What some frames are made of.
#[derive(Default)]
struct Attached<'a> {
    proof: Option<&'a Proof>,
    renewal: Option<&'a mut Renewal>,
}

impl Attached<'_> {
    fn of(rare: &mut Rare) -> Attached<'_> {
        Attached { proof: rare.proof.as_deref(), renewal: rare.renewal.as_deref_mut() }
    }
}

/// The packet that leaves.
#[derive(Clone, Copy)]
struct Leaving {
    now: Time,
    pn: u64,
    rto: Duration,
}

/// What [`push_control`] wrote.
#[derive(Clone, Copy, Default)]
struct Sent {
    /// A question.
    asked: bool,
    /// A PING, among others.
    pinged: bool,
}

/// Frames first those that leave once, then the questions that are due.
fn push_control(
    control: &mut Control,
    mut attached: Attached<'_>,
    plain: &mut PlainWriter<'_>,
    Leaving { now, pn, rto }: Leaving,
) -> Sent {
    let mut sent = Sent::default();
    let Some(queues) = control.queues.get_mut() else {
        if let Some(renewal) = attached.renewal {
            renewal.push_answer(plain);
        }
        return sent;
    };
    // First of all: the rest may be taken only from one who is proved.
    if control.proof_due
        && let Some(Proving::Made(made)) = queues.proving.as_deref()
    {
        if !plain.push_frame(&Frame::Prove { public: &made.public, mac: &made.mac }) {
            return sent;
        }
        control.proof_due = false;
    }
    while let Some(frame) = queues.once.front() {
        if !plain.push_frame(frame) {
            return sent;
        }
        queues.once.pop_front();
    }
    if !attached.renewal.as_deref_mut().is_none_or(|renewal| renewal.push_answer(plain)) {
        return sent;
    }
    let patience = super::timers::patience(rto);
    for asking in queues.asks.iter_mut().filter(|ask| is_due(ask, now, patience)) {
        if !push_ask(asking, &attached, queues.offer.as_deref(), plain) {
            return sent;
        }
        sent.asked = true;
        sent.pinged |= matches!(asking.what, Ask::Ping { .. } | Ask::Probe | Ask::Announce { .. });
        if asking.sent == 0 {
            asking.first_pn = pn;
            asking.first_sent = now;
        }
        let doubled = rto * (1 << u32::from(asking.sent).min(6));
        asking.sent = asking.sent.saturating_add(1);
        // The end of all patience is an instant of its own, not the next repetition after it.
        let over = asking.first_sent + patience;
        asking.due = (now + doubled.min(ASK_MAX_WAIT).max(rto)).min(over);
    }
    sent
}

fn push_ask(
    asking: &Asking,
    attached: &Attached<'_>,
    offer: Option<&Offer>,
    plain: &mut PlainWriter<'_>,
) -> bool {
    let req = asking.req;
    match asking.what {
        Ask::Ping { next_s, .. } | Ask::Announce { next_s } => plain.push_frame(&Frame::Ping { req, next_s }),
        Ask::Probe => plain.push_frame(&Frame::Ping { req, next_s: 0 }),
        Ask::Prove => plain.push_frame(&Frame::ProveAsk { req }),
        Ask::NetKey { .. } => offer.is_none_or(|offer| plain.push_frame(&offer.frame(req))),
        Ask::Lookup { id, .. } => plain.push_frame(&Frame::Lookup { req, id }),
        Ask::Register { epoch, ephemeral, lease_s } => {
            if let Some(Proof::Made(made)) = attached.proof
                && !plain.push_frame(&Frame::Prove { public: &made.public, mac: &made.mac })
            {
                return false;
            }
            plain.push_frame(&Frame::Register { req, ephemeral, epoch, lease_s })
        }
        Ask::Rekey => attached.renewal.as_ref().is_none_or(|renewal| renewal.push_rekey(req, plain)),
        Ask::NewToken => {
            let change = attached.renewal.as_ref().and_then(|renewal| renewal.token.as_ref());
            change.is_none_or(|change| change.push(req, plain))
        }
    }
}
