//! Handshakes that others start, in the order of protocol section 4: shape, budget, keys, slot, and only then the curve.
use alloc::boxed::Box;

use rand_chacha::rand_core::Rng;

use super::{
    Net, Origin,
    session::{Beginning, HalfOpen, Path, Proof, Session, State},
};
use crate::{
    error::CloseReason,
    event::{Event, SessionId},
    id::Id,
    relay::budget::source_key,
    session::{
        Secure, handshake,
        handshake::CookieSecret,
        keys::{PairKey, Role},
    },
    stats::Drop,
    time::{Duration, Time},
    wire::{
        bundle::{Element, elements},
        frame::Frame,
        packet::{Init, RespPayload, Suite},
    },
};

/// A session heard within this time is never evicted for another of the same peer.
const RECENTLY_HEARD: Duration = Duration::from_secs(60);
/// Cookies' secrets change so often; the previous one is accepted too.
const COOKIE_ROTATION: Duration = Duration::from_secs(120);

/// PROVE comes with the first packet of a session, or not at all: what it is checked with is a secret, and 100 bytes.
const PROVE_PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of a PATH_CHALLENGE frame.
const CHALLENGE_LEN: usize = 1 + 8;

/// An INIT that comes again so soon, from where RESP went, is no initiator's: those of one handshake are 0.9 s apart or
/// more (protocol, section 4).
const REPEAT_PAUSE: Duration = Duration::from_millis(500);

/// What the table of half-open handshakes says of an INIT.
enum Standing {
    New,
    /// It was answered, and this is due once more.
    Again(SessionId, [u8; 104]),
    /// It was answered there just now, or in too many places.
    Answered,
    /// The slot, or all of this peer's, are taken.
    Crowded,
}

impl Net {
    pub(super) fn on_init(&mut self, now: Time, origin: Origin, init: &Init<'_>) {
        let mine = init.dst == self.config.id || init.dst == Id::ANY;
        if !mine || !self.config.accept {
            return self.stats.drop(Drop::NotMine);
        }
        let vouched = match origin {
            Origin::Direct(_) => true,
            Origin::Through { src, .. } => src == init.src,
        };
        if init.src == self.config.id || init.src == Id::ANY || !vouched {
            return self.stats.drop(Drop::BadHandshake);
        }
        let standing = self.standing(now, origin.path(), init);
        if matches!(standing, Standing::Answered) {
            // A copy, or what would be one if it were authentic: cheaper to ignore than to find out.
            return self.stats.drop(Drop::OverBudget);
        }
        let source = match origin {
            Origin::Direct(address) => source_key(address, self.hash_secret),
            // The neighbour vouches for its guests, so each has a budget of its own.
            Origin::Through { src, .. } => self.hash_id(src),
        };
        if !self.could_answer(now, init) || !self.init_budget.take(source, now, 1) {
            return self.stats.drop(Drop::OverBudget);
        }
        let Some((opened, pair)) = self.open_init(now, init) else {
            return self.stats.drop(Drop::BadHandshake);
        };
        self.init_budget.give_back(source, 1);
        let takes_enough = opened.payload().max_udp >= super::MIN_MAX_UDP;
        let Some(suite) = init.suites.choose(&self.config.suites).filter(|_| takes_enough) else {
            return self.stats.drop(Drop::BadHandshake);
        };

        let proven = self.cookie_is_valid(now, origin, init);
        match standing {
            Standing::Again(id, resp) => return self.answer_again(now, origin, id, init.src, &resp),
            Standing::Crowded if !proven => return self.send_cookie(now, origin, init, &pair),
            _ => {}
        }
        if proven {
            if !self.proven_dh_budget.take(now) {
                return self.stats.drop(Drop::OverBudget);
            }
            self.make_half_open_room(now, init);
        } else if self.is_pressed() || !self.dh_budget.take(now) {
            return self.send_cookie(now, origin, init, &pair);
        }
        if self.table.len() >= self.config.limits.sessions
            || self.table.half_open() >= self.config.limits.half_open
        {
            return self.stats.drop(Drop::TableFull);
        }
        self.answer_init(now, origin, init, &opened, suite);
    }

    /// Whether an INIT could be answered at all now, if it is authentic: to find out that it is costs something too.
    fn could_answer(&self, now: Time, init: &Init<'_>) -> bool {
        match init.cookie {
            Some(_) => self.proven_dh_budget.has(now),
            None => self.dh_budget.has(now) || self.cookie_budget.has(now),
        }
    }

    /// True while half of the places for half-open handshakes are taken. The other half is for those who show their
    /// address: one who has the net key and forges addresses can't keep everybody else out.
    fn is_pressed(&self) -> bool {
        self.table.half_open() >= self.config.limits.half_open.div_ceil(2)
    }

