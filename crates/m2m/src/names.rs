//! How people name a peer or a host: `[id@]name-or-address[:port]`, an id, or an alias.
use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::{fmt, io};

use m2m_proto::id::{Id, IdError};

/// The UDP port where nothing else is said.
pub const DEFAULT_PORT: u16 = 9527;

/// Characters of a host's name: RFC 1035 section 2.3.4, as text without the root's dot.
const MAX_HOST: usize = 253;

/// A net at an address: `[id@]name-or-address[:port]`.
///
/// ```
/// use m2m::names::Endpoint;
/// let host: Endpoint = "a1@relay.example".parse().unwrap();
/// assert_eq!((host.host.as_str(), host.port), ("relay.example", 9527));
/// let local: Endpoint = "[::1]:5000".parse().unwrap();
/// assert_eq!((local.id, local.host.as_str(), local.port), (None, "::1", 5000));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Its id; without one it is whichever net listens at the address.
    pub id: Option<Id>,
    /// A name, or an address without brackets; an IPv6 address may name its zone (`fe80::1%eth0`).
    pub host: String,
    /// The UDP port.
    pub port: u16,
}

impl Endpoint {
    /// Looks the name up: all its addresses, IPv4 and IPv6, in the system's order of preference; at least one.
    ///
    /// The system alone decides how long this takes: wrap it in a timeout.
    ///
    /// # Errors
    /// The name is unknown, or the look-up failed.
    pub async fn resolve(&self) -> Result<Vec<SocketAddr>, ResolveError> {
        let failed = |source| ResolveError { host: self.host.clone(), source };
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await.map_err(failed)?;
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in found {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        if addresses.is_empty() {
            return Err(failed(io::Error::new(io::ErrorKind::NotFound, "it has no address")));
        }
        Ok(addresses)
    }
}

impl FromStr for Endpoint {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Endpoint, NameError> {
        let text = text.trim();
        let (id, address) = match text.split_once('@') {
            Some((id, address)) => (Some(parse_id(id)?), address),
            None => (None, text),
        };
        let (host, port) = split_port(address)?;
        let port = port.map_or(Ok(DEFAULT_PORT), parse_port)?;
        Ok(Endpoint { id, host: host.to_owned(), port })
    }
}

impl fmt::Display for Endpoint {
    /// The form that parses to the same endpoint, the port included.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(id) = self.id {
            write!(f, "{id}@")?;
        }
        if self.host.contains(':') {
            return write!(f, "[{}]:{}", self.host, self.port);
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A peer as people write it.
///
/// Only hex digits, at most 32, are an id; with an `@`, a `:` or a `.` in it, or in brackets, it is an endpoint;
/// everything else is a word that the configuration may explain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PeerName {
    /// The net with this id, wherever it is: our host knows.
    Id(Id),
    /// The net at this address.
    At(Endpoint),
    /// An alias from the configuration. If it is none there and was meant as a host's name, it lacks its port.
    Alias(String),
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerName::Id(id) => f.write_str(&short(*id)),
            PeerName::At(endpoint) => endpoint.fmt(f),
            PeerName::Alias(name) => f.write_str(name),
        }
    }
}

impl FromStr for PeerName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<PeerName, NameError> {
        let text = text.trim();
        if text.contains(['@', ':', '.', '[', ']']) {
            return text.parse().map(PeerName::At);
        }
        check_host(text)?;
        // Digits that are too many for an id are a slip, not an alias.
        if text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return parse_id(text).map(PeerName::Id);
        }
        Ok(PeerName::Alias(text.to_owned()))
    }
}

fn parse_id(text: &str) -> Result<Id, NameError> {
    let id = Id::from_hex(text).map_err(NameError::Id)?;
    if id == Id::ANY {
        return Err(NameError::ZeroId);
    }
    Ok(id)
}

/// Splits `host[:port]` and takes an IPv6 address out of its brackets.
fn split_port(address: &str) -> Result<(&str, Option<&str>), NameError> {
    if let Some(bracketed) = address.strip_prefix('[') {
        let (host, rest) = bracketed.split_once(']').ok_or(NameError::Bracket)?;
        let (number, zone) = host.split_once('%').unwrap_or((host, "zone"));
        if number.parse::<Ipv6Addr>().is_err() || zone.is_empty() {
            return Err(NameError::Ipv6);
        }
        check_host(host)?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(NameError::Bracket),
        };
    }
    if address.contains(['[', ']']) {
        return Err(NameError::Bracket);
    }
    let (host, port) = match address.split_once(':') {
        Some((_, rest)) if rest.contains(':') => return Err(NameError::BareIpv6),
        Some((host, port)) => (host, Some(port)),
        None => (address, None),
    };
    check_host(host)?;
    Ok((host, port))
}

