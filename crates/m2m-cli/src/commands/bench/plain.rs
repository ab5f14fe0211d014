//! The yardsticks' client: datagrams that bear the number of their slot.
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::load::Load;
use super::udp::{self, Inbox, Outbox, Socket};
use crate::exit::Failure;

/// When nothing comes for so long, what is on its way was lost, and leaves again.
const LOST: Duration = Duration::from_millis(200);

pub(super) struct Plain {
    socket: Socket,
    inbox: Inbox,
    outbox: Outbox,
    server: SocketAddr,
    flows: u32,
    next_flow: u32,
    datagram: Vec<u8>,
    is_open: Vec<bool>,
    heard: Instant,
}

impl Plain {
    /// A client of this server, whose datagrams have so many bytes: 4 at least.
    pub(super) fn new(socket: Socket, server: SocketAddr, flows: u32, size: usize) -> Plain {
        Plain {
            socket,
            inbox: Inbox::new(),
            outbox: Outbox::new(),
            server,
            flows,
            next_flow: 0,
            datagram: vec![7; size],
            is_open: Vec::new(),
            heard: Instant::now(),
        }
    }

    fn send(&mut self, slot: u32) -> Result<(), Failure> {
        let from = IpAddr::from(udp::flow_address(self.next_flow));
        self.next_flow = (self.next_flow + 1) % self.flows;
        if let Some(number) = self.datagram.first_chunk_mut() {
            *number = slot.to_be_bytes();
        }
        let from = (self.flows > 1).then_some(from);
        self.outbox.push(&self.socket, self.server, from, &self.datagram).map_err(failed)
    }
}

impl Load for Plain {
    fn ask(&mut self, slot: u32) -> Result<(), Failure> {
        if self.is_open.len() <= slot as usize {
            self.is_open.resize(slot as usize + 1, false);
        }
        if let Some(is_open) = self.is_open.get_mut(slot as usize) {
            *is_open = true;
        }
        self.send(slot)
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.outbox.flush(&self.socket).map_err(failed)
    }

    fn take(&mut self, answered: &mut Vec<u32>) -> Result<(), Failure> {
        let is_open = &mut self.is_open;
        let some = self.inbox.receive(&self.socket, |datagram, _| {
            let Some(slot) = datagram.first_chunk().map(|number| u32::from_be_bytes(*number)) else { return };
            // What was sent again may be answered twice.
            if is_open.get_mut(slot as usize).is_some_and(std::mem::take) {
                answered.push(slot);
            }
        });
        if some.map_err(failed)? {
            self.heard = Instant::now();
        } else if self.heard.elapsed() > LOST {
            self.heard = Instant::now();
            let lost: Vec<u32> =
                (0u32..).zip(&self.is_open).filter(|(_, open)| **open).map(|(slot, _)| slot).collect();
            lost.into_iter().try_for_each(|slot| self.send(slot))?;
            self.flush()?;
        }
        Ok(())
    }
}

/// The client's socket does not work.
#[expect(clippy::needless_pass_by_value, reason = "it stands in map_err")]
pub(super) fn failed(error: std::io::Error) -> Failure {
    Failure::Other(format!("the bench's client can't use its socket: {error}"))
}
