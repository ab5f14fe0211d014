//! What is to leave: it gathers here while the machine speaks, and goes out with few calls to the system.
use std::{io, net::SocketAddr};

use tracing::trace;

use super::socket::Socket;

/// So many datagrams are sent before the machine is asked for more.
const BATCH: usize = 64;

/// One that is to leave.
pub(super) struct Datagram {
    pub(super) to: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

/// Datagrams in the order in which the machine gave them out.
#[derive(Default)]
pub(super) struct Egress {
    queue: Vec<Datagram>,
    /// Where a run of datagrams is put together.
    staging: Vec<u8>,
    is_blocked: bool,
    errors: u64,
}

impl Egress {
    pub(super) fn push(&mut self, to: SocketAddr, bytes: Vec<u8>) {
        self.queue.push(Datagram { to, bytes });
    }

    /// True if a batch is full: the machine can wait.
    pub(super) fn is_full(&self) -> bool {
        self.queue.len() >= BATCH
    }

    /// True while the socket takes no more. What the machine has beyond a batch stays with it until then.
    pub(super) fn is_blocked(&self) -> bool {
        self.is_blocked
    }

    /// Datagrams that the system refused.
    pub(super) fn errors(&self) -> u64 {
        self.errors
    }

    /// Sends what the socket takes; the buffers are handed back.
    pub(super) fn send(&mut self, socket: Option<&Socket>, mut spent: impl FnMut(Vec<u8>)) {
        let mut done = 0;
        self.is_blocked = false;
        while let Some(rest @ [next, ..]) = self.queue.get(done..) {
            // A net that is closed sends nothing any more.
            let sent = socket.map_or(Ok(rest.len()), |socket| socket.send(rest, &mut self.staging));
            match sent {
                Ok(count) => done += count.max(1),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.is_blocked = true;
                    break;
                }
                Err(error) => {
                    // Unreachable networks come and go; the protocol repeats what matters.
                    trace!(to = %next.to, %error, "not sent");
                    self.errors += 1;
                    done += 1;
                }
            }
        }
        self.queue.drain(..done).for_each(|datagram| spent(datagram.bytes));
    }
}
