//! `m2m bench handshake`: sessions set up by one core in a second, and forged ones refused.
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use m2m_proto::session::handshake::Initiator;
use m2m_proto::session::keys::Crypto;
use m2m_proto::wire::frame::{CloseCode, Frame};
use serde_json::json;

use super::child::{Child, Start};
use super::figures::{grouped, median, rounded};
use super::peers::{self, CONFIRM, Handshakes, Peer};
use super::plain::failed;
use super::udp::{Outbox, Socket};
use super::words::{Pace, Role};
use super::{Place, SERVER, Secrets, numbered, table};
use crate::exit::Failure;
use crate::output::Output;

/// More than any core sets up in a second: so many handshakes are made ready for each.
const PREPARED_A_SECOND: f64 = 30_000.0;
/// Forged INITs that leave together.
const FORGED_AT_ONCE: u32 = 16;
/// Where an INIT's ephemeral key stands: what is changed there makes it another one, and still no true one.
const EPHEMERAL: usize = 48;

/// What came of a round.
struct Round {
    rate: f64,
    cpu_us: Option<f64>,
    forged: Option<f64>,
}

pub(super) fn run(pace: &Pace, place: &Place, output: Output) -> Result<(), Failure> {
    let mut secrets = Secrets::new()?;
    let lasts = Duration::from_millis(pace.millis);
    let prepared = (lasts.as_secs_f64() * PREPARED_A_SECOND) as u32 + 1;
    let start = Start { role: Role::Net, key: secrets.key(), sessions: 0, flows: (0, 0) };
    let mut server = Child::start(&start)?;
    let place = place.with(&[&server]);
    let mut handshakes = Handshakes::new(server.address, 1)?;
    let mut forger = Forger::new(server.address, &mut secrets)?;
    let mut rounds = Vec::new();
    for round in 0..pace.rounds {
        super::progress(output, &format!("round {} of {}", round + 1, pace.rounds));
        handshakes.prepare(&mut secrets, prepared)?;
        rounds.push(one_round(&mut server, &mut handshakes, &mut forger, lasts)?);
    }
    super::progress(output, "");
    tell(pace, &place, &rounds, output)
}

fn one_round(
    server: &mut Child,
    handshakes: &mut Handshakes,
    forger: &mut Forger,
    lasts: Duration,
) -> Result<Round, Failure> {
    let before = server.read()?;
    let start = Instant::now();
    let count = handshakes.run(
        || start.elapsed() >= lasts,
        |established, first| {
            let close = Frame::Close { code: CloseCode::DONE, text: "" };
            Peer::new(established).say(first, &[CONFIRM, close]);
        },
    )?;
    let seconds = start.elapsed().as_secs_f64();
    let after = server.read()?;
    if after.handshakes - before.handshakes < count {
        return Err(Failure::Other("the server counts fewer handshakes than the client".into()));
    }
    let cpu_us = after.cpu_since(&before).map(|ns| ns / 1e3 / count.max(1) as f64);
    forger.run(lasts)?;
    let refused = server.read()?;
    let forged = refused.cpu_since(&after).map(|ns| (refused.forged - after.forged) as f64 / (ns / 1e9));
    Ok(Round { rate: count as f64 / seconds, cpu_us, forged })
}

/// One who has no key.
struct Forger {
    socket: Socket,
    outbox: Outbox,
    server: SocketAddr,
    init: Vec<u8>,
    count: u64,
}

impl Forger {
    fn new(server: SocketAddr, secrets: &mut Secrets) -> Result<Forger, Failure> {
        let wrong = Secrets::new()?.net_key()?;
        let src = numbered(0xEE, 0);
        let fields = peers::init_fields(src, 0)?;
        let initiator = Initiator::start(&fields, &wrong.pair(src, SERVER), secrets.ephemeral(&wrong));
        let init = initiator.init().to_vec();
        Ok(Forger { socket: Socket::for_flows(1)?, outbox: Outbox::new(), server, init, count: 0 })
    }

    /// Sends as many as the server's socket takes, each another one.
    fn run(&mut self, lasts: Duration) -> Result<(), Failure> {
        let start = Instant::now();
        while start.elapsed() < lasts {
            for _ in 0..FORGED_AT_ONCE {
                self.count += 1;
                if let Some(place) = self.init.get_mut(EPHEMERAL..).and_then(|rest| rest.first_chunk_mut()) {
                    *place = self.count.to_be_bytes();
                }
                self.outbox.push(&self.socket, self.server, None, &self.init).map_err(failed)?;
            }
            self.outbox.flush(&self.socket).map_err(failed)?;
        }
        Ok(())
    }
}

fn tell(pace: &Pace, place: &Place, rounds: &[Round], output: Output) -> Result<(), Failure> {
    let rate = median(rounds.iter().map(|round| round.rate));
    let cpu_us = median(rounds.iter().filter_map(|round| round.cpu_us));
    let forged = median(rounds.iter().filter_map(|round| round.forged));
    let of = |value: Option<f64>, digits| value.map(|value| rounded(value, digits));
    let object = json!({
        "bench": "handshake",
        "rate": of(rate, 0),
        "cpu_us": of(cpu_us, 2),
        "forged_rejected_rate": of(forged, 0),
    });
    let number = |value: Option<f64>| value.map_or_else(|| "?".to_owned(), grouped);
    let rows = [
        vec!["set up in a second".to_owned(), number(rate)],
        vec!["server CPU us each".to_owned(), cpu_us.map_or_else(|| "?".to_owned(), |us| format!("{us:.1}"))],
        vec!["set up in a second of server CPU".to_owned(), number(cpu_us.map(|us| 1e6 / us))],
        vec!["forged ones refused in a second of server CPU".to_owned(), number(forged)],
    ];
    let text = format!(
        "sessions set up, used and closed, with {}; {} rounds of {} ms; {place}\n\n{}\n\
         Each set-up is INIT, RESP, the first packet and CLOSE, with an X25519 key exchange on both sides. A forged INIT is\n\
         refused before any curve arithmetic: so many strangers' attempts a second would fill one core.",
        backend(),
        pace.rounds,
        pace.millis,
        table(&["", ""], &rows),
    );
    output.line(&text, &object)
}

/// Whose X25519 and AES-GCM both sides use.
fn backend() -> &'static str {
    if Crypto::FASTEST == Crypto::RustCrypto { "RustCrypto" } else { "AWS-LC" }
}
