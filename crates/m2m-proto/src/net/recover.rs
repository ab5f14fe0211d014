//! Recovery (protocol, section 9): a session whose peer lost its memory, or is out of reach, is opened anew under its
//! old handle, and its line goes on.
//!
//! ```text
//!  hint that proves to be from the path, or 3 retransmissions unanswered
//!        initiator:  INIT beside the living session ──RESP──> new keys, CONFIRM{resume} ──RESUMED──> goes on
//!        responder:  PING; only the initiator has the key to the other's door
//! ```
//! Nothing old is given up before RESP: whoever forges a hint on the path costs one handshake in five seconds.
use alloc::vec::Vec;

use super::{
    Net, Origin, Path,
    connect::INIT_SCHEDULE,
    control::Ask,
    lazy::{Lazy, Rest},
    session::{Connecting, Keepalive, Session, SpareParts, State},
};
use crate::{
    error::CloseReason,
    event::{Event, SessionId},
    id::Id,
    relay::budget::address_key,
    session::{
        Secure, handshake,
        handshake::Established,
        keys::{PairKey, ResumeKey, Role},
    },
    stats::Drop,
    time::{Duration, Time},
    wire::{
        bundle::{Element, elements},
        frame::{CloseCode, Frame, Memory},
        packet::{KeyId, ResetHint, Resp, SuiteSet, Token},
    },
};

/// At most one new handshake in this time, whatever hints come (protocol, section 9).
const PAUSE: Duration = Duration::from_secs(5);
/// A question that was repeated so often without an answer is no chance any more (protocol, section 9).
const UNANSWERED_REPETITIONS: u8 = 3;
/// A peer of whom anything was heard within so many timeouts is there: then only what is unanswered got lost.
const SILENT_RTOS: u32 = 3;
/// A net is registered again within so much time after its host lost its memory (protocol, section 6.1): so long a
/// session through a host is not given up.
const RELAYED_PATIENCE: Duration = Duration::from_secs(60);
/// So long a direct session is not given up: time for two handshakes, on a path that loses much.
const DIRECT_PATIENCE: Duration = Duration::from_secs(20);
/// So often whoever answers, and does not say whether it remembers, is asked again. RESUMED lies in the packet that answers
/// CONFIRM, so that an honest one's is missing this often on no path that anything else passes.
const MAX_PRESSES: u8 = 16;
/// Handshakes that a peer may answer one after the other without saying whether it remembers: their sessions are named in
/// CONFIRM. Half a minute or more of them is no connection.
const MAX_TAGS: usize = 8;
/// Packets whose last bytes are remembered: a hint answers the first of a burst, and no burst has more.
const TAILS: usize = 16;

/// What an initiator keeps to open its session anew.
pub(crate) struct Opener {
    pub(super) keepalive: Keepalive,
    pair: PairKey,
    /// Whom INIT is for, as the user named it: all-zero for whoever is at the address.
    wanted: Id,
    /// When a handshake was started last; never yet.
    tried: Option<Time>,
    attempt: Option<Attempt>,
    /// The session before, until the peer has said whether it remembers.
    pub(super) resume: Option<Resume>,
}

/// What a session was before its last handshake, and before those that the peer never answered: any of them may be
/// what the peer knows it as.
#[derive(Default)]
pub(crate) struct Resume {
    keys: Vec<ResumeKey>,
    /// For the present handshake.
    pub(super) tags: Vec<[u8; 8]>,
    /// How often RESUMED was pressed for in the present session.
    presses: u8,
}

impl Resume {
    fn name(&mut self, key: ResumeKey, hash: &[u8; 32]) {
        self.keys.push(key);
        self.presses = 0;
        self.tags = self.keys.iter().map(|key| key.tag(hash)).collect();
    }
}

struct Attempt {
    token: Token,
    connecting: Connecting,
    /// Where INITs went: RESP is taken from there only, for it moves the session.
    paths: [Option<Path>; 3],
}

