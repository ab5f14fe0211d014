//! What this side sends and wants to arrive: confirmable messages in flight, those that wait for their turn, and the
//! requests whose response is outstanding (RFC 7252 sections 4.2, 4.7 and 5.2).
//!
//! ```text
//!  request ──► Waiting ── window open ──► Sent(mid) ── empty ACK ──► Acked ── response ──► done
//!                 │                          │ response (piggybacked, or sent before its ACK arrived) ──► done
//!                 │ deadline: NotSent        │ no ACK after all retransmissions, or deadline: TimedOut
//! ```
//!
//! A message is *in flight* from its first transmission until it is acknowledged or given up; a request that was
//! acknowledged is no longer, however long its handler takes. So the window always moves on, and two sides whose
//! handlers wait for each other can't block each other's responses.
use super::{
    code::Code,
    incoming::MID_WINDOW,
    message::{MessageToken, Mid},
    pool::Pool,
    retransmit::{MAX_RTO, RttEstimator, spread},
    writer::{cut_to_code, set_mid},
};
use crate::time::{Duration, Time};
use alloc::{collections::VecDeque, vec::Vec};
use core::hash::{BuildHasherDefault, Hasher};
use hashbrown::HashMap;

/// Why a confirmable message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A request, by its token.
    Request(MessageToken),
    /// The response to a request that was acknowledged before.
    Response,
    /// A notification; the number is its sender's.
    Notification(u64),
}

/// A confirmable message in flight.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) purpose: Purpose,
    /// The whole message, plaintext: it is sealed anew each time it leaves.
    pub(super) bytes: Vec<u8>,
    /// Transmissions so far; 0 while the first is on its way out.
    pub(super) transmissions: u8,
    /// What spreads its timeouts.
    pub(super) jitter: u32,
    /// When it is sent again; never while a transmission is on its way out.
    pub(super) due: Time,
    pub(super) first_sent: Time,
    pub(super) last_sent: Time,
    /// It was lost, and waits until the window lets it leave again.
    pub(super) is_lost: bool,
    /// The packet it left in first: an answer to it proves that this one arrived, or a later one.
    pub(super) first_packet: Option<u64>,
    /// It must not leave again before the peer has said whether it remembers it.
    pub(super) is_held: bool,
    /// After so many new sessions without an answer it left first.
    pub(super) sent_in: u8,
}

#[derive(Debug)]
struct Waiting {
    purpose: Purpose,
    bytes: Vec<u8>,
}

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It hasn't left.
    Waiting,
    /// Confirmable and in flight.
    Sent(Mid),
    /// Acknowledged; the response follows. The message is kept in `Request::kept` if it may be sent again.
    Acked,
    /// Non-confirmable; it left in that packet, if that was one of this session.
    Non(Option<u64>),
    /// Answered, and more responses follow (RFC 7641).
    Observing,
}

/// A request without its (last) response.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) user: u64,
    pub(super) deadline: Time,
    /// Order of the requests, for what must not depend on tokens.
    pub(super) serial: u32,
    pub(super) is_observe: bool,
    /// It may run twice if the peer loses its memory.
    pub(super) is_repeatable: bool,
    pub(super) progress: Progress,
    /// It left in a session before, so that it may have run although it waits.
    pub(super) has_left: bool,
    /// After so many new sessions without an answer it was acknowledged.
    pub(super) acked_in: u8,
    /// The message after its acknowledgement, if it is repeatable.
    pub(super) kept: Option<Vec<u8>>,
}

/// The tokens are our own random bytes: they are their own hash, and the same on every run with the same seed.
#[derive(Debug, Default)]
pub(super) struct TokenHasher(u64);

impl Hasher for TokenHasher {
    fn write(&mut self, bytes: &[u8]) {
        // The map takes its index from the low bits and a tag from the topmost: the product fills both.
        let value = bytes.iter().take(8).fold(self.0, |value, byte| value << 8 | u64::from(*byte));
        self.0 = value.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

type Requests = HashMap<MessageToken, Request, BuildHasherDefault<TokenHasher>>;

/// The sending half of a line.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// By Message ID, counted from the oldest one in flight; `None` for what is done.
    open: VecDeque<Option<Open>>,
    in_flight: usize,
    /// Of those, the ones that were lost and wait until the window lets them leave again.
    lost: usize,
    /// Responses don't wait behind requests: the peer's requests end with them.
    waiting_responses: VecDeque<Waiting>,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    /// Responses that wait or are in flight, and their bytes.
    responses: usize,
    response_bytes: usize,
    pub(super) requests: Requests,
}

impl Outgoing {
    /// Messages that were sent and are neither acknowledged nor given up.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Messages that may be on their way: those in flight without those that were lost.
    pub(super) fn in_network(&self) -> usize {
        self.in_flight - self.lost
    }

