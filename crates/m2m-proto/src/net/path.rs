//! Roaming: where a session's packets leave for when its peer seems to have moved (protocol, section 10.2; after
//! RFC 9000, section 9, and its 9.3.3 against an attacker who only passes copies on).
//!
//! ```text
//!            newest packet from elsewhere                PATH_RESPONSE from there
//!  settled ───────────────────────────────> candidate ───────────────────────────> settled there, the former
//!     ^                                         │                                  place kept in mind
//!     ├── the peer speaks from the old place ───┤                                         │
//!     ├── three challenges unanswered ──────────┘                                         │
//!     └── the peer answers from the former place (at once, or when the new one fell silent) ┘
//! ```
//! Until the response the candidate gets challenges, and one packet a round trip in answer to what came from there,
//! never more than a multiple of that; everything else goes where it went.
use alloc::boxed::Box;

use rand_chacha::rand_core::Rng;

use super::{
    MAX_DATAGRAM, Net, Path,
    session::Session,
    transmit::{LAST_WORDS, room_on},
};
use crate::{
    event::{Event, SessionId},
    time::{Duration, Time},
    wire::{
        bundle::PlainWriter,
        frame::{Frame, Req},
    },
};

/// An unproven address gets at most so many bytes for each that came from there (RFC 9000, section 8.1).
const AMPLIFICATION: u32 = 3;
/// The same from nets that keep a registry or relay, which everybody can reach.
const AMPLIFICATION_OF_HOSTS: u32 = 1;
/// And never more than this, however much came (one packet's worth).
const MOST_BYTES: u32 = MAX_DATAGRAM as u32;
/// So often a candidate is challenged, and a former place is tried while the new one is silent.
const TRIES: u8 = 3;
/// The peer may take a move back within so many timeouts.
const UNDO_RTOS: u32 = 3;
/// After a move that was taken back, and after one of our own, no other for so long.
const REST: Duration = Duration::from_secs(2);
/// So long after the peer could take its move back, the place where it was is kept in mind in a session at rest.
const FORMER_LIFE: Duration = Duration::from_secs(60);
/// A lone PING is padded to this plaintext, so that it pays for a challenge even where nothing may be amplified: the
/// nine bytes of one, and two of a longer packet number.
pub(super) const PING_ROOM: usize = 11;

/// What a session knows of places other than the one that its packets leave for.
pub(crate) struct Roaming {
    candidate: Option<Candidate>,
    former: Option<Former>,
    /// No candidate before this.
    rests_until: Time,
}

/// Where the peer seems to be.
struct Candidate {
    path: Path,
    /// What the challenges hold: that to the candidate, and that to the place in use.
    to_new: [u8; 8],
    to_old: [u8; 8],
    since: Time,
    /// Rounds of challenges that have begun.
    rounds: u8,
    /// When the next begins, or the candidate is forgotten.
    due: Time,
    /// This round's challenge has left for the candidate. It waits while what came from there does not pay for it.
    is_challenged: bool,
    /// When the first one left.
    first_sent: Option<Time>,
    /// Authentic bytes that came from there, and all that went there.
    bytes_in: u32,
    bytes_out: u32,
    /// This net wants to go there, whatever comes the old way meanwhile.
    is_ours: bool,
    /// Something came from there, to which the next packet is the answer.
    owes_answer: bool,
    /// But not before this.
    answer_from: Time,
}

/// Where the peer was before it moved.
struct Former {
    path: Path,
    data: [u8; 8],
    /// A response with this data moves the session back until then.
    until: Time,
    /// So often it was tried since anything came.
    tries: u8,
}

/// A packet that opened: what matters for paths.
pub(super) struct Arrival {
    pub(super) path: Path,
    pub(super) len: usize,
    /// Its number is the highest so far.
    pub(super) newest: bool,
    /// It holds nothing but challenges, responses and padding, so it doesn't say where the peer wants to be reached.
    pub(super) only_probes: bool,
    pub(super) challenge: Option<[u8; 8]>,
    pub(super) response: Option<[u8; 8]>,
}

