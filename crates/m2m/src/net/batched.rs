//! Several datagrams in one call to the system: Linux' recvmmsg and sendmmsg, and its segmentation offload in both
//! directions (UDP_SEGMENT, UDP_GRO), where one passage through the network stack carries many equal datagrams.
use std::{
    io::{self, IoSlice, IoSliceMut},
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

use arrayvec::ArrayVec;
use nix::sys::socket::{setsockopt, sockopt as nix_sockopt};
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustix::{
    io::Errno,
    net::{
        MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg,
        sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery},
    },
};
use tokio::net::UdpSocket;
use tracing::debug;

use super::{egress::Datagram, socket::Arrived};

/// Messages that one call takes or gives; each may be a run of datagrams.
pub(super) const SLOTS: usize = quinn_udp::BATCH_SIZE;
/// The longest that a message can be, with all its datagrams (UDP's length has 16 bits).
pub(super) const SLOT: usize = 1 << 16;
/// What one run may have in all: the same, less the headers of IP and UDP.
const MAX_RUN: usize = SLOT - 64;

/// A socket's state for these calls.
pub(super) struct Batched {
    state: UdpSocketState,
    /// Datagrams that the system cuts out of one piece; 1 once it has refused to.
    segments: AtomicUsize,
    #[cfg(test)]
    pub(super) refuses_runs: std::sync::atomic::AtomicBool,
}

impl Batched {
    /// Prepares a socket; none if its system lacks the calls.
    pub(super) fn new(udp: &UdpSocket) -> Option<Batched> {
        let state = match UdpSocketState::new(UdpSockRef::from(udp)) {
            Ok(state) => state,
            Err(error) => {
                debug!(%error, "no batched calls");
                return None;
            }
        };
        tell_less(udp);
        let segments = AtomicUsize::new(state.max_gso_segments());
        Some(Batched {
            state,
            segments,
            #[cfg(test)]
            refuses_runs: false.into(),
        })
    }

    /// Takes up to [`SLOTS`] messages, each into [`SLOT`] bytes of the buffer. Fewer than that means that there are no
    /// more now.
    pub(super) fn receive(
        &self,
        udp: &UdpSocket,
        buffer: &mut [u8],
        arrived: &mut Vec<Arrived>,
    ) -> io::Result<()> {
        let mut slots: ArrayVec<IoSliceMut<'_>, SLOTS> =
            buffer.chunks_exact_mut(SLOT).take(SLOTS).map(IoSliceMut::new).collect();
        let mut metas = [RecvMeta::default(); SLOTS];
        let count = self.state.recv(UdpSockRef::from(udp), &mut slots, &mut metas)?;
        arrived.extend(metas.iter().take(count).map(|meta| Arrived {
            from: meta.addr,
            len: meta.len,
            // Nothing was in it, or nothing is known: one datagram.
            stride: if meta.stride == 0 { meta.len.max(1) } else { meta.stride },
        }));
        Ok(())
    }

    /// Sends as many of the first datagrams as one call can, and says how many. The addresses are of the socket's own
    /// family.
    pub(super) fn send(
        &self,
        udp: &UdpSocket,
        datagrams: &[Datagram],
        to_system: impl Fn(SocketAddr) -> SocketAddr,
        staging: &mut Vec<u8>,
    ) -> io::Result<usize> {
        let most = self.segments.load(Ordering::Relaxed);
        let run = run_len(datagrams, most);
        if run < 2 {
            return scatter(udp, &datagrams[..singles(datagrams, most)], to_system);
        }
        let datagrams = &datagrams[..run];
        let refusal = match self.send_run(udp, datagrams, &to_system, staging) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => error,
            sent => return sent,
        };
        // The card, its driver or a tunnel can't do it, or there is something about this address: each by itself.
        let sent = scatter(udp, &datagrams[..run.min(SLOTS)], to_system);
        let errno = refusal.raw_os_error().map(Errno::from_raw_os_error);
        // EIO is what a card says that can't. Anything else may be about this one address.
        if sent.is_ok() && errno == Some(Errno::IO) {
            debug!(%refusal, "no segmentation offload from now on");
            self.segments.store(1, Ordering::Relaxed);
        }
        sent
    }

    /// Sends a run in one piece, which the system cuts.
    fn send_run(
        &self,
        udp: &UdpSocket,
        run: &[Datagram],
        to_system: impl Fn(SocketAddr) -> SocketAddr,
        staging: &mut Vec<u8>,
    ) -> io::Result<usize> {
        #[cfg(test)]
        if self.refuses_runs.load(Ordering::Relaxed) {
            return Err(Errno::IO.into());
        }
        let [first, ..] = run else { return Ok(0) };
        staging.clear();
        run.iter().for_each(|datagram| staging.extend_from_slice(&datagram.bytes));
        let transmit = Transmit {
            destination: to_system(first.to),
            ecn: None,
            contents: staging,
            segment_size: Some(first.bytes.len()),
            src_ip: None,
        };
        self.state.try_send(UdpSockRef::from(udp), &transmit).map(|()| run.len())
    }
}

