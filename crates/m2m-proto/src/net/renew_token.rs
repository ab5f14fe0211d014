//! Token update (protocol, section 4.3): the peer labels what it sends us with another token from now on, so that who
//! watches two paths, or one for long, has less to tell sessions by.
//!
//! ```text
//!             NEW_TOKEN                 DONE                        3·RTO
//!  (nothing) ──────────> both open ──────────────> both open still ──────> the new one alone
//! ```
use super::{Net, control::Ask, rekey::User};
use crate::{
    error::{CommandError, ControlError},
    event::{RequestId, SessionId},
    session::pn::Pn,
    time::Time,
    wire::{
        bundle::PlainWriter,
        frame::{DoneStatus, Frame, Req},
        packet::Token,
    },
};

/// DONE: the peer takes the token.
const TAKEN: u8 = DoneStatus::DONE.0;
/// DONE: this is no token.
const NO_TOKEN: u8 = DoneStatus::BAD_TOKEN.0;

/// A token update under way.
pub(crate) struct TokenChange {
    step: Step,
    user: Option<User>,
    /// Another one is to follow.
    is_wanted_again: bool,
    /// Who waits for that.
    next: Option<User>,
}

#[derive(Clone, Copy)]
enum Step {
    /// The peer was asked to use this one.
    Asked(Token),
    /// The peer has a newer one; what it sent before opens until then.
    Old { token: Token, until: Time },
}

impl TokenChange {
    pub(super) fn is_asked(&self) -> bool {
        matches!(self.step, Step::Asked(_))
    }

    pub(super) fn deadline(&self) -> Time {
        let until = match self.step {
            Step::Asked(_) => Time::NEVER,
            Step::Old { until, .. } => until,
        };
        [self.user, self.next].into_iter().flatten().fold(until, |due, user| due.min(user.patience_until))
    }

    pub(super) fn users(&mut self) -> impl Iterator<Item = &mut Option<User>> {
        [&mut self.user, &mut self.next].into_iter()
    }

    /// Writes NEW_TOKEN; false if it needs the next packet.
    pub(super) fn push(&self, req: Req, plain: &mut PlainWriter<'_>) -> bool {
        match self.step {
            Step::Asked(token) => plain.push_frame(&Frame::NewToken { req, token: token.value() }),
            Step::Old { .. } => true,
        }
    }
}

impl Net {
    /// Gives a session another token, which the peer labels its packets with from now on.
    ///
    /// The end comes as [`Event::ControlDone`](crate::event::Event::ControlDone).
    /// [`ControlError::TimedOut`] there means that the peer does not answer; the change still happens once it does.
    /// While one is under way one more may wait.
    pub fn refresh_token(
        &mut self,
        now: Time,
        session: SessionId,
        id: RequestId,
    ) -> Result<(), CommandError> {
        let user = self.control_user(now, session, id)?;
        let state = self.table.get_mut(session).ok_or(CommandError::Stale)?;
        if let Some(renewal) = state.renewal_mut() {
            renewal.wake();
            if let Some(change) = &mut renewal.token {
                if change.is_wanted_again {
                    return Err(CommandError::QueueFull);
                }
                (change.is_wanted_again, change.next) = (true, Some(user));
                self.touch(session);
                return Ok(());
            }
        }
        if !self.start_token_change(session, Some(user)) {
            return Err(CommandError::QueueFull);
        }
        self.touch(session);
        Ok(())
    }

    /// The new token is honoured before the peer knows of it. False if the session has as many as it may.
    fn start_token_change(&mut self, id: SessionId, user: Option<User>) -> bool {
        let token = self.token();
        if !self.table.add_token(id, token) {
            return false;
        }
        if let Some(session) = self.table.get_mut(id) {
            let change = TokenChange { step: Step::Asked(token), user, is_wanted_again: false, next: None };
            session.rare.begin().renewal.get_or_insert_default().token = Some(change);
        }
        true
    }

    /// NEW_TOKEN: what goes to the peer is labelled so from now on. A late copy of an older one changes nothing, and is
    /// answered all the same: whoever sent it asks no longer.
    pub(super) fn on_new_token(&mut self, id: SessionId, req: Req, token: u32) {
        self.table.unindex_peer_token(id);
        let Some(session) = self.table.get_mut(id) else { return };
        let Some(secure) = &mut session.secure else { return };
        let status = match Token::new(token) {
            Some(token) => {
                secure.label_with(token);
                TAKEN
            }
            None => NO_TOKEN,
        };
        session.control.once(Frame::Done { req, status });
        self.table.index_peer_token(id);
    }

    /// DONE of a NEW_TOKEN.
    pub(super) fn on_token_done(&mut self, now: Time, id: SessionId, req: Req, status: u8) {
        let Some(session) = self.table.get_mut(id) else { return };
        let Some(asking) = session.control.answered(req, |ask| *ask == Ask::NewToken) else { return };
        if let Some(secure) = &mut session.secure {
            secure.answered(Pn(asking.first_pn));
        }
        session.was_answered(now);
        let old = session.own_token;
        let until = now + 3 * session.line.rto(&self.line_config);
        let Some(change) = session.renewal_mut().and_then(|renewal| renewal.token.as_mut()) else {
            return;
        };
        let Step::Asked(token) = change.step else { return };
        let user = change.user.take();
        if status == TAKEN {
            change.step = Step::Old { token: old, until };
            self.table.swap_token(id, token);
            return self.control_done(user, Ok(()));
        }
        change.step = Step::Old { token, until: now };
        self.control_done(user, Err(ControlError::Refused(status)));
        self.token_timeout(now, id);
    }

    /// Drops the old token once its time is over, and begins with the next that was asked for.
    pub(super) fn token_timeout(&mut self, now: Time, id: SessionId) {
        let Some(session) = self.table.get_mut(id) else { return };
        let Some(renewal) = session.renewal_mut() else { return };
        let over = |change: &mut TokenChange| matches!(change.step, Step::Old { until, .. } if now >= until);
        let Some(TokenChange { step: Step::Old { token, .. }, is_wanted_again, next, .. }) =
            renewal.token.take_if(over)
        else {
            return;
        };
        self.table.drop_token(id, token);
        if is_wanted_again && !self.start_token_change(id, next) {
            self.control_done(next, Err(ControlError::TimedOut));
        }
    }
}
