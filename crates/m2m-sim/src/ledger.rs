//! The judge of the promise in protocol section 7.1: a confirmable request reaches the handler exactly once if it is
//! answered, at most once if it ends in a timeout or with its session, and nothing is lost without a word; all that while
//! both ends keep their memory. If the one that runs it lost it, what was sent before may run once more, if its method may
//! run twice or its sender marked it repeatable (RFC 7252 section 5.1, RFC 8132 section 1). Memory is lost with a life, and
//! that of one session with the session.
//!
//! Every request has a number of its own, which travels in it. The ledger is told of each that is sent, of each run of a
//! handler, of each outcome and of each death; it says at once what cannot be, and at the end what is missing.
use std::{borrow::Cow, collections::BTreeMap};

use m2m_proto::{
    coap::{code::Code, message::Message, option::OptionNumber, option_set::OptionSet},
    error::RequestError,
    event::RequestId,
    id::Id,
};

use crate::{NetIndex, World};

/// Bytes of an answer that fits a packet on every path.
const FITS_EVERYWHERE: usize = 1050;

/// A request as it was sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// By which net.
    pub from: NetIndex,
    /// To which.
    pub to: NetIndex,
    /// Its method.
    pub method: Code,
    /// It is repeated until it is acknowledged (CON).
    pub confirmable: bool,
    /// Its sender says that it may run twice.
    pub repeatable: bool,
    /// Bytes of payload.
    pub len: usize,
}

impl Sent {
    /// True if it may run again in the next life of a net that has run it.
    fn may_run_again(&self) -> bool {
        let idempotent =
            matches!(self.method, Code::GET | Code::PUT | Code::DELETE | Code::FETCH | Code::IPATCH);
        self.confirmable && (idempotent || self.repeatable)
    }
}

/// What became of a request, once its sender was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its handler's answer came.
    Answered,
    /// The peer's machine answered in the handler's place: it is overloaded.
    Refused(Code),
    /// It failed.
    Failed(RequestError),
    /// Its sender gave it up.
    Cancelled,
    /// Its sender died before it knew.
    Orphaned,
}

#[derive(Debug)]
struct Entry {
    sent: Sent,
    runs: u32,
    /// In which life of its net it ran last.
    ran_in: u32,
    /// In which life of the net that is to run it it was sent.
    sent_in: u32,
    /// Bytes of the handler's answers; each life may give another.
    answers: Vec<usize>,
    fate: Option<Fate>,
}

/// What happened in one run, or in many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests sent.
    pub requests: u64,
    /// Runs of handlers.
    pub runs: u64,
    /// Requests by what became of them.
    pub fates: BTreeMap<Cow<'static, str>, u64>,
    /// What else happened: faults, attacks, recoveries.
    pub happenings: BTreeMap<&'static str, u64>,
}

impl Totals {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Totals) {
        self.requests += other.requests;
        self.runs += other.runs;
        for (fate, count) in &other.fates {
            *self.fates.entry(fate.clone()).or_default() += count;
        }
        for (what, count) in &other.happenings {
            *self.happenings.entry(what).or_default() += count;
        }
    }
}

/// All requests of a run, and what cannot be.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: BTreeMap<u64, Entry>,
    /// Pings and look-ups that wait for their answer.
    questions: BTreeMap<u64, NetIndex>,
    /// How often each net lost its memory.
    deaths: BTreeMap<NetIndex, u32>,
    /// How often a net lost what it knew of another, as a session with that ended.
    endings: BTreeMap<(NetIndex, NetIndex), u32>,
    /// A method that is held against whoever runs it: so that tests have something to find.
    pub objects_to: Option<Code>,
    /// In the order in which it was seen.
    pub violations: Vec<String>,
}

impl Ledger {
    /// A request was taken by its net.
    pub fn sent(&mut self, request: RequestId, sent: Sent) {
        let life = self.life(sent.to, sent.from);
        let entry = Entry { sent, runs: 0, ran_in: life, sent_in: life, answers: Vec::new(), fate: None };
        if self.entries.insert(request.0, entry).is_some() {
            self.violation(format!("request {} was sent twice", request.0));
        }
    }

