//! What the peer asks: which of its confirmable messages were seen, which requests wait for their answer, and the
//! answers to give again (RFC 7252 sections 4.2 and 4.5).
//!
//! ```text
//!  request, new ──► Fresh ── answered within ACK_DELAY ──► Answered (acknowledgement and response in one)
//!                     │ ack delay passes: empty ACK
//!                     ▼
//!                   Acked ── answered ──► Answered (an empty ACK; the response leaves as a message of its own)
//!  request, NON ──► Non ──── answered ──► gone
//! ```
//!
//! *Marks* (one bit for each of the last 256 Message IDs) outlive the answers: what was handled is never handled
//! again, even if its answer had to be given up.
use super::{
    code::Code,
    message::{MessageToken, Mid},
    pool::Pool,
    writer::cut_to_code,
};
use crate::time::{Duration, Time};
use alloc::{collections::VecDeque, vec::Vec};

/// W: how many Message IDs a receiver remembers, and how far a sender may run ahead of the oldest message that is
/// neither acknowledged nor given up.
pub const MID_WINDOW: usize = 256;

/// What the ring says of a Message ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Not heard yet.
    Never,
    /// Handled.
    Before,
    /// Too old to tell.
    TooOld,
}

/// Which of the last W Message IDs were handled. Gaps are allowed, and the first one that is heard may be late or
/// early by less than W.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ring {
    /// By Message ID modulo W; meaningless without `newest`.
    marks: [u32; MID_WINDOW / 32],
    newest: Option<Mid>,
}

impl Ring {
    /// What is known about `mid`.
    pub(super) fn look(&self, mid: Mid) -> Seen {
        let Some(newest) = self.newest else { return Seen::Never };
        if is_after(mid, newest) {
            return Seen::Never;
        }
        if usize::from(newest.since(mid)) >= MID_WINDOW {
            return Seen::TooOld;
        }
        let (word, bit) = place(mid);
        let is_marked = self.marks.get(word).is_some_and(|marks| marks & bit != 0);
        if is_marked { Seen::Before } else { Seen::Never }
    }

    /// Remembers that `mid` was handled. What falls out of the window by that is forgotten.
    pub(super) fn mark(&mut self, mid: Mid) {
        match self.newest {
            Some(newest) if is_after(mid, newest) => self.advance(newest, mid),
            Some(_) => {}
            None => self.newest = Some(mid),
        }
        let (word, bit) = place(mid);
        if let Some(marks) = self.marks.get_mut(word) {
            *marks |= bit;
        }
    }

    fn advance(&mut self, newest: Mid, mid: Mid) {
        let steps = mid.since(newest);
        if usize::from(steps) >= MID_WINDOW {
            self.marks = [0; MID_WINDOW / 32];
        } else {
            for step in 1..=steps {
                let (word, bit) = place(newest.plus(step));
                if let Some(marks) = self.marks.get_mut(word) {
                    *marks &= !bit;
                }
            }
        }
        self.newest = Some(mid);
    }
}

/// Serial order modulo 2^16.
fn is_after(mid: Mid, other: Mid) -> bool {
    (1..0x8000).contains(&mid.since(other))
}

fn place(mid: Mid) -> (usize, u32) {
    let at = ring_index(mid);
    (at / 32, 1 << (at % 32))
}

fn ring_index(mid: Mid) -> usize {
    usize::from(mid.0) % MID_WINDOW
}

/// A request that waits for its answer. It names one request only, also after that is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IncomingId {
    slot: u16,
    serial: u32,
}

/// How a request can still be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AnswerForm {
    /// With the acknowledgement.
    Piggybacked(Mid),
    /// In a confirmable message of its own.
    Separate(Mid),
    /// In a non-confirmable message.
    NonConfirmable,
}

/// What to do about a confirmable request that was handled before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Its answer is being made, and no acknowledgement has left: nothing yet.
    Wait,
    /// Its answer is being made: acknowledge it once more.
    Acknowledge,
    /// Its answer leaves again.
    Resend(IncomingId),
    /// Its answer is on the way out already.
    Leaving,
    /// Its answer was given up.
    Gone,
}