/// Where the next packet of a session goes, and how much plaintext it may hold.
#[derive(Clone, Copy)]
pub(super) struct Exit {
    pub(super) path: Path,
    pub(super) room: usize,
    /// It goes to an unproven place: what does not fit goes the usual way instead.
    pub(super) is_candidate: bool,
}

impl Roaming {
    fn new(now: Time) -> Roaming {
        Roaming { candidate: None, former: None, rests_until: now }
    }

    /// Nothing in here says more than that the peer stays where it is.
    pub(super) fn is_over(&self, now: Time) -> bool {
        let keeps_former = self.former.as_ref().is_some_and(|former| now <= former.until + FORMER_LIFE);
        self.candidate.is_none() && !keeps_former && self.rests_until <= now
    }

    /// When a challenge is to be repeated or given up.
    pub(crate) fn deadline(&self) -> Time {
        self.candidate.as_ref().map_or(Time::NEVER, |candidate| candidate.due)
    }
}

impl Candidate {
    fn budget(&self, factor: u32) -> usize {
        let allowed = self.bytes_in.saturating_mul(factor).min(MOST_BYTES);
        allowed.saturating_sub(self.bytes_out) as usize
    }

    fn came(&mut self, len: usize) {
        self.bytes_in = self.bytes_in.saturating_add(len as u32);
    }

    fn went(&mut self, len: usize) {
        self.bytes_out = self.bytes_out.saturating_add(len as u32);
    }
}

impl Session {
    fn candidate(&mut self, path: Path) -> Option<&mut Candidate> {
        self.roaming_mut()?.candidate.as_mut().filter(|candidate| candidate.path == path)
    }

    /// Sessions that others' packets lie in are reached straight (protocol, section 10).
    fn may_move_to(&self, path: Path) -> bool {
        matches!(path, Path::Direct(_)) || (self.host.is_none() && !self.is_registrant())
    }

    /// Something of ours is on its way, and nothing came for longer than an answer takes.
    fn is_unanswered(&self, now: Time, rto: Duration) -> bool {
        let is_late = |since: Time| since + rto <= now;
        is_late(self.last_heard)
            && (self.control.queues.asks.iter().any(|ask| ask.sent > 0 && is_late(ask.first_sent))
                || self.line.is_repeating())
    }

    /// A packet of so many bytes answered the candidate; or none could, and the usual way is to be taken.
    pub(super) fn answered_candidate(&mut self, now: Time, len: usize, rto: Duration) {
        let round_trip = self.line.round_trip().unwrap_or(rto);
        let roaming = self.roaming_mut();
        let Some(candidate) = roaming.and_then(|roaming| roaming.candidate.as_mut()) else { return };
        candidate.went(len);
        candidate.owes_answer = false;
        if len > 0 {
            candidate.answer_from = now + round_trip;
        }
    }

    /// A PING that nobody waits for: it says that this net is there, and is answered.
    fn stray_ping(&mut self) -> Frame<'static> {
        let req = Req(self.control.next_req);
        self.control.next_req = self.control.next_req.wrapping_add(1);
        Frame::Ping { req, next_s: super::timers::next_s(self) }
    }
}

impl Net {
    fn amplification(&self) -> u32 {
        if self.config.registry || self.config.relay { AMPLIFICATION_OF_HOSTS } else { AMPLIFICATION }
    }

    /// An authentic packet came and has acted: its challenge is answered, and where it came from may be news.
    pub(super) fn on_arrival(&mut self, now: Time, id: SessionId, arrival: &Arrival) {
        let rto = self.rto_of(id);
        let Some(session) = self.table.get_mut(id).filter(|session| session.is_up()) else { return };
        let in_use = arrival.path == session.path;
        if in_use && session.rare.roaming.is_none() && arrival.challenge.is_none() {
            return;
        }
        let speaks = arrival.newest && !arrival.only_probes;
        if let Some(former) = session.roaming_mut().and_then(|roaming| roaming.former.as_mut())
            && in_use
        {
            former.tries = 0;
        }
        if let Some(candidate) = session.candidate(arrival.path) {
            candidate.came(arrival.len);
            candidate.owes_answer |= speaks;
        } else if speaks && in_use {
            // The peer is where it was after all: what came from elsewhere was a copy, or it has come back.
            self.forsake_candidate(id, now + rto);
        }
        if let Some(data) = arrival.response {
            self.on_path_response(now, id, arrival, data);
        }
        if speaks {
            self.consider(now, id, arrival.path, arrival.len);
        }
        if let Some(data) = arrival.challenge {
            self.answer_challenge(now, id, arrival, data);
        }
        self.challenge(now, id);
    }