impl Opener {
    pub(super) fn new(pair: PairKey, wanted: Id, keepalive: Keepalive) -> Opener {
        Opener { keepalive, pair, wanted, tried: None, attempt: None, resume: None }
    }

    pub(super) fn deadline(&self) -> Time {
        self.attempt
            .as_ref()
            .map_or(Time::NEVER, |Attempt { connecting, .. }| connecting.next.min(connecting.deadline))
    }

    /// The handshake that a COOKIE with this token belongs to, if it comes from where an INIT went.
    pub(super) fn connecting(&mut self, token: Token, from: Path) -> Option<&mut Connecting> {
        let attempt = self.attempt.as_mut()?;
        (attempt.token == token && attempt.paths.contains(&Some(from))).then_some(&mut attempt.connecting)
    }
}

/// The last bytes of the packets that left lately: who repeats them has seen one.
#[derive(Default)]
pub(crate) struct Tails {
    next: u8,
    tails: [[u8; ResetHint::TAIL_LEN]; TAILS],
}

impl Rest for Tails {
    fn at_rest() -> &'static Tails {
        static AT_REST: Tails = Tails { next: 0, tails: [[0; ResetHint::TAIL_LEN]; TAILS] };
        &AT_REST
    }

    fn is_at_rest(&self) -> bool {
        // What was never written to.
        self.next == 0 && self.tails == Tails::at_rest().tails
    }
}

impl Session {
    /// Remembers a packet that leaves. True if it is the first that is remembered.
    pub(super) fn remember_tail(&mut self, packet: &[u8], spare: &mut SpareParts) -> bool {
        let Some(tail) = packet.last_chunk() else { return false };
        let tails = &mut self.rare.begin_with(&mut spare.rare).tails;
        let is_first = !tails.is_there();
        let tails = tails.begin_with(&mut spare.tails);
        if let Some(place) = tails.tails.get_mut(usize::from(tails.next) % TAILS) {
            *place = *tail;
        }
        tails.next = tails.next.wrapping_add(1);
        is_first
    }

    /// The keys are new: what hung on the old ones is void, and questions are asked again.
    fn start_over(&mut self, now: Time) {
        if let Some(rare) = self.rare.get_mut() {
            (rare.tails, rare.roaming) = (Lazy::NONE, None);
        }
        self.last_heard = now;
        self.was_answered(now);
        self.restart_renewal();
        self.control.ask_again(now);
    }

    /// A new handshake is on its way.
    pub(super) fn is_recovering(&self) -> bool {
        self.rare.opener.as_ref().is_some_and(|opener| opener.attempt.is_some())
    }

    /// What to name in CONFIRM: the peer hasn't said yet whether it remembers the session.
    pub(super) fn resume(&self) -> Option<&Resume> {
        self.rare.opener.as_ref()?.resume.as_ref()
    }

    /// A question was repeated as often as makes sense, and is due once more.
    pub(super) fn has_unanswered_question(&self, now: Time) -> bool {
        // Others may be left unanswered by a peer that is there.
        let is_sure_of_an_answer = |ask: &Ask| matches!(ask, Ask::Ping { .. } | Ask::Register { .. });
        let mut asks = self.control.queues.asks.iter().filter(|ask| is_sure_of_an_answer(&ask.what));
        asks.any(|ask| ask.sent > UNANSWERED_REPETITIONS && ask.due <= now)
    }
}

impl Net {
    /// A packet came with a token that means nothing here, most likely because this net has forgotten: its sender is
    /// told, in fewer bytes than it sent.
    pub(super) fn send_hint(&mut self, now: Time, origin: Origin, token: Token, packet: &[u8]) {
        self.stats.drop(Drop::UnknownToken);
        let Some(tail) = packet.last_chunk().filter(|_| packet.len() > ResetHint::LEN) else { return };
        let (source, to) = match origin {
            Origin::Direct(address) => (address_key(address, self.hash_secret), Id::ANY),
            Origin::Through { src, .. } => (self.hash_id(src), src),
        };
        if !self.hint_budget.take(source, now, 1) {
            return;
        }
        let mut bytes = [0; ResetHint::LEN];
        if (ResetHint { token, tail }).encode(&mut bytes).is_ok() {
            self.stats.hints_sent += 1;
            self.send_raw(now, origin.path(), to, &bytes);
        }
    }