fn check_host(host: &str) -> Result<(), NameError> {
    if host.is_empty() {
        return Err(NameError::NoHost);
    }
    if host.len() > MAX_HOST {
        return Err(NameError::LongHost(host.len()));
    }
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | '@' | '?' | '#' | '\\');
    match host.chars().find(|c| odd(*c)) {
        Some(c) => Err(NameError::Character(c)),
        None => Ok(()),
    }
}

fn parse_port(text: &str) -> Result<u16, NameError> {
    // `parse` alone would take a sign.
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let port = text.parse().ok().filter(|port| digits && *port != 0);
    port.ok_or(NameError::Port)
}

/// An id as people write it: without leading zeros.
///
/// ```
/// assert_eq!(m2m::names::short(m2m::Id::from_hex("a1").unwrap()), "a1");
/// ```
pub fn short(id: Id) -> String {
    let text = id.to_string();
    match text.trim_start_matches('0') {
        "" => "0".to_owned(),
        digits => digits.to_owned(),
    }
}

/// Why a text names no peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NameError {
    /// What stands before the `@`, or alone, is no id.
    Id(IdError),
    /// The id is zero, which means "any".
    ZeroId,
    /// There is no name or address.
    NoHost,
    /// A name of this many bytes; 253 are the most.
    LongHost(usize),
    /// A character that no name has.
    Character(char),
    /// A bracket that stands alone or in the wrong place.
    Bracket,
    /// What is in brackets is no IPv6 address.
    Ipv6,
    /// An IPv6 address without brackets: where would its port start?
    BareIpv6,
    /// The port is not a number from 1 to 65535.
    Port,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NameError::Id(error) => write!(f, "{error}"),
            NameError::ZeroId => write!(f, "id 0 means any net: leave the id out, and name an address"),
            NameError::NoHost => {
                write!(f, "the name or address is missing: write [ID@]NAME-OR-ADDRESS[:PORT]")
            }
            NameError::LongHost(n) => write!(f, "a name has at most {MAX_HOST} characters, this one has {n}"),
            NameError::Character(c) => write!(f, "a name or address has no {c:?} in it"),
            NameError::Bracket => {
                write!(f, "brackets belong around an IPv6 address: [2001:db8::1]:{DEFAULT_PORT}")
            }
            NameError::Ipv6 => {
                write!(f, "what is in brackets must be an IPv6 address: [2001:db8::1]:{DEFAULT_PORT}")
            }
            NameError::BareIpv6 => {
                write!(
                    f,
                    "an IPv6 address belongs in brackets: [2001:db8::1] or [2001:db8::1]:{DEFAULT_PORT}"
                )
            }
            NameError::Port => write!(f, "a port is a number from 1 to 65535"),
        }
    }
}

impl std::error::Error for NameError {}

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
#[error("no address for {host}: {source}. Check the name, and whether this machine is on a network")]
pub struct ResolveError {
    /// The name that was looked up.
    pub host: String,
    /// What the system said.
    pub source: io::Error,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(id: Option<&str>, host: &str, port: u16) -> Endpoint {
        Endpoint { id: id.map(|id| Id::from_hex(id).unwrap()), host: host.into(), port }
    }

