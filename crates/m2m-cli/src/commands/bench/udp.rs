//! UDP in batches: recvmmsg and GRO on the way in, GSO and sendmmsg on the way out, where the system has them.
use std::array;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};

use crate::exit::Failure;

/// The largest that the system gives at once: a UDP datagram, or several that came together.
const LARGEST: usize = 1 << 16;
/// Datagrams that leave in one call.
const SINGLES: usize = 64;
/// The same buffers for all that is measured: a burst of so many bytes.
const BUFFER: usize = 1 << 20;
/// Bytes of one run of datagrams: an IP packet's, without its headers (RFC 791 section 3.1, RFC 768).
const MAX_RUN: usize = 65_535 - 20 - 8;

/// A UDP socket at this address of the loopback, or at any of its ports.
pub(super) fn bind(address: SocketAddr) -> Result<UdpSocket, Failure> {
    let failed = |error: &io::Error| {
        Failure::Other(format!(
            "can't open a UDP socket at {address}: {error}; is the loopback interface up?"
        ))
    };
    let bound = || -> io::Result<UdpSocket> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::DGRAM,
            Some(socket2::Protocol::UDP),
        )?;
        // Smaller buffers only lose more, which the benches survive.
        let _ = socket.set_recv_buffer_size(BUFFER);
        let _ = socket.set_send_buffer_size(BUFFER);
        socket.bind(&address.into())?;
        Ok(socket.into())
    };
    bound().map_err(|error| failed(&error))
}

/// A port of the loopback that is free.
pub(super) fn loopback() -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)
}

/// The address that a flow has: each another one of the loopback network, which on Linux are all there.
pub(super) fn flow_address(flow: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + flow)
}

/// The flow that has this address.
pub(super) fn flow_of(address: IpAddr) -> Option<u32> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_sub(Ipv4Addr::LOCALHOST.to_bits()),
        IpAddr::V6(_) => None,
    }
}

/// A socket that is used in batches, and never waits by itself.
pub(super) struct Socket {
    udp: UdpSocket,
    state: UdpSocketState,
}

impl Socket {
    pub(super) fn new(udp: UdpSocket) -> Result<Socket, Failure> {
        let state = UdpSocketState::new((&udp).into())
            .map_err(|error| Failure::Other(format!("can't prepare a UDP socket: {error}")))?;
        Ok(Socket { udp, state })
    }

    /// The client's: from all addresses of the loopback if there are many flows.
    pub(super) fn for_flows(flows: u32) -> Result<Socket, Failure> {
        if flows == 1 {
            return Socket::new(bind(loopback())?);
        }
        let last = SocketAddr::new(flow_address(flows - 1).into(), 0);
        bind(last).map_err(|failure| {
            failure.during("many flows need many addresses of the loopback network, 127.0.0.0/8")
        })?;
        Socket::new(bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0))?)
    }

    pub(super) fn port(&self) -> Result<u16, Failure> {
        let address = self.udp.local_addr();
        address
            .map(|address| address.port())
            .map_err(|error| Failure::Other(format!("no local port: {error}")))
    }

    /// Waits until something can be received.
    pub(super) fn wait(&self) -> io::Result<()> {
        #[cfg(unix)]
        {
            use rustix::event::{PollFd, PollFlags, poll};
            match poll(&mut [PollFd::new(&self.udp, PollFlags::IN)], None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
                Err(error) => Err(error.into()),
            }
        }
        #[cfg(not(unix))]
        {
            std::thread::yield_now();
            Ok(())
        }
    }
}

/// Where a datagram came from, and which of our addresses it was sent to.
#[derive(Clone, Copy)]
pub(super) struct Way {
    pub(super) from: SocketAddr,
    pub(super) to: Option<IpAddr>,
}

/// Room for what comes.
pub(super) struct Inbox {
    room: Vec<u8>,
}

impl Inbox {
    pub(super) fn new() -> Inbox {
        Inbox { room: vec![0; BATCH_SIZE * LARGEST] }
    }

    /// Takes what is there, up to a batch. False if nothing was.
    pub(super) fn receive(
        &mut self,
        socket: &Socket,
        mut each: impl FnMut(&mut [u8], Way),
    ) -> io::Result<bool> {
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        let count = {
            let mut room = self.room.chunks_mut(LARGEST);
            let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
                array::from_fn(|_| IoSliceMut::new(room.next().unwrap_or_default()));
            match socket.state.recv((&socket.udp).into(), &mut slices, &mut metas) {
                Ok(count) => count,
                // The last is ICMP's word on an earlier datagram: the next may be fine.
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionRefused) =>
                {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        };
        for (meta, bytes) in metas.iter().take(count).zip(self.room.chunks_mut(LARGEST)) {
            let way = Way { from: meta.addr, to: meta.dst_ip };
            let came = bytes.get_mut(..meta.len).unwrap_or_default();
            came.chunks_mut(meta.stride.max(1)).for_each(|datagram| each(datagram, way));
        }
        Ok(count > 0)
    }
}

/// Datagrams to one place that leave as one: all as long as the first, but for the last, which may be shorter.
struct Run {
    to: SocketAddr,
    from: Option<IpAddr>,
    start: usize,
    segment: usize,
    count: usize,
    is_over: bool,
}

/// Datagrams that leave together.
pub(super) struct Outbox {
    bytes: Vec<u8>,
    run: Option<Run>,
    singles: Vec<(SocketAddr, usize, usize)>,
}

impl Outbox {
    pub(super) fn new() -> Outbox {
        Outbox { bytes: Vec::new(), run: None, singles: Vec::new() }
    }

