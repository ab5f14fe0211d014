//! The judge of the promise in protocol section 7.1, for a run without an end: a confirmable request runs exactly once if
//! it is answered, at most once otherwise, and nothing is lost without a word, while both ends keep their memory. The rules
//! are those of the simulator's ledger; that one remembers every request for ever, which a run of hours must not.
//!
//! Every request has a number, which travels in it. The ledger is told of each that is sent, of each run of a handler, of
//! each outcome, and of each loss of memory. Words come late here: a handler may be heard of before the death of the net that
//! it ran in. So a request is judged once some time has passed since its outcome, and then forgotten but for two bits.
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use m2m::{Code, Error, ErrorKind, Id, Response};
use m2m_proto::error::RequestError;

use crate::dice::{filler, mix};

/// A request is judged so long after its outcome: by then everybody has been heard.
const SETTLES: Duration = Duration::from_secs(30);
/// An outcome may come so much later than the request's own time is over.
const OVERDUE: Duration = Duration::from_secs(30);
/// What happened in two places may be told in the wrong order within this.
const SLACK: Duration = Duration::from_secs(3);
/// A loss of memory is remembered for so long: longer than any request is open.
const LOSSES: Duration = Duration::from_secs(180);
/// What is remembered of the run's history, to be shown with a violation.
const CHRONICLE: usize = 2048;
/// Violations that are written down; the others are counted.
const MOST_TOLD: usize = 50;

/// The number of a net, from which it has its id and its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Who(pub(crate) u32);

impl Who {
    pub(crate) fn id(self) -> Id {
        Id(u128::from(self.0).to_be_bytes())
    }

    pub(crate) fn of(id: Id) -> Option<Who> {
        u32::try_from(u128::from_be_bytes(id.0)).ok().map(Who)
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net {}", self.0)
    }
}

/// Which way a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By the peer's id.
    ThroughHost,
    /// To the peer's address.
    Direct,
    /// In a session that the peer opened.
    Back,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::ThroughHost => "through a host",
            Way::Direct => "direct",
            Way::Back => "in the peer's session",
        })
    }
}

/// A request as it was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) from: Who,
    pub(crate) to: Who,
    pub(crate) method: Code,
    pub(crate) confirmable: bool,
    pub(crate) repeatable: bool,
    pub(crate) len: usize,
    pub(crate) way: Way,
    pub(crate) timeout: Duration,
}

impl Sent {
    /// True if it may run again in the next life of a net that has run it.
    fn may_run_again(&self) -> bool {
        let idempotent =
            matches!(self.method, Code::GET | Code::PUT | Code::DELETE | Code::FETCH | Code::IPATCH);
        self.confirmable && (idempotent || self.repeatable)
    }
}

/// What its sender was told.
#[derive(Clone)]
enum Outcome {
    Answered,
    /// The peer's net answered in the handler's place.
    Refused(Code),
    Failed {
        why: &'static str,
        words: String,
        may_have_run: bool,
    },
}

impl Outcome {
    fn name(&self) -> String {
        match self {
            Outcome::Answered => "answered".to_owned(),
            Outcome::Refused(code) => format!("refused, {code}"),
            Outcome::Failed { why, .. } => (*why).to_owned(),
        }
    }

    /// The outcome in full, for a request's history.
    fn words(&self) -> String {
        match self {
            Outcome::Failed { words, .. } => format!("{}: {words}", self.name()),
            _ => self.name(),
        }
    }

    fn of(number: u64, told: Result<Response, Error>) -> (Outcome, bool) {
        match told {
            Ok(response) if response.code.class() == 2 => {
                let is_right = response.payload == filler(!number, answer_len(number));
                (Outcome::Answered, is_right)
            }
            Ok(response) => (Outcome::Refused(response.code), true),
            Err(error) => {
                let (why, may_have_run) = reason(&error);
                (Outcome::Failed { why, words: error.to_string(), may_have_run }, true)
            }
        }
    }
}