    fn forsake_candidate(&mut self, id: SessionId, rests_until: Time) {
        let Some(roaming) = self.table.get_mut(id).and_then(|session| session.roaming_mut()) else {
            return;
        };
        if roaming.candidate.take_if(|candidate| !candidate.is_ours).is_some() {
            roaming.rests_until = roaming.rests_until.max(rests_until);
            self.stats.moves_failed += 1;
        }
    }

    fn rto_of(&self, id: SessionId) -> Duration {
        self.table.get(id).map_or(Duration::ZERO, |session| session.line.rto(&self.line_config))
    }

    /// Makes the origin of a packet the candidate, unless it is where packets go anyway.
    fn consider(&mut self, now: Time, id: SessionId, path: Path, len: usize) {
        let rto = self.rto_of(id);
        let reachable = self.can_send(&path);
        let Some(session) = self.table.get_mut(id) else { return };
        if session.path == path || !reachable || !session.may_move_to(path) {
            return;
        }
        let roaming = session.rare.begin().roaming.get_or_insert_with(|| Box::new(Roaming::new(now)));
        // Another one takes its place only after its time for an answer, or whoever holds packets back could keep
        // every candidate from being proven.
        let busy = roaming
            .candidate
            .as_ref()
            .is_some_and(|candidate| candidate.path == path || now < candidate.since + rto);
        if busy || now < roaming.rests_until {
            return;
        }
        let (to_new, to_old) = (self.rng.next_u64().to_be_bytes(), self.rng.next_u64().to_be_bytes());
        let before = roaming.candidate.replace(Candidate {
            path,
            to_new,
            to_old,
            since: now,
            rounds: 0,
            due: now,
            is_challenged: false,
            first_sent: None,
            bytes_in: len as u32,
            bytes_out: 0,
            is_ours: false,
            owes_answer: true,
            answer_from: now,
        });
        self.stats.moves_failed += u64::from(before.is_some());
    }

    /// Echoes a challenge to where it came from. From the path in use the answer is more than a probe: it says "I am
    /// still here" to one who was led to believe otherwise.
    fn answer_challenge(&mut self, now: Time, id: SessionId, arrival: &Arrival, data: [u8; 8]) {
        let factor = self.amplification();
        let Some(session) = self.table.get_mut(id) else { return };
        let response = Frame::PathResponse(data);
        if session.path == arrival.path {
            let ping = session.stray_ping();
            self.send_frames(now, id, arrival.path, &[response, ping], usize::MAX);
            return;
        }
        let budget = match session.candidate(arrival.path) {
            Some(candidate) => candidate.budget(factor),
            None => arrival.len,
        };
        let sent = self.send_frames(now, id, arrival.path, &[response], budget);
        if let Some(candidate) = self.table.get_mut(id).and_then(|session| session.candidate(arrival.path)) {
            candidate.went(sent);
        }
    }

