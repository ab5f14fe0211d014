//! Changes of a session's keys (protocol, section 4.2): REKEY and REKEYED, when they are due, and who wins if both
//! sides ask. The keys themselves are [`Secure`](crate::session::Secure)'s.
//!
//! ```text
//!           a wish        REKEY left            REKEYED              a packet of the new keys, + 3·RTO
//!  (nothing) ────> wished ─────────> asked ───────────────> previous ───────────────────────> (nothing)
//!                                      │ the initiator's REKEY    ^
//!                    REKEY             v                          │ a packet of the new keys
//!  (nothing) ─────────────────────> answered ─────────────────────┘
//! ```
//! A wish that the initiator's own outran is fulfilled by that one, unless it has a secret to add.
use alloc::{boxed::Box, collections::VecDeque, vec::Vec};

use zeroize::Zeroizing;

use super::{
    Net,
    control::Ask,
    renew_token::TokenChange,
    session::{Session, State},
    timers,
};
use crate::{
    config::Rate,
    error::{CloseReason, CommandError, ControlError},
    event::{Event, RequestId, SessionId},
    relay::budget::TokenBucket,
    session::{
        keys::{DhSecret, NetKey, Role},
        pn::Pn,
    },
    stats::Drop,
    time::{Duration, Time},
    wire::{
        bundle::PlainWriter,
        frame::{CloseCode, Frame, KeyBytes, Req},
    },
};

/// Changes of keys that wait in one session; beyond it a command fails.
const MAX_WISHES: usize = 8;

/// What is on its way to change in a session: its keys, or its token. Sessions at rest have none of this.
#[derive(Default)]
pub(crate) struct Renewal {
    wishes: VecDeque<Wish>,
    /// Our REKEY that is not answered yet.
    asked: Option<Asked>,
    /// The peer's REKEY, until it uses the keys that we answered with.
    answered: Option<Answered>,
    /// Until when the generation before still opens, once that is known.
    previous_until: Option<Time>,
    pub(super) token: Option<TokenChange>,
    /// Exchanges that this session has left, while that is not all of them.
    exchanges: Option<Exchanges>,
    /// When the last question stayed unanswered in a peer's silence; the next goes when it is heard again, so that
    /// nobody who sleeps is called for hours.
    given_up: Option<Time>,
}

/// One session's share of the key exchanges.
struct Exchanges {
    bucket: TokenBucket,
    /// All of them are there again.
    full_at: Time,
}

/// Whom to tell that something has changed, and when to tell that it took too long. The change itself goes on.
#[derive(Clone, Copy)]
pub(super) struct User {
    pub(super) request: RequestId,
    pub(super) patience_until: Time,
}

/// What a user mixes into new keys.
struct Secret {
    bytes: Zeroizing<[u8; NetKey::MAX_LEN]>,
    len: usize,
}

impl Secret {
    fn new(secret: &[u8]) -> Result<Secret, CommandError> {
        let len = secret.len();
        if !(NetKey::MIN_LEN..=NetKey::MAX_LEN).contains(&len) {
            return Err(CommandError::SecretLength(len));
        }
        let mut bytes = Zeroizing::new([0; NetKey::MAX_LEN]);
        bytes.iter_mut().zip(secret).for_each(|(place, byte)| *place = *byte);
        Ok(Secret { bytes, len })
    }

