//! The net's UDP socket. The machine sees plain IPv4 addresses on a dual-stack socket too: they are mapped into IPv6
//! (RFC 4291 section 2.5.5.2) only on their way to the system, and back when they come from it.
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    task::{Context, Poll},
};

use m2m_proto::error::ErrorKind;
use socket2::{Domain, Protocol, Type};
use tokio::{io::Interest, net::UdpSocket};

use super::{
    batched::{Batched, SLOT, SLOTS},
    egress::Datagram,
};
use crate::Error;

/// The system's buffers hold a burst of so many bytes, if it lets them.
const BUFFER: usize = 1 << 20;

/// Larger than any packet; what is longer is none.
const MAX_LEN: usize = 2048;
/// Datagrams that are taken in one go where the system has no call for several.
const PORTABLE_SLOTS: usize = 32;

pub(super) struct Socket {
    udp: UdpSocket,
    local: SocketAddr,
    batched: Option<Batched>,
    /// Takes nothing, as one whose queue is full.
    #[cfg(test)]
    pub(in crate::net) is_full: std::sync::atomic::AtomicBool,
}

impl Socket {
    /// Binds to this address, or to any free port: for IPv6 and IPv4, or IPv4 alone where there is no IPv6. Takes and
    /// gives several datagrams in one call where the system can, if it is to be `batched`.
    pub(super) fn bind(wanted: Option<SocketAddr>, batched: bool) -> Result<Socket, Error> {
        let address = wanted.unwrap_or(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0));
        let bound = match open(address, Port::Alone) {
            Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && !is_in_use(&error) => {
                open(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port()), Port::Alone)
            }
            bound => bound,
        };
        Socket::of(address, bound, batched)
    }

    /// Binds so many sockets to one port, among which the system spreads what comes, by its sender's address.
    pub(super) fn bind_shared(
        wanted: Option<SocketAddr>,
        batched: bool,
        count: u8,
    ) -> Result<Vec<Arc<Socket>>, Error> {
        // Who shares a port, shares it with every program of the same user that wants to: alone on it first, this net
        // learns whether it is free.
        let local = Socket::bind(wanted, batched)?.local;
        let one = || Socket::of(local, open(local, Port::Shared), batched).map(Arc::new);
        (0..count).map(|_| one()).collect()
    }

    fn of(address: SocketAddr, bound: io::Result<UdpSocket>, batched: bool) -> Result<Socket, Error> {
        let udp = bound.map_err(|error| bind_error(address, error))?;
        let local = udp.local_addr().map_err(|error| bind_error(address, error))?;
        let batched = if batched { Batched::new(&udp) } else { None };
        Ok(Socket {
            udp,
            local,
            batched,
            #[cfg(test)]
            is_full: false.into(),
        })
    }

    pub(super) fn local_addr(&self) -> SocketAddr {
        unmapped(self.local)
    }

    /// True if a datagram to this address can leave here at all.
    pub(super) fn can_reach(&self, address: SocketAddr) -> bool {
        match (self.local.ip(), unmapped(address).ip()) {
            (IpAddr::V4(_), to) => to.is_ipv4(),
            (IpAddr::V6(from), to) => to.is_ipv6() || from.is_unspecified(),
        }
    }

    /// Sends some of the first datagrams, with one call to the system, and says how many. An error is the first one's.
    pub(super) fn send(&self, datagrams: &[Datagram], staging: &mut Vec<u8>) -> io::Result<usize> {
        #[cfg(test)]
        if self.is_full.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let to_system = |to| self.to_system(to);
        match (datagrams, &self.batched) {
            ([], _) => Ok(0),
            ([one], _) | ([one, ..], None) => self.udp.try_send_to(&one.bytes, to_system(one.to)).map(|_| 1),
            (_, Some(batched)) => {
                self.udp.try_io(Interest::WRITABLE, || batched.send(&self.udp, datagrams, to_system, staging))
            }
        }
    }

    /// An address as this socket's family has it.
    fn to_system(&self, address: SocketAddr) -> SocketAddr {
        match (self.local.is_ipv6(), address) {
            (true, SocketAddr::V4(v4)) => SocketAddr::new(IpAddr::V6(v4.ip().to_ipv6_mapped()), v4.port()),
            _ => address,
        }
    }

    /// What datagrams of this socket are taken into.
    pub(super) fn inbox(&self) -> Inbox {
        let len = if self.batched.is_some() { SLOTS * SLOT } else { PORTABLE_SLOTS * MAX_LEN };
        // Zeroed memory costs nothing until it is used.
        let slot = if self.batched.is_some() { SLOT } else { MAX_LEN };
        Inbox { buffer: vec![0; len], slot, arrived: Vec::with_capacity(len / slot) }
    }

    /// Takes what has come, up to the inbox's size. `WouldBlock` if there is nothing.
    pub(super) fn receive(&self, inbox: &mut Inbox) -> io::Result<()> {
        inbox.arrived.clear();
        let result = match &self.batched {
            Some(batched) => self.udp.try_io(Interest::READABLE, || {
                batched.receive(&self.udp, &mut inbox.buffer, &mut inbox.arrived)?;
                // There is no more than that: the socket need not be asked again before it says so.
                if inbox.arrived.len() < SLOTS { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            }),
            None => self.receive_each(inbox),
        };
        match result {
            Err(error) if inbox.arrived.is_empty() => Err(error),
            _ => Ok(()),
        }
    }

    fn receive_each(&self, inbox: &mut Inbox) -> io::Result<()> {
        for slot in inbox.buffer.chunks_exact_mut(MAX_LEN) {
            let (len, from) = self.udp.try_recv_from(slot)?;
            inbox.arrived.push(Arrived { from, len, stride: len.max(1) });
        }
        Ok(())
    }

    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.udp.poll_recv_ready(cx)
    }

    pub(super) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.udp.poll_send_ready(cx)
    }
}