    fn on_path_response(&mut self, now: Time, id: SessionId, arrival: &Arrival, data: [u8; 8]) {
        let rto = self.rto_of(id);
        let Some(session) = self.table.get_mut(id) else { return };
        let in_use = session.path;
        let Some(roaming) = session.roaming_mut() else { return };
        if let Some(candidate) = roaming.candidate.take_if(|it| it.path == arrival.path && it.to_new == data)
        {
            let until = now + UNDO_RTOS * rto;
            let former = Former { path: in_use, data: candidate.to_old, until, tries: 0 };
            // Too long if the first challenge was lost; still nearer than what is assumed where nothing was measured.
            if candidate.is_ours {
                return self.leave_through(now, id, candidate.path);
            }
            let measured = candidate.first_sent.map(|left| now.since(left));
            roaming.former = Some(former);
            return self.move_to(now, id, candidate.path, measured);
        }
        let fits = |it: &mut Former| {
            let is_meant = !arrival.only_probes || it.tries > 0;
            it.path == arrival.path && it.data == data && now <= it.until && is_meant
        };
        if let Some(former) = roaming.former.take_if(fits) {
            roaming.candidate = None;
            roaming.rests_until = now + REST;
            self.move_to(now, id, former.path, None);
        }
    }

    fn move_to(&mut self, now: Time, id: SessionId, path: Path, round_trip: Option<Duration>) {
        let ping_min = self.config.timers.ping_min;
        let Some(session) = self.table.get_mut(id) else { return };
        session.path = path;
        // What was measured belongs to the path that was left (RFC 9000, section 9.4), and what is in flight went there.
        session.line.moved();
        if let Some(round_trip) = round_trip {
            session.line.add_round_trip(now, round_trip);
        }
        session.cap_ping_interval(ping_min);
        if let Some(keepalive) = session.keepalive_mut() {
            keepalive.observed = None;
        }
        let (peer, is_told) = (session.peer, session.host.is_none());
        self.stats.moves += 1;
        self.limit_messages(now, id);
        if is_told {
            self.event(Event::Moved { session: id, peer, path });
        }
        self.touch(id);
    }

    /// Sends a session's packets another way from now on, because this net itself has reason to. The peer follows once
    /// it has seen that this net is there.
    pub(super) fn leave_through(&mut self, now: Time, id: SessionId, path: Path) {
        let rests_until = now + REST.max(UNDO_RTOS * self.rto_of(id));
        let Some(session) = self.table.get_mut(id).filter(|session| session.path != path) else { return };
        // What the peer still sends the old way says nothing.
        let roaming = session.rare.begin().roaming.get_or_insert_with(|| Box::new(Roaming::new(now)));
        (roaming.candidate, roaming.former, roaming.rests_until) = (None, None, rests_until);
        self.move_to(now, id, path, None);
        // The peer learns of it although there may be nothing else to say.
        let Some(ping) = self.table.get_mut(id).map(Session::stray_ping) else { return };
        self.send_frames(now, id, path, &[ping], usize::MAX);
    }

    /// Asks the peer over to another path of this net's choice: a challenge goes there, and the session goes after it
    /// once it is answered.
    pub(super) fn propose(&mut self, now: Time, id: SessionId, path: Path) {
        let Some(session) = self.table.get_mut(id).filter(|session| session.is_up() && session.path != path)
        else {
            return;
        };
        let roaming = session.rare.begin().roaming.get_or_insert_with(|| Box::new(Roaming::new(now)));
        if roaming.candidate.is_some() {
            return;
        }
        let (to_new, to_old) = (self.rng.next_u64().to_be_bytes(), self.rng.next_u64().to_be_bytes());
        roaming.candidate = Some(Candidate {
            path,
            to_new,
            to_old,
            since: now,
            rounds: 0,
            due: now,
            is_challenged: false,
            first_sent: None,
            // The path begins in a session of ours with a host, which vouches for it.
            bytes_in: MOST_BYTES,
            bytes_out: 0,
            is_ours: true,
            owes_answer: false,
            answer_from: now,
        });
        self.challenge(now, id);
    }