    fn expose(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

struct Wish {
    user: Option<User>,
    secret: Option<Secret>,
    /// It was asked for when the peer's REKEY came, which had precedence.
    yielded: bool,
}

struct Asked {
    wish: Wish,
    generation: u32,
    ephemeral: DhSecret,
}

struct Answered {
    /// Of the last REKEY, which the answer repeats.
    req: Req,
    generation: u32,
    theirs: [u8; 32],
    ours: [u8; 32],
    /// REKEYED has to leave, for the first time or again.
    is_owed: bool,
}

/// REKEY as it came.
struct Question<'a> {
    req: Req,
    generation: u32,
    ephemeral: &'a [u8; 32],
    key: KeyBytes<'a>,
}

impl Renewal {
    /// The instant at which something is due.
    pub(super) fn deadline(&self) -> Time {
        let wishes = self.wishes.iter().chain(self.asked.iter().map(|asked| &asked.wish));
        let users = wishes.filter_map(|wish| wish.user).map(|user| user.patience_until);
        let token = self.token.as_ref().map_or(Time::NEVER, TokenChange::deadline);
        let full_at = self.exchanges.as_ref().map(|exchanges| exchanges.full_at);
        users.chain(self.previous_until).chain(full_at).min().unwrap_or(Time::NEVER).min(token)
    }

    /// Writes the REKEYED that is owed; false if it needs the next packet.
    pub(super) fn push_answer(&mut self, plain: &mut PlainWriter<'_>) -> bool {
        let Some(answered) = self.answered.as_mut().filter(|answered| answered.is_owed) else { return true };
        let Answered { req, generation, ours, .. } = &*answered;
        let frame = Frame::Rekeyed { req: *req, generation: *generation, ephemeral: ours };
        answered.is_owed = !plain.push_frame(&frame);
        !answered.is_owed
    }

    /// Writes our REKEY; false if it needs the next packet.
    pub(super) fn push_rekey(&self, req: Req, plain: &mut PlainWriter<'_>) -> bool {
        let Some(asked) = &self.asked else { return true };
        let key = asked.wish.secret.as_ref().and_then(|secret| KeyBytes::new(secret.expose()));
        plain.push_frame(&Frame::Rekey {
            req,
            generation: asked.generation,
            ephemeral: asked.ephemeral.public(),
            key: key.unwrap_or(KeyBytes::NONE),
        })
    }

    /// A question stayed unanswered, and the peer silent.
    pub(super) fn give_up(&mut self, now: Time) {
        self.given_up = Some(now);
    }

    /// Has what sleeps asked again at once: its user is waiting for it.
    pub(super) fn wake(&mut self) {
        self.given_up = None;
    }

    fn is_rekeying(&self) -> bool {
        self.asked.is_some() || !self.wishes.is_empty()
    }

    fn is_over(&self) -> bool {
        !self.is_rekeying()
            && self.answered.is_none()
            && self.previous_until.is_none()
            && self.token.is_none()
            && self.exchanges.is_none()
    }

    /// Takes one exchange of those that this session has left.
    fn take_exchange(&mut self, now: Time, rate: Rate) -> bool {
        let bucket = || TokenBucket::new(rate.per_second, rate.burst);
        // A bucket that has what is left of its burst too refills in as long as all of it takes.
        let refill = Duration::from_secs(u64::from(rate.burst / rate.per_second.max(1)) + 1);
        let exchanges =
            self.exchanges.get_or_insert_with(|| Exchanges { bucket: bucket(), full_at: now + refill });
        let taken = exchanges.bucket.take(now, 1);
        if taken {
            exchanges.full_at = now + refill;
        }
        taken
    }

    /// Takes out the users whose patience is over.
    fn take_impatient(&mut self, now: Time) -> Vec<User> {
        let wishes = self.wishes.iter_mut().chain(self.asked.iter_mut().map(|asked| &mut asked.wish));
        let users = wishes.map(|wish| &mut wish.user);
        let users = users.chain(self.token.iter_mut().flat_map(TokenChange::users));
        users.filter_map(|user| user.take_if(|user| now >= user.patience_until)).collect()
    }

    /// Takes out everybody who waits for something.
    fn take_users(&mut self) -> Vec<User> {
        self.take_impatient(Time::NEVER)
    }
}

impl Session {
    /// The instant at which something of a change of keys or tokens is due.
    pub(crate) fn renewal_due(&self) -> Time {
        self.rare.renewal.as_ref().map_or(Time::NEVER, |renewal| renewal.deadline())
    }