    /// A handler gets a request. Its number, if it is to be answered.
    pub fn ran(&mut self, at: NetIndex, peer: Id, bytes: &[u8]) -> Option<u64> {
        let message = self.parsed(bytes)?;
        let number = number_in(&message)?;
        let Some(entry) = self.entries.get_mut(&number) else {
            self.violation(format!("net {} runs request {number}, which nobody sent", at.0));
            return None;
        };
        let endings = self.endings.get(&(at, entry.sent.from)).copied().unwrap_or(0);
        let life = self.deaths.get(&at).copied().unwrap_or(0) + endings;
        entry.runs += 1;
        let (runs, sent) = (entry.runs, entry.sent);
        let ran_in = core::mem::replace(&mut entry.ran_in, life);
        // What was sent to this very life has no excuse.
        let forgot = ran_in < life && entry.sent_in < life;
        if runs > 1 && !forgot {
            self.violation(format!("request {number} runs for the {runs}. time, and nobody lost its memory"));
        } else if runs > 1 && !sent.may_run_again() {
            self.violation(format!(
                "request {number} runs for the {runs}. time, which {} may not",
                sent.method
            ));
        }
        if message.code() != sent.method || self.objects_to == Some(sent.method) {
            self.violation(format!("request {number}, {}, runs as {}", sent.method, message.code()));
        }
        if at != sent.to {
            self.violation(format!("request {number} for net {} runs at net {}", sent.to.0, at.0));
        }
        if peer != id_of(sent.from) {
            self.violation(format!("request {number} of net {} seems to be from {peer:?}", sent.from.0));
        }
        if message.payload() != filler(number, sent.len) {
            self.violation(format!("request {number} has changed on its way"));
        }
        Some(number)
    }

    /// A handler gives its answer, and the payload of it.
    pub fn answer(&mut self, number: u64, len: usize) -> Vec<u8> {
        if let Some(entry) = self.entries.get_mut(&number) {
            entry.answers.push(len);
        }
        filler(!number, len)
    }

    /// An answer was told to the sender.
    pub fn answered(&mut self, at: NetIndex, request: RequestId, bytes: &[u8]) {
        let Some(message) = self.parsed(bytes) else { return };
        if message.code().class() != 2 {
            return self.settle(at, request, Fate::Refused(message.code()));
        }
        let right = self.entries.get(&request.0).map(|entry| {
            (entry.runs, entry.answers.iter().any(|len| message.payload() == filler(!request.0, *len)))
        });
        match right {
            Some((0, _)) => self.violation(format!("request {} is answered, and did not run", request.0)),
            Some((_, false)) => self.violation(format!("request {} has another one's answer", request.0)),
            Some((_, true)) | None => {}
        }
        self.settle(at, request, Fate::Answered);
    }

    /// A failure was told to the sender.
    pub fn failed(&mut self, at: NetIndex, request: RequestId, why: RequestError) {
        self.settle(at, request, Fate::Failed(why));
    }

    /// The sender gave a request up, if it had not ended yet.
    pub fn cancelled(&mut self, request: RequestId) {
        if let Some(entry) = self.entries.get_mut(&request.0) {
            entry.fate.get_or_insert(Fate::Cancelled);
        }
    }

    /// How often a net has lost what it knew of another.
    fn life(&self, net: NetIndex, of: NetIndex) -> u32 {
        let count = |lost: Option<&u32>| lost.copied().unwrap_or(0);
        count(self.deaths.get(&net)) + count(self.endings.get(&(net, of)))
    }

    /// A net was told that a session with another has ended: it keeps nothing of that.
    pub fn ended(&mut self, net: NetIndex, with: NetIndex) {
        *self.endings.entry((net, with)).or_default() += 1;
    }

    /// What became of a request; none while it is open.
    pub fn fate(&self, request: RequestId) -> Option<Fate> {
        self.entries.get(&request.0)?.fate
    }

    fn settle(&mut self, at: NetIndex, request: RequestId, fate: Fate) {
        let Some(entry) = self.entries.get_mut(&request.0) else {
            return self
                .violation(format!("net {} is told of request {}, which nobody sent", at.0, request.0));
        };
        let (from, before) = (entry.sent.from, entry.fate.replace(fate));
        if at != from {
            self.violation(format!("net {} is told of request {} of net {}", at.0, request.0, from.0));
        }
        if let Some(before) = before {
            self.violation(format!("request {} ends twice: {before:?}, then {fate:?}", request.0));
        }
    }