/// One message that came: datagrams of `stride` bytes, the last one perhaps shorter.
#[derive(Clone, Copy)]
pub(super) struct Arrived {
    pub(super) from: SocketAddr,
    pub(super) len: usize,
    pub(super) stride: usize,
}

/// Datagrams that came, in the order in which they came.
pub(super) struct Inbox {
    buffer: Vec<u8>,
    /// What each message has for itself.
    slot: usize,
    arrived: Vec<Arrived>,
}

impl Inbox {
    /// Each datagram and where it is from.
    pub(super) fn each(&mut self, mut take: impl FnMut(SocketAddr, &mut [u8])) {
        for (arrived, slot) in self.arrived.iter().zip(self.buffer.chunks_exact_mut(self.slot)) {
            let from = unmapped(arrived.from);
            let bytes = slot.get_mut(..arrived.len).unwrap_or_default();
            bytes.chunks_mut(arrived.stride).for_each(|datagram| take(from, datagram));
        }
    }
}

/// An IPv4 address in its own form, if it is mapped into IPv6.
pub(super) fn unmapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(IpAddr::V4(v4), v6.port()),
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}

/// Whether others may have the same port.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Port {
    Alone,
    Shared,
}

/// Linux spreads what comes to a shared port; elsewhere one of the sockets gets it all, or none may share.
pub(super) const CAN_SHARE_PORTS: bool = cfg!(any(target_os = "linux", target_os = "android"));

#[cfg(any(target_os = "linux", target_os = "android"))]
fn share_port(socket: &socket2::Socket) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_reuseport(socket, true)?)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn share_port(_: &socket2::Socket) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

fn open(address: SocketAddr, port: Port) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        socket.set_only_v6(false)?;
    }
    if port == Port::Shared {
        share_port(&socket)?;
    }
    socket.set_nonblocking(true)?;
    // Smaller buffers only mean that a burst loses more: no reason to fail.
    let _ = socket.set_recv_buffer_size(BUFFER);
    let _ = socket.set_send_buffer_size(BUFFER);
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