/// Why a request failed, and whether it may have run all the same.
fn reason(error: &Error) -> (&'static str, bool) {
    let cause = std::error::Error::source(error).and_then(|source| source.downcast_ref::<RequestError>());
    match cause {
        Some(RequestError::TimedOut) => ("timed out", true),
        Some(RequestError::Reset) => ("reset", false),
        Some(RequestError::NotSent(_)) => ("not sent: no session", false),
        Some(RequestError::TooLarge) => ("too large", false),
        Some(RequestError::NeverLeft(_)) => ("never left: session lost", false),
        Some(RequestError::SessionLost(_)) => ("session lost", true),
        Some(RequestError::PeerForgot) => ("peer restarted", true),
        Some(RequestError::Cancelled) => ("cancelled", true),
        None if error.kind() == ErrorKind::Refused => ("not taken: queue full", false),
        None if error.kind() == ErrorKind::Closed => ("sender's net closed", true),
        None => ("not taken: session over", false),
    }
}

/// Bytes of the answer to a request.
pub(crate) fn answer_len(number: u64) -> usize {
    (mix(number) % 900) as usize
}

struct Entry {
    sent: Sent,
    at: Duration,
    runs: u32,
    first_run: Duration,
    last_run: Duration,
    outcome: Option<(Duration, Outcome)>,
}

/// Somebody lost what he knew of a peer, or of all.
#[derive(Debug)]
struct Loss {
    at: Duration,
    who: Who,
    of: Option<Who>,
}

/// Which requests were judged, and which of those ran: two bits each.
#[derive(Default)]
struct Past(Vec<[u64; 2]>);

impl Past {
    fn keep(&mut self, number: u64, ran: bool) {
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if self.0.len() <= word {
            self.0.resize(word + 1, [0; 2]);
        }
        self.0[word][0] |= bit;
        self.0[word][1] |= if ran { bit } else { 0 };
    }

    /// Whether it ran, if it was judged.
    fn ran(&self, number: u64) -> Option<bool> {
        let [known, ran] = self.0.get((number / 64) as usize)?;
        let bit = 1 << (number % 64);
        (known & bit != 0).then_some(ran & bit != 0)
    }
}

pub(crate) struct Ledger {
    /// The time that this process was awake: what it slept through nobody could act in.
    now: Duration,
    next: u64,
    open: HashMap<u64, Entry>,
    /// Those with an outcome, in the order of that.
    settling: VecDeque<u64>,
    past: Past,
    losses: VecDeque<Loss>,
    chronicle: VecDeque<(Duration, Option<Who>, String)>,
    pub(crate) sent: u64,
    pub(crate) runs: u64,
    pub(crate) fates: BTreeMap<String, u64>,
    /// What else happened.
    pub(crate) happenings: BTreeMap<&'static str, u64>,
    pub(crate) violations: u64,
}

/// The ledger, for all who have something to tell.
#[derive(Clone)]
pub(crate) struct Books(Arc<Mutex<Ledger>>);

impl Books {
    /// For so many requests a second, and in all: what will be needed is taken at once, so that it is no growth later.
    pub(crate) fn new(rate: u64, requests: u64) -> Books {
        let past = Past(vec![[0; 2]; (requests / 64 + 1) as usize]);
        let kept = (rate * 2 * SETTLES.as_secs()) as usize;
        Books(Arc::new(Mutex::new(Ledger {
            now: Duration::ZERO,
            next: 0,
            open: HashMap::with_capacity(kept),
            settling: VecDeque::with_capacity(kept),
            past,
            losses: VecDeque::new(),
            chronicle: VecDeque::with_capacity(CHRONICLE),
            sent: 0,
            runs: 0,
            fates: BTreeMap::new(),
            happenings: BTreeMap::new(),
            violations: 0,
        })))
    }