    /// This session's keys are another handshake's now: what was agreed on under the old ones is void. What was asked
    /// for is asked for again under the new ones.
    pub(crate) fn restart_renewal(&mut self) {
        self.control.withdraw(|ask| matches!(ask, Ask::Rekey | Ask::NewToken | Ask::Announce { .. }));
        let Some(renewal) = self.renewal_mut() else { return };
        if let Some(asked) = renewal.asked.take() {
            renewal.wishes.push_front(asked.wish);
        }
        (renewal.answered, renewal.previous_until, renewal.given_up) = (None, None, None);
    }

    /// Frees what a change that is over leaves behind.
    pub(super) fn tidy_renewal(&mut self) {
        let has_other_keys = self.secure.as_ref().is_some_and(|secure| secure.has_other_keys());
        if !has_other_keys && self.rare.renewal.as_ref().is_some_and(|renewal| renewal.is_over()) {
            self.take_renewal();
        }
    }
}

impl Net {
    /// Changes the keys of a session now, and mixes a secret into them if there is one: 16 to 64 bytes that the peer
    /// is told inside the session. It can only add: whoever knows it, and nothing else, can still read nothing.
    ///
    /// The end comes as [`Event::ControlDone`]. [`ControlError::TimedOut`] there means that the peer does not answer;
    /// the change still happens once it does.
    pub fn rekey(
        &mut self,
        now: Time,
        session: SessionId,
        id: RequestId,
        secret: Option<&[u8]>,
    ) -> Result<(), CommandError> {
        let secret = secret.map(Secret::new).transpose()?;
        let user = self.control_user(now, session, id)?;
        let state = self.table.get_mut(session).ok_or(CommandError::Stale)?;
        let renewal = state.rare.begin().renewal.get_or_insert_default();
        if renewal.wishes.len() >= MAX_WISHES {
            return Err(CommandError::QueueFull);
        }
        renewal.wishes.push_back(Wish { user: Some(user), secret, yielded: false });
        renewal.wake();
        self.touch(session);
        Ok(())
    }

    /// Who waits for a command in a session that takes one, and for how long.
    pub(super) fn control_user(
        &self,
        now: Time,
        session: SessionId,
        request: RequestId,
    ) -> Result<User, CommandError> {
        let state = self.table.get(session).ok_or(CommandError::Stale)?;
        if matches!(state.state, State::Closing { .. }) {
            return Err(CommandError::Closed);
        }
        let patience = timers::patience(state.line.rto(&self.line_config));
        Ok(User { request, patience_until: now + patience })
    }

    pub(super) fn control_done(&mut self, user: Option<User>, result: Result<(), ControlError>) {
        if let Some(User { request, .. }) = user {
            self.event(Event::ControlDone { request, result });
        }
    }

    /// A packet has left: perhaps it is time for new keys.
    pub(super) fn rekey_if_due(&mut self, now: Time, id: SessionId) {
        let (packets, interval) = (self.config.limits.rekey_packets, self.config.timers.rekey_interval);
        let Some(session) = self.table.get_mut(id).filter(|session| session.is_open()) else { return };
        let Some(secure) = session.secure.as_mut() else { return };
        if !secure.is_rekey_due(now, packets, interval) || secure.is_prepared() {
            return;
        }
        let renewal = session.rare.begin().renewal.get_or_insert_default();
        if !renewal.is_rekeying() {
            renewal.wishes.push_back(Wish { user: None, secret: None, yielded: false });
            self.touch(id);
        }
    }

    /// A packet did not open: too many of them, and the keys change, or the session ends.
    pub(super) fn on_forged(&mut self, now: Time, id: SessionId) {
        let Some(secure) = self.table.get(id).and_then(|session| session.secure.as_ref()) else { return };
        if secure.is_beset() {
            return self.end(now, id, CloseReason::KeyLimit, Some(CloseCode::KEY_LIMIT));
        }
        if secure.is_under_attack() {
            self.rekey_if_due(now, id);
        }
    }