    /// As [`Outgoing::in_network`], without what left more than `patience` before `now` if something was acknowledged at
    /// `acknowledged`, after it left: that is lost as well, however long it waits to leave again. And the time when
    /// the next one will be.
    pub(super) fn still_in_network(
        &self,
        now: Time,
        acknowledged: Time,
        patience: Duration,
    ) -> (usize, Time) {
        let sent = self.open.iter().flatten().filter(|open| !open.is_lost);
        sent.fold((0, Time::NEVER), |(count, next), open| {
            let lost_at = open.last_sent + patience;
            match open.transmissions > 0 && open.last_sent < acknowledged {
                true if lost_at <= now => (count, next),
                true => (count + 1, next.min(lost_at)),
                false => (count + 1, next),
            }
        })
    }

    /// True if something is to leave, for the first time or again.
    pub(super) fn has_next(&self) -> bool {
        self.first_lost().is_some() || !self.waiting_responses.is_empty() || !self.waiting.is_empty()
    }

    /// From the oldest message in flight to the newest Message ID, both included.
    #[cfg(test)]
    pub(super) fn span(&self) -> usize {
        self.open.len()
    }

    /// True without anything in flight, waiting or outstanding.
    pub(super) fn is_empty(&self) -> bool {
        self.in_flight == 0
            && self.waiting.is_empty()
            && self.waiting_responses.is_empty()
            && self.requests.is_empty()
    }

    /// Messages that wait for the window, without responses, and their bytes.
    pub(super) fn waiting(&self) -> (usize, usize) {
        (self.waiting.len(), self.waiting_bytes)
    }

    /// Responses in messages of their own that the peer hasn't acknowledged, and their bytes.
    pub(super) fn responses(&self) -> (usize, usize) {
        (self.responses, self.response_bytes)
    }

    /// Puts a message with a place for its Message ID behind those that wait.
    pub(super) fn wait(&mut self, purpose: Purpose, bytes: Vec<u8>) {
        if purpose == Purpose::Response {
            self.responses += 1;
            self.response_bytes += bytes.len();
            self.waiting_responses.push_back(Waiting { purpose, bytes });
            return;
        }
        self.waiting_bytes += bytes.len();
        self.waiting.push_back(Waiting { purpose, bytes });
    }

    /// Notes that a message in flight was lost: it leaves again before others leave for the first time.
    pub(super) fn lose(&mut self, next: Mid, mid: Mid) {
        let Some(open) = self.get_mut(next, mid) else { return };
        open.due = Time::NEVER;
        if !core::mem::replace(&mut open.is_lost, true) {
            self.lost += 1;
        }
    }

    /// The oldest message that was lost, which leaves again now.
    pub(super) fn start_lost(&mut self, next: Mid) -> Option<Mid> {
        let index = self.first_lost()?;
        self.open.get_mut(index)?.as_mut()?.is_lost = false;
        self.lost -= 1;
        let back = (self.open.len() - index) as u16;
        Some(Mid(next.0.wrapping_sub(back)))
    }

    fn first_lost(&self) -> Option<usize> {
        let may_leave = |open: &Option<Open>| open.as_ref().is_some_and(|open| open.is_lost && !open.is_held);
        if self.lost == 0 { None } else { self.open.iter().position(may_leave) }
    }

    /// Gives the next waiting message the Message ID `next`, if the peer's memory allows it. True if it did.
    pub(super) fn start_next(&mut self, next: Mid) -> bool {
        if self.open.len() >= MID_WINDOW {
            return false;
        }
        let response = self.waiting_responses.pop_front();
        let Some(Waiting { purpose, mut bytes }) = response.or_else(|| {
            let waiting = self.waiting.pop_front()?;
            self.waiting_bytes -= waiting.bytes.len();
            Some(waiting)
        }) else {
            return false;
        };
        set_mid(&mut bytes, next);
        if let Purpose::Request(token) = purpose
            && let Some(request) = self.requests.get_mut(&token)
        {
            request.progress = Progress::Sent(next);
        }
        self.open.push_back(Some(Open {
            purpose,
            bytes,
            transmissions: 0,
            jitter: 0,
            due: Time::NEVER,
            first_sent: Time::ZERO,
            last_sent: Time::ZERO,
            is_lost: false,
            first_packet: None,
            is_held: false,
            sent_in: 0,
        }));
        self.in_flight += 1;
        true
    }

    /// Where `mid` stands, `next` being the Message ID that the next message will get.
    fn index(&self, next: Mid, mid: Mid) -> Option<usize> {
        let back = usize::from(next.since(mid));
        if back == 0 { None } else { self.open.len().checked_sub(back) }
    }

    pub(super) fn get(&self, next: Mid, mid: Mid) -> Option<&Open> {
        self.open.get(self.index(next, mid)?)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, next: Mid, mid: Mid) -> Option<&mut Open> {
        let index = self.index(next, mid)?;
        self.open.get_mut(index)?.as_mut()
    }