    /// Challenges the candidate, as far as it may be written to, and the place in use, once a round.
    fn challenge(&mut self, now: Time, id: SessionId) {
        let (factor, rto) = (self.amplification(), self.rto_of(id));
        let Some(session) = self.table.get_mut(id) else { return };
        let old = session.path;
        let Some(candidate) = session.roaming_mut().and_then(|roaming| roaming.candidate.as_mut()) else {
            return;
        };
        let begins = candidate.due <= now;
        if begins {
            candidate.rounds += 1;
            candidate.due = now + rto;
            candidate.is_challenged = false;
        }
        let (path, to_new, to_old) = (candidate.path, candidate.to_new, candidate.to_old);
        let is_ours = candidate.is_ours;
        if !candidate.is_challenged {
            let budget = candidate.budget(factor);
            let sent = self.send_frames(now, id, path, &[Frame::PathChallenge(to_new)], budget);
            if let Some(candidate) = self.table.get_mut(id).and_then(|session| session.candidate(path)) {
                candidate.went(sent);
                candidate.is_challenged = sent > 0;
                candidate.first_sent = candidate.first_sent.or((sent > 0).then_some(now));
            }
        }
        if begins && !is_ours {
            self.send_frames(now, id, old, &[Frame::PathChallenge(to_old)], usize::MAX);
        }
        self.arm(id);
    }

    /// Challenges again, gives up, and tries where the peer was before when nothing comes from where it went.
    pub(super) fn path_timeout(&mut self, now: Time, id: SessionId) {
        let Some(roaming) = self.table.get_mut(id).and_then(|session| session.roaming_mut()) else {
            return;
        };
        match &roaming.candidate {
            Some(candidate) if candidate.due <= now && candidate.rounds >= TRIES => {
                self.stats.moves_failed += u64::from(!candidate.is_ours);
                roaming.candidate = None;
            }
            Some(candidate) if candidate.due <= now => self.challenge(now, id),
            _ => {}
        }
        self.try_former(now, id);
    }

    fn try_former(&mut self, now: Time, id: SessionId) {
        let rto = self.rto_of(id);
        let data = self.rng.next_u64().to_be_bytes();
        let Some(session) = self.table.get_mut(id).filter(|session| session.is_unanswered(now, rto)) else {
            return;
        };
        let ping = session.stray_ping();
        let Some(former) = session.roaming_mut().and_then(|roaming| roaming.former.as_mut()) else {
            return;
        };
        if former.tries >= TRIES {
            return;
        }
        former.tries += 1;
        (former.data, former.until) = (data, now + UNDO_RTOS * rto);
        let path = former.path;
        self.send_frames(now, id, path, &[Frame::PathChallenge(data), ping], usize::MAX);
    }

    /// Where the next packet of a session goes.
    pub(super) fn exit(&self, now: Time, session: &Session) -> Exit {
        let usual = Exit { path: session.path, room: room_on(session, session.path), is_candidate: false };
        let roaming = session.rare.roaming.as_ref();
        let Some(candidate) = roaming.and_then(|roaming| roaming.candidate.as_ref()) else { return usual };
        let may_answer = candidate.owes_answer && candidate.answer_from <= now;
        let Some(secure) = session.secure.as_ref().filter(|_| may_answer) else { return usual };
        let budget = candidate.budget(self.amplification()).saturating_sub(secure.sealed_len(0));
        let room = budget.min(room_on(session, candidate.path));
        if room == 0 { usual } else { Exit { path: candidate.path, room, is_candidate: true } }
    }

    /// Sends these frames by themselves in one packet, if it has no more bytes than `budget`; says how many it has.
    fn send_frames(
        &mut self,
        now: Time,
        id: SessionId,
        path: Path,
        frames: &[Frame<'_>],
        budget: usize,
    ) -> usize {
        if self.table.get(id).is_none_or(|session| self.key_is_spent(session, LAST_WORDS)) {
            return 0;
        }
        let mut buffer = self.buffer();
        let Some(session) = self.table.get_mut(id) else { return 0 };
        let (peer, Some(secure)) = (session.peer, session.secure.as_mut()) else { return 0 };
        secure.begin(&mut buffer);
        let mut plain = PlainWriter::new(&mut buffer, MAX_DATAGRAM);
        for frame in frames {
            plain.push_frame(frame);
        }
        let len = secure.sealed_len(plain.len());
        if len > budget {
            self.recycle(buffer);
            return 0;
        }
        secure.seal(&mut buffer);
        self.remember_tail(id, &buffer);
        self.send_packet(now, path, peer, buffer);
        len
    }
}