    /// Starts what waits, and asks again for what has no answer. Called before a session's packets leave.
    pub(super) fn renew(&mut self, now: Time, id: SessionId) {
        let Some(session) = self.table.get(id).filter(|session| session.is_open()) else { return };
        let (Some(renewal), Some(secure)) = (&session.rare.renewal, &session.secure) else { return };
        let begins = renewal.asked.is_none() && !renewal.wishes.is_empty() && !secure.is_prepared();
        let ephemeral = begins.then(|| self.ephemeral());
        let Some(session) = self.table.get_mut(id) else { return };
        let renewal = session.rare.get_mut().and_then(|rare| rare.renewal.as_mut());
        let (Some(renewal), Some(secure)) = (renewal, &session.secure) else { return };
        if let Some(ephemeral) = ephemeral
            && let Some(wish) = renewal.wishes.pop_front()
        {
            renewal.asked = Some(Asked { wish, generation: secure.next_generation(), ephemeral });
        }
        if renewal.given_up.is_some_and(|time| session.last_heard <= time) {
            return;
        }
        renewal.given_up = None;
        if renewal.asked.is_some() {
            session.control.ensure(Ask::Rekey, now);
        }
        if renewal.token.as_ref().is_some_and(TokenChange::is_asked) {
            session.control.ensure(Ask::NewToken, now);
        }
        if secure.peer_follows() == Some(false) && !session.control.is_announcing() {
            let next_s = timers::next_s(session);
            session.control.ask(Ask::Announce { next_s }, now);
        }
        session.tidy_renewal();
    }

    /// REKEY or REKEYED, of which one a packet acts: each costs a Diffie-Hellman.
    pub(super) fn on_key_exchange(&mut self, now: Time, id: SessionId, frame: &Frame<'_>) {
        match *frame {
            Frame::Rekey { req, generation, ephemeral, key } => {
                self.on_rekey(now, id, &Question { req, generation, ephemeral, key });
            }
            Frame::Rekeyed { req, generation, ephemeral } => {
                self.on_rekeyed(now, id, req, generation, ephemeral);
            }
            _ => {}
        }
    }

    fn on_rekey(&mut self, now: Time, id: SessionId, question: &Question<'_>) {
        let Some(session) = self.table.get_mut(id).filter(|session| session.is_up()) else { return };
        let Some(secure) = &session.secure else { return };
        if question.generation != secure.next_generation() {
            // Late: that generation is up.
            return self.stats.drop(Drop::Replayed);
        }
        if let Some(renewal) = session.renewal_mut() {
            match &mut renewal.answered {
                Some(answered) if answered.theirs == *question.ephemeral => {
                    (answered.req, answered.is_owed) = (question.req, true);
                    return;
                }
                _ => {}
            }
            if renewal.asked.is_some() && session.role == Role::Initiator {
                // Both asked: ours wins, and the peer answers it.
                return;
            }
        }
        // The session's own first: one peer alone must not leave nothing for the others.
        let renewal = session.rare.begin().renewal.get_or_insert_default();
        if !renewal.take_exchange(now, self.config.limits.rekey_rate) || !self.dh_budget.take(now) {
            return self.stats.drop(Drop::OverBudget);
        }
        let ephemeral = self.ephemeral();
        let Ok(shared) = ephemeral.agree(question.ephemeral) else { return self.stats.drop(Drop::BadFrame) };
        let Some(session) = self.table.get_mut(id) else { return };
        let Some(secure) = &mut session.secure else { return };
        secure.prepare(session.role, &shared, Some(question.key.expose()));
        session.control.withdraw(|ask| matches!(ask, Ask::Rekey | Ask::Announce { .. }));
        let renewal = session.rare.begin().renewal.get_or_insert_default();
        if let Some(Asked { wish, .. }) = renewal.asked.take() {
            renewal.wishes.push_front(Wish { yielded: true, ..wish });
        }
        renewal.previous_until = None;
        renewal.answered = Some(Answered {
            req: question.req,
            generation: question.generation,
            theirs: *question.ephemeral,
            ours: *ephemeral.public(),
            is_owed: true,
        });
    }

