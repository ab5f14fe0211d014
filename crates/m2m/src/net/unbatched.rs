//! In the place of `batched` where the system has no such calls that we know: every datagram has its own.
use std::{io, net::SocketAddr};

use tokio::net::UdpSocket;

use super::{egress::Datagram, socket::Arrived};

pub(super) const SLOTS: usize = 1;
pub(super) const SLOT: usize = 1 << 16;

pub(super) enum Batched {}

impl Batched {
    pub(super) fn new(_: &UdpSocket) -> Option<Batched> {
        None
    }

    pub(super) fn receive(&self, _: &UdpSocket, _: &mut [u8], _: &mut Vec<Arrived>) -> io::Result<()> {
        match *self {}
    }

    pub(super) fn send(
        &self,
        _: &UdpSocket,
        _: &[Datagram],
        _: impl Fn(SocketAddr) -> SocketAddr,
        _: &mut Vec<u8>,
    ) -> io::Result<usize> {
        match *self {}
    }
}