    /// A ping or a look-up was taken by its net.
    pub fn asked(&mut self, at: NetIndex, request: RequestId) {
        self.questions.insert(request.0, at);
    }

    /// What came of a ping or a look-up was told.
    pub fn told(&mut self, at: NetIndex, request: RequestId) {
        if self.questions.remove(&request.0) != Some(at) {
            self.violation(format!(
                "net {} is told of question {}, which it did not ask, or twice",
                at.0, request.0
            ));
        }
    }

    /// A net died, and its memory with it: what it waited for it will never be told.
    pub fn died(&mut self, net: NetIndex) {
        *self.deaths.entry(net).or_default() += 1;
        for entry in self.entries.values_mut().filter(|entry| entry.sent.from == net) {
            entry.fate.get_or_insert(Fate::Orphaned);
        }
        self.questions.retain(|_, at| *at != net);
    }

    /// The end: everybody must have been told everything.
    pub fn finish(&mut self) {
        let mut found = Vec::new();
        for (number, entry) in &self.entries {
            // An answer that was made for a wide path and has to leave on a narrow one gives way to an error.
            let is_cut = entry.fate == Some(Fate::Refused(Code::INTERNAL_SERVER_ERROR))
                && entry.answers.iter().any(|len| *len > FITS_EVERYWHERE);
            let cannot_have_run = !is_cut
                && matches!(
                    entry.fate,
                    Some(
                        Fate::Refused(_)
                            | Fate::Failed(
                                RequestError::NotSent(_)
                                    | RequestError::NeverLeft(_)
                                    | RequestError::TooLarge
                                    | RequestError::Reset
                            )
                    )
                );
            match entry.fate {
                None => found.push(format!("request {number} has no outcome: {entry:?}")),
                Some(fate) if cannot_have_run && entry.runs > 0 => {
                    found.push(format!("request {number} ran, and ended with {fate:?}"));
                }
                Some(_) => {}
            }
        }
        found.extend(
            self.questions
                .iter()
                .map(|(number, at)| format!("question {number} of net {} has no answer", at.0)),
        );
        self.violations.extend(found);
    }

    /// What happened.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals { requests: self.entries.len() as u64, ..Totals::default() };
        for entry in self.entries.values() {
            totals.runs += u64::from(entry.runs);
            let name = match entry.fate {
                None => "open".into(),
                Some(Fate::Answered) => "answered".into(),
                Some(Fate::Refused(code)) => Cow::Owned(format!("refused {code}")),
                Some(Fate::Failed(RequestError::TimedOut)) => "timed out".into(),
                Some(Fate::Failed(RequestError::Reset)) => "reset".into(),
                Some(Fate::Failed(RequestError::NotSent(_))) => "not sent".into(),
                Some(Fate::Failed(RequestError::NeverLeft(_))) => "never left".into(),
                Some(Fate::Failed(RequestError::TooLarge)) => "too large".into(),
                Some(Fate::Failed(RequestError::SessionLost(_))) => "session lost".into(),
                Some(Fate::Failed(RequestError::PeerForgot)) => "peer forgot".into(),
                Some(Fate::Failed(RequestError::Cancelled) | Fate::Cancelled) => "cancelled".into(),
                Some(Fate::Orphaned) => "sender died".into(),
            };
            *totals.fates.entry(name).or_default() += 1;
        }
        totals
    }

    fn parsed<'a>(&mut self, bytes: &'a [u8]) -> Option<Message<'a>> {
        let message = Message::parse(bytes);
        if message.is_err() {
            self.violation(format!("a message of {} bytes is told that cannot be parsed", bytes.len()));
        }
        message.ok()
    }

    fn violation(&mut self, words: String) {
        self.violations.push(words);
    }
}

/// The id of a net of a scenario.
pub fn id_of(net: NetIndex) -> Id {
    World::id(number_of(net))
}

/// The small number that a net of a scenario has its id and its key from.
pub fn number_of(net: NetIndex) -> u8 {
    u8::try_from(net.0 + 1).expect("a world holds at most 254 nets")
}

