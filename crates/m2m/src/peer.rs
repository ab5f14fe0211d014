//! Whom to connect to: an id, an address, or both, and the key.
use std::{fmt, net::SocketAddr, str::FromStr};

use m2m_proto::{error::ErrorKind, id::Id};

use crate::{
    Error, Key,
    names::{Endpoint, PeerName, short},
};

/// A net to connect to. It needs its [`Peer::key`], unless all nets have the same.
#[derive(Clone)]
pub struct Peer {
    pub(crate) target: Target,
    pub(crate) key: Option<Key>,
    pub(crate) pin: Option<[u8; 32]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The host knows where it is.
    Id(Id),
    At(Id, SocketAddr),
    /// A name to be looked up.
    Name(Endpoint),
}

impl Peer {
    /// The net with this id, found through this net's host.
    pub fn id(id: Id) -> Peer {
        Peer { target: Target::Id(id), key: None, pin: None }
    }

    /// The net with this id, at this address.
    pub fn addr(id: Id, address: SocketAddr) -> Peer {
        Peer { target: Target::At(id, address), key: None, pin: None }
    }

    /// Whichever net listens at this address.
    pub fn any(address: SocketAddr) -> Peer {
        Peer::addr(Id::ANY, address)
    }

    /// A net by the name or address where it listens, and its id if that is known.
    pub fn endpoint(endpoint: Endpoint) -> Peer {
        let target = match endpoint.host.parse() {
            Ok(ip) => Target::At(endpoint.id.unwrap_or(Id::ANY), SocketAddr::new(ip, endpoint.port)),
            Err(_) => Target::Name(endpoint),
        };
        Peer { target, key: None, pin: None }
    }

    /// The peer's net key, or a pair key from this net to it. Without one this net's own key is tried.
    pub fn key(mut self, key: Key) -> Peer {
        self.key = Some(key);
        self
    }

    /// The public device key that the peer has to prove to hold (`m2m id` shows it there). Without it, whoever holds
    /// the peer's net key can be the peer to this net; with it, only that device.
    pub fn pin(mut self, public: [u8; 32]) -> Peer {
        self.pin = Some(public);
        self
    }
}

/// Reads `ID`, `ID@host:port` or `host:port`.
///
/// ```
/// let peer: m2m::Peer = "a1@192.0.2.7:9527".parse().unwrap();
/// assert!("relay".parse::<m2m::Peer>().is_err());
/// ```
impl FromStr for Peer {
    type Err = Error;

    fn from_str(text: &str) -> Result<Peer, Error> {
        match text.parse()? {
            PeerName::Id(id) => Ok(Peer::id(id)),
            PeerName::At(endpoint) => Ok(Peer::endpoint(endpoint)),
            PeerName::Alias(name) => Err(Error::new(
                ErrorKind::Configuration,
                format!("{name}: no id and no address: write ID, ID@HOST:PORT or HOST:PORT"),
            )),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Id(id) => f.write_str(&short(*id)),
            Target::At(Id::ANY, address) => write!(f, "{address}"),
            Target::At(id, address) => write!(f, "{}@{address}", short(*id)),
            Target::Name(endpoint) => write!(f, "{endpoint}"),
        }
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({})", self.target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_three_forms() {
        let target = |text: &str| text.parse::<Peer>().map(|peer| peer.target);
        let id = Id::from_hex("a1").unwrap();
        let address = "192.0.2.7:9527".parse().unwrap();
        assert_eq!(target("a1").unwrap(), Target::Id(id));
        assert_eq!(target("a1@192.0.2.7").unwrap(), Target::At(id, address));
        assert_eq!(target("192.0.2.7:9527").unwrap(), Target::At(Id::ANY, address));
        assert_eq!(target("[::1]:7").unwrap(), Target::At(Id::ANY, "[::1]:7".parse().unwrap()));
        assert!(matches!(target("a1@relay.example:1").unwrap(), Target::Name(name) if name.id == Some(id)));
        assert_eq!(target("relay").unwrap_err().kind(), ErrorKind::Configuration);
    }
}