#[derive(Debug)]
enum State {
    Free,
    Fresh,
    Acked,
    Non,
    Answered { bytes: Vec<u8>, is_leaving: bool },
}

#[derive(Debug)]
struct Slot {
    /// When the request came, or its answer was made.
    at: Time,
    state: State,
    token: MessageToken,
    serial: u32,
    mid: Mid,
}

/// Bounds of the answers that are kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct AnswerLimits {
    pub(super) count: usize,
    pub(super) bytes: usize,
}

/// The requests of the peer that are remembered with more than a mark.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Slot by Message ID modulo W; empty until the first confirmable request.
    by_mid: Vec<Option<u16>>,
    /// Answers in the order in which they were made. Those whose slot serves another by now are skipped.
    answered: VecDeque<IncomingId>,
    answers: usize,
    answer_bytes: usize,
    open: usize,
}

impl Incoming {
    /// Requests that wait for their answer.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// Answers that are kept.
    pub(super) fn answers(&self) -> usize {
        self.answers
    }

    /// Takes a request in. `serial` must be another one each time.
    pub(super) fn add(
        &mut self,
        now: Time,
        serial: u32,
        mid: Mid,
        token: MessageToken,
        is_confirmable: bool,
        pool: &mut Pool,
    ) -> Option<IncomingId> {
        let state = if is_confirmable { State::Fresh } else { State::Non };
        let slot = Slot { at: now, state, token, serial, mid };
        let index = match self.free.pop() {
            Some(index) => {
                *self.slots.get_mut(usize::from(index))? = slot;
                index
            }
            None => {
                let index = u16::try_from(self.slots.len()).ok()?;
                self.slots.push(slot);
                index
            }
        };
        if is_confirmable {
            self.link(mid, index, pool);
        }
        self.open += 1;
        Some(IncomingId { slot: index, serial })
    }

    /// Makes a slot findable by its Message ID. The one that was found there before is W or more older: its
    /// requester waits no longer for what the slot may keep.
    fn link(&mut self, mid: Mid, index: u16, pool: &mut Pool) {
        if self.by_mid.is_empty() {
            self.by_mid.resize(MID_WINDOW, None);
        }
        let Some(place) = self.by_mid.get_mut(ring_index(mid)) else { return };
        let Some(before) = place.replace(index) else { return };
        let Some(slot) = self.slots.get(usize::from(before)) else { return };
        if matches!(slot.state, State::Answered { .. }) {
            self.release(IncomingId { slot: before, serial: slot.serial }, pool);
        }
    }

    fn get(&self, id: IncomingId) -> Option<&Slot> {
        self.slots.get(usize::from(id.slot)).filter(|slot| slot.serial == id.serial)
    }

