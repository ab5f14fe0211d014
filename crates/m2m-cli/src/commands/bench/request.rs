//! `m2m bench request`: encrypted requests and their answers, beside UDP echoes.
use std::time::Duration;

use m2m_proto::coap::line::MID_WINDOW;
use serde_json::json;

use super::child::{Child, Start};
use super::figures::{grouped, median, rounded};
use super::fleet::Fleet;
use super::load::{Load, Round, Until, drive};
use super::peers::{CONFIRM, Handshakes, Peer};
use super::plain::Plain;
use super::udp::Socket;
use super::words::{Request, Role};
use super::{Place, Secrets, WARM_UP, table};
use crate::exit::Failure;
use crate::output::Output;

/// More than these a session doesn't begin before the first are answered (protocol, section 7).
const IN_A_SESSION: u32 = MID_WINDOW as u32;

/// A server, who drives it, and what came of that.
pub(super) struct Contender<'a> {
    pub(super) name: &'static str,
    server: &'a mut Child,
    load: &'a mut dyn Load,
    rounds: Vec<Round>,
}

impl<'a> Contender<'a> {
    pub(super) fn new(name: &'static str, server: &'a mut Child, load: &'a mut dyn Load) -> Contender<'a> {
        Contender { name, server, load, rounds: Vec::new() }
    }

    pub(super) fn rate(&self) -> Option<f64> {
        median(self.rounds.iter().map(Round::rate))
    }

    pub(super) fn cpu(&self) -> Option<f64> {
        median(self.rounds.iter().filter_map(Round::cpu_each))
    }

    pub(super) fn latency_us(&mut self, part: f64) -> Option<f64> {
        median(self.rounds.iter_mut().map(|round| round.latency_us(part)))
    }

    /// The part of its core that the server has used: well below 1, it is the client that sets the pace.
    pub(super) fn busy(&self) -> String {
        let part = median(self.rounds.iter().filter_map(|round| Some(round.cpu_ns? / 1e9 / round.seconds)));
        part.map_or_else(|| "?".to_owned(), |part| format!("{:.0} %", part * 100.0))
    }

    /// The median of this one's figure divided by the other's, round by round.
    pub(super) fn ratio_to(&self, other: &Contender<'_>, of: impl Fn(&Round) -> Option<f64>) -> Option<f64> {
        let pairs = self.rounds.iter().zip(&other.rounds);
        median(pairs.filter_map(|(own, other)| Some(of(own)? / of(other)?)))
    }
}

/// Lets all take turns. Each round begins with another of them.
pub(super) fn take_turns(
    contenders: &mut [Contender<'_>],
    inflight: u32,
    rounds: u32,
    lasts: Duration,
    output: Output,
) -> Result<(), Failure> {
    for contender in contenders.iter_mut() {
        drive(contender.load, contender.server, inflight, Until::Lasted(lasts.min(WARM_UP)))?;
    }
    for round in 0..rounds {
        super::progress(output, &format!("round {} of {rounds}", round + 1));
        let count = contenders.len();
        for turn in 0..count {
            let Some(contender) = contenders.get_mut((turn + round as usize) % count) else { continue };
            let done = drive(contender.load, contender.server, inflight, Until::Lasted(lasts))?;
            contender.rounds.push(done);
        }
    }
    super::progress(output, "");
    Ok(())
}

pub(super) fn run(request: &Request, place: &Place, output: Output) -> Result<(), Failure> {
    let most = request.flows.saturating_mul(IN_A_SESSION);
    if request.inflight > most {
        return Err(Failure::Configuration(format!(
            "--inflight {}: a session has at most {IN_A_SESSION} requests on their way; with --flows {} that is {most}",
            request.inflight, request.flows,
        )));
    }
    let mut secrets = Secrets::new()?;
    let (size, flows) = (usize::from(request.size), request.flows);
    let server = |role| {
        let sessions = flows + request.idle;
        Child::start(&Start { role, key: secrets.key(), sessions, flows: (0, 0) })
    };
    let plain = match request.inflight {
        1 => Role::EchoLoop,
        _ => Role::Echo,
    };
    let (mut ours, mut echo, mut batched) = (server(Role::Net)?, server(plain)?, server(Role::EchoBatched)?);
    let place = place.with(&[&ours, &echo, &batched]);
    let _others = open_idle(&mut ours, &mut secrets, request.idle, output)?;
    let mut fleet = Fleet::open(ours.address, &mut secrets, flows, size)?;
    let yardstick = |server: &Child| -> Result<Plain, Failure> {
        Ok(Plain::new(Socket::for_flows(flows)?, server.address, flows, size))
    };
    let (mut to_echo, mut to_batched) = (yardstick(&echo)?, yardstick(&batched)?);
    let mut contenders = [
        Contender::new("m2m, encrypted", &mut ours, &mut fleet),
        Contender::new("(a) plain UDP echo", &mut echo, &mut to_echo),
        Contender::new("(b) batched UDP echo", &mut batched, &mut to_batched),
    ];
    let lasts = Duration::from_millis(request.pace.millis);
    take_turns(&mut contenders, request.inflight, request.pace.rounds, lasts, output)?;
    tell(request, &place, &mut contenders, output)
}

fn open_idle(
    server: &mut Child,
    secrets: &mut Secrets,
    count: u32,
    output: Output,
) -> Result<Option<Socket>, Failure> {
    if count == 0 {
        return Ok(None);
    }
    let mut handshakes = Handshakes::new(server.address, 1)?;
    super::sessions::open(server, &mut handshakes, secrets, count, output, |established, first| {
        Peer::new(established).say(first, &[CONFIRM]);
    })?;
    Ok(Some(handshakes.into_socket()))
}

fn tell(
    request: &Request,
    place: &Place,
    contenders: &mut [Contender<'_>; 3],
    output: Output,
) -> Result<(), Failure> {
    let rows: Vec<Vec<String>> = contenders.iter_mut().map(row).collect();
    let [ours, echo, batched] = contenders;
    let rate_ratio = |other: &Contender<'_>| ours.ratio_to(other, |round| Some(round.rate()));
    let (ratio_echo, ratio_batched) = (rate_ratio(echo), rate_ratio(batched));
    let cpu_ratio = ours.ratio_to(echo, Round::cpu_each);
    let of = |value: Option<f64>, digits| value.map(|value| rounded(value, digits));
    let object = json!({
        "bench": "request",
        "size": request.size,
        "inflight": request.inflight,
        "flows": request.flows,
        "idle": request.idle,
        "rate": of(ours.rate(), 0),
        "p50_us": of(ours.latency_us(0.5), 2),
        "p99_us": of(ours.latency_us(0.99), 2),
        "cpu_ns": of(ours.cpu(), 0),
        "cpu_ratio": of(cpu_ratio, 3),
        "ratio_echo": of(ratio_echo, 3),
        "ratio_batched": of(ratio_batched, 3),
    });
    let words = |ratio: Option<f64>| ratio.map_or_else(|| "?".to_owned(), |ratio| format!("{ratio:.2}"));
    let text = format!(
        "{} bytes each way, {} on their way, {} flow(s), {} other session(s); {} rounds of {} ms; {place}\n\n{}\n\
         m2m's rate is {} of (a)'s and {} of (b)'s: above 1 it is faster. Its server's CPU for each request is {} of (a)'s:\n\
         below 1 it is cheaper, though it encrypts, and runs each request that is answered exactly once.",
        request.size,
        request.inflight,
        request.flows,
        request.idle,
        request.pace.rounds,
        request.pace.millis,
        table(&["", "requests/s", "p50 us", "p99 us", "server CPU ns each", "server busy"], &rows),
        words(ratio_echo),
        words(ratio_batched),
        words(cpu_ratio),
    );
    output.line(&text, &object)
}

fn row(contender: &mut Contender<'_>) -> Vec<String> {
    let number = |value: Option<f64>| value.map_or_else(|| "?".to_owned(), grouped);
    let micros = |value: Option<f64>| value.map_or_else(|| "?".to_owned(), |value| format!("{value:.1}"));
    vec![
        contender.name.to_owned(),
        number(contender.rate()),
        micros(contender.latency_us(0.5)),
        micros(contender.latency_us(0.99)),
        number(contender.cpu()),
        contender.busy(),
    ]
}
