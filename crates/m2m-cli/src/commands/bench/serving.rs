//! The processes that are measured: m2m's own server, and the yardsticks.
use std::io::{BufRead, Write};
use std::net::SocketAddr;

use m2m::{Config, Key, Net, Request, Router};
use m2m_proto::config::Rate;
use m2m_proto::stats::Drop as Reason;
use serde::Serialize;
use zeroize::Zeroizing;

use super::child::{Reading, Ready};
use super::words::{Role, Serve};
use super::{SERVER, machine, udp, yardstick};
use crate::exit::{Exit, Failure};

/// More than any client can ask for: what is measured is the work, not the limits.
const MUCH: Rate = Rate::new(10_000_000, 10_000_000);
/// The same for bytes.
const MANY_BYTES: Rate = Rate::new(u32::MAX, u32::MAX);
/// Beside the sessions that were asked for: those that open and close while handshakes are measured.
const ROOM: usize = 1 << 20;

/// Serves until stdin ends.
pub(super) fn run(serve: &Serve) -> Result<Exit, Failure> {
    let pinned = serve.core.is_some_and(machine::pin);
    let mut lines = std::io::stdin().lock().lines();
    let Some(Ok(key)) = lines.next().map(|line| line.map(Zeroizing::new)) else {
        return Err(Failure::Other("this is started by `m2m bench` only".into()));
    };
    drop(lines);
    if serve.role == Role::Net {
        return serve_net(serve, &key, pinned);
    }
    let socket = udp::bind(udp::loopback())?;
    let address = socket.local_addr().map_err(|error| Failure::Other(format!("no address: {error}")))?;
    let (role, port, flows) = (serve.role, serve.port, serve.flows);
    let (ended, ending) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // Its other end waits until stdin ends, too.
        let _ = ended.send(yardstick::run(role, socket, port, flows));
    });
    say(&Ready { address, pinned })?;
    for line in std::io::stdin().lock().lines() {
        if line.is_err() {
            break;
        }
        if let Ok(Err(failure)) = ending.try_recv() {
            return Err(failure);
        }
        say(&own_reading())?;
    }
    Ok(Exit::Ok)
}

/// m2m's server, as any program would run it: on one core, a single-threaded event loop.
fn serve_net(serve: &Serve, key: &str, pinned: bool) -> Result<Exit, Failure> {
    let key = Key::from_hex(key)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Other(format!("can't start the event loop: {error}")))?;
    let sessions = serve.sessions;
    let done = runtime.block_on(async move {
        let builder = Net::builder(SERVER, key).bind(udp::loopback()).server(true);
        let net = builder.tune(move |config| make_room(config, sessions)).open().await?;
        drop(tokio::spawn(net.serve(Router::new().data(async |request: Request| request.payload))));
        say(&Ready { address: net.local_addr(), pinned })?;
        let (asks, mut asked) = tokio::sync::mpsc::channel(1);
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines() {
                if line.is_err() || asks.blocking_send(()).is_err() {
                    return;
                }
            }
        });
        while asked.recv().await.is_some() {
            say(&reading_of(&net))?;
        }
        Ok(Exit::Ok)
    });
    // No good-bye to a million sessions: their peers end with the bench.
    runtime.shutdown_background();
    done
}

/// What a bench needs more of than a server should allow to strangers.
fn make_room(config: &mut Config, sessions: usize) {
    let limits = &mut config.limits;
    limits.init_rate = MUCH;
    limits.dh_rate = MUCH;
    limits.proven_dh_rate = MUCH;
    limits.cookie_rate = MUCH;
    limits.relay_packets = MUCH;
    limits.relay_bytes = MANY_BYTES;
    limits.claims_per_hour = u32::MAX;
    limits.claims_at_once = u32::MAX;
    limits.sessions = sessions + ROOM;
    limits.half_open = 1 << 16;
    limits.registrations = sessions + ROOM;
}

fn own_reading() -> Reading {
    let cpu_ns = machine::cpu_time().and_then(|time| u64::try_from(time.as_nanos()).ok());
    Reading { cpu_ns, resident: machine::resident(), ..Reading::default() }
}

fn reading_of(net: &Net) -> Reading {
    let stats = net.stats();
    Reading {
        handshakes: stats.handshakes,
        forged: stats.dropped(Reason::BadHandshake),
        relayed: stats.relayed,
        registered: net.registrations() as u64,
        sessions: net.sessions().saturating_sub(net.half_open()) as u64,
        ..own_reading()
    }
}

/// One line to the bench.
fn say(words: &impl Serialize) -> Result<(), Failure> {
    let unsaid = |_| Failure::ClosedPipe;
    let line = serde_json::to_string(words).map_err(|error| Failure::Other(error.to_string()))?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}").map_err(unsaid)?;
    stdout.flush().map_err(unsaid)
}

/// Where the flows of a forwarder lead: each to the next.
pub(super) fn next_flow(flow: u32, flows: u32) -> u32 {
    (flow + 1) % flows.max(1)
}

/// The address of a flow.
pub(super) fn place(flow: u32, port: u16) -> SocketAddr {
    SocketAddr::new(udp::flow_address(flow).into(), port)
}