    pub(crate) fn open(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn count(&self, what: &'static str) {
        *self.open().happenings.entry(what).or_default() += 1;
    }

    /// Something that happened to a net, or to all: counted, and remembered for a while.
    pub(crate) fn note(&self, what: &'static str, who: Option<Who>, more: impl fmt::Display) {
        let mut ledger = self.open();
        *ledger.happenings.entry(what).or_default() += 1;
        let words = format!("{what} {more}");
        ledger.chronicle(who, words);
    }
}

impl Ledger {
    /// Time goes on: what is due is judged.
    pub(crate) fn pass_time(&mut self, awake: Duration) {
        self.now += awake;
        while let Some(number) = self.settling.front().copied() {
            let ended = self.open.get(&number).and_then(|entry| entry.outcome.as_ref()).map(|(at, _)| *at);
            if ended.is_some_and(|at| self.now < at + SETTLES) {
                break;
            }
            self.settling.pop_front();
            self.retire(number);
        }
        while self.losses.front().is_some_and(|loss| self.now > loss.at + LOSSES) {
            self.losses.pop_front();
        }
    }

    /// Requests whose time is long over, and whose senders were not told anything.
    pub(crate) fn look_for_overdue(&mut self) {
        let is_overdue =
            |entry: &Entry| entry.outcome.is_none() && self.now > entry.at + entry.sent.timeout + OVERDUE;
        let overdue: Vec<u64> =
            self.open.iter().filter(|(_, entry)| is_overdue(entry)).map(|(number, _)| *number).collect();
        for number in overdue {
            self.violation(number, "has no outcome, and its time is over");
            let words = "no outcome".to_owned();
            self.settle(number, Outcome::Failed { why: "NO OUTCOME", words, may_have_run: true });
        }
    }

    /// Requests without an outcome.
    pub(crate) fn outstanding(&self) -> usize {
        self.open.len() - self.settling.len()
    }

    /// A request is about to be sent: its number.
    pub(crate) fn send(&mut self, sent: Sent) -> u64 {
        let number = self.next;
        self.next += 1;
        self.sent += 1;
        let at = self.now;
        self.open.insert(number, Entry { sent, at, runs: 0, first_run: at, last_run: at, outcome: None });
        number
    }

    /// A handler runs a request.
    pub(crate) fn ran(&mut self, at: Who, number: u64, peer: Id, method: Code, payload: &[u8]) {
        self.runs += 1;
        let now = self.now;
        let Some(entry) = self.open.get_mut(&number) else {
            let text = match self.past.ran(number) {
                Some(true) => format!("{at} runs request {number} again, which ran and ended long ago"),
                Some(false) => format!("{at} runs request {number}, which ended long ago without"),
                None => format!("{at} runs request {number}, which nobody sent"),
            };
            return self.tell(&text);
        };
        entry.first_run = if entry.runs == 0 { now } else { entry.first_run };
        entry.last_run = now;
        entry.runs += 1;
        let sent = entry.sent;
        if at != sent.to {
            self.violation(number, &format!("runs at {at}"));
        }
        if peer != sent.from.id() {
            self.violation(number, &format!("runs as one of {peer}"));
        }
        if method != sent.method || payload != filler(number, sent.len) {
            self.violation(number, "has changed on its way");
        }
    }

    /// A sender is told what became of its request.
    pub(crate) fn ended(&mut self, number: u64, told: Result<Response, Error>) {
        let (outcome, is_right) = Outcome::of(number, told);
        if !is_right {
            self.violation(number, "got another one's answer");
        }
        self.settle(number, outcome);
    }

    fn settle(&mut self, number: u64, outcome: Outcome) {
        let now = self.now;
        let Some(entry) = self.open.get_mut(&number) else {
            return self.tell(&format!("request {number} ends, and is not open"));
        };
        if let Some((_, before)) = entry.outcome.replace((now, outcome)) {
            return self.violation(number, &format!("ends for the second time, after {}", before.words()));
        }
        self.settling.push_back(number);
    }

    /// A net lost its memory, or what it knew of one peer.
    pub(crate) fn forgot(&mut self, who: Who, of: Option<Who>) {
        self.losses.push_back(Loss { at: self.now, who, of });
        let words = of.map_or("forgot everything".to_owned(), |of| format!("forgot {of}"));
        self.chronicle(Some(who), words);
    }