    /// Takes a message out of the flight.
    pub(super) fn close(&mut self, next: Mid, mid: Mid) -> Option<Open> {
        let index = self.index(next, mid)?;
        let open = self.open.get_mut(index)?.take()?;
        self.in_flight -= 1;
        self.lost -= usize::from(open.is_lost);
        if open.purpose == Purpose::Response {
            self.responses -= 1;
            self.response_bytes -= open.bytes.len();
        }
        while let Some(None) = self.open.front() {
            self.open.pop_front();
        }
        Some(open)
    }

    /// Whether what is in flight may run twice; none if nothing of that Message ID is in flight.
    pub(super) fn is_repeatable(&self, next: Mid, mid: Mid) -> Option<bool> {
        match self.get(next, mid)?.purpose {
            Purpose::Request(token) => {
                Some(self.requests.get(&token).is_some_and(|request| request.is_repeatable))
            }
            Purpose::Response | Purpose::Notification(_) => Some(false),
        }
    }

    /// Forgets in which of several sessions things were said.
    pub(super) fn settle(&mut self) {
        self.open.iter_mut().flatten().for_each(|open| open.sent_in = 0);
        self.requests.values_mut().for_each(|request| request.acked_in = 0);
    }

    /// Drops the responses that wait: those who asked have forgotten.
    pub(super) fn drop_waiting_responses(&mut self, pool: &mut Pool) {
        for waiting in self.waiting_responses.drain(..) {
            self.responses -= 1;
            self.response_bytes -= waiting.bytes.len();
            pool.give(waiting.bytes);
        }
    }

    /// Forgets a request in whatever state it is. What has a Message ID but hasn't left is told as waiting.
    pub(super) fn forget(&mut self, next: Mid, token: MessageToken, pool: &mut Pool) -> Option<Request> {
        let mut request = self.requests.remove(&token)?;
        match request.progress {
            Progress::Sent(mid) => {
                if let Some(open) = self.close(next, mid) {
                    if open.transmissions == 0 {
                        request.progress = Progress::Waiting;
                    }
                    pool.give(open.bytes);
                }
            }
            Progress::Waiting => self.stop_waiting(token, pool),
            Progress::Acked | Progress::Non(_) | Progress::Observing => {}
        }
        if let Some(kept) = request.kept.take() {
            pool.give(kept);
        }
        Some(request)
    }

    /// Cuts a response in flight to an error. False if it isn't one, or if that makes it no shorter.
    pub(super) fn cut_response(&mut self, next: Mid, mid: Mid) -> bool {
        let Some(open) = self.get_mut(next, mid).filter(|open| open.purpose == Purpose::Response) else {
            return false;
        };
        let before = open.bytes.len();
        let is_cut = cut_to_code(&mut open.bytes, Code::INTERNAL_SERVER_ERROR);
        let saved = before - open.bytes.len();
        self.response_bytes -= saved;
        is_cut
    }

    /// Cuts each response of more than `max_len` bytes to an error.
    pub(super) fn cut_responses(&mut self, max_len: usize) {
        let waiting = self.waiting_responses.iter_mut().map(|waiting| &mut waiting.bytes);
        let open = self.open.iter_mut().flatten().filter(|open| open.purpose == Purpose::Response);
        for bytes in waiting.chain(open.map(|open| &mut open.bytes)).filter(|bytes| bytes.len() > max_len) {
            self.response_bytes -= bytes.len();
            cut_to_code(bytes, Code::INTERNAL_SERVER_ERROR);
            self.response_bytes += bytes.len();
        }
    }

    /// Takes out what has more than `max_len` bytes and never left, responses aside, oldest first.
    pub(super) fn take_too_large(&mut self, next: Mid, max_len: usize, pool: &mut Pool) -> Vec<Purpose> {
        let is_too_large = |open: &Open| {
            open.transmissions == 0 && open.purpose != Purpose::Response && open.bytes.len() > max_len
        };
        let mids: Vec<Mid> =
            self.mids(next).filter(|(_, open)| is_too_large(open)).map(|(mid, _)| mid).collect();
        let mut taken = Vec::new();
        for open in mids.into_iter().filter_map(|mid| self.close(next, mid)) {
            taken.push(open.purpose);
            pool.give(open.bytes);
        }
        self.waiting.retain_mut(|waiting| {
            let fits = waiting.bytes.len() <= max_len;
            if !fits {
                self.waiting_bytes -= waiting.bytes.len();
                taken.push(waiting.purpose);
                pool.give(core::mem::take(&mut waiting.bytes));
            }
            fits
        });
        taken
    }

