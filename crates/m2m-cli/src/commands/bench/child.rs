//! A server that is measured, as the bench sees it: a process of its own, told by lines on its stdin, and ended with
//! it. If the bench dies, its stdin closes, and it ends by itself.
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::machine;
use super::words::Role;
use crate::exit::Failure;
use crate::output::hex;

/// What a server says first.
#[derive(Serialize, Deserialize)]
pub(super) struct Ready {
    /// Where it listens.
    pub(super) address: SocketAddr,
    /// It stays on its core.
    pub(super) pinned: bool,
}

/// What a server says of itself whenever it is asked. What its role doesn't count is 0.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Reading {
    /// Nanoseconds of CPU that it has used; none where the system doesn't say.
    pub(super) cpu_ns: Option<u64>,
    /// Bytes of memory that it holds; none where the system doesn't say.
    pub(super) resident: Option<u64>,
    /// Handshakes that it answered.
    pub(super) handshakes: u64,
    /// Handshakes that it refused because they were forged.
    pub(super) forged: u64,
    /// Packets that it forwarded.
    pub(super) relayed: u64,
    /// Nets that are registered with it.
    pub(super) registered: u64,
    /// Sessions that it holds, half-open ones left out.
    pub(super) sessions: u64,
}

impl Reading {
    /// CPU in nanoseconds since an earlier reading.
    pub(super) fn cpu_since(&self, before: &Reading) -> Option<f64> {
        Some(self.cpu_ns?.saturating_sub(before.cpu_ns?) as f64)
    }
}

/// What a server is told when it starts.
pub(super) struct Start<'a> {
    pub(super) role: Role,
    /// The net key of m2m's server; the others don't need it.
    pub(super) key: &'a [u8],
    /// Sessions to have room for.
    pub(super) sessions: u32,
    /// For a forwarder: the port of the flows, and how many there are.
    pub(super) flows: (u16, u32),
}

/// A running server.
pub(super) struct Child {
    process: std::process::Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// Where it listens.
    pub(super) address: SocketAddr,
    /// It stays on its core.
    pub(super) pinned: bool,
}

impl Child {
    pub(super) fn start(start: &Start<'_>) -> Result<Child, Failure> {
        let cannot =
            |error| Failure::Other(format!("can't start the server that is to be measured: {error}"));
        let program = std::env::current_exe().map_err(cannot)?;
        let role = clap::ValueEnum::to_possible_value(&start.role);
        let mut command = Command::new(program);
        command.args(["bench", "server"]).arg(role.as_ref().map_or("", |role| role.get_name()));
        command.arg("--sessions").arg(start.sessions.to_string());
        command.arg("--port").arg(start.flows.0.to_string()).arg("--flows").arg(start.flows.1.to_string());
        if let Some(core) = machine::cores().first() {
            command.arg("--core").arg(core.to_string());
        }
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(cannot)?;
        let (input, output) = (process.stdin.take(), process.stdout.take());
        let Some(output) = output else { return Err(Failure::Other("the server has no stdout".into())) };
        let mut child = Child {
            process,
            input,
            output: BufReader::new(output),
            address: super::udp::loopback(),
            pinned: false,
        };
        let key = Zeroizing::new(hex(start.key));
        let ready: Ready = child.ask(&key)?;
        (child.address, child.pinned) = (ready.address, ready.pinned);
        Ok(child)
    }

    /// Asks how it stands with the server.
    pub(super) fn read(&mut self) -> Result<Reading, Failure> {
        self.ask("")
    }

    fn ask<T: for<'a> Deserialize<'a>>(&mut self, words: &str) -> Result<T, Failure> {
        let gone =
            || Failure::Other("the server that is measured has ended: its last words stand above".into());
        let input = self.input.as_mut().ok_or_else(gone)?;
        writeln!(input, "{words}").and_then(|()| input.flush()).map_err(|_| gone())?;
        let mut line = String::new();
        match self.output.read_line(&mut line) {
            Ok(1..) => serde_json::from_str(&line).map_err(|error| {
                Failure::Other(format!("the server that is measured says {line:?}: {error}"))
            }),
            _ => Err(gone()),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        drop(self.input.take());
        // It would end by itself; but nothing shall be left when this returns.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