fn is_in_use(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

fn bind_error(address: SocketAddr, error: io::Error) -> Error {
    let text = match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "UDP port {} is in use on this machine: stop the program that has it, choose another port, or port 0 for a free one",
            address.port()
        ),
        io::ErrorKind::PermissionDenied => {
            format!("not allowed to use UDP port {}: choose one above 1023", address.port())
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("{} is no address of this machine: use one that is, or [::] for all", address.ip())
        }
        _ => format!("no UDP socket at {address}: {error}"),
    };
    Error::caused(ErrorKind::Io, text, error)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn bind(text: &str) -> Result<Socket, Error> {
        Socket::bind(Some(text.parse().unwrap()), true)
    }

    fn datagrams(to: SocketAddr, lens: &[usize]) -> Vec<Datagram> {
        let bytes = |(n, len): (usize, &usize)| vec![n as u8; *len];
        lens.iter().enumerate().map(bytes).map(|bytes| Datagram { to, bytes }).collect()
    }

    /// Sends them all; how many calls that took.
    async fn send(from: &Socket, mut left: &[Datagram]) -> usize {
        let mut calls = 0;
        while !left.is_empty() {
            poll_fn(|cx| from.poll_writable(cx)).await.unwrap();
            match from.send(left, &mut Vec::new()) {
                Ok(sent) => left = &left[sent..],
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            calls += 1;
        }
        calls
    }

    /// The lengths and first bytes of what comes, and where from.
    async fn receive(at: &Socket, count: usize) -> Vec<(SocketAddr, usize, u8)> {
        let (mut inbox, mut came) = (at.inbox(), Vec::new());
        while came.len() < count {
            poll_fn(|cx| at.poll_readable(cx)).await.unwrap();
            match at.receive(&mut inbox) {
                Ok(()) => inbox.each(|from, bytes| came.push((from, bytes.len(), bytes[0]))),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        came
    }

    async fn passes(from: &Socket, to: &Socket, address: SocketAddr) -> SocketAddr {
        send(from, &datagrams(address, &[8])).await;
        let came = receive(to, 1).await;
        assert_eq!((came.len(), came[0].1), (1, 8));
        came[0].0
    }

    #[tokio::test]
    async fn runs_and_single_ones_arrive_as_they_were_with_batches_and_without() {
        let lens: Vec<usize> = [[100; 9].as_slice(), &[40, 100, 7, 50, 50, 1200, 1200, 3]].concat();
        for (batched, from_batched) in [(true, true), (true, false), (false, true), (false, false)] {
            let [from, to] = [from_batched, batched]
                .map(|batched| Socket::bind(Some(SocketAddr::from(([127, 0, 0, 1], 0))), batched).unwrap());
            let sent = datagrams(to.local_addr(), &lens);
            let calls = send(&from, &sent).await;
            if from_batched && cfg!(target_os = "linux") {
                assert!(calls < sent.len(), "{calls} calls");
            } else {
                assert_eq!(calls, sent.len());
            }
            let came = receive(&to, lens.len()).await;
            let expected: Vec<_> =
                sent.iter().map(|sent| (from.local_addr(), sent.bytes.len(), sent.bytes[0])).collect();
            assert_eq!(came, expected, "in order, each as it was");
        }
    }

    #[tokio::test]
    async fn one_call_serves_many_addresses() {
        for batched in [true, false] {
            let from = Socket::bind(None, batched).unwrap();
            let peers: Vec<Socket> = (0..SLOTS + 3).map(|_| bind("127.0.0.1:0").unwrap()).collect();
            let sent: Vec<Datagram> =
                peers.iter().flat_map(|peer| datagrams(peer.local_addr(), &[30])).collect();
            let calls = send(&from, &sent).await;
            assert_eq!(calls, if batched { sent.len().div_ceil(SLOTS) } else { sent.len() });
            for peer in &peers {
                assert_eq!(receive(peer, 1).await[0].1, 30);
            }
        }
    }

    #[tokio::test]
    async fn a_default_socket_speaks_ipv4_in_its_own_form() {
        let (any, v4) = (Socket::bind(None, true).unwrap(), bind("127.0.0.1:0").unwrap());
        let source = passes(&any, &v4, v4.local_addr()).await;
        assert_eq!(source, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), any.local_addr().port()));
        assert_eq!(passes(&v4, &any, source).await, v4.local_addr());
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_system_that_refuses_runs_is_not_asked_again() {
        use std::sync::atomic::Ordering;
        let (from, to) = (bind("127.0.0.1:0").unwrap(), bind("127.0.0.1:0").unwrap());
        let run = datagrams(to.local_addr(), &[100; 40]);
        let refuses = &from.batched.as_ref().unwrap().refuses_runs;
        refuses.store(true, Ordering::Relaxed);
        assert_eq!(send(&from, &run).await, 2, "as many as one call takes, and the rest");
        assert_eq!(receive(&to, 40).await.len(), 40);
        refuses.store(false, Ordering::Relaxed);
        assert_eq!(send(&from, &run).await, 2, "it is remembered");
        assert_eq!(receive(&to, 40).await.len(), 40);
    }

    #[tokio::test]
    async fn knows_what_it_cannot_reach() {
        let v4 = bind("127.0.0.1:0").unwrap();
        assert!(!v4.can_reach("[2001:db8::1]:1".parse().unwrap()));
        assert!(v4.can_reach("[::ffff:192.0.2.1]:1".parse().unwrap()));
        assert!(Socket::bind(None, true).unwrap().can_reach("192.0.2.1:1".parse().unwrap()));
    }

    #[tokio::test]
    async fn says_what_is_wrong_with_an_address() {
        let first = bind("127.0.0.1:0").unwrap();
        let error = bind(&first.local_addr().to_string()).err().expect("the port is taken");
        assert_eq!(error.kind(), ErrorKind::Io);
        let port = first.local_addr().port();
        assert!(error.to_string().contains(&format!("UDP port {port} is in use")), "{error}");
        let error = bind("192.0.2.77:0").err().expect("not our address");
        assert!(error.to_string().contains("no address of this machine"), "{error}");
    }
}