    fn get_mut(&mut self, id: IncomingId) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(id.slot)).filter(|slot| slot.serial == id.serial)
    }

    /// What to do about the repetition of a handled request.
    pub(super) fn repeat(&mut self, mid: Mid) -> Repeat {
        let Some(Some(index)) = self.by_mid.get(ring_index(mid)).copied() else { return Repeat::Gone };
        let Some(slot) = self.slots.get_mut(usize::from(index)).filter(|slot| slot.mid == mid) else {
            return Repeat::Gone;
        };
        match &mut slot.state {
            State::Fresh => Repeat::Wait,
            State::Acked => Repeat::Acknowledge,
            State::Answered { is_leaving: true, .. } => Repeat::Leaving,
            State::Answered { is_leaving, .. } => {
                *is_leaving = true;
                Repeat::Resend(IncomingId { slot: index, serial: slot.serial })
            }
            State::Free | State::Non => Repeat::Gone,
        }
    }

    /// How `id` can be answered, and its token; `None` if it doesn't wait for an answer.
    pub(super) fn answer_form(&self, id: IncomingId) -> Option<(AnswerForm, MessageToken)> {
        let slot = self.get(id)?;
        let form = match slot.state {
            State::Fresh => AnswerForm::Piggybacked(slot.mid),
            State::Acked => AnswerForm::Separate(slot.mid),
            State::Non => AnswerForm::NonConfirmable,
            State::Free | State::Answered { .. } => return None,
        };
        Some((form, slot.token))
    }

    /// Keeps what a repetition of `id` shall be answered with. With `is_leaving` it can't be given up until
    /// [`Incoming::left`]. Older answers go if the limits ask for it.
    pub(super) fn set_answer(
        &mut self,
        now: Time,
        id: IncomingId,
        bytes: Vec<u8>,
        is_leaving: bool,
        limits: AnswerLimits,
        pool: &mut Pool,
    ) {
        let len = bytes.len();
        let Some(slot) = self.get_mut(id) else { return pool.give(bytes) };
        slot.state = State::Answered { bytes, is_leaving };
        slot.at = now;
        self.open = self.open.saturating_sub(1);
        self.answers += 1;
        self.answer_bytes += len;
        if self.answered.len() > 2 * self.answers + 16 {
            self.forget_stale_ids();
        }
        self.answered.push_back(id);
        while self.answers > limits.count || self.answer_bytes > limits.bytes {
            if !self.give_up_oldest(|_| true, pool) {
                break;
            }
        }
    }

    /// Most answers go because their Message ID falls out of the window, wherever they stand in the queue.
    fn forget_stale_ids(&mut self) {
        let slots = &self.slots;
        self.answered.retain(|id| {
            let slot = slots.get(usize::from(id.slot)).filter(|slot| slot.serial == id.serial);
            slot.is_some_and(|slot| matches!(slot.state, State::Answered { .. }))
        });
    }

    /// Frees the oldest answer that isn't on its way out, if `may_go` holds for the time it was made.
    fn give_up_oldest(&mut self, may_go: impl Fn(Time) -> bool, pool: &mut Pool) -> bool {
        let mut at = 0;
        while let Some(id) = self.answered.get(at).copied() {
            match self.get(id).map(|slot| (&slot.state, slot.at)) {
                Some((State::Answered { is_leaving: true, .. }, _)) => at += 1,
                Some((State::Answered { .. }, made)) if !may_go(made) => return false,
                Some((State::Answered { .. }, _)) => {
                    self.answered.remove(at);
                    self.release(id, pool);
                    return true;
                }
                _ => drop(self.answered.remove(at)),
            }
        }
        false
    }

    /// Frees a slot, whatever it holds.
    pub(super) fn release(&mut self, id: IncomingId, pool: &mut Pool) {
        let Some(slot) = self.get_mut(id) else { return };
        let mid = slot.mid;
        match core::mem::replace(&mut slot.state, State::Free) {
            State::Free => return,
            State::Fresh | State::Acked | State::Non => self.open = self.open.saturating_sub(1),
            State::Answered { bytes, .. } => {
                self.answers -= 1;
                self.answer_bytes -= bytes.len();
                pool.give(bytes);
            }
        }
        if let Some(place) = self.by_mid.get_mut(ring_index(mid))
            && *place == Some(id.slot)
        {
            *place = None;
        }
        self.free.push(id.slot);
    }

    /// The answer of `id` while it is on its way out.
    pub(super) fn leaving(&self, id: IncomingId) -> Option<&[u8]> {
        match &self.get(id)?.state {
            State::Answered { bytes, is_leaving: true } => Some(bytes),
            _ => None,
        }
    }

    /// Says that the answer of `id` has left.
    pub(super) fn left(&mut self, id: IncomingId) {
        if let Some(Slot { state: State::Answered { is_leaving, .. }, .. }) = self.get_mut(id) {
            *is_leaving = false;
        }
    }

    /// Says that no answer is on its way out any more.
    pub(super) fn nothing_leaves(&mut self) {
        for slot in &mut self.slots {
            if let State::Answered { is_leaving, .. } = &mut slot.state {
                *is_leaving = false;
            }
        }
    }

    /// Cuts the answer of `id` to an error. False if that makes it no shorter.
    pub(super) fn cut_answer(&mut self, id: IncomingId) -> bool {
        let Some(Slot { state: State::Answered { bytes, .. }, .. }) = self.get_mut(id) else { return false };
        let before = bytes.len();
        let is_cut = cut_to_code(bytes, Code::INTERNAL_SERVER_ERROR);
        let saved = before - bytes.len();
        self.answer_bytes -= saved;
        is_cut
    }

    /// Cuts each answer of more than `max_len` bytes to an error.
    pub(super) fn cut_answers(&mut self, max_len: usize) {
        for slot in &mut self.slots {
            if let State::Answered { bytes, .. } = &mut slot.state
                && bytes.len() > max_len
            {
                self.answer_bytes -= bytes.len();
                cut_to_code(bytes, Code::INTERNAL_SERVER_ERROR);
                self.answer_bytes += bytes.len();
            }
        }
    }

    /// Requests whose acknowledgement can wait no longer: they count as acknowledged from now on.
    pub(super) fn acknowledge_late(&mut self, now: Time, ack_delay: Duration, mut ack: impl FnMut(Mid)) {
        for slot in &mut self.slots {
            if matches!(slot.state, State::Fresh) && slot.at + ack_delay <= now {
                slot.state = State::Acked;
                ack(slot.mid);
            }
        }
    }

    /// Gives up the answers made at `until` or before.
    pub(super) fn expire_answers(&mut self, now: Time, lifetime: Duration, pool: &mut Pool) {
        while self.give_up_oldest(|made| made + lifetime <= now, pool) {}
    }

    /// Gives up all answers but those on their way out.
    pub(super) fn give_up_answers(&mut self, pool: &mut Pool) {
        while self.give_up_oldest(|_| true, pool) {}
    }

    /// When an acknowledgement is due, or an answer has been kept long enough.
    pub(super) fn next_timeout(&self, ack_delay: Duration, answer_lifetime: Duration) -> Time {
        let due = |slot: &Slot| match slot.state {
            State::Fresh => slot.at + ack_delay,
            State::Answered { .. } => slot.at + answer_lifetime,
            State::Free | State::Acked | State::Non => Time::NEVER,
        };
        self.slots.iter().map(due).min().unwrap_or(Time::NEVER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{collections::BTreeSet, vec};

    const LIMITS: AnswerLimits = AnswerLimits { count: 4, bytes: 1000 };

    #[test]
    fn the_first_message_id_may_be_late_or_early() {
        let mut ring = Ring::default();
        assert_eq!(ring.look(Mid(7)), Seen::Never);
        ring.mark(Mid(2));
        assert_eq!(ring.look(Mid(2)), Seen::Before);
        assert_eq!(ring.look(Mid(65_535)), Seen::Never);
        assert_eq!(ring.look(Mid(2u16.wrapping_sub(255))), Seen::Never);
        assert_eq!(ring.look(Mid(2u16.wrapping_sub(256))), Seen::TooOld);
    }

    #[test]
    fn a_jump_forgets_what_falls_out() {
        let mut ring = Ring::default();
        (0..256).for_each(|mid| ring.mark(Mid(mid)));
        ring.mark(Mid(300));
        assert_eq!(ring.look(Mid(44)), Seen::TooOld);
        assert_eq!(ring.look(Mid(45)), Seen::Before);
        assert_eq!(ring.look(Mid(299)), Seen::Never);
        ring.mark(Mid(20_000));
        assert_eq!(ring.look(Mid(19_999)), Seen::Never);
        assert_eq!(ring.look(Mid(300)), Seen::TooOld);
    }

    proptest! {
        /// Against a set of all that was ever marked, with numbers that don't wrap.
        #[test]
        fn the_ring_tells_what_a_set_tells(start: u16, moves in prop::collection::vec((0u8..10, 0u32..300), 1..400)) {
            let mid = |number: u32| Mid(start.wrapping_add(number as u16));
            let (mut ring, mut marked) = (Ring::default(), BTreeSet::new());
            let mut newest = 1000u32;
            ring.mark(mid(newest));
            marked.insert(newest);
            for (kind, by) in moves {
                // Mostly small steps and looks back, seldom a jump beyond the window.
                let number = match kind {
                    0 => newest + by,
                    1..4 => newest + by % 4,
                    _ => newest - by % 300,
                };
                let expected = match (number + 256 <= newest, marked.contains(&number)) {
                    (true, _) => Seen::TooOld,
                    (false, true) => Seen::Before,
                    (false, false) => Seen::Never,
                };
                prop_assert_eq!(ring.look(mid(number)), expected);
                if expected == Seen::Never {
                    ring.mark(mid(number));
                    marked.insert(number);
                    newest = newest.max(number);
                }
            }
        }
    }

    fn add(incoming: &mut Incoming, mid: u16, pool: &mut Pool) -> IncomingId {
        incoming.add(Time::ZERO, u32::from(mid), Mid(mid), MessageToken::EMPTY, true, pool).unwrap()
    }

    #[test]
    fn what_is_leaving_is_not_given_up() {
        let (mut incoming, mut pool) = (Incoming::default(), Pool::new(8));
        let ids: Vec<_> = (0..6).map(|mid| add(&mut incoming, mid, &mut pool)).collect();
        for id in &ids {
            incoming.set_answer(Time::ZERO, *id, vec![1; 10], true, LIMITS, &mut pool);
        }
        assert_eq!(incoming.answers(), 6, "over the limit, but each of them is on its way");
        ids.iter().for_each(|id| incoming.left(*id));
        let seventh = add(&mut incoming, 6, &mut pool);
        incoming.set_answer(Time::ZERO, seventh, vec![1; 10], true, LIMITS, &mut pool);
        assert_eq!(incoming.answers(), 4);
        assert_eq!(incoming.repeat(Mid(2)), Repeat::Gone);
        assert_eq!(incoming.repeat(Mid(3)), Repeat::Resend(ids[3]));
        assert_eq!(incoming.repeat(Mid(6)), Repeat::Leaving);
    }

    #[test]
    fn an_id_outlives_its_slot_without_harm() {
        let (mut incoming, mut pool) = (Incoming::default(), Pool::new(8));
        let first = add(&mut incoming, 1, &mut pool);
        incoming.release(first, &mut pool);
        let second = add(&mut incoming, 2, &mut pool);
        assert_eq!(first.slot, second.slot);
        assert_eq!(incoming.answer_form(first), None);
        incoming.release(first, &mut pool);
        assert_eq!(
            incoming.answer_form(second),
            Some((AnswerForm::Piggybacked(Mid(2)), MessageToken::EMPTY))
        );
        assert_eq!(incoming.open(), 1);
    }

    #[test]
    fn the_queue_of_answers_stays_short() {
        let (mut incoming, mut pool) = (Incoming::default(), Pool::new(8));
        let limits = AnswerLimits { count: 300, bytes: usize::MAX };
        for serial in 0..10_000u32 {
            let mid = Mid(serial as u16);
            let id = incoming.add(Time::ZERO, serial, mid, MessageToken::EMPTY, true, &mut pool).unwrap();
            incoming.set_answer(Time::ZERO, id, vec![1], false, limits, &mut pool);
        }
        assert_eq!((incoming.answers(), incoming.answer_bytes), (MID_WINDOW, MID_WINDOW));
        assert!(incoming.answered.len() <= 3 * MID_WINDOW, "{}", incoming.answered.len());
        assert!(incoming.slots.len() <= MID_WINDOW + 1);
    }

    #[test]
    fn acknowledgements_and_answers_have_their_time() {
        let (mut incoming, mut pool) = (Incoming::default(), Pool::new(8));
        let (delay, lifetime) = (Duration::from_millis(50), Duration::from_secs(247));
        let id = add(&mut incoming, 1, &mut pool);
        assert_eq!(incoming.next_timeout(delay, lifetime), Time::ZERO + delay);
        let mut acked = Vec::new();
        incoming.acknowledge_late(Time::from_micros(49_999), delay, |mid| acked.push(mid));
        assert_eq!(acked, []);
        incoming.acknowledge_late(Time::from_micros(50_000), delay, |mid| acked.push(mid));
        assert_eq!(acked, [Mid(1)]);
        assert_eq!(incoming.next_timeout(delay, lifetime), Time::NEVER);
        incoming.set_answer(Time::ZERO, id, pool.take(1), false, LIMITS, &mut pool);
        assert_eq!(incoming.next_timeout(delay, lifetime), Time::ZERO + lifetime);
        incoming.expire_answers(Time::ZERO + lifetime, lifetime, &mut pool);
        assert_eq!((incoming.answers(), pool.len()), (0, 1));
    }
}