    /// A hint came. Only one that repeats the end of a packet that we sent is looked at.
    pub(super) fn on_hint(&mut self, now: Time, origin: Origin, hint: &ResetHint<'_>) {
        let id = self.table.by_peer_token(hint.token);
        let authentic = id.filter(|id| {
            let session = self.table.get(*id).filter(|session| origin.may_speak_for(session.peer));
            let tails = session.map(|session| &session.rare.tails).filter(|tails| tails.is_there());
            tails.is_some_and(|tails| tails.tails.contains(hint.tail))
        });
        match authentic {
            Some(id) => self.recover(now, id),
            None => self.stats.drop(Drop::BadHint),
        }
    }

    /// Something of ours stays unanswered: if nothing else comes from the peer either, it has to be found out why.
    pub(super) fn recover_if_silent(&mut self, now: Time, id: SessionId) {
        let Some(session) = self.table.get(id) else { return };
        if now.since(session.last_heard) >= session.line.rto(&self.line_config) * SILENT_RTOS {
            self.recover(now, id);
        }
    }

    /// Finds out what became of a peer: the initiator opens the session anew beside the old one, the responder asks.
    pub(super) fn recover(&mut self, now: Time, id: SessionId) {
        let Some(session) = self.table.get_mut(id).filter(|session| session.is_open()) else { return };
        let Some(opener) = session.rare.opener.as_ref() else {
            if !session.control.pinging() {
                let next_s = super::timers::next_s(session);
                session.control.ask(Ask::Ping { user: None, next_s }, now);
            }
            return self.touch(id);
        };
        let is_too_soon = opener.tried.is_some_and(|tried| now < tried + PAUSE);
        if opener.attempt.is_none() && !is_too_soon {
            self.start_attempt(now, id);
        }
    }

    fn start_attempt(&mut self, now: Time, id: SessionId) {
        let resume = self.table.get(id).and_then(|session| session.resume());
        if resume.is_some_and(|resume| resume.keys.len() == MAX_TAGS) {
            // One more, and it could no longer be told what the peer means: a request might run twice.
            return self.end(now, id, CloseReason::NoVerdict, Some(CloseCode::DONE));
        }
        let (ephemeral, token) = (self.ephemeral(), self.token());
        if !self.table.add_token(id, token) {
            return;
        }
        let (src, suites, caps) = (self.config.id, SuiteSet::of(&self.config.suites), self.caps());
        let deadline = now + self.config.timers.handshake_timeout;
        let Some(session) = self.table.get_mut(id) else { return };
        let Some(opener) = session.opener_mut() else { return };
        let fields = handshake::InitFields {
            dst: opener.wanted,
            src,
            stoken: token,
            key_id: KeyId(0),
            suites,
            caps,
            max_udp: super::MAX_DATAGRAM as u16,
        };
        let handshake = handshake::Initiator::start(&fields, &opener.pair, ephemeral);
        let init = Vec::from(handshake.init());
        let connecting =
            Connecting { init, handshake, sent: 0, first_sent: now, next: now, deadline, found: None };
        opener.tried = Some(now);
        opener.attempt = Some(Attempt { token, connecting, paths: [None; 3] });
        self.drive_attempt(now, id);
    }

