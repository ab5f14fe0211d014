//! `m2m bench sessions`: what it costs a server to hold many idle sessions.
use std::thread;
use std::time::{Duration, Instant};

use m2m_proto::session::handshake::Established;
use serde_json::json;

use super::child::{Child, Start};
use super::figures::{grouped, rounded};
use super::load::{Until, drive};
use super::peers::{CONFIRM, Choice, Crowd, Handshakes, Peer, Question};
use super::request::{Contender, take_turns};
use super::words::{Role, Sessions};
use super::{Place, Secrets, machine, progress, table};
use crate::exit::Failure;
use crate::output::Output;

/// Sessions that are opened between two looks at the memory that is left.
const STEP: u32 = 10_000;
/// The machine keeps at least so much memory for its other programs.
const LEAST_MEMORY: u64 = 256 << 20;
/// Requests on their way, each in another session.
const INFLIGHT: u32 = 64;
/// Bytes of payload in each.
const SIZE: usize = 64;
/// Where the random choice of sessions begins.
const RANDOM: u64 = 0x9E37_79B9_7F4A_7C15;
/// All are there within this time once the last has been opened.
const PATIENCE: Duration = Duration::from_secs(20);
/// The timers are tried so often before a machine counts as too busy.
const SWEEP_TRIES: u32 = 3;
/// So much of a second lies between what is measured and what comes before and after it.
const MARGIN: Duration = Duration::from_millis(500);
/// A peer is given up after 3.5 times the interval that its PING names (protocol, section 6).
const SILENCE_MS_PER_S: u64 = 3_500;

pub(super) fn run(sessions: &Sessions, place: &Place, output: Output) -> Result<(), Failure> {
    let mut secrets = Secrets::new()?;
    let start = Start { role: Role::Net, key: secrets.key(), sessions: sessions.count, flows: (0, 0) };
    let (mut many, mut few) = (Child::start(&start)?, Child::start(&start)?);
    let place = place.with(&[&many, &few]);
    let before = many.read()?.resident;
    let mut crowd = open_crowd(&mut many, &mut secrets, sessions.count, output)?;
    let after = many.read()?.resident;
    let grown = after.zip(before).map(|(after, before)| after.saturating_sub(before) as f64);
    let mut hot = open_crowd(&mut few, &mut secrets, INFLIGHT, output)?;
    crowd.choice = Choice::Random(RANDOM);
    let mut contenders = [
        Contender::new("to random ones of them", &mut many, &mut crowd),
        Contender::new("without the others", &mut few, &mut hot),
    ];
    let lasts = Duration::from_millis(sessions.pace.millis);
    take_turns(&mut contenders, INFLIGHT, sessions.pace.rounds, lasts, output)?;
    let [all, alone] = &contenders;
    let figures = Figures {
        bytes: grown.map(|grown| grown / f64::from(sessions.count)),
        rates: (all.rate(), alone.rate()),
        rate_ratio: all.ratio_to(alone, |round| Some(round.rate())),
        sweep_ms: None,
    };
    progress(output, "the timers of all are looked at");
    let sweep_ms = sweep(&mut many, &mut crowd)?;
    progress(output, "");
    tell(sessions, &place, &Figures { sweep_ms, ..figures }, output)
}

/// What came of it; none of what the system doesn't tell.
struct Figures {
    bytes: Option<f64>,
    rates: (Option<f64>, Option<f64>),
    rate_ratio: Option<f64>,
    sweep_ms: Option<f64>,
}

fn tell(sessions: &Sessions, place: &Place, figures: &Figures, output: Output) -> Result<(), Failure> {
    let of = |value: Option<f64>, digits| value.map(|value| rounded(value, digits));
    let object = json!({
        "bench": "sessions",
        "count": sessions.count,
        "bytes_per_session": of(figures.bytes, 0),
        "sweep_ms": of(figures.sweep_ms, 1),
        "rate_ratio": of(figures.rate_ratio, 3),
    });
    let number = |value: Option<f64>| value.map_or_else(|| "?".to_owned(), grouped);
    let (all, alone) = figures.rates;
    let rows = [
        vec!["bytes of memory for each session".to_owned(), number(figures.bytes)],
        vec!["ms of CPU to look at the timers of all".to_owned(), number(figures.sweep_ms)],
        vec!["requests/s to random ones among them".to_owned(), number(all)],
        vec![format!("requests/s to a server with only {INFLIGHT}"), number(alone)],
    ];
    let text = format!(
        "{} idle sessions; {} rounds of {} ms; {place}\n\n{}\n\
         The rate to random ones is {} of the rate without the others: 1 means that those cost nothing but their memory.\n\
         Each request fills a packet of its own, and asks another session than the one before.",
        grouped(sessions.count.into()),
        sessions.pace.rounds,
        sessions.pace.millis,
        table(&["", ""], &rows),
        figures.rate_ratio.map_or_else(|| "?".to_owned(), |ratio| format!("{ratio:.2}")),
    );
    output.line(&text, &object)
}

