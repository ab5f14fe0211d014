//! The yardsticks: UDP echoes and forwarders as plain as they can be, and as fast as the system lets them be.
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};

use super::serving::{next_flow, place};
use super::udp::{Inbox, Outbox, Socket};
use super::words::Role;
use crate::exit::Failure;

/// Larger than anything that is sent here.
const BUFFER: usize = 2048;

/// Does a yardstick's work, and never returns but with a failure.
pub(super) fn run(role: Role, socket: UdpSocket, port: u16, flows: u32) -> Result<(), Failure> {
    let next = || -> HashMap<SocketAddr, SocketAddr> {
        (0..flows).map(|flow| (place(flow, port), place(next_flow(flow, flows), port))).collect()
    };
    let done = match role {
        Role::EchoLoop => echo_in_a_loop(socket),
        Role::EchoBatched => in_batches(&Socket::new(socket)?, Some),
        Role::Forward => {
            let next = next();
            one_at_a_time(&socket, |from| next.get(&from).copied())
        }
        Role::ForwardBatched => {
            let next = next();
            in_batches(&Socket::new(socket)?, move |from| next.get(&from).copied())
        }
        Role::Echo | Role::Net => one_at_a_time(&socket, Some),
    };
    done.map_err(|error| Failure::Other(format!("a yardstick has stopped: {error}")))
}

/// Takes a datagram, and sends it where it belongs.
fn one_at_a_time(socket: &UdpSocket, to: impl Fn(SocketAddr) -> Option<SocketAddr>) -> io::Result<()> {
    let mut buffer = [0; BUFFER];
    loop {
        let (len, from) = match socket.recv_from(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => continue,
            received => received?,
        };
        if let (Some(to), Some(datagram)) = (to(from), buffer.get(..len)) {
            // A full buffer loses it, as a network would.
            let _ = socket.send_to(datagram, to);
        }
    }
}

/// The same work on tokio, as m2m's server waits for its datagrams.
fn echo_in_a_loop(socket: UdpSocket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let socket = tokio::net::UdpSocket::from_std(socket)?;
        let mut buffer = [0; BUFFER];
        loop {
            socket.readable().await?;
            while let Ok((len, from)) = socket.try_recv_from(&mut buffer) {
                let _ = socket.try_send_to(buffer.get(..len).unwrap_or_default(), from);
            }
        }
    })
}

/// Takes all that is there, and sends it in as few calls as possible.
fn in_batches(socket: &Socket, to: impl Fn(SocketAddr) -> Option<SocketAddr>) -> io::Result<()> {
    let (mut inbox, mut outbox) = (Inbox::new(), Outbox::new());
    loop {
        let mut sent = Ok(());
        let some = inbox.receive(socket, |datagram, way| {
            if let (Some(to), Ok(())) = (to(way.from), &sent) {
                sent = outbox.push(socket, to, None, datagram);
            }
        })?;
        sent?;
        outbox.flush(socket)?;
        if !some {
            socket.wait()?;
        }
    }
}
