//! The net's UDP socket. The machine sees plain IPv4 addresses on a dual-stack socket too: they are mapped into IPv6
//! (RFC 4291 section 2.5.5.2) only on their way to the system, and back when they come from it.
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use m2m_proto::error::ErrorKind;
use socket2::{Domain, Protocol, Type};
use tokio::net::UdpSocket;

use crate::Error;

/// The system's buffers hold a burst of so many bytes, if it lets them.
const BUFFER: usize = 1 << 20;

pub(super) struct Socket {
    udp: UdpSocket,
    local: SocketAddr,
}

impl Socket {
    /// Binds to this address, or to any free port: for IPv6 and IPv4, or IPv4 alone where there is no IPv6.
    pub(super) fn bind(wanted: Option<SocketAddr>) -> Result<Socket, Error> {
        let address = wanted.unwrap_or(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0));
        let bound = match open(address) {
            Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && !is_in_use(&error) => {
                open(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port()))
            }
            bound => bound,
        };
        let udp = bound.map_err(|error| bind_error(address, error))?;
        let local = udp.local_addr().map_err(|error| bind_error(address, error))?;
        Ok(Socket { udp, local })
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

    pub(super) fn try_send(&self, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let to = match (self.local.is_ipv6(), to) {
            (true, SocketAddr::V4(v4)) => SocketAddr::new(IpAddr::V6(v4.ip().to_ipv6_mapped()), v4.port()),
            _ => to,
        };
        self.udp.try_send_to(bytes, to).map(|_| ())
    }

    pub(super) fn try_receive(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let (len, from) = self.udp.try_recv_from(buffer)?;
        Ok((len, unmapped(from)))
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        self.udp.readable().await
    }

    pub(super) async fn writable(&self) -> io::Result<()> {
        self.udp.writable().await
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

fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        socket.set_only_v6(false)?;
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
    use super::*;

    fn bind(text: &str) -> Result<Socket, Error> {
        Socket::bind(Some(text.parse().unwrap()))
    }

    async fn passes(from: &Socket, to: &Socket, address: SocketAddr) -> SocketAddr {
        from.writable().await.unwrap();
        from.try_send(address, b"x").unwrap();
        let mut buffer = [0; 8];
        loop {
            to.readable().await.unwrap();
            match to.try_receive(&mut buffer) {
                Ok((len, source)) => {
                    assert_eq!(&buffer[..len], b"x");
                    return source;
                }
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
    }

    #[tokio::test]
    async fn a_default_socket_speaks_ipv4_in_its_own_form() {
        let (any, v4) = (Socket::bind(None).unwrap(), bind("127.0.0.1:0").unwrap());
        let source = passes(&any, &v4, v4.local_addr()).await;
        assert_eq!(source, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), any.local_addr().port()));
        assert_eq!(passes(&v4, &any, source).await, v4.local_addr());
    }

    #[tokio::test]
    async fn knows_what_it_cannot_reach() {
        let v4 = bind("127.0.0.1:0").unwrap();
        assert!(!v4.can_reach("[2001:db8::1]:1".parse().unwrap()));
        assert!(v4.can_reach("[::ffff:192.0.2.1]:1".parse().unwrap()));
        assert!(Socket::bind(None).unwrap().can_reach("192.0.2.1:1".parse().unwrap()));
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