fn open_crowd(
    server: &mut Child,
    secrets: &mut Secrets,
    count: u32,
    output: Output,
) -> Result<Crowd, Failure> {
    let mut handshakes = Handshakes::new(server.address, 1)?;
    let mut peers = Vec::with_capacity(count as usize);
    open(server, &mut handshakes, secrets, count, output, |established, first| {
        let mut peer = Peer::new(established);
        peer.say(first, &[CONFIRM]);
        peers.push(peer);
    })?;
    Ok(Crowd::new(peers, handshakes, SIZE))
}

/// Opens so many sessions, and waits until the server has them all.
pub(super) fn open(
    server: &mut Child,
    handshakes: &mut Handshakes,
    secrets: &mut Secrets,
    count: u32,
    output: Output,
    mut done: impl FnMut(&Established, &mut Vec<u8>),
) -> Result<(), Failure> {
    let before = server.read()?.sessions;
    let mut opened = 0;
    while opened < count {
        if let Some(left) = machine::available().filter(|left| *left < LEAST_MEMORY) {
            return Err(Failure::Other(format!(
                "this machine's memory does not suffice: with {opened} of {count} sessions open, {} MiB are left; ask for fewer",
                left >> 20
            )));
        }
        let step = STEP.min(count - opened);
        handshakes.open(secrets, step, &mut done)?;
        opened += step;
        progress(output, &format!("{opened} of {count} sessions"));
    }
    progress(output, "");
    let start = Instant::now();
    loop {
        let there = server.read()?.sessions.saturating_sub(before);
        if there >= u64::from(count) {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            return Err(Failure::Other(format!("the server holds only {there} of {count} sessions")));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// CPU milliseconds in which the server looks at the timers of all its sessions once; none where the system doesn't say.
///
/// All peers ping, and say when they will ping again; then the server has to see to it that they do. They ping once more
/// soon after: so when the first promises fall due, each timer goes off, finds that its session lives, and is set anew.
/// Nothing else happens meanwhile.
fn sweep(server: &mut Child, crowd: &mut Crowd) -> Result<Option<f64>, Failure> {
    let all = Until::Asked(crowd.len() as u64);
    crowd.choice = Choice::InTurn;
    crowd.question = Question::Ping(0);
    let mut takes = drive(crowd, server, INFLIGHT, all)?.seconds;
    for _ in 0..SWEEP_TRIES {
        let needs = Duration::from_secs_f64(takes * 2.5) + 4 * MARGIN;
        let next_s = needs.as_millis().div_ceil(SILENCE_MS_PER_S.into());
        let next_s = u16::try_from(next_s).unwrap_or(u16::MAX);
        let silence = Duration::from_millis(u64::from(next_s) * SILENCE_MS_PER_S);
        crowd.question = Question::Ping(next_s);
        let first = Instant::now();
        takes = drive(crowd, server, INFLIGHT, all)?.seconds;
        let last = Instant::now();
        thread::sleep(MARGIN);
        takes = takes.max(drive(crowd, server, INFLIGHT, all)?.seconds);
        let before = server.read()?;
        if first.elapsed() + MARGIN > silence {
            // Something else took the machine's time: some timers went off too soon.
            continue;
        }
        thread::sleep((last + silence + MARGIN / 2).saturating_duration_since(Instant::now()));
        let after = server.read()?;
        if after.sessions < before.sessions {
            return Err(Failure::Other("the server has given up sessions whose peers had pinged".into()));
        }
        return Ok(after.cpu_since(&before).map(|ns| ns / 1e6));
    }
    Err(Failure::TimedOut(
        "other programs leave too little time to measure the timers: try again on a quiet machine".into(),
    ))
}