    /// Adds a datagram; `from` is the address that it leaves from, where it matters.
    pub(super) fn push(
        &mut self,
        socket: &Socket,
        to: SocketAddr,
        from: Option<IpAddr>,
        datagram: &[u8],
    ) -> io::Result<()> {
        let most = socket.state.max_gso_segments();
        let start = self.bytes.len();
        if let Some(run) = &mut self.run
            && (run.to, run.from) == (to, from)
            && !run.is_over
            && datagram.len() <= run.segment
            && run.count < most
            && start - run.start + datagram.len() <= MAX_RUN
        {
            run.count += 1;
            run.is_over = datagram.len() < run.segment;
            self.bytes.extend_from_slice(datagram);
            return Ok(());
        }
        self.end_run(socket)?;
        let start = self.bytes.len();
        self.bytes.extend_from_slice(datagram);
        self.run = Some(Run { to, from, start, segment: datagram.len(), count: 1, is_over: false });
        Ok(())
    }

    /// Sends all that was added.
    pub(super) fn flush(&mut self, socket: &Socket) -> io::Result<()> {
        self.end_run(socket)?;
        self.send_singles(socket)?;
        self.bytes.clear();
        Ok(())
    }

    fn end_run(&mut self, socket: &Socket) -> io::Result<()> {
        let Some(run) = self.run.take() else { return Ok(()) };
        if run.count == 1 && run.from.is_none() {
            self.singles.push((run.to, run.start, self.bytes.len()));
            if self.singles.len() < SINGLES {
                return Ok(());
            }
            self.send_singles(socket)?;
            self.bytes.clear();
            return Ok(());
        }
        let transmit = Transmit {
            destination: run.to,
            ecn: None,
            contents: self.bytes.get(run.start..).unwrap_or_default(),
            segment_size: (run.count > 1).then_some(run.segment),
            src_ip: run.from,
        };
        insist(|| socket.state.try_send((&socket.udp).into(), &transmit))?;
        self.bytes.truncate(run.start);
        Ok(())
    }

    #[cfg(target_os = "linux")]
    fn send_singles(&mut self, socket: &Socket) -> io::Result<()> {
        use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg};
        use std::io::IoSlice;
        if let [(to, start, end)] = *self.singles.as_slice() {
            self.singles.clear();
            let datagram = self.bytes.get(start..end).unwrap_or_default();
            return insist(|| socket.udp.send_to(datagram, to).map(drop));
        }
        let bytes = &self.bytes;
        let (mut places, mut slices, mut controls) = (Vec::new(), Vec::new(), Vec::new());
        for (to, start, end) in self.singles.drain(..) {
            places.push(SocketAddrAny::from(to));
            slices.push([IoSlice::new(bytes.get(start..end).unwrap_or_default())]);
            controls.push(SendAncillaryBuffer::default());
        }
        let parts = places.iter().zip(&slices).zip(&mut controls);
        let mut messages: Vec<MMsgHdr<'_>> =
            parts.map(|((place, slice), control)| MMsgHdr::new_with_addr(place, slice, control)).collect();
        let mut rest = messages.as_mut_slice();
        while !rest.is_empty() {
            let mut sent = 0;
            insist(|| {
                sent = sendmmsg(&socket.udp, rest, SendFlags::empty())?;
                Ok(())
            })?;
            rest = rest.get_mut(sent.max(1)..).unwrap_or_default();
        }
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    fn send_singles(&mut self, socket: &Socket) -> io::Result<()> {
        for (to, start, end) in self.singles.drain(..) {
            let datagram = self.bytes.get(start..end).unwrap_or_default();
            insist(|| socket.udp.send_to(datagram, to).map(drop))?;
        }
        Ok(())
    }
}

/// Sends until the system takes it: its buffer is emptied by others on other cores.
fn insist(mut send: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    loop {
        match send() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            // ICMP's word on an earlier datagram.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            sent => return sent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_have_addresses_of_their_own() {
        assert_eq!(flow_address(0), Ipv4Addr::LOCALHOST);
        for flow in [0, 1, 255, 49_999] {
            assert_eq!(flow_of(flow_address(flow).into()), Some(flow));
        }
        assert_eq!(flow_of(Ipv4Addr::new(127, 0, 0, 0).into()), None);
    }

    /// What was sent in any mixture of lengths and places arrives as it was.
    #[test]
    fn batches_keep_datagrams_apart() {
        let receiver = Socket::new(bind(loopback()).unwrap()).unwrap();
        let other = Socket::new(bind(loopback()).unwrap()).unwrap();
        let to = |socket: &Socket| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), socket.port().unwrap());
        let sender = Socket::new(bind(loopback()).unwrap()).unwrap();
        let (mut outbox, mut expected) = (Outbox::new(), Vec::new());
        for number in 0..200u16 {
            let len = [40, 40, 40, 7, 90][usize::from(number) % 5];
            let datagram = [number.to_be_bytes().as_slice(), &[7; 90]].concat();
            let place = if number % 7 == 3 { &other } else { &receiver };
            outbox.push(&sender, to(place), None, &datagram[..len]).unwrap();
            if number % 7 != 3 {
                expected.push(datagram[..len].to_vec());
            }
        }
        outbox.flush(&sender).unwrap();
        let (mut inbox, mut came) = (Inbox::new(), Vec::new());
        while came.len() < expected.len() {
            receiver.wait().unwrap();
            inbox.receive(&receiver, |datagram, _| came.push(datagram.to_vec())).unwrap();
        }
        came.sort();
        expected.sort();
        assert_eq!(came, expected);
    }
}
