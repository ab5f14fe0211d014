//! Handshakes that this net starts: INIT, its repetitions, RESP, COOKIE, and what is known when nobody answers.
use alloc::{boxed::Box, vec::Vec};

use super::{
    Net, Origin,
    control::{Ask, LookupFor},
    recover::Opener,
    session::{Beginning, Connecting, Keepalive, Path, Proof, Session, State},
};
use crate::{
    error::{CommandError, ConnectError},
    event::{Event, SessionId},
    id::Id,
    session::{
        Secure, handshake,
        handshake::Established,
        keys::{self, PeerKey},
    },
    stats::Drop,
    time::{Duration, Time},
    wire::frame::FoundStatus,
    wire::packet::{Caps, CookieReply, KeyId, Resp, SuiteSet},
};

/// INITs leave so long after the first one (protocol, section 4); after the last the wait goes on to the deadline.
pub(super) const INIT_SCHEDULE: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(7),
];
/// So many unanswered INITs to a peer that is online mean: it does not accept our key.
const INITS_FOR_A_VERDICT: u8 = 3;
/// INIT offers what this net can do.
const CAP_REGISTRY: u8 = 1;
const CAP_RELAY: u8 = 2;

impl Net {
    pub(super) fn start_handshake(
        &mut self,
        now: Time,
        peer: Id,
        key: &PeerKey,
        path: Path,
        host: Option<usize>,
    ) -> Result<SessionId, CommandError> {
        if self.table.len() >= self.config.limits.sessions {
            return Err(CommandError::TableFull);
        }
        let pair = key.pair(self.config.id, peer);
        let (ephemeral, stoken, line) = (self.ephemeral(), self.token(), self.new_line());
        let fields = handshake::InitFields {
            dst: peer,
            src: self.config.id,
            stoken,
            // Unknown: which version of the peer's key this is, its holder need not know (protocol, section 2).
            key_id: KeyId(0),
            suites: SuiteSet::of(&self.config.suites),
            caps: self.caps(),
            max_udp: super::MAX_DATAGRAM as u16,
        };
        let handshake = handshake::Initiator::start(&fields, &pair, ephemeral);
        let deadline = now + self.config.timers.handshake_timeout;
        let connecting = Connecting {
            init: Vec::from(handshake.init()),
            handshake,
            sent: 0,
            first_sent: now,
            next: now,
            deadline,
            found: None,
        };
        let interval = self.config.timers.ping_min;
        let keepalive = Keepalive { interval, last_answer: now, observed: None };
        let beginning = Beginning {
            peer,
            own_token: stoken,
            role: keys::Role::Initiator,
            path,
            state: State::Connecting(Box::new(connecting)),
            secure: None,
            line,
            // The initiator finds out by its pings; this is the backstop.
            silence: self.config.timers.session_idle,
            max_udp: super::MAX_DATAGRAM as u16,
        };
        let mut session = Session::new(now, beginning);
        session.host = host.and_then(|place| u8::try_from(place).ok());
        session.rare.begin().opener = Some(Box::new(Opener::new(pair, peer, keepalive)));
        let id = self.table.insert(session);
        self.send_init(now, id);
        Ok(id)
    }

    /// INITs to a host go to its addresses in turn.
    fn next_address_of_host(&self, id: SessionId) -> Option<Path> {
        let session = self.table.get(id)?;
        let State::Connecting(connecting) = &session.state else { return None };
        self.host_address(session.host_place()?, usize::from(connecting.sent)).map(Path::Direct)
    }

    pub(super) fn caps(&self) -> Caps {
        Caps((u8::from(self.config.registry) * CAP_REGISTRY) | (u8::from(self.config.relay) * CAP_RELAY))
    }

