//! `m2m bench`: what m2m does on this machine, beside plain UDP in the same run.
//!
//! ```text
//!   this process, on one core                          processes of their own, on another core
//!   fleet    machines of the protocol ───────────────> serving    m2m's server
//!   peers    bare sessions, by the million ──────────>
//!   plain    datagrams ──────────────────────────────> yardstick  UDP echoes and forwarders
//!   └ load   drives one of them at a time              child      starts and asks them
//! ```
mod child;
mod figures;
mod fleet;
mod handshake;
mod load;
mod machine;
mod peers;
mod plain;
mod relay;
mod request;
mod serving;
mod sessions;
mod udp;
mod wire;
pub(crate) mod words;
mod yardstick;

use std::fmt;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use m2m::Id;
use m2m_proto::session::keys::{DhSecret, EphemeralSeed, NetKey};
use zeroize::Zeroizing;

use crate::config::Settings;
use crate::exit::{Exit, Failure};
use crate::output::Output;
use child::Child;
use words::{Bench, What};

/// The id of the server that is measured.
const SERVER: Id = Id([1; 16]);
/// Before anything is measured: caches, routes and windows fill.
const WARM_UP: Duration = Duration::from_millis(200);

/// Measures what was asked for.
///
/// # Errors
/// Sockets, processes or memory that can't be had, in words; a server that fails.
pub(super) fn run(
    settings: impl FnOnce() -> Result<Settings, Failure>,
    output: &mut Output,
    bench: &Bench,
) -> Result<Exit, Failure> {
    if let What::Server(serve) = &bench.what {
        return serving::run(serve);
    }
    if settings()?.json {
        output.use_json();
    }
    let output = *output;
    if cfg!(debug_assertions) {
        output
            .say("m2m: this is a debug build: its figures mean little; use cargo run --release -- bench ...");
    }
    let place = Place::take();
    let measured = match &bench.what {
        What::Request(request) => request::run(request, &place, output),
        What::Relay(relay) => relay::run(relay, &place, output),
        What::Handshake(pace) => handshake::run(pace, &place, output),
        What::Sessions(sessions) => sessions::run(sessions, &place, output),
        What::Wire => wire::run(output),
        // Done above.
        What::Server(_) => Ok(()),
    };
    // What a failure has left there.
    progress(output, "");
    measured.map(|()| Exit::Ok)
}

/// Where the client and the servers run.
struct Place {
    client: Option<usize>,
    server: Option<usize>,
    are_apart: bool,
}

impl Place {
    /// Keeps this process on the second of its cores; the first is for the servers.
    fn take() -> Place {
        let cores = machine::cores();
        let client = cores.get(1).or(cores.first()).copied();
        Place {
            client: client.filter(|core| machine::pin(*core)),
            server: cores.first().copied(),
            are_apart: cores.len() > 1,
        }
    }

    /// The same, once these servers have said whether they stay on their core.
    fn with(&self, servers: &[&Child]) -> Place {
        let pinned = servers.iter().all(|server| server.pinned);
        Place { client: self.client, server: self.server.filter(|_| pinned), are_apart: self.are_apart }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.server, self.client) {
            (Some(server), Some(client)) if self.are_apart => {
                write!(f, "server on core {server}, client on core {client}")
            }
            (Some(server), Some(_)) => {
                write!(f, "server and client share core {server}, the only one here: the rates are too low")
            }
            _ => f.write_str("processes could not be kept on cores of their own: the figures are rougher"),
        }
    }
}

/// The keys of one run, which nobody but its processes knows.
struct Secrets {
    key: Zeroizing<[u8; 32]>,
    ephemerals: EphemeralSeed,
}

impl Secrets {
    fn new() -> Result<Secrets, Failure> {
        let (mut key, mut seed) = (Zeroizing::new([0; 32]), Zeroizing::new([0; 32]));
        let filled = getrandom::fill(key.as_mut()).and_then(|()| getrandom::fill(seed.as_mut()));
        filled.map_err(|why| Failure::Other(format!("the system has no randomness: {why}")))?;
        Ok(Secrets { key, ephemerals: EphemeralSeed::from_bytes(*seed) })
    }

    fn key(&self) -> &[u8] {
        self.key.as_slice()
    }

    fn net_key(&self) -> Result<NetKey, Failure> {
        NetKey::new(self.key.as_slice()).map_err(|why| Failure::Other(format!("the bench's key: {why}")))
    }

    fn ephemeral(&mut self, key: &NetKey) -> DhSecret {
        self.ephemerals.next(key)
    }

    /// A seed for a machine, another each time.
    fn seed(&mut self) -> Result<[u8; 32], Failure> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)
            .map_err(|why| Failure::Other(format!("the system has no randomness: {why}")))?;
        Ok(seed)
    }
}

/// Ids that are told apart by group and number.
fn numbered(group: u8, number: u64) -> Id {
    let mut id = [group; 16];
    if let Some(place) = id.last_chunk_mut() {
        *place = number.to_be_bytes();
    }
    Id(id)
}

/// Words that the next ones replace, for a person who waits; none for a program.
fn progress(output: Output, words: &str) {
    let mut stderr = std::io::stderr();
    if output.is_quiet() || !stderr.is_terminal() {
        return;
    }
    // Back to the line's start, and clear it (ECMA-48 section 8.3.41). A closed stderr is not worth a word.
    let _ = write!(stderr, "\r\x1b[K{words}").and_then(|()| stderr.flush());
}

/// Columns as wide as they have to be: the first to the left, the others to the right.
fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
    let all =
        || std::iter::once(&heads).filter(|heads| heads.iter().any(|head| !head.is_empty())).chain(rows);
    let width =
        |column: usize| all().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let mut text = String::new();
    for row in all() {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = width(column).unwrap_or(0);
            match column {
                0 => line.push_str(&format!("{cell:width$}")),
                _ => line.push_str(&format!("  {cell:>width$}")),
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let rows = [vec!["echo".to_owned(), "1 000".to_owned()], vec!["m2m".to_owned(), "20".to_owned()]];
        assert_eq!(table(&["", "rate"], &rows), "       rate\necho  1 000\nm2m      20\n");
        assert_eq!(table(&["", ""], &rows), "echo  1 000\nm2m      20\n");
    }

    #[test]
    fn ids_differ_by_group_and_number() {
        assert_ne!(numbered(1, 2), numbered(2, 2));
        assert_ne!(numbered(1, 2), numbered(1, 3));
        assert!(!numbered(0xC1, 0).is_reserved());
    }
}