    #[test]
    fn every_form_of_an_endpoint() {
        let full = "0123456789abcdef0123456789abcdef";
        let cases = [
            ("relay.example", endpoint(None, "relay.example", 9527)),
            ("relay.example:7", endpoint(None, "relay.example", 7)),
            ("a1@relay.example", endpoint(Some("a1"), "relay.example", 9527)),
            ("a1@relay.example:65535", endpoint(Some("a1"), "relay.example", 65535)),
            (&format!("{full}@10.0.0.1:9"), endpoint(Some(full), "10.0.0.1", 9)),
            ("10.0.0.1", endpoint(None, "10.0.0.1", 9527)),
            ("localhost", endpoint(None, "localhost", 9527)),
            ("[::1]", endpoint(None, "::1", 9527)),
            ("[2001:db8::1]:80", endpoint(None, "2001:db8::1", 80)),
            ("1@[fe80::1%eth0]:80", endpoint(Some("1"), "fe80::1%eth0", 80)),
            (" 1@router \n", endpoint(Some("1"), "router", 9527)),
            // A name may look like an id where only a name can stand.
            ("beef", endpoint(None, "beef", 9527)),
        ];
        for (text, expected) in cases {
            let parsed: Endpoint = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(parsed, expected, "{text}");
            assert_eq!(parsed.to_string().parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_endpoint_is_told_apart() {
        let long = "a".repeat(254);
        let cases = [
            ("", NameError::NoHost),
            ("a1@", NameError::NoHost),
            (":80", NameError::NoHost),
            ("@relay", NameError::Id(IdError::Length(0))),
            ("xyz@relay", NameError::Id(IdError::NotHex)),
            ("0@relay", NameError::ZeroId),
            ("1@2@relay", NameError::Character('@')),
            ("coap//relay", NameError::Character('/')),
            ("two words", NameError::Character(' ')),
            ("re\u{0}lay", NameError::Character('\0')),
            (&long, NameError::LongHost(254)),
            ("2001:db8::1", NameError::BareIpv6),
            ("::1", NameError::BareIpv6),
            ("[::1", NameError::Bracket),
            ("[::1]80", NameError::Bracket),
            ("::1]", NameError::Bracket),
            ("relay[1]", NameError::Bracket),
            ("[relay]", NameError::Ipv6),
            ("[10.0.0.1]", NameError::Ipv6),
            ("[fe80::1%]", NameError::Ipv6),
            ("[fe80::1%et h0]", NameError::Character(' ')),
            ("relay:", NameError::Port),
            ("relay:0", NameError::Port),
            ("relay:+80", NameError::Port),
            ("relay:65536", NameError::Port),
            ("relay:http", NameError::Port),
            ("[::1]:", NameError::Port),
        ];
        for (text, reason) in cases {
            assert_eq!(text.parse::<Endpoint>(), Err(reason), "{text}");
            assert!(!reason.to_string().is_empty());
        }
    }

    #[test]
    fn a_peer_is_an_id_an_endpoint_or_an_alias() {
        let id = |text| PeerName::Id(Id::from_hex(text).unwrap());
        let cases = [
            ("1", id("1")),
            ("BEEF", id("beef")),
            (" a1 ", id("a1")),
            ("a1@relay", PeerName::At(endpoint(Some("a1"), "relay", 9527))),
            ("relay:7", PeerName::At(endpoint(None, "relay", 7))),
            ("10.0.0.1", PeerName::At(endpoint(None, "10.0.0.1", 9527))),
            ("[::1]", PeerName::At(endpoint(None, "::1", 9527))),
            ("kitchen", PeerName::Alias("kitchen".into())),
            ("pump-3", PeerName::Alias("pump-3".into())),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        let refused = |text: &str| text.parse::<PeerName>().unwrap_err();
        assert_eq!(refused(""), NameError::NoHost);
        assert_eq!(refused("0"), NameError::ZeroId);
        assert_eq!(refused(&"1".repeat(33)), NameError::Id(IdError::Length(33)));
        assert_eq!(refused("two words"), NameError::Character(' '));
        assert_eq!(refused("fe80::1"), NameError::BareIpv6);
    }

    #[tokio::test]
    async fn addresses_resolve_to_themselves() {
        for (text, expected) in [("127.0.0.1", "127.0.0.1:9527"), ("[::1]:5", "[::1]:5")] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.resolve().await.unwrap(), [expected.parse().unwrap()]);
        }
    }

    #[tokio::test]
    async fn a_name_resolves_to_all_its_addresses_once() {
        let addresses = endpoint(None, "localhost", 7).resolve().await.unwrap();
        assert!(addresses.iter().all(|address| address.ip().is_loopback() && address.port() == 7));
        assert!((1..addresses.len()).all(|at| !addresses[..at].contains(&addresses[at])), "{addresses:?}");
    }

    #[tokio::test]
    async fn an_unknown_name_is_named() {
        // RFC 6761 section 6.4: `invalid` never resolves.
        let error = endpoint(None, "relay.invalid", 7).resolve().await.unwrap_err().to_string();
        assert!(error.contains("relay.invalid") && error.contains("Check the name"), "{error}");
    }
}