    /// Sends INIT when it is due, and gives up at its deadline.
    pub(super) fn drive_attempt(&mut self, now: Time, id: SessionId) {
        let Some(attempt) =
            self.table.get(id).and_then(|session| session.rare.opener.as_ref()?.attempt.as_ref())
        else {
            return;
        };
        let Connecting { deadline, next, sent, .. } = attempt.connecting;
        if now >= deadline {
            return self.attempt_failed(now, id);
        }
        if now < next {
            return;
        }
        let way = self.way_of_attempt(id, sent);
        let Some(session) = self.table.get_mut(id) else { return };
        let peer = session.peer;
        let Some(attempt) = session.opener_mut().and_then(|opener| opener.attempt.as_mut()) else {
            return;
        };
        let connecting = &mut attempt.connecting;
        connecting.sent = connecting.sent.saturating_add(1);
        let after = INIT_SCHEDULE.get(usize::from(connecting.sent));
        connecting.next = after.map_or(Time::NEVER, |after| connecting.first_sent + *after);
        if let Some(way) = way {
            if !attempt.paths.contains(&Some(way)) {
                attempt.paths.rotate_right(1);
                attempt.paths[0] = Some(way);
            }
            let init = connecting.init.clone();
            self.send_raw(now, way, peer, &init);
        }
        self.arm(id);
    }

    /// Where the INIT of this number goes: to the peer's last address, and to whoever knows a newer one in turn.
    fn way_of_attempt(&self, id: SessionId, sent: u8) -> Option<Path> {
        let session = self.table.get(id)?;
        if let Some(place) = session.host_place() {
            return self.host_address(place, usize::from(sent)).map(Path::Direct).or(Some(session.path));
        }
        let through_host = || self.path_by_id(session.peer).ok().filter(|path| self.can_send(path));
        match session.path {
            Path::Direct(_) if sent % 2 == 1 => through_host().or(Some(session.path)),
            Path::Direct(_) => Some(session.path),
            Path::Through(_) if self.can_send(&session.path) => Some(session.path),
            Path::Through(_) => through_host(),
        }
    }

    /// True for a silent session that is not given up yet: a handshake for it is under way, or its host, or the peer,
    /// may have to register again first.
    pub(super) fn may_come_back(&self, now: Time, id: SessionId) -> bool {
        let is_users = |session: &&Session| session.host.is_none() && session.is_open();
        let Some(session) = self.table.get(id).filter(is_users) else { return false };
        let patience = match session.path {
            Path::Direct(_) => DIRECT_PATIENCE,
            Path::Through(_) => RELAYED_PATIENCE,
        };
        let is_early = session.rare.opener.is_some() && now.since(session.last_heard) < patience;
        session.is_recovering() || is_early
    }

    /// There is a way through a host again: handshakes that waited for one go on.
    pub(super) fn wake_attempts(&mut self, now: Time) {
        for id in self.table.all().collect::<Vec<SessionId>>() {
            let attempt = |session: &mut Session| {
                let is_relayed = matches!(session.path, Path::Through(_));
                let attempt = session.opener_mut()?.attempt.as_mut().filter(|_| is_relayed)?;
                attempt.connecting.next = now;
                Some(())
            };
            if self.table.get_mut(id).and_then(attempt).is_some() {
                self.drive_attempt(now, id);
            }
        }
    }

    fn attempt_failed(&mut self, now: Time, id: SessionId) {
        let Some(session) = self.table.get_mut(id) else { return };
        let Some(attempt) = session.opener_mut().and_then(|opener| opener.attempt.take()) else { return };
        let is_silent = session.last_heard <= attempt.connecting.first_sent;
        self.table.drop_token(id, attempt.token);
        if is_silent && self.may_come_back(now, id) {
            self.start_attempt(now, id);
        } else if is_silent {
            self.end(now, id, CloseReason::Lost, Some(CloseCode::DONE));
        }
    }