    fn stop_waiting(&mut self, token: MessageToken, pool: &mut Pool) {
        let is_it = |waiting: &Waiting| waiting.purpose == Purpose::Request(token);
        let Some(waiting) = self.waiting.iter().position(is_it).and_then(|at| self.waiting.remove(at)) else {
            return;
        };
        self.waiting_bytes -= waiting.bytes.len();
        pool.give(waiting.bytes);
    }

    /// The Message IDs in flight, oldest first.
    pub(super) fn mids(&self, next: Mid) -> impl Iterator<Item = (Mid, &Open)> {
        let oldest = Mid(next.0.wrapping_sub(self.open.len() as u16));
        (0..).zip(&self.open).filter_map(move |(steps, open)| Some((oldest.plus(steps), open.as_ref()?)))
    }

    /// The first message in flight whose time has come, by age.
    pub(super) fn first_due(&self, next: Mid, now: Time) -> Option<Mid> {
        self.mids(next).find(|(_, open)| open.due <= now).map(|(mid, _)| mid)
    }

    /// Gives what was sent once the timeout that is known by now, if that is shorter, and returns when the first of
    /// it is due.
    pub(super) fn shorten_timeouts(&mut self, rtt: &RttEstimator, initial: Duration) -> Time {
        let is_running = |open: &&mut Open| open.transmissions == 1 && open.due != Time::NEVER;
        let sent_once = self.open.iter_mut().flatten().filter(is_running);
        let due = sent_once.map(|open| {
            let rto = spread(rtt.rto(initial), open.jitter);
            open.due = open.due.min(open.first_sent + rto);
            open.due
        });
        due.min().unwrap_or(Time::NEVER)
    }

    /// Has what would wait for longer than `longest` wait for one timeout, and returns when the first of it is due.
    pub(super) fn hasten(&mut self, now: Time, rto: Duration, longest: Duration) -> Time {
        let is_slow = |open: &&mut Open| open.due != Time::NEVER && open.due > now + longest;
        let slow = self.open.iter_mut().flatten().filter(is_slow);
        let due = slow.map(|open| {
            open.due = now + spread(rto, open.jitter);
            open.due
        });
        due.min().unwrap_or(Time::NEVER)
    }

    /// Requests whose deadline has passed, oldest first.
    pub(super) fn expired(&self, now: Time) -> Vec<MessageToken> {
        self.tokens(|request| request.deadline <= now)
    }

    /// The tokens of requests of which `is_wanted` holds, oldest first. Allocates only if there are any.
    pub(super) fn tokens(&self, is_wanted: impl Fn(&Request) -> bool) -> Vec<MessageToken> {
        let mut found: Vec<_> = self
            .requests
            .iter()
            .filter(|(_, request)| is_wanted(request))
            .map(|(token, request)| (request.serial, *token))
            .collect();
        found.sort_unstable();
        found.into_iter().map(|(_, token)| token).collect()
    }

    /// Drops everything, and tells of each notification that was not acknowledged.
    pub(super) fn clear(&mut self, pool: &mut Pool, mut lost: impl FnMut(u64)) {
        let open = self.open.drain(..).flatten().map(|open| (open.purpose, open.bytes));
        let waiting = self.waiting_responses.drain(..).chain(self.waiting.drain(..));
        for (purpose, bytes) in open.chain(waiting.map(|waiting| (waiting.purpose, waiting.bytes))) {
            if let Purpose::Notification(user) = purpose {
                lost(user);
            }
            pool.give(bytes);
        }
        self.requests.clear();
        self.in_flight = 0;
        self.lost = 0;
        self.waiting_bytes = 0;
        self.responses = 0;
        self.response_bytes = 0;
    }

    /// When something is due.
    pub(super) fn next_timeout(&self) -> Time {
        let open = self.open.iter().flatten().map(|open| open.due);
        let requests = self.requests.values().map(|request| request.deadline);
        open.chain(requests).min().unwrap_or(Time::NEVER)
    }
}

impl Open {
    /// The round trip of an acknowledgement that arrives now, by Karn's rule only of what was sent once; and was not due
    /// again, or the time that this process slept would count.
    pub(super) fn round_trip(&self, now: Time) -> Option<Duration> {
        (self.transmissions == 1 && now <= self.due).then(|| now.since(self.first_sent))
    }

    /// Counts a transmission that leaves now, and waits for what answers it.
    pub(super) fn count_transmission(&mut self, now: Time, rtt: &RttEstimator, initial: Duration) {
        self.last_sent = now;
        self.due = now + self.rto(rtt, initial);
        self.transmissions = self.transmissions.saturating_add(1);
    }

    /// The timeout of the transmission that leaves now.
    fn rto(&self, rtt: &RttEstimator, initial: Duration) -> Duration {
        spread(rtt.rto_of_attempt(initial, self.transmissions), self.jitter).min(MAX_RTO)
    }
}
