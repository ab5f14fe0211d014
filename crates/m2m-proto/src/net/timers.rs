//! Deadlines: one for a session, the earliest of all that it waits for. One that has moved on when it comes is put back.
use super::{
    Net,
    control::{Ask, Asking},
    session::{Session, State},
};
use crate::{
    error::{CloseReason, ControlError},
    event::{Event, SessionId},
    time::{Duration, Time},
    wire::frame::{CloseCode, FoundStatus},
};

/// A question without an answer for so long, or for four RTOs if that is longer, means that nobody is there.
const ASK_PATIENCE: Duration = Duration::from_secs(8);

/// How long a question waits for its answer in all, with this retransmission timeout.
pub(super) fn patience(rto: Duration) -> Duration {
    ASK_PATIENCE.max(4 * rto)
}

impl Net {
    /// Has the session's turn come when its next deadline does, if it doesn't come earlier already.
    pub(super) fn arm(&mut self, id: SessionId) {
        // What it has to send leaves first (`flush`), and its deadlines follow from that.
        let Some(session) = self.table.get(id).filter(|session| !session.dirty) else { return };
        let deadline = session.deadline();
        self.table.deadlines.bring_forward(id.slot, deadline);
    }

    pub(super) fn next_timeout(&self) -> Time {
        self.table.deadlines.first().min(self.next_host_timeout())
    }

    pub(super) fn run_timers(&mut self, now: Time) {
        while let Some(slot) = self.table.deadlines.pop_due(now) {
            let Some((id, session)) = self.table.at(slot) else { continue };
            // A deadline that moved on since it was put here comes again at its new time.
            if session.deadline() <= now {
                self.session_timeout(now, id);
            }
            self.arm(id);
        }
        self.run_hosts(now);
    }

    fn session_timeout(&mut self, now: Time, id: SessionId) {
        let Some(session) = self.table.get_mut(id) else { return };
        match session.state {
            State::Connecting(_) => {
                self.line_timeout(now, id);
                self.send_init(now, id);
            }
            State::HalfOpen(_) | State::Closing { .. } => self.forget(now, id),
            State::Up => self.up_timeout(now, id),
        }
    }

    fn up_timeout(&mut self, now: Time, id: SessionId) {
        let Some(session) = self.table.get_mut(id) else { return };
        if now >= session.last_heard + session.silence.get() {
            return self.end(now, id, CloseReason::Idle, Some(CloseCode::DONE));
        }
        if now >= session.lease_due() {
            let peer = session.peer;
            self.unregister_session(peer, id);
        }
        if let Some(session) = self.table.get_mut(id).filter(|session| session.proof_due() <= now) {
            session.take_proof();
        }
        if now >= self.table.get(id).map_or(Time::NEVER, Session::probe_due) {
            self.answer_askers(id, FoundStatus::SILENT);
        }
        let question = self.table.get(id).is_some_and(|session| session.has_unanswered_question(now));
        let is_unproven = self.table.get(id).is_some_and(Session::is_unproven);
        if self.give_up_asks(now, id) && !self.may_come_back(now, id) {
            let why = if is_unproven { CloseReason::WrongDevice } else { CloseReason::Lost };
            return self.end(now, id, why, Some(CloseCode::DONE));
        }
        self.drive_attempt(now, id);
        self.renewal_timeout(now, id);
        let Some(session) = self.table.get_mut(id) else { return };
        if now >= session.ping_due() {
            let next_s = next_s(session);
            session.control.queues.begin_with(&mut self.spare.queues);
            session.control.ask(Ask::Ping { user: None, next_s }, now);
        }
        let message = self.line_timeout(now, id);
        self.path_timeout(now, id);
        if question || message {
            self.recover_if_silent(now, id);
        }
        self.touch(id);
    }

    /// True if something is unanswered that was sent again and again.
    fn line_timeout(&mut self, now: Time, id: SessionId) -> bool {
        let Some((session, mut cx)) = self.line_of(now, id) else { return false };
        session.line.be_patient(session.is_recovering());
        let unanswered = session.line.handle_timeout(&mut cx);
        self.tell_line_events(id, None);
        unanswered
    }

    /// Ends the questions that waited too long; true if one of them means that the session is lost.
    fn give_up_asks(&mut self, now: Time, id: SessionId) -> bool {
        let Some(session) = self.table.get_mut(id) else { return false };
        let patience = patience(session.line.rto(&self.line_config));
        let heard = session.last_heard;
        let mut failed = alloc::vec::Vec::new();
        let is_over = |ask: &Asking| ask.sent > 0 && now >= ask.first_sent + patience;
        let asks = session.control.queues.get_mut().map(|queues| &mut queues.asks);
        failed.extend(asks.into_iter().flat_map(|asks| asks.extract_if(.., |ask| is_over(ask))));
        if failed.iter().any(|ask| matches!(ask.what, Ask::NetKey { .. })) {
            session.control.withdraw_offer();
        }
        let mut lost = false;
        for ask in failed {
            // Whoever sends other things is alive: then only the question got lost, and the next ping asks again.
            let silent = heard <= ask.first_sent;
            lost |= matches!(ask.what, Ask::Ping { user: None, .. } | Ask::Register { .. }) && silent;
            lost |= ask.what == Ask::Prove;
            if let (Ask::Register { .. }, false, Some(session)) = (ask.what, silent, self.table.get_mut(id)) {
                // A slow store, or bad luck: without it this session is of no use.
                session.control.ask(ask.what, now);
            }
            if let (Ask::Rekey | Ask::NewToken | Ask::Announce { .. }, true, Some(renewal)) =
                (ask.what, silent, self.table.get_mut(id).and_then(|session| session.renewal_mut()))
            {
                // Asked again at once, or when the peer is heard again: never given up while the session lives.
                renewal.give_up(now);
            }
            self.ask_failed(ask.what, ControlError::TimedOut);
        }
        lost
    }

    /// A question of ours will not be answered any more.
    pub(super) fn ask_failed(&mut self, what: Ask, why: ControlError) {
        match what {
            Ask::Ping { user: Some(request), .. } => self.event(Event::Pong { request, rtt: None }),
            Ask::Lookup { why: super::control::LookupFor::User(request), .. } => {
                self.event(Event::Found { request, status: None });
            }
            Ask::NetKey { user: request } => self.event(Event::ControlDone { request, result: Err(why) }),
            _ => {}
        }
    }

    /// Drops a session that nobody was told of.
    pub(super) fn forget(&mut self, _now: Time, id: SessionId) {
        self.table.remove(id);
    }

    /// The longest ping interval of a session: never so long that its registration could lapse between two.
    pub(super) fn ping_cap(&self, id: SessionId) -> Duration {
        let timers = &self.config.timers;
        let is_host = self.table.get(id).is_some_and(|session| session.host.is_some());
        let max = if is_host { timers.ping_max.min(timers.host_ping_max) } else { timers.ping_max };
        let lease = self.table.get(id).and_then(|session| self.hosts.get(session.host_place()?)?.lease);
        lease.map_or(max, |lease| max.min(lease / 3).max(Duration::from_secs(1)))
    }
}

/// What PING says of the next one: the interval as it will be once this one is answered, rounded up, and a second's
/// grace for the timers of both sides.
pub(super) fn next_s(session: &Session) -> u16 {
    let keepalive = session.rare.opener.as_ref().map(|opener| &opener.keepalive);
    match keepalive.map_or(Duration::ZERO, |keepalive| keepalive.interval) {
        interval if interval.is_zero() => 0,
        interval => u16::try_from((interval + interval / 4).as_secs() + 2).unwrap_or(u16::MAX),
    }
}