    /// RESP to a handshake beside a living session: from here on only the new keys count.
    pub(super) fn finish_attempt(&mut self, now: Time, id: SessionId, origin: Origin, resp: &Resp<'_>) {
        let Some(session) = self.table.get_mut(id).filter(|session| session.is_up()) else {
            return self.stats.drop(Drop::Replayed);
        };
        let Some(opener) = session.rare.opener_mut() else { return self.stats.drop(Drop::Replayed) };
        let Some(attempt) = opener.attempt.as_ref().filter(|attempt| attempt.token == resp.stoken) else {
            return self.stats.drop(Drop::Replayed);
        };
        let (path, peer) = (origin.path(), session.peer);
        // The cheap question first.
        let is_from_there = attempt.paths.contains(&Some(path));
        let read = || attempt.connecting.handshake.read_resp(resp).ok();
        let established = is_from_there
            .then(read)
            .flatten()
            .filter(|established| established.resp.max_udp >= super::MIN_MAX_UDP && established.peer == peer);
        let Some(established) = established else { return self.stats.drop(Drop::BadHandshake) };
        let rtt = attempt.connecting.round_trip(now);
        if let Some(secure) = &session.secure {
            let resume = opener.resume.get_or_insert_default();
            resume.name(secure.resume_key(), established.hash());
        }
        opener.attempt = None;
        session.path = path;
        if let Some(rtt) = rtt {
            session.line.add_round_trip(now, rtt);
        }
        self.stats.recoveries += 1;
        self.install(now, id, resp.stoken, &established);
        if let Some(session) = self.table.get_mut(id) {
            session.line.renewed();
            session.confirmed = false;
            session.max_udp = super::max_udp(established.resp.max_udp);
            let next_s = super::timers::next_s(session);
            session.control.ask(Ask::Ping { user: None, next_s }, now);
        }
        self.handshake_done(now, id, &established);
        self.limit_messages(now, id);
        self.touch(id);
    }

    /// Puts new keys and a new token in the place of a session's old ones. Questions that are open are asked again.
    fn install(&mut self, now: Time, id: SessionId, token: Token, established: &Established) {
        self.table.unindex_peer_token(id);
        self.table.replace_token(id, token);
        let Some(session) = self.table.get_mut(id) else { return };
        session.secure = Some(Secure::new(established));
        session.start_over(now);
        self.table.index_peer_token(id);
    }

    /// The session of this net that a new one means to go on with, which names it by one of the tags in its first
    /// packet; and whether that was the first of them. Those among the named that never came up are void: what their
    /// initiator said in them it says in the new one, and a copy that comes late must not bring them up.
    pub(super) fn resumed_by(&mut self, new: SessionId, plain: &[u8]) -> Option<(SessionId, bool)> {
        let fresh = self.table.get(new)?;
        let State::HalfOpen(half_open) = &fresh.state else { return None };
        let tags = elements(plain).ok()?.filter_map(|element| match element {
            Element::Frame(Frame::Confirm { resume, .. }) => resume,
            _ => None,
        });
        let tags: Vec<[u8; 8]> = tags.take(MAX_TAGS).collect();
        if tags.is_empty() {
            return None;
        }
        let (mut meant, mut void): (Option<(SessionId, usize)>, _) = (None, Vec::new());
        // Each session once, whatever is named: its tag costs as much as a small packet.
        for (id, session) in self.table.of_peer(fresh.peer) {
            let secure = session.secure.as_ref().filter(|_| session.role == Role::Responder && id != new);
            let named = secure.and_then(|secure| secure.named_by(&tags, &half_open.hash));
            match (named, &session.state) {
                (Some(_), State::HalfOpen(_)) => void.push(id),
                (Some(n), _) if session.is_up() && meant.is_none_or(|(_, first)| n < first) => {
                    meant = Some((id, n));
                }
                _ => {}
            }
        }
        void.into_iter().for_each(|id| drop(self.table.remove(id)));
        if let Some(fresh) = self.table.get_mut(new).filter(|_| meant.is_none()) {
            fresh.memory = Some((Memory::NONE, tags.len() as u8));
        }
        meant.map(|(id, n)| (id, n == 0))
    }