    /// Sends INIT, again or for the first time, and sets the next time; ends a handshake whose time is over.
    pub(super) fn send_init(&mut self, now: Time, id: SessionId) {
        let path = self.table.get(id).map(|session| session.path);
        let waits_for_host = path.is_some_and(|path| !self.can_send(&path));
        let refused = matches!(path, Some(Path::Through(host)) if waits_for_host && self.has_refused(host));
        if waits_for_host && let Some(Path::Through(host)) = path {
            self.wait_for_host(host, id);
        }
        let jitter = self.jitter();
        let address = self.next_address_of_host(id);
        let Some(session) = self.table.get_mut(id) else { return };
        let State::Connecting(connecting) = &mut session.state else { return };
        if now >= connecting.deadline {
            let why = self.why_not_up(id).unwrap_or(ConnectError::Unreachable);
            return self.fail(now, id, why);
        }
        if waits_for_host || now < connecting.next {
            // The host's return wakes it (`wake_waiting`).
            connecting.next = if waits_for_host { Time::NEVER } else { connecting.next };
            if refused {
                // Nothing to wait for; the user is told at the next tick, once it holds the session's handle.
                connecting.deadline = now;
            }
            return self.arm(id);
        }
        if connecting.sent == 0 {
            connecting.first_sent = now;
        }
        connecting.sent = connecting.sent.saturating_add(1);
        connecting.next = match INIT_SCHEDULE.get(usize::from(connecting.sent)) {
            Some(after) => connecting.first_sent + *after + jitter,
            None => Time::NEVER,
        };
        session.path = address.unwrap_or(session.path);
        let (path, peer) = (session.path, session.peer);
        let ask_host = connecting.sent == INITS_FOR_A_VERDICT && connecting.found.is_none();
        let init = connecting.init.clone();
        self.send_raw(now, path, peer, &init);
        self.expect_answer(now, id);
        self.arm(id);
        if ask_host && matches!(path, Path::Through(_)) {
            self.ask_host(now, Ask::Lookup { id: peer, why: LookupFor::Session(id) });
        }
    }

    /// What is known of why a handshake of ours has had no answer so far; none for a session that is past it.
    pub(super) fn why_not_up(&self, id: SessionId) -> Option<ConnectError> {
        let session = self.table.get(id)?;
        if session.is_unproven() {
            return Some(ConnectError::WrongDevice);
        }
        let State::Connecting(connecting) = &session.state else { return None };
        if let Path::Through(host) = session.path
            && !self.can_send(&session.path)
        {
            let refused = self.has_refused(host);
            return Some(if refused { ConnectError::HostRefused } else { ConnectError::HostUnreachable });
        }
        Some(match connecting.found {
            Some(FoundStatus::ONLINE | FoundStatus::ELSEWHERE) if connecting.sent >= INITS_FOR_A_VERDICT => {
                ConnectError::AuthenticationFailed
            }
            Some(FoundStatus::OFFLINE) => ConnectError::UnknownPeer,
            Some(FoundStatus::SILENT) => ConnectError::Silent,
            _ => ConnectError::Unreachable,
        })
    }

    /// Up to a tenth of a second, so that many nets that start together spread out.
    fn jitter(&mut self) -> Duration {
        use rand_chacha::rand_core::Rng;
        Duration::from_micros(u64::from(self.rng.next_u32() % 100_000))
    }

