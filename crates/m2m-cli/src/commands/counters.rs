//! What a program that runs on has counted, shown when SIGUSR1 asks for it.
use m2m::Net;
use serde_json::{Map, Value, json};

use crate::exit::Failure;

/// Waits for SIGUSR1; made before "ready" is said, so that the signal never ends the program.
pub(super) struct Asked {
    #[cfg(unix)]
    signal: tokio::signal::unix::Signal,
}

impl Asked {
    #[cfg(unix)]
    pub(super) fn new() -> Result<Asked, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        let signal = signal(SignalKind::user_defined1());
        let failed = |error| Failure::Other(format!("can't listen for SIGUSR1: {error}"));
        Ok(Asked { signal: signal.map_err(failed)? })
    }

    #[cfg(not(unix))]
    pub(super) fn new() -> Result<Asked, Failure> {
        Ok(Asked {})
    }

    /// Returns whenever somebody wants to see the counters; never where there is no such signal.
    pub(super) async fn again(&mut self) {
        #[cfg(unix)]
        if self.signal.recv().await.is_some() {
            return;
        }
        std::future::pending::<()>().await;
    }
}

/// The counters in words, some lines, and as an object.
pub(crate) fn of(net: &Net) -> (String, Value) {
    let stats = net.stats();
    let tables = [
        ("sessions", net.sessions() as u64),
        ("half_open", net.half_open() as u64),
        ("registrations", net.registrations() as u64),
    ];
    let traffic = [
        ("datagrams_in", stats.datagrams_in),
        ("datagrams_out", stats.datagrams_out),
        ("send_errors", net.send_errors()),
        ("relayed", stats.relayed),
        ("relayed_bytes", stats.relayed_bytes),
        ("handed_over", stats.handed_over),
    ];
    let life = [
        ("handshakes", stats.handshakes),
        ("cookies", stats.cookies),
        ("hints", stats.hints_sent),
        ("errors", stats.errors),
        ("recoveries", stats.recoveries),
        ("rekeys", stats.rekeys),
        ("moves", stats.moves),
        ("moves_failed", stats.moves_failed),
    ];
    let drops: Vec<_> = stats.drops().map(|(why, count)| (why.words(), count)).collect();
    let words = format!(
        "m2m: {}\nm2m: {}\nm2m: {}\nm2m: dropped: {}",
        list(&tables),
        list(&traffic),
        list(&life),
        list(&drops)
    );
    let mut object = Map::from_iter([("event".to_owned(), json!("counters"))]);
    let counters = [&tables[..], &traffic, &life].concat();
    object.extend(counters.into_iter().map(|(name, count)| (name.to_owned(), json!(count))));
    let drops: Map<_, _> = stats.drops().map(|(why, count)| (why.name().to_owned(), json!(count))).collect();
    object.insert("dropped".to_owned(), drops.into());
    (words, object.into())
}

fn list(counters: &[(&str, u64)]) -> String {
    let words = counters.iter().map(|(name, count)| format!("{} {count}", name.replace('_', " ")));
    words.collect::<Vec<_>>().join(", ")
}