    /// RESP once more. It costs as much as a COOKIE, and so it is paid for.
    fn answer_again(&mut self, now: Time, origin: Origin, id: SessionId, to: Id, resp: &[u8]) {
        if !self.cookie_budget.take(now) {
            return self.stats.drop(Drop::OverBudget);
        }
        if let Some(State::HalfOpen(half_open)) = self.table.get_mut(id).map(|session| &mut session.state) {
            half_open.answered_to(origin.path(), now);
        }
        self.send_back(now, origin, to, resp);
    }

    fn standing(&self, now: Time, path: Path, init: &Init<'_>) -> Standing {
        let mut open = 0;
        for (id, session) in self.table.of_peer(init.src) {
            let State::HalfOpen(half_open) = &session.state else { continue };
            open += 1;
            if half_open.stoken == init.stoken {
                let is_due = half_open.may_answer_to(path, now, REPEAT_PAUSE);
                return match half_open.ephemeral == *init.ephemeral {
                    true if is_due => Standing::Again(id, half_open.resp),
                    true => Standing::Answered,
                    false => Standing::Crowded,
                };
            }
        }
        if open >= self.config.limits.half_open_per_peer { Standing::Crowded } else { Standing::New }
    }

    /// One who showed a cookie takes the slot of its stoken, or the oldest of its id.
    fn make_half_open_room(&mut self, now: Time, init: &Init<'_>) {
        let mut open = 0;
        let mut oldest: Option<(Time, SessionId)> = None;
        let mut taken = None;
        for (id, session) in self.table.of_peer(init.src) {
            let State::HalfOpen(half_open) = &session.state else { continue };
            open += 1;
            if half_open.stoken == init.stoken {
                taken = Some(id);
            }
            if oldest.is_none_or(|(expires, _)| half_open.expires < expires) {
                oldest = Some((half_open.expires, id));
            }
        }
        let full = open >= self.config.limits.half_open_per_peer;
        if let Some(id) = taken.or(oldest.filter(|_| full).map(|(_, id)| id)) {
            self.forget(now, id);
        }
    }

    fn answer_init(
        &mut self,
        now: Time,
        origin: Origin,
        init: &Init<'_>,
        opened: &handshake::OpenedInit,
        suite: Suite,
    ) {
        let (ephemeral, ctoken, line) = (self.ephemeral(), self.token(), self.new_line());
        let fields = RespPayload {
            ctoken,
            suite,
            caps: self.caps(),
            max_udp: super::MAX_DATAGRAM as u16,
            mem_s: self.mem(now),
            unix_s: self.unix_s(now),
        };
        let Ok((resp, established)) = opened.respond(self.config.id, ephemeral, &fields) else {
            return self.stats.drop(Drop::BadHandshake);
        };
        self.stats.handshakes += 1;
        let half_open = HalfOpen {
            stoken: init.stoken,
            ephemeral: *init.ephemeral,
            resp,
            answered: [Some((origin.path(), now)), None, None, None],
            challenge: None,
            expires: now + self.config.timers.half_open,
            hash: *established.hash(),
        };
        let mut session = Session::new(
            now,
            Beginning {
                peer: init.src,
                own_token: ctoken,
                role: Role::Responder,
                path: origin.path(),
                state: State::HalfOpen(Box::new(half_open)),
                secure: Some(Secure::new(&established)),
                line,
                silence: self.config.timers.session_idle,
                max_udp: super::max_udp(established.init.max_udp),
            },
        );
        if self.config.registry {
            session.rare.begin_with(&mut self.spare.rare).proof = Some(Box::new(Proof::Expected {
                ephemeral: established.ephemeral.clone(),
                hash: *established.hash(),
                until: now + self.config.timers.half_open + PROVE_PATIENCE,
            }));
        }
        let id = self.table.insert(session);
        self.send_back(now, origin, init.src, &resp);
        self.arm(id);
    }