/// The options of a request: its number, which so needs no payload to travel in.
pub fn options_for(number: u64) -> OptionSet {
    let mut options = OptionSet::new();
    options
        .add(OptionNumber::URI_QUERY, format!("{number:08x}").as_bytes())
        .expect("8 bytes are no option too long");
    options
}

fn number_in(message: &Message<'_>) -> Option<u64> {
    let value = message.option(OptionNumber::URI_QUERY)?;
    u64::from_str_radix(std::str::from_utf8(value).ok()?, 16).ok()
}

/// Bytes that belong to this number only.
pub fn filler(number: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    let mut state = number;
    while bytes.len() < len {
        // splitmix64
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bytes.extend_from_slice(&(mixed ^ (mixed >> 27)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[cfg(test)]
mod tests {
    use m2m_proto::{
        coap::{
            message::{MessageToken, MessageType, Mid},
            writer::MessageWriter,
        },
        error::{CloseReason, ConnectError},
    };

    use super::*;

    const A: NetIndex = NetIndex(0);
    const B: NetIndex = NetIndex(1);
    const N: u64 = 7;
    const REQUEST: Sent =
        Sent { from: A, to: B, method: Code::POST, confirmable: true, repeatable: false, len: 20 };

    fn message(code: Code, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = MessageWriter::new(&mut bytes, MessageType::Con, code, Mid(1), MessageToken::EMPTY);
        for option in options_for(N).iter() {
            writer.option(option.number, option.value).expect("options are in order");
        }
        writer.payload(payload);
        bytes
    }

    fn sent() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.sent(RequestId(N), REQUEST);
        ledger
    }

    fn request() -> Vec<u8> {
        message(Code::POST, &filler(N, 20))
    }

    #[test]
    fn what_went_well_is_no_violation() {
        let mut ledger = sent();
        assert_eq!(ledger.ran(B, id_of(A), &request()), Some(N));
        let answer = ledger.answer(N, 9);
        ledger.answered(A, RequestId(N), &message(Code::CHANGED, &answer));
        ledger.finish();
        assert_eq!(ledger.violations, [""; 0]);
        assert_eq!(ledger.totals().fates["answered"], 1);
    }

    /// Each closure does one thing wrong.
    #[test]
    fn each_breach_is_seen() {
        type Breach = fn(&mut Ledger);
        let breaches: [(&str, Breach); 13] = [
            ("ran twice", |ledger| {
                ledger.ran(B, id_of(A), &request());
                ledger.ran(B, id_of(A), &request());
                ledger.failed(A, RequestId(N), RequestError::TimedOut);
            }),
            ("answered without a run", |ledger| {
                ledger.answered(A, RequestId(N), &message(Code::CHANGED, b""));
            }),
            ("answered before its handler did", |ledger| {
                ledger.ran(B, id_of(A), &request());
                ledger.answered(A, RequestId(N), &message(Code::CHANGED, b""));
            }),
            ("another's answer", |ledger| {
                ledger.ran(B, id_of(A), &request());
                ledger.answer(N, 9);
                ledger.answered(A, RequestId(N), &message(Code::CHANGED, &filler(!8, 9)));
            }),
            ("two outcomes", |ledger| {
                ledger.failed(A, RequestId(N), RequestError::TimedOut);
                ledger.failed(A, RequestId(N), RequestError::TimedOut);
            }),
            ("no outcome", |_| {}),
            ("never left, and ran", |ledger| {
                ledger.failed(A, RequestId(N), RequestError::NeverLeft(CloseReason::Lost));
                ledger.ran(B, id_of(A), &request());
            }),
            ("not sent, and ran", |ledger| {
                ledger.failed(A, RequestId(N), RequestError::NotSent(ConnectError::Unreachable));
                ledger.ran(B, id_of(A), &request());
            }),
            ("refused, and ran", |ledger| {
                ledger.ran(B, id_of(A), &request());
                ledger.answered(A, RequestId(N), &message(Code::new(5, 3), b""));
            }),
            ("told to another", |ledger| ledger.failed(B, RequestId(N), RequestError::TimedOut)),
            ("ran elsewhere", |ledger| {
                ledger.ran(A, id_of(A), &request());
                ledger.failed(A, RequestId(N), RequestError::TimedOut);
            }),
            ("from another peer", |ledger| {
                ledger.ran(B, id_of(B), &request());
                ledger.failed(A, RequestId(N), RequestError::TimedOut);
            }),
            ("changed on its way", |ledger| {
                ledger.ran(B, id_of(A), &message(Code::POST, b"other"));
                ledger.failed(A, RequestId(N), RequestError::TimedOut);
            }),
        ];
        for (name, breach) in breaches {
            let mut ledger = sent();
            breach(&mut ledger);
            ledger.finish();
            assert_eq!(ledger.violations.len(), 1, "{name}: {:?}", ledger.violations);
        }
    }

    #[test]
    fn what_nobody_sent_is_seen() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.ran(B, id_of(A), &request()), None);
        ledger.failed(A, RequestId(N), RequestError::TimedOut);
        ledger.told(A, RequestId(3));
        assert_eq!(ledger.violations.len(), 3);
    }

    /// Runs of one request, with deaths of the net that runs it between them; how many violations that is.
    fn after_deaths(sent: Sent, deaths: &[bool]) -> usize {
        let mut ledger = Ledger::default();
        ledger.sent(RequestId(N), sent);
        let request = message(sent.method, &filler(N, 20));
        for died in deaths {
            if *died {
                ledger.died(B);
            }
            ledger.ran(B, id_of(A), &request);
        }
        ledger.failed(A, RequestId(N), RequestError::TimedOut);
        ledger.finish();
        ledger.violations.len()
    }

    #[test]
    fn only_a_death_and_a_fitting_method_excuse_a_second_run() {
        let put = Sent { method: Code::PUT, ..REQUEST };
        assert_eq!(after_deaths(put, &[false, true]), 0);
        assert_eq!(after_deaths(put, &[false, true, true]), 0);
        assert_eq!(after_deaths(put, &[false, false]), 1, "nobody died");
        assert_eq!(after_deaths(put, &[false, true, false]), 1, "one death excuses one run");
        assert_eq!(after_deaths(put, &[true, false]), 1, "a death before the first run excuses none");
        assert_eq!(after_deaths(REQUEST, &[false, true]), 1, "a POST may not");
        assert_eq!(after_deaths(REQUEST, &[true]), 0, "but once");
        assert_eq!(after_deaths(Sent { repeatable: true, ..REQUEST }, &[false, true]), 0);
        assert_eq!(
            after_deaths(Sent { confirmable: false, ..put }, &[false, true]),
            1,
            "a NON is never repeated"
        );
        assert_eq!(after_deaths(Sent { method: Code::PATCH, ..REQUEST }, &[false, true]), 1);
    }

    #[test]
    fn the_end_of_a_session_with_its_sender_is_a_loss_of_memory_too() {
        let put = Sent { method: Code::PUT, ..REQUEST };
        for (with, violations) in [(A, 0), (NetIndex(2), 1)] {
            let mut ledger = Ledger::default();
            ledger.sent(RequestId(N), put);
            ledger.ran(B, id_of(A), &message(Code::PUT, &filler(N, 20)));
            ledger.ended(B, with);
            ledger.ran(B, id_of(A), &message(Code::PUT, &filler(N, 20)));
            assert_eq!(ledger.violations.len(), violations);
        }
    }

    #[test]
    fn another_method_and_an_unwelcome_one_are_seen() {
        let mut ledger = sent();
        ledger.ran(B, id_of(A), &message(Code::PUT, &filler(N, 20)));
        assert_eq!(ledger.violations.len(), 1);
        let mut ledger = sent();
        ledger.objects_to = Some(Code::POST);
        ledger.ran(B, id_of(A), &request());
        assert_eq!(ledger.violations.len(), 1);
    }

    #[test]
    fn the_dead_wait_for_nothing() {
        let mut ledger = sent();
        ledger.asked(A, RequestId(8));
        ledger.died(A);
        ledger.finish();
        assert_eq!(ledger.violations, [""; 0]);
        assert_eq!(ledger.totals().fates["sender died"], 1);
        ledger.asked(B, RequestId(9));
        ledger.finish();
        assert_eq!(ledger.violations.len(), 1, "the living do");
    }
}