    /// A session goes on with the keys of a half-open one, whose first packet came: it keeps its handle, its line and
    /// its registration.
    /// Its path stays too: where the packet came from is a candidate like any other (section 10.2), or who holds back
    /// INIT and that packet and sends them on from elsewhere would lead the session there.
    pub(super) fn take_over(&mut self, now: Time, old: SessionId, new: SessionId, is_by_first: bool) {
        let Some(mut fresh) = self.table.remove(new) else { return };
        self.table.unindex_peer_token(old);
        self.table.add_token(old, fresh.own_token);
        self.table.replace_token(old, fresh.own_token);
        let Some(session) = self.table.get_mut(old) else { return };
        // Named by a later tag it goes on from a handshake whose RESUMED was lost.
        session.memory = Some(match session.memory {
            Some((memory, place)) if !is_by_first && memory != Memory::WHOLE => (Memory::since(place), place),
            _ => (Memory::WHOLE, 0),
        });
        // What is secret is wiped where it lies: the old keys are dropped with the half-open session.
        core::mem::swap(&mut session.secure, &mut fresh.secure);
        session.max_udp = fresh.max_udp;
        session.rare.begin().proof = fresh.take_proof();
        session.control.clear_once();
        session.start_over(now);
        session.line.taken_over();
        let peer = session.peer;
        self.table.index_peer_token(old);
        self.stats.recoveries += 1;
        self.event(Event::Recovered { session: old, peer, resumed: true });
        self.limit_messages(now, old);
    }

    /// The initiator wants to know whether its session was remembered.
    pub(super) fn on_confirm(&mut self, now: Time, id: SessionId, resume: Option<[u8; 8]>) {
        let mem = self.mem(now);
        let Some(session) = self.table.get_mut(id) else { return };
        if resume.is_some() && session.role == Role::Responder {
            let (memory, _) = *session.memory.get_or_insert((Memory::NONE, 0));
            let answer = Frame::Resumed { memory, mem };
            if !session.control.queues.once.contains(&answer) {
                session.control.once(answer);
            }
        }
    }

    /// The responder says what it remembers.
    pub(super) fn on_resumed(&mut self, now: Time, id: SessionId, memory: Memory, mem: u32) {
        let Some((session, mut cx)) = self.line_of(now, id).filter(|(session, _)| !session.is_unproven())
        else {
            // Whoever it is that says so: the device, if it is the one, says it again.
            return;
        };
        let Some(resume) = session.opener_mut().and_then(|opener| opener.resume.take()) else { return };
        match memory.place() {
            Some(0) => session.line.remembered(),
            Some(place) => session.line.remembered_since(&mut cx, place),
            None => {
                // Of several handshakes without an answer one may have come up and ended since.
                let is_certain = resume.keys.len() == 1 && memory == Memory::NONE;
                let mem = if is_certain { Duration::from_secs(u64::from(mem)) } else { Duration::ZERO };
                session.line.forgotten(&mut cx, mem);
            }
        }
        let (peer, is_own) = (session.peer, session.host.is_some());
        self.tell_line_events(id, None);
        if !is_own {
            self.event(Event::Recovered { session: id, peer, resumed: memory == Memory::WHOLE });
        }
    }

    /// What a session that is waiting to hear whether it is remembered does about it: RESUMED may have got lost. A peer
    /// that answers everything else keeps it back: what waits for it must not wait for ever.
    pub(super) fn press_for_verdict(&mut self, now: Time, id: SessionId) {
        let Some(session) = self.table.get_mut(id) else { return };
        if !matches!(session.state, State::Up) || session.is_unproven() || session.control.pinging() {
            return;
        }
        let next_s = super::timers::next_s(session);
        let Some(resume) = session.rare.opener_mut().and_then(|opener| opener.resume.as_mut()) else {
            return;
        };
        if resume.presses == MAX_PRESSES {
            return self.end(now, id, CloseReason::NoVerdict, Some(CloseCode::REFUSED));
        }
        resume.presses += 1;
        session.control.ask(Ask::Ping { user: None, next_s }, now);
    }
}