    /// The first packet of a session whose INIT came from several places: the one that it comes from is asked to show that
    /// it is there, and the packet counts as lost; it is repeated. True if there is nothing more to do about it.
    pub(super) fn challenge_place(
        &mut self,
        now: Time,
        id: SessionId,
        origin: Origin,
        (plain, len): (&[u8], usize),
    ) -> bool {
        let (path, fresh) = (origin.path(), self.rng.next_u64().to_be_bytes());
        let Some(session) = self.table.get_mut(id) else { return true };
        let State::HalfOpen(half_open) = &mut session.state else { return false };
        let response = elements(plain).ok().and_then(|mut elements| {
            elements.find_map(|element| match element {
                Element::Frame(Frame::PathResponse(data)) => Some(data),
                _ => None,
            })
        });
        if let Some(data) = response {
            if half_open.challenge == Some((path, data)) {
                half_open.answered = [Some((path, now)), None, None, None];
            }
            // It leaves by itself, without the CONFIRM that may name another session: that brings this one up.
            return true;
        }
        if !half_open.is_ambiguous() {
            return false;
        }
        // No more than came: an honest first packet holds a PING, which is padded to pay for this.
        let pays = session.secure.as_ref().is_some_and(|secure| secure.sealed_len(CHALLENGE_LEN) <= len);
        half_open.challenge = Some((path, fresh));
        if pays {
            self.send_frame(now, id, path, &Frame::PathChallenge(fresh));
        }
        true
    }

    /// The first packet under the new keys: the peer is who it says, and it is there.
    pub(super) fn confirm(&mut self, now: Time, id: SessionId, origin: Origin) {
        let Some(session) = self.table.get_mut(id) else { return };
        session.path = origin.path();
        session.state = State::Up;
        session.last_heard = now;
        let peer = session.peer;
        self.table.confirmed();
        self.event(Event::Accepted { session: id, peer });
        self.arm(id);
    }

    /// Keeps a peer's sessions within their cap, once what the newest brought has acted. Those that hold a registration,
    /// or wait for one, stay: whoever only has our key could else drive the device that owns the id out of it.
    pub(super) fn evict_beyond_cap(&mut self, now: Time, newest: SessionId) {
        let Some(peer) = self.table.get(newest).map(|session| session.peer) else { return };
        let mut count = 0;
        let mut longest_silent: Option<(Time, SessionId)> = None;
        for (id, session) in self.table.of_peer(peer).filter(|(_, session)| session.is_up()) {
            count += 1;
            let heard = session.last_heard;
            if !session.is_registrant() && longest_silent.is_none_or(|(time, _)| heard < time) {
                longest_silent = Some((heard, id));
            }
        }
        if count <= self.config.limits.sessions_per_peer {
            return;
        }
        let newest_may_go = self.table.get(newest).is_some_and(|session| !session.is_registrant());
        let victim = match longest_silent {
            // All were heard lately, so the one that has just come up has to go.
            Some((heard, _)) if now.since(heard) <= RECENTLY_HEARD && newest_may_go => {
                self.stats.drop(Drop::TableFull);
                Some(newest)
            }
            silent => silent.map(|(_, id)| id),
        };
        if let Some(id) = victim {
            self.end(now, id, CloseReason::Evicted, Some(crate::wire::frame::CloseCode::TABLE_FULL));
        }
    }

    fn send_back(&mut self, now: Time, origin: Origin, to: Id, bytes: &[u8]) {
        self.send_raw(now, origin.path(), to, bytes);
    }

    fn cookie_address(&self, origin: Origin) -> Option<core::net::SocketAddr> {
        match origin {
            Origin::Direct(address) => Some(address),
            Origin::Through { neighbour, .. } => match self.path_of_neighbour(neighbour)? {
                Path::Direct(address) => Some(address),
                Path::Through(_) => None,
            },
        }
    }

    fn cookie_is_valid(&mut self, now: Time, origin: Origin, init: &Init<'_>) -> bool {
        let Some(address) = self.cookie_address(origin).filter(|_| init.cookie.is_some()) else {
            return false;
        };
        self.rotate_cookie_secrets(now);
        self.cookie_secrets.iter().any(|secret| secret.verify(address, init))
    }

    fn send_cookie(&mut self, now: Time, origin: Origin, init: &Init<'_>, pair: &PairKey) {
        let Some(address) = self.cookie_address(origin) else { return };
        if !self.cookie_budget.take(now) {
            return self.stats.drop(Drop::OverBudget);
        }
        self.rotate_cookie_secrets(now);
        self.stats.cookies += 1;
        // An INIT to whoever is there is answered under our own id; the initiator takes either.
        let own = self.config.id;
        let reply = self.cookie_secrets[0].reply(address, init, own, pair);
        self.send_back(now, origin, init.src, &reply);
    }

    fn rotate_cookie_secrets(&mut self, now: Time) {
        let age = now.since(self.cookie_rotated);
        if age < COOKIE_ROTATION {
            return;
        }
        self.cookie_rotated = now;
        self.cookie_secrets.swap(0, 1);
        self.cookie_secrets[0] = CookieSecret::from_bytes(super::fresh_secret(&mut self.rng));
        if age >= 2 * COOKIE_ROTATION {
            self.cookie_secrets[1] = CookieSecret::from_bytes(super::fresh_secret(&mut self.rng));
        }
    }
}