    pub(super) fn on_resp(&mut self, now: Time, origin: Origin, resp: &Resp<'_>) {
        let Some(id) = self.table.by_token(resp.stoken) else { return self.stats.drop(Drop::UnknownToken) };
        let Some(session) = self.table.get_mut(id).filter(|session| origin.may_speak_for(session.peer))
        else {
            return self.stats.drop(Drop::BadHandshake);
        };
        let State::Connecting(connecting) = &session.state else {
            // To a handshake beside the session, or to a repeated INIT while the first one's made the session.
            return self.finish_attempt(now, id, origin, resp);
        };
        let Some(established) = connecting
            .handshake
            .read_resp(resp)
            .ok()
            .filter(|established| established.resp.max_udp >= super::MIN_MAX_UDP)
        else {
            return self.stats.drop(Drop::BadHandshake);
        };
        let rtt = connecting.round_trip(now);
        session.secure = Some(Secure::new(&established));
        session.state = State::Up;
        session.max_udp = super::max_udp(established.resp.max_udp);
        session.last_heard = now;
        session.was_answered(now);
        if let Some(rtt) = rtt {
            session.line.add_round_trip(now, rtt);
        }
        let (peer, old_peer, is_own) = (established.peer, session.peer, session.host.is_some());
        if let Some(place) = session.host_place() {
            self.host_answered_from(id, place, origin.path());
        }
        let Some(session) = self.table.get_mut(id) else { return };
        let next_s = super::timers::next_s(session);
        session.control.ask(Ask::Ping { user: None, next_s }, now);
        if old_peer != peer {
            self.table.rename(id, peer);
        }
        self.table.index_peer_token(id);
        if !self.handshake_done(now, id, &established) && !is_own {
            self.event(Event::Connected { session: id, peer });
        }
        self.limit_messages(now, id);
        self.touch(id);
        self.arm(id);
    }

    /// What the end of a handshake of ours starts: registering with a host, or asking for the proof of a pinned device.
    /// True if the session has to wait for that proof.
    pub(super) fn handshake_done(&mut self, now: Time, id: SessionId, established: &Established) -> bool {
        let Some(session) = self.table.get_mut(id) else { return false };
        let Some(host) = session.host_place() else { return self.ask_for_proof(now, id, established) };
        if !self.config.ephemeral {
            let device = &self.config.device;
            let made = device.prove(&established.peer_ephemeral, established.hash(), keys::Role::Initiator);
            session.rare.begin().proof = made.ok().map(|proof| Box::new(Proof::Made(proof)));
        }
        self.host_session_up(now, host, id, established.resp.unix_s);
        false
    }

    /// The responder wants to see that we are where our INIT said: the same INIT goes again, with its cookie.
    pub(super) fn on_cookie(&mut self, now: Time, origin: Origin, cookie: &CookieReply<'_>) {
        let Some(id) = self.table.by_token(cookie.stoken) else { return self.stats.drop(Drop::UnknownToken) };
        let Some(session) = self.table.get_mut(id).filter(|session| origin.may_speak_for(session.peer))
        else {
            return self.stats.drop(Drop::BadHandshake);
        };
        let beside =
            session.rare.opener_mut().and_then(|opener| opener.connecting(cookie.stoken, origin.path()));
        let (connecting, path) = match (&mut session.state, beside) {
            (State::Connecting(connecting), _) => (&mut **connecting, session.path),
            (State::Up, Some(connecting)) => (connecting, origin.path()),
            _ => return self.stats.drop(Drop::Replayed),
        };
        let Ok(cookie) = connecting.handshake.read_cookie(cookie) else {
            return self.stats.drop(Drop::BadHandshake);
        };
        let init = connecting.handshake.init_with_cookie(&cookie);
        if connecting.init == init {
            return self.stats.drop(Drop::Replayed);
        }
        connecting.init = Vec::from(init);
        let init = connecting.init.clone();
        let peer = session.peer;
        self.send_raw(now, path, peer, &init);
    }

    /// NO_ROUTE came for a packet to `dst`: handshakes to it that wait for that very packet's answer need not go on.
    pub(super) fn on_no_route(&mut self, now: Time, from: SessionId, dst: Id, packet: [u8; 8]) {
        // Only the neighbour that such a packet left through can say so.
        let Some(neighbour) = self.table.get(from).map(|session| session.peer) else { return };
        let hopeless: Option<SessionId> = self
            .table
            .of_peer(dst)
            .find(|(_, session)| match &session.state {
                State::Connecting(connecting) => {
                    session.path == Path::Through(neighbour)
                        && connecting.init.last_chunk::<8>() == Some(&packet)
                }
                _ => false,
            })
            .map(|(id, _)| id);
        if let Some(id) = hopeless {
            self.fail(now, id, ConnectError::UnknownPeer);
        }
    }
}