    fn retire(&mut self, number: u64) {
        let Some(entry) = self.open.get(&number) else { return };
        let Some((_, outcome)) = &entry.outcome else { return };
        let kind = if entry.sent.confirmable { "" } else { "non-confirmable, " };
        let (name, runs) = (format!("{kind}{}", outcome.name()), entry.runs);
        let forgotten = self.times_forgotten(entry);
        let wrong = match outcome {
            Outcome::Answered if runs == 0 => Some("is answered, and did not run"),
            Outcome::Refused(_) | Outcome::Failed { may_have_run: false, .. } if runs > forgotten => {
                Some("ran, although its sender was told that it did not")
            }
            _ if runs > 1 + forgotten => Some("ran again, and nobody had lost its memory"),
            _ if runs > 1 && !entry.sent.may_run_again() => Some("ran again, which its method may not"),
            _ => None,
        };
        if let Some(wrong) = wrong {
            self.violation(number, wrong);
        }
        *self.fates.entry(name).or_default() += 1;
        self.past.keep(number, runs > 0);
        self.open.remove(&number);
    }

    /// How often the net that ran a request forgot its sender between the first run and the last.
    fn times_forgotten(&self, entry: &Entry) -> u32 {
        let is_between = |loss: &&Loss| {
            loss.at + SLACK >= entry.first_run
                && loss.at <= entry.last_run + SLACK
                && loss.who == entry.sent.to
                && loss.of.is_none_or(|of| of == entry.sent.from)
        };
        self.losses.iter().filter(is_between).count() as u32
    }

    fn chronicle(&mut self, who: Option<Who>, words: String) {
        if self.chronicle.len() == CHRONICLE {
            self.chronicle.pop_front();
        }
        self.chronicle.push_back((self.now, who, words));
    }

    /// What cannot be, and the request's history.
    fn violation(&mut self, number: u64, wrong: &str) {
        let Some(entry) = self.open.get(&number) else { return self.tell(wrong) };
        let Sent { from, to, method, confirmable, repeatable, len, way, timeout } = entry.sent;
        let kind = if confirmable { "confirmable" } else { "non-confirmable" };
        let repeatable = if repeatable { ", repeatable" } else { "" };
        let mut text = format!(
            "request {number} {wrong}: {method}, {kind}{repeatable}, {len} bytes, {from} to {to}, {way}; \
             sent at {:.1} s, to take {} s at most; {} runs",
            entry.at.as_secs_f64(),
            timeout.as_secs(),
            entry.runs,
        );
        if entry.runs > 0 {
            let (first, last) = (entry.first_run.as_secs_f64(), entry.last_run.as_secs_f64());
            text += &format!(", the first at {first:.1} s, the last at {last:.1} s");
        }
        if let Some((at, outcome)) = &entry.outcome {
            text += &format!("; at {:.1} s {}", at.as_secs_f64(), outcome.words());
        }
        let since = entry.at.saturating_sub(Duration::from_secs(30));
        for (at, who, words) in &self.chronicle {
            if *at >= since && who.is_none_or(|who| who == from || who == to) {
                let who = who.map_or("all".to_owned(), |who| who.to_string());
                text += &format!("\n    {:9.1} s  {who}: {words}", at.as_secs_f64());
            }
        }
        self.tell(&text);
    }

    /// Something that must not be.
    pub(crate) fn tell(&mut self, text: &str) {
        self.violations += 1;
        if self.violations <= MOST_TOLD as u64 {
            println!("VIOLATION at {:.1} s: {text}", self.now.as_secs_f64());
        }
    }

    /// The end: everybody must have been told everything.
    pub(crate) fn finish(&mut self) {
        let open: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, entry)| entry.outcome.is_none())
            .map(|(number, _)| *number)
            .collect();
        open.into_iter().for_each(|number| self.violation(number, "has no outcome at the end"));
        std::mem::take(&mut self.settling).into_iter().for_each(|number| self.retire(number));
    }
}
