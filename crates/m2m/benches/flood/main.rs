//! What a flood costs those who are served: `cargo xtask flood`.
//!
//! A host in a process and on a core of its own, clients that keep it busy on another core, and attackers whose packets
//! are a tenth of those that the host takes undisturbed. Quiet and flooded phases alternate, so that whatever else the
//! machine does meets both alike. Two ratios are told of each kind of flood, flooded to undisturbed: of requests served
//! a second, and of requests served for a second of the host's CPU. The second is the sharper one: it says what
//! the flood takes away even when the host has time to spare, and other programs on the machine do not blur it.
//!
//! ```text
//! cargo xtask flood [KIND...] [--rounds N] [--millis N] [--clients N] [--in-flight N] [--share PERCENT]
//! ```
#![forbid(unsafe_code)]

mod attack;
mod clients;
mod insider;
mod report;
mod server;

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use attack::{Attacker, Kind};
use clients::Clients;
use report::{Phase, Rounds};
use server::Server;

/// What is measured, and for how long.
struct Options {
    kinds: Vec<Kind>,
    rounds: usize,
    phase: Duration,
    clients: usize,
    in_flight: usize,
    /// The flood's packets in percent of those that the host takes undisturbed.
    share: u64,
}

/// Those who are served keep at least this much of their rate.
const LEAST: f64 = 0.9;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if words.first().is_some_and(|word| word == server::ROLE) {
        server::run();
        return ExitCode::SUCCESS;
    }
    match options(&words) {
        Ok(options) => measure(&options),
        Err(usage) => {
            eprintln!("{usage}");
            ExitCode::from(2)
        }
    }
}

fn options(words: &[String]) -> Result<Options, String> {
    let mut options = Options {
        kinds: Vec::new(),
        rounds: 5,
        phase: Duration::from_millis(1000),
        clients: 4,
        in_flight: 32,
        share: 10,
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut number = || -> Result<u64, String> {
            let value = words.next().ok_or_else(|| format!("{word} needs a number after it"))?;
            value.parse().map_err(|_| format!("{word} needs a number, not {value}"))
        };
        match word.as_str() {
            "--rounds" => options.rounds = number()?.max(1) as usize,
            "--millis" => options.phase = Duration::from_millis(number()?.max(50)),
            "--clients" => options.clients = number()?.clamp(1, 64) as usize,
            "--in-flight" => options.in_flight = number()?.clamp(1, 256) as usize,
            "--share" => options.share = number()?,
            name => match Kind::ALL.into_iter().find(|kind| kind.name() == name) {
                Some(kind) => options.kinds.push(kind),
                None => {
                    let names: Vec<_> = Kind::ALL.into_iter().map(Kind::name).collect();
                    return Err(format!(
                        "no kind of flood is called {name}; there are: {}",
                        names.join(", ")
                    ));
                }
            },
        }
    }
    if options.kinds.is_empty() {
        options.kinds.extend(Kind::ALL);
    }
    Ok(options)
}

fn measure(options: &Options) -> ExitCode {
    let mut server = Server::start();
    // The attackers' thread and the clients' share the other core; they are no part of what is measured.
    server::pin(std::process::id(), 1);
    let clients = Clients::start(server.address, options.clients, options.in_flight);
    phase(&mut server, &clients, options.phase, None);
    let quiet = phase(&mut server, &clients, options.phase * 2, None);
    let rate = (quiet.packets_in_rate() as u64 * options.share / 100).max(1);
    println!(
        "undisturbed: {:.0} requests/s in {} sessions with {} in flight each; the host takes {:.0} and sends {:.0} packets/s, \
         {:.1} µs of CPU a request ({:.0} % of a core); flood: {rate} packets/s",
        quiet.served_rate(),
        options.clients,
        options.in_flight,
        quiet.packets_in_rate(),
        quiet.packets_out_rate(),
        quiet.cpu_per_request() * 1e6,
        quiet.cpu_share() * 100.0,
    );
    report::heading();
    let mut all_well = true;
    for kind in &options.kinds {
        let rounds = flood(&mut server, &clients, options, *kind, rate);
        all_well &= rounds.report(*kind) >= LEAST;
    }
    println!(
        "memory of the host: {} KiB at the start, {} KiB at the end",
        server.memory_at_start,
        server.memory_kib()
    );
    clients.stop();
    if all_well {
        return ExitCode::SUCCESS;
    }
    eprintln!("a flood took more than a tenth of what the host can do");
    ExitCode::FAILURE
}

/// Quiet and flooded phases in turn, one quiet phase more than flooded ones.
fn flood(server: &mut Server, clients: &Clients, options: &Options, kind: Kind, rate: u64) -> Rounds {
    let lasts = options.phase * options.rounds as u32;
    let mut attacker =
        Attacker::new(kind, server.address, clients, (rate as f64 * lasts.as_secs_f64()) as usize);
    let mut rounds = Rounds::default();
    for _ in 0..options.rounds {
        rounds.quiet.push(phase(server, clients, options.phase, None));
        rounds.flooded.push(phase(server, clients, options.phase, Some((&mut attacker, rate))));
    }
    rounds.quiet.push(phase(server, clients, options.phase, None));
    rounds
}

/// Serves for a while, and says what was done in it.
fn phase(
    server: &mut Server,
    clients: &Clients,
    lasts: Duration,
    flood: Option<(&mut Attacker, u64)>,
) -> Phase {
    let lost = server.lost();
    let before = (server.counters(), clients.count(), server.cpu_seconds(), std::time::Instant::now());
    let sent = match flood {
        Some((attacker, rate)) => attacker.run(rate, lasts),
        None => {
            std::thread::sleep(lasts);
            0
        }
    };
    let seconds = before.3.elapsed().as_secs_f64();
    let after = (server.counters(), clients.count(), server.cpu_seconds());
    Phase {
        seconds,
        flood: sent,
        served: after.1.served - before.1.served,
        failed: after.1.failed - before.1.failed,
        lost: server.lost() - lost,
        cpu: after.2 - before.2,
        counters: after.0.since(&before.0),
    }
}

/// The host's key, its id, and those of the others.
mod names {
    use m2m_proto::{id::Id, session::keys::NetKey};

    pub(crate) const HOST: Id = Id([1; 16]);
    pub(crate) const KEY: [u8; 32] = [0x5A; 32];

    pub(crate) fn key() -> NetKey {
        NetKey::new(&KEY).expect("32 bytes are a key")
    }

    /// Ids that are told apart by group and number.
    pub(crate) fn id(group: u8, number: usize) -> Id {
        let mut id = [group; 16];
        id[8..].copy_from_slice(&(number as u64 + 1).to_be_bytes());
        Id(id)
    }
}

/// Any port of this machine's loopback network `n`: each has a /24 of its own, as far as budgets are concerned.
fn local(n: usize) -> SocketAddr {
    SocketAddr::from(([127, 1 + (n / 250) as u8, (n % 250) as u8, 1], 0))
}