    fn on_rekeyed(&mut self, now: Time, id: SessionId, req: Req, generation: u32, theirs: &[u8; 32]) {
        let Some(session) = self.table.get_mut(id).filter(|session| session.is_up()) else { return };
        let renewal = session.rare.get_mut().and_then(|rare| rare.renewal.as_mut());
        let (Some(renewal), Some(secure)) = (renewal, &mut session.secure) else { return };
        let is_awaited = session.control.has_asked(req, &Ask::Rekey);
        let is_asked = renewal.asked.as_ref().is_some_and(|asked| asked.generation == generation);
        if !is_awaited || !is_asked {
            return self.stats.drop(Drop::Replayed);
        }
        if !renewal.take_exchange(now, self.config.limits.rekey_rate) || !self.dh_budget.take(now) {
            return self.stats.drop(Drop::OverBudget);
        }
        let Some(asked) = renewal.asked.as_ref() else { return };
        let Ok(shared) = asked.ephemeral.agree(theirs) else { return self.stats.drop(Drop::BadFrame) };
        let Some(Asked { wish, .. }) = renewal.asked.take() else { return };
        secure.switch(session.role, &shared, wish.secret.as_ref().map(Secret::expose));
        // The peer changes once it hears from us; until then what it sends opens too.
        renewal.previous_until = None;
        if let Some(asking) = session.control.answered(req, |ask| *ask == Ask::Rekey) {
            secure.answered(Pn(asking.first_pn));
            session.was_answered(now);
        }
        self.stats.rekeys += 1;
        self.control_done(wish.user, Ok(()));
    }

    /// A packet opened while there were keys of two generations, when this one's number was `before`.
    pub(super) fn on_opened(&mut self, now: Time, id: SessionId, before: u32) {
        let Some(session) = self.table.get_mut(id) else { return };
        let until = now + 3 * session.line.rto(&self.line_config);
        let Some(secure) = &session.secure else { return };
        let has_switched = secure.generation() != before;
        let renewal = session.rare.begin().renewal.get_or_insert_default();
        if secure.peer_follows() == Some(true) && renewal.previous_until.is_none() {
            renewal.previous_until = Some(until);
        }
        if !has_switched {
            return;
        }
        self.stats.rekeys += 1;
        renewal.answered = None;
        let Some(wish) = renewal.wishes.front_mut().filter(|wish| wish.yielded) else { return };
        wish.yielded = false;
        if wish.secret.is_none() {
            let user = wish.user.take();
            renewal.wishes.pop_front();
            self.control_done(user, Ok(()));
        }
    }

    /// What is due of a change of keys or tokens happens.
    pub(super) fn renewal_timeout(&mut self, now: Time, id: SessionId) {
        let Some(session) = self.table.get_mut(id).filter(|session| now >= session.renewal_due()) else {
            return;
        };
        let Some(renewal) = session.renewal_mut() else { return };
        let impatient = renewal.take_impatient(now);
        renewal.exchanges.take_if(|exchanges| now >= exchanges.full_at);
        if renewal.previous_until.take_if(|until| now >= *until).is_some()
            && let Some(secure) = &mut session.secure
        {
            secure.drop_previous();
        }
        for user in impatient {
            self.control_done(Some(user), Err(ControlError::TimedOut));
        }
        self.token_timeout(now, id);
        if let Some(session) = self.table.get_mut(id) {
            session.tidy_renewal();
        }
    }

    /// The session ends, and nothing will change any more.
    pub(super) fn renewal_failed(&mut self, renewal: Option<Box<Renewal>>, why: CloseReason) {
        for user in renewal.map(|mut renewal| renewal.take_users()).unwrap_or_default() {
            self.control_done(Some(user), Err(ControlError::SessionLost(why)));
        }
    }
}