/// How many of the first datagrams are a run: to one address and of one length, but for the last, which may be shorter.
fn run_len(datagrams: &[Datagram], most: usize) -> usize {
    let Some(first) = datagrams.first() else { return 0 };
    let (mut count, mut total) = (0, 0);
    for datagram in datagrams.iter().take(most.max(1)) {
        let len = datagram.bytes.len();
        total += len;
        if datagram.to != first.to || len > first.bytes.len() || total > MAX_RUN {
            break;
        }
        count += 1;
        if len < first.bytes.len() {
            break;
        }
    }
    count
}

/// How many of the first datagrams go before the next run begins; as many as one call takes at most.
fn singles(datagrams: &[Datagram], most: usize) -> usize {
    let is_run = |pair: &[Datagram]| run_len(pair, most) > 1;
    datagrams.windows(2).position(is_run).unwrap_or(datagrams.len()).clamp(1, SLOTS).min(datagrams.len())
}

/// Sends each datagram to its own address.
fn scatter(
    udp: &UdpSocket,
    datagrams: &[Datagram],
    to_system: impl Fn(SocketAddr) -> SocketAddr,
) -> io::Result<usize> {
    if let [single] = datagrams {
        return udp.try_send_to(&single.bytes, to_system(single.to)).map(|_| 1);
    }
    let mut parts: ArrayVec<_, SLOTS> = datagrams
        .iter()
        .map(|datagram| {
            let to = SocketAddrAny::from(to_system(datagram.to));
            (to, [IoSlice::new(&datagram.bytes)], SendAncillaryBuffer::default())
        })
        .collect();
    let mut messages: ArrayVec<_, SLOTS> =
        parts.iter_mut().map(|(to, bytes, control)| MMsgHdr::new_with_addr(to, bytes, control)).collect();
    Ok(sendmmsg(udp, &mut messages, SendFlags::empty())?)
}

/// Turns off what was turned on with the batched calls and is of no use here, for it costs something with every
/// datagram: the local address, the traffic class, the time of arrival. And lets long datagrams be fragmented, as
/// without batches.
fn tell_less(udp: &UdpSocket) {
    // What a socket of one family does not know of the other is none of its options: nothing to turn off.
    let _ = setsockopt(udp, nix_sockopt::ReceiveTimestampns, &false);
    let _ = setsockopt(udp, nix_sockopt::Ipv4PacketInfo, &false);
    let _ = setsockopt(udp, nix_sockopt::Ipv6RecvPacketInfo, &false);
    let _ = sockopt::set_ip_recvtos(udp, false);
    let _ = sockopt::set_ipv6_recvtclass(udp, false);
    let _ = setsockopt(udp, nix_sockopt::Ipv6DontFrag, &false);
    let _ = sockopt::set_ip_mtu_discover(udp, Ipv4PathMtuDiscovery::WANT);
    let _ = sockopt::set_ipv6_mtu_discover(udp, Ipv6PathMtuDiscovery::WANT);
}
